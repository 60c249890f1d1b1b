"""Normal distributions of states, and Mahalanobis distances from them. Pure, float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.errors import DataError

# Rows of which distances are computed at once, so that memory does not grow with their number.
_CHUNK_SIZE = 8192


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of states.

    Parameters
    ----------
    mean
        ``float64[d]``.
    basis
        ``float64[d, d]`` with ``Σ⁻¹ = basis · basisᵀ``.
    """

    mean: np.ndarray
    basis: np.ndarray

    @classmethod
    def fit(cls, states: np.ndarray) -> Gaussian:
        """Estimate mean and Ledoit–Wolf covariance.

        ``Σ = (1 − δ) S + δ (tr S / d) I`` with the sample covariance ``S`` and the δ of the least
        expected squared error, so that Σ is invertible with fewer rows than columns.

        Parameters
        ----------
        states
            ``float[n, d]``, two rows or more. Columns may be constant.

        Raises
        ------
        DataError
            For fewer than two rows.

        Notes
        -----
        Cost: O(d² n + d³).

        References
        ----------
        Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4.
        """
        from sklearn.covariance import ledoit_wolf

        if len(states) < 2:
            raise DataError(f"expected two states or more to fit a Gaussian, got {len(states)}")
        x = states.astype(np.float64)
        mean = x.mean(axis=0)
        covariance, _ = ledoit_wolf(x - mean, assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        floor = max(1e-10 * float(values.max()), 1e-12)
        return cls(mean, vectors / np.sqrt(np.maximum(values, floor)))

    def distance(self, states: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distances ``(z − μ)ᵀ Σ⁻¹ (z − μ)``, ``float64[n]`` of ``[n, d]``.

        Examples
        --------
        >>> Gaussian(np.array([1.0]), np.array([[0.5]])).distance(np.array([[3.0], [1.0]])).tolist()
        [1.0, 0.0]
        """
        chunks = [states[i : i + _CHUNK_SIZE] for i in range(0, len(states), _CHUNK_SIZE)]
        found = [np.square((x - self.mean) @ self.basis).sum(axis=1) for x in chunks]
        return np.concatenate([np.empty(0), *found])
