"""SCRUB: a student that agrees with its teacher on the kept samples and not on the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Bools, Ints
from expunge.data import Samples
from expunge.models.copying import copy_model
from expunge.training.loop import Step, TuneConfig, fit

# The first epochs begin with a pass that moves away from the teacher on the samples to forget.
_MAX_EPOCHS = 3
_DIVERGENCE_WEIGHT, _LABEL_WEIGHT = 0.5, 1.0


def scrub(
    model: nn.Module, samples: Samples, forgotten: Bools, config: TuneConfig, *, seed: int
) -> nn.Module:
    """Unlearn samples by SCRUB.

    On kept samples ``½ KL(teacher ‖ student) + cross-entropy`` falls; on the others, in the first
    three epochs, the divergence rises.

    Parameters
    ----------
    model
        The teacher, and where the student starts. It is not changed.
    samples
        The training samples.
    forgotten
        ``bool[n]``, those to unlearn.
    config
        Epochs, batch size, learning rate.
    seed
        Of order and views.

    References
    ----------
    Kurmanji et al., "Towards Unbounded Machine Unlearning", 2023, arXiv:2302.09880.
    """
    teacher, student = copy_model(model).eval(), copy_model(model)
    kept, lost = np.flatnonzero(~forgotten), np.flatnonzero(forgotten)
    first_steps: set[int] = set()

    def divergence(step: Step, rows: Ints) -> tuple[Tensor, Tensor]:
        x = step.augment(samples, samples.batch(rows, device=step.device))
        with torch.no_grad():
            target = teacher(x).softmax(dim=1)
        logits = step.logits(0, x)
        loss = nn.functional.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")
        return loss, logits

    def update(step: Step) -> None:
        if step.epoch < _MAX_EPOCHS and step.epoch not in first_steps:
            first_steps.add(step.epoch)
            for rows in np.array_split(lost, max(1, len(lost) // 64)):
                step.minimise(-divergence(step, rows)[0])
        rows = kept[step.rows]
        loss, logits = divergence(step, rows)
        labels = step.to_device(samples.labels[rows])
        cross_entropy = nn.functional.cross_entropy(logits, labels)
        step.minimise(_DIVERGENCE_WEIGHT * loss + _LABEL_WEIGHT * cross_entropy)

    fit([student], len(kept), update, config, seed=seed, what="scrub")
    return student
