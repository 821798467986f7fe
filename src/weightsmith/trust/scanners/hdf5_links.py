"""What an HDF5 file has its reader open beside it: external links, values in raw files, and datasets made of other files.

The library follows each of them wherever it leads, without a word. They are found by their form, as the pickles in such
files are: a link lies raw in the header of a group or in a heap, a list of raw files names a local heap (``HEAP``), a
virtual dataset a collection (``GCOL``). What only looks like one of them leads to nothing of that kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import dirname, normpath
from typing import BinaryIO, NamedTuple

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import Folder, Item
from ..listing import shown
from ..rules import Rule
from .archive_rules import leads_out

OUTSIDE = Rule(
    "hdf5-outside-file", "malicious", "An HDF5 file that is read from outside the model's folder",
    "A dataset or link of it names a file by an absolute path, or by one that climbs out with `..`. Whoever loads the weights "
    "reads that file of yours as if it were some of them, and what was read can be had back from the model or from a copy of it.",
    "Don't load it. Keras refuses such files since its advisory.",
    ("CVE-2026-1669", "https://support.hdfgroup.org/documentation/hdf5/latest/_h5_d__u_g.html"),
)  # fmt: skip
MISSING = Rule(
    "hdf5-data-missing", "broken", "An HDF5 file that needs another one, which is not there",
    "A part of it lies in a file that the folder does not have. HDF5 looks for it in the working directory too, and takes zeros "
    "for what it does not find.",
    "Fetch the model again with all of its files, or ask for one that holds its weights itself.",
)  # fmt: skip
BESIDE = Rule(
    "hdf5-other-file", "note", "An HDF5 file of which a part lies in another file of the folder",
    "Loaders of Keras refuse such files, and HDF5 may look for the other one in the working directory first.",
    "Nothing, if you open it with HDF5 from within its folder; else ask for one file that holds all.",
)  # fmt: skip
PACKED = Rule(
    "hdf5-not-read", "unknown", "An HDF5 file whose own structures are packed, or of a size that no library writes",
    "Attributes and objects can be pickles, which PyTables and pandas run when they read the file, and links can lead to other "
    "files. Here they lie where this scan does not look.",
    "Write the file anew with the usual settings, or ask for the weights in another format.",
    ("https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html",),
)  # fmt: skip
RULES = (OUTSIDE, MISSING, BESIDE, PACKED)

MOST_NAMED = 10_000  # names of other files that are judged
MOST_TRIED = 1 << 18  # places that look like names, beyond one for each 64 bytes
_BLOCK = 1 << 20
_KEPT = 64  # bytes of a block that are looked at with the next one: the longest anchor
_LONGEST = 1 << 12  # bytes of a path that a system opens
_MOST_MAPPED = 1 << 24  # bytes of a virtual dataset's list
SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: link of the kind 64: version, flags with that kind in them, the kind
_LINK = re.compile(rb"\x01[\x08-\x0f\x18-\x1f]\x40")
#: message 7 in a header of either version, its own version, slots that are used, and the heap of their names
_RAW = re.compile(rb"\x07(?:\0..[\0-\xff]\0\0\0|..[\0-\xff](?:..)?)\x01\0\0\0..(?P<number>(?!\0\0)..)(?P<at>.{6}\0\0)", re.DOTALL)
#: layout of the kind 3, the collection of its list, the number of the object in it
_VIRTUAL = tuple(re.compile(first + rb"\x03(?P<at>.{6}\0\0)(?P<number>..\0\0)", re.DOTALL) for first in (b"\x04", b"\x05"))
_ANCHORS = (_LINK, _RAW, *_VIRTUAL)


class _Named(NamedTuple):
    """A file that is named, how, and where."""

    how: str
    name: bytes
    at: int


def check_links(item: Item, folder: Folder, base: int, referenced: set[str]) -> Iterator[Finding]:
    """Findings about files that this one has its reader open; those that are there are added to ``referenced``.

    ``base`` is where the file's signature lies, from which its addresses count.
    """
    try:
        yield from _judged(item, folder, base, referenced)
    except FormatError as error:
        yield PACKED.found(error.message, file=shown(item.name))


def _judged(item: Item, folder: Folder, base: int, referenced: set[str]) -> Iterator[Finding]:
    """Findings about each name of another file."""
    file = shown(item.name)
    seen: set[tuple[str, bytes]] = set()
    for how, raw, at in _named(item, base):
        if raw in (b"", b".") or (how, raw) in seen:  # a dot is the file itself
            continue
        seen.add((how, raw))
        if len(seen) > MOST_NAMED:
            raise LimitExceeded("more names of other files than are looked at", where=item.name)
        name, place = raw.decode("utf-8", "replace"), f"byte {at}"
        if (why := leads_out(name)) or "://" in name:
            yield OUTSIDE.found(f"{how} names {name[:200]!r}: {why or 'an address'}", file=file, place=place, evidence=name)
        elif item.outer is not None:
            yield BESIDE.found(f"{how} names {name[:200]!r}, and this file lies in an archive", file=file, place=place,
                               severity="suspicious")  # fmt: skip
        elif targets := _there(folder, dirname(item.name), name):
            referenced.update(targets)
            yield BESIDE.found(f"{how} names {name[:200]!r}", file=file, place=place)
        elif not folder.single:
            yield MISSING.found(f"{how} names {name[:200]!r}", file=file, place=place)


def _there(folder: Folder, where: str, name: str) -> list[str]:
    """The folder's files that a name means; in names of a virtual dataset ``%b`` stands for a number."""
    target = normpath(f"{where}/{name}").lstrip("/")
    if "%" not in target or target in folder.items:
        return [target] if target in folder.items else []
    pattern = re.compile(r"\d+".join(re.escape(part.replace("%%", "%")) for part in re.split(r"%\d*b", target[:1000])))
    return [n for n in folder.items if pattern.fullmatch(n)]


