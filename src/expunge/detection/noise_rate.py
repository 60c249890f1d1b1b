"""The noise rate and its interval: several estimators, weighted by evidence. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge.detection.calibration import (
    Ramp,
    confident_joint,
    fit_calibration,
    log_likelihood_gain,
    mean_log_likelihood,
    ramp,
    sharpening_exponent,
    tempered,
)
from expunge.detection.class_arithmetic import at_label, joint_with, replace_label, row_sum
from expunge.detection.class_rows import (
    LazyRows,
    RowSource,
    TakenRows,
    by_chunks,
    largest,
    predicted,
)
from expunge.detection.memorisation import gain_above_frequencies, label_agreement
from expunge.detection.noise_model import transition_rate
from expunge.detection.transition import before_transition
from expunge.records import PooledEvidence

# All bounds were chosen on the development part of `expunge bench zoo`, on tables with overlapping
# classes and on CIFAR-10 (development seeds).

# Of the labels that disagree with the pool, the share that noise explains. In clean data it grows
# with the disagreement, as classes overlap. It shows noise from this line on, which lies between
# two values: intercept, slope; half of the ramp's width.
_EXPLAINED_LINE, _EXPLAINED_LIMITS, _EXPLAINED_SPREAD = (0.15, 1.1), (0.29, 0.62), 0.035
# The sharpening exponent. Below the range noise follows ambiguity, so that the posterior
# underestimates it, or classes overlap; above it noise does not depend on the input.
SHARPENING: Ramp = (1.8, 2.4)
# Below this range of the exponent, most of the pool's uncertainty is overlap of the classes (real
# tables without noise: 1.2 to 1.5). The line is then higher by this, unless the model has learned.
_SHARPER, _OVERLAP_SHIFT = (1.4, 1.7), 0.05
# A pool that disagrees with this many labels is weak; for the lower bound it is so earlier. The
# rate and its lower bound are those of a weak pool unless noise explains this share of the
# disagreement. (Memorised ViT and ConvNeXt, 29 % of 2,000 labels wrong: with a lower range the rate
# was 0.59 and 0.61.)
_WEAK_POOL: Ramp = (0.25, 0.35)
_WEAK_FOR_BOUND: Ramp = (0.2, 0.3)
_ALL_EXPLAINED: Ramp = (0.88, 1.0)
# A pool of what a model has learned is wrong about at least this many times as many labels as it
# predicts beyond held-out ones (1,500 to 25,000 images of CIFAR-10: 1.6 to 3.2). Without held-out
# labels that gap is taken for 3 points. Of the wrong labels it has learned at most 2.5 times the
# gap (25,000 images, three annotators: 1.7 to 2.1), and at most a third: the upper bound grows by
# no more than half.
_ERRORS_BY_GAP, _LEARNED_BY_GAP, _USUAL_GAP = 1.5, 2.5, 0.03
# The share of the samples, those of which the pool is most confident, whose labels are evident.
_TOP_SHARE = 0.1
# If none of the posterior is evident, there is no noise.
_SOME_EVIDENT: Ramp = (0.0, 0.1)
# If nearly all of the posterior is evident, noise does not follow ambiguity.
_NEARLY_ALL_EVIDENT: Ramp = (0.8, 1.0)
# A model that has learned so much errs where labels scatter as it does where classes overlap: the
# rate is nearer to the posterior, by the part of it that is evident.
_MOSTLY_LEARNED: Ramp = (0.8, 1.0)
# Noise is structured if the least confident samples disagree more often than a calibrated pool
# allows: by this number of standard errors, and by this part of all disagreement (clean CIFAR-10:
# 0.13). Then some samples that agree are wrong too: the rate and its upper bound are these
# multiples of the disagreement.
EXCESS_STDERRS: Ramp = (2.6, 3.6)
EXCESS_PART: Ramp = (0.18, 0.24)
_STRUCTURED_RATE, _STRUCTURED_HIGH = 1.3, 1.6
# A class is noisy if its most confident fifth disagrees with more labels than the pool allows, at
# least 5 %, so that chance gives a noisy class in one of 10 to 100 data sets; and at least half as
# often as the whole class, as ambiguity spares the most confident.
_TOP_OF_CLASS, _LEAST_WRONG, _LEAST_OF_CLASS = 0.2, 0.05, 0.5
_CHANCE_DECADES: Ramp = (1.0, 2.0)
# The pool makes the given labels likelier than their frequencies do by this many nats in all. Below
# the range it knows nothing that could tell which labels are wrong.
_KNOWLEDGE_NATS: Ramp = (0.0, 2.0)
# The pool's agreement with the given labels above that of the most frequent one. Below this range a
# disagreement that follows ambiguity is no sign of noise: only what is evident counts, and nothing
# bounds the rate from below. (Real tables without noise: 0 to 0.6.)
_STRONG_POOL: Ramp = (0.3, 0.5)
# The lower bound contains the posterior if that explains most of the disagreement.
_LOWER_EXPLAINED: Ramp = (0.3, 0.8)
_INTERVAL_STDERRS = 1.96
# Probabilities are taken back through the transition, and not sharpened, if that makes the given
# labels more likely by this many nats a sample and noise does not follow ambiguity: the sharpening
# exponent is at least this (`bench zoo`: 1.0 to 1.3 where the order would get worse, 1.35 to 1.8
# where one class is taken for another).
_LIKELIER, _MIN_UNMIXED_EXPONENT = 0.002, 1.3
# The transition of more classes has too many parameters to be fitted.
_MAX_TRANSITION_CLASSES = 100
# The least rate, and the largest one if no label counts as wrong.
_MIN_RATE, _MAX_CLEAN_RATE = 0.001, 0.005


@dataclass(frozen=True)
class RateEstimate:
    """The share of wrong labels, and what each estimator alone finds.

    Parameters
    ----------
    value, low, high
        The rate and an interval that spans what the data leave open, with sampling error: from the
        labels that ambiguity does not explain to all that disagree with the pool.
    estimates
        The rate by each estimator alone, by name; see `estimate_noise_rate`.
    transition
        ``float64[c, c]``, ``P(given | right)``.
    right
        ``[n, c]``, the distribution of the right label without the given one, computed when its
        rows are read.
    log_odds
        ``float64[n]``, log-odds of a wrong label before the rate shifts them.
    """

    value: float
    low: float
    high: float
    estimates: Mapping[str, float]
    transition: Floats
    right: RowSource
    log_odds: Floats


def estimate_noise_rate(evidence: PooledEvidence, labels: Ints, usable: Bools) -> RateEstimate:
    """Estimate the noise rate among usable samples from cross-fitted class distributions.

    Four estimators that err in different directions:

    - *posterior*: the mean of ``1 − π(y) T_yy / Σ_c π(c) T_cy``, with the transition T of the
      confident joint and the pool sharpened to π (`sharpening_exponent`). Right if noise does not
      depend on the input, too low if it follows ambiguity;
    - *evident*: the disagreement of the tenth of which the pool is most confident, or the rate of a
      transition fitted by maximum likelihood (`transition_rate`), if that is larger. A lower bound
      that hard samples do not raise;
    - *disagreement*: the share with ``argmax p ≠ y``. An upper bound, except for labels that the
      pool has learned from the noise;
    - *by class*: in classes with evident noise what is evident there, elsewhere the posterior.
      Right where some classes are labelled worse than others, see `noise_by_class`.

    The rate of the *confident joint* is reported beside them: too high where classes overlap.

    1. Is there noise? ``posterior / disagreement``, the explained share, grows with the overlap of
       the classes in clean data. Up to about ``0.15 + 1.1 disagreement``, clipped to [0.29, 0.62],
       no label counts as wrong; up to 0.05 more for a sharpening exponent below 1.4, unless the
       model has learned. Nor does one if none of the posterior is evident.
    2. Does it follow ambiguity? The nearer the sharpening exponent is to 1, the more. Then the rate
       is the disagreement (what is evident, if the pool's gain above the most frequent label is too
       small to tell noise from overlap); else it is the posterior.
    3. Is the pool weak? One that disagrees with a third of the labels is: the disagreement is
       replaced by the posterior, and that by what is evident unless noise explains nearly all or
       the model has learned.
    4. Do labels scatter? If nearly all of the posterior is evident, noise does not follow
       ambiguity. If the model has learned (it predicts far more labels than the probes do, and has
       memorised none), the rate is nearer to the posterior, by the part of it that is evident; and
       1.5 times the gap to held-out labels is not counted of the disagreement: those errors are
       the pool's own.
    5. Is a region wrong? Where classes overlap, a calibrated pool is right about at least as many
       of the least confident samples as it says; an annotator who errs in a whole region near a
       boundary makes it wrong about more (`structured_fraction`), and about some that agree.
    6. Are some classes labelled worse than others? Then the rate is that by class.
    7. Does the pool know anything? If it makes the labels no likelier than their frequencies do,
       the rate is 0.

    The upper bound of the interval is the disagreement; a pool that may have learned some of the
    noise adds 2.5 times the gap between its agreement and the model's on held-out labels (3 points
    without any). The lower bound is the posterior as far as noise explains the disagreement, what
    is evident in a weak pool, and 0 for a pool of little gain.

    The order of the samples comes from π and T, and from the pool's margin. If labels count as
    wrong, not by ambiguity, and are more likely by the π for which ``π T`` is the pool
    (`before_transition`), it comes from that alone: a pool that predicts each class partly as one
    other is taken back through T.

    Where the evidence has ``probe_probs``, rate and interval are theirs by ``probe_weight``. The
    rest is drawn up to ``layer_rate``, by ``layer_weight``: a pool of layers that have memorised
    explains away wrong labels which an earlier layer shows.

    Parameters
    ----------
    evidence
        What `pool_evidence` returned.
    labels
        ``int[n]``, the given labels.
    usable
        ``bool[n]``: samples that are neither trusted nor have a corrupted input.

    Returns
    -------
    RateEstimate
        The rate lies within its interval.

    Notes
    -----
    Without held-out or reviewed labels, noise that follows ambiguity looks like hard
    samples, so the interval is wide where classes overlap. Cost: O(n c) for some sixty evaluations;
    O(n c²) for each step that takes the pool back through T.
    """
    learned = (1 - evidence.probe_weight) * (1 - evidence.memorised_fraction)
    estimate = _estimate(
        evidence.probs, labels, usable, learned=learned, held_out=evidence.held_out_agreement
    )
    if evidence.probe_probs is not None:
        probes = _estimate(evidence.probe_probs, labels, usable)
        estimate = _mean_estimate(estimate, probes, evidence.probe_weight)
    if evidence.layer_weight:
        weight = (1 - evidence.probe_weight) * evidence.layer_weight
        estimate = _drawn_up(estimate, evidence.layer_rate, weight)
    floor = min(evidence.contradicting_fraction, estimate.high)
    return replace(estimate, low=max(estimate.low, floor), value=max(estimate.value, floor))


def _mean_estimate(pool: RateEstimate, probes: RateEstimate, weight: float) -> RateEstimate:
    """Return the pool's estimate; rate and interval are the probes' by this weight."""
    value, low, high = (
        (1 - weight) * a + weight * b
        for a, b in ((pool.value, probes.value), (pool.low, probes.low), (pool.high, probes.high))
    )
    estimates = {**pool.estimates, "probes": probes.value}
    return replace(pool, value=value, low=low, high=high, estimates=estimates)


def _drawn_up(estimate: RateEstimate, rate: float, weight: float) -> RateEstimate:
    """Return an estimate whose value is drawn up to a rate by this weight."""
    value = estimate.value + weight * max(0.0, rate - estimate.value)
    estimates = {**estimate.estimates, "layer": rate}
    return replace(estimate, value=value, high=max(estimate.high, value), estimates=estimates)


def _estimate(
    probs: RowSource,
    labels: Ints,
    usable: Bools,
    *,
    learned: float = 0.0,
    held_out: float | None = None,
) -> RateEstimate:
    """Estimate the rate by one pool.

    It is `learned` in [0, 1] as far as a model that has memorised nothing outdoes the probes.
    """
    rows = np.flatnonzero(usable)
    given = labels[rows]
    calibration = fit_calibration(TakenRows(probs, rows), given)
    calibrated = LazyRows(probs, lambda p: tempered(p, calibration))
    known = TakenRows(calibrated, rows)
    transition, joint_rate = confident_joint(known, given)
    exponent = sharpening_exponent(known, given, transition)
    right = LazyRows(calibrated, lambda p: tempered(p, exponent))
    log_odds = wrong_log_odds(right, labels, transition)
    margin = log_margin(calibrated, labels)
    estimates = {
        "confident_joint": joint_rate,
        "posterior": float(expit(log_odds[usable]).mean()),
        "evident": evident_rate(known, given),
        "disagreement": float((margin[usable] > 0).mean()),
    }
    structured = structured_fraction(known, given)
    structured *= 1 - ramp(exponent, SHARPENING)
    gain = gain_above_frequencies(label_agreement(known, given), given)
    agreement = 1 - estimates["disagreement"]
    gap = _USUAL_GAP if held_out is None else max(0.0, agreement - held_out)
    value = _weigh(estimates, exponent, learned=learned, gap=gap, gain=gain)
    value += structured * max(0.0, _STRUCTURED_RATE * estimates["disagreement"] - value)
    by_class = noise_by_class(known, given, log_odds[usable], value)
    estimates["by_class"] = by_class.rate
    structured *= 1 - by_class.weight
    value += by_class.weight * (by_class.rate - value)
    nats = log_likelihood_gain(known, given) * len(given)
    value = max(value * ramp(nats, _KNOWLEDGE_NATS), _MIN_RATE)
    log_odds += margin
    is_noisy = value > _MAX_CLEAN_RATE and exponent >= _MIN_UNMIXED_EXPONENT
    if is_noisy and probs.shape[1] <= _MAX_TRANSITION_CLASSES:
        unmixed = LazyRows(calibrated, lambda p: before_transition(p, transition))
        likelihood, other = (
            mean_log_likelihood(TakenRows(r, rows), given, transition) for r in (unmixed, right)
        )
        if likelihood > other + _LIKELIER:
            right, log_odds = unmixed, wrong_log_odds(unmixed, labels, transition)
    low, high = _interval(estimates, value, gain, len(given))
    high = min(high + learned * min(_LEARNED_BY_GAP * gap, high / 2), 1.0)
    high += structured * max(0.0, _STRUCTURED_HIGH * estimates["disagreement"] - high)
    return RateEstimate(value, low, high, estimates, transition, right, log_odds)


def _weigh(
    estimates: Mapping[str, float], exponent: float, *, learned: float, gap: float, gain: float
) -> float:
    """Combine the estimators' rates; see `estimate_noise_rate`."""
    posterior, disagreement = estimates["posterior"], estimates["disagreement"]
    evident = min(estimates["evident"], posterior)
    explained = posterior / max(disagreement, 1e-9)
    clear = evident / max(posterior, 1e-9)
    ambiguous = 1 - ramp(exponent, SHARPENING)
    strong, sharper = ramp(gain, _STRONG_POOL), ramp(exponent, _SHARPER)
    intercept, slope = _EXPLAINED_LINE
    middle = float(np.clip(intercept + slope * disagreement, *_EXPLAINED_LIMITS))
    middle += _OVERLAP_SHIFT * (1 - learned) * (1 - sharper)
    has_noise = ramp(explained, (middle - _EXPLAINED_SPREAD, middle + _EXPLAINED_SPREAD))
    has_noise *= ramp(clear, _SOME_EVIDENT)
    weak = ramp(disagreement, _WEAK_POOL)
    wide = max(disagreement - learned * _ERRORS_BY_GAP * gap, evident)
    if_ambiguous = (1 - weak) * wide + weak * posterior
    if_ambiguous = strong * if_ambiguous + (1 - strong) * min(sharper * evident, if_ambiguous)
    mostly_learned = ramp(learned, _MOSTLY_LEARNED)
    weak *= (1 - mostly_learned) * (1 - ramp(explained, _ALL_EXPLAINED))
    if_independent = (1 - weak) * posterior + weak * evident
    ambiguous *= 1 - ramp(clear, _NEARLY_ALL_EVIDENT)
    value = ambiguous * if_ambiguous + (1 - ambiguous) * if_independent
    value += mostly_learned * clear * (posterior - value)
    return max(value * has_noise, min(posterior, _MAX_CLEAN_RATE), _MIN_RATE)


