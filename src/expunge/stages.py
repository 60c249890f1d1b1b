"""The stages of a repair, one function each: score, partition, rank, plan, prune, tune, compare.

Every stage takes a model, data and the records of the stages before it. It returns a new record or
a new model and changes nothing that it was given. Settings are a config, or keywords, or both: the
keywords replace single settings of the config.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
from scipy.special import softmax
from torch import Tensor, nn

from expunge._core.arrays import Floats, Floats32, Ints
from expunge._core.distributed import broadcast_decision, this_process
from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge._core.rng import subsample
from expunge.config import (
    OPEN_ROUNDS,
    EditConfig,
    EditKeywords,
    PartitionConfig,
    PartitionKeywords,
    PruneConfig,
    PruneKeywords,
    PruneMode,
    RankConfig,
    RankKeywords,
    RoundsConfig,
    ScoreConfig,
    ScoreKeywords,
    TuneKeywords,
    merge,
)
from expunge.data import Batch, DataLike, Samples, as_samples
from expunge.detection.detectors import check_detectors, detect, detectors, needs_of
from expunge.detection.memorisation import has_memorised_faults, label_agreement
from expunge.detection.partitioners import partitioners
from expunge.detection.signals import collect
from expunge.detection.thresholds import fdr_threshold
from expunge.editing.editors import EditedModel, EditTask, editors
from expunge.errors import (
    ConfigError,
    DataError,
    ModelError,
    PartitionError,
    PruneError,
    format_ids,
    type_with_article,
)
from expunge.evaluation import metrics
from expunge.evaluation.audit import audit
from expunge.evaluation.diagnostics import memorised
from expunge.models.adaptation import adapt_model
from expunge.models.batches import n_bytes_of
from expunge.models.checks import check_fit
from expunge.models.copying import copy_model
from expunge.models.initialisation import is_partly_frozen
from expunge.models.inspection import inspect_layers, inspect_model
from expunge.pruning import surgery
from expunge.pruning.dependencies import is_cut_inside_blocks
from expunge.pruning.head_readouts import readable_heads
from expunge.pruning.hidden_pairs import found_once
from expunge.pruning.layer_units import unit_layers
from expunge.pruning.ranking import rank_units
from expunge.pruning.selection import pruners
from expunge.records import (
    Budget,
    Evaluation,
    Metric,
    NeuronRanking,
    Partition,
    PrunePlan,
    Scores,
    align,
)
from expunge.storage.weights import fit_weights, load_weights
from expunge.training import loop
from expunge.training.baselines import trainers
from expunge.training.bootstrap import bootstrapped
from expunge.training.loop import Checkpoint
from expunge.training.optimisation import (
    ADAMW_EPOCHS,
    DEFAULT_EPOCHS,
    DEFAULT_LR,
    LONG_EPOCHS,
    MEMORISED_LR,
    SCRATCH_LR,
    TuneConfig,
    with_fitting_batch_size,
    with_learning_rate,
    with_optimizer,
)
from expunge.training.semi_supervised import tune_semi_supervised
from expunge.training.targets import build_targets

__all__ = [
    "Comparison",
    "audit",
    "average_checkpoint_probs",
    "compare",
    "edit",
    "partition",
    "plan",
    "prune",
    "rank",
    "score",
    "tune",
]

# Held-out inputs are scored too if more than this fraction of the training inputs is bad.
_MIN_INPUT_FAULTS = 0.01
# The random numbers of the tuning are derived from this name.
_TUNE_STREAM = "5-tune"
# The detector that pools evidence and uses held-out labels.
_POOLED_DETECTOR = "pooled_margin"


@isolated
def score(
    model: nn.Module,
    data: DataLike,
    config: ScoreConfig | None = None,
    *,
    held_out: DataLike | None = None,
    seed: int = 0,
    scratch: Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[ScoreKeywords],
) -> Scores:
    """Score every sample with every detector: higher is more suspicious.

    Parameters
    ----------
    model
        A classifier: a batch of inputs to logits ``float[b, c]``. It is left as it was.
    data
        The training data, including its noise: `Samples`, a pair ``(x, y)`` of arrays, or a
        map-style data set.
    config
        Settings, see `ScoreConfig`.
    held_out
        Samples of the same source that the model was not trained on. How well it predicts their
        labels shows how far it has memorised its own, and how many of these are wrong.
    seed
        Seed of the random views.
    scratch
        A folder for features that are too large for the memory, see `docs/scale.md`.
    progress
        Called as ``progress(what, done, total)``.
    **settings
        Single settings of `ScoreConfig`, which replace those of the config.

    Returns
    -------
    Scores
        One column ``float64[n]`` for every detector, and the class distributions that they used.

    Raises
    ------
    ModelError
        If the model does not accept the data, or its output is not finite.
    ConfigError
        For unknown detectors, options and settings.

    Notes
    -----
    Cost: one forward pass, one more for every view, and a backward pass where a detector needs
    attributions of hidden layers; one forward pass of the held-out samples. Scores do not depend on
    batch size, order or number of processes beyond rounding.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> y = (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> scores = score(model, (x, y), detectors=("loss",))
    >>> scores.values["loss"].shape
    (60,)
    """
    samples, config = as_samples(data), merge(ScoreConfig, config, settings)
    check_detectors(config.detectors, config.options)
    model = adapt_model(model, samples).model
    names = config.detectors
    if samples.external_probs and "external_margin" not in names:
        names = (*names, "external_margin")
    signals = collect(
        model,
        samples,
        needs=needs_of(names),
        attribution_layer=config.attribution_layer,
        feature_layers=config.feature_layers,
        views=config.views,
        batch_size=config.batch_size,
        precision=config.precision,
        seed=seed,
        keep_all_classes=False,
        features_everywhere=False,
        scratch=scratch,
        progress=progress,
    )
    accelerator = this_process()
    if held_out is None or _POOLED_DETECTOR not in names:
        return broadcast_decision(accelerator, lambda: detect(signals, names, config.options))
    unseen = collect(
        model,
        as_samples(held_out),
        batch_size=config.batch_size,
        precision=config.precision,
        progress=progress,
        what="held out",
    )
    options = {
        "held_out_agreement": label_agreement(unseen.logits, unseen.labels),
        **config.options.get(_POOLED_DETECTOR, {}),
    }
    options = {**config.options, _POOLED_DETECTOR: options}
    return broadcast_decision(accelerator, lambda: detect(signals, names, options))


@isolated
def average_checkpoint_probs(
    model: nn.Module,
    data: DataLike,
    checkpoints: Iterable[str | Path | Mapping[str, Tensor]],
    *,
    progress: Progress = silent,
) -> Floats32:
    """Average the class probabilities over checkpoints of a training.

    A network learns right labels first and wrong ones late (arXiv 2001.10528), so the mean over a
    training separates them better than its end.

    Parameters
    ----------
    model
        The architecture. It is left as it was.
    data
        The training data.
    checkpoints
        Weights of the model: files, or state dictionaries. One or more.
    progress
        Called as ``progress(what, done, total)``.

    Returns
    -------
    ndarray
        ``float32[n, c]``. Give it to `score` as
        ``dataclasses.replace(samples, external_probs={"trajectory": p})``.

    Raises
    ------
    ConfigError
        If there is no checkpoint, or one is given where a list is expected.
    ModelError
        If weights do not fit the model.

    Notes
    -----
    Cost: one forward pass for every checkpoint.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> average_checkpoint_probs(model, data, [model.state_dict()]).shape
    (60, 2)
    """
    if isinstance(checkpoints, str | Path | Mapping):
        raise ConfigError(
            f"expected a list of checkpoints, got {type_with_article(checkpoints)}",
            where="trajectory",
            fix="put it into a list: [checkpoint]",
        )
    samples, total, count = as_samples(data), 0.0, 0
    other = copy_model(adapt_model(model, samples).model)
    for checkpoint in checkpoints:
        if isinstance(checkpoint, Mapping):
            fit_weights(other, checkpoint)
        else:
            load_weights(other, checkpoint)
        logits = collect(other, samples, progress=progress, what="trajectory").logits
        total, count = total + softmax(np.asarray(logits, dtype=np.float64), axis=1), count + 1
    if not count:
        raise ConfigError("there is no checkpoint", where="trajectory", fix="name one or more")
    return np.asarray(total / count, dtype=np.float32)


@isolated
def partition(
    scores: Scores,
    config: PartitionConfig | None = None,
    *,
    seed: int = 0,
    **settings: Unpack[PartitionKeywords],
) -> Partition:
    """Estimate for every sample the probability that it is noisy, and suggest a label.

    Parameters
    ----------
    scores
        What `score` returned.
    config
        Settings, see `PartitionConfig`.
    seed
        Seed of the fits.
    **settings
        Single settings of `PartitionConfig`, which replace those of the config.

    Returns
    -------
    Partition
        ``p_noisy``, ``p_label_fault`` and ``p_input_fault`` in [0, 1], suggested labels, and the
        noise rate with its interval.

    Raises
    ------
    ConfigError
        For unknown methods and settings.

    Notes
    -----
    Cost: seconds for 50,000 samples; no pass over the data.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> split = partition(score(model, data, detectors=("loss",)), threshold=0.7)
    >>> split.p_noisy.shape, split.threshold
    ((60,), 0.7)
    """
    _require_kind(scores, Scores, "scores")
    config = merge(PartitionConfig, config, settings)
    partitioners.check_options(config.method, config.method_options)
    method = partitioners.get(config.method)
    split = method(scores, seed=seed, threshold=config.threshold, **config.method_options)
    reproduces = has_memorised_faults(scores, split.p_label_fault)
    is_memorised = bool(memorised(scores)) if reproduces is None else reproduces
    split = replace(split, memorised=is_memorised)
    if config.fdr is None:
        return split
    return replace(split, threshold=fdr_threshold(split.p_noisy, config.fdr))


@isolated
@found_once()
def rank(
    model: nn.Module,
    data: DataLike,
    split: Partition,
    config: RankConfig | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Unpack[RankKeywords],
) -> NeuronRanking:
    """Rank units by how much of the noise they carry.

    Parameters
    ----------
    model
        The classifier. It is left as it was.
    data
        The training data.
    split
        What `partition` returned.
    config
        Settings, see `RankConfig`.
    seed
        Seed of the samples drawn.
    progress
        Called as ``progress(what, done, total)``.
    **settings
        Single settings of `RankConfig`, which replace those of the config.

    Returns
    -------
    NeuronRanking
        Every unit of the ranked layers with effect, standard error and q-value.

    Raises
    ------
    ModelError
        If the model has no layer whose units could be ranked, or a layer that is named is no hidden
        one.
    PruneError
        If the model has no layer of a name that is given.
    ConfigError
        For unknown rankers, options and settings.
    DataError
        If the partition is of other samples or labels.

    Notes
    -----
    Cost: one forward and one backward pass over at most ``max_samples`` samples.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> split = partition(score(model, data, detectors=("loss",)))
    >>> rank(model, data, split).units_by_layer()
    {'0': 8}
    """
    samples, config = as_samples(data), merge(RankConfig, config, settings)
    _require_partition_of(samples, split)
    # A copy: the pass with gradients must leave nothing in the caller's model.
    model = copy_model(adapt_model(model, samples).model)
    example = example_batch(samples)
    readouts = inspect_model(model, samples).readouts
    prunable = surgery.prunable(model, example)
    if any(name not in readouts for name in prunable):
        known = {*readouts, *readable_heads(model, samples.example())}
        prunable = [name for name in prunable if name in known]
    n_layers_of = Counter(surgery.groups(model, example, prunable).values())
    inside = is_cut_inside_blocks(model)
    unshared = [name for name in prunable if inside or n_layers_of[name] == 1]
    # Where no unit can be removed, those of all hidden layers can still be masked.
    masked = [name for name in unit_layers(model) if name in readouts]
    prunable = prunable or ([] if is_partly_frozen(model) else masked)
    last = config.last_n_layers
    layers = config.layers or tuple(prunable[-last:] if last else unshared or prunable)
    if not layers:
        raise ModelError(
            "the model has no hidden layer whose units could be ranked"
            + (" and that is not frozen" if is_partly_frozen(model) else ""),
            fix="tune without a ranking: units of linear and convolution layers alone are ranked",
        )
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


@isolated
def plan(
    ranking: NeuronRanking,
    config: PruneConfig | None = None,
    *,
    seed: int = 0,
    **settings: Unpack[PruneKeywords],
) -> PrunePlan:
    """Choose the units to prune: ``plan(ranking, fraction=0.1)``. Nothing is pruned yet.

    Parameters
    ----------
    ranking
        What `rank` returned.
    config
        Settings, see `PruneConfig`.
    seed
        Seed of pruners that draw.
    **settings
        Single settings of `PruneConfig`, which replace those of the config.

    Returns
    -------
    PrunePlan
        The units by layer, how many were requested, and why fewer are granted.

    Raises
    ------
    ConfigError
        If neither a fraction nor a count above 0 is given.
    PruneError
        If the fraction is less than one unit, or no unit can be pruned.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> split = partition(score(model, data, detectors=("loss",)))
    >>> plan(rank(model, data, split), fraction=0.25).granted
    2
    """
    _require_kind(ranking, NeuronRanking, "the ranking")
    config = merge(PruneConfig, config, settings)
    if not config.is_enabled:
        raise ConfigError("nothing to prune", fix="give prune a fraction or a count above 0")
    budget = Budget(config.fraction, config.count, config.scope, config.max_layer_fraction)
    pruners.check_options(config.method, config.options)
    made = pruners.get(config.method)(ranking, budget, seed=seed, **config.options)
    if not made.requested:
        raise PruneError(
            f"fraction {config.fraction} of {len(ranking.unit)} units is less than one unit",
            fix="raise prune.fraction, or give prune.count",
        )
    return made


@isolated
def prune(
    model: nn.Module, plan: PrunePlan, data: DataLike, *, mode: PruneMode = "remove"
) -> nn.Module:
    """Return a copy of the model without the planned units.

    Parameters
    ----------
    model
        The classifier. It is left as it was.
    plan
        What `plan` returned.
    data
        Any data of the model, to trace it with.
    mode
        ``"remove"`` makes the copy smaller, ``"mask"`` silences the units, also of layers that
        cannot be cut.

    Raises
    ------
    ConfigError
        For another mode.
    PruneError
        If the model has no such units, or the smaller model does not compute the same function of
        the remaining units.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> from expunge import PrunePlan
    >>> prune(model, PrunePlan({"0": (1, 5)}, requested=2), data)[0].out_features
    6
    """
    _require_kind(plan, PrunePlan, "the plan")
    mode = merge(PruneConfig, None, {"mode": mode}).mode
    samples = as_samples(data)
    found = adapt_model(model, samples).model
    return surgery.apply_plan(found, plan, samples.example(), mode=mode)


@isolated
def edit(
    model: nn.Module,
    data: DataLike,
    split: Partition,
    config: EditConfig | None = None,
    *,
    held_out: DataLike | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Unpack[EditKeywords],
) -> EditedModel:
    """Change a copy of the model in closed form: ``edit(model, data, split, method="ridge-head")``.

    Parameters
    ----------
    model
        The classifier. It is left as it was.
    data
        The training data.
    split
        What `partition` returned.
    config
        Settings, see `EditConfig`.
    held_out
        Samples of the same source that the model was not trained on. If given, they choose what an
        editor chooses.
    seed
        Seed of views and draws.
    progress
        Called as ``progress(what, done, total)``.
    **settings
        Single settings of `EditConfig`, which replace those of the config.

    Returns
    -------
    EditedModel
        ``model``, and ``head``: how a new head reads it, or None.

    Raises
    ------
    ConfigError
        For an unknown editor or option, or none.
    PartitionError
        If every sample was flagged.
    DataError
        If the partition is of other samples or labels.

    Notes
    -----
    Cost: a few passes over the data, and no gradient step.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> split = partition(score(model, data, detectors=("loss",)))
    >>> edit(model, data, split, method="ridge-head").model.head
    Linear(in_features=8, out_features=2, bias=True)
    """
    samples, config = as_samples(data), merge(EditConfig, config, settings)
    _require_partition_of(samples, split)
    if not config.method:
        raise ConfigError("no editor is named", fix=f"give edit a method: {editors.names()}")
    editors.check_options(config.method, config.options)
    if split.flagged.all():
        raise PartitionError(
            "every sample was flagged", where="edit", fix="raise partition.threshold"
        )
    task = EditTask(
        adapt_model(model, samples).model,
        samples,
        _rows_of(split, samples),
        None if held_out is None else as_samples(held_out),
        seed,
        config.precision,
        progress,
    )
    return editors.get(config.method)(task, **config.options)


@isolated
def tune(
    model: nn.Module,
    data: DataLike,
    split: Partition | None = None,
    config: TuneConfig | None = None,
    *,
    seed: int = 0,
    layers: tuple[str, ...] = (),
    from_scratch: bool = False,
    trainer: str = "",
    checkpoint: Checkpoint | None = None,
    on_note: Callable[[str], object] = str,
    stream: str = _TUNE_STREAM,
    progress: Progress = silent,
    **settings: Unpack[TuneKeywords],
) -> nn.Module:
    """Fine-tune a copy of the model: ``tune(model, data, split, epochs=3)``.

    Parameters
    ----------
    model
        The classifier. It is left as it was.
    data
        The training data.
    split
        What `partition` returned. None: all samples with the given labels.
    config
        Settings, see `TuneConfig`. A learning rate that is left out is chosen by `with_default_lr`.
    seed
        Seed of order, views and dropout.
    layers
        With ``scope="head"``, layers that are tuned beside the head: those that were pruned.
    from_scratch
        Whether the model is untrained, for the default learning rate.
    trainer
        A registered trainer to use instead, see `expunge.training.baselines`.
    checkpoint
        Where the state between epochs is kept.
    on_note
        Called with a sentence if a learning rate that was left out had to be lowered.
    stream
        The name from which random numbers are derived.
    progress
        Called as ``progress(what, done, total)``.
    **settings
        Single settings of `TuneConfig`, which replace those of the config.

    Returns
    -------
    nn.Module
        The tuned copy, in evaluation mode.

    Raises
    ------
    PartitionError
        If the partition leaves no sample, or none of a class.
    ModelError
        If the model does not accept the data, or the loss is not finite.
    ConfigError
        For an unknown trainer and unknown settings.
    DataError
        If the partition is of other samples or labels.
    PruneError
        With ``scope="head"``, if the model has no layer of a name that is given.

    Notes
    -----
    Cost: ``epochs`` forward and backward passes over the samples with a weight above 0.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> tuned = tune(model, data, epochs=1, lr=0.1)
    >>> tuned.training, torch.equal(tuned[0].weight, model[0].weight)
    (False, False)
    """
    samples, config = as_samples(data), merge(TuneConfig, config, settings)
    if split is not None:
        _require_partition_of(samples, split)
    model = adapt_model(model, samples).model
    check_fit(model, samples)
    config = with_fitting_batch_size(
        config,
        len(samples),
        n_bytes_of(example_batch(samples)),
        n_processes=this_process().num_processes,
    )
    may_lower_lr = config.lr is None
    config = with_default_lr(config, model, len(samples), split, from_scratch=from_scratch)
    if trainer:
        rate = split.noise_rate[0] if split is not None else 0.0
        return trainers.get(trainer)(
            model,
            samples,
            config,
            seed=seed,
            rate=rate,
            checkpoint=checkpoint,
            progress=progress,
            what=stream,
        )
    targets = build_targets(samples, split, config)
    make_loss = None
    if config.targets == "bootstrap" and split is not None:
        rows = _rows_of(split, samples)
        make_loss = bootstrapped(rows, len(samples.classes), config.optimizer)
    if config.targets == "semi" and split is not None:
        return tune_semi_supervised(
            model,
            samples,
            targets,
            config,
            seed=seed,
            split=_rows_of(split, samples),
            checkpoint=checkpoint,
            progress=progress,
            what=stream,
        )
    return loop.tune(
        model,
        samples,
        targets,
        config,
        seed=seed,
        layers=_tuned_layers(model, samples, config, layers),
        objective=(
            loop.complementary_cross_entropy
            if config.targets == "complement"
            else loop.cross_entropy
        ),
        make_loss=make_loss,
        may_lower_lr=may_lower_lr,
        on_note=on_note,
        checkpoint=checkpoint,
        progress=progress,
        what=stream,
    )


def _rows_of(split: Partition, samples: Samples) -> Partition:
    """The partition in the order of the samples."""
    return split.take(align(split.ids, samples.ids))


def with_default_epochs(config: TuneConfig, model: nn.Module, split: Partition) -> TuneConfig:
    """Fill in the epochs of a repair's tuning, where the config leaves them open."""
    if config.epochs is not None:
        return config
    if split.memorised_wrong_labels:
        return replace(config, epochs=DEFAULT_EPOCHS)
    optimizer = with_optimizer(config, model).optimizer
    return replace(config, epochs=ADAMW_EPOCHS if optimizer == "adamw" else LONG_EPOCHS)


def with_default_rounds(rounds: RoundsConfig, config: TuneConfig, model: nn.Module) -> RoundsConfig:
    """Fill in the epochs of further rounds, where they are left open."""
    if rounds.epochs is not None:
        return rounds
    return replace(rounds, epochs=OPEN_ROUNDS[with_optimizer(config, model).optimizer])


def with_default_lr(
    config: TuneConfig,
    model: nn.Module,
    n: int,
    split: Partition | None,
    *,
    from_scratch: bool = False,
) -> TuneConfig:
    """Fill in optimiser and learning rate, where the config leaves them open, for n samples.

    The rate of SGD for batches of 128: 0.3 in the repair of a model that has memorised wrong
    labels, 0.2 from scratch, else 0.1. For other batches it is scaled by ``√(batch_size / 128)``.
    That of AdamW follows from the weights of the model, see `adamw_learning_rate`; it is three
    times and twice as large in the same cases.
    """
    lr = DEFAULT_LR
    if from_scratch:
        lr = SCRATCH_LR
    elif split is not None and split.memorised_wrong_labels:
        lr = MEMORISED_LR
    return with_learning_rate(config, model, n, lr)


class Comparison(NamedTuple):
    """Two models on the same samples; gain is after − before in accuracy, paired."""

    before: Evaluation
    after: Evaluation
    gain: Metric

    def __str__(self) -> str:
        return f"accuracy {self.before.accuracy} → {self.after.accuracy}, gain {self.gain}"


@isolated
def compare(before: nn.Module, after: nn.Module, data: DataLike, *, seed: int = 0) -> Comparison:
    """Evaluate two models on the same held-out samples, with 95 % bootstrap intervals.

    Parameters
    ----------
    before, after
        The classifiers. They are left as they were.
    data
        Held-out samples. Accuracy is measured against their labels.
    seed
        Seed of the bootstrap.

    Returns
    -------
    Comparison
        Both evaluations and the paired gain in accuracy.

    Raises
    ------
    DataError
        If there are no samples, or fewer than two classes are named.
    ModelError
        If a model does not accept the data.

    Notes
    -----
    Cost: one forward pass for each model.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> compare(model, model, data).gain.value
    0.0
    """
    samples = as_samples(data)
    first, second = (evaluate(m, samples, seed=seed) for m in (before, after))
    return Comparison(first, second, metrics.paired_gain(second, first, seed=seed))


def evaluate(
    model: nn.Module, samples: Samples, *, seed: int = 0, progress: Progress = silent
) -> Evaluation:
    """Measure a model on labelled samples; see `expunge.evaluation.metrics.evaluate`."""
    model = adapt_model(model, samples).model
    signals = collect(model, samples, progress=progress, what="evaluate")
    probs = softmax(np.asarray(signals.logits, dtype=np.float64), axis=1)
    return metrics.evaluate(samples.ids, samples.labels, probs, samples.classes, seed=seed)


def predict(model: nn.Module, data: DataLike, *, progress: Progress = silent) -> Ints:
    """Predict the class of every sample, ``int64[n]``, in one forward pass."""
    samples = as_samples(data)
    model = adapt_model(model, samples).model
    logits = collect(model, samples, progress=progress, what="predict").logits
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)


