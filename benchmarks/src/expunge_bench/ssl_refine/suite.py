"""The rows of the benchmark: one encoder a seed, one refinement a setting, then the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from expunge import stages
from expunge._core.progress import Progress, silent
from expunge.data import Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.neighbours import neighbour_votes
from expunge.selfsupervised.features import extract_features
from expunge.selfsupervised.refinement import RefineConfig
from expunge.selfsupervised.simclr import pretrain
from expunge.storage.weights import load_weights, save_weights
from expunge_bench.cifar import INSTANCE_NOISES
from expunge_bench.datasets import BenchmarkDataset, Setting
from expunge_bench.instance_noise import noise_statistics
from expunge_bench.results import ResultStore, Row
from expunge_bench.ssl_refine.methods import REFINEMENT, MethodInput, methods, timed_compute
from expunge_bench.ssl_refine.tables import ENCODER, tables
from expunge_bench.suites import RowGroup, Suite, check_names

DEFAULT_RATES = (0.4,)
SUITE = Suite("Refinement of labels", ("data", "n", "noise", "rate", "method", "seed"), tables)


def bench(
    dataset: BenchmarkDataset,
    *,
    noise: str = "instance",
    rates: Sequence[float] = DEFAULT_RATES,
    n: int = 5_000,
    names: Sequence[str] = (),
    config: RefineConfig | None = None,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each rate, seed and method.

    Parameters
    ----------
    dataset
        The data.
    noise
        ``"instance"``, ``"instance-raw"`` or ``"ambiguous"``.
    rates
        Noise rates.
    n
        The number of training images.
    names
        Methods; all, if empty. The refinement always runs first, and its seconds are the budget
        of the others.
    config
        The refinement; its defaults, if None.
    seeds
        One encoder is pre-trained for each; its seconds count at every rate.
    out
        Where encoders, rows and tables go.
    command, progress
        The command line, for the page; called during the trainings.

    Raises
    ------
    ConfigError
        If the noise or a method is unknown.

    Notes
    -----
    Accuracy is that of the last step: test data decide nothing.
    """
    check_names("noise", [noise], INSTANCE_NOISES)
    check_names("method", names, methods.names())
    others = [name for name in methods.names() if name in (names or methods.names())]
    names = tuple(dict.fromkeys((REFINEMENT, *others)))
    config = config or RefineConfig()
    store = ResultStore(out, SUITE.keys)

    def rows_of(setting: Setting, missing: Sequence[Row]) -> Iterable[Row]:
        data = dataset.noisy_dataset(setting)
        encoders = _Encoders(dataset, config, out, progress)
        encoder, row = encoders.get(setting, data)
        yield row
        seconds = float(row["seconds"])
        given = MethodInput(dataset, data, setting, encoder, seconds, config, progress)
        for name in names:
            key = _key(dataset, setting, name)
            row = _measure(given, key) if key in missing else store.get(key) or {}
            if key in missing:
                yield row
            if name == REFINEMENT:
                given.budget = float(row["seconds"])

    settings = [Setting(noise, rate, "regularised", seed, n) for seed in seeds for rate in rates]
    groups = [
        RowGroup([_key(dataset, setting, name) for name in names], partial(rows_of, setting))
        for setting in settings
    ]
    return SUITE.run(groups, out=out, command=command)


def _key(dataset: BenchmarkDataset, setting: Setting, method: str) -> dict[str, Any]:
    return SUITE.key({"data": dataset.name, "method": method, **setting.row_keys()})


def _measure(given: MethodInput, key: Row) -> Row:
    """Train by one method, and measure."""
    outcome = methods.get(key["method"])(given)
    train, test = given.data.train, given.data.test
    correct = stages.predict(outcome.model, test) == test.labels
    statistics = noise_statistics(given.data.truth.labels, train.labels, len(train.classes))
    return {
        **key,
        "accuracy": float(correct.mean()),
        "seconds": outcome.seconds,
        "epochs": outcome.epochs,
        "noise_statistics": statistics,
        **outcome.columns,
    }


class _Encoders:
    """One encoder for each seed, stored in ``out/encoders``. Labels have no part in it."""

    def __init__(
        self, dataset: BenchmarkDataset, config: RefineConfig, out: Path, progress: Progress
    ) -> None:
        self._dataset, self._config = dataset, config
        self._out, self._progress = out, progress

    def get(self, setting: Setting, data: NoisyDataset) -> tuple[nn.Module, Row]:
        """The encoder of the setting's seed, and its row."""
        key = {**_key(self._dataset, setting, ENCODER), "noise": "", "rate": 0.0}
        file = self._out / "encoders" / f"{setting.n}-{setting.seed}.safetensors"
        model = self._dataset.network(setting.seed)
        row = ResultStore(self._out, SUITE.keys).get(key)
        if row is not None and file.exists():
            load_weights(model, file)
            return model, row
        encoder, seconds = timed_compute(
            lambda: (
                pretrain(
                    model,
                    data.train,
                    self._config.simclr,
                    seed=setting.seed,
                    progress=self._progress,
                ).model
            )
        )
        accuracy = _knn_accuracy(encoder, data.train, data)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_weights(encoder, file)
        return encoder, {**key, "accuracy": accuracy, "seconds": seconds}


def _knn_accuracy(encoder: nn.Module, train: Samples, data: NoisyDataset) -> float:
    """How often the vote of the neighbours' true labels is an image's own true label."""
    features, truth = extract_features(encoder, train), data.truth.labels
    votes = neighbour_votes(features, truth, len(train.classes)).argmax(axis=1)
    return float((votes == truth).mean())
