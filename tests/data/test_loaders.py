"""Single samples behind collate functions and samplers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, WeightedRandomSampler

from expunge.data import as_samples, from_dataset
from expunge.errors import DataError

X = np.arange(24, dtype=np.float32).reshape(6, 4)
ITEMS = [{"word": "abcd"[i % 4], "values": X[i].tolist(), "kind": "uvw"[i % 3]} for i in range(6)]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Raw items make no batch by themselves: their kinds become indices, their values a tensor."""
    return {
        "x": torch.tensor([item["values"][:3] for item in items]),
        "y": torch.tensor(["uvw".index(item["kind"]) for item in items]),
        "words": [item["word"] for item in items],
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: as_samples(DataLoader(ITEMS, 4, collate_fn=collate)),
        lambda: from_dataset(ITEMS, collate_fn=collate),
        lambda: from_dataset(DataLoader(ITEMS, 4), collate_fn=collate),
        lambda: from_dataset(
            ITEMS, collate_fn=lambda items: (collate(items)["x"], collate(items)["y"])
        ),
        lambda: from_dataset([(X[i, :3], i % 3) for i in range(6)], collate_fn=list),
    ],
)
def test_a_collate_function_makes_the_items(make: Any) -> None:
    samples = make()
    assert samples.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(samples.batch(np.arange(6)), torch.from_numpy(X[:, :3]))


def test_what_a_collate_function_does_not_divide_is_named() -> None:
    with pytest.raises(DataError, match=r"item 0: ValueError: .* a batch of shape \(2, 4\) of one"):
        from_dataset(ITEMS, collate_fn=lambda items: {"x": torch.zeros(2, 4), "y": 0})


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({"sampler": [3, 1, 2]}, [3, 1, 2]),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([4, 0]), 2, False)}, [4, 0]),
        ({"sampler": WeightedRandomSampler([1.0] * 6, 3)}, [0, 1, 2, 3, 4, 5]),
        ({"sampler": [0, 0, 1, 2, 3, 4, 5]}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_sampler_of_a_part_of_the_data_gives_that_part(settings, positions) -> None:
    data = [(X[i], i % 3) for i in range(6)]
    samples = as_samples(DataLoader(data, **settings))  # type: ignore[arg-type]
    assert torch.equal(samples.batch(np.arange(len(samples))), torch.from_numpy(X[positions]))
