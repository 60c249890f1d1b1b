"""Out-of-domain inputs: corruptions of images and of texts."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from expunge._core.rng import generator
from expunge.text.sentences import split_sentences

# Six kinds of arXiv 1903.12261 at about the middle of its five severities for small images; the
# numbers are ours. Pixels ``float32[n, 3, h, w]`` in [0, 1] → the same.
Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]
NOISE_SIGMA, BLUR_SIGMA = 0.08, 0.9
CONTRAST_FACTOR, BRIGHTNESS_SHIFT, PIXELATE_FACTOR, JPEG_QUALITY = 0.4, 0.2, 0.5, 30
TYPO_RATE, WORD_DROP_RATE = 0.2, 0.5


def noise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise."""
    return np.asarray(x + NOISE_SIGMA * rng.standard_normal(x.shape, dtype=np.float32))


def blur(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a Gaussian blur."""
    return np.asarray(gaussian_filter(x, (0, 0, BLUR_SIGMA, BLUR_SIGMA)))


def contrast(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduce the contrast around the mean of each image."""
    means = x.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(means + CONTRAST_FACTOR * (x - means))


def brightness(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a constant."""
    return x + BRIGHTNESS_SHIFT


def pixelate(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Downscale by averaging and upscale by repetition."""
    h, w = x.shape[2:]
    small = round(PIXELATE_FACTOR * w), round(PIXELATE_FACTOR * h)

    def resize(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((w, h), Image.Resampling.NEAREST)

    return _map_pil_images(x, resize)


def jpeg(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Encode as JPEG and decode."""

    def encode(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return Image.open(buffer)

    return _map_pil_images(x, encode)


IMAGE_CORRUPTIONS: Mapping[str, Corruption] = {
    f.__name__: f for f in (noise, blur, contrast, brightness, pixelate, jpeg)
}


def corrupt_images(pixels: np.ndarray, kind: str, *, seed: int) -> np.ndarray:
    """Apply a corruption of `IMAGE_CORRUPTIONS` to every image, ``uint8[n, 3, h, w]``."""
    x = IMAGE_CORRUPTIONS[kind](
        pixels.astype(np.float32) / 255, generator(seed, "corruption", kind)
    )
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _map_pil_images(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    pixels = np.round(255 * x).astype(np.uint8).transpose(0, 2, 3, 1)
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return changed.transpose(0, 3, 1, 2).astype(np.float32) / 255


def headline(text: str, rng: np.random.Generator) -> str:
    """Keep the first sentence: the title of a news article."""
    spans = split_sentences(text)
    return text[spans[0, 0] : spans[0, 1]] if len(spans) else text


def typos(text: str, rng: np.random.Generator) -> str:
    """Replace a fifth of the letters by random letters."""
    wrong = rng.random(len(text)) < TYPO_RATE
    letters = rng.integers(ord("a"), ord("z") + 1, len(text))
    return "".join(
        chr(new) if bad and c.isalpha() else c
        for c, bad, new in zip(text, wrong, letters.tolist(), strict=True)
    )


def dropped(text: str, rng: np.random.Generator) -> str:
    """Drop half of the words, but not all."""
    words = np.array(text.split() or [""])
    kept = rng.random(len(words)) >= WORD_DROP_RATE
    return " ".join(words[kept] if kept.any() else words[:1])


TEXT_CORRUPTIONS: Mapping[str, Callable[[str, np.random.Generator], str]] = {
    f.__name__: f for f in (headline, typos, dropped)
}
