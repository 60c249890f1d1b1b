"""A repair in words: the JSON object, Markdown, one HTML page, and the red flags that head them.

Pure: records in, strings and dicts out. Fractions stay fractions in data and become percentages
for people. Ids, class names and layer names are the user's, so they are escaped where they appear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from expunge.errors import group_by_reason
from expunge.records import (
    Evaluation,
    Metric,
    NeuronRanking,
    Partition,
    PrunePlan,
    RepairResult,
    Scores,
)
from expunge.reporting.formatting import (
    change,
    counted,
    decimals,
    duration,
    percent,
    points,
    signed_gain,
    span,
)

MAX_SHOWN = 48  # suspects shown
CLASSES = 50  # rows of the per-class table
UNTIMED_STAGES = (
    "compare",
    "baselines",
    "report",
    "train",
)  # stages that measure the repair, and are no part of it


class Outcome(NamedTuple):
    """A row of the result table; gain is repaired − this model."""

    name: str
    role: str
    accuracy: Metric | None
    gain: Metric | None
    seconds: float | None
    parameters: int


class ClassRow(NamedTuple):
    """Accuracy and flagged share of a class."""

    name: str
    n: int
    flagged: int
    before: float | None
    after: float | None


class LayerRow(NamedTuple):
    """Units of a layer before and after; ``units`` is None where no ranking tells their number."""

    name: str
    units: int | None
    cut: int
    explained: float | None


# The JSON object


def summary(result: RepairResult) -> dict[str, Any]:
    """The result as plain Python types: what ``result.json`` and ``--json`` hold.

    ``before``, ``after`` and ``gain`` are None where no validation set was given.
    """
    partition, plan = result.partition, result.plan
    value, low, high = (float(x) for x in partition.noise_rate)
    return {
        "before": _metrics(result.before),
        "after": _metrics(result.after),
        "gain": _metric(result.gain),
        "baselines": {
            name: {
                **(_metrics(control.evaluation) or {}),
                "seconds": float(control.seconds),
                "parameters": int(control.size.parameters),
                "gain": _metric(control.gain),
            }
            for name, control in result.baselines.items()
        },
        "partition": {
            "flagged": int(partition.flagged.sum()),
            "n": len(partition.ids),
            "noise_rate": {"value": value, "low": low, "high": high},
            "threshold": float(partition.threshold),
        },
        "pruning": {
            "requested": int(plan.requested) if plan else 0,
            "granted": int(plan.granted) if plan else 0,
            "parameters_before": int(result.size_before.parameters),
            "parameters_after": int(result.size_after.parameters),
            "macs_before": int(result.size_before.macs),
            "macs_after": int(result.size_after.macs),
        },
        "seconds": {stage: float(s) for stage, s in result.seconds.items()},
        "flags": [{"code": f.code, "message": f.message} for f in result.flags],
        "audit": asdict(result.audit) if result.audit else None,
        "skipped": {
            name: {str(i): reason for i, reason in found.items()}
            for name, found in result.skipped.items()
        },
        "decision": {
            "action": result.decision.action,
            "reason": result.decision.reason,
            "gain": _metric(result.decision.gain),
        },
        "recipe": result.recipe,
        "seed": int(result.seed),
        "run": str(result.run),
    }


def stage_summary(
    scores: Scores,
    partition: Partition | None,
    ranking: NeuronRanking | None,
    plan: PrunePlan | None,
) -> dict[str, Any]:
    """What the first stages have found, as plain JSON values."""
    facts: dict[str, Any] = {"n": len(scores.ids), "detectors": dict(scores.kinds)}
    if partition is not None:
        facts["flagged"] = int(partition.flagged.sum())
        facts["noise_rate"] = dict(zip(("value", "low", "high"), partition.noise_rate, strict=True))
    if ranking is not None:
        facts["explained"] = dict(ranking.explained)
        rows = range(min(10, len(ranking.unit)))
        facts["first_units"] = [[str(ranking.layer[i]), int(ranking.unit[i])] for i in rows]
    if plan is not None:
        facts |= {"requested": plan.requested, "granted": plan.granted}
        facts["units"] = {layer: list(units) for layer, units in plan.units.items()}
    return facts


def _metric(metric: Metric | None) -> dict[str, float | int] | None:
    if metric is None:
        return None
    bounds = {"value": metric.value, "low": metric.low, "high": metric.high}
    return {**{k: float(v) for k, v in bounds.items()}, "n": int(metric.n)}


def _metrics(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {name: _metric(metric) for name, metric in evaluation.metrics.items()}


# Rows that Markdown and HTML share


def verdict(result: RepairResult) -> str:
    """What the repair came to, in a sentence or two."""
    flagged, n = int(result.partition.flagged.sum()), len(result.partition.ids)
    word, reason = result.decision.action, result.decision.reason
    if not result.decision.kept:
        return f"{word.capitalize()}: {reason}. The model is the one that came in."
    said = _change(result, flagged, n)
    if word == "retrain":
        return f"Retrain: {reason}. {said}"
    return f"{said} Verdict: repair, {reason}." if result.decision.gain else said


def _change(result: RepairResult, flagged: int, n: int) -> str:
    """What has become of the accuracy."""
    before, after, gain = result.before, result.after, result.gain
    if before is None or after is None:
        return (
            f"{flagged:,} of {n:,} training samples were flagged; no validation set was given, so "
            "whether the model is better is not known."
        )
    path = f"from {percent(before.accuracy.value)} to {percent(after.accuracy.value)}"
    if gain is None:
        return f"Accuracy went {path}."
    by = f"{points(gain.value)} points ({points(gain.low)} to {points(gain.high)})"
    if gain.low > 0:
        return f"Accuracy rose {path}: {by}."
    if gain.high < 0:
        return f"Accuracy fell {path}: {by}."
    return f"No certain change: accuracy went {path}, {by}."


def outcomes(result: RepairResult) -> list[Outcome]:
    """The noisy model, the repaired one and every control; nothing without a validation set."""
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
        rows.append(Outcome(name, "control", c.evaluation.accuracy, c.gain, c.seconds, size))
    return rows


def repair_seconds(result: RepairResult) -> float:
    """What the repair took: all stages but those that only measure it."""
    return sum(s for stage, s in result.seconds.items() if stage not in UNTIMED_STAGES)


def class_rows(result: RepairResult) -> list[ClassRow]:
    """One row a class, in order; of very many classes, those with the largest flagged share."""
    partition, c = result.partition, len(result.classes)
    n = np.bincount(partition.labels, minlength=c)
    flagged = np.bincount(partition.labels[partition.flagged], minlength=c)
    share = flagged / np.maximum(n, 1)
    shown = np.sort(np.argsort(-share, kind="stable")[:CLASSES])
    before = result.before.per_class if result.before else {}
    after = result.after.per_class if result.after else {}
    names = [(int(i), result.classes[i]) for i in shown]
    return [
        ClassRow(name, int(n[i]), int(flagged[i]), before.get(name), after.get(name))
        for i, name in names
    ]


def layer_rows(ranking: NeuronRanking | None, plan: PrunePlan | None) -> list[LayerRow]:
    """One row for every layer that was ranked or cut."""
    units = ranking.units_by_layer() if ranking else {}
    explained = ranking.explained if ranking else {}
    cut = plan.units if plan else {}
    names = [*units, *(name for name in cut if name not in units)]
    return [
        LayerRow(name, units.get(name), len(cut.get(name, ())), explained.get(name))
        for name in names
    ]


def unlearning_lines(result: RepairResult) -> list[str]:
    """The certificate in sentences."""
    found = result.audit
    if found is None:
        return ["Nothing was flagged, so there was nothing to unlearn."]
    before, after = (percent(v) for v in found.predicted)
    lines = [
        f"given labels of flagged samples that are still predicted: {before} before, {after} after "
        f"({counted(found.samples, 'sample')})"
    ]
    if found.membership_auroc:
        old, new = (f"{v:.2f}" for v in found.membership_auroc)
        lines.append(
            f"a flagged sample is known better than an unseen one with probability {old} before, "
            f"{new} after (0.50: no trace)"
        )
    lines.append(f"kept samples that are predicted otherwise than before: {percent(found.churn)}")
    return lines


def quarantine(result: RepairResult) -> list[str]:
    """What took no part because it could not be used, one line a data set and reason."""
    return [
        f"{name}, left out: {line}"
        for name, found in result.skipped.items()
        for line in group_by_reason("samples", found)
    ]


def top_suspects(partition: Partition, k: int) -> np.ndarray:
    """Positions of the ``k`` most suspicious samples: by p_noisy, then evidence, then id."""
    evidence = np.zeros(len(partition.ids))
    fits = {fit.kind: fit for fit in partition.fits}
    for name, values in partition.evidence.items():
        fit = fits.get(kind_of_evidence(name))
        centre, scale = (fit.centre, fit.scale) if fit else (0.0, 1.0)
        evidence += (values - centre) / scale
    return np.lexsort((partition.ids, -evidence, -partition.p_noisy))[: max(k, 0)]


def kind_of_evidence(evidence: str) -> str:
    """``"label_evidence"`` → ``"label"``."""
    return evidence.removesuffix("_evidence")


# Markdown


def markdown(result: RepairResult) -> str:
    """The report as Markdown: red flags first."""
    parts = [
        f"# expunge report: recipe {_text(result.recipe)}, seed {result.seed}",
        _text(verdict(result)),
        "## Red flags",
        "\n".join(f"- **{_text(f.code)}**: {_text(f.message)}" for f in result.flags)
        or "No red flags.",
        "## Result",
        _result_table(result),
        "## Partition",
        _partition_lines(result.partition),
        "## Quarantine" if result.skipped else "",
        "\n".join(f"- {_text(line)}" for line in quarantine(result)),
        "## Pruning",
        _pruning_lines(result),
        "## Unlearned",
        "\n".join(f"- {line}" for line in unlearning_lines(result)),
        "## Classes",
        _class_table(result),
        "## Time",
        _table(("stage", "time"), [(s, duration(t)) for s, t in result.seconds.items()]),
        f"Run folder: {_text(result.run)}" if result.run else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(value: object) -> str:
    """On one line, with what Markdown or HTML would act on made harmless."""
    line = " ".join(str(value).split())
    line = re.sub(r"([\\`*|\[\]])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers' columns (all but the first) are aligned to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), rule, *cells])


def _result_table(result: RepairResult) -> str:
    rows = outcomes(result)
    if not rows:
        return "No validation set was given: nothing was compared."
    head = ("model", "accuracy", "interval", "repaired − this, points", "time", "parameters")
    return _table(
        head,
        [
            (
                row.name,
                percent(row.accuracy.value) if row.accuracy else "–",
                span(row.accuracy) if row.accuracy else "–",
                signed_gain(row.gain),
                duration(row.seconds),
                f"{row.parameters:,}",
            )
            for row in rows
        ],
    )


def _partition_lines(partition: Partition) -> str:
    flagged, n = int(partition.flagged.sum()), len(partition.ids)
    value, low, high = partition.noise_rate
    lines = [
        f"- flagged: {flagged:,} of {n:,} samples ({percent(flagged / max(n, 1))}), "
        f"p_noisy above {partition.threshold:g}",
        f"- estimated noise rate: {percent(value)} ({percent(low)} to {percent(high)})",
    ]
    for fit in partition.fits:
        bics = ", ".join(f"{k}: {bic:,.0f}" for k, bic in sorted(fit.bic.items()))
        lines.append(
            f"- {_text(fit.kind)} evidence: {counted(len(fit.components), 'component')}, "
            f"separation {decimals(fit.separation)}; BIC by number of components: {bics}"
        )
    return "\n".join(lines)


def prune_skipped_reason(result: RepairResult) -> str:
    """That nothing was cut, and why, where that is known."""
    return (
        f"Nothing was cut: {result.prune_skipped_reason}."
        if result.prune_skipped_reason
        else "Nothing was cut."
    )


def _pruning_lines(result: RepairResult) -> str:
    plan, before, after = result.plan, result.size_before, result.size_after
    if plan is None:
        return _text(prune_skipped_reason(result))
    lines = [f"- units: {plan.requested:,} requested, {plan.granted:,} granted"]
    lines += [f"- why: {_text(reason)}" for reason in plan.reasons]
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("multiply-adds", before.macs, after.macs),
    ):
        lines.append(f"- {name}: {old:,} before, {new:,} after ({change(old, new)})")
    rows = [
        (r.name, "–" if r.units is None else r.units, r.cut, percent(r.explained))
        for r in layer_rows(result.ranking, plan)
    ]
    return "\n".join(lines) + "\n\n" + _table(("layer", "units", "cut", "explained"), rows)


def _class_table(result: RepairResult) -> str:
    rows = [
        (
            r.name,
            r.n,
            r.flagged,
            percent(r.flagged / max(r.n, 1)),
            percent(r.before),
            percent(r.after),
        )
        for r in class_rows(result)
    ]
    more = len(result.classes) - len(rows)
    note = f"\n\n{more} classes with a smaller flagged share are not shown." if more else ""
    return _table(("class", "samples", "flagged", "share", "before", "after"), rows) + note
