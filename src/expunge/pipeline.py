"""The repair from top to bottom: score, partition, rank, plan, prune, tune, compare, decide.

`repair` runs the stages one after the other and keeps the result of each in a run folder. It runs
the baselines from the same partition, decides by held-out labels whether to keep the repair, and
measures. The stages themselves are in `stages`; `repair_context` says what they work on and how
they are cached; `results` measures and writes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
from torch import Tensor, nn

from expunge import results, stages
from expunge._core.arrays import Array, Bools, Ints
from expunge._core.distributed import this_process
from expunge._core.progress import Progress, silent
from expunge._core.rng import subsample
from expunge._core.threads import one_at_a_time
from expunge.config import DEFAULT_PRUNE_FRACTION, RepairKeywords, RepairOptions
from expunge.data import DataLike, Samples, as_samples
from expunge.data.checks import require_two_labels
from expunge.data.conversion import to_column
from expunge.detection.detectors import detectors
from expunge.detection.partitioners import with_input_faults
from expunge.detection.similar_scores import MIN_SIMILARITY, score_similar, similar_note
from expunge.errors import DataError, ModelError, PruneError, format_ids
from expunge.evaluation import decision as decisions
from expunge.models.adaptation import adapt_model
from expunge.models.checks import check_fit, check_model, check_training
from expunge.models.copying import copy_model
from expunge.models.initialisation import reinitialise
from expunge.pruning import surgery
from expunge.pruning.dependencies import check_hooks
from expunge.pruning.hidden_pairs import found_once
from expunge.recipes import Recipe, recipes
from expunge.records import (
    Decision,
    NeuronRanking,
    Partition,
    PrunePlan,
    RepairResult,
    Scores,
)
from expunge.repair_context import (
    RepairContext,
    RepairOutcome,
    cached_edit,
    cached_partition,
    cached_plan,
    cached_rank,
    cached_score,
    cached_tune,
    tuning_cost,
    validate_inputs,
    weights_codec,
)
from expunge.repair_review import cached_review, with_answers
from expunge.storage import serialization
from expunge.storage.cached_stages import Chain
from expunge.storage.hashing import digest
from expunge.storage.run_folder import open_run
from expunge.storage.weights import model_fingerprint
from expunge.training.optimisation import TuneConfig
from expunge.training.targets import classes_without_samples

_NOT_MEMORISED = (
    "the model has not memorised wrong labels, and pruning other models costs accuracy; set "
    "prune.fraction for a smaller model"
)


class Detected(NamedTuple):
    """What every recipe starts from: scores, partition, and the cached stages that made them."""

    scores: Scores
    partition: Partition
    chain: Chain


@one_at_a_time
def repair(
    model: nn.Module,
    train: DataLike,
    validation: DataLike | None = None,
    *,
    held_out: DataLike | None = None,
    **options: Unpack[RepairKeywords],
) -> RepairResult:
    """Repair a model that was trained on noisy data.

    Parameters
    ----------
    model
        A classifier: a batch of inputs to logits ``float[b, c]``. It is never changed.
    train
        The data that it was trained on, including its noise: `Samples`, a pair ``(x, y)`` of
        arrays, or a map-style data set. A `DatasetDict` or another mapping of splits gives the
        other sets too, see `by_split`.
    validation
        Samples that measure the result. They decide nothing.
    held_out
        Samples that the model was not trained on, with labels of the same source as those of
        ``train``, wrong ones among them. If they contradict the repair, it is reverted.
    **options
        Fields of `RepairOptions`: ``recipe``, ``overrides``, ``baselines``, ``seed``, ``out``,
        ``overwrite``, ``train_seconds``, ``progress``.

    Returns
    -------
    RepairResult
        The evidence for every decision. ``result.decision.action`` is ``"keep"``, ``"retrain"``,
        ``"skip"`` or ``"revert"``. ``result.decision.kept`` says whether ``result.model`` is the
        repaired model; otherwise it is a copy of the one given. It is never a retrained network.

    Raises
    ------
    ExpungeError
        If model, data or options cannot be used. All that can be checked is checked before
        anything is computed.

    Notes
    -----
    Cost of the default recipe: four passes to score, six or twelve epochs, and the
    baselines, each for as many epochs. An interrupted run resumes from ``out``; on a CPU it ends
    with the same bits as an uninterrupted one.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> result = repair(model, data, overrides={"tune": {"epochs": 1}})
    >>> result.decision.action in ("keep", "skip")
    True
    """
    context = validate_inputs(model, train, validation, held_out, RepairOptions.of(options))
    with _open(context) as run:
        run.log("start", recipe=context.options.recipe, seed=context.seed)
        scores, chain = cached_score(context, context.chain(run), context.recipe.score)
        return _repair_from_scores(context, scores, chain)


@one_at_a_time
def forget(
    model: nn.Module,
    train: DataLike,
    ids: Collection[Any] | Array,
    validation: DataLike | None = None,
    *,
    find_more: bool = False,
    **options: Unpack[RepairKeywords],
) -> RepairResult:
    """Unlearn samples that are named: a deletion request, or a poisoned batch.

    The named samples are bad; all others are good, or are looked through with ``find_more``. The
    units that carry the bad ones are pruned, and the rest is fine-tuned on all other samples.
    ``result.audit`` measures what is left of them; that is not a proof that the model is as if it
    had never seen them.

    Parameters
    ----------
    model, train, validation
        See `repair`.
    ids
        Ids of training samples. Numbers may be given as text. Truth values, one for each sample,
        are a mask.
    find_more
        Whether the named samples, five or more, are a random part of the bad ones. Samples that
        resemble them are found, each with a probability, and unlearned too. The model then learns
        that the labels of all of these are wrong; without it, it does not see them again.
    **options
        See `repair`.

    Raises
    ------
    DataError
        If an id is not there, or if no sample of a class would be left to tune on.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> result = forget(model, data, [3, 17], overrides={"tune": {"epochs": 1}})
    >>> result.audit.samples
    2
    """
    given = RepairOptions.of(options)
    settings = dict(given.overrides or {})
    tune = settings.get("tune", {})
    threshold = {"threshold": MIN_SIMILARITY} if find_more else {}
    settings |= {
        "partition": {"method": "posterior", **threshold},
        "tune": {**tune, "targets": "complement" if find_more else "filter"},
        "rounds": {"epochs": ()},
    }
    context = validate_inputs(model, train, validation, None, replace(given, overrides=settings))
    named = _mask_of_ids(context.train, ids)
    if context.recipe.tune.n_epochs:
        _check_classes_remain(context.train, named)
    deleted = digest(context.train.ids[named].tolist())
    context = replace(
        context,
        may_skip_or_revert=False,
        header={**context.header, "forget": deleted, "find_more": find_more},
    )
    with _open(context) as run:
        run.log("start", recipe=context.options.recipe, seed=context.seed, forget=int(named.sum()))
        scores, chain = context.chain(run).stage(
            "score",
            context.recipe.score,
            lambda _: (
                _similar_scores(context, named)
                if find_more
                else _deletion_scores(context.train, named)
            ),
            serialization.SCORES,
            forget=deleted,
            find_more=find_more,
        )
        if find_more:
            context = replace(context, notes=(*context.notes, similar_note(scores)))
        return _repair_from_scores(context, scores, chain)


class StageResults(NamedTuple):
    """Results of the stages up to the requested one; None for later ones."""

    scores: Scores
    partition: Partition | None = None
    ranking: NeuronRanking | None = None
    plan: PrunePlan | None = None


@one_at_a_time
def repair_until(
    model: nn.Module,
    train: DataLike,
    validation: DataLike | None = None,
    *,
    until: Literal["score", "partition", "rank", "prune", "tune"],
    held_out: DataLike | None = None,
    **options: Unpack[RepairKeywords],
) -> StageResults:
    """Run the first stages of a repair in its run folder; `repair` resumes from there.

    Parameters
    ----------
    until
        The last stage that is run. Up to ``"prune"``, units are ranked and planned even if a
        repair would prune nothing.
    model, train, validation, held_out, **options
        See `repair`.
    """
    context = validate_inputs(model, train, validation, held_out, RepairOptions.of(options))
    with _open(context) as run:
        scores, chain = cached_score(context, context.chain(run), context.recipe.score)
        if until == "score":
            return StageResults(scores)
        context, start = _detect(context, scores, chain)
        if until == "partition":
            return StageResults(scores, start.partition)
        outcome = _run_recipe(context, context.recipe, start, until=until)
        return StageResults(scores, start.partition, outcome.ranking, outcome.plan)


class Trained(NamedTuple):
    """A trained model and the seconds that it took."""

    model: nn.Module
    seconds: float


def train(
    model: nn.Module,
    data: DataLike,
    config: TuneConfig,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train a copy of the model on all samples with the given labels, as a user would have.

    Parameters
    ----------
    model
        An untrained classifier. It is left as it was.
    data
        The training data.
    config
        Settings of the training.
    seed
        Seed of order, views and dropout.
    out
        A run folder of its own, from which an interrupted training resumes.
    overwrite
        Discard what an earlier training left in the folder.
    progress
        Called as ``progress(what, done, total)``.
    """
    samples, seed = as_samples(data), int(seed)
    model = adapt_model(model, samples).model
    check_model(model)
    check_fit(model, samples)
    require_two_labels(samples.labels, where=samples.name)
    check_training(model, samples)
    header = {
        "training": asdict(config),
        "seed": seed,
        "model": model_fingerprint(model),
        "train": samples.fingerprint(),
    }
    codec = weights_codec(model, "train")
    with open_run(out, header, overwrite=overwrite, accelerator=this_process()) as run:
        artefact = run.stage(
            "model",
            header,
            lambda: codec.store(
                stages.tune(
                    model,
                    samples,
                    None,
                    config,
                    seed=seed,
                    checkpoint=run.checkpoint("model", header),
                    stream="train",
                    progress=progress,
                )
            ),
        )
    return Trained(codec.load(artefact).eval(), run.seconds["model"])


