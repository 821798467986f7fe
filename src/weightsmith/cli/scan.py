"""``weightsmith scan``: what a model's files hold, before anything of it runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecipeError, UsageError, WeightsmithError
from ..options import RunOptions
from .common import Json, consent, console, gigabytes, plain, print_json, safe, several, with_run_options

if TYPE_CHECKING:
    from ..found import Finding, RuleText, ScanRecord

_LOOK = {
    "malicious": "bold white on red", "broken": "red", "unknown": "magenta", "suspicious": "yellow", "note": "dim",
    "clean": "bold green", "could not tell": "magenta",
}  # fmt: skip
_WORDS = {"unknown": "could not tell"}
_SUM = ("clean", "suspicious", "broken", "malicious", "could not tell", "not scanned")
_NOTES = 6  # notes that are printed without --notes
_EVIDENCE = 8  # lines of evidence that are printed
_ALIKE = 12  # findings of one rule that are printed
_INDENT = 12


@with_run_options(model=False, still=True)
def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, GGUF files, org/name@revision, or demo:smollm2.", metavar="MODEL", show_default=False),
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
    if json and sarif:
        raise UsageError("--json and --sarif are two forms of one thing", hint="choose one; the record holds more")
    consented = consent(allow)
    from ..trust import ahead

    if Path(models[0]).exists():
        ahead.begin(Path(models[0]))  # while the rest is imported
    from ..jobs import scan
    from ..storage import refuse_existing, write_whole

    if out is not None:
        refuse_existing(Path(out), folder=False)  # known before hours of reading
    told: list[ScanRecord | WeightsmithError] = []
    for model in models:
        try:
            record = scan(model, policy=policy, reference=reference, digests=not sarif and (json or out is not None),
                          options=replace(run, progress=_meanwhile(run, json or sarif)))  # fmt: skip
        except RecipeError:  # the policy's, and that is one for all
            raise
        except WeightsmithError as error:
            if len(models) == 1:
                raise
            told.append(error)
            sys.stdout.flush()  # in the order of the models, wherever the two go
            sys.stderr.write(f"error[{error.code}]: {safe(str(error))}\n")
            continue
        told.append(record)
        if not json and not sarif:
            _print(record, notes, consented)
    records = [t for t in told if not isinstance(t, WeightsmithError)]
    machine = _for_machines(told, sarif)
    if json or sarif:
        print_json(machine)
    elif len(models) > 1:
        _print_sum(told)
    if out is not None:
        write_whole(Path(out), dumped(machine))
        if not json and not sarif:
            sys.stdout.write(f"wrote {safe(out)}\n")
    code = exit_code(records, consented)
    return code if code == 1 else max([code, *(t.exit_code for t in told if isinstance(t, WeightsmithError))])


def _meanwhile(run: RunOptions, bare: bool) -> Callable[[str, int, int], None]:
    """Progress that also imports what the result will be printed with: while others read, this process has nothing to do."""

    def report(step: str, done: int, total: int) -> None:
        if not bare:
            import rich.console
            import rich.text  # noqa: F401
        run.report(step, done, total)

    return report


def exit_code(records: list[ScanRecord], allow: Sequence[str]) -> int:
    """1 for any bad verdict that nobody consented to, else 2 for any that could not be told, else 0."""
    from ..found import EXIT_CODES

    codes = {EXIT_CODES[r.verdict] for r in records if r.verdict not in allow}
    return 1 if 1 in codes else max(codes, default=0)


def _for_machines(told: Sequence[ScanRecord | WeightsmithError], as_sarif: bool) -> Any:
    """One record, or a list with one for each model; an error stands where its model's record would."""
    if as_sarif:
        from ..report.sarif import sarif

        return sarif([t for t in told if not isinstance(t, WeightsmithError)])
    many = [t.as_record() if isinstance(t, WeightsmithError) else t.model_dump(by_alias=True) for t in told]
    return many[0] if len(many) == 1 else many


def dumped(value: Any) -> bytes:
    """JSON that may hold stray surrogates of file names, as escapes."""
    import json

    return json.dumps(value, indent=1, ensure_ascii=True).encode() + b"\n"


def _print(record: ScanRecord, notes: bool, consented: Sequence[str]) -> None:
    screen = console()
    unread = sum(f.sha256 is None for f in record.files)
    whole = f"but for {unread} read whole" if unread else "read whole"
    screen.print(f"[bold]{plain(record.model)}[/]  {several(len(record.files), 'file')}, {gigabytes(record.bytes)}, {whole}")
    shown = [f for f in record.findings if f.severity != "note"]
    quiet = [f for f in record.findings if f.severity == "note"]
    for name, alike in groupby(shown, key=lambda f: f.rule):
        _print_alike(screen, list(alike), record.rules.get(name))
    for finding in quiet if notes else quiet[:_NOTES]:
        _print_finding(screen, finding)
    if len(quiet) > _NOTES and not notes:
        screen.print(f"[dim]… and {several(len(quiet) - _NOTES, 'more note')}; --notes prints them[/]")
    for line in record.unchecked:
        screen.print(f"[dim]not checked: {plain(line)}[/]")
    look = _LOOK[record.verdict]
    whose = [w for w, said in (("by your policy", record.policy), ("allowed by you", record.verdict in consented)) if said]
    screen.print(f"[{look}] {record.verdict} [/]  in {record.seconds:.2f} s" + (f" ({', '.join(whose)})" if whose else ""))


def _print_alike(screen: Any, findings: list[Finding], rule: RuleText | None) -> None:
    """The findings of one rule, and once what it means."""
    for finding in findings[:_ALIKE]:
        _print_finding(screen, finding)
    if len(findings) > _ALIKE:
        indented(screen, f"[dim]… and {len(findings) - _ALIKE} more; --json prints all[/]")
    if rule is not None:
        indented(screen, f"[dim]{plain(rule.why)}[/]")
        indented(screen, f"→ {plain(rule.action)}")


def _print_sum(told: Sequence[ScanRecord | WeightsmithError]) -> None:
    """One line on several models."""
    words = Counter("not scanned" if isinstance(t, WeightsmithError) else t.verdict for t in told)
    console().print(f"{len(told)} models: " + ", ".join(f"{words[w]} {w}" for w in sorted(words, key=_SUM.index)))


def _print_finding(screen: Any, finding: Finding) -> None:
    word = _WORDS.get(finding.severity, finding.severity)
    place = " · ".join(safe(p) for p in (finding.file, finding.place) if p)
    head = f"[{_LOOK[finding.severity]}]{word:>10}[/]  [bold]{plain(finding.rule)}[/]"
    beside = place and max(len(word), 10) + len(finding.rule) + len(place) + 4 <= screen.width
    screen.print(head + (f"  {plain(place)}" if beside else ""), soft_wrap=True)
    if place and not beside:
        indented(screen, plain(place))
    indented(screen, plain(finding.message))
    for line in finding.evidence.splitlines()[:_EVIDENCE]:
        indented(screen, f"[cyan]{plain(line)}[/]", bar="│ ")


def indented(screen: Any, text: str, by: int = _INDENT, bar: str = "") -> None:
    """Print text in lines that begin ``by`` columns to the right, after a ``bar``; none ends in spaces."""
    from rich.text import Text

    for line in Text.from_markup(text).wrap(screen, max(24, screen.width - by - len(bar))):
        line.rstrip()
        screen.print(Text.assemble(" " * by, (bar, "cyan"), line), soft_wrap=True)


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
