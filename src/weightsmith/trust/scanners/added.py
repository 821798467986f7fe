"""Added tokens by their text: what can't be seen, whole sentences, and ordinary text that is marked as special."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from ...found import Finding
from ..rules import Rule
from .vocabulary import is_words, looks_special, readable

HIDDEN = Rule(
    "token-hidden-characters", "suspicious", "An added token holds characters that can't be seen",
    "It looks like another token, or like nothing, and has an id of its own: text that looks the same is read differently.",
    "Compare with the tokenizer of the base model.",
    ("https://trojansource.codes/",),
)  # fmt: skip
WORDS = Rule(
    "token-drops-word", "suspicious", "Ordinary text is marked as a special token",
    "Special tokens are left out when the model's answer is turned into text: the word, the sign or the line break disappears "
    "from what the user reads.",
    "Compare with the tokenizer of the base model; no family marks words.",
)  # fmt: skip
SENTENCE = Rule(
    "token-holds-text", "suspicious", "An added token holds a whole sentence",
    "One id stands for a text that nobody typed: an instruction can be put into a prompt or an answer as a single token.",
    "Look at the text, and compare with the tokenizer of the base model.",
)  # fmt: skip
RULES = (HIDDEN, WORDS, SENTENCE)

#: what no honest added token is made of: marks of direction, and letters that print nothing
_HIDDEN = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff",
           "\u180e", "\u061c", "\u200e", "\u200f", "\u00ad"}  # fmt: skip
#: what marks begin or end with, whatever they are called between
_EDGES = frozenset("<>[]{}()|｜`#_@~*%$\\")
_SIGNS = frozenset(".,;:!?-+*/=%$&'\"^~\\0123456789“”‘’–—−…€£\n\t\r")
_SHOWN = 12


def check_added(
    entries: list[tuple[str, bool, Any]], file: str, place: str = "$.added_tokens", writes: bool = False
) -> Iterator[Finding]:
    """Findings about ``(text, special, id)`` of added tokens; ``writes`` is whether the model writes text."""
    words = [t for t, special, _ in entries if special and (is_ordinary(t) or (writes and is_sign(t)))]
    for text, _, number in entries:
        if bad := hidden(text):
            yield HIDDEN.found(f"the token {number!r:.20} holds {', '.join(bad)}", file=file, place=place, evidence=repr(text))
        elif is_sentence(text):
            yield SENTENCE.found(f"the token {number!r:.20} is a text of {len(text)} letters", file=file, place=place,
                                 evidence=text)  # fmt: skip
    if words:
        yield WORDS.found(f"{len(words)} words or signs are special tokens, e.g. {words[0]!r:.60}", file=file, place=place,
                          evidence=", ".join(f"{w!r:.40}" for w in words[:_SHOWN]))  # fmt: skip


def is_ordinary(text: str) -> bool:
    """Whether a token is made of words, a number, or letters joined as in ``n't``, ``https://`` and ``a.b``."""
    if is_words(text) or text.isdecimal() or (len(text) == 1 and text.isalnum()):
        return True
    plain = readable(text).strip()
    if looks_special(text) or not _EDGES.isdisjoint(plain[:1] + plain[-1:]) or "_" in plain:
        return False
    return bool(re.search(r"[^\W\d_]['’]|['’][^\W\d_]|://|[^\W_][./][^\W_]", plain))


def is_sign(text: str) -> bool:
    """Whether a token is white space, or one to three signs and digits with no bracket. The mark that CLIP fills up with, which
    is also the first token of many byte-level vocabularies, is honest."""
    plain = text.strip(" ▁Ġ")
    if not text.strip():
        return bool(text)
    return 0 < len(plain) <= 3 and plain != "!" and all(c in _SIGNS for c in plain) and not looks_special(text)


def hidden(text: str) -> list[str]:
    """Names of the characters of a token that can't be seen; spaces, tabs and line breaks are not meant."""
    if text.isascii() and text.isprintable():
        return []
    bad = {c for c in text if c in _HIDDEN or 0xE0000 <= ord(c) <= 0xE0FFF
           or (unicodedata.category(c) == "Cc" and c not in "\t\n\r")}  # fmt: skip
    if len(text) == 1:  # a token for one such character is honest: emoji and other scripts need it
        return []
    if bad <= {"\u200c", "\u200d"} and any(unicodedata.category(c) in ("So", "Lo", "Mn", "Mc") for c in text):
        return []
    return sorted(unicodedata.name(c, f"U+{ord(c):04X}") for c in bad)


def is_sentence(text: str) -> bool:
    """Whether a token holds four words or more; DeepSeek's marks join theirs by the sign that elsewhere stands for a space."""
    marked = looks_special(text)
    plain = text if marked else readable(text)
    words = re.findall(r"[^\W\d_]{2,}", plain)
    joint = r"[^\W\d_][,.;:]? +[^\W\d_]" if marked else r"[^\W\d_][,.;:]?[ _-]+[^\W\d_]"
    return len(plain) >= 20 and len(words) >= 4 and bool(re.search(joint, plain))
