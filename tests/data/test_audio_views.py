"""Random views of audio: what each does to a clip, and that it is the generator that decides."""

from __future__ import annotations

import pytest
import torch

from expunge.data import audio_views, from_arrays
from expunge.data.views import views
from expunge.errors import DataError

NAMES = ["shift", "speed", "gain", "background", "speech", "speech-background"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(b: int = 64, n: int = 400) -> torch.Tensor:
    return torch.randn(b, n, generator=generator(7))


@pytest.mark.parametrize("name", NAMES)
def test_views_are_deterministic_and_leave_the_sound_alone(name):
    function, x = views.get(name), clips()
    before, state = x.clone(), torch.random.get_rng_state()
    first = function(x, generator(1))
    assert torch.equal(first, function(x, generator(1)))
    assert not torch.equal(first, function(x, generator(2)))
    assert (first.shape, first.dtype) == (x.shape, x.dtype)
    assert torch.isfinite(first).all()
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_views_of_silence_are_silent_and_one_clip_is_enough(name):
    function = views.get(name)
    assert torch.equal(function(torch.zeros(3, 50), generator()), torch.zeros(3, 50))
    assert function(clips(1), generator()).shape == (1, 400)
    assert function(clips(1, 1), generator()).shape == (1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_views_of_sound_refuse_images(name):
    with pytest.raises(DataError, match=r"for audio of shape \[b, samples\], not \(2, 3, 4, 4\)"):
        views.get(name)(torch.zeros(2, 3, 4, 4), generator())
    with pytest.raises(DataError, match="for audio of shape"):
        from_arrays(torch.zeros(4, 3, 8, 8), [0, 1, 0, 1], view=name)


def test_shift_moves_whole_samples_and_fills_with_silence():
    x = clips()
    y = audio_views.shift(x, generator())
    moves = set()
    for before, after in zip(x, y, strict=True):
        found = [k for k in range(-40, 41) if torch.equal(_moved(before, k), after)]
        assert len(found) == 1
        moves.add(found[0])
    assert min(moves) < -20
    assert max(moves) > 20


def _moved(x: torch.Tensor, k: int) -> torch.Tensor:
    out = torch.zeros_like(x)
    n = len(x)
    out[max(k, 0) : n + min(k, 0)] = x[max(-k, 0) : n - max(k, 0)]
    return out


def test_speed_changes_the_frequency_by_the_factor_drawn():
    n, period = 4000, 20.0
    x = torch.sin(2 * torch.pi * torch.arange(n) / period).expand(50, n)
    y = audio_views.speed(x, generator())
    inside = y[:, 600:-600]  # slower ones end late, faster ones have silence at their ends
    crossings = ((inside[:, 1:] > 0) & (inside[:, :-1] <= 0)).sum(dim=1)
    factor = crossings * period / inside.shape[1]
    assert factor.min() > 1 / 1.12 - 0.02
    assert factor.max() < 1.12 + 0.02
    assert factor.std() > 0.03


def test_the_line_between_samples_is_that_of_interp():
    import numpy as np

    x = clips(1, 50)
    speeds, moves = torch.tensor([[1.1]]), torch.tensor([[3.0]])
    got = audio_views._resample_at(x, speeds, moves)[0]
    at = (np.arange(50) - 24.5 - 3) * float(speeds) + 24.5
    expected = np.interp(at, np.arange(-1, 51), np.pad(x[0].numpy(), 1), left=0, right=0)
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_gain_scales_within_six_decibels():
    x = clips()
    ratio = audio_views.gain(x, generator()) / x
    decibels = 20 * ratio.log10()
    torch.testing.assert_close(decibels, decibels[:, :1].expand_as(decibels), atol=1e-3, rtol=1e-3)
    assert decibels.abs().max() <= 6.001
    assert decibels.std() > 2


def test_background_is_mixed_into_half_of_the_clips_at_the_stated_ratio():
    x = clips(400)
    added = audio_views.background(x, generator()) - x
    touched = added.abs().sum(dim=1) > 0
    assert 0.4 < touched.float().mean() < 0.6
    power = x.square().mean(dim=1)[touched], added[touched].square().mean(dim=1)
    snr = 10 * (power[0] / power[1]).log10()
    assert snr.min() > -0.1
    assert snr.max() < 20.1
    other = x.roll(1, dims=0)
    likeness = torch.nn.functional.cosine_similarity(added, other)[touched]
    assert 0.35 < (likeness > 0.99).float().mean() < 0.65


def test_background_leaves_silent_clips_silent_and_out_of_others():
    x = clips(40)
    x[::2] = 0
    y = audio_views.background(x, generator())
    assert torch.equal(y[::2], x[::2])
    assert torch.isfinite(y).all()
