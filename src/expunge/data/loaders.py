"""DataLoaders, collate functions and frames: the single samples behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Subset,
    default_collate,
)

from expunge.data.conversion import is_frame
from expunge.data.frame_rows import FrameRows
from expunge.errors import DataError

# Makes a batch of a list of items, as a DataLoader's.
Collate = Callable[[list[Any]], Any]


class CollatedDataset:
    """The items of a data set as a collate function makes them: batches of one, taken apart.

    Parameters
    ----------
    dataset
        With items by position.
    collate
        Called with a list of one item.

    Examples
    --------
    >>> from torch.utils.data import default_collate
    >>> CollatedDataset([(1.5, 0), (2.5, 1)], default_collate)[1]
    [tensor(2.5000, dtype=torch.float64), tensor(1)]
    """

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self.dataset, self._collate = dataset, collate
        for name in ("classes", "features"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return _only(self._collate([self.dataset[position]]))


def _only(batch: Any) -> Any:
    """The item of a batch of one."""
    if isinstance(batch, Tensor | np.ndarray):
        if batch.ndim and len(batch) == 1:
            return batch[0]
        raise ValueError(f"the collate function made a batch of shape {tuple(batch.shape)} of one")
    if isinstance(batch, Mapping):
        return {name: _only(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        is_column = len(batch) == 1 and not isinstance(batch[0], Tensor | np.ndarray)
        return batch[0] if is_column else [_only(part) for part in batch]
    return batch


def unwrap_loader(data: Any, name: str) -> Any:
    """The data set of a DataLoader, with its collate function; the rows of a frame; others as is.

    Of a sampler that always draws the same part of the data set, it is that part.
    """
    if is_frame(data):
        return FrameRows(data, name)
    if not isinstance(data, DataLoader):
        return data
    if isinstance(data.dataset, IterableDataset):
        raise DataError(
            "the DataLoader has a data set without items by position",
            where=name,
            fix="list(loader.dataset) makes a data set of it, if its items are single samples",
        )
    dataset: Any = data.dataset
    drawn = _part_drawn(data, len(dataset))
    if drawn is not None:
        dataset = Subset(dataset, drawn)
    is_own = data.batch_sampler is not None and data.collate_fn is not default_collate
    return CollatedDataset(dataset, data.collate_fn) if is_own else dataset


def _part_drawn(loader: DataLoader[Any], n: int) -> list[int] | None:
    """The positions that the sampler draws, if they are the same each time and not all."""
    sampler: Any = loader.sampler
    if isinstance(loader.batch_sampler, BatchSampler):
        sampler = loader.batch_sampler.sampler
    positions = getattr(sampler, "indices", sampler)
    if not isinstance(positions, Sequence | np.ndarray | Tensor):
        return None
    drawn = [int(i) for i in positions]
    return drawn if len(set(drawn)) == len(drawn) < n else None
