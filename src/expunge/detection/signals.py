"""One pass over the data that collects what the detectors need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import AnyFloats, Array, Ints
from expunge._core.distributed import gather_rows, shard_blocks, this_process
from expunge._core.progress import Progress, silent
from expunge._core.rng import torch_generator
from expunge.config import Precision
from expunge.data import Batch, Samples
from expunge.data.samples import View
from expunge.data.views import scoring_view
from expunge.detection.class_rows import ClassRows, top_tensors
from expunge.detection.gradients import (
    attribute,
    gradient_closed,
    label_direction,
    runner_up,
    tail_behind,
    weight_of_logits,
)
from expunge.detection.needs import Need
from expunge.detection.pooling import (
    MAX_PART_MEANS,
    default_feature_layers,
    pool,
    pool_input,
    unit_dimension,
)
from expunge.detection.token_features import token_features, token_ids, token_mask
from expunge.errors import ModelError, format_ids
from expunge.models.batches import samples_per_pass
from expunge.models.calls import (
    capture_outputs,
    eval_mode,
    logits_of,
    module_named,
    on_device,
    padding_id_of,
    to_channels_last,
)
from expunge.models.checks import check_fit
from expunge.models.inspection import ModelLayout, inspect_model
from expunge.records import Signals, TopClasses
from expunge.records.top_classes import MAX_DENSE_CLASSES
from expunge.storage.mapped_arrays import new_array
from expunge.training.optimisation import autocast

# Random views are drawn in blocks of at most this many samples, so that neither the batch size nor
# the number of processes changes them.
BLOCK_SIZE = 64
_AT_ONE_LAYER: frozenset[Need] = frozenset(
    {"attribution", "attribution_mass", "attributions", "head_input_norm"}
)
# Arrays of features, whose names these are or begin with.
_FEATURES = ("feature.", "attribution_features.", "attributions", "inputs")
_BY_GRADIENTS: frozenset[Need] = frozenset({"layerwise_attribution", "attribution_features"})


@dataclass(frozen=True)
class _PassConfig:
    """What one pass collects, and at which layers."""

    needs: frozenset[Need]
    layout: ModelLayout
    attribution_layer: str
    feature_layers: tuple[str, ...]
    view: View | None
    n_views: int
    max_part_means: int
    precision: Precision
    seed: int
    device: torch.device
    block_size: int = BLOCK_SIZE
    keeps_top: bool = False
    has_tokens: bool = False
    padding_id: int = 0

    @property
    def pooled_layers(self) -> tuple[str, ...]:
        """The layers whose outputs are pooled as features."""
        return self.feature_layers if "features" in self.needs else ()

    @property
    def has_views(self) -> bool:
        """Whether random views are passed through the model."""
        return self.n_views > 0 and bool(self.needs & {"features", "views"})


def collect(
    model: nn.Module,
    samples: Samples,
    *,
    needs: frozenset[Need] = frozenset(),
    attribution_layer: str = "",
    feature_layers: tuple[str, ...] = (),
    views: int = 6,
    batch_size: int = 256,
    precision: Precision = "auto",
    seed: int = 0,
    keep_all_classes: bool = True,
    features_everywhere: bool = True,
    scratch: Path | None = None,
    progress: Progress = silent,
    what: str = "score",
) -> Signals:
    """Run the model once over the samples, in evaluation mode, and keep what is needed.

    Parameters
    ----------
    model
        A network that returns logits ``[b, c]``. It is left as it was: modes, hooks, gradients,
        device.
    samples
        The samples and their given labels. Features that came with them stand beside the layers'.
    needs
        What to collect beside logits, see `needs_of`. Each of ``"layerwise_attribution"`` and
        ``"attribution_features"`` costs a forward and a backward pass.
    attribution_layer
        The layer of the attribution. By default the input of the head, where it has a closed form
        and costs nothing.
    feature_layers
        Layers whose outputs are pooled as features; by default `default_feature_layers`.
    views
        Random views a sample, 0 or more; each costs a forward pass. Features and predictions are
        averaged over them: a network that has memorised a sample is less certain of it under other
        views. They are those of `expunge.data.views.scoring_view`. With 0, or without one, the
        plain pass is used.
    batch_size
        Samples a pass, 1 or more; rounded up to a multiple of 64, and fewer if inputs or outputs of
        layers are large. It does not change the result.
    precision
        ``"auto"``, ``"float32"`` or ``"bfloat16"``.
    seed
        For the views.
    keep_all_classes
        Without, logits and predictions of more than 100 classes are `TopClasses`.
    features_everywhere
        Without, the main process of several alone gets features, inputs and attributions of units.
    scratch
        A folder in which arrays of features of 512 MiB or more are kept in files without a name
        until the signals are gone. Without it they are kept in memory.
    progress, what
        See `Progress`; ``what`` names the pass.

    Returns
    -------
    Signals
        In the order of the samples, in every process but for ``features_everywhere``.

    Raises
    ------
    ModelError
        If the model does not fit the samples, logits are NaN or infinite, no gradient reaches a
        layer, or an attribution is needed and there is neither a head nor a named layer.

    Notes
    -----
    Memory: ``n × (c + Σ d)`` floats, with d the features of each layer (see `pool`) and c at most
    100 without ``keep_all_classes``; with ``scratch`` at most 512 MiB a layer. Cost: one
    forward pass, one more for each view, and a forward and a backward pass for each need that has
    no closed form. Several processes share the samples.

    Examples
    --------
    >>> import numpy as np
    >>> from expunge.data import from_arrays
    >>> from expunge.models.zoo import mlp
    >>> x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    >>> samples = from_arrays(x, np.arange(8) % 2)
    >>> model = mlp(inputs=3, classes=2, hidden=4)
    >>> signals = collect(model, samples, needs=frozenset({"features"}))
    >>> signals.logits.shape, {name: f.shape for name, f in signals.features.items()}
    ((8, 2), {'2': (8, 4), '4': (8, 4)})
    """
    accelerator = this_process()
    check_fit(model, samples)
    samples, example = samples.to_device(accelerator.device), samples.example()
    layout = inspect_model(model, samples)
    fitting = samples_per_pass(
        model, example, accelerator.device, keeps_outputs=bool(needs & _BY_GRADIENTS)
    )
    # Views of texts do not show memorisation: a network that fits 99 % of the labels fits 99 % of
    # those of texts that lack 15 to 30 % of their tokens.
    view = scoring_view(samples, example) if token_ids(example) is None else None
    config = _PassConfig(
        needs=needs,
        layout=layout,
        attribution_layer=attribution_layer or layout.head,
        feature_layers=feature_layers or default_feature_layers(layout),
        view=view,
        n_views=views if view is not None else 0,
        # Statistics of more columns than that would identify single samples.
        max_part_means=min(MAX_PART_MEANS, len(samples) // 4),
        precision=precision,
        seed=seed,
        device=accelerator.device,
        block_size=1 << (min(fitting, BLOCK_SIZE).bit_length() - 1),
        keeps_top=not keep_all_classes,
        has_tokens=token_ids(example) is not None,
        padding_id=padding_id_of(model),
    )
    if needs & _AT_ONE_LAYER and not config.attribution_layer:
        raise ModelError(
            "no linear layer makes the logits, so the last hidden layer is not known",
            where="score",
            fix="name a layer for the attribution",
        )
    n_blocks = min(-(-batch_size // config.block_size), max(1, fitting // config.block_size))
    batch_size = n_blocks * config.block_size
    # Whole batches: in any number of processes a sample is computed beside the same others.
    positions = shard_blocks(len(samples), batch_size, accelerator)
    parts: dict[str, Array] = {}
    new = partial(_new_array, scratch)
    done = 0
    with on_device(model, accelerator.device), eval_mode(model), torch.no_grad():
        for batch, outputs in _passes(model, samples, config, positions, batch_size):
            _store(parts, outputs, slice(done, done + len(batch)), n=len(positions), new=new)
            done += len(batch)
            progress(what, done, len(positions))
    if accelerator.num_processes > 1:
        large = () if features_everywhere else [k for k in parts if k.startswith(_FEATURES)]
        parts = gather_rows(parts, positions, len(samples), only_main=large, new=new)
    if "features" in needs and config.has_tokens:
        parts["inputs"] = token_features(samples, config.padding_id)
    return _signals_of(samples, config, parts)


def _passes(
    model: nn.Module, samples: Samples, config: _PassConfig, positions: Ints, batch_size: int
) -> Iterator[tuple[Ints, dict[str, Tensor]]]:
    """Yield the positions of each batch and everything that its passes give."""
    # A process without a share runs one sample, to learn the shapes of the arrays.
    at_least_one = positions if len(positions) else np.zeros(1, dtype=np.int64)
    for batch in samples.batches(batch_size, positions=at_least_one):
        x = to_channels_last(samples.batch(batch, device=config.device))
        y = torch.from_numpy(samples.labels[batch]).to(config.device)
        outputs = _plain_pass(model, x, y, config)
        if "features" in config.needs and not config.has_tokens:
            outputs["inputs"] = pool_input(x)
        if config.needs & _BY_GRADIENTS:
            outputs |= _layerwise_attributions(model, x, y, outputs["logits"], config)
        if config.has_views:
            first = [int(position) for position in batch[:: config.block_size]]
            views = _augmented_batches(x, first, config)
            outputs |= _augmented_pass(model, views, y, config)
        yield batch, _with_top_classes(outputs, y) if config.keeps_top else outputs


def _with_top_classes(outputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Replace numbers for each of many classes by those of the best, as ``<name>.classes`` …"""
    found = dict(outputs)
    for name in {"logits", "augmented_probs"} & outputs.keys():
        if outputs[name].shape[1] > MAX_DENSE_CLASSES:
            table = outputs[name].float().clone()
            parts = top_tensors(table, labels, in_logs=name == "logits")
            found |= zip((name, f"{name}.classes", f"{name}.rest"), parts, strict=True)
    return found


