"""The scorers behind the figures: what each reads, its own error as figures, and where on the page that stands."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..measured import ErrorFigure, MeasureRecord, ScorerNote
from . import intervals, text
from .intervals import Dot
from .variant import Variant

PLOT = 240
# how a row of a confusion table is named: "refuses → complies" is the share of true refusals that were read as such
_READ_AS = re.compile(r"^(?:confusion:?\s*)?(?P<true>.+?)\s*(?:→|->|\bread as\b)\s*(?P<read>.+)$", re.IGNORECASE)


@dataclass(frozen=True)
class ErrorRow:
    """A figure of a scorer's error in print, with its plot."""

    name: str
    value: str
    interval: str
    n: int
    chart: Markup


@dataclass(frozen=True)
class Confusion:
    """True labels by rows, what was read by columns. A row is (label, its n, cells), a cell (value, interval) or ``None``."""

    columns: list[str]
    rows: list[tuple[str, str, list[tuple[str, str] | None]]]


@dataclass(frozen=True)
class ErrorData:
    """What is known of a scorer on one labelled data set."""

    data: str
    rows: list[ErrorRow]
    confusion: Confusion | None
    axis: Markup


@dataclass(frozen=True)
class Page:
    """One scorer's part of the page; ``short`` is its error in a few words, for beside its figures."""

    note: ScorerNote
    anchor: str
    owners: list[Variant]
    data: list[ErrorData]
    short: str


def _words(f: ErrorFigure) -> tuple[str, str]:
    places = 2 if max(abs(f.value), abs(f.low), abs(f.high)) <= 1 or not math.isfinite(f.low + f.high) else None
    shown = text.show(f.value, f.low, f.high, "", bounded=f.high > f.low, places=places)
    return shown.value, shown.interval


def short_error(note: ScorerNote) -> str:
    """The first calibrated figure in words, else the first clause of the note's own line."""
    plain = [f for f in note.figures if not _READ_AS.match(f.figure)]
    if not plain:
        return text.clip(re.split(r"[;:.] ", note.error)[0].rstrip("."), 72) or "error not on record"
    value, interval = _words(plain[0])
    bounds = f" ({interval})" if plain[0].high > plain[0].low else ""
    return f"{text.clip(plain[0].figure, 40)} {value}{bounds}"


def _confusion(figures: Sequence[ErrorFigure]) -> Confusion | None:
    cells: dict[tuple[str, str], ErrorFigure] = {}
    for f in figures:
        if found := _READ_AS.match(f.figure):
            cells[found["true"], found["read"]] = f
    if not cells:
        return None
    # one order for both sides, so that what was read rightly stands on the diagonal
    names = list(dict.fromkeys([a for a, _ in cells] + [b for _, b in cells]))
    rows = [a for a in names if any(t == a for t, _ in cells)]
    columns = [b for b in names if any(r == b for _, r in cells)]

    made = []
    for a in rows:
        mine = [cells.get((a, b)) for b in columns]
        ns = sorted({f.n for f in mine if f})
        said = f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]} to {ns[-1]}"
        made.append((a, said, [_words(f) if f else None for f in mine]))
    return Confusion(columns, made)


def _domain(figures: Sequence[ErrorFigure]) -> tuple[float, float]:
    ends = [v for f in figures for v in (f.value, f.low, f.high) if math.isfinite(v)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= -1 and high <= 1:
        return -1.0, 1.0
    return (min(0.0, low), high * 1.06) if high > 0 else (low * 1.06, 0.0)


def _data(note: ScorerNote, uid: str) -> list[ErrorData]:
    sets: dict[str, list[ErrorFigure]] = {}
    for f in note.figures:
        sets.setdefault(f.data, []).append(f)
    found = []
    for i, (data, figures) in enumerate(sets.items()):
        plain = [f for f in figures if not _READ_AS.match(f.figure)]
        domain = _domain(plain)
        rows = []
        for k, f in enumerate(plain):
            value, interval = _words(f)
            dot = Dot(f.value, f.low, f.high, "ink", "dot", "", f"{value} ({interval})")
            chart = intervals.row([dot], domain, PLOT, text.clip(f.figure, 60), f"{uid}-{i}-{k}")
            rows.append(ErrorRow(f.figure, value, interval, f.n, Markup(chart)))
        axis = Markup(intervals.axis(domain, PLOT, "", f"{uid}-{i}-axis", signed=domain[0] < 0))
        found.append(ErrorData(data, rows, _confusion(figures), axis))
    return found


def pages(seen: Sequence[Variant]) -> list[Page]:
    """Every scorer of the records once; a scorer that two records describe differently has two parts."""
    found: list[tuple[ScorerNote, list[Variant]]] = []
    for v in seen:
        for note in v.record.scorers:
            for other, owners in found:
                if other == note:
                    owners.append(v)
                    break
            else:
                found.append((note, [v]))
    return [
        Page(note, f"scorer-{i}", owners, _data(note, f"scorer{i}"), short_error(note))
        for i, (note, owners) in enumerate(found, 1)
    ]


def page_of(known: Sequence[Page], record: MeasureRecord, *names: str) -> Page | None:
    """The part of the first scorer among ``names`` that ``record`` describes."""
    for name in names:
        for page in known:
            if name and page.note.name == name and any(v.record is record for v in page.owners):
                return page
    return None