def _open(context: RepairContext) -> Any:
    """Open the run folder of a repair."""
    options = context.options
    return open_run(
        options.out,
        context.header,
        overwrite=options.overwrite,
        accelerator=context.accelerator,
    )


def _repair_from_scores(context: RepairContext, scores: Scores, chain: Chain) -> RepairResult:
    """Everything that follows the scores."""
    run = chain.run
    context, start = _detect(context, scores, chain)
    recipe, reason = context.recipe, ""
    if context.may_skip_or_revert:
        reason = decisions.reason_to_skip(start.partition, recipe, context.train.classes)
    repaired = None if reason else _run_recipe(context, recipe, start)
    baselines, failed = _run_baselines(context, start, repaired)
    started = time.perf_counter()
    if repaired is None:
        outcome, decision = _unchanged(context, start), Decision("skip", reason)
    else:
        outcome, decision = repaired, _decide(context, repaired, baselines)
    seconds = results.seconds_by_stage([outcome.chain, *(b.chain for b in baselines.values())])
    if context.held_out is not None and repaired is not None:
        seconds["decide"] = time.perf_counter() - started
    if not decision.kept:
        outcome = _unchanged(context, start._replace(partition=outcome.partition))
    result = results.measure(
        context,
        scores,
        outcome,
        others=baselines,
        failed=failed,
        decision=decision,
        seconds=seconds,
    )
    results.write(context, run, result)
    run.clear_checkpoints()
    run.log("end", flags=[flag.code for flag in result.flags])
    return result


