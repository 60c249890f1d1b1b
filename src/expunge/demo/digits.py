"""The demo: repair a network that memorised wrong labels of handwritten digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from expunge import pipeline, stages
from expunge._core.arrays import Ints
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed
from expunge.config import DEFAULT_BASELINES, RepairKeywords
from expunge.data import Samples, TensorInputs, from_arrays
from expunge.demo.noise import GroundTruth, LabelNoise, NoisyDataset, gaussian_inputs, wrong_labels
from expunge.demo.reviewer import simulate_review
from expunge.errors import ConfigError
from expunge.evaluation import metrics
from expunge.models.zoo import convnet
from expunge.recipes import resolve
from expunge.records import RepairResult
from expunge.review.answer_log import REVIEWS, AnswerLog
from expunge.storage.run_folder import check_run_folder
from expunge.training.loop import TuneConfig

Kind = Literal["labels", "inputs", "both"]

BASELINES = (*DEFAULT_BASELINES, "retrain-filtered-3x")
# No augmentation and no early stopping: the network memorises its labels.
TRAINING = TuneConfig(targets="all", epochs=40, lr=0.1, batch_size=64, augment=False)
INPUT_NOISE_SIGMA = 4.5
_TEST_SIZE = 599


def noisy_digits_dataset(
    *, noise: LabelNoise = "symmetric", rate: float = 0.4, kind: Kind = "labels", seed: int = 0
) -> NoisyDataset:
    """Split the digits of scikit-learn (1,797 images, 8 × 8) and corrupt the training part.

    Parameters
    ----------
    noise
        How wrong labels are drawn, see `expunge.demo.noise.wrong_labels`.
    rate
        The noise rate, in [0, 1).
    kind
        What is corrupted. ``"both"``: half of the rate in the labels and half in the inputs, drawn
        independently.
    seed
        Seed of the split and of the noise.

    Returns
    -------
    NoisyDataset
        1,198 noisy training samples and 599 clean test samples.

    Examples
    --------
    >>> data = noisy_digits_dataset(rate=0.25)
    >>> len(data.train), len(data.test), round(float(data.truth.noisy.mean()), 2)
    (1198, 599, 0.25)
    """
    rows, test = split_digits(seed)
    train, truth = noisy_digits(rows, noise=noise, rate=rate, kind=kind, seed=seed)
    return NoisyDataset(train, digits_samples(test, name="digits, test"), truth)


def split_digits(seed: int) -> tuple[Ints, Ints]:
    """Rows of the training digits (two thirds) and of the test digits, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    target = load_digits().target
    rows, test = train_test_split(
        np.arange(len(target)), test_size=_TEST_SIZE, random_state=seed, stratify=target
    )
    return rows, test


def noisy_digits(
    rows: Ints, *, noise: LabelNoise, rate: float, kind: Kind, seed: int
) -> tuple[Samples, GroundTruth]:
    """Corrupt the digits of these rows; returns them with the ground truth."""
    clean = digits_samples(rows, name="digits, training")
    labels, x = clean.labels, np.asarray(clean.inputs.batch(np.arange(len(rows))))
    input_fault = np.zeros(len(rows), dtype=bool)
    part = rate / 2 if kind == "both" else rate
    if kind != "inputs":
        labels = wrong_labels(clean.labels, rate=part, noise=noise, classes=10, seed=seed)
    if kind != "labels":
        x, input_fault = gaussian_inputs(x, rate=part, sigma=INPUT_NOISE_SIGMA, seed=seed)
    samples = replace(clean, labels=labels, inputs=TensorInputs(torch.from_numpy(x)))
    return samples, GroundTruth(clean.labels, labels != clean.labels, input_fault)


