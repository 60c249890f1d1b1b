"""Token states averaged by sentence, and by document with parts left out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.text.encoders import TokenStates
from expunge.text.sentences import split_sentences


@dataclass(frozen=True)
class Segments:
    """The tokens of a document by sentence.

    Parameters
    ----------
    spans
        ``int64[s, 2]``: start and end of every sentence.
    sentence_of
        ``int64[t]``: the sentence of every token.
    counts
        ``int64[s]``: the number of tokens of every sentence.
    means
        ``float64[s, d]``: mean token state; zero for a sentence without tokens.
    """

    spans: np.ndarray
    sentence_of: np.ndarray
    counts: np.ndarray
    means: np.ndarray

    def average(self, by_token: np.ndarray) -> np.ndarray:
        """Average a quantity of tokens by sentence, ``float64[s]``; 0 if it has no tokens."""
        sums = np.bincount(self.sentence_of, by_token, minlength=len(self.spans))
        return np.asarray(sums / np.maximum(self.counts, 1))


def group_by_sentence(document: str, tokens: TokenStates) -> Segments:
    """Group the tokens of a document by sentence.

    A token belongs to the sentence that contains its last character, or that ends before it. Some
    tokenizers include the blank before a word; a token before the first sentence belongs to it.
    """
    return group_by_span(split_sentences(document), tokens)


def group_by_span(spans: np.ndarray, tokens: TokenStates) -> Segments:
    """Group tokens by sentences of which the spans are known; see `group_by_sentence`."""
    if not len(spans):
        empty = np.zeros(0, dtype=np.int64)
        return Segments(spans, empty, empty, np.zeros((0, tokens.states.shape[1])))
    last = np.maximum(tokens.offsets[:, 1] - 1, tokens.offsets[:, 0])
    sentence_of = np.searchsorted(spans[:, 0], last, side="right") - 1
    sentence_of = np.maximum(sentence_of, 0)
    counts = np.bincount(sentence_of, minlength=len(spans))
    sums = np.zeros((len(spans), tokens.states.shape[1]))
    np.add.at(sums, sentence_of, tokens.states)
    return Segments(spans, sentence_of, counts, sums / np.maximum(counts, 1)[:, None])


def leave_one_out_means(parts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean state of a document, and its mean without each of its parts.

    Only the mean changes; the remaining tokens are not encoded again. Cost: one encoder pass in
    all.

    Parameters
    ----------
    parts
        ``float64[p, d]``: mean states.
    counts
        ``int64[p]``: numbers of tokens.

    Returns
    -------
    mean, without
        ``float64[d]`` and ``float64[p, d]``; NaN if no tokens remain.
    """
    weights = counts.astype(np.float64)[:, None]
    total = (weights * parts).sum(axis=0)
    rest = weights.sum() - weights
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / weights.sum()
        without = np.where(rest > 0, (total - weights * parts) / rest, np.nan)
    return mean, without
