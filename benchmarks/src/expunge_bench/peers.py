"""Published detectors, run by their own packages on the same model and samples.

A peer without a threshold of its own is partitioned by the mixture, as our single detectors are.
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
from expunge._core.arrays import Bools, Floats, Ints
from expunge._core.progress import Progress
from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import generator
from expunge.data import Batch, Samples
from expunge.demo.noise import NoisyDataset
from expunge.detection.signals import collect
from expunge.models.inspection import inspect_layers
from expunge.records import Partition, Scores
from expunge_bench.datasets import BenchmarkDataset, Setting

N_FOLDS = 5


@dataclass(frozen=True)
class DetectorOutput:
    """The output of a detector for n samples.

    Parameters
    ----------
    score
        ``float64[n]``. Higher = more suspicious.
    flagged
        ``bool[n]``. The decision at the detector's own threshold.
    noise_rate
        The detector's estimate of the noise rate.
    partition
        Probabilities and kinds of fault, if the detector gives any.
    suggested
        ``int64[n]``. Suggested labels, if the detector gives any.
    """

    score: Floats
    flagged: Bools
    noise_rate: float
    partition: Partition | None = None
    suggested: Ints | None = None

    @classmethod
    def of(cls, score: Floats, partition: Partition) -> DetectorOutput:
        """A score and the partition that was made of it."""
        rate, suggested = partition.noise_rate[0], partition.suggested_label
        return cls(score, partition.flagged, rate, partition, suggested)


@dataclass(frozen=True)
class BenchmarkCase:
    """A noisy model and the data on which it was trained.

    Of the peers only ``rlap-published`` uses the ground truth in ``data``.
    """

    dataset: BenchmarkDataset
    model: nn.Module
    data: NoisyDataset
    setting: Setting
    out: Path
    progress: Progress


peers: Registry[Callable[[BenchmarkCase], DetectorOutput], NoMetadata] = Registry(
    "peer", NoMetadata
)


@peers.register("cleanlab")
def cleanlab(case: BenchmarkCase) -> DetectorOutput:
    """Confident learning (cleanlab) on the probabilities of the model, without further training."""
    return confident_learning(case.data.train.labels, _probabilities(case.model, case.data.train))


@peers.register("cleanlab-folds")
def cleanlab_folds(case: BenchmarkCase) -> DetectorOutput:
    """Confident learning (cleanlab) on out-of-sample probabilities: five more trainings."""
    train, setting = case.data.train, case.setting
    fold = generator(setting.seed, "folds").permutation(len(train)) % N_FOLDS
    probs = np.empty((len(train), len(train.classes)))
    for k in range(N_FOLDS):
        fitted = pipeline.train(
            case.dataset.network(setting.seed),
            train.subset(np.flatnonzero(fold != k)),
            case.dataset.training[setting.state],
            seed=setting.seed,
            out=case.out / "models" / f"{setting.name}-fold-{k}",
            progress=case.progress,
        )
        held_out = np.flatnonzero(fold == k)
        probs[held_out] = _probabilities(fitted.model, train.subset(held_out))
    return confident_learning(train.labels, probs)


@peers.register("tracin")
def tracin(case: BenchmarkCase) -> DetectorOutput:
    """Self-influence by captum's TracInCPFast at the last layer, of the one checkpoint.

    It has no threshold: the mixture partition sets it.
    """
    from captum.influence import TracInCPFast

    train = case.data.train
    layout = inspect_layers(case.model, train.example())
    batches = DataLoader(_Batches(train), batch_size=None)
    influence = TracInCPFast(
        case.model,
        case.model.get_submodule(layout.head),
        batches,
        checkpoints=["the model"],
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
    partition = stages.partition(scores, seed=case.setting.seed, method="mixture")
    return DetectorOutput.of(score, partition)


@peers.register("rlap-published")
def rlap_published(case: BenchmarkCase) -> DetectorOutput:
    """The partition of arXiv 2506.11615 as printed. The ground truth names the noisy cluster.

    ``|h_j max_c ∂z_c/∂h_j|`` at the last hidden layer, standardised, two Gaussians with full
    covariance, hard assignment. The cluster with the higher F1 is taken, in favour of the method:
    the paper uses the ground truth as well. A dead unit makes the covariance singular; then
    nothing is flagged.
    """
    train = case.data.train
    signals = collect(case.model, train, needs=frozenset({"attributions"}))
    assert signals.attributions is not None
    scaled = StandardScaler().fit_transform(signals.attributions)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = GaussianMixture(2, random_state=42).fit_predict(scaled)
    except ValueError:
        cluster = np.zeros(len(train), dtype=int)
    flagged = noisy_cluster(cluster, case.data.truth.noisy)
    return DetectorOutput(flagged.astype(np.float64), flagged, float(flagged.mean()))


def noisy_cluster(cluster: Ints, noisy: Bools) -> Bools:
    """``bool[n]``: the cluster that agrees best with the noisy samples, by F1.

    No sample, if there is only one cluster.
    """
    sides = [cluster == k for k in np.unique(cluster)]
    if len(sides) == 1:
        return np.zeros(len(cluster), dtype=bool)
    # The + 1 avoids 0 / 0.
    return max(sides, key=lambda side: 2 * (side & noisy).sum() / (side.sum() + noisy.sum() + 1))


def confident_learning(labels: Ints, probs: Floats) -> DetectorOutput:
    """Apply cleanlab's default filter to class probabilities, ``float64[n, c]``."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    flagged = find_label_issues(labels, probs, n_jobs=1)
    score = 1 - get_label_quality_scores(labels, probs)
    suggested = np.where(flagged, probs.argmax(axis=1), labels)
    return DetectorOutput(score, flagged, float(flagged.mean()), suggested=suggested)


def _probabilities(model: nn.Module, samples: Samples) -> Floats:
    logits = np.asarray(collect(model, samples).logits, dtype=np.float64)
    return np.asarray(softmax(logits, axis=1))


class _Batches(Dataset[tuple[Batch, torch.Tensor]]):
    """Whole batches of (x, y) by number."""

    def __init__(self, samples: Samples, size: int = 256) -> None:
        self._samples, self._rows = samples, list(samples.batches(size))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[Batch, torch.Tensor]:
        at = self._rows[number]
        return self._samples.batch(at), torch.from_numpy(self._samples.labels[at])
