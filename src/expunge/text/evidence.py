"""What the combined score measures of each sentence, and the models that it compares with.

Every sentence is encoded alone. In the context of its document, the states of a foreign sentence
become similar to those of its neighbours, which hides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge._core.progress import Progress, silent
from expunge.errors import DataError
from expunge.text.characters import CharacterModel
from expunge.text.encoders import Encoder, encode_spans
from expunge.text.gaussians import Gaussian
from expunge.text.sentences import split_sentences
from expunge.text.states import group_by_span

LengthUnit = Literal["tokens", "characters"]

# The evidence, and the unit of length by which it is normalised.
EVIDENCE: Mapping[str, LengthUnit] = {
    "relative": "tokens",
    "plain": "tokens",
    "token_relative": "tokens",
    "token_plain": "tokens",
    "surprisal": "characters",
    "relative_surprisal": "characters",
    "incoherence": "tokens",
}
# Tokens that a Gaussian of tokens is fitted to, about; and how many of them one document gives,
# evenly spaced.
N_TOKENS, MIN_DOCUMENT_TOKENS, MAX_DOCUMENT_TOKENS = 100_000, 8, 64
# Sentences that are encoded at once, so that memory does not grow with the document; and how far
# apart two sentences are compared.
BLOCK_SIZE = 256
# The most similar sentences that a sentence is compared with.
N_NEIGHBOURS = 3


@dataclass(frozen=True)
class Evidence:
    """The measurements of one document with sentences.

    Parameters
    ----------
    spans
        ``int64[s, 2]``: start and end of every sentence.
    values
        ``float64[s]`` by the names in `EVIDENCE`; NaN for a sentence without tokens.
    lengths
        ``int64[s]``: the numbers of ``tokens`` and ``characters`` of every sentence.
    tokens
        ``int64[t, 2]``: start and end of every token.
    token_surprisal, token_distance
        ``float64[t]``: mean surprisal of the characters, and distance of the state from the domain.
    means
        ``float32[s, d]``: mean states less the in-domain mean.
    """

    spans: np.ndarray
    values: Mapping[str, np.ndarray]
    lengths: Mapping[LengthUnit, np.ndarray]
    tokens: np.ndarray
    token_surprisal: np.ndarray
    token_distance: np.ndarray
    means: np.ndarray


@dataclass(frozen=True)
class DomainModels:
    """Gaussians of states and n-grams of characters, in the domain and in the background."""

    sentence: Gaussian
    sentence_background: Gaussian
    token: Gaussian
    token_background: Gaussian
    characters: CharacterModel
    characters_background: CharacterModel

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        in_domain: Sequence[str],
        background: Sequence[str],
        *,
        progress: Progress = silent,
    ) -> DomainModels:
        """Fit all models. Cost: one encoder pass over the documents."""
        inside = _fit_gaussians(encoder, in_domain, "in-domain", progress)
        outside = _fit_gaussians(encoder, background, "background", progress)
        return cls(
            *(inside[0], outside[0], inside[1], outside[1]),
            *(CharacterModel.fit(in_domain), CharacterModel.fit(background)),
        )

    def measure(self, encoder: Encoder, document: str, *, number: int = 0) -> Evidence:
        """Measure each sentence of a document alone: all evidence but the incoherence.

        Parameters
        ----------
        encoder
            The encoder that the models were fitted with.
        document
            A text with one sentence or more.
        number
            The number of the document, for messages.

        Notes
        -----
        Cost: one encoder pass over every sentence, and O(d²) a token.
        """
        spans = split_sentences(document)
        surprisal = _cumulative(self.characters.surprisal(document))
        background = _cumulative(self.characters_background.surprisal(document))
        blocks = [
            self._measure_states(encoder, document, spans[i : i + BLOCK_SIZE], number)
            for i in range(0, len(spans), BLOCK_SIZE)
        ]
        found = {k: np.concatenate([b[k] for b in blocks]) for k in blocks[0]}
        length = np.maximum(spans[:, 1] - spans[:, 0], 1)
        mean_surprisal = _sums(surprisal, spans) / length
        tokens = found["tokens"]
        values = {k: found[k] for k in ("relative", "plain", "token_relative", "token_plain")}
        values["surprisal"] = mean_surprisal
        values["relative_surprisal"] = mean_surprisal - _sums(background, spans) / length
        return Evidence(
            spans,
            values,
            {"tokens": found["counts"], "characters": length},
            tokens,
            _sums(surprisal, tokens) / np.maximum(tokens[:, 1] - tokens[:, 0], 1),
            found["distance"],
            found["means"],
        )

    def _measure_states(
        self, encoder: Encoder, document: str, spans: np.ndarray, number: int
    ) -> dict[str, np.ndarray]:
        """The evidence of the states of some sentences."""
        tokens = encode_spans(encoder, document, spans, number=number)
        segments = group_by_span(spans, tokens)
        has_tokens = segments.counts > 0
        means = np.where(has_tokens[:, None], segments.means, self.sentence.mean)
        distance = self.sentence.distance(means)
        states = tokens.states[: len(segments.sentence_of)]
        token_distance = self.token.distance(states)
        background = self.token_background.distance(states)
        values = {
            "relative": distance - self.sentence_background.distance(means),
            "plain": distance,
            "token_relative": segments.average(token_distance - background),
            "token_plain": segments.average(token_distance),
        }
        return {
            **{name: np.where(has_tokens, value, np.nan) for name, value in values.items()},
            "counts": segments.counts,
            "means": (means - self.sentence.mean).astype(np.float32),
            "tokens": tokens.offsets[: len(segments.sentence_of)],
            "distance": token_distance,
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """All numbers by name."""
        found: dict[str, np.ndarray] = {}
        for name, model in vars(self).items():
            found |= {f"{name}.{k}": v for k, v in vars(model).items()}
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> DomainModels:
        """The reverse of `tensors`."""

        def gaussian(name: str) -> Gaussian:
            return Gaussian(tensors[f"{name}.mean"], tensors[f"{name}.basis"])

        return cls(
            gaussian("sentence"),
            gaussian("sentence_background"),
            gaussian("token"),
            gaussian("token_background"),
            CharacterModel(tensors["characters.counts"]),
            CharacterModel(tensors["characters_background.counts"]),
        )


def incoherence(means: np.ndarray, is_excluded: np.ndarray) -> np.ndarray:
    """Minus the mean cosine of each sentence with the three sentences most similar to it.

    Parameters
    ----------
    means
        ``float[s, d]``: centred mean states of the sentences, in order.
    is_excluded
        ``bool[s]``: sentences that the others are not compared with.

    Returns
    -------
    np.ndarray
        ``float64[s]`` in [−1, 1]; NaN if there is no other sentence, and for a mean of zero.

    Notes
    -----
    A sentence is compared with those of its own block of 256, and of 256 before and after it.
    Cost: O(768 d) a sentence.

    Examples
    --------
    >>> means = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> incoherence(means, np.array([False, False, True])).tolist()
    [-1.0, -1.0, -0.0]
    """
    length = np.linalg.norm(means, axis=1, keepdims=True)
    z = means.astype(np.float64) / np.maximum(length, 1e-12)
    is_zero = length[:, 0] == 0
    found = np.zeros(len(z))
    for start in range(0, len(z), BLOCK_SIZE):
        rows = np.arange(start, min(start + BLOCK_SIZE, len(z)))
        others = np.arange(max(0, start - BLOCK_SIZE), min(int(rows[-1]) + 1 + BLOCK_SIZE, len(z)))
        others = others[~(is_excluded | is_zero)[others]]
        cosine = z[rows] @ z[others].T
        cosine[rows[:, None] == others] = -np.inf
        top = -np.sort(-cosine, axis=1)[:, :N_NEIGHBOURS]
        is_known = np.isfinite(top)
        count = is_known.sum(axis=1)
        sums = np.where(is_known, top, 0).sum(axis=1)
        found[rows] = np.where((count > 0) & ~is_zero[rows], -sums / np.maximum(count, 1), np.nan)
    return found


def _fit_gaussians(
    encoder: Encoder, documents: Sequence[str], what: str, progress: Progress
) -> tuple[Gaussian, Gaussian]:
    """Gaussians of the mean states of all sentences, and of the states of some tokens."""
    means, tokens = [], []
    n_tokens = min(MAX_DOCUMENT_TOKENS, max(MIN_DOCUMENT_TOKENS, N_TOKENS // len(documents)))
    for number, document in enumerate(documents):
        spans = split_sentences(document)
        for i in range(0, len(spans), BLOCK_SIZE):
            block = spans[i : i + BLOCK_SIZE]
            found = encode_spans(encoder, document, block, number=number)
            segments = group_by_span(block, found)
            means.append(segments.means[segments.counts > 0])
            tokens.append(_evenly_spaced(found.states, n_tokens))
        progress(f"reading {what} documents", number + 1, len(documents))
    if sum(map(len, means)) < 2:
        raise DataError(
            f"fewer than two sentences of the {what} documents have tokens",
            fix="give more documents",
        )
    return Gaussian.fit(np.concatenate(means)), Gaussian.fit(np.concatenate(tokens))


def _evenly_spaced(states: np.ndarray, n: int) -> np.ndarray:
    """At most ``n`` of the rows."""
    if len(states) <= n:
        return states
    return np.asarray(states[np.linspace(0, len(states) - 1, n).astype(np.int64)])


def _cumulative(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.r_[0.0, np.cumsum(values)])


def _sums(cumulative: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """The sum of the values within each span."""
    return np.asarray(cumulative[spans[:, 1]] - cumulative[spans[:, 0]])
