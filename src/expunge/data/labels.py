"""Labels: from the values of a file to class indices, and columns joined by id."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from expunge.errors import DataError, did_you_mean, format_ids

# A larger index without class names is no class index.
MAX_CLASSES = 100_000


def encode_labels(
    values: np.ndarray,
    ids: np.ndarray,
    *,
    names: Sequence[str] = (),
    classes: Sequence[str] = (),
    where: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert labels to class indices, and find the names of the classes.

    Parameters
    ----------
    values
        Indices ``int[n]`` or names ``str[n]``.
    ids
        ``[n]``, for messages.
    names
        The class names of the source: ``names[i]`` is the name of the index i.
    classes
        The classes of the result, in order. If the source orders its names differently, its indices
        are translated by name, unless the names are only numbers. With neither ``names`` nor
        ``classes``, strings are sorted and indices are named ``"0" … "c-1"``.
    where
        What messages call the source.

    Returns
    -------
    indices, names
        ``int64[n]``, and the names of the ``c`` classes.

    Raises
    ------
    DataError
        If class names repeat, a label is no class, or an index is out of range.

    Examples
    --------
    >>> encode_labels(np.array(["b", "a", "b"]), np.arange(3), where="x")
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
        return values, known or _number_classes(values, where)
    if names and classes and names != classes and not _are_numbers(names, classes):
        _check_indices(values, ids, len(names), where)
        return _by_name(np.array(names)[values], ids, classes, where), classes
    return values, classes or names or _number_classes(values, where)


def as_column(values: Sequence[object], ids: np.ndarray, *, what: str, where: str) -> np.ndarray:
    """Make one array of integers, floats or strings; missing and mixed values are a DataError."""
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


def parse_integers(values: list[str]) -> Sequence[object]:
    """Convert texts to integers if every text is one; else return them unchanged."""
    if values and all(re.fullmatch(r"-?(0|[1-9][0-9]*)", v or "") for v in values):
        return [int(v) for v in values]
    return values


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
    found: np.ndarray = values[first[at]]
    return found


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


def _are_numbers(*lists: tuple[str, ...]) -> bool:
    return any(names == tuple(map(str, range(len(names)))) for names in lists)


def _number_classes(values: np.ndarray, where: str) -> tuple[str, ...]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if values.dtype.kind not in "iuf" or len(finite) == 0:
        return ("0", "1")  # Samples refuses such labels
    top = int(finite.max())
    if top >= MAX_CLASSES:
        raise DataError(
            f"the largest label is {top}, which is no class index",
            where=where,
            fix="number the classes from 0, or name the right label column",
        )
    return tuple(str(i) for i in range(top + 1))


def _check_indices(values: np.ndarray, ids: np.ndarray, classes: int, where: str) -> None:
    outside = (values < 0) | (values >= classes)
    if outside.any():
        raise DataError(
            f"labels outside 0…{classes - 1}: {format_ids(np.unique(values[outside]))} "
            f"(ids {format_ids(ids[outside])})",
            where=where,
        )
