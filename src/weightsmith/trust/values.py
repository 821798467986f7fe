"""What the bytes of a tensor hold, taken block by block from the extremes of its words: no value is ever decoded.

A float is sign and magnitude, so among the words of one dtype, read as unsigned and as signed integers, the greatest of
both readings has the greatest magnitude, and NaN and infinity are greater than all finite ones. Three passes of integer
minimum and maximum over a block that is in the cache cost a tenth of its digest. The root mean square comes from a
sample. Of quantised GGUF blocks the scales are looked at: they decide about NaN, zero and size.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

from ..formats import float8
from ..formats.gguf import GGML_TYPES
from ..formats.safetensors import DTYPE_BITS
from .items import TensorFacts

HEAD = 24  # bytes that are kept of each tensor
HEAD_OF_BYTES = 1024  # of those whose values are single bytes, which may be a file
SAMPLE = 512  # values of a block whose squares are summed
PLACES = 32  # elements of a tensor, spread over it, that are kept
PIECE = 8  # bytes of an element, or of a block of a GGUF type, that are kept
ROWS = 16  # rows of a block that are compared with the one before
EVERY = 1 << 22  # bytes of a tensor in which each block's rows are compared; behind them those of every fourth
LEAST_PAIRS = 4  # of rows that say something about a whole tensor
LEAST_ROW = 16  # bytes; packed values lie in columns of one byte

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Measured(TensorFacts):
    """Facts with the root mean square of a sample of the values, spread over the whole tensor; ``None`` for what is not
    read as numbers. The ``peak`` of quantised blocks is what their greatest scale could make, not what is reached.

    ``zeros`` is the share of zeros in the sample, ``blank`` the share of bytes in stretches (up to 1 MiB) that are all zero,
    ``head`` the tensor's first bytes. ``usual`` is a size that a few large values do not change (the square of the mean of the
    roots), ``same`` the share of neighbours among sampled rows that are equal and not zero, ``pieces`` elements at
    :data:`PLACES` places of the tensor, as hex, ``bare`` the share of sampled rows that are all zero; the last three of tensors
    whose size and rows were told.
    """

    rms: float | None = None
    zeros: float = 0.0
    blank: float = 0.0
    usual: float = 0.0
    same: float = 0.0
    pieces: str = ""
    bare: float = 0.0
    head: bytes = b""

    @property
    def trait(self) -> tuple[Any, ...]:
        """See :attr:`TensorFacts.trait`; samples are not in it, since they are taken by where a tensor lies."""
        return self.finite, repr(self.peak), self.constant, self.head


@dataclass(frozen=True, slots=True)
class _Float:
    """Words of a float dtype: unsigned and signed reading, bits of the magnitude, first magnitude that is not finite,
    and the one that is infinite (-1 without infinities)."""

    unsigned: str
    signed: str
    mask: int
    beyond: int
    infinite: int = -1


_FLOATS: Mapping[str, _Float] = {
    "F64": _Float("<u8", "<i8", (1 << 63) - 1, 0x7FF << 52, 0x7FF << 52),
    "F32": _Float("<u4", "<i4", 0x7FFFFFFF, 0xFF << 23, 0xFF << 23),
    "F16": _Float("<u2", "<i2", 0x7FFF, 0x7C00, 0x7C00), "BF16": _Float("<u2", "<i2", 0x7FFF, 0x7F80, 0x7F80),
    "F8_E4M3": _Float("u1", "i1", 0x7F, 0x7F), "F8_E5M2": _Float("u1", "i1", 0x7F, 0x7C, 0x7C),
    "F8_E4M3FNUZ": _Float("u1", "i1", 0x7F, 0x80), "F8_E5M2FNUZ": _Float("u1", "i1", 0x7F, 0x80),
    "F8_E8M0": _Float("u1", "u1", 0xFF, 0xFF),
}  # fmt: skip
_AS_FLOAT = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_INTEGERS = {"I8": "i1", "U8": "u1", "BOOL": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
             "I64": "<i8", "U64": "<u8"}  # fmt: skip

#: ggml type -> byte offsets of its fp16 scales in a block, and what a scale is multiplied by at most
SCALES: Mapping[str, tuple[tuple[int, ...], float]] = {
    "Q4_0": ((0,), 8), "Q4_1": ((0, 2), 16), "Q5_0": ((0,), 16), "Q5_1": ((0, 2), 32), "Q8_0": ((0,), 128), "Q8_1": ((0, 2), 128),
    "Q2_K": ((80, 82), 60), "Q3_K": ((108,), 128), "Q4_K": ((0, 2), 1008), "Q5_K": ((0, 2), 2016), "Q6_K": ((208,), 4096),
    "IQ2_XXS": ((0,), 170), "IQ2_XS": ((0,), 170), "IQ2_S": ((0,), 170), "IQ3_XXS": ((0,), 512), "IQ3_S": ((0,), 480),
    "IQ1_S": ((0,), 20), "IQ4_NL": ((0,), 127), "IQ4_XS": ((0,), 4096), "TQ1_0": ((52,), 1), "TQ2_0": ((64,), 2),
}  # fmt: skip
_BLOCKS = {name: (elements, nbytes) for name, elements, nbytes in GGML_TYPES.values()}


def unit_of(dtype: str, quantised: bool) -> int:
    """Bytes that belong together: one element, or one block of a GGUF type."""
    if quantised:
        return _BLOCKS[dtype][1]
    return max(1, DTYPE_BITS.get(dtype, 8) // 8)


class Values:
    """Facts of one tensor and, with ``digested``, its digest, whole elements at a time; ``quantised`` for a type name of ggml.

    ``size`` is the tensor's, ``row`` that of its rows, in bytes; without them some facts are left out.
    """

    def __init__(self, dtype: str, *, quantised: bool = False, digested: bool = True, size: int = 0, row: int = 0) -> None:
        self.unit = unit_of(dtype, quantised)
        count = size // self.unit
        self.wanted = [(2 * n + 1) * count // (2 * PLACES) for n in range(PLACES)] if count >= PLACES else []
        self.pieces: list[bytes] = []
        self.row = row if row >= LEAST_ROW else 0
        self.pairs = self.same = self.bare = 0
        self.dtype = "F32" if dtype == "C64" else dtype
        self.quantised = quantised and dtype not in _FLOATS and dtype not in _INTEGERS
        self.form = _FLOATS.get("F16" if self.quantised else self.dtype)
        self.low: int | None = None
        self.high = self.top = 0
        self.nan = False
        self.squares, self.roots, self.sampled, self.zeros = 0.0, 0.0, 0, 0
        self.size = self.blank = 0
        self.head = b""
        self._hash = blake3() if digested else None

    def update(self, block: Array) -> None:
        """Take in the next bytes, ``uint8``."""
        if self._hash is not None:
            self._hash.update(block.data)
        if not self.size:
            self.head = block[: HEAD_OF_BYTES if self.dtype in ("U8", "I8") else HEAD].tobytes()
        if self.wanted:
            self._pieces(block)
        if self.row and (self.size < EVERY or self.size >> 20 & 3 == 0):
            self._rows(block)
        self.size += block.size
        if self.quantised:
            blank = self._blocks(block)
        elif self.form is not None:
            words = block.view(self.form.unsigned)
            blank = self._words(words, self.form)
            self._sample(words, self.form)
        else:
            numbers = block.view(_INTEGERS.get(self.dtype, "u1"))
            low, high = int(np.minimum.reduce(numbers)), int(np.maximum.reduce(numbers))
            self._extremes(low, high)
            blank = low == high == 0
        self.blank += block.size * blank

    def facts(self) -> Measured:
        """What was found."""
        digest = "" if self._hash is None else str(self._hash.hexdigest())
        if self.low is None:
            return Measured(digest, True)
        peak = self._peak()
        finite = peak is None or math.isfinite(peak)
        constant = self.low == self.high or peak == 0.0
        if self.quantised:
            constant = peak == 0.0
        rms = math.sqrt(self.squares / self.sampled) if self.sampled and finite else None
        zeros = self.zeros / self.sampled if self.sampled else 0.0
        usual = (self.roots / self.sampled) ** 2 if self.sampled and finite else 0.0
        return Measured(digest, finite, peak, constant, rms, zeros, self.blank / self.size, usual,
                        self.same / self.pairs if self.pairs >= LEAST_PAIRS else 0.0,
                        "" if self.wanted else b"".join(self.pieces).hex(),
                        self.bare / self.pairs if self.pairs >= LEAST_PAIRS else 0.0, self.head)  # fmt: skip

    def _pieces(self, block: Array) -> None:
        """Keep the wanted elements of a block."""
        first, stop = self.size // self.unit, (self.size + block.size) // self.unit
        here = bisect_left(self.wanted, stop)
        if here:
            rows = np.array(self.wanted[:here]) - first
            self.pieces.append(block[: (stop - first) * self.unit].reshape(-1, self.unit)[rows, :PIECE].tobytes())
            del self.wanted[:here]

    def _rows(self, block: Array) -> None:
        """Compare some rows of a block with the sampled row before; whole ones only where they begin alike."""
        first = -self.size % self.row
        count = (block.size - first) // self.row
        if count < 2:
            return
        step = max(1, count // ROWS) | 1  # odd: every second row may be of another kind
        rows = block[first : first + count * self.row].reshape(count, self.row)[::step]
        self.pairs += len(rows) - 1
        begins = rows[1:, :PIECE]
        if not begins.all():
            empty = ~begins.any(1)
            self.bare += int(np.count_nonzero(~rows[1:][empty].any(1)))
        equal = (begins == rows[:-1, :PIECE]).all(1)
        if equal.any():
            later, before = rows[1:][equal], rows[:-1][equal]
            self.same += int(np.count_nonzero((later == before).all(1) & later.any(1)))

    def _extremes(self, low: int, high: int) -> None:
        self.low, self.high = (low, high) if self.low is None else (min(self.low, low), max(self.high, high))

    def _words(self, words: Array, form: _Float) -> bool:
        """Take in words of a float; whether all of them are zero."""
        low, high = int(np.minimum.reduce(words)), int(np.maximum.reduce(words))
        most = int(np.maximum.reduce(words.view(form.signed)))
        self._extremes(low, high)
        top = max(high & form.mask, most & form.mask)
        self.top = max(self.top, top)
        if form.beyond == 0x80 and int(words.view("i1").min()) == -128:  # the only NaN is what would be minus zero
            self.nan = True
        return top == 0

    def _sample(self, words: Array, form: _Float) -> None:
        """Add the squares of some values, as long as all are finite."""
        if self.top >= form.beyond:
            return
        some = words[:: max(1, words.size // SAMPLE)] if words.size > SAMPLE else words
        if self.dtype == "BF16":
            values = (some.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        elif self.dtype in float8.DECODED:
            values = float8.decode(some, self.dtype).astype(np.float64)
        else:
            values = some.view(_AS_FLOAT[self.dtype]).astype(np.float64)
            if self.dtype == "F64":
                values = np.clip(values, -1e150, 1e150)  # their squares have to stay finite
        self.squares += float(values @ values)
        self.roots += float(np.sqrt(np.abs(values)).sum())
        self.sampled += values.size
        self.zeros += values.size - int(np.count_nonzero(values))

    def _blocks(self, block: Array) -> bool:
        """Take in the scales of quantised blocks; whether all of them are zero."""
        assert self.form is not None
        nbytes = _BLOCKS[self.dtype][1]
        if self.dtype in SCALES:
            words = block.view("<u2").reshape(-1, nbytes // 2)
            zero = [self._words(words[:, at // 2].copy(), self.form) for at in SCALES[self.dtype][0]]
            return all(zero)
        if self.dtype == "Q8_K":
            scales = block.reshape(-1, nbytes)[:, :4].copy().view("<u4").reshape(-1)
            return self._words(scales, _FLOATS["F32"])
        if self.dtype == "IQ1_M":
            parts = block.view("<u2").reshape(-1, nbytes // 2)[:, 24:28]
            high = ((parts[:, 2] >> 4) & 0xF00) | (parts[:, 3] & 0xF000)
            return self._words((parts[:, 0] >> 12) | ((parts[:, 1] >> 8) & 0xF0) | high, self.form)
        if self.dtype in ("MXFP4", "NVFP4"):
            codes = block.reshape(-1, nbytes)[:, : 1 if self.dtype == "MXFP4" else 4]
            self.nan = self.nan or bool((codes == (0xFF if self.dtype == "MXFP4" else 0x7F)).any())
            self.low, self.top = 0, 0x3C00  # scales that are powers or magnitudes of their own: only NaN is looked for
        return False

    def _peak(self) -> float | None:
        """The greatest magnitude; infinite or NaN when there is such a value."""
        if self.form is None:
            return float(max(abs(self.low or 0), abs(self.high))) if self.dtype in _INTEGERS else None
        if self.nan:
            return math.nan
        form = _FLOATS["F32"] if self.dtype == "Q8_K" else self.form
        if self.top >= form.beyond:
            return math.inf if self.top == form.infinite else math.nan
        if self.quantised:
            wide = self.dtype == "Q8_K"
            scale = float(np.array(self.top, "<u4" if wide else "<u2").view("<f4" if wide else "<f2"))
            return None if self.dtype in ("MXFP4", "NVFP4") else scale * SCALES.get(self.dtype, ((), 128.0))[1]
        return _decoded(self.top, self.dtype)


def _decoded(word: int, dtype: str) -> float:
    if dtype == "BF16":
        return float(np.array(word << 16, "<u4").view("<f4"))
    if dtype in float8.DECODED:
        return float(float8.table(dtype)[word])
    width = {"F64": 8, "F32": 4, "F16": 2}[dtype]
    return float(np.array(word, f"<u{width}").view(f"<f{width}"))
