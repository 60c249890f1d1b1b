"""What is done at each stage, and with which numbers. Baselines are recipes too.

A recipe is a function from a recipe to a recipe: the defaults come in, and a control changes just
the part that it controls for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from expunge._core.registry import NoMetadata, Registry
from expunge.config import build
from expunge.errors import ConfigError
from expunge.training.loop import Precision, TargetKind, TuneConfig


@dataclass(frozen=True)
class ScoreConfig:
    """detectors: by name. options: of single detectors. layer: where the attribution is taken.

    stages: layers whose features are compared; both are found when left out. views: random views.
    """

    detectors: tuple[str, ...] = (
        "augmented_margin",
        "lda_margin",
        "local_uncertainty",
        "feature_clusters",
    )
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    attribution_layer: str = ""
    feature_layers: tuple[str, ...] = ()
    views: int = 6
    batch_size: int = 256
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.views < 0 or self.batch_size < 1:
            raise ConfigError("score.views must not be negative, score.batch_size 1 or more")


@dataclass(frozen=True)
class PartitionConfig:
    """method: a partitioner. threshold: samples with a larger ``p_noisy`` are flagged.

    fdr: sets the threshold instead, so that at most this share of the flagged is expected to be
    clean; see `fdr_threshold`.
    """

    method: str = "noise-model"
    threshold: float = 0.5
    fdr: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"partition.threshold must lie in [0, 1], not {self.threshold}")
        if self.fdr is not None and not 0 < self.fdr < 1:
            raise ConfigError(
                f"partition.fdr must lie in (0, 1), not {self.fdr}", fix="0.05 means 5 %"
            )


@dataclass(frozen=True)
class RankConfig:
    """method: a ranker. layers: whose units are ranked; or the ``last_n_layers`` that can be cut.

    By default all whose units are their own, not shared with other layers by residual additions:
    a unit that is shared costs every layer that shares it. max_samples: samples that are looked
    at, drawn
    by the seed; more of them do not change the ranking.
    """

    method: str = "attribution-ridge"
    layers: tuple[str, ...] = ()
    last_n_layers: int | None = None
    max_samples: int = 4_000
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.last_n_layers is not None and self.last_n_layers < 1:
            raise ConfigError(f"rank.last_n_layers must be 1 or more, not {self.last_n_layers}")
        if self.max_samples < 1:
            raise ConfigError(f"rank.max_samples must be 1 or more, not {self.max_samples}")


# What is cut where that is left open: a fifth. It cost nothing where wrong labels were learned by
# heart, as the tuning goes far there, and 0.3 points elsewhere (development seeds).
DEFAULT_PRUNE_FRACTION = 0.2


@dataclass(frozen=True)
class PruneConfig:
    """How many units go (a fraction or a count; 0 cuts nothing) and how; see `Budget`.

    Both left out: a fifth in the repair of a model that has learned wrong labels by heart, or where
    samples are to be forgotten, or the stage is asked for by itself; else nothing.

    mode ``"remove"`` makes the network smaller; ``"mask"`` silences the units reversibly.
    """

    method: str = "top-effect"
    fraction: float | None = None
    count: int | None = None
    scope: Literal["layer", "global"] = "layer"
    max_layer_fraction: float = 0.9
    mode: Literal["remove", "mask"] = "remove"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise ConfigError(f"prune.fraction must lie in [0, 1], not {self.fraction}")
        if self.fraction is not None and self.count is not None:
            raise ConfigError("prune.fraction and prune.count exclude each other")
        if self.count is not None and self.count < 0:
            raise ConfigError(f"prune.count must not be negative: {self.count}")
        if not 0 <= self.max_layer_fraction < 1:
            raise ConfigError(
                f"prune.max_layer_fraction must lie in [0, 1), not {self.max_layer_fraction}"
            )

    @property
    def is_enabled(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.fraction or self.count)

    @property
    def is_auto(self) -> bool:
        """Whether the repair decides."""
        return self.fraction is None and self.count is None


@dataclass(frozen=True)
class RoundsConfig:
    """How often the repaired model looks at the data again, and is tuned once more on what it sees.

    epochs: of the tuning in each further round; none if empty. views: random views when it looks
    again (a healthier model needs none). data: what it is tuned on then; see `TuneConfig`.
    min_flag_change:
    the share of samples whose flag must change, or the rounds left out join their epochs to this
    one.
    """

    epochs: tuple[int, ...] = ()
    views: int = 0
    targets: TargetKind = "filter"
    min_flag_change: float = 0.01

    def __post_init__(self) -> None:
        if any(e < 1 for e in self.epochs) or self.views < 0:
            raise ConfigError("rounds.epochs must be 1 or more each, rounds.views not negative")
        if not 0 <= self.min_flag_change <= 1:
            raise ConfigError(
                f"rounds.min_flag_change must lie in [0, 1], not {self.min_flag_change}"
            )


@dataclass(frozen=True)
class Recipe:
    """Settings of every stage.

    score: three views, where scores alone take six: the time shows the difference, and the result
    does not. start: fine-tune the model given, or train it anew from scratch.
    trainer: another way to train than `tuning.tune`, see `robust` and `related.refinement`.
    min_flagged_fraction:
    where a smaller share of the samples is flagged the model is left alone: too few for their
    removal to outweigh the harm that any tuning can do.
    """

    score: ScoreConfig = field(default_factory=lambda: ScoreConfig(views=3))
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    tune: TuneConfig = field(default_factory=lambda: TuneConfig(targets="relabel"))
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    start: Literal["model", "scratch"] = "model"
    trainer: Literal["", "elr", "co-teaching", "divide-mix", "ssl-refine"] = ""
    min_flagged_fraction: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.min_flagged_fraction <= 1:
            raise ConfigError(
                f"min_flagged_fraction must lie in [0, 1], not {self.min_flagged_fraction}",
                fix="0.02 means 2 %",
            )


recipes: Registry[Callable[[Recipe], Recipe], NoMetadata] = Registry("recipe", NoMetadata)


def resolve(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name with some settings replaced: ``{"tune": {"epochs": 3}}``."""
    chosen = recipes.get(name)(Recipe())
    if not overrides:
        return chosen
    merged = asdict(chosen)
    for stage, values in overrides.items():
        if isinstance(values, Mapping) and isinstance(merged.get(stage), dict):
            merged[stage] = {**merged[stage], **values}
            if stage == "prune" and "count" in values and "fraction" not in values:
                merged[stage]["fraction"] = None
        else:
            merged[stage] = values
    return build(Recipe, merged, where=f"recipe '{name}'")


