"""`expunge bench digits`: the demo over kinds of noise, rates and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from expunge._core.progress import Progress, silent
from expunge._core.rng import derive
from expunge.demo import digits as demos
from expunge.demo.digits import TRAINING, Kind, digits_samples, noisy_digits, run_demo
from expunge.demo.noise import LabelNoise, NoisyDataset
from expunge.reporting.tables import outcomes
from expunge.training.loop import TuneConfig
from expunge_bench.datasets import Setting, check_sample_count
from expunge_bench.results import (
    Row,
    Table,
    format_mean,
    group_rows,
    mean_cells,
    paired_differences,
)
from expunge_bench.suites import RowGroup, Suite


@dataclass(frozen=True)
class Digits:
    """The digits of scikit-learn: two thirds to train on or held out, one third to test."""

    name = "digits"
    default_n = 1_000
    noises: ClassVar[Mapping[str, tuple[float, ...]]] = {
        **{"none": (), "symmetric": (0.4,), "pair": (0.4,), "gaussian": (0.5,), "both": (0.4,)}
    }
    training: ClassVar[Mapping[str, TuneConfig]] = {
        "regularised": replace(TRAINING, augment=True),
        "overfit": TRAINING,
    }

    def noisy_dataset(self, setting: Setting) -> NoisyDataset:
        """The first n training digits with the setting's noise; the others are held out."""
        rows, test = demos.split_digits(setting.seed)
        check_sample_count(setting.n, len(rows), where=self.name)
        kinds: Mapping[str, Kind] = {"gaussian": "inputs", "both": "both"}
        kind = kinds.get(setting.noise, "labels")
        noise: LabelNoise = "pair" if setting.noise == "pair" else "symmetric"
        train, truth = noisy_digits(
            rows[: setting.n], noise=noise, rate=setting.rate, kind=kind, seed=setting.seed
        )
        held_out = None
        if len(rows) > setting.n + 1:
            seed = derive(setting.seed, "held out")
            held_out, _ = noisy_digits(
                rows[setting.n :], noise=noise, rate=setting.rate, kind=kind, seed=seed
            )
        return NoisyDataset(train, digits_samples(test, name="digits, test"), truth, held_out)

    def network(self, seed: int) -> nn.Module:
        """An untrained convolutional network."""
        return demos.digits_network(seed)


def bench(
    *,
    kinds: Sequence[Kind],
    rates: Sequence[float],
    seeds: Sequence[int],
    recipe: str = "default",
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each kind, rate, seed and model: the noisy one, the repaired one, the baselines.

    Each demo keeps its run folder under ``out``, so an interrupted benchmark resumes.
    """

    def rows_of(kind: Kind, rate: float, seed: int) -> Iterable[Row]:
        folder = out / f"{kind}-{rate:g}-{seed}"
        result, measured = run_demo(
            kind=kind, rate=rate, seed=seed, recipe=recipe, out=folder, progress=progress
        )
        shared = {
            **{"data": "digits", "kind": kind, "rate": rate, "recipe": recipe, "seed": seed},
            "flagged_rate": float(result.partition.flagged.mean()),
            "estimated_noise_rate": result.partition.noise_rate[0],
            **{name: measured.get(name) for name in ("auroc", "f1", "max_f1")},
            "corrected_label_accuracy": measured["corrected_label_accuracy"],
        }
        for model in outcomes(result):
            assert model.accuracy is not None
            yield {
                **shared,
                "model": model.name,
                "accuracy": model.accuracy.value,
                "seconds": model.seconds,
                "parameters": model.parameters,
            }

    groups = [
        RowGroup(None, lambda _, demo=demo: rows_of(*demo))  # type: ignore[misc]
        for demo in product(kinds, rates, seeds)
    ]
    return SUITE.run(groups, out=out, command=command)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Accuracy and cost by model, and the detection: means over seeds with 95 % t-intervals."""
    outcomes, detection = [], []
    for (kind, rate), here in group_rows(rows, "kind", "rate").items():
        by_model = group_rows(here, "model")
        repaired = by_model["repaired",]
        for (model,), found in by_model.items():
            gain = paired_differences(repaired, found)
            seconds = [r["seconds"] for r in found if r["seconds"] is not None]
            outcomes.append(
                (
                    *(kind, f"{rate:g}", model),
                    *mean_cells(found, ["accuracy"], form=".1f", scale=100),
                    "–" if model == "repaired" else format_mean(gain, form="+.1f", scale=100),
                    f"{np.mean(seconds):.1f}" if seconds else "–",
                    f"{np.mean([r['parameters'] for r in found]):,.0f}",
                )
            )
        detection.append((kind, f"{rate:g}", *mean_cells(repaired, _DETECTION)))
    models = ("model", "accuracy (%)", "Δ repair − this (pp)", "seconds", "parameters")
    return [
        Table(("noise", "rate", *models), tuple(outcomes)),
        Table(("noise", "rate", *_DETECTION.values()), tuple(detection), "Detection"),
    ]


_DETECTION = {
    "flagged_rate": "flagged rate",
    "estimated_noise_rate": "est. noise rate",
    "auroc": "AUROC",
    "f1": "F1",
    "max_f1": "max F1",
    "corrected_label_accuracy": "corrected-label acc.",
}
SUITE = Suite("Digits", ("data", "kind", "rate", "recipe", "model", "seed"), tables)
