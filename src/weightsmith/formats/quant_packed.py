"""Decoders of GPTQ and AWQ: integers packed into 32-bit words, a scale and a zero point for a group of inputs.

Sources: AutoGPTQ's ``qlinear_cuda_old`` (packing, and zero points stored less one) and GPTQModel (``gptq_v2``, which
stores them as they are); AutoAWQ's ``WQLinear_GEMM`` and ``WQLinear_GEMV`` (packing orders).

Accepted trade-off: a v1 zero point that is stored as all ones means 0 here, as AutoGPTQ's kernels read it. GPTQModel
adds the ones word by word, so that the carry also moves the next zero point; only asymmetric v1 files can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import UnsupportedModel
from .quant_parts import FLOATS, Array, Parts, Weight, read_columns, read_rows, to_f32, unpack
from .safetensors import TensorSpec

GPTQ_BITS = (2, 3, 4, 8)
#: where AutoAWQ's GEMM layout keeps each of eight neighbours: value ``i`` is nibble ``_AWQ[i]``
_AWQ = [0, 4, 1, 5, 2, 6, 3, 7]
_WIDE = 1 << 22  # elements of a chunk where rows of the weight are columns of the file: longer pieces to read


def plan_gptq(parts: Parts, settings: Mapping[str, Any]) -> list[Weight]:
    """``qweight`` I32 ``[in · bits / 32, out]``, ``qzeros`` I32 ``[groups, out · bits / 32]``, ``scales``
    ``[groups, out]`` and ``g_idx`` I32 ``[in]`` (the group of every input) make ``weight`` of ``[out, in]``.

    Raises:
        UnsupportedModel: another layout, or a width that is not 2, 3, 4 or 8 bits.
        FormatError: a part is missing or does not fit.
    """
    kind = str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()
    if kind not in ("gptq", "gptq_v2") or settings.get("is_marlin_format"):
        raise UnsupportedModel(f"{parts.method}: checkpoint_format {kind!r}", where=parts.where,
                               hint="gptq and gptq_v2 are known; use an unquantised copy of the model")  # fmt: skip
    return [_gptq(parts, name.removesuffix("qweight"), settings, 1 if kind == "gptq" else 0)
            for name in parts.tensors if name.endswith(".qweight")]  # fmt: skip


def _gptq(parts: Parts, prefix: str, settings: Mapping[str, Any], plus: int) -> Weight:
    words = parts.matrix(parts.need(prefix + "qweight", "I32"))
    scales = parts.matrix(parts.need(prefix + "scales", *FLOATS))
    zeros = parts.need(prefix + "qzeros", "I32")
    order = parts.maybe(prefix + "g_idx", "I32", "I64")
    bits, out, groups = settings.get("bits", 4), words.shape[1], scales.shape[0]
    inner = order.numel if order is not None else 0
    if settings.get("dynamic") and inner:  # GPTQModel may give each module its own width
        bits = words.shape[0] * 32 / inner
    if bits not in GPTQ_BITS:
        raise UnsupportedModel(f"{parts.method}: {prefix + 'qweight'!r} has {bits} bits", where=parts.where,
                               hint="2, 3, 4 and 8 are known")  # fmt: skip
    bits = int(bits)
    inner = inner or words.shape[0] * 32 // bits
    parts.shaped(words, -(-inner * bits // 32), out)
    parts.shaped(scales, groups, out)
    parts.shaped(zeros, groups, -(-out * bits // 32))
    group = settings.get("group_size", -1)
    size = inner if type(group) is not int or group <= 0 else group
    if order is None and -(-inner // size) != groups:
        raise parts.bad(scales.name, f"has {groups} groups, where {inner} inputs in groups of {size} have "
                                     f"{-(-inner // size)}")  # fmt: skip
    names = tuple(prefix + n for n in ("qweight", "qzeros", "scales", "g_idx") if prefix + n in parts.tensors)
    rows = partial(_gptq_rows, parts, words, zeros, scales, order, (bits, inner, size, plus))
    return Weight(prefix + "weight", (out, inner), names, rows, 32, 0, _WIDE)


def _gptq_rows(parts: Parts, words: TensorSpec, zeros: TensorSpec, scales: TensorSpec, order: TensorSpec | None,
               numbers: tuple[int, int, int, int], start: int, stop: int) -> Array:  # fmt: skip
    bits, inner, size, plus = numbers
    groups = np.arange(inner) // size
    if order is not None:
        groups = read_rows(
            TensorSpec(order.name, order.dtype, (1, inner), order.file, order.start, order.nbytes), 0, 1
        )[0]
        if groups.min() < 0 or groups.max() >= scales.shape[0]:
            raise parts.bad(order.name, f"names groups from {groups.min()} to {groups.max()} of {scales.shape[0]}")
    values = unpack(read_columns(words, start, stop).T, bits, inner).astype(np.float32)
    left, right = start * bits // 32, -(-stop * bits // 32)
    offsets = unpack(read_columns(zeros, left, right), bits, stop - start)
    offsets = (offsets + np.uint8(plus)) & np.uint8((1 << bits) - 1)
    factors = to_f32(read_columns(scales, start, stop), scales.dtype)
    return _grouped(values, offsets.T.astype(np.float32), factors.T, groups)


def _grouped(values: Array, zeros: Array, scales: Array, groups: Array) -> Array:
    """``(values - zeros) * scales`` for ``[out, in]`` values and ``[out, groups]`` numbers; the product is exact."""
    count = scales.shape[1]
    size = values.shape[1] // count
    if size * count == values.shape[1] and (groups == np.arange(values.shape[1]) // size).all():
        blocks = values.reshape(len(values), count, size)
        blocks -= zeros[:, :, None]
        blocks *= scales[:, :, None]
    else:
        values -= zeros[:, groups]
        values *= scales[:, groups]
    return values


def plan_awq(parts: Parts, settings: Mapping[str, Any]) -> list[Weight]:
    """AutoAWQ with 4 bits. GEMM: ``qweight`` I32 ``[in, out / 8]``, ``qzeros`` I32 ``[groups, out / 8]``, ``scales``
    ``[groups, out]``. GEMV: ``[out, in / 8]``, ``[out, ≥ groups / 8]``, ``[out, ≥ groups]``, padded with zeros.

    Raises:
        UnsupportedModel: another version or width.
        FormatError: a part is missing or does not fit.
    """
    version, bits = str(settings.get("version", "gemm")).lower(), settings.get("bits", settings.get("w_bit", 4))
    if version not in ("gemm", "gemv") or bits != 4:
        raise UnsupportedModel(f"{parts.method}: version {version!r} with {bits} bits", where=parts.where,
                               hint="gemm and gemv with 4 bits are known; use an unquantised copy")  # fmt: skip
    plan = _gemm if version == "gemm" else _gemv
    group = settings.get("group_size", settings.get("q_group_size", 128))
    if type(group) is not int or group == 0 or group < -1:
        raise UnsupportedModel(f"{parts.method}: group_size is {group!r}", where=parts.where)
    return [plan(parts, n.removesuffix("qweight"), group) for n in parts.tensors if n.endswith(".qweight")]


def _awq_parts(parts: Parts, prefix: str) -> tuple[TensorSpec, TensorSpec, TensorSpec, tuple[str, ...]]:
    words = parts.matrix(parts.need(prefix + "qweight", "I32"))
    zeros = parts.matrix(parts.need(prefix + "qzeros", "I32"))
    scales = parts.matrix(parts.need(prefix + "scales", *FLOATS))
    return words, zeros, scales, (words.name, zeros.name, scales.name)


def _gemm(parts: Parts, prefix: str, group: int) -> Weight:
    words, zeros, scales, names = _awq_parts(parts, prefix)
    inner, out = words.shape[0], 8 * words.shape[1]
    groups = 1 if group < 0 else -(-inner // group)
    parts.shaped(zeros, groups, out // 8)
    parts.shaped(scales, groups, out)
    rows = partial(_gemm_rows, words, zeros, scales, np.arange(inner) // (inner if group < 0 else group))
    return Weight(prefix + "weight", (out, inner), names, rows, 8, 0, _WIDE)


def _gemm_rows(words: TensorSpec, zeros: TensorSpec, scales: TensorSpec, groups: Array, start: int, stop: int) -> Array:
    def codes(spec: TensorSpec) -> Array:
        found = unpack(read_columns(spec, start // 8, stop // 8), 4, stop - start)
        return found.reshape(len(found), -1, 8)[..., _AWQ].reshape(len(found), -1).T

    values = np.ascontiguousarray(codes(words)).astype(np.float32)
    factors = to_f32(read_columns(scales, start, stop), scales.dtype).T
    return _grouped(values, codes(zeros).astype(np.float32), factors, groups)


def _gemv(parts: Parts, prefix: str, group: int) -> Weight:
    words, zeros, scales, names = _awq_parts(parts, prefix)
    out, inner = words.shape[0], 8 * words.shape[1]
    groups = 1 if group < 0 else -(-inner // group)
    if zeros.shape[0] != out or 8 * zeros.shape[1] < groups:
        raise parts.bad(zeros.name, f"is {list(zeros.shape)}, which does not cover {groups} groups of {out} rows")
    if scales.shape[0] != out or scales.shape[1] < groups:
        raise parts.bad(scales.name, f"is {list(scales.shape)}, which does not cover {groups} groups of {out} rows")
    rows = partial(_gemv_rows, words, zeros, scales, np.arange(inner) // (inner if group < 0 else group), groups)
    return Weight(prefix + "weight", (out, inner), names, rows)


def _gemv_rows(words: TensorSpec, zeros: TensorSpec, scales: TensorSpec, order: Array, groups: int, start: int,
               stop: int) -> Array:  # fmt: skip
    values = unpack(read_rows(words, start, stop), 4, len(order)).astype(np.float32)
    offsets = unpack(read_rows(zeros, start, stop), 4, groups).astype(np.float32)
    factors = to_f32(read_rows(scales, start, stop), scales.dtype)[:, :groups]
    return _grouped(values, offsets, factors, order)
