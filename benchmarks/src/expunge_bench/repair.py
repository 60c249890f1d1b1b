"""`expunge bench repair`: noise × state of the network × recipe, with baselines, oracles, peers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge.data import Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.signals import collect
from expunge.pruning import surgery
from expunge.recipes import recipes
from expunge.records import Evaluation, RepairResult
from expunge.reporting.summary import repair_seconds
from expunge_bench.datasets import BenchmarkDataset, Setting, cached_model
from expunge_bench.oracles import ORACLE, OracleInput, oracles_and_peers
from expunge_bench.peers import BenchmarkCase
from expunge_bench.results import (
    Row,
    Table,
    format_mean,
    group_rows,
    mean_cells,
    noise_label,
    paired_differences,
)
from expunge_bench.suites import RowGroup, Suite, check_names
from expunge_bench.timing import timed

# The repair that every other row is compared with, and the row of the unrepaired model.
REPAIR, UNREPAIRED = "default", "no-op"
BASELINES = (
    *(UNREPAIRED, "iterative", "finetune-only", "random-units", "magnitude", "rlap"),
    *("retrain-filtered", "retrain-filtered-3x", "finetune-all-labels"),
    *("elr", "co-teaching", "divide-mix"),
)


def bench(
    dataset: BenchmarkDataset,
    *,
    settings: Sequence[Setting],
    names: Sequence[str] = (),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each setting and recipe. The repair itself is always among them.

    Parameters
    ----------
    dataset
        The data.
    settings
        Noise and networks, see `expunge_bench.datasets.grid`.
    names
        Recipes, oracles and peers; `BASELINES` and all oracles and peers, if empty. The column
        ``oracle_gap_recovered`` needs the unrepaired model and ``oracle-retrain``.
    out
        Where networks, run folders, rows and tables go.
    command, progress
        The command line, for the page; called during the stages.

    Raises
    ------
    ConfigError
        If a name is unknown.

    Notes
    -----
    Accuracy is that of the last step: test data decide nothing.
    """
    names = names or (*BASELINES, *oracles_and_peers.names())
    check_names("recipe", names, [*recipes.names(), *oracles_and_peers.names()])
    names = tuple(dict.fromkeys((*names, REPAIR)))

    def rows_of(setting: Setting, missing: Sequence[Row]) -> Iterable[Row]:
        data = dataset.noisy_dataset(setting)
        model = cached_model(dataset, data, setting, out=out, progress=progress).model
        case = BenchmarkCase(dataset, model, data, setting, out, progress)
        return _measure_recipes(case, names, missing)

    groups = [
        RowGroup([_key(dataset, setting, name) for name in names], partial(rows_of, setting))
        for setting in settings
    ]
    return SUITE.run(groups, out=out, command=command)


def _key(dataset: BenchmarkDataset, setting: Setting, recipe: str) -> dict[str, Any]:
    return SUITE.key({"data": dataset.name, "recipe": recipe, **setting.row_keys()})


def _measure_recipes(
    case: BenchmarkCase, names: Sequence[str], missing: Sequence[Row]
) -> Iterable[Row]:
    """Run the recipes in one run folder, then the missing oracles and peers; a row for each."""
    setting, epoch_seconds = case.setting, plain_epoch_seconds(case)
    train_seconds = case.dataset.training[setting.state].n_epochs * epoch_seconds
    _, pass_seconds = timed(lambda: collect(case.model, case.data.train))
    result = pipeline.repair(
        case.model,
        case.data.train,
        case.data.test,
        recipe=REPAIR,
        held_out=case.data.held_out,
        baselines=tuple(name for name in names if name in recipes.names() and name != REPAIR),
        seed=setting.seed,
        out=case.out / "runs" / setting.name,
        train_seconds=train_seconds,
        progress=case.progress,
    )

    def row(name: str, model: nn.Module, measured: Evaluation, seconds: float) -> Row:
        return {
            **_key(case.dataset, setting, name),
            **measure_model(model, measured, case.data),
            "flagged_rate": float(result.partition.flagged.mean()) if name == REPAIR else None,
            "decision": result.decision.action if name == REPAIR else None,
            "seconds": seconds,
            "train_seconds": train_seconds,
            "epochs": seconds / epoch_seconds,
            "passes": seconds / pass_seconds,
        }

    wanted = {key["recipe"] for key in missing}
    if REPAIR in wanted:
        assert result.after is not None
        yield row(REPAIR, result.model, result.after, repair_seconds(result))
    for name, baseline in result.baselines.items():
        if name in wanted:
            assert baseline.model is not None
            seconds = 0.0 if name == UNREPAIRED else baseline.seconds
            yield row(name, baseline.model, baseline.evaluation, seconds)
    for name in names:
        if name in wanted and name in oracles_and_peers.names():
            model, seconds = _run_oracle(name, case, result)
            measured = stages.evaluate(model, case.data.test, seed=setting.seed)
            yield row(name, model, measured, seconds)


