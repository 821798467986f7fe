"""The values that :mod:`.python_view` gives to expressions."""

from __future__ import annotations

import ast

from .python_tables import HOSTILE, STRONG, WORDS, canonical, group

Values = tuple[str, ...]
MOST_VALUES = 12  # of one expression
_DEEPEST = 7  # dots of a value
LONGEST = 120  # letters of a value
MADE, DICT = "+", ".__dict__"
TAKING = frozenset(("get", "pop", "__getitem__", "setdefault", "__getattribute__", "__getattr__"))


def quiet(nodes: list[ast.AST]) -> bool:
    """Whether no name, attribute or text of the file is one by which anything could act."""
    for node in nodes:
        if isinstance(node, ast.Name):
            said = [node.id]
        elif isinstance(node, ast.Attribute):
            said = [node.attr, node.attr.lstrip("_")]
        elif isinstance(node, ast.alias):
            said = [part.lstrip("_") for part in node.name.split(".")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            said = [node.value]
        else:
            continue
        if not WORDS.isdisjoint(said):
            return False
    return True


def member(base: str, name: str) -> Values:
    """What a value has under a name."""
    if base[0] in "'+" or len(base) > LONGEST:
        return ()
    if base[0] == "?":
        return (f"~{base[1:]}.{name}",) if group(f"{base[1:]}.{name}") in HOSTILE else ()
    if name == "__dict__":
        return (base + DICT,)
    if is_dict(base) and name not in TAKING:
        return ()
    if base[0] == "*" or base.startswith("~*"):
        return (f"{'~*' if base[0] == '~' else '*'}.{name}",)
    if base.count(".") > _DEEPEST:
        return ()
    return (canonical(f"{base}.{name}"),)


def is_dict(value: str) -> bool:
    return value.endswith((DICT, "sys.modules"))


def counts(value: str) -> bool:
    """Whether a value says more than that something was imported."""
    return value.removeprefix("~") in STRONG or value[0] == "~" or group(value) in HOSTILE


def worded(value: str) -> bool:
    """Whether a text could be a name, or one written backwards or with dots."""
    return value[1:].removeprefix("~").replace(".", "_").isidentifier()


def textual(values: Values) -> bool:
    return any(v[0] in "'+" for v in values)


def best(values: Values) -> Values:
    """At most so many values, those that act first."""
    if len(values) <= 1:
        return values
    distinct = tuple(dict.fromkeys(values))
    return distinct if len(distinct) <= MOST_VALUES else tuple(sorted(distinct, key=lambda v: not counts(v)))[:MOST_VALUES]
