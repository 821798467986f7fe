"""What a pickle builds, as plain descriptions: nothing that it names is ever imported.

Also the bounded reader that its bytes come through. Lengths that a stream claims are checked against what is there
before anything is kept, and long strings are skipped: only their place and first bytes are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

KEPT = 1 << 16  # bytes of one string that are kept
_PIECE = 1 << 18  # bytes that are read at a time

Value = Any


class PickleEnds(Exception):
    """The bytes end, or are none that any unpickler goes on after."""


class Global:
    """Something that the stream imports: a module and a (perhaps dotted) name in it."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Made:
    """The result of a call: what was called, with what, by which opcode; ``state`` is what BUILD gave it, ``items`` what
    was put into it afterwards, ``cut`` when not all of that was kept."""

    __slots__ = ("args", "cut", "func", "how", "items", "state")

    def __init__(self, func: Value, args: Value, how: str) -> None:
        self.func, self.args, self.how, self.cut = func, args, how, False
        self.state: Value = None
        self.items: list[Value] = []

    def is_a(self, module: str, name: str) -> bool:
        """Whether it was made by this callable."""
        return isinstance(self.func, Global) and (self.func.module, self.func.name) == (module, name)


class Held:
    """A list, dict or set; ``items`` of a dict are keys and values in turn. ``cut`` when not all of them were kept."""

    __slots__ = ("cut", "items", "kind")

    def __init__(self, kind: str, items: list[Value]) -> None:
        self.kind, self.items, self.cut = kind, items, False

    def pairs(self) -> Iterator[tuple[Value, Value]]:
        """Keys and values of a dict."""
        return zip(self.items[::2], self.items[1::2], strict=False)


class Long:
    """A string of more than :data:`KEPT` bytes: where it lies in the stream and how it begins; ``text`` when its bytes
    are UTF-8 of a ``str``."""

    __slots__ = ("first", "length", "start", "text")

    def __init__(self, first: bytes, start: int, length: int, text: bool) -> None:
        self.first, self.start, self.length, self.text = first, start, length, text


class Pers:
    """An object that the reader supplies, by its persistent id; torch's storages are these."""

    __slots__ = ("pid",)

    def __init__(self, pid: Value) -> None:
        self.pid = pid


