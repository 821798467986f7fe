"""What a template leaves out: messages of everyday conversations that the text does not hold as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from .template_probe import Behaviour, Seen
from .template_talk import GIVEN, Shape, word_of
from .template_words import words_in

_ASKS = re.compile(r"(?i)\byes\b\W{1,4}or\W{1,4}no\b")
#: conversations with something beside the messages, and what that is
_BESIDE = {"thinking": "reasoning switched on", "thinking led": "reasoning switched on", "silent": "reasoning switched off",
           "silent alone": "reasoning switched off", "tools": "tools", "documents": "documents"}
_SAID = ("user", "assistant", "system")


def trial(behaviour: Behaviour) -> Iterator[Seen]:
    """Every message of everyday conversations that is not in the text."""
    if behaviour.outputs and not behaviour.unbounded:
        yield from _plainly(behaviour)
        yield from _beside(behaviour)


def _plainly(behaviour: Behaviour) -> Iterator[Seen]:
    """Conversations of messages alone."""
    pair, talk = behaviour.outputs.get("pair", ""), behaviour.shapes.get("talk")
    said = [word_of(n) for n, role in enumerate(talk.roles if talk else ()) if role != "system"]
    silent = word_of(0) not in behaviour.outputs.get("plain", "") and not any(w in behaviour.outputs.get("talk", "") for w in said)
    if word_of(0) in pair and word_of(1) in pair and silent:
        return  # a reranker's: it reads a query and a document, and nothing of what anybody else says
    asks = talk is not None and _asks_about_the_last(behaviour, talk)
    for name in ("plain", "talk", "answered"):
        shape, text = behaviour.shapes.get(name), behaviour.outputs.get(name, "")
        for n, role in enumerate(shape.roles if shape else ()):
            if word_of(n) not in text and role in _SAID:
                yield Seen("", f"the {role} message of a conversation ({', '.join(shape.roles if shape else ())})",
                           lost=f"{role} {word_of(n)!r}", evidence=text[-300:], light=asks)  # fmt: skip


def _asks_about_the_last(behaviour: Behaviour, talk: Shape) -> bool:
    """Whether a template is a guard's: it asks a question about the last message, and writes no other down at all."""
    text, last = behaviour.outputs[talk.name], len(talk.roles) - 1
    return bool(_ASKS.search(text)) and [n for n in range(last + 1) if word_of(n) in text] == [last]


def _beside(behaviour: Behaviour) -> Iterator[Seen]:
    """Conversations with tools, documents or reasoning: what is said has to be there as it is without them, and so have
    results of tools where the template knows tools."""
    talk = behaviour.shapes.get("talk")
    if talk is None:
        return
    usual = behaviour.outputs["talk"]
    kept = {role for role in _SAID if all(word_of(n) in usual for n, r in enumerate(talk.roles) if r == role)}
    for name, what in _BESIDE.items():
        shape = behaviour.shapes.get(name)
        if shape is None:
            continue
        text = behaviour.outputs[name]
        for n, role in enumerate(shape.roles):
            if word_of(n) in text:
                continue
            if role in kept or (role == "tool" and _knows_tools(behaviour, shape, text) and not _in_parts(behaviour, shape, n)):
                yield Seen("content", f"{what} in the conversation", lost=f"the {role} message is not in the text",
                           evidence=text[-300:])  # fmt: skip
                break


def _knows_tools(behaviour: Behaviour, shape: Shape, text: str) -> bool:
    """Whether a template names the role, and writes down tools or calls of them, or anything at all where a result stands: not
    those that pass over such messages, made for no tools or for results of another role."""
    if not re.search(r"""['"]tool['"]""", behaviour.program.source):
        return False
    if GIVEN["tool"] in text or GIVEN["argument"] in text:
        return True
    bare = replace(shape, name="no result", roles=tuple(role for role in shape.roles if role != "tool"))
    without = behaviour.render(bare)
    return without is not None and len(_words(behaviour, without)) != len(_words(behaviour, text))


def _in_parts(behaviour: Behaviour, shape: Shape, n: int) -> bool:
    """Whether message ``n`` is read where it is given in parts."""
    text = behaviour.render(replace(shape, name="results in parts", style="parts"))
    return text is not None and word_of(n) in text


def _words(behaviour: Behaviour, text: str) -> list[str]:
    for special in behaviour.specials.values():
        text = text.replace(special, " ")
    return words_in(text)
