"""Zip archives, read so that every way of reading them is seen: from the central directory, and member by member.

Programs differ in which copy of a name, size or flag they believe, in where they look for the directory when bytes were
put before the archive, and in what they make of several directories. Whatever two of them would see differently is said.
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401 - at once: a scan can't import anything later
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import WHOLE, Item
from ..listing import shown
from ..rules import Rule
from . import unpacking
from .archive_rules import AMBIGUOUS, AROUND, BOMB, BROKEN, LINK, check_link, check_name
from .unpacking import Feed, Inflater, Missing

MOST_ENTRIES = 20_000
MOST_DIRECTORY = 1 << 25  # bytes
_END_AREA = (1 << 16) + 22 + 20 + 56
_CENTRAL, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_ENTRY, _HEADER, _END, _END64, _LOCATOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_STORED, _DEFLATED = 0, 8


@dataclass(slots=True)
class ZipEntry:
    """One member: what the central directory says of it, where its bytes begin (-1: not found)."""

    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int
    mode: int
    start: int = -1

    @property
    def encrypted(self) -> bool:
        """Whether it says that a password is needed."""
        return bool(self.flags & 0x41)

    @property
    def folder(self) -> bool:
        """Whether it stands for a folder."""
        return self.name.endswith("/") and not self.size


@dataclass(slots=True)
class Zip:
    """A zip archive: its members, in the order of the directory, and what was found out on the way."""

    entries: list[ZipEntry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    begin: int = 0  # where its first byte lies in the file: not 0 when something was put before it


def read_zip(item: Item) -> Zip:
    """List and check an archive; its members are not unpacked.

    Raises:
        FormatError: no directory, or one that can't be read.
        LimitExceeded: more members than any model has.
    """
    with item.open() as file:
        return _Reader(item, file).read()


class _Reader:
    def __init__(self, item: Item, file: BinaryIO) -> None:
        self.item, self.file, self.name = item, file, shown(item.name)
        self.zip = Zip()

    def say(self, rule: Rule, message: str, place: str = "") -> None:
        self.zip.findings.append(rule.found(message, file=self.name, place=place))

    def at(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)

    def read(self) -> Zip:
        end, count, size, offset, behind = self._end()
        directory_end = end
        begin = directory_end - size - offset
        if size > MOST_DIRECTORY or count > MOST_ENTRIES:
            raise LimitExceeded(f"a directory of {size} bytes and {count} members")
        if begin < 0 or size > directory_end:
            raise FormatError("its directory would lie before its beginning")
        if count and self.at(offset + begin, 4) != _ENTRY:
            if self.at(offset, 4) != _ENTRY:
                raise FormatError("there is no directory where its end says that it begins")
            begin, directory_end = 0, offset + size
            self.say(AROUND, f"{end - directory_end} bytes between its directory and the end of it", f"byte {directory_end}")
        elif begin:
            self.say(AROUND, f"{begin} bytes before the archive", "byte 0")
            if count and self.at(offset, 4) == _ENTRY:
                self.say(AMBIGUOUS, "two directories: one counted from the file's beginning, one from its end", f"byte {offset}")
        if behind:
            self.say(AROUND, f"{behind} bytes behind the archive")
        self.zip.begin = begin
        self._entries(self.at(offset + begin, size), count)
        for entry in self.zip.entries:
            self._header(entry)
        self._ranges(offset + begin)
        return self.zip

    def _end(self) -> tuple[int, int, int, int, int]:
        """Where the directory's end record begins, its count, size and offset, and how many bytes lie behind it all."""
        base = max(0, self.item.size - _END_AREA)
        tail = self.at(base, _END_AREA)
        spots: list[int] = []
        at = tail.rfind(_END)
        while at >= 0 and len(spots) < 64:
            if len(tail) - at >= 22:
                spots.append(at)
            at = tail.rfind(_END, 0, at)
        if not spots:
            raise FormatError("cut off: the record at its end is missing")
        chosen = spots[0]
        disk, start_disk, here, count, size, offset, comment = struct.unpack_from("<4H2LH", tail, chosen + 4)
        behind = len(tail) - chosen - 22 - comment
        for other in spots[1:]:
            fields = struct.unpack_from("<2L", tail, other + 12)
            if self._directory_at(base + other - fields[0], fields[1]):
                self.say(AMBIGUOUS, "more than one end of a directory, each with a directory of its own", f"byte {base + other}")
        if behind < 0:
            self.say(AMBIGUOUS, "its comment is longer than the file: programs look elsewhere for its end", f"byte {base + chosen}")
        elif comment:
            text = tail[chosen + 22 : chosen + 22 + comment]
            if b"PK\x03\x04" in text or b"\x80\x04" in text[:4] or comment > 4096:
                self.say(AROUND, f"a comment of {comment} bytes", f"byte {base + chosen + 22}")
        if disk or start_disk or here != count:
            self.say(AMBIGUOUS, "it says that it is a part of several", f"byte {base + chosen}")
        end = base + chosen
        locator = tail[max(0, chosen - 20) : chosen]
        if locator.startswith(_LOCATOR) and len(locator) == 20:
            end, count, size, offset = self._end64(locator, end, count, size, offset)
        return end, count, size, offset, max(0, behind)

    def _end64(self, locator: bytes, end: int, count: int, size: int, offset: int) -> tuple[int, int, int, int]:
        (spot,) = struct.unpack_from("<Q", locator, 8)
        for where in (spot, end - 76):
            record = self.at(where, 56) if 0 <= where < end else b""
            if record.startswith(_END64) and len(record) == 56:
                break
        else:
            self.say(AMBIGUOUS, "it points to a second, larger directory record that is not there", f"byte {end - 20}")
            return end, count, size, offset
        count64, size64, offset64 = struct.unpack_from("<3Q", record, 32)
        for short, long, full in ((count, count64, 0xFFFF), (size, size64, 0xFFFFFFFF), (offset, offset64, 0xFFFFFFFF)):
            if short not in (full, long):
                self.say(AMBIGUOUS, f"its two end records disagree ({short} and {long})", f"byte {where}")
        return where, count64, size64, offset64

    def _directory_at(self, back: int, offset: int) -> bool:
        return any(spot >= 0 and self.at(spot, 4) == _ENTRY for spot in (back, offset))

    def _entries(self, directory: bytes, count: int) -> None:
        at = 0
        while at + _CENTRAL.size <= len(directory) and directory.startswith(_ENTRY, at):
            if len(self.zip.entries) >= MOST_ENTRIES:
                raise LimitExceeded(f"more than {MOST_ENTRIES} members")
            fields = _CENTRAL.unpack_from(directory, at)
            flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
            n_name, n_extra, n_comment = fields[10:13]
            at += _CENTRAL.size
            raw, extra = directory[at : at + n_name], directory[at + n_name : at + n_name + n_extra]
            if len(extra) != n_extra:
                raise FormatError("its directory is cut off")
            size, packed, header = _wide(extra, [size, packed, fields[16]])
            if (other := _other_name(extra)) not in (None, raw):
                self.say(AMBIGUOUS, f"{_text(raw, flags)[:100]!r} has another name in an extra field: {other!r}"[:300])
            mode = fields[15] >> 16 if fields[1] >> 8 in (3, 19) else 0
            self.zip.entries.append(ZipEntry(_text(raw, flags), method, flags, crc, packed, size, header, mode))
            at += n_name + n_extra + n_comment
        if len(self.zip.entries) != count:
            self.say(AMBIGUOUS, f"its end says {count} members, its directory has {len(self.zip.entries)}")
        elif at < len(directory):
            self.say(AROUND, f"{len(directory) - at} bytes in the directory that are no members")
        names = Counter(e.name.rstrip("/") for e in self.zip.entries)
        for name, times in names.items():
            if times > 1:
                self.say(AMBIGUOUS, f"{times} members are called {name[:200]!r}", f"member {name[:200]!r}")

    def _header(self, entry: ZipEntry) -> None:
        """Compare a member's own header with the directory's copy, and find where its bytes begin."""
        place = f"member {entry.name[:200]!r}"
        offset = self.zip.begin + entry.header
        raw = self.at(offset, _LOCAL.size) if offset + _LOCAL.size <= self.item.size else b""
        if not raw.startswith(_HEADER) or len(raw) < _LOCAL.size:
            self.say(BROKEN, "there is no member where the directory says that it begins", place)
            return
        _, _, flags, method, _, _, crc, packed, size, n_name, n_extra = _LOCAL.unpack(raw)
        names = self.file.read(n_name + n_extra)
        entry.start = offset + _LOCAL.size + n_name + n_extra
        size, packed, _ = _wide(names[n_name:], [size, packed, 0])
        name = _text(names[:n_name], flags)
        if name != entry.name:
            self.say(AMBIGUOUS, f"it is called {entry.name[:100]!r} in the directory and {name[:100]!r} where it lies", place)
        told = [("method", method, entry.method), ("flags", flags & ~0x80E, entry.flags & ~0x80E)]
        if not flags & 8:
            told += [("checksum", crc, entry.crc), ("packed size", packed, entry.packed), ("size", size, entry.size)]
        for what, here, there in told:
            if here != there:
                self.say(AMBIGUOUS, f"{what} {there} in the directory, {here} where it lies", place)
        if entry.start + entry.packed > self.item.size:
            self.say(BROKEN, "its bytes would end behind the end of the file", place)
            entry.start = -1

    def _ranges(self, directory: int) -> None:
        """Members that share bytes, and bytes that belong to no member."""
        spans = sorted((self.zip.begin + e.header, e.start + e.packed) for e in self.zip.entries if e.start >= 0)
        position, bomb = self.zip.begin, False
        for start, end in [*spans, (directory, directory)]:
            if start < position:
                if not bomb:
                    self.say(BOMB, "members share the same bytes" if end > start else "a member runs into the directory",
                             f"byte {start}")  # fmt: skip
                bomb = True
            elif start > position:
                self._gap(position, start)
            position = max(position, end)

    def _gap(self, start: int, end: int) -> None:
        sample = self.at(start, min(end - start, 1 << 16))
        if end - start <= 24 and (sample.startswith(b"PK\x07\x08") or end - start in (12, 20)):
            return  # sizes that are written behind a member
        if sample.strip(b"\0"):
            hidden = _HEADER in sample
            self.say(AMBIGUOUS if hidden else AROUND,
                     f"{end - start} bytes between members" + (" hold a member that the directory does not list" if hidden else ""),
                     f"byte {start}")  # fmt: skip


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Sizes and offset, with those that did not fit taken from the 64-bit field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            spot = at + 4
            for index, value in enumerate(values):
                if value == 0xFFFFFFFF and spot + 8 <= min(len(extra), at + 4 + length):
                    (values[index],) = struct.unpack_from("<Q", extra, spot)
                    spot += 8
            break
        at += 4 + length
    return values


