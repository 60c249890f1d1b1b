"""The pass over the data against autograd, captum and slow loops."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import LayerGradientXActivation
from numpy.testing import assert_allclose
from torch import nn

from expunge.data import LazyInputs, Samples, audio_views, from_arrays
from expunge.data.views import crop, flip, scoring_view
from expunge.detection.gradients import attribute, gradient_closed, label_direction, runner_up
from expunge.detection.pooling import default_feature_layers, pool
from expunge.detection.signals import collect as collect_signals
from expunge.errors import ModelError
from expunge.models.calls import capture_outputs
from expunge.models.inspection import inspect_layers
from expunge.models.zoo import convnet, mlp, resnet
from models.test_inspection import InPlaceFunctions, SharedRelu, hooks_of
from oracles_models import Mlp, ResidualNet, SignalNet, build, inputs

ALL = frozenset(
    {"attribution", "attribution_mass", "attributions", "head_input_norm", "features", "views"}
)
# What "auto" chooses depends on the processor.
collect = partial(collect_signals, precision="float32")


def close(actual, expected, rtol=1e-4, atol=1e-5):
    actual, expected = (
        v.detach().numpy() if isinstance(v, torch.Tensor) else v for v in (actual, expected)
    )
    assert_allclose(actual, expected, rtol=rtol, atol=atol)


def network(kind, seed=0):
    """A network whose batch norms shift and scale, and inputs that it takes."""
    makers = {
        "mlp": (lambda: mlp(inputs=6, classes=3, hidden=8), (6,), ("1", "2", "3", "4", "5")),
        "convnet": (
            lambda: convnet(classes=3, channels=2, widths=(4, 6), hidden=7, convolutions=1),
            (2, 8, 8),
            ("9", "10", "11"),
        ),
    }
    make, shape, tail = makers[kind]
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(seed))
    model = build(make, seed)
    with torch.no_grad():
        model[-1].weight *= 10
    return model, x, tail


def samples(x, y=None, *, view="none", ids=None, classes=3) -> Samples:
    n = len(x)
    y = np.random.default_rng(0).integers(0, classes, n) if y is None else y
    return from_arrays(x, y, ids=ids, classes=[str(k) for k in range(classes)], view=view)


def signals_equal(a, b, **tolerance):
    close(a.logits, b.logits, **tolerance)
    for name in a.per_sample:
        close(a.per_sample[name], b.per_sample[name], **tolerance)
    for name in a.features:
        close(a.features[name], b.features[name], **tolerance)
    for name in ("attributions", "augmented_probs", "augmented_loss"):
        close(getattr(a, name), getattr(b, name), **tolerance)


# ------------------------------------------------------------------------------- attribution


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_closed_form_autograd_and_captum_agree_at_every_layer_of_the_tail(kind):
    model, x, tail = network(kind)
    layout = inspect_layers(model, x[:2])
    assert layout.tail == tail
    given = torch.arange(20) % 3
    rival = runner_up(model(x).detach(), given)
    direction = label_direction(given, rival, 3)
    captum_gxa = {}
    for layer in tail[:-1]:
        h, gradient = attribute(model, x, direction, layers=(layer,))[layer]
        behind = tail[tail.index(layer) + 1 :]
        close(gradient_closed(model, h, direction, tail=behind), gradient)
        explain = LayerGradientXActivation(model, dict(model.named_modules())[layer])
        captum_gxa[layer] = explain.attribute(x, target=given) - explain.attribute(x, target=rival)
        close((h * gradient), captum_gxa[layer].detach())
    needs = frozenset({"attribution"})
    made = collect(model, samples(x, given.numpy()), needs=needs, attribution_layer=tail[-2])
    close(made.per_sample["attribution"], captum_gxa[tail[-2]].sum(dim=1))


@pytest.mark.parametrize("layer", ["0", "2", "6"])
def test_autograd_agrees_with_captum_at_convolutions(layer):
    model, x, _ = network("convnet")
    data = samples(x)
    given = torch.from_numpy(data.labels.copy())
    rival = runner_up(model(x).detach(), given)
    explain = LayerGradientXActivation(model, model[int(layer)])
    gxa = explain.attribute(x, target=given) - explain.attribute(x, target=rival)
    made = collect(model, data, needs=frozenset({"attribution"}), attribution_layer=layer)
    close(made.per_sample["attribution"], gxa.flatten(1).sum(1))


def test_attribution_at_every_layer_agrees_with_captum():
    model, x, _ = network("convnet")
    data = samples(x)
    given = torch.from_numpy(data.labels.copy())
    logits = model(x).detach()
    rival, predicted = runner_up(logits, given), logits.argmax(dim=1)
    made = collect(model, data, needs=frozenset({"layerwise_attribution", "attribution_features"}))
    assert made.features == {}
    assert list(made.attribution_features) == ["2", "6", "10"]
    for layer in made.attribution_features:
        explain = LayerGradientXActivation(model, model[int(layer)])
        by_class = torch.stack([explain.attribute(x, target=c).detach() for c in range(3)])
        rows = torch.arange(len(x))
        gxa = by_class[given, rows] - by_class[rival, rows]
        close(made.per_sample[f"attribution.{layer}"], gxa.flatten(1).sum(1))
        free = by_class[predicted, rows] - by_class.mean(dim=0)
        close(made.attribution_features[layer], pool(free, unit=1, max_part_means=5))


@pytest.mark.parametrize("layer", ["fc1", "fc2"])
@pytest.mark.parametrize("kind", [SharedRelu, InPlaceFunctions])
def test_functions_in_place_and_shared_layers_do_not_mislead_the_attribution(kind, layer):
    model = build(kind)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.head)
    at = {"fc1": "0", "fc2": "2"}[layer]
    needs = frozenset({"attribution", "attribution_mass"})
    made, expected = (
        collect(model, samples(x), needs=needs, attribution_layer=layer),
        collect(plain, samples(x), needs=needs, attribution_layer=at),
    )
    close(made.per_sample["attribution"], expected.per_sample["attribution"])
    close(made.per_sample["attribution_mass"], expected.per_sample["attribution_mass"])


def test_at_the_head_the_attribution_is_the_margin_without_the_bias():
    model, x, _ = network("mlp")
    data = samples(x)
    z = (model(x) - model[-1].bias).detach().numpy()
    full = model(x).detach()
    given = torch.from_numpy(data.labels.copy())
    rival = runner_up(full, given).numpy()
    rows = np.arange(len(z))
    made = collect(model, data, needs=frozenset({"attribution"}))
    close(made.per_sample["attribution"], z[rows, data.labels] - z[rows, rival])


@pytest.mark.parametrize(("kind", "layer"), [("mlp", ""), ("mlp", "2"), ("convnet", "9")])
@pytest.mark.parametrize("way", ["closed", "autograd"])
def test_mass_agrees_with_a_slow_loop_over_samples_and_classes(kind, layer, way):
    model, x, tail = network(kind)
    if way == "autograd":
        # The same function, whose last layers are not found to be linear.
        model = nn.Sequential(
            *[m if i != len(model) - 2 else nn.LeakyReLU(0.0) for i, m in enumerate(model)]
        )
        if layer == "":
            layer = tail[-2]
    expected, vectors = [], []
    name = layer or tail[-2]
    for row in x:
        with capture_outputs(model, (name,), differentiable=True) as found:
            z = model(row[None])[0]
        g = [torch.autograd.grad(z[c], found[name], retain_graph=True)[0] for c in range(3)]
        vectors.append((found[name] * torch.stack(g).max(dim=0).values).abs().flatten().detach())
        expected.append(float(vectors[-1].sum()))
    made = collect(
        model,
        samples(x),
        needs=frozenset({"attribution_mass", "attributions"}),
        attribution_layer=layer,
    )
    close(made.per_sample["attribution_mass"], np.array(expected))
    close(made.attributions, torch.stack(vectors).numpy())


def test_the_best_other_class_is_never_the_given_one():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0]])
    assert runner_up(logits, torch.tensor([0, 0, 0])).tolist() == [1, 1, 1]
    assert runner_up(logits, torch.tensor([2, 1, 1])).tolist() == [0, 0, 2]
    direction = label_direction(torch.tensor([0]), torch.tensor([2]), 3)
    assert direction.tolist() == [[1.0, 0.0, -1.0]]


# ------------------------------------------------------------------------------- other parts


def test_logits_and_the_norm_of_the_heads_input_are_the_models():
    model, x, _ = network("convnet")
    made = collect(model, samples(x), needs=frozenset({"head_input_norm"}))
    close(made.logits, model(x))
    close(made.per_sample["head_input_norm"], model[:-1](x).detach().double().norm(dim=1).numpy())
    assert (made.features, made.augmented_probs, made.attributions) == ({}, None, None)


def by_parts(y, parts):
    """Means of an image's parts and deviations over all of it, part by part."""
    means = [
        torch.stack([p.mean(dim=(2, 3)) for p in row.chunk(parts, dim=3)], dim=2)
        for row in y.chunk(parts, dim=2)
    ]
    spread = y.flatten(2).std(dim=2, correction=0)
    return torch.cat([torch.stack(means, dim=2).flatten(1), spread], dim=1)


