"""Dequantisation of the common ggml block types: the bytes of blocks to fp32, bit-equal to ``gguf.quants``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _halves(blocks: Array, begin: int, count: int = 1) -> Array:
    """``count`` fp16 numbers per block, widened: ``[n, count]``."""
    return blocks[:, begin : begin + 2 * count].copy().view("<f2").astype(np.float32)


def _nibbles(packed: Array, half: int) -> Array:
    """Low then high four bits of every group of ``half`` bytes: ``[n, m]`` to ``[n, 2 * m]``, ``uint8``."""
    packed = packed.reshape(len(packed), -1, half).copy()
    out = np.empty((*packed.shape[:2], 2, half), np.uint8)
    np.bitwise_and(packed, 15, out=out[:, :, 0])
    np.right_shift(packed, 4, out=out[:, :, 1])
    return out.reshape(len(packed), -1)


def _legacy(bits: int, zero: int) -> Callable[[Array], Array]:
    """Q4_0, Q4_1, Q5_0, Q5_1: 32 values, one scale, and a minimum or a fixed zero point."""
    header = 2 if zero else 4

    def kernel(blocks: Array) -> Array:
        scales = _halves(blocks, 0, header // 2)
        quants = _nibbles(blocks[:, header + (bits - 4) * 4 :], 16)
        if bits == 5:
            high = np.unpackbits(blocks[:, header : header + 4], axis=1, bitorder="little")
            high <<= 4
            quants |= high
        if zero:
            quants -= np.uint8(zero)  # wraps, and reads as signed below
        values = (quants.view(np.int8) if zero else quants).astype(np.float32)
        values *= scales[:, :1]
        if not zero:
            values += scales[:, 1:]
        return values

    return kernel


def _q8_0(blocks: Array) -> Array:
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= _halves(blocks, 0)
    return values


def _k_scales(blocks: Array) -> tuple[Array, Array]:
    """Scales and minimums of the 8 groups of a Q4_K or Q5_K block, ``[n, 8, 1]`` each, from 6-bit fields."""
    packed = blocks[:, 4:16].copy()
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=1).astype(np.float32)
    minimum = np.concatenate([mid & 63, (high >> 4) | ((mid >> 2) & 48)], axis=1).astype(np.float32)
    both = _halves(blocks, 0, 2)
    return (both[:, :1] * scale)[..., None], (both[:, 1:] * minimum)[..., None]


def _q4_k(blocks: Array) -> Array:
    scale, minimum = _k_scales(blocks)
    values = _nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32).astype(np.float32)
    values *= scale
    values -= minimum
    return values


def _q5_k(blocks: Array) -> Array:
    scale, minimum = _k_scales(blocks)
    quants = _nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32)
    plane = blocks[:, 16:48].copy()
    for group in range(8):
        quants[:, group] |= ((plane >> group) & 1) << 4
    values = quants.astype(np.float32)
    values *= scale
    values -= minimum
    return values


def _q6_k(blocks: Array) -> Array:
    quants = _nibbles(blocks[:, :128], 64).reshape(-1, 2, 4, 32)
    plane = blocks[:, 128:192].reshape(-1, 2, 32).copy()
    for group in range(4):
        quants[:, :, group] |= ((plane >> (2 * group)) & 3) << 4
    quants -= np.uint8(32)
    values = quants.view(np.int8).reshape(-1, 16, 16).astype(np.float32)
    values *= (_halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32))[..., None]
    return values


#: ggml type -> blocks ``uint8 [n, bytes per block]`` to values ``fp32 [n, elements per block]``
KERNELS: Mapping[str, Callable[[Array], Array]] = {
    "Q4_0": _legacy(4, 8), "Q4_1": _legacy(4, 0), "Q5_0": _legacy(5, 16), "Q5_1": _legacy(5, 0), "Q8_0": _q8_0,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip
