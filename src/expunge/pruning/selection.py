"""Which units go: a ranking and a budget give a plan. Pure functions that see no model.

The units of all ranked layers count. Layers that share their units (`NeuronRanking.groups`) are
decided together: the effect of a shared unit is the sum over its layers, it is removed from all of
them, and it counts once for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import floor, fsum
from typing import NamedTuple

from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import generator
from expunge.errors import PruneError
from expunge.records import Budget, NeuronRanking, PrunePlan

pruners: Registry[Callable[..., PrunePlan], NoMetadata] = Registry("pruner", NoMetadata)


@pruners.register("top-effect")
def top_effect(
    ranking: NeuronRanking, budget: Budget, *, seed: int, only_positive: bool = False
) -> PrunePlan:
    """The units with the largest effect.

    ``floor(fraction × units)`` (or `Budget.count`) of every layer, or with scope ``"global"`` of
    all layers together. Never more than ``floor(max_layer_fraction × units)`` of a layer, and at
    least one unit stays. Ties are broken by layer and unit.

    Parameters
    ----------
    ranking
        Units with their effects.
    budget
        How many to cut.
    seed
        Not used.
    only_positive
        Cut only units whose effect is above zero, even if the plan then has fewer units than
        requested.

    Returns
    -------
    PrunePlan
        Sorted units by layer, the number requested, and the reasons if fewer are granted.

    Raises
    ------
    PruneError
        If units were requested and none can be cut, or if layers of one group list different units.

    Notes
    -----
    Cost: a sort of the units. The scope ``"global"`` compares effects of different layers, so they
    must share one scale. A shared unit that no longer fits into a global count is skipped.

    Examples
    --------
    >>> import numpy as np
    >>> unknown = np.full(4, np.nan)
    >>> effects = np.array([0.1, 0.9, 0.5, 0.2])
    >>> ranking = NeuronRanking(["a"] * 4, range(4), effects, unknown, unknown, {"a": "a"})
    >>> top_effect(ranking, Budget(fraction=0.5), seed=0).units
    {'a': (1, 2)}
    """
    choice = _choose(ranking, budget, only_positive)
    return _plan(choice, choice.units)


@pruners.register("random")
def random_units(
    ranking: NeuronRanking, budget: Budget, *, seed: int, only_positive: bool = False
) -> PrunePlan:
    """As many units of each layer as `top_effect` takes, drawn at random: its baseline.

    The effects decide only how many units of each layer are cut. The draw depends on the seed and
    on the name of the layer (or of its group).

    Parameters
    ----------
    ranking
        Units with their effects.
    budget
        How many to cut.
    seed
        Of the draw.
    only_positive
        As in `top_effect`.

    Returns
    -------
    PrunePlan
        With as many units of each layer as that of `top_effect`.

    Raises
    ------
    PruneError
        As `top_effect`.

    Notes
    -----
    Cost: a sort and a permutation of the units.

    Examples
    --------
    >>> import numpy as np
    >>> unknown = np.full(4, np.nan)
    >>> effects = np.array([0.1, 0.9, 0.5, 0.2])
    >>> ranking = NeuronRanking(["a"] * 4, range(4), effects, unknown, unknown, {"a": "a"})
    >>> random_units(ranking, Budget(fraction=0.5), seed=0).granted
    2
    """
    choice = _choose(ranking, budget, only_positive)
    drawn = {}
    for group, units in choice.units.items():
        order = generator(seed, "pruner", group).permutation(sorted(choice.effects[group]))
        drawn[group] = [int(unit) for unit in order[: len(units)]]
    return _plan(choice, drawn)


@dataclass(frozen=True)
class _Choice:
    """Units to cut, by group: those with the largest effect that the budget and its limits allow.

    layers: the layers of each group. effects: of every unit. reasons: why fewer than requested.
    """

    layers: dict[str, list[str]]
    effects: dict[str, dict[int, float]]
    units: dict[str, list[int]]
    requested: int
    reasons: tuple[str, ...]


def _layers_by_group(ranking: NeuronRanking) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for layer in sorted(ranking.units_by_layer()):
        layers.setdefault(ranking.groups.get(layer, layer), []).append(layer)
    return layers


def _effects_by_group(
    ranking: NeuronRanking, layers: dict[str, list[str]]
) -> dict[str, dict[int, float]]:
    """The effect of every unit: the sum over the layers of its group."""
    by_layer: dict[str, dict[int, float]] = {}
    for layer, unit, effect in zip(
        ranking.layer.tolist(), ranking.unit.tolist(), ranking.effect.tolist(), strict=True
    ):
        by_layer.setdefault(layer, {})[unit] = effect
    total = {}
    for group, members in layers.items():
        units = by_layer[members[0]].keys()
        for layer in members:
            if by_layer[layer].keys() != units:
                raise PruneError(
                    f"layers '{members[0]}' and '{layer}' share their units but rank different "
                    f"ones ({len(units)} and {len(by_layer[layer])})",
                    fix="rank all units of both",
                )
        total[group] = {u: fsum(by_layer[layer][u] for layer in members) for u in units}
    return total


def _floor_fraction(fraction: float, n: int) -> int:
    """``floor(fraction × n)`` in exact arithmetic: 0.3 of 10 is 3, one third of 3 is 1."""
    return floor(Fraction(float(fraction)).limit_denominator(10**6) * n)


def _choose(ranking: NeuronRanking, budget: Budget, only_positive: bool) -> _Choice:
    layers = _layers_by_group(ranking)
    effects = _effects_by_group(ranking, layers)
    weight = {group: len(members) for group, members in layers.items()}
    quotas, requested = _quotas(budget, {g: len(e) for g, e in effects.items()}, weight)
    order = sorted((-e, g, u) for g, units in effects.items() for u, e in units.items())
    taken: dict[str, list[int]] = {g: [] for g in effects}
    left = requested
    for negative, group, unit in order:
        is_allowed = negative < 0 or not only_positive
        if is_allowed and len(taken[group]) < quotas[group].units and weight[group] <= left:
            taken[group].append(unit)
            left -= weight[group]
    if left == 0:
        return _Choice(layers, effects, taken, requested, ())
    reasons = [q.reason for g, q in quotas.items() if q.reason and len(taken[g]) == q.limit]
    if only_positive and any(negative >= 0 for negative, _, _ in order):
        reasons.append("only units with an effect above zero are cut")
    if budget.scope == "global" and max(weight.values(), default=1) > left:
        reasons.append(f"shared units go from all their layers at once, and {left} were left")
    reasons = reasons or ["the ranking lists no units"]
    return _Choice(layers, effects, taken, requested, tuple(reasons))


class _Quota(NamedTuple):
    """How many units of a group may go; limit: by `Budget.max_layer_fraction`.

    reason: why the limit matters; empty if the budget asks for no more than the limit.
    """

    units: int
    limit: int
    reason: str


def _quotas(
    budget: Budget, width: dict[str, int], weight: dict[str, int]
) -> tuple[dict[str, _Quota], int]:
    """The quota of each group, and the number of units requested in all."""

    def n_requested(n: int) -> int:
        if budget.count is not None:
            return budget.count
        return _floor_fraction(budget.fraction or 0.0, n)

    quotas = {}
    for group, n in width.items():
        limit = min(_floor_fraction(budget.max_layer_fraction, n), n - 1)
        wanted = n_requested(n) if budget.scope == "layer" else n
        reason = (
            f"layer '{group}': at most {limit} of {n} units "
            f"(max_layer_fraction {budget.max_layer_fraction:g}, and one unit stays)"
        )
        quotas[group] = _Quota(min(wanted, limit), limit, reason if wanted > limit else "")
    if budget.scope == "layer":
        return quotas, sum(weight[g] * n_requested(n) for g, n in width.items())
    return quotas, n_requested(sum(weight[g] * n for g, n in width.items()))


def _plan(choice: _Choice, units: dict[str, list[int]]) -> PrunePlan:
    """The plan that removes these units of each group from all its layers."""
    by_layer = {
        layer: tuple(sorted(units[group]))
        for group, members in choice.layers.items()
        for layer in members
        if units[group]
    }
    return PrunePlan(dict(sorted(by_layer.items())), choice.requested, choice.reasons)
