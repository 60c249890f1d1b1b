"""News articles with injected noise, and the networks that benchmarks train on their texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from torch import nn

from expunge._core.arrays import Ints
from expunge._core.rng import derive, generator, temp_seed
from expunge.data import Samples, from_texts
from expunge.demo.noise import GroundTruth, LabelNoise, NoisyDataset, wrong_labels
from expunge.errors import DataError
from expunge.training.loop import TuneConfig
from expunge_bench.datasets import Setting, check_sample_count

# Rows of a file, by column.
Articles = list[dict[str, Any]]
# Kinds of noise and their default rates; () for noise whose rate is fixed.
NOISES: Mapping[str, tuple[float, ...]] = {"none": (), "symmetric": (0.25, 0.4), "pair": (0.25,)}
TRAINING: Mapping[str, TuneConfig] = {
    "regularised": TuneConfig(targets="all", epochs=6, lr=1e-3, batch_size=16, optimizer="adamw"),
    "overfit": TuneConfig(
        targets="all", epochs=12, lr=1e-3, batch_size=16, optimizer="adamw", augment=False
    ),
}
# The folder of the articles in one of several data sets.
ARTICLES = "bbc_news_summary"
# The first words of each article are its text.
WORDS = 30
# The most frequent words of the training texts have numbers of their own; 0 pads, 1 is any other.
VOCABULARY, _FIRST_WORD = 4_000, 2
# The network: small enough to train from scratch on a processor, and to memorise in all layers.
LAYERS, WIDTH, HEADS = 2, 64, 4


@dataclass(frozen=True)
class News:
    """The first words of news articles, and their five topics.

    Parameters
    ----------
    path
        A folder with ``train.parquet`` and ``test.parquet``: the columns document and category.
    """

    path: Path

    name = "news"
    default_n = 600
    noises = NOISES
    training = TRAINING

    def network(self, seed: int) -> nn.Module:
        """An untrained transformer: two layers of width 64, 331,000 weights."""
        import transformers

        config = transformers.BertConfig(
            vocab_size=VOCABULARY + _FIRST_WORD,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=WORDS,
            num_labels=len(self._topics),
        )
        with temp_seed(seed, "network"):
            model: nn.Module = transformers.BertForSequenceClassification(config)
        return model

    def noisy_dataset(self, setting: Setting) -> NoisyDataset:
        """n training texts with the setting's noise, drawn by its seed, and all test texts.

        Of the other training texts n / 5 are held out, with noise of the same kind and rate.

        Raises
        ------
        DataError
            If n is larger than the training set.
        """
        n = setting.n
        check_sample_count(n, len(self._train), where=self.name)
        rows = generator(setting.seed, "articles").permutation(len(self._train))
        train, truth = self._corrupted(setting, rows[:n])
        held_out, others = None, rows[n : n + n // 5]
        if len(others) > 1:
            seed = derive(setting.seed, "held out")
            held_out, _ = self._corrupted(replace(setting, seed=seed), others)
        return NoisyDataset(train, self.test, truth, held_out)

    @cached_property
    def test(self) -> Samples:
        """All test texts. No stage decides anything by them."""
        articles = read_articles(self.path, "test")
        return self._samples(articles, self._labels(articles))

    def _corrupted(self, setting: Setting, rows: Ints) -> tuple[Samples, GroundTruth]:
        """The texts of these training articles with the setting's noise."""
        articles = [self._train[i] for i in rows]
        truth, n_classes = self._labels(articles), len(self._topics)
        noise: LabelNoise = "pair" if setting.noise == "pair" else "symmetric"
        labels = wrong_labels(
            truth, rate=setting.rate, noise=noise, classes=n_classes, seed=setting.seed
        )
        no_fault = np.zeros(len(labels), dtype=bool)
        return self._samples(articles, labels), GroundTruth(truth, labels != truth, no_fault)

    def _samples(self, articles: Articles, labels: Ints) -> Samples:
        return from_texts(
            [" ".join(article["document"].split()[:WORDS]) for article in articles],
            labels,
            tokenizer=self._token_ids,
            length=WORDS,
            classes=self._topics,
            view="token-dropout",
            name=self.name,
        )

    def _labels(self, articles: Articles) -> Ints:
        return np.array([self._topics.index(article["category"]) for article in articles])

    @cached_property
    def _train(self) -> Articles:
        return read_articles(self.path, "train")

    @cached_property
    def _topics(self) -> list[str]:
        return sorted({article["category"] for article in self._train})

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The number of each word of the vocabulary."""
        words = Counter(
            word for article in self._train for word in _words(article["document"])[:WORDS]
        )
        return {w: i for i, (w, _) in enumerate(words.most_common(VOCABULARY), _FIRST_WORD)}

    def _token_ids(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """The numbers of the words of each text; they are the tokens."""
        rows = [[self._numbers.get(word, 1) for word in _words(text)] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def read_articles(folder: Path, part: Literal["train", "test"]) -> Articles:
    """The rows of ``{part}.parquet``.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    file = folder / f"{part}.parquet"
    try:
        rows: Articles = pq.read_table(file).to_pylist()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error}",
            where=str(file),
            fix=f"--data FOLDER: {ARTICLES}, or one that holds it",
        ) from error
    return rows
