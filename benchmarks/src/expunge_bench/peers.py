"""Other people's detectors on the same model and samples, by their own packages.

The extra ``expunge[peers]`` installs them. Each gives a `Verdict`; one that offers no threshold is
given the mixture partition, as our own single detectors are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from expunge import pipeline, stages
from expunge._core.progress import Progress
from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import generator
from expunge.data import Batch, Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.signals import collect
from expunge.errors import extra_required
from expunge.models.inspection import inspect_layers
from expunge.records import Partition, Scores
from expunge_bench.fields import BenchmarkDataset, Setting

FOLDS = 5


@dataclass(frozen=True)
class Verdict:
    """What a detector says of n samples.

    score: ``float64[n]``, higher = worse. flagged: ``bool[n]``, at its own threshold. rate: its
    estimate of the noise rate. partition: where it gives probabilities and kinds.
    suggested: ``int64[n]`` labels, where it suggests any.
    """

    score: np.ndarray
    flagged: np.ndarray
    rate: float
    partition: Partition | None = None
    suggested: np.ndarray | None = None

    @classmethod
    def of(cls, score: np.ndarray, split: Partition) -> Verdict:
        """A score, and what a partition made of it."""
        return cls(score, split.flagged, split.noise_rate[0], split, split.suggested_label)


@dataclass(frozen=True)
class BenchmarkCase:
    """A model and what it was trained on. truth is there to orient the published method alone."""

    field: BenchmarkDataset
    model: nn.Module
    scene: NoisyDataset
    setting: Setting
    out: Path
    progress: Progress


peers: Registry[Callable[[BenchmarkCase], Verdict], NoMetadata] = Registry("peer", NoMetadata)


@peers.register("cleanlab")
def cleanlab(case: BenchmarkCase) -> Verdict:
    """Confident learning (cleanlab) on the model's own probabilities: no further training."""
    return _confident(case.scene.train.labels, _probabilities(case.model, case.scene.train))


@peers.register("cleanlab-folds")
def cleanlab_folds(case: BenchmarkCase) -> Verdict:
    """Confident learning (cleanlab) on out-of-sample probabilities: five more trainings."""
    train, setting = case.scene.train, case.setting
    fold = generator(setting.seed, "folds").permutation(len(train)) % FOLDS
    probs = np.empty((len(train), len(train.classes)))
    for k in range(FOLDS):
        fitted = pipeline.train(
            case.field.network(setting.seed),
            train.subset(np.flatnonzero(fold != k)),
            case.field.training[setting.state],
            seed=setting.seed,
            out=case.out / "models" / f"{setting.name}-fold-{k}",
            progress=case.progress,
        )
        held_out = np.flatnonzero(fold == k)
        probs[held_out] = _probabilities(fitted.model, train.subset(held_out))
    return _confident(train.labels, probs)


@peers.register("tracin")
def tracin(case: BenchmarkCase) -> Verdict:
    """Self-influence by captum's TracInCPFast at the last layer, with the one checkpoint there is.

    It offers no threshold: the mixture partition sets it.
    """
    try:
        from captum.influence import TracInCPFast
    except ImportError as error:
        raise extra_required("captum", "peers") from error
    train = case.scene.train
    layout = inspect_layers(case.model, train.example())
    batches = DataLoader(_Batches(train), batch_size=None)
    influence = TracInCPFast(
        case.model,
        case.model.get_submodule(layout.head),
        batches,
        checkpoints=["the model as it is"],
        checkpoints_load_func=lambda model, path: 1.0,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        vectorize=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = influence.self_influence(batches).numpy()
    probs = _probabilities(case.model, train)
    score = np.log(np.maximum(score, 1e-12))
    scores = Scores(train.ids, train.labels, {"tracin": score}, {"tracin": "label"}, probs)
    split = stages.partition(scores, seed=case.setting.seed, method="mixture")
    return Verdict.of(score, split)


@peers.register("rlap-published")
def rlap_published(case: BenchmarkCase) -> Verdict:
    """The published partition as printed (arXiv 2506.11615); truth orients it, to its favour.

    ``|h_j max_c ∂z_c/∂h_j|`` at the last hidden layer, standardised, two Gaussians of full
    covariance, hard assignment. Of the two ways to name the clusters the better F1 is taken, where
    the paper asks the truth too. A dead unit makes the covariance singular: then nothing is found.
    """
    train, truth = case.scene.train, case.scene.truth.noisy
    signals = collect(case.model, train, needs=frozenset({"attributions"}))
    assert signals.attributions is not None
    scaled = StandardScaler().fit_transform(signals.attributions)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = GaussianMixture(2, random_state=42).fit_predict(scaled)
    except ValueError:
        cluster = np.zeros(len(train), dtype=int)
    sides = [cluster == k for k in np.unique(cluster)]
    flagged = max(sides, key=lambda side: 2 * (side & truth).sum() / (side.sum() + truth.sum() + 1))
    if len(sides) == 1:
        flagged = np.zeros(len(train), dtype=bool)
    return Verdict(flagged.astype(np.float64), flagged, float(flagged.mean()))


def _confident(labels: np.ndarray, probs: np.ndarray) -> Verdict:
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise extra_required("cleanlab", "peers") from error
    flagged = find_label_issues(labels, probs, n_jobs=1)
    score = 1 - get_label_quality_scores(labels, probs)
    suggested = np.where(flagged, probs.argmax(axis=1), labels)
    return Verdict(score, flagged, float(flagged.mean()), suggested=suggested)


def _probabilities(model: nn.Module, samples: Samples) -> np.ndarray:
    return softmax(collect(model, samples).logits.astype(np.float64), axis=1)


class _Batches(Dataset[tuple[Batch, torch.Tensor]]):
    """Whole batches of (x, y) by number."""

    def __init__(self, samples: Samples, size: int = 256) -> None:
        self._samples, self._rows = samples, list(samples.batches(size))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[Batch, torch.Tensor]:
        at = self._rows[number]
        return self._samples.batch(at), torch.from_numpy(self._samples.labels[at])
