"""Splits by name, as a `DatasetDict` of the Hub holds them, as the sets of a repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from expunge.data.dataset import DataLike, MapDataset
from expunge.data.samples import Samples
from expunge.errors import DataError, format_ids

TRAIN = "train"
HELD_OUT = ("validation", "valid", "val", "dev", "eval")
TEST = "test"


class Sets(NamedTuple):
    """The sets of a repair."""

    train: Any
    validation: Any
    held_out: Any


def by_split(
    train: DataLike | Mapping[str, DataLike],
    validation: DataLike | None = None,
    held_out: DataLike | None = None,
) -> Sets:
    """Take the sets of a repair out of a mapping of splits.

    Parameters
    ----------
    train
        A mapping with the split ``"train"``. Its split ``"test"`` measures the result, and the
        split ``"validation"`` (or ``valid``, ``val``, ``dev``, ``eval``) decides about it. Without
        ``"test"``, ``"validation"`` measures. Anything else is returned as it is.
    validation, held_out
        Sets that are given by themselves; they take the place of splits.

    Raises
    ------
    DataError
        If the mapping holds data sets, but no split ``"train"``.

    Examples
    --------
    >>> by_split({"train": [(1, 0)], "validation": [(2, 1)], "test": [(3, 0)]})
    Sets(train=[(1, 0)], validation=[(3, 0)], held_out=[(2, 1)])
    >>> by_split({"train": [(1, 0)], "val": [(2, 1)]})
    Sets(train=[(1, 0)], validation=[(2, 1)], held_out=None)
    """
    splits = _splits_of(train)
    if not splits:
        return Sets(train, validation, held_out)
    if TRAIN not in splits:
        raise DataError(
            f"there is no split 'train' among {format_ids(splits)}",
            where="training data",
            fix="give the split to repair by itself: data['…']",
        )
    second = next((splits[name] for name in HELD_OUT if name in splits), None)
    test = splits.get(TEST)
    if test is None and held_out is None:
        test, second = second, None
    return Sets(
        splits[TRAIN],
        test if validation is None else validation,
        second if held_out is None else held_out,
    )


def _splits_of(data: object) -> dict[str, Any]:
    """Several sets by name; none for anything else, as arrays by name."""
    if not isinstance(data, Mapping) or not all(isinstance(k, str) for k in data):
        return {}
    return dict(data) if all(_is_set(v) for v in data.values()) else {}


def _is_set(data: object) -> bool:
    if isinstance(data, Samples | DataLoader):
        return True
    if isinstance(data, tuple):
        return len(data) == 2
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], tuple | Mapping)
    is_column = isinstance(data, np.ndarray | Tensor | str | Mapping) or hasattr(data, "to_numpy")
    return isinstance(data, MapDataset) and not is_column
