"""The opinion pool against slow searches."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax

from expunge.detection.opinion_pool import opinion_pool, smooth


def planted_sources(n=3000, c=4, seed=0):
    """Labels, and three sources: informative but overconfident, weak, and silent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    good = 1.5 * np.eye(c)[labels] + rng.standard_normal((n, c))
    weak = 0.3 * np.eye(c)[labels] + rng.standard_normal((n, c))
    return labels, [softmax(4 * good, axis=1), softmax(weak, axis=1), np.full((n, c), 1 / c)]


def likelihood(probs, labels):
    return np.log(probs[np.arange(len(labels)), labels]).mean()


def test_a_pool_of_one_source_has_the_temperature_of_a_slow_search():
    labels, (good, *_) = planted_sources()
    made = opinion_pool([good], labels)
    slow = max(
        (softmax(beta * np.log(good), axis=1) for beta in np.linspace(0, 2, 401)),
        key=lambda probs: likelihood(probs, labels),
    )
    assert_allclose(made, slow, atol=5e-3)


def test_a_pool_is_likelier_than_its_sources_and_ignores_the_silent_one():
    labels, sources = planted_sources()
    made = opinion_pool(sources, labels)
    assert_allclose(made.sum(axis=1), 1)
    assert likelihood(made, labels) > max(
        likelihood(opinion_pool([q], labels), labels) for q in sources
    )
    assert_allclose(made, opinion_pool(sources[:2], labels), atol=1e-3)


def test_a_pool_is_calibrated_for_the_labels_given():
    labels, sources = planted_sources(20_000)
    made = opinion_pool(sources, labels)
    sure = made.max(axis=1)
    right = made.argmax(axis=1) == labels
    for low in (0.4, 0.6, 0.8):
        inside = (sure >= low) & (sure < low + 0.2)
        assert right[inside].mean() == pytest.approx(sure[inside].mean(), abs=0.05)


@pytest.mark.parametrize(("n_trusted", "is_used"), [(100, True), (99, False)])
def test_a_hundred_trusted_samples_fit_the_weights_alone(n_trusted, is_used):
    rng = np.random.default_rng(0)
    n, c = 2000, 4
    right = rng.integers(0, c, n)
    given = np.where(rng.random(n) < 0.4, rng.integers(0, c, n), right)
    trusted = np.zeros(n, dtype=bool)
    trusted[np.flatnonzero(given == right)[:n_trusted]] = True
    # One source repeats the given labels, and is wrong of the trusted ones; one is right of those.
    repeats = np.where(trusted, rng.integers(0, c, n), given)
    knows = np.where(trusted, right, rng.integers(0, c, n))
    sources = [0.9 * np.eye(c)[labels] + 0.1 / c for labels in (repeats, knows)]
    pooled = opinion_pool(sources, given, trusted)
    follows_the_trusted = (pooled.argmax(axis=1) == knows)[repeats != knows].mean() > 0.99
    assert follows_the_trusted == is_used
    if not is_used:
        assert_allclose(pooled, opinion_pool(sources, given))


def test_one_vote_in_twenty_is_uniform():
    assert_allclose(smooth(np.array([[1.0, 0.0]])), [[20.5 / 21, 0.5 / 21]])


def test_a_misleading_source_is_ignored_and_not_reversed():
    labels, (good, *_) = planted_sources()
    misleading = 1 / good / (1 / good).sum(axis=1, keepdims=True)
    assert_allclose(opinion_pool([misleading], labels), 1 / 4)
