"""Label detectors on outputs, against slow loops."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from expunge.detection.class_arithmetic import label_margin
from expunge.detection.detectors import detectors
from expunge.detection.label_detectors import augmented_margin
from oracles_detection import signals


def test_loss_margin_and_error_norm_agree_with_slow_loops():
    s = signals()
    loss, margin, el2n, influence, view = [], [], [], [], []
    for z, y, h, v in zip(
        s.logits.astype(float),
        s.labels,
        s.per_sample["head_input_norm"],
        s.augmented_probs,
        strict=True,
    ):
        p = np.exp(z) / np.exp(z).sum()
        loss.append(-np.log(p[y]))
        margin.append(max(z[c] for c in range(4) if c != y) - z[y])
        error = np.array([p[c] - (c == y) for c in range(4)])
        el2n.append(np.sqrt((error**2).sum()))
        # Gradient of the loss by the last layer's weights and biases.
        influence.append(np.sqrt((np.outer(error, h) ** 2).sum() + (error**2).sum()))
        q = (20 * v.astype(float) + 0.25) / 21
        view.append(np.log(max(q[c] for c in range(4) if c != y) / q[y]))
    expected = {
        "loss": loss,
        "margin": margin,
        "el2n": el2n,
        "self_influence": influence,
        "augmented_margin": view,
        "augmented_loss": s.augmented_loss,
        "attribution": -s.per_sample["attribution"],
    }
    for name, values in expected.items():
        assert_allclose(detectors.get(name)(s).score, values, rtol=1e-6, err_msg=name)


def test_views_of_a_network_that_memorised_are_no_class_probabilities():
    views = signals().augmented_probs
    agreeing = np.eye(4)[signals().labels] * 9.0
    assert (views.argmax(axis=1) == signals().labels).mean() < 0.8
    assert augmented_margin(signals(logits=agreeing)).class_probs == ()
    assert len(augmented_margin(signals(logits=np.log(views))).class_probs) == 1


def test_a_label_margin_compares_with_the_best_other():
    values = np.array([[1.0, 5.0, 3.0], [2.0, 2.0, 2.0]])
    assert label_margin(values, np.array([1, 0])).tolist() == [-2.0, 0.0]
    assert values[0, 1] == 5.0
