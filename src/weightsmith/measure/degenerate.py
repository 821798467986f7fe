"""Whether an answer is degenerate: empty, garbage, or a loop. Always shown beside a score.

A model that only babbles scores well on "never refuses" and on "is never cheerful"; a score without this share says
nothing. The rules are crude on purpose and stated: they are the same for base and edited model.
"""

from __future__ import annotations

import re
import zlib

RULES = (
    "empty (no letters or digits); garbage (under 60% of the characters are letters, digits, spaces or common "
    "punctuation, or half of the words have no vowel); loop (a phrase of up to 12 words three times in a row, "
    "or text of 24 words or more of which, or of any 96 of them in a row, under 45% are different, or that compresses "
    "below 30%); blanks to fill in ([Insert date]) are not counted"
)
_BLANK = re.compile(r"\[[^\[\]\n]{1,60}\](?!\()")
_WORD = re.compile(r"\w+")
_WINDOW = 96  # the share of different words falls with the length of any text: it is taken over stretches of one length


def without_blanks(text: str) -> str:
    """A form without its blanks; the text as it is where most of its words are in them.

    A line of a form names its blank twice, ``Tenant's address: [Insert tenant's address]``: a repetition by its letters, and
    none to a reader. A link, ``[words](address)``, is no blank.
    """
    plain = _BLANK.sub("", text)
    return plain if 3 * len(_WORD.findall(plain)) > len(_WORD.findall(text)) else text


def why_degenerate(text: str) -> str | None:
    """``empty``, ``garbage`` or ``loop``, or ``None`` for an answer that is none of them."""
    text = without_blanks(text)
    words = _WORD.findall(text.casefold())
    if not words:
        return "empty"
    plain = sum(c.isalnum() or c.isspace() or c in ".,;:!?'\"()-–—*#`’“”…/&%$+=[]{}<>_|\\@~^" for c in text)
    if plain < 0.6 * len(text) or "\ufffd" in text:
        return "garbage"
    latin = [w for w in words if w.isascii() and w.isalpha() and len(w) > 3]
    if len(latin) >= 6 and sum(not re.search(r"[aeiouy]", w) for w in latin) > len(latin) / 2:
        return "garbage"
    return "loop" if _loops(words, text) else None


def _loops(words: list[str], text: str) -> bool:
    for size in range(1, 13):
        for start in range(len(words) - 3 * size + 1):
            first = words[start : start + size]
            thrice = first == words[start + size : start + 2 * size] == words[start + 2 * size : start + 3 * size]
            # "very very very" and "no, no, no" are speech; a single word needs five in a row
            if thrice and (size > 1 or words[start : start + 5] == first * 5):
                return True
    if len(words) < 24:
        return False
    starts = {*range(0, max(1, len(words) - _WINDOW), _WINDOW // 2), max(0, len(words) - _WINDOW)}
    stretches = [words[i : i + _WINDOW] for i in starts]
    raw = text.encode(errors="replace")
    return any(len(set(s)) < 0.45 * len(s) for s in stretches) or len(zlib.compress(raw)) < 0.3 * len(raw)


def repetition(text: str, size: int = 4) -> float:
    """Share of a text's ``size``-grams of words that occurred before in it: 0 when none does, 0 for a shorter text."""
    words = _WORD.findall(text.casefold())
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
