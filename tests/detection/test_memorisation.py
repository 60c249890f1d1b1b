"""Which networks and layers count as memorised, and what follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from expunge.detection.detectors import detect, detectors
from expunge.detection.memorisation import (
    has_memorised,
    has_memorised_faults,
    informative_sources,
    memorised_fraction,
)
from expunge.records import PooledEvidence, Scores
from oracles_detection import scores, signals


def test_layers_that_memorised_the_labels_do_not_suggest_labels():
    n, c = 600, 3
    rng = np.random.default_rng(0)
    truth = rng.integers(0, c, n)
    wrong = rng.random(n) < 0.2
    labels = np.where(wrong, (truth + 1) % c, truth)
    noise = 0.1 * rng.standard_normal((n, c))
    s = signals(
        n,
        c,
        labels=labels,
        features={"early": np.eye(c)[truth] + noise, "late": np.eye(c)[labels] + noise},
        augmented_probs=0.8 * np.eye(c)[truth] + 0.2 / c,
    )
    for name in ("knn_disagreement", "lda_margin"):
        made = detect(s, (name,))
        assert (made.class_probs.argmax(axis=1) == truth).mean() > 0.95
        assert roc_auc_score(wrong, made.values[name]) > 0.95


def agreeing(share, *, n=100, c=4):
    """Probabilities that agree with the labels 0 of so many samples."""
    return np.eye(c)[np.where(np.arange(n) < share, 0, 1)]


@pytest.mark.parametrize(("plain", "memorised"), [(0.81, True), (0.79, False)])
def test_a_model_has_memorised_if_it_agrees_a_tenth_more_often_than_its_views(plain, memorised):
    found = scores([np.zeros(3)], agreement={"plain": plain, "augmented": 0.7})
    assert has_memorised(found) is memorised


@pytest.mark.parametrize(("plain", "memorised"), [(0.96, True), (0.95, None), (0.5, None)])
def test_without_views_only_a_perfect_fit_shows_that_a_model_has_memorised(plain, memorised):
    assert has_memorised(scores([np.zeros(3)], agreement={"plain": plain})) is memorised
    assert has_memorised(scores([np.zeros(3)])) is None


def test_sources_that_agree_a_tenth_more_often_than_views_are_left_out():
    s = signals(100, labels=np.zeros(100), augmented_probs=agreeing(60))
    low, border, high, higher = (agreeing(share) for share in (55, 70, 71, 90))
    assert [q is low for q in informative_sources([low, high], s)] == [True]
    assert len(informative_sources([low, border, high], s)) == 2
    # If all have memorised, the one that has least is better than none.
    assert informative_sources([higher, high], s)[0] is high
    assert len(informative_sources([low, high], replace(s, augmented_probs=None))) == 2
    assert informative_sources([], s) == []


@pytest.mark.parametrize(("plain", "n_sources"), [(70, 1), (71, 0)])
def test_views_are_a_source_unless_the_network_has_memorised(plain, n_sources):
    logits = 3 * agreeing(plain)
    s = signals(100, labels=np.zeros(100), logits=logits, augmented_probs=agreeing(60))
    for name in ("augmented_loss", "augmented_margin"):
        assert len(detectors.get(name)(s).class_probs) == n_sources


@pytest.mark.parametrize(
    ("agreement", "expected", "fraction"),
    [(1.0, 0.8, 1.0), (0.9, 0.8, 0.5), (0.8, 0.8, 0.0), (0.7, 0.8, 0.0), (1.0, 1.0, 0.0)],
)
def test_the_memorised_fraction_is_what_the_model_fits_beyond_expectation(
    agreement, expected, fraction
):
    assert memorised_fraction(agreement, expected) == fraction


def _fitted_scores(expected, n_wrong_fitted):
    """A model that fits 100 labels, of which 20 are wrong, but for some of the wrong ones."""
    labels = np.zeros(100, dtype=np.int64)
    probs = np.tile([0.9, 0.1], (100, 1))
    probs[n_wrong_fitted:20] = [0.1, 0.9]
    pooled = PooledEvidence(probs, np.zeros(100), expected_agreement=expected)
    return Scores(
        np.arange(100),
        labels,
        {"loss": np.zeros(100)},
        {"loss": "label"},
        probs,
        model_probs=probs[None],
        pooled=pooled,
    )


@pytest.mark.parametrize(
    ("expected", "n_wrong_fitted", "memorised"),
    [(0.8, 20, True), (0.91, 20, False), (0.7, 9, False), (0.7, 11, True)],
)
def test_a_model_has_memorised_faults_if_it_fits_more_than_expected_and_most_wrong_labels(
    expected, n_wrong_fitted, memorised
):
    p = np.where(np.arange(100) < 20, 0.9, 0.1)
    made = _fitted_scores(expected, n_wrong_fitted)
    assert has_memorised_faults(made, p) is memorised
    assert has_memorised_faults(replace(made, pooled=None), p) is None
    assert has_memorised_faults(made, np.zeros(100)) is None
