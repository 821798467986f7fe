"""Indexes of FAISS: vectors and numbers beside a model, recognised where the sizes in them fit the file to the last byte.

Only plain kinds are known: flat, in lists around flat centres, graphs over flat vectors, and these with ids of their own. Of any
other kind, and of one whose sizes do not fit, nothing is said here.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_HEAD = struct.Struct("<4siqqqBi")
_FILLED = 1 << 20  # what faiss writes twice where numbers of no use once stood
_FLAT = (b"IxF2", b"IxFI", b"IxFl")
_KINDS = (*_FLAT, b"IwFl", b"IHNf", b"IxMp", b"IxM2")
_DEEPEST = 4
_MOST_LISTS = 1 << 22
_HNSW = (8, 4, 4, 8, 4)  # bytes of the elements of a graph's five lists


class _Broken(Exception):
    """It is no index of a known kind, or its sizes don't fit."""


def is_index(head: bytes, file: BinaryIO, size: int) -> bool:
    """Whether a file is one of these indexes from its first byte to its last; ``head`` is how it begins."""
    if head[:4] not in _KINDS:
        return False
    try:
        return _index(_Reader(file, size), 0) == size
    except _Broken:
        return False


class _Reader:
    """Numbers and lists of a file, one behind the other."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.at = file, size, 0

    def take(self, count: int) -> bytes:
        self.file.seek(self.at)
        data = self.file.read(count)
        self.at += count
        if len(data) < count:
            raise _Broken
        return data

    def skip(self, count: int) -> None:
        self.at += count
        if count < 0 or self.at > self.size:
            raise _Broken

    def number(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def listed(self, width: int) -> int:
        """Pass over a list; how many elements it has."""
        count = self.number()
        self.skip(count * width)
        return count


def _index(reader: _Reader, depth: int, wanted: int | None = None) -> int:
    """Where an index that begins here, and holds as many vectors as wanted, ends."""
    if depth > _DEEPEST:
        raise _Broken
    kind, width, total, first, second, trained, metric = _HEAD.unpack(reader.take(_HEAD.size))
    if (first, second) != (_FILLED, _FILLED) or kind not in _KINDS or not 0 < width < 1 << 20 or total < 0 or trained > 1:
        raise _Broken
    if wanted not in (None, total):
        raise _Broken
    if metric > 1:
        reader.skip(4)
    if kind in _FLAT:
        if reader.listed(4) != total * width:
            raise _Broken
    elif kind in (b"IxMp", b"IxM2"):
        _index(reader, depth + 1, total)
        if reader.listed(8) != total:
            raise _Broken
    elif kind == b"IHNf":
        counts = [reader.listed(n) for n in _HNSW]
        reader.skip(20)
        if counts[2] != total or counts[3] != total + 1:
            raise _Broken
        _index(reader, depth + 1, total)
    else:
        _lists(reader, width, total, depth)
    return reader.at


def _lists(reader: _Reader, width: int, total: int, depth: int) -> None:
    """Vectors in lists around centres."""
    count = reader.number()
    reader.skip(8)
    _index(reader, depth + 1, count)
    if reader.take(1) not in (b"\0", b"\1"):  # a map from ids to places, as a list or not there
        raise _Broken
    reader.listed(8)
    if reader.take(4) != b"ilar" or reader.number() != count or reader.number() != 4 * width or count > _MOST_LISTS:
        raise _Broken
    form = reader.take(4)
    entries = reader.number()
    if form == b"full" and entries == count:
        sizes = struct.unpack(f"<{entries}Q", reader.take(8 * entries))
    elif form == b"sprs" and entries % 2 == 0 and entries <= 2 * count:
        sizes = struct.unpack(f"<{entries}Q", reader.take(8 * entries))[1::2]
    else:
        raise _Broken
    if sum(sizes) != total:
        raise _Broken
    reader.skip(total * (4 * width + 8))
