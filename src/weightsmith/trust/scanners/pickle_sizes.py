"""How much memory the calls of a pickle ask for: sizes that are only numbers, and values that are copied over and over.

What a stream holds itself is no more than its bytes. Everything is counted over the whole stream, since fifty requests for two
gigabytes each take what one request for a hundred does.
"""

from __future__ import annotations

import re
from typing import Any

from .pickle_values import Global, Held, Long, Made, Opaque, Value

MUCH = 1 << 30  # bytes that are asked for beyond those of the stream
_CAP = 1 << 50  # of one request: more makes no difference
_DEPTH = 16
_OF_A_NUMBER = 64  # bytes of a number in a set
_NUMBERS = re.compile(r"\d{1,15}")
#: which argument is a size or a shape
_SHAPE_AT = {"bytes": 0, "bytearray": 0, "ndarray": 0, "recarray": 0, "matrix": 0, "memmap": 0, "MaskedArray": 0, "_reconstruct": 1,
             "_mareconstruct": 2}  # fmt: skip
_TORCH = re.compile(r"\w*(?:Tensor|Storage)", re.ASCII)
_FILLED = frozenset({"bytes", "bytearray", "set", "frozenset", "deque", "Counter", "OrderedDict", "tuple", "list", "dict", "str",
                     "encode"})  # fmt: skip


class Asked:
    """What one stream has asked for so far, and the greatest single request."""

    __slots__ = ("greatest", "read", "said", "total")

    def __init__(self) -> None:
        self.total = self.greatest = self.read = 0
        self.said = False

    def call(self, func: Global, args: tuple[Value, ...], at: int) -> int:
        """Take in a call: how many bytes were asked for until then if that is now too much, 0 otherwise and ever after."""
        return self._add(self._needs(func, args), at)

    def state(self, state: Value, at: int) -> int:
        """Take in a state, likewise: arrays copy their bytes, or make room for objects."""
        if not isinstance(state, tuple):
            return 0
        size = sum(_length(part) for part in state[:8] if isinstance(part, bytes | str | Long))
        if len(state) >= 5 and isinstance(state[1], tuple) and isinstance(state[4], Held) and not state[4].cut:
            size += max(0, _product(state[1]) - len(state[4].items)) * 8
        return self._add(size, at)

    def _add(self, size: int, at: int) -> int:
        self.total += min(size, _CAP)
        self.greatest = max(self.greatest, min(size, _CAP))
        self.read = max(self.read, at)
        if self.said or self.total <= self.read + MUCH:
            return 0
        self.said = True
        return self.total

    def _needs(self, func: Global, args: tuple[Value, ...]) -> int:
        name = func.name
        if name == "_reconstructor" and len(args) == 3 and isinstance(args[1], Global):
            return self._needs(args[1], args[2:])
        shape = _SHAPE_AT.get(name)
        if shape is not None and len(args) > shape and _is_shape(args[shape]):
            return _product(args[shape]) * max([1, *(_itemsize(a) for a in args[shape + 1 : shape + 4])])
        if func.module.startswith("torch") and _TORCH.fullmatch(name):
            numbers = args and all(isinstance(a, int) for a in args)
            return 8 * (_product(args) if numbers else max([0, *(_product(a) for a in args[:2] if _is_shape(a))]))
        if name == "scalar" and len(args) == 1:
            return _itemsize(args[0])
        if name in _FILLED:
            return sum(self._copied(value, 0) for value in args[:2])
        return sum(_length(value) for value in args[:8] if isinstance(value, bytes | Long))

    def _copied(self, value: Value, depth: int) -> int:
        """What a copy of a value takes, for the least form that it could have."""
        if not isinstance(value, Made):
            return _length(value)
        if depth == _DEPTH:
            return self.greatest
        args = value.args if isinstance(value.args, tuple) else (value.args,)
        name = value.func.name if isinstance(value.func, Global) else ""
        if name == "range":
            return _range_length(args) * _OF_A_NUMBER
        if name in ("bytes", "bytearray") and args and _is_shape(args[0]):
            return _product(args[0])
        return len(value.items) + (self._copied(args[0], depth + 1) if name in _FILLED and args else 0)


def _is_shape(value: Value) -> bool:
    if isinstance(value, Opaque):
        return value.kind == "a long number"
    return isinstance(value, int | tuple) and not isinstance(value, bool)


def _product(value: Value) -> int:
    """How many elements a size or a shape has."""
    total = 1
    for number in value[:64] if isinstance(value, tuple) else (value,):
        if isinstance(number, Opaque):
            return _CAP
        if isinstance(number, int):
            total *= min(abs(number), _CAP)
            if not total:
                return 0
            total = min(total, _CAP)
    return total


def _itemsize(value: Value) -> int:
    """Bytes of an element of a NumPy type, as its text says; 1 for anything else."""
    sizes = [1]
    if isinstance(value, Made):
        if isinstance(value.state, tuple) and len(value.state) > 5 and type(value.state[5]) is int:
            sizes.append(min(value.state[5], _CAP))
        value = value.args[0] if isinstance(value.args, tuple) and value.args else None
    if isinstance(value, bytes):
        value = value[:200].decode("latin-1")
    if isinstance(value, str):
        sizes.append(_product(tuple(int(n) or 1 for n in _NUMBERS.findall(value[:200]))))
    return max(sizes)


def _range_length(args: tuple[Any, ...]) -> int:
    if any(isinstance(n, Opaque) for n in args):
        return _CAP
    if not 1 <= len(args) <= 3 or not all(isinstance(n, int) for n in args):
        return 0
    start, stop, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    return min(_CAP, max(0, (stop - start + (step - 1 if step > 0 else step + 1)) // step)) if step else 0


def _length(value: Value) -> int:
    if isinstance(value, Long):
        return value.length
    if isinstance(value, Held):
        return len(value.items)
    return len(value) if isinstance(value, bytes | str) else 0
