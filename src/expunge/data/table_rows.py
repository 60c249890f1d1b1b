"""Tables in which every feature is a column of numbers: Parquet, CSV and JSONL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from expunge._core.arrays import Array, Bools
from expunge.data.inputs import TensorInputs
from expunge.data.labels import is_gap, is_missing
from expunge.data.manifest import check_columns, label_column, table_column
from expunge.data.rows import Rows
from expunge.data.text_tables import read_table
from expunge.errors import DataError, format_ids

if TYPE_CHECKING:
    from expunge.data.data_config import DataConfig


def table_rows(path: Path, config: DataConfig) -> Rows:
    """Read columns of numbers as features ``float32[n, d]``.

    ``config.input`` names the columns, separated by commas, in the order of the features. Without
    it these are all columns but label and id, in the order of the file.

    Raises
    ------
    DataError
        If a column is missing, or a feature is no number or has no value.
    """
    table = _Table(path, config.split)
    label = config.label if config.labels is None else None
    chosen = _feature_columns(table, config.input, [config.id, config.label])
    n = table.n_rows
    ids = np.arange(n) if config.id is None else table.column(config.id, np.arange(n))
    labels = np.zeros(n, dtype=np.int64) if label is None else table.labels(label, ids)
    features = table.features(chosen, ids)
    return Rows(
        ids=ids,
        labels=labels,
        inputs=TensorInputs(torch.from_numpy(_matrix(features, path))),
        class_names=() if label is None else table.class_names(label),
        has_explicit_ids=config.id is not None,
        columns=tuple(chosen),
    )


class _Table:
    """The columns of a file, or of many Parquet files, by name."""

    def __init__(self, path: Path, split: str) -> None:
        self._path = path
        self._text: dict[str, Sequence[object]] | None = None
        if path.is_dir() or path.suffix.lower() == ".parquet":
            from expunge.data.parquet import column_names
            from expunge.data.parquet_shards import Shards

            self._shards = Shards.open(path, split)
            self.names, self.n_rows = column_names(self._shards.files[0]), len(self._shards)
        else:
            self._text = read_table(path)
            self.names = list(self._text)
            self.n_rows = len(next(iter(self._text.values())))

    def column(self, name: str, ids: Array) -> Array:
        if self._text is None:
            return self._shards.column(name, ids)
        check_columns(self._text, [name], self._path)
        return table_column(self._text, name, ids, self._path)

    def features(self, names: list[str], ids: Array) -> dict[str, Array]:
        """These columns; a DataError names all that have gaps."""
        if self._text is not None:  # ``NA`` and ``nan`` are texts there, no error of a column
            _check_gaps(self._gaps(names), ids, self._path)
        try:
            return {name: self.column(name, ids) for name in names}
        except DataError:  # only then are the columns of Parquet files read twice
            _check_gaps(self._gaps(names), ids, self._path)
            raise

    def _gaps(self, names: list[str]) -> dict[str, Bools]:
        """Which rows of each column have no value, ``bool[n]``."""
        if self._text is None:
            return {name: self._shards.nulls(name) for name in names}
        check_columns(self._text, names, self._path)
        return {name: np.array([_is_gap(v) for v in self._text[name]]) for name in names}

    def labels(self, name: str, ids: Array) -> Array:
        if self._text is None:
            return self.column(name, ids)
        check_columns(self._text, [name], self._path)
        return label_column(self._text, name, ids, self._path)

    def class_names(self, name: str) -> tuple[str, ...]:
        if self._text is not None:
            return ()
        return self._shards.class_names(name)


def _feature_columns(table: _Table, named: str, others: Sequence[str | None]) -> list[str]:
    """The columns that are named, or all that have no other role."""
    if named in table.names:
        return [named]
    if "," in named:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [name for name in table.names if name not in others]


def _is_gap(value: object) -> bool:
    return is_missing(value) or (isinstance(value, str) and is_gap(value))


def _check_gaps(gaps: dict[str, Bools], ids: Array, path: Path) -> None:
    """Name the columns with missing values, and how many each has, in one error."""
    counts = {name: int(rows.sum()) for name, rows in gaps.items() if rows.any()}
    if counts:
        columns = format_ids((f"{n} in column '{name}'" for name, n in counts.items()), 20)
        rows = np.any([*gaps.values()], axis=0)
        raise DataError(
            f"missing values: {columns}; ids {format_ids(ids[rows])}",
            where=str(path),
            fix="fill in these values, leave these rows out, or leave these columns out: input "
            "(--input of init) names those that are used; `expunge detect` takes all as they are",
        )


def _matrix(features: dict[str, Array], path: Path) -> Array:
    """``float32[n, d]``; a DataError names the columns that hold no numbers."""
    columns, odd = [], []
    for name, values in features.items():
        if values.dtype.kind == "U" and np.isin(np.char.lower(values), ("false", "true")).all():
            values = np.char.lower(values) == "true"
        try:
            columns.append(values.astype(np.float32))
        except ValueError:
            odd.append(name)
    if odd or not columns:
        raise DataError(
            f"columns that hold no numbers: {format_ids(odd)}" if odd else "no column of features",
            where=str(path),
            fix="name columns of numbers in input, separated by commas; `expunge detect` takes "
            "dates and categories as they are",
        )
    return np.column_stack(columns)
