"""Find the samples that resemble some named bad ones: learning from positive and unlabelled. Pure.

Named samples are examples of what is bad. All others are unlabelled: good, or as bad. Regressions
on the input, on every layer and on the class evidence learn what the named ones have in common;
scores of the label are taken as they are. A named sample is only judged by what did not use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import expit, logit

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge._core.intervals import wilson_interval
from expunge._core.rng import generator
from expunge.detection.class_rows import row_chunks
from expunge.detection.evidence import MAD_SCALE
from expunge.detection.lda import safe_scale
from expunge.detection.pooled_partitioner import shift_to_rate
from expunge.errors import DataError

MIN_NAMED = 5
# A regression within one given label needs this many named samples of that label.
_MIN_NAMED_OF_LABEL = 3
# λ in mean variances of a column, of which the one with the least left-out error is taken.
_RIDGES = (0.03, 0.3, 3.0, 30.0)
# Directions of less variance, in mean variances of a column, are as good as unused by the ridges.
_MIN_VARIANCE = 1e-3
# A source weighs (2 AUROC − 1)^4.
_WEIGHT_POWER = 4.0
_MAX_FOLDS, _N_ROUNDS, _N_STEPS = 10, 3, 20
# The mixture: rate at the start, least variance, and how many samples the pooled variance is worth
# in that of a label and in that of bad samples, and the mean of all in that of a label.
_FIRST_RATE, _LEAST_VARIANCE = 0.03, 1e-4
_VARIANCE_SAMPLES, _BAD_VARIANCE_SAMPLES, _MEAN_SAMPLES = 60.0, 5.0, 5.0
# Bad samples vary at least by this part of the variance of good ones.
_MIN_BAD_VARIANCE = 0.25
# The largest share of bad samples among the others of a label.
_MAX_LABEL_RATE = 0.95
_MAX_RATE = 0.5
# The rate is not estimated from fewer of the named samples: the smallest ratio of a few is chance.
_MIN_SHARE = 0.5
# Named samples have something in common if the e-value of their probabilities is at least this, and
# so is the geometric mean of its factors. Ones drawn at random reached 1.21, those of a kind 1.29.
_MIN_E_VALUE, _MIN_FACTOR = 5.0, 1.25


@dataclass(frozen=True)
class SimilarSamples:
    """How likely every sample is bad in the way of the named ones.

    Parameters
    ----------
    p
        ``float64[n]`` in [0, 1]; 1 for named samples.
    rate
        The fraction of the other samples that is as bad, with the ends of a 95 % interval.
    sources
        The AUROC with which each source tells held-out named samples from good ones of their label.
    """

    p: Floats
    rate: tuple[float, float, float]
    sources: Mapping[str, float]


def find_similar(
    sources: Mapping[str, AnyFloats], labels: Ints, named: Bools, *, seed: int = 0
) -> SimilarSamples:
    """Estimate which of the other samples are bad in the way of the named ones.

    Named samples are held out in ten folds, or one by one if they are fewer; held-out ones count as
    unlabelled. In each fold:

    1. Each source gives scores. Features give two, by ridge regressions of "bad" on standardised
       columns, left out in closed form: over all samples, and within each given label.
    2. A score is measured from the median good sample of the label to the typical named one, and
       ends there: 0 to 1. No scale of a heavy tail enters.
    3. The mean of the scores is weighted by ``(2 AUROC − 1)⁴``: that of the named samples of other
       folds, when they were held out, against good ones of their label.
    4. A mixture of normal groups, the good ones of each label and the bad ones, gives each sample a
       probability. A label has as large a part of the bad samples as of the named ones.

    The rate of bad samples is at most the smallest ratio ``P_other(s > t) / P_held-out(s > t)``
    over thresholds t that half of the held-out samples pass, by its upper confidence limit. Then
    the others count as bad with their probability, and all is repeated, three rounds in all.

    Held-out named samples, with probabilities p_i, resemble each other more than others of their
    label do if ``Π (½ + ½ p_i / p̄_label)`` is at least 5, and the geometric mean of its factors at
    least 1.25. By chance each is one on average.

    Parameters
    ----------
    sources
        Finite, by name: features, ``float[n, d]``, or scores, ``float[n]``, higher for samples that
        are more likely bad.
    labels
        ``int64[n]``, the given labels.
    named
        ``bool[n]``, five or more.
    seed
        Of the folds.

    Returns
    -------
    SimilarSamples
        With probability 0 for all others where the named ones have nothing in common.

    Raises
    ------
    DataError
        For fewer than five named samples, or no other one.

    Notes
    -----
    It takes the named samples for a random part of the bad ones. If they were chosen by what they
    look like, others that look different are missed. Good samples that look like bad ones, as in a
    region in which half of the labels are wrong, are found with them. Cost: for each source
    ``n d² + d³``, twice.

    References
    ----------
    Elkan and Noto, 2008, doi 10.1145/1401890.1401920: the assumption. Garg et al., "Mixture
    Proportion Estimation and PU Learning: A Modern Approach", 2021, arXiv:2111.00980: the rate.
    Vovk and Wang, "E-values: calibration, combination and applications", 2021, arXiv:1912.06116.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, bad = rng.standard_normal((500, 8)), np.arange(500) < 100
    >>> x[bad, :4] += 3
    >>> named = np.arange(500) % 5 == 0
    >>> found = find_similar({"x": x}, np.zeros(500, dtype=int), named & bad)
    >>> bool(((found.p > 0.5) == bad).mean() > 0.98), round(found.rate[0], 1)
    (True, 0.2)
    """
    if named.sum() < MIN_NAMED or named.all():
        raise DataError(
            f"{int(named.sum())} of {len(named)} samples are named",
            where="find more",
            fix=f"name {MIN_NAMED} samples or more, and not all, or forget the named ones alone",
        )
    scorers, fold = _scorers(sources, labels, named), _folds(labels, named, seed)
    examples = named[:, None] & (fold[:, None] != np.arange(fold.max() + 1))
    p, aurocs, rate = examples.astype(np.float64), dict.fromkeys(scorers, 0.5), (0.0, 0.0, 0.0)
    for _ in range(_N_ROUNDS):
        scores, aurocs = _combined_scores(scorers, labels, fold, p)
        columns = zip(scores.T, examples.T, p.T, strict=True)
        log_odds = np.stack([_log_odds(s, labels, e, own) for s, e, own in columns], axis=1)
        rate = similar_rate(_shares_above(log_odds, fold), int((~named).sum()))
        p = _probabilities(log_odds, examples, ~named, rate[2])
    if not _is_distinct(p, labels, fold):
        return SimilarSamples(named.astype(np.float64), (0.0, 0.0, 0.0), aurocs)
    found = np.where(named, 1.0, p.mean(axis=1))
    value = float(found[~named].mean())
    return SimilarSamples(found, (value, min(rate[1], value), max(rate[2], value)), aurocs)


def similar_rate(shares: Floats, n: int) -> tuple[float, float, float]:
    """Return the fraction of the other samples that are like the named ones, and its interval.

    Parameters
    ----------
    shares
        For each named sample, the fraction of the others that scores at least as high.
    n
        The number of the others.

    Examples
    --------
    >>> similar_rate(np.linspace(0.01, 0.2, 100), 1000)[0].round(3)
    np.float64(0.2)
    """
    best = (np.inf, 0.0, 0.0)
    for number, above in enumerate(np.sort(shares), start=1):
        share = number / len(shares)
        if share < _MIN_SHARE:
            continue
        low, high = wilson_interval(share, len(shares))
        low_above, high_above = wilson_interval(above, n)
        best = min(best, (high_above / low, above / share, low_above / high))
    high, value, low = best
    value = min(value, _MAX_RATE)
    return value, min(low, value), min(max(high, value), 1.0)


@dataclass(frozen=True)
class _Space:
    """Standardised features in the eigenvectors of their scatter, and its eigenvalues.

    unit: the mean variance of a column.
    """

    rotated: AnyFloats
    values: Floats
    unit: float

    @classmethod
    def of(cls, features: AnyFloats) -> _Space:
        location = features.mean(axis=0, dtype=np.float64)
        scale = safe_scale(features.std(axis=0, dtype=np.float64), location)
        z = ((features - location) / scale).astype(np.float32)
        n, d = z.shape
        if n < d:
            values, vectors = np.linalg.eigh((z @ z.T).astype(np.float64) / n)
        else:
            scatter = np.zeros((d, d))
            for rows in row_chunks(n):
                scatter += z[rows].T @ z[rows]
            values, vectors = np.linalg.eigh(scatter / n)
        unit = max(float(values.sum()) / d, 1e-12)
        kept = values > _MIN_VARIANCE * unit
        values, vectors = values[kept], vectors[:, kept].astype(np.float32)
        rotated = vectors * np.sqrt(n * values).astype(np.float32) if n < d else z @ vectors
        return cls(rotated, values, unit)

    def left_out(self, targets: Floats) -> Floats:
        """Return predictions of targets ``[n, k]`` without each sample's own.

        Those of the ridge with the least squared error, samples weighted so that a target and its
        complement count equally.
        """
        # The mean stays in: without it, every example would be predicted below all others.
        n, means = len(targets), targets.mean(axis=0)
        centred = targets - means
        products = (self.rotated.T @ centred.astype(np.float32)).astype(np.float64) / n
        weights = targets / np.maximum(means, 1e-12) + (1 - targets) / np.maximum(1 - means, 1e-12)
        errors, found = np.full(len(means), np.inf), centred.copy()
        squares = self.rotated**2
        for ridge in _RIDGES:
            shrunk = self.values + ridge * self.unit
            leverage = np.minimum(squares @ (1 / shrunk) / n, 0.99)[:, None]
            fitted = self.rotated @ (products / shrunk[:, None]).astype(np.float32)
            predicted = (fitted - leverage * centred) / (1 - leverage)
            error = (weights * (predicted - centred) ** 2).sum(axis=0)
            found[:, error < errors] = predicted[:, error < errors]
            errors = np.minimum(errors, error)
        predictions: Floats = found + means
        return predictions


@dataclass(frozen=True)
class _SpaceByLabel:
    """A space for each of some labels; rows: the samples of each."""

    rows: tuple[Ints, ...]
    spaces: tuple[_Space, ...]

    def left_out(self, targets: Floats) -> Floats:
        """Return predictions without each sample's own target; 0 for other labels."""
        found = np.zeros(targets.shape)
        for at, space in zip(self.rows, self.spaces, strict=True):
            found[at] = space.left_out(targets[at])
        return found


