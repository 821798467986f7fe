"""What the decoders of quantised weights share: the parts of a weight, reads of rows and columns, bits, scale grids.

A decoder turns the tensors that make up one logical weight into a :class:`Weight`, whose ``rows`` reads only what a
block of output rows needs. Nothing but headers, and a few bytes that hold shapes, is read before that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError, Truncated
from . import float8
from .safetensors import TensorSpec, bf16_to_f32

Array = np.ndarray[Any, Any]

FLOATS = ("F32", "F16", "BF16")
FP8 = float8.ENCODED
_RAW = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I8": "i1", "U8": "u1", "I32": "<i4", "U32": "<u4",
        "I64": "<i8", **dict.fromkeys(float8.DECODED, "u1")}  # fmt: skip
#: a strided read of less than this share of a tensor goes piece by piece, a larger one reads all and cuts
_PIECEWISE = 1 / 8


@dataclass(frozen=True, slots=True)
class Weight:
    """One logical weight, ``shape`` as the unquantised model has it.

    ``parts`` are the tensors that it is made of. ``rows(start, stop)`` decodes a range of the weight flattened to
    ``[prod(shape[:-1]), shape[-1]]`` to fp32; both ends are multiples of ``step`` or the end, and no range crosses a
    multiple of ``within``, where that is not 0. ``chunk`` is how many elements to ask for at a time.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    rows: Callable[[int, int], Array]
    step: int = 1
    within: int = 0
    chunk: int = 1 << 20

    def ranges(self) -> list[tuple[int, int]]:
        """The ranges of rows to decode, in order."""
        total, width = math.prod(self.shape[:-1]), self.shape[-1]
        size = max(1, self.chunk // max(1, width) // self.step) * self.step
        period = self.within or total
        return [(base + i, min(base + i + size, base + period))
                for base in range(0, total, period) for i in range(0, period, size)] if total else []  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of a checkpoint as a decoder sees them: what is missing or of another kind is an error by name."""

    method: str
    tensors: Mapping[str, TensorSpec]
    where: object

    def bad(self, name: str, what: str) -> FormatError:
        """The error for one tensor."""
        return FormatError(f"{self.method}: tensor {name!r} {what}", where=self.where,
                           hint="the files are damaged, or were written by a tool that is not known here")  # fmt: skip

    def need(self, name: str, *dtypes: str) -> TensorSpec:
        """A tensor that must be there, of one of these dtypes.

        Raises:
            FormatError: it is missing, or of another dtype.
        """
        if name not in self.tensors:
            raise self.bad(name, "is missing")
        spec = self.tensors[name]
        if spec.dtype not in dtypes:
            raise self.bad(name, f"is {spec.dtype}, not {' or '.join(dtypes)}")
        return spec

    def maybe(self, name: str, *dtypes: str) -> TensorSpec | None:
        """A tensor that may be there; if it is, of one of these dtypes."""
        return self.need(name, *dtypes) if name in self.tensors else None

    def shaped(self, spec: TensorSpec, *shape: int) -> TensorSpec:
        """The tensor itself, when it has this shape.

        Raises:
            FormatError: it has another.
        """
        if spec.shape != shape:
            raise self.bad(spec.name, f"is {list(spec.shape)}, not {list(shape)}")
        return spec

    def matrix(self, spec: TensorSpec, ndim: int = 2) -> TensorSpec:
        """The tensor itself, when it has at least ``ndim`` axes and no empty one."""
        if len(spec.shape) < ndim or 0 in spec.shape:
            raise self.bad(spec.name, f"is {list(spec.shape)}, where a matrix should be")
        return spec


# -- reads -------------------------------------------------------------------------------------------------


def read_bytes(spec: TensorSpec, start: int, length: int) -> Array:
    """``length`` bytes of a tensor from its byte ``start``, as ``uint8``.

    Raises:
        Truncated: the file ends early.
    """
    with spec.file.open("rb", buffering=0) as file:
        return _read(file, spec, start, np.empty(length, np.uint8))


def _read(file: Any, spec: TensorSpec, start: int, out: Array) -> Array:
    file.seek(spec.start + start)
    view = out.view(np.uint8).data
    while view:  # a raw read may return less than asked
        got = file.readinto(view)
        if not got:
            raise Truncated(f"tensor {spec.name!r} ends early", where=spec.file)
        view = view[got:]
    return out


def _flat(spec: TensorSpec) -> tuple[int, int, np.dtype[Any]]:
    """Rows and columns of the tensor with all but the last axis flattened, and its numpy dtype."""
    width = spec.shape[-1] if spec.shape else 1
    return (spec.numel // width if width else 0), width, np.dtype(_RAW[spec.dtype])


def read_rows(spec: TensorSpec, start: int, stop: int) -> Array:
    """Rows of a tensor with all but the last axis flattened, ``[stop - start, shape[-1]]``, in its raw words."""
    _, width, dtype = _flat(spec)
    raw = read_bytes(spec, start * width * dtype.itemsize, (stop - start) * width * dtype.itemsize)
    return raw.view(dtype).reshape(stop - start, width)


def read_columns(spec: TensorSpec, left: int, right: int, rows: tuple[int, int] | None = None) -> Array:
    """Columns ``left:right`` of a tensor with all but the last axis flattened, of all its rows or of a range."""
    total, width, dtype = _flat(spec)
    start, stop = rows or (0, total)
    if (right - left) >= width * _PIECEWISE:
        return read_rows(spec, start, stop)[:, left:right]
    out = np.empty((stop - start, right - left), dtype)
    with spec.file.open("rb", buffering=0) as file:
        for row in range(start, stop):
            _read(file, spec, (row * width + left) * dtype.itemsize, out[row - start])
    return out


def to_f32(raw: Array, dtype: str) -> Array:
    """Raw words of a float dtype, or integers, as fp32; exact for all but integers above 2²⁴ and fp64."""
    if dtype == "BF16":
        return bf16_to_f32(raw)
    if dtype in float8.DECODED:
        return float8.decode(raw, dtype)
    return raw.astype(np.float32)


def unpack(words: Array, bits: int, count: int) -> Array:
    """The first ``count`` values of ``bits`` bits of each row of 32-bit words, as ``uint8`` ``[rows, count]``.

    The bits of a row are one stream, lowest first, in which values may straddle two words: value ``i`` begins at bit
    ``i * bits``. Widths of 1, 2, 4 and 8 never straddle.
    """
    words = np.ascontiguousarray(words).view("<u4")
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        octets = words.view(np.uint8)
        split = np.empty((*octets.shape, 8 // bits), np.uint8)
        for i in range(8 // bits):
            split[..., i] = (octets >> (bits * i)) & mask
    else:  # 32 values fill `bits` words
        padded = np.pad(words, ((0, 0), (0, -words.shape[1] % bits))).reshape(len(words), -1, bits)
        split = np.empty((*padded.shape[:2], 32), np.uint8)
        for i in range(32):
            word, shift = divmod(i * bits, 32)
            values = padded[..., word] >> np.uint32(shift)
            if shift + bits > 32:
                values = values | (padded[..., word + 1] << np.uint32(32 - shift))
            split[..., i] = values & mask
    return split.reshape(len(words), -1)[:, :count]


def nibbles(octets: Array, *, low_first: bool) -> Array:
    """Two 4-bit codes of each byte, side by side on the last axis."""
    out = np.empty((*octets.shape, 2), np.uint8)
    out[..., 0 if low_first else 1] = octets & 15
    out[..., 1 if low_first else 0] = octets >> 4
    return out.reshape(*octets.shape[:-1], -1)


# -- scales ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers that stand for blocks of a weight ``[..., height, width]``: scales or zero points.

    The tensor is seen as ``[matrices, rows, columns]``; one number covers ``block`` rows and columns, and where
    ``matrices`` is 1 all matrices share them. ``exponents``: bytes are powers of two, as E8M0.
    """

    spec: TensorSpec
    height: int
    matrices: int
    rows: int
    columns: int
    block: tuple[int, int]
    exponents: bool = False

    def at(self, start: int, stop: int) -> Array:
        """What stands for rows ``start:stop`` of the flattened weight, fp32 ``[stop - start, columns]``."""
        matrix, row = np.divmod(np.arange(start, stop), self.height)
        index = row // self.block[0] + (matrix * self.rows if self.matrices > 1 else 0)
        low, high = int(index.min()), int(index.max()) + 1
        size = self.columns * np.dtype(_RAW[self.spec.dtype]).itemsize
        raw = read_bytes(self.spec, low * size, (high - low) * size).view(_RAW[self.spec.dtype])
        values = to_f32(raw, "F8_E8M0" if self.exponents else self.spec.dtype).reshape(high - low, self.columns)
        found: Array = values[index - low]
        return found

    def spread(self, start: int, stop: int, width: int, order: Array | None = None) -> Array:
        """:meth:`at`, one number for each of ``width`` columns; ``order`` names the block of every column."""
        values = self.at(start, stop)
        if order is not None:
            return values[:, order]
        return values if self.columns == 1 else np.repeat(values, self.block[1], axis=1)[:, :width]


def grid(parts: Parts, spec: TensorSpec, shape: tuple[int, ...], block: tuple[int, int] | None = None, *,
         exponents: bool = True) -> Grid:  # fmt: skip
    """How ``spec`` covers a weight of ``shape``: one number for all, per matrix, per row, per column or per block.

    ``block`` is the size that the config names; the last block of an axis may be ragged. Bytes are read as E8M0
    where ``exponents`` are meant, else as integers.

    Raises:
        FormatError: a shape that fits none of these.
    """
    height, width, matrices = shape[-2], shape[-1], math.prod(shape[:-2])
    have = spec.shape
    if spec.numel == 1:
        layout: tuple[int, int, int] | None = (1, 1, 1)
    elif len(have) == len(shape) and have[:-2] in (shape[:-2], (1,) * (len(shape) - 2)):
        layout = (math.prod(have[:-2]), have[-2], have[-1])
    elif len(have) == len(shape) - 1 and have == shape[:-1]:
        layout = (matrices, height, 1)
    elif have == shape[:-2] or (len(shape) > 2 and have == (1, *shape[:-2])):
        layout = (matrices, 1, 1)
    else:
        layout = None
    if layout is not None:
        rows = _size(height, layout[1], block and block[0])
        columns = _size(width, layout[2], block and block[1])
        if rows and columns:
            return Grid(spec, height, *layout, (rows, columns), exponents and spec.dtype == "U8")
    blocks = f" in blocks of {block[0]} × {block[1]}" if block else ""
    raise parts.bad(spec.name, f"is {list(have)}, which does not cover a weight of {list(shape)}{blocks}")


def _size(length: int, count: int, block: int | None) -> int:
    """How many of ``length`` each of ``count`` numbers covers; 0 where that does not come out."""
    if block and -(-length // block) == count:
        return block
    if count in (1, length):
        return length // count
    return length // count if not block and count and length % count == 0 else 0


def scaled(values: Array, scales: Grid | None, zeros: Grid | None, start: int, order: Array | None = None) -> Array:
    """``(values - zeros) * scales`` of rows from ``start``, in fp32, in place: one subtraction, one product."""
    stop, width = start + len(values), values.shape[1]
    if zeros is not None:
        values -= zeros.spread(start, stop, width, order)
    if scales is not None:
        values *= scales.spread(start, stop, width, order)
    return values
