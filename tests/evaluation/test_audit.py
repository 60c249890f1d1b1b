"""The audit of what a repaired model keeps of the flagged samples, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data import from_arrays
from expunge.errors import DataError
from expunge.evaluation import audit as audits
from expunge.evaluation.audit import audit
from expunge.evaluation.metrics import confidence_auroc
from expunge.records import Partition


class Table(nn.Module):
    """Logits that are read from the input: the model says whatever the test wants."""

    def __init__(self, first: int, scale: float = 1.0) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 2, bias=False), scale
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.weight[0, first], self.layer.weight[1, first + 1] = scale, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def partition(ids, labels, flagged) -> Partition:
    p = np.asarray(flagged, dtype=float)
    zeros = np.zeros(len(p))
    return Partition(ids, labels, p, p, zeros, labels, zeros, 0.5, (0.1, 0.0, 0.2))


# What the model predicts before (columns 0 and 1) and after (columns 2 and 3).
BEFORE = np.array([0, 0, 0, 1, 1, 0, 1, 0])
AFTER = np.array([0, 1, 1, 1, 0, 0, 1, 0])
LABELS = np.array([0, 0, 0, 0, 1, 0, 1, 0])
FLAGGED = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
X = np.hstack([np.eye(2)[BEFORE], np.eye(2)[AFTER]]).astype(np.float32)
IDS = np.arange(8) * 3


def test_the_audit_counts_reproduced_labels_of_flagged_and_changed_predictions_of_kept_samples():
    data = from_arrays(X, LABELS, ids=IDS, classes=("a", "b"))
    order = np.random.default_rng(0).permutation(8)
    split = partition(IDS[order], LABELS[order], FLAGGED[order])
    found = audit(Table(0), Table(2), data, split)
    assert found.samples == 4
    assert found.predicted == (0.75, 0.25)
    assert found.churn == 0.25  # one of the four kept samples, two of the flagged
    assert found.membership_auroc is None


def test_membership_compares_the_confidence_on_flagged_and_unseen_samples():
    seen = from_arrays(X, LABELS, ids=IDS, classes=("a", "b"))
    unseen = from_arrays(0.5 * X, LABELS, classes=("a", "b"))
    split = partition(IDS, LABELS, FLAGGED)
    assert audit(Table(0), Table(2), seen, split, unseen).membership_auroc == (1.0, 1.0)
    assert audit(Table(0), Table(2, 0.0), seen, split, unseen).membership_auroc == (1.0, 0.5)
    assert audit(Table(0), Table(2), seen, split, seen).membership_auroc == (0.5, 0.5)


def test_each_given_label_has_its_own_audit_beside_evidence_and_unseen_samples():
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 0])
    data = from_arrays(X, labels, ids=IDS, classes=("a", "b"))
    order = np.random.default_rng(1).permutation(8)
    split = partition(IDS[order], labels[order], FLAGGED[order])
    evidence = np.eye(2)[np.array([0, 1, 1, 1, 0, 0, 0, 0])][order]
    a, b = audit(Table(0), Table(2), data, split, data, evidence=evidence).labels
    assert (a.label, a.samples, a.predicted, b.label, b.samples) == ("a", 3, (1.0, 1 / 3), "b", 1)
    assert b.predicted == (1.0, 1.0)
    assert (a.expected, b.expected) == (1 / 3, 1.0)
    # Of the three samples of b none is taken for a before, and one after.
    assert a.mistaken == (0.0, 1 / 3)
    assert b.mistaken == (0.0, 0.4)
    plain = audit(Table(0), Table(2), data, split).labels
    assert [(p.label, p.expected, p.mistaken) for p in plain] == [
        ("a", None, None),
        ("b", None, None),
    ]


def test_confidence_auroc_is_the_share_of_pairs_that_are_ordered():
    members = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    others = np.array([[0.5, 0.5], [0.2, 0.8]])
    wins = [(a.max() > b.max()) + 0.5 * (a.max() == b.max()) for a in members for b in others]
    assert confidence_auroc(members, others) == pytest.approx(np.mean(wins))
    assert confidence_auroc(others, members) == pytest.approx(1 - np.mean(wins))


def test_nothing_flagged_gives_no_audit_and_everything_flagged_has_no_churn():
    data = from_arrays(X, LABELS, ids=IDS, classes=("a", "b"))
    assert audit(Table(0), Table(2), data, partition(IDS, LABELS, np.zeros(8))) is None
    assert audit(Table(0), Table(2), data, partition(IDS, LABELS, np.ones(8))).churn == 0.0
    with pytest.raises(DataError, match="no rows for ids 0"):
        audit(Table(0), Table(2), data, partition(IDS + 1, LABELS, FLAGGED))


def test_at_most_the_limit_of_each_sort_is_used(monkeypatch):
    monkeypatch.setattr(audits, "MAX_AUDIT_SAMPLES", 2)
    data = from_arrays(X, LABELS, ids=IDS, classes=("a", "b"))
    split = partition(IDS, LABELS, FLAGGED)
    found = audit(Table(0), Table(2), data, split, data, seed=1)
    assert found.samples == 2
    assert {*found.predicted} <= {0.0, 0.5, 1.0}
    assert found == audit(Table(0), Table(2), data, split, data, seed=1)
