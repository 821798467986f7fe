"""GGUF files: a bounded header parser over a memory map, and dequantisation to fp32.

The format, little-endian: ``GGUF``, a version, the counts of tensors and of metadata pairs, the pairs, the tensor
table, padding to the alignment, the data. Every length in it is a 64-bit number that the file chooses, so each one
is checked against the bytes that are left *before* anything is allocated, and four limits keep time and memory in
proportion to the file: bytes of header, metadata keys, array elements, tensors. Every error says in its field
``fault`` which kind of violation it is.

Accepted trade-off: bytes between tensors and after the last one are allowed, as the specification allows them.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadOffsets, FormatError, HeaderTooLarge, Truncated, UnsupportedModel
from .gguf_kernels import KERNELS

SMALLEST = 24  # bytes of the fixed part
MAX_HEADER = 1 << 27  # bytes of metadata and tensor table; the largest real vocabularies need a tenth
MAX_KEYS = 1 << 16
MAX_SIZE = 1 << 63  # what a signed 64-bit number can't count
MAX_TENSORS = 1 << 17
MAX_ELEMENTS = 1 << 23  # of all metadata arrays together
MAX_ARRAYS = 1 << 16  # nested ones counted
MAX_DEPTH = 4
MAX_NAME = 65_535  # bytes of a key or a tensor name, the specification's limit for keys
SMALL_ARRAY = 1024  # arrays up to this many elements are kept even when arrays are skipped

#: ggml type id -> (name, elements per block, bytes per block)
GGML_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip
_NO_WEIGHTS = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")  # intermediate results and plain numbers
_BLOCK = {name: (elements, nbytes) for name, elements, nbytes in GGML_TYPES.values()}

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_WIDTH = {code: struct.calcsize(f"<{letter}") for code, letter in _SCALARS.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = struct.Struct("<I").unpack_from, struct.Struct("<Q").unpack_from

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies on disk.

    ``type`` is the ggml type's name such as ``Q4_1``; ``shape`` is in elements and torch order (``[out, in]`` for a
    linear weight, the reverse of what the file writes); ``start`` is the absolute offset of its first byte.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    file: Path

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows of the last axis: all leading axes flattened, 1 for a vector."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """What stands for a long array when :func:`read_header` was told not to keep them: how many elements."""

    count: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """One parsed file: metadata (arrays as lists), tensors in file order, where the data begins, its alignment.

    ``spans`` are begin and end of every metadata pair in the file, key included, so that it can be copied as it is.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_start: int
    alignment: int
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def architecture(self) -> str:
        """``general.architecture``.

        Raises:
            FormatError: the key is missing or not a string.
        """
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise FormatError("no general.architecture in the metadata", where=self.path)
        return value


def read_header(path: Path, *, arrays: bool = True) -> GgufHeader:
    """Parse and check the header of a GGUF v2 or v3 file; the tensor data is not read.

    With ``arrays=False`` the arrays of more than 1024 elements (the vocabulary and its merges) are checked but not
    decoded, and stand as :class:`SkippedArray`; that is all that showing a model needs.

    Raises:
        Truncated: the file ends before the header or the data does.
        HeaderTooLarge: a count or the whole header is beyond any sane file.
        BadOffsets: a tensor is unaligned or overlaps another.
        FormatError: not GGUF, or invalid inside.
        UnsupportedModel: big-endian, another version, or a ggml type that is not known here.
    """
    path = Path(path)
    size = path.stat().st_size
    if size < SMALLEST:
        raise Truncated(f"{size} bytes; every GGUF file begins with 24", where=path, fault="truncated")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return parse_header(data, size, path, arrays=arrays)


