"""The noise model of many classes: a transition of few numbers, fitted on the best classes. Pure.

A row of the transition is that of symmetric noise with one rate for all classes, plus the
confusions that the labels show: the counts of a class are drawn towards symmetric noise by ten
samples. A sample has numbers of its 32 best classes and one for all others.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge._core.rng import generator
from expunge.detection.class_arithmetic import merge_top
from expunge.detection.class_rows import constant_rows
from expunge.detection.noise_likelihood import log_evidence
from expunge.records.top_classes import TopClasses

# So many samples of symmetric noise are added to the confusions of each class.
_PSEUDO_COUNT = 10.0
# The noise rate with which the fit starts, and its bounds.
_START_RATE, _RATES = 0.3, (1e-6, 0.999)
# Alternations of weights and transition, and steps of each.
_ROUNDS, _WEIGHT_STEPS, _TRANSITION_STEPS = 10, 10, 3
_RIDGE = 1e-3


class TopClassRows:
    """Log probabilities of several sources at each sample's best classes, and the given labels.

    Parameters
    ----------
    sources
        ``[s, n, c]``.
    labels
        ``int[n]``, the given labels.
    known
        ``bool[n]``, samples whose label is right.
    """

    def __init__(self, sources: TopClasses, labels: Ints, known: Bools) -> None:
        self.labels, self.known, c = labels, known, sources.n_classes
        best = constant_rows(0.0, labels, c)
        for s in range(len(sources)):
            best = merge_top(best, sources[s].map(log_evidence), labels, 1.0)
        self.classes, self.n_rest = best.classes.astype(np.int64), best.n_rest
        self.logs = np.stack([self._logs_of(np.asarray(sources[s])) for s in range(len(sources))])
        self.is_label = np.zeros(self.logs.shape[1:], dtype=bool)
        self.is_label[:, :-1] = self.classes == labels[:, None]
        counts = np.bincount(labels, minlength=c) + 1.0
        self.log_share: Floats = np.log(counts / counts.mean())

    def _logs_of(self, probs: AnyFloats) -> Floats:
        """Return log probabilities of the best classes, and of the others' mean."""
        found = np.take_along_axis(probs, self.classes, axis=1).astype(np.float64)
        others = (probs.sum(axis=1, dtype=np.float64) - found.sum(axis=1)) / max(self.n_rest, 1)
        return log_evidence(np.append(found, others[:, None], axis=1))

    def log_probs(self, sources: tuple[int, ...], weights: Floats, offsets: Floats) -> Floats:
        """Return log π of the best classes and, in the last column, of all others together."""
        z = np.tensordot(weights, self.logs[list(sources)], axes=1)
        z[:, :-1] += offsets[self.classes]
        z[:, -1] += np.log(max(self.n_rest, 1e-9))
        normalised: Floats = z - logsumexp(z, axis=1, keepdims=True)
        return normalised

    def given(self, transition: Floats) -> Floats:
        """Return ``T_cy`` of the best classes and, in the last column, its mean over the others."""
        found = np.empty(self.is_label.shape)
        found[:, :-1] = transition[self.classes, self.labels[:, None]]
        others = transition.sum(axis=0)[self.labels] - found[:, :-1].sum(axis=1)
        found[:, -1] = np.maximum(others, 0.0) / max(self.n_rest, 1)
        return found

    def posterior(self, log_pi: Floats, transition: Floats, label_bias: float = 0.0) -> Floats:
        """Return the right label's posterior in the columns of `log_probs`."""
        joint = np.exp(log_pi) * self.given(transition)
        joint[self.is_label] *= np.exp(-label_bias)
        joint = np.where(self.known[:, None], self.is_label, joint)
        share: Floats = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
        return share

    def log_likelihood(self, log_pi: Floats, transition: Floats | None) -> float:
        """Return that of the labels; None stands for right labels alone."""
        at_label = log_pi[self.is_label]
        if transition is None:
            return float(at_label.sum())
        each = np.log(np.maximum((np.exp(log_pi) * self.given(transition)).sum(axis=1), 1e-300))
        return float(np.where(self.known, at_label, each).sum())

    def next_transition(self, share: Floats, sample_weight: Floats | None = None) -> Floats:
        """Return the most probable transition for a posterior of the right labels."""
        c = len(self.log_share)
        weight = np.ones(len(share)) if sample_weight is None else sample_weight
        weight = np.where(self.known, 0.0, weight)
        wrong = weight @ (1 - share[self.is_label]) / max(weight.sum(), 1e-9)
        counts = np.zeros((c, c))
        labels = np.broadcast_to(self.labels[:, None], self.classes.shape)
        np.add.at(counts, (self.classes, labels), weight[:, None] * share[:, :-1])
        return shrink(counts, float(np.clip(wrong, *_RATES)))

    def fit(
        self, sources: tuple[int, ...], *, is_noisy: bool = True
    ) -> tuple[Floats, Floats, Floats]:
        """Return weights, offsets and transition of the most probable model of some sources."""
        s, c = len(sources), len(self.log_share)
        x = np.append(np.full(s, 1 / s), 0.0)
        transition = symmetric(c, _START_RATE if is_noisy else 0.0)
        for _ in range(_ROUNDS if is_noisy else 1):
            x = self._fit_weights(sources, x, transition, steps=_WEIGHT_STEPS if is_noisy else 100)
            log_pi = self.log_probs(sources, x[:s], x[s] * self.log_share)
            for _ in range(_TRANSITION_STEPS if is_noisy else 0):
                transition = self.next_transition(self.posterior(log_pi, transition))
        return x[:s], x[s] * self.log_share, transition

    def _fit_weights(
        self, sources: tuple[int, ...], start: Floats, transition: Floats, *, steps: int
    ) -> Floats:
        """Return the weights of the sources, and that of the classes' frequencies."""
        s, n, given = len(sources), len(self.labels), self.given(transition)
        logs = self.logs[list(sources)]
        shares = np.append(self.log_share[self.classes], np.zeros((n, 1)), axis=1)
        of_label = np.where(self.known[:, None], self.is_label, given)

        def loss(x: Floats) -> tuple[float, Floats]:
            log_pi = self.log_probs(sources, x[:s], x[s] * self.log_share)
            pi = np.exp(log_pi)
            joint = pi * of_label
            each = np.maximum(joint.sum(axis=1), 1e-300)
            residual = joint / each[:, None] - pi
            slope = np.append(
                np.tensordot(logs, residual, axes=([1, 2], [0, 1])), (shares * residual).sum()
            )
            return -float(np.log(each).mean() - _RIDGE * x @ x), -slope / n + 2 * _RIDGE * x

        bounds = [(0.0, None)] * s + [(None, None)]
        options = {"maxiter": steps}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        best: Floats = found.x
        return best

    def resampled_rates(
        self, log_pi: Floats, transition: Floats, *, n_samples: int, n_steps: int, seed: int
    ) -> list[float]:
        """Return the noise rate of the transition refitted on resampled rows, several times."""
        draw, n, rates = generator(seed, "noise rate"), len(self.labels), []
        for _ in range(n_samples):
            weight = draw.multinomial(n, np.full(n, 1 / n)).astype(np.float64)
            fitted = transition
            for _ in range(n_steps):
                share = self.posterior(log_pi, fitted)
                fitted = self.next_transition(share, weight)
            rates.append(1 - float(weight @ share[self.is_label]) / n)
        return rates


def symmetric(classes: int, rate: float) -> Floats:
    """Return the transition of symmetric noise, ``float64[c, c]``.

    Examples
    --------
    >>> symmetric(3, 0.2)
    array([[0.8, 0.1, 0.1],
           [0.1, 0.8, 0.1],
           [0.1, 0.1, 0.8]])
    """
    transition = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(transition, 1 - rate)
    return transition


def shrink(counts: Floats, rate: float) -> Floats:
    """Return the transition of counts ``[right, given]``, drawn towards symmetric noise.

    Examples
    --------
    >>> shrink(np.array([[10.0, 0.0], [10.0, 0.0]]), 0.0)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    total = counts.sum(axis=1, keepdims=True) + _PSEUDO_COUNT
    transition: Floats = (counts + _PSEUDO_COUNT * symmetric(len(counts), rate)) / total
    return transition
