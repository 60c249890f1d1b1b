"""How a long stage tells how far it is. The default says nothing; the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable

# (what is being done, steps done, steps in all)
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""
