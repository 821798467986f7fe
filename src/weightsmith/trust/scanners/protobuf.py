"""Protocol buffers without their schema: fields in order, nested messages by their place in the file, nothing copied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ...errors import FormatError, LimitExceeded

MOST_FIELDS = 700_000
_BLOCK = 1 << 16
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class Field:
    """One field: its number, wire type, its value (for numbers) or where its bytes begin and end."""

    number: int
    wire: int
    value: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


class Messages:
    """The messages of one file; counts what it reads so that no file takes long."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.seen, self.base, self.block = 0, 0, b""

    def _at(self, at: int, count: int) -> bytes:
        spot = at - self.base
        if spot < 0 or spot + count > len(self.block):
            self.file.seek(at)
            self.base, self.block, spot = at, self.file.read(max(count, _BLOCK)), 0
        return self.block[spot : spot + count]

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        spot = at - self.base
        if 0 <= spot < len(self.block) and at < end and self.block[spot] < 0x80:
            return self.block[spot], at + 1
        raw = self._at(at, min(10, end - at))
        value = 0
        for index, byte in enumerate(raw):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, at + index + 1
        raise FormatError(f"a number that does not end (byte {at})")

    def fields(self, start: int = 0, end: int | None = None) -> Iterator[Field]:
        """The fields of the message that lies between two places.

        Raises:
            FormatError: a field leaves the message or is of no known type.
            LimitExceeded: more fields in the file than can be read in reasonable time.
        """
        at = start
        end = self.size if end is None else end
        while at < end:
            self.seen += 1
            if self.seen > MOST_FIELDS:
                raise LimitExceeded(f"more than {MOST_FIELDS} fields")
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            value, begin = 0, at
            if wire == VARINT:
                value, at = self._varint(at, end)
            elif wire == BYTES:
                length, begin = self._varint(at, end)
                at = begin + length
            elif wire in (FIXED64, FIXED32):
                at += 8 if wire == FIXED64 else 4
            else:
                raise FormatError(f"a field of wire type {wire} (byte {begin})")
            if at > end or not number:
                raise FormatError(f"field {number} leaves its message (byte {begin})")
            yield Field(number, wire, value, begin, at)

    def raw(self, field: Field, most: int = 4096) -> bytes:
        """A field's bytes, at most so many."""
        self.file.seek(field.start)
        return self.file.read(min(field.size, most))

    def text(self, field: Field, most: int = 4096) -> str:
        """A field's text, at most so many bytes of it."""
        return self.raw(field, most).decode("utf-8", "replace")

    def numbers(self, field: Field, most: int) -> tuple[int, ...]:
        """A field's packed numbers, at most so many.

        Raises:
            FormatError: one does not end.
        """
        found: list[int] = []
        at = field.start
        while at < field.end and len(found) < most:
            value, at = self._varint(at, field.end)
            found.append(value)
        return tuple(found)
