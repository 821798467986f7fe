"""The page of a search as one HTML file, with the layers of protection of :mod:`.html`: no script, nothing to load.

It is drawn from a :class:`~weightsmith.searched.SearchRecord` and the measurements of its confirmed points alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..measured import MeasureRecord
from ..searched import SearchRecord
from ..storage import write_whole
from . import answers, search_charts, search_view, text
from .html import pair, styles, template
from .search_charts import Bar, bars
from .search_front import front_chart
from .view import NARROW

HALF = 500


def _answers(record: SearchRecord, confirmed: Mapping[str, MeasureRecord]) -> dict[str, Any]:
    read = search_view.read_points(record, confirmed)
    seen = [v for _, v in read]
    return {
        "read": read,
        "variants": seen,
        "several": True,
        "conditions": answers.exchanges(seen) if seen else [],
        "tallies": [(v, answers.tally(v)) for v in seen],
    }


def _bars(rows: Sequence[Bar], title: str, uid: str, whole: float | None = None) -> tuple[Markup, Markup]:
    """Bars for half of a desktop's page and for a phone."""
    wide, narrow = (Markup(bars(rows, width, title, f"{uid}-{width}", whole)) for width in (HALF, NARROW))
    return wide, narrow


def _charts(record: SearchRecord) -> dict[str, Any]:
    shown = [p for _, p in search_view.profiles(record)]
    spent = record.stretches
    total = search_view.in_all(spent)
    tokens = search_charts.token_bars([s for s in spent if s.passed or s.generated])
    gained = search_view.gains(record.gains)
    gain_bars = [Bar(g.stage, g.hypervolume, [(max(0.0, g.share), "part-a")]) for g in gained]
    return {
        "front_chart": pair(partial(front_chart, record), "front"),
        "strengths": pair(partial(search_charts.strengths_chart, shown), "strengths"),
        "profiles": search_view.profiles(record),
        "several": any(role.endswith(")") for p in shown for role in p.strengths),
        "training": pair(partial(search_charts.training_chart, record.ticks, record.damage_unit), "training"),
        "runs": search_charts.runs(record.ticks),
        "said": [t for t in record.ticks if t.note],
        "seconds_bars": _bars(search_charts.seconds_bars(spent), "Seconds by stage", "seconds"),
        "token_bars": _bars(tokens, "Tokens by stage", "tokens"),
        "gain_bars": _bars(gain_bars, "Hypervolume after each stage", "gains", whole=1.0),
        "total": total,
        "gains": gained,
        "savings": search_view.savings(record.factors),
    }


def _context(record: SearchRecord, confirmed: Mapping[str, MeasureRecord]) -> dict[str, Any]:
    chosen = record.taken
    front = [search_view.row(p) for p in record.front]
    return {
        **styles("report.css", "sections.css", "searched.css"),
        "title": search_view.title(record),
        "record": record,
        "sentence": search_view.sentence(record, confirmed),
        "taken": chosen,
        "why": search_view.why(record),
        "label": search_view.label(record),
        "missed": search_view.missed(record),
        "tiles": search_view.tiles(record, chosen) if chosen else [],
        "command": search_view.command(record, chosen) if chosen else "",
        "front": front,
        "rest": [search_view.row(p) for p in sorted(record.points, key=lambda p: p.damage) if not p.front],
        "zero_damage": any(p.damage <= 0 for p in record.points),
        "any_chance": any(r.chance for r in front),
        "any_looping": any(p.looping for p in record.points),
        "any_protected": any(r.protected for r in front),
        "cannot_tell": text.CANNOT_TELL,
        **_answers(record, confirmed),
        **_charts(record),
    }


def render_search(record: SearchRecord, confirmed: Mapping[str, MeasureRecord] = {}) -> str:
    """One self-contained HTML page of a search; ``confirmed`` has the measurements of its points by their names.

    The page loads nothing and runs nothing, so it may be mailed or archived as is. Measurements of points that the record
    does not know are left out.
    """
    return template("searched.html.j2").render(_context(record, confirmed))


def save_search(record: SearchRecord, confirmed: Mapping[str, MeasureRecord], path: Path, *, replace: bool = False) -> None:
    """Write the page of a search, whole or not at all.

    Raises:
        OutputExists: ``path`` is taken and ``replace`` is false.
    """
    write_whole(path, render_search(record, confirmed).encode(), replace=replace)
