"""What a template does with what it is given beside messages: tools, calls and their arguments, documents, thoughts, names.

As with messages (:mod:`.template_probe`), other words there have to give the same text but for these words. What a tool is
called may decide how it is written down; that honest templates then write sentences of their own is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .template_marks import NESTED
from .template_probe import FORMS, SOUP, Behaviour, Seen, is_control
from .template_talk import ADDRESS, CALLING, GIVEN, PARTED, RICH, Shape, another, word_of
from .template_words import known_words, strange_words, text_lines, words_in

MOST = 24  # strings that are looked for there, and are tried
LONGEST = 64  # tools, documents, or characters of a name
FEW = 3  # words that no line has together: keys and types of tools
COUNTS = (2, 3, 4, 5, 9, 17)
ODD = (("user", "system"), ("system", "system", "user"), ("user", "user"), ("user", "assistant", "assistant", "user"), ("empty",),
       ("user", "empty", "user"), ("system",), ("user", "call", "tool", "tool", "call", "tool"), ("user", "calls"),
       ("user", "assistant", "tool"), ("developer", "developer", "user"), ("user", "twice", "tool", "tool"), ("assistant", "user"),
       ("user", "call", "ipython"), ("user", "call", "function"), ("nothing",), ("user", "call", "tool", "call"), ("links",),
       ("user", "call", "tool", "user", "assistant", "user"), ("user", "mute", "tool"), ("user", "spelled", "result"),
       ("user", "twice", "result", "result"), ("user", "begun"), ("pictures",), ("video",), ("audio",), ("three",))  # fmt: skip
CALLS = {*CALLING, "tool", "result"}
#: how templates write types down
TYPE_WORDS = (
    "string integer number boolean array object null none any enum minimum maximum default defaults items true url source score "
    "must be may can one of the a an to in is it optional required allowed possible listed following values value type types list "
    "retrieved taken from web page link at least most between and or with if not given set range"
)
#: types as programs call them, and keys of documents
_TYPES = frozenset((
    "str", "int", "float", "bool", "list", "dict", "tuple", "any", "array", "number", "boolean", "integer", "string", "object",
    "null", "url", "source", "score", "metadata", "optional", "required", "defaults", "must",
))  # fmt: skip
#: the keys of a tool as data
_SCHEMA_WORDS = "function name description parameters properties arguments tool tools documents title text doc id content role"
#: what honest templates speak of where several things are given together
_TOLD = re.compile(r"(?i)\b(?:tools?|functions?|think(?:ing)?|thoughts?|reason(?:ing)?|documents?|citations?|"
                   r"arguments?|parameters?)\b")  # fmt: skip
#: what is told together, which is seldom; not tools and documents, which a real template makes a tool of
TOGETHER: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (1, 0, {"enable_thinking": True, "thinking": True}), (1, 0, {"enable_thinking": False, "thinking": False}), (0, 1, {}),
    (0, 0, {"add_generation_prompt": False}), (0, 0, {"bos_token": "", "eos_token": ""}),
)


def trial(behaviour: Behaviour) -> Iterator[Seen]:
    """Everything that the template does to what it is given beyond writing it down."""
    if not behaviour.outputs or behaviour.unbounded:
        return
    yield from _odd(behaviour)
    yield from _together(behaviour)
    shapes = [behaviour.shapes[name] for name in ("tools", "documents", "named") if name in behaviour.shapes]
    for shape in shapes:
        if shape.tools or shape.documents:
            yield from _counts(behaviour, shape)
            yield from _types(behaviour, shape)
        if shape.tools:
            yield from _keys(behaviour, shape)
    tried: set[str | int] = set()
    while True:
        fresh = [SOUP] if not tried else [v for v in _looked_for(behaviour) if v not in tried]
        if not fresh:
            return
        if len(tried) > MOST:
            yield Seen("given", f"more than {MOST} strings that it looks for in tools, documents, thoughts or names", plain=True,
                       evidence=", ".join(map(repr, fresh))[:400])  # fmt: skip
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
    # without a message of the system some templates say that there are tools
    kinds = {name: shape.tools > 0 for name, shape in behaviour.shapes.items()}
    words = {True: known_words(*behaviour.outputs.values()),
             False: known_words(*(text for name, text in behaviour.outputs.items() if not kinds[name]))}  # fmt: skip
    for roles in ODD:
        base = behaviour.shapes.get("tools" if CALLS.intersection(roles) else "plain")
        if base is None:
            continue
        led = ("system",) if base.tools and base.roles[0] == "system" else ()
        shape = replace(base, name="odd", roles=(*led, *("user" if role == "empty" else role for role in roles)))
        text = behaviour.render(shape, {n: "" for n, role in enumerate(roles) if role == "empty"})
        if PARTED.intersection(roles) and re.search(r"""['"]type['"]: ?['"](?:image|video|audio|text)""", text or ""):
            continue  # a list that is written down as it is
        added = _added(text or "", shape, GIVEN, words[base.tools > 0], FEW)
        if added:
            yield Seen("content", f"a conversation of {', '.join(roles)}", tuple(dict.fromkeys(added)))
            return


def _together(behaviour: Behaviour) -> Iterator[Seen]:
    """Tools, documents and thinking in one conversation, and tools in a long one: no lines that none of them has alone, but
    for what is told of them (with tools, a reasoner is told where to think) and the tools as data."""
    base = behaviour.shapes.get("tools") or behaviour.shapes.get("talk")
    if base is None:
        return
    words = known_words(*behaviour.outputs.values(), TYPE_WORDS, _SCHEMA_WORDS)
    later = ("user", "assistant") * 4 + ("user",) if base.roles[-1] != "user" else ("assistant", "user") * 5
    long = replace(base, roles=(*base.roles, *later))
    tried = [(replace(base, tools=tools, documents=documents, more={**base.more, **more}), "several things given together")
             for tools, documents, more in TOGETHER]  # fmt: skip
    for number, (shape, what) in enumerate((*tried, (long, "tools in a long conversation"))):
        name = f"together {number}"
        text = behaviour.render(replace(shape, name=name))
        if text is not None:  # what it is told there is shown with what else it is told
            behaviour.shapes[name], behaviour.outputs[name] = shape, text
        added = [line for line in _lines(text or "", shape, GIVEN) if _new(line, words) and not _TOLD.search(line)]
        if added:
            yield Seen("content", what, tuple(dict.fromkeys(added)))
            return


def _looked_for(behaviour: Behaviour) -> list[str | int]:
    """What it compared anything with that was given, or strings that messages may say; strings that look like words."""
    given = [v for kind, v in behaviour.needles if kind == "given"]
    said = [v for kind, v in behaviour.needles if kind == "content" and isinstance(v, str)]
    return [v for v in dict.fromkeys((*given, *said[:MOST // 2]))
            if (0 < v <= LONGEST if isinstance(v, int) else bool(v.strip()) and not is_control(v))]  # fmt: skip


def _ways(needle: str | int) -> Iterator[tuple[bool, dict[str, str]]]:
    """Other words for everything that is given, and whether they hold the usual ones; for a number words of about that length."""
    if isinstance(needle, int):
        for length in (needle - 1, needle, needle + 1):
            yield False, {name: (usual * (1 + length // len(usual)))[:length] or "x" for name, usual in GIVEN.items()}
        return
    for form in FORMS[:1] if needle is SOUP else FORMS[:2]:
        yield form == FORMS[0], {name: form.format(usual, needle) for name, usual in GIVEN.items()}


def _words(behaviour: Behaviour, shape: Shape, needle: str | int) -> Iterator[Seen]:
    neutral = behaviour.outputs[shape.name]
    for holds, given in _ways(needle):
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
        words = known_words(expected, *given.values(), *behaviour.lines)
        added = _added(text, shape, given, words, 1)  # the text is known to be another one
        what = "a tool, document, thought or name" + ("" if needle is SOUP else f" that holds {str(needle)[:80]!r}")
        if added:
            yield Seen("given", what, tuple(dict.fromkeys(added)))
        elif holds and not re.search(r"""["'\\&<>]""", str(needle)):
            gone = [name for name, value in given.items() if GIVEN[name] in neutral and not _written(value, text)]
            if gone:
                yield Seen("given", what, lost=f"the {gone[0]} is not in the text as it was given", evidence=text[-300:])


