"""Detectors that look for two clusters: which one is bad."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from expunge.detection.cluster_detectors import _towards_uncertainty
from expunge.detection.detectors import detectors
from expunge.records import Signals
from oracles_detection import signals


@pytest.mark.parametrize(
    ("apart", "uncertain", "found"),
    [(40.0, True, True), (40.0, False, False), (4.0, True, False)],
    ids=["far and uncertain", "far and certain", "near and uncertain"],
)
def test_a_distant_and_less_certain_cluster_is_bad(apart, uncertain, found):
    rng = np.random.default_rng(0)
    n = 600
    labels, bad = rng.integers(0, 3, n), rng.random(n) < 0.5
    clear = np.where(bad & uncertain, 1.0, 3.0)[:, None]
    f = rng.normal(size=(n, 8)) + clear * np.eye(3, 8)[labels]
    f[:, 7] += apart * bad
    logits = np.log(softmax(f[:, :3], axis=1))
    s = Signals(np.arange(n), labels, logits, features={"a": f, "b": f @ rng.normal(size=(8, 8))})
    score = detectors.get("feature_clusters")(s).score
    assert roc_auc_score(bad, score) == (1.0 if found else 0.5)
    assert np.ptp(score) > 0 or not found
    assert (detectors.get("feature_clusters")(replace(s, features={})).score == 0).all()


def test_attribution_clusters_are_those_of_a_mixture_of_two_gaussians():
    s = signals(200)
    bad = np.random.default_rng(1).random(200) < 0.3
    vectors = s.attributions.astype(float) + 2.0 * bad[:, None]
    probs = np.full((200, 4), 1.0)
    probs[np.arange(200), s.labels] = np.where(bad, 0.1, 50.0)
    planted_signals = signals(200, attributions=vectors, logits=np.log(probs))
    score = detectors.get("attribution_clusters")(planted_signals).score
    standard = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    mixture = GaussianMixture(2, random_state=0).fit(standard)
    share = mixture.predict_proba(standard)
    assert_allclose(score, share[:, mixture.means_.sum(axis=1).argmax()], atol=1e-4)
    assert ((score > 0.5) == bad).mean() > 0.99


def clustered(bad, *, uncertain):
    """Attribution vectors in two clusters; the logits of some are uncertain."""
    rng = np.random.default_rng(0)
    n = len(bad)
    vectors = rng.random((n, 3)) + 5.0 * bad[:, None]
    labels = rng.integers(0, 4, n)
    logits = np.where(uncertain, 0.0, 5.0)[:, None] * np.eye(4)[labels]
    return signals(n, labels=labels, logits=logits, attributions=vectors)


@pytest.mark.parametrize("larger", [True, False])
def test_the_cluster_with_the_higher_mean_loss_is_bad_whatever_its_size_and_place(larger):
    far = np.arange(200) < (120 if larger else 60)
    for bad in (far, ~far):
        score = detectors.get("attribution_clusters")(clustered(far, uncertain=bad)).score
        assert ((score > 0.5) == bad).all()


def test_units_count_alike_whatever_their_scale():
    bad = np.arange(200) < 60
    s = clustered(bad, uncertain=bad)
    wide = 1e4 * np.random.default_rng(1).random((200, 1))
    s = replace(s, attributions=np.concatenate([s.attributions, wide], axis=1))
    score = detectors.get("attribution_clusters")(s, components=1).score
    assert roc_auc_score(bad, score) > 0.95


def test_below_four_samples_there_are_no_clusters():
    few = np.arange(3) < 1
    assert not detectors.get("attribution_clusters")(clustered(few, uncertain=few)).score.any()
    four = np.arange(4) < 2
    assert detectors.get("attribution_clusters")(clustered(four, uncertain=four)).score.any()


@pytest.mark.parametrize(("pairs", "found"), [(0.58, True), (0.52, False)])
def test_a_cluster_is_bad_if_it_is_less_certain_in_55_percent_of_all_pairs(
    monkeypatch, pairs, found
):
    # Uncertainties 0 … 99 in both clusters, of which one is shifted by a share of them.
    ranks = np.arange(100.0)
    shift = 100 * (1 - np.sqrt(2 - 2 * pairs))
    uncertainty = np.concatenate([ranks, ranks + shift])
    upper = np.arange(200) >= 100
    assert roc_auc_score(upper, uncertainty) == pytest.approx(pairs, abs=0.01)
    monkeypatch.setattr(
        "expunge.detection.cluster_detectors.uncertainty_above_lower_quartile",
        lambda _: uncertainty,
    )
    for sign in (1, -1):
        along = sign * np.where(upper, 3.0, -3.0)
        oriented = _towards_uncertainty(along, signals(200))
        assert (oriented == (np.where(upper, 3.0, -3.0) if found else 0)).all()


def test_only_the_earlier_half_of_the_layers_is_searched_for_clusters():
    rng = np.random.default_rng(0)
    n = 600
    labels, bad = rng.integers(0, 3, n), rng.random(n) < 0.5
    clean = rng.normal(size=(n, 8)) + np.where(bad, 1.0, 3.0)[:, None] * np.eye(3, 8)[labels]
    shifted = clean + 40 * bad[:, None] * np.eye(8)[7]
    logits = np.log(softmax(clean[:, :3], axis=1))
    for early, late, found in ((shifted, clean, True), (clean, shifted, False)):
        s = Signals(np.arange(n), labels, logits, features={"early": early, "late": late})
        assert bool(detectors.get("feature_clusters")(s).score.any()) is found
