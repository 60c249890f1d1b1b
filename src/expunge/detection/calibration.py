"""Class distributions calibrated for given labels, and for labels that may be wrong. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar

from expunge._core.arrays import Floats, Ints
from expunge._core.rng import subsample
from expunge.detection.class_arithmetic import (
    at_labels,
    joint_with,
    log_at_label,
    row_sum,
    softmax,
)
from expunge.detection.class_rows import (
    ClassRows,
    LazyRows,
    RowSource,
    TakenRows,
    apply,
    as_float64,
    by_chunks,
    row_chunks,
)
from expunge.records.top_classes import TopClasses

# A range (low, high) in which a weight rises from 0 to 1.
Ramp = tuple[float, float]
# The largest exponent; labels that no noise explains would make it infinite.
MAX_EXPONENT = 10.0
_MIN_EXPONENT, _MIN_SHARPENING = 0.05, 0.2
_MIN_PROBABILITY = 1e-6
# An exponent is fitted on at most this many rows times classes.
_MAX_FIT_SIZE = 5_000_000
# Rows of a transition are drawn towards symmetric noise by this many samples a class.
_PSEUDO_COUNT = 1.0


def calibrate(probs: ClassRows, labels: Ints) -> tuple[ClassRows, float]:
    """Return ``softmax(β log p)`` with the β that makes the labels most likely, and β.

    Parameters
    ----------
    probs
        ``[n, c]``, made without the sample's own label.
    labels
        ``int[n]``, the given labels.

    Examples
    --------
    Predictions that are less certain than they could be:

    >>> probs = np.array([[0.6, 0.4]] * 9 + [[0.4, 0.6]])
    >>> calibrated, exponent = calibrate(probs, np.zeros(10, dtype=int))
    >>> bool(exponent > 1), bool(calibrated[0, 0] > 0.8)
    (True, True)
    """
    exponent = fit_calibration(probs, labels)
    return tempered(probs, exponent), exponent


def fit_calibration(probs: RowSource, labels: Ints) -> float:
    """Return the β of `calibrate`."""
    fitted = _fit_rows(probs)
    logs, given = safe_log(probs[fitted]), labels[fitted]

    def loss(exponent: float) -> float:
        def at_given(rows: slice) -> Floats:
            return log_at_label(apply(lambda v: exponent * v, logs[rows]), given[rows])

        return -float(by_chunks(at_given, len(given)).mean())

    return _minimise(loss, _MIN_EXPONENT)


def tempered(probs: ClassRows, exponent: float) -> ClassRows:
    """Return ``softmax(β log p)``: sharper than p for β above 1."""
    return softmax(apply(lambda logs: exponent * logs, safe_log(probs)))


def safe_log(probs: ClassRows) -> ClassRows:
    """Return the logarithm of probabilities, which are at least 10⁻⁶."""
    return apply(lambda p: np.log(np.maximum(p.astype(np.float64), _MIN_PROBABILITY)), probs)


def log_likelihood_gain(probs: RowSource, labels: Ints) -> float:
    """Return the mean log-likelihood of the labels above that of their frequencies, in nats.

    Examples
    --------
    >>> labels = np.array([0, 0, 1, 1])
    >>> round(log_likelihood_gain(np.eye(2)[labels], labels), 3)
    0.693
    """
    at_label = np.log(np.maximum(as_float64(at_labels(probs, labels)), _MIN_PROBABILITY)).mean()
    share = np.bincount(labels) / len(labels)
    return float(at_label - (share[share > 0] * np.log(share[share > 0])).sum())


def confident_joint(probs: RowSource, labels: Ints) -> tuple[Floats, float]:
    """Estimate the transition ``P(given | right)`` and the noise rate by the confident joint.

    A sample counts for the class with the largest probability among those that reach the mean
    probability of their own label.

    Parameters
    ----------
    probs
        ``[n, c]``, made without the sample's own label.
    labels
        ``int[n]``, the given labels.

    Returns
    -------
    transition : NDArray[float64]
        ``[c, c]``; rows sum to one. They are drawn towards symmetric noise of the same rate by one
        sample a class.
    rate : float
        The share of wrong labels, in [0, 1].

    Notes
    -----
    The rate is too high where classes overlap, and too low for probabilities that have memorised
    the labels. Cost: O(n c).

    References
    ----------
    arXiv 1911.00068.

    Examples
    --------
    >>> right = np.arange(300) % 3
    >>> given = np.where(np.arange(300) < 60, (right + 1) % 3, right)
    >>> transition, rate = confident_joint(0.7 * np.eye(3)[right] + 0.1, given)
    >>> round(rate, 2), transition.argmax(axis=1).tolist()
    (0.2, [0, 1, 2])
    """
    c = probs.shape[1]
    counts = np.bincount(labels, minlength=c)
    sums = np.bincount(labels, at_labels(probs, labels), c)
    limit = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    joint = np.zeros((c, c))
    for rows in row_chunks(len(labels)):
        right = _largest_above(probs[rows], limit)
        is_confident = right >= 0
        np.add.at(joint, (right[is_confident], labels[rows][is_confident]), 1.0)
    joint *= counts / np.maximum(joint.sum(axis=0), 1e-9)
    total = float(joint.sum())
    rate = 1 - float(np.trace(joint)) / total if total else 0.0
    symmetric = np.full((c, c), rate / max(c - 1, 1))
    np.fill_diagonal(symmetric, 1 - rate)
    weight = _PSEUDO_COUNT * c
    transition = (joint + weight * symmetric) / (joint.sum(axis=1, keepdims=True) + weight)
    return transition, rate


def _largest_above(probs: ClassRows, limit: Floats) -> Ints:
    """Return the class of the largest probability among those at their limit, −1 without any.

    The classes in the rest of `TopClasses` are below theirs.
    """
    values = probs.values if isinstance(probs, TopClasses) else probs
    limits = limit[probs.classes] if isinstance(probs, TopClasses) else limit
    is_above = values >= limits
    best = np.where(is_above, values, -1.0).argmax(axis=1)
    if isinstance(probs, TopClasses):
        best = probs.classes[np.arange(len(best)), best].astype(np.int64)
    return np.where(is_above.any(axis=1), best, -1)


def sharpening_exponent(probs: RowSource, labels: Ints, transition: Floats) -> float:
    """Return the β for which right labels seen through a transition are most likely.

    The distribution of the right label is ``π = softmax(β log p)``, and a given label y has
    probability ``Σ_c π(c) T_cy``. With p calibrated for the given labels, β is 1 if these need no
    noise; the larger β, the more of the uncertainty in p is noise and not ambiguity.

    Parameters
    ----------
    probs
        ``[n, c]``, see `calibrate`.
    labels
        ``int[n]``, the given labels.
    transition
        ``float64[c, c]``, ``P(given | right)``.
    """
    fitted = _fit_rows(probs)
    logs, given = safe_log(probs[fitted]), labels[fitted]

    def loss(exponent: float) -> float:
        right = LazyRows(logs, lambda rows: softmax(apply(lambda v: exponent * v, rows)))
        return -_log_likelihood(right, given, transition)

    return _minimise(loss, _MIN_SHARPENING)


def mean_log_likelihood(right: RowSource, labels: Ints, transition: Floats) -> float:
    """Return the mean of ``log Σ_c π(c) T_cy``: given labels y, seen through a transition.

    Of some of the samples, if there are many.

    Parameters
    ----------
    right
        ``[n, c]``, the distribution π of the right label.
    labels
        ``int[n]``, the given labels.
    transition
        ``float64[c, c]``, ``P(given | right)``.

    Examples
    --------
    >>> transition = np.array([[0.75, 0.25], [0.25, 0.75]])
    >>> round(mean_log_likelihood(np.eye(2), np.array([0, 1]), transition), 3)
    -0.288
    """
    fitted = _fit_rows(right)
    return _log_likelihood(TakenRows(right, fitted), labels[fitted], transition)


def _log_likelihood(right: RowSource, labels: Ints, transition: Floats) -> float:
    found = by_chunks(
        lambda rows: row_sum(joint_with(right[rows], labels[rows], transition)), len(labels)
    )
    return float(np.log(np.maximum(found, 1e-12)).mean())


def _fit_rows(probs: RowSource) -> Ints:
    return subsample(len(probs), max(_MAX_FIT_SIZE // probs.shape[1], 1), 0, "calibration")


def _minimise(loss: Callable[[float], float], lowest: float) -> float:
    return float(minimize_scalar(loss, bounds=(lowest, MAX_EXPONENT), method="bounded").x)


def ramp(x: float, between: Ramp) -> float:
    """Return a weight that rises linearly from 0 to 1 within a range.

    Examples
    --------
    >>> ramp(0.25, (0.0, 1.0)), ramp(3.0, (0.0, 1.0))
    (0.25, 1.0)
    """
    low, high = between
    return float(np.clip((x - low) / (high - low), 0.0, 1.0))
