"""How uncertain the class of a sample is, compared within groups. Pure."""

from __future__ import annotations

import numpy as np

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge.detection.class_rows import largest, predicted
from expunge.detection.lda import layer_posteriors
from expunge.records import Signals


def class_uncertainty(signals: Signals) -> Floats:
    """Return ``−log max_c p_c`` of the leave-one-out posteriors, the mean over layers."""
    uncertainty: Floats = np.mean([-np.log(largest(p)) for p in layer_posteriors(signals)], axis=0)
    return uncertainty


def uncertainty_above_quantile(signals: Signals, q: float) -> Floats:
    """Return the class uncertainty minus its q-quantile in the predicted class."""
    return subtract_group_quantile(class_uncertainty(signals), predicted(signals.logits), q)


def subtract_group_quantile(values: Floats, groups: Ints, q: float) -> Floats:
    """Return values minus the q-quantile of their group.

    Examples
    --------
    >>> subtract_group_quantile(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), 0.5)
    array([-1.,  1.,  0.])
    """
    above = values.copy()
    for group in np.unique(groups):
        above[groups == group] -= np.quantile(values[groups == group], q)
    return above


def centre_by_group(values: AnyFloats, groups: Ints) -> Floats:
    """Return values minus their group's median, over the median absolute deviation of all."""
    centred = subtract_group_quantile(values.astype(np.float64), groups, 0.5)
    spread = np.median(np.abs(centred))
    return centred / spread if spread > 0 else centred


def uncertainty_above_lower_quartile(signals: Signals) -> Floats:
    """Return the class uncertainty above that of a clean sample, where half of a class may be bad.

    The reference is the lower quartile of the predicted class.
    """
    return uncertainty_above_quantile(signals, 0.25)


def early_layers(signals: Signals) -> list[AnyFloats]:
    """Return the features of the earlier half of the layers: they memorise least."""
    features = list(signals.features.values())
    return features[: max(1, len(features) // 2)]
