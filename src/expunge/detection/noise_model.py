"""The noise model: right labels that the evidence predicts, seen through a noise transition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge._core.rng import generator, subsample
from expunge.detection.noise_likelihood import NoiseLikelihood, log_clean_label_probs, log_evidence
from expunge.detection.transition import transition_corrected

# The model is fitted on at most this many samples, and its sources are selected on fewer.
MAX_ROWS, MAX_SELECTION_ROWS = 10_000, 3_000
# If the network has memorised, added sources may explain away this share of the reference's rate.
MAX_RATE_LOSS = 0.2
# The largest label bias δ, in log-odds. Beyond that the rate is wrong, not the sources.
MAX_LABEL_BIAS = 3.0
# The model's predictions are corrected for the transition if the rate is higher by this.
_MIN_RATE_GAIN = 0.05
# The rate of the transition that ranks samples if no label is found to be wrong.
_RANKING_RATE = 1e-3
_BOOTSTRAP_SAMPLES, _EM_STEPS = 30, 10


@dataclass(frozen=True)
class NoiseModel:
    """What makes the given labels: ``P(ỹ_i = k) = Σ_c π_i(c) T_ck``.

    Parameters
    ----------
    sources
        The positions of the sources that are used.
    weights, offsets
        ``float64[s]``, β ≥ 0, one for each source, and ``float64[c]``, b. They give the
        distribution of the right label, ``π_i = softmax(Σ_s β_s log q_si + b)``.
    transition
        ``float64[c, c]``, T; rows sum to one.
    log_likelihood
        Of the labels that it was fitted on.
    bic
        The Bayesian information criterion without (1) and with (2) wrong labels; lower is better.
    rate, rate_stderr
        The share of wrong labels, in [0, 1], and its standard error.
    label_bias
        δ ≥ 0: by how much the sources favour a sample's own given label, in log-odds.
    """

    sources: tuple[int, ...]
    weights: Floats
    offsets: Floats
    transition: Floats
    log_likelihood: float
    bic: Mapping[int, float] = field(default_factory=dict)
    rate: float = 0.0
    rate_stderr: float = 0.0
    label_bias: float = 0.0

    @property
    def has_noise(self) -> bool:
        """Whether wrong labels explain the given ones better than right labels alone."""
        return self.bic[2] < self.bic[1]

    def posterior(self, sources: AnyFloats, labels: Ints) -> Floats:
        """Return the right label's posterior, given the evidence and the given label.

        ``∝ π_i(c) e^{−δ [c = y_i]} T_{c, y_i}``.

        Parameters
        ----------
        sources
            ``float[s, n, c]``, all sources that the model was selected from.
        labels
            ``int[n]``, the given labels.

        Returns
        -------
        NDArray[float64]
            ``[n, c]``; rows sum to one.
        """
        return self.posterior_from_logs(log_evidence(sources[list(self.sources)]), labels)

    def posterior_from_logs(self, logs: Floats, labels: Ints) -> Floats:
        """Return the same from the log probabilities of the model's own sources."""
        joint = np.exp(log_clean_label_probs(logs, self.weights, self.offsets))
        joint[np.arange(len(labels)), labels] *= np.exp(-self.label_bias)
        joint *= self.transition[:, labels].T
        posterior: Floats = joint / joint.sum(axis=1, keepdims=True)
        return posterior


class _Rows:
    """Some of the rows: log probabilities, given labels, and whether the right one is known."""

    def __init__(
        self, sources: AnyFloats, labels: Ints, trusted: Bools | None, *, max_rows: int
    ) -> None:
        rows = subsample(len(labels), max_rows, 0, "transition")
        self.logs, self.labels = log_evidence(sources[:, rows]), labels[rows]
        self.known = np.zeros(len(rows), dtype=bool) if trusted is None else trusted[rows]

    def likelihood(self, sources: tuple[int, ...]) -> NoiseLikelihood:
        return NoiseLikelihood(self.logs[list(sources)], self.labels, self.known)

    def rate(self, model: NoiseModel) -> float:
        """Return the mean probability that a label is wrong."""
        q = model.posterior_from_logs(self.logs[list(model.sources)], self.labels)
        right = q[np.arange(len(q)), self.labels]
        return float(1 - np.where(self.known, 1.0, right).mean())


