"""``weightsmith measure``: a model against its base, or alone, with intervals."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, Model, console, plain, print_json, with_run_options

#: how an interrupted measurement ends, unless nothing was to be kept
KEPT = ", and the answers so far are kept: the same command goes on from there"


@with_run_options(model=True)
def command(
    model: Model,
    *,
    run: RunOptions,
    against: Annotated[
        str | None, typer.Option(help="The base to compare with; without one the model is measured alone.", metavar="BASE")
    ] = None,
    suite: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    feature: Annotated[
        list[str] | None,
        typer.Option(help="A shipped feature or a YAML file; several times if you like. "
                          "What the model's own record edits by default.")] = None,
    direction: Annotated[str | None, typer.Option(help="The feature's direction, for the probe.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Prompts per condition, instead of the suite's number.", min=2)] = None,
    tokens: Annotated[int | None, typer.Option(help="Length of answers in tokens, instead of the suite's.", min=1)] = None,
    drop_overlap: Annotated[
        bool, typer.Option("--drop-overlap", help="Leave out prompts that the edit was found or chosen with.")] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A set of questions: mmlu, piqa, commonsenseqa, bbq …; several times.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="A task of the evaluation harness (extra lm-eval).")] = None,
    workers: Annotated[str | None, typer.Option(help="A number, ray, or ray:HOST:PORT (extra ray).")] = None,
    judge: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible endpoint that may be sent the answers.", metavar="URL")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model.", metavar="NAME")] = None,
    log: Annotated[
        str | None, typer.Option(help="Write every answer to FOLDER, as lm-eval samples and Inspect logs.", metavar="FOLDER")
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Write FILE.html and/or FILE.json.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Measure a model: effect where a feature can show, damage, and safety both ways, each with its interval."""
    from ..jobs.measure import Session
    from ..jobs.measured import save_record, save_report
    from ..storage import refuse_existing, withdraw

    targets = _targets(out)
    for target in targets:
        refuse_existing(target, folder=False)
    if log is not None:
        refuse_existing(Path(log))
    session = Session(against, feature or (), edited=model, options=run, suite=suite, direction=direction, n=n, tokens=tokens,
                      drop_overlap=drop_overlap, sets=tuple(sets) if sets else None, tasks=tuple(task or ()),
                      workers=workers, judge=_judge(judge, judge_model))  # fmt: skip
    if not json:
        print_design(session)
    record = session.compare(model)
    with contextlib.ExitStack() as undo:  # both files or none
        for target in targets:
            (save_report([record], target) if target.suffix == ".html" else save_record(record, target))
            undo.callback(withdraw, target)
        if log is not None:
            from ..jobs.logs import save_logs

            save_logs(session, record, Path(log))
        undo.pop_all()
    if json:
        print_json(record.model_dump(by_alias=True))
        return
    from .measure_table import print_measurements

    print_measurements(record)
    for target in targets:
        console().print(f"wrote {plain(str(target))}")


def _judge(url: str | None, model: str | None) -> Any:
    """The user's consent to ask a judge; both options or none."""
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise UsageError("a judge needs both --judge URL and --judge-model NAME")
    from ..measure.judge import Access

    return Access(url, model)


def print_design(session: Any) -> None:
    """What will be asked and the smallest change that it can show, before anything runs."""
    from rich.table import Table

    screen = console()
    suite = session.suite
    how = "greedy only" if not suite.sampled else f"greedy, and {suite.sampled} prompts sampled with {suite.seeds} seeds"
    screen.print(f"suite {suite.name}: answers of {suite.tokens} tokens, {how}")
    table = Table("asked", "n", "smallest change seen (rate)", "(mean, in SD)", box=None, pad_edge=False)
    for condition, units, rate, mean in session.design():
        none = rate == float("inf")
        table.add_row(plain(condition), str(units), "none" if none else f"{rate:.0%}", "none" if none else f"{mean:.2f}")
    screen.print(table)
    screen.print("with 80% power at 5%, for one figure alone; smaller changes will say “cannot tell”\n")


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
