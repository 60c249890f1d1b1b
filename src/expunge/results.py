"""What a repair came to: measured, written for people and programs, and read again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.editing.earlier_cuts import cut_metadata
from expunge.evaluation import diagnostics, metrics
from expunge.evaluation.audit import audit
from expunge.pruning import surgery
from expunge.records import (
    Baseline,
    Decision,
    Evaluation,
    RepairResult,
    Scores,
)
from expunge.records.partition import with_class_names
from expunge.repair_context import RepairContext, RepairOutcome
from expunge.reporting.html import render_html
from expunge.reporting.listing import thumbnails_for
from expunge.reporting.markdown import render_markdown
from expunge.reporting.media import clips_for, images_for, rows_for
from expunge.reporting.summary import summarise
from expunge.reporting.tables import MAX_SHOWN, top_suspects
from expunge.stages import evaluate, example_batch
from expunge.storage import serialization
from expunge.storage.cached_stages import Chain, StageRecord
from expunge.storage.finished_run import EVALUATIONS, RESULT, write_record
from expunge.storage.run_folder import Run
from expunge.storage.weights import save_weights
from expunge.tracking import log_result

T = TypeVar("T")


def seconds_by_stage(chains: Iterable[Chain]) -> dict[str, float]:
    """Sum the seconds of all stages behind some chains, each stage once.

    Stages of baselines are summed under ``"baselines"``.
    """
    records: dict[str, StageRecord] = {r.folder: r for chain in chains for r in chain.records}
    seconds: dict[str, float] = {}
    for record in records.values():
        name = "baselines" if record.baseline else record.stage
        seconds[name] = seconds.get(name, 0.0) + record.seconds
    return seconds


def measure(
    context: RepairContext,
    scores: Scores,
    outcome: RepairOutcome,
    *,
    others: Mapping[str, RepairOutcome],
    failed: Mapping[str, str],
    decision: Decision,
    seconds: Mapping[str, float],
) -> RepairResult:
    """Measure the repaired model and the baselines, and look for reasons to doubt the numbers."""
    started, seed, validation = time.perf_counter(), context.seed, context.validation
    example, progress = example_batch(context.train), context.options.progress
    before = after = gain = None
    baselines = {}
    if validation is not None:
        before = evaluate(context.model, validation, seed=seed, progress=progress)
        after = evaluate(outcome.model, validation, seed=seed, progress=progress)
        gain = metrics.paired_gain(after, before, seed=seed)
        for name, other in others.items():
            found = evaluate(other.model, validation, seed=seed, progress=progress)
            baselines[name] = Baseline(
                found,
                other.chain.seconds,
                surgery.size(other.model, example),
                metrics.paired_gain(after, found, seed=seed),
                other.model,
            )
    split, plan = outcome.partition, outcome.plan
    audited = audit(
        context.model,
        outcome.model,
        context.train,
        split,
        validation,
        evidence=None if scores.pooled is None else scores.pooled.probs,
        seed=seed,
    )
    flags = diagnostics.find_flags(
        partition=split,
        plan=plan,
        before=before,
        after=after,
        baselines=baselines,
        gain=gain,
        shared_inputs=context.n_shared_validation,
        shared_held_out=context.n_shared_held_out,
        classes=context.train.classes,
        extra=(
            *diagnostics.memorised(scores, split),
            *diagnostics.hopeless(scores, context.train.classes),
            *diagnostics.unfamiliar(scores),
            *diagnostics.failed_baselines(failed),
        ),
    )
    trained, run = context.options.train_seconds, outcome.chain.run
    return RepairResult(
        model=outcome.model,
        recipe=context.options.recipe,
        seed=seed,
        config=asdict(context.recipe),
        scores=scores,
        partition=split,
        ranking=outcome.ranking,
        plan=plan,
        before=before,
        after=after,
        gain=gain,
        baselines=baselines,
        size_before=surgery.size(context.model, example),
        size_after=surgery.size(outcome.model, example),
        seconds={
            **({} if trained is None else {"train": trained}),
            **seconds,
            "baselines": seconds.get("baselines", 0.0),
            "compare": time.perf_counter() - started,
        },
        flags=flags,
        run=str(run.folder) if run.folder else "",
        classes=context.train.classes,
        decision=decision,
        audit=audited,
        skipped=_skipped_samples(context),
        head=outcome.head,
        prune_skipped_reason=outcome.prune_skipped_reason,
        notes=(*context.notes, *outcome.notes),
        review=context.review,
    )


def _skipped_samples(context: RepairContext) -> dict[str, Mapping[Any, str]]:
    """The samples that could not be used, by data set."""
    sets = {
        "training": context.train,
        "validation": context.validation,
        "held-out": context.held_out,
    }
    return {f"{k} data": s.skipped for k, s in sets.items() if s is not None and s.skipped}


def write(context: RepairContext, run: Run, result: RepairResult) -> None:
    """Write the files for people and programs: model, partition, result and reports."""
    if not run.writes:
        return
    flagged = result.partition.ids[
        top_suspects(result.partition, int(result.partition.flagged.sum()))
    ].tolist()
    suspects = flagged[:MAX_SHOWN]
    thumbnails = thumbnails_for(context.train, flagged) if len(flagged) > MAX_SHOWN else {}
    images = images_for(context.train, suspects)
    clips, values = clips_for(context.train, suspects), rows_for(context.train, suspects)
    units = result.plan.units if result.plan else {}
    facts = cut_metadata(units, result.config["prune"]["mode"], context.model)
    facts["head"] = json.dumps(serialization.head_metadata(result.head))
    run.write("model.safetensors", lambda p: save_weights(result.model, p, facts))
    table = with_class_names(result.partition.to_table(), result.classes)
    run.write("partition.parquet", lambda p: pq.write_table(table, p))
    page = render_html(result, images=images, clips=clips, rows=values, thumbnails=thumbnails)
    run.write("report.html", page)
    run.write("report.md", render_markdown(result))
    run.write(EVALUATIONS, lambda p: pq.write_table(_evaluation_table(result), p))
    run.write(RESULT, json.dumps(summarise(result), indent=2) + "\n")
    write_record(run, _record(result))
    log_result(result, context.options.trackers, run.folder)


def _record(result: RepairResult) -> dict[str, Any]:
    """The fields of a result that neither its summary nor its stages hold."""
    sizes = {"before": result.size_before, "after": result.size_after}
    sizes |= {name: baseline.size for name, baseline in result.baselines.items()}
    return {
        "recipe": result.recipe,
        "seed": result.seed,
        "config": result.config,
        "classes": result.classes,
        "partition": serialization.PARTITION.store(result.partition).metadata,
        "stages": {"rank": result.ranking is not None, "prune": result.plan is not None},
        "evaluations": {
            name: {
                "metrics": {k: asdict(m) for k, m in e.metrics.items()},
                "per_class": e.per_class,
            }
            for name, e in _evaluations(result).items()
        },
        "sizes": {name: asdict(size) for name, size in sizes.items()},
        "head": serialization.head_metadata(result.head),
        "prune_skipped_reason": result.prune_skipped_reason,
        "notes": result.notes,
    }


def _evaluations(result: RepairResult) -> dict[str, Evaluation]:
    """The evaluations by model."""
    found = {"before": result.before, "after": result.after}
    found |= {name: baseline.evaluation for name, baseline in result.baselines.items()}
    return {name: evaluation for name, evaluation in found.items() if evaluation is not None}


def _evaluation_table(result: RepairResult) -> pa.Table:
    """One row a validation sample: its id, and whether each model predicts its label."""
    found = _evaluations(result)
    ids = found["before"].ids if found else np.empty(0, dtype=np.int64)
    return pa.table({"id": ids, **{name: e.correct for name, e in found.items()}})
