"""Labels: from what a file holds to class indices, and labels that lie in a second file."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from expunge.errors import DataError, did_you_mean, format_ids

MAX_CLASSES = 100_000  # a larger index without class names is no class index


def encode(
    values: np.ndarray,
    ids: np.ndarray,
    *,
    names: Sequence[str] = (),
    classes: Sequence[str] = (),
    where: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices and class names.

    values: indices (``int[n]``) or names (``str[n]``). names: what the source says that the
    indices mean. classes: the classes that the caller wants, in that order; indices are translated
    by name where the source orders them differently (names that only number the classes translate
    nothing). With neither, strings are sorted and indices are named ``"0" … "c-1"``.

    >>> encode(np.array(["b", "a", "b"]), np.arange(3), where="x")
    (array([1, 0, 1]), ('a', 'b'))
    """
    names, classes = tuple(map(str, names)), tuple(map(str, classes))
    for given in (names, classes):
        repeated = sorted({n for n in given if given.count(n) > 1})
        if repeated:
            raise DataError(f"class names are not unique: {format_ids(repeated)}", where=where)
    if values.dtype.kind == "U":
        known = classes or names or tuple(np.unique(values).tolist())
        return _by_name(values, ids, known, where), known
    if values.dtype.kind not in "iu":
        # Samples says what is wrong with fractions, NaN and other types.
        known = classes or names
        return values, known or _numbered(values, where)
    if names and classes and names != classes and not _only_numbers(names, classes):
        _require_range(values, ids, len(names), where)
        return _by_name(np.array(names)[values], ids, classes, where), classes
    return values, classes or names or _numbered(values, where)


def column(values: Sequence[object], ids: np.ndarray, *, what: str, where: str) -> np.ndarray:
    """One array of integers, floats or strings; missing and mixed values are errors."""
    missing = np.array([v is None or v == "" for v in values], dtype=bool)
    if missing.any():
        raise DataError(
            f"{what} is missing (null or empty): ids {format_ids(ids[missing])}",
            where=where,
            fix="fill in or remove these rows",
        )
    found = sorted({type(v).__name__ for v in values})
    try:
        if found == ["int"]:
            return np.array(values, dtype=np.int64)
        if found == ["str"]:
            return np.array(values, dtype=str)
        if found in (["float"], ["float", "int"]):
            return np.array(values, dtype=np.float64)
    except OverflowError as error:
        raise DataError(f"{what} holds integers of more than 64 bits", where=where) from error
    raise DataError(
        f"{what} holds {' and '.join(found) or 'nothing'}, expected integers or strings",
        where=where,
        fix="write all values in one type",
    )


def as_numbers(values: list[str]) -> Sequence[object]:
    """Integers if every text is one, else the texts as they are."""
    if values and all(re.fullmatch(r"-?(0|[1-9][0-9]*)", v or "") for v in values):
        return [int(v) for v in values]
    return values


def join(ids: np.ndarray, other_ids: np.ndarray, values: np.ndarray, *, where: str) -> np.ndarray:
    """The values of these ids from a second table; ids that only it has are left aside."""
    if ids.dtype.kind != other_ids.dtype.kind:
        ids, other_ids = ids.astype(str), other_ids.astype(str)
    unique, first, counts = np.unique(other_ids, return_index=True, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"duplicate ids: {format_ids(unique[counts > 1])}", where=where)
    at = np.searchsorted(unique, ids).clip(max=max(len(unique) - 1, 0))
    missing = unique[at] != ids if len(unique) else np.ones(len(ids), dtype=bool)
    if missing.any():
        raise DataError(
            f"no label for {int(missing.sum())} of {len(ids)} ids: {format_ids(ids[missing])} "
            f"(this file's ids: {format_ids(unique)})",
            where=where,
            fix="check that `id` names the matching column in both files",
        )
    return values[first[at]]


def _by_name(values: np.ndarray, ids: np.ndarray, known: tuple[str, ...], where: str) -> np.ndarray:
    index = {name: i for i, name in enumerate(known)}
    found, inverse = np.unique(values, return_inverse=True)
    unknown = [v for v in found.tolist() if v not in index]
    if unknown:
        rows = np.isin(values, unknown)
        raise DataError(
            f"labels that are no class: {format_ids(unknown)} (ids {format_ids(ids[rows])})",
            where=where,
            fix=did_you_mean(unknown[0], known),
        )
    return np.array([index[v] for v in found.tolist()], dtype=np.int64)[inverse]


def _only_numbers(*lists: tuple[str, ...]) -> bool:
    return any(names == tuple(map(str, range(len(names)))) for names in lists)


def _numbered(values: np.ndarray, where: str) -> tuple[str, ...]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if values.dtype.kind not in "iuf" or len(finite) == 0:
        return ("0", "1")  # Samples refuses such labels
    top = int(finite.max())
    if top >= MAX_CLASSES:
        raise DataError(
            f"labels go up to {top}, which is no class index",
            where=where,
            fix="number the classes from 0, or name the right label column",
        )
    return tuple(str(i) for i in range(top + 1))


def _require_range(values: np.ndarray, ids: np.ndarray, classes: int, where: str) -> None:
    outside = (values < 0) | (values >= classes)
    if outside.any():
        raise DataError(
            f"labels outside 0…{classes - 1}: {format_ids(np.unique(values[outside]))} "
            f"(ids {format_ids(ids[outside])})",
            where=where,
        )