def test_images_are_pooled_over_space():
    model, x, _ = network("convnet")
    made = collect(model, samples(x), needs=frozenset({"features"}))
    assert list(made.features) == ["2", "6", "10"]
    close(made.features["2"], by_parts(model[:3](x), 1))
    close(made.features["6"], by_parts(model[:7](x), 1))
    close(made.features["10"], model[:11](x))


@pytest.mark.parametrize(("units", "parts"), [(32, 4), (33, 2), (128, 2), (129, 1)])
def test_wide_layers_are_pooled_in_fewer_parts(units, parts):
    y = torch.randn(2, units, 8, 8, generator=torch.Generator().manual_seed(0))
    close(pool(y, unit=1), by_parts(y, parts))


@pytest.mark.parametrize(("n", "parts"), [(256, 4), (255, 2), (64, 2), (63, 1)])
def test_few_samples_are_pooled_in_fewer_parts(n, parts):
    model, x, _ = network("convnet")
    many = x[torch.arange(n) % len(x)]
    made = collect(model, samples(many), needs=frozenset({"features"}))
    close(made.features["2"][: len(x)], by_parts(model[:3](x), parts))


def test_signals_in_time_are_pooled_over_time_whatever_the_layer():
    model, x = build(SignalNet), inputs(SignalNet)
    made = collect(model, samples(x, [0, 1, 2, 0]), needs=frozenset({"features"}))
    first = model.conv1(x)
    moments = lambda y, dim: torch.cat([y.mean(dim), y.std(dim, correction=0)], 1)  # noqa: E731
    close(made.features["conv1"], moments(first, 2))

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(2, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.relu(self.mix(x.transpose(1, 2))).mean(dim=1))

    tokens = Tokens()
    made = collect(tokens, samples(x, [0, 1, 2, 0]), needs=frozenset({"features"}))
    close(made.features["mix"], moments(tokens.mix(x.transpose(1, 2)), 1))


