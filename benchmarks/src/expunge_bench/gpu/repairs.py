"""Repairs of networks trained on human labels, and of memorised symmetric noise, with peers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from expunge import pipeline, stages
from expunge.records import Evaluation, RepairResult
from expunge.reporting.summary import repair_seconds
from expunge_bench.datasets import cached_model
from expunge_bench.gpu.setup import GpuRun, Row, peak_memory_mb, pieces
from expunge_bench.oracles import OracleInput, oracles_and_peers
from expunge_bench.peers import BenchmarkCase
from expunge_bench.repair import measure_model
from expunge_bench.timing import timed

# By piece: recipes are run as baselines of `default`, from its partition.
_GROUPS: dict[str, tuple[str, ...]] = {
    "ours": ("instant", "instant-half", "head-refit", "sap", "ssd", "iterative"),
    "semi": ("semi",),
    "peers": ("retrain-filtered-3x", "finetune-all-labels", "elr", "co-teaching"),
    "oracles": ("oracle-retrain", "oracle-finetune", "cleanlab-retrain"),
    "divide-mix": ("divide-mix",),
}


def _case(run: GpuRun, noise: str, piece: str) -> tuple[BenchmarkCase, float]:
    """The noisy model and its data, in a folder of this piece; and the training's seconds."""
    setting, out = run.setting(noise), run.work / f"{noise}-{piece}"
    stored = run.work / f"{noise}-model"
    if stored.is_dir() and not out.exists():
        # In one step: a copy that was interrupted is no folder of this piece.
        shutil.copytree(stored, temporary := out.with_suffix(".tmp"), dirs_exist_ok=True)
        temporary.rename(out)
    data = run.cifar.noisy_dataset(setting)
    trained = cached_model(run.cifar, data, setting, out=out)
    return BenchmarkCase(run.cifar, trained.model, data, setting, out, _silent), trained.seconds


def _silent(what: str, done: int, total: int) -> None:
    pass


def _model(run: GpuRun, noise: str) -> Iterator[Row]:
    """Train the network on noisy labels, and repair it by `default`."""
    case, train_seconds = _case(run, noise, "model")
    row = partial(_row, case, train_seconds=train_seconds)
    measured = stages.evaluate(case.model, case.data.test, seed=run.seed)
    yield row("no-op", case.model, measured, seconds=0.0)
    result = _repair(case, ())
    assert result.after is not None
    yield {
        **row("default", result.model, result.after, seconds=repair_seconds(result)),
        **{f"{stage}_seconds": result.seconds.get(stage) for stage in ("score", "partition")},
    }


def _group(run: GpuRun, noise: str, group: str) -> Iterator[Row]:
    """Run recipes, oracles and peers one after the other; a row for each."""
    case, train_seconds = _case(run, noise, group)
    row = partial(_row, case, train_seconds=train_seconds)
    done: list[str] = []
    for name in _GROUPS[group]:
        if name in oracles_and_peers.names():
            continue
        done.append(name)
        found = _repair(case, tuple(done)).baselines.get(name)
        if found is None or found.model is None:
            yield {"name": name, "note": "a class would have no sample left"}
            continue
        yield row(name, found.model, found.evaluation, seconds=found.seconds)
    for name in _GROUPS[group]:
        if name in oracles_and_peers.names():
            given = OracleInput(case, _repair(case, ()))
            try:
                model, seconds = timed(lambda: oracles_and_peers.get(name)(given))  # noqa: B023
            except ImportError as error:
                yield {"name": name, "note": f"not installed: {error.name}"}
                continue
            measured = stages.evaluate(model, case.data.test, seed=run.seed)
            yield row(name, model, measured, seconds=seconds)


def _repair(case: BenchmarkCase, baselines: tuple[str, ...]) -> RepairResult:
    """Repair by `default`; stages that were done before are read from the run folder."""
    return pipeline.repair(
        case.model,
        case.data.train,
        case.data.test,
        held_out=case.data.held_out,
        baselines=baselines,
        seed=case.setting.seed,
        out=case.out / "run",
    )


def _row(
    case: BenchmarkCase,
    name: str,
    model: nn.Module,
    measured: Evaluation,
    *,
    seconds: float,
    train_seconds: float,
) -> Row:
    facts: dict[str, Any] = measure_model(model, measured, case.data)
    return {
        "name": name,
        "n": case.setting.n,
        **facts,
        "seconds": seconds,
        "train_seconds": train_seconds,
        "peak_memory_mb": peak_memory_mb(),
    }


def _register(noise: str) -> None:
    @pieces.register(f"{noise}-model", needs=("speed",))
    def model(run: GpuRun) -> Iterator[Row]:
        """Train the network on noisy labels, and repair it by `default`."""
        return _model(run, noise)

    for group in _GROUPS:

        @pieces.register(f"{noise}-{group}", needs=(f"{noise}-model",))
        def repairs(run: GpuRun, group: str = group) -> Iterator[Row]:
            """Repair it."""
            return _group(run, noise, group)


for _noise in ("human", "memorised"):
    _register(_noise)
