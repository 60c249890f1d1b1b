"""The stages of a repair, one function each: score, partition, rank, plan, prune, tune, compare.

Each takes a model, data and the records of the stages before it, and returns a new record or model.
Settings are keywords; what they mean stands at the dataclass that each docstring names.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.special import softmax
from torch import Tensor, nn

from expunge._core.progress import Progress, silent
from expunge._core.rng import subsample
from expunge.config import build
from expunge.data import Batch, Samples, as_samples
from expunge.detection.detectors import detect, detectors, needs_of
from expunge.detection.partitioners import partitioners
from expunge.detection.signals import collect
from expunge.detection.thresholds import fdr_threshold
from expunge.errors import ConfigError, ModelError, PruneError
from expunge.evaluation import metrics
from expunge.evaluation.audit import audit as audit
from expunge.models.inspection import inspect_layers
from expunge.pruning import surgery
from expunge.pruning.ranking import rank_units
from expunge.pruning.selection import pruners
from expunge.recipes import PartitionConfig, PruneConfig, RankConfig, ScoreConfig
from expunge.records import (
    Budget,
    Evaluation,
    Metric,
    NeuronRanking,
    Partition,
    PrunePlan,
    Scores,
)
from expunge.storage.weights import fit_weights, load_weights
from expunge.training import loop
from expunge.training.loop import TuneConfig
from expunge.training.targets import build_targets

T = TypeVar("T")
# What a user brings: Samples, a pair of arrays (x, y), or a map-style data set.
Data = Any
# Share of bad inputs from which held-out samples are looked at for them too.
_BAD_INPUTS = 0.01


def score(
    model: nn.Module,
    data: Data,
    /,
    *,
    seed: int = 0,
    progress: Progress = silent,
    **settings: object,
) -> Scores:
    """How suspicious every sample is, by every detector. settings: see `ScoreConfig`.

    One pass over the data (and one more for each random view); the model is left as it was.
    """
    samples, config = as_samples(data), _settings(ScoreConfig, settings)
    # When more is there, more is used.
    more = (
        ("external_margin",)
        if samples.external_probs and "external_margin" not in config.detectors
        else ()
    )
    chosen = (*config.detectors, *more)
    needs = needs_of(chosen)
    signals = collect(
        model,
        samples,
        needs=needs,
        attribution_layer=config.attribution_layer,
        feature_layers=config.feature_layers,
        views=config.views,
        batch_size=config.batch_size,
        precision=config.precision,
        seed=seed,
        progress=progress,
    )
    return detect(signals, chosen, config.options)


def average_checkpoint_probs(
    model: nn.Module,
    data: Data,
    checkpoints: Iterable[str | Path | Mapping[str, Tensor]],
    /,
    *,
    progress: Progress = silent,
) -> np.ndarray:
    """Class probabilities averaged over checkpoints of a training, ``float32[n, c]``.

    A network learns the right labels first and wrong ones late (arXiv 2001.10528), so the mean
    over the whole training says more than its end. checkpoints: weights of the model, as files or
    state dictionaries. Hand the result to `score` as ``replace(samples,
    external_probs={"trajectory": p})``.
    One plain pass each; the model is left as it was.
    """
    samples, other, sums, count = as_samples(data), copy.deepcopy(model), 0.0, 0
    for checkpoint in checkpoints:
        if isinstance(checkpoint, Mapping):
            fit_weights(other, checkpoint)
        else:
            load_weights(other, checkpoint)
        logits = collect(other, samples, progress=progress, what="trajectory").logits
        sums, count = sums + softmax(logits.astype(np.float64), axis=1), count + 1
    if not count:
        raise ConfigError("there is no checkpoint", where="trajectory", fix="name one or more")
    return np.asarray(sums / count, dtype=np.float32)


def partition(scores: Scores, /, *, seed: int = 0, **settings: object) -> Partition:
    """The probability that each sample is bad, and a label to suggest. See `PartitionConfig`."""
    config = _settings(PartitionConfig, settings)
    partitioners.check_options(config.method, config.options)
    method = partitioners.get(config.method)
    split = method(scores, seed=seed, threshold=config.threshold, **config.options)
    if config.fdr is None:
        return split
    return replace(split, threshold=fdr_threshold(split.p_noisy, config.fdr))


def rank(
    model: nn.Module,
    data: Data,
    split: Partition,
    /,
    *,
    seed: int = 0,
    progress: Progress = silent,
    **settings: object,
) -> NeuronRanking:
    """Neurons by how much of the noise they carry. See `RankConfig`."""
    samples, config = as_samples(data), _settings(RankConfig, settings)
    example = example_batch(samples)
    # Where nothing can be removed, all hidden layers can still be masked.
    able = surgery.prunable(model, example)
    shared = Counter(surgery.groups(model, example, able).values())
    own = [name for name in able if shared[name] == 1]
    able = able or list(inspect_layers(model, example).readouts)
    layers = config.layers or tuple(
        able[-config.last_n_layers :] if config.last_n_layers else own or able
    )
    if not layers:
        raise ModelError("the model has no hidden layer whose units could be ranked")
    if len(samples) > config.max_samples:
        samples = samples.subset(subsample(len(samples), config.max_samples, seed, "rank"))
    return rank_units(
        model,
        samples,
        split,
        method=config.method,
        layers=layers,
        groups=surgery.groups(model, example, layers),
        progress=progress,
        **config.options,
    )


def plan(ranking: NeuronRanking, /, *, seed: int = 0, **settings: object) -> PrunePlan:
    """Which units to cut: ``plan(ranking, fraction=0.1)``; see `PruneConfig`. Cuts nothing yet."""
    config = _settings(PruneConfig, settings)
    if not config.is_enabled:
        raise ConfigError("nothing to cut", fix="give prune a fraction or a count above 0")
    budget = Budget(config.fraction, config.count, config.scope, config.max_layer_fraction)
    pruners.check_options(config.method, config.options)
    made = pruners.get(config.method)(ranking, budget, seed=seed, **config.options)
    if not made.requested:
        raise PruneError(
            f"fraction {config.fraction} of {len(ranking.unit)} units is less than one unit",
            fix="raise prune.fraction, or give prune.count",
        )
    return made


def prune(model: nn.Module, plan: PrunePlan, data: Data) -> nn.Module:
    """A new, physically smaller model without the planned units. data: to trace the model with."""
    return surgery.prune(model, plan, as_samples(data).example())


def tune(
    model: nn.Module,
    data: Data,
    split: Partition | None = None,
    /,
    *,
    seed: int = 0,
    layers: tuple[str, ...] = (),
    progress: Progress = silent,
    **settings: object,
) -> nn.Module:
    """A fine-tuned copy: ``tune(model, data, split, epochs=3)``. See `TuneConfig`."""
    samples, config = as_samples(data), _settings(TuneConfig, settings)
    targets = build_targets(samples, split, config)
    layers = tuned_layers(model, samples, config, layers)
    return loop.tune(model, samples, targets, config, seed=seed, layers=layers, progress=progress)


class Comparison(NamedTuple):
    """Two models on the same samples; gain is after − before in accuracy, paired."""

    before: Evaluation
    after: Evaluation
    gain: Metric

    def __str__(self) -> str:
        return f"accuracy {self.before.accuracy} → {self.after.accuracy}, gain {self.gain}"


def compare(before: nn.Module, after: nn.Module, data: Data, *, seed: int = 0) -> Comparison:
    """Evaluate two models on held-out samples, with 95 % bootstrap intervals."""
    samples = as_samples(data)
    first, second = (evaluate(m, samples, seed=seed) for m in (before, after))
    return Comparison(first, second, metrics.paired_gain(second, first, seed=seed))


def evaluate(
    model: nn.Module, samples: Samples, *, seed: int = 0, progress: Progress = silent
) -> Evaluation:
    """How well a model does on labelled samples; see `metrics.evaluate`."""
    signals = collect(model, samples, progress=progress, what="evaluate")
    probs = softmax(signals.logits.astype(np.float64), axis=1)
    return metrics.evaluate(samples.ids, samples.labels, probs, samples.classes, seed=seed)


def predict(model: nn.Module, data: Data, *, progress: Progress = silent) -> np.ndarray:
    """The class predicted for every sample, ``int64[n]``. One plain pass."""
    return collect(model, as_samples(data), progress=progress, what="predict").logits.argmax(axis=1)


def clean_input_probability(model: nn.Module, data: Data, split: Partition) -> np.ndarray:
    """``float64[n]``: the probability that each sample's input is sound.

    Asked only where the training data have bad inputs, more than one in a hundred, by the
    detectors of these (one plain pass); else all ones.
    """
    samples = as_samples(data)
    if float((split.p_input_fault > 0.5).mean()) < _BAD_INPUTS:
        return np.ones(len(samples))
    own = tuple(
        name for name in ScoreConfig().detectors if detectors.metadata(name).kind == "input"
    )
    scores = score(model, samples, detectors=own, views=0)
    return 1.0 - partition(scores, method="mixture").p_input_fault


def cut_model(model: nn.Module, plan: PrunePlan, samples: Samples, mode: str) -> nn.Module:
    """A copy of the model without the planned units: removed, or silenced by masks."""
    if mode == "remove":
        return surgery.prune(model, plan, example_batch(samples))
    masked = copy.deepcopy(model)
    surgery.mask(masked, plan, example_batch(samples))
    return masked


def example_batch(samples: Samples) -> Batch:
    """The first input, prepared: enough to trace a model, and quick."""
    return samples.batch(np.arange(1))


def tuned_layers(
    model: nn.Module, samples: Samples, config: TuneConfig, layers: tuple[str, ...]
) -> tuple[str, ...]:
    """What L-FT trains: the head, and the layers that were cut with the norms behind them.

    A layer that learns in front of a norm that does not is unchecked, and can run away.
    """
    if config.scope == "all":
        return ()
    example = example_batch(samples)
    head = inspect_layers(model, example).head
    behind = surgery.norms(model, example, layers) if layers else []
    return tuple(dict.fromkeys((*layers, *behind, *([head] if head else []))))


def _settings(kind: type[T], values: Mapping[str, object]) -> T:
    return build(kind, dict(values), where=kind.__name__)
