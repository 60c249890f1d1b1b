"""The rows of the benchmark: networks trained with noise in their layers, under attack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, temp_seed
from expunge.data import Preparation, Samples
from expunge.robustness.attacks import FromPixels, robustness
from expunge.robustness.noise_layers import NoisyNetwork
from expunge.training import loop
from expunge.training.targets import build_targets
from expunge_bench.datasets import Setting
from expunge_bench.noise_layers.methods import METHODS, Task, task_for, with_noise
from expunge_bench.noise_layers.tables import plot_sigma, tables
from expunge_bench.results import Row
from expunge_bench.suites import RowGroup, Suite, check_names
from expunge_bench.timing import compute_seconds, timed

# Steps of PGD in an attack.
ATTACK_STEPS = 20
_KEYS = ("data", "n", "epochs", "n_attacked", "queries", "method", "expectation", "sigma", "seed")


def bench(
    dataset: str,
    *,
    folder: Path = Path("cifar10"),
    methods: Sequence[str] = (),
    factors: Sequence[float] = (0.5, 2.0),
    n: int | None = None,
    epochs: int | None = None,
    n_attacked: int = 400,
    queries: int = 100,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each method, expectation model, sigma and seed.

    Parameters
    ----------
    dataset, folder
        ``cifar10`` in a folder, or ``digits``.
    methods
        Names among `METHODS`; all, if empty.
    factors
        Multiples of the default sigma, for the first seed and without the black-box attack.
    n, epochs
        The number of training samples and epochs; those of `task_for`, if None.
    n_attacked
        The number of test samples, drawn by the seed.
    queries
        Queries of the black-box attack; 0: no such attack.
    seeds
        Seeds of the data, the networks and the attacks.
    out
        Where rows, tables and ``sigma.svg`` go.
    command, progress
        The command line, for the page; called during the work.

    Raises
    ------
    ConfigError
        If the data set or a method is unknown.

    Notes
    -----
    The weights are those of the last step: test data decide nothing.
    """
    check_names("method", methods, METHODS)
    task = task_for(dataset, folder)
    epochs = task.training.epochs if epochs is None else epochs
    training = replace(task.training, epochs=epochs, targets="all")
    task = replace(task, n=n or task.n, training=training)
    names = tuple(methods) or tuple(METHODS)

    def groups() -> Iterable[RowGroup]:
        for seed in seeds:
            runs = _SeedRuns(task, n_attacked, seed, progress)
            variants = [(name, task.sigma.get(name, 0.0), queries) for name in names]
            if seed == seeds[0]:
                noisy = [name for name in names if METHODS[name].has_noise]
                variants += [(name, f * task.sigma[name], 0) for name in noisy for f in factors]
            for name, sigma, n_queries in variants:
                keys = runs.keys(name, sigma, n_queries)
                yield RowGroup(keys, partial(runs.attack, name, sigma, n_queries))

    suite = Suite(f"Noise inside layers: {dataset}", _KEYS, tables)
    rows = suite.run(groups(), out=out, command=command)
    (out / "sigma.svg").write_text(plot_sigma(rows), encoding="utf-8")
    return rows


class _PixelData(NamedTuple):
    """Training and attacked test samples as pixels, and how pixels are standardised."""

    train: Samples
    test: Samples
    prepare: Preparation


@dataclass
class _SeedRuns:
    """The trainings and attacks of one seed."""

    task: Task
    n_attacked: int
    seed: int
    progress: Progress

    def keys(self, name: str, sigma: float, queries: int) -> list[dict[str, Any]]:
        """The keys of the rows of one network: one for each expectation model."""
        key = {
            **{"data": self.task.dataset.name, "n": self.task.n, "n_attacked": self.n_attacked},
            **{"epochs": self.task.training.epochs, "queries": queries, "method": name},
            **{"sigma": sigma, "seed": self.seed},
        }
        return [{**key, "expectation": e} for e in METHODS[name].expectations]

    def attack(
        self, name: str, sigma: float, queries: int, missing: Sequence[Row]
    ) -> Iterable[Row]:
        """Train a network and attack its expectation models."""
        model, seconds = self._train(name, sigma)
        surrogate = None if name == "plain" else self._plain[0]
        for key in missing:
            attacked = model
            if isinstance(model, NoisyNetwork):
                expectation = key["expectation"]
                attacked = NoisyNetwork(model.model, model.sigma, expectation=expectation).eval()
            found = robustness(
                attacked,
                self._data.test,
                epsilons=self.task.epsilons,
                steps=ATTACK_STEPS,
                queries=queries,
                surrogate=surrogate,
                batch_size=self.n_attacked,
                seed=self.seed,
                progress=self.progress,
            )
            accuracy = {
                attack: {f"{eps:.4f}": v for eps, v in by_budget.items()}
                for attack, by_budget in found.accuracy.items()
            }
            checks = {c.name: [c.holds, c.evidence] for c in found.checks}
            measured = {"clean": found.clean, "accuracy": accuracy, "checks": checks}
            yield {**key, **measured, "seconds": seconds}

    def _train(self, name: str, sigma: float) -> tuple[nn.Module, float]:
        """A trained network and its seconds."""
        if name == "plain":
            return self._plain
        return self._train_network(name, sigma)

    @cached_property
    def _plain(self) -> tuple[nn.Module, float]:
        """The plainly trained network, from which examples are transferred to the others."""
        return self._train_network("plain", 0.0)

    def _train_network(self, name: str, sigma: float) -> tuple[nn.Module, float]:
        method, config, data = METHODS[name], self.task.training, self._data
        with temp_seed(self.seed, "network"):
            network: nn.Module = FromPixels(
                self.task.network(), data.prepare.mean, data.prepare.std
            )
        if method.has_noise:
            network = with_noise(network, sigma, on_input=method.has_input_noise)

        def work() -> nn.Module:
            return loop.tune(
                network,
                data.train,
                build_targets(data.train, None, config),
                config,
                seed=self.seed,
                objective=method.objective(self.task.epsilons[-1]),
                progress=self.progress,
                what=f"{name} {sigma:g}" if sigma else name,
            )

        return timed(work, clock=compute_seconds)

    @cached_property
    def _data(self) -> _PixelData:
        setting = Setting("none", state="regularised", seed=self.seed, n=self.task.n)
        data = self.task.dataset.noisy_dataset(setting)
        order = generator(self.seed, "attacked").permutation(len(data.test))
        test = data.test.subset(np.sort(order[: self.n_attacked]))
        train, test = (replace(s, prepare=Preparation()) for s in (data.train, test))
        return _PixelData(train, test, data.train.prepare)
