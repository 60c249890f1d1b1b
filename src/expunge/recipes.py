"""Recipes: the settings of every stage of a repair. Ablations, baselines and peers are recipes too.

A recipe is a function from a recipe to a recipe. It gets the default, or the recipe of the repair
that it is compared with, and changes only what it is named for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from expunge._core.registry import Registry
from expunge.config import (
    MIN_FLAGGED_FRACTION,
    EditConfig,
    PartitionConfig,
    PruneConfig,
    RankConfig,
    RoundsConfig,
    ScoreConfig,
    build,
)
from expunge.editing.editors import editors
from expunge.errors import ConfigError, check_range
from expunge.training.baselines import trainers
from expunge.training.optimisation import LONG_EPOCHS, TuneConfig


@dataclass(frozen=True)
class Recipe:
    """Settings of every stage.

    Parameters
    ----------
    score, partition, rank, prune, edit, tune, rounds
        Settings of the stages. The default scores with three views; six, the default of
        `expunge.score`, take longer and do not change the result of a repair.
    start
        ``"model"`` fine-tunes the model given, ``"scratch"`` trains a reinitialised one.
    trainer
        A registered trainer, see `expunge.training.baselines`. Empty: `expunge.tune`.
    min_flagged_fraction
        If a smaller fraction of the samples is flagged, in [0, 1], the repair is skipped: removing
        so few does not outweigh the harm that any tuning can do.
    """

    score: ScoreConfig = field(default_factory=lambda: ScoreConfig(views=3))
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    tune: TuneConfig = field(default_factory=lambda: TuneConfig(targets="bootstrap"))
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    start: Literal["model", "scratch"] = "model"
    trainer: str = ""
    min_flagged_fraction: float = MIN_FLAGGED_FRACTION

    def __post_init__(self) -> None:
        check_range(ConfigError, {"min_flagged_fraction": (self.min_flagged_fraction, "[0, 1]")})


@dataclass(frozen=True)
class RecipeInfo:
    """The metadata of a recipe: what it is for.

    ``"repair"``: to be used. ``"ablation"``: the repair without one of its parts. ``"baseline"``:
    what a user would do otherwise. ``"peer"``: a published competitor.
    """

    role: Literal["repair", "ablation", "baseline", "peer"] = "repair"


recipes: Registry[Callable[[Recipe], Recipe], RecipeInfo] = Registry("recipe", RecipeInfo)


def resolve(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of that name with some settings replaced.

    Parameters
    ----------
    name
        A registered recipe.
    overrides
        Settings by stage: ``{"tune": {"epochs": 3}}``.

    Raises
    ------
    ConfigError
        For unknown names and values out of range; all problems at once.

    Examples
    --------
    >>> resolve("default", {"tune": {"epochs": 3}}).tune.epochs
    3
    """
    chosen = recipes.get(name)(Recipe())
    if overrides:
        merged = asdict(chosen)
        for stage, values in overrides.items():
            if isinstance(values, Mapping) and isinstance(merged.get(stage), dict):
                merged[stage] = {**merged[stage], **values}
                if stage == "prune" and "count" in values and "fraction" not in values:
                    merged[stage]["fraction"] = None
            else:
                merged[stage] = values
        chosen = build(Recipe, merged, where=f"recipe '{name}'")
    if chosen.trainer:
        trainers.get(chosen.trainer)
    if chosen.edit.method:
        editors.check_options(chosen.edit.method, chosen.edit.options)
    return chosen


@recipes.register("default")
def default(recipe: Recipe) -> Recipe:
    """Score by all layers, prune memorised models, tune on labels as far as they are right.

    Flagged samples are learned from by the network's own predictions.
    """
    return recipe


@recipes.register("iterative")
def iterative(recipe: Recipe) -> Recipe:
    """Repair in three rounds: the repaired model scores the data again after each.

    It finds more of the noise than one round and takes about twice the time. Nothing is pruned:
    with long fine-tuning, the larger network wins.
    """
    return replace(
        _without_pruning(recipe),
        tune=replace(recipe.tune, targets="filter", epochs=2),
        rounds=RoundsConfig(epochs=(3, 13)),
    )


