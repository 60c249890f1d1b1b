"""Articles as a source of features, and which sources a folder holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge._core.arrays import Array, Floats32
from expunge._core.progress import Progress
from expunge._core.rng import generator
from expunge.errors import ConfigError, DataError
from expunge.nmtune.objectives import PRESETS
from expunge.storage.hashing import digest
from expunge.text.encoders import Encoder, encode_texts
from expunge_bench.cifar import Cifar
from expunge_bench.datasets import check_sample_count
from expunge_bench.news import ARTICLES, read_articles
from expunge_bench.nmtune.corruptions import TEXT_CORRUPTIONS
from expunge_bench.nmtune.features import (
    ADAPTED,
    IN_DOMAIN,
    Embedded,
    FeatureSource,
    Sizes,
    cached_arrays,
)
from expunge_bench.nmtune.images import DEFAULT_RATES, ImageSource

# Numbers of articles to tune on.
DEFAULT_ARTICLES = (100, 1000)
# The embedding of an article is that of its first words.
N_WORDS = 50
EncoderFactory = Callable[[], Encoder]


@dataclass(frozen=True)
class NewsSource:
    """BBC news by category, embedded by a given sentence encoder.

    Parameters
    ----------
    folder
        Holds ``bbc_news_summary/{train,test}.parquet``.
    encoder, encoder_name
        Makes the encoder, and its name.
    tune
        The number of articles to tune on.
    out
        Where features are stored.
    """

    folder: Path
    encoder: EncoderFactory
    encoder_name: str
    tune: int
    out: Path

    name = "bbc"
    rates = (0.0,)
    methods = tuple(PRESETS)

    @property
    def sizes(self) -> Sizes:
        """All test articles."""
        return Sizes(0, 0, self.tune, 0)

    def embed(self, rate: float, *, seed: int, progress: Progress) -> Embedded:
        """The first words of articles; to test on, also headlines, typos and dropped words.

        The seed draws the articles to tune on. Corruptions are the same for all seeds.
        """
        (texts, labels), (test_texts, test_labels) = (
            _texts_and_categories(read_articles(self.folder / ARTICLES, part))
            for part in ("train", "test")
        )
        check_sample_count(self.tune, len(texts), where=str(self.folder))

        def compute() -> dict[str, Array]:
            encoder, versions = self.encoder(), {"train": texts, IN_DOMAIN: test_texts}
            for kind, corrupt in TEXT_CORRUPTIONS.items():
                rng = generator(0, "corruption", kind)
                versions[kind] = [corrupt(text, rng) for text in test_texts]
            return {k: _embed_texts(encoder, found, progress) for k, found in versions.items()}

        key = [self.encoder_name, digest([texts, test_texts])]
        arrays = cached_arrays(self.out, key, compute)
        rows = np.sort(generator(seed, "nmtune", "news").permutation(len(texts))[: self.tune])
        names = np.unique(labels)
        return Embedded(
            arrays["train"][None, rows],
            np.searchsorted(names, labels[rows]),
            {k: arrays[k] for k in (IN_DOMAIN, *TEXT_CORRUPTIONS)},
            np.searchsorted(names, test_labels),
        )

    def adapt(self, rate: float, *, seed: int, progress: Progress) -> dict[str, float]:
        """Not possible: raises ConfigError."""
        raise ConfigError(f"method '{ADAPTED}' needs images: the encoder of articles is fixed")


def _texts_and_categories(articles: Sequence[Mapping[str, Any]]) -> tuple[list[str], Array]:
    return [a["document"] for a in articles], np.array([a["category"] for a in articles])


def _embed_texts(encoder: Encoder, texts: Sequence[str], progress: Progress) -> Floats32:
    """``float32[n, d]``: means of token states, scaled to length 1, as the encoder was trained."""
    rows = []
    for start in range(0, len(texts), 32):
        part = [" ".join(text.split()[:N_WORDS]) for text in texts[start : start + 32]]
        rows += [one.states.mean(axis=0) for one in encode_texts(encoder, part, first=start)]
        progress("embed", len(rows), len(texts))
    found = np.stack(rows)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def find_sources(
    folder: Path,
    *,
    sizes: Sizes,
    rates: Sequence[float] = DEFAULT_RATES,
    articles: Sequence[int] = DEFAULT_ARTICLES,
    encoder: EncoderFactory,
    encoder_name: str,
    device: str = "cpu",
    out: Path,
) -> list[FeatureSource]:
    """The sources for ``cifar10`` and ``bbc_news_summary``, if they lie in the folder.

    Raises
    ------
    DataError
        If the folder holds neither.
    """
    sources: list[FeatureSource] = []
    if (folder / "cifar10").is_dir():
        sources.append(ImageSource(Cifar(folder / "cifar10"), sizes, out, tuple(rates), device))
    if (folder / "bbc_news_summary").is_dir():
        sources += [NewsSource(folder, encoder, encoder_name, n, out) for n in articles]
    if not sources:
        raise DataError(
            "expected cifar10 or bbc_news_summary in the folder, found neither", where=str(folder)
        )
    return sources
