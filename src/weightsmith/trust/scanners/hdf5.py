"""Pickles inside HDF5 files: PyTables, and pandas on top of it, unpickle attributes and the objects of a heap as they read them.

HDF5 itself is not taken apart. Attributes lie raw in the headers of objects, objects of variable length raw in collections
(``GCOL``) that no filter of a dataset compresses; both are found by their form, and beside them whatever begins like a
pickle. What a stream of opcodes does decides then, not where it was found.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_left, insort
from collections.abc import Generator, Iterator
from typing import BinaryIO

from ...errors import LimitExceeded
from ...found import Finding
from ..items import Folder, Item
from ..listing import shown
from .hdf5_links import PACKED, SIGNATURE, check_links
from .pickle_judge import CODE, Judge
from .pickle_machine import Machine
from .pickle_values import Cursor
from .unpacking import part

MOST_TRIED = 20_000  # places that may begin a pickle
MOST_WALKED = 1 << 20  # bytes of streams that begin at places of which nothing says that they do
_BLOCK = 1 << 20
_KEPT = 256  # bytes of a block that are looked at with the next one: the longest anchor
_SMALL = 1 << 16
_HEAP = re.compile(rb"GCOL\x01\0\0\0")
#: the type "text of so many bytes" and a dataspace of one value, behind which an attribute's bytes lie; one pattern for each
#: version, since a search for one first byte takes a tenth of the time that one for a class of them takes
_ATTRIBUTES = tuple(re.compile(first + rb"[\x00-\x12]\0\0(?P<size>....)(?:\x01\0[\0\x01]\0{5}|\x02\0..)", re.DOTALL)
                    for first in (b"\x13", b"\x23", b"\x33", b"\x43"))  # fmt: skip
_PROTOCOL = re.compile(rb"\x80(?:[\x04\x05]\x95.{6}\0\0|[\x02\x03][c(\]})NKMJGIX\x8a\x88\x89])", re.DOTALL)
_NAMED = tuple(re.compile(first + rb"[A-Za-z_][\w.]{1,80}\n[A-Za-z_]\w{1,60}\n") for first in (b"c", b"i"))
_STACKED = re.compile(rb"\x8c.[A-Za-z_][\w.]{1,80}\x94?\x8c.[A-Za-z_]\w{1,60}\x94?\x93", re.DOTALL)
_HEAPED = re.compile(rb"FRHP\0..(?P<filters>..)", re.DOTALL)
_ANCHORS = (_HEAP, *_ATTRIBUTES, _PROTOCOL, *_NAMED, _STACKED, _HEAPED)
_IMPORTS = re.compile(rb"[ci][^\n]{1,200}\n[^\n]{1,200}\n|[\x93\x82\x83\x84]")


def scan(item: Item, folder: Folder, referenced: set[str]) -> Iterator[Finding | Item]:
    """What the library opens beside the file, and what would be run by who reads it with PyTables."""
    base, *widths = _measures(item)
    if odd := next((w for w in widths if w in (2, 4, 16, 32)), 0):
        yield PACKED.found(f"its lengths or addresses have {odd} bytes", file=shown(item.name))
        return
    yield from check_links(item, folder, base, referenced)
    yield from _pickles(item)


def _pickles(item: Item) -> Iterator[Finding | Item]:
    """Pickles, and what those that fail call before they do."""
    name = shown(item.name)
    seen: set[tuple[int, int]] = set()
    known: dict[bytes, list[int]] = {}  # tables of pandas say the same of each column
    walked = vouched = 0  # bytes that were read as pickles: where nothing says that one begins, and where something does
    said: list[tuple[int, int]] = []  # objects that were pickles as a whole, in order: what is in them was looked at
    with item.open() as file:
        for at, size, sure in _places(item):
            if size is None:
                yield PACKED.found("a heap of its own objects is packed", file=name, place=f"byte {at}")
                return
            if (at, size) in seen or (not sure and _inside(at, said)):
                continue
            seen.add((at, size))
            if len(seen) > MOST_TRIED:
                raise LimitExceeded("more places that may begin a pickle than are tried", where=item.name)
            file.seek(at)
            raw = file.read(size) if sure and size <= _SMALL else b""
            if raw not in known:
                whole: list[int] = []
                far = yield from _tried(item, at, size, sure, whole)
                walked, vouched = (walked, vouched + far) if sure else (walked + far, vouched)
                if vouched > 2 * item.size + MOST_WALKED:  # objects don't lie in each other
                    raise LimitExceeded("objects that overlap", where=item.name)
                if walked > MOST_WALKED:
                    raise LimitExceeded(f"pickles of more than {MOST_WALKED} bytes where none is declared", where=item.name)
                known.update({raw: whole} if raw else {})
            else:
                whole = known[raw]
            for end in whole if sure else ():
                insort(said, (at, at + end))


def _inside(at: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a place lies in one of some spans."""
    before = bisect_left(spans, (at, at)) - 1
    return any(begin <= at < end for begin, end in spans[max(before, 0) : before + 2])


