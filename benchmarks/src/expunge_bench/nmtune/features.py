"""Features of encoders: what every source of them provides, and their cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from expunge._core.arrays import Array, Floats32, Ints
from expunge._core.progress import Progress
from expunge.storage.hashing import digest

# A method beside the presets: the encoder is adapted by low-rank updates.
ADAPTED = "adapted"
IN_DOMAIN = "in-domain"


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples.

    Parameters
    ----------
    pretrain, epochs
        Images and epochs of the pre-training; 0 for an encoder that is given.
    tune, test
        Samples on which heads are tuned and tested; 0 for all.
    """

    pretrain: int
    epochs: int
    tune: int
    test: int


@dataclass(frozen=True)
class Embedded:
    """Features of one encoder.

    Parameters
    ----------
    views
        ``float32[v, n, d]``. Random views of the samples to tune on.
    labels
        ``int64[n]``.
    tests
        ``float32[m, d]`` each: in-domain test samples, and by corruption.
    test_labels
        ``int64[m]``.
    """

    views: Floats32
    labels: Ints
    tests: Mapping[str, Floats32]
    test_labels: Ints


class FeatureSource(Protocol):
    """Where features come from, and the noise rates for which there are encoders."""

    @property
    def name(self) -> str:
        """The value of the column ``data``."""
        ...

    @property
    def sizes(self) -> Sizes:
        """Numbers of samples."""
        ...

    @property
    def rates(self) -> tuple[float, ...]:
        """Noise rates of the pre-training."""
        ...

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are possible."""
        ...

    def embed(self, rate: float, *, seed: int, progress: Progress) -> Embedded:
        """Features of the encoder that was pre-trained at that noise rate."""
        ...

    def adapt(self, rate: float, *, seed: int, progress: Progress) -> dict[str, float]:
        """Accuracies by corruption after the encoder itself was adapted."""
        ...


def cached_arrays(
    out: Path, key: Sequence[Any], compute: Callable[[], dict[str, Array]]
) -> dict[str, Array]:
    """Load arrays from ``out/features``, or compute and store them there.

    Parameters
    ----------
    out
        The folder of the benchmark.
    key
        All that the arrays depend on.
    compute
        Makes the arrays.
    """
    file = out / "features" / f"{digest(key)[:16]}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({k: np.ascontiguousarray(v) for k, v in compute().items()}, partial)
        partial.replace(file)
    arrays: dict[str, Array] = load_file(file)
    return arrays
