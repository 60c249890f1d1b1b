"""Label noise that depends on the input: two published generators, and noise statistics.

The generator and the scaling of its inputs change the noise a lot. Report both, with the realised
rate and transition matrix (`noise_statistics`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import softmax
from scipy.stats import truncnorm
from torch import Tensor, nn

from expunge._core.progress import Progress, silent
from expunge._core.rng import generator
from expunge.data import Samples
from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError, check_range, did_you_mean
from expunge.storage.weights import fit_weights
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets

# raw: pixels in 0 … 255, as published. unit: in [0, 1]. standardised: by channel.
Scaling = Literal["raw", "unit", "standardised"]
# Standard deviation of the flip rates of `instance_dependent`, as published.
RATE_SPREAD = 0.1
DEFAULT_EPOCHS = 12


def instance_dependent(
    x: np.ndarray, labels: np.ndarray, *, rate: float, classes: int, seed: int
) -> np.ndarray:
    """Flip labels with a probability and to a class that depend on the input.

    Each sample has a flip rate ``q_i ~ N(rate, 0.1²)``, truncated to [0, 1]; each true class a
    projection ``W_y ~ N(0, 1)``. With ``a = x_iᵀ W_y`` and ``a_y = −∞`` the label becomes
    c ≠ y with probability ``q_i · softmax(a)_c``.

    Parameters
    ----------
    x
        ``float[n, …]``. Its scaling changes the noise, see `scale_pixels`: with raw or [0, 1]
        pixels most wrong labels of a class fall into one other class; with standardised ones about
        three in ten.
    labels
        ``int64[n]``. The true labels.
    rate
        The expected noise rate, in [0, 1].
    classes
        The number of classes.
    seed
        Seed of the flip rates, the projections and the labels.

    References
    ----------
    Xia et al., arXiv 2006.07836.
    """
    rng = generator(seed, "noise", "instance")
    low, high = -rate / RATE_SPREAD, (1 - rate) / RATE_SPREAD
    q = truncnorm.rvs(low, high, rate, RATE_SPREAD, size=len(labels), random_state=rng)
    flat = x.reshape(len(x), -1)
    noisy = labels.copy()
    for y in range(classes):
        rows = np.flatnonzero(labels == y)
        a = flat[rows] @ rng.standard_normal((flat.shape[1], classes)).astype(flat.dtype)
        a[:, y] = -np.inf
        p = q[rows, None] * softmax(a.astype(np.float64), axis=1)
        p[:, y] = 1 - q[rows]
        draw = rng.random(len(rows))[:, None]
        noisy[rows] = np.minimum((p.cumsum(axis=1) < draw).sum(axis=1), classes - 1)
    return noisy


def scale_pixels(pixels: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Convert ``uint8[n, C, H, W]`` to ``float32`` on one of the scales in use.

    Parameters
    ----------
    pixels
        The images.
    scaling
        ``"raw"``: 0 … 255. ``"unit"``: [0, 1]. ``"standardised"``: by the mean and standard
        deviation of each channel over these images.

    Raises
    ------
    ConfigError
        If the scaling is unknown.
    """
    if scaling not in get_args(Scaling):
        raise ConfigError(
            f"expected a scaling among {', '.join(get_args(Scaling))}, got '{scaling}'",
            fix=did_you_mean(scaling, get_args(Scaling)),
        )
    x = pixels.astype(np.float32)
    if scaling == "raw":
        return x
    x /= 255
    if scaling == "unit":
        return x
    axes = (0, *range(2, x.ndim))
    return np.asarray((x - x.mean(axis=axes, keepdims=True)) / x.std(axis=axes, keepdims=True))


