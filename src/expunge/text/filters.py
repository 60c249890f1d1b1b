"""Find the sentences of a document that do not belong there, and remove them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from expunge._core.progress import Progress, silent
from expunge._core.rng import generator
from expunge.errors import ConfigError, DataError
from expunge.text import filter_files
from expunge.text.combined import CombinedScorer
from expunge.text.encoders import Encoder, check_texts, encode_texts
from expunge.text.published import Granularity, MahalanobisScorer, encode_documents
from expunge.text.scores import FilterConfig, ScoreKind, TextScores
from expunge.text.sentences import split_sentences

# The part of the in-domain documents that is held out for the threshold.
HELD_OUT_FRACTION = 0.2
# Fewer documents than this do not describe a domain.
MIN_IN_DOMAIN_DOCUMENTS = 10


@dataclass(frozen=True)
class TextNoiseFilter:
    """Detects and removes noise in documents, without labels and for any kind of noise.

    After arXiv 2212.09928. The score ``combined`` is our default (`CombinedScorer`); ``relative``
    is the published one, ``plain`` the same without a background (`MahalanobisScorer`). Make one
    with `fit` or `load`.

    Parameters
    ----------
    encoder
        A function from texts to `TokenStates`.
    config
        Kind of score, granularity and quantile.
    scorer
        The fitted score.
    reference_scores
        ``float64[m]`` by kind and granularity: the scores of clean held-out sentences, ascending.
    probe
        ``float64[d]``: the mean state of a fixed text, by which `load` recognises the encoder.

    References
    ----------
    Out-of-distribution detection and selective generation for conditional language models,
    https://arxiv.org/abs/2209.15558; input noise of summarisation, https://arxiv.org/abs/2212.09928.

    Examples
    --------
    >>> filter = TextNoiseFilter.fit(articles, others, encoder=encoder)  # doctest: +SKIP
    >>> filter.clean("Shares rose on Monday. 🎉🎉 x = f(y)")  # doctest: +SKIP
    'Shares rose on Monday.'
    """

    encoder: Encoder
    config: FilterConfig
    scorer: CombinedScorer | MahalanobisScorer
    reference_scores: Mapping[str, np.ndarray]
    probe: np.ndarray

    @classmethod
    def fit(
        cls,
        in_domain_documents: Sequence[str],
        background_documents: Sequence[str],
        *,
        encoder: Encoder,
        kind: ScoreKind = "combined",
        granularity: Granularity = "sentence",
        quantile: float = 0.99,
        seed: int = 0,
        progress: Progress = silent,
    ) -> TextNoiseFilter:
        """Fit the score to clean documents of the domain and to others.

        Parameters
        ----------
        in_domain_documents
            Ten or more clean documents. A fifth of them, drawn by the seed, is held out for the
            threshold. Documents without a visible character are ignored, here and below.
        background_documents
            Two or more documents of general text, none of them in the domain.
        encoder
            Any function from texts to `TokenStates`. With a `HuggingFaceEncoder`, `load` can find
            the encoder by its name.
        kind, granularity, quantile
            See `FilterConfig`.
        seed
            Draws the documents that are held out.
        progress
            Called with the name of the step and the number of documents.

        Returns
        -------
        TextNoiseFilter
            The fitted filter.

        Raises
        ------
        DataError
            For too few documents, and for documents that are not text.
        ConfigError
            If there is no such score.

        Notes
        -----
        Cost: one encoder pass over all documents.
        """
        config = FilterConfig(kind, granularity, quantile)
        in_domain = _non_empty(in_domain_documents, "in-domain documents", MIN_IN_DOMAIN_DOCUMENTS)
        background = _non_empty(background_documents, "background documents", 2)
        order = generator(seed, "text filter", "held out").permutation(len(in_domain))
        n_held_out = max(2, round(HELD_OUT_FRACTION * len(in_domain)))
        held_out, fitted = (
            [in_domain[i] for i in np.sort(rows)]
            for rows in (order[:n_held_out], order[n_held_out:])
        )
        probe = filter_files.encoder_probe(encoder)
        if config.kind == "combined":
            combined, scores = CombinedScorer.fit(
                encoder, fitted, held_out, background, progress=progress
            )
            return cls(encoder, config, combined, {config.score_name: np.sort(scores)}, probe)
        scorer = MahalanobisScorer.fit(encoder, fitted, background, progress=progress)
        return cls(encoder, config, scorer, _reference_scores(scorer, encoder, held_out), probe)

    def with_settings(
        self,
        *,
        kind: ScoreKind | None = None,
        granularity: Granularity | None = None,
        quantile: float | None = None,
    ) -> TextNoiseFilter:
        """Return the filter with another threshold, or another score that it was fitted for.

        A filter that was fitted for ``relative`` or ``plain`` has both, at all granularities.

        Raises
        ------
        ConfigError
            If the filter was not fitted for this score, or the quantile is out of range.
        """
        own = self.config
        config = FilterConfig(
            kind or own.kind,
            granularity or own.granularity,
            own.quantile if quantile is None else quantile,
        )
        if config.score_name not in self.reference_scores:
            raise ConfigError(
                f"the filter was not fitted for '{config.kind}' but for "
                f"{', '.join(self.reference_scores)}",
                fix=f"fit another one with kind='{config.kind}'",
            )
        return replace(self, config=config)

    @property
    def threshold(self) -> float:
        """The score above which a sentence is noise."""
        scores = self.reference_scores[self.config.score_name]
        return float(np.quantile(scores, self.config.quantile))

    def score(self, document: str) -> TextScores:
        """Score the sentences and tokens of one document.

        Parameters
        ----------
        document
            Any text. One without a visible character has no sentences.

        Returns
        -------
        TextScores
            Higher is more likely noise.

        Raises
        ------
        DataError
            If the document is not text.
        ModelError
            If the encoder returns states of a wrong shape, NaN or infinity.

        Notes
        -----
        Cost: one encoder pass over the document.
        """
        return self.score_all([document])[0]

    def score_all(self, documents: Sequence[str]) -> list[TextScores]:
        """Score several documents, in their order; see `score`."""
        texts = check_texts(documents, what="documents")
        found = {i: self._empty(t) for i, t in enumerate(texts) if not len(split_sentences(t))}
        rest = [i for i in range(len(texts)) if i not in found]
        if isinstance(self.scorer, CombinedScorer):
            for i in rest:
                evidence, by_sentence, by_token = self.scorer.score(
                    self.encoder, texts[i], number=i
                )
                found[i] = TextScores(
                    texts[i],
                    evidence.spans,
                    by_sentence,
                    evidence.tokens,
                    by_token,
                    self.threshold,
                    evidence.values,
                )
        else:
            states = encode_texts(self.encoder, [texts[i] for i in rest])
            for i, tokens in zip(rest, states, strict=True):
                segments, by_sentence, by_token = self.scorer.score(
                    texts[i],
                    tokens,
                    distance="plain" if self.config.kind == "plain" else "relative",
                    granularity=self.config.granularity,
                )
                offsets = tokens.offsets[: len(segments.sentence_of)]
                found[i] = TextScores(
                    texts[i], segments.spans, by_sentence, offsets, by_token, self.threshold
                )
        return [found[i] for i in range(len(texts))]

    def clean(self, document: str) -> str:
        """Remove the noise of a document; the other sentences keep every byte.

        Returns an empty text if all sentences are noise. Raises as `score` does.
        """
        return self.score(document).cleaned

    def save(self, folder: str | Path) -> None:
        """Write ``filter.safetensors`` and ``filter.json`` into a folder; create it if necessary.

        The encoder is not saved, only its name and what is needed to recognise it.
        """
        filter_files.save(
            Path(folder),
            encoder=self.encoder,
            config=self.config,
            tensors={f"scorer.{k}": v for k, v in self.scorer.tensors().items()}
            | {f"reference.{k}": v for k, v in self.reference_scores.items()}
            | {"probe": self.probe},
        )

    @classmethod
    def load(
        cls, folder: str | Path, *, encoder: Encoder | None = None, device: str = "cpu"
    ) -> TextNoiseFilter:
        """Load a saved filter.

        Parameters
        ----------
        folder
            The folder that `save` wrote.
        encoder
            The encoder that the filter was fitted with. None: the one of the saved name.
        device
            Where an encoder that is loaded by its name runs.

        Raises
        ------
        ModelError
            If the folder has no filter, a damaged one or one of another format, or the encoder is
            another one.
        """
        config, tensors, encoder = filter_files.load(Path(folder), encoder, device=device)
        scorer_type = CombinedScorer if config.kind == "combined" else MahalanobisScorer
        scorer = scorer_type.from_tensors(filter_files.with_prefix(tensors, "scorer."))
        reference = filter_files.with_prefix(tensors, "reference.")
        return cls(encoder, config, scorer, reference, tensors["probe"])

    def _empty(self, text: str) -> TextScores:
        values, spans = np.zeros(0), np.zeros((0, 2), dtype=np.int64)
        return TextScores(text, spans, values, spans, values, self.threshold)


def _reference_scores(
    scorer: MahalanobisScorer, encoder: Encoder, documents: Sequence[str]
) -> dict[str, np.ndarray]:
    """The scores of clean sentences, ascending, by kind and granularity."""
    found: dict[str, list[np.ndarray]] = {}
    for document, tokens in encode_documents(encoder, documents):
        for kind in ("relative", "plain"):
            for granularity in get_args(Granularity):
                name = FilterConfig(kind, granularity).score_name
                _, scores, _ = scorer.score(
                    document, tokens, distance=kind, granularity=granularity
                )
                found.setdefault(name, []).append(scores)
    return {name: np.sort(np.concatenate(scores)) for name, scores in found.items()}


def _non_empty(documents: Sequence[str], what: str, minimum: int) -> list[str]:
    """The documents that have sentences; DataError if there are too few."""
    found = [d for d in check_texts(documents, what=what) if len(split_sentences(d))]
    if len(found) < minimum:
        raise DataError(
            f"expected {minimum} {what} or more, got {len(found)}",
            fix="a text file is one document, unless it is read with --one-doc-per-line",
        )
    return found
