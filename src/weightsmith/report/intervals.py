"""Dots with their intervals: the small strip of a headline figure, the rows of the tables of figures, the time bar."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .svg import Scale, esc, fit, line, mark, put, rect, svg, text_width, tick_words, ticks
from .text import duration

K = TypeVar("K", bound=Hashable)


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


def aligned(ranges: Mapping[K, tuple[float, float]]) -> dict[K, tuple[float, float]]:
    """Ranges widened so that zero lies at the same place on every axis: left always means less."""
    # where nothing changed there is no range: any will do, with zero in its middle
    real = {k: (low, high) if high > low else (-1.0, 1.0) for k, (low, high) in ranges.items()}
    left = max((-low / (high - low) for low, high in real.values()), default=0.5)
    right = max((high / (high - low) for low, high in real.values()), default=0.5)
    left, right = max(left, 0.0), max(right, 0.0)
    cut = min(0.92, max(0.08, left / (left + right))) if left + right > 0 else 0.5
    found = {}
    for key, (low, high) in real.items():
        reach = max(-low / cut, high / (1 - cut))
        found[key] = (-reach * cut, reach * (1 - cut))
    return found


def row(dots: Sequence[Dot], domain: tuple[float, float], width: int, title: str, uid: str) -> str:
    """The dots of one table row, without words, on an axis that :func:`axis` draws once for all rows."""
    xs = Scale(domain[0], domain[1], 12, width - 12)
    tall = 26
    parts = [line(xs(v), 0, xs(v), tall, "grid") for v in ticks(*domain, 4)]
    if domain[0] <= 0 <= domain[1]:
        parts.append(line(xs(0), 0, xs(0), tall, "zero"))
    for d in dots:
        parts += _dot(d, xs, tall / 2, 6)
    return svg(width, tall, title, "; ".join(f"{d.label} {d.words}".strip() for d in dots), parts, uid)


def axis(domain: tuple[float, float], width: int, unit: str, uid: str, *, signed: bool) -> str:
    """The axis under the rows of one panel, with the words of its unit."""
    xs = Scale(domain[0], domain[1], 12, width - 12)
    parts = [line(xs.start, 1, xs.end, 1, "axis")]
    wanted = ticks(*domain, 4)
    for value, words in zip(wanted, tick_words(wanted, signed=signed), strict=True):
        half = text_width(words, 11) / 2
        parts.append(line(xs(value), 1, xs(value), 5, "axis"))
        parts.append(put(min(max(xs(value), half), width - half), 17, words, "tick-small", "middle"))
    if unit:
        parts.append(put(width / 2, 32, fit(unit, 11, width - 8), "tick-small", "middle"))
    return svg(width, 36 if unit else 20, f"Axis: {unit or 'value'}", f"{domain[0]:g} to {domain[1]:g}", parts, uid)


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
