"""Numbers about models and detectors, with bootstrap intervals. Pure: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import Array, Bools, Floats, Ints
from expunge._core.rng import generator
from expunge.errors import DataError
from expunge.records import Evaluation, Metric

CONFIDENCE_LEVEL = 0.95
BOOTSTRAP_SAMPLES = 1000
_BATCH = 100  # resamples that are in memory together


def evaluate(
    ids: Array, labels: Ints, probs: Array, classes: tuple[str, ...], *, seed: int
) -> Evaluation:
    """How well predictions agree with the labels of samples.

    Parameters
    ----------
    ids
        Of the n samples.
    labels
        ``int64[n]``.
    probs
        ``float[n, c]``, rows sum to one.
    classes
        Names of the c classes.
    seed
        Of the bootstrap.

    Returns
    -------
    Evaluation
        ``accuracy``, ``macro_precision``, ``macro_f1``, ``worst_class`` (the lowest accuracy of a
        class), ``calibration_error`` and, with more than three classes, ``top_3``: the fraction of
        samples whose label is among the three most probable. Macro: the mean over the classes that
        occur as labels. Intervals are 95 % bootstrap percentiles over samples.

    Notes
    -----
    Cost: `BOOTSTRAP_SAMPLES` resamples of the pairs of label and prediction that occur, or of n
    numbers. Memory does not grow with c².

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0, 1, 1, 0])
    >>> probs = np.eye(2)[[0, 1, 0, 0]]
    >>> evaluate(np.arange(4), labels, probs, ("a", "b"), seed=0).accuracy.value
    0.75
    """
    predicted = probs.argmax(axis=1)
    correct = predicted == labels
    n, c = len(labels), len(classes)
    rng = generator(seed, "bootstrap")
    counts, drawn = _resample_counts(labels, predicted, c, rng)
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


def in_top_k(probs: Array, labels: Ints, k: int) -> Bools:
    """Whether each label is among the k most probable classes; of ties the first ones count.

    Parameters
    ----------
    probs
        ``float[n, c]``.
    labels
        ``int64[n]``.
    k
        From 1 to c.

    Returns
    -------
    ndarray
        ``bool[n]``.

    Examples
    --------
    >>> import numpy as np
    >>> in_top_k(np.array([[0.5, 0.3, 0.2]] * 2), np.array([1, 2]), 2).tolist()
    [True, False]
    """
    best = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    hits: Bools = (best == labels[:, None]).any(axis=1)
    return hits


def paired_gain(after: Evaluation, before: Evaluation, *, seed: int) -> Metric:
    """Accuracy of one model minus that of another on the same samples, with a paired interval.

    Parameters
    ----------
    after, before
        Of the same samples in the same order.
    seed
        Of the bootstrap.

    Returns
    -------
    Metric
        In [−1, 1], with a 95 % bootstrap percentile interval over samples.

    Raises
    ------
    DataError
        If the ids differ.

    Examples
    --------
    >>> import numpy as np
    >>> old = Evaluation(np.arange(2), np.array([True, False]), {}, {})
    >>> new = Evaluation(np.arange(2), np.array([True, True]), {}, {})
    >>> paired_gain(new, old, seed=0).value
    0.5
    """
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


def confidence_auroc(members: Array, others: Array) -> float:
    """How often a model is more confident on a member than on another sample.

    The AUROC of ``max_c p_c``, the simplest membership inference: 0.5 is no trace of the members,
    1 identifies all of them.

    Parameters
    ----------
    members, others
        Class probabilities, ``float[n, c]`` and ``float[m, c]``.

    Returns
    -------
    float
        In [0, 1]; ties count half.

    References
    ----------
    Salem et al., arXiv 1806.01246 (a threshold on the largest probability).

    Examples
    --------
    >>> import numpy as np
    >>> confidence_auroc(np.array([[0.9, 0.1]]), np.array([[0.6, 0.4]]))
    1.0
    """
    from sklearn.metrics import roc_auc_score

    p = np.concatenate([members.max(axis=1), others.max(axis=1)])
    return float(roc_auc_score(np.arange(len(p)) < len(members), p))


def bootstrap(
    rows: Array,
    statistic: Callable[[Array], float],
    *,
    seed: int,
    draws: int = BOOTSTRAP_SAMPLES,
) -> Metric:
    """A statistic of the rows with its 95 % percentile interval over resampled rows.

    Parameters
    ----------
    rows
        ``[n, …]``.
    statistic
        A function of the rows.
    seed
        Of the resampling.
    draws
        Number of resamples.

    Returns
    -------
    Metric
        The interval is widened to hold the value, if need be.

    Examples
    --------
    >>> import numpy as np
    >>> bootstrap(np.ones(5), np.mean, seed=0, draws=10)
    Metric(value=1.0, low=1.0, high=1.0, n=5)
    """
    rng = generator(seed, "bootstrap")
    n = len(rows)
    resampled = np.array([statistic(rows[rng.integers(0, n, n)]) for _ in range(draws)])
    return _metric(float(statistic(rows)), resampled, n)


def calibration_error(probability: Array, outcome: Array, *, bins: int = 15) -> float:
    """Expected calibration error: ``Σ_b (n_b / n) |mean probability − mean outcome|``.

    Parameters
    ----------
    probability
        ``float[n]`` in [0, 1].
    outcome
        ``bool[n]`` or ``float[n]``.
    bins
        Number of equal-width bins on [0, 1].

    Returns
    -------
    float
        In [0, 1].

    References
    ----------
    Guo et al., arXiv 1706.04599.

    Examples
    --------
    >>> import numpy as np
    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    weight = np.bincount(bin_of, minlength=bins)
    gap = np.bincount(bin_of, probability, bins) - np.bincount(bin_of, outcome, bins)
    return float(np.abs(gap).sum() / weight.sum())


