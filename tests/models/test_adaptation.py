"""Wrapped models and models that return probabilities give what the network itself gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import expunge
from expunge.errors import ConfigError, ModelError
from expunge.models import adaptation
from expunge.models.adaptation import adapt_model, unwrap
from expunge.models.calls import logits_of
from expunge.models.checks import check_fit, check_training
from expunge.models.constructors import construct
from expunge.models.inspection import inspect_layers
from expunge.specs import ModelConfig
from oracles_models import ConvNet, Mlp, build, inputs


def two_classes(n: int = 200, d: int = 6):
    """Points of two classes, a tenth of the labels wrong, and a network that knows them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    y[: n // 10] = 1 - y[: n // 10]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
            optimizer.step()
    return net.eval(), x, y


def single(net: nn.Sequential) -> nn.Sequential:
    """The same network with one logit: that of class 1 less that of class 0."""
    one = nn.Linear(16, 1)
    with torch.no_grad():
        one.weight.copy_(net[2].weight[1:] - net[2].weight[:1])
        one.bias.copy_(net[2].bias[1:] - net[2].bias[:1])
    return nn.Sequential(copy.deepcopy(net[0]), nn.ReLU(), one)


class Converted(nn.Module):
    """A network whose forward ends in a function, which is no layer."""

    def __init__(self, inner: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, x):
        return self.function(self.inner(x))


FORMS = {
    "softmax": lambda net: nn.Sequential(*net, nn.Softmax(dim=1)),
    "log-softmax": lambda net: nn.Sequential(*net, nn.LogSoftmax(dim=1)),
    "one logit": single,
    "softmax by a function": lambda net: Converted(net, lambda z: F.softmax(z, dim=1)),
    "log-softmax by a function": lambda net: Converted(net, lambda z: F.log_softmax(z, dim=1)),
    "one logit without its dimension": lambda net: Converted(single(net), lambda z: z.squeeze(1)),
    "probability without its dimension": lambda net: Converted(
        single(net), lambda z: torch.sigmoid(z[:, 0])
    ),
    "one probability": lambda net: nn.Sequential(*single(net), nn.Sigmoid()),
    "frozen probability": lambda net: nn.Sequential(*single(net), nn.Sigmoid()).requires_grad_(
        False
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_output_gives_the_scores_of_the_logits(form):
    net, x, y = two_classes()
    detectors = ("loss", "lda_margin", "augmented_margin")
    expected = expunge.score(net, (x, y), detectors=detectors, precision="float32")
    model = FORMS[form](net)
    found = expunge.score(model, (x, y), detectors=detectors, precision="float32")
    for name in detectors:
        np.testing.assert_allclose(found.values[name], expected.values[name], 1e-3, 1e-4)
    assert not [k for k in vars(model) if k.startswith("_expunge")]


@pytest.mark.parametrize("form", ["softmax", "one probability"])
def test_a_repair_trains_through_the_probabilities_and_says_so(form):
    net, x, y = two_classes()
    settings = {
        "baselines": (),
        "overrides": {
            "score": {"detectors": ("augmented_margin", "lda_margin"), "precision": "float32"},
            "tune": {"epochs": 3, "precision": "float32"},
            "prune": {"fraction": 0.25},
            "min_flagged_fraction": 0.0,
        },
    }
    expected = expunge.repair(net, (x, y), **settings)
    result = expunge.repair(FORMS[form](net), (x, y), **settings)
    assert "probabilities" in result.notes[0]
    assert result.plan.units == expected.plan.units
    a, b = (expunge.stages.predict(r.model, (x, y)) for r in (result, expected))
    assert (a == b).mean() > 0.97
    out = result.model(torch.tensor(x)).detach()
    assert 0 <= float(out.min()) <= float(out.max()) <= 1  # the user's own output


def test_the_head_and_its_closed_form_are_found_before_a_softmax():
    net, x, _ = two_classes()
    for form in ("softmax", "log-softmax", "one logit", "one probability"):
        assert inspect_layers(FORMS[form](net), torch.tensor(x[:1])).head == "2"
    detectors = ("attribution_mass",)
    y = np.arange(len(x)) % 2
    one = expunge.score(single(net), (x, y), detectors=detectors).values["attribution_mass"]
    rows = net[2].weight.detach()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin[2].weight.copy_(torch.stack([torch.zeros(16), rows[1] - rows[0]]))
    expected = expunge.score(twin, (x, y), detectors=detectors).values["attribution_mass"]
    np.testing.assert_allclose(one, expected, 1e-4, 1e-6)


# ------------------------------------------------------------------------------- wrappers


class Holds(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.last = part, nn.Identity()

    def forward(self, x):
        return self.last(self.part(x))


def compiled_in_place() -> nn.Module:
    model = build(ConvNet)
    model.compile(backend="eager")
    return model


WRAPPED = {
    "torch.compile": lambda: torch.compile(build(ConvNet), backend="eager"),
    "torch.compile of DataParallel": lambda: torch.compile(
        nn.DataParallel(build(ConvNet)), backend="eager"
    ),
    "DataParallel": lambda: nn.DataParallel(build(ConvNet)),
    "module.compile": compiled_in_place,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_is_taken_off_with_a_note(name):
    model, notes = unwrap(WRAPPED[name]())
    assert type(model) is ConvNet
    assert name.split(" ")[0].replace("module", "torch") in notes[0]
    expected = build(ConvNet).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert_close(logits_of(model.eval(), inputs(ConvNet)), build(ConvNet).eval()(inputs(ConvNet)))


def test_wrapped_parts_are_unwrapped_in_a_copy():
    given = Holds(nn.DataParallel(Holds(torch.compile(build(Mlp), backend="eager"))))
    model, notes = unwrap(given)
    assert type(model.part) is Holds
    assert type(model.part.part) is Mlp
    assert isinstance(given.part, nn.DataParallel)
    assert "torch.compile" in notes[0]
    assert "DataParallel" in notes[0]
    assert_close(model(inputs(Mlp)), build(Mlp)(inputs(Mlp)))


def test_a_plain_model_is_used_as_it_is():
    model, x = build(Mlp), inputs(Mlp)
    samples = expunge.from_arrays(x.numpy(), np.arange(len(x)) % 3)
    assert adapt_model(model, samples) == (model, ())


class WithFeatures(nn.Module):
    """It returns its features first, as encoders do."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x):
        features = torch.relu(self.body(x))
        return features, self.head(features)


def test_logits_behind_features_are_found_and_exported(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    model, samples = WithFeatures(), expunge.from_arrays(x, np.arange(20) % 3)
    expected = model(torch.tensor(x))[1].detach()
    adapted, notes = adapt_model(model, samples)
    assert_close(logits_of(adapted, samples.batch(np.arange(20))).detach(), expected)
    assert notes == ("the logits are part '1' of the model's output",)
    assert adapt_model(adapted, samples).model is adapted
    exported = expunge.export_model(adapted, samples, tmp_path, constructor=WithFeatures)
    assert_close(exported(x), expected)


def test_several_parts_that_may_be_the_logits_are_noted(caplog):
    adaptation._log_once.cache_clear()
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    (note,) = adapt_model(WithFeatures(3), expunge.from_arrays(x, np.arange(20) % 3)).notes
    assert note.startswith("2 parts of the model's output have 3 columns; the first was taken")
    expunge.score(WithFeatures(3), (x, np.arange(20) % 3), detectors=("loss",))
    assert caplog.messages == [f"WithFeatures: {note}"]


def test_inputs_that_look_like_sound_are_noted_unless_they_have_a_sample_rate():
    clips = np.sin(np.outer(np.arange(1, 7), np.linspace(0, 50, 4000))).astype(np.float32)
    model, y = nn.Linear(4000, 2), np.arange(6) % 2
    (note,) = adapt_model(model, expunge.from_arrays(clips, y)).notes
    assert note.startswith("the inputs look like sound; with sample_rate")
    assert adapt_model(model, expunge.from_arrays(clips, y, sample_rate=8000)).notes == ()
    other = np.random.default_rng(0).uniform(-1, 1, clips.shape).astype(np.float32)
    assert adapt_model(model, expunge.from_arrays(other, y)).notes == ()


class TwoParts(nn.Module):
    """Logits and features under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        features = self.body(x).relu()
        return {"a": features, "b": self.last(features)}


@pytest.mark.parametrize("wrap", [nn.Identity(), nn.DataParallel, torch.compile])
def test_units_are_cut_of_every_model_that_can_be_scored(wrap):
    _, x, y = two_classes()
    cut = expunge.prune(wrap(TwoParts()), expunge.PrunePlan({"body": (1,)}, 1), (x, y))
    assert cut.body.weight.shape == (7, 6)


# ------------------------------------------------------------------------------- refusals


def with_qconfig(model: nn.Module) -> nn.Module:
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig()
    return model


class WithoutForward(nn.Module):
    """As some Lightning modules, which call their network in the training step."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.net = nn.CrossEntropyLoss(), build(Mlp)


class Int8Tensor(torch.Tensor):
    """A tensor that is made of others, as torchao and DTensor make them."""

    def __tensor_flatten__(self):
        raise NotImplementedError


class DTensor(Int8Tensor):
    pass


def with_weight(kind: type[torch.Tensor]) -> nn.Module:
    model = build(Mlp)
    model.head.weight = nn.Parameter(model.head.weight.detach().as_subclass(kind))
    return model


REFUSED = {
    "of torchao": (lambda: with_weight(Int8Tensor), r"quantised: head.weight \(Int8Tensor\)"),
    "sharded": (
        lambda: with_weight(DTensor),
        r"distributed over processes .*: head.weight(?=.*full state dict)",
    ),
    "TorchScript": (lambda: torch.jit.trace(build(Mlp), inputs(Mlp)), "is TorchScript"),
    "a scripted part": (
        lambda: Holds(torch.jit.trace(build(Mlp), inputs(Mlp))),
        "is TorchScript",
    ),
    "quantised": (
        lambda: torch.ao.quantization.quantize_dynamic(build(Mlp), {nn.Linear}),
        "layers are quantised: ",
    ),
    "quantisation-aware": (
        lambda: torch.ao.quantization.prepare_qat(with_qconfig(build(Mlp).train())),
        "layers are quantised: ",
    ),
    "exported": (
        lambda: torch.export.export(build(Mlp), (inputs(Mlp),)).module(),
        "an exported program of torch.export",
    ),
    "no forward": (WithoutForward, r"(?=.*that it holds: \.net)"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "before their first batch: 0.weight"),
    "meta": (lambda: build(Mlp).to("meta"), "weights are not loaded"),
    "a class": (lambda: Mlp, "got the class Mlp"),
    "weights": (lambda: build(Mlp).state_dict(), "got OrderedDict"),
    "scikit-learn": (LogisticRegression, r"got LogisticRegression(?=.*expunge\.detect)"),
    "a wrapper that is no network": (
        lambda: SimpleNamespace(net=build(Mlp)),
        r"got SimpleNamespace(?=.*pass the network that it holds: \.net)",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quant:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("verb", ["score", "repair"])
def test_what_cannot_be_read_is_refused_with_a_way_out(name, verb):
    make, message = REFUSED[name]
    x = inputs(Mlp)
    data = x.numpy(), np.arange(len(x)) % 3
    with pytest.raises(ModelError, match=rf"(?s){message}.*fix: "):
        getattr(expunge, verb)(make(), data)


def test_a_model_that_fails_only_in_training_mode_is_refused_before_any_work():
    class Fails(Mlp):
        def forward(self, x, labels=None):
            if self.training and labels is None:
                raise ValueError("labels are needed")
            return super().forward(x)

    x = inputs(Mlp)
    data = x.numpy(), np.arange(len(x)) % 3
    assert check_fit(Fails(), expunge.from_arrays(*data)) is None
    with pytest.raises(ModelError, match="fails in training mode: ValueError: labels are needed"):
        expunge.repair(Fails(), data)


def test_an_output_of_losses_in_training_mode_is_refused():
    model = Auxiliary(lambda z, aux: {"loss": z.sum()})
    with pytest.raises(ModelError, match=r"in training mode: .*got dict with loss\n  fix: "):
        expunge.repair(model, (inputs(Mlp).numpy(), [0, 1, 2, 0]))


def test_a_model_without_gradients_is_refused_before_any_work():
    class Detached(Mlp):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    x = inputs(Mlp)
    with pytest.raises(ModelError, match=r"no gradient reaches a parameter"):
        check_training(Detached(), expunge.from_arrays(x.numpy(), np.arange(len(x)) % 3))


def test_a_model_that_does_not_load_its_own_state_is_refused_before_any_work():
    model = build(Mlp)
    model._register_state_dict_hook(lambda module, state, *_: state.__delitem__("head.bias"))
    x = inputs(Mlp)
    with pytest.raises(ModelError, match=r'own state dict: .*"head.bias".*\n  fix: its hooks'):
        check_training(model, expunge.from_arrays(x.numpy(), np.arange(len(x)) % 3))


class Auxiliary(Mlp):
    """What it returns in training and in evaluation mode is made of two heads."""

    def __init__(self, training, evaluation=lambda z, aux: z) -> None:
        super().__init__()
        self.aux = nn.Linear(6, 3)
        self.forms = evaluation, training

    def forward(self, x):
        x = nn.functional.dropout(x, 0.1, self.training)
        return self.forms[self.training](super().forward(x), self.aux(x))


@pytest.mark.parametrize(
    "forms",
    [
        (lambda z, aux: (z, aux),),
        (lambda z, aux: (aux, z),),
        (lambda z, aux: {"cache": object(), "deep": aux, "main": z},),
        (lambda z, aux: z.softmax(dim=1),),
        (lambda z, aux: z, lambda z, aux: z.softmax(dim=1)),
        (lambda z, aux: (aux, z), lambda z, aux: (z.softmax(dim=1), z)),
    ],
)
def test_what_a_model_returns_in_training_mode_is_tuned_as_its_logits(forms):
    x = inputs(Mlp)
    data = x.numpy(), np.arange(len(x)) % 3
    model, plain = build(lambda: Auxiliary(*forms)), build(lambda: Auxiliary(lambda z, aux: z))
    settings = {"targets": "all", "epochs": 1, "precision": "float32"}
    found, expected = (expunge.tune(m, data, **settings).state_dict() for m in (model, plain))
    assert_close(found, expected)
    assert not [k for k in vars(model) if k.startswith("_expunge")]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_outside_do_not_matter(mode):
    net, x, y = two_classes()
    expected = expunge.tune(net, (x, y), targets="all", epochs=1)
    with mode():
        found = expunge.tune(net, (x, y), targets="all", epochs=1)
    assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


# ------------------------------------------------------------------------------- constructors


def test_a_constructor_can_be_a_function_that_is_importable(tmp_path):
    from expunge.models import mlp

    model, x = mlp(inputs=6, classes=3), inputs(Mlp)
    data = x.numpy(), np.arange(len(x)) % 3
    arguments = {"inputs": 6, "classes": 3}
    exported = expunge.export_model(
        model, data, tmp_path / "out", constructor=mlp, arguments=arguments
    )
    assert exported.manifest.constructor == "expunge.models.zoo:mlp"
    with pytest.raises(ConfigError, match="__main__:Net cannot be imported by its name"):
        expunge.export_model(model, data, tmp_path / "main", constructor="__main__:Net")
    with pytest.raises(ConfigError, match=r"<lambda> cannot be imported by its name\n.*fix: put"):
        expunge.export_model(model, data, tmp_path / "b", constructor=lambda: model)


def test_an_export_knows_that_its_network_returns_probabilities(tmp_path):
    x = inputs(Mlp)
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1))
    exported = expunge.export_model(
        model, (x.numpy(), np.arange(len(x)) % 3), tmp_path / "out", constructor=_softmax_network
    )
    assert exported.manifest.output == "probabilities"
    again = expunge.load_exported_model(tmp_path / "out")
    assert_close(again(x).softmax(dim=1), model(x).detach())


def _softmax_network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1))


def test_a_constructor_can_be_a_class_method(tmp_path):
    (tmp_path / "loaded_network.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Linear):\n"
        "    @classmethod\n"
        "    def from_pretrained(cls, path):\n"
        "        return cls(len(path), 2)\n"
    )
    name = "loaded_network:Net.from_pretrained"
    model = construct(name, {"path": "four"}, folder=tmp_path, seed=0)
    assert model.in_features == 4
    assert ModelConfig(name).has_weights
    assert not ModelConfig("loaded_network:Net").has_weights
    with pytest.raises(ModelError, match=r"has no function 'Net\.from_file'"):
        construct("loaded_network:Net.from_file", {}, folder=tmp_path, seed=0)
