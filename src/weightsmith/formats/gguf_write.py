"""A GGUF v3 file written in one pass: metadata, tensor table, then one tensor after another.

The table, which holds every offset, is known before the first byte of data, since a ggml type and a shape say how long
a tensor is. Each tensor comes as pieces that worker threads compute a few ahead, while this thread writes them in
order: memory does not grow with the file, and the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import FormatError, UsageError
from ..storage import BLOCK, require_space, usable_cores, whole_file
from . import gguf_quant
from .gguf import MAX_NAME, Array

ALIGNMENT = 32
#: names of the metadata types, and their numbers
KINDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "array": 9,
         "u64": 10, "i64": 11, "f64": 12}  # fmt: skip
_PACK = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?",
         "u64": "Q", "i64": "q", "f64": "d"}  # fmt: skip

#: computes one piece of a tensor's bytes, on a worker thread; a :class:`Landed` when more is to be done with it
Piece = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Landed:
    """A piece's bytes, and what to call on the writing thread once they are written: in order, one at a time."""

    data: Any
    then: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Typed:
    """A metadata value of a stated type: ``Typed(5, "i32")``, ``Typed([1, 3], "array", "i32")``."""

    value: Any
    kind: str
    items: str | None = None


@dataclass(frozen=True, slots=True)
class RawPair:
    """A metadata pair as the bytes of another file, key included."""

    data: bytes


#: What a metadata value may be. Plain ones get the types that llama.cpp's converter uses: ``bool``, ``u32`` (``i32``
#: where negative, 64 bits where it must be), ``f32``, ``str``, and arrays of these; arrays of ``int`` are ``i32``.
Value = bool | int | float | str | Sequence[Any] | Typed | RawPair


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor to write: ``shape`` is in torch order (``[out, in]``), ``type`` a ggml type's name.

    ``pieces`` is called when the tensor's turn comes; its pieces together are exactly the tensor's bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Piece]]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor.

        Raises:
            ShapeMismatch: the rows are no whole number of blocks.
        """
        columns = self.shape[-1] if self.shape else 1
        return math.prod(self.shape[:-1]) * gguf_quant.row_bytes(self.type, columns)


def array_entry(name: str, values: Array, kind: str = "F32") -> TensorEntry:
    """A small tensor that is in memory already, fp32 ``values`` in their own shape."""
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    return TensorEntry(name, kind, values.shape, lambda: [lambda: gguf_quant.quantize_rows(rows, kind)])


def file_entry(name: str, kind: str, shape: tuple[int, ...], source: Path, start: int, nbytes: int) -> TensorEntry:
    """A tensor whose bytes stand in another file from ``start`` on, copied as they are."""

    def read(offset: int, length: int) -> Array:
        data = np.fromfile(source, np.uint8, length, offset=start + offset)
        if data.size != length:
            raise FormatError(f"tensor {name!r} ends early", where=source)
        return data

    def pieces() -> Iterator[Piece]:
        for offset in range(0, nbytes, BLOCK):
            yield lambda offset=offset: read(offset, min(BLOCK, nbytes - offset))  # type: ignore[misc]

    return TensorEntry(name, kind, shape, pieces)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorEntry],
    *,
    alignment: int = ALIGNMENT,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write a GGUF file, whole or not at all. ``general.alignment`` is added where it is not the usual 32.

    ``progress`` gets a tensor's name, bytes written so far and in total.

    Raises:
        OutputExists: ``path`` is taken.
        DiskFull: no space for it.
        UsageError: a metadata value that GGUF can't hold, a name twice, or a bad alignment.
        FormatError: the pieces of a tensor don't have the bytes that its type and shape need.
    """
    path = Path(path)
    if alignment < 8 or alignment & (alignment - 1):
        raise UsageError(f"alignment {alignment} is not a power of two of at least 8", where=path)
    if alignment != ALIGNMENT:
        metadata = {**metadata, "general.alignment": alignment}
    head = build_header(metadata, tensors, alignment)
    total = sum(t.nbytes for t in tensors)
    require_space(path.parent, len(head) + total + alignment * len(tensors))
    with whole_file(path) as scratch, scratch.open("wb", buffering=0) as file:
        _put(file, head)
        done, stream = 0, _ahead(tensors)
        try:
            for tensor in tensors:
                wrote = 0
                while (data := next(stream)) is not None:
                    landed = data if isinstance(data, Landed) else None
                    wrote += _put(file, landed.data if landed else data)
                    if landed:
                        landed.then()
                    if progress:
                        progress(tensor.name, done + wrote, total)
                if wrote != tensor.nbytes:
                    raise FormatError(f"tensor {tensor.name!r}: {wrote} bytes came, {tensor.nbytes} needed", where=path)
                done += wrote
                _put(file, bytes(-wrote % alignment))
        finally:
            stream.close()


