"""News articles with injected noise: splits, ground truth, words, network."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_array_equal

from expunge.errors import DataError
from expunge_bench.datasets import Setting
from expunge_bench.folders import dataset_in_folder
from expunge_bench.news import WORDS, News
from oracles_text import news, stars


@pytest.fixture(scope="module")
def articles(tmp_path_factory) -> News:
    folder = tmp_path_factory.mktemp("articles")
    for part, n in {"train": 120, "test": 20}.items():
        texts = [*news(n // 2, seed=n), *stars(n // 2, seed=n)]
        table = pa.table({"document": texts, "category": np.repeat(["news", "stars"], n // 2)})
        pq.write_table(table, folder / f"{part}.parquet")
    found = dataset_in_folder(folder)
    assert isinstance(found, News)
    return found


@pytest.mark.parametrize(("noise", "rate"), [("symmetric", 0.4), ("pair", 0.25), ("none", 0.0)])
def test_articles_are_split_by_the_seed_with_their_ground_truth(articles, noise, rate):
    found = articles.noisy_dataset(Setting(noise, rate, n=80))
    assert [len(s) for s in (found.train, found.held_out, found.test)] == [80, 16, 20]
    assert found.truth.noisy.mean() == pytest.approx(rate)
    assert_array_equal(found.truth.label_fault, found.train.labels != found.truth.labels)
    assert_array_equal(found.test.labels, np.repeat([0, 1], 10))
    tokens = found.train.inputs.batch(np.arange(80))
    assert tokens["input_ids"].shape == (80, WORDS)
    assert int(tokens["input_ids"].min()) > 1  # all words are in the vocabulary
    other = articles.noisy_dataset(Setting(noise, rate, seed=1, n=80)).train
    assert not torch.equal(other.inputs.batch(np.arange(80))["input_ids"], tokens["input_ids"])
    assert articles.network(0)(**tokens).logits.shape == (80, 2)


def test_all_articles_leave_none_held_out_and_more_are_refused(articles):
    assert articles.noisy_dataset(Setting("none", n=120)).held_out is None
    with pytest.raises(DataError, match="n = 121 samples requested, the data set has 120"):
        articles.noisy_dataset(Setting("none", n=121))


def test_a_folder_without_articles_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"(?s)train\.parquet.*cannot be read.*--data FOLDER"):
        News(tmp_path).noisy_dataset(Setting("none", n=10))
