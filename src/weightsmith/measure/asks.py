"""What is asked and what came back: the small nouns that suites, scorers and logs share.

An :class:`Ask` is one conversation to be answered under one decoding; an :class:`Exchange` is an ask with its reply.
Prompts are the unit of statistics: asks with equal ``group``, ``condition`` and ``item`` (their wordings, their seeds) are
one prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.sample import Decoding as Decoding

Message = Mapping[str, str]

#: what thinking models put around their thoughts: (opening, closing)
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One conversation to answer. ``prompt`` is what people read: the last user turn in its first wording."""

    group: str
    condition: str
    item: int
    prompt: str
    messages: tuple[Message, ...]
    wording: int = 0
    turn: int = 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """An ask, how it was decoded, and the reply: ``tokens`` as the model said them (without the end token), ``text`` the
    answer without its thought, ``thought`` what a thinking model thought (``""`` if it did not), ``ended`` whether the
    model ended by itself. ``text`` is ``None`` when the tokens ran out inside the thought: there is no answer to score.
    """

    ask: Ask
    decoding: Decoding
    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str | None
    thought: str = ""
    ended: bool = True


def split_thought(raw: str, *, opened: bool = False) -> tuple[str, str | None]:
    """``(thought, answer)`` of a decoded reply; the answer is ``None`` when the thought never closes.

    ``opened`` when the chat template itself has opened the thought, so that the reply begins inside it.
    """
    for start, end in THOUGHTS:
        begins = re.match(rf"\s*{re.escape(start)}", raw)
        if not begins and not (opened and end in raw):
            continue
        body = raw[begins.end() :] if begins else raw
        thought, found, answer = body.partition(end)
        thought = re.sub(r"(?:<\|end\|>)?(?:<\|start\|>\w+)?\s*$", "", thought)  # what leads to the message after it
        return thought.strip(), (answer.strip() if found else None)
    return (raw.strip(), None) if opened else ("", raw)


def opens_thought(rendered: str) -> bool:
    """Whether a rendered prompt ends inside a thought, so that the reply goes on with it."""
    tail = rendered.rstrip()
    return any(tail.endswith(start) for start, _ in THOUGHTS)
