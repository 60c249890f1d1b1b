"""Trainings that are interrupted, with the state between epochs in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.data import Samples
from expunge.records import Partition


class InterruptedError(Exception):
    """Raised by `interrupt_at`."""


class MemoryCheckpoint:
    """The state after the last epoch, as a run folder keeps it on disk."""

    def __init__(self) -> None:
        self.saved: tuple[int, dict[str, Tensor]] | None = None

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        return self.saved

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        self.saved = epoch, tensors


def interrupt_at(step: int) -> Callable[[str, int, int], None]:
    """A progress that raises after this step."""

    def progress(what: str, done: int, total: int) -> None:
        if done == step:
            raise InterruptedError

    return progress


def assert_resumes(train: Callable[..., nn.Module], *, steps: int, first: int) -> None:
    """A training that is interrupted after ``steps`` steps and resumed equals the whole one.

    train takes checkpoint and progress. The resumed one starts with step ``first``.
    """
    whole = train(checkpoint=None, progress=lambda *_: None)
    checkpoint, seen = MemoryCheckpoint(), list[int]()
    with pytest.raises(InterruptedError):
        train(checkpoint=checkpoint, progress=interrupt_at(steps))
    assert checkpoint.saved is not None
    resumed = train(checkpoint=checkpoint, progress=lambda what, done, total: seen.append(done))
    assert seen[0] == first
    assert_same_weights(resumed, whole)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    """Equal bit for bit."""
    other: dict[str, Any] = b.state_dict()
    for name, x in a.state_dict().items():
        assert torch.equal(x, other[name]), name


def split_of(
    samples: Samples, doubt: np.ndarray, suggested: np.ndarray | None = None, sure: float = 0.5
) -> Partition:
    """A partition by probabilities of a wrong label."""
    zeros = np.zeros(len(doubt))
    suggested = samples.labels if suggested is None else suggested
    rate = float(doubt.mean())
    return Partition(
        samples.ids,
        samples.labels,
        doubt,
        doubt,
        zeros,
        suggested,
        zeros + sure,
        0.5,
        (rate, rate, rate),
    )
