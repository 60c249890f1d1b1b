"""Items of data sets in the forms that users have."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from expunge.data import as_samples, from_arrays, from_dataset
from expunge.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
Y = [0, 1, 2, 0, 1, 2]
EXPECTED = from_arrays(X, Y)


def items(make: Any) -> list[Any]:
    return [make(i) for i in range(6)]


class Animal(IntEnum):
    CAT, DOG, COW = 0, 1, 2


class Digit(StrEnum):
    ZERO, ONE, TWO = "0", "1", "2"


def picture(i: int) -> Image.Image:
    return Image.fromarray(X[i].transpose(1, 2, 0))


@pytest.mark.parametrize(
    "make",
    [
        lambda i: (X[i], Y[i], i),
        lambda i: (X[i], Y[i], f"file{i}.png"),
        lambda i: (X[i], np.array([Y[i]]), torch.tensor(i)),
        lambda i: (f"id{i}", X[i], Y[i]),
        lambda i: {"img": picture(i), "label": Y[i]},
        lambda i: {"img": X[i], "label": Y[i], "name": "x"},
        lambda i: {"picture": torch.from_numpy(X[i]), "target": Y[i]},
        lambda i: {"x": X[i].tolist(), "y": float(Y[i])},
        lambda i: [picture(i), str(Y[i])],
        lambda i: (X[i], Animal(Y[i])),
        lambda i: (X[i], Digit(str(Y[i]))),
    ],
)
def test_inputs_and_labels_are_found_in_items_of_every_form(make: Any) -> None:
    samples = from_dataset(items(make))
    assert samples.labels.tolist() == Y
    assert samples.classes == ("0", "1", "2")
    batch = samples.inputs.batch(np.arange(6))
    assert isinstance(batch, Tensor)
    assert torch.equal(batch.to(torch.uint8), torch.from_numpy(X))


def test_an_index_identifies_samples_of_its_own_data_set_only() -> None:
    indexed = from_dataset(Subset(items(lambda i: (X[i], Y[i], i)), [5, 3, 1]))
    assert indexed.ids.tolist() == [5, 3, 1]
    assert not indexed.has_explicit_ids
    assert from_dataset(items(lambda i: (f"id{i}", X[i], Y[i]))).has_explicit_ids


def test_the_parts_of_an_item_can_be_named() -> None:
    table = items(
        lambda i: {"key": 10 + i, "a": X[i], "b": X[i, :1], "coarse_label": 0, "fine_label": Y[i]}
    )
    one = from_dataset(table, input="a", label="fine_label", id="key")
    assert torch.equal(one.inputs.batch(np.arange(6)), EXPECTED.inputs.batch(np.arange(6)))
    assert (one.labels.tolist(), one.ids.tolist()) == (Y, list(range(10, 16)))
    two = from_dataset(table, input=["a", "b"], label="fine_label")
    assert set(two.batch(np.arange(2))) == {"a", "b"}
    rest = from_dataset(
        [{k: row[k] for k in ("a", "fine_label")} for row in table], label="fine_label"
    )
    assert torch.equal(rest.inputs.batch(np.arange(6)), EXPECTED.inputs.batch(np.arange(6)))
    triples = from_dataset(items(lambda i: (Y[i], 0.5, X[i])), input=2, label=0)
    assert triples.labels.tolist() == Y
    for wrong, message in (
        ({"label": "fine"}, "there is no 'fine' in a dict.*did you mean 'fine_label'"),
        ({"input": "a", "label": "y"}, "there is no 'y'"),
        ({}, "expected one label.*none among key, a, b, coarse_label, fine_label.*label=…"),
    ):
        with pytest.raises(DataError, match=f"(?s){message}"):
            from_dataset(table, **wrong)
    with pytest.raises(DataError, match=r"(?s)no '7' in a tuple.*positions from 0 to 2"):
        from_dataset(items(lambda i: (Y[i], 0.5, X[i])), input=7)


def test_a_pair_may_hold_inputs_by_name() -> None:
    x = {"ids": torch.arange(24).reshape(6, 4), "mask": torch.ones(6, 4)}
    paired = from_dataset([({k: v[i] for k, v in x.items()}, Y[i]) for i in range(6)])
    for samples in (paired, as_samples((x, Y)), from_arrays(x, Y)):
        batch = samples.batch(np.array([4, 2]))
        assert torch.equal(batch["ids"], x["ids"][[4, 2]])
        assert samples.labels.tolist() == Y


def test_a_data_loader_counts_as_its_data_set() -> None:
    data = TensorDataset(torch.from_numpy(X), torch.tensor(Y))
    for loader in (DataLoader(data, 4), DataLoader(data, 4, shuffle=True, drop_last=True)):
        assert as_samples(loader).fingerprint() == EXPECTED.fingerprint()
        assert from_dataset(loader, view="flip").view is not None
    part = as_samples(DataLoader(data, 2, sampler=SubsetRandomSampler([4, 1, 0])))
    assert part.labels.tolist() == [1, 1, 0]
    first, _ = random_split(data, [4, 2], generator=torch.Generator().manual_seed(0))
    assert len(as_samples(DataLoader(first, 2))) == 4

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(data)

    loader = DataLoader(Stream(), 2)
    with pytest.raises(DataError, match=r"without items by position.*\n.*list\(loader.dataset\)"):
        as_samples(loader)
    assert as_samples(list(loader.dataset)).fingerprint() == EXPECTED.fingerprint()


class Odd(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Any:
        return self.item


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((X[0], 1, 0.5), "third element is a float: expected an index"),
        ((X[0], 1, {"path": "a.png"}), "third element is a dict.*\n.*input=0 and label=1"),
        ((1, X[0]), r"an int before .*: expected \(x, y\)\n.*input=1 and label=0"),
        ((torch.rand(4, 3, 8, 8), torch.arange(4)), "if these items are batches, give the data"),
        ((X[0], np.eye(3)[0]), r"one-hot vector y.argmax\(\).*several labels are not supported"),
        ((X[0], [0, 2]), "the label is a list.*\n.*several labels are not supported"),
        ((X[0].transpose(1, 2, 0), 1), r"looks like \[H, W, C\].*\n.*transpose\(2, 0, 1\)"),
        (({}, 1), "the input is an empty dictionary"),
        ((X[0], {"a": 1}), r"the label is a dict.*\n.*give one of its values: a"),
        (None, "a NoneType: expected .x, y."),
        (SimpleNamespace(x=X[0], y=1), "(?s)a SimpleNamespace: .*one of these forms$"),
        ((X[0], 1, 0, "a.png"), "a tuple: expected .*\n.*name input=… and label=…"),
        (pd.DataFrame({"x": [X[0]], "y": [1]}), r"a DataFrame .*\n.*with_format\(None\)"),
    ],
)
def test_items_that_do_not_fit_lead_to_ones_that_do(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_dataset(Odd(item))


def test_of_several_inputs_the_one_of_another_kind_is_named() -> None:
    item = {"words": 3, "lines": 0.5, "desk": "sport", "label": 1}
    with pytest.raises(DataError, match="numbers under 'words', 'lines', a str under 'desk': exp"):
        from_dataset(Odd(item), input=("words", "lines", "desk"))
    with pytest.raises(DataError, match=r"there is no 'line' in a dict\n.*did you mean 'lines'"):
        from_dataset(Odd(item), input=("words", "line"))
