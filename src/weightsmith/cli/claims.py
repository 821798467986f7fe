"""``weightsmith claims``: what a model card says, beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, Model, console, plain, print_json, several, with_run_options

CODES = {"holds": 0, "does not hold": 1, "cannot tell": 2}
COLOURS = {"holds": "green", "does not hold": "red", "cannot tell": "yellow"}


@with_run_options(model=True)
def command(
    model: Model,
    *,
    run: RunOptions,
    against: Annotated[str, typer.Option(help="The base to compare with.", metavar="BASE")],
    card: Annotated[str | None, typer.Option(help="Another card than the model's README.md.", metavar="FILE")] = None,
    suite: Annotated[str, typer.Option(help="How much is measured; none checks files only.")] = "quick",
    n: Annotated[int | None, typer.Option("-n", help="Prompts a condition; the suite's own by default.", min=2)] = None,
    out: Annotated[str | None, typer.Option("-o", "--out", help="Write FILE.json.", metavar="FILE")] = None,
    json: Json = False,
) -> int:
    """Check what a model card claims. Exit code 1 if a claim does not hold, 2 if nothing could be told."""
    from ..jobs.claims import claims, save_claims
    from ..storage import refuse_existing

    target = _target(out)
    if target is not None:
        refuse_existing(target, folder=False)
    record = claims(model, against, card=card, suite=suite, n=n, options=run)
    if target is not None:
        save_claims(record, target)
    if json:
        print_json(record.model_dump(by_alias=True) | {"outcome": record.outcome})
    else:
        print_claims(record)
        if target is not None:
            console().print(f"wrote {plain(str(target))}")
    return CODES[record.outcome]


def _target(out: str | None) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    if path.suffix != ".json" or path.is_dir():
        raise UsageError("claims are written as JSON", where=out, hint="for example -o claims.json")
    return path


def print_claims(record: Any) -> None:
    """The table of claims, and why each verdict; settings of a search, which nothing can measure, are only counted."""
    from rich.table import Table

    screen = console()
    shown = [v for v in record.verdicts if v.claim.kind != "setting"]
    settings = len(record.verdicts) - len(shown)
    screen.print(f"[bold]{plain(record.model)}[/] against {plain(record.against)}: {plain(record.card) or 'no card'}\n")
    table = Table("", "claim", "line", "claimed", "measured [95%]", "verdict", box=None, pad_edge=False)
    for i, v in enumerate(shown, 1):
        line = str(v.claim.line) if v.claim.file == record.card else f"{v.claim.file}:{v.claim.line}"
        table.add_row(str(i), plain(v.claim.says), plain(line), plain(_short(v.claim)), plain(v.measured), _coloured(v.verdict))
    if shown:
        screen.print(table)
        screen.print()
    for i, v in enumerate(shown, 1):
        screen.print(f"{i} {_coloured(v.verdict)}: {plain(v.why)}")
        screen.print(f"  [dim]{plain(v.claim.text)}[/]")
    counts = {k: sum(v.verdict == k for v in shown) for k in CODES}
    said = ", ".join(f"{count} {_plural(k, count)}" for k, count in counts.items() if count) or "no claim was found"
    screen.print(f"\n{said}" + (f"; {several(settings, 'setting')} of the search read, not measurable" if settings else ""))
    for note in record.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")


def _coloured(verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"


def _plural(verdict: str, count: int) -> str:
    many = {"holds": "hold", "does not hold": "do not hold"}
    return verdict if count == 1 else many.get(verdict, verdict)


def _short(claim: Any) -> str:
    """What is claimed, short enough for a column."""
    text: str = claim.claimed
    if claim.kind in ("tensors", "same weights") and claim.value is None:
        return f"{len(claim.names)} names" if len(claim.names) > 4 else text
    if claim.kind == "digest":
        return text[:16] + "…"
    return text if len(text) <= 48 else text[:47] + "…"
