"""SimCLR: the loss, the distortions, and an encoder that has not looked at a label."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch import nn

from expunge._core.rng import temp_seed
from expunge.data import Preparation
from expunge.detection.neighbours import neighbour_votes
from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError, ModelError
from expunge.models.zoo import convnet
from expunge.selfsupervised.augmentation import SimCLRAugmentation, _blur, _Draw, _recolour
from expunge.selfsupervised.features import FeatureExtractor, extract_features
from expunge.selfsupervised.simclr import (
    SETTINGS,
    SimclrConfig,
    compatible_config,
    nt_xent,
    pretrain,
)
from expunge.stages import score
from oracles_digits import digits, network, noisy

QUICK = SimclrConfig(
    epochs=4, batch_size=64, hidden=32, projection=16, area=(0.5, 1.0), precision="float32"
)

DETECTORS = ("knn_disagreement", "lda_margin")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=6, channels=3, side=12):
    return torch.rand(n, channels, side, side, generator=draw(3))


def small_network(seed=0):
    with temp_seed(seed, "network"):
        return convnet(classes=10, channels=1, widths=(8, 16), hidden=24, convolutions=1)


# --------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0])
def test_nt_xent_is_the_slow_loop(temperature):
    a, b = torch.randn(5, 7, generator=draw()), torch.randn(5, 7, generator=draw(1))
    z = [v / v.norm() for v in torch.cat([a, b]).double()]
    total = 0.0
    for i in range(10):
        j = (i + 5) % 10
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(10) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[j]) / temperature) / others) / 10
    assert_allclose(nt_xent(a, b, temperature=temperature).item(), total, rtol=1e-5)


def test_nt_xent_of_equal_rows_is_that_of_chance_and_lengths_do_not_matter():
    same = torch.ones(4, 3)
    assert_allclose(nt_xent(same, 7 * same).item(), math.log(7), rtol=1e-6)
    a, b = torch.randn(4, 3, generator=draw()), torch.randn(4, 3, generator=draw(1))
    assert_allclose(nt_xent(a, b).item(), nt_xent(3 * a, b / 9).item(), rtol=1e-5)
    assert nt_xent(a, a) < nt_xent(a, b)


def test_nt_xent_refuses_rows_that_do_not_match():
    with pytest.raises(DataError, match=r"\(4, 3\) and \(3, 3\)"):
        nt_xent(torch.ones(4, 3), torch.ones(3, 3))
    with pytest.raises(DataError, match="two equal shapes"):
        nt_xent(torch.ones(0, 3), torch.ones(0, 3))


# ---------------------------------------------------------------------------- distortion


@pytest.mark.parametrize("channels", [1, 3])
def test_a_distortion_depends_on_the_generator_alone_and_leaves_its_input(channels):
    x, view = images(channels=channels), SimCLRAugmentation(blur=0.5)
    before = x.clone()
    first = view(x, draw(1))
    assert torch.equal(first, view(x, draw(1)))
    assert not torch.equal(first, view(x, draw(2)))
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert (first.min() >= 0, first.max() <= 1) == (True, True)
    # Every image has a view of its own.
    twins = view(x[:1].expand(6, -1, -1, -1), draw())
    assert all(not torch.equal(twins[0], other) for other in twins[1:])


def test_a_distortion_of_strength_none_mirrors_at_most():
    x = images(40, side=16)
    view = SimCLRAugmentation(strength=0.0, area=(1.0, 1.0), grey=0.0)
    # At the full area only the aspect is left, and that cuts; without colours a mirror of it.
    shown = view(torch.ones_like(x), draw())
    assert_allclose(shown.numpy(), 1.0, atol=1e-6)
    ramp = torch.linspace(0, 1, 16).expand(40, 3, 16, 16)
    slopes = view(ramp, draw()).diff(dim=3)[..., 1:-1]
    rising, falling = (slopes >= -1e-6).flatten(1).all(1), (slopes <= 1e-6).flatten(1).all(1)
    assert (rising ^ falling).all()
    assert 8 < falling.sum() < 32


def test_prepared_inputs_are_distorted_as_their_images_are():
    x, prepare = images(), Preparation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    plain = SimCLRAugmentation()(x, draw(5))
    prepared = replace(SimCLRAugmentation(), prepare=prepare)(prepare.standardise(x), draw(5))
    assert_allclose(prepare.undo(prepared).numpy(), plain.numpy(), atol=1e-5)


def test_colours_are_the_slow_formula():
    x, how = images(5), SimCLRAugmentation(strength=0.7, jitter=1.0, grey=0.3)
    found = _recolour(x, _Draw(5, draw(9), x.device), how)
    again = _Draw(5, draw(9), x.device)
    bright, contrast, saturate = (again.uniform(1 - 0.56, 1.56) for _ in range(3))
    turn = again.uniform(-0.14, 0.14)
    again.bernoulli(1.0)
    grey = again.bernoulli(0.3)
    assert grey.any()
    assert not grey.all()
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    for i in range(5):
        image = x[i].double().numpy() * float(bright[i])
        mean = (image * to_yiq[0][:, None, None]).sum(axis=0).mean()
        image = float(contrast[i]) * image + (1 - float(contrast[i])) * mean
        angle, factor = 2 * math.pi * float(turn[i]), 0.0 if grey[i] else float(saturate[i])
        for r in range(12):
            for c in range(12):
                y, u, v = to_yiq @ image[:, r, c]
                u, v = (
                    factor * (u * math.cos(angle) - v * math.sin(angle)),
                    factor * (u * math.sin(angle) + v * math.cos(angle)),
                )
                image[:, r, c] = np.linalg.solve(to_yiq, [y, u, v])
        assert_allclose(found[i].numpy(), image, atol=1e-5)


def test_grey_images_have_equal_channels_and_keep_their_luma():
    x = images()
    shown = _recolour(x, _Draw(6, draw(), x.device), SimCLRAugmentation(jitter=0.0, grey=1.0))
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert_allclose(shown.numpy(), luma.expand_as(x).numpy(), atol=1e-5)


def test_blur_is_a_gaussian_of_its_own_width():
    x = images(4, side=40)
    shown = _blur(x, _Draw(4, draw(2), x.device), 1.0)
    sigma = _Draw(4, draw(2), x.device).uniform(0.1, 2.0)
    for i in range(4):
        width = (0, float(sigma[i]), float(sigma[i]))
        slow = gaussian_filter(x[i].double().numpy(), width, mode="mirror", radius=(0, 2, 2))
        assert_allclose(shown[i].numpy(), slow, atol=1e-5)
    assert torch.equal(_blur(x, _Draw(4, draw(), x.device), 0.0), x)


def test_a_distortion_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="area"):
        SimCLRAugmentation(area=(0.5, 0.2))
    with pytest.raises(ConfigError, match="grey must lie"):
        SimCLRAugmentation(grey=1.5)
    with pytest.raises(DataError, match="1 or 3"):
        SimCLRAugmentation()(torch.rand(2, 4, 8, 8), draw())


# ---------------------------------------------------------------------------- pre-training


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_pre_training_looks_at_no_label_and_leaves_model_and_head_alone():
    model, data = small_network(), noisy(160)
    before = copy.deepcopy(model)
    first = pretrain(model, data, QUICK, seed=1).model
    other = replace(data, labels=np.roll(data.labels, 1))
    assert same(first, pretrain(model, other, QUICK, seed=1).model)
    assert not same(first, pretrain(model, data, QUICK, seed=2).model)
    assert same(model, before)
    assert torch.equal(first[-1].weight, before[-1].weight)  # the head
    assert not torch.equal(first[0].weight, before[0].weight)
    assert not first.training


def test_pre_training_brings_images_of_a_class_together():
    data, model = noisy(600, rate=0.0), small_network()
    longer = replace(QUICK, epochs=25)
    votes = [
        neighbour_votes(extract_features(m, data), data.labels, 10).argmax(1) == data.labels
        for m in (model, pretrain(model, data, longer, seed=0).model)
    ]
    assert votes[1].mean() > votes[0].mean() + 0.05


@pytest.mark.parametrize("epoch", [1, 3])
def test_interrupted_pre_training_goes_on_to_the_same_weights(tmp_path, epoch):
    model, data = small_network(), noisy(160)
    whole = pretrain(model, data, QUICK, seed=1).model

    class StopError(Exception):
        pass

    def stop(what, done, total):
        if done == epoch * total // QUICK.epochs + 1:
            raise StopError

    with pytest.raises(StopError):
        pretrain(model, data, QUICK, seed=1, out=tmp_path / "run", progress=stop)
    steps = []
    resumed = pretrain(
        model, data, QUICK, seed=1, out=tmp_path / "run", progress=lambda *a: steps.append(a[1])
    )
    assert len(steps) == (QUICK.epochs - epoch) * 2
    assert same(whole, resumed.model)
    again = pretrain(model, data, QUICK, seed=1, out=tmp_path / "run", progress=stop)
    assert same(whole, again.model)  # read, not made


def test_pre_training_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match=r"simclr\.temperature"):
        SimclrConfig(temperature=0.0)
    with pytest.raises(ConfigError, match=r"simclr\.batch_size"):
        SimclrConfig(batch_size=1)
    no_head = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(ModelError, match="no linear layer makes the logits"):
        pretrain(no_head, noisy(40), QUICK)
    with pytest.raises(ModelError, match="learning rate"):
        pretrain(small_network(), noisy(64), replace(QUICK, lr=1e20))


def test_named_settings_are_there():
    assert SETTINGS["published"].epochs == 1000
    assert SETTINGS["published"].scale == 1


def test_views_of_half_the_side_are_for_networks_that_take_any_size():
    half, data = replace(QUICK, scale=0.5), noisy(64)
    assert SimCLRAugmentation(scale=0.5)(images(), draw()).shape == (6, 3, 6, 6)
    assert compatible_config(half, small_network(), data) == half
    assert compatible_config(half, network(), data) == replace(half, scale=1.0)
    with pytest.raises(ModelError, match=r"0\.5 times the side"):
        pretrain(network(), data, half)


# ------------------------------------------------------------------------------ features


def test_features_are_the_input_of_the_head_whatever_the_batch():
    data, model = noisy(50), network()
    x = data.batch(np.arange(50))
    with torch.no_grad():
        wanted = model[:-1](x).numpy()
    assert_allclose(extract_features(model, data), wanted, atol=1e-6)
    pair = (data.inputs.batch(np.arange(len(data))).numpy(), data.labels)
    assert_allclose(extract_features(model, pair), wanted, atol=1e-6)
    with pytest.raises(DataError, match=r"features of the encoder is NaN or infinite for ids"):
        extract_features(lambda x: x.flatten(1) * float("nan"), data)
    assert_allclose(extract_features(model, data, batch_size=7), wanted, atol=1e-5)
    assert_allclose(extract_features(FeatureExtractor(model, x), data), wanted, atol=1e-6)
    assert_allclose(extract_features(lambda batch: batch.flatten(1), data), x.flatten(1).numpy())
    assert model.training  # as it was


def test_features_must_be_one_row_a_sample():
    with pytest.raises(DataError, match=r"expected features \[20, d\], got \[20, 1, 8, 8\]"):
        extract_features(lambda batch: batch, noisy(20))


# ------------------------------------------------------------- as evidence for a repair


def test_features_from_elsewhere_are_compared_as_the_models_own_are():
    data, model = noisy(200), network()
    right = np.eye(10, dtype=np.float32)[digits()[1][:200]]  # an encoder that knows the class
    more = replace(data, features={"other": right + 0.01})
    plain, both = (score(model, d, detectors=DETECTORS, views=0) for d in (data, more))
    wrong = data.labels != digits()[1][:200]
    for name in DETECTORS:
        found = [roc_auc_score(wrong, s.values[name]) for s in (plain, both)]
        assert found[1] > found[0], name
    signals = collect(model, more, needs=frozenset({"features"}))
    assert_allclose(signals.features["other"], more.features["other"])
    assert "other" not in collect(model, more).features  # not asked for


def test_features_belong_to_their_samples():
    data = noisy(40)
    more = replace(data, features={"a": np.arange(80.0).reshape(40, 2)})
    part = more.subset(np.array([3, 1]))
    assert_allclose(part.features["a"], [[6, 7], [2, 3]])
    assert more.fingerprint() != data.fingerprint()
    assert not more.features["a"].flags.writeable
    with pytest.raises(DataError, match=r"features 'a' have shape \(3, 2\), expected \(40, d\)"):
        replace(data, features={"a": np.ones((3, 2))})
    spoiled = np.ones((40, 2))
    spoiled[7] = np.nan
    with pytest.raises(DataError, match="NaN or infinite: ids 1007"):
        replace(data, features={"a": spoiled})
