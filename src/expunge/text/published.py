"""The published scores: relative Mahalanobis distances of encoder states (arXiv 2212.09928).

Also the plain distance, which has no background. States are means of the encoder's final hidden
states; every sentence is encoded in the context of its document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge._core.progress import Progress, silent
from expunge.errors import DataError
from expunge.text.encoders import Encoder, TokenStates, encode_texts
from expunge.text.gaussians import Gaussian
from expunge.text.states import Segments, group_by_sentence, leave_one_out_means

Distance = Literal["relative", "plain"]
Granularity = Literal["sentence", "leave-one-sentence-out", "leave-one-token-out"]
BATCH_SIZE = 16  # documents that are encoded at once


@dataclass(frozen=True)
class MahalanobisScorer:
    """Mahalanobis distances of states, plain or relative to a background.

    ``MD(z) = (z − μ)ᵀ Σ⁻¹ (z − μ)`` and ``RMD(z) = MD_in(z) − MD_background(z)``. The Ledoit–Wolf
    covariance, in float64, is our choice.

    Parameters
    ----------
    sentence, document
        Gaussians of the mean states of sentences and of documents, in the domain.
    sentence_background, document_background
        The same of the background.

    References
    ----------
    Improving the Robustness of Summarization Models by Detecting and Removing Input Noise,
    https://arxiv.org/abs/2212.09928.
    """

    sentence: Gaussian
    sentence_background: Gaussian
    document: Gaussian
    document_background: Gaussian

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        in_domain: Sequence[str],
        background: Sequence[str],
        *,
        progress: Progress = silent,
    ) -> MahalanobisScorer:
        """Fit the Gaussians, in one encoder pass; DataError for fewer than two documents."""
        inside = _fit_gaussians(encoder, in_domain, "in-domain", progress)
        outside = _fit_gaussians(encoder, background, "background", progress)
        return cls(inside[0], outside[0], inside[1], outside[1])

    def score(
        self, document: str, tokens: TokenStates, *, distance: Distance, granularity: Granularity
    ) -> tuple[Segments, np.ndarray, np.ndarray]:
        """Score the sentences and tokens of a document.

        Parameters
        ----------
        document, tokens
            A text and the states of its tokens.
        distance
            ``"relative"`` (RMD) or ``"plain"`` (MD).
        granularity
            ``"sentence"``: the distance of the sentence's mean state. ``"leave-one-sentence-out"``:
            the decrease of the document's distance without the sentence. In both, tokens have the
            score of their sentence. ``"leave-one-token-out"``: the decrease without the token; a
            sentence has the mean of its tokens.

        Returns
        -------
        segments, by_sentence, by_token
            The sentences, ``float64[s]`` and ``float64[t]``.

        Notes
        -----
        Parts are left out of the mean; the rest is not encoded again. A sentence without tokens
        has the in-domain mean as its state, and so has a document without its only part. Cost:
        O(d²) a sentence or token.
        """
        segments = group_by_sentence(document, tokens)
        if granularity == "sentence":
            has_tokens = segments.counts[:, None] > 0
            means = np.where(has_tokens, segments.means, self.sentence.mean)
            found = self._distance(means, distance, level="sentence")
        elif granularity == "leave-one-sentence-out":
            whole = leave_one_out_means(segments.means, segments.counts)
            found = self._decrease(*whole, distance)
        else:
            states = tokens.states[: len(segments.sentence_of)].astype(np.float64)
            whole = leave_one_out_means(states, np.ones(len(states), dtype=np.int64))
            by_token = self._decrease(*whole, distance)
            return segments, segments.average(by_token), by_token
        return segments, found, found[segments.sentence_of]

    def _decrease(self, mean: np.ndarray, without: np.ndarray, distance: Distance) -> np.ndarray:
        """The document's distance minus that without each part."""
        mean, without = (
            np.where(np.isfinite(z), z, self.document.mean) for z in (mean[None], without)
        )
        whole = self._distance(mean, distance, level="document")
        return np.asarray(whole - self._distance(without, distance, level="document"))

    def _distance(
        self, z: np.ndarray, distance: Distance, *, level: Literal["sentence", "document"]
    ) -> np.ndarray:
        in_domain: Gaussian = getattr(self, level)
        if distance == "plain":
            return in_domain.distance(z)
        background: Gaussian = getattr(self, f"{level}_background")
        return np.asarray(in_domain.distance(z) - background.distance(z))

    def tensors(self) -> dict[str, np.ndarray]:
        """All numbers by name."""
        return {
            f"{name}.{part}": array
            for name, gaussian in vars(self).items()
            for part, array in vars(gaussian).items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> MahalanobisScorer:
        """The reverse of `tensors`."""
        names = cls.__dataclass_fields__
        return cls(**{n: Gaussian(tensors[f"{n}.mean"], tensors[f"{n}.basis"]) for n in names})


def _fit_gaussians(
    encoder: Encoder, documents: Sequence[str], what: str, progress: Progress
) -> tuple[Gaussian, Gaussian]:
    """Gaussians of the mean states of all sentences, and of all documents."""
    sentences, means = [], []
    for number, (document, tokens) in enumerate(encode_documents(encoder, documents)):
        progress(f"reading {what} documents", number + 1, len(documents))
        segments = group_by_sentence(document, tokens)
        sentences.append(segments.means[segments.counts > 0])
        if len(segments.sentence_of):
            means.append(tokens.states.mean(axis=0, dtype=np.float64))
    if len(means) < 2:
        raise DataError(
            f"{len(means)} of {len(documents)} {what} documents have tokens, expected two or more"
        )
    return Gaussian.fit(np.concatenate(sentences)), Gaussian.fit(np.array(means))


def encode_documents(
    encoder: Encoder, documents: Sequence[str]
) -> Iterator[tuple[str, TokenStates]]:
    """Encode documents in batches; yield each with its token states."""
    for start in range(0, len(documents), BATCH_SIZE):
        batch = documents[start : start + BATCH_SIZE]
        yield from zip(batch, encode_texts(encoder, batch, first=start), strict=True)
