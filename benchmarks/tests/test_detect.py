"""Rows of the detection benchmark."""

from __future__ import annotations

import json

import numpy as np
import pytest

from expunge.demo.noise import GroundTruth
from expunge.errors import ConfigError
from expunge.records import Partition
from expunge_bench import detect
from expunge_bench.datasets import Setting, grid
from expunge_bench.peers import DetectorOutput

pytestmark = pytest.mark.usefixtures("few_trees")


def test_every_measure_of_detection_equals_counting_by_hand():
    truth = GroundTruth(
        labels=np.array([0, 1, 2, 0, 1]),
        label_fault=np.array([True, False, False, True, False]),
        input_fault=np.array([False, True, False, False, False]),
    )
    p_label = np.array([0.9, 0.8, 0.1, 0.2, 0.0])
    p_input = np.array([0.0, 0.7, 0.0, 0.1, 0.0])
    p = 1 - (1 - p_label) * (1 - p_input)
    suggested = np.array([0, 0, 2, 0, 1])
    split = Partition(
        np.arange(5), np.array([1, 1, 2, 1, 1]), p, p_label, p_input, suggested,
        np.ones(5), 0.5, (0.5, 0.4, 0.6),
    )  # fmt: skip
    found = detect.measure_detection(DetectorOutput(p, p > 0.5, 0.5, split, suggested), truth)
    assert found["auroc"] == 1
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))
    assert (found["max_f1"], found["miss_rate"]) == (1, 0)
    assert found["fault_type_accuracy"] == 0.5  # the second looks more like a wrong label
    assert found["corrected_label_accuracy"] == 0.8
    assert (
        found["noise_rate"],
        found["estimated_noise_rate"],
        found["flagged_rate"],
    ) == (0.6, 0.5, 0.4)
    assert (found["low"], found["high"], found["holds"]) == (0.4, 0.6, 1.0)


def test_without_noise_there_is_no_auroc_but_a_flagged_rate():
    truth = GroundTruth(np.arange(4), np.zeros(4, bool), np.zeros(4, bool))
    found = detect.measure_detection(
        DetectorOutput(np.arange(4.0), np.array([1, 0, 0, 0], bool), 0.2), truth
    )
    assert found["auroc"] is None
    assert found["flagged_rate"] == 0.25


def test_each_row_is_computed_once(data, tmp_path, monkeypatch):
    settings = grid(data, noises=["human_random1", "gaussian"], states=["regularised"], n=100)
    rows = detect.bench(data, settings=settings, names=("loss", "expunge-fast"), out=tmp_path)
    assert [(r["noise"], r["detector"]) for r in rows] == [
        ("human_random1", "loss"),
        ("human_random1", "expunge-fast"),
        ("gaussian", "loss"),
        ("gaussian", "expunge-fast"),
    ]
    fields = (
        "data n noise rate state detector seed auroc auprc f1 max_f1 miss_rate ece noise_rate "
        "estimated_noise_rate fault_type_accuracy corrected_label_accuracy seconds passes "
        "peak_bytes"
    )
    assert set(fields.split()) <= set(rows[0])
    assert rows[0]["seconds"] > 0
    json.dumps(rows)
    monkeypatch.setattr(detect, "run_detector", None)
    assert (
        detect.bench(data, settings=settings, names=("loss", "expunge-fast"), out=tmp_path) == rows
    )
    assert "| gaussian 0.5 | regularised | loss | 1 |" in (tmp_path / "table.md").read_text()


def test_unknown_detectors_are_refused_before_any_training(data, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cleanlab'"):
        detect.bench(data, settings=[Setting("none")], names=("cleanlap",), out=tmp_path)
    assert not list(tmp_path.iterdir())
