"""The two large charts: what an edit does against what it costs, and how good each layer's direction is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..records import Candidate, DirectionMeta, LayerQuality
from .svg import Labels, Scale, fit, line, log_ticks, mark, path, put, rect, svg, text_width, tick_words, ticks
from .text import number, runs, spans

Place = Callable[[Candidate], tuple[float, float]]
Values = list[tuple[int, float]]
Bands = list[tuple[int, float, float]]

# Kind of edit -> (tone, shape, said as). Up adds, down takes away: the shape alone tells them apart.
KINDS: dict[str, tuple[str, str, str]] = {"add": ("warm", "up", "adding"), "remove": ("cool", "down", "removing")}


def candidate_words(c: Candidate) -> str:
    """A candidate in a few words, for a label or tooltip."""
    many = "layers" if len(c.layers) > 1 else "layer"
    return f"{c.kind} {c.amount:g} at {many} {spans(c.layers)}, direction of layer {c.source}"


def _tip(c: Candidate) -> str:
    cost = f"effect {number(c.effect, 3, signed=True)}, damage {number(c.kl, 4)} nats per token"
    return f"{candidate_words(c)}: {cost}, n = {c.n}" + (" (chosen)" if c.chosen else "")


def _finite(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [c for c in candidates if math.isfinite(c.kl) and math.isfinite(c.effect)]


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other candidate beats on both counts, by rising damage."""
    best: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.kl, -c.effect)):
        if not best or c.effect > best[-1].effect:
            best.append(c)
    return best


def _damage_scale(shown: list[Candidate], start: float, end: float) -> tuple[Scale, list[float]]:
    kls = [c.kl for c in shown]
    low, high = min(kls), max(kls)
    if low > 0 and high / low > 20:
        scale = Scale(low / 1.35, high * 1.35, start, end, log=True)
        return scale, log_ticks(scale.low, scale.high)
    high = high * 1.08 if high > 0 else 1.0
    scale = Scale(min(0.0, low * 1.08), high, start, end)
    return scale, ticks(scale.low, scale.high, 5 if end - start > 420 else 4)


def _effect_scale(shown: list[Candidate], start: float, end: float) -> tuple[Scale, list[float]]:
    effects = [c.effect for c in shown]
    low, high = min(0.0, *effects), max(0.0, *effects)
    room = (high - low or 1.0) * 0.12
    scale = Scale(low - room if low < 0 else low, high + room, start, end)
    return scale, ticks(scale.low, scale.high, 5)


def _pareto_axes(xs: Scale, ys: Scale, xt: list[float], yt: list[float], width: float) -> list[str]:
    parts = []
    for value, words in zip(yt, tick_words(yt), strict=True):
        zero = abs(value) < 1e-12
        parts.append(line(xs.start, ys(value), xs.end, ys(value), "axis" if zero else "grid"))
        parts.append(put(xs.start - 8, ys(value) + 4, words, "tick", "end"))
    parts.append(line(xs.start, ys.start, xs.end, ys.start, "axis"))
    last = -1e9
    for value, words in zip(xt, tick_words(xt), strict=True):
        half = text_width(words, 12) / 2
        parts.append(line(xs(value), ys.start, xs(value), ys.start + 5, "axis"))
        if xs(value) - half > last + 6:
            parts.append(put(xs(value), ys.start + 20, words, "tick", "middle"))
            last = xs(value) + half
    narrow = width < 560
    across = "damage: KL(base ‖ edited), nats per token →"
    up = "↑ effect, nats per token" if narrow else "↑ effect: shift of the log-odds towards the aim, nats per token"
    parts.append(put(xs.end, ys.start + 42, across + (", log scale" if xs.log and not narrow else ""), "name", "end"))
    parts.append(put(2, 14, up, "name"))
    return parts


def _pareto_labels(shown: list[Candidate], labels: Labels, place: Place) -> list[str]:
    """The chosen candidates with two lines of words each, tied to their mark when they had to move away."""
    parts = []
    room = labels.right - labels.left
    for c in (c for c in shown if c.chosen):
        tone = KINDS[c.kind][0]
        first = f"chosen to {c.kind}"
        second = f"amount {c.amount:g}, layers {spans(c.layers)}" + (f", from layer {c.source}" if room > 500 else "")
        second = fit(second, 12, room * 0.7)
        wide = max(text_width(first, 13), text_width(second, 12))
        x, y = place(c)
        left, top, right, bottom = labels.place(x, y, wide, 32, 17)
        nearest = (min(max(x, left), right), min(max(y, top), bottom))
        if math.dist(nearest, (x, y)) > 30:
            parts.append(line(x, y, *nearest, "leader"))
        anchor, at = ("end", right) if right < x else ("start", left)
        parts.append(put(at, top + 12, first, f"strong {tone}-text", anchor))
        parts.append(put(at, top + 28, second, "tick", anchor))
    return parts


