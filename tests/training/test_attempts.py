"""A tuning that diverges is begun again at a lower rate, and resumes in the attempt it was in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from expunge import stages
from expunge._core.distributed import this_process
from expunge._core.rng import temp_seed
from expunge.data import Samples, from_arrays
from expunge.errors import ModelError
from expunge.models.copying import copy_model
from expunge.training.attempts import COLLAPSED_LOSS, Attempt, has_died, is_constant
from expunge.training.loop import TuneConfig
from expunge.training.targets import Targets
from oracles_training import InterruptedError, MemoryCheckpoint, assert_same_weights, split_of

# Without a limit to the norm of gradients, as "auto" has one.
SETTINGS = {
    "targets": "all",
    "epochs": 3,
    "batch_size": 16,
    "optimizer": "sgd",
    "precision": "float32",
}


def far_apart(n: int = 64) -> Samples:
    """Inputs of such a scale that SGD at its default rate diverges."""
    rng = np.random.default_rng(0)
    x = 30 * rng.standard_normal((n, 6)).astype(np.float32)
    return from_arrays(x, (x[:, 0] > 0).astype(np.int64))


def network() -> nn.Module:
    with temp_seed(0, "network"):
        return nn.Sequential(nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 2))


@pytest.mark.parametrize("targets", ["all", "bootstrap"])
def test_a_rate_that_was_left_out_is_lowered_until_the_loss_stays_finite(targets):
    notes: list[str] = []
    data = far_apart()
    split = split_of(data, np.linspace(0, 1, len(data))) if targets == "bootstrap" else None
    settings = {**SETTINGS, "targets": targets, "on_note": notes.append}
    tuned = stages.tune(network(), data, split, **settings)
    assert all(torch.isfinite(p).all() for p in tuned.parameters())
    rate = 0.1 * math.sqrt(16 / 128)
    assert len(notes) == 1
    assert notes[0].startswith(f"the loss diverged at the learning rate {rate:g}; ")
    assert notes[0].split("; ")[1] in (f"{rate / 10:g} was used", f"{rate / 100:g} was used")
    accuracy = (stages.predict(tuned, data) == data.labels).mean()
    assert accuracy > 0.7


def test_a_rate_that_was_given_is_not_changed():
    settings = {**SETTINGS, "lr": 1e4, "epochs": 8}
    with pytest.raises(ModelError, match=r"the loss became .*\n  fix: lower the learning rate"):
        stages.tune(network(), far_apart(), **settings)


@pytest.mark.parametrize("stop", [2, 5, 7, 10, 14])
def test_an_interrupted_attempt_is_resumed(stop):
    """Whether the first or the second attempt is interrupted."""

    def tune(checkpoint, progress):
        return stages.tune(
            network(), far_apart(), checkpoint=checkpoint, progress=progress, **SETTINGS
        )

    seen: list[int] = []
    whole = tune(None, lambda what, done, total: seen.append(done))
    assert len(seen) > 12  # more than one attempt of 12 steps
    checkpoint, count = MemoryCheckpoint(), iter(range(1, 1000))

    def interrupt(what: str, done: int, total: int) -> None:
        if next(count) == stop:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tune(checkpoint, interrupt)
    assert_same_weights(tune(checkpoint, lambda *_: None), whole)


def losses(*values: float, labels: tuple[int, ...] = (0, 1, 2, 3), died: bool = False) -> bool:
    attempt = Attempt(0, this_process(), None)
    for step, value in enumerate(values):
        if step % 6 == 0:
            attempt.start_epoch(step // 6)
        attempt.add(step, torch.tensor(value))
    y = np.array(labels)
    targets = Targets(np.arange(len(y)), y, np.ones(len(y)))
    return attempt.has_collapsed(targets, lambda: died)


def test_a_loss_that_rose_to_the_entropy_of_the_labels_has_collapsed():
    chance = math.log(4)
    fine, bad = 0.5 * chance, (COLLAPSED_LOSS + 0.05) * chance
    assert losses(*[0.1] * 6, *[bad] * 6)
    assert not losses(*[0.1] * 6, *[fine] * 6)
    for first in (chance - 0.1, chance + 0.1):  # from scratch, or half of the labels memorised
        assert not losses(*[first] * 6, *[bad] * 6)
        assert losses(*[first] * 6, *[bad] * 6, died=True)
        assert losses(*[first] * 6, *[chance + 0.2] * 6)
    assert losses(*[chance + 1] * 6, *[bad] * 6, died=True)  # it had memorised wrong labels
    assert not losses(*[chance + 1] * 6, *[bad] * 6)
    assert not losses(*[chance + 1] * 6, *[fine] * 6, died=True)
    all_rows = np.arange(4)
    dead, live = (from_arrays(k * torch.eye(4), [0, 1, 2, 2]) for k in (0, 9))
    network = nn.Linear(4, 3)
    assert is_constant(network, dead, all_rows)
    assert not is_constant(network, live, all_rows)
    other = copy_model(network)
    nn.init.zeros_(other.weight)
    assert has_died(network, other, live, all_rows)
    assert not has_died(other, other, live, all_rows)
    assert not has_died(network, network, live, all_rows)
    assert losses(*[0.1] * 6, *[fine] * 6, labels=(0, 0, 0, 0, 0, 0, 1))  # less to know


def test_settings_of_a_further_attempt_are_a_tenth_with_clipping():
    config = TuneConfig(lr=0.1)
    assert Attempt(0, this_process(), None).settings(config) == config
    second = Attempt(2, this_process(), None).settings(config)
    assert second.lr == pytest.approx(0.001)
    assert second.max_gradient_norm == 1.0
