"""Encoders: their features as arrays, a fitted head put on one, and one adapted by low ranks."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed, torch_generator
from expunge.data import Batch, Samples
from expunge.errors import ConfigError, ModelError
from expunge.models.inspection import (
    device_of,
    eval_mode,
    find_head,
    inspect_layers,
    to_channels_last,
)
from expunge.nmtune.heads import Head, NMTune, ViewHead, scale_of
from expunge.nmtune.objectives import PRESETS, NMTuneConfig
from expunge.nmtune.training import ViewOutputs, train_head
from expunge.training.checkpoints import Checkpoint
from expunge.training.steps import Step

# Samples that go through an encoder at once; random views are drawn by blocks of so many.
BLOCK = 256
# The published rank of the adapters.
RANK = 8


def without_head(model: nn.Module, samples: Samples) -> nn.Module:
    """A copy of a classifier that returns what its last linear layer reads, ``float[b, d]``.

    ModelError if no linear layer makes the logits. Cost: one pass over two samples.
    """
    fix = "give an encoder that returns its features"
    name = find_head(model, samples.example(), fix=fix)
    encoder = copy.deepcopy(model)
    return _put(encoder, name, nn.Identity())


def attach(model: nn.Module, fitted: NMTune, samples: Samples) -> nn.Module:
    """A copy of a classifier with a fitted head where its last linear layer was.

    The result returns logits of the head's classes: compare, export and save it as any model.
    ModelError if no linear layer makes the logits, or one of another width.
    """
    name = inspect_layers(model, samples.example()).head
    width = getattr(model.get_submodule(name), "in_features", None) if name else None
    if width != fitted.head.linear.in_features:
        raise ModelError(
            f"the last linear layer reads {width} features, the head was fitted with "
            f"{fitted.head.linear.in_features}",
            fix="fit the head on embed(without_head(model, samples), samples)",
        )
    return _put(copy.deepcopy(model), name, copy.deepcopy(fitted.head)).eval()


def embed(
    encoder: nn.Module,
    samples: Samples,
    *,
    views: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> np.ndarray:
    """What an encoder makes of samples: ``float32[1, n, d]``, or ``[views, n, d]`` of random views.

    encoder: returns ``float[b, d]``; see `without_head`. It runs where it is, in evaluation mode,
    and is left as it was. views: as the samples' own `view` draws them. ModelError for another
    shape or numbers that are not finite, ConfigError for views of samples that have none.
    Cost: one pass a view; memory for the result.
    """
    if views and samples.view is None:
        raise ConfigError("the samples have no views", where=samples.name, fix="views=0")
    device = device_of(encoder)
    looks, done = [], 0
    with eval_mode(encoder), torch.inference_mode():
        for look in range(max(1, views)):
            parts = []
            for at in samples.batches(BLOCK):
                draw = torch_generator(seed, "nmtune", "view", look, int(at[0]))
                x = _inputs(samples, at, device, draw if views else None)
                parts.append(_features(encoder, x).float().cpu().numpy())
                done += len(at)
                progress("embed", done, len(samples) * max(1, views))
            looks.append(np.concatenate(parts))
    found = np.stack(looks)
    if not np.isfinite(found).all():
        raise ModelError("features that are NaN or infinite", where="encoder")
    return found


def adapt(
    encoder: nn.Module,
    samples: Samples,
    *,
    config: NMTuneConfig | None = None,
    rate: float = 1e-3,
    rank: int = RANK,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> nn.Sequential:
    """The parameter-efficient variant: low-rank changes of the encoder learn with the head.

    Every linear and convolution weight ``W[o, i]`` (``i`` counts inputs × kernel) becomes
    ``W + B A`` with ``A[rank, i]`` and ``B[o, rank]`` (arXiv 2106.09685), B zero at first, where
    this has fewer numbers than W. As in the published code there is no consistency term, since
    features move, and batch norm keeps its averages. Published: adapters in the MLP layers of a
    transformer only.

    encoder: see `embed`; left as it was. config: of the `code` preset if None. rate: one, as this
    is a training of the encoder. checkpoint: where the state is kept between epochs. Views are
    those of the samples, if they have any.
    Returns encoder and head in a row, the changes added to the weights: a plain module that returns
    logits, in evaluation mode. Cost: ``epochs`` passes forward and back over two views.
    """
    if rank < 1:
        raise ConfigError(f"rank must be 1 or more, not {rank}")
    config = replace(config or PRESETS["code"], consistency=0.0)
    model = copy.deepcopy(encoder).eval().requires_grad_(False)
    device = device_of(model)
    first = _features(model, _inputs(samples, np.arange(min(len(samples), BLOCK)), device, None))
    with temp_seed(seed, "nmtune", "head"):
        head = Head(first.shape[1], len(samples.classes), config, scale=scale_of(first)).to(device)
    low_rank(model, rank, seed=seed)
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
        learning_rate=rate,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    return nn.Sequential(merged(model), head).eval()


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


def low_rank(model: nn.Module, rank: int, *, seed: int) -> list[nn.Parameter]:
    """Add `LowRank` to the weights where it is smaller than these; returns what may learn.

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


def merged(model: nn.Module) -> nn.Module:
    """The model with its low-rank changes added to the weights for good."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
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
    output = encoder(**batch) if isinstance(batch, dict) else encoder(batch)
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"expected features [batch, d], got {got}",
            where="encoder",
            fix="pool the output, or take without_head(model, samples)",
        )
    return output
