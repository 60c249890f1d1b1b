"""Surprisal of characters under n-grams of documents. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from expunge.errors import DataError

# The length of the longest n-grams.
MAX_ORDER = 5
# Slots of the hash table of each order. Few n-grams of some megabytes of text share one.
N_SLOTS = 1 << 20
# The weight of the shorter context, in counts.
SMOOTHING = 4.0
# The number of code points of Unicode.
N_CHARACTERS = 0x110000
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class CharacterModel:
    """Smoothed n-grams of characters, of up to 5.

    ``p_k(x | c) = (n(c x) + λ p_{k−1}(x)) / (n(c) + λ)`` for the k − 1 characters c before x, down
    to ``p_0 = 1 / 1,114,112``, with λ = 4. All white space is a blank and all digits are 0, so that
    layout and numbers have no influence.

    Parameters
    ----------
    counts
        ``int32[6, 2²⁰]``: the counts of the n-grams of 0 … 5 characters, by their hash.
    """

    counts: np.ndarray

    @classmethod
    def fit(cls, documents: Iterable[str]) -> CharacterModel:
        """Count the n-grams of all documents.

        Raises
        ------
        DataError
            If the documents have no characters.

        Notes
        -----
        Cost: one pass for each order, in NumPy; 25 MB.
        """
        counts = np.zeros((MAX_ORDER + 1, N_SLOTS), dtype=np.int64)
        for document in documents:
            codes = _codes(document)
            for k in range(MAX_ORDER + 1):
                np.add.at(counts[k], _slots(codes, k), 1)
        if not counts[0].any():
            raise DataError("the documents have no characters")
        return cls(counts.clip(max=np.iinfo(np.int32).max).astype(np.int32))

    def surprisal(self, document: str) -> np.ndarray:
        """``−ln p`` of every character given the 4 before it, ``float64[characters]``.

        Examples
        --------
        >>> model = CharacterModel.fit(["abab abab"])
        >>> model.surprisal("ab")[1] < model.surprisal("ax")[1]
        np.True_
        """
        codes = _codes(document)
        before = np.r_[np.uint64(32), codes][: len(codes)]
        p = np.full(len(codes), 1 / N_CHARACTERS)
        for k in range(1, MAX_ORDER + 1):
            whole = self.counts[k][_slots(codes, k)]
            # The context of x is the (k − 1)-gram that ends before it.
            context = self.counts[k - 1][_slots(before, k - 1)]
            # Without this, other n-grams in the slot could exceed the count of the context.
            whole = np.minimum(whole, context)
            p = (whole + SMOOTHING * p) / (context + SMOOTHING)
        return np.asarray(-np.log(p))


def _codes(document: str) -> np.ndarray:
    """``uint64`` of every character."""
    codes = np.frombuffer(document.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    codes = codes.astype(np.uint64)
    codes[(codes <= 32) | (codes == 0xA0)] = 32
    codes[(codes >= 48) & (codes <= 57)] = 48
    return codes


def _slots(codes: np.ndarray, k: int) -> np.ndarray:
    """The slot of the k-gram that ends at each character; blanks precede the first."""
    hashed = np.full(len(codes), k, dtype=np.uint64)
    padded = np.r_[np.full(k, 32, dtype=np.uint64), codes]
    for i in range(k):
        hashed = (hashed ^ padded[1 + i : 1 + i + len(codes)]) * _MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
    return (hashed >> np.uint64(20)).astype(np.int64) % N_SLOTS
