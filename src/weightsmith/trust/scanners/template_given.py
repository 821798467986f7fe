"""What a template does with what it is given beside messages: tools, calls and their arguments, documents, thoughts, names.

As with messages (:mod:`.template_probe`), other words there have to give the same text but for these words. What a tool is
called may decide how it is written down; that honest templates then write sentences of their own is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from .template_probe import FORMS, SOUP, Behaviour, Seen, is_control, text_lines
from .template_talk import GIVEN, Shape, word_of

MOST = 24  # strings that are looked for there, and are tried
COUNTS = (2, 3, 5, 9, 17)
ODD = (("user", "system"), ("system", "system", "user"), ("user", "user"), ("user", "assistant", "assistant", "user"), ("empty",),
       ("user", "empty", "user"), ("system",), ("user", "call", "tool", "tool", "call", "tool"), ("user", "calls"),
       ("user", "assistant", "tool"), ("developer", "developer", "user"))  # fmt: skip
_WORD = re.compile(r"[^\W\d_]{2,}")


def trial(behaviour: Behaviour) -> Iterator[Seen]:
    """Everything that the template does to what it is given beyond writing it down."""
    if not behaviour.outputs or behaviour.unbounded:
        return
    yield from _odd(behaviour)
    shapes = [behaviour.shapes[name] for name in ("tools", "documents", "named") if name in behaviour.shapes]
    for shape in shapes:
        if shape.tools or shape.documents:
            yield from _counts(behaviour, shape)
    tried: set[str] = set()
    while True:
        fresh = [SOUP] if not tried else [v for v in _looked_for(behaviour) if v not in tried]
        if not fresh or len(tried) > MOST:
            return
        for needle in fresh[: MOST + 1 - len(tried)]:
            tried.add(needle)
            seen = next((found for shape in shapes for found in _words(behaviour, shape, needle)), None)
            if seen is not None:
                yield seen
                if seen.added:
                    return


def _odd(behaviour: Behaviour) -> Iterator[Seen]:
    """Conversations that are seldom had, where the template takes them: no new lines."""
    for roles in ODD:
        base = behaviour.shapes.get("tools" if {"call", "calls", "tool"}.intersection(roles) else "plain")
        if base is None:
            continue
        # without a message of the system some templates say that there are tools
        usual = [text for name, text in behaviour.outputs.items() if base.tools or not behaviour.shapes[name].tools]
        led = ("system",) if base.tools and base.roles[0] == "system" else ()
        shape = replace(base, name="odd", roles=(*led, *("user" if role == "empty" else role for role in roles)))
        text = behaviour.render(shape, {n: "" for n, role in enumerate(roles) if role == "empty"})
        words = set(_WORD.findall("\n".join(usual)))
        added = [line for line in _lines(text or "", shape, GIVEN) if _new(line, words)]
        if added:
            yield Seen("content", f"a conversation of {', '.join(roles)}", tuple(dict.fromkeys(added)))
            return


def _looked_for(behaviour: Behaviour) -> list[str]:
    """The strings that it compared anything with that was given, or that messages say; those that look like words."""
    known = [(kind, v) for kind, v in behaviour.needles if isinstance(v, str) and kind in ("given", "content")]
    return list(dict.fromkeys(v for _, v in sorted(known, key=lambda n: n[0] != "given") if v.strip() and not is_control(v)))


def _words(behaviour: Behaviour, shape: Shape, needle: str) -> Iterator[Seen]:
    neutral = behaviour.outputs[shape.name]
    for form in FORMS[:1] if needle is SOUP else FORMS[:2]:
        given = {name: form.format(usual, needle) for name, usual in GIVEN.items()}
        text = behaviour.render(shape, given=given)
        if text is None:
            continue
        expected = neutral
        for n, usual in enumerate(GIVEN.values()):
            expected = expected.replace(usual, f"\0{n}\0")
        for n, value in enumerate(given.values()):
            expected = expected.replace(f"\0{n}\0", value)
        if text == expected:
            continue
        words = set(_WORD.findall(" ".join((expected, *given.values(), *behaviour.lines))))
        added = [line for line in _lines(text, shape, given) if _new(line, words)]
        what = "a tool, document, thought or name" + ("" if needle is SOUP else f" that holds {needle[:80]!r}")
        if added:
            yield Seen("given", what, tuple(dict.fromkeys(added)))
        elif form == FORMS[0] and not re.search(r"""["'\\&<>]""", needle):
            gone = [name for name, value in given.items() if GIVEN[name] in neutral and value not in text]
            if gone:
                yield Seen("given", what, lost=f"the {gone[0]} is not in the text as it was given", evidence=text[-300:])


def _counts(behaviour: Behaviour, shape: Shape) -> Iterator[Seen]:
    """Several tools or documents: no new lines but for their words."""
    words = set(_WORD.findall("\n".join(behaviour.outputs.values())))
    for count in COUNTS:
        more = replace(shape, tools=count if shape.tools else 0, documents=count if shape.documents else 0)
        text = behaviour.render(more)
        added = [line for line in _lines(text or "", more, GIVEN) if _new(line, words)]
        if added:
            yield Seen("given", f"{count} {'tools' if shape.tools else 'documents'}", tuple(dict.fromkeys(added)))
            return


def _new(line: str, words: set[str]) -> bool:
    """Whether a line says more than ``words``: values stand in the middle of JSON, whose lines break where they are cut out."""
    return len(set(_WORD.findall(line)) - words) > 2


def _lines(text: str, shape: Shape, given: dict[str, str]) -> list[str]:
    return text_lines(text, (*given.values(), *(word_of(n) for n in range(len(shape.roles)))))
