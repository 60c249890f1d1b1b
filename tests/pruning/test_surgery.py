"""The laws of cutting and masking units, and of reading and writing weights."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from expunge.errors import ModelError, PruneError, RunError
from expunge.pruning import surgery
from expunge.pruning.surgery import groups, mask, norms, prunable, prune, rebuild, size
from expunge.records import PrunePlan, Size
from expunge.storage.weights import fit_weights, load_weights, save_weights
from oracles_models import (
    CLASSES,
    ConcatNet,
    ConvGru,
    ConvNet,
    DepthwiseNet,
    InstanceNet,
    Mlp,
    ResidualNet,
    SignalNet,
    build,
    inputs,
)

CUT = {
    Mlp: {"hidden1": (0, 3, 9), "hidden2": (6,)},
    ConvNet: {"conv1": (0, 5), "conv2": (1, 4), "hidden": (0, 1, 2)},
    ResidualNet: {"stem": (1,), "conv1": (0, 2), "conv2": (4,), "conv3": (3,)},
    ConcatNet: {"left": (0, 2), "right": (1, 4), "joint": (5,)},
    DepthwiseNet: {"stem": (0, 4), "pointwise": (1, 7), "squeeze": (2,)},
    SignalNet: {"conv1": (0, 5), "conv2": (2,)},
    InstanceNet: {"conv1": (0, 5), "conv2": (2,)},
}


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plan_of(**units: tuple[int, ...]) -> PrunePlan:
    return PrunePlan(units=units, requested=sum(map(len, units.values())))


def planned(kind: type[nn.Module]) -> PrunePlan:
    return plan_of(**CUT[kind])


class Net(nn.Module):
    """Two layers and a head around an operation given by the test; input ``[n, 6]``."""

    def __init__(self, first: nn.Module, second: nn.Module, between=torch.relu) -> None:
        super().__init__()
        self.first, self.second, self.between = first, second, between
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.between(self.first(x)))))


def net(first: nn.Module | None = None, between=torch.relu, width: int = 8) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(first or nn.Linear(6, 8), nn.Linear(width, 5), between).eval()


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------ cutting


@pytest.mark.parametrize("kind", CUT)
def test_the_pruned_model_equals_the_masked_model(kind):
    model, x = build(kind), inputs(kind, n=6)
    pruned = prune(model, planned(kind), inputs(kind, n=1, seed=7))
    with mask(model, planned(kind), inputs(kind, n=2, seed=8)) as handle, torch.no_grad():
        masked = model(x)
    assert handle.at_output == ()
    with torch.no_grad():
        assert_close(pruned(x), masked)
        assert not torch.allclose(masked, model(x))


@pytest.mark.parametrize("kind", CUT)
def test_masked_units_have_no_influence_on_the_output(kind):
    model, x = build(kind), inputs(kind)
    with mask(model, planned(kind), x), torch.no_grad():
        before = model(x)
        for name, units in CUT[kind].items():
            layer = model.get_submodule(name)
            layer.weight[list(units)] += 3.0
            if layer.bias is not None:
                layer.bias[list(units)] -= 5.0
        assert_close(model(x), before)


@pytest.mark.parametrize("kind", CUT)
def test_pruning_removes_exactly_the_units_of_the_plan(kind):
    model, x = build(kind), inputs(kind)
    layers = list(CUT[kind])
    coupled = groups(model, x, prunable(model, x))
    pruned = prune(model, planned(kind), x)
    for name in layers:
        shared = [n for n in layers if coupled[n] == coupled[name]]
        union = set().union(*(CUT[kind][n] for n in shared))
        was, now = len(model.get_submodule(name).weight), len(pruned.get_submodule(name).weight)
        assert was - now == len(union), name
    assert size(pruned, x).parameters < size(model, x).parameters
    assert size(pruned, x).macs < size(model, x).macs


def test_a_pruned_perceptron_has_the_rows_and_columns_that_are_left():
    model = build(Mlp)
    pruned = prune(model, plan_of(hidden1=(2, 0), hidden2=(5,)), inputs(Mlp))
    left1, left2 = [1, *range(3, 10)], [0, 1, 2, 3, 4, 6]
    assert_close(pruned.hidden1.weight, model.hidden1.weight[left1])
    assert_close(pruned.hidden1.bias, model.hidden1.bias[left1])
    assert_close(pruned.hidden2.weight, model.hidden2.weight[left2][:, left1])
    assert_close(pruned.head.weight, model.head.weight[:, left2])
    assert_close(pruned.head.bias, model.head.bias)


def test_pruning_layers_together_equals_pruning_them_one_after_the_other():
    model, x = build(ConcatNet), inputs(ConcatNet)
    together = prune(model, plan_of(right=(1, 4), left=(0, 2)), x)
    after = prune(prune(model, plan_of(left=(0, 2)), x), plan_of(right=(1, 4)), x)
    assert_close(dict(together.state_dict()), dict(after.state_dict()))


def test_coupled_layers_lose_the_union_of_their_units():
    model, x = build(ResidualNet), inputs(ResidualNet)
    pruned = prune(model, plan_of(stem=(0, 1), conv4=(1, 2)), x)
    assert pruned.stem.out_channels == pruned.conv2.out_channels == pruned.conv4.out_channels == 3
    assert_close(pruned.conv2.weight, model.conv2.weight[3:])


@pytest.mark.parametrize("training", [True, False])
def test_pruning_leaves_the_model_as_it_was(training):
    model, x = build(ConvNet).train(training), inputs(ConvNet)
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    called = []
    model.conv2.register_forward_hook(lambda *_: called.append(1))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.random.get_rng_state()
    pruned = prune(model, planned(ConvNet), x)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.fill_(9.0)
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in pruned.modules()] == modes
    assert called == []
    assert len(model.conv2._forward_hooks) == 1
    assert len(pruned.conv2._forward_hooks) == 0
    assert torch.equal(random, torch.random.get_rng_state())
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["conv1.weight"]
    assert [n for n, p in pruned.named_parameters() if not p.requires_grad] == frozen


def test_a_wholly_frozen_model_can_be_pruned_without_gradients():
    model, x = build(Mlp).requires_grad_(False), inputs(Mlp)
    with torch.no_grad():
        pruned = prune(model, plan_of(hidden1=(0,)), x)
    assert pruned.hidden1.out_features == 9
    assert not any(p.requires_grad for p in pruned.parameters())


def test_a_pruned_model_trains():
    pruned = prune(build(ConvNet).train(), planned(ConvNet), inputs(ConvNet))
    pruned(inputs(ConvNet)).square().mean().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_an_empty_plan_gives_an_equal_model():
    model, x = build(Mlp), inputs(Mlp)
    pruned = prune(model, PrunePlan(units={"hidden1": ()}, requested=0), x)
    assert pruned is not model
    assert_close(pruned(x), model(x))
    with mask(model, PrunePlan(units={}, requested=0), x):
        assert_close(pruned(x), model(x))


def test_inputs_and_outputs_may_be_dictionaries():
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.hidden = nn.Linear(6, 7)
            self.head = nn.Linear(7, CLASSES)

        def forward(self, tokens: Tensor, keep: Tensor) -> dict[str, Tensor]:
            x = (self.embed(tokens) * keep[..., None]).mean(1)
            return {"logits": self.head(torch.relu(self.hidden(x))), "pooled": x}

    model = Text().eval()
    x = {"tokens": torch.arange(8).view(2, 4), "keep": torch.ones(2, 4)}
    assert prunable(model, x) == ["hidden"]
    pruned = prune(model, plan_of(hidden=(0, 6)), x)
    with mask(model, plan_of(hidden=(0, 6)), x):
        assert_close(pruned(**x)["logits"], model(**x)["logits"])


def test_tracing_says_nothing(capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prune(build(SignalNet), planned(SignalNet), inputs(SignalNet))
    assert caught == []
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------ what can be cut


def test_prunable_are_the_layers_with_units_of_their_own_without_the_head():
    found = {kind: prunable(build(kind), inputs(kind)) for kind in CUT}
    assert found == {
        Mlp: ["hidden1", "hidden2"],
        ConvNet: ["conv1", "conv2", "hidden"],
        ResidualNet: ["stem", "conv1", "conv2", "conv3", "conv4"],
        ConcatNet: ["left", "right", "joint"],
        DepthwiseNet: ["stem", "pointwise", "squeeze", "gate"],
        SignalNet: ["conv1", "conv2"],
        InstanceNet: ["conv1", "conv2"],
    }


def test_groups_name_the_first_of_the_layers_that_share_units():
    model, x = build(ResidualNet), inputs(ResidualNet)
    all_layers = groups(model, x, ["stem", "conv1", "conv2", "conv3", "conv4", "head"])
    alone = {"conv1": "conv1", "conv3": "conv3", "head": "head"}
    assert all_layers == alone | {"stem": "conv2", "conv2": "conv2", "conv4": "conv2"}
    assert groups(model, x, ["stem", "conv4", "conv1"]) == {
        "stem": "conv4",
        "conv4": "conv4",
        "conv1": "conv1",
    }
    gated = groups(build(DepthwiseNet), inputs(DepthwiseNet), ["pointwise", "gate", "stem"])
    assert gated == {"pointwise": "gate", "gate": "gate", "stem": "stem"}


def test_norms_are_those_that_the_units_go_through():
    def found(kind: type[nn.Module], *layers: str) -> list[str]:
        return norms(build(kind), inputs(kind), layers)

    assert found(ConvNet, "conv2") == ["bn2"]
    assert found(ConvNet, "conv2", "conv1", "hidden") == ["bn1", "bn2"]
    assert found(ResidualNet, "conv1") == ["norms.1"]
    assert found(ResidualNet, "stem") == ["norms.0", "norms.2", "norms.4"]
    assert found(ConcatNet, "right") == ["norm"]
    assert found(ConvNet, "hidden") == found(ConvNet, "head") == found(ConvGru, "conv") == []
    assert found(ConvNet, "bn1") == found(ResidualNet, "norms") == []
    assert found(ConvNet, "bn1", "conv2") == ["bn2"]
    with pytest.raises(PruneError, match="stm"):
        found(ResidualNet, "stm")


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a * torch.sigmoid(b)


def tied() -> Net:
    model = Net(nn.Linear(6, 5), nn.Linear(5, 5))
    model.reused = nn.Linear(6, 5)
    model.reused.weight = model.first.weight
    return model.eval()


UNCUTTABLE = {
    "softmax over the units": (lambda: net(between=lambda x: x.softmax(1)), "reach the output"),
    "length normalisation": (lambda: net(between=F.normalize), "reach the output"),
    "shuffled": (
        lambda: net(between=lambda x: x.view(-1, 2, 4).transpose(1, 2).flatten(1)),
        "torch-pruning",
    ),
    "layer norm": (lambda: net(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))), "no layer alone"),
    "gated halves": (lambda: net(between=halves, width=4), "tied to several"),
    "gated linear unit": (lambda: net(between=lambda x: F.glu(x), width=4), "torch-pruning"),
    "shared weights": (tied, "shares its weights"),
    "re-parametrised": (
        lambda: net(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))),
        "re-parametrised",
    ),
    "a single unit": (lambda: net(nn.Linear(6, 1), width=1), "a single unit"),
}


@pytest.mark.parametrize("case", UNCUTTABLE)
def test_layers_that_cannot_be_cut_are_left_out_and_refused_with_the_reason(case):
    make, reason = UNCUTTABLE[case]
    model = make()
    name = "first.0" if isinstance(model.first, nn.Sequential) else "first"
    assert prunable(model, X) == ["second"]
    assert groups(model, X, [name]) == {name: name}
    with pytest.raises(PruneError, match=reason) as caught:
        prune(model, plan_of(**{name: (0,)}), X)
    assert 'mode = "mask"' in str(caught.value)


def test_layers_added_to_a_concatenation_share_no_units_one_to_one():
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 8)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(torch.cat([self.a(x), self.b(x)], 1) + self.c(x)))

    assert prunable(Added(), X) == []
    assert groups(Added(), X, ["a", "b", "c"]) == {"a": "a", "b": "b", "c": "c"}
    with pytest.raises(PruneError, match="'a' cannot be cut: its units are tied to several units"):
        prune(Added(), plan_of(a=(0,)), X)


def test_layers_read_by_fixed_slices_cannot_be_cut():
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(4, 5), nn.Linear(5, 5)
            self.head = nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head(torch.relu(self.b(x[:, :4])) + torch.relu(self.c(x[:, 4:])))

    assert prunable(Sliced(), X) == ["b", "c"]
    with pytest.raises(PruneError, match="the pruned model does not run") as caught:
        prune(Sliced(), plan_of(a=(0,)), X)
    assert 'mode = "mask"' in str(caught.value)


def test_grouped_convolutions_are_refused():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 1, groups=3), nn.Flatten(), nn.Linear(24, 3)
    )
    x = torch.randn(2, 2, 2, 2)
    assert prunable(model, x) == []
    with pytest.raises(PruneError, match="layer '0' cannot be cut: '1' is a grouped convolution"):
        prune(model, plan_of(**{"0": (1,)}), x)


def test_the_head_cannot_be_cut():
    with pytest.raises(PruneError, match="layer 'head' cannot be cut: it makes the logits"):
        prune(build(Mlp), plan_of(head=(0,)), inputs(Mlp))


def test_unknown_layers_and_units_are_reported_all_at_once():
    with pytest.raises(PruneError) as caught:
        prune(build(ResidualNet), plan_of(conv9=(0,), head2=(1,)), inputs(ResidualNet))
    assert "no layer 'conv9': did you mean 'conv" in str(caught.value)
    assert "no layer 'head2': did you mean 'head'?" in str(caught.value)
    with pytest.raises(PruneError, match="layer 'conv1' has units 0 to 3, not 4, 7"):
        prune(build(ResidualNet), plan_of(conv1=(0, 4, 7)), inputs(ResidualNet))
    with pytest.raises(PruneError, match="layer 'conv1' has units 0 to 3, not -1"):
        mask(build(ResidualNet), plan_of(conv1=(-1,)), inputs(ResidualNet))
    with pytest.raises(PruneError, match=r"'depthwise' \(Conv2d\) has no units to cut"):
        prune(build(DepthwiseNet), plan_of(depthwise=(0,)), inputs(DepthwiseNet))
    with pytest.raises(PruneError, match="no layer 'stm': did you mean 'stem'"):
        groups(build(ResidualNet), inputs(ResidualNet), ["stm"])


@pytest.mark.parametrize("cut", [prune, mask])
def test_no_layer_is_emptied_not_even_by_what_coupled_layers_lose(cut):
    model, x = build(ResidualNet), inputs(ResidualNet)
    with pytest.raises(PruneError, match="no unit would be left in conv1"):
        cut(model, plan_of(conv1=(0, 1, 2, 3)), x)
    with pytest.raises(PruneError, match=r"no unit would be left in .*stem"):
        cut(model, plan_of(stem=(0, 1, 2), conv2=(3, 4, 5)), x)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_that_cannot_be_traced_is_refused_with_the_way_out(monkeypatch):
    def fails(*args, **kwargs):
        raise IndexError("list index out of range")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", fails)
    model, x = build(Mlp), inputs(Mlp)
    for call in (lambda: prune(model, plan_of(hidden1=(0,)), x), lambda: prunable(model, x)):
        with pytest.raises(PruneError, match="cannot trace the model: IndexError") as caught:
            call()
        assert 'mode = "mask"' in str(caught.value)
    with mask(model, plan_of(hidden1=(0,)), x) as handle:
        assert handle.at_output == ("hidden1",)


def test_a_cut_that_cuts_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(surgery, "_cut", lambda *_: None)
    with pytest.raises(PruneError, match="did not cut the units of hidden1"):
        prune(build(Mlp), plan_of(hidden1=(0,)), inputs(Mlp))


def test_a_cut_of_other_units_than_masked_is_an_error(monkeypatch):
    real = surgery._cut
    monkeypatch.setattr(surgery, "_cut", lambda t, d, i: real(t, d, [u + 1 for u in i]))
    with pytest.raises(PruneError, match=r"differs by .* from the masked model's"):
        prune(build(Mlp), plan_of(hidden1=(0, 4)), inputs(Mlp))


def test_a_model_that_does_not_run_on_the_example_is_the_users_error():
    with pytest.raises(ModelError, match="does not run on the example: RuntimeError"):
        prune(build(Mlp), plan_of(hidden1=(0,)), torch.randn(2, 5))


# ------------------------------------------------------------------------------ masks


def test_a_removed_mask_leaves_no_trace():
    model, x = build(ConvNet).train(), inputs(ConvNet)
    before = copy.deepcopy(model.state_dict())
    handle = mask(model, planned(ConvNet), x)
    assert any(m._forward_pre_hooks for m in model.modules())
    handle.remove()
    handle.remove()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(m.training for m in model.modules())
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_a_mask_is_removed_when_its_block_fails():
    model, x = build(Mlp), inputs(Mlp)
    with pytest.raises(ZeroDivisionError), mask(model, planned(Mlp), x):
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_masked_units_get_no_gradient():
    model, x = build(Mlp), inputs(Mlp)
    with mask(model, plan_of(hidden1=(2, 3)), x):
        model(x).sum().backward()
    alive = model.hidden1.weight.grad.abs().sum(1) > 0
    assert not alive[[2, 3]].any()
    assert alive.any()


def test_pruning_a_masked_model_ignores_the_mask():
    model, x = build(ResidualNet), inputs(ResidualNet)
    with mask(model, plan_of(conv1=(3,)), x):
        pruned = prune(model, plan_of(conv1=(0,)), x)
    with mask(model, plan_of(conv1=(0,)), x):
        assert_close(pruned(x), model(x))


class BothWays(nn.Module):
    """A recurrent network over eight steps; torch-pruning warns of the depth of its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def test_a_recurrent_network_without_other_layers_has_nothing_to_prune():
    assert surgery.prunable(nn.Sequential(BothWays()), torch.zeros(1, 8, 8)) == []