@recipes.register("semi")
def semi(recipe: Recipe) -> Recipe:
    """Repair in three rounds; doubtful samples are learned from by the network's own predictions.

    The longest repair and the best one: it learns from all samples, each by its given label as far
    as that is right, else by the running mean of the network's predictions for it, and scores the
    data again after each round. Nothing is pruned. It is not skipped where little noise was found:
    held-out labels tell whether it helped.
    """
    return replace(
        _without_pruning(recipe),
        min_flagged_fraction=0.0,
        tune=replace(recipe.tune, epochs=2),
        rounds=RoundsConfig(epochs=None, targets="bootstrap"),
    )


@recipes.register("instant")
def instant(recipe: Recipe) -> Recipe:
    """Fit a new head in closed form and cut the layers behind it; no gradient step.

    It takes a few passes over the data. The network is read at several depths, and what lies behind
    the depth that does best is removed.
    """
    return _edited(replace(recipe, score=replace(recipe.score, views=1)), "ridge-head")


@recipes.register("instant-half")
def instant_half(recipe: Recipe) -> Recipe:
    """Do as `instant`, at most half of the multiply-adds deep, or at the smallest depth."""
    return _edited(instant(recipe), "ridge-head", depth="half")


@recipes.register("compact")
def compact(recipe: Recipe) -> Recipe:
    """Do as `instant-half`, then tune what is left for twelve epochs.

    The smallest network, of at most half of the multiply-adds and often a tenth of the weights; it
    is as accurate as that of `default` where the layers that are cut were not needed.
    """
    cut = instant_half(recipe).edit
    tune = replace(recipe.tune, epochs=LONG_EPOCHS)
    return replace(_without_pruning(recipe), edit=cut, tune=tune)


@recipes.register("head-refit", role="ablation")
def head_refit(recipe: Recipe) -> Recipe:
    """Fit a new head in closed form on all layers that `instant` reads; nothing is cut."""
    return _edited(recipe, "ridge-head", depth="full")


@recipes.register("sap", role="peer")
def sap(recipe: Recipe) -> Recipe:
    """Project weights on the inputs of trusted samples (SAP, arXiv 2403.08618)."""
    return _edited(recipe, "sap")


@recipes.register("ssd", role="peer")
def ssd(recipe: Recipe) -> Recipe:
    """Shrink the weights that carry the flagged samples (SSD, arXiv 2308.07707)."""
    return _edited(recipe, "ssd")


@recipes.register("rlap", role="peer")
def rlap(recipe: Recipe) -> Recipe:
    """Run the published procedure (arXiv 2506.11615) with its errors corrected.

    As published: attribution clusters, least squares on activations, 15.6 % of the last hidden
    layer pruned, Adam with learning rate 0.001 on the kept samples, no augmentation. Corrected: the
    cluster with the higher mean loss is the noisy one (the published code uses true labels); the
    attributions are reduced to 16 principal components first (a dead unit makes a full covariance
    singular); the regression target is the sample's own noise probability (published: indexed by
    class); units are removed, not zeroed with their bias kept; the training order is shuffled in
    every comparison.
    """
    return replace(
        recipe,
        score=replace(recipe.score, detectors=("attribution_clusters",)),
        partition=PartitionConfig(method="posterior"),
        rank=RankConfig(method="activation-ols", last_n_layers=1),
        prune=PruneConfig(fraction=0.156),
        rounds=RoundsConfig(),
        tune=replace(
            recipe.tune,
            targets="filter",
            optimizer="adamw",
            lr=1e-3,
            weight_decay=0.0,
            schedule="constant",
            augment=False,
        ),
    )


@recipes.register("no-op", role="baseline")
def no_op(recipe: Recipe) -> Recipe:
    """Leave the model unchanged."""
    tune = replace(recipe.tune, epochs=0)
    return replace(_without_pruning(recipe), tune=tune)


