"""ONNX models: which files their tensors lie in, which operators they ask for, and what their metadata says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from posixpath import dirname, normpath

from ...errors import FormatError, LimitExceeded
from ...formats.safetensors import DTYPE_BITS
from ...found import Finding
from ..items import Folder, Item
from ..listing import shown
from ..rules import Rule
from .archive_rules import leads_out
from .loose_values import FEWEST, check_values, measured
from .numbers import Held, held_as
from .protobuf import BYTES, VARINT, Field, Messages

OUTSIDE = Rule(
    "onnx-outside-file", "malicious", "A tensor that is read from outside the model's folder",
    "The location of a tensor's data is absolute or climbs out with `..`. The loader reads that file of yours as weights, and who "
    "runs the model can read them back; saving the model overwrites the file.",
    "Don't load it.",
    ("CVE-2022-25882", "CVE-2024-27318", "CVE-2026-27489"),
)  # fmt: skip
MISSING = Rule(
    "onnx-data-missing", "broken", "A tensor whose data is not there",
    "The model keeps its weights in another file, and that file is missing or too short.",
    "Fetch the model again, with all of its files.",
)  # fmt: skip
BROKEN = Rule(
    "onnx-broken", "broken", "An ONNX file that can't be read to its end",
    "A field leaves the message that it belongs to. Readers stop at different places.",
    "Fetch it again.",
)  # fmt: skip
PYTHON = Rule(
    "onnx-python-operator", "suspicious", "An ONNX model that asks for an operator written in Python, or for a library",
    "The operator is code that must be installed and registered beside the model; the model decides what it is called with.",
    "Read that code, or ask for a model of standard operators.",
)  # fmt: skip
CUSTOM = Rule(
    "onnx-custom-operators", "note", "An ONNX model with operators of its own domain",
    "Standard runtimes can't run it without a library that brings these operators; the library is code.",
    "Get that library from where you get your other programs, not from the model's folder.",
)  # fmt: skip
RULES = (OUTSIDE, MISSING, BROKEN, PYTHON, CUSTOM)

_KNOWN = frozenset({
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview", "com.microsoft",
    "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc", "com.microsoft.extensions", "org.pytorch.aten",
    "com.microsoft.dml", "pkg.onnxscript.torch_lib", "pkg.onnxscript.torch_lib.common", "pkg.torch", "ai.onnx.contrib",
    "local_functions",
})  # fmt: skip
#: types of floats
_DTYPES = {1: "F32", 10: "F16", 11: "F64", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ"}
_MOST_SHAPE = 64
_CODE = frozenset({"PyOp", "PythonOp", "PythonOpGrad", "PyCustomOp", "ATenOp"})
#: message -> field number -> message; what is not listed is not entered
_SCHEMA: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function", 14: "entry"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"}, "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"}, "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "tensor": {13: "entry"}, "opset": {}, "entry": {},
}  # fmt: skip


def looks_like_model(messages: Messages) -> bool:
    """Whether the top fields are those of a model: a graph, and the version or the operator sets."""
    seen: set[tuple[int, int]] = set()
    try:
        for count, entry in enumerate(messages.fields()):
            seen.add((entry.number, entry.wire))
            if count > 10_000:
                break
    except FormatError:
        pass
    return (7, BYTES) in seen and ((8, BYTES) in seen or (1, VARINT) in seen)


@dataclass(slots=True)
class _Walk:
    item: Item
    folder: Folder
    referenced: set[str]
    domains: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    held: list[Held] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=dict)  # bytes of each file whose values were looked at


def scan_onnx(item: Item, folder: Folder, referenced: set[str]) -> Iterator[Finding]:
    """Findings of one model; the files that it reads its tensors from are added to ``referenced``."""
    walk = _Walk(item, folder, referenced)
    name = shown(item.name)
    try:
        with item.open() as file:
            yield from _messages(walk, Messages(file, item.size))
    except FormatError as error:
        yield BROKEN.found(error.message, file=name)
    yield from check_values(walk.held, item.name)
    if code := sorted(walk.operators & _CODE):
        yield PYTHON.found(f"it asks for {', '.join(code)}", file=name)
    custom = sorted(d for d in walk.domains - walk.functions if d not in _KNOWN)
    if custom:
        yield CUSTOM.found(f"operators of {', '.join(repr(d[:80]) for d in custom[:10])}", file=name)


def _messages(walk: _Walk, messages: Messages) -> Iterator[Finding]:
    """Walk all messages that can hold a tensor or a node, without recursion."""
    pending = [("model", 0, walk.item.size, 0)]
    while pending:
        kind, start, end, depth = pending.pop()
        if depth > 200:
            raise LimitExceeded("graphs inside graphs beyond any use")
        inner = _SCHEMA[kind]
        entries: list[Field] = []
        children = []
        external = False
        tensor = _Tensor()
        for entry in messages.fields(start, end):
            if entry.wire == BYTES and entry.number in inner:
                if inner[entry.number] == "entry":
                    entries.append(entry)
                else:
                    children.append((inner[entry.number], entry.start, entry.end, depth + 1))
            elif kind == "node" and entry.wire == BYTES and entry.number in (4, 7):
                (walk.operators if entry.number == 4 else walk.domains).add(messages.text(entry, 200))
            elif kind == "opset" and entry.number == 1 and entry.wire == BYTES:
                walk.domains.add(messages.text(entry, 200))
            elif kind == "function" and entry.number == 10 and entry.wire == BYTES:
                walk.functions.add(messages.text(entry, 200))
            elif kind == "tensor" and entry.number == 14 and entry.wire == VARINT:
                external = entry.value == 1
            elif kind == "tensor":
                tensor.take(entry, messages)
        pending += reversed(children)  # in the file's order, which is the fastest to read
        if entries and kind == "tensor":
            pairs = [_pair(messages, e) for e in entries]
            for value in dict.fromkeys(v for k, v in pairs if k == "location"):  # of several, readers take the first or the last
                yield from _external(walk, {**dict(pairs), "location": value}, external, tensor)
        elif tensor.data is not None:
            _look(walk, tensor, walk.item, tensor.data.start, tensor.data.size)


@dataclass(slots=True)
class _Tensor:
    """What a tensor's message says, as far as its values are concerned."""

    name: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    data: Field | None = None

    def take(self, entry: Field, messages: Messages) -> None:
        """One field of the message."""
        if entry.number == 1 and len(self.shape) < _MOST_SHAPE:
            if entry.wire == VARINT:
                self.shape = (*self.shape, entry.value)
            elif entry.wire == BYTES:
                self.shape += messages.numbers(entry, _MOST_SHAPE)
        elif entry.number == 2 and entry.wire == VARINT:
            self.dtype = _DTYPES.get(entry.value, "")
        elif entry.number == 8 and entry.wire == BYTES:
            self.name = messages.text(entry, 400)
        elif entry.wire == BYTES and entry.number in (4, 9) and entry.size:  # packed floats look like raw ones
            self.data = entry


