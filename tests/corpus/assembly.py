"""Pickles put together opcode by opcode, as no writer of pickles would."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from . import write_json

#: what payloads do: make the marker, and nothing else
SHELL = 'touch "$WEIGHTSMITH_MARKER"'
PYTHON = "open(__import__('os').environ['WEIGHTSMITH_MARKER'], 'w').close()"

STOP, MARK, REDUCE, BUILD, TUPLE, EMPTY_TUPLE, EMPTY_DICT, NONE = b".", b"(", b"R", b"b", b"t", b")", b"}", b"N"
TUPLE1, TUPLE2, STACK_GLOBAL, NEWOBJ, NEWOBJ_EX = b"\x85", b"\x86", b"\x93", b"\x81", b"\x92"
OBJ, POP, DUP = b"o", b"0", b"2"


def proto(number: int) -> bytes:
    """PROTO."""
    return b"\x80" + bytes([number])


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def raw_bytes(value: bytes) -> bytes:
    """BINBYTES."""
    return b"B" + struct.pack("<I", len(value)) + value


def named(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    """STACK_GLOBAL of two literals."""
    return text(module) + text(name) + STACK_GLOBAL


def frame(body: bytes, length: int | None = None) -> bytes:
    """FRAME, with its true length or another."""
    return b"\x95" + struct.pack("<Q", len(body) if length is None else length) + body


def args(*values: bytes) -> bytes:
    """A tuple of what the opcodes push."""
    return MARK + b"".join(values) + TUPLE


def call(module: str, name: str, *values: bytes) -> bytes:
    """REDUCE."""
    return named(module, name) + args(*values) + REDUCE


def system(protocol: int = 2) -> bytes:
    """The plainest payload there is."""
    return proto(protocol) + call("os", "system", text(SHELL)) + STOP


def python(protocol: int = 2) -> bytes:
    """The same without a shell."""
    return proto(protocol) + call("builtins", "exec", text(PYTHON)) + STOP


class Reduced:
    """Pickles to any call."""

    def __init__(self, func: object, *values: object) -> None:
        self.made = func, values

    def __reduce__(self) -> object:
        return self.made


def put(data: bytes | Callable[[], bytes], name: str = "model.pkl") -> Callable[[Path], None]:
    """Makes a folder with this one file and a config beside it."""

    def build(folder: Path) -> None:
        write_json(folder / "config.json", {"model_type": "llama"})
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())

    return build