def test_units_before_a_recurrent_net_are_masked_at_their_own_output():
    model, x = build(ConvGru), inputs(ConvGru)
    assert prunable(model, x) == []
    with pytest.raises(PruneError, match="layer 'conv' cannot be cut"):
        prune(model, plan_of(conv=(1, 4)), x)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.conv.weight[[1, 4]] = 0.0
        by_hand.conv.bias[[1, 4]] = 0.0
    whole = model(x)
    with mask(model, plan_of(conv=(1, 4)), x) as handle:
        assert handle.at_output == ("conv",)
        assert_close(model(x), by_hand(x))
    assert_close(model(x), whole)


# ------------------------------------------------------------------------------ size


def test_size_is_the_closed_form():
    conv = 6 * 2 * 9 * 64 + 5 * 6 * 9 * 64 + 20 * 8 + 8 * CLASSES
    parameters = (6 * 18 + 6 + 12) + (5 * 54 + 10) + (20 * 8 + 8) + (8 * CLASSES + CLASSES)
    model = build(ConvNet).train()
    assert size(model, inputs(ConvNet)) == Size(parameters=parameters, macs=conv)
    assert size(model, inputs(ConvNet, n=1)) == size(model, inputs(ConvNet, n=5))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_an_example_goes_where_the_model_is():
    model, x = build(ConvNet), inputs(ConvNet)
    assert size(copy.deepcopy(model).to("meta"), x) == size(model, x)