def pareto(candidates: Sequence[Candidate], width: int, uid: str) -> str:
    """Effect against damage, one mark per tried edit, a line through those that nothing beats; ``""`` if there are none."""
    shown = _finite(candidates)
    if not shown:
        return ""
    height = 430 if width >= 560 else 400
    xs, xt = _damage_scale(shown, 46, width - 14)
    ys, yt = _effect_scale(shown, height - 56, 34)
    parts = _pareto_axes(xs, ys, xt, yt, width)
    labels = Labels(xs.start + 4, 26, xs.end, ys.start - 4)

    def place(c: Candidate) -> tuple[float, float]:
        return xs(c.kl), ys(c.effect)

    parts.append(put(xs.start + 8, 42, "↖ more effect for less damage", "tick"))
    labels.taken.append((xs.start, 28, xs.start + 8 + text_width("↖ more effect for less damage", 12), 48))
    for c in shown:
        labels.block(*place(c), 15 if c.chosen else 8)
    marks = []
    for kind, (tone, shape, _) in KINDS.items():
        mine = [c for c in shown if c.kind == kind]
        best = [place(c) for c in front(mine)]
        labels.block_line(best)
        marks.append(path(best, f"{tone}-line{' dashed' if kind == 'remove' else ''}"))
        for c in sorted(mine, key=lambda c: c.chosen):
            x, y = place(c)
            if c.chosen:
                marks.append(mark("dot", x, y, 14, f"{tone}-ring"))
            size, look = (7.5, "fill") if c.chosen else (5.5, "open")
            marks.append(mark(shape, x, y, size, f"{tone}-{look}", _tip(c)))
    names = _pareto_labels(shown, labels, place)
    for kind, (tone, _, said) in KINDS.items():
        edge = front([c for c in shown if c.kind == kind])
        if edge:
            sign = "▲" if kind == "add" else "▼"
            end = edge[-1]
            box = labels.place(*place(end), text_width(f"{sign} {said}", 13), 16, 10)
            names.append(put(box[0], box[3] - 4, f"{sign} {said}", f"strong {tone}-text"))
    count = {k: sum(c.kind == k for c in shown) for k in KINDS}
    desc = "; ".join(_tip(c) for c in shown if c.chosen) or "none was chosen"
    title = f"Effect against damage of {count['add']} edits that add and {count['remove']} that remove"
    return svg(width, height, title, desc, [*parts, *marks, *names], uid)


def _panel(values: Values, band: Bands, xs: Scale, ys: Scale, tone: str, fixed: list[float]) -> list[str]:
    parts = []
    for value, words in zip(fixed, tick_words(fixed), strict=True):
        parts.append(line(xs.start - 6, ys(value), xs.end + 6, ys(value), "grid"))
        parts.append(put(xs.start - 12, ys(value) + 4, words, "tick", "end"))
    if band:
        edge = [(xs(n), ys(high)) for n, _, high in band] + [(xs(n), ys(low)) for n, low, _ in reversed(band)]
        parts.append(path(edge, f"{tone}-band", closed=True))
    parts.append(path([(xs(n), ys(v)) for n, v in values], f"{tone}-line"))
    parts.extend(mark("dot", xs(n), ys(v), 2.4, f"{tone}-fill", f"layer {n}: {number(v, 3)}") for n, v in values)
    return parts


