"""The training loop.

`fit` is the loop of every training: order of the samples, schedule, precision, checks, resume,
several processes. A method is a step function on it. `tune` is the method of a repair: a weighted
loss on the targets of a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Ints
from expunge._core.distributed import all_reduce_sum, collective, this_process
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed
from expunge.data import Batch, Samples
from expunge.errors import ConfigError, ModelError, format_ids
from expunge.models.calls import device_of, logits_of, to_channels_last
from expunge.models.checks import require_trainable
from expunge.models.copying import copy_model, detach_attributes
from expunge.models.initialisation import frozen_modules
from expunge.training.attempts import MAX_ATTEMPTS, Attempt, has_died, saved_attempt
from expunge.training.checkpoints import Checkpoint, restore, training_state
from expunge.training.cuda_graphs import GraphedNetwork
from expunge.training.optimisation import (
    DEFAULT_LR,
    MEMORISED_LR,
    SCRATCH_LR,
    TuneConfig,
    batch_boundaries,
    build_optimizer,
    choose_batch_size,
    set_learning_rate,
    with_learning_rate,
    with_optimizer,
)
from expunge.training.reading import Reads, random_order
from expunge.training.steps import Step, Training
from expunge.training.targets import Targets
from expunge.training.time_budget import TimeBudget

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "DEFAULT_LR",
    "MEMORISED_LR",
    "SCRATCH_LR",
    "Checkpoint",
    "MakeBatchLoss",
    "Objective",
    "Step",
    "TuneConfig",
    "complementary_cross_entropy",
    "cross_entropy",
    "fit",
    "synchronise_buffers",
    "tune",
    "with_learning_rate",
]


class Diverged(ModelError):
    """A training whose loss is not finite."""


# A model, inputs and labels ``int64[b]`` to a loss a sample, ``float32[b]``.
Objective = Callable[[nn.Module, Batch, Tensor], Tensor]
# The loss of a batch from its step and the inputs of this process: a sum over the samples of this
# process, divided by the weights of all. It is made for the targets of a training and an attempt.
BatchLoss = Callable[[Step, Batch], Tensor]
MakeBatchLoss = Callable[[Targets, Attempt], BatchLoss]
# The order of n rows in an epoch: from (seed, epoch, n) to a permutation ``int64[n]``.
Order = Callable[[int, int, int], Ints]
BuildOptimizer = Callable[[nn.Module, TuneConfig], torch.optim.Optimizer]


def cross_entropy(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, ``−log softmax(f(x))_y``, in float32."""
    return nn.functional.cross_entropy(logits_of(model, x).float(), y, reduction="none")


