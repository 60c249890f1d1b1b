"""Published methods that train on noisy labels from scratch, as baselines of a repair.

Each is a registered function of an untrained model, the samples and the settings of the training.
All samples are used with their given labels.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.distributed import this_process
from expunge._core.progress import Progress, silent
from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import derive
from expunge.data import Samples
from expunge.models.copying import copy_model
from expunge.models.initialisation import reinitialise
from expunge.training.checkpoints import Checkpoint
from expunge.training.loop import fit
from expunge.training.mixmatch import SampleBatches, clean_probability, mixmatch_loss
from expunge.training.optimisation import TuneConfig, warmup_fraction, with_learning_rate
from expunge.training.reading import Reads
from expunge.training.steps import Step

# ELR on CIFAR-10: weight of the penalty, and momentum of the targets.
ELR_WEIGHT, ELR_MOMENTUM = 3.0, 0.7
# Fractions of the training: after which co-teaching keeps its final fraction (10 of 200 epochs),
# and DivideMix's warm-up and ramp (10 and 16 of 300). The published schedules start with the full
# learning rate. Ours rises first, and nothing is dropped before it has: untrained networks would
# keep the easy samples.
CO_TEACHING_RAMP, DIVIDE_MIX_WARM_UP, DIVIDE_MIX_RAMP = 10 / 200, 10 / 300, 16 / 300
UNLABELLED_WEIGHT = 25.0


class Trainer(Protocol):
    """A method that trains a network on noisy labels.

    ``rate`` is the noise rate of the partition, in [0, 1]. The model given is not changed; the
    trained copy is returned in evaluation mode. ``config.targets`` is not used.
    """

    def __call__(
        self,
        model: nn.Module,
        samples: Samples,
        config: TuneConfig,
        *,
        seed: int,
        rate: float,
        checkpoint: Checkpoint | None = None,
        progress: Progress = silent,
        what: str = "train",
    ) -> nn.Module: ...


trainers: Registry[Trainer, NoMetadata] = Registry("trainer", NoMetadata)


@trainers.register("elr")
def elr(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float = 0.0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    what: str = "train",
) -> nn.Module:
    """Train by early-learning regularisation.

    ``CE(p, y) + λ log(1 − ⟨p, t⟩)``, with the target of each sample a running mean of the
    network's predictions, ``t ← β t + (1 − β) p``; λ = 3, β = 0.7.

    Parameters
    ----------
    model
        An untrained network. It is not changed.
    samples
        Samples with noisy labels; inputs are tensors.
    config
        Settings of the training. ``targets`` is not used.
    seed
        Decides the order and the augmentation.
    rate
        Not used.
    checkpoint, progress, what
        As in `fit`. The targets ``float32[n, c]`` are part of the checkpoint.

    Returns
    -------
    nn.Module
        The trained copy, in evaluation mode.

    Raises
    ------
    DataError
        If inputs are not tensors.
    ModelError
        If the loss is not finite.

    Notes
    -----
    The cost is that of plain training, and memory for n · c targets. It fails if the network
    memorises wrong labels before it learns the right ones: with noise that depends on the input.

    References
    ----------
    Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", 2020,
    arXiv:2007.00151.

    Examples
    --------
    >>> import numpy as np
    >>> from expunge.data import from_arrays
    >>> x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    >>> samples = from_arrays(x, (x[:, 0] > 0).astype(int))
    >>> trained = elr(nn.Linear(2, 2), samples, TuneConfig(epochs=2), seed=0)
    >>> trained.training
    False
    """
    config = with_learning_rate(config, model, len(samples))
    network, batches = copy_model(model), SampleBatches.of(samples, config, what)
    targets = torch.zeros(len(samples), len(samples.classes), device=this_process().device)

    def update(step: Step) -> None:
        rows = step.to_device(step.batch)
        x = batches.view(step, batches.inputs(step))
        logits = step.gather(step.logits(0, x))
        targets[rows] = update_elr_targets(targets[rows], logits.detach())
        step.minimise(elr_loss(logits, batches.labels(step), targets[rows]))

    fit(
        [network],
        len(samples),
        update,
        config,
        seed=seed,
        what=what,
        reads=Reads(batches.samples),
        extra={"targets": targets},
        checkpoint=checkpoint,
        progress=progress,
    )
    return network


def update_elr_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """Return the running mean of predictions, ``β t + (1 − β) p``, with p clipped and normalised.

    Parameters
    ----------
    targets
        ``float32[b, c]``, the targets before.
    logits
        ``float32[b, c]``, the logits of the same samples.

    Returns
    -------
    Tensor
        ``float32[b, c]``.
    """
    p = _clipped_softmax(logits)
    return ELR_MOMENTUM * targets + (1 - ELR_MOMENTUM) * (p / p.sum(dim=1, keepdim=True))


def elr_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return ``CE(p, y) + λ log(1 − ⟨p, t⟩)``, the mean over a batch; shapes as above."""
    agreement = (_clipped_softmax(logits) * targets).sum(dim=1)
    penalty = (1 - agreement).log().mean()
    return nn.functional.cross_entropy(logits, labels) + ELR_WEIGHT * penalty


