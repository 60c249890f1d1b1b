"""The demo: a network that memorised wrong labels of real handwritten digits, repaired."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from expunge import pipeline
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed
from expunge.config import DEFAULT_BASELINES
from expunge.data import Samples, TensorInputs, from_arrays
from expunge.demo.noise import GroundTruth, LabelNoise, NoisyDataset, gaussian_inputs, wrong_labels
from expunge.models.zoo import convnet
from expunge.records import RepairResult
from expunge.storage.run_folder import check_run_folder
from expunge.training.loop import TuneConfig

Kind = Literal["labels", "inputs", "both"]

BASELINES = (*DEFAULT_BASELINES, "retrain-filtered-3x")
# Trained until the labels are memorised, as one would a clean set: no augmentation, no early stop.
TRAINING = TuneConfig(targets="all", epochs=40, lr=0.1, batch_size=64, augment=False)


def scene(*, noise: LabelNoise, rate: float, kind: Kind, seed: int) -> NoisyDataset:
    """Digits of scikit-learn (1,797 images, 8 × 8), two thirds to train on and made noisy.

    kind ``"both"``: half of the rate in the labels, half in the inputs, drawn independently.
    """
    rows, test = split_digits(seed)
    train, truth = noisy_digits(rows, noise, rate, kind, seed)
    return NoisyDataset(train, digits_samples(test, "digits, test"), truth)


def split_digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which digits are to train on and which to test: two thirds and one."""
    target = load_digits().target
    rows, test = train_test_split(
        np.arange(len(target)), test_size=599, random_state=seed, stratify=target
    )
    return rows, test


def noisy_digits(
    rows: np.ndarray, noise: LabelNoise, rate: float, kind: Kind, seed: int
) -> tuple[Samples, GroundTruth]:
    """Some digits with faults, and the truth about them."""
    clean = digits_samples(rows, "digits, training")
    noisy, x, fault = clean.labels, np.asarray(clean.inputs.batch(np.arange(len(rows)))), None
    share = rate / 2 if kind == "both" else rate
    if kind != "inputs":
        noisy = wrong_labels(clean.labels, rate=share, noise=noise, classes=10, seed=seed)
    if kind != "labels":
        x, fault = gaussian_inputs(x, rate=share, sigma=4.5, seed=seed)
    fault = np.zeros(len(rows), dtype=bool) if fault is None else fault
    samples = replace(clean, labels=noisy, inputs=TensorInputs(torch.from_numpy(x)))
    return samples, GroundTruth(clean.labels, noisy != clean.labels, fault)


def digits_samples(rows: np.ndarray, name: str) -> Samples:
    """These digits as samples, in the shape and with the views that the demo uses."""
    digits = load_digits()
    x = (digits.images[rows, None] / 16.0).astype(np.float32)
    names = tuple(str(digit) for digit in range(10))
    y = digits.target[rows].astype(np.int64)
    return from_arrays(
        x, y, ids=rows, classes=names, mean=(0.305,), std=(0.376,), view="crop", name=name
    )


def network(seed: int) -> nn.Module:
    """An untrained convolutional network for the digits."""
    with temp_seed(seed, "network"):
        return convnet(classes=10, channels=1, widths=(32, 64), hidden=128)


def demo(
    *,
    noise: LabelNoise = "symmetric",
    rate: float = 0.4,
    kind: Kind = "labels",
    seed: int = 0,
    out: str | Path | None = None,
    recipe: str = "default",
    baselines: tuple[str, ...] = BASELINES,
    overrides: dict[str, object] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[RepairResult, dict[str, float]]:
    """Make the digits noisy, train until they are memorised, repair; and how well faults are seen.

    Returns the repair's result and, against the truth: AUROC, average precision and F1 of
    ``p_noisy`` and the accuracy of the suggested labels.
    """
    made = scene(noise=noise, rate=rate, kind=kind, seed=seed)
    if out:
        check_run_folder(out, overwrite=overwrite)
    noisy = pipeline.train(
        network(seed),
        made.train,
        TRAINING,
        seed=seed,
        out=Path(out) / "0-train" if out else None,
        overwrite=overwrite,
        progress=progress,
    )
    result = pipeline.repair(
        noisy.model,
        made.train,
        made.test,
        recipe=recipe,
        overrides=overrides,
        baselines=baselines,
        seed=seed,
        out=out,
        overwrite=overwrite,
        train_seconds=noisy.seconds,
        progress=progress,
    )
    return result, against_truth(result, made.truth)


def against_truth(result: RepairResult, truth: GroundTruth) -> dict[str, float]:
    """How well the partition saw the faults."""
    split = result.partition
    found = truth.found_by(split.p_noisy, split.flagged)
    found["noise_rate"] = float(truth.noisy.mean())
    found["suggested_accuracy"] = float((split.suggested_label == truth.labels).mean())
    return found
