"""The noise model: right labels that the evidence tells, seen through a noise transition. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import OptimizeResult, brentq, minimize
from scipy.special import log_softmax, logsumexp
from threadpoolctl import threadpool_limits

from expunge._core.rng import generator, subsample

# A model is fitted on at most so many samples, and its sources are chosen on so many.
ROWS, FEW_ROWS = 10_000, 3_000
# Where a network has memorised, more sources may explain away so much of the reference's rate.
LEAK = 0.2
# No source leans further than this towards the label given, in log-odds: a bound on δ.
LEANING = 3.0
_FLOOR = 1e-4  # no source is certain
_RIDGE = 1e-3  # on the weights of the sources, so that certain ones stay finite
_START = 0.7  # share of right labels to begin with
_DEVIATION = 2.0  # of the prior on the log-odds among the wrong labels of a class
_REFITS, _EM_STEPS = 30, 10
_UNMIXING = 30  # steps
_FORETOLD = 0.05  # of the rate
_FAINT = 1e-3  # the rate of wrong labels that ranks samples where none are found


@dataclass(frozen=True)
class NoiseModel:
    """What makes the given labels: ``P(ỹ_i = k) = Σ_c π_i(c) T_ck``.

    sources: which were used; weights β ≥ 0, one for each, and offsets b:
    ``π_i = softmax(Σ_s β_s log q_si + b)``, the distribution of the right label; transition ``T``,
    rows sum to one. likelihood: the log likelihood of the labels fitted on. bic: Bayesian
    information criterion without (1) and with (2) wrong labels. rate, error: share of wrong labels
    and its standard error. leak δ ≥ 0: by how much the sources favour a sample's own given label,
    in log-odds.
    """

    sources: tuple[int, ...]
    weights: np.ndarray
    offsets: np.ndarray
    transition: np.ndarray
    likelihood: float
    bic: Mapping[int, float] = field(default_factory=dict)
    rate: float = 0.0
    error: float = 0.0
    leak: float = 0.0

    @property
    def noisy(self) -> bool:
        """Whether wrong labels explain the given ones better than none would."""
        return self.bic[2] < self.bic[1]

    def posterior(self, sources: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The right label given evidence and given label: ``∝ π_i(c) e^{−δ [c = y_i]} T_{c, y_i}``.

        sources: ``float[s, n, c]``, all that there are. Returns ``float64[n, c]``.
        """
        return self._posterior(_logs(sources[list(self.sources)]), labels)

    def _posterior(self, logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        joint = np.exp(_log_right(logs, self.weights, self.offsets))
        joint[np.arange(len(labels)), labels] *= np.exp(-self.leak)
        joint *= self.transition[:, labels].T
        return joint / joint.sum(axis=1, keepdims=True)


def fit(
    sources: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    trusted: np.ndarray | None = None,
    n_model_sources: int | None = None,
) -> NoiseModel:
    """The noise model of some labels, from class probabilities of several sources.

    Logistic regression for labels that may be wrong (doi 10.1016/S0304-4076(98)00015-3), with one
    weight a source: a right label that the sources leave no doubt of is given as often as its
    transition says, and that tells a noisy label from a hard sample. Priors: one more right label
    a class, and ``N(0, 2²)`` on the log-odds among a class's wrong labels, so that few samples
    speak for symmetric noise and many for what they show (pair flips, say).

    A trained network leans towards the labels that it was given, the wrong ones too, and so do
    features taken from it: what leans explains wrong labels away. What knows little, on the other
    hand, takes hard samples for wrong labels. So which samples are wrong and how many are asked of
    different sources:

    - Where the network leans only (the last ``n_model_sources`` are its own
      words), all sources together decide whether any label is wrong and which are; the rate is the
      mean of those that the other sources find, each alone.
    - Where it has memorised (``n_model_sources`` is None), the reference are the sources in
      which wrong labels are most evident: greedily those that raise the gain in the information
      criterion of a transition over none. A source that has memorised needs no transition, one
      that knows little shows none.
      The rate is the reference's. Others that raise the likelihood join, as long as they explain
      away no more than a fifth of it.

    The lean δ is such that the model has that rate; at most 3, for beyond that it is the rate that
    is wrong.

    sources: ``float[s, n, c]``, not n_model_sources the sample's own label, but for the last
    ``n_model_sources``.
    trusted: ``bool[n]``, labels that are right for sure. Looks at given labels only. Cost: s fits,
    or some s² on fewer rows where the network has memorised, each of about 100 evaluations of
    ``O(s · min(n, 10,000) · c)``.
    """
    rows = _Rows(sources, labels, trusted, ROWS)
    few = _Rows(sources, labels, trusted, FEW_ROWS)
    model, rate = (
        _memorised(rows, few) if n_model_sources is None else _believed(rows, n_model_sources)
    )
    if model.noisy:
        model = replace(model, leak=_lean(rows, model, rate))
        model = replace(model, error=_error(few, model, len(labels), seed))
    return replace(model, rate=rows.rate(model))


def _believed(rows: _Rows, n_model_sources: int) -> tuple[NoiseModel, float]:
    """All sources, and the mean of the rates that those find which are not the network's words."""
    s, _, c = rows.logs.shape
    model = _compared(rows, _fitted(rows, tuple(range(s))))
    if model.noisy:
        alone = [rows.rate(_fitted(rows, (k,))) for k in range(s - n_model_sources)]
        return model, float(np.mean(alone)) if alone else rows.rate(model)
    faint = np.full((c, c), _FAINT / (c - 1)) + (1 - _FAINT * c / (c - 1)) * np.eye(c)
    return replace(model, transition=faint), 0.0


def _memorised(rows: _Rows, few: _Rows) -> tuple[NoiseModel, float]:
    """The reference and what joins it, and the reference's rate."""
    reference = _most_evident(few)
    model = _compared(rows, _fitted(rows, reference))
    rate = rows.rate(model)
    chosen = _joined(few, reference, rate) if model.noisy else reference
    if chosen != reference:
        model = replace(_fitted(rows, chosen), bic=model.bic)
    return model, rate


def _lean(rows: _Rows, model: NoiseModel, rate: float) -> float:
    """The δ at which the model has that rate, within 0 … 3."""

    def excess(leak: float) -> float:
        return rows.rate(replace(model, leak=leak)) - rate

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, LEANING, xtol=1e-3)) if excess(LEANING) > 0 else LEANING


