"""From records to what the page shows: labels, printed figures, and charts. No markup but the charts' own is made here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..records import Answer, Difference, DirectionMeta, Measurement, MeasureRecord
from . import text
from .intervals import Dot, Line, extent, forest, strip
from .text import Piece, Shown, show

# Answers of each condition that stand open; the others wait in a fold, so that a long record is still a short page.
OPEN_ANSWERS = 4
WIDE, NARROW = 760, 342


@dataclass(frozen=True)
class Variant:
    """One edited model of the page: its short name, and the tone and mark that it has everywhere."""

    label: str
    tone: str
    shape: str
    record: MeasureRecord

    @property
    def sign(self) -> str:
        """The mark as a character, for running text."""
        return {"up": "▲", "down": "▼", "square": "■", "diamond": "◆"}[self.shape]


def _kind(record: MeasureRecord) -> str:
    steps = record.derivation.edit.steps if record.derivation else []
    ups = {(s.kind == "add" and s.amount > 0) or (s.kind == "amplify" and s.amount > 1) for s in steps}
    if ups == {True}:
        return "enhanced"
    downs = {(s.kind == "remove" and s.amount > 0) or (s.kind in {"add", "amplify"} and s.amount < 0) for s in steps}
    return "removed" if downs == {True} else "edited"


def variants(records: Sequence[MeasureRecord]) -> list[Variant]:
    """Name the edited models so that no two are alike: by what was done, else by their folder, else by number."""
    kinds = [_kind(r) for r in records]
    folders = [r.edited.ref.rstrip("/").rpartition("/")[2] or "edited" for r in records]
    labels = kinds
    if len(set(labels)) < len(labels) or (len(records) > 1 and "edited" in labels):
        labels = folders
    if len(set(labels)) < len(labels):
        labels = [f"{label} {i}" for i, label in enumerate(labels, 1)]
    looks = {"enhanced": ("warm", "up"), "removed": ("cool", "down"), "edited": ("warm", "diamond")}
    spare = [("warm", "up"), ("cool", "down"), ("ink", "square"), ("ink", "diamond")]
    chosen: list[tuple[str, str]] = []
    for i, kind in enumerate(kinds):
        look = looks[kind]
        if look in chosen:
            look = next((s for s in spare if s not in chosen), spare[i % len(spare)])
        chosen.append(look)
    return [Variant(a, tone, shape, r) for a, (tone, shape), r in zip(labels, chosen, records, strict=True)]


def printed(m: Measurement, *, signed: bool = False, places: int | None = None) -> Shown:
    """A measurement in print."""
    return show(m.value, m.low, m.high, m.unit, signed=signed, bounded=m.interval != "none", places=places)


def _style(found: Sequence[Difference]) -> tuple[bool, int | None]:
    """Whether a scorer's values need signs, and decimals that suit all of its intervals, so that its figures line up."""
    sides = [m for d in found for m in (d.base, d.edited)]
    share = text.is_share(found[0].unit)
    bounds = [(m.low, m.high) for m in sides] + [(d.low, d.high) for d in found]
    widths = [high - low for low, high in bounds if math.isfinite(high - low) and high > low]
    signed = not share and any(min(m.value, m.low) < 0 for m in sides)
    if not widths:
        return signed, None
    typical = math.exp(sum(math.log(w) for w in widths) / len(widths)) * (100 if share else 1)
    return signed, text.decimals_for(0.0, 0.0, typical)


@dataclass(frozen=True)
class Change:
    """A paired difference in print, for one variant."""

    variant: Variant
    base: Shown
    edited: Shown
    change: Shown
    n: int
    p: str
    test: str
    verdict: str
    difference: Difference

    @property
    def base_n(self) -> int:
        """Prompts behind the base's own figure."""
        return self.difference.base.n

    @property
    def edited_n(self) -> int:
        """Prompts behind the edited model's own figure."""
        return self.difference.edited.n


@dataclass(frozen=True)
class Comparison:
    """One scorer under one condition, with a change for each variant that measured it."""

    name: str
    condition: str
    unit: str
    changes: list[Change]


def _change(v: Variant, d: Difference, style: tuple[bool, int | None]) -> Change:
    signed, places = style
    return Change(
        variant=v, base=printed(d.base, signed=signed, places=places), edited=printed(d.edited, signed=signed, places=places),
        change=show(d.value, d.low, d.high, d.unit, change=True, places=places), n=d.n, p=text.probability(d.p), test=d.test,
        verdict=text.verdict(d.low, d.high), difference=d,
    )  # fmt: skip


