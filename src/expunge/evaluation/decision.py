"""Whether a repair did more good than harm, asked of held-out labels that may be wrong too. Pure.

Three honest answers: repair, retrain, leave alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from expunge.recipes import Recipe
from expunge.records import Decision, Metric, Partition
from expunge.reporting.formatting import duration, percent, signed_gain
from expunge.training.targets import classes_without_samples

# A transition that is nearly singular says nothing about the right labels; its inverse is noise.
_CONDITION = 100.0
_NORMAL = 1.96  # half the width of a 95 % interval, in standard errors


class Candidate(NamedTuple):
    """What a model predicts of the held-out samples (``int64[n]``), and the seconds it took."""

    predicted: np.ndarray
    seconds: float


class HeldOutLabels(NamedTuple):
    """Held-out samples: labels as given, ``int64[n]``, and how far each counts, ``float64[n]``."""

    labels: np.ndarray
    weights: np.ndarray


def reason_to_skip(split: Partition, recipe: Recipe, classes: tuple[str, ...]) -> str:
    """Why a repair is not begun; empty if it can be."""
    share = float(split.flagged.mean())
    if share < recipe.min_flagged_fraction:
        count = int(split.flagged.sum())
        return (
            f"{count:,} of {len(split.ids):,} training samples were flagged, too few for a repair "
            "to do more good than harm"
        )
    lost = classes_without_samples(split, recipe.tune)
    if len(lost):
        names = ", ".join(classes[c] for c in lost[:5])
        return f"of {percent(share)} flagged samples nothing is left to learn {names} from"
    return ""


def transition(split: Partition, classes: int) -> np.ndarray:
    """``float64[c, c]``: row j tells how often a sample of class j was given each label.

    ``T_jk = Σ_{i: y_i = k} q_i(j) / Σ_i q_i(j)``, where q_i puts ``1 − p_label_fault`` on the label
    given and the rest on the label suggested, or on all others where none is; times
    ``1 − p_input_fault``, as bad inputs say nothing of labels.
    """
    n, p = len(split.ids), split.p_label_fault
    rows, other = np.arange(n), split.suggested_label != split.labels
    right = np.repeat(np.where(other, 0.0, p / max(classes - 1, 1))[:, None], classes, axis=1)
    right[rows[other], split.suggested_label[other]] = p[other]
    right[rows, split.labels] = 1 - p
    right *= (1 - split.p_input_fault)[:, None]
    counts = np.zeros((classes, classes))
    np.add.at(counts.T, split.labels, right)
    sums = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, sums, out=np.eye(classes), where=sums > 0)


def gain(
    after: np.ndarray, before: np.ndarray, held_out: HeldOutLabels, noise: np.ndarray
) -> Metric:
    """The gain in accuracy on right labels, estimated from labels with noise T.

    ``Σ_i w_i (G[y_i, a_i] − G[y_i, b_i]) / Σ_i w_i`` with ``G = T⁻¹`` and the two models'
    predictions a and b: its expectation over the noise is the gain on right labels (backward
    correction, arXiv 1609.03683), as long as what is held out is new to both. A model that has
    learned the noise of a class gains nothing by it. 95 % interval from the standard error of the
    paired differences. Where T is nearly singular, labels are taken as they are.
    """
    inverse = np.eye(len(noise))
    if np.linalg.cond(noise) < _CONDITION:
        inverse = np.linalg.inv(noise)
    labels, w = held_out
    difference = inverse[labels, after] - inverse[labels, before]
    value = float(np.average(difference, weights=w))
    spread = np.sqrt(((w * (difference - value)) ** 2).sum()) / w.sum()
    half = _NORMAL * float(spread)
    return Metric(value, value - half, value + half, len(labels))


def decide(
    before: np.ndarray,
    repaired: Candidate,
    retrained: Mapping[str, Candidate],
    held_out: HeldOutLabels,
    noise: np.ndarray,
) -> Decision:
    """Keep a repair unless held-out labels speak for the model that came in.

    retrained: models that were trained from scratch. One that is ahead of the repair by more than
    the interval is worth its time, and the verdict says so; the repair is kept, or not, all the
    same.
    """
    found = gain(repaired.predicted, before, held_out, noise)
    for name, other in retrained.items():
        ahead = gain(other.predicted, repaired.predicted, held_out, noise)
        if ahead.low > 0 and found.value + ahead.value > 0:
            reason = (
                f"a network trained anew ({name}, {duration(other.seconds)}) is ahead of the repair"
                f" ({duration(repaired.seconds)}) by {signed_gain(ahead)} points on held-out labels"
            )
            return Decision("retrain", reason, found)
    estimate = f"{signed_gain(found)} points on held-out labels, their noise taken into account"
    if found.value <= 0:
        return Decision("revert", f"the repair would change accuracy by {estimate}", found)
    return Decision("keep", f"accuracy changes by {estimate}", found)
