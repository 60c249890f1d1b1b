"""The demo: what it corrupts, and that the repair never receives the ground truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from expunge import pipeline
from expunge._core.progress import silent
from expunge.config import DEFAULT_BASELINES
from expunge.data import Samples
from expunge.demo import digits
from expunge.demo.digits import detection_metrics, noisy_digits_dataset, run_demo
from oracles_results import make_result


@pytest.mark.parametrize(
    ("kind", "labels", "inputs"), [("labels", 0.4, 0), ("inputs", 0, 0.4), ("both", 0.2, 0.2)]
)
def test_each_kind_has_its_rate(kind, labels, inputs):
    truth = noisy_digits_dataset(kind=kind, rate=0.4).truth
    assert truth.label_fault.mean() == pytest.approx(labels, abs=0.001)
    assert truth.input_fault.mean() == pytest.approx(inputs, abs=0.001)


def test_test_digits_are_clean_and_not_trained_on():
    noisy, clean = noisy_digits_dataset(rate=0.4), noisy_digits_dataset(rate=0.0)
    assert_array_equal(noisy.test.labels, clean.test.labels)
    assert not set(noisy.test.ids) & set(noisy.train.ids)
    assert_array_equal(noisy.truth.labels, clean.train.labels)


def test_the_repair_receives_noisy_samples_and_no_ground_truth(monkeypatch):
    received = []

    def train(model, samples, *_, **__):
        received.append(samples)
        return pipeline.Trained(model, 0.0)

    def repair(model, train, test, **settings):
        received.extend([train, test])
        assert {type(s) for s in settings.values()} <= {
            *(str, int, float, bool, tuple, type(None)),
            type(silent),
        }
        raise KeyboardInterrupt

    monkeypatch.setattr(digits.pipeline, "train", train)
    monkeypatch.setattr(digits.pipeline, "repair", repair)
    with pytest.raises(KeyboardInterrupt):
        run_demo(rate=0.4)
    assert all(isinstance(samples, Samples) for samples in received)
    truth = noisy_digits_dataset(rate=0.4).truth
    for samples in received[:2]:
        assert_array_equal(samples.labels != truth.labels, truth.label_fault)


def test_baselines_of_the_demo_include_the_long_retraining():
    assert {*DEFAULT_BASELINES, "retrain-filtered-3x"} == set(digits.BASELINES)


def test_detection_metrics_compare_the_partition_with_the_ground_truth():
    result = make_result()
    partition, n = result.partition, len(result.partition.p_noisy)
    truth = replace(
        noisy_digits_dataset().truth,
        labels=partition.suggested_label.copy(),
        label_fault=partition.flagged.copy(),
        input_fault=np.zeros(n, dtype=bool),
    )
    found = detection_metrics(result, truth)
    assert found["f1"] == 1
    assert found["corrected_label_accuracy"] == 1
    assert found["noise_rate"] == partition.flagged.mean()
