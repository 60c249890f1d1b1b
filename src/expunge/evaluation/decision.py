"""Whether a repair did more good than harm, by held-out labels that may be wrong too. Pure.

The actions: keep the repair, retrain, skip the repair (nothing to do) or revert it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import Array, Floats, Ints
from expunge.detection.memorisation import gain_above_frequencies
from expunge.evaluation.familiarity import MIN_KNOWN_FRACTION
from expunge.recipes import Recipe
from expunge.records import Decision, Metric, Partition
from expunge.reporting.formatting import duration, percent, signed_gain
from expunge.training.targets import classes_without_samples

# The inverse of a nearly singular transition only amplifies noise; labels are then used as given.
MAX_CONDITION_NUMBER = 100.0
NORMAL_QUANTILE = 1.96  # half the width of a 95 % interval, in standard errors
# A repaired model that predicts less than this fraction of what the model given did is destroyed.
MIN_KEPT_KNOWLEDGE = 0.25
MAX_KNOWLEDGE_SAMPLES = 2_000


class Candidate(NamedTuple):
    """A model's predictions of the held-out samples (``int64[n]``), and the seconds it took."""

    predicted: Ints
    seconds: float


class HeldOutLabels(NamedTuple):
    """Labels of held-out samples as given, ``int64[n]``, and their weights, ``float64[n]``."""

    labels: Ints
    weights: Floats


def reason_to_skip(partition: Partition, recipe: Recipe, classes: tuple[str, ...]) -> str:
    """Why a repair should not begin; empty if it should.

    Parameters
    ----------
    partition
        Of the training samples.
    recipe
        Gives ``min_flagged_fraction`` and the targets of the fine-tuning.
    classes
        Names of the classes.

    Returns
    -------
    str
        Fewer than ``recipe.min_flagged_fraction`` of the samples are flagged, or a class would have
        no sample to fine-tune on.

    Examples
    --------
    >>> import numpy as np
    >>> p = np.zeros(100)
    >>> y = np.arange(100) % 2
    >>> clean = Partition(np.arange(100), y, p, p, p, y, 1 - p, 0.5, (0.0, 0.0, 0.0))
    >>> reason_to_skip(clean, Recipe(), ("a", "b"))[:36]
    '0 of 100 training samples are flagge'
    """
    fraction = float(partition.flagged.mean())
    if fraction < recipe.min_flagged_fraction:
        count = int(partition.flagged.sum())
        return (
            f"{count:,} of {len(partition.ids):,} training samples are flagged, fewer than the "
            f"{percent(recipe.min_flagged_fraction)} for which a repair is likely to help"
        )
    lost = classes_without_samples(partition, recipe.tune)
    if len(lost):
        names = ", ".join(classes[c] for c in lost[:5])
        return f"every sample of {names} was flagged ({percent(fraction)} of all samples)"
    return ""


def why_destroyed(before: Ints, after: Ints, labels: Ints) -> str:
    """Say that a repair destroyed the model; empty if it did not.

    The labels are those of unflagged training samples: they cannot tell whether a repair helps, but
    a model that knew them and knows them no more is of no use. Agreement counts above that of the
    most frequent label, and the repaired model is to keep a quarter of it.

    Parameters
    ----------
    before, after
        Classes that the model predicts before and after the repair, ``int64[n]``.
    labels
        The given labels, ``int64[n]``.

    Examples
    --------
    >>> y = np.arange(100) % 10
    >>> why_destroyed(y, 0 * y, y)[:40]
    'the repaired model predicts 10.0% of the'
    >>> why_destroyed(y, np.where(y < 6, y, 0), y)
    ''
    """
    shares = [float((predicted == labels).mean()) for predicted in (before, after)]
    known, left = (gain_above_frequencies(share, labels) for share in shares)
    if known < MIN_KNOWN_FRACTION or left >= MIN_KEPT_KNOWLEDGE * known:
        return ""
    return (
        f"the repaired model predicts {percent(shares[1])} of the labels of unflagged training "
        f"samples, the one given {percent(shares[0])}"
    )


