"""`expunge bench memory`: peak memory of scores and partition by number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from expunge import stages
from expunge._core.progress import Progress, silent
from expunge.config import ScoreConfig
from expunge.data import Samples
from expunge.demo.noise import wrong_labels
from expunge.detection.pooling import MAX_PART_MEANS
from expunge.detection.signals import collect
from expunge_bench.cifar import Cifar
from expunge_bench.results import Row, Table
from expunge_bench.suites import RowGroup, Suite
from expunge_bench.timing import timed, with_peak_memory


class ShiftedImages:
    """Any number of different images: those of a tensor, shifted by one more pixel each round.

    Parameters
    ----------
    images
        ``uint8[m, C, H, W]``.
    n
        The number of images to make of them.
    """

    def __init__(self, images: Tensor, n: int) -> None:
        self._images, self._n = images, n

    def __len__(self) -> int:
        return self._n

    def batch(self, positions: np.ndarray) -> Tensor:
        """``uint8[b, C, H, W]``."""
        rounds, rows = np.divmod(np.asarray(positions), len(self._images))
        images = self._images[torch.from_numpy(rows)]
        for shift in np.unique(rounds):
            at = torch.from_numpy(rounds == shift)
            images[at] = images[at].roll(int(shift), dims=-1)
        return images

    def fingerprint(self) -> str:
        """What identifies these images."""
        return f"shifted {self._n}"


def bench(
    cifar: Cifar,
    *,
    sizes: Sequence[int],
    views: int,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each number of samples: peak memory, and how much of it the features take.

    The network is untrained and 40 % of the labels are wrong: neither changes the memory. More
    views cost only time.
    """
    images = torch.from_numpy(np.asarray(cifar.train.inputs.batch(np.arange(len(cifar.train)))))
    model, n_features = cifar.network(0), _n_features(cifar)

    def measure(missing: Sequence[Row]) -> Iterable[Row]:
        for key in missing:
            samples = _samples(cifar, images, key["n"])
            (_, seconds), peak = with_peak_memory(
                lambda: timed(lambda: _score_and_partition(model, samples, views, progress))  # noqa: B023
            )
            sizes = {"peak_bytes": peak, "feature_bytes": 4 * key["n"] * n_features}
            yield {**key, "seconds": seconds, **sizes}

    keys = [{"n": n, "views": views} for n in sizes]
    return SUITE.run([RowGroup(keys, measure)], out=out, command=command)


def _samples(cifar: Cifar, images: Tensor, n: int) -> Samples:
    labels = np.resize(cifar.train.labels, n)
    return replace(
        cifar.train,
        ids=np.arange(n),
        labels=wrong_labels(labels, rate=0.4, noise="symmetric", classes=10, seed=0),
        inputs=ShiftedImages(images, n),
        has_explicit_ids=False,
    )


def _score_and_partition(
    model: nn.Module, samples: Samples, views: int, progress: Progress
) -> None:
    detectors = ScoreConfig().detectors
    scores = stages.score(model, samples, detectors=detectors, views=views, progress=progress)
    stages.partition(scores)


def _n_features(cifar: Cifar) -> int:
    """Features of a sample, over all feature layers."""
    few = cifar.train.subset(np.arange(min(4 * MAX_PART_MEANS, len(cifar.train))))
    signals = collect(cifar.network(0), few, needs=frozenset({"features"}), views=0)
    return sum(f.shape[1] for f in signals.features.values())


def tables(rows: Sequence[Row]) -> list[Table]:
    """Megabytes: the peak, the features, and the difference."""
    lines = []
    for row in rows:
        peak, features = row["peak_bytes"], row["feature_bytes"]
        megabytes = (f"{v / 1e6:,.0f}" for v in (peak, features, peak - features))
        per_sample = f"{(peak - features) / row['n'] / 1e3:.2f}"
        lines.append(
            (f"{row['n']:,}", str(row["views"]), f"{row['seconds']:.0f}", *megabytes, per_sample)
        )
    head = ("n", "views", "seconds", "peak MB", "features MB", "other MB", "other kB per sample")
    return [Table(head, tuple(lines))]


SUITE = Suite("Memory", ("n", "views"), tables)
