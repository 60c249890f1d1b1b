"""Semi-supervised tuning: kept samples with their labels, all samples without."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Ints
from expunge._core.distributed import all_reduce_sum, shard, this_process
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, torch_generator
from expunge.config import SemiConfig
from expunge.data import Batch, Samples, require_tensor
from expunge.data.strong_views import strong_view
from expunge.models.calls import logits_of, to_channels_last
from expunge.models.copying import copy_model
from expunge.records import Partition
from expunge.storage.weights import state_of
from expunge.training.checkpoints import Checkpoint
from expunge.training.loop import fit, synchronise_buffers
from expunge.training.optimisation import (
    TuneConfig,
    choose_batch_size,
    with_learning_rate,
)
from expunge.training.reading import Reads
from expunge.training.steps import Step
from expunge.training.targets import Targets

# The average of the weights reaches back over this fraction of the training's steps.
_AVERAGED_FRACTION, _MIN_AVERAGED_STEPS = 0.1, 10
# Momentum of the running means of confidence.
_MOMENTUM = 0.98


def tune_semi_supervised(
    model: nn.Module,
    samples: Samples,
    targets: Targets,
    config: TuneConfig,
    *,
    seed: int,
    split: Partition,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    what: str = "tune",
) -> nn.Module:
    """Train a copy of a model on labelled samples, and on all samples by its own predictions.

    ``CE(f(weak x), y) + λ · 1[max q ≥ τ_k] CE(f(strong x), k)`` with ``q = f̄(weak x)`` and
    ``k = arg max q`` of a network f̄ whose weights are a moving average of those of f. The
    threshold adapts to the classes: ``τ_k = τ · p̄_k / max p̄`` with running means τ of the
    confidence and p̄ of the predictions; never below ``min_confidence``.

    Parameters
    ----------
    model
        The model. It is not changed.
    samples
        The samples.
    targets
        Positions, labels and weights of the labelled ones.
    config
        Settings of the training; ``config.semi`` those of this method. An epoch visits every
        labelled sample once.
    seed
        Decides order, views, dropout.
    split
        The partition of the samples, in their order. Samples with a bad input are not learned from.
    checkpoint, progress, what
        As in `fit`. The averaged network is part of the checkpoint.

    Returns
    -------
    nn.Module
        The averaged network, in evaluation mode.

    Raises
    ------
    ModelError
        If the loss is not finite.

    Notes
    -----
    Cost of a step with ratio r: ``1 + 4 r / 3`` plain ones. Deviations from the papers: one network
    is averaged in its weights and its buffers; the training starts from a network that has been
    trained. Without views (inputs by name) it learns from its own confident predictions alone.

    References
    ----------
    Sohn et al., "FixMatch", 2020, arXiv:2001.07685. Wang et al., "FreeMatch: Self-adaptive
    Thresholding for Semi-supervised Learning", 2022, arXiv:2205.07246. Tarvainen and Valpola, "Mean
    Teachers Are Better Role Models", 2017, arXiv:1703.01780.
    """
    config = with_learning_rate(config, model, len(targets.positions))
    config = replace(config, batch_size=choose_batch_size(config, len(targets.positions)))
    student, teacher = copy_model(model), copy_model(model).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    device, c = this_process().device, len(samples.classes)
    teacher.to(device)
    state = {
        "confidence": torch.full((), 1.0 / c, device=device),
        "predictions": torch.full((c,), 1.0 / c, device=device),
    }
    resident = samples.to_device(device)
    unlabelled = _Unlabelled(
        np.flatnonzero(split.p_input_fault <= 0.5), seed, what, config.semi.ratio
    )

    def update(step: Step) -> None:
        rows = step.rows
        x = step.inputs(resident, targets.positions, augment=config.augment)
        y, w = step.to_device(targets.labels[rows]), step.to_device(targets.weights[rows]).float()
        others = unlabelled.rows(step)
        own = others[shard(np.arange(len(others)), step.training.accelerator)]
        z = resident.batch(own, device=step.device)
        weak = step.augment(resident, z, view=1) if config.augment else z
        pseudo, is_sure = _pseudo_labels(step, teacher, weak, state, config.semi)
        strong = _strong(step, weak)
        with step.autocast():
            logits = logits_of(step.network, to_channels_last(_joined(x, strong))).float()
        losses = nn.functional.cross_entropy(logits, torch.cat([y, pseudo]), reduction="none")
        # Sums over this process's samples, means over those of all.
        labelled = (losses[: len(y)] * w).sum() / float(targets.weights[step.batch].sum())
        consistency = (losses[len(y) :] * is_sure).sum() / len(others)
        step.minimise(labelled + config.semi.weight * consistency)
        _average(teacher, student, step, config, len(targets.positions))

    fit(
        [student],
        len(targets.positions),
        update,
        config,
        seed=seed,
        what=what,
        reads=Reads(resident, targets.positions),
        extra={**state, **{f"teacher.{k}": v for k, v in state_of(teacher).items()}},
        checkpoint=checkpoint,
        progress=progress,
    )
    synchronise_buffers([teacher], this_process())
    for parameter, original in zip(teacher.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return teacher.to(next(model.parameters()).device).eval()


@dataclass
class _Unlabelled:
    """The samples without labels, in an endless random order.

    positions: of all of them. ratio: how many a step takes for each labelled one.
    """

    positions: Ints
    seed: int
    what: str
    ratio: float
    _orders: dict[int, Ints] = field(default_factory=dict)

    def rows(self, step: Step) -> Ints:
        """The positions of a step, over all processes."""
        count = max(step.training.accelerator.num_processes, round(self.ratio * len(step.batch)))
        start, n = step.number * count, len(self.positions)
        found = []
        for cycle in range(start // n, (start + count - 1) // n + 1):
            order = self._order(cycle)
            found.append(order[max(0, start - cycle * n) : start + count - cycle * n])
        return self.positions[np.concatenate(found)]

    def _order(self, cycle: int) -> Ints:
        """The permutation of a cycle; the last two are kept."""
        if cycle not in self._orders:
            draw = generator(self.seed, self.what, "unlabelled", cycle)
            self._orders = {
                **{k: v for k, v in self._orders.items() if k == cycle - 1},
                cycle: draw.permutation(len(self.positions)),
            }
        return self._orders[cycle]


@torch.no_grad()
def _pseudo_labels(
    step: Step, teacher: nn.Module, weak: Batch, state: dict[str, Tensor], config: SemiConfig
) -> tuple[Tensor, Tensor]:
    """Predict labels, ``int64[b]``, and whether each is sure enough; update the thresholds."""
    with step.autocast():
        probs = logits_of(teacher, to_channels_last(weak)).float().softmax(dim=1)
    confidence, labels = probs.max(dim=1)
    accelerator = step.training.accelerator
    sums = torch.cat([probs.sum(dim=0), confidence.sum()[None], probs.new_tensor([len(probs)])])
    sums = all_reduce_sum(sums, accelerator)
    momentum = min(_MOMENTUM, step.number / (step.number + 2))
    state["predictions"].lerp_(sums[:-2] / sums[-1], 1 - momentum)
    state["confidence"].lerp_(sums[-2] / sums[-1], 1 - momentum)
    relative = state["predictions"] / state["predictions"].max()
    threshold = (state["confidence"] * relative).clamp(min=config.min_confidence)
    return labels, (confidence >= threshold[labels]).float()


def _strong(step: Step, weak: Batch) -> Batch:
    if not isinstance(weak, Tensor):
        return weak
    training = step.training
    draw = torch_generator(training.seed, training.what, step.number, "strong", step.process_key(0))
    return strong_view(weak, draw)


def _joined(first: Batch, second: Batch) -> Batch:
    if isinstance(first, dict) and isinstance(second, dict):
        return {name: torch.cat([first[name], second[name]]) for name in first}
    return torch.cat([require_tensor(first, "tune"), require_tensor(second, "tune")])


@torch.no_grad()
def _average(
    teacher: nn.Module, student: nn.Module, step: Step, config: TuneConfig, n: int
) -> None:
    """Move the averaged network towards the trained one."""
    size = config.batch_size or n
    steps = max(_MIN_AVERAGED_STEPS, _AVERAGED_FRACTION * config.n_epochs * n / size)
    keep = min(1 - 1 / steps, (1 + step.number) / (10 + step.number))
    own, new = state_of(teacher), state_of(student)
    floats = [name for name, value in own.items() if value.is_floating_point()]
    torch._foreach_lerp_([own[k] for k in floats], [new[k] for k in floats], 1 - keep)
    for name, value in own.items():
        if not value.is_floating_point():
            value.copy_(new[name])
