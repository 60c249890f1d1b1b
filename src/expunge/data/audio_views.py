"""Random views (augmentations) of batches of prepared audio, ``float[b, samples]``.

Every clip gets its own random numbers from the generator given. A clip is padded with silence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.errors import DataError

MAX_SHIFT = 0.1  # of the length, earlier or later
MAX_SPEED_CHANGE = 0.12  # faster or slower
MAX_GAIN = 6.0  # decibels, louder or quieter
SNR_RANGE = (0.0, 20.0)  # decibels of the clip above the background
SILENT_POWER = 1e-12  # mean square below which a clip is silent


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each clip by up to 10 % of its length, earlier or later.

    The shift is a uniform whole number of samples.

    Parameters
    ----------
    x
        ``float[b, samples]``, prepared audio. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 80).repeat(2, 1)
    >>> shift(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 80])
    """
    return _resample_at(x, torch.ones(len(x), 1), _random_shifts(x, generator))


def speed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Play each clip up to 12 % faster or slower around its middle; its pitch changes with it.

    The logarithm of the speed is uniform. Samples are interpolated linearly.

    Parameters
    ----------
    x
        ``float[b, samples]``, prepared audio. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 80).repeat(2, 1)
    >>> speed(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 80])
    """
    return _resample_at(x, _random_speeds(x, generator), torch.zeros(len(x), 1))


def gain(x: Tensor, generator: torch.Generator) -> Tensor:
    """Make each clip up to 6 dB louder or quieter; the gain is uniform in decibels.

    Parameters
    ----------
    x
        ``float[b, samples]``, prepared audio. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 80).repeat(2, 1)
    >>> gain(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 80])
    """
    _check_audio(x)
    decibels = MAX_GAIN * (2 * torch.rand(len(x), 1, generator=generator) - 1)
    return x * (10 ** (decibels / 20)).to(x)


def background(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mix a background into each clip with probability 1/2, 0 to 20 dB below the clip.

    ``y = x + n · √(P(x) / P(n) · 10^(−SNR / 10))``, with ``P`` the mean square. The background
    ``n`` is white noise or the previous clip of the batch, with equal probability. Silent clips get
    no background and are none.

    Parameters
    ----------
    x
        ``float[b, samples]``, prepared audio. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 80).repeat(2, 1)
    >>> background(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 80])
    """
    _check_audio(x)
    low, high = SNR_RANGE
    snr, kind, noise = (
        low + (high - low) * torch.rand(len(x), 1, generator=generator),
        torch.rand(len(x), 1, generator=generator).to(x.device),
        torch.randn(x.shape, generator=generator).to(x),
    )
    n = torch.where(kind < 0.25, x.roll(1, dims=0), noise)
    power, other = (v.square().mean(dim=1, keepdim=True) for v in (x, n))
    is_mixed = (kind < 0.5) & (other > SILENT_POWER)
    factor = (power / other.clamp_min(SILENT_POWER) * (10 ** (-snr / 10)).to(x)).sqrt()
    return x + n * torch.where(is_mixed, factor, 0.0)


def speech(x: Tensor, generator: torch.Generator) -> Tensor:
    """Apply `speed`, `shift` and `gain`: the same word, at another time, in another voice.

    Parameters
    ----------
    x
        ``float[b, samples]``, prepared audio. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 80).repeat(2, 1)
    >>> speech(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 80])
    """
    return gain(
        _resample_at(x, _random_speeds(x, generator), _random_shifts(x, generator)), generator
    )


def speech_background(x: Tensor, generator: torch.Generator) -> Tensor:
    """Apply `speech`, then `background`.

    Parameters
    ----------
    x
        ``float[b, samples]``, prepared audio. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 80).repeat(2, 1)
    >>> speech_background(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 80])
    """
    return background(speech(x, generator), generator)


def _random_shifts(x: Tensor, generator: torch.Generator) -> Tensor:
    """The number of samples by which each clip is late, ``float[b, 1]`` of whole numbers."""
    _check_audio(x)
    limit = int(MAX_SHIFT * x.shape[1])
    return torch.randint(-limit, limit + 1, (len(x), 1), generator=generator).float()


def _random_speeds(x: Tensor, generator: torch.Generator) -> Tensor:
    """``float[b, 1]``, uniform in logarithm: faster is as likely as slower."""
    _check_audio(x)
    return (1 + MAX_SPEED_CHANGE) ** (2 * torch.rand(len(x), 1, generator=generator) - 1)


def _resample_at(x: Tensor, speeds: Tensor, shifts: Tensor) -> Tensor:
    """Resample each clip at its speed and shift, by linear interpolation."""
    n = x.shape[1]
    middle = (n - 1) / 2
    # In place, since each step on [b, n] would take as long as the interpolation; the positions are
    # those in x with two samples of silence at either end.
    at = torch.arange(n, dtype=torch.float64).sub_(middle) - shifts.double()
    at = at.mul_(speeds.double()).add_(middle + 2).clamp_(0, n + 2)
    index = at.long()
    share = at.sub_(index).to(x)
    padded, index = torch.nn.functional.pad(x, (2, 2)), index.to(x.device)
    return torch.lerp(padded.gather(1, index), padded.gather(1, index + 1), share)


def _check_audio(x: Tensor) -> None:
    if x.dim() != 2:
        raise DataError(
            f"this view is for audio of shape [b, samples], not {tuple(x.shape)}",
            fix="set view to 'none', or to 'crop-flip' for images",
        )
