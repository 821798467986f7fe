"""Vocabularies as the files of a folder hold them: tokenizer.json, vocab.json, a SentencePiece model, GGUF arrays.

Nothing here needs a tokenizer library. Lists of a quarter of a million tokens are handled as whole sets and maps.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice, repeat
from operator import add
from typing import Any

from ...errors import FormatError, LimitExceeded, WeightsmithError
from ..items import Folder
from .facts import Place

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MOST_PIECES = 1 << 21


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is found whole in the text, before anything else is done to it."""

    id: Any
    text: str
    special: bool
    normalized: bool = False
    single_word: bool = False


@dataclass
class Vocabulary:
    """Tokens and ids of one carrier.

    ``base`` maps the model's own tokens to ids, ``added`` are those that were added. ``settings`` is the file's other
    content (rules, merges) where it has any. ``types`` are SentencePiece's types by id, where the carrier has them.
    """

    source: str
    kind: str
    base: Mapping[str, Any]
    added: list[Added] = field(default_factory=list)
    settings: Mapping[str, Any] = field(default_factory=dict)
    types: list[int] = field(default_factory=list)
    listed: int = 0  # entries of a list of tokens, equal ones counted

    @cached_property
    def ids(self) -> dict[str, Any]:
        """Every token's id; an added token counts where both have it."""
        return {**self.base, **{a.text: a.id for a in self.added}}

    @cached_property
    def texts(self) -> dict[Any, str]:
        """Token by id."""
        found = {i: t for t, i in self.base.items() if type(i) is int}
        found.update({a.id: a.text for a in self.added if type(a.id) is int})
        return found

    @cached_property
    def special(self) -> set[int]:
        """Ids of tokens that stand for no text."""
        found = {a.id for a in self.added if a.special and type(a.id) is int}
        return found | {i for i, t in enumerate(self.types) if t in (CONTROL, UNKNOWN)}

    @cached_property
    def halves(self) -> list[str] | None:
        """:func:`merge_halves` of the model's merges."""
        model = self.settings.get("model")
        return merge_halves(model.get("merges")) if isinstance(model, dict) else None

    @cached_property
    def made(self) -> list[str]:
        """What each merge makes of its two halves; none where :attr:`halves` has none."""
        model = self.settings.get("model")
        prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
        halves, cut = self.halves or [], len(prefix) if isinstance(prefix, str) else 0
        right = halves[1::2]
        return list(map(add, halves[::2], [b[cut:] for b in right] if cut else right))

    @cached_property
    def counted(self) -> bool:
        """Whether the ids, which have to be integers, are 0, 1, 2 and so on in the order of the file."""
        return list(self.base.values()) == list(range(len(self.base)))

    @cached_property
    def first_made(self) -> int | None:
        """The id of what the first merge makes, where each further one makes the token of the next id; ``None`` otherwise."""
        begin = self.base.get(self.made[0]) if self.made and self.counted else None
        if begin is None or list(islice(self.base, begin, begin + len(self.made))) != self.made:
            return None
        return int(begin)

    def rank(self, text: str) -> int | None:
        """The number of the first merge that makes a text."""
        if self.first_made is None:
            return self._ranks.get(text)
        rank = self.base.get(text, -1) - self.first_made
        return rank if 0 <= rank < len(self.made) else None

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict(zip(reversed(self.made), range(len(self.made) - 1, -1, -1), strict=True))

    def is_marker(self, number: int) -> bool:
        """Whether an id is a special token, or one that is spelled like one."""
        text = self.texts.get(number)
        return number in self.special or (text is not None and looks_special(text))

    def decoded(self, ids: list[int]) -> str:
        """The text of ids, for people: byte-level letters and the SentencePiece space are turned back."""
        return "".join(readable(self.texts.get(i, f"[{i}?]")) for i in ids)


_MARKER = re.compile(
    r"""^(?:<[^\s<>]{0,80}>|<\|.{0,80}\|>|<｜.{0,80}｜>|\[[^\[\]]{1,60}\]|</?\w+/?>|>>.{1,40}<<|__\w{1,20}__|"""
    r"""[a-z]{2,3}_[A-Z][A-Za-z]{1,4}|[a-z]{2}_XX|@@\w+@@|\{[^{}\s]{1,40}\}|<.{0,60}\|>|<\|.{0,60}>)$""", re.DOTALL)  # fmt: skip
_ROLES = frozenset({"pad", "unk", "mask", "bos", "eos", "cls", "sep", "sop", "eop", "gmask", "smask", "blank", "null", "eot",
                    "s", "endoftext", "startoftext"})  # fmt: skip


def looks_special(text: str) -> bool:
    """Whether a token is spelled the way that special ones are: in brackets, or by a usual name."""
    plain = text.strip("▁Ġ ")
    return bool(_MARKER.match(plain)) or plain.casefold() in _ROLES or not plain.strip()


