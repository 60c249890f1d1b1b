"""Rank, plan, prune and tune as a recipe says: a repair or one of its baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import nn

from expunge import stages
from expunge.config import DEFAULT_PRUNE_FRACTION
from expunge.data import Samples
from expunge.detection.detectors import detectors
from expunge.detection.partitioners import with_input_faults
from expunge.errors import ModelError, PruneError
from expunge.models.checks import check_training
from expunge.models.copying import copy_model
from expunge.models.initialisation import reinitialise
from expunge.pruning import surgery
from expunge.pruning.dependencies import check_hooks
from expunge.pruning.hidden_pairs import found_once
from expunge.recipes import Recipe
from expunge.records import NeuronRanking, Partition, Scores
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
)
from expunge.repair_review import cached_review
from expunge.storage.cached_stages import Chain
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


def run_recipe(
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
        n_rounds = len(recipe.rounds.n_epochs) if recipe.start == "model" else 0
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
    epochs = sum(rounds.n_epochs[number:]) if is_last else rounds.n_epochs[number]
    tune = replace(recipe.tune, targets=rounds.targets, epochs=epochs)
    if len(classes_without_samples(split, tune)):
        return replace(outcome, chain=chain), True
    outcome = replace(outcome, partition=split, chain=chain)
    later = 0.0 if is_last else _later_cost(recipe, number + 1)
    return cached_tune(context, replace(recipe, tune=tune), outcome, later=later), is_last


def _later_cost(recipe: Recipe, number: int) -> float:
    """The cost of the tuning from this round on, in epochs on the kept samples."""
    return tuning_cost(recipe.rounds.targets, sum(recipe.rounds.n_epochs[number:]), recipe.tune)