class _Scorer(Protocol):
    """What scores every sample without its own target."""

    def left_out(self, targets: Floats) -> Floats:
        """Return scores for each column of targets, ``[n, k]``."""
        ...


@dataclass(frozen=True)
class _FixedScore:
    """A score that depends on no target, ``float[n]``."""

    values: AnyFloats

    def left_out(self, targets: Floats) -> Floats:
        """Return the score for each column of targets."""
        return np.broadcast_to(self.values[:, None].astype(np.float64), targets.shape)


def _scorers(sources: Mapping[str, AnyFloats], labels: Ints, named: Bools) -> dict[str, _Scorer]:
    """Return what scores by each source: of features, all samples and those of each label."""
    counts = np.bincount(labels[named], minlength=int(labels.max()) + 1)
    enough = np.flatnonzero(counts >= _MIN_NAMED_OF_LABEL)
    rows = tuple(np.flatnonzero(labels == label) for label in enough)
    found: dict[str, _Scorer] = {}
    for name, x in sources.items():
        if x.ndim == 1:
            found[name] = _FixedScore(x)
            continue
        found[name] = _Space.of(x)
        if rows:
            found[f"{name}, by label"] = _SpaceByLabel(rows, tuple(_Space.of(x[at]) for at in rows))
    return found


def _folds(labels: Ints, named: Bools, seed: int) -> Ints:
    """Return the fold of each named sample, as many of each label in all; −1 for the others."""
    rows = generator(seed, "similar").permutation(np.flatnonzero(named))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    fold = np.full(len(named), -1)
    fold[rows] = np.arange(len(rows)) % _MAX_FOLDS
    return fold


