"""One pass over the data that collects whatever the detectors asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge._core.distributed import gather_rows, shard_blocks
from expunge._core.progress import Progress, silent
from expunge._core.rng import torch_generator
from expunge.data import Batch, Samples
from expunge.errors import ModelError, format_ids
from expunge.models.inspection import (
    WEIGHT_LAYERS,
    ModelLayout,
    capture_outputs,
    check_fit,
    eval_mode,
    inspect_layers,
    logits_of,
    module_named,
    on_device,
    to_channels_last,
)
from expunge.records import Signals
from expunge.training.optimisation import Precision, autocast

# Random views are drawn by blocks of so many samples, so that neither the batch size nor the number
# of processes changes them.
BLOCK = 64
# Layers whose features are compared, unless they are named.
STAGES = 6
# An image's means are taken by parts, as long as a layer has at most so many of them, and at most a
# quarter as many as there are samples: statistics of more columns than that know the samples.
COLUMNS = 512


def collect(
    model: nn.Module,
    samples: Samples,
    *,
    needs: frozenset[str] = frozenset(),
    attribution_layer: str = "",
    feature_layers: tuple[str, ...] = (),
    views: int = 6,
    batch_size: int = 256,
    precision: Precision = "auto",
    seed: int = 0,
    progress: Progress = silent,
    what: str = "score",
) -> Signals:
    """Run the model once over the samples, in evaluation mode, and keep what is needed.

    needs: any of ``"attribution"``, ``"mass"``, ``"vectors"``, ``"head"``, ``"features"``,
    ``"views"``, and ``"deep"`` and ``"attribution_features"``, which cost a forward and a
    backward pass each;
    the logits always come.
    Features that came with the samples stand beside the stages'.
    layer: where the attribution is taken; the input of the head by default, where it has a closed
    form and costs nothing. stages: layers whose outputs are pooled as features; found by default.
    views: random views a sample; every view costs one more forward pass. Features are averaged
    over them: a network that has memorised a sample knows it less well under other views. With 0,
    or where the samples have no view, both are those of the plain pass.

    Memory: ``n × (c + Σ d)`` floats, with d the features of each stage (see `pooled`).
    Several processes share the samples and all get the whole result, ordered as the samples are.
    The model is left as it was: modes, hooks, gradients, device.
    """
    accelerator = Accelerator()
    check_fit(model, samples)
    samples, example = samples.to_device(accelerator.device), samples.example()
    layout = inspect_layers(model, example)
    looks = views if samples.view is not None and isinstance(example, Tensor) else 0
    layer = attribution_layer or layout.head
    if needs & {"attribution", "mass", "vectors", "head"} and not layer:
        raise ModelError(
            "no linear layer makes the logits, so the last hidden layer is not known",
            where="score",
            fix="name a layer for the attribution",
        )
    wanted = needs & {"features", "deep", "attribution_features"}
    stages = (feature_layers or default_feature_layers(layout)) if wanted else ()
    pooling = stages if "features" in needs else ()
    columns = min(COLUMNS, len(samples) // 4)
    mine = shard_blocks(len(samples), BLOCK, accelerator)
    batch_size = -(-batch_size // BLOCK) * BLOCK
    parts: dict[str, np.ndarray] = {}
    done = 0
    # A process without a share looks at one sample, to know the shape of what it has none of.
    seen = mine if len(mine) else np.zeros(1, dtype=np.int64)
    with on_device(model, accelerator.device), eval_mode(model), torch.no_grad():
        for at in samples.batches(batch_size, positions=seen):
            x = to_channels_last(samples.batch(at, device=accelerator.device))
            y = torch.from_numpy(samples.labels[at]).to(accelerator.device)
            outputs = _one_batch(
                model, x, y, needs, layout, layer, () if looks else pooling, precision, columns
            )
            if needs & {"deep", "attribution_features"}:
                outputs |= _deep(model, x, y, outputs["logits"], needs, layout, stages, columns)
            if looks and isinstance(x, Tensor) and needs & {"features", "views"}:
                draws = [torch_generator(seed, "views", int(first)) for first in at[::BLOCK]]
                shown = _shown(samples, x, looks, draws)
                outputs |= _mean_look(model, shown, y, layout, pooling, precision, columns)
            for name, output in outputs.items():
                values = output.detach().float().cpu().numpy()
                if name not in parts:  # once, for all batches
                    parts[name] = np.empty((len(mine), *values.shape[1:]), dtype=values.dtype)
                parts[name][done : done + len(at)] = values[: len(mine)]
            done += len(at)
            progress(what, done, len(mine))
    if accelerator.num_processes > 1:
        parts = gather_rows(parts, mine, len(samples))
    for values in parts.values():
        values.setflags(write=False)
    return Signals(
        ids=samples.ids,
        labels=samples.labels,
        logits=_checked(parts.pop("logits"), samples),
        augmented_probs=parts.pop("augmented_probs", None),
        augmented_loss=parts.pop("augmented_loss", None),
        attributions=parts.pop("attributions", None),
        external_probs=samples.external_probs,
        views=looks if needs & {"features", "views"} else 0,
        trusted=samples.trusted,
        features=_table(parts, "feature") | (dict(samples.features) if "features" in needs else {}),
        attribution_features=_table(parts, "attribution_features"),
        per_sample={k: v.astype(np.float64) for k, v in parts.items() if v.ndim == 1},
    )


def _table(parts: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """What a kind holds of every stage."""
    return {k.removeprefix(f"{kind}."): v for k, v in parts.items() if k.startswith(f"{kind}.")}


def default_feature_layers(layout: ModelLayout) -> tuple[str, ...]:
    """At most `STAGES` layers, evenly over the depth, with the last: early ones memorise least.

    A layer inside a block stands back: the block's output says more. A block is a stage that holds
    stages which hold none themselves; what holds blocks is no block.
    """
    inside = {
        s: [t for t in layout.feature_layers if t.startswith(f"{s}.")]
        for s in layout.feature_layers
    }
    blocks = [
        s for s in layout.feature_layers if inside[s] and not any(inside[t] for t in inside[s])
    ]
    whole = [s for s in layout.feature_layers if not any(s in inside[b] for b in blocks)]
    n = len(whole)
    wanted = np.unique(np.linspace(n - 1, 0, min(n, STAGES)).round().astype(int))
    return tuple(whole[i] for i in wanted)


def pooled(output: Tensor, *, unit: int, columns: int = COLUMNS) -> Tensor:
    """Means and standard deviations over space or time; unit: the dimension of size d.

    ``[b, …, d, …] → [b, 2 d]``. Of images ``[b, d, h, w]`` the means are taken by parts, 4 × 4 or
    2 × 2 of them, where these are no more than ``columns``: ``[b, 16 d + d]`` or ``[b, 4 d + d]``.
    Where something is, and how much it varies, tells more than the mean alone.
    """
    over = tuple(k for k in range(1, output.dim()) if k != unit)
    if not over or all(output.shape[k] == 1 for k in over):
        return output.flatten(1)
    x = output.float()
    mean = parts = x.mean(dim=over)
    variance = x.square().mean(dim=over) - mean.square()
    # What rounding leaves of a constant is no spread.
    spread = torch.where(variance > 1e-6 * mean.square(), variance, 0.0).sqrt()
    if output.dim() == 4 and unit == 1:
        side = min(output.shape[2:])
        counts = (g for g in (4, 2) if g <= side and g * g * output.shape[1] <= columns)
        parts = nn.functional.adaptive_avg_pool2d(x, next(counts, 1)).flatten(1)
    return torch.cat([parts, spread], dim=1)


def unit_dimension(stage: nn.Module, chains: list[nn.Module], output: Tensor) -> int:
    """The dimension of a stage's units: 1 behind convolutions, else the last.

    chains: the weight layers whose chain ends at the stage; for a block, those that it holds count.
    """
    layers = chains or [m for m in stage.modules() if isinstance(m, WEIGHT_LAYERS)]
    convolved = [not isinstance(m, nn.Linear) for m in layers]
    if output.dim() == 3:
        convolved = [isinstance(m, nn.Conv1d) for m in layers[-1:]]
    return 1 if any(convolved) else output.dim() - 1


def attribute(
    model: nn.Module, batch: Batch, direction: Tensor, *, layers: tuple[str, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Activation h of each layer, and the gradient there of ``Σ_c direction_c · z_c``, by autograd.

    direction: ``float[b, c]``; ``e_given − e_rival`` makes ``h · gradient`` the label-conditional
    attribution. Both results have the shape of the layer's output. Exact for any network; costs a
    forward and a backward pass, down to the first of the layers.
    """
    with torch.enable_grad(), capture_outputs(model, layers, differentiable=True) as found:
        gradients = gradients_at((logits_of(model, batch) * direction).sum(), found)
    return {k: (found[k].detach(), gradients[k]) for k in layers}


