"""Quantisers for tests: each writes one matrix the way its format is published, and says what it stands for.

Packing goes through Python integers, one value at a time, and the values in fp64: nothing here shares a formula with
the decoders. A quantiser gets a matrix ``[out, in]`` and gives tensors by suffix of the module's name, and the values
that a reader must find, before they are rounded to bf16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

Made = tuple[dict[str, torch.Tensor], np.ndarray[Any, Any]]
Quantiser = Callable[[Any, np.random.Generator], Made]


def stream(values: Any, bits: int) -> list[int]:
    """A list of codes as 32-bit words: one stream of bits, lowest first."""
    number = sum(int(v) << (bits * i) for i, v in enumerate(values))
    words = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(values) * bits // 32))]
    return [w - (1 << 32) if w >> 31 else w for w in words]


def packed(codes: Any, bits: int) -> torch.Tensor:
    """Each row of codes as words, ``[rows, words]``."""
    return torch.tensor([stream(row, bits) for row in codes], dtype=torch.int32)


def groups_of(matrix: Any, size: int) -> list[Any]:
    """The columns of a matrix in groups; the last may be smaller."""
    return [matrix[:, i : i + size] for i in range(0, matrix.shape[1], size)]


def affine(matrix: Any, bits: int, group: Any, dice: np.random.Generator, *,
           symmetric: bool = False) -> tuple[Any, Any, Any]:  # fmt: skip
    """Codes ``[out, in]``, zero points and fp16 scales ``[out, groups]`` for columns that belong to ``group``."""
    count, top = int(group.max()) + 1, (1 << bits) - 1
    scales = np.empty((len(matrix), count), np.float16)
    low, high = (1 << (bits - 1), 1 << (bits - 1)) if symmetric else (1, top)
    zeros = dice.integers(low, high + 1, scales.shape)  # what a reader must subtract
    codes = np.empty(matrix.shape, np.int64)
    for g in range(count):
        part = matrix[:, group == g]
        scales[:, g] = (np.ptp(part, axis=1) + 0.01) / top
        codes[:, group == g] = np.clip(np.rint(part / scales[:, g : g + 1] + zeros[:, g : g + 1]), 0, top)
    return codes, zeros, scales


def spread(codes: Any, zeros: Any, scales: Any, group: Any) -> Any:
    return (codes - zeros[:, group]).astype(np.float64) * scales[:, group].astype(np.float64)


# -- GPTQ and AWQ ------------------------------------------------------------------------------------------


def gptq(bits: int = 4, *, size: int = 16, act: bool = False, v2: bool = False, g_idx: bool = True) -> Quantiser:
    def make(matrix: Any, dice: np.random.Generator) -> Made:
        group = np.arange(matrix.shape[1]) // size
        group = dice.permutation(group) if act else group
        codes, zeros, scales = affine(matrix, bits, group, dice)
        tensors = {".qweight": packed(codes, bits).T.contiguous(),
                   ".qzeros": packed((zeros if v2 else zeros - 1).T, bits),
                   ".scales": torch.from_numpy(scales.T.copy())}  # fmt: skip
        if g_idx:
            tensors[".g_idx"] = torch.from_numpy(group.astype(np.int32))
        return tensors, spread(codes, zeros, scales, group)

    return make


def awq(version: str = "gemm", size: int = 16) -> Quantiser:
    def make(matrix: Any, dice: np.random.Generator) -> Made:
        group = np.arange(matrix.shape[1]) // size
        codes, zeros, scales = affine(matrix, 4, group, dice)
        if version == "gemm":  # eight outputs a word; nibble i holds output ORDER[i]
            order = [0, 2, 4, 6, 1, 3, 5, 7]
            shuffle = np.concatenate([base + np.array(order) for base in range(0, len(matrix), 8)])
            tensors = {".qweight": packed(codes.T[:, shuffle], 4), ".qzeros": packed(zeros.T[:, shuffle], 4),
                       ".scales": torch.from_numpy(scales.T.copy())}  # fmt: skip
        else:  # eight inputs a word, in order; groups padded to whole words
            pad = -(-zeros.shape[1] // 8) * 8 - zeros.shape[1] + 8
            tensors = {".qweight": packed(codes, 4), ".qzeros": packed(np.pad(zeros, ((0, 0), (0, pad))), 4),
                       ".scales": torch.from_numpy(np.pad(scales, ((0, 0), (0, pad))))}  # fmt: skip
        return tensors, spread(codes, zeros, scales, group)

    return make


# -- 8-bit and 4-bit floats --------------------------------------------------------------------------------


def tiles(matrix: Any, block: tuple[int, int]) -> Any:
    """``(row of blocks, column of blocks, slices)`` of a matrix; the last ones may be ragged."""
    for i in range(-(-matrix.shape[0] // block[0])):
        for j in range(-(-matrix.shape[1] // block[1])):
            yield i, j, np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]


def float8(block: tuple[int, int] | None = (24, 20), *, suffix: str = "_scale_inv", kind: torch.dtype | None = None,
           code: torch.dtype = torch.float8_e4m3fn, shape: Callable[[Any], Any] = lambda s: s) -> Quantiser:  # fmt: skip
    """8-bit floats in blocks, −1 for a whole axis; ``shape`` gives the scales another shape, ``kind`` another dtype
    (``uint8``: powers of two)."""

    def make(matrix: Any, dice: np.random.Generator) -> Made:
        size = tuple(n if b < 0 else b for n, b in zip(matrix.shape, block or (-1, -1), strict=True))
        scales = np.empty([-(-n // b) for n, b in zip(matrix.shape, size, strict=True)], np.float32)
        codes, values = np.empty(matrix.shape, np.uint8), np.empty(matrix.shape)
        for i, j, at in tiles(matrix, size):
            scale = np.float32(np.abs(matrix[at]).max() / 448 * dice.uniform(1, 1.5))
            scale = np.float32(2.0 ** np.ceil(np.log2(scale))) if kind is torch.uint8 else scale
            scale = torch.tensor(scale).to(kind).float().numpy() if kind not in (None, torch.uint8) else scale
            scales[i, j] = scale
            found = torch.from_numpy((matrix[at] / scale).astype(np.float32)).to(code)
            codes[at] = found.view(torch.uint8).numpy()
            values[at] = found.double().numpy() * np.float64(scale)
        stored = torch.from_numpy(shape(scales))
        if kind is torch.uint8:
            stored = (torch.log2(stored) + 127).to(torch.uint8)
        return {".weight": torch.from_numpy(codes).view(code),
                ".weight" + suffix: stored if kind in (None, torch.uint8) else stored.to(kind)}, values  # fmt: skip

    return make


E2M1 = np.array([(-1) ** (c >> 3) * (0.5 * (c & 1) if not c & 6 else (1 + (c & 1) / 2) * 2.0 ** ((c >> 1 & 3) - 1))
                 for c in range(16)])  # fmt: skip


def float4(matrix: Any, size: int, scale_of: Callable[[float], float]) -> tuple[Any, Any, Any]:
    """Codes, scales ``[out, in / size]`` and values in E2M1."""
    codes, values = np.empty(matrix.shape, np.int64), np.empty(matrix.shape)
    scales = np.empty((len(matrix), matrix.shape[1] // size))
    for i, j, at in tiles(matrix, (1, size)):
        scales[i, j] = scale_of(float(np.abs(matrix[at]).max()) / 6)
        codes[at] = np.abs(matrix[at][..., None] / scales[i, j] - E2M1).argmin(-1)
        values[at] = E2M1[codes[at]] * scales[i, j]
    return codes, scales, values


def pairs(codes: Any) -> torch.Tensor:
    """Two codes a byte, the first in the low half."""
    return torch.from_numpy((codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8))


def power(scale: float) -> float:
    return float(2.0 ** np.ceil(np.log2(scale)))


def mxfp4(matrix: Any, dice: np.random.Generator) -> Made:
    """compressed-tensors' layout: ``[out, in / 2]`` and ``[out, in / 32]``."""
    codes, scales, values = float4(matrix, 32, power)
    exponents = torch.from_numpy((np.log2(scales) + 127).astype(np.uint8))
    return {".weight_packed": pairs(codes), ".weight_scale": exponents}, values