@recipes.register("default")
def default(recipe: Recipe) -> Recipe:
    """All evidence, layer by layer; cut by signed regression; tune with suspects relabelled."""
    return recipe


@recipes.register("rounds")
def rounds(recipe: Recipe) -> Recipe:
    """Two short repairs, each followed by another look with the healthier model; then a long one.

    Sees the noise more clearly than one round, and takes about twice the time. Nothing is cut: in a
    longer training the size of the network tells.
    """
    return replace(
        _uncut(recipe),
        tune=replace(recipe.tune, targets="filter", epochs=2),
        rounds=RoundsConfig(epochs=(3, 13)),
    )


@recipes.register("rlap")
def rlap(recipe: Recipe) -> Recipe:
    """The published procedure (arXiv 2506.11615) with its errors mended.

    As published: attribution clusters, least squares on activations, 15.6 % of the last hidden
    layer cut, Adam with rate 0.001 on what is kept, no augmentation. Mended: the cluster with the
    higher mean loss is the bad one (theirs asks the truth); the attributions are reduced to 16
    principal components first (a dead unit breaks a full covariance); the regression target is the
    sample's own badness (theirs is indexed by class); units are removed, not zeroed with their bias
    kept; training order is shuffled in every comparison.
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


@recipes.register("nothing")
def nothing(recipe: Recipe) -> Recipe:
    """Control: the model as it came."""
    return replace(_uncut(recipe), tune=replace(recipe.tune, epochs=0))


@recipes.register("finetune-only")
def finetune_only(recipe: Recipe) -> Recipe:
    """Control: the same tuning on the same partition, nothing cut."""
    return _uncut(recipe)


@recipes.register("head-only")
def head_only(recipe: Recipe) -> Recipe:
    """Control: the same cut, and only the head, the layers cut and their norms are tuned (L-FT)."""
    return replace(recipe, tune=replace(recipe.tune, scope="head"))


@recipes.register("random-units")
def random_units(recipe: Recipe) -> Recipe:
    """Control: as many units cut from each layer, drawn at random."""
    return replace(recipe, prune=replace(recipe.prune, method="random"))


@recipes.register("magnitude")
def magnitude(recipe: Recipe) -> Recipe:
    """Control: as many units cut from each layer, those with the smallest incoming weights."""
    return replace(recipe, rank=replace(recipe.rank, method="magnitude", options={}))


@recipes.register("retrain-filtered")
def retrain_filtered(recipe: Recipe) -> Recipe:
    """Control: a fresh network trained on the kept samples for as many epochs."""
    tune = replace(recipe.tune, targets="filter")
    return replace(_uncut(recipe), start="scratch", tune=tune, rounds=RoundsConfig())


@recipes.register("retrain-filtered-3x")
def retrain_filtered_3x(recipe: Recipe) -> Recipe:
    """Control: the same with three times the epochs, a schedule to the end and not equal time."""
    return _longer(retrain_filtered(recipe), 3.0)


@recipes.register("finetune-all-labels")
def finetune_all_labels(recipe: Recipe) -> Recipe:
    """Control: as much more training, on all samples with the labels given."""
    tune = replace(recipe.tune, targets="all")
    return replace(_uncut(recipe), tune=tune, rounds=RoundsConfig())


@recipes.register("elr")
def elr(recipe: Recipe) -> Recipe:
    """Peer: a fresh network by early-learning regularisation (arXiv 2007.00151)."""
    return replace(_from_scratch(recipe, cost=1.0), trainer="elr")


@recipes.register("co-teaching")
def co_teaching(recipe: Recipe) -> Recipe:
    """Peer: two fresh networks that choose each other's samples (arXiv 1804.06872)."""
    return replace(_from_scratch(recipe, cost=2.0), trainer="co-teaching")


