"""Files of labelled features: Parquet, CSV, JSONL, ``.npz`` and ``.npy``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from expunge._core.arrays import Array
from expunge.data.feature_table import as_feature_table
from expunge.data.labels import is_gap
from expunge.data.manifest import check_columns
from expunge.data.parquet import class_names, column_names, read_columns
from expunge.data.paths import fix_unknown_file, require_file
from expunge.data.text_tables import read_table, table_kind
from expunge.errors import DataError, format_ids
from expunge.storage.array_files import npz_names, read_npy, read_npz

_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?")


@dataclass(frozen=True)
class LabelledFeatures:
    """What a file holds for `expunge.detect`: features in any form, labels, probabilities, ids."""

    features: Any
    labels: Any
    probs: Any = None
    ids: Any = None
    classes: tuple[str, ...] | None = None


def read_labelled_features(
    path: Path,
    *,
    label: str,
    features: Sequence[str] = (),
    probs: Sequence[str] = (),
    ids: str | None = None,
) -> LabelledFeatures:
    """Read features and labels from a file.

    Parameters
    ----------
    path
        A ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl``, ``.json``, ``.npz`` or ``.npy`` file; text
        may be compressed (``.csv.gz``, ``.jsonl.zst``).
    label
        The column or array of the labels. For a ``.npy`` file: a second file.
    features
        The columns or arrays of the features. By default all others, of an ``.npz`` file ``x``, or
        the only other array.
    probs
        One column of lists, an array, or one column of numbers for each class. For a ``.npy`` file:
        a second file.
    ids
        The column or array of the ids.

    Raises
    ------
    DataError
        If a file cannot be read or lacks a column.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "flowers.csv"
    ...     _ = path.write_text("width,kind\\n0.2,rose\\n,aster\\n")
    ...     read = read_labelled_features(path, label="kind")
    >>> read.features["width"].tolist(), read.labels
    ([0.2, nan], ['rose', 'aster'])
    """
    if path.is_dir():
        raise DataError(
            "is a folder, expected a file of features and labels",
            where=str(path),
            fix="name a file in it; of a folder of images or sound, `expunge init` makes the spec "
            "of a repair",
        )
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _read_npy(path, label, probs)
    if suffix == ".npz":
        return _read_npz(path, label, features, probs, ids)
    if suffix == ".parquet":
        return _read_parquet(path, label, features, probs, ids)
    if table_kind(path):
        return _read_text(path, label, features, probs, ids)
    require_file(path)
    raise DataError(
        f"the suffix '{suffix}' is not known", where=str(path), fix=fix_unknown_file(path)
    )


def _other_columns(
    known: Sequence[str], named: Sequence[str], label: str, probs: Sequence[str], ids: str | None
) -> list[str]:
    """The columns named, or all that have no other role."""
    return list(named) or [name for name in known if name not in (label, ids, *probs)]


def _read_parquet(
    path: Path, label: str, features: Sequence[str], probs: Sequence[str], ids: str | None
) -> LabelledFeatures:
    chosen = _other_columns(column_names(path), features, label, probs, ids)
    table = read_columns(path, [*chosen, label, *probs, *([ids] if ids else [])])
    names = class_names(path, label)
    return LabelledFeatures(
        table.select(chosen),
        table.column(label).to_pylist(),
        _probabilities(table.select(probs), path) if probs else None,
        table.column(ids).to_pylist() if ids else None,
        names or None,
    )


def _read_text(
    path: Path, label: str, features: Sequence[str], probs: Sequence[str], ids: str | None
) -> LabelledFeatures:
    table = read_table(path)
    chosen = _other_columns(list(table), features, label, probs, ids)
    check_columns(table, [*chosen, label, *probs, *([ids] if ids else [])], path)
    columns = {name: _parse_numbers(table[name]) for name in chosen}
    matrix = {name: _parse_numbers(table[name]) for name in probs}
    return LabelledFeatures(
        columns,
        list(table[label]),
        _probabilities(pa.table(matrix), path) if probs else None,
        list(table[ids]) if ids else None,
    )


def _parse_numbers(values: Sequence[object]) -> Any:
    """Return numbers, or dates, with gaps for what is missing if all texts are such; else texts."""
    texts = [v for v in values if isinstance(v, str) and not is_gap(v)]
    if not any(isinstance(v, str) for v in values):
        return values
    if texts and all(map(_DATE.fullmatch, texts)):
        return _dates(values)
    try:
        numbers = {text: float(text) for text in set(texts)}
    except ValueError:
        return [None if v == "" else v for v in values]
    return np.array(
        [
            numbers.get(v, np.nan) if isinstance(v, str) else np.nan if v is None else v
            for v in values
        ],
        dtype=np.float64,
    )


def _dates(values: Sequence[object]) -> Any:
    """Return ISO dates as such; as texts if one is no day of the calendar."""
    texts = ["NaT" if v is None or is_gap(str(v)) else str(v) for v in values]
    try:
        return np.array(texts, dtype="datetime64[us]")
    except ValueError:
        return [None if v == "" else v for v in values]


def _probabilities(table: Any, path: Path) -> Array:
    """One column of lists, or a column for each class, as ``float32[n, c]``."""
    found: Array = as_feature_table(table, where=f"{path}, probabilities").values
    return found


def _read_npz(
    path: Path, label: str, features: Sequence[str], probs: Sequence[str], ids: str | None
) -> LabelledFeatures:
    features = features or _only_other(npz_names(path), (label, *probs, ids), path)
    arrays = read_npz(path, (*features, label, *probs, *([ids] if ids else [])))
    if len(features) == 1:
        found: Any = arrays[features[0]]
    else:
        found = {name: arrays[name] for name in features}
    return LabelledFeatures(
        found,
        arrays[label],
        arrays[probs[0]] if probs else None,
        arrays[ids] if ids else None,
    )


def _only_other(names: Sequence[str], taken: Sequence[str | None], path: Path) -> tuple[str]:
    """The array of the features where none is named: ``x``, or the only one without a role."""
    free = [name for name in names if name not in taken]
    if "x" in free:
        return ("x",)
    if len(free) == 1:
        return (free[0],)
    raise DataError(
        f"which array holds the features is not clear; arrays: {format_ids(names)}",
        where=str(path),
        fix="name it, and the labels: --features ARRAY --label ARRAY",
    )


def _read_npy(path: Path, label: str, probs: Sequence[str]) -> LabelledFeatures:
    """Arrays in files of their own; a relative path starts at the working directory."""
    if not label.lower().endswith(".npy"):
        raise DataError(
            f"a .npy file holds no labels, and '{label}' is no .npy file",
            where=str(path),
            fix="name the file of the labels: --label labels.npy",
        )
    return LabelledFeatures(
        read_npy(path),
        read_npy(require_file(Path(label))),
        read_npy(require_file(Path(probs[0]))) if probs else None,
    )
