"""What a repair works on, and its stages as a run folder keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from accelerate import Accelerator
from torch import nn

from expunge import stages
from expunge._core.distributed import broadcast_decision, this_process
from expunge.config import (
    EditConfig,
    PartitionConfig,
    PruneConfig,
    RankConfig,
    RepairOptions,
    ScoreConfig,
)
from expunge.data import DataLike, Samples, as_samples, check_alike, check_disjoint
from expunge.data.checks import require_two_labels
from expunge.data.overlap import input_digests, shared_inputs, without_copies
from expunge.data.splits import by_split
from expunge.editing.editors import EditedModel
from expunge.editing.readout import build_classifier
from expunge.models.adaptation import adapt_model, stability_notes
from expunge.models.checks import check_fit, check_model, check_training, tied_note
from expunge.models.copying import copy_model
from expunge.recipes import Recipe, recipes, resolve
from expunge.records import HeadPlan, NeuronRanking, Partition, PrunePlan, Scores
from expunge.review import Answer
from expunge.storage import serialization
from expunge.storage.artefacts import Artefact
from expunge.storage.cached_stages import Chain
from expunge.storage.hashing import content_of, digest
from expunge.storage.run_folder import Run
from expunge.storage.serialization import Codec
from expunge.storage.weights import fit_weights, model_fingerprint, state_of
from expunge.tracking import check_trackers
from expunge.training.checkpoints import Checkpoint
from expunge.training.optimisation import TuneConfig

# A tuning gets as many minutes where the budget is spent: its first steps.
_MIN_MINUTES = 1e-3


@dataclass(frozen=True)
class RepairContext:
    """What a repair works on, checked before anything is computed.

    Parameters
    ----------
    model
        The caller's model. It is never changed.
    train, validation, held_out
        The data sets.
    options
        What the caller asked for; ``recipe`` is resolved from it, ``baselines`` are those that run.
    header
        What identifies the run; written to ``run.json``.
    accelerator
        The processes.
    may_skip_or_revert
        Whether the repair may be skipped or reverted. A deletion may not.
    notes
        What was done to the model before the repair, see `adapt_model`.
    answers
        What reviewers answered, from the run folder.
    review
        What the answers changed; see `expunge.Review.summary`.
    n_shared_validation
        How many validation inputs are training inputs too.
    n_shared_held_out
        How many held-out inputs are training inputs too, where training inputs repeat.
    """

    model: nn.Module
    train: Samples
    validation: Samples | None
    held_out: Samples | None
    options: RepairOptions
    recipe: Recipe
    baselines: tuple[str, ...]
    header: Mapping[str, object]
    accelerator: Accelerator
    may_skip_or_revert: bool = True
    notes: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    review: Mapping[str, object] | None = None
    n_shared_validation: int = 0
    n_shared_held_out: int = 0

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.options.seed

    def chain(self, run: Run, baseline: str = "") -> Chain:
        """Start a chain of stages in a run folder."""
        inputs = {name: self.header[name] for name in ("seed", "model", "train")}
        return Chain(run, inputs, baseline)


@dataclass(frozen=True)
class RepairOutcome:
    """A repaired model, the records it was made from, and the stages behind it.

    head: how a closed-form head reads the model. prune_skipped_reason: why nothing was pruned,
    where the repair decided that. notes: what a tuning did that its settings do not say.
    """

    model: nn.Module
    partition: Partition
    chain: Chain
    ranking: NeuronRanking | None = None
    plan: PrunePlan | None = None
    head: HeadPlan | None = None
    prune_skipped_reason: str = ""
    notes: tuple[str, ...] = ()


def validate_inputs(
    model: nn.Module,
    train: DataLike,
    validation: DataLike | None,
    held_out: DataLike | None,
    options: RepairOptions,
) -> RepairContext:
    """Check what a caller gives, and read it; see `expunge.repair`.

    Raises
    ------
    ExpungeError
        If model, data or options cannot be used, before anything is computed.
    """
    recipe = resolve(options.recipe, options.overrides)
    for name in options.baselines:
        recipes.get(name)
    check_trackers(options.trackers)
    train, validation, held_out = by_split(train, validation, held_out)
    samples = as_samples(train, name="training data")
    model, notes = adapt_model(model, samples)
    notes = (*notes, *stability_notes(model, samples))
    check_model(model)
    check_fit(model, samples)
    require_two_labels(samples.labels, where=samples.name)
    if recipe.tune.n_epochs:
        check_training(model, samples)
    others = {
        name: None
        if data is None
        else as_samples(data, name=f"{name} data", classes=samples.classes)
        for name, data in (("validation", validation), ("held_out", held_out))
    }
    samples.check_finite()
    for other in others.values():
        if other is not None:
            check_disjoint(samples, other)
            check_alike(samples, other)
            other.check_finite()
            check_fit(model, other)
    n_shared_validation = n_shared_held_out = 0
    digests = set(input_digests(samples)) if any(o is not None for o in others.values()) else set()
    if (measured := others["validation"]) is not None:
        n_shared_validation = shared_inputs(samples, measured, digests)
    if (given := others["held_out"]) is not None:
        others["held_out"], n_copies = without_copies(samples, given, digests)
        if others["held_out"] is given:
            n_shared_held_out = n_copies
        else:
            left_out = f"{n_copies:,} of {len(given):,} held-out samples are training inputs"
            notes = (*notes, f"{left_out}, and were left out")
    header = {
        "recipe": options.recipe,
        "settings": asdict(recipe),
        "seed": options.seed,
        "model": model_fingerprint(model),
        "train": samples.fingerprint(),
        **{name: other.fingerprint() if other else None for name, other in others.items()},
    }
    return RepairContext(
        model,
        samples,
        others["validation"],
        others["held_out"],
        options,
        recipe,
        options.baselines if validation is not None else (),
        header,
        this_process(),
        notes=(*options.notes, *notes, *filter(None, [tied_note(model)])),
        n_shared_validation=n_shared_validation,
        n_shared_held_out=n_shared_held_out,
    )


def cached_score(
    context: RepairContext, chain: Chain, config: ScoreConfig, model: nn.Module | None = None
) -> tuple[Scores, Chain]:
    """Score with the caller's model, or with one that the stages of the chain have made."""
    return chain.stage(
        "score",
        config,
        lambda _: stages.score(
            model or context.model,
            context.train,
            config,
            held_out=context.held_out,
            seed=context.seed,
            scratch=chain.run.folder,
            progress=context.options.progress,
        ),
        serialization.SCORES,
        held_out=context.header["held_out"],
    )


