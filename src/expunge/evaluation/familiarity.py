"""Whether a model knows the data that it is said to be trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge._core.arrays import Ints
from expunge._core.intervals import wilson_interval
from expunge.detection.memorisation import gain_above_frequencies
from expunge.reporting.formatting import percent

# Samples that tell.
MAX_SAMPLES = 500
# What a model predicts beyond the most frequent class, as a fraction of what there is beyond it.
MIN_KNOWN_FRACTION = 0.1
# The same of an order of the classes that is suggested: the best of many, so by chance above 0.
MIN_GAIN_OF_ORDER = 0.25


def why_unfamiliar(agreement: float, labels: Ints) -> str:
    """Say that a model does not know its own training data; empty if it does.

    It knows them if the upper end of the 95 % interval (Wilson) of its agreement a with the given
    labels satisfies ``(a − m) / (1 − m) ≥ 0.1``, m the share of the most frequent label. Wrong
    labels do not look so: with 80 % of them wrong, a model that predicts the rest has more.

    Parameters
    ----------
    agreement
        Fraction of the given labels that the model predicts.
    labels
        The given labels, of which that is a fraction.

    Examples
    --------
    >>> why_unfamiliar(0.6, np.arange(500) % 10)
    ''
    >>> why_unfamiliar(0.14, np.arange(500) % 10).split(" of its ")[0]
    'the model predicts 14.0% of the given labels'
    """
    _, highest = wilson_interval(agreement, len(labels))
    if gain_above_frequencies(highest, labels) >= MIN_KNOWN_FRACTION:
        return ""
    majority = float(np.bincount(labels).max() / len(labels))
    return (
        f"the model predicts {percent(agreement)} of the given labels of its training data, hardly "
        f"more than the most frequent label has ({percent(majority)}): inputs may be prepared in "
        "another way than in its training, its classes may have another order, or it was not "
        "trained for long enough"
    )


def likely_class_order(
    predicted: Ints, labels: Ints, classes: Sequence[str]
) -> tuple[tuple[str, ...], float] | None:
    """Find the order of the classes in which a model knows the labels, and how many it predicts.

    Parameters
    ----------
    predicted
        ``int[n]``, the model's classes by their position in its output.
    labels
        ``int[n]``, indices of ``classes``.
    classes
        Names in the order of the data.

    Returns
    -------
    tuple or None
        None if there is no order in which the model predicts much more than the most frequent
        label.

    Examples
    --------
    >>> labels = np.arange(300) % 3
    >>> likely_class_order((labels + 1) % 3, labels, ["a", "b", "c"])
    (('c', 'a', 'b'), 1.0)
    """
    from scipy.optimize import linear_sum_assignment

    n = len(classes)
    counts = np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n)
    named, position = linear_sum_assignment(counts, maximize=True)
    agreement = float(counts[named, position].sum() / len(labels))
    lowest, _ = wilson_interval(agreement, len(labels))
    if gain_above_frequencies(lowest, labels) < MIN_GAIN_OF_ORDER:
        return None
    order = [classes[k] for k in named[np.argsort(position)]]
    return tuple(order), agreement
