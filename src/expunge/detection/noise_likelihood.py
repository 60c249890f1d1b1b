"""Maximum a posteriori fit of a noise transition and of the weights of evidence. Pure."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.optimize import OptimizeResult, minimize
from threadpoolctl import ThreadpoolController

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge.detection.class_arithmetic import log_softmax, log_sum

# No source is more certain than this.
_MIN_PROBABILITY = 1e-4
# The penalty on weights and offsets, so that those of certain sources stay finite.
_RIDGE = 1e-3
# The deviation of the prior on the log-odds among the wrong labels of a class.
_PRIOR_DEVIATION = 2.0
# The share of right labels with which the optimisation starts.
_START_DIAGONAL = 0.7


def log_evidence(sources: AnyFloats) -> Floats:
    """Return the logarithm of class probabilities, which are at least 10⁻⁴."""
    logs: Floats = np.log(np.maximum(np.asarray(sources, dtype=np.float64), _MIN_PROBABILITY))
    return logs


def log_clean_label_probs(logs: Floats, weights: Floats, offsets: Floats) -> Floats:
    """Return ``log π = log softmax(Σ_s β_s log q_s + b)``, ``float64[n, c]``.

    Parameters
    ----------
    logs
        ``float64[s, n, c]``, see `log_evidence`.
    weights
        ``float64[s]``, β.
    offsets
        ``float64[c]``, b.
    """
    return log_softmax(np.tensordot(weights, logs, axes=1) + offsets)


@cache
def _thread_pools() -> ThreadpoolController:
    """The thread pools of this process; to find them takes longer than a fit of small data."""
    return ThreadpoolController()


class NoiseLikelihood:
    """Minus the log posterior density of weights β, offsets b and transition T, a sample.

    ``−(1/n) Σ_i log Σ_c π_i(c) T_{c, y_i}``, plus the priors: one more right label a class,
    ``N(0, 2²)`` on the log-odds among a class's wrong labels, a ridge of 10⁻³ on β and b. T is the
    softmax of each row of u.

    Parameters
    ----------
    logs
        ``float64[s, n, c]``, see `log_evidence`.
    labels
        ``int[n]``, the given labels.
    known
        ``bool[n]``, samples whose label is right.
    """

    def __init__(self, logs: Floats, labels: Ints, known: Bools) -> None:
        self.logs, self.labels, self.known = logs, labels, known
        self.s, self.n, self.c = logs.shape
        self.one_hot = np.eye(self.c)[labels]

    def unpack(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the weights, the offsets and the logits u of the transition."""
        s, c = self.s, self.c
        return x[:s], x[s : s + c], x[s + c :].reshape(c, c)

    def log_likelihood(self, x: Floats) -> float:
        """Return the log likelihood of all labels, without the priors."""
        return float(self._terms(x)[0].sum())

    def starts(self) -> tuple[Floats, Floats]:
        """Return two transitions to start from: uniform noise, and what the sources disagree on."""
        c = self.c
        uniform = np.full((c, c), (1 - _START_DIAGONAL) / (c - 1))
        np.fill_diagonal(uniform, _START_DIAGONAL)
        predicted = np.eye(c)[self.logs.mean(axis=0).argmax(axis=1)]
        counts = predicted.T @ self.one_hot + uniform
        return uniform, counts / counts.sum(axis=1, keepdims=True)

    def solve(self, start: Floats | None) -> OptimizeResult:
        """Minimise from equal weights and a transition; None holds it at the identity."""
        s, c = self.s, self.c
        u = 30.0 * np.eye(c) if start is None else np.log(start)
        bounds: list[tuple[float | None, float | None]] = [(0.0, None)] * s + [(None, None)] * c
        bounds += [(v, v) if start is None else (-30.0, 30.0) for v in u.ravel()]
        with _thread_pools().limit(limits=1):  # small matrices: more threads are slower
            return minimize(
                self.loss_and_gradient,
                np.concatenate([np.full(s, 1 / s), np.zeros(c), u.ravel()]),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 500, "maxfun": 1000, "ftol": 1e-7, "gtol": 1e-6, "maxcor": 20},
            )

    def loss_and_gradient(self, x: Floats) -> tuple[float, Floats]:
        """Return the minimised function and its gradient at x: β, b and u in one vector."""
        beta, b, u = self.unpack(x)
        each, log_p, log_t, share = self._terms(x)
        residual = share - np.exp(log_p)  # gradient of the likelihood in the logits of π
        d_beta = np.tensordot(self.logs, residual, axes=([1, 2], [0, 1])) / self.n
        d_b = residual.sum(axis=0) / self.n
        counts = np.where(self.known[:, None], 0.0, share).T @ self.one_hot
        counts[np.diag_indices(self.c)] += 1
        d_u = (counts - np.exp(log_t) * counts.sum(axis=1, keepdims=True)) / self.n
        others = 1 - np.eye(self.c)
        odds = (u - (u * others).sum(axis=1, keepdims=True) / (self.c - 1)) * others
        odds /= _PRIOR_DEVIATION**2 * self.n
        value = each.mean() + np.diag(log_t).sum() / self.n
        value -= 0.5 * (odds * u).sum() + _RIDGE * (beta @ beta + b @ b)
        gradient = [d_beta - 2 * _RIDGE * beta, d_b - 2 * _RIDGE * b, (d_u - odds).ravel()]
        return -value, -np.concatenate(gradient)

    def _terms(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return each label's log likelihood, log π, log T, and the right label's posterior."""
        beta, b, u = self.unpack(x)
        log_p, log_t = log_clean_label_probs(self.logs, beta, b), log_softmax(u)
        joint = log_p + log_t[:, self.labels].T
        at_label = np.where(self.one_hot > 0, log_p, -np.inf)
        joint = np.where(self.known[:, None], at_label, joint)
        each = log_sum(joint)
        return each, log_p, log_t, np.exp(joint - each[:, None])
