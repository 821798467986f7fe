"""7z archives: enough of the format to unpack what its usual programs write, with Python's own LZMA.

A header (itself often packed) lists the packed streams, the coders that unpack them, and the files in what comes out.
Every count and size in it is bounded by the header's own length before it is used.
"""

from __future__ import annotations

import bz2
import encodings.utf_16_le  # noqa: F401 - at once: a scan can't import anything later
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import WHOLE, Item
from ..listing import shown
from .archive_rules import AROUND, BOMB, BROKEN, ENCRYPTED, NOT_OPENED, TOO_LARGE, check_name, is_bomb
from .unpacking import LZMA_MEMORY, Locked, Missing

MOST_HEADER = 1 << 24
_END, _HEADER, _STREAMS, _FILES, _PACK, _UNPACK, _SUB = 0x00, 0x01, 0x04, 0x05, 0x06, 0x07, 0x08
_SIZE, _CRC, _FOLDER, _SIZES, _COUNTS, _EMPTY, _EMPTY_FILE, _NAMES, _ENCODED = 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F, 0x11, 0x17
_BRANCHES = {
    b"\x03\x03\x01\x03": lzma.FILTER_X86, b"\x04": lzma.FILTER_X86, b"\x03\x03\x02\x05": lzma.FILTER_POWERPC,
    b"\x03\x03\x05\x01": lzma.FILTER_ARM, b"\x07": lzma.FILTER_ARM, b"\x03\x03\x07\x01": lzma.FILTER_ARMTHUMB,
    b"\x03\x03\x08\x05": lzma.FILTER_SPARC,
}  # fmt: skip


class _Bytes:
    """A cursor over a header."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise FormatError("its header is cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        first, mask, value = self.byte(), 0x80, 0
        for index in range(8):
            if not first & mask:
                return value + ((first & (mask - 1)) << (8 * index))
            value |= self.byte() << (8 * index)
            mask >>= 1
        return value

    def count(self) -> int:
        """A number of things that each take at least one bit of what is left."""
        value = self.number()
        if value > 8 * (len(self.data) - self.at) + 8:
            raise FormatError(f"its header claims {value} things")
        return value

    def bits(self, count: int, *, all_byte: bool = False) -> list[bool]:
        if all_byte and self.byte():
            return [True] * count
        raw = self.take((count + 7) // 8)
        return [bool(raw[i >> 3] & 0x80 >> (i & 7)) for i in range(count)]

    def expect(self, wanted: int) -> None:
        if self.byte() != wanted:
            raise FormatError("its header is out of order")


@dataclass(slots=True)
class _Folder:
    """One packed stream's coders, in the order of unpacking, and what comes out of it."""

    coders: list[tuple[bytes, bytes]] = field(default_factory=list)
    outs: int = 1
    simple: bool = True
    packs: int = 1
    last: int = 0
    size: int = 0
    crc: bool = False
    files: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Streams:
    begin: int = 0
    packed: list[int] = field(default_factory=list)
    folders: list[_Folder] = field(default_factory=list)


def read_7z(item: Item, charge: Callable[[int], None]) -> Iterator[Finding | tuple[str, bytes]]:
    """Findings, and the files in the archive as (name, bytes); ``charge`` is told of sizes and may refuse them.

    Raises:
        FormatError: damaged.
        LimitExceeded: too large.
        Missing: packed in a way that is not read here.
    """
    with item.open() as file:
        start = file.read(32)
        offset, size = int.from_bytes(start[12:20], "little"), int.from_bytes(start[20:28], "little")
        if len(start) < 32 or zlib.crc32(start[12:32]) != int.from_bytes(start[8:12], "little"):
            raise FormatError("its first 32 bytes are damaged")
        if 32 + offset + size > item.size:
            raise FormatError("cut off: its header lies behind the end of the file")
        if 32 + offset + size < item.size:
            yield AROUND.found(f"{item.size - 32 - offset - size} bytes behind the archive", file=shown(item.name))
        names, streams = _header(file, 32 + offset, size)
        yield from _unpacked(item, file, names, streams, charge)


def _header(file: BinaryIO, offset: int, size: int) -> tuple[list[str], _Streams]:
    """The files' names (those with bytes first to last) and the packed streams."""
    if not size:
        return [], _Streams()
    if size > MOST_HEADER:
        raise LimitExceeded(f"a header of {size} bytes")
    file.seek(offset)
    data = _Bytes(file.read(size))
    kind = data.byte()
    if kind == _ENCODED:
        inner = _streams(data)
        if len(inner.folders) != 1 or inner.folders[0].size > MOST_HEADER or not inner.packed:
            raise FormatError("its packed header is malformed")
        data = _Bytes(b"".join(_decode(file, 32 + inner.begin, inner.packed[0], inner.folders[0])))
        kind = data.byte()
    if kind != _HEADER:
        raise FormatError("its header is of an unknown kind")
    return _whole_header(data)


