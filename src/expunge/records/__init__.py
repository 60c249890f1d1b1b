"""The records that the stages hand on: frozen, checked when made, keyed by sample id."""

from expunge.records.arrays import align, frozen_array
from expunge.records.detection import DetectionResult, ProbsKind
from expunge.records.editing import DepthCandidate, HeadPlan
from expunge.records.partition import Component, Fit, Partition
from expunge.records.pruning import (
    Budget,
    DirectionEffect,
    LayerEffect,
    NeuronRanking,
    PrunePlan,
)
from expunge.records.result import (
    Baseline,
    Decision,
    Evaluation,
    Flag,
    LabelAudit,
    Metric,
    RepairResult,
    Size,
    UnlearningAudit,
)
from expunge.records.scores import KINDS, PooledEvidence, Scores, Signals, SourceReport
from expunge.records.top_classes import TopClasses

__all__ = [
    "KINDS",
    "Baseline",
    "Budget",
    "Component",
    "Decision",
    "DepthCandidate",
    "DetectionResult",
    "DirectionEffect",
    "Evaluation",
    "Fit",
    "Flag",
    "HeadPlan",
    "LabelAudit",
    "LayerEffect",
    "Metric",
    "NeuronRanking",
    "Partition",
    "PooledEvidence",
    "ProbsKind",
    "PrunePlan",
    "RepairResult",
    "Scores",
    "Signals",
    "Size",
    "SourceReport",
    "TopClasses",
    "UnlearningAudit",
    "align",
    "frozen_array",
]
