"""What a label is, name or index, is one rule for every source and set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from expunge.data import DataConfig, LabelFile, Samples, as_samples, from_arrays, from_dataset, read
from expunge.data.classes import encode_labels, fix_class_count, suspicious_classes
from expunge.data.label_files import correct_labels
from expunge.errors import DataError

TWELVE = [str(i) for i in range(12)]
AS_TEXT = sorted(TWELVE)  # 0, 1, 10, 11, 2, …: the order of class folders


def named(samples: Samples) -> list[str]:
    """The class name of every sample."""
    return [samples.classes[i] for i in samples.labels]


def test_accents_of_one_and_of_two_characters_are_one_class():
    labels = np.array([" caf\u00e9", "cafe\u0301", "tea"])
    found = encode_labels(labels, np.arange(3), where="x")
    assert (found[0].tolist(), found[1]) == ([0, 0, 1], ("caf\u00e9", "tea"))
    names = ["tea", "cafe\u0301"]
    assert encode_labels(labels, np.arange(3), classes=names, where="x")[0].tolist() == [1, 1, 0]


def folders(root: Path, names: list[str]) -> Path:
    """One image in each class folder."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / name / "a.png")
    return root


def here(path: Path, **settings: Any) -> Samples:
    return read(DataConfig(path.name, **settings), folder=path.parent)


def write(kind: str, folder: Path, columns: dict[str, list[Any]]) -> Path:
    """A file of this kind with these columns; every row needs an image of the folder."""
    path = folder / f"d.{kind}"
    n = len(next(iter(columns.values())))
    if kind == "npz":
        np.savez(path, x=np.zeros((n, 2), dtype=np.float32), y=np.array(columns["label"]))
    elif kind == "csv":
        pd.DataFrame(columns).to_csv(path, index=False)
    elif kind == "jsonl":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("text", [True, False])
def test_labels_of_a_file_for_numbered_folders_are_names_or_refused(
    kind: str, text: bool, tmp_path: Path
) -> None:
    root = folders(tmp_path / "pictures", TWELVE)
    given = [str((i + 1) % 12) if text else (i + 1) % 12 for i in range(12)]
    file = write(kind, tmp_path, {"id": [f"{n}/a.png" for n in TWELVE], "noisy": given})
    settings = {"labels": LabelFile(str(file), "noisy")}
    if not text and kind != "csv":  # numbers may be the indices of torchvision's ImageFolder
        with pytest.raises(DataError, match=r"the label 2 is the class '2' or the class of index"):
            here(root, **settings)
        return
    samples = here(root, **settings)
    by_id = dict(zip(samples.ids.tolist(), named(samples), strict=True))
    assert by_id == {f"{n}/a.png": str((int(n) + 1) % 12) for n in TWELVE}
    assert samples.classes == tuple(AS_TEXT)


def test_a_table_for_validation_is_read_with_the_names_of_numbered_folders(tmp_path: Path) -> None:
    train = here(folders(tmp_path / "pictures", TWELVE))
    table = {"image": [f"pictures/{n}/a.png" for n in TWELVE], "label": [int(n) for n in TWELVE]}
    validation = read(
        DataConfig(write("csv", tmp_path, table).name), folder=tmp_path, classes=train.classes
    )
    assert named(validation) == TWELVE
    with pytest.raises(DataError, match="the class '2' or the class of index 2, '10'"):
        as_samples((np.zeros((12, 2)), np.arange(12)), classes=train.classes)
    by_text = as_samples((np.zeros((12, 2)), np.arange(12).astype(str)), classes=train.classes)
    assert named(by_text) == TWELVE


def test_classes_of_a_validation_set_state_what_its_indices_mean(tmp_path: Path) -> None:
    path = write("npz", tmp_path, {"label": [0, 1, 2]})
    config = DataConfig(path.name, classes=("0", "1", "10"))
    samples = read(config, folder=tmp_path, classes=("0", "1", "2", "10"))
    assert named(samples) == ["0", "1", "10"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "npz"])
@pytest.mark.parametrize("form", ["int", "float", "text", "float text"])
def test_numbers_in_any_form_are_the_same_labels(kind: str, form: str, tmp_path: Path) -> None:
    order = [11, 2, 0, 10, 5, 1, 3, 4, 6, 7, 8, 9]
    make = {"int": int, "float": float, "text": str, "float text": lambda k: str(float(k))}[form]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    columns: dict[str, list[Any]] = {"label": [make(k) for k in order]}
    if kind == "parquet":
        columns["image"] = [[0.0, 1.0]] * 12
    else:
        columns["image"] = ["a.png"] * 12
    samples = here(write(kind, tmp_path, columns))
    assert samples.labels.tolist() == order
    assert samples.classes == tuple(TWELVE)