def fit_noise_model(
    sources: AnyFloats,
    labels: Ints,
    *,
    seed: int,
    trusted: Bools | None = None,
    n_model_sources: int | None = None,
) -> NoiseModel:
    """Fit a noise transition and the weights of several sources of class probabilities.

    ``max Σ_i log Σ_c π_i(c) T_{c, y_i}`` with ``π_i = softmax(Σ_s β_s log q_si + b)``: logistic
    regression for labels that may be wrong, with one weight a source. A right label of which the
    sources are certain is given as often as its transition says; that separates noisy labels from
    hard samples. Priors: one more right label a class, and ``N(0, 2²)`` on the log-odds among a
    class's wrong labels, so that few samples favour symmetric noise and many show their own (pair
    flips, for example).

    Sources derived from the trained network are biased towards the given labels and underestimate
    noise; weak sources mistake hard samples for noise. We therefore use different sources to *rank*
    samples and to *estimate the rate*:

    - If the model is only biased (the last ``n_model_sources`` are its own predictions), all
      sources together decide whether any label is wrong and which. The rate is the mean of the
      rates that each other source finds alone.
    - If the model has memorised its labels (``n_model_sources`` is None), a reference is selected
      greedily: the sources that raise most the gain in BIC of a transition over none. A source that
      has memorised needs no transition, and one with little information shows none. The rate is
      the reference's. Sources that raise the likelihood are added, as long as they explain away at
      most a fifth of it.

    Then the label bias δ, in 0 … 3, is solved for that rate.

    Parameters
    ----------
    sources
        ``float[s, n, c]``, class probabilities that are made without the sample's own label, except
        for the last ``n_model_sources``.
    labels
        ``int[n]``, the given labels.
    seed
        For the bootstrap of the rate's standard error.
    trusted
        ``bool[n]``, samples whose label is right.
    n_model_sources
        How many of the sources are predictions of the model itself; None if it has memorised its
        labels and its predictions are not among them.

    Returns
    -------
    NoiseModel
        With the rate, its standard error, and BIC with and without wrong labels.

    Notes
    -----
    The transition does not depend on the input; if the noise does, it is a mean over inputs. Cost:
    s fits, or some s² on fewer rows if the model has memorised, each of about 100 evaluations of
    ``O(s · min(n, 10,000) · c)``.

    References
    ----------
    Misclassification in discrete-response models: doi 10.1016/S0304-4076(98)00015-3.

    Examples
    --------
    Two in ten labels are wrong:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> right = rng.integers(0, 3, 600)
    >>> given = np.where(rng.random(600) < 0.2, (right + 1) % 3, right)
    >>> evidence = 0.9 * np.eye(3)[right] + 0.1 / 3
    >>> model = fit_noise_model(evidence[None], given, seed=0)
    >>> model.has_noise, round(model.rate, 1)
    (True, 0.2)
    """
    rows = _Rows(sources, labels, trusted, max_rows=MAX_ROWS)
    selection_rows = _Rows(sources, labels, trusted, max_rows=MAX_SELECTION_ROWS)
    if n_model_sources is None:
        model, rate = _fit_memorised(rows, selection_rows)
    else:
        model, rate = _fit_trusting_model(rows, n_model_sources)
    if model.has_noise:
        model = replace(model, label_bias=_solve_label_bias(rows, model, rate))
        stderr = _rate_stderr(selection_rows, model, len(labels), seed)
        model = replace(model, rate_stderr=stderr)
    return replace(model, rate=rows.rate(model))


def transition_rate(probs: AnyFloats, labels: Ints) -> float:
    """Return the rate of wrong labels by a transition fitted on one source, ``float[n, c]``.

    Low if noise follows ambiguity: what a sharper source explains needs no wrong labels.
    """
    rows = _Rows(probs[None], labels, None, max_rows=MAX_SELECTION_ROWS)
    return rows.rate(_fit_sources(rows, (0,)))


def _fit_trusting_model(rows: _Rows, n_model_sources: int) -> tuple[NoiseModel, float]:
    """Fit all sources; the rate is the mean over those that are not the model's predictions."""
    s, _, c = rows.logs.shape
    model = _with_bic(rows, _fit_sources(rows, tuple(range(s))))
    if model.has_noise:
        single = [rows.rate(_fit_sources(rows, (k,))) for k in range(s - n_model_sources)]
        return model, float(np.mean(single)) if single else rows.rate(model)
    uniform = np.full((c, c), _RANKING_RATE / (c - 1))
    return replace(model, transition=uniform + (1 - _RANKING_RATE * c / (c - 1)) * np.eye(c)), 0.0


def _fit_memorised(rows: _Rows, selection_rows: _Rows) -> tuple[NoiseModel, float]:
    """Fit the reference and the sources added to it; the rate is the reference's."""
    reference = _select_reference(selection_rows)
    model = _with_bic(rows, _fit_sources(rows, reference))
    rate = rows.rate(model)
    chosen = _greedy_add(selection_rows, reference, rate) if model.has_noise else reference
    if chosen != reference:
        model = replace(_fit_sources(rows, chosen), bic=model.bic)
    return model, rate


def _solve_label_bias(rows: _Rows, model: NoiseModel, rate: float) -> float:
    """Return the δ in 0 … 3 at which the model has that rate."""

    def excess(label_bias: float) -> float:
        return rows.rate(replace(model, label_bias=label_bias)) - rate

    if excess(0.0) >= 0:
        return 0.0
    if excess(MAX_LABEL_BIAS) <= 0:
        return MAX_LABEL_BIAS
    return float(brentq(excess, 0.0, MAX_LABEL_BIAS, xtol=1e-3))


