"""The only training loop: fine-tuning of a repaired model, and training from scratch.

L-FT (scope ``"head"``) moves the head, the layers that were cut and their norms; F-FT (``"all"``)
moves all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from expunge._core.distributed import broadcast_decision, shard
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, temp_seed, torch_generator
from expunge.data.samples import Batch, Samples
from expunge.errors import ConfigError, ModelError, PartitionError, format_ids
from expunge.models.inspection import device_of, logits_of, to_channels_last
from expunge.records import Partition, align

# The highest learning rate where none is given, for batches of 128: usually, in a repair of a model
# that has memorised wrong labels, and from scratch.
DEFAULT_LR, MEMORISED_LR, SCRATCH_LR = 0.1, 0.3, 0.2
# Where no batch size is given: between these, and so that an epoch has as many steps if it can.
MIN_BATCH_SIZE, MAX_BATCH_SIZE, MIN_STEPS_PER_EPOCH = 16, 128, 75

TargetKind = Literal["filter", "reweight", "relabel", "all"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class TuneConfig:
    """How to train.

    targets: ``filter`` (not flagged, given labels), ``reweight`` (all, weighted by ``1 −
    p_noisy``),
    ``relabel`` (kept, and flagged label faults with their suggested label, weighted by its
    probability, if that is ``min_relabel_confidence`` or more), ``all`` (all, given labels).
    batch_size: left out it is 128, or the power of two from 16 on that leaves an epoch 75 steps.
    lr: the highest learning rate; ``onecycle`` rises to it over ``warmup`` of the steps and falls
    linearly to zero, ``cosine`` falls from it, ``constant`` stays. Left out it is 0.1; in a repair
    0.3 where the model has memorised wrong labels, and so has further to go, and 0.2 from scratch;
    times ``√(batch_size / 128)``.
    compile: by ``torch.compile``; pays on a GPU in long trainings, hardly on a CPU.
    """

    scope: Literal["all", "head"] = "all"
    targets: TargetKind = "filter"
    min_relabel_confidence: float = 0.9
    epochs: int = 6
    batch_size: int | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: float = 0.2
    augment: bool = True
    precision: Precision = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ConfigError(f"tune.epochs is {self.epochs}: too small")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"tune.batch_size is {self.batch_size}: too small")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"tune.lr must be above 0, not {self.lr}")
        if not 0 <= self.min_relabel_confidence <= 1:
            raise ConfigError(
                f"tune.min_relabel_confidence must lie in [0, 1], not {self.min_relabel_confidence}"
            )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"tune.warmup must lie in [0, 1), not {self.warmup}")


@dataclass(frozen=True)
class Targets:
    """What to learn: positions into the samples, a label and a weight for each (``float64``)."""

    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


# A model, inputs and labels ``int64[b]`` to a loss a sample, ``float32[b]``.
Objective = Callable[[nn.Module, Batch, Tensor], Tensor]


def cross_entropy(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
    """``−log softmax(f(x))_y``, in float32."""
    return nn.functional.cross_entropy(logits_of(model, x).float(), y, reduction="none")


class Checkpoint(Protocol):
    """Where the state between two epochs is kept, so that an interrupted run can go on."""

    def load(self) -> tuple[int, dict[str, Tensor]] | None: ...

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None: ...


def targets_of(samples: Samples, partition: Partition | None, config: TuneConfig) -> Targets:
    """Turn a partition into training targets; see `TuneConfig`.

    Raises `PartitionError` if nothing is left, or a class has nothing left.
    """
    labels, weights = samples.labels, np.ones(len(samples))
    if partition is not None and config.targets != "all":
        at = align(partition.ids, samples.ids)
        labels, weights = (values[at] for values in _told(partition, config))
    positions = np.flatnonzero(weights > 0)
    if len(positions) == 0:
        raise PartitionError(
            "the partition keeps no sample", where="tune", fix="raise the threshold"
        )
    lost = np.setdiff1d(samples.labels, labels[positions])
    if len(lost):
        raise PartitionError(
            f"nothing is kept of class {format_ids(samples.classes[c] for c in lost)}",
            where="tune",
            fix="raise partition.threshold, or tune with targets = 'reweight'",
        )
    return Targets(positions, labels[positions], weights[positions])


def lost_classes(partition: Partition, config: TuneConfig) -> np.ndarray:
    """Classes that are given as labels, and that nothing would be left of to learn from."""
    labels, weights = _told(partition, config)
    return np.setdiff1d(partition.labels, labels[weights > 0])


def _told(partition: Partition, config: TuneConfig) -> tuple[np.ndarray, np.ndarray]:
    """The label and the weight of every sample of a partition."""
    labels, flagged, kind = partition.labels.copy(), partition.flagged, config.targets
    if kind == "all":
        return labels, np.ones(len(labels))
    if kind == "reweight":
        return labels, 1.0 - partition.p_noisy
    weights = (~flagged).astype(np.float64)
    if kind == "relabel":
        # A sample with a bad input has no right label: it is dropped.
        mend = flagged & (partition.p_label_fault >= partition.p_input_fault)
        mend &= partition.suggested_probability >= config.min_relabel_confidence
        labels[mend] = partition.suggested_label[mend]
        weights[mend] = partition.suggested_probability[mend]
    return labels, weights


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
    optimizer = optimizer_of(model, config)
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
    if config.compile:
        wrapped = torch.compile(wrapped)
    samples = samples.resident(accelerator.device)
    _freeze_batch_norm(model)
    augment = config.augment and samples.view is not None
    first = resumed(checkpoint, model, optimizer, accelerator)
    size, least = batch_size_of(config, len(samples)), 2 * accelerator.num_processes
    if size < least and _has_batch_norm(model):
        raise ConfigError(
            f"tune.batch_size is {size}, and batch norm needs {least} samples or more",
            where=what,
            fix="raise it, or leave it out",
        )
    cuts = batch_cuts(len(targets.positions), size, least)
    batches = len(cuts) + 1
    total = batches * config.epochs
    for epoch in range(first, config.epochs):
        with temp_seed(seed, what, epoch, accelerator.process_index):
            order = generator(seed, "order", epoch).permutation(len(targets.positions))
            for step, rows in enumerate(np.split(order, cuts)):
                done = epoch * batches + step
                set_lr(optimizer, config, (done + 0.5) / total)
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
            checkpoint.save(epoch + 1, state_of(model, optimizer))
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


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """bfloat16 where asked for, and with ``"auto"`` where the hardware multiplies it natively."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
            native = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
        precision = "bfloat16" if native else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


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


