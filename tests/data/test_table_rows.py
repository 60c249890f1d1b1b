"""Tables of numbers as a source."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data import DataConfig, LabelFile, read
from expunge.errors import DataError

TABLE = "id,size,weight,kind\nu,1,0.5,cat\nv,2,0.25,dog\nw,3,4,cat\n"


def table(folder, text=TABLE, **settings):
    (folder / "t.csv").write_text(text)
    config = DataConfig("t.csv", source="table", label="kind", **settings)
    return read(config, folder=folder)


def test_columns_without_another_role_are_features_in_the_order_of_the_file(tmp_path):
    found = table(tmp_path, id="id", mean=(2.0, 0.0), std=(1.0, 0.5))
    assert found.example().tolist() == [[-1.0, 1.0], [0.0, 0.5]]
    assert found.ids.tolist() == ["u", "v", "w"]
    assert found.classes == ("cat", "dog")


def test_columns_that_are_named_keep_the_order_of_their_names(tmp_path):
    assert table(tmp_path, input="weight, size").example().tolist() == [[0.5, 1.0], [0.25, 2.0]]
    assert table(tmp_path, input="weight").example().tolist() == [[0.5], [0.25]]


def test_what_is_no_number_is_named(tmp_path):
    with pytest.raises(DataError, match="columns that hold no numbers: id"):
        table(tmp_path)
    with pytest.raises(DataError, match="no column is called 'weigth'"):
        table(tmp_path, input="weigth, size")
    with pytest.raises(DataError, match="no column of features"):
        table(tmp_path, "kind\ncat\ndog\n")
    with pytest.raises(DataError, match="column 'weight'"):
        table(tmp_path, TABLE.replace("0.25", ""), id="id")


def test_all_columns_with_missing_values_are_named_at_once(tmp_path):
    for i, u in enumerate([[None, 1.0], [3.0, None]]):
        columns = {"u": u, "v": [None, 2], "w": [3, 4], "kind": ["a", "b"]}
        pq.write_table(pa.table(columns), tmp_path / f"part-{i}.parquet")
    with pytest.raises(DataError, match="2 in column 'u', 2 in column 'v'; ids 0, 2, 3\n"):
        read(DataConfig(".", source="table", label="kind"), folder=tmp_path)


def test_truth_values_are_features_and_labels(tmp_path):
    table = {"a": [True, False], "b": [1.5, 2.5], "k": [False, True]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("a,b,k\nTrue,1.5,False\nFalse,2.5,True\n")
    for name in ("t.parquet", "t.csv"):
        samples = read(DataConfig(name, source="table", label="k"), folder=tmp_path)
        assert samples.inputs.batch(np.arange(2)).tolist() == [[1.0, 1.5], [0.0, 2.5]]
        assert samples.labels.tolist() == [0, 1]
        assert samples.classes == ("False", "True")


def test_parquet_and_csv_give_the_same_samples(tmp_path):
    import pandas as pd

    from_csv = table(tmp_path, id="id")
    pd.read_csv(tmp_path / "t.csv").to_parquet(tmp_path / "t.parquet")
    config = DataConfig("t.parquet", source="table", label="kind", id="id")
    found = read(config, folder=tmp_path)
    assert found.fingerprint() == from_csv.fingerprint()


def test_columns_of_many_parquet_files_are_one_table(tmp_path):
    for i in range(2):
        columns = {"size": [i, 2.0], "weight": [3, 4], "kind": ["cat", "dog"]}
        pq.write_table(pa.table(columns), tmp_path / f"part-{i}.parquet")
    found = read(DataConfig(".", source="table", label="kind"), folder=tmp_path)
    assert found.batch(np.arange(4)).tolist() == [[0, 3], [2, 4], [1, 3], [2, 4]]
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_the_label_of_the_file_is_no_feature_where_labels_come_from_another(tmp_path):
    (tmp_path / "labels.csv").write_text("id,given\nu,1\nv,0\nw,1 \n")
    labels = LabelFile("labels.csv", "given", id="id")
    found = table(tmp_path, TABLE.replace("cat", "0").replace("dog", "1"), id="id", labels=labels)
    assert found.example().tolist() == [[1.0, 0.5], [2.0, 0.25]]
    assert found.labels.tolist() == [1, 0, 1]