def _detect(context: RepairContext, scores: Scores, chain: Chain) -> tuple[RepairContext, Detected]:
    """Partition the samples, with the answers of a review; fill in what depends on the result."""
    context = with_answers(context, chain.run)
    split, chain = cached_partition(context, chain, context.recipe.partition, scores)
    context, split, chain = cached_review(context, chain, split)
    tune = stages.with_default_epochs(context.recipe.tune, context.model, split)
    context = replace(context, recipe=replace(context.recipe, tune=tune))
    return context, Detected(scores, split, chain)


def _run_recipe(
    context: RepairContext, recipe: Recipe, detected: Detected, *, until: str = "tune"
) -> RepairOutcome:
    """Rank, plan, prune and tune as a recipe says, in as many rounds as it says."""
    model = context.model
    if recipe.start == "scratch":
        model = reinitialise(model, context.seed)
    outcome = _prune(context, recipe, detected, model, until=until)
    if recipe.edit.method and until == "tune":
        edited, chain = cached_edit(context, recipe.edit, outcome)
        outcome = replace(outcome, model=edited.model, head=edited.head, chain=chain)
    if recipe.tune.n_epochs and until == "tune":
        later = _later_cost(recipe, 0) if recipe.start == "model" else 0.0
        outcome = cached_tune(context, recipe, outcome, later=later)
        n_rounds = len(recipe.rounds.epochs) if recipe.start == "model" else 0
        for number in range(n_rounds):
            outcome, is_last = _run_round(context, recipe, outcome, number)
            if is_last:
                break
    if outcome.model is context.model:  # the caller's own is not handed out
        outcome = replace(outcome, model=copy_model(outcome.model))
    outcome.model.eval()
    return outcome


