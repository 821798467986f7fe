"""Signs that a tokenizer's rules put in the place of spaces, or take away: whether the vocabulary was made with them.

The vocabulary is the witness. Where ``</w>`` ends a word or ``@@`` a piece, many tokens carry it; a full stop or a hyphen that
becomes a space is no sign of the vocabulary but a sign of the text.
"""

from __future__ import annotations

from .regexes import visible
from .vocabulary import Vocabulary, looks_special

_FEW, _SHARE = 4, 0.01  # tokens that carry a sign, from which on a vocabulary counts as made with it
_SPACES = (" ", "▁", "Ġ", "|")  # tokens that stand for a space by themselves
#: what the library takes where a rule names no sign, and what no text holds
_UNASKED = frozenset({"</w>", "<pad>", "[PAD]"})


def is_of_text(sign: str, vocabulary: Vocabulary) -> bool:
    """Whether a sign that stands for a space, or marks a piece, is one of the text and not of the vocabulary."""
    if not visible(sign) or sign in _UNASKED or _is_carried(sign, vocabulary):
        return False
    if looks_special(sign):
        return sign not in vocabulary.ids
    if sign == "##":  # a heading, where tokens hold whole texts
        return vocabulary.kind in ("BPE", "Unigram")
    alone = sign in vocabulary.base and not any(s in vocabulary.base for s in _SPACES if s != sign)
    return not alone and not (sign == "|" and "|" not in vocabulary.base)


def is_written(pad: str, vocabulary: Vocabulary) -> bool:
    """Whether what stands for silence is a sign that the vocabulary holds like any other one."""
    number = vocabulary.ids.get(pad)
    if not visible(pad) or looks_special(pad) or type(number) is not int or number in vocabulary.special:
        return False
    return number != 0 and number != max(vocabulary.texts)  # where silence has its place


def _is_carried(sign: str, vocabulary: Vocabulary) -> bool:
    count = sum((t.startswith(sign) or t.endswith(sign)) and t != sign for t in vocabulary.base)
    return count >= max(_FEW, _SHARE * len(vocabulary.base))
