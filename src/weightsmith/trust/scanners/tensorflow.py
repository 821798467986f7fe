"""TensorFlow graphs and TFLite files: operators that read or write files or call Python."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import WHOLE, Item
from ..listing import shown
from ..rules import Rule
from .protobuf import BYTES, FIXED32, VARINT, Messages

OPERATOR = Rule(
    "tensorflow-file-operator", "suspicious", "A graph with operators that touch files or call Python",
    "Operators of a graph run with the rights of whoever runs the model: they can read any file into a tensor, write any file, "
    "or call a Python function that was registered.",
    "Don't run it. Ask for weights without a graph.",
    ("https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md",),
)  # fmt: skip
BROKEN = Rule(
    "tensorflow-broken", "broken", "A graph that can't be read to its end",
    "A field leaves the message that it belongs to, or an offset leaves the file.",
    "Fetch it again.",
)  # fmt: skip
RULES = (OPERATOR, BROKEN)

_WRITES = frozenset({"WriteFile", "LoadLibrary", "ShellExecute", "PrintV2"})
#: a name in text that is not one plain string: readers take escapes, and put strings together that follow one another
_ODD = re.compile(rb"""\b(?:op|op_type)\s*:(?!\s*(?:"\w+"|'\w+')(?!\s*["'#]))""")
_READS = frozenset({
    "ReadFile", "PyFunc", "EagerPyFunc", "PyFuncStateless", "MatchingFiles", "ReadWholeFile", "FixedLengthRecordReader",
    "WholeFileReader", "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2", "SaveSlices", "LMDBReader",
})  # fmt: skip
#: message -> field -> message, down to the nodes of graphs and of functions
_SCHEMA: dict[str, dict[int, str]] = {
    "saved model": {2: "meta"}, "meta": {2: "graph"}, "graph": {1: "node", 2: "library"}, "library": {1: "function"},
    "function": {3: "node"}, "node": {},
}  # fmt: skip


def classify(messages: Messages, item: Item) -> str:
    """What a protocol buffer is, by its fields: ``saved model``, ``graph``, ``sentencepiece``, ``core ml``, ``keras metadata``,
    ``fingerprint``; ``""`` when it is none of these."""
    top: dict[int, int] = {}
    first: dict[int, tuple[int, int]] = {}
    try:
        for count, field in enumerate(messages.fields()):
            top.setdefault(field.number, field.wire)
            first.setdefault(field.number, (field.start, field.end))
            if count > 50_000 and not {1, 2} - top.keys():
                break
    except FormatError:
        return ""
    name = item.basename
    small = top.keys() <= {1, 2, 3, 4, 5}
    if top.get(1) == BYTES and small and _fields(messages, first[1]) <= {(1, BYTES), (2, FIXED32), (3, VARINT)}:
        return "sentencepiece" if top.keys() & {2, 3} else ""
    if top.get(1) == VARINT and top.get(2) == BYTES and top.keys() <= {1, 2}:
        inner = _fields(messages, first[2])
        return "saved model" if (2, BYTES) in inner else ""
    if top.get(1) == BYTES and small and {(1, BYTES), (2, BYTES)} <= _fields(messages, first[1]):
        return "keras metadata" if name == "keras_metadata.pb" else "graph"
    if top.get(1) == VARINT and top.get(2) == BYTES and max(top) >= 200 and name.endswith(".mlmodel"):
        return "core ml"
    if name == "fingerprint.pb" and item.size < 512:
        return "fingerprint"
    return "keras metadata" if name == "keras_metadata.pb" else ""


def _fields(messages: Messages, span: tuple[int, int]) -> set[tuple[int, int]]:
    try:
        return {(f.number, f.wire) for f in messages.fields(*span)}
    except FormatError:
        return {(0, 0)}


def scan_graph(item: Item, kind: str) -> Iterator[Finding]:
    """Findings about the operators of a graph or saved model."""
    found: dict[str, str] = {}
    try:
        with item.open() as file:
            messages = Messages(file, item.size)
            pending = [(kind, 0, item.size)]
            while pending:
                name, start, end = pending.pop()
                children = []
                for field in messages.fields(start, end):
                    if field.wire == BYTES and field.number in _SCHEMA[name]:
                        children.append((_SCHEMA[name][field.number], field.start, field.end))
                    elif name == "node" and field.number == 2 and field.wire == BYTES:
                        operator = messages.text(field, 100)
                        if operator in _WRITES | _READS and operator not in found and not _prints(operator, messages, start, end):
                            found[operator] = _sample(messages, start, end)
                pending += reversed(children)
    except FormatError as error:
        yield BROKEN.found(error.message, file=shown(item.name))
    yield from _operators(found, item)


def _prints(operator: str, messages: Messages, start: int, end: int) -> bool:
    """Whether a node prints, and not into a file."""
    if operator != "PrintV2":
        return False
    messages.file.seek(start)
    if end - start > WHOLE:
        raise LimitExceeded(f"a node of {end - start} bytes")
    return b"file://" not in messages.file.read(end - start)


def _sample(messages: Messages, start: int, end: int) -> str:
    """The readable part of a node."""
    messages.file.seek(start)
    raw = messages.file.read(min(end - start, 400))
    return " ".join(w.decode() for w in re.findall(rb"[ -~]{3,}", raw))


def _operators(found: dict[str, str], item: Item) -> Iterator[Finding]:
    for operator, sample in sorted(found.items()):
        yield OPERATOR.found(f"the operator {operator}", file=shown(item.name), place=f"operator {operator}", evidence=sample,
                             severity="malicious" if operator in _WRITES else None)  # fmt: skip


def scan_text(item: Item) -> Iterator[Finding]:
    """A graph or saved model in the text form of protocol buffers."""
    data = item.read()
    found: dict[str, str] = {}
    for hit in re.finditer(rb"""\b(?:op|op_type)\s*:\s*["'](\w+)["']""", data):
        if (operator := hit[1].decode()) in _WRITES | _READS:
            found[operator] = hit[0].decode()
    if not (b"file:" in data or b"\\" in data):
        found.pop("PrintV2", None)  # which prints
    if odd := _ODD.search(data):
        yield OPERATOR.found("an operator whose name is not written in one piece", file=shown(item.name),
                             place=f"byte {odd.start()}", evidence=repr(data[odd.start() :][:120])[2:-1])  # fmt: skip
    yield from _operators(found, item)


def scan_tflite(item: Item) -> Iterator[Finding]:
    """A TFLite file: its root lies inside, and none of its operators is one of TensorFlow's that touch files."""
    root = int.from_bytes(item.head[:4], "little")
    if not 8 <= root <= item.size - 4:
        yield BROKEN.found("its root lies outside the file", file=shown(item.name), place="byte 0")
        return
    names = b"|".join(f"Flex(?:{'|'.join(sorted(group))})".encode() for group in (_WRITES, _READS))
    found: dict[str, str] = {}
    with item.open() as file:
        kept = b""
        while block := file.read(1 << 20):
            for hit in re.finditer(names, kept + block):
                found[hit[0].decode().removeprefix("Flex")] = hit[0].decode()
            kept = block[-64:]
    yield from _operators(found, item)