def comparisons(seen: Sequence[Variant]) -> list[Comparison]:
    """All differences, the same scorer and condition of several variants together, in the order of the records."""
    scorers: dict[tuple[str, str], list[Difference]] = {}
    for v in seen:
        for d in v.record.differences:
            scorers.setdefault((d.name, d.unit), []).append(d)
    styles = {key: _style(mine) for key, mine in scorers.items()}
    found: dict[tuple[str, str, str], list[Change]] = {}
    for v in seen:
        for d in v.record.differences:
            found.setdefault((d.name, d.condition, d.unit), []).append(_change(v, d, styles[d.name, d.unit]))
    return [Comparison(*key, changes) for key, changes in found.items()]


def _dot(m: Measurement, label: str, words: str, tone: str, shape: str) -> Dot:
    scale = 100 if text.is_share(m.unit) else 1
    return Dot(m.value * scale, m.low * scale, m.high * scale, tone, shape, label, words)


@dataclass(frozen=True)
class Tile:
    """A headline: a scorer under a condition, or a damage figure. ``rows`` are (label, tone, sign, figure, n)."""

    name: str
    condition: str
    unit: str
    rows: list[tuple[str, str, str, Shown, int]]
    changes: list[Change]
    chart: str

    @property
    def n_words(self) -> str:
        """``n = 48`` if that holds for every figure of the tile; otherwise empty, and each figure says its own."""
        found = {n for *_, n in self.rows} | {c.n for c in self.changes}
        return f"n = {found.pop()}" if len(found) == 1 else ""


def _effect_tiles(all_of: Sequence[Comparison]) -> list[Tile]:
    main = [c for c in all_of if (c.name, c.unit) == (all_of[0].name, all_of[0].unit)][:2] if all_of else []
    dots: list[list[Dot]] = []
    for c in main:
        mine = [_dot(c.changes[0].difference.base, "base", c.changes[0].base.value, "ink", "dot")]
        for g in c.changes:
            mine.append(_dot(g.difference.edited, g.variant.label, g.edited.value, g.variant.tone, g.variant.shape))
        dots.append(mine)
    domain = extent([d for row in dots for d in row])
    tiles = []
    for i, (c, mine) in enumerate(zip(main, dots, strict=True)):
        first = c.changes[0]
        rows = [("base", "ink", "●", first.base, first.base_n)]
        rows += [(g.variant.label, g.variant.tone, g.variant.sign, g.edited, g.edited_n) for g in c.changes]
        title = f"{c.name}, {c.condition}: base and edited values with 95% intervals"
        chart = strip(mine, domain, 300, title, f"tile{i}")
        tiles.append(Tile(c.name, c.condition, first.base.unit, rows, c.changes, chart))
    return tiles


def _main_damage(record: MeasureRecord) -> Measurement | None:
    kls = [m for m in record.damage if "kl" in m.name.casefold()]
    return next((m for m in kls if "response" in m.name.casefold()), kls[0] if kls else None)


def _damage_tile(seen: Sequence[Variant]) -> list[Tile]:
    found = [(v, m) for v in seen if (m := _main_damage(v.record)) is not None]
    if not found:
        return []
    rows = [(v.label, v.tone, v.sign, printed(m), m.n) for v, m in found]
    dots = [_dot(m, v.label, printed(m).value, v.tone, v.shape) for v, m in found]
    low, high = extent(dots, zero=True)
    first = found[0][1]
    chart = strip(dots, (low, high), 300, f"{first.name} with 95% intervals", "tile-kl")
    return [Tile(first.name, first.condition, first.unit, rows, [], chart)]


def tiles(seen: Sequence[Variant], all_of: Sequence[Comparison]) -> list[Tile]:
    """Two or three headline figures: the first scorer under its conditions, and the divergence from the base."""
    return _effect_tiles(all_of) + _damage_tile(seen)


@dataclass(frozen=True)
class Reply:
    """What one variant answered. ``words`` says in short how it differs from the base's answer."""

    variant: Variant
    pieces: list[Piece]
    degenerate: bool
    words: str


@dataclass(frozen=True)
class Exchange:
    """One prompt under one condition with the base's answer and every variant's."""

    prompt: str
    condition: str
    base: list[Piece]
    degenerate: bool
    replies: list[Reply | None]


