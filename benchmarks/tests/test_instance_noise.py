"""The two generators of image-dependent noise, and the statistics of noise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax

from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets
from expunge_bench.instance_noise import (
    ambiguous,
    instance_dependent,
    mean_prediction,
    noise_statistics,
    scale_pixels,
    transition_matrix,
)
from oracles_digits import network, noisy


def pixels(n=2000, seed=0):
    """Images of one scene each: bright ones and dark ones, as photographs are."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(40, 215, (n, 1, 1, 1))
    return np.clip(base + rng.normal(0, 40, (n, 3, 8, 8)), 0, 255).astype(np.uint8)


def labels(n=2000, classes=10):
    return np.random.default_rng(1).integers(0, classes, n)


def test_scaling_changes_the_transitions_but_not_the_rate():
    x, y, found = pixels(), labels(), {}
    for scaling in ("raw", "unit", "standardised"):
        flat = scale_pixels(x, scaling)
        found[scaling] = noise_statistics(
            y, instance_dependent(flat, y, rate=0.4, classes=10, seed=0), classes=10
        )
        assert abs(found[scaling]["rate"] - 0.4) < 0.04
    # Of raw pixels a class goes to few others: their mean decides, the same for all.
    assert found["raw"]["commonest_target"] > found["standardised"]["commonest_target"] + 0.1
    assert found["standardised"]["commonest_target"] < 0.45


def test_scalings_are_what_their_names_say():
    x = pixels(200)
    assert (scale_pixels(x, "raw") == x).all()
    assert_allclose(scale_pixels(x, "unit"), x / 255, rtol=1e-6)
    standard = scale_pixels(x, "standardised")
    assert_allclose(standard.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    assert_allclose(standard.std(axis=(0, 2, 3)), 1, atol=1e-4)
    with pytest.raises(ConfigError, match="among raw, unit, standardised"):
        scale_pixels(x, "normal")  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.9])
def test_ambiguous_labels_equal_a_slow_sort(rate):
    rng = np.random.default_rng(0)
    probs, y = rng.dirichlet(np.ones(4), 40), rng.integers(0, 4, 40)
    best = sorted(
        (-max(p for c, p in enumerate(row) if c != y[i]), i) for i, row in enumerate(probs)
    )
    wanted = y.copy()
    for _, i in best[: int(40 * rate)]:
        wanted[i] = max((p, -c) for c, p in enumerate(probs[i]) if c != y[i])[1] * -1
    noisy_labels = ambiguous(probs, y, rate=rate)
    assert_array_equal(noisy_labels, wanted)
    assert (noisy_labels != y).sum() == int(40 * rate)


def test_ties_of_ambiguity_go_to_the_first_rows():
    probs, y = np.full((10, 5), 0.2), np.zeros(10, dtype=np.int64)
    assert_array_equal(np.flatnonzero(ambiguous(probs, y, rate=0.3)), [0, 1, 2])
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        ambiguous(probs, y, rate=1.0)
    with pytest.raises(DataError, match="for 10 labels"):
        ambiguous(probs[:4], y, rate=0.3)


def test_the_mean_prediction_averages_the_networks_of_all_epochs():
    data, config = noisy(120, rate=0.0), TuneConfig(targets="all", epochs=2, lr=0.2)
    found = mean_prediction(network(), data, epochs=2, seed=3)
    steps, seen = [], []

    class Keep:
        def load(self):
            return None

        def save(self, epoch, tensors):
            steps.append({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})

    tune(network(), data, build_targets(data, None, config), config, seed=3, checkpoint=Keep())
    for state in steps:
        model = network()
        model.load_state_dict(state)
        seen.append(softmax(collect(model, data).logits.astype(np.float64), axis=1))
    assert_allclose(found, np.mean(seen, axis=0), atol=1e-5)  # digits have no views


def test_the_transition_matrix_is_counted():
    truth, given = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 2, 1, 0, 2])
    wanted = [[0.5, 0.25, 0.25], [0.5, 0.5, 0], [0, 0, 1]]
    assert_allclose(transition_matrix(truth, given, 3), wanted)
    found = noise_statistics(truth, given, 3)
    assert found["rate"] == pytest.approx(3 / 7)
    assert found["transition"] == wanted
    assert found["commonest_target"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["worst_class"] == 0.5
    assert noise_statistics(truth, truth, 3)["commonest_target"] is None


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_instance_dependent_labels_are_wrong_at_the_rate_and_depend_on_the_input(rate):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 4000)
    x = rng.standard_normal((4000, 64)).astype(np.float32)
    noisy = instance_dependent(x, labels, rate=rate, classes=5, seed=1)
    assert abs((noisy != labels).mean() - rate) < 0.03
    assert_array_equal(noisy, instance_dependent(x, labels, rate=rate, classes=5, seed=1))
    # An image and its double go the same way when both go wrong; drawn labels would in a quarter.
    twice = instance_dependent(np.tile(x, (2, 1)), np.tile(labels, 2), rate=rate, classes=5, seed=1)
    first, second = twice[:4000], twice[4000:]
    both = (first != labels) & (second != labels)
    assert (first == second)[both].mean() > 0.8