def test_size_counts_grouped_and_transposed_convolutions():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 2, 2), nn.Flatten(), nn.Linear(50, 2)
    )
    macs = 8 * 2 * 9 * 16 + 8 * 2 * 4 * 16 + 50 * 2
    assert size(model, torch.randn(3, 4, 6, 6)).macs == macs


# ------------------------------------------------------------------------------ weights


def test_a_pruned_model_is_rebuilt_from_constructor_plan_and_weights(tmp_path):
    trained, x = build(ResidualNet, seed=3), inputs(ResidualNet)
    pruned = prune(trained, planned(ResidualNet), x)
    save_weights(pruned, tmp_path / "w.safetensors", {"plan": "p"})
    state = load_file(tmp_path / "w.safetensors")
    again = rebuild(build(ResidualNet, seed=4), planned(ResidualNet), x, state)
    assert_close(again(x), pruned(x), rtol=0, atol=0)


def test_weights_of_another_plan_are_refused_by_name():
    model, x = build(ConvNet), inputs(ConvNet)
    state = prune(model, plan_of(conv1=(0,)), x).state_dict()
    with pytest.raises(
        ModelError, match=r"pruned model: wrong shape: conv1.weight is \[5, 2, 3, 3\]"
    ):
        rebuild(model, plan_of(conv1=(0, 1)), x, state)


