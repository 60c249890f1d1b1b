"""Red flags: what could make a repair's numbers untrue, each with its evidence in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from expunge.detection.memorisation import MEMORISATION_GAP
from expunge.records import Baseline, Evaluation, Flag, Partition, PrunePlan, Scores
from expunge.reporting.formatting import counted, percent, signed_gain, span

MIN_SEPARATION = 1.5  # pooled standard deviations between clean and noisy components
ONE_CLASS_SHARE = 0.9  # of the flagged samples
ONE_CLASS_COUNT = 10  # flagged samples, fewer say nothing


def find_flags(
    partition: Partition | None,
    plan: PrunePlan | None,
    before: Evaluation | None,
    after: Evaluation | None,
    controls: Mapping[str, Baseline],
    shared_inputs: int = 0,
    extra: tuple[Flag, ...] = (),
) -> tuple[Flag, ...]:
    """Every reason to doubt the numbers, each with its evidence.

    shared_inputs: validation inputs that are also training inputs. extra: flags raised elsewhere.
    """
    return (
        *extra,
        *(_mixture_not_separated(partition) if partition else ()),
        *(_one_component_fits_better(partition) if partition else ()),
        *(_flagged_set_is_one_class(partition) if partition else ()),
        *_granted_less_than_requested(plan),
        *_validation_overlaps_training(shared_inputs),
        *_clean_accuracy_fell(before, after),
        *(_random_control_as_good(controls) if plan is not None else ()),
    )


def memorised(scores: Scores) -> tuple[Flag, ...]:
    """The model fits the given labels far better than it does under views that it never saw."""
    model, views = scores.agreement.get("plain"), scores.agreement.get("augmented")
    if model is None or views is None or model - views <= MEMORISATION_GAP:
        return ()
    sentence = (
        f"The model predicts {percent(model)} of the given labels, and {percent(views)} under "
        "random views of the same inputs: it has learned labels by heart, so its last layers and "
        "its own confidence are no evidence, and earlier layers decide."
    )
    return (Flag("model-memorised-its-labels", sentence),)


def _mixture_not_separated(partition: Partition) -> Iterator[Flag]:
    for fit in partition.fits:
        if any(c.noisy for c in fit.components) and fit.separation < MIN_SEPARATION:
            yield Flag(
                "mixture-not-separated",
                f"In the {fit.kind} evidence the noisy and the clean component lie "
                f"{fit.separation:.2f} standard deviations apart, less than {MIN_SEPARATION}: many "
                "samples could belong to either.",
            )


def _one_component_fits_better(partition: Partition) -> Iterator[Flag]:
    """Only if it is so for every kind of evidence: clean inputs say nothing about labels."""
    lead = []
    for fit in partition.fits:
        others = [bic for k, bic in fit.bic.items() if k != 1]
        if not others or min(others) < fit.bic[1]:
            return
        lead.append(f"{fit.kind} evidence by {min(others) - fit.bic[1]:.1f}")
    if lead:
        yield Flag(
            "one-component-fits-better",
            f"One component has a lower BIC than several ({', '.join(lead)}): there may be no "
            "noise here.",
        )


def _flagged_set_is_one_class(partition: Partition) -> Iterator[Flag]:
    given = partition.labels[partition.flagged]
    if len(given) < ONE_CLASS_COUNT or len(np.unique(partition.labels)) < 3:
        return
    label, most = max(zip(*np.unique(given, return_counts=True), strict=True), key=lambda x: x[1])
    if most >= ONE_CLASS_SHARE * len(given):
        yield Flag(
            "flagged-set-is-one-class",
            f"{most:,} of {len(given):,} flagged samples ({percent(most / len(given))}) have the "
            f"given label {label}: this may be a rare or hard class and not noise.",
        )


def _granted_less_than_requested(plan: PrunePlan | None) -> Iterator[Flag]:
    if plan is not None and plan.granted < plan.requested:
        why = f": {'; '.join(plan.reasons)}" if plan.reasons else ""
        yield Flag(
            "granted-less-than-requested",
            f"{plan.granted:,} of {plan.requested:,} units were cut{why}.",
        )


def _validation_overlaps_training(shared_inputs: int) -> Iterator[Flag]:
    if shared_inputs > 0:
        yield Flag(
            "validation-overlaps-training",
            f"Training and validation share {counted(shared_inputs, 'input')}: the accuracies are "
            "too high for what is new to the model.",
        )


def _clean_accuracy_fell(before: Evaluation | None, after: Evaluation | None) -> Iterator[Flag]:
    """Below the interval of the accuracy before."""
    if before is None or after is None:
        return
    old, new = before.accuracy, after.accuracy
    if new.value < old.low:
        yield Flag(
            "clean-accuracy-fell",
            f"Accuracy fell from {percent(old.value)} ({span(old)}) to {percent(new.value)} "
            f"({span(new)}): the repair did harm.",
        )


def _random_control_as_good(controls: Mapping[str, Baseline]) -> Iterator[Flag]:
    control = controls.get("random-units")
    if control is not None and control.gain.low <= 0:
        yield Flag(
            "random-control-as-good",
            f"Cutting random units does as well: the repaired model is ahead by only "
            f"{signed_gain(control.gain)} points, so the choice of units is not what helped.",
        )
