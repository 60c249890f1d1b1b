"""`expunge bench rlap`: the published protocol (arXiv 2506.11615), with our repair beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge import pipeline, stages, surgery
from expunge.benchmarks.cifar import Cifar
from expunge.benchmarks.fields import Setting
from expunge.benchmarks.noise import Scene
from expunge.benchmarks.suites import Ledger, Row, Table, distinct, mean
from expunge.config import digest
from expunge.layers import reinitialised
from expunge.models import resnet
from expunge.progress import Progress, silent
from expunge.reports import MEASURING
from expunge.rng import seeded
from expunge.tables import Partition
from expunge.tuning import TuneConfig

KEYS = ("data", "n", "epochs", "model", "seed")
_SHOWN = ("accuracy", "macro_f1", "worst_class")
# Accuracies of the paper's table 1 (50,000 images).
PRINTED = {"noisy": 0.6944, "rlap L-FT": 0.7508, "rlap F-FT": 0.8020, "rlap retrain": 0.7299}


@dataclass(frozen=True)
class Protocol:
    """How the paper trains and tunes; order is shuffled everywhere, where theirs is not at first.

    training: of the noisy model, and of retraining. published: of its fine-tuning. ours: epochs of
    our own, at most two in five of those of retraining.
    """

    training: TuneConfig
    published: TuneConfig
    ours: int

    @classmethod
    def of(cls, epochs: int) -> Protocol:
        """That of CIFAR-10: SGD at a constant rate and no augmentation, then half as long Adam."""
        constant: Mapping[str, Any] = {"schedule": "constant", "augment": False, "batch_size": 64}
        return cls(
            TuneConfig(data="everything", epochs=epochs, lr=0.1, **constant),
            TuneConfig(
                epochs=max(1, epochs // 2),
                optimizer="adamw",
                lr=1e-3,
                weight_decay=0.0,
                **constant,
            ),
            max(1, 2 * epochs // 5),
        )


def bench(
    cifar: Cifar,
    *,
    n: int = 50_000,
    epochs: int = 60,
    seeds: tuple[int, ...] = (0,),
    width: int = 64,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each model and seed: the noisy one, L-FT and F-FT as published and as here.

    Half of the n images are replaced by noise of deviation 4.5, clipped. width: of the network's
    first stage; 64 gives the paper's ResNet-18 with a hidden layer of 256. ``rlap``: the published
    partition, ranking and tuning, with its errors mended (see the recipe). ``retrain``: a fresh
    network, trained as the noisy one was, on what each partition keeps.
    """
    ledger = Ledger(out, KEYS)
    protocol = Protocol.of(epochs)
    for seed in seeds:
        scene = cifar.scene(Setting("gaussian", 0.5, "memorised", seed, n))
        with seeded(seed, "network"):
            widths = (width, 2 * width, 4 * width, 8 * width)
            fresh = resnet(classes=10, widths=widths, blocks=(2, 2, 2, 2), hidden=4 * width)
        folder = out / f"{n}-{epochs}-{seed}"
        noisy = pipeline.train(
            fresh,
            scene.train,
            protocol.training,
            seed=seed,
            out=folder / "model",
            progress=progress,
        )

        case = _Case(scene, noisy, protocol, seed, folder, progress)
        for name, made in _models(case).items():
            key = {"data": cifar.name, "n": n, "epochs": epochs, "model": name, "seed": seed}
            if key not in ledger:
                ledger.add({**key, **_measured(made, case)})
    rows = ledger.rows()
    ledger.write("Published protocol", command, [table(rows)])
    return rows


@dataclass(frozen=True)
class _Case:
    scene: Scene
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
            overrides={"tune": {**tune, "data": "kept"}},
            controls=("head-only", "finetune-only"),
            seed=case.seed,
            out=case.folder / name,
            train_seconds=case.noisy.seconds,
            progress=case.progress,
        )
        spent = sum(s for k, s in result.seconds.items() if k not in MEASURING)
        made[f"{name} F-FT"] = pipeline.Trained(result.model, spent)
        for label, control in (("L-FT", "head-only"), ("F-FT, nothing cut", "finetune-only")):
            other = result.controls.get(control)  # none where a class has nothing left
            if other is not None and other.model is not None:
                made[f"{name} {label}"] = pipeline.Trained(other.model, other.seconds)
        made[f"{name} retrain"] = _retrained(result.partition, case)
    return made


def _retrained(split: Partition, case: _Case) -> pipeline.Trained:
    """A fresh network, trained as the noisy one was, on what a partition keeps."""
    kept = case.scene.train.subset(np.flatnonzero(split.kept))
    return pipeline.train(
        reinitialised(case.noisy.model, case.seed),
        kept,
        case.protocol.training,
        seed=case.seed,
        out=case.folder / f"retrain-{digest(split.flagged.tolist())[:8]}",
        progress=case.progress,
    )


def _measured(made: pipeline.Trained, case: _Case) -> dict[str, float | int]:
    found = stages.evaluate(made.model, case.scene.test, seed=case.seed)
    size = surgery.size(made.model, stages.one_sample(case.scene.train))
    return {
        **{k: found.metrics[k].value for k in ("accuracy", "macro_f1", "worst_class")},
        **{"seconds": made.seconds, "parameters": size.parameters, "macs": size.macs},
    }


def table(rows: Sequence[Row]) -> Table:
    """Means over seeds with 95 % t-intervals, beside what the paper prints for 50,000 images."""
    lines = []
    for n, epochs, name in distinct(rows, "n", "epochs", "model"):
        found = [r for r in rows if (r["n"], r["epochs"], r["model"]) == (n, epochs, name)]
        printed = PRINTED.get(name)
        lines.append(
            (
                *(f"{n:,}", str(epochs), name, str(len(found))),
                *(mean((r[k] for r in found), form=".1f", scale=100) for k in _SHOWN),
                "–" if printed is None else f"{100 * printed:.1f}",
                mean((r["seconds"] for r in found), form=".0f"),
                f"{np.mean([r['parameters'] for r in found]):,.0f}",
            )
        )
    head = ("images", "epochs", "model", "seeds", "accuracy", "macro F1", "worst class")
    return Table((*head, "paper", "seconds", "parameters"), tuple(lines))
