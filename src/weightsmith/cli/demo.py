"""``make demo``: a real model, one of its features found, enhanced and removed, both measured, one page to read.

Everything goes through the same jobs as the command line; nothing is prepared beforehand but the recipe.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from . import sandboxed
from .common import console, plain, progress
from .main import run_guarded

MODEL, FEATURE, OUT = "demo:smollm2", "melancholy", Path("demo-out")
REPORT_PROMPTS, ANSWER_TOKENS, TRIALS, SAFETY_PROMPTS = 40, 40, 12, 12
MARK = ".weightsmith-demo"


def main() -> None:
    """Run the demo and exit with the command line's codes."""
    sandboxed.own_process()
    sys.exit(run_guarded(lambda: demo(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)))


def demo(out: Path) -> int:
    """The demo; ``out`` receives the direction, both models, the report and its JSON."""
    from .. import jobs
    from ..direction import load_direction
    from ..jobs.measure import Session
    from ..jobs.measured import save_record, save_report
    from ..options import RunOptions

    screen, begun = console(), time.perf_counter()
    spent: dict[str, float] = {}
    _fresh(out)
    entered = sandboxed.enter(__name__ if __name__ != "__main__" else "weightsmith.cli.demo",
                              {"sandbox": True, "quiet": False, "offline": False},
                              {"model": MODEL, "feature": FEATURE, "out": out}, lambda tell: RunOptions(progress=tell))  # fmt: skip
    if entered.code is not None:
        return entered.code

    def log(step: str, seconds: float) -> None:
        if seconds >= 1.0:
            screen.print(f"  [green]✓[/] {plain(step)} [dim]{seconds:.1f} s[/]")

    def timed(name: str, start: float) -> None:
        spent[name] = time.perf_counter() - start

    with progress(log=log) as tell:
        run = RunOptions(progress=tell)
        screen.print(f"[bold]1. Get the model[/]  {MODEL}, checked against its pinned digest")
        start = time.perf_counter()
        facts = jobs.describe_model(MODEL, run)
        screen.print(f"  {facts['parameters'] / 1e6:.0f} M weights, {facts['layers']} layers, {facts['source']['licence']}")
        timed("getting the model", start)

        screen.print(f"[bold]2. Find {FEATURE}[/]  96 prompts to extract, 48 to select, {REPORT_PROMPTS} of 48 to report")
        start = time.perf_counter()
        path = out / f"{FEATURE}.safetensors"
        direction = jobs.find(MODEL, FEATURE, path, trial_prompts=TRIALS, options=run)
        for kind in ("add", "remove"):
            chosen = direction.meta.best(kind)
            if chosen:
                screen.print(f"  {kind}: vector of layer {chosen.source}, layers {min(chosen.layers)}–{max(chosen.layers)}, "
                             f"amount {chosen.amount:g}")  # fmt: skip
        timed("finding", start)

        screen.print("[bold]3. Write two new models[/]  untouched tensors are copied byte for byte")
        start = time.perf_counter()
        wishes: dict[str, dict[str, Any]] = {"enhanced": {"add": "auto"}, "removed": {"remove": "auto"}}
        for name, wish in wishes.items():
            record = jobs.edit(MODEL, load_direction(path), out / name, options=run, **wish)
            added = sum(t.added for t in record.tensors)
            screen.print(f"  {out / name}: {len(record.tensors) - added} tensors changed, {added} added")
        timed("editing", start)

        screen.print(f"[bold]4. Measure all three[/]  {REPORT_PROMPTS} report prompts, twice, {ANSWER_TOKENS} tokens, greedy")
        start = time.perf_counter()
        session = Session(MODEL, FEATURE, direction=direction, suite=_suite(), options=run)
        records = [session.compare(out / name, title=name) for name in wishes]
        timed("measuring", start)
    save_record(records, out / "report.json")
    save_report(records, out / "report.html", title="Melancholy, enhanced and removed")
    _show(screen, records)
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in spent.items())
    screen.print(f"\n[dim]{time.perf_counter() - begun:.0f} s in all: {parts}[/]")
    screen.print(f"[bold]The report:[/] {plain(str((out / 'report.html').absolute()))}")
    return 0


def _suite() -> Any:
    """A small suite: the feature on all its prompts, and safety on a few of them."""
    from ..measure.suites import Suite

    return Suite("demo", n=REPORT_PROMPTS, tokens=ANSWER_TOKENS, safety=SAFETY_PROMPTS, longer=0)


def _fresh(out: Path) -> None:
    """Clear what an earlier demo left, and nothing else."""
    from ..storage import refuse_existing

    if (out / MARK).is_file():
        shutil.rmtree(out)
    refuse_existing(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("made by `make demo`; it may be removed and is overwritten by the next demo\n")


def _show(screen: Any, records: list[Any]) -> None:
    """Three answers side by side, and the headline figures."""
    from rich.table import Table

    enhanced, removed = records
    table = Table("prompt", "base", "enhanced", "removed", show_lines=True, expand=True)
    for a, b in list(zip(enhanced.answers, removed.answers, strict=True))[:3]:
        table.add_row(*(plain(t.strip()) for t in (a.prompt, a.base, a.edited, b.edited)))
    screen.print(table)
    for record in records:
        for d in record.differences:
            if d.group == FEATURE and d.name == "sentiment":
                screen.print(f"{record.title}, {d.condition}: sentiment {d.base.value:+.2f} → {d.edited.value:+.2f}  "
                             f"(change {d.value:+.2f} \\[{d.low:+.2f}, {d.high:+.2f}], n = {d.n}): {d.verdict}")  # fmt: skip
            if d.group == FEATURE and d.name == "degenerate":
                screen.print(f"  degenerate answers {d.base.value:.0%} → {d.edited.value:.0%}")
        kl = next(m for m in record.damage if m.key == f"{FEATURE}.kl.mean")
        screen.print(f"  {kl.name}: {kl.value:.3f} \\[{kl.low:.3f}, {kl.high:.3f}] {kl.unit}")
        safety = {d.key: d for d in record.differences}
        for key, what in (("safety.harmful.complies", "harmful requests complied with"),
                          ("safety.harmless.refuses", "harmless ones refused")):  # fmt: skip
            d = safety[key]
            screen.print(f"  {what}: {d.base.value:.0%} → {d.edited.value:.0%} (n = {d.n}): {d.verdict}")


if __name__ == "__main__":
    main()
