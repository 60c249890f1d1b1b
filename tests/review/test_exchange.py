"""Questions written for other tools, and their answers read back."""

from __future__ import annotations

import base64
import csv
import json
from contextlib import suppress
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from expunge.errors import DataError, RunError
from expunge.review import answers_from_table, plan_queue, queue_table
from expunge.review.exchange import export_questions, import_answers
from expunge.review.formats import BAD_INPUT, CANNOT_TELL, formats
from expunge.review.tables import partition_from_issues, read_texts
from oracles_review import (
    answers_of,
    check_exchanged,
    choice_of,
    open_session,
    opened_review,
    planted,
    write_run,
)

CLASSES = ("cat", "<b>dog</b>", "deer", "frog")


@pytest.fixture
def review(tmp_path):
    with opened_review(tmp_path, "image", CLASSES) as opened:
        yield opened


def test_label_studio_tasks_and_their_results(review, tmp_path):
    session, cards, true = review
    path = tmp_path / "tasks.json"
    export_questions(session, cards, path, format="label-studio")
    configuration = ElementTree.parse(tmp_path / "tasks.xml").getroot()
    values = [choice.get("value") for choice in configuration.iter("Choice")]
    assert values == [*CLASSES, BAD_INPUT, CANNOT_TELL]
    tasks = json.loads(path.read_text())
    first = tasks[0]
    assert first["data"]["sample"].startswith("data:image/png;base64,")
    assert base64.b64decode(first["data"]["sample"].split(",")[1]).startswith(b"\x89PNG")
    suggested = first["predictions"][0]["result"][0]["value"]["choices"]
    assert suggested == [first["data"]["suggested"]]
    for task in tasks:
        value = {"choices": [choice_of(session, true, task["data"]["id"])]}
        result = {"from_name": "label", "to_name": "sample", "type": "choices", "value": value}
        task["annotations"] = [
            {"completed_by": {"email": "a@b.c"}, "was_cancelled": False, "result": [result]},
            {"completed_by": 3, "was_cancelled": True, "result": [result]},
        ]
    path.write_text(json.dumps(tasks))
    import_answers(session, path, format="label-studio")
    check_exchanged(session, true)
    assert {a.reviewer for a in session.log.read()} == {"a@b.c"}


@pytest.mark.parametrize("is_folder", [True, False])
def test_argilla_records_and_their_responses(review, tmp_path, is_folder):
    session, cards, true = review
    path = tmp_path / "argilla"
    export_questions(session, cards, path, format="argilla")
    settings = json.loads((path / ".argilla" / "settings.json").read_text())
    assert settings["fields"][0]["settings"] == {"type": "image"}
    options = [option["value"] for option in settings["questions"][0]["settings"]["options"]]
    assert options == [*CLASSES, BAD_INPUT, CANNOT_TELL]
    records = json.loads((path / "records.json").read_text())
    for record in records:
        assert record["suggestions"]["label"]["agent"] == "expunge"
        value = choice_of(session, true, record["metadata"]["id"])
        other = {"value": None, "user_id": "u2"}  # discarded
        record["responses"] = {"label": [{"value": value, "user_id": "u1"}, other]}
    (path / "records.json").write_text(json.dumps(records))
    import_answers(session, path if is_folder else path / "records.json", format="argilla")
    check_exchanged(session, true)


