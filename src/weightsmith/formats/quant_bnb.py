"""Decoders of bitsandbytes: NF4 and FP4 with blockwise maxima, nested or not, and LLM.int8's rows of integers.

Sources: bitsandbytes' ``functional.QuantState`` (names and the packed state), ``backends/default/ops.py`` and
``int8_vectorwise_dequant`` (arithmetic); transformers' bitsandbytes integration.

4 bits: ``X.weight`` holds two codes a byte, *high* half first, of the matrix ``[out, in]`` laid out flat; ``X.weight.
quant_map`` F32 ``[16]`` gives a code's value, ``X.weight.absmax`` the factor of every ``blocksize`` values; both are
described by the JSON in ``X.weight.quant_state.bitsandbytes__nf4`` (or ``fp4``). Nested maxima are themselves
8-bit codes, of ``nested_quant_map`` F32 ``[256]``, with ``nested_absmax`` and an offset. 8 bits: ``X.weight`` I8 and
``X.SCB`` F32 ``[out]``, the largest magnitude of each row, which 127 stands for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import UnsupportedModel
from ..storage import strict_json
from .quant_parts import Array, Parts, Weight, nibbles, read_bytes, read_rows
from .safetensors import TensorSpec

_STATE = ".quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_STORAGE = ("U8", "I8", "F32", "F16", "BF16", "F64")  # the codes may be stored as words of any dtype
_STATE_LIMIT = 1 << 16  # bytes of the JSON


def plan_bitsandbytes(parts: Parts, settings: Mapping[str, Any]) -> list[Weight]:
    """Every weight with a quantisation state, and every integer weight with its ``SCB``.

    Raises:
        UnsupportedModel: another kind of code, or integers in a layout of their own.
        FormatError: a part is missing or does not fit.
    """
    found = []
    for name in parts.tensors:
        weight, _, kind = name.rpartition(_STATE)
        if weight:
            if kind not in _KINDS:
                raise UnsupportedModel(f"{parts.method}: tensor {name!r} is of a kind that is not known here",
                                       where=parts.where, hint=f"known: {', '.join(_KINDS)}")  # fmt: skip
            found.append(_four_bits(parts, weight, name))
        elif name.endswith(".SCB"):
            found.append(_eight_bits(parts, name.removesuffix("SCB")))
    return found


@dataclass(frozen=True, slots=True)
class _Maxima:
    """The factors of the blocks of one weight."""

    spec: TensorSpec
    codes: Array | None = None
    nested: TensorSpec | None = None
    block: int = 0
    offset: float = 0.0

    def at(self, start: int, stop: int) -> Array:
        """Factors of blocks ``start:stop``, fp32."""
        itemsize = 1 if self.codes is not None else 4
        raw = read_bytes(self.spec, start * itemsize, (stop - start) * itemsize)
        if self.codes is None or self.nested is None:
            return raw.view("<f4")
        first = start // self.block
        tops = read_bytes(self.nested, first * 4, (-(-stop // self.block) - first) * 4).view("<f4")
        factors: Array = self.codes[raw] * tops[np.arange(start, stop) // self.block - first]
        return factors + np.float32(self.offset)


def _four_bits(parts: Parts, name: str, state_name: str) -> Weight:
    spec = parts.need(name, *_STORAGE)
    state = _state(parts, parts.need(state_name, "U8"))
    shape, block = tuple(state["shape"]), state["blocksize"]
    count = math.prod(shape)
    if not 0 <= 2 * spec.nbytes - count < 16:
        raise parts.bad(name, f"has {spec.nbytes} bytes, which do not hold {list(shape)} of 4 bits")
    values = parts.need(f"{name}.quant_map", "F32")
    table = read_bytes(parts.shaped(values, 16), 0, 64).view("<f4")
    names = [name, state_name, values.name, f"{name}.absmax"]
    blocks = -(-count // block)
    if "nested_blocksize" in state:
        codes, nested = parts.need(f"{name}.nested_quant_map", "F32"), parts.need(f"{name}.nested_absmax", "F32")
        parts.shaped(codes, 256)
        parts.shaped(nested, -(-blocks // state["nested_blocksize"]))
        maxima = _Maxima(parts.need(f"{name}.absmax", "U8"), read_bytes(codes, 0, 1024).view("<f4"), nested,
                         state["nested_blocksize"], state["nested_offset"])  # fmt: skip
        names += [codes.name, nested.name]
    else:
        maxima = _Maxima(parts.need(f"{name}.absmax", "F32"))
    if maxima.spec.numel != blocks:
        raise parts.bad(maxima.spec.name, f"is {list(maxima.spec.shape)}, where {blocks} blocks of {block} are")
    return Weight(name, shape, tuple(names), partial(_four_bit_rows, spec, table, maxima, block, shape[-1]))


def _state(parts: Parts, spec: TensorSpec) -> dict[str, Any]:
    """The JSON of a quantisation state, its numbers checked."""
    try:
        state = strict_json(read_bytes(spec, 0, min(spec.nbytes, _STATE_LIMIT)).tobytes())
    except (ValueError, RecursionError) as error:
        raise parts.bad(spec.name, f"is not valid JSON ({error})") from error

    def positive(value: Any) -> bool:
        return type(value) is int and value > 0

    good = isinstance(state, dict) and positive(state.get("blocksize")) and isinstance(state.get("shape"), list)
    good = good and len(state["shape"]) >= 2 and all(map(positive, state["shape"]))
    if good and "nested_blocksize" in state:
        offset = state.get("nested_offset")
        good = positive(state["nested_blocksize"]) and isinstance(offset, int | float) and math.isfinite(offset)
    if not good:
        raise parts.bad(spec.name, "does not describe a matrix in blocks")
    return dict(state)


def _four_bit_rows(spec: TensorSpec, table: Array, maxima: _Maxima, block: int, width: int, start: int,
                   stop: int) -> Array:  # fmt: skip
    first, last = start * width, stop * width
    octets = read_bytes(spec, first // 2, -(-last // 2) - first // 2)
    values: Array = table[nibbles(octets, low_first=False)[first % 2 :][: last - first]]
    factors = maxima.at(first // block, -(-last // block))
    if first % block == 0 and last % block == 0:
        values.reshape(-1, block)[...] *= factors[:, None]
    else:
        values *= np.repeat(factors, block)[first % block :][: last - first]
    return values.reshape(stop - start, width)


def _eight_bits(parts: Parts, prefix: str) -> Weight:
    spec = parts.matrix(parts.need(prefix + "weight", "I8"))
    scales = parts.shaped(parts.need(prefix + "SCB", "F32", "F16"), spec.shape[0])
    names = [spec.name, scales.name]
    layout = parts.maybe(prefix + "weight_format", "U8")
    if layout is not None:
        names.append(layout.name)
        if read_bytes(layout, 0, layout.nbytes).any():
            raise UnsupportedModel(f"{parts.method}: {spec.name!r} is laid out for one kind of GPU", where=parts.where,
                                   hint="save the model again with bitsandbytes 0.45 or later")  # fmt: skip
    return Weight(spec.name, spec.shape, tuple(names), partial(_eight_bit_rows, spec, scales))


def _eight_bit_rows(spec: TensorSpec, scales: TensorSpec, start: int, stop: int) -> Array:
    size = 4 if scales.dtype == "F32" else 2
    factors = read_bytes(scales, start * size, (stop - start) * size).view(f"<f{size}").astype(np.float32)
    values = read_rows(spec, start, stop).astype(np.float32)
    values *= factors[:, None]
    values *= np.float32(1 / 127)
    return values
