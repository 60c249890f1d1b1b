"""Progress as lines of text, for logs and CI: a line a stage, and one every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds between two lines of one stage.
INTERVAL = 30.0
# Stages that end sooner, in seconds, have no line.
MIN_SECONDS = 1.0


class ProgressLog:
    """Writes how far each stage is.

    Parameters
    ----------
    write
        Called with each line.
    clock
        Seconds from any start.

    Examples
    --------
    >>> seconds = iter([0.0, 10.0, 40.0, 80.0])
    >>> log = ProgressLog(print, clock=lambda: next(seconds))
    >>> for done in range(1, 5):
    ...     log("tune", done, 4)
    tune: 3 of 4, 40 s, about 20 s left
    tune: 4 of 4, 1 min 20 s
    """

    def __init__(
        self, write: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._started: dict[str, tuple[float, int]] = {}
        self._last_line = -INTERVAL
        self._last_done: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take note of a step; write a line if one is due."""
        now = self._clock()
        if done < self._last_done.get(what, done + 1):  # the first step, or the stage began again
            self._started[what] = (now, done)
            self._last_line = now
        self._last_done[what] = done
        start, first = self._started[what]
        seconds = now - start
        if done >= total:
            del self._last_done[what]
            if seconds >= MIN_SECONDS:
                self._write(f"{what}: {done:,} of {total:,}, {_duration(seconds)}")
                self._last_line = now
        elif now - self._last_line >= INTERVAL:
            left = seconds / max(done - first, 1) * (total - done)
            self._write(
                f"{what}: {done:,} of {total:,}, {_duration(seconds)}, about {_duration(left)} left"
            )
            self._last_line = now


def _duration(seconds: float) -> str:
    """Seconds, with minutes and hours where there are some.

    Examples
    --------
    >>> _duration(12.4), _duration(80), _duration(3725)
    ('12 s', '1 min 20 s', '1 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