@found_once()
def _prune(
    context: RepairContext, recipe: Recipe, detected: Detected, model: nn.Module, *, until: str
) -> RepairOutcome:
    """Rank, plan and prune as a recipe says; where it leaves that open, see `PruneConfig`."""
    prune, ranking = recipe.prune, None
    outcome = RepairOutcome(model, detected.partition, detected.chain)
    if prune.is_auto:
        decides = until == "tune" and context.may_skip_or_revert
        if decides and not detected.partition.memorised_wrong_labels:
            return replace(outcome, prune_skipped_reason=_NOT_MEMORISED)
        prune = replace(prune, fraction=DEFAULT_PRUNE_FRACTION)
    if not prune.is_enabled:
        return outcome
    try:
        check_hooks(model, stages.example_batch(context.train))
        ranking, chain = _rank(context, recipe, detected)
        outcome = replace(outcome, ranking=ranking, chain=chain)
        if until == "rank":
            return outcome
        plan, chain = cached_plan(context, chain, prune, ranking)
        # The stage "prune" keeps the plan. The cut itself takes little time and is repeated.
        smaller = surgery.apply_plan(
            model, plan, stages.example_batch(context.train), mode=prune.mode
        )
        if recipe.tune.n_epochs:
            _check_pruned(smaller, context.train)
    except (ModelError, PruneError) as error:
        if until != "tune" or not recipe.prune.is_auto:
            raise
        return replace(outcome, prune_skipped_reason=f"this network cannot be pruned: {error.what}")
    return replace(outcome, model=smaller, plan=plan, chain=chain)


def _check_pruned(model: nn.Module, train: Samples) -> None:
    """Check a pruned model in training mode: auxiliary outputs can read units that were cut."""
    try:
        check_training(model, train)
    except ModelError as error:
        raise PruneError(
            f"the pruned model cannot be trained: {error.what}",
            where="prune",
            fix="set prune.fraction = 0, or name other layers in rank.layers",
        ) from error


def _rank(
    context: RepairContext, recipe: Recipe, detected: Detected
) -> tuple[NeuronRanking, Chain]:
    """Rank the units; a baseline that ranks as the repair does shares its ranking."""
    chain = detected.chain
    is_shared = recipe.rank == context.recipe.rank and all(not r.baseline for r in chain.records)
    # An empty baseline puts the result into the repair's own folder.
    baseline = "" if is_shared else chain.baseline
    ranking, ranked = cached_rank(
        context, replace(chain, baseline=baseline), recipe.rank, detected.partition
    )
    return ranking, replace(ranked, baseline=chain.baseline)


