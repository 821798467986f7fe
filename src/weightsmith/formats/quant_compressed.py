"""Decoders of compressed-tensors checkpoints, as llm-compressor and vLLM write them.

Source: the compressed-tensors library, ``compressors/`` (layouts and packing) and ``quantization/`` (arithmetic).
Beside ``X.weight`` or ``X.weight_packed`` stand ``X.weight_scale``, for asymmetric ones ``X.weight_zero_point``, for
packed ones ``X.weight_shape``, and for the activation order that older releases wrote ``X.weight_g_idx``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import UnsupportedModel
from .quant_floats import SCALES, fp4_weight, scaled_weight
from .quant_parts import FP8, Array, Grid, Parts, Weight, grid, read_bytes, read_rows, scaled, unpack
from .safetensors import TensorSpec

_FORMATS = ("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision",
            "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")  # fmt: skip
_WORDS = ("I32", "U32")


def plan_compressed(parts: Parts, settings: Mapping[str, Any]) -> list[Weight]:
    """Every weight that has codes: 8-bit floats or integers in place, packed integers of 1 to 8 bits, packed E2M1.

    Raises:
        UnsupportedModel: another format (the sparse ones among them), or a module that no group targets.
        FormatError: a part is missing or does not fit.
    """
    groups = _groups(parts, settings)
    for kind in [settings.get("format"), *(g.get("format") for g in groups)]:
        if kind is not None and kind not in _FORMATS:
            raise UnsupportedModel(f"{parts.method}: format {kind!r}", where=parts.where,
                                   hint=f"known: {', '.join(_FORMATS)}; use an unquantised copy")  # fmt: skip
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        raise UnsupportedModel(f"{parts.method}: sparsity format {sparsity.get('format')!r}", where=parts.where,
                               hint="use a dense copy of the model")  # fmt: skip
    found = []
    for name, spec in parts.tensors.items():
        if name.endswith(".weight_packed"):
            module = name.removesuffix(".weight_packed")
            plan = _packed if spec.dtype in _WORDS else _fp4
            found.append(plan(parts, module, _arguments(parts, groups, module)))
        elif name.endswith(".weight") and spec.dtype in (*FP8, "I8"):
            module = name.removesuffix(".weight")
            found.append(_naive(parts, module, _arguments(parts, groups, module)))
    return found


def _groups(parts: Parts, settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or not all(isinstance(g, Mapping) for g in groups.values()):
        raise UnsupportedModel(f"{parts.method}: the config has no config_groups", where=parts.where)
    return list(groups.values())


def _arguments(parts: Parts, groups: list[Mapping[str, Any]], module: str) -> Mapping[str, Any]:
    """How the weights of a module are quantised: the group that names it, else the one that names its class."""
    chosen = [g for g in groups if any(_targets(str(t), module) for t in g.get("targets") or ())]
    chosen = chosen or [g for g in groups if any(_is_class(str(t)) for t in g.get("targets") or ())] or groups
    weights = [g["weights"] for g in chosen if isinstance(g.get("weights"), Mapping)]
    if not weights or any(w.get("num_bits") != weights[0].get("num_bits") for w in weights):
        raise UnsupportedModel(f"{parts.method}: no one group of the config fits the quantised module {module!r}",
                               where=parts.where)  # fmt: skip
    return dict(weights[0])


def _targets(target: str, module: str) -> bool:
    if target.startswith("re:"):
        try:
            return re.match(target[3:], module) is not None
        except re.error:
            return False
    return target == module


def _is_class(target: str) -> bool:
    return not target.startswith("re:") and "." not in target


def _block(arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size of what one scale covers, where the config names it."""
    block, group = arguments.get("block_structure"), arguments.get("group_size")
    if isinstance(block, list) and len(block) == 2 and all(type(v) is int and v > 0 for v in block):
        return block[0], block[1]
    return (1, group) if type(group) is int and group > 0 else None


def _order(parts: Parts, module: str, width: int, scales: Grid) -> Array | None:
    """The group of every input, where activation order was kept; a −1 says that it was not."""
    spec = parts.maybe(f"{module}.weight_g_idx", "I32", "I64")
    if spec is None:
        return None
    parts.shaped(spec, width)
    groups = read_bytes(spec, 0, spec.nbytes).view("<i4" if spec.dtype == "I32" else "<i8").astype(np.int64)
    if (groups == -1).any():
        return None
    if groups.min() < 0 or groups.max() >= scales.columns:
        raise parts.bad(spec.name, f"names groups from {groups.min()} to {groups.max()} of {scales.columns}")
    return groups


def _present(parts: Parts, module: str, *leaves: str) -> tuple[str, ...]:
    return tuple(n for n in (f"{module}.{leaf}" for leaf in leaves) if n in parts.tensors)