@recipes.register("finetune-only", role="ablation")
def finetune_only(recipe: Recipe) -> Recipe:
    """Tune as the repair does, on the same partition, without pruning."""
    return _without_pruning(recipe)


@recipes.register("head-only", role="ablation")
def head_only(recipe: Recipe) -> Recipe:
    """Prune as the repair does; tune only the head, the pruned layers and their norms (L-FT)."""
    return replace(recipe, tune=replace(recipe.tune, scope="head"))


@recipes.register("random-units", role="ablation")
def random_units(recipe: Recipe) -> Recipe:
    """Prune as many units of each layer, drawn at random."""
    return replace(recipe, prune=replace(recipe.prune, method="random"))


@recipes.register("magnitude", role="ablation")
def magnitude(recipe: Recipe) -> Recipe:
    """Prune as many units of each layer, those with the smallest incoming weights."""
    return replace(recipe, rank=replace(recipe.rank, method="magnitude", options={}))


@recipes.register("retrain-filtered", role="baseline")
def retrain_filtered(recipe: Recipe) -> Recipe:
    """Train a reinitialised network on the kept samples for as many epochs."""
    tune = replace(recipe.tune, targets="filter", epochs=_total_epochs(recipe))
    return replace(_without_pruning(recipe), start="scratch", tune=tune, rounds=RoundsConfig())


@recipes.register("retrain-filtered-3x", role="baseline")
def retrain_filtered_3x(recipe: Recipe) -> Recipe:
    """`retrain-filtered` with three times the epochs and a full schedule (not time-matched)."""
    return _with_epochs(retrain_filtered(recipe), 3.0)


@recipes.register("finetune-all-labels", role="baseline")
def finetune_all_labels(recipe: Recipe) -> Recipe:
    """Tune for as many epochs on all samples with the given labels."""
    tune = replace(recipe.tune, targets="all", epochs=_total_epochs(recipe))
    return replace(_without_pruning(recipe), tune=tune, rounds=RoundsConfig())


@recipes.register("elr", role="peer")
def elr(recipe: Recipe) -> Recipe:
    """Train a reinitialised network by early-learning regularisation (arXiv 2007.00151)."""
    return replace(_from_scratch(recipe, cost=1.0), trainer="elr")


@recipes.register("co-teaching", role="peer")
def co_teaching(recipe: Recipe) -> Recipe:
    """Train two networks that select samples for each other (arXiv 1804.06872)."""
    return replace(_from_scratch(recipe, cost=2.0), trainer="co-teaching")


@recipes.register("divide-mix", role="peer")
def divide_mix(recipe: Recipe) -> Recipe:
    """Train two networks with mixtures on the loss and MixMatch (arXiv 2002.07394)."""
    return replace(_from_scratch(recipe, cost=8.0), trainer="divide-mix")


def _from_scratch(recipe: Recipe, *, cost: float) -> Recipe:
    """All samples with the given labels, for the time of `retrain_filtered_3x`.

    cost: of an epoch, as a multiple of a plain one.
    """
    retrain = replace(_with_epochs(retrain_filtered(recipe), 3.0 / cost), trainer="")
    return replace(retrain, tune=replace(retrain.tune, targets="all"))


def _edited(recipe: Recipe, method: str, **options: Any) -> Recipe:
    """An edit alone: nothing is pruned or tuned."""
    edit = EditConfig(method=method, options=options)
    return replace(no_op(recipe), edit=edit, rounds=RoundsConfig())


def _total_epochs(recipe: Recipe) -> int | None:
    """The epochs of all rounds; None where there is one round and its epochs are left open."""
    later = recipe.rounds.n_epochs
    return recipe.tune.n_epochs + sum(later) if later else recipe.tune.epochs


def _with_epochs(recipe: Recipe, factor: float) -> Recipe:
    return replace(
        recipe, tune=replace(recipe.tune, epochs=math.ceil(factor * recipe.tune.n_epochs))
    )


def _without_pruning(recipe: Recipe) -> Recipe:
    """Neither units nor layers are cut."""
    return replace(recipe, prune=PruneConfig(fraction=0.0), edit=EditConfig())
