"""How the probabilities of faults become a partition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from expunge.detection.partitioners import build_partition, partitioners, with_input_faults
from expunge.detection.thresholds import fdr_threshold
from expunge.errors import ConfigError
from oracles_detection import scores


def test_a_label_that_is_as_well_supported_as_another_stays():
    e = np.array([0.5, 1.0, 0.5])
    probs = np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    s = scores([e], labels=np.array([1, 1, 1]), class_probs=probs)
    made = partitioners.get("posterior")(s, seed=0)
    assert made.suggested_label.tolist() == [1, 1, 1]
    assert made.suggested_probability.tolist() == [0.5, 0.0, 0.5]


def test_external_posteriors_are_probabilities_and_the_largest_counts():
    a, b = np.array([0.1, 0.9, 0.0]), np.array([0.4, 0.2, 0.0])
    made = partitioners.get("posterior")(scores([a, b], [b]), seed=0)
    assert made.p_label_fault.tolist() == [0.4, 0.9, 0.0]
    assert_allclose(made.p_noisy, [1 - 0.6 * 0.6, 1 - 0.1 * 0.8, 0])
    for wrong in (np.array([0.0, 1.01, 0.0]), np.array([0.0, -0.01, 0.0])):
        with pytest.raises(ConfigError, match=r"takes scores in \[0, 1\]\n.*use .*'mixture'"):
            partitioners.get("posterior")(scores([a, wrong]), seed=0)


def test_a_threshold_for_false_discoveries_is_that_of_labels_and_inputs_together():
    n, rng = 400, np.random.default_rng(0)
    label = np.where(np.arange(n) < 40, 0.6, 0.05)
    bad = np.where(np.arange(n) >= 300, 1.0, rng.random(n) * 0.02)
    labels, inputs = (
        partitioners.get("posterior")(s, seed=0) for s in (scores([label]), scores(inputs=[bad]))
    )
    both = with_input_faults(labels, inputs, fdr=0.05)
    assert both.threshold == fdr_threshold(both.p_noisy, 0.05)
    assert both.flagged[300:].all()
    assert (1 - both.p_noisy[both.flagged]).mean() <= 0.05
    assert with_input_faults(labels, inputs).threshold == labels.threshold


def test_a_rate_has_an_interval_of_1_96_standard_errors_and_trusted_samples_are_clean():
    s = scores([np.zeros(4)], trusted=np.array([True, False, False, False]))
    faults = {"label": np.array([0.9, 0.5, 0.0, 0.0]), "input": np.array([0.9, 0.5, 0.1, 0.0])}
    made = build_partition(s, faults, threshold=0.5, rate_stderr=0.02)
    assert_allclose(made.p_noisy, [0, 0.75, 0.1, 0])
    assert_allclose(made.p_label_fault, [0, 0.5, 0, 0])
    assert_allclose(made.noise_rate, (0.2125, 0.2125 - 0.0392, 0.2125 + 0.0392))
    assert build_partition(s, faults, threshold=0.5, rate_stderr=1.0).noise_rate[1:] == (0.0, 1.0)
    assert made.flagged.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        ((0.5, 0.45, 0.62), (0.36, 0.2, 0.4), (0.6, 0.45, 0.62)),
        ((0.5, 0.3, 0.9), (0.36, 0.31, 0.38), (0.6, 0.55, 0.62)),
        ((0.5, 0.45, 0.55), (0.36, 0.35, 0.37), (0.6, 0.59, 0.6)),
    ],
)
def test_the_rate_lies_in_both_intervals_of_the_same_samples(first, later, expected):
    s = scores([np.zeros(4)], ids=np.arange(4))
    zeros, some = np.zeros(4), np.array([0.2, 0.2, 0.2, 0.2])
    labels = build_partition(s, {"label": some, "input": some}, threshold=0.5, rate_stderr=0.0)
    half = {"label": zeros, "input": np.full(4, 0.5)}
    inputs = build_partition(s, half, threshold=0.9, rate_stderr=0.0)
    both = with_input_faults(replace(labels, noise_rate=later), replace(inputs, noise_rate=first))
    assert_allclose(both.p_noisy, 1 - 0.8 * 0.5)
    assert_allclose(both.p_label_fault, 0.2)
    assert_allclose(both.noise_rate, expected)


def test_the_interval_of_external_posteriors_is_that_of_independent_samples():
    p = np.tile([0.1, 0.5, 0.9, 0.0], 100)
    rate, low, high = partitioners.get("posterior")(scores([p]), seed=0).noise_rate
    half = 1.96 * np.sqrt((p * (1 - p)).sum()) / 400
    assert_allclose((rate, low, high), (p.mean(), p.mean() - half, p.mean() + half))
