"""fp32 rows to the bytes of a ggml type.

F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, TQ1_0, TQ2_0 and MXFP4 ("simple" types) need nothing but numpy, through
the ``gguf`` package. The K and I quants go through llama.cpp's own C routine, which the optional ``xllamacpp`` brings
(``pip install 'weightsmith[gguf]'``). Where that is there it does the simple types too, since it is faster and, for
these, gives the same bytes: whether the extra is installed never changes what is written.

What quantising the decoded values of a tensor to its own type again gives (measured on normal values of spread 0.02;
tested in ``tests/test_gguf_write.py``):

============================================================  ======================================================
F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, TQ*, MXFP4      every byte again
Q4_K                                                          99.98% of the bytes
Q2_K, Q5_K, IQ4_NL, IQ4_XS                                    more than 99%; the second time everything again, or nearly
Q6_K                                                          96.8% of the bytes, and every value
IQ2_S, IQ3_S, IQ3_XXS, Q3_K                                   90 to 99%
IQ1_*, IQ2_XS, IQ2_XXS                                        95 to 98%
============================================================  ======================================================

So an edit of a K or I quant must not touch blocks that it leaves alone, and :mod:`.gguf_edit` copies those.

Accepted trade-offs: IQ1_S, IQ2_XS and IQ2_XXS want an importance matrix, which is not known here, so every weight
counts the same. All types but F32 and BF16 refuse a weight beyond 65504, the largest fp16, though a few could hold it.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from functools import cache
from typing import Any

import numpy as np

from ..errors import MissingExtra, NonFinite, ShapeMismatch, UnsupportedModel
from . import gguf, safetensors
from .gguf import Array

#: ggml type name -> (id, elements per block, bytes per block)
BLOCKS = {name: (number, elements, nbytes) for number, (name, elements, nbytes) in gguf.GGML_TYPES.items()}
#: types that numpy alone can write
SIMPLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4")
#: types that need the C routine
BY_C = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
        "IQ4_NL", "IQ4_XS")  # fmt: skip
_UNWEIGHTED = ("IQ1_S", "IQ2_XXS", "IQ2_XS")  # the C routine aborts without an importance matrix
_PLAIN = ("F32", "F16", "BF16")
_LARGEST = {"F32": math.inf, "BF16": 3.38e38}


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of one row of ``columns`` elements.

    Raises:
        ShapeMismatch: the row is no whole number of blocks.
        UnsupportedModel: no such ggml type.
    """
    if kind not in BLOCKS:
        raise UnsupportedModel(f"ggml type {kind!r} is not known here")
    _, elements, nbytes = BLOCKS[kind]
    if columns % elements:
        raise ShapeMismatch(f"rows of {columns} don't fit the blocks of {elements} of {kind}")
    return columns // elements * nbytes


def require_type(kind: str, where: object = None) -> None:
    """Refuse, before anything is written, a type that can't be written here and now.

    Raises:
        MissingExtra: xllamacpp is needed and not installed.
        UnsupportedModel: the type never holds weights, or nothing can write it.
    """
    if kind in SIMPLE:
        return
    if kind not in BY_C:
        raise UnsupportedModel(f"tensors of ggml type {kind} can't be written", where=where,
                               hint=f"types that can: {', '.join((*SIMPLE, *BY_C))}")  # fmt: skip
    if _library() is None:
        raise MissingExtra(f"writing {kind} needs llama.cpp's routines", where=where,
                           hint="pip install 'weightsmith[gguf]'")  # fmt: skip


def quantize_rows(values: Array, kind: str) -> Array:
    """Stored bytes of fp32 ``values [n, in]`` as ggml type ``kind``: ``uint8 [n, bytes per row]``.

    Safe to call from several threads at once; the lock is released while it works.

    Raises:
        NonFinite: NaN, infinity, or a value that the type can't hold.
        ShapeMismatch: the rows are no whole number of blocks.
        MissingExtra, UnsupportedModel: as :func:`require_type`.
    """
    require_type(kind)
    width = row_bytes(kind, values.shape[1])
    if not values.size:
        return np.empty((len(values), width), np.uint8)
    values = np.ascontiguousarray(values, np.float32)
    largest = max(float(values.max()), -float(values.min()))  # NaN if any value is
    if not largest <= _LARGEST.get(kind, 65504.0) or math.isinf(largest):
        raise NonFinite(f"a weight of {largest:g} can't be written as {kind}")
    if kind in _PLAIN:
        stored = safetensors.f32_to_bf16(values) if kind == "BF16" else values.astype("<f4" if kind == "F32" else "<f2")
        return np.asarray(stored).view(np.uint8).reshape(len(values), width)
    library = _library()
    return _by_gguf(values, kind) if library is None else _by_c(library, values, kind, width)


def _by_gguf(values: Array, kind: str) -> Array:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if kind in ("Q4_0", "Q5_0"):  # of a block of zeros it would take the scale's sign from minus zero, which C does not
        values = values + np.float32(0.0)
    with np.errstate(all="ignore"):
        return np.asarray(quantize(values, GGMLQuantizationType[kind]), np.uint8)


def _by_c(library: Any, values: Array, kind: str, width: int) -> Array:
    rows, columns = values.shape
    out = np.empty((rows, width), np.uint8)
    weights = np.ones(columns, np.float32) if kind in _UNWEIGHTED else None
    wrote = library.ggml_quantize_chunk(
        BLOCKS[kind][0], values.ctypes.data, out.ctypes.data, 0, rows, columns,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    if wrote != out.nbytes:
        raise UnsupportedModel(f"llama.cpp wrote {wrote} bytes of {kind} where {out.nbytes} were expected",
                               hint="install the version of xllamacpp that weightsmith[gguf] names")  # fmt: skip
    return out


@cache
def _library() -> Any:
    """llama.cpp's C library out of xllamacpp, or ``None`` where it is not installed or does not do as expected."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when it loads: idle threads must not spin
    try:
        package = importlib.import_module("xllamacpp")
        library = ctypes.CDLL(package.xllamacpp.__file__)
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
    except (ImportError, OSError, AttributeError):
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    probe = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    same = np.array_equal(_by_c(library, probe, "Q8_0", 34), _by_gguf(probe, "Q8_0"))
    return library if same else None
