"""A limit on the time of a training."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge._core.distributed import broadcast_decision

if TYPE_CHECKING:
    from accelerate import Accelerator


class TimeBudget:
    """The part of a training's time that has passed, over interruptions.

    Parameters
    ----------
    minutes
        The limit; None: no limit.
    accelerator
        The main process decides for all.

    Examples
    --------
    >>> from expunge._core.distributed import this_process
    >>> TimeBudget(None, this_process()).fraction()
    0.0
    """

    def __init__(self, minutes: float | None, accelerator: Accelerator) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._accelerator, self._since = accelerator, time.perf_counter()
        self._spent = torch.zeros((), dtype=torch.float64)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; empty without a limit."""
        return {} if self._seconds is None else {"spent_seconds": self._spent}

    def fraction(self) -> float:
        """Return the fraction of the time that has passed; 0 without a limit."""
        if self._seconds is None:
            return 0.0
        limit = self._seconds
        return broadcast_decision(self._accelerator, lambda: self._now() / limit)

    def update(self) -> None:
        """Add the time since the last call to the state."""
        if self._seconds is None:
            return
        self._spent.fill_(self._now())
        self._since = time.perf_counter()

    def _now(self) -> float:
        return float(self._spent) + time.perf_counter() - self._since
