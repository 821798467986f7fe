"""Values of arrays outside of the formats that the pass over the bytes knows: NumPy's files and ONNX models.

These formats hold data and constants as well as weights. Only what is called like a weight is judged as one; of anything
else it is said that it holds no number where it does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from math import prod
from typing import Any, BinaryIO

import numpy as np

from ...found import Finding
from ..listing import shown
from ..rules import Rule
from ..values import Measured, Values
from .numbers import NOT_FINITE, Held, held_as, judged

ARRAY = Rule(
    "array-not-finite", "note", "NaN or infinity in an array that nothing calls a weight",
    "Data has gaps, and masks are made of infinities. Among weights one such value spreads to every output.",
    "Nothing, if you know what the array is for.",
)  # fmt: skip
RULES = (ARRAY,)

FEWEST = 16  # elements; constants of a few hold limits and infinities
_BLOCK = 1 << 20
_WEIGHT = re.compile(r"(?:^|[._/:])(?:weight|bias|kernel|gamma|beta)s?(?::0)?$", re.IGNORECASE)
#: files of NumPy that hold a model's weights, whatever each of them is called
_OF_WEIGHTS = re.compile(r"(?:weights|model|params|adapters?)(?:[._-]?\d{1,5}(?:-of-\d{1,5})?)?\.npz", re.IGNORECASE)
_FLOATS = {2: "F16", 4: "F32", 8: "F64"}
_BITS = {"f": _FLOATS, "i": {1: "I8", 2: "I16", 4: "I32", 8: "I64"}, "u": {1: "U8", 2: "U16", 4: "U32", 8: "U64"},
         "b": {1: "BOOL"}}  # fmt: skip


def check_array(name: str, file: BinaryIO, dtype: Any, shape: tuple[int, ...], size: int, ordered: bool) -> Iterator[Finding]:
    """Findings about one array of NumPy whose bytes come next in ``file``; ``ordered`` is whether its rows lie whole.

    ``name`` is the item's, as in ``weights.npz!layers.0.weight.npy``.
    """
    known = _BITS.get(dtype.kind, {}).get(dtype.itemsize)
    if known is None or prod(shape) < FEWEST:
        return
    facts = measured(file, known, size, shape if ordered else (), swapped=np.dtype(dtype).newbyteorder("<") != dtype)
    outer, _, inner = name.rpartition("!")
    array = inner.rpartition("/")[2].removesuffix(".npy")
    of_weights = bool(_OF_WEIGHTS.fullmatch(outer.rpartition("/")[2].rpartition("!")[2]))
    yield from check_values([held_as(name, array, known, shape, facts)], name, of_weights)


def check_values(tensors: list[Held], name: str, of_weights: bool = False) -> Iterator[Finding]:
    """Findings about the tensors of one file; with ``of_weights`` none of them is data."""
    weights = [t for t in tensors if t.matrix or _WEIGHT.search(t.name) or (t.facts.constant and len(t.shape) > 1)
               or (of_weights and not t.facts.finite)]  # fmt: skip
    yield from judged(weights)
    known = set(map(id, weights))
    for t in tensors:
        if not t.facts.finite and id(t) not in known:
            infinite = t.facts.peak is not None and math.isinf(t.facts.peak)
            rule = ARRAY if infinite or ".onnx" not in name else NOT_FINITE
            yield rule.found(f"{t.name[:120]} ({t.dtype} {list(t.shape[:8])}) holds {'infinity' if infinite else 'NaN'}",
                             file=shown(name), place=f"tensor {t.name[:120]!r}")  # fmt: skip


def measured(file: BinaryIO, dtype: str, size: int, shape: tuple[int, ...], *, swapped: bool = False) -> Measured:
    """What the next ``size`` bytes of a file hold; rows are compared where there is a shape."""
    rows = prod(shape[:-1]) if shape else 0
    values = Values(dtype, digested=False, size=size, row=size // rows if rows > 1 else 0)
    left = size
    while left and (data := file.read(min(_BLOCK, left))):
        left -= len(data)
        block = np.frombuffer(data, np.uint8)[: len(data) // values.unit * values.unit]
        if swapped:
            block = block.view(f"u{values.unit}").byteswap().view(np.uint8)
        if block.size:
            values.update(block)
    return values.facts()
