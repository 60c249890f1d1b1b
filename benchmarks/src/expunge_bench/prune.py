"""`expunge bench prune`: accuracy against size, by pruned fraction and ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge.data import Samples
from expunge.errors import ConfigError, check_range
from expunge.pruning import surgery
from expunge.recipes import recipes, resolve
from expunge.records import NeuronRanking, Partition
from expunge_bench.datasets import BenchmarkDataset, Setting, cached_model
from expunge_bench.repair import REPAIR, samples_per_second
from expunge_bench.results import (
    Row,
    Table,
    format_mean,
    group_rows,
    mean_cells,
    noise_label,
    paired_differences,
)
from expunge_bench.suites import RowGroup, Suite

FRACTIONS = (0.15, 0.3, 0.5, 0.7)
# Recipes that differ in which units they prune: by our regression, at random, by magnitude.
RANKINGS = (REPAIR, "random-units", "magnitude")
UNPRUNED = "unpruned"


def bench(
    dataset: BenchmarkDataset,
    *,
    settings: Sequence[Setting],
    fractions: Sequence[float] = FRACTIONS,
    rankings: Sequence[str] = RANKINGS,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each setting, pruned fraction and ranking, and one without pruning.

    All start from the same network and partition, and are fine-tuned as the repair is.

    Parameters
    ----------
    dataset
        The data.
    settings
        Noise and networks, see `expunge_bench.datasets.grid`.
    fractions
        Fractions of the units, in (0, 1).
    rankings
        Recipes; only their ranking and pruner are used.
    out
        Where networks, run folders, rows and tables go.
    command, progress
        The command line, for the page; called during the stages.

    Raises
    ------
    ConfigError
        If a recipe is unknown or a fraction lies outside (0, 1).
    """
    for name in rankings:
        recipes.get(name)
    check_range(ConfigError, {f"fraction {f:g}": (f, "(0, 1)") for f in fractions})
    variants = [(UNPRUNED, 0.0), *((name, f) for f in fractions for name in rankings)]

    def rows_of(setting: Setting, missing: Sequence[Row]) -> Iterable[Row]:
        data = dataset.noisy_dataset(setting)
        model = cached_model(dataset, data, setting, out=out, progress=progress).model
        found = pipeline.repair_until(
            model,
            data.train,
            until="rank",
            seed=setting.seed,
            out=out / "runs" / setting.name,
            progress=progress,
        )
        partition, config = found.partition, resolve(REPAIR).tune
        assert partition is not None
        pruner = _Pruner(model, data.train, partition, found.ranking, setting.seed)
        for key in missing:
            pruned = pruner.prune(key["ranking"], key["fraction"])
            tuned = stages.tune(
                pruned, data.train, partition, config, seed=setting.seed, progress=progress
            )
            size = surgery.size(tuned, stages.example_batch(data.train))
            yield {
                **key,
                "accuracy": stages.evaluate(tuned, data.test, seed=setting.seed).accuracy.value,
                "parameters": size.parameters,
                "macs": size.macs,
                "samples_per_second": samples_per_second(tuned, data.test),
            }

    groups = [
        RowGroup(
            [
                SUITE.key(
                    {
                        "data": dataset.name,
                        "ranking": name,
                        "fraction": fraction,
                        **setting.row_keys(),
                    }
                )
                for name, fraction in variants
            ],
            partial(rows_of, setting),
        )
        for setting in settings
    ]
    return SUITE.run(groups, out=out, command=command)


class _Pruner:
    """Prunes one noisy model by any ranking and fraction."""

    def __init__(
        self,
        model: nn.Module,
        train: Samples,
        partition: Partition,
        ranking: NeuronRanking | None,
        seed: int,
    ) -> None:
        self._model, self._train, self._partition = model, train, partition
        self._ranking, self._seed = ranking, seed

    def prune(self, name: str, fraction: float) -> nn.Module:
        """The model without that fraction of its units; the model itself for fraction 0."""
        if not fraction:
            return self._model
        recipe, ranking = resolve(name), self._ranking
        if ranking is None or recipe.rank != resolve(REPAIR).rank:
            ranking = stages.rank(
                self._model, self._train, self._partition, recipe.rank, seed=self._seed
            )
        config = replace(recipe.prune, fraction=fraction, count=None)
        plan = stages.plan(ranking, config, seed=self._seed)
        return stages.prune(self._model, plan, self._train)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals; differences and ratios are paired by seed."""
    lines = []
    for (noise, rate, state, _), here in group_rows(rows, "noise", "rate", "state", "n").items():
        variants = group_rows(here, "ranking", "fraction")
        unpruned = variants.get((UNPRUNED, 0.0), [])
        by_seed = {r["seed"]: r for r in unpruned}
        for (name, fraction), found in variants.items():
            difference = paired_differences(found, unpruned)
            ratios = [
                [100 * r[k] / by_seed[r["seed"]][k] for r in found if r["seed"] in by_seed]
                for k in ("parameters", "macs", "samples_per_second")
            ]
            lines.append(
                (
                    *(noise_label(noise, rate), state, f"{100 * fraction:.0f}", name),
                    str(len(found)),
                    *mean_cells(found, ["accuracy"], form=".1f", scale=100),
                    "–" if name == UNPRUNED else format_mean(difference, form="+.1f", scale=100),
                    *(f"{np.mean(ratio):.0f}" if ratio else "–" for ratio in ratios),
                )
            )
    head = ("noise", "state", "pruned (%)", "ranking", "seeds", "accuracy (%)")
    more = ("Δ vs unpruned (pp)", "parameters (%)", "MACs (%)", "speed (%)")
    return [Table((*head, *more), tuple(lines))]


SUITE = Suite(
    "Accuracy against size",
    ("data", "n", "noise", "rate", "state", "ranking", "fraction", "seed"),
    tables,
)
