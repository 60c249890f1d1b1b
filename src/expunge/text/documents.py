"""Documents from text files, JSON lines and Parquet, one after another, and the cleaned ones back.

Nothing but a few records is in memory at a time, and their order is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expunge.errors import ConfigError, DataError, format_ids

TEXT, JSONL, PARQUET = (".txt", ".md", ".text"), (".jsonl", ".ndjson"), (".parquet",)
COLUMN = "document"
MEND = "mend the record, or leave bad ones out with --bad skip"
# Rows of Parquet that are read at once.
ROWS = 256


@dataclass(frozen=True)
class Document:
    """One record: what it says, where it stands, and what is written back around it.

    where: file and line (or row), from 1. record: the other fields of JSON or Parquet.
    """

    text: str
    where: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """How documents are read.

    column: the field of JSON and Parquet records that holds the text. lines: a text file holds a
    document a line, empty ones left out, not one document in all. bad: is told of a record that
    cannot be used, which is then left out; if None, it is a DataError.
    """

    column: str = COLUMN
    lines: bool = False
    bad: Callable[[str], None] | None = None

    def read(self, path: Path) -> Iterator[Document]:
        """The documents of a file, or of a folder's files in the order of their names."""
        for file in files(path):
            if file.suffix in PARQUET:
                yield from self._rows(file)
            elif file.suffix in JSONL:
                yield from self._records(file)
            elif self.lines:
                for where, text in self._lines(file):
                    if text.strip():
                        yield Document(text, where, {})
            else:
                yield from self._whole(file)

    def _whole(self, file: Path) -> Iterator[Document]:
        try:
            yield Document(_decoded(file.read_bytes()), str(file), {})
        except ValueError as error:
            self._refuse(str(file), str(error))

    def _lines(self, file: Path) -> Iterator[tuple[str, str]]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{file}:{number}"
                try:
                    yield where, _decoded(line).rstrip("\r\n")
                except ValueError as error:
                    self._refuse(where, str(error))

    def _records(self, file: Path) -> Iterator[Document]:
        for where, line in self._lines(file):
            if not line.strip():
                continue
            try:
                record = json.loads(line.removeprefix("\ufeff"))
            except ValueError as error:
                self._refuse(where, f"no JSON: {error}")
                continue
            if not isinstance(record, dict):
                self._refuse(where, f"expected an object, got {type(record).__name__}")
            else:
                yield from self._document(record, where)

    def _rows(self, file: Path) -> Iterator[Document]:
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"no Parquet: {error}", where=str(file)) from error
        if self.column not in table.schema_arrow.names:
            raise DataError(
                f"no column '{self.column}'",
                where=str(file),
                fix=f"--column with one of: {', '.join(table.schema_arrow.names)}",
            )
        number = 0
        for rows in table.iter_batches(ROWS):
            for record in rows.to_pylist():
                number += 1
                yield from self._document(record, f"{file}:{number}")

    def _document(self, record: dict[str, Any], where: str) -> Iterator[Document]:
        text = record.get(self.column)
        if not isinstance(text, str):
            what = f"no text in '{self.column}'"
            if text is not None:
                self._refuse(where, f"{what} but {type(text).__name__}")
            elif record and self.column not in record:
                self._refuse(
                    where, what, f"--column with one of: {format_ids(record, 20)}; or {MEND}"
                )
            else:
                self._refuse(where, what)
            return
        try:
            text.encode()
        except UnicodeEncodeError:
            self._refuse(where, "half characters, which are no text")
            return
        yield Document(text, where, record)

    def _refuse(self, where: str, what: str, fix: str = MEND) -> None:
        if self.bad is None:
            raise DataError(what, where=where, fix=fix)
        self.bad(f"{where}: {what}")


def files(path: Path) -> list[Path]:
    """The file, or the files of a folder that hold documents. DataError if there are none."""
    known = (*TEXT, *JSONL, *PARQUET)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in known)
    elif path.is_file() and path.suffix not in known:
        raise DataError(
            f"documents are in {', '.join(known)}, not '{path.suffix}'", where=str(path)
        )
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise DataError("no documents there", where=str(path), fix="check the path")
    return found


def batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Some documents at a time."""
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def writing(source: Path, out: Path, *, column: str, lines: bool) -> Iterator[Callable[..., None]]:
    """Gives ``write(document, text)``: the record with another text, in the format of ``source``.

    The file has its name only when all is written. Parquet keeps schema and metadata.
    ConfigError if the suffix of ``out`` says another format, for a folder, and for out = source.
    """
    one = files(source)
    if source.is_dir() or _format(one[0]) != _format(out):
        raise ConfigError(
            f"one '{one[0].suffix}' file is written as such, not as '{out.suffix}'",
            where=str(out),
            fix="clean files one by one, each into a file of the same format",
        )
    if out.exists() and out.samefile(source):
        raise ConfigError("the documents would be overwritten", where=str(out))
    if not out.parent.is_dir():
        raise ConfigError("the folder does not exist", where=str(out.parent), fix="create it")
    part = out.with_name(f".{out.name}.part")
    try:
        if _format(out) == PARQUET:
            schema = pq.ParquetFile(source).schema_arrow
            with pq.ParquetWriter(part, schema) as file, _rows_to(file, column) as write:
                yield write
        else:
            with part.open("w", encoding="utf-8", newline="") as stream:

                def write_line(document: Document, text: str) -> None:
                    stream.write(line_of(document, text, column=column, lines=lines))

                yield write_line
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def line_of(document: Document, text: str, *, column: str, lines: bool) -> str:
    """A record with another text as it stands in a file: an object a line, a line, or all of it."""
    if document.record:
        return json.dumps({**document.record, column: text}, ensure_ascii=False, default=str) + "\n"
    return f"{text}\n" if lines else text


@contextmanager
def _rows_to(parquet: pq.ParquetWriter, column: str) -> Iterator[Callable[..., None]]:
    """Gathers rows into groups, so that a file has few of them."""
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        if rows:
            parquet.write_table(pa.Table.from_pylist(rows, schema=parquet.schema))
            rows.clear()

    def write(document: Document, text: str) -> None:
        rows.append({**document.record, column: text})
        if len(rows) >= ROWS:
            flush()

    yield write
    flush()


def _format(path: Path) -> tuple[str, ...]:
    return next((kind for kind in (TEXT, JSONL, PARQUET) if path.suffix in kind), (path.suffix,))


def _decoded(raw: bytes) -> str:
    """UTF-8. ValueError for anything else, and for binary data."""
    if b"\0" in raw:
        raise ValueError("binary data, not text (it holds zero bytes)")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
