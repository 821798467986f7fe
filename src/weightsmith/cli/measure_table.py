"""The table of a measurement for a terminal: at most 100 columns, the same readings as on the HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .common import console, plain

if TYPE_CHECKING:
    from rich.console import Console

    from ..measured import MeasureRecord
    from ..report.scorers import Page
    from ..report.view import Comparison, FigurePanel

COLUMNS = 100
SPREADS = 12


def print_measurements(record: MeasureRecord) -> None:
    """Differences by group and condition (or the figures of a model alone), damage, spread, scorers' errors, notes."""
    from ..report import scorers, view
    from ..report.variant import variants

    screen, seen = console(), variants([record])
    known = scorers.pages(seen)
    _say(screen, f"[bold]{plain(record.title)}[/]\n{plain(record.sentence)}\n")
    compared = view.comparisons(seen, known)
    if compared:
        _differences(screen, compared)
    if record.figures:
        _figures(screen, view.figures(seen, known))
    if record.damage:
        _damage(screen, record)
    _sight(screen, compared, record)
    _spreads(screen, record)
    _errors(screen, known)
    for note in record.notes:
        _say(screen, f"[yellow]note[/] {plain(note)}")


def _say(screen: Console, text: str) -> None:
    screen.print(text, width=min(COLUMNS, screen.width))


def _table(*columns: tuple[str, int, str]) -> Any:
    """A table within :data:`COLUMNS`; each column is (heading, usual width, alignment), and the first gives way."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, (heading, width, justify) in enumerate(columns):
        # names fold where the line is short; figures are shown whole, whatever their width
        table.add_column(heading, max_width=width if i == 0 else None, min_width=min(width, 5), justify=justify,  # type: ignore[arg-type]
                         overflow="fold", no_wrap=i > 0)  # fmt: skip
    return table


def _show(screen: Console, table: Any) -> None:
    screen.print(table, width=min(COLUMNS, screen.width))
    screen.print()


def _place(table: Any, last: tuple[str, str], group: str, condition: str) -> tuple[str, str]:
    """Rows that say where the next figures belong, when that changes."""
    if group != last[0] and group:
        table.add_row(f"[bold]{plain(group)}[/]")
    if (group, condition) != last and condition:
        table.add_row(f"[dim]{plain(condition)}[/]")
    return group, condition


def _ranks(places: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Where each (group, condition) stands: groups and conditions as they first appear, but each in one piece."""
    groups = list(dict.fromkeys(group for group, _ in places))
    return {place: (groups.index(place[0]), i) for i, place in enumerate(dict.fromkeys(places))}


def _differences(screen: Console, compared: list[Comparison]) -> None:
    from ..report import text

    adjusted = any(g.p_holm for c in compared for g in c.changes)
    table = _table(("figure", 26, "left"), ("base", 8, "right"), ("edited", 8, "right"), ("difference (95%)", 26, "right"),
                   ("n", 5, "right"), ("Holm p" if adjusted else "p", 8, "right"), ("reading", 13, "left"))  # fmt: skip
    last = ("", "")
    order = _ranks([(c.group, c.condition) for c in compared])
    for c in sorted(compared, key=lambda c: order[c.group, c.condition]):
        last = _place(table, last, c.group, c.condition)
        for g in c.changes:
            unsure = g.verdict == text.CANNOT_TELL
            said = f"[dim]{g.sign} {g.verdict}[/]" if unsure else f"[bold]{g.sign} {g.verdict}[/]"
            change = f"{g.change.value} ({g.change.interval})"
            table.add_row(f"  {plain(c.name)}", g.base.value, g.edited.value, change, str(g.n), g.p_holm or g.p, said)
    _show(screen, table)
    if any(text.is_share(c.unit) for c in compared):
        _say(screen, "[dim]Differences of rates are in percentage points.[/]")


def _figures(screen: Console, panels: list[FigurePanel]) -> None:
    table = _table(("figure", 44, "left"), ("value", 10, "right"), ("95% interval", 20, "right"), ("n", 6, "right"),
                   ("answers", 8, "right"))  # fmt: skip
    last = ("", "")
    rows = [(panel, row) for panel in panels for row in panel.rows]
    order = _ranks([(panel.group, row.condition) for panel, row in rows])
    for panel, row in sorted(rows, key=lambda each: order[each[0].group, each[1].condition]):
        last = _place(table, last, panel.group, row.condition)
        for _, m, shown, _ in row.cells:
            table.add_row(f"  {plain(row.name)}", shown.value, shown.interval, str(m.n), str(m.answers or ""))
    _show(screen, table)


def _damage(screen: Console, record: MeasureRecord) -> None:
    from ..report.view import printed

    table = _table(("damage", 40, "left"), ("value", 10, "right"), ("95% interval", 20, "right"), ("n", 5, "right"),
                   ("unit", 16, "left"))  # fmt: skip
    for m in record.damage:
        shown = printed(m)
        table.add_row(f"  {plain(m.name)}", shown.value, shown.interval, str(m.n), plain(shown.unit))
    _show(screen, table)


def _sight(screen: Console, compared: list[Comparison], record: MeasureRecord) -> None:
    from ..report import view

    for s in view.sights(compared):
        name = f"{plain(s.group)}: with" if s.group else "with"
        _say(screen, f"[dim]{name} {s.n} prompts this run can see changes of at least {plain('; '.join(s.least))}[/]")
    families = ", ".join(f"{name} ({n})" for name, n in view.families([record]).items())
    if families:
        _say(screen, f"[dim]p adjusted by Holm within: {plain(families)}[/]")


def _spreads(screen: Console, record: MeasureRecord) -> None:
    from ..report.sections import NO_DICE

    if not record.spreads and record.suite == "quick":
        _say(screen, f"[dim]{NO_DICE}[/]")
    varied = [s for s in record.spreads if s.sd > 0]
    if not varied:
        return
    table = _table(("share of the variance", 32, "left"), ("model", 6, "left"), ("prompts", 16, "right"),
                   ("wordings", 16, "right"), ("dice", 16, "right"))  # fmt: skip
    last = ("", "")
    for s in varied[:SPREADS]:
        last = _place(table, last, s.group, s.condition)
        shares = [f"{x.value:.0%} ({x.low:.0%} to {x.high:.0%})" for x in (s.prompt, s.wording, s.dice)]
        table.add_row(f"  {plain(s.name)}", s.model, *shares)
    screen.print()
    _show(screen, table)
    if len(varied) > SPREADS:
        _say(screen, f"[dim]{len(varied) - SPREADS} more in the report[/]")


def _errors(screen: Console, known: list[Page]) -> None:
    for page in known:
        _say(screen, f"scorer [bold]{plain(page.note.name)}[/]: {plain(page.short)}")
