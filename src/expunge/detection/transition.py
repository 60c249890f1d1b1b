"""Class probabilities of right labels from a network that was trained on wrong ones. Pure."""

from __future__ import annotations

import numpy as np

from expunge._core.arrays import AnyFloats, Floats

_RICHARDSON_LUCY_STEPS = 30


def anchor_transition(probs: AnyFloats) -> Floats:
    """Estimate the noise transition from a network's predictions, by anchor points.

    Row c is the mean prediction over the anchors of class c: the tenth of the samples predicted as
    c of which the network is most confident. A class that is never predicted keeps its labels.

    Parameters
    ----------
    probs
        ``float[n, c]``, predictions of a network that was trained on the given labels.

    Returns
    -------
    NDArray[float64]
        ``[c, c]``; rows sum to one.

    References
    ----------
    arXiv 1609.03683.
    """
    p = np.asarray(probs, dtype=np.float64)
    transition, predicted = np.eye(p.shape[1]), p.argmax(axis=1)
    for c in np.unique(predicted):
        rows = p[predicted == c]
        anchors = np.argsort(-rows[:, c], kind="stable")[: -(-len(rows) // 10)]
        transition[c] = rows[anchors].mean(axis=0)
    return transition


def transition_corrected(probs: AnyFloats) -> Floats:
    """Return the distribution of right labels, given a network's predictions of noisy ones.

    A network trained on wrong labels predicts ``p_i = Σ_c π_i(c) T_c``. T is `anchor_transition`;
    π comes from Richardson–Lucy steps from uniform, ``π(c) ← π(c) Σ_k T_ck p_k / (πT)_k``.

    Parameters
    ----------
    probs
        ``float[n, c]``, predictions of a network that was trained on the given labels.

    Returns
    -------
    NDArray[float64]
        ``[n, c]``; rows sum to one.

    Notes
    -----
    Fails for a network that has memorised: it is certain of wrong labels. Cost: O(n · c²).

    References
    ----------
    arXiv 1609.03683; Richardson 1972, doi 10.1364/JOSA.62.000055.

    Examples
    --------
    A network that has learned to predict class 1 for a part of class 0:

    >>> import numpy as np
    >>> p = np.array([[0.6, 0.4]] * 10 + [[0.0, 1.0]] * 10)
    >>> transition_corrected(p)[0].argmax(), bool(transition_corrected(p)[0, 0] > 0.9)
    (np.int64(0), True)
    """
    p = np.asarray(probs, dtype=np.float64)
    return before_transition(p, anchor_transition(p))


def before_transition(probs: Floats, transition: Floats) -> Floats:
    """Return the distributions π for which ``π T`` is near to probabilities, by Richardson–Lucy.

    ``π(c) ← π(c) Σ_k T_ck p_k / (πT)_k``, from uniform.

    Parameters
    ----------
    probs
        ``float64[n, c]``, p; rows sum to one.
    transition
        ``float64[c, c]``, T; rows sum to one.

    Examples
    --------
    >>> transition = np.array([[0.6, 0.4], [0.0, 1.0]])
    >>> bool(before_transition(np.array([[0.6, 0.4]]), transition)[0, 0] > 0.9)
    True
    """
    right = np.full_like(probs, 1 / probs.shape[1])
    for _ in range(_RICHARDSON_LUCY_STEPS):
        right *= (probs / np.maximum(right @ transition, 1e-12)) @ transition.T
        right /= right.sum(axis=1, keepdims=True)
    return right
