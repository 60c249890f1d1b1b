"""Which neurons carry the noise: regress badness on what each unit does, sample by sample.

The pass over the data keeps sums only (`Moments`), so memory does not depend on the number of
samples. Rankers turn these sums into effects; they are pure functions and plug-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from scipy.stats import false_discovery_control, norm
from torch import Tensor, nn

from expunge._core.distributed import all_reduce_sum, shard
from expunge._core.progress import Progress, silent
from expunge._core.registry import Registry
from expunge.data import Samples
from expunge.detection.gradients import gradients_at, label_direction, runner_up
from expunge.errors import ModelError, did_you_mean
from expunge.models.inspection import (
    capture_outputs,
    eval_mode,
    inspect_layers,
    logits_of,
    module_named,
    on_device,
)
from expunge.records import NeuronRanking, Partition, align

Uses = Literal["attribution", "activation", "weights"]


@dataclass(frozen=True)
class Moments:
    """Sums over the samples of one layer's regressors x (``u`` units) and of the badness y.

    Sums of x (``[u]``), y, y², x·y (``[u]``) and x xᵀ (``[u, u]``), float64, and n; weight_norm:
    the L2 norm of each unit's incoming weights (``[u]``).
    """

    n: int
    x: np.ndarray
    y: float
    yy: float
    xy: np.ndarray
    xx: np.ndarray
    weight_norm: np.ndarray


@dataclass(frozen=True)
class Effects:
    """A ranker's answer for one layer: effect, standard error and p-value of each unit, and R².

    stderr and p_value are NaN where the ranker has none.
    """

    effect: np.ndarray
    stderr: np.ndarray
    p_value: np.ndarray
    explained: float = float("nan")


@dataclass(frozen=True)
class RankerInfo:
    """The metadata of a ranker: what its regressors are."""

    uses: Uses = "attribution"


rankers: Registry[Callable[..., Effects], RankerInfo] = Registry("ranker", RankerInfo)


def rank_units(
    model: nn.Module,
    samples: Samples,
    partition: Partition,
    *,
    method: str,
    layers: tuple[str, ...],
    groups: Mapping[str, str],
    batch_size: int = 256,
    progress: Progress = silent,
    **options: object,
) -> NeuronRanking:
    """Rank the units of these layers by how much noise they carry.

    groups: for coupled layers, the layer that stands for all; see `surgery.groups`.
    Cost: one pass (and for attributions one backward pass to the first of the layers), and for each
    layer of u units an eigendecomposition, O(u³).
    """
    rankers.check_options(method, options)
    sums = _moments(
        model, samples, partition, layers, rankers.metadata(method).uses, batch_size, progress
    )
    effects = {layer: rankers.get(method)(moments, **options) for layer, moments in sums.items()}
    p_values = np.concatenate([e.p_value for e in effects.values()])
    known = np.isfinite(p_values)
    q = np.full(len(p_values), np.nan)
    if known.any():
        q[known] = false_discovery_control(p_values[known])
    return NeuronRanking(
        layer=np.concatenate([np.full(len(e.effect), name) for name, e in effects.items()]),
        unit=np.concatenate([np.arange(len(e.effect)) for e in effects.values()]),
        effect=np.concatenate([e.effect for e in effects.values()]),
        stderr=np.concatenate([e.stderr for e in effects.values()]),
        q_value=q,
        groups={layer: groups.get(layer, layer) for layer in layers},
        explained={n: e.explained for n, e in effects.items() if np.isfinite(e.explained)},
    )


@rankers.register("attribution-ridge", uses="attribution")
def attribution_ridge(moments: Moments) -> Effects:
    """Standardised ridge regression of badness on label-conditional attributions, signed.

    x_j = Σ_space h_j ∂(z_given − z_suggested)/∂h_j: what unit j contributes to the given label. The
    penalty minimises the generalised cross-validation error (doi 10.1080/00401706.1979.10489751).
    With R the correlations of x, r those with y: ``β = (R + λI)⁻¹ r``,
    ``cov β = σ²/n (R + λI)⁻¹ R (R + λI)⁻¹``; p-values are one-sided (β > 0, normal).
    """
    return _ridge(moments)


@rankers.register("activation-ridge", uses="activation")
def activation_ridge(moments: Moments) -> Effects:
    """The same regression on activations (mean over space): sees faulty inputs, not labels."""
    return _ridge(moments)


@rankers.register("activation-ols", uses="activation")
def activation_ols(moments: Moments) -> Effects:
    """Absolute weights of ordinary least squares on activations, as published (arXiv 2506.11615).

    Neither standardised nor signed: units that vary little, and units that speak for clean
    samples, rank high too. Singular directions (dead units) get no weight.
    """
    scale, correlations, r, deviation = _standardise(moments)
    beta = np.linalg.pinv(correlations, rcond=1e-10, hermitian=True) @ r
    raw = np.divide(beta * deviation, scale, where=scale > 0, out=np.zeros_like(beta))
    nothing = np.full(len(raw), np.nan)
    return Effects(np.abs(raw), nothing, nothing, float(beta @ r))


@rankers.register("magnitude", uses="weights")
def magnitude(moments: Moments) -> Effects:
    """Units with the smallest incoming weights first (L2 norm): the usual magnitude criterion."""
    nothing = np.full(len(moments.weight_norm), np.nan)
    return Effects(-moments.weight_norm, nothing, nothing)


def _ridge(moments: Moments) -> Effects:
    scale, correlations, r, deviation = _standardise(moments)
    if deviation == 0:
        zero = np.zeros(len(scale))
        return Effects(zero, zero, np.ones(len(scale)), 0.0)
    values, vectors = np.linalg.eigh(correlations)
    values = np.maximum(values, 0.0)
    along = vectors.T @ r
    best = None
    for penalty in np.logspace(-4, 1, 21):
        shrunk = along / (values + penalty)
        residual = max(1 - 2 * shrunk @ along + shrunk**2 @ values, 1e-12)
        freedom = (values / (values + penalty)).sum()
        error = residual / max(1 - freedom / moments.n, 1e-3) ** 2
        if best is None or error < best[0]:
            best = (error, penalty, residual, freedom)
    assert best is not None
    _, penalty, residual, freedom = best
    beta = vectors @ (along / (values + penalty))
    noise = residual / max(moments.n - 1 - freedom, 1.0)
    variance = noise * (vectors**2 @ (values / (values + penalty) ** 2))
    stderr = np.sqrt(variance)
    beta[scale == 0], stderr[scale == 0] = 0.0, 0.0
    z = np.divide(beta, stderr, where=stderr > 0, out=np.full(len(beta), -np.inf))
    return Effects(beta, stderr, norm.sf(z), 1 - residual)


def _standardise(moments: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Deviations of x, their correlations, correlations with y, deviation of y.

    A constant column (a dead unit) correlates with nothing.
    """
    n = moments.n
    mean, mean_y = moments.x / n, moments.y / n
    covariance = moments.xx / n - np.outer(mean, mean)
    scale = _deviation(covariance.diagonal(), moments.xx.diagonal() / n)
    deviation = float(_deviation(moments.yy / n - mean_y**2, moments.yy / n))
    inverse = np.divide(1.0, scale, where=scale > 0, out=np.zeros_like(scale))
    correlations = covariance * np.outer(inverse, inverse)
    r = (moments.xy / n - mean * mean_y) * inverse
    return scale, correlations, r / deviation if deviation > 0 else np.zeros_like(r), deviation


