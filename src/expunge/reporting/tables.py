"""The rows and sentences that the Markdown and the HTML report share."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np

from expunge._core.arrays import Ints
from expunge.errors import group_by_reason
from expunge.records import (
    Evaluation,
    HeadPlan,
    LabelAudit,
    Metric,
    NeuronRanking,
    Partition,
    PrunePlan,
    RepairResult,
)
from expunge.reporting.formatting import counted, percent, points
from expunge.reporting.summary import repair_seconds

MAX_SHOWN = 48  # suspicious samples
MAX_CLASSES = 50  # rows of the per-class table
_MAX_AUDITED_LABELS = 5

Role = Literal["noisy", "repaired", "baseline"]


class Partitioned(Protocol):
    """What has a partition and the names of its classes."""

    @property
    def partition(self) -> Partition: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


class Outcome(NamedTuple):
    """A row of the result table; gain is repaired − this model, paired."""

    name: str
    role: Role
    accuracy: Metric | None
    gain: Metric | None
    seconds: float | None
    parameters: int


class ClassRow(NamedTuple):
    """Accuracy and flagged samples of a class."""

    name: str
    n: int
    flagged: int
    before: float | None
    after: float | None


class LayerRow(NamedTuple):
    """Units of a layer and how many were cut; ``units`` is None without a ranking of the layer.

    How much of p_noisy is predicted by its best unit (``effect``), its best principal direction and
    the whole layer, cross-validated; None where the ranker has no such number. direction_share: the
    part of the units' variance in that direction.
    """

    name: str
    units: int | None
    cut: int
    r_squared: float | None
    effect: float | None = None
    direction: float | None = None
    direction_share: float | None = None
    layer: float | None = None


def headline(result: RepairResult) -> str:
    """What the repair achieved and what was decided, in a sentence or two."""
    return " ".join(headlines(result))


def headlines(result: RepairResult) -> tuple[str, ...]:
    """The sentences of `headline`, the most important first."""
    action, reason = result.decision.action, result.decision.reason
    decision = f"Decision: {action}, because {reason}."
    if not result.decision.kept:
        return decision, "The model is unchanged."
    change = _describe_change(result)
    if action == "retrain":
        return decision, change
    return (change, decision) if result.decision.gain else (change,)


def _describe_change(result: RepairResult) -> str:
    before, after, gain = result.before, result.after, result.gain
    if before is None or after is None:
        flagged, n = int(result.partition.flagged.sum()), len(result.partition.ids)
        return (
            f"{flagged:,} of {n:,} training samples were flagged; without a validation set it is "
            "not known whether the model is better."
        )
    change = f"from {percent(before.accuracy.value)} to {percent(after.accuracy.value)}"
    if gain is None:
        return f"Accuracy went {change}."
    by = f"{points(gain.value)} points ({points(gain.low)} to {points(gain.high)})"
    if gain.low > 0:
        return f"Accuracy rose {change}: {by}."
    if gain.high < 0:
        return f"Accuracy fell {change}: {by}."
    return f"No significant change: accuracy went {change}, {by}."


def partition_line(partition: Partition) -> str:
    """How many samples were flagged, and the noise rate."""
    flagged, n = int(partition.flagged.sum()), len(partition.ids)
    rate, low, high = map(percent, partition.noise_rate)
    return f"Flagged: {flagged:,} of {n:,} training samples; noise rate {rate} ({low} to {high})."


def outcomes(result: RepairResult) -> list[Outcome]:
    """The noisy model, the repaired one and every baseline; nothing without a validation set."""
    if result.before is None or result.after is None:
        return []
    repair = repair_seconds(result)
    sizes = result.size_before.parameters, result.size_after.parameters
    rows = [
        Outcome("noisy model", "noisy", result.before.accuracy, result.gain, None, sizes[0]),
        Outcome("repaired", "repaired", result.after.accuracy, None, repair, sizes[1]),
    ]
    for name, c in result.baselines.items():
        size = c.size.parameters
        rows.append(Outcome(name, "baseline", c.evaluation.accuracy, c.gain, c.seconds, size))
    return rows


def class_rows(
    result: Partitioned, before: Evaluation | None = None, after: Evaluation | None = None
) -> list[ClassRow]:
    """One row per class, in order; at most `MAX_CLASSES`, those with the largest flagged share."""
    partition, c = result.partition, len(result.classes)
    n = np.bincount(partition.labels, minlength=c)
    flagged = np.bincount(partition.labels[partition.flagged], minlength=c)
    share = flagged / np.maximum(n, 1)
    shown = np.sort(np.argsort(-share, kind="stable")[:MAX_CLASSES])
    old, new = (e.per_class if e else {} for e in (before, after))
    names = [(int(i), result.classes[i]) for i in shown]
    return [
        ClassRow(name, int(n[i]), int(flagged[i]), old.get(name), new.get(name))
        for i, name in names
    ]


def layer_rows(ranking: NeuronRanking | None, plan: PrunePlan | None) -> list[LayerRow]:
    """One row for every layer that was ranked or cut."""
    units = ranking.units_by_layer() if ranking else {}
    cut = plan.units if plan else {}
    names = [*units, *(name for name in cut if name not in units)]
    if ranking is None:
        return [LayerRow(name, None, len(cut.get(name, ())), None) for name in names]
    layers = {effect.layer: effect for effect in ranking.layers}
    # The first of each layer is its best one.
    directions = {effect.layer: effect for effect in reversed(ranking.directions)}
    effects = dict(zip(ranking.layer[::-1].tolist(), ranking.effect[::-1].tolist(), strict=True))
    return [
        LayerRow(
            name,
            units.get(name),
            len(cut.get(name, ())),
            ranking.explained.get(name),
            effects.get(name) if name in ranking.explained else None,
            directions[name].r_squared if name in directions else None,
            directions[name].variance_share if name in directions else None,
            layers[name].r_squared if name in layers else None,
        )
        for name in names
    ]


def review_lines(result: RepairResult) -> list[str]:
    """What the answers of reviewers changed, one line a statement; none without answers."""
    review = result.review
    if review is None:
        return []
    before, flagged = review["before"], review["flagged"]
    rate, low, high = review["rates"]["noise"]
    lines = [
        f"{counted(review['answered'], 'sample')} judged: {review['trusted']:,} labels confirmed, "
        f"{review['corrected']:,} corrected, {review['dropped']:,} inputs dropped",
        f"noise rate {percent(before['noise_rate'])} before, {percent(rate)} "
        f"({percent(low)} to {percent(high)}) with the answers",
        f"flagged samples {int(before['flagged']):,} before, {flagged:,} with the answers",
        f"threshold {before['threshold']:.2f} before, {review['threshold']:.2f} with the answers",
        f"estimated rate of mistaken answers {percent(review['mistakes'])}",
    ]
    if review["disputed"]:
        lines.append(f"{counted(review['disputed'], 'sample')} on which reviewers disagree")
    if not review["design_based"]:
        lines.append("no question was drawn by the queue, so the rate is that of the partition")
    return lines


def unlearning_lines(result: RepairResult) -> list[str]:
    """The unlearning audit, one line a measurement."""
    audit = result.audit
    if audit is None:
        return ["Nothing was flagged, so there was nothing to unlearn."]
    before, after = (percent(v) for v in audit.predicted)
    lines = [
        f"given labels of flagged samples that the model reproduces: {before} before, {after} "
        f"after ({counted(audit.samples, 'sample')})"
    ]
    if audit.membership_auroc:
        old, new = (f"{v:.2f}" for v in audit.membership_auroc)
        lines.append(
            f"membership AUROC, by the confidence on flagged and unseen samples: {old} before, "
            f"{new} after (0.50: no trace)"
        )
    lines.append(f"prediction churn on the kept samples: {percent(audit.churn)}")
    return lines + [_label_line(label) for label in audit.labels[:_MAX_AUDITED_LABELS]]


def _label_line(label: LabelAudit) -> str:
    """What is left of the flagged samples with one given label."""
    before, after = (percent(v) for v in label.predicted)
    line = (
        f"flagged samples labelled {label.label}: {before} predicted so before, {after} after "
        f"({counted(label.samples, 'sample')})"
    )
    if label.expected is not None:
        line += f"; {percent(label.expected)} by evidence without their labels"
    if label.mistaken is not None:
        old, new = (percent(v) for v in label.mistaken)
        line += f"; unseen samples of other labels taken for it: {old} before, {new} after"
    return line


def skipped_lines(result: RepairResult) -> list[str]:
    """The samples that could not be used, one line per data set and reason."""
    return [
        f"{name}, skipped: {line}"
        for name, reasons in result.skipped.items()
        for line in group_by_reason("samples", reasons)
    ]


def pruning_skipped(result: RepairResult) -> str:
    """A sentence for a repair that cut nothing, with the reason if there is one."""
    if result.prune_skipped_reason:
        return f"Pruning skipped: {result.prune_skipped_reason}."
    if result.decision.kept:
        return "The recipe prunes no units."
    return "Nothing is pruned: the model is unchanged."


class DepthRow(NamedTuple):
    """A depth at which the network could be cut; chosen: the one that was taken."""

    layer: str
    columns: int
    macs: int
    score: float
    reproduced: float | None
    chosen: bool


def depth_rows(head: HeadPlan | None) -> list[DepthRow]:
    """One row for every depth that was compared; none without a closed-form head."""
    if head is None:
        return []
    return [
        DepthRow(c.layer, c.columns, c.macs, c.score, c.reproduced, c.layer == head.layers[-1])
        for c in head.candidates
    ]


def top_suspects(partition: Partition, k: int) -> Ints:
    """Positions of the ``k`` most suspicious samples: by p_noisy, then evidence, then id."""
    evidence = np.zeros(len(partition.ids))
    for values in partition.evidence.values():
        evidence += values
    return np.lexsort((partition.ids, -evidence, -partition.p_noisy))[: max(k, 0)]


def kind_of_evidence(evidence: str) -> str:
    """``"label_evidence"`` → ``"label"``."""
    return evidence.removesuffix("_evidence")
