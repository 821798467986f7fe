"""YAML of a card as plain text values with line numbers: nothing is built, converted or merged.

A hostile document can't be large, deep or self-multiplying here: size, nesting, nodes and aliases are counted on the
event stream before any tree is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LIMIT = 64 << 10
DEPTH, ALIASES, EVENTS = 24, 32, 20_000

#: a scalar with its line; a list; a mapping, each key with its line
Plain = Any


class Scalar(str):
    """A text value that knows its line (1-based, within the YAML)."""

    line: int = 0


def read_yaml(text: str) -> tuple[Plain, str]:
    """The document as ``Scalar``, lists and dicts, and why there is none (empty where there is one).

    Aliases share one value. Keys that are not scalars are dropped.
    """
    import yaml

    if len(text) > LIMIT:
        return None, f"longer than {LIMIT >> 10} KiB"
    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # one of plain strings: no tag is looked at
    try:
        if why := _too_much(yaml, text, loader):
            return None, why
        node = yaml.compose(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return None, " ".join(str(error).split())[:200]
    return (None, "empty") if node is None else (_plain(yaml, node, {}), "")


def _too_much(yaml: Any, text: str, loader: Any) -> str:
    depth = aliases = 0
    for count, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        for over, what in ((depth > DEPTH, "too deep"), (aliases > ALIASES, "too many aliases"),
                           (count > EVENTS, "too many values")):  # fmt: skip
            if over:
                return what
    return ""


def _plain(yaml: Any, node: Any, seen: dict[int, Plain]) -> Plain:
    if id(node) in seen:
        return seen[id(node)]
    if isinstance(node, yaml.ScalarNode):
        value = Scalar(node.value)
        value.line = node.start_mark.line + 1
        return value
    if isinstance(node, yaml.SequenceNode):
        many: list[Plain] = []
        seen[id(node)] = many  # before its children: a list can hold itself
        many += [_plain(yaml, child, seen) for child in node.value]
        return many
    found: dict[str, Plain] = {}
    seen[id(node)] = found
    for key, child in node.value:
        if isinstance(key, yaml.ScalarNode):
            found.setdefault(_plain(yaml, key, {}), _plain(yaml, child, seen))
    return found


def texts(value: Plain) -> list[Scalar]:
    """A scalar, or the scalars of a list, that are not empty; at most 64."""
    many = value if isinstance(value, list) else [value]
    return [v for v in many[:64] if isinstance(v, Scalar) and v.strip()]


def dicts(value: Plain) -> Iterator[dict[str, Plain]]:
    """The mappings of a list, at most 64."""
    if isinstance(value, list):
        yield from (v for v in value[:64] if isinstance(v, dict))
