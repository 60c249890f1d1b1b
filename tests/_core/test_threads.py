"""Threads change no result, and run only where other processes wait."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from expunge._core.threads import (
    ordered_map,
    others_wait,
    processes_on_this_machine,
)
from expunge.detection.probes import neighbour_probe, tree_probe


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")


def threads_of(items):
    return set(ordered_map(lambda _: threading.get_ident(), items))


def test_threads_run_only_while_other_processes_wait(two_processes):
    assert threads_of(range(20)) == {threading.get_ident()}
    with others_wait():
        assert threading.get_ident() not in threads_of(range(20))
        # A call in a thread starts no threads.
        assert next(iter(ordered_map(lambda _: len(threads_of(range(9))), range(2)))) == 1
    assert threads_of(range(20)) == {threading.get_ident()}


def test_results_come_in_order_with_the_settings_of_the_caller(two_processes):
    with others_wait(), np.errstate(divide="ignore"):
        found = list(ordered_map(lambda i: (i, np.float64(1) / np.zeros(1)), range(50)))
    assert [i for i, _ in found] == list(range(50))


def test_an_error_in_a_thread_is_that_of_the_caller(two_processes):
    with others_wait(), pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda i: 1 // (i - 7), range(50)))


@pytest.mark.parametrize(("value", "expected"), [("4", 4), ("0", 1), ("x", 1)])
def test_the_processes_of_a_machine_are_those_that_the_launcher_names(monkeypatch, value, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
    assert processes_on_this_machine() == expected


def test_probes_are_equal_to_the_last_bit_in_threads(two_processes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 4500)
    x = labels[:, None] + rng.standard_normal((4500, 4))
    few = slice(0, 200)

    def found():
        shares, distance = neighbour_probe(x, labels, 3, n_nearest=5)
        return shares, distance, tree_probe(x[few], labels[few], 3)

    alone = found()
    with others_wait():
        for a, b in zip(alone, found(), strict=True):
            np.testing.assert_array_equal(a, b)
