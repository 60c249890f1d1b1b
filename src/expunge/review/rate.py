"""The noise rate from answers: stratified samples, a model's help, an interval.

A batch of the queue is a stratified simple random sample of the samples that no earlier batch drew.
Within a stratum the answers that count are those before the first sample without an answer, in
the random order of the stratum: however many were given, they are a simple random sample of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import Floats
from expunge._core.rng import generator
from expunge.review.answers import Draw, Judgements

# Answers that the model counts as in a stratum, and the shares that it may not leave.
_PRIOR_ANSWERS, _PRIOR_LIMIT = 3.0, 0.01
# Parameters of the model that the answers were used for as well.
_MODEL_PARAMETERS = 3
_DRAWS = 4000
_LEVEL = 0.95
# The rate of mistakes before any sample was answered twice: mean 0.025, worth 40 answers.
_MISTAKE_PRIOR = (1.0, 39.0)


class Mistakes(NamedTuple):
    """The rate of mistaken answers: its estimate and draws of its distribution."""

    rate: float
    draws: Floats


def estimate_mistakes(
    pairs: int, disagreements: int, *, known: float | None = None, seed: int = 0
) -> Mistakes:
    """The rate of mistakes ε, from answers to the same sample, which disagree in ``2 ε (1 − ε)``.

    Examples
    --------
    >>> few, many = estimate_mistakes(20, 0), estimate_mistakes(20, 8)
    >>> few.rate < 0.025 < many.rate
    True
    """
    if known is not None:
        return Mistakes(known, np.full(_DRAWS, known))
    grid = np.linspace(1e-4, 0.49, 981)
    a, b = _MISTAKE_PRIOR
    share = 2 * grid * (1 - grid)
    log_p = (a - 1) * np.log(grid) + (b - 1) * np.log1p(-grid)
    log_p += disagreements * np.log(share) + (pairs - disagreements) * np.log1p(-share)
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    draws = generator(seed, "mistakes").choice(grid, _DRAWS, p=weights)
    return Mistakes(float(weights @ grid), draws)


class Rate(NamedTuple):
    """An estimated share of the samples and its 95 % interval."""

    value: float
    low: float
    high: float


class _Cell(NamedTuple):
    """The answers that count in a stratum."""

    size: float
    n: int
    found: float
    expected: float
    spread: float


def estimate_rate(
    judgements: Judgements, faults: Floats, probabilities: Floats, mistakes: Mistakes, *, seed: int
) -> Rate | None:
    """Estimate the share of faulty samples.

    For every batch ``Σ_U f + Σ_earlier (y − f) + Σ_h N_h (θ_h − f̄_h)``, with f the recalibrated
    probabilities, ``θ_h ~ Beta(Y_h + s m_h, n_h − Y_h + s (1 − m_h))`` and ``m_h`` their mean among
    the answers of stratum h. The batches are weighted by their precision. Both ends of the interval
    are quantiles of draws of θ and of the rate of mistakes.

    Parameters
    ----------
    judgements
        The judged samples.
    faults
        ``float64[m]``, the share of the reviewers who found the fault.
    probabilities
        ``float64[n]``, the recalibrated probability of the fault for every sample.
    mistakes
        The rate of mistaken answers.
    seed
        Seed of the draws of θ.

    Returns
    -------
    Rate or None
        None if no answer was drawn by design.
    """
    rng, n = generator(seed, "rate"), len(probabilities)
    counted = [(d, k) for d, k in counted_answers(judgements) if k is not None]
    f = probabilities[judgements.rows]
    # As in a regression: the model's parameters were fitted to these answers.
    free = max(len(counted) - _MODEL_PARAMETERS, 2)
    widening = max(float(np.sqrt(len(counted) / free)), 1.0)
    totals, precisions = [], []
    for batch in sorted({draw.batch for draw, _ in counted}):
        earlier = [k for k, j in enumerate(judgements.judged) if j.draw and j.draw.batch < batch]
        true = (faults[earlier] - mistakes.rate) / (1 - 2 * mistakes.rate)
        known = float(probabilities.sum() + np.sum(true - f[earlier]))
        cells = _cells([c for c in counted if c[0].batch == batch], faults, f, n - len(earlier))
        draws = _residual_draws(cells, mistakes, rng)
        draws = draws.mean() + widening * (draws - draws.mean())
        totals.append((known + draws) / n)
        precisions.append(1 / max(sum(c.size**2 * c.spread / c.n for c in cells) / n**2, 1e-9))
    if not totals:
        return None
    pooled = np.array(precisions) / np.sum(precisions) @ np.array(totals)
    low, high = np.quantile(pooled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    value, low, high = (float(x) for x in np.clip([pooled.mean(), low, high], 0, 1))
    return Rate(value, low, high)


def _residual_draws(cells: Sequence[_Cell], mistakes: Mistakes, rng: np.random.Generator) -> Floats:
    """Draws of the number of faults in a batch's population beyond what the model expects."""
    draws = np.zeros(_DRAWS)
    for cell in cells:
        draws += cell.size * (_share_draws(cell, mistakes, rng) - cell.expected)
    return draws