def test_named_layers_are_taken_also_inside_and_of_blocks():
    model = build(lambda: resnet(classes=3, channels=2, widths=(4, 6), blocks=(1, 1)))
    x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = ("stages.0.0", "stages.0.0.conv1")
    made = collect(model, samples(x), needs=frozenset({"features"}), feature_layers=layers)
    stem = model.stem(x)
    block = model.stages[0][0]
    assert tuple(made.features) == layers
    close(made.features["stages.0.0"], by_parts(block(stem), 1))
    close(made.features["stages.0.0.conv1"], by_parts(block.conv1(stem), 1))


@pytest.mark.parametrize(("n", "expected"), [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (11, None)])
def test_default_feature_layers_are_spread_over_the_depth_and_hold_the_last(n, expected):
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(n + 1)])
    layout = inspect_layers(model, torch.randn(2, 3))
    chosen = [int(name) for name in default_feature_layers(layout)]
    assert chosen == (expected or [0, 2, 4, 6, 8, 10])


def test_default_feature_layers_are_the_outputs_of_blocks():
    model = build(lambda: resnet(classes=3, channels=2, widths=(4, 6), blocks=(1, 2)))
    layout = inspect_layers(model, torch.randn(2, 2, 8, 8))
    assert default_feature_layers(layout) == ("stem.2", "stages.0.0", "stages.1.0", "stages.1.1")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.last = model, nn.Linear(3, 3)

        def forward(self, x):
            return self.last(self.net(x) * 2)

    inner = ("net.stem.2", "net.stages.0.0", "net.stages.1.0", "net.stages.1.1")
    layout = inspect_layers(Wrapped(), torch.randn(2, 2, 8, 8))
    assert default_feature_layers(layout) == (*inner, "net.head")


def test_views_without_a_random_view_are_the_plain_predictions():
    model, x, _ = network("mlp")
    data = samples(x)
    made = collect(model, data, needs=frozenset({"views"}), views=3)
    z = model(x).detach()
    close(made.augmented_probs, z.softmax(dim=1).numpy())
    loss = nn.functional.cross_entropy(z, torch.from_numpy(data.labels.copy()), reduction="none")
    close(made.augmented_loss, loss.numpy())