def _tried(item: Item, at: int, size: int, sure: bool, whole: list[int]) -> Generator[Finding | Item, None, int]:
    """One place: a stream that ends well is a file of its own (``whole`` takes its length), of any other one is said what it
    calls before it fails. How many bytes were read as a pickle."""
    name = f"{item.name}!byte {at}"
    judge = Judge(shown(name), guess=True)
    opener = part(item.opener, at, size)
    with opener() as file:
        begin = file.read(12)
        file.seek(0)
        cursor = Cursor(file)
        stream = Machine(cursor, judge).run()
    whole += [stream.end] if stream.stopped else []
    framed = sure and bool(re.match(rb"\x80[\x04\x05]\x95.{6}\0\0", begin, re.DOTALL))
    if judge.uses and (stream.limit or framed or (stream.stopped and (sure or begin[:1] == b"\x80"))):
        inner = Item(name, stream.end if stream.stopped else size, opener, outer=item)
        if stream.stopped:
            inner.opener = part(item.opener, at, stream.end)
        inner.kinds = ("pickle",)
        yield inner
    elif sure or begin[:1] == b"\x80":
        yield from judge.findings()
    else:  # lines of words look like an import, so that only what is of the system counts
        found = [f for f in judge.findings() if f.rule == CODE.name]
        yield from found or _behind_a_mark(item, at, size)
    return cursor.position


def _behind_a_mark(item: Item, at: int, size: int) -> Iterator[Finding]:
    """An import in the middle of a stream: what it calls of the system when a mark stands before it."""
    judge = Judge(shown(f"{item.name}!byte {at}"), guess=True)
    with part(item.opener, at, min(size, _SMALL))() as file:
        Machine(Cursor(io.BytesIO(b"(" + file.read(_SMALL))), judge).run()
    yield from (f for f in judge.findings() if f.rule == CODE.name)


def _places(item: Item) -> Iterator[tuple[int, int | None, bool]]:
    """``(begin, size, sure)`` of what may be a pickle: whole objects, or beginnings that look like one; a size of ``None`` is a
    heap that can't be read."""
    with item.open() as file, item.open() as other:
        at, kept = 0, b""
        while block := file.read(_BLOCK):
            data, start = kept + block, at - len(kept)
            fresh = len(kept) - _KEPT if at else 0  # an anchor that fitted into the block before was seen there
            for pattern in _ANCHORS:
                for match in pattern.finditer(data):
                    if match.end() > fresh:
                        yield from _at(match, start, other, item.size)
            kept = data[-_KEPT:]
            at += len(block)


def _at(match: re.Match[bytes], start: int, file: BinaryIO, size: int) -> Iterator[tuple[int, int | None, bool]]:
    """What an anchor points to."""
    begin, end = start + match.start(), start + match.end()
    if match.re is _HEAP:
        yield from _objects(file, begin, size)
    elif match.re is _HEAPED:
        if match["filters"] != b"\0\0":
            yield begin, None, True
    elif match.re in _ATTRIBUTES:
        length = int.from_bytes(match["size"], "little")
        for first in (end, end + 4):  # a dataspace of four bytes may be padded to eight
            file.seek(first)
            if 2 < length <= size - first and (length > _SMALL or _is_candidate(file.read(length), b".")):
                yield first, length, True
    else:
        yield begin, size - begin, False


def _objects(file: BinaryIO, at: int, size: int) -> Iterator[tuple[int, int | None, bool]]:
    """The objects of a collection that may be pickles."""
    file.seek(at + 8)
    end = min(at + int.from_bytes(file.read(8), "little"), size)
    at += 16
    while at + 16 <= end:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[8:], "little")
        if head[:2] == b"\0\0":  # what is free, up to the next object
            at += max(length, 16)
            continue
        if length > end - at - 16:
            return
        if length > _SMALL or _is_candidate(file.read(length)):
            yield at + 16, length, True
        at += 16 + (length + 7) // 8 * 8


def _is_candidate(raw: bytes, end: bytes = b"") -> bool:
    """Whether bytes hold an import, and end as PyTables wants a pickle to."""
    return raw.rstrip(b"\0").endswith(end) and bool(_IMPORTS.search(raw))


def _measures(item: Item) -> tuple[int, int, int]:
    """Where the superblock lies, and how many bytes addresses and lengths have in this file."""
    with item.open() as file:
        at = 0
        while at < item.size:
            file.seek(at)
            head = file.read(16)
            if head.startswith(SIGNATURE):
                first = 13 if len(head) > 14 and head[8] < 2 else 9
                return (at, head[first], head[first + 1]) if len(head) > first + 1 else (at, 8, 8)
            at = max(512, at * 2)
    return 0, 8, 8
