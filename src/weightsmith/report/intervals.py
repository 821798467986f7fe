"""Dots with their intervals: the small strip of a headline figure, the plot of all paired differences, the time bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .svg import Scale, esc, fit, line, mark, put, rect, svg, text_width, tick_words, ticks
from .text import duration


@dataclass(frozen=True)
class Dot:
    """One figure to draw: a value with bounds, how it looks, and what it is called.

    ``words`` is the figure in print; ``settled`` is false when the interval cannot tell, which draws it hollow.
    """

    value: float
    low: float
    high: float
    tone: str
    shape: str
    label: str
    words: str
    settled: bool = True

    @property
    def drawable(self) -> bool:
        """Whether all three numbers are finite."""
        return math.isfinite(self.value + self.low + self.high)


@dataclass(frozen=True)
class Line:
    """A row of the plot of differences: one scorer under one condition, a dot per variant."""

    name: str
    condition: str
    unit: str
    dots: list[Dot]


def extent(dots: Sequence[Dot], *, zero: bool = False) -> tuple[float, float]:
    """Range that holds every interval, with a little air; never empty."""
    ends = [v for d in dots if d.drawable for v in (d.low, d.high, d.value)] + ([0.0] if zero else [])
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    air = (high - low or abs(high) or 1.0) * 0.06
    return low - (0 if zero and low == 0 else air), high + (0 if zero and high == 0 else air)


def _dot(d: Dot, xs: Scale, y: float, size: float) -> list[str]:
    if not d.drawable:
        return [put(xs.start, y + 4, "–", "tick")]
    parts = []
    if d.high > d.low:
        parts.append(line(xs(d.low), y, xs(d.high), y, f"{d.tone}-whisker"))
        parts.extend(line(xs(v), y - 3.5, xs(v), y + 3.5, f"{d.tone}-whisker") for v in (d.low, d.high))
    look = f"{d.tone}-{'fill' if d.settled else 'open'}"
    parts.append(mark(d.shape, xs(d.value), y, size, look, f"{d.label}: {d.words}"))
    return parts


def strip(dots: Sequence[Dot], domain: tuple[float, float], width: int, title: str, uid: str) -> str:
    """Base and edited values on one short axis."""
    xs = Scale(domain[0], domain[1], 10, width - 10)
    step = 17
    foot = 6 + step * len(dots)
    parts = []
    if domain[0] < 0 < domain[1]:
        parts.append(line(xs(0), 0, xs(0), foot, "zero"))
    for i, d in enumerate(dots):
        parts += _dot(d, xs, 9 + step * i, 5)
    parts.append(line(xs.start, foot, xs.end, foot, "axis"))
    wanted = ticks(domain[0], domain[1], 3)
    for value, words in zip(wanted, tick_words(wanted, signed=domain[0] < 0), strict=True):
        half = text_width(words, 11) / 2
        at = min(max(xs(value), half), width - half)
        parts.append(line(xs(value), foot, xs(value), foot + 4, "axis"))
        parts.append(put(at, foot + 16, words, "tick-small", "middle"))
    desc = "; ".join(f"{d.label} {d.words}" for d in dots)
    return svg(width, foot + 20, title, desc, parts, uid)


def _forest_group(lines: Sequence[Line], xs: Scale, top: float, width: int, narrow: bool) -> tuple[list[str], float]:
    """All rows that share a unit, and their axis; returns the parts and where the next group may begin."""
    parts: list[str] = []
    y = top
    bottoms: list[float] = []
    for row in lines:
        if narrow:
            whole = f"{row.name} · {row.condition}" if row.condition else row.name
            parts.append(put(0, y + 12, fit(whole, 13, width), "strong"))
            y += 24
        else:
            parts.append(put(0, y + 10, fit(row.name, 13, xs.start - 22), "strong"))
            parts.append(put(0, y + 26, fit(row.condition, 12, xs.start - 22), "tick"))
        for i, d in enumerate(row.dots):
            at = y + 6 + i * (38 if narrow else 24) + (0 if len(row.dots) > 1 or narrow else 7)
            parts += _dot(d, xs, at, 6)
            said = f"{d.label}: {d.words}" if d.label else d.words
            if narrow:
                parts.append(put(0, at + 20, fit(said, 12, width), "value"))
            else:
                parts.append(put(xs.end + 16, at + 4, fit(said, 12.5, width - xs.end - 16), "value"))
        y += max(len(row.dots) * (38 if narrow else 24) + (6 if narrow else 10), 0 if narrow else 42)
        bottoms.append(y)
    foot = y
    parts.insert(0, line(xs(0), top - 6, xs(0), foot, "zero"))
    parts.append(line(xs.start, foot, xs.end, foot, "axis"))
    wanted = ticks(xs.low, xs.high, 3 if narrow else 5)
    for value, words in zip(wanted, tick_words(wanted, signed=True), strict=True):
        parts.append(line(xs(value), foot, xs(value), foot + 4, "axis"))
        parts.append(put(xs(value), foot + 18, words, "tick-small", "middle"))
    unit = lines[0].unit
    if narrow:
        parts.append(put(xs.end, foot + 34, fit(unit, 12, width), "name", "end"))
        return parts, foot + 62
    parts.append(put(0, foot + 18, fit(unit, 12, xs.start - 22), "name"))
    return parts, foot + 50


def forest(lines: Sequence[Line], width: int, uid: str) -> str:
    """Every paired difference with its interval. Rows of one unit share an axis; zero stands in one line for all."""
    drawn = [row for row in lines if any(d.drawable for d in row.dots)]
    if not drawn:
        return ""
    narrow = width < 560
    groups: dict[str, list[Line]] = {}
    for row in drawn:
        groups.setdefault(row.unit, []).append(row)
    ranges = {u: extent([d for row in rows for d in row.dots], zero=True) for u, rows in groups.items()}
    # a unit in which nothing changed has no range: any will do, with zero in its middle
    ranges = {u: (low, high) if high > low else (-1.0, 1.0) for u, (low, high) in ranges.items()}
    # where zero lies, as a share of the axis, is the same for every unit, so that left always means less
    left = max(max(-low / (high - low) for low, high in ranges.values()), 0.0)
    right = max(max(high / (high - low) for low, high in ranges.values()), 0.0)
    cut = min(0.92, max(0.08, left / (left + right)))
    start, end = (8.0, width - 8.0) if narrow else (width * 0.23, width * 0.61)
    parts = [
        put(start + (end - start) * cut - 12, 14, "← less", "name", "end"),
        put(start + (end - start) * cut + 12, 14, "more →", "name"),
    ]
    y = 36.0
    for unit, rows in groups.items():
        low, high = ranges[unit]
        reach = max(-low / cut, high / (1 - cut))
        xs = Scale(-reach * cut, reach * (1 - cut), start, end)
        more, y = _forest_group(rows, xs, y, width, narrow)
        parts += more
    desc = "; ".join(f"{r.name}, {r.condition}, {d.label} {d.words}" for r in drawn for d in r.dots)
    return svg(width, y - 20, "Paired differences, edited minus base, with 95% intervals", desc, parts, uid)


def time_bar(parts: dict[str, float], width: int, uid: str) -> str:
    """One bar that shows how the seconds divide; names stand inside where they fit (a list beside it has them all)."""
    real = {k: v for k, v in parts.items() if math.isfinite(v) and v > 0}
    total = sum(real.values())
    if not real:
        return ""
    drawn, x = [], 0.0
    for i, (name, seconds) in enumerate(real.items()):
        wide = width * seconds / total
        block = rect(x, 0, wide - 1.5, 26, f"step-{i % 4}", 2)
        drawn.append(f"<g><title>{esc(name)}: {esc(duration(seconds))}</title>{block}</g>")
        if text_width(name, 12) + 12 < wide:
            drawn.append(put(x + 8, 17, name, f"step-text-{i % 4}"))
        x += wide
    desc = "; ".join(f"{k} {duration(v)}" for k, v in real.items())
    return svg(width, 26, f"Where the time went: {duration(total)} in all", desc, drawn, uid)