def cached_partition(
    context: RepairContext, chain: Chain, config: PartitionConfig, scores: Scores
) -> tuple[Partition, Chain]:
    """Partition by scores; one process decides for all."""

    def compute(_: object) -> Partition:
        return broadcast_decision(
            context.accelerator, lambda: stages.partition(scores, config, seed=context.seed)
        )

    return chain.stage("partition", config, compute, serialization.PARTITION)


def cached_rank(
    context: RepairContext, chain: Chain, config: RankConfig, split: Partition
) -> tuple[NeuronRanking, Chain]:
    """Rank the units of the caller's model by a partition."""
    return chain.stage(
        "rank",
        config,
        lambda _: stages.rank(
            context.model,
            context.train,
            split,
            config,
            seed=context.seed,
            progress=context.options.progress,
        ),
        serialization.RANKING,
    )


def cached_plan(
    context: RepairContext, chain: Chain, config: PruneConfig, ranking: NeuronRanking
) -> tuple[PrunePlan, Chain]:
    """Choose the units to prune; one process decides for all."""

    def compute(_: object) -> PrunePlan:
        return broadcast_decision(
            context.accelerator, lambda: stages.plan(ranking, config, seed=context.seed)
        )

    return chain.stage("prune", config, compute, serialization.PLAN)


def cached_edit(
    context: RepairContext, config: EditConfig, outcome: RepairOutcome
) -> tuple[EditedModel, Chain]:
    """Edit a model by its partition."""
    model, split, chain = outcome.model, outcome.partition, outcome.chain

    def load(artefact: Artefact) -> EditedModel:
        head = serialization.load_head(artefact.metadata)
        example = stages.example_batch(context.train)
        made = (
            copy_model(model)
            if head is None
            else build_classifier(model, head, example, names=artefact.tensors.keys())
        )
        fit_weights(made, artefact.tensors, where=chain.folder("edit"))
        return EditedModel(made.eval(), head)

    def store(edited: EditedModel) -> Artefact:
        return Artefact(serialization.head_metadata(edited.head), {}, state_of(edited.model))

    return chain.stage(
        "edit",
        config,
        lambda _: stages.edit(
            model,
            context.train,
            split,
            config,
            held_out=context.held_out,
            seed=context.seed,
            progress=context.options.progress,
        ),
        Codec(store, load),
        partition=_fingerprint(split),
        held_out=context.header["held_out"],
    )