def optimizer_of(model: nn.Module, config: TuneConfig) -> torch.optim.Optimizer:
    """An optimiser for what may learn."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decay = config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=_rate(config), weight_decay=decay)
    return torch.optim.SGD(
        parameters,
        lr=_rate(config),
        momentum=config.momentum,
        weight_decay=decay,
        nesterov=config.momentum > 0,
    )


def set_lr(optimizer: torch.optim.Optimizer, config: TuneConfig, done: float) -> None:
    """Set the learning rate for the fraction of the training that is done."""
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "onecycle":
        rising = done / config.warmup if config.warmup else 1.0
        factor = min(rising, (1 - done) / (1 - config.warmup))
    for group in optimizer.param_groups:
        group["lr"] = _rate(config) * factor


def _rate(config: TuneConfig) -> float:
    return DEFAULT_LR if config.lr is None else config.lr


def batch_size_of(config: TuneConfig, n: int) -> int:
    """The batch size for n samples; see `TuneConfig`."""
    if config.batch_size is not None:
        return config.batch_size
    size = MAX_BATCH_SIZE
    while size > MIN_BATCH_SIZE and n < MIN_STEPS_PER_EPOCH * size:
        size //= 2
    return size


def with_learning_rate(config: TuneConfig, n: int, rate: float = DEFAULT_LR) -> TuneConfig:
    """The settings with their learning rate filled in, for n samples; rate: for batches of 128."""
    if config.lr is not None:
        return config
    return replace(config, lr=rate * math.sqrt(batch_size_of(config, n) / MAX_BATCH_SIZE))


def batch_cuts(n: int, size: int, least: int) -> np.ndarray:
    """Where n samples are cut into batches.

    A rest of fewer than ``least`` joins the batch before it: batch norm needs two samples in every
    process, and a process without one would hold up the others.
    """
    cuts = np.arange(size, n, size)
    return cuts[:-1] if len(cuts) and n - cuts[-1] < min(least, size) else cuts


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


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's memory as one flat dictionary of tensors."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, memory in optimizer.state_dict()["state"].items():
        for key, value in memory.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def resumed(
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
