"""`expunge bench rlap`: the published protocols (arXiv 2506.11615), with our repair beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed
from expunge.demo.noise import NoisyDataset
from expunge.models.inspection import reinitialise
from expunge.models.zoo import resnet, rlap_speech
from expunge.pruning import surgery
from expunge.records import Partition
from expunge.reporting.summary import repair_seconds
from expunge.storage.hashing import digest
from expunge.training.loop import TuneConfig
from expunge_bench.cifar import Cifar
from expunge_bench.fields import Setting
from expunge_bench.speech import Speech
from expunge_bench.suites import ResultStore, Row, Table, distinct, mean

KEYS = ("data", "n", "epochs", "model", "seed")
_MEASURES = ("accuracy", "macro_precision", "macro_f1", "top_3", "worst_class")
# Accuracies of the paper's table 1 (50,000 images). What it prints for speech is not known here.
PRINTED: Mapping[str, Mapping[str, float]] = {
    "cifar10": {"noisy": 0.6944, "rlap L-FT": 0.7508, "rlap F-FT": 0.8020, "rlap retrain": 0.7299}
}
# At a constant rate, in an order that is shuffled everywhere (theirs is not at first).
_PLAIN: Mapping[str, Any] = {"schedule": "constant", "augment": False, "batch_size": 64}


@dataclass(frozen=True)
class Protocol:
    """How the paper trains and tunes on data of one sort.

    name: of the data. scene: noisy samples and what they are tested on, ``(n, seed)``. network: an
    untrained one, by seed. training: of the noisy model, and of retraining; half as many epochs of
    Adam follow in its fine-tuning, and at most two in five in ours.
    """

    name: str
    scene: Callable[[int, int], NoisyDataset]
    network: Callable[[int], nn.Module]
    training: TuneConfig

    @property
    def published(self) -> TuneConfig:
        """The published fine-tuning."""
        epochs = max(1, self.training.epochs // 2)
        adam: Mapping[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0}
        return TuneConfig(epochs=epochs, **adam, **_PLAIN)

    @property
    def ours(self) -> int:
        """Epochs of our own fine-tuning."""
        return max(1, 2 * self.training.epochs // 5)


def on_images(cifar: Cifar, *, epochs: int = 60, width: int = 64) -> Protocol:
    """CIFAR-10, half of the images replaced by noise of deviation 4.5, clipped; SGD.

    width: of the network's first stage; 64 gives the paper's ResNet-18 with a hidden layer of 256.
    """

    def scene(n: int, seed: int) -> NoisyDataset:
        return cifar.scene(Setting("gaussian", 0.5, "memorised", seed, n))

    def network(seed: int) -> nn.Module:
        widths = (width, 2 * width, 4 * width, 8 * width)
        with temp_seed(seed, "network"):
            return resnet(classes=10, widths=widths, blocks=(2, 2, 2, 2), hidden=4 * width)

    training = TuneConfig(targets="all", epochs=epochs, lr=0.1, **_PLAIN)
    return Protocol(cifar.name, scene, network, training)


def on_speech(speech: Speech, *, epochs: int = 300) -> Protocol:
    """Ten words as MFCC, half of the clips with noise of deviation 15; Adam.

    The paper lowers the learning rate where the accuracy on the test clips does not rise: here it
    is constant, as test data decide nothing. Its L-FT moves the layer that is cut alone; here, as
    in all of our L-FT, the head moves too.
    """

    def network(seed: int) -> nn.Module:
        with temp_seed(seed, "network"):
            return rlap_speech(features=False)

    adam: Mapping[str, Any] = {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.0}
    training = TuneConfig(targets="all", epochs=epochs, **adam, **_PLAIN)
    return Protocol(
        speech.name, lambda n, seed: speech.published(n=n, seed=seed), network, training
    )


def bench(
    protocol: Protocol,
    *,
    n: int,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each model and seed: the noisy one, L-FT and F-FT as published and as here.

    ``rlap``: the published partition, ranking and tuning, with its errors mended (see the recipe).
    ``retrain``: a fresh network, trained as the noisy one was, on what each partition keeps.
    """
    ledger, epochs = ResultStore(out, KEYS), protocol.training.epochs
    for seed in seeds:
        scene = protocol.scene(n, seed)
        folder = out / f"{n}-{epochs}-{seed}"
        noisy = pipeline.train(
            protocol.network(seed),
            scene.train,
            protocol.training,
            seed=seed,
            out=folder / "model",
            progress=progress,
        )
        case = _Case(scene, noisy, protocol, seed, folder, progress)
        for name, made in _models(case).items():
            key = {"data": protocol.name, "n": n, "epochs": epochs, "model": name, "seed": seed}
            if key not in ledger:
                ledger.add({**key, **_measured(made, case)})
    rows = ledger.rows()
    ledger.write("Published protocol", command, [table(rows)])
    return rows