def experts_mxfp4(matrix: Any) -> Made:
    """gpt-oss: one tensor of experts ``[experts, in, out]`` as blocks of its transpose; suffixes of the tensor."""
    flipped = np.swapaxes(matrix, 1, 2)
    codes, scales, values = float4(flipped.reshape(-1, flipped.shape[2]), 32, power)
    shape = (*flipped.shape[:2], flipped.shape[2] // 32)
    return {"_blocks": pairs(codes).reshape(*shape, 16),
            "_scales": torch.from_numpy((np.log2(scales) + 127).astype(np.uint8)).reshape(shape)}, \
        np.swapaxes(values.reshape(flipped.shape), 1, 2)  # fmt: skip


def nvfp4(*, modelopt: bool) -> Quantiser:
    def make(matrix: Any, dice: np.random.Generator) -> Made:
        whole = np.float32(dice.uniform(100, 200))

        def scale_of(wanted: float) -> float:
            code = torch.tensor(wanted * whole, dtype=torch.float32).to(torch.float8_e4m3fn)
            return float(code.double() / whole)

        codes, scales, values = float4(matrix, 16, scale_of)
        stored = torch.from_numpy(scales * whole).float().to(torch.float8_e4m3fn)
        if modelopt:
            top = np.float32(1 / whole)
            values = values * np.float64(top) * np.float64(whole)
            return {".weight": pairs(codes), ".weight_scale": stored, ".weight_scale_2": torch.tensor(top)}, values
        return {".weight_packed": pairs(codes), ".weight_scale": stored,
                ".weight_global_scale": torch.tensor([whole])}, values  # fmt: skip

    return make


# -- compressed-tensors' integers --------------------------------------------------------------------------


def integers(
    bits: int = 4, size: int = 8, *, symmetric: bool = True, act: bool = False, pack: bool = True
) -> Quantiser:
    """Signed integers in groups of ``size`` inputs (0: the whole row), bf16 scales."""

    def make(matrix: Any, dice: np.random.Generator) -> Made:
        half = 1 << (bits - 1)
        group = np.arange(matrix.shape[1]) // (size or matrix.shape[1])
        group = dice.permutation(group) if act else group
        codes, zeros, scales = affine(matrix, bits, group, dice, symmetric=symmetric)
        scales = torch.from_numpy(scales).to(torch.bfloat16)
        values = spread(codes, zeros, scales.double().numpy(), group)
        tensors = {".weight_scale": scales}
        if pack:
            tensors |= {".weight_packed": packed(codes, bits), ".weight_shape": torch.tensor(matrix.shape)}
        else:
            tensors[".weight"] = torch.from_numpy((codes - half).astype(np.int8))
        if not symmetric:
            tensors[".weight_zero_point"] = packed(zeros.T, bits).T.contiguous() if pack \
                else torch.from_numpy((zeros - half).astype(np.int8))  # fmt: skip
        if act:
            tensors[".weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
        return tensors, values

    return make


# -- bitsandbytes ------------------------------------------------------------------------------------------

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
                1.0], np.float32)  # fmt: skip
