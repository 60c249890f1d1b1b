"""Synthetic noise for clean data, and the ground truth about it.

The repair never receives a `GroundTruth`: only the demo and the benchmarks use it, to measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge._core.arrays import Array, Bools, Floats, Ints
from expunge._core.rng import generator
from expunge.data import Samples
from expunge.errors import ConfigError, check_range
from expunge.evaluation import metrics

LabelNoise = Literal["symmetric", "pair"]


@dataclass(frozen=True)
class GroundTruth:
    """The true labels of n samples, and which samples were corrupted and how.

    Parameters
    ----------
    labels
        ``int64[n]``. The true labels.
    label_fault
        ``bool[n]``. Whether the given label is wrong.
    input_fault
        ``bool[n]``. Whether the input was corrupted.
    """

    labels: Ints
    label_fault: Bools
    input_fault: Bools

    @property
    def noisy(self) -> Bools:
        """``bool[n]``: whether the label is wrong or the input is corrupted."""
        return self.label_fault | self.input_fault

    def detection_metrics(self, score: Floats, flagged: Bools) -> dict[str, float]:
        """Measure how well a detector finds the noisy samples.

        Parameters
        ----------
        score
            ``float64[n]``. Higher = more suspicious.
        flagged
            ``bool[n]``. The detector's decision.

        Returns
        -------
        dict
            ``auroc``, ``auprc`` and ``max_f1`` of the score and ``f1`` of the decision. Empty if no
            sample is noisy.

        Examples
        --------
        >>> import numpy as np
        >>> wrong = np.array([True, False, False])
        >>> truth = GroundTruth(np.array([1, 0, 1]), wrong, np.zeros(3, dtype=bool))
        >>> truth.detection_metrics(np.array([0.9, 0.2, 0.1]), wrong)
        {'auroc': 1.0, 'auprc': 1.0, 'max_f1': 1.0, 'f1': 1.0}
        """
        if not self.noisy.any():
            return {}
        found = metrics.detection(self.noisy, score)
        measured = {"max_f1" if name == "best_f1" else name: v for name, v in found.items()}
        return {**measured, "f1": metrics.f1(self.noisy, flagged)}


@dataclass(frozen=True)
class NoisyDataset:
    """Noisy training samples, clean test samples, and the ground truth about the noise.

    Parameters
    ----------
    train
        The samples with noise in them.
    test
        Samples that measure a model. No stage decides anything by them.
    truth
        The ground truth about ``train``. No stage of a repair receives it.
    held_out
        More samples with the same kind of noise. No model is trained on them.
    """

    train: Samples
    test: Samples
    truth: GroundTruth
    held_out: Samples | None = None


def wrong_labels(labels: Ints, *, rate: float, noise: LabelNoise, classes: int, seed: int) -> Ints:
    """Replace exactly ``round(rate · n)`` labels by wrong ones.

    Parameters
    ----------
    labels
        ``int64[n]``. The true labels.
    rate
        The noise rate, in [0, 1).
    noise
        ``"symmetric"``: any other class with equal probability. ``"pair"``: the next class,
        ``c → c + 1 mod classes``.
    classes
        The number of classes.
    seed
        Seed of the rows and of the wrong labels.

    Returns
    -------
    ndarray
        ``int64[n]``. A noisy copy.

    Raises
    ------
    ConfigError
        If the rate lies outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> y = np.arange(10)
    >>> int((wrong_labels(y, rate=0.3, noise="pair", classes=10, seed=0) != y).sum())
    3
    """
    chosen = draw_rows(len(labels), rate, seed=seed, what="labels")
    rng = generator(seed, "noise", noise)
    shift = rng.integers(1, classes, len(chosen)) if noise == "symmetric" else 1
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + shift) % classes
    return noisy


def gaussian_inputs(x: Array, *, rate: float, sigma: float, seed: int) -> tuple[Array, Bools]:
    """Replace ``round(rate · n)`` inputs by ``clip(x + σ · N(0, 1), 0, 1)``.

    Parameters
    ----------
    x
        ``float[n, …]``. Published on images standardised by channel.
    rate
        The noise rate, in [0, 1).
    sigma
        Standard deviation of the noise, in the units of ``x``.
    seed
        Seed of the rows and of the noise. The noise of a sample is drawn once.

    Returns
    -------
    tuple
        The inputs, and ``bool[n]``: which of them were corrupted.

    Raises
    ------
    ConfigError
        If the rate lies outside [0, 1).

    References
    ----------
    The corruption of arXiv 2506.11615.

    Examples
    --------
    >>> import numpy as np
    >>> x, corrupted = gaussian_inputs(np.zeros((4, 2)), rate=0.5, sigma=4.5, seed=0)
    >>> int(corrupted.sum()), bool((x[~corrupted] == 0).all())
    (2, True)
    """
    chosen = draw_rows(len(x), rate, seed=seed, what="inputs")
    corrupted = x.copy()
    draw = generator(seed, "noise", "gaussian").standard_normal((len(chosen), *x.shape[1:]))
    corrupted[chosen] = np.clip(x[chosen] + sigma * draw, 0, 1).astype(x.dtype)
    return corrupted, mask_of_rows(chosen, len(x))


def mild_inputs(x: Array, *, rate: float, seed: int) -> tuple[Array, Bools]:
    """Blur, occlude or fade ``round(rate · n)`` images, a third of them each.

    Blur: Gaussian, σ = 1/16 of the side. Occlusion: a grey square of half the side at a random
    place. Contrast: reduced to a fifth around the image's mean.

    Parameters
    ----------
    x
        ``float[n, C, H, W]`` in [0, 1].
    rate
        The noise rate, in [0, 1).
    seed
        Seed of the rows and of the places.

    Returns
    -------
    tuple
        The images, and ``bool[n]``: which of them were corrupted.

    Raises
    ------
    ConfigError
        If the rate lies outside [0, 1).
    """
    from scipy.ndimage import gaussian_filter

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


def mask_of_rows(rows: Ints, n: int) -> Bools:
    """``bool[n]``: True in these rows."""
    mask = np.zeros(n, dtype=bool)
    mask[rows] = True
    return mask


def draw_rows(n: int, rate: float, *, seed: int, what: str) -> Ints:
    """Draw ``round(rate · n)`` of n rows without replacement.

    Raises
    ------
    ConfigError
        If the rate lies outside [0, 1).
    """
    check_range(ConfigError, {"the noise rate": (rate, "[0, 1)")})
    return generator(seed, "rows", what).permutation(n)[: round(rate * n)]