class _Work:
    """How much may still be looked at: files are made in which everything looks like a name."""

    def __init__(self, most: int, where: str) -> None:
        self.left, self.where = most, where

    def spend(self, count: int) -> None:
        """Look at so much.

        Raises:
            LimitExceeded: it was too much.
        """
        self.left -= count
        if self.left < 0:
            raise LimitExceeded("more that looks like names of files than is looked at", where=self.where)


def _named(item: Item, base: int) -> Iterator[_Named]:
    """Every name of another file.

    Raises:
        FormatError: a virtual dataset's list can't be read.
        LimitExceeded: too many places look like a name.
    """
    work = _Work(MOST_TRIED + item.size // 64, item.name)
    known: set[tuple[int, int]] = set()
    with item.open() as file, item.open() as other:
        at, kept = 0, b""
        while block := file.read(_BLOCK):
            data, start = kept + block, at - len(kept)
            fresh = len(kept) - _KEPT if at else 0
            for pattern in _ANCHORS:
                for match in pattern.finditer(data):
                    begin, end = start + match.start(), start + match.end()
                    if match.end() <= fresh:  # seen in the block before
                        continue
                    work.spend(1)
                    if pattern is _LINK:
                        yield from _link(data, match.start(), begin, other)
                        continue
                    heap = base + int.from_bytes(match["at"], "little")
                    number = int.from_bytes(match["number"], "little")
                    if pattern is _RAW:
                        yield from _raw(other, base, end, heap, number, work)
                    elif (heap, number) not in known:
                        known.add((heap, number))
                        yield from _virtual(other, heap, number, work)
            kept = data[-_KEPT:]
            at += len(block)


def _link(data: bytes, at: int, begin: int, file: BinaryIO) -> Iterator[_Named]:
    """An external link: its own name, then the file's and the name in that one. ``begin`` is where ``data[at:]`` lies."""
    flags, first = data[at + 1], at
    at += 3 + 8 * (flags >> 2 & 1)
    if flags & 16 and data[at : at + 1] > b"\x01":  # the name is ASCII or UTF-8
        return
    at += flags >> 4 & 1
    width = 1 << (flags & 3)
    at += width + int.from_bytes(data[at : at + width], "little")
    head = data[at : at + 3]
    if len(head) < 3:
        head = _at(file, begin + at - first, 3)
    if len(head) < 3 or head[2]:  # version and flags, both of which are zero
        return
    names = _at(file, begin + at - first + 3, int.from_bytes(head[:2], "little") - 1).split(b"\0")
    if len(names) > 2 and _is_text(names[0]) and _is_text(names[1]):
        yield _Named("an external link", names[0], begin)


def _raw(file: BinaryIO, base: int, end: int, heap: int, used: int, work: _Work) -> Iterator[_Named]:
    """Raw files that hold a dataset's values: their names lie in a heap, the places there in slots behind the message's head."""
    head = _at(file, heap, 32)
    if len(head) < 32 or not head.startswith(b"HEAP\0"):
        return
    names = base + int.from_bytes(head[24:], "little")
    slots = _at(file, end, used * 24)
    work.spend(len(slots) // 8)
    for at in range(0, len(slots), 24):
        name = _at(file, names + int.from_bytes(slots[at : at + 8], "little"), _LONGEST).partition(b"\0")[0]
        if name:
            yield _Named("a dataset of raw bytes", name, end)


def _virtual(file: BinaryIO, heap: int, index: int, work: _Work) -> Iterator[_Named]:
    """The files that a virtual dataset is made of."""
    head = _at(file, heap, 16)
    if len(head) < 16 or not head.startswith(b"GCOL\x01"):
        return
    at, end = heap + 16, heap + int.from_bytes(head[8:], "little")
    while True:
        head = _at(file, at, 16)
        work.spend(1)
        size = int.from_bytes(head[8:], "little")
        if len(head) < 16 or at >= end or head[:2] == b"\0\0":
            return
        if int.from_bytes(head[:2], "little") == index:
            data = _at(file, at + 16, min(size, _MOST_MAPPED))
            work.spend(len(data) // 16)
            try:
                yield from (_Named("a virtual dataset", name, at) for name in _sources(data))
            except (IndexError, ValueError) as error:
                raise FormatError("the list of a virtual dataset's parts can't be read") from error
            return
        at += 16 + (size + 7) // 8 * 8


def _sources(data: bytes) -> Iterator[bytes]:
    """The names of files in a virtual dataset's list.

    Raises:
        IndexError, ValueError: it is no list of these.
    """
    version, at = data[0], 9
    if version > 1:
        raise ValueError(version)
    for _ in range(int.from_bytes(data[1:9], "little")):
        flags = data[at] if version else 0  # 1 and 2: the file, the dataset of an entry before; 4: in this file
        at += version
        for bit in (1, 2):
            if flags & bit:
                at += 8
            elif bit == 2 or not flags & 4:
                stop = data.index(b"\0", at)
                if bit == 1:
                    yield data[at:stop]
                at = stop + 1
        at = _selected(data, _selected(data, at))


def _selected(data: bytes, at: int) -> int:
    """Where a selection in a dataspace ends."""

    def number(where: int, width: int) -> int:
        if where + width > len(data):
            raise IndexError(where)
        return int.from_bytes(data[where : where + width], "little")

    kind, version = number(at, 4), number(at + 4, 4)
    if version == 1 or (kind, version) == (2, 2):  # 4 bytes that say nothing, or 1 of flags; then how many follow
        behind = at + (12 if version == 1 else 9)
        return behind + 4 + number(behind, 4)
    if (kind, version) == (2, 3):
        flags, width, rank = data[at + 8], data[at + 9], number(at + 10, 4)
        if flags & 1:
            return at + 14 + 4 * rank * width
        return at + 14 + width + 2 * rank * width * number(at + 14, width)
    if (kind, version) == (1, 2):
        width, rank = data[at + 8], number(at + 9, 4)
        return at + 13 + width + rank * width * number(at + 13, width)
    raise ValueError(kind)


def _at(file: BinaryIO, at: int, size: int) -> bytes:
    """Bytes of the file; none from a place that no file has."""
    if size <= 0 or not 0 <= at < 1 << 62:
        return b""
    file.seek(at)
    return file.read(size)


def _is_text(raw: bytes) -> bool:
    """Whether bytes are a name that a file or an object of somebody's may have."""
    try:
        return raw.decode().isprintable() and bool(raw)
    except UnicodeDecodeError:
        return False
