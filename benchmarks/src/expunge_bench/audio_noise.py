"""Faults put into clean speech on purpose; what a clip gets depends on the seed and its row alone.

Sound is ``int16[n, samples]``; what comes out is rounded, and clipped, to int16 again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from expunge._core.rng import generator
from expunge.demo.noise import draw_rows, mask_of_rows
from expunge.errors import ConfigError

Fault = Literal["white", "clipping", "silence", "truncation", "babble"]

# Words that are heard for one another.
PAIRS = (("go", "no"), ("off", "up"), ("on", "down"), ("left", "yes"))
VOICES = 4  # clips that make a babble
CEILING = 0.05  # of its peak, at which a clip is clipped
KEPT = (0.2, 0.45)  # of a truncated clip, from its start


def confusable_labels(
    labels: np.ndarray,
    *,
    rate: float,
    classes: Sequence[str],
    pairs: Sequence[tuple[str, str]] = PAIRS,
    seed: int,
) -> np.ndarray:
    """Labels of which exactly ``round(rate · n)`` are those of the word heard for the right one.

    pairs: by name; pairs with a name that is no class are left aside, and so are words without one.
    """
    index = {name: i for i, name in enumerate(classes)}
    known = [(index[a], index[b]) for a, b in pairs if a in index and b in index]
    partner = np.arange(len(classes))
    for a, b in known:
        partner[a], partner[b] = b, a
    able = np.flatnonzero(partner[labels] != labels)
    wanted = len(draw_rows(len(labels), rate, seed=seed, what="labels"))
    if wanted > len(able):
        raise ConfigError(
            f"{wanted} of {len(labels)} labels cannot be wrong: {len(able)} have a confusable word",
            fix="lower the rate, or name more pairs",
        )
    chosen = generator(seed, "noise", "confusable").permutation(able)[:wanted]
    noisy = labels.copy()
    noisy[chosen] = partner[labels[chosen]]
    return noisy


def audio_faults(
    x: np.ndarray, *, kinds: Sequence[Fault], rate: float, snr: float = 0.0, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clips of which ``round(rate · n)`` have a fault, each of the kinds in turn.

    white: white noise, ``snr`` decibels below the clip. babble: the sum of four other clips, so.
    clipping: cut off at 5 % of the peak, and as loud as before. silence: nothing but rounding
    noise. truncation: all behind the first 20 to 45 % is gone. The level that noise is compared
    with is the clip's, or the median over all clips if that is louder: so is a quiet room's.
    Returns the clips, and which of them have a fault (``bool[n]``).
    """
    unknown = set(kinds) - set(get_args(Fault))
    if unknown or not kinds:
        raise ConfigError(f"kinds are some of {', '.join(get_args(Fault))}, not {sorted(unknown)}")
    chosen = draw_rows(len(x), rate, seed=seed, what="clips")
    level = float(np.median(np.square(x, dtype=np.float64).mean(axis=1)))
    corrupted = x.copy()
    for number, row in enumerate(chosen.tolist()):
        kind = kinds[number % len(kinds)]
        rng = generator(seed, "noise", kind, row)
        clip = x[row].astype(np.float64)
        power = max(float(np.square(clip).mean()), level) * 10 ** (-snr / 10)
        if kind == "babble":
            clip = clip + _scaled(_voices(x, row, rng), power)
        else:
            clip = _FAULTS[kind](clip, power, rng)
        corrupted[row] = np.round(clip).clip(-32768, 32767).astype(x.dtype)
    return corrupted, mask_of_rows(chosen, len(x))


def feature_noise(
    features: np.ndarray, *, rate: float = 0.5, sigma: float = 15.0, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features of which ``round(rate · n)`` become ``x + σ · N(0, 1)``, not clipped.

    The corruption published for speech (arXiv 2506.11615), on MFCC in librosa's units, also on the
    frames that only pad a clip; unlike there it is drawn once. Returns the features, and which were
    corrupted (``bool[n]``).
    """
    chosen = draw_rows(len(features), rate, seed=seed, what="features")
    corrupted = features.copy()
    for row in chosen.tolist():
        draw = generator(seed, "noise", "features", row).standard_normal(features.shape[1:])
        corrupted[row] = features[row] + sigma * draw
    return corrupted, mask_of_rows(chosen, len(features))


def _white(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    return clip + _scaled(rng.standard_normal(len(clip)), power)


def _clipping(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    ceiling = max(CEILING * np.abs(clip).max(), 1.0)
    return clip.clip(-ceiling, ceiling) / CEILING


def _silence(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-1, 2, len(clip)).astype(np.float64)


def _truncation(clip: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    end = round(rng.uniform(*KEPT) * len(clip))
    return np.where(np.arange(len(clip)) < end, clip, _silence(clip, power, rng))


_FAULTS: Mapping[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "white": _white,
    "clipping": _clipping,
    "silence": _silence,
    "truncation": _truncation,
}


def _voices(x: np.ndarray, row: int, rng: np.random.Generator) -> np.ndarray:
    """The sum of other clips, each equally loud."""
    others = rng.choice(len(x) - 1, size=min(VOICES, len(x) - 1), replace=False)
    others = others + (others >= row)  # never the clip itself
    clips = x[others].astype(np.float64)
    return sum((_scaled(clip, 1.0) for clip in clips), np.zeros(x.shape[1]))


def _scaled(noise: np.ndarray, power: float) -> np.ndarray:
    """The same noise at that mean square; silence stays silence."""
    own = float(np.square(noise).mean())
    return noise * np.sqrt(power / own) if own > 0 else noise