def _deviation(variance: np.ndarray | float, square: np.ndarray | float) -> np.ndarray:
    """Root of a variance; 0 where it is but the rounding error of the mean square."""
    return np.sqrt(np.where(variance > 1e-12 * np.asarray(square), variance, 0.0))


def _moments(
    model: nn.Module,
    samples: Samples,
    partition: Partition,
    layers: tuple[str, ...],
    uses: Uses,
    batch_size: int,
    progress: Progress,
) -> dict[str, Moments]:
    """One pass that sums up every layer's regressors."""
    accelerator = Accelerator()
    readouts = inspect_layers(model, samples.example()).readouts
    for layer in layers:
        if layer not in readouts:
            raise ModelError(
                f"'{layer}' is no hidden layer of units", fix=did_you_mean(layer, readouts)
            )
    norms = {n: _weight_norm(module_named(model, n)) for n in layers}
    if uses == "weights":
        empty = np.zeros(0)
        return {n: Moments(0, empty, 0.0, 0.0, empty, empty, norms[n]) for n in layers}
    at = align(partition.ids, samples.ids)
    badness, suggested = partition.p_noisy[at], partition.suggested_label[at]
    mine = shard(np.arange(len(samples)), accelerator)
    sums: dict[str, Tensor] = {}
    # Sums are in float64, which Apple's GPUs do not have.
    summed = torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device
    with on_device(model, accelerator.device), eval_mode(model):
        for done, rows in enumerate(samples.batches(batch_size, positions=mine), 1):
            x = samples.batch(rows, device=accelerator.device)
            given = torch.from_numpy(samples.labels[rows]).to(accelerator.device)
            other = torch.from_numpy(suggested[rows]).to(accelerator.device)
            y = torch.from_numpy(badness[rows]).to(summed)
            units = _regressors(model, x, given, other, {n: readouts[n] for n in layers}, uses)
            for name, values in units.items():
                # One product gives all sums: of (x, y, 1) with itself.
                x_y_1 = values.to(summed).double(), y[:, None], torch.ones_like(y)[:, None]
                extended = torch.cat(x_y_1, 1)
                sums[name] = sums.get(name, 0) + extended.T @ extended
            progress("rank", min(done * batch_size, len(mine)), len(mine))
    return {
        n: _unpack(all_reduce_sum(s, accelerator).cpu().numpy(), norms[n]) for n, s in sums.items()
    }