class Opaque:
    """A value of which only the type is known: a very long number, bytes that come from elsewhere."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Cursor:
    """A file read forward from where it stands; positions count from there, plus ``base``.

    ``buffer`` holds the bytes from position ``base`` on, ``at`` is the index of the next one in it.
    """

    def __init__(self, file: BinaryIO, base: int = 0) -> None:
        self.file = file
        self.buffer = b""
        self.at = 0
        self.base = base  # position of the buffer's first byte

    @property
    def position(self) -> int:
        """Of the next byte."""
        return self.base + self.at

    def more(self, needed: int) -> bool:
        """Have ``needed`` bytes in the buffer; false when the file has fewer."""
        parts = [self.buffer[self.at :]]
        have = len(parts[0])
        self.base += self.at
        self.at = 0
        while have < needed:
            part = self.file.read(max(_PIECE, needed - have))
            if not part:
                break
            parts.append(part)
            have += len(part)
        self.buffer = b"".join(parts)
        return have >= needed

    def take(self, count: int) -> bytes:
        """Exactly ``count`` bytes, at most a few hundred thousand.

        Raises:
            PickleEnds: there are fewer.
        """
        end = self.at + count
        if end > len(self.buffer):
            if not self.more(count):
                raise PickleEnds("the bytes end in the middle of an opcode")
            end = count
        found = self.buffer[self.at : end]
        self.at = end
        return found

    def peek(self, count: int) -> bytes:
        """The next bytes, perhaps fewer than ``count``, without going past them."""
        if self.at + count > len(self.buffer):
            self.more(count)
        return self.buffer[self.at : self.at + count]

    def text(self, count: int, most: int, *, text: bool) -> bytes | Long:
        """``count`` bytes of a string, or where they lie when they are more than ``most``.

        Raises:
            PickleEnds: there are fewer.
        """
        if count <= most:
            return self.take(count)
        start = self.position
        first = self.take(256)
        self.skip(count - 256)
        return Long(first, start, count, text)

    def skip(self, count: int) -> None:
        """Go past ``count`` bytes, which are read all the same: not every file can seek.

        Raises:
            PickleEnds: there are fewer.
        """
        for _ in self.pieces(count):
            pass

    def pieces(self, count: int) -> Iterator[bytes]:
        """``count`` bytes, some at a time.

        Raises:
            PickleEnds: there are fewer.
        """
        while count:
            if self.at >= len(self.buffer):
                self.base += self.at
                self.buffer, self.at = self.file.read(min(1 << 20, count)), 0
                if not self.buffer:
                    raise PickleEnds("the bytes end in the middle of the data")
            piece = self.buffer[self.at : self.at + count]
            self.at += len(piece)
            count -= len(piece)
            yield piece

    def number(self) -> bytes:
        """A line that holds a number; the unpickler in C stops at a NUL.

        Raises:
            PickleEnds: there is no newline any more.
        """
        return self.line().partition(b"\0")[0].strip()

    def line(self, *, open_end: bool = False) -> bytes:
        """The bytes up to the next newline, without it; of a longer one the first :data:`KEPT` and a few more.

        With ``open_end`` the last line may lack its newline; unpicklers then take its last byte for one.

        Raises:
            PickleEnds: there is no newline any more.
        """
        end = self.buffer.find(b"\n", self.at)
        if end >= 0:
            found = self.buffer[self.at : end]
            self.at = end + 1
            return found
        kept: list[bytes] = []
        size = 0
        while end < 0:
            if size <= KEPT:
                kept.append(self.buffer[self.at :])
                size += len(kept[-1])
            self.base += len(self.buffer)
            self.buffer, self.at = self.file.read(_PIECE), 0
            if not self.buffer:
                if open_end:
                    return b"".join(kept)[:-1]
                raise PickleEnds("the bytes end in the middle of a line")
            end = self.buffer.find(b"\n")
        kept.append(self.buffer[:end])
        self.at = end + 1
        return b"".join(kept)


def parts_of(value: Value) -> list[Value]:
    """What a value directly holds."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Held):
        return value.items
    if isinstance(value, Made):
        return [value.func, value.args, value.state, *value.items]
    return [value.pid] if isinstance(value, Pers) else []


def rendered(value: Value, room: int = 120, depth: int = 3) -> str:
    """A value as a short text of source code's kind."""
    if isinstance(value, Global):
        return str(value)[:room]
    if isinstance(value, Long):
        return f"<{value.length} bytes: {value.first[:24]!r}…>"
    if isinstance(value, Opaque):
        return f"<{value.kind}>"
    if isinstance(value, int) and value.bit_length() > 256:
        return "<a long number>"
    if not isinstance(value, (tuple, Held, Made, Pers)):
        return repr(value[:room] if isinstance(value, (str, bytes)) else value)[:room]
    if not depth:
        return "…"
    if isinstance(value, Made):
        args = value.args if isinstance(value.args, tuple) else (value.args,)
        inside = _joined(list(args), room, depth)
        return f"{rendered(value.func, room, depth - 1)}({inside})"
    if isinstance(value, Pers):
        return f"<id {rendered(value.pid, room, depth - 1)}>"
    left, right = ("(", ")") if isinstance(value, tuple) else ("[", "]") if value.kind == "list" else ("{", "}")
    return left + _joined(parts_of(value), room, depth) + right


def _joined(values: list[Value], room: int, depth: int) -> str:
    shown = ", ".join(rendered(v, room, depth - 1) for v in values[:6])
    return (shown + ", …" if len(values) > 6 else shown)[: room * 2]


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|\n|.)", re.DOTALL)
_PLAIN = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\n": b"", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v",
          b"\\": b"\\", b"'": b"'", b'"': b'"'}  # fmt: skip


def _unescaped(found: re.Match[bytes]) -> bytes:
    what = found[1]
    if what[:1] == b"x" and len(what) == 3:
        return bytes([int(what[1:], 16)])
    if what[0] in b"01234567":
        return bytes([int(what, 8) & 0xFF])
    return _PLAIN.get(what, found[0])


def unescaped(text: bytes) -> bytes:
    """An old string's bytes, its escapes resolved."""
    return _ESCAPE.sub(_unescaped, text)
