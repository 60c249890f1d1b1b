"""Work in one process or many: each process's share, and how the results are combined.

Everything goes through Accelerate, so that `accelerate launch` and `torchrun` need no change here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from expunge._core.arrays import Array, Ints

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def shard(rows: Ints, accelerator: Accelerator) -> Ints:
    """Return this process's share of some rows: every ``num_processes``-th."""
    return rows[accelerator.process_index :: accelerator.num_processes]


def shard_blocks(n: int, block_size: int, accelerator: Accelerator) -> Ints:
    """Return this process's share of ``0 … n − 1``: every ``num_processes``-th whole block."""
    return np.flatnonzero(
        np.arange(n) // block_size % accelerator.num_processes == accelerator.process_index
    )


def gather_rows(parts: dict[str, Array], positions: Ints, n: int) -> dict[str, Array]:
    """Combine the rows of all processes, ordered by position; every process gets all rows.

    Parameters
    ----------
    parts
        This process's rows by name, each ``[len(positions), …]``.
    positions
        Where these rows belong in the result.
    n
        The number of rows of all processes.
    """
    from accelerate.utils import gather_object

    gathered = gather_object([(positions, parts)])
    merged: dict[str, Array] = {}
    for name, part in parts.items():
        merged[name] = np.empty((n, *part.shape[1:]), dtype=part.dtype)
        for rows, columns in gathered:
            merged[name][rows] = columns[name]
    return merged


def this_process() -> Accelerator:
    """Return the accelerator of this process. All calls share one state.

    Only its processes and its device are used: gradient accumulation and mixed precision, which
    the caller's own training may have left in the state, change nothing here. Accelerate starts a
    group of CPU processes only on request, so that plain ``torchrun`` is recognised here.
    """
    from accelerate import Accelerator

    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        return Accelerator(cpu=True)
    return Accelerator()


def all_reduce_sum(tensor: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Sum a tensor over all processes."""
    if accelerator.num_processes == 1:
        return tensor
    total: torch.Tensor = accelerator.reduce(tensor, reduction="sum")
    return total


def broadcast_decision(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Decide in the main process and send the decision to the others."""
    if accelerator.num_processes == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    box: list[T | None] = [decide() if accelerator.is_main_process else None]
    decision: T = broadcast_object_list(box)[0]
    return decision


def shutdown() -> None:
    """Leave the process group. A process that just ends can be aborted by its own threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