def test_views_are_counted_only_if_they_were_made():
    model, x, _ = network("convnet")
    data = samples(x, view="flip")
    for needs, views in ((frozenset(), 0), (frozenset({"features"}), 2), (frozenset({"views"}), 2)):
        assert collect(model, data, needs=needs, views=2).views == views
    assert collect(model, samples(x), needs=frozenset({"views"}), views=2).views == 0


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((3, 8, 8), {}, crop),
        ((1, 9, 8), {}, crop),
        ((3, 8, 7), {}, None),
        ((2, 8, 8), {}, None),
        ((5,), {}, None),
        ((160,), {"sample_rate": 16_000}, audio_views.speech),
        ((3, 8, 8), {"view": "flip"}, flip),
    ],
)
def test_images_and_sound_are_scored_under_small_changes_and_other_inputs_as_they_are(
    shape, options, expected
):
    x = np.random.default_rng(0).standard_normal((12, *shape)).astype(np.float32)
    data = from_arrays(x, np.arange(12) % 3, **options)
    assert scoring_view(data, data.example()) is expected
    model = mlp(inputs=int(np.prod(shape)), classes=3, hidden=4)
    made = collect_signals(model, data, needs=frozenset({"views"}), views=2)
    assert made.views == (0 if expected is None else 2)
    plain = collect_signals(model, data, needs=frozenset({"views"}), views=0)
    assert np.array_equal(plain.augmented_probs, made.augmented_probs) == (expected is None)


def test_views_are_averaged_over_flipped_and_plain_images():
    model, x, _ = network("convnet")
    data = samples(x, view="flip")
    y = torch.from_numpy(data.labels.copy())
    made = collect(model, data, needs=frozenset({"views"}), views=4)
    plain, flipped = model(x).softmax(1).detach(), model(x.flip(3)).softmax(1).detach()
    # Each mean lies on one of five points between the two predictions.
    share = (made.augmented_probs - flipped.numpy())[:, 0] / (plain - flipped).numpy()[:, 0]
    counts = (4 * share).round()
    close(4 * share, counts, atol=1e-2, rtol=0)
    assert set(counts) <= {0, 1, 2, 3, 4}
    assert len(set(counts)) >= 3
    f, rows = torch.from_numpy(counts / 4), torch.arange(len(x))
    loss = -(f * plain[rows, y].log() + (1 - f) * flipped[rows, y].log())
    close(made.augmented_loss, loss.numpy(), atol=1e-4)


# ------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_signals_do_not_depend_on_batch_size(kind):
    model, _, _ = network(kind)
    shape = (6,) if kind == "mlp" else (2, 8, 8)
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    data = samples(x, view="none" if kind == "mlp" else "crop-flip")
    whole = collect(model, data, needs=ALL, views=2, batch_size=1000)
    for size in (1, 64, 130):
        signals_equal(
            collect(model, data, needs=ALL, views=2, batch_size=size), whole, rtol=1e-4, atol=1e-5
        )


def test_signals_follow_the_samples_whatever_their_order():
    model, x, _ = network("convnet")
    order = np.random.default_rng(1).permutation(len(x))
    data = samples(x, ids=np.arange(len(x)) * 7)
    made = collect(model, data, needs=ALL - {"views"})
    mixed = collect(model, data.subset(order), needs=ALL - {"views"})
    assert (mixed.ids == made.ids[order]).all()
    close(mixed.logits, made.logits[order])
    close(mixed.attributions, made.attributions[order])
    for name in made.per_sample:
        close(mixed.per_sample[name], made.per_sample[name][order])
    for name in made.features:
        close(mixed.features[name], made.features[name][order])


def test_signals_depend_on_the_seed_only():
    model, x, _ = network("convnet")
    data = samples(x, view="crop-flip")
    first = collect(model, data, needs=ALL, seed=1)
    torch.rand(5)
    np.random.default_rng().random(3)
    signals_equal(collect(model, data, needs=ALL, seed=1), first, rtol=0, atol=0)
    other = collect(model, data, needs=ALL, seed=2)
    assert abs(other.augmented_probs - first.augmented_probs).max() > 1e-3
    assert (other.logits == first.logits).all()


