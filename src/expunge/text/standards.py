"""What is usual among clean sentences of about the same length. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.errors import DataError

# Groups of sentences by length, and how many sentences a group has at least.
GROUPS, FEWEST = 8, 25
# Share of a normal distribution within one deviation above its middle, and below.
_ABOVE, _BELOW = 0.8413, 0.1587


@dataclass(frozen=True)
class Standard:
    """Middle and spread of a quantity at some lengths, ``float64[k]`` each.

    A mean over few tokens varies more than one over many, and short sentences are other sentences
    (headlines, "he said"): what is unusual depends on the length.
    """

    lengths: np.ndarray
    middle: np.ndarray
    above: np.ndarray
    below: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, lengths: np.ndarray) -> Standard:
        """Median, and distances to the 84th and 16th percentile, in groups of equal size by length.

        values: ``float[n]`` of clean sentences. lengths: ``int[n]``. DataError for less than two.
        """
        if len(values) < 2:
            raise DataError(f"{len(values)} clean sentences are too few to say what is usual")
        order = np.argsort(lengths, kind="stable")
        groups = np.array_split(order, max(1, min(GROUPS, len(order) // FEWEST)))
        x = np.log1p(np.array([np.median(lengths[g]) for g in groups]))
        low, middle, high = (
            np.array([np.quantile(values[g], q) for g in groups]) for q in (_BELOW, 0.5, _ABOVE)
        )
        # Where most values are the same, the spread of all of them stands in.
        least = max(0.05 * float(values.std()), 1e-9)
        return cls(x, middle, np.maximum(high - middle, least), np.maximum(middle - low, least))

    def of(self, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """``float64[n]``: deviations from the middle in spreads, which vary linearly in
        ``ln(1 + length)`` between the groups and stay as they are outside them.
        """
        x = np.log1p(lengths)
        away = values - np.interp(x, self.lengths, self.middle)
        above = np.interp(x, self.lengths, self.above)
        return away / np.where(away > 0, above, np.interp(x, self.lengths, self.below))
