"""Numbers about models and detectors, with bootstrap intervals. Pure: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from expunge._core.rng import generator
from expunge.errors import DataError
from expunge.records import Evaluation, Metric

CONFIDENCE_LEVEL = 0.95
BOOTSTRAP_SAMPLES = 1000
_AT_ONCE = 100  # resamples that are in memory together


def evaluate(
    ids: np.ndarray, labels: np.ndarray, probs: np.ndarray, classes: tuple[str, ...], *, seed: int
) -> Evaluation:
    """How well predictions agree with the labels of samples.

    Accuracy, macro precision, macro F1, the accuracy of the worst class, the expected calibration
    error and, with more than three classes, ``top_3``: the share of samples whose label is among
    the three most probable. Macro: the mean over the classes that occur as labels.
    probs: ``float[n, c]``, rows sum to one. Intervals are 95 % bootstrap percentiles over samples.
    Cost: ``BOOTSTRAP_SAMPLES`` resamples of the pairs of labels and predictions that
    occur, or of n numbers.
    """
    predicted = probs.argmax(axis=1)
    correct = predicted == labels
    n, c = len(labels), len(classes)
    rng = generator(seed, "bootstrap")
    counts, drawn = _resampled(labels, predicted, c, rng)
    present = counts.given[0] > 0
    metrics = {}
    for name, statistic in _COUNT_METRICS.items():
        value = float(statistic(counts, present)[0])
        metrics[name] = _metric(value, statistic(drawn, present), n)
    confidence = probs.max(axis=1)
    if c > 3:
        hits = in_top_k(probs, labels, 3)
        draws = rng.binomial(n, hits.mean(), BOOTSTRAP_SAMPLES) / n
        metrics["top_3"] = _metric(float(hits.mean()), draws, n)
    metrics["calibration_error"] = bootstrap(
        np.column_stack([confidence, correct]),
        lambda rows: calibration_error(rows[:, 0], rows[:, 1]),
        seed=seed,
        draws=200,
    )
    recall = np.divide(counts.hit[0], counts.given[0], where=present, out=np.full(c, np.nan))
    per_class = {name: float(r) for name, r, p in zip(classes, recall, present, strict=True) if p}
    return Evaluation(ids, correct, metrics, per_class)


def in_top_k(probs: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """``bool[n]``: whether the label is among the k most probable; of ties the first ones count."""
    best = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


def paired_gain(after: Evaluation, before: Evaluation, *, seed: int) -> Metric:
    """Accuracy of one model minus that of another on the same samples, with a paired interval."""
    if not np.array_equal(after.ids, before.ids):
        raise DataError("the two models were evaluated on different samples")
    difference = after.correct.astype(int) - before.correct.astype(int)
    n = len(difference)
    counts = np.array([(difference == d).sum() for d in (-1, 0, 1)])
    draws = (
        generator(seed, "paired").multinomial(n, counts / n, BOOTSTRAP_SAMPLES)
        @ np.array([-1, 0, 1])
        / n
    )
    return _metric(float(difference.mean()), draws, n)


def confidence_auroc(members: np.ndarray, others: np.ndarray) -> float:
    """How often a model is surer of a member than of another: AUROC of ``max_c p_c``.

    The simplest membership inference (arXiv 1806.01246, a threshold on the largest probability):
    0.5 is no trace of the members, 1 gives all of them away. members, others: ``float[n, c]``
    probabilities.
    """
    p = np.concatenate([members.max(axis=1), others.max(axis=1)])
    return float(roc_auc_score(np.arange(len(p)) < len(members), p))


def bootstrap(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    *,
    seed: int,
    draws: int = BOOTSTRAP_SAMPLES,
) -> Metric:
    """A statistic of the rows with its 95 % percentile interval over resampled rows."""
    rng = generator(seed, "bootstrap")
    n = len(rows)
    resampled = np.array([statistic(rows[rng.integers(0, n, n)]) for _ in range(draws)])
    return _metric(float(statistic(rows)), resampled, n)


def calibration_error(probability: np.ndarray, outcome: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: ``Σ_b (n_b / n) |mean probability − mean outcome|``.

    Equal-width bins on [0, 1] (arXiv 1706.04599).
    """
    which = np.minimum((probability * bins).astype(int), bins - 1)
    weight = np.bincount(which, minlength=bins)
    gap = np.bincount(which, probability, bins) - np.bincount(which, outcome, bins)
    return float(np.abs(gap).sum() / weight.sum())


def detection(truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """AUROC, average precision and best F1 of a score against the truth (``bool[n]``)."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(score) + 1) + truth.sum())
    # A cut inside a run of ties is not possible.
    cut = np.append(np.diff(score[order]) != 0, True)
    return {
        "auroc": float(roc_auc_score(truth, score)),
        "auprc": float(average_precision_score(truth, score)),
        "best_f1": float(f1[cut].max()),
    }


def f1(truth: np.ndarray, flagged: np.ndarray) -> float:
    """F1 of a decision: ``2 TP / (2 TP + FP + FN)``."""
    return float(f1_score(truth, flagged, zero_division=0.0))


def _metric(value: float, draws: np.ndarray, n: int) -> Metric:
    low, high = np.quantile(draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Metric(value, min(float(low), value), max(float(high), value), n)


class _Counts(NamedTuple):
    """How often each class was predicted rightly, given as label, and predicted: ``[draws, c]``."""

    hit: np.ndarray
    given: np.ndarray
    said: np.ndarray


def _resampled(
    labels: np.ndarray, predicted: np.ndarray, c: int, rng: np.random.Generator
) -> tuple[_Counts, _Counts]:
    """The counts, and those of all resamples; of a c × c table only what occurs is drawn."""
    pairs, times = np.unique(labels * c + predicted, return_counts=True)
    label, said = np.divmod(pairs, c)
    to = (len(pairs), c)
    sums = [
        csr_array((weight, (np.arange(len(pairs)), column)), shape=to)
        for weight, column in (
            ((label == said).astype(np.int64), label),
            (np.ones(len(pairs), dtype=np.int64), label),
            (np.ones(len(pairs), dtype=np.int64), said),
        )
    ]
    n, parts = len(labels), []
    for _ in range(0, BOOTSTRAP_SAMPLES, _AT_ONCE):
        tables = rng.multinomial(n, times / n, _AT_ONCE)
        parts.append([tables @ s for s in sums])
    drawn = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Counts(*(times[None] @ s for s in sums)), _Counts(*drawn)


def _accuracy(counts: _Counts, present: np.ndarray) -> np.ndarray:
    return counts.hit.sum(axis=1) / counts.given.sum(axis=1)


def _macro_f1(counts: _Counts, present: np.ndarray) -> np.ndarray:
    return _share(2 * counts.hit, counts.given + counts.said, 0)[:, present].mean(axis=1)


def _macro_precision(counts: _Counts, present: np.ndarray) -> np.ndarray:
    """A class that is never predicted counts as 0."""
    return _share(counts.hit, counts.said, 0)[:, present].mean(axis=1)


def _worst_class(counts: _Counts, present: np.ndarray) -> np.ndarray:
    return _share(counts.hit, counts.given, 1)[:, present].min(axis=1)


def _share(part: np.ndarray, whole: np.ndarray, of_none: float) -> np.ndarray:
    return np.divide(part, whole, where=whole > 0, out=np.full(part.shape, float(of_none)))


_COUNT_METRICS = {
    "accuracy": _accuracy,
    "macro_precision": _macro_precision,
    "macro_f1": _macro_f1,
    "worst_class": _worst_class,
}
