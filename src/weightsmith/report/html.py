"""The report of a measurement as one HTML file: no script, no network, nothing to load.

Everything that a model or a prompt file said is untrusted. Three layers keep it text: every value that the template
prints passes :func:`~weightsmith.report.text.visible` first and Jinja2's escaping second, whatever the template's
author remembered; and the page's own policy allows no script, no connection and only the one style sheet it carries.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from ..errors import RecipeError
from ..measured import Difference, Measurement, MeasureRecord
from ..records import DirectionMeta, EditSpec
from . import answers, charts, intervals, scorers, sections, text, tiles, view
from .variant import Variant, grouped, variants
from .view import NARROW, WIDE


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def chart_styles() -> str:
    """The classes of the charts; their colours are custom properties, which the place that shows them defines."""
    return _asset("charts.css")


def _printable(value: Any) -> Any:
    """Every value on its way into the page; only our own drawings and style sheet come as markup."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else text.visible(value)


@cache
def template(name: str) -> Template:
    """A page's template, in an environment that lets nothing through as markup but our own drawings and style sheet."""
    env = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, finalize=_printable,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters.update(
        brief=text.brief,
        compact=text.compact,
        tabular=text.tabular,
        duration=text.duration,
        num=lambda value, places=3, signed=False: text.number(value, places, signed=signed),
        spans=text.spans,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
        steps=edit_text,
    )
    return env.get_template(name)


def styles(*names: str) -> dict[str, Any]:
    """Style sheets of a page as one, with the digest by which the page's policy names it."""
    # an injected style would not apply either
    css = "".join(map(_asset, names)) + chart_styles()
    return {"css": Markup(css), "css_digest": base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()}


def edit_text(edit: EditSpec) -> str:
    """An edit as the YAML file that would ask for it."""
    data = edit.model_dump(by_alias=True, exclude_none=True)
    kept = {k: v for k, v in data.items() if v not in ("", [])}
    return str(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100))


def pair(draw: Callable[[int, str], str], uid: str) -> tuple[Markup, Markup]:
    """A chart twice, drawn for a desktop and for a phone, since text in a scaled drawing can't be read on both."""
    return Markup(draw(WIDE, f"{uid}-wide")), Markup(draw(NARROW, f"{uid}-narrow"))


def _direction_charts(found: Sequence[DirectionMeta]) -> list[dict[str, Any]]:
    return [
        {
            "meta": meta,
            "pareto": pair(partial(charts.pareto, meta.candidates), f"pareto{i}"),
            "layers": pair(partial(charts.layer_curve, meta), f"layers{i}"),
        }
        for i, meta in enumerate(found)
    ]


def _title(records: Sequence[MeasureRecord], seen: Sequence[Variant]) -> str:
    if len({r.title for r in records}) == 1:
        return records[0].title
    features = " and ".join(dict.fromkeys(r.feature for r in records))
    return f"{features}, {' and '.join(v.label for v in seen)}"


def _place(m: Measurement | Difference) -> str:
    """The section in which a figure has its row; sampled answers are folded below the greedy ones."""
    if view.is_safety(m):
        return "safe_sampled" if view.is_sampled(m) else "safe"
    if m.group == view.DAMAGE:
        return "damage"
    return "turns" if view.is_turn(m) else "sampled" if view.is_sampled(m) else "main"


PLACES = ("main", "sampled", "safe", "safe_sampled", "damage", "turns")


def _charts(seen: Sequence[Variant]) -> dict[str, Any]:
    """Everything on the page that is drawn from figures; each figure has one row on it."""
    known = scorers.pages(seen)
    compared = view.comparisons(seen, known)
    groups = {at: view.groups([c for c in compared if _place(c.changes[0].difference) == at], at) for at in PLACES}
    alone = {at: view.figures(seen, known, lambda m, at=at: _place(m) == at, f"alone-{at}") for at in PLACES}  # type: ignore[misc]
    return {
        "tiles": [(t, Markup(t.chart)) for t in tiles.tiles(seen, compared)],
        "comparison_count": sum(len(c.changes) for c in compared),
        "groups": groups,
        "alone": alone,
        "safety": sections.safety(seen),
        "safety_known": any(groups[at] or alone[at] for at in ("safe", "safe_sampled")),
        "sights": view.sights(compared),
        "families": view.families([v.record for v in seen]),
        "trends": sections.trends(seen),
        "spreads": sections.spreads(seen),
        "constant": sections.constant(seen),
        "without_spread": sections.without_spread(seen),
        "kl": sections.kl_views(seen),
        "damage": view.damage(seen, known),
        "pages": known,
    }


def _context(records: Sequence[MeasureRecord], title: str | None) -> dict[str, Any]:
    seen = variants(records)
    seconds = [(v, v.record.seconds, pair(partial(intervals.time_bar, v.record.seconds), f"time{i}"))
               for i, v in enumerate(seen) if v.record.seconds]  # fmt: skip
    return {
        **styles("report.css", "sections.css"),
        "title": title or _title(records, seen),
        "variants": seen,
        "several": len(seen) > 1,
        "compared": any(r.base is not None for r in records),
        "records": records,
        "features": grouped(seen, lambda r: (r.feature, r.feature_description)),
        "conditions": answers.exchanges(seen),
        "worst": [(v, answers.worst(v)) for v in seen if v.record.worst],
        "tallies": [(v, answers.tally(v)) for v in seen],
        "directions": _direction_charts(view.directions(seen)),
        "options": grouped(seen, lambda r: ({"suite": r.suite} if r.suite else {}) | r.options),
        "ran": grouped(seen, lambda r: r.ran),
        "remarks": grouped(seen, lambda r: r.notes),
        "seconds": seconds,
        "versions": view.merged([r.versions for r in records]),
        "schema": records[0].schema_id,
        "cannot_tell": text.CANNOT_TELL,
        **_charts(seen),
    }


def render_report(record: MeasureRecord | list[MeasureRecord], *, title: str | None = None) -> str:
    """One self-contained HTML page of ``record``; of several, one page with the edited models side by side.

    ``title`` replaces the record's own. The page loads nothing and runs nothing, so it may be mailed or archived as is.

    Raises:
        RecipeError: the list is empty.
    """
    records = record if isinstance(record, list) else [record]
    if not records:
        raise RecipeError("a report needs at least one measurement", hint="run `weightsmith measure` first")
    return template("report.html.j2").render(_context(records, title))
