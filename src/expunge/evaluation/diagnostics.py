"""Red flags: what could make a repair's numbers untrue, each with its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from expunge._core.arrays import Ints
from expunge.detection.memorisation import (
    MEMORISATION_GAP,
    gain_above_frequencies,
    label_agreement,
)
from expunge.errors import format_ids
from expunge.evaluation.familiarity import why_unfamiliar
from expunge.records import Baseline, Evaluation, Flag, Metric, Partition, PrunePlan, Scores
from expunge.reporting.formatting import counted, percent, signed_gain
from expunge.reporting.sources import n_reviews_needed

MIN_SEPARATION = 1.5  # pooled standard deviations between clean and noisy components
MIN_ONE_CLASS_FRACTION = 0.9  # of the flagged samples
MIN_FLAGGED = 10  # for a statement about the classes of flagged samples
MIN_CONTRADICTING = 0.02  # of the labels
MAX_CLASS_FLAGGED = 2 / 3  # of the labels of a class
MIN_LOG_LIKELIHOOD_GAIN = 0.005  # nats a sample
MIN_GAIN = 0.05  # in agreement, above the most frequent label
MIN_SAMPLES, MIN_CLASS_SAMPLES = 50, 5  # for cross-fitted evidence
MAX_RATE_WIDTH = 0.25  # of the noise rate's interval


def find_flags(
    *,
    partition: Partition | None,
    plan: PrunePlan | None,
    before: Evaluation | None,
    after: Evaluation | None,
    baselines: Mapping[str, Baseline],
    gain: Metric | None = None,
    shared_inputs: int = 0,
    shared_held_out: int = 0,
    classes: Sequence[str] = (),
    extra: tuple[Flag, ...] = (),
) -> tuple[Flag, ...]:
    """Find every reason to doubt the numbers of a repair.

    Parameters
    ----------
    partition
        Checked by `partition_flags`.
    plan
        None if nothing was cut.
    before, after
        Of the same validation samples; None without them.
    baselines
        ``random-units`` is checked if something was cut.
    gain
        The paired gain in accuracy, after − before.
    shared_inputs
        Number of validation inputs that are also training inputs.
    shared_held_out
        The same of held-out inputs.
    classes
        The names of the classes; without them they are called by their indices.
    extra
        Flags raised elsewhere; they come first.

    Returns
    -------
    tuple of Flag
        Empty if there is no reason.

    Examples
    --------
    >>> none = dict.fromkeys(("partition", "plan", "before", "after"))
    >>> find_flags(**none, baselines={}, shared_inputs=3)[0].code
    'validation-overlaps-training'
    """
    return (
        *extra,
        *(partition_flags(partition, classes) if partition else ()),
        *_granted_less_than_requested(plan),
        *_validation_overlaps_training(shared_inputs),
        *_held_out_overlaps_training(shared_held_out),
        *_clean_accuracy_fell(before, after, gain),
        *(_random_baseline_as_good(baselines) if plan is not None else ()),
    )


def partition_flags(partition: Partition, classes: Sequence[str] = ()) -> tuple[Flag, ...]:
    """Find the reasons to doubt which samples are flagged, and how many.

    Parameters
    ----------
    partition
        A partition, reviewed or not.
    classes
        The names of the classes; without them they are called by their indices.

    Returns
    -------
    tuple of Flag
        Components that overlap, no noise at all, one-sided classes, a wide interval of the rate.
    """
    return (
        *_mixture_not_separated(partition),
        *_one_component_fits_better(partition),
        *_flagged_set_is_one_class(partition, classes),
        *_class_mostly_flagged(partition, classes),
        *_noise_rate_not_identified(partition),
    )


def memorised(scores: Scores, partition: Partition | None = None) -> tuple[Flag, ...]:
    """A flag if the model fits the given labels far better than could be expected.

    Parameters
    ----------
    scores
        With ``agreement`` of the plain and of the augmented pass.
    partition
        Says whether the model has memorised wrong labels, where that is known.

    Returns
    -------
    tuple of Flag
        One flag or none.
    """
    plain, augmented = scores.agreement.get("plain"), scores.agreement.get("augmented")
    if plain is None or (partition is not None and not partition.memorised):
        return ()
    if augmented is None or plain - augmented <= MEMORISATION_GAP:
        return () if partition is None else (_memorised_without_views(scores, plain),)
    message = (
        f"The model predicts {percent(plain)} of the given labels, but only {percent(augmented)} "
        "under augmentation: it has memorised its labels. Its confidence is not informative, and "
        "early-layer features are used instead."
    )
    return (Flag("model-memorised-its-labels", message),)


def _memorised_without_views(scores: Scores, plain: float) -> Flag:
    expected = scores.pooled.expected_agreement if scores.pooled is not None else None
    message = (
        f"The model predicts {percent(plain)} of the given labels, where {percent(expected)} are "
        "to be expected of one that has not seen them: it has memorised its labels. Its "
        "predictions hardly count, and cross-fitted probes are used instead."
    )
    return Flag("model-memorised-its-labels", message)


def failed_baselines(failed: Mapping[str, str]) -> tuple[Flag, ...]:
    """A flag for each baseline that could not be run: the comparison is without it."""
    return tuple(
        Flag("baseline-failed", f"the baseline {name} failed and is not compared: {reason}")
        for name, reason in failed.items()
    )


def hopeless(scores: Scores, classes: Sequence[str] = ()) -> tuple[Flag, ...]:
    """Flags for data from which nobody could tell which labels are wrong.

    Parameters
    ----------
    scores
        With detector ``pooled_margin``; without it there is no flag.
    classes
        The names of the classes; without them they are called by their indices.

    Returns
    -------
    tuple of Flag
        ``labels-contradict``, ``labels-independent-of-inputs``, ``too-few-samples``; those that
        apply.
    """
    pooled = scores.pooled
    if pooled is None:
        return _too_few(scores.labels, classes) if "pooled_margin" in scores.values else ()
    found = []
    if pooled.contradicting_fraction >= MIN_CONTRADICTING:
        message = (
            f"At least {percent(pooled.contradicting_fraction)} of the labels are wrong: identical "
            "inputs have other labels."
        )
        found.append(Flag("labels-contradict", message))
    gain = gain_above_frequencies(label_agreement(pooled.probs, scores.labels), scores.labels)
    if pooled.log_likelihood_gain <= MIN_LOG_LIKELIHOOD_GAIN or gain <= MIN_GAIN:
        message = (
            "Cross-fitted probes predict the given labels hardly better than their frequencies do: "
            "these inputs do not show which labels are wrong."
        )
        found.append(Flag("labels-independent-of-inputs", message))
    return (*found, *_too_few(scores.labels, classes))


def _too_few(labels: Ints, classes: Sequence[str]) -> tuple[Flag, ...]:
    counts = np.bincount(labels)
    small = np.flatnonzero((counts > 0) & (counts < MIN_CLASS_SAMPLES))
    if len(labels) >= MIN_SAMPLES and not len(small):
        return ()
    named = format_ids(f"{counts[k]} of class {_name_of(k, classes)}" for k in small.tolist())
    message = (
        f"There are {counted(len(labels), 'sample')}{', ' if named else ''}{named}: too few for "
        "cross-fitted evidence."
    )
    return (Flag("too-few-samples", message),)


def unfamiliar(scores: Scores) -> tuple[Flag, ...]:
    """A flag ``model-disagrees-with-labels`` if the model does not know its training data.

    See `why_unfamiliar`.
    """
    agreement = scores.agreement.get("plain")
    message = "" if agreement is None else why_unfamiliar(agreement, scores.labels)
    if not message:
        return ()
    return (Flag("model-disagrees-with-labels", f"{message[0].upper()}{message[1:]}."),)


def _noise_rate_not_identified(partition: Partition) -> Iterator[Flag]:
    _, low, high = partition.noise_rate
    if high - low > MAX_RATE_WIDTH:
        yield Flag(
            "noise-rate-not-identified",
            f"Between {percent(low)} and {percent(high)} of the samples are noisy: hard samples "
            f"cannot be distinguished from wrong labels. {n_reviews_needed(partition):,} reviewed "
            "samples, drawn at random, would give the rate within 3 points.",
        )


def _mixture_not_separated(partition: Partition) -> Iterator[Flag]:
    for fit in partition.fits:
        if any(c.noisy for c in fit.components) and fit.separation < MIN_SEPARATION:
            yield Flag(
                "mixture-not-separated",
                f"In the {fit.kind} evidence the noisy and the clean component are "
                f"{fit.separation:.2f} standard deviations apart, less than {MIN_SEPARATION}: many "
                "samples could belong to either.",
            )


def _one_component_fits_better(partition: Partition) -> Iterator[Flag]:
    """Only if it does for every kind of evidence: clean inputs are no evidence about labels."""
    margins = []
    for fit in partition.fits:
        others = [bic for k, bic in fit.bic.items() if k != 1]
        if not others or min(others) < fit.bic[1]:
            return
        margins.append(f"{fit.kind} evidence by {min(others) - fit.bic[1]:.1f}")
    if margins:
        yield Flag(
            "one-component-fits-better",
            f"A single component has a lower BIC than several ({', '.join(margins)}): there may be "
            "no noise in these data.",
        )


def _flagged_set_is_one_class(partition: Partition, classes: Sequence[str]) -> Iterator[Flag]:
    labels = partition.labels[partition.flagged]
    if len(labels) < MIN_FLAGGED or len(np.unique(partition.labels)) < 3:
        return
    label, count = max(zip(*np.unique(labels, return_counts=True), strict=True), key=lambda x: x[1])
    if count >= MIN_ONE_CLASS_FRACTION * len(labels):
        share = percent(count / len(labels))
        yield Flag(
            "flagged-set-is-one-class",
            f"{count:,} of {len(labels):,} flagged samples ({share}) have the given label "
            f"{_name_of(label, classes)}: this may be a rare or hard class instead of noise.",
        )


def _class_mostly_flagged(partition: Partition, classes: Sequence[str]) -> Iterator[Flag]:
    counts = np.bincount(partition.labels)
    flagged = np.bincount(partition.labels[partition.flagged], minlength=len(counts))
    lost = np.flatnonzero((flagged >= MIN_FLAGGED) & (flagged > MAX_CLASS_FLAGGED * counts))
    if len(lost):
        label = int(lost[np.argmax(flagged[lost])])
        share = percent(flagged[label] / counts[label])
        others = f", and as many of {len(lost) - 1} more" if len(lost) > 1 else ""
        yield Flag(
            "class-mostly-flagged",
            f"{flagged[label]:,} of {counts[label]:,} samples ({share}) with the given label "
            f"{_name_of(label, classes)} are flagged{others}: the inputs may not show these "
            "classes. Review some before they are left out of training.",
        )


def _name_of(label: int, classes: Sequence[str]) -> str:
    """What a message calls a class: its name, in quotation marks unless that is its index."""
    name = classes[label] if classes else str(label)
    return name if name == str(label) else f"'{name}'"


def _granted_less_than_requested(plan: PrunePlan | None) -> Iterator[Flag]:
    if plan is not None and plan.granted < plan.requested:
        why = f": {'; '.join(plan.reasons)}" if plan.reasons else ""
        yield Flag(
            "granted-less-than-requested",
            f"{plan.granted:,} of {plan.requested:,} requested units were cut{why}.",
        )


def _validation_overlaps_training(shared_inputs: int) -> Iterator[Flag]:
    if shared_inputs > 0:
        yield Flag(
            "validation-overlaps-training",
            f"Training and validation share {counted(shared_inputs, 'input')}: the accuracies "
            "overestimate performance on new data.",
        )


def _held_out_overlaps_training(shared_inputs: int) -> Iterator[Flag]:
    if shared_inputs > 0:
        yield Flag(
            "held-out-overlaps-training",
            f"Training and held-out set share {counted(shared_inputs, 'input')}: their labels were "
            "learned, and say less of whether the repair helps.",
        )


def _clean_accuracy_fell(
    before: Evaluation | None, after: Evaluation | None, gain: Metric | None
) -> Iterator[Flag]:
    """If the interval of the paired gain lies below 0."""
    if before is None or after is None or gain is None:
        return
    old, new = before.accuracy, after.accuracy
    if gain.high < 0:
        yield Flag(
            "clean-accuracy-fell",
            f"Accuracy fell from {percent(old.value)} to {percent(new.value)}, by "
            f"{signed_gain(gain)} points: the repair did harm.",
        )


def _random_baseline_as_good(baselines: Mapping[str, Baseline]) -> Iterator[Flag]:
    baseline = baselines.get("random-units")
    if baseline is not None and baseline.gain.low <= 0:
        yield Flag(
            "random-baseline-as-good",
            "Cutting random units does as well: the repaired model is better by only "
            f"{signed_gain(baseline.gain)} points, so the choice of units did not help.",
        )
