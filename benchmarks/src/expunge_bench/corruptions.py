"""What happens to inputs outside of the domain: images and texts, spoilt on purpose."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from expunge._core.rng import generator
from expunge.text.sentences import split_sentences

# Six of the kinds of arXiv 1903.12261, at about the middle of its five severities for small images;
# the numbers are ours. Pixels ``float32[n, 3, h, w]`` in [0, 1] → the same.
Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SPREAD, BLUR, CONTRAST, BRIGHTER, SMALLER, QUALITY = 0.08, 0.9, 0.4, 0.2, 0.5, 30
# Shares of letters and of words.
TYPOS, DROPPED = 0.2, 0.5


def noise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + SPREAD * rng.standard_normal(x.shape, dtype=np.float32)


def blur(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return gaussian_filter(x, (0, 0, BLUR, BLUR))


def contrast(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    means = x.mean(axis=(1, 2, 3), keepdims=True)
    return means + CONTRAST * (x - means)


def brightness(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + BRIGHTER


def pixelate(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Made smaller by averages, and large again by repetition."""
    h, w = x.shape[2:]
    small = round(SMALLER * w), round(SMALLER * h)

    def redrawn(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((w, h), Image.Resampling.NEAREST)

    return _as_pictures(x, redrawn)


def jpeg(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coded as JPEG, and decoded."""

    def coded(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        return Image.open(buffer)

    return _as_pictures(x, coded)


IMAGES: Mapping[str, Corruption] = {
    f.__name__: f for f in (noise, blur, contrast, brightness, pixelate, jpeg)
}


def corrupted(pixels: np.ndarray, kind: str, *, seed: int) -> np.ndarray:
    """``uint8[n, 3, h, w]`` → the same, with a corruption of `IMAGES` on every image."""
    x = IMAGES[kind](pixels.astype(np.float32) / 255, generator(seed, "corruption", kind))
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _as_pictures(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    pixels = np.round(255 * x).astype(np.uint8).transpose(0, 2, 3, 1)
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return changed.transpose(0, 3, 1, 2).astype(np.float32) / 255


def headline(text: str, rng: np.random.Generator) -> str:
    """The first sentence alone: of a news article, its title."""
    spans = split_sentences(text)
    return text[spans[0, 0] : spans[0, 1]] if len(spans) else text


def typos(text: str, rng: np.random.Generator) -> str:
    """A fifth of the letters replaced by any letter."""
    wrong = rng.random(len(text)) < TYPOS
    letters = rng.integers(ord("a"), ord("z") + 1, len(text))
    return "".join(
        chr(new) if bad and c.isalpha() else c
        for c, bad, new in zip(text, wrong, letters.tolist(), strict=True)
    )


def dropped(text: str, rng: np.random.Generator) -> str:
    """Half of the words left out, but not all."""
    words = np.array(text.split() or [""])
    kept = rng.random(len(words)) >= DROPPED
    return " ".join(words[kept] if kept.any() else words[:1])


TEXTS: Mapping[str, Callable[[str, np.random.Generator], str]] = {
    f.__name__: f for f in (headline, typos, dropped)
}
