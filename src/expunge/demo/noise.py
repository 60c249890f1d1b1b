"""Faults put into clean data on purpose, and the truth about them. Only benchmarks see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from expunge._core.rng import generator
from expunge.data import Samples
from expunge.errors import ConfigError
from expunge.evaluation import metrics

LabelNoise = Literal["symmetric", "pair"]


@dataclass(frozen=True)
class GroundTruth:
    """What is really so: the right labels, and which samples were made bad, and how."""

    labels: np.ndarray
    label_fault: np.ndarray
    input_fault: np.ndarray

    @property
    def noisy(self) -> np.ndarray:
        """``bool[n]``: bad in one way or another."""
        return self.label_fault | self.input_fault

    def found_by(self, score: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
        """AUROC, average precision and best F1 of a score, F1 of a decision; {} without faults."""
        if not self.noisy.any():
            return {}
        return metrics.detection(self.noisy, score) | {"f1": metrics.f1(self.noisy, flagged)}


@dataclass(frozen=True)
class NoisyDataset:
    """Training and test samples; truth is for measuring alone, no stage of a repair gets it.

    held_out: more samples with the same faults, which no model is trained on.
    """

    train: Samples
    test: Samples
    truth: GroundTruth
    held_out: Samples | None = None


def wrong_labels(
    labels: np.ndarray, *, rate: float, noise: LabelNoise, classes: int, seed: int
) -> np.ndarray:
    """Labels of which exactly ``round(rate · n)`` are wrong.

    symmetric: any other class, equally likely. pair: always the next class (c → c + 1 mod k).
    """
    chosen = draw_rows(len(labels), rate, seed=seed, what="labels")
    rng = generator(seed, "noise", noise)
    shift = rng.integers(1, classes, len(chosen)) if noise == "symmetric" else 1
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + shift) % classes
    return noisy


def gaussian_inputs(
    x: np.ndarray, *, rate: float, sigma: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of which ``round(rate · n)`` are replaced by ``clip(x + σ · N(0, 1), 0, 1)``.

    The published corruption (arXiv 2506.11615), fixed for each sample; published on images that
    were standardised by channel before. Returns the inputs, and which were corrupted (``bool[n]``).
    """
    chosen = draw_rows(len(x), rate, seed=seed, what="inputs")
    corrupted = x.copy()
    draw = generator(seed, "noise", "gaussian").standard_normal((len(chosen), *x.shape[1:]))
    corrupted[chosen] = np.clip(x[chosen] + sigma * draw, 0, 1).astype(x.dtype)
    return corrupted, mask_of_rows(chosen, len(x))


def mild_inputs(x: np.ndarray, *, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of which ``round(rate · n)`` are blurred, occluded or low in contrast, a third each.

    Blur: Gaussian, σ = 1/16 of the side. Occlusion: a grey square of half the side somewhere.
    Contrast: a fifth of it, around the image's mean. x: ``float[n, C, H, W]`` in [0, 1].
    Returns the inputs, and which were corrupted (``bool[n]``).
    """
    chosen = draw_rows(len(x), rate, seed=seed, what="inputs")
    rng = generator(seed, "noise", "mild")
    corrupted = x.copy()
    side = x.shape[-1]
    blurred, occluded, faded = np.array_split(chosen, 3)
    corrupted[blurred] = gaussian_filter(x[blurred], (0, 0, side / 16, side / 16))
    for row in occluded:
        top, left = rng.integers(0, side - side // 2 + 1, 2)
        corrupted[row, :, top : top + side // 2, left : left + side // 2] = 0.5
    means = x[faded].mean(axis=(1, 2, 3), keepdims=True)
    corrupted[faded] = means + (x[faded] - means) / 5
    return corrupted, mask_of_rows(chosen, len(x))


def mask_of_rows(rows: np.ndarray, n: int) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[rows] = True
    return found


def draw_rows(n: int, rate: float, *, seed: int, what: str) -> np.ndarray:
    """``round(rate · n)`` of n rows, drawn without replacement."""
    if not 0 <= rate < 1:
        raise ConfigError(f"the noise rate must lie in [0, 1), not {rate}", fix="0.4 means 40 %")
    return generator(seed, "rows", what).permutation(n)[: round(rate * n)]
