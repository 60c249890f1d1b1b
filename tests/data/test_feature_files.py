"""Files of labelled features."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.feature_files import read_labelled_features
from expunge.data.feature_table import as_feature_table
from expunge.errors import DataError

X = np.arange(8.0).reshape(4, 2).astype(np.float32)
Y = ["a", "b", "a", "b"]
P = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])


def write(folder, kind):
    """The same table in a file of each kind, and how to read it."""
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"emb": list(X), "y": Y, "p": list(P), "k": [4, 5, 6, 7]}), path)
        return path, {"label": "y", "features": ["emb"], "probs": ["p"], "ids": "k"}
    table = [(*x, y, *p, k) for x, y, p, k in zip(X, Y, P, range(4, 8), strict=True)]
    if kind == "csv":
        path.write_text("\n".join(["u,v,y,p0,p1,k", *(",".join(map(str, row)) for row in table)]))
        return path, {"label": "y", "probs": ["p0", "p1"], "ids": "k"}
    if kind == "jsonl":
        form = '{{"emb": [{}, {}], "y": "{}", "p": [{}, {}], "k": {}}}'
        path.write_text("\n".join(form.format(*row) for row in table))
        return path, {"label": "y", "features": ["emb"], "probs": ["p"], "ids": "k"}
    if kind == "npz":
        np.savez(path, x=X, y=np.array(Y), p=P, k=np.arange(4, 8))
        return path, {"label": "y", "probs": ["p"], "ids": "k"}
    for name, array in {"t": X, "y": np.array(Y), "p": P}.items():
        np.save(folder / f"{name}.npy", array)
    return path, {"label": str(folder / "y.npy"), "probs": [str(folder / "p.npy")]}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "npz", "npy"])
def test_every_file_gives_the_same_table(tmp_path, kind):
    path, columns = write(tmp_path, kind)
    read = read_labelled_features(path, **columns)
    np.testing.assert_array_equal(as_feature_table(read.features).values, X)
    assert list(read.labels) == Y
    np.testing.assert_allclose(read.probs, P, rtol=1e-6)
    assert kind == "npy" or list(read.ids) == [4, 5, 6, 7]


def test_without_names_all_other_columns_are_features(tmp_path):
    path, _ = write(tmp_path, "csv")
    table = as_feature_table(read_labelled_features(path, label="y").features)
    assert table.names == ("u", "v", "p0", "p1", "k")


def test_without_a_name_the_only_other_array_holds_the_features(tmp_path):
    np.savez(tmp_path / "t.npz", emb=X, target=np.array(Y))
    read = read_labelled_features(tmp_path / "t.npz", label="target")
    np.testing.assert_array_equal(read.features, X)
    with pytest.raises(DataError, match=r"arrays: emb, target\n  fix: .*--features ARRAY --label"):
        read_labelled_features(tmp_path / "t.npz", label="label")


def test_texts_for_missing_numbers_are_missing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n1.5,a\nNA,b\n2.5,a\n,b\n")
    column = read_labelled_features(path, label="y").features["x"]
    np.testing.assert_array_equal(column, [1.5, np.nan, 2.5, np.nan])


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("t.parquet", {"label": "why"}, "no column is called 'why'"),
        ("t.csv", {"label": "why"}, "no column is called 'why'"),
        ("t.npz", {"label": "why"}, "no array is called 'why'"),
        ("t.npy", {"label": "why"}, "--label labels.npy"),
        ("t.txt", {"label": "y"}, "the suffix '.txt' is not known"),
        ("none.npz", {"label": "y"}, "none.npz"),
        ("", {"label": "y"}, r"is a folder, .*\n.*name a file in it"),
    ],
)
def test_a_wrong_name_is_said(tmp_path, name, columns, message):
    for kind in ("parquet", "csv", "npz", "npy"):
        write(tmp_path, kind)
    (tmp_path / "t.txt").write_text("")
    with pytest.raises(DataError, match=message):
        read_labelled_features(tmp_path / name, **columns)


@pytest.mark.parametrize("name", ["t.npy", "t.npz", "t.parquet"])
def test_a_damaged_file_and_one_with_objects_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00junk")
    label = "y.npy" if name == "t.npy" else "y"
    with pytest.raises(DataError, match=name):
        read_labelled_features(tmp_path / name, label=label)
    if name == "t.npy":
        np.save(tmp_path / name, np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(DataError, match="an array of Python objects"):
            read_labelled_features(tmp_path / name, label=label)
