"""`expunge bench ssl-refine`: noise that depends on the image, refined away round by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.registry import NoMetadata, Registry
from expunge.data import Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.detectors import detect
from expunge.detection.neighbours import neighbour_votes
from expunge.detection.signals import collect
from expunge.errors import ConfigError, did_you_mean
from expunge.selfsupervised.features import extract_features
from expunge.selfsupervised.refinement import RefineConfig, Refined, refine, train_final
from expunge.selfsupervised.simclr import pretrain
from expunge.storage.weights import load_weights, save_weights
from expunge.training.baselines import trainers
from expunge.training.loop import SCRATCH_LR, TuneConfig, tune
from expunge.training.targets import build_targets
from expunge_bench.cifar import INSTANCE, Cifar
from expunge_bench.fields import Setting
from expunge_bench.instance_noise import realised
from expunge_bench.suites import ResultStore, Row, Table, busy_seconds, distinct, mean

KEYS = ("data", "n", "noise", "rate", "method", "seed")
RATES = (0.4,)
# The refinement always runs: the others get its seconds.
WHOLE, ENCODER = "ssl-refine", "simclr"
T = TypeVar("T")
# What a default repair costs, in plain epochs: five passes and six epochs of tuning, and the rest.
_REPAIR = 10.0
# What a row says in several numbers.
_FLIPS = ("right_flips", "wrong_flips", "other_flips")
_FOUND = ("flagged", "auroc", "f1", "auroc_neighbours")
_MADE = ("rate", "top_target", "worst_class")
_PLAIN = TuneConfig(targets="all", lr=SCRATCH_LR)


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
    scene: NoisyDataset
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

    @cached_property
    def noisy(self) -> tuple[nn.Module, int, float]:
        """What a default repair is given: a plain network, its epochs and seconds."""
        epochs = max(1, round(self.budget / self.epoch_seconds - _REPAIR))
        model, seconds = timed(lambda: self.plain(epochs))
        return model, epochs, seconds

    def plain(self, epochs: int) -> nn.Module:
        """A fresh network, trained on the labels given."""
        config = replace(_PLAIN, epochs=epochs)
        targets = build_targets(self.scene.train, None, config)
        return tune(
            self.fresh,
            self.scene.train,
            targets,
            config,
            seed=self.seed,
            progress=self.progress,
            what="cross-entropy",
        )

    def refine(self, config: RefineConfig) -> tuple[Refined, float]:
        """The rounds and the last training, from the encoder; all seconds."""

        def work() -> Refined:
            given = self.fresh, self.scene.train, config
            return refine(*given, encoder=self.encoder, seed=self.seed, progress=self.progress)

        found, spent = timed(work)
        return found, self.encoder_seconds + spent


# Methods by name: each gets the seconds of the refinement, its pre-training among them.
methods: Registry[Callable[[Case], Outcome], NoMetadata] = Registry("method", NoMetadata)


@methods.register("cross-entropy")
def cross_entropy(case: Case) -> Outcome:
    """Plain training on the labels given."""
    epochs = max(1, round(case.budget / case.epoch_seconds))
    model, seconds = timed(lambda: case.plain(epochs))
    return Outcome(model, epochs, seconds)


@methods.register("default")
def default_repair(case: Case) -> Outcome:
    """Plain training, and the default repair of what it made, in the same time together."""
    return _repaired(case, case.scene.train)


@methods.register("default+simclr")
def repair_with_features(case: Case) -> Outcome:
    """The same network, repaired with the encoder's features beside its own layers'.

    Its seconds come on top: those of the encoder and its pass.
    """
    train = case.scene.train
    features, spent = timed(lambda: extract_features(case.encoder, train))
    found = _repaired(case, replace(train, features={ENCODER: features}))
    return found._replace(seconds=found.seconds + case.encoder_seconds + spent)


@methods.register("divide-mix")
def divide_mix(case: Case) -> Outcome:
    """DivideMix from scratch."""
    epochs = _divide_mix_epochs(case, case.budget)
    model, seconds = timed(lambda: _divided(case, case.scene.train, epochs, case.progress))
    return Outcome(model, epochs, seconds)


@methods.register("ssl-refine")
def ssl_refine(case: Case) -> Outcome:
    """The refinement, as it is by default."""
    return _rounds(case, *case.refined)


@methods.register("softmax-weighted")
def softmax_weighted(case: Case) -> Outcome:
    """The refinement with the weighted loss."""
    return _rounds(case, *case.refine(replace(case.config, loss="softmax-weighted")))


@methods.register("from-checkpoint")
def from_checkpoint(case: Case) -> Outcome:
    """Plain training as for a repair, then the recipe: the pre-training starts from that network.

    Takes twice the seconds, since the checkpoint is there already in a repair.
    """
    noisy, _, before = case.noisy

    def work() -> Refined:
        given = noisy, case.scene.train, case.config
        return refine(*given, seed=case.seed, progress=case.progress)

    found, spent = timed(work)
    return _rounds(case, found, before + spent)


@methods.register("ssl-refine+divide-mix")
def handed_over(case: Case) -> Outcome:
    """The refinement, its labels and network handed to DivideMix in place of the last training."""
    last = case.epoch_seconds * case.config.final_epochs
    epochs = _divide_mix_epochs(case, last)
    config = replace(case.config, final_method="divide-mix", final_epochs=epochs)
    given = case.scene.train, case.refined[0].rounds[-1], case.encoder, config
    how: dict[str, Any] = {"seed": case.seed, "progress": case.progress}
    model, spent = timed(lambda: train_final(*given, **how))
    return Outcome(model, config.final_epochs, case.budget - last + spent)


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
    ledger = ResultStore(out, KEYS)
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
            raise ConfigError(f"there is no method '{name}'", fix=did_you_mean(name, known))
    return (WHOLE, *(name for name in known if name != WHOLE and name in (names or known)))


def _measure(
    data: Cifar,
    setting: Setting,
    names: Sequence[str],
    config: RefineConfig,
    ledger: ResultStore,
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
    scene: NoisyDataset,
    config: RefineConfig,
    ledger: ResultStore,
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
    how: dict[str, Any] = {"seed": setting.seed, "progress": progress}
    made, seconds = timed(lambda: pretrain(model, scene.train, config.simclr, **how).model)
    features, truth = extract_features(made, scene.train), scene.truth.labels
    votes = neighbour_votes(features, truth, len(scene.train.classes)).argmax(axis=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(made, file)
    if key not in ledger:
        ledger.add({**key, "accuracy": float((votes == truth).mean()), "seconds": seconds})
    return made, seconds


def _repaired(case: Case, train: Samples) -> Outcome:
    """The default repair, and how well it and neighbours alone tell wrong labels from right."""
    noisy, epochs, before = case.noisy
    how: dict[str, Any] = {"seed": case.seed, "controls": (), "progress": case.progress}
    result, seconds = timed(lambda: pipeline.repair(noisy, train, **how))
    split, truth = result.partition, case.scene.truth
    signals = collect(noisy, train, needs=frozenset({"features"}), views=0)
    if train.features:
        signals = replace(signals, features=train.features)
    near = detect(signals, ("knn_disagreement",)).values["knn_disagreement"]
    more = truth.found_by(split.p_noisy, split.flagged)
    more["flagged"] = float(split.flagged.mean())
    more["auroc_neighbours"] = truth.found_by(near, split.flagged)["auroc"]
    return Outcome(result.model, epochs, before + seconds, {"detection": more})


def _rounds(case: Case, refined: Refined, seconds: float) -> Outcome:
    """A refinement's outcome, and for each round what it did to the labels."""
    scene = case.scene
    truth, before, rounds = scene.truth.labels, scene.train.labels, []
    for model, found in refined.rounds:
        kept, moved = found.weights == 1, found.labels != before
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
                "other_flips": int((moved & (found.labels != truth) & (before != truth)).sum()),
            }
        )
        before = found.labels
    return Outcome(refined.model, case.config.total_epochs, seconds, {"rounds": rounds})