def _clipped_softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1).clamp(1e-4, 1 - 1e-4)


@trainers.register("co-teaching")
def co_teaching(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    what: str = "train",
) -> nn.Module:
    """Train two networks, each on the samples for which the other has a small loss.

    Of every batch each network learns from the fraction ``1 − rate · min(1, t / t_k)`` with the
    smallest losses of the other network; t is the fraction of the training since the learning rate
    has risen.

    Parameters
    ----------
    model
        An untrained network. It is not changed. The second one starts from other weights.
    samples
        Samples with noisy labels; inputs are tensors.
    config
        Settings of the training. ``targets`` is not used.
    seed
        Decides the order, the augmentation and the second network's weights.
    rate
        The noise rate, in [0, 1]: that of the partition. The paper uses the true rate.
    checkpoint, progress, what
        As in `fit`.

    Returns
    -------
    nn.Module
        The first network, in evaluation mode.

    Raises
    ------
    DataError
        If inputs are not tensors.
    ModelError
        If the loss is not finite.

    Notes
    -----
    Twice the cost of plain training. It fails if the noise rate is wrong, or if hard samples have
    losses as large as those of wrong labels.

    References
    ----------
    Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
    2018, arXiv:1804.06872.

    Examples
    --------
    >>> import numpy as np
    >>> from expunge.data import from_arrays
    >>> x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    >>> samples = from_arrays(x, (x[:, 0] > 0).astype(int))
    >>> trained = co_teaching(nn.Linear(2, 2), samples, TuneConfig(epochs=2), seed=0, rate=0.2)
    >>> trained.training
    False
    """
    config = with_learning_rate(config, model, len(samples))
    networks, batches = _two_networks(model, seed), SampleBatches.of(samples, config, what)
    start = warmup_fraction(config)

    def update(step: Step) -> None:
        x, y = batches.view(step, batches.inputs(step)), batches.labels(step)
        losses = [
            nn.functional.cross_entropy(step.gather(step.logits(k, x)), y, reduction="none")
            for k in range(2)
        ]
        ramp = float(np.clip((step.progress - start) / CO_TEACHING_RAMP, 0, 1))
        chosen = exchange_small_losses(losses[0], losses[1], keep=1 - rate * ramp)
        for k in range(2):
            step.minimise(losses[k][chosen[k]].mean(), network=k)

    fit(
        networks,
        len(samples),
        update,
        config,
        seed=seed,
        what=what,
        reads=Reads(batches.samples),
        checkpoint=checkpoint,
        progress=progress,
    )
    return networks[0]


