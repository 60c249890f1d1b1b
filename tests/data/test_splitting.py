"""Samples held out of a training: how many, which, and that no copy of them is trained on."""

from __future__ import annotations

import numpy as np
import pytest

import expunge
from expunge.data import from_arrays
from expunge.data.splitting import n_held_out
from expunge.errors import ConfigError, DataError


def test_a_fraction_is_held_out_in_the_order_of_the_data_and_depends_on_the_seed_only():
    x, y = np.arange(400, dtype=np.float32).reshape(200, 2), np.arange(200) % 4
    data = from_arrays(x, y, ids=[f"i{k:03d}" for k in range(200)])
    train, held_out = expunge.hold_out(data, fraction=0.25, seed=3)
    assert (len(train), len(held_out)) == (150, 50)
    assert sorted([*train.ids, *held_out.ids]) == data.ids.tolist()
    assert train.ids.tolist() == sorted(train.ids)
    assert (
        held_out.batch(np.arange(50))[:, 0] == 2 * np.array([int(i[1:]) for i in held_out.ids])
    ).all()
    again = expunge.hold_out(data, fraction=0.25, seed=3).held_out
    assert again.ids.tolist() == held_out.ids.tolist()
    assert expunge.hold_out(data, fraction=0.25).held_out.ids.tolist() != held_out.ids.tolist()


def test_copies_of_an_input_stay_together_and_no_class_is_lost():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, 300)[:, None].astype(np.float32)
    y = np.where(np.arange(300) == 299, 2, np.arange(300) % 2)
    for seed in range(5):
        train, held_out = expunge.hold_out((x, y), fraction=0.5, seed=seed)
        seen, unseen = (set(s.batch(np.arange(len(s)))[:, 0].tolist()) for s in (train, held_out))
        assert not seen & unseen
        assert 0.4 * 300 < len(held_out) <= 150
        assert set(train.labels) == {0, 1, 2}


def test_by_default_few_samples_are_all_trained_on():
    assert [n_held_out(n) for n in (10, 999, 1000, 5000, 10**6)] == [0, 0, 100, 500, 1000]
    data = from_arrays(np.zeros((20, 1), dtype=np.float32), np.arange(20) % 2)
    assert expunge.hold_out(data).held_out is None
    with pytest.raises(DataError, match="nothing can be held out"):
        expunge.hold_out(data, fraction=0.2)
    for fraction in (-0.1, 0.6, float("nan")):
        with pytest.raises(ConfigError, match="hold_out must lie in"):
            expunge.hold_out(data, fraction=fraction)
