"""`expunge bench noise-layers`: noise inside the layers against attacks, and against relearning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, temp_seed
from expunge.config import DEFAULT_PRUNE_FRACTION
from expunge.data import Preparation, Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.signals import collect
from expunge.errors import ConfigError, did_you_mean
from expunge.models.zoo import convnet
from expunge.recipes import Recipe
from expunge.reporting.charts import line_chart
from expunge.robustness.attacks import FromPixels, adversarial, robustness
from expunge.robustness.noise_layers import (
    INPUT,
    Expectation,
    NoisyNetwork,
    closed_form,
    linearised,
    pre_activations,
    sampled,
    shifted,
)
from expunge.training import loop
from expunge.training.loop import Objective, TuneConfig, cross_entropy
from expunge.training.targets import Targets, build_targets
from expunge_bench.cifar import Cifar
from expunge_bench.digits import Digits
from expunge_bench.fields import BenchmarkDataset, Setting
from expunge_bench.suites import ResultStore, Row, Table, busy_seconds, distinct, mean

KEYS = ("data", "n", "epochs", "attacked", "queries", "method", "expectation", "sigma", "seed")
RELEARNING_KEYS = ("data", "n", "epochs", "rate", "method", "sigma", "seed")
ATTACKS = ("fgsm", "pgd", "margin", "square", "transfer")
# Steps of PGD when a model is attacked, and when it is trained on attacks.
STEPS, TRAINING_STEPS = 20, 5
# Training images that the relearning is measured on, and the shares of wrong labels in them.
RATE = 0.4


@dataclass(frozen=True)
class Method:
    """How a network is trained. objective: of the largest budget. noise: whether it has a sigma.

    pixels: whether there is noise on the input too, and not within the layers alone.
    """

    objective: Callable[[float], Objective]
    noise: bool = True
    pixels: bool = True
    expectations: tuple[Expectation, ...] = ("plain",)


BOTH: tuple[Expectation, ...] = ("plain", "propagated")
METHODS: Mapping[str, Method] = {
    "plain": Method(lambda eps: cross_entropy, noise=False),
    "sampled": Method(lambda eps: sampled(), expectations=BOTH),
    "diagonal": Method(lambda eps: closed_form("bound"), expectations=BOTH),
    "linearised": Method(lambda eps: linearised()),
    "shifted": Method(lambda eps: shifted()),
    "shifted-inside": Method(lambda eps: shifted(), pixels=False),
    "adversarial": Method(lambda eps: adversarial(eps=eps, steps=TRAINING_STEPS), noise=False),
}


# Of the fine-tuning of a repaired model.
VARIANTS = (
    ("plain", 0.0),
    *(("diagonal", sigma) for sigma in (0.5, 1.0)),
    *(("linearised", sigma) for sigma in (0.1, 0.3)),
)


@dataclass(frozen=True)
class Size:
    """Data of one sort, small. epsilons: budgets in parts of the range of pixels, the largest
    last. sigma: of the noise by method, in units of the range of pixels on the input and in the
    units of the pre-activations within; chosen on development seeds.
    """

    field: BenchmarkDataset
    n: int
    network: Callable[[], nn.Module]
    training: TuneConfig
    epsilons: tuple[float, ...]
    sigma: Mapping[str, float]


def small_convnet() -> nn.Module:
    """Four 3×3 convolutions with batch norm at half the resolution of 32×32 images: 70,000
    weights.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * channels, 10))


def digits_convnet() -> nn.Module:
    """The demo's network for digits, half as wide."""
    return convnet(classes=10, channels=1, widths=(16, 32), hidden=64)


# Chosen on a development seed of CIFAR-10 and samples apart: of a few powers of two the one that
# stands PGD best, if it costs at most 5 points more of clean accuracy than adversarial training.
SIGMA = {
    "sampled": 0.25,
    "diagonal": 1.0,
    "linearised": 2.0,
    "shifted": 2.0,
    "shifted-inside": 4.0,
}
_TRAINING = TuneConfig(targets="all", epochs=6, lr=0.1, precision="float32")


