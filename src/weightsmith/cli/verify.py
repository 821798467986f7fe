"""``weightsmith verify``: what vouches for a model, and what could and could not be checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, Model, console, gigabytes, plain, print_json, several, with_run_options
from .scan import indented

if TYPE_CHECKING:
    from rich.console import Console

    from ..pinned import Check, VerificationRecord
    from ..trust.pins.sources import Signers

EXIT = {"agrees": 0, "differs": 1, "could not tell": 2}
_SHOWN = 12
_MARKS = {"agrees": "[green]✓ agrees[/]", "differs": "[red]✗ differs[/]", "could not tell": "[yellow]? could not tell[/]",
          "absent": "[dim]– no[/]"}  # fmt: skip
_WORDS = {
    "agrees": "[green]agrees[/]: everything that could be checked",
    "differs": "[red]differs[/]: do not use it before you know why",
    "could not tell": "[yellow]could not tell[/]: what was asked for could not be checked",
}
_KINDS = {"lock": "lock", "sums": "checksums", "oms": "signature", "hub": "hub", "record": "record"}
_FILES = {"differs": "is not what was said", "missing": "is missing", "unlisted": "is not listed"}

_SIGNERS: dict[str, Any] = {
    "key": Annotated[Path | None, typer.Option("--key", help="Public key (PEM) whose signature you trust.", metavar="FILE")],
    "certificate": Annotated[list[Path] | None, typer.Option(
        "--certificate", help="Root certificates (PEM) that you trust; several times if you like.", metavar="FILE")],
    "identity": Annotated[str | None, typer.Option("--identity", help="Who signed without a key: an e-mail address or URI.")],
    "issuer": Annotated[str | None, typer.Option("--issuer", help="Who vouches for that identity.", metavar="URL")],
    "trust_root": Annotated[Path | None, typer.Option(
        "--trust-root", help="Sigstore trust root instead of the shipped one.", metavar="FILE")],
    "at": Annotated[str | None, typer.Option(
        "--at", help="Check certificates as of this day instead of today.", metavar="YYYY-MM-DD")],
    "ignore": Annotated[list[str] | None, typer.Option(
        "--ignore", help="A file or folder that the signer may have left out.", metavar="NAME")],
}  # fmt: skip


def with_signers(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options that say whom it trusts to sign; it receives them as one ``signers``.

    Raises (the command):
        UsageError: a day that can't be read, an identity without its issuer, or no such file.
    """
    own = inspect.signature(function, eval_str=True)
    shared = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in _SIGNERS.items()]

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> int:
        given = {name: kwargs.pop(name, None) for name in _SIGNERS}
        return function(*args, signers=_signers(given), **kwargs)

    kept = [p for n, p in own.parameters.items() if n != "signers"]
    command.__signature__ = own.replace(parameters=[*kept, *shared])  # type: ignore[attr-defined]
    return command


def _signers(given: dict[str, Any]) -> Signers:
    from ..trust.pins.sources import Signers

    at, key, certificates, root = given["at"], given["key"], given["certificate"] or (), given["trust_root"]
    try:
        day = datetime.fromisoformat(at) if at else None
    except ValueError as error:
        raise UsageError(f"can't read the day {at!r:.40}", hint="for example --at 2026-03-31") from error
    if bool(given["identity"]) != bool(given["issuer"]):
        raise UsageError("--identity and --issuer go together", hint="for example --issuer https://accounts.google.com")
    for path in (key, *certificates, root):
        _need_file(path)
    return Signers(key, tuple(certificates), given["identity"], given["issuer"], root,
                   day if day is None or day.tzinfo else day.replace(tzinfo=UTC), tuple(given["ignore"] or ()))  # fmt: skip


