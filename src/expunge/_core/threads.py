"""Threads that use the cores of processes which wait for a decision of this one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_n_threads: ContextVar[int] = ContextVar("n_threads", default=1)


def processes_on_this_machine() -> int:
    """Return how many processes the launcher of this one started on this machine."""
    n = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(n)) if n.isdecimal() else 1


@contextmanager
def others_wait() -> Iterator[None]:
    """In the block, `ordered_map` computes in a thread for each process of this machine."""
    token = _n_threads.set(processes_on_this_machine())
    try:
        yield
    finally:
        _n_threads.reset(token)


def ordered_map(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield the results of a function, in order; few are computed ahead.

    The function must not depend on the order of its calls. A function that is called in a thread
    computes in this thread alone.

    Examples
    --------
    >>> list(ordered_map(abs, [-1, -2]))
    [1, 2]
    """
    n = min(_n_threads.get(), len(items))
    if n <= 1:
        yield from map(function, items)
        return

    def alone(item: T) -> R:
        _n_threads.set(1)
        return function(item)

    pool = ThreadPoolExecutor(n)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            # Each call sees the settings of this one, such as `numpy.errstate`.
            pending.append(pool.submit(copy_context().run, alone, item))
            if len(pending) > n:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
