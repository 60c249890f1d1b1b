"""Work in one process or many: each process's share, and how the results are combined.

Everything goes through Accelerate, so that `accelerate launch` and `torchrun` need no change here.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from expunge._core.arrays import Array, Ints
from expunge._core.threads import others_wait
from expunge.errors import ConfigError, RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

# How long processes wait for one that computes for all: longer than any decision takes. A process
# that dies is noticed at once.
_TIMEOUT = timedelta(hours=12)
# The bytes of a block in which rows are sent.
_BLOCK_BYTES = 1 << 24
# Variables of a launcher that are numbers.
_LAUNCHER_NUMBERS = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
# What messages of the back ends say if another process is gone.
_GONE = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")


def shard(rows: Ints, accelerator: Accelerator) -> Ints:
    """Return this process's share of some rows: every ``num_processes``-th."""
    return rows[accelerator.process_index :: accelerator.num_processes]


def shard_blocks(n: int, block_size: int, accelerator: Accelerator) -> Ints:
    """Return this process's share of ``0 … n − 1``: whole blocks that follow each other.

    A process that reads its share in order reads a part of every file, not all files.
    """
    blocks, count = -(-n // block_size), accelerator.num_processes
    bounds = [blocks * (accelerator.process_index + i) // count * block_size for i in (0, 1)]
    return np.arange(bounds[0], min(bounds[1], n))


def _in_memory(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.empty(shape, dtype=dtype)


def gather_rows(
    parts: dict[str, Array],
    positions: Ints,
    n: int,
    *,
    only_main: Collection[str] = (),
    new: Callable[[str, tuple[int, ...], np.dtype[Any]], Array] = _in_memory,
) -> dict[str, Array]:
    """Combine the rows of all processes, ordered by position; every process gets all rows.

    Parameters
    ----------
    parts
        This process's rows by name, each ``[len(positions), …]``. It is emptied, so that rows are
        not held twice.
    positions
        Where these rows belong in the result.
    n
        The number of rows of all processes.
    only_main
        Names of parts that the main process alone gets, as the others do not need their memory.
    new
        Makes the array of a name, a shape and a dtype.
    """
    from accelerate.utils import gather_object

    accelerator = this_process()
    with collective():
        owned: list[Ints] = gather_object([positions])
        merged: dict[str, Array] = {}
        for name in list(parts):
            is_wanted = name not in only_main or accelerator.is_main_process
            part = parts.pop(name)
            out = new(name, (n, *part.shape[1:]), part.dtype) if is_wanted else None
            _gather_part(part, owned, out, accelerator, only_main=name in only_main)
            if out is not None:
                merged[name] = out
    return merged


def _gather_part(
    part: Array, owned: list[Ints], out: Array | None, accelerator: Accelerator, *, only_main: bool
) -> None:
    """Write the rows of all processes to an array, in blocks that are equally large in each."""
    if len(owned) == 1:
        assert out is not None
        out[owned[0]] = part
        return
    row_bytes, longest = part.itemsize * int(np.prod(part.shape[1:])), max(map(len, owned))
    step = min(max(1, _BLOCK_BYTES // max(row_bytes, 1)), max(longest, 1))
    for start in range(0, longest, step):
        rows = part[start : start + step]
        block = np.zeros((step, *part.shape[1:]), dtype=part.dtype)
        block[: len(rows)] = rows
        own = torch.from_numpy(block).to(accelerator.device)
        boxes = None if out is None else [torch.empty_like(own) for _ in owned]
        if only_main:
            torch.distributed.gather(own, boxes, dst=0)
        else:
            torch.distributed.all_gather(boxes, own)
        if out is not None and boxes is not None:
            for box, positions in zip(boxes, owned, strict=True):
                at = positions[start : start + step]
                out[at] = box[: len(at)].cpu().numpy()


def this_process() -> Accelerator:
    """Return the accelerator of this process. All calls share one state.

    Only its processes and its device are used: gradient accumulation and mixed precision, which
    the caller's own training may have left in the state, change nothing here. Accelerate starts a
    group of CPU processes only on request, so that plain ``torchrun`` is recognised here.

    Raises
    ------
    ConfigError
        If the variables of a launcher in the environment are not valid.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    was_started = _has_group()
    fix = "unset what a launcher left in the environment, or start the processes with torchrun"
    is_launched = "LOCAL_RANK" in os.environ
    for name in _LAUNCHER_NUMBERS if is_launched else ():
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.removeprefix("-").isdecimal()):
            raise ConfigError(
                f"the environment variable {name} is '{value}', expected a number", fix=fix
            )
    handlers = [InitProcessGroupKwargs(timeout=_TIMEOUT)]
    try:
        if not is_launched:
            return Accelerator()
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(), kwargs_handlers=handlers
        )
    except ValueError as error:
        raise ConfigError(
            f"the launcher's variables in the environment are not valid: {error}", fix=fix
        ) from error
    if not was_started:
        atexit.register(_leave_group)
    return accelerator


@contextmanager
def collective() -> Iterator[None]:
    """Turn the error of a back end whose other processes are gone into one of ours.

    Raises
    ------
    RunError
        If another process of the run ended.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        is_gone = isinstance(error, torch.distributed.DistError) or any(w in text for w in _GONE)
        if not is_gone or not torch.distributed.is_initialized():
            raise
        raise RunError(
            "another process of this run has ended",
            fix="run the same command again, with any number of processes: a run folder resumes",
        ) from error


def all_reduce_sum(tensor: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Sum a tensor over all processes."""
    if accelerator.num_processes == 1:
        return tensor
    with collective():
        total: torch.Tensor = accelerator.reduce(tensor, reduction="sum")
    return total


def broadcast_decision(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Decide in the main process and send the decision to the others."""
    if accelerator.num_processes == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    box: list[T | None] = [None]
    if accelerator.is_main_process:
        with others_wait():
            box = [decide()]
    with collective():
        decision: T = broadcast_object_list(box)[0]
    return decision


def shutdown() -> None:
    """Wait for the other processes, and leave their group."""
    if _has_group():
        with collective():
            torch.distributed.barrier()
        _leave_group()


def _leave_group() -> None:
    """Leave the group of processes. One that just ends can be aborted by its own threads."""
    if _has_group():
        torch.distributed.destroy_process_group()


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
