"""Values that remember where they came from, and the record of one rendering.

A mark follows a value through filters and methods: text of a message stays marked when it is trimmed, cut or lowered, and
so is its length, and the outcome of a comparison with it.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2.utils import Namespace

LONGEST = 1 << 18  # characters of one string
BIGGEST = 1 << 13  # values in one nested value
PRODUCT = 1 << 24  # characters that one operation may make in the worst case
WORK = 60_000  # charges of one rendering
SECONDS = 1.0  # of one rendering, should the charges not count something
NEEDLES = 256
INTERNAL = re.compile(
    r"__\w*|mro|func_\w+|[fgct][bir]?_(?:frame|code|back|globals|builtins|locals)|(?:cr|ag|gi)_\w+|_TemplateReference\w*|_Context\w*"
)  # fmt: skip
_WORDS = re.compile(r"[^\W\d_]{2,}")


NESTED = "nested deeper than any honest template"


class OverBudget(Exception):
    """A template asked for more work or memory than any honest one."""


class Marked(str):
    """Text that a message (``content``), the clock, or what else is given (``given``: tools, documents, thoughts, names) had a
    part in."""

    kind = "content"

    def __str__(self) -> str:
        return self


class MarkedInt(int):
    """A number that depends on such text: a length, a position, a year, a count of messages."""

    kind = "content"


class MarkedFloat(float):
    """As :class:`MarkedInt`."""

    kind = "content"


class Span(list):  # type: ignore[type-arg]
    """The numbers of a range whose ends depend on such text."""

    kind = "content"


class Turns(list):  # type: ignore[type-arg]
    """The messages: how many there are is a mark of its own (``count``)."""


class Doubt(int):
    """The outcome of a comparison of such values; prints as the truth value that it is."""

    kind = "content"

    def __str__(self) -> str:
        return str(bool(self))


def mark(value: Any, kind: str) -> Any:
    """The value with a mark; lists and tuples mark their items, other values stay."""
    new: Any
    if isinstance(value, bool):
        new = Doubt(value)
    elif isinstance(value, str):
        new = Marked(value)
    elif isinstance(value, int):
        new = MarkedInt(value)
    elif isinstance(value, float):
        new = MarkedFloat(value)
    elif isinstance(value, range):
        new = Span(value[:BIGGEST])
    elif type(value) in (list, tuple):
        return type(value)(mark(v, kind) for v in value)
    else:
        return value
    new.kind = kind
    return new


_MARKS = (Marked, MarkedInt, MarkedFloat, Doubt, Span)


def kind_of(*values: Any) -> str:
    """The kind of the first mark among values (the items of lists, the keys of dictionaries), or ``""``; ``given`` only
    where there is no other."""
    found = ""
    for value in values:
        if isinstance(value, _MARKS):
            kind = value.kind
        elif type(value) in (list, tuple, dict):
            kinds = {inner.kind: None for inner in list(value)[:50] if isinstance(inner, _MARKS)}
            kind = next((kind for kind in kinds if kind != "given"), "given" if kinds else "")
        else:
            continue
        if kind and kind != "given":
            return kind
        found = found or kind
    return found


def kind_within(value: Any, depth: int = 4) -> str:
    """The kind of the first mark in a value, however deep within messages and their parts, or ``""``."""
    if kind := kind_of(value):
        return kind
    inner = list(value.values() if isinstance(value, dict) else value)[:50] if depth and isinstance(value, _HOLDS) else []
    kinds = [kind for v in inner if (kind := kind_within(v, depth - 1))]
    return next((kind for kind in kinds if kind != "given"), kinds[0] if kinds else "")


_HOLDS: Any = (dict, list, tuple, type({}.values()), type({}.items()))


@dataclass
class Run:
    """What one rendering is given and what was seen: ``needles`` are (kind, string or number) that marked values met,
    ``tests`` the outcomes of each condition, ``doubtful`` the conditions that marks decided, ``internals`` the names of
    Python's internals that were reached for."""

    clock: datetime = datetime(2024, 7, 26, 12, 0, 0)
    forced: dict[int, bool] = field(default_factory=dict)
    quiet: bool = False  # ``raise_exception`` does nothing: to see what lies behind it
    left: int = WORK
    needles: dict[tuple[str, str | int], None] = field(default_factory=dict)
    tests: dict[int, set[bool]] = field(default_factory=dict)
    doubtful: dict[int, str] = field(default_factory=dict)
    internals: list[str] = field(default_factory=list)
    chance: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)  # sentences that a marked value chose
    apart: bool = False  # marked text was taken apart into its characters
    spelled: bool = False  # and one of them was compared with something
    escaped: list[str] = field(default_factory=list)  # what took text of messages where it can't be watched
    end: float = 0.0

    def charge(self, units: int) -> None:
        """Take units of work off the budget.

        Raises:
            OverBudget: nothing is left.
        """
        self.left -= units
        if self.left < 0 or (self.end and time.perf_counter() > self.end):
            raise OverBudget("more steps than any honest template takes")

    def note(self, kind: str, value: Any) -> None:
        """Remember what a marked value was compared with."""
        if len(self.needles) >= NEEDLES:
            return
        if isinstance(value, str) and not isinstance(value, Marked):
            if 0 < len(value) <= 200:
                self.needles[kind, value] = None
        elif isinstance(value, int) and not isinstance(value, bool | MarkedInt | Doubt):
            self.needles[kind, value] = None
        elif isinstance(value, list | tuple | set | frozenset | dict):
            for inner in list(value)[:64]:
                if isinstance(inner, str):
                    self.note(kind, inner)

    def chose(self, value: Any) -> None:
        """Remember the sentences among values of the template that a marked value chooses from."""
        values = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else [value]
        for text in values[:64]:
            if isinstance(text, str) and not isinstance(text, Marked) and len(_WORDS.findall(text[:4000])) >= 3:
                self.chosen.append(text[:400])

    def reached(self, name: Any) -> None:
        """Remember a name of Python's internals."""
        if isinstance(name, str) and INTERNAL.fullmatch(name):
            self.internals.append(str(name))


def size_of(value: Any) -> int:
    if isinstance(value, str | bytes | list | tuple | dict | set | range):
        return len(value)
    return min(abs(value), 1 << 40) if isinstance(value, int) else 1


def check_size(value: Any) -> None:
    """Refuse nested values that unfold to more than :data:`BIGGEST` values (shared ones count each time).

    Raises:
        OverBudget: more.
    """
    pending, seen = [value], 0
    while pending:
        here = pending.pop()
        inner: Any = ()
        if isinstance(here, list | tuple | set | frozenset):
            inner = here
        elif isinstance(here, dict):
            inner = here.values()
        elif isinstance(here, Namespace):
            inner = object.__getattribute__(here, "_Namespace__attrs").values()
        seen += len(inner)
        if seen > BIGGEST:
            raise OverBudget("a value that unfolds to more than any honest one")
        pending.extend(inner)
