"""``weightsmith scan``: what a model's files hold, before anything of it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..options import RunOptions
from .common import Json, consent, console, gigabytes, plain, print_json, safe, several, with_run_options

if TYPE_CHECKING:
    from ..found import Finding, ScanRecord

_LOOK = {
    "malicious": "bold white on red", "broken": "red", "unknown": "magenta", "suspicious": "yellow", "note": "dim",
    "clean": "bold green", "could not tell": "magenta",
}  # fmt: skip
_WORDS = {"unknown": "could not tell"}
_NOTES = 6  # notes that are printed without --notes
_EVIDENCE = 8  # lines of evidence that are printed


@with_run_options(model=False, still=True)
def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, GGUF files, org/name@revision, or demo:smollm2.", metavar="MODEL…", show_default=False),
    ] = None,
    *,
    run: RunOptions,
    json: Json = False,
    sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0, which code hosts show.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="Consent to a verdict: `suspicious`, the only one there can be consent to.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A YAML file: which rules fail, which formats and licences pass.")] = None,
    reference: Annotated[str | None, typer.Option(help="A model to compare with: its base, or the official copy.")] = None,
    explain: Annotated[str | None, typer.Option(help="Explain a rule and scan nothing; `all` lists them.")] = None,
    out: Annotated[str | None, typer.Option("-o", "--out", help="Also write what is printed for machines here.")] = None,
    notes: Annotated[bool, typer.Option("--notes", help="Print every note as well.")] = False,
) -> int:
    """Read every file whole, run nothing, and say: clean, suspicious, malicious, broken, or could not tell.

    Exit code 0 for clean, 1 for suspicious, malicious and broken, 2 for could not tell.
    """
    if explain is not None:
        return _explain(explain, json)
    if not models:
        raise UsageError("no model given", hint="weightsmith scan MODEL, or --explain RULE")
    consented = consent(allow)
    from ..jobs import scan

    records = []
    for model in models:
        record = scan(model, policy=policy, reference=reference, options=run)
        records.append(record)
        if not json and not sarif:
            _print(record, notes)
    machine = _for_machines(records, sarif)
    if json or sarif:
        print_json(machine)
    if out is not None:
        from ..storage import write_whole

        write_whole(Path(out), dumped(machine))
    return exit_code(records, consented)


def exit_code(records: list[ScanRecord], allow: Sequence[str]) -> int:
    """1 for any bad verdict that nobody consented to, else 2 for any that could not be told, else 0."""
    from ..found import EXIT_CODES

    codes = {EXIT_CODES[r.verdict] for r in records if r.verdict not in allow}
    return 1 if 1 in codes else max(codes, default=0)


def _for_machines(records: list[ScanRecord], as_sarif: bool) -> Any:
    if as_sarif:
        from ..report.sarif import sarif

        return sarif(records)
    many = [r.model_dump(by_alias=True) for r in records]
    return many[0] if len(many) == 1 else many


def dumped(value: Any) -> bytes:
    """JSON that may hold stray surrogates of file names, as escapes."""
    import json

    return json.dumps(value, indent=1, ensure_ascii=True).encode() + b"\n"


def _print(record: ScanRecord, notes: bool) -> None:
    screen = console()
    unread = sum(f.sha256 is None for f in record.files)
    whole = f"but for {unread} read whole" if unread else "read whole"
    screen.print(f"[bold]{plain(record.model)}[/]  {several(len(record.files), 'file')}, {gigabytes(record.bytes)}, {whole}")
    shown = [f for f in record.findings if f.severity != "note"]
    quiet = [f for f in record.findings if f.severity == "note"]
    for number, finding in enumerate(shown):
        _print_finding(screen, finding)
        rule = record.rules.get(finding.rule)
        last = number + 1 == len(shown) or shown[number + 1].rule != finding.rule
        if rule is not None and last:  # said once, after the last finding of the rule
            _indented(screen, f"[dim]{plain(rule.why)}[/]")
            _indented(screen, f"→ {plain(rule.action)}")
    for finding in quiet if notes else quiet[:_NOTES]:
        _print_finding(screen, finding)
    if len(quiet) > _NOTES and not notes:
        screen.print(f"[dim]… and {several(len(quiet) - _NOTES, 'more note')}; --notes prints them[/]")
    for line in record.unchecked:
        screen.print(f"[dim]not checked: {plain(line)}[/]")
    look = _LOOK[record.verdict]
    screen.print(f"[{look}] {record.verdict} [/]  in {record.seconds:.2f} s" + (" (by your policy)" if record.policy else ""))


def _print_finding(screen: Any, finding: Finding) -> None:
    word = _WORDS.get(finding.severity, finding.severity)
    place = " · ".join(safe(p) for p in (finding.file, finding.place) if p)
    head = f"[{_LOOK[finding.severity]}]{word:>10}[/]  [bold]{plain(finding.rule)}[/]"
    screen.print(head + (f"  {plain(place)}" if place else ""))
    _indented(screen, plain(finding.message))
    for line in finding.evidence.splitlines()[:_EVIDENCE]:
        _indented(screen, f"[cyan]│ {plain(line)}[/]")


def _indented(screen: Any, text: str) -> None:
    from rich.padding import Padding

    screen.print(Padding(text, (0, 0, 0, 12), expand=False))


def _explain(name: str, json: bool) -> int:
    from ..trust.gate import all_rules

    rules = all_rules()
    if name != "all" and name not in rules:
        import difflib

        near = " or ".join(difflib.get_close_matches(name, rules, 3))
        raise UsageError(f"no rule is called {name!r}", hint=f"did you mean {near}?" if near else "--explain all lists them")
    chosen = rules if name == "all" else {name: rules[name]}
    if json:
        print_json({n: r.text.model_dump() for n, r in sorted(chosen.items())})
        return 0
    screen = console()
    for rule in sorted(chosen.values(), key=lambda r: r.name):
        word = _WORDS.get(rule.severity, rule.severity)
        screen.print(f"[bold]{rule.name}[/]  [{_LOOK[rule.severity]}]{word}[/]\n  {plain(rule.title)}")
        if name != "all":
            screen.print(f"\n{plain(rule.why)}\n\n→ {plain(rule.action)}" + "".join(f"\n  {plain(s)}" for s in rule.see))
    return 0
