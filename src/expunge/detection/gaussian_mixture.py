"""Gaussian mixtures of one line of evidence, and rules for which components are noisy. Pure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import AnyFloats, Bools, Floats
from expunge._core.rng import generator
from expunge.detection.lda import ashman_d
from expunge.records import Component, Fit

# A mixture is fitted on at most this many samples, and the bootstrap of its rate resamples this
# many.
MAX_ROWS, MAX_BOOTSTRAP_ROWS = 20_000, 4_000
# Below this many samples no mixture is fitted.
MIN_SAMPLES = 20
# What a larger share of the inputs has in common is no fault of theirs.
MAX_NOISY_SHARE = 2 / 3
# A component is noisy if the best other label is this many times as likely as the given one.
MIN_ODDS = 2.0
# EM has converged when a step gains less log-likelihood a sample.
_TOLERANCE = 1e-5
_BOOTSTRAP_SAMPLES = 50
# Steps of EM on the samples and on a resample; how many numbers of resamples are taken at once.
_MAX_FIT_STEPS, _MAX_REFIT_STEPS, _EM_CHUNK = 500, 100, 20_000

# From responsibilities ``[n, k]`` and the components' means and deviations ``[k]``, sorted by mean,
# to ``bool[k]``: which components are noisy.
ComponentRule = Callable[[Floats, Floats, Floats], Bools]


def odds_rule(log_odds: AnyFloats) -> ComponentRule:
    """Return the rule for label evidence: noisy where another label is twice as likely.

    A component is noisy if the responsibility-weighted mean of the log-odds of the best other label
    against the given one exceeds log 2, and so is every component above it.

    Parameters
    ----------
    log_odds
        ``float[n]``, of the best other label against the given one.
    """

    def rule(responsibilities: Floats, means: Floats, stds: Floats) -> Bools:
        weight = np.maximum(responsibilities.sum(axis=0), 1e-12)
        noisy: Bools = np.logical_or.accumulate(
            log_odds @ responsibilities / weight > np.log(MIN_ODDS)
        )
        return noisy

    return rule


def gap_rule(separation: float) -> ComponentRule:
    """Return the rule for input evidence: noisy above a gap between neighbouring components.

    A gap is more than ``separation`` of Ashman's D. A skewed single group needs several components
    too, but leaves no gap between them. No component is noisy if those above the gap hold more than
    two thirds of the samples.
    """

    def rule(responsibilities: Floats, means: Floats, stds: Floats) -> Bools:
        gaps = ashman_d(means[1:], stds[1:], means[:-1], stds[:-1])
        above: Bools = np.append(False, np.logical_or.accumulate(gaps > separation))
        share = responsibilities[:, above].sum()
        return above & bool(share <= MAX_NOISY_SHARE * responsibilities.sum())

    return rule


def standardise(values: AnyFloats) -> Floats:
    """Limit values to their 1st … 99th percentile, subtract the median, divide by the deviation.

    The deviation is that of the limited values. All 0 if they do not vary.
    """
    low, high = np.quantile(values, [0.01, 0.99])
    clipped = np.clip(values, low, high)
    spread = clipped.std()
    return (clipped - np.median(values)) / spread if spread > 1e-12 else np.zeros(len(values))


def weighted_evidence(columns: Sequence[Floats], seed: int) -> Floats:
    """Return the mean of standardised scores, weighted by how well each separates two groups.

    The weight is the ratio of the variance between to that within the two groups that a mixture
    finds in the score alone: a score that separates only one group has little weight.

    Parameters
    ----------
    columns
        One or more ``float64[n]``.
    seed
        For the mixtures.
    """
    if len(columns) == 1:
        return columns[0]
    weights = []
    for column in columns:
        if len(column) < MIN_SAMPLES or np.ptp(column) == 0:
            weights.append(0.0)
            continue
        two = _fit_gaussians(_sample(column, seed), 2, seed)
        (a, b), (u, v) = two.means, two.weights
        weights.append(float(u * v * (a - b) ** 2 / (two.weights @ two.variances)))
    if not any(weights):
        weights = [1.0] * len(columns)
    mean: Floats = np.average(columns, axis=0, weights=weights)
    return mean


def fit_evidence(
    e: Floats, usable: Bools, *, kind: str, components: int, rule: ComponentRule, seed: int
) -> tuple[Fit, Floats]:
    """Fit the best mixture on the usable rows; return it, and all rows' probability of noise.

    Parameters
    ----------
    e
        ``float64[n]``, the evidence; higher = more suspicious.
    usable
        ``bool[n]``, the rows that the mixture is fitted on.
    kind
        ``"label"`` or ``"input"``.
    components
        Mixtures of 1 … ``components`` are compared by BIC.
    rule
        Which components are noisy.
    seed
        For the starts of EM.

    Returns
    -------
    fit : Fit
        One clean component below `MIN_SAMPLES` usable rows, or if they do not vary.
    p : NDArray[float64]
        ``[n]``, in [0, 1], monotone in the evidence.
    """
    inside = e[usable]
    if len(inside) < MIN_SAMPLES or np.ptp(inside) == 0:
        single = Component(1.0, float(inside.mean()), float(inside.std()), False)
        return Fit(kind, (single,), {1: 0.0}, 0.0), np.zeros(len(e))
    sample = _sample(inside, seed)
    models = {k: _fit_gaussians(sample, k, seed) for k in range(1, components + 1)}
    bic = {k: m.bic(sample) for k, m in models.items()}
    best = models[min(bic, key=lambda k: (bic[k], k))]
    order = np.argsort(best.means)
    weights, means, stds = best.weights[order], best.means[order], np.sqrt(best.variances[order])
    noisy = rule(best.responsibilities(e)[0][order].T * usable[:, None], means, stds)
    parts = tuple(
        Component(float(w), float(m), float(s), bool(b))
        for w, m, s, b in zip(weights, means, stds, noisy, strict=True)
    )
    return Fit(kind, parts, bic, noise_separation(parts)), noisy_posterior(e, parts)


def noisy_posterior(e: Floats, components: tuple[Component, ...]) -> Floats:
    """Return the probability of the noisy components at evidence e, made monotone.

    ``Σ_noisy w_k N(e; μ_k, σ_k) / Σ_k w_k N(e; μ_k, σ_k)``, with e limited to the range of the
    means. Two normal tails of unequal width would otherwise cross again far outside.
    """
    noisy = np.array([c.noisy for c in components])
    if not noisy.any():
        return np.zeros(len(e))
    if noisy.all():
        return np.ones(len(e))
    means = np.array([c.mean for c in components])
    x = np.clip(e, means.min(), means.max())[:, None]
    w = np.array([c.weight for c in components])
    s = np.array([c.std for c in components])
    log_density = np.log(w) - np.log(s) - 0.5 * ((x - means) / s) ** 2
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    p: Floats = density[:, noisy].sum(axis=1) / density.sum(axis=1)
    order = np.argsort(e, kind="stable")
    p[order] = np.maximum.accumulate(p[order])
    return p


def noise_separation(components: tuple[Component, ...]) -> float:
    """Return Ashman's D of the nearest noisy and clean component; 0 if one side is empty."""
    clean = [c for c in components if not c.noisy]
    noisy = [c for c in components if c.noisy]
    if not clean or not noisy:
        return 0.0
    return min(float(ashman_d(b.mean, b.std, c.mean, c.std)) for b in noisy for c in clean)


