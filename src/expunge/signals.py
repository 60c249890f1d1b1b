"""One pass over the data that collects whatever the detectors asked for."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge.data.samples import Batch, Samples
from expunge.errors import ModelError, some
from expunge.layers import (
    WEIGHT_LAYERS,
    Layout,
    captured,
    discover,
    evaluating,
    logits_of,
    module_named,
)
from expunge.processes import merge, share_blocks
from expunge.progress import Progress, silent
from expunge.rng import torch_generator
from expunge.tables import Signals
from expunge.tuning import Precision, autocast

# Random views are drawn by blocks of so many samples, so that neither the batch size nor the number
# of processes changes them.
BLOCK = 64
# Layers whose features are compared, unless they are named.
STAGES = 6


def collect(
    model: nn.Module,
    samples: Samples,
    *,
    needs: frozenset[str] = frozenset(),
    layer: str = "",
    stages: tuple[str, ...] = (),
    views: int = 8,
    batch_size: int = 256,
    precision: Precision = "auto",
    seed: int = 0,
    progress: Progress = silent,
    what: str = "score",
) -> Signals:
    """Run the model once over the samples, in evaluation mode, and keep what is needed.

    needs: any of ``"attribution"``, ``"mass"``, ``"vectors"``, ``"head"``, ``"features"`` and
    ``"views"``; the logits always come.
    layer: where the attribution is taken; the input of the head by default, where it has a closed
    form and costs nothing. stages: layers whose outputs are pooled as features; found by default.
    views: random views a sample; every view costs one more forward pass.

    Memory: ``n × (c + Σ d)`` floats, with d the channels of each stage; nothing else grows with n.
    Several processes share the samples and all get the whole result, ordered as the samples are.
    The model is left as it was: modes, hooks, gradients.
    """
    accelerator = Accelerator()
    model.to(accelerator.device)
    layout = discover(model, to_device(samples.example(), accelerator.device))
    layer = layer or layout.head
    if needs & {"attribution", "mass", "vectors", "head"} and not layer:
        raise ModelError(
            "no linear layer makes the logits, so the last hidden layer is not known",
            where="score",
            fix="name a layer for the attribution",
        )
    if "features" in needs:
        stages = stages or default_stages(layout)
    mine = share_blocks(len(samples), BLOCK, accelerator)
    batch_size = -(-batch_size // BLOCK) * BLOCK
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    done = 0
    with evaluating(model), torch.no_grad():
        for at in samples.batches(batch_size, positions=mine):
            x = samples.batch(at, device=accelerator.device)
            y = torch.from_numpy(samples.labels[at]).to(accelerator.device)
            outputs = _one_batch(model, x, y, needs, layout, layer, stages, precision)
            if "views" in needs:
                draws = [torch_generator(seed, "views", int(first)) for first in at[::BLOCK]]
                outputs |= _views(model, samples, x, y, outputs["logits"], views, draws, precision)
            for name, values in outputs.items():
                rows[name].append(values.detach().float().cpu().numpy())
            done += len(at)
            progress(what, done, len(mine))
    parts = {name: np.concatenate(values) for name, values in rows.items()}
    if accelerator.num_processes > 1:
        parts = merge(parts, mine, len(samples))
    return Signals(
        ids=samples.ids,
        labels=samples.labels,
        logits=_checked(parts.pop("logits"), samples),
        view_probs=parts.pop("view_probs", None),
        view_loss=parts.pop("view_loss", None),
        attributions=parts.pop("attributions", None),
        features={k.removeprefix("feature."): v for k, v in parts.items() if "feature." in k},
        columns={k: v.astype(np.float64) for k, v in parts.items() if "feature." not in k},
    )


def default_stages(layout: Layout) -> tuple[str, ...]:
    """At most `STAGES` layers, evenly over the depth, with the last: early ones memorise least."""
    n = len(layout.stages)
    wanted = np.unique(np.linspace(n - 1, 0, min(n, STAGES)).round().astype(int))
    return tuple(layout.stages[i] for i in wanted)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on that device."""
    if isinstance(batch, dict):
        return {k: v.to(device) for k, v in batch.items()}
    return batch.to(device)


