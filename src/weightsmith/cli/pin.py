"""``weightsmith pin``: a model's digests into a lock, with who else vouches for them and what changed since."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, Model, console, gigabytes, plain, print_json, several, with_run_options
from .verify import with_signers

if TYPE_CHECKING:
    from rich.console import Console

    from ..pinned import PinChanges, PinRecord

DISAGREE = 1
NOT_PINNED = 2
_SHOWN = 24
_COLOURS = {"added": "green", "removed": "red", "changed": "yellow", "another type or shape": "red"}


@with_run_options(model=False)
@with_signers
def command(
    model: Model,
    *,
    run: RunOptions,
    signers: Any,
    lock: Annotated[Path | None, typer.Option("--lock", help="The lock to write; the nearest weightsmith.lock, or a new one "
                                              "here, by default.", metavar="FILE")] = None,
    sources: Annotated[list[str] | None, typer.Option("--from", help="Who else says digests: hub, hub:ORG/NAME@REVISION, "
                       "sums:FILE, lock:FILE, oms:FILE, or another copy of the model. Several times if you like.",
                       metavar="SOURCE")] = None,
    trust: Annotated[list[str] | None, typer.Option("--trust", help="Whom to believe where sources disagree: a source, or "
                     "here for the bytes on disk.", metavar="SOURCE")] = None,
    update: Annotated[bool, typer.Option("--update", help="Show what changed, ask, and replace what is pinned.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: Json = False,
) -> int:  # fmt: skip
    """Write the digests of a model's files and tensors into weightsmith.lock. Exit code 1 if sources disagree."""
    from ..jobs.pin import pin

    def consent(record: PinRecord) -> bool:
        if not json and record.changes is not None:
            print_changes(console(), record.changes)
        if yes or json:  # for a machine what changed is the record that is printed
            return yes
        if not sys.stdin.isatty():
            sys.stdout.flush()
            raise UsageError("there is nobody to ask whether this change is meant; nothing was pinned", where=record.name,
                             hint="read what changed, then say --yes")  # fmt: skip
        return typer.confirm("Pin this?")

    record = pin(model, lock=lock, sources=sources or (), trust=trust or (), update=update, consent=consent, options=run,
                 signers=signers)  # fmt: skip
    if json:
        print_json(record.model_dump(by_alias=True))
    else:
        _print(record)
    if record.written:
        return 0
    return DISAGREE if record.disagreements else NOT_PINNED


def _print(record: PinRecord) -> None:
    screen = console()
    for name, source in record.sources.items():
        told = f"{several(source.same, 'file')} as here" if source.same else "no file as here"
        signed = f", signed by {plain(source.signer)}" if source.signer else ""
        weights = {"": "", "same": ", the same tensors", "others": ", [red]other tensors[/]"}[source.weights]
        screen.print(f"[bold]{plain(name)}[/]: {told} of {source.files} that it lists{weights}{signed}")
    if record.disagreements and not record.written and record.changes is not None and not record.changes.same:
        print_changes(screen, record.changes)
    _print_disagreements(screen, record)
    if record.nobody and record.written:
        named = ", ".join(plain(n) for n in record.nobody[:_SHOWN])
        screen.print(f"[yellow]no source vouches for[/] {named}" + (" …" if len(record.nobody) > _SHOWN else ""))
    if record.written:
        word = "pinned as before:" if record.changes is not None and record.changes.same else "pinned"
        screen.print(f"[green]{word}[/] {plain(record.name)} in {plain(_near(record.lock))}: {several(record.files, 'file')}, "
                     f"{several(record.tensors, 'tensor')}, {gigabytes(record.bytes)}, digest {record.digest[:16]}…",
                     soft_wrap=True)  # fmt: skip
    elif record.disagreements:
        screen.print("[red]not pinned[/]: the sources disagree. If you know who is right, say so: --trust SOURCE "
                     "(--trust here for the bytes on disk)")  # fmt: skip
    else:
        screen.print("[yellow]not pinned[/]")


def _near(path: str) -> str:
    """A path below the current folder as one from there."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _print_disagreements(screen: Console, record: PinRecord) -> None:
    from rich.table import Table

    if not record.disagreements:
        return
    table = Table("file", "who", "says", box=None, header_style="bold")
    for row in record.disagreements[:_SHOWN]:
        name = plain(row.file)
        for who, said in row.says.items():
            algorithm, _, value = said.partition(":")
            short = f"{algorithm}:{value[:24]}…" if len(value) > 40 else said
            table.add_row(name, plain(who), plain(short))
            name = ""
    screen.print(table)
    if len(record.disagreements) > _SHOWN:
        screen.print(f"[dim]… and {len(record.disagreements) - _SHOWN} more files; --json lists all[/]")


def print_changes(screen: Console, found: PinChanges) -> None:
    """What differs between two pins: files, what it means, tensors."""
    if found.same:
        screen.print("nothing changed")
        return
    title = plain(found.after) if found.before == found.after else f"{plain(found.before)} → {plain(found.after)}"
    screen.print(f"[bold]{title}[/]")
    for f in found.files:
        screen.print(f"[{_COLOURS[f.what]}]{f.what}[/] {plain(f.file)}")
        for line in f.details:
            screen.print(f"    {plain(line)}", style="dim")
    for t in found.tensors[:_SHOWN]:
        form = t.before if t.before == t.after else f"{t.before or 'nothing'} → {t.after or 'nothing'}"
        screen.print(f"[{_COLOURS[t.what]}]{t.what}[/] tensor {plain(t.tensor)} ({plain(form)})")
    if len(found.tensors) > _SHOWN:
        screen.print(f"[dim]… and {len(found.tensors) - _SHOWN} more tensors[/]")
    if (n := len(found.tensors)) > 0:
        screen.print(f"{several(n, 'tensor')} of {n + found.same_tensors} {'differs' if n == 1 else 'differ'}")