def transition(partition: Partition, classes: int) -> Floats:
    """Estimate the label transition: how often a sample of class j was given label k.

    ``T_jk = Σ_{i: y_i = k} q_i(j) / Σ_i q_i(j)``, where q_i is ``1 − p_label_fault`` for the label
    given and the rest for the label suggested, or spread over all others where none is suggested;
    times ``1 − p_input_fault``, as corrupted inputs are no evidence about labels.

    Parameters
    ----------
    partition
        Of n samples.
    classes
        Number of classes c.

    Returns
    -------
    ndarray
        ``float64[c, c]``, rows sum to one. A class without evidence has its row of the identity.

    Examples
    --------
    >>> import numpy as np
    >>> y, p = np.array([0, 0, 1, 1]), np.array([0.0, 0.0, 0.0, 1.0])
    >>> wrong = Partition(np.arange(4), y, p, p, 0 * p, np.array([0, 0, 1, 0]), p, 0.5, (0, 0, 1))
    >>> transition(wrong, 2).round(2).tolist()
    [[0.67, 0.33], [0.0, 1.0]]
    """
    n, p = len(partition.ids), partition.p_label_fault
    rows, other = np.arange(n), partition.suggested_label != partition.labels
    right = np.repeat(np.where(other, 0.0, p / max(classes - 1, 1))[:, None], classes, axis=1)
    right[rows[other], partition.suggested_label[other]] = p[other]
    right[rows, partition.labels] = 1 - p
    right *= (1 - partition.p_input_fault)[:, None]
    counts = np.zeros((classes, classes))
    np.add.at(counts.T, partition.labels, right)
    sums = counts.sum(axis=1, keepdims=True)
    rates: Floats = np.divide(counts, sums, out=np.eye(classes), where=sums > 0)
    return rates


def gain(after: Ints, before: Ints, held_out: HeldOutLabels, noise: Floats) -> Metric:
    """Estimate the gain in accuracy on right labels from labels with noise.

    ``Σ_i w_i (G[y_i, a_i] − G[y_i, b_i]) / Σ_i w_i`` with ``G = T⁻¹`` and the predictions a and b
    of the two models. Its expectation over the noise is the gain on right labels (backward
    correction), so a model that learned the noise of a class gains nothing by it.

    Parameters
    ----------
    after, before
        Predicted classes, ``int64[n]``.
    held_out
        Labels and weights of the n samples. They must be new to both models.
    noise
        The transition T, ``float64[c, c]``. If its condition number is `MAX_CONDITION_NUMBER` or
        more, labels are used as given.

    Returns
    -------
    Metric
        As a fraction, with a 95 % interval from the standard error of the paired differences; all
        three are cut to [-1, 1].

    References
    ----------
    Patrini et al., arXiv 1609.03683.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([0, 1, 1, 0])
    >>> gain(y, 1 - y, HeldOutLabels(y, np.ones(4)), np.eye(2)).value
    1.0
    """
    inverse: Array = np.eye(len(noise))
    if np.linalg.cond(noise) < MAX_CONDITION_NUMBER:
        inverse = np.linalg.inv(noise)
    labels, w = held_out
    difference = inverse[labels, after] - inverse[labels, before]
    value = float(np.average(difference, weights=w))
    stderr = float(np.sqrt(((w * (difference - value)) ** 2).sum()) / w.sum())
    half = NORMAL_QUANTILE * stderr
    # No gain in accuracy is beyond these bounds; its estimate can be, where samples are few.
    value, low, high = np.clip([value, value - half, value + half], -1, 1).tolist()
    return Metric(value, low, high, len(labels))


def decide(
    before: Ints,
    repaired: Candidate,
    retrained: Mapping[str, Candidate],
    held_out: HeldOutLabels,
    noise: Floats,
) -> Decision:
    """Keep a repair unless the held-out labels favour the original model.

    Parameters
    ----------
    before
        The original model's predictions, ``int64[n]``.
    repaired
        The repaired model.
    retrained
        Models that were trained from scratch, by name. If one is better than the repair by more
        than the interval, and better than the original model, the action is ``"retrain"``; whether
        the repair is kept does not depend on it.
    held_out
        Labels and weights of the n samples.
    noise
        The transition, ``float64[c, c]``.

    Returns
    -------
    Decision
        ``"keep"``, ``"retrain"`` or ``"revert"``, the reason, and the gain of the repair.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([0, 1, 1, 0])
    >>> held_out = HeldOutLabels(y, np.ones(4))
    >>> decide(1 - y, Candidate(y, 1.0), {}, held_out, np.eye(2)).action
    'keep'
    """
    found = gain(repaired.predicted, before, held_out, noise)
    for name, other in retrained.items():
        lead = gain(other.predicted, repaired.predicted, held_out, noise)
        if lead.low > 0 and found.value + lead.value > 0:
            reason = (
                f"a network retrained from scratch (recipe {name}, {duration(other.seconds)}) is "
                f"better than the repair ({duration(repaired.seconds)}) by {signed_gain(lead)} "
                "points on held-out labels"
            )
            return Decision("retrain", reason, found, name)
    estimate = f"{signed_gain(found)} points on held-out labels, corrected for their noise"
    if found.value <= 0:
        return Decision("revert", f"the repair would change accuracy by {estimate}", found)
    return Decision("keep", f"the repair changes accuracy by {estimate}", found)