@recipes.register("divide-mix")
def divide_mix(recipe: Recipe) -> Recipe:
    """Peer: two fresh networks, mixtures and MixMatch (arXiv 2002.07394)."""
    return replace(_from_scratch(recipe, cost=8.0), trainer="divide-mix")


@recipes.register("ssl-refine")
def ssl_refine(recipe: Recipe) -> Recipe:
    """Neighbour: the body learns from the images alone, then labels are refined (arXiv 2412.04898).

    From the weights given, whose labels it does not believe; the partition is not asked, not even
    whether there is noise: of the kind that this is for it sees little.
    """
    tune = replace(_longer(recipe, 10.5).tune, targets="all", lr=0.1)
    chosen = replace(_uncut(recipe), trainer="ssl-refine", tune=tune, rounds=RoundsConfig())
    return replace(chosen, min_flagged_fraction=0.0)


def _from_scratch(recipe: Recipe, *, cost: float) -> Recipe:
    """All samples with the labels given, as long as `retrain_filtered_3x`; cost: of an epoch, in
    plain ones.
    """
    retrain = replace(_longer(retrain_filtered(recipe), 3.0 / cost), trainer="")
    return replace(retrain, tune=replace(retrain.tune, targets="all"))


def _longer(recipe: Recipe, factor: float) -> Recipe:
    return replace(recipe, tune=replace(recipe.tune, epochs=math.ceil(factor * recipe.tune.epochs)))


def _uncut(recipe: Recipe) -> Recipe:
    return replace(recipe, prune=PruneConfig(fraction=0.0))
