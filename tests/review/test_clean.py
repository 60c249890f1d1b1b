"""Corrected data: what becomes of every row, in every format, and that the original stays."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge import Answer, reviewed
from expunge.data import DataConfig, LabelFile, read
from expunge.errors import ConfigError, DataError, RunError
from expunge.records import Partition
from expunge.review.answer_log import AnswerLog
from expunge.review.clean import (
    NEW_COLUMNS,
    clean_labels,
    describe_clean,
    summarise_clean,
    write_clean,
)
from expunge.review.run_files import current_partition
from oracles_review import planted, write_run

CLASSES = ("apple", "berry", "cherry", "date")


@pytest.fixture(scope="module")
def judged():
    partition, _ = planted(n=120)
    given = partition.labels
    answers = [
        Answer(0, "wrong", int((given[0] + 2) % 4)),
        Answer(3, "bad-input"),
        Answer(6, "right"),
    ]
    return reviewed(partition, answers, n_classes=4).partition


def rows_of(partition, labels):
    rng = np.random.default_rng(0)
    return [
        {"id": int(i), "x": [float(v) for v in rng.standard_normal(3)], "label": label, "note": "é"}
        for i, label in zip(partition.ids, labels, strict=True)
    ]


def write_source(path, partition, *, as_names=True):
    names = [CLASSES[k] for k in partition.labels]
    rows = rows_of(partition, names if as_names else partition.labels.tolist())
    if path.suffix == ".parquet":
        features = {
            "id": {"dtype": "int64", "_type": "Value"},
            "label": {"names": list(CLASSES), "_type": "ClassLabel"},
        }
        table = pa.Table.from_pylist(rows)
        hub = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": hub}), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path.name, input="x", label="label", id="id")


def test_reviewed_labels_are_corrected_bad_inputs_dropped_and_the_sure_follow(judged):
    cleaned = clean_labels(judged, min_confidence=0.8)
    assert cleaned.label[0] == judged.suggested_label[0] != cleaned.given[0]
    assert not cleaned.drop[0]
    assert cleaned.drop[1]
    assert cleaned.kind[:3].tolist() == ["label", "input", "clean"]
    assert cleaned.reviewed.nonzero()[0].tolist() == [0, 1, 2]
    unsure = judged.flagged & (judged.suggested_probability < 0.8)
    assert cleaned.drop[unsure].all()
    sure = judged.flagged & (judged.suggested_probability >= 0.8) & ~cleaned.reviewed
    assert (cleaned.label[sure] == judged.suggested_label[sure]).all()
    assert (cleaned.label[~judged.flagged] == cleaned.given[~judged.flagged]).all()


def test_the_summary_adds_up(judged):
    cleaned = clean_labels(judged)
    rows = summarise_clean(cleaned, CLASSES)
    assert sum(r["given"] for r in rows) == 120
    assert sum(r["moved_in"] for r in rows) == sum(r["moved_out"] for r in rows) >= 1
    assert sum(r["kept"] for r in rows) + cleaned.drop.sum() == 120


@pytest.mark.parametrize("source", ["train.parquet", "train.jsonl"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("as_names", [True, False])
def test_every_format_has_the_corrections_and_reads_again(
    judged, tmp_path, source, suffix, as_names
):
    as_names = as_names and source.endswith(".jsonl")
    config = write_source(tmp_path / source, judged, as_names=as_names)
    before = (tmp_path / source).read_bytes()
    samples = read(config, folder=tmp_path)
    cleaned = clean_labels(judged)
    out = tmp_path / f"corrected{suffix}"
    assert write_clean(cleaned, samples, config, out, folder=tmp_path) == 120
    assert (tmp_path / source).read_bytes() == before
    if suffix == ".parquet":
        rows = pq.read_table(out).to_pylist()
    elif suffix == ".csv":
        rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    else:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert set(NEW_COLUMNS) <= set(rows[0])
    index = {**{name: k for k, name in enumerate(CLASSES)}, **{str(k): k for k in range(4)}}
    assert [index[str(r["label"])] for r in rows] == cleaned.label.tolist()
    assert [index[str(r["label_given"])] for r in rows] == cleaned.given.tolist()
    assert [str(r["drop"]) for r in rows] == [str(d) for d in cleaned.drop.tolist()]
    np.testing.assert_allclose([float(r["p_noisy"]) for r in rows], cleaned.p_noisy)
    assert all(r["note"] == "é" for r in rows)
    if suffix != ".csv":
        again = read(DataConfig(out.name, input="x", label="label", id="id"), folder=tmp_path)
        assert (again.labels == cleaned.label).all()


def test_the_description_of_the_hub_knows_the_new_columns(judged, tmp_path):
    config = write_source(tmp_path / "train.parquet", judged, as_names=False)
    samples = read(config, folder=tmp_path)
    write_clean(clean_labels(judged), samples, config, tmp_path / "out.parquet", folder=tmp_path)
    metadata = pq.read_schema(tmp_path / "out.parquet").metadata[b"huggingface"]
    features = json.loads(metadata)["info"]["features"]
    assert features["label_given"] == features["label"]
    assert features["drop"]["dtype"] == "bool"


def test_what_cannot_be_written_is_named_and_the_original_stays(judged, tmp_path):
    config = write_source(tmp_path / "train.jsonl", judged)
    samples, cleaned = read(config, folder=tmp_path), clean_labels(judged)
    with pytest.raises(RunError, match="would overwrite the input"):
        write_clean(cleaned, samples, config, tmp_path / "train.jsonl", folder=tmp_path)
    with pytest.raises(ConfigError, match="unsupported file type"):
        write_clean(cleaned, samples, config, tmp_path / "out.xlsx", folder=tmp_path)
    write_clean(cleaned, samples, config, tmp_path / "out.jsonl", folder=tmp_path)
    twice = DataConfig("out.jsonl", input="x", label="label", id="id")
    with pytest.raises(DataError, match=r"names already: .*\n  fix: .* other names, in the spec"):
        write_clean(
            cleaned, read(twice, folder=tmp_path), twice, tmp_path / "x.jsonl", folder=tmp_path
        )


def test_rows_that_were_not_selected_are_not_written(judged, tmp_path):
    config = write_source(tmp_path / "train.jsonl", judged)
    config = DataConfig("train.jsonl", input="x", id="id", skip_rows=10, max_rows=50)
    samples = read(config, folder=tmp_path)
    out = tmp_path / "out.csv"
    assert write_clean(clean_labels(judged), samples, config, out, folder=tmp_path) == 50
    ids = [int(r["id"]) for r in csv.DictReader(out.read_text().splitlines())]
    assert ids == judged.ids[10:60].tolist()


def test_answers_after_the_last_repair_are_taken_into_account(tmp_path):
    partition, _ = planted(n=80)
    folder = write_run(tmp_path / "run", partition)
    assert current_partition(folder, CLASSES).reviewed.sum() == 0
    AnswerLog(folder, CLASSES).append([Answer(9, "bad-input")])
    assert current_partition(folder, CLASSES).reviewed.nonzero()[0].tolist() == [3]


def partition_of(samples, n):
    """A partition of the first samples: every third is flagged and has another label."""
    ids, labels = samples.ids[:n], samples.labels[:n]
    p = np.where(np.arange(n) % 3 == 0, 0.95, 0.05)
    other = (labels + 1) % len(samples.classes)
    zeros = np.zeros(n)
    return Partition(ids, labels, p, p, zeros, other, p, 0.5, (0.3, 0.2, 0.4))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_rows(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    lines = path.read_text(encoding="utf-8").splitlines()
    return (
        [json.loads(x) for x in lines] if path.suffix == ".jsonl" else list(csv.DictReader(lines))
    )


def write_other_source(kind, folder):
    """A source of a kind with 12 samples."""
    folder.mkdir()
    x, y = np.arange(24, dtype=np.float32).reshape(12, 2), np.arange(12) % 3
    if kind == "table":
        rows = [
            f"{k:03d},{a},{b},c{c},00{k % 10}"
            for k, ((a, b), c) in enumerate(zip(x, y, strict=True))
        ]
        (folder / "t.csv").write_text("key,a,b,y,zip\n" + "\n".join(rows) + "\n")
        return DataConfig("t.csv", source="table", input="a, b", label="y", id="key")
    if kind == "arrays":
        np.savez(folder / "t.npz", x=x, y=y)
        return DataConfig("t.npz")
    for k in range(12):
        (folder / "data" / f"c{y[k]}").mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((4, 4), 10 * k, dtype=np.uint8))
        image.save(folder / "data" / f"c{y[k]}" / f"{k}.png")
    (folder / "data" / "c0" / "broken.png").write_text("no image")
    return DataConfig("data")


@pytest.mark.parametrize("kind", ["table", "arrays", "folder"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_source_keeps_its_files_and_rows_that_were_held_out_their_labels(
    tmp_path, kind, suffix
):
    folder = tmp_path / "source"
    config = write_other_source(kind, folder)
    before = contents(folder)
    samples = read(config, folder=folder)
    cleaned = clean_labels(partition_of(samples, 9))
    out = tmp_path / f"out{suffix}"
    n = write_clean(cleaned, samples, config, out, folder=folder)
    assert contents(folder) == before
    rows = read_rows(out)
    label = "y" if kind == "table" else "label"
    names = [samples.classes[k] for k in samples.labels]
    assert n == len(rows) == 12 + (kind == "folder")
    assert [row["label_given"] for row in rows[:12]] == names
    new = [samples.classes[k] for k in cleaned.label]
    assert [row[label] for row in rows[:9]] == new
    assert new != names[:9]
    for row, name in zip(rows[9:12], names[9:], strict=True):
        assert (row["kind"], row[label], str(row["drop"])) == ("held-out", name, "False")
        assert row["p_noisy"] in (None, "")
    dropped = [row["kind"] for row in rows if str(row["drop"]) == "True"]
    unreadable = dropped.count("unreadable")
    said = f"{len(dropped) - unreadable} noisy{' and 1 unreadable' * unreadable} to be left out"
    assert said in describe_clean(cleaned, n - len(samples))
    if kind == "folder":
        broken = rows[12]
        assert (broken["file_name"], broken["kind"]) == ("c0/broken.png", "unreadable")
        assert broken[label] in (None, "")
        assert str(broken["drop"]) == "True"
    if kind == "table":
        assert [str(row["zip"]) for row in rows] == [f"00{k % 10}" for k in range(12)]
        assert [row["key"] for row in rows] == [f"{k:03d}" for k in range(12)]


def test_labels_of_a_second_file_are_the_ones_that_are_corrected(tmp_path):
    config = write_other_source("table", tmp_path / "s")
    names = [f"c{(k + 1) % 3}" for k in range(12)]
    lines = [f"{k:03d},{name}" for k, name in enumerate(names)]
    (tmp_path / "s" / "l.csv").write_text("key,better\n" + "\n".join(lines) + "\n")
    config = replace(config, labels=LabelFile("l.csv", "better", "key"))
    samples = read(config, folder=tmp_path / "s")
    cleaned = clean_labels(partition_of(samples, 12))
    write_clean(cleaned, samples, config, tmp_path / "o.csv", folder=tmp_path / "s")
    rows = read_rows(tmp_path / "o.csv")
    assert [row["label_given"] for row in rows] == names
    assert [row["y"] for row in rows] == [samples.classes[k] for k in cleaned.label]


def test_objects_of_json_stay(judged, tmp_path):
    rows = rows_of(judged, [CLASSES[k] for k in judged.labels])
    text = "".join(json.dumps({**row, "meta": {"by": ["a", "b"], "n": 1}}) + "\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(text)
    config = DataConfig("train.jsonl", input="x", id="id")
    samples = read(config, folder=tmp_path)
    write_clean(clean_labels(judged), samples, config, tmp_path / "o.jsonl", folder=tmp_path)
    assert read_rows(tmp_path / "o.jsonl")[0]["meta"] == {"by": ["a", "b"], "n": 1}


def write_clone(folder, *, n=12):
    """Three shards of the split train in the layout of the Hub, and one of the split test."""
    (folder / "data").mkdir(parents=True)
    names = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "x": {"_type": "List"}}
    hub = {"huggingface": json.dumps({"info": {"features": names}})}
    x, y = np.arange(2 * n, dtype=np.float32).reshape(n, 2), np.arange(n) % 3
    for k, rows in enumerate(np.array_split(np.arange(n), 3)):
        # Widths of numbers may differ between shards, and one has a column of its own.
        columns = {
            "x": x[rows].tolist(),
            "label": pa.array(y[rows], pa.int64() if k else pa.int8()),
        }
        columns |= {"note": [f"é{i}" for i in rows]} if k == 1 else {}
        path = folder / "data" / f"train-0000{k}-of-00003.parquet"
        pq.write_table(pa.table(columns).replace_schema_metadata(hub), path, row_group_size=3)
    pq.write_table(pa.table({"x": [[0.0, 1.0]], "label": [0]}), folder / "data" / "test.parquet")
    return x, y


@pytest.mark.parametrize("path", ["clone", "clone/data/train-*.parquet"])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_the_shards_of_a_clone_become_one_file_with_all_columns(tmp_path, path, suffix):
    x, _ = write_clone(tmp_path / "clone")
    before = contents(tmp_path / "clone")
    config = DataConfig(path, input="x", skip_rows=1, max_rows=10)
    samples = read(config, folder=tmp_path)
    cleaned = clean_labels(partition_of(samples, 9))
    out = tmp_path / f"out{suffix}"
    assert write_clean(cleaned, samples, config, out, folder=tmp_path) == 10
    assert contents(tmp_path / "clone") == before
    rows = read_rows(out)
    assert [row["x"] for row in rows] == x[1:11].tolist()
    assert [row["label"] for row in rows] == [*cleaned.label.tolist(), samples.labels[9]]
    assert [row["kind"] for row in rows][9] == "held-out"
    assert [row["note"] for row in rows][2:8] == [None, "é4", "é5", "é6", "é7", None]
    if suffix == ".parquet":
        assert pq.ParquetFile(out).num_row_groups == 5  # as many as were read
        again = read(DataConfig("out.parquet", input="x"), folder=tmp_path)
        assert again.classes == ("a", "b", "c")


def test_a_new_file_among_the_shards_is_refused(tmp_path):
    write_clone(tmp_path / "clone")
    for path in ("clone", "clone/data/train-*.parquet"):
        config = DataConfig(path, input="x")
        samples = read(config, folder=tmp_path)
        cleaned = clean_labels(partition_of(samples, 12))
        out = tmp_path / "clone" / "data" / "clean.parquet"
        with pytest.raises(RunError, match="would be read as a part of them"):
            write_clean(cleaned, samples, config, out, folder=tmp_path)
    assert not out.exists()


def test_the_labels_of_tar_files_become_a_table_that_the_same_data_take(tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for k in range(6):
                stream = io.BytesIO()
                Image.fromarray(np.full((4, 4), 20 * k + shard, np.uint8)).save(stream, "png")
                members = {"png": stream.getvalue(), "cls": b"%d" % (k % 3)}
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{6 * shard + k:03d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    config = DataConfig("shards")
    samples = read(config, folder=tmp_path)
    cleaned = clean_labels(partition_of(samples, 12))
    assert write_clean(cleaned, samples, config, tmp_path / "o.parquet", folder=tmp_path) == 12
    again = replace(config, labels=LabelFile("o.parquet", "label", "id"))
    assert (read(again, folder=tmp_path).labels == cleaned.label).all()
    assert (cleaned.label != samples.labels).any()
