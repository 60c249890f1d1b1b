"""Whether a network, or one of its layers, has memorised the given labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge._core.arrays import Floats, Ints
from expunge.detection.class_rows import ClassRows, RowSource, predicted
from expunge.records import Scores, Signals

# Predictions that agree with the given labels so much more often than augmented ones do, are of a
# network that has memorised them.
MEMORISATION_GAP = 0.1
# The share by which a model agrees with more training labels than held-out ones in any case.
GENERALISATION_GAP = 0.05
# Without views, a network that agrees with more of the given labels counts as memorised.
MEMORISED_AGREEMENT = 0.95


def label_agreement(values: RowSource, labels: Ints) -> float:
    """Return the share of samples whose largest value, ``[n, c]``, is at the given label."""
    return float((predicted(values) == labels).mean())


def gain_above_frequencies(agreement: float, labels: Ints) -> float:
    """Return an agreement with labels above that of the most frequent label, at most 1.

    ``(a − f) / (1 − f)`` with the agreement a and the share f of the most frequent label.

    Parameters
    ----------
    agreement
        The share of the labels that are predicted, in [0, 1].
    labels
        ``int[n]``, the given labels.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 1])
    >>> gain_above_frequencies(1.0, labels), gain_above_frequencies(0.75, labels)
    (1.0, 0.0)
    """
    others = 1 - float(np.bincount(labels).max()) / len(labels)
    return 1 - (1 - agreement) / max(others, 1e-9)


def informative_sources(sources: Sequence[ClassRows], signals: Signals) -> list[ClassRows]:
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


def augmented_probs_if_informative(signals: Signals) -> tuple[ClassRows, ...]:
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


def expected_agreement(
    signals: Signals,
    input_agreement: float,
    probe_agreement: float,
    evident_rate: float = 0.0,
    held_out_agreement: float | None = None,
) -> float:
    """Return the agreement with the given labels to expect of the model without memorisation.

    That of its augmented predictions; without views, 5 points above that on held-out labels, as a
    model fits its training labels a little better in any case. At least the agreement of probes on
    the input and the first layer.

    At most 10 points above the agreement on held-out labels, as a model that was trained on views
    has memorised them too, and at most 1 minus the evident noise rate, as views may not show what
    was memorised (words left out of a document). The first layer may have memorised too (a small
    transformer), so that this bounds its probes as well; only those on the input are beyond doubt.

    Parameters
    ----------
    signals
        Holds the labels and, with views, the augmented predictions.
    input_agreement, probe_agreement
        The shares of the given labels that cross-fitted probes predict: those on the input alone,
        and all, with those on the first layer. In [0, 1].
    evident_rate
        The noise rate that is evident to these probes, see
        `expunge.detection.noise_rate.evident_rate`.
    held_out_agreement
        The share of held-out labels that the model predicts, in [0, 1].
    """
    known, most = probe_agreement, 1 - evident_rate
    if signals.augmented_probs is not None and signals.views:
        known = max(known, label_agreement(signals.augmented_probs, signals.labels))
    elif held_out_agreement is not None:
        known = max(known, held_out_agreement + GENERALISATION_GAP)
    if held_out_agreement is not None:
        most = min(most, held_out_agreement + MEMORISATION_GAP)
    return max(min(known, most), input_agreement)


def memorised_fraction(agreement: float, expected: float) -> float:
    """Return how far a model fits its labels better than expected: ``m = (a − e) / (1 − e)``.

    Clipped to [0, 1]; e is that of `expected_agreement`.

    Examples
    --------
    >>> memorised_fraction(0.9, 0.8)
    0.5
    """
    return float(np.clip(round((agreement - expected) / max(1 - expected, 1e-9), 12), 0.0, 1.0))


def has_memorised_faults(scores: Scores, p_label_fault: Floats) -> bool | None:
    """Return whether the model has memorised wrong labels, by its gap to the expected agreement.

    It has if it agrees with more given labels than expected, by more than `MEMORISATION_GAP`, and
    predicts most of the labels that are probably wrong. The second condition matters where the
    model does not tolerate the views, or where there are none: a good model agrees with right
    labels more often than weak probes.

    Parameters
    ----------
    scores
        With ``pooled`` evidence and the model's plain predictions.
    p_label_fault
        ``float64[n]``, the probability that each label is wrong.

    Returns
    -------
    bool or None
        None if that is unknown: no label is probably wrong, or there is no such evidence.
    """
    is_wrong = p_label_fault > 0.5
    model_probs = scores.model_probs
    if scores.pooled is None or model_probs is None or not len(model_probs) or not is_wrong.any():
        return None
    gap = label_agreement(model_probs[0], scores.labels) - scores.pooled.expected_agreement
    reproduced = label_agreement(model_probs[0][is_wrong], scores.labels[is_wrong])
    return gap > MEMORISATION_GAP and reproduced > 0.5
