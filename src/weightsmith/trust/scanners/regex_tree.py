"""Patterns taken apart into alternatives, sequences and repetitions: what they can match is worked out, and none is run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .regexes import ESCAPE, LONGEST, class_end

_DEEPEST = 60  # groups within groups
_OPEN = re.compile(r"\((?:\?(?:(?P<look><?[=!])|[a-zA-Z-]*:|>|P?<\w+>|\|))?")
_FLAGS = re.compile(r"\(\?[a-zA-Z-]+\)|\(\?#[^)]*\)|\(\?P=\w+\)")
_TIMES = re.compile(r"([*+?]|\{(\d*)(,?)(\d*)\})([?+]?)")
_EMPTY = frozenset({"^", "$", "\\b", "\\B", "\\A", "\\z", "\\Z", "\\G", "\\K"})
_SAMPLE = [chr(c) for c in range(128)] + ["é", "不", "｜", "▁"]
_NAMED = {"L": "a-zA-Zé不", "N": "0-9", "P": r"!-#%-*,-/:;?@\[-\]_{}", "S": "$+<=>^`|~｜", "Z": " ", "M": "", "C": ""}
_NAME = re.compile(r"\\p\{([LNPSZMC])\w*\}")
#: what the marks of an answer are made of, such as <think>, [TOOL_CALLS], ```; labels as in "Action:"
MARKS = frozenset("<>[]{}|｜`▁:=")


@dataclass(frozen=True, slots=True)
class Piece:
    """One thing of a sequence: an atom's source or a group, how often at least, whether without end, and what it looks at."""

    what: str | Tree
    least: int = 1
    endless: bool = False
    keeps: bool = True  # gives nothing back of what it took
    look: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """Alternatives, each a sequence."""

    ways: tuple[tuple[Piece, ...], ...]


def tree(pattern: str) -> Tree | None:
    """A pattern as a tree; ``None`` when it is too long, too deep or malformed."""
    if len(pattern) > LONGEST:
        return None
    try:
        found, end = _ways(pattern, 0, 0)
    except (ValueError, IndexError):
        return None
    return found if end == len(pattern) else None


def _ways(pattern: str, at: int, depth: int) -> tuple[Tree, int]:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    ways: list[list[Piece]] = [[]]
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            ways.append([])
            at += 1
            continue
        if flags := _FLAGS.match(pattern, at):
            at = flags.end()
            continue
        what: str | Tree
        look = ""
        if opened := _OPEN.match(pattern, at):
            look = opened["look"] or ""
            what, at = _ways(pattern, opened.end(), depth + 1)
            if pattern[at] != ")":
                raise ValueError("no end")
            at += 1
        else:
            escape = ESCAPE.match(pattern, at)
            end = escape.end() if escape else class_end(pattern, at) + 1 if pattern[at] == "[" else at + 1
            what, at = pattern[at:end], end
        times = _TIMES.match(pattern, at)
        least, endless = 1, False
        if times and not (times[1][0] == "{" and not (times[2] or times[3])):
            at = times.end()
            least = 1 if times[1] == "+" else 0 if times[1] in "*?" else int(times[2] or 0)
            endless = times[1] in "*+" or bool(times[3] and not times[4])
        ways[-1].append(Piece(what, least, endless, not times or times[5] == "+", look))
    return Tree(tuple(map(tuple, ways))), at


@lru_cache(maxsize=512)
def letters(atom: str) -> frozenset[str] | None:
    """What one atom matches of a sample of characters; ``None`` when that could not be told. Authors mean a dot to stop at the
    end of a line."""
    if atom in _EMPTY or (atom[:1] == "\\" and atom[1:].isdigit()):
        return frozenset()
    named = _NAME.sub(lambda m: _NAMED[m[1]] if atom[0] == "[" else f"[{_NAMED[m[1]]}]" if _NAMED[m[1]] else "(?!)", atom)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(named)
    except (re.error, OverflowError, RecursionError):
        return None
    return frozenset(c for c in _SAMPLE if compiled.fullmatch(c))


def is_ambiguous(pattern: str) -> bool:
    """Whether a group that is repeated without end can take the same text by several of its alternatives: ``(a|a)*``."""
    found = tree(pattern)
    return found is not None and _ambiguous(found)


def _ambiguous(node: Tree) -> bool:
    for way in node.ways:
        for piece in way:
            if isinstance(piece.what, Tree):
                if piece.endless and not piece.keeps and not piece.look and _overlap(piece.what):
                    return True
                if _ambiguous(piece.what):
                    return True
    return False


def _overlap(node: Tree) -> bool:
    """Two alternatives of one group of which one letter by letter may be the other, once or several times."""
    while len(node.ways) == 1 and len(node.ways[0]) == 1 and isinstance(node.ways[0][0].what, Tree) and not node.ways[0][0].look:
        node = node.ways[0][0].what
    plain: list[list[frozenset[str]]] = []
    for way in node.ways[:100]:
        sets = [letters(p.what) for p in way if isinstance(p.what, str) and p.least == 1 and not p.endless and not p.look]
        if way and len(sets) == len(way) and all(sets):
            plain.append([s for s in sets if s])
    singles = [(i, way[0]) for i, way in enumerate(plain) if len(way) == 1]
    return any(i != j and all(one & other for other in way) for i, one in singles for j, way in enumerate(plain))


def takes_words(pattern: str) -> bool | None:
    """Whether a pattern can match letters or digits where none of :data:`MARKS` stands; ``None`` when that is not known."""
    found = tree(pattern)
    return None if found is None else any(possible and worded for possible, worded in map(_bare, found.ways))


def _bare(way: Sequence[Piece]) -> tuple[bool, bool]:
    """Whether a sequence can match without a mark, and whether it then may have letters."""
    possible, worded = True, False
    for piece in way:
        if piece.look:
            if piece.look.endswith("=") and isinstance(piece.what, Tree) and not any(_bare(w)[0] for w in piece.what.ways):
                possible = False
            continue
        if isinstance(piece.what, Tree):
            inner = [_bare(w) for w in piece.what.ways]
            can, words = any(p for p, _ in inner), any(p and w for p, w in inner)
        else:
            matched = letters(piece.what)
            bare = frozenset("a") if matched is None else matched - MARKS
            can, words = bool(bare) or not matched, any(c.isalnum() for c in bare)
        possible = possible and (can or piece.least == 0)
        worded = worded or words
    return possible, worded
