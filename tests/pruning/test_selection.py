"""The laws of turning a ranking and a budget into a plan."""

from __future__ import annotations

from decimal import Decimal
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import PruneError
from expunge.pruning.selection import pruners, random_units, top_effect
from expunge.records import Budget, NeuronRanking, PrunePlan


def ranking_of(
    effects: dict[str, list[float]], groups: dict[str, str] | None = None
) -> NeuronRanking:
    layer = [name for name, values in effects.items() for _ in values]
    unit = [u for values in effects.values() for u in range(len(values))]
    effect = [e for values in effects.values() for e in values]
    nothing = np.full(len(unit), np.nan)
    return NeuronRanking(layer, unit, effect, nothing, nothing, groups or {n: n for n in effects})


TWO = ranking_of({"a": [0.1, 0.9, 0.5, 0.2, 0.7], "b": [5.0, 1.0, 9.0, 3.0]})
COUPLED = ranking_of(
    {"a": [3.0, 0.0, 1.0, 0.0], "b": [0.0, 4.0, 1.0, 0.0], "c": [2.5, 0.3]},
    {"a": "a", "b": "a", "c": "c"},
)


def run(name: str, ranking: NeuronRanking, budget: Budget, seed: int = 0, **options) -> PrunePlan:
    return pruners.get(name)(ranking, budget, seed=seed, **options)


def test_the_units_with_the_largest_effect_go():
    plan = top_effect(TWO, Budget(fraction=0.5), seed=0)
    assert plan.units == {"a": (1, 4), "b": (0, 2)}
    assert (plan.requested, plan.granted, plan.reasons) == (4, 4, ())
    assert top_effect(TWO, Budget(count=1), seed=0).units == {"a": (1,), "b": (2,)}


def test_a_global_budget_compares_all_layers():
    plan = top_effect(TWO, Budget(count=4, scope="global"), seed=0)
    assert plan.units == {"a": (1,), "b": (0, 2, 3)}
    assert top_effect(TWO, Budget(fraction=0.25, scope="global"), seed=0).units == {"b": (0, 2)}


@pytest.mark.parametrize("n", [1, 3, 7, 10, 30, 100])
@pytest.mark.parametrize("percent", [0, 1, 7, 10, 29, 30, 57, 58, 70, 90])
def test_the_number_of_units_is_the_exact_floor(n, percent):
    ranking = ranking_of({"a": [float(i) for i in range(n)]})
    wanted = floor(Decimal(percent) / 100 * n)
    for scope in ("layer", "global"):
        budget = Budget(fraction=percent / 100, scope=scope, max_layer_fraction=0.99)
        if wanted and n == 1:
            continue
        plan = top_effect(ranking, budget, seed=0)
        assert plan.requested == wanted
        assert plan.granted == min(wanted, n - 1)


def test_a_third_of_three_is_one():
    assert (
        top_effect(ranking_of({"a": [1.0, 2.0, 3.0]}), Budget(fraction=1 / 3), seed=0).granted == 1
    )


