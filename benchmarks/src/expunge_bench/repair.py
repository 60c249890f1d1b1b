"""`expunge bench repair`: noise × model state × recipe, with controls, oracles and peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.registry import NoMetadata, Registry
from expunge.data import Samples
from expunge.demo.noise import GroundTruth, NoisyDataset
from expunge.detection.signals import collect
from expunge.errors import ConfigError, did_you_mean
from expunge.models import inspection
from expunge.pruning import surgery
from expunge.recipes import recipes, resolve
from expunge.records import Evaluation, Partition, RepairResult
from expunge.reporting.summary import repair_seconds
from expunge.training.optimisation import TuneConfig
from expunge_bench.fields import BenchmarkDataset, Setting, cached_model
from expunge_bench.peers import BenchmarkCase, peers
from expunge_bench.suites import ResultStore, Row, Table, distinct, mean

KEYS = ("data", "n", "noise", "rate", "state", "recipe", "seed")
# The whole repair; everything else in the table is a control, an oracle or a peer.
WHOLE = "default"
CONTROLS = (
    *("nothing", "rounds", "finetune-only", "random-units", "magnitude", "rlap"),
    *(
        "retrain-filtered",
        "retrain-filtered-3x",
        "finetune-all-labels",
        "elr",
        "co-teaching",
        "divide-mix",
    ),
)
# Trains from scratch on what is truly clean: the end of the scale that repairs are measured on.
ORACLE = "oracle-retrain"


@dataclass(frozen=True)
class OracleInput:
    """What an oracle or a peer starts from: the case, and what the repair has done with it."""

    case: BenchmarkCase
    result: RepairResult


# Contenders that know the truth, or come from other packages: a model, and its seconds.
oracles_and_peers: Registry[Callable[[OracleInput], nn.Module], NoMetadata] = Registry(
    "contender", NoMetadata
)


@oracles_and_peers.register("oracle-finetune")
def oracle_finetune(given: OracleInput) -> nn.Module:
    """Oracle: the repair's own tuning on the truly clean samples."""
    case, config = given.case, replace(resolve(WHOLE).tune, targets="filter")
    split = replace(true_partition(case.scene), memorised=given.result.partition.memorised)
    return stages.tune(case.model, case.scene.train, split, config, seed=case.setting.seed)


@oracles_and_peers.register(ORACLE)
def oracle_retrain(given: OracleInput) -> nn.Module:
    """Oracle: a fresh network, a full schedule with augmentation, the truly clean samples."""
    return _retrained(given.case, true_partition(given.case.scene))


@oracles_and_peers.register("cleanlab-retrain")
def cleanlab_retrain(given: OracleInput) -> nn.Module:
    """Peer: a fresh network and a full schedule on what confident learning keeps (cleanlab)."""
    verdict = peers.get("cleanlab")(given.case)
    return _retrained(given.case, _partition_of(given.case.scene, verdict.flagged))