def _other_name(extra: bytes) -> bytes | None:
    """The name in the extra field that some programs prefer."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 0x7075 and length > 5:
            return extra[at + 9 : at + 4 + length]
        at += 4 + length
    return None


def _text(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & 0x800 or raw.isascii() else "cp437")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def check_entry(entry: ZipEntry, item: Item) -> Iterator[Finding]:
    """Findings about a member's name and, for a link, its target."""
    place = f"member {entry.name[:200]!r}"
    yield from check_name(entry.name, shown(item.name), place)
    kind = entry.mode & 0o170000
    if kind == 0o120000 and entry.start >= 0 and entry.size <= 4096:
        try:
            target = unpack_entry(item, entry)[0].decode("utf-8", "replace")
        except (LimitExceeded, Missing):
            target = "?"
        yield from check_link(entry.name, target, shown(item.name), place)
    elif kind not in (0, 0o100000, 0o040000):
        yield LINK.found(f"{entry.name[:200]!r} is a device, a pipe or an odd link", file=shown(item.name), place=place)


def inflater(method: int) -> Callable[[], Inflater]:
    """What unpacks a member of this method.

    Raises:
        Missing: no library here does.
    """
    known = {_DEFLATED: unpacking.raw_deflate, 12: unpacking.bzip2_stream, 93: unpacking.zstd_stream, 95: unpacking.xz_stream}
    if method not in known:
        raise Missing(f"packing method {method} is not read here")
    return known[method]