def noisy_share_stderr(e: Floats, fit: Fit, seed: int) -> float:
    """Return the standard error of the noisy share: mixtures refitted on 50 resamples of e.

    ``1 / n`` if there is no noisy component.
    """
    if len(fit.components) < 2 or not any(c.noisy for c in fit.components):
        return 1.0 / len(e)
    rng = generator(seed, "rate", fit.kind)
    e = np.sort(e)
    rows = min(len(e), MAX_BOOTSTRAP_ROWS)
    drawn = [rng.integers(0, len(e), rows) for _ in range(_BOOTSTRAP_SAMPLES)]
    noisy = np.array([c.noisy for c in fit.components])
    start = Gaussians(
        np.array([c.weight for c in fit.components]),
        np.array([c.mean for c in fit.components]),
        np.array([c.std for c in fit.components]) ** 2,
    )
    rates = []
    at_once = max(1, _EM_CHUNK // rows)
    for first in range(0, len(drawn), at_once):
        resamples = e[np.stack(drawn[first : first + at_once])]
        found = refit(resamples, start, least=1e-4 * float(e.var()), max_steps=_MAX_REFIT_STEPS)
        weights = np.take_along_axis(found.weights, np.argsort(found.means, axis=1), axis=1)
        rates += weights[:, noisy].sum(axis=1).tolist()
    return float(np.std(rates) * np.sqrt(rows / len(e)))


class Gaussians(NamedTuple):
    """Weights, means and variances of k components, ``float64[k]``, or ``[b, k]`` of b mixtures."""

    weights: Floats
    means: Floats
    variances: Floats

    def log_joint(self, e: Floats) -> Floats:
        """Return ``log w_k N(e; μ_k, v_k)``, ``[…, k, n]``."""
        w, m, v = (x[..., None] for x in self)
        log_p: Floats = (e[..., None, :] - m) ** 2
        log_p /= -2 * v
        log_p += np.log(w) - 0.5 * np.log(2 * np.pi * v)
        return log_p

    def responsibilities(self, e: Floats) -> tuple[Floats, Floats]:
        """Return each component's posterior, ``[…, k, n]``, and the log-likelihood ``[…, n]``."""
        joint = self.log_joint(e)
        highest = joint.max(axis=-2)
        joint -= highest[..., None, :]
        np.exp(joint, out=joint)
        total = joint.sum(axis=-2)
        joint /= total[..., None, :]
        return joint, np.log(total) + highest

    @classmethod
    def of(cls, e: Floats, responsibilities: Floats, least: float) -> Gaussians:
        """Return the mixture of highest likelihood; ``least`` is added to each variance."""
        counts = responsibilities.sum(axis=-1) + 10 * np.finfo(float).eps
        means = np.einsum("...kn,...n->...k", responsibilities, e) / counts
        squared = (e[..., None, :] - means[..., None]) ** 2
        variances = np.einsum("...kn,...kn->...k", responsibilities, squared) / counts + least
        return cls(counts / counts.sum(axis=-1, keepdims=True), means, variances)

    def bic(self, e: Floats) -> float:
        """Return the Bayesian information criterion of one mixture."""
        _, likelihood = self.responsibilities(e)
        return float((3 * len(self.weights) - 1) * np.log(len(e)) - 2 * likelihood.sum())


def refit(samples: Floats, start: Gaussians, *, least: float, max_steps: int) -> Gaussians:
    """Return mixtures fitted by EM from a given one, to many samples at once.

    The result is that of scikit-learn's ``GaussianMixture``, which takes ten times as long for a
    few hundred values.

    Parameters
    ----------
    samples
        ``float64[b, n]``, one sample a row.
    start
        One mixture.
    least
        Added to the variance of every component.
    max_steps
        The most steps of EM, converged or not.
    """
    b = len(samples)
    found, likelihood = Gaussians(*(np.tile(x, (b, 1)) for x in start)), np.full(b, -np.inf)
    rows = np.arange(b)
    for _ in range(max_steps):
        e = samples[rows]
        posterior, each = Gaussians(*(x[rows] for x in found)).responsibilities(e)
        for x, new in zip(found, Gaussians.of(e, posterior, least), strict=True):
            x[rows] = new
        before, likelihood[rows] = likelihood[rows], each.mean(axis=1)
        rows = rows[np.abs(likelihood[rows] - before) >= _TOLERANCE]
        if not len(rows):
            break
    return found


def _sample(e: Floats, seed: int) -> Floats:
    if len(e) <= MAX_ROWS:
        return e
    return e[generator(seed, "rows").choice(len(e), MAX_ROWS, replace=False)]


def _fit_gaussians(e: Floats, k: int, seed: int) -> Gaussians:
    """Fit k components by EM from the groups that k-means finds."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # Sorted, so that the order of the samples cannot change where k-means starts.
    e, least = np.sort(e), 1e-4 * float(e.var())
    with warnings.catch_warnings():
        # Ties leave k-means fewer clusters than requested.
        warnings.simplefilter("ignore", ConvergenceWarning)
        groups = KMeans(k, n_init=1, random_state=seed % 2**32).fit(e[:, None]).labels_
    start = Gaussians.of(e, np.eye(k)[:, groups], least)
    # EM is slow where groups overlap: stopped early, it would estimate their shares wrongly.
    found = refit(e[None], start, least=least, max_steps=_MAX_FIT_STEPS)
    return Gaussians(*(x[0] for x in found))
