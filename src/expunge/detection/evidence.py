"""One class distribution a sample from cross-fitted probes on the input and early layers. Pure.

A deep layer or the model itself may have memorised the labels; the input has not, and the first
layer hardly. Probes on these are always used. Other sources join the less, the further the model
has memorised its labels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge.detection.calibration import calibrate, confident_joint, log_likelihood_gain
from expunge.detection.lda import layer_posteriors
from expunge.detection.memorisation import expected_agreement, label_agreement, memorised_fraction
from expunge.detection.probes import (
    n_neighbours,
    nearest_others,
    principal_space,
    probes_for,
    vote_shares,
)
from expunge.detection.uncertainty import subtract_group_quantile
from expunge.records import PooledEvidence, Signals, SourceReport

# Layers beside the input that have hardly memorised.
N_EARLY_LAYERS = 1
# A source weighs (1 − m)^4 if the training can have shaped it, and (1 − m)^2 in the first layer,
# which memorises least; m is the memorised fraction.
_TRAINED_POWER, _EARLY_POWER = 4.0, 2.0
_MIN_WEIGHT = 1e-3
_MIN_LOG_PROBABILITY = float(np.log(1e-3))
_NOVELTY_NEIGHBOURS = 5
# From median absolute to standard deviations of a normal distribution.
_MAD_SCALE = 1.4826


def pool_evidence(
    signals: Signals, *, held_out_agreement: float | None = None
) -> PooledEvidence | None:
    """Pool probes that were not fitted on a sample's own label; None without inputs.

    ``log p ∝ Σ_s w_s log q_s / Σ_s w_s`` over neighbours, extremely randomised trees, a kernel
    ridge regression and a linear discriminant, on the plain input and on the first layer, each
    without the sample's own label (left out, or out of bag); then calibrated for the given labels.
    The first layer weighs ``(1 − m)²``. Deeper layers' discriminants, the model, its mean over
    views and external probabilities weigh ``(1 − m)⁴``, with the memorised fraction m of
    `memorised_fraction`.

    Parameters
    ----------
    signals
        With ``inputs`` and, possibly, features, views and external probabilities.
    held_out_agreement
        The share of held-out labels that the model predicts, in [0, 1].

    Returns
    -------
    PooledEvidence or None
        None if the signals hold no inputs, or fewer than two samples a class.

    Notes
    -----
    Samples are taken in the order of their ids, so that their order changes nothing. Memory: one
    distribution a sample, whatever the number of sources. Cost: ``n · 20,000 · 60`` for the
    neighbours, ``n · (300² + Σ d²)`` for the other sources.
    """
    if signals.inputs is None or len(signals.ids) < 2 * len(np.unique(signals.labels)):
        return None
    order = np.argsort(signals.ids, kind="stable")
    back = np.argsort(order, kind="stable")
    labels, c = signals.labels[order], signals.logits.shape[1]
    early = list(signals.features.items())[:N_EARLY_LAYERS]
    pools, novelties = [], []
    for name, features in [("input", signals.inputs), *early]:
        pool, distances = _probe(name, features[order], labels, c)
        pools.append(pool)
        novelties.append(log_mean_distance(distances))
    pool, others = pools[0], pools[1:]
    reference = expected_agreement(
        signals, label_agreement(pool.joined(others).probs(), labels), held_out_agreement
    )
    agreement = label_agreement(signals.logits, signals.labels) if signals.has_model else 0.0
    memorised = memorised_fraction(agreement, reference)
    pool = pool.joined(others, (1 - memorised) ** _EARLY_POWER)
    for name, probs in _trained_sources(signals):
        pool.add(name, probs[order], (1 - memorised) ** _TRAINED_POWER)
    probs, _ = calibrate(pool.probs(), labels)
    predicted = probs.argmax(axis=1)
    novelty: Floats = np.min([robust_deviation(v, predicted) for v in novelties], axis=0)
    return PooledEvidence(
        probs=probs[back].astype(np.float32),
        novelty=novelty[back],
        sources=tuple(pool.reports),
        memorised_fraction=memorised,
        expected_agreement=reference,
        contradicting_fraction=contradicting_fraction(signals.inputs, signals.labels),
        log_likelihood_gain=log_likelihood_gain(probs, labels),
    )


def _probe(name: str, features: AnyFloats, labels: Ints, classes: int) -> tuple[_Pool, Floats]:
    """Return the pool of the probes on some features, and distances to the nearest others."""
    pool, space = _Pool(labels, classes), principal_space(features)
    near, distances = nearest_others(space, n_neighbours(len(labels)))
    pool.add(f"neighbours:{name}", vote_shares(labels[near], classes))
    for kind, probe in probes_for(classes).items():
        pool.add(f"{kind}:{name}", probe(features if kind == "linear" else space, labels, classes))
    return pool, distances


def _trained_sources(signals: Signals) -> Iterator[tuple[str, AnyFloats]]:
    """Yield the sources that the training can have shaped, in the order of the samples."""
    names = list(signals.features)[N_EARLY_LAYERS:]
    for name, probs in zip(names, layer_posteriors(signals)[N_EARLY_LAYERS:], strict=True):
        yield f"linear:{name}", probs
    if signals.has_model:
        yield "model", softmax(signals.logits.astype(np.float64), axis=1)
    if signals.augmented_probs is not None and signals.views:
        yield "views", signals.augmented_probs.astype(np.float64)
    for name, external in signals.external_probs.items():
        yield f"external:{name}", external.astype(np.float64)


class _Pool:
    """A weighted mean of log probabilities, and a report of each source; keeps no source."""

    def __init__(self, labels: Ints, classes: int) -> None:
        self._labels, self._weight = labels, 0.0
        self._logs = np.zeros((len(labels), classes), dtype=np.float32)
        self.reports: list[SourceReport] = []

    def add(self, name: str, probs: AnyFloats, weight: float = 1.0) -> None:
        """Add a source; one with hardly any weight is only reported."""
        if weight > _MIN_WEIGHT:
            logs = np.maximum(np.log(np.maximum(probs, 1e-12)), _MIN_LOG_PROBABILITY)
            self._logs += (weight * logs).astype(np.float32)
            self._weight += weight
        agreement = label_agreement(probs, self._labels)
        _, rate = confident_joint(probs, self._labels)
        self.reports.append(SourceReport(name, weight, agreement, rate))

    def joined(self, others: Sequence[_Pool], weight: float = 1.0) -> _Pool:
        """Return this pool with others, whose sources weigh so much less."""
        joined = copy.copy(self)
        joined._logs, joined.reports = self._logs.copy(), list(self.reports)
        for other in others:
            joined._logs += np.float32(weight) * other._logs
            joined._weight += weight * other._weight
            joined.reports += [replace(r, weight=weight * r.weight) for r in other.reports]
        return joined

    def probs(self) -> Floats:
        """Return the pooled distribution, ``float64[n, c]``."""
        pooled: Floats = softmax(self._logs.astype(np.float64) / max(self._weight, 1e-12), axis=1)
        return pooled


def log_mean_distance(distances: Floats) -> Floats:
    """Return the logarithm of the mean distance to the five nearest others, ``float64[n]``.

    Distances far below the median, those of copies, count as a thousandth of it.
    """
    mean = distances[:, :_NOVELTY_NEIGHBOURS].mean(axis=1)
    logs: Floats = np.log(np.maximum(mean, 1e-3 * max(float(np.median(mean)), 1e-12)))
    return logs


def robust_deviation(values: Floats, groups: Ints) -> Floats:
    """Return values minus their group's median, in robust standard deviations of all.

    Zero where most values equal their group's median.

    Examples
    --------
    >>> robust_deviation(np.array([1.0, 2.0, 3.0, 7.0, 9.0]), np.array([0, 0, 0, 1, 1])).round(2)
    array([-0.67,  0.  ,  0.67, -0.67,  0.67])
    """
    centred = subtract_group_quantile(values, groups, 0.5)
    spread = _MAD_SCALE * float(np.median(np.abs(centred)))
    return centred / spread if spread > 1e-9 else np.zeros(len(values))


def contradicting_fraction(inputs: AnyFloats, labels: Ints) -> float:
    """Return the share of labels that must be wrong because identical inputs have other labels.

    A lower bound of the noise rate: in each group of identical inputs all labels but the most
    frequent one are wrong.

    Parameters
    ----------
    inputs
        ``float[n, d]``.
    labels
        ``int[n]``, the given labels.

    Examples
    --------
    >>> contradicting_fraction(np.array([[1.0], [1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1]))
    0.25
    """
    _, group = np.unique(inputs, axis=0, return_inverse=True)
    pairs, counts = np.unique(np.stack([group.ravel(), labels]), axis=1, return_counts=True)
    most_frequent = np.zeros(int(pairs[0].max()) + 1)
    np.maximum.at(most_frequent, pairs[0], counts)
    return float(1 - most_frequent.sum() / len(labels))
