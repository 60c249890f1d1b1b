"""Manifests: a CSV or JSONL file with an input and a label in every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expunge.data.encoded import Encoded, EncodedFiles, is_audio
from expunge.data.inputs import Inputs, TensorInputs
from expunge.data.labels import as_column
from expunge.data.paths import resolve_inside
from expunge.data.rows import Rows
from expunge.data.text_tables import read_table, table_kind
from expunge.data.texts import Texts
from expunge.errors import DataError, did_you_mean, format_ids

if TYPE_CHECKING:
    from expunge.data.data_config import DataConfig

DEFAULT_INPUT = "image"


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
    if config.input == DEFAULT_INPUT not in table:
        raise DataError(
            f"no column is called '{DEFAULT_INPUT}'",
            where=str(path),
            fix="name the column of files or texts in input; if every column is a number, set "
            f"source to 'table' (columns: {format_ids(table)})",
        )
    named = [config.input, config.pair, config.id]
    named += [config.label] if config.labels is None else []
    check_columns(table, [name for name in named if name is not None], path)
    n = len(table[config.input])
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
    return values.astype(str) if table_kind(path) != ".jsonl" else values


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
            f"column '{name}' must hold file paths or lists of numbers",
            where=str(path),
            fix="name the column of the inputs: input = …",
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
            fix="write as many numbers in every row, or remove these rows",
        )
    try:
        return torch.from_numpy(np.array(values, dtype=np.float64).astype(np.float32))
    except (OverflowError, ValueError) as error:
        raise DataError(f"column '{name}': {error}", where=str(path)) from error
