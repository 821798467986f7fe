"""The few SVG parts that the charts are made of: scales, ticks, marks, and labels that keep out of each other's way.

Colours never stand here: a mark has a class, and a style sheet gives that class its colour, so one drawing serves the
light page, the dark page, paper, and a file of its own.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .text import number, visible

# Widths of text are guessed, since nothing here can ask a browser; a little too wide is the safe side.
_EM = 0.53


def esc(text: object) -> str:
    """Text for SVG content or attributes: hidden characters shown, markup escaped."""
    return html.escape(visible(str(text)), quote=True)


def text_width(text: str, size: float) -> float:
    """A guess at the width of ``text``, in pixels."""
    return sum(1.0 if ord(c) > 0x2E80 else 0.74 if c.isupper() else _EM for c in visible(text)) * size


def fit(text: str, size: float, room: float) -> str:
    """``text``, cut with an ellipsis if it would need more than ``room`` pixels."""
    shown = visible(text).replace("\n", " ")
    if text_width(shown, size) <= room:
        return shown
    while shown and text_width(shown + "…", size) > room:
        shown = shown[:-1]
    return shown.rstrip() + "…"


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels; ``log`` for positive values that span magnitudes."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        if high == low:
            return (self.start + self.end) / 2
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside ``low`` to ``high``, about ``count`` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw * 0.999), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each power of ten inside the range; powers alone where that would crowd."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wanted: tuple[int, ...] = (1, 2, 5) if math.log10(high / low) < 2 else (1, 3) if high / low < 2000 else (1,)
    return [m * 10.0**p for p in powers for m in wanted if low * 0.999 <= m * 10.0**p <= high * 1.001]


def tick_words(values: Sequence[float], *, signed: bool = False) -> list[str]:
    """Labels of one axis, all with the same number of decimals (each its own on a log axis)."""
    places = 0
    for value in values:
        for d in range(7):
            if abs(round(value, d) - value) < 1e-9 * max(1.0, abs(value)):
                places = max(places, d)
                break
    ratio = max(values, default=1) / min(values, default=1) if values and min(values) > 0 else 1
    if ratio >= 50:
        return [f"{v:.6f}".rstrip("0").rstrip(".") if v < 1 else number(v, 0) for v in values]
    return [number(v, places, signed=signed) for v in values]


def put(x: float, y: float, text: str, cls: str, anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{cls}" text-anchor="{anchor}">{esc(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{cls}"/>'


def rect(x: float, y: float, width: float, height: float, cls: str, radius: float = 0) -> str:
    """A rectangle."""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
    return f'<rect {box} rx="{radius:g}" class="{cls}"/>'


def path(points: Iterable[tuple[float, float]], cls: str, *, closed: bool = False) -> str:
    """A polyline, or a filled shape if ``closed``."""
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}{" Z" if closed else ""}" class="{cls}"/>' if steps else ""


def mark(shape: str, x: float, y: float, size: float, cls: str, tip: str = "") -> str:
    """A data point: ``up`` and ``down`` triangles, ``square``, ``diamond`` or ``dot``; ``tip`` is its tooltip."""
    inside = f"<title>{esc(tip)}</title>" if tip else ""
    if shape == "dot":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size * 0.9:.1f}" class="{cls}">{inside}</circle>'
    s, half = size, size * 0.85
    corners = {
        "up": [(0, -s), (s, s * 0.8), (-s, s * 0.8)],
        "down": [(0, s), (s, -s * 0.8), (-s, -s * 0.8)],
        "square": [(-half, -half), (half, -half), (half, half), (-half, half)],
        "diamond": [(0, -s * 1.1), (s * 1.1, 0), (0, s * 1.1), (-s * 1.1, 0)],
    }[shape]
    d = " ".join(f"{'L' if i else 'M'}{x + dx:.1f} {y + dy:.1f}" for i, (dx, dy) in enumerate(corners))
    return f'<path d="{d} Z" class="{cls}">{inside}</path>'


def svg(width: float, height: float, title: str, desc: str, parts: Iterable[str], uid: str, extra: str = "") -> str:
    """The whole drawing, named and described for those who do not see it; ``uid`` keeps ids on one page apart."""
    return (
        f'<svg {extra}class="chart" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-labelledby="{esc(uid)}-t {esc(uid)}-d">'
        f'<title id="{esc(uid)}-t">{esc(title)}</title><desc id="{esc(uid)}-d">{esc(desc)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


Box = tuple[float, float, float, float]


@dataclass
class Labels:
    """Greedy placement: each label takes the free place nearest to its point that covers nothing already there."""

    left: float
    top: float
    right: float
    bottom: float
    taken: list[Box] = field(default_factory=list)

    def block(self, x: float, y: float, radius: float) -> None:
        """Keep labels off a mark."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))

    def block_line(self, points: Sequence[tuple[float, float]]) -> None:
        """Keep labels off a polyline."""
        for (x1, y1), (x2, y2) in pairwise(points):
            steps = max(1, round(math.dist((x1, y1), (x2, y2)) / 8))
            for i in range(steps):
                self.block(x1 + (x2 - x1) * (i + 0.5) / steps, y1 + (y2 - y1) * (i + 0.5) / steps, 3)

    def _cost(self, box: Box) -> float:
        out = max(0, self.left - box[0]) + max(0, box[2] - self.right)
        out += max(0, self.top - box[1]) + max(0, box[3] - self.bottom)
        cost = 1000.0 * out
        for other in self.taken:
            wide = min(box[2], other[2]) - max(box[0], other[0])
            high = min(box[3], other[3]) - max(box[1], other[1])
            if wide > 0 and high > 0:
                cost += 10 + wide * high
        return cost

    def place(self, x: float, y: float, width: float, height: float, gap: float = 10) -> Box:
        """A box of this size near the point (x, y), and no longer free for others."""
        best: tuple[float, Box] | None = None
        for ring in (gap, gap + 14, gap + 30, gap + 50, gap + 80, gap + 120):
            for dx, dy in ((1, -0.5), (-1, -0.5), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1), (1, 0.2)):
                cx = x + ring if dx > 0 else x - ring - width if dx < 0 else x - width / 2
                if dy in (-0.5, 0.2):
                    cy = y + dy * height
                else:
                    cy = y - ring - height if dy < 0 else y + ring
                box = (cx, cy, cx + width, cy + height)
                cost = self._cost(box) + ring * 0.2
                if best is None or cost < best[0]:
                    best = (cost, box)
        box = best[1] if best else (x, y, x + width, y + height)
        self.taken.append(box)
        return box
