"""`expunge bench rlap`: the published protocols (arXiv 2506.11615), with our repair beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed
from expunge.demo.noise import NoisyDataset
from expunge.models.initialisation import reinitialise
from expunge.models.zoo import resnet, rlap_speech
from expunge.pruning import surgery
from expunge.records import Partition
from expunge.reporting.summary import repair_seconds
from expunge.storage.hashing import digest
from expunge.training.loop import TuneConfig
from expunge_bench.cifar import Cifar
from expunge_bench.datasets import Setting
from expunge_bench.results import Row, Table, group_rows, mean_cells
from expunge_bench.speech import Speech
from expunge_bench.suites import RowGroup, Suite

_METRICS = ("accuracy", "macro_precision", "macro_f1", "top_3", "worst_class")
# Accuracies of the paper's table 1 (50,000 images). Its numbers for speech are not known to us.
PRINTED: Mapping[str, Mapping[str, float]] = {
    "cifar10": {"noisy": 0.6944, "rlap L-FT": 0.7508, "rlap F-FT": 0.8020, "rlap retrain": 0.7299}
}
# A constant learning rate. The order is shuffled in every training; the paper's first is not.
_CONSTANT: Mapping[str, Any] = {"schedule": "constant", "augment": False, "batch_size": 64}
_ADAM: Mapping[str, Any] = {"optimizer": "adamw", "weight_decay": 0.0}


@dataclass(frozen=True)
class Protocol:
    """How the paper trains and fine-tunes on one data set.

    Parameters
    ----------
    name
        The data set.
    noisy_dataset
        Noisy samples and their test samples, by ``(n, seed)``.
    network
        An untrained network, by seed.
    training
        The training of the noisy model, and of retraining.
    """

    name: str
    noisy_dataset: Callable[[int, int], NoisyDataset]
    network: Callable[[int], nn.Module]
    training: TuneConfig

    @property
    def published_tuning(self) -> TuneConfig:
        """The published fine-tuning: Adam, half as many epochs as the training."""
        epochs = max(1, self.training.n_epochs // 2)
        return TuneConfig(epochs=epochs, lr=1e-3, **_ADAM, **_CONSTANT)

    @property
    def our_epochs(self) -> int:
        """Epochs of our fine-tuning: two fifths of the training's."""
        return max(1, 2 * self.training.n_epochs // 5)


def image_protocol(cifar: Cifar, *, epochs: int = 60, width: int = 64) -> Protocol:
    """CIFAR-10 with half of the images replaced by clipped Gaussian noise (σ = 4.5); SGD.

    Parameters
    ----------
    cifar
        The data.
    epochs
        Epochs of the noisy model's training.
    width
        Width of the first stage; 64 is the paper's ResNet-18 with a hidden layer of 256.
    """

    def noisy_dataset(n: int, seed: int) -> NoisyDataset:
        return cifar.noisy_dataset(Setting("gaussian", 0.5, "overfit", seed, n))

    def network(seed: int) -> nn.Module:
        widths = (width, 2 * width, 4 * width, 8 * width)
        with temp_seed(seed, "network"):
            return resnet(classes=10, widths=widths, blocks=(2, 2, 2, 2), hidden=4 * width)

    training = TuneConfig(targets="all", epochs=epochs, lr=0.1, **_CONSTANT)
    return Protocol(cifar.name, noisy_dataset, network, training)


def speech_protocol(speech: Speech, *, epochs: int = 300) -> Protocol:
    """Ten words as MFCC with Gaussian noise (σ = 15) on half of the clips; Adam.

    Deviations from the paper: the learning rate is constant, because the paper lowers it by the
    accuracy on test clips; and L-FT also tunes the head, as all of our L-FT, not only the pruned
    layer.
    """

    def network(seed: int) -> nn.Module:
        with temp_seed(seed, "network"):
            return rlap_speech(features=False)

    def noisy_dataset(n: int, seed: int) -> NoisyDataset:
        return speech.published_dataset(n=n, seed=seed)

    training = TuneConfig(targets="all", epochs=epochs, lr=5e-4, **_ADAM, **_CONSTANT)
    return Protocol(speech.name, noisy_dataset, network, training)


def bench(
    protocol: Protocol,
    *,
    n: int,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each model and seed: the noisy model, and its repairs as published and as ours.

    ``rlap``: the published partition, ranking and fine-tuning, with its errors corrected (see the
    recipe). ``F-FT``: all layers are fine-tuned; ``L-FT``: the last ones. ``retrain``: a new
    network, trained as the noisy one, on the samples that the partition does not flag.
    """
    epochs = protocol.training.epochs

    def rows_of(seed: int) -> Iterable[Row]:
        data, folder = protocol.noisy_dataset(n, seed), out / f"{n}-{epochs}-{seed}"
        noisy = pipeline.train(
            protocol.network(seed),
            data.train,
            protocol.training,
            seed=seed,
            out=folder / "model",
            progress=progress,
        )
        case = Case(data, noisy, protocol, seed, folder, progress)
        shared = {"data": protocol.name, "n": n, "epochs": epochs, "seed": seed}
        for name, model in _models(case).items():
            yield {**SUITE.key({**shared, "model": name}), **measure(model, case)}

    groups = [RowGroup(None, lambda _, seed=seed: rows_of(seed)) for seed in seeds]  # type: ignore[misc]
    return SUITE.run(groups, out=out, command=command)


@dataclass(frozen=True)
class Case:
    """A noisy model with its data, and where its repairs go."""

    data: NoisyDataset
    noisy: pipeline.Trained
    protocol: Protocol
    seed: int
    folder: Path
    progress: Progress = silent


def _models(case: Case) -> dict[str, pipeline.Trained]:
    """The noisy model and every repair of it, with their seconds."""
    models = {"noisy": case.noisy}
    published = asdict(case.protocol.published_tuning)
    for name, recipe, tune in (
        ("rlap", "rlap", published),
        ("expunge", "default", {"epochs": case.protocol.our_epochs}),
    ):
        result = pipeline.repair(
            case.noisy.model,
            case.data.train,
            case.data.test,
            recipe=recipe,
            overrides={"tune": {**tune, "targets": "filter"}},
            baselines=("head-only", "finetune-only"),
            seed=case.seed,
            out=case.folder / name,
            train_seconds=case.noisy.seconds,
            progress=case.progress,
        )
        models[f"{name} F-FT"] = pipeline.Trained(result.model, repair_seconds(result))
        for label, baseline in (("L-FT", "head-only"), ("F-FT, unpruned", "finetune-only")):
            other = result.baselines.get(baseline)  # missing if every sample of a class is flagged
            if other is not None and other.model is not None:
                models[f"{name} {label}"] = pipeline.Trained(other.model, other.seconds)
        models[f"{name} retrain"] = _retrain(result.partition, case)
    return models


def _retrain(partition: Partition, case: Case) -> pipeline.Trained:
    """Train a new network as the noisy one was, on the samples that are not flagged."""
    kept = case.data.train.subset(np.flatnonzero(partition.kept))
    return pipeline.train(
        reinitialise(case.noisy.model, case.seed),
        kept,
        case.protocol.training,
        seed=case.seed,
        out=case.folder / f"retrain-{digest(partition.flagged.tolist())[:8]}",
        progress=case.progress,
    )


def measure(model: pipeline.Trained, case: Case) -> dict[str, float | int]:
    """Quality, time and size of a model, as columns of a row."""
    measured = stages.evaluate(model.model, case.data.test, seed=case.seed)
    size = surgery.size(model.model, stages.example_batch(case.data.train))
    return {
        **{name: measured.metrics[name].value for name in _METRICS},
        **{"seconds": model.seconds, "parameters": size.parameters, "macs": size.macs},
    }


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals, beside the accuracies that the paper prints."""
    lines = []
    groups = group_rows(rows, "data", "n", "epochs", "model")
    for (data, n, epochs, name), found in groups.items():
        printed = PRINTED.get(data, {}).get(name)
        lines.append(
            (
                *(f"{n:,}", str(epochs), name, str(len(found))),
                *mean_cells(found, _METRICS, form=".1f", scale=100),
                "–" if printed is None else f"{100 * printed:.1f}",
                *mean_cells(found, ["seconds"], form=".0f"),
                f"{np.mean([r['parameters'] for r in found]):,.0f}",
            )
        )
    metrics = (f"{m.replace('_', ' ').replace('f1', 'F1')} (%)" for m in _METRICS)
    head = ("n", "epochs", "model", "seeds", *metrics, "paper (%)", "seconds", "parameters")
    return [Table(head, tuple(lines))]


SUITE = Suite("Published protocol", ("data", "n", "epochs", "model", "seed"), tables)