def build_header(metadata: Mapping[str, Value], tensors: Sequence[TensorEntry], alignment: int = ALIGNMENT) -> bytes:
    """Everything before the data, padded to the alignment.

    Raises:
        UsageError: a value that GGUF can't hold, a tensor of more than 4 dimensions, or a name twice.
    """
    if len({t.name for t in tensors}) != len(tensors):
        raise UsageError("two tensors have the same name")
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts.append(value.data if isinstance(value, RawPair) else _text(key, MAX_NAME) + _value(key, value))
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        if len(dims) > 4:
            raise UsageError(f"tensor {tensor.name!r} has {len(dims)} dimensions; ggml has at most 4")
        number = gguf_quant.BLOCKS[tensor.type][0]
        parts.append(_text(tensor.name, MAX_NAME) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset))
        offset += -(-tensor.nbytes // alignment) * alignment
    head = b"".join(parts)
    return head + bytes(-len(head) % alignment)


def _text(value: str, limit: int | None = None) -> bytes:
    raw = value.encode()
    if limit is not None and not 0 < len(raw) <= limit:
        raise UsageError(f"a name of {len(raw)} bytes; GGUF takes 1 to {limit}")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Value) -> bytes:
    typed = value if isinstance(value, Typed) else _typed(key, value)
    try:
        if typed.kind == "array":
            assert typed.items is not None
            head = struct.pack("<IIQ", KINDS["array"], KINDS[typed.items], len(typed.value))
            if typed.items == "str":
                return head + b"".join(map(_text, typed.value))
            if typed.items == "array":
                return head + b"".join(_value(key, item)[4:] for item in typed.value)
            return head + struct.pack(f"<{len(typed.value)}{_PACK[typed.items]}", *typed.value)
        if typed.kind == "str":
            return struct.pack("<I", KINDS["str"]) + _text(typed.value)
        return struct.pack(f"<I{_PACK[typed.kind]}", KINDS[typed.kind], typed.value)
    except (struct.error, KeyError, TypeError, AttributeError, UnicodeEncodeError, OverflowError) as error:
        raise UsageError(f"{key} = {value!r:.60} can't stand in GGUF metadata ({error})") from error


def _typed(key: str, value: Any) -> Typed:
    if isinstance(value, bool):
        return Typed(value, "bool")
    if isinstance(value, int):
        ranges = (("u32", 0, 1 << 32), ("i32", -(1 << 31), 0), ("u64", 0, 1 << 64), ("i64", -(1 << 63), 0))
        return Typed(value, next((kind for kind, low, high in ranges if low <= value < high), "u64"))
    if isinstance(value, float):
        return Typed(value, "f32")
    if isinstance(value, str):
        return Typed(value, "str")
    if isinstance(value, list | tuple):
        kinds = {type(item) for item in value}
        if len(kinds) <= 1:
            known = {bool: "bool", int: "i32", float: "f32", str: "str", list: "array", tuple: "array"}
            found = known.get(kinds.pop() if kinds else str)
            if found:
                return Typed(value, "array", found)
    raise UsageError(f"{key} = {value!r:.60} can't stand in GGUF metadata")


def _ahead(tensors: Sequence[TensorEntry]) -> Generator[Any, None, None]:
    """The pieces of all tensors in order, ``None`` after each tensor, computed a few ahead by worker threads."""
    workers = usable_cores()
    waiting: deque[Future[Any] | None] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for tensor in tensors:
                for piece in tensor.pieces():
                    waiting.append(pool.submit(piece))
                    while len(waiting) > 2 * workers:
                        future = waiting.popleft()
                        yield future and future.result()
                waiting.append(None)
            while waiting:
                future = waiting.popleft()
                yield future and future.result()
        finally:
            for future in waiting:
                if future is not None:
                    future.cancel()


def _put(file: BinaryIO, data: Any) -> int:
    """Write all of ``data``; a raw file may take less than it was given."""
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    length = len(view)
    while view:
        view = view[file.write(view) :]
    return length
