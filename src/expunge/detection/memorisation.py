"""Whether a network, or one of its layers, has memorised the given labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge._core.arrays import AnyFloats, Ints
from expunge.records import Scores, Signals

# Predictions that agree with the given labels so much more often than augmented ones do, are of a
# network that has memorised them.
MEMORISATION_GAP = 0.1
# Without views, a network that agrees with more of the given labels counts as memorised.
MEMORISED_AGREEMENT = 0.95


def label_agreement(values: AnyFloats, labels: Ints) -> float:
    """Return the share of samples whose largest value, ``float[n, c]``, is at the given label."""
    return float((values.argmax(axis=1) == labels).mean())


def informative_sources(sources: Sequence[AnyFloats], signals: Signals) -> list[AnyFloats]:
    """Return the sources of class probabilities that have not memorised the given labels.

    A source has if its agreement with the given labels exceeds that of the augmented predictions
    by more than `MEMORISATION_GAP`. If all have, the one with the lowest agreement is returned;
    without augmented predictions, all are.

    Parameters
    ----------
    sources
        Class probabilities, each ``float[n, c]``.
    signals
        Holds the labels and the augmented predictions.
    """
    if signals.augmented_probs is None or not sources:
        return list(sources)
    limit = label_agreement(signals.augmented_probs, signals.labels) + MEMORISATION_GAP
    agreement = [label_agreement(q, signals.labels) for q in sources]
    informative = [q for q, a in zip(sources, agreement, strict=True) if a <= limit]
    return informative or [sources[int(np.argmin(agreement))]]


def augmented_probs_if_informative(signals: Signals) -> tuple[AnyFloats, ...]:
    """Return the augmented predictions, or nothing if the network has memorised its labels.

    Those of a network that has are biased towards the wrong labels too, and the likelihood of
    these labels would favour them.
    """
    assert signals.augmented_probs is not None
    plain, augmented = (
        label_agreement(values, signals.labels)
        for values in (signals.logits, signals.augmented_probs)
    )
    return () if plain - augmented > MEMORISATION_GAP else (signals.augmented_probs,)


def has_memorised(scores: Scores) -> bool | None:
    """Return whether the model has memorised the given labels; None if that is unknown.

    It has if it agrees with them more often than its augmented predictions do, by more than
    `MEMORISATION_GAP`; or, without augmented predictions, with more than `MEMORISED_AGREEMENT` of
    them. A lower agreement without views leaves the question open.
    """
    plain, augmented = scores.agreement.get("plain", 0.0), scores.agreement.get("augmented")
    if augmented is not None:
        return plain - augmented > MEMORISATION_GAP
    return True if plain > MEMORISED_AGREEMENT else None