def _run_round(
    context: RepairContext, recipe: Recipe, outcome: RepairOutcome, number: int
) -> tuple[RepairOutcome, bool]:
    """Score with the repaired model, and tune it on the new partition.

    Input-fault probabilities stay those of the first round, because the repaired model never
    trained on the bad inputs. If fewer than ``min_flag_change`` of the flags change, this is the
    last round and it gets all remaining epochs. If a class would have no sample left, the model
    stays as it is and the rounds are over.

    Returns the outcome, and whether this was the last round.
    """
    rounds, before = recipe.rounds, outcome.partition
    chain = replace(outcome.chain, round=number + 2)  # round 1 was the repair before the rounds
    label_detectors = tuple(
        name for name in recipe.score.detectors if detectors.metadata(name).kind == "label"
    )
    config = replace(
        recipe.score,
        views=rounds.views,
        detectors=label_detectors or recipe.score.detectors,
    )
    scores, chain = cached_score(context, chain, config, outcome.model)
    found, chain = cached_partition(context, chain, recipe.partition, scores)
    split = with_input_faults(found, before, fdr=recipe.partition.fdr)
    _, split, chain = cached_review(context, chain, split)
    split = replace(split, memorised=before.memorised)
    is_last = bool((before.flagged != split.flagged).mean() < rounds.min_flag_change)
    epochs = sum(rounds.epochs[number:]) if is_last else rounds.epochs[number]
    tune = replace(recipe.tune, targets=rounds.targets, epochs=epochs)
    if len(classes_without_samples(split, tune)):
        return replace(outcome, chain=chain), True
    outcome = replace(outcome, partition=split, chain=chain)
    later = 0.0 if is_last else _later_cost(recipe, number + 1)
    return cached_tune(context, replace(recipe, tune=tune), outcome, later=later), is_last


def _later_cost(recipe: Recipe, number: int) -> float:
    """The cost of the tuning from this round on, in epochs on the kept samples."""
    return tuning_cost(recipe.rounds.targets, sum(recipe.rounds.epochs[number:]), recipe.tune)


def _run_baselines(
    context: RepairContext, first: Detected, repaired: RepairOutcome | None
) -> tuple[dict[str, RepairOutcome], dict[str, str]]:
    """Run all baselines; also return why some failed, which leaves the repair as it is."""
    outcomes, failed = {}, {}
    for name in context.baselines:
        try:
            outcome = _run_baseline(context, name, first, repaired)
        except (ModelError, PruneError) as error:
            failed[name] = error.what
            continue
        if outcome is not None:
            outcomes[name] = outcome
    return outcomes, failed


def _run_baseline(
    context: RepairContext, name: str, first: Detected, repaired: RepairOutcome | None
) -> RepairOutcome | None:
    """Run a baseline from the first partition, or from scratch on the repair's last partition.

    A baseline that scores or partitions in another way makes its own partition. One that differs
    only in pruning equals the repair if nothing was pruned, and is not run again. None if a class
    would have no sample left to learn from, or if the baseline would do nothing: one that trains as
    long as a repair that trains nothing.
    """
    recipe = recipes.get(name)(context.recipe)
    if name != "no-op" and recipe == recipes.get("no-op")(recipe):
        return None
    same = replace(recipe, rank=context.recipe.rank, prune=context.recipe.prune) == context.recipe
    if repaired is not None and repaired.plan is None and same:
        return repaired
    start = first._replace(chain=replace(first.chain, baseline=name))
    if recipe.start == "scratch" and repaired is not None:
        start = start._replace(partition=repaired.partition)
    if (recipe.score, recipe.partition) != (context.recipe.score, context.recipe.partition):
        scores, chain = cached_score(context, context.chain(first.chain.run, name), recipe.score)
        split, chain = cached_partition(context, chain, recipe.partition, scores)
        _, split, chain = cached_review(context, chain, split)
        start = Detected(scores, split, chain)
    if len(classes_without_samples(start.partition, recipe.tune)):
        return None
    return _run_recipe(context, recipe, start)


def _unchanged(context: RepairContext, detected: Detected) -> RepairOutcome:
    """Return an unchanged copy of the model."""
    return RepairOutcome(copy_model(context.model).eval(), detected.partition, detected.chain)


