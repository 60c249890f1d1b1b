"""Wrong labels that depend on the image, by two published generators; and what they turn out to be.

Which of the two, at which scaling of the inputs, makes noise of quite different kinds: report both
with the realised rate and the transition matrix (`realised`).
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
from expunge.detection.needs import Need
from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError
from expunge.storage.weights import fit_weights
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets

# raw: pixels of 0 … 255, as published. unit: of 0 … 1. standardised: by channel.
Scaling = Literal["raw", "unit", "standardised"]
# Standard deviation of the rates that `instance_dependent` draws, as published.
RATE_SPREAD = 0.1
_EPOCHS = 12


def instance_dependent(
    x: np.ndarray, labels: np.ndarray, *, rate: float, classes: int, seed: int
) -> np.ndarray:
    """Labels that are wrong more often, and in another way, from image to image.

    The generator of Xia et al. (arXiv 2006.07836): a flip rate ``q_i ~ N(rate, 0.1²)`` truncated to
    [0, 1] for each sample; a projection ``W_y ~ N(0, 1)`` for each true class; with
    ``a = x_iᵀ W_y`` and ``a_y = −∞`` the label is c ≠ y with probability ``q_i · softmax(a)_c``.

    x: ``float[n, …]``. Its scaling shapes the noise (`scaled`): raw or [0, 1] pixels send most of a
    class to one other class; centred ones (mean 0, deviation 1 by channel) about three in ten.
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


def scaled(pixels: np.ndarray, scaling: Scaling) -> np.ndarray:
    """``uint8[n, C, H, W]`` as ``float32`` on one of the scales that papers and their code mix.

    standardised: by the mean and deviation of each channel over all of these images.
    """
    if scaling not in get_args(Scaling):
        raise ConfigError(f"scaling '{scaling}' is none of: {', '.join(get_args(Scaling))}")
    x = pixels.astype(np.float32)
    if scaling == "raw":
        return x
    x /= 255
    if scaling == "unit":
        return x
    axes = (0, *range(2, x.ndim))
    return (x - x.mean(axis=axes, keepdims=True)) / x.std(axis=axes, keepdims=True)


def ambiguous(probs: np.ndarray, labels: np.ndarray, *, rate: float) -> np.ndarray:
    """The ``⌊rate · n⌋`` labels that a network doubts most become its best other class.

    The generator of Chen et al. (arXiv 2012.05458): with S the mean prediction over a training on
    clean labels (`mean_prediction`), a sample's candidate is ``argmax_{c≠y} S_c``, its score that
    value; those with the largest scores get their candidates. So the rate is exact, nothing is
    random, and classes that look like others are hit most. Ties go to the lower row.

    probs: ``float[n, c]``. labels: ``int64[n]``, the right ones. rate: in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"the noise rate must lie in [0, 1), not {rate}", fix="0.4 means 40 %")
    if probs.ndim != 2 or len(probs) != len(labels):
        raise DataError(f"probabilities {probs.shape} for {len(labels)} labels")
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
    epochs: int = _EPOCHS,
    seed: int = 0,
    progress: Progress = silent,
) -> np.ndarray:
    """Class probabilities averaged over a training on right labels, ``float64[n, c]``.

    After every epoch one random view of each sample is looked at, as published. There: a
    WideResNet-28-10 and 150 epochs; here the model given and ``epochs``. Cost: that many epochs
    and passes.
    """
    seen = _Averages(copy.deepcopy(model), samples, seed)
    config = TuneConfig(targets="all", epochs=epochs, lr=0.2)
    every = build_targets(samples, None, config)
    tune(
        model,
        samples,
        every,
        config,
        seed=seed,
        checkpoint=seen,
        progress=progress,
        what="noise",
    )
    return np.asarray(seen.total / epochs)


@dataclass
class _Averages:
    """A `Checkpoint` that keeps what the network says of the samples after each epoch."""

    model: nn.Module
    samples: Samples
    seed: int
    total: np.ndarray | float = 0.0

    def load(self) -> None:
        return None

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        state = {k.removeprefix("model."): v for k, v in tensors.items() if k[:6] == "model."}
        fit_weights(self.model, state, where="noise")
        needs: frozenset[Need] = frozenset({"views"})
        signals = collect(self.model, self.samples, needs=needs, views=1, seed=self.seed + epoch)
        assert signals.augmented_probs is not None
        self.total = self.total + signals.augmented_probs.astype(np.float64)


def transition_matrix(truth: np.ndarray, noisy: np.ndarray, classes: int) -> np.ndarray:
    """``float64[c, c]``: shares of the labels (columns) in each true class (rows)."""
    counts = np.bincount(truth * classes + noisy, minlength=classes**2).reshape(classes, classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def realised(truth: np.ndarray, noisy: np.ndarray, classes: int) -> Mapping[str, Any]:
    """What noise turned out to be.

    rate: share of wrong labels. transition: see `transition_matrix`. top_target: of a class's wrong
    labels, the share of the commonest, the mean over classes: 1 for pair flips, 1 / (c − 1) for
    symmetric noise. worst_class: the lowest share of right labels.
    """
    matrix = transition_matrix(truth, noisy, classes)
    off = matrix.copy()
    np.fill_diagonal(off, 0.0)
    wrong = off.sum(axis=1)
    top = [o.max() / w for o, w in zip(off, wrong, strict=True) if w > 0]
    return {
        "rate": float((truth != noisy).mean()),
        "transition": [[round(float(v), 4) for v in row] for row in matrix],
        "top_target": float(np.mean(top)) if top else None,
        "worst_class": float(np.nanmin(np.diag(matrix))),
    }