def include_model_probs(
    sources: AnyFloats, model_probs: AnyFloats, labels: Ints, usable: Bools
) -> AnyFloats:
    """Append the model's predictions to the sources, corrected for the transition if that helps.

    Corrected (see `transition_corrected`) if that raises the rate of wrong labels by more than 5
    points: a network that has learned pair flips predicts them, and so explains them away. If wrong
    labels scatter, its plain predictions carry more information.

    Parameters
    ----------
    sources
        ``float[s, n, c]``, class probabilities made without the sample's own label.
    model_probs
        ``float[t, n, c]``, the model's predictions.
    labels
        ``int[n]``, the given labels.
    usable
        ``bool[n]``, the samples that decide.

    Returns
    -------
    NDArray
        ``[s + t, n, c]``.
    """
    if not len(model_probs):
        return sources
    plain = np.concatenate([sources, model_probs])
    corrected = np.concatenate([sources, [transition_corrected(p) for p in model_probs]])
    rates = []
    for stack in (plain, corrected):
        rows = _Rows(stack[:, usable], labels[usable], None, max_rows=MAX_ROWS)
        rates.append(rows.rate(_fit_sources(rows, tuple(range(len(stack))))))
    return corrected if rates[1] - rates[0] > _MIN_RATE_GAIN else plain


def _select_reference(rows: _Rows) -> tuple[int, ...]:
    """Select greedily the sources that maximise the gain in BIC of a transition over none."""

    def gain(chosen: tuple[int, ...]) -> float:
        bic = _with_bic(rows, _fit_sources(rows, chosen)).bic
        return bic[1] - bic[2]

    chosen: tuple[int, ...] = ()
    best = -np.inf
    while gains := {s: gain((*chosen, s)) for s in range(len(rows.logs)) if s not in chosen}:
        s = max(gains, key=lambda s: (gains[s], -s))
        if gains[s] <= best:
            break
        chosen, best = (*chosen, s), gains[s]
    return chosen


def _greedy_add(rows: _Rows, chosen: tuple[int, ...], rate: float) -> tuple[int, ...]:
    """Add greedily sources that raise the likelihood and keep most of the rate."""
    best = _fit_sources(rows, chosen).log_likelihood
    while len(chosen) < len(rows.logs):
        wider = (_fit_sources(rows, (*chosen, s)) for s in range(len(rows.logs)) if s not in chosen)
        allowed = [model for model in wider if rows.rate(model) >= (1 - MAX_RATE_LOSS) * rate]
        if not allowed:
            break
        model = max(allowed, key=lambda model: (model.log_likelihood, -model.sources[-1]))
        if model.log_likelihood <= best + 1:
            break
        chosen, best = model.sources, model.log_likelihood
    return chosen


def _fit_sources(rows: _Rows, sources: tuple[int, ...]) -> NoiseModel:
    likelihood = rows.likelihood(sources)
    best = min(map(likelihood.solve, likelihood.starts()), key=lambda found: found.fun)
    weights, offsets, u = likelihood.unpack(best.x)
    transition = np.exp(log_softmax(u, axis=1))
    return NoiseModel(sources, weights, offsets, transition, likelihood.log_likelihood(best.x))


def _with_bic(rows: _Rows, model: NoiseModel) -> NoiseModel:
    """Add the information criteria of the model and of the one without wrong labels."""
    likelihood = rows.likelihood(model.sources)
    plain = likelihood.log_likelihood(likelihood.solve(None).x)
    parameters, penalty = likelihood.s + likelihood.c, np.log(likelihood.n)
    # The priors tie the transition's numbers together: it counts as one, the rate.
    bic = {
        1: float(parameters * penalty - 2 * plain),
        2: float((parameters + 1) * penalty - 2 * model.log_likelihood),
    }
    return replace(model, bic=bic)


def _rate_stderr(rows: _Rows, model: NoiseModel, n: int, seed: int) -> float:
    """Return the rate's standard error among n samples: the transition refitted on resamples."""
    rng = generator(seed, "noise rate")
    logs = rows.logs[list(model.sources)]
    pi = np.exp(log_clean_label_probs(logs, model.weights, model.offsets))
    one_hot = np.eye(pi.shape[1])[rows.labels]
    rates = []
    for _ in range(_BOOTSTRAP_SAMPLES):
        weight = rng.multinomial(len(pi), np.full(len(pi), 1 / len(pi)))[:, None]
        transition = model.transition
        for _ in range(_EM_STEPS):
            joint = pi * (one_hot @ transition.T)
            share = weight * joint / joint.sum(axis=1, keepdims=True)
            transition = share.T @ one_hot + 1e-9
            transition /= transition.sum(axis=1, keepdims=True)
        rates.append(1 - (share * one_hot).sum() / len(pi))
    return float(np.std(rates) * np.sqrt(len(pi) / n))
