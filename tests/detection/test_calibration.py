"""Exponents and transitions fitted to labels: closed forms, slow loops, and cleanlab."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax

from expunge.detection.calibration import (
    calibrate,
    confident_joint,
    log_likelihood_gain,
    sharpening_exponent,
    tempered,
)


def drawn_labels(probs, seed=0):
    draw = np.random.default_rng(seed).random((len(probs), 1))
    return np.minimum((probs.cumsum(axis=1) < draw).sum(axis=1), probs.shape[1] - 1)


def some_probs(n=4000, c=4, spread=2.0, seed=0):
    return softmax(spread * np.random.default_rng(seed).standard_normal((n, c)), axis=1)


def test_calibration_finds_the_exponent_that_labels_were_drawn_with():
    probs = some_probs()
    blunted = softmax(0.5 * np.log(probs), axis=1)
    found, exponent = calibrate(blunted, drawn_labels(probs))
    assert_allclose(exponent, 2.0, rtol=0.1)
    assert_allclose(found, probs, atol=0.05)


def test_gain_of_frequencies_is_zero_and_of_certainty_their_entropy():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    share = np.bincount(labels) / 60
    assert_allclose(log_likelihood_gain(np.tile(share, (60, 1)), labels), 0.0, atol=1e-12)
    assert_allclose(
        log_likelihood_gain(np.eye(3)[labels], labels), -(share * np.log(share)).sum(), rtol=1e-9
    )


def test_confident_rate_is_that_of_cleanlab():
    count = pytest.importorskip("cleanlab.count")
    probs = some_probs(spread=3.0)
    labels = drawn_labels(probs)
    given = np.where(np.random.default_rng(1).random(4000) < 0.2, (labels + 1) % 4, labels)
    joint = count.estimate_joint(given, probs)
    _, rate = confident_joint(probs, given)
    assert_allclose(rate, 1 - np.trace(joint), atol=0.02)


def test_confident_joint_sees_pair_flips():
    right = np.random.default_rng(0).integers(0, 4, 4000)
    given = np.where(np.random.default_rng(1).random(4000) < 0.3, (right + 1) % 4, right)
    probs = 0.9 * np.eye(4)[right] + 0.1 / 4
    transition, rate = confident_joint(probs, given)
    assert_allclose(transition.sum(axis=1), 1.0)
    assert_allclose(rate, (given != right).mean(), atol=0.01)
    assert_allclose(np.diag(np.roll(transition, -1, axis=1)), 0.3, atol=0.03)


def test_labels_without_noise_need_no_sharpening():
    probs = some_probs()
    exponent = sharpening_exponent(probs, drawn_labels(probs), np.eye(4))
    assert_allclose(exponent, 1.0, rtol=0.1)


def test_what_noise_leaves_open_is_sharpened():
    right = some_probs(spread=6.0)
    noise = 0.7 * np.eye(4) + 0.1
    seen = right @ noise
    exponent = sharpening_exponent(seen, drawn_labels(seen), noise)
    pi = tempered(seen, exponent)
    assert exponent > 1.5
    assert np.abs(pi - right).mean() < np.abs(seen - right).mean() / 2
