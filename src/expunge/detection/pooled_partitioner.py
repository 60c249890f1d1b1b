"""The partitioner ``evidence-pool``: pooled cross-fitted evidence and a weighted noise rate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from expunge._core.arrays import Bools, Floats
from expunge.detection.class_arithmetic import joint_with
from expunge.detection.class_rows import occurring_classes, take_classes
from expunge.detection.evidence import robust_deviation
from expunge.detection.gaussian_mixture import MIN_SAMPLES
from expunge.detection.mixture_partitioner import check_options, input_faults
from expunge.detection.noise_model_partitioner import noise_model, two_sided_fit
from expunge.detection.noise_rate import RateEstimate, estimate_noise_rate
from expunge.detection.partitioners import build_partition, most_probable_labels, partitioners
from expunge.errors import ConfigError, check_range
from expunge.records import Fit, Partition, Scores

# Robust deviations from which on an input is unusual for its class, and the slope there.
MIN_NOVELTY = 4.0
_NOVELTY_SLOPE, _NOVELTY_MARGIN = 6.0, 0.7
# A group of inputs that the detectors find is a fault if its novelty separates it from the others
# with this AUROC, in either direction (noise, or blur and fading). Classes and clusters reach 0.75.
MIN_GROUP_AUROC = 0.85
# The share of unusual inputs in clean data.
_CLEAN_NOVEL_SHARE = 0.015
_INTERVAL_STDERRS = 1.96


@partitioners.register("evidence-pool")
def evidence_pool(
    scores: Scores,
    *,
    seed: int,
    threshold: float = 0.5,
    components: int = 3,
    separation: float = 2.0,
    noise_rate: float | None = None,
) -> Partition:
    """Label faults from pooled cross-fitted probes, input faults from novelty within a class.

    The order of the samples is that of the pool: the log-odds that the label is wrong under the
    estimated transition, plus the pool's margin. The noise rate (see `estimate_noise_rate`) only
    shifts these log-odds, so that the mean of ``p_label`` is the rate. "No noise" lowers the
    probabilities and keeps their order.

    An input is corrupted if it lies four robust deviations farther from its nearest neighbours than
    is usual in its predicted class, both in the plain input and in the first layer. What the input
    detectors find by their mixture counts too, if that group is unusual for its class; groups that
    are classes, clusters or hard regions are not. The label of a corrupted input carries no
    evidence, so that ``p_label`` is the rate there.

    Parameters
    ----------
    scores
        Scores with ``pooled`` evidence: those of detector ``pooled_margin``.
    seed
        For the starts of EM and the bootstrap of the input mixture.
    threshold
        Samples with a larger ``p_noisy`` are flagged; in [0, 1].
    components, separation
        Of the mixture of input evidence, see `mixture`.
    noise_rate
        The share of wrong labels, if it is known, in (0, 1). The estimators' rates are still
        reported.

    Returns
    -------
    Partition
        Its ``rate_estimates`` hold the rate by each estimator alone, its ``evidence`` holds
        ``label_evidence``, the log-odds of a wrong label, and ``novelty``.

    Raises
    ------
    ConfigError
        If an option is out of range, or a rate is given without pooled evidence of 20 samples.

    Notes
    -----
    Without pooled evidence, or below 20 samples, the result is that of `noise_model`. Fails if
    classes overlap as noise does: up to an eighth of a clean set was flagged. Cost: O(n c) for some
    sixty evaluations, and the input mixture.

    References
    ----------
    Confident learning: arXiv 1911.00068.

    Examples
    --------
    >>> import numpy as np
    >>> from expunge.records import PooledEvidence
    >>> rng = np.random.default_rng(0)
    >>> right = rng.integers(0, 3, 600)
    >>> given = np.where(rng.random(600) < 0.2, (right + 1) % 3, right)
    >>> probs = 0.7 * np.eye(3)[right] + 0.1
    >>> scores = Scores(
    ...     ids=np.arange(600),
    ...     labels=given,
    ...     values={"pooled_margin": np.zeros(600)},
    ...     kinds={"pooled_margin": "label"},
    ...     class_probs=probs,
    ...     pooled=PooledEvidence(probs, np.zeros(600)),
    ... )
    >>> partition = evidence_pool(scores, seed=0)
    >>> bool((partition.flagged == (given != right)).all())
    True
    """
    check_range(ConfigError, {"noise_rate": (noise_rate, "(0, 1)")}, where="partition")
    if scores.pooled is None or len(scores.ids) < MIN_SAMPLES:
        if noise_rate is not None:
            raise ConfigError(
                f"noise_rate needs scores of detector pooled_margin, and {MIN_SAMPLES} samples",
                where="partition",
                fix="leave noise_rate out, or score by pooled_margin",
            )
        return noise_model(
            scores, seed=seed, threshold=threshold, components=components, separation=separation
        )
    check_options(threshold=threshold, components=components, separation=separation)
    labels, trusted = scores.labels, np.asarray(scores.trusted)
    inputs = _unusual_inputs(scores, seed=seed, components=components, separation=separation)
    usable = (inputs.p <= 0.5) & ~trusted
    if usable.sum() < MIN_SAMPLES:
        usable = np.ones(len(labels), dtype=bool)
    # Classes without samples are neither right nor wrong labels.
    pooled, classes = scores.pooled, occurring_classes(labels, scores.pooled.probs.shape[1])
    if len(classes) < pooled.probs.shape[1]:
        pooled = pooled.with_rows(lambda rows: take_classes(rows, classes))
    given = np.searchsorted(classes, labels)
    rate = estimate_noise_rate(pooled, given, usable)
    if noise_rate is not None:
        estimates = {**rate.estimates, "known": noise_rate}
        rate = replace(rate, value=noise_rate, low=noise_rate, high=noise_rate, estimates=estimates)
    log_odds = shift_to_rate(rate.log_odds, usable, rate.value)
    # The label of a corrupted input carries no evidence: it is as likely wrong as any other.
    p_label: Floats = (1 - inputs.p) * expit(log_odds) + inputs.p * rate.value
    partition = build_partition(
        scores,
        {"label": p_label, "input": inputs.p},
        threshold=threshold,
        rate_stderr=0.0,
        fits=(*inputs.fits, two_sided_fit(log_odds, p_label, usable)),
        evidence={**inputs.evidence, "label_evidence": log_odds},
    )
    suggested, probability = most_probable_labels(
        lambda rows: joint_with(rate.right[rows], given[rows], rate.transition),
        given,
        np.where(trusted, 0.0, p_label),
    )
    return replace(
        partition,
        suggested_label=classes[suggested],
        suggested_probability=probability,
        noise_rate=_with_input_faults(rate, float(partition.p_noisy.mean()), inputs.p),
        rate_estimates=rate.estimates,
    )


def shift_to_rate(log_odds: Floats, usable: Bools, rate: float) -> Floats:
    """Return log-odds minus the constant that makes the usable samples' mean probability the rate.

    Parameters
    ----------
    log_odds
        ``float64[n]``.
    usable
        ``bool[n]``, the samples that count.
    rate
        In (0, 1).

    Examples
    --------
    >>> everyone = np.ones(2, dtype=bool)
    >>> expit(shift_to_rate(np.array([-1.0, 1.0]), everyone, 0.5)).mean().round(4)
    np.float64(0.5)
    """

    def excess(shift: float) -> float:
        return float(expit(log_odds[usable] - shift).mean()) - rate

    return log_odds - float(brentq(excess, -60.0, 60.0, xtol=1e-6))


@dataclass(frozen=True)
class _UnusualInputs:
    """The probability of an input fault, ``float64[n]``, and how it was found."""

    p: Floats
    fits: tuple[Fit, ...]
    evidence: dict[str, Floats]


def _unusual_inputs(
    scores: Scores, *, seed: int, components: int, separation: float
) -> _UnusualInputs:
    """Find inputs that are unusual for their class one by one, or as a group."""
    assert scores.pooled is not None
    novelty = scores.pooled.novelty
    found = input_faults(scores, seed=seed, components=components, separation=separation)
    group = found.p > 0.5
    if not is_unusual_group(group, novelty):
        return _UnusualInputs(
            _novelty_probability(novelty), (), found.evidence | {"novelty": novelty}
        )
    # What is usual for a class is what the inputs outside the group are.
    novelty = robust_deviation(novelty, scores.pooled.probs.argmax(axis=1), ~group)
    p = np.maximum(_novelty_probability(novelty), found.p)
    return _UnusualInputs(p, found.fits, found.evidence | {"novelty": novelty})


def _novelty_probability(novelty: Floats) -> Floats:
    """Return the probability of an input fault by novelty: one half at `MIN_NOVELTY`."""
    is_near = novelty > MIN_NOVELTY - _NOVELTY_MARGIN
    return np.where(is_near, expit(_NOVELTY_SLOPE * (novelty - MIN_NOVELTY)), 0.0)


def is_unusual_group(group: Bools, novelty: Floats) -> bool:
    """Return whether novelty separates a group of samples from the others, in either direction."""
    from sklearn.metrics import roc_auc_score

    if not group.any() or group.all():
        return False
    auroc = float(roc_auc_score(group, novelty))
    return max(auroc, 1 - auroc) >= MIN_GROUP_AUROC


def _with_input_faults(
    rate: RateEstimate, value: float, p_input: Floats
) -> tuple[float, float, float]:
    """Return the rate of both faults; up to 1.5 % of clean inputs are unusual.

    The label rate is that of the other samples, and counts for their share.
    """
    n, share = len(p_input), float(p_input.mean())
    half_width = _INTERVAL_STDERRS * float(np.sqrt(max(share, 0.01) / n))
    low = (1 - share) * rate.low + max(0.0, share - _CLEAN_NOVEL_SHARE - half_width)
    above = half_width if share > _CLEAN_NOVEL_SHARE else 0.0
    high = min(1.0, (1 - share) * rate.high + share + above)
    return value, min(low, value), max(high, value)
