"""How surprising characters are after those before them: n-grams, learned from documents. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from expunge.errors import DataError

ORDER = 5
# Slots of each order's table of counts. Few n-grams of some megabytes of text share one.
SLOTS = 1 << 20
# So much does the shorter context weigh, in counts.
PRIOR = 4.0
# Different characters that Unicode has room for.
CHARACTERS = 0x110000
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class CharacterModel:
    """counts: ``int32[ORDER + 1, SLOTS]``, of the n-grams of 0 … ORDER characters by their hash.

    ``p_k(x | c) = (n(c x) + λ p_{k−1}(x)) / (n(c) + λ)`` for the k − 1 characters c before x, down
    to ``p_0 = 1 / 1,114,112``, λ = 4. White space of any sort is a blank, any digit a 0: neither
    layout nor numbers count.
    """

    counts: np.ndarray

    @classmethod
    def fit(cls, documents: Iterable[str]) -> CharacterModel:
        """Count the n-grams of all documents. DataError if they have no characters.

        Cost: ORDER passes of NumPy; 25 MB.
        """
        counts = np.zeros((ORDER + 1, SLOTS), dtype=np.int64)
        for document in documents:
            codes = _codes(document)
            for k in range(ORDER + 1):
                np.add.at(counts[k], _slots(codes, k), 1)
        if not counts[0].any():
            raise DataError("the documents have no characters")
        return cls(counts.clip(max=np.iinfo(np.int32).max).astype(np.int32))

    def surprise(self, document: str) -> np.ndarray:
        """``−ln p`` of every character given those before it, ``float64[characters]``."""
        codes = _codes(document)
        before = np.r_[np.uint64(32), codes][: len(codes)]
        p = np.full(len(codes), 1 / CHARACTERS)
        for k in range(1, ORDER + 1):
            whole = self.counts[k][_slots(codes, k)]
            # The context of x is the (k − 1)-gram that ends before it.
            context = self.counts[k - 1][_slots(before, k - 1)]
            # Other n-grams in the same slot must not make more than all of the context.
            whole = np.minimum(whole, context)
            p = (whole + PRIOR * p) / (context + PRIOR)
        return -np.log(p)


def _codes(document: str) -> np.ndarray:
    """``uint64`` of every character."""
    codes = np.frombuffer(document.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    codes = codes.astype(np.uint64)
    codes[(codes <= 32) | (codes == 0xA0)] = 32
    codes[(codes >= 48) & (codes <= 57)] = 48
    return codes


def _slots(codes: np.ndarray, k: int) -> np.ndarray:
    """The slot of the k-gram that ends at each character; blanks stand before the first."""
    hashed = np.full(len(codes), k, dtype=np.uint64)
    padded = np.r_[np.full(k, 32, dtype=np.uint64), codes]
    for i in range(k):
        hashed = (hashed ^ padded[1 + i : 1 + i + len(codes)]) * _MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
    return (hashed >> np.uint64(20)).astype(np.int64) % SLOTS
