"""Tables of any kind as numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import sparse

from expunge.data.feature_table import MAX_CATEGORIES, as_feature_table
from expunge.data.label_columns import columns_of_classes
from expunge.errors import DataError

pd = pytest.importorskip("pandas")
X = np.arange(12.0).reshape(4, 3).astype(np.float32)


@pytest.mark.parametrize(
    "features",
    [
        X,
        X.astype(np.float64),
        X.astype(object),
        X.tolist(),
        torch.from_numpy(X),
        sparse.csr_matrix(X),
        pd.DataFrame(X),
        pa.table({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}),
        {"a": X[:, 0], "rest": X[:, 1:]},
        pd.DataFrame({"emb": list(X)}),
    ],
    ids=lambda features: type(features).__name__,
)
def test_every_form_of_a_table_gives_the_same_numbers(features):
    table = as_feature_table(features)
    np.testing.assert_array_equal(table.values, X)
    assert table.values.dtype == np.float32
    assert not table.notes


def test_one_feature_is_one_column():
    assert as_feature_table(np.arange(5)).values.shape == (5, 1)
    assert as_feature_table(pd.Series([1.0, 2.0], name="age")).names == ("age",)


def test_missing_numbers_become_the_median_and_are_marked():
    table = as_feature_table(np.array([[1.0, 5.0], [np.nan, 6.0], [3.0, 7.0]]))
    np.testing.assert_array_equal(table.values[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(table.values[:, 2], [0, 1, 0])
    assert "33.3% of the rows" in table.notes[0]
    nullable = pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64")})
    np.testing.assert_array_equal(as_feature_table(nullable).values[:, 0], [1, 2, 3])


def test_categories_become_columns_and_rare_ones_none():
    values = [f"v{k:02}" for k in range(40) for _ in range(2 if k < 35 else 1)]
    table = as_feature_table(pd.DataFrame({"v": pd.Categorical(values)}))
    assert table.values.shape == (75, MAX_CATEGORIES)
    assert table.values[:64].sum() == 64
    assert table.values[64:].sum() == 0
    flags = as_feature_table({"v": ["a", None, "b", "a"], "b": [True, False, True, True]})
    assert flags.names == ("v=a", "v=b", "v is missing", "b")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_become_seconds(unit):
    waits = pd.DataFrame({"wait": pd.to_timedelta([1, 90, None], unit="s").as_unit(unit)})
    assert as_feature_table(waits).values[:2, 0].tolist() == [1.0, 90.0]


def test_dates_become_days_that_keep_their_differences():
    dates = pd.DataFrame({"day": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-04"])})
    np.testing.assert_allclose(np.diff(as_feature_table(dates).values[:, 0]), [1, 2])


def test_intervals_and_sparse_columns_of_pandas_are_read():
    frame = pd.DataFrame({"age": pd.cut(pd.Series([1, 5, 9]), [0, 3, 10])})
    frame["hits"] = pd.arrays.SparseArray([0.0, 0.0, 2.0])
    found = as_feature_table(frame)
    assert found.names == ("age=(0, 3]", "age=(3, 10]", "hits")
    assert found.values.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]


def test_large_integers_and_categories_are_read():
    codes, words = pa.array([0, 1, 0], pa.uint32()), pa.array(["a", "b"])
    table = {"n": [2**53 + 1, 2**60, 0], "kind": pa.DictionaryArray.from_arrays(codes, words)}
    found = as_feature_table(pa.table(table))
    assert found.names == ("n", "kind=a", "kind=b")
    np.testing.assert_allclose(np.diff(found.values[:, 0]), [2.0**60 - 2.0**53, -(2.0**60)], 1e-6)
    assert found.values[:, 1].tolist() == [1, 0, 1]


def test_free_text_is_left_out_and_said():
    text = {"text": [f"document {k}" for k in range(200)], "x": np.arange(200)}
    table = as_feature_table(text)
    assert table.names == ("x",)
    assert table.notes == ("column 'text' holds 200 different texts and was left out",)
    with pytest.raises(DataError, match="no column holds features; column 'text' holds 200"):
        as_feature_table({"text": text["text"]})


@pytest.mark.parametrize("form", [np.asarray, pd.DataFrame])
def test_32_bits_hold_the_differences_of_numbers_that_are_large_or_tiny(form):
    x = np.random.default_rng(0).random((50, 4))
    table = as_feature_table(form(x * [1, 1e-20, 1, 1e6] + [0, 0, 1e9, -3e9]))
    assert np.corrcoef(np.hstack([x, table.values]).T)[:4, 4:].diagonal().min() > 1 - 1e-6
    assert np.array_equal(as_feature_table(form(x)).values, x.astype(np.float32))


def test_texts_of_polars_are_categories():
    texts = pa.array(["u", None, "v", "u"], pa.string_view())
    names = pa.array(["u", "v"], pa.string_view())
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.uint32()), names)
    table = as_feature_table(pa.table({"a": texts, "b": codes}))
    assert table.names == ("a=u", "a=v", "a is missing", "b=u", "b=v", "b is missing")
    assert table.values.tolist()[1] == [0, 0, 1, 0, 1, 0]
    assert table.rows.take([1, 0]).column("a").to_pylist() == [None, "u"]
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 12, pa.uint32()), names)
    table = as_feature_table(pa.table({"name": codes}))
    assert columns_of_classes(table, np.arange(24) % 2) == {"name": True}


def test_bfloat16_and_masked_arrays_are_read_as_what_they_say():
    x = np.arange(8).reshape(4, 2)
    assert as_feature_table(torch.tensor(x).bfloat16()).values.tolist() == x.tolist()
    table = as_feature_table(np.ma.masked_equal(x, 5))
    assert table.names == ("0", "1", "1 is missing")
    assert table.values[:, 1:].tolist() == [[1, 0], [3, 0], [3, 1], [7, 0]]


def test_a_column_of_row_numbers_is_left_out_and_said():
    size = [3.0, 1.0, 2.0]
    for numbers, name in (([0, 1, 2], "Unnamed: 0"), ([1.0, 2.0, 3.0], "id")):
        table = as_feature_table({name: numbers, "size": size})
        assert table.names == ("size",)
        assert table.notes == (f"column '{name}' counts the rows and was left out",)
    for name, numbers in (("id", [0, 1, 3]), ("year", [0, 1, 2])):
        assert as_feature_table({name: numbers, "size": size}).names == (name, "size")


@pytest.mark.parametrize("empty", [[None, None], np.full(2, np.nan)])
def test_a_column_without_values_is_left_out_and_said(empty):
    table = as_feature_table({"size": [1.0, 2.0], "note": empty})
    assert table.names == ("size",)
    assert table.notes == ("column 'note' is empty and was left out",)


def test_the_index_of_a_frame_names_its_rows():
    frame = pd.DataFrame({"x": [1.0, 2.0]}, index=["a", "b"])
    assert as_feature_table(frame).index.tolist() == ["a", "b"]
    assert as_feature_table(frame.reset_index(drop=True)).index is None


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\), expected \[n, d\]"),
        (np.array([["a"], ["b"]]), "expected numbers"),
        (np.array([[1.0], [np.inf], [2.0]]), "rows 1$"),
        (np.array([[1.0], [1e39], [2.0]]), "larger ones than 32 bits hold: rows 1$"),
        (np.empty((0, 3)), "no rows"),
        ([[1, 2], [3]], "rows of different lengths"),
        ({"a": [1, 2], "b": [1]}, "not a table of plain columns"),
        ({"a": [1, "x"]}, "not a table of plain columns"),
        ({"emb": [[1.0, 2.0], None, [1.0, 2.0]]}, r"must hold 2 numbers in every row: rows 1"),
        ({"emb": [["a"], ["b"]]}, "column 'emb' holds list"),
        (pa.table([[1], [2]], names=["a", "a"]), "columns of the same name"),
        (7, "got int, expected an array"),
        (pd.DataFrame({"a": [2**70, 1]}), "not a table of plain columns"),
        (pd.DataFrame([[1, 2]] * 2, columns=["a", "a"]), "columns of the same name: a\n"),
        ({"a": [1.0, 1.0], "b": ["u", "u"]}, "no column differs between the rows: a, b=u"),
    ],
)
def test_what_is_no_table_is_refused(features, message):
    with pytest.raises(DataError, match=f"(?m){message}"):
        as_feature_table(features)
