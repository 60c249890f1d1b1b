"""One class distribution a sample from cross-fitted probes on the input and early layers. Pure.

A deep layer or the model itself may have memorised the labels; the input has not, and the first
layer hardly. Probes on these are always used. Every other source joins the less, the further its
agreement with the given labels exceeds the expected one; sources that agree with few labels count
little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge.detection.calibration import (
    Ramp,
    calibrate,
    confident_joint,
    log_likelihood_gain,
    ramp,
)
from expunge.detection.lda import layer_posteriors
from expunge.detection.memorisation import (
    MEMORISED_AGREEMENT,
    expected_agreement,
    label_agreement,
    memorised_fraction,
)
from expunge.detection.noise_rate import evident_rate
from expunge.detection.probes import (
    n_neighbours,
    nearest_others,
    principal_space,
    probes_for,
    vote_shares,
)
from expunge.records import PooledEvidence, Signals, SourceReport

# Layers beside the input that have hardly memorised.
N_EARLY_LAYERS = 1
# A source that the training can have shaped weighs (1 − m)^12, where m is its own memorised
# fraction: a quarter if it fits a tenth more than expected. The first layer, which memorises least,
# weighs (1 − m)^2, where m is the model's.
_TRAINED_POWER, _EARLY_POWER = 12.0, 2.0
# And g^4, where g is its agreement with the given labels above chance.
_GAIN_POWER = 4.0
_MIN_GAIN, _MIN_WEIGHT = 1e-2, 1e-3
# Probes decide the rate alone if the pool agrees with hardly more labels, and not at all if the
# probes' agreement above chance is lower by this part.
_PROBES_WEAKER: Ramp = (0.1, 0.2)
# Probes show noise if their agreement above chance is in this range or higher, and if the evident
# noise is such a part of their disagreement.
_STRONG_PROBES: Ramp = (0.2, 0.4)
_EVIDENT_PART: Ramp = (0.5, 0.8)
# External probabilities by this name are those of the model's own checkpoints.
_TRAJECTORY = "trajectory"
# Others that agree with nearly all labels, and with most of those to which the pool gives less than
# this probability, were fitted on them.
_IMPROBABLE, _MAX_REPRODUCED = 0.05, 0.5
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
    without the sample's own label (left out, or out of bag), over discriminants of deeper layers,
    the model, its mean over views and external probabilities; then calibrated for the given labels.

    With the agreement ``a_s`` of a source with the given labels, the agreement e of
    `expected_agreement`, the number of classes c and the memorised fraction ``m_s = (a_s − e) /
    (1 − e)`` of `memorised_fraction`, the weights are

    - of probes on the input: ``g_s⁴``, where ``g_s = (a_s − 1/c) / (1 − 1/c)``;
    - of probes on the first layer: ``g_s⁴ (1 − m)²``, where m is that of the model;
    - of deeper layers, the model and its checkpoints (``trajectory``): ``min(g_s, g_e)⁴
      (1 − m_s)¹²``, where ``g_e`` is that of e;
    - of the mean over views: ``g_e⁴ (1 − m)¹²``;
    - of external probabilities: ``g_s⁴``, and 0 if they agree with more than 95 % of the labels and
      with most of those that the other sources find improbable: then they were fitted on these.

    A source that has memorised a little favours the given labels. That hardly changes the order
    but lowers the noise rate. Where the probes alone are nearly as good, they decide the rate:
    ``probe_probs`` and ``probe_weight``.

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
    pools, sums, novelties = [], [], []
    for name, features in [("input", signals.inputs), *early]:
        pool, logs, distances = _probe(name, features[order], labels, c)
        pools.append(pool)
        sums.append(logs)
        novelties.append(log_mean_distance(distances))
    unweighted = np.sum(sums, axis=0)
    reference = expected_agreement(
        signals,
        label_agreement(unweighted, labels),
        _evident_to_probes(softmax(unweighted, axis=1), labels),
        held_out_agreement,
    )
    agreement = label_agreement(signals.logits, signals.labels) if signals.has_model else 0.0
    memorised = memorised_fraction(agreement, reference)
    pool = pools[0]
    for other in pools[1:]:
        pool.join(other, (1 - memorised) ** _EARLY_POWER)
    probe_probs, _ = calibrate(pool.probs(), labels)
    for name, probs in _trained_sources(signals):
        pool.add_trained(name, probs[order], reference)
    if signals.augmented_probs is not None and signals.views:
        pool.add("views", signals.augmented_probs[order], (1 - memorised) ** _TRAINED_POWER)
    for name, external in signals.external_probs.items():
        if name != _TRAJECTORY:
            pool.add_external(f"external:{name}", external[order])
    probs, _ = calibrate(pool.probs(), labels)
    gains = [_gain(label_agreement(p, labels), c) for p in (probe_probs, probs)]
    probe_weight = 1 - ramp(1 - gains[0] / gains[1], _PROBES_WEAKER)
    predicted = probs.argmax(axis=1)
    novelty: Floats = np.min([robust_deviation(v, predicted) for v in novelties], axis=0)
    return PooledEvidence(
        probs=probs[back].astype(np.float32),
        novelty=novelty[back],
        sources=pool.relative_reports(),
        memorised_fraction=memorised,
        expected_agreement=reference,
        contradicting_fraction=contradicting_fraction(signals.inputs, signals.labels),
        log_likelihood_gain=log_likelihood_gain(probs, labels),
        probe_probs=probe_probs[back] if probe_weight > 0 else None,
        probe_weight=probe_weight,
        held_out_agreement=held_out_agreement,
    )


def _evident_to_probes(probs: Floats, labels: Ints) -> float:
    """Return the noise rate that probes show, 0 if their disagreement may be weakness."""
    probs, _ = calibrate(probs, labels)
    agreement, evident = label_agreement(probs, labels), evident_rate(probs, labels)
    part = evident / max(1 - agreement, 1e-9)
    strength = ramp(_gain(agreement, probs.shape[1]), _STRONG_PROBES)
    return evident * ramp(part, _EVIDENT_PART) * strength


def _probe(
    name: str, features: AnyFloats, labels: Ints, classes: int
) -> tuple[_Pool, AnyFloats, Floats]:
    """Return the probes' pool, sum of log probabilities, and distances to the nearest others."""
    pool, space = _Pool(labels, classes), principal_space(features)
    near, distances = nearest_others(space, n_neighbours(len(labels)))
    logs = pool.add(f"neighbours:{name}", vote_shares(labels[near], classes))
    for kind, probe in probes_for(classes).items():
        probs = probe(features if kind == "linear" else space, labels, classes)
        logs += pool.add(f"{kind}:{name}", probs)
    return pool, logs, distances