def is_words(text: str) -> bool:
    """Whether a token is one or more ordinary words: letters, spaces and the marks of a sentence."""
    plain = readable(text).strip()
    return not looks_special(text) and bool(re.fullmatch(r"[^\W\d_]{2,}(?:[ '’,.;:!?-]+[^\W\d_]+)*[.!?,:;]*", plain))


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte, the other way round."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


#: byte by the letter that stands for it
BYTE_LETTERS = _byte_letters()


def readable(token: str) -> str:
    """A token as the text that it stands for."""
    if "▁" in token:
        return token.replace("▁", " ")
    if token.isascii():
        return token
    try:
        return bytes([BYTE_LETTERS[c] for c in token]).decode()
    except (KeyError, UnicodeDecodeError):
        return token.replace("Ġ", " ")


MOST_EXCHANGED = 64


def exchanged(numbers: list[Any]) -> dict[int, int]:
    """Numbers that stand in each other's place in a list that is ascending without them: number by the one that it replaced.

    Empty when putting a few numbers back does not make the whole list ascending: then it has some order of its own.
    """
    import numpy as np

    if set(map(type, numbers)) - {int}:
        numbers = [n for n in numbers if type(n) is int]
    row = list(dict.fromkeys(numbers))
    if len(row) < 3 or not 0 <= min(row) <= max(row) < 1 << 40:
        return {}
    numbered = np.array(row, np.int64)
    if (numbered[1:] > numbered[:-1]).all():
        return {}
    high = np.maximum.accumulate(numbered)
    low = np.minimum.accumulate(numbered[::-1])[::-1]
    odd = np.flatnonzero((numbered < high) | (numbered > low))
    mended = numbered.copy()
    mended[odd] = np.sort(numbered[odd])
    changed = np.flatnonzero(mended != numbered)
    if len(changed) > MOST_EXCHANGED or not (mended[1:] > mended[:-1]).all():
        return {}
    moved = {int(mended[at]): row[at] for at in changed}
    pairs = all(moved.get(new) == old for old, new in moved.items())
    where = {row[at]: int(at) for at in changed}
    return moved if pairs and any(abs(where[old] - where[new]) > 1 for new, old in moved.items()) else {}


# -- carriers ------------------------------------------------------------------------------------------------


def vocabularies(place: Place) -> Iterator[Vocabulary]:
    """Every vocabulary of a directory, the one that loaders prefer first."""
    found = from_tokenizer_json(place.json("tokenizer.json"), place.prefix + "tokenizer.json")
    if found is not None:
        yield found
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        item = place.folder.items.get(place.prefix + name)
        if item is not None and "protobuf" in item.kinds:
            try:
                pieces = sentencepiece(item.read(1 << 26))
            except LimitExceeded:
                raise
            except (FormatError, WeightsmithError, OSError):
                continue  # not SentencePiece: who reads protocol buffers says what it is
            if pieces is not None:
                yield Vocabulary(place.prefix + name, "sentencepiece", {t: i for i, (t, _, _) in enumerate(pieces)},
                                 types=[kind for _, _, kind in pieces], listed=len(pieces))  # fmt: skip
    base = place.json("vocab.json")
    if base and 2 * sum(isinstance(v, int) for v in base.values()) > len(base):  # some hold a vocabulary for each language
        yield Vocabulary(place.prefix + "vocab.json", "vocab", base)
    if (text := place.folder.items.get(place.prefix + "vocab.txt")) is not None and "text" in text.kinds:
        try:
            lines = text.text().replace("\r\n", "\n").removesuffix("\r").split("\n")
        except LimitExceeded:
            raise
        except WeightsmithError:
            lines = []
        if lines:
            words = lines[:-1] if lines[-1] == "" else lines
            yield Vocabulary(place.prefix + "vocab.txt", "wordpiece", dict(zip(words, range(len(words)), strict=True)),
                             listed=len(words))  # fmt: skip


def from_tokenizer_json(data: Mapping[str, Any], source: str) -> Vocabulary | None:
    """The vocabulary of a ``tokenizer.json``; ``None`` where it has none."""
    model = data.get("model")
    if not isinstance(model, dict):
        return None
    base, listed = model.get("vocab"), 0
    kind = model.get("type") if isinstance(model.get("type"), str) else "Unigram" if isinstance(base, list) else "BPE"
    if isinstance(base, list):
        texts = [p[0] if isinstance(p, list) and p and isinstance(p[0], str) else None for p in base]
        listed = len(texts)
        base = {t: i for i, t in enumerate(texts)} if None in texts else dict(zip(texts, range(listed), strict=True))
    if not isinstance(base, dict):
        return None
    entries = data.get("added_tokens")
    added = [Added(e.get("id"), e["content"], bool(e.get("special")), bool(e.get("normalized")), e.get("single_word") is True)
             for e in (entries if isinstance(entries, list) else []) if isinstance(e, dict) and isinstance(e.get("content"), str)]
    return Vocabulary(source, str(kind), base, added, data, listed=listed)


