"""CIFAR-10 with injected noise, and the networks that benchmarks train on it."""

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
from expunge.data.data_config import DataConfig, LabelFile
from expunge.data.label_files import replace_labels
from expunge.data.sources import read
from expunge.demo.noise import GroundTruth, NoisyDataset, gaussian_inputs, mild_inputs, wrong_labels
from expunge.errors import ConfigError
from expunge.models.zoo import resnet
from expunge.training.loop import TuneConfig
from expunge_bench.datasets import Setting, check_sample_count
from expunge_bench.instance_noise import (
    ambiguous,
    instance_dependent,
    mean_prediction,
    scale_pixels,
)
from expunge_bench.original_files import cifar_folder, human_labels_file

# Kinds of noise and their default rates; () for noise whose rate is fixed.
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
# Noise that depends on the image; see `instance_noise`.
INSTANCE_NOISES = ("instance", "instance-raw", "ambiguous")
TRAINING: Mapping[str, TuneConfig] = {
    "regularised": TuneConfig(targets="all", epochs=20, lr=0.2, batch_size=128),
    "overfit": TuneConfig(targets="all", epochs=24, lr=0.2, batch_size=128, augment=False),
}
MAX_HELD_OUT = 5_000
GAUSSIAN_SIGMA = 4.5
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class LabelColumns:
    """Label columns of the user's own, ``FILE:COLUMN`` each.

    Parameters
    ----------
    labels
        The given labels.
    true_labels
        The true ones.
    """

    labels: str
    true_labels: str


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 as a user has it.

    Parameters
    ----------
    path
        A folder with ``train.parquet`` and ``test.parquet``, or the original
        ``cifar-10-batches-py``, itself or in a folder; CIFAR-10N's file may lie beside it.
    columns
        Label columns for the noise ``"labels"``.
    """

    path: Path
    columns: LabelColumns | None = None

    name = "cifar10"
    default_n = 25_000

    @property
    def noises(self) -> Mapping[str, tuple[float, ...]]:
        """Kinds of noise and their default rates."""
        return {"labels": ()} if self.columns else NOISES

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
        """All test images. No stage decides anything by them."""
        return self._read("test")

    def noisy_dataset(self, setting: Setting) -> NoisyDataset:
        """The first n training images with the setting's noise, and all test images.

        Of the next training images n / 5, at most `MAX_HELD_OUT`, are held out, with noise of the
        same kind and rate.

        Raises
        ------
        DataError
            If n is larger than the training set.
        """
        n = setting.n
        check_sample_count(n, len(self.train), where=self.name)
        train, truth = self._corrupted(setting, np.arange(n))
        rows = np.arange(n, min(n + min(n // 5, MAX_HELD_OUT), len(self.train)))
        other = replace(setting, seed=derive(setting.seed, "held out"))
        held_out = self._corrupted(other, rows)[0] if len(rows) > 1 else None
        return NoisyDataset(train, self.test, truth, held_out)

    def _corrupted(self, setting: Setting, rows: np.ndarray) -> tuple[Samples, GroundTruth]:
        """The training images of these rows with the setting's noise."""
        labels, truth = self._labels(setting, rows)
        pixels, fault = self._pixels(setting, rows)
        inputs = TensorInputs(torch.from_numpy(pixels))
        samples = replace(self.train, ids=self.train.ids[rows], labels=labels, inputs=inputs)
        return samples, GroundTruth(truth, labels != truth, fault)

    def _labels(self, setting: Setting, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The given labels and the true ones."""
        noise, rate, seed = setting.noise, setting.rate, setting.seed
        truth = self.train.labels[rows]
        if noise == "labels":
            if self.columns is None:
                raise ConfigError(
                    "noise 'labels' needs label columns",
                    fix="give --labels and --true-labels, FILE:COLUMN each",
                )
            given, true = self.columns.labels, self.columns.true_labels
            return self._column(given)[rows], self._column(true)[rows]
        if noise in ("idn_20", "human_aggregate", "human_random1"):
            return self._column(self._human_labels(noise))[rows], truth
        if noise in ("symmetric", "both"):
            part = rate / 2 if noise == "both" else rate
            noisy = wrong_labels(truth, rate=part, noise="symmetric", classes=10, seed=seed)
        elif noise == "pair":
            noisy = wrong_labels(truth, rate=rate, noise="pair", classes=10, seed=seed)
        elif noise in ("instance", "instance-raw"):
            pixels = self._images(rows)
            x = scale_pixels(pixels, "raw") if noise == "instance-raw" else _standardised(pixels)
            noisy = instance_dependent(x, truth, rate=rate, classes=10, seed=seed)
        elif noise == "ambiguous":
            clean = self.train.subset(rows)
            probs = mean_prediction(self.network(seed), clean, seed=seed)
            noisy = ambiguous(probs, truth, rate=rate)
        else:
            noisy = truth
        return noisy, truth

    def _pixels(self, setting: Setting, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images, and which of them were corrupted."""
        noise, rate, seed = setting.noise, setting.rate, setting.seed
        pixels = self._images(rows)
        if noise in ("gaussian", "both"):
            part = rate / 2 if noise == "both" else rate
            x, fault = gaussian_inputs(
                _standardised(pixels), rate=part, sigma=GAUSSIAN_SIGMA, seed=seed
            )
            return np.where(fault[:, None, None, None], _as_pixels(x), pixels), fault
        if noise == "mild":
            x, fault = mild_inputs(pixels.astype(np.float32) / 255, rate=rate, seed=seed)
            return np.round(255 * x).astype(np.uint8), fault
        return pixels, np.zeros(len(pixels), dtype=bool)

    def _images(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.train.inputs.batch(rows))

    def _human_labels(self, noise: str) -> str:
        file = self.path / "train.parquet"
        return f"{file}:{noise}" if file.is_file() else human_labels_file(self.path, noise)

    def _column(self, text: str) -> np.ndarray:
        """Labels from ``FILE:COLUMN``, joined by id."""
        file, _, column = text.rpartition(":")
        if not file or not column:
            raise ConfigError(f"expected FILE:COLUMN, got '{text}'")
        return replace_labels(self.train, LabelFile(file, column), folder=Path.cwd()).labels

    def _read(self, split: Literal["train", "test"]) -> Samples:
        file = self.path / f"{split}.parquet"
        is_hub_layout = file.is_file()
        config = DataConfig(
            path=str((file if is_hub_layout else cifar_folder(self.path)).absolute()),
            split=split,
            mean=MEAN,
            std=STD,
            view="crop-flip",
            id="id" if is_hub_layout and split == "train" else None,
        )
        return read(config, folder=Path.cwd(), name=split)


def _standardised(pixels: np.ndarray) -> np.ndarray:
    """``uint8[n, C, H, W]`` → mean 0 and standard deviation 1 by channel."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return np.asarray((pixels.astype(np.float32) / 255 - mean) / std)


def _as_pixels(x: np.ndarray) -> np.ndarray:
    """The inverse of `_standardised`, rounded."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return np.asarray(np.round(255 * np.clip(x * std + mean, 0, 1)), np.uint8)