@with_run_options(model=False)
@with_signers
def command(
    model: Model,
    *,
    run: RunOptions,
    signers: Any,
    lock: Annotated[Path | None, typer.Option("--lock", help="A lock instead of the nearest one.", metavar="FILE")] = None,
    sums: Annotated[Path | None, typer.Option("--sums", help="A SHA256SUMS file.", metavar="FILE")] = None,
    signature: Annotated[Path | None, typer.Option("--signature", help="A model signature (OMS).", metavar="FILE")] = None,
    hub: Annotated[str | None, typer.Option("--hub", help="Ask the hub for its digests.", metavar="ORG/NAME@REVISION")] = None,
    json: Json = False,
) -> int:
    """Check a model against a lock, checksums, a signature and the hub. Exit code 1 if any differs, 2 if none could tell."""
    from ..jobs.verify import verify

    for path in (lock, sums, signature):
        _need_file(path)
    record = verify(model, lock=lock, sums=sums, signature=signature, hub=hub, options=run, signers=signers)
    if json:
        print_json(record.model_dump(by_alias=True))
    else:
        _print(record)
    return EXIT[record.verdict]


def _need_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise UsageError("not a plain file" if path.exists() else "no such file", where=path)


def _print(record: VerificationRecord) -> None:
    screen = console()
    screen.print(f"[bold]{plain(record.model)}[/]  {several(record.files, 'file')}, {gigabytes(record.bytes)}, "
                 f"read in {record.seconds:.1f} s")  # fmt: skip
    if record.broken:
        screen.print(f"[yellow]it can't be opened as a model[/]: {plain(record.broken)}")
    for check in record.checks:
        _print_check(screen, check)
    _print_nobody(screen, record)
    idle = all(c.outcome != "agrees" for c in record.checks) and record.verdict == "could not tell"
    screen.print("[yellow]could not tell[/]: nothing here vouches for it" if idle else _WORDS[record.verdict])


def _print_check(screen: Console, check: Check) -> None:
    name = f" {plain(check.name)}" if check.name else ""
    parts = [f"{several(check.same, 'file')} as it says"] if check.same else []
    parts += [f"signed by {plain(check.signer)}"] if check.signer else []
    parts += [plain(check.why)] if check.why else []
    parts += ["it comes with the model itself"] if check.outcome == "agrees" and not check.independent else []
    if check.outcome == "absent":
        screen.print(f"{_MARKS['absent']} [dim]{_KINDS[check.kind]}: {'; '.join(parts)}[/]")
        return
    screen.print(f"{_MARKS[check.outcome]} [bold]{_KINDS[check.kind]}[/]{name}")
    if parts:
        _indented(screen, "; ".join(parts))
    for f in check.files[:_SHOWN]:
        colour = "yellow" if check.outcome == "agrees" else "red"
        _indented(screen, f"[{colour}]{plain(f.file)}[/] {_FILES[f.what]}")
        if f.what == "differs":
            _indented(screen, f"[dim]said {plain(f.said)}[/]\n[dim]here {plain(f.got)}[/]", 6)
    if len(check.files) > _SHOWN:
        _indented(screen, f"[dim]… and {len(check.files) - _SHOWN} more; --json lists all[/]")
    for t in check.tensors[:_SHOWN]:
        form = t.before if t.before == t.after else f"{t.before or 'nothing'} → {t.after or 'nothing'}"
        _indented(screen, f"[red]tensor {plain(t.tensor)}[/] {t.what} ({plain(form)})")
    if len(check.tensors) > _SHOWN:
        _indented(screen, f"[dim]… and {len(check.tensors) - _SHOWN} more tensors[/]")


def _indented(screen: Console, text: str, by: int = 4) -> None:
    for line in text.split("\n"):
        indented(screen, line, by)


def _print_nobody(screen: Console, record: VerificationRecord) -> None:
    if not record.nobody or not any(c.outcome == "agrees" for c in record.checks):
        return
    named = ", ".join(plain(n) for n in record.nobody[:_SHOWN])
    more = f" and {len(record.nobody) - _SHOWN} more" if len(record.nobody) > _SHOWN else ""
    screen.print(f"[yellow]nobody vouches for[/] {named}{more}")