def complementary_cross_entropy(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
    """Return the cross-entropy of labels y ≥ 0, and ``−log(1 − softmax(f(x))_k)`` for y = −1 − k.

    A label that is known to be wrong teaches that the sample is anything else (arXiv 1705.07541).
    """
    is_wrong = y < 0
    label = torch.where(is_wrong, -1 - y, y)[:, None]
    log_probs = logits_of(model, x).float().log_softmax(dim=1)
    right = log_probs.gather(1, label)[:, 0]
    others = log_probs.scatter(1, label, -torch.inf).logsumexp(dim=1)
    return -torch.where(is_wrong, others, right)


@torch.inference_mode(False)
def fit(
    models: Sequence[nn.Module],
    n: int,
    step: Callable[[Step], None],
    config: TuneConfig,
    *,
    seed: int,
    what: str,
    build: BuildOptimizer = build_optimizer,
    order: Order | None = None,
    reads: Reads | None = None,
    start_epoch: Callable[[int], None] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    is_last_batch_whole: bool = False,
    schedule_offset: float = 0.5,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> None:
    """Train networks in place by a step function.

    Each epoch visits n rows in random order, in batches. A training that is interrupted and resumed
    from its checkpoint gives the same weights as one that was not, bit for bit on a CPU: the order,
    the generators of a step and torch's global generator depend only on the seed, the epoch, the
    step and the process. Each process computes a part of every batch (DDP).

    Parameters
    ----------
    models
        The networks. They are moved to the device of this process during the training, trained
        where ``requires_grad`` is set, and end in evaluation mode. Batch norm whose parameters are
        frozen keeps its averages.
    n
        Number of rows to learn from.
    step
        Receives a `Step` and updates every network with `Step.minimise`.
    config
        Epochs, batch size, schedule, precision, optimiser, compilation.
    seed, what
        Seed and name of the training.
    build
        Builds the optimiser of a network.
    order
        The order of the rows in an epoch; by default that of ``reads``, else `random_order`.
    reads
        The samples of the rows: what is read from disk is read ahead and in a suitable order.
    start_epoch
        Called with the epoch before its first step.
    extra
        State of the method beside the networks. A step changes these tensors in place; they are
        saved and restored with the networks.
    is_last_batch_whole
        Whether a last batch that is not full joins the one before.
    schedule_offset
        Where in a step the schedule is evaluated: 0 at its start, 0.5 in its middle.
    checkpoint
        Where the state is saved after every epoch, and from which the training resumes.
    progress
        Called after every step.

    Raises
    ------
    ModelError
        If the last loss of an epoch is not finite.
    ConfigError
        If batches are too small for batch norm.
    """
    accelerator, config = this_process(), with_optimizer(config, models[0])
    budget = TimeBudget(config.max_minutes, accelerator)
    extra = {**(extra or {}), **budget.state}
    size, min_size = choose_batch_size(config, n), 2 * accelerator.num_processes
    boundaries = batch_boundaries(n, size, size if is_last_batch_whole else min_size)
    n_steps = len(boundaries) + 1
    total = n_steps * config.n_epochs
    with _prepare(models, config, build, accelerator) as (networks, optimizers):
        _check_batch_size(models, size, min_size, what)
        pairs = list(zip(models, optimizers, strict=True))
        training = Training(
            networks,
            optimizers,
            accelerator,
            config.precision,
            seed,
            what,
            config.max_gradient_norm,
        )
        for epoch in range(restore(checkpoint, pairs, extra, accelerator), config.n_epochs):
            if start_epoch is not None:
                start_epoch(epoch)
            rows = (order or (reads.order if reads else random_order))(seed, epoch, n)
            batches = np.split(rows, boundaries)
            ahead = reads.announced(batches, accelerator) if reads else batches
            with temp_seed(seed, what, epoch, accelerator.process_index):
                for number, batch in enumerate(ahead, start=epoch * n_steps):
                    spent = budget.fraction()
                    if spent >= 1:
                        break
                    for optimizer in optimizers:
                        done = max((number + schedule_offset) / total, spent)
                        set_learning_rate(optimizer, config, done)
                    with collective():
                        step(Step(epoch, number, max(number / total, spent), batch, training))
                    progress(what, number + 1, total)
            _check_finite(training, epoch)
            synchronise_buffers(models, accelerator)
            budget.update()
            if checkpoint is not None:
                checkpoint.save(epoch + 1, training_state(pairs, extra))
            if budget.fraction() >= 1:
                break


@contextmanager
def _prepare(
    models: Sequence[nn.Module],
    config: TuneConfig,
    build: BuildOptimizer,
    accelerator: Accelerator,
) -> Iterator[tuple[list[nn.Module], list[torch.optim.Optimizer]]]:
    """Bring models into the form in which they train, and back."""
    homes = [device_of(model) for model in models]
    networks: list[nn.Module] = []
    optimizers: list[torch.optim.Optimizer] = []
    for model in models:
        model.to(accelerator.device)
        if all(p.dim() < 5 for p in model.parameters()):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = _distributed(model.train(), accelerator)
        if config.cuda_graphs and accelerator.num_processes == 1:
            network = GraphedNetwork(network)
        networks.append(cast(nn.Module, torch.compile(network)) if config.compile else network)
        optimizers.append(build(model, config))
        _freeze_batch_norm(model)
    with torch.enable_grad():
        yield networks, optimizers
    for model, home in zip(models, homes, strict=True):
        detach_attributes(model)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.to(home).eval()


def _distributed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Wrap a network for several processes."""
    if accelerator.num_processes == 1:
        return model
    device = accelerator.device
    return nn.parallel.DistributedDataParallel(
        model, device_ids=None if device.type == "cpu" else [device]
    )


def _check_batch_size(models: Sequence[nn.Module], size: int, min_size: int, what: str) -> None:
    """Raise `ConfigError` if batch norm would see fewer than two samples in a process."""
    if size < min_size and any(_has_batch_norm(model) for model in models):
        raise ConfigError(
            f"tune.batch_size is {size}, and batch norm needs {min_size} samples or more",
            where=what,
            fix="raise it, or leave it out",
        )


def _check_finite(training: Training, epoch: int) -> None:
    """Raise `ModelError` if the last loss of an epoch is not finite in a process."""
    for loss in training.losses.values():
        total = all_reduce_sum(loss, training.accelerator)
        if not torch.isfinite(total):
            raise Diverged(
                f"the loss became {total.item()} in epoch {epoch + 1}",
                where=training.what,
                fix="lower the learning rate",
            )


def synchronise_buffers(models: Sequence[nn.Module], accelerator: Accelerator) -> None:
    """Each process sees its part of the samples: the averages of batch norm differ."""
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for model in models:
            with collective():
                broadcast(list(model.buffers()))


def _has_batch_norm(model: nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(norm.training for norm in norms)


def _freeze_batch_norm(model: nn.Module) -> None:
    """Put frozen batch norms into evaluation mode: their averages stay."""
    for module in frozen_modules(model):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.inference_mode(False)  # what is made for a training is changed in place
def tune(
    model: nn.Module,
    samples: Samples,
    targets: Targets,
    config: TuneConfig,
    *,
    seed: int,
    layers: tuple[str, ...] = (),
    objective: Objective = cross_entropy,
    make_loss: MakeBatchLoss | None = None,
    checkpoint: Checkpoint | None = None,
    may_lower_lr: bool = False,
    progress: Progress = silent,
    on_note: Callable[[str], object] = str,
    what: str = "tune",
) -> nn.Module:
    """Train a copy of a model on targets by a weighted loss.

    Every batch minimises ``Σ w_i · l_i / Σ w_i``.

    Parameters
    ----------
    model
        The model. It is not changed.
    samples
        The samples.
    targets
        Positions, labels and weights.
    config
        Settings of the training. Optimiser and learning rate that are left open are filled in by
        `with_learning_rate`.
    seed
        Decides the order, the augmentation, dropout and noise, together with the epoch.
    layers
        The layers that ``scope="head"`` trains. Batch norm of all others keeps its averages; the
        published L-FT updates them.
    objective
        The loss of each sample l_i.
    make_loss
        Makes another loss of a batch, for methods that know more of a sample than its target.
    checkpoint, progress, what
        As in `fit`.
    may_lower_lr
        Whether a training that diverges is begun again at a tenth of the learning rate, at most
        twice; so it is if the settings have no learning rate. It diverges if the loss is not
        finite, or ends above where it began and tells nothing beyond how frequent each label is.
    on_note
        Called with a sentence if the learning rate was lowered.

    Returns
    -------
    nn.Module
        The trained copy, in evaluation mode, on the device of the model.

    Raises
    ------
    ModelError
        If the loss is not finite, or no parameter belongs to the layers.
    ConfigError
        If batches are too small for batch norm.

    Examples
    --------
    >>> import numpy as np
    >>> from expunge.data import from_arrays
    >>> from expunge.training.targets import build_targets
    >>> x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    >>> samples = from_arrays(x, (x[:, 0] > 0).astype(int))
    >>> config = TuneConfig(targets="all", epochs=20, lr=0.1)
    >>> model = tune(
    ...     nn.Linear(2, 2), samples, build_targets(samples, None, config), config, seed=0
    ... )
    >>> accuracy = (model(torch.from_numpy(x)).argmax(1).numpy() == samples.labels).mean()
    >>> bool(accuracy > 0.9)
    True
    """
    accelerator = this_process()
    may_lower_lr = may_lower_lr or config.lr is None
    config = with_learning_rate(config, model, len(samples))
    config = replace(config, batch_size=choose_batch_size(config, len(samples)))
    resident = samples.to_device(accelerator.device)
    for number in range(saved_attempt(checkpoint, accelerator), MAX_ATTEMPTS):
        attempt, is_last = Attempt(number, accelerator, checkpoint), number == MAX_ATTEMPTS - 1
        tuned = copy_model(model)
        _train_only(tuned, layers if config.scope == "head" else None)
        loss_of = (make_loss or partial(_weighted_loss, objective))(targets, attempt)

        def update(step: Step, loss_of: BatchLoss = loss_of, record: Attempt = attempt) -> None:
            x = step.inputs(resident, targets.positions, augment=config.augment)
            loss = loss_of(step, x)
            record.add(step.number, loss)
            step.minimise(loss)

        try:
            fit(
                [tuned],
                len(targets.positions),
                update,
                attempt.settings(config),
                seed=seed,
                what=what,
                reads=Reads(resident, targets.positions),
                start_epoch=attempt.start_epoch,
                extra=attempt.extra,
                checkpoint=attempt.checkpoint,
                progress=progress,
            )
        except Diverged:
            if is_last or not may_lower_lr:
                raise
            continue
        is_judged = may_lower_lr and objective is cross_entropy
        died = partial(has_died, model, tuned, resident, targets.positions)
        if is_last or not is_judged or not attempt.has_collapsed(targets, died):
            break
    for parameter, given in zip(tuned.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(given.requires_grad)
    if number:
        on_note(
            f"the loss diverged at the learning rate {config.lr:g}; "
            f"{attempt.settings(config).lr:g} was used"
        )
    return tuned


def _weighted_loss(objective: Objective, targets: Targets, attempt: Attempt) -> BatchLoss:
    """Make the weighted mean of the losses of a batch's samples."""

    def loss_of(step: Step, x: Batch) -> Tensor:
        y = step.to_device(targets.labels[step.rows])
        w = step.to_device(targets.weights[step.rows]).float()
        with step.autocast():
            losses = objective(step.network, to_channels_last(x), y)
        return (losses * w).sum() * float(1 / targets.weights[step.batch].sum())

    return loss_of


def _train_only(model: nn.Module, layers: tuple[str, ...] | None) -> None:
    """Freeze all parameters but those of these layers; None freezes none.

    What is frozen already stays so. A weight that is tied to one of these layers is theirs.
    """
    require_trainable(model)
    if layers is None:
        return
    if not layers:
        raise ModelError(
            "no linear layer makes the logits, so there is no head to tune",
            where="tune",
            fix="use scope = 'all'",
        )
    prefixes = tuple(f"{name}." for name in layers)
    named = list(model.named_parameters(remove_duplicate=False))
    own = {id(p) for name, p in named if name.startswith(prefixes)}
    for _, parameter in named:
        if id(parameter) not in own:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            f"no trainable parameter belongs to the layers {format_ids(layers)}",
            where="tune",
            fix="name layers that have weights, or use scope = 'all'",
        )
