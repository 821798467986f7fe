"""Arrays that joblib writes between the opcodes of a pickle: their bytes are skipped as joblib's own reader skips them."""

from __future__ import annotations

import re

from ...errors import LimitExceeded
from .pickle_machine import Machine
from .pickle_values import Global, Held, Made, Opaque, PickleEnds, Value

_WRAPPERS = {"joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle"}
_DTYPE = re.compile(r"[<>=|]?([biufcSaUVmMOB?])(\d{0,9})")
_DEPTH = 8


class Arrays:
    """Stands in for joblib's wrapper of an array: reads on behind it. ``count`` is how many there were."""

    def __init__(self) -> None:
        self.count = self.depth = 0

    def after_build(self, machine: Machine, made: Made) -> Value:
        """The array that takes the wrapper's place, with its bytes read; anything else stays itself.

        Raises:
            PickleEnds: fewer bytes than the array has.
            LimitExceeded: an element type that is not known here.
        """
        if not _is_wrapper(made):
            return made
        self.count += 1
        if machine.frame_end > machine.cursor.position:
            machine.odd("an array's bytes are announced in the middle of a frame")
        machine.frame_end = 0
        state = made.state if isinstance(made.state, Held) else Held("dict", [])
        if state.cut or not all(isinstance(k, str) for k, _ in state.pairs()):
            raise LimitExceeded("an array that is not described by plain names")
        fields = dict(state.pairs())
        itemsize = _itemsize(fields.get("dtype"))
        if itemsize < 0:
            self._objects(machine)
            return Opaque("array of objects")
        if fields.get("numpy_array_alignment_bytes") is not None:
            machine.cursor.skip(machine.cursor.take(1)[0])
        machine.cursor.skip(_elements(fields.get("shape")) * itemsize)
        return Opaque("array")

    def _objects(self, machine: Machine) -> None:
        """An array of objects is a pickle of its own in the middle of this one."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise LimitExceeded(f"arrays of objects nested deeper than {_DEPTH}")
        inner = Machine(machine.cursor, machine.witness, after_build=self.after_build)
        inner.items, inner.kept, inner.objects = machine.items, machine.kept, machine.objects
        stream = inner.run()
        machine.items, machine.kept, machine.objects = inner.items, inner.kept, inner.objects
        self.depth -= 1
        for what in stream.odd:
            machine.odd(what)
        if not stream.stopped:
            raise PickleEnds(f"in an array of objects: {stream.problem}")


def _elements(shape: Value) -> int:
    parts = shape if isinstance(shape, tuple) else ()
    total = 1
    for part in parts:
        number = part if isinstance(part, int) else _scalar(part)
        if number < 0:
            raise PickleEnds("an array of a negative size")
        total *= number
        if total >= 1 << 62:
            raise PickleEnds("an array larger than any file")
    return total


def _scalar(value: Value) -> int:
    """A whole number that numpy wrote as a scalar."""
    raw = value.args[1] if isinstance(value, Made) and isinstance(value.args, tuple) and len(value.args) == 2 else None
    if not isinstance(raw, bytes) or len(raw) > 8:
        raise LimitExceeded("an array whose shape is not written as numbers")
    return int.from_bytes(raw, "little", signed=True)


def _is_wrapper(made: Made) -> bool:
    """Whether an object is joblib's wrapper, however it was made."""
    kind = made.func
    if isinstance(kind, Global) and kind.name in ("_reconstructor", "__newobj__") and isinstance(made.args, tuple) and made.args:
        kind = made.args[0]
    return isinstance(kind, Global) and kind.module in _WRAPPERS and kind.name == "NumpyArrayWrapper"


def _itemsize(dtype: Value) -> int:
    """Bytes of an element; -1 for objects. Name and state have to agree: numpy believes now one, now the other.

    Raises:
        LimitExceeded: a type that is not known here.
    """
    plain = isinstance(dtype, Made) and dtype.is_a("numpy", "dtype") and isinstance(dtype.args, tuple) and dtype.args
    name = dtype.args[0] if plain else None
    found = _DTYPE.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise LimitExceeded("an array of a type that is not known here")
    kind, size = found[1], int(found[2] or 0)
    size = size * 4 if kind == "U" else 1 if kind == "?" else size
    state = dtype.state
    if state is not None:
        if not isinstance(state, tuple) or len(state) < 8 or not all(type(state[n]) is int for n in (5, 7)):
            raise LimitExceeded(f"an array of type {name!r} in a form that is not known here")
        objects = bool(state[7] & 1)
        if (objects and kind not in "OV") or (kind == "O" and not objects) or (kind in "SaUV" and state[5] not in (-1, size)):
            raise LimitExceeded(f"an array of type {name!r} that describes itself in two ways")
        if objects:
            return -1
    elif kind in "VO":
        raise LimitExceeded(f"an array of type {name!r} without its description")
    if not size and kind not in "SaUV":
        raise LimitExceeded(f"an array of type {name!r}, whose size is not written")
    return size
