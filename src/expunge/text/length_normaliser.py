"""Sentence statistics in units of their spread among clean sentences of the same length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.errors import DataError

# Groups of sentences by length, at most, and the fewest sentences of a group.
MAX_GROUPS, MIN_GROUP_SIZE = 8, 25
# Quantiles of a normal distribution one standard deviation above and below its median.
_UPPER_QUANTILE, _LOWER_QUANTILE = 0.8413, 0.1587


@dataclass(frozen=True)
class LengthNormaliser:
    """Median and spread of a quantity as functions of the sentence length.

    A mean over few tokens varies more than one over many, and short sentences differ from long ones
    (headlines, "he said"). So the reference depends on the length.

    Parameters
    ----------
    lengths
        ``float64[k]``: ``ln(1 + length)`` of each group of lengths, ascending.
    median
        ``float64[k]``.
    upper, lower
        ``float64[k]``: distance from the median to the 84th and to the 16th percentile, above 0.
    """

    lengths: np.ndarray
    median: np.ndarray
    upper: np.ndarray
    lower: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, lengths: np.ndarray) -> LengthNormaliser:
        """Estimate median and spreads in groups of equal size by length.

        Parameters
        ----------
        values
            ``float[n]``, of clean sentences.
        lengths
            ``int[n]``: their lengths.

        Raises
        ------
        DataError
            For fewer than two sentences.
        """
        if len(values) < 2:
            raise DataError(f"expected two clean sentences or more, got {len(values)}")
        order = np.argsort(lengths, kind="stable")
        groups = np.array_split(order, max(1, min(MAX_GROUPS, len(order) // MIN_GROUP_SIZE)))
        x = np.log1p(np.array([np.median(lengths[g]) for g in groups]))
        low, median, high = (
            np.array([np.quantile(values[g], q) for g in groups])
            for q in (_LOWER_QUANTILE, 0.5, _UPPER_QUANTILE)
        )
        # If most values of a group are equal, use the spread of all values.
        floor = max(0.05 * float(values.std()), 1e-9)
        return cls(x, median, np.maximum(high - median, floor), np.maximum(median - low, floor))

    def z_scores(self, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Compute ``(value − median) / spread`` at each length, ``float64[n]``.

        The spread is ``upper`` above the median and ``lower`` below. Both, and the median, are
        linear in ``ln(1 + length)`` between the groups and constant outside of them.

        Examples
        --------
        >>> normaliser = LengthNormaliser(*np.array([[1.0], [5.0], [2.0], [4.0]]))
        >>> normaliser.z_scores(np.array([9.0, 1.0]), np.array([3, 30])).tolist()
        [2.0, -1.0]
        """
        x = np.log1p(lengths)
        deviation = values - np.interp(x, self.lengths, self.median)
        upper = np.interp(x, self.lengths, self.upper)
        lower = np.interp(x, self.lengths, self.lower)
        return np.asarray(deviation / np.where(deviation > 0, upper, lower))
