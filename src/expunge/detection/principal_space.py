"""Standardised features, or their principal components, in which neighbours are searched. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from expunge._core.arrays import AnyFloats, Ints
from expunge._core.rng import subsample
from expunge.detection.lda import safe_scale
from expunge.detection.neighbours import principal_projection

# Features become at most this many principal components. They are computed from as many samples as
# have this size, but from at least this number.
MAX_COMPONENTS, MAX_REFERENCE_BYTES, MIN_REFERENCE_SAMPLES = 60, 2**27, 20_000
# Components of more samples than fit into this are computed again whenever they are needed.
MAX_SPACE_BYTES = 2**26


class Space:
    """Standardised columns, or their first 60 principal components, for nearest neighbours.

    Rows are read by position, ``float32[b, d]``. They are computed once if all of them are small,
    else whenever they are read.

    Parameters
    ----------
    features
        ``float[n, d]``.
    """

    def __init__(self, features: AnyFloats) -> None:
        n, d = features.shape
        most = max(MAX_REFERENCE_BYTES // (4 * d), MIN_REFERENCE_SAMPLES)
        self._n: int = n
        self._project = _projection(features, subsample(n, most, 0, "components"))
        self._rows: AnyFloats | None = None
        if 4 * n * min(d, MAX_COMPONENTS) <= MAX_SPACE_BYTES:
            self._rows = self._project(slice(None)).astype(np.float32)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: Ints | slice) -> AnyFloats:
        if self._rows is not None:
            return self._rows[rows]
        projected: AnyFloats = self._project(rows).astype(np.float32)
        return projected


def _projection(features: AnyFloats, reference_rows: Ints) -> Callable[[Ints | slice], AnyFloats]:
    """Return a function that standardises rows, or gives their principal components."""
    if features.shape[1] > MAX_COMPONENTS:
        return principal_projection(features, reference_rows, MAX_COMPONENTS)
    is_whole = isinstance(features, np.ndarray) and len(reference_rows) == len(features)
    reference = features if is_whole else features[reference_rows]
    location = reference.mean(axis=0, dtype=np.float64)
    scale = safe_scale(reference.std(axis=0, dtype=np.float64), location)

    def standardised(rows: Ints | slice) -> AnyFloats:
        found: AnyFloats = (features[rows] - location) / scale
        return found

    return standardised
