"""``weightsmith diff``, ``rebuild`` and ``undo``: what a derivative is, from its record and its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import RunOptions
from .common import Json, Model, Out, console, plain, print_json, several, with_run_options

DIFFERS = 1
_SHOWN = 40

Base = Annotated[str | None, typer.Option("--base", help="The base; known by its digest where it was seen before.")]


@with_run_options(model=False)
def diff(
    a: Annotated[str, typer.Argument(help="A model.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Another.", metavar="B")],
    *,
    run: RunOptions,
    json: Json = False,
) -> int:
    """List what differs between two models, exactly: tensor by tensor, file by file. Exit code 1 if anything does."""
    from ..jobs import diff as job

    record = job(a, b, options=run)
    if json:
        print_json(record.model_dump(by_alias=True))
    else:
        _print_diff(record)
    return 0 if record.same else DIFFERS


def _print_diff(record: Any) -> None:
    from rich.table import Table

    screen = console()
    for note in record.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")
    if record.tensors:
        table = Table("tensor", "what", "elements changed", "‖B−A‖/‖A‖", "largest", box=None, header_style="bold")
        for t in record.tensors[:_SHOWN]:
            what = t.what if t.what != "another type or shape" else f"{t.a} → {t.b}"
            share = "" if t.elements_changed is None else f"{t.elements_changed / max(1, t.elements):.1%}"
            table.add_row(plain(t.tensor), plain(what), share, "" if t.relative is None else f"{t.relative:.2e}",
                          "" if t.largest is None else f"{t.largest:.2e}")  # fmt: skip
        screen.print(table)
        if len(record.tensors) > _SHOWN:
            screen.print(f"[dim]… and {len(record.tensors) - _SHOWN} more; --json lists all[/]")
    for f in record.files:
        keys = f" ({', '.join(map(plain, f.keys))})" if f.keys else ""
        screen.print(f"{plain(f.file)}: {f.what}{keys}")
    if record.same:
        screen.print(f"[green]identical[/]: {record.identical_tensors} tensors and all other files")
    else:
        screen.print(f"{several(len(record.tensors), 'tensor')} and {several(len(record.files), 'file')} differ; "
                     f"{several(record.identical_tensors, 'tensor')} identical")  # fmt: skip


@with_run_options(model=False)
def rebuild(
    model: Model,
    *,
    run: RunOptions,
    base: Base = None,
    direction: Annotated[list[str] | None, typer.Option(help="Direction files that the record names.")] = None,
    json: Json = False,
) -> int:
    """Make an edited model again from its base and its record, without writing it, and compare every byte."""
    from ..jobs import rebuild as job

    record = job(model, base=base, directions=[Path(d) for d in direction or []], options=run)
    if json:
        print_json(record.model_dump(by_alias=True) | {"same": record.same})
        return 0 if record.same else DIFFERS
    screen = console()
    for note in record.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")
    if record.same:
        screen.print(f"[green]rebuilt bit for bit[/] from {plain(record.base)} ({record.base_digest[:16]}…): "
                     f"digest {record.rebuilt_digest[:16]}…")  # fmt: skip
        return 0
    if record.first_tensor:
        screen.print(f"[red]differs[/] first at {plain(record.first_tensor)}; {several(len(record.tensors), 'tensor')} in all")
    for name in record.files[:_SHOWN]:
        screen.print(f"[red]differs[/] {plain(name)}")
    if not record.tensors and not record.files:
        screen.print("[red]differs[/] the record's own digest is not that of what it describes")
    if record.made_with != record.rebuilt_with:
        screen.print(f"[dim]made with {plain(str(record.made_with))}, rebuilt with {plain(str(record.rebuilt_with))}[/]")
    return DIFFERS


@with_run_options(model=False)
def undo(
    model: Model,
    *,
    run: RunOptions,
    out: Out,
    base: Base = None,
    json: Json = False,
) -> None:
    """Write the base of an edited model again, byte for byte, checked against the digest in its record."""
    from ..jobs import undo as job

    record = job(model, out, base=base, options=run)
    if json:
        print_json({"out": out, "base": record.base.model_dump()})
        return
    converted = {"gguf_sha256", "dequantised_from"} & record.base_source.keys()
    what = "the bf16 folder that the edit began from, which stands for " if converted else ""
    console().print(f"wrote {plain(out)}: {what}{plain(record.base.ref)}, byte for byte ({record.base.digest[:16]}…)")
