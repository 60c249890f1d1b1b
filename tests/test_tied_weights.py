"""Models whose layers share weights: embeddings and head of a language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.errors import ModelError
from expunge.models.architecture import tied_weights

CLASSES, VOCABULARY, SIZE = 3, 20, 8
OVERRIDES = {
    "tune": {"epochs": 1},
    "prune": {"fraction": 0.25},
    "score": {"views": 0},
    "min_flagged_fraction": 0.0,
}


class LanguageModel(nn.Module):
    """The logits of the first tokens are those of the classes; the head is the embedding."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.embedding = nn.Embedding(VOCABULARY, SIZE)
        self.wide, self.narrow = nn.Linear(SIZE, 12), nn.Linear(12, SIZE)
        self.head = nn.Linear(SIZE, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids).mean(dim=1)
        z = self.head(self.narrow(torch.relu(self.wide(x))))
        return z if self.classes == VOCABULARY else z[:, : self.classes]


def data(classes: int = CLASSES) -> expunge.Samples:
    rng = np.random.default_rng(0)
    tokens, y = rng.integers(5, VOCABULARY, (60, 4)), rng.integers(0, CLASSES, 60)
    tokens[:, 0] = y
    given = np.where(rng.random(60) < 0.2, (y + 1) % CLASSES, y)
    return expunge.from_arrays(
        {"input_ids": tokens}, given, classes=[str(k) for k in range(classes)]
    )


def model(classes: int = CLASSES) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(classes)


@pytest.mark.usefixtures("few_trees")
def test_tied_weights_stay_tied_in_a_repair_its_folder_and_its_export(tmp_path: Path) -> None:
    given, samples = model(), data()
    result, again = (
        expunge.repair(given, samples, overrides=OVERRIDES, baselines=(), out=tmp_path / "run")
        for _ in range(2)  # the second reads what the first wrote
    )
    exported = expunge.export_model(
        result.model, samples, tmp_path / "out", constructor=LanguageModel, plan=result.plan
    )
    for changed in (result.model, again.model, exported.model):
        assert list(tied_weights(changed).values()) == [["embedding.weight", "head.weight"]]
        assert torch.equal(changed.head.weight, result.model.head.weight)
    assert not torch.equal(result.model.head.weight, given.head.weight)
    assert result.plan is not None
    assert {*result.plan.units} == {"wide"}, "the width of the tied weights stays"
    assert "weights are tied: embedding.weight = head.weight" in str(result)


def test_a_tied_head_is_tuned_where_only_the_head_is_tuned() -> None:
    given, samples = model(VOCABULARY), data(VOCABULARY)
    tuned = expunge.tune(given, samples, targets="all", scope="head", epochs=1)
    assert not torch.equal(tuned.embedding.weight, given.embedding.weight)
    assert tuned.embedding.weight is tuned.head.weight
    assert torch.equal(tuned.wide.weight, given.wide.weight)


def test_a_model_without_a_head_has_none_to_tune() -> None:
    with pytest.raises(ModelError, match="no linear layer makes the logits, so there is no head"):
        expunge.tune(model(), data(), targets="all", scope="head", epochs=1)