def digits_samples(rows: Ints, *, name: str) -> Samples:
    """The clean digits of these rows as samples, with random crops as views."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[rows, None] / 16.0).astype(np.float32)
    names = tuple(str(digit) for digit in range(10))
    y = digits.target[rows].astype(np.int64)
    return from_arrays(
        x, y, ids=rows, classes=names, mean=(0.305,), std=(0.376,), view="crop", name=name
    )


def digits_network(seed: int) -> nn.Module:
    """An untrained convolutional network for the digits."""
    with temp_seed(seed, "network"):
        return convnet(classes=10, channels=1, widths=(32, 64), hidden=128)


def run_demo(
    *,
    noise: LabelNoise = "symmetric",
    rate: float = 0.4,
    kind: Kind = "labels",
    seed: int = 0,
    out: str | Path | None = None,
    recipe: str = "default",
    baselines: tuple[str, ...] = BASELINES,
    overrides: dict[str, object] | None = None,
    review: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[RepairResult, dict[str, float]]:
    """Corrupt the digits, train a network until it memorises them, repair it, and measure.

    Parameters
    ----------
    noise, rate, kind, seed
        See `noisy_digits_dataset`.
    out
        The run folder; None keeps nothing.
    recipe, overrides, baselines
        See `expunge.pipeline.repair`.
    review
        The number of questions that a simulated reviewer answers, with 3 % mistakes, before the
        repair. Needs a run folder.
    overwrite
        Whether to discard what the run folder holds.
    progress
        Called with the name of a stage, the steps done and the steps in all.

    Returns
    -------
    tuple
        The result of the repair, and its `detection_metrics` against the ground truth.

    Notes
    -----
    Cost: about two minutes on two CPU cores.
    """
    data = noisy_digits_dataset(noise=noise, rate=rate, kind=kind, seed=seed)
    if out:
        check_run_folder(out, overwrite=overwrite)
    elif review:
        raise ConfigError("a review is kept in a run folder", fix="give out=…")
    noisy = pipeline.train(
        digits_network(seed),
        data.train,
        TRAINING,
        seed=seed,
        out=Path(out) / "0-train" if out else None,
        overwrite=overwrite,
        progress=progress,
    )
    options: RepairKeywords = {
        "recipe": recipe,
        "overrides": overrides,
        "baselines": baselines,
        "seed": seed,
        "out": out,
        "overwrite": overwrite,
        "train_seconds": noisy.seconds,
        "progress": progress,
    }
    before = {}
    if review and out:
        before = _simulate_review(noisy.model, data, Path(out), review, options)
        options["overwrite"] = False
    result = pipeline.repair(noisy.model, data.train, data.test, **options)
    return result, {**detection_metrics(result, data.truth), **before}


def _simulate_review(
    model: nn.Module, data: NoisyDataset, out: Path, n: int, options: RepairKeywords
) -> dict[str, float]:
    """Let a simulated reviewer answer about the partition; returns its F1 without the answers."""
    if options["overwrite"]:
        (out / REVIEWS).unlink(missing_ok=True)  # simulated ones
    split = pipeline.repair_until(model, data.train, data.test, until="score", **options)
    scores, seed = split.scores, options["seed"]
    config = resolve(options["recipe"], options["overrides"]).partition
    partition = stages.partition(scores, config, seed=seed)
    log = AnswerLog(out, data.train.classes)
    known = {(a.id, a.repeat) for a in log.read()}
    answers = simulate_review(partition, data.truth, n=n, seed=seed)
    log.append(a for a in answers if (a.id, a.repeat) not in known)
    if not data.truth.noisy.any():
        return {}
    return {"f1_before_review": metrics.f1(data.truth.noisy, partition.flagged)}


def detection_metrics(result: RepairResult, truth: GroundTruth) -> dict[str, float]:
    """Compare the partition of a repair with the ground truth.

    Returns
    -------
    dict
        ``noise_rate``; ``corrected_label_accuracy``, the accuracy of the suggested labels; and,
        with noise, ``auroc``, ``auprc``, ``max_f1`` and ``f1`` of ``p_noisy``.
    """
    partition = result.partition
    measured = truth.detection_metrics(partition.p_noisy, partition.flagged)
    measured["noise_rate"] = float(truth.noisy.mean())
    correct = partition.suggested_label == truth.labels
    measured["corrected_label_accuracy"] = float(correct.mean())
    return measured
