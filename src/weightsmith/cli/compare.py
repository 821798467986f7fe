"""``weightsmith compare``: measurements beside each other, and conditions that a build fails by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .common import Json, console, plain, print_json, several

if TYPE_CHECKING:
    from rich.console import Console

    from ..compared import Cell, Change, CompareRecord, Row

FAILS = 1
_SIGNS = {"rises": "▲", "falls": "▼", "cannot tell": "○"}


def command(
    files: Annotated[list[str], typer.Argument(help="Measurements that were saved with -o FILE.json.", metavar="A.json B.json …")],
    *,
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", help='Exit with 1 if this holds, such as "kl.mean.low > 0.05"; several times if you like.',
                     metavar="CONDITION")] = None,
    out: Annotated[str | None, typer.Option("-o", "--out", help="Write FILE.json.", metavar="FILE")] = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Compare measurements, each with the first, paired where they can be. Exit code 1 if a --fail-if holds."""
    from ..jobs.comparison import compare, save_comparison
    from ..storage import refuse_existing

    target = _target(out)
    if target is not None:
        refuse_existing(target, folder=False)
    record = compare(files, fail_if=fail_if or ())
    if target is not None:
        save_comparison(record, target)
    if json:
        print_json(record.model_dump(by_alias=True) | {"fails": record.fails})
    else:
        print_comparison(record)
        if target is not None:
            console().print(f"wrote {plain(str(target))}")
    return FAILS if record.fails else 0


def _target(out: str | None) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    if path.suffix != ".json" or path.is_dir():
        raise UsageError("comparisons are written as JSON", where=out, hint="for example -o comparison.json")
    return path


def print_comparison(record: CompareRecord) -> None:
    """The files, one table for each pair with the first, why figures stand side by side, warnings, conditions."""
    screen = console()
    for f in record.files:
        screen.print(f"[bold]{f.label}[/] {plain(f.file)}: {plain(f.title)}")
    screen.print()
    for warning in record.warnings:
        screen.print(f"[yellow]warning[/] {plain(warning)}")
    if record.warnings:
        screen.print()
    if len(record.files) == 1:
        _print_one(screen, record)
    for i, f in enumerate(record.files[1:]):
        _print_pair(screen, record, i, f.label)
    for note in record.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")
    for c in record.conditions:
        shown = "; ".join(f"{plain(x.figure)} of {x.label} is {x.value:.6g}" for x in c.figures)
        word = "[red]fails[/]" if c.fails else "[green]passes[/]"
        screen.print(f"{word} {plain(c.expression)}: {shown}")


#: widths of the columns: the last piece of a key, two figures, their difference, p
_WIDTHS = (16, 21, 21, 25, 9)


def _print_one(screen: Console, record: CompareRecord) -> None:
    _line(screen, ("", "value [95%]", "n", "change from its base", "Holm p"), "", style="dim")
    last = ""
    for row in record.rows:
        cell = row.cells[0]
        if cell is not None:
            tested = ("", "", "") if cell.change is None else _tested(row, cell.change)
            last = _figures(screen, row, (_shown(row, cell), str(cell.n), *tested[:2]), tested[2], last)
    screen.print()
    if any(row.cells[0] and row.cells[0].change for row in record.rows):
        _say(screen, _LEGEND)


def _print_pair(screen: Console, record: CompareRecord, at: int, label: str) -> None:
    _line(screen, ("", "A [95%]", f"{label} [95%]", f"{label} − A [95%]", "Holm p"), "", style="dim")
    reasons: dict[str, list[str]] = {}
    tests: dict[str, int] = {}
    last = ""
    for row in record.rows:
        first, second, against = row.cells[0], row.cells[at + 1], row.against[at]
        if first is None and second is None:
            continue
        if against.why:
            reasons.setdefault(f"{against.how}: {against.why}", []).append(row.key)
        change, p, sign = "", "", ""
        if against.change is not None:
            tests[against.change.test] = tests.get(against.change.test, 0) + 1
            change, p, sign = _tested(row, against.change)
            sign += " ~" if against.how == "unpaired" else ""
        last = _figures(screen, row, (_shown(row, first), _shown(row, second), change, p), sign, last)
    screen.print()
    for reason, keys in reasons.items():
        named = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        _say(screen, f"{reason} ({named})")
    said = ", ".join(f"{name} ({count})" for name, count in tests.items())
    if tests:
        _say(
            screen, f"{several(sum(tests.values()), 'difference')} tested: {said}; p adjusted by Holm within each group"
        )
        _say(screen, f"{_LEGEND}, ~ not paired")
    screen.print()


_LEGEND = "▲ rises, ▼ falls, ○ cannot tell; shares change in percentage points"


def _say(screen: Console, words: str) -> None:
    screen.print(f"[dim]{plain(words)}[/]")


def _figures(screen: Console, row: Row, columns: tuple[str, ...], sign: str, last: str) -> str:
    """One row under the beginning of its key, which is only said when it changes; gives that beginning."""
    head, dot, tail = row.key.rpartition(".")
    if head != last and head:
        screen.print(f"[bold]{plain(head)}[/]")
    _line(screen, (f"  {dot}{tail}", *columns), sign, style="bold" if sign[:1] in ("▲", "▼") else "")
    return head


def _line(screen: Console, columns: tuple[str, ...], sign: str, style: str) -> None:
    name, *numbers = columns
    if len(name) > _WIDTHS[0]:  # its figures stand below it
        screen.print(plain(name), style=style)
        name = ""
    cells = "".join(f" {text}".rjust(width) for text, width in zip(numbers, _WIDTHS[1:], strict=True))
    screen.print(plain(f"{name:<{_WIDTHS[0]}}{cells}  {sign}".rstrip()), style=style, soft_wrap=True)


def _shown(row: Row, cell: Cell | None) -> str:
    from ..report import text

    if cell is None:
        return "–"
    shown = text.show(cell.value, cell.low, cell.high, row.unit, bounded=cell.interval != "none")
    return shown.value + (f" [{shown.low.rstrip('%')}, {shown.high.rstrip('%')}]" if shown.bounded else "")


def _tested(row: Row, change: Change) -> tuple[str, str, str]:
    """Difference with interval, p, and the sign of its verdict."""
    from ..report import text

    shown = text.show(change.value, change.low, change.high, row.unit, change=True)
    p = change.p if change.p_holm is None else change.p_holm
    return f"{shown.value} [{shown.low}, {shown.high}]", text.probability(p), _SIGNS[change.verdict]
