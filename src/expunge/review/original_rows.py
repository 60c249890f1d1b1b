"""The rows of the data as their files hold them, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from expunge._core.arrays import Array
from expunge.data import DataConfig, Samples
from expunge.data.shards import find_shards
from expunge.data.sources import guess_source
from expunge.data.text_tables import read_table, table_kind
from expunge.errors import DataError, RunError
from expunge.storage.atomic_files import require_other_file
from expunge.storage.parquet_files import open_parquet


class OriginalRows(NamedTuple):
    """The rows that were selected, in their order.

    ids: of every row. label: the name of the label column. given: its values, or None if the data
    have no such column. schema: the columns. parts: makes an iterator over tables of these columns
    that follow each other.
    """

    ids: Array
    label: str
    given: list[object] | None
    schema: pa.Schema
    parts: Callable[[], Iterator[pa.Table]]


def read_original(path: Path, config: DataConfig, samples: Samples) -> OriginalRows:
    """Read the columns of the original; of Parquet, ids and labels now and the others on demand.

    Data that are no table have the column ``id`` alone, or ``file_name`` for a folder of files.

    Raises
    ------
    DataError
        If a file is damaged, or the files hold different columns.
    """
    source = config.source or guess_source(path)
    if source == "parquet" or path.suffix.lower() == ".parquet":
        return _parquet(path, config)
    if table_kind(path):
        table = _as_table(read_table(path), path)
        ids, given = _ids(table, config, len(table)), _values(table, config.label)
        whole = OriginalRows(ids, config.label, given, table.schema, lambda: iter([table]))
        return _selected(whole, config)
    everything = np.concatenate([samples.ids, np.array(list(samples.skipped), dtype=object)])
    ids = everything.astype(samples.ids.dtype)
    table = pa.table({"file_name" if source == "folder" else "id": ids})
    return OriginalRows(ids, "label", None, table.schema, lambda: iter([table]))


def check_target(out: Path, path: Path, config: DataConfig) -> None:
    """Refuse a new file that would replace the data or be read as one of their files.

    Raises
    ------
    RunError
        If ``out`` is the file, or a Parquet file in a folder of several.
    """
    require_other_file(out, path)
    is_parquet = (config.source or guess_source(path)) == "parquet"
    if not is_parquet or path.is_file() or out.suffix != ".parquet":
        return
    folders = {file.parent.resolve() for file in find_shards(path, ".parquet", config.split)}
    folders |= {path.resolve()} if path.is_dir() else set()
    if any(out.resolve().is_relative_to(folder) for folder in folders):
        raise RunError(
            "--out lies in the folder of the data and would be read as a part of them",
            where=str(out),
            fix="name a file in another folder",
        )


def _parquet(path: Path, config: DataConfig) -> OriginalRows:
    """The rows of Parquet files, of which a row group at a time is in memory."""
    from expunge.data.parquet import read_schema
    from expunge.data.parquet_shards import Shards

    shards = Shards.open(path, config.split)
    schema = _common_schema([read_schema(file)[0] for file in shards.files], shards.files)
    names = [name for name in (config.label, config.id) if name in schema.names]
    few = pa.schema([schema.field(name) for name in dict.fromkeys(names)])
    columns = pa.concat_tables([few.empty_table(), *_read_parts(shards.files, few)])
    whole = OriginalRows(
        ids=_ids(columns, config, len(shards)),
        label=config.label,
        given=_values(columns, config.label),
        schema=schema,
        parts=lambda: _read_parts(shards.files, schema),
    )
    return _selected(whole, config)


def _common_schema(schemas: Sequence[pa.Schema], files: Sequence[Path]) -> pa.Schema:
    """All columns of all files, with types that hold the values of each."""
    common = schemas[0]
    for schema, file in zip(schemas[1:], files[1:], strict=True):
        try:
            common = pa.unify_schemas([common, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"other columns than in {files[0].name}: {error}",
                where=str(file),
                fix="write all shards with the same columns",
            ) from error
    return common.with_metadata(schemas[0].metadata)


def _read_parts(files: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Every row group with these columns; one that a file lacks is null."""
    for file in files:
        with open_parquet(file) as opened:
            own, n_groups = opened.schema_arrow, opened.metadata.num_row_groups
        names = [name for name in schema.names if name in own.names]
        for group in range(n_groups):
            with open_parquet(file) as opened:
                part = opened.read_row_group(group, columns=names)
                columns = {name: part.column(name).cast(schema.field(name).type) for name in names}
            missing = {name: pa.nulls(len(part), schema.field(name).type) for name in schema.names}
            yield pa.table({**missing, **columns}, schema=schema)


def _ids(columns: pa.Table, config: DataConfig, n: int) -> Array:
    return np.arange(n) if config.id is None else np.array(columns[config.id].to_pylist())


def _values(columns: pa.Table, name: str) -> list[object] | None:
    return list(columns[name].to_pylist()) if name in columns.column_names else None


def _selected(whole: OriginalRows, config: DataConfig) -> OriginalRows:
    """Leave out the rows that the settings skip."""
    n = len(whole.ids)
    stop = n if config.max_rows is None else min(config.skip_rows + config.max_rows, n)
    rows = slice(min(config.skip_rows, n), stop)

    def parts() -> Iterator[pa.Table]:
        start = 0
        for part in whole.parts():
            first, last = max(rows.start - start, 0), min(rows.stop - start, len(part))
            if last > first:
                yield part.slice(first, last - first)
            start += len(part)

    given = None if whole.given is None else whole.given[rows]
    return whole._replace(ids=whole.ids[rows], given=given, parts=parts)


def _as_table(columns: Mapping[str, Sequence[object]], path: Path) -> pa.Table:
    try:
        return pa.table({name: pa.array(list(values)) for name, values in columns.items()})
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"a column holds values of several kinds: {error}", where=str(path)
        ) from error