def test_space_around_a_label_does_not_make_a_class(tmp_path: Path) -> None:
    assert from_arrays(np.zeros((3, 2)), ["cat", " cat", "dog "]).classes == ("cat", "dog")
    assert from_arrays(np.zeros((3, 2)), ["1", " 0", "1 "]).labels.tolist() == [1, 0, 1]


def test_labels_from_1_are_names_where_the_classes_are_called_so() -> None:
    names = [str(i) for i in range(1, 11)]
    x, y = np.zeros((10, 2)), np.arange(1, 11)
    assert from_arrays(x, y, classes=names).labels.tolist() == list(range(10))
    assert from_arrays(x, y.astype(str), classes=names).labels.tolist() == list(range(10))
    assert from_arrays(x, y - 1, classes=names).labels.tolist() == list(range(10))
    with pytest.raises(DataError, match=r"the label 1 is the class '1' or the class of index 1"):
        from_arrays(x[1:], y[:-1], classes=names)
    with pytest.raises(DataError, match="labels outside 0…9: 10, 11"):
        from_arrays(x, y + 1, classes=names)


def test_zero_padded_numbers_are_names() -> None:
    samples = from_arrays(np.zeros((3, 2)), ["02", "10", "01"])
    assert samples.classes == ("01", "02", "10")
    with pytest.raises(DataError, match="labels that are no class: 2 "):
        as_samples((np.zeros((2, 2)), ["2", "10"]), classes=samples.classes)


class ImageFolder(Dataset[Any]):
    """As torchvision's: classes in the order of their text, targets are indices."""

    classes = AS_TEXT

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return torch.zeros(2), i


def test_indices_of_a_data_set_that_states_names_are_indices() -> None:
    assert named(from_dataset(ImageFolder())) == AS_TEXT
    in_order = from_dataset(ImageFolder(), classes=TWELVE)
    assert in_order.classes == tuple(TWELVE)
    assert named(in_order) == AS_TEXT


def test_truth_values_are_false_and_true_wherever_they_are() -> None:
    x, y = np.zeros((3, 2)), np.array([True, False, True])
    for given in (y, y.tolist(), torch.from_numpy(y), pd.Series(y)):
        assert from_arrays(x, given).labels.tolist() == [1, 0, 1]
        assert from_arrays(x, given).classes == ("False", "True")
    assert from_arrays(x, y, classes=["good", "bad"]).labels.tolist() == [1, 0, 1]
    assert named(from_arrays(x, y, classes=["true", "false"])) == ["true", "false", "true"]
    assert as_samples((x, y), classes=("0", "1")).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("classes", [("0", "1", "2"), ("ant", "bee", "cat"), ("c", "b", "a")])
def test_sets_that_lack_a_class_have_the_classes_of_the_training_set(
    classes: tuple[str, ...],
) -> None:
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    text = np.array(classes)[y]
    for data in ((x, text), from_arrays(x, text), list(zip(torch.zeros(4, 2), text, strict=True))):
        samples = as_samples(data, classes=classes)
        assert samples.classes == classes
        assert named(samples) == text.tolist()


