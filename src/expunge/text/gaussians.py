"""Normal distributions of states, and how far a state is from them. Pure, float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf

from expunge.errors import DataError

# Rows are taken so many at a time, so that memory does not grow with their number.
_PIECE = 8192


@dataclass(frozen=True)
class Gaussian:
    """mean: ``float64[d]``. basis: ``float64[d, d]`` with ``Σ⁻¹ = basis · basisᵀ``."""

    mean: np.ndarray
    basis: np.ndarray

    @classmethod
    def fit(cls, states: np.ndarray) -> Gaussian:
        """Mean and Ledoit–Wolf covariance (DOI 10.1016/S0047-259X(03)00096-4) of ``float[n, d]``.

        ``Σ = (1 − δ) S + δ (tr S / d) I`` with the δ that is expected to be nearest the truth, so
        that it can be inverted with fewer rows than columns. Constant columns do no harm.
        DataError for fewer than two rows. Cost: d²n + d³.
        """
        if len(states) < 2:
            raise DataError(f"a Gaussian needs two states or more, not {len(states)}")
        x = states.astype(np.float64)
        mean = x.mean(axis=0)
        covariance, _ = ledoit_wolf(x - mean, assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        floor = max(1e-10 * float(values.max()), 1e-12)
        return cls(mean, vectors / np.sqrt(np.maximum(values, floor)))

    def distance(self, states: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance ``(z − μ)ᵀ Σ⁻¹ (z − μ)``, ``float64[n]`` of ``[n, d]``."""
        pieces = [states[i : i + _PIECE] for i in range(0, len(states), _PIECE)]
        found = [np.square((p - self.mean) @ self.basis).sum(axis=1) for p in pieces]
        return np.concatenate([np.empty(0), *found])
