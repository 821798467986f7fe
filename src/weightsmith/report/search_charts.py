"""Small charts of a search: strengths by layer and role, training curves, and where time and tokens went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..searched import Stretch, Tick
from .search_front import LOG_FROM, SPAN
from .svg import Scale, esc, fit, line, log_ticks, mark, path, put, rect, svg, text_width, tick_words, ticks
from .text import duration, number

Strengths = dict[str, dict[int, float]]
SHADES = 5


def _tipped(tip: str, inner: str) -> str:
    return f"<g><title>{esc(tip)}</title>{inner}</g>" if inner else ""


@dataclass(frozen=True)
class Profile:
    """The strengths of one point; the first that is drawn has bars, the others lines. The point to take is a diamond."""

    label: str
    sign: str
    shape: str
    strengths: Strengths


def role_words(role: str) -> str:
    """A role as the heading of its panel."""
    return "every role" if role == "*" else role


def _bars(profile: Profile, role: str, xs: Scale, ys: Scale, step: float) -> list[str]:
    wide, who = min(26.0, step * 0.62), profile.label
    tone = "warm" if profile.shape == "diamond" else "ink"
    parts = []
    for layer, value in sorted(profile.strengths.get(role, {}).items()):
        top, foot = min(ys(value), ys(0)), max(ys(value), ys(0))
        box = rect(xs(layer) - wide / 2, top, wide, foot - top, f"{tone}-bar", 1)
        parts.append(_tipped(f"{who}, layer {layer}, {role}: {number(value, 3)}", box))
    return parts


def _others(profiles: Sequence[Profile], role: str, xs: Scale, ys: Scale, step: float) -> list[str]:
    parts, size = [], min(3.4, step * 0.36)
    for i, p in enumerate(profiles):
        row = sorted(p.strengths.get(role, {}).items())
        parts.append(path([(xs(n), ys(v)) for n, v in row], "faint-line" + (" dashed" if i else "")))
        look = "quiet-fill" if i or size < 3 else "quiet-open"
        parts += [mark(p.shape, xs(n), ys(v), size, look, f"{p.label}, layer {n}, {role}: {number(v, 3)}") for n, v in row]
    return parts


def strengths_chart(profiles: Sequence[Profile], width: int, uid: str) -> str:
    """Strength by layer, a panel for each role: bars for the first profile, lighter lines for the others; ``""`` if none."""
    roles = list(dict.fromkeys(r for p in profiles for r, row in p.strengths.items() if row))
    layers = [n for p in profiles for row in p.strengths.values() for n in row]
    if not roles:
        return ""
    values = [v for p in profiles for row in p.strengths.values() for v in row.values()]
    low, high = min(0.0, *values), max(0.0, *values)
    high = high if high > low else low + 1.0
    wanted = ticks(low, high * 1.05, 4)
    words = tick_words(wanted)
    start = 14 + max(text_width(w, 12) for w in words)
    first, last = min(layers), max(layers)
    step = (width - start - 10) / (last - first + 1)
    xs = Scale(first, last, start + step / 2, width - 10 - step / 2)
    parts, top, tall = [], 0.0, 104.0
    for role in roles:
        ys = Scale(low, high * 1.05 if high > 0 else high, top + 26 + tall, top + 26)
        parts.append(put(0, top + 12, fit(role_words(role), 13, width), "strong"))
        for value, said in zip(wanted, words, strict=True):
            parts.append(line(start, ys(value), width - 6, ys(value), "axis" if abs(value) < 1e-12 else "grid"))
            parts.append(put(start - 8, ys(value) + 4, said, "tick", "end"))
        if profiles:
            parts += _bars(profiles[0], role, xs, ys, step)
            parts += _others(profiles[1:], role, xs, ys, step)
        top += tall + 50
    shown = [round(v) for v in ticks(first, last, 12 if width > 560 else 6) if float(v).is_integer()] or [first]
    for value in shown:
        parts.append(put(xs(value), top - 4, str(value), "tick", "middle"))
    parts.append(put(width - 6, top + 18, "layer →", "name", "end"))
    title = f"Strength by layer of {', '.join(p.label for p in profiles)}"
    return svg(width, top + 24, title, f"Roles: {', '.join(map(role_words, roles))}; layers {first} to {last}", parts, uid)


@dataclass(frozen=True)
class Run:
    """One training run: its trade-off weight, its ticks in order, and how strongly it is drawn."""

    number: int
    weight: float
    ticks: list[Tick]
    shade: int


def runs(found: Sequence[Tick]) -> list[Run]:
    """Ticks by run, in the order of their weights; the heavier the weight the stronger."""
    by_run: dict[int, list[Tick]] = {}
    for t in found:
        by_run.setdefault(t.run, []).append(t)
    order = sorted(by_run.items(), key=lambda item: (item[1][0].weight, item[0]))
    most = max(1, len(order) - 1)
    return [
        Run(n, mine[0].weight, sorted(mine, key=lambda t: t.step), round(i / most * (SHADES - 1)) if len(order) > 1 else SHADES - 1)
        for i, (n, mine) in enumerate(order)
    ]


@dataclass(frozen=True)
class Curve:
    """What one panel shows: a line over every step, marks where held-out prompts were read, or both."""

    name: str
    batch: Callable[[Tick], float | None] | None
    held: Callable[[Tick], float | None] | None
    positive: bool = False


CURVES = (
    Curve("loss of the effect", lambda t: t.effect_loss, None),
    Curve("loss of the effect, held-out prompts", None, lambda t: t.held_effect),
    Curve("damage", lambda t: t.damage, lambda t: t.held_damage, True),
)


def _series(run: Run, of: Callable[[Tick], float | None] | None) -> list[tuple[int, float]]:
    return [(t.step, v) for t in run.ticks if of is not None and (v := of(t)) is not None]


def _scale(values: list[float], start: float, end: float, *, positive: bool) -> tuple[Scale, list[float]]:
    low, high = min(values), max(values)
    real = [v for v in values if v > 0]
    if positive and real and high / min(real) > LOG_FROM:
        least = max(min(real), high / SPAN)
        ys = Scale(least / 1.2, high * 1.2, start, end, log=True)
        wanted = log_ticks(ys.low, ys.high)
        # a panel is low: powers alone where all would crowd
        return ys, wanted if len(wanted) <= 5 else [v for v in wanted if f"{v:e}"[0] == "1"] or wanted[::3]
    low, high = (min(0.0, low), high) if positive else (low, high)
    air = (high - low or abs(high) or 1.0) * 0.05
    ys = Scale(low if positive and low == 0 else low - air, high + air, start, end)
    return ys, ticks(ys.low, ys.high, 4)


def _end_labels(ends: list[tuple[float, str, int]], x: float, top: float, foot: float) -> list[str]:
    """The weight at each line's end, moved apart where they would lie on each other; none if even that won't do."""
    gap = 13.0
    if (len(ends) - 1) * gap > foot - top + 8:
        ends = [ends[0], ends[-1]] if len(ends) > 1 else ends
    placed: list[float] = []
    rows = sorted(ends)
    for y, _, _ in rows:
        placed.append(max(y, placed[-1] + gap if placed else top))
    over = (placed[-1] - foot) if placed else 0.0
    for i in range(len(placed) - 1, -1, -1):
        limit = foot if i == len(placed) - 1 else placed[i + 1] - gap
        placed[i] = min(placed[i], limit) if over > 0 else placed[i]
    return [put(x, y + 4, words, f"tick-small shade-text-{shade}") for y, (_, words, shade) in zip(placed, rows, strict=True)]


def _panel(curve: Curve, all_runs: Sequence[Run], xs: Scale, top: float, tall: float, unit: str) -> list[str]:
    series = [(r, _series(r, curve.batch), _series(r, curve.held)) for r in all_runs]
    values = [v for _, a, b in series for _, v in (*a, *b)]
    ys, wanted = _scale(values, top + 24 + tall, top + 24, positive=curve.positive)
    name = curve.name + (f", {unit}{', log scale' if ys.log else ''}" if curve.positive else "")
    parts = [put(0, top + 12, fit(name, 13, xs.end + 40), "strong")]
    for value, said in zip(wanted, tick_words(wanted), strict=True):
        parts.append(line(xs.start, ys(value), xs.end, ys(value), "axis" if abs(value) < 1e-12 else "grid"))
        parts.append(put(xs.start - 8, ys(value) + 4, said, "tick", "end"))
    ends = []
    for r, batch, held in series:
        tip = f"run {r.number}, weight {r.weight:g}"
        points = [(xs(s), ys(v)) for s, v in (batch or held)]
        if not points:
            continue
        if len(points) > 1:
            parts.append(_tipped(tip, path(points, f"shade-line-{r.shade}")))
        elif batch:
            parts.append(mark("dot", *points[0], 2.4, f"shade-dot-{r.shade}", tip))
        look = f"shade-dot-{r.shade}"
        parts += [mark("dot", xs(s), ys(v), 4, look, f"{tip}, step {s}, held out: {number(v, 4)}") for s, v in held]
        ends.append((points[-1][1], f"{r.weight:.3g}", r.shade))
    return parts + _end_labels(ends, xs.end + 8, top + 24, top + 24 + tall)


def training_chart(found: Sequence[Tick], unit: str, width: int, uid: str) -> str:
    """Loss, effect and damage by step, a line for each run, stronger the heavier its weight; ``""`` without ticks."""
    if not found:
        return ""
    all_runs = runs(found)
    last = max(t.step for t in found)
    first = min(t.step for t in found)
    xs = Scale(first, last if last > first else first + 1, 58, width - 52)
    curves = [c for c in CURVES if any(_series(r, c.batch) or _series(r, c.held) for r in all_runs)]
    parts, top, tall = [], 0.0, 140.0
    for i, curve in enumerate(curves):
        parts += _panel(curve, all_runs, xs, top, tall, unit)
        if i == 0:
            parts.append(put(width, top + 12 if width > 560 else top + 22, "weight", "tick-small", "end"))
        top += tall + 46
    foot = top - 14
    for value in (v for v in ticks(xs.low, xs.high, 8 if width > 560 else 5) if float(v).is_integer()):
        parts.append(line(xs(value), foot - 8, xs(value), foot - 4, "axis"))
        parts.append(put(xs(value), foot + 10, number(value, 0), "tick", "middle"))
    parts.append(put(xs.end, foot + 30, "step →", "name", "end"))
    desc = "; ".join(f"run {r.number}: weight {r.weight:g}, {len(r.ticks)} steps read" for r in all_runs)
    return svg(width, foot + 36, f"Training of {len(all_runs)} runs", desc, parts, uid)


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: its name, its figure in print, and its parts as (length, class)."""

    name: str
    words: str
    parts: list[tuple[float, str]]


