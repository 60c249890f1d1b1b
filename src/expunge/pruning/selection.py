"""Which units go: a ranking and a budget give a plan. Pure functions, no model in sight.

What is counted: the units of all ranked layers. Layers that share their units (`ranking.groups`)
are decided together: the effect of a shared unit is the sum over its layers, it goes from all of
them, and counts once for each.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor, fsum

from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import generator
from expunge.errors import PruneError
from expunge.records import Budget, NeuronRanking, PrunePlan

pruners: Registry[Callable[..., PrunePlan], NoMetadata] = Registry("pruner", NoMetadata)


@pruners.register("ranked")
def ranked(
    ranking: NeuronRanking, budget: Budget, *, seed: int, only_positive: bool = False
) -> PrunePlan:
    """The units with the largest effect.

    ``floor(fraction × units)`` (or `count`) of every layer, or with scope "global" of all layers
    together; the latter compares effects of different layers, so they must share one scale. Never
    more than ``floor(cap × units)`` of a layer, and one unit stays always. Ties go by
    (layer, unit). A shared unit that no longer fits into a global count is passed over.

    only_positive: leave units whose effect is not above zero, even if fewer go than were asked for.
    seed: not used. Raises PruneError if units were asked for and none can go, or if layers of one
    group list different units. Cost: a sort of the units.
    """
    layers = _layers(ranking)
    taken, requested, reasons = _select(ranking, layers, budget, only_positive)
    return _plan(taken, layers, requested, reasons)


@pruners.register("random")
def random(
    ranking: NeuronRanking, budget: Budget, *, seed: int, only_positive: bool = False
) -> PrunePlan:
    """As many units of each layer as "ranked" takes, but any of them: its control.

    The effects say how many go of each layer, never which; the draw depends on the seed and the
    name of the layer (or of its group). Arguments and errors are those of "ranked".
    """
    layers = _layers(ranking)
    taken, requested, reasons = _select(ranking, layers, budget, only_positive)
    effects = _effects(ranking, layers)
    drawn = {}
    for group, units in taken.items():
        order = generator(seed, "pruner", group).permutation(sorted(effects[group]))
        drawn[group] = [int(unit) for unit in order[: len(units)]]
    return _plan(drawn, layers, requested, reasons)


def _layers(ranking: NeuronRanking) -> dict[str, list[str]]:
    """The ranked layers of each group."""
    layers: dict[str, list[str]] = {}
    for layer in sorted(ranking.units_by_layer()):
        layers.setdefault(ranking.groups.get(layer, layer), []).append(layer)
    return layers


def _effects(ranking: NeuronRanking, layers: dict[str, list[str]]) -> dict[str, dict[int, float]]:
    """Effect of every unit of every group: the sum over its layers."""
    own: dict[str, dict[int, float]] = {}
    for layer, unit, effect in zip(
        ranking.layer.tolist(), ranking.unit.tolist(), ranking.effect.tolist(), strict=True
    ):
        own.setdefault(layer, {})[unit] = effect
    total = {}
    for group, members in layers.items():
        units = own[members[0]].keys()
        for layer in members:
            if own[layer].keys() != units:
                raise PruneError(
                    f"layers '{members[0]}' and '{layer}' share their units but rank different "
                    f"ones ({len(units)} and {len(own[layer])})",
                    fix="rank all units of both",
                )
        total[group] = {u: fsum(own[layer][u] for layer in members) for u in units}
    return total


def _share(fraction: float, n: int) -> int:
    """``floor(fraction × n)`` in exact arithmetic: 0.3 of 10 is 3, one third of 3 is 1."""
    return floor(Fraction(float(fraction)).limit_denominator(10**6) * n)


def _select(
    ranking: NeuronRanking, layers: dict[str, list[str]], budget: Budget, only_positive: bool
) -> tuple[dict[str, list[int]], int, tuple[str, ...]]:
    """Units of each group by falling effect, the number asked for, and why fewer can go."""
    effects = _effects(ranking, layers)
    width = {group: len(units) for group, units in effects.items()}
    weight = {group: len(members) for group, members in layers.items()}
    limit = {g: min(_share(budget.max_layer_fraction, n), n - 1) for g, n in width.items()}

    def asked(n: int) -> int:
        return budget.count if budget.count is not None else _share(budget.fraction or 0.0, n)

    if budget.scope == "layer":
        quota = {g: min(asked(n), limit[g]) for g, n in width.items()}
        requested = sum(weight[g] * asked(n) for g, n in width.items())
        capped = [g for g, n in width.items() if asked(n) > limit[g]]
    else:
        quota = limit
        requested = asked(sum(weight[g] * n for g, n in width.items()))
        capped = list(limit)
    order = sorted((-e, g, u) for g, units in effects.items() for u, e in units.items())
    taken: dict[str, list[int]] = {g: [] for g in width}
    left = requested
    for negative, group, unit in order:
        wanted = negative < 0 or not only_positive
        if wanted and len(taken[group]) < quota[group] and weight[group] <= left:
            taken[group].append(unit)
            left -= weight[group]
    if left == 0:
        return taken, requested, ()
    reasons = [
        f"layer '{g}': {limit[g]} of {width[g]} units at most "
        f"(max_layer_fraction {budget.max_layer_fraction}, one stays)"
        for g in capped
        if len(taken[g]) == limit[g]
    ]
    if only_positive and any(negative >= 0 for negative, _, _ in order):
        reasons.append("only units with an effect above zero may go")
    if budget.scope == "global" and max(weight.values(), default=1) > left:
        reasons.append(f"shared units go from all their layers at once, and {left} were left")
    return taken, requested, tuple(reasons or ["the ranking lists no units"])


def _plan(
    taken: dict[str, list[int]],
    layers: dict[str, list[str]],
    requested: int,
    reasons: tuple[str, ...],
) -> PrunePlan:
    units = {
        layer: tuple(sorted(taken[group]))
        for group, members in layers.items()
        for layer in members
        if taken[group]
    }
    return PrunePlan(units=dict(sorted(units.items())), requested=requested, reasons=reasons)
