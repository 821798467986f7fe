"""How often the refusal scorer errs on labelled answers; writes the calibration that ships.

    python benchmarks/scorers.py --labels FILE [FILE ...] [--write]     own labelled answers, one JSON object a line
    python benchmarks/scorers.py [--write]                              from the answers that ship, and pyrit if it is there

A row of FILE has id, split, model, variant, prompt_set, prompt, system, decoding, answer, answer_long, ended, ended_long,
label_a, label_b and label. With ``--write`` the verdicts, the digests and the harmless texts go to
``measure/shipped/refusal_answers.jsonl`` and the figures to ``measure/shipped/scorer_errors.json``. Rows with the split
``test`` are held out: the rules were written with ``dev`` rows before anybody ran them on the others.

Prediction, before any label was seen: kappa 0.80 for refuses-or-not on held-out prompts, its lower end near 0.7, since about
one answer in five refuses; the substring list 0.15 below; four classes 0.65, with *off-topic* the worst. Found with the ``dev``
rows: 0.86 [0.77, 0.93] before a label was read and 0.92 after the rules were mended with them; substrings 0.61; four classes
0.73, then 0.81, *off-topic* the worst.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import weightsmith
from weightsmith.errors import MissingExtra
from weightsmith.measure.calibration import (
    ANSWERS,
    CLASSES,
    ERRORS,
    LABELLED,
    Labelled,
    judged,
    outside_figures,
    own_figures,
    shipped_answers,
)
from weightsmith.measured import ErrorFigure

HERE = Path(weightsmith.__file__).parent
DOCS = Path(__file__).resolve().parents[1] / "docs" / "scorers.md"
OPEN, CLOSE = "<!-- figures: written by benchmarks/scorers.py --write -->", "<!-- end of figures -->"


def read_labels(paths: Sequence[str]) -> list[Labelled]:
    """The rows of label files with their verdicts, in order of their ids."""
    rows = {}
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            row = judged(json.loads(line))
            rows[row.id] = row
    return [rows[i] for i in sorted(rows)]


def confusion(rows: Sequence[Labelled]) -> str:
    """Labels down, verdicts across."""
    counts = Counter((r.label, r.verdict) for r in rows)
    head = f"{'label / verdict':16}" + "".join(f"{c:>12}" for c in CLASSES)
    return "\n".join([head, *(f"{a:16}" + "".join(f"{counts[a, b]:12}" for b in CLASSES) for a in CLASSES)])


def table(found: dict[str, list[ErrorFigure]]) -> str:
    """One line a figure."""
    return "\n".join(f"{name:11} {f.data[:60]:60} {f.figure[:46]:46} {f.value:6.3f} [{f.low:.3f}, {f.high:.3f}]  n {f.n}"
                     for name, figures in found.items() for f in figures)  # fmt: skip


def markdown(found: dict[str, list[ErrorFigure]]) -> str:
    """The figures as Markdown tables: one row a scorer and set of answers, then the classes."""
    names = ("kappa", "sensitivity", "specificity", "kappa, four classes")
    rows = ["| reader | answers | n | " + " | ".join(names) + " |", "| --- " * 7 + "|"]
    others = ["", "| reader | answers | figure | value | n |", "| --- " * 5 + "|"]
    for reader, figures in found.items():
        by_data: dict[str, dict[str, ErrorFigure]] = {}
        for f in figures:
            by_data.setdefault(f.data, {})[f.figure] = f
        for data, named in by_data.items():
            if "kappa" in named:
                cells = [_cell(named[x]) if x in named else "" for x in names]
                rows.append(f"| {reader} | {data} | {named['kappa'].n} | " + " | ".join(cells) + " |")
            others += [f"| {reader} | {data} | {f.figure} | {_cell(f)} | {f.n} |" for f in named.values() if f.figure not in names]
    return "\n".join([*rows, *others])


def counted(rows: Sequence[Labelled]) -> str:
    """How many answers there are, and of what."""
    parts = []
    for split, name in (("test", "held out"), ("dev", "written with")):
        own = [r for r in rows if r.split == split]
        if own:
            labels = Counter(r.label for r in own)
            classes = ", ".join(f"{labels[c]} {c}" for c in CLASSES)
            parts.append(f"{name}: {len(own)} answers to {len({r.prompt for r in own})} prompts ({classes})")
    differ = sum(r.label_a != r.label_b for r in rows)
    return f"Own answers, {'; '.join(parts)}. The two readings differ on {differ} of {len(rows)}."


def _cell(f: ErrorFigure) -> str:
    return f"{f.value:.2f} [{f.low:.2f}, {f.high:.2f}]"


def outside() -> dict[str, list[ErrorFigure]]:
    """Figures on the human-labelled set; without the package, those that ship already."""
    try:
        return outside_figures()
    except MissingExtra as error:
        print(f"{error.message}; its figures stay as they are")
        path = HERE / ERRORS
        kept = json.loads(path.read_text(encoding="utf-8"))["scorers"] if path.is_file() else {}
        return {name: [f for f in map(ErrorFigure.model_validate, rows) if f.data.startswith("labelled by people")]
                for name, rows in kept.items()}  # fmt: skip


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--labels", nargs="+", default=[])
    words.add_argument("--write", action="store_true")
    words.add_argument("--wrong", action="store_true", help="show the answers whose verdict is not the label")
    given = words.parse_args()
    rows = read_labels(given.labels) if given.labels else shipped_answers()
    figures = own_figures(rows)
    for name, more in outside().items():
        figures.setdefault(name, []).extend(more)
    for split in sorted({r.split for r in rows}):
        print(f"{split}\n{confusion([r for r in rows if r.split == split])}\n")
    print(table(figures))
    for row in rows if given.wrong else ():
        if row.verdict != row.label:
            print(f"\n{row.id} label {row.label} ({row.label_a}, {row.label_b}), verdict {row.verdict}: {row.prompt}\n"
                  f"  {row.answer or '(text not kept)'}")  # fmt: skip
    if given.write:
        lines = [json.dumps(r.model_dump(exclude_none=True) | {"system": r.system}, ensure_ascii=False, sort_keys=True)
                 for r in rows]  # fmt: skip
        (HERE / ANSWERS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        record = {"made_by": "benchmarks/scorers.py", "labels": LABELLED,
                  "scorers": {name: [f.model_dump() for f in found] for name, found in figures.items()}}  # fmt: skip
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (HERE / ERRORS).write_text(f"{text}\n", encoding="utf-8")
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(OPEN)
        _, _, after = rest.partition(CLOSE)
        DOCS.write_text(f"{before}{OPEN}\n{counted(rows)}\n\n{markdown(figures)}\n{CLOSE}{after}", encoding="utf-8")
        print(f"\n{len(rows)} answers, {sum(r.answer is not None for r in rows)} with their text, written")


if __name__ == "__main__":
    main()
