"""The methods that the benchmark compares: filters, rules, n-grams, and an oracle."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from expunge._core.arrays import Floats
from expunge._core.progress import Progress
from expunge._core.rng import generator
from expunge.storage.hashing import digest
from expunge.text.characters import CharacterModel
from expunge.text.encoders import Encoder, TokenStates
from expunge.text.filter_files import FILTER_FILE
from expunge.text.filters import HELD_OUT_FRACTION, TextNoiseFilter
from expunge.text.published import Granularity
from expunge.text.scores import ScoreKind, TextScores
from expunge.text.sentences import split_sentences
from expunge_bench.text_noise.corpus import Corpus
from expunge_bench.text_noise.faults import NoisyText

PUBLISHED: Mapping[str, tuple[ScoreKind, Granularity]] = {
    "relative": ("relative", "sentence"),
    "plain": ("plain", "sentence"),
    "leave-one-sentence-out": ("relative", "leave-one-sentence-out"),
    "leave-one-token-out": ("relative", "leave-one-token-out"),
}
METHODS = ("combined", *PUBLISHED, "rules", "perplexity")
MAX_CACHED_TOKENS = 300_000
# Quantile of the perplexity of clean, held-out sentences that is the threshold.
_PERPLEXITY_QUANTILE = 0.99
# Rules for links, code and emoji, written with these kinds of noise in mind.
_NOISE_PATTERN = re.compile(
    r"\w+://|www\.|[=;{}]\s*$|[\w)\]]\(.*\)|\w\s*[!=+-]?=\s*\S|^\s*(?:def|class|import|from|return|if|"
    r"for|while|else|elif|try|except|raise|with)\b.*:?$|[\U0001F300-\U0001FAFF\u2600-\u27BF]"
)
# A document to its scores.
Method = Callable[[str], TextScores]


@dataclass
class CachingEncoder:
    """An encoder that encodes the same text once.

    Parameters
    ----------
    encoder
        The encoder.
    cache
        Token states by text. It is emptied when it holds more than `MAX_CACHED_TOKENS` tokens.
    """

    encoder: Encoder
    cache: dict[str, TokenStates] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> list[TokenStates]:
        if sum(len(one.states) for one in self.cache.values()) > MAX_CACHED_TOKENS:
            self.cache.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self.cache]
        self.cache.update(zip(missing, self.encoder(missing) if missing else [], strict=True))
        return [self.cache[text] for text in texts]


@dataclass(frozen=True)
class MethodFactory:
    """Makes methods, fitted on clean text only. They never receive the noise or where it is.

    Parameters
    ----------
    corpus
        Its in-domain and background documents are fitted on.
    key
        The columns that identify the fitted filter: data, sizes, encoder and seed.
    folder
        Fitted filters are stored here.
    encoder
        The encoder that fits the filters.
    progress
        Called during the fits.
    """

    corpus: Corpus
    key: Mapping[str, Any]
    folder: Path
    encoder: Encoder
    progress: Progress

    def make(self, name: str, *, encoder: Encoder) -> Method:
        """The method of that name, which encodes documents by ``encoder``."""
        if name == "rules":
            return rules
        if name == "perplexity":
            return perplexity(self.corpus.in_domain, seed=self.key["seed"])
        kind, granularity = PUBLISHED.get(name, ("combined", "sentence"))
        fitted = self._fitted_filter(kind, encoder)
        return fitted.with_settings(kind=kind, granularity=granularity).score

    def _fitted_filter(self, kind: ScoreKind, encoder: Encoder) -> TextNoiseFilter:
        """Fit the filter, or load it if one was fitted on the same texts."""
        fitted_kind: ScoreKind = "combined" if kind == "combined" else "relative"
        texts = {"inside": self.corpus.in_domain, "background": self.corpus.background}
        folder = self.folder / f"{fitted_kind}-{digest({**self.key, **texts})[:16]}"
        if not (folder / FILTER_FILE).exists():
            TextNoiseFilter.fit(
                *texts.values(),
                encoder=self.encoder,
                kind=fitted_kind,
                seed=self.key["seed"],
                progress=self.progress,
            ).save(folder)
        return TextNoiseFilter.load(folder, encoder=encoder)


def rules(document: str) -> TextScores:
    """Score a sentence 1 if a regular expression for links, code and emoji matches it, else 0."""
    spans = split_sentences(document)
    matches = [bool(_NOISE_PATTERN.search(document[a:b])) for a, b in spans.tolist()]
    return sentence_scores(document, np.array(matches, dtype=np.float64), threshold=0.5)


def perplexity(documents: Sequence[str], *, seed: int) -> Method:
    """Score a sentence by the mean surprise of its characters under n-grams of the domain.

    Parameters
    ----------
    documents
        Clean in-domain documents. A fifth of them is held out: the threshold is the 99th
        percentile of their sentences.
    seed
        Seed of the split.
    """
    order = generator(seed, "perplexity").permutation(len(documents))
    n_held_out = max(1, round(HELD_OUT_FRACTION * len(documents)))
    model = CharacterModel.fit([documents[i] for i in order[n_held_out:]])

    def score(document: str) -> Floats:
        total = np.r_[0.0, np.cumsum(model.surprisal(document))]
        start, end = split_sentences(document).T
        return np.asarray((total[end] - total[start]) / np.maximum(end - start, 1))

    held_out = np.concatenate([score(documents[i]) for i in order[:n_held_out]])
    threshold = float(np.quantile(held_out, _PERPLEXITY_QUANTILE))
    return lambda document: sentence_scores(document, score(document), threshold=threshold)


def remove_true_noise(noisy: NoisyText) -> str:
    """Oracle: the text without its noise."""
    is_noise = noisy.noisy(split_sentences(noisy.text)).astype(np.float64)
    return sentence_scores(noisy.text, is_noise, threshold=0.5).cleaned


def sentence_scores(document: str, scores: Floats, *, threshold: float) -> TextScores:
    """Scores of sentences, without any of tokens."""
    no_scores, no_tokens = np.zeros(0), np.zeros((0, 2), dtype=np.int64)
    return TextScores(document, split_sentences(document), scores, no_tokens, no_scores, threshold)
