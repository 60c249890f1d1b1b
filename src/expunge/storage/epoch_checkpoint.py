"""The state of a training between two epochs, on disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from expunge.errors import RunError
from expunge.storage.array_files import read_tensors, save_tensors
from expunge.storage.atomic_files import wrap_io_errors
from expunge.storage.reading import reading

_FIX = "delete this file; the stage then starts again"


class EpochCheckpoint:
    """State between two epochs in one file, with the stage's key in its header.

    Parameters
    ----------
    folder
        Where the file is kept; made when it is needed.
    key
        Digest of what the state depends on.
    before_write
        Called before each writing; None in a process that does not write.
    """

    def __init__(self, folder: Path, key: str, before_write: Callable[[], None] | None) -> None:
        self._folder, self._key, self._before_write = folder, key, before_write
        self._file = folder / "epoch.safetensors"
        self._started = time.perf_counter()
        self.seconds_before = 0.0

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """The last epoch and its tensors; None if there is none for this key.

        Raises
        ------
        RunError
            If the file is damaged or has changed since it was written.
        """
        if not self._file.exists():
            return None
        tensors, note = read_tensors(self._file, fix=_FIX)
        with reading(self._file, RunError, fix=_FIX):
            if note["key"] != self._key:
                return None
            self.seconds_before = float(note["seconds"])
            return int(note["epoch"]), tensors

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        """Replace the state by that after ``epoch`` epochs."""
        if self._before_write is None:
            return
        self._before_write()
        spent = self.seconds_before + time.perf_counter() - self._started
        with wrap_io_errors(self._file):
            self._folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._file, tensors, {"key": self._key, "epoch": epoch, "seconds": spent})

    def clear(self) -> None:
        """Delete the state."""
        shutil.rmtree(self._folder, ignore_errors=True)