def _combined_scores(
    scorers: Mapping[str, _Scorer], labels: Ints, fold: Ints, p: Floats
) -> tuple[Floats, dict[str, float]]:
    """Return the weighted mean of the scores of all sources, ``[n, k]``, and their AUROCs.

    p: what all samples count as in each fold, ``float64[n, k]``. A regression on the scores would
    find each example's own target in them: leaving a sample out moves its prediction away from it.
    """
    named, folds = fold >= 0, range(p.shape[1])
    scores = {name: np.empty(p.shape, dtype=np.float32) for name in scorers}
    ranks = {name: np.full(len(fold), 0.5) for name in scorers}
    for name, scorer in scorers.items():
        for k, left_out in enumerate(scorer.left_out(p).T):
            good = np.where(named, 0.0, 1 - p[:, k])
            centred, rank = _against_label(left_out, labels, good)
            ranks[name][fold == k] = rank[fold == k]
            level = float(np.median(centred[named & (fold != k)]))
            scores[name][:, k] = np.clip(centred / level, -1, 1) if level > 0 else 0.0
    combined = np.zeros(p.shape)
    for k in folds:
        judges = named & (fold != k)
        weights = {name: _weight(float(rank[judges].mean())) for name, rank in ranks.items()}
        for name, weight in weights.items():
            combined[:, k] += weight / sum(weights.values()) * scores[name][:, k]
    return combined, {name: float(rank[named].mean()) for name, rank in ranks.items()}


