"""Measure what a computation costs: seconds and peak memory."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from expunge.data import Samples
from expunge.detection.signals import collect

T = TypeVar("T")


def compute_seconds() -> float:
    """A clock: CPU time of this process; wall time on a machine with a GPU.

    On a CPU, other processes neither shorten nor lengthen what a method takes.
    """
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def timed(
    work: Callable[[], T], *, clock: Callable[[], float] = time.perf_counter
) -> tuple[T, float]:
    """Run a computation and return its result and its seconds."""
    started = clock()
    result = work()
    return result, clock() - started


def plain_pass_seconds(model: nn.Module, samples: Samples) -> float:
    """Seconds of one plain pass over the samples: the smaller of two."""
    work = partial(collect, model, samples)
    return min(timed(work, clock=compute_seconds)[1] for _ in range(2))


def with_peak_memory(work: Callable[[], T]) -> tuple[T, int]:
    """Run a computation and return its result and by how many bytes the process grew at its peak.

    The bytes are 0 on systems other than Linux.
    """
    before = _memory_bytes("VmRSS")
    result = work()
    return result, max(0, _memory_bytes("VmHWM") - before)


def _memory_bytes(counter: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes in memory: now (VmRSS, which also resets the peak), or at the peak (VmHWM)."""
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if sys.platform != "linux" or not status.exists():
        return 0
    if counter == "VmRSS":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # what was freed does not count
            trim(0)
        peak.write_text("5")
    found = re.search(rf"{counter}:\s+(\d+) kB", status.read_text())
    return 1024 * int(found[1]) if found else 0
