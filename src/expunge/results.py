"""What a repair came to: measured, and written for people and programs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from expunge.data import shared_inputs
from expunge.evaluation import diagnostics, metrics
from expunge.pruning import surgery
from expunge.records import Baseline, Decision, RepairResult, Scores
from expunge.reporting.html import render_html
from expunge.reporting.markdown import render_markdown
from expunge.reporting.media import clips_for, images_for
from expunge.reporting.summary import summarise
from expunge.reporting.tables import MAX_SHOWN, top_suspects
from expunge.stages import audit, evaluate, example_batch
from expunge.storage.cached_stages import RepairContext, RepairOutcome
from expunge.storage.run_folder import Run
from expunge.storage.weights import save_weights


def measure(
    job: RepairContext,
    run: Run,
    scores: Scores,
    fixed: RepairOutcome,
    others: Mapping[str, RepairOutcome],
    verdict: Decision,
    train_seconds: float | None,
) -> RepairResult:
    """Measure the repaired model and the controls, and look for reasons to doubt the numbers."""
    example = example_batch(job.train)
    before = after = gain = None
    controls = {}
    started = time.perf_counter()
    if job.validation is not None:
        before = evaluate(job.model, job.validation, seed=job.seed, progress=job.progress)
        after = evaluate(fixed.model, job.validation, seed=job.seed, progress=job.progress)
        gain = metrics.paired_gain(after, before, seed=job.seed)
        for name, other in others.items():
            found = evaluate(other.model, job.validation, seed=job.seed, progress=job.progress)
            difference = metrics.paired_gain(after, found, seed=job.seed)
            size = surgery.size(other.model, example)
            controls[name] = Baseline(found, other.seconds, size, difference, other.model)
    certificate = audit(
        job.model, fixed.model, job.train, fixed.partition, job.validation, seed=job.seed
    )
    shared = shared_inputs(job.train, job.validation) if job.validation is not None else 0
    seconds = {} if train_seconds is None else {"train": train_seconds}
    for name, spent in run.seconds.items():
        stage = "controls" if name.startswith("controls/") else name.rpartition("-")[2]
        seconds[stage] = seconds.get(stage, 0.0) + spent
    seconds.setdefault("controls", 0.0)
    seconds["compare"] = time.perf_counter() - started
    return RepairResult(
        model=fixed.model,
        recipe=job.name,
        seed=job.seed,
        config=asdict(job.recipe),
        scores=scores,
        partition=fixed.partition,
        ranking=fixed.ranking,
        plan=fixed.plan,
        before=before,
        after=after,
        gain=gain,
        baselines=controls,
        size_before=surgery.size(job.model, example),
        size_after=surgery.size(fixed.model, example),
        seconds=seconds,
        flags=diagnostics.find_flags(
            partition=fixed.partition,
            plan=fixed.plan,
            before=before,
            after=after,
            baselines=controls,
            shared_inputs=shared,
            extra=diagnostics.memorised(scores),
        ),
        run=str(run.folder) if run.folder else "",
        classes=job.train.classes,
        decision=verdict,
        audit=certificate,
        skipped=_quarantined(job),
        prune_skipped_reason=fixed.prune_skipped_reason,
    )


def _quarantined(job: RepairContext) -> dict[str, Mapping[Any, str]]:
    """What was left out of the sets that the job was given."""
    sets = {"training": job.train, "validation": job.validation, "held-out": job.held_out}
    return {f"{k} data": s.skipped for k, s in sets.items() if s is not None and s.skipped}


def write(job: RepairContext, run: Run, result: RepairResult) -> None:
    """The files for people and programs: the model, the partition, the result and the reports."""
    suspects = result.partition.ids[top_suspects(result.partition, MAX_SHOWN)]
    images = images_for(job.train, suspects.tolist())
    clips = clips_for(job.train, suspects.tolist())
    plan = json.dumps({k: list(v) for k, v in result.plan.units.items()} if result.plan else {})
    run.write("model.safetensors", lambda p: save_weights(result.model, p, {"plan": plan}))
    run.write("partition.parquet", lambda p: pq.write_table(result.partition.to_table(), p))
    run.write("report.html", render_html(result, images=images, clips=clips))
    run.write("report.md", render_markdown(result))
    run.write("result.json", json.dumps(summarise(result), indent=2) + "\n")