def _run_oracle(name: str, case: BenchmarkCase, result: RepairResult) -> tuple[nn.Module, float]:
    return timed(lambda: oracles_and_peers.get(name)(OracleInput(case, result)))


def measure_model(model: nn.Module, measured: Evaluation, data: NoisyDataset) -> dict[str, Any]:
    """Quality, size and speed of a model."""
    size = surgery.size(model, stages.example_batch(data.train))
    metrics = {name: metric.value for name, metric in measured.metrics.items()}
    return {
        "accuracy": measured.accuracy.value,
        **{name: metrics[name] for name in ("macro_f1", "worst_class", "calibration_error")},
        "wrong_labels_reproduced": wrong_labels_reproduced(model, data),
        "parameters": size.parameters,
        "macs": size.macs,
        "samples_per_second": samples_per_second(model, data.test),
    }


def with_oracle_gaps(rows: Sequence[Row]) -> list[Row]:
    """Add ``oracle_gap_recovered = (accuracy − unrepaired) / (oracle − unrepaired)`` to rows.

    The unrepaired model and the oracle are those of the same setting; None if one is missing, or
    if both have the same accuracy.
    """
    accuracy = {tuple(SUITE.key(row).values()): row["accuracy"] for row in rows}

    def gap(row: Row) -> float | None:
        unrepaired, oracle = (
            accuracy.get(tuple(SUITE.key({**row, "recipe": name}).values()))
            for name in (UNREPAIRED, ORACLE)
        )
        if unrepaired is None or oracle is None or oracle == unrepaired:
            return None
        return float((row["accuracy"] - unrepaired) / (oracle - unrepaired))

    return [{**row, "oracle_gap_recovered": gap(row)} for row in rows]


def wrong_labels_reproduced(model: nn.Module, data: NoisyDataset) -> float | None:
    """The fraction of wrong training labels that the model predicts; None without wrong labels."""
    wrong = data.truth.label_fault
    if not wrong.any():
        return None
    samples = data.train.subset(np.flatnonzero(wrong))
    predicted = collect(model, samples).logits.argmax(axis=1)
    return float((predicted == samples.labels).mean())


def plain_epoch_seconds(case: BenchmarkCase) -> float:
    """Seconds of one epoch of the noisy model's training at the present speed of the machine.

    It is measured here, because the stored model may be from another machine.
    """
    one_epoch = replace(case.dataset.training[case.setting.state], epochs=1)
    _, seconds = timed(
        lambda: stages.tune(case.model, case.data.train, None, one_epoch, seed=case.setting.seed)
    )
    return seconds


def samples_per_second(model: nn.Module, samples: Samples) -> float:
    """Inference speed on the first 2,048 samples, in batches of 256."""
    few = samples.subset(np.arange(min(2048, len(samples))))
    _, seconds = timed(lambda: collect(model, few))
    return len(few) / seconds


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals; differences to the repair are paired by seed."""
    lines = []
    for (noise, rate, state, _), here in group_rows(rows, "noise", "rate", "state", "n").items():
        by_recipe = group_rows(here, "recipe")
        repaired = by_recipe.get((REPAIR,), [])
        for (recipe,), found in by_recipe.items():
            gain = paired_differences(repaired, found)
            time = (100 * r["seconds"] / r["train_seconds"] for r in found)
            percent = partial(mean_cells, found, scale=100)
            lines.append(
                (
                    *(noise_label(noise, rate), state, recipe, str(len(found))),
                    *percent(["accuracy"], form=".1f"),
                    "–" if recipe == REPAIR else format_mean(gain, form="+.1f", scale=100),
                    *percent(["oracle_gap_recovered"], form=".0f"),
                    *percent(
                        ["wrong_labels_reproduced", "worst_class", "calibration_error"], form=".1f"
                    ),
                    *mean_cells(found, ["seconds"], form=".0f"),
                    format_mean(time, form=".0f"),
                    *mean_cells(found, ["epochs", "passes"], form=".1f"),
                    *(f"{np.mean([r[k] for r in found]):,.0f}" for k in ("parameters", "macs")),
                    *mean_cells(found, ["samples_per_second"], form=".0f"),
                )
            )
    head = (
        *("noise", "state", "recipe", "seeds", "accuracy (%)", "Δ repair − this (pp)"),
        *("oracle gap recovered (%)", "wrong labels reproduced (%)", "worst class (%)", "ECE (%)"),
        *(
            "seconds",
            "training time (%)",
            "plain epochs",
            "plain passes",
            "parameters",
            "MACs",
            "samples/s",
        ),
    )
    return [Table(head, tuple(lines))]


SUITE = Suite(
    "Repair",
    ("data", "n", "noise", "rate", "state", "recipe", "seed"),
    tables,
    derive=with_oracle_gaps,
)