def _whole_header(data: _Bytes) -> tuple[list[str], _Streams]:
    streams, names, empty = _Streams(), [], []
    kind = data.byte()
    if kind == 0x02:  # properties of the archive, none known
        while data.byte():
            data.take(data.number())
        kind = data.byte()
    if kind == 0x03:
        raise Missing("it has additional streams")
    if kind == _STREAMS:
        streams = _streams(data)
        kind = data.byte()
    if kind == _FILES:
        count = data.count()
        empty = [False] * count
        while kind := data.byte():
            part = _Bytes(data.take(data.number()))
            if kind == _EMPTY:
                empty = part.bits(count)
            elif kind == _NAMES:
                if part.byte():
                    raise Missing("its names lie elsewhere")
                names = part.take(len(part.data) - part.at).decode("utf-16-le", "replace").split("\0")[:-1]
        if len(names) != count:
            raise FormatError(f"{len(names)} names for {count} files")
    return [n for n, e in zip(names, empty, strict=True) if not e], streams


def _streams(data: _Bytes) -> _Streams:
    streams = _Streams()
    kind = data.byte()
    if kind == _PACK:
        streams.begin = data.number()
        count = data.count()
        while kind := data.byte():
            if kind == _SIZE:
                streams.packed = [data.number() for _ in range(count)]
            elif kind == _CRC:
                _digests(data, count)
            else:
                raise FormatError("an unknown field of its packed streams")
        kind = data.byte()
    if kind == _UNPACK:
        data.expect(_FOLDER)
        count = data.count()
        if data.byte():
            raise Missing("its coders lie elsewhere")
        streams.folders = [_folder(data) for _ in range(count)]
        data.expect(_SIZES)
        for folder in streams.folders:
            sizes = [data.number() for _ in range(folder.outs)]
            folder.size = sizes[folder.last]
        while kind := data.byte():
            if kind != _CRC:
                raise FormatError("an unknown field of its coders")
            for folder, told in zip(streams.folders, _digests(data, count), strict=True):
                folder.crc = told
        kind = data.byte()
    for folder in streams.folders:
        folder.files = [folder.size]
    if kind == _SUB:
        _substreams(data, streams.folders)
        kind = data.byte()
    if kind != _END:
        raise FormatError("its list of streams does not end")
    return streams


def _substreams(data: _Bytes, folders: list[_Folder]) -> None:
    """How many files come out of each stream, and their sizes."""
    kind = data.byte()
    counts = [1] * len(folders)
    if kind == _COUNTS:
        counts = [data.count() for _ in folders]
        kind = data.byte()
    for folder, count in zip(folders, counts, strict=True):
        sizes = [data.number() for _ in range(count - 1)] if kind == _SIZE else []
        left = folder.size - sum(sizes)
        if left < 0 or (len(sizes) != count - 1 and count > 1):
            raise FormatError("the sizes of its files don't add up")
        folder.files = [*sizes, left] if count else []
    if kind == _SIZE:
        kind = data.byte()
    while kind:
        if kind == _CRC:
            _digests(data, sum(c for f, c in zip(folders, counts, strict=True) if c != 1 or not f.crc))
        else:
            raise FormatError("an unknown field of its files")
        kind = data.byte()


def _digests(data: _Bytes, count: int) -> list[bool]:
    known = data.bits(count, all_byte=True)
    data.take(4 * sum(known))
    return known


def _folder(data: _Bytes) -> _Folder:
    folder = _Folder()
    count = data.number()
    if not 1 <= count <= 8:
        raise FormatError(f"{count} coders for one stream")
    ins = 0
    folder.outs = 0
    for _ in range(count):
        flag = data.byte()
        name = data.take(flag & 0x0F)
        n_in, n_out = (data.number(), data.number()) if flag & 0x10 else (1, 1)
        if n_in > 8 or n_out > 8:
            raise FormatError("a coder with too many streams")
        folder.simple &= n_in == n_out == 1
        ins, folder.outs = ins + n_in, folder.outs + n_out
        folder.coders.append((name, data.take(data.number()) if flag & 0x20 else b""))
    pairs = {data.number(): data.number() for _ in range(folder.outs - 1)}  # in <- out
    folder.packs = ins - (folder.outs - 1)
    if folder.packs > 1:
        for _ in range(folder.packs):
            data.number()
    folder.last = next((i for i in range(folder.outs) if i not in pairs.values()), 0)
    if folder.simple:
        chain: list[tuple[bytes, bytes]] = []
        at = folder.last
        while len(chain) <= len(folder.coders):  # from what comes out to what goes in
            chain.append(folder.coders[at])
            if at not in pairs:
                break
            at = pairs[at]
            if not 0 <= at < len(folder.coders):
                raise FormatError("its coders are not connected")
        if len(chain) != len(folder.coders):
            raise FormatError("its coders are not connected")
        folder.coders = chain[::-1]
    return folder


