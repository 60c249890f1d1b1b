"""The sets of a repair in one mapping."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import expunge
from expunge.data.splits import by_split
from expunge.errors import DataError

pytestmark = pytest.mark.usefixtures("few_trees")

TRAIN, SECOND, TEST, OTHER = ([(k, 0)] for k in range(4))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": TRAIN, "validation": SECOND, "test": TEST}, (TRAIN, TEST, SECOND)),
        ({"train": TRAIN, "test": TEST}, (TRAIN, TEST, None)),
        ({"train": TRAIN, "dev": SECOND}, (TRAIN, SECOND, None)),
        ({"train": TRAIN, "unsupervised": OTHER}, (TRAIN, None, None)),
        ({"train": TRAIN}, (TRAIN, None, None)),
    ],
)
def test_splits_have_the_roles_of_their_names(splits, expected) -> None:
    assert by_split(splits) == expected


def test_sets_that_are_given_take_the_place_of_splits() -> None:
    splits = {"train": TRAIN, "validation": SECOND, "test": TEST}
    assert by_split(splits, OTHER) == (TRAIN, OTHER, SECOND)
    assert by_split(splits, held_out=OTHER) == (TRAIN, TEST, OTHER)
    assert by_split({"train": TRAIN, "validation": SECOND}, held_out=OTHER) == (
        TRAIN,
        None,
        OTHER,
    )


def test_arrays_by_name_are_no_splits() -> None:
    for data in ({"a": np.eye(2)}, {"x": [1.0, 2.0], "y": [0, 1]}, {}, TRAIN, None):
        assert by_split(data) == (data, None, None)


def test_a_dataset_dict_is_repaired_as_it_is() -> None:
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)

    def split(n: int):
        x = rng.standard_normal((n, 4))
        y = (x[:, 0] > 0).astype(int).tolist()
        features = datasets.Features(
            {
                "x": datasets.Sequence(datasets.Value("float32")),
                "label": datasets.ClassLabel(names=["low", "high"]),
            }
        )
        return datasets.Dataset.from_dict({"x": x.tolist(), "label": y}, features=features)

    data = datasets.DatasetDict(train=split(60), validation=split(30), test=split(25))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    result = expunge.repair(model, data, baselines=(), overrides={"tune": {"epochs": 1}})
    assert result.classes == ("low", "high")
    assert len(result.partition.ids) == 60
    assert len(result.before.ids) == 25
    with pytest.raises(DataError, match=r"there is no split 'train' among test"):
        expunge.repair(model, {"test": data["test"]})
    with pytest.raises(DataError, match=r"fix: give one of its splits: data\['train'\]"):
        expunge.score(model, data)