def test_saved_weights_load_bit_for_bit(tmp_path):
    model, other = build(ConvNet, seed=1), build(ConvNet, seed=2)
    path = tmp_path / "w.safetensors"
    save_weights(model, path)
    save_weights(model, path)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    load_weights(other, path)
    assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_interrupted_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(build(Mlp), path)
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(RunError, match="disk full"):
        save_weights(build(Mlp, seed=5), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {}, "loss": 0.1},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_pickled_state_dicts_load(tmp_path, wrap, suffix):
    model, other = build(Mlp, seed=1), build(Mlp, seed=2)
    torch.save(wrap(model.state_dict()), tmp_path / f"w{suffix}")
    load_weights(other, tmp_path / f"w{suffix}")
    assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_pickles_with_other_objects_are_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(build(Mlp), "whole.pt")
    torch.save(Evil(), "evil.pt")
    Path("plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("whole.pt", "evil.pt", "plain.pth"):
        with pytest.raises(ModelError, match="opening it could run code") as caught:
            load_weights(build(Mlp), name)
        assert "torch.save(" in str(caught.value)
    assert not Path("ran").exists()


def test_files_that_are_no_weights_are_refused_with_the_reason(tmp_path):
    for name in ("w.safetensors", "w.pt", "w.npz"):
        (tmp_path / name).write_bytes(b"no weights")
    torch.save({"epoch": 3}, tmp_path / "e.pt")
    torch.save([1, 2], tmp_path / "l.pt")
    reasons = {
        "w.safetensors": "not a safetensors file",
        "w.pt": "not a torch file|holds more than tensors",
        "w.npz": r"read from .safetensors, .pt, .pth, .ckpt, .bin, .tar, not '.npz'",
        "e.pt": "holds no state dict but epoch",
        "l.pt": "holds no state dict but list",
        "missing.pt": "there is no such weights file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=reason):
            load_weights(build(Mlp), tmp_path / name)
    with pytest.raises(ModelError, match=r"written as .safetensors, not '.pt'"):
        save_weights(build(Mlp), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="the folder does not exist"):
        save_weights(build(Mlp), tmp_path / "none" / "w.safetensors")


def test_weights_that_do_not_fit_are_named_all_at_once_and_change_nothing(tmp_path):
    model = build(Mlp)
    before = copy.deepcopy(model.state_dict())
    state = build(Mlp, seed=1).state_dict()
    del state["head.bias"]
    state["extra"] = torch.zeros(2)
    state["hidden1.weight"] = torch.zeros(3, 6)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    told = str(caught.value)
    assert "missing: head.bias" in told
    assert "unexpected: extra" in told
    assert "hidden1.weight is [3, 6], the model has [10, 6]" in told
    assert "w.safetensors" in told
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_weights_with_a_prefix_are_loaded_if_all_names_have_it(tmp_path):
    model = build(Mlp)
    for prefix in ("model.", "net.inner."):
        wrapped = {f"{prefix}{n}": t + 1 for n, t in model.state_dict().items()}
        torch.save({"state_dict": wrapped}, tmp_path / "w.pt")
        other = build(Mlp)
        load_weights(other, tmp_path / "w.pt")
        expected = {n: t + 1 for n, t in model.state_dict().items()}
        assert_close(dict(other.state_dict()), expected, rtol=0, atol=0)
    with pytest.raises(ModelError, match="unexpected: net"):
        fit_weights(build(Mlp), {**wrapped, "net.inner.extra": torch.zeros(2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    broken = build(Mlp)
    with torch.no_grad():
        broken.hidden2.weight[0, 0] = value
    with pytest.raises(ModelError, match=r"NaN or infinite weights in hidden2.weight"):
        save_weights(broken, tmp_path / "w.safetensors")
    torch.save(broken.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"NaN or infinite weights in hidden2.weight"):
        load_weights(build(Mlp), tmp_path / "w.pt")


def test_tied_weights_are_saved_and_loaded(tmp_path):
    model, other = tied(), tied()
    with torch.no_grad():
        other.first.weight.fill_(7.0)
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert other.reused.weight is other.first.weight
    state = load_file(tmp_path / "w.safetensors")
    fit_weights(other, {k: v for k, v in state.items() if k != "reused.weight"})
    with pytest.raises(ModelError, match=r"ties 'reused.weight' to 'first.weight'"):
        fit_weights(other, state | {"reused.weight": torch.zeros(5, 6)})
