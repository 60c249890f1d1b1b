"""The methods that the benchmark compares. All get the seconds that the refinement takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.registry import NoMetadata, Registry
from expunge.data import Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.detectors import detect
from expunge.detection.signals import collect
from expunge.selfsupervised.features import extract_features
from expunge.selfsupervised.refinement import RefineConfig, Refined, refine, train_final
from expunge.training.baselines import trainers
from expunge.training.loop import SCRATCH_LR, TuneConfig, tune
from expunge.training.targets import build_targets
from expunge_bench.datasets import BenchmarkDataset, Setting
from expunge_bench.timing import compute_seconds, timed

# The refinement always runs first: its seconds are the budget of the others.
REFINEMENT = "ssl-refine"
# Name of the encoder's features among the detectors' features.
ENCODER_FEATURES = "simclr"
T = TypeVar("T")
# Cost of a default repair in plain epochs: five passes and six epochs of fine-tuning, and the rest.
_REPAIR_EPOCHS = 10.0
_PLAIN_TRAINING = TuneConfig(targets="all", lr=SCRATCH_LR)


class Outcome(NamedTuple):
    """A trained network with its epochs and seconds, and further columns of its row."""

    model: nn.Module
    epochs: int
    seconds: float
    columns: Mapping[str, Any] = {}


@dataclass
class MethodInput:
    """What every method starts from.

    Parameters
    ----------
    dataset, data, setting
        The data set, its noisy samples, and the setting that made them.
    encoder
        Pre-trained on the images without labels.
    encoder_seconds
        What its pre-training took.
    config
        The refinement.
    progress
        Called during the trainings.
    budget
        Seconds for each method: those of the refinement with its pre-training.
    """

    dataset: BenchmarkDataset
    data: NoisyDataset
    setting: Setting
    encoder: nn.Module
    encoder_seconds: float
    config: RefineConfig
    progress: Progress
    budget: float = field(default=0.0)

    @property
    def seed(self) -> int:
        """The seed of the setting."""
        return self.setting.seed

    def untrained_network(self) -> nn.Module:
        """A new network."""
        return self.dataset.network(self.seed)

    @cached_property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch of plain training: one is timed."""
        return timed_compute(lambda: self.train_plain(1))[1]

    @cached_property
    def refined(self) -> tuple[Refined, float]:
        """The refinement's result, and its seconds with the pre-training."""
        return self.refine(self.config)

    @cached_property
    def noisy_model(self) -> tuple[nn.Module, int, float]:
        """The network that a default repair receives, its epochs and seconds."""
        epochs = max(1, round(self.budget / self.epoch_seconds - _REPAIR_EPOCHS))
        model, seconds = timed_compute(lambda: self.train_plain(epochs))
        return model, epochs, seconds

    def train_plain(self, epochs: int) -> nn.Module:
        """Train a new network on the given labels."""
        config = replace(_PLAIN_TRAINING, epochs=epochs)
        return tune(
            self.untrained_network(),
            self.data.train,
            build_targets(self.data.train, None, config),
            config,
            seed=self.seed,
            progress=self.progress,
            what="cross-entropy",
        )

    def refine(self, config: RefineConfig) -> tuple[Refined, float]:
        """Run the rounds and the final training from the encoder; returns all seconds as well."""

        def work() -> Refined:
            return refine(
                self.untrained_network(),
                self.data.train,
                config,
                encoder=self.encoder,
                seed=self.seed,
                progress=self.progress,
            )

        refined, seconds = timed_compute(work)
        return refined, self.encoder_seconds + seconds


methods: Registry[Callable[[MethodInput], Outcome], NoMetadata] = Registry("method", NoMetadata)


@methods.register("cross-entropy")
def cross_entropy(given: MethodInput) -> Outcome:
    """Plain training on the given labels."""
    epochs = max(1, round(given.budget / given.epoch_seconds))
    model, seconds = timed_compute(lambda: given.train_plain(epochs))
    return Outcome(model, epochs, seconds)


@methods.register("default")
def default_repair(given: MethodInput) -> Outcome:
    """Plain training, then the default repair, in the budget together."""
    return _repair(given, given.data.train)


@methods.register("default+simclr")
def repair_with_encoder_features(given: MethodInput) -> Outcome:
    """The same network, repaired with the encoder's features beside those of its own layers.

    The seconds of the encoder and of its pass are added.
    """
    train = given.data.train
    features, seconds = timed_compute(lambda: extract_features(given.encoder, train))
    outcome = _repair(given, replace(train, features={ENCODER_FEATURES: features}))
    return outcome._replace(seconds=outcome.seconds + given.encoder_seconds + seconds)


@methods.register("divide-mix")
def divide_mix(given: MethodInput) -> Outcome:
    """DivideMix from scratch."""
    epochs = _divide_mix_epochs(given, given.budget)
    model, seconds = timed_compute(
        lambda: _train_divide_mix(given, given.data.train, epochs, given.progress)
    )
    return Outcome(model, epochs, seconds)


