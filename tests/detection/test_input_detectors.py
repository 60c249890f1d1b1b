"""Input detectors: what they compute and what they flag."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.distance import mahalanobis
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from expunge._core.rng import subsample
from expunge.detection.detectors import detectors
from expunge.detection.lda import layer_posteriors, loo_ridge_predictions, squared_mahalanobis
from expunge.detection.neighbours import neighbour_mean
from expunge.detection.uncertainty import (
    uncertainty_above_lower_quartile,
    uncertainty_above_quantile,
)
from expunge.records import Signals
from oracles_detection import signals


def test_feature_distance_agrees_with_scipy():
    s = signals()
    expected = []
    for f in (v.astype(float) for v in s.features.values()):
        covariance = np.cov(f.T, bias=True)
        covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        inverse, mean = np.linalg.inv(covariance), f.mean(axis=0)
        expected.append([2 * np.log(mahalanobis(row, mean, inverse)) for row in f])
    made = detectors.get("feature_distance")(s).score
    assert_allclose(made, np.mean(expected, axis=0), rtol=1e-6)


def test_bad_inputs_that_are_common_and_alike_share_their_uncertainty():
    rng = np.random.default_rng(0)
    n = 600
    labels, bad = rng.integers(0, 3, n), rng.random(n) < 0.5
    # They are near the middle, where the features say little of the class, and nearer each other.
    centres = np.concatenate([3 * np.eye(3), np.zeros((3, 5))], axis=1)[labels]
    f = rng.normal(size=(n, 8)) + centres
    f[bad] = 0.8 * rng.normal(size=(bad.sum(), 8)) + [0, 0, 0, 2, 2, 0, 0, 0]
    logits = np.log(softmax(f[:, :3], axis=1))
    wrong = rng.random(n) < 0.3
    given = np.where(wrong, rng.integers(0, 3, n), labels)
    s = Signals(np.arange(n), given, logits, features={"a": f, "b": f @ rng.normal(size=(8, 8))})
    found = detectors.get("local_uncertainty")(s).score
    assert roc_auc_score(bad, found) > 0.97
    assert abs(roc_auc_score(wrong, found) - 0.5) < 0.1
    assert (detectors.get("local_uncertainty")(replace(s, features={})).score == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_mass_is_compared_within_the_predicted_class_and_follows_the_uncertainty(sign):
    rng = np.random.default_rng(0)
    n = 300
    predicted = rng.integers(0, 3, n)
    bad = rng.random(n) < 0.3
    logits = np.eye(3)[predicted] * np.where(bad, 1.0, 5.0)[:, None]
    # Classes differ in their mass far more than bad samples do.
    log_mass = 10 * predicted + sign * 2 * bad + 0.1 * rng.standard_normal(n)
    columns = {**signals(n, 3).per_sample, "attribution_mass": np.exp(log_mass)}
    s = signals(n, 3, logits=logits, per_sample=columns)
    score = detectors.get("attribution_mass")(s).score
    assert roc_auc_score(bad, score) > 0.99
    centred = log_mass.copy()
    for k in range(3):
        centred[predicted == k] -= np.median(log_mass[predicted == k])
    expected = sign * centred / np.median(np.abs(centred))
    assert_allclose(score, expected, rtol=1e-5, atol=1e-6)


def test_uncertainty_is_compared_with_a_quantile_of_the_predicted_class():
    s = signals(60)
    predicted = s.logits.argmax(axis=1)
    uncertainty = np.mean([-np.log(p.max(axis=1)) for p in layer_posteriors(s)], axis=0)
    for q, made in (
        (0.9, uncertainty_above_quantile(s, 0.9)),
        (0.25, uncertainty_above_lower_quartile(s)),
    ):
        limits = {c: np.quantile(uncertainty[predicted == c], q) for c in np.unique(predicted)}
        assert_allclose(made, [u - limits[c] for u, c in zip(uncertainty, predicted, strict=True)])


def test_local_uncertainty_has_the_values_of_the_regression_and_the_order_of_the_neighbours():
    s = signals(120)
    features = list(s.features.values())
    above_median = uncertainty_above_quantile(s, 0.5)
    above_quartile = uncertainty_above_quantile(s, 0.25)
    predicted = np.mean(
        [p / p.std() for p in (loo_ridge_predictions(f, above_median) for f in features)], axis=0
    )
    rows = subsample(120, 100, 0, "neighbours")
    # Of two layers the first is the earlier half.
    near = neighbour_mean(features[0], above_quartile, rows, k=7, components=4)
    score = detectors.get("local_uncertainty")(
        s, k=7, components=4, max_reference_samples=100
    ).score
    assert_allclose(np.sort(score), np.sort(predicted))
    assert (np.argsort(score) == np.argsort(near, kind="stable")).all()


def test_where_half_of_a_class_is_bad_the_lower_quartile_is_a_clean_sample():
    rng = np.random.default_rng(0)
    n = 400
    labels, bad = rng.integers(0, 2, n), rng.random(n) < 0.5
    # All of class 0 is clean, most of class 1 is bad.
    bad &= (labels == 1) | (rng.random(n) < 0.05)
    x = rng.normal(size=(n, 6)) + 5 * np.eye(2, 6)[labels] * ~bad[:, None]
    logits = 8 * np.eye(2)[labels]
    s = Signals(np.arange(n), labels, logits, features={"layer": x})
    above = uncertainty_above_lower_quartile(s)
    assert np.median(above[bad]) > np.median(above[~bad])


@pytest.mark.parametrize(("share", "turned"), [(0.95, True), (0.8, False)])
def test_the_distance_changes_its_sign_if_nine_pairs_of_ten_say_so(monkeypatch, share, turned):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3)) * np.linspace(0.1, 3, 200)[:, None]
    s = signals(200, features={"layer": x})
    plain = np.log(squared_mahalanobis(x))
    order = np.argsort(plain)
    uncertainty = np.full(200, 0.5)
    # So many of the 20 nearest are less certain than all of the 20 farthest.
    uncertainty[order[:20]] = np.where(np.arange(20) < share * 20, 1.0, 0.0)
    monkeypatch.setattr(
        "expunge.detection.input_detectors.class_uncertainty", lambda _: uncertainty
    )
    flipped = detectors.get("feature_distance")(s).score
    assert_allclose(flipped, -plain if turned else plain)