def ambiguous(probs: np.ndarray, labels: np.ndarray, *, rate: float) -> np.ndarray:
    """Replace the ``⌊rate · n⌋`` most ambiguous labels by the most probable other class.

    With S the mean prediction over a training on clean labels (`mean_prediction`), the candidate of
    a sample is ``argmax_{c≠y} S_c`` and its score ``max_{c≠y} S_c``. The samples with the largest
    scores get their candidates; ties go to the lower row. The rate is exact and nothing is random.

    Parameters
    ----------
    probs
        ``float[n, c]``: S.
    labels
        ``int64[n]``. The true labels.
    rate
        The noise rate, in [0, 1).

    Raises
    ------
    ConfigError
        If the rate lies outside [0, 1).
    DataError
        If there is not one row of probabilities for each label.

    References
    ----------
    Chen et al., arXiv 2012.05458.
    """
    check_range(ConfigError, {"the noise rate": (rate, "[0, 1)")})
    if probs.ndim != 2 or len(probs) != len(labels):
        raise DataError(
            f"expected probabilities of shape ({len(labels)}, c) for {len(labels)} labels, "
            f"got {probs.shape}"
        )
    others = np.array(probs, dtype=np.float64)
    others[np.arange(len(labels)), labels] = -np.inf
    chosen = np.argsort(-others.max(axis=1), kind="stable")[: int(rate * len(labels) + 1e-9)]
    noisy = labels.copy()
    noisy[chosen] = others[chosen].argmax(axis=1)
    return noisy


def mean_prediction(
    model: nn.Module,
    samples: Samples,
    *,
    epochs: int = DEFAULT_EPOCHS,
    seed: int = 0,
    progress: Progress = silent,
) -> np.ndarray:
    """Class probabilities averaged over the epochs of a training on true labels.

    Parameters
    ----------
    model
        The untrained network; it is not changed. The paper uses a WideResNet-28-10.
    samples
        The samples with their true labels. Each epoch predicts one random view of each.
    epochs
        The number of epochs. The paper uses 150.
    seed
        Seed of the training and of the views.
    progress
        Called during the training.

    Returns
    -------
    ndarray
        ``float64[n, c]``.

    Notes
    -----
    Cost: ``epochs`` epochs of training and as many passes.
    """
    average = _SumOfPredictions(copy.deepcopy(model), samples, seed)
    config = TuneConfig(targets="all", epochs=epochs, lr=0.2)
    tune(
        model,
        samples,
        build_targets(samples, None, config),
        config,
        seed=seed,
        checkpoint=average,
        progress=progress,
        what="noise",
    )
    return np.asarray(average.total / epochs)


@dataclass
class _SumOfPredictions:
    """A `Checkpoint` that sums the network's predictions after each epoch."""

    model: nn.Module
    samples: Samples
    seed: int
    total: np.ndarray | float = 0.0

    def load(self) -> None:
        return None

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        state = {k.removeprefix("model."): v for k, v in tensors.items() if k[:6] == "model."}
        fit_weights(self.model, state, where="noise")
        signals = collect(
            self.model,
            self.samples,
            needs=frozenset({"views"}),
            views=int(self.samples.view is not None),
            seed=self.seed + epoch,
        )
        assert signals.augmented_probs is not None
        self.total = self.total + np.asarray(signals.augmented_probs, dtype=np.float64)


def transition_matrix(truth: np.ndarray, noisy: np.ndarray, classes: int) -> np.ndarray:
    """``float64[c, c]``: the fraction of each given label (columns) by true class (rows)."""
    counts = np.bincount(truth * classes + noisy, minlength=classes**2).reshape(classes, classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def noise_statistics(truth: np.ndarray, noisy: np.ndarray, classes: int) -> Mapping[str, Any]:
    """Describe label noise.

    Parameters
    ----------
    truth, noisy
        ``int64[n]``. The true and the given labels.
    classes
        The number of classes.

    Returns
    -------
    dict
        ``rate``: the fraction of wrong labels. ``transition``: see `transition_matrix`.
        ``commonest_target``: the fraction of the commonest class among the wrong labels of a true
        class, averaged over classes (1 for pair flips, 1 / (c − 1) for symmetric noise); None
        without wrong labels. ``worst_class``: the lowest fraction of correct labels of a class.
    """
    matrix = transition_matrix(truth, noisy, classes)
    off = matrix.copy()
    np.fill_diagonal(off, 0.0)
    wrong = off.sum(axis=1)
    top = [o.max() / w for o, w in zip(off, wrong, strict=True) if w > 0]
    return {
        "rate": float((truth != noisy).mean()),
        "transition": [[round(float(v), 4) for v in row] for row in matrix],
        "commonest_target": float(np.mean(top)) if top else None,
        "worst_class": float(np.nanmin(np.diag(matrix))),
    }
