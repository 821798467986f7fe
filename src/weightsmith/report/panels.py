"""Small charts of the measured distributions: KL of each prompt, stacked shares, scores over the turns of a conversation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .intervals import Dot, extent
from .svg import Scale, esc, fit, line, log_ticks, mark, path, put, rect, svg, text_width, tick_words, ticks
from .text import number

# KL of two equal distributions is 0, which a log axis can't show: such prompts stand at its left end.
LEAST_KL = 1e-6


@dataclass(frozen=True)
class Mark:
    """A summary of the distribution (mean, median, ...), drawn under it on the same axis."""

    name: str
    value: float
    low: float
    high: float
    shape: str
    words: str


def kl_range(values: Sequence[float]) -> tuple[float, float]:
    """Whole quarters of a decade that hold all values, so that bins have round ends."""
    real = [max(v, LEAST_KL) for v in values if math.isfinite(v)]
    low, high = min(real, default=1e-3), max(real, default=1.0)
    first, last = math.floor(math.log10(low) * 4 + 1e-9), math.ceil(math.log10(high) * 4 - 1e-9)
    return 10 ** (first / 4), 10 ** (max(last, first + 4) / 4)


def _bins(values: Sequence[float], domain: tuple[float, float]) -> list[tuple[float, float, int]]:
    """(low, high, count) of bins a quarter of a decade wide."""
    first, last = round(math.log10(domain[0]) * 4), round(math.log10(domain[1]) * 4)
    counts = [0] * (last - first)
    for v in values:
        at = math.floor(math.log10(max(v, domain[0])) * 4 - first + 1e-9)
        counts[min(max(at, 0), len(counts) - 1)] += 1
    return [(10 ** ((first + i) / 4), 10 ** ((first + i + 1) / 4), c) for i, c in enumerate(counts)]


def _log_axis(xs: Scale, y: float, top: float) -> list[str]:
    parts, last = [line(xs.start, y, xs.end, y, "axis")], -1e9
    wanted = log_ticks(xs.low, xs.high)
    for value in wanted:
        words = f"{value:.6f}".rstrip("0").rstrip(".") if value < 1 else number(value, 0)
        half = text_width(words, 12) / 2
        parts += [line(xs(value), top, xs(value), y, "grid"), line(xs(value), y, xs(value), y + 5, "axis")]
        if xs(value) - half > last + 8:
            parts.append(put(xs(value), y + 20, words, "tick", "middle"))
            last = xs(value) + half
    return parts


def _mark_row(m: Mark, xs: Scale, y: float, width: float, tone: str) -> list[str]:
    """One summary with its interval; its words stand on the side that has room."""
    at = xs(m.value)
    left = right = at
    parts = []
    if math.isfinite(m.low + m.high) and m.high > m.low:
        left, right = xs(max(m.low, xs.low)), xs(min(m.high, xs.high))
        parts.append(line(left, y, right, y, f"{tone}-whisker"))
        parts += [line(v, y - 3.5, v, y + 3.5, f"{tone}-whisker") for v in (left, right)]
    parts.append(mark(m.shape, at, y, 5.5, f"{tone}-fill", f"{m.name} {m.words}"))
    # on a narrow drawing the interval has to be read off the whisker; the table below has it in print
    for words in (f"{m.name} {m.words}", f"{m.name} {m.words.partition(' (')[0]}"):
        if right + 12 + text_width(words, 12) <= width:
            return [*parts, put(right + 12, y + 4, words, "tick")]
        if left - 12 - text_width(words, 12) >= 0:
            return [*parts, put(left - 12, y + 4, words, "tick", "end")]
    return [*parts, put(0, y + 4, fit(m.name, 12, left - 12), "tick")]


def kl_distribution(
    values: Sequence[float], marks: Sequence[Mark], domain: tuple[float, float], tone: str, width: int, uid: str
) -> str:
    """How many prompts have how much KL, on a log axis: a histogram, a stroke for each prompt, and the summaries below.

    ``values`` are nats per token, one for each prompt; ``""`` if there are none.
    """
    real = [v for v in values if math.isfinite(v)]
    if not real:
        return ""
    xs = Scale(*domain, 34, width - 10, log=True)
    bins = _bins(real, domain)
    most = max(c for *_, c in bins)
    ys = Scale(0, most * 1.08, 170, 24)
    foot = ys.start + 16 + 10
    parts = _log_axis(xs, foot, 24)
    for value in (t for t in ticks(0, most, 3) if float(t).is_integer()):
        parts.append(put(xs.start - 8, ys(value) + 4, number(value, 0), "tick", "end"))
    for low, high, count in bins:
        if count:
            said = f"{count} of {len(real)} prompts between {low:.2g} and {high:.2g} nats"
            box = rect(xs(low) + 0.75, ys(count), xs(high) - xs(low) - 1.5, ys.start - ys(count), f"{tone}-bar")
            parts.append(f"<g><title>{esc(said)}</title>{box}</g>")
    parts.append(line(xs.start, ys.start, xs.end, ys.start, "axis"))
    parts += [line(xs(max(v, domain[0])), ys.start + 5, xs(max(v, domain[0])), ys.start + 19, f"{tone}-stroke") for v in real]
    parts.append(put(2, 12, "↑ prompts", "name"))
    name = "KL(base ‖ edited), nats per token, log scale →"
    parts.append(put(xs.end, foot + 38, name if width > 400 else "nats per token, log scale →", "name", "end"))
    y = foot + 62
    for m in marks:
        if math.isfinite(m.value):
            parts += _mark_row(m, xs, y, width, tone)
            y += 21
    desc = "; ".join(f"{m.name} {m.words}" for m in marks)
    title = f"KL from the base's answers, one value for each of {len(real)} prompts"
    return svg(width, y - 4, title, desc, parts, uid)


@dataclass(frozen=True)
class Slice:
    """A part of a whole: its share of 1, its name, and how it is filled (``a`` to ``d``; the fill never tells alone)."""

    name: str
    share: float
    fill: str


def _hatch(x: float, y: float, wide: float, tall: float) -> list[str]:
    parts, at = [], x + 3.0
    while at < x + wide - 0.5:
        parts.append(line(at, y, at, y + tall, "part-hatch"))
        at += 5.0
    return parts


def stacked(slices: Sequence[Slice], width: int, title: str, uid: str) -> str:
    """One bar divided by shares; names stand inside where they fit, and are beside it in a table anyway."""
    parts, x, tall = [], 0.0, 26
    for s in slices:
        wide = width * min(max(s.share, 0.0), 1.0) if math.isfinite(s.share) else 0.0
        if wide <= 0:
            continue
        drawn = [rect(x + 0.75, 1, max(0.8, wide - 1.5), tall - 2, f"part-{s.fill}", 2)]
        if s.fill == "d":
            drawn += _hatch(x + 0.75, 1, wide - 1.5, tall - 2)
        parts.append(f"<g><title>{esc(s.name)}: {s.share:.0%}</title>{''.join(drawn)}</g>")
        words = f"{s.name} {s.share:.0%}"
        words = words if text_width(words, 12) + 14 < wide else f"{s.share:.0%}"
        if text_width(words, 12) + 14 < wide:
            parts.append(put(x + 7, 18, words, f"part-text-{s.fill}"))
        x += wide
    desc = "; ".join(f"{s.name} {s.share:.1%}" for s in slices if math.isfinite(s.share))
    return svg(width, tall, title, desc, parts, uid)


@dataclass(frozen=True)
class Turns:
    """One model's figures over turns: ``dots`` by turn."""

    name: str
    tone: str
    shape: str
    dots: dict[int, Dot]