def _trained_sources(signals: Signals) -> Iterator[tuple[str, AnyFloats]]:
    """Yield the sources that the training can have shaped, in the order of the samples."""
    names = list(signals.features)[N_EARLY_LAYERS:]
    for name, probs in zip(names, layer_posteriors(signals)[N_EARLY_LAYERS:], strict=True):
        yield f"linear:{name}", probs
    if signals.has_model:
        yield "model", softmax(signals.logits.astype(np.float64), axis=1)
    if _TRAJECTORY in signals.external_probs:
        yield f"external:{_TRAJECTORY}", signals.external_probs[_TRAJECTORY]


def _gain(agreement: float, classes: int) -> float:
    """Return the agreement above chance, at least 0.01."""
    return max((agreement - 1 / classes) / (1 - 1 / classes), _MIN_GAIN)


class _Pool:
    """A weighted mean of log probabilities, and a report of each source; keeps no source."""

    def __init__(self, labels: Ints, classes: int) -> None:
        self._labels, self._classes, self._weight = labels, classes, 0.0
        self._logs = np.zeros((len(labels), classes), dtype=np.float32)
        self._reports: list[SourceReport] = []

    def add(
        self, name: str, probs: AnyFloats, credibility: float = 1.0, most: float = 1.0
    ) -> AnyFloats:
        """Add a source by its agreement, which counts at most as `most`, and its credibility.

        Returns its log probabilities, ``float32[n, c]``.
        """
        agreement = label_agreement(probs, self._labels)
        weight = credibility * _gain(min(agreement, most), self._classes) ** _GAIN_POWER
        logs = np.maximum(np.log(np.maximum(probs, 1e-12)), _MIN_LOG_PROBABILITY)
        if credibility > _MIN_WEIGHT:
            self._logs += (weight * logs).astype(np.float32)
            self._weight += weight
        _, rate = confident_joint(probs, self._labels)
        self._reports.append(SourceReport(name, weight, agreement, rate))
        return logs.astype(np.float32)

    def add_trained(self, name: str, probs: AnyFloats, expected: float) -> None:
        """Add a source that is expected to agree with this share of the labels."""
        memorised = memorised_fraction(label_agreement(probs, self._labels), expected)
        self.add(name, probs, (1 - memorised) ** _TRAINED_POWER, expected)

    def add_external(self, name: str, probs: AnyFloats) -> None:
        """Add a source that was not fitted on the labels, as far as the pool can tell."""
        own, _ = calibrate(self.probs(), self._labels)
        is_improbable = own[np.arange(len(own)), self._labels] < _IMPROBABLE
        is_fitted = (
            label_agreement(probs, self._labels) > MEMORISED_AGREEMENT
            and is_improbable.any()
            and label_agreement(probs[is_improbable], self._labels[is_improbable]) > _MAX_REPRODUCED
        )
        self.add(name, probs, float(not is_fitted))

    def join(self, other: _Pool, credibility: float) -> None:
        """Add the sources of another pool, which weigh so much less."""
        self._logs += np.float32(credibility) * other._logs
        self._weight += credibility * other._weight
        self._reports += [replace(r, weight=credibility * r.weight) for r in other._reports]

    def probs(self) -> Floats:
        """Return the pooled distribution, ``float64[n, c]``."""
        pooled: Floats = softmax(self._logs.astype(np.float64) / max(self._weight, 1e-12), axis=1)
        return pooled

    def relative_reports(self) -> tuple[SourceReport, ...]:
        """Return the sources with weights relative to the largest one."""
        largest = max(report.weight for report in self._reports)
        return tuple(replace(r, weight=r.weight / max(largest, 1e-12)) for r in self._reports)


