"""The repair from top to bottom: score, partition, rank, plan, prune, tune, compare.

`repair` calls the stages one after the other, keeps what each made in a run folder, runs the
controls from the same partition, and measures. The stages themselves are in `stages`.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from accelerate import Accelerator
from torch import nn

from expunge import archive, flags, metrics, pages, reports, robust, surgery, tuning, verdicts
from expunge.config import digest
from expunge.data import Samples, as_samples, check_disjoint, shared_inputs
from expunge.detectors import kind_of
from expunge.errors import ConfigError, DataError, some
from expunge.layers import check_model, reinitialised
from expunge.partitions import with_inputs
from expunge.processes import once
from expunge.progress import Progress, silent
from expunge.recipes import (
    CUT,
    PruneConfig,
    RankConfig,
    Recipe,
    ScoreConfig,
    recipes,
    resolve,
)
from expunge.related import refinement
from expunge.runs import Artefact, Run, opened
from expunge.stages import (
    Data,
    certify,
    cut_model,
    evaluate,
    one_sample,
    partition,
    plan,
    predict,
    rank,
    score,
    sound_inputs,
    tuned_layers,
)
from expunge.tables import (
    Control,
    NeuronRanking,
    Partition,
    PrunePlan,
    RepairResult,
    Scores,
    Verdict,
)
from expunge.tuning import TuneConfig, lost_classes
from expunge.weights import fit_weights, model_fingerprint, save_weights

# The trainers that neighbours of the method bring.
robust.trainers.register("ssl-refine")(refinement.ssl_refine)

CONTROLS = ("finetune-only", "random-units", "smallest-weights", "retrain-kept")
# Raised when a stage computes something else than before, so that old results are not reused.
CODE = 12
# The stages that every recipe starts with.
_BASIS: tuple[str, ...] = ("1-score", "2-partition")


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
    fresh: bool = False,
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
    job = _prepare(model, train, validation, recipe, overrides, controls, seed, progress, held_out)
    with opened(out, job.header, fresh=fresh, accelerator=job.accelerator) as run:
        run.log("start", recipe=recipe, seed=seed)
        return _finished(job, run, _scored(job, run), train_seconds)


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
    fresh: bool = False,
    progress: Progress = silent,
) -> RepairResult:
    """Unlearn samples that are named: a deletion request, a poisoned batch. See `repair`.

    ids: of training samples. Nothing is looked for: these are bad, all others are good. The units
    that hold them are cut and the rest is fine-tuned on all others; the result's certificate says
    what is left of them, and that is not the same as never having seen them.

    Raises DataError if an id is not there.
    """
    settings = dict(overrides or {})
    tune: Mapping[str, object] = settings.get("tune", {})  # type: ignore[assignment]
    settings |= {
        "partition": {"method": "posterior"},
        "tune": {**tune, "data": "kept"},
        "rounds": {"epochs": ()},
    }
    job = _prepare(model, train, validation, recipe, settings, controls, seed, progress)
    named = _named(job.train, np.unique(np.asarray(list(ids))))
    job = replace(job, asked=False, header={**job.header, "forget": digest(named.tolist())})

    def compute() -> Artefact:
        return archive.store_scores(_all_or_nothing(job.train, named))

    with opened(out, job.header, fresh=fresh, accelerator=job.accelerator) as run:
        run.log("start", recipe=recipe, seed=seed, forget=int(named.sum()))
        key = {**job.key(run, job.recipe.score, ()), "forget": job.header["forget"]}
        scores = archive.load_scores(run.stage("1-score", key, compute))
        return _finished(job, run, scores, None)


def _named(samples: Samples, ids: np.ndarray) -> np.ndarray:
    """``bool[n]``: whether a sample's id is among these; ids in text stand for numbers too."""
    own = samples.ids
    if "U" in (ids.dtype.kind, own.dtype.kind):
        ids, own = ids.astype(str), own.astype(str)
    strangers = np.setdiff1d(ids, own)
    if len(strangers) or not len(ids):
        what = f"no training sample has the id {some(strangers)}" if len(ids) else "no id is named"
        raise DataError(what, where="forget", fix="name ids of the training samples")
    return np.isin(own, ids)


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
    fresh: bool = False,
    progress: Progress = silent,
) -> Stages:
    """Do the first stages of a repair in its run folder; `repair` goes on from there."""
    job = _prepare(model, train, validation, recipe, overrides, controls, seed, progress, held_out)
    with opened(out, job.header, fresh=fresh, accelerator=job.accelerator) as run:
        scores = _scored(job, run)
        split = _partitioned(job, run, scores) if until != "score" else None
        if split is None or until == "partition":
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
    fresh: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train a copy of the model on all samples with the labels given, as a user would have.

    out: a run folder of its own, from which an interrupted training goes on.
    """
    samples = as_samples(data)
    check_model(model)
    accelerator = Accelerator()
    header = {
        "training": asdict(config),
        "seed": seed,
        "model": model_fingerprint(model),
        "train": samples.fingerprint(),
    }
    with opened(out, header, fresh=fresh, accelerator=accelerator) as run:

        def compute() -> Artefact:
            targets = tuning.targets_of(samples, None, config)
            checkpoint = run.checkpoint("model", header)
            trained = tuning.tune(
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


def _finished(job: _Job, run: Run, scores: Scores, train_seconds: float | None) -> RepairResult:
    """All that follows the scores."""
    split = _partitioned(job, run, scores)
    why_not = verdicts.hopeless(split, job.recipe, job.train.classes) if job.asked else ""
    fixed = _untouched(job, run, split) if why_not else _carried_out(job, run, job.recipe, split)
    repaired = None if why_not else fixed
    found = {name: _controlled(job, run, name, split, repaired) for name in job.controls}
    others = {name: other for name, other in found.items() if other is not None}
    verdict = Verdict("leave alone", why_not) if why_not else _judged(job, run, fixed, others)
    if verdict.word == "leave alone":
        fixed = _untouched(job, run, fixed.partition)
    result = _result(job, run, scores, fixed, others, verdict, train_seconds)
    _write(job, run, result)
    run.log("end", flags=[flag.code for flag in result.flags])
    return result


@dataclass(frozen=True)
class _Job:
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
            "code": CODE,
            "settings": asdict(settings),  # type: ignore[call-overload]
            "seed": self.seed,
            "model": self.header["model"],
            "train": self.header["train"],
            "reads": {name: run.keys[name] for name in reads},
            **more,
        }


class _Fixed(NamedTuple):
    model: nn.Module
    partition: Partition
    ranking: NeuronRanking | None
    plan: PrunePlan | None
    seconds: float


def _prepare(
    model: nn.Module,
    train: Data,
    validation: Data | None,
    recipe: str,
    overrides: Mapping[str, object] | None,
    controls: tuple[str, ...],
    seed: int,
    progress: Progress,
    held_out: Data | None = None,
) -> _Job:
    chosen = resolve(recipe, overrides)
    for name in controls:
        recipes.get(name)
    check_model(model)
    samples = as_samples(train)
    others = {
        name: None if data is None else as_samples(data)
        for name, data in (("validation", validation), ("held_out", held_out))
    }
    for name, other in others.items():
        if other is not None:
            check_disjoint(samples, other)
            if other.classes != samples.classes:
                raise ConfigError(
                    f"{name} has the classes {other.classes}, training {samples.classes}",
                    fix="read both with the same class names",
                )
    controls = controls if validation is not None else ()
    header = {
        "recipe": recipe,
        "settings": asdict(chosen),
        "seed": seed,
        "model": model_fingerprint(model),
        "train": samples.fingerprint(),
        **{name: other.fingerprint() if other else None for name, other in others.items()},
    }
    return _Job(
        model,
        samples,
        others["validation"],
        others["held_out"],
        recipe,
        chosen,
        controls,
        seed,
        header,
        Accelerator(),
        progress,
    )


def _scored(
    job: _Job,
    run: Run,
    model: nn.Module | None = None,
    config: ScoreConfig | None = None,
    name: str = "1-score",
    read: Sequence[str] = (),
) -> Scores:
    """Scores of the model given, or of one that the stages read have made of it."""
    config = config or job.recipe.score

    def compute() -> Artefact:
        return archive.store_scores(
            score(
                model or job.model,
                job.train,
                seed=job.seed,
                progress=job.progress,
                **asdict(config),
            )
        )

    return archive.load_scores(run.stage(name, job.key(run, config, read), compute))


def _partitioned(
    job: _Job,
    run: Run,
    scores: Scores,
    name: str = "2-partition",
    read: Sequence[str] = ("1-score",),
) -> Partition:
    config = job.recipe.partition

    def compute() -> Artefact:
        split = once(job.accelerator, lambda: partition(scores, seed=job.seed, **asdict(config)))
        return archive.store_partition(split)

    return archive.load_partition(run.stage(name, job.key(run, config, read), compute))


def _carried_out(
    job: _Job,
    run: Run,
    recipe: Recipe,
    split: Partition,
    prefix: str = "",
    until: str = "tune",
    basis: Sequence[str] = _BASIS,
) -> _Fixed:
    """Rank, plan, cut and tune as a recipe says, in as many rounds as it says.

    The prefix is that of its stages' folders; the basis are the stages that made the partition.
    """
    read = list(basis)
    model, ranking, cut = job.model, None, None
    if recipe.start == "scratch":
        model = reinitialised(model, job.seed)
    prune = recipe.prune
    if prune.open:
        scores = archive.load_scores(run.made["1-score"])
        cuts = until != "tune" or not job.asked or by_heart(recipe, scores, split)
        prune = replace(prune, fraction=CUT if cuts else 0.0)
    if prune.cuts:
        # A control that ranks as the repair itself does shares its ranking.
        shared = recipe.rank == job.recipe.rank and basis == _BASIS
        name = f"{'' if shared else prefix}3-rank"
        ranking = _ranked(job, run, recipe.rank, split, name, read)
        read.append(name)
        if until != "rank":
            cut = _planned(job, run, prune, ranking, f"{prefix}4-prune", read)
            read.append(f"{prefix}4-prune")
            model = cut_model(model, cut, job.train, prune.mode)
    if recipe.tune.epochs and until == "tune":
        model = _tuned(job, run, recipe, model, split, cut, f"{prefix}5-tune", read)
        read.append(f"{prefix}5-tune")
        more = recipe.rounds.epochs if recipe.start == "model" else ()
        for number in range(len(more)):
            at = job, run, recipe, number
            split, model, settled = _again(*at, model, split, cut, prefix, read)
            if settled:
                break
    if model is job.model:  # the caller's own: neither handed out nor put into another mode
        model = copy.deepcopy(model)
    return _Fixed(model.eval(), split, ranking, cut, sum(run.seconds[name] for name in read))


def _untouched(job: _Job, run: Run, split: Partition) -> _Fixed:
    """The model as it came."""
    seconds = sum(run.seconds[name] for name in _BASIS)
    return _Fixed(copy.deepcopy(job.model).eval(), split, None, None, seconds)


def _judged(job: _Job, run: Run, fixed: _Fixed, others: Mapping[str, _Fixed]) -> Verdict:
    """Whether to keep the repair, by what is held out."""
    if not job.asked:
        return Verdict("repair", "these samples were to be unlearned, whatever it costs")
    if job.held_out is None:
        return Verdict("repair", "no labels were held out that could speak against it")
    started, held_out = time.perf_counter(), job.held_out

    def predicted(model: nn.Module) -> np.ndarray:
        return predict(model, held_out, progress=job.progress)

    scratch = [name for name in others if recipes.get(name)(job.recipe).start == "scratch"]
    verdict = verdicts.judge(
        predicted(job.model),
        verdicts.Candidate(predicted(fixed.model), fixed.seconds),
        {n: verdicts.Candidate(predicted(others[n].model), others[n].seconds) for n in scratch},
        verdicts.HeldOut(held_out.labels, sound_inputs(job.model, held_out, fixed.partition)),
        verdicts.transition(fixed.partition, len(job.train.classes)),
    )
    run.seconds["judge"] = time.perf_counter() - started
    return verdict


def _again(
    job: _Job,
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
    own = tuple(n for n in recipe.score.detectors if kind_of(n) == "label")
    config = replace(recipe.score, views=rounds.views, detectors=own or recipe.score.detectors)
    scores = _scored(job, run, model, config, looked, read)
    read.append(looked)
    split = with_inputs(_partitioned(job, run, scores, split_name, read), before)
    read.append(split_name)
    settled = bool((before.flagged != split.flagged).mean() < rounds.enough)
    epochs = sum(rounds.epochs[number:]) if settled else rounds.epochs[number]
    tune = replace(recipe.tune, data=rounds.data, epochs=epochs)
    if len(lost_classes(split, tune)):
        return before, model, True
    model = _tuned(job, run, replace(recipe, tune=tune), model, split, cut, tuned, read)
    read.append(tuned)
    return split, model, settled


def _controlled(
    job: _Job, run: Run, name: str, first: Partition, repaired: _Fixed | None
) -> _Fixed | None:
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
    split, read = (last if recipe.start == "scratch" else first), _BASIS
    if (recipe.score, recipe.partition) != (job.recipe.score, job.recipe.partition):
        read = tuple(f"{prefix}{stage}" for stage in _BASIS)
        own = replace(job, recipe=recipe)
        split = _partitioned(own, run, _scored(own, run, name=read[0]), read[1], read[:1])
    if len(lost_classes(split, recipe.tune)):
        return None
    return _carried_out(job, run, recipe, split, prefix, basis=read)


def _ranked(
    job: _Job, run: Run, config: RankConfig, split: Partition, name: str, read: list[str]
) -> NeuronRanking:
    def compute() -> Artefact:
        return archive.store_ranking(
            rank(
                job.model,
                job.train,
                split,
                seed=job.seed,
                progress=job.progress,
                **asdict(config),
            )
        )

    return archive.load_ranking(run.stage(name, job.key(run, config, read), compute))


def _planned(
    job: _Job, run: Run, config: PruneConfig, ranking: NeuronRanking, name: str, read: list[str]
) -> PrunePlan:
    def compute() -> Artefact:
        return archive.store_plan(
            once(job.accelerator, lambda: plan(ranking, seed=job.seed, **asdict(config)))
        )

    return archive.load_plan(run.stage(name, job.key(run, config, read), compute))


def _tuned(
    job: _Job,
    run: Run,
    recipe: Recipe,
    model: nn.Module,
    split: Partition,
    cut: PrunePlan | None,
    name: str,
    read: list[str],
) -> nn.Module:
    config, mode = recipe.tune, recipe.prune.mode
    if config.lr is None:
        scores = archive.load_scores(run.made["1-score"])
        config = tuning.with_rate(config, len(job.train), rate_of(recipe, scores, split))
    key = job.key(run, config, read, start=recipe.start, mode=mode, trainer=recipe.trainer)

    def compute() -> Artefact:
        if recipe.trainer:
            trainer, rate = robust.trainers.get(recipe.trainer), split.noise_rate[0]
            how = {"seed": job.seed, "rate": rate, "progress": job.progress, "what": name}
            return Artefact(tensors=trainer(model, job.train, config, **how).state_dict())
        cut_layers = tuple(cut.units) if cut else ()
        found = tuning.tune(
            model,
            job.train,
            tuning.targets_of(job.train, split, config),
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


def rate_of(recipe: Recipe, scores: Scores, split: Partition) -> float:
    """The highest learning rate where the recipe names none, for batches of 128."""
    if recipe.start == "scratch":
        return tuning.SCRATCH_RATE
    return tuning.FAR_RATE if by_heart(recipe, scores, split) else tuning.RATE


def by_heart(recipe: Recipe, scores: Scores, split: Partition) -> bool:
    """Whether the model has learned wrong labels by heart; where labels are right it is no harm."""
    wrong = float((split.p_label_fault > 0.5).mean()) >= recipe.least
    return wrong and bool(flags.memorised(scores))


def _result(
    job: _Job,
    run: Run,
    scores: Scores,
    fixed: _Fixed,
    others: Mapping[str, _Fixed],
    verdict: Verdict,
    train_seconds: float | None,
) -> RepairResult:
    """Measure the repaired model and the controls, and look for reasons to doubt the numbers."""
    example = one_sample(job.train)
    before = after = gain = None
    controls = {}
    started = time.perf_counter()
    if job.validation is not None:
        before = evaluate(job.model, job.validation, seed=job.seed, progress=job.progress)
        after = evaluate(fixed.model, job.validation, seed=job.seed, progress=job.progress)
        gain = metrics.paired_gain(after, before, seed=job.seed)
        for name, other in others.items():
            found = evaluate(other.model, job.validation, seed=job.seed, progress=job.progress)
            difference = metrics.paired_gain(after, found, seed=job.seed)
            size = surgery.size(other.model, example)
            controls[name] = Control(found, other.seconds, size, difference, other.model)
    certificate = certify(
        job.model, fixed.model, job.train, fixed.partition, job.validation, seed=job.seed
    )
    shared = shared_inputs(job.train, job.validation) if job.validation is not None else 0
    seconds = {} if train_seconds is None else {"train": train_seconds}
    for name, spent in run.seconds.items():
        stage = "controls" if name.startswith("controls/") else name.rpartition("-")[2]
        seconds[stage] = seconds.get(stage, 0.0) + spent
    seconds.setdefault("controls", 0.0)
    seconds["compare"] = time.perf_counter() - started
    return RepairResult(
        model=fixed.model,
        recipe=job.name,
        seed=job.seed,
        config=asdict(job.recipe),
        scores=scores,
        partition=fixed.partition,
        ranking=fixed.ranking,
        plan=fixed.plan,
        before=before,
        after=after,
        gain=gain,
        controls=controls,
        size_before=surgery.size(job.model, example),
        size_after=surgery.size(fixed.model, example),
        seconds=seconds,
        flags=flags.find_flags(
            fixed.partition,
            fixed.plan,
            before,
            after,
            controls,
            shared,
            extra=flags.memorised(scores),
        ),
        run=str(run.folder) if run.folder else "",
        classes=job.train.classes,
        verdict=verdict,
        certificate=certificate,
        quarantined=_quarantined(job),
    )


def _quarantined(job: _Job) -> dict[str, Mapping[Any, str]]:
    """What was left out of the sets that the job was given."""
    sets = {"training": job.train, "validation": job.validation, "held-out": job.held_out}
    return {f"{k} data": s.quarantined for k, s in sets.items() if s is not None and s.quarantined}


def _write(job: _Job, run: Run, result: RepairResult) -> None:
    """The files for people and programs: the model, the partition, the result and the reports."""
    suspects = result.partition.ids[reports.worst(result.partition, reports.GALLERY)]
    images = pages.images_for(job.train, suspects.tolist())
    clips = pages.clips_for(job.train, suspects.tolist())
    plan = json.dumps({k: list(v) for k, v in result.plan.units.items()} if result.plan else {})
    run.write("model.safetensors", lambda p: save_weights(result.model, p, {"plan": plan}))
    run.write("partition.parquet", lambda p: pq.write_table(result.partition.to_table(), p))
    run.write("report.html", pages.html(result, images=images, clips=clips))
    run.write("report.md", reports.markdown(result))
    run.write("result.json", json.dumps(reports.summary(result), indent=2) + "\n")
