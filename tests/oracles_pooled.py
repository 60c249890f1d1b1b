"""Pooled evidence with and without wrong labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import softmax

from expunge.records import PooledEvidence, Scores


def evidence(n=1500, c=4, rate=0.3, spread=8.0, seed=0):
    """Right labels that the evidence all but knows; given ones of which some are wrong."""
    rng = np.random.default_rng(seed)
    right = softmax(spread * rng.standard_normal((n, c)), axis=1)
    true = np.minimum((right.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), c - 1)
    wrong = rng.random(n) < rate
    labels = np.where(wrong, (true + rng.integers(1, c, n)) % c, true)
    seen = (1 - rate) * right + rate * (1 - right) / (c - 1)
    return PooledEvidence(seen, np.zeros(n), probe_weight=1.0), labels, wrong


def everyone(labels):
    return np.ones(len(labels), dtype=bool)


def pooled_scores(pool, labels, /, **changes):
    n = len(labels)
    values, kinds = {"pooled_margin": np.zeros(n)}, {"pooled_margin": "label"}
    made = Scores(np.arange(n), labels, values, kinds, pool.probs, pooled=pool)
    return replace(made, **changes)
