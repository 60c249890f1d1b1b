"""Numbers in words for people: percentages, durations, intervals."""

from __future__ import annotations

import math

from expunge.records import Metric


def percent(fraction: float | None) -> str:
    """``0.8734`` → ``87.3%``."""
    return "–" if fraction is None else f"{100 * fraction:.1f}%"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, signed: ``0.123`` → ``+12.3``."""
    rounded = round(100 * difference, 1)
    return f"{'−' if rounded < 0 else '+'}{abs(rounded):.1f}"


def duration(seconds: float | None) -> str:
    """``3.2 s``, ``48 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def decimals(value: float) -> str:
    """Three significant digits, or a dash for what is not known (NaN)."""
    return "–" if not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def fraction(value: float) -> str:
    """Three decimals, or a dash for what is not known (NaN)."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def probability(value: float) -> str:
    """Two decimals, and never 1.00 for what is not certain."""
    if value > 0.995:
        return ">0.99"
    return "<0.01" if value < 0.005 else f"{value:.2f}"


def q_value(value: float) -> str:
    """Three decimals down to 0.001; a dash where the ranker has none."""
    return "<0.001" if value < 0.001 else f"{value:.3f}" if math.isfinite(value) else "–"


def change(before: int, after: int) -> str:
    """Relative change of a size: ``−32%``."""
    return "–" if before == 0 else f"{points((after - before) / before)}%"


def span(metric: Metric) -> str:
    """The interval in percent."""
    return f"{percent(metric.low)} to {percent(metric.high)}"


def signed_gain(metric: Metric | None) -> str:
    """A gain in points with its interval; a dash if there is none."""
    if metric is None:
        return "–"
    return f"{points(metric.value)} ({points(metric.low)} to {points(metric.high)})"


def counted(n: int, noun: str) -> str:
    """``1 sample``, ``2 samples``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
