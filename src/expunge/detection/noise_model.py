"""The noise model: right labels that the evidence predicts, seen through a noise transition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import brentq

from expunge._core.arrays import Bools, Ints
from expunge._core.rng import subsample
from expunge.detection.class_rows import ClassRows, RowSource, concatenate_sources
from expunge.detection.noise_rows import NoiseModel, NoiseRows, rows_of
from expunge.detection.transition import transition_corrected
from expunge.records.top_classes import TopClasses

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


def fit_noise_model(
    sources: ClassRows,
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
    The transition does not depend on the input; if the noise does, it is a mean over inputs. That
    of more than 100 classes has one rate and the confusions that the labels show; see
    `expunge.detection.many_class_noise`. Cost:
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
    rows = rows_of(sources, labels, trusted, max_rows=MAX_ROWS)
    selection_rows = rows_of(sources, labels, trusted, max_rows=MAX_SELECTION_ROWS)
    if n_model_sources is None:
        model, rate = _fit_memorised(rows, selection_rows)
    else:
        model, rate = _fit_trusting_model(rows, n_model_sources)
    if model.has_noise:
        model = replace(model, label_bias=_solve_label_bias(rows, model, rate))
        stderr = selection_rows.rate_stderr(model, len(labels), seed)
        model = replace(model, rate_stderr=stderr)
    return replace(model, rate=rows.rate(model))


def transition_rate(probs: RowSource, labels: Ints) -> float:
    """Return the rate of wrong labels by a transition fitted on one source, ``[n, c]``.

    Low if noise follows ambiguity: what a sharper source explains needs no wrong labels.
    """
    few = subsample(len(labels), MAX_SELECTION_ROWS, 0, "transition")
    rows = rows_of(np.asarray(probs[few])[None], labels[few], None, max_rows=MAX_SELECTION_ROWS)
    return rows.rate(rows.fit((0,)))


def _fit_trusting_model(rows: NoiseRows, n_model_sources: int) -> tuple[NoiseModel, float]:
    """Fit all sources; the rate is the mean over those that are not the model's predictions."""
    s, c = rows.n_sources, rows.n_classes
    model = rows.with_bic(rows.fit(tuple(range(s))))
    if model.has_noise:
        single = [rows.rate(rows.fit((k,))) for k in range(s - n_model_sources)]
        return model, float(np.mean(single)) if single else rows.rate(model)
    uniform = np.full((c, c), _RANKING_RATE / (c - 1))
    return replace(model, transition=uniform + (1 - _RANKING_RATE * c / (c - 1)) * np.eye(c)), 0.0


def _fit_memorised(rows: NoiseRows, selection_rows: NoiseRows) -> tuple[NoiseModel, float]:
    """Fit the reference and the sources added to it; the rate is the reference's."""
    reference = _select_reference(selection_rows)
    model = rows.with_bic(rows.fit(reference))
    rate = rows.rate(model)
    chosen = _greedy_add(selection_rows, reference, rate) if model.has_noise else reference
    if chosen != reference:
        model = replace(rows.fit(chosen), bic=model.bic)
    return model, rate


def _solve_label_bias(rows: NoiseRows, model: NoiseModel, rate: float) -> float:
    """Return the δ in 0 … 3 at which the model has that rate."""

    def excess(label_bias: float) -> float:
        return rows.rate(replace(model, label_bias=label_bias)) - rate

    if excess(0.0) >= 0:
        return 0.0
    if excess(MAX_LABEL_BIAS) <= 0:
        return MAX_LABEL_BIAS
    return float(brentq(excess, 0.0, MAX_LABEL_BIAS, xtol=1e-3))


def include_model_probs(
    sources: ClassRows, model_probs: ClassRows, labels: Ints, usable: Bools
) -> ClassRows:
    """Append the model's predictions to the sources, corrected for the transition if that helps.

    Corrected (see `transition_corrected`) if that raises the rate of wrong labels by more than 5
    points: a network that has learned pair flips predicts them, and so explains them away. If wrong
    labels scatter, its plain predictions carry more information. Those of more than 100 classes
    stay as they are.

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
    plain = concatenate_sources(sources, model_probs)
    if isinstance(plain, TopClasses):
        return plain
    fixed = [transition_corrected(p) for p in np.asarray(model_probs)]
    corrected = np.concatenate([np.asarray(sources), fixed])
    rates = []
    for stack in (plain, corrected):
        rows = rows_of(stack[:, usable], labels[usable], None, max_rows=MAX_ROWS)
        rates.append(rows.rate(rows.fit(tuple(range(len(stack))))))
    return corrected if rates[1] - rates[0] > _MIN_RATE_GAIN else plain


def _select_reference(rows: NoiseRows) -> tuple[int, ...]:
    """Select greedily the sources that maximise the gain in BIC of a transition over none."""

    def gain(chosen: tuple[int, ...]) -> float:
        bic = rows.with_bic(rows.fit(chosen)).bic
        return bic[1] - bic[2]

    chosen: tuple[int, ...] = ()
    best = -np.inf
    while gains := {s: gain((*chosen, s)) for s in range(rows.n_sources) if s not in chosen}:
        s = max(gains, key=lambda s: (gains[s], -s))
        if gains[s] <= best:
            break
        chosen, best = (*chosen, s), gains[s]
    return chosen


def _greedy_add(rows: NoiseRows, chosen: tuple[int, ...], rate: float) -> tuple[int, ...]:
    """Add greedily sources that raise the likelihood and keep most of the rate."""
    best = rows.fit(chosen).log_likelihood
    while len(chosen) < rows.n_sources:
        wider = (rows.fit((*chosen, s)) for s in range(rows.n_sources) if s not in chosen)
        allowed = [model for model in wider if rows.rate(model) >= (1 - MAX_RATE_LOSS) * rate]
        if not allowed:
            break
        model = max(allowed, key=lambda model: (model.log_likelihood, -model.sources[-1]))
        if model.log_likelihood <= best + 1:
            break
        chosen, best = model.sources, model.log_likelihood
    return chosen
