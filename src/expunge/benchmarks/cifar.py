"""CIFAR-10 with faults of many kinds, and networks trained on it: what the suites start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from expunge import pipeline
from expunge.benchmarks.noise import (
    Scene,
    Truth,
    gaussian_inputs,
    instance_dependent,
    mild_inputs,
    wrong_labels,
)
from expunge.data import Samples
from expunge.data.samples import TensorInputs
from expunge.data.sources import DataConfig, LabelFile, other_labels, read
from expunge.errors import ConfigError, DataError
from expunge.models import resnet
from expunge.progress import Progress, silent
from expunge.rng import seeded
from expunge.tuning import TuneConfig

NOISES = (
    *("none", "symmetric", "pair", "instance", "idn_20", "human_aggregate", "human_random1"),
    *("gaussian", "mild", "both", "labels"),
)
# Rates that a suite takes where none is asked for; the others have a rate of their own.
RATES: Mapping[str, tuple[float, ...]] = {
    "symmetric": (0.2, 0.4, 0.6),
    "pair": (0.4,),
    "instance": (0.4,),
    "gaussian": (0.5,),
    "mild": (0.3,),
    "both": (0.4,),
}
State = Literal["fresh", "memorised"]
# Fresh: stopped early and augmented, as one who knows of noise would. Memorised: trained until the
# labels are fitted, as one would a clean set.
TRAINING: Mapping[str, TuneConfig] = {
    "fresh": TuneConfig(data="everything", epochs=20, lr=0.2, batch_size=128),
    "memorised": TuneConfig(data="everything", epochs=24, lr=0.2, batch_size=128, augment=False),
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Extra:
    """A label column of the user's own, and one with the truth: ``FILE:COLUMN`` each."""

    labels: str
    truth: str


@dataclass(frozen=True)
class Setting:
    """One training set and one network: n samples, a kind of noise at a rate, a state, a seed."""

    noise: str
    rate: float = 0.0
    state: State = "fresh"
    seed: int = 0
    n: int = 25_000

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise ConfigError(f"noise '{self.noise}' is none of: {', '.join(NOISES)}")
        if self.state not in TRAINING:
            raise ConfigError(f"state '{self.state}' is none of: {', '.join(TRAINING)}")

    @property
    def name(self) -> str:
        """A folder name."""
        rate = f"-{self.rate:g}" if self.noise in RATES else ""
        return f"{self.noise}{rate}-{self.state}-{self.n}-{self.seed}"


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 as a user has it: a folder with ``train.parquet`` and ``test.parquet``, or the
    original ``cifar-10-batches-py``. extra: label columns for the noise ``"labels"``.
    """

    path: Path
    extra: Extra | None = None

    @cached_property
    def train(self) -> Samples:
        """All training images, decoded once."""
        return self._read("train")

    @cached_property
    def test(self) -> Samples:
        """All test images; no decision sees them."""
        return self._read("test")

    def scene(self, setting: Setting) -> Scene:
        """The first n training images with the setting's faults, and all test images."""
        if setting.n > len(self.train):
            raise DataError(f"{setting.n} samples of {len(self.train)}", fix="lower n")
        rows = np.arange(setting.n)
        labels, truth = self._labels(setting)
        pixels, fault = self._pixels(setting)
        inputs = TensorInputs(torch.from_numpy(pixels))
        train = replace(self.train, ids=self.train.ids[rows], labels=labels[rows], inputs=inputs)
        return Scene(train, self.test, Truth(truth[rows], labels[rows] != truth[rows], fault))

    def _labels(self, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
        """The labels given and the right ones, for as many samples at least."""
        noise, rate, seed = setting.noise, setting.rate, setting.seed
        truth = self.train.labels
        if noise == "labels":
            if self.extra is None:
                raise ConfigError(
                    "noise 'labels' needs the labels", fix="give labels and truth, FILE:COLUMN each"
                )
            return self._column(self.extra.labels), self._column(self.extra.truth)
        if noise in ("idn_20", "human_aggregate", "human_random1"):
            return self._column(f"{self.path / 'train.parquet'}:{noise}"), truth
        truth = truth[: setting.n]
        if noise in ("symmetric", "both"):
            share = rate / 2 if noise == "both" else rate
            noisy = wrong_labels(truth, rate=share, noise="symmetric", classes=10, seed=seed)
        elif noise == "pair":
            noisy = wrong_labels(truth, rate=rate, noise="pair", classes=10, seed=seed)
        elif noise == "instance":
            x = _standardised(self._images(setting.n))
            noisy = instance_dependent(x, truth, rate=rate, classes=10, seed=seed)
        else:
            noisy = truth
        return noisy, truth

    def _pixels(self, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
        """The images, and which of them were corrupted."""
        noise, rate, seed = setting.noise, setting.rate, setting.seed
        pixels = self._images(setting.n)
        if noise in ("gaussian", "both"):
            share = rate / 2 if noise == "both" else rate
            x, fault = gaussian_inputs(_standardised(pixels), rate=share, sigma=4.5, seed=seed)
            return np.where(fault[:, None, None, None], _stored(x), pixels), fault
        if noise == "mild":
            x, fault = mild_inputs(pixels.astype(np.float32) / 255, rate=rate, seed=seed)
            return np.round(255 * x).astype(np.uint8), fault
        return pixels, np.zeros(len(pixels), dtype=bool)

    def _images(self, n: int) -> np.ndarray:
        return np.asarray(self.train.inputs.batch(np.arange(n)))

    def _column(self, text: str) -> np.ndarray:
        """Labels from ``FILE:COLUMN``, joined by id."""
        file, _, column = text.rpartition(":")
        if not file or not column:
            raise ConfigError(f"'{text}' is not FILE:COLUMN")
        return other_labels(self.train, LabelFile(file, column), folder=Path.cwd()).labels

    def _read(self, split: Literal["train", "test"]) -> Samples:
        file = self.path / f"{split}.parquet"
        hub = file.is_file()
        config = DataConfig(
            path=str((file if hub else self.path).absolute()),
            split=split,
            mean=MEAN,
            std=STD,
            view="crop-flip",
            id="id" if hub and split == "train" else None,
        )
        return read(config, folder=Path.cwd(), name=split)


def network(seed: int) -> nn.Module:
    """An untrained residual network: 309,000 weights."""
    with seeded(seed, "network"):
        return resnet(classes=10, widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1))


def trained(
    scene: Scene, setting: Setting, out: Path, *, progress: Progress = silent
) -> pipeline.Trained:
    """The setting's network, trained on its samples; kept under ``out`` and used again."""
    return pipeline.train(
        network(setting.seed),
        scene.train,
        TRAINING[setting.state],
        seed=setting.seed,
        out=out / "models" / setting.name,
        progress=progress,
    )


def _standardised(pixels: np.ndarray) -> np.ndarray:
    """``uint8[n, C, H, W]`` → mean 0, deviation 1 by channel."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return (pixels.astype(np.float32) / 255 - mean) / std


def _stored(x: np.ndarray) -> np.ndarray:
    """The inverse, rounded."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return np.round(255 * np.clip(x * std + mean, 0, 1)).astype(np.uint8)
