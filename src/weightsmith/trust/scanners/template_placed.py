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
from .template_talk import GIVEN, SHAPES, WORDS, word_of
from .template_words import known_words, strange_words

_ROLE = re.compile(r"(?<![/A-Za-z])(system|user|assistant)(?![A-Za-z])", re.IGNORECASE)
#: the marks of a system right before what it says: its name, and what closes the mark
_SYSTEM = re.compile(
    r"(?i)(?<![/_A-Za-z])(?:system|developer)(?:_TOKEN|_MESSAGE|_PROMPT)?"
    r"(?:[^A-Za-z\"'{}]|<\|(?:end_header_id|message|im_middle|end_of_role|header_end|im_sep)\|>){0,24}$"
)
_SAID = re.compile("|".join(word_of(n) for n in range(len(WORDS))))
HEADER = 80  # characters before a message that may name its role
FEW = 2  # words behind the result of a tool: one may be a mark
#: keys and ids that stand beside the result of a tool
_BESIDE_RESULTS = "is error null status success ok call id abcdef end of result results tool"


def trial(behaviour: Behaviour) -> Iterator[Seen]:
    """Everything that stands at another place than it was given, or has something beside it."""
    if not behaviour.outputs or behaviour.unbounded:
        return
    yield from _roles(behaviour)
    yield from _raised(behaviour)
    yield from _order(behaviour)
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


def _raised(behaviour: Behaviour) -> Iterator[Seen]:
    """What a user says, or a tool gives back, under the marks of the system, whose word counts more than theirs: whoever writes
    to the user, or a page that a tool reads, then speaks as the system. Systems told in a user's turn are no such thing."""
    for name, roles in (("talk", ("user",)), ("plain", ("user",)), ("answered", ("user",)), ("tools", ("user", "tool"))):
        shape, text = behaviour.shapes.get(name), behaviour.outputs.get(name, "")
        for n, role in enumerate(shape.roles if shape else ()):
            if role in roles and any(map(_SYSTEM.search, _heads(text, word_of(n)))):
                # a template that names no role of tools may end in the system's marks for whoever else there is
                light = role == "tool" and not re.search(r"""['"]tool['"]""", behaviour.program.source)
                yield Seen("role", f"messages of the {role}", lost="they stand as those of the system", evidence=text[-300:],
                           light=light)  # fmt: skip
                if not light:
                    return


def _heads(text: str, word: str) -> Iterator[str]:
    """What stands before a word wherever it occurs, from the message before on: a template may write it more than once."""
    for match in re.finditer(word, text):
        yield _SAID.split(text[max(0, match.start() - HEADER) : match.start()])[-1]


def _order(behaviour: Behaviour) -> Iterator[Seen]:
    """Messages of users and assistants in another order than they were said in; a system may be told at any place."""
    for name in ("talk", "answered", "thinking"):
        shape, text = behaviour.shapes.get(name), behaviour.outputs.get(name, "")
        said = [word_of(n) for n, role in enumerate(shape.roles if shape else ()) if role != "system"]
        if not all(word in text for word in said):
            continue
        at = 0
        for word in said:
            at = text.find(word, at)
            if at < 0:
                yield Seen("role", "messages of a conversation", lost="they stand in another order", evidence=text[-300:])
                return


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
