"""Any model is copied, computes the same, and is left as it was."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.testing import assert_close

from expunge.models.calls import eval_mode, logits_of
from expunge.models.copying import copy_model, detach_attributes
from oracles_models import Mlp

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Keeps(Mlp):
    """Keeps what a forward pass made, where user code keeps it: by itself, in a list, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        h = torch.relu(self.hidden1(x))
        self.features = h
        self.seen.append(h)
        self.by_name = {"h": (h, "text")}
        return self.head(torch.tanh(self.hidden2(h)))


def lock() -> nn.Module:
    model = Mlp()
    model.lock, model.log = threading.Lock(), sys.stderr
    model.settings = {"inner": [threading.RLock()], "rate": [0.5]}
    model.rows = (row for row in range(3))
    return model


def wrapped(wrap):
    def make() -> nn.Module:
        model = Mlp()
        model.hidden1 = wrap(model.hidden1)
        return model

    return make


MODELS = {
    "activations": Keeps,
    "lock, file, generator": lock,
    "old weight norm": wrapped(lambda m: nn.utils.weight_norm(m)),
    "old spectral norm": wrapped(lambda m: old_spectral_norm(m)),
    "weight norm": wrapped(parametrizations.weight_norm),
    "spectral norm": wrapped(parametrizations.spectral_norm),
    "prune masks": wrapped(lambda m: prune.l1_unstructured(m, "weight", 0.3)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm:DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_the_middle_of_a_training_is_copied(name):
    model = MODELS[name]().eval()
    expected = logits_of(model, X)  # with gradients: what it keeps belongs to a graph
    copied = copy_model(model)
    assert_close(logits_of(copied, X), expected)
    logits_of(copied, X).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(2)
    assert_close(logits_of(model, X), expected)


def test_what_can_be_copied_is_copied_beside_what_cannot():
    model = lock()
    copied = copy_model(model)
    assert copied.lock is model.lock
    assert copied.settings["inner"][0] is model.settings["inner"][0]
    copied.settings["rate"][0] = 0.1
    assert model.settings["rate"] == [0.5]


def test_a_copy_of_a_model_made_for_inference_can_be_trained():
    with torch.inference_mode():
        copied = copy_model(Mlp())
    logits_of(copied, X).sum().backward()
    assert copied.head.weight.grad is not None


def test_evaluation_leaves_no_activation_in_the_model():
    model = Keeps()
    with eval_mode(model), torch.enable_grad():
        logits_of(model, X)
        assert model.features.requires_grad
    assert not hasattr(model, "features")
    model.features = "of the caller"
    with eval_mode(model):
        logits_of(model, X)
    assert model.features == "of the caller"


@pytest.mark.parametrize("held", [[], {}, set()])
def test_evaluation_leaves_nothing_in_a_container_of_the_model(held):
    class Appends(Mlp):
        def forward(self, x):
            add = {list: "append", dict: "setdefault", set: "add"}[type(self.held)]
            getattr(self.held, add)(len(x))
            return super().forward(x)

    model = Appends()
    model.held = held
    with eval_mode(model):
        logits_of(model, X)
        assert model.held
    assert model.held is held
    assert not held


def test_a_detached_model_can_be_copied_by_anyone():
    model = Keeps()
    model.seen = ()  # type: ignore[assignment]
    model.features = model.head.weight * 2
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model)
    detach_attributes(model)
    assert_close(copy.deepcopy(model).features, model.head.weight * 2)


def test_parametrised_layers_keep_their_parametrisation():
    copied = copy_model(wrapped(parametrizations.weight_norm)())
    assert parametrize.is_parametrized(copied.hidden1)
