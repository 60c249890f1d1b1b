"""`expunge bench scale`: seconds and memory of scores and partition by samples, classes, width."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import expunge
from expunge._core.arrays import Floats, Floats32, Ints
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, temp_seed
from expunge.data import Samples
from expunge.demo.noise import wrong_labels
from expunge.records import Partition
from expunge_bench.results import Row, Table
from expunge_bench.suites import RowGroup, Suite, check_names
from expunge_bench.timing import timed, with_peak_memory

# What is scored: an array of features, or a network on inputs that are generated as they are read.
Way = Literal["features", "network"]
WAYS: tuple[Way, ...] = get_args(Way)
# A generator makes this many rows at once, so that a row does not depend on the batch.
_BLOCK = 1024
# Rows of the run that loads the libraries.
_FIRST_ROWS = 1000
# The distance of a class centre from the origin, in deviations of its samples along any direction.
_CENTRE_NORM = 4.5
_NOISE_RATE, _HIDDEN = 0.3, 64


@dataclass(frozen=True)
class GaussianClasses:
    """Normal distributions around random centres, of which rows are made whenever they are read.

    Parameters
    ----------
    n, n_classes, width
        The numbers of samples, of classes and of columns.
    """

    n: int
    n_classes: int
    width: int

    @cached_property
    def right(self) -> Ints:
        """The true labels, ``int64[n]``."""
        draw = generator(0, "scale labels", self.n, self.n_classes)
        return draw.integers(0, self.n_classes, self.n)

    @cached_property
    def centres(self) -> Floats32:
        """``float32[c, width]``."""
        draw = generator(0, "scale centres", self.n_classes, self.width)
        scale = np.float32(_CENTRE_NORM / np.sqrt(self.width))
        return scale * draw.standard_normal((self.n_classes, self.width), dtype=np.float32)

    def given(self) -> Ints:
        """The given labels, three tenths of them wrong."""
        return wrong_labels(
            self.right, rate=_NOISE_RATE, noise="symmetric", classes=self.n_classes, seed=0
        )

    def __len__(self) -> int:
        return self.n

    def rows(self, positions: Ints) -> Floats32:
        """Return the inputs at these positions, ``float32[b, width]``."""
        found = self.centres[self.right[positions]]
        blocks = positions // _BLOCK
        for block in np.unique(blocks):
            draw = generator(0, "scale rows", int(block))
            noise = draw.standard_normal((_BLOCK, self.width), dtype=np.float32)
            at = np.flatnonzero(blocks == block)
            found[at] += noise[positions[at] - block * _BLOCK]
        return found

    def batch(self, positions: Ints) -> Tensor:
        """The same as a tensor."""
        return torch.from_numpy(self.rows(np.asarray(positions)))

    def fingerprint(self) -> str:
        """What identifies these inputs."""
        return f"gaussian classes {self.n} {self.n_classes} {self.width}"


def bench(
    *,
    sizes: Sequence[int],
    classes: Sequence[int],
    widths: Sequence[int],
    ways: Sequence[str] = WAYS,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each number of samples, classes and columns, and each way.

    The network is untrained: that changes neither memory nor time, and its evidence counts for
    nothing. The peak is that above what the process held before, the features and the libraries
    among it.
    """
    check_names("way", ways, WAYS)

    def measure(missing: Sequence[Row]) -> Iterable[Row]:
        if missing:
            _measure(GaussianClasses(_FIRST_ROWS, 2, min(widths)), missing[0]["way"], progress)
        for key in missing:
            data = GaussianClasses(key["n"], key["classes"], key["width"])
            yield {**key, **_measure(data, key["way"], progress)}

    keys = [
        {"way": way, "n": n, "classes": c, "width": width}
        for way in ways
        for c in classes
        for width in widths
        for n in sizes
    ]
    return SUITE.run([RowGroup(keys, measure)], out=out, command=command)


def _measure(data: GaussianClasses, way: str, progress: Progress) -> Row:
    given = data.given()
    if way == "features":
        features = np.empty((data.n, data.width), dtype=np.float32)
        for start in range(0, data.n, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, data.n))
            features[rows] = data.rows(rows)
        features.setflags(write=False)

        def work() -> Floats:
            return _p_noisy(expunge.detect(features, given))
    else:
        samples, model = _samples(data, given), _network(data)

        def work() -> Floats:
            scores = expunge.score(model, samples, views=0, progress=progress)
            return _p_noisy(expunge.partition(scores))

    cpu_before = time.process_time()
    (p_noisy, seconds), peak = with_peak_memory(lambda: timed(work))
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_before,
        "peak_bytes": peak,
        "auroc": float(roc_auc_score(given != data.right, p_noisy)),
    }


def _p_noisy(partition: Partition) -> Floats:
    return np.array(partition.p_noisy)


def _samples(data: GaussianClasses, given: Ints) -> Samples:
    names = tuple(map(str, range(data.n_classes)))
    return Samples(np.arange(data.n), given, names, data)


def _network(data: GaussianClasses) -> nn.Module:
    with temp_seed(0, "scale network"):
        return nn.Sequential(
            nn.Linear(data.width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, data.n_classes)
        ).eval()


def tables(rows: Sequence[Row]) -> list[Table]:
    """Seconds, memory and AUROC of each row."""
    lines = []
    for row in rows:
        n, peak = row["n"], row["peak_bytes"]
        lines.append(
            (
                row["way"],
                f"{n:,}",
                f"{row['classes']:,}",
                f"{row['width']:,}",
                f"{row['seconds']:.0f}",
                f"{row['cpu_seconds']:.0f}",
                f"{1e3 * row['cpu_seconds'] / n:.2f}",
                f"{peak / 1e6:,.0f}",
                f"{peak / n:,.0f}",
                f"{row['auroc']:.3f}",
            )
        )
    head = (
        *("way", "n", "classes", "width", "seconds", "CPU seconds", "CPU ms per sample"),
        *("peak MB", "peak bytes per sample", "AUROC"),
    )
    return [Table(head, tuple(lines))]


SUITE = Suite("Scale", ("way", "n", "classes", "width"), tables)