def _decide(
    context: RepairContext, repaired: RepairOutcome, baselines: Mapping[str, RepairOutcome]
) -> Decision:
    """Decide by the held-out labels whether to keep the repair."""
    held_out = context.held_out
    if not context.may_skip_or_revert:
        return Decision("keep", "the samples were to be unlearned, at whatever cost in accuracy")
    if held_out is None:
        why = _why_destroyed(context, repaired)
        return Decision(
            "revert" if why else "keep",
            why or "no held-out labels were given that could contradict it",
        )

    def candidate(outcome: RepairOutcome) -> decisions.Candidate:
        return decisions.Candidate(predict(outcome.model), outcome.chain.seconds)

    def predict(model: nn.Module) -> Ints:
        return stages.predict(model, held_out, progress=context.options.progress)

    retrained = {
        name: candidate(outcome)
        for name, outcome in baselines.items()
        if recipes.get(name)(context.recipe).start == "scratch"
    }
    clean = stages.clean_input_probability(context.model, held_out, repaired.partition)
    return decisions.decide(
        predict(context.model),
        candidate(repaired),
        retrained,
        decisions.HeldOutLabels(held_out.labels, clean),
        decisions.transition(repaired.partition, len(context.train.classes)),
    )


def _why_destroyed(context: RepairContext, repaired: RepairOutcome) -> str:
    """Say that the repaired model no longer knows the unflagged samples; empty if it does.

    A recipe that trains from scratch need not know them yet.
    """
    kept, most = np.flatnonzero(~repaired.partition.flagged), decisions.MAX_KNOWLEDGE_SAMPLES
    if not len(kept) or context.recipe.start == "scratch":
        return ""
    if len(kept) > most:
        kept = kept[subsample(len(kept), most, context.seed, "decide")]
    samples = context.train.subset(kept)
    before, after = (stages.predict(m, samples) for m in (context.model, repaired.model))
    return decisions.why_destroyed(before, after, samples.labels)


def _mask_of_ids(samples: Samples, ids: Collection[Any] | Array) -> Bools:
    """Return which samples have one of these ids, ``bool[n]``; numbers may be given as text.

    Truth values, one for each sample, are a mask.
    """
    if isinstance(ids, set | frozenset):
        ids = list(ids)
    if isinstance(ids, str | bytes) or not (
        isinstance(ids, Sequence | np.ndarray | Tensor) or hasattr(ids, "to_numpy")
    ):
        raise DataError(
            f"expected a list or array of ids, got {type(ids).__name__}",
            where="forget",
            fix="give the ids of training samples: ids=[3, 17]",
        )
    wanted = to_column(ids, "ids", "forget").reshape(-1)
    own = samples.ids
    if wanted.dtype == np.bool_:
        if len(wanted) != len(own):
            raise DataError(
                f"got {len(wanted)} truth values for {len(own)} training samples",
                where="forget",
                fix="give one truth value for each sample, or ids",
            )
        wanted = own[wanted]
    if not len(wanted):
        raise DataError("no id is given", where="forget", fix="give ids of training samples")
    if "U" in (wanted.dtype.kind, own.dtype.kind):
        wanted, own = wanted.astype(str), own.astype(str)
    unknown = np.setdiff1d(wanted, own)
    if len(unknown):
        raise DataError(
            f"no training sample has the id {format_ids(unknown)}",
            where="forget",
            fix="give ids of training samples",
        )
    return np.isin(own, wanted)


def _check_classes_remain(samples: Samples, named: Bools) -> None:
    """Refuse to forget all samples of a class."""
    lost = np.setdiff1d(samples.labels, samples.labels[~named])
    if len(lost):
        raise DataError(
            f"no sample of class {format_ids(samples.classes[c] for c in lost)} would be left",
            where="forget",
            fix="give fewer ids; to remove a whole class, train a network without it",
        )


def _similar_scores(context: RepairContext, named: Bools) -> Scores:
    """Score all samples by their likeness to the named ones."""
    return score_similar(
        context.model,
        context.train,
        named,
        context.recipe.score,
        seed=context.seed,
        progress=context.options.progress,
    )


def _deletion_scores(samples: Samples, named: Bools) -> Scores:
    """Return certain scores: 1 for the named samples, 0 for all others; no label is suggested."""
    return Scores(
        ids=samples.ids,
        labels=samples.labels,
        values={"named": named.astype(np.float64)},
        kinds={"named": "label"},
        class_probs=np.eye(len(samples.classes))[samples.labels],
    )