def detection(truth: Bools, score: Array) -> dict[str, float]:
    """AUROC, average precision and maximal F1 of a score.

    Parameters
    ----------
    truth
        ``bool[n]``, both values occur.
    score
        ``float[n]``; higher should mean True. Tied scores are not separated by a threshold.

    Returns
    -------
    dict
        ``auroc``, ``auprc`` and ``best_f1``, each in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> detection(np.array([True, False]), np.array([0.9, 0.1]))
    {'auroc': 1.0, 'auprc': 1.0, 'best_f1': 1.0}
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    f1_scores = 2 * hits / (np.arange(1, len(score) + 1) + truth.sum())
    # A threshold inside a run of ties is not possible.
    is_threshold = np.append(np.diff(score[order]) != 0, True)
    return {
        "auroc": float(roc_auc_score(truth, score)),
        "auprc": float(average_precision_score(truth, score)),
        "best_f1": float(f1_scores[is_threshold].max()),
    }


def f1(truth: Bools, flagged: Bools) -> float:
    """F1 of a decision: ``2 TP / (2 TP + FP + FN)``; 0 if nothing is true and nothing flagged.

    Parameters
    ----------
    truth, flagged
        ``bool[n]``.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> f1(np.array([True, True, False]), np.array([True, False, True]))
    0.5
    """
    from sklearn.metrics import f1_score

    return float(f1_score(truth, flagged, zero_division=0.0))


def _metric(value: float, draws: Floats, n: int) -> Metric:
    low, high = np.quantile(draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Metric(value, min(float(low), value), max(float(high), value), n)


class _Counts(NamedTuple):
    """How often each class was predicted correctly, given, and predicted: ``int64[draws, c]``."""

    hit: Ints
    given: Ints
    predicted: Ints


def _resample_counts(
    labels: Ints, predicted: Ints, c: int, rng: np.random.Generator
) -> tuple[_Counts, _Counts]:
    """The counts, and those of all resamples. Only pairs that occur are drawn, not c × c."""
    from scipy.sparse import csr_array

    pairs, times = np.unique(labels * c + predicted, return_counts=True)
    label, guess = np.divmod(pairs, c)
    shape = (len(pairs), c)
    sums = [
        csr_array((weight, (np.arange(len(pairs)), column)), shape=shape)
        for weight, column in (
            ((label == guess).astype(np.int64), label),
            (np.ones(len(pairs), dtype=np.int64), label),
            (np.ones(len(pairs), dtype=np.int64), guess),
        )
    ]
    n, parts = len(labels), []
    for _ in range(0, BOOTSTRAP_SAMPLES, _BATCH):
        tables = rng.multinomial(n, times / n, _BATCH)
        parts.append([tables @ s for s in sums])
    drawn = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Counts(*(times[None] @ s for s in sums)), _Counts(*drawn)


def _accuracy(counts: _Counts, present: Bools) -> Floats:
    accuracy: Floats = counts.hit.sum(axis=1) / counts.given.sum(axis=1)
    return accuracy


def _macro_f1(counts: _Counts, present: Bools) -> Floats:
    return _mean(_ratio(2 * counts.hit, counts.given + counts.predicted, 0), present)


def _macro_precision(counts: _Counts, present: Bools) -> Floats:
    """A class that is never predicted counts as 0."""
    return _mean(_ratio(counts.hit, counts.predicted, 0), present)


def _worst_class(counts: _Counts, present: Bools) -> Floats:
    worst: Floats = _ratio(counts.hit, counts.given, 1)[:, present].min(axis=1)
    return worst


def _mean(values: Floats, present: Bools) -> Floats:
    mean: Floats = values[:, present].mean(axis=1)
    return mean


def _ratio(part: Ints, whole: Ints, if_empty: float) -> Floats:
    ratio: Floats = np.divide(
        part, whole, where=whole > 0, out=np.full(part.shape, float(if_empty))
    )
    return ratio


_COUNT_METRICS = {
    "accuracy": _accuracy,
    "macro_precision": _macro_precision,
    "macro_f1": _macro_f1,
    "worst_class": _worst_class,
}
