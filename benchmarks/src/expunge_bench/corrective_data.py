"""Manipulated training data of which a part is known: poison with a patch, confused classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from expunge._core.arrays import Bools, Ints
from expunge._core.rng import generator
from expunge.data import Samples, TensorInputs
from expunge.errors import ConfigError
from expunge_bench.datasets import BenchmarkDataset, Setting

Manipulation = Literal["poison", "confusion"]
MANIPULATIONS: tuple[Manipulation, ...] = get_args(Manipulation)
# The class that poisoned samples are labelled as, and the two classes that are confused, by data.
TARGET_CLASS = 0
CONFUSED_CLASSES: Mapping[str, tuple[int, int]] = {"cifar10": (3, 5), "digits": (3, 8)}
# Sides of the patch in pixels, for images of 16 pixels or more and for smaller ones.
_PATCH, _SMALL_PATCH = 3, 2


@dataclass(frozen=True)
class Manipulated:
    """A manipulated training set, the test set, and what was done.

    Parameters
    ----------
    train
        The training samples with the manipulation.
    test
        The clean test samples.
    bad
        ``bool[n]``, the manipulated training samples.
    manipulation
        What was done to them.
    affected
        Test samples that show what is left, with their right labels: patched ones of other classes
        than the target, or those of the confused classes.
    originals
        The same test samples without the patch.
    """

    train: Samples
    test: Samples
    bad: Bools
    manipulation: Manipulation
    affected: Samples
    originals: Samples

    def known(self, share: float, seed: int) -> Bools:
        """Draw the manipulated samples that are known, ``bool[n]``; a larger share adds to them."""
        rows = generator(seed, "known").permutation(np.flatnonzero(self.bad))
        known = np.zeros(len(self.bad), dtype=bool)
        known[rows[: n_known(share, len(rows))]] = True
        return known


def n_known(share: float, count: int) -> int:
    """The number of manipulated samples that are known: a share of them, and at least one."""
    return max(1, round(share * count))


def manipulate(
    dataset: BenchmarkDataset, manipulation: Manipulation, setting: Setting, *, count: int
) -> Manipulated:
    """Manipulate some training samples of a data set.

    Parameters
    ----------
    dataset
        Images.
    manipulation
        ``"poison"`` pastes a bright patch into a corner and sets the label to class 0.
        ``"confusion"`` swaps the labels of two classes on as many samples of each.
    setting
        Size and seed; its noise must be ``"none"``.
    count
        The number of manipulated samples.

    Raises
    ------
    ConfigError
        If there are not that many samples to manipulate.
    """
    clean = dataset.noisy_dataset(setting)
    train, test = clean.train, clean.test
    draw = generator(setting.seed, "manipulated", manipulation)
    if manipulation == "poison":
        rows = _draw(np.flatnonzero(train.labels != TARGET_CLASS), count, draw)
        train = patched(train, rows)
        labels = train.labels.copy()
        labels[rows] = TARGET_CLASS
        originals = test.subset(np.flatnonzero(test.labels != TARGET_CLASS))
        affected = patched(originals, np.arange(len(originals)))
    else:
        first, second = CONFUSED_CLASSES[dataset.name]
        halves = ((first, count - count // 2), (second, count // 2))
        rows = np.concatenate(
            [_draw(np.flatnonzero(train.labels == c), half, draw) for c, half in halves]
        )
        labels = train.labels.copy()
        labels[rows] = first + second - labels[rows]
        originals = affected = test.subset(np.flatnonzero(np.isin(test.labels, (first, second))))
    bad = np.isin(np.arange(len(train)), rows)
    return Manipulated(replace(train, labels=labels), test, bad, manipulation, affected, originals)


def patched(samples: Samples, rows: Ints) -> Samples:
    """Paste a patch of the largest value into the lower right corner of some images."""
    pixels = torch.as_tensor(samples.inputs.batch(np.arange(len(samples)))).clone()
    side = _PATCH if pixels.shape[-1] >= 16 else _SMALL_PATCH
    pixels[torch.from_numpy(rows), :, -side:, -side:] = 255 if pixels.dtype == torch.uint8 else 1
    return replace(samples, inputs=TensorInputs(pixels))


def _draw(rows: Ints, count: int, draw: np.random.Generator) -> Ints:
    if count > len(rows):
        raise ConfigError(
            f"{count:,} samples are to be manipulated and there are {len(rows):,} of these classes",
            fix="lower --manipulated, or raise --n",
        )
    return draw.choice(rows, count, replace=False)
