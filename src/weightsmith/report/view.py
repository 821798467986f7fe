"""From records to the tables of the page: printed figures, groups with one axis for each unit, and the headline."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..measured import Difference, Measurement, MeasureRecord
from ..records import DirectionMeta
from . import intervals, text
from .intervals import Dot
from .scorers import Page, page_of
from .text import Shown, show
from .variant import Variant

WIDE, NARROW, PLOT = 760, 342, 260
SAFETY, DAMAGE, SAMPLED = "safety", "damage", ".sampled"
TURN_KEY = re.compile(r"^(?P<stem>.+)\.turn(?P<turn>\d{1,3})$")
# the mark of each reading; the words stand beside it, so neither shape nor colour tells alone
READINGS = {"rises": ("up", "▲"), "falls": ("down", "▼"), text.CANNOT_TELL: ("dot", "○")}
TURN_WORDS = re.compile(r"[\s,·:;]*\bturn \d+\b[\s,·:;]*", re.IGNORECASE)
Style = tuple[bool, int | None]


def printed(m: Measurement, *, signed: bool = False, places: int | None = None) -> Shown:
    """A measurement in print."""
    return show(m.value, m.low, m.high, m.unit, signed=signed, bounded=m.interval != "none", places=places)


def reading(d: Difference) -> str:
    """``rises``, ``falls`` or ``cannot tell``; a record without adjusted p values is read by its interval."""
    return d.verdict if d.p_holm is not None else text.verdict(d.low, d.high)


def is_turn(m: Measurement | Difference) -> bool:
    """Whether a figure is one turn of several."""
    return TURN_KEY.match(m.key) is not None


def is_sampled(m: Measurement | Difference) -> bool:
    """Whether a figure was read from sampled answers, beside the greedy ones."""
    return m.key.endswith(SAMPLED)


def is_safety(m: Measurement | Difference) -> bool:
    """Whether a figure belongs to the safety section."""
    return m.group == SAFETY or m.key.startswith(SAFETY + ".")


def _style(found: Sequence[Difference | Measurement]) -> Style:
    """Whether a scorer's values need signs, and decimals that suit all of its intervals, so that its figures line up."""
    sides = [m for d in found for m in ((d.base, d.edited) if isinstance(d, Difference) else (d,))]
    share = text.is_share(found[0].unit)
    bounds = [(m.low, m.high) for m in sides] + [(d.low, d.high) for d in found if isinstance(d, Difference)]
    widths = [high - low for low, high in bounds if math.isfinite(high - low) and high > low]
    signed = not share and any(min(m.value, m.low) < 0 for m in sides)
    if not widths:
        return signed, None
    # the median: a figure that nothing moved has hardly any width, and must not give all the others its decimals
    typical = sorted(widths)[len(widths) // 2] * (100 if share else 1)
    # paired differences can be far narrower than both of their sides, and must not be rounded away beside them
    changes = sorted(d.high - d.low for d in found if isinstance(d, Difference) and math.isfinite(d.high - d.low))
    if not share and changes and (paired := changes[len(changes) // 2]) > 0:
        typical = min(typical, paired)
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
    p_holm: str
    mde: str
    test: str
    verdict: str
    difference: Difference

    @property
    def sign(self) -> str:
        """The mark of its verdict as a character."""
        return READINGS[self.verdict][1]

    @property
    def base_n(self) -> int:
        """Prompts behind the base's own figure."""
        return self.difference.base.n

    @property
    def edited_n(self) -> int:
        """Prompts behind the edited model's own figure."""
        return self.difference.edited.n

    @property
    def missing(self) -> int:
        """Answers without a value, both models together."""
        return self.difference.base.missing + self.difference.edited.missing


@dataclass(frozen=True)
class Comparison:
    """One scorer under one condition, with a change for each variant that measured it."""

    name: str
    condition: str
    unit: str
    group: str
    key: str
    changes: list[Change]
    page: Page | None


def _change(v: Variant, d: Difference, style: Style) -> Change:
    signed, places = style
    mde = "" if d.mde is None or not math.isfinite(d.mde) else show(d.mde, d.mde, d.mde, d.unit, places=places).value
    mde = mde if any(c in "123456789" for c in mde) else ""  # where nothing varied, nothing is known of what could be seen
    return Change(
        variant=v, base=printed(d.base, signed=signed, places=places), edited=printed(d.edited, signed=signed, places=places),
        change=show(d.value, d.low, d.high, d.unit, change=True, places=places), n=d.n, p=text.probability(d.p),
        p_holm="" if d.p_holm is None else text.probability(d.p_holm), mde=mde.rstrip("%"), test=d.test,
        verdict=reading(d), difference=d,
    )  # fmt: skip


def comparisons(seen: Sequence[Variant], pages: Sequence[Page] = ()) -> list[Comparison]:
    """All differences, the same figure of several variants together, in the order of the records."""
    scorers: dict[tuple[str, str], list[Difference]] = {}
    for v in seen:
        for d in v.record.differences:
            scorers.setdefault((d.name, d.unit), []).append(d)
    styles = {key: _style(mine) for key, mine in scorers.items()}
    found: dict[tuple[str, str, str, str, str], list[Change]] = {}
    for v in seen:
        for d in v.record.differences:
            place = (d.name, d.condition, d.unit, d.group, d.key)
            found.setdefault(place, []).append(_change(v, d, styles[d.name, d.unit]))
    made = []
    for place, changes in found.items():
        first = changes[0]
        page = page_of(pages, first.variant.record, first.difference.scorer, first.difference.name)
        made.append(Comparison(*place, changes, page))
    return made


def dot(m: Measurement, label: str, words: str, tone: str, shape: str) -> Dot:
    """A measurement to draw; shares in per cent."""
    scale = 100 if text.is_share(m.unit) else 1
    return Dot(m.value * scale, m.low * scale, m.high * scale, tone, shape, label, words)


def _change_dot(g: Change) -> Dot:
    d, scale = g.difference, 100 if text.is_share(g.difference.unit) else 1
    words = f"{g.change.value} ({g.change.interval}), {g.verdict}"
    return Dot(d.value * scale, d.low * scale, d.high * scale, g.variant.tone, READINGS[g.verdict][0], g.variant.label,
               words, g.verdict != text.CANNOT_TELL)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """The comparisons of one group and unit on one axis, by condition; a plot for each change of each row."""

    unit: str
    rows: list[tuple[Comparison, list[Markup]]]
    axis: Markup

    @property
    def headed(self) -> bool:
        """Whether conditions stand as headings, which is worth it where one has several rows."""
        return any(len(rows) > 1 for _, rows in self.conditions)

    @property
    def conditions(self) -> list[tuple[str, list[tuple[Comparison, list[Markup]]]]]:
        """The rows of each condition, in the order of the record."""
        found: dict[str, list[tuple[Comparison, list[Markup]]]] = {}
        for row in self.rows:
            found.setdefault(row[0].condition, []).append(row)
        return list(found.items())


@dataclass(frozen=True)
class Group:
    """What belongs together: one feature, safety, multiple choice, ..."""

    name: str
    panels: list[Panel]

    @property
    def title(self) -> str:
        """The group's name as a heading."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def told(self) -> str:
        """The readings counted, for where the rows are folded."""
        found = Counter(g.verdict for p in self.panels for c, _ in p.rows for g in c.changes)
        words = {"rises": "rise", "falls": "fall", text.CANNOT_TELL: text.CANNOT_TELL}
        parts = [f"{found[v]} {said if found[v] > 1 else v}" for v, said in words.items() if found[v]]
        return f"{found.total()} {'difference' if found.total() == 1 else 'differences'}: {', '.join(parts)}"

    @property
    def tests(self) -> dict[str, list[str]]:
        """Every test with the figures that it was used on."""
        found: dict[str, list[str]] = {}
        for c in (c for p in self.panels for c, _ in p.rows):
            for g in c.changes:
                names = found.setdefault(g.test, [])
                if c.name not in names:
                    names.append(c.name)
        return found


def groups(all_of: Sequence[Comparison], uid: str = "forest") -> list[Group]:
    """The comparisons by group and unit; zero stands at one place on every axis. ``uid`` keeps ids on one page apart."""
    sorted_: dict[str, dict[str, list[Comparison]]] = {}
    for c in all_of:
        sorted_.setdefault(c.group, {}).setdefault(c.changes[0].change.unit, []).append(c)
    ranges = {
        (name, unit): intervals.extent([_change_dot(g) for c in rows for g in c.changes], zero=True)
        for name, units in sorted_.items() for unit, rows in units.items()
    }  # fmt: skip
    domains = intervals.aligned(ranges)
    found = []
    for i, (name, units) in enumerate(sorted_.items()):
        panels = []
        for j, (unit, rows) in enumerate(units.items()):
            domain = domains[name, unit]
            drawn = [
                (c, [Markup(intervals.row([_change_dot(g)], domain, PLOT, c.name, f"{uid}{i}-{j}-{k}-{m}"))
                     for m, g in enumerate(c.changes)])
                for k, c in enumerate(rows)
            ]  # fmt: skip
            # what the rows have in common is said once, under the axis
            common = Counter(c.unit for c in rows).most_common(1)[0][0]
            of_what = common.partition(" ")[2] if common != unit and text.is_share(common) else ""
            axis = intervals.axis(domain, PLOT, f"{unit} {of_what}".strip(), f"{uid}{i}-{j}", signed=True)
            panels.append(Panel(common, drawn, Markup(axis)))
        found.append(Group(name, panels))
    return found


@dataclass(frozen=True)
class FigureRow:
    """A figure of a model that was measured alone, one cell for each variant that has it."""

    name: str
    condition: str
    unit: str
    cells: list[tuple[Variant, Measurement, Shown, Markup]]
    page: Page | None


@dataclass(frozen=True)
class FigurePanel:
    """Figures of one group and unit on one axis."""

    group: str
    rows: list[FigureRow]
    axis: Markup


def figures(
    seen: Sequence[Variant], pages: Sequence[Page] = (), keep: Callable[[Measurement], bool] = lambda m: True,
    uid: str = "alone",
) -> list[FigurePanel]:  # fmt: skip
    """The figures that stand alone and are to ``keep``, by group and unit; ``uid`` keeps ids on one page apart."""
    panels: dict[tuple[str, str], dict[tuple[str, str, str], list[tuple[Variant, Measurement]]]] = {}
    for v in seen:
        for m in filter(keep, v.record.figures):
            rows = panels.setdefault((m.group, m.unit), {})
            rows.setdefault((m.name, m.condition, m.key), []).append((v, m))
    found = []
    for i, ((group, unit), rows) in enumerate(panels.items()):
        every = [m for mine in rows.values() for _, m in mine]
        signed, places = _style(every)
        domain = (0.0, 100.0) if text.is_share(unit) else intervals.extent([dot(m, "", "", "ink", "dot") for m in every])
        made = []
        for k, ((name, condition, _), mine) in enumerate(rows.items()):
            cells = []
            for j, (v, m) in enumerate(mine):
                shown = printed(m, signed=signed, places=places)
                one = dot(m, v.label, f"{shown.value} ({shown.interval})", v.tone, v.shape)
                chart = intervals.row([one], domain, PLOT, name, f"{uid}{i}-{k}-{j}")
                cells.append((v, m, shown, Markup(chart)))
            made.append(FigureRow(name, condition, unit, cells, page_of(pages, mine[0][0].record, mine[0][1].scorer, name)))
        said = "% " + unit.partition(" ")[2] if text.is_share(unit) else unit
        axis = intervals.axis(domain, PLOT, said.strip(), f"{uid}{i}", signed=signed)
        found.append(FigurePanel(group, made, Markup(axis)))
    return found


@dataclass(frozen=True)
class Sight:
    """What a group of comparisons could have seen: prompts, and the least change found with 80% power, in words."""

    group: str
    n: str
    least: list[str]


def sights(all_of: Sequence[Comparison]) -> list[Sight]:
    """The minimum detectable effects of every group, one phrase for each unit."""
    by_group: dict[str, list[Comparison]] = {}
    for c in all_of:
        by_group.setdefault(c.group, []).append(c)
    found = []
    for group, rows in by_group.items():
        units: dict[str, list[tuple[Comparison, Change]]] = {}
        for c in rows:
            for g in c.changes:
                if g.mde:
                    units.setdefault(c.unit, []).append((c, g))
        least = []
        for unit, mine in units.items():
            names = list(dict.fromkeys(TURN_WORDS.sub(" ", c.name).strip() for c, _ in mine))
            ends = sorted((g.difference.mde or 0.0, g.mde) for _, g in mine)
            span = ends[0][1] if ends[0][1] == ends[-1][1] else f"{ends[0][1]} to {ends[-1][1]}"
            of = " points" if text.is_share(unit) else ""
            where = names[0] if len(names) == 1 else "rates" if text.is_share(unit) else ", ".join(names)
            where = where if len(names) <= 3 or text.is_share(unit) else unit or ", ".join([*names[:3], "…"])
            least.append(f"{span}{of} in {where}")
        if least:
            ns = sorted({g.n for mine in units.values() for _, g in mine})
            found.append(Sight(group, f"{ns[0]}" if len(ns) == 1 else f"{ns[0]} to {ns[-1]}", least))
    return found


def families(records: Sequence[MeasureRecord]) -> dict[str, int]:
    """Families of differences over which p values were adjusted, with the largest number of differences of a record."""
    found: dict[str, int] = {}
    for record in records:
        mine = Counter(d.family or d.group or "all differences" for d in record.differences if d.p_holm is not None)
        for name, count in mine.items():
            found[name] = max(count, found.get(name, 0))
    return found


@dataclass(frozen=True)
class DamageRow:
    """A damage figure of every variant; ``None`` where a variant has none."""

    name: str
    condition: str
    unit: str
    figures: list[tuple[Shown, Measurement] | None]
    page: Page | None


def damage(seen: Sequence[Variant], pages: Sequence[Page] = ()) -> list[DamageRow]:
    """Damage figures, one row for each name and condition."""
    rows: dict[tuple[str, str, str, int], list[tuple[Shown, Measurement] | None]] = {}
    for column, v in enumerate(seen):
        times: Counter[tuple[str, str, str]] = Counter()
        for m in v.record.damage:
            key = (m.name, m.condition, m.unit)
            row = rows.setdefault((*key, times[key]), [None] * len(seen))
            row[column] = (printed(m), m)
            times[key] += 1
    found = []
    for (name, condition, unit, _), row in rows.items():
        first = next((v.record, f[1]) for v, f in zip(seen, row, strict=True) if f is not None)
        found.append(DamageRow(name, condition, unit, row, page_of(pages, first[0], first[1].scorer, name)))
    return found


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
