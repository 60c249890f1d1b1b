"""Manipulated data of which a part is known, and what is measured of the repairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from expunge import stages
from expunge.data import from_arrays
from expunge.errors import ConfigError
from expunge.training.loop import TuneConfig
from expunge_bench import corrective, digits
from expunge_bench.corrective_data import manipulate, patched
from expunge_bench.datasets import Setting
from expunge_bench.digits import Digits
from expunge_bench.scrub import scrub

pytestmark = pytest.mark.usefixtures("few_trees")

SETTING = Setting("none", n=300, seed=3)


def pixels(samples):
    return np.asarray(samples.inputs.batch(np.arange(len(samples))))


def test_poisoned_samples_have_the_patch_and_the_label_of_the_target():
    clean = Digits().noisy_dataset(SETTING)
    data = manipulate(Digits(), "poison", SETTING, count=20)
    assert data.bad.sum() == 20
    assert (data.train.labels[data.bad] == 0).all()
    assert (clean.train.labels[data.bad] != 0).all()
    assert (pixels(data.train)[data.bad][:, :, -2:, -2:] == 1).all()
    assert_array_equal(pixels(data.train)[~data.bad], pixels(clean.train)[~data.bad])
    assert_array_equal(data.train.labels[~data.bad], clean.train.labels[~data.bad])
    assert (data.affected.labels != 0).all()
    assert (pixels(data.affected)[:, :, -2:, -2:] == 1).all()
    assert_array_equal(pixels(data.affected)[:, :, :-2], pixels(data.originals)[:, :, :-2])
    assert_array_equal(pixels(data.test), pixels(clean.test))


def test_confused_samples_swap_the_labels_of_two_classes_and_nothing_else():
    clean = Digits().noisy_dataset(SETTING)
    data = manipulate(Digits(), "confusion", SETTING, count=21)
    changed = data.train.labels != clean.train.labels
    assert_array_equal(changed, data.bad)
    assert_array_equal(np.bincount(clean.train.labels[changed], minlength=10)[[3, 8]], [11, 10])
    assert_array_equal(data.train.labels[changed], 11 - clean.train.labels[changed])
    assert set(data.affected.labels.tolist()) == {3, 8}
    with pytest.raises(ConfigError, match="450 samples are to be manipulated"):
        manipulate(Digits(), "confusion", SETTING, count=900)


def test_a_larger_known_part_holds_the_smaller_one():
    data = manipulate(Digits(), "poison", SETTING, count=20)
    few, more, everything = (data.known(share, 0) for share in (0.1, 0.5, 1.0))
    assert (few.sum(), more.sum()) == (2, 10)
    assert (few <= more).all()
    assert_array_equal(everything, data.bad)


def test_images_of_16_pixels_or_more_have_a_patch_of_three():
    samples = from_arrays(np.zeros((2, 3, 16, 16), np.uint8), [0, 1])
    found = pixels(patched(samples, np.array([1])))
    assert (found[0] == 0).all()
    assert (found[1] == 255).sum() == 3 * 9
    assert (found[1, :, 13:, 13:] == 255).all()


class Corner(nn.Module):
    """Says class 0 for patched digits, and what the first pixel holds for others."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 10)

    def forward(self, x):
        trigger = (x[:, 0, -1, -1] > x[:, 0, 0, 0] + 1).float()
        return torch.eye(10)[torch.where(trigger > 0, 0, 5)] + 0 * self.layer(x[:, 0, :1, 0])


def test_healed_counts_samples_that_are_right_without_the_patch_and_with_it():
    data = manipulate(Digits(), "poison", SETTING, count=20)
    found = corrective.measure(Corner(), data, 0)
    assert found["attack_success"] > 0.99
    assert found["healed"] < 0.01
    assert found["corrected_accuracy"] < 0.01
    assert found["accuracy"] == pytest.approx((data.test.labels == 5).mean(), abs=0.01)
    confused = corrective.measure(Corner(), replace(data, manipulation="confusion"), 0)
    assert confused["healed"] is confused["attack_success"] is None


def test_precision_and_recall_leave_out_the_known_samples():
    bad, known = np.arange(10) < 6, np.arange(10) < 2
    flagged = np.isin(np.arange(10), (0, 1, 2, 3, 9))
    assert corrective._found(flagged, bad, known) == {"precision": 2 / 3, "recall": 0.5}
    assert corrective._found(known, bad, bad) == {"precision": None, "recall": None}


def test_scrub_moves_away_from_what_is_to_be_forgotten():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    forgotten = np.arange(120) < 20
    y[forgotten], x[forgotten, 1] = 1, 6.0
    samples = from_arrays(x, y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    config = TuneConfig(epochs=20, lr=0.1, batch_size=20, targets="all")
    taught = stages.tune(model, samples, None, config)
    student = scrub(
        taught, samples, forgotten, replace(config, epochs=4, lr=0.05, schedule="constant"), seed=0
    )

    def said(network):
        return network(torch.from_numpy(x)).softmax(dim=1)[:, 1].detach().numpy()

    assert said(taught)[forgotten].mean() > 0.9
    assert said(student)[forgotten].mean() < said(taught)[forgotten].mean() - 0.05
    assert ((said(student) > 0.5) == y)[~forgotten].mean() > 0.85


def test_rows_are_computed_once_and_compared_with_retraining(tmp_path, monkeypatch):
    short = TuneConfig(targets="all", epochs=2, lr=0.1, batch_size=64)
    monkeypatch.setattr(digits.Digits, "training", {"regularised": short, "overfit": short})
    names = ("find-more", "no-op", "retrain", "scrub")
    given = {"known": (0.5,), "names": names, "n": 200, "manipulated": 20, "out": tmp_path}
    rows = corrective.bench(Digits(), manipulations=("poison",), **given)
    assert [(r["method"], r["known"]) for r in rows] == [
        *(("find-more", 0.5), ("no-op", 0.0), ("retrain", 0.5), ("scrub", 0.5))
    ]
    assert all(r["seconds"] >= 0 for r in rows)
    text = (tmp_path / "table.md").read_text()
    assert "| poison 20 | regularised | 50 | retrain | 1 |" in text
    monkeypatch.setattr(corrective, "cached_model", None)
    assert corrective.bench(Digits(), manipulations=("poison",), **given) == rows
    with pytest.raises(ConfigError, match="unknown method 'retain'"):
        corrective.bench(Digits(), **{**given, "names": ("retain",)})
    with pytest.raises(ConfigError, match=r"known 0\.1 names fewer than the 5 that find-more"):
        corrective.bench(Digits(), **{**given, "known": (0.1, 0.5)})
