"""The singular spectrum of features, and two statistics of it that predict transfer.

After arXiv 2309.17002: label noise in pre-training raises both. A higher entropy improves the
accuracy in the domain, up to a point. A smaller first singular value reduces it elsewhere.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from expunge.errors import ConfigError, DataError, format_ids

Centre = Literal["none", "columns", "rows"]


def singular_values(
    features: np.ndarray, *, centre: Centre = "none", normalise: bool = False
) -> np.ndarray:
    """Compute the singular values ``s_1 ≥ s_2 ≥ …`` of features.

    Parameters
    ----------
    features
        ``float[n, d]``: one row a sample.
    centre
        The means to subtract: ``"none"``, those of the ``"columns"`` (over the samples), or those
        of the ``"rows"`` (as in the published code).
    normalise
        Scale each row to length 1 before that; rows of zeros stay.

    Returns
    -------
    np.ndarray
        ``float64[min(n, d)]``, descending.

    Raises
    ------
    DataError
        If there are no samples, the shape is another, or values are NaN or infinite.
    ConfigError
        For another centre.

    Notes
    -----
    Cost: O(n d min(n, d)), in float64.

    Examples
    --------
    >>> singular_values(np.diag([3.0, 4.0]))
    array([4., 3.])
    """
    x = check_features(features).astype(np.float64)
    if normalise:
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(length > 0, length, 1.0)
    if centre == "columns":
        x = x - x.mean(axis=0)
    elif centre == "rows":
        x = x - x.mean(axis=1, keepdims=True)
    elif centre != "none":
        raise ConfigError(f"unknown centre '{centre}'", fix="none, columns or rows")
    return np.asarray(torch.linalg.svdvals(torch.from_numpy(x)).numpy())


def sve(values: np.ndarray) -> float:
    """Compute the singular value entropy (SVE): ``−Σ p_i ln p_i`` with ``p_i = s_i / Σ s``.

    Parameters
    ----------
    values
        ``float[k]``: singular values, 0 or more and not all 0.

    Returns
    -------
    float
        In [0, ln k], in nats. High if the features span many directions evenly.

    Raises
    ------
    DataError
        For other values.

    References
    ----------
    Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks,
    https://arxiv.org/abs/2309.17002.

    Examples
    --------
    >>> round(sve(np.ones(8)) / float(np.log(8)), 6)
    1.0
    """
    p = _fractions(values)
    return float(-(p * np.log(np.where(p > 0, p, 1.0))).sum()) + 0.0


def lsvr(values: np.ndarray) -> float:
    """Compute the largest singular value ratio (LSVR): ``−ln(s_1 / Σ s)``.

    Parameters
    ----------
    values
        ``float[k]``: singular values, 0 or more and not all 0.

    Returns
    -------
    float
        In [0, ln k]. High if the first singular value is not much larger than the others.

    Raises
    ------
    DataError
        For other values.

    References
    ----------
    https://arxiv.org/abs/2309.17002.

    Examples
    --------
    >>> lsvr(np.array([5.0, 0.0]))
    0.0
    """
    return float(-np.log(_fractions(values).max())) + 0.0


def _fractions(values: np.ndarray) -> np.ndarray:
    s = np.asarray(values, dtype=np.float64)
    if s.ndim != 1 or not len(s) or not np.isfinite(s).all() or (s < 0).any() or not s.any():
        raise DataError(
            f"expected singular values, one or more, not negative, not all zero; got {s.shape}",
            fix="singular_values(features)",
        )
    return np.asarray(s / s.sum())


def check_features(features: np.ndarray) -> np.ndarray:
    """Check that features are finite numbers ``[n, d]`` and not empty; return them as an array."""
    x = np.asarray(features)
    if x.ndim != 2 or x.dtype.kind not in "fiu" or not x.size:
        raise DataError(
            f"expected features [n, d] of numbers, got {x.dtype}{list(x.shape)}",
            fix="one row a sample, one column a feature",
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise DataError(
            f"features are NaN or infinite: rows {format_ids(bad)}", fix="remove these rows"
        )
    return x
