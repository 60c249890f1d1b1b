"""Questions and answers as files of other tools, and answers from them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge._core.registry import NoMetadata, Registry
from expunge.errors import DataError, raise_all
from expunge.review.answer_log import COLUMNS, DRAW_COLUMNS, from_row, now, to_row
from expunge.review.answers import Answer, latest
from expunge.review.cards import Cards
from expunge.storage.atomic_files import wrap_io_errors, write_file
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading

if TYPE_CHECKING:
    from expunge.review.session import ReviewSession

QUESTION_COLUMNS = ("given", "suggested", "p_noisy")
# Choices beside the classes in tools that know classes only.
BAD_INPUT, CANNOT_TELL = "(bad input)", "(cannot tell)"
_MAX_PROBLEMS = 12


class Format(NamedTuple):
    """How questions are written for a tool, and how its answers are read.

    write: rows of `questions` and the cards, to a path. read: rows of answers from a path.
    """

    write: Callable[[Sequence[dict[str, Any]], Cards, Path], None]
    read: Callable[[Path], list[dict[str, Any]]]


formats: Registry[Callable[[], Format], NoMetadata] = Registry("exchange format", NoMetadata)


def questions(session: ReviewSession) -> list[dict[str, Any]]:
    """Every answer and every question without one, as plain values; these have an empty verdict."""
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
        row["row"] = k
        row["given"] = classes[int(partition.labels[k])]
        row["suggested"] = classes[int(partition.suggested_label[k])]
        row["p_noisy"] = round(float(partition.p_noisy[k]), 4)
        row["suggested_probability"] = round(float(partition.suggested_probability[k]), 4)
    return rows


def export_questions(
    session: ReviewSession, cards: Cards, path: str | Path, *, format: str = "csv"
) -> int:
    """Write questions and answers for a tool; returns their number.

    Parameters
    ----------
    session, cards
        The review and what it shows.
    path
        A file; for ``"fiftyone"`` a folder.
    format
        ``"csv"``: fill in ``verdict`` and, where the given label is wrong, ``label``.
        ``"label-studio"``: tasks. ``"argilla"``: records. ``"fiftyone"``: images and labels.
    """
    rows = questions(session)
    with wrap_io_errors(Path(path)):
        formats.get(format)().write(rows, cards, Path(path))
    return len(rows)


def import_answers(session: ReviewSession, path: str | Path, *, format: str = "csv") -> int:
    """Add the answers of a tool's file that are new or differ; returns their number.

    Raises
    ------
    DataError
        If the file or a row of it is not as expected, or an id or a class does not exist. Nothing
        is added then.
    """
    indices = {name: k for k, name in enumerate(session.classes)}
    found, problems = [], []
    for number, row in enumerate(formats.get(format)().read(Path(path)), start=1):
        if row.get("id") not in (None, "") and not row.get("verdict"):
            continue  # a question without an answer
        try:
            found.append(_completed(from_row(row, indices), session))
        except DataError as error:
            problems.append(f"answer {number}: {error}")
    raise_all(DataError, problems[:_MAX_PROBLEMS], where=str(path))
    known = {(str(a.id), a.reviewer, a.repeat): (a.verdict, a.label) for a in session.log.read()}
    new = [a for a in found if known.get((str(a.id), a.reviewer, a.repeat)) != (a.verdict, a.label)]
    session.add(new)
    return len(new)


def _completed(answer: Answer, session: ReviewSession) -> Answer:
    """An answer with a time and the run's own id; the given label is right, not wrong."""
    row = int(session.rows([answer.id])[0])
    if row < 0:
        raise DataError(f"no sample has the id {answer.id}")
    given, verdict, label = int(session.partition.labels[row]), answer.verdict, answer.label
    if verdict == "right" or (verdict == "wrong" and label == given):
        verdict, label = "right", given
    name = session.partition.ids[row].item()
    time = answer.time or now()
    return Answer(name, verdict, label, answer.reviewer, time, answer.repeat, answer.draw)


