"""The order in which a training reads its samples from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from expunge._core.arrays import Ints
from expunge._core.distributed import shard
from expunge._core.rng import generator
from expunge.data import Samples
from expunge.data.inputs import read_groups

if TYPE_CHECKING:
    from accelerate import Accelerator


def random_order(seed: int, epoch: int, n: int) -> Ints:
    """The order of n rows in an epoch: a permutation from the seed and the epoch."""
    return generator(seed, "order", epoch).permutation(n)


@dataclass(frozen=True)
class Reads:
    """What a training reads: row i is the sample at ``positions[i]``; without positions at i."""

    samples: Samples
    positions: Ints | None = None

    def of_rows(self, rows: Ints) -> Ints:
        """The positions of the samples of these rows."""
        return rows if self.positions is None else self.positions[rows]

    def order(self, seed: int, epoch: int, n: int) -> Ints:
        """The order of n rows in an epoch.

        A permutation. Where samples are read in groups (row groups of Parquet) and not all groups
        fit into memory, as many groups as fit are drawn at random, and their samples are shuffled;
        then the next groups. Each group is then read once an epoch.
        """
        found = read_groups(self.samples.inputs, self.of_rows(np.arange(n)))
        if found is None:
            return random_order(seed, epoch, n)
        draw = generator(seed, "order", epoch)
        groups, members = np.unique(found.groups, return_inverse=True)
        window = draw.permutation(len(groups))[members] // found.n_in_memory
        return np.lexsort((draw.random(n), window))

    def announced(self, batches: Sequence[Ints], accelerator: Accelerator) -> Iterator[Ints]:
        """The batches; before each, worker processes begin with this process's part of the next."""
        for batch, following in zip_longest(batches, batches[1:]):
            for rows in (batch, following):
                if rows is not None:
                    self.samples.announce(self.of_rows(shard(rows, accelerator)))
            yield batch
