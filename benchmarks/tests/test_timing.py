"""Seconds and peak memory of a computation."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from expunge_bench import timing
from expunge_bench.timing import plain_pass_seconds, timed, with_peak_memory


def test_seconds_are_the_difference_of_the_clock():
    ticks = iter([3.0, 10.5])
    assert timed(lambda: "done", clock=lambda: next(ticks)) == ("done", 7.5)


def test_the_smaller_of_two_plain_passes_counts(monkeypatch):
    ticks, passes = iter([0.0, 5.0, 5.0, 7.0]), []
    monkeypatch.setattr(timing, "compute_seconds", lambda: next(ticks))
    monkeypatch.setattr(timing, "collect", lambda *given: passes.append(given))
    assert plain_pass_seconds("model", "samples") == 2.0
    assert passes == [("model", "samples")] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_was_freed_in_between():
    def work():
        np.ones(10_000_000)  # 80 MB
        return "done"

    result, peak = with_peak_memory(work)
    assert result == "done"
    assert 70e6 < peak < 120e6
