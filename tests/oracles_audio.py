"""Audio for tests, and log-mel and MFCC once more: frame by frame, in float64."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from scipy.fft import dct


def tone(
    n: int = 1600, *, rate: int = 16_000, hertz: float = 440.0, level: float = 0.5
) -> np.ndarray:
    """A sine, ``int16[n]``."""
    return np.round(32767 * level * np.sin(2 * np.pi * hertz * np.arange(n) / rate)).astype(
        np.int16
    )


def noise(n: int, *, seed: int, level: float = 0.1) -> np.ndarray:
    """White noise, ``int16[n]``."""
    draw = np.random.default_rng(seed).standard_normal(n)
    return (32767 * level * draw).clip(-32768, 32767).astype(np.int16)


def encoded(
    x: np.ndarray, *, sample_rate: int = 16_000, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    """An audio file; x is ``[n]`` or ``[n, channels]``."""
    buffer = io.BytesIO()
    soundfile.write(buffer, x, sample_rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def htk(hertz: np.ndarray) -> np.ndarray:
    return 1127.0 * np.log1p(hertz / 700.0)  # the natural-logarithm form of the HTK book


def slaney(hertz: np.ndarray) -> np.ndarray:
    step = np.log(6400 / 1000) / 27  # of the Auditory Toolbox: 27 steps from 1 to 6.4 kHz
    return np.where(
        hertz < 1000, hertz / (200 / 3), 15 + np.log(np.maximum(hertz, 1) / 1000) / step
    )


def bands(
    rate: int, bins: int, mels: int, low: float, high: float, scale: str, area: bool
) -> np.ndarray:
    """``float64[mels, bins // 2 + 1]``, each weight by bisection on the mel scale."""
    mel = htk if scale == "htk" else slaney
    grid = np.linspace(0, rate / 2, 2_000_001)
    places = np.linspace(mel(np.array(low)), mel(np.array(high)), mels + 2)
    corners = np.interp(places, mel(grid), grid)
    out = np.zeros((mels, bins // 2 + 1))
    for m in range(mels):
        left, peak, right = corners[m : m + 3]
        for k in range(bins // 2 + 1):
            f = k * rate / bins
            if left < f <= peak:
                out[m, k] = (f - left) / (peak - left)
            elif peak < f < right:
                out[m, k] = (right - f) / (right - peak)
        if area:
            out[m] *= 2 / (right - left)
    return out


def log_mel(
    x: np.ndarray,
    *,
    rate: int,
    length: int,
    hop: int,
    mels: int,
    low: float,
    high: float,
    scale: str,
    area: bool,
    decibels: bool,
    floor: float,
    span: float | None,
) -> np.ndarray:
    """``float64[mels, frames]`` of one clip."""
    bins = 2 ** int(np.ceil(np.log2(length)))
    filters = bands(rate, bins, mels, low, high, scale, area)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    columns = []
    for middle in range(0, len(x) + 1, hop):
        frame = np.zeros(length)
        for k in range(length):
            at = middle - length // 2 + k
            if 0 <= at < len(x):
                frame[k] = x[at]
        spectrum = np.fft.fft(frame * window, bins)[: bins // 2 + 1]
        columns.append(np.log(np.maximum(filters @ np.abs(spectrum) ** 2, floor)))
    out = np.stack(columns, axis=1)
    if decibels:
        out = out * 10 / np.log(10)
    if span is not None:
        out = np.maximum(out, out.max() - span * (1 if decibels else np.log(10) / 10))
    return out


def mfcc(log_mel: np.ndarray, coefficients: int) -> np.ndarray:
    """``float64[coefficients, frames]``."""
    return dct(log_mel, type=2, norm="ortho", axis=0)[:coefficients]
