"""What a repair is measured by, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from expunge.errors import ExpungeError
from expunge.records.arrays import (
    freeze,
    require_rows,
)
from expunge.records.editing import HeadPlan
from expunge.records.partition import Partition
from expunge.records.pruning import NeuronRanking, PrunePlan
from expunge.records.scores import Scores


@dataclass(frozen=True)
class Metric:
    """A number with its interval.

    Parameters
    ----------
    value, low, high
        ``low ≤ value ≤ high``; 95 % unless said otherwise.
    n
        Number of samples behind it.
    """

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ExpungeError(f"interval [{self.low}, {self.high}] misses value {self.value}")

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """Measure a model on labelled samples.

    Parameters
    ----------
    ids
        Ids of the samples, ``[n]``.
    correct
        Whether each sample's label is predicted, ``bool[n]``, for paired comparisons.
    metrics
        Metrics by name; ``"accuracy"`` is among them.
    per_class
        Accuracy by class name, in [0, 1].
    """

    ids: np.ndarray
    correct: np.ndarray
    metrics: Mapping[str, Metric]
    per_class: Mapping[str, float]

    def __post_init__(self) -> None:
        freeze(self, ids=(self.ids, None), correct=(self.correct, np.bool_))
        require_rows(self, len(self.ids), "correct")

    @property
    def accuracy(self) -> Metric:
        return self.metrics["accuracy"]


@dataclass(frozen=True)
class Size:
    """The size of a model.

    Parameters
    ----------
    parameters
        Number of weights.
    macs
        Multiply-adds of one sample.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class Flag:
    """A red flag: a reason to doubt the numbers.

    Parameters
    ----------
    code
        A fixed name.
    message
        The evidence.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Baseline:
    """What another recipe reaches from the same start.

    Parameters
    ----------
    evaluation
        Measured on the validation samples.
    seconds
        Of all stages behind it.
    size
        Of its model.
    gain
        Accuracy of the repair − accuracy of the baseline, paired.
    model
        The model; None in a run that was read from disk.
    """

    evaluation: Evaluation
    seconds: float
    size: Size
    gain: Metric  # repaired − control, paired
    model: nn.Module | None = None


@dataclass(frozen=True)
class LabelAudit:
    """What is left of the flagged samples with one given label; pairs are (before, after).

    Parameters
    ----------
    label
        Name of the given label.
    samples
        Number of them.
    predicted
        Fraction of them for which the model predicts this label.
    expected
        The same for evidence that did not learn from the sample's own label: with no trace left,
        the model predicts the label as often. None without such evidence.
    mistaken
        Fraction of the unseen samples of other labels that the model takes for this one; None
        without unseen samples.
    """

    label: str
    samples: int
    predicted: tuple[float, float]
    expected: float | None = None
    mistaken: tuple[float, float] | None = None


@dataclass(frozen=True)
class UnlearningAudit:
    """What is left of the samples that were to be unlearned; pairs are (before, after).

    It measures. It does not prove that the model is as if it had never seen them.

    Parameters
    ----------
    samples
        Number of flagged samples that were measured.
    predicted
        Fraction of them whose given label is predicted.
    membership_auroc
        AUROC of the largest probability for telling them from unseen samples; 0.5 is no trace.
        None without unseen samples.
    churn
        Fraction of the kept samples whose prediction changed.
    labels
        The same for each given label among them, the most frequent first: what is left of a trigger
        or of a confusion of classes.
    """

    samples: int
    predicted: tuple[float, float]
    membership_auroc: tuple[float, float] | None
    churn: float
    labels: tuple[LabelAudit, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Whether the repair is kept.

    Parameters
    ----------
    action
        ``"keep"``: the repaired model is better. ``"retrain"``: a network retrained from scratch is
        better. ``"skip"``: there is nothing to repair, and no repair was begun. ``"revert"``: the
        repair does harm, and the model is unchanged.
    reason
        Why, in a sentence.
    gain
        Gain in accuracy of the repair, estimated from held-out labels; None without these.
    recipe
        The recipe of the network that is better, if the action is ``"retrain"``; else empty.
    """

    action: Literal["keep", "retrain", "skip", "revert"]
    reason: str
    gain: Metric | None = None
    recipe: str = ""

    @property
    def kept(self) -> bool:
        """Whether the repaired model is returned, and not the original."""
        return self.action in ("keep", "retrain") and (self.gain is None or self.gain.value > 0)


@dataclass(frozen=True, repr=False)
class RepairResult:
    """Everything that a repair did. On disk it is the run folder; see `expunge.load_run`.

    Parameters
    ----------
    model
        The repaired model, or a copy of the one given.
    recipe, seed, config
        What was done: name, seed, and settings of every stage.
    scores, partition, ranking, plan
        The records of the stages; ranking and plan are None where nothing was pruned.
    before, after, gain
        Evaluations on the validation samples and the paired gain; None without validation.
    baselines
        What other recipes reach, by name.
    size_before, size_after
        Sizes of the two models.
    seconds
        Seconds by stage.
    flags
        Red flags.
    run
        The run folder; empty if nothing was kept.
    classes
        Names of the classes.
    decision
        Whether the repair is kept.
    audit
        What is left of the flagged samples; None if none was flagged.
    skipped
        Samples that could not be used: ``{data set: {id: reason}}``.
    head
        How a closed-form head reads the model; None if it has the network's own.
    prune_skipped_reason
        Why nothing was pruned, where the repair decided that.
    notes
        What was done to the model before and in the tuning: a wrapper that was taken off, outputs
        that were read as probabilities, a learning rate that was lowered.
    review
        What the answers of reviewers changed: `expunge.Review.summary`. None without answers.
    """

    model: nn.Module
    recipe: str
    seed: int
    config: Mapping[str, Any]
    scores: Scores
    partition: Partition
    ranking: NeuronRanking | None
    plan: PrunePlan | None
    before: Evaluation | None
    after: Evaluation | None
    gain: Metric | None
    baselines: Mapping[str, Baseline]
    size_before: Size
    size_after: Size
    seconds: Mapping[str, float]
    flags: tuple[Flag, ...]
    run: str
    classes: tuple[str, ...]
    decision: Decision
    audit: UnlearningAudit | None = None
    skipped: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    head: HeadPlan | None = None
    prune_skipped_reason: str = ""
    notes: tuple[str, ...] = ()
    review: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        flagged, n = int(self.partition.flagged.sum()), len(self.partition.ids)
        lines = [f"decision {self.decision.action}: {self.decision.reason}"]
        if self.before is not None and self.after is not None:
            lines.append(f"accuracy {self.before.accuracy} → {self.after.accuracy}")
        lines.append(f"flagged {flagged:,} of {n:,} training samples")
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"report {self.run}/report.html" if self.run else "no run folder was kept")
        return "\n  ".join([f"RepairResult (recipe {self.recipe}, seed {self.seed})", *lines])
