"""Tuning on mixtures of the given labels and the network's own running predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Floats, Floats32, Ints
from expunge._core.distributed import this_process
from expunge._core.progress import Progress, silent
from expunge.data import Samples
from expunge.models.copying import copy_model
from expunge.records import Partition
from expunge.training.checkpoints import Checkpoint
from expunge.training.loop import fit
from expunge.training.optimisation import TuneConfig, with_learning_rate
from expunge.training.reading import Reads
from expunge.training.steps import Step
from expunge.training.targets import Targets

# Samples below this probability of a wrong label keep their label alone.
_MIN_DOUBT = 0.01
# Momentum of the running predictions, one update an epoch.
_MOMENTUM = 0.7


def tune_bootstrapped(
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
    """Train a copy of a model on given labels as far as they are right, else on its predictions.

    Sample i has the target ``(1 − p_i) y_i + p_i t_i`` with the probability p of a wrong label and
    the running mean t of the network's predictions, ``t ← 0.7 t + 0.3 f(x)`` at every visit. It
    starts with the suggested label, by its probability.

    Parameters
    ----------
    model
        The model. It is not changed.
    samples
        The samples.
    targets
        Positions and labels of those that are learned from.
    config
        Settings of the training.
    seed
        Decides order, views, dropout.
    split
        The partition of the samples, in their order.
    checkpoint, progress, what
        As in `fit`. The running predictions are part of the checkpoint.

    Returns
    -------
    nn.Module
        The trained copy, in evaluation mode.

    Raises
    ------
    ModelError
        If the loss is not finite.

    Notes
    -----
    Cost: a plain epoch on all samples for each epoch; memory ``float32[m, c]`` for the m samples
    whose label is doubtful. Deviations from the papers: the weight of a prediction is the sample's
    own probability, and predictions are averaged over epochs.

    References
    ----------
    Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping", 2014,
    arXiv:1412.6596. Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", 2016,
    arXiv:1610.02242.
    """
    config = with_learning_rate(config, model, len(targets.positions))
    student, device = copy_model(model), this_process().device
    doubt = _doubt(split)[targets.positions]
    doubtful = np.flatnonzero(doubt > _MIN_DOUBT)
    place = np.full(len(doubt), -1)
    place[doubtful] = np.arange(len(doubtful))
    doubt[place < 0] = 0.0
    first = _suggestions(split, targets.positions[doubtful], len(samples.classes))
    predictions = torch.from_numpy(first).to(device)
    resident = samples.to_device(device)

    def update(step: Step) -> None:
        x = step.inputs(resident, targets.positions, augment=config.augment)
        logits = step.logits(0, x)
        y, p = step.to_device(targets.labels[step.rows]), step.to_device(doubt[step.rows]).float()
        log_probs = logits.log_softmax(dim=1)
        given = log_probs.gather(1, y[:, None])[:, 0]
        believed = (predictions[step.to_device(place[step.rows])] * log_probs).sum(dim=1)
        step.minimise(-((1 - p) * given + p * believed).sum() / len(step.batch))
        probs = step.gather(logits.detach().softmax(dim=1))
        _remember(predictions, step.to_device(place[step.batch]), probs)

    fit(
        [student],
        len(targets.positions),
        update,
        config,
        seed=seed,
        what=what,
        reads=Reads(resident, targets.positions),
        extra={"predictions": predictions},
        checkpoint=checkpoint,
        progress=progress,
    )
    return student


def _doubt(split: Partition) -> Floats:
    """Return the probability of a wrong label; 0 for what a person has looked at."""
    doubt: Floats = split.p_label_fault.copy()
    if split.reviewed is not None:
        doubt[split.reviewed] = 0.0
    return doubt


def _suggestions(split: Partition, positions: Ints, classes: int) -> Floats32:
    """Return ``float32[m + 1, c]``: the suggested label by its probability, the rest uniform.

    The last row stands for all samples without doubt.
    """
    positions = np.append(positions, 0)
    sure = np.clip(split.suggested_probability[positions], 1 / classes, 1.0)
    first = np.repeat((1 - sure)[:, None] / max(classes - 1, 1), classes, axis=1)
    first[np.arange(len(positions)), split.suggested_label[positions]] = sure
    return first.astype(np.float32)


@torch.no_grad()
def _remember(predictions: Tensor, place: Tensor, probs: Tensor) -> None:
    """Move the running predictions of the doubtful samples of a batch towards the new ones."""
    kept = place >= 0
    at = place[kept]
    predictions[at] = _MOMENTUM * predictions[at] + (1 - _MOMENTUM) * probs[kept]
