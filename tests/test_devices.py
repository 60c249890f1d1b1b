"""Every pass keeps to one device, also if models and data come from another.

There is no GPU where these tests run. Tensors without content stand for one: PyTorch follows the
shapes and devices of all operations on them, and refuses what mixes two devices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_args

import accelerate
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from expunge import stages
from expunge.config import ScoreConfig
from expunge.data import Samples, from_arrays
from expunge.detection import signals
from expunge.detection.detectors import needs_of
from expunge.detection.needs import Need
from expunge.models.calls import logits_of
from expunge.models.inspection import inspect_layers
from expunge.models.zoo import resnet
from expunge.pruning import ranking, surgery
from expunge.records import Partition
from expunge.selfsupervised import features
from expunge.training import baselines, loop
from expunge.training.loop import TuneConfig
from expunge.training.targets import build_targets

ELSEWHERE = torch.device("meta")
CONFIG = TuneConfig(targets="all", epochs=1, batch_size=16, lr=0.1)
X = np.random.default_rng(0).random((48, 3, 16, 16)).astype(np.float32)
Y = np.arange(48) % 4
DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}


@dataclass(frozen=True)
class Scene:
    """A model and data at home."""

    model: nn.Module
    samples: Samples


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    real_numpy, real_copy, real_autocast = Tensor.numpy, copy.deepcopy, torch.autocast

    def to_numpy(self: Tensor) -> np.ndarray:
        if not isinstance(self, FakeTensor):
            return real_numpy(self)
        assert self.device.type == "cpu"
        drawn = np.random.default_rng(0).random(tuple(self.shape))
        return drawn.astype(DTYPES[self.dtype])

    def apply(self: nn.Module, function: Any) -> nn.Module:
        for child in self.children():
            apply(child, function)
        for name, p in self._parameters.items():
            if p is not None:
                moved = function(p.detach())
                self._parameters[name] = nn.Parameter(moved, requires_grad=p.requires_grad)
        self._buffers.update({k: function(b) for k, b in self._buffers.items() if b is not None})
        return self

    def deepcopy(value: Any, memo: dict[int, Any] | None = None) -> Any:
        memo = {} if memo is None else memo
        for module in value.modules() if isinstance(value, nn.Module) else ():
            for p in module.parameters(recurse=False):
                memo[id(p)] = nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
            memo.update({id(b): b.clone() for b in module.buffers(recurse=False)})
        return real_copy(value, memo)

    accelerator = SimpleNamespace(
        device=ELSEWHERE,
        num_processes=1,
        process_index=0,
        prepare=lambda *things: things,
        backward=lambda loss: loss.backward(),
    )
    monkeypatch.setattr(signals, "Accelerator", lambda: accelerator, raising=False)
    monkeypatch.setattr(accelerate, "Accelerator", lambda: accelerator)
    monkeypatch.setattr(Tensor, "numpy", to_numpy)
    monkeypatch.setattr(FakeTensor, "__bool__", lambda _: True)
    monkeypatch.setattr(nn.Module, "_apply", apply)
    monkeypatch.setattr(copy, "deepcopy", deepcopy)
    monkeypatch.setattr(torch, "autocast", lambda _, *a, **k: real_autocast("cpu", *a, **k))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = resnet(classes=4, widths=(4, 8), blocks=(1, 1))
        yield Scene(model, from_arrays(X, Y, view="crop-flip"))


def at_home(model: nn.Module) -> bool:
    return {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_tensor_that_stays_behind_is_seen(scene):
    model = scene.model.to(ELSEWHERE)
    with pytest.raises(RuntimeError, match=r"same device|different devices"):
        logits_of(model, scene.samples.example())


def test_signals_are_collected_on_one_device(scene):
    needs = needs_of(ScoreConfig().detectors)
    more = frozenset(get_args(Need))
    found = signals.collect(scene.model, scene.samples, needs=needs | more, views=2)
    assert found.logits.shape == (48, 4)
    assert at_home(scene.model)


@pytest.mark.parametrize("uses", ["attribution", "activation", "weights"])
def test_neurons_are_ranked_on_one_device(scene, uses):
    p, none = np.linspace(0, 1, 48), np.zeros(48)
    split = Partition(scene.samples.ids, Y, p, p, none, Y, none + 1, 0.5, (0.5, 0.4, 0.6))
    layers = tuple(inspect_layers(scene.model, scene.samples.example()).readouts)
    sums = ranking.collect_sums(
        scene.model, scene.samples, split, layers=layers, regressors=uses, batch_size=16
    )
    assert set(sums) == set(layers)
    assert at_home(scene.model)


def test_a_model_is_tuned_on_one_device(scene):
    targets = build_targets(scene.samples, None, CONFIG)
    tuned = loop.tune(scene.model, scene.samples, targets, CONFIG, seed=0)
    assert at_home(tuned)
    assert at_home(scene.model)


@pytest.mark.parametrize("name", ["elr", "co-teaching", "divide-mix"])
def test_peers_are_trained_on_one_device(scene, name):
    how = {"seed": 0, "rate": 0.3, "progress": lambda *_: None, "what": "peer"}
    trained = baselines.trainers.get(name)(scene.model, scene.samples, CONFIG, **how)
    assert at_home(trained)
    assert at_home(scene.model)


def test_features_are_encoded_on_one_device(scene):
    assert len(features.extract_features(scene.model, scene.samples)) == 48
    assert at_home(scene.model)


def test_a_model_that_is_elsewhere_meets_its_example(scene):
    model = scene.model.to(ELSEWHERE)
    assert inspect_layers(model, scene.samples.example()).head == "head"
    assert surgery.size(model, stages.example_batch(scene.samples)).parameters > 0
