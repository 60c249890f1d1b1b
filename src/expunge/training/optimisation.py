"""Settings of a training, and the optimiser, learning rate, batches and precision they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from expunge._core.arrays import Ints
from expunge.config import Precision, SemiConfig, TargetKind
from expunge.errors import ConfigError, check_range
from expunge.models.architecture import is_transformer

# The peak learning rate where none is given, for batches of 128: by default, in a repair of a model
# that has memorised wrong labels, and from scratch.
DEFAULT_LR, MEMORISED_LR, SCRATCH_LR = 0.1, 0.3, 0.2
# Epochs where none are given: by default; of SGD in a repair of a model that has not memorised its
# wrong labels, which gains little from a short tuning; of AdamW in a repair.
DEFAULT_EPOCHS, LONG_EPOCHS, ADAMW_EPOCHS = 6, 12, 3
# AdamW's learning rate where none is given: a step in one direction changes the output of a typical
# layer by this fraction. Adapters and heads on a frozen network take more.
ADAMW_STEP, FEW_WEIGHTS_FACTOR, MAX_FEW_WEIGHTS = 0.03, 10.0, 0.05
ADAMW_LR_RANGE = 1e-5, 3e-3
# The norm to which gradients are clipped where the optimiser is chosen for the model: of AdamW, and
# of SGD, whose gradients are rarely that large (median 1 to 2). Without a limit, or with one of 10,
# plain networks that had memorised their labels lost most of their units in half of the repairs.
MAX_GRADIENT_NORM, SGD_GRADIENT_NORM = 1.0, 3.0
# The batch size where none is given lies between these, and gives an epoch at least this many steps
# if it can.
MIN_BATCH_SIZE, MAX_BATCH_SIZE, MIN_STEPS_PER_EPOCH = 16, 128, 75
# The most bytes of its inputs, and the fewest samples, that a reduced batch has.
MAX_INPUT_BYTES, MIN_FITTING_BATCH_SIZE = 1 << 27, 4


@dataclass(frozen=True)
class TuneConfig:
    """Settings of a training.

    Parameters
    ----------
    scope
        ``"all"`` trains every parameter. ``"head"`` trains the head, the pruned layers and their
        norms.
    targets
        What the network learns from a partition. ``"filter"``: the unflagged samples with the given
        labels. ``"reweight"``: all samples, weighted by ``1 − p_noisy``. ``"relabel"``: the
        unflagged samples, and the flagged label faults with their suggested label and its
        probability as weight. ``"complement"``: the unflagged samples, and of the flagged label
        faults that the given label is wrong. ``"all"``: all samples with the given labels.
        ``"semi"``: the unflagged samples with the given labels, and all samples without; see
        `expunge.training.semi_supervised`. ``"bootstrap"``: all samples with the given label and
        the network's own predictions, mixed by ``p_label``; see `expunge.training.bootstrap`.
    min_relabel_confidence
        ``"relabel"`` uses suggested labels of at least this probability, in [0, 1].
    epochs
        Number of epochs, 0 or more. None: 6; in the repair of a model that has not memorised wrong
        labels 3 with AdamW, and 12 with SGD.
    batch_size
        Samples in a batch over all processes. None: the power of two between 16 and 128 that gives
        an epoch at least 75 steps.
    optimizer
        ``"sgd"`` with Nesterov momentum, or ``"adamw"``. ``"auto"``: AdamW with gradients clipped
        to norm 1 for transformers and other networks with layer norm, else SGD with gradients
        clipped to norm 3; see `is_transformer`.
    lr
        The peak learning rate. None with SGD: 0.1; 0.3 in a repair of a model that has memorised
        wrong labels; 0.2 from scratch; each times ``√(batch_size / 128)``. None with AdamW: by the
        norms of the weights, see `adamw_learning_rate`. A rate that was left out is divided by ten,
        at most twice, if the loss diverges. Above 0, at most 10³⁰.
    max_gradient_norm
        Gradients of a larger norm are scaled to it, above 0. None: no limit, but for ``"auto"``.
    momentum
        Of ``"sgd"``, in [0, 1).
    weight_decay
        Of the optimiser, in [0, 10³⁰].
    schedule
        ``"onecycle"`` rises linearly to ``lr`` over ``warmup`` of the steps and falls linearly to
        zero. ``"cosine"`` falls from ``lr`` to zero. ``"constant"`` stays.
    warmup
        Fraction of the steps, in [0, 1).
    augment
        Whether inputs are augmented, where the samples have an augmentation.
    precision
        ``"bfloat16"`` computes the forward pass in bfloat16. ``"auto"`` does so where the hardware
        multiplies it natively.
    compile
        Whether to use ``torch.compile``. It pays on a GPU in long trainings.
    cuda_graphs
        Whether to replay forward and backward passes as CUDA graphs, in one process on a GPU. It
        pays for small batches, whose launches take longer than their computation.
    semi
        Settings of ``targets = "semi"``.
    max_minutes
        The most minutes that the training may take, above 0. The learning rate falls with the time
        or the steps, whichever is further. Then the result depends on the speed of the machine.

    Raises
    ------
    ConfigError
        If a value lies outside its interval.

    Examples
    --------
    >>> TuneConfig(epochs=3, lr=0.05).schedule
    'onecycle'
    """

    scope: Literal["all", "head"] = "all"
    targets: TargetKind = "filter"
    min_relabel_confidence: float = 0.9
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = None
    max_gradient_norm: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: float = 0.2
    augment: bool = True
    precision: Precision = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    semi: SemiConfig = field(default_factory=SemiConfig)
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        check_range(
            ConfigError,
            {
                "tune.epochs": (self.epochs, "[0, inf)"),
                "tune.batch_size": (self.batch_size, "[1, inf)"),
                "tune.lr": (self.lr, "(0, 1e30]"),
                "tune.momentum": (self.momentum, "[0, 1)"),
                "tune.weight_decay": (self.weight_decay, "[0, 1e30]"),
                "tune.max_gradient_norm": (self.max_gradient_norm, "(0, inf)"),
                "tune.min_relabel_confidence": (self.min_relabel_confidence, "[0, 1]"),
                "tune.warmup": (self.warmup, "[0, 1)"),
                "tune.max_minutes": (self.max_minutes, "(0, inf)"),
            },
        )

    @property
    def n_epochs(self) -> int:
        """The number of epochs; 6 where it was left out."""
        return DEFAULT_EPOCHS if self.epochs is None else self.epochs


def with_learning_rate(
    config: TuneConfig, model: nn.Module, n: int, rate: float = DEFAULT_LR
) -> TuneConfig:
    """Fill in the optimiser and the learning rate of the settings, where they are left open.

    Parameters
    ----------
    config
        The settings.
    model
        The network that is trained.
    n
        Number of samples of an epoch, which decides the batch size.
    rate
        The learning rate of SGD for batches of 128. AdamW's grows with it.

    Returns
    -------
    TuneConfig
        The settings with an optimiser and a learning rate: ``rate · √(batch_size / 128)`` for SGD,
        `adamw_learning_rate` for AdamW, times ``rate / 0.1``.
    """
    config = with_optimizer(config, model)
    if config.lr is not None:
        return config
    if config.optimizer == "adamw":
        return replace(config, lr=adamw_learning_rate(model, rate / DEFAULT_LR))
    return replace(config, lr=rate * math.sqrt(choose_batch_size(config, n) / MAX_BATCH_SIZE))


def with_optimizer(config: TuneConfig, model: nn.Module) -> TuneConfig:
    """Replace ``optimizer="auto"`` by the one that fits the model."""
    if config.optimizer != "auto":
        return config
    optimizer: Literal["sgd", "adamw"] = "adamw" if is_transformer(model) else "sgd"
    usual = MAX_GRADIENT_NORM if optimizer == "adamw" else SGD_GRADIENT_NORM
    norm = config.max_gradient_norm or usual
    return replace(config, optimizer=optimizer, max_gradient_norm=norm)


def adamw_learning_rate(model: nn.Module, factor: float = 1.0) -> float:
    """Return a learning rate of AdamW by the norms of a model's trainable weights.

    A step of size η changes every weight by η, so that the output of a layer with d inputs and
    weights of root mean square w can change by the fraction ``η √d / w``. The rate makes that 0.03
    for the median layer, times a factor: 8e-5 for a sentence encoder of width 384, 8e-4 for a
    small one of width 32. Weights smaller than ``w = 1 / √d``, which keeps the variance of the
    inputs, count as that large: layers that start smaller grow. The rate is ten times as large,
    whatever the factor, where at most 5 % of all weights are trained (adapters, heads), and lies
    in [1e-5, 3e-3].

    Parameters
    ----------
    model
        Its weights of two or more dimensions count, embeddings aside.
    factor
        How many times as large the rate is, above 0.

    References
    ----------
    Yang et al., arXiv 2203.03466: AdamW's rate falls with the width.

    Examples
    --------
    >>> layer = nn.Linear(100, 50)
    >>> _ = nn.init.constant_(layer.weight, 0.2)
    >>> round(adamw_learning_rate(layer), 6)
    0.0006
    """
    steps = []
    for module in model.modules():
        if isinstance(module, nn.Embedding) or any(True for _ in module.children()):
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() >= 2 and weight.requires_grad and weight.any():
                rms, d = float(weight.detach().float().square().mean().sqrt()), weight[0].numel()
                steps.append(max(rms, 1 / math.sqrt(d)) / math.sqrt(d))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    is_few = trained <= MAX_FEW_WEIGHTS * sum(p.numel() for p in model.parameters())
    lr = ADAMW_STEP * float(np.median(steps)) if steps else ADAMW_LR_RANGE[0]
    return float(np.clip(lr * (FEW_WEIGHTS_FACTOR if is_few else factor), *ADAMW_LR_RANGE))


def choose_batch_size(config: TuneConfig, n: int) -> int:
    """Return the batch size of the settings, or the default one for n samples."""
    if config.batch_size is not None:
        return config.batch_size
    size = MAX_BATCH_SIZE
    while size > MIN_BATCH_SIZE and n < MIN_STEPS_PER_EPOCH * size:
        size //= 2
    return size


def with_fitting_batch_size(
    config: TuneConfig, n: int, n_bytes: int, *, n_processes: int = 1
) -> TuneConfig:
    """Return the settings with smaller batches, if they are left open and inputs are large.

    Parameters
    ----------
    config
        The settings.
    n
        The number of samples.
    n_bytes
        Of one prepared input.
    n_processes
        That share a batch.

    Examples
    --------
    >>> with_fitting_batch_size(TuneConfig(), 50_000, 4 * 3 * 2000**2).batch_size
    4
    >>> with_fitting_batch_size(TuneConfig(), 50_000, 4 * 3 * 224**2).batch_size is None
    True
    """
    fitting = max(MIN_FITTING_BATCH_SIZE, 2 * n_processes, MAX_INPUT_BYTES // max(n_bytes, 1))
    if config.batch_size is not None or fitting >= choose_batch_size(config, n):
        return config
    return replace(config, batch_size=fitting)


def batch_boundaries(n: int, size: int, min_size: int) -> Ints:
    """Return the positions at which n samples are split into batches.

    A remainder smaller than ``min_size`` joins the batch before it. Batch norm needs two samples in
    every process, and a process without a sample would block the others.
    """
    boundaries = np.arange(size, n, size)
    if len(boundaries) and n - boundaries[-1] < min(min_size, size):
        return boundaries[:-1]
    return boundaries


def build_optimizer(model: nn.Module, config: TuneConfig) -> torch.optim.Optimizer:
    """Build an optimiser for the trainable parameters of a model."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr, decay = _peak_learning_rate(config), config.weight_decay
    fused = all(p.is_cuda for p in parameters)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=fused)
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=config.momentum,
        weight_decay=decay,
        nesterov=config.momentum > 0,
        fused=fused,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: TuneConfig, progress: float
) -> None:
    """Set the scheduled learning rate; progress: the fraction of the training that is done."""
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "onecycle":
        rising = progress / config.warmup if config.warmup else 1.0
        factor = min(rising, (1 - progress) / (1 - config.warmup))
    for group in optimizer.param_groups:
        group["lr"] = _peak_learning_rate(config) * factor


def warmup_fraction(config: TuneConfig) -> float:
    """Return the fraction of the training after which the learning rate stops rising."""
    return config.warmup if config.schedule == "onecycle" else 0.0


def _peak_learning_rate(config: TuneConfig) -> float:
    return DEFAULT_LR if config.lr is None else config.lr


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the autocast context of a precision on a device; see `TuneConfig`."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
            native = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
        precision = "bfloat16" if native else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
