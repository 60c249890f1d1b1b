"""The answers of a run: ``reviews.jsonl``, one JSON object an answer, only ever appended to.

An answer is acknowledged after it is on the disk. A last line that a killed process left
unfinished is ignored, and removed by the next answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from expunge.errors import DataError, RunError, did_you_mean, raise_all
from expunge.review.answers import Answer, Draw
from expunge.storage.atomic_files import wrap_io_errors
from expunge.storage.json_files import MAX_BYTES, parse_json
from expunge.storage.reading import reading

REVIEWS, QUEUE = "reviews.jsonl", "review_queue.json"
COLUMNS = ("id", "verdict", "label", "reviewer", "time", "repeat")
DRAW_COLUMNS = ("batch", "stratum", "stratum_size", "order", "probability")
_MAX_PROBLEMS = 12


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_row(answer: Answer, classes: Sequence[str]) -> dict[str, Any]:
    """An answer as plain values; the label is the name of its class."""
    label = None if answer.label is None else classes[answer.label]
    row = {name: getattr(answer, name) for name in COLUMNS} | {"label": label}
    draw = answer.draw
    return row | {k: None if draw is None else getattr(draw, k) for k in DRAW_COLUMNS}


def from_row(row: Mapping[str, Any], indices: Mapping[str, int]) -> Answer:
    """Read what `to_row` made, or a line of CSV where every value is text.

    Raises
    ------
    DataError
        If a column is missing, a value is of the wrong type, or the class does not exist.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"expected an object, got {type(row).__name__}")
    missing = [name for name in ("id", "verdict") if row.get(name) in (None, "")]
    if missing:
        raise DataError(f"expected the columns id and verdict, missing: {', '.join(missing)}")
    name, identity = row.get("label"), row["id"]
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise DataError(f"expected an id of text or an integer, got {identity!r}")
    label = None if name in (None, "") else class_index(name, indices)
    return Answer(
        identity,
        str(row["verdict"]).strip().lower(),  # type: ignore[arg-type]  # checked there
        label,
        str(row.get("reviewer") or ""),
        str(row.get("time") or ""),
        str(row.get("repeat") or "").lower() in ("true", "1"),
        _draw(row),
    )


def class_index(name: object, indices: Mapping[str, int]) -> int:
    """The class of this name, also as a spreadsheet writes it: 3.0 for 3, 3 for 3.0, TRUE."""
    text = str(name)
    if text in indices:
        return indices[text]
    alike = [index for known, index in indices.items() if _plain(known) == _plain(text)]
    if len(alike) != 1:
        hint = did_you_mean(text, list(indices)[:1000])
        raise DataError(f"there is no class '{text}': {hint}")
    return alike[0]


def _plain(name: str) -> str:
    """A name without what a spreadsheet may change: case, space, and the zero of 3.0."""
    return " ".join(name.split()).casefold().removesuffix(".0")


def _integer(value: Any) -> int:
    """An integer, also as a spreadsheet or a data frame writes it beside empty cells: 3.0."""
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{value} is no integer")
    return int(number)


def _draw(row: Mapping[str, Any]) -> Draw | None:
    values = [row.get(k) for k in DRAW_COLUMNS]
    if any(v in (None, "") for v in values):
        return None
    try:
        batch, stratum, size, order = (_integer(v) for v in values[:4])
        probability = float(values[4])  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the columns {', '.join(DRAW_COLUMNS)} must be numbers") from error
    return Draw(batch, stratum, size, order, probability)


class AnswerLog:
    """The answers in a run folder.

    Parameters
    ----------
    folder
        The run folder.
    classes
        The names of the classes.
    """

    def __init__(self, folder: str | Path, classes: Sequence[str]) -> None:
        self.file, self.classes = Path(folder) / REVIEWS, tuple(classes)
        self._indices = {name: i for i, name in enumerate(self.classes)}

    def read(self) -> list[Answer]:
        """All answers, in the order in which they were given; none if there is no file.

        Raises
        ------
        RunError
            If the file cannot be read, or a finished line is no answer; it names the lines.
        """
        lines = _text(self.file).split("\n")[:-1] if self.file.exists() else []
        return self._parse(enumerate(lines, start=1))

    def _parse(self, lines: Iterable[tuple[int, str]]) -> list[Answer]:
        answers, problems = [], []
        for number, line in lines:
            if not line.strip():
                continue
            try:
                answers.append(from_row(parse_json(line), self._indices))
            except ValueError as error:
                problems.append(f"line {number} is not JSON: {error}")
            except DataError as error:
                problems.append(f"line {number}: {error}")
        where = str(self.file)
        if len(problems) > _MAX_PROBLEMS:
            problems = [*problems[:_MAX_PROBLEMS], f"… {len(problems) - _MAX_PROBLEMS} more lines"]
        raise_all(RunError, problems, where=where)
        return answers

    def append(self, answers: Iterable[Answer]) -> None:
        """Add answers; they are on the disk when this returns."""
        text = "".join(
            json.dumps(to_row(answer, self.classes), ensure_ascii=False) + "\n"
            for answer in answers
        )
        with wrap_io_errors(self.file), FileLock(self.file.with_suffix(".lock")):
            _drop_unfinished_line(self.file)
            with self.file.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())


def _text(path: Path) -> str:
    with reading(path, RunError, fix="check the file"):
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        return path.read_text(encoding="utf-8-sig")


def _drop_unfinished_line(path: Path) -> None:
    """Cut what a killed process left after the last line end."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