def _share_draws(cell: _Cell, mistakes: Mistakes, rng: np.random.Generator) -> Floats:
    """Draws of the true share of faults in a stratum."""
    epsilon = mistakes.rate
    prior = np.clip(epsilon + (1 - 2 * epsilon) * cell.expected, _PRIOR_LIMIT, 1 - _PRIOR_LIMIT)
    a = cell.found + _PRIOR_ANSWERS * prior
    b = cell.n - cell.found + _PRIOR_ANSWERS * (1 - prior)
    observed = rng.beta(a, b, _DRAWS)
    mean = a / (a + b)
    # Of a stratum that was answered whole only the mistakes are left.
    left = max(1 - cell.n / cell.size, 0.0)
    by_mistake = min(epsilon * (1 - epsilon) / max(mean * (1 - mean), 1e-9), 1.0)
    # The prior steadies the mean, but the model behind it was fitted to these very answers: the
    # spread is that of n answers.
    spread = (a + b + 1) / cell.n * (left + (1 - left) * by_mistake)
    observed = mean + (observed - mean) * np.sqrt(spread)
    share: Floats = (observed - mistakes.draws) / (1 - 2 * mistakes.draws)
    return share


Counted = tuple[Draw, int | None]


def counted_answers(judgements: Judgements) -> list[Counted]:
    """The draws that count, and the position of the judged sample, None if nobody could tell.

    Of every stratum those before the first sample without an answer.
    """
    answered: dict[tuple[int, int], dict[int, Counted]] = {}
    for draw in judgements.undecided:
        answered.setdefault((draw.batch, draw.stratum), {})[draw.order] = (draw, None)
    for k, judged in enumerate(judgements.judged):
        if judged.draw is not None:
            key = (judged.draw.batch, judged.draw.stratum)
            answered.setdefault(key, {})[judged.draw.order] = (judged.draw, k)
    found: list[Counted] = []
    for key in sorted(answered):
        order = 0
        while order in answered[key]:
            found.append(answered[key][order])
            order += 1
    return found


def _cells(
    counted: Sequence[tuple[Draw, int]], faults: Floats, f: Floats, size: int
) -> list[_Cell]:
    """The strata of a batch; their sizes add up to that of its population."""
    by_stratum: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for draw, k in counted:
        by_stratum.setdefault(draw.stratum, []).append(k)
        sizes[draw.stratum] = draw.stratum_size
    # Strata without an answer yet are taken to be like the others.
    factor = size / max(sum(sizes.values()), 1)
    return [
        _Cell(
            sizes[h] * factor,
            len(ks),
            float(faults[ks].sum()),
            float(f[ks].mean()),
            float(np.mean(f[ks] * (1 - f[ks]))) + 0.01,
        )
        for h, ks in sorted(by_stratum.items())
    ]
