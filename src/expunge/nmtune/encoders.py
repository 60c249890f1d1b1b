"""Encoders: embed samples, attach a fitted head, and adapt by low-rank changes of the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed, torch_generator
from expunge.data import Batch, DataLike, Samples, as_samples
from expunge.errors import ConfigError, ModelError, check_range
from expunge.models.calls import call_model, device_of, eval_mode, to_channels_last
from expunge.models.copying import copy_model
from expunge.models.inspection import find_head, inspect_layers
from expunge.nmtune.heads import NMTune
from expunge.nmtune.networks import Head, ViewHead, input_scale
from expunge.nmtune.objectives import PRESETS, NMTuneConfig
from expunge.nmtune.training import ViewOutputs, train_head
from expunge.training.checkpoints import Checkpoint
from expunge.training.steps import Step

# Samples that an encoder reads at once. The random views depend on it.
BLOCK_SIZE = 256
# The published rank of the adapters.
DEFAULT_RANK = 8


def without_head(model: nn.Module, samples: DataLike) -> nn.Module:
    """Copy a classifier without its last linear layer: it returns features ``float[b, d]``.

    Parameters
    ----------
    model
        The classifier; it is not changed.
    samples
        Two of them are passed through the model to find the layer.

    Raises
    ------
    ModelError
        If no linear layer computes the logits.

    Examples
    --------
    >>> from expunge.data import from_arrays
    >>> samples = from_arrays(np.eye(4, dtype=np.float32), [0, 1, 0, 1])
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> without_head(model, samples)(torch.zeros(1, 4)).shape
    torch.Size([1, 3])
    """
    fix = "give an encoder that returns its features"
    name = find_head(model, as_samples(samples).example(), fix=fix)
    encoder = copy_model(model)
    return _replace_module(encoder, name, nn.Identity())


@isolated
def attach(model: nn.Module, fitted: NMTune, samples: DataLike) -> nn.Module:
    """Copy a classifier with a fitted head in place of its last linear layer.

    The result returns logits of the head's classes. Compare, export and save it like any model.

    Parameters
    ----------
    model
        The classifier; it is not changed.
    fitted
        A head that was fitted to the features of this model.
    samples
        Two of them are passed through the model to find the layer.

    Raises
    ------
    ModelError
        If no linear layer computes the logits, or it has another width.
    """
    name = inspect_layers(model, as_samples(samples).example()).head
    width = getattr(model.get_submodule(name), "in_features", None) if name else None
    if width != fitted.head.linear.in_features:
        raise ModelError(
            f"the last linear layer reads {width} features, the head was fitted with "
            f"{fitted.head.linear.in_features}",
            fix="fit the head on embed(without_head(model, samples), samples)",
        )
    return _replace_module(copy_model(model), name, copy_model(fitted.head)).eval()


@isolated
def embed(
    encoder: nn.Module,
    samples: DataLike,
    *,
    views: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> np.ndarray:
    """Compute the features of samples.

    Parameters
    ----------
    encoder
        Returns ``float[b, d]``; see `without_head`. It runs on its device in evaluation mode and is
        not changed.
    samples
        What to embed.
    views
        The number of random views, by the samples' own ``view``; 0: the inputs as they are.
    seed
        Draws the views.
    progress
        Called with the number of samples.

    Returns
    -------
    np.ndarray
        ``float32[max(1, views), n, d]``.

    Raises
    ------
    ModelError
        If the output has another shape, or is NaN or infinite.
    ConfigError
        If views are requested of samples that have none, or their number is negative.

    Notes
    -----
    Cost: one pass for each view.

    Examples
    --------
    >>> from expunge.data import from_arrays
    >>> samples = from_arrays(np.eye(4, dtype=np.float32), [0, 1, 0, 1])
    >>> embed(nn.Linear(4, 3), samples).shape
    (1, 4, 3)
    """
    check_range(ConfigError, {"views": (views, "[0, inf)")}, where="embed")
    samples = as_samples(samples)
    if views and samples.view is None:
        raise ConfigError(
            "the samples have no views",
            where=samples.name,
            fix="give the samples a view, or views=0",
        )
    device = device_of(encoder)
    embedded, done = [], 0
    with eval_mode(encoder), torch.inference_mode():
        for number in range(max(1, views)):
            parts = []
            for at in samples.batches(BLOCK_SIZE):
                draw = torch_generator(seed, "nmtune", "view", number, int(at[0]))
                x = _inputs(samples, at, device, draw if views else None)
                parts.append(_features(encoder, x).float().cpu().numpy())
                done += len(at)
                progress("embed", done, len(samples) * max(1, views))
            embedded.append(np.concatenate(parts))
    found = np.stack(embedded)
    if not np.isfinite(found).all():
        raise ModelError("features are NaN or infinite", where="encoder")
    return found


@isolated
def adapt(
    encoder: nn.Module,
    samples: DataLike,
    *,
    config: NMTuneConfig | None = None,
    learning_rate: float = 1e-3,
    rank: int = DEFAULT_RANK,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> nn.Sequential:
    """Train a head together with low-rank changes of the encoder.

    Every weight ``W[o, i]`` of a linear or convolution layer (``i`` counts inputs × kernel) becomes
    ``W + B A`` with ``A[rank, i]`` and ``B[o, rank]``, B zero at first, if these have fewer values
    than W.

    Parameters
    ----------
    encoder
        See `embed`; it is not changed.
    samples
        What to train on. Two views of each are used if the samples have a view.
    config
        None: the preset ``code``. The consistency term is left out, since features change.
    learning_rate
        Above 0.
    rank
        1 or more.
    seed
        Draws the weights, the order and the views.
    checkpoint
        Where the state is stored between epochs.
    progress
        Called with the number of steps.

    Returns
    -------
    nn.Sequential
        Encoder and head, the changes added to the weights: a plain module that returns logits, in
        evaluation mode.

    Raises
    ------
    ModelError
        If no layer is larger than its change, or the loss is not finite.

    Notes
    -----
    Batch norm keeps its averages. Published: adapters only in the MLP layers of a transformer.
    Cost: ``epochs`` forward and backward passes over two views.

    References
    ----------
    LoRA, https://arxiv.org/abs/2106.09685; NMTune, https://arxiv.org/abs/2309.17002.
    """
    check_range(ConfigError, {"rank": (rank, "[1, inf)")}, where="adapt")
    config, samples = replace(config or PRESETS["code"], consistency=0.0), as_samples(samples)
    model = copy_model(encoder).eval().requires_grad_(False)
    device = device_of(model)
    first = _features(
        model, _inputs(samples, np.arange(min(len(samples), BLOCK_SIZE)), device, None)
    )
    with temp_seed(seed, "nmtune", "head"):
        head = Head(first.shape[1], len(samples.classes), config, scale=input_scale(first)).to(
            device
        )
    add_low_rank(model, rank, seed=seed)
    views = 2 if samples.view is not None else 1

    def inputs(step: Step, random: np.random.Generator) -> list[Batch]:
        names = ("nmtune", "adapt", step.number + 1)
        draws = [torch_generator(seed, *names, step.process_key(view)) for view in range(views)]
        return [_inputs(samples, step.rows, step.device, draw) for draw in draws]

    train_head(
        _AdaptedEncoder(model, head),
        inputs,
        samples.labels,
        config,
        learning_rate=learning_rate,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    return nn.Sequential(merge_low_rank(model), head).eval()


class _AdaptedEncoder(nn.Module):
    """An encoder with low-rank changes, and a head, which take several views at once."""

    def __init__(self, encoder: nn.Module, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, ViewHead(head)

    def train(self, mode: bool = True) -> _AdaptedEncoder:
        """Train the head; the encoder stays in evaluation mode."""
        self.head.train(mode)
        return self

    def forward(self, views: list[Batch]) -> ViewOutputs:
        """From inputs of v views to features ``[v, b, d]``, transformed features and logits."""
        outputs: ViewOutputs = self.head(torch.stack([_features(self.encoder, x) for x in views]))
        return outputs


class LowRank(nn.Module):
    """``W + B A`` as a parametrisation of a weight."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        self.a = nn.Parameter(weight.new_empty(rank, inputs))
        self.b = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view_as(weight)


