"""Noise that depends on the image: what the two generators are, and how their noise is told."""

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
    realised,
    scaled,
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


def test_scaling_shapes_the_noise_and_not_its_rate():
    x, y, found = pixels(), labels(), {}
    for scaling in ("raw", "unit", "standardised"):
        flat = scaled(x, scaling)
        found[scaling] = realised(
            y, instance_dependent(flat, y, rate=0.4, classes=10, seed=0), classes=10
        )
        assert abs(found[scaling]["rate"] - 0.4) < 0.04
    # Of raw pixels a class goes to few others: their mean decides, the same for all.
    assert found["raw"]["top_target"] > found["standardised"]["top_target"] + 0.1
    assert found["standardised"]["top_target"] < 0.45


def test_scales_are_what_they_are_called():
    x = pixels(200)
    assert (scaled(x, "raw") == x).all()
    assert_allclose(scaled(x, "unit"), x / 255, rtol=1e-6)
    standard = scaled(x, "standardised")
    assert_allclose(standard.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    assert_allclose(standard.std(axis=(0, 2, 3)), 1, atol=1e-4)
    with pytest.raises(ConfigError, match="none of: raw, unit, standardised"):
        scaled(x, "normal")  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.9])
def test_ambiguous_labels_are_the_slow_sort(rate):
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


def test_ambiguous_labels_of_equal_doubt_are_the_first():
    probs, y = np.full((10, 5), 0.2), np.zeros(10, dtype=np.int64)
    assert_array_equal(np.flatnonzero(ambiguous(probs, y, rate=0.3)), [0, 1, 2])
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        ambiguous(probs, y, rate=1.0)
    with pytest.raises(DataError, match="10 labels"):
        ambiguous(probs[:4], y, rate=0.3)


def test_the_mean_prediction_is_that_over_the_networks_of_each_epoch():
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
    found = realised(truth, given, 3)
    assert found["rate"] == pytest.approx(3 / 7)
    assert found["transition"] == wanted
    assert found["top_target"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["worst_class"] == 0.5
    assert realised(truth, truth, 3)["top_target"] is None
