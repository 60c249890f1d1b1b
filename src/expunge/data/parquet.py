"""The columns of one Parquet file, plain or in the layout of the Hugging Face Hub.

`parquet_shards` reads data sets of one or many files. Both modules import pyarrow: import them
where they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from expunge.data.encoded import LFS_POINTER
from expunge.data.paths import require_file
from expunge.errors import DataError, did_you_mean, format_ids
from expunge.storage.json_files import parse_json
from expunge.storage.parquet_files import holds_text, open_parquet
from expunge.storage.reading import reading


def read_column(path: Path, name: str, *, ids: np.ndarray | None = None) -> np.ndarray:
    """Read a column of numbers, truth values or strings; a DataError names the ids of nulls."""
    require_columns(read_schema(path)[0], [name], path)
    column = _read(path, [name]).column(0)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        at = np.flatnonzero(pc.is_null(column).to_numpy(zero_copy_only=False))
        rows = at if ids is None else ids[at]
        raise DataError(
            f"missing values (null) in column '{name}': {'rows' if ids is None else 'ids'} "
            f"{format_ids(rows)}",
            where=str(path),
            fix="fill in or remove these rows",
        )
    kind = column.type
    if holds_text(kind):
        return np.array(column.to_pylist(), dtype=str)
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return np.asarray(column.to_numpy())
    raise DataError(
        f"column '{name}' holds {kind}, expected numbers, truth values or strings",
        where=str(path),
        fix="give one value for each sample; several labels are one column each"
        if pa.types.is_nested(kind)
        else "write it as strings",
    )


def read_values(path: Path, name: str) -> np.ndarray:
    """Read a column of truth values ``bool[n]``, or of lists of numbers ``float64[n, k]``."""
    require_columns(read_schema(path)[0], [name], path)
    column = _read(path, [name]).column(0)
    if not column.null_count and pa.types.is_boolean(column.type):
        return np.asarray(column.to_numpy())
    try:
        values = np.array(column.to_pylist(), dtype=np.float64)
    except (TypeError, ValueError, OverflowError, pa.ArrowException):
        values = np.empty(0)
    if column.null_count or values.ndim != 2:
        raise DataError(
            f"column '{name}' holds {column.type}, expected truth values, or lists of as many "
            "numbers as there are classes, and no null",
            where=str(path),
        )
    return values


def read_columns(path: Path, names: list[str]) -> pa.Table:
    """Read some columns as an Arrow table; a DataError says which is not there."""
    require_columns(read_schema(path)[0], names, path)
    return _read(path, list(dict.fromkeys(names)))


def column_names(path: Path) -> list[str]:
    """The names of the columns, in their order."""
    return list(read_schema(path)[0].names)


def column_types(path: Path) -> dict[str, str]:
    """What each column holds: ``"encoded"`` (bytes), ``"vector"``, ``"plain"`` or ``"other"``."""
    found = {}
    for field in read_schema(path)[0]:
        kind = field.type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found[field.name] = "encoded"
        elif pa.types.is_struct(kind):
            found[field.name] = "encoded" if "bytes" in names else "other"
        elif is_vector(kind):
            found[field.name] = "vector"
        else:
            tests = (holds_text, pa.types.is_integer, pa.types.is_floating)
            known = any(test(plain) for test in tests)
            found[field.name] = "plain" if known else "other"
    return found


def class_names(path: Path, name: str) -> tuple[str, ...]:
    """The class names of the Hub's ``ClassLabel`` metadata; () if there is none."""
    names = hub_feature(read_schema(path)[0], name).get("names", ())
    return tuple(map(str, names)) if isinstance(names, list) else ()


def read_schema(path: Path) -> tuple[Any, int]:
    """The schema and the number of rows of a file."""
    require_file(path)
    with reading(path), path.open("rb") as start:
        is_pointer = start.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        raise DataError("a pointer of Git LFS, not the file", where=str(path), fix="git lfs pull")
    with open_parquet(path, fix="set source to the kind of this file") as file:
        return file.schema_arrow, file.metadata.num_rows


def _read(path: Path, columns: list[str]) -> Any:
    with open_parquet(path, what="a damaged Parquet file") as file:
        return file.read(columns=columns)


def require_columns(schema: Any, names: list[str], path: Path) -> None:
    """Raise DataError unless each of these columns is there, once."""
    for name in names:
        if schema.names.count(name) != 1:
            problem = "no column is" if name not in schema.names else "several columns are"
            raise DataError(
                f"{problem} called '{name}'", where=str(path), fix=did_you_mean(name, schema.names)
            )


def hub_feature(schema: Any, name: str) -> dict[str, Any]:
    """The Hub's description of a column; empty if there is none."""
    try:
        described = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = described["info"]["features"][name]
    except (ValueError, KeyError, TypeError):
        return {}
    return feature if isinstance(feature, dict) else {}


def read_features(path: Path, name: str, ids: np.ndarray | None = None) -> torch.Tensor:
    """Read a column of lists of numbers, ``float32[n, d]``; ids name the rows in messages."""
    schema, n = read_schema(path)
    require_columns(schema, [name], path)
    ids = np.arange(n) if ids is None else ids
    column = _read(path, [name]).column(0)
    if not is_vector(column.type):
        raise DataError(
            f"column '{name}' holds {column.type}, expected lists of numbers", where=str(path)
        )
    return vectors_of(column, name, ids, path)


def vectors_of(column: Any, name: str, ids: np.ndarray, path: Path) -> torch.Tensor:
    """The lists of numbers of an Arrow column, ``float32[n, d]``."""
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return torch.empty(0, 0)
    null = np.isnan(lengths.astype(float))
    width = int(np.bincount(lengths[~null].astype(int)).argmax()) if not null.all() else 0
    different = null | (lengths != width)
    if different.any() or width == 0:
        raise DataError(
            f"column '{name}' must hold {width or 'one or more'} numbers in every row: "
            f"ids {format_ids(ids[different] if different.any() else ids)}",
            where=str(path),
            fix="write as many numbers in every row, or remove these rows",
        )
    flat = pc.list_flatten(column)
    if flat.null_count:
        at = np.flatnonzero(pc.is_null(flat).to_numpy(zero_copy_only=False)) // width
        raise DataError(
            f"column '{name}' holds nulls: ids {format_ids(ids[np.unique(at)])}",
            where=str(path),
            fix="fill in or remove these rows",
        )
    values = flat.to_numpy().astype(np.float32)
    return torch.from_numpy(values.reshape(len(ids), width))


def is_vector(kind: Any) -> bool:
    """Whether a column of this type holds lists of numbers."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(kind) for test in lists):
        return False
    inner = kind.value_type
    return bool(pa.types.is_integer(inner) or pa.types.is_floating(inner))
