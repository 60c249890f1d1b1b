"""Token states put together by sentence, and by document with parts left out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.text.encoders import TokenStates
from expunge.text.sentences import sentences


@dataclass(frozen=True)
class Segments:
    """A document's tokens by sentence.

    spans: ``int64[s, 2]``. of: ``int64[t]``, the sentence of every token. counts: ``int64[s]``
    tokens of every sentence. means: ``float64[s, d]``, zero for a sentence without tokens.
    """

    spans: np.ndarray
    of: np.ndarray
    counts: np.ndarray
    means: np.ndarray

    def averages(self, by_token: np.ndarray) -> np.ndarray:
        """``float64[s]``: the mean over every sentence's tokens; 0 for a sentence without."""
        sums = np.bincount(self.of, by_token, minlength=len(self.spans))
        return sums / np.maximum(self.counts, 1)


def segmented(document: str, tokens: TokenStates) -> Segments:
    """A token belongs to the sentence that its last character stands in, or stands behind.

    Some tokenizers count the blank before a word to it; one before the first belongs to the first.
    """
    return grouped(sentences(document), tokens)


def grouped(spans: np.ndarray, tokens: TokenStates) -> Segments:
    """The same for sentences that are known already."""
    if not len(spans):
        nothing = np.zeros(0, dtype=np.int64)
        return Segments(spans, nothing, nothing, np.zeros((0, tokens.states.shape[1])))
    last = np.maximum(tokens.offsets[:, 1] - 1, tokens.offsets[:, 0])
    of = np.searchsorted(spans[:, 0], last, side="right") - 1
    of = np.maximum(of, 0)
    counts = np.bincount(of, minlength=len(spans))
    sums = np.zeros((len(spans), tokens.states.shape[1]))
    np.add.at(sums, of, tokens.states)
    return Segments(spans, of, counts, sums / np.maximum(counts, 1)[:, None])


def left_out(parts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean state of a document, and its mean without each part: ``[d]``, ``[parts, d]``.

    parts: ``float[parts, d]`` mean states. counts: their tokens. Only the mean is taken anew, the
    tokens are not encoded again: the cheap form, one encoder pass in all. What is left when
    nothing is left is NaN, and so is the mean of nothing.
    """
    weights = counts.astype(np.float64)[:, None]
    total = (weights * parts).sum(axis=0)
    rest = weights.sum() - weights
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / weights.sum()
        without = np.where(rest > 0, (total - weights * parts) / rest, np.nan)
    return mean, without
