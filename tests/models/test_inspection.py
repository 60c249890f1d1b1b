"""Layers are found by following tensors, and models are left as they were."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.data import from_arrays
from expunge.errors import ModelError
from expunge.models.inspection import inspect_layers, inspect_model
from expunge.models.zoo import convnet, mlp, resnet
from oracles_models import (
    ConcatNet,
    ConvGru,
    ConvNet,
    DepthwiseNet,
    Mlp,
    ResidualNet,
    SignalNet,
    build,
    inputs,
)


class SharedRelu(nn.Module):
    """One ReLU that is called twice."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.head(self.relu(self.fc2(self.relu(self.fc1(x)))))


class InPlaceFunctions(SharedRelu):
    """Functions that change what a layer has returned."""

    def forward(self, x):
        x = torch.relu_(self.fc1(x))
        return self.head(torch.relu_(self.fc2(x)))


class InPlaceAddition(nn.Module):
    """A residual addition in place, between batch norm and ReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.norm(self.conv(x))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


def sequential(*layers, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*layers)


# ------------------------------------------------------------------------------- inspect_layers


def test_an_mlp_has_its_head_its_probes_and_its_whole_tail():
    layout = inspect_layers(mlp(inputs=6, classes=3, hidden=4), torch.randn(2, 6))
    assert layout.head == "5"
    assert layout.readouts == {"1": "2", "3": "4"}
    assert layout.feature_layers == ("2", "4")
    assert layout.tail == ("1", "2", "3", "4", "5")


def test_a_convnet_probes_behind_norm_and_activation():
    model = convnet(classes=3, channels=1, widths=(4, 6), hidden=5, convolutions=1)
    layout = inspect_layers(model, torch.randn(2, 1, 8, 8))
    # conv norm relu pool conv norm relu average flatten hidden relu head
    assert layout.head == "11"
    assert layout.readouts == {"0": "2", "4": "6", "9": "10"}
    assert layout.feature_layers == ("2", "6", "10")
    assert layout.tail == ("9", "10", "11")


def test_a_resnet_has_its_blocks_as_stages():
    model = resnet(classes=3, channels=1, widths=(4, 6), blocks=(1, 1))
    layout = inspect_layers(model, torch.randn(2, 1, 8, 8))
    assert layout.head == "head"
    assert layout.readouts["stem.0"] == "stem.2"
    assert layout.readouts["stages.1.0.shortcut.0"] == "stages.1.0.shortcut.1"
    # Functions are not followed: the chain ends at the batch norm before torch.relu.
    assert layout.readouts["stages.0.0.conv1"] == "stages.0.0.bn1"
    assert {"stages.0.0", "stages.1.0"} <= set(layout.feature_layers)
    assert layout.feature_layers[0] == "stem.2"
    assert layout.feature_layers[-1] == "stages.1.0"
    assert layout.tail == ("head",)


@pytest.mark.parametrize(
    ("kind", "probes"),
    [
        (Mlp, {"hidden1": "hidden1", "hidden2": "hidden2"}),
        (ConvNet, {"conv1": "bn1", "conv2": "bn2", "hidden": "hidden"}),
        (ConcatNet, {"left": "left", "right": "right", "joint": "joint"}),
        (SignalNet, {"conv1": "conv1", "conv2": "conv2"}),
        (ConvGru, {"conv": "conv"}),
        (DepthwiseNet, None),
        (ResidualNet, None),
    ],
)
def test_functions_between_layers_end_the_chains(kind, probes):
    layout = inspect_layers(build(kind), inputs(kind))
    assert (layout.head, layout.tail) == ("head", ("head",))
    assert probes is None or layout.readouts == probes
    assert set(layout.feature_layers) == set(layout.readouts.values())


def test_residual_units_are_probed_before_the_addition():
    layout = inspect_layers(build(ResidualNet), inputs(ResidualNet))
    names = ("stem", "conv1", "conv2", "conv3", "conv4")
    assert layout.readouts == {name: f"norms.{i}" for i, name in enumerate(names)}
    layout = inspect_layers(InPlaceAddition(), inputs(ResidualNet))
    assert layout.readouts == {"stem": "stem", "conv": "norm"}


def test_a_relu_in_place_belongs_to_the_same_tensor():
    model = sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    layout = inspect_layers(model, torch.randn(2, 6))
    assert (layout.head, layout.tail) == ("2", ("2",))
    assert layout.readouts == {"0": "0"}


def test_a_function_in_place_ends_the_tail():
    assert inspect_layers(InPlaceFunctions(), torch.randn(2, 6)).tail == ("head",)


def test_a_layer_that_is_called_twice_stands_for_no_other():
    layout = inspect_layers(SharedRelu(), torch.randn(2, 6))
    assert layout.readouts == {"fc1": "fc1", "fc2": "fc2"}
    assert layout.tail == ("fc2", "relu", "head")


def test_dropout_and_identity_do_not_end_the_tail():
    layers = (nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Identity(), nn.Linear(5, 3))
    layout = inspect_layers(sequential(*layers), torch.randn(2, 6))
    assert layout.readouts == {"0": "1"}
    assert layout.tail == ("0", "1", "4")


def test_logits_of_another_operation_have_no_head():
    class Scaled(Mlp):
        def forward(self, x):
            return super().forward(x) / 2

    class ScaledInPlace(Mlp):
        def forward(self, x):
            return super().forward(x).mul_(0.5)

    for model in (Scaled(), ScaledInPlace()):
        layout = inspect_layers(model, torch.randn(2, 6))
        assert (layout.head, layout.tail) == ("", ())
        assert "head" in layout.readouts


def test_a_layer_that_is_not_called_is_not_found():
    model = Mlp()
    model.spare = nn.Linear(3, 3)
    assert "spare" not in inspect_layers(model, torch.randn(2, 6)).readouts


def test_a_parametrised_layer_is_a_layer():
    plain, x = Mlp(), torch.randn(2, 6)
    model = copy.deepcopy(plain)
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        nn.utils.parametrizations.weight_norm(layer)
    assert inspect_layers(model, x) == inspect_layers(plain, x)


class Experts(nn.Module):
    """The sign of the first input chooses the expert."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(6, 2), nn.Linear(5, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU()) for _ in range(2)
        )

    def forward(self, x):
        chosen = (x[:, 0] > 0).long()
        out = self.gate(x).sum(1, keepdim=True).repeat(1, 5)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                out[rows] = expert(x[rows])
        return self.head(out)


