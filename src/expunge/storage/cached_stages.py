"""What a repair works on, and its stages as a run folder keeps them: made once, read after that."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from accelerate import Accelerator
from torch import nn

from expunge._core.distributed import broadcast_decision
from expunge._core.progress import Progress
from expunge.data import Samples, as_samples, check_alike, check_disjoint
from expunge.errors import ConfigError
from expunge.evaluation import diagnostics
from expunge.models.inspection import check_fit, check_model
from expunge.recipes import (
    PartitionConfig,
    PruneConfig,
    RankConfig,
    Recipe,
    ScoreConfig,
    recipes,
    resolve,
)
from expunge.records import NeuronRanking, Partition, PrunePlan, Scores
from expunge.selfsupervised import refinement
from expunge.stages import Data, partition, plan, rank, score, tuned_layers
from expunge.storage import serialization
from expunge.storage.run_folder import Artefact, Run
from expunge.storage.weights import fit_weights, model_fingerprint
from expunge.training import baselines, loop
from expunge.training.targets import build_targets

# The trainers that neighbours of the method bring.
baselines.trainers.register("ssl-refine")(refinement.ssl_refine)

# Raised when a stage computes something else than before, so that old results are not reused.
CACHE_VERSION = 13
# The stages that every recipe starts with.
SHARED_STAGES: tuple[str, ...] = ("1-score", "2-partition")


@dataclass(frozen=True)
class RepairContext:
    """What a repair works on; checked before anything is computed."""

    model: nn.Module
    train: Samples
    validation: Samples | None
    held_out: Samples | None
    name: str
    recipe: Recipe
    controls: tuple[str, ...]
    seed: int
    header: Mapping[str, object]
    accelerator: Accelerator
    progress: Progress
    asked: bool = True  # whether it is a question at all if to repair; a deletion is none

    def key(self, run: Run, settings: object, reads: Sequence[str], **more: object) -> dict:
        """What a stage's result depends on: settings, inputs, and the stages that it reads."""
        return {
            "code": CACHE_VERSION,
            "settings": asdict(settings),  # type: ignore[call-overload]
            "seed": self.seed,
            "model": self.header["model"],
            "train": self.header["train"],
            "reads": {name: run.keys[name] for name in reads},
            **more,
        }


class RepairOutcome(NamedTuple):
    """A repaired model, what it was made from, and the seconds of all stages behind it.

    prune_skipped_reason: why nothing was cut, where the repair decided that.
    """

    model: nn.Module
    partition: Partition
    ranking: NeuronRanking | None
    plan: PrunePlan | None
    seconds: float
    prune_skipped_reason: str = ""


def prepare(
    model: nn.Module,
    train: Data,
    validation: Data | None,
    held_out: Data | None = None,
    *,
    recipe: str,
    overrides: Mapping[str, object] | None,
    controls: tuple[str, ...],
    seed: int,
    progress: Progress,
) -> RepairContext:
    """A job from what a caller gives; see `pipeline.repair`. Raises what is wrong with it."""
    chosen = resolve(recipe, overrides)
    for name in controls:
        recipes.get(name)
    check_model(model)
    samples = as_samples(train, name="training data")
    check_fit(model, samples)
    others = {
        name: None if data is None else as_samples(data, name=f"{name} data")
        for name, data in (("validation", validation), ("held_out", held_out))
    }
    for name, other in others.items():
        if other is not None:
            check_disjoint(samples, other)
            if other.classes != samples.classes:
                raise ConfigError(
                    f"{name} has the classes {other.classes}, training {samples.classes}",
                    fix="give both the same: classes=… of expunge.from_dataset or from_arrays",
                )
            check_alike(samples, other)
    controls = controls if validation is not None else ()
    header = {
        "recipe": recipe,
        "settings": asdict(chosen),
        "seed": int(seed),
        "model": model_fingerprint(model),
        "train": samples.fingerprint(),
        **{name: other.fingerprint() if other else None for name, other in others.items()},
    }
    return RepairContext(
        model,
        samples,
        others["validation"],
        others["held_out"],
        recipe,
        chosen,
        controls,
        int(seed),
        header,
        Accelerator(),
        progress,
    )


