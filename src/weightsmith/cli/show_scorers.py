"""``weightsmith show scorers``: what each scorer reads and how often it errs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .common import console, plain, print_json

if TYPE_CHECKING:
    from ..measured import ErrorFigure, ScorerNote

COLUMNS = 100
#: the columns of errors, each with the figures it shows
SHOWN = (("kappa, AUROC", ("kappa", "kappa, four classes", "AUROC")), ("sensitivity", ("sensitivity",)),
         ("specificity", ("specificity",)))  # fmt: skip
FOOT = (
    "value \\[95% interval]; n answers. Own answers were labelled twice, blind, by a language model with the rubric, not by "
    "people. All figures: --json; how they came about: docs/scorers.md"
)
#: left to --json and the page: single models, and what the rules were written with where others were held out
BY_MODEL, WRITTEN, HELD_OUT = "-Instruct", "it was written with", "held-out prompts"


def print_scorers(*, json: bool = False) -> None:
    """What every registered scorer reads, then the error figures with 95% intervals."""
    from ..jobs.scorers import list_scorers

    notes = list_scorers()
    if json:
        print_json([n.model_dump() for n in notes])
        return
    out = console()
    width = min(COLUMNS, out.width)
    table = _table("scorer", "reads", "its error")
    table.columns[1].ratio, table.columns[2].ratio = 5, 4
    for note in notes:
        table.add_row(f"[bold]{plain(note.name)}[/]", plain(note.reads), "as below" if note.figures else plain(note.error))
    out.print(table, width=width)
    out.print()
    errors = _table("scorer", "answers", "n", *(heading for heading, _ in SHOWN))
    errors.columns[1].ratio = 1
    for column in errors.columns[2:]:
        column.no_wrap = True
    errors.columns[2].justify = "right"
    for note in notes:
        for cells in rows(note):
            errors.add_row(*cells)
    out.print(errors, width=width)
    out.print(f"\n[dim]{FOOT}[/]", width=width)


def _table(*headings: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def rows(note: ScorerNote) -> list[tuple[str, ...]]:
    """A scorer's errors, one row a set of answers; four classes are a row of their own."""
    known: dict[str, dict[str, ErrorFigure]] = {}
    for f in chosen(note.figures):
        data = f"{f.data}: four classes" if f.figure == "kappa, four classes" else f.data
        known.setdefault(data, {})[f.figure] = f
    found: list[tuple[str, ...]] = []
    for data, named in known.items():
        cells = [next((_value(named[x]) for x in names if x in named), "") for _, names in SHOWN]
        if any(cells):
            n = max(f.n for f in named.values())
            found.append(("" if found else f"[bold]{plain(note.name)}[/]", plain(data), str(n), *cells))
    return found


def chosen(figures: Sequence[ErrorFigure]) -> list[ErrorFigure]:
    """The figures for a terminal: not of single models where the whole is there, and of held-out answers if there are any."""
    if not any(f.figure == "kappa" for f in figures):
        return list(figures)
    held_out = any(HELD_OUT in f.data for f in figures)
    return [f for f in figures if not f.data.endswith(BY_MODEL) and not (held_out and WRITTEN in f.data)]


def _value(figure: ErrorFigure) -> str:
    return f"{figure.value:.2f} [dim]\\[{figure.low:.2f}, {figure.high:.2f}][/]"
