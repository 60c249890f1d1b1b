"""How a long stage reports its progress. The default is silent; the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done, the steps done, and the number of steps.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
