"""The order in which a training reads samples from disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from expunge.data import LazyInputs, from_arrays
from expunge.data.inputs import ReadGroups
from expunge.training.reading import Reads, random_order


def reads(n_in_memory: int) -> Reads:
    x = np.arange(60, dtype=np.float32)[:, None]
    samples = from_arrays(x, np.arange(60) % 2)
    lazy = LazyInputs(
        60,
        lambda i: samples.inputs.batch(np.array([i]))[0],
        "",
        groups=lambda positions: ReadGroups(positions // 10, n_in_memory),
    )
    return Reads(replace(samples, inputs=lazy), np.arange(30, 60))


def test_inputs_in_memory_are_read_in_a_random_order() -> None:
    samples = from_arrays(np.zeros((9, 2), dtype=np.float32), np.arange(9) % 2)
    assert Reads(samples).order(3, 1, 9).tolist() == random_order(3, 1, 9).tolist()


def test_no_more_groups_are_used_at_once_than_fit() -> None:
    for epoch in range(4):
        order = reads(1).order(0, epoch, 30)
        assert sorted(order.tolist()) == list(range(30))
        groups = order // 10
        assert (np.diff(groups) != 0).sum() == 2
        assert np.abs(np.diff(order[:10])).max() > 1
    assert reads(1).order(0, 0, 30).tolist() != reads(1).order(0, 1, 30).tolist()
    assert reads(1).order(0, 1, 30).tolist() == reads(1).order(0, 1, 30).tolist()
    assert (np.diff(reads(3).order(0, 0, 30) // 10) != 0).sum() > 5