def bars(rows: Sequence[Bar], width: int, title: str, uid: str, whole: float | None = None) -> str:
    """Horizontal bars on one scale, name and figure above each; ``whole`` is its end. ``""`` without rows."""
    if not rows:
        return ""
    most = whole or max(sum(v for v, _ in r.parts) for r in rows) or 1.0
    drawn = []
    for i, r in enumerate(rows):
        y = 36.0 * i
        told = text_width(r.words, 12)
        drawn.append(put(0, y + 12, fit(r.name, 12, width - told - 16), "value"))
        drawn.append(put(width, y + 12, r.words, "tick", "end"))
        x = 0.0
        inner = [rect(0, y + 18, width, 9, "bar-bed", 1)]
        for value, cls in r.parts:
            wide = width * value / most
            if value > 0:
                inner.append(rect(x, y + 18, max(1.0, wide), 9, cls, 1))
            x += wide
        drawn.append(_tipped(f"{r.name}: {r.words}", "".join(inner)))
    return svg(width, 36.0 * len(rows) - 6, title, "; ".join(f"{r.name} {r.words}" for r in rows), drawn, uid)


def seconds_bars(found: Sequence[Stretch]) -> list[Bar]:
    """Seconds of each stage, with its share."""
    total = sum(s.seconds for s in found) or 1.0
    return [Bar(s.name, f"{duration(s.seconds)}, {s.seconds / total:.0%}", [(s.seconds, "part-a")]) for s in found]


def token_bars(found: Sequence[Stretch]) -> list[Bar]:
    """Tokens of each stage: passed with gradients, passed without, generated."""
    made = []
    for s in found:
        tokens = s.passed + s.generated
        split: list[tuple[float, str]] = [(s.backward, "part-a"), (max(0, s.passed - s.backward), "part-b")]
        made.append(Bar(s.name, number(tokens, 0), [*split, (s.generated, "token-made")]))
    return made
