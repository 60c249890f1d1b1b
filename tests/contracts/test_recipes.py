"""What every recipe, and so every control, must keep to."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from expunge import pipeline
from expunge.errors import ExpungeError
from expunge.recipes import Recipe, recipes, resolve
from expunge.tables import RepairResult
from oracles_digits import QUICK, clean, memorised, network, noisy

NAMES = recipes.names()


def carried_out(name: str, **changes: object) -> RepairResult:
    settings = {"recipe": name, "overrides": QUICK, "controls": (), "seed": 0}
    return pipeline.repair(memorised(), noisy(), clean(), **{**settings, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_it_works_as_the_recipe_of_a_repair(name):
    result = carried_out(name)
    assert result.recipe == name
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    assert 0 <= result.after.accuracy.value <= 1
    assert np.isfinite(result.partition.p_noisy).all()
    assert result.size_after.parameters <= result.size_before.parameters
    cuts = result.config["prune"]["fraction"] or result.config["prune"]["count"]
    assert (result.plan is not None) == bool(cuts)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_deterministic_and_leaves_the_model_as_it_was(name):
    model = memorised()
    results = [
        pipeline.repair(model, noisy(200), recipe=name, overrides=QUICK, seed=3) for _ in range(2)
    ]
    for x, y in zip(*(r.model.parameters() for r in results), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(model.parameters(), memorised().parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_as_a_control_it_starts_from_the_same_partition(name):
    result = carried_out("default", controls=(name,))
    control = result.controls[name]
    assert 0 <= control.evaluation.accuracy.value <= 1
    assert control.gain.low <= control.gain.value <= control.gain.high
    made = recipes.get(name)(resolve("default", QUICK))
    if made.prune.cuts and name != "rlap":  # rlap cuts another layer by another fraction
        assert control.size == result.size_after


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_function_of_the_recipe_alone(name):
    given = Recipe()
    before = asdict(given)
    assert recipes.get(name)(given) == recipes.get(name)(given)
    assert asdict(given) == before


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_network_on_clean_data_gives_a_result_or_one_of_our_errors(name):
    try:
        result = pipeline.repair(network(), clean(120), recipe=name, overrides=QUICK)
    except ExpungeError as error:
        assert str(error)
    else:
        assert all(torch.isfinite(p).all() for p in result.model.parameters())
