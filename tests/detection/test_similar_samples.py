"""Samples like some named bad ones, on planted groups; regression and ranks by slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from expunge.detection import similar_regression, similar_samples
from expunge.detection.similar_samples import find_similar, similar_rate
from expunge.errors import DataError


def planted(*, n=1200, bad=120, known=12, shift=1.5, seed=0):
    """Poison: bad samples share a shift and the label 0. Returns sources, labels, bad, named."""
    rng = np.random.default_rng(seed)
    labels, x = rng.integers(0, 6, n), rng.standard_normal((n, 40)).astype(np.float32)
    is_bad = np.zeros(n, dtype=bool)
    is_bad[rng.choice(n, bad, replace=False)] = True
    labels[is_bad] = 0
    x[is_bad, :6] += shift
    named = np.zeros(n, dtype=bool)
    named[rng.choice(np.flatnonzero(is_bad), known, replace=False)] = True
    return {"x": x, "noise": rng.standard_normal((n, 10))}, labels, is_bad, named


@pytest.mark.parametrize("known", [12, 60])
def test_hidden_samples_of_a_poison_are_found_and_their_number_is_estimated(known):
    sources, labels, bad, named = planted(known=known)
    found = find_similar(sources, labels, named)
    flagged, hidden = (found.p > 0.5) & ~named, bad & ~named
    assert (flagged & hidden).sum() > 0.75 * hidden.sum()
    assert (flagged & ~hidden).sum() < 0.25 * flagged.sum()
    assert found.rate[1] <= hidden.sum() / (~named).sum() <= found.rate[2]
    assert (found.p[named] == 1).all()
    assert found.sources["x"] > 0.9 > found.sources["noise"]


def test_a_trigger_is_found_if_half_of_its_label_have_it_and_few_are_named():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        labels, bad = np.arange(1000) % 10, np.zeros(1000, dtype=bool)
        bad[rng.choice(np.flatnonzero(labels > 0), 100, replace=False)] = True
        x = 4 * rng.standard_normal((10, 30))[labels] + rng.standard_normal((1000, 30))
        labels[bad], x[bad, :4] = 0, 12.0
        deep = x + 6 * rng.standard_normal((1000, 30))
        named = np.isin(np.arange(1000), rng.choice(np.flatnonzero(bad), 10, replace=False))
        found = find_similar({"deep": deep, "x": x}, labels, named)
        assert (found.p > 0.3)[bad].mean() > 0.95
        assert (found.p > 0.3)[~bad].mean() < 0.01


def planted_scores(*, known, bad=60, shift=3.0, seed=0):
    """A score that is higher for the bad samples of two labels, and has a heavy tail elsewhere."""
    rng = np.random.default_rng(seed)
    labels, score = np.arange(1000) % 10, rng.standard_normal(1000)
    score[labels > 7] *= np.exp(rng.standard_normal(200))
    is_bad = np.zeros(1000, dtype=bool)
    is_bad[rng.choice(np.flatnonzero(labels < 2), bad, replace=False)] = True
    score[is_bad] += shift
    named = np.isin(np.arange(1000), rng.choice(np.flatnonzero(is_bad), known, replace=False))
    sources = {"score": score, "noise": rng.standard_normal((1000, 40))}
    return sources, labels, is_bad, named


@pytest.mark.parametrize("known", [30, 60])
def test_a_score_is_taken_as_it_is_and_labels_without_named_samples_are_left_alone(known):
    for seed in range(3):
        sources, labels, bad, named = planted_scores(known=known, seed=seed)
        found = find_similar(sources, labels, named)
        flagged, hidden = (found.p > 0.3) & ~named, bad & ~named
        assert flagged[labels > 1].mean() < 0.005
        assert (flagged & hidden).sum() >= 0.7 * hidden.sum()
        assert (flagged & ~hidden).sum() <= 12
        assert found.rate[1] - 0.001 <= hidden.sum() / (~named).sum() <= found.rate[2]


def test_a_confusion_of_two_classes_is_found_within_each_label():
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 4, 1600)
    x = (2.5 * np.eye(4)[classes] + rng.standard_normal((1600, 4))).astype(np.float32)
    labels, swapped = classes.copy(), np.zeros(1600, dtype=bool)
    for a, b in ((0, 1), (1, 0)):
        rows = np.flatnonzero(classes == a)[:80]
        labels[rows], swapped[rows] = b, True
    named = swapped & (np.arange(1600) % 5 == 0)
    found = find_similar({"x": x}, labels, named)
    flagged, hidden = (found.p > 0.5) & ~named, swapped & ~named
    assert (flagged & hidden).sum() > 0.6 * hidden.sum()
    assert not flagged[labels > 1].any()


@pytest.mark.parametrize("count", [5, 10, 40])
def test_named_samples_with_nothing_in_common_find_no_others(count):
    for seed in range(4):
        sources, labels, _, _ = planted(shift=0.0, n=600, bad=60)
        rng = np.random.default_rng(seed)
        named = np.isin(np.arange(600), rng.choice(600, count, replace=False))
        found = find_similar(sources, labels, named)
        assert np.array_equal(found.p, named.astype(float))
        assert found.rate == (0.0, 0.0, 0.0)


def test_ranks_and_medians_within_labels_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    score, labels = rng.integers(0, 6, 60).astype(float), rng.integers(0, 4, 60)
    good = np.where(labels == 3, 0.0, rng.random(60))
    centred, rank = similar_samples._against_label(score, labels, good)
    for i in range(60):
        own = np.flatnonzero(labels == labels[i])
        weight = good[own] if good[own].sum() else np.ones(len(own))
        below, tied = score[own] < score[i], score[own] == score[i]
        assert_allclose(rank[i], (weight * (below + tied / 2)).sum() / weight.sum())
        median = score[i] - centred[i]
        assert (weight * (score[own] < median)).sum() < weight.sum() / 2 + 1e-9
        assert (weight * (score[own] <= median)).sum() >= weight.sum() / 2 - 1e-9


def test_if_all_bad_samples_are_named_hardly_any_other_is_found():
    sources, labels, bad, _ = planted(shift=3.0)
    found = find_similar(sources, labels, bad)
    assert ((found.p > 0.5) & ~bad).sum() <= 6
    assert found.rate[0] < 0.01


@pytest.mark.parametrize("count", [0, 4, 1200])
def test_too_few_named_samples_or_all_are_an_error(count):
    sources, labels, _, _ = planted()
    with pytest.raises(DataError, match=rf"{count} of 1200 samples are named\n.*fix: name 5"):
        find_similar(sources, labels, np.arange(1200) < count)


@pytest.mark.parametrize("shape", [(30, 6), (12, 20)])
def test_left_out_predictions_are_those_of_a_regression_without_the_sample(shape, monkeypatch):
    monkeypatch.setattr(similar_regression, "_RIDGES", (0.3,))
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal(shape), rng.random((shape[0], 2))
    found = similar_regression._Space.of(x).left_out(targets)
    z, n = (x - x.mean(0)) / x.std(0), len(x)
    centred = targets - targets.mean(0)
    for i in range(n):
        others = np.arange(n) != i
        scatter = z[others].T @ z[others] / n + 0.3 * np.eye(shape[1])
        slow = z[i] @ np.linalg.solve(scatter, z[others].T @ centred[others] / n)
        assert_allclose(found[i], slow + targets.mean(0), atol=2e-5)


def test_the_rate_is_the_smallest_ratio_of_shares_and_never_above_one_half():
    # Nine of ten named samples score above all but 5 % of the others.
    value, low, high = similar_rate(np.array([0.05] * 90 + [0.9] * 10), 1000)
    assert_allclose(value, 0.05 / 0.9)
    assert 0.03 < low < value < high < 0.1
    assert similar_rate(np.full(20, 0.9), 1000)[0] == 0.5