def _interval(
    estimates: Mapping[str, float], value: float, gain: float, n: int
) -> tuple[float, float]:
    """Return the interval of a rate among n samples."""
    posterior, disagreement = estimates["posterior"], estimates["disagreement"]
    stderr = float(np.sqrt(max(disagreement * (1 - disagreement), 0.01) / n))
    explained = posterior / max(disagreement, 1e-9)
    certain = ramp(explained, _LOWER_EXPLAINED) * min(posterior, value)
    weak = ramp(disagreement, _WEAK_FOR_BOUND) * (1 - ramp(explained, _ALL_EXPLAINED))
    evident = max(0.0, 2 * estimates["evident"] - disagreement)
    certain = ((1 - weak) * certain + weak * min(certain, evident)) * ramp(gain, _STRONG_POOL)
    low = max(0.0, certain - _INTERVAL_STDERRS * stderr)
    high = min(1.0, disagreement + _INTERVAL_STDERRS * stderr)
    return min(low, value), max(high, value)


def evident_rate(probs: RowSource, labels: Ints) -> float:
    """Return the noise rate that neither ambiguity nor a weak pool explains.

    The disagreement of the tenth of which the pool is most confident, or the rate of a transition
    fitted by maximum likelihood (`transition_rate`), if that is larger.

    Parameters
    ----------
    probs
        ``[n, c]``, calibrated for the given labels, see `calibrate`.
    labels
        ``int[n]``, the given labels.

    Examples
    --------
    Of those of which the pool is most confident, a fifth has the other label:

    >>> labels = np.tile([0, 0, 0, 0, 1], 40)
    >>> probs = np.repeat([[0.9, 0.1], [0.6, 0.4]], 100, axis=0)
    >>> round(evident_rate(probs, labels), 2)
    0.2
    """
    disagrees, confidence = predicted(probs) != labels, largest(probs)
    top = np.argsort(-confidence, kind="stable")[: max(1, round(_TOP_SHARE * len(labels)))]
    rate = float(disagrees[top].mean())
    if probs.shape[1] <= _MAX_TRANSITION_CLASSES:
        rate = max(rate, transition_rate(probs, labels))
    return rate


