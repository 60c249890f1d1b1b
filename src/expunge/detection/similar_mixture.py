"""A mixture of the good samples of each label and of bad ones, in one score. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from expunge._core.arrays import Bools, Floats, Ints
from expunge.detection.evidence import MAD_SCALE
from expunge.detection.pooled_partitioner import shift_to_rate

_N_STEPS = 20
# The mixture: rate at the start, least variance, and how many samples the pooled variance is worth
# in that of a label and in that of bad samples, and the mean of all in that of a label.
_FIRST_RATE, _LEAST_VARIANCE = 0.03, 1e-4
_VARIANCE_SAMPLES, _BAD_VARIANCE_SAMPLES, _MEAN_SAMPLES = 60.0, 5.0, 5.0
# Bad samples vary at least by this part of the variance of good ones.
_MIN_BAD_VARIANCE = 0.25
# The largest share of bad samples among the others of a label.
_MAX_LABEL_RATE = 0.95


class _Mixture(NamedTuple):
    """Normal groups of a score: good samples, ``[c]`` each, and bad ones."""

    good_mean: Floats
    good_variance: Floats
    bad_mean: float
    bad_variance: float

    @classmethod
    def first(cls, score: Floats, good: Floats, examples: Bools, c: int) -> _Mixture:
        """Return the groups to start from: good ones at 0, with the spread of most samples."""
        usual = good > 0.5 if (good > 0.5).any() else ~examples
        spread = MAD_SCALE * float(np.median(np.abs(score[usual])))
        variance = max(spread**2, _LEAST_VARIANCE)
        mean, n = float(score[examples].mean()), examples.sum()
        squares = float(((score[examples] - mean) ** 2).sum())
        return cls(
            np.zeros(c),
            np.full(c, variance),
            mean,
            (squares + _BAD_VARIANCE_SAMPLES * variance) / (n + _BAD_VARIANCE_SAMPLES),
        )

    @classmethod
    def of(cls, score: Floats, labels: Ints, examples: Bools, p: Floats, c: int) -> _Mixture:
        """Return the groups of samples that are bad with probability p.

        The others count for the bad ones as much as the examples at most.
        """
        good = 1 - p
        n = np.bincount(labels, good, c)
        mean = np.bincount(labels, good * score, c) / (n + _MEAN_SAMPLES)
        squares = good * (score - mean[labels]) ** 2
        pooled = max(float(squares.sum()) / max(float(n.sum()), 1e-9), _LEAST_VARIANCE)
        variance = (np.bincount(labels, squares, c) + _VARIANCE_SAMPLES * pooled) / (
            n + _VARIANCE_SAMPLES
        )
        others = max(float(p[~examples].sum()), 1e-9)
        weight = np.where(examples, 1.0, p * min(1.0, examples.sum() / others))
        bad_mean = float((weight * score).sum() / weight.sum())
        bad_squares = float((weight * (score - bad_mean) ** 2).sum())
        bad_variance = (bad_squares + _BAD_VARIANCE_SAMPLES * pooled) / (
            weight.sum() + _BAD_VARIANCE_SAMPLES
        )
        return cls(mean, variance, bad_mean, max(bad_variance, _MIN_BAD_VARIANCE * pooled))

    def log_likelihood_ratio(self, score: Floats, labels: Ints) -> Floats:
        """Return that of bad to good; below the mean good sample it stays as it is there."""
        mean, variance = self.good_mean[labels], self.good_variance[labels]
        s = np.maximum(score, mean)
        ratio: Floats = 0.5 * (
            (s - mean) ** 2 / variance
            - (s - self.bad_mean) ** 2 / self.bad_variance
            + np.log(variance / self.bad_variance)
        )
        return ratio


def log_odds_of_bad(score: Floats, labels: Ints, examples: Bools, p: Floats) -> Floats:
    """Return the log-odds of being bad, by expectation maximisation; examples are bad.

    p: what samples count as at the start.
    """
    c, others = int(labels.max()) + 1, ~examples
    n_all, n_named = np.bincount(labels), np.bincount(labels[examples], minlength=c)
    # One more named sample counts, of any label.
    share = (n_named + n_all / len(labels)) / (examples.sum() + 1)
    by_label = others.sum() * share / np.maximum(n_all - n_named, 1)
    rate = max(float(p[others].mean()), _FIRST_RATE)
    groups, log_odds = _Mixture.first(score, np.where(examples, 0, 1 - p), examples, c), score
    for _ in range(_N_STEPS):
        prior = logit(np.clip(rate * by_label, 1e-9, _MAX_LABEL_RATE))
        log_odds = groups.log_likelihood_ratio(score, labels) + prior[labels]
        p = np.where(examples, 1.0, expit(log_odds))
        rate = float(p[others].mean())
        groups = _Mixture.of(score, labels, examples, p, c)
    return log_odds


def capped_probabilities(
    log_odds: Floats, examples: Bools, others: Bools, max_rate: float
) -> Floats:
    """Return the probabilities of being bad, with a mean of at most this over the others."""
    p = np.where(examples, 1.0, expit(log_odds))
    for k, column in enumerate(log_odds.T):
        if p[others, k].mean() > max_rate:
            shifted = shift_to_rate(np.clip(column, -30, 30), others, max(max_rate, 1e-6))
            p[:, k] = np.where(examples[:, k], 1.0, expit(shifted))
    return p
