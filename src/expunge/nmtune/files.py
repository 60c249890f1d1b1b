"""Embeddings in files: Parquet with a column of lists, ``.npz`` with ``x`` and ``y``, ``.npy``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from expunge.data.data_config import DataConfig
from expunge.data.paths import require_file
from expunge.data.sources import read
from expunge.errors import DataError
from expunge.nmtune.spectra import check_features
from expunge.storage.array_files import read_npy, read_npz
from expunge.storage.atomic_files import new_file, require_other_file

FILE_TYPES = (".parquet", ".npz", ".npy")


def read_labelled(
    path: Path, *, column: str, label: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read embeddings with labels.

    Parameters
    ----------
    path
        A ``.parquet`` file, or an ``.npz`` file with the arrays ``x`` and ``y``.
    column, label
        The columns of a Parquet file with lists of numbers and with classes.

    Returns
    -------
    embeddings, labels, classes
        ``float32[n, d]``, class indices ``int64[n]`` and the names of the classes.

    Raises
    ------
    DataError
        If the file cannot be read, or the embeddings are not lists of numbers.
    """
    config = DataConfig(path=str(path.absolute()), input=column, label=label)
    samples = read(config, folder=Path.cwd(), name=path.name)
    x = np.asarray(samples.inputs.batch(np.arange(len(samples))))
    return _rows(x, path), np.array(samples.labels), samples.classes


def read_embeddings(path: Path, *, column: str) -> np.ndarray:
    """Read embeddings, ``float32[n, d]``; see `read_labelled`. Also from ``.npy``."""
    if path.suffix == ".parquet":
        from expunge.data.parquet import read_features

        return _rows(read_features(path, column).numpy(), path)
    if path.suffix not in FILE_TYPES:
        raise DataError(
            f"unsupported file type '{path.suffix}'; expected {', '.join(FILE_TYPES)}",
            where=str(path),
        )
    require_file(path)
    x = read_npy(path) if path.suffix == ".npy" else read_npz(path, ["x"])["x"]
    return _rows(x, path)


def write(path: Path, columns: Mapping[str, np.ndarray], *, source: Path) -> None:
    """Write columns to ``.parquet`` or ``.npz``.

    Parameters
    ----------
    path
        The file to write.
    columns
        ``[n]`` or ``[n, d]`` by name.
    source
        The file with the embeddings. If both files are Parquet, its columns are copied.

    Raises
    ------
    DataError
        If the source has a column of the same name, or the file type is another.
    RunError
        If the path is the source, or cannot be written.
    """
    require_other_file(path, source)
    if path.suffix not in (".npz", ".parquet"):
        raise DataError(
            f"unsupported file type '{path.suffix}'; expected .parquet or .npz", where=str(path)
        )
    with new_file(path) as temporary:
        if path.suffix == ".npz":
            np.savez(temporary, **dict(columns))  # type: ignore[arg-type]
        else:
            _write_parquet(temporary, columns, source)


def _write_parquet(path: Path, columns: Mapping[str, np.ndarray], source: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from expunge.storage.parquet_files import open_parquet

    arrays = {name: pa.array(list(v) if v.ndim == 2 else v) for name, v in columns.items()}
    if source.suffix != ".parquet":
        pq.write_table(pa.table(arrays), path)
        return
    with open_parquet(source) as file:
        table = file.read()
    for name, column in arrays.items():
        if name in table.column_names:
            raise DataError(
                f"the column '{name}' exists already", where=str(source), fix="rename it"
            )
        table = table.append_column(name, column)
    pq.write_table(table, path)


def _rows(x: np.ndarray, path: Path) -> np.ndarray:
    try:
        return check_features(x).astype(np.float32)
    except DataError as error:
        raise DataError(error.what, where=str(path), fix=error.fix) from error
