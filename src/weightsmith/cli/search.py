"""``weightsmith search``: the best edits of a feature as a front of effect against damage."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, Model, console, plain, print_json, safe, with_run_options

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS, GAP = 100, 2
#: how an interrupted search ends
KEPT = ", and what was found so far, if anything, is in the run's folder: --resume goes on from there"


@with_run_options(model=True)
def command(
    model: Model,
    feature: Annotated[str, typer.Argument(help="A shipped feature (`weightsmith show features`) or a YAML file.")],
    *,
    run: RunOptions,
    out: Annotated[str, typer.Option("-o", "--out", help="The run's folder; must not exist.", metavar="RUN")],
    remove: Annotated[bool, typer.Option("--remove", help="Look for removals (the default).")] = False,
    add: Annotated[bool, typer.Option("--add", help="Look for additions: enhance the feature.")] = False,
    protect: Annotated[list[str] | None, typer.Option(help="A feature that must not move; several times.")] = None,
    target: Annotated[
        float | None, typer.Option(help="Wanted value of the feature's score (a rate, a mean sentiment); else the knee.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each side to train on.", min=1)] = 32,
    held: Annotated[int, typer.Option(help="Prompts of each side held out.", min=1)] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of the base's answers.", min=1)] = 16,
    weights: Annotated[str | None, typer.Option(help="Weights of the damage, in the order of the sweep: 100,30,8.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the first descent.", min=1)] = None,
    directions: Annotated[
        bool, typer.Option("--directions/--no-directions", help="Let the descent turn the directions as well.")] = True,
    oblique: Annotated[
        bool, typer.Option("--oblique", help="Let a removal read along another vector than it writes (selective edits).")
    ] = False,
    rank: Annotated[int, typer.Option(help="Directions that a removal takes out at each layer.", min=1)] = 1,
    start: Annotated[int | None, typer.Option(help="First layer that may be edited; 40% of the depth by default.", min=0)] = None,
    level: Annotated[
        float | None, typer.Option(help="How far an addition goes, in terms of what the persona does; 1.2 by default.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which an addition unlearns its own repetitions.", min=0)] = 4,
    trials: Annotated[int, typer.Option(help="Trials of black-box search as well (extra search).", min=0)] = 0,
    sampler: Annotated[str, typer.Option(help="tpe or nsga2.")] = "tpe",
    confirm: Annotated[int, typer.Option(help="Points of the front to confirm on unseen prompts.", min=0)] = 3,
    confirm_n: Annotated[int, typer.Option(help="Prompts a condition in a confirmation.", min=2)] = 24,
    confirm_tokens: Annotated[int, typer.Option(help="Tokens of an answer in a confirmation.", min=1)] = 96,
    workers: Annotated[
        str | None,
        typer.Option(help="Descents and confirmations on workers: a number, ray, or ray:HOST:PORT (extra ray)."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most that the descents take on their device, model included: 6GB. Else 80% of what is free.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts' order and of trials.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Search a feature that can't be separated, too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search, or begin one.")] = False,
    json: Json = False,
) -> None:
    """Search for the best edits of a feature: a front of effect against damage, each point with its Edit file."""
    from dataclasses import replace

    from ..jobs.search import Listener, search

    if remove and add:
        raise UsageError("--remove and --add can't be given together", hint="search once for each")
    if level is not None and not add:
        raise UsageError("--level is of additions, and this search looks for removals",
                         hint="leave it out, or look for additions with --add")  # fmt: skip
    listener = Listener() if json else Listener(tick=_tick, point=_point, say=_say)
    record = search(
        model, feature, out, options=replace(run, seed=seed, memory=_bytes(memory)), listener=listener,
        kind="add" if add else "remove", protect=tuple(protect or ()), target=target, prompts=prompts, held=held,
        tokens=tokens, weights=_weights(weights), steps=steps, directions=directions, oblique=oblique, rank=rank, start=start,
        trials=trials, sampler=sampler, confirm=confirm, confirm_n=confirm_n,
        confirm_tokens=confirm_tokens, workers=workers, force=force, resume=resume, rounds=rounds,
        **({} if level is None else {"level": level}),
    )  # fmt: skip
    if json:
        print_json(record.model_dump(by_alias=True))
        return
    print_search(record, model, Path(out))


def _weights(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"can't read the weights {text!r}", hint="for example 100,30,8") from error


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"can't read the amount of memory {text!r}", hint="for example 6GB, 800MB or 12GiB")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** " KMGT".index(found[2].upper() or " "))


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(safe(text) + "\n")


def _tick(tick: Any) -> None:
    held = ""
    if tick.held_damage is not None:
        held = f"   held out: loss {tick.held_effect:.3f}, KL {tick.held_damage:.4f}"
    _say(f"weight {tick.weight:g}, step {tick.step}: loss {tick.effect_loss:.3f}, KL {tick.damage:.4f}{held}")


def _point(point: Any) -> None:
    chance = "" if point.chance is None else f", chance {point.chance:.1%}"
    _say(f"{point.name}  effect {point.effect:+.2f}{chance}, KL {point.damage:.4f}   {point.what}")


def print_search(record: Any, model: str, out: Path) -> None:
    """The front as a table, what was confirmed of it, the point to take, and what to do next; at most 100 columns."""
    from ..searched import NOTHING

    screen = console()
    _lines(screen, f"{record.kind} {plain(record.feature)}: {len(record.points)} candidates, {len(record.front)} on the front")
    if record.separation is not None:
        value, low, high = record.separation
        found = f"AUROC {value:.3f} \\[{low:.3f}, {high:.3f}]"
        _lines(screen, f"layer {record.source} separates held-out prompts with {found}\n")
    _front(screen, record)
    _confirmations(screen, record)
    for note in record.notes:
        _lines(screen, f"[yellow]note[/] {plain(note)}")
    seconds = sum(s.seconds for s in record.stretches)
    parts = ", ".join(f"{plain(s.name)} {s.seconds:.0f} s" for s in record.stretches)
    _lines(screen, f"[dim]{seconds:.0f} s: {parts}[/]")
    taken = record.taken
    if taken is None or NOTHING in record.notes:
        _lines(screen, f"wrote {plain(str(out))}: search.json, report.html, edits/")
    else:
        why = f"nearest to the target of {record.target:g}" if record.chosen_by == "target" else "the knee"
        _lines(screen, f"take {plain(taken.name)} ({why}); wrote {plain(str(out))}: search.json, report.html, edits/")
        # in one piece, whatever its length: it is there to be copied
        screen.print(f"[dim]next: weightsmith edit {plain(model)} {plain(str(out / taken.edit))} -o OUT[/]", soft_wrap=True)


def _lines(screen: Console, text: str) -> None:
    screen.print(text, width=min(COLUMNS, screen.width))


def _table(screen: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Figures whole, and of the last column as much as the line has room for."""
    from rich.table import Table

    width = min(COLUMNS, screen.width)
    taken = [max(len(row[i]) for row in [headings, *rows]) + GAP for i in range(len(headings) - 1)]
    room = max(len(headings[-1]), width - sum(taken))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        last = _fitting(row[-1], room)
        table.add_row(*(plain(cell) for cell in (*row[:-1], last)))
    screen.print(table, width=width)
    screen.print()


