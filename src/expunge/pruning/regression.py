"""Regression of the noise probability on what a layer's units do: units, directions, layers. Pure.

All is computed from sums over the samples, so that memory does not depend on their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import Floats
from expunge.records import DirectionEffect, LayerEffect

# Principal directions of a layer that are reported, and the least variance of one, in units.
MAX_DIRECTIONS = 3
_MIN_VARIANCE = 1e-3


@dataclass(frozen=True)
class RegressionSums:
    """Sums over the samples of one layer's regressors x and of the noise probability y.

    Parameters
    ----------
    n
        Number of samples.
    x
        ``Σ x``, ``float64[u]`` for a layer of u units.
    y
        ``Σ y``.
    yy
        ``Σ y²``.
    xy
        ``Σ x y``, ``float64[u]``.
    xx
        ``Σ x xᵀ``, ``float64[u, u]``.
    weight_norm
        L2 norm of each unit's incoming weights, ``float64[u]``.
    """

    n: int
    x: Floats
    y: float
    yy: float
    xy: Floats
    xx: Floats
    weight_norm: Floats


def rank_layers(sums: Mapping[str, RegressionSums]) -> tuple[LayerEffect, ...]:
    """Rank layers by how much of the noise probability all their units together predict.

    ``R² = 1 − GCV error / variance`` of the ridge regression with the least error of generalised
    cross-validation: unlike the R² of the fit, it does not rise with the number of units.

    Parameters
    ----------
    sums
        By layer. Layers without samples are left out.

    Returns
    -------
    tuple of LayerEffect
        The largest R² first.

    Notes
    -----
    Cost: an eigendecomposition of each layer, O(u³).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, z = rng.standard_normal((2, 200, 3))
    >>> y = x[:, 1]
    >>> def of(x):
    ...     return RegressionSums(200, x.sum(0), y.sum(), y @ y, x.T @ y, x.T @ x, np.ones(3))
    >>> [(e.layer, round(e.r_squared, 1)) for e in rank_layers({"noise": of(z), "signal": of(x)})]
    [('signal', 1.0), ('noise', 0.0)]
    """
    found = []
    for name, own in sums.items():
        spectrum = _spectrum(own)
        if spectrum is not None:
            values, projected, _ = spectrum
            error = best_penalty(values, projected, own.n)[3]
            found.append(LayerEffect(name, float(max(1 - error, 0.0))))
    return tuple(sorted(found, key=lambda e: (-e.r_squared, e.layer)))


def rank_directions(sums: Mapping[str, RegressionSums]) -> tuple[DirectionEffect, ...]:
    """Rank the principal directions of each layer by how much of the noise each one predicts.

    A direction is an eigenvector v of the units' correlations with eigenvalue l. With r the units'
    correlations with the noise probability, it alone has ``R² = (vᵀ r)² / l``, and ``l / u`` of the
    variance. Where few directions of little variance predict the noise, a projection removes
    it at less cost than cutting units.

    Parameters
    ----------
    sums
        By layer. Layers without samples are left out.

    Returns
    -------
    tuple of DirectionEffect
        At most three a layer, the largest R² first. q-values are Benjamini–Hochberg over all
        directions of all layers.

    Notes
    -----
    Cost: an eigendecomposition of each layer, O(u³). Directions of less than a thousandth of a
    unit's variance are left out: they are rounding.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 3)) + 2 * rng.standard_normal((200, 1))
    >>> y = x.sum(axis=1)
    >>> sums = RegressionSums(200, x.sum(0), y.sum(), y @ y, x.T @ y, x.T @ x, np.ones(3))
    >>> best = rank_directions({"layer": sums})[0]
    >>> best.number, round(best.r_squared, 2), best.variance_share > 0.8
    (0, 1.0, True)
    """
    from scipy.stats import beta

    found: list[DirectionEffect] = []
    p_values: list[float] = []
    for name, own in sums.items():
        spectrum = _spectrum(own)
        if spectrum is None:
            continue
        values, projected, units = spectrum
        usable = np.flatnonzero(values > _MIN_VARIANCE)
        r_squared = np.minimum(projected[usable] ** 2 / values[usable], 1.0)
        # Of an unrelated direction R² is Beta(½, (n − 2) / 2).
        p_values += beta.sf(r_squared, 0.5, max(own.n - 2, 1) / 2).tolist()
        numbers = len(values) - 1 - usable
        found += [
            DirectionEffect(name, int(k), float(r), float(v / units), 1.0)
            for k, r, v in zip(numbers, r_squared, values[usable], strict=True)
        ]
    q_values = benjamini_hochberg(np.array(p_values))
    ranked = [replace(e, q_value=float(q)) for e, q in zip(found, q_values, strict=True)]
    ranked.sort(key=lambda e: (-e.r_squared, e.layer, e.number))
    kept, count = [], Counter[str]()
    for effect in ranked:
        count[effect.layer] += 1
        if count[effect.layer] <= MAX_DIRECTIONS:
            kept.append(effect)
    return tuple(kept)


def _spectrum(sums: RegressionSums) -> tuple[Floats, Floats, int] | None:
    """Eigenvalues of the units' correlations, r in the eigenvectors, and the number of units.

    None without samples, or if nothing varies.
    """
    if not sums.n:
        return None
    scale, correlations, r, scale_y = standardise(sums)
    if scale_y == 0 or not (scale > 0).any():
        return None
    values, vectors = np.linalg.eigh(correlations)
    return np.maximum(values, 0.0), vectors.T @ r, int((scale > 0).sum())


def best_penalty(values: Floats, projected: Floats, n: int) -> tuple[float, float, float, float]:
    """The penalty with the least generalised cross-validation error.

    Returns it with the mean squared residual, the degrees of freedom of the fit, and that error.
    """
    best = (float("inf"), 0.0, 0.0, 0.0)
    for penalty in np.logspace(-4, 1, 21):
        shrunk = projected / (values + penalty)
        residual = max(1 - 2 * shrunk @ projected + shrunk**2 @ values, 1e-12)
        freedom = (values / (values + penalty)).sum()
        error = residual / max(1 - freedom / n, 1e-3) ** 2
        if error < best[0]:
            best = (error, penalty, residual, freedom)
    return (*best[1:], best[0])


class Standardised(NamedTuple):
    """Correlations of the regressors, and theirs with y."""

    scale: Floats  # standard deviations of x
    correlations: Floats  # of x
    r: Floats  # correlations of x with y
    scale_y: float


def standardise(sums: RegressionSums) -> Standardised:
    """Correlations from sums. A constant column (a dead unit) correlates with nothing."""
    n = sums.n
    mean, mean_y = sums.x / n, sums.y / n
    covariance = sums.xx / n - np.outer(mean, mean)
    scale = _deviation(covariance.diagonal(), sums.xx.diagonal() / n)
    scale_y = float(_deviation(np.array(sums.yy / n - mean_y**2), np.array(sums.yy / n)))
    inverse = np.divide(1.0, scale, where=scale > 0, out=np.zeros_like(scale))
    correlations = covariance * np.outer(inverse, inverse)
    r = (sums.xy / n - mean * mean_y) * inverse
    return Standardised(
        scale, correlations, r / scale_y if scale_y > 0 else np.zeros_like(r), scale_y
    )


def _deviation(variance: Floats, mean_square: Floats) -> Floats:
    """Root of a variance; 0 where the variance is only the rounding error of the mean square."""
    return np.sqrt(np.where(variance > 1e-12 * mean_square, variance, 0.0))


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Return adjusted p-values; NaN stays NaN and does not count."""
    from scipy.stats import false_discovery_control

    known = np.isfinite(p_values)
    q_values = np.full(len(p_values), np.nan)
    if known.any():
        q_values[known] = false_discovery_control(p_values[known])
    return q_values
