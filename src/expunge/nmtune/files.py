"""Embeddings in files: Parquet with a column of lists, ``.npz`` with ``x`` and ``y``, ``.npy``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.data.parquet import read_features
from expunge.data.paths import require_file
from expunge.data.sources import DataConfig, read
from expunge.errors import DataError, did_you_mean
from expunge.nmtune.spectra import checked

KINDS = (".parquet", ".npz", ".npy")


def labelled(
    path: Path, *, column: str, label: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Embeddings ``float32[n, d]``, class indices ``int64[n]``, class names.

    column, label: of a Parquet file; an ``.npz`` file has ``x`` and ``y``. DataError for what
    cannot be read, or is no list of numbers.
    """
    config = DataConfig(path=str(path.absolute()), input=column, label=label)
    samples = read(config, folder=Path.cwd(), name=path.name)
    x = np.asarray(samples.inputs.batch(np.arange(len(samples))))
    return _rows(x, path), np.array(samples.labels), samples.classes


def unlabelled(path: Path, *, column: str) -> np.ndarray:
    """Embeddings alone, ``float32[n, d]``; errors as for `labelled`."""
    if path.suffix == ".parquet":
        return _rows(read_features(path, column).numpy(), path)
    if path.suffix not in KINDS:
        raise DataError(f"embeddings lie in {', '.join(KINDS)}, not this", where=str(path))
    require_file(path)
    try:
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return _rows(found, path)
        with found:
            if "x" not in found.files:
                raise DataError(
                    "no array is called 'x'", where=str(path), fix=did_you_mean("x", found.files)
                )
            return _rows(found["x"], path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"no plain arrays: {error}", where=str(path)) from error


def write(path: Path, columns: Mapping[str, np.ndarray], *, beside: Path) -> None:
    """Write columns to ``.parquet`` or ``.npz``.

    A Parquet file that comes from another (``beside``) has that one's columns too, in its order.
    DataError if one has the name of a new column, or for another kind of file.
    """
    if path.suffix == ".npz":
        np.savez(path, **dict(columns))  # type: ignore[arg-type]
        return
    if path.suffix != ".parquet":
        raise DataError("results are written as .parquet or .npz", where=str(path))
    made = {name: pa.array(list(v) if v.ndim == 2 else v) for name, v in columns.items()}
    if beside.suffix != ".parquet":
        pq.write_table(pa.table(made), path)
        return
    table = pq.read_table(beside)
    for name, column in made.items():
        if name in table.column_names:
            raise DataError(
                f"there is a column '{name}' already", where=str(beside), fix="rename it"
            )
        table = table.append_column(name, column)
    pq.write_table(table, path)


def _rows(x: np.ndarray, path: Path) -> np.ndarray:
    try:
        return checked(x).astype(np.float32)
    except DataError as error:
        raise DataError(error.what, where=str(path), fix=error.fix) from error
