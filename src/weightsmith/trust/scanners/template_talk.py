"""Conversations that templates are tried with: made-up words for everything that a template may be given.

What messages say is marked ``content``; what else is given (tools, calls and their arguments, documents, thoughts, names) is
marked ``given``, and has words of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .template_marks import Turns, mark

WORDS = ("vomplar", "drentis", "kulvane", "brastom", "ziwenta", "pelguro", "hastemy")
#: what a template is given beside what messages say
GIVEN = {
    "tool": "grifon_lookup", "about": "Murdelo tanvi", "parameter": "Sorvu besk", "argument": "Nardique", "title": "Talmu",
    "document": "Ebrin ostu", "thought": "Ulvar mesti", "author": "Perrodu", "place": "velnaru",
}  # fmt: skip
ASKED = "Wendoli karst"  # what stands under names that only this template asks for


@dataclass
class Shape:
    """One conversation: ``roles`` with more variables; ``style`` is how contents are given; ``tools`` and ``documents`` how
    many there are, and ``rich`` ones have more in them, ``flat`` tools no ``function`` around them; ``asked`` are names that
    everything has a value under, of arguments a ``number``. Roles that no template knows stand for messages with more in them:
    ``call`` (an assistant's call of a tool; ``calls`` are four, ``twice`` two, ``mute`` one without any content, ``spelled`` one
    whose arguments are a text), ``result`` (of a call, with another kind of number), ``thought`` (an answer with its reasoning),
    ``begun`` (an answer to go on with), ``named`` (a user with a name), ``shown`` (a user with a picture), ``links`` (pictures
    and others by their addresses), ``pictures``, ``video`` and ``audio``, ``three`` (texts), ``nothing`` (no content), ``number``
    (a number for one). Rerankers know ``query`` and ``document``."""

    name: str
    roles: tuple[str, ...]
    more: dict[str, Any] = field(default_factory=dict)
    style: str = "text"
    tools: int = 0
    documents: int = 0
    rich: bool = False
    flat: bool = False
    asked: tuple[str, ...] = ()
    number: int = 1


SHAPES = (
    Shape("plain", ("user",)),
    Shape("talk", ("system", "user", "assistant", "user")),
    Shape("answered", ("user", "assistant"), {"add_generation_prompt": False}),
    Shape("thinking", ("user", "assistant", "user"), {"enable_thinking": True, "thinking": True}),
    Shape("thinking led", ("system", "user", "assistant", "user"), {"enable_thinking": True, "thinking": True}),
    Shape("silent", ("system", "user", "assistant", "user"), {"enable_thinking": False, "thinking": False}),
    Shape("silent alone", ("user", "assistant", "user"), {"enable_thinking": False, "thinking": False}),
    Shape("tools", ("system", "user", "call", "tool", "assistant", "user"), tools=1),
    Shape("documents", ("user",), documents=1),
    Shape("named", ("named", "thought", "named")),
    Shape("developer", ("developer", "user")),
    Shape("late", ("user", "assistant", "system", "user")),
    Shape("shown", ("shown",)),
    Shape("pair", ("query", "document")),
)
#: words without which a template does nothing of its own with such a conversation
NEEDED = {"thinking led": ("think",), "silent alone": ("think",),
          "named": ("name", "reason", "think", "thought"), "developer": ("developer",), "shown": ("image", "video", "audio"),
          "late": ("system",), "pair": ("query",)}  # fmt: skip


#: assistants' messages that call tools, and users' messages in parts
CALLING = ("call", "calls", "twice", "mute", "spelled")
_PARTS = {"shown": ("image", "text"), "pictures": ("image", "image", "text"), "three": ("text", "text", "text"),
          "video": ("video", "text"), "audio": ("audio", "text")}  # fmt: skip
PARTED = {*_PARTS, "links"}


def word_of(n: int) -> str:
    """The made-up content of message ``n``."""
    turn, more = n // len(WORDS), ""
    while turn:
        more, turn = more + chr(97 + turn % 26) * 2, turn // 26
    plain = WORDS[n % len(WORDS)]
    return plain[:3] + more + plain[3:]  # none of them is part of another


def variables(shape: Shape, words: Mapping[int, str], given: Mapping[str, str]) -> dict[str, Any]:
    """What a loader gives to a template for this conversation, with other ``words`` in messages or another ``given``."""
    told = {name: mark(given.get(name, made_up), "given") for name, made_up in GIVEN.items()}
    messages = Turns(_message(shape, role, words.get(n, word_of(n)), told) for n, role in enumerate(shape.roles))
    tools = [_tool(told, n, rich=shape.rich) for n in range(shape.tools)] or None
    if shape.flat and tools:
        tools = [{"type": "function", **tool["function"]} for tool in tools]
    documents = [{"title": another(told["title"], n), "text": another(told["document"], n), "doc_id": n + 1}
                 for n in range(shape.documents)] or None  # fmt: skip
    for document in documents or [] if shape.rich else []:
        document |= {"url": ADDRESS, "source": ADDRESS, "score": 0.5, "metadata": {"k": 1}}
    for one in [*messages, *(documents or ())] if shape.asked else []:
        one.update({name: ASKED for name in shape.asked if name not in one})
    for tool in tools or [] if shape.asked else []:
        places = tool.get("function", tool)["parameters"]["properties"]
        places.update({name: {"type": "string", "description": told["parameter"]} for name in shape.asked if name not in places})
    return {"tools": tools, "documents": documents, **shape.more, "messages": messages}


def another(value: Any, n: int) -> Any:
    """The name of tool or document ``n``: none is part of another."""
    more = f"{chr(97 + n // 26)}{chr(97 + n % 26)}" if n else ""
    return mark(f"{value[:3]}{more}{value[3:]}", "given")


ADDRESS = "https://example.org/a"
#: arguments of a call beside texts
RICH: dict[str, Any] = {"n": 731, "x": 0.25, "yes": True, "no": None, "several": ["a", 2], "deep": {"k": 1}}
#: what a tool may take beside texts
_TYPES: tuple[dict[str, Any], ...] = (
    {"type": "integer", "minimum": 1, "maximum": 9}, {"type": "number", "default": 0.5}, {"type": "boolean", "default": True},
    {"type": "array", "items": {"type": "string"}}, {"type": "object", "properties": {"x": {"type": "integer"}}, "required": []},
    {"type": ["string", "null"]}, {"type": "string", "enum": ["a", "b"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]},
)  # fmt: skip


def _tool(told: Mapping[str, Any], n: int, *, rich: bool) -> dict[str, Any]:
    place = {"type": "string", "description": told["parameter"]}
    more = {f"{told['place']}{k}": {"description": told["parameter"], **kind} for k, kind in enumerate(_TYPES if rich else ())}
    return {"type": "function", "function": {
        "name": another(told["tool"], n), "description": told["about"],
        "parameters": {"type": "object", "properties": {told["place"]: place, **more}, "required": [told["place"], *more][:2]},
    }}  # fmt: skip


def _message(shape: Shape, role: str, words: str, told: Mapping[str, Any]) -> dict[str, Any]:
    content: Any = mark(words, "content")
    if shape.style in ("parts", "pieces"):
        content = [{"type": "text", "text": content}] * (2 if shape.style == "pieces" else 1)
    if role in CALLING:
        arguments: Any = {told["place"]: told["argument"]}
        if shape.rich:
            arguments |= RICH
        arguments |= dict.fromkeys(shape.asked, shape.number)
        if shape.style == "strings" or role == "spelled":
            arguments = mark(f'{{"{told["place"]}": "{told["argument"]}"}}', "given")
        call = {"id": "call_0abc" if role == "twice" else "abcdef123", "type": "function",
                "function": {"name": told["tool"], "arguments": arguments}}  # fmt: skip
        calls = [call] * {"calls": 4, "twice": 2}.get(role, 1)
        nothing = None if role == "mute" else "" if shape.style != "parts" else []
        return {"role": "assistant", "content": nothing, "tool_calls": calls}
    if role in _PARTS:
        parts = [{"type": kind, "text": content} if kind == "text" else {"type": kind} for kind in _PARTS[role]]
        return {"role": "user", "content": parts}
    if role == "begun":
        return {"role": "assistant", "content": content, "prefix": True, "partial": True, "refusal": None}
    if role == "result":
        return {"role": "tool", "content": content, "name": told["tool"], "tool_call_id": "call_0abc"}
    if role == "number":
        return {"role": "user", "content": 7}
    if role == "nothing":
        return {"role": "user", "content": None}
    if role == "links":
        parts = [{"type": kind, kind: {"url": ADDRESS}} for kind in ("image_url", "video_url", "audio_url")]
        return {"role": "user", "content": [*parts, *parts, {"type": "text", "text": mark(words, "content")}]}
    if role == "thought":
        keys = ("reasoning_content", "reasoning", "thinking", "thought")
        return {"role": "assistant", "content": content, **dict.fromkeys(keys, told["thought"])}
    if role == "named":
        return {"role": "user", "content": content, "name": told["author"]}
    message = {"role": role, "content": content}
    return {**message, "name": told["tool"], "tool_call_id": "abcdef123"} if role == "tool" else message