def _written(value: str, text: str) -> bool:
    """Whether a value stands in a text as it is, or as JSON that is kept to ASCII has it."""
    return value in text or json.dumps(value)[1:-1] in text


def _counts(behaviour: Behaviour, shape: Shape) -> Iterator[Seen]:
    """Several tools or documents: no new lines but for their words, and none of them missing."""
    words = known_words(*behaviour.outputs.values())
    numbers = [n for n in behaviour.program.numbers if n <= LONGEST][:MOST]
    kind, names = ("tools", ("tool",)) if shape.tools else ("documents", ("title", "document"))
    for count in sorted({*COUNTS, *(n + more for n in numbers for more in (0, 1))} - {1}):
        more = replace(shape, tools=count if shape.tools else 0, documents=count if shape.documents else 0)
        text = behaviour.render(more)
        if text is None:
            continue
        every = {f"{name} {n}": str(another(GIVEN[name], n)) for name in names for n in range(count)}
        added = _added(text, more, {**GIVEN, **every}, words, FEW)
        # a tool's name stands in its calls as well, what it is about only where tools are listed
        usual = behaviour.outputs[shape.name]
        told = [name for name in names if GIVEN[name] in usual and (shape.documents or GIVEN["about"] in usual)]
        gone = [n for n in range(count) for name in told if another(GIVEN[name], n) not in text]
        if added or gone:
            lost = f"number {gone[0] + 1} of {count} {kind} is not in the text" if gone else ""
            yield Seen("given", f"{count} {kind}", tuple(dict.fromkeys(added)), lost)
            return


