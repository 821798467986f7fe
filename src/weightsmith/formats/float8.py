"""The 8-bit floating point dtypes that safetensors names, to and from fp32, without any library of their own.

Sources: Micikevicius et al. 2022, "FP8 Formats for Deep Learning" (arXiv 2209.05433) for E4M3 and E5M2; Noune et al.
2022, "8-bit Numerical Formats for Deep Neural Networks" (arXiv 2206.02915) for the FNUZ variants; OCP Microscaling
Formats specification 1.0, section 5.4.1, for E8M0. What safetensors calls ``F8_E4M3`` is the "fn" variant: no
infinity, and only the codes of all ones are NaN.

Decoding looks 256 exact values up. Encoding rounds to nearest, ties to even, on the bits of fp32 in cache-sized
blocks. It never saturates: what would overflow becomes infinity where the dtype has one and NaN where it has none, so
that a caller who started from finite values can see it with :func:`finite` and refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..errors import FormatError

Array = np.ndarray[Any, Any]

BLOCK = 1 << 16  # values encoded at a time, so that the intermediates stay in the cache


@dataclass(frozen=True, slots=True)
class _Layout:
    """Bits of one signed dtype. ``fnuz``: no infinity, no −0, and the code of −0 is the only NaN."""

    mantissa: int
    bias: int
    largest: int  # code of the largest finite value
    infinity: bool = False
    fnuz: bool = False


_LAYOUTS = {
    "F8_E4M3": _Layout(3, 7, 0x7E),
    "F8_E5M2": _Layout(2, 15, 0x7B, infinity=True),
    "F8_E4M3FNUZ": _Layout(3, 8, 0x7F, fnuz=True),
    "F8_E5M2FNUZ": _Layout(2, 16, 0x7F, fnuz=True),
}
_NAN_FNUZ = 0x80

#: dtypes that values can be cast to
ENCODED = tuple(_LAYOUTS)
#: dtypes that can be read; E8M0 holds powers of two only, the scales of microscaling formats
DECODED = (*ENCODED, "F8_E8M0")


@cache
def table(dtype: str) -> Array:
    """The fp32 value of every code, ``[256]``, read-only.

    Raises:
        FormatError: ``dtype`` is not one of :data:`DECODED`.
    """
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        values = np.where(codes == 255, np.nan, np.exp2(codes - 127.0))
    elif dtype in _LAYOUTS:
        values = _values(codes, _LAYOUTS[dtype])
    else:
        raise FormatError(f"{dtype} is not an 8-bit floating point dtype known here")
    found = values.astype(np.float32)
    found.flags.writeable = False
    return found


def _values(codes: Array, layout: _Layout) -> Array:
    magnitude = codes & 0x7F
    exponent, mantissa = magnitude >> layout.mantissa, magnitude & ((1 << layout.mantissa) - 1)
    fraction = mantissa + np.where(exponent > 0, 1 << layout.mantissa, 0)
    values = np.ldexp(fraction.astype(np.float64), np.maximum(exponent, 1) - layout.bias - layout.mantissa)
    values = np.where(magnitude > layout.largest, np.nan, values)
    if layout.infinity:
        values = np.where(magnitude == layout.largest + 1, np.inf, values)
    values = np.where(codes > 0x7F, -values, values)
    return np.where(codes == _NAN_FNUZ, np.nan, values) if layout.fnuz else values


def decode(codes: Array, dtype: str) -> Array:
    """``uint8`` codes of any shape as fp32 of the same shape, exactly.

    Raises:
        FormatError: ``dtype`` is not one of :data:`DECODED`.
    """
    return np.take(table(dtype), codes)


@cache
def _finite_codes(dtype: str) -> Array:
    return np.isfinite(table(dtype))


def finite(codes: Array, dtype: str) -> bool:
    """Whether none of the ``uint8`` codes is NaN or infinity.

    Raises:
        FormatError: ``dtype`` is not one of :data:`DECODED`.
    """
    return bool(np.take(_finite_codes(dtype), codes).all())


def encode(values: Array, dtype: str) -> Array:
    """fp32 values of any shape as ``uint8`` codes of the same shape: to nearest, ties to even, never saturating.

    Too large a value, and infinity, becomes infinity (``F8_E5M2``) or NaN (the others); NaN stays NaN.

    Raises:
        FormatError: ``dtype`` is not one of :data:`ENCODED`, or the values are not fp32 (from fp64, rounding twice
            could go the wrong way).
    """
    if dtype not in _LAYOUTS:
        raise FormatError(f"can't cast to {dtype}")
    if values.dtype != np.float32:
        raise FormatError(f"can't cast {values.dtype} to {dtype}: only fp32 is rounded once")
    flat = np.ascontiguousarray(values).reshape(-1)
    out = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, BLOCK):
        out[start : start + BLOCK] = _round(flat[start : start + BLOCK], _LAYOUTS[dtype])
    return out.reshape(values.shape)


def _round(values: Array, layout: _Layout) -> Array:
    bits = values.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    dropped = np.uint32(23 - layout.mantissa)
    # Normal values: add just under half of the last kept place (half where that place is odd) and cut; the carry runs
    # into the exponent by itself. What is below the smallest normal wraps around and is replaced below.
    codes = magnitude + np.uint32((1 << int(dropped) - 1) - 1) + ((magnitude >> dropped) & np.uint32(1))
    codes >>= dropped
    codes -= np.uint32((127 - layout.bias) << layout.mantissa)
    # Subnormal values: beside this number, fp32's own last place is the smallest step of the dtype, so that the
    # addition rounds to it, to nearest even; the sum's low bits are the code.
    small = magnitude < np.uint32((128 - layout.bias) << 23)
    if small.any():
        anchor = np.float32(2.0 ** (1 - layout.bias - layout.mantissa + 23))
        sums = magnitude[small].view(np.float32) + anchor
        codes[small] = sums.view(np.uint32) - anchor.view(np.uint32)
    beyond = np.uint32(layout.largest + 1 if layout.infinity else 0x7F)
    codes = np.where(codes > layout.largest, beyond, codes)
    codes = np.where(magnitude > np.uint32(0x7F800000), np.uint32(0x7F), codes)
    out: Array = (codes | ((bits >> np.uint32(24)) & np.uint32(0x80))).astype(np.uint8)
    if layout.fnuz:
        out[out == _NAN_FNUZ] = 0  # there is no −0
        out[~(np.abs(values) < _first_beyond(layout))] = _NAN_FNUZ
    return out


def _first_beyond(layout: _Layout) -> np.float32:
    """The smallest value that rounds past the largest finite one, which is halfway: a tie goes to the even code,
    and the largest FNUZ code is odd."""
    top = float(_values(np.array([layout.largest]), layout)[0])
    below = float(_values(np.array([layout.largest - 1]), layout)[0])
    return np.float32(top + (top - below) / 2)
