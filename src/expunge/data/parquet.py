"""Parquet files, plain or in the layout of the Hugging Face Hub.

This module imports pyarrow: import it where it is used.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from expunge.data.encoded import LFS_POINTER, MAX_BYTES_IN_MEMORY, Encoded, is_audio
from expunge.data.inputs import Inputs, TensorInputs
from expunge.data.paths import require_file
from expunge.data.rows import Rows
from expunge.data.texts import Texts
from expunge.errors import DataError, did_you_mean, format_ids
from expunge.storage.digests import file_digest
from expunge.storage.json_files import parse_json
from expunge.storage.parquet_files import open_parquet
from expunge.storage.reading import reading

if TYPE_CHECKING:
    from expunge.data.sources import DataConfig


def parquet_rows(path: Path, config: DataConfig) -> Rows:
    """Read the columns of inputs, labels and, if named, ids of a Parquet file.

    A struct ``{bytes, path}`` or binary holds encoded images or audio: the Hub's feature type
    decides, else the first bytes. A list of numbers holds features (``float32[d]``). With a
    tokenizer it holds texts. Class names are those of the Hub's ``ClassLabel``.

    Raises
    ------
    DataError
        If the file is damaged or empty, lacks a column, or a column has another type or nulls.
    """
    schema, n = _read_schema(path)
    if n == 0:
        raise DataError("no samples: the file has no rows", where=str(path))
    # If the labels are in another file, this one needs no label column.
    named = [config.input, config.pair, config.id]
    named += [config.label] if config.labels is None else []
    _require_columns(schema, [name for name in named if name is not None], path)
    ids = np.arange(n) if config.id is None else read_column(path, config.id)
    labels = np.zeros(n, dtype=np.int64)
    if config.labels is None:
        labels = read_column(path, config.label, ids=ids)
    inputs: Encoded | Inputs | Texts
    if config.tokenizer:
        inputs, is_audio_column = _texts(path, config, ids), False
    else:
        inputs, is_audio_column = _inputs(path, schema, config.input, ids)
    return Rows(
        ids=ids,
        labels=labels,
        inputs=inputs,
        class_names=class_names(path, config.label),
        has_explicit_ids=config.id is not None,
        is_audio=is_audio_column,
    )


def read_column(path: Path, name: str, *, ids: np.ndarray | None = None) -> np.ndarray:
    """Read a column of integers, floats or strings; a DataError names the ids of nulls."""
    _require_columns(_read_schema(path)[0], [name], path)
    column = _read(path, [name]).column(0)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        at = np.flatnonzero(pc.is_null(column).to_numpy(zero_copy_only=False))
        rows = at if ids is None else ids[at]
        raise DataError(
            f"column '{name}' is null: {'rows' if ids is None else 'ids'} {format_ids(rows)}",
            where=str(path),
            fix="fill in or remove these rows",
        )
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=str)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(column.to_numpy())
    raise DataError(f"column '{name}' holds {kind}, expected integers or strings", where=str(path))


def read_values(path: Path, name: str) -> np.ndarray:
    """Read a column of truth values ``bool[n]``, or of lists of numbers ``float64[n, k]``."""
    _require_columns(_read_schema(path)[0], [name], path)
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
    _require_columns(_read_schema(path)[0], names, path)
    return _read(path, list(dict.fromkeys(names)))


def column_names(path: Path) -> list[str]:
    """The names of the columns, in their order."""
    return list(_read_schema(path)[0].names)


def column_types(path: Path) -> dict[str, str]:
    """What each column holds: ``"encoded"`` (bytes), ``"vector"``, ``"plain"`` or ``"other"``."""
    found = {}
    for field in _read_schema(path)[0]:
        kind = field.type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found[field.name] = "encoded"
        elif pa.types.is_struct(kind):
            found[field.name] = "encoded" if "bytes" in names else "other"
        elif _is_vector(kind):
            found[field.name] = "vector"
        else:
            tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
            known = any(test(plain) for test in (*tests, pa.types.is_floating))
            found[field.name] = "plain" if known else "other"
    return found


def row_count(path: Path) -> int:
    """The number of rows."""
    return int(_read_schema(path)[1])


def class_names(path: Path, name: str) -> tuple[str, ...]:
    """The class names of the Hub's ``ClassLabel`` metadata; () if there is none."""
    names = hub_feature(_read_schema(path)[0], name).get("names", ())
    return tuple(map(str, names)) if isinstance(names, list) else ()