def _fitting(text: str, room: int) -> str:
    """A text cut in its middle: what tells descents apart stands at their end."""
    if len(text) <= room:
        return text
    end = room // 2
    return text[: room - end - 1] + "…" + text[len(text) - end :]


def _front(screen: Console, record: Any) -> None:
    odds = any(p.chance is not None for p in record.front)
    rows = []
    for p in record.front:
        mark = " knee" if p.knee else ""
        mark += " taken" if p is record.taken and not p.knee else ""
        rows.append([p.name + mark, f"{p.effect:+.2f} [{p.effect_low:+.2f}, {p.effect_high:+.2f}]",
                     *(["" if p.chance is None else f"{p.chance:.1%}"] if odds else []),
                     f"{p.damage:.4f} [{p.damage_low:.4f}, {p.damage_high:.4f}]", p.what])  # fmt: skip
    _table(screen, ["front", "effect, nats", *(["chance"] if odds else []), "KL, nats/token", "what"], rows)


def _span(value: float, low: float | None, high: float | None) -> str:
    """A figure with its interval, where it has one."""
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _confirmations(screen: Console, record: Any) -> None:
    """The main figure of each point that was confirmed, and all of the one to take: what it costs stands beside what it gives."""
    rows = []
    for p in record.front:
        for figure in p.confirmed if p is record.taken else p.confirmed[:1]:
            base = "" if figure.base is None else f"{_span(figure.base, figure.base_low, figure.base_high)} → "
            said = ", ".join(w for w in (figure.verdict, "disagrees" if p.disagrees else "") if w)
            value = base + _span(figure.value, figure.low, figure.high)
            rows.append([p.name, value, said, str(figure.n), figure.name])
    if rows:
        _table(screen, ["confirmed", "base → edited", "verdict", "n", "of"], rows)
    for p in record.front:
        if p.disagrees:
            _lines(screen, f"[yellow]{plain(p.name)}[/] {plain(p.disagrees)}")