def trend(lines: Sequence[Turns], unit: str, width: int, title: str, uid: str) -> str:
    """Scores over the turns of a conversation with their intervals, a line for each model; ``""`` if none can be drawn."""
    dots = [d for each in lines for d in each.dots.values() if d.drawable]
    if not dots:
        return ""
    turns = sorted({t for each in lines for t in each.dots})
    low, high = extent(dots)
    ys = Scale(low, high, 142, 26)
    wanted = ticks(low, high, 3)
    words = tick_words(wanted, signed=low < 0)
    start = 14 + max((text_width(w, 11) for w in words), default=20)
    xs = Scale(turns[0] - 0.25, turns[-1] + 0.25, start, width - 6)
    parts = [put(0, 11, fit(unit, 11, width), "tick-small")] if unit else []
    for value, said in zip(wanted, words, strict=True):
        parts.append(line(xs.start, ys(value), xs.end, ys(value), "zero" if abs(value) < 1e-12 else "grid"))
        parts.append(put(xs.start - 6, ys(value) + 4, said, "tick-small", "end"))
    for turn in turns:
        parts.append(put(xs(turn), 160, f"turn {turn}", "tick-small", "middle"))
    step = min(9.0, (xs.end - xs.start) / len(turns) / (len(lines) + 1))
    for i, each in enumerate(lines):
        aside = (i - (len(lines) - 1) / 2) * step
        real = [(xs(t) + aside, d) for t, d in sorted(each.dots.items()) if d.drawable]
        parts.append(path([(x, ys(d.value)) for x, d in real], f"{each.tone}-line"))
        for x, d in real:
            parts.append(line(x, ys(d.low), x, ys(d.high), f"{each.tone}-whisker"))
            parts.append(mark(each.shape, x, ys(d.value), 5, f"{each.tone}-fill", f"{each.name}: {d.words}"))
    desc = "; ".join(f"{e.name}, turn {t}: {d.words}" for e in lines for t, d in sorted(e.dots.items()))
    return svg(width, 168, title, desc, parts, uid)
