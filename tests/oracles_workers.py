"""A data set for worker processes, which import this module."""

from __future__ import annotations

import os
import signal

import numpy as np


class Items:
    """A data set; in another process item 7 fails, and item 5 ends the process."""

    def __init__(self, *, fails: bool) -> None:
        self.fails, self.parent = fails, os.getpid()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        if self.fails and i == 5 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails and i == 7 and os.getpid() != self.parent:
            raise ValueError("no item")
        return np.full(3, i, dtype=np.float32), i % 2
