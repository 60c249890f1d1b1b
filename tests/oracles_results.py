"""A small planted repair: every record filled in, any part replaced by a keyword."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from expunge.records import (
    Baseline,
    Component,
    Decision,
    Evaluation,
    Fit,
    Metric,
    NeuronRanking,
    Partition,
    PrunePlan,
    RepairResult,
    Scores,
    Size,
)

CLASSES = ("zero", "one", "two", "three")


def make_fit(kind: str = "label", **changes: Any) -> Fit:
    parts = (Component(0.7, -0.6, 0.4, False), Component(0.3, 1.6, 0.6, True))
    bic = {1: 900.0, 2: 640.5, 3: 652.25}
    return replace(Fit(kind, parts, bic, separation=4.2), **changes)


def make_partition(
    n: int = 200, c: int = 4, rate: float = 0.3, seed: int = 0, **changes: Any
) -> Partition:
    """``rate`` of the samples have wrong labels and evidence that says so."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    bad = rng.random(n) < rate
    z = np.where(bad, rng.normal(1.6, 0.6, n), rng.normal(-0.6, 0.4, n))
    p = 1 / (1 + np.exp(-5 * (z - 0.4)))
    made = Partition(
        ids=np.arange(n) + 1000,
        labels=labels,
        p_noisy=p,
        p_label_fault=p,
        p_input_fault=np.zeros(n),
        suggested_label=np.where(bad, (labels + 1 + rng.integers(0, c - 1, n)) % c, labels),
        suggested_probability=rng.uniform(0.5, 1.0, n),
        threshold=0.5,
        noise_rate=(rate, max(rate - 0.05, 0.0), min(rate + 0.05, 1.0)),
        fits=(make_fit("label"), make_fit("input", separation=2.0)),
        evidence={"label_evidence": 2.0 + 1.5 * z, "input_evidence": rng.normal(2.0, 1.5, n)},
    )
    return replace(made, **changes)


def make_evaluation(
    accuracy: float, *, n: int = 100, half: float = 0.05, classes: tuple[str, ...] = CLASSES
) -> Evaluation:
    correct = np.arange(n) < round(accuracy * n)
    low, high = max(round(accuracy - half, 9), 0.0), min(round(accuracy + half, 9), 1.0)
    return Evaluation(
        ids=np.arange(n),
        correct=correct,
        metrics={"accuracy": Metric(accuracy, low, high, n), "ece": Metric(0.12, 0.1, 0.15, n)},
        per_class=dict.fromkeys(classes, accuracy),
    )


def make_baseline(accuracy: float, gain: float, half: float = 0.04) -> Baseline:
    difference = Metric(gain, gain - half, gain + half, 100)
    return Baseline(make_evaluation(accuracy), 4.5, Size(9000, 80_000), difference)


def make_ranking(seed: int = 0) -> NeuronRanking:
    rng = np.random.default_rng(seed)
    effect = np.concatenate([rng.normal(0.02, 0.05, 24), rng.normal(0.1, 0.1, 16)])
    return NeuronRanking(
        layer=np.array(["features.3"] * 24 + ["head.0"] * 16),
        unit=np.concatenate([np.arange(24), np.arange(16)]),
        effect=effect,
        stderr=rng.uniform(0.005, 0.02, 40),
        q_value=np.clip(0.4 - effect, 0.001, 1.0),
        groups={"features.3": "features.3", "head.0": "head.0"},
        explained={"features.3": 0.12, "head.0": 0.318},
    )


def make_result(**changes: Any) -> RepairResult:
    partition = changes.pop("partition", None) or make_partition()
    n, c = len(partition.ids), len(changes.get("classes", CLASSES))
    scores = Scores(
        ids=partition.ids,
        labels=partition.labels,
        values={"loss": np.zeros(n)},
        kinds={"loss": "label"},
        class_probs=np.full((n, c), 1 / c),
    )
    made = RepairResult(
        model=nn.Linear(2, 2),
        recipe="default",
        seed=3,
        config={"prune": {"fraction": 0.2}},
        scores=scores,
        partition=partition,
        ranking=make_ranking(),
        plan=PrunePlan({"head.0": (1, 4, 5), "features.3": (0, 2)}, requested=5),
        before=make_evaluation(0.6),
        after=make_evaluation(0.85),
        gain=Metric(0.25, 0.18, 0.31, 100),
        baselines={
            "random-units": make_baseline(0.75, 0.1),
            "finetune-only": make_baseline(0.8, 0.05, 0.06),
        },
        size_before=Size(12_000, 100_000),
        size_after=Size(9_000, 80_000),
        seconds={"score": 3.21, "partition": 0.4, "tune": 64.0, "compare": 200.0},
        flags=(),
        run="runs/first",
        classes=CLASSES,
        decision=Decision("keep", "nothing was held out"),
    )
    return replace(made, **changes)