def _regressors(
    model: nn.Module,
    x: Tensor | dict[str, Tensor],
    given: Tensor,
    suggested: Tensor,
    readouts: dict[str, str],
    uses: Uses,
) -> dict[str, Tensor]:
    """``[b, u]`` for every layer: attributions (summed over space) or activations (averaged)."""
    names = tuple(dict.fromkeys(readouts.values()))
    with torch.enable_grad(), capture_outputs(model, names, differentiable=True) as found:
        logits = logits_of(model, x)
        if uses == "attribution":
            rival = torch.where(suggested != given, suggested, runner_up(logits, given))
            direction = label_direction(given, rival, logits.shape[1])
            gradients = gradients_at((logits * direction).sum(), found)
            values = {n: (gradients[n] * found[n]).detach() for n in names}
        else:
            values = {n: found[n].detach() for n in names}
    reduced = {}
    for layer, probe in readouts.items():
        over = _space(module_named(model, layer), values[probe])
        v = values[probe]
        reduced[layer] = (v.sum(over) if uses == "attribution" else v.mean(over)) if over else v
    return reduced


def _space(layer: nn.Module, values: Tensor) -> tuple[int, ...]:
    """Dimensions besides batch and unit."""
    unit = values.dim() - 1 if isinstance(layer, nn.Linear) else 1
    return tuple(d for d in range(1, values.dim()) if d != unit)


def _weight_norm(layer: nn.Module) -> np.ndarray:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().double().flatten(1).norm(dim=1).cpu().numpy()


def _unpack(sums: np.ndarray, weight_norm: np.ndarray) -> Moments:
    return Moments(
        n=round(float(sums[-1, -1])),
        x=sums[:-2, -1],
        y=float(sums[-2, -1]),
        yy=float(sums[-2, -2]),
        xy=sums[:-2, -2],
        xx=sums[:-2, :-2],
        weight_norm=weight_norm,
    )
