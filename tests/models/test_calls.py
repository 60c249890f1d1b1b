"""Models are called with any batch, and their layers' outputs collected, without changing them."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from expunge._core.rng import temp_seed
from expunge.errors import ModelError
from expunge.models.calls import (
    capture_outputs,
    eval_mode,
    logits_of,
    module_named,
    on_device,
    to_channels_last,
)
from expunge.models.inspection import inspect_layers
from expunge.models.zoo import mlp
from models.test_inspection import InPlaceFunctions, hooks_of
from oracles_models import ConvGru, ConvNet, Mlp, build, inputs


class Wrapped(nn.Module):
    """Takes a dictionary, as keyword arguments, and returns an object or a mapping."""

    def __init__(self, returns):
        super().__init__()
        self.net, self.returns = Mlp(), returns

    def forward(self, values, scale):
        return self.returns(self.net(values * scale))


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


# ------------------------------------------------------------------------------- capture_outputs


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


class Masked(nn.Module):
    """Fails in bfloat16, as DeBERTa does."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Conv2d(2, 3, 2), nn.Dropout()

    def forward(self, x):
        z = self.layer(self.dropout(x)).amax((2, 3))
        return z.masked_fill(z > 9, torch.finfo(torch.float32).min)


class Viewed(nn.Module):
    """Fails on images with channels last."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.dropout = nn.Conv2d(2, 3, 2), nn.Linear(48, 3), nn.Dropout()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(self.layer(self.dropout(x)))
        return self.head(x.view(x.size(0), -1))


@pytest.mark.parametrize("kind", [Masked, Viewed])
def test_a_model_that_fails_in_the_fastest_way_runs_in_another(kind, caplog):
    model, x = kind(), torch.ones(4, 2, 5, 5)
    with temp_seed(0, "x"):
        expected = logits_of(model, x)
    for last in (False, True, True):
        if last:
            model.to(memory_format=torch.channels_last)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=kind is Masked)
        with temp_seed(0, "x"), autocast:
            assert_close(logits_of(model, to_channels_last(x) if last else x), expected)
    counts = [m.num_batches_tracked.item() for m in model.modules() if hasattr(m, "running_var")]
    assert counts in ([], [4])
    message = f"{kind.__name__} fails under autocast: it runs in float32, which is slower"
    assert caplog.messages == [message] * (kind is Masked)


def test_a_buffer_that_a_forward_pass_makes_as_long_as_its_batch_is_given_back():
    class Keeping(Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1, 2))

        def forward(self, x):
            self.seen = x[:, :2].detach()
            return super().forward(x)

    model = Keeping()
    with eval_mode(model):
        logits_of(model, inputs(Mlp, n=3))
    assert_close(model.seen, torch.zeros(1, 2))


def test_buffers_that_a_forward_pass_fills_or_makes_are_taken_away():
    class Filling(Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", None)
            self.register_buffer("cache", None, persistent=False)

        def forward(self, x):
            self.mean = self.cache = x.mean(0)
            self.register_buffer("made", x.mean(0), persistent=False)
            return super().forward(x)

    model = Filling()
    before = (dict(model._buffers), set(model._non_persistent_buffers_set))
    with eval_mode(model):
        logits_of(model, inputs(Mlp))
        assert model.mean is not None
    assert (model._buffers, model._non_persistent_buffers_set) == before
