"""Partitions with planted noise, and reviewers who know the truth, for the tests of the review."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import expit

from expunge.records import Partition
from expunge.review import Answer, Item


def planted(seed: int = 0, n: int = 2000, shift: float = -1.5) -> tuple[Partition, np.ndarray]:
    """A partition with the right order and a rate that is far too low; and the true labels."""
    rng = np.random.default_rng(seed)
    evidence = rng.standard_normal(n) * 2.5 - 1.5
    wrong = rng.random(n) < expit(evidence)
    labels = rng.integers(0, 4, n)
    p = expit(evidence + shift)
    true = np.where(wrong, (labels + 1) % 4, labels)
    partition = Partition(
        ids=np.arange(n) * 3,
        labels=labels,
        p_noisy=p,
        p_label_fault=p,
        p_input_fault=np.zeros(n),
        suggested_label=np.where(p > 0.02, (labels + 1) % 4, labels),
        suggested_probability=np.maximum(p, 0.3),
        threshold=0.5,
        noise_rate=(float(p.mean()), 0.0, 0.2),
        evidence={"label_evidence": evidence},
    )
    return partition, true


def answers_of(
    items: Iterable[Item],
    partition: Partition,
    true: np.ndarray,
    *,
    mistakes: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """Answers from the true labels; a mistake calls a right label wrong or a wrong one right."""
    rng, row = np.random.default_rng(seed), {int(i): k for k, i in enumerate(partition.ids)}
    found = []
    for item in items:
        k = row[item.id]
        given, label = int(partition.labels[k]), int(true[k])
        if rng.random() < mistakes:
            label = (given + 1) % 4 if label == given else given
        verdict = "right" if label == given else "wrong"
        found.append(Answer(item.id, verdict, label, "a", repeat=item.repeat, draw=item.draw))
    return found
