"""Spectrograms of audio as layers without weights: log-mel spectrogram, MFCC and SpecAugment."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, ModelError, check_range

MelScale = Literal["htk", "slaney"]
PowerUnit = Literal["nat", "decibel"]

# Clips that are transformed at once: intermediate results of so few stay in the cache.
_CHUNK = 16


class LogMel(nn.Module):
    """Log-mel spectrogram: ``log(max(B · |STFT(x)|², floor))``.

    ``float[b, samples] → float32[b, 1, n_mels, frames]`` with ``frames = 1 + samples // hop``. A
    frame is centred at every hop; beyond its ends the clip is silent. The window is a periodic Hann
    window, zero-padded on both sides to the next power of two.

    Parameters
    ----------
    sample_rate
        Hz, 1 or more.
    n_mels
        Number of mel bands, 1 or more.
    window, hop
        Seconds.
    f_min, f_max
        Edges of the bands in Hz, ``0 ≤ f_min < f_max ≤ sample_rate / 2``; ``f_max`` is half the
        sample rate if None.
    mel_scale, area_norm
        See `mel_bands`.
    unit
        ``"nat"`` (ln) or ``"decibel"`` (10 log10).
    floor
        The smallest power of which the logarithm is taken.
    top_db
        Values of this many decibels below the clip's loudest one are cut off, as in librosa; None
        cuts nothing off.

    Raises
    ------
    ConfigError
        For settings that give no window or no bands.
    ModelError
        In the forward pass, for any input but ``[b, samples]``.

    Notes
    -----
    Differentiable; no learned weights, and nothing of it in the state dictionary. Always computed
    in float32, also under autocast: powers span more than bfloat16 resolves. Cost: one FFT a frame.

    Examples
    --------
    >>> import torch
    >>> LogMel(sample_rate=8000)(torch.zeros(2, 8000)).shape
    torch.Size([2, 1, 40, 101])
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        n_mels: int = 40,
        window: float = 0.03,
        hop: float = 0.01,
        f_min: float = 20.0,
        f_max: float | None = None,
        mel_scale: MelScale = "htk",
        area_norm: bool = False,
        unit: PowerUnit = "nat",
        floor: float = 1e-10,
        top_db: float | None = None,
    ) -> None:
        super().__init__()
        f_max = sample_rate / 2 if f_max is None else f_max
        length, self.hop = round(window * sample_rate), round(hop * sample_rate)
        _check_bands(sample_rate, n_mels, f_min, f_max)
        _check_window(length, self.hop)
        self.n_mels, self.unit, self.floor, self.top_db = n_mels, unit, floor, top_db
        self.n_fft = 1 << (length - 1).bit_length()
        self._settings = (
            f"sample_rate={sample_rate}, n_mels={n_mels}, window={length}, hop={self.hop}, "
            f"f_min={f_min:g}, f_max={f_max:g}, mel_scale={mel_scale}, area_norm={area_norm}, "
            f"unit={unit}, floor={floor:g}, top_db={top_db}"
        )
        shape = torch.hann_window(length, periodic=True, dtype=torch.float64)
        before = self.n_fft // 2 - length // 2
        shape = nn.functional.pad(shape, (before, self.n_fft - length - before))
        bands = mel_bands(
            sample_rate=sample_rate,
            n_fft=self.n_fft,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            mel_scale=mel_scale,
            area_norm=area_norm,
        )
        self.window: Tensor
        self.bands: Tensor
        self.register_buffer("window", shape.float(), persistent=False)
        self.register_buffer("bands", bands.T.float().contiguous(), persistent=False)

    def extra_repr(self) -> str:
        """The settings; the buffers are not saved, so `repr` has to distinguish the layers."""
        return self._settings

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ModelError(
                f"expected audio of shape [b, samples], got {tuple(x.shape)}",
                where=type(self).__name__,
                fix="mix to one channel, and remove the channel dimension",
            )
        with torch.autocast(x.device.type, enabled=False):
            # An exported program is to take batches of any size.
            parts = (x,) if torch.compiler.is_compiling() else torch.split(x, _CHUNK)
            return torch.cat([self._transform(part.float()) for part in parts])[:, None]

    def _transform(self, x: Tensor) -> Tensor:
        """``float32[b, n_mels, frames]``."""
        x = nn.functional.pad(x, (self.n_fft // 2, self.n_fft // 2))
        frames = x.unfold(1, self.n_fft, self.hop) * self.window
        real, imaginary = torch.view_as_real(torch.fft.rfft(frames)).unbind(dim=-1)
        # A sum over a dimension of size 2 takes three times as long as the whole FFT.
        power = real.square() + imaginary.square()
        y = (power @ self.bands).clamp_min(self.floor).log().transpose(1, 2)
        if self.unit == "decibel":
            y = y * (10 / math.log(10))
        if self.top_db is not None:
            per_decibel = 1.0 if self.unit == "decibel" else math.log(10) / 10
            y = torch.maximum(y, y.amax(dim=(1, 2), keepdim=True) - self.top_db * per_decibel)
        return y


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II over a log-mel spectrogram.

    ``c_k = s_k Σ_m y_m cos(π k (m + ½) / M)`` with ``s_0 = √(1/M)`` and ``s_k = √(2/M)``;
    ``float[b, samples] → float32[b, 1, n_mfcc, frames]``.

    Parameters
    ----------
    n_mfcc
        Number of coefficients, from 1 to the number of mel bands.
    spectrogram
        By default librosa's: 128 Slaney bands from 0 Hz, 2048-point windows at 16 kHz with a hop of
        512, in decibels, cut off 80 decibels below the loudest.

    Raises
    ------
    ConfigError
        For more coefficients than bands.

    Examples
    --------
    >>> import torch
    >>> MFCC()(torch.zeros(2, 16_000)).shape
    torch.Size([2, 1, 40, 32])
    """

    def __init__(self, *, n_mfcc: int = 40, spectrogram: LogMel | None = None) -> None:
        super().__init__()
        self.spectrogram = spectrogram or LogMel(
            n_mels=128,
            window=0.128,
            hop=0.032,
            f_min=0.0,
            mel_scale="slaney",
            area_norm=True,
            unit="decibel",
            top_db=80.0,
        )
        n_mels = self.spectrogram.n_mels
        check_range(ConfigError, {"n_mfcc": (n_mfcc, f"[1, {n_mels}]")}, where="MFCC")
        self.cosines: Tensor
        self.register_buffer("cosines", dct_matrix(n_mfcc, n_mels).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.spectrogram(x)
        with torch.autocast(x.device.type, enabled=False):
            return torch.matmul(self.cosines, y)


class SpecAugment(nn.Module):
    """Masks over intervals of time and of frequency, in training only.

    Every sample of ``float[b, 1, mels, frames]`` gets ``n_masks`` masks of each sort at its own
    positions. A mask is uniformly between 0 and ``max_frames`` (``max_mels``) wide, and sets what
    it covers to the sample's mean.

    Parameters
    ----------
    n_masks
        Of time and of frequency each, 0 or more.
    max_frames, max_mels
        Widths, 0 or more.

    Raises
    ------
    ConfigError
        For a negative number.

    Notes
    -----
    Drawn from torch's global generator, which `tune` seeds by epoch. There is no time warping,
    which gained least in the paper. In evaluation mode, and so for scores, it does nothing.

    References
    ----------
    Park et al., arXiv 1904.08779.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(2, 1, 40, 101)
    >>> torch.equal(SpecAugment().eval()(x), x)
    True
    """

    def __init__(self, *, n_masks: int = 1, max_frames: int = 15, max_mels: int = 6) -> None:
        super().__init__()
        settings = {"n_masks": n_masks, "max_frames": max_frames, "max_mels": max_mels}
        check_range(
            ConfigError, {k: (v, "[0, inf)") for k, v in settings.items()}, where="SpecAugment"
        )
        self.n_masks, self.max_frames, self.max_mels = n_masks, max_frames, max_mels

    def extra_repr(self) -> str:
        """The settings."""
        return f"n_masks={self.n_masks}, max_frames={self.max_frames}, max_mels={self.max_mels}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.n_masks:
            return x
        hidden = self._draw_masks(x, 3, self.max_frames)[:, None, None, :]
        hidden = hidden | self._draw_masks(x, 2, self.max_mels)[:, None, :, None]
        return torch.where(hidden, x.mean(dim=(1, 2, 3), keepdim=True), x)

    def _draw_masks(self, x: Tensor, dim: int, max_width: int) -> Tensor:
        """``bool[b, size of the dimension]``: True inside a mask."""
        size, shape = x.shape[dim], (len(x), self.n_masks, 1)
        width = torch.rand(shape, device=x.device) * min(max_width, size)
        start = torch.rand(shape, device=x.device) * (size - width)
        at = torch.arange(size, device=x.device) + 0.5
        return ((at >= start) & (at < start + width)).any(dim=1)


def mel_bands(
    *,
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    f_min: float,
    f_max: float,
    mel_scale: MelScale = "htk",
    area_norm: bool = False,
) -> Tensor:
    """Triangular filters over the bins of an FFT.

    The corners of the triangles are ``n_mels + 2`` frequencies from ``f_min`` to ``f_max`` Hz,
    evenly spaced in mel.

    Parameters
    ----------
    sample_rate
        Hz.
    n_fft
        Points of the FFT.
    n_mels
        Number of filters.
    f_min, f_max
        Hz.
    mel_scale
        ``"htk"``: ``2595 log10(1 + f / 700)``. ``"slaney"``: ``3 f / 200`` up to 1 kHz, from there
        ``15 + 27 ln(f / 1000) / ln 6.4``.
    area_norm
        Whether each triangle has the area 1 (in Hz) instead of the height 1, so that the spectrum
        of white noise is flat.

    Returns
    -------
    torch.Tensor
        ``float64[n_mels, n_fft // 2 + 1]``.

    Examples
    --------
    >>> mel_bands(sample_rate=8000, n_fft=256, n_mels=20, f_min=0, f_max=4000).shape
    torch.Size([20, 129])
    """
    ends = _to_mel(f_min, mel_scale), _to_mel(f_max, mel_scale)
    corners = _to_hertz(
        torch.linspace(ends[0], ends[1], n_mels + 2, dtype=torch.float64), mel_scale
    )
    at = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    left, peak, right = (corners[i : i + n_mels, None] for i in range(3))
    bands = torch.minimum((at - left) / (peak - left), (right - at) / (right - peak)).clamp_min(0)
    return bands * 2 / (right - left) if area_norm else bands


def dct_matrix(n_rows: int, size: int) -> Tensor:
    """The first rows of the orthonormal DCT-II, ``float64[n_rows, size]``."""
    k = torch.arange(n_rows, dtype=torch.float64)[:, None]
    m = torch.arange(size, dtype=torch.float64) + 0.5
    rows = torch.cos(math.pi * k * m / size) * math.sqrt(2 / size)
    rows[0] = math.sqrt(1 / size)
    return rows


def _to_mel(hertz: float, mel_scale: MelScale) -> float:
    if mel_scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    if hertz < 1000:
        return 3 * hertz / 200
    return 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _to_hertz(mel: Tensor, mel_scale: MelScale) -> Tensor:
    if mel_scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    above = 1000 * torch.exp((mel - 15) * math.log(6.4) / 27)
    return torch.where(mel < 15, 200 * mel / 3, above)


def _check_bands(sample_rate: int, n_mels: int, f_min: float, f_max: float) -> None:
    sizes = {"sample_rate": (sample_rate, "[1, inf)"), "n_mels": (n_mels, "[1, inf)")}
    check_range(ConfigError, sizes, where="LogMel")
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ConfigError(
            f"the bands must lie in 0…{sample_rate / 2:g} Hz, not {f_min:g}…{f_max:g}",
            where="LogMel",
        )


def _check_window(length: int, hop: int) -> None:
    if length < 2 or hop < 1:
        raise ConfigError(
            f"a window of {length} samples with a hop of {hop} is too short", where="LogMel"
        )
