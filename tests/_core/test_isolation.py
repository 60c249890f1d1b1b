"""What a caller has set in the process changes no result, and stays as it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

import expunge
from expunge._core.isolation import callers_device, isolated
from oracles_digits import memorised, noisy

pytestmark = pytest.mark.usefixtures("few_trees")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast that is off": lambda: torch.autocast("cpu", enabled=False),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "errors of NumPy": lambda: np.errstate(all="raise"),
}


def results() -> list[Tensor]:
    """Numbers of the stages that depend on gradients, dtypes, and casts of changing weights."""
    model, train = memorised(), noisy(200)
    scores = expunge.score(model, train, detectors=("margin", "lda_margin", "knn_disagreement"))
    split = expunge.partition(scores)
    ranking = expunge.rank(model, train, split)
    tuned = expunge.tune(model, train, split, epochs=2, batch_size=32, precision="bfloat16")
    edited = expunge.repair(model, train, recipe="instant", baselines=()).model
    weights = [*tuned.state_dict().values(), *edited.state_dict().values()]
    return [*map(torch.from_numpy, (split.p_noisy.copy(), ranking.effect.copy())), *weights]


@pytest.fixture(scope="module")
def expected() -> list[Tensor]:
    return results()


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_the_caller_changes_a_result_or_is_changed(name, expected):
    with SETTINGS[name]():
        before = settings()
        found = results()
        assert settings() == before
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def settings() -> list[object]:
    return [
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), np.geterr()),
        *(torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        *(torch.get_default_dtype(), torch.get_default_device()),
        *(torch.get_rng_state().tolist(), str(np.random.get_state())),  # noqa: NPY002
    ]


def test_a_forward_pass_makes_tensors_on_the_device_of_the_caller():
    @isolated
    def devices() -> list[str]:
        ours = torch.zeros(1).device.type
        with callers_device():
            return [ours, torch.zeros(1).device.type]

    assert devices() == ["cpu", "cpu"]
    with torch.device("meta"):
        assert devices() == ["cpu", "meta"]


def test_what_draws_from_the_global_generators_repeats_and_leaves_them_as_they_were():
    draw = isolated(lambda: (torch.rand(1).item(), np.random.random()))  # noqa: NPY002
    before = settings()
    assert draw() == draw()
    assert settings() == before


def test_functions_that_change_shared_state_exclude_each_other():
    inside, most, others_begin = [], [], threading.Barrier(3)

    @isolated
    def inner():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    @isolated
    def outer():
        inner()  # a thread does not wait for itself

    def start():
        others_begin.wait()
        outer()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
