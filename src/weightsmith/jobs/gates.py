"""Conditions on figures, for continuous integration: a small language, read by a scanner and nothing else.

::

    condition  = term { ("and" | "or") term }          "and" binds tighter than "or"; no brackets
    term       = figure relation number
    relation   = ">" | ">=" | "<" | "<=" | "==" | "!="
    figure     = [LETTER ":"] ( key [part] | "delta(" key ")" [part] )
    key        = a figure's key, in double quotes where it holds spaces or any of <>=!():
    part       = ".value" | ".low" | ".high" | ".n" | ".p" | ".p_holm" | ".delta" [".low" | ".high" | ".value"]

A figure that is not finite, not there, or that has no such part is an error: no condition passes for want of a number.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne

from ..compared import Cell, Change, CompareRecord, Condition, ConditionFigure, Row
from ..errors import UsageError

#: longest condition that is read
MOST = 2000
HINT = 'for example "kl.mean.low > 0.05" or "safety.harmful.refuses.high < 0.9 or delta(kl.mean) > 0.01"'

_RELATIONS: dict[str, Callable[[float, float], bool]] = {">": gt, ">=": ge, "<": lt, "<=": le, "==": eq, "!=": ne}
_FIGURE = re.compile(
    r'\s*(?:(?P<label>[A-Z]):)?(?:(?P<delta>delta)\s*\(\s*)?(?:"(?P<quoted>[^"]+)"|(?P<word>[^\s<>=!():"]+))'
    r"(?P<close>\s*\))?(?P<part>(?:\.[a-z_]+)*)",
)
_RELATION = re.compile(r"\s*(>=|<=|==|!=|>|<)")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?=\s|$)", re.ASCII)
_JOIN = re.compile(r"\s+(and|or)(?=\s)")
_CELL = ("value", "low", "high", "n")
_CHANGE = ("value", "low", "high", "n", "p", "p_holm")
_PARTS = (*_CELL, "p", "p_holm", "delta", "delta.value", "delta.low", "delta.high")


@dataclass(frozen=True)
class Term:
    """One comparison of a figure with a number; ``key`` may still end in its part, which only the figures can tell."""

    figure: str
    label: str
    delta: bool
    key: str
    part: str
    relation: str
    limit: float


@dataclass(frozen=True)
class Gate:
    """A condition that was read: true if all terms of any of its ``groups`` are."""

    expression: str
    groups: tuple[tuple[Term, ...], ...]


def read_gate(expression: str) -> Gate:
    """Read one condition.

    Raises:
        UsageError: it is not of the grammar, with the place where it stops being so.
    """
    if len(expression) > MOST:
        raise UsageError(f"a condition of {len(expression)} characters; at most {MOST} are read")
    groups: list[list[Term]] = [[]]
    at = 0
    while True:
        term, at = _term(expression, at)
        groups[-1].append(term)
        if not expression[at:].strip():
            return Gate(expression, tuple(tuple(g) for g in groups))
        joined = _JOIN.match(expression, at)
        if joined is None:
            raise _unreadable(expression, at, "and, or, or the end")
        if joined[1] == "or":
            groups.append([])
        at = joined.end()


def _term(text: str, at: int) -> tuple[Term, int]:
    found = _FIGURE.match(text, at)
    if found is None or found["word"] in ("and", "or"):
        raise _unreadable(text, at, "a figure")
    if bool(found["delta"]) != bool(found["close"]):
        raise _unreadable(text, at, "a closing bracket" if found["delta"] else "no bracket but that of delta(…)")
    relation = _RELATION.match(text, found.end())
    if relation is None:
        raise _unreadable(text, found.end(), "one of > >= < <= == !=")
    number = _NUMBER.match(text, relation.end())
    if number is None or not math.isfinite(float(number[1])):
        raise _unreadable(text, relation.end(), "a number")
    key = found["quoted"] or found["word"]
    return Term(found[0].strip(), found["label"] or "", bool(found["delta"]), key, found["part"][1:], relation[1],
                float(number[1])), number.end()  # fmt: skip


def _unreadable(text: str, at: int, wanted: str) -> UsageError:
    rest = text[at:].strip()
    place = f"at {rest[:40]!r}" if rest else "at its end"
    return UsageError(f"can't read the condition {text[:120]!r} {place}: expected {wanted}", hint=HINT)


def judge(gate: Gate, record: CompareRecord) -> Condition:
    """Whether a condition holds for the figures of a comparison; every term is looked up, whatever the others say.

    Raises:
        UsageError: an unknown key, letter or part, or a figure that is not there or not finite.
    """
    figures: list[ConditionFigure] = []
    fails = False
    for group in gate.groups:
        rows = [_look_up(term, record) for term in group]
        fails |= all(f.holds for f in rows)
        figures += rows
    return Condition(expression=gate.expression, fails=fails, figures=figures)


def _look_up(term: Term, record: CompareRecord) -> ConditionFigure:
    labels = [f.label for f in record.files]
    label = term.label or labels[-1]
    if label not in labels:
        raise UsageError(f"{term.figure}: there is no file {label}", hint=f"the files are {', '.join(labels)}")
    row, part = _row(term, record)
    at = labels.index(label)
    number = _of_delta(term, row, part, at, label) if term.delta else _of_cell(term, row, part, at, label)
    if number is None or not math.isfinite(number):
        raise UsageError(f"{term.figure} is {number} in {label}: no number that a condition can be judged by")
    return ConditionFigure(figure=term.figure, label=label, value=float(number), relation=term.relation, limit=term.limit,
                           holds=_RELATIONS[term.relation](float(number), term.limit))  # fmt: skip


def _row(term: Term, record: CompareRecord) -> tuple[Row, str]:
    """The row that is meant and the part of its figure; the longest key that is known counts."""
    rows = {row.key: row for row in record.rows}
    pieces = term.key.split(".")
    for cut in range(0, min(3, len(pieces))):
        key = ".".join(pieces[: len(pieces) - cut])
        if key in rows:
            part = ".".join([*pieces[len(pieces) - cut :], *([term.part] if term.part else [])])
            known = _CHANGE if term.delta else _PARTS
            if part and part not in known:
                raise UsageError(f"{term.figure}: {key} has no part .{part}", hint=f"one of .{', .'.join(known)}")
            return rows[key], part
    raise UsageError(f"no figure is called {term.key!r}", hint=_near(term.key, list(rows)))


def _near(key: str, known: list[str]) -> str:
    """What may have been meant: keys that are spelled alike, else those that hold its words."""
    near = difflib.get_close_matches(key, known, 4, 0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    words = {w for w in re.split(r"[^\w-]+", key.casefold()) if len(w) > 1}
    shared = sorted(known, key=lambda k: -len(words & set(re.split(r"[^\w-]+", k.casefold()))))[:6]
    return f"among the keys are {', '.join(shared)}" if shared else "the files have no figures"


def _of_cell(term: Term, row: Row, part: str, at: int, label: str) -> float | None:
    cell: Cell | None = row.cells[at]
    if cell is None:
        raise UsageError(
            f"{term.figure}: {label} has no figure {row.key}", hint="another file has it: name it by its letter"
        )
    if part in ("low", "high") and cell.interval == "none":
        raise UsageError(f"{term.figure}: {row.key} of {label} was measured without an interval, so it has no .{part}",
                         hint=f"{row.key}.value is its value")  # fmt: skip
    if part in ("", *_CELL):
        return float(getattr(cell, part or "value"))
    if cell.change is None:
        raise UsageError(f"{term.figure}: {row.key} of {label} is no difference from a base, so it has no .{part}",
                         hint=f"delta({row.key}) is the difference of two files")  # fmt: skip
    return _number(cell.change, part.removeprefix("delta").removeprefix("."))


def _of_delta(term: Term, row: Row, part: str, at: int, label: str) -> float | None:
    if not at:
        raise UsageError(f"{term.figure}: the first file has nothing to differ from", hint="give two files or more")
    against = row.against[at - 1]
    if against.change is None:
        raise UsageError(
            f"{term.figure}: {label} and A stand side by side ({against.why}): their difference was not tested"
        )
    return _number(against.change, part)


def _number(change: Change, part: str) -> float | None:
    found: float | None = getattr(change, part or "value")
    return found