def test_layers_that_only_some_samples_reach_are_left_out():
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(60, 6)
    x[:2, 0], x[30:, 0] = 1.0, -1.0
    samples = from_arrays(x, np.arange(60) % 3)
    first = inspect_layers(model, x[:2])
    assert "experts.1.0" in first.readouts
    assert first.unused == ("experts.0.0", "experts.0.2")
    layout = inspect_model(model, samples)
    assert layout.head == "head"
    assert not [n for n in (*layout.readouts, *layout.feature_layers) if "experts" in n]
    split = expunge.partition(expunge.score(model, samples, detectors=("loss", "lda_margin")))
    with pytest.raises(ModelError, match=r"'experts.1.0' is no .* units that every sample reaches"):
        expunge.rank(model, samples, split, layers=("experts.1.0",))
    everywhere = samples.subset(np.flatnonzero(samples.inputs.batch(np.arange(60))[:, 0] > 0))
    layout = inspect_model(model, everywhere)  # other samples may reach the other expert
    assert not [n for n in (*layout.readouts, *layout.feature_layers) if "experts" in n]


def test_layers_of_a_stack_whose_end_is_unused_are_no_experts():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = (
                nn.ModuleList(nn.Linear(6, 6) for _ in range(3)),
                nn.Linear(6, 3),
            )

        def forward(self, x):
            for layer in self.layers[:2]:
                x = layer(x)
            return self.head(x)

    model, samples = Stack(), from_arrays(torch.randn(20, 6), np.arange(20) % 3)
    assert inspect_model(model, samples) == inspect_layers(model, samples.example())


def test_a_network_for_one_size_of_batches_is_inspected_by_the_first_samples():
    class Fixed(Mlp):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(3, 3)

        def forward(self, x):
            if len(x) not in (2, 4):
                raise ValueError("batches of two or four")
            return super().forward(x)

    samples = from_arrays(torch.randn(20, 6), np.arange(20) % 3)
    model = Fixed()
    assert inspect_model(model, samples) == inspect_layers(model, samples.example())


def test_a_model_without_layers_is_refused():
    class Nothing(nn.Module):
        def forward(self, x):
            return x[:, :3]

    with pytest.raises(ModelError, match=r"no linear or convolution layer is called\n.*wrapper"):
        inspect_layers(Nothing(), torch.randn(2, 6))


@pytest.mark.parametrize("kind", [Mlp, ConvNet, ResidualNet, DepthwiseNet])
def test_discovery_leaves_the_model_as_it_was(kind):
    model = build(kind).train()
    model.head.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    inspect_layers(model, inputs(kind))
    assert modes == [m.training for m in model.modules()]
    assert not hooks_of(model)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_discovery_takes_its_example_to_the_model():
    here = inspect_layers(build(ConvNet), inputs(ConvNet))
    assert inspect_layers(build(ConvNet).to("meta"), inputs(ConvNet)) == here


def hooks_of(model):
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
