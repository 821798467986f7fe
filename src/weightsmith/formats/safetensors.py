"""safetensors files: a header parser that checks the whole specification, and a streaming writer.

The format: 8 bytes (little-endian header length N), N bytes of JSON, then the data. Each tensor names its dtype,
shape and ``data_offsets`` relative to the end of the header; the ranges must tile the data without holes or
overlaps. The reference library accepts duplicate keys; we refuse them, since two readers may pick different ones.
Every error says in its field ``fault`` which kind of violation it is.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from blake3 import blake3

from ..errors import BadOffsets, FormatError, HeaderTooLarge, Truncated
from ..storage import strict_json
from . import float8

MAX_HEADER = 100_000_000  # the reference implementation's own limit, in bytes
MAX_SIZE = (1 << 63) - 1  # what a signed 64-bit number can count

#: bits per element of every dtype that the specification names
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies on disk.

    ``shape`` is in elements (``[out, in]`` for a linear weight), ``start`` the absolute offset of its first byte
    in ``file``, ``nbytes`` its length.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """One parsed file: its tensors in file order, its ``__metadata__`` and where the data begins."""

    path: Path
    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    data_start: int
    raw: bytes


def _pairs(most: int) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """What makes JSON objects: no name twice, and at most ``most`` objects, so that memory follows the limit."""
    made = 0

    def one(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal made
        made += 1
        if made > most:
            raise HeaderTooLarge(f"more than {most} entries", fault="too-large")
        seen = dict(pairs)
        if len(seen) != len(pairs):
            name = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise FormatError(f"the header names {name!r} twice", hint="two readers may pick different tensors",
                              fault="duplicate")  # fmt: skip
        return seen

    return one


def read_header(path: Path) -> SafetensorsHeader:
    """Parse and check the header of ``path``; the data is not read.

    Raises:
        Truncated: the file ends before the header or the data does.
        HeaderTooLarge: the header claims more than 100 MB.
        BadOffsets: overlaps, holes, trailing bytes, or a length that does not fit dtype and shape.
        FormatError: not JSON, duplicate names, unknown dtype, wrong types.
    """
    if path.exists() and not path.is_file():
        raise FormatError("not a plain file", where=path)
    size = path.stat().st_size
    with path.open("rb") as file:
        return parse_header(file, size, path)


def parse_header(
    file: BinaryIO, size: int, path: Path, *, most: int = MAX_HEADER, entries: int = MAX_HEADER
) -> SafetensorsHeader:
    """:func:`read_header` of a file that is open at its first byte and ``size`` bytes long; ``path`` is only remembered.

    ``most`` limits the bytes of the header, ``entries`` the tensors in it.
    """
    first = file.read(8)
    if len(first) < 8:
        raise Truncated("shorter than the 8 bytes that every safetensors file begins with", where=path, fault="truncated")
    length = int.from_bytes(first, "little")
    if first.startswith(b"version "):
        raise FormatError("a Git LFS pointer, not the weights themselves", where=path,
                          hint="fetch it with `git lfs pull`", fault="lfs")  # fmt: skip
    if length > MAX_HEADER:
        raise HeaderTooLarge(f"the header claims {length} bytes; the limit is {MAX_HEADER}", where=path, fault="length")
    if 8 + length > size:
        raise Truncated(f"the header needs {8 + length} bytes and the file has {size}", where=path, fault="truncated")
    if length > most:
        raise HeaderTooLarge(f"a header of {length} bytes; the limit is {most}", where=path, fault="too-large")
    raw = file.read(length)
    if len(raw) < length:
        raise Truncated("the file became shorter while its header was read", where=path, fault="truncated")
    # a tensor has two lists; lists of lists would take twenty times their length
    if raw.count(b"[") > 8 * entries or raw.count(b'"data_offsets"') > entries:
        raise HeaderTooLarge(f"more than {entries} entries", where=path, fault="too-large")
    try:
        header = strict_json(raw, _pairs(entries + 8))
    except FormatError as error:
        error.where = str(path)
        raise
    except (ValueError, RecursionError) as error:
        fault = {UnicodeDecodeError: "utf-8", RecursionError: "nesting"}.get(type(error), "json")
        said = "half of a surrogate pair in a name" if isinstance(error, UnicodeEncodeError) else error
        raise FormatError(f"the header is not valid JSON ({said})", where=path, fault=fault) from error
    return _checked(path, header, raw, 8 + length, size)


def _checked(path: Path, header: Any, raw: bytes, data_start: int, size: int) -> SafetensorsHeader:
    if not isinstance(header, dict):
        raise FormatError("the header is not a JSON object", where=path, fault="types")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("__metadata__ must map strings to strings", where=path, fault="metadata")
    specs = [_spec(path, name, entry, data_start) for name, entry in header.items()]
    specs.sort(key=lambda s: (s.start, s.nbytes))
    position = data_start
    for spec in specs:
        if spec.start != position:
            overlap = spec.start < position
            kind = "overlaps the one before it" if overlap else "leaves a hole before it"
            raise BadOffsets(f"tensor {spec.name!r} {kind}", where=path, fault="overlap" if overlap else "hole")
        position += spec.nbytes
    if position > size:
        raise Truncated(f"the data needs {position} bytes and the file has {size}", where=path, fault="truncated")
    if position < size:
        raise BadOffsets(f"{size - position} bytes after the last tensor belong to nothing", where=path, fault="trailing")
    return SafetensorsHeader(path, tuple(specs), metadata, data_start, raw)


def _spec(path: Path, name: str, entry: Any, data_start: int) -> TensorSpec:
    def bad(what: str, fault: str = "types") -> FormatError:
        return FormatError(f"tensor {name!r}: {what}", where=path, fault=fault)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise bad(f"unknown dtype {str(dtype)[:80]!r}", "dtype")
    ints = [shape, offsets]
    if not all(isinstance(x, list) and all(type(v) is int and v >= 0 for v in x) for x in ints):
        raise bad("shape and data_offsets must be lists of non-negative integers")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad("data_offsets must be [begin, end]")
    if any(size > MAX_SIZE for size in (*shape, *offsets)):
        raise BadOffsets(f"tensor {name!r}: {offsets[1] - offsets[0]} bytes for shape {str(shape)[:80]} of {dtype}",
                         where=path, fault="overflow")  # fmt: skip
    bits, nbytes = DTYPE_BITS[dtype], offsets[1] - offsets[0]
    for size in shape:
        bits *= size
        if bits > 1 << 64:  # no file is that large, and a product of thousands of huge numbers would take hours
            break
    if bits != nbytes * 8:
        raise BadOffsets(f"tensor {name!r}: {nbytes} bytes for shape {str(shape)[:80]} of {dtype}", where=path,
                         fault="overflow" if bits > 1 << 64 else "shape")  # fmt: skip
    return TensorSpec(name, dtype, tuple(shape), path, data_start + offsets[0], nbytes)


def build_header(entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON header of a file that holds ``(name, dtype, shape)`` in this order, data aligned to 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in entries:
        nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


Fill = Callable[[BinaryIO], None]


def write_file(
    path: Path,
    entries: list[tuple[str, str, tuple[int, ...], Fill]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file one tensor at a time: each ``Fill`` writes exactly the bytes of its tensor, in order.

    Raises:
        FormatError: a fill wrote another number of bytes than its dtype and shape need.
    """
    with path.open("wb", buffering=0) as file:
        file.write(build_header(((n, d, s) for n, d, s, _ in entries), metadata))
        for name, dtype, shape, fill in entries:
            begin = file.tell()
            fill(file)
            wrote, needed = file.tell() - begin, math.prod(shape) * DTYPE_BITS[dtype] // 8
            if wrote != needed:
                raise FormatError(f"tensor {name!r}: {wrote} bytes written, {needed} needed", where=path)


