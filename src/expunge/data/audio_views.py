"""Random views (augmentations) of whole batches of prepared sound, ``float[b, samples]``.

Every clip is heard with numbers of its own, drawn from the generator given. Whatever is moved in
from beyond a clip's ends is silence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.errors import DataError

SHIFT = 0.1  # of the length, at most, to either side
SPEED = 0.12  # faster or slower by up to this factor
DECIBELS = 6.0  # louder or quieter by up to this
SNR = (0.0, 20.0)  # decibels of the clip above what is mixed in
QUIET = 1e-12  # power below which a clip is silent


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each clip by up to a tenth of its length, earlier or later."""
    return _heard_at(x, torch.ones(len(x), 1), _moves(x, generator))


def speed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Play each clip up to 12 % faster or slower, and so higher or lower, around its middle."""
    return _heard_at(x, _speeds(x, generator), torch.zeros(len(x), 1))


def gain(x: Tensor, generator: torch.Generator) -> Tensor:
    """Make each clip up to 6 decibels louder or quieter."""
    _require_sound(x)
    decibels = DECIBELS * (2 * torch.rand(len(x), 1, generator=generator) - 1)
    return x * (10 ** (decibels / 20)).to(x)


def background(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mix something into half of the clips, 0 to 20 decibels below them: white noise, or another.

    With ``P`` the mean square, ``y = x + n · √(P(x) / P(n) · 10^(−SNR / 10))``, where n is the next
    clip of the batch, as likely as noise. Silent clips neither get nor give anything.
    """
    _require_sound(x)
    low, high = SNR
    snr, kind, noise = (
        low + (high - low) * torch.rand(len(x), 1, generator=generator),
        torch.rand(len(x), 1, generator=generator).to(x.device),
        torch.randn(x.shape, generator=generator).to(x),
    )
    n = torch.where(kind < 0.25, x.roll(1, dims=0), noise)
    power, other = (v.square().mean(dim=1, keepdim=True) for v in (x, n))
    heard = (kind < 0.5) & (other > QUIET)
    factor = (power / other.clamp_min(QUIET) * (10 ** (-snr / 10)).to(x)).sqrt()
    return x + n * torch.where(heard, factor, 0.0)


def speech(x: Tensor, generator: torch.Generator) -> Tensor:
    """``shift``, ``speed`` and ``gain``: the same word, said at another time by another voice."""
    return gain(_heard_at(x, _speeds(x, generator), _moves(x, generator)), generator)


def speech_background(x: Tensor, generator: torch.Generator) -> Tensor:
    """``speech``, then ``background``."""
    return background(speech(x, generator), generator)


def _moves(x: Tensor, generator: torch.Generator) -> Tensor:
    """By how many samples each clip is late, ``float[b, 1]`` of whole numbers."""
    _require_sound(x)
    most = int(SHIFT * x.shape[1])
    return torch.randint(-most, most + 1, (len(x), 1), generator=generator).float()


def _speeds(x: Tensor, generator: torch.Generator) -> Tensor:
    """``float[b, 1]``, evenly distributed in logarithm, so that faster is as likely as slower."""
    _require_sound(x)
    return (1 + SPEED) ** (2 * torch.rand(len(x), 1, generator=generator) - 1)


def _heard_at(x: Tensor, speeds: Tensor, moves: Tensor) -> Tensor:
    """Each clip at its speed and moved; between two samples there is a straight line."""
    n = x.shape[1]
    middle = (n - 1) / 2
    at = (torch.arange(n, dtype=torch.float64) - middle - moves.double()) * speeds + middle
    first = at.floor()
    share = (at - first).to(x)
    index = (first.long() + 2).clamp(0, n + 2).to(x.device)  # into x with silence at either end
    padded = torch.nn.functional.pad(x, (2, 2))
    return torch.lerp(padded.gather(1, index), padded.gather(1, index + 1), share)


def _require_sound(x: Tensor) -> None:
    if x.dim() != 2:
        raise DataError(
            f"this view is for sound of shape [b, samples], not {tuple(x.shape)}",
            fix="set view to 'none', or to 'crop-flip' for images",
        )
