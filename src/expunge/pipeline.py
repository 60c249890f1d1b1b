"""The repair from top to bottom: score, partition, rank, plan, prune, tune, compare.

`repair` calls the stages one after the other, keeps what each made in a run folder, runs the
controls from the same partition, and measures. The stages themselves are in `stages`, their
results are kept by `jobs`, and what came of it is in `results`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from accelerate import Accelerator
from torch import nn

from expunge import results
from expunge._core.progress import Progress, silent
from expunge.config import digest
from expunge.data import Samples, as_samples
from expunge.detection.detectors import detectors
from expunge.detection.partitioners import with_input_faults
from expunge.errors import DataError, ModelError, PruneError, format_ids
from expunge.evaluation import decision
from expunge.models.inspection import check_fit, check_model, reinitialise
from expunge.recipes import DEFAULT_PRUNE_FRACTION, Recipe, recipes
from expunge.records import Decision, NeuronRanking, Partition, PrunePlan, RepairResult, Scores
from expunge.stages import Data, clean_input_probability, cut_model, predict
from expunge.storage import cached_stages, serialization
from expunge.storage.cached_stages import SHARED_STAGES, RepairContext, RepairOutcome
from expunge.storage.run_folder import Artefact, Run, open_run
from expunge.storage.weights import fit_weights, model_fingerprint
from expunge.training import loop
from expunge.training.loop import TuneConfig
from expunge.training.targets import build_targets, classes_without_samples

# Why nothing is cut where the repair decides.
_NO_NEED = (
    "the model has not learned wrong labels by heart, and elsewhere a cut costs accuracy; set "
    "prune.fraction for a smaller model"
)
CONTROLS = ("finetune-only", "random-units", "magnitude", "retrain-filtered")


def repair(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    recipe: str = "default",
    overrides: Mapping[str, object] | None = None,
    held_out: Data | None = None,
    controls: tuple[str, ...] = CONTROLS,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    train_seconds: float | None = None,
    progress: Progress = silent,
) -> RepairResult:
    """Repair a model that was trained on noisy data.

    model: any classifier; it is not changed. train: the data that it was trained on, noise and
    all. validation: samples that measure the result and decide nothing. recipe: what to do;
    overrides: single settings of it, ``{"tune": {"epochs": 3}}``. held_out: samples that the model
    was not trained on, with labels of the same source as those of train, wrong ones among them:
    where they speak against the repair it is rolled back, see `verdicts`. controls: recipes to
    compare with, from the same partition; each takes its own tuning time, and none runs without
    validation. out: the run folder; an interrupted repair goes on from it. fresh: discard what is
    in it. train_seconds: what the training of the model took, if known, for the report.

    Returns the repaired model with the evidence for every decision.
    """
    job = cached_stages.prepare(
        model,
        train,
        validation,
        held_out,
        recipe=recipe,
        overrides=overrides,
        controls=controls,
        seed=seed,
        progress=progress,
    )
    with open_run(out, job.header, overwrite=overwrite, accelerator=job.accelerator) as run:
        run.log("start", recipe=recipe, seed=seed)
        return _finished(job, run, cached_stages.scored(job, run), train_seconds)


def forget(
    model: nn.Module,
    train: Data,
    ids: Iterable[Any],
    validation: Data | None = None,
    *,
    recipe: str = "default",
    overrides: Mapping[str, object] | None = None,
    controls: tuple[str, ...] = CONTROLS,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> RepairResult:
    """Unlearn samples that are named: a deletion request, a poisoned batch. See `repair`.

    ids: of training samples. Nothing is looked for: these are bad, all others are good. The units
    that hold them are cut and the rest is fine-tuned on all others; the result's certificate says
    what is left of them, and that is not the same as never having seen them.

    Raises DataError if an id is not there, or if nothing would be left of a class to tune on.
    """
    settings = dict(overrides or {})
    tune: Mapping[str, object] = settings.get("tune", {})  # type: ignore[assignment]
    settings |= {
        "partition": {"method": "posterior"},
        "tune": {**tune, "targets": "filter"},
        "rounds": {"epochs": ()},
    }
    job = cached_stages.prepare(
        model,
        train,
        validation,
        recipe=recipe,
        overrides=settings,
        controls=controls,
        seed=seed,
        progress=progress,
    )
    named = _named(job.train, np.unique(np.asarray(list(ids))))
    if job.recipe.tune.epochs:
        _require_rest(job.train, named)
    job = replace(job, asked=False, header={**job.header, "forget": digest(named.tolist())})

    def compute() -> Artefact:
        return serialization.store_scores(_all_or_nothing(job.train, named))

    with open_run(out, job.header, overwrite=overwrite, accelerator=job.accelerator) as run:
        run.log("start", recipe=recipe, seed=seed, forget=int(named.sum()))
        key = {**job.key(run, job.recipe.score, ()), "forget": job.header["forget"]}
        scores = serialization.load_scores(run.stage("1-score", key, compute))
        return _finished(job, run, scores, None)


def _named(samples: Samples, ids: np.ndarray) -> np.ndarray:
    """``bool[n]``: whether a sample's id is among these; ids in text stand for numbers too."""
    own = samples.ids
    if "U" in (ids.dtype.kind, own.dtype.kind):
        ids, own = ids.astype(str), own.astype(str)
    strangers = np.setdiff1d(ids, own)
    if len(strangers) or not len(ids):
        what = (
            f"no training sample has the id {format_ids(strangers)}"
            if len(ids)
            else "no id is named"
        )
        raise DataError(what, where="forget", fix="name ids of the training samples")
    return np.isin(own, ids)


