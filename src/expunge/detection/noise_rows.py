"""The noise model, and the rows that it is fitted on: of all classes, or of the best. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge._core.rng import generator, subsample
from expunge.detection.class_arithmetic import log_softmax
from expunge.detection.class_rows import ClassRows
from expunge.detection.many_class_noise import TopClassRows
from expunge.detection.noise_likelihood import NoiseLikelihood, log_clean_label_probs, log_evidence
from expunge.records.top_classes import TopClasses

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


class NoiseRows(ABC):
    """Some of the rows: what several sources say of them, their given labels, the known ones."""

    n_sources: int
    n_classes: int

    @abstractmethod
    def fit(self, sources: tuple[int, ...]) -> NoiseModel:
        """Return the noise model of some sources, without information criteria."""

    @abstractmethod
    def plain_log_likelihood(self, sources: tuple[int, ...]) -> tuple[float, int, int]:
        """Return that of the model without wrong labels, its parameters, and the rows."""

    @abstractmethod
    def rate(self, model: NoiseModel) -> float:
        """Return the mean probability that a label is wrong."""

    @abstractmethod
    def resampled_rates(self, model: NoiseModel, seed: int) -> tuple[list[float], int]:
        """Return the rates of the transition refitted on resamples, and the number of rows."""

    def with_bic(self, model: NoiseModel) -> NoiseModel:
        """Add the information criteria of the model and of the one without wrong labels."""
        plain, parameters, n = self.plain_log_likelihood(model.sources)
        penalty = np.log(n)
        # The priors tie the transition's numbers together: it counts as one, the rate.
        bic = {
            1: float(parameters * penalty - 2 * plain),
            2: float((parameters + 1) * penalty - 2 * model.log_likelihood),
        }
        return replace(model, bic=bic)

    def rate_stderr(self, model: NoiseModel, n: int, seed: int) -> float:
        """Return the rate's standard error among n samples."""
        rates, n_rows = self.resampled_rates(model, seed)
        return float(np.std(rates) * np.sqrt(n_rows / n))


def rows_of(sources: ClassRows, labels: Ints, trusted: Bools | None, *, max_rows: int) -> NoiseRows:
    """Return at most this number of rows of sources ``[s, n, c]``."""
    rows = subsample(len(labels), max_rows, 0, "transition")
    known = np.zeros(len(rows), dtype=bool) if trusted is None else trusted[rows]
    taken, given = sources[:, rows], labels[rows]
    if isinstance(taken, TopClasses):
        return _TopRows(taken, given, known)
    return _AllRows(log_evidence(taken), given, known)


class _AllRows(NoiseRows):
    """Numbers of all classes: ``float64[s, n, c]``."""

    def __init__(self, logs: Floats, labels: Ints, known: Bools) -> None:
        self.logs, self.labels, self.known = logs, labels, known
        self.n_sources, _, self.n_classes = logs.shape

    def likelihood(self, sources: tuple[int, ...]) -> NoiseLikelihood:
        return NoiseLikelihood(self.logs[list(sources)], self.labels, self.known)

    def fit(self, sources: tuple[int, ...]) -> NoiseModel:
        likelihood = self.likelihood(sources)
        best = min(map(likelihood.solve, likelihood.starts()), key=lambda found: found.fun)
        weights, offsets, u = likelihood.unpack(best.x)
        transition = np.exp(log_softmax(u))
        return NoiseModel(sources, weights, offsets, transition, likelihood.log_likelihood(best.x))

    def plain_log_likelihood(self, sources: tuple[int, ...]) -> tuple[float, int, int]:
        likelihood = self.likelihood(sources)
        plain = likelihood.log_likelihood(likelihood.solve(None).x)
        return plain, likelihood.s + likelihood.c, likelihood.n

    def rate(self, model: NoiseModel) -> float:
        q = model.posterior_from_logs(self.logs[list(model.sources)], self.labels)
        right = q[np.arange(len(q)), self.labels]
        return float(1 - np.where(self.known, 1.0, right).mean())

    def resampled_rates(self, model: NoiseModel, seed: int) -> tuple[list[float], int]:
        rng = generator(seed, "noise rate")
        logs = self.logs[list(model.sources)]
        pi = np.exp(log_clean_label_probs(logs, model.weights, model.offsets))
        one_hot = np.eye(pi.shape[1])[self.labels]
        rates = []
        for _ in range(_BOOTSTRAP_SAMPLES):
            weight = rng.multinomial(len(pi), np.full(len(pi), 1 / len(pi)))[:, None]
            transition = model.transition
            for _ in range(_EM_STEPS):
                joint = pi * (one_hot @ transition.T)
                share = weight * joint / joint.sum(axis=1, keepdims=True)
                transition = share.T @ one_hot + 1e-9
                transition /= transition.sum(axis=1, keepdims=True)
            rates.append(1 - float((share * one_hot).sum()) / len(pi))
        return rates, len(pi)


class _TopRows(NoiseRows):
    """Numbers of the best classes."""

    def __init__(self, sources: TopClasses, labels: Ints, known: Bools) -> None:
        self.rows = TopClassRows(sources, labels, known)
        self.n_sources, self.n_classes = len(sources), sources.n_classes

    def fit(self, sources: tuple[int, ...]) -> NoiseModel:
        weights, offsets, transition = self.rows.fit(sources)
        log_pi = self.rows.log_probs(sources, weights, offsets)
        found = self.rows.log_likelihood(log_pi, transition)
        return NoiseModel(sources, weights, offsets, transition, found)

    def plain_log_likelihood(self, sources: tuple[int, ...]) -> tuple[float, int, int]:
        weights, offsets, _ = self.rows.fit(sources, is_noisy=False)
        log_pi = self.rows.log_probs(sources, weights, offsets)
        plain = self.rows.log_likelihood(log_pi, None)
        return plain, len(sources) + 1, len(self.rows.labels)

    def rate(self, model: NoiseModel) -> float:
        log_pi = self.rows.log_probs(model.sources, model.weights, model.offsets)
        share = self.rows.posterior(log_pi, model.transition, model.label_bias)
        return float(1 - share[self.rows.is_label].mean())

    def resampled_rates(self, model: NoiseModel, seed: int) -> tuple[list[float], int]:
        log_pi = self.rows.log_probs(model.sources, model.weights, model.offsets)
        rates = self.rows.resampled_rates(
            log_pi,
            model.transition,
            n_samples=_BOOTSTRAP_SAMPLES,
            n_steps=_EM_STEPS,
            seed=seed,
        )
        return rates, len(self.rows.labels)