def _exchange(answers: list[Answer | None], seen: Sequence[Variant]) -> Exchange:
    first = next(a for a in answers if a is not None)
    diffs = [text.word_diff(first.base, a.edited) if a else None for a in answers]
    replies: list[Reply | None] = []
    for v, a, d in zip(seen, answers, diffs, strict=True):
        words = "" if d is None else "unchanged" if d.same else "rewritten" if d.rewritten else ""
        replies.append(Reply(v, d.pieces, a.degenerate_edited, words) if a and d else None)
    # a rewritten answer keeps too little for a statement about single words of the base
    gone = [d.gone for d in diffs if d is not None]
    plain = any(d is not None and d.rewritten for d in diffs)
    base = text.mark(first.base, [] if plain else gone)
    return Exchange(first.prompt, first.condition, base, first.degenerate_base, replies)


def exchanges(seen: Sequence[Variant]) -> list[tuple[str, list[Exchange]]]:
    """Answers side by side, grouped by condition.

    Variants share a row only where prompt, condition and the base's answer agree; a base that answered otherwise, or a
    prompt asked twice, gets a row of its own rather than a false neighbour.
    """
    rows: dict[tuple[str, str, str, int], list[Answer | None]] = {}
    for column, v in enumerate(seen):
        times: Counter[tuple[str, str, str]] = Counter()
        for a in v.record.answers:
            key = (a.prompt, a.condition, a.base)
            row = rows.setdefault((*key, times[key]), [None] * len(seen))
            row[column] = a
            times[key] += 1
    grouped: dict[str, list[Exchange]] = {}
    for (_, condition, _, _), answers in rows.items():
        grouped.setdefault(condition, []).append(_exchange(answers, seen))
    return list(grouped.items())


def tally(v: Variant) -> str:
    """How many answers changed, and how many are degenerate, in one sentence."""
    answers = v.record.answers
    changed = sum(a.base != a.edited for a in answers)
    before, after = sum(a.degenerate_base for a in answers), sum(a.degenerate_edited for a in answers)
    return f"{changed} of {len(answers)} answers changed; {after} degenerate after the edit, {before} before."


def forests(all_of: Sequence[Comparison], several: bool) -> list[str]:
    """The plot of paired differences, wide and narrow."""
    rows = []
    for c in all_of:
        scale = 100 if text.is_share(c.unit) else 1
        one_n = len({g.n for g in c.changes}) == 1
        dots = []
        for g in c.changes:
            d, v = g.difference, g.variant
            words = f"{g.change.value} ({g.change.interval})" + ("" if one_n else f", n = {g.n}")
            words += f", {text.CANNOT_TELL}" if g.verdict == text.CANNOT_TELL else ""
            label = f"{v.sign} {v.label}" if several else ""
            dots.append(Dot(d.value * scale, d.low * scale, d.high * scale, v.tone, v.shape, label, words,
                            g.verdict != text.CANNOT_TELL))  # fmt: skip
        where = [c.condition] * bool(c.condition) + [f"n = {c.changes[0].n}"] * one_n
        rows.append(Line(c.name, " · ".join(where), c.changes[0].change.unit, dots))
    return [forest(rows, 1036, "forest-wide"), forest(rows, NARROW, "forest-narrow")]


@dataclass(frozen=True)
class DamageRow:
    """A damage figure of every variant; ``None`` where a variant has none."""

    name: str
    condition: str
    unit: str
    figures: list[tuple[Shown, Measurement] | None]


def damage(seen: Sequence[Variant]) -> list[DamageRow]:
    """Damage figures, one row for each name and condition."""
    rows: dict[tuple[str, str, str, int], list[tuple[Shown, Measurement] | None]] = {}
    for column, v in enumerate(seen):
        times: Counter[tuple[str, str, str]] = Counter()
        for m in v.record.damage:
            key = (m.name, m.condition, m.unit)
            row = rows.setdefault((*key, times[key]), [None] * len(seen))
            row[column] = (printed(m), m)
            times[key] += 1
    return [DamageRow(name, condition, unit, row) for (name, condition, unit, _), row in rows.items()]


def directions(seen: Sequence[Variant]) -> list[DirectionMeta]:
    """The directions behind the page, each once; a record without one may still have it in its derivation."""
    found: list[DirectionMeta] = []
    for v in seen:
        own = v.record.direction
        kept = [own] if own else list(v.record.derivation.directions.values()) if v.record.derivation else []
        found.extend(d for d in kept if d not in found)
    return found


def merged(parts: Iterable[dict[str, str]]) -> dict[str, str]:
    """Versions of several records; where they differ all are told."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for name, version in part.items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    return {name: " / ".join(values) for name, values in found.items()}
