"""Partitioners: from scores to the probability that each sample is bad. Pure functions.

A partitioner is one function ``(scores, *, seed, threshold, **options) -> Partition``, registered
with ``@partitioners.register(name)``. The built-in ones are in `auto_partitioner`,
`mixture_partitioner`, `noise_model_partitioner`, `pooled_partitioner` and `posterior_partitioner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from expunge._core.arrays import Floats, Ints
from expunge._core.registry import NoMetadata, Registry
from expunge.detection.class_arithmetic import replace_label, row_sum
from expunge.detection.class_rows import ClassRows, apply, as_float64, row_chunks
from expunge.detection.thresholds import fdr_threshold
from expunge.records import Fit, Partition, Scores, align

partitioners: Registry[Callable[..., Partition], NoMetadata] = Registry(
    "partition",
    NoMetadata,
    modules=(
        "expunge.detection.auto_partitioner",
        "expunge.detection.mixture_partitioner",
        "expunge.detection.pooled_partitioner",
        "expunge.detection.noise_model_partitioner",
        "expunge.detection.posterior_partitioner",
    ),
)

# Standard errors from the noise rate to each end of its 95 % interval.
_INTERVAL_STDERRS = 1.96
# Columns of evidence that speak about inputs.
_INPUT_EVIDENCE = ("input_evidence", "novelty")


def build_partition(
    scores: Scores,
    faults: Mapping[str, Floats],
    *,
    threshold: float,
    rate_stderr: float,
    fits: tuple[Fit, ...] = (),
    evidence: Mapping[str, Floats] | None = None,
) -> Partition:
    """Combine the probabilities of both faults into a partition.

    ``p_noisy = 1 − (1 − p_label)(1 − p_input)``; the noise rate is its mean ± 1.96 standard errors.
    Trusted samples have probability 0. The suggested label is the one with the highest posterior.

    Parameters
    ----------
    scores
        The scores that the probabilities were made of.
    faults
        ``{"label": float64[n], "input": float64[n]}``, in [0, 1].
    threshold
        Samples with a larger ``p_noisy`` are flagged.
    rate_stderr
        The standard error of the noise rate.
    fits, evidence
        See `Partition`.
    """
    trusted = np.asarray(scores.trusted)
    p_label, p_input = (np.where(trusted, 0.0, faults[kind]) for kind in ("label", "input"))
    p_noisy = 1 - (1 - p_label) * (1 - p_input)
    suggested, probability = suggest_labels(scores, p_label)
    return Partition(
        ids=scores.ids,
        labels=scores.labels,
        p_noisy=p_noisy,
        p_label_fault=p_label,
        p_input_fault=p_input,
        suggested_label=suggested,
        suggested_probability=probability,
        threshold=threshold,
        noise_rate=_rate_interval(float(p_noisy.mean()), _INTERVAL_STDERRS * rate_stderr),
        fits=fits,
        evidence=evidence or {},
    )


def _rate_interval(rate: float, half_width: float) -> tuple[float, float, float]:
    return rate, max(0.0, rate - half_width), min(1.0, rate + half_width)


def suggest_labels(scores: Scores, p_label: Floats) -> tuple[Ints, Floats]:
    """Return the label with the highest posterior, and that posterior.

    ``p_label · q_c / (1 − q_y)`` for another label c and ``1 − p_label`` for the given one, with q
    the class distribution of the scores. The given label wins a tie.
    """
    probs = scores.class_probs
    return most_probable_labels(lambda rows: probs[rows], scores.labels, p_label)


def most_probable_labels(
    weights: Callable[[slice], ClassRows], labels: Ints, p_label: Floats
) -> tuple[Ints, Floats]:
    """Return the most probable label of each sample, and its probability.

    The given label has ``1 − p_label``; the others share the rest by their weights. The given label
    wins a tie.

    Parameters
    ----------
    weights
        From a slice of b samples to ``[b, c]``, 0 or more.
    labels
        ``int[n]``, the given labels.
    p_label
        ``float64[n]``, the probability that the given label is wrong.
    """
    suggested, probability = labels.copy(), 1 - p_label
    for rows in row_chunks(len(labels)):
        others = replace_label(apply(as_float64, weights(rows)), labels[rows], 0.0)
        share = p_label[rows] / np.maximum(row_sum(others), 1e-12)
        best, found = others.argmax(axis=1), others.max(axis=1) * share
        is_better = found > probability[rows]
        suggested[rows] = np.where(is_better, best, suggested[rows])
        probability[rows] = np.where(is_better, found, probability[rows])
    return suggested, np.clip(probability, 0.0, 1.0)


def with_input_faults(
    partition: Partition, other: Partition, *, fdr: float | None = None
) -> Partition:
    """Return a partition's label faults together with another one's input faults.

    ``p_noisy = 1 − (1 − p_label)(1 − p_input)``, and its mean is the noise rate. Both intervals are
    of the rate of the same samples: what lies in both is left, and the rate itself.

    Parameters
    ----------
    partition
        Gives the label faults, the suggested labels and, without ``fdr``, the threshold. Its
        interval moves with its rate.
    other
        Gives the input faults. It holds the samples of ``partition``, in any order.
    fdr
        Sets the threshold, see `fdr_threshold`.

    Raises
    ------
    DataError
        If a sample of ``partition`` is not in ``other``.
    """
    at = align(other.ids, partition.ids)
    p_input = other.p_input_fault[at]
    p_noisy = np.clip(1.0 - (1.0 - partition.p_label_fault) * (1.0 - p_input), 0.0, 1.0)
    rate, (own, low, high) = float(p_noisy.mean()), partition.noise_rate
    low = max(low + rate - own, other.noise_rate[1])
    high = min(high + rate - own, other.noise_rate[2])
    evidence = {k: e for k, e in partition.evidence.items() if k not in _INPUT_EVIDENCE}
    evidence |= {k: e[at] for k, e in other.evidence.items() if k in _INPUT_EVIDENCE}
    fits = [f for f in other.fits if f.kind == "input"]
    return replace(
        partition,
        p_input_fault=p_input,
        p_noisy=p_noisy,
        threshold=partition.threshold if fdr is None else fdr_threshold(p_noisy, fdr),
        noise_rate=(rate, min(low, rate), max(high, rate)),
        fits=(*fits, *(f for f in partition.fits if f.kind != "input")),
        evidence=evidence,
    )
