"""A repair's result as plain JSON values: what ``result.json`` and ``--json`` hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from expunge.records import (
    Baseline,
    DetectionResult,
    Evaluation,
    Metric,
    NeuronRanking,
    Partition,
    PooledEvidence,
    PrunePlan,
    RepairResult,
    Scores,
)
from expunge.reporting.sources import narrowing_lines, source_rows

# Stages that prepare or measure the repair and are no part of it.
UNTIMED_STAGES = ("compare", "baselines", "train")


def summarise(result: RepairResult) -> dict[str, Any]:
    """Turn a result into plain Python types.

    Parameters
    ----------
    result
        Of a repair.

    Returns
    -------
    dict
        Strict JSON values. Fractions are in [0, 1]; every metric has ``value``, ``low``, ``high``
        and ``n``. ``before``, ``after`` and ``gain`` are None without a validation set, ``audit``
        is None if nothing was flagged.
    """
    partition = result.partition
    value, low, high = (float(x) for x in partition.noise_rate)
    return {
        "before": _metrics(result.before),
        "after": _metrics(result.after),
        "gain": _metric(result.gain),
        "baselines": {name: _baseline(b) for name, b in result.baselines.items()},
        "partition": {
            "flagged": int(partition.flagged.sum()),
            "n": len(partition.ids),
            "noise_rate": {"value": value, "low": low, "high": high},
            "threshold": float(partition.threshold),
            **_why(result.scores.pooled, partition),
        },
        "pruning": _pruning(result),
        "head": None if result.head is None else asdict(result.head),
        "seconds": {stage: float(s) for stage, s in result.seconds.items()},
        "notes": list(result.notes),
        "flags": [{"code": f.code, "message": f.message} for f in result.flags],
        "review": None if result.review is None else dict(result.review),
        "audit": asdict(result.audit) if result.audit else None,
        "skipped": {
            name: {str(i): reason for i, reason in reasons.items()}
            for name, reasons in result.skipped.items()
        },
        "decision": {
            "action": result.decision.action,
            "reason": result.decision.reason,
            "gain": _metric(result.decision.gain),
            "recipe": result.decision.recipe,
        },
        "classes": list(result.classes),
        "recipe": result.recipe,
        "seed": int(result.seed),
        "run": str(result.run),
    }


def summarise_stages(
    scores: Scores,
    partition: Partition | None,
    ranking: NeuronRanking | None,
    plan: PrunePlan | None,
) -> dict[str, Any]:
    """Turn the results of the first stages into plain JSON values; those not run are left out."""
    found: dict[str, Any] = {"n": len(scores.ids), "detectors": dict(scores.kinds)}
    if partition is not None:
        found["flagged"] = int(partition.flagged.sum())
        found["noise_rate"] = dict(zip(("value", "low", "high"), partition.noise_rate, strict=True))
        found |= _why(scores.pooled, partition)
    if ranking is not None:
        found["r_squared"] = dict(ranking.explained)
        rows = range(min(10, len(ranking.unit)))
        found["first_units"] = [[str(ranking.layer[i]), int(ranking.unit[i])] for i in rows]
        found["layers"] = [asdict(effect) for effect in ranking.layers]
        found["directions"] = [asdict(effect) for effect in ranking.directions[:10]]
    if plan is not None:
        found |= {"requested": plan.requested, "granted": plan.granted}
        found["units"] = {layer: list(units) for layer, units in plan.units.items()}
    return found


def summarise_detection(result: DetectionResult) -> dict[str, Any]:
    """Turn what `expunge.detect` found into plain JSON values; fractions are in [0, 1]."""
    value, low, high = (float(x) for x in result.noise_rate)
    return {
        "flagged": int(result.flagged.sum()),
        "n": len(result.ids),
        "classes": list(result.classes),
        "noise_rate": {"value": value, "low": low, "high": high},
        "threshold": float(result.threshold),
        "probs": result.probs,
        **_why(result.pooled, result),
        "flags": [{"code": f.code, "message": f.message} for f in result.flags],
        "notes": list(result.notes),
    }


def _why(pooled: PooledEvidence | None, partition: Partition) -> dict[str, Any]:
    """Which sources were believed and how far, what each estimator finds, and what would help."""
    return {
        "sources": [asdict(source) for source in source_rows(partition, pooled)],
        "rate_estimates": {k: float(v) for k, v in partition.rate_estimates.items()},
        "to_narrow": narrowing_lines(partition, pooled),
    }


def _baseline(baseline: Baseline) -> dict[str, Any]:
    return {
        **(_metrics(baseline.evaluation) or {}),
        "seconds": float(baseline.seconds),
        "parameters": int(baseline.size.parameters),
        "gain": _metric(baseline.gain),
    }


def _pruning(result: RepairResult) -> dict[str, int]:
    plan, before, after = result.plan, result.size_before, result.size_after
    return {
        "requested": int(plan.requested) if plan else 0,
        "granted": int(plan.granted) if plan else 0,
        "parameters_before": int(before.parameters),
        "parameters_after": int(after.parameters),
        "macs_before": int(before.macs),
        "macs_after": int(after.macs),
    }


def _metric(metric: Metric | None) -> dict[str, float | int] | None:
    if metric is None:
        return None
    bounds = {"value": metric.value, "low": metric.low, "high": metric.high}
    return {**{k: float(v) for k, v in bounds.items()}, "n": int(metric.n)}


def _metrics(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {name: _metric(metric) for name, metric in evaluation.metrics.items()}


def repair_seconds(result: RepairResult) -> float:
    """What the repair took: all stages but `UNTIMED_STAGES`."""
    return sum(s for stage, s in result.seconds.items() if stage not in UNTIMED_STAGES)
