"""Whether a model knows the data that it is said to be trained on."""

from __future__ import annotations

import numpy as np

from expunge._core.arrays import Ints
from expunge._core.intervals import wilson_interval
from expunge.detection.memorisation import gain_above_frequencies
from expunge.reporting.formatting import percent

# Samples that tell.
MAX_SAMPLES = 500
# What a model predicts beyond the most frequent class, as a fraction of what there is beyond it.
MIN_KNOWN_FRACTION = 0.1


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
        "another way than in its training, or its classes may have another order"
    )
