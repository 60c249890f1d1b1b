"""Reading data: every source gives the same samples, and every bad input one clear error."""

from __future__ import annotations

import csv
import doctest
import importlib
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from expunge.config import build
from expunge.data import (
    DataConfig,
    LabelFile,
    LazyInputs,
    Samples,
    as_samples,
    check_disjoint,
    from_arrays,
    from_dataset,
    from_texts,
    images,
    read,
    shared_inputs,
    view,
)
from expunge.data.overlap import without_copies
from expunge.data.paths import resolve_path
from expunge.data.views import views
from expunge.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EXPUNGE_DATA", ROOT.parent / "shared" / "data"))


def pixels(n: int, *, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def png(array: np.ndarray, *, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array.transpose(1, 2, 0)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def labels(n: int) -> list[int]:
    return [i % 3 for i in range(n)]


def parquet(path: Path, columns: dict[str, Any], *, names: list[str] | None = None) -> Path:
    table = pa.table(columns)
    if names is not None:
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        described = {"info": {"features": {**feature, "film": {"_type": "Video"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    pq.write_table(table, path, row_group_size=4)
    return path


def hub(path: Path, encoded: list[bytes | None], **columns: Any) -> Path:
    stored = pa.array([{"bytes": b, "path": None} for b in encoded])
    return parquet(path, {"image": stored, "label": labels(len(encoded)), **columns})


def config(path: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(str(path), **settings)


def read_here(path: Path | str, **settings: Any) -> Samples:
    return read(config(path, **settings), folder=Path("/nowhere"))


def content(samples: Samples) -> torch.Tensor:
    return samples.inputs.batch(np.arange(len(samples)))


# --- the same samples from every kind of source -------------------------------------------------


def write_source(kind: str, folder: Path, x: np.ndarray) -> Path:
    n = len(x)
    if kind == "parquet":
        return hub(folder / "d.parquet", [png(i) for i in x])
    if kind == "arrays":
        np.savez(folder / "d.npz", x=x, y=labels(n))
        return folder / "d.npz"
    (folder / "img").mkdir()
    for i, image in enumerate(x):
        (folder / "img" / f"{i}.png").write_bytes(png(image))
    rows = [{"image": f"img/{i}.png", "label": y} for i, y in enumerate(labels(n))]
    if kind == "jsonl":
        (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder / "d.jsonl"
    with (folder / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "d.csv"


@pytest.mark.parametrize("kind", ["parquet", "arrays", "csv", "jsonl"])
def test_every_source_gives_the_same_samples(kind: str, tmp_path: Path) -> None:
    x = pixels(10)
    samples = read_here(write_source(kind, tmp_path, x))
    assert torch.equal(content(samples), torch.from_numpy(x))
    assert samples.labels.tolist() == labels(10)
    assert samples.ids.tolist() == list(range(10))
    assert not samples.has_explicit_ids
    assert samples.classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", ["parquet", "arrays", "csv", "jsonl"])
def test_the_first_rows_are_the_first_rows(kind: str, tmp_path: Path) -> None:
    path = write_source(kind, tmp_path, pixels(10))
    whole, part = read_here(path), read_here(path, max_rows=6)
    assert len(part) == 6
    assert torch.equal(content(part), content(whole)[:6])
    assert part.labels.tolist() == whole.labels.tolist()[:6]
    assert len(read_here(path, max_rows=99)) == 10
    middle = read_here(path, skip_rows=3, max_rows=4)
    assert torch.equal(content(middle), content(whole)[3:7])
    assert middle.labels.tolist() == whole.labels.tolist()[3:7]
    assert middle.ids.tolist() == whole.ids.tolist()[3:7]
    assert len(read_here(path, skip_rows=8, max_rows=4)) == 2
    with pytest.raises(DataError, match="skip_rows is 10, but there are 10 rows: none is left"):
        read_here(path, skip_rows=10)


def test_a_folder_is_read_by_class_name_with_paths_as_ids(tmp_path: Path) -> None:
    x = pixels(3)
    for name, image in zip(("dog/b.png", "cat/deep/a.PNG", "cat/z.png"), x, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(image))
    (tmp_path / "cat" / "notes.txt").write_text("left aside")
    (tmp_path / ".hidden").mkdir()
    samples = read_here(tmp_path)
    assert samples.ids.tolist() == ["cat/deep/a.PNG", "cat/z.png", "dog/b.png"]
    assert samples.classes == ("cat", "dog")
    assert samples.labels.tolist() == [0, 0, 1]
    assert samples.has_explicit_ids
    assert torch.equal(content(samples), torch.from_numpy(x[[1, 2, 0]]))


def test_lists_of_numbers_are_features(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    path = parquet(tmp_path / "d.parquet", {"x": x.tolist(), "label": labels(6)})
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
    fixed_path = parquet(tmp_path / "f.parquet", {"x": fixed, "label": labels(6)})
    rows = [{"x": v.tolist(), "label": y} for v, y in zip(x, labels(6), strict=True)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for file in (path, fixed_path, tmp_path / "d.jsonl"):
        found = content(read_here(file, input="x"))
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.from_numpy(x.astype(np.float32)))


def test_large_images_are_read_lazily_and_equal_the_resident_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_source("parquet", tmp_path, pixels(10))
    resident = read_here(path)
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 100)
    monkeypatch.setattr("expunge.data.parquet_shards.MAX_BYTES_IN_MEMORY", 100)
    lazy = read_here(path)
    assert isinstance(lazy.inputs, LazyInputs)
    order = np.array([9, 0, 5, 5])
    assert torch.equal(lazy.batch(order), resident.batch(order))
    assert lazy.fingerprint() == read_here(path).fingerprint()
    assert lazy.fingerprint()["inputs"] != read_here(path, max_rows=9).fingerprint()["inputs"]
    first, second = (
        read_here(path, skip_rows=s, max_rows=5).fingerprint()["inputs"] for s in (0, 5)
    )
    assert first != second


def test_broken_images_are_skipped_and_named_in_memory_and_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pixels(7)
    encoded: list[bytes | None] = [png(i) for i in x]
    encoded[1], encoded[4], encoded[5] = b"no image", None, encoded[5][:60]  # type: ignore[index]
    path = hub(tmp_path / "d.parquet", encoded)
    for limit in (images.MAX_BYTES_IN_MEMORY, 100):
        monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", limit)
        samples = read_here(path)
        assert isinstance(samples.inputs, LazyInputs) == (limit == 100)
        assert samples.ids.tolist() == [0, 2, 3, 6]
        assert samples.labels.tolist() == [labels(7)[i] for i in (0, 2, 3, 6)]
        assert torch.equal(content(samples), torch.from_numpy(x[[0, 2, 3, 6]]))
        damaged = (
            "cannot be decoded (truncated, damaged, or no PNG, JPEG, GIF, BMP, PPM, TIFF or WebP)"
        )
        assert samples.skipped == {1: damaged, 4: "hold no bytes", 5: damaged}


def test_an_image_that_breaks_after_it_was_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_source("csv", tmp_path, pixels(6))
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 100)
    samples = read_here(path)
    (tmp_path / "img" / "4.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"cannot be decoded .*: ids 4"):
        samples.batch(np.array([0, 4]))


def test_reading_leaves_the_files_as_they_were(tmp_path: Path) -> None:
    path = write_source("csv", tmp_path, pixels(6))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    read_here(path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- classes and labels -------------------------------------------------------------------------


def test_class_names_come_from_the_file_then_the_settings(tmp_path: Path) -> None:
    columns = {"image": [png(i) for i in pixels(6)], "label": labels(6)}
    named = parquet(tmp_path / "a.parquet", columns, names=["ant", "bee", "cat"])
    plain = parquet(tmp_path / "b.parquet", columns)
    assert read_here(named).classes == ("ant", "bee", "cat")
    assert read_here(plain, classes=("x", "y", "z")).classes == ("x", "y", "z")
    assert read_here(plain).classes == ("0", "1", "2")


def test_labels_are_translated_by_name_into_the_classes_asked_for(tmp_path: Path) -> None:
    columns = {"image": [png(i) for i in pixels(6)], "label": labels(6)}
    path = parquet(tmp_path / "a.parquet", columns, names=["ant", "bee", "cat"])
    samples = read(config(path), folder=tmp_path, classes=("cat", "bee", "ant"))
    assert samples.labels.tolist() == [2, 1, 0, 2, 1, 0]
    with pytest.raises(DataError, match=r"labels that are no class: bee \(ids 1, 4\)"):
        read(config(path), folder=tmp_path, classes=("cat", "ant", "bees"))


def test_samples_are_shown_by_their_number_classes_and_shape() -> None:
    one, two = np.zeros((600, 1, 8, 8), np.float32), np.zeros((600, 3), np.float32)
    y = np.arange(600) % 3
    samples = from_arrays(one, y, classes=["ant", "bee", "cat"])
    assert repr(samples) == "Samples(600 samples, classes ant, bee, cat, inputs (1, 8, 8))"
    texts = from_texts(["a b", "a"], [0, 1], tokenizer=lambda ts: {"input_ids": [[1, 1], [1]]})
    assert repr(texts).endswith("inputs of up to 2 tokens)")
    assert repr(samples.subset(np.arange(5))).startswith("Samples(5 samples, ")
    assert repr(from_arrays({"a": one, "b": two}, y)).endswith("inputs a (1, 8, 8), b (3,))")


def test_names_that_only_number_the_classes_translate_nothing(tmp_path: Path) -> None:
    columns = {"image": [png(i) for i in pixels(6)], "label": labels(6)}
    path = parquet(tmp_path / "a.parquet", columns, names=["ant", "bee", "cat"])
    samples = read(config(path), folder=tmp_path, classes=("0", "1", "2"))
    assert samples.labels.tolist() == labels(6)
    assert samples.classes == ("0", "1", "2")


def test_labels_that_are_strings_are_mapped_by_class_name(tmp_path: Path) -> None:
    columns = {"image": [png(i) for i in pixels(4)], "label": ["b", "a", "b", "a"]}
    path = parquet(tmp_path / "d.parquet", columns)
    assert read_here(path).classes == ("a", "b")
    assert read_here(path).labels.tolist() == [1, 0, 1, 0]
    assert read_here(path, classes=("b", "a", "c")).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_labels_of_a_second_file_are_joined_by_id(kind: str, tmp_path: Path) -> None:
    ids = [10, 20, 30, 40]
    path = hub(tmp_path / "d.parquet", [png(i) for i in pixels(4)], key=ids)
    other = tmp_path / f"labels.{kind}"
    rows = [{"key": i, "noisy": i // 20} for i in (40, 30, 10, 20, 99)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), other)
    elif kind == "csv":
        other.write_text("key,noisy\n" + "\n".join(f"{r['key']},{r['noisy']}" for r in rows))
    else:
        other.write_text("\n".join(map(json.dumps, rows)))
    settings = {"id": "key", "labels": LabelFile(str(other), "noisy", id="key")}
    assert read_here(path, **settings).labels.tolist() == [0, 1, 1, 2]
    assert read_here(path, **settings).has_explicit_ids


def test_an_id_join_names_the_missing_and_the_duplicate_ids(tmp_path: Path) -> None:
    path = hub(tmp_path / "d.parquet", [png(i) for i in pixels(9)])
    other = tmp_path / "labels.csv"
    file = LabelFile("labels.csv", "y")
    other.write_text("id,y\n0,1\n1,0\n")
    with pytest.raises(DataError, match=r"no label for 7 of 9 ids: 2, 3, 4, 5, 6 … \(7 in all\)"):
        read(config(path, labels=file), folder=tmp_path)
    other.write_text("id,y\n0,1\n0,0\n")
    with pytest.raises(DataError, match=r"duplicate ids: 0\n  fix: keep one row of each id"):
        read(config(path, labels=file), folder=tmp_path)
    other.write_text("id,z\n0,1\n")
    with pytest.raises(DataError, match="no column is called 'y'"):
        read(config(path, labels=file), folder=tmp_path)
    other.write_text("id,y\n")
    with pytest.raises(DataError, match=r"labels\.csv"):
        read(config(path, labels=file), folder=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, None, 1], "missing values .* in column 'label': ids 2"),
        ([0, 1, 7, -1], r"labels outside 0…1: -1, 7 \(ids 2, 3\)"),
        ([0.0, 1.0, float("nan"), 1.0], "labels are NaN or infinite: ids 2"),
        ([0.5, 1.0, 0.0, 1.0], "labels must be integers; got fractions"),
        (["a", "b", "c", "b"], r"labels that are no class: c \(ids 2\)"),
    ],
)
def test_bad_labels_are_named(values: list[Any], message: str, tmp_path: Path) -> None:
    columns = {"image": [png(i) for i in pixels(4)], "label": values}
    with pytest.raises(DataError, match=message):
        read_here(parquet(tmp_path / "d.parquet", columns), classes=("a", "b"))


def test_one_class_is_an_error_without_class_names() -> None:
    with pytest.raises(DataError, match="1 class: a classifier needs two or more"):
        from_arrays(np.zeros((3, 2)), [0, 0, 0])
    with pytest.raises(DataError, match="the largest label is 1000000000, which is no class index"):
        from_arrays(np.zeros((3, 2)), [0, 10**9, 0])


# --- images that do not fit ---------------------------------------------------------------------


def test_all_bad_images_are_named_at_once(tmp_path: Path) -> None:
    encoded: list[bytes | None] = [png(i) for i in pixels(12)]
    for i in range(6):
        encoded[i] = encoded[i][:60]  # type: ignore[index]
    encoded[7] = png(pixels(1, side=9)[0])
    encoded[8] = None
    encoded[9] = png(pixels(1)[0], mode="RGBA")
    encoded[10] = b"no image"
    with pytest.raises(DataError) as caught:
        read_here(hub(tmp_path / "d.parquet", encoded))
    text = str(caught.value)
    assert "images that cannot be decoded" in text
    assert "ids 0, 1, 2, 3, 4 … (7 in all)" in text
    assert "images that are 9×9 RGB where most are 8×8 RGB: ids 7" in text
    assert "hold no bytes: ids 8" in text
    assert "mode RGBA, expected RGB or L: set mode to convert them: ids 9" in text
    assert "fix:" in text


def test_mode_and_size_convert_images(tmp_path: Path) -> None:
    x = pixels(4)
    encoded = [png(x[0]), png(x[1], mode="RGBA"), png(x[2], mode="P"), png(pixels(1, side=20)[0])]
    samples = read_here(hub(tmp_path / "d.parquet", encoded), mode="RGB", size=8)
    assert content(samples).shape == (4, 3, 8, 8)
    assert torch.equal(content(samples)[:2], torch.from_numpy(x[:2]))
    grey = read_here(hub(tmp_path / "g.parquet", encoded), mode="L", size=8)
    expected = np.asarray(Image.fromarray(x[0].transpose(1, 2, 0)).convert("L"))
    assert torch.equal(content(grey)[0, 0], torch.from_numpy(expected.copy()))


def test_images_of_two_modes_are_refused(tmp_path: Path) -> None:
    x = pixels(4)
    mixed = hub(tmp_path / "d.parquet", [*(png(i) for i in x[:3]), png(x[3], mode="L")])
    with pytest.raises(DataError, match="8×8 L where most are 8×8 RGB: ids 3"):
        read_here(mixed)


def deep_png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_of_16_bits_keep_their_depth_unless_a_mode_is_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 8, 8))
    path = hub(tmp_path / "d.parquet", [deep_png(v) for v in values])
    deep = content(read_here(path))
    expected = torch.from_numpy((values / 65535).astype(np.float32))[:, None]
    assert deep.dtype == torch.float32
    assert torch.equal(deep, expected)
    for mode in ("L", "RGB"):
        found = content(read_here(path, mode=mode)).float() / 255
        assert (found - expected).abs().max() < 1 / 255
    small = content(read_here(path, size=4))
    assert torch.allclose(small.mean(), expected.mean(), atol=0.05)
    assert small.dtype == torch.float32
    mixed = hub(tmp_path / "e.parquet", [*(deep_png(v) for v in values[:3]), png(pixels(1)[0])])
    with pytest.raises(DataError, match="8×8 RGB where most are 8×8 L of 16 bits: ids 3"):
        read_here(mixed)


def test_images_of_32_bits_are_refused_with_a_way_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(buffer, "TIFF")
    path = hub(tmp_path / "d.parquet", [png(pixels(1)[0]), buffer.getvalue()])
    for mode in (None, "RGB"):
        with pytest.raises(DataError, match=r"mode F, which is not read.*: ids 1"):
            read_here(path, mode=mode)


def test_decompression_bombs_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub(tmp_path / "d.parquet", [*(png(i) for i in pixels(3)), png(pixels(1, side=12)[0])])
    for limit in (100, 50):  # Pillow itself only warns at the first, and raises at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 100)
        if limit == 100:
            assert read_here(path).skipped == {3: "have more than 100 pixels (Pillow's limit)"}
            continue
        with pytest.raises(DataError, match=f"more than {limit} pixels .*: ids .*3"):
            read_here(path)


# --- files, columns and settings ----------------------------------------------------------------


def test_paths_are_relative_to_the_folder_and_variables_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", "data")
    monkeypatch.setenv("ROOT", "/abs")
    monkeypatch.delenv("NOWHERE", raising=False)
    spec = Path("/spec")
    assert resolve_path("a/b", spec) == Path("/spec/a/b")
    assert resolve_path("/a/b", spec) == Path("/a/b")
    assert resolve_path("~/b", spec) == Path.home() / "b"
    assert resolve_path("${HERE}/b", spec) == tmp_path / "data/b"
    assert resolve_path("a/${HERE}", spec) == Path("/spec/a/data")
    assert resolve_path("${ROOT}/b", spec) == Path("/abs/b")
    assert resolve_path("${NOWHERE:-../d}/b", spec) == Path("/spec/../d/b")
    with pytest.raises(DataError, match="variable NOWHERE is not set"):
        resolve_path("${NOWHERE}/b", spec)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl", "x.npz", "x", "x.pdf"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/{name}: no such file"):
        read(config(name), folder=tmp_path)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl", "x.npz"])
def test_a_directory_an_empty_and_a_wrong_file_are_errors(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(DataError, match="expected a file, found a directory"):
        read_here(path)
    path.rmdir()
    for damage in (b"", b"\x80\x81 something else \xff\xfe" * 9, pickle.dumps([1, 2])):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=str(path)):
            read_here(path)


def test_files_of_unknown_kind_and_empty_folders_are_errors(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_text("x")
    with pytest.raises(DataError, match="set source to one of: arrays, cifar10, csv, folder"):
        read_here(tmp_path / "x.pdf")
    with pytest.raises(DataError, match=r"neither class folders nor .* CIFAR-10 batches"):
        read_here(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="class folders without an image or a clip: cat"):
        read_here(tmp_path)
    with pytest.raises(DataError, match="expected a folder, found a file"):
        read_here(tmp_path / "x.pdf", source="folder")
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        read_here(tmp_path / "x.pdf", source="parket")


def test_a_missing_column_is_an_error_with_the_closest_match(tmp_path: Path) -> None:
    path = hub(tmp_path / "d.parquet", [png(i) for i in pixels(4)])
    for key in ("input", "label", "id"):
        wrong = {"label": "lable"}.get(key, "imag")
        right = {"label": "label"}.get(key, "image")
        with pytest.raises(DataError, match=f"called '{wrong}'[^?]*did you mean '{right}'"):
            read_here(path, **{key: wrong})
    table = write_source("csv", tmp_path, pixels(4))
    with pytest.raises(DataError, match=r"called 'lable'[^?]*did you mean 'label'"):
        read_here(table, label="lable")


def test_columns_that_are_no_input_are_refused(tmp_path: Path) -> None:
    film = pa.array([{"bytes": b"x", "path": None}] * 4)
    columns = {"text": list("abcd"), "film": film, "label": [0, 1, 0, 1]}
    path = parquet(tmp_path / "d.parquet", columns, names=["a", "b"])
    with pytest.raises(DataError, match="column 'text' holds string, expected images"):
        read_here(path, input="text")
    with pytest.raises(DataError, match="column 'film' holds Video, expected images"):
        read_here(path, input="film")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_features_of_unequal_length_are_named(kind: str, tmp_path: Path) -> None:
    x = [[1.0, 2.0], [1.0, 2.0], [3.0], [1.0, 2.0]]
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        parquet(path, {"x": x, "label": [0, 1, 0, 1]})
    else:
        path.write_text("\n".join(json.dumps({"x": v, "label": i % 2}) for i, v in enumerate(x)))
    with pytest.raises(DataError, match=r"must hold 2 numbers in every row: ids 2[\s\S]*fix: "):
        read_here(path, input="x")


def test_features_that_are_null_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", {"x": [[1.0], [None], [2.0]], "label": [0, 1, 0]})
    with pytest.raises(DataError, match="column 'x' holds nulls: ids 1"):
        read_here(path, input="x")
    path = parquet(tmp_path / "d.parquet", {"x": [[1.0], None, [2.0]], "label": [0, 1, 0]})
    with pytest.raises(DataError, match="must hold 1 numbers in every row: ids 1"):
        read_here(path, input="x")


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    path = hub(tmp_path / "d.parquet", [png(i) for i in pixels(4)], key=["a", "b", "a", "c"])
    with pytest.raises(DataError, match="duplicate ids: a"):
        read_here(path, id="key")


def test_an_empty_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        read_here(hub(tmp_path / "d.parquet", [], key=pa.array([], pa.int64())))
    (tmp_path / "d.csv").write_text("image,label\n")
    with pytest.raises(DataError, match="no rows below the header"):
        read_here(tmp_path / "d.csv")


def test_broken_manifests_are_errors_that_name_the_rows(tmp_path: Path) -> None:
    table, lines = tmp_path / "d.csv", tmp_path / "d.jsonl"
    table.write_text("image,label\na.png,0\nb.png\n")
    with pytest.raises(DataError, match="exactly 2 fields, as in the header: 2"):
        read_here(table)
    table.write_text("image,label\na.png,\nb.png,1\n")
    with pytest.raises(
        DataError, match=r"missing values \(null or empty\) in column 'label': ids 0"
    ):
        read_here(table)
    table.write_text("image,label\na.png,0\nb.png,1\n")
    with pytest.raises(DataError, match=r"images that cannot be read \(No such file.*: ids 0, 1"):
        read_here(table)
    lines.write_text('{"image": "a.png", "label": 0}\n{"image": ')
    with pytest.raises(DataError, match="line 2 is no JSON"):
        read_here(lines)
    lines.write_text('{"image": "a.png", "label": 0},\n{"image": "b.png", "label": 1}')
    with pytest.raises(DataError, match=r"line 1 is no JSON .*\n  fix: remove the comma"):
        read_here(lines)
    lines.write_text('{"image": "a.png", "label": 0}\n[1]')
    with pytest.raises(DataError, match="line 2 is a list, expected an object"):
        read_here(lines)
    lines.write_text('{"image": "a.png", "label": 0}\n{"image": "b.png", "label": "x"}')
    with pytest.raises(DataError, match=r"in column 'label', expected .*: ids with int 0"):
        read_here(lines)


def test_paths_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(pixels(1)[0]))
    inner = tmp_path / "inner"
    (inner / "cat").mkdir(parents=True)
    (inner / "ok.png").write_bytes(secret.read_bytes())
    (inner / "link.png").symlink_to(secret)
    table = inner / "d.csv"
    for path in ("../secret.png", str(secret), "link.png", "cat/../../secret.png"):
        table.write_text(f"image,label\nok.png,0\n{path},1\n")
        with pytest.raises(DataError, match=r"paths that lead outside the folder .*: 1 \("):
            read_here(table)
    table.write_text("image,label\nok.png,0\ncat/../ok.png,1\n")
    assert len(read_here(table)) == 2
    (inner / "cat" / "link.png").symlink_to(secret)
    with pytest.raises(DataError, match=r"outside the folder .*: 'cat/link.png'"):
        read_here(inner, source="folder")


def test_settings_are_read_from_tables_and_checked() -> None:
    table = {"path": "x.parquet", "labels": {"path": "y.csv", "column": "z"}, "mean": [0.5]}
    made = build(DataConfig, {**table, "std": [1]}, where="spec")
    assert made.labels == LabelFile("y.csv", "z")
    assert made.std == (1.0,)
    for wrong, message in (
        ({"max_rows": 0}, "max_rows must be 1 or more"),
        ({"mode": "RGBA"}, "'mode' is 'RGBA'"),
        ({"split": "all"}, "'split' is 'all'"),
        ({"input": "a, z", "label": "z", "labels": None}, "'z' is both input and label"),
        ({"std": []}, "mean and std need as many numbers, not 1 and 0"),
        ({"std": [0]}, "std must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(DataConfig, {**table, "std": [1], **wrong}, where="spec")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rate", "sample_rate"),
        ("probs", "external_probs"),
        ("rows", "max_rows"),
        ("skip", "skip_rows"),
    ],
)
def test_an_old_key_is_an_error_that_names_the_new_one(old, new):
    with pytest.raises(ConfigError, match=f"unknown key '{old}': .* '{new}'"):
        build(DataConfig, {"path": "x.parquet", old: 1}, where="spec")


# --- CIFAR-10's own files -----------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, and the module names of NumPy 1."""

    dispatch: ClassVar[Any] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def cifar(folder: Path, x: np.ndarray, y: list[int], *, python: int = 2) -> None:
    folder.mkdir(exist_ok=True)
    flat = x.reshape(len(x), -1)
    for i in range(5):
        part = {b"data": flat[2 * i : 2 * i + 2], b"labels": y[2 * i : 2 * i + 2]}
        dumped = python2(part) if python == 2 else pickle.dumps(part, protocol=4)
        (folder / f"data_batch_{i + 1}").write_bytes(dumped)
    (folder / "test_batch").write_bytes(python2({b"data": flat[:3], b"labels": y[:3]}))


@pytest.mark.parametrize("python", [2, 3])
def test_the_cifar_folder_is_read_in_order(python: int, tmp_path: Path) -> None:
    x = pixels(10, side=32)
    cifar(tmp_path, x, labels(10), python=python)
    samples = read_here(tmp_path)
    assert torch.equal(content(samples), torch.from_numpy(x))
    assert samples.labels.tolist() == labels(10)
    assert len(samples.classes) == 10
    assert len(read_here(tmp_path, split="test")) == 3
    assert len(read_here(tmp_path, mode="RGB", size=32)) == 10
    with pytest.raises(DataError, match="size and mode convert encoded images only"):
        read_here(tmp_path, size=16)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_pickles_that_run_code_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    attack = {"data": Attack(marker), "labels": [0]}
    pickle.loads(pickle.dumps(attack))  # noqa: S301 (the attack does work, where it is let)
    assert marker.exists()
    marker.unlink()

    cifar(tmp_path / "c", pixels(10, side=32), labels(10))
    for protocol in (0, 2, 4):
        (tmp_path / "c" / "data_batch_3").write_bytes(pickle.dumps(attack, protocol=protocol))
        with pytest.raises(DataError, match=r"data_batch_3: the file asks to run \w+\.system"):
            read_here(tmp_path / "c")

    path = hub(tmp_path / "d.parquet", [png(i) for i in pixels(4)])
    human = tmp_path / "CIFAR-10_human.pt"
    for form in ("plain", "zip", "legacy"):
        if form == "plain":
            human.write_bytes(pickle.dumps(attack))
        else:
            torch.save(attack, human, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(DataError, match="not an archive of plain arrays"):
            read_here(path, labels=LabelFile(str(human), "random_label1"))
    assert not marker.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "numpy1", "numpy2"])
def test_human_labels_are_joined_by_position(form: str, tmp_path: Path) -> None:
    x = [png(i) for i in pixels(4)]
    path = hub(tmp_path / "d.parquet", x)
    human = tmp_path / "CIFAR-10_human.pt"
    table = {"random_label1": np.array([2, 1, 0, 2]), "aggre_label": np.array([0, 1])}
    torch.save(table, human, _use_new_zipfile_serialization=form != "legacy")
    if form in ("numpy1", "numpy2"):
        rename(human, b"numpy.core." if form == "numpy1" else b"numpy._core.")
    samples = read_here(path, labels=LabelFile(str(human), "random_label1"))
    assert samples.labels.tolist() == [2, 1, 0, 2]
    with pytest.raises(DataError, match="did you mean 'random_label1'"):
        read_here(path, labels=LabelFile(str(human), "random_label"))
    with pytest.raises(DataError, match="2 labels for 4 samples: they are joined by position"):
        read_here(path, labels=LabelFile(str(human), "aggre_label"))


def rename(archive: Path, module: bytes) -> None:
    """Rewrite the pickle in a torch archive with the given NumPy module name."""
    with zipfile.ZipFile(archive) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name, part in parts.items():
            renamed = part.replace(b"numpy._core.", b"numpy.core.")
            new.writestr(name, renamed.replace(b"numpy.core.", module))


def test_damaged_cifar_batches_are_errors(tmp_path: Path) -> None:
    cifar(tmp_path, pixels(10, side=32), labels(10))
    batch = tmp_path / "data_batch_2"
    whole = batch.read_bytes()
    for damage in (b"", whole[:50], whole[:-40], b"hello", pickle.dumps([1])):
        batch.write_bytes(damage)
        with pytest.raises(DataError, match="data_batch_2"):
            read_here(tmp_path)
    data = np.zeros((2, 3072), dtype=np.uint8)
    batch.write_bytes(python2({b"data": data, b"labels": [1]}))
    with pytest.raises(DataError, match="2 images and 1 labels do not match"):
        read_here(tmp_path)
    batch.unlink()
    with pytest.raises(DataError, match="data_batch_2: no such file"):
        read_here(tmp_path)


@pytest.mark.skipif(
    not (DATA / "cifar10" / "test.parquet").is_file(),
    reason=f"no CIFAR-10 in {DATA}: set EXPUNGE_DATA",
)
def test_the_cifar_parquet_is_read_in_order_with_ten_class_names() -> None:
    for name, rows in (("train", 600), ("test", 2500)):
        samples = read(config(f"cifar10/{name}.parquet", id="id", max_rows=rows), folder=DATA)
        table = pq.read_table(DATA / "cifar10" / f"{name}.parquet").slice(0, rows)
        assert len(samples.classes) == 10
        assert samples.classes[:2] == ("airplane", "automobile")
        assert samples.ids.tolist() == table["id"].to_pylist()
        assert samples.labels.tolist() == table["label"].to_pylist()
        assert content(samples).shape == (rows, 3, 32, 32)
        for i in (0, rows // 2, rows - 1):  # decoded by Pillow alone
            image = np.array(Image.open(io.BytesIO(table["image"][i]["bytes"].as_py())))
            assert torch.equal(content(samples)[i], torch.from_numpy(image).permute(2, 0, 1))


# --- arrays -------------------------------------------------------------------------------------


def test_arrays_are_neither_copied_nor_changed() -> None:
    x, y = np.random.default_rng(0).random((6, 2), dtype=np.float32), np.array(labels(6))
    before = x.copy(), y.copy()
    for given in (x, torch.from_numpy(x)):
        samples = from_arrays(given, y, mean=(0.5,), std=(2.0,))
        assert samples.inputs.tensor.data_ptr() == x.ctypes.data  # type: ignore[attr-defined]
        expected = (x[:3] - 0.5) / 2
        torch.testing.assert_close(samples.batch(np.arange(3)), torch.from_numpy(expected))
    x.setflags(write=False)  # a memory map, say; a warning would be an error here
    samples = from_arrays(x, y)
    assert samples.inputs.tensor.data_ptr() == x.ctypes.data  # type: ignore[attr-defined]
    assert (x == before[0]).all()
    assert (y == before[1]).all()
    assert y.flags.writeable


def test_arrays_of_any_layout_give_the_same_numbers() -> None:
    x = np.arange(12.0).reshape(6, 2)
    plain = content(from_arrays(x, labels(6)))
    for other in (x.astype(">f8"), np.asfortranarray(x), x[::-1].copy()[::-1]):
        assert torch.equal(content(from_arrays(other, labels(6))), plain)


def test_ids_that_are_given_are_named() -> None:
    samples = from_arrays(np.zeros((2, 2)), [0, 1], ids=["a", "b"])
    assert samples.has_explicit_ids
    assert samples.ids.tolist() == ["a", "b"]
    assert not from_arrays(np.zeros((2, 2)), [0, 1]).has_explicit_ids


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("text", [0], "x must be an array, a tensor, a list or a data frame, not str"),
        ([[1.0], [1.0, 2.0]], [0, 1], "differ from the first .* in shape or dtype: items 1"),
        (np.zeros(3), [0, 1, 0], r"shape \(3,\), expected \[n, …\]"),
        (np.zeros((0, 3)), [], "no samples"),
        (np.zeros((3, 0)), [0, 1, 0], "its samples are empty"),
        (np.array([[None]]), [0], "item 0: "),
        (np.zeros((3, 2), dtype=complex), [0, 1, 0], "dtype complex128, expected floats"),
        (np.zeros((3, 2), dtype=bool), [0, 1, 0], "dtype bool, expected floats"),
        (np.zeros((3, 8, 8, 3), dtype=np.uint8), [0, 1, 0], "looks like .n, H, W, C."),
        (np.zeros((3, 2)), [0, 1], "3 inputs, 2 labels and 3 ids do not match"),
        (np.zeros((3, 2)), np.eye(3), "not an array of shape"),
        (np.zeros((3, 2)), [0, None, 1], "missing values .* in labels: ids 1"),
        (np.zeros((3, 2)), 3, "labels must be an array or a list, not int"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(x, y)


def test_preparation_must_fit_the_inputs() -> None:
    x, y = pixels(4), [0, 1, 0, 1]
    with pytest.raises(DataError, match="mean has 2 and std 2 numbers; the inputs have 3 channels"):
        from_arrays(x, y, mean=(0.0, 0.0), std=(1.0, 1.0))
    with pytest.raises(DataError, match="std finite and above 0"):
        from_arrays(x, y, mean=(0.0,), std=(0.0,))
    with pytest.raises(DataError, match="did you mean 'flip'"):
        from_arrays(x, y, view="flipp")
    with pytest.raises(DataError, match=r"this view is for images of shape \[b, C, H, W\]"):
        from_arrays(np.zeros((4, 2)), y, view="flip")


def test_npz_files_hold_ids_and_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((2, 2)), y=["a", "b"], ids=[5, 6])
    samples = read_here(path)
    assert samples.ids.tolist() == [5, 6]
    assert samples.has_explicit_ids
    assert samples.classes == ("a", "b")
    np.savez(path, x=np.zeros((2, 2)), y=np.array([Attack(tmp_path / "ran"), 1], dtype=object))
    with pytest.raises(DataError, match=r"not an \.npz file of plain arrays"):
        read_here(path)
    assert not (tmp_path / "ran").exists()
    np.savez(path, inputs=np.zeros((2, 2)))
    with pytest.raises(DataError, match="no array is called 'x'"):
        read_here(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"one array, expected an \.npz file"):
        read_here(path)


def test_one_class_is_no_training_set_but_can_be_measured(tmp_path: Path) -> None:
    x, y = np.eye(4, dtype=np.float32), [1, 1, 1, 1]
    with pytest.raises(DataError, match="all samples have the same label"):
        from_arrays(x, y)
    assert from_arrays(x, y, classes=("a", "b")).labels.tolist() == y
    path = parquet(tmp_path / "d.parquet", {"image": x.tolist(), "label": y})
    assert read_here(path, classes=("a", "b")).classes == ("a", "b")


# --- data sets ----------------------------------------------------------------------------------


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items, self.reads = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return self.items[i]


def test_items_of_every_form_give_the_same_samples() -> None:
    x = pixels(6)
    forms: list[list[Any]] = [
        [(torch.from_numpy(i), y) for i, y in zip(x, labels(6), strict=True)],
        [(n, i, np.int64(y)) for n, (i, y) in enumerate(zip(x, labels(6), strict=True))],
        [
            {"image": Image.fromarray(i.transpose(1, 2, 0)), "label": torch.tensor(y), "file": "f"}
            for i, y in zip(x, labels(6), strict=True)
        ],
        [
            {"id": torch.tensor(n), "pixel_values": torch.from_numpy(i), "labels": y}
            for n, (i, y) in enumerate(zip(x, labels(6), strict=True))
        ],
    ]
    expected = from_arrays(x, labels(6)).fingerprint()
    for form, named in zip(forms, (False, True, False, True), strict=True):
        samples = from_dataset(Items(form))
        assert samples.fingerprint() == expected
        assert samples.has_explicit_ids == named


def test_a_sum_that_is_too_large_for_its_numbers_is_no_bad_input() -> None:
    class Halves(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> dict[str, Any]:
            x = torch.full((3, 40_000), 10.0, dtype=torch.float16)
            return {"x": x if i < 3 else x / 0, "mask": torch.ones(3), "label": i % 2}

    samples = as_samples(Halves())
    assert isinstance(samples.batch(np.arange(3)), dict)
    with pytest.raises(DataError, match="inputs are NaN or infinite: ids 3"):
        samples.batch(np.arange(4))


def test_items_of_several_tensors_become_dict_batches() -> None:
    tokens = torch.arange(12).view(4, 3)
    items = [
        {"input_ids": t, "attention_mask": torch.ones(3), "label": i % 2, "id": f"s{i}"}
        for i, t in enumerate(tokens)
    ]
    for limit in (1 << 20, 0):
        samples = from_dataset(Items(items), max_bytes_in_memory=limit)
        batch = samples.batch(np.array([2, 0]))
        assert isinstance(batch, dict)
        assert torch.equal(batch["input_ids"], tokens[[2, 0]])
        assert set(batch) == {"input_ids", "attention_mask"}
        assert samples.ids.tolist() == ["s0", "s1", "s2", "s3"]


def test_data_sets_that_do_not_fit_are_read_lazily_and_small_ones_once() -> None:
    x = torch.from_numpy(pixels(12))
    items = [(i, y) for i, y in zip(x, labels(12), strict=True)]
    small, large = Items(items), Items(items)
    resident, lazy = from_dataset(small), from_dataset(large, max_bytes_in_memory=x.numel())
    reads = small.reads, large.reads
    assert torch.equal(lazy.batch(np.array([7, 1])), resident.batch(np.array([7, 1])))
    assert (small.reads, large.reads) == (reads[0], reads[1] + 2)
    assert lazy.fingerprint() == from_dataset(large, max_bytes_in_memory=0).fingerprint()
    changed = [*items[:-1], (items[-1][0] + 1, items[-1][1])]
    other = from_dataset(Items(changed), max_bytes_in_memory=0)
    assert lazy.fingerprint()["inputs"] != other.fingerprint()["inputs"]


def test_class_names_come_from_the_data_set() -> None:
    data = Items([(torch.zeros(2), 0), (torch.ones(2), 1)])
    data.classes = ["cat", "dog"]  # type: ignore[attr-defined]
    assert from_dataset(data).classes == ("cat", "dog")
    assert from_dataset(data, classes=["dog", "cat"]).labels.tolist() == [1, 0]


def test_a_part_of_a_data_set_has_the_class_names_of_the_whole() -> None:
    whole = Items([(torch.zeros(2), 0), (torch.ones(2), 1), (torch.ones(2), 2)])
    whole.classes = ["cat", "dog", "owl"]  # type: ignore[attr-defined]
    part = Subset(Subset(whole, [2, 1, 0]), [1, 2])
    assert as_samples(part).classes == ("cat", "dog", "owl")
    assert as_samples(part).labels.tolist() == [1, 0]
    unnamed = TensorDataset(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert as_samples(Subset(unnamed, [0, 1])).classes == ("0", "1")
    part.classes = ["a", "b"]  # type: ignore[attr-defined]
    assert as_samples(part).classes == ("a", "b")


class Noisy(Items):
    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return torch.full((2,), float(self.reads)), i % 2


class Redrawn(Items):
    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return torch.zeros(2), self.reads


class Failing(Items):
    def __getitem__(self, i: int) -> Any:
        raise RuntimeError("disk on fire")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items([]), "no samples"),
        (Items([("text", 0), ("more", 1)]), "item 0: the input is a str, expected an array"),
        (Items([{"values": [[1, 2], [1]], "label": 0}]), "item 0, 'values': "),
        (Items([{"image": np.zeros(2)}]), "expected one label, under y, label, labels"),
        (Items([{"name": "x", "label": 0}]), "no input among name, label"),
        (Items([torch.zeros(2)]), r"a Tensor of shape .*: expected \(x, y\), .* or a dict"),
        (Items([(np.zeros(2), np.zeros(3))]), "the label is an ndarray of shape"),
        (Items([(np.zeros(2), 0), (np.zeros(2), None)]), "missing values .* in labels: ids 1"),
        (Items([("a", np.zeros(2), 0), ("b", np.zeros(3), 1)]), "in shape, .*: ids b"),
        (Items([(Image.new("RGBA", (2, 2)), 0)]), "mode RGBA: expected L or RGB"),
        (Items([(np.zeros(2, dtype=object), 0)]), "item 0: .*object"),
        (Items([("a", np.zeros(2), 0), ("a", np.zeros(2), 1)]), "duplicate ids: a"),
        (Noisy([0, 1]), "item 0 differs between two readings"),
        (Redrawn([0, 1]), r"the label of item 0 differs .*: \d, \d\n  fix: draw labels once"),
        (Failing([0, 1]), "data, item 0: RuntimeError: disk on fire"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_dataset(data)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(2), 0)])


def test_as_samples_takes_what_a_user_has() -> None:
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
    samples = from_arrays(x, y)
    assert as_samples(samples) is samples
    assert as_samples((x.numpy(), y.numpy())).fingerprint() == samples.fingerprint()
    assert as_samples(TensorDataset(x, y)).fingerprint() == samples.fingerprint()
    for wrong in (Stream(), "path.parquet", x, {"x": x}, None, (x, y, y)):
        with pytest.raises(DataError, match=r"expected Samples, a pair of arrays .x, y. or a data"):
            as_samples(wrong)


# --- overlap ------------------------------------------------------------------------------------


def test_shared_ids_are_an_error_only_where_both_are_named() -> None:
    x, y = np.zeros((20, 2)), np.arange(20) % 2
    named = from_arrays(x, y, ids=np.arange(20))
    with pytest.raises(DataError) as caught:
        check_disjoint(named, named)
    text = str(caught.value)
    assert "ids inside the training ids: 0, 1, 2, 3, 4 … (20 in all)" in text
    assert "leave out `id` for one of them" in text
    assert check_disjoint(named, from_arrays(x, y)) == []
    assert check_disjoint(named, from_arrays(x, y, ids=np.arange(20, 40))) == []
    assert check_disjoint(named, from_arrays(x, y, ids=[str(i) for i in range(20)])) == []


def class_folder(root: Path, names: list[str], *, seed: int) -> Path:
    for name, image in zip(names, pixels(len(names), seed=seed), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(image))
    return root


def test_equal_names_in_two_folders_are_no_overlap_and_one_file_in_both_sets_is(
    tmp_path: Path,
) -> None:
    names = ["cat/1.png", "cat/2.png", "dog/1.png"]
    train = read_here(class_folder(tmp_path / "train", names, seed=0))
    held_out = read_here(class_folder(tmp_path / "val", names, seed=1))
    assert held_out.ids.tolist() == train.ids.tolist()
    assert check_disjoint(train, held_out) == []
    assert shared_inputs(train, held_out) == 0

    (tmp_path / "link").symlink_to(tmp_path / "train")
    again = read(config(tmp_path / "link"), folder=tmp_path, name="held-out data")
    with pytest.raises(DataError) as caught:
        check_disjoint(train, again.subset(np.arange(2)))
    text = str(caught.value)
    assert text.startswith("held-out data: ids inside the training ids: cat/1.png, cat/2.png\n")
    assert "fix: name two folders" in text


def test_shared_inputs_are_counted_by_content() -> None:
    x = pixels(3000, side=4)
    y = np.arange(3000) % 2
    train = from_arrays(x, y)
    other = from_arrays(np.concatenate([x[5:12], pixels(5, seed=1, side=4)]), y[:12])
    lazy = from_dataset(
        TensorDataset(other.inputs.tensor, torch.from_numpy(y[:12])), max_bytes_in_memory=0
    )  # type: ignore[attr-defined]
    assert shared_inputs(train, other) == 7
    assert shared_inputs(train, lazy) == 7
    assert shared_inputs(train, from_arrays(x.astype(np.float32), y)) == 0
    assert shared_inputs(train, from_arrays(x.view(np.int8), y)) == 0  # equal bytes, other numbers
    assert shared_inputs(train, from_arrays(x.reshape(3000, 3, 2, 8), y)) == 0


def test_copies_of_training_inputs_are_left_out_of_a_held_out_set_unless_inputs_repeat() -> None:
    x, y = pixels(60, side=4), np.arange(60) % 2
    train, other = from_arrays(x[:40], y[:40]), from_arrays(x[30:], y[30:])
    rest, n_shared = without_copies(train, other)
    assert (rest.ids.tolist(), n_shared) == (list(range(10, 30)), 10)
    assert without_copies(train, rest) == (rest, 0)
    with pytest.raises(DataError, match=r"all 10 inputs are training inputs.*\n.*leave the held-"):
        without_copies(train, from_arrays(x[30:40], y[30:40]))
    coarse = from_arrays(np.repeat(x[:20], 2, axis=0), y[:40])
    assert without_copies(coarse, train) == (train, 20)


# --- views --------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_crop(x: torch.Tensor, pad: int) -> list[set[bytes]]:
    """All crops of each image, by reflection padding."""
    padded = torch.nn.functional.pad(x, (pad,) * 4, mode="reflect")
    h, w = x.shape[2:]
    offsets = [(i, j) for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return [{p[:, i : i + h, j : j + w].numpy().tobytes() for i, j in offsets} for p in padded]


@pytest.mark.parametrize(("side", "pad"), [(8, 1), (15, 1), (16, 2), (28, 2), (32, 4), (40, 4)])
def test_crops_are_crops_of_the_padded_image(side: int, pad: int) -> None:
    x = torch.rand(40, 2, side, side)
    crops = [c.numpy().tobytes() for c in view("crop")(x, generator())]  # type: ignore[misc]
    assert all(c in allowed for c, allowed in zip(crops, slow_crop(x, pad), strict=True))
    moved = view("crop")(x[:1].expand(400, -1, -1, -1), generator())  # type: ignore[misc]
    seen = {c.numpy().tobytes() for c in moved}
    assert len(seen) > 0.9 * (2 * pad + 1) ** 2


def test_flips_mirror_about_half_of_the_images() -> None:
    x = torch.rand(400, 1, 3, 4)
    flipped = view("flip")(x, generator())  # type: ignore[misc]
    same = (flipped == x).flatten(1).all(1)
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250


@pytest.mark.parametrize("name", ["none", "crop", "flip", "crop-flip"])
def test_views_are_deterministic_and_leave_the_images_alone(name: str) -> None:
    function = views.get(name)
    x = torch.rand(16, 3, 9, 12)
    before, state = x.clone(), torch.random.get_rng_state()
    first, again = function(x, generator(1)), function(x, generator(1))
    assert torch.equal(first, again)
    assert first.shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    if name != "none":
        assert not torch.equal(first, function(x, generator(2)))
        with pytest.raises(DataError, match="view is for images"):
            function(torch.zeros(2, 3), generator())
        one_pixel = torch.rand(2, 3, 1, 1)
        assert torch.equal(function(one_pixel, generator()), one_pixel)


def test_the_view_none_is_none_and_unknown_views_are_errors() -> None:
    assert view("none") is None
    with pytest.raises(ConfigError, match="did you mean 'crop-flip'"):
        view("crop-flips")


@pytest.mark.parametrize("name", ["arrays", "audio", "labels", "sources", "views"])
def test_the_examples_in_the_docstrings_run(name: str) -> None:
    module = importlib.import_module(f"expunge.data.{name}")
    found = doctest.testmod(module, extraglobs={"np": np, "torch": torch, "Path": Path})
    assert found.attempted > 0
    assert found.failed == 0