_FP4 = np.array([0, 0.0052083333, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25], np.float32)
TABLES = {"nf4": NF4, "fp4": np.concatenate([_FP4, -_FP4])}


def four_bits(kind: str = "nf4", block: int = 64, nested: int = 0) -> Quantiser:
    def make(matrix: Any, dice: np.random.Generator) -> Made:
        table, flat = TABLES[kind], matrix.reshape(-1)
        blocks = [flat[i : i + block] for i in range(0, flat.size, block)]
        tops = np.array([np.abs(b).max() for b in blocks], np.float32)
        state: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": block,
            "dtype": "bfloat16",
            "shape": list(matrix.shape),
        }
        tensors = {".weight.quant_map": torch.from_numpy(table.copy())}
        if nested:
            levels = np.sort(dice.uniform(-1, 1, 256)).astype(np.float32)
            offset = float(np.float32(tops.mean()))
            outer = np.array([np.abs(tops[i : i + nested] - offset).max() + 1e-6 for i in range(0, tops.size, nested)],
                             np.float32)  # fmt: skip
            of = np.arange(tops.size) // nested
            codes = np.abs((tops - offset)[:, None] / outer[of, None] - levels).argmin(1)
            tops = levels[codes].astype(np.float64) * outer[of] + offset
            state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": offset}
            tensors |= {".weight.absmax": torch.from_numpy(codes.astype(np.uint8)),
                        ".weight.nested_absmax": torch.from_numpy(outer),
                        ".weight.nested_quant_map": torch.from_numpy(levels)}  # fmt: skip
        else:
            tensors[".weight.absmax"] = torch.from_numpy(tops)
        indices = [np.abs(b[:, None] / top - table).argmin(1) for b, top in zip(blocks, tops, strict=True)]
        values = np.concatenate(
            [table[i].astype(np.float64) * np.float64(t) for i, t in zip(indices, tops, strict=True)]
        )
        codes = np.concatenate([*indices, [0] * (flat.size % 2)])
        tensors[".weight"] = torch.from_numpy((16 * codes[0::2] + codes[1::2]).astype(np.uint8)[:, None])
        raw = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8).clone()
        tensors[f".weight.quant_state.bitsandbytes__{kind}"] = raw
        return tensors, values.reshape(matrix.shape)

    return make


