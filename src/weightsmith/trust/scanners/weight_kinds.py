"""Weights that a class of transformers can't do without, by name, from a table that its own code gave.

``scripts/weight_kinds.py`` writes the table. It holds what each class has in its default configuration and in every variant of
it; what only some variants have is known as well, so that a checkpoint under other names is told from one with holes: where a
name is unknown, nothing is said.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .facts import ASIDE

_NUMBER = re.compile(r"(?<![^.])\d+(?=\.|$)")
_FIRST = re.compile(r"\.(\d{1,5})\.")
_PREFIXES = ("model.", "transformer.")
#: heads and poolers, which not everybody stores, before and behind the layers
_HEADS = re.compile(r"(?i)pooler|classifier|score|lm_head|qa_outputs|rotary|\bcls\.|(?<!weight)$")
_FEW = 8  # of so many layers one at the most is no design
_OLD = {"gamma": "weight", "beta": "bias"}  # of layer norms, in checkpoints that come from TensorFlow


@dataclass(frozen=True)
class Class:
    """One class: the prefix of its base's weights; of each stack the kinds that it always has, may have, and has in some layers
    only. The stack without a name holds the embeddings and the last norm."""

    prefix: str
    always: Mapping[str, frozenset[str]]
    may: Mapping[str, frozenset[str]]
    uneven: Mapping[str, frozenset[str]]


@cache
def _table() -> Mapping[str, Any]:
    types = json.loads((files(__package__) / "weight_kinds.json").read_text("utf-8"))["types"]
    return {name: (one, *told) for one in types.values() for name, told in one["classes"].items()}


def class_of(names: Iterable[str]) -> Class | None:
    """The first of a configuration's classes, where it is in the table."""
    name = next(iter(names), None)
    if (found := _table().get(name or "")) is None:
        return None
    one, prefix, lacks = found
    always, may, uneven = ({s: frozenset(leaves) for s, leaves in one[part].items()} for part in ("always", "may", "uneven"))
    for stack, leaf in map(_parts, lacks):
        always[stack] -= {leaf}
        may[stack] = may.get(stack, frozenset()) | {leaf}
    return Class(prefix, always, may, uneven)


def missing(known: Class, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """``(kind, where)`` of weights that are not there; ``where`` are the layers that lack it, nothing for all of them.

    Nothing is said of a stack in which any name is unknown, or of which less than half is there.
    """
    stacks: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        stack, leaf, layer = _placed(_plain(name, known))
        stacks[stack][leaf].add(layer)
    for stack, leaves in stacks.items():
        wanted = known.always.get(stack, frozenset())
        here = frozenset(leaf for leaf in leaves if stack or not _HEADS.search(leaf))
        lost = wanted - here
        if here - wanted - known.may.get(stack, frozenset()) or ASIDE.search(stack) or len(lost) > len(wanted) / 2:
            continue
        yield from ((f"{stack}.*.{leaf}" if stack else leaf, "") for leaf in sorted(lost) if not ASIDE.search(leaf))
        if stack:
            yield from _single(stack, leaves, known.uneven.get(stack, frozenset()))


def _single(stack: str, leaves: Mapping[str, set[int]], uneven: frozenset[str]) -> Iterator[tuple[str, str]]:
    """What single layers lack, of those that have nothing in its place."""
    layers = set().union(*leaves.values())
    others = set().union(*(at for leaf, at in leaves.items() if leaf not in uneven and len(at) <= len(layers) / 2))
    for leaf, at in sorted(leaves.items()):
        gone = sorted(layers - at)
        if leaf not in uneven and gone and len(gone) <= max(1, len(layers) // _FEW) and others.isdisjoint(gone):
            yield f"{stack}.*.{leaf}", ", ".join(map(str, gone[:12]))


def _placed(name: str) -> tuple[str, str, int]:
    """A weight's stack, its name in a layer, and the number of the layer."""
    number = _FIRST.search(name)
    if number is None:
        return "", name, 0
    return name[: number.start()], _NUMBER.sub("*", name[number.end() :]), int(number[1])


def _parts(kind: str) -> tuple[str, str]:
    stack, star, leaf = kind.partition(".*.")
    return (stack, leaf) if star else ("", kind)


def _plain(name: str, known: Class) -> str:
    """A weight's name as the table has it: without the prefix of the base, with today's names of a layer norm's values."""
    for prefix in (known.prefix + ".", *_PREFIXES):
        if len(prefix) > 1 and name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    head, _, last = name.rpartition(".")
    return f"{head}.{_OLD[last]}" if last in _OLD else name