def log_mean_distance(distances: Floats) -> Floats:
    """Return the logarithm of the mean distance to the five nearest others, ``float64[n]``.

    Distances far below the median, those of copies, count as a thousandth of it.
    """
    mean = distances[:, :_NOVELTY_NEIGHBOURS].mean(axis=1)
    logs: Floats = np.log(np.maximum(mean, 1e-3 * max(float(np.median(mean)), 1e-12)))
    return logs


def robust_deviation(values: Floats, groups: Ints, usual: Bools | None = None) -> Floats:
    """Return values minus their group's median, in robust standard deviations.

    Parameters
    ----------
    values, groups
        ``float64[n]`` and ``int[n]``.
    usual
        ``bool[n]``: the samples from which medians and the deviation are taken; all by default.

    Returns
    -------
    NDArray[float64]
        ``[n]``; zero where most values equal their group's median.

    Examples
    --------
    >>> robust_deviation(np.array([1.0, 2.0, 3.0, 7.0, 9.0]), np.array([0, 0, 0, 1, 1])).round(2)
    array([-0.67,  0.  ,  0.67, -0.67,  0.67])
    """
    usual = np.ones(len(values), dtype=bool) if usual is None else usual
    centred = values - np.median(values[usual])
    for group in np.unique(groups[usual]):
        own = groups == group
        centred[own] = values[own] - np.median(values[own & usual])
    spread = _MAD_SCALE * float(np.median(np.abs(centred[usual])))
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
