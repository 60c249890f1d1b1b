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

from expunge._core.rng import derive, temp_seed
from expunge.data import Samples, TensorInputs
from expunge.data.sources import DataConfig, LabelFile, read, replace_labels
from expunge.demo.noise import GroundTruth, NoisyDataset, gaussian_inputs, mild_inputs, wrong_labels
from expunge.errors import ConfigError, DataError
from expunge.models.zoo import resnet
from expunge.training.loop import TuneConfig
from expunge_bench.fields import Setting
from expunge_bench.instance_noise import ambiguous, instance_dependent, mean_prediction, scaled

# Kinds of noise, and the rates that a suite takes; the others have a rate of their own.
NOISES: Mapping[str, tuple[float, ...]] = {
    "none": (),
    "symmetric": (0.2, 0.4, 0.6),
    "pair": (0.4,),
    "instance": (0.4,),
    "idn_20": (),
    "human_aggregate": (),
    "human_random1": (),
    "gaussian": (0.5,),
    "mild": (0.3,),
    "both": (0.4,),
}
# Ways to make labels wrong by what the image shows; see `instance_noise`.
INSTANCE = ("instance", "instance-raw", "ambiguous")
TRAINING: Mapping[str, TuneConfig] = {
    "fresh": TuneConfig(targets="all", epochs=20, lr=0.2, batch_size=128),
    "memorised": TuneConfig(targets="all", epochs=24, lr=0.2, batch_size=128, augment=False),
}
HELD_OUT = 5_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Extra:
    """A label column of the user's own, and one with the truth: ``FILE:COLUMN`` each."""

    labels: str
    truth: str


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 as a user has it: a folder with ``train.parquet`` and ``test.parquet``, or the
    original ``cifar-10-batches-py``. extra: label columns for the noise ``"labels"``.
    """

    path: Path
    extra: Extra | None = None

    name = "cifar10"
    most = 25_000

    @property
    def noises(self) -> Mapping[str, tuple[float, ...]]:
        """Kinds of noise and their usual rates."""
        return {"labels": ()} if self.extra else NOISES

    @property
    def training(self) -> Mapping[str, TuneConfig]:
        """How networks are trained, by state."""
        return TRAINING

    def network(self, seed: int) -> nn.Module:
        """An untrained residual network: 309,000 weights."""
        with temp_seed(seed, "network"):
            return resnet(classes=10, widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1))

    @cached_property
    def train(self) -> Samples:
        """All training images, decoded once."""
        return self._read("train")

    @cached_property
    def test(self) -> Samples:
        """All test images; no decision sees them."""
        return self._read("test")

    def scene(self, setting: Setting) -> NoisyDataset:
        """The first n training images with the setting's faults, and all test images.

        Of the training images behind these a fifth as many, 5,000 at most, are held out: faults of
        the same kind at the same rate.
        """
        n = setting.n
        if n > len(self.train):
            raise DataError(f"{n} samples of {len(self.train)}", fix="lower n")
        train, truth = self._faulty(setting, np.arange(n))
        rows = np.arange(n, min(n + min(n // 5, HELD_OUT), len(self.train)))
        other = replace(setting, seed=derive(setting.seed, "held out"))
        held_out = self._faulty(other, rows)[0] if len(rows) > 1 else None
        return NoisyDataset(train, self.test, truth, held_out)

    def _faulty(self, setting: Setting, rows: np.ndarray) -> tuple[Samples, GroundTruth]:
        """Some training images with the setting's faults."""
        labels, truth = self._labels(setting, rows)
        pixels, fault = self._pixels(setting, rows)
        inputs = TensorInputs(torch.from_numpy(pixels))
        samples = replace(self.train, ids=self.train.ids[rows], labels=labels, inputs=inputs)
        return samples, GroundTruth(truth, labels != truth, fault)

    def _labels(self, setting: Setting, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The labels given and the right ones."""
        noise, rate, seed = setting.noise, setting.rate, setting.seed
        truth = self.train.labels[rows]
        if noise == "labels":
            if self.extra is None:
                raise ConfigError(
                    "noise 'labels' needs the labels", fix="give labels and truth, FILE:COLUMN each"
                )
            return self._column(self.extra.labels)[rows], self._column(self.extra.truth)[rows]
        if noise in ("idn_20", "human_aggregate", "human_random1"):
            return self._column(f"{self.path / 'train.parquet'}:{noise}")[rows], truth
        if noise in ("symmetric", "both"):
            share = rate / 2 if noise == "both" else rate
            noisy = wrong_labels(truth, rate=share, noise="symmetric", classes=10, seed=seed)
        elif noise == "pair":
            noisy = wrong_labels(truth, rate=rate, noise="pair", classes=10, seed=seed)
        elif noise in ("instance", "instance-raw"):
            pixels = self._images(rows)
            x = scaled(pixels, "raw") if noise == "instance-raw" else _standardised(pixels)
            noisy = instance_dependent(x, truth, rate=rate, classes=10, seed=seed)
        elif noise == "ambiguous":
            right = self.train.subset(rows)
            noisy = ambiguous(
                mean_prediction(self.network(seed), right, seed=seed), truth, rate=rate
            )
        else:
            noisy = truth
        return noisy, truth

    def _pixels(self, setting: Setting, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images, and which of them were corrupted."""
        noise, rate, seed = setting.noise, setting.rate, setting.seed
        pixels = self._images(rows)
        if noise in ("gaussian", "both"):
            share = rate / 2 if noise == "both" else rate
            x, fault = gaussian_inputs(_standardised(pixels), rate=share, sigma=4.5, seed=seed)
            return np.where(fault[:, None, None, None], _stored(x), pixels), fault
        if noise == "mild":
            x, fault = mild_inputs(pixels.astype(np.float32) / 255, rate=rate, seed=seed)
            return np.round(255 * x).astype(np.uint8), fault
        return pixels, np.zeros(len(pixels), dtype=bool)

    def _images(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.train.inputs.batch(rows))

    def _column(self, text: str) -> np.ndarray:
        """Labels from ``FILE:COLUMN``, joined by id."""
        file, _, column = text.rpartition(":")
        if not file or not column:
            raise ConfigError(f"'{text}' is not FILE:COLUMN")
        return replace_labels(self.train, LabelFile(file, column), folder=Path.cwd()).labels

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


def _standardised(pixels: np.ndarray) -> np.ndarray:
    """``uint8[n, C, H, W]`` → mean 0, deviation 1 by channel."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return (pixels.astype(np.float32) / 255 - mean) / std


def _stored(x: np.ndarray) -> np.ndarray:
    """The inverse, rounded."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return np.round(255 * np.clip(x * std + mean, 0, 1)).astype(np.uint8)
