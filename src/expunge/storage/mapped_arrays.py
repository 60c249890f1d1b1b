"""Large arrays in a file that the system reads and writes back as memory allows."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from expunge._core.arrays import Array
from expunge.storage.atomic_files import TEMPORARY, wrap_io_errors

# The fewest bytes of an array that is mapped.
MIN_MAPPED_BYTES = 1 << 29
_BLOCK_BYTES = 1 << 24


def new_array(shape: tuple[int, ...], dtype: Any, folder: Path | None) -> Array:
    """Return an array to fill: in memory, or of 512 MiB or more in a file of the folder.

    The file has no name, so that nothing is left of it when the array is gone or the process dies.

    Parameters
    ----------
    shape, dtype
        As of `numpy.empty`.
    folder
        An existing folder; None: always in memory.

    Raises
    ------
    RunError
        If the disk is full or cannot be written.

    Examples
    --------
    >>> new_array((2, 3), np.float32, None).shape
    (2, 3)
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or n_bytes < MIN_MAPPED_BYTES:
        return np.empty(shape, dtype=dtype)
    with wrap_io_errors(folder), TemporaryFile(dir=folder, prefix=TEMPORARY) as file:
        _reserve(file.fileno(), n_bytes)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def _reserve(file: int, n_bytes: int) -> None:
    """Take the space now: a full disk behind a mapped array would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, n_bytes)
        return
    zeros = bytes(_BLOCK_BYTES)
    while n_bytes > 0:
        written = os.write(file, zeros[:n_bytes])
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n_bytes -= written
