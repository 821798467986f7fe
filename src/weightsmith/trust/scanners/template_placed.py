"""Where a template puts what it is given: who is made to say it, and what is put beside it.

Messages stand under the role that they came with, results of tools end where they end, and contents in parts are written
down, or left out, but not replaced by anything else.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

from .template_probe import Behaviour, Seen
from .template_talk import GIVEN, SHAPES, word_of
from .template_words import known_words, strange_words

_ROLE = re.compile(r"(?<![/A-Za-z])(system|user|assistant)(?![A-Za-z])", re.IGNORECASE)
HEADER = 80  # characters before a message that may name its role
FEW = 2  # words behind the result of a tool: one may be a mark
#: keys and ids that stand beside the result of a tool
_BESIDE_RESULTS = "is error null status success ok call id abcdef end of result results tool"


def trial(behaviour: Behaviour) -> Iterator[Seen]:
    """Everything that stands at another place than it was given, or has something beside it."""
    if not behaviour.outputs or behaviour.unbounded:
        return
    yield from _roles(behaviour)
    yield from _results(behaviour)
    yield from _parts(behaviour)


def _roles(behaviour: Behaviour) -> Iterator[Seen]:
    """Two roles that are written down as each other. One that is written as another, alone, is honest: systems that are told
    in a user's turn, developers that are systems."""
    shape, text = behaviour.shapes.get("talk"), behaviour.outputs.get("talk", "")
    if shape is None or any(word_of(n) not in text for n in range(len(shape.roles))):
        return
    called: dict[str, set[str]] = {}
    at = 0
    for n, role in enumerate(shape.roles):
        begin = text.find(word_of(n), at)
        if begin < 0:
            return  # in another order
        # the last message of a role counts: before the first one a default text may stand
        called[role] = {found.lower() for found in _ROLE.findall(text[max(at, begin - HEADER) : begin])}
        at = begin + len(word_of(n))
    for one, other in itertools.combinations(called, 2):
        if one in called[other] - called[one] and other in called[one] - called[other]:
            yield Seen("role", f"messages of the {one} and of the {other}", evidence=text[-300:],
                       lost=f"they stand as those of the {other} and of the {one}")  # fmt: skip


def _results(behaviour: Behaviour) -> Iterator[Seen]:
    """What is said behind the result of a tool, before anybody else speaks."""
    shape, text = behaviour.shapes.get("tools"), behaviour.outputs.get("tools", "")
    if shape is None or "tool" not in shape.roles:
        return
    n = shape.roles.index("tool")
    _, found, after = text.rpartition(word_of(n))
    if not found:
        return
    after = after.partition(word_of(n + 1))[0]
    usual = known_words(*(behaviour.outputs.get(name, "") for name in ("plain", "talk", "answered")), _BESIDE_RESULTS)
    words = strange_words(after, usual, tuple(GIVEN.values()))
    if len(words) >= FEW:
        yield Seen("place", "the results of tools", (after.strip(),), evidence=after)


def _parts(behaviour: Behaviour) -> Iterator[Seen]:
    """Contents in parts: left out by templates that know only texts, but nothing is written in their place."""
    for name in ("plain", "talk"):
        shape = behaviour.shapes.get(name)
        if shape is None or shape.style != "text" or f"{name} in parts" in behaviour.shapes:
            continue
        text = behaviour.render(replace(shape, name="parts", style="parts"))
        said = [n for n in range(len(shape.roles)) if word_of(n) in behaviour.outputs[name]]
        if text is None or all(word_of(n) in text for n in said):
            continue
        usual = known_words(*(behaviour.outputs.get(one.name, "") for one in SHAPES))
        words = strange_words(text, usual, tuple(word_of(n) for n in said))
        if words:
            yield Seen("content", "contents that are given as parts", (" ".join(words[:12]),), evidence=text[-300:])
        else:
            lost = next(shape.roles[n] for n in said if word_of(n) not in text)
            yield Seen("", "it is given in parts, and the template takes texts only", lost=f"what the {lost} says",
                       evidence=text[-300:], light=True)  # fmt: skip
        return