@pytest.mark.parametrize("layer", ["", "2"])
def test_the_model_the_data_and_the_random_state_are_left_as_found(layer):
    model, x, _ = network("convnet")
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    data, stored = samples(x, view="crop-flip"), x.clone()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    collect(model, data, needs=ALL, attribution_layer=layer)
    assert modes == [m.training for m in model.modules()]
    assert wanted == [p.requires_grad for p in model.parameters()]
    assert not hooks_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, stored)
    assert torch.is_grad_enabled()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        expected = torch.ones_like(parameter) if name == "4.weight" else None
        assert parameter.grad is expected or torch.equal(parameter.grad, expected), name


def test_progress_ends_with_all_samples():
    model, x, _ = network("mlp")
    seen = []
    collect(model, samples(x.repeat(8, 1)), batch_size=64, progress=lambda *a: seen.append(a))
    assert seen == [("score", 64, 160), ("score", 128, 160), ("score", 160, 160)]


# ------------------------------------------------------------------------------- errors, models


def test_logits_that_are_not_finite_name_their_samples():
    class Diverging(Mlp):
        def forward(self, x):
            return super().forward(x) / (x[:, :1] != 0)

    x = inputs(Mlp)
    x[2, 0] = 0
    with pytest.raises(ModelError, match=r"logits are NaN or infinite for ids c\n.*float32"):
        collect(build(Diverging), samples(x, [0, 1, 2, 0], ids=["a", "b", "c", "d"]))


def test_the_number_of_classes_has_to_fit():
    with pytest.raises(
        ModelError,
        match=r"gives 3 logits, the data have 4 classes, .* '1' \(1\), .*, '0' \(2\)\n"
        ".*use a model with 4 outputs",
    ):
        collect(build(Mlp), samples(inputs(Mlp)[[0, 0, 1, 2, 3]], [0, 0, 1, 2, 3], classes=4))


def test_weights_alone_are_no_network():
    with pytest.raises(
        ModelError, match=r"expected a torch.nn.Module, got OrderedDict\n.*load_state_dict"
    ):
        collect(build(Mlp).state_dict(), samples(inputs(Mlp), [0, 1, 2, 0]))


def test_without_a_head_a_layer_has_to_be_named():
    class Scaled(Mlp):
        def forward(self, x):
            return super().forward(x) / 2

    model, data = build(Scaled), samples(inputs(Mlp), [0, 1, 2, 0])
    with pytest.raises(ModelError, match=r"last hidden layer is not known\n.*name a layer"):
        collect(model, data, needs=frozenset({"attribution"}))
    named = collect(model, data, needs=frozenset({"attribution"}), attribution_layer="hidden2")
    plain = build(Mlp)
    expected = collect(plain, data, needs=frozenset({"attribution"}), attribution_layer="hidden2")
    close(named.per_sample["attribution"], expected.per_sample["attribution"] / 2)
    assert collect(model, data, needs=frozenset({"views"})).augmented_loss is not None


def test_an_unknown_layer_is_an_error_with_the_closest_one():
    data = samples(inputs(Mlp), [0, 1, 2, 0])
    for layer, needs in (
        ({"attribution_layer": "hiden2"}, {"attribution"}),
        ({"feature_layers": ("hiden2",)}, {"features"}),
    ):
        with pytest.raises(ModelError, match="did you mean 'hidden2'"):
            collect(build(Mlp), data, needs=frozenset(needs), **layer)


def test_dictionaries_of_inputs_work_for_every_signal():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Mlp()

        def forward(self, values, mask):
            return {"logits": self.net(values * mask)}

    x, model = inputs(Mlp, n=9), build(Reads)
    mask = (torch.arange(6) % 2).float()
    lazy = LazyInputs(9, lambda i: {"values": x[i], "mask": mask}, "content")
    y = np.arange(9) % 3
    data = Samples(np.arange(9), y, ("a", "b", "c"), lazy)
    made = collect(model, data, needs=ALL)
    expected = collect(model.net, samples(x * mask, y), needs=ALL)
    assert list(made.features) == ["net.hidden1", "net.hidden2"]
    close(made.features["net.hidden2"], expected.features["hidden2"])
    close(made.logits, expected.logits)
    close(made.augmented_probs, expected.augmented_probs)
    for name in expected.per_sample:
        close(made.per_sample[name], expected.per_sample[name])


def test_residual_networks_give_every_signal():
    model = build(ResidualNet)
    made = collect(model, samples(inputs(ResidualNet, n=6)), needs=ALL)
    assert set(made.per_sample) == {"attribution", "attribution_mass", "head_input_norm"}
    assert made.attributions.shape == (6, 6)
    assert len(made.features) == 5