class EncodedColumn:
    """Images or clips of a Parquet column, read by row group; the last groups stay in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with open_parquet(path) as file:
            groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *(g.num_rows for g in groups)])
        largest = max((g.total_byte_size for g in groups), default=1)
        self._max_groups = max(1, MAX_BYTES_IN_MEMORY // max(largest, 1))
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, position: int) -> bytes | None:
        g = int(np.searchsorted(self._starts, position, side="right")) - 1
        value: bytes | None = self._group(g)[position - int(self._starts[g])].as_py()
        return value

    def content(self) -> str:
        with reading(self._path):
            digest = file_digest(self._path)
        return hashlib.sha256(f"{digest}{self._name}".encode()).hexdigest()

    def _group(self, g: int) -> Any:
        with self._lock:
            if g not in self._groups:
                column = _read(self._path, [self._name], group=g).column(0)
                if pa.types.is_struct(column.type):
                    column = pc.struct_field(column, "bytes")
                self._groups[g] = column.combine_chunks()
                while len(self._groups) > self._max_groups:
                    self._groups.popitem(last=False)
            return self._groups[g]


def _read_schema(path: Path) -> tuple[Any, int]:
    """The schema and the number of rows."""
    require_file(path)
    with reading(path), path.open("rb") as start:
        is_pointer = start.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        raise DataError("a pointer of Git LFS, not the file", where=str(path), fix="git lfs pull")
    with open_parquet(path, fix="set source to the kind of this file") as file:
        return file.schema_arrow, file.metadata.num_rows


def _read(path: Path, columns: list[str], *, group: int | None = None) -> Any:
    with open_parquet(path, what="a damaged Parquet file") as file:
        if group is None:
            return file.read(columns=columns)
        return file.read_row_group(group, columns=columns)


def _require_columns(schema: Any, names: list[str], path: Path) -> None:
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


def _texts(path: Path, config: DataConfig, ids: np.ndarray) -> Texts:
    """The columns of texts; numbers are texts too."""
    first, *second = (
        read_column(path, name, ids=ids).astype(str).tolist()
        for name in (config.input, config.pair)
        if name is not None
    )
    return Texts(first, second[0] if second else None)


def _inputs(path: Path, schema: Any, name: str, ids: np.ndarray) -> tuple[Encoded | Inputs, bool]:
    """The column, and whether it is encoded audio."""
    kind = schema.field(name).type
    feature = hub_feature(schema, name).get("_type", "Value")
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if pa.types.is_struct(kind):
        is_bytes = any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    if is_bytes and feature in ("Image", "Audio", "Value"):
        column = EncodedColumn(path, name)
        known = feature != "Value"
        return column, feature == "Audio" if known else is_audio(column, len(ids))
    if _is_vector(kind):
        return TensorInputs(read_features(path, name, ids)), False
    raise DataError(
        f"column '{name}' holds {feature if is_bytes else kind}, expected images or "
        "audio (bytes, or a struct with bytes) or lists of numbers",
        where=str(path),
        fix="for texts, set tokenizer to the folder of the model's tokenizer"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind)
        else "name the input column",
    )


def read_features(path: Path, name: str, ids: np.ndarray | None = None) -> torch.Tensor:
    """Read a column of lists of numbers, ``float32[n, d]``; ids name the rows in messages."""
    schema, n = _read_schema(path)
    _require_columns(schema, [name], path)
    ids = np.arange(n) if ids is None else ids
    column = _read(path, [name]).column(0)
    if not _is_vector(column.type):
        raise DataError(
            f"column '{name}' holds {column.type}, expected lists of numbers", where=str(path)
        )
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
        )
    flat = pc.list_flatten(column)
    if flat.null_count:
        at = np.flatnonzero(pc.is_null(flat).to_numpy(zero_copy_only=False)) // width
        raise DataError(
            f"column '{name}' holds nulls: ids {format_ids(ids[np.unique(at)])}", where=str(path)
        )
    values = flat.to_numpy().astype(np.float32)
    return torch.from_numpy(values.reshape(len(ids), width))


def _is_vector(kind: Any) -> bool:
    """Whether a column of this type holds lists of numbers."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(kind) for test in lists):
        return False
    inner = kind.value_type
    return bool(pa.types.is_integer(inner) or pa.types.is_floating(inner))
