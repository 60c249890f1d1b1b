"""A tuning whose loss diverges is begun again at a tenth of the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Ints
from expunge._core.distributed import all_reduce_sum, broadcast_decision
from expunge.data import Samples
from expunge.models.calls import device_of, eval_mode, logits_of
from expunge.training.checkpoints import Checkpoint
from expunge.training.optimisation import MAX_GRADIENT_NORM, TuneConfig
from expunge.training.targets import Targets

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_ATTEMPTS = 3
# The loss of a network that knows nothing: the labels' entropy, times this at least, and divided by
# it at most.
COLLAPSED_LOSS = 0.9
# The mean loss of this many steps is the loss at the start.
N_FIRST_STEPS = 5
# Class probabilities that differ less between samples are constant.
CONSTANT_SPREAD = 1e-3
_KEY = "losses"


class Attempt:
    """One attempt at a tuning: its number from 0, and its losses, kept with the training's state.

    Parameters
    ----------
    number
        How often the learning rate was divided by ten.
    accelerator
        Of this process.
    checkpoint
        Of the training; the state of another attempt is not resumed.
    """

    def __init__(
        self, number: int, accelerator: Accelerator, checkpoint: Checkpoint | None
    ) -> None:
        self.number, self._accelerator, self._inner = number, accelerator, checkpoint
        # Number; sum and count of the first losses; sum and count of the losses of an epoch.
        self._state = torch.zeros(5, device=accelerator.device)
        self._state[0] = number
        self._kept: dict[str, Tensor] = {}

    @property
    def extra(self) -> dict[str, Tensor]:
        """What is saved beside the network."""
        return {_KEY: self._state, **self._kept}

    def keep(self, name: str, state: Tensor) -> Tensor:
        """Save this tensor, too, and return it on the device of the training."""
        self._kept[name] = state.to(self._state.device)
        return self._kept[name]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Where this attempt is saved."""
        return None if self._inner is None else self

    def settings(self, config: TuneConfig) -> TuneConfig:
        """Return the settings of this attempt."""
        if not self.number or config.lr is None:
            return config
        norm = config.max_gradient_norm or MAX_GRADIENT_NORM
        return replace(config, lr=config.lr / 10**self.number, max_gradient_norm=norm)

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the saved state if it is of this attempt."""
        saved = self._inner.load() if self._inner is not None else None
        return saved if saved is not None and _number_of(saved) == self.number else None

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        """Replace the saved state."""
        if self._inner is not None:
            self._inner.save(epoch, tensors)

    def start_epoch(self, epoch: int) -> None:
        """Forget the losses of the epoch before."""
        self._state[3:] = 0

    def add(self, step: int, loss: Tensor) -> None:
        """Add the loss of a step."""
        first = float(step < N_FIRST_STEPS)
        value = loss.detach().float()
        self._state[1:] += torch.stack(
            [first * value, torch.full_like(value, first), value, torch.ones_like(value)]
        )

    def has_collapsed(self, targets: Targets, has_died: Callable[[], bool]) -> bool:
        """Whether the loss of the last epoch says that the network knows no more than how frequent
        each label is, although it knew more before or the loss is higher than that.

        It knew more if the loss was lower at the start; or if it predicted the same for all samples
        only afterwards (``has_died``): a network that has memorised wrong labels may begin with any
        loss.
        """
        sums = all_reduce_sum(self._state[1::2].clone(), self._accelerator)
        first, last = (sums / self._state[2::2].clamp_min(1)).tolist()
        _, classes = np.unique(targets.labels, return_inverse=True)
        shares = np.bincount(classes, weights=targets.weights) / targets.weights.sum()
        entropy = float(-(shares * np.log(np.maximum(shares, 1e-12))).sum())
        least, most = COLLAPSED_LOSS * entropy, entropy / COLLAPSED_LOSS
        has_risen = last > first and (first < least or last > most)
        return last > least and (has_risen or broadcast_decision(self._accelerator, has_died))


def has_died(before: nn.Module, after: nn.Module, samples: Samples, positions: Ints) -> bool:
    """Whether a training made a network constant, see `is_constant`."""
    return is_constant(after, samples, positions) and not is_constant(before, samples, positions)


def is_constant(model: nn.Module, samples: Samples, positions: Ints) -> bool:
    """Whether a network predicts the same for all samples, as one whose units have all died.

    At most 256 of the positions are tried.
    """
    some = positions[:: max(len(positions) // 256, 1)][:256]
    with eval_mode(model), torch.no_grad():
        probs = (
            logits_of(model, samples.batch(some, device=device_of(model))).float().softmax(dim=1)
        )
    return bool(probs.std(dim=0).max() < CONSTANT_SPREAD)


def saved_attempt(checkpoint: Checkpoint | None, accelerator: Accelerator) -> int:
    """Return the number of the attempt that a training resumes, 0 without a saved state."""
    if checkpoint is None:
        return 0
    saved = broadcast_decision(accelerator, checkpoint.load)
    return 0 if saved is None else _number_of(saved)


def _number_of(saved: tuple[int, dict[str, Tensor]]) -> int:
    return int(saved[1][f"extra.{_KEY}"][0])
