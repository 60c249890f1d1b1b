"""Columns of labels and ids: arrays of one type, and columns joined by id."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from expunge.errors import DataError, format_ids

# What to do about data, or a model, with several labels for each sample.
FIX_SEVERAL = (
    "several labels are not supported at once: score one at a time, 0 or 1 for each sample; the "
    "model then returns its logit alone, model(x)[:, k]"
)


def as_column(values: Sequence[object], ids: np.ndarray, *, what: str, where: str) -> np.ndarray:
    """Make one array of integers, floats or strings; missing and mixed values are a DataError."""
    missing = np.array([is_missing(v) for v in values], dtype=bool)
    if missing.any():
        raise DataError(
            f"missing values (null or empty) in {what}: ids {format_ids(ids[missing])}",
            where=where,
            fix="fill in or remove these rows",
        )
    values = [_plain(v) for v in values]
    found = sorted({type(v).__name__ for v in values})
    try:
        if found == ["int"]:
            return np.array(values, dtype=np.int64)
        if found == ["str"]:
            return np.array(values, dtype=str)
        if found == ["bool"]:
            return np.array(values, dtype=bool)
        if found in (["float"], ["float", "int"]):
            return np.array(values, dtype=np.float64)
    except OverflowError as error:
        raise DataError(
            f"integers of more than 64 bits in {what}, expected integers or strings",
            where=where,
            fix="write them as texts",
        ) from error
    raise DataError(
        f"{' and '.join(found) or 'nothing'} in {what}, expected integers or strings"
        + (_rarest(values, ids) if len(found) > 1 else ""),
        where=where,
        fix=_fix_types(found),
    )


def _rarest(values: Sequence[object], ids: np.ndarray) -> str:
    """Which values are of the type that the fewest have."""
    types = np.array([type(v).__name__ for v in values])
    names, counts = np.unique(types, return_counts=True)
    rarest = names[counts.argmin()]
    return f": ids with {rarest} {format_ids(ids[types == rarest])}"


def _plain(value: object) -> object:
    """The number or text that an object of a subclass is, such as a member of an IntEnum."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, float) else value


def _fix_types(found: list[str]) -> str:
    """What to do about values of these types."""
    if len(found) > 1:
        return "write all values in one type"
    if found in (["set"], ["frozenset"]):
        return FIX_SEVERAL
    if found in (["dict"], ["list"]):
        return "give one of the values that each holds, in a column of its own"
    return "give texts: [str(v) for v in …]; of an Enum its names: [v.name for v in …]"


def is_missing(value: object) -> bool:
    """Whether a value is None, an empty text, or one of pandas' marks of a missing value."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def clean_names(names: np.ndarray) -> np.ndarray:
    """Class names, ``str[n]``, without space around them and in one Unicode form (NFC).

    An accent may be one character or two, which look the same. File systems and editors differ.

    Examples
    --------
    >>> clean_names(np.array([" cat", "e\\u0301t\\u00e9 "])).tolist() == ["cat", "\\u00e9t\\u00e9"]
    True
    """
    stripped: np.ndarray = np.char.strip(names)
    if not stripped.size or np.ascontiguousarray(stripped).view(np.uint32).max() < 128:
        return stripped
    found, inverse = np.unique(stripped, return_inverse=True)
    composed = [unicodedata.normalize("NFC", name) for name in found.tolist()]
    return np.array(composed, dtype=str)[inverse]


# Texts of a CSV file that stand for a missing number.
GAPS = frozenset({"", "na", "n/a", "nan", "null", "none"})


def is_gap(text: str) -> bool:
    """Whether a text of a table stands for a missing number."""
    return text.strip().lower() in GAPS


def parse_integers(values: list[str]) -> Sequence[object]:
    """Convert texts to integers if every text is one of 64 bits; else return them unchanged."""
    if not values or not all(re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", v or "") for v in values):
        return values
    integers = [int(v) for v in values]
    return integers if all(-(2**63) <= v < 2**63 for v in integers) else values


def join_by_id(
    ids: np.ndarray, other_ids: np.ndarray, values: np.ndarray, *, where: str
) -> np.ndarray:
    """Look up the value of every id in a second table; its other rows are ignored.

    Parameters
    ----------
    ids
        ``[n]``: the ids of the result, in order.
    other_ids, values
        ``[m]``, ``[m, …]``: the second table. If only one side has strings, ids are compared as
        strings.
    where
        What messages call the second table.

    Returns
    -------
    np.ndarray
        ``[n, …]``: ``values[j]`` with ``other_ids[j] == ids[i]`` at position i.

    Raises
    ------
    DataError
        If the second table repeats an id or lacks one.

    Examples
    --------
    >>> join_by_id(np.array([7, 5]), np.array([5, 6, 7]), np.array([0, 1, 2]), where="x").tolist()
    [2, 0]
    """
    if ids.dtype.kind != other_ids.dtype.kind:
        ids, other_ids = ids.astype(str), other_ids.astype(str)
    unique, first, counts = np.unique(other_ids, return_index=True, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"duplicate ids: {format_ids(unique[counts > 1])}",
            where=where,
            fix="keep one row of each id",
        )
    at = np.searchsorted(unique, ids).clip(max=max(len(unique) - 1, 0))
    missing = unique[at] != ids if len(unique) else np.ones(len(ids), dtype=bool)
    if missing.any():
        raise DataError(
            f"no label for {int(missing.sum())} of {len(ids)} ids: {format_ids(ids[missing])} "
            f"(this file's ids: {format_ids(unique)})",
            where=where,
            fix="check that `id` names the matching column in both files",
        )
    found: np.ndarray = values[first[at]]
    return found