def parse_header(
    data: mmap.mmap | bytes, size: int, path: Path, *, arrays: bool = True, elements: int = 0, most: int = 0
) -> GgufHeader:
    """:func:`read_header` of a file that is open already, or of its first bytes.

    ``data`` holds the file's bytes from its beginning, as many as its header may need; ``size`` is the whole file's
    length, and ``path`` is only remembered; ``elements`` limits those of all arrays together and ``most`` the bytes of the
    header (by default :data:`MAX_ELEMENTS` and :data:`MAX_HEADER`).
    """
    if size < SMALLEST:
        raise Truncated(f"{size} bytes; every GGUF file begins with 24", where=path, fault="truncated")
    version, tensor_count, key_count = _preamble(path, data)
    cursor = _Cursor(path, data, size, arrays, elements or MAX_ELEMENTS)
    cursor.limit = min(cursor.limit, most or MAX_HEADER)
    cursor.check_count("tensors", tensor_count, MAX_TENSORS, 24)
    cursor.check_count("metadata pairs", key_count, MAX_KEYS, 13)
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        begin = cursor.pos
        key = cursor.name("a metadata key")
        if key in metadata:
            raise FormatError(
                f"the metadata names {key!r} twice", where=path, hint="readers may differ on it", fault="duplicate"
            )
        metadata[key] = cursor.value(cursor.u32(), 0)
        spans[key] = (begin, cursor.pos)
    table = [_table_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise FormatError(f"general.alignment is {str(alignment)[:80]}, not a power of two", where=path, fault="alignment")
    data_start = -(-cursor.pos // alignment) * alignment
    tensors = _placed(path, table, data_start, alignment, size)
    return GgufHeader(path, version, metadata, tensors, data_start, alignment, spans)


def _preamble(path: Path, data: mmap.mmap | bytes) -> tuple[int, int, int]:
    magic = data[:4]
    if data[:8] == b"version ":
        raise FormatError("a Git LFS pointer, not the weights themselves", where=path, hint="run `git lfs pull`", fault="lfs")
    if magic != b"GGUF":
        raise FormatError(f"begins with {magic!r}, so it is not a GGUF file", where=path, fault="magic")
    version, tensor_count, key_count = struct.unpack("<IQQ", data[4:24])
    if version & 0xFFFF == 0:
        raise UnsupportedModel(
            "a big-endian GGUF file", where=path, hint="convert it with gguf's `gguf_convert_endian.py`",
            fault="byte-order",
        )
    if version not in (2, 3):
        raise UnsupportedModel(f"GGUF version {version}; only 2 and 3 are known", where=path, fault="version")
    return version, tensor_count, key_count


class _Cursor:
    """A position in the header, and the checks that every step makes before it reads."""

    __slots__ = ("arrays", "data", "elements", "keep", "limit", "most", "path", "pos", "size")

    def __init__(self, path: Path, data: mmap.mmap | bytes, size: int, keep: bool, most: int) -> None:
        self.path, self.data, self.size, self.keep, self.most = path, data, size, keep, most
        self.limit = min(size, MAX_HEADER)
        self.pos, self.elements, self.arrays = 24, 0, 0

    def beyond(self) -> FormatError:
        """The error for a step past the limit: the file's end, or ours."""
        if self.limit < self.size:
            return HeaderTooLarge(f"the header is longer than {self.limit} bytes", where=self.path, fault="too-large")
        return Truncated(f"the header ends early, near byte {self.pos}", where=self.path, fault="truncated")

    def check_count(self, what: str, count: int, most: int, each: int) -> None:
        if count > most:
            raise HeaderTooLarge(f"{count} {what}; the limit is {most}", where=self.path, fault="too-large")
        if count * each > self.limit - self.pos:
            raise self.beyond()

    def take(self, length: int) -> bytes:
        end = self.pos + length
        if end > self.limit:
            raise self.beyond()
        piece = self.data[self.pos : end]
        self.pos = end
        return piece

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self, what: str, most: int = MAX_HEADER) -> str:
        length = self.u64()
        if length > most:
            raise HeaderTooLarge(f"{what} of {length} bytes; the limit is {most}", where=self.path, fault="too-large")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{what} is not UTF-8 (near byte {self.pos})", where=self.path, fault="utf-8") from error

    def name(self, what: str) -> str:
        name = self.text(what, MAX_NAME)
        if not name:
            raise FormatError(f"{what} is empty", where=self.path, fault="name")
        return name

    def value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self.text("a string")
        if kind == _ARRAY:
            return self.array(depth + 1)
        if kind not in _SCALARS:
            raise FormatError(f"unknown metadata type {kind} (near byte {self.pos})", where=self.path, fault="types")
        return self.scalars(kind, 1)[0]

    def scalars(self, kind: int, count: int) -> list[Any]:
        raw = self.take(count * _WIDTH[kind])
        if kind == _BOOL and raw.strip(b"\0\1"):
            raise FormatError("a boolean that is neither 0 nor 1", where=self.path, fault="types")
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", raw))

    def array(self, depth: int) -> Any:
        kind, count = self.u32(), self.u64()
        self.arrays += 1
        self.elements += count
        if depth > MAX_DEPTH or self.arrays > MAX_ARRAYS:
            raise HeaderTooLarge("metadata arrays nested too deep or too many of them", where=self.path, fault="nesting")
        if self.elements > self.most:
            raise HeaderTooLarge(f"an array of {count} elements; the limit is {self.most}", where=self.path, fault="too-large")
        keep = self.keep or count <= SMALL_ARRAY
        if kind in _SCALARS:
            self.check_count("elements", count, self.most, _WIDTH[kind])
            if keep:
                return self.scalars(kind, count)
            self.pos += count * _WIDTH[kind]
        elif kind == _STRING:
            self.check_count("strings", count, self.most, 8)
            if keep:
                return self.strings(count)
            self.skip_strings(count)
        elif kind == _ARRAY:
            self.check_count("arrays", count, MAX_ARRAYS, 12)
            return [self.array(depth + 1) for _ in range(count)]
        else:
            raise FormatError(f"an array of unknown type {kind} (near byte {self.pos})", where=self.path, fault="types")
        return SkippedArray(count)

    def strings(self, count: int) -> list[str]:
        """The hot loop: half a million short strings in a real file."""
        data, pos, end, limit, unpack = self.data, self.pos, self.pos, self.limit, _U64
        found: list[str] = []
        append = found.append
        try:
            for _ in range(count):
                (length,) = unpack(data, pos)
                pos += 8
                end = pos + length
                if end > limit:
                    raise self.beyond()
                append(str(data[pos:end], "utf-8"))
                pos = end
        except struct.error:
            raise self.beyond() from None
        except UnicodeDecodeError as error:
            raise FormatError(f"string {len(found)} of an array is not UTF-8", where=self.path, fault="utf-8") from error
        self.pos = pos
        return found

    def skip_strings(self, count: int) -> None:
        data, pos, limit, unpack = self.data, self.pos, self.limit, _U64
        try:
            for _ in range(count):
                pos += 8 + unpack(data, pos)[0]
                if pos > limit:
                    raise self.beyond()
        except struct.error:
            raise self.beyond() from None
        self.pos = pos


_Entry = tuple[str, str, tuple[int, ...], int, int]  # name, type, shape, offset, bytes


def _table_entry(cursor: _Cursor) -> _Entry:
    name = cursor.name("a tensor name")
    dims = cursor.u32()
    if dims > 4:
        raise FormatError(f"tensor {name!r} has {dims} dimensions; ggml has at most 4", where=cursor.path, fault="shape")
    shape = tuple(cursor.u64() for _ in range(dims))[::-1]
    kind, offset = cursor.u32(), cursor.u64()
    if kind not in GGML_TYPES:
        raise UnsupportedModel(f"tensor {name!r} has ggml type {kind}, which is not known here", where=cursor.path,
                               fault="dtype", kind=kind)  # fmt: skip
    label, elements, nbytes = GGML_TYPES[kind]
    if 0 in shape and max(shape) >= MAX_SIZE:  # of the others, the number of bytes is
        raise FormatError(f"tensor {name!r}: its dimensions overflow", where=cursor.path, fault="overflow")
    if (shape[-1] if shape else 1) % elements:
        raise FormatError(f"tensor {name!r}: rows of {shape[-1:]} don't fit {label} blocks", where=cursor.path, fault="shape")
    return name, label, shape, offset, math.prod(shape) // elements * nbytes


def _placed(path: Path, table: list[_Entry], data_start: int, alignment: int, size: int) -> tuple[GgufTensor, ...]:
    tensors = tuple(
        GgufTensor(name, label, shape, data_start + offset, nbytes, path)
        for name, label, shape, offset, nbytes in table
    )
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise FormatError(f"the file names tensor {tensor.name!r} twice", where=path, fault="duplicate")
        seen.add(tensor.name)
        if (tensor.start - data_start) % alignment:
            raise BadOffsets(f"tensor {tensor.name!r} is not aligned to {alignment} bytes", where=path, fault="alignment")
        if tensor.start + tensor.nbytes > size:
            raise Truncated(
                f"tensor {tensor.name!r} needs {tensor.start + tensor.nbytes} bytes and the file has {size}",
                where=path,
                hint="download it again",
                fault="overflow" if tensor.nbytes >= MAX_SIZE else "truncated",
            )
    position = data_start
    for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start < position:
            raise BadOffsets(f"tensor {tensor.name!r} overlaps the one before it", where=path, fault="overlap")
        position = tensor.start + tensor.nbytes
    return tensors


# -- values ------------------------------------------------------------------------------------------------


def read_rows(tensor: GgufTensor, start: int, stop: int) -> Array:
    """The stored bytes of rows ``start:stop``, as ``uint8`` of shape ``[stop - start, bytes per row]``.

    Raises:
        Truncated: the file got shorter since its header was read.
    """
    width = tensor.nbytes // tensor.rows if tensor.rows else 0
    count = (stop - start) * width
    raw = np.fromfile(tensor.file, np.uint8, count, offset=tensor.start + start * width)
    if raw.size != count:
        raise Truncated(f"tensor {tensor.name!r} ends early", where=tensor.file)
    return raw.reshape(stop - start, width)


def dequantize(tensor: GgufTensor, rows: tuple[int, int] | None = None) -> Array:
    """Values of a tensor as fp32: all of it in its own shape, or rows ``(start, stop)`` as ``[stop - start, in]``.

    Bit-equal to ``gguf.quants.dequantize``.

    Raises:
        UnsupportedModel: a ggml type that can't be dequantised here; the type is named.
        Truncated: the file got shorter since its header was read.
    """
    start, stop = rows or (0, tensor.rows)
    values = decode_rows(tensor.type, read_rows(tensor, start, stop))
    return values if rows else values.reshape(tensor.shape)


def decode_rows(kind: str, raw: Array) -> Array:
    """fp32 values of stored rows: ``uint8 [n, bytes per row]`` of ggml type ``kind`` to ``[n, in]``.

    Raises:
        UnsupportedModel: ``kind`` can't be dequantised here.
    """
    elements, nbytes = _BLOCK[kind]
    if not raw.size:
        return np.empty((len(raw), raw.shape[1] // nbytes * elements), np.float32)
    with np.errstate(all="ignore"):  # hostile scales may be infinite or NaN; callers decide about those
        if kind == "F32":
            return np.ascontiguousarray(raw).view("<f4")
        if kind == "F16":
            return np.ascontiguousarray(raw).view("<f2").astype(np.float32)
        kernel = KERNELS.get(kind)
        if kernel is None:
            return _by_gguf(kind, raw)
        return kernel(raw.reshape(-1, nbytes)).reshape(len(raw), raw.shape[1] // nbytes * elements)


def refuse_type(kind: str, where: object = None) -> None:
    """Raise :class:`UnsupportedModel` for a ggml type that never holds weights."""
    if kind in _NO_WEIGHTS:
        hint = "use a GGUF of another quantisation, such as Q4_K_M, Q8_0 or F16"
        raise UnsupportedModel(f"tensors of ggml type {kind} can't be dequantised", where=where, hint=hint)


def _by_gguf(kind: str, raw: Array) -> Array:
    """Rarer types through the reference package, imported only when one is met."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as reference

    refuse_type(kind)
    try:
        return np.asarray(reference(np.ascontiguousarray(raw), GGMLQuantizationType[kind]), np.float32)
    except (KeyError, NotImplementedError):
        raise UnsupportedModel(f"the installed gguf package does not know {kind}", hint="update gguf") from None
