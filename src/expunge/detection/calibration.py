"""Class distributions calibrated for given labels, and for labels that may be wrong. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge._core.rng import subsample

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


def calibrate(probs: AnyFloats, labels: Ints) -> tuple[Floats, float]:
    """Return ``softmax(β log p)`` with the β that makes the labels most likely, and β.

    Parameters
    ----------
    probs
        ``float[n, c]``, made without the sample's own label.
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
    fitted = _fit_rows(probs)
    logs, given = safe_log(probs[fitted]), labels[fitted]
    rows = np.arange(len(given))

    def loss(exponent: float) -> float:
        return -float(log_softmax(exponent * logs, axis=1)[rows, given].mean())

    exponent = _minimise(loss, _MIN_EXPONENT)
    return tempered(probs, exponent), exponent


def tempered(probs: AnyFloats, exponent: float) -> Floats:
    """Return ``softmax(β log p)``, ``float64[n, c]``: sharper than p for β above 1."""
    found: Floats = softmax(exponent * safe_log(probs), axis=1)
    return found


def safe_log(probs: AnyFloats) -> Floats:
    """Return the logarithm of probabilities, which are at least 10⁻⁶."""
    logs: Floats = np.log(np.maximum(probs.astype(np.float64), _MIN_PROBABILITY))
    return logs


def log_likelihood_gain(probs: AnyFloats, labels: Ints) -> float:
    """Return the mean log-likelihood of the labels above that of their frequencies, in nats.

    Examples
    --------
    >>> labels = np.array([0, 0, 1, 1])
    >>> round(log_likelihood_gain(np.eye(2)[labels], labels), 3)
    0.693
    """
    at_label = safe_log(probs[np.arange(len(labels)), labels]).mean()
    share = np.bincount(labels) / len(labels)
    return float(at_label - (share[share > 0] * np.log(share[share > 0])).sum())


def confident_joint(probs: AnyFloats, labels: Ints) -> tuple[Floats, float]:
    """Estimate the transition ``P(given | right)`` and the noise rate by the confident joint.

    A sample counts for the class with the largest probability among those that reach the mean
    probability of their own label.

    Parameters
    ----------
    probs
        ``float[n, c]``, made without the sample's own label.
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
    c, rows = probs.shape[1], np.arange(len(labels))
    counts = np.bincount(labels, minlength=c)
    at_label = np.bincount(labels, probs[rows, labels], c)
    limit = np.where(counts > 0, at_label / np.maximum(counts, 1), np.inf)
    is_above = probs >= limit
    right = np.where(is_above, probs, -1.0).argmax(axis=1)
    is_confident = is_above.any(axis=1)
    joint = np.zeros((c, c))
    np.add.at(joint, (right[is_confident], labels[is_confident]), 1.0)
    joint *= counts / np.maximum(joint.sum(axis=0), 1e-9)
    total = float(joint.sum())
    rate = 1 - float(np.trace(joint)) / total if total else 0.0
    symmetric = np.full((c, c), rate / max(c - 1, 1))
    np.fill_diagonal(symmetric, 1 - rate)
    weight = _PSEUDO_COUNT * c
    transition = (joint + weight * symmetric) / (joint.sum(axis=1, keepdims=True) + weight)
    return transition, rate


def sharpening_exponent(probs: AnyFloats, labels: Ints, transition: Floats) -> float:
    """Return the β for which right labels seen through a transition are most likely.

    The distribution of the right label is ``π = softmax(β log p)``, and a given label y has
    probability ``Σ_c π(c) T_cy``. With p calibrated for the given labels, β is 1 if these need no
    noise; the larger β, the more of the uncertainty in p is noise and not ambiguity.

    Parameters
    ----------
    probs
        ``float[n, c]``, see `calibrate`.
    labels
        ``int[n]``, the given labels.
    transition
        ``float64[c, c]``, ``P(given | right)``.
    """
    fitted = _fit_rows(probs)
    logs, given = safe_log(probs[fitted]), transition[:, labels[fitted]].T

    def loss(exponent: float) -> float:
        likelihood = (softmax(exponent * logs, axis=1) * given).sum(axis=1)
        return -float(np.log(np.maximum(likelihood, 1e-12)).mean())

    return _minimise(loss, _MIN_SHARPENING)


def _fit_rows(probs: AnyFloats) -> Ints:
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
