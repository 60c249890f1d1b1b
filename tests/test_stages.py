"""Rules of the stages that the repair as a whole does not show."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from expunge import stages
from expunge.data import from_arrays
from expunge.errors import ConfigError, DataError, PruneError
from expunge.recipes import resolve
from expunge.records import Partition, PrunePlan
from expunge.training.optimisation import TuneConfig
from oracles_digits import clean, memorised
from oracles_training import split_of


def with_bad_inputs(count: int, n: int = 400) -> Partition:
    p = np.where(np.arange(n) < count, 0.9, 0.0)
    y = np.arange(n) % 10
    return Partition(np.arange(n), y, p, 0 * p, p, y, np.ones(n), 0.5, (0.0, 0.0, 0.1))


@pytest.mark.parametrize(("count", "is_scored"), [(0, False), (3, False), (4, True), (40, True)])
def test_held_out_inputs_are_scored_from_one_bad_training_input_in_a_hundred(
    monkeypatch, count, is_scored
):
    calls, score = [], stages.score

    def spy(*args, **settings):
        calls.append(settings["detectors"])
        return score(*args, **settings)

    monkeypatch.setattr(stages, "score", spy)
    found = stages.clean_input_probability(memorised(), clean(60), with_bad_inputs(count))
    assert bool(calls) == is_scored
    assert found.shape == (60,)
    if not is_scored:
        assert (found == 1).all()
    else:
        assert calls == [("local_uncertainty", "feature_clusters")]


@pytest.mark.parametrize(
    "call",
    [
        lambda m, data, split: stages.partition(split),
        lambda m, data, split: stages.rank(m, data, {"flagged": []}),
        lambda m, data, split: stages.tune(m, data, {"epochs": 1}),
        lambda m, data, split: stages.plan(split, fraction=0.1),
        lambda m, data, split: stages.prune(m, stages.rank(m, data, split), data),
    ],
)
def test_a_record_of_another_stage_is_refused(call):
    data = clean(60)
    split = split_of(data, np.linspace(0, 0.9, 60))
    with pytest.raises(ConfigError, match=r"must be a \w+, not \w+\n.*settings as keywords"):
        call(memorised(), data, split)


@pytest.mark.parametrize(
    "call",
    [
        stages.rank,
        lambda m, data, split: stages.tune(m, data, split, epochs=1),
        lambda m, data, split: stages.edit(m, data, split, method="ridge-head"),
    ],
)
def test_a_partition_of_other_data_with_the_same_ids_is_refused(call):
    data = clean(60)
    split = split_of(data, np.linspace(0, 0.9, 60))
    x, y = data.inputs.batch(np.arange(60)), (data.labels + 1) % 10
    other = from_arrays(x, y, ids=data.ids)
    with pytest.raises(DataError, match=r"other labels for 60 of 60 samples: ids 50.*\n.*fix: "):
        call(memorised(), other, split)


def test_layers_that_are_parametrised_are_ranked_and_cut_as_the_error_says():
    model, data = memorised(), clean(60)
    for layer in (model[1], model[3]):
        parametrizations.weight_norm(layer)
    split = split_of(data, np.linspace(0, 0.9, 60))
    ranking = stages.rank(model, data, split)
    plan = stages.plan(ranking, fraction=0.1)
    assert "96 units of {'1': 48, '3': 48}, first 3[" in repr(ranking)
    with pytest.raises(PruneError, match=r"re-parametrised \(.*remove_parametrizations makes it"):
        stages.prune(model, plan, data)
    for layer in (model[1], model[3]):
        parametrize.remove_parametrizations(layer, "weight")
    cut = stages.prune(model, plan, data)
    assert len(cut[1].weight) + len(cut[3].weight) == 96 - plan.granted


@pytest.mark.parametrize(
    ("optimizer", "memorised_labels", "epochs"),
    [("auto", False, 12), ("auto", True, 6), ("adamw", False, 3), ("adamw", True, 6)],
)
def test_epochs_that_are_left_open_fit_the_model(optimizer, memorised_labels, epochs):
    data = clean(40)
    split = replace(split_of(data, np.full(40, 0.6)), memorised=memorised_labels)
    config = TuneConfig(optimizer=optimizer)
    assert stages.with_default_epochs(config, memorised(), split).epochs == epochs
    given = replace(config, epochs=1)
    assert stages.with_default_epochs(given, memorised(), split) is given


@pytest.mark.parametrize(("optimizer", "epochs"), [("auto", (3, 30)), ("adamw", (3, 8))])
def test_rounds_that_are_left_open_fit_the_optimiser(optimizer, epochs):
    recipe, config = resolve("semi"), TuneConfig(optimizer=optimizer)
    assert stages.with_default_rounds(recipe.rounds, config, memorised()).epochs == epochs
    given = replace(recipe.rounds, epochs=(1, 2))
    assert stages.with_default_rounds(given, config, memorised()) is given


def test_units_that_cannot_be_cut_are_masked_as_the_error_says():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(16, 2)
    )
    data, plan = (torch.rand(8, 1, 4, 4), np.arange(8) % 2), PrunePlan({"0": (1,)}, requested=1)
    with pytest.raises(PruneError, match=r'fix: .*mode = "mask"'):
        stages.prune(model, plan, data)
    masked = stages.prune(model, plan, data, mode="mask")
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        silenced[0].weight[1], silenced[0].bias[1] = 0.0, 0.0
    torch.testing.assert_close(masked(data[0]), silenced(data[0]))
    assert not torch.allclose(model(data[0]), silenced(data[0]))