def _types(behaviour: Behaviour, shape: Shape) -> Iterator[Seen]:
    """A tool that takes, and is called with, values of many types, and one without ``function`` around it; documents with
    more in them: no new lines, what a user says stays, and so do numbers."""
    usual = behaviour.outputs[shape.name]
    words = known_words(*behaviour.outputs.values(), TYPE_WORDS, " ".join(RICH), ADDRESS)
    what = "documents with more in them" if shape.documents else "a tool with arguments of several types"
    ways = [(replace(shape, name="rich", rich=True), what)]
    if shape.tools:
        ways.append((replace(shape, name="flat", flat=True), "a tool with no `function` around it"))
    for other, what in ways:
        before = behaviour.unbounded
        text = behaviour.render(other)
        if behaviour.unbounded.startswith(NESTED):
            behaviour.unbounded = before  # real templates don't know all of these types, and look for them without end
        if text is None:
            continue
        added = _added(text, other, GIVEN, words, 2 * FEW)  # types by names of their own
        gone = [f"the {role} message" for n, role in enumerate(shape.roles) if word_of(n) in usual and word_of(n) not in text]
        if other.rich and shape.tools and shape.style != "strings" and GIVEN["argument"] in text:
            numbers = RICH["n"], RICH["x"]
            gone += [f"an argument ({value})" for value in numbers if not re.search(rf"(?<![\d.]){value}(?!\d)", text)]
            gone += ["an argument (true)"] if re.search(r"\byes\b\W{1,12}[Ff]alse", text) else []
        if added or gone:
            lost = f"{gone[0]} is not in the text as it was given" if gone else ""
            yield Seen("given", what, tuple(dict.fromkeys(added)), lost, evidence=text[-300:])
            return


def _keys(behaviour: Behaviour, shape: Shape) -> Iterator[Seen]:
    """Arguments called by words of what looks like a part of JSON, and is looked for: nothing else may change."""
    signs = [v for kind, v in behaviour.needles if kind == "given" and isinstance(v, str) and re.search(r"\W", v)]
    usual = behaviour.outputs[shape.name]
    for word in [word for sign in signs[:MOST] for word in re.findall(r"[A-Za-z_]{3,}", sign)[:2]][:MOST]:
        text = behaviour.render(shape, given={"place": word})
        if text is not None and text != usual.replace(GIVEN["place"], word):
            yield Seen("given", f"an argument called {word!r}", lost="it is not in the text as it was given", evidence=text[-300:])
            return


def _new(line: str, words: set[str]) -> bool:
    """Whether a line says more than ``words``: values stand in the middle of JSON, whose lines break where they are cut out."""
    return len(set(words_in(line)) - words) > 2


def _added(text: str, shape: Shape, given: dict[str, str], words: set[str], few: int) -> list[str]:
    """The lines that say more than ``words``; where there is none, what all of them say together beyond ``few`` words."""
    added = [line for line in _lines(text, shape, given) if _new(line, words)]
    if not added:
        strange = strange_words(text, words, (*given.values(), *(word_of(n) for n in range(len(shape.roles)))))
        strange = [word for word in strange if word.lower() not in words and word.lower() not in _TYPES]
        added = [" ".join(strange[:24])] if len(strange) > few else []
    return added


def _lines(text: str, shape: Shape, given: dict[str, str]) -> list[str]:
    return text_lines(text, (*given.values(), *(word_of(n) for n in range(len(shape.roles)))))
