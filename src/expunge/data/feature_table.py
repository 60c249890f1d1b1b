"""Tables of any kind as numbers: arrays, DataFrames, Arrow tables, columns of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from expunge._core.arrays import Array, Bools, Floats32
from expunge.data.conversion import (
    arrays_of,
    check_names,
    fix_array,
    is_foreign_array,
    to_numpy,
)
from expunge.errors import DataError, format_ids
from expunge.records.arrays import finite_rows
from expunge.storage.parquet_files import holds_text

# A column of texts becomes one column for each of its most frequent values.
MAX_CATEGORIES = 32
# With more distinct texts, in more than this share of the rows, it holds free text or names.
MAX_TEXTS, MAX_TEXT_SHARE = 100, 0.2
# What an index is called where it has become a column.
_INDEX_NAMES = {"", "unnamed: 0", "index", "level_0", "__index_level_0__", "id"}
# A sparse matrix of more bytes is not made dense.
MAX_DENSE_BYTES = 4 << 30
# Numbers beyond this are moved to zero; the spread of numbers below this becomes 1.
_LARGE, _TINY = 1e4, 1e-6
_TICKS_PER_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}


class DataFrame(Protocol):
    """A DataFrame of pandas or polars."""

    @property
    def columns(self) -> Any: ...
    def __len__(self) -> int: ...


# What can be read as features; see `as_feature_table`.
Table: TypeAlias = (
    np.ndarray | Tensor | DataFrame | pa.Table | Mapping[str, Sequence[object]] | Sequence[object]
)


@dataclass(frozen=True)
class FeatureTable:
    """Features as numbers.

    Parameters
    ----------
    values
        ``float32[n, d]``, finite; the caller's own array where it is that already.
    names
        What each of the d columns is made of.
    rows
        The columns as they came, for people to read; None for a plain array.
    index
        ``[n]``, unique names of the rows that came with them, or None.
    notes
        What was filled in or left out, in sentences.
    """

    values: Floats32
    names: tuple[str, ...]
    rows: pa.Table | None = None
    index: Array | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)


class _Column(NamedTuple):
    """Numbers made of one column, ``float64[n, k]``; NaN where a value is missing."""

    values: Array
    names: tuple[str, ...]
    note: str = ""


def as_feature_table(features: Table, *, where: str = "features") -> FeatureTable:
    """Convert features to numbers.

    Numbers and truth values stay as they are, dates become days and durations seconds. A column of
    lists of numbers becomes as many columns. Texts and categories become one column for each of the
    32 most frequent values; free text is left out. A missing number becomes the median of its
    column, and one more column says where. A column of row numbers, as pandas writes its index, is
    left out.

    Parameters
    ----------
    features
        ``[n, d]`` or ``[n]``: an array, a tensor, a list of rows, a sparse matrix, a DataFrame
        (pandas, polars), an Arrow table, or a mapping from names to columns.
    where
        How messages call them.

    Returns
    -------
    FeatureTable
        One row for each row of the features.

    Raises
    ------
    DataError
        If they are no table, a number is infinite, a vector is missing, or no column is left.

    Examples
    --------
    >>> table = as_feature_table({"size": [1.0, None, 3.0], "colour": ["red", "red", "blue"]})
    >>> table.names
    ('size', 'size is missing', 'colour=blue', 'colour=red')
    >>> table.values.tolist()
    [[1.0, 0.0, 0.0, 1.0], [2.0, 1.0, 0.0, 1.0], [3.0, 0.0, 1.0, 0.0]]
    """
    index = _index_of(features)
    matrix = _as_matrix(features, where)
    rows = None
    if matrix is not None:
        columns = [_Column(matrix, tuple(str(k) for k in range(matrix.shape[1])))]
    else:
        rows = as_arrow(features, where)
        columns = [c for name in rows.column_names for c in _encode(rows, name, where)]
    notes = [c.note for c in columns if c.note]
    filled = [_fill(c) for c in columns if c.values.shape[1]]
    notes += [c.note for c in filled if c.note]
    if not filled:
        raise DataError(
            "no column holds features" + "".join(f"; {note}" for note in notes),
            where=where,
            fix="name columns of numbers, categories or vectors (embeddings of texts, for example)",
        )
    table = filled[0].values if len(filled) == 1 else np.hstack([c.values for c in filled])
    values = _to_32_bits(table)
    _check_values(values, where)
    if len(values) > 1 and (values == values[0]).all():
        raise DataError(
            "no column differs between the rows: " + format_ids(n for c in filled for n in c.names),
            where=where,
            fix="name the columns of the features",
        )
    names = tuple(name for c in filled for name in c.names)
    return FeatureTable(values, names, rows, index, tuple(notes))


def as_arrow(table: Any, where: str) -> Any:
    """Return a DataFrame, an Arrow table or a mapping of columns as an Arrow table.

    Raises
    ------
    DataError
        If it is none of these, two columns have one name, or a column holds values of mixed types.
    """
    try:
        if isinstance(table, pa.Table):
            found = table
        elif hasattr(table, "iloc"):  # pandas: its index is no column
            frame = table.to_frame() if getattr(table, "ndim", 2) == 1 else table
            renamed = frame.set_axis([str(name) for name in frame.columns], axis=1)
            check_names(list(renamed.columns), where)
            found = pa.Table.from_pandas(_plain_columns(renamed), preserve_index=False)
        elif isinstance(table, Mapping):
            found = pa.table({str(name): _as_arrow_column(v) for name, v in table.items()})
        elif hasattr(table, "__arrow_c_stream__"):
            found = pa.table(table)
        else:
            raise DataError(
                f"got {type(table).__name__}, expected an array, a DataFrame or named columns",
                where=where,
                fix=fix_array(table, "features"),
            )
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"not a table of plain columns ({error})",
            where=where,
            fix=fix_array(table, "features")
            if arrays_of(table)
            else "write each column in one type, of one length",
        ) from error
    check_names(found.column_names, where)
    return _without_views(found)


def _counts_rows(values: Array) -> bool:
    """Whether a column is 0, 1, 2 … or 1, 2, 3 …; the order of rows would show their classes."""
    return len(values) > 2 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def _without_views(table: Any) -> Any:
    """The table without ``string_view``, which Polars makes and Arrow can do little with."""
    for k, field in enumerate(table.schema):
        column, is_category = table.column(k), pa.types.is_dictionary(field.type)
        if is_category and field.type.value_type == pa.string_view():
            chunks = [
                pa.DictionaryArray.from_arrays(c.indices, c.dictionary.cast(pa.string()))
                for c in column.chunks
            ]
            table = table.set_column(k, field.name, pa.chunked_array(chunks))
        elif field.type == pa.string_view():
            table = table.set_column(k, field.name, column.cast(pa.string()))
    return table


def _plain_columns(frame: Any) -> Any:
    """A pandas frame without sparse columns and without categories that Arrow does not know."""
    plain = {}
    for name, column in frame.items():
        if hasattr(column, "sparse"):
            plain[name] = column.sparse.to_dense()
        elif hasattr(column, "cat") and column.cat.categories.dtype.kind not in "biufmM":
            names = column.cat.categories.astype(str)
            plain[name] = column.cat.rename_categories(names)
    return frame.assign(**plain) if plain else frame


def _as_arrow_column(values: Any) -> Any:
    if isinstance(values, Tensor):
        values = to_numpy(values)
    elif is_foreign_array(values) and not hasattr(values, "iloc"):
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values)


def _index_of(features: Any) -> Array | None:
    """Return the unique texts or whole numbers of a pandas index that is more than positions."""
    if not hasattr(features, "iloc"):
        return None
    index = features.index
    if type(index).__name__ == "RangeIndex" or not index.is_unique:
        return None
    values = np.asarray(index)
    if values.dtype.kind == "O" and all(isinstance(v, str) for v in values):
        values = values.astype(str)
    return values if values.dtype.kind in "iuU" else None


def _as_matrix(features: Any, where: str) -> Array | None:
    """Return arrays, tensors, sparse matrices and lists as ``float[n, d]``; None for tables."""
    if isinstance(features, Tensor):
        is_sparse = features.layout != torch.strided
        features = to_numpy(features.to_dense() if is_sparse else features)
    if is_foreign_array(features) and not hasattr(features, "iloc"):
        features = np.asarray(features)
    if isinstance(features, np.ma.MaskedArray):
        features = np.ma.filled(features.astype(np.float64), np.nan)
    if hasattr(features, "nnz") and hasattr(features, "toarray"):
        if 8 * features.shape[0] * features.shape[1] > MAX_DENSE_BYTES:
            raise DataError(
                f"a sparse matrix of shape {features.shape} does not fit into memory",
                where=where,
                fix="reduce it with sklearn.decomposition.TruncatedSVD",
            )
        features = features.toarray()
    if isinstance(features, list | tuple):
        try:
            features = np.asarray(features)
        except ValueError as error:
            raise DataError(f"rows of different lengths ({error})", where=where) from error
    if not isinstance(features, np.ndarray):
        return None
    if features.ndim == 1:
        features = features[:, None]
    if features.ndim != 2 or not features.shape[1]:
        raise DataError(
            f"shape {features.shape}, expected [n, d] with one column or more",
            where=where,
            fix="x.reshape(len(x), -1) makes one row a sample",
        )
    if features.dtype.kind == "O":
        features = _numbers_of_objects(features, where)
    if features.dtype.kind not in "biuf":
        raise DataError(
            f"dtype {features.dtype}, expected numbers",
            where=where,
            fix="give expunge.detect texts and categories as columns of a DataFrame",
        )
    matrix: Array = features
    return matrix


def _numbers_of_objects(features: Array, where: str) -> Array:
    try:
        return features.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"an array of objects that are not all numbers ({error})",
            where=where,
            fix="give expunge.detect texts and categories as columns of a DataFrame",
        ) from error


def _encode(rows: Any, name: str, where: str) -> Iterator[_Column]:
    """Yield numbers for one column: none for free text and empty columns."""
    column = rows.column(name).combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), column.type.value_type
    if column.null_count == len(column):
        yield _left_out(name, "is empty", len(column))
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        # Integers beyond 2⁵³ are rounded.
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if np.isnan(values).all():
            yield _left_out(name, "is empty", len(values))
        elif name.lower() in _INDEX_NAMES and _counts_rows(values):
            yield _left_out(name, "counts the rows", len(values))
        else:
            yield _Column(values[:, None], (name,))
    elif pa.types.is_decimal(kind):
        yield _Column(column.cast(pa.float64()).to_numpy(zero_copy_only=False)[:, None], (name,))
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        seconds = column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64())
        days = seconds.to_numpy(zero_copy_only=False) / (24 * 3600 * 1e6)
        yield _Column(days[:, None], (name,))
    elif pa.types.is_duration(kind):
        ticks = column.cast(pa.int64()).cast(pa.float64()).to_numpy(zero_copy_only=False)
        yield _Column((ticks / _TICKS_PER_SECOND[kind.unit])[:, None], (name,))
    elif holds_text(kind):
        yield _encode_texts(column, name)
    elif pa.types.is_nested(kind):
        yield _encode_vectors(column, name, where)
    else:
        raise DataError(
            f"column '{name}' holds {kind}, expected numbers, texts or lists of numbers",
            where=where,
            fix="leave it out",
        )


def _left_out(name: str, why: str, n: int) -> _Column:
    return _Column(np.empty((n, 0)), (), f"column '{name}' {why} and was left out")


def _encode_texts(column: Any, name: str) -> _Column:
    counts = pc.value_counts(column.drop_null())
    texts = np.array(counts.field("values").to_pylist(), dtype=object)
    frequency = counts.field("counts").to_numpy()
    n = len(column)
    if len(texts) > MAX_TEXTS and len(texts) > MAX_TEXT_SHARE * n:
        return _left_out(name, f"holds {len(texts):,} different texts", n)
    chosen = np.sort(texts[np.argsort(-frequency, kind="stable")[:MAX_CATEGORIES]])
    is_value = [pc.fill_null(pc.equal(column, pa.scalar(t, column.type)), False) for t in chosen]
    values = np.column_stack([flag.to_numpy(zero_copy_only=False) for flag in is_value])
    names = tuple(f"{name}={text}" for text in chosen)
    if column.null_count:
        missing = pc.is_null(column).to_numpy(zero_copy_only=False)
        values, names = np.column_stack([values, missing]), (*names, f"{name} is missing")
    return _Column(values.astype(np.float64), names)


def _encode_vectors(column: Any, name: str, where: str) -> _Column:
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not is_list and not pa.types.is_fixed_size_list(column.type):
        raise DataError(f"column '{name}' holds {column.type}", where=where, fix="leave it out")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.float64)
    width = int(np.bincount(lengths[np.isfinite(lengths)].astype(int)).argmax())
    different = lengths != width
    if different.any() or not width:
        raise DataError(
            f"column '{name}' must hold {width or 'one or more'} numbers in every row: rows "
            f"{format_ids(np.flatnonzero(different) if width else range(len(lengths)))}",
            where=where,
            fix="leave these rows out, or make their embeddings again",
        )
    try:
        flat = pc.list_flatten(column).cast(pa.float32()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"column '{name}' holds {column.type}", where=where) from error
    return _Column(flat.reshape(len(column), width), tuple(f"{name}.{k}" for k in range(width)))


def _fill(column: _Column) -> _Column:
    """Replace missing numbers by the median of their column, and say where they were."""
    if finite_rows(column.values).all():
        return column
    missing: Bools = np.isnan(column.values)
    if not missing.any():
        return column
    values, has_missing = column.values.astype(np.float64), missing.any(axis=0)
    is_empty = missing.all(axis=0)
    values[:, is_empty] = 0.0
    medians = np.nanmedian(values, axis=0)
    values = np.where(np.isnan(values), medians, values)
    # A column of a vector that is missing together with others says the same as they do.
    patterns = np.unique(missing[:, has_missing & ~is_empty], axis=1)
    named = [column.names[k] for k in np.flatnonzero(has_missing)]
    flags = [f"{named[0]} is missing"] if patterns.shape[1] == 1 else []
    flags = flags or [f"missing pattern {k}" for k in range(patterns.shape[1])]
    share = float(missing.any(axis=1).mean())
    note = f"{format_ids(named)}: values are missing in {share:.1%} of the rows; medians were used"
    return _Column(np.hstack([values, patterns]), (*column.names, *flags), note)


def _to_32_bits(table: Array) -> Floats32:
    """The numbers in 32 bits, with their differences.

    Columns of large numbers (dates, identifiers) are moved to zero. The spread of tiny numbers (SI
    units), which would count as rounding, becomes 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what 32 bits do not hold is named later
        low, high = (f(axis=0, initial=0).astype(np.float64) for f in (table.min, table.max))
        reach = high - low  # with zero
        moved = np.flatnonzero((reach > _LARGE) | ((reach > 0) & (reach < _TINY)))
        if len(moved):
            table = table.astype(np.float64)
        for k in moved:
            table[:, k] = _near_zero(table[:, k])
        return np.ascontiguousarray(table, dtype=np.float32)


def _near_zero(values: Array) -> Array:
    """Numbers of a column of which 32 bits keep the differences."""
    spread, median = float(np.ptp(values)), float(np.median(values))
    if 1e-6 * abs(median) < spread < _TINY:
        return (values - median) / spread
    return values - median if abs(median) > _LARGE and np.isfinite(median) else values


def _check_values(values: Floats32, where: str) -> None:
    if not len(values):
        raise DataError("no rows", where=where, fix="check the path and the selection")
    bad = ~finite_rows(values)
    if bad.any():
        raise DataError(
            "infinite numbers, or larger ones than 32 bits hold: rows "
            f"{format_ids(np.flatnonzero(bad))}",
            where=where,
            fix="repair these rows, or mark the values as missing (NaN)",
        )