def bench(
    field: BenchmarkDataset,
    *,
    settings: Sequence[Setting],
    names: Sequence[str] = (),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each setting and recipe; what ``out`` holds is not made again.

    names: recipes, ``oracle-finetune``, ``oracle-retrain``, ``cleanlab-retrain``; all, if none is
    named. The repair is always there; its gap needs ``nothing`` and ``oracle-retrain``. Accuracy is
    that at the last step; test data decide nothing. Trained networks stay in ``out/models``, runs
    in ``out/runs``.
    """
    chosen = _checked(tuple(names) or (*CONTROLS, *oracles_and_peers.names()))
    ledger = ResultStore(out, KEYS)
    for setting in settings:
        if all(_key(field, setting, name) in ledger for name in chosen):
            continue
        scene = field.scene(setting)
        model = cached_model(field, scene, setting, out, progress=progress).model
        case = BenchmarkCase(field, model, scene, setting, out, progress)
        _measured(case, _training_seconds(case), chosen, ledger)
    rows = with_gaps(ledger.rows())
    ledger.write("Repair", command, tables(rows))
    return rows


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    known = {*recipes.names(), *oracles_and_peers.names()}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no recipe '{name}'", fix=did_you_mean(name, known))
    return tuple(dict.fromkeys((*names, WHOLE)))


def _measured(
    case: BenchmarkCase, train_seconds: float, names: tuple[str, ...], ledger: ResultStore
) -> None:
    """Carry out the recipes in one run folder, then oracles and peers; add a row for each."""
    field, setting = case.field, case.setting
    train, test = case.scene.train, case.scene.test
    controls = tuple(name for name in names if name in recipes.names() and name != WHOLE)
    result = pipeline.repair(
        case.model,
        train,
        test,
        recipe=WHOLE,
        held_out=case.scene.held_out,
        baselines=controls,
        seed=setting.seed,
        out=case.out / "runs" / setting.name,
        train_seconds=train_seconds,
        progress=case.progress,
    )
    assert result.after is not None
    flagged = float(result.partition.flagged.mean())

    def add(name: str, model: nn.Module, found: Evaluation, seconds: float) -> None:
        if _key(field, setting, name) in ledger:
            return
        size = surgery.size(model, stages.example_batch(train))
        ledger.add(
            {
                **_key(field, setting, name),
                "accuracy": found.accuracy.value,
                "macro_f1": found.metrics["macro_f1"].value,
                "worst_class": found.metrics["worst_class"].value,
                "calibration_error": found.metrics["calibration_error"].value,
                "forgetting": still_predicted(model, case.scene),
                "flagged": flagged if name == WHOLE else None,
                "verdict": result.decision.action if name == WHOLE else None,
                "seconds": seconds,
                "train_seconds": train_seconds,
                "parameters": size.parameters,
                "macs": size.macs,
                "images_per_second": images_per_second(model, test),
            }
        )

    add(WHOLE, result.model, result.after, repair_seconds(result))
    for name, control in result.baselines.items():
        assert control.model is not None
        seconds = 0.0 if name == "nothing" else control.seconds
        add(name, control.model, control.evaluation, seconds)
    for name in names:
        if name in oracles_and_peers.names() and _key(field, setting, name) not in ledger:
            started = time.perf_counter()
            model = oracles_and_peers.get(name)(OracleInput(case, result))
            spent = time.perf_counter() - started
            add(name, model, stages.evaluate(model, test, seed=setting.seed), spent)


def with_gaps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows with ``gap_recovered = (accuracy − noisy) / (oracle retrain − noisy)``.

    Noisy is the row ``nothing`` of the same setting; None where that or the oracle is missing.
    """
    at = {tuple(row[k] for k in KEYS): row["accuracy"] for row in rows}
    more = []
    for row in rows:
        noisy, oracle = (
            at.get(tuple(name if k == "recipe" else row[k] for k in KEYS))
            for name in ("nothing", ORACLE)
        )
        gap = None
        if noisy is not None and oracle is not None and oracle != noisy:
            gap = (row["accuracy"] - noisy) / (oracle - noisy)
        more.append({**row, "gap_recovered": gap})
    return more


def still_predicted(model: nn.Module, scene: NoisyDataset) -> float | None:
    """Share of the wrong labels that the model still predicts for their own samples."""
    wrong = scene.truth.label_fault
    if not wrong.any():
        return None
    at = scene.train.subset(np.flatnonzero(wrong))
    return float((collect(model, at).logits.argmax(axis=1) == at.labels).mean())


def true_partition(scene: NoisyDataset) -> Partition:
    """What is really so, as a partition: for oracles alone."""
    truth: GroundTruth = scene.truth
    split = _partition_of(scene, truth.noisy)
    return replace(
        split,
        p_label_fault=truth.label_fault.astype(np.float64),
        p_input_fault=truth.input_fault.astype(np.float64),
        suggested_label=truth.labels,
    )


def _partition_of(scene: NoisyDataset, flagged: np.ndarray) -> Partition:
    """A hard decision as a partition; nothing is suggested."""
    train, rate = scene.train, float(flagged.mean())
    p, none = flagged.astype(np.float64), np.zeros(len(flagged))
    return Partition(
        train.ids, train.labels, p, p, none, train.labels, np.ones(len(p)), 0.5, (rate, rate, rate)
    )


def _retrained(case: BenchmarkCase, split: Partition) -> nn.Module:
    config: TuneConfig = replace(case.field.training["fresh"], targets="filter")
    fresh = inspection.reinitialise(case.model, case.setting.seed)
    return stages.tune(
        fresh,
        case.scene.train,
        split,
        seed=case.setting.seed,
        progress=case.progress,
        **asdict(config),
    )


def _training_seconds(case: BenchmarkCase) -> float:
    """What the training of the noisy model takes at the machine's present speed.

    One epoch of it is timed and multiplied: the network itself may be from another day.
    """
    config = case.field.training[case.setting.state]
    one = asdict(replace(config, epochs=1))
    started = time.perf_counter()
    stages.tune(case.model, case.scene.train, seed=case.setting.seed, **one)
    return config.epochs * (time.perf_counter() - started)


def images_per_second(model: nn.Module, samples: Samples) -> float:
    """Samples a second of plain inference, batches of 256, on the first 2,048."""
    few = samples.subset(np.arange(min(2048, len(samples))))
    started = time.perf_counter()
    collect(model, few)
    return len(few) / (time.perf_counter() - started)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals; the repair's lead is paired by seed."""
    lines = []
    for noise, rate, state, n in distinct(rows, "noise", "rate", "state", "n"):
        here = [
            r
            for r in rows
            if (r["noise"], r["rate"], r["state"], r["n"]) == (noise, rate, state, n)
        ]
        repaired = {r["seed"]: r["accuracy"] for r in here if r["recipe"] == WHOLE}
        for (recipe,) in distinct(here, "recipe"):
            found = [r for r in here if r["recipe"] == recipe]
            ahead = [repaired[r["seed"]] - r["accuracy"] for r in found if r["seed"] in repaired]

            def over(name: str, form: str = ".1f", scale: float = 100.0) -> str:
                return mean((r[name] for r in found), form=form, scale=scale)  # noqa: B023

            share = (100 * r["seconds"] / r["train_seconds"] for r in found)
            lines.append(
                (
                    *(f"{noise} {rate:g}" if rate else noise, state, recipe, str(len(found))),
                    over("accuracy"),
                    "–" if recipe == WHOLE else mean(ahead, form="+.1f", scale=100),
                    *(over("gap_recovered", ".0f"), over("forgetting"), over("worst_class")),
                    *(over("calibration_error", ".1f"), over("seconds", ".0f", 1)),
                    mean(share, form=".0f"),
                    *(f"{np.mean([r[k] for r in found]):,.0f}" for k in ("parameters", "macs")),
                    over("images_per_second", ".0f", 1),
                )
            )
    head = ("noise", "state", "recipe", "seeds", "accuracy", "repair ahead by", "gap %")
    more = ("still predicted %", "worst class", "ECE %", "seconds", "% of training")
    return [Table((*head, *more, "parameters", "macs", "samples/s"), tuple(lines))]


def _key(field: BenchmarkDataset, setting: Setting, name: str) -> dict[str, Any]:
    key = {"data": field.name, "recipe": name, **asdict(setting)}
    return {k: key[k] for k in KEYS}