def entry_chunks(item: Item, entry: ZipEntry) -> Iterator[bytes]:
    """A member's bytes, piece by piece.

    Raises:
        FormatError: damaged, or not as long as it says.
    """
    with item.open() as file:
        file.seek(entry.start)
        feed, size, crc = Feed(file, entry.packed), 0, 0
        if entry.method == _STORED:
            pieces: Iterator[bytes] = iter(feed.take, b"")
        else:
            pieces = unpacking.unpack(feed, inflater(entry.method))
        for piece in pieces:
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > entry.size:
                raise FormatError(f"unpacks to more than the {entry.size} bytes that it says")
            yield piece
        if feed.left or feed.back:
            raise FormatError(f"{feed.left + len(feed.back)} bytes behind the end of its compressed data")
    if size != entry.size:
        raise FormatError(f"unpacks to {size} bytes, it says {entry.size}")
    if crc != entry.crc:
        raise FormatError(f"its checksum is {crc:08x}, it says {entry.crc:08x}")


def unpack_entry(item: Item, entry: ZipEntry, most: int = WHOLE) -> tuple[bytes, str]:
    """A member's bytes, and what is wrong with them: some programs use what others refuse.

    Raises:
        Missing: no library here unpacks it.
        LimitExceeded: more than ``most``.
    """
    if entry.size > most:
        raise LimitExceeded(f"{entry.size} bytes; at most {most} are taken into memory", where=item.name)
    pieces = []
    try:
        for piece in entry_chunks(item, entry):
            pieces.append(piece)
    except FormatError as error:
        return b"".join(pieces), error.message
    return b"".join(pieces), ""
