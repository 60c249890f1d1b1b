"""`expunge bench ssl-refine`: noise that depends on the image, refined away round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from expunge import pipeline, stages
from expunge.benchmarks.cifar import INSTANCE, Cifar
from expunge.benchmarks.fields import Setting
from expunge.benchmarks.instance_noise import realised
from expunge.benchmarks.noise import Scene
from expunge.benchmarks.suites import Ledger, Row, Table, distinct, mean
from expunge.detectors import neighbour_votes
from expunge.errors import ConfigError, closest
from expunge.progress import Progress, silent
from expunge.registry import Registry
from expunge.related.refinement import RefineConfig, Refined, finish, refine
from expunge.related.simclr import encoded, pretrain
from expunge.robust import trainers
from expunge.tuning import SCRATCH_RATE, TuneConfig, targets_of, tune
from expunge.weights import load_weights, save_weights

KEYS = ("data", "n", "noise", "rate", "method", "seed")
RATES = (0.2, 0.3, 0.4, 0.5)
# The refinement always runs: the others get its seconds.
WHOLE, ENCODER = "ssl-refine", "simclr"
T = TypeVar("T")
# What a default repair costs, in plain epochs: five passes and six epochs of tuning, and the rest.
_REPAIR = 10.0
_PLAIN = TuneConfig(data="everything", lr=SCRATCH_RATE)


class Outcome(NamedTuple):
    """A trained network, the epochs and seconds that it took, and what else its row says."""

    model: nn.Module
    epochs: int
    seconds: float
    more: Mapping[str, Any] = {}


@dataclass
class Case:
    """What every method starts from.

    encoder: pre-trained on the images, in ``encoder_seconds``. budget: seconds of the refinement,
    its pre-training too.
    """

    field: Cifar
    scene: Scene
    setting: Setting
    encoder: nn.Module
    encoder_seconds: float
    config: RefineConfig
    progress: Progress
    budget: float = 0.0

    @property
    def seed(self) -> int:
        """That of the setting."""
        return self.setting.seed

    @property
    def fresh(self) -> nn.Module:
        """An untrained network."""
        return self.field.network(self.seed)

    @cached_property
    def epoch_seconds(self) -> float:
        """What an epoch of plain training takes: one is timed."""
        return timed(lambda: self.plain(1))[1]

    @cached_property
    def refined(self) -> tuple[Refined, float]:
        """What the refinement makes, and its seconds, the pre-training's among them."""
        return self.refine(self.config)

    def plain(self, epochs: int) -> nn.Module:
        """A fresh network, trained on the labels given."""
        config = replace(_PLAIN, epochs=epochs)
        targets = targets_of(self.scene.train, None, config)
        how = {"seed": self.seed, "progress": self.progress, "what": "cross-entropy"}
        return tune(self.fresh, self.scene.train, targets, config, **how)

    def refine(self, config: RefineConfig) -> tuple[Refined, float]:
        """The rounds and the last training, from the encoder; all seconds."""
        how = {"encoder": self.encoder, "seed": self.seed, "progress": self.progress}
        found, spent = timed(lambda: refine(self.fresh, self.scene.train, config, **how))
        return found, self.encoder_seconds + spent


# Methods by name: each gets the seconds of the refinement, its pre-training among them.
methods: Registry[Callable[[Case], Outcome]] = Registry("method")


@methods.register("cross-entropy")
def cross_entropy(case: Case) -> Outcome:
    """Plain training on the labels given."""
    epochs = max(1, round(case.budget / case.epoch_seconds))
    model, seconds = timed(lambda: case.plain(epochs))
    return Outcome(model, epochs, seconds)


@methods.register("default")
def default_repair(case: Case) -> Outcome:
    """Plain training, and the default repair of what it made, in the same time together."""
    epochs = max(1, round(case.budget / case.epoch_seconds - _REPAIR))
    train, how = case.scene.train, {"seed": case.seed, "controls": (), "progress": case.progress}
    result, seconds = timed(lambda: pipeline.repair(case.plain(epochs), train, **how))
    flagged = float(result.partition.flagged.mean())
    return Outcome(result.model, epochs, seconds, {"flagged": flagged})


@methods.register("divide-mix")
def divide_mix(case: Case) -> Outcome:
    """DivideMix from scratch."""
    epochs = _divide_mix_epochs(case, case.budget)
    config, trainer = replace(_PLAIN, epochs=epochs), trainers.get("divide-mix")
    how = {"seed": case.seed, "rate": 0.0, "progress": case.progress, "what": "divide-mix"}
    model, seconds = timed(lambda: trainer(case.fresh, case.scene.train, config, **how))
    return Outcome(model, epochs, seconds)


@methods.register("ssl-refine")
def ssl_refine(case: Case) -> Outcome:
    """The refinement, as it is by default."""
    return _rounds(case, *case.refined)


