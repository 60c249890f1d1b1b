"""What stands for functions and objects: equal for equal ones, another for changed ones."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from expunge.storage.hashing import content_of
from expunge.storage.weights import model_fingerprint


def noise(x, generator, std=0.1):
    return x + std * torch.randn(x.shape, generator=generator)


def closing_over(value):
    return lambda x, generator: x + value


class Noise:
    def __init__(self, std):
        self.std = std

    def __call__(self, x, generator):
        return noise(x, generator, self.std)


PAIRS = {
    "partial": (lambda: partial(noise, std=0.01), lambda: partial(noise, std=5.0)),
    "partial of another": (lambda: partial(noise), lambda: partial(Noise(1.0), std=0.1)),
    "closure": (lambda: closing_over(1), lambda: closing_over(2)),
    "object": (lambda: Noise(0.1), lambda: Noise(0.2)),
    "method": (lambda: Noise(0.1).__call__, lambda: Noise(0.2).__call__),
    "code": (lambda: lambda x, g: x + 1, lambda: lambda x, g: x + 2),
    "default": (lambda: noise, lambda: lambda x, generator, std=0.1: x),
    "array": (lambda: partial(noise, std=np.ones(2)), lambda: partial(noise, std=np.ones(3))),
    "tensor": (
        lambda: Noise(torch.ones(2, dtype=torch.bfloat16)),
        lambda: Noise(torch.zeros(2, dtype=torch.bfloat16)),
    ),
    "module": (lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2)),
    "builtin": (lambda: torch.relu, lambda: torch.tanh),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_changed_has_another_content(name):
    first, second = (make() for make in PAIRS[name])
    assert content_of(first) == content_of(first)
    assert content_of(first) != content_of(second)
    if name != "module":  # with weights of its own
        assert content_of(PAIRS[name][0]()) == content_of(first)


def test_content_is_the_same_in_every_process():
    code = (
        "from functools import partial; from expunge.storage.hashing import content_of; "
        "f = lambda x, y=3: [x, {'a', 'b', y}]; "
        "print(content_of([partial(f, y=object()), {'b': 1, 'a': {2, 'c'}}]))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert "0x" not in told.pop()


def test_what_holds_itself_has_a_content():
    held = [1]
    held.append(held)
    assert content_of(held)

    def again(n):
        return again(n - 1)

    assert content_of(again) == content_of(again)


class Own(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.inner, self.activation, self.last = nn.Linear(2, 2), activation, None

    def forward(self, x):
        self.last = self.activation(self.inner(x))
        return self.last


def test_a_model_s_fingerprint_sees_what_its_own_code_does():
    model = Own(torch.relu)
    first = model_fingerprint(model)
    model(torch.zeros(1, 2))
    assert model_fingerprint(model.train(False)) == first
    model.activation = torch.tanh
    assert model_fingerprint(model) != first
