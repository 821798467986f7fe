"""Tensors and storages as torch's pickles describe them: are they where they are said to be, and what do they hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...found import Finding
from ..items import Folder, Item
from ..listing import shown
from ..rules import Rule
from ..values import Values, unit_of
from .pickle_judge import FOREIGN_ID, Judge
from .pickle_values import Global, Held, Made, Pers, PickleEnds, Value, rendered

STORAGE_SIZE = Rule(
    "torch-storage-size", "broken", "A tensor's bytes are missing, or not as many as the pickle says",
    "The file is cut off, was put together by hand, or shows one loader other data than another.",
    "Fetch it again and compare its digest with the publisher's.",
)  # fmt: skip
OUTSIDE = Rule(
    "torch-tensor-outside", "broken", "A tensor reaches beyond its storage",
    "Its shape, strides and offset describe values that are not in the file. Loaders refuse it; a careless one reads "
    "foreign memory.",
    "Do not load it; ask the publisher.",
    ("https://cwe.mitre.org/data/definitions/125.html",),
)  # fmt: skip
NOT_FINITE = Rule(
    "torch-state-not-finite", "note", "A stored state holds NaN or infinity",
    "A training that is continued from it goes wrong. The model's own weights are judged apart from this.",
    "Continue the training from an earlier checkpoint.",
)  # fmt: skip
SCRIPT = Rule(
    "torchscript", "suspicious", "A TorchScript program",
    "The archive holds code that torch runs when the model is called, and some of it when it is loaded. It is not Python, but "
    "it can read and write files. Loaders of weights refuse it.",
    "Read the code that the archive holds before you run it, or ask for the weights alone.",
    ("https://github.com/pytorch/pytorch/security/policy",),
)  # fmt: skip
DIFFER = Rule(
    "torch-readers-differ", "broken", "A torch archive in which two readers find different weights",
    "It holds several pickles, names that differ in case only, or members that one of the readers can't unpack: what was "
    "checked with one program is not what another loads.",
    "Do not use it; ask the publisher for a file that torch wrote.",
    ("CVE-2025-1889", "https://cwe.mitre.org/data/definitions/436.html"),
)  # fmt: skip
UNUSED = Rule(
    "torch-unused-member", "suspicious", "A member of a torch archive that no tensor uses",
    "Torch writes the storages that its pickle refers to and a few small records. Anything else was put there by something else.",
    "Ask the publisher what it is for.",
)  # fmt: skip
DAMAGED = Rule(
    "torch-storage-damaged", "broken", "The bytes of a tensor are not what the archive's own checksum says",
    "Torch loads them without looking at the checksum: the model works, with other numbers than were saved.",
    "Fetch the file again.",
)  # fmt: skip
RULES = (STORAGE_SIZE, OUTSIDE, NOT_FINITE, SCRIPT, DIFFER, UNUSED, DAMAGED)

_MOST_VIEWS = 64  # tensors of one storage whose values are looked at
_MOST_SAID = 10

#: storage class -> dtype of the safetensors specification ("" when it has none), bytes of an element
_STORAGES = {
    "FloatStorage": ("F32", 4), "DoubleStorage": ("F64", 8), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1), "ComplexFloatStorage": ("C64", 8), "ComplexDoubleStorage": ("C128", 16),
    "QInt8Storage": ("I8", 1), "QUInt8Storage": ("U8", 1), "QInt32Storage": ("I32", 4), "QUInt4x2Storage": ("U8", 1),
    "QUInt2x4Storage": ("U8", 1), "UntypedStorage": ("", 1),
}  # fmt: skip
_DTYPES = {
    "float32": ("F32", 4), "float": ("F32", 4), "float64": ("F64", 8), "double": ("F64", 8), "float16": ("F16", 2),
    "half": ("F16", 2), "bfloat16": ("BF16", 2), "int64": ("I64", 8), "long": ("I64", 8), "int32": ("I32", 4), "int": ("I32", 4),
    "int16": ("I16", 2), "short": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1), "uint16": ("U16", 2),
    "uint32": ("U32", 4), "uint64": ("U64", 8), "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1), "float8_e8m0fnu": ("F8_E8M0", 1),
    "complex64": ("C64", 8), "complex128": ("C128", 16),
}  # fmt: skip


@dataclass(slots=True)
class Storage:
    """One storage: its key in the file, its dtype, how many bytes it has; ``views`` are the tensors that were found in it:
    (first byte, end, dtype) to names."""

    key: str
    dtype: str
    itemsize: int
    nbytes: int
    views: dict[tuple[int, int, str], list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Tensor:
    storage: Storage
    dtype: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class State:
    """What one pickle of torch describes: its storages by key, its named tensors, and what is wrong with them."""

    def __init__(self, judge: Judge, top: Value, file: str) -> None:
        self.file = file
        self.storages: dict[str, Storage] = {}
        self.findings: list[Finding] = []
        self._said: dict[str, int] = {}
        for pid in judge.pids:
            self._storage(pid)
        self.declared: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._named(top)
        for name, args in judge.tensors:
            self._tensor(Made(Global("torch._utils", name), args, "REDUCE"))

    def _say(self, rule: Rule, message: str, evidence: Value = None) -> None:
        self._said[rule.name] = self._said.get(rule.name, 0) + 1
        if self._said[rule.name] <= _MOST_SAID:
            shown = "" if evidence is None else rendered(evidence)
            self.findings.append(rule.found(message, file=self.file, evidence=shown))

    def _storage(self, pid: Value) -> None:
        parts = pid if isinstance(pid, tuple) else ()
        if parts[:1] == ("module",) and len(parts) == 4:
            return  # a class with its source, as torch 0.x wrote it; its name is judged like any other
        known = _STORAGES.get(parts[1].name) if len(parts) in (5, 6) and isinstance(parts[1], Global) else None
        if known is None or parts[0] != "storage" or not isinstance(parts[2], str) or not _count(parts[4]):
            self._say(FOREIGN_ID, "a persistent id that names no storage", pid)
            return
        dtype, itemsize = known
        found = Storage(parts[2], dtype, itemsize, parts[4] * itemsize)
        before = self.storages.setdefault(found.key, found)
        if before.nbytes != found.nbytes:
            self._say(STORAGE_SIZE, f"storage {found.key!r} is said to have {before.nbytes} and {found.nbytes} bytes")
            before.nbytes = max(before.nbytes, found.nbytes)

    # -- tensors ------------------------------------------------------------------------------------------

    def _named(self, top: Value) -> None:
        """The tensors of a state dict, by name."""
        for key, value in _entries(top):
            if not isinstance(key, str) or not isinstance(value, Made):
                continue
            tensor = self._tensor(value, quiet=True)
            if tensor is None:
                continue
            self.declared[key] = (tensor.dtype, tensor.shape)
            begin = tensor.offset * tensor.itemsize
            end = begin + math.prod(tensor.shape) * tensor.itemsize
            if _dense(tensor.shape, tensor.stride) and end > begin and end <= tensor.storage.nbytes:
                views = tensor.storage.views
                if len(views) < _MOST_VIEWS or (begin, end, tensor.dtype) in views:
                    views.setdefault((begin, end, tensor.dtype), []).append(key)

    def _tensor(self, value: Value, *, quiet: bool = False) -> _Tensor | None:
        """A tensor that a call makes; what is wrong with it is said unless ``quiet``."""
        for _ in range(4):  # a parameter around a tensor, a subclass around that
            if not isinstance(value, Made) or not isinstance(value.func, Global) or not isinstance(value.args, tuple):
                return None
            name, args = value.func.name, value.args
            if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and args:
                value = args[0]
            elif name == "_rebuild_from_type_v2" and len(args) == 4:
                value = Made(args[0], args[2], "REDUCE")
            elif name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor") and len(args) >= 4:
                return self._view(name, args, quiet)
            else:
                return None
        return None

    def _view(self, name: str, args: tuple[Value, ...], quiet: bool) -> _Tensor | None:
        pers, offset, shape, stride = args[:4]
        shape, stride = (_ints(v.args[0] if isinstance(v, Made) and v.args else v) for v in (shape, stride))
        storage = self._of(pers)
        if storage is None or shape is None or stride is None or not _count(offset) or len(shape) != len(stride):
            if not quiet and not (isinstance(pers, Made) and storage is None):
                self._say(OUTSIDE, "a tensor whose storage, shape or strides are none", args)
            return None
        dtype, itemsize = storage.dtype, storage.itemsize
        if name == "_rebuild_tensor_v3" and len(args) > 6 and isinstance(args[6], Global):
            dtype, itemsize = _DTYPES.get(args[6].name, ("", storage.itemsize))
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if all(shape) else offset - 1
        if not quiet and (last + 1) * itemsize > storage.nbytes and all(shape):
            self._say(OUTSIDE, f"a tensor of shape {str(shape)[:100]} ends at byte {(last + 1) * itemsize} of a storage of "
                      f"{storage.nbytes}", args)  # fmt: skip
        return _Tensor(storage, dtype, itemsize, offset, shape, stride)

    def _of(self, pers: Value) -> Storage | None:
        """The storage that a persistent id stands for."""
        pid = pers.pid if isinstance(pers, Pers) else None
        return self.storages.get(pid[2]) if isinstance(pid, tuple) and len(pid) > 4 and isinstance(pid[2], str) else None

    # -- values -------------------------------------------------------------------------------------------

    def look(self, storage: Storage, pieces: Iterable[bytes], item: Item, folder: Folder) -> Iterator[Finding]:
        """Take in a storage's bytes: facts of its named tensors, and for others whether all values are finite.

        Raises:
            FormatError: what ``pieces`` raises.
        """
        spans = {span: self._values(span, names[0]) for span, names in storage.views.items() if span[2] not in ("", "C128")}
        whole = Values(storage.dtype) if not spans and storage.dtype in ("F32", "F16", "BF16", "F64") else None
        position = 0
        for block in _blocks(pieces):
            end = position + block.size
            for (begin, stop, dtype), values in spans.items():
                part = block[max(begin - position, 0) : max(min(stop, end) - position, 0)]
                if part.size and part.size % unit_of(dtype, False) == 0:
                    values.update(part)
            if whole is not None and block.size % storage.itemsize == 0:
                whole.update(block)
            position = end
        if position != storage.nbytes:
            yield STORAGE_SIZE.found(f"storage {storage.key[:60]!r} has {position} bytes, its tensors {storage.nbytes}",
                                     file=self.file)  # fmt: skip
            return
        for span, values in spans.items():
            facts = values.facts()
            for name in storage.views[span]:
                folder.tensors[item.name, name] = facts
        if whole is not None and position and not whole.facts().finite:
            yield NOT_FINITE.found(f"storage {storage.key[:60]!r}", file=self.file)

    def _values(self, span: tuple[int, int, str], name: str) -> Values:
        """What takes in the bytes of one view."""
        begin, stop, dtype = span
        rows = math.prod(self.declared[name][1][:-1]) if name in self.declared else 0
        return Values(dtype, size=stop - begin, row=(stop - begin) // rows if rows > 1 else 0)

    def declare(self, item: Item, folder: Folder) -> None:
        """Tell the folder's other scanners of the named tensors."""
        if self.declared:
            folder.declared[item.name] = {name: spec for name, spec in self.declared.items() if spec[0]}