class NoiseByClass(NamedTuple):
    """A noise rate, and how far classes with evident noise support it, in [0, 1]."""

    rate: float
    weight: float


def noise_by_class(
    probs: RowSource, labels: Ints, log_odds: Floats, elsewhere: float
) -> NoiseByClass:
    """Estimate the noise rate where some classes are labelled worse than others.

    A class whose labels are often another one stands out among the samples that the pool predicts
    as that class: the most confident fifth of them disagrees with the labels nearly as often as the
    others do. In clean classes that overlap it hardly ever does. The rate is

    ``1/n (Σ_{k noisy} n_k min(e_k, d_k) + s Σ_{i elsewhere} w_i)``,

    with n_k samples predicted as k, of which d_k disagree, and e_k of the most confident fifth; w
    is the posterior probability of a wrong label, and s ≤ 1 scales its mean down to ``elsewhere``.
    A class is noisy if chance makes e_k that much larger than what the pool allows (binomial tail,
    times the number of classes) less than once in ten data sets, and e_k is at least half of d_k.

    Parameters
    ----------
    probs
        ``[n, c]``, calibrated for the given labels, see `calibrate`.
    labels
        ``int[n]``, the given labels.
    log_odds
        ``float64[n]``, of a wrong label, see `wrong_log_odds`.
    elsewhere
        The rate without regard to classes, in [0, 1].

    Returns
    -------
    NoiseByClass
        The weight is 1 from one chance in a hundred on, and 0 without noisy classes.

    Examples
    --------
    A third of class 0 is labelled 1, and the pool is as sure of these samples:

    >>> labels = np.r_[np.tile([0, 0, 1], 40), np.ones(120, dtype=int)]
    >>> probs = np.repeat([[0.9, 0.1], [0.02, 0.98]], 120, axis=0)
    >>> rate, weight = noise_by_class(probs, labels, np.full(240, -9.0), 0.0)
    >>> round(rate, 2), weight
    (0.17, 1.0)
    """
    classes, confidence = predicted(probs), largest(probs)
    disagrees, wrong, weight = classes != labels, expit(log_odds), 0.0
    wrong *= min(1.0, elsewhere / max(float(wrong.mean()), 1e-9))
    predicted_classes = np.unique(classes)
    for k in predicted_classes:
        own = np.flatnonzero(classes == k)
        order = own[np.argsort(-confidence[own], kind="stable")]
        top = order[: max(1, round(_TOP_OF_CLASS * len(own)))]
        share, evident = float(disagrees[own].mean()), float(disagrees[top].mean())
        allowed = max(float((1 - confidence[top]).mean()), _LEAST_WRONG)
        tail = binom.sf(disagrees[top].sum() - 1, len(top), allowed) * len(predicted_classes)
        own_weight = ramp(-float(np.log10(max(tail, 1e-99))), _CHANCE_DECADES)
        if own_weight > 0 and evident >= _LEAST_OF_CLASS * share:
            weight = max(weight, own_weight)
            wrong[own] = min(evident, share)
    return NoiseByClass(float(wrong.mean()), weight)


