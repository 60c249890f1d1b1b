"""Manifests: a CSV or JSONL file with an input and a label in every row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expunge.data.encoded import Encoded, EncodedFiles, is_audio
from expunge.data.inputs import Inputs, TensorInputs
from expunge.data.labels import as_column, parse_integers
from expunge.data.paths import require_file, resolve_inside
from expunge.data.rows import Rows
from expunge.data.texts import Texts
from expunge.errors import DataError, did_you_mean, format_ids
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading

if TYPE_CHECKING:
    from expunge.data.sources import DataConfig


SEPARATORS = ",;\t|"


def manifest_rows(path: Path, config: DataConfig) -> Rows:
    """Read a CSV file with a header, or a JSONL file of objects.

    The input column holds paths relative to the manifest's folder, of images or of audio: the first
    bytes of the files decide. In JSONL it may hold lists of numbers of one length instead. With a
    tokenizer it holds texts.

    Raises
    ------
    DataError
        If the table cannot be read, lacks a column or a value, or a path leads out of the folder.
    """
    return _table_rows(read_table(path), path, config)


def csv_rows(path: Path, config: DataConfig) -> Rows:
    """Read a CSV file of any suffix; see `manifest_rows`."""
    return _table_rows(read_table(path, ".csv"), path, config)


def jsonl_rows(path: Path, config: DataConfig) -> Rows:
    """Read a JSONL file of any suffix; see `manifest_rows`."""
    return _table_rows(read_table(path, ".jsonl"), path, config)


def _table_rows(table: dict[str, Sequence[object]], path: Path, config: DataConfig) -> Rows:
    """The rows of a table that was read."""
    # If the labels are in another file, this one needs no label column.
    named = [config.input, config.pair, config.id]
    named += [config.label] if config.labels is None else []
    check_columns(table, [name for name in named if name is not None], path)
    n = len(table[config.input])
    if n == 0:
        raise DataError("no rows below the header", where=str(path))
    ids = np.arange(n)
    if config.id is not None:
        ids = table_column(table, config.id, np.arange(1, n + 1), path)
    labels = np.zeros(n, dtype=np.int64)
    if config.labels is None:
        labels = label_column(table, config.label, ids, path)
    root = Path(config.root) if config.root else path.parent
    inputs: Encoded | Inputs | Texts
    if config.tokenizer:
        inputs = _texts(table, config, ids, path)
    else:
        inputs = _inputs(table, config.input, ids, path, root)
    return Rows(
        ids=ids,
        labels=labels,
        inputs=inputs,
        has_explicit_ids=config.id is not None,
        is_audio=not isinstance(inputs, Inputs | Texts) and is_audio(inputs, n),
    )


def read_table(path: Path, suffix: str = "") -> dict[str, Sequence[object]]:
    """Read the columns of a CSV or JSONL file; without a suffix that of the path decides.

    The fields of a CSV file are separated by commas, semicolons, tabs or bars; space around them is
    removed. A column of which all values are integers becomes integers; others are strings.
    """
    require_file(path)
    with (
        reading(path, what="not a text table", fix="save it as CSV or JSONL in UTF-8"),
        path.open(encoding="utf-8-sig", newline="") as file,
    ):
        if (suffix or path.suffix.lower()) == ".jsonl":
            return _jsonl(list(file), path)
        return _csv(_split_rows(file.read()), path)


def check_columns(table: dict[str, Sequence[object]], names: list[str], path: Path) -> None:
    """Raise DataError if the table lacks one of these columns."""
    for name in names:
        if name not in table:
            raise DataError(
                f"no column is called '{name}'", where=str(path), fix=did_you_mean(name, table)
            )


def table_column(
    table: dict[str, Sequence[object]], name: str, ids: np.ndarray, path: Path
) -> np.ndarray:
    """One column as integers, floats or strings; a DataError names the ids without a value."""
    return as_column(table[name], ids, what=f"column '{name}'", where=str(path))


def label_column(
    table: dict[str, Sequence[object]], name: str, ids: np.ndarray, path: Path
) -> np.ndarray:
    """A column of labels: those of a CSV file are text, and so names before they are indices."""
    values = table_column(table, name, ids, path)
    return values.astype(str) if path.suffix.lower() != ".jsonl" else values


def _split_rows(text: str) -> list[list[str]]:
    """The fields of all rows, by the first separator that gives every row as many as the header."""
    for separator in SEPARATORS:
        try:
            rows = _parse_csv(text, separator)
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1 and {len(row) for row in rows if row} == {len(rows[0])}:
            return rows
    return _parse_csv(text, ",")


def _parse_csv(text: str, separator: str) -> list[list[str]]:
    lines = io.StringIO(text, newline="")
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    return [[field.strip() for field in row] for row in rows]


def _csv(lines: list[list[str]], path: Path) -> dict[str, Sequence[object]]:
    if not lines:
        raise DataError("the file is empty", where=str(path), fix="expected a header and rows")
    header, rows = lines[0], [line for line in lines[1:] if line]
    if len(set(header)) < len(header):
        raise DataError(f"columns of the same name: {format_ids(header)}", where=str(path))
    odd = [i for i, row in enumerate(rows, 1) if len(row) != len(header)]
    if odd:
        raise DataError(
            f"rows without exactly {len(header)} fields, as in the header: {format_ids(odd)}",
            where=str(path),
            fix="quote fields that hold the separator",
        )
    columns = [list(c) for c in zip(*rows, strict=True)] or [[] for _ in header]
    return {name: parse_integers(c) for name, c in zip(header, columns, strict=True)}


def _jsonl(lines: list[str], path: Path) -> dict[str, Sequence[object]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"line {number} is no JSON ({error})", where=str(path)) from error
        if not isinstance(row, dict):
            raise DataError(
                f"line {number} is a {type(row).__name__}, expected an object", where=str(path)
            )
        rows.append(row)
    if not rows:
        raise DataError("the file is empty", where=str(path), fix="expected one object a line")
    # A key that a row leaves out is a missing value of that row.
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _texts(
    table: dict[str, Sequence[object]], config: DataConfig, ids: np.ndarray, path: Path
) -> Texts:
    """The columns of texts; texts that are numbers are texts too."""
    first, *second = (
        table_column(table, name, ids, path).astype(str).tolist()
        for name in (config.input, config.pair)
        if name is not None
    )
    return Texts(first, second[0] if second else None)


def _inputs(
    table: dict[str, Sequence[object]], name: str, ids: np.ndarray, path: Path, root: Path
) -> Encoded | Inputs:
    if all(isinstance(v, list) for v in table[name]):
        return TensorInputs(_feature_tensor(table[name], ids, name, path))
    # Files may be called 1, 2, 3.
    files = table_column(table, name, ids, path)
    if files.dtype.kind not in "Ui":
        raise DataError(
            f"column '{name}' must hold file paths or lists of numbers", where=str(path)
        )
    _check_are_paths(files, name, path, root)
    return EncodedFiles(resolve_inside(root, files.astype(str).tolist(), ids, where=str(path)))


def _check_are_paths(files: np.ndarray, name: str, path: Path, root: Path) -> None:
    """Say what to do if the column holds texts, which are no paths."""
    texts = files.astype(str)
    are_long = np.char.str_len(texts) > 255
    are_words = np.char.count(texts, " ") >= 3
    if (are_long | are_words).mean() > 0.5 and not (root / texts[0][:255]).exists():
        raise DataError(
            f"column '{name}' holds texts, not file paths",
            where=str(path),
            fix="set tokenizer to the folder of the model's tokenizer",
        )


def _feature_tensor(values: Sequence[Any], ids: np.ndarray, name: str, path: Path) -> torch.Tensor:
    """``float32[n, d]`` from lists of numbers."""
    odd = np.array(
        [
            len(v) != len(values[0])
            or not v
            or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in v)
            for v in values
        ]
    )
    if odd.any():
        raise DataError(
            f"column '{name}' must hold {len(values[0])} numbers in every row: "
            f"ids {format_ids(ids[odd])}",
            where=str(path),
        )
    try:
        return torch.from_numpy(np.array(values, dtype=np.float64).astype(np.float32))
    except (OverflowError, ValueError) as error:
        raise DataError(f"column '{name}': {error}", where=str(path)) from error
