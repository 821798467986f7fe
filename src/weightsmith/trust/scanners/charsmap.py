"""The compiled map of characters that SentencePiece normalises text with, taken apart: what becomes what.

The map is a double array of 32-bit units (the trie), then the replacements as strings that end in a zero byte. Every
path from the root to a leaf is one text that is replaced; all of them are listed, so that none can hide.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import FormatError

MOST_UNITS = 1 << 21
MOST_PATHS = 1 << 20  # on one level of the trie; the largest real maps have a quarter of a million entries in all
MOST_DEPTH = 64  # bytes of a text that is replaced
Numbers = np.ndarray[Any, np.dtype[np.int64]]


def replacements(blob: bytes) -> Iterator[tuple[str, str]]:
    """``(text, what it becomes)`` for every entry of a compiled map that is not plain composition (NFKC).

    Texts of one length come together; each level of the trie is one step over whole arrays. Different paths may share
    nodes, so every path is followed by itself.

    Raises:
        FormatError: not such a map.
    """
    if len(blob) < 4:
        raise FormatError("shorter than its own length")
    size = int.from_bytes(blob[:4], "little")
    if size % 4 or not 4 <= size <= len(blob) - 4 or size // 4 > MOST_UNITS:
        raise FormatError(f"a trie of {size} bytes in a map of {len(blob)}")
    units = np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64)
    strings = blob[4 + size :]
    ends = np.flatnonzero(np.frombuffer(strings, np.uint8) == 0)
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    labels = units & (0x80000000 | 0xFF)
    children = np.flatnonzero((labels > 0) & (labels < 256))
    parents = children ^ labels[children]  # the base of the node that a unit hangs from
    order = np.argsort(parents, kind="stable")
    children, parents = children[order], parents[order]
    nodes, texts = np.zeros(1, np.int64), np.zeros((1, 0), np.uint8)
    for depth in range(MOST_DEPTH):
        bases = nodes ^ offsets[nodes]
        leaves = np.flatnonzero((units[nodes] >> 8 & 1 == 1) & (bases < len(units)))
        if len(leaves) and depth:
            yield from _entries(texts[leaves], units[bases[leaves]] & 0x7FFFFFFF, strings, ends)
        first, last = np.searchsorted(parents, bases, "left"), np.searchsorted(parents, bases, "right")
        counts = last - first
        total = int(counts.sum())
        if not total:
            return
        if total > MOST_PATHS:
            raise FormatError(f"more than {MOST_PATHS} texts of {depth + 1} bytes are replaced")
        rows = np.repeat(np.arange(len(nodes)), counts)
        begins = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        nodes = children[begins + np.arange(total)]
        texts = np.concatenate([texts[rows], labels[nodes].astype(np.uint8)[:, None]], axis=1)
    raise FormatError(f"a text of more than {MOST_DEPTH} bytes is replaced")


def _entries(texts: np.ndarray[Any, Any], at: Numbers, strings: bytes, ends: Numbers) -> Iterator[tuple[str, str]]:
    """Texts of one length and what they become, without those that NFKC turns into the same."""
    stops = np.searchsorted(ends, at)
    if stops.max() >= len(ends):
        raise FormatError("a replacement lies outside the map")
    keys = np.concatenate([texts, np.zeros((len(texts), 1), np.uint8)], axis=1).tobytes().decode("utf-8", "replace").split("\0")
    begins, finishes = at.tolist(), ends[stops].tolist()
    values = b"\0".join([strings[a:b] for a, b in zip(begins, finishes, strict=True)]).decode("utf-8", "replace").split("\0")
    folded = unicodedata.normalize("NFKC", "\0".join(keys)).split("\0")
    for key, value, fold in zip(keys, values, folded, strict=False):
        if value not in (fold, key):
            yield key, value


def is_folding(text: str, becomes: str) -> bool:
    """Whether a replacement only folds what Unicode and the usual text cleaning take for one: composition, width,
    case, accents, kinds of space, invisible marks."""
    if text == becomes or any(unicodedata.category(c) == "Cn" for c in text):
        return True  # a letter of a newer Unicode than ours is none that anybody writes yet
    fold = unicodedata.normalize("NFKC", text)
    candidates = {fold, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text), unicodedata.normalize("NFKD", text)}
    candidates |= {unicodedata.normalize(form, c.casefold()) for c in list(candidates) for form in ("NFKC", "NFC", "NFKD")}
    candidates |= {unicodedata.normalize(form, c.lower()) for c in list(candidates) for form in ("NFKC", "NFC")}
    if becomes in candidates:
        return True
    return _skeleton(text) == _skeleton(becomes) and _accents(becomes) <= _accents(text) and _parted(text) == _parted(becomes)


_ALIKE = str.maketrans({
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‟": '"', "″": '"', "‘": "'", "’": "'", "‚": "'", "‛": "'", "′": "'",
    "`": "'", "´": "'", "–": "-", "—": "-",
    "‐": "-", "‑": "-", "‒": "-", "―": "-", "−": "-", "﹣": "-", "－": "-", "…": "...", "～": "~",
    "〜": "~", "∼": "~", "，": ",", "、": ",", "。": ".", "．": ".", "·": ".", "•": ".", "▁": " ", "Ġ": " ", "ı": "i", "ß": "ss",
    "ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "⁄": "/", "∕": "/", "‖": "||", "ʼ": "'", "׳": "'", "״": '"',
})  # fmt: skip


def _parted(text: str) -> int:
    """Spaces between two letters: taking one away, or putting one in, makes another word."""
    return len(re.findall(r"(?<=[^\W\d_])(?:\s|[▁Ġ])+(?=[^\W\d_])", text))


def _accents(text: str) -> int:
    return sum(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", text))


def _skeleton(text: str) -> str:
    """What is left of a text without case, accents, kinds of quotes, dashes and spaces, and marks that can't be seen."""
    plain = unicodedata.normalize("NFKD", text.translate(_ALIKE)).casefold().translate(_ALIKE)
    # not Mc: the vowel signs of India's scripts are letters to their readers
    kept = [c for c in plain if unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc", "Zs", "Zl", "Zp", "Co", "Cn")]
    return "".join(kept).replace("''", '"').replace("--", "-")
