"""msgpack, as Flax stores weights: walked without building anything."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import Item
from ..listing import shown
from ..rules import Rule

BROKEN = Rule(
    "msgpack-broken", "broken", "A msgpack file that its format does not allow",
    "It is cut off, claims more than it holds, or goes on behind its end; readers that trust its numbers ask for that much memory.",
    "Fetch it again.",
)  # fmt: skip
EXTENSION = Rule(
    "msgpack-extension", "suspicious", "msgpack values of an unknown type",
    "What becomes of them is up to the program that reads them; Flax knows arrays and numbers only.",
    "Ask the publisher which program wrote the file.",
)  # fmt: skip
RULES = (BROKEN, EXTENSION)

MOST_VALUES = 1_000_000
MOST_DEPTH = 128
_SIZED = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_EXTS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_MANY = {0xDC: (">H", 1), 0xDD: (">I", 1), 0xDE: (">H", 2), 0xDF: (">I", 2)}
_OBJECTS = (b"\xa6object", b"\xa1O")


def scan(item: Item) -> Iterator[Finding]:
    """Findings of one file."""
    name = shown(item.name)
    try:
        with item.open() as file:
            odd = _walk(file, item.size)
    except FormatError as error:
        yield BROKEN.found(error.message, file=name)
        return
    if odd:
        yield EXTENSION.found(f"extension types {', '.join(map(str, sorted(odd)[:10]))}", file=name)


def _walk(file: BinaryIO, size: int) -> set[int]:
    """Walk all values; the extension types that Flax does not have.

    Raises:
        FormatError: malformed.
        LimitExceeded: more values than any model has.
    """
    left = [1]
    odd: set[int] = set()
    at = seen = 0
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        seen += 1
        if seen > MOST_VALUES or len(left) > MOST_DEPTH:
            raise LimitExceeded(f"more than {MOST_VALUES} values or {MOST_DEPTH} levels")
        first = file.read(1)
        if not first:
            raise FormatError("cut off")
        byte = first[0]
        at += 1
        skip, inside, number = 0, 0, 0
        if 0x80 <= byte <= 0x9F:
            inside = (byte & 15) * (2 if byte < 0x90 else 1)
        elif 0xA0 <= byte <= 0xBF:
            skip = byte & 31
        elif byte in _SIZED or byte in _EXTS or byte in _MANY:
            form = _SIZED.get(byte) or _EXTS.get(byte) or _MANY[byte][0]
            raw = file.read(struct.calcsize(form))
            if len(raw) < struct.calcsize(form):
                raise FormatError("cut off")
            (number,) = struct.unpack(form, raw)
            at += len(raw)
            inside, skip = (number * _MANY[byte][1], 0) if byte in _MANY else (0, number)
        elif byte in _FIXED:
            skip = _FIXED[byte]
        elif 0xD4 <= byte <= 0xD8:
            skip = 1 << (byte - 0xD4)
        elif byte == 0xC1:
            raise FormatError(f"a value of no type (byte {at - 1})")
        if byte in _EXTS or 0xD4 <= byte <= 0xD8:
            kind = int.from_bytes(file.read(1), "big", signed=True)
            at += 1
            if kind not in (1, 2, 3, -1):
                odd.add(kind)
        at += skip
        if at > size or inside > size - at:
            raise FormatError(f"a value claims {max(skip, inside)} bytes or values, more than are left (byte {at - skip})")
        file.seek(at)
        if inside:
            left.append(inside)
    if at < size:
        raise FormatError(f"{size - at} bytes behind its end")
    return odd
