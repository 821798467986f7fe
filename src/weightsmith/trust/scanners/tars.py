"""Tar archives, walked block by block; long names and sizes of both dialects (GNU and pax) are read, nothing is unpacked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import Item
from ..kinds import ASCII
from ..listing import shown
from ..rules import Rule
from .archive_rules import AMBIGUOUS, AROUND, BROKEN, LINK, NOT_OPENED, check_link, check_name

BLOCK = 512
MOST_ENTRIES = 20_000
MOST_EXTRA = 1 << 20  # bytes of a long name or of extended headers
_ZEROS = bytes(BLOCK)
_PLAIN, _DEVICES = b"\x000 7", b"346"


@dataclass(slots=True)
class TarEntry:
    """A plain file in a tar archive: its name, where its bytes begin, how many they are."""

    name: str
    start: int
    size: int


@dataclass(slots=True)
class _Next:
    """What extension headers said about the member that follows them."""

    name: str = ""
    link: str = ""
    size: int | None = None
    sparse: bool = False


@dataclass(slots=True)
class Tar:
    """Walks one archive; ``findings`` grow on the way."""

    item: Item
    findings: list[Finding] = field(default_factory=list)
    _names: Counter[str] = field(default_factory=Counter)

    def entries(self) -> Iterator[TarEntry]:
        """Every plain file, in order; also those behind what other programs take for the end.

        Raises:
            FormatError: the first block is no header.
            LimitExceeded: more members than any model has.
        """
        with self.item.open() as file:
            yield from self._walk(file)
        for name, times in self._names.items():
            if times > 1:
                self._say(AMBIGUOUS, f"{times} members are called {name[:200]!r}", f"member {name[:200]!r}")

    def _say(self, rule: Rule, message: str, place: str = "") -> None:
        self.findings.append(rule.found(message, file=shown(self.item.name), place=place))

    def _walk(self, file: BinaryIO) -> Iterator[TarEntry]:
        at = seen = 0
        zeros = False
        told = _Next()
        while at < self.item.size:
            block = _at(file, at, BLOCK)
            if block == _ZEROS:
                at, zeros = _skip_zeros(file, at, self.item.size), True
                continue
            if len(block) < BLOCK or not _checksum(block):
                if not seen:
                    raise FormatError("its first block is not a header")
                rule = AROUND if zeros else BROKEN
                self._say(rule, f"{self.item.size - at} bytes{' behind the end' if zeros else ''} that are no member", f"byte {at}")
                return
            if zeros:
                self._say(AMBIGUOUS, "members behind the blocks that end the archive for most programs", f"byte {at}")
                zeros = False
            seen += 1
            if seen > MOST_ENTRIES:
                raise LimitExceeded(f"more than {MOST_ENTRIES} members")
            size = _number(block[124:136])
            if size < 0:
                self._say(BROKEN, "a member of negative or unreadable size", f"byte {at}")
                return
            kind, start = block[156:157], at + BLOCK
            if kind in b"xgLKXN" and kind != b"":
                if size > MOST_EXTRA or start + size > self.item.size:
                    self._say(BROKEN, f"an extended header of {size} bytes", f"byte {at}")
                    return
                self._extension(kind, _at(file, start, -(-size // BLOCK) * BLOCK), size, told, at)
            else:
                size = self._size(told, size, kind, at)
                slash = (told.name or "-").endswith("/") or _text(block[:100]).endswith("/")  # the old sign of a folder
                if size and (kind in b"123456" or (kind == b"\0" and slash)):
                    self._say(AMBIGUOUS, f"a folder or link of {size} bytes, in which some programs find members", f"byte {at}")
                if start + size > self.item.size:
                    self._say(BROKEN, f"a member of {size} bytes, more than are left", f"byte {at}")
                    return
                yield from self._member(block, kind, told, start, size)
                told = _Next()
            at = start + -(-size // BLOCK) * BLOCK

    def _size(self, told: _Next, size: int, kind: bytes, at: int) -> int:
        """The size that the member has; a pax size that contradicts the header's is where parsers part."""
        if told.size is None:
            return size
        if told.size != size and not (size == 0 and told.size >= 1 << 33):
            self._say(AMBIGUOUS, f"two sizes for one member: {size} and {told.size}", f"byte {at}")
        return told.size

    def _member(self, block: bytes, kind: bytes, told: _Next, start: int, size: int) -> Iterator[TarEntry]:
        prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
        name = told.name or (f"{prefix}/" if prefix else "") + _text(block[:100])
        link = told.link or _text(block[157:257])
        place = f"member {name[:200]!r}"
        self.findings += check_name(name, shown(self.item.name), place)
        if kind in (b"1", b"2"):
            self.findings += check_link(name, link, shown(self.item.name), place, hard=kind == b"1")
        elif kind in _DEVICES and kind:
            self._say(LINK, f"{name[:200]!r} is a device or a pipe", place)
        elif kind == b"S" or told.sparse:
            self._say(NOT_OPENED, f"{name[:200]!r} is stored with holes", place)
        elif kind != b"5":
            if kind not in (b"\0", b"0", b"7"):
                self._say(AMBIGUOUS, f"{name[:200]!r} is of the unknown type {kind!r}", place)
            if kind != b"\0" or not name.endswith("/"):
                self._names[re.sub(r"\A(?:\./)+", "", name)] += 1
                yield TarEntry(name, start, size)

    def _extension(self, kind: bytes, data: bytes, size: int, told: _Next, at: int) -> None:
        """``data`` goes on to the end of the last block, since some programs read records there."""
        if kind == b"L":
            told.name = _text(data[:size])
        elif kind == b"K":
            told.link = _text(data[:size])
        elif kind in (b"x", b"X", b"g"):
            records, rest = _pax(data)
            if rest.strip(b"\0") or len(data) - len(rest) > size:
                self._say(AMBIGUOUS, "extended headers that some programs read on in", f"byte {at}")
            for key, value in records:
                if kind == b"g" and key in ("path", "linkpath", "size"):
                    self._say(AMBIGUOUS, f"a header for all members sets their {key}", f"byte {at}")
                elif key == "path":
                    told.name = value
                elif key == "linkpath":
                    told.link = value
                elif key == "size":
                    if not re.fullmatch(r"[0-9]{1,18}", value):
                        self._say(AMBIGUOUS, f"a size that programs read differently: {value[:60]!r}", f"byte {at}")
                    else:
                        told.size = int(value)
                elif key.startswith("GNU.sparse"):
                    told.sparse = True
        else:
            self._say(NOT_OPENED, f"an extension of type {kind!r}", f"byte {at}")


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _skip_zeros(file: BinaryIO, at: int, size: int) -> int:
    """Where the first block begins that is not all zeros."""
    file.seek(at)
    while at < size:
        data = file.read(1 << 18)
        rest = data.lstrip(b"\0")
        if rest or not data:
            return at + (len(data) - len(rest)) // BLOCK * BLOCK
        at += len(data)
    return size


def _checksum(block: bytes) -> bool:
    told = block[148:156].strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]{1,7}", told):
        return False
    rest = block[:148] + block[156:]
    off = sum(rest) + 8 * 32 - int(told, 8)
    return not off or off == 256 * len(rest.translate(None, ASCII))  # some programs add signed bytes


def _number(raw: bytes) -> int:
    """An octal or base-256 number; -1 for anything else and for negative ones."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    text = raw.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    return int(text, 8) if re.fullmatch(rb"[0-7]+", text) else -1


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _pax(data: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """The records ``length key=value`` of an extended header, up to the first malformed one, and what follows them."""
    at, found = 0, []
    while at < len(data):
        length = re.match(rb"(\d{1,7}) ", data[at : at + 9])
        if not length or int(length[1]) <= len(length[0]):
            break
        key, _, value = data[at + len(length[0]) : at + int(length[1]) - 1].partition(b"=")
        found.append((key.decode("utf-8", "replace"), value.decode("utf-8", "replace")))
        at += int(length[1])
    return found, data[at:]