def structured_fraction(probs: RowSource, labels: Ints) -> float:
    """Return how far labels near class boundaries contradict calibrated probabilities, in [0, 1].

    Samples are sorted by ``max p``, the least confident first. E is the largest excess of the
    first k samples' disagreement over what the pool expects, ``Σ [argmax p ≠ y] − (1 − max p)``.
    It counts if it is some standard errors, ``√Σ max p (1 − max p)``, and some part of all
    disagreement.

    Parameters
    ----------
    probs
        ``[n, c]``, calibrated for the given labels, see `calibrate`.
    labels
        ``int[n]``, the given labels.

    Returns
    -------
    float
        0 for labels that the pool could have drawn.

    Examples
    --------
    Of the uncertain half, all labels contradict the pool:

    >>> probs = np.repeat([[0.6, 0.4], [0.9, 0.1]], 100, axis=0)
    >>> structured_fraction(probs, np.repeat([1, 0], 100))
    1.0
    """
    confidence = largest(probs)
    order = np.argsort(confidence, kind="stable")
    confidence, disagrees = confidence[order], predicted(probs)[order] != labels[order]
    excess = np.cumsum(disagrees - (1 - confidence))
    k = int(excess.argmax())
    stderr = max(float(np.sqrt((confidence[: k + 1] * (1 - confidence[: k + 1])).sum())), 1.0)
    part = float(excess[k]) / max(int(disagrees.sum()), 1)
    return ramp(float(excess[k]) / stderr, EXCESS_STDERRS) * ramp(part, EXCESS_PART)