def test_external_probabilities_follow_their_classes() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    samples = Samples(
        np.arange(2), np.array([0, 1]), ("b", "a"), from_arrays(np.eye(2), [0, 1]).inputs,
        external_probs={"folds": probs},
    )  # fmt: skip
    moved = samples.with_classes(["a", "b", "c"])
    expected = np.array([[0.1, 0.9, 0], [0.8, 0.2, 0]], dtype=np.float32)
    np.testing.assert_array_equal(moved.external_probs["folds"], expected)
    assert named(moved) == ["b", "a"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0.5", "1.0"], "got fractions such as 0.5"),
        (["0", "nan", "1"], r"missing values \(NaN or null\) in labels: ids 1"),
        (["0", "1", "cat"], r"labels that are no class: cat \(ids 2\); the classes are 0, 1"),
        (["0", "7"], r"labels outside 0…1: 7"),
    ],
)
def test_text_that_is_no_label_is_named(values: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_samples((np.zeros((len(values), 2)), values), classes=("0", "1"))


def test_missing_marks_are_names_where_a_class_is_called_so() -> None:
    labels, names = encode_labels(np.array(["None", "scratch"]), np.arange(2), where="x")
    assert (labels.tolist(), names) == ([0, 1], ("None", "scratch"))


def test_some_labels_can_be_corrected(tmp_path: Path) -> None:
    samples = from_arrays(
        np.zeros((4, 2)), [0, 1, 0, 1], ids=["a", "b", "c", "d"], classes=["cat", "dog"]
    )
    (tmp_path / "fix.csv").write_text("id,label\nd,cat\nz,dog\na,dog\n")
    fixed = correct_labels(samples, LabelFile("fix.csv", "label"), folder=tmp_path)
    assert named(fixed) == ["dog", "dog", "cat", "cat"]
    assert named(samples) == ["cat", "dog", "cat", "dog"]
    (tmp_path / "fix.csv").write_text("id,label\ny,cat\nz,dog\n")
    with pytest.raises(DataError, match="corrects none of the samples: its ids are y, z"):
        correct_labels(samples, LabelFile("fix.csv", "label"), folder=tmp_path)
    (tmp_path / "fix.csv").write_text("id,label\na,cow\n")
    with pytest.raises(DataError, match=r"labels that are no class: cow \(ids a\)"):
        correct_labels(samples, LabelFile("fix.csv", "label"), folder=tmp_path)


def test_the_fix_for_another_number_of_outputs_is_the_one_that_works() -> None:
    y = np.arange(1, 11)
    assert "the labels start at 1" in fix_class_count(y, TWELVE[:11], 10)
    assert "name all 12 classes" in fix_class_count(y - 1, TWELVE[:10], 12)
    assert "a model with 10 outputs" in fix_class_count(y - 1, TWELVE[:10], 8)
    assert "the labels from 8 on are no class of the model" in fix_class_count(
        y - 1, TWELVE[:10], 8
    )
    assert "classes=['1', '3']" in fix_class_count(np.array([1, 3]), TWELVE[:4], 2)
    few = np.array([0, 1, 3])
    named = ("cat", "cow", "dog", "emu")
    assert "no sample has the class dog: take it out" in fix_class_count(few, named, 3)
    assert "'Cat' and 'cat' differ in case" in fix_class_count(few, ("cat", "Cat", "dog", "emu"), 3)
    assert "'nan' may stand for missing" in fix_class_count(few, ("cat", "dog", "emu", "nan"), 3)
    unused = fix_class_count(few, ("cat", "dog", "none", "emu"), 3)
    assert unused == "no sample has the class none: take it out of the class names"


@pytest.mark.parametrize("other", ["CAFÉ", "cafe\u0301", "caf\u200bé", "ｃafé"])
def test_classes_that_look_alike_are_named(other: str) -> None:
    (found,) = suspicious_classes(["café", other, "tea"])
    assert ascii("café") in found
    assert ascii(other) in found
    assert not suspicious_classes(["café", "cafes", "tea"])


def test_classes_that_join_others_are_named() -> None:
    (found,) = suspicious_classes(["cat", "dog", "cat; dog", "bed, bath"])
    assert found.startswith("classes that join others: cat; dog; several labels")


@pytest.mark.parametrize("gap", [-1, -100])
def test_negative_labels_are_left_out(gap: int) -> None:
    with pytest.raises(DataError, match=rf"{gap} \(ids 1\); leave out samples without a label"):
        from_arrays(np.ones((3, 2), dtype=np.float32), [0, gap, 1])


X3 = np.ones((3, 2), dtype=np.float32)


@pytest.mark.parametrize(
    "classes",
    [
        np.array(["cat", "dog"]),
        pd.Index(["cat", "dog"]),
        {0: "cat", 1: "dog"},
        {"dog": 1, "cat": 0},
        ("cat", "dog"),
    ],
)
def test_class_names_of_every_kind_are_the_same(classes: Any) -> None:
    assert from_arrays(X3, [0, 1, 0], classes=classes).classes == ("cat", "dog")
    items = [(x, y) for x, y in zip(X3, [0, 1, 0], strict=True)]
    assert from_dataset(items, classes=classes).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "classes", ["ab", 2, {1: "cat", 2: "dog"}, {"cat": 0, "dog": [1]}, {"cat", "dog"}]
)
def test_what_is_no_list_of_class_names_is_refused(classes: Any) -> None:
    with pytest.raises(DataError, match=r"classes are .*, expected a list of names\n.*\['cat'"):
        from_arrays(X3, [0, 1, 0], classes=classes)


@pytest.mark.parametrize("number", [np.array([0.5]), torch.tensor([0.5]), 0.5, [0.5]])
def test_mean_and_std_may_be_arrays_and_numbers(number: Any) -> None:
    pixels = np.full((3, 1, 2, 2), 255, dtype=np.uint8)
    samples = from_arrays(pixels, [0, 1, 0], mean=number, std=number)
    assert samples.batch(np.arange(1)).flatten().tolist() == [1.0] * 4


def test_a_column_of_texts_as_labels_is_said_to_be_the_wrong_one() -> None:
    texts = np.array([f"{i} {'word ' * 30}" for i in range(9)])
    with pytest.raises(DataError, match=r"no class: 0 (word ){7}wor…, .*\n  fix: name the column"):
        encode_labels(texts, np.arange(9), classes=("a", "b"), where="data")