def _decode(file: BinaryIO, start: int, packed: int, folder: _Folder) -> Iterator[bytes]:
    """What comes out of a stream, piece by piece, never more than its size."""
    coder = _coder(folder)
    file.seek(start)
    left, out = packed, 0
    hungry = True
    while out < folder.size:
        data = file.read(min(1 << 18, left)) if hungry else b""
        left -= len(data)
        try:
            piece = coder.decompress(data, min(1 << 18, folder.size - out)) if coder is not None else data
        except (lzma.LZMAError, zlib.error, OSError, ValueError, EOFError) as error:
            raise FormatError(f"damaged compressed data ({str(error)[:100]})") from error
        hungry = coder is None or coder.needs_input
        if not piece and (not data or getattr(coder, "eof", False)):
            raise FormatError(f"{folder.size - out} bytes less come out than it says")
        out += len(piece)
        yield piece[: len(piece) - max(0, out - folder.size)]


class _Deflate:
    eof = False
    needs_input = True

    def __init__(self) -> None:
        self.inner = zlib.decompressobj(-15)

    def decompress(self, data: bytes, most: int) -> bytes:
        out = self.inner.decompress(self.inner.unconsumed_tail + data, most)
        self.eof, self.needs_input = self.inner.eof, not self.inner.unconsumed_tail and len(out) < most
        return out


def _coder(folder: _Folder) -> Any:
    """What unpacks a stream; ``None`` when it is stored as it is."""
    names = [name for name, _ in folder.coders]
    if any(name.startswith(b"\x06\xf1\x07") for name in names):
        raise Locked
    if not folder.simple:
        raise Missing("its coders branch")
    if names == [b"\x00"]:
        return None
    if names == [b"\x04\x01\x08"]:
        return _Deflate()
    if names == [b"\x04\x02\x02"]:
        return bz2.BZ2Decompressor()
    filters: list[dict[str, Any]] = []
    for name, settings in folder.coders:
        if name == b"\x21" and len(settings) == 1 and settings[0] <= 40:
            words = 0xFFFFFFFF if settings[0] == 40 else (2 | settings[0] & 1) << settings[0] // 2 + 11
            filters.append({"id": lzma.FILTER_LZMA2, "dict_size": _bounded(words)})
        elif name == b"\x03\x01\x01" and len(settings) == 5 and settings[0] < 225:
            words = int.from_bytes(settings[1:], "little")
            filters.append({"id": lzma.FILTER_LZMA1, "lc": settings[0] % 9, "lp": settings[0] // 9 % 5, "pb": settings[0] // 45,
                            "dict_size": _bounded(words)})  # fmt: skip
        elif name == b"\x03" and len(settings) == 1:
            filters.append({"id": lzma.FILTER_DELTA, "dist": settings[0] + 1})
        elif name in _BRANCHES:
            filters.append({"id": _BRANCHES[name]})
        else:
            raise Missing(f"coder {name.hex()} is not read here")
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters[::-1])
    except (lzma.LZMAError, ValueError) as error:
        raise FormatError(f"impossible coders ({str(error)[:100]})") from error


def _bounded(words: int) -> int:
    if words > LZMA_MEMORY:
        raise LimitExceeded(f"a dictionary of {words} bytes")
    return max(4096, words)


def _unpacked(
    item: Item, file: BinaryIO, names: list[str], streams: _Streams, charge: Callable[[int], None]
) -> Iterator[Finding | tuple[str, bytes]]:
    where = shown(item.name)
    pack, start, at = 0, 32 + streams.begin, 0
    for folder in streams.folders:
        sizes = streams.packed[pack : pack + folder.packs]
        pack += folder.packs
        if len(sizes) != folder.packs or start + sum(sizes) > item.size:
            raise FormatError("a stream would end behind the end of the file")
        if len(folder.files) > len(names) - at:
            raise FormatError("more streams than files")
        mine, at = names[at : at + len(folder.files)], at + len(folder.files)
        for name in mine:
            yield from check_name(name, where, f"member {name[:200]!r}")
        if is_bomb(sum(sizes), folder.size):
            yield BOMB.found(f"{sum(sizes)} bytes that unpack to {folder.size}", file=where)
        else:
            charge(folder.size)
            yield from _files(where, _decode(file, start, sizes[0] if sizes else 0, folder), mine, folder.files)
        start += sum(sizes)


def _files(where: str, pieces: Iterator[bytes], names: list[str], sizes: list[int]) -> Iterator[Finding | tuple[str, bytes]]:
    """A stream cut into its files."""
    kept = bytearray()
    try:
        for name, size in zip(names, sizes, strict=True):
            skipped = size > WHOLE
            left = size
            while left > len(kept):
                if skipped:
                    left -= len(kept)
                    kept.clear()
                piece = next(pieces, b"")
                if not piece:
                    break
                kept += piece
            if skipped:
                yield TOO_LARGE.found(f"{size} bytes", file=where, place=f"member {name[:200]!r}")
            else:
                yield name, bytes(kept[:size])
            del kept[:left]
    except Locked:
        yield ENCRYPTED.found("it asks for a password", file=where)
    except Missing as error:
        yield NOT_OPENED.found(str(error), file=where)
    except FormatError as error:
        yield BROKEN.found(error.message, file=where)
        if kept:
            yield names[0], bytes(kept)
