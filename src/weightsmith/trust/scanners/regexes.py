"""Patterns of tokenizers, read and never run: which letters and marks they ask for, and whether they can take for ever."""

from __future__ import annotations

import re
import string

ESCAPE = re.compile(r"\\(?:[pP]\{\^?[A-Za-z_=& ]+\}|x\{[0-9A-Fa-f]+\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_INVISIBLE = re.compile(r"\\(?:[sntrfvRbBAzZGK]|p\{(?:Z\w?|Cc|Cf|C|M\w?|P\w?|S\w?|Separator|Punctuation|Space|White_Space)\})")
_GROUP = re.compile(r"\(\?(?:[imsxu-]*:|[imsxu-]+\)|<?[=!]|>|P?<\w+>)|[|()*+?^$]|\{\d*,?\d*\}")


VARIES = re.compile(r"[?*+|{]|\(\?<?[=!]")
_PLAIN_ESCAPE = re.compile(r"\\([^\w\s])")


def exact(pattern: str) -> str | None:
    """The one text that a pattern matches, where it has nothing but characters and escaped punctuation."""
    bare = _PLAIN_ESCAPE.sub("", pattern)
    return None if re.search(r"[\\|()*+?^$.\[\]{}]", bare) else _PLAIN_ESCAPE.sub(r"\1", pattern)


def regex_parts(pattern: str) -> tuple[str, bool]:
    """The letters and digits that a pattern asks for one by one, and whether it has classes that match any others."""
    literal: list[str] = []
    broad, at, size = False, 0, len(pattern)
    while at < size:
        here = pattern[at]
        if here == "[":
            end = class_end(pattern, at)
            inside = pattern[at + 1 : end]
            broad = broad or inside.startswith("^") or _class_has_letters(inside)
            at = end + 1
        elif here == "\\":
            match = ESCAPE.match(pattern, at)
            taken = match[0] if match else here
            if _INVISIBLE.fullmatch(taken):
                pass
            elif taken[1:2] in ("x", "u") and len(taken) > 2:
                char = chr(min(int(re.sub(r"\W", "", taken[2:]), 16), 0x10FFFF))
                literal += [char] if char.isalnum() else []
            elif taken[1:2].isalnum():
                broad = True  # \w, \d, \S, \p{L} and back references
            at += len(taken)
        elif group := _GROUP.match(pattern, at):
            at = group.end()
        else:
            broad = broad or here == "."
            literal += [here] if here.isalnum() else []
            at += 1
    return "".join(literal), broad


def takes_all_marks(pattern: str) -> bool:
    """Whether a class of what is kept keeps letters and none of the usual marks."""
    kept = re.fullmatch(r"\[\^(.*)\][*+]?", pattern, re.DOTALL)
    return kept is not None and not _members(kept[1]).intersection(".,!?-'\"")


LONGEST = 5000  # letters of a pattern in which groups are looked for that only look: that takes time with the square of it
_LOOK = re.compile(r"\(\?<?[=!](?:[^()\\\[]|\\.|\[[^\]]*\])*\)", re.DOTALL)
_POSIX = re.compile(r"\[:\^?\w+:\]")
_SIGNS = {"Pd": "-", "Sm": "+<=>|~", "Sc": "$", "Sk": "^`", "Ps": "([{", "Pe": ")]}", "Pc": "_"}


def punctuation(pattern: str) -> set[str]:
    """The visible characters, neither letters nor digits, that a pattern matches; of a class of Unicode those of ASCII. What
    only has to stand before or behind is not matched."""
    if len(pattern) <= LONGEST:
        pattern = _LOOK.sub("", pattern)
    found: set[str] = set()
    at, size = 0, len(pattern)
    while at < size:
        end = class_end(pattern, at) + 1 if pattern[at] == "[" else at
        escape, group = ESCAPE.match(pattern, at), _GROUP.match(pattern, at)
        if end > at:
            found |= _members(pattern[at + 1 : end - 1])
        elif escape:
            found |= _members(escape[0])
            end = escape.end()
        else:
            end = group.end() if group else at + 1
            found |= set() if group else {pattern[at]}
        at = end
    return {c for c in found if visible(c) and not c.isalnum()}


def _members(inside: str) -> set[str]:
    """The characters of a class that names what it matches, as far as they are few."""
    if inside.startswith("^"):
        return set()
    found: set[str] = set(string.punctuation) if "[:punct:]" in inside else set()
    inside = _POSIX.sub("", inside)
    items: list[str] = []  # single characters; a class within counts as a space
    at = 0
    while at < len(inside):
        escape = ESCAPE.match(inside, at)
        text = escape[0] if escape else inside[at]
        if escape and (named := re.fullmatch(r"\\p\{(P|S|Punct|Punctuation|Symbol|[PS][a-z])\}", text)):
            found |= set(_SIGNS.get(named[1], string.punctuation))
        number = re.sub(r"\W", "", text[2:]) if escape and text[1:2] in ("x", "u") else ""
        items.append(chr(min(int(number, 16), 0x10FFFF)) if number else " " if escape and text[1:2].isalnum() else text[-1])
        at += len(text)
    for n, item in enumerate(items):
        if item == "-" and 0 < n < len(items) - 1:
            first, last = ord(items[n - 1]), ord(items[n + 1])
            found |= {chr(c) for c in range(first, min(last, first + 512) + 1)}
        else:
            found.add(item)
    return found


_OPEN = re.compile(r"\((?:\?(?:<?[=!]|[imsxu-]*:|>|P?<\w+>))?")
_REPEATED = re.compile(r"[*+]|\{\d*,\}")
_OPTIONAL = re.compile(r"[*?]|\{0?,\d*\}")
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[?+]?")


def is_explosive(pattern: str) -> bool:
    """Whether a group is repeated without limit that may itself be no more than repetitions: ``(a+)+``, ``(\\w*\\s?)*``."""
    groups: list[list[bool]] = []  # of each open group: a repetition in it, something in it that is no repetition and must be there
    at, size = 0, len(pattern)
    while at < size:
        opened = _OPEN.match(pattern, at)
        if opened:
            groups.append([False, False])
            at = opened.end()
            continue
        if pattern[at] == "|":
            if groups:
                groups[-1][1] = False
            at += 1
            continue
        closed = groups.pop() if pattern[at] == ")" and groups else None
        escape = ESCAPE.match(pattern, at)
        at = escape.end() if escape else class_end(pattern, at) + 1 if pattern[at] == "[" else at + 1
        repeated, optional, quantifier = (r.match(pattern, at) for r in (_REPEATED, _OPTIONAL, _QUANTIFIER))
        at = quantifier.end() if quantifier else at
        again = bool(repeated) and not (quantifier and len(quantifier[0]) > 1 and quantifier[0].endswith("+"))  # possessive
        if closed is not None and again and closed[0] and not closed[1]:
            return True
        inner = closed is not None and closed[0] and not closed[1]
        if groups:
            groups[-1][0] = groups[-1][0] or again or inner
            groups[-1][1] = groups[-1][1] or not (optional or again or inner)
    return False


def class_end(pattern: str, at: int) -> int:
    """Where a class of characters that begins here ends."""
    end = at + 2 if pattern[at + 1 : at + 2] == "]" or pattern[at + 1 : at + 3] == "^]" else at + 1
    while end < len(pattern) and pattern[end] != "]":
        inner = _POSIX.match(pattern, end)
        end = inner.end() if inner else end + (2 if pattern[end] == "\\" else 1)
    return min(end, len(pattern))


def _class_has_letters(inside: str) -> bool:
    rest = _INVISIBLE.sub("", inside)
    rest = re.sub(r"\\(?:u00[01][0-9a-fA-F]|x[01][0-9A-Fa-f]|x7[Ff]|u(?:20|FE|fe)[0-9A-Fa-f]{2}|x\{(?:20|FE|FF|E0)\w*\})", "", rest)
    if re.search(r"\\[wWdDSpPxuhXNO]", rest):
        return True
    rest = re.sub(r"\\(.)", r"\1", rest)
    spans = ((ord(a), ord(b)) for a, b in re.findall(r"(?=(.)-(.))", rest, re.DOTALL))
    return any(c.isalnum() for c in rest) or any(a < n <= b for a, b in spans for n in (48, 65, 97, 0xC0, 0x4E00))


def visible(text: str) -> str:
    """What of a text can be seen: without spaces, their stand-ins, and characters that print nothing."""
    return "".join(c for c in text if c.isprintable() and not c.isspace() and c not in "▁Ġ\u00ad\u0640\u200b\u2060⠀")
