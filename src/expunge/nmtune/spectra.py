"""The singular spectrum of features, and two numbers of it that tell how they transfer.

After arXiv 2309.17002: label noise in pre-training raises both numbers; a higher entropy helps in
the domain up to a point, a weaker first direction hurts outside of it.
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
    """The singular values ``s_1 ≥ s_2 ≥ …`` of features, ``float64[min(n, d)]``.

    features: ``float[n, d]``, a row a sample. normalise: scale each row to length 1 before
    (rows of zeros stay). centre: what is subtracted then: nothing, each column's mean over the
    samples, or each row's own mean (as the published code does). DataError for another shape,
    no samples, NaN or infinity. Cost: ``n · d · min(n, d)``, in float64.

    >>> singular_values(np.diag([3.0, 4.0]))
    array([4., 3.])
    """
    x = checked(features).astype(np.float64)
    if normalise:
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(length > 0, length, 1.0)
    if centre == "columns":
        x = x - x.mean(axis=0)
    elif centre == "rows":
        x = x - x.mean(axis=1, keepdims=True)
    elif centre != "none":
        raise ConfigError(f"there is no centre '{centre}'", fix="none, columns or rows")
    return torch.linalg.svdvals(torch.from_numpy(x)).numpy()


def sve(values: np.ndarray) -> float:
    """Singular value entropy: ``−Σ p_i ln p_i`` with ``p_i = s_i / Σ s``, in [0, ln min(n, d)].

    values: singular values, none negative and not all zero, else DataError. High where features
    span many directions evenly.

    >>> round(sve(np.ones(8)) / np.log(8), 6)
    1.0
    """
    p = _shares(values)
    return float(-(p * np.log(np.where(p > 0, p, 1.0))).sum()) + 0.0


def lsvr(values: np.ndarray) -> float:
    """Largest singular value ratio: ``−ln(s_1 / Σ s)``, in [0, ln min(n, d)].

    values: as for `sve`. High where the first direction stands out little.

    >>> lsvr(np.array([5.0, 0.0]))
    0.0
    """
    return float(-np.log(_shares(values).max())) + 0.0


def _shares(values: np.ndarray) -> np.ndarray:
    s = np.asarray(values, dtype=np.float64)
    if s.ndim != 1 or not len(s) or not np.isfinite(s).all() or (s < 0).any() or not s.any():
        raise DataError(
            f"expected singular values, one or more, not negative, not all zero; got {s.shape}",
            fix="singular_values(features)",
        )
    return s / s.sum()


def checked(features: np.ndarray) -> np.ndarray:
    """The features, if they are finite numbers ``[n, d]`` and not empty; else DataError."""
    x = np.asarray(features)
    if x.ndim != 2 or x.dtype.kind not in "fiu" or not x.size:
        raise DataError(
            f"expected features [n, d] of numbers, got {x.dtype}{list(x.shape)}",
            fix="one row a sample, one column a feature",
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise DataError(
            f"features are NaN or infinite: rows {format_ids(bad)}", fix="leave them out"
        )
    return x