def exchange_small_losses(first: Tensor, second: Tensor, *, keep: float) -> tuple[Tensor, Tensor]:
    """Choose the samples of a batch that each of two networks learns from.

    Parameters
    ----------
    first, second
        ``float32[b]``, the losses of the two networks on the same samples.
    keep
        Fraction of the batch to keep, in [0, 1]; one sample at least is kept.

    Returns
    -------
    tuple of Tensor
        Positions ``int64[m]`` for the first network, which have the smallest losses of the second,
        and the reverse.
    """
    count = max(1, round(keep * len(first)))
    small = [loss.detach().argsort()[:count] for loss in (first, second)]
    return small[1], small[0]


@trainers.register("divide-mix")
def divide_mix(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float = 0.0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    what: str = "train",
) -> nn.Module:
    """Train two networks, each on a division of the data by the other's losses.

    After a warm-up, a mixture of two Gaussians on the losses of each network gives the probability
    that a label is clean. The *other* network learns from both parts by MixMatch; see
    `mixmatch_loss`. The weight of the unlabelled part rises to 25.

    Parameters
    ----------
    model
        An untrained network. It is not changed. The second one starts from other weights.
    samples
        Samples with noisy labels; inputs are tensors.
    config
        Settings of the training. ``targets`` is not used.
    seed
        Decides the order, the augmentation, the mixing and the second network's weights.
    rate
        Not used.
    checkpoint, progress, what
        As in `fit`. The division is computed from the networks at the start of every epoch, so
        that a checkpoint needs no more than these.

    Returns
    -------
    nn.Module
        The first network, in evaluation mode. The paper averages the predictions of both.

    Raises
    ------
    DataError
        If inputs are not tensors.
    ModelError
        If the loss is not finite.

    Notes
    -----
    About eight times the cost of plain training. It fails if losses of wrong labels are not larger
    than those of right ones: with noise that depends on the input, or after memorisation.

    References
    ----------
    Li et al., "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", 2020,
    arXiv:2002.07394.

    Examples
    --------
    >>> import numpy as np
    >>> from expunge.data import from_arrays
    >>> x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    >>> samples = from_arrays(x, (x[:, 0] > 0).astype(int))
    >>> trained = divide_mix(nn.Linear(2, 2), samples, TuneConfig(epochs=3), seed=0)
    >>> trained.training
    False
    """
    config = with_learning_rate(config, model, len(samples))
    networks, batches = _two_networks(model, seed), SampleBatches.of(samples, config, what)
    start = max(DIVIDE_MIX_WARM_UP, warmup_fraction(config))
    n_warm_up = max(1, round(start * config.n_epochs))
    clean = [torch.ones(len(samples)) for _ in networks]

    def divide(epoch: int) -> None:
        if epoch >= n_warm_up:
            clean[:] = [clean_probability(network, batches, config) for network in networks]

    def update(step: Step) -> None:
        ramp = float(np.clip((step.progress - start) / DIVIDE_MIX_RAMP, 0, 1))
        x, random = batches.inputs(step), step.random()
        for k in range(2):
            if step.epoch < n_warm_up:
                logits = step.gather(step.logits(k, batches.view(step, x)))
                loss = nn.functional.cross_entropy(logits, batches.labels(step))
            else:
                views = [batches.view(step, x, number) for number in range(2)]
                loss = mixmatch_loss(
                    step,
                    k,
                    views,
                    labels=samples.labels,
                    clean=clean[1 - k],
                    unlabelled_weight=UNLABELLED_WEIGHT * ramp,
                    random=random,
                )
            step.minimise(loss, network=k)

    fit(
        networks,
        len(samples),
        update,
        config,
        seed=seed,
        what=what,
        reads=Reads(batches.samples),
        start_epoch=divide,
        checkpoint=checkpoint,
        progress=progress,
    )
    return networks[0]


def _two_networks(model: nn.Module, seed: int) -> list[nn.Module]:
    """Return a copy of a model, and one with other weights."""
    return [copy_model(model), reinitialise(model, derive(seed, "learner", 1))]
