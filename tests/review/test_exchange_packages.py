"""Exchange with the packages themselves: each test runs where its package is installed.

Tried with argilla 2.8.0, cleanlab 2.9.0, datasets 5.2.0, label-studio-sdk 2.1.2
and pandas 3.1.1.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data import DataConfig, read
from expunge.review import (
    answers_from_table,
    issues_table,
    partition_from_issues,
    plan_queue,
    queue_table,
    reviewed,
)
from expunge.review.clean import clean_labels, write_clean
from expunge.review.exchange import export_questions, import_answers
from expunge.review.formats import BAD_INPUT, CANNOT_TELL
from oracles_review import (
    check_exchanged,
    choice_of,
    opened_review,
    planted,
)

CLASSES = ("cat", "<b>dog</b>", "deer", "frog")
VERDICTS = {BAD_INPUT: "bad-input", CANNOT_TELL: "cannot-tell"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def opened(tmp_path):
    """Opens a review of a kind of input."""
    with ExitStack() as stack:
        yield lambda kind="image": stack.enter_context(opened_review(tmp_path, kind, CLASSES))


@pytest.mark.parametrize("kind", ["image", "sound", "table"])
def test_label_studio_takes_configuration_tasks_and_results(opened, tmp_path, kind):
    interfaces = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="needs label-studio-sdk"
    )
    session, cards, true = opened(kind)
    path = tmp_path / "tasks.json"
    export_questions(session, cards, path, format="label-studio")
    interface = interfaces.LabelInterface((tmp_path / "tasks.xml").read_text())
    interface.validate()
    assert interface.get_control("label").labels == [*CLASSES, BAD_INPUT, CANNOT_TELL]
    tasks = json.loads(path.read_text())
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction, return_errors=True) == []
        choice = choice_of(session, true, task["data"]["id"])
        region = interface.get_control("label").label(choice)
        annotation = {"result": [region._dict()], "completed_by": 1}
        assert interface.validate_annotation(annotation)
        task["annotations"] = [annotation]
    path.write_text(json.dumps(tasks))
    import_answers(session, path, format="label-studio")
    check_exchanged(session, true)


@pytest.mark.parametrize("kind", ["image", "sound", "table"])
def test_argilla_takes_settings_and_records_and_writes_responses(opened, tmp_path, kind):
    rg = pytest.importorskip("argilla", reason="needs argilla")
    httpx = pytest.importorskip("httpx")
    from argilla.records._io import JsonIO

    def serve(request):
        user = {"id": "00000000-0000-4000-8000-000000000001", "username": "ann", "role": "owner"}
        return httpx.Response(200, json=user | {"first_name": "Ann"})

    client = rg.Argilla("http://server", "key", mounts={"http://": httpx.MockTransport(serve)})
    session, cards, true = opened(kind)
    path = tmp_path / "argilla"
    export_questions(session, cards, path, format="argilla")
    settings = rg.Settings.from_json(path / ".argilla" / "settings.json")
    settings.validate()
    assert settings.questions["label"].labels == [*CLASSES, BAD_INPUT, CANNOT_TELL]
    dataset = rg.Dataset(name="review", settings=settings, client=client)
    records = JsonIO._records_from_json(path / "records.json")
    dataset.records._ingest_records(records)
    for record in records:
        choice = choice_of(session, true, record.metadata["id"])
        record.responses.add(
            rg.Response("label", choice, user_id="00000000-0000-4000-8000-000000000001")
        )
    answered = JsonIO.to_json(records, tmp_path / "answered.json")
    import_answers(session, answered, format="argilla")
    check_exchanged(session, true)


@pytest.mark.parametrize("options", [{}, {"include_attributes": True}])
def test_fiftyone_loads_the_images_and_exports_its_labels(opened, tmp_path, options):
    fo = pytest.importorskip("fiftyone", reason="needs fiftyone", exc_type=ImportError)
    session, cards, true = opened()
    kind = fo.types.FiftyOneImageClassificationDataset
    export_questions(session, cards, tmp_path / "in", format="fiftyone")
    try:
        dataset = fo.Dataset.from_dir(str(tmp_path / "in"), dataset_type=kind)
    except Exception as error:  # its database does not start everywhere
        if "mongo" not in f"{type(error).__name__} {error}".lower():
            raise
        pytest.skip(f"the database of fiftyone does not start: {error}")
    for sample in dataset:
        sample.ground_truth.label = choice_of(session, true, sample.ground_truth.sample)
        sample.save()
    dataset.export(str(tmp_path / "out"), dataset_type=kind, label_field="ground_truth", **options)
    dataset.delete()
    import_answers(session, tmp_path / "out", format="fiftyone")
    check_exchanged(session, true)


def answer_frame(frame, session, true):
    """Fill in the verdicts and labels of a data frame of questions."""
    for k in frame.index:
        choice = choice_of(session, true, frame.loc[k, "id"])
        if choice in VERDICTS:
            frame.loc[k, "verdict"] = VERDICTS[choice]
        elif choice == frame.loc[k, "given"]:
            frame.loc[k, "verdict"] = "right"
        else:
            frame.loc[k, ["verdict", "label"]] = "wrong", choice


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_data_frame_of_pandas(opened, tmp_path, format):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    session, cards, true = opened()
    path = tmp_path / f"questions.{format}"
    export_questions(session, cards, path, format=format)
    frame = getattr(pd, f"read_{format}")(path)
    frame["label"] = frame["label"].astype(object)
    frame["verdict"] = frame["verdict"].astype(object)
    answer_frame(frame, session, true)
    # A row of a sample that was not drawn makes floats of the columns of integers.
    extra = {"id": int(session.partition.ids[5]), "verdict": None, "given": "cat"}
    frame = pd.concat([frame, pd.DataFrame([extra])], ignore_index=True)
    assert frame["batch"].dtype.kind == "f"
    frame.to_csv(tmp_path / "a.csv") if format == "csv" else frame.to_parquet(
        tmp_path / "a.parquet"
    )
    import_answers(session, tmp_path / f"a.{format}", format=format)
    check_exchanged(session, true)
    assert len(answers_from_table(frame, CLASSES)) == len(frame) - 1


@pytest.mark.parametrize("kind", ["image", "sound", "table"])
def test_a_data_set_of_the_hub(opened, tmp_path, kind):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    session, cards, true = opened(kind)
    path = tmp_path / "questions.parquet"
    export_questions(session, cards, path, format="parquet")
    data = datasets.Dataset(pa.Table.from_batches(pq.read_table(path).to_batches()))
    expected = {"image": "Image", "sound": "Audio", "table": "Value"}
    assert type(data.features["sample"]).__name__ == expected[kind]
    if kind == "image":
        assert data[0]["sample"].size == (8, 8)
    data = data.cast_column("label", datasets.ClassLabel(names=list(CLASSES)))

    def answer(row):
        choice = choice_of(session, true, row["id"])
        if choice in VERDICTS:
            return {"verdict": VERDICTS[choice]}
        verdict = "right" if choice == row["given"] else "wrong"
        return {"verdict": verdict, "label": CLASSES.index(choice)}

    keep = data.remove_columns("sample")
    keep = keep.map(answer, features=keep.features, load_from_cache_file=False)
    keep.to_parquet(tmp_path / "answered.parquet")
    import_answers(session, tmp_path / "answered.parquet", format="parquet")
    check_exchanged(session, true)
    assert len(answers_from_table(keep.select(range(5)), CLASSES)) == 5


def test_a_queue_in_a_data_frame():
    pd = pytest.importorskip("pandas", reason="needs pandas")
    partition, true = planted(n=300)
    frame = queue_table(plan_queue(partition, budget=40), partition, CLASSES).to_pandas()
    rows = pd.Series(np.arange(300), index=partition.ids)[frame["id"]]
    frame["label"] = [CLASSES[true[k]] for k in rows]
    frame["verdict"] = np.where(frame["label"] == frame["given"], "right", "wrong")
    review = reviewed(partition, answers_from_table(frame, CLASSES), n_classes=4)
    assert review.is_design_based
    assert review.n_answered >= 15


def test_issues_to_and_from_datalab():
    cleanlab = pytest.importorskip("cleanlab", reason="needs cleanlab")
    partition, true = planted(n=80)
    rng = np.random.default_rng(0)
    probs = 0.1 * rng.dirichlet(np.ones(4), 80) + 0.9 * np.eye(4)[true]
    names = [CLASSES[k] for k in partition.labels]
    order = np.argsort(CLASSES)  # Datalab sorts the names of the classes
    lab = cleanlab.Datalab({"label": names}, label_name="label", verbosity=0)
    lab.find_issues(pred_probs=probs[:, order], issue_types={"label": {}})
    theirs = lab.get_issues("label")
    table = issues_table(partition, CLASSES)
    assert set(theirs.columns) <= set(table.column_names)
    flagged = table["is_label_issue"].to_numpy() | table["is_outlier_issue"].to_numpy()
    assert (flagged == partition.flagged).all()
    assert table.to_pandas()["label_score"].between(0, 1).all()
    found = partition_from_issues(theirs, CLASSES, ids=partition.ids)
    assert (found.labels == partition.labels).all()
    assert (found.flagged == theirs["is_label_issue"]).all()
    assert (found.suggested_label == true).mean() > 0.9
    # And back: what we write reads as what they have.
    again = partition_from_issues(table, CLASSES)
    assert (again.flagged == partition.flagged).all()
    assert (again.ids == partition.ids).all()


def test_the_hub_reads_corrected_data(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
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