def add_low_rank(model: nn.Module, rank: int, *, seed: int) -> list[nn.Parameter]:
    """Add `LowRank` to the weights that are larger than it; return the new parameters.

    ModelError if there is no such weight.
    """
    learned: list[nn.Parameter] = []
    with temp_seed(seed, "nmtune", "adapters"):
        for module in list(model.modules()):
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                weight = module.weight
                if rank * (weight.shape[0] + weight[0].numel()) < weight.numel():
                    change = LowRank(weight, rank)
                    parametrize.register_parametrization(module, "weight", change)
                    learned += [change.a, change.b]
    if not learned:
        raise ModelError(
            f"no linear or convolution layer is larger than its change of rank {rank}",
            fix="lower the rank",
        )
    return learned


def merge_low_rank(model: nn.Module) -> nn.Module:
    """Add the low-rank changes to the weights, in place; return the model."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def _replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
    return model


def _inputs(
    samples: Samples, at: np.ndarray, device: torch.device, draw: torch.Generator | None
) -> Batch:
    x = samples.batch(at, device=device)
    if draw is not None and samples.view is not None and isinstance(x, Tensor):
        x = samples.view(x, draw)
    return to_channels_last(x)


def _features(encoder: nn.Module, batch: Batch) -> Tensor:
    output = call_model(encoder, batch)
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"expected features [batch, d], got {got}",
            where="encoder",
            fix="pool the output, or take without_head(model, samples)",
        )
    return output
