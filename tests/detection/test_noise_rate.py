"""The noise rate: its estimators, their weights, its interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from expunge.detection.noise_rate import (
    estimate_noise_rate,
    structured_fraction,
    wrong_log_odds,
)
from expunge.records import PooledEvidence
from oracles_pooled import everyone, evidence


@pytest.mark.parametrize(("rate", "width"), [(0.05, 0.2), (0.2, 0.2), (0.4, 0.26)])
def test_the_rate_of_scattered_noise_is_found_and_held_by_the_interval(rate, width):
    pooled, labels, wrong = evidence(rate=rate)
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert abs(found.value - wrong.mean()) < 0.03
    assert found.low <= wrong.mean() <= found.high
    assert found.high - found.low < width


def test_classes_that_overlap_are_no_noise_but_bound_it_from_above():
    pooled, labels, _ = evidence(rate=0.0, spread=2.0)
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert found.value < 0.02
    assert found.low == 0.0
    assert found.high >= found.estimates["disagreement"] > 0.15


@pytest.mark.parametrize("spread", [2.0, 2.5])
def test_a_weak_pool_counts_what_is_evident_and_says_how_little_it_knows(spread):
    pooled, labels, wrong = evidence(rate=0.2, spread=spread)
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert found.estimates["disagreement"] > 0.35
    assert abs(found.value - wrong.mean()) < 0.08 < found.estimates["posterior"] - wrong.mean()
    assert found.low <= wrong.mean() <= found.high


def test_what_a_model_has_learned_is_not_counted_as_noise():
    """An annotator errs where classes look alike, and a tenth is wrong at random besides."""
    rng = np.random.default_rng(0)
    seen = 0.9 * softmax(3.0 * rng.standard_normal((4000, 4)), axis=1) + 0.1 / 4
    labels = np.minimum((seen.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1), 3)
    rate = np.mean(labels != seen.argmax(axis=1))
    pooled = PooledEvidence(seen, np.zeros(4000))

    def found(**changes):
        return estimate_noise_rate(replace(pooled, **changes), labels, everyone(labels))

    learned, probes = found(), found(probe_weight=1.0)
    assert learned.estimates["posterior"] < learned.value < probes.value - 0.05
    assert found(memorised_fraction=1.0).value == probes.value
    with_gap, without = (
        found(held_out_agreement=1 - rate - 0.06),
        found(held_out_agreement=1 - rate),
    )
    assert with_gap.value < learned.value < without.value
    assert without.value - with_gap.value > 0.02
    forgotten = found(held_out_agreement=0.0)
    assert without.high < with_gap.high <= forgotten.high
    assert forgotten.high == pytest.approx(1.5 * without.high)


def test_scattered_noise_is_the_posterior_of_a_model_that_has_learned():
    """Labels follow ambiguity, and a fifth is wrong at random besides."""
    rng = np.random.default_rng(0)
    odds = 3.0 * rng.standard_normal((4000, 4))
    right = softmax(odds, axis=1)
    true = np.minimum((right.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1), 3)
    labels = np.where(rng.random(4000) < 0.2, (true + rng.integers(1, 4, 4000)) % 4, true)
    pooled = PooledEvidence(0.8 * right + 0.2 * (1 - right) / 3, np.zeros(4000))
    found, memorised = (
        estimate_noise_rate(replace(pooled, memorised_fraction=m), labels, everyone(labels))
        for m in (0.0, 1.0)
    )
    assert found.value == pytest.approx(found.estimates["posterior"])
    assert memorised.value != pytest.approx(memorised.estimates["posterior"], abs=0.01)


def test_a_pool_that_knows_the_frequencies_alone_flags_nothing_and_says_how_little_it_knows():
    labels = np.random.default_rng(0).choice(3, 900, p=[0.8, 0.1, 0.1])
    probs = np.tile([0.8, 0.1, 0.1], (900, 1)) + np.random.default_rng(1).uniform(0, 0.1, (900, 3))
    pooled = PooledEvidence(probs / probs.sum(axis=1, keepdims=True), np.zeros(900))
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert found.value <= 0.001
    assert found.low == 0.0
    assert found.high >= np.mean(labels != 0)


def two_classes(odds, rate):
    """Probes that know two classes by these log-odds, calibrated; labels with scattered noise."""
    rng, p = np.random.default_rng(1), 1 / (1 + np.exp(-odds))
    right = rng.random(len(odds)) < p
    labels = np.where(rng.random(len(odds)) < rate, ~right, right).astype(int)
    seen = (1 - rate) * p + rate * (1 - p)
    pooled = PooledEvidence(
        np.stack([1 - seen, seen], axis=1), np.zeros(len(odds)), probe_weight=1.0
    )
    return pooled, labels, labels != right


def test_nearly_half_of_the_labels_of_two_classes_may_be_wrong():
    """The pool agrees with hardly more labels than the most frequent one, but not by chance."""
    odds = 12 * np.random.default_rng(0).standard_normal(1500) + 5
    pooled, labels, wrong = two_classes(odds, 0.44)
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert 1 - found.estimates["disagreement"] < np.bincount(labels).max() / 1500 + 0.05
    assert abs(found.value - wrong.mean()) < 0.03
    assert found.low <= wrong.mean() <= found.high


@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_classes_that_can_hardly_be_separated_show_little_noise_but_leave_it_open(spread):
    odds = spread * np.random.default_rng(0).laplace(size=1500) - 1
    pooled, labels, _ = two_classes(odds, 0.0)
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert found.value < 0.1 < 0.2 < found.high
    assert found.low == 0.0


def test_contradicting_copies_are_the_least_rate():
    pooled, labels, _ = evidence(rate=0.0, spread=2.0)
    pooled = replace(pooled, contradicting_fraction=0.08)
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert found.low == found.value == 0.08


def test_probes_that_are_nearly_as_good_as_the_pool_set_the_rate():
    leaky, labels, wrong = evidence(rate=0.2)
    rows = np.arange(len(labels))
    probs = leaky.probs.copy()
    probs[rows, labels] *= 20
    pooled = replace(leaky, probs=probs / probs.sum(axis=1, keepdims=True))
    alone = estimate_noise_rate(pooled, labels, everyone(labels))
    assert alone.value < wrong.mean() - 0.05
    for weight, tolerance in ((1.0, 0.03), (0.5, 0.12)):
        made = replace(pooled, probe_probs=leaky.probs, probe_weight=weight)
        found = estimate_noise_rate(made, labels, everyone(labels))
        assert abs(found.value - wrong.mean()) < tolerance
        assert found.low <= found.value <= found.high
        assert found.estimates["probes"] > alone.value


def test_labels_of_a_class_that_is_often_taken_for_another_are_found():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, 3000)
    wrong = rng.random(3000) < 0.4
    labels = np.where(wrong, (right + 1) % 3, right)
    transition = 0.6 * np.eye(3) + 0.4 * np.roll(np.eye(3), 1, axis=1)
    seen = softmax(np.log(transition[right] + 0.05) + 0.4 * rng.standard_normal((3000, 3)), axis=1)
    pooled = PooledEvidence(seen, np.zeros(3000))
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    margin = np.log(seen.max(axis=1)) - np.log(seen[np.arange(3000), labels])
    assert roc_auc_score(wrong, found.log_odds) > roc_auc_score(wrong, margin) + 0.03
    assert (np.asarray(found.right[:]).argmax(axis=1) == right).mean() > 0.9


@pytest.mark.parametrize("spread", [2.25, 2.5])
def test_noise_of_one_class_is_found_where_all_classes_overlap(spread):
    rng = np.random.default_rng(0)
    right = rng.integers(0, 5, 3000)
    logits = 5 * np.eye(5)[right] + spread * rng.standard_normal((3000, 5))
    labels = np.where((right == 2) & (rng.random(3000) < 0.2), 4, right)
    pooled = PooledEvidence(softmax(logits, axis=1), np.zeros(3000))
    found = estimate_noise_rate(pooled, labels, everyone(labels))
    assert abs(found.value - (labels != right).mean()) < 0.01
    assert found.low <= (labels != right).mean() <= found.high
    clean = estimate_noise_rate(pooled, right, everyone(right))
    assert clean.value <= 0.005


def test_noise_that_is_evident_to_an_earlier_layer_is_not_explained_away():
    pooled, labels, wrong = evidence(rate=0.2)
    probs = pooled.probs.copy()
    probs[np.arange(len(labels)), labels] *= 20
    probs /= probs.sum(axis=1, keepdims=True)
    leaky = replace(pooled, probs=probs, probe_weight=0.0, memorised_fraction=1.0)

    def rate(**changes):
        return estimate_noise_rate(replace(leaky, **changes), labels, everyone(labels))

    assert rate().value < wrong.mean() - 0.05
    drawn = rate(layer_rate=wrong.mean(), layer_weight=1.0)
    assert drawn.value == drawn.estimates["layer"] == wrong.mean() <= drawn.high
    half = rate(layer_rate=wrong.mean(), layer_weight=0.5).value
    assert half == pytest.approx((rate().value + wrong.mean()) / 2)
    assert rate(layer_rate=0.0005, layer_weight=1.0).value == rate().value
    assert rate(layer_rate=0.9, layer_weight=1.0, probe_weight=1.0).value == rate().value


def test_a_region_in_which_every_label_is_wrong_is_noise_and_overlap_is_not():
    rng = np.random.default_rng(0)
    position = rng.uniform(-3, 3, 2000)
    p = 1 / (1 + np.exp(-2 * position))
    probs = np.stack([1 - p, p], axis=1)
    overlap = (rng.random(2000) < p).astype(int)
    assert structured_fraction(probs, overlap) == 0.0
    right = (position > 0).astype(int)
    flipped = np.where(np.abs(position) < 0.5, 1 - right, right)
    pooled = PooledEvidence(probs, np.zeros(2000))
    found = estimate_noise_rate(pooled, flipped, everyone(flipped))
    assert abs(found.value - (flipped != right).mean()) < 0.06
    assert found.low <= (flipped != right).mean() <= found.high
    assert estimate_noise_rate(pooled, overlap, everyone(overlap)).value < 0.02


def test_odds_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    right, transition = rng.dirichlet(np.ones(3), 5), rng.dirichlet(np.ones(3), 3)
    labels = np.array([0, 1, 2, 0, 1])
    for i, y in enumerate(labels):
        joint = [right[i, c] * transition[c, y] for c in range(3)]
        expected = np.log(sum(joint) - joint[y]) - np.log(joint[y])
        assert_allclose(wrong_log_odds(right, labels, transition)[i], expected)
