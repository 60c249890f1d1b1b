"""What the pieces of the GPU benchmark share: sizes, data, folders, and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from expunge._core.registry import Registry
from expunge_bench.cifar import Cifar
from expunge_bench.datasets import Setting

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """The sizes of all pieces.

    Parameters
    ----------
    n_protocol, protocol_epochs, width
        Of the published protocol.
    n_repair
        Training images of the repairs.
    n_speed
        Images of the timed passes.
    tests
        Test files that run on the GPU.
    """

    n_protocol: int
    protocol_epochs: int
    width: int
    n_repair: int
    n_speed: int
    tests: tuple[str, ...]


FULL = Sizes(
    n_protocol=50_000,
    protocol_epochs=60,
    width=64,
    n_repair=25_000,
    n_speed=10_000,
    tests=(
        "tests/test_pipeline.py",
        "tests/test_devices.py",
        "tests/editing",
        "tests/training",
    ),
)
SMALL = Sizes(100, 2, 4, 100, 40, ("tests/training/test_cuda_graphs.py",))


@dataclass(frozen=True)
class GpuRun:
    """The data, the working folder and the sizes of one run.

    Parameters
    ----------
    data
        A folder with ``train.parquet`` and ``test.parquet`` of CIFAR-10.
    work
        Where networks and intermediate results are kept between calls.
    sizes
        Of the pieces.
    seed
        Of everything.
    """

    data: Path
    work: Path
    sizes: Sizes = FULL
    seed: int = 0

    @cached_property
    def cifar(self) -> Cifar:
        """The data set."""
        return Cifar(self.data)

    @property
    def cuda_graphs(self) -> bool:
        """Whether the probe has found that CUDA graphs give the eager results."""
        return (self.work / "cuda-graphs").is_file()

    def setting(self, noise: str) -> Setting:
        """The setting of a kind of noise: human labels regularised, symmetric ones overfit."""
        if noise == "human":
            return Setting("human_random1", 0.0, "regularised", self.seed, self.sizes.n_repair)
        return Setting("symmetric", 0.4, "overfit", self.seed, self.sizes.n_repair)


@dataclass(frozen=True)
class PieceInfo:
    """When a piece runs.

    Parameters
    ----------
    needs
        Pieces that must be done before.
    alone
        Whether nothing runs beside it: it is timed, or others depend on what it finds.
    """

    needs: tuple[str, ...] = ()
    alone: bool = False


Piece = Callable[[GpuRun], Iterator[Row]]
# In the order in which they start.
pieces: Registry[Piece, PieceInfo] = Registry(
    "piece",
    PieceInfo,
    modules=(
        "expunge_bench.gpu.speed",
        "expunge_bench.gpu.protocol",
        "expunge_bench.gpu.repairs",
        "expunge_bench.gpu.tests",
    ),
)


def peak_memory_mb() -> float | None:
    """The most GPU memory that this process has allocated, in MB; None without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
