"""`expunge bench prune`: accuracy against size, by how many units are cut and by which ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge.data import Samples
from expunge.errors import ConfigError
from expunge.pruning import surgery
from expunge.recipes import recipes, resolve
from expunge_bench.fields import BenchmarkDataset, Setting, cached_model
from expunge_bench.repair import WHOLE, images_per_second
from expunge_bench.suites import ResultStore, Row, Table, distinct, mean

KEYS = ("data", "n", "noise", "rate", "state", "ranking", "fraction", "seed")
FRACTIONS = (0.15, 0.3, 0.5, 0.7)
# Recipes that differ in which units go: by our regression, by chance, by size.
RANKINGS = (WHOLE, "random-units", "magnitude")


def bench(
    field: BenchmarkDataset,
    *,
    settings: Sequence[Setting],
    fractions: Sequence[float] = FRACTIONS,
    rankings: Sequence[str] = RANKINGS,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each setting, fraction of the units and ranking; and one with nothing cut.

    All start from one network and one partition, and are tuned as the repair tunes. rankings:
    recipes, of which the ranking and the pruner count. What ``out`` holds is not made again.
    """
    for name in rankings:
        recipes.get(name)
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise ConfigError(f"a fraction must lie in (0, 1), not {fraction:g}")
    wanted = [("nothing", 0.0), *((name, f) for f in fractions for name in rankings)]
    ledger, recipe = ResultStore(out, KEYS), resolve(WHOLE)
    for setting in settings:
        left = [(n, f) for n, f in wanted if _key(field, setting, n, f) not in ledger]
        if not left:
            continue
        scene = field.scene(setting)
        noisy = cached_model(field, scene, setting, out, progress=progress).model
        found = pipeline.repair_until(
            noisy,
            scene.train,
            until="rank",
            seed=setting.seed,
            out=out / "runs" / setting.name,
            progress=progress,
        )
        split = found.partition
        assert split is not None
        for name, fraction in left:
            model = stages.tune(
                _cut(noisy, scene.train, found, name, fraction, setting.seed),
                scene.train,
                split,
                recipe.tune,
                seed=setting.seed,
                progress=progress,
            )
            size = surgery.size(model, stages.example_batch(scene.train))
            measured = stages.evaluate(model, scene.test, seed=setting.seed)
            ledger.add(
                {
                    **_key(field, setting, name, fraction),
                    "accuracy": measured.accuracy.value,
                    "parameters": size.parameters,
                    "macs": size.macs,
                    "images_per_second": images_per_second(model, scene.test),
                }
            )
    rows = ledger.rows()
    ledger.write("Accuracy against size", command, [table(rows)])
    return rows


def _cut(
    model: nn.Module,
    train: Samples,
    found: pipeline.StageResults,
    name: str,
    fraction: float,
    seed: int,
) -> nn.Module:
    """The noisy model without that fraction of its units."""
    if not fraction:
        return model
    recipe, ranking = resolve(name), found.ranking
    assert found.partition is not None
    if ranking is None or recipe.rank != resolve(WHOLE).rank:
        ranking = stages.rank(model, train, found.partition, seed=seed, **asdict(recipe.rank))
    settings = asdict(replace(recipe.prune, fraction=fraction, count=None))
    return stages.prune(model, stages.plan(ranking, seed=seed, **settings), train)


def table(rows: Sequence[Row]) -> Table:
    """Means over seeds with 95 % t-intervals; what the cut costs is paired by seed."""
    lines = []
    for noise, rate, state, n, name, fraction in distinct(
        rows, "noise", "rate", "state", "n", "ranking", "fraction"
    ):
        here = [
            r
            for r in rows
            if (r["noise"], r["rate"], r["state"], r["n"]) == (noise, rate, state, n)
        ]
        whole = {r["seed"]: r for r in here if r["ranking"] == "nothing"}
        found = [r for r in here if (r["ranking"], r["fraction"]) == (name, fraction)]
        pairs = [(r, whole[r["seed"]]) for r in found if r["seed"] in whole]

        def share(key: str) -> str:
            return f"{100 * np.mean([r[key] / w[key] for r, w in pairs]):.0f}" if pairs else "–"  # noqa: B023

        lines.append(
            (
                f"{noise} {rate:g}" if rate else noise,
                *(state, f"{100 * fraction:.0f}", name, str(len(found))),
                mean((r["accuracy"] for r in found), form=".1f", scale=100),
                "–"
                if name == "nothing"
                else mean(
                    (r["accuracy"] - w["accuracy"] for r, w in pairs), form="+.1f", scale=100
                ),
                *(share("parameters"), share("macs"), share("images_per_second")),
            )
        )
    head = (
        "noise",
        "state",
        "cut %",
        "ranking",
        "seeds",
        "accuracy",
        "Δ vs unpruned (pp)",
    )
    return Table((*head, "parameters %", "macs %", "speed %"), tuple(lines))


def _key(field: BenchmarkDataset, setting: Setting, name: str, fraction: float) -> dict[str, Any]:
    key = {"data": field.name, "ranking": name, "fraction": fraction, **asdict(setting)}
    return {k: key[k] for k in KEYS}
