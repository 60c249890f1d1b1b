"""`expunge bench relearning`: does noise in the layers keep a repaired model from relearning?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from expunge import pipeline, stages
from expunge._core.arrays import Bools
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed
from expunge.config import DEFAULT_PRUNE_FRACTION
from expunge.data import Preparation, Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.signals import collect
from expunge.recipes import Recipe
from expunge.robustness.attacks import FromPixels
from expunge.robustness.noise_layers import NoisyNetwork
from expunge.training import loop
from expunge.training.loop import TuneConfig
from expunge.training.targets import Targets, build_targets
from expunge_bench.datasets import Setting
from expunge_bench.noise_layers.methods import METHODS, Task, task_for, with_noise
from expunge_bench.results import (
    Row,
    Table,
    format_mean,
    group_rows,
    mean_cells,
    paired_differences,
)
from expunge_bench.suites import RowGroup, Suite
from expunge_bench.timing import compute_seconds, timed

# Methods and sigmas of the fine-tuning.
VARIANTS = (
    ("plain", 0.0),
    *(("diagonal", sigma) for sigma in (0.5, 1.0)),
    *(("linearised", sigma) for sigma in (0.1, 0.3)),
)
NOISE_RATE = 0.4


def bench(
    dataset: str,
    *,
    folder: Path = Path("cifar10"),
    variants: Sequence[tuple[str, float]] = VARIANTS,
    epochs: Sequence[int] = (6, 24),
    n: int | None = None,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each variant of the fine-tuning, number of epochs and seed.

    A network memorises labels of which 40 % are wrong at random. The samples are partitioned and
    the network is pruned once. Then each variant fine-tunes it with flagged samples relabelled, as
    the default recipe does.

    Parameters
    ----------
    dataset, folder
        ``cifar10`` in a folder, or ``digits``.
    variants
        A method of `METHODS` and its sigma.
    epochs
        Epochs of the fine-tuning.
    n
        The number of training samples; that of `task_for`, if None.
    seeds
        Seeds of the data and the trainings.
    out
        Where rows and tables go.
    command, progress
        The command line, for the page; called during the trainings.

    Returns
    -------
    list
        ``wrong_labels_reproduced``: the fraction of all wrong labels that the model predicts.
        ``missed_labels_reproduced``: of the wrong labels that are not flagged, on which it is
        tuned. ``n_missed``: their number.
    """
    task = task_for(dataset, folder)
    n = n or task.n

    def rows_of(seed: int, missing: Sequence[Row]) -> Iterable[Row]:
        data = task.dataset.noisy_dataset(Setting("symmetric", NOISE_RATE, "overfit", seed, n))
        pruned = _PrunedModel.make(task, data, seed=seed, progress=progress)
        for key in missing:
            yield {**key, **pruned.tune_and_measure(key, progress)}

    def keys(seed: int) -> list[dict[str, Any]]:
        shared = {"data": task.dataset.name, "n": n, "rate": NOISE_RATE, "seed": seed}
        return [
            SUITE.key({**shared, "epochs": e, "method": method, "sigma": sigma})
            for e in epochs
            for method, sigma in variants
        ]

    groups = [RowGroup(keys(seed), partial(rows_of, seed)) for seed in seeds]
    return SUITE.run(groups, out=out, command=command)


@dataclass(frozen=True)
class _PrunedModel:
    """A network that memorised wrong labels, pruned and not tuned yet, with its targets."""

    model: nn.Module
    samples: Samples
    data: NoisyDataset
    targets: Targets
    missed: Bools
    config: TuneConfig
    seed: int

    @classmethod
    def make(cls, task: Task, data: NoisyDataset, *, seed: int, progress: Progress) -> _PrunedModel:
        prepare, recipe = data.train.prepare, Recipe()
        samples = replace(data.train, prepare=Preparation())
        with temp_seed(seed, "network"):
            untrained = FromPixels(task.network(), prepare.mean, prepare.std)
        overfit = replace(task.training, epochs=4 * task.training.n_epochs, augment=False)
        model = pipeline.train(untrained, samples, overfit, seed=seed, progress=progress).model
        scores = stages.score(model, samples, seed=seed, views=recipe.score.views)
        partition = stages.partition(scores, seed=seed)
        ranking = stages.rank(model, samples, partition, seed=seed)
        plan = stages.plan(ranking, fraction=DEFAULT_PRUNE_FRACTION, seed=seed)
        pruned = stages.prune(model, plan, samples)
        config = replace(recipe.tune, precision="float32", lr=loop.MEMORISED_LR)
        missed = data.truth.label_fault & ~partition.flagged
        targets = build_targets(samples, partition, config)
        return cls(pruned, samples, data, targets, missed, config, seed)

    def tune_and_measure(self, key: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Fine-tune by the key's method, and measure accuracy and relearned labels."""
        method, sigma = METHODS[key["method"]], key["sigma"]

        def work() -> nn.Module:
            network = self.model
            if method.has_noise:
                network = with_noise(network, sigma, on_input=False)
            return loop.tune(
                network,
                self.samples,
                self.targets,
                replace(self.config, epochs=key["epochs"]),
                seed=self.seed,
                objective=method.objective(0.0),
                progress=progress,
                what=f"tune, {key['method']} {sigma:g}",
            )

        model, seconds = timed(work, clock=compute_seconds)
        if isinstance(model, NoisyNetwork):
            model.expectation = method.expectations[-1]
        test = replace(self.data.test, prepare=Preparation())
        reproduced = collect(model, self.samples).logits.argmax(1) == self.samples.labels
        wrong, missed = self.data.truth.label_fault, self.missed
        return {
            "accuracy": float((collect(model, test).logits.argmax(1) == test.labels).mean()),
            "wrong_labels_reproduced": float(reproduced[wrong].mean()),
            "missed_labels_reproduced": (
                float(reproduced[missed].mean()) if missed.any() else None
            ),
            "n_missed": int(missed.sum()),
            "seconds": seconds,
        }


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals; differences are paired by seed."""
    lines = []
    for (data, n, epochs), here in group_rows(rows, "data", "n", "epochs").items():
        plain = [r for r in here if r["method"] == "plain"]
        for (method, sigma), found in group_rows(here, "method", "sigma").items():
            difference = paired_differences(found, plain)
            reproduced = ["wrong_labels_reproduced", "missed_labels_reproduced"]
            lines.append(
                (
                    *(data, str(n), str(epochs), method, f"{sigma:g}", str(len(found))),
                    *mean_cells(found, ["accuracy"], form=".1f", scale=100),
                    "–" if method == "plain" else format_mean(difference, form="+.1f", scale=100),
                    *mean_cells(found, reproduced, form=".1f", scale=100),
                    *mean_cells(found, ["n_missed", "seconds"], form=".0f"),
                )
            )
    head = (
        *("data", "n", "epochs", "tuning", "σ", "seeds", "accuracy (%)", "Δ vs plain (pp)"),
        *("wrong labels reproduced (%)", "missed wrong labels reproduced (%)"),
        *("missed wrong labels", "seconds"),
    )
    return [Table(head, tuple(lines), "Relearning")]


SUITE = Suite("Relearning", ("data", "n", "epochs", "rate", "method", "sigma", "seed"), tables)