def _divided(case: Case, samples: Samples, epochs: int, progress: Progress) -> nn.Module:
    config, what = replace(_PLAIN, epochs=epochs), "divide-mix"
    trainer = trainers.get(what)
    how = {"seed": case.seed, "rate": 0.0, "progress": progress, "what": what}
    return trainer(case.fresh, samples, config, **how)


def _divide_mix_epochs(case: Case, seconds: float) -> int:
    """How many epochs of DivideMix fit: a short one is timed, on a fifth of the samples.

    Of two epochs the first is warm-up, which is plain training of two networks; so is a fifth of
    a longer one.
    """
    part = case.scene.train.subset(np.arange(0, len(case.scene.train), 5))
    both = 5 * timed(lambda: _divided(case, part, 2, silent))[1]
    warm = 2 * case.epoch_seconds
    each = _PLAIN.warmup * warm + (1 - _PLAIN.warmup) * max(both - warm, warm)
    return max(1, round(seconds / each))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result and its seconds, see `busy_seconds`."""
    started = busy_seconds()
    result = work()
    return result, busy_seconds() - started


def tables(rows: Sequence[Row]) -> list[Table]:
    """Methods, rounds, detection, noise, encoders. Means over seeds with 95 % t-intervals."""
    apart = ("n", "noise", "rate", "method")
    groups = [
        [r for r in rows if tuple(r[k] for k in apart) == which]
        for which in distinct([r for r in rows if r["method"] != ENCODER], *apart)
    ]
    encoders = [
        [r for r in rows if (r["method"], r["n"]) == (ENCODER, n)] for (n,) in distinct(rows, "n")
    ]
    what, means = ("noise", "method"), _means
    right = ("labels right before", "after", "counted fully", "of these right")
    flips = ("wrong → right", "right → wrong", "wrong → wrong")
    first = ("precision_before", "precision", "kept", "kept_precision", "accuracy")
    return [
        Table(
            (*what, "seeds", "accuracy", "refinement ahead by", "epochs", "seconds"),
            tuple((*_name(g), *_method(g, groups)) for g in groups),
        ),
        Table(
            (*what, "round", *right, "accuracy", *flips),
            tuple(
                (*_name(g), str(k), *means(part, first, ".1f", 100), *means(part, _FLIPS, ".0f"))
                for g in groups
                for k, part in enumerate(zip(*(r.get("rounds", ()) for r in g), strict=True), 1)
            ),
        ),
        Table(
            (*what, "flagged", "AUROC", "F1", "AUROC of neighbours alone"),
            tuple(
                (*_name(g), *means([r["detection"] for r in g], _FOUND, ".3f"))
                for g in groups
                if "detection" in g[0]
            ),
        ),
        Table(
            ("noise", "wrong", "to the commonest class", "right in the worst class"),
            tuple(
                (_name(g)[0], *means([r["noise_made"] for r in g], _MADE, ".3f"))
                for g in groups
                if g[0]["method"] == WHOLE
            ),
        ),
        Table(
            ("images", "neighbours of the encoder agree", "seconds"),
            tuple(
                (f"{g[0]['n']:,}", *means(g, ("accuracy",), ".1f", 100), *means(g, ("seconds",)))
                for g in encoders
                if g
            ),
        ),
    ]


def _name(group: Sequence[Row]) -> tuple[str, str]:
    return f"{group[0]['noise']} {group[0]['rate']:g}", group[0]["method"]


def _method(group: Sequence[Row], groups: Sequence[Sequence[Row]]) -> tuple[str, ...]:
    """Accuracy, the refinement's lead paired by seed, epochs, seconds."""
    same = ("n", "noise", "rate")
    whole = {
        r["seed"]: r["accuracy"]
        for other in groups
        for r in other
        if r["method"] == WHOLE and all(r[k] == group[0][k] for k in same)
    }
    ahead = [whole[r["seed"]] - r["accuracy"] for r in group if r["seed"] in whole]
    lead = "–" if group[0]["method"] == WHOLE else mean(ahead, form="+.1f", scale=100)
    accuracy, spent = _means(group, ("accuracy",), ".1f", 100), ("epochs", "seconds")
    return (str(len(group)), *accuracy, lead, *_means(group, spent, ".0f"))


def _means(
    rows: Sequence[Row], names: Sequence[str], form: str = ".0f", scale: float = 1.0
) -> tuple[str, ...]:
    return tuple(mean((r.get(name) for r in rows), form=form, scale=scale) for name in names)


def _key(data: Cifar, setting: Setting, method: str) -> dict[str, Any]:
    told = {"data": data.name, "n": setting.n, "noise": setting.noise, "rate": setting.rate}
    return {**told, "method": method, "seed": setting.seed}