def _new_array(
    scratch: Path | None, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """Make the array of an output; large ones of features may be in a file."""
    return new_array(shape, dtype, scratch if name.startswith(_FEATURES) else None)


def _store(
    parts: dict[str, Array],
    outputs: dict[str, Tensor],
    rows: slice,
    *,
    n: int,
    new: Callable[[str, tuple[int, ...], np.dtype[Any]], Array],
) -> None:
    """Write a batch's outputs to the rows of the arrays of length n, which are made first."""
    for name, output in outputs.items():
        values = (output.float() if output.is_floating_point() else output).detach().cpu().numpy()
        if name not in parts:
            parts[name] = new(name, (n, *values.shape[1:]), values.dtype)
        parts[name][rows] = values[:n]


def _signals_of(samples: Samples, config: _PassConfig, parts: dict[str, Array]) -> Signals:
    for values in parts.values():
        values.setflags(write=False)
    features = _by_layer(parts, "feature")
    if "features" in config.needs:
        features.update(samples.features)
    return Signals(
        ids=samples.ids,
        labels=samples.labels,
        logits=_check_finite(_class_rows(parts, "logits", samples), samples),
        augmented_probs=_class_rows(parts, "augmented_probs", samples),
        augmented_loss=parts.pop("augmented_loss", None),
        attributions=parts.pop("attributions", None),
        inputs=parts.pop("inputs", None),
        external_probs=samples.external_probs,
        views=config.n_views if config.has_views else 0,
        trusted=samples.trusted,
        features=features,
        attribution_features=_by_layer(parts, "attribution_features"),
        per_sample={k: v.astype(np.float64) for k, v in parts.items() if v.ndim == 1},
    )


def _class_rows(parts: dict[str, Array], name: str, samples: Samples) -> Any:
    """Take numbers for each class from the parts; None if there are none."""
    values = parts.pop(name, None)
    if values is None or f"{name}.rest" not in parts:
        return values
    classes, rest = parts.pop(f"{name}.classes"), parts.pop(f"{name}.rest")
    return TopClasses(values, classes, rest, len(samples.classes))


def _by_layer(parts: dict[str, Array], kind: str) -> dict[str, AnyFloats]:
    """Return the arrays ``<kind>.<layer>`` by layer."""
    return {k.removeprefix(f"{kind}."): v for k, v in parts.items() if k.startswith(f"{kind}.")}


def _plain_pass(model: nn.Module, x: Batch, y: Tensor, config: _PassConfig) -> dict[str, Tensor]:
    """Return what one forward pass gives; only a layer with no closed form needs gradients."""
    layout, layer, needs = config.layout, config.attribution_layer, config.needs
    # Features come from the views if there are any.
    layers = () if config.n_views else config.pooled_layers
    tail = tail_behind(layout, layer)
    names = (*layers, layer) if tail and layer != layout.head else layers
    with (
        capture_outputs(model, names, inputs_of=layout.head) as captured,
        autocast(config.precision, y.device),
    ):
        logits = logits_of(model, x).float()
    out = {"logits": logits, **_pooled(model, layers, captured, config, x=x)}
    if "views" in needs:
        out |= _probs_and_loss(logits, y)
    if "head_input_norm" in needs:
        out["head_input_norm"] = captured["input"].float().flatten(1).norm(dim=1)
    if needs & {"attribution", "attribution_mass", "attributions"}:
        activation = captured.get("input" if layer == layout.head else layer) if tail else None
        out |= _attribution_at_layer(model, x, y, logits, activation=activation, config=config)
    return out


def _attribution_at_layer(
    model: nn.Module,
    x: Batch,
    y: Tensor,
    logits: Tensor,
    *,
    activation: Tensor | None,
    config: _PassConfig,
) -> dict[str, Tensor]:
    """Return the attribution at one layer: for the given label, and label-free.

    activation: the layer's, if linear and ReLU layers alone follow it; None needs autograd.
    """
    layer, tail = config.attribution_layer, tail_behind(config.layout, config.attribution_layer)
    c = logits.shape[1]

    def activation_and_gradient(direction: Tensor) -> tuple[Tensor, Tensor]:
        if activation is None:
            return attribute(model, x, direction, layers=(layer,))[layer]
        h = activation.float()
        return h, gradient_closed(model, h, direction, tail=tail)

    out = {}
    if "attribution" in config.needs:
        h, gradient = activation_and_gradient(label_direction(y, runner_up(logits, y), c))
        out["attribution"] = (h * gradient).flatten(1).sum(dim=1)
    if config.needs & {"attribution_mass", "attributions"}:
        if layer == config.layout.head:  # the gradient of logit k is row k of the weight
            assert activation is not None
            h = activation.float()
            weight = weight_of_logits(module_named(model, layer), c)
            largest = weight.max(dim=0).values
        else:
            largest = torch.full((), -torch.inf, device=y.device)
            for k in range(c):
                one_hot = nn.functional.one_hot(torch.full_like(y, k), c).float()
                h, gradient = activation_and_gradient(one_hot)
                largest = torch.maximum(largest, gradient)
        label_free = (h * largest).abs().flatten(1)
        out["attribution_mass"] = label_free.sum(dim=1)
        if "attributions" in config.needs:
            out["attributions"] = label_free
    return out


def _layerwise_attributions(
    model: nn.Module, x: Batch, y: Tensor, logits: Tensor, config: _PassConfig
) -> dict[str, Tensor]:
    """Return gradient × activation at every feature layer.

    Of the given label against the runner-up, summed; of the predicted class against the mean of
    all, pooled. The latter is label-free.
    """
    out, c, layers = {}, logits.shape[1], config.feature_layers
    if "layerwise_attribution" in config.needs:
        direction = label_direction(y, runner_up(logits, y), c)
        for name, (h, gradient) in attribute(model, x, direction, layers=layers).items():
            out[f"attribution.{name}"] = (h * gradient).flatten(1).sum(dim=1)
    if "attribution_features" in config.needs:
        direction = nn.functional.one_hot(logits.argmax(dim=1), c) - 1 / c
        parts = attribute(model, x, direction, layers=layers)
        products = {name: h * gradient for name, (h, gradient) in parts.items()}
        out |= _pooled(model, layers, products, config, x=x, kind="attribution_features")
    return out


def _augmented_batches(
    x: Batch, first_positions: list[int], config: _PassConfig
) -> Iterator[Batch]:
    """Yield random views of a batch; each block of samples has its own generator."""
    view = config.view
    assert view is not None
    generators = [torch_generator(config.seed, "views", first) for first in first_positions]
    for _ in range(config.n_views):
        blocks = zip(_blocks(x, config.block_size), generators, strict=True)
        yield to_channels_last(_join([view(block, draw) for block, draw in blocks]))


def _blocks(x: Batch, size: int) -> list[Batch]:
    """Split a batch into blocks of samples."""
    if not isinstance(x, dict):
        return list(torch.split(x, size))
    parts = {name: torch.split(part, size) for name, part in x.items()}
    n_blocks = len(next(iter(parts.values())))
    return [{name: part[i] for name, part in parts.items()} for i in range(n_blocks)]


def _join(blocks: list[Batch]) -> Batch:
    first = blocks[0]
    if not isinstance(first, dict):
        return torch.cat([block for block in blocks if isinstance(block, Tensor)])
    tables = [block for block in blocks if isinstance(block, dict)]
    return {name: torch.cat([table[name] for table in tables]) for name in first}


def _augmented_pass(
    model: nn.Module, batches: Iterator[Batch], y: Tensor, config: _PassConfig
) -> dict[str, Tensor]:
    """Return means over views of a batch: class probabilities, loss, features of the layers."""
    layers = config.pooled_layers
    sums: dict[str, Tensor] = {}
    count = 0
    for x in batches:
        with capture_outputs(model, layers) as captured, autocast(config.precision, y.device):
            logits = logits_of(model, x).float()
        values = _probs_and_loss(logits, y) | _pooled(model, layers, captured, config, x=x)
        sums = {k: v + sums[k] if sums else v for k, v in values.items()}
        count += 1
    return {k: v / count for k, v in sums.items()}


def _probs_and_loss(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return class probabilities, and the cross-entropy of the given label."""
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    return {"augmented_probs": logits.softmax(dim=1), "augmented_loss": loss}


def _pooled(
    model: nn.Module,
    layers: tuple[str, ...],
    outputs: dict[str, Tensor],
    config: _PassConfig,
    *,
    x: Batch,
    kind: str = "feature",
) -> dict[str, Tensor]:
    """Return the layers' outputs for the batch x, pooled, as ``<kind>.<layer>``."""
    n = len(next(iter(x.values())) if isinstance(x, dict) else x)
    features = {}
    mask = token_mask(x, config.padding_id)
    for name in layers:
        if len(outputs[name]) != n:
            raise ModelError(
                f"layer '{name}' gives {len(outputs[name])} rows for {n} inputs",
                where="score",
                fix="name layers whose first dimension is the batch",
            )
        chains = [
            module_named(model, k) for k, end in config.layout.readouts.items() if end == name
        ]
        unit = unit_dimension(module_named(model, name), chains, outputs[name])
        pooled = pool(outputs[name], unit=unit, max_part_means=config.max_part_means, mask=mask)
        features[f"{kind}.{name}"] = pooled.float()
    return features


def _check_finite(logits: ClassRows, samples: Samples) -> ClassRows:
    numbers = logits.rest[:, None] if isinstance(logits, TopClasses) else logits
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        is_mask = not (np.isnan(numbers) | np.isposinf(numbers)).any()
        raise ModelError(
            f"logits are NaN or infinite for ids {format_ids(samples.ids[bad])}",
            where="score",
            fix="mask classes by a large negative number such as -1e4, not by -inf"
            if is_mask
            else "check these inputs and the model's weights; try precision = 'float32'",
        )
    return logits
