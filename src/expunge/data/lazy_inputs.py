"""Inputs that are read on demand, in this process or in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.inputs import Batch, Positions, ReadGroups
from expunge.data.workers import Workers

# Batches that were announced and not yet read.
_MAX_AHEAD = 2
# Fewer inputs, an example for instance, are read in this process: workers take seconds to start.
_MIN_SHARED = 4


class LazyInputs:
    """Inputs that are read on demand, with one call of ``read(position)`` a sample.

    Parameters
    ----------
    n
        The number of samples.
    read
        Returns the input of one sample: a tensor, or several by name.
    content
        A hash of the content, of the files' bytes for example.
    locate
        Turns a position into what ``read`` takes, in this process; without it, the position.
    groups
        See `read_groups`.
    workers
        The number of processes that read. With 0 this process does.
    """

    def __init__(
        self,
        n: int,
        read: Callable[[Any], Batch],
        content: str,
        *,
        locate: Callable[[int], Any] = int,
        groups: Callable[[Positions], ReadGroups | None] | None = None,
        workers: int = 0,
    ) -> None:
        self._n, self._read, self._content = n, read, content
        self._locate, self._groups = locate, groups
        self._workers = Workers(partial(_read_arrays, read), workers) if workers else None
        self._begun: dict[bytes, list[Any]] = {}

    def __len__(self) -> int:
        return self._n

    def batch(self, positions: Positions) -> Batch:
        items = self._items(np.asarray(positions, dtype=np.int64))
        if isinstance(items[0], Tensor):
            return torch.stack(items)
        return {name: torch.stack([x[name] for x in items]) for name in items[0]}

    def announce(self, positions: Positions) -> None:
        """Let the workers begin with a batch that will be read soon."""
        if self._workers is None:
            return
        positions = np.asarray(positions, dtype=np.int64)
        if positions.tobytes() in self._begun:
            return
        while len(self._begun) >= _MAX_AHEAD:
            self._begun.pop(next(iter(self._begun)))
        self._begun[positions.tobytes()] = self._begin(self._workers, positions)

    def fingerprint(self) -> str:
        return self._content

    def read_groups(self, positions: Positions) -> ReadGroups | None:
        """See `expunge.data.inputs.read_groups`."""
        return None if self._groups is None else self._groups(positions)

    def _items(self, positions: Positions) -> list[Any]:
        """The inputs of single samples: tensors, or tensors by name."""
        workers, begun = self._workers, self._begun.pop(positions.tobytes(), None)
        if workers is None or (begun is None and len(positions) < _MIN_SHARED):
            return [self._read(self._locate(i)) for i in positions.tolist()]
        found = workers.results(begun or self._begin(workers, positions))
        return [
            {name: torch.from_numpy(part) for name, part in x.items()}
            if isinstance(x, dict)
            else torch.from_numpy(x)
            for x in found
        ]

    def _begin(self, workers: Workers, positions: Positions) -> list[Any]:
        return workers.submit([self._locate(i) for i in positions.tolist()])


def _read_arrays(read: Callable[[Any], Batch], item: Any) -> Any:
    """An input as arrays, which are sent between processes faster than tensors."""
    found = read(item)
    if isinstance(found, Tensor):
        return found.numpy()
    return {name: part.numpy() for name, part in found.items()}