def wrong_log_odds(right: RowSource, labels: Ints, transition: Floats) -> Floats:
    """Return log-odds of a wrong label: ``log Σ_{c≠y} π(c) T_cy − log π(y) T_yy``.

    Parameters
    ----------
    right
        ``[n, c]``, the distribution π of the right label.
    labels
        ``int[n]``, the given labels y.
    transition
        ``float64[c, c]``, T.

    Examples
    --------
    >>> right, transition = np.array([[0.75, 0.25]]), np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> wrong_log_odds(right, np.array([1]), transition).round(2)
    array([-1.1])
    """

    def odds(rows: slice) -> Floats:
        joint = joint_with(right[rows], labels[rows], transition)
        others = row_sum(replace_label(joint, labels[rows], 0.0))
        return _log_ratio(others, at_label(joint, labels[rows]))

    return by_chunks(odds, len(labels))


def log_margin(probs: RowSource, labels: Ints) -> Floats:
    """Return the log-odds of the best other label against the given one, ``float64[n]``.

    Parameters
    ----------
    probs
        ``[n, c]``.
    labels
        ``int[n]``, the given labels.

    Examples
    --------
    >>> log_margin(np.array([[0.75, 0.25]]), np.array([1])).round(2)
    array([1.1])
    """

    def margin(rows: slice) -> Floats:
        block = probs[rows]
        others = replace_label(block, labels[rows], 0.0).max(axis=1)
        return _log_ratio(others, at_label(block, labels[rows]))

    return by_chunks(margin, len(labels))


def _log_ratio(others: AnyFloats, at_label: AnyFloats) -> Floats:
    ratio: Floats = np.log(np.maximum(others, 1e-9)) - np.log(np.maximum(at_label, 1e-12))
    return ratio
