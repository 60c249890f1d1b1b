"""What linear statistics of features say: class posteriors, and distances to the mean. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax

# The discriminant's covariance is shrunken by so much.
SHRINKAGE = 0.1
# Of a regression, in mean variances of its columns.
RIDGE = 0.03
# Rows are taken so many at a time, so that memory does not grow with their number.
_PIECE = 8192


def loo_lda_posteriors(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """``float64[n, c]``: posteriors of linear discriminant analysis, each sample left out.

    In closed form: without sample i of class y, with ``r = f − μ_y``, the mean of y moves by
    ``−r / (n_y − 1)`` and the scatter loses ``a r rᵀ``, ``a = n_y / (n_y − 1)``, which
    Sherman and Morrison's formula takes out of its inverse. Equal priors, standardised columns,
    ``Σ = (1/n) Σ r rᵀ + 0.1 · mean variance · I``; posteriors are at least 10⁻⁴.
    """
    n, standard = len(labels), _standard(features)
    counts, parts = np.bincount(labels, minlength=classes), row_chunks(n)
    means = np.zeros((classes, features.shape[1]))
    for rows in parts:
        means += np.eye(classes)[labels[rows]].T @ standard(rows)
    means /= np.maximum(counts, 1)[:, None]
    scatter = np.zeros((features.shape[1],) * 2)
    for rows in parts:
        residual = standard(rows) - means[labels[rows]].astype(features.dtype)
        scatter += residual.T @ residual / n
    ridge = SHRINKAGE * max(float(np.trace(scatter)) / len(scatter), 1e-12)
    values, vectors = np.linalg.eigh(scatter + ridge * np.eye(len(scatter)))
    basis = vectors / np.sqrt(values)
    centres, basis = means @ basis, basis.astype(features.dtype)
    log_p = np.empty((n, classes))
    for rows in parts:
        z, y = standard(rows) @ basis, labels[rows]
        r = z - centres[y]
        a = counts[y] / np.maximum(counts[y] - 1, 1)
        squared_r = (r**2).sum(axis=1)
        gain = a / np.maximum(1 - a * squared_r / n, 1e-3) / n
        squared = (z**2).sum(axis=1)[:, None] - 2 * z @ centres.T + (centres**2).sum(axis=1)
        along = (z * r).sum(axis=1)[:, None] - r @ centres.T
        squared += gain[:, None] * along**2
        squared[np.arange(len(y)), y] = a**2 * (squared_r + gain * squared_r**2)
        squared[:, counts == 0] = np.inf
        log_p[rows] = log_softmax(-0.5 * squared, axis=1)
    return np.exp(np.maximum(log_p, np.log(1e-4)))


def squared_distance(features: np.ndarray) -> np.ndarray:
    """``float64[n]``: squared Mahalanobis distance to the mean.

    ``Σ = FᵀF / n + 10⁻³ · mean variance · I`` of centred features, so that constant columns do no
    harm.
    """
    centre = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((features.shape[1],) * 2)
    for rows in row_chunks(len(features)):
        centred = features[rows] - centre
        covariance += centred.T @ centred / len(features)
    ridge = 1e-3 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    basis = vectors / np.sqrt(values)
    return np.concatenate(
        [
            (((features[rows] - centre) @ basis) ** 2).sum(axis=1)
            for rows in row_chunks(len(features))
        ]
    )


def loo_ridge_predictions(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """``float64[n]``: what ridge regression on the features says of a target, each sample left out.

    ``ŷ = z · (ZᵀZ / n + λI)⁻¹ Zᵀy / n`` on standardised columns, ``λ = 0.03 · mean variance``; left
    out by ``(ŷ − h y) / (1 − h)`` with the leverage ``h``. Cost: n d² + d³.
    """
    n, d = features.shape
    standard, centred, parts = _standard(features), target - target.mean(), row_chunks(n)
    moments, product = np.zeros((d, d)), np.zeros(d)
    for rows in parts:
        z = standard(rows)
        moments += z.T @ z / n
        product += z.T @ centred[rows] / n
    values, vectors = np.linalg.eigh(moments)
    values += RIDGE * max(float(np.trace(moments)) / d, 1e-12)
    slope = vectors.T @ product / values
    found = np.empty(n)
    for rows in parts:
        z = standard(rows) @ vectors.astype(features.dtype)
        leverage = np.minimum((z**2 / values).sum(axis=1) / n, 0.99)
        found[rows] = (z @ slope - leverage * centred[rows]) / (1 - leverage)
    return found


def ashman_d(
    mean: np.ndarray | float,
    std: np.ndarray | float,
    mean0: np.ndarray | float,
    std0: np.ndarray | float,
) -> np.ndarray:
    """``√2 |μ − μ₀| / √(σ² + σ₀²)``: distance of two normal distributions in pooled deviations."""
    spread = np.sqrt(np.square(std) + np.square(std0))
    return np.sqrt(2) * np.abs(np.asarray(mean) - mean0) / np.maximum(spread, 1e-12)


def _standard(features: np.ndarray) -> Callable[[slice], np.ndarray]:
    """Gives rows with columns of mean 0 and deviation 1; such as do not vary are all zeros.

    As precise as the features: products of float32 take half the time, and their rounding is far
    below the ridges here.
    """
    location = features.mean(axis=0, dtype=np.float64)
    squares = sum(
        ((features[rows] - location) ** 2).sum(axis=0) for rows in row_chunks(len(features))
    )
    scale = safe_scale(np.sqrt(squares / len(features)), location)
    return lambda rows: ((features[rows] - location) / scale).astype(features.dtype)


def safe_scale(spread: np.ndarray, location: np.ndarray) -> np.ndarray:
    """The spread of columns to divide by: infinite where it is but rounding."""
    return np.where(spread > 1e-6 * np.maximum(1e-6, np.abs(location)), spread, np.inf)


def row_chunks(n: int, size: int = _PIECE) -> list[slice]:
    """Rows 0 … n − 1, at most so many at a time."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
