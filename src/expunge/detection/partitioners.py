"""From scores to the probability that each sample is bad. Pure functions, plug-ins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import derive, generator
from expunge.detection import noise_model as noise_models
from expunge.detection.detectors import MEMORISED, label_margin
from expunge.detection.lda import ashman_d
from expunge.errors import ConfigError
from expunge.records import KINDS, Component, Fit, Partition, Scores, align

partitioners: Registry[Callable[..., Partition], NoMetadata] = Registry("partition", NoMetadata)

# A mixture is fitted on at most so many samples; more of them do not change it.
_FIT_ROWS = 20_000
# Below this many samples a mixture says nothing.
_FEW = 20
# A model that agrees with so many given labels, and cannot be shown views, counts as memorising.
_FITTED = 0.95
# What more of the samples have in common is no fault of theirs.
_MOST = 2 / 3
# EM has arrived when a step gains less log-likelihood a sample.
_TOLERANCE = 1e-5


@partitioners.register("mixture")
def mixture(
    scores: Scores,
    *,
    seed: int,
    threshold: float = 0.5,
    components: int = 3,
    separation: float = 2.0,
) -> Partition:
    """One Gaussian mixture for each kind of evidence, with 1 … ``components`` components compared.

    The evidence of a kind is the mean of its scores, each centred on its median and scaled by its
    spread, and weighted by the ratio of the variance between to that within the two groups that a
    mixture finds in that score alone: a score that sees one group only says little. The number of
    components has the lowest Bayesian information criterion. Label evidence is averaged with the
    margin of the scores' class distribution. A component counts as noisy

    - for label evidence, if in it the best other label is more than twice as likely as the given
      one (geometric mean of the odds in the scores' class distribution);
    - for input evidence, if it lies above a gap: two neighbouring components that are more than
      ``separation`` pooled standard deviations apart (Ashman's D, doi 10.1086/117248). A skewed
      single group needs several components too, but leaves no gap between them; and what more than
      two thirds of the samples have in common is no fault.

    So "no noise" is a possible answer, and no truth is needed to tell the sides apart.
    ``p_fault = Σ_noisy w_k N(e; μ_k, σ_k) / Σ_k w_k N(e; μ_k, σ_k)``, made monotone in the evidence
    e; ``p_noisy = 1 − (1 − p_label)(1 − p_input)``. The posterior of another label c is
    ``p_label · q_c / (1 − q_y)``, with q the class distribution of the scores.

    Cost: O(n) for each EM step; 50 refits give the interval of the noise rate.
    """
    _check_options(threshold, components, separation)
    p_input, fits, evidence, error = _input_faults(scores, components, separation, seed)
    p_label = np.zeros(len(scores.ids))
    columns = _columns(scores, "label")
    if columns:
        log_probs = np.log(np.maximum(scores.class_probs.astype(np.float64), 1e-12))
        odds = label_margin(log_probs, scores.labels)
        e = (_standardised(_combined(columns, seed)) + _standardised(odds)) / 2
        # What a label says about a bad input is no guide to labels.
        usable, start = p_input <= 0.5, derive(seed, "mixture", "label")
        fit, p_label = _fit(e, usable, "label", components, _doubted(odds), start)
        error = float(np.hypot(error, _rate_error(e, fit, seed)))
        fits, evidence = (*fits, fit), {**evidence, "label_evidence": e}
    return _made(scores, {"label": p_label, "input": p_input}, threshold, error, fits, evidence)


def _input_faults(
    scores: Scores, components: int, separation: float, seed: int
) -> tuple[np.ndarray, tuple[Fit, ...], dict[str, np.ndarray], float]:
    """Probability of an input fault, the fit, its evidence, the standard error of the rate."""
    columns = _columns(scores, "input")
    if not columns:
        return np.zeros(len(scores.ids)), (), {}, 0.0
    e = _combined(columns, seed)
    everyone, start = np.ones(len(e), dtype=bool), derive(seed, "mixture", "input")
    fit, p = _fit(e, everyone, "input", components, _apart(separation), start)
    return p, (fit,), {"input_evidence": e}, _rate_error(e, fit, seed)


def _columns(scores: Scores, kind: str) -> list[np.ndarray]:
    return [_standardised(scores.values[name]) for name, k in scores.kinds.items() if k == kind]


@partitioners.register("noise-model")
def noise_model(
    scores: Scores,
    *,
    seed: int,
    threshold: float = 0.5,
    components: int = 3,
    separation: float = 2.0,
) -> Partition:
    """Label faults by a noise transition, input faults by a mixture of Gaussians.

    The sources of the scores tell the right label's distribution ``π_i``, and given labels are
    right ones seen through a transition ``T``, both fitted together; see `noise_models.fit`. Then

    ``p_label = 1 − π_i(y) T_yy / Σ_c π_i(c) T_cy``,

    and the suggested label has the highest ``π_i(c) T_cy``: a label that is given often where
    another is right (pair flips) is doubted more. Where no label being wrong explains the labels
    as well (Bayesian information criterion), none is. Nothing is assumed about how wrong labels
    are made, but that the transition does not depend on the input; where it does, T is a mean.

    A model that has memorised its labels has no say itself; any other has: see `heard`.
    It has if it agrees with the given labels far more often than it does under random views, or,
    where it was shown none, with more than 95 % of them. Probabilities from elsewhere are heard as
    the model is, or, where that has memorised, as the layers are. Input faults are those of
    `mixture`, and samples that have one say nothing about labels. The whole is `mixture` where no
    source speaks of labels, and where neither views nor such a fit tell whether the model has
    memorised them.
    """
    sources, model_probs = np.asarray(scores.loo_probs), np.asarray(scores.model_probs)
    external, labels = np.asarray(scores.external_probs), scores.labels
    memorised = _memorised(scores)
    if not len(sources) + len(external) or len(labels) < _FEW or memorised is None:
        return mixture(
            scores, seed=seed, threshold=threshold, components=components, separation=separation
        )
    _check_options(threshold, components, separation)
    p_input, fits, evidence, error = _input_faults(scores, components, separation, seed)
    usable = p_input <= 0.5 if (p_input <= 0.5).sum() >= _FEW else np.ones(len(labels), dtype=bool)
    trusted = np.asarray(scores.trusted)
    if memorised:  # of probabilities from external, those that know the labels by heart drop out
        sources = np.concatenate([sources, external])
    else:
        model_probs = np.concatenate([model_probs, external])
        sources = noise_models.include_model_probs(sources, model_probs, labels, usable)
    model = noise_models.fit(
        sources[:, usable],
        labels[usable],
        seed=seed,
        trusted=trusted[usable],
        n_model_sources=None if memorised else len(model_probs),
    )
    given = np.eye(sources.shape[2])[labels]
    q = model.posterior(sources, labels) if model.noisy or not memorised else given
    q = np.where(trusted[:, None], given, q)
    p_label = np.clip(1 - (q * given).sum(axis=1), 0.0, 1.0)
    odds = np.clip(p_label, 1e-6, 1 - 1e-6)
    e = np.log(odds / (1 - odds))
    split = _made(
        scores,
        {"label": p_label, "input": p_input},
        threshold,
        float(np.hypot(error, model.error)),
        (*fits, _described(e, p_label, usable, model.bic)),
        {**evidence, "label_evidence": e},
    )
    best, probability = q.argmax(axis=1), np.clip(q.max(axis=1), 0.0, 1.0)
    return replace(split, suggested_label=best, suggested_probability=probability)


def _memorised(scores: Scores) -> bool | None:
    """Whether the model's fit to the given labels says nothing of the right ones, if that shows."""
    model, views = scores.agreement.get("plain", 0.0), scores.agreement.get("augmented")
    if views is not None:
        return model - views > MEMORISED
    return True if model > _FITTED else None


def _described(e: np.ndarray, p: np.ndarray, usable: np.ndarray, bic: Mapping[int, float]) -> Fit:
    """The clean and the noisy side of the label evidence, each by weight, mean and deviation."""
    parts = []
    for noisy, share in ((False, (1 - p) * usable), (True, p * usable)):
        if share.sum() > 0:
            mean = float(np.average(e, weights=share))
            std = float(np.sqrt(np.average((e - mean) ** 2, weights=share)))
            parts.append(Component(float(share.sum() / usable.sum()), mean, std, noisy))
    return Fit("label", tuple(parts), bic, _separation(tuple(parts)))


@partitioners.register("posterior")
def external_posterior(scores: Scores, *, seed: int, threshold: float = 0.5) -> Partition:
    """For detectors whose score is a probability already: the largest of each kind is ``p_fault``.

    The interval of the noise rate is that of a mean, as if the probabilities were right.
    """
    _check_threshold(threshold)
    n = len(scores.ids)
    faults = {}
    for kind in KINDS:
        columns = [scores.values[name] for name, k in scores.kinds.items() if k == kind]
        faults[kind] = np.max([np.zeros(n), *columns], axis=0)
        if faults[kind].max(initial=0.0) > 1 or min(map(np.min, columns), default=0.0) < 0:
            raise ConfigError(
                "partition 'posterior' takes scores in [0, 1]", fix="use partition 'mixture'"
            )
    p_noisy = 1 - (1 - faults["label"]) * (1 - faults["input"])
    return _made(scores, faults, threshold, float(np.sqrt((p_noisy * (1 - p_noisy)).sum())) / n)


def with_input_faults(split: Partition, other: Partition, *, fdr: float | None = None) -> Partition:
    """What a partition says of labels, with what another one of the same samples says of inputs.

    ``p_noisy = 1 − (1 − p_label) (1 − p_input)``, and its mean is the noise rate; the half-widths
    of the two rates' intervals add up in squares. fdr: sets the threshold, see `fdr_threshold`.
    """
    at = align(other.ids, split.ids)
    p_input = other.p_input_fault[at]
    p_noisy = np.clip(1.0 - (1.0 - split.p_label_fault) * (1.0 - p_input), 0.0, 1.0)
    rate = float(p_noisy.mean())
    widths = [p.noise_rate[2] - p.noise_rate[1] for p in (split, other)]
    half = float(np.hypot(widths[0], widths[1])) / 2
    evidence = {k: e for k, e in split.evidence.items() if k != "input_evidence"}
    if "input_evidence" in other.evidence:
        evidence["input_evidence"] = other.evidence["input_evidence"][at]
    fits = [f for f in other.fits if f.kind == "input"]
    return replace(
        split,
        p_input_fault=p_input,
        p_noisy=p_noisy,
        threshold=split.threshold if fdr is None else fdr_threshold(p_noisy, fdr),
        noise_rate=(rate, max(0.0, rate - half), min(1.0, rate + half)),
        fits=(*fits, *(f for f in split.fits if f.kind != "input")),
        evidence=evidence,
    )


def fdr_threshold(p_noisy: np.ndarray, fdr: float) -> float:
    """The lowest threshold at which at most a share ``fdr`` of the flagged is expected to be clean.

    With the samples sorted by ``p_noisy``, most suspicious first, the largest k is flagged for
    which ``Σ_{i ≤ k} (1 − p_i) / k ≤ fdr`` (Bayesian false-discovery rate, doi
    10.1198/016214507000000941); of equal probabilities all or none. 1, which flags nothing, if
    there is no such k. As good as the probabilities are calibrated.

    >>> fdr_threshold(np.array([0.99, 0.95, 0.5, 0.1]), 0.05)
    0.5
    """
    p = np.sort(p_noisy)[::-1]
    expected = np.cumsum(1 - p) / np.arange(1, len(p) + 1)
    able = np.flatnonzero((expected <= fdr) & np.append(p[:-1] > p[1:], True))
    if not len(able):
        return 1.0
    k = int(able[-1]) + 1
    return float(p[k]) if k < len(p) else 0.0


def _made(
    scores: Scores,
    faults: dict[str, np.ndarray],
    threshold: float,
    error: float,
    fits: tuple[Fit, ...] = (),
    evidence: dict[str, np.ndarray] | None = None,
) -> Partition:
    """The record: the two faults together, suggested labels, the rate ± 1.96 standard errors."""
    trusted = np.asarray(scores.trusted)
    faults = {kind: np.where(trusted, 0.0, p) for kind, p in faults.items()}
    p_noisy = 1 - (1 - faults["label"]) * (1 - faults["input"])
    suggested, probability = _suggest(scores, faults["label"])
    rate = float(p_noisy.mean())
    return Partition(
        ids=scores.ids,
        labels=scores.labels,
        p_noisy=p_noisy,
        p_label_fault=faults["label"],
        p_input_fault=faults["input"],
        suggested_label=suggested,
        suggested_probability=probability,
        threshold=threshold,
        noise_rate=(rate, max(0.0, rate - 1.96 * error), min(1.0, rate + 1.96 * error)),
        fits=fits,
        evidence=evidence or {},
    )


def _check_options(threshold: float, components: int, separation: float) -> None:
    _check_threshold(threshold)
    if components < 1:
        raise ConfigError(f"components must be 1 or more, not {components}")
    if not separation >= 0:
        raise ConfigError(f"separation must be 0 or more, not {separation}")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold must lie in [0, 1], not {threshold}")


# From samples' responsibilities (n × k) and the components' means and deviations, sorted by mean,
# to which components are noisy.
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _doubted(odds: np.ndarray) -> Judge:
    def judge(share: np.ndarray, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
        weight = np.maximum(share.sum(axis=0), 1e-12)
        return np.logical_or.accumulate(odds @ share / weight > np.log(2))

    return judge


def _apart(separation: float) -> Judge:
    def judge(share: np.ndarray, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
        gaps = ashman_d(means[1:], stds[1:], means[:-1], stds[:-1])
        above = np.append(False, np.logical_or.accumulate(gaps > separation))
        return above & (share[:, above].sum() <= _MOST * share.sum())

    return judge


def _standardised(values: np.ndarray) -> np.ndarray:
    """Centred on the median, over the standard deviation inside the 1st … 99th percentile."""
    low, high = np.quantile(values, [0.01, 0.99])
    clipped = np.clip(values, low, high)
    spread = clipped.std()
    return (clipped - np.median(values)) / spread if spread > 1e-12 else np.zeros(len(values))


def _combined(columns: list[np.ndarray], seed: int) -> np.ndarray:
    """Mean of standardised scores, weighted by how well two groups are apart in each."""
    if len(columns) == 1:
        return columns[0]
    weights = []
    for column in columns:
        if len(column) < _FEW or np.ptp(column) == 0:
            weights.append(0.0)
            continue
        two = _gaussians(_sampled(column, seed), 2, seed)
        (a, b), (u, v) = two.means_[:, 0], two.weights_
        weights.append(float(u * v * (a - b) ** 2 / (two.weights_ @ two.covariances_[:, 0, 0])))
    if not any(weights):
        weights = [1.0] * len(columns)
    return np.average(columns, axis=0, weights=weights)


def _sampled(e: np.ndarray, seed: int) -> np.ndarray:
    if len(e) <= _FIT_ROWS:
        return e
    return e[generator(seed, "rows").choice(len(e), _FIT_ROWS, replace=False)]


def _fit(
    e: np.ndarray, usable: np.ndarray, kind: str, components: int, judge: Judge, seed: int
) -> tuple[Fit, np.ndarray]:
    """The best mixture of the usable rows, and the probability of its noisy part for all rows."""
    inside = e[usable]
    single = Component(1.0, float(inside.mean()), float(inside.std()), False)
    if len(inside) < _FEW or np.ptp(inside) == 0:
        return Fit(kind, (single,), {1: 0.0}, 0.0), np.zeros(len(e))
    sample = _sampled(inside, seed)
    models = {k: _gaussians(sample, k, seed) for k in range(1, components + 1)}
    bic = {k: float(m.bic(sample[:, None])) for k, m in models.items()}
    best = models[min(bic, key=lambda k: (bic[k], k))]
    order = np.argsort(best.means_[:, 0])
    weights, means = best.weights_[order], best.means_[order, 0]
    stds = np.sqrt(best.covariances_[order, 0, 0])
    noisy = judge(best.predict_proba(e[:, None])[:, order] * usable[:, None], means, stds)
    parts = tuple(
        Component(float(w), float(m), float(s), bool(b))
        for w, m, s, b in zip(weights, means, stds, noisy, strict=True)
    )
    return Fit(kind, parts, bic, _separation(parts)), posterior(e, parts)


def posterior(e: np.ndarray, components: tuple[Component, ...]) -> np.ndarray:
    """Probability of the noisy components at evidence e, made monotone: more never means less.

    Two normal tails of unequal width would otherwise cross again far outside.
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
    p = density[:, noisy].sum(axis=1) / density.sum(axis=1)
    order = np.argsort(e, kind="stable")
    p[order] = np.maximum.accumulate(p[order])
    return p


def _gaussians(e: np.ndarray, k: int, seed: int) -> GaussianMixture:
    model = GaussianMixture(
        k,
        reg_covar=1e-4 * float(e.var()),
        random_state=seed % 2**32,
        # EM is slow where groups overlap: stopped early, it would estimate their shares wrongly.
        tol=_TOLERANCE,
        max_iter=500,
    )
    with warnings.catch_warnings():
        # Ties leave k-means fewer clusters than asked for; unfinished EM is compared as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Sorted, so that the order of the samples cannot change where k-means starts.
        return model.fit(np.sort(e)[:, None])


def _separation(parts: tuple[Component, ...]) -> float:
    """Distance of the nearest noisy from the nearest clean component, in pooled deviations."""
    clean, noisy = [p for p in parts if not p.noisy], [p for p in parts if p.noisy]
    if not clean or not noisy:
        return 0.0
    return min(float(ashman_d(b.mean, b.std, c.mean, c.std)) for b in noisy for c in clean)


def _rate_error(e: np.ndarray, fit: Fit, seed: int) -> float:
    """Standard error of the noisy share, over mixtures refitted on resampled evidence."""
    if len(fit.components) < 2 or not any(c.noisy for c in fit.components):
        return 1.0 / len(e)
    rng = generator(seed, "rate", fit.kind)
    e = np.sort(e)
    rows = min(len(e), 4000)
    rates = []
    start = GaussianMixture(
        len(fit.components),
        means_init=np.array([[c.mean] for c in fit.components]),
        weights_init=np.array([c.weight for c in fit.components]),
        precisions_init=np.array([[[1 / c.std**2]] for c in fit.components]),
        reg_covar=1e-4 * float(e.var()),
        random_state=0,
        tol=_TOLERANCE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(50):
            model = start.fit(e[rng.integers(0, len(e), rows), None])
            order = np.argsort(model.means_[:, 0])
            noisy = np.array([c.noisy for c in fit.components])
            rates.append(model.weights_[order][noisy].sum())
    return float(np.std(rates) * np.sqrt(rows / len(e)))


def _suggest(scores: Scores, p_label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label with the highest posterior, and that posterior."""
    rows = np.arange(len(scores.labels))
    q = scores.class_probs.astype(np.float64)
    q[rows, scores.labels] = 0.0
    q *= (p_label / np.maximum(q.sum(axis=1), 1e-12))[:, None]
    q[rows, scores.labels] = 1 - p_label
    suggested = q.argmax(axis=1)
    # A tie speaks for no other label.
    suggested = np.where(q[rows, suggested] > q[rows, scores.labels], suggested, scores.labels)
    return suggested, np.clip(q[rows, suggested], 0.0, 1.0)
