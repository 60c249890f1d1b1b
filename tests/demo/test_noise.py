"""Synthetic noise has the requested rate and size, and its ground truth is right."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from expunge.demo.noise import GroundTruth, gaussian_inputs, mild_inputs, wrong_labels
from expunge.errors import ConfigError


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.99])
def test_exactly_the_requested_fraction_of_labels_is_wrong(noise, rate):
    labels = np.random.default_rng(0).integers(0, 7, 1000)
    noisy = wrong_labels(labels, rate=rate, noise=noise, classes=7, seed=0)
    wrong = noisy != labels
    assert wrong.sum() == round(1000 * rate)
    shift = (noisy - labels)[wrong] % 7
    if noise == "pair":
        assert (shift == 1).all()
    elif rate:
        assert_allclose(np.bincount(shift, minlength=7)[1:] / wrong.sum(), 1 / 6, atol=0.06)
    assert_array_equal(noisy, wrong_labels(labels, rate=rate, noise=noise, classes=7, seed=0))


def test_gaussian_noise_is_clipped_to_the_unit_interval():
    x = np.random.default_rng(0).random((50, 1, 8, 8)).astype(np.float32)
    corrupted, fault = gaussian_inputs(x, rate=0.4, sigma=4.5, seed=0)
    assert fault.sum() == 20
    assert_array_equal(corrupted[~fault], x[~fault])
    assert (corrupted[fault].min(), corrupted[fault].max()) == (0, 1)
    # With so large a σ nearly every pixel is clipped.
    assert np.isin(corrupted[fault], [0, 1]).mean() > 0.8
    assert corrupted.dtype == x.dtype


def test_mild_corruption_changes_exactly_the_requested_fraction_of_images():
    x = np.random.default_rng(0).random((90, 3, 16, 16)).astype(np.float32)
    corrupted, fault = mild_inputs(x, rate=1 / 3, seed=0)
    assert fault.sum() == 30
    assert_array_equal(corrupted[~fault], x[~fault])
    assert (np.abs(corrupted - x).max(axis=(1, 2, 3))[fault] > 0.05).all()
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    contrast = corrupted.std(axis=(1, 2, 3))[fault] / x.std(axis=(1, 2, 3))[fault]
    assert (np.isclose(contrast, 0.2, atol=1e-3)).sum() == 10  # a third of 30


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_noise_rates_are_refused(rate):
    with pytest.raises(ConfigError, match=r"the noise rate must lie in \[0, 1\), not"):
        wrong_labels(np.arange(10), rate=rate, noise="pair", classes=10, seed=0)


def test_a_sample_is_noisy_by_its_label_or_its_input():
    label, corrupted = np.array([True, False, False]), np.array([False, True, False])
    truth = GroundTruth(np.arange(3), label, corrupted)
    assert truth.noisy.tolist() == [True, True, False]
    found = truth.detection_metrics(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    assert found["auroc"] == 0.5
    assert found["f1"] == 0.5
    assert found["max_f1"] == pytest.approx(0.8)
    clean = GroundTruth(np.arange(3), *np.zeros((2, 3), dtype=bool))
    assert clean.detection_metrics(np.arange(3.0), label) == {}