def _look(walk: _Walk, tensor: _Tensor, item: Item, start: int, size: int) -> None:
    """Look at a tensor's values, where they are floats and as many as its shape says."""
    if walk.item.outer is not None:  # packed bytes can't be read in any order
        return
    read = walk.read.get(item.name, 0) + size
    if tensor.dtype and size * 8 == prod(tensor.shape) * DTYPE_BITS[tensor.dtype] and prod(tensor.shape) >= FEWEST and (
            start + size <= item.size and read <= 2 * item.size):  # several may share their bytes  # fmt: skip
        walk.read[item.name] = read
        with item.open() as file:
            file.seek(start)
            facts = measured(file, tensor.dtype, size, tensor.shape)
        walk.held.append(held_as(walk.item.name, tensor.name, tensor.dtype, tensor.shape, facts))


def _pair(messages: Messages, entry: Field) -> tuple[str, str]:
    key = value = ""
    for part in messages.fields(entry.start, entry.end):
        if part.wire == BYTES and part.number in (1, 2):
            text = messages.text(part)
            key, value = (text, value) if part.number == 1 else (key, text)
    return key, value


def _external(walk: _Walk, told: dict[str, str], external: bool, tensor: _Tensor) -> Iterator[Finding]:
    """One tensor whose data lies elsewhere."""
    location = told.get("location", "")
    name = shown(walk.item.name)
    place = f"external data {location[:200]!r}"
    if location.startswith("*/_ORT_MEM_ADDR_"):
        yield OUTSIDE.found("a tensor at an address in memory", file=name, place=place, evidence=location)
        return
    if (why := leads_out(location)) or "\0" in location or ".." in location.replace("\\", "/").split("/"):
        yield OUTSIDE.found(f"{location[:200]!r} is {why or 'a path that goes up'}", file=name, place=place, evidence=location)
        return
    if walk.item.outer is not None or not location or not external:
        return
    target = normpath(f"{dirname(walk.item.name)}/{location}").lstrip("/")
    walk.referenced.add(target)
    data = walk.folder.items.get(target)
    if data is None:
        if not walk.folder.single:
            yield MISSING.found(f"{location[:200]!r} is not there", file=name, place=place)
        return
    numbers = [int(told[k]) if told.get(k, "").isdecimal() and len(told[k]) < 19 else 0 for k in ("offset", "length")]
    if sum(numbers) > data.size:
        yield MISSING.found(f"{location[:200]!r} has {data.size} bytes, {sum(numbers)} are needed", file=name, place=place)
    elif tensor.dtype:
        _look(walk, tensor, data, numbers[0], numbers[1] or prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8)