def element_size(kind: Value) -> int:
    """Bytes of an element of a storage class.

    Raises:
        PickleEnds: no storage class.
    """
    known = _STORAGES.get(kind.name) if isinstance(kind, Global) else None
    if known is None:
        raise PickleEnds("a storage of no known class")
    return known[1]


def of_pickle(judge: Judge, top: Value, item: Item) -> State:
    """The state that a pickle describes."""
    return State(judge, top, shown(item.name))


def _blocks(pieces: Iterable[bytes]) -> Iterator[Any]:
    """Pieces of any size as arrays of bytes, all but the last of a multiple of 16."""
    left = b""
    for piece in pieces:
        data = left + piece if left else piece
        cut = len(data) & ~15
        left = data[cut:]
        if cut:
            yield np.frombuffer(data, np.uint8, cut)
    if left:
        yield np.frombuffer(left, np.uint8)


def _entries(top: Value) -> Iterator[tuple[Value, Value]]:
    """Keys and values of a dict or OrderedDict."""
    if isinstance(top, Held) and top.kind == "dict":
        yield from top.pairs()
    elif isinstance(top, Made) and isinstance(top.func, Global) and top.func.name == "OrderedDict":
        yield from zip(top.items[::2], top.items[1::2], strict=False)
        first = top.args[0] if isinstance(top.args, tuple) and top.args else None
        for pair in first.items if isinstance(first, Held) else ():
            parts = pair.items if isinstance(pair, Held) else pair
            if isinstance(parts, (list, tuple)) and len(parts) == 2:
                yield parts[0], parts[1]


def _count(value: Value) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _ints(value: Value) -> tuple[int, ...] | None:
    if isinstance(value, Held):
        value = tuple(value.items)
    return value if isinstance(value, tuple) and len(value) <= 64 and all(_count(v) for v in value) else None


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements fill their range without holes, in some order of the axes."""
    expected = 1
    for step, size in sorted((t, n) for n, t in zip(shape, stride, strict=True) if n != 1):
        if step != expected:
            return False
        expected *= size
    return True
