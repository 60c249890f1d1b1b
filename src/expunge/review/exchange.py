"""Questions and answers as files of other tools, and answers from them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from expunge.errors import DataError, did_you_mean
from expunge.review.answer_log import COLUMNS, DRAW_COLUMNS, now, to_row
from expunge.review.answers import Answer, latest
from expunge.storage.atomic_files import wrap_io_errors

if TYPE_CHECKING:
    from expunge.review.session import ReviewSession

QUESTION_COLUMNS = ("given", "suggested", "p_noisy")


def export_queue(session: ReviewSession, path: str | Path) -> int:
    """Write every question and answer as a line of CSV; returns their number.

    Questions without an answer have an empty verdict. Fill in ``verdict`` and, where the given
    label is wrong, ``label``; `import_answers` reads the file again.
    """
    partition, classes = session.partition, session.classes
    answers = latest(session.log.read())
    answered = {(str(a.id), a.repeat) for a in answers}
    rows = [to_row(answer, classes) for answer in answers]
    for item in session.queue.items:
        if (str(item.id), item.repeat) not in answered:
            blank = to_row(Answer(item.id, "skip", repeat=item.repeat, draw=item.draw), classes)
            rows.append(blank | {"verdict": ""})
    for row in rows:
        k = int(session.rows([row["id"]])[0])
        row["given"] = classes[int(partition.labels[k])]
        row["suggested"] = classes[int(partition.suggested_label[k])]
        row["p_noisy"] = f"{partition.p_noisy[k]:.4f}"
    with wrap_io_errors(Path(path)), Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *QUESTION_COLUMNS, *DRAW_COLUMNS))
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def import_answers(session: ReviewSession, path: str | Path) -> int:
    """Add the answers of a CSV file that are new or differ; returns their number.

    Raises
    ------
    DataError
        If a line is no answer, or an id or a class does not exist. Nothing is added then.
    """
    known = {(str(a.id), a.reviewer, a.repeat): (a.verdict, a.label) for a in session.log.read()}
    found = session.log.read_csv(path)
    new = []
    for answer in found:
        key = (str(answer.id), answer.reviewer, answer.repeat)
        label = answer.label
        if answer.verdict == "right" and label is None:
            row = int(session.rows([answer.id])[0])
            label = int(session.partition.labels[row]) if row >= 0 else None
        if known.get(key) != (answer.verdict, label):
            new.append(
                Answer(
                    answer.id,
                    answer.verdict,
                    label,
                    answer.reviewer,
                    answer.time or now(),
                    answer.repeat,
                    answer.draw,
                )
            )
    session.add(new)
    return len(new)


def read_texts(path: Path, column: str) -> dict[str, str]:
    """Documents by id, from a Parquet, CSV or JSONL file with the columns ``id`` and this one.

    Raises
    ------
    DataError
        If the file or a column is not there.
    """
    table = read_table(path)
    for name in ("id", column):
        if name not in table.column_names:
            raise DataError(
                f"there is no column '{name}'",
                where=str(path),
                fix=did_you_mean(name, table.column_names),
            )
    ids, texts = table["id"].to_pylist(), table[column].to_pylist()
    return {str(i): str(t or "") for i, t in zip(ids, texts, strict=True)}


def read_table(path: Path) -> pa.Table:
    """A Parquet, CSV or JSONL file as a table; DataError if it cannot be read."""
    readers = {
        ".parquet": pq.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
    }
    if path.suffix not in readers:
        raise DataError(
            f"unsupported file type '{path.suffix}'; expected {', '.join(readers)}",
            where=str(path),
        )
    try:
        return readers[path.suffix](path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), fix="check it") from error
