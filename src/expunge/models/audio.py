"""From sound to pictures of it, as layers without weights: log-mel spectrogram and MFCC."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, ModelError, raise_all

Scale = Literal["htk", "slaney"]
Unit = Literal["nat", "decibel"]

# Clips whose frames are transformed at once: what lies between two steps stays in the cache.
TOGETHER = 16


class LogMel(nn.Module):
    """Logarithm of the power in mel bands: ``log(max(B · |STFT(x)|², floor))``.

    ``float[b, samples] → float32[b, 1, mels, frames]`` with ``frames = 1 + samples // hop``: a
    frame is centred at every hop, and beyond its ends the clip is silent. The window is a periodic
    Hann window, zero-padded to the next power of two, in the middle of which it lies.

    rate: Hz. window, hop: seconds. low, high: the edges of the bands in Hz (half the rate if
    ``high`` is None). scale, area: of the bands, see `mel_bands`. unit: ``nat`` (ln) or
    ``decibel`` (10 log10). floor: the smallest power that the logarithm sees. span: decibels below
    the clip's loudest value at which values are cut off, as librosa does.

    Differentiable, no learned weights, and nothing of it in the state dictionary. Always computed
    in float32, also under autocast: powers span more than bfloat16 tells apart.
    Cost: one FFT a frame. ModelError for anything but ``[b, samples]``.

    >>> LogMel(rate=8000)(torch.zeros(2, 8000)).shape
    torch.Size([2, 1, 40, 101])
    """

    def __init__(
        self,
        *,
        rate: int = 16_000,
        mels: int = 40,
        window: float = 0.03,
        hop: float = 0.01,
        low: float = 20.0,
        high: float | None = None,
        scale: Scale = "htk",
        area: bool = False,
        unit: Unit = "nat",
        floor: float = 1e-10,
        span: float | None = None,
    ) -> None:
        super().__init__()
        high = rate / 2 if high is None else high
        length, self.hop = round(window * rate), round(hop * rate)
        _check_sizes(rate, mels, length, self.hop, low, high)
        self.mels, self.unit, self.floor, self.span = mels, unit, floor, span
        self.bins = 1 << (length - 1).bit_length()
        self._settings = (
            f"rate={rate}, mels={mels}, window={length}, hop={self.hop}, low={low:g}, "
            f"high={high:g}, scale={scale}, area={area}, unit={unit}, floor={floor:g}, span={span}"
        )
        shape = torch.hann_window(length, periodic=True, dtype=torch.float64)
        before = self.bins // 2 - length // 2
        shape = nn.functional.pad(shape, (before, self.bins - length - before))
        bands = mel_bands(
            rate=rate, bins=self.bins, mels=mels, low=low, high=high, scale=scale, area=area
        )
        self.window: Tensor
        self.bands: Tensor
        self.register_buffer("window", shape.float(), persistent=False)
        self.register_buffer("bands", bands.T.float().contiguous(), persistent=False)

    def extra_repr(self) -> str:
        """The settings: the buffers are not saved, so the name of the layer tells them apart."""
        return self._settings

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ModelError(
                f"expected sound of shape [b, samples], got {tuple(x.shape)}",
                where=type(self).__name__,
                fix="mix to one channel, and leave out the dimension of channels",
            )
        with torch.autocast(x.device.type, enabled=False):
            # An exported program is to take batches of any size.
            parts = (x,) if torch.compiler.is_compiling() else x.split(TOGETHER)
            return torch.cat([self._of(part.float()) for part in parts])[:, None]

    def _of(self, x: Tensor) -> Tensor:
        """``float32[b, mels, frames]``."""
        x = nn.functional.pad(x, (self.bins // 2, self.bins // 2))
        frames = x.unfold(1, self.bins, self.hop) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames))
        power = spectrum.square().sum(dim=-1)
        y = (power @ self.bands).clamp_min(self.floor).log().transpose(1, 2)
        if self.unit == "decibel":
            y = y * (10 / math.log(10))
        if self.span is not None:
            per_unit = 1.0 if self.unit == "decibel" else math.log(10) / 10
            y = torch.maximum(y, y.amax(dim=(1, 2), keepdim=True) - self.span * per_unit)
        return y


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II over a log-mel spectrogram.

    ``c_k = s_k Σ_m y_m cos(π k (m + ½) / M)`` with ``s_0 = √(1/M)`` and ``s_k = √(2/M)``;
    ``float[b, samples] → float32[b, 1, coefficients, frames]``. spectrogram: by default librosa's:
    128 Slaney bands from 0 Hz, 2048-point windows at 16 kHz with a hop of 512, in decibels, cut off
    80 decibels below the loudest.

    >>> MFCC()(torch.zeros(2, 16_000)).shape
    torch.Size([2, 1, 40, 32])
    """

    def __init__(self, *, coefficients: int = 40, spectrogram: LogMel | None = None) -> None:
        super().__init__()
        self.spectrogram = spectrogram or LogMel(
            mels=128,
            window=0.128,
            hop=0.032,
            low=0.0,
            scale="slaney",
            area=True,
            unit="decibel",
            span=80.0,
        )
        mels = self.spectrogram.mels
        if not 1 <= coefficients <= mels:
            raise ConfigError(f"coefficients must lie in 1…{mels} (the bands), not {coefficients}")
        self.cosines: Tensor
        self.register_buffer("cosines", cosines(coefficients, mels).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.spectrogram(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.cosines @ y


class SpecAugment(nn.Module):
    """Masks over stretches of time and of frequency, in training only (arXiv 1904.08779).

    Every sample of ``[b, 1, mels, frames]`` gets ``count`` masks of each sort at places of its own;
    a mask is between 0 and ``frames`` (``mels``) wide, evenly distributed, and sets what it covers
    to the sample's mean. Drawn from torch's global generator, which `tune` seeds by epoch. There is
    no time warping, which gained least in the paper. In evaluation mode, and so for scores, nothing
    happens: random views of sound are those of `expunge.data.view`.
    """

    def __init__(self, *, count: int = 1, frames: int = 15, mels: int = 6) -> None:
        super().__init__()
        sizes = {"count": count, "frames": frames, "mels": mels}
        raise_all(
            ConfigError,
            [f"{k} must be 0 or more, not {v}" for k, v in sizes.items() if v < 0],
            where="SpecAugment",
        )
        self.count, self.frames, self.mels = count, frames, mels

    def extra_repr(self) -> str:
        """The settings."""
        return f"count={self.count}, frames={self.frames}, mels={self.mels}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.count:
            return x
        hidden = self._stretches(x, 3, self.frames)[:, None, None, :]
        hidden = hidden | self._stretches(x, 2, self.mels)[:, None, :, None]
        return torch.where(hidden, x.mean(dim=(1, 2, 3), keepdim=True), x)

    def _stretches(self, x: Tensor, dim: int, most: int) -> Tensor:
        """``bool[b, size of the dimension]``: what lies inside a mask."""
        size, shape = x.shape[dim], (len(x), self.count, 1)
        width = torch.rand(shape, device=x.device) * min(most, size)
        start = torch.rand(shape, device=x.device) * (size - width)
        at = torch.arange(size, device=x.device) + 0.5
        return ((at >= start) & (at < start + width)).any(dim=1)


def mel_bands(
    *,
    rate: int,
    bins: int,
    mels: int,
    low: float,
    high: float,
    scale: Scale = "htk",
    area: bool = False,
) -> Tensor:
    """Triangular filters, ``float64[mels, bins // 2 + 1]``, over the bins of a ``bins``-point FFT.

    The corners of the triangles are ``mels + 2`` frequencies from ``low`` to ``high`` Hz, evenly
    spaced in mel. htk: ``2595 log10(1 + f / 700)``. slaney: ``3 f / 200`` up to 1 kHz, from there
    ``15 + 27 ln(f / 1000) / ln 6.4``. area: each triangle has the area 1 (in Hz), not the height 1,
    so that white noise is flat.
    """
    ends = _to_mel(low, scale), _to_mel(high, scale)
    corners = _to_hertz(torch.linspace(ends[0], ends[1], mels + 2, dtype=torch.float64), scale)
    at = torch.arange(bins // 2 + 1, dtype=torch.float64) * rate / bins
    left, peak, right = (corners[i : i + mels, None] for i in range(3))
    bands = torch.minimum((at - left) / (peak - left), (right - at) / (right - peak)).clamp_min(0)
    return bands * 2 / (right - left) if area else bands


def cosines(coefficients: int, size: int) -> Tensor:
    """The first rows of the orthonormal DCT-II, ``float64[coefficients, size]``."""
    k = torch.arange(coefficients, dtype=torch.float64)[:, None]
    m = torch.arange(size, dtype=torch.float64) + 0.5
    rows = torch.cos(math.pi * k * m / size) * math.sqrt(2 / size)
    rows[0] = math.sqrt(1 / size)
    return rows


def _to_mel(hertz: float, scale: Scale) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    if hertz < 1000:
        return 3 * hertz / 200
    return 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _to_hertz(mel: Tensor, scale: Scale) -> Tensor:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    above = 1000 * torch.exp((mel - 15) * math.log(6.4) / 27)
    return torch.where(mel < 15, 200 * mel / 3, above)


def _check_sizes(rate: int, mels: int, length: int, hop: int, low: float, high: float) -> None:
    problems = []
    if rate < 1 or mels < 1:
        problems.append(f"rate and mels must be 1 or more, not {rate} and {mels}")
    if length < 2 or hop < 1:
        problems.append(f"a window of {length} samples with a hop of {hop} is too short")
    if not 0 <= low < high <= rate / 2:
        problems.append(f"the bands must lie in 0…{rate / 2:g} Hz, not {low:g}…{high:g}")
    raise_all(ConfigError, problems, where="LogMel")
