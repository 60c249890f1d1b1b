"""Seconds and peak memory of a computation."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from expunge_bench.timing import timed, with_peak_memory


def test_seconds_are_the_difference_of_the_clock():
    ticks = iter([3.0, 10.5])
    assert timed(lambda: "done", clock=lambda: next(ticks)) == ("done", 7.5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_was_freed_in_between():
    def work():
        np.ones(10_000_000)  # 80 MB
        return "done"

    result, peak = with_peak_memory(work)
    assert result == "done"
    assert 70e6 < peak < 120e6
