"""The published protocol in parts that run beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge.config import DEFAULT_PRUNE_FRACTION
from expunge.models.initialisation import reinitialise
from expunge.recipes import Recipe, resolve
from expunge.records import Partition
from expunge.storage.json_files import read_json
from expunge.storage.weights import load_weights, save_weights
from expunge_bench.gpu.setup import GpuRun, Row, peak_memory_mb, pieces
from expunge_bench.rlap import Case, Protocol, image_protocol, measure
from expunge_bench.timing import timed

_RECIPES = {"rlap": "rlap", "expunge": "default"}
_WEIGHTS = "noisy.safetensors"
_ARRAYS = (
    *("p_noisy", "p_label_fault", "p_input_fault"),
    *("suggested_label", "suggested_probability"),
)


def _protocol(run: GpuRun) -> Protocol:
    protocol = image_protocol(run.cifar, epochs=run.sizes.protocol_epochs, width=run.sizes.width)
    training = replace(protocol.training, cuda_graphs=run.cuda_graphs)
    return replace(protocol, training=training)


@pieces.register("rlap-noisy", needs=("speed",))
def noisy(run: GpuRun) -> Iterator[Row]:
    """Train the noisy model: half of the images are noise."""
    protocol = _protocol(run)
    data = protocol.noisy_dataset(run.sizes.n_protocol, run.seed)
    model, seconds = timed(
        lambda: stages.tune(
            protocol.network(run.seed),
            data.train,
            None,
            protocol.training,
            seed=run.seed,
            stream="train",
        )
    )
    run.work.mkdir(parents=True, exist_ok=True)
    save_weights(model, run.work / _WEIGHTS)
    _write_facts(run, "noisy", {"seconds": seconds})
    yield _row(run, "noisy", pipeline.Trained(model, seconds), _case(run, protocol, model, seconds))


def _write_facts(run: GpuRun, name: str, facts: dict[str, Any]) -> None:
    (run.work / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def _stored_case(run: GpuRun) -> Case:
    """The noisy model, trained by an earlier piece."""
    protocol = _protocol(run)
    model = protocol.network(run.seed).eval()
    load_weights(model, run.work / _WEIGHTS)
    return _case(run, protocol, model, read_json(run.work / "noisy.json")["seconds"])


def _case(run: GpuRun, protocol: Protocol, model: nn.Module, seconds: float) -> Case:
    data = protocol.noisy_dataset(run.sizes.n_protocol, run.seed)
    return Case(data, pipeline.Trained(model, seconds), protocol, run.seed, run.work)


def _row(run: GpuRun, name: str, trained: pipeline.Trained, case: Case) -> Row:
    facts = {"name": name, "n": run.sizes.n_protocol, "epochs": case.protocol.training.epochs}
    return {**facts, **measure(trained, case), "peak_memory_mb": peak_memory_mb()}


def _partitioned(run: GpuRun, who: str) -> Iterator[Row]:
    """Score and partition, and keep the partition for the pieces that follow."""
    case, recipe = _stored_case(run), resolve(_RECIPES[who])
    model, train = case.noisy.model, case.data.train
    scores, scoring = timed(lambda: stages.score(model, train, recipe.score, seed=run.seed))
    split, fitting = timed(lambda: stages.partition(scores, recipe.partition, seed=run.seed))
    arrays = {name: getattr(split, name) for name in _ARRAYS}
    np.savez(run.work / f"{who}.npz", **arrays)
    facts = {
        "threshold": split.threshold,
        "noise_rate": list(split.noise_rate),
        "memorised": split.memorised,
    }
    _write_facts(run, who, {"seconds": scoring + fitting, "partition": facts})
    noisy = case.data.truth.noisy
    yield {
        "name": f"{who} partition",
        "score_seconds": scoring,
        "partition_seconds": fitting,
        "flagged_rate": float(split.flagged.mean()),
        "noisy_kept_rate": float(noisy[split.kept].mean()),
        "noisy_found_rate": float(split.flagged[noisy].mean()),
    }


def _stored_partition(run: GpuRun, case: Case, who: str) -> tuple[Partition, float]:
    """The partition of an earlier piece, and the seconds that it took."""
    facts, train = read_json(run.work / f"{who}.json"), case.data.train
    with np.load(run.work / f"{who}.npz") as arrays:
        columns = {name: arrays[name] for name in _ARRAYS}
    value, low, high = facts["partition"].pop("noise_rate")
    split = Partition(
        train.ids, train.labels, **columns, noise_rate=(value, low, high), **facts["partition"]
    )
    return split, float(facts["seconds"])


def _tuned(run: GpuRun, who: str, *, scope: Literal["all", "head"] = "all") -> Iterator[Row]:
    """Prune as the recipe does, and fine-tune all or the last layers on the kept samples."""
    case, recipe = _stored_case(run), resolve(_RECIPES[who])
    split, before = _stored_partition(run, case, who)
    config = replace(recipe.tune, epochs=case.protocol.our_epochs)
    if who == "rlap":
        config = case.protocol.published_tuning
    config = replace(config, targets="filter", scope=scope, cuda_graphs=run.cuda_graphs)

    def work() -> nn.Module:
        model, layers = _pruned(case, recipe, split)
        return stages.tune(model, case.data.train, split, config, seed=run.seed, layers=layers)

    model, seconds = timed(work)
    label = "L-FT" if scope == "head" else "F-FT"
    yield _row(run, f"{who} {label}", pipeline.Trained(model, before + seconds), case)


def _pruned(case: Case, recipe: Recipe, split: Partition) -> tuple[nn.Module, tuple[str, ...]]:
    """The pruned model, and the layers that lost units."""
    model, train, config = case.noisy.model, case.data.train, recipe.prune
    if config.is_auto and split.memorised_wrong_labels:
        config = replace(config, fraction=DEFAULT_PRUNE_FRACTION)
    if not config.is_enabled:
        return model, ()
    ranking = stages.rank(model, train, split, recipe.rank, seed=case.seed)
    plan = stages.plan(ranking, config, seed=case.seed)
    return stages.prune(model, plan, train), tuple(plan.units)


def _retrained(run: GpuRun, who: str) -> Iterator[Row]:
    """Train a new network on the kept samples."""
    case = _stored_case(run)
    split, before = _stored_partition(run, case, who)
    kept = case.data.train.subset(np.flatnonzero(split.kept))
    network = reinitialise(case.noisy.model, run.seed)
    model, seconds = timed(
        lambda: stages.tune(
            network, kept, None, case.protocol.training, seed=run.seed, stream="train"
        )
    )
    yield _row(run, f"{who} retrain", pipeline.Trained(model, before + seconds), case)


def _register(who: str, label: str) -> None:
    """Register the pieces of one of the two methods."""
    partition = f"rlap-{label}-partition"

    @pieces.register(partition, needs=("rlap-noisy",))
    def partitioned(run: GpuRun) -> Iterator[Row]:
        """Score and partition."""
        return _partitioned(run, who)

    @pieces.register(f"rlap-{label}-fft", needs=(partition,))
    def all_layers(run: GpuRun) -> Iterator[Row]:
        """Fine-tune all layers (F-FT)."""
        return _tuned(run, who)

    @pieces.register(f"rlap-{label}-lft", needs=(partition,))
    def last_layers(run: GpuRun) -> Iterator[Row]:
        """Fine-tune the last layers (L-FT)."""
        return _tuned(run, who, scope="head")

    @pieces.register(f"rlap-{label}-retrain", needs=(partition,))
    def retrained(run: GpuRun) -> Iterator[Row]:
        """Train a new network on the kept samples."""
        return _retrained(run, who)


_register("expunge", "expunge")
_register("rlap", "published")
