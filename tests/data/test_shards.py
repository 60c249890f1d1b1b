"""Data sets in many Parquet files: which files, in which order, and what is wrong with them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from expunge.data import DataConfig, LazyInputs, Samples, images, parquet_shards, read
from expunge.data.inputs import read_groups
from expunge.data.shards import find_shards
from expunge.errors import DataError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, rows: range, *, names: list[str] | None = None, **columns: Any) -> Path:
    """Rows with an image, a vector, a label and an id, in row groups of three."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {
        "image": [{"bytes": png(i), "path": None} for i in rows],
        "x": [[float(i), -float(i)] for i in rows],
        "label": [i % 2 for i in rows],
        "key": [f"k{i}" for i in rows],
    }
    table = pa.table({k: v for k, v in {**cells, **columns}.items() if v is not None})
    if names is not None:
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=3)
    return path


def clone(folder: Path, *, names: list[str] | None = None) -> Path:
    """A clone of a data set of the Hub: three shards for training, one for testing."""
    for i in range(3):
        shard(folder / f"data/train-0000{i}-of-00003.parquet", range(4 * i, 4 * i + 4), names=names)
    shard(folder / "data/test-00000-of-00001.parquet", range(12, 16), names=names)
    (folder / "README.md").touch()
    (folder / ".git").mkdir()
    (folder / ".git/train.parquet").touch()
    return folder


def here(path: Path | str, **settings: Any) -> Samples:
    return read(DataConfig(str(path), **settings), folder=Path("/nowhere"))


@pytest.mark.parametrize("path", ["", "data", "data/train-*.parquet", "d*/train-0000[0-2]*"])
@pytest.mark.parametrize("column", ["image", "x"])
def test_shards_are_read_as_one_set(path: str, column: str, tmp_path: Path) -> None:
    clone(tmp_path, names=["even", "odd"])
    one = shard(tmp_path / "one/d.parquet", range(12), names=["even", "odd"])
    settings = {"input": column, "id": "key"}
    samples = here(tmp_path / path, source="parquet", **settings)
    expected = here(one, **settings)
    everything = np.arange(12)
    assert samples.ids.tolist() == [f"k{i}" for i in range(12)]
    assert samples.labels.tolist() == expected.labels.tolist()
    assert samples.classes == ("even", "odd")
    assert torch.equal(samples.batch(everything), expected.batch(everything))
    part = here(tmp_path / path, source="parquet", skip_rows=3, max_rows=6, **settings)
    assert torch.equal(part.batch(np.arange(6)), expected.batch(np.arange(3, 9)))


def test_a_clone_of_the_hub_has_splits(tmp_path: Path) -> None:
    clone(tmp_path)
    assert here(tmp_path).labels.tolist() == [i % 2 for i in range(12)]
    assert len(here(tmp_path, split="test")) == 4
    with pytest.raises(DataError, match=r"split 'validation'; there are test, train\n.*split ="):
        here(tmp_path, split="validation")


def test_numbers_in_names_decide_the_order(tmp_path: Path) -> None:
    for i in (10, 9, 100, 1):
        shard(tmp_path / f"part-{i}.parquet", range(2 * i, 2 * i + 2))
    assert here(tmp_path, id="key").ids.tolist()[::2] == ["k2", "k18", "k20", "k200"]


def test_ranges_name_files(tmp_path: Path) -> None:
    for i in range(8, 12):
        (tmp_path / f"a-{i:03d}.tar").touch()
    found = find_shards(tmp_path / "a-{008..010}.tar", ".tar", "train")
    assert [f.name for f in found] == ["a-008.tar", "a-009.tar", "a-010.tar"]
    with pytest.raises(DataError, match=r"no file a-012\.tar, a-013\.tar"):
        find_shards(tmp_path / "a-{011..013}.tar", ".tar", "train")
    with pytest.raises(DataError, match="names 0 files"):
        find_shards(tmp_path / "a-{3..1}.tar", ".tar", "train")
    with pytest.raises(DataError, match="no file that fits this pattern"):
        find_shards(tmp_path / "b-*.tar", ".tar", "train")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    clone(tmp_path)
    (tmp_path / "data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match="1 of 3 shards are missing: data/train-00001-of-00003"):
        here(tmp_path)
    assert len(here(tmp_path / "data/train-*.parquet")) == 8


def test_several_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("small", "large"):
        shard(tmp_path / name / "train-0.parquet", range(4))
    with pytest.raises(DataError, match=r"several data sets: large, small\n.*large"):
        here(tmp_path)
    assert len(here(tmp_path / "small")) == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": None}, "different columns: 'label' is missing here and holds int64 in a.parq"),
        ({"x": ["a"] * 4}, "different columns: 'x' holds string here and holds list<"),
        ({"label": list("abab")}, "different columns: 'label' holds string here"),
        ({"x": [[1.0]] * 4}, r"'x' holds lists of 1 numbers here and of 2"),
        ({"label": [0, None, 1, 0]}, "missing values .* in column 'label': ids 5"),
    ],
)
def test_shards_that_differ_are_refused(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    shard(tmp_path / "a.parquet", range(4))
    shard(tmp_path / "b.parquet", range(4, 8), **columns)
    with pytest.raises(DataError, match=message) as caught:
        here(tmp_path, input="x")
    assert caught.value.where.endswith("b.parquet")


def test_shards_with_other_class_names_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", range(4), names=["cat", "dog"])
    shard(tmp_path / "b.parquet", range(4, 8), names=["dog", "cat"])
    with pytest.raises(DataError, match=r"b\.parquet: other class names than in a\.parquet"):
        here(tmp_path)


@pytest.mark.parametrize("column", ["image", "x"])
def test_a_cut_row_group_is_named(column: str, tmp_path: Path) -> None:
    clone(tmp_path)
    file = tmp_path / "data/train-00001-of-00003.parquet"
    about = pq.ParquetFile(file).metadata.row_group(1)
    names = [about.column(i).path_in_schema for i in range(about.num_columns)]
    found = about.column(next(i for i, n in enumerate(names) if n.startswith(column)))
    data = bytearray(file.read_bytes())
    start = found.dictionary_page_offset or found.data_page_offset
    data[start : start + found.total_compressed_size] = b"\xff" * found.total_compressed_size
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged") as caught:
        here(tmp_path, input=column)
    assert caught.value.where == str(file)


def test_inputs_that_do_not_fit_are_read_by_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone(tmp_path)
    order = np.array([11, 0, 4, 4, 7])
    for column in ("image", "x"):
        whole = here(tmp_path, input=column)
        with monkeypatch.context() as patch:
            patch.setattr(images, "MAX_BYTES_IN_MEMORY", 100)
            patch.setattr(parquet_shards, "MAX_BYTES_IN_MEMORY", 100)
            lazy = here(tmp_path, input=column)
            again = here(tmp_path, input=column)
            part = here(tmp_path, input=column, skip_rows=3, max_rows=6)
        assert isinstance(lazy.inputs, LazyInputs | parquet_shards.VectorColumn)
        assert torch.equal(lazy.batch(order), whole.batch(order))
        assert lazy.fingerprint() == again.fingerprint()
        groups = read_groups(lazy.inputs, np.arange(12))
        assert groups is not None
        assert groups.groups.tolist() == [0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]
        assert groups.n_in_memory < 6
        found = read_groups(part.subset(np.array([0, 5])).inputs, np.arange(2))
        assert found is not None
        assert found.groups.tolist() == [1, 4]
        assert read_groups(whole.inputs, order) is None
