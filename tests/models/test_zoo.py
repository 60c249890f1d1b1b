"""Networks for speech: sound in, logits out, and what surgery makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge._core.rng import temp_seed
from expunge.data import from_arrays
from expunge.detection.pooling import default_feature_layers
from expunge.detection.signals import collect
from expunge.errors import ConfigError, PruneError
from expunge.models.audio import LogMel
from expunge.models.inspection import inspect_layers
from expunge.models.zoo import kws, resnet, rlap_speech
from expunge.pruning import surgery
from expunge.records import PrunePlan
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets

SMALL = {"classes": 3, "sample_rate": 8000, "n_mels": 20, "widths": (8, 12, 12), "strides": (2, 1)}


def sound(b: int = 4, samples: int = 4000) -> Tensor:
    return 0.1 * torch.randn(b, samples, generator=torch.Generator().manual_seed(0))


def warmed(model: nn.Module, x: Tensor) -> nn.Module:
    """With batch-norm averages that are not those of the constructor."""
    with torch.no_grad(), temp_seed(1, "masks"):
        for _ in range(20):
            model.train()(x)
    return model.eval()


def small(**more: object) -> nn.Module:
    with temp_seed(0, "network"):
        return warmed(kws(**{**SMALL, **more}), sound())


class Recurrent(nn.Module):
    """Two convolutions over a log-mel spectrogram, a GRU over time, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = LogMel(sample_rate=8000, n_mels=20)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.gru = nn.GRU(60, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(torch.relu(self.stem(self.features(x))))))
        return self.head(self.gru(x.flatten(1, 2).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize(
    ("model", "weights"), [(kws(), 27_662), (kws(classes=35, sample_rate=8000), 29_893)]
)
def test_the_networks_take_sound_of_any_length_and_are_small(model, weights):
    assert surgery.size(model.eval(), sound()).parameters == weights < 200_000
    for samples in (400, 8000, 24_000):
        logits = model(sound(2, samples))
        assert logits.shape == (2, model[-1].out_features)
        assert torch.isfinite(logits).all()


def test_stages_of_a_residual_network_that_do_not_match_are_refused():
    with pytest.raises(ConfigError, match=r"widths \(8,\) and blocks \(1, 1\)"):
        resnet(classes=2, widths=[8], blocks=[1, 1])


def test_the_published_network_has_its_layers():
    model = rlap_speech().eval()
    shapes = [tuple(p.shape) for p in model.parameters()]
    convolution = [(64, 1, 3, 3), (64,), (64,), (64,)]
    assert shapes == [*convolution, (128, 256), (128,), (10, 128), (10,)]
    features = model[0](sound(2, 16_000))
    assert features.shape == (2, 1, 40, 32)
    bare = rlap_speech(features=False).eval()
    bare.load_state_dict(model.state_dict())
    torch.testing.assert_close(bare(features), model(sound(2, 16_000)))


def test_a_network_is_exported_with_its_features_for_any_batch():
    model, size = small(), torch.export.Dim("b", min=1, max=64)
    exported = torch.export.export(model, (sound(),), dynamic_shapes=({0: size},)).module()
    for b in (1, 3, 40):
        torch.testing.assert_close(exported(sound(b)), model(sound(b)), atol=1e-4, rtol=1e-4)


def test_masks_act_in_training_alone():
    model, x = small(), sound()
    assert torch.equal(model(x), model(x))
    plain = small(n_masks=0).train()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(x), plain(x))
        with temp_seed(0, "masks"):
            assert not torch.equal(model.train()(x), plain(x))


def test_stages_and_head_are_found():
    model, x = small(), sound()
    layout = inspect_layers(model, x)
    assert layout.head == str(len(model) - 1)
    assert len(default_feature_layers(layout)) >= 4
    assert layout.readouts["6.0"] == "6.2"  # depthwise: its own batch norm and ReLU follow


def test_sound_has_signals_and_its_views_are_used():
    rng = np.random.default_rng(0)
    x = (3000 * rng.standard_normal((90, 1600))).astype(np.int16)
    samples = from_arrays(x, np.arange(90) % 3, sample_rate=8000, view="speech")
    needs = frozenset(
        {"features", "views", "attribution", "layerwise_attribution", "attribution_mass"}
    )
    found = collect(small(), samples, needs=needs, views=2)
    assert found.views == 2
    assert found.logits.shape == (90, 3)
    again = collect(small(), samples, needs=needs, views=2, batch_size=64)
    np.testing.assert_allclose(found.augmented_loss, again.augmented_loss, rtol=1e-3)


def test_units_of_separable_convolutions_are_really_removed():
    model, x = small(), sound()
    units = {"3": (0, 5), "6.3": (1, 2, 7), "7.3": (0, 11)}
    plan = PrunePlan(units=units, requested=7)
    pruned = surgery.prune(model, plan, x)
    with surgery.mask(model, plan, x) as handle:
        assert handle.at_output == ()
        expected = model(x)
    torch.testing.assert_close(pruned(x), expected, atol=1e-5, rtol=1e-4)
    before, after = surgery.size(model, x), surgery.size(pruned, x)
    assert after.parameters < 0.8 * before.parameters
    assert after.macs < before.macs
    # The depthwise convolution and the batch norms go along.
    assert (pruned[6][0].groups, pruned[6][1].num_features, pruned[4].num_features) == (6, 6, 6)
    assert (pruned[8].groups, pruned[-1].in_features) == (10, 10)


def test_every_pointwise_layer_can_be_cut_and_no_depthwise_one():
    assert surgery.prunable(small(), sound()) == ["3", "6.3", "7.3"]
    assert surgery.prunable(rlap_speech().eval(), sound(2, 16_000)) == ["1", "7"]
    plan = PrunePlan(units={"6.0": (0,)}, requested=1)
    with pytest.raises(PruneError, match="depthwise convolutions follow what they read"):
        surgery.prune(small(), plan, sound())


def test_units_before_a_gru_are_not_removed_but_can_be_masked():
    with temp_seed(0, "network"):
        model = warmed(Recurrent(), sound())
    x = sound()
    plan = PrunePlan(units={"conv": (1, 4)}, requested=2)
    assert surgery.prunable(model, x) == ["stem"]
    with pytest.raises(PruneError, match=r"go into .gru. \(GRU\), which is recurrent") as error:
        surgery.prune(model, plan, x)
    assert 'mode = "mask"' in str(error.value)
    before = model(x)
    with surgery.mask(model, plan, x) as handle:
        assert handle.at_output == ("conv",)
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)


def test_a_network_learns_three_tones():
    t, rng = np.arange(2000) / 8000, np.random.default_rng(0)
    y = np.arange(180) % 3
    tones = np.sin(2 * np.pi * np.array([400, 900, 2000])[y][:, None] * t)
    x = (6000 * tones + 2000 * rng.standard_normal((180, 2000))).astype(np.int16)
    samples = from_arrays(x, y, sample_rate=8000, view="speech")
    with temp_seed(0, "network"):
        model = kws(**SMALL)
    config = TuneConfig(epochs=6, batch_size=20, lr=0.1, precision="float32")
    trained = tune(model, samples, build_targets(samples, None, config), config, seed=0)
    predicted = trained(samples.batch(np.arange(180))).argmax(dim=1).numpy()
    assert (predicted == y).mean() > 0.95
