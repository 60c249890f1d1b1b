"""Files of questions and answers: the registry, and tables (CSV, Parquet)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from expunge._core.registry import NoMetadata, Registry
from expunge.data import manifest as manifests
from expunge.data import text_tables
from expunge.errors import DataError
from expunge.review.answer_log import COLUMNS, DRAW_COLUMNS
from expunge.review.cards import Cards
from expunge.review.tables import answer_rows, read_table
from expunge.storage.atomic_files import new_file, write_file

QUESTION_COLUMNS = ("given", "suggested", "p_noisy")
# Choices beside the classes in tools that know classes only.
BAD_INPUT, CANNOT_TELL = "(bad input)", "(cannot tell)"


class Format(NamedTuple):
    """How questions are written for a tool, and how its answers are read.

    write: rows of `questions` and the cards, to a path. read: rows of answers from a path; a row
    names its sample by ``id``, or by ``row``. has_verdicts: False if the tool knows classes only.
    """

    write: Callable[[Sequence[dict[str, Any]], Cards, Path], None]
    read: Callable[[Path], list[dict[str, Any]]]
    has_verdicts: bool = True


formats: Registry[Callable[[], Format], NoMetadata] = Registry("exchange format", NoMetadata)


def chosen(choice: object, row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer from the choice of a tool that knows classes only."""
    verdicts = {BAD_INPUT: "bad-input", CANNOT_TELL: "cannot-tell"}
    verdict = verdicts.get(str(choice), "wrong")
    return {**row, "verdict": verdict, "label": choice if verdict == "wrong" else None}


def facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a tool keeps of a question: the id, labels, and how it was drawn."""
    return {k: row[k] for k in ("id", *QUESTION_COLUMNS, "repeat", *DRAW_COLUMNS)}


@formats.register("csv")
def csv_format() -> Format:
    """A line a question: ``id, verdict, label, reviewer, …`` and how the sample was drawn.

    ``sample`` is the text, or the numbers of a table; images and sounds are left out. Commas,
    semicolons, tabs or bars are read, as spreadsheets write them.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        buffer = io.StringIO(newline="")
        shown = ("sample",) if cards.kind in ("text", "table") else ()
        names = (*COLUMNS, *QUESTION_COLUMNS, *shown, *DRAW_COLUMNS)
        writer = csv.DictWriter(buffer, names, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "sample": cards.content(row["row"])} if shown else row)
        write_file(path, buffer.getvalue())

    def read(path: Path) -> list[dict[str, Any]]:
        columns = text_tables.read_table(path, ".csv")
        manifests.check_columns(columns, ["id", "verdict"], path)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    return Format(write, read)


@formats.register("parquet")
def parquet_format() -> Format:
    """The columns of the CSV file and ``sample``, with the Hub's description of their types.

    ``pandas.read_parquet`` and ``datasets.Dataset.from_parquet`` read it; the latter decodes images
    and sounds. What their ``to_parquet`` writes is read back.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        with new_file(path) as temporary:
            pq.write_table(_questions_table(rows, cards), temporary)

    def read(path: Path) -> list[dict[str, Any]]:
        return answer_rows(read_table(path), where=str(path))

    return Format(write, read)


_TYPES = {
    "repeat": pa.bool_(),
    "p_noisy": pa.float64(),
    "probability": pa.float64(),
    **dict.fromkeys(("batch", "stratum", "stratum_size", "order"), pa.int64()),
}


def _questions_table(rows: Sequence[dict[str, Any]], cards: Cards) -> pa.Table:
    names = (*COLUMNS, *QUESTION_COLUMNS, *DRAW_COLUMNS)
    columns: dict[str, pa.Array] = {}
    for name in names:
        values = [row[name] for row in rows]
        is_number = name == "id" and not any(isinstance(v, str) for v in values)
        kind = pa.int64() if is_number else _TYPES.get(name, pa.string())
        columns[name] = pa.array(values, type=kind)
    hub = {name: {"dtype": str(c.type), "_type": "Value"} for name, c in columns.items()}
    for name in ("p_noisy", "probability"):
        hub[name]["dtype"] = "float64"  # Arrow calls it double
    media = {"image": ("Image", cards.image), "sound": ("Audio", cards.sound)}
    if cards.kind in media:
        kind, make = media[cards.kind]
        encoded = [{"bytes": make(row["row"]), "path": None} for row in rows]
        columns["sample"] = pa.array(
            encoded, type=pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        hub["sample"] = {"_type": kind}
    elif cards.kind != "none":
        columns["sample"] = pa.array([cards.content(row["row"]) for row in rows])
        hub["sample"] = {"dtype": "string", "_type": "Value"}
    described = json.dumps({"info": {"features": hub}})
    return pa.table(columns).replace_schema_metadata({"huggingface": described})


def sample_of(row: Mapping[str, Any], cards: Cards) -> str:
    """The input of a question as text or a ``data:`` URI; its id if the input is not known."""
    return cards.content(row["row"]) or str(row["id"])


def require_choice(value: object, where: str) -> object:
    """The one choice of an answer.

    Raises
    ------
    DataError
        If it is neither a name nor a number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"expected one class as the answer, got {value!r}", where=where)
    return value
