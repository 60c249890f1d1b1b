"""Layers are found by following tensors, and models are left as they were."""

from __future__ import annotations

import copy
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from expunge.errors import ModelError
from expunge.models.checks import check_model
from expunge.models.inspection import (
    capture_outputs,
    eval_mode,
    inspect_layers,
    logits_of,
    module_named,
    on_device,
)
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


class Wrapped(nn.Module):
    """Takes a dictionary, as keyword arguments, and returns an object or a mapping."""

    def __init__(self, returns):
        super().__init__()
        self.net, self.returns = Mlp(), returns

    def forward(self, values, scale):
        return self.returns(self.net(values * scale))


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


def hooks_of(model):
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


# ------------------------------------------------------------------------------- logits


@pytest.mark.parametrize(
    "returns", [lambda z: z, lambda z: {"logits": z}, lambda z: SimpleNamespace(logits=z)]
)
def test_dictionaries_go_in_and_logits_come_out(returns):
    model, x = Wrapped(returns), torch.randn(4, 6)
    batch = {"values": x, "scale": torch.full((4, 1), 2.0)}
    assert_close(logits_of(model, batch), model.net(2 * x))
    assert inspect_layers(model, batch).head == "net.head"


@pytest.mark.parametrize(
    ("returns", "got"),
    [
        (lambda z: (z[None], "text"), "tuple of Tensor, str"),
        (lambda z: {"a": z, "b": z}, "dict with a, b"),
        (lambda z: None, "NoneType"),
        (lambda z: z[None], r"shape \(1, 4, 3\)"),
        (lambda z: z.sum(), r"shape \(\)"),
    ],
)
def test_what_is_not_logits_is_refused(returns, got):
    batch = {"values": torch.randn(4, 6), "scale": torch.ones(4, 1)}
    with pytest.raises(ModelError, match=rf"logits of shape \[batch, classes\], got .*({got})"):
        logits_of(Wrapped(returns), batch)


# ------------------------------------------------------------------------------- contexts


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_own_mode_back(fails):
    model = build(ConvNet).train()
    model.bn1.eval()
    modes = [m.training for m in model.modules()]
    try:
        with eval_mode(model):
            assert not any(m.training for m in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert modes == [m.training for m in model.modules()]
    assert len(set(modes)) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_is_placed_goes_home_again(monkeypatch, fails):
    moves, model = [], mlp(inputs=4, classes=2)
    monkeypatch.setattr(model, "to", moves.append)
    with suppress(KeyboardInterrupt), on_device(model, torch.device("meta")):
        assert moves == [torch.device("meta")]
        if fails:
            raise KeyboardInterrupt
    assert moves == [torch.device("meta"), torch.device("cpu")]


def test_discovery_takes_its_example_to_the_model():
    here = inspect_layers(build(ConvNet), inputs(ConvNet))
    assert inspect_layers(build(ConvNet).to("meta"), inputs(ConvNet)) == here


def test_captured_outputs_are_what_the_layers_return():
    model, x = build(Mlp), inputs(Mlp)
    with capture_outputs(model, ("hidden1", "hidden2"), inputs_of="head") as found:
        logits = model(x)
    assert_close(found["hidden1"], model.hidden1(x))
    assert_close(found["hidden2"], model.hidden2(model.hidden1(x).relu()))
    assert_close(found["input"], found["hidden2"].tanh())
    assert_close(logits, model(x))
    assert not hooks_of(model)


def test_differentiable_outputs_have_gradients_also_in_a_frozen_model():
    model, x = build(Mlp).requires_grad_(False), inputs(Mlp)
    with capture_outputs(model, ("hidden1", "hidden2"), differentiable=True) as found:
        model(x)[:, 0].sum().backward()
    assert found["hidden1"].grad is not None
    assert all(p.grad is None for p in model.parameters())


def test_an_operation_in_place_does_not_change_what_was_captured():
    model, x = InPlaceFunctions(), torch.randn(20, 6)
    with capture_outputs(model, ("fc1",), differentiable=True) as found:
        logits = model(x)
    assert_close(found["fc1"], model.fc1(x))
    assert (found["fc1"] < 0).any()
    assert_close(logits, model(x))


def test_hooks_are_gone_after_an_error_and_after_an_unknown_name():
    model = build(Mlp)
    with pytest.raises(RuntimeError), capture_outputs(model, ("hidden1",)):
        model(torch.randn(2, 5))
    with (
        pytest.raises(ModelError, match=r"no layer 'hidden3'\n.*did you mean 'hidden2'"),
        capture_outputs(model, ("hidden1", "hidden3")),
    ):
        pass
    assert not hooks_of(model)


def test_a_layer_that_returns_no_tensor_cannot_be_captured():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.named = nn.ModuleDict({"a": nn.Linear(2, 2)})
            self.named.forward = lambda x: {"out": self.named["a"](x)}

        def forward(self, x):
            return self.named(x)["out"]

    model = Wrapped()
    with (
        pytest.raises(ModelError, match="layer 'named' returns dict, not a tensor"),
        capture_outputs(model, ("named",)),
    ):
        model(torch.zeros(1, 2))


@pytest.mark.parametrize("differentiable", [False, True])
def test_of_a_tuple_the_first_tensor_is_captured(differentiable):
    model = build(ConvGru)
    with capture_outputs(model, ("gru",), differentiable=differentiable) as found:
        logits = model(inputs(ConvGru))
    assert found["gru"].dim() == 3
    assert found["gru"].requires_grad == differentiable or not differentiable
    assert_close(logits, model(inputs(ConvGru)))


def test_the_model_itself_is_no_layer_of_it():
    with pytest.raises(ModelError, match="no layer ''"):
        module_named(Mlp(), "")
    model = Mlp()
    assert module_named(model, "head") is model.head


# ------------------------------------------------------------------------------- check_model


def test_a_sound_model_passes():
    assert check_model(build(ConvNet)) is None


def test_broken_weights_are_named_all_at_once_and_tied_ones_are_none():
    model = sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[3].bias[1] = torch.nan
    model[2].running_var[0] = torch.inf
    with pytest.raises(ModelError) as caught:
        check_model(model)
    text = str(caught.value)
    assert "tied" not in text
    assert "NaN or infinite: 3.bias, 2.running_var" in text