def eight_bits(matrix: Any, dice: np.random.Generator) -> Made:
    tops = np.abs(matrix).max(1).astype(np.float32)
    codes = np.rint(matrix / tops[:, None] * 127)
    return {".weight": torch.from_numpy(codes.astype(np.int8)), ".SCB": torch.from_numpy(tops),
            ".weight_format": torch.tensor(0, dtype=torch.uint8)}, codes * tops[:, None].astype(np.float64) / 127  # fmt: skip


# -- all of them -------------------------------------------------------------------------------------------


def compressed(kind: str, **weights: Any) -> Mapping[str, Any]:
    """The settings of compressed-tensors for one group that takes every linear."""
    arguments = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", **weights}
    return {"quant_method": "compressed-tensors", "format": kind, "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments}}}  # fmt: skip


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "weight_block_size": [24, 20], "activation_scheme": "dynamic"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_FLOAT = {"type": "float"}

#: every format: its quantiser and what config.json says of it
FORMATS: dict[str, tuple[Quantiser, Mapping[str, Any]]] = {
    "fp8-blocks": (float8(), FP8),
    "fp8-e5m2": (float8(code=torch.float8_e5m2), FP8),
    "fp8-tensor": (float8(None, shape=lambda s: s.reshape(())), {**FP8, "weight_block_size": None}),
    "fp8-e8m0": (float8(kind=torch.uint8), FP8),
    "mxfp8": (float8((1, 16), kind=torch.uint8), {"quant_method": "mxfp8", "weight_block_size": [1, 16]}),
    "fbgemm": (float8((1, -1), suffix="_scale"), {"quant_method": "fbgemm_fp8"}),
    "modelopt": (float8(None, suffix="_scale", shape=lambda s: s.reshape(())),
                 {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "modelopt-nvfp4": (nvfp4(modelopt=True), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "gptq": (gptq(), GPTQ),
    "gptq-2": (gptq(2), {**GPTQ, "bits": 2}),
    "gptq-3": (gptq(3), {**GPTQ, "bits": 3}),
    "gptq-8": (gptq(8), {**GPTQ, "bits": 8}),
    "gptq-act": (gptq(act=True), {**GPTQ, "desc_act": True}),
    "gptq-v2": (gptq(v2=True), {**GPTQ, "checkpoint_format": "gptq_v2"}),
    "gptq-plain": (gptq(g_idx=False), GPTQ),
    "awq": (awq(), AWQ),
    "awq-gemv": (awq("gemv"), {**AWQ, "version": "GEMV"}),
    "ct-float-tensor": (float8(None, suffix="_scale", shape=lambda s: s.reshape(1)),
                        compressed("float-quantized", **_FLOAT, strategy="tensor")),
    "ct-float-channel": (float8((1, -1), suffix="_scale", kind=torch.bfloat16),
                         compressed("float-quantized", **_FLOAT)),
    "ct-float-block": (float8(suffix="_scale"),
                       compressed("float-quantized", **_FLOAT, strategy="block", block_structure=[24, 20])),
    "ct-mxfp8": (float8((1, 16), suffix="_scale", kind=torch.uint8),
                 compressed("mxfp8-quantized", **_FLOAT, strategy="group", group_size=16)),
    "ct-int8": (integers(8, 0, pack=False), compressed("int-quantized")),
    "ct-int8-asym": (integers(8, 0, pack=False, symmetric=False), compressed("int-quantized", symmetric=False)),
    "ct-pack4": (integers(), compressed("pack-quantized", num_bits=4, strategy="group", group_size=8)),
    "ct-pack4-asym": (integers(symmetric=False), compressed("pack-quantized", num_bits=4, strategy="group",
                                                            group_size=8, symmetric=False)),
    "ct-pack8": (integers(8), compressed("pack-quantized", strategy="group", group_size=8)),
    "ct-pack3-asym": (integers(3, 0, symmetric=False), compressed("pack-quantized", num_bits=3, symmetric=False)),
    "ct-pack4-act": (integers(symmetric=False, act=True), compressed(
        "pack-quantized", num_bits=4, strategy="group", group_size=8, symmetric=False, actorder="group")),
    "ct-nvfp4": (nvfp4(modelopt=False), compressed("nvfp4-pack-quantized", num_bits=4, **_FLOAT, group_size=16,
                                              strategy="tensor_group")),
    "ct-mxfp4": (mxfp4, compressed("mxfp4-pack-quantized", num_bits=4, **_FLOAT, group_size=32,
                                     strategy="group")),
    "nf4": (four_bits(), BNB),
    "nf4-nested": (four_bits(nested=4), {**BNB, "bnb_4bit_use_double_quant": True}),
    "fp4": (four_bits("fp4", 32), {**BNB, "bnb_4bit_quant_type": "fp4"}),
    "int8": (eight_bits, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}  # fmt: skip
