"""Synthetic noise for clean speech. The noise of a clip depends only on the seed and its row.

Clips are ``int16[n, samples]``; corrupted clips are rounded and clipped to int16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from expunge._core.rng import generator
from expunge.demo.noise import draw_rows, mask_of_rows
from expunge.errors import ConfigError

Fault = Literal["white", "clipping", "silence", "truncation", "babble"]

# Words that sound alike.
CONFUSABLE_WORDS = (("go", "no"), ("off", "up"), ("on", "down"), ("left", "yes"))
N_BABBLE_CLIPS = 4
CLIPPING_LEVEL = 0.05  # of the peak
TRUNCATED_FRACTION = (0.2, 0.45)  # of a clip that remains, from its start


def confusable_labels(
    labels: np.ndarray,
    *,
    rate: float,
    classes: Sequence[str],
    pairs: Sequence[tuple[str, str]] = CONFUSABLE_WORDS,
    seed: int,
) -> np.ndarray:
    """Replace exactly ``round(rate · n)`` labels by those of the confusable word.

    Parameters
    ----------
    labels
        ``int64[n]``. The true labels.
    rate
        The noise rate, in [0, 1).
    classes
        The names of the classes.
    pairs
        Confusable words. A pair with a name that is not a class is skipped.
    seed
        Seed of the rows.

    Raises
    ------
    ConfigError
        If the rate lies outside [0, 1), or too few labels have a confusable word.
    """
    index = {name: i for i, name in enumerate(classes)}
    known = [(index[a], index[b]) for a, b in pairs if a in index and b in index]
    partner = np.arange(len(classes))
    for a, b in known:
        partner[a], partner[b] = b, a
    candidates = np.flatnonzero(partner[labels] != labels)
    wanted = len(draw_rows(len(labels), rate, seed=seed, what="labels"))
    if wanted > len(candidates):
        raise ConfigError(
            f"cannot make {wanted} of {len(labels)} labels wrong: only {len(candidates)} have a "
            "confusable word",
            fix="lower the rate, or name more pairs",
        )
    chosen = generator(seed, "noise", "confusable").permutation(candidates)[:wanted]
    noisy = labels.copy()
    noisy[chosen] = partner[labels[chosen]]
    return noisy


def audio_faults(
    x: np.ndarray, *, kinds: Sequence[Fault], rate: float, snr: float = 0.0, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt ``round(rate · n)`` clips, with each of the kinds in turn.

    Parameters
    ----------
    x
        ``int16[n, samples]``.
    kinds
        ``white``: white noise. ``babble``: the sum of four other clips. ``clipping``: clipped at
        5 % of the peak and scaled back to it. ``silence``: rounding noise only. ``truncation``: the
        first 20 to 45 % of the clip, then silence.
    rate
        The noise rate, in [0, 1).
    snr
        Signal-to-noise ratio of ``white`` and ``babble``, in decibels. The signal's power is the
        clip's, or the median over all clips if that is higher.
    seed
        Seed of the rows and of the noise.

    Returns
    -------
    tuple
        The clips, and ``bool[n]``: which of them were corrupted.

    Raises
    ------
    ConfigError
        If a kind is unknown, or the rate lies outside [0, 1).
    """
    unknown = set(kinds) - set(get_args(Fault))
    if unknown or not kinds:
        raise ConfigError(
            f"expected kinds among {', '.join(get_args(Fault))}, got {', '.join(kinds) or 'none'}"
        )
    chosen = draw_rows(len(x), rate, seed=seed, what="clips")
    level = float(np.median(np.square(x, dtype=np.float64).mean(axis=1)))
    corrupted = x.copy()
    for number, row in enumerate(chosen.tolist()):
        kind = kinds[number % len(kinds)]
        rng = generator(seed, "noise", kind, row)
        clip = x[row].astype(np.float64)
        power = max(float(np.square(clip).mean()), level) * 10 ** (-snr / 10)
        if kind == "babble":
            clip = clip + _with_power(_babble(x, row, rng), power)
        else:
            clip = _FAULTS[kind](clip, power, rng)
        corrupted[row] = np.round(clip).clip(-32768, 32767).astype(x.dtype)
    return corrupted, mask_of_rows(chosen, len(x))


def feature_noise(
    features: np.ndarray, *, rate: float = 0.5, sigma: float = 15.0, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Replace ``round(rate · n)`` features by ``x + σ · N(0, 1)``, without clipping.

    Parameters
    ----------
    features
        ``float[n, …]``: MFCC in librosa's units.
    rate
        The noise rate, in [0, 1).
    sigma
        Standard deviation of the noise, also on frames that only pad a clip.
    seed
        Seed of the rows and of the noise. The noise of a clip is drawn once, unlike in the paper.

    Returns
    -------
    tuple
        The features, and ``bool[n]``: which of them were corrupted.

    References
    ----------
    The corruption for speech of arXiv 2506.11615.
    """
    chosen = draw_rows(len(features), rate, seed=seed, what="features")
    corrupted = features.copy()
    for row in chosen.tolist():
        draw = generator(seed, "noise", "features", row).standard_normal(features.shape[1:])
        corrupted[row] = features[row] + sigma * draw
    return corrupted, mask_of_rows(chosen, len(features))


def _white(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(clip + _with_power(rng.standard_normal(len(clip)), power))


def _clipping(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    ceiling = max(CLIPPING_LEVEL * np.abs(clip).max(), 1.0)
    return np.asarray(clip.clip(-ceiling, ceiling) / CLIPPING_LEVEL)


def _silence(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-1, 2, len(clip)).astype(np.float64)


def _truncation(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    end = round(rng.uniform(*TRUNCATED_FRACTION) * len(clip))
    return np.where(np.arange(len(clip)) < end, clip, _silence(clip, power, rng))


_FAULTS: Mapping[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "white": _white,
    "clipping": _clipping,
    "silence": _silence,
    "truncation": _truncation,
}


def _babble(x: np.ndarray, row: int, rng: np.random.Generator) -> np.ndarray:
    """The sum of other clips, scaled to the same power."""
    others = rng.choice(len(x) - 1, size=min(N_BABBLE_CLIPS, len(x) - 1), replace=False)
    others = others + (others >= row)  # never the clip itself
    clips = x[others].astype(np.float64)
    return sum((_with_power(clip, 1.0) for clip in clips), np.zeros(x.shape[1]))


def _with_power(noise: np.ndarray, power: float) -> np.ndarray:
    """Noise scaled to that mean square; silence stays silence."""
    current = float(np.square(noise).mean())
    return np.asarray(noise * np.sqrt(power / current)) if current > 0 else noise
