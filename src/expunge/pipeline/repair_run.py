"""The repair from top to bottom: score, partition, rank, plan, prune, tune, compare, decide.

`repair` runs the stages one after the other and keeps the result of each in a run folder. It runs
the baselines from the same partition, decides by held-out labels whether to keep the repair, and
measures. The stages themselves are in `stages`; `repair_context` says what they work on and how
they are cached; `results` measures and writes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
from torch import nn

from expunge import results, stages
from expunge._core.arrays import Ints
from expunge._core.isolation import isolated
from expunge._core.rng import subsample
from expunge.config import RepairKeywords, RepairOptions
from expunge.data import DataLike
from expunge.errors import ModelError, PruneError
from expunge.evaluation import decision as decisions
from expunge.models.copying import copy_model
from expunge.pipeline.recipe_run import Detected, run_recipe
from expunge.recipes import Recipe, recipes
from expunge.records import Decision, NeuronRanking, Partition, PrunePlan, RepairResult, Scores
from expunge.repair_context import (
    RepairContext,
    RepairOutcome,
    cached_partition,
    cached_score,
    validate_inputs,
)
from expunge.repair_review import cached_review, with_answers
from expunge.storage.cached_stages import Chain
from expunge.storage.run_folder import open_run
from expunge.training.targets import classes_without_samples


@isolated
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
    with open_repair(context) as run:
        run.log("start", recipe=context.options.recipe, seed=context.seed)
        scores, chain = cached_score(context, context.chain(run), context.recipe.score)
        return repair_from_scores(context, scores, chain)


class StageResults(NamedTuple):
    """Results of the stages up to the requested one; None for later ones."""

    scores: Scores
    partition: Partition | None = None
    ranking: NeuronRanking | None = None
    plan: PrunePlan | None = None


@isolated
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
    with open_repair(context) as run:
        scores, chain = cached_score(context, context.chain(run), context.recipe.score)
        if until == "score":
            return StageResults(scores)
        context, start = _detect(context, scores, chain)
        if until == "partition":
            return StageResults(scores, start.partition)
        outcome = run_recipe(context, context.recipe, start, until=until)
        return StageResults(scores, start.partition, outcome.ranking, outcome.plan)


def open_repair(context: RepairContext) -> Any:
    """Open the run folder of a repair."""
    options = context.options
    return open_run(
        options.out,
        context.header,
        overwrite=options.overwrite,
        accelerator=context.accelerator,
    )


def repair_from_scores(context: RepairContext, scores: Scores, chain: Chain) -> RepairResult:
    """Everything that follows the scores."""
    run = chain.run
    context, start = _detect(context, scores, chain)
    recipe, reason = context.recipe, ""
    if context.may_skip_or_revert:
        reason = decisions.reason_to_skip(start.partition, recipe, context.train.classes)
    repaired = None if reason else run_recipe(context, recipe, start)
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
    recipe, model = context.recipe, context.model
    tune = stages.with_default_epochs(recipe.tune, model, split)
    context = replace(context, recipe=_with_rounds(replace(recipe, tune=tune), model))
    return context, Detected(scores, split, chain)


def _with_rounds(recipe: Recipe, model: nn.Module) -> Recipe:
    """Fill in the epochs of the rounds that a recipe leaves open."""
    return replace(recipe, rounds=stages.with_default_rounds(recipe.rounds, recipe.tune, model))


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
    would have no sample left to learn from, or if there is nothing to compare: the baseline is the
    repair itself, or trains as long as a repair that trains nothing.
    """
    recipe = _with_rounds(recipes.get(name)(context.recipe), context.model)
    is_repair = repaired is not None and recipe == context.recipe
    if is_repair or (name != "no-op" and recipe == recipes.get("no-op")(recipe)):
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
    return run_recipe(context, recipe, start)


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
