"""Log-mel spectrogram, MFCC and masks against slow forms of them."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch

from expunge._core.rng import temp_seed
from expunge.errors import ConfigError, ModelError
from expunge.models import audio
from expunge.models.audio import MFCC, LogMel, SpecAugment, mel_bands
from oracles_audio import bands, log_mel, mfcc

SETTINGS = {
    "htk": {"sample_rate": 8000, "n_mels": 20},
    "slaney": {
        "sample_rate": 8000,
        "n_mels": 24,
        "mel_scale": "slaney",
        "area_norm": True,
        "f_min": 0.0,
    },
    "decibels": {"sample_rate": 8000, "n_mels": 20, "unit": "decibel", "top_db": 30.0},
    "nat-span": {"sample_rate": 8000, "n_mels": 20, "top_db": 30.0, "floor": 1e-4},
    "odd": {"sample_rate": 11025, "n_mels": 16, "window": 0.0213, "hop": 0.0077, "f_max": 4000.0},
}


def clips(n: int = 3, samples: int = 1200) -> torch.Tensor:
    x = torch.randn(n, samples, generator=torch.Generator().manual_seed(0))
    return 0.2 * x * torch.linspace(0.001, 1, samples)


def slow(x: np.ndarray, settings: dict) -> np.ndarray:
    rate = settings["sample_rate"]
    return log_mel(
        x.astype(np.float64),
        rate=rate,
        length=round(settings.get("window", 0.03) * rate),
        hop=round(settings.get("hop", 0.01) * rate),
        mels=settings["n_mels"],
        low=settings.get("f_min", 20.0),
        high=settings.get("f_max", rate / 2),
        scale=settings.get("mel_scale", "htk"),
        area=settings.get("area_norm", False),
        decibels=settings.get("unit") == "decibel",
        floor=settings.get("floor", 1e-10),
        span=settings.get("top_db"),
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_log_mel_is_that_of_the_slow_form(name):
    x, settings = clips(), SETTINGS[name]
    got = LogMel(**settings)(x)
    expected = np.stack([slow(clip, settings) for clip in x.numpy()])[:, None]
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), atol=2e-3, rtol=1e-4)


def test_mfcc_is_the_cosine_transform_of_the_slow_form():
    x, settings = clips(), SETTINGS["decibels"]
    got = MFCC(n_mfcc=13, spectrogram=LogMel(**settings))(x)
    expected = np.stack([mfcc(slow(clip, settings), 13) for clip in x.numpy()])[:, None]
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), atol=5e-3, rtol=1e-4)


def test_both_are_those_of_transformers_audio_utils():
    other = pytest.importorskip("transformers.audio_utils")
    x = clips(1, 16_000)[0].numpy()
    filters = other.mel_filter_bank(
        1025, 128, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney"
    )
    expected = other.spectrogram(
        x.astype(np.float64),
        other.window_function(2048, "hann"),
        2048,
        512,
        power=2.0,
        pad_mode="constant",
        mel_filters=filters,
        mel_floor=1e-10,
        log_mel="dB",
        db_range=80.0,
    )
    got = MFCC().spectrogram(torch.from_numpy(x)[None])[0, 0]
    torch.testing.assert_close(got, torch.from_numpy(expected).float(), atol=2e-3, rtol=1e-4)
    expected = mfcc(expected, 40)
    got = MFCC()(torch.from_numpy(x)[None])[0, 0]
    torch.testing.assert_close(got, torch.from_numpy(expected).float(), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("area", [False, True])
def test_mel_bands_are_triangles_on_the_mel_scale(scale, area):
    kwargs = {"sample_rate": 16_000, "n_fft": 512, "n_mels": 32, "f_min": 20.0, "f_max": 7600.0}
    got = mel_bands(**kwargs, mel_scale=scale, area_norm=area)
    expected = torch.from_numpy(bands(*kwargs.values(), scale, area))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_tone_is_loudest_in_the_band_around_it():
    t = torch.arange(16_000) / 16_000
    bank = mel_bands(sample_rate=16_000, n_fft=512, n_mels=40, f_min=20.0, f_max=8000.0)
    for band in (15, 25, 35):
        hertz = float(bank[band].argmax()) * 16_000 / 512
        y = LogMel()(torch.sin(2 * math.pi * hertz * t)[None])[0, 0, :, 50]
        assert y.argmax() == band


def test_features_do_not_depend_on_the_batch_nor_on_autocast():
    x, layer = clips(40), MFCC(spectrogram=LogMel(sample_rate=8000), n_mfcc=13)
    whole = layer(x)
    torch.testing.assert_close(whole[17:18], layer(x[17:18]), atol=1e-4, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), whole)


def test_features_have_gradients_and_nothing_to_save():
    x = clips(2).requires_grad_()
    layer = MFCC(spectrogram=LogMel(sample_rate=8000), n_mfcc=13)
    layer(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert layer.state_dict() == {}
    assert list(layer.parameters()) == []


def test_layers_of_other_settings_look_different():
    kinds = [
        LogMel(),
        LogMel(f_min=0.0),
        LogMel(area_norm=True),
        LogMel(window=0.025),
        LogMel(floor=1e-6),
    ]
    assert len({repr(k) for k in kinds}) == len(kinds)


def test_silence_and_the_shortest_clip_are_finite():
    for n in (1, 7, 1600):
        y = LogMel()(torch.zeros(2, n))
        assert torch.isfinite(y).all()
        assert y.shape == (2, 1, 40, 1 + n // 160)


def test_audio_of_another_shape_is_refused():
    with pytest.raises(
        ModelError, match=r"expected audio of shape \[b, samples\], got \(2, 1, 9\)"
    ):
        LogMel()(torch.zeros(2, 1, 9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 0}, "sample_rate must be 1 or more, not 0"),
        ({"n_mels": 0}, "n_mels must be 1 or more, not 0"),
        ({"window": 0.0}, "a window of 0 samples with a hop of 160 is too short"),
        ({"hop": 0.0}, "with a hop of 0"),
        ({"f_max": 9000.0}, r"must lie in 0…8000 Hz, not 20…9000"),
        ({"f_min": 500.0, "f_max": 400.0}, "not 500…400"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LogMel(**settings)


def test_more_coefficients_than_bands_are_refused():
    with pytest.raises(ConfigError, match=r"n_mfcc must lie in \[1, 40\], not 41"):
        MFCC(n_mfcc=41, spectrogram=LogMel())


def test_masks_are_drawn_in_training_alone_and_from_the_global_generator():
    x = torch.randn(8, 1, 40, 101)
    layer = SpecAugment()
    assert layer.eval()(x) is x
    layer.train()
    with temp_seed(0, "masks"):
        first = layer(x)
    with temp_seed(0, "masks"):
        assert torch.equal(layer(x), first)
    with temp_seed(1, "masks"):
        assert not torch.equal(layer(x), first)


def test_masks_are_intervals_of_bounded_width_filled_with_the_mean():
    x = torch.arange(200 * 12 * 30.0).view(200, 1, 12, 30)
    with temp_seed(0, "masks"):
        y = SpecAugment(n_masks=1, max_frames=6, max_mels=0).train()(x)
    hidden = (y != x).any(dim=2)[:, 0]
    for clip, row, mean in zip(y, hidden, x.mean(dim=(1, 2, 3)), strict=True):
        at = row.nonzero().flatten()
        assert len(at) <= 7
        assert len(at) == 0 or at[-1] - at[0] == len(at) - 1
        assert torch.equal(clip[0][:, at], mean.expand(12, len(at)))
    # Widths are even over 0…6, so that 3 frames are hidden on average.
    assert abs(hidden.sum(dim=1).float().mean() - 3) < 0.4


def test_masks_without_width_or_number_hide_nothing():
    x = torch.randn(4, 1, 8, 9)
    assert torch.equal(SpecAugment(n_masks=0).train()(x), x)
    assert torch.equal(SpecAugment(max_frames=0, max_mels=0).train()(x), x)
    with pytest.raises(ConfigError, match="max_frames must be 0 or more, not -1"):
        SpecAugment(max_frames=-1)


def test_the_examples_in_the_docstrings_run():
    found = doctest.testmod(audio, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0
