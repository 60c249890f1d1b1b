"""The demo: a network that memorised wrong labels of real handwritten digits, repaired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from expunge import pipeline
from expunge.benchmarks.fields import Setting
from expunge.benchmarks.noise import LabelNoise, Scene, Truth, gaussian_inputs, wrong_labels
from expunge.data import Samples, from_arrays
from expunge.data.samples import TensorInputs
from expunge.errors import DataError
from expunge.models import convnet
from expunge.progress import Progress, silent
from expunge.rng import derive, seeded
from expunge.runs import require_room
from expunge.tables import RepairResult
from expunge.tuning import TuneConfig

Kind = Literal["labels", "inputs", "both"]

CONTROLS = (*pipeline.CONTROLS, "retrain-long")
# Trained until the labels are memorised, as one would a clean set: no augmentation, no early stop.
TRAINING = TuneConfig(data="everything", epochs=40, lr=0.1, batch_size=64, augment=False)


def scene(*, noise: LabelNoise, rate: float, kind: Kind, seed: int) -> Scene:
    """Digits of scikit-learn (1,797 images, 8 × 8), two thirds to train on and made noisy.

    kind ``"both"``: half of the rate in the labels, half in the inputs, drawn independently.
    """
    rows, test = _split(seed)
    train, truth = _faulty(rows, noise, rate, kind, seed)
    return Scene(train, _digits(test, "digits, test"), truth)


@dataclass(frozen=True)
class Digits:
    """The digits as a suite takes them: what is not trained on is held out, a third is to test."""

    name = "digits"
    most = 1_000
    noises: ClassVar[Mapping[str, tuple[float, ...]]] = {
        **{"none": (), "symmetric": (0.4,), "pair": (0.4,), "gaussian": (0.5,), "both": (0.4,)}
    }
    training: ClassVar[Mapping[str, TuneConfig]] = {
        "fresh": replace(TRAINING, augment=True),
        "memorised": TRAINING,
    }

    def scene(self, setting: Setting) -> Scene:
        """The setting's faults in n digits, and in those that are held out."""
        rows, test = _split(setting.seed)
        if setting.n > len(rows):
            raise DataError(f"{setting.n} digits of {len(rows)} to train on", fix="lower n")
        kinds: Mapping[str, Kind] = {"gaussian": "inputs", "both": "both"}
        kind = kinds.get(setting.noise, "labels")
        noise: LabelNoise = "pair" if setting.noise == "pair" else "symmetric"
        train, truth = _faulty(rows[: setting.n], noise, setting.rate, kind, setting.seed)
        held_out = None
        if len(rows) > setting.n + 1:
            other = derive(setting.seed, "held out")
            held_out = _faulty(rows[setting.n :], noise, setting.rate, kind, other)[0]
        return Scene(train, _digits(test, "digits, test"), truth, held_out)

    def network(self, seed: int) -> nn.Module:
        """An untrained convolutional network."""
        return network(seed)


def _split(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which digits are to train on and which to test: two thirds and one."""
    target = load_digits().target
    rows, test = train_test_split(
        np.arange(len(target)), test_size=599, random_state=seed, stratify=target
    )
    return rows, test


def _faulty(
    rows: np.ndarray, noise: LabelNoise, rate: float, kind: Kind, seed: int
) -> tuple[Samples, Truth]:
    """Some digits with faults, and the truth about them."""
    clean = _digits(rows, "digits, training")
    noisy, x, fault = clean.labels, np.asarray(clean.inputs.batch(np.arange(len(rows)))), None
    share = rate / 2 if kind == "both" else rate
    if kind != "inputs":
        noisy = wrong_labels(clean.labels, rate=share, noise=noise, classes=10, seed=seed)
    if kind != "labels":
        x, fault = gaussian_inputs(x, rate=share, sigma=4.5, seed=seed)
    fault = np.zeros(len(rows), dtype=bool) if fault is None else fault
    samples = replace(clean, labels=noisy, inputs=TensorInputs(torch.from_numpy(x)))
    return samples, Truth(clean.labels, noisy != clean.labels, fault)


def _digits(rows: np.ndarray, name: str) -> Samples:
    digits = load_digits()
    x = (digits.images[rows, None] / 16.0).astype(np.float32)
    names = tuple(str(digit) for digit in range(10))
    y = digits.target[rows].astype(np.int64)
    return from_arrays(
        x, y, ids=rows, classes=names, mean=(0.305,), std=(0.376,), view="crop", name=name
    )


def network(seed: int) -> nn.Module:
    """An untrained convolutional network for the digits."""
    with seeded(seed, "network"):
        return convnet(classes=10, channels=1, widths=(32, 64), hidden=128)


def demo(
    *,
    noise: LabelNoise = "symmetric",
    rate: float = 0.4,
    kind: Kind = "labels",
    seed: int = 0,
    out: str | Path | None = None,
    recipe: str = "default",
    controls: tuple[str, ...] = CONTROLS,
    overrides: dict[str, object] | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> tuple[RepairResult, dict[str, float]]:
    """Make the digits noisy, train until they are memorised, repair; and how well faults are seen.

    Returns the repair's result and, against the truth: AUROC, average precision and F1 of
    ``p_noisy`` and the accuracy of the suggested labels.
    """
    made = scene(noise=noise, rate=rate, kind=kind, seed=seed)
    if out:
        require_room(out, fresh=fresh)
    noisy = pipeline.train(
        network(seed),
        made.train,
        TRAINING,
        seed=seed,
        out=Path(out) / "0-train" if out else None,
        fresh=fresh,
        progress=progress,
    )
    result = pipeline.repair(
        noisy.model,
        made.train,
        made.test,
        recipe=recipe,
        overrides=overrides,
        controls=controls,
        seed=seed,
        out=out,
        fresh=fresh,
        train_seconds=noisy.seconds,
        progress=progress,
    )
    return result, against_truth(result, made.truth)


def against_truth(result: RepairResult, truth: Truth) -> dict[str, float]:
    """How well the partition saw the faults."""
    split = result.partition
    found = truth.found_by(split.p_noisy, split.flagged)
    found["noise_rate"] = float(truth.noisy.mean())
    found["suggested_accuracy"] = float((split.suggested_label == truth.labels).mean())
    return found
