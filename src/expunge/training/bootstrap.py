"""Tuning on mixtures of the given labels and the network's own running predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from expunge._core.arrays import Floats, Floats32, Ints
from expunge.data import Batch
from expunge.records import Partition
from expunge.training.attempts import Attempt
from expunge.training.loop import BatchLoss, MakeBatchLoss
from expunge.training.steps import Step
from expunge.training.targets import Targets

# Samples below this probability of a wrong label keep their label alone.
_MIN_DOUBT = 0.01
# Momentum of the running predictions, one update an epoch, by optimiser: with AdamW a network keeps
# what it has memorised for longer.
_MOMENTUM = {"sgd": 0.7, "adamw": 0.9}
# The most running predictions that are kept: samples times classes.
_MAX_PREDICTIONS = 1 << 27


def bootstrapped(split: Partition, n_classes: int, optimizer: str) -> MakeBatchLoss:
    """Make the loss on given labels as far as they are right, else on the network's predictions.

    Sample i has the target ``(1 − p_i) y_i + p_i t_i`` with the probability p of a wrong label and
    the running mean t of the network's predictions, ``t ← 0.7 t + 0.3 f(x)`` at every visit, with
    AdamW ``t ← 0.9 t + 0.1 f(x)``. It starts with the suggested label, by its probability.

    Parameters
    ----------
    split
        The partition of the samples, in their order.
    n_classes
        The number of classes.
    optimizer
        ``"sgd"`` or ``"adamw"``.

    Returns
    -------
    MakeBatchLoss
        For `expunge.training.loop.tune`. The running predictions are part of its checkpoint.

    Notes
    -----
    Cost: a plain epoch on all samples for each epoch; memory ``float32[m, c]`` for the m samples
    whose label is doubtful, at most 512 MiB: of the least doubtful ones beyond that, those with
    ``p_i ≤ 0.5`` keep their label and the others are left out. Deviations from the papers: the
    weight of a prediction is the sample's own probability, and predictions are averaged over
    epochs.

    References
    ----------
    Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping", 2014,
    arXiv:1412.6596. Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", 2016,
    arXiv:1610.02242.
    """

    momentum = _MOMENTUM[optimizer]

    def make(targets: Targets, attempt: Attempt) -> BatchLoss:
        doubt = _doubt(split)[targets.positions]
        doubtful = _most_doubtful(doubt, _MAX_PREDICTIONS // n_classes)
        place = np.full(len(doubt), -1)
        place[doubtful] = np.arange(len(doubtful))
        weights = np.where(place < 0, doubt <= 0.5, 1.0) * targets.weights
        doubt[place < 0] = 0.0
        first = _suggestions(split, targets.positions[doubtful], n_classes)
        predictions = attempt.keep("predictions", torch.from_numpy(first))

        def loss_of(step: Step, x: Batch) -> Tensor:
            logits = step.logits(0, x)
            y, at = step.to_device(targets.labels[step.rows]), step.to_device(place[step.rows])
            p, w = (step.to_device(v[step.rows]).float() for v in (doubt, weights))
            log_probs = logits.log_softmax(dim=1)
            given = log_probs.gather(1, y[:, None])[:, 0]
            believed = (predictions[at] * log_probs).sum(dim=1)
            loss = -(w * ((1 - p) * given + p * believed)).sum()
            probs = step.gather(logits.detach().softmax(dim=1))
            _remember(predictions, step.to_device(place[step.batch]), probs, momentum)
            return loss / max(float(weights[step.batch].sum()), 1.0)

        return loss_of

    return make


def _most_doubtful(doubt: Floats, limit: int) -> Ints:
    """Return the positions of the samples whose label may be wrong, at most ``limit`` of them."""
    found = np.flatnonzero(doubt > _MIN_DOUBT)
    if len(found) > limit:
        found = np.sort(found[np.argsort(-doubt[found], kind="stable")[:limit]])
    return found


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
def _remember(predictions: Tensor, place: Tensor, probs: Tensor, momentum: float) -> None:
    """Move the running predictions of the doubtful samples of a batch towards the new ones."""
    kept = place >= 0
    at = place[kept]
    predictions[at] = momentum * predictions[at] + (1 - momentum) * probs[kept]