@methods.register(REFINEMENT)
def ssl_refine(given: MethodInput) -> Outcome:
    """The refinement with its default settings."""
    return _refinement_outcome(given, *given.refined)


@methods.register("softmax-weighted")
def softmax_weighted(given: MethodInput) -> Outcome:
    """The refinement with the weighted loss."""
    refined, seconds = given.refine(replace(given.config, loss="softmax-weighted"))
    return _refinement_outcome(given, refined, seconds)


@methods.register("from-checkpoint")
def from_checkpoint(given: MethodInput) -> Outcome:
    """Plain training as for a repair, then the recipe: pre-training starts from that network.

    It takes twice the budget, because a repair is given the checkpoint.
    """
    model, _, training_seconds = given.noisy_model
    refined, seconds = timed_compute(
        lambda: refine(
            model, given.data.train, given.config, seed=given.seed, progress=given.progress
        )
    )
    return _refinement_outcome(given, refined, training_seconds + seconds)


@methods.register("ssl-refine+divide-mix")
def refine_then_divide_mix(given: MethodInput) -> Outcome:
    """The refinement; DivideMix with its labels and network replaces the final training."""
    final_seconds = given.epoch_seconds * given.config.final_epochs
    epochs = _divide_mix_epochs(given, final_seconds)
    config = replace(given.config, final_method="divide-mix", final_epochs=epochs)
    last_round = given.refined[0].rounds[-1]
    model, seconds = timed_compute(
        lambda: train_final(
            given.data.train,
            last_round,
            given.encoder,
            config,
            seed=given.seed,
            progress=given.progress,
        )
    )
    return Outcome(model, epochs, given.budget - final_seconds + seconds)


def timed_compute(work: Callable[[], T]) -> tuple[T, float]:
    """A result and its seconds by `compute_seconds`."""
    return timed(work, clock=compute_seconds)


def _repair(given: MethodInput, train: Samples) -> Outcome:
    """The default repair, and its detection beside that of nearest neighbours alone."""
    model, epochs, training_seconds = given.noisy_model
    result, seconds = timed_compute(
        lambda: pipeline.repair(
            model, train, seed=given.seed, baselines=(), progress=given.progress
        )
    )
    partition, truth = result.partition, given.data.truth
    signals = collect(model, train, needs=frozenset({"features"}), views=0)
    if train.features:
        signals = replace(signals, features=train.features)
    knn = detect(signals, ("knn_disagreement",)).values["knn_disagreement"]
    detection = truth.detection_metrics(partition.p_noisy, partition.flagged)
    detection["flagged_rate"] = float(partition.flagged.mean())
    detection["knn_auroc"] = truth.detection_metrics(knn, partition.flagged)["auroc"]
    return Outcome(result.model, epochs, training_seconds + seconds, {"detection": detection})


def _refinement_outcome(given: MethodInput, refined: Refined, seconds: float) -> Outcome:
    """The outcome of a refinement, and how each round changed the labels."""
    test, truth = given.data.test, given.data.truth.labels
    before, rounds = given.data.train.labels, []
    for model, update in refined.rounds:
        after = update.labels
        is_changed, is_correct, was_correct = after != before, after == truth, before == truth
        has_full_weight = update.weights == 1
        rounds.append(
            {
                "accuracy": float((stages.predict(model, test) == test.labels).mean()),
                "label_accuracy_before": float(was_correct.mean()),
                "label_accuracy": float(is_correct.mean()),
                "full_weight": float(has_full_weight.mean()),
                "full_weight_precision": float(is_correct[has_full_weight].mean()),
                "n_wrong_to_right": int((is_changed & is_correct).sum()),
                "n_right_to_wrong": int((is_changed & was_correct).sum()),
                "n_wrong_to_wrong": int((is_changed & ~is_correct & ~was_correct).sum()),
            }
        )
        before = after
    return Outcome(refined.model, given.config.total_epochs, seconds, {"rounds": rounds})


def _train_divide_mix(
    given: MethodInput, samples: Samples, epochs: int, progress: Progress
) -> nn.Module:
    config, name = replace(_PLAIN_TRAINING, epochs=epochs), "divide-mix"
    how: dict[str, Any] = {"seed": given.seed, "rate": 0.0, "progress": progress, "what": name}
    return trainers.get(name)(given.untrained_network(), samples, config, **how)


def _divide_mix_epochs(given: MethodInput, seconds: float) -> int:
    """The number of epochs of DivideMix that fit: two are timed on a fifth of the samples.

    The first of these two is warm-up, which is plain training of two networks. A longer training
    has a fraction `TuneConfig.warmup` of warm-up.
    """
    train, warmup = given.data.train, _PLAIN_TRAINING.warmup
    part = train.subset(np.arange(0, len(train), 5))
    two_epochs = 5 * timed_compute(lambda: _train_divide_mix(given, part, 2, silent))[1]
    warmup_epoch = 2 * given.epoch_seconds
    epoch = warmup * warmup_epoch + (1 - warmup) * max(two_epochs - warmup_epoch, warmup_epoch)
    return max(1, round(seconds / epoch))
