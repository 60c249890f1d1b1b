"""Rows of numbers for each class: of all classes, or `TopClasses` where they are many. Pure.

Up to 100 classes, rows are arrays ``float[n, c]`` and nothing is left out. With more, a row holds
the given class, the 31 best others and one number for all other classes, so that memory does not
grow with samples times classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge._core.threads import ordered_map
from expunge.records import Signals
from expunge.records.top_classes import MAX_DENSE_CLASSES, N_TOP, TopClasses

# Rows are taken in chunks of this many, so that temporary memory does not grow with their number.
CHUNK = 8192
ClassRows = AnyFloats | TopClasses
T = TypeVar("T", bound="np.ndarray | TopClasses")


class RowSource(Protocol):
    """What gives rows of numbers for each class: an array, `TopClasses`, or `LazyRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, c)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any: ...


class LazyRows:
    """A function of another source's rows, computed whenever rows are read."""

    def __init__(self, source: RowSource, function: Callable[[Any], ClassRows]) -> None:
        self._source, self._function = source, function

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, c)``."""
        return self._source.shape

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows: Any) -> ClassRows:
        return self._function(self._source[rows])


class TakenRows:
    """Some rows of another source, read when they are needed."""

    def __init__(self, source: RowSource, rows: Ints) -> None:
        self._source, self._rows = source, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """``(len(rows), c)``."""
        return (len(self._rows), self._source.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the source."""
        found: np.dtype[Any] = self._source[:0].dtype
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> ClassRows:
        found: ClassRows = self._source[self._rows[rows]]
        return found


def row_chunks(n: int, chunk_size: int = CHUNK) -> list[slice]:
    """Return slices that cover rows 0 … n − 1, each of at most ``chunk_size`` rows.

    Examples
    --------
    >>> row_chunks(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + chunk_size, n)) for start in range(0, n, chunk_size)]


def by_chunks(function: Callable[[slice], T], n: int, chunk_size: int = CHUNK) -> T:
    """Return the results of a function of slices of rows, one below the other.

    It may be called in threads, see `ordered_map`.
    """
    whole: tuple[np.ndarray, ...] = ()
    chunks = row_chunks(n, chunk_size) or [slice(0, 0)]
    for rows, block in zip(chunks, ordered_map(function, chunks), strict=True):
        parts = _parts(block)
        whole = whole or tuple(np.empty((n, *p.shape[1:]), dtype=p.dtype) for p in parts)
        for all_rows, part in zip(whole, parts, strict=True):
            all_rows[rows] = part
    return _joined(whole, block)  # type: ignore[return-value]


def _joined(parts: Sequence[np.ndarray], like: ClassRows) -> ClassRows:
    """Return `_parts` as rows of the kind of others."""
    if not isinstance(like, TopClasses):
        return parts[0]
    values, classes, rest = parts
    return TopClasses(values, classes, rest, like.n_classes)


def _parts(rows: ClassRows) -> tuple[np.ndarray, ...]:
    return (rows.values, rows.classes, rows.rest) if isinstance(rows, TopClasses) else (rows,)


def concatenate_sources(first: ClassRows, second: ClassRows) -> ClassRows:
    """Return the sources of both, ``[s, n, c]`` and ``[t, n, c]``, as ``[s + t, n, c]``."""
    if isinstance(first, TopClasses) and isinstance(second, TopClasses):
        parts = [np.concatenate(p) for p in zip(_parts(first), _parts(second), strict=True)]
        return _joined(parts, first)
    empty = [table for table in (first, second) if not len(table)]
    if empty:
        return second if empty[0] is first else first
    return np.concatenate([np.asarray(first), np.asarray(second)])


def stack(tables: Sequence[ClassRows]) -> ClassRows:
    """Return tables of the same shape as one with a first dimension more."""
    tops = [table for table in tables if isinstance(table, TopClasses)]
    if not tops:
        return np.stack(tables)
    parts = [np.stack(p) for p in zip(*map(_parts, tops), strict=True)]
    return _joined(parts, tops[0])


def keep_top(block: AnyFloats, labels: Ints, *, in_logs: bool = False) -> ClassRows:
    """Return a block as it is, or its best classes and the given one if classes are many.

    Parameters
    ----------
    block
        ``float[n, c]``.
    labels
        ``int[n]``, the given labels.
    in_logs
        Whether the numbers are logarithms: then the rest keeps the sum of their exponentials.

    Examples
    --------
    >>> top = keep_top(np.eye(200, dtype=np.float32)[:3], np.array([0, 1, 7]))
    >>> top.values.shape, top.argmax(axis=1).tolist(), top.at(np.array([0, 1, 7])).tolist()
    ((3, 32), [0, 1, 2], [1.0, 1.0, 0.0])
    """
    if block.shape[1] <= MAX_DENSE_CLASSES:
        return block
    table = torch.from_numpy(np.array(block, dtype=np.float32))
    parts = top_tensors(table, torch.from_numpy(np.array(labels)), in_logs=in_logs)
    values, classes, rest = (part.numpy() for part in parts)
    return TopClasses(values, classes, rest, block.shape[1])


def top_tensors(table: Tensor, labels: Tensor, *, in_logs: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, classes and rest of the best classes and the given one; on any device.

    Parameters
    ----------
    table
        ``float32[n, c]``; it is overwritten.
    labels, in_logs
        See `keep_top`. A row with a number that is not finite has a rest that is NaN.
    """
    c = table.shape[1]
    is_finite = torch.isfinite(table).all(dim=1)
    at_label = table.gather(1, labels[:, None])[:, 0]
    table.scatter_(1, labels[:, None], torch.inf)
    values, classes = table.topk(N_TOP, dim=1)
    values[:, 0] = at_label  # the label comes first, as it is infinite
    table.scatter_(1, classes, -torch.inf if in_logs else 0.0)
    if in_logs:
        rest = table.logsumexp(dim=1) - math.log(c - N_TOP)
    else:
        rest = table.sum(dim=1) / (c - N_TOP)
    rest = torch.where(is_finite, rest, torch.nan)
    return values, classes.to(torch.int16 if c < 2**15 else torch.int32), rest


def compact(signals: Signals) -> Signals:
    """Return signals whose numbers for each class are `TopClasses` if classes are many."""
    tables = {"logits": signals.logits, "augmented_probs": signals.augmented_probs}
    found: dict[str, Any] = {
        name: _compact(table, signals.labels, in_logs=name == "logits")
        for name, table in tables.items()
        if _is_large(table)
    }
    if any(map(_is_large, signals.external_probs.values())):
        found["external_probs"] = {
            name: _compact(table, signals.labels) if _is_large(table) else table
            for name, table in signals.external_probs.items()
        }
    return replace(signals, **found) if found else signals


def _is_large(table: ClassRows | None) -> bool:
    return isinstance(table, np.ndarray) and table.shape[1] > MAX_DENSE_CLASSES


def _compact(table: Any, labels: Ints, *, in_logs: bool = False) -> ClassRows:
    return by_chunks(lambda rows: keep_top(table[rows], labels[rows], in_logs=in_logs), len(labels))


def occurring_classes(labels: Ints, n_classes: int) -> Ints:
    """Return the classes that have samples; all where one or more than 100 have.

    Examples
    --------
    >>> occurring_classes(np.array([5, 2, 2]), 10)
    array([2, 5])
    """
    found: Ints = np.unique(labels)
    return found if 1 < len(found) <= MAX_DENSE_CLASSES else np.arange(n_classes)


def take_classes(table: ClassRows, classes: Ints) -> AnyFloats:
    """Return the columns of some classes, ``float[n, len(classes)]``."""
    return by_chunks(lambda rows: np.asarray(table[rows])[:, classes], len(table))


def spread_classes(table: ClassRows, classes: Ints, labels: Ints, n_classes: int) -> ClassRows:
    """Return rows of all classes with the columns of some; the others are zero."""

    def spread(rows: slice) -> ClassRows:
        block = np.asarray(table[rows])
        whole = np.zeros((len(block), n_classes), dtype=block.dtype)
        whole[:, classes] = block
        return keep_top(whole, labels[rows])

    return by_chunks(spread, len(labels))


def constant_rows(value: float, labels: Ints, classes: int) -> TopClasses:
    """Return rows in which every class has the same number."""
    rest = np.full(len(labels), value, dtype=np.float32)
    return TopClasses(rest[:, None], labels[:, None].astype(_index_type(classes)), rest, classes)


def _index_type(classes: int) -> type[np.signedinteger[Any]]:
    return np.int16 if classes < 2**15 else np.int32


def zero_rows(labels: Ints, classes: int) -> ClassRows:
    """Return rows of zeros, ``float32[n, c]``."""
    if classes > MAX_DENSE_CLASSES:
        return constant_rows(0.0, labels, classes)
    return np.zeros((len(labels), classes), dtype=np.float32)


def predicted(rows: RowSource) -> Ints:
    """Return the class of each row's largest number, ``int64[n]``."""
    return by_chunks(lambda chunk: rows[chunk].argmax(axis=1), len(rows))


def largest(rows: RowSource) -> AnyFloats:
    """Return each row's largest number, ``float[n]``."""
    return by_chunks(lambda chunk: rows[chunk].max(axis=1), len(rows))


def apply(function: Callable[[AnyFloats], AnyFloats], rows: ClassRows) -> ClassRows:
    """Return a function of each number."""
    return rows.map(function) if isinstance(rows, TopClasses) else function(rows)


def as_float64(values: AnyFloats) -> Floats:
    """Return numbers in double precision."""
    return values.astype(np.float64)


def logs_of(probs: RowSource) -> RowSource:
    """Return the logarithms of rows, taken when they are read."""
    return LazyRows(probs, lambda rows: apply(np.log, rows))


def doubles_of(rows: RowSource) -> RowSource:
    """Return rows in double precision, converted when they are read."""
    return LazyRows(rows, lambda block: apply(as_float64, block))
