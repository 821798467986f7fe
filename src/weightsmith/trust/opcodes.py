"""Whether bytes without a magic could be a pickle: they are followed as the unpickler would, without doing anything.

Pickles of protocols 0 and 1 begin with any opcode, so text and data can look like one by chance. Chance does not get
far: a wrong opcode, an argument of the wrong form or a stack that is empty when something is taken from it ends it.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

_NAME = re.compile(r"[A-Za-z_][\w.]* [A-Za-z_][\w.]*\Z", re.ASCII)
_IMPORTS = frozenset({"GLOBAL", "INST", "STACK_GLOBAL"})
_REGISTERED = frozenset({"EXT1", "EXT2", "EXT4"})  # what a program registered before, by number: taken, nothing is done by that
_CALLS = frozenset({"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"})  # without effect before an import


class Reading(Enum):
    """``NO``: the unpickler stops with an error before it does anything; ``DATA``: it ends well and did nothing, and so
    do the streams that follow; ``OPEN``: nothing was done in what can be told; ``CODE``: it imports or calls something."""

    NO = 0
    DATA = 1
    OPEN = 2
    CODE = 3


def read_as_pickle(head: bytes, size: int) -> Reading:
    """What an unpickler would make of the first bytes ``head`` of a file of ``size`` bytes."""
    reading = _streams(head, size)
    if reading is Reading.NO and size <= len(head) and not head.endswith(b"\n"):
        return _streams(head + b"\n", size + 1)  # a name that the end of the file cuts off is imported all the same
    return reading


def _streams(head: bytes, size: int) -> Reading:
    at = 0
    while at < len(head):
        reading, end = _stream(head, at, size)
        if reading is not Reading.DATA:
            return Reading.OPEN if reading is Reading.NO and at else reading
        at = end
    return Reading.DATA if size <= len(head) else Reading.OPEN


def _stream(head: bytes, begin: int, size: int) -> tuple[Reading, int]:
    """One pickle that begins at ``begin``, and where it ends."""
    depth, count, imported, taken = 0, 0, False, False
    marks: list[int] = []
    file = io.BytesIO(head)
    file.seek(begin)

    def failed() -> tuple[Reading, int]:
        return Reading.OPEN if imported else Reading.NO, file.tell()

    try:
        for op, argument in _opcodes(file):
            count += 1
            if op.name in _IMPORTS:
                if op.name in ("GLOBAL", "INST") and not _NAME.match(str(argument)):
                    return failed()
                imported = True
            taken = taken or op.name in _REGISTERED
            if op.name == "STOP" and depth and count > 1:
                return Reading.CODE if imported or taken else Reading.DATA, file.tell()
            if op.name in _CALLS and not imported and not taken:
                return failed()
            depth = _effect(op, depth, marks)
            if depth < 0:
                return failed()
            if op.name in _CALLS:
                return Reading.CODE, file.tell()
    except UnicodeDecodeError:  # some unpicklers take what this one does not
        return Reading.OPEN, len(head)
    except Exception as error:  # noqa: BLE001 - the library raises anything on other bytes
        wanted = re.search(r"expected (\d+) bytes", str(error))
        if size > len(head) and len(head) - file.tell() <= 8 and (not wanted or begin + int(wanted[1]) <= size):
            return Reading.OPEN, len(head)
        return failed()
    return Reading.OPEN, len(head)


def _opcodes(file: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Opcodes with their arguments; a number that only the unpickler in C takes is a 0, and letters of an old string that only
    an unpickler with another encoding takes are an x."""
    at = file.tell()
    while True:
        try:
            for op, argument, _ in pickletools.genops(file):
                at = file.tell()
                yield op, argument
            return
        except ValueError as error:
            line = file.getvalue()[at : file.tell()]
            if isinstance(error, UnicodeDecodeError) and line[:1] == b"S":
                mended = bytes(c if c < 0x80 else 0x78 for c in line)
            elif not isinstance(error, UnicodeDecodeError) and _taken_in_c(line):
                mended = line[:1] + b"0" * (len(line) - 2) + line[-1:]
            else:
                raise
            file.seek(at)
            file.write(mended)
            file.seek(at)


def _taken_in_c(line: bytes) -> bool:
    """Whether an opcode with its number as text is read by the unpickler in C, where Python's ``int`` or ``float`` refuses: it
    takes every base (not for ``g`` and ``p``), and stops at a NUL."""
    opcode, number = line[:1], line[1:-1].partition(b"\0")[0].strip().decode("latin-1")
    if opcode not in b"ILFgp" or not line.endswith(b"\n") or not number:
        return False
    if opcode == b"L" and b"\0" not in line:
        number = number.removesuffix("L")
    try:
        if opcode == b"F":
            float(number)
        else:
            int(number, 0 if opcode in b"IL" and not number.lstrip("+-").isdigit() else 10)
    except ValueError:
        return False
    return True


def _effect(op: pickletools.OpcodeInfo, depth: int, marks: list[int]) -> int:
    """The stack's depth after an opcode; -1 when it takes what is not there."""
    if op.name == "MARK":
        marks.append(depth)
        return depth
    taken = op.stack_before
    if pickletools.stackslice in taken or op.name == "POP_MARK":
        if not marks:
            return -1
        depth = marks.pop()
        below = taken.index(pickletools.markobject) if pickletools.markobject in taken else 0
        return depth - below + len(op.stack_after) if depth >= below else -1
    if op.name == "POP" and marks and marks[-1] == depth:
        marks.pop()
        return depth
    return depth - len(taken) + len(op.stack_after) if depth >= len(taken) else -1
