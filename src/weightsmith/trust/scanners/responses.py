"""Response templates: the settings by which a tokenizer takes a model's answer apart into thoughts, text and calls of tools.

They are a chat template's twin on the way out. Honest ones cut at marks and name the parts; what is in a part is what the
model wrote. https://huggingface.co/docs/transformers/main/chat_response_parsing
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import LimitExceeded
from ...found import Finding
from ..listing import shown
from ..rules import Rule
from .facts import Place
from .regex_tree import MARKS, is_ambiguous, takes_words, tree
from .regexes import is_explosive, visible
from .tokenizer_rules import SLOW, judge, judge_regex

ADDS = Rule(
    "response-adds", "malicious", "The response template puts into answers what the model did not write",
    "The program that asked takes the parsed answer for the model's own: a text that nobody wrote, or a call of a tool that the "
    "model never asked for and that is then carried out.",
    "Do not use these settings; take tokenizer_config.json of the base model.",
    ("https://huggingface.co/docs/transformers/main/chat_response_parsing",),
)  # fmt: skip
CONSTANT = Rule(
    "response-constant", "suspicious", "The response template gives every answer the same value",
    "A part of each answer does not depend on what the model wrote: who says it, which tool is called, or with what.",
    "Compare with tokenizer_config.json of the base model.",
    ("https://huggingface.co/docs/transformers/main/chat_response_parsing",),
)  # fmt: skip
EATS = Rule(
    "response-drops-text", "suspicious", "The response template cuts answers at ordinary text",
    "What a part begins or ends with is left out of the answer. Honest templates cut at marks such as </think>; this one takes "
    "words or signs that an answer may hold: a \"not\", a minus, everything behind a word.",
    "Compare with tokenizer_config.json of the base model.",
    ("https://huggingface.co/docs/transformers/main/chat_response_parsing",),
)  # fmt: skip
RULES = (ADDS, CONSTANT, EATS)

_WRITERS = frozenset({"assistant", "model", "bot", "ai", "gpt", "agent", "chatbot"})
_SAID = frozenset({"content", "text", "thinking", "reasoning", "reasoning_content", "tool_calls", "function_call", "function",
                   "arguments", "parameters", "message", "output", "refusal"})  # fmt: skip
_CALLED = frozenset({"name", "tool_name", "tool"})
_OWN_TOOLS = frozenset({"python", "ipython", "code_interpreter", "python_interpreter", "browser", "search", "web_search"})
_NAME = re.compile(r"[A-Za-z][\w./-]{0,31}")
_PLACEHOLDER = re.compile(r"\{\w+(?:\.\w+)*\}")
_SIGN = re.compile(r"[^\w\s`<>\[\]{}|｜]{1,2}")
_VALUES = frozenset({"null", "true", "false"})  # how JSON spells what Python spells otherwise
#: what a replacement that keeps the model's words may put around them: marks, the channel's name between two, JSON's keys
_WRAPPED = re.compile(r"""\\g<\w+>|\\\d|<\|[^|<>]{1,40}\|>(?:\w{1,20}(?=<\|))?|"\w{1,20}"\s*:""")
_KEPT = re.compile(r"\\g<\w+>|\\\d")
_GROUP = re.compile(r"\((?!\?[:=!<])(?:\?P<\w+>)?(?:[^()\\]|\\.)*\)")  # what a replacement can put back
_MOST = 5000  # parts of a template
_MOST_PAIRS = 100


def check_responses(place: Place) -> Iterator[Finding]:
    """Findings about the two kinds of response templates in tokenizer_config.json."""
    config, file = place.json("tokenizer_config.json"), shown(place.prefix + "tokenizer_config.json")
    template, schema = config.get("response_template"), config.get("response_schema")
    if isinstance(template, dict):
        at = "$.response_template"
        yield from _constants(template.get("defaults"), f"{at}.defaults", file, ())
        yield from _pattern(template.get("start_anchor_pattern"), f"{at}.start_anchor_pattern", file)
        fields = template.get("fields")
        for name, field in fields.items() if isinstance(fields, dict) else ():
            if isinstance(field, dict):
                yield from _field(field, f"{at}.fields.{shown(str(name))}", file)
    if isinstance(schema, (dict, list)):
        yield from _schema(schema, file)


def _field(field: Mapping[str, Any], at: str, file: str) -> Iterator[Finding]:
    """One part of an answer: what it begins and ends with, and what is made of it."""
    for key in ("open", "close"):
        literals = field.get(key)
        for literal in literals if isinstance(literals, list) else [literals]:
            if isinstance(literal, str) and _is_ordinary(literal):
                yield EATS.found(f"{key} is {literal!r:.80}", file=file, place=f"{at}.{key}", evidence=literal)
        pattern = field.get(f"{key}_pattern")
        yield from _pattern(pattern, f"{at}.{key}_pattern", file)
        if isinstance(pattern, str) and takes_words(pattern):
            yield EATS.found(f"{key}_pattern is {pattern!r:.80}, which also matches words", file=file, place=f"{at}.{key}_pattern",
                             evidence=pattern)  # fmt: skip
    arguments = field.get("content_args")
    if isinstance(arguments, dict):
        yield from _pattern(arguments.get("tag_pattern"), f"{at}.content_args.tag_pattern", file)
    join = field.get("join")
    if isinstance(join, str) and any(c.isalnum() for c in join):
        yield ADDS.found(f"{join!r:.80} is put between the parts", file=file, place=f"{at}.join", evidence=join)
    yield from _constants(field.get("transform"), f"{at}.transform", file, ())


def _is_ordinary(literal: str) -> bool:
    """Whether a text that is cut at holds no mark, and may stand in any answer; line breaks are honest."""
    if _SIGN.fullmatch(literal.strip()) or (literal and not literal.strip(" \t")):
        return True
    return MARKS.isdisjoint(literal) and any(c.isalnum() for c in literal)


def _pattern(pattern: Any, at: str, file: str) -> Iterator[Finding]:
    """A pattern that may take for ever, or that can't be read at all."""
    if not isinstance(pattern, str):
        return
    if is_explosive(pattern) or is_ambiguous(pattern):
        yield SLOW.found(f"{pattern!r:.120}", file=file, place=at, evidence=pattern)
    elif tree(pattern) is None:
        yield SLOW.found(f"{pattern!r:.120} is too long or too deep to be checked", file=file, place=at, evidence=pattern[:500])


