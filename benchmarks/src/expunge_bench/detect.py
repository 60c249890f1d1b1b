"""`expunge bench detect`: noise × model state × detector, measured against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from expunge import stages
from expunge._core.progress import Progress, silent
from expunge.config import ScoreConfig
from expunge.demo.noise import GroundTruth
from expunge.detection.detectors import detectors
from expunge.detection.signals import collect
from expunge.errors import ConfigError, did_you_mean
from expunge.evaluation import metrics
from expunge_bench.fields import BenchmarkDataset, Setting, cached_model
from expunge_bench.peers import BenchmarkCase, Verdict, peers
from expunge_bench.suites import ResultStore, Row, Table, distinct, mean, timed

KEYS = ("data", "n", "noise", "rate", "state", "detector", "seed")
# The whole of what `expunge.score` and `expunge.partition` do by default, and the part of it that
# has a closed form at a linear head: one plain pass.
WHOLE, FAST = "expunge", "expunge-fast"
FAST_DETECTORS = ("attribution", "attribution_mass")
DEFAULT = (WHOLE, FAST, "loss", "cleanlab", "tracin", "rlap-published")


def bench(
    field: BenchmarkDataset,
    *,
    settings: Sequence[Setting],
    names: Sequence[str] = DEFAULT,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each setting and detector; rows that ``out`` holds are not made again.

    names: ``"expunge"`` (the defaults), ``"expunge-fast"`` (one plain pass), detectors, peers.
    Trained networks stay in ``out/models``. Writes ``rows.jsonl``, ``table.md``, ``table.html``.
    """
    known = {WHOLE, FAST, *detectors.names(), *peers.names()}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no detector '{name}'", fix=did_you_mean(name, known))
    ledger = ResultStore(out, KEYS)
    for setting in settings:
        wanted = [name for name in names if _key(field, setting, name) not in ledger]
        if not wanted:
            continue
        scene = field.scene(setting)
        model = cached_model(field, scene, setting, out, progress=progress).model
        case = BenchmarkCase(field, model, scene, setting, out, progress)
        plain = timed(lambda: collect(model, scene.train))[1]  # noqa: B023
        for name in wanted:
            verdict, seconds, peak = timed(lambda: judged(name, case))  # noqa: B023
            cost = {"seconds": seconds, "passes": seconds / plain, "peak_bytes": peak}
            ledger.add({**_key(field, setting, name), **measured(verdict, scene.truth), **cost})
    rows = ledger.rows()
    ledger.write("Detection", command, tables(rows))
    return rows


def judged(name: str, case: BenchmarkCase) -> Verdict:
    """What the detector of that name says; nothing but peers gets to see the truth."""
    if name in peers.names():
        return peers.get(name)(case)
    train, seed = case.scene.train, case.setting.seed
    chosen = {WHOLE: ScoreConfig().detectors, FAST: FAST_DETECTORS}.get(name, (name,))
    scores = stages.score(case.model, train, seed=seed, detectors=chosen)
    if name in (WHOLE, FAST):
        split = stages.partition(scores, seed=seed)
        return Verdict.of(split.p_noisy, split)
    split = stages.partition(scores, seed=seed, method="mixture")
    return Verdict.of(scores.values[name], split)


def measured(verdict: Verdict, truth: GroundTruth) -> dict[str, float | None]:
    """Every number of a row that comes from the truth; None where it has no meaning."""
    noisy = truth.noisy
    found: dict[str, float | None] = dict.fromkeys(
        ("auroc", "auprc", "f1", "best_f1", "miss_rate", "ece", "kind_accuracy")
    )
    split = verdict.partition
    found |= truth.found_by(verdict.score, verdict.flagged)
    if noisy.any():
        worst = np.argsort(-verdict.score, kind="stable")[: noisy.sum()]
        found["miss_rate"] = float(1 - noisy[worst].mean())
    if split is not None:
        found["ece"] = metrics.calibration_error(split.p_noisy, noisy)
        one = verdict.flagged & (truth.label_fault ^ truth.input_fault)
        said = split.p_input_fault > split.p_label_fault
        if one.any():
            found["kind_accuracy"] = float((said == truth.input_fault)[one].mean())
    suggested = verdict.suggested
    right = None if suggested is None else float((suggested == truth.labels).mean())
    return {
        **found,
        "flagged": float(verdict.flagged.mean()),
        "rate_true": float(noisy.mean()),
        "rate_estimated": verdict.rate,
        "suggested_accuracy": right,
        "given_accuracy": float(1 - truth.label_fault.mean()),
    }


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table of all rows, means over seeds with 95 % t-intervals; one of the costs."""
    quality, cost = [], []
    for noise, rate, state, detector, n in distinct(
        rows, "noise", "rate", "state", "detector", "n"
    ):
        here = [
            r
            for r in rows
            if (r["noise"], r["rate"], r["state"], r["detector"], r["n"])
            == (noise, rate, state, detector, n)
        ]

        def over(name: str, scale: float = 1.0, form: str = ".3f") -> str:
            return mean((r[name] for r in here), form=form, scale=scale)  # noqa: B023

        label = f"{noise} {rate:g}" if rate else noise
        quality.append(
            (
                *(label, state, detector, str(len(here))),
                *(over(m) for m in ("auroc", "auprc", "f1", "best_f1", "miss_rate", "ece")),
                *(over("rate_true"), over("rate_estimated"), over("flagged")),
                *(over("kind_accuracy"), over("suggested_accuracy")),
            )
        )
        cost.append(
            (
                *(label, state, detector, f"{n:,}"),
                *(over("seconds", form=".1f"), over("passes", form=".2f")),
                over("peak_bytes", scale=1e-6, form=".0f"),
            )
        )
    head = ("noise", "state", "detector", "seeds", "AUROC", "AUPRC", "F1", "best F1", "missed")
    more = ("ECE", "true rate", "estimated", "flagged", "kind right", "suggested right")
    costs = ("noise", "state", "detector", "n", "seconds", "plain passes", "peak MB")
    return [Table((*head, *more), tuple(quality)), Table(costs, tuple(cost), "Cost")]


def _key(field: BenchmarkDataset, setting: Setting, name: str) -> dict[str, Any]:
    key = {"data": field.name, "detector": name, **asdict(setting)}
    return {k: key[k] for k in KEYS}
