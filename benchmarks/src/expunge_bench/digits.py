"""`expunge bench digits`: the demo over kinds of noise, rates and seeds, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from expunge._core.progress import Progress, silent
from expunge._core.rng import derive
from expunge.demo import digits as demos
from expunge.demo.digits import TRAINING, Kind, demo
from expunge.demo.noise import LabelNoise, NoisyDataset
from expunge.errors import DataError
from expunge.reporting.tables import outcomes
from expunge.training.loop import TuneConfig
from expunge_bench.fields import Setting
from expunge_bench.suites import Table, distinct, mean


@dataclass(frozen=True)
class Digits:
    """The digits as a suite takes them: what is not trained on is held out, a third is to test."""

    name = "digits"
    most = 1_000
    noises: ClassVar[Mapping[str, tuple[float, ...]]] = {
        **{"none": (), "symmetric": (0.4,), "pair": (0.4,), "gaussian": (0.5,), "both": (0.4,)}
    }
    training: ClassVar[Mapping[str, TuneConfig]] = {
        "fresh": replace(TRAINING, augment=True),
        "memorised": TRAINING,
    }

    def scene(self, setting: Setting) -> NoisyDataset:
        """The setting's faults in n digits, and in those that are held out."""
        rows, test = demos.split_digits(setting.seed)
        if setting.n > len(rows):
            raise DataError(f"{setting.n} digits of {len(rows)} to train on", fix="lower n")
        kinds: Mapping[str, Kind] = {"gaussian": "inputs", "both": "both"}
        kind = kinds.get(setting.noise, "labels")
        noise: LabelNoise = "pair" if setting.noise == "pair" else "symmetric"
        train, truth = demos.noisy_digits(
            rows[: setting.n], noise, setting.rate, kind, setting.seed
        )
        held_out = None
        if len(rows) > setting.n + 1:
            other = derive(setting.seed, "held out")
            held_out, _ = demos.noisy_digits(rows[setting.n :], noise, setting.rate, kind, other)
        return NoisyDataset(train, demos.digits_samples(test, "digits, test"), truth, held_out)

    def network(self, seed: int) -> nn.Module:
        """An untrained convolutional network."""
        return demos.network(seed)


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
                for row in outcomes(result):
                    assert row.accuracy is not None
                    measured = {"model": row.name, "accuracy": row.accuracy.value}
                    size = {"seconds": row.seconds, "parameters": row.parameters}
                    rows.append({**common, **measured, **size})
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "table.md").write_text(table(rows))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: accuracy by model with 95 % intervals over seeds; then the detection."""
    outcome, detection = [], []
    for kind, rate in distinct(rows, "kind", "rate"):
        here = [r for r in rows if (r["kind"], r["rate"]) == (kind, rate)]
        by_model = {m: [r for r in here if r["model"] == m] for (m,) in distinct(here, "model")}
        repaired = by_model["repaired"]
        best = {r["seed"]: r["accuracy"] for r in repaired}
        for model, found in by_model.items():
            ahead = [best[r["seed"]] - r["accuracy"] for r in found]
            seconds = [r["seconds"] for r in found if r["seconds"] is not None]
            outcome.append(
                (
                    *(kind, f"{rate:g}", model),
                    mean((r["accuracy"] for r in found), form=".1f", scale=100),
                    "–" if model == "repaired" else mean(ahead, form="+.1f", scale=100),
                    f"{np.mean(seconds):.1f}" if seconds else "–",
                    f"{np.mean([r['parameters'] for r in found]):,.0f}",
                )
            )
        names = ("flagged", "rate_estimated", "auroc", "f1", "best_f1", "suggested_accuracy")
        numbers = (mean(r[name] for r in repaired) for name in names)
        detection.append((kind, f"{rate:g}", *numbers))
    models = ("model", "accuracy", "repaired is ahead by", "seconds", "parameters")
    faults = ("flagged", "estimated rate", "AUROC", "F1", "best F1", "suggested right")
    tables = (
        Table(("noise", "rate", *models), tuple(outcome)),
        Table(("noise", "rate", *faults), tuple(detection)),
    )
    return "\n".join(t.markdown() for t in tables)
