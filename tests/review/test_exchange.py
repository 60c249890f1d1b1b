"""Questions written for other tools, and their answers read back."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import numpy as np
import pytest

from expunge.errors import DataError
from expunge.review.answers import latest
from expunge.review.cards import Cards
from expunge.review.exchange import (
    BAD_INPUT,
    CANNOT_TELL,
    export_questions,
    formats,
    import_answers,
)
from expunge.review.tables import issues_table, read_texts
from oracles_review import open_session, planted, samples_of, write_run

CLASSES = ("cat", "<b>dog</b>", "deer", "frog")


@pytest.fixture
def review(tmp_path):
    partition, true = planted(n=200)
    session = open_session(write_run(tmp_path / "run", partition), CLASSES, budget=20)
    samples = samples_of(partition, "image", CLASSES)
    cards = Cards(partition, session.run.scores, CLASSES, samples=samples)
    yield session, cards, partition, true
    session.close()


def choice_of(partition, true, name):
    """What somebody chooses: mostly the true class."""
    row = np.flatnonzero(partition.ids.astype(str) == str(name))[0]
    return {0: BAD_INPUT, 1: CANNOT_TELL}.get(row % 10, CLASSES[true[row]])


def check_answers(session, partition, true):
    answers = latest(session.log.read())
    assert len(answers) >= 10
    for answer in answers:
        choice = choice_of(partition, true, answer.id)
        row = int(session.rows([answer.id])[0])
        if choice == BAD_INPUT:
            assert answer.verdict == "bad-input"
        elif choice == CANNOT_TELL:
            assert answer.verdict == "cannot-tell"
        else:
            is_right = true[row] == partition.labels[row]
            assert answer.verdict == ("right" if is_right else "wrong")
            assert CLASSES[answer.label] == choice
        assert answer.draw is not None
    assert session.progress().review.is_design_based


def test_label_studio_tasks_and_their_results(review, tmp_path):
    session, cards, partition, true = review
    path = tmp_path / "tasks.json"
    export_questions(session, cards, path, format="label-studio")
    tasks = json.loads(path.read_text())
    first = tasks[0]
    assert first["data"]["sample"].startswith("data:image/png;base64,")
    assert base64.b64decode(first["data"]["sample"].split(",")[1]).startswith(b"\x89PNG")
    suggested = first["predictions"][0]["result"][0]["value"]["choices"]
    assert suggested == [first["data"]["suggested"]]
    for task in tasks:
        value = {"choices": [choice_of(partition, true, task["data"]["id"])]}
        result = {"from_name": "label", "to_name": "sample", "type": "choices", "value": value}
        task["annotations"] = [
            {"completed_by": {"email": "a@b.c"}, "was_cancelled": False, "result": [result]},
            {"completed_by": 3, "was_cancelled": True, "result": [result]},
        ]
    path.write_text(json.dumps(tasks))
    import_answers(session, path, format="label-studio")
    check_answers(session, partition, true)
    assert {a.reviewer for a in session.log.read()} == {"a@b.c"}


def test_argilla_records_and_their_responses(review, tmp_path):
    session, cards, partition, true = review
    path = tmp_path / "records.json"
    export_questions(session, cards, path, format="argilla")
    records = json.loads(path.read_text())
    for record in records:
        assert record["suggestions"]["label"]["agent"] == "expunge"
        value = choice_of(partition, true, record["metadata"]["id"])
        record["responses"] = {"label": [{"value": value, "user_id": "u1"}]}
    path.write_text(json.dumps(records))
    import_answers(session, path, format="argilla")
    check_answers(session, partition, true)


def test_argilla_itself_reads_the_records(review, tmp_path):
    rg = pytest.importorskip("argilla", reason="needs argilla")
    session, cards, _, _ = review
    path = tmp_path / "records.json"
    export_questions(session, cards, path, format="argilla")
    for fact in json.loads(path.read_text()):
        record = rg.Record.from_dict(fact)
        assert record.suggestions["label"].value == fact["suggestions"]["label"]["value"]


def test_a_fiftyone_folder_and_its_labels(review, tmp_path):
    session, cards, partition, true = review
    path = tmp_path / "fiftyone"
    export_questions(session, cards, path, format="fiftyone")
    labels = json.loads((path / "labels.json").read_text())
    assert labels["classes"][:4] == list(CLASSES)
    for name, label in labels["labels"].items():
        assert (path / "data" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        choice = choice_of(partition, true, label["attributes"]["id"])
        label["label"] = labels["classes"].index(choice)
    (path / "labels.json").write_text(json.dumps(labels))
    import_answers(session, path, format="fiftyone")
    check_answers(session, partition, true)


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


@pytest.mark.filterwarnings("ignore")
def test_the_table_of_issues_has_the_columns_of_datalab():
    cleanlab = pytest.importorskip("cleanlab")
    partition, _ = planted(n=60)
    table = issues_table(partition, CLASSES)
    probs = np.random.default_rng(0).dirichlet(np.ones(4), 60)
    lab = cleanlab.Datalab({"label": partition.labels}, label_name="label", verbosity=0)
    lab.find_issues(pred_probs=probs, issue_types={"label": {}})
    theirs = lab.get_issues("label").columns
    assert set(theirs) <= set(table.column_names)
    flagged = table["is_label_issue"].to_numpy() | table["is_outlier_issue"].to_numpy()
    assert (flagged == partition.flagged).all()
    assert table.to_pandas()["label_score"].between(0, 1).all()


def test_the_hub_reads_corrected_data(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    from expunge.data import DataConfig, read
    from expunge.review.clean import clean_labels, write_clean

    partition, _ = planted(n=60)
    made = datasets.Dataset.from_dict(
        {
            "id": partition.ids.tolist(),
            "x": np.zeros((60, 2)).tolist(),
            "label": partition.labels.tolist(),
        }
    ).cast_column("label", datasets.ClassLabel(names=list(CLASSES)))
    made.to_parquet(tmp_path / "train.parquet")
    config = DataConfig("train.parquet", input="x", id="id")
    samples = read(config, folder=tmp_path)
    out = tmp_path / "out.parquet"
    write_clean(clean_labels(partition), samples, config, out, folder=tmp_path)
    again = datasets.Dataset(pa.Table.from_batches(pq.read_table(out).to_batches()))
    assert again.features["label_given"] == made.features["label"]
    assert set(again.column_names) >= {"drop", "kind", "reviewed"}


def test_documents_are_read_by_id(tmp_path):
    (tmp_path / "t.csv").write_text("id,body\n1,one\n2,two\n")
    assert read_texts(tmp_path / "t.csv", "body") == {"1": "one", "2": "two"}
    with pytest.raises(DataError, match="no column 'text'"):
        read_texts(tmp_path / "t.csv", "text")
    with pytest.raises(DataError, match="unsupported file type"):
        read_texts(tmp_path / "t.xml", "text")