def f32_to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round fp32 to bfloat16 (as ``uint16`` bits), to nearest, ties to even; NaN stays NaN (quiet)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).reshape(-1)
    out = np.empty(bits.size, np.uint16)
    scratch = np.empty(min(bits.size, CACHED), np.uint32)
    for start in range(0, bits.size, CACHED):  # in pieces that stay in the cache
        piece = bits[start : start + CACHED]
        rounded = scratch[: piece.size]
        _carry_bf16(piece, rounded)
        rounded >>= np.uint32(16)
        out[start : start + CACHED] = rounded
    out = out.reshape(values.shape)
    if values.size and math.isnan(float(np.max(values))):
        nan = np.isnan(values)
        out[nan] = ((bits.reshape(values.shape)[nan] >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return out


def _carry_bf16(bits: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    """fp32 ``bits`` with the rounding of the low half carried into the high one, which is then the bfloat16."""
    np.right_shift(bits, np.uint32(16), out=out)
    out &= np.uint32(1)
    out += np.uint32(0x7FFF)
    out += bits


def round_to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round fp32 to bfloat16 in place, to nearest, ties to even, and return the bits (``uint16``).

    The same as :func:`f32_to_bf16` and :func:`bf16_to_f32` one after the other, in fewer passes; for values without NaN.
    """
    bits = values.view(np.uint32)
    scratch = np.empty(bits.shape, np.uint32)
    _carry_bf16(bits, scratch)
    np.bitwise_and(scratch, np.uint32(0xFFFF0000), out=bits)
    scratch >>= np.uint32(16)
    return scratch.astype(np.uint16)


def _to_odd(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """fp64 to fp32, inexact results with the last bit set: rounding those again gives what one rounding would
    (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums")."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near.astype(np.float64)) > np.abs(values)  # towards zero
    bits |= bits.view(np.float32).astype(np.float64) != values
    return near


def bf16_to_f32(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Widen bfloat16 bits (``uint16``) to fp32, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


_NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
          "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?"}  # fmt: skip

#: dtypes that an edit can take up to fp32 and cast back to
FLOAT_DTYPES = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")
#: unsigned word of the float dtypes of 16 bits and fewer: sign, then magnitude in order
FLOAT_WORDS = {"BF16": "<u2", "F16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}
CACHED = 1 << 16  # elements that several operations go over while they are in the cache
PASS = 1 << 20  # bytes that several digests read one after another, so that they stay in the cache


def read_tensor(spec: TensorSpec) -> np.ndarray[Any, Any]:
    """One tensor as a numpy array of its own dtype; BF16 comes as fp32, exactly.

    Raises:
        Truncated: the file ends early.
        FormatError: a dtype that numpy can't hold.
    """
    with spec.file.open("rb", buffering=0) as file:
        file.seek(spec.start)
        raw = file.read(spec.nbytes) or b""
        while len(raw) < spec.nbytes:  # a raw read may return less than asked, e.g. above 2 GiB
            more = file.read(spec.nbytes - len(raw))
            if not more:
                raise Truncated(f"tensor {spec.name!r} ends early", where=spec.file)
            raw += more
    if spec.dtype == "BF16":
        return bf16_to_f32(np.frombuffer(raw, "<u2")).reshape(spec.shape)
    if spec.dtype not in _NUMPY:
        raise FormatError(f"tensor {spec.name!r}: {spec.dtype} can't be read as an array", where=spec.file)
    return np.frombuffer(raw, _NUMPY[spec.dtype]).reshape(spec.shape)


def decode(raw: bytes | memoryview, dtype: str, wide: Any) -> np.ndarray[Any, Any]:
    """Values of raw bytes of one of :data:`FLOAT_DTYPES`, flat, as a new array of ``wide`` (fp32 or fp64), exactly.

    Raises:
        FormatError: another dtype.
    """
    if dtype == "BF16":
        return bf16_to_f32(np.frombuffer(raw, "<u2")).astype(wide, copy=False)
    if dtype in float8.ENCODED:
        return float8.decode(np.frombuffer(raw, "u1"), dtype).astype(wide, copy=False)
    if dtype not in FLOAT_DTYPES:
        raise FormatError(f"can't read {dtype} as numbers")
    return np.frombuffer(raw, _NUMPY[dtype]).astype(wide)


def encode(values: np.ndarray[Any, Any], dtype: str) -> bytes:
    """Bytes of ``values`` cast to ``dtype``, round to nearest, ties to even.

    Raises:
        FormatError: ``dtype`` is not one of :data:`FLOAT_DTYPES`.
    """
    if dtype == "BF16":
        return f32_to_bf16(_to_odd(values) if values.dtype == np.float64 else values).tobytes()
    if dtype in float8.ENCODED:
        return float8.encode(_to_odd(values) if values.dtype == np.float64 else values, dtype).tobytes()
    if dtype not in FLOAT_DTYPES:
        raise FormatError(f"can't cast to {dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=_NUMPY[dtype]).tobytes()


#: dtype -> (signed word, unsigned word, first positive and first negative word that are NaN or infinity)
_NOT_FINITE = {
    "BF16": ("<i2", "<u2", 0x7F80, 0xFF80), "F16": ("<i2", "<u2", 0x7C00, 0xFC00),
    "F32": ("<i4", "<u4", 0x7F800000, 0xFF800000), "F64": ("<i8", "<u8", 0x7FF << 52, 0xFFF << 52),
    "F8_E5M2": ("<i1", "<u1", 0x7C, 0xFC), "F8_E4M3": ("<i1", "<u1", 0x7F, 0xFF),
}  # fmt: skip


def all_finite(raw: bytes | memoryview, dtype: str) -> bool:
    """Whether raw bytes of a float dtype hold neither NaN nor infinity; other dtypes always pass.

    Ordered as integers, NaN and infinity are the greatest of either sign, so two maxima decide.
    """
    if dtype not in _NOT_FINITE or not len(raw):
        return True
    signed, unsigned, positive, negative = _NOT_FINITE[dtype]
    words = np.frombuffer(raw, unsigned)
    return int(np.frombuffer(raw, signed).max()) < positive and int(words.max()) < negative


class TensorDigest:
    """Digest and finiteness of one tensor's bytes, taken block by block.

    The digest is BLAKE3-256: four times as fast as SHA-256 with its own instructions and twenty times without, which
    is what lets a file's SHA-256 and its tensors' digests be taken in one pass at the speed of the former.
    """

    def __init__(self, dtype: str, *, check: bool = True) -> None:
        self.dtype = dtype if check else ""
        self.finite = True
        self._hash = blake3()

    def update(self, block: bytes | memoryview) -> None:
        """Take in the next whole elements."""
        self._hash.update(block)
        self.finite = self.finite and all_finite(block, self.dtype)

    def hexdigest(self) -> str:
        """64 hex digits."""
        return str(self._hash.hexdigest())


def digest_and_check(spec: TensorSpec) -> tuple[str, bool]:
    """Digest of a tensor's bytes, and whether all its values are finite, in one pass of 1 MiB blocks.

    Raises:
        Truncated: the file ends early.
    """
    digest, left = TensorDigest(spec.dtype), spec.nbytes
    buffer = memoryview(bytearray(min(left, PASS)))
    with spec.file.open("rb", buffering=0) as file:
        file.seek(spec.start)
        while left:
            view = buffer[: min(left, PASS)]
            filled = 0
            while filled < len(view):
                got = file.readinto(view[filled:])
                if not got:
                    raise Truncated(f"tensor {spec.name!r} ends early", where=spec.file)
                filled += got
            digest.update(view)
            left -= len(view)
    return digest.hexdigest(), digest.finite