def from_gguf(folder: Folder, name: str) -> Vocabulary | None:
    """The vocabulary of a GGUF file; ``None`` where it has none."""
    metadata = folder.ggufs[name].metadata
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        return None
    kinds = types if isinstance(types, list) else []
    return Vocabulary(name, "gguf", {t: i for i, t in enumerate(tokens)}, settings=metadata, types=kinds, listed=len(tokens))


def sentencepiece(data: bytes) -> list[tuple[str, float, int]] | None:
    """``(piece, score, type)`` of a SentencePiece model; ``None`` when the bytes are not one.

    Raises:
        FormatError: it begins like one and is malformed.
    """
    pieces: list[tuple[str, float, int]] = []
    at, size, unpack = 0, len(data), struct.Struct("<f").unpack_from
    while at < size:
        if data[at] != 0x0A:  # the pieces come first, trainer and normaliser follow; readers take them in any order
            at = _behind(data, at)
            continue
        length, begin = _short(data, at + 1)
        end = begin + length
        if end > size or len(pieces) >= MOST_PIECES:
            raise FormatError("a piece is longer than the file")
        at = end
        width, start = _short(data, begin + 1) if data[begin : begin + 1] == b"\x0a" else (0, begin)
        score, kind, here = 0.0, NORMAL, start + width
        if data[here : here + 1] == b"\x15" and here + 5 <= end:
            score, here = unpack(data, here + 1)[0], here + 5
        if data[here : here + 1] == b"\x18" and here + 2 <= end:
            kind, here = data[here + 1], here + 2
        if here == end and start > begin:
            pieces.append((data[start : start + width].decode("utf-8", "replace"), score, kind))
        elif (odd := _piece(data[begin:end])) is not None:
            pieces.append(odd)
        else:
            return None
    return pieces or None


def _piece(data: bytes) -> tuple[str, float, int] | None:
    """A piece whose fields come in another order than writers have; ``None`` when it is none."""
    text, score, kind = b"", 0.0, NORMAL
    at = 0
    while at < len(data):
        key, begin = _varint(data, at)
        at = _behind(data, at)
        if at > len(data):
            raise FormatError("a piece is longer than its message")
        if key == 0x0A:
            text = data[_varint(data, begin)[1] : at]
        elif key == 0x15:
            score = struct.unpack_from("<f", data, begin)[0]
        elif key == 0x18:
            kind = _varint(data, begin)[0]
        elif key >> 3 <= 3:
            return None
    return text.decode("utf-8", "replace"), score, kind


def sentencepiece_part(data: bytes, number: int, *, whole: bool = True) -> bytes | None:
    """The bytes of one field of a SentencePiece model or of a part of it (2 trainer, 3 normaliser, 5 denormaliser).

    Of a message that comes several times readers make one; of text (``whole`` is false) the last one counts.
    """
    at, found = 0, None
    while at < len(data):
        key, begin = _varint(data, at)
        at = _behind(data, at)
        if key >> 3 == number and key & 7 == 2:
            part = data[_varint(data, begin)[1] : at]
            found = part if found is None or not whole else found + part
    return found


def _behind(data: bytes, at: int) -> int:
    """Where the next field begins.

    Raises:
        FormatError: no field of a SentencePiece model.
    """
    key, at = _varint(data, at)
    if key & 7 == 2:
        length, at = _varint(data, at)
        return at + length
    if key & 7 == 0:
        return _varint(data, at)[1]
    if key & 7 not in (1, 5):
        raise FormatError("not a SentencePiece model")
    return at + (8 if key & 7 == 1 else 4)


def _short(data: bytes, at: int) -> tuple[int, int]:
    """The same for numbers that nearly always are below 128."""
    return (data[at], at + 1) if at < len(data) and data[at] < 0x80 else _varint(data, at)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise FormatError("a number has no end")


def merge_halves(merges: Any) -> list[str] | None:
    """The two tokens of each merge, one after the other, from either way of writing them; ``None`` for anything else."""
    if not isinstance(merges, list):
        return None
    kinds = set(map(type, merges))
    if kinds == {str}:
        return None if set(map(str.count, merges, repeat(" "))) - {1} else " ".join(merges).split(" ")
    if kinds <= {list} and not set(map(len, merges)) - {2}:
        halves = list(chain.from_iterable(merges))
        return None if set(map(type, halves)) - {str} else halves
    return None


def merge_pairs(merges: Any) -> list[tuple[str, str]] | None:
    """Merges as pairs of tokens; ``None`` where :func:`merge_halves` has none."""
    halves = merge_halves(merges)
    return None if halves is None else list(zip(halves[::2], halves[1::2], strict=True))
