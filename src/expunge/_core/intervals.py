"""Confidence intervals."""

from __future__ import annotations

import math

_Z = 1.96


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a share of n, in [0, 1].

    Examples
    --------
    >>> [round(end, 3) for end in wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    centre = share + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
