"""Checks that all records share, and rows by sample id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.errors import DataError, format_ids

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


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


def freeze(record: object, **arrays: tuple[ArrayLike, Any]) -> None:
    """Replace fields of a frozen record by read-only copies of a dtype."""
    for name, (values, dtype) in arrays.items():
        object.__setattr__(record, name, frozen_array(values, dtype))


def freeze_mapping(record: object, name: str, dtype: Any = None) -> None:
    """Replace a field that maps names to arrays by read-only copies."""
    arrays = {k: frozen_array(v, dtype) for k, v in getattr(record, name).items()}
    object.__setattr__(record, name, arrays)


def require_finite(array: np.ndarray, ids: np.ndarray, what: str) -> None:
    """Raise DataError with the ids of rows that are NaN or infinite."""
    finite = np.isfinite(array.reshape(len(ids), -1)).all(axis=1)
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
