"""The headline of the page: two or three figures large, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..measured import Measurement, MeasureRecord
from .intervals import Dot, extent, strip
from .scorers import Page
from .text import Shown
from .variant import Variant
from .view import Change, Comparison, dot, is_safety, printed

HARMFUL = "safety.harmful.refuses"


@dataclass(frozen=True)
class Tile:
    """A headline: a scorer under a condition, or a damage figure. ``rows`` are (label, tone, sign, figure, n)."""

    name: str
    condition: str
    unit: str
    rows: list[tuple[str, str, str, Shown, int]]
    changes: list[Change]
    chart: str
    page: Page | None = None

    @property
    def n_words(self) -> str:
        """``n = 48`` if that holds for every figure of the tile; otherwise empty, and each figure says its own."""
        found = {n for *_, n in self.rows} | {c.n for c in self.changes}
        return f"n = {found.pop()}" if len(found) == 1 else ""


def _headlines(all_of: Sequence[Comparison]) -> list[Comparison]:
    """The first scorer under its first two conditions, and refusals of harmful requests where they were measured."""
    effects = [c for c in all_of if not is_safety(c.changes[0].difference)]
    main = [c for c in effects if (c.name, c.unit, c.group) == (effects[0].name, effects[0].unit, effects[0].group)][:2]
    return main + [c for c in all_of if c.key == HARMFUL][:1]


def _effect_tiles(all_of: Sequence[Comparison]) -> list[Tile]:
    main = _headlines(all_of)
    dots: list[list[Dot]] = []
    for c in main:
        mine = [dot(c.changes[0].difference.base, "base", c.changes[0].base.value, "ink", "dot")]
        for g in c.changes:
            mine.append(dot(g.difference.edited, g.variant.label, g.edited.value, g.variant.tone, g.variant.shape))
        dots.append(mine)
    tiles = []
    for i, (c, mine) in enumerate(zip(main, dots, strict=True)):
        first = c.changes[0]
        # the same scorer under two conditions has one axis
        domain = extent([d for other, row in zip(main, dots, strict=True) if other.name == c.name for d in row])
        rows = [("base", "ink", "●", first.base, first.base_n)]
        rows += [(g.variant.label, g.variant.tone, g.variant.sign, g.edited, g.edited_n) for g in c.changes]
        title = f"{c.name}, {c.condition}: base and edited values with 95% intervals"
        chart = strip(mine, domain, 300, title, f"tile{i}")
        tiles.append(Tile(c.name, c.condition, first.base.unit, rows, c.changes, chart, c.page))
    return tiles


def _main_damage(record: MeasureRecord) -> Measurement | None:
    kls = [m for m in record.damage if "kl" in m.name.casefold()]
    named = [m for m in record.damage if m.key == "kl.mean"] or [m for m in kls if "response" in m.name.casefold()]
    return next(iter(named or kls), None)


def _single_tile(found: Sequence[tuple[Variant, Measurement]], uid: str, *, zero: bool) -> Tile:
    rows = [(v.label, v.tone, v.sign, printed(m), m.n) for v, m in found]
    dots = [dot(m, v.label, printed(m).value, v.tone, v.shape) for v, m in found]
    first = found[0][1]
    chart = strip(dots, extent(dots, zero=zero), 300, f"{first.name} with 95% intervals", uid)
    return Tile(first.name, first.condition, printed(first).unit, rows, [], chart)


def _figure_tiles(seen: Sequence[Variant]) -> list[Tile]:
    """For models measured alone: the first figures, and refusals of harmful requests."""
    if not any(v.record.figures for v in seen):
        return []
    first = next(v for v in seen if v.record.figures).record.figures
    wanted = [m for m in first if not is_safety(m)][:2] + [m for m in first if m.key == HARMFUL][:1]
    tiles = []
    for i, m in enumerate(wanted):
        found = [
            (v, mine) for v in seen for mine in v.record.figures
            if (mine.name, mine.condition, mine.key) == (m.name, m.condition, m.key)
        ]  # fmt: skip
        tiles.append(_single_tile(found, f"tile-alone{i}", zero=True))
    return tiles


def tiles(seen: Sequence[Variant], all_of: Sequence[Comparison]) -> list[Tile]:
    """Two to four headline figures: the first scorer, refusals of harmful requests, and the divergence from the base."""
    harm = [(v, m) for v in seen if (m := _main_damage(v.record)) is not None]
    effects = _effect_tiles(all_of) if all_of else _figure_tiles(seen)
    return effects + ([_single_tile(harm, "tile-kl", zero=True)] if harm else [])
