"""Whether what a reader finds in a tar archive without looking at its beginning belongs to one of its members.

A zip archive is found by its last bytes and an HDF5 file at certain places, so a tar whose last member is a zip, or whose first
is HDF5, looks like both. What lies in one member to its last byte is read when that member is scanned; what reaches over its
borders, or lies between members, is a second format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ..errors import FormatError, LimitExceeded
from .items import Item

_ENTRY, _END64, _LOCATOR = b"PK\x01\x02", b"PK\x06\x06", b"PK\x06\x07"
_MOST_DIRECTORY = 1 << 24  # bytes of a zip's directory that are looked at here


def _members(item: Item) -> list[tuple[int, int]]:
    """Where each plain file of a tar begins and ends, in order; none when programs could read the archive differently."""
    from .scanners.tars import Tar  # it reads kinds itself

    tar = Tar(item)
    try:
        spans = [(entry.start, entry.start + entry.size) for entry in tar.entries()]
    except (FormatError, LimitExceeded):
        return []
    return [] if any(found.place.startswith("byte ") for found in tar.findings) else spans  # of where members lie, not of names


def zips_in_members(item: Item, ends: Iterable[int]) -> bool:
    """Whether every zip archive whose end record lies at one of ``ends`` lies whole in one member of a tar, its directory and
    all members that the directory names, for readers that count from the tar's beginning as well."""
    spans = _members(item)
    for end in ends:
        span = next(((start, stop) for start, stop in spans if start <= end < stop), None)
        if span is None or not _inside(item, end, *span):
            return False
    return True


def _inside(item: Item, end: int, start: int, stop: int) -> bool:
    with item.open() as file:

        def at(place: int, size: int) -> bytes:
            if not 0 <= place < item.size:
                return b""
            file.seek(place)
            return file.read(size)

        before = at(max(start, end - 76), end - max(start, end - 76))  # forward only: going back may unpack anew
        record = at(end, 22)
        if len(record) < 22:
            return False
        size, offset, comment = struct.unpack_from("<2LH", record, 12)
        if end + 22 + comment > stop:
            return False
        directory = end
        if before[-20:].startswith(_LOCATOR) and len(before) >= 20:
            (spot,) = struct.unpack_from("<Q", before, len(before) - 12)
            if len(before) < 76 or not before.startswith(_END64) or at(spot, 4) == _END64:
                return False  # another reader takes the larger record from elsewhere
            size, offset = struct.unpack_from("<2Q", before, 40)
            directory = end - 76
        begin = directory - size - offset
        if begin < start or size > _MOST_DIRECTORY or (begin and at(offset, 4) == _ENTRY):
            return False
        return _entries_inside(at(begin + offset, size), begin, directory)


def _entries_inside(directory: bytes, begin: int, stop: int) -> bool:
    """Whether every member of a zip begins and, by its packed size, ends before the directory."""
    place = 0
    while directory.startswith(_ENTRY, place):
        if place + 46 > len(directory):
            return False
        packed, name, extra, comment, header = *struct.unpack_from("<L", directory, place + 20), *struct.unpack_from(
            "<3H", directory, place + 28), *struct.unpack_from("<L", directory, place + 42)  # fmt: skip
        wide = 0xFFFFFFFF in (packed, header)  # the true numbers stand in a field of 64 bits, which the member's own check reads
        if not wide and begin + header + 30 + packed > stop:
            return False
        place += 46 + name + extra + comment
    return place == len(directory)


def hdf5_in_member(item: Item, place: int) -> bool:
    """Whether an HDF5 file that begins here is one member of a tar, whole, by the end that its first block tells."""
    span = next(((start, stop) for start, stop in _members(item) if start == place), None)
    if span is None:
        return False
    with item.open() as file:
        file.seek(place)
        block = file.read(64)
    spot = {0: 40, 1: 44, 2: 28, 3: 28}.get(block[8] if len(block) > 8 else 255, 0)
    width = block[13] if len(block) > 13 and block[8] < 2 else block[9] if len(block) > 9 else 0
    base = {0: 24, 1: 28}.get(block[8], 12) if len(block) == 64 else 0
    if not spot or width != 8 or not base or int.from_bytes(block[base : base + 8], "little"):
        return False
    return int.from_bytes(block[spot : spot + 8], "little") <= span[1] - place
