"""Decoders of weights in 8-bit and 4-bit floats: a value from a table times the scale of its block.

Sources: the DeepSeek-V3 model's notes on its weight file (``weight_scale_inv``: *multiply* by it, blocks of 128 × 128,
the last ones ragged) and transformers' ``finegrained_fp8``, ``fbgemm_fp8`` and ``mxfp4`` integrations; the OCP
Microscaling Formats specification 1.0 (E2M1 values, E8M0 scales for 32 values each); NVIDIA's ModelOpt export.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import UnsupportedModel
from .quant_parts import FLOATS, FP8, Array, Grid, Parts, Weight, grid, nibbles, read_columns, read_rows, scaled, to_f32
from .safetensors import TensorSpec

#: E2M1: sign, two bits of exponent, one of mantissa
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
SCALES = (*FLOATS, "F8_E8M0", "U8")
_SUFFIXES = ("_scale_inv", "_scale")


def scaled_weight(name: str, spec: TensorSpec, parts: tuple[str, ...], scales: Grid | None, zeros: Grid | None,
                  order: Array | None = None) -> Weight:  # fmt: skip
    """A weight whose own tensor holds one code a value: 8-bit floats, or integers."""
    return Weight(name, spec.shape, parts, partial(_scaled_rows, spec, scales, zeros, order))


def _scaled_rows(spec: TensorSpec, scales: Grid | None, zeros: Grid | None, order: Array | None, start: int,
                 stop: int) -> Array:  # fmt: skip
    return scaled(to_f32(read_rows(spec, start, stop), spec.dtype), scales, zeros, start, order)


def plan_fp8(parts: Parts, settings: Mapping[str, Any]) -> list[Weight]:
    """Every 8-bit float tensor with its ``…_scale_inv`` or ``…_scale`` beside it, by which it is multiplied.

    The scale is one number, or one per matrix, row, column or block; blocks are as large as the config says.

    Raises:
        FormatError: a scale is missing, of another dtype, or does not fit.
    """
    found = []
    for spec in parts.tensors.values():
        if spec.dtype not in FP8 or spec.name.endswith(_SUFFIXES):
            continue
        parts.matrix(spec)
        name = next((spec.name + s for s in _SUFFIXES if spec.name + s in parts.tensors), spec.name + _SUFFIXES[0])
        scale = parts.need(name, *SCALES)
        scales = grid(parts, scale, spec.shape, _block(parts, settings))
        found.append(scaled_weight(spec.name, spec, (spec.name, name), scales, None))
    return found


def _block(parts: Parts, settings: Mapping[str, Any]) -> tuple[int, int] | None:
    block = settings.get("weight_block_size")
    if block is None:
        return None
    if not (isinstance(block, list) and len(block) == 2 and all(type(v) is int and v > 0 for v in block)):
        raise UnsupportedModel(f"{parts.method}: weight_block_size is {block!r}, not two sizes", where=parts.where)
    return block[0], block[1]


def plan_modelopt(parts: Parts, settings: Mapping[str, Any]) -> list[Weight]:
    """ModelOpt's FP8 (as :func:`plan_fp8`) and NVFP4: ``weight`` U8, ``weight_scale`` F8_E4M3 for 16 values each,
    ``weight_scale_2`` one F32.

    Raises:
        UnsupportedModel: another ``quant_algo``.
        FormatError: a part is missing or does not fit.
    """
    algorithm = str(settings.get("quant_algo", "FP8")).upper()
    if algorithm == "FP8":
        return plan_fp8(parts, {})
    if algorithm != "NVFP4":
        raise UnsupportedModel(f"{parts.method}: quant_algo {algorithm!r}", where=parts.where,
                               hint="FP8 and NVFP4 are known; use an unquantised copy of the model")  # fmt: skip
    found = []
    for name in [n for n in parts.tensors if n.endswith(".weight_scale_2")]:
        weight, scale = name.removesuffix("_scale_2"), name.removesuffix("_2")
        found.append(fp4_weight(parts, weight, weight, scale, name, divide=False))
    return found


def fp4_weight(parts: Parts, name: str, packed: str, scale: str, top: str | None, *, divide: bool) -> Weight:
    """Two E2M1 codes a byte, low half first, ``[out, in / 2]``; scales ``[out, in / 16]`` or ``[out, in / 32]``.

    ``top`` is one F32 by which the scales are multiplied (or divided).

    Raises:
        FormatError: a part is missing or does not fit.
    """
    codes = parts.matrix(parts.need(packed, "U8"))
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    spec = parts.need(scale, *SCALES, *FP8)
    groups = spec.shape[-1] if spec.shape else 0
    if spec.shape != (*shape[:-1], groups) or not groups or shape[-1] % groups:
        raise parts.bad(scale, f"is {list(spec.shape)}, which does not cover a weight of {list(shape)}")
    whole = None
    if top is not None:
        whole = parts.need(top, "F32")
        if whole.numel != 1:
            raise parts.bad(top, f"is {list(whole.shape)}, not one number")
    rows = partial(_fp4_rows, codes, grid(parts, spec, shape), whole, divide)
    return Weight(name, shape, (packed, scale) if top is None else (packed, scale, top), rows)


def _fp4_rows(codes: TensorSpec, scales: Grid, whole: TensorSpec | None, divide: bool, start: int, stop: int) -> Array:
    values = FP4[nibbles(read_rows(codes, start, stop), low_first=True)]
    factors = scales.at(start, stop)
    if whole is not None:
        number = read_rows(whole, 0, 1).reshape(())
        factors = factors / number if divide else factors * number
    values *= np.repeat(factors, scales.block[1], axis=1)
    return values


def plan_mxfp4(parts: Parts, settings: Mapping[str, Any]) -> list[Weight]:
    """gpt-oss: ``X_blocks`` U8 ``[experts, out, groups, 16]`` and ``X_scales`` U8 ``[experts, out, groups]`` (E8M0)
    make ``X`` of ``[experts, in, out]``, which is how transformers keeps these experts: transposed.

    Raises:
        FormatError: a part is missing or does not fit.
    """
    found = []
    for name in [n for n in parts.tensors if n.endswith("_blocks")]:
        blocks, scale = parts.need(name, "U8"), name.removesuffix("_blocks") + "_scales"
        if len(blocks.shape) != 4 or blocks.shape[-1] != 16 or 0 in blocks.shape:
            raise parts.bad(name, f"is {list(blocks.shape)}, not [experts, out, groups, 16]")
        experts, out, groups, _ = blocks.shape
        scales = parts.shaped(parts.need(scale, "U8", "F8_E8M0"), experts, out, groups)
        flat = TensorSpec(name, "U8", (experts * out, groups * 16), blocks.file, blocks.start, blocks.nbytes)
        shape = (experts, groups * 32, out)
        rows = partial(_mxfp4_rows, flat, scales, out, groups * 32)
        found.append(Weight(name.removesuffix("_blocks"), shape, (name, scale), rows, 32, groups * 32, 1 << 22))
    return found


def _mxfp4_rows(blocks: TensorSpec, scales: TensorSpec, out: int, inner: int, start: int, stop: int) -> Array:
    """Input rows of one expert: the groups that hold them, of all its outputs."""
    expert, first = divmod(start, inner)
    left, right = first // 32, (first + stop - start) // 32
    rows = (expert * out, (expert + 1) * out)
    codes = read_columns(blocks, left * 16, right * 16, rows)
    factors = to_f32(read_columns(scales, left, right, rows), "F8_E8M0")
    values = FP4[nibbles(codes, low_first=True)].reshape(out, right - left, 32)
    values *= factors[:, :, None]
    return values.reshape(out, -1).T