def size_of(name: str, folder: Path) -> Size:
    """``cifar10`` (in a folder) or ``digits``, small enough for two cores."""
    if name == "cifar10":
        return Size(Cifar(folder), 5_000, small_convnet, _TRAINING, (2 / 255, 8 / 255), SIGMA)
    if name == "digits":
        training = replace(_TRAINING, epochs=30, batch_size=64)
        return Size(Digits(), 1_000, digits_convnet, training, (0.1, 0.2), SIGMA)
    raise ConfigError(f"there are no data '{name}'", fix=did_you_mean(name, ("cifar10", "digits")))


def bench(
    data: str,
    *,
    folder: Path = Path("cifar10"),
    methods: Sequence[str] = (),
    factors: Sequence[float] = (0.5, 2.0),
    n: int | None = None,
    epochs: int | None = None,
    attacked: int = 400,
    queries: int = 100,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each method, expectation model, sigma and seed; what ``out`` holds stays.

    data: ``cifar10`` or ``digits``; see `size_of` for what n and epochs are left out. factors:
    multiples of the usual sigma, for the first seed and without the black-box attack. attacked:
    test samples, drawn by the seed. Writes ``rows.jsonl``, ``table.md``, ``table.html`` and
    ``sigma.svg``. Test data decide nothing: the weights are those of the last step.
    """
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"there is no method '{name}'", fix=did_you_mean(name, METHODS))
    size = size_of(data, folder)
    epochs = size.training.epochs if epochs is None else epochs
    size = replace(
        size, n=n or size.n, training=replace(size.training, epochs=epochs, targets="all")
    )
    ledger = ResultStore(out, KEYS)
    chosen = tuple(methods) or tuple(METHODS)
    for seed in seeds:
        job = _Job(size, attacked, seed, ledger, progress)
        for name in chosen:
            job.measure(name, size.sigma.get(name, 0.0), queries)
        for name in chosen if seed == seeds[0] else ():
            for factor in factors if METHODS[name].noise else ():
                job.measure(name, factor * size.sigma[name], 0)
    rows = ledger.rows()
    ledger.write(f"Noise inside layers: {data}", command, tables(rows))
    (out / "sigma.svg").write_text(plot(rows), encoding="utf-8")
    return rows


@dataclass
class _Job:
    """One seed: its data in pixels, and the plain model, whose examples are tried on the others."""

    size: Size
    attacked: int
    seed: int
    ledger: ResultStore
    progress: Progress
    scene: tuple[Samples, Samples, Preparation] | None = None
    plain: nn.Module | None = None

    def measure(self, name: str, sigma: float, queries: int) -> None:
        """Train a network and attack its expectation models, unless all rows are there."""
        method = METHODS[name]
        key = {
            **{"data": self.size.field.name, "n": self.size.n, "attacked": self.attacked},
            **{"epochs": self.size.training.epochs, "queries": queries, "method": name},
            **{"sigma": sigma, "seed": self.seed},
        }
        keys = {e: {**key, "expectation": e} for e in method.expectations}
        if all(k in self.ledger for k in keys.values()):
            return
        model, seconds = self._trained(name, sigma)
        _, test, _ = self._data()
        surrogate = None if name == "plain" else self._plain()
        for expectation, whole in keys.items():
            view = model
            if isinstance(model, NoisyNetwork):
                view = NoisyNetwork(model.model, model.sigma, expectation=expectation).eval()
            found = robustness(
                view,
                test,
                epsilons=self.size.epsilons,
                steps=STEPS,
                queries=queries,
                surrogate=surrogate,
                batch_size=self.attacked,
                seed=self.seed,
                progress=self.progress,
            )
            accuracy = {
                attack: {f"{eps:.4f}": v for eps, v in by.items()}
                for attack, by in found.accuracy.items()
            }
            checks = {c.name: [c.holds, c.evidence] for c in found.checks}
            outcome = {"clean": found.clean, "accuracy": accuracy, "checks": checks}
            if whole not in self.ledger:
                self.ledger.add({**whole, **outcome, "seconds": seconds})

    def _trained(self, name: str, sigma: float) -> tuple[nn.Module, float]:
        """A trained network and its seconds; of busy cores on a CPU."""
        train, _, prepare = self._data()
        with temp_seed(self.seed, "network"):
            network: nn.Module = FromPixels(self.size.network(), prepare.mean, prepare.std)
        if METHODS[name].noise:
            network = with_noise(network, sigma, pixels=METHODS[name].pixels)
        config = self.size.training
        started = busy_seconds()
        model = loop.tune(
            network,
            train,
            build_targets(train, None, config),
            config,
            seed=self.seed,
            objective=METHODS[name].objective(self.size.epsilons[-1]),
            progress=self.progress,
            what=f"{name} {sigma:g}" if sigma else name,
        )
        seconds = busy_seconds() - started
        if name == "plain":
            self.plain = model
        return model, seconds

    def _plain(self) -> nn.Module:
        if self.plain is None:
            self._trained("plain", 0.0)
        assert self.plain is not None
        return self.plain

    def _data(self) -> tuple[Samples, Samples, Preparation]:
        """Training and test samples as pixels, and how they are standardised."""
        if self.scene is None:
            made = self.size.field.scene(
                Setting("none", state="fresh", seed=self.seed, n=self.size.n)
            )
            order = generator(self.seed, "attacked").permutation(len(made.test))
            test = made.test.subset(np.sort(order[: self.attacked]))
            pixels = (replace(s, prepare=Preparation()) for s in (made.train, test))
            self.scene = (*pixels, made.train.prepare)  # type: ignore[assignment]
        assert self.scene is not None
        return self.scene


def with_noise(network: nn.Module, sigma: float, *, pixels: bool = True) -> NoisyNetwork:
    """Noise of one sigma at every pre-activation, and on the pixels."""
    sites = (INPUT,) if pixels else ()
    return NoisyNetwork(network, sigma, sites=(*sites, *pre_activations(network)))


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each size: accuracy by attack and budget, cost beside plain training, checks; sigma."""
    names = ("data", "n", "epochs", "attacked")
    return [
        table
        for size in distinct(rows, *names)
        for table in _tables(
            [r for r in rows if tuple(r[name] for name in names) == size],
            ", ".join(f"{name} {value}" for name, value in zip(names, size, strict=True)),
        )
    ]


def _tables(rows: Sequence[Row], what: str) -> list[Table]:
    """Of one size."""
    budgets = sorted({eps for r in rows for eps in r["accuracy"]["pgd"]})
    columns = [(a, e) for e in budgets for a in ATTACKS]
    plain = {r["seed"]: r["seconds"] for r in rows if r["method"] == "plain"}
    most = max((r["queries"] for r in rows), default=0)

    def line(found: Sequence[Row], form: str) -> tuple[str, ...]:
        def over(value: Callable[[Row], float | None]) -> str:
            return mean((value(r) for r in found), form=form, scale=100)

        return (
            over(lambda r: r["clean"]),
            *(over(lambda r, a=a, e=e: r["accuracy"].get(a, {}).get(e)) for a, e in columns),  # type: ignore[misc]
        )

    main, sweep = [], []
    for method, expectation, sigma in distinct(rows, "method", "expectation", "sigma"):
        found = [
            r
            for r in rows
            if (r["method"], r["expectation"], r["sigma"]) == (method, expectation, sigma)
        ]
        costs = (r["seconds"] / plain[r["seed"]] for r in found if r["seed"] in plain)
        failed = sorted({name for r in found for name, (ok, _) in r["checks"].items() if not ok})
        name = (method, expectation, f"{sigma:g}" if sigma else "–")
        sweep.append((*name, str(len(found)), *line(found, ".1f")))
        full = [r for r in found if r["queries"] == most]
        if full:
            signs = ", ".join(failed) or "none"
            main.append((*name, str(len(full)), *line(full, ".1f"), mean(costs, form=".1f"), signs))
    shown = [f"{a} {_budget(e)}" for a, e in columns]
    head = ("training", "expectation", "σ", "seeds", "clean", *shown)
    sweep.sort(key=lambda r: (r[0], r[1], float(r[2].replace("–", "0"))))
    return [
        Table(
            (*head, "cost", "signs of masking"),
            tuple(main),
            f"Accuracy under attack, percent: {what}",
        ),
        Table(head, tuple(sweep), f"By σ: {what}"),
    ]


def _budget(eps: str) -> str:
    """``0.0314`` is 8/255; larger parts stay what they are."""
    value = 255 * float(eps)
    return f"{value:.0f}/255" if value < 20 else f"{float(eps):g}"


def plot(rows: Sequence[Row]) -> str:
    """Clean accuracy and accuracy under PGD at the largest budget against σ, by method, as SVG.

    σ = 0 is plain training. Of the expectation models the better one is shown.
    """
    if not rows:
        return ""
    largest = max(rows[0]["accuracy"]["pgd"], key=float)
    first = rows[0]["seed"]
    at_zero = [r for r in rows if r["method"] == "plain" and r["seed"] == first]
    series: dict[str, list[tuple[float, float]]] = {}
    for (method,) in distinct(rows, "method"):
        if not METHODS[method].noise:
            continue
        best: dict[float, Row] = {r["sigma"]: r for r in at_zero}
        for r in rows:
            if r["method"] == method and r["seed"] == first:
                known = best.get(r["sigma"], r)
                best[r["sigma"]] = max(known, r, key=lambda one: one["accuracy"]["pgd"][largest])
        ordered = [best[s] for s in sorted(best)]
        series[f"{method}, clean"] = [(r["sigma"], 100 * r["clean"]) for r in ordered]
        name = f"{method}, PGD {_budget(largest)}"
        series[name] = [(r["sigma"], 100 * r["accuracy"]["pgd"][largest]) for r in ordered]
    return line_chart(series, x="σ", y="accuracy, percent")


def relearning(
    data: str,
    *,
    folder: Path = Path("cifar10"),
    variants: Sequence[tuple[str, float]] = VARIANTS,
    epochs: Sequence[int] = (6, 24),
    n: int | None = None,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Does noise-aware fine-tuning keep a repaired model from relearning wrong labels?

    40 % of the labels are wrong at random and learned by heart; the samples are partitioned, the
    network is cut, and fine-tuned on what is kept with suspects relabelled, as the default recipe
    does, with each variant of noise within the layers (a method and a sigma) and so many epochs.
    One row each; the partition and the cut are shared. ``missed``: share of the wrong labels not
    flagged (which it is tuned on) that it predicts in the end; ``wrong``: of all wrong labels.
    Writes ``rows.jsonl`` and ``table.md`` into ``out``.
    """
    size = size_of(data, folder)
    n = n or size.n
    ledger = ResultStore(out, RELEARNING_KEYS)
    for seed in seeds:
        shared = {"data": size.field.name, "n": n, "rate": RATE, "seed": seed}
        keys = [
            {**shared, "epochs": e, "method": method, "sigma": sigma}
            for e in epochs
            for method, sigma in variants
        ]
        missing = [key for key in keys if key not in ledger]
        if missing:
            scene = size.field.scene(Setting("symmetric", RATE, "memorised", seed, n))
            repaired = _Repaired.made(size, scene, seed, progress)
            for key in missing:
                ledger.add({**key, **repaired.tuned(key, progress)})
    rows = ledger.rows()
    ledger.write("Relearning", command, [relearning_table(rows)])
    return rows


@dataclass(frozen=True)
class _Repaired:
    """A network that has learned its labels by heart, cut and not yet tuned; and its partition."""

    model: nn.Module
    samples: Samples
    scene: NoisyDataset
    targets: Targets
    missed: np.ndarray
    config: TuneConfig
    seed: int

    @classmethod
    def made(cls, size: Size, scene: NoisyDataset, seed: int, progress: Progress) -> _Repaired:
        prepare, recipe = scene.train.prepare, Recipe()
        samples = replace(scene.train, prepare=Preparation())
        with temp_seed(seed, "network"):
            fresh = FromPixels(size.network(), prepare.mean, prepare.std)
        memorised = replace(size.training, epochs=4 * size.training.epochs, augment=False)
        model = pipeline.train(fresh, samples, memorised, seed=seed, progress=progress).model
        scores = stages.score(model, samples, seed=seed, views=recipe.score.views)
        split = stages.partition(scores, seed=seed)
        ranking = stages.rank(model, samples, split, seed=seed)
        plan = stages.plan(ranking, fraction=DEFAULT_PRUNE_FRACTION, seed=seed)
        cut = stages.prune(model, plan, samples)
        config = replace(recipe.tune, precision="float32", lr=loop.MEMORISED_LR)
        missed = scene.truth.label_fault & ~split.flagged
        targets = build_targets(samples, split, config)
        return cls(cut, samples, scene, targets, missed, config, seed)

    def tuned(self, key: Mapping[str, Any], progress: Progress) -> dict[str, float | None]:
        """Tune it as the key says, and see what it knows then."""
        method, sigma = METHODS[key["method"]], key["sigma"]
        noisy = method.noise
        started = busy_seconds()
        model = loop.tune(
            with_noise(self.model, sigma, pixels=False) if noisy else self.model,
            self.samples,
            self.targets,
            replace(self.config, epochs=key["epochs"]),
            seed=self.seed,
            objective=method.objective(0.0),
            progress=progress,
            what=f"tune, {key['method']} {sigma:g}",
        )
        seconds = busy_seconds() - started
        if isinstance(model, NoisyNetwork):
            model.expectation = method.expectations[-1]
        test = replace(self.scene.test, prepare=Preparation())
        given = collect(model, self.samples).logits.argmax(1) == self.samples.labels
        wrong = self.scene.truth.label_fault
        return {
            "accuracy": float((collect(model, test).logits.argmax(1) == test.labels).mean()),
            "wrong": float(given[wrong].mean()),
            "missed": float(given[self.missed].mean()) if self.missed.any() else None,
            "missed_samples": int(self.missed.sum()),
            "seconds": seconds,
        }


def relearning_table(rows: Sequence[Row]) -> Table:
    """Means over seeds; the lead over tuning without noise is paired by seed."""
    lines = []
    columns = ("data", "n", "epochs", "method", "sigma")
    for data, n, epochs, method, sigma in distinct(rows, *columns):
        here = [r for r in rows if (r["data"], r["n"], r["epochs"]) == (data, n, epochs)]
        found = [r for r in here if (r["method"], r["sigma"]) == (method, sigma)]
        without = {r["seed"]: r["accuracy"] for r in here if r["method"] == "plain"}
        ahead = [r["accuracy"] - without[r["seed"]] for r in found if r["seed"] in without]
        lines.append(
            (
                *(data, str(n), str(epochs), method, f"{sigma:g}", str(len(found))),
                mean((r["accuracy"] for r in found), form=".1f", scale=100),
                mean(ahead, form="+.1f", scale=100) if method != "plain" else "–",
                *(mean((r[k] for r in found), form=".1f", scale=100) for k in ("wrong", "missed")),
                mean((r["missed_samples"] for r in found), form=".0f"),
                mean((r["seconds"] for r in found), form=".0f"),
            )
        )
    head = ("data", "n", "epochs", "tuning", "σ", "seeds", "accuracy", "ahead of plain by")
    more = ("wrong labels predicted", "missed ones predicted", "missed", "seconds")
    return Table((*head, *more), tuple(lines), "Relearning, percent")