def _chosen(choice: object, row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer from the choice of a tool that knows classes only."""
    verdicts = {BAD_INPUT: "bad-input", CANNOT_TELL: "cannot-tell"}
    verdict = verdicts.get(str(choice), "wrong")
    return {**row, "verdict": verdict, "label": choice if verdict == "wrong" else None}


# CSV


@formats.register("csv")
def csv_format() -> Format:
    """A line a question: ``id, verdict, label, reviewer, …`` and how the sample was drawn."""

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        buffer = io.StringIO(newline="")
        names = (*COLUMNS, *QUESTION_COLUMNS, *DRAW_COLUMNS)
        writer = csv.DictWriter(buffer, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_file(path, buffer.getvalue())

    def read(path: Path) -> list[dict[str, Any]]:
        with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    return Format(write, read)


# Label Studio


@formats.register("label-studio")
def label_studio_format() -> Format:
    """Tasks with the suggested label as a prediction, and exported results.

    The labelling configuration needs ``<Choices name="label" toName="sample">`` with the classes,
    ``(bad input)`` and ``(cannot tell)``, and a tag named ``sample`` with ``value="$sample"``.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        tasks = []
        for row in rows:
            data = {"sample": cards.content(row["row"]), **_facts(row)}
            result = [_studio_choice(row["suggested"])]
            score = row["suggested_probability"]
            task: dict[str, Any] = {"data": data}
            task["predictions"] = [{"model_version": "expunge", "score": score, "result": result}]
            tasks.append(task)
        write_file(path, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")

    def read(path: Path) -> list[dict[str, Any]]:
        found = []
        with reading(path):
            for task in parse_json(path.read_text(encoding="utf-8-sig")):
                for annotation in task.get("annotations", ()):
                    choices = [
                        result["value"]["choices"][0]
                        for result in annotation["result"]
                        if result.get("type") == "choices"
                    ]
                    if choices and not annotation.get("was_cancelled"):
                        who = annotation.get("completed_by", "")
                        name = who.get("email", "") if isinstance(who, dict) else who
                        facts = {**task["data"], "reviewer": str(name)}
                        found.append(_chosen(choices[0], facts))
        return found

    return Format(write, read)


def _studio_choice(name: str) -> dict[str, Any]:
    value = {"choices": [name]}
    return {"from_name": "label", "to_name": "sample", "type": "choices", "value": value}


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a tool keeps of a question: the id, labels, and how it was drawn."""
    return {k: row[k] for k in ("id", *QUESTION_COLUMNS, "repeat", *DRAW_COLUMNS)}


# Argilla


@formats.register("argilla")
def argilla_format() -> Format:
    """Records with the suggested label, and records with responses.

    The data set needs a text field ``sample`` and a label question ``label`` with the classes,
    ``(bad input)`` and ``(cannot tell)``.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        records = [
            {
                "id": f"{row['id']}{' (again)' if row['repeat'] else ''}",
                "fields": {"sample": cards.content(row["row"]) or str(row["id"])},
                "metadata": {k: v for k, v in _facts(row).items() if v is not None},
                "suggestions": {
                    "label": {
                        "value": row["suggested"],
                        "score": row["suggested_probability"],
                        "agent": "expunge",
                    }
                },
                "responses": {},
                "vectors": {},
            }
            for row in rows
        ]
        write_file(path, json.dumps(records, indent=1, ensure_ascii=False) + "\n")

    def read(path: Path) -> list[dict[str, Any]]:
        found = []
        with reading(path):
            for record in parse_json(path.read_text(encoding="utf-8-sig")):
                for response in record.get("responses", {}).get("label", ()):
                    facts = {**record["metadata"], "reviewer": str(response.get("user_id", ""))}
                    found.append(_chosen(response["value"], facts))
        return found

    return Format(write, read)


# FiftyOne


@formats.register("fiftyone")
def fiftyone_format() -> Format:
    """The folder of a ``FiftyOneImageClassificationDataset``: ``data`` and ``labels.json``.

    The label of a sample is the given one, its confidence ``1 − p_noisy``. Read back, every label
    is an answer: keep only the samples that were looked at.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        (path / "data").mkdir(parents=True, exist_ok=True)
        labels = {}
        for row in rows:
            if row["repeat"]:
                continue
            name = f"{row['row']:07d}"  # ids can be paths
            (path / "data" / f"{name}.png").write_bytes(cards.image(row["row"]))
            attributes = {k: v for k, v in _facts(row).items() if v is not None}
            confidence = 1 - row["p_noisy"]
            labels[name] = {
                "label": row["given"],
                "confidence": confidence,
                "attributes": attributes,
            }
        facts = {"classes": [*cards.classes, BAD_INPUT, CANNOT_TELL], "labels": labels}
        write_file(path / "labels.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def read(path: Path) -> list[dict[str, Any]]:
        with reading(path):
            found = parse_json((path / "labels.json").read_text(encoding="utf-8-sig"))
            classes = found.get("classes") or []
            rows = []
            for label in found["labels"].values():
                name = label["label"]
                name = classes[name] if isinstance(name, int) else name
                rows.append(_chosen(name, label["attributes"]))
        return rows

    return Format(write, read)