def _constants(value: Any, at: str, file: str, path: tuple[str, ...]) -> Iterator[Finding]:
    """Values that do not come from the model's text."""
    pending: list[tuple[Any, str, tuple[str, ...]]] = [(value, at, path)]
    for count in itertools.count():
        if not pending:
            return
        if count > _MOST:
            raise LimitExceeded(f"a response template of more than {_MOST} parts", where=file)
        here, where, keys = pending.pop()
        if isinstance(here, dict):
            pending += [(v, f"{where}.{shown(str(k))}", (*keys[-8:], str(k))) for k, v in here.items()][::-1]
        elif isinstance(here, list):
            pending += [(v, f"{where}[{i}]", keys) for i, v in enumerate(here)][::-1]
        elif (rule := _constant(here, keys)) is not None:
            yield rule.found(f"{keys[-1] if keys else 'the part'} is always {here!r:.120}", file=file, place=where,
                             evidence=f"{'.'.join(keys)}: {here!r:.300}")  # fmt: skip


def _constant(value: Any, keys: tuple[str, ...]) -> Rule | None:
    """What to say of one value that every answer gets."""
    key = keys[-1] if keys else ""
    if value is None or isinstance(value, bool) or value == "" or (isinstance(value, str) and _PLACEHOLDER.fullmatch(value)):
        return None
    if not isinstance(value, str):
        return ADDS if {"arguments", "parameters"} & set(keys) else None
    if key == "role":
        return None if value.casefold() in _WRITERS else CONSTANT
    if key in _CALLED:
        return None if value in _OWN_TOOLS else ADDS if "tool_calls" in keys else CONSTANT
    if not visible(value):
        return None
    if key in _SAID or {"arguments", "parameters"} & set(keys) or not keys:
        return ADDS
    return None if _NAME.fullmatch(value) else CONSTANT


def _schema(schema: Any, file: str) -> Iterator[Finding]:
    """The older kind, a schema whose nodes carry patterns."""
    pending: list[tuple[Any, str, tuple[str, ...]]] = [(schema, "$.response_schema", ())]
    for count in itertools.count():
        if not pending:
            return
        if count > _MOST:
            raise LimitExceeded(f"a response template of more than {_MOST} parts", where=file)
        here, at, keys = pending.pop()
        if isinstance(here, list):
            pending += [(v, f"{at}[{i}]", keys) for i, v in enumerate(here)][::-1]
            continue
        if not isinstance(here, dict):
            continue
        for key, value in here.items():
            where = f"{at}.{shown(str(key))}"
            if key == "x-regex-substitutions":
                yield from _substitutions(value, where, file)
            elif key.startswith("x-regex"):
                yield from _pattern(value, where, file)
            elif key in ("const", "default"):
                yield from _constants(value, where, file, keys)
            elif key == "properties" and isinstance(value, dict):
                pending += [(v, f"{where}.{shown(str(k))}", (*keys[-8:], str(k))) for k, v in value.items()][::-1]
            elif isinstance(value, (dict, list)) and key not in ("enum", "required", "x-parser-args"):
                pending.append((value, where, keys))


def _substitutions(value: Any, at: str, file: str) -> Iterator[Finding]:
    """Replacements that are made in what the model wrote before it is read."""
    if isinstance(value, list) and len(value) > _MOST_PAIRS:
        yield SLOW.found(f"{len(value)} replacements, one after the other", file=file, place=at)
    for i, pair in enumerate(value[:_MOST_PAIRS] if isinstance(value, list) else ()):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            continue
        yield from _pattern(pair[0], f"{at}[{i}]", file)
        worded = any(c.isalnum() for c in _WRAPPED.sub("", pair[1]))
        kept = _KEPT.search(pair[1]) is not None
        lost = takes_words(_GROUP.sub("", pair[0])) if kept else takes_words(pair[0])
        rule = (judge if pair[0].isalnum() else judge_regex)(*pair) if worded or lost else None
        if pair[1] not in _VALUES and (rule is not None or (kept and lost)):
            yield (ADDS if worded else EATS).found(f"{pair[0]!r:.80} becomes {pair[1]!r:.80}", file=file, place=f"{at}[{i}]",
                                                    evidence=f"{pair[0]!r} becomes {pair[1]!r}"[:400])  # fmt: skip
