"""What every recipe, and so every control, must keep to."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from expunge import pipeline
from expunge.errors import ExpungeError
from expunge.recipes import Recipe, recipes, resolve
from expunge.records import RepairResult
from oracles_digits import QUICK, clean, memorised, network, noisy

NAMES = recipes.names()
pytestmark = pytest.mark.usefixtures("few_trees", "detected_once")


def carried_out(name: str, **changes: object) -> RepairResult:
    settings = {"recipe": name, "overrides": QUICK, "baselines": (), "seed": 0}
    return pipeline.repair(memorised(), noisy(), clean(), **{**settings, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_it_works_as_the_recipe_of_a_repair_and_is_deterministic(name):
    result, again = carried_out(name), carried_out(name)
    assert result.recipe == name
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    for x, y in zip(result.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(x, y)
    assert 0 <= result.after.accuracy.value <= 1
    assert result.size_after.parameters <= result.size_before.parameters
    assert (result.plan is not None) == resolve(name, QUICK).prune.is_enabled
    assert result.plan is None or result.plan.granted > 0


def test_as_baselines_all_start_from_the_same_partition_and_cut_as_much():
    result = carried_out("default", baselines=tuple(NAMES))
    alone = carried_out("default")
    assert np.array_equal(result.partition.p_noisy, alone.partition.p_noisy)
    assert set(result.baselines) == set(NAMES) - {"default"}  # that is the repair itself
    for name in result.baselines:
        control = result.baselines[name]
        assert 0 <= control.evaluation.accuracy.value <= 1
        assert control.gain.low <= control.gain.value <= control.gain.high
        made = recipes.get(name)(resolve("default", QUICK))
        # rlap cuts another layer by another fraction, and an edit replaces the head.
        if name != "rlap" and not made.edit.method:
            cuts = made.prune.is_enabled
            assert control.size == (result.size_after if cuts else result.size_before), name


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_function_of_the_recipe_alone(name):
    given = Recipe()
    before = asdict(given)
    assert recipes.get(name)(given) == recipes.get(name)(given)
    assert asdict(given) == before


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_network_on_clean_data_gives_a_result_or_one_of_our_errors(name):
    try:
        result = pipeline.repair(network(), clean(120), recipe=name, overrides=QUICK, baselines=())
    except ExpungeError:
        return
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