@methods.register("softmax-weighted")
def softmax_weighted(case: Case) -> Outcome:
    """The refinement with the weighted loss."""
    return _rounds(case, *case.refine(replace(case.config, loss="softmax-weighted")))


@methods.register("ssl-refine+divide-mix")
def handed_over(case: Case) -> Outcome:
    """The refinement, its labels and encoder handed to DivideMix in place of the last training."""
    last = case.epoch_seconds * case.config.last
    config = replace(case.config, finish="divide-mix", last=_divide_mix_epochs(case, last))
    given = case.scene.train, case.refined[0].rounds[-1], case.encoder, config
    how = {"seed": case.seed, "progress": case.progress}
    model, spent = timed(lambda: finish(*given, **how))
    return Outcome(model, config.last, case.budget - last + spent)


def bench(
    data: Cifar,
    *,
    noise: str = "instance",
    rates: Sequence[float] = RATES,
    n: int = 5_000,
    names: Sequence[str] = (),
    config: RefineConfig | None = None,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each rate, seed and method; rows that ``out`` holds are not made again.

    names: `methods`; all, if none is named. The refinement runs first and sets the seconds that
    all others get; an encoder is pre-trained once a seed, and its seconds count at every rate.
    Accuracy is that at the last step; test data decide nothing. Writes ``rows.jsonl``,
    ``table.md``, ``table.html``.
    """
    if noise not in INSTANCE:
        raise ConfigError(f"noise '{noise}' is none of: {', '.join(INSTANCE)}")
    chosen, config = _checked(names), config or RefineConfig()
    ledger = Ledger(out, KEYS)
    for seed in seeds:
        for rate in rates:
            setting = Setting(noise, rate, "fresh", seed, n)
            if any(_key(data, setting, name) not in ledger for name in chosen):
                _measure(data, setting, chosen, config, ledger, progress)
    rows = ledger.rows()
    ledger.write("Refinement of labels", command, tables(rows))
    return rows


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    known = methods.names()
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no method '{name}'", fix=closest(name, known))
    return (WHOLE, *(name for name in known if name != WHOLE and name in (names or known)))


def _measure(
    data: Cifar,
    setting: Setting,
    names: Sequence[str],
    config: RefineConfig,
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Rows for one training set."""
    scene = data.scene(setting)
    noise = realised(scene.truth.labels, scene.train.labels, len(scene.train.classes))
    encoder, spent = _encoder(data, setting, scene, config, ledger, progress)
    case = Case(data, scene, setting, encoder, spent, config, progress)
    known = {tuple(row[k] for k in KEYS): row for row in ledger.rows()}
    for name in names:
        key = _key(data, setting, name)
        row = known.get(tuple(key.values()))
        if row is None:
            found = methods.get(name)(case)
            right = stages.predict(found.model, scene.test) == scene.test.labels
            row = {**key, "accuracy": float(right.mean()), "seconds": found.seconds}
            ledger.add({**row, "epochs": found.epochs, "noise_made": noise, **found.more})
        if name == WHOLE:
            case.budget = float(row["seconds"])


def _encoder(
    data: Cifar,
    setting: Setting,
    scene: Scene,
    config: RefineConfig,
    ledger: Ledger,
    progress: Progress,
) -> tuple[nn.Module, float]:
    """The encoder of a seed, and its seconds: the labels have no part in it, so all rates share it.

    Its row says how good it is: how often the neighbours' true labels agree with an image's own.
    """
    key = {**_key(data, setting, ENCODER), "noise": "", "rate": 0.0}
    file = ledger.folder / "encoders" / f"{setting.n}-{setting.seed}.safetensors"
    model = data.network(setting.seed)
    if key in ledger and file.exists():
        load_weights(model, file)
        wanted = tuple(key.values())
        row = next(r for r in ledger.rows() if tuple(r[k] for k in KEYS) == wanted)
        return model, float(row["seconds"])
    how = {"seed": setting.seed, "progress": progress}
    made, seconds = timed(lambda: pretrain(model, scene.train, config.simclr, **how).model)
    features, truth = encoded(made, scene.train), scene.truth.labels
    votes = neighbour_votes(features, truth, len(scene.train.classes)).argmax(axis=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(made, file)
    if key not in ledger:
        ledger.add({**key, "accuracy": float((votes == truth).mean()), "seconds": seconds})
    return made, seconds


def _rounds(case: Case, refined: Refined, seconds: float) -> Outcome:
    """A refinement's outcome, and for each round what it did to the labels."""
    scene, config = case.scene, case.config
    truth, before, rounds = scene.truth.labels, scene.train.labels, []
    for model, found in refined.rounds:
        kept, moved = found.weights > 0, found.labels != before
        right = stages.predict(model, scene.test) == scene.test.labels
        rounds.append(
            {
                "accuracy": float(right.mean()),
                "precision_before": float((before == truth).mean()),
                "precision": float((found.labels == truth).mean()),
                "kept": float(kept.mean()),
                "kept_precision": float((found.labels == truth)[kept].mean()),
                "right_flips": int((moved & (found.labels == truth)).sum()),
                "wrong_flips": int((moved & (before == truth)).sum()),
                "moved": int(moved.sum()),
            }
        )
        before = found.labels
    epochs = config.stages * (config.first + (config.rounds - 1) * config.epochs) + config.last
    return Outcome(refined.model, epochs, seconds, {"rounds": rounds})


def _divide_mix_epochs(case: Case, seconds: float) -> int:
    """How many epochs of DivideMix fit: a short one is timed, on a fifth of the samples.

    Of two epochs the first is warm-up, which is plain training of two networks; so is a fifth of
    a longer one.
    """
    part = case.scene.train.subset(np.arange(0, len(case.scene.train), 5))
    config, how = replace(_PLAIN, epochs=2), {"seed": case.seed, "rate": 0.0, "what": "divide-mix"}
    trainer = trainers.get("divide-mix")
    both = 5 * timed(lambda: trainer(case.fresh, part, config, progress=silent, **how))[1]
    warm = 2 * case.epoch_seconds
    each = _PLAIN.warmup * warm + (1 - _PLAIN.warmup) * max(both - warm, warm)
    return max(1, round(seconds / each))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result and its seconds: of this process's work on a CPU, of the wall with a GPU.

    So that what else a machine does neither shortens nor lengthens what the methods may take.
    """
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = now()
    result = work()
    return result, now() - started


def tables(rows: Sequence[Row]) -> list[Table]:
    """Methods; the refinement by round; the noise. Means over seeds with 95 % t-intervals."""
    by_method, by_round, noises = [], [], []
    for n, noise, rate in distinct([r for r in rows if r["noise"]], "n", "noise", "rate"):
        here = [r for r in rows if (r["n"], r["noise"], r["rate"]) == (n, noise, rate)]
        whole = {r["seed"]: r["accuracy"] for r in here if r["method"] == WHOLE}
        made = [r["noise_made"] for r in here if r["method"] == WHOLE]
        name = f"{noise} {rate:g}"
        for (method,) in distinct(here, "method"):
            found = [r for r in here if r["method"] == method]
            ahead = [whole[r["seed"]] - r["accuracy"] for r in found if r["seed"] in whole]
            by_method.append(
                (
                    *(name, method, str(len(found))),
                    mean((r["accuracy"] for r in found), form=".1f", scale=100),
                    "–" if method == WHOLE else mean(ahead, form="+.1f", scale=100),
                    mean((r["epochs"] for r in found), form=".0f"),
                    mean((r["seconds"] for r in found), form=".0f"),
                )
            )
            by_round += _by_round(name, method, [r["rounds"] for r in found if "rounds" in r])
        worst = mean((m["worst_class"] for m in made), form=".2f")
        top = mean((m["top_target"] for m in made), form=".2f")
        noises.append((name, mean(m["rate"] for m in made), top, worst))
    encoders = [
        (
            str(n),
            mean((r["accuracy"] for r in rows if r["method"] == ENCODER), form=".1f", scale=100),
        )
        for (n,) in distinct([r for r in rows if r["method"] == ENCODER], "n")
    ]
    head = ("noise", "method", "seeds", "accuracy", "refinement ahead by", "epochs", "seconds")
    flips = ("right flips", "wrong flips", "other flips")
    right = ("labels right before", "after", "kept", "of these right")
    return [
        Table(head, tuple(by_method)),
        Table(("noise", "method", "round", *right, *flips, "accuracy"), tuple(by_round)),
        Table(("noise", "wrong", "to a class's commonest", "worst class right"), tuple(noises)),
        Table(("images", "neighbours of the encoder agree"), tuple(encoders)),
    ]


def _by_round(
    noise: str, method: str, seeds: Sequence[Sequence[Mapping[str, Any]]]
) -> list[tuple[str, ...]]:
    lines = []
    for number, rounds in enumerate(zip(*seeds, strict=True), start=1):
        share = ("precision_before", "precision", "kept", "kept_precision")
        others = [r["moved"] - r["right_flips"] - r["wrong_flips"] for r in rounds]
        lines.append(
            (
                *(noise, method, str(number)),
                *(mean((r[k] for r in rounds), form=".1f", scale=100) for k in share),
                *(mean((r[k] for r in rounds), form=".0f") for k in ("right_flips", "wrong_flips")),
                mean(others, form=".0f"),
                mean((r["accuracy"] for r in rounds), form=".1f", scale=100),
            )
        )
    return lines


def _key(data: Cifar, setting: Setting, method: str) -> dict[str, Any]:
    told = {"data": data.name, "n": setting.n, "noise": setting.noise, "rate": setting.rate}
    return {**told, "method": method, "seed": setting.seed}