def _require_rest(samples: Samples, named: np.ndarray) -> None:
    """Refuse to forget all that there is of a class."""
    lost = np.setdiff1d(samples.labels, samples.labels[~named])
    if len(lost):
        raise DataError(
            f"nothing would be left of class {format_ids(samples.classes[c] for c in lost)}",
            where="forget",
            fix="a class is not forgotten whole this way: name fewer ids, or train a network "
            "without the class",
        )


def _all_or_nothing(samples: Samples, named: np.ndarray) -> Scores:
    """Scores that are certain: 1 for what is named, 0 for all else; no other label is suggested."""
    return Scores(
        ids=samples.ids,
        labels=samples.labels,
        values={"named": named.astype(np.float64)},
        kinds={"named": "label"},
        class_probs=np.eye(len(samples.classes))[samples.labels],
    )


class Stages(NamedTuple):
    """What the stages up to the one asked for have made; None behind it."""

    scores: Scores
    partition: Partition | None
    ranking: NeuronRanking | None
    plan: PrunePlan | None


def repair_until(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    until: Literal["score", "partition", "rank", "prune", "tune"],
    recipe: str = "default",
    overrides: Mapping[str, object] | None = None,
    held_out: Data | None = None,
    controls: tuple[str, ...] = CONTROLS,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Stages:
    """Do the first stages of a repair in its run folder; `repair` goes on from there."""
    job = cached_stages.prepare(
        model,
        train,
        validation,
        held_out,
        recipe=recipe,
        overrides=overrides,
        controls=controls,
        seed=seed,
        progress=progress,
    )
    with open_run(out, job.header, overwrite=overwrite, accelerator=job.accelerator) as run:
        scores = cached_stages.scored(job, run)
        if until == "score":
            return Stages(scores, None, None, None)
        split = cached_stages.partitioned(job, run, job.recipe.partition, scores)
        if until == "partition":
            return Stages(scores, split, None, None)
        fixed = _carried_out(job, run, job.recipe, split, until=until)
        return Stages(scores, split, fixed.ranking, fixed.plan)


class Trained(NamedTuple):
    """A trained model and the seconds that it took."""

    model: nn.Module
    seconds: float


def train(
    model: nn.Module,
    data: Data,
    config: TuneConfig,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train a copy of the model on all samples with the labels given, as a user would have.

    out: a run folder of its own, from which an interrupted training goes on.
    """
    samples, seed = as_samples(data), int(seed)
    check_model(model)
    check_fit(model, samples)
    accelerator = Accelerator()
    header = {
        "training": asdict(config),
        "seed": seed,
        "model": model_fingerprint(model),
        "train": samples.fingerprint(),
    }
    with open_run(out, header, overwrite=overwrite, accelerator=accelerator) as run:

        def compute() -> Artefact:
            targets = build_targets(samples, None, config)
            checkpoint = run.checkpoint("model", header)
            trained = loop.tune(
                model,
                samples,
                targets,
                config,
                seed=seed,
                checkpoint=checkpoint,
                progress=progress,
                what="train",
            )
            return Artefact(tensors=trained.state_dict())

        artefact = run.stage("model", header, compute)
    trained = copy.deepcopy(model)
    fit_weights(trained, artefact.tensors, where="train")
    return Trained(trained.eval(), run.seconds["model"])


def _finished(
    job: RepairContext, run: Run, scores: Scores, train_seconds: float | None
) -> RepairResult:
    """All that follows the scores."""
    split = cached_stages.partitioned(job, run, job.recipe.partition, scores)
    why_not = decision.reason_to_skip(split, job.recipe, job.train.classes) if job.asked else ""
    fixed = _untouched(job, run, split) if why_not else _carried_out(job, run, job.recipe, split)
    repaired = None if why_not else fixed
    found = {name: _controlled(job, run, name, split, repaired) for name in job.controls}
    others = {name: other for name, other in found.items() if other is not None}
    verdict = Decision("skip", why_not) if why_not else _judged(job, run, fixed, others)
    if not verdict.kept:
        fixed = _untouched(job, run, fixed.partition)
    result = results.measure(job, run, scores, fixed, others, verdict, train_seconds)
    results.write(job, run, result)
    run.log("end", flags=[flag.code for flag in result.flags])
    return result


def _carried_out(
    job: RepairContext,
    run: Run,
    recipe: Recipe,
    split: Partition,
    prefix: str = "",
    until: str = "tune",
    basis: Sequence[str] = SHARED_STAGES,
) -> RepairOutcome:
    """Rank, plan, cut and tune as a recipe says, in as many rounds as it says.

    The prefix is that of its stages' folders; the basis are the stages that made the partition.
    """
    read, model = list(basis), job.model
    if recipe.start == "scratch":
        model = reinitialise(model, job.seed)
    # A control that ranks as the repair itself does shares its ranking.
    shared = recipe.rank == job.recipe.rank and basis == SHARED_STAGES
    folders = f"{'' if shared else prefix}3-rank", f"{prefix}4-prune"
    model, ranking, cut, prune_skipped_reason = _cut(
        job, run, recipe, model, split, folders, until, read
    )
    if recipe.tune.epochs and until == "tune":
        model = cached_stages.tuned(job, run, recipe, model, split, cut, f"{prefix}5-tune", read)
        read.append(f"{prefix}5-tune")
        more = recipe.rounds.epochs if recipe.start == "model" else ()
        for number in range(len(more)):
            at = job, run, recipe, number
            split, model, settled = _again(*at, model, split, cut, prefix, read)
            if settled:
                break
    if model is job.model:  # the caller's own: neither handed out nor put into another mode
        model = copy.deepcopy(model)
    seconds = sum(run.seconds[name] for name in read)
    return RepairOutcome(model.eval(), split, ranking, cut, seconds, prune_skipped_reason)


class _Cut(NamedTuple):
    """A model, without units where a plan says so, and why not where the repair decided that."""

    model: nn.Module
    ranking: NeuronRanking | None = None
    plan: PrunePlan | None = None
    prune_skipped_reason: str = ""


def _cut(
    job: RepairContext,
    run: Run,
    recipe: Recipe,
    model: nn.Module,
    split: Partition,
    folders: tuple[str, str],
    until: str,
    read: list[str],
) -> _Cut:
    """Rank, plan and cut, as far as a recipe says; where it leaves that open, see `PruneConfig`."""
    prune, ranking = recipe.prune, None
    if prune.is_auto:
        scores = serialization.load_scores(run.artefacts["1-score"])
        if (
            until == "tune"
            and job.asked
            and not cached_stages.memorised_wrong_labels(recipe, scores, split)
        ):
            return _Cut(model, prune_skipped_reason=_NO_NEED)
        prune = replace(prune, fraction=DEFAULT_PRUNE_FRACTION)
    if not prune.is_enabled:
        return _Cut(model)
    try:
        ranking = cached_stages.ranked(job, run, recipe.rank, split, folders[0], read)
        read.append(folders[0])
        if until == "rank":
            return _Cut(model, ranking)
        plan = cached_stages.planned(job, run, prune, ranking, folders[1], read)
        smaller = cut_model(model, plan, job.train, prune.mode)
    except (ModelError, PruneError) as error:
        if until != "tune" or not recipe.prune.is_auto:
            raise
        return _Cut(model, ranking, prune_skipped_reason=f"this network cannot be: {error.what}")
    read.append(folders[1])
    return _Cut(smaller, ranking, plan)


def _untouched(job: RepairContext, run: Run, split: Partition) -> RepairOutcome:
    """The model as it came."""
    seconds = sum(run.seconds[name] for name in SHARED_STAGES)
    return RepairOutcome(copy.deepcopy(job.model).eval(), split, None, None, seconds)


def _judged(
    job: RepairContext, run: Run, fixed: RepairOutcome, others: Mapping[str, RepairOutcome]
) -> Decision:
    """Whether to keep the repair, by what is held out."""
    if not job.asked:
        return Decision("keep", "these samples were to be unlearned, whatever it costs")
    if job.held_out is None:
        return Decision("keep", "no labels were held out that could speak against it")
    started, held_out = time.perf_counter(), job.held_out

    def predicted(model: nn.Module) -> np.ndarray:
        return predict(model, held_out, progress=job.progress)

    scratch = [name for name in others if recipes.get(name)(job.recipe).start == "scratch"]
    verdict = decision.decide(
        predicted(job.model),
        decision.Candidate(predicted(fixed.model), fixed.seconds),
        {n: decision.Candidate(predicted(others[n].model), others[n].seconds) for n in scratch},
        decision.HeldOutLabels(
            held_out.labels, clean_input_probability(job.model, held_out, fixed.partition)
        ),
        decision.transition(fixed.partition, len(job.train.classes)),
    )
    run.seconds["judge"] = time.perf_counter() - started
    return verdict


def _again(
    job: RepairContext,
    run: Run,
    recipe: Recipe,
    number: int,
    model: nn.Module,
    before: Partition,
    cut: PrunePlan | None,
    prefix: str,
    read: list[str],
) -> tuple[Partition, nn.Module, bool]:
    """One more round: what the repaired model sees in the labels, and what it learns of that.

    What the first look has said of inputs stands: bad ones, which the repaired model has not been
    shown, are strange to it in another way than to the one that was. Where it sees next to nothing
    new, it was the last look, and the rest is one tuning. Where it leaves nothing of a class, the
    rounds are over, and the model is what it was.
    """
    rounds, folder = recipe.rounds, f"{prefix}rounds/{number + 2}/"
    looked, split_name, tuned = (f"{folder}{n}" for n in ("1-score", "2-partition", "5-tune"))
    own = tuple(n for n in recipe.score.detectors if detectors.metadata(n).kind == "label")
    config = replace(recipe.score, views=rounds.views, detectors=own or recipe.score.detectors)
    scores = cached_stages.scored(job, run, model, config, looked, read)
    read.append(looked)
    found = cached_stages.partitioned(job, run, recipe.partition, scores, split_name, read)
    split = with_input_faults(found, before, fdr=recipe.partition.fdr)
    read.append(split_name)
    settled = bool((before.flagged != split.flagged).mean() < rounds.min_flag_change)
    epochs = sum(rounds.epochs[number:]) if settled else rounds.epochs[number]
    tune = replace(recipe.tune, targets=rounds.targets, epochs=epochs)
    if len(classes_without_samples(split, tune)):
        return before, model, True
    model = cached_stages.tuned(
        job, run, replace(recipe, tune=tune), model, split, cut, tuned, read
    )
    read.append(tuned)
    return split, model, settled


def _controlled(
    job: RepairContext, run: Run, name: str, first: Partition, repaired: RepairOutcome | None
) -> RepairOutcome | None:
    """A control: it starts from the first partition, or trains from scratch on the repair's last.

    One that scores or partitions in another way makes its own. One that differs in what it cuts
    alone is the repair itself where that cut nothing. None where nothing is left of a class for it
    to learn from.
    """
    recipe, prefix = recipes.get(name)(job.recipe), f"controls/{name}/"
    same = replace(recipe, rank=job.recipe.rank, prune=job.recipe.prune) == job.recipe
    if repaired is not None and repaired.plan is None and same:
        return repaired
    last = first if repaired is None else repaired.partition
    split, read = (last if recipe.start == "scratch" else first), SHARED_STAGES
    if (recipe.score, recipe.partition) != (job.recipe.score, job.recipe.partition):
        read = tuple(f"{prefix}{stage}" for stage in SHARED_STAGES)
        scores = cached_stages.scored(job, run, config=recipe.score, name=read[0])
        split = cached_stages.partitioned(job, run, recipe.partition, scores, read[1], read[:1])
    if len(classes_without_samples(split, recipe.tune)):
        return None
    return _carried_out(job, run, recipe, split, prefix, basis=read)
