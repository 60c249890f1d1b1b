"""Tables in text files, compressed or not: CSV with any separator, JSON lines, JSON arrays."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from expunge.data.conversion import check_names
from expunge.data.labels import parse_integers
from expunge.data.paths import require_file
from expunge.errors import DataError, format_ids, type_with_article
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading

SEPARATORS = ",;\t|"
_KINDS = {
    ".csv": ".csv",
    ".tsv": ".csv",
    ".tab": ".csv",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    ".json": ".jsonl",
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd"}
MAX_BYTES = 8 << 30  # of the text of a table
_MAX_FIELD = 1 << 30
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_NUMBER = re.compile(r"[-+]?\d+(,\d+)?(e[-+]?\d+)?", re.IGNORECASE)

Table = dict[str, Sequence[object]]


def table_kind(path: Path) -> str:
    """``".csv"`` or ``".jsonl"`` by the suffix, also of a compressed file; else empty.

    Examples
    --------
    >>> table_kind(Path("a.tsv")), table_kind(Path("a.JSON.gz")), table_kind(Path("a.gz"))
    ('.csv', '.jsonl', '')
    """
    inner = path.with_suffix("") if path.suffix.lower() in _COMPRESSIONS else path
    return _KINDS.get(inner.suffix.lower(), "")


def read_table(path: Path, kind: str = "") -> Table:
    """Read the columns of a CSV or JSON file; without a kind the suffix of the path decides.

    The fields of a CSV file are separated by commas, semicolons, tabs or bars; space around them is
    removed. Where the separator is no comma, the comma is a decimal mark in columns of numbers. A
    column of which all values are integers becomes integers; others are strings. JSON is one object
    a line, an array of objects, an object of columns (as pandas writes it), or an object of one
    array of objects.
    """
    require_file(path)
    with reading(path, what="not a text table", fix="save it as CSV or JSONL in UTF-8"):
        text = _text(path)
        if (kind or table_kind(path)) == ".jsonl":
            return _json_columns(text, path)
        return _csv_columns(_split_rows(text), path)


def _text(path: Path) -> str:
    compression = _COMPRESSIONS.get(path.suffix.lower())
    with pa.input_stream(str(path), compression=compression) as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(
            f"holds more than {MAX_BYTES >> 30} GiB of text",
            where=str(path),
            fix="write it as Parquet",
        )
    encoding = "utf-16" if data[:2] in _UTF16 else "utf-8-sig"
    return str(data.decode(encoding))


def _split_rows(text: str) -> list[list[str]]:
    """The fields of all rows, by the first separator that gives every row as many as the header."""
    stated = re.match(r"sep=(.)\r?\n", text)  # as Excel writes it
    if stated:
        return _parse_csv(text[stated.end() :], stated[1])
    for separator in SEPARATORS:
        try:
            rows = _parse_csv(text, separator)
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1 and {len(row) for row in rows if row} == {len(rows[0])}:
            return rows if separator == "," else _with_decimal_points(rows)
    return _without_last_separator(_parse_csv(text, ","))


def _parse_csv(text: str, separator: str) -> list[list[str]]:
    lines = io.StringIO(text, newline="")
    with _long_fields():
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        return [[field.strip() for field in row] for row in rows]


@contextmanager
def _long_fields() -> Iterator[None]:
    """Fields of any length inside the block: whole documents."""
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _with_decimal_points(rows: list[list[str]]) -> list[list[str]]:
    """Rows with points for the commas of columns in which every value is a number."""
    for column in range(len(rows[0])):
        values = [row[column] for row in rows[1:] if row]
        if any("," in v for v in values) and all(_NUMBER.fullmatch(v) for v in values if v):
            for row in rows[1:]:
                if row:
                    row[column] = row[column].replace(",", ".")
    return rows


def _without_last_separator(rows: list[list[str]]) -> list[list[str]]:
    """Rows without the empty field that a separator at their end makes, if all have one more field
    than the header."""
    width = len(rows[0]) if rows else 0
    if all(not row or (len(row) == width + 1 and not row[-1]) for row in rows[1:]):
        return [row[:width] for row in rows]
    return rows


def _csv_columns(lines: list[list[str]], path: Path) -> Table:
    if not lines:
        raise DataError("the file is empty", where=str(path), fix="expected a header and rows")
    header, rows = lines[0], [line for line in lines[1:] if line]
    check_names(header, str(path))
    odd = [i for i, row in enumerate(rows, 1) if len(row) != len(header)]
    if odd:
        is_title = len(header) == 1 and len(odd) == len(rows)
        raise DataError(
            f"rows without exactly {len(header)} fields, as in the header: {format_ids(odd)}",
            where=str(path),
            fix="remove the lines above the header"
            if is_title
            else "quote fields that hold the separator",
        )
    if not rows:
        raise DataError(
            "no rows below the header",
            where=str(path),
            fix="check the path and what wrote the file",
        )
    columns = [list(c) for c in zip(*rows, strict=True)]
    return {name: parse_integers(c) for name, c in zip(header, columns, strict=True)}


def _json_columns(text: str, path: Path) -> Table:
    found = _json_value(text)
    if isinstance(found, dict) and len(found) == 1 and _are_objects(*found.values()):
        (found,) = found.values()  # {"data": [{…}, …]}
    if isinstance(found, dict) and (columns := _columns_by_name(found)):
        return columns
    rows = found if isinstance(found, list) else _json_lines(text, path)
    if not rows:
        raise DataError("the file is empty", where=str(path), fix="expected one object a line")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"line {number} is {type_with_article(row)}, expected an object",
                where=str(path),
                fix='write every row with the names of its columns: {"text": …, "label": …}',
            )
    # A key that a row leaves out is a missing value of that row.
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _json_value(text: str) -> Any:
    """What the text is as a whole; None for objects in lines."""
    try:
        return parse_json(text)
    except ValueError:
        if text.lstrip()[:1] == "[":
            raise
        return None


def _are_objects(rows: object) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)


def _columns_by_name(found: dict[str, Any]) -> Table:
    """Columns of an object of lists, or of objects with the same keys, as pandas writes them.

    Empty for anything else.
    """
    columns = [*found.values()]
    if all(isinstance(c, dict) and {*c} == {*columns[0]} for c in columns):
        return {name: [column[k] for k in columns[0]] for name, column in found.items()}
    is_table = all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns)
    return dict(found) if is_table else {}


def _json_lines(text: str, path: Path) -> list[Any]:
    rows: list[Any] = []
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if not line.strip():
            continue
        try:
            rows.append(parse_json(line))
        except ValueError as error:
            raise DataError(
                f"line {number} is no JSON ({error})",
                where=str(path),
                fix="remove the comma at the end of each line"
                if line.rstrip().endswith(",")
                else "write one JSON object a line",
            ) from error
    return rows
