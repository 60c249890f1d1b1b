"""Find the samples that resemble some named bad ones: learning from positive and unlabelled. Pure.

Named samples are examples of what is bad. All others are unlabelled: good, or as bad. Regressions
on the input, on every layer and on the class evidence learn what the named ones have in common.
None of them is fitted on the sample that it scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit

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
# A label with fewer good samples has the spread of all.
_MIN_FOR_SPREAD = 20
_N_FOLDS, _N_ROUNDS = 4, 2
# Named samples that score as others do have nothing in common: the AUROC must be above one half by
# this many standard errors, and at least this large.
_MIN_STDERRS, _MIN_AUROC = 2.0, 0.55
_MAX_RATE = 0.5
# Samples that deviate from good ones by more standard deviations are not good.
_FAR = 4.0
# The rate is not estimated from fewer of the named samples: the smallest ratio of a few is chance.
_MIN_SHARE = 0.5


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
        The AUROC with which each source tells named samples from good ones of their label.
    """

    p: Floats
    rate: tuple[float, float, float]
    sources: Mapping[str, float]


def find_similar(
    sources: Mapping[str, AnyFloats], labels: Ints, named: Bools, *, seed: int = 0
) -> SimilarSamples:
    """Estimate which of the other samples are bad in the way of the named ones.

    Each source gives two scores, both by a ridge regression of "named" on its standardised columns,
    left out in closed form: one over all samples, one within each given label. Both are compared
    within labels, and their mean is weighted by how well each tells named samples from others of
    their label. How often a label is named counts besides.

    All that is done four times, each time with a quarter of the named samples among the others.
    Where most held-out samples lie more than four standard deviations above good ones, the rate π
    of bad samples is the ratio ``P_other(s > t) / P_held-out(s > t)`` there; else the smallest one
    over thresholds t that half of the held-out samples pass, by its upper confidence limit. Then
    the others count as bad with their probability, and all is repeated.

    Parameters
    ----------
    sources
        Features by name, ``float[n, d]`` each, finite.
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
    look like, others that look different are missed. The rate is an upper estimate where good
    samples score as high as bad ones. Cost: for each source ``n d² + d³``, twice.

    References
    ----------
    Garg et al., "Mixture Proportion Estimation and PU Learning: A Modern Approach", 2021,
    arXiv:2111.00980: the rate. Elkan and Noto, 2008, doi 10.1145/1401890.1401920: the assumption.

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
    spaces, fold = _spaces(sources, labels, named), _folds(labels, named, seed)
    examples = named[:, None] & (fold[:, None] != np.arange(_N_FOLDS))
    p, rate, found = examples.astype(np.float64), (0.0, 0.0, 0.0), None
    for _ in range(_N_ROUNDS):
        found = _scores(spaces, labels, examples, p)
        rate = _estimate_rate(found, fold)
        columns = zip(found.log_odds.T, examples.T, strict=True)
        p = np.stack([_probabilities(s, e, rate[0]) for s, e in columns], axis=1)
    assert found is not None
    if not _is_distinct(found.deviations, labels, named, fold):
        return SimilarSamples(named.astype(np.float64), (0.0, 0.0, 0.0), found.aurocs)
    return SimilarSamples(np.where(named, 1.0, p.mean(axis=1)), rate, found.aurocs)


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


def _spaces(
    sources: Mapping[str, AnyFloats], labels: Ints, named: Bools
) -> dict[str, _Space | _SpaceByLabel]:
    """Return two spaces of each source: of all samples, and of those of each label."""
    counts = np.bincount(labels[named], minlength=int(labels.max()) + 1)
    enough = np.flatnonzero(counts >= _MIN_NAMED_OF_LABEL)
    found: dict[str, _Space | _SpaceByLabel] = {}
    for name, x in sources.items():
        found[name] = _Space.of(x)
        if len(enough):
            rows = tuple(np.flatnonzero(labels == label) for label in enough)
            spaces = tuple(_Space.of(x[at]) for at in rows)
            found[f"{name}, by label"] = _SpaceByLabel(rows, spaces)
    return found


def _folds(labels: Ints, named: Bools, seed: int) -> Ints:
    """Return the fold of each named sample, as many of each label in all; −1 for the others."""
    rows = generator(seed, "similar").permutation(np.flatnonzero(named))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    fold = np.full(len(named), -1)
    fold[rows] = np.arange(len(rows)) % _N_FOLDS
    return fold


class _Scores(NamedTuple):
    """The scores of every sample in every fold, ``[n, k]``, and the AUROC of each source.

    deviations: from the good samples of the same label, in their standard deviations. log_odds: of
    being named.
    """

    deviations: Floats
    log_odds: Floats
    aurocs: Mapping[str, float]


def _scores(
    spaces: Mapping[str, _Space | _SpaceByLabel], labels: Ints, examples: Bools, p: Floats
) -> _Scores:
    """Score every sample without itself.

    examples: ``bool[n, k]``, the named samples of a fold that are not held out. p: what all samples
    count as, ``float64[n, k]``.
    """
    left_out = {name: space.left_out(p) for name, space in spaces.items()}
    deviations, log_odds = np.empty(p.shape), np.empty(p.shape)
    aurocs = dict.fromkeys(spaces, 0.0)
    for k, (is_example, own) in enumerate(zip(examples.T, p.T, strict=True)):
        good = own <= 0.5
        within = {name: _within_labels(s[:, k], labels, good) for name, s in left_out.items()}
        found = {name: _auroc(s, labels, is_example, good) for name, s in within.items()}
        combined = _combine(within, found)
        deviations[:, k] = _within_labels(combined, labels, good)
        log_odds[:, k] = _with_label_odds(combined, labels, is_example, good)
        aurocs = {name: aurocs[name] + auroc / p.shape[1] for name, auroc in found.items()}
    return _Scores(deviations, log_odds, aurocs)


def _estimate_rate(scores: _Scores, fold: Ints) -> tuple[float, float, float]:
    """Estimate the rate from samples far from good ones, if most of the held-out ones are."""
    named, n = np.flatnonzero(fold >= 0), int((fold < 0).sum())
    share = float((scores.deviations[named, fold[named]] > _FAR).mean())
    if share < _MIN_SHARE:
        return similar_rate(_shares_above(scores.log_odds, fold), n)
    above = float((scores.deviations[fold < 0] > _FAR).mean())
    low, high = wilson_interval(share, len(named))
    low_above, high_above = wilson_interval(above, n)
    value = min(above / share, _MAX_RATE)
    return value, min(low_above / high, value), min(max(high_above / low, value), 1.0)


def _shares_above(scores: Floats, fold: Ints) -> Floats:
    """Return for each held-out named sample the share of others that score at least as high."""
    shares = []
    for k, score in enumerate(scores.T):
        others = np.sort(score[fold < 0])
        below = np.searchsorted(others, score[fold == k])
        shares.append(1 - below / len(others))
    return np.concatenate(shares)


def _within_labels(score: Floats, labels: Ints, good: Bools) -> Floats:
    """Return a score in deviations of the good samples of the same label from their median."""
    centred = score.copy()
    for label in np.unique(labels):
        own = labels == label
        usual = own & good
        centred[own] -= np.median(score[usual if usual.any() else own])
    spread = _robust_spread(centred[good])
    for label in np.unique(labels):
        own = labels == label
        usual = own & good
        deviation = _robust_spread(centred[usual]) if usual.sum() >= _MIN_FOR_SPREAD else spread
        centred[own] = centred[own] / deviation if deviation > 1e-9 else 0.0
    return centred


def _robust_spread(centred: Floats) -> float:
    """Return the standard deviation by the median absolute one: hidden bad samples count little.

    The plain one if most values are equal.
    """
    robust = MAD_SCALE * float(np.median(np.abs(centred)))
    return robust if robust > 1e-9 else float(centred.std())


def _combine(scores: Mapping[str, Floats], aurocs: Mapping[str, float]) -> Floats:
    """Return the mean of scores, weighted by the fourth power of 2 AUROC − 1.

    A regression on the scores would find each sample's own target in them: leaving a sample out
    moves its prediction away from it.
    """
    weights = {name: max(2 * aurocs[name] - 1, 1e-3) ** _WEIGHT_POWER for name in scores}
    total = sum(weights.values())
    combined: Floats = sum(weights[name] / total * s for name, s in scores.items())
    return combined


def _with_label_odds(score: Floats, labels: Ints, named: Bools, good: Bools) -> Floats:
    """Return log-odds of being named: of the score, by two normal groups, and of the label."""
    groups = score[named], score[good]
    variance = max(float(np.mean([group.var() for group in groups])), 1e-12)
    middle = float(np.mean([group.mean() for group in groups]))
    slope = float(groups[0].mean() - groups[1].mean()) / variance
    size = int(labels.max()) + 1
    counts, n_named = (np.bincount(labels[rows], minlength=size) for rows in (labels >= 0, named))
    by_label = np.log((n_named + 0.5) / (counts - n_named + 0.5))
    return slope * (score - middle) + by_label[labels]


def _probabilities(score: Floats, examples: Bools, rate: float) -> Floats:
    """Return the probability of being bad: a logistic regression whose mean is the rate."""
    from sklearn.linear_model import LogisticRegression

    others = np.flatnonzero(~examples)
    n_bad = max(1, round(rate * len(others)))
    good = others[np.argsort(-score[others], kind="stable")[n_bad:]]
    rows = np.concatenate([np.flatnonzero(examples), good])
    x = (score / max(float(score[rows].std()), 1e-12))[:, None]
    weight = np.where(examples[rows], n_bad / examples.sum(), 1.0)
    model = LogisticRegression(C=100.0).fit(x[rows], examples[rows], sample_weight=weight)
    log_odds = model.decision_function(x)
    shifted = shift_to_rate(log_odds, ~examples, float(np.clip(rate, 1e-6, _MAX_RATE)))
    return np.where(examples, 1.0, expit(shifted))


def _auroc(score: Floats, labels: Ints, named: Bools, good: Bools) -> float:
    """Return the probability that a named sample scores above a good one of the same label."""
    from scipy.stats import rankdata

    wins, pairs = 0.0, 0
    for label in np.unique(labels[named]):
        own = (labels == label) & (named | good)
        n, m = int((named & own).sum()), int((good & own).sum())
        wins += float(rankdata(score[own])[named[own]].sum() - n * (n + 1) / 2)
        pairs += n * m
    return wins / pairs if pairs else 0.5


def _is_distinct(scores: Floats, labels: Ints, named: Bools, fold: Ints) -> bool:
    """Return whether held-out named samples score above others of their label, beyond chance."""
    n, m = int(named.sum()), int((~named).sum())
    sizes = np.bincount(fold[named], minlength=scores.shape[1])
    aurocs = [_auroc(s, labels, fold == k, ~named) for k, s in enumerate(scores.T)]
    auroc = float(np.average(aurocs, weights=sizes))
    stderr = np.sqrt((n + m + 1) / (12 * n * m))
    return bool(auroc > max(_MIN_AUROC, 0.5 + _MIN_STDERRS * stderr))