@pytest.mark.parametrize("name", ["top-effect", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_asking_for_nothing_gives_an_empty_plan(name, scope):
    for budget in (Budget(count=0, scope=scope), Budget(fraction=0.05, scope=scope)):
        plan = run(name, TWO, budget)
        assert (dict(plan.units), plan.requested, plan.reasons) == ({}, 0, ())


@pytest.mark.parametrize("name", ["top-effect", "random"])
def test_asking_for_everything_leaves_what_max_layer_fraction_keeps_and_says_so(name):
    for scope in ("layer", "global"):
        plan = run(name, TWO, Budget(fraction=1.0, scope=scope, max_layer_fraction=0.6))
        assert plan.requested == 9
        assert {layer: len(units) for layer, units in plan.units.items()} == {"a": 3, "b": 2}
        assert "layer 'a': at most 3 of 5 units (max_layer_fraction 0.6," in plan.reasons[0]
        assert "layer 'b': at most 2 of 4" in plan.reasons[1]
    assert run(name, TWO, Budget(count=99, max_layer_fraction=0.99)).granted == 4 + 3


def test_one_unit_always_stays():
    plan = top_effect(
        ranking_of({"a": [1.0, 1.0]}), Budget(fraction=1.0, max_layer_fraction=1 - 1e-9), seed=0
    )
    assert plan.units == {"a": (0,)}
    with pytest.raises(
        PruneError, match=r"1 units were to be cut.*layer 'a': at most 0 of 1 units"
    ):
        top_effect(ranking_of({"a": [1.0]}), Budget(fraction=1.0), seed=0)


def test_ties_go_by_layer_and_unit():
    tied = ranking_of({"b": [1.0] * 4, "a": [1.0] * 4})
    assert top_effect(tied, Budget(fraction=0.5), seed=0).units == {"a": (0, 1), "b": (0, 1)}
    assert top_effect(tied, Budget(count=5, scope="global"), seed=0).units == {
        "a": (0, 1, 2),
        "b": (0, 1),
    }


def test_coupled_layers_lose_the_units_with_the_largest_summed_effect():
    plan = top_effect(COUPLED, Budget(fraction=0.5), seed=0)
    assert plan.units == {"a": (0, 1), "b": (0, 1), "c": (0,)}
    assert (plan.requested, plan.granted) == (5, 5)


def test_the_effect_of_a_shared_unit_is_the_sum_and_not_the_largest_over_its_layers():
    shared = ranking_of({"a": [3.0, 0.0, 2.0], "b": [0.0, 0.0, 2.0]}, {"a": "a", "b": "a"})
    assert top_effect(shared, Budget(count=1), seed=0).units == {"a": (2,), "b": (2,)}


def test_a_shared_unit_counts_once_for_each_layer_and_never_exceeds_the_budget():
    plan = top_effect(COUPLED, Budget(count=3, scope="global"), seed=0)
    assert plan.units == {"a": (1,), "b": (1,), "c": (0,)}
    only_shared = ranking_of({"a": [1.0] * 4, "b": [1.0] * 4}, {"a": "a", "b": "a"})
    plan = top_effect(only_shared, Budget(count=3, scope="global"), seed=0)
    assert (plan.requested, plan.granted) == (3, 2)
    assert plan.reasons == ("shared units go from all their layers at once, and 1 were left",)


def test_coupled_layers_must_rank_the_same_units():
    uneven = ranking_of({"a": [1.0, 2.0], "b": [1.0]}, {"a": "a", "b": "a"})
    with pytest.raises(PruneError, match=r"'a' and 'b' share their units.*\(2 and 1\)"):
        top_effect(uneven, Budget(count=1), seed=0)


@pytest.mark.parametrize("name", ["top-effect", "random"])
def test_only_positive_leaves_units_without_an_effect(name):
    mixed = ranking_of({"a": [1.0, -1.0, 0.0, 2.0], "b": [-1.0, -2.0, -3.0, -4.0]})
    plan = run(name, mixed, Budget(fraction=0.75), only_positive=True)
    assert (plan.requested, plan.granted) == (6, 2)
    assert plan.reasons == ("only units with an effect above zero are cut",)
    assert run("top-effect", mixed, Budget(fraction=0.5), only_positive=True).units == {"a": (0, 3)}
    assert run("top-effect", mixed, Budget(fraction=0.75)).granted == 6
    nothing = ranking_of({"a": [0.0, 0.0]})
    with pytest.raises(PruneError, match="only units with an effect above zero"):
        run(name, nothing, Budget(count=1), only_positive=True)


def test_units_asked_of_an_empty_ranking_are_an_error():
    empty = ranking_of({})
    assert top_effect(empty, Budget(fraction=0.5), seed=0).granted == 0
    with pytest.raises(PruneError, match="the ranking lists no units"):
        top_effect(empty, Budget(count=2, scope="global"), seed=0)


def test_random_units_depend_on_the_seed_and_the_layer_only():
    ranking = ranking_of({"a": list(range(50)), "b": list(range(50)), "c": [1.0] * 50})
    budget = Budget(fraction=0.5)
    first = random_units(ranking, budget, seed=1)
    assert first == random_units(ranking, budget, seed=1)
    assert first.units != random_units(ranking, budget, seed=2).units
    assert first.units["a"] != first.units["b"]
    reversed_effects = ranking_of({"a": list(range(50))[::-1], "b": [0.0] * 50})
    other = random_units(reversed_effects, budget, seed=1)
    assert other.units["a"] == first.units["a"]


def test_random_units_are_drawn_evenly():
    ranking = ranking_of({"a": [9.0, 8.0, 1.0, 0.0]})
    drawn = [random_units(ranking, Budget(count=1), seed=s).units["a"][0] for s in range(400)]
    assert all(70 <= drawn.count(u) <= 130 for u in range(4))


@st.composite
def cases(draw):
    widths = draw(st.lists(st.integers(2, 12), min_size=1, max_size=4))
    names = [f"layer{i}" for i in range(len(widths))]
    effect = st.integers(-3, 3).map(float)
    effects = {
        n: draw(st.lists(effect, min_size=w, max_size=w))
        for n, w in zip(names, widths, strict=True)
    }
    groups = {n: next(m for m in names if len(effects[m]) == len(effects[n])) for n in names}
    if draw(st.booleans()):
        groups = {n: n for n in names}
    amount = draw(
        st.one_of(
            st.fixed_dictionaries({"fraction": st.integers(0, 100).map(lambda p: p / 100)}),
            st.fixed_dictionaries({"count": st.integers(0, 30)}),
        )
    )
    scope = draw(st.sampled_from(["layer", "global"]))
    cap = draw(st.integers(50, 99)) / 100
    options = {"only_positive": draw(st.booleans())}
    return (
        ranking_of(effects, groups),
        Budget(**amount, scope=scope, max_layer_fraction=cap),
        options,
    )


@given(cases())
@settings(deadline=None, max_examples=200)
def test_every_plan_keeps_its_budget_and_explains_what_it_did_not_grant(case):
    ranking, budget, options = case
    width, groups = ranking.units_by_layer(), ranking.groups
    sizes = []
    for name in pruners.names():
        try:
            plan = run(name, ranking, budget, **options)
        except PruneError as error:
            sizes.append(error.what.partition(":")[0])
            continue
        sizes.append({layer: len(units) for layer, units in plan.units.items()})
        assert plan.granted <= plan.requested
        assert bool(plan.reasons) == (plan.granted < plan.requested)
        for layer, units in plan.units.items():
            assert units == tuple(sorted(set(units)))
            assert 0 < len(units) < width[layer]
            assert len(units) <= budget.max_layer_fraction * width[layer]
            shared = [m for m in width if groups[m] == groups[layer]]
            assert all(plan.units[m] == units for m in shared)
    assert sizes[0] == sizes[1]


@given(cases())
@settings(deadline=None, max_examples=100)
def test_no_unit_stays_that_has_a_larger_effect_than_one_of_its_layer_that_goes(case):
    ranking, budget, options = case
    try:
        plan = top_effect(ranking, budget, seed=0, **options)
    except PruneError:
        return
    effects: dict[str, dict[int, float]] = {}
    rows = zip(ranking.layer, ranking.unit, ranking.effect, strict=True)
    for layer, unit, effect in rows:
        summed = effects.setdefault(ranking.groups[str(layer)], {})
        summed[int(unit)] = summed.get(int(unit), 0.0) + float(effect)
    for layer, units in plan.units.items():
        own = effects[ranking.groups[layer]]
        stays = [e for u, e in own.items() if u not in units]
        assert min(own[u] for u in units) >= max(stays)
