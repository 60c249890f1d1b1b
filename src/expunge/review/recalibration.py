"""Probabilities of faults, recalibrated by answers: a penalised logistic regression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from expunge._core.arrays import Array, Floats
from expunge.records import Partition

# Probabilities nearer to 0 or 1 are taken as this far from them: a partition can be too sure.
_MIN_PROBABILITY = 1e-3
# Standard deviations of the prior: of the shift of the log-odds, of their slope around 1, and of
# the slopes of the columns of evidence around 0.
_SHIFT_STD, _SLOPE_STD, _EVIDENCE_STD = 3.0, 0.5, 0.7
# Evidence about inputs; all other columns are about labels.
_INPUT_COLUMNS = ("input", "novelty")


class Features(NamedTuple):
    """Log-odds of a fault by the partition, ``float64[n]``, and columns of evidence ``[n, k]``."""

    log_odds: Floats
    columns: Floats

    def at(self, rows: Array) -> Features:
        """Those of some samples."""
        return Features(self.log_odds[rows], self.columns[rows])


def label_features(partition: Partition) -> Features:
    """The evidence about wrong labels: what a partition knows, and the order of each column."""
    names = [k for k in partition.evidence if not k.startswith(_INPUT_COLUMNS)]
    return _features(partition, partition.p_label_fault, names)


def input_features(partition: Partition) -> Features:
    """The evidence about corrupted inputs."""
    names = [k for k in partition.evidence if k.startswith(_INPUT_COLUMNS)]
    return _features(partition, partition.p_input_fault, names)


def _features(partition: Partition, p: Floats, names: list[str]) -> Features:
    columns = [normal_scores(partition.evidence[name]) for name in names]
    columns = [c for c in columns if c.any()]
    stacked = np.column_stack(columns) if columns else np.empty((len(p), 0))
    return Features(logit(np.clip(p, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)), stacked)


def normal_scores(values: Array) -> Floats:
    """Ranks as quantiles of the standard normal distribution; equal values have equal scores.

    Examples
    --------
    >>> normal_scores(np.array([3.0, 9.0, 4.0])).round(2).tolist()
    [-0.67, 0.67, 0.0]
    """
    scores: Floats = norm.ppf(rankdata(values) / (len(values) + 1))
    return scores


class Recalibration(NamedTuple):
    """``p = σ(shift + slope · log-odds + weights · columns)``."""

    shift: float
    slope: float
    weights: Floats

    def __call__(self, features: Features) -> Floats:
        """Return the probabilities of samples with these features."""
        p: Floats = expit(
            self.shift + self.slope * features.log_odds + features.columns @ self.weights
        )
        return p


def recalibrate(features: Features, faults: Floats, *, mistakes: float = 0.0) -> Recalibration:
    """Fit the probability of a fault to answers, starting from what the partition says.

    Maximises ``Σ log P(answer) + log prior`` with ``P(fault answered) = ε + (1 − 2 ε) p``. Without
    answers the probabilities stay as they are.

    Parameters
    ----------
    features
        Of the samples that were answered.
    faults
        ``float64[m]`` in [0, 1], the share of the reviewers who found the fault.
    mistakes
        ε, the rate of mistaken answers, in [0, 0.5).

    Examples
    --------
    >>> known = Features(np.array([-2.0, -1.0, 1.0, 2.0] * 25), np.empty((100, 0)))
    >>> fitted = recalibrate(known, np.array([0.0, 1.0, 1.0, 1.0] * 25))
    >>> fitted.shift > 1
    True
    """
    k = features.columns.shape[1]
    design = np.column_stack([np.ones(len(faults)), features.log_odds, features.columns])
    mean = np.array([0.0, 1.0, *np.zeros(k)])
    std = np.array([_SHIFT_STD, _SLOPE_STD, *np.full(k, _EVIDENCE_STD)])
    epsilon = np.clip(mistakes, 1e-4, 0.49)

    def loss(b: Floats) -> tuple[float, Floats]:
        p = expit(design @ b)
        q = epsilon + (1 - 2 * epsilon) * p
        value = -np.sum(faults * np.log(q) + (1 - faults) * np.log1p(-q))
        slope = -(faults / q - (1 - faults) / (1 - q)) * (1 - 2 * epsilon) * p * (1 - p)
        off = (b - mean) / std
        return float(value + 0.5 * off @ off), design.T @ slope + off / std

    best = minimize(loss, mean, jac=True, method="BFGS").x if len(faults) else mean
    return Recalibration(float(best[0]), float(best[1]), best[2:])
