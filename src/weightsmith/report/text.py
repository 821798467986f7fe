"""Small text helpers of the report: what a reader may see of untrusted text, how figures are written, word diffs."""

from __future__ import annotations

import difflib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MINUS = "\u2212"
CANNOT_TELL = "cannot tell"

# Characters that hide or reorder what stands around them although Unicode files them under letters, marks or spaces.
_HIDING = {0x115F, 0x1160, 0x2028, 0x2029, 0x2800, 0x3164, 0xFFA0}
_JOINERS = {"\u200c", "\u200d"}
_SHARES = {"share", "rate", "fraction", "proportion"}
# Word diffs are quadratic; past this many pairs of words the answer is shown without marks.
_DIFF_LIMIT = 4_000_000
_TOKEN = re.compile(r"\s+|\w+(?:['’]\w+)*|[^\w\s]")


def _picture(char: str) -> str:
    point = ord(char)
    if point < 0x20:
        return chr(0x2400 + point)
    if point == 0x7F:
        return "\u2421"
    return f"\u27e8U+{point:04X}\u27e9"


def _hidden(char: str) -> bool:
    point = ord(char)
    if char in "\n\t":
        return False
    if point in _HIDING or 0xE0100 <= point <= 0xE01EF or point & 0xFFFE == 0xFFFE:
        return True
    return unicodedata.category(char) in {"Cc", "Cf", "Cs"}


def visible(text: str) -> str:
    """``text`` with every control, bidi, zero-width or otherwise hidden character shown as a picture or code point.

    Line feeds and tabs stay. Joiners stay between two non-ASCII characters, where emoji and many scripts need them.
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    out = []
    for index, char in enumerate(text):
        if char in _JOINERS and not text[max(0, index - 1) : index + 2].replace(char, "a").isascii():
            around = text[index - 1 : index] + text[index + 1 : index + 2]
            kept = len(around) == 2 and not any(c.isascii() or _hidden(c) for c in around)
            out.append(char if kept else _picture(char))
        else:
            out.append(_picture(char) if _hidden(char) else char)
    return "".join(out)


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """``value`` with a true minus sign; ``signed`` gives positive numbers their plus; not finite is a dash."""
    if not math.isfinite(value):
        return "\u2013"
    text = f"{abs(value):,.{decimals}f}"
    if not any(c in "123456789" for c in text):
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def decimals_for(value: float, low: float, high: float) -> int:
    """As many decimals as the interval can support: two digits of its width, or three digits of a bare value."""
    width = high - low
    if math.isfinite(width) and width > 0:
        return min(6, max(0, 1 - math.floor(math.log10(width))))
    if not math.isfinite(value) or value == 0 or float(value).is_integer():
        return 0
    return min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


@dataclass(frozen=True)
class Shown:
    """A figure as it is printed: value, bounds and unit already in words."""

    value: str
    low: str
    high: str
    unit: str
    bounded: bool

    @property
    def interval(self) -> str:
        """The bounds in words; a figure without an interval says so."""
        return f"{self.low} to {self.high}" if self.bounded else "no interval"


def is_share(unit: str) -> bool:
    """Whether a unit such as ``share of answers`` runs from 0 to 1 and reads best in per cent."""
    return unit.casefold().partition(" ")[0] in _SHARES


def show(
    value: float, low: float, high: float, unit: str, *, signed: bool = False, change: bool = False, bounded: bool = True,
    places: int | None = None,
) -> Shown:  # fmt: skip
    """Print a figure; shares become per cent, and a change of a share becomes percentage points.

    ``places`` are the decimals if it must match its neighbours; otherwise its own interval decides.
    """
    of_what = unit.partition(" ")[2]
    share = is_share(unit)
    if share:
        value, low, high = value * 100, low * 100, high * 100
    bounded = bounded and math.isfinite(low) and math.isfinite(high)
    if places is None:
        places = decimals_for(value, low, high) if bounded else decimals_for(value, value, value)
    tail = "%" if share and not change else ""
    parts = [number(v, places, signed=signed or change) for v in (value, low, high)]
    words = [p + tail if p != "\u2013" else p for p in parts]
    printed_unit = ("percentage points" if change else of_what) if share else unit
    return Shown(words[0], words[1], words[2], printed_unit, bounded)


def probability(p: float) -> str:
    """A p value: two digits, and never a claim finer than one in ten thousand."""
    if not math.isfinite(p):
        return "\u2013"
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.{1 - math.floor(math.log10(p))}f}"


def verdict(low: float, high: float) -> str:
    """What a paired interval says alone: ``rises``, ``falls``, or that it cannot tell because zero lies inside."""
    if low > 0:
        return "rises"
    return "falls" if high < 0 else CANNOT_TELL


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if not math.isfinite(seconds) or seconds < 0:
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def spans(layers: Iterable[int]) -> str:
    """``[3, 4, 5, 9]`` as ``3–5, 9``."""
    return ", ".join(str(a) if a == b else f"{a}\u2013{b}" for a, b in runs(layers))


def runs(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Unbroken runs of ``layers``, each as (first, last)."""
    found: list[tuple[int, int]] = []
    for layer in sorted(set(layers)):
        if found and layer == found[-1][1] + 1:
            found[-1] = (found[-1][0], layer)
        else:
            found.append((layer, layer))
    return found


