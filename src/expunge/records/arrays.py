"""Checks that all records share, and rows by sample id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.errors import DataError, format_ids
from expunge.records.top_classes import TopClasses

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Rows are checked in chunks of this many, so that memory does not grow with their number.
_CHUNK = 8192


def frozen_array(values: ArrayLike, dtype: Any = None) -> np.ndarray:
    """Return a read-only copy, or the array itself if it is read-only already."""
    if isinstance(values, np.ndarray) and dtype in (None, values.dtype) and _constant(values):
        return values
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def _constant(array: np.ndarray) -> bool:
    """Whether nobody can write to the array, nor to one that it is a view of."""
    return array.flags.owndata and not array.flags.writeable


def frozen_rows(rows: ArrayLike | TopClasses, dtype: Any = None) -> np.ndarray | TopClasses:
    """Return the same of numbers for each class, be it all classes or the top ones."""
    if not isinstance(rows, TopClasses):
        return frozen_array(rows, dtype)
    return TopClasses(
        frozen_array(rows.values, dtype),
        frozen_array(rows.classes),
        frozen_array(rows.rest, dtype),
        rows.n_classes,
    )


def freeze(record: object, **arrays: tuple[ArrayLike | TopClasses, Any]) -> None:
    """Replace fields of a frozen record by read-only copies of a dtype."""
    for name, (values, dtype) in arrays.items():
        object.__setattr__(record, name, frozen_rows(values, dtype))


def freeze_mapping(record: object, name: str, dtype: Any = None) -> None:
    """Replace a field that maps names to arrays by read-only copies."""
    arrays = {k: frozen_rows(v, dtype) for k, v in getattr(record, name).items()}
    object.__setattr__(record, name, arrays)


def read_only(array: np.ndarray) -> np.ndarray:
    """Return an array that is read-only as it is, be it a view or a file; of others a copy."""
    return frozen_array(array) if array.flags.writeable else array


def finite_rows(array: np.ndarray) -> np.ndarray:
    """Return which rows hold finite numbers only, ``bool[n]``."""
    finite = np.ones(len(array), dtype=bool)
    for start in range(0, len(array), _CHUNK):
        block = array[start : start + _CHUNK]
        finite[start : start + _CHUNK] = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
    return finite


def require_finite(rows: np.ndarray | TopClasses, ids: np.ndarray, what: str) -> None:
    """Raise DataError with the ids of rows that are NaN or infinite."""
    table = rows.values.sum(axis=-1) + rows.rest if isinstance(rows, TopClasses) else rows
    finite = finite_rows(table)
    if not finite.all():
        raise DataError(
            f"{what} is NaN or infinite for ids {format_ids(ids[~finite])}",
            fix="check the model's weights and these inputs",
        )


def require_rows(record: object, n: int, *names: str) -> None:
    """Raise DataError unless these fields of a record have n rows."""
    for name in names:
        got = len(getattr(record, name))
        if got != n:
            raise DataError(f"{type(record).__name__}.{name} has {got} rows, expected {n}")


def align(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of ``ids`` in the order of ``wanted``: ``ids[align(ids, wanted)] == wanted``."""
    order = np.argsort(ids, kind="stable")
    at = np.searchsorted(ids, wanted, sorter=order)
    at = order[np.minimum(at, len(order) - 1)]
    missing = ids[at] != wanted
    if missing.any():
        raise DataError(
            f"there are no rows for ids {format_ids(wanted[missing])}",
            fix="use the records with the data that they were made from",
        )
    return at
