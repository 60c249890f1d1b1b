"""Columns of a second file: labels, corrections and other values, joined by id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from expunge.data.cifar import human_labels
from expunge.data.classes import encode_labels
from expunge.data.data_config import LabelFile
from expunge.data.labels import join_by_id
from expunge.data.manifest import check_columns, label_column, table_column
from expunge.data.paths import require_file, resolve_path
from expunge.data.rows import Rows
from expunge.data.samples import Samples
from expunge.data.text_tables import read_table, table_kind
from expunge.errors import DataError, format_ids


def with_labels(rows: Rows, labels: LabelFile, folder: Path) -> Rows:
    """The rows with the labels of the second file, as indices of the rows' classes if any."""
    path = require_file(resolve_path(labels.path, folder))
    names: tuple[str, ...] = ()
    if path.suffix.lower() in (".pt", ".pth"):
        values = human_labels(path, labels.column)
        if len(values) != len(rows):
            raise DataError(
                f"{len(values)} labels for {len(rows)} samples: they are joined by position",
                where=str(path),
                fix="use the labels of this very set (CIFAR-10N: of the training set)",
            )
    else:
        other_ids, values, names = _read_label_file(path, labels)
        values = join_by_id(rows.ids, other_ids, values, where=str(path))
    known = rows.class_names
    if names:
        indices, _ = encode_labels(values, rows.ids, names=names, where=str(path))
        values = np.array(names)[indices] if values.dtype.kind != "U" else values
        known = known if set(names) <= set(known) else names
    if known:
        values, known = encode_labels(values, rows.ids, classes=known, where=str(path))
    return replace(rows, labels=values, class_names=known)


def replace_labels(samples: Samples, labels: LabelFile, *, folder: Path) -> Samples:
    """Replace the labels by those of a second file, as indices of the samples' classes."""
    rows = Rows(
        samples.ids, samples.labels, samples.inputs, samples.classes, samples.has_explicit_ids
    )
    rows = with_labels(rows, labels, folder)
    where = f"{labels.path}, column '{labels.column}'"
    values, _ = encode_labels(
        rows.labels, rows.ids, names=rows.class_names, classes=samples.classes, where=where
    )
    return replace(samples, labels=values)


def correct_labels(samples: Samples, corrections: LabelFile, *, folder: Path) -> Samples:
    """Replace the labels of those samples whose ids are in a second file; the others keep theirs.

    Raises
    ------
    DataError
        If the file has none of the ids or repeats one, or a label is no class.
    """
    path = require_file(resolve_path(corrections.path, folder))
    ids, values, names = _read_label_file(path, corrections)
    own = samples.ids
    if own.dtype.kind != ids.dtype.kind:
        own, ids = own.astype(str), ids.astype(str)
    known = np.isin(ids, own)
    if not known.any():
        raise DataError(
            f"corrects none of the samples: its ids are {format_ids(ids)}, those of the data "
            f"{format_ids(own)}",
            where=str(path),
            fix="check that `id` names the matching column in both files",
        )
    at = np.flatnonzero(np.isin(own, ids))
    found = join_by_id(own[at], ids[known], values[known], where=str(path))
    labels = samples.labels.copy()
    labels[at], _ = encode_labels(
        found, own[at], names=names, classes=samples.classes, where=str(path)
    )
    return replace(samples, labels=labels)


def read_joined(samples: Samples, file: LabelFile, folder: Path) -> np.ndarray:
    """A column of truth values, or of lists of numbers, for the samples' ids."""
    from expunge.data.parquet import read_column, read_values

    path = require_file(resolve_path(file.path, folder))
    values = read_values(path, file.column)
    return join_by_id(samples.ids, read_column(path, file.id), values, where=str(path))


def _read_label_file(
    path: Path, labels: LabelFile
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Ids and labels of a file, and the class names that it states."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from expunge.data.parquet import class_names, read_column

        ids = read_column(path, labels.id)
        return ids, read_column(path, labels.column, ids=ids), class_names(path, labels.column)
    if table_kind(path):
        table = read_table(path)
        check_columns(table, [labels.id, labels.column], path)
        ids = table_column(table, labels.id, np.arange(1, len(table[labels.id]) + 1), path)
        return ids, label_column(table, labels.column, ids, path), ()
    raise DataError(
        f"unsupported file type '{suffix}'; expected .parquet, .csv, .jsonl or CIFAR-10_human.pt",
        where=str(path),
    )