def clip(text: str, most: int) -> str:
    """``text`` on one line, cut at a word with an ellipsis past ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most].rpartition(" ")[0].rstrip(" ,;:.") + "…"


def compact(value: Any) -> str:
    """An option's value on one line; flat lists and mappings without their brackets."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value and all(_flat(v) for v in value.values()):
        return ", ".join(f"{k} {compact(v)}" for k, v in value.items())
    if isinstance(value, list) and value and all(map(_flat, value)):
        return ", ".join(map(compact, value))
    return json.dumps(value, ensure_ascii=False, default=str)


def tabular(value: Any) -> bool:
    """Whether an option is a list of mappings without anything nested, which a table shows best."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and all(map(_flat, v.values())) for v in value)


def brief(text: str) -> str:
    """A digest by its first twelve characters; any other text as it is."""
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{40,128}", text) else text


def _flat(value: Any) -> bool:
    return not isinstance(value, dict | list)


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer; ``changed`` when its words are not in the other text at that place."""

    text: str
    changed: bool


@dataclass(frozen=True)
class WordDiff:
    """An edited answer against its base.

    ``gone`` are indices of base words that the edited answer lacks. ``rewritten`` means that so little is shared that
    marking single words would only be noise, so ``pieces`` is then the whole text, unmarked.
    """

    pieces: list[Piece]
    gone: frozenset[int]
    same: bool
    rewritten: bool


def words(text: str) -> list[str]:
    """Words, punctuation and white space, in order; joined they are the text again."""
    return _TOKEN.findall(text)


def _merge(marked: Iterable[tuple[str, bool]]) -> list[Piece]:
    """Neighbouring words of one kind as one piece; white space is marked only between two marked words."""
    tokens = list(marked)
    for i, (word, _) in enumerate(tokens):
        if word.isspace():
            inside = 0 < i < len(tokens) - 1 and tokens[i - 1][1] and tokens[i + 1][1]
            tokens[i] = (word, inside and "\n" not in word)
    pieces: list[Piece] = []
    for text, changed in tokens:
        if pieces and pieces[-1].changed == changed:
            pieces[-1] = Piece(pieces[-1].text + text, changed)
        elif text:
            pieces.append(Piece(text, changed))
    return pieces


def word_diff(base: str, edited: str, shared_enough: float = 0.4) -> WordDiff:
    """Compare two answers word by word; below ``shared_enough`` the edited one counts as rewritten."""
    if base == edited:
        return WordDiff([Piece(edited, False)] if edited else [], frozenset(), True, False)
    old, new = words(base), words(edited)
    whole = WordDiff([Piece(edited, False)] if edited else [], frozenset(), False, True)
    if len(old) * len(new) > _DIFF_LIMIT:
        return whole
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    blocks = matcher.get_opcodes()
    # white space matches by chance nearly everywhere, so it does not count as something that two answers share
    kept = sum(not w.isspace() for tag, a, b, _, _ in blocks if tag == "equal" for w in old[a:b])
    larger = max(sum(not w.isspace() for w in side) for side in (old, new))
    if larger and kept / larger < shared_enough:
        return whole
    marked = ((w, tag != "equal") for tag, _, _, a, b in blocks for w in new[a:b])
    gone = frozenset(i for tag, a, b, _, _ in blocks if tag in {"replace", "delete"} for i in range(a, b))
    return WordDiff(_merge(marked), gone, False, False)


def mark(text: str, gone: Sequence[frozenset[int]]) -> list[Piece]:
    """The base answer with the words marked that none of the edited answers kept."""
    lost = frozenset.intersection(*gone) if gone else frozenset()
    return _merge((word, index in lost) for index, word in enumerate(words(text)))
