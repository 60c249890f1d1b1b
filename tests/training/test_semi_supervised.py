"""Learning from samples without their labels, and time budgets."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge import stages
from expunge.data import from_arrays, from_dataset
from expunge.data.strong_views import strong_view
from expunge.training.optimisation import TuneConfig
from oracles_digits import clean, memorised, network, noisy
from oracles_training import MemoryCheckpoint, assert_resumes

CONFIG = TuneConfig(targets="semi", epochs=3, batch_size=16, lr=0.05)
SHAPES = [(6, 3, 16, 16), (6, 1, 40, 20), (6, 4, 12), (6, 30), (6, 5000)]


def split_of(samples, flagged):
    p, zeros = flagged.astype(float), np.zeros(len(flagged))
    rate = float(p.mean())
    return expunge.Partition(
        samples.ids, samples.labels, p, p, zeros, samples.labels, zeros, 0.5, (rate, rate, rate)
    )


def few_labels(n=400, labelled=60):
    """Digits of which only the first few keep their labels."""
    samples = noisy(n, rate=0.0)
    return samples, split_of(samples, np.arange(n) >= labelled)


def accuracy(model):
    return stages.evaluate(model, clean()).accuracy.value


def test_samples_without_labels_help():
    samples, split = few_labels()
    config = replace(CONFIG, epochs=40)
    kept = stages.tune(network(), samples, split, replace(config, targets="filter"))
    semi = stages.tune(network(), samples, split, config)
    assert accuracy(semi) > accuracy(kept) + 0.01


def test_a_training_resumes_with_the_same_bits():
    samples, split = few_labels(200, 64)

    def train(**settings):
        return stages.tune(memorised(), samples, split, CONFIG, **settings)

    assert_resumes(train, steps=6, first=5)


def test_labels_of_flagged_samples_are_not_read():
    samples, split = few_labels(200, 64)
    other = replace(samples, labels=np.where(split.flagged, 9 - samples.labels, samples.labels))
    a = stages.tune(memorised(), samples, split, CONFIG)
    b = stages.tune(memorised(), other, replace(split, labels=other.labels), CONFIG)
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, a, b):
        return self.layer(torch.cat([a, b], dim=1))


def test_inputs_by_name_are_learned_from_without_views():
    draw = np.random.default_rng(0)
    items = [
        {"a": torch.tensor(v[:4]), "b": torch.tensor(v[4:]), "label": i % 3}
        for i, v in enumerate(draw.standard_normal((48, 8)).astype(np.float32))
    ]
    samples = from_dataset(items)
    split = split_of(samples, np.arange(48) % 4 == 0)
    tuned = stages.tune(Both(), samples, split, CONFIG)
    assert not tuned.training


@pytest.mark.parametrize("shape", SHAPES)
def test_strong_views_keep_shape_and_input_and_follow_the_generator(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    first, again = (strong_view(x, torch.Generator().manual_seed(1)) for _ in range(2))
    other = strong_view(x, torch.Generator().manual_seed(2))
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, x)
    assert torch.isfinite(first).all()


def test_integers_have_no_strong_view():
    x = torch.arange(12).view(3, 4)
    assert strong_view(x, torch.Generator()) is x


def test_a_training_keeps_to_its_time_and_its_schedule():
    samples, seen = noisy(), list[int]()
    config = TuneConfig(targets="all", epochs=100_000, lr=0.01, max_minutes=0.01)
    started = time.monotonic()
    stages.tune(
        memorised(), samples, None, config, progress=lambda _, done, total: seen.append(done)
    )
    assert time.monotonic() - started < 30
    assert 0 < len(seen) < 100_000


def test_the_time_of_an_interrupted_training_counts():
    samples, checkpoint = noisy(), MemoryCheckpoint()
    config = TuneConfig(targets="all", epochs=1, lr=0.01, max_minutes=10.0)
    stages.tune(memorised(), samples, None, config, checkpoint=checkpoint)
    assert checkpoint.saved is not None
    spent = checkpoint.saved[1]["extra.spent_seconds"]
    assert 0 < spent < 60
    spent.fill_(601.0)
    checkpoint.saved = 0, checkpoint.saved[1]
    seen = list[int]()
    stages.tune(
        memorised(),
        samples,
        None,
        config,
        checkpoint=checkpoint,
        progress=lambda _, done, total: seen.append(done),
    )
    assert seen == []


def test_a_repair_divides_its_budget_among_the_rounds(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32), np.arange(90) % 3
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    overrides = {"min_flagged_fraction": 0.0, "tune": {"epochs": 100_000}}
    settings = {"recipe": "semi", "overrides": overrides, "out": tmp_path / "run"}
    result = expunge.repair(model, from_arrays(x, y), minutes=0.02, **settings)
    assert 0 < result.seconds["tune"] < 20
    assert any("time budget ended a tuning after" in note for note in result.notes)
    with pytest.raises(expunge.RunError, match="what `minutes` left for this tuning"):
        expunge.repair(model, from_arrays(x, y), minutes=0.5, **settings)


def test_a_share_of_an_unknown_time_is_refused():
    with pytest.raises(expunge.ConfigError, match="that time is not known"):
        expunge.RepairOptions(time_share=0.5)
    assert expunge.RepairOptions(time_share=0.5, train_seconds=60).budget_minutes == 0.5
