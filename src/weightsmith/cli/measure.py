"""``weightsmith measure``: a model against its base, with intervals."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, Model, console, plain, print_json, with_run_options


@with_run_options(model=True)
def command(
    model: Model,
    *,
    run: RunOptions,
    against: Annotated[str, typer.Option(help="The base to compare with.", metavar="BASE")],
    feature: Annotated[str, typer.Option(help="A shipped feature or a YAML file.")],
    direction: Annotated[str | None, typer.Option(help="The feature's direction, for the probe.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Report prompts per condition; all by default.", min=2)] = None,
    tokens: Annotated[int, typer.Option(help="Length of answers, in tokens.", min=1)] = 48,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Write FILE.html and/or FILE.json.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Measure a model against its base: effect where the feature can show, and damage everywhere."""
    from ..jobs.measure import measure, save_record, save_report
    from ..storage import refuse_existing

    targets = _targets(out)
    for target in targets:
        refuse_existing(target, folder=False)
    record = measure(model, against, feature, direction=direction, n=n, tokens=tokens, options=run)
    with contextlib.ExitStack() as undo:  # both files or none
        for target in targets:
            (save_report([record], target) if target.suffix == ".html" else save_record(record, target))
            undo.callback(target.unlink, missing_ok=True)
        undo.pop_all()
    if json:
        print_json(record.model_dump(by_alias=True))
        return
    print_measurements(record)
    for target in targets:
        console().print(f"wrote {plain(str(target))}")


def _targets(out: str | None) -> list[Path]:
    if out is None:
        return []
    path = Path(out)
    if not path.name or path.is_dir():
        raise UsageError("a folder, not the name of a file", where=out, hint="for example -o OUT/report.html")
    if path.suffix in (".html", ".json"):
        return [path]
    if path.suffix:
        raise UsageError(
            f"can't write {path.suffix!r}", hint="name a .html or .json file, or a name without a suffix for both"
        )
    return [path.with_suffix(".html"), path.with_suffix(".json")]


def print_measurements(record: Any) -> None:
    """The table of figures: base, edited, difference with its interval, n and p."""
    from rich.table import Table

    screen = console()
    screen.print(f"[bold]{plain(record.title)}[/]\n{plain(record.sentence)}\n")
    table = Table("condition", "figure", "base", "edited", "difference [95%]", "p", "n", box=None, pad_edge=False)
    last = ""
    for d in record.differences:
        change = f"{d.value:+.3f} \\[{d.low:+.3f}, {d.high:+.3f}]"
        table.add_row("" if d.condition == last else plain(d.condition), d.name, f"{d.base.value:.3f}",
                      f"{d.edited.value:.3f}", change, f"{d.p:.3g}", str(d.n))  # fmt: skip
        last = d.condition
    screen.print(table)
    harm = Table("damage", "value [95%]", "n", box=None, pad_edge=False)
    for m in record.damage:
        harm.add_row(m.name, f"{m.value:.4g} \\[{m.low:.4g}, {m.high:.4g}] {m.unit}", str(m.n))
    screen.print()
    screen.print(harm)
    for note in record.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")
