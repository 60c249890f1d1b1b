"""The only training loop: fine-tuning of a repaired model, and training from scratch.

L-FT (scope ``"head"``) moves the head, the layers that were cut and their norms; F-FT (``"all"``)
moves all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from expunge._core.distributed import broadcast_decision, shard
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, temp_seed, torch_generator
from expunge.data import Batch, Samples
from expunge.errors import ConfigError, ModelError, format_ids
from expunge.models.inspection import device_of, logits_of, to_channels_last
from expunge.training.optimisation import (
    DEFAULT_LR,
    MEMORISED_LR,
    SCRATCH_LR,
    Precision,
    TargetKind,
    TuneConfig,
    autocast,
    batch_boundaries,
    build_optimizer,
    choose_batch_size,
    set_learning_rate,
    with_learning_rate,
)
from expunge.training.targets import Targets

__all__ = [
    "DEFAULT_LR",
    "MEMORISED_LR",
    "SCRATCH_LR",
    "Checkpoint",
    "Objective",
    "Precision",
    "TargetKind",
    "TuneConfig",
    "cross_entropy",
    "restore",
    "training_state",
    "tune",
    "with_learning_rate",
]

# A model, inputs and labels ``int64[b]`` to a loss a sample, ``float32[b]``.
Objective = Callable[[nn.Module, Batch, Tensor], Tensor]


def cross_entropy(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
    """``−log softmax(f(x))_y``, in float32."""
    return nn.functional.cross_entropy(logits_of(model, x).float(), y, reduction="none")


class Checkpoint(Protocol):
    """Where the state between two epochs is kept, so that an interrupted run can go on."""

    def load(self) -> tuple[int, dict[str, Tensor]] | None: ...

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None: ...


def tune(
    model: nn.Module,
    samples: Samples,
    targets: Targets,
    config: TuneConfig,
    *,
    seed: int,
    layers: tuple[str, ...] = (),
    objective: Objective = cross_entropy,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    what: str = "tune",
) -> nn.Module:
    """Train a copy of the model on the targets by a weighted loss, and return the copy.

    Every batch minimises ``Σ w_i · l_i / Σ w_i``; ``objective`` gives the l_i, cross-entropy by
    default. The order of the samples, the views, dropout and noise depend on the seed and the epoch
    alone: an interrupted run that goes on from its checkpoint ends with the same weights, bit for
    bit on a CPU. Each of several processes takes its part of every batch (DDP). ``layers``: what
    scope ``"head"`` trains; batch norm of all other layers keeps its averages (the published L-FT
    lets them move).
    """
    accelerator = Accelerator()
    config, home = with_learning_rate(config, len(samples)), device_of(model)
    model = copy.deepcopy(model).to(accelerator.device)
    wanted = [p.requires_grad for p in model.parameters()]
    _train_only(model, layers if config.scope == "head" else None)
    if all(p.dim() < 5 for p in model.parameters()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, config)
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
    if config.compile:
        wrapped = torch.compile(wrapped)
    samples = samples.to_device(accelerator.device)
    _freeze_batch_norm(model)
    augment = config.augment and samples.view is not None
    first = restore(checkpoint, model, optimizer, accelerator)
    size, least = choose_batch_size(config, len(samples)), 2 * accelerator.num_processes
    if size < least and _has_batch_norm(model):
        raise ConfigError(
            f"tune.batch_size is {size}, and batch norm needs {least} samples or more",
            where=what,
            fix="raise it, or leave it out",
        )
    cuts = batch_boundaries(len(targets.positions), size, least)
    batches = len(cuts) + 1
    total = batches * config.epochs
    for epoch in range(first, config.epochs):
        with temp_seed(seed, what, epoch, accelerator.process_index):
            order = generator(seed, "order", epoch).permutation(len(targets.positions))
            for step, rows in enumerate(np.split(order, cuts)):
                done = epoch * batches + step
                set_learning_rate(optimizer, config, (done + 0.5) / total)
                draw = torch_generator(seed, what, done, accelerator.process_index)
                x, y, w = _batch(samples, targets, rows, accelerator, draw if augment else None)
                with autocast(config.precision, accelerator.device):
                    losses = objective(wrapped, x, y)
                # DDP averages over processes; the weights are those of the whole batch.
                share_of_batch = accelerator.num_processes / targets.weights[rows].sum()
                loss = (losses * w).sum() * float(share_of_batch)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                optimizer.step()
                progress(what, done + 1, total)
        check_finite(loss, epoch, what)
        if checkpoint is not None:
            checkpoint.save(epoch + 1, training_state(model, optimizer))
    if accelerator.num_processes > 1:  # each has seen its own part: batch norm's averages differ
        broadcast(list(model.buffers()))
    for parameter, flag in zip(model.parameters(), wanted, strict=True):
        parameter.requires_grad_(flag)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.to(home).eval()


def check_finite(loss: Tensor, epoch: int, what: str) -> None:
    """ModelError if the last loss of an epoch (the first is 0) is not finite."""
    if not torch.isfinite(loss):
        raise ModelError(
            f"the loss became {loss.item()} in epoch {epoch + 1}",
            where=what,
            fix="lower the learning rate",
        )


def _train_only(model: nn.Module, layers: tuple[str, ...] | None) -> None:
    """Let only these layers learn (all, if None)."""
    prefixes = None if layers is None else tuple(f"{name}." for name in layers)
    chosen = 0
    for name, parameter in model.named_parameters():
        learn = prefixes is None or name.startswith(prefixes)
        parameter.requires_grad_(learn)
        chosen += learn
    if not chosen:
        raise ModelError(
            f"no parameter belongs to the layers {format_ids(layers or ())}",
            where="tune",
            fix="name layers that have weights, or use scope = 'all'",
        )


def _has_batch_norm(model: nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(norm.training for norm in norms)


def _freeze_batch_norm(model: nn.Module) -> None:
    """Batch norm whose weights do not learn does not move its averages either."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            weights = list(module.parameters())
            if weights and not any(p.requires_grad for p in weights):
                module.eval()


def _batch(
    samples: Samples,
    targets: Targets,
    rows: np.ndarray,
    accelerator: Accelerator,
    draw: torch.Generator | None,
) -> tuple[Batch, Tensor, Tensor]:
    """This process's part of a batch: inputs (a random view, given a draw), labels, weights."""
    mine = shard(rows, accelerator)
    x = samples.batch(targets.positions[mine], device=accelerator.device)
    if isinstance(x, Tensor) and draw is not None and samples.view is not None:
        x = samples.view(x, draw)
    y = torch.from_numpy(targets.labels[mine]).to(accelerator.device)
    w = torch.from_numpy(targets.weights[mine]).float().to(accelerator.device)
    return to_channels_last(x), y, w


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's memory as one flat dictionary of tensors."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, memory in optimizer.state_dict()["state"].items():
        for key, value in memory.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def restore(
    checkpoint: Checkpoint | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator | None = None,
) -> int:
    """Put the saved state back, if there is one; returns the number of epochs that are done."""
    saved = (
        broadcast_decision(accelerator or Accelerator(), checkpoint.load)
        if checkpoint is not None
        else None
    )
    if saved is None:
        return 0
    epoch, tensors = saved
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    memory: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            memory.setdefault(int(index), {})[name] = value
    state = optimizer.state_dict()
    optimizer.load_state_dict({**state, "state": memory})
    return epoch
