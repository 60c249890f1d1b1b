"""`expunge bench digits`: the demo over kinds of noise, rates and seeds, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from expunge import reports
from expunge.benchmarks.demo import Kind, demo
from expunge.progress import Progress, silent


def bench(
    *,
    kinds: tuple[Kind, ...],
    rates: tuple[float, ...],
    seeds: tuple[int, ...],
    recipe: str = "default",
    out: Path,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each kind, rate, seed and model (noisy, repaired, every control).

    Each demo keeps its run folder under ``out``, so an interrupted bench goes on where it stopped.
    Writes ``rows.jsonl`` and ``table.md``.
    """
    rows = []
    for kind in kinds:
        for rate in rates:
            for seed in seeds:
                folder = out / f"{kind}-{rate:g}-{seed}"
                result, truth = demo(
                    kind=kind, rate=rate, seed=seed, recipe=recipe, out=folder, progress=progress
                )
                common: dict[str, Any] = {
                    **{"data": "digits", "kind": kind, "rate": rate, "seed": seed},
                    "flagged": float(result.partition.flagged.mean()),
                    "rate_estimated": result.partition.noise_rate[0],
                    **{name: truth.get(name) for name in ("auroc", "f1", "best_f1")},
                    "suggested_accuracy": truth["suggested_accuracy"],
                }
                for row in reports.outcomes(result):
                    assert row.accuracy is not None
                    measured = {"model": row.name, "accuracy": row.accuracy.value}
                    size = {"seconds": row.seconds, "parameters": row.parameters}
                    rows.append({**common, **measured, **size})
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "table.md").write_text(table(rows))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: accuracy by model with 95 % intervals over seeds; then the detection."""
    lines = [
        "| noise | rate | model | accuracy | repaired is ahead by | seconds | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, rate in _distinct(rows, "kind", "rate"):
        here = [r for r in rows if (r["kind"], r["rate"]) == (kind, rate)]
        by_model = {m: [r for r in here if r["model"] == m] for (m,) in _distinct(here, "model")}
        repaired = {r["seed"]: r["accuracy"] for r in by_model["repaired"]}
        for model, found in by_model.items():
            ahead = [repaired[r["seed"]] - r["accuracy"] for r in found]
            seconds = [r["seconds"] for r in found if r["seconds"] is not None]
            cells = [
                *(kind, f"{rate:g}", model, _mean([r["accuracy"] for r in found])),
                "–" if model == "repaired" else _mean(ahead, signed=True),
                f"{np.mean(seconds):.1f}" if seconds else "–",
                f"{np.mean([r['parameters'] for r in found]):,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| noise | rate | flagged | estimated rate | AUROC | F1 | best F1 | suggested right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, rate in _distinct(rows, "kind", "rate"):
        once = [r for r in rows if (r["kind"], r["rate"], r["model"]) == (kind, rate, "repaired")]
        names = ("flagged", "rate_estimated", "auroc", "f1", "best_f1", "suggested_accuracy")
        cells = [_decimals([r[name] for r in once]) for name in names]
        lines.append(f"| {kind} | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _distinct(rows: Iterable[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def _mean(values: list[float], *, signed: bool = False) -> str:
    """Mean in percent, with half the width of its 95 % t-interval over seeds."""
    form = "+.1f" if signed else ".1f"
    text = f"{100 * np.mean(values):{form}}"
    if len(values) < 2:
        return text
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{text} ± {100 * half:.1f}"


def _decimals(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.3f}" if known else "–"
