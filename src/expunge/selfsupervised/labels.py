"""Which labels stand, which are replaced and which are uncertain, by the consensus of networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge._core.arrays import Bools, Floats, Ints
from expunge.errors import DataError


@dataclass(frozen=True)
class LabelUpdate:
    """Labels after a round.

    Parameters
    ----------
    labels
        ``int64[n]``, the new labels.
    weights
        ``float64[n]``, the weight of each in later trainings, in [0, 1].
    clean
        ``bool[n]``: the label stands.
    relabelled
        ``bool[n]``: the label was replaced. A sample that is neither is uncertain.
    """

    labels: Ints
    weights: Floats
    clean: Bools
    relabelled: Bools


def update_labels(
    probs: Floats,
    labels: Ints,
    *,
    clean_quantile: float = 0.9,
    relabel_fraction: float = 0.2,
    min_relabel_confidence: float = 0.0,
    uncertain_weight: float = 0.5,
) -> LabelUpdate:
    """Update labels by the consensus and the loss of several trainings.

    There is consensus on a sample if all trainings predict the same class. With ``p̄`` the mean
    probability over trainings: if the consensus is the label, the label is clean if its loss
    ``−log p̄_y`` is within the lower quantile of such losses. Of the samples whose consensus is
    another class, the fraction with the largest ``max p̄`` gets that class. All others keep their
    label and are uncertain. A class that would lose all its samples keeps them.

    Parameters
    ----------
    probs
        ``float[s, n, c]``, class probabilities of s trainings.
    labels
        ``int64[n]``, the current labels.
    clean_quantile
        Quantile of the losses, in [0, 1].
    relabel_fraction
        Fraction to relabel, in [0, 1].
    min_relabel_confidence
        Lower limit of ``max p̄`` for relabelling, in [0, 1].
    uncertain_weight
        Weight of uncertain labels, in [0, 1]; all others have weight 1.

    Returns
    -------
    LabelUpdate
        The new labels and weights.

    Raises
    ------
    DataError
        If the shapes do not match.

    Notes
    -----
    A fraction, not a fixed level: a network that was trained on 40 % wrong labels is seldom more
    confident than 60 %, so that a fixed level replaces nothing at first and too much later. Ties go
    to the lower row.

    Examples
    --------
    >>> probs = np.array([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]])
    >>> update = update_labels(probs, np.array([0, 1, 1]), relabel_fraction=1.0)
    >>> update.labels
    array([0, 0, 1])
    """
    if probs.ndim != 3 or probs.shape[1] != len(labels) or not len(probs):
        raise DataError(f"probabilities of shape {probs.shape} for {len(labels)} labels")
    predicted, mean = probs.argmax(axis=2), probs.mean(axis=0)
    last, confidence = predicted[-1], mean.max(axis=1)
    is_consensus = (predicted == last).all(axis=0)
    loss = -np.log(np.maximum(mean[np.arange(len(labels)), labels], 1e-12))
    clean = is_consensus & (last == labels)
    if clean.any():
        clean &= loss <= np.quantile(loss[clean], clean_quantile)
    others = np.flatnonzero(is_consensus & (last != labels))
    by_confidence = others[np.argsort(-confidence[others], kind="stable")]
    chosen = by_confidence[: round(relabel_fraction * len(others))]
    relabelled = np.zeros(len(labels), dtype=bool)
    relabelled[chosen[confidence[chosen] >= min_relabel_confidence]] = True
    weights = np.where(clean | relabelled, 1.0, uncertain_weight)
    new = np.where(relabelled, last, labels)
    would_vanish = np.isin(labels, np.setdiff1d(labels, new[weights > 0]))
    return LabelUpdate(
        labels=np.where(would_vanish, labels, new),
        weights=np.where(would_vanish, 1.0, weights),
        clean=clean,
        relabelled=relabelled & ~would_vanish,
    )
