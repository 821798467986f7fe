"""What a template asks for by names of its own: attributes of messages and documents, arguments and parameters, dates, roles.

Conversations hold what clients usually send. What else a template asks for stands in its source, so it is given that too: a
value under each such name, and a message of each role that it compares with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from .template_given import TYPE_WORDS
from .template_probe import DATES, Behaviour, Seen
from .template_talk import ASKED, GIVEN, Shape, word_of
from .template_words import known_words, strange_words, text_lines

MOST = 8  # names that are given one by one, and roles
_DATED = re.compile(r"(?i)(?:.*_)?(?:date|time|today|now|day|year|month)(?:_.*)?")
FEW = 2  # words: a name and a key
_ANY = "amount"  # an argument with a number, where it asks for none by its name
_KNOWN = ("user", "assistant", "system", "tool")
DAYS = ("2020-01-01", "26 Jul 2024", "31 Dec 2099", "2099-12-31")


def trial(behaviour: Behaviour) -> Iterator[Seen]:
    """Lines that are there only when something has a name that the template knows."""
    if not behaviour.outputs or behaviour.unbounded:
        return
    words = known_words(*behaviour.outputs.values(), *behaviour.lines, TYPE_WORDS, " ".join((_ANY, *behaviour.program.names)))
    yield from _attributes(behaviour, words)
    yield from _roles(behaviour, words)
    yield from _dates(behaviour)


def _attributes(behaviour: Behaviour, words: set[str]) -> Iterator[Seen]:
    names = behaviour.program.names or (_ANY,)
    base = behaviour.shapes.get("tools") or behaviour.shapes.get("talk") or behaviour.shapes.get("plain")
    if base is None:
        return
    more = behaviour.shapes.get("documents") if "document" in behaviour.program.source else None
    number = max(behaviour.program.numbers, default=0) + 1
    for shape in filter(None, (base, more)):
        together = replace(shape, name="asked for", asked=names, number=number)
        pending = [together]
        if behaviour.render(together) is None:  # one of them is no text where it is known: one by one
            pending = [replace(together, asked=(name,)) for name in names[:MOST]]
        for one in pending:
            text = behaviour.render(one)
            added = _added(text, one, words)
            if added:
                asked = ", ".join(one.asked[:6])
                yield Seen("given", f"a message, document, tool or argument that has {asked}", added)
                return


def _roles(behaviour: Behaviour, words: set[str]) -> Iterator[Seen]:
    base = behaviour.shapes.get("plain")
    if base is None:
        return
    others = [role for role in behaviour.program.roles if role not in _KNOWN][:MOST]
    turns = [("user", role) for role in ("system", *others)] + [("user", role, "user") for role in others]
    for roles in [*turns, ("number",)]:
        shape = replace(base, name="odd", roles=roles)
        added = _added(behaviour.render(shape), shape, words)
        if added:
            yield Seen("content", f"a conversation of {', '.join(roles)}", added)
            return


def _dates(behaviour: Behaviour) -> Iterator[Seen]:
    """Dates that a caller gives: nothing but the date may change."""
    shape = behaviour.shapes.get("talk") or behaviour.shapes.get("plain")
    if shape is None:
        return
    for name in sorted(name for name in behaviour.program.free if _DATED.fullmatch(name))[:MOST]:
        before: set[str] | None = None
        for day in DAYS:
            text = behaviour.render(replace(shape, name="dated", more={**shape.more, name: day}))
            lines = {DATES.sub("#", line): line for line in behaviour.text_lines((text or "").replace(day, "#"), shape)}
            added = [line for masked, line in lines.items() if before is not None and masked not in before]
            if added:
                yield Seen("clock", f"{name} {day!r}", tuple(added))
                return
            before = set(lines) if before is None else before


def _added(text: str | None, shape: Shape, words: set[str]) -> tuple[str, ...]:
    inputs = (*GIVEN.values(), ASKED, *(word_of(n) for n in range(len(shape.roles))))
    return tuple(dict.fromkeys(line for line in text_lines(text or "", inputs) if len(strange_words(line, words)) > FEW))
