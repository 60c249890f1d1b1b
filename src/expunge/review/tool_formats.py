"""The files of labelling tools: Label Studio, Argilla and FiftyOne."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from expunge.errors import DataError
from expunge.review.cards import Cards
from expunge.review.formats import (
    BAD_INPUT,
    CANNOT_TELL,
    Format,
    chosen,
    facts,
    formats,
    require_choice,
    sample_of,
)
from expunge.storage.atomic_files import write_file
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading, require_regular


def _write_json(path: Path, value: object) -> None:
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _read_json(path: Path) -> Any:
    require_regular(path)
    return parse_json(path.read_text(encoding="utf-8-sig"))


# Label Studio

_STUDIO_TAGS = {"image": "Image", "sound": "Audio"}


@formats.register("label-studio")
def label_studio_format() -> Format:
    """Tasks with the suggested label as a prediction, and results exported as JSON.

    The labelling configuration lies beside the tasks, in a file with ``.xml`` for ``.json``.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        write_file(path.with_suffix(".xml"), _studio_configuration(cards))
        _write_json(path, [_studio_task(row, cards) for row in rows])

    def read(path: Path) -> list[dict[str, Any]]:
        found = []
        with reading(path):
            for task in _read_json(path):
                if "annotations" not in task:
                    raise DataError(
                        "a task has no annotations", where=str(path), fix="export as JSON"
                    )
                for annotation in task["annotations"]:
                    choices = [
                        result["value"]["choices"][0]
                        for result in annotation["result"]
                        if result.get("from_name") == "label" and result["value"].get("choices")
                    ]
                    if choices and not annotation.get("was_cancelled"):
                        who = {"reviewer": _studio_reviewer(annotation)}
                        found.append(chosen(choices[0], {**task["data"], **who}))
        return found

    return Format(write, read, has_verdicts=False)


def _studio_task(row: Mapping[str, Any], cards: Cards) -> dict[str, Any]:
    data: dict[str, Any] = {"sample": sample_of(row, cards), **facts(row)}
    score, result = row["suggested_probability"], [_studio_choice(row["suggested"])]
    return {
        "data": data,
        "predictions": [{"model_version": "expunge", "score": score, "result": result}],
    }


def _studio_choice(name: str) -> dict[str, Any]:
    value = {"choices": [name]}
    return {"from_name": "label", "to_name": "sample", "type": "choices", "value": value}