def _weight(auroc: float) -> float:
    """Return the weight of a source."""
    return float(max(2 * auroc - 1, 1e-3) ** _WEIGHT_POWER)


def _against_label(score: Floats, labels: Ints, good: Floats) -> tuple[Floats, Floats]:
    """Return scores from the median good one of their label, and the share of good ones below.

    good: the weight of each sample, ``float64[n]``; all count in a label without good samples.
    """
    n_good = np.bincount(labels, good)
    order = np.lexsort((score, labels))
    s, y = score[order], labels[order]
    weight = np.where(n_good[y] > 0, good[order], 1.0)
    total = np.bincount(y, weight)
    is_first = np.append(True, (y[1:] != y[:-1]) | (s[1:] != s[:-1]))
    tied = np.cumsum(is_first) - 1
    mass = np.add.reduceat(weight, np.flatnonzero(is_first))
    upto = np.cumsum(mass)[tied] - (np.cumsum(total) - total)[y]
    label, first = np.unique(y[upto >= total[y] / 2 - 1e-9], return_index=True)
    median = np.zeros(len(total))
    median[label] = s[upto >= total[y] / 2 - 1e-9][first]
    rank = np.empty(len(s))
    rank[order] = (upto - mass[tied] / 2) / total[y]
    return score - median[labels], rank


class _Mixture(NamedTuple):
    """Normal groups of a score: good samples, ``[c]`` each, and bad ones."""

    good_mean: Floats
    good_variance: Floats
    bad_mean: float
    bad_variance: float

    @classmethod
    def first(cls, score: Floats, good: Floats, examples: Bools, c: int) -> _Mixture:
        """Return the groups to start from: good ones at 0, with the spread of most samples."""
        spread = MAD_SCALE * float(np.median(np.abs(score[good > 0.5]))) if good.any() else 0.0
        variance = max(spread**2, _LEAST_VARIANCE)
        mean, n = float(score[examples].mean()), examples.sum()
        squares = float(((score[examples] - mean) ** 2).sum())
        return cls(
            np.zeros(c),
            np.full(c, variance),
            mean,
            (squares + _BAD_VARIANCE_SAMPLES * variance) / (n + _BAD_VARIANCE_SAMPLES),
        )

    @classmethod
    def of(cls, score: Floats, labels: Ints, examples: Bools, p: Floats, c: int) -> _Mixture:
        """Return the groups of samples that are bad with probability p.

        The others count for the bad ones as much as the examples at most.
        """
        good = 1 - p
        n = np.bincount(labels, good, c)
        mean = np.bincount(labels, good * score, c) / (n + _MEAN_SAMPLES)
        squares = good * (score - mean[labels]) ** 2
        pooled = max(float(squares.sum()) / max(float(n.sum()), 1e-9), _LEAST_VARIANCE)
        variance = (np.bincount(labels, squares, c) + _VARIANCE_SAMPLES * pooled) / (
            n + _VARIANCE_SAMPLES
        )
        others = max(float(p[~examples].sum()), 1e-9)
        weight = np.where(examples, 1.0, p * min(1.0, examples.sum() / others))
        bad_mean = float((weight * score).sum() / weight.sum())
        bad_squares = float((weight * (score - bad_mean) ** 2).sum())
        bad_variance = (bad_squares + _BAD_VARIANCE_SAMPLES * pooled) / (
            weight.sum() + _BAD_VARIANCE_SAMPLES
        )
        return cls(mean, variance, bad_mean, max(bad_variance, _MIN_BAD_VARIANCE * pooled))

    def log_likelihood_ratio(self, score: Floats, labels: Ints) -> Floats:
        """Return that of bad to good; below the mean good sample it stays as it is there."""
        mean, variance = self.good_mean[labels], self.good_variance[labels]
        s = np.maximum(score, mean)
        ratio: Floats = 0.5 * (
            (s - mean) ** 2 / variance
            - (s - self.bad_mean) ** 2 / self.bad_variance
            + np.log(variance / self.bad_variance)
        )
        return ratio


