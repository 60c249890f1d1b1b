"""A weighted mean of the log probabilities of several sources, and a report of each. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from expunge._core.arrays import AnyFloats, Ints
from expunge.detection.calibration import confident_joint, fit_calibration, tempered
from expunge.detection.class_arithmetic import add_scaled, at_labels, softmax
from expunge.detection.class_rows import (
    LazyRows,
    RowSource,
    apply,
    as_float64,
    zero_rows,
)
from expunge.detection.memorisation import MEMORISED_AGREEMENT, label_agreement, memorised_fraction
from expunge.records import SourceReport

# A source that the training can have shaped weighs (1 − m)^12, where m is its own memorised
# fraction: a quarter if it fits a tenth more than expected.
TRAINED_POWER = 12.0
# Every source weighs g^4, where g is its agreement with the given labels above chance.
_GAIN_POWER = 4.0
_MIN_GAIN, _MIN_WEIGHT = 1e-2, 1e-3
# External sources that agree with nearly all labels, and with most of those to which the pool gives
# less than this probability, were fitted on them.
_IMPROBABLE, _MAX_REPRODUCED = 0.05, 0.5
_MIN_LOG_PROBABILITY = float(np.log(1e-3))


class WeightedPool:
    """A weighted mean of log probabilities, and a report of each source; keeps no source."""

    def __init__(self, labels: Ints, classes: int) -> None:
        self.labels, self.n_classes, self._weight = labels, classes, 0.0
        self._logs = zero_rows(labels, classes)
        self._reports: list[SourceReport] = []

    def add(self, name: str, probs: RowSource, credibility: float = 1.0, most: float = 1.0) -> None:
        """Add a source by its agreement, which counts at most as `most`, and its credibility."""
        agreement = label_agreement(probs, self.labels)
        weight = (
            credibility * gain_above_chance(min(agreement, most), self.n_classes) ** _GAIN_POWER
        )
        if credibility > _MIN_WEIGHT:
            self._logs = add_scaled(self._logs, floored_logs(probs), self.labels, weight)
            self._weight += weight
        _, rate = confident_joint(probs, self.labels)
        self._reports.append(SourceReport(name, weight, agreement, rate))

    def add_trained(self, name: str, probs: RowSource, expected: float) -> None:
        """Add a source that is expected to agree with this share of the labels."""
        memorised = memorised_fraction(label_agreement(probs, self.labels), expected)
        self.add(name, probs, (1 - memorised) ** TRAINED_POWER, expected)

    def add_external(self, name: str, probs: RowSource) -> None:
        """Add a source that was not fitted on the labels, as far as the pool can tell."""
        own = self.calibrated()
        is_improbable = at_labels(own, self.labels) < _IMPROBABLE
        is_fitted = (
            label_agreement(probs, self.labels) > MEMORISED_AGREEMENT
            and is_improbable.any()
            and label_agreement(probs[np.flatnonzero(is_improbable)], self.labels[is_improbable])
            > _MAX_REPRODUCED
        )
        self.add(name, probs, float(not is_fitted))

    def largest_weight(self) -> float:
        """Return the largest weight of a source."""
        return max(report.weight for report in self._reports)

    def join(self, other: WeightedPool, credibility: float) -> None:
        """Add the sources of another pool, which weigh so much less."""
        self._logs = add_scaled(self._logs, other._logs, self.labels, credibility)
        self._weight += credibility * other._weight
        self._reports += [replace(r, weight=credibility * r.weight) for r in other._reports]

    def calibrated(self) -> RowSource:
        """Return the pooled distribution, calibrated for the given labels; computed when read.

        It is valid until the next source is added.
        """
        weight = max(self._weight, 1e-12)
        mean = LazyRows(self._logs, lambda logs: apply(lambda v: as_float64(v) / weight, logs))
        pooled = LazyRows(mean, softmax)
        exponent = fit_calibration(pooled, self.labels)
        return LazyRows(pooled, lambda probs: tempered(probs, exponent))

    def relative_reports(self) -> tuple[SourceReport, ...]:
        """Return the sources with weights relative to the largest one."""
        largest = max(self.largest_weight(), 1e-12)
        return tuple(replace(r, weight=r.weight / largest) for r in self._reports)


def floored_logs(probs: RowSource) -> RowSource:
    """Return log probabilities, at least −6.9."""

    def function(p: AnyFloats) -> AnyFloats:
        logs: AnyFloats = np.maximum(np.log(np.maximum(p, 1e-12)), _MIN_LOG_PROBABILITY)
        return logs

    return LazyRows(probs, lambda rows: apply(function, rows))


def gain_above_chance(agreement: float, classes: int) -> float:
    """Return the agreement above chance, at least 0.01."""
    return max((agreement - 1 / classes) / (1 - 1 / classes), _MIN_GAIN)