def _studio_reviewer(annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by", "")
    return str(who.get("email", "") if isinstance(who, dict) else who)


def _studio_configuration(cards: Cards) -> str:
    """The labelling configuration: the sample, the given label and the choices."""
    tag = _STUDIO_TAGS.get(cards.kind, "Text")
    choices = (
        f"    <Choice value={quoteattr(name)}/>\n"
        for name in (*cards.classes, BAD_INPUT, CANNOT_TELL)
    )
    return (
        f'<View>\n  <{tag} name="sample" value="$sample"/>\n'
        '  <Header value="Given label: $given"/>\n'
        '  <Choices name="label" toName="sample" choice="single">\n'
        f"{''.join(choices)}  </Choices>\n</View>\n"
    )


# Argilla

_ARGILLA_RECORDS = "records.json"


@formats.register("argilla")
def argilla_format() -> Format:
    """A folder that ``argilla.Dataset.from_disk`` takes: settings, and records with suggestions.

    What ``Dataset.to_disk`` wrote is read, or a file of ``dataset.records.to_json``.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        (path / ".argilla").mkdir(parents=True, exist_ok=True)
        _write_json(path / ".argilla" / "settings.json", _argilla_settings(cards))
        _write_json(path / ".argilla" / "dataset.json", {"name": "expunge-review"})
        _write_json(path / _ARGILLA_RECORDS, [_argilla_record(row, cards) for row in rows])

    def read(path: Path) -> list[dict[str, Any]]:
        found = []
        with reading(path):
            file = path / _ARGILLA_RECORDS if path.is_dir() else path
            for record in _read_json(file):
                for response in record.get("responses", {}).get("label", ()):
                    if response["value"] is not None:
                        who = {"reviewer": str(response.get("user_id", ""))}
                        found.append(chosen(response["value"], {**record["metadata"], **who}))
        return found

    return Format(write, read, has_verdicts=False)


def _argilla_settings(cards: Cards) -> dict[str, Any]:
    """An image, or a text; a sound is a player in a text, as Argilla shows sounds."""
    field: dict[str, Any] = {"type": "image"} if cards.kind == "image" else {"type": "text"}
    if field["type"] == "text":
        field["use_markdown"] = cards.kind == "sound"
    options = [
        {"value": name, "text": name, "description": None}
        for name in (*cards.classes, BAD_INPUT, CANNOT_TELL)
    ]
    question = {"type": "label_selection", "options": options, "visible_options": None}
    return {
        "guidelines": "Which class is right? The metadata hold the given label.",
        "fields": [{"name": "sample", "title": "sample", "required": True, "settings": field}],
        "questions": [{"name": "label", "title": "label", "required": True, "settings": question}],
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }


def _argilla_record(row: Mapping[str, Any], cards: Cards) -> dict[str, Any]:
    sample = sample_of(row, cards)
    if cards.kind == "sound":
        sample = f'<audio controls src="{escape(sample)}"></audio>'
    suggestion = {
        "value": row["suggested"],
        "score": row["suggested_probability"],
        "agent": "expunge",
    }
    return {
        "id": f"{row['id']}{' (again)' if row['repeat'] else ''}",
        "fields": {"sample": sample},
        "metadata": {k: v for k, v in facts(row).items() if v is not None},
        "suggestions": {"label": suggestion},
        "responses": {},
        "vectors": {},
    }


# FiftyOne


@formats.register("fiftyone")
def fiftyone_format() -> Format:
    """The folder of a ``FiftyOneImageClassificationDataset``: ``data`` and ``labels.json``.

    The label of a sample is the given one, its confidence ``1 − p_noisy``. Read back, every label
    is an answer: export only the samples that were looked at. Names of files are the numbers of the
    rows, so that an export without attributes, FiftyOne's default, is read as well.
    """

    def write(rows: Sequence[dict[str, Any]], cards: Cards, path: Path) -> None:
        if cards.kind != "image":
            raise DataError(
                "the samples have no images, which FiftyOne needs",
                where=str(path),
                fix="choose another format, or name the spec of the images with --spec",
            )
        (path / "data").mkdir(parents=True, exist_ok=True)
        labels = {}
        for row in rows:
            if row["repeat"]:
                continue
            name = f"{row['row']:07d}"  # ids can be paths
            (path / "data" / f"{name}.png").write_bytes(cards.image(row["row"]))
            # A label of FiftyOne has an id of its own.
            known = {"sample" if k == "id" else k: v for k, v in facts(row).items()}
            labels[name] = {
                "label": row["given"],
                "confidence": 1 - row["p_noisy"],
                "attributes": {k: v for k, v in known.items() if v is not None},
            }
        classes = [*cards.classes, BAD_INPUT, CANNOT_TELL]
        _write_json(path / "labels.json", {"classes": classes, "labels": labels})

    def read(path: Path) -> list[dict[str, Any]]:
        with reading(path):
            found = _read_json(path / "labels.json")
            classes = found.get("classes") or []
            return [_fiftyone_answer(k, v, classes) for k, v in found["labels"].items()]

    return Format(write, read, has_verdicts=False)


def _fiftyone_answer(key: str, label: Any, classes: Sequence[str]) -> dict[str, Any]:
    """An answer from a label: a name or the number of a class, alone or with attributes."""
    known: dict[str, Any] = {}
    if isinstance(label, dict):
        known, label = dict(label.get("attributes") or {}), label["label"]
    name = require_choice(label, f"labels.json, {key}")
    if isinstance(name, int):
        name = classes[name] if 0 <= name < len(classes) else str(name)
    if "sample" in known:
        return chosen(name, {"id": known.pop("sample"), **known})
    return chosen(name, {"row": int(Path(key).stem)})