@pytest.mark.parametrize("exported", ["attributes", "labels", "indices", "paths"])
def test_a_fiftyone_folder_and_its_labels(review, tmp_path, exported):
    """FiftyOne writes no attributes by default, and indices if it is given classes."""
    session, cards, true = review
    path = tmp_path / "fiftyone"
    export_questions(session, cards, path, format="fiftyone")
    found = json.loads((path / "labels.json").read_text())
    assert found["classes"][:4] == list(CLASSES)
    labels = {}
    for name, label in found["labels"].items():
        assert (path / "data" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "id" not in label["attributes"]  # a label of FiftyOne has its own
        choice = choice_of(session, true, label["attributes"]["sample"])
        if exported == "attributes":
            labels[name] = label | {"label": choice}
        elif exported == "indices":
            labels[name] = found["classes"].index(choice)
        else:
            labels[f"/a/b/{name}.png" if exported == "paths" else name] = choice
    if exported == "labels":
        found["classes"] = None
    (path / "labels.json").write_text(json.dumps(found | {"labels": labels}))
    import_answers(session, path, format="fiftyone")
    check_exchanged(session, true)


def answered(session, true, row):
    """The columns of a question that somebody has answered."""
    choice = choice_of(session, true, row["id"])
    verdict = {BAD_INPUT: "bad-input", CANNOT_TELL: "cannot-tell"}.get(choice)
    if verdict:
        return {**row, "verdict": verdict}
    is_right = choice == row["given"]
    return {**row, "verdict": "right" if is_right else "wrong", "label": "" if is_right else choice}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_as_spreadsheets_write_it(review, tmp_path, separator):
    session, cards, true = review
    path = tmp_path / "questions.csv"
    export_questions(session, cards, path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        for row in rows:
            # Numbers beside empty cells become floats in a data frame.
            draw = {k: f"{row[k]}.0" for k in ("batch", "stratum", "stratum_size", "order")}
            writer.writerow(answered(session, true, row) | draw)
    import_answers(session, path)
    check_exchanged(session, true)


def test_a_csv_file_shows_the_numbers_of_a_table(tmp_path):
    with opened_review(tmp_path, "table", CLASSES) as (session, cards, true):
        path = tmp_path / "questions.csv"
        export_questions(session, cards, path)
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert [row["sample"] for row in rows] == [
            cards.content(int(session.rows([int(row["id"])])[0])) for row in rows
        ]
        assert all(row["sample"].count(", ") == 11 for row in rows)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(answered(session, true, row) for row in rows)
        import_answers(session, path)
        check_exchanged(session, true)


def test_a_parquet_file_of_questions_and_answers(review, tmp_path):
    session, cards, true = review
    path = tmp_path / "questions.parquet"
    export_questions(session, cards, path, format="parquet")
    table = pq.read_table(path)
    assert table["sample"][0].as_py()["bytes"].startswith(b"\x89PNG")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["sample"] == {"_type": "Image"}
    rows = [answered(session, true, row) for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    import_answers(session, path, format="parquet")
    check_exchanged(session, true)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_answers_about_labels_that_were_corrected_since_are_about_the_new_ones(
    review, tmp_path, format
):
    session, cards, true = review
    path, old = tmp_path / "questions.parquet", session.partition
    export_questions(session, cards, path, format="parquet")
    table = pq.read_table(path)
    rows = [answered(session, true, row) for row in table.to_pylist()]
    answers = pa.Table.from_pylist(rows, schema=table.schema)
    if format == "parquet":
        pq.write_table(answers, path)
    else:
        pyarrow.csv.write_csv(answers.drop_columns("sample"), path)
    labels = np.where(np.arange(len(true)) % 2, true, old.labels)
    corrected = open_session(write_run(tmp_path / "new", replace(old, labels=labels)), CLASSES)
    assert import_answers(corrected, path, format=format) == len(rows)
    verdicts = set()
    for answer in corrected.log.read():
        row = int(session.rows([answer.id])[0])
        assert answer.draw is None  # the samples are no random ones of the corrected data
        if choice_of(session, true, answer.id) in CLASSES:
            expected = "right" if labels[row] == true[row] else "wrong"
            assert (answer.verdict, answer.label) == (expected, true[row])
            verdicts.add((expected, old.labels[row] == labels[row]))
    assert {("right", False), ("right", True), ("wrong", True)} <= verdicts
    corrected.close()


@pytest.mark.parametrize("format", formats.names())
def test_a_file_that_may_hold_answers_is_not_replaced(review, tmp_path, format):
    session, cards, _ = review
    path = tmp_path / "there"
    path.write_text("mine")
    with pytest.raises(RunError, match="may hold answers"):
        export_questions(session, cards, path, format=format)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n0,cat\n", "no column is called 'verdict'"),
        ("id,verdict,label\n0,wrong,cow\n", "there is no class 'cow'"),
        ("id,verdict,label\n0,wrong,{given}\n", "is 'wrong', but .* right one '{given}'"),
        ("id,verdict,label\n0,right,{other}\n", "is 'right', but .* right one '{other}'"),
        ("id,verdict,label\n1,right,\n", "no sample has the id 1"),
        ("id,verdict,label\n0,rigth,\n", "did you mean 'right'"),
        ("id,verdict,batch,stratum,stratum_size,order,probability\n0,right,0.5,0,9,0,0.1\n", "num"),
    ],
)
def test_answers_that_cannot_be_used_are_named_and_none_is_kept(review, tmp_path, text, message):
    session, *_ = review
    path = tmp_path / "x.csv"
    given = int(session.partition.labels[0])
    names = {"given": CLASSES[given], "other": CLASSES[given - 1]}
    text, message = text.format(**names), message.format(**names)
    path.write_text(text + "3,right,\n" if text.count(",") == 4 else text)
    with pytest.raises(DataError, match=message):
        import_answers(session, path)
    assert session.log.read() == []


def test_a_queue_as_a_table_and_its_answers():
    partition, true = planted(n=300)
    queue = plan_queue(partition, budget=60, first_share=1.0)
    table = queue_table(queue, partition, CLASSES)
    row_of = {int(i): k for k, i in enumerate(partition.ids)}
    rows = []
    for row in table.to_pylist():
        label = CLASSES[true[row_of[row["id"]]]]
        verdict = "right" if label == row["given"] else "wrong"
        rows.append({**row, "verdict": verdict, "label": label})
    blank = table.to_pylist()[0]
    answers = answers_from_table(pa.Table.from_pylist([*rows, blank]), CLASSES)
    assert len(answers) == 60
    direct = answers_of(queue.items, partition, true)
    key = "id", "verdict", "label", "draw", "repeat"
    assert [[getattr(a, k) for k in key] for a in answers] == [
        [getattr(a, k) for k in key] for a in direct
    ]
    with pytest.raises(DataError, match="2 problems"):
        answers_from_table({"id": [0, 3], "verdict": ["wrong", "x"], "label": ["cow", ""]}, CLASSES)
    with pytest.raises(DataError, match="no column 'verdict'"):
        answers_from_table({"id": [0]}, CLASSES)
    with pytest.raises(DataError, match="is no table"):
        answers_from_table(3, CLASSES)


def test_issues_of_another_tool_are_reviewed():
    issues = {
        "is_label_issue": [True, False, False],
        "label_score": [0.4, 0.3, 0.9],
        "given_label": [0, 1, 1],
        "predicted_label": [1, 0, 1],
        "is_outlier_issue": [False, False, True],
        "outlier_score": [0.8, 0.9, 0.0],
    }
    partition = partition_from_issues(issues, ["cat", "dog"], ids=["a", "b", "c"])
    assert partition.flagged.tolist() == [True, False, True]
    np.testing.assert_allclose(partition.p_label_fault, [0.8, 0.35, 0.05])
    np.testing.assert_allclose(partition.p_input_fault, [0.1, 0.05, 1.0])
    assert plan_queue(partition, budget=3).items
    with pytest.raises(DataError, match="there is no column 'label_score'"):
        partition_from_issues({k: v for k, v in issues.items() if k != "label_score"}, ["a", "b"])
    with pytest.raises(DataError, match="given_label"):
        partition_from_issues(issues | {"given_label": [0, 7, 1]}, ["cat", "dog"])


@pytest.mark.parametrize("format", formats.names())
@pytest.mark.parametrize("text", ["", "{", "[[[[", '{"labels": 3}', '[{"data": 1}]', "\x00"])
def test_a_file_of_another_kind_is_an_error_or_holds_nothing(review, tmp_path, format, text):
    session, *_ = review
    path = tmp_path / "x"
    if format == "fiftyone":
        path.mkdir()
        (path / "labels.json").write_text(text)
    else:
        path.write_text(text)
    with suppress(DataError):
        assert import_answers(session, path, format=format) == 0
    assert session.log.read() == []


def test_documents_are_read_by_id(tmp_path):
    (tmp_path / "t.csv").write_text("id,body\n1,one\n2,two\n")
    assert read_texts(tmp_path / "t.csv", "body") == {"1": "one", "2": "two"}
    with pytest.raises(DataError, match="no column 'text'"):
        read_texts(tmp_path / "t.csv", "text")
    with pytest.raises(DataError, match="unsupported file type"):
        read_texts(tmp_path / "t.xml", "text")


def test_fiftyone_needs_images_and_leaves_no_folder_without(tmp_path):
    with (
        opened_review(tmp_path, "table", CLASSES) as (session, cards, _),
        pytest.raises(DataError, match="no images, which FiftyOne needs"),
    ):
        export_questions(session, cards, tmp_path / "f", format="fiftyone")
    assert not (tmp_path / "f").exists()
