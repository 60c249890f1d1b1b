"""Randomness by name: every consumer derives its own generator from the seed and its name.

Nothing is drawn from a shared stream, so adding a consumer never changes another one's numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on the seed and on every name: SHA-256 of their text."""
    text = "\x1f".join([str(int(seed)), *(str(n) for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """An independent NumPy generator for this seed and these names."""
    return np.random.default_rng(derive(seed, *names))


def subsample(rows: int | np.ndarray, most: int, seed: int, *names: str | int) -> np.ndarray:
    """At most so many of the rows (of the first n, given a number), at random, in their order.

    Every k-th would miss classes whose samples come in turns.
    """
    return np.sort(generator(seed, *names).permutation(rows)[:most])


def torch_generator(seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """An independent torch generator for this seed and these names."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextmanager
def temp_seed(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generator inside the block (dropout, initialisation), then restore it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *names))
        yield


@contextmanager
def legacy_numpy(seed: int, *names: str | int) -> Iterator[None]:
    """The same for NumPy's global generator, for packages that draw from it."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(derive(seed, *names) % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
