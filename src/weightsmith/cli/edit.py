"""``weightsmith edit``: new weights from a direction or an Edit file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, Model, console, gigabytes, plain, print_json, several, spans, with_run_options
from .wishes import Feature, Transfer, What, with_wishes


@with_run_options(model=True)
@with_wishes
def command(
    model: Model,
    what: What,
    *,
    run: RunOptions,
    out: Annotated[str | None, typer.Option("-o", "--out", help="The new model's folder; must not exist.")] = None,
    wishes: dict[str, Any],
    feature: Feature = None,
    transfer: Transfer = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run; keep what is finished.")] = False,
    save_edit: Annotated[str | None, typer.Option(help="Also write the Edit as a YAML file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done and stop.")] = False,
    json: Json = False,
) -> None:
    """Edit a model: remove a feature, add it, or scale it; the output appears whole or not at all."""
    from ..jobs import edit as job
    from ..jobs.edit import save_edit as save
    from ..storage import refuse_existing

    if out is None and not dry_run:
        raise UsageError("say where to write the new model", hint="-o OUT, or --dry-run")
    if save_edit:
        refuse_existing(Path(save_edit), folder=False)
    if dry_run:
        _plan(model, what, wishes, run, transfer, feature, save_edit, json)
        return
    record = job(model, what, out or "", transfer=transfer, feature=feature, resume=resume, options=run,
                 **wishes)  # fmt: skip
    if save_edit:
        save(record.edit, Path(save_edit))
    if json:
        print_json(record.model_dump(by_alias=True))
        return
    _print(record, str(out))


def _plan(
    model: str, what: str, wishes: dict[str, Any], run: RunOptions, transfer: bool, feature: str | None,
    save: str | None, json: bool,
) -> None:  # fmt: skip
    from ..checkpoint import runnable
    from ..execute import needs
    from ..jobs.edit import prepare, resolve_edit, save_edit
    from ..jobs.files import as_checkpoint

    checkpoint = runnable(as_checkpoint(model, run), dequantize=run.dequantize, progress=run.progress)
    spec, found = resolve_edit(checkpoint, what, **wishes)
    plan = prepare(checkpoint, spec, found, transfer=transfer, feature=feature, options=run)
    if save:
        save_edit(spec, Path(save))
    record = plan.as_record() | needs(plan, run)
    if json:
        print_json({"edit": spec.model_dump(by_alias=True), **record})
        return
    screen = console()
    screen.print(f"would change {several(len(record['tensors_changed']), 'tensor')} ({gigabytes(plan.bytes_rewritten)}) and add "
                 f"{len(record['tensors_added'])}; all others are copied")  # fmt: skip
    screen.print(f"  reads {gigabytes(plan.bytes_read)}, writes {gigabytes(plan.bytes_written)}; memory at most "
                 f"{gigabytes(record['peak_memory'])}, disk {gigabytes(record['disk_needed'])}, {several(record['lanes'], 'file')} "
                 "at a time")  # fmt: skip
    for name, operations in record["operations"].items():
        screen.print(f"  {plain(name)}  [dim]{plain('; '.join(operations))}[/]")
    for note in record["notes"]:
        screen.print(f"[yellow]note[/] {plain(note)}")


def _print(record: Any, out: str) -> None:
    screen = console()
    changed = [t for t in record.tensors if not t.added]
    added = len(record.tensors) - len(changed)
    screen.print(f"wrote {plain(out)}: {len(changed)} of {record.base_tensors} tensors changed"
                 + (f", {added} biases added" if added else "") + "; all others are byte for byte the base's")  # fmt: skip
    for step in record.edit.steps:
        screen.print(f"  {step.kind} {plain(record.directions[step.direction].feature)}, amount {step.amount:g}, layers "
                     f"{spans(step.layers)}, vector of {'each' if step.source == 'each' else f'layer {step.source}'}")  # fmt: skip
    if left := [t.left for t in record.tensors if t.left is not None]:
        screen.print(f"  share of the direction left after rounding to {changed[0].dtype}: at most {max(left):.3%}")
    for fit in record.fitted:
        screen.print(f"  layer {fit.layer}: fitted constant delivers {fit.mean_dose:.1%} of its dose on held-out prompts "
                     f"(spread {fit.spread:.1%}, {fit.n_tokens} tokens)")  # fmt: skip
    for note in record.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")
    screen.print(f"[dim]digest {record.digest[:16]}…, record in weightsmith.json[/]")
