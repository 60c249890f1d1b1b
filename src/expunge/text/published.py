"""The published scores: relative Mahalanobis distance of encoder states (arXiv 2212.09928).

Beside it the plain distance, which knows no background. All states are means of the encoder's final
hidden states, every sentence encoded in the context of its document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge._core.progress import Progress, silent
from expunge.errors import DataError
from expunge.text.encoders import Encoder, TokenStates, encoded
from expunge.text.gaussians import Gaussian
from expunge.text.states import Segments, left_out, segmented

Distance = Literal["relative", "plain"]
Granularity = Literal["sentence", "leave-one-sentence-out", "leave-one-token-out"]
# Documents that are encoded at once.
TOGETHER = 16


@dataclass(frozen=True)
class Distances:
    """Gaussians of sentences and of documents, in the domain and in the background.

    ``MD(z) = (z − μ)ᵀ Σ⁻¹ (z − μ)`` and ``RMD(z) = MD_in(z) − MD_background(z)``; covariances are
    Ledoit and Wolf's, in float64: our choice.
    """

    sentence: Gaussian
    sentence_background: Gaussian
    document: Gaussian
    document_background: Gaussian

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        inside: Sequence[str],
        background: Sequence[str],
        *,
        progress: Progress = silent,
    ) -> Distances:
        """One encoder pass over all documents. DataError for less than two that have tokens."""
        sentence, document = _gaussians(encoder, inside, "in-domain documents", progress)
        others = _gaussians(encoder, background, "background documents", progress)
        return cls(sentence, others[0], document, others[1])

    def scores(
        self, document: str, tokens: TokenStates, *, distance: Distance, granularity: Granularity
    ) -> tuple[Segments, np.ndarray, np.ndarray]:
        """Segments, and scores of the sentences ``float64[s]`` and of the tokens ``float64[t]``.

        sentence: the distance of the sentence's mean state, which its tokens share.
        leave-one-sentence-out: by how much the document's distance falls without the sentence's
        tokens, which share it. leave-one-token-out: the same by token; a sentence has the mean of
        its tokens. Tokens are left out of the mean, not encoded anew (the cheap form).
        A sentence without tokens says nothing and stands at the in-domain mean; so does what is
        left of a document when all is left out. Cost: d² a sentence or token.
        """
        parts = segmented(document, tokens)
        if granularity == "sentence":
            means = np.where(parts.counts[:, None] > 0, parts.means, self.sentence.mean)
            found = self._distance(means, distance, of="sentence")
        elif granularity == "leave-one-sentence-out":
            found = self._drop(*left_out(parts.means, parts.counts), distance)
        else:
            states = tokens.states[: len(parts.of)].astype(np.float64)
            by_token = self._drop(*left_out(states, np.ones(len(states), dtype=np.int64)), distance)
            return parts, parts.averages(by_token), by_token
        return parts, found, found[parts.of]

    def _drop(self, mean: np.ndarray, without: np.ndarray, distance: Distance) -> np.ndarray:
        mean, without = (
            np.where(np.isfinite(z), z, self.document.mean) for z in (mean[None], without)
        )
        whole = self._distance(mean, distance, of="document")
        return whole - self._distance(without, distance, of="document")

    def _distance(self, z: np.ndarray, distance: Distance, *, of: str) -> np.ndarray:
        inside: Gaussian = getattr(self, of)
        if distance == "plain":
            return inside.distance(z)
        others: Gaussian = getattr(self, f"{of}_background")
        return inside.distance(z) - others.distance(z)

    def tensors(self) -> dict[str, np.ndarray]:
        """All numbers by name."""
        return {
            f"{name}.{part}": array
            for name, gaussian in vars(self).items()
            for part, array in vars(gaussian).items()
        }

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> Distances:
        """The reverse of `tensors`."""
        names = cls.__dataclass_fields__
        return cls(**{n: Gaussian(tensors[f"{n}.mean"], tensors[f"{n}.basis"]) for n in names})


def _gaussians(
    encoder: Encoder, documents: Sequence[str], what: str, progress: Progress
) -> tuple[Gaussian, Gaussian]:
    sentences, means = [], []
    for number, (document, tokens) in enumerate(read(encoder, documents)):
        progress(f"reading {what}", number + 1, len(documents))
        parts = segmented(document, tokens)
        sentences.append(parts.means[parts.counts > 0])
        if len(parts.of):
            means.append(tokens.states.mean(axis=0, dtype=np.float64))
    if len(means) < 2:
        raise DataError(f"{len(means)} of {len(documents)} {what} have tokens: two at least")
    return Gaussian.fit(np.concatenate(sentences)), Gaussian.fit(np.array(means))


def read(encoder: Encoder, documents: Sequence[str]) -> Iterator[tuple[str, TokenStates]]:
    """Every document with its token states, a few encoded at a time."""
    for start in range(0, len(documents), TOGETHER):
        some = documents[start : start + TOGETHER]
        yield from zip(some, encoded(encoder, some, first=start), strict=True)