def _log_odds(score: Floats, labels: Ints, examples: Bools, p: Floats) -> Floats:
    """Return the log-odds of being bad, by expectation maximisation; examples are bad.

    p: what samples count as at the start.
    """
    c, others = int(labels.max()) + 1, ~examples
    n_all, n_named = np.bincount(labels), np.bincount(labels[examples], minlength=c)
    # One more named sample counts, of any label.
    share = (n_named + n_all / len(labels)) / (examples.sum() + 1)
    by_label = others.sum() * share / np.maximum(n_all - n_named, 1)
    rate = max(float(p[others].mean()), _FIRST_RATE)
    groups, log_odds = _Mixture.first(score, np.where(examples, 0, 1 - p), examples, c), score
    for _ in range(_N_STEPS):
        prior = logit(np.clip(rate * by_label, 1e-9, _MAX_LABEL_RATE))
        log_odds = groups.log_likelihood_ratio(score, labels) + prior[labels]
        p = np.where(examples, 1.0, expit(log_odds))
        rate = float(p[others].mean())
        groups = _Mixture.of(score, labels, examples, p, c)
    return log_odds


def _probabilities(log_odds: Floats, examples: Bools, others: Bools, max_rate: float) -> Floats:
    """Return the probabilities of being bad, with a mean of at most this over the others."""
    p = np.where(examples, 1.0, expit(log_odds))
    for k, column in enumerate(log_odds.T):
        if p[others, k].mean() > max_rate:
            shifted = shift_to_rate(np.clip(column, -30, 30), others, max(max_rate, 1e-6))
            p[:, k] = np.where(examples[:, k], 1.0, expit(shifted))
    return p


def _shares_above(scores: Floats, fold: Ints) -> Floats:
    """Return for each held-out named sample the share of others that score at least as high."""
    shares = []
    for k, score in enumerate(scores.T):
        others = np.sort(score[fold < 0])
        below = np.searchsorted(others, score[fold == k])
        shares.append(1 - below / len(others))
    return np.concatenate(shares)


def _is_distinct(p: Floats, labels: Ints, fold: Ints) -> bool:
    """Return whether held-out named samples are more likely bad than others of their label.

    By the product of ``½ + ½ p_i / p̄``, p̄ the mean of their label, an e-value: if they are as any
    others of their label, each factor is one on average.
    """
    factors = np.ones(len(labels))
    for k, column in enumerate(p.T):
        held_out = fold == k
        counted = (fold < 0) | held_out
        n = np.bincount(labels[counted], minlength=int(labels.max()) + 1)
        mean = np.bincount(labels[counted], column[counted], len(n)) / np.maximum(n, 1)
        factors[held_out] = 0.5 + 0.5 * column[held_out] / np.maximum(mean[labels[held_out]], 1e-12)
    total = float(np.log(factors).sum())
    n_named = int((fold >= 0).sum())
    return bool(total >= max(np.log(_MIN_E_VALUE), n_named * np.log(_MIN_FACTOR)))
