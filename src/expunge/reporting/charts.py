"""Small charts as inline SVG: fixed text size at every width, colours from CSS classes.

Positions along the page are percentages, heights are pixels. Curves live in a nested SVG that is
stretched; text and axes do not. Everything drawn is numbers: names stay in the page, where they are
escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

HEIGHT = 168  # of a histogram's plot area, in pixels
POINTS = 240  # of a curve
COLUMNS = 120  # of a waveform
_N_TICKS = 5  # of an axis, about

# Of lines, two each: whole and dashed.
LINES = ("#2a3a78", "#c2571a", "#207e8c", "#8a3ffc", "#7abe6e")

Curve = tuple[str, np.ndarray]  # CSS class, heights at POINTS places from left to right


def ticks(low: float, high: float) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / _N_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def bar(
    start: float,
    end: float,
    role: str,
    *,
    whisker: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
) -> Markup:
    """One horizontal bar between two fractions of the width, with an interval and grid marks."""
    left, right = sorted((_clip(start), _clip(end)))
    parts = [
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="20"/>').format(_pc(m))
        for m in marks
    ]
    parts.append(
        Markup('<rect class="{}" x="{}%" width="{}%" y="3" height="14" rx="1.5"/>').format(
            role, _pc(left), _pc(right - left)
        )
    )
    if whisker is not None:
        low, high = _pc(_clip(whisker[0])), _pc(_clip(whisker[1]))
        parts.append(
            Markup(
                '<line class="whisker" x1="{0}%" x2="{1}%" y1="10" y2="10"/>'
                '<line class="whisker" x1="{0}%" x2="{0}%" y1="6" y2="14"/>'
                '<line class="whisker" x1="{1}%" x2="{1}%" y1="6" y2="14"/>'
            ).format(low, high)
        )
    return Markup('<svg class="bar" height="20" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def histogram(
    values: np.ndarray,
    flagged: np.ndarray,
    *,
    limits: tuple[float, float],
    bins: int,
    curves: Sequence[Curve] = (),
    rule: float | None = None,
    root: bool = False,
    label: str,
) -> Markup:
    """Counts of kept and (on top) flagged samples, with curves in counts drawn over them.

    Values beyond ``limits`` are counted in the end bins. rule: a vertical line at this value.
    root: square-root heights, so that small counts can be seen beside large ones.
    """
    low, high = limits
    edges = np.linspace(low, high, bins + 1)
    inside = np.clip(values, low, high)
    total = np.histogram(inside, edges)[0]
    kept = np.histogram(inside[~flagged], edges)[0]
    tallest = max(float(total.max()), 1.0)
    peak = max([tallest, *(float(c.max()) for _, c in curves)])
    top = min(peak, 1.25 * tallest) * 1.06

    def y(count: float) -> float:
        share = max(count, 0.0) / top
        return HEIGHT * (1.0 - (math.sqrt(share) if root else share))

    shapes = [*_columns(kept, total, y), *(_path(role, heights, y) for role, heights in curves)]
    across = [((t - low) / (high - low), t) for t in ticks(low, high)]
    up = [(y(t), f"{t:,.0f}") for t in _count_ticks(top, root)]
    rule_at = None if rule is None else (rule - low) / (high - low)
    return _frame(label, _heights_axis(up), shapes, _value_axis(across, rule_at))


def spectrum(curves: Sequence[tuple[str, np.ndarray]], *, label: str) -> Markup:
    """Values from the largest down on logarithmic axes: their share of all over their number.

    curves: CSS class, and singular values, the largest first. Shares below a millionth of the
    largest value stand at the foot.
    """
    longest = max(len(values) for _, values in curves)
    shares = [(role, values / values.sum()) for role, values in curves]
    top = max(float(s[0]) for _, s in shares) * 1.1
    foot = max(min(float(s[s > 0].min()) for _, s in shares) / 1.1, 1e-6 * top)
    width, height = max(math.log(longest), 1e-9), math.log(top / foot)

    def y(share: float) -> float:
        return HEIGHT * (1 - math.log(max(share, foot) / foot) / height)

    shapes = []
    for role, values in shares:
        places = np.linspace(0, math.log(longest), POINTS)
        known = np.log(np.maximum(values, foot))
        heights = np.exp(np.interp(places, np.log(np.arange(1, len(values) + 1)), known))
        shapes.append(_path(role, heights, y))
    across = [(math.log(n) / width, float(n)) for n in _powers(1, longest)]
    up = [(y(share), f"{100 * share:g} %") for share in _powers(foot, top)]
    return _frame(label, _heights_axis(up), shapes, _value_axis(across, None))


def _powers(low: float, high: float) -> list[float]:
    """The powers of ten from low to high."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**k for k in range(first, last + 1)]


def _frame(label: str, grid: Markup, shapes: Sequence[Markup], axis: Markup) -> Markup:
    return Markup(
        '<svg class="plot" height="{height}" role="img" aria-label="{label}">{grid}'
        '<svg width="100%" height="{plot}" viewBox="0 0 1000 {plot}" preserveAspectRatio="none">'
        "{shapes}</svg>{axis}</svg>"
    ).format(
        height=HEIGHT + 26,
        plot=HEIGHT,
        label=label,
        grid=grid,
        shapes=Markup("").join(shapes),
        axis=axis,
    )