def _naive(parts: Parts, module: str, arguments: Mapping[str, Any]) -> Weight:
    """One code a value: F8 or I8 ``[out, in]``, scales for the tensor, its rows, groups of inputs or blocks."""
    spec = parts.matrix(parts.tensors[f"{module}.weight"])
    block = _block(arguments)
    scales = grid(parts, parts.need(f"{module}.weight_scale", *SCALES), spec.shape, block)
    zero = parts.maybe(f"{module}.weight_zero_point", "I8", "U8", "I32", *SCALES, *FP8)
    zeros = None if zero is None else grid(parts, zero, spec.shape, block, exponents=False)
    names = _present(parts, module, "weight", "weight_scale", "weight_zero_point", "weight_g_idx")
    return scaled_weight(spec.name, spec, names, scales, zeros, _order(parts, module, spec.shape[-1], scales))


def _fp4(parts: Parts, module: str, arguments: Mapping[str, Any]) -> Weight:
    top = f"{module}.weight_global_scale"
    return fp4_weight(parts, f"{module}.weight", f"{module}.weight_packed", f"{module}.weight_scale",
                      top if top in parts.tensors else None, divide=True)  # fmt: skip


def _packed(parts: Parts, module: str, arguments: Mapping[str, Any]) -> Weight:
    """Integers of 1 to 8 bits, packed into the words of each row; stored with half their range added."""
    words = parts.matrix(parts.need(f"{module}.weight_packed", *_WORDS))
    shape = _shape(parts, module)
    bits = arguments.get("num_bits")
    if type(bits) is not int or not 1 <= bits <= 8:
        raise UnsupportedModel(f"{parts.method}: {words.name!r} has {bits} bits", where=parts.where,
                               hint="1 to 8 are known")  # fmt: skip
    width = shape[-1]
    dense, whole = -(-width * bits // 32), -(-width // (32 // bits))
    if len(words.shape) != len(shape) or words.shape[:-1] != shape[:-1] or words.shape[-1] not in (dense, whole):
        raise parts.bad(words.name, f"is {list(words.shape)}, which does not hold {list(shape)} of {bits} bits")
    if words.shape[-1] != dense:
        raise UnsupportedModel(f"{parts.method}: {words.name!r} packs {bits} bits with padding in every word, as an "
                               "old release did", where=parts.where)  # fmt: skip
    scales = grid(parts, parts.need(f"{module}.weight_scale", *SCALES), shape, _block(arguments))
    zero = parts.maybe(f"{module}.weight_zero_point", *_WORDS, "I8", *SCALES)
    zeros: Grid | TensorSpec | None = None
    if zero is not None and zero.dtype in _WORDS and arguments.get("symmetric") is False:
        zeros = parts.shaped(parts.matrix(zero), -(-shape[0] * bits // 32), scales.columns)
    elif zero is not None:
        zeros = grid(parts, zero, shape, _block(arguments), exponents=False)
    names = _present(parts, module, "weight_packed", "weight_scale", "weight_shape", "weight_zero_point",
                     "weight_g_idx")  # fmt: skip
    rows = partial(_packed_rows, words, scales, zeros, _order(parts, module, width, scales), (bits, width))
    return Weight(f"{module}.weight", shape, names, rows, 32)


def _shape(parts: Parts, module: str) -> tuple[int, ...]:
    spec = parts.need(f"{module}.weight_shape", "I64", "I32")
    if len(spec.shape) != 1 or not 2 <= spec.numel <= 3:
        raise parts.bad(spec.name, f"is {list(spec.shape)}, not the sizes of a matrix")
    shape = tuple(int(v) for v in read_bytes(spec, 0, spec.nbytes).view("<i8" if spec.dtype == "I64" else "<i4"))
    if min(shape) <= 0:
        raise parts.bad(spec.name, f"holds {list(shape)}")
    return shape


def _packed_rows(words: TensorSpec, scales: Grid, zeros: Grid | TensorSpec | None, order: Array | None,
                 numbers: tuple[int, int], start: int, stop: int) -> Array:  # fmt: skip
    bits, width = numbers
    values = unpack(read_rows(words, start, stop), bits, width).astype(np.float32)
    values -= np.float32(1 << (bits - 1))
    if isinstance(zeros, Grid) or zeros is None:
        return scaled(values, scales, zeros, start, order)
    # the zero points are packed along the rows, and rows come in multiples of 32, which fill whole words
    packed = read_rows(zeros, start * bits // 32, -(-stop * bits // 32))
    offsets = unpack(packed.T, bits, stop - start).T.astype(np.float32) - np.float32(1 << (bits - 1))
    if order is not None:
        values -= offsets[:, order]
    else:
        values -= offsets if scales.columns == 1 else np.repeat(offsets, scales.block[1], axis=1)[:, :width]
    return scaled(values, scales, None, start, order)
