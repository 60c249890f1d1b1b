"""Randomness by name: every consumer derives its own generator from the seed and its name.

Nothing is drawn from a shared stream, so adding a consumer never changes another one's numbers.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import numpy as np
import torch

from expunge._core.arrays import Ints
from expunge.errors import ConfigError


def derive(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a seed and names: SHA-256 of their text.

    Parameters
    ----------
    seed
        Any integer.
    *names
        What the randomness is for. Another name, or another order, gives another seed.

    Raises
    ------
    ConfigError
        If the seed is no integer.

    Examples
    --------
    >>> derive(0)
    3456079177858693020
    >>> derive(0, "views", 1) == derive(0, "views", 2)
    False
    """
    text = "\x1f".join([str(as_seed(seed)), *(str(n) for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def as_seed(seed: SupportsIndex) -> int:
    """Return the integer that a seed is, of Python, NumPy or torch."""
    try:
        return operator.index(seed)
    except TypeError as error:
        raise ConfigError(f"seed must be an integer, not {seed!r}") from error


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return an independent NumPy generator for this seed and these names."""
    return np.random.default_rng(derive(seed, *names))


def subsample(rows: int | Ints, max_rows: int, seed: int, *names: str | int) -> Ints:
    """Draw at most ``max_rows`` rows without replacement, sorted.

    Every k-th row would miss classes if the samples are ordered by class.

    Parameters
    ----------
    rows
        Row numbers, or their count n for the rows ``0 … n − 1``.
    max_rows
        The size of the subsample. All rows are returned if there are no more.
    seed, *names
        See `derive`.

    Examples
    --------
    >>> subsample(3, 10, 0, "rows").tolist()
    [0, 1, 2]
    >>> len(subsample(100, 10, 0, "rows"))
    10
    """
    return np.sort(generator(seed, *names).permutation(rows)[:max_rows])


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return an independent torch generator of the CPU for this seed and these names."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def temp_seed(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generator inside the block (dropout, initialisation), then restore it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        if torch.accelerator.is_available():
            torch.manual_seed(derive(seed, *names))
        else:  # the other one formats a traceback for every kind of device that is absent
            torch.default_generator.manual_seed(derive(seed, *names))
        yield


@contextmanager
def legacy_numpy(seed: int, *names: str | int) -> Iterator[None]:
    """Seed NumPy's global generator inside the block, then restore it.

    For packages that draw from the global generator.
    """
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(derive(seed, *names) % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextmanager
def seed_everything(seed: int, *names: str | int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block, then restore them.

    For functions of a user, which may draw from any of them.
    """
    state = random.getstate()
    random.seed(derive(seed, *names))
    try:
        with temp_seed(seed, *names), legacy_numpy(seed, *names):
            yield
    finally:
        random.setstate(state)