@dataclass(frozen=True)
class _Case:
    scene: NoisyDataset
    noisy: pipeline.Trained
    protocol: Protocol
    seed: int
    folder: Path
    progress: Progress


def _models(case: _Case) -> dict[str, pipeline.Trained]:
    """The noisy model, and what each way to repair it makes of it, with the seconds of all."""
    made = {"noisy": case.noisy}
    published = asdict(case.protocol.published)
    for name, recipe, tune in (
        ("rlap", "rlap", published),
        ("expunge", "default", {"epochs": case.protocol.ours}),
    ):
        result = pipeline.repair(
            case.noisy.model,
            case.scene.train,
            case.scene.test,
            recipe=recipe,
            overrides={"tune": {**tune, "targets": "filter"}},
            baselines=("head-only", "finetune-only"),
            seed=case.seed,
            out=case.folder / name,
            train_seconds=case.noisy.seconds,
            progress=case.progress,
        )
        made[f"{name} F-FT"] = pipeline.Trained(result.model, repair_seconds(result))
        for label, control in (("L-FT", "head-only"), ("F-FT, nothing cut", "finetune-only")):
            other = result.baselines.get(control)  # none where a class has nothing left
            if other is not None and other.model is not None:
                made[f"{name} {label}"] = pipeline.Trained(other.model, other.seconds)
        made[f"{name} retrain"] = _retrained(result.partition, case)
    return made


def _retrained(split: Partition, case: _Case) -> pipeline.Trained:
    """A fresh network, trained as the noisy one was, on what a partition keeps."""
    kept = case.scene.train.subset(np.flatnonzero(split.kept))
    return pipeline.train(
        reinitialise(case.noisy.model, case.seed),
        kept,
        case.protocol.training,
        seed=case.seed,
        out=case.folder / f"retrain-{digest(split.flagged.tolist())[:8]}",
        progress=case.progress,
    )


def _measured(made: pipeline.Trained, case: _Case) -> dict[str, float | int]:
    found = stages.evaluate(made.model, case.scene.test, seed=case.seed)
    size = surgery.size(made.model, stages.example_batch(case.scene.train))
    return {
        **{k: found.metrics[k].value for k in _MEASURES},
        **{"seconds": made.seconds, "parameters": size.parameters, "macs": size.macs},
    }


def table(rows: Sequence[Row]) -> Table:
    """Means over seeds with 95 % t-intervals, beside the accuracies that the paper prints."""
    lines = []
    for data, n, epochs, name in distinct(rows, "data", "n", "epochs", "model"):
        key = (data, n, epochs, name)
        found = [r for r in rows if tuple(r[k] for k in ("data", "n", "epochs", "model")) == key]
        printed = PRINTED.get(data, {}).get(name)
        lines.append(
            (
                *(f"{n:,}", str(epochs), name, str(len(found))),
                *(mean((r.get(k) for r in found), form=".1f", scale=100) for k in _MEASURES),
                "–" if printed is None else f"{100 * printed:.1f}",
                mean((r["seconds"] for r in found), form=".0f"),
                f"{np.mean([r['parameters'] for r in found]):,.0f}",
            )
        )
    measures = (m.replace("_", " ").replace("f1", "F1") for m in _MEASURES)
    head = ("n", "epochs", "model", "seeds", *measures, "paper", "seconds", "parameters")
    return Table(head, tuple(lines))