def clean_input_probability(model: nn.Module, data: DataLike, split: Partition) -> Floats:
    """Estimate for every held-out sample the probability that its input is clean, ``float64[n]``.

    All ones unless more than one in a hundred training inputs is bad by the partition. Then the
    input detectors score the held-out samples, in one forward pass.
    """
    samples = as_samples(data)
    if float((split.p_input_fault > 0.5).mean()) < _MIN_INPUT_FAULTS:
        return np.ones(len(samples))
    names = tuple(n for n in ScoreConfig().detectors if detectors.metadata(n).kind == "input")
    scores = score(model, samples, detectors=names, views=0)
    return 1.0 - partition(scores, method="mixture").p_input_fault


def example_batch(samples: Samples) -> Batch:
    """Return the first input, prepared: a batch of one, enough to trace a model."""
    return samples.batch(np.arange(1))


def _tuned_layers(
    model: nn.Module, samples: Samples, config: TuneConfig, layers: tuple[str, ...]
) -> tuple[str, ...]:
    """The layers that L-FT trains: the head, and the pruned layers with the norms behind them.

    A layer that is trained in front of a norm that is not can diverge.
    """
    if config.scope == "all":
        return ()
    example = example_batch(samples)
    head = inspect_layers(model, example).head
    behind = surgery.norms(model, example, layers) if layers else []
    return tuple(dict.fromkeys((*layers, *behind, *([head] if head else []))))


def _require_partition_of(samples: Samples, split: Partition) -> None:
    """Raise an error for a partition of other samples, whose ids may be the same numbers."""
    _require_kind(split, Partition, "the partition")
    differ = split.labels[align(split.ids, samples.ids)] != samples.labels
    if differ.any():
        raise DataError(
            f"the partition has other labels for {int(differ.sum())} of {len(samples)} samples: "
            f"ids {format_ids(samples.ids[differ])}",
            where=samples.name,
            fix="give the data that were scored; score data with new labels again",
        )


def _require_kind(record: object, kind: type, what: str) -> None:
    """Raise ConfigError for a record of another stage, or none."""
    if not isinstance(record, kind):
        raise ConfigError(
            f"{what} must be a {kind.__name__}, not {type(record).__name__}",
            fix="give what the stage before returned, and settings as keywords",
        )
