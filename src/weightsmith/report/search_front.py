"""The front of a search: effect against damage, every candidate a mark, the best with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..searched import Point, SearchRecord
from .svg import Box, Labels, Scale, fit, line, log_ticks, mark, path, put, svg, text_width, tick_words, ticks
from .text import clip, number, show

# Stage -> (tone, shape, sign). The warm tone is the point to take's alone, on the whole page.
STAGES: dict[str, tuple[str, str, str]] = {
    "closed form": ("quiet", "square", "■"), "gradient": ("cool", "dot", "●"), "black box": ("ink", "up", "▲"),
}  # fmt: skip
# A log axis holds this much; what lies below stands at its left edge, as a damage of zero does.
SPAN = 1e5
LOG_FROM = 20.0
NAMED = 10


def effect_words(p: Point) -> str:
    """The effect in print, with its interval."""
    shown = show(p.effect, p.effect_low, p.effect_high, "nats", signed=True)
    return f"{shown.value} ({shown.interval})"


def damage_words(p: Point) -> str:
    """The damage in print, with its interval."""
    shown = show(p.damage, p.damage_low, p.damage_high, "")
    return f"{shown.value} ({shown.interval})"


def tip(p: Point, unit: str, *, taken: bool = False) -> str:
    """All that a mark says of its point."""
    marks = [w for w, on in (("the point to take", taken), ("the knee", p.knee), ("the starting point", p.start),
                             ("on the front", p.front)) if on]  # fmt: skip
    words = f"{p.name}, {p.stage}{''.join(f', {m}' for m in marks)}: {p.what}; effect {effect_words(p)} nats, "
    words += f"damage {damage_words(p)} {unit}, n = {p.n}"
    return words + (f"; disagrees with its confirmation: {p.disagrees}" if p.disagrees else "")


@dataclass(frozen=True)
class Axes:
    """The two scales, and what stands out on them; ``floored`` says that some damage lies left of the axis."""

    xs: Scale
    ys: Scale
    floored: bool
    taken: Point | None

    def place(self, p: Point) -> tuple[float, float]:
        """Where a point stands."""
        return self.xs(max(p.damage, self.xs.low)), self.ys(p.effect)

    def tone(self, p: Point) -> str:
        """The tone of a point."""
        return "warm" if p is self.taken else STAGES[p.stage][0]

    def named(self, p: Point) -> list[str]:
        """What a point is called, where it stands out."""
        words = [("taken", p is self.taken and not p.knee), ("knee", p.knee), ("start", p.start)]
        return [w for w, on in words if on]


def _axes(record: SearchRecord, width: int, height: int) -> Axes:
    front = record.front
    damages = [p.damage for p in record.points] + [v for p in front for v in (p.damage_low, p.damage_high)]
    effects = [p.effect for p in record.points] + [v for p in front for v in (p.effect_low, p.effect_high)]
    most = max(damages)
    real = [v for v in damages if v > 0]
    low, high = min(0.0, *effects), max(0.0, *effects)
    room = (high - low or 1.0) * 0.1
    ys = Scale(low - room if low < 0 else low, high + room, height - 56, 34)
    if real and most / min(real) > LOG_FROM:
        least = max(min(real), most / SPAN)
        xs = Scale(least / 1.35, most * 1.35, 46, width - 14, log=True)
        return Axes(xs, ys, any(p.damage < least for p in record.points), record.taken)
    return Axes(Scale(min(0.0, *damages), most * 1.08 if most > 0 else 1.0, 46, width - 14), ys, False, record.taken)


def _grid(at: Axes, width: int, unit: str) -> list[str]:
    xs, ys = at.xs, at.ys
    parts, last = [], -1e9
    across = ticks(ys.low, ys.high, 6)
    for value, words in zip(across, tick_words(across), strict=True):
        parts.append(line(xs.start, ys(value), xs.end, ys(value), "axis" if abs(value) < 1e-12 else "grid"))
        parts.append(put(xs.start - 8, ys(value) + 4, words, "tick", "end"))
    parts.append(line(xs.start, ys.start, xs.end, ys.start, "axis"))
    along = log_ticks(xs.low, xs.high) if xs.log else ticks(xs.low, xs.high, 5 if width > 500 else 4)
    for value, words in zip(along, tick_words(along), strict=True):
        half = text_width(words, 12) / 2
        parts.append(line(xs(value), ys.start, xs(value), ys.start + 5, "axis"))
        if xs(value) - half > last + 6 and xs(value) + half < width:
            parts.append(put(xs(value), ys.start + 20, words, "tick", "middle"))
            last = xs(value) + half
    narrow = width < 560
    tail = (", log scale" + (", zero at the left edge" if at.floored else "")) if xs.log and not narrow else ""
    parts.append(put(xs.end, ys.start + 42, fit(f"damage: KL(base ‖ edited), {unit}{tail} →", 12, width - 16), "name", "end"))
    up = "↑ effect, nats" if narrow else "↑ effect: shift of the log-odds towards the aim, nats"
    return [*parts, put(2, 14, up, "name")]


def _whiskers(p: Point, at: Axes) -> list[str]:
    tone = at.tone(p)
    x, y = at.place(p)
    left, right = (at.xs(max(v, at.xs.low)) for v in (p.damage_low, p.damage_high))
    parts = []
    if p.damage_high > p.damage_low:
        parts.append(line(left, y, right, y, f"{tone}-reach"))
    if p.effect_high > p.effect_low:
        parts.append(line(x, at.ys(p.effect_low), x, at.ys(p.effect_high), f"{tone}-reach"))
    return parts


def _mark(p: Point, at: Axes, unit: str, small: bool) -> list[str]:
    tone, shape, taken = at.tone(p), STAGES[p.stage][1], p is at.taken
    x, y = at.place(p)
    parts = []
    if taken or p.start:
        parts.append(mark("dot", x, y, 13.5 if taken else 11.5, f"{tone}-ring" + ("" if taken else " dashed")))
    if p.disagrees:
        parts.append(mark("square", x, y, 12.5, "differs"))
    look = "fill" if p.front else "open"
    size = 7.0 if taken else 5.5 if p.front or not small else 4.0
    parts.append(mark(shape, x, y, size, f"{tone}-{look}", tip(p, unit, taken=taken)))
    return parts


def _free(box: Box, labels: Labels) -> bool:
    inside = labels.left <= box[0] and box[2] <= labels.right and labels.top <= box[1] and box[3] <= labels.bottom
    others = (o for o in labels.taken if o is not box)
    return inside and all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in others)


def _tied(box: Box, x: float, y: float) -> list[str]:
    """A line from a mark to its label, where that had to move away."""
    nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
    return [line(x, y, *nearest, "leader")] if math.dist(nearest, (x, y)) > 30 else []


def _label(p: Point, words: Sequence[tuple[str, str, float]], at: Axes, labels: Labels) -> list[str]:
    """Lines of words (text, class, size) beside a mark."""
    x, y = at.place(p)
    box = labels.place(x, y, max(text_width(w, size) for w, _, size in words), 16 * len(words), 16)
    anchor, edge = ("end", box[2]) if box[2] < x else ("start", box[0])
    parts = _tied(box, x, y)
    return parts + [put(edge, box[1] + 12 + 16 * i, w, cls, anchor) for i, (w, cls, _) in enumerate(words)]


def _optional(p: Point, words: str, cls: str, at: Axes, labels: Labels) -> list[str]:
    """A label that is left out where it would lie on something; the table has it anyway."""
    x, y = at.place(p)
    box = labels.place(x, y, text_width(words, 12), 15, 9)
    if not _free(box, labels) or math.dist((min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])), (x, y)) > 26:
        labels.taken.remove(box)
        return []
    anchor, edge = ("end", box[2]) if box[2] < x else ("start", box[0])
    return [put(edge, box[1] + 12, words, cls, anchor)]


def _names(record: SearchRecord, at: Axes, labels: Labels, width: int) -> list[str]:
    """The point to take, the knee and the start by name, then points whose confirmation disagrees, then the others of a
    short front."""
    parts: list[str] = []
    room = (at.xs.end - at.xs.start) * (0.5 if width > 560 else 0.6)
    for p in sorted(record.points, key=lambda p: p is not at.taken):
        title = ", also the ".join(at.named(p)) + (", differs" if p.disagrees else "")
        if p is at.taken:
            told = f"effect {number(p.effect, 1, signed=True)}, damage {show(p.damage, p.damage_low, p.damage_high, '').value}"
            words = [(title, "strong warm-text", 13.0), (fit(p.name, 12, room), "tick", 12.0), (told, "tick", 12.0)]
            # a phone has no room for what the head of the page says anyway
            parts += _label(p, words if width > 560 else words[:2], at, labels)
        elif at.named(p):
            parts += _label(p, [(title, "small-strong ink-text", 12.0)], at, labels)
    short = width > 560 and len(record.front) <= NAMED
    # what disagrees comes first, since a label that finds no room is left out
    for p in sorted(record.points, key=lambda p: not p.disagrees):
        if not at.named(p) and (p.disagrees or (short and p.front)):
            said = [fit(p.name, 12, 130)] * (width > 560) + ["differs"] * bool(p.disagrees)
            parts += _optional(p, ", ".join(said), "small-strong ink-text" if p.disagrees else "tick", at, labels)
    return parts


def front_chart(record: SearchRecord, width: int, uid: str) -> str:
    """Effect against damage of every candidate of ``record``; ``""`` if there is none.

    Marks of the front are filled and have 95% intervals in both directions; the point to take and the start are ringed, both
    and the knee are named; a box is around those whose confirmed figures disagree with what the search saw.
    """
    if not record.points:
        return ""
    height = 470 if width >= 560 else 430
    at = _axes(record, width, height)
    unit = record.damage_unit
    parts = _grid(at, width, unit)
    labels = Labels(at.xs.start + 4, 26, at.xs.end, at.ys.start - 4)
    # where it is out of sight it would squeeze everything else
    if at.xs.low < record.reference_damage <= at.xs.high:
        x = at.xs(record.reference_damage)
        parts.append(line(x, 34, x, at.ys.start, "zero"))
        words = f"reference {number(record.reference_damage, 3).rstrip('0').rstrip('.')}"
        right = x - 6 - text_width(words, 12) > at.xs.start
        parts.append(put(x - 6 if right else x + 6, at.ys.start - 8, words, "tick", "end" if right else "start"))
        wide = text_width(words, 12) + 8
        labels.taken.append((x - wide if right else x, at.ys.start - 22, x if right else x + wide, at.ys.start))
        labels.block_line([(x, 34), (x, at.ys.start)])
    edge = [at.place(p) for p in record.front]
    labels.block_line(edge)
    for p in record.points:
        labels.block(*at.place(p), 15 if at.named(p) or p.disagrees else 7)
    drawn = [path(edge, "front-line")] if len(edge) > 1 else []
    drawn += [w for p in record.front for w in _whiskers(p, at)]
    small = len(record.points) > 40
    # what matters lies on top
    order = sorted(record.points, key=lambda p: (p is at.taken, p.start, p.front))
    drawn += [part for p in order for part in _mark(p, at, unit, small)]
    names = _names(record, at, labels, width)
    told = "no point was chosen" if at.taken is None else tip(at.taken, unit, taken=True)
    title = f"Effect against damage of {len(record.points)} candidates, {len(record.front)} of them on the front"
    return svg(width, height, title, clip(told, 400), [*parts, *drawn, *names], uid)
