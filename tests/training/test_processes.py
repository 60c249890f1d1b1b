"""Trainings in two CPU processes, beside the same in one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import oracles_processes
from oracles_digits import network
from oracles_processes import AGREEING, EQUAL, flat, trained


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made."""
    out = tmp_path_factory.mktemp("two")
    assert oracles_processes.start(2, oracles_processes.train, out) == [0, 0]
    return out


def test_two_processes_end_with_the_same_networks(two: Path) -> None:
    assert json.loads((two / "facts.json").read_text()) == {"processes": 2, "differ": []}


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_train_as_one(two: Path, name: str) -> None:
    """The loss is that of the whole batch: its weights, its small losses, its targets."""
    found = np.load(two / "weights.npz")[name]
    np.testing.assert_allclose(found, flat(trained(name)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AGREEING)
def test_a_training_in_two_processes_is_finite_and_moves(two: Path, name: str) -> None:
    found = np.load(two / "weights.npz")[name]
    assert np.isfinite(found).all()
    start = flat(network())
    assert len(found) != len(start) or not np.allclose(found, start, atol=1e-3)
