"""Work in one process or many: what each does, and how the results come together.

Everything goes through Accelerate, so that `accelerate launch` and `torchrun` need no change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from expunge.errors import ConfigError

T = TypeVar("T")


def shard(rows: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """This process's part of some rows: every ``world``-th."""
    return rows[accelerator.process_index :: accelerator.num_processes]


def shard_blocks(n: int, block: int, accelerator: Accelerator) -> np.ndarray:
    """This process's part of ``n`` positions: every ``world``-th block of so many in a row."""
    return np.flatnonzero(
        np.arange(n) // block % accelerator.num_processes == accelerator.process_index
    )


def gather_rows(
    parts: dict[str, np.ndarray], positions: np.ndarray, n: int
) -> dict[str, np.ndarray]:
    """Rows from all processes in the order of their positions; every process gets all rows."""
    gathered = gather_object([(positions, parts)])
    merged = {}
    for name, part in parts.items():
        merged[name] = np.empty((n, *part.shape[1:]), dtype=part.dtype)
        for where, columns in gathered:
            merged[name][where] = columns[name]
    return merged


def single_process(what: str, *, fix: str) -> Accelerator:
    """The accelerator of work that is done in one process; ConfigError in one of many."""
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ConfigError("this training runs in one process only", where=what, fix=fix)
    return accelerator


def all_reduce_sum(tensor: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    return accelerator.reduce(tensor, reduction="sum") if accelerator.num_processes > 1 else tensor


def broadcast_decision(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Decide in the main process and tell the others."""
    if accelerator.num_processes == 1:
        return decide()
    box = [decide() if accelerator.is_main_process else None]
    return broadcast_object_list(box)[0]


def shutdown() -> None:
    """Let go of the other processes; one that just ends can be aborted by its own threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