def include_model_probs(
    sources: np.ndarray,
    n_model_sources: np.ndarray,
    labels: np.ndarray,
    usable: np.ndarray,
) -> np.ndarray:
    """The sources, and behind them what the network itself says: as it is, or un-mixed.

    Un-mixed where that finds more wrong labels, by 5 points of the rate or more: a network that was
    taught pair flips foretells them, and so explains them away. Where wrong labels scatter, its
    word as it is tells more. usable: ``bool[n]``, samples that decide it. Returns
    ``float[s + t, n, c]``.
    """
    plain = np.concatenate([sources, n_model_sources])
    apart = np.concatenate([sources, [transition_corrected(p) for p in n_model_sources]])
    found = []
    for stack in (plain, apart):
        rows = _Rows(stack[:, usable], labels[usable], None, ROWS)
        found.append(rows.rate(_fitted(rows, tuple(range(len(stack))))))
    return apart if found[1] - found[0] > _FORETOLD else plain


def transition_corrected(probs: np.ndarray) -> np.ndarray:
    """What a network says of right labels, from what it says of given ones: ``float64[n, c]``.

    Trained on wrong labels it predicts ``p_i = Σ_c π_i(c) T_c``, wrong ones in their share. Row c
    of T is its mean prediction over the anchors, the tenth of those predicted as c of which it is
    surest (arXiv 1609.03683). π comes from Richardson–Lucy steps from even (doi
    10.1364/JOSA.62.000055), ``π(c) ← π(c) Σ_k T_ck p_k / (πT)_k``. Not for a network that has
    memorised: it is sure of wrong labels. Cost: O(n · c²).
    """
    p = np.asarray(probs, dtype=np.float64)
    transition, predicted = np.eye(p.shape[1]), p.argmax(axis=1)
    for c in np.unique(predicted):
        rows = p[predicted == c]
        anchors = np.argsort(-rows[:, c], kind="stable")[: -(-len(rows) // 10)]
        transition[c] = rows[anchors].mean(axis=0)
    right = np.full_like(p, 1 / p.shape[1])
    for _ in range(_UNMIXING):
        right *= (p / np.maximum(right @ transition, 1e-12)) @ transition.T
        right /= right.sum(axis=1, keepdims=True)
    return right


class _Rows:
    """Some of the rows: log probabilities, labels, and which labels are sure."""

    def __init__(
        self, sources: np.ndarray, labels: np.ndarray, trusted: np.ndarray | None, limit: int
    ) -> None:
        rows = subsample(len(labels), limit, 0, "transition")
        self.logs, self.given = _logs(sources[:, rows]), labels[rows]
        self.sure = np.zeros(len(rows), dtype=bool) if trusted is None else trusted[rows]

    def rate(self, model: NoiseModel) -> float:
        """Mean probability that a label is wrong."""
        q = model._posterior(self.logs[list(model.sources)], self.given)
        right = q[np.arange(len(q)), self.given]
        return float(1 - np.where(self.sure, 1.0, right).mean())


def _most_evident(rows: _Rows) -> tuple[int, ...]:
    """Greedily, the sources that make the gain of a transition in BIC largest."""

    def gain(chosen: tuple[int, ...]) -> float:
        bic = _compared(rows, _fitted(rows, chosen)).bic
        return bic[1] - bic[2]

    chosen: tuple[int, ...] = ()
    best = -np.inf
    while gains := {s: gain((*chosen, s)) for s in range(len(rows.logs)) if s not in chosen}:
        s = max(gains, key=lambda s: (gains[s], -s))
        if gains[s] <= best:
            break
        chosen, best = (*chosen, s), gains[s]
    return chosen


def _joined(rows: _Rows, chosen: tuple[int, ...], rate: float) -> tuple[int, ...]:
    """Greedily, more sources that raise the likelihood and leave most of the rate."""
    best = _fitted(rows, chosen).likelihood
    while len(chosen) < len(rows.logs):
        wider = (_fitted(rows, (*chosen, s)) for s in range(len(rows.logs)) if s not in chosen)
        honest = [model for model in wider if rows.rate(model) >= (1 - LEAK) * rate]
        if not honest:
            break
        model = max(honest, key=lambda model: (model.likelihood, -model.sources[-1]))
        if model.likelihood <= best + 1:
            break
        chosen, best = model.sources, model.likelihood
    return chosen


def _fitted(rows: _Rows, chosen: tuple[int, ...]) -> NoiseModel:
    problem = _Problem(rows.logs[list(chosen)], rows.given, rows.sure)
    c = problem.c
    even = np.full((c, c), (1 - _START) / (c - 1))
    np.fill_diagonal(even, _START)
    said = np.eye(c)[problem.logs.mean(axis=0).argmax(axis=1)]
    seen = said.T @ problem.one_hot + even  # what the sources say against what is given
    starts = (even, seen / seen.sum(axis=1, keepdims=True))
    best = min((problem.solve(start) for start in starts), key=lambda found: found.fun)
    weights, offsets, u = problem.unpacked(best.x)
    transition = np.exp(log_softmax(u, axis=1))
    return NoiseModel(chosen, weights, offsets, transition, problem.likelihood(best.x))


def _compared(rows: _Rows, model: NoiseModel) -> NoiseModel:
    """The model, with its information criterion beside that of no wrong labels."""
    problem = _Problem(rows.logs[list(model.sources)], rows.given, rows.sure)
    plain = problem.likelihood(problem.solve(None).x)
    parameters, penalty = problem.s + problem.c, np.log(problem.n)
    # The priors tie the transition's numbers together: it counts as one, the rate.
    bic = {
        1: float(parameters * penalty - 2 * plain),
        2: float((parameters + 1) * penalty - 2 * model.likelihood),
    }
    return replace(model, bic=bic)


class _Problem:
    """Minus the log posterior density of weights, offsets and transition, and its slope."""

    def __init__(self, logs: np.ndarray, given: np.ndarray, sure: np.ndarray) -> None:
        self.logs, self.given = logs, given
        self.s, self.n, self.c = logs.shape
        self.one_hot = np.eye(self.c)[given]
        self.sure = sure

    def unpacked(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, offsets, and the logits of the transition."""
        s, c = self.s, self.c
        return x[:s], x[s : s + c], x[s + c :].reshape(c, c)

    def likelihood(self, x: np.ndarray) -> float:
        """Log likelihood, without the priors."""
        return float(self._parts(*self.unpacked(x))[0].sum())

    def solve(self, start: np.ndarray | None) -> OptimizeResult:
        """From an equal weight for all and this transition; None holds it at the identity."""
        s, c = self.s, self.c
        u = 30.0 * np.eye(c) if start is None else np.log(start)
        bounds: list[tuple[float | None, float | None]] = [(0.0, None)] * s + [(None, None)] * c
        bounds += [(v, v) if start is None else (-30.0, 30.0) for v in u.ravel()]
        with threadpool_limits(1):  # small matrices: more threads are slower
            return minimize(
                self.loss_and_slope,
                np.concatenate([np.full(s, 1 / s), np.zeros(c), u.ravel()]),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 500, "maxfun": 1000, "ftol": 1e-7, "gtol": 1e-6, "maxcor": 20},
            )

    def loss_and_slope(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Per sample."""
        beta, b, u = self.unpacked(x)
        each, log_p, log_t, share = self._parts(beta, b, u)
        up = share - np.exp(log_p)  # slope of the likelihood in the right labels' logits
        d_beta = np.tensordot(self.logs, up, axes=([1, 2], [0, 1])) / self.n
        d_b = up.sum(axis=0) / self.n
        seen = np.where(self.sure[:, None], 0.0, share).T @ self.one_hot
        seen[np.diag_indices(self.c)] += 1
        d_u = (seen - np.exp(log_t) * seen.sum(axis=1, keepdims=True)) / self.n
        others = 1 - np.eye(self.c)
        odds = (u - (u * others).sum(axis=1, keepdims=True) / (self.c - 1)) * others
        odds /= _DEVIATION**2 * self.n
        value = each.mean() + np.diag(log_t).sum() / self.n
        value -= 0.5 * (odds * u).sum() + _RIDGE * (beta @ beta + b @ b)
        slope = [d_beta - 2 * _RIDGE * beta, d_b - 2 * _RIDGE * b, (d_u - odds).ravel()]
        return -value, -np.concatenate(slope)

    def _parts(
        self, beta: np.ndarray, b: np.ndarray, u: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Log likelihood of each label, log π, log T, and whose label it is (posterior)."""
        log_p, log_t = _log_right(self.logs, beta, b), log_softmax(u, axis=1)
        joint = log_p + log_t[:, self.given].T
        certain = np.where(self.one_hot > 0, log_p, -np.inf)
        joint = np.where(self.sure[:, None], certain, joint)
        each = logsumexp(joint, axis=1)
        return each, log_p, log_t, np.exp(joint - each[:, None])


def _error(rows: _Rows, model: NoiseModel, n: int, seed: int) -> float:
    """Standard error of the rate among n samples: the transition refitted on resampled rows."""
    rng = generator(seed, "noise rate")
    pi = np.exp(_log_right(rows.logs[list(model.sources)], model.weights, model.offsets))
    one_hot = np.eye(pi.shape[1])[rows.given]
    rates = []
    for _ in range(_REFITS):
        weight = rng.multinomial(len(pi), np.full(len(pi), 1 / len(pi)))[:, None]
        t = model.transition
        for _ in range(_EM_STEPS):
            joint = pi * (one_hot @ t.T)
            share = weight * joint / joint.sum(axis=1, keepdims=True)
            t = share.T @ one_hot + 1e-9
            t /= t.sum(axis=1, keepdims=True)
        rates.append(1 - (share * one_hot).sum() / len(pi))
    return float(np.std(rates) * np.sqrt(len(pi) / n))


def _logs(sources: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(sources, dtype=np.float64), _FLOOR))


def _log_right(logs: np.ndarray, weights: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return log_softmax(np.tensordot(weights, logs, axes=1) + offsets, axis=1)
