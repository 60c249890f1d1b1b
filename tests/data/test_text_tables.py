"""Text tables as people have them: separators, marks, encodings, compression."""

from __future__ import annotations

import bz2
import csv
import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from expunge.data import DataConfig, read
from expunge.data.feature_files import read_labelled_features
from expunge.data.text_tables import read_table
from expunge.errors import DataError

PLAIN = "u,v,kind\n0.5,1,é\n1.5,2,b\n"
EXPECTED = {"u": ["0.5", "1.5"], "v": [1, 2], "kind": ["é", "b"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", PLAIN.encode()),
        ("a.csv", PLAIN.encode("utf-8-sig")),
        ("a.csv", PLAIN.replace("\n", "\r\n").encode() + b"\r\n"),
        ("a.csv", PLAIN.replace("\n", "\r").encode()),
        ("a.csv", PLAIN.replace(",", ";").replace(".", ",").encode()),
        ("a.csv", b"sep=;\r\n" + PLAIN.replace(",", ";").encode()),
        ("a.csv", PLAIN.replace(",é", ",é,").replace(",b", ",b,").encode()),
        ("a.tsv", PLAIN.replace(",", "\t").encode("utf-16")),
        ("a.TAB", PLAIN.replace(",", "\t").encode()),
        ("a.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)),
        ("a.tsv.zst", pa.compress(PLAIN.replace(",", "\t").encode(), codec="zstd", asbytes=True)),
        ("a.csv.bz2", bz2.compress(PLAIN.encode())),
    ],
)
def test_csv_files_of_every_kind_hold_the_same_table(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_table(tmp_path / name) == EXPECTED
    config = DataConfig(name, source="table", label="kind")
    samples = read(config, folder=tmp_path)
    assert samples.inputs.batch([0, 1]).tolist() == [[0.5, 1.0], [1.5, 2.0]]
    assert samples.classes == ("b", "é")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.json.gz"])
@pytest.mark.parametrize("is_array", [True, False])
def test_json_is_lines_or_an_array(tmp_path: Path, name: str, is_array: bool) -> None:
    rows = '{"u": 1, "kind": "a"}', '{"u": 2.5}'
    text = f" [{rows[0]},\n{rows[1]}]" if is_array else "\n".join(rows)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_table(tmp_path / name) == {"u": [1, 2.5], "kind": ["a", None]}


@pytest.mark.parametrize(
    "text",
    [
        '{"u": [1, 2.5], "kind": ["a", null]}',
        '{"u": {"0": 1, "1": 2.5}, "kind": {"0": "a", "1": null}}',
        '{"data": [\n{"u": 1, "kind": "a"},\n{"u": 2.5}]}',
    ],
)
def test_json_may_be_one_object_of_columns_or_of_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_table(tmp_path / "a.json") == {"u": [1, 2.5], "kind": ["a", None]}


def test_a_comma_is_a_decimal_mark_only_where_every_value_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u;t;kind\n1,5;1,5 m;x\n;2,0 m;y\n")
    assert read_table(tmp_path / "a.csv") == {
        "u": ["1.5", ""],
        "t": ["1,5 m", "2,0 m"],
        "kind": ["x", "y"],
    }


def test_fields_may_be_long(tmp_path: Path) -> None:
    limit, text = csv.field_size_limit(), "word " * 40_000
    (tmp_path / "a.csv").write_text(f'text,kind\n"{text}\nend",x\n')
    assert read_table(tmp_path / "a.csv")["text"] == [f"{text}\nend"]
    assert csv.field_size_limit() == limit


def test_dates_are_days_and_not_categories(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("day,kind\n2020-01-01,x\n2020-02-01 12:00,y\n,x\n")
    found = read_labelled_features(tmp_path / "a.csv", label="kind").features["day"]
    assert [str(d)[:13] for d in found] == ["2020-01-01T00", "2020-02-01T12", "NaT"]
    (tmp_path / "a.csv").write_text("day,kind\n2020-01-01,x\n2020-02-31,y\n")
    found = read_labelled_features(tmp_path / "a.csv", label="kind").features["day"]
    assert list(found) == ["2020-01-01", "2020-02-31"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "made by x\nu,v\n1,2\n", r"remove the lines above the header"),
        ("a.csv", "u,kind\n1,a\n2\n", r"fields, as in the header: 2\n.*quote fields"),
        (
            "a.csv",
            "u,kind\nNA,a\n2,b\n",
            r"missing values: 1 in column 'u'; ids 0\n.*expunge detect",
        ),
        (
            "a.csv",
            "u,v,kind\nNA,,a\n2,,b\n3,1,a\n",
            r"1 in column 'u', 2 in column 'v'; ids 0, 1\n",
        ),
        ("a.csv", "u,Kind\n1,a\n2,b\n", r"no column is called 'kind'\n.*did you mean 'Kind'"),
        ("a.json", '[{"u": 1}', r"not a text table"),
        ("a.json", "[1, 2]", r"line 1 is an int, expected an object"),
        ("a.csv.gz", "u,kind\n1,a\n", r"not a text table"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(DataConfig(name, source="table", label="kind"), folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("a.xlsx", "save the sheet as CSV"),
        ("a.pkl", "pickles run code"),
        ("a.feather", "write it as Parquet"),
        ("a.npy", r"write inputs and labels as numpy\.savez"),
        ("a.zip", "unpack it first"),
        ("a.gz", "unpack it first"),
    ],
)
def test_files_of_other_kinds_get_a_way_out(tmp_path: Path, name: str, fix: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=rf"fix: {fix}"):
        read(DataConfig(name), folder=tmp_path)


def test_a_table_of_numbers_and_a_saved_data_set_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("u\tlabel\n1\ta\n2\tb\n")
    with pytest.raises(DataError, match=r"set source to 'table' \(columns: u, label\)"):
        read(DataConfig("a.tsv"), folder=tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"datasets\.load_from_disk reads this folder"):
        read(DataConfig("saved"), folder=tmp_path)