def scored(
    job: RepairContext,
    run: Run,
    model: nn.Module | None = None,
    config: ScoreConfig | None = None,
    name: str = "1-score",
    read: Sequence[str] = (),
) -> Scores:
    """Scores of the model given, or of one that the stages read have made of it."""
    config = config or job.recipe.score

    def compute() -> Artefact:
        return serialization.store_scores(
            score(
                model or job.model,
                job.train,
                seed=job.seed,
                progress=job.progress,
                **asdict(config),
            )
        )

    return serialization.load_scores(run.stage(name, job.key(run, config, read), compute))


def partitioned(
    job: RepairContext,
    run: Run,
    config: PartitionConfig,
    scores: Scores,
    name: str = "2-partition",
    read: Sequence[str] = ("1-score",),
) -> Partition:
    """The partition of these scores."""

    def compute() -> Artefact:
        split = broadcast_decision(
            job.accelerator, lambda: partition(scores, seed=job.seed, **asdict(config))
        )
        return serialization.store_partition(split)

    return serialization.load_partition(run.stage(name, job.key(run, config, read), compute))


def ranked(
    job: RepairContext, run: Run, config: RankConfig, split: Partition, name: str, read: list[str]
) -> NeuronRanking:
    """The ranking of the model's units by a partition."""

    def compute() -> Artefact:
        return serialization.store_ranking(
            rank(
                job.model,
                job.train,
                split,
                seed=job.seed,
                progress=job.progress,
                **asdict(config),
            )
        )

    return serialization.load_ranking(run.stage(name, job.key(run, config, read), compute))


def planned(
    job: RepairContext,
    run: Run,
    config: PruneConfig,
    ranking: NeuronRanking,
    name: str,
    read: list[str],
) -> PrunePlan:
    """The units to cut, by a ranking."""

    def compute() -> Artefact:
        return serialization.store_plan(
            broadcast_decision(
                job.accelerator, lambda: plan(ranking, seed=job.seed, **asdict(config))
            )
        )

    return serialization.load_plan(run.stage(name, job.key(run, config, read), compute))


def tuned(
    job: RepairContext,
    run: Run,
    recipe: Recipe,
    model: nn.Module,
    split: Partition,
    cut: PrunePlan | None,
    name: str,
    read: list[str],
) -> nn.Module:
    """The model tuned on a partition, or trained by the recipe's own trainer."""
    config, mode = recipe.tune, recipe.prune.mode
    if config.lr is None:
        scores = serialization.load_scores(run.artefacts["1-score"])
        config = loop.with_learning_rate(
            config, len(job.train), default_learning_rate(recipe, scores, split)
        )
    key = job.key(run, config, read, start=recipe.start, mode=mode, trainer=recipe.trainer)

    def compute() -> Artefact:
        if recipe.trainer:
            trainer, rate = baselines.trainers.get(recipe.trainer), split.noise_rate[0]
            how = {"seed": job.seed, "rate": rate, "progress": job.progress, "what": name}
            return Artefact(tensors=trainer(model, job.train, config, **how).state_dict())
        cut_layers = tuple(cut.units) if cut else ()
        found = loop.tune(
            model,
            job.train,
            build_targets(job.train, split, config),
            config,
            seed=job.seed,
            layers=tuned_layers(model, job.train, config, cut_layers),
            checkpoint=run.checkpoint(name, key),
            progress=job.progress,
            what=name,
        )
        return Artefact(tensors=found.state_dict())

    artefact = run.stage(name, key, compute)
    model = copy.deepcopy(model)
    fit_weights(model, artefact.tensors, where=name)
    return model


def default_learning_rate(recipe: Recipe, scores: Scores, split: Partition) -> float:
    """The highest learning rate where the recipe names none, for batches of 128."""
    if recipe.start == "scratch":
        return loop.SCRATCH_LR
    return loop.MEMORISED_LR if memorised_wrong_labels(recipe, scores, split) else loop.DEFAULT_LR


def memorised_wrong_labels(recipe: Recipe, scores: Scores, split: Partition) -> bool:
    """Whether the model has learned wrong labels by heart; where labels are right it is no harm."""
    wrong = float((split.p_label_fault > 0.5).mean()) >= recipe.min_flagged_fraction
    return wrong and bool(diagnostics.memorised(scores))