def pooled(output: Tensor, *, unit: int) -> Tensor:
    """``[b, …, d, …] → [b, d]``: the mean over space or time; unit: the dimension of size d."""
    over = tuple(k for k in range(1, output.dim()) if k != unit)
    return output.mean(dim=over) if over else output


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
    model: nn.Module, batch: Batch, direction: Tensor, *, layer: str
) -> tuple[Tensor, Tensor]:
    """Activation h of a layer, and the gradient there of ``Σ_c direction_c · z_c``, by autograd.

    direction: ``float[b, c]``; ``e_given − e_rival`` makes ``h · gradient`` the label-conditional
    attribution. Both results have the shape of the layer's output. Exact for any network; costs a
    forward and a partial backward pass.
    """
    with torch.enable_grad(), captured(model, (layer,), differentiable=True) as found:
        logits = logits_of(model, batch)
        (gradient,) = torch.autograd.grad((logits * direction).sum(), [found[layer]])
    return found[layer].detach(), gradient


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


def best_other(logits: Tensor, given: Tensor) -> Tensor:
    """The class with the largest logit besides the given one; ties go to the lower class."""
    return logits.scatter(1, given[:, None], -torch.inf).argmax(dim=1)


def _one_batch(
    model: nn.Module,
    x: Batch,
    y: Tensor,
    needs: frozenset[str],
    layout: Layout,
    layer: str,
    stages: tuple[str, ...],
    precision: Precision,
) -> dict[str, Tensor]:
    """Everything that one forward pass gives; only a layer with no closed form needs gradients."""
    tail = _tail_behind(layout, layer)
    names = (*stages, layer) if tail and layer != layout.head else stages
    with captured(model, names, inputs_of=layout.head) as found, autocast(precision, y.device):
        logits = logits_of(model, x).float()
    out = {"logits": logits}
    for name in stages:
        chains = [module_named(model, k) for k, end in layout.probes.items() if end == name]
        unit = unit_dimension(module_named(model, name), chains, found[name])
        out[f"feature.{name}"] = pooled(found[name], unit=unit)
    if "head" in needs:
        out["head_input_norm"] = found["input"].float().flatten(1).norm(dim=1)
    if not needs & {"attribution", "mass", "vectors"}:
        return out

    def at(direction: Tensor) -> tuple[Tensor, Tensor]:
        if not tail:
            return attribute(model, x, direction, layer=layer)
        h = found["input" if layer == layout.head else layer].float()
        return h, gradient_closed(model, h, direction, tail=tail)

    c = logits.shape[1]
    if "attribution" in needs:
        h, gradient = at(against_rival(y, best_other(logits, y), c))
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


def _tail_behind(layout: Layout, layer: str) -> tuple[str, ...]:
    """The linear and ReLU layers that alone stand between a layer's activation and the logits.

    The head stands for its own input, so that its tail is itself; () if there are other operations.
    """
    if layer and layer == layout.head:
        return (layer,)
    return layout.tail[layout.tail.index(layer) + 1 :] if layer in layout.tail else ()


def _views(
    model: nn.Module,
    samples: Samples,
    x: Batch,
    y: Tensor,
    plain: Tensor,
    views: int,
    draws: list[torch.Generator],
    precision: Precision,
) -> dict[str, Tensor]:
    """Mean probabilities and mean loss over random views; those of the plain logits without any."""
    cross_entropy = nn.functional.cross_entropy
    if samples.view is None or not isinstance(x, Tensor):
        return {
            "view_probs": plain.softmax(dim=1),
            "view_loss": cross_entropy(plain, y, reduction="none"),
        }
    probs, loss = torch.zeros((), device=y.device), torch.zeros((), device=y.device)
    for _ in range(views):
        blocks = zip(x.split(BLOCK), draws, strict=True)
        seen = torch.cat([samples.view(block, draw) for block, draw in blocks])
        with autocast(precision, y.device):
            logits = logits_of(model, seen).float()
        probs = probs + logits.softmax(dim=1) / views
        loss = loss + cross_entropy(logits, y, reduction="none") / views
    return {"view_probs": probs, "view_loss": loss}


def _checked(logits: np.ndarray, samples: Samples) -> np.ndarray:
    if logits.shape[1] != len(samples.classes):
        raise ModelError(
            f"the model gives {logits.shape[1]} logits for {len(samples.classes)} classes",
            where="score",
            fix="name all classes of the model in the data, or use the model's own head",
        )
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise ModelError(
            f"logits are NaN or infinite for ids {some(samples.ids[bad])}",
            where="score",
            fix="check these inputs and the model's weights; try precision = 'float32'",
        )
    return logits