def _layer_panels(quality: list[LayerQuality], xs: Scale, top: float, heights: tuple[float, float, float]) -> list[str]:
    auroc = [(q.layer, q.auroc) for q in quality if math.isfinite(q.auroc)]
    band = [(q.layer, q.auroc_low, q.auroc_high) for q in quality if math.isfinite(q.auroc_low + q.auroc_high)]
    halves = [(q.layer, q.split_half) for q in quality if math.isfinite(q.split_half)]
    norms = [(q.layer, q.relative_norm) for q in quality if math.isfinite(q.relative_norm)]
    parts: list[str] = []
    lows = [low for _, low, _ in band] + [v for _, v in auroc]
    floor = 0.5 if min(lows, default=1) >= 0.5 else max(0.0, math.floor(min(lows) * 10) / 10)
    least = min(0.0, min((v for _, v in halves), default=0.0))
    most = max((v for _, v in norms), default=1.0) or 1.0
    rows = [
        ("AUROC on held-out prompts, with its 95% band", auroc, band, floor, 1.0, "ink"),
        ("Split-half cosine of the direction", halves, [], max(-1.0, least), 1.0, "cool"),
        ("Length relative to the residual stream", norms, [], 0.0, most * 1.08, "warm"),
    ]
    for (name, values, limits, low, high, tone), tall in zip(rows, heights, strict=True):
        ys = Scale(low, high, top + 22 + tall, top + 22)
        # chance has to be among the ticks of AUROC
        fixed = [t for t in (0.0, 0.25, 0.5, 0.75, 1.0) if t >= low] if tone == "ink" else ticks(low, high, 2)
        parts.append(put(xs.start - 40, top + 10, fit(name, 13, xs.end - xs.start + 50), "strong"))
        parts.extend(_panel(values, limits, xs, ys, tone, fixed))
        if tone == "ink" and low <= 0.5:
            parts.append(put(xs.end + 6, ys(0.5) - 4, "chance", "tick", "end"))
        top += tall + 50
    return parts


def _chosen_marks(chosen: list[Candidate], xs: Scale, top: float, foot: float) -> list[str]:
    """A vertical line per chosen source layer, named at its top; a bar per chosen span of layers below the axis."""
    parts, last, row = [], -1e9, 0
    for c in sorted(chosen, key=lambda c: c.source):
        tone, _, _ = KINDS[c.kind]
        x, words = xs(c.source), f"{'▲' if c.kind == 'add' else '▼'} layer {c.source} to {c.kind}"
        wide = text_width(words, 12)
        left = min(max(x - wide / 2, xs.start - 40), xs.end + 8 - wide)
        row = row + 1 if left < last + 8 else 0
        last = left + wide
        parts.append(line(x, top + 20 + 15 * row, x, foot, f"{tone}-rule"))
        parts.append(put(left, top + 12 + 15 * row, words, f"small-strong {tone}-text"))
    return parts


def _edited_bars(chosen: list[Candidate], xs: Scale, top: float, step: float) -> list[str]:
    parts = []
    for i, c in enumerate(chosen):
        tone = KINDS[c.kind][0]
        y = top + 34 * i
        for a, b in runs(c.layers):
            parts.append(rect(xs(a) - step * 0.4, y, xs(b) - xs(a) + step * 0.8, 8, f"{tone}-fill", 2))
        words = f"{'▲' if c.kind == 'add' else '▼'} layers edited to {c.kind}: {spans(c.layers)}"
        parts.append(put(xs.start - 40, y - 6, fit(words, 12, xs.end - xs.start + 40), f"small-strong {tone}-text"))
    return parts


def layer_curve(meta: DirectionMeta, width: int, uid: str, extra: str = "") -> str:
    """Three small panels over one layer axis, the chosen layers marked through all; ``""`` without any quality figures."""
    quality = sorted(meta.quality, key=lambda q: q.layer)
    if not quality:
        return ""
    chosen = [c for c in (meta.best("add"), meta.best("remove")) if c is not None and c.layers]
    heights = (128.0, 72.0, 72.0)
    first, last = quality[0].layer, quality[-1].layer
    xs = Scale(first, last, 44, width - 12)
    step = (xs.end - xs.start) / max(1, last - first)
    top = 38.0 if chosen else 6.0
    foot = top + sum(heights) + 50 * 2 + 22
    parts = _chosen_marks(chosen, xs, 0, foot + 4)
    parts += _layer_panels(quality, xs, top, heights)
    wanted = [round(v) for v in ticks(first, last, 10 if width > 560 else 6) if float(v).is_integer()] or [first]
    parts.append(line(xs.start - 6, foot, xs.end + 6, foot, "axis"))
    for value in wanted:
        parts.append(line(xs(value), foot, xs(value), foot + 5, "axis"))
        parts.append(put(xs(value), foot + 20, str(value), "tick", "middle"))
    parts.append(put(xs.end + 6, foot + 40, "layer →", "name", "end"))
    parts += _edited_bars(chosen, xs, foot + 66, step)
    best = max(quality, key=lambda q: q.auroc if math.isfinite(q.auroc) else -1)
    desc = f"Best AUROC {number(best.auroc, 3)} at layer {best.layer}. "
    desc += " ".join(f"Chosen to {c.kind}: layer {c.source}, applied at layers {spans(c.layers)}." for c in chosen)
    height = foot + 48 + (34 * len(chosen) - 4 if chosen else 0)
    title = f"{meta.feature} in {meta.model.ref}, layer by layer"
    return svg(width, height, title, desc, parts, uid, extra)
