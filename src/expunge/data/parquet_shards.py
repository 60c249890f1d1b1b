"""Data sets in one Parquet file or many: labels and ids are read whole, inputs by row group.

This module imports pyarrow: import it where it is used.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from expunge.data.encoded import MAX_BYTES_IN_MEMORY, Encoded, EncodedBytes, is_audio
from expunge.data.inputs import Inputs, Positions, ReadGroups, TensorInputs
from expunge.data.parquet import (
    class_names,
    hub_feature,
    is_vector,
    read_column,
    read_columns,
    read_features,
    read_schema,
    require_columns,
    vectors_of,
)
from expunge.data.rows import Rows
from expunge.data.shards import find_shards
from expunge.data.texts import Texts
from expunge.errors import DataError
from expunge.storage.digest_cache import file_digests
from expunge.storage.parquet_files import holds_text, open_parquet
from expunge.storage.reading import reading

if TYPE_CHECKING:
    from expunge.data.data_config import DataConfig


@dataclass(frozen=True)
class Shards:
    """The files of one data set, and the position of the first row of each, and of the end."""

    files: tuple[Path, ...]
    starts: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, split: str) -> Shards:
        """Find the files and count their rows."""
        files = tuple(find_shards(path, ".parquet", split))
        counts = [read_schema(file)[1] for file in files]
        return cls(files, tuple(np.cumsum([0, *counts]).tolist()))

    def __len__(self) -> int:
        return self.starts[-1]

    def column(self, name: str, ids: np.ndarray | None = None) -> np.ndarray:
        """Read a column of numbers or strings of all files; a DataError names the ids of nulls."""

        def read(file: Path, rows: slice) -> np.ndarray:
            return read_column(file, name, ids=None if ids is None else ids[rows])

        parts = self.each(read)
        kinds = {("U" if part.dtype.kind == "U" else "n"): file for part, file in parts}
        if len(kinds) > 1:
            raise DataError(
                f"column '{name}' holds numbers in {kinds['n'].name} and strings in "
                f"{kinds['U'].name}",
                where=str(self.files[0].parent),
                fix="write all shards with the same types",
            )
        return np.concatenate([part for part, _ in parts]) if parts else np.empty(0, np.int64)

    def nulls(self, name: str) -> np.ndarray:
        """Which rows of a column have no value, ``bool[n]``."""
        parts = self.each(lambda file, _: read_columns(file, [name]))
        nulls = [part.column(0).is_null().to_numpy() for part, _ in parts]
        return np.concatenate(nulls) if nulls else np.empty(0, bool)

    def class_names(self, label: str) -> tuple[str, ...]:
        """The class names that the files state, which must be the same."""
        names = class_names(self.files[0], label)
        for file in self.files[1:]:
            if class_names(file, label) != names:
                raise DataError(
                    f"other class names than in {self.files[0].name}",
                    where=str(file),
                    fix="write all shards with the same ClassLabel",
                )
        return names

    def each(self, read: Callable[[Path, slice], Any]) -> list[tuple[Any, Path]]:
        """What is read of every file that has rows, and the file."""
        bounds = zip(self.files, self.starts, self.starts[1:], strict=False)
        return [(_read_all(read, file, slice(a, b)), file) for file, a, b in bounds if b > a]


def _read_all(read: Callable[[Path, slice], Any], file: Path, rows: slice) -> Any:
    part, n = read(file, rows), rows.stop - rows.start
    if len(part) != n:
        raise DataError(
            f"damaged: {len(part):,} rows can be read of the {n:,} that it states",
            where=str(file),
            fix="write or download this file again",
        )
    return part


def parquet_rows(path: Path, config: DataConfig) -> Rows:
    """Read the columns of inputs, labels and, if named, ids of Parquet files.

    A struct ``{bytes, path}`` or binary holds encoded images or audio: the Hub's feature type
    decides, else the first bytes. A list of numbers holds features (``float32[d]``). With a
    tokenizer it holds texts. Class names are those of the Hub's ``ClassLabel``. The rows stand in
    the order of the files, see `find_shards`.

    Raises
    ------
    DataError
        If a file is missing or damaged, there are no rows, or a column is missing, differs between
        the files, has another type or nulls.
    """
    shards = Shards.open(path, config.split)
    if len(shards) == 0:
        raise DataError("no samples: the file has no rows", where=str(path))
    # If the labels are in another file, this one needs no label column.
    named = [config.input, config.pair, config.id]
    named += [config.label] if config.labels is None else []
    _check_columns(shards, [name for name in named if name is not None])
    n = len(shards)
    ids = np.arange(n) if config.id is None else shards.column(config.id)
    labels = np.zeros(n, dtype=np.int64)
    if config.labels is None:
        labels = shards.column(config.label, ids)
    inputs: Encoded | Inputs | Texts
    if config.tokenizer:
        inputs, is_audio_column = _texts(shards, config, ids), False
    else:
        inputs, is_audio_column = _inputs(shards, config.input, ids)
    return Rows(
        ids=ids,
        labels=labels,
        inputs=inputs,
        class_names=shards.class_names(config.label),
        has_explicit_ids=config.id is not None,
        is_audio=is_audio_column,
    )


class RowGroup(NamedTuple):
    """A row group: its file, its number there, the position of its first row, and its bytes.

    The bytes are those of all columns without compression: pyarrow 26 aborts the process where the
    description of a single column is damaged.
    """

    file: Path
    number: int
    start: int
    n_bytes: int


class GroupedColumn:
    """A column that is read by row group; the last groups read stay in memory."""

    def __init__(self, shards: Shards, name: str) -> None:
        self._files, self._name, self._n = shards.files, name, len(shards)
        self._row_groups = [
            group
            for file, start in zip(shards.files, shards.starts, strict=False)
            for group in _row_groups(file, start)
        ]
        self._starts = np.array([group.start for group in self._row_groups])
        largest = max((group.n_bytes for group in self._row_groups), default=1)
        self._max_groups = max(1, MAX_BYTES_IN_MEMORY // max(largest, 1))
        self._read: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._n

    def content(self) -> str:
        """Hash the files and the name of the column."""
        digests = file_digests(self._files)
        text = digests[0] if len(digests) == 1 else "".join(digests)
        return hashlib.sha256(f"{text}{self._name}".encode()).hexdigest()

    def groups_of(self, positions: Positions) -> np.ndarray:
        """The row group of each position."""
        return np.searchsorted(self._starts, positions, side="right") - 1

    def read_groups(self, positions: Positions) -> ReadGroups | None:
        """See `expunge.data.inputs.read_groups`."""
        if self._max_groups >= len(self._row_groups):
            return None
        return ReadGroups(self.groups_of(positions), self._max_groups)

    def group(self, g: int) -> Any:
        """A row group as an Arrow array."""
        with self._lock:
            if g not in self._read:
                self._read[g] = self._decode(g)
                while len(self._read) > self._max_groups:
                    self._read.popitem(last=False)
            self._read.move_to_end(g)
            return self._read[g]

    def _decode(self, g: int) -> Any:
        file, number, _, _ = self._row_groups[g]
        what = f"damaged: row group {number} cannot be read"
        with open_parquet(file, what=what, fix="write or download this file again") as opened:
            column = opened.read_row_group(number, columns=[self._name]).column(0)
            if pa.types.is_struct(column.type):
                column = pc.struct_field(column, "bytes")
            return column.combine_chunks()


class EncodedColumn(GroupedColumn):
    """Images or clips of a Parquet column."""

    def read(self, position: int) -> bytes | None:
        g = int(self.groups_of(np.array([position]))[0])
        # A damaged group can hold fewer rows than the file says.
        with reading(self._row_groups[g][0], what="not a Parquet file, or a damaged one"):
            value: bytes | None = self.group(g)[position - int(self._starts[g])].as_py()
        return value

    def locate(self, position: int) -> Encoded:
        return EncodedBytes(self.read(position))


class VectorColumn(GroupedColumn):
    """Lists of numbers that do not fit into memory, ``float32[d]`` by position."""

    def __init__(self, shards: Shards, name: str, ids: np.ndarray) -> None:
        super().__init__(shards, name)
        self._ids, self._width = ids, 0
        for g in range(len(self._row_groups)):
            self._vectors(g)

    def batch(self, positions: Positions) -> Tensor:
        out = torch.empty(len(positions), self._width)
        groups = self.groups_of(np.asarray(positions))
        for g in dict.fromkeys(groups.tolist()):
            at = np.flatnonzero(groups == g)
            rows = torch.from_numpy(positions[at] - self._starts[g])
            out[torch.from_numpy(at)] = self._vectors(g)[rows]
        return out

    def fingerprint(self) -> str:
        return self.content()

    def _vectors(self, g: int) -> Tensor:
        """The rows of a group, all as wide as those of the first."""
        file, _, start, _ = self._row_groups[g]
        column = self.group(g)
        values = vectors_of(column, self._name, self._ids[start : start + len(column)], file)
        self._width = self._width or values.shape[1]
        _check_width(self._width, values, self._name, file)
        return values


def _row_groups(file: Path, start: int) -> list[RowGroup]:
    with open_parquet(file) as opened:
        about = opened.metadata
        groups = [about.row_group(g) for g in range(about.num_row_groups)]
        starts = np.cumsum([start, *(group.num_rows for group in groups)]).tolist()
        return [
            RowGroup(file, g, starts[g], group.total_byte_size)
            for g, group in enumerate(groups)
            if group.num_rows
        ]


def _check_columns(shards: Shards, names: list[str]) -> None:
    """Every file must have the columns, and the class names of the first."""
    first = read_schema(shards.files[0])[0]
    require_columns(first, names, shards.files[0])
    for file in shards.files[1:]:
        schema = read_schema(file)[0]
        missing = [name for name in names if schema.names.count(name) != 1]
        changed = [n for n in names if n not in missing and not _is_alike(first, schema, n)]
        if missing or changed:
            name = (missing or changed)[0]
            found = "is missing" if missing else f"holds {schema.field(name).type}"
            raise DataError(
                f"shards with different columns: '{name}' {found} here and holds "
                f"{first.field(name).type} in {shards.files[0].name}",
                where=str(file),
                fix="write all shards with the same columns, or name the files to read by a "
                "pattern in path",
            )


def _is_alike(first: Any, schema: Any, name: str) -> bool:
    """Whether a column is of the same kind in both; widths of numbers may differ."""
    a, b = (s.field(name).type for s in (first, schema))
    plain = [k.value_type if pa.types.is_dictionary(k) else k for k in (a, b)]
    tests = (pa.types.is_integer, pa.types.is_floating, is_vector, pa.types.is_struct)
    texts = [holds_text(k) for k in plain]
    binary = [pa.types.is_binary(k) or pa.types.is_large_binary(k) for k in plain]
    return all(texts) or all(binary) or any(t(plain[0]) and t(plain[1]) for t in tests)


def _texts(shards: Shards, config: DataConfig, ids: np.ndarray) -> Texts:
    """The columns of texts; numbers are texts too."""
    first, *second = (
        shards.column(name, ids).astype(str).tolist()
        for name in (config.input, config.pair)
        if name is not None
    )
    return Texts(first, second[0] if second else None)


def _inputs(shards: Shards, name: str, ids: np.ndarray) -> tuple[Encoded | Inputs, bool]:
    """The column, and whether it is encoded audio."""
    schema = read_schema(shards.files[0])[0]
    kind = schema.field(name).type
    feature = hub_feature(schema, name).get("_type", "Value")
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if pa.types.is_struct(kind):
        is_bytes = any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    if is_bytes and feature in ("Image", "Audio", "Value"):
        column = EncodedColumn(shards, name)
        known = feature != "Value"
        return column, feature == "Audio" if known else is_audio(column, len(ids))
    if is_vector(kind):
        return _vectors(shards, name, ids), False
    raise DataError(
        f"column '{name}' holds {feature if is_bytes else kind}, expected images or "
        "audio (bytes, or a struct with bytes) or lists of numbers",
        where=str(shards.files[0]),
        fix="for texts, set tokenizer to the folder of the model's tokenizer"
        if holds_text(kind)
        else "name the input column",
    )


def _vectors(shards: Shards, name: str, ids: np.ndarray) -> Inputs:
    """Lists of numbers: in memory if they fit, else by row group."""
    groups = [g for f in shards.files for g in _row_groups(f, 0)]
    if sum(group.n_bytes for group in groups) >= MAX_BYTES_IN_MEMORY:
        return VectorColumn(shards, name, ids)
    parts = shards.each(lambda file, rows: read_features(file, name, ids[rows]))
    for values, file in parts:
        _check_width(parts[0][0].shape[1], values, name, file)
    return TensorInputs(torch.cat([values for values, _ in parts]))


def _check_width(width: int, values: Tensor, name: str, file: Path) -> None:
    if values.shape[1] != width:
        raise DataError(
            f"column '{name}' holds lists of {values.shape[1]} numbers here and of {width} in the "
            "rows before",
            where=str(file),
            fix="write all rows with the same number of columns",
        )
