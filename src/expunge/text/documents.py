"""Read documents from text files, JSON lines and Parquet, and write them back cleaned.

Only a few records are in memory at a time; their order is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import ConfigError, DataError, format_ids
from expunge.storage.atomic_files import new_file, require_other_file
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TEXT, JSONL, PARQUET = (".txt", ".md", ".text"), (".jsonl", ".ndjson"), (".parquet",)
COLUMN = "document"
FIX_RECORD = "correct the record, or skip invalid ones with --on-error skip"
# Rows of Parquet that are read at once, and in a row group that is written.
ROW_GROUP_SIZE = 256


@dataclass(frozen=True)
class Document:
    """One record of a file.

    Parameters
    ----------
    text
        The document.
    where
        File and line (or row), from 1.
    record
        All fields of a record of JSON or Parquet; empty for text files.
    """

    text: str
    where: str
    record: dict[str, Any]


@dataclass(frozen=True)
class DocumentReader:
    """Reads the documents of files.

    Parameters
    ----------
    column
        The field of JSON and Parquet records with the text.
    one_doc_per_line
        Whether each line of a text file that is not empty is a document. Otherwise each file is
        one.
    on_error
        Called with a message for each record that cannot be used, which is then skipped. None: such
        a record is a DataError.
    """

    column: str = COLUMN
    one_doc_per_line: bool = False
    on_error: Callable[[str], None] | None = None

    def read(self, path: Path) -> Iterator[Document]:
        """Read the documents of a file, or of the files of a folder in the order of their names."""
        for file in document_files(path):
            if file.suffix in PARQUET:
                yield from self._rows(file)
            elif file.suffix in JSONL:
                yield from self._records(file)
            elif self.one_doc_per_line:
                for where, text in self._lines(file):
                    if text.strip():
                        yield Document(text, where, {})
            else:
                yield from self._whole(file)

    def _whole(self, file: Path) -> Iterator[Document]:
        with reading(file):
            raw = file.read_bytes()
        try:
            text = _decode(raw)
        except ValueError as error:
            self._refuse(str(file), str(error))
        else:
            yield Document(text, str(file), {})

    def _lines(self, file: Path) -> Iterator[tuple[str, str]]:
        with reading(file), file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{file}:{number}"
                try:
                    yield where, _decode(line).rstrip("\r\n")
                except ValueError as error:
                    self._refuse(where, str(error))

    def _records(self, file: Path) -> Iterator[Document]:
        for where, line in self._lines(file):
            if not line.strip():
                continue
            try:
                record = parse_json(line.removeprefix("\ufeff"))
            except ValueError as error:
                self._refuse(where, f"not JSON: {error}")
                continue
            if not isinstance(record, dict):
                self._refuse(where, f"expected an object, got {type(record).__name__}")
            else:
                yield from self._document(record, where)

    def _rows(self, file: Path) -> Iterator[Document]:
        from expunge.storage.parquet_files import open_parquet

        number = 0
        with open_parquet(file) as table:
            names = table.schema_arrow.names
            if self.column not in names:
                raise DataError(
                    f"no column '{self.column}'",
                    where=str(file),
                    fix=f"--column with one of: {format_ids(names, 20)}",
                )
            for rows in table.iter_batches(ROW_GROUP_SIZE):
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
                    where, what, f"--column with one of: {format_ids(record, 20)}; or {FIX_RECORD}"
                )
            else:
                self._refuse(where, what)
            return
        try:
            text.encode()
        except UnicodeEncodeError:
            self._refuse(where, "lone surrogates, which are not text")
            return
        yield Document(text, where, record)

    def _refuse(self, where: str, what: str, fix: str = FIX_RECORD) -> None:
        if self.on_error is None:
            raise DataError(what, where=where, fix=fix)
        self.on_error(f"{where}: {what}")


def document_files(path: Path) -> list[Path]:
    """The file, or the files of a folder with documents; DataError if there are none."""
    known = (*TEXT, *JSONL, *PARQUET)
    with reading(path):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in known)
        else:
            found = [path] if path.is_file() else []
    if found == [path] and path.suffix not in known:
        raise DataError(
            f"unsupported file type '{path.suffix}'; expected {', '.join(known)}", where=str(path)
        )
    if not found:
        raise DataError("there are no documents", where=str(path), fix="check the path")
    return found


def in_batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Collect documents into lists of a size; the last one may be shorter."""
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def document_writer(
    source: Path, out: Path, *, column: str, one_doc_per_line: bool
) -> Iterator[Callable[[Document, str], None]]:
    """Provide ``write(document, text)``: write the record with another text, in its format.

    The file gets its name when all is written. Parquet keeps schema and metadata.

    Raises
    ------
    ConfigError
        If ``out`` has another format than ``source``, or ``source`` is a folder.
    RunError
        If both are one file, or ``out`` cannot be written.
    """
    found = document_files(source)
    if source.is_dir() or _format(found[0]) != _format(out):
        raise ConfigError(
            f"a '{found[0].suffix}' file is written in its own format, not as '{out.suffix}'",
            where=str(out),
            fix="clean files one by one, each into a file of the same format",
        )
    require_other_file(out, source)
    if not out.parent.is_dir():
        raise ConfigError("the folder does not exist", where=str(out.parent), fix="create it")
    with new_file(out) as part:
        if _format(out) == PARQUET:
            import pyarrow.parquet as pq

            from expunge.storage.parquet_files import open_parquet

            with open_parquet(source) as table:
                schema = table.schema_arrow
            with pq.ParquetWriter(part, schema) as file, _row_writer(file, column) as write:
                yield write
        else:
            with part.open("w", encoding="utf-8", newline="") as stream:

                def write_line(document: Document, text: str) -> None:
                    stream.write(
                        format_record(
                            document, text, column=column, one_doc_per_line=one_doc_per_line
                        )
                    )

                yield write_line


def format_record(document: Document, text: str, *, column: str, one_doc_per_line: bool) -> str:
    """Format a record with another text: as a JSON object, a line, or a whole text."""
    if not document.record:
        return f"{text}\n" if one_doc_per_line else text
    record = {**document.record, column: text}
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # lone surrogates in another field, which only escapes can express
        line = json.dumps(record, default=str)
    return f"{line}\n"


@contextmanager
def _row_writer(
    parquet: pq.ParquetWriter, column: str
) -> Iterator[Callable[[Document, str], None]]:
    """Collect rows into row groups, so that a file has few of them."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []

    def flush() -> None:
        if rows:
            parquet.write_table(pa.Table.from_pylist(rows, schema=parquet.schema))
            rows.clear()

    def write(document: Document, text: str) -> None:
        rows.append({**document.record, column: text})
        if len(rows) >= ROW_GROUP_SIZE:
            flush()

    yield write
    flush()


def _format(path: Path) -> tuple[str, ...]:
    return next((kind for kind in (TEXT, JSONL, PARQUET) if path.suffix in kind), (path.suffix,))


def _decode(raw: bytes) -> str:
    """Decode UTF-8; ValueError for anything else, and for binary data."""
    if b"\0" in raw:
        raise ValueError("binary data, not text (it holds zero bytes)")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