def _columns(kept: np.ndarray, total: np.ndarray, y: Callable[[float], float]) -> list[Markup]:
    width = 1000 / len(total)
    shapes = []
    for i, (k, t) in enumerate(zip(kept.tolist(), total.tolist(), strict=True)):
        for role, bottom, top in (("kept", 0, k), ("flagged", k, t)):
            if top > bottom:
                shapes.append(
                    Markup(
                        '<rect class="{}" x="{:.2f}" width="{:.2f}" y="{:.2f}" height="{:.2f}"/>'
                    ).format(role, (i + 0.06) * width, 0.88 * width, y(top), y(bottom) - y(top))
                )
    return shapes


def _path(role: str, heights: np.ndarray, y: Callable[[float], float]) -> Markup:
    points = zip(np.linspace(0, 1000, len(heights)).tolist(), heights.tolist(), strict=True)
    # Far above the frame a curve is cut off anyway.
    line = " L".join(f"{x:.1f} {max(y(h), -HEIGHT):.2f}" for x, h in points)
    return Markup('<path class="{}" d="M{}" vector-effect="non-scaling-stroke"/>').format(
        role, line
    )


def _count_ticks(top: float, root: bool) -> list[float]:
    if not root:
        return [t for t in ticks(0, top) if t == int(t)]
    # Evenly spaced to the eye, then rounded to one digit.
    wanted = {_one_digit(top * share**2) for share in (0.33, 0.62, 0.9)}
    return [0.0, *sorted(w for w in wanted if 1 <= w <= top)]


def _one_digit(x: float) -> float:
    if x < 1:
        return 0.0
    power = 10.0 ** math.floor(math.log10(x))
    return math.floor(x / power) * power


def _heights_axis(up: Sequence[tuple[float, str]]) -> Markup:
    return Markup("").join(
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>'
            '<text x="-8" y="{0:.1f}" dy="0.32em" text-anchor="end">{1}</text>'
        ).format(at, value)
        for at, value in up
    )


def _value_axis(across: Sequence[tuple[float, float]], rule: float | None) -> Markup:
    parts = [
        Markup(
            '<line class="axis" x1="{0}%" x2="{0}%" y1="{1}" y2="{2}"/>'
            '<text x="{0}%" y="{3}" text-anchor="middle">{4}</text>'
        ).format(_pc(at), HEIGHT, HEIGHT + 5, HEIGHT + 20, f"{value:g}".replace("-", "−"))
        for at, value in across
    ]
    parts.append(Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(HEIGHT))
    if rule is not None and 0 <= rule <= 1:
        parts.append(
            Markup('<line class="rule" x1="{0}%" x2="{0}%" y1="0" y2="{1}"/>').format(
                _pc(rule), HEIGHT
            )
        )
    return Markup("").join(parts)


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> str:
    """Lines through points ``(x, y)``, y from 0 up, as an SVG file of its own with a legend.

    Raises nothing for a single point; a series without points is left out.
    """
    series = {name: points for name, points in series.items() if points}
    places = [p for points in series.values() for p in points]
    right = max((p[0] for p in places), default=1.0) or 1.0
    top = 1.06 * (max((p[1] for p in places), default=1.0) or 1.0)
    width, left, height = 680, 52, 280
    plot = width - left - 230

    def at(point: tuple[float, float]) -> str:
        return f"{left + plot * point[0] / right:.1f},{height * (1 - point[1] / top):.1f}"

    parts = [
        Markup(
            '<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" stroke="#ddd"/>'
            '<text x="{3}" y="{2:.1f}" dy="0.32em" text-anchor="end">{4:g}</text>'
        ).format(left, left + plot, height * (1 - t / top), left - 6, t)
        for t in ticks(0, top)
    ]
    parts += [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
            left + plot * t / right, height + 18, t
        )
        for t in ticks(0, right)
    ]
    for i, (name, points) in enumerate(series.items()):
        parts.append(
            Markup(
                '<polyline fill="none" stroke="{0}" stroke-width="2" {1}points="{2}"/>'
                '<line x1="{3}" x2="{4}" y1="{5}" y2="{5}" stroke="{0}" stroke-width="2" {1}/>'
                '<text x="{6}" y="{5}" dy="0.32em">{7}</text>'
            ).format(
                LINES[i // 2 % len(LINES)],
                Markup('stroke-dasharray="5 4" ') if i % 2 else "",
                " ".join(at(p) for p in sorted(points)),
                *(left + plot + 12, left + plot + 34, 12 + 20 * i, left + plot + 40, name),
            )
        )
    text = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    parts.append(text.format(left + plot / 2, height + 36, x))
    parts.append(Markup('<text x="4" y="-8">{}</text>').format(y))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -22 {} {}" font-family="sans-serif" '
        'font-size="12">{}</svg>\n'
    ).format(width, height + 66, Markup("").join(parts))


def _clip(fraction: float) -> float:
    return min(max(float(fraction), 0.0), 1.0)


def _pc(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def waveform(clip: np.ndarray) -> Markup:
    """The lowest and highest value of ``int16`` sound over time, scaled to its own peak."""
    parts = np.array_split(clip.astype(np.float64), min(COLUMNS, max(len(clip), 1)))
    peak = max(float(np.abs(clip.astype(np.float64)).max(initial=0.0)), 1.0)
    top = [20 * (1 - float(part.max(initial=0.0)) / peak) for part in parts]
    bottom = [20 * (1 - float(part.min(initial=0.0)) / peak) for part in parts]
    at = np.linspace(0, 1000, len(parts)).tolist()
    edges = [*zip(at, top, strict=True), *zip(at[::-1], bottom[::-1], strict=True)]
    outline = " L".join(f"{x:.0f} {y:.1f}" for x, y in edges)
    return Markup(
        '<svg class="wave" height="40" viewBox="0 0 1000 40" preserveAspectRatio="none" '
        'aria-hidden="true"><path d="M{}Z"/></svg>'
    ).format(outline)