def gradients_at(total: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of a sum at each output; ModelError where the model keeps none."""
    found: Sequence[Tensor | None] = [None] * len(outputs)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
    gradients = {n: g for n, g in zip(outputs, found, strict=True) if g is not None}
    lost = [name for name in outputs if name not in gradients]
    if lost:
        raise ModelError(
            f"no gradient reaches {format_ids(lost)}",
            fix="take torch.no_grad and detach out of the model's forward, or name other layers",
        )
    return gradients


def gradient_closed(
    model: nn.Module, activation: Tensor, direction: Tensor, *, tail: tuple[str, ...]
) -> Tensor:
    """The same gradient where only linear and ReLU layers (the tail) follow: no autograd.

    With ``h_k`` the input of each tail layer, ``g ← g W`` through a linear layer and
    ``g ← g ⊙ 1[h_k > 0]`` through ReLU, backwards from the direction.
    """
    layers = [module_named(model, name) for name in tail]
    inputs, h = [], activation
    for module in layers:
        inputs.append(h)
        h = module(h)
    gradient = direction
    for module, x in zip(reversed(layers), reversed(inputs), strict=True):
        if isinstance(module, nn.Linear):
            gradient = gradient @ module.weight
        elif isinstance(module, nn.ReLU):
            gradient = gradient * (x > 0)
    return gradient


def against_rival(given: Tensor, rival: Tensor, classes: int) -> Tensor:
    """``e_given − e_rival``, ``float[b, c]``: the direction of label-conditional attribution."""
    one_hot = nn.functional.one_hot
    return (one_hot(given, classes) - one_hot(rival, classes)).float()


def runner_up(logits: Tensor, given: Tensor) -> Tensor:
    """The class with the largest logit besides the given one; ties go to the lower class."""
    return logits.scatter(1, given[:, None], -torch.inf).argmax(dim=1)


def _one_batch(
    model: nn.Module,
    x: Batch,
    y: Tensor,
    needs: frozenset[str],
    layout: ModelLayout,
    layer: str,
    stages: tuple[str, ...],
    precision: Precision,
    columns: int,
) -> dict[str, Tensor]:
    """Everything that the plain pass gives; only a layer with no closed form needs gradients."""
    tail = _tail_behind(layout, layer)
    names = (*stages, layer) if tail and layer != layout.head else stages
    with (
        capture_outputs(model, names, inputs_of=layout.head) as found,
        autocast(precision, y.device),
    ):
        logits = logits_of(model, x).float()
    out = {"logits": logits, **_features(model, layout, stages, found, columns)}
    if "views" in needs:
        out |= _judgement(logits, y)
    if "head" in needs:
        out["head_input_norm"] = found["input"].float().flatten(1).norm(dim=1)
    if not needs & {"attribution", "mass", "vectors"}:
        return out

    def at(direction: Tensor) -> tuple[Tensor, Tensor]:
        if not tail:
            return attribute(model, x, direction, layers=(layer,))[layer]
        h = found["input" if layer == layout.head else layer].float()
        return h, gradient_closed(model, h, direction, tail=tail)

    c = logits.shape[1]
    if "attribution" in needs:
        h, gradient = at(against_rival(y, runner_up(logits, y), c))
        out["attribution"] = (h * gradient).flatten(1).sum(dim=1)
    if needs & {"mass", "vectors"}:
        if layer == layout.head:  # the gradient of logit k is row k of the weight
            h = found["input"].float()
            weight: Tensor = module_named(model, layer).weight  # type: ignore[assignment]
            strongest = weight.max(dim=0).values
        else:
            strongest = torch.full((), -torch.inf, device=y.device)
            for k in range(c):
                h, gradient = at(nn.functional.one_hot(torch.full_like(y, k), c).float())
                strongest = torch.maximum(strongest, gradient)
        unsigned = (h * strongest).abs().flatten(1)
        out["attribution_mass"] = unsigned.sum(dim=1)
        if "vectors" in needs:
            out["attributions"] = unsigned
    return out


def _deep(
    model: nn.Module,
    x: Batch,
    y: Tensor,
    logits: Tensor,
    needs: frozenset[str],
    layout: ModelLayout,
    stages: tuple[str, ...],
    columns: int,
) -> dict[str, Tensor]:
    """Gradient × activation at every stage: for the given label, summed; for the predicted, pooled.

    The latter is label-free: what speaks for the class with the largest logit against the mean.
    """
    out, c = {}, logits.shape[1]
    if "deep" in needs:
        direction = against_rival(y, runner_up(logits, y), c)
        for name, (h, gradient) in attribute(model, x, direction, layers=stages).items():
            out[f"attribution.{name}"] = (h * gradient).flatten(1).sum(dim=1)
    if "attribution_features" in needs:
        direction = nn.functional.one_hot(logits.argmax(dim=1), c) - 1 / c
        parts = attribute(model, x, direction, layers=stages)
        weighted = {name: h * gradient for name, (h, gradient) in parts.items()}
        out |= _features(model, layout, stages, weighted, columns, "attribution_features")
    return out


def _tail_behind(layout: ModelLayout, layer: str) -> tuple[str, ...]:
    """The linear and ReLU layers that alone stand between a layer's activation and the logits.

    The head stands for its own input, so that its tail is itself; () if there are other operations.
    """
    if layer and layer == layout.head:
        return (layer,)
    return layout.tail[layout.tail.index(layer) + 1 :] if layer in layout.tail else ()


def _shown(
    samples: Samples, x: Tensor, views: int, draws: list[torch.Generator]
) -> Iterator[Batch]:
    """Random views of a batch, one after the other."""
    assert samples.view is not None
    for _ in range(views):
        blocks = zip(x.split(BLOCK), draws, strict=True)
        yield to_channels_last(torch.cat([samples.view(block, draw) for block, draw in blocks]))


def _mean_look(
    model: nn.Module,
    shown: Iterator[Batch],
    y: Tensor,
    layout: ModelLayout,
    stages: tuple[str, ...],
    precision: Precision,
    columns: int,
) -> dict[str, Tensor]:
    """Means over views of a batch: class probabilities, loss, features of the stages."""
    sums: dict[str, Tensor] = {}
    count = 0
    for x in shown:
        with capture_outputs(model, stages) as found, autocast(precision, y.device):
            logits = logits_of(model, x).float()
        values = _judgement(logits, y) | _features(model, layout, stages, found, columns)
        sums = {k: v + sums[k] if sums else v for k, v in values.items()}
        count += 1
    return {k: v / count for k, v in sums.items()}


def _judgement(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Class probabilities, and the cross-entropy of the given label."""
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    return {"augmented_probs": logits.softmax(dim=1), "augmented_loss": loss}


def _features(
    model: nn.Module,
    layout: ModelLayout,
    stages: tuple[str, ...],
    found: dict[str, Tensor],
    columns: int,
    kind: str = "feature",
) -> dict[str, Tensor]:
    """The stages' outputs, pooled."""
    features = {}
    for name in stages:
        chains = [module_named(model, k) for k, end in layout.readouts.items() if end == name]
        unit = unit_dimension(module_named(model, name), chains, found[name])
        features[f"{kind}.{name}"] = pooled(found[name], unit=unit, columns=columns).float()
    return features


def _checked(logits: np.ndarray, samples: Samples) -> np.ndarray:
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise ModelError(
            f"logits are NaN or infinite for ids {format_ids(samples.ids[bad])}",
            where="score",
            fix="check these inputs and the model's weights; try precision = 'float32'",
        )
    return logits