def cached_tune(
    context: RepairContext, recipe: Recipe, outcome: RepairOutcome, *, later: float = 0.0
) -> RepairOutcome:
    """Tune a model on its partition, as a recipe says.

    later: the cost of the tuning of later rounds, in epochs on the kept samples; of a time budget
    they get as much.
    """
    model, split, chain = outcome.model, outcome.partition, outcome.chain
    notes: list[str] = []
    weights = weights_codec(model, chain.folder("tune"))
    codec = Codec[tuple[nn.Module, tuple[str, ...]]](
        lambda tuned: replace(weights.store(tuned[0]), metadata={"notes": tuned[1]}),
        lambda found: (weights.load(found), tuple(found.metadata["notes"])),
    )
    from_scratch, folder = recipe.start == "scratch", chain.folder("tune")
    config = stages.with_default_lr(
        recipe.tune, model, len(context.train), split, from_scratch=from_scratch
    )
    config = _within_budget(context, chain, config, later)

    def compute(checkpoint: Checkpoint | None) -> tuple[nn.Module, tuple[str, ...]]:
        steps = (0, 0)

        def progress(_: str, done: int, total: int) -> None:
            nonlocal steps
            steps = done, total
            context.options.progress(folder, done, total)

        tuned = stages.tune(
            model,
            context.train,
            split,
            # A learning rate that was left out stays so: it may be lowered.
            replace(recipe.tune, max_minutes=config.max_minutes),
            seed=context.seed,
            layers=tuple(outcome.plan.units) if outcome.plan else (),
            from_scratch=from_scratch,
            trainer=recipe.trainer,
            checkpoint=checkpoint,
            on_note=notes.append,
            stream=chain.stream("tune"),
            progress=progress,
        )
        done, total = steps
        if config.max_minutes is not None and done < total:
            notes.append(f"the time budget ended a tuning after {done:,} of {total:,} steps")
        return tuned, tuple(notes)

    (tuned, said), chain = chain.stage(
        "tune",
        config,
        compute,
        codec,
        start=recipe.start,
        mode=recipe.prune.mode,
        trainer=recipe.trainer,
        # A baseline from scratch learns from the last partition, which no stage of its chain made.
        partition=_fingerprint(split),
    )
    return replace(outcome, model=tuned, chain=chain, notes=(*outcome.notes, *said))


def _within_budget(
    context: RepairContext, chain: Chain, config: TuneConfig, later: float
) -> TuneConfig:
    """Limit the time of a tuning to its part of what the budget leaves."""
    budget = context.options.budget_minutes
    if budget is None:
        return config
    own = tuning_cost(config.targets, config.n_epochs, config)
    left = max(budget - chain.seconds / 60, _MIN_MINUTES) * own / (own + later)
    return replace(config, max_minutes=min(left, config.max_minutes or math.inf))


def tuning_cost(targets: str, epochs: int, config: TuneConfig) -> float:
    """The cost of a tuning in epochs on the kept samples."""
    return epochs * (1 + 4 * config.semi.ratio / 3 if targets == "semi" else 1.0)


def _fingerprint(split: Partition) -> str:
    """A digest of what a tuning reads of a partition."""
    parts = [split.p_noisy, split.p_label_fault, split.p_input_fault, split.suggested_label]
    parts += [] if split.reviewed is None else [split.reviewed]
    return digest(content_of([*parts, split.suggested_probability, split.threshold]))


def weights_codec(architecture: nn.Module, where: str) -> Codec[nn.Module]:
    """Keep a model as its weights; they are read into a copy of the architecture."""

    def load(artefact: Artefact) -> nn.Module:
        model = copy_model(architecture)
        fit_weights(model, artefact.tensors, where=where)
        return model

    def store(model: nn.Module) -> Artefact:
        return Artefact(tensors=state_of(model))

    return Codec(store, load)
