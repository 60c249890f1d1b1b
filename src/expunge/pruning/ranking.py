"""Which units carry the noise: regress the noise probability of a sample on what each unit does.

The pass over the data keeps sums only (`RegressionSums`), so memory does not depend on the number
of samples. Rankers turn these sums into effects; they are pure functions and plug-ins.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Array, Floats
from expunge._core.distributed import all_reduce_sum, shard, this_process
from expunge._core.progress import Progress, silent
from expunge._core.registry import Registry
from expunge.data import Batch, Samples
from expunge.detection.gradients import gradients_at, label_direction, runner_up
from expunge.errors import ModelError, did_you_mean
from expunge.models.architecture import is_transposed_linear
from expunge.models.batches import samples_per_pass
from expunge.models.calls import capture_outputs, eval_mode, logits_of, module_named, on_device
from expunge.models.inspection import inspect_model
from expunge.pruning.attention_heads import Heads
from expunge.pruning.head_readouts import by_head, capture_heads, heads_norm, readable_heads
from expunge.pruning.regression import (
    RegressionSums,
    benjamini_hochberg,
    best_penalty,
    rank_directions,
    rank_layers,
    standardise,
)
from expunge.records import NeuronRanking, Partition, align

Regressors = Literal["attribution", "activation", "weights"]


@dataclass(frozen=True)
class Effects:
    """What a ranker finds for the u units of one layer.

    Parameters
    ----------
    effect
        The larger, the more noise the unit carries; ``float64[u]``, finite.
    stderr
        Standard error of the effect; NaN if the ranker has none.
    p_value
        One-sided p-value of ``effect ≤ 0`` in [0, 1]; NaN if the ranker has none.
    r_squared
        R² of the noise probability on all units of the layer; NaN if the ranker fits nothing.
    """

    effect: Floats
    stderr: Floats
    p_value: Floats
    r_squared: float = float("nan")


@dataclass(frozen=True)
class RankerInfo:
    """The metadata of a ranker.

    Parameters
    ----------
    regressors
        What the sums are made of: ``"attribution"`` (one backward pass), ``"activation"`` (forward
        only) or ``"weights"`` (no pass over the data; the sums are empty).
    """

    regressors: Regressors = "attribution"


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
    """Rank the units of some layers by how much noise they carry.

    Parameters
    ----------
    model
        Left as it was.
    samples, partition
        Matched by id; every sample needs a row of the partition.
    method
        Name of a ranker.
    layers
        Names of hidden layers of units, and of attentions whose heads are ranked.
    groups
        For layers that share their units, the first of them; see `surgery.groups`.
    batch_size
        Samples of one pass; at least 1.
    progress
        Called after each batch.
    **options
        Options of the ranker.

    Returns
    -------
    NeuronRanking
        All units of all layers, the largest effect first. q-values are Benjamini–Hochberg over all
        units together. The layers as a whole and their principal directions are ranked beside.

    Raises
    ------
    ConfigError
        For an unknown method or option.
    ModelError
        For a name that is not a hidden layer of units.
    DataError
        For a sample without a row in the partition.

    Notes
    -----
    Cost: one pass over the samples (and for attributions one backward pass to the first of the
    layers), and for each layer of u units an eigendecomposition, O(u³). Memory: O(u²).
    """
    rankers.check_options(method, options)
    sums = collect_sums(
        model,
        samples,
        partition,
        layers=layers,
        regressors=rankers.metadata(method).regressors,
        batch_size=batch_size,
        progress=progress,
    )
    effects = {name: rankers.get(method)(values, **options) for name, values in sums.items()}
    return NeuronRanking(
        layer=np.concatenate([np.full(len(e.effect), name) for name, e in effects.items()]),
        unit=np.concatenate([np.arange(len(e.effect)) for e in effects.values()]),
        effect=np.concatenate([e.effect for e in effects.values()]),
        stderr=np.concatenate([e.stderr for e in effects.values()]),
        q_value=benjamini_hochberg(np.concatenate([e.p_value for e in effects.values()])),
        groups={layer: groups.get(layer, layer) for layer in layers},
        explained={n: e.r_squared for n, e in effects.items() if np.isfinite(e.r_squared)},
        layers=rank_layers(sums),
        directions=rank_directions(sums),
    )


@rankers.register("attribution-ridge", regressors="attribution")
def attribution_ridge(sums: RegressionSums) -> Effects:
    """Standardised ridge regression of the noise probability on attributions to the given label.

    ``x_j = Σ_space h_j ∂(z_given − z_suggested)/∂h_j`` is what unit j contributes to the given
    label; where no other label is suggested, the runner-up takes its place. With R the correlations
    of x and r those of x with y: ``β = (R + λI)⁻¹ r`` and
    ``cov β = σ²/n (R + λI)⁻¹ R (R + λI)⁻¹``. λ is one of 21 values from 1e-4 to 10 and minimises
    the generalised cross-validation error.

    Parameters
    ----------
    sums
        Of one layer of u units.

    Returns
    -------
    Effects
        β (signed), its standard error, and one-sided p-values of ``β > 0`` from the normal
        distribution. Units that do not vary have effect 0 and p-value 1.

    Notes
    -----
    Cost: an eigendecomposition, O(u³). The p-values treat y as given; they do not include the
    uncertainty of the partition. A noise probability that does not vary gives all units effect 0.

    References
    ----------
    Golub, Heath, Wahba (1979), doi 10.1080/00401706.1979.10489751.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 3))
    >>> y = x[:, 1] + 0.1 * rng.standard_normal(100)
    >>> sums = RegressionSums(100, x.sum(0), y.sum(), y @ y, x.T @ y, x.T @ x, np.ones(3))
    >>> int(attribution_ridge(sums).effect.argmax())
    1
    """
    return _ridge(sums)


@rankers.register("activation-ridge", regressors="activation")
def activation_ridge(sums: RegressionSums) -> Effects:
    """Standardised ridge regression of the noise probability on activations (mean over space).

    As `attribution_ridge` with ``x_j = mean_space h_j``. It finds units that respond to corrupted
    inputs; wrong labels of clean inputs do not show in activations.

    Parameters
    ----------
    sums
        Of one layer of u units.

    Returns
    -------
    Effects
        β (signed), standard errors and one-sided p-values.

    Notes
    -----
    Cost: an eigendecomposition, O(u³); the pass over the data needs no gradient.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 3))
    >>> y = x[:, 2]
    >>> sums = RegressionSums(100, x.sum(0), y.sum(), y @ y, x.T @ y, x.T @ x, np.ones(3))
    >>> bool(activation_ridge(sums).p_value[2] < 1e-6)
    True
    """
    return _ridge(sums)


@rankers.register("activation-ols", regressors="activation")
def activation_ols(sums: RegressionSums) -> Effects:
    """Absolute weights of ordinary least squares on activations, as published.

    ``|β|`` with ``β = argmin ‖y − β₀ − X β‖²``, neither standardised nor signed.

    Parameters
    ----------
    sums
        Of one layer of u units.

    Returns
    -------
    Effects
        Without standard errors and p-values. Singular directions (units that do not vary) get no
        weight.

    Notes
    -----
    Cost: a pseudo-inverse, O(u³). Units that vary little, and units that are active for clean
    samples, rank high too; use a ridge to tell them apart.

    References
    ----------
    RLAP, arXiv 2506.11615.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 2))
    >>> y = -3 * x[:, 0]
    >>> sums = RegressionSums(100, x.sum(0), y.sum(), y @ y, x.T @ y, x.T @ x, np.ones(2))
    >>> activation_ols(sums).effect.round(6).tolist()
    [3.0, 0.0]
    """
    scale, correlations, r, scale_y = standardise(sums)
    beta = np.linalg.pinv(correlations, rcond=1e-10, hermitian=True) @ r
    raw = np.divide(beta * scale_y, scale, where=scale > 0, out=np.zeros_like(beta))
    unknown = np.full(len(raw), np.nan)
    return Effects(np.abs(raw), unknown, unknown, float(beta @ r))


@rankers.register("magnitude", regressors="weights")
def magnitude(sums: RegressionSums) -> Effects:
    """Units with the smallest incoming weights first: ``−‖w_j‖₂``, the magnitude criterion.

    Parameters
    ----------
    sums
        Of one layer of u units; only ``weight_norm`` is used.

    Returns
    -------
    Effects
        Without standard errors and p-values.

    Notes
    -----
    Cost: none; there is no pass over the data. It ignores the noise: a baseline.

    References
    ----------
    Li et al., arXiv 1608.08710 (with the L1 norm).

    Examples
    --------
    >>> import numpy as np
    >>> none = np.zeros(0)
    >>> sums = RegressionSums(0, none, 0.0, 0.0, none, none, np.array([2.0, 0.5]))
    >>> magnitude(sums).effect.tolist()
    [-2.0, -0.5]
    """
    unknown = np.full(len(sums.weight_norm), np.nan)
    return Effects(-sums.weight_norm, unknown, unknown)


def _ridge(sums: RegressionSums) -> Effects:
    scale, correlations, r, scale_y = standardise(sums)
    if scale_y == 0:
        zero = np.zeros(len(scale))
        return Effects(zero, zero, np.ones(len(scale)), 0.0)
    from scipy.stats import norm

    values, vectors = np.linalg.eigh(correlations)
    values = np.maximum(values, 0.0)
    projected = vectors.T @ r
    penalty, residual, freedom, _ = best_penalty(values, projected, sums.n)
    beta = vectors @ (projected / (values + penalty))
    noise = residual / max(sums.n - 1 - freedom, 1.0)
    variance = noise * (vectors**2 @ (values / (values + penalty) ** 2))
    stderr = np.sqrt(variance)
    beta[scale == 0], stderr[scale == 0] = 0.0, 0.0
    z = np.divide(beta, stderr, where=stderr > 0, out=np.full(len(beta), -np.inf))
    return Effects(beta, stderr, norm.sf(z), 1 - residual)


def collect_sums(
    model: nn.Module,
    samples: Samples,
    partition: Partition,
    *,
    layers: tuple[str, ...],
    regressors: Regressors,
    batch_size: int,
    progress: Progress = silent,
) -> dict[str, RegressionSums]:
    """Add up every layer's regressors in one pass; every process gets the sums of all.

    Raises
    ------
    ModelError
        For a name that is not a hidden layer of units.
    DataError
        For a sample without a row in the partition.
    """
    shown = _shown_units(model, samples, layers)
    norms = {
        n: heads_norm(model, shown.heads[n])
        if n in shown.heads
        else _weight_norm(module_named(model, n))
        for n in layers
    }
    if regressors == "weights":
        empty = np.zeros(0)
        return {n: RegressionSums(0, empty, 0.0, 0.0, empty, empty, norms[n]) for n in layers}
    accelerator = this_process()
    at = align(partition.ids, samples.ids)
    columns = samples.labels, partition.suggested_label[at]
    own = shard(np.arange(len(samples)), accelerator)
    fitting = samples_per_pass(model, samples.example(), accelerator.device, keeps_outputs=True)
    batch_size = min(batch_size, fitting)
    total: dict[str, Tensor] = {}
    # Sums are in float64, which Apple's GPUs do not have.
    sum_device = torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device
    with on_device(model, accelerator.device), eval_mode(model):
        for done, rows in enumerate(samples.batches(batch_size, positions=own), 1):
            x = samples.batch(rows, device=accelerator.device)
            y = torch.from_numpy(partition.p_noisy[at[rows]]).to(sum_device)
            if regressors == "attribution":
                given, suggested = (
                    torch.from_numpy(c[rows]).to(accelerator.device) for c in columns
                )
                units = _attributions(model, x, shown, given=given, suggested=suggested)
            else:
                units = _activations(model, x, shown)
            for name, values in units.items():
                product = _product_sums(values.to(sum_device).double(), y)
                total[name] = total.get(name, 0) + product
            progress("rank", min(done * batch_size, len(own)), len(own))
    arrays = {n: all_reduce_sum(s, accelerator).cpu().numpy() for n, s in total.items()}
    return {n: _split_sums(s, norms[n]) for n, s in arrays.items()}


def _product_sums(x: Tensor, y: Tensor) -> Tensor:
    """All sums at once: the product of (x, y, 1) with itself, ``float64[u + 2, u + 2]``."""
    extended = torch.cat((x, y[:, None], torch.ones_like(y)[:, None]), 1)
    return extended.T @ extended


class _ShownUnits(NamedTuple):
    """Where the units of layers show."""

    readouts: dict[str, str]  # for a layer, the one whose output shows its units
    heads: dict[str, Heads]  # for an attention, its heads


def _shown_units(model: nn.Module, samples: Samples, layers: tuple[str, ...]) -> _ShownUnits:
    """Where the units of these layers, and the heads of these attentions, show."""
    known = inspect_model(model, samples).readouts
    others = [name for name in layers if name not in known]
    heads = readable_heads(model, samples.example()) if others else {}
    for name in others:
        if name not in heads:
            raise ModelError(
                f"'{name}' is no hidden layer of units that every sample reaches, and no attention "
                "whose heads can be cut",
                fix=did_you_mean(name, [*known, *heads]),
            )
    return _ShownUnits(
        {name: known[name] for name in layers if name in known}, {n: heads[n] for n in others}
    )


@contextmanager
def _captured(model: nn.Module, shown: _ShownUnits) -> Iterator[Mapping[str, Tensor]]:
    """Collect at each forward pass what shows the units: by readout, and by attention."""
    names = tuple(dict.fromkeys(shown.readouts.values()))
    with (
        torch.enable_grad(),
        capture_outputs(model, names, differentiable=True) as outputs,
        capture_heads(model, shown.heads, differentiable=True) as inputs,
    ):
        yield ChainMap(outputs, inputs)


def _attributions(
    model: nn.Module, x: Batch, shown: _ShownUnits, *, given: Tensor, suggested: Tensor
) -> dict[str, Tensor]:
    """Contributions to the given label less its rival, ``[b, u]`` by layer, summed over space."""
    with _captured(model, shown) as found:
        logits = logits_of(model, x)
        rival = torch.where(suggested != given, suggested, runner_up(logits, given))
        direction = label_direction(given, rival, logits.shape[1])
        gradients = gradients_at((logits * direction).sum(), found)
        values = {n: (gradients[n] * found[n]).detach() for n in found}
    return _by_unit(model, values, shown, torch.sum, n=len(given))


def _activations(model: nn.Module, x: Batch, shown: _ShownUnits) -> dict[str, Tensor]:
    """Activations, ``[b, u]`` by layer, averaged over space."""
    with _captured(model, shown) as found:
        n = len(logits_of(model, x))
        values = {name: found[name].detach() for name in found}
    return _by_unit(model, values, shown, torch.mean, n=n)


def _by_unit(
    model: nn.Module,
    values: dict[str, Tensor],
    shown: _ShownUnits,
    reduce: Callable[..., Tensor],
    *,
    n: int,
) -> dict[str, Tensor]:
    """Values ``[n, u]`` of the units of each layer."""
    reduced = {k: by_head(values[k], heads, n, reduce) for k, heads in shown.heads.items()}
    for layer, readout in shown.readouts.items():
        v = values[readout]
        dims = _spatial_dims(module_named(model, layer), v)
        reduced[layer] = reduce(v, dims) if dims else v
    return reduced


def _spatial_dims(layer: nn.Module, values: Tensor) -> tuple[int, ...]:
    """All dimensions but those of the batch and of the units."""
    is_linear = isinstance(layer, nn.Linear) or is_transposed_linear(layer)
    unit = values.dim() - 1 if is_linear else 1
    return tuple(d for d in range(1, values.dim()) if d != unit)


def _weight_norm(layer: nn.Module) -> Floats:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    weight = weight.T if is_transposed_linear(layer) else weight
    norms: Array = weight.detach().double().flatten(1).norm(dim=1).cpu().numpy()
    return norms


def _split_sums(sums: Floats, weight_norm: Floats) -> RegressionSums:
    return RegressionSums(
        n=round(float(sums[-1, -1])),
        x=sums[:-2, -1],
        y=float(sums[-2, -1]),
        yy=float(sums[-2, -2]),
        xy=sums[:-2, -2],
        xx=sums[:-2, :-2],
        weight_norm=weight_norm,
    )
