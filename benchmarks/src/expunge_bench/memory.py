"""`expunge bench memory`: what scores and a partition take, over the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge import stages
from expunge._core.progress import Progress, silent
from expunge.config import ScoreConfig
from expunge.data import Samples
from expunge.demo.noise import wrong_labels
from expunge.detection.pooling import MAX_PART_MEANS
from expunge.detection.signals import collect
from expunge_bench.cifar import Cifar
from expunge_bench.suites import ResultStore, Row, Table, timed

KEYS = ("n", "views")


class Shifted:
    """As many different images as asked for: those of a tensor, moved on by a pixel each round."""

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
        return f"shifted {self._n}"


def bench(
    cifar: Cifar,
    *,
    sizes: Sequence[int],
    views: int,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each number of samples: peak memory, and the part of it that is features.

    The network is untrained and 40 % of the labels are wrong: neither matters to memory. More views
    cost time alone.
    """
    ledger = ResultStore(out, KEYS)
    images, truth = _tensor(cifar.train), cifar.train.labels
    model, detectors = cifar.network(0), ScoreConfig().detectors
    columns = _columns(cifar)
    for n in sizes:
        if {"n": n, "views": views} in ledger:
            continue
        labels = wrong_labels(np.resize(truth, n), rate=0.4, noise="symmetric", classes=10, seed=0)
        samples = replace(
            cifar.train,
            ids=np.arange(n),
            labels=labels,
            inputs=Shifted(images, n),
            has_explicit_ids=False,
        )

        def work() -> None:
            scores = stages.score(
                model,
                samples,  # noqa: B023
                detectors=detectors,
                views=views,
                progress=progress,
            )
            stages.partition(scores)

        _, seconds, peak = timed(work)
        cache = 4 * n * columns
        ledger.add(
            {"n": n, "views": views, "seconds": seconds, "peak_bytes": peak, "cache_bytes": cache}
        )
    rows = ledger.rows()
    ledger.write("Memory", command, [table(rows)])
    return rows


def _tensor(samples: Samples) -> Tensor:
    """All images as they are stored."""
    return torch.from_numpy(np.asarray(samples.inputs.batch(np.arange(len(samples)))))


def _columns(cifar: Cifar) -> int:
    """Features a sample, over all stages."""
    few = cifar.train.subset(np.arange(min(4 * MAX_PART_MEANS, len(cifar.train))))
    signals = collect(cifar.network(0), few, needs=frozenset({"features"}), views=0)
    return sum(f.shape[1] for f in signals.features.values())


def table(rows: Sequence[Row]) -> Table:
    """Megabytes at the peak, of the features, and of all the rest."""
    lines = []
    for row in rows:
        peak, cache = row["peak_bytes"], row["cache_bytes"]
        megabytes = (f"{v / 1e6:,.0f}" for v in (peak, cache, peak - cache))
        each = f"{(peak - cache) / row['n'] / 1e3:.2f}"
        lines.append(
            (f"{row['n']:,}", str(row["views"]), f"{row['seconds']:.0f}", *megabytes, each)
        )
    head = ("n", "views", "seconds", "peak MB", "features MB", "rest MB", "rest kB a sample")
    return Table(head, tuple(lines))
