"""``weightsmith show scorers``: what each scorer reads and how often it errs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import console, plain, print_json

if TYPE_CHECKING:
    from ..measured import ErrorFigure, ScorerNote

COLUMNS = 100
#: figures for the terminal; the others are in --json
SHOWN = ("kappa", "sensitivity", "specificity", "kappa, four classes", "AUROC")


def print_scorers(*, json: bool = False) -> None:
    """A table of the registered scorers: what each reads, then its error figures with 95% intervals."""
    from ..jobs.scorers import list_scorers

    notes = list_scorers()
    if json:
        print_json([n.model_dump() for n in notes])
        return
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("scorer")
    table.add_column("reads, and what its error was measured on", overflow="fold", ratio=1)
    for heading in ("figure", "value", "n"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "n" else "left")
    for note in notes:
        for cells in rows(note):
            table.add_row(*cells)
    out.print(table, width=min(COLUMNS, out.width))
    out.print("[dim]value [95% interval]; n labelled answers. All figures: --json. How they came about: docs/scorers.md[/]",
              width=min(COLUMNS, out.width))  # fmt: skip


def rows(note: ScorerNote) -> list[tuple[str, str, str, str, str]]:
    """A scorer's rows: its own, then one a figure; a set of data is named once."""
    figures = [f for f in note.figures if f.figure in SHOWN]
    error = "" if figures else f"\n[dim]{plain(note.error)}[/]"
    found = [(f"[bold]{plain(note.name)}[/]", plain(note.reads) + error, "", "", "")]
    named = ""
    for f in figures:
        found.append(("", "" if f.data == named else f"[dim]{plain(f.data)}[/]", plain(f.figure), _value(f), str(f.n)))
        named = f.data
    found[-1] = (*found[-1][:4], found[-1][4] + "\n")
    return found


def _value(figure: ErrorFigure) -> str:
    return f"{figure.value:.2f} [dim]\\[{figure.low:.2f}, {figure.high:.2f}][/]"
