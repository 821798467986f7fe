"""Arrow and Parquet files whose schema holds a pickle: a type of Python's own, which PyArrow made anew when it opened the file.

Only schemas are looked at: the first message and the footer of Arrow files, and the schema that Parquet keeps in base64 in its
footer. The same words among the data mean nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator

import numpy as np

from ...errors import LimitExceeded
from ...found import Finding
from ..items import Item
from ..listing import shown
from ..rules import Rule

PICKLED = Rule(
    "arrow-pickled-type", "note", "A table whose column type is a pickle",
    "PyArrow before 14.0.1 unpickles it as soon as the file is opened, to read its schema even. The pickle was analysed like any "
    "other; old datasets hold arrays of several axes in this way.",
    "Use PyArrow 14.0.1 or later, or ask for the table with plain columns.",
    ("CVE-2023-47248", "https://cwe.mitre.org/data/definitions/502.html"),
)  # fmt: skip
RULES = (PICKLED,)

_NAME, _HELD = b"arrow.py_extension_type", b"ARROW:extension:metadata"
#: the name in base64, wherever it begins among the groups of three bytes, without the letters that its neighbours share
_IN_BASE64 = [base64.b64encode(bytes(n) + _NAME)[{0: 0, 1: 2, 2: 3}[n] : -4] for n in range(3)]
_ENCODED = re.compile(rb"[A-Za-z0-9+/]{32,}={0,2}")
_CONTINUES = b"\xff\xff\xff\xff"  # before the length of every message
MOST = 1000  # types of one schema
_LARGEST = 1 << 24  # bytes of a schema


def scan(item: Item, kind: str) -> Iterator[Finding | Item]:
    """Findings of one file as Arrow or as Parquet, and the pickles of its types."""
    for where, schema in _parquet(item) if kind == "parquet" else _arrow(item):
        names = schema.count(_NAME)
        if not names:
            continue
        pickles = list(_values(schema))
        yield PICKLED.found(f"{names} types of Python's own in its {where}", file=shown(item.name), place=where)
        if len(pickles) < names:
            yield PICKLED.found("a type of Python's own whose pickle is not where it belongs", file=shown(item.name), place=where,
                                severity="malicious")  # fmt: skip
        for n, data in enumerate(pickles):
            member = item.member(f"type {n} of its {where}", data)
            member.kinds = ("pickle",)
            yield member


def _arrow(item: Item) -> Iterator[tuple[str, bytes]]:
    with item.open() as file:
        begin = 8 if item.head.startswith(b"ARROW1") else 0
        if begin and item.size > 18:
            file.seek(item.size - 10)
            (size,) = struct.unpack("<I", file.read(4))
            yield "footer", _read(item, item.size - 10 - size, size)
        first, second = struct.unpack("<2I", item.head[begin : begin + 8].ljust(8, b"\0"))
        start, size = (begin + 8, second) if item.head.startswith(_CONTINUES, begin) else (begin + 4, first)
        yield "first message", _read(item, start, size)


def _parquet(item: Item) -> Iterator[tuple[str, bytes]]:
    with item.open() as file:
        file.seek(max(0, item.size - 8))
        size = int.from_bytes(file.read(4), "little")
    footer = _read(item, item.size - 8 - size, size)
    if not any(part in footer for part in _IN_BASE64):
        return
    for found in _ENCODED.finditer(footer):
        if any(part in found[0] for part in _IN_BASE64):
            for cut in range(4):  # the length that stands before it may end in a letter of base64
                text = found[0][cut:]
                data = _decoded(text[: len(text) // 4 * 4])
                if _NAME in data:
                    yield "schema", data.removeprefix(_CONTINUES + data[4:8])
                    break


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return b""


def _read(item: Item, start: int, size: int) -> bytes:
    """A part of the file, as far as it is there.

    Raises:
        LimitExceeded: a schema larger than any.
    """
    if start < 0 or start >= item.size:
        return b""
    size = min(size, item.size - start)
    if size > _LARGEST:
        raise LimitExceeded(f"a schema of {size} bytes")
    with item.open() as file:
        file.seek(start)
        return file.read(size)


def _values(schema: bytes) -> Iterator[bytes]:
    """What the schema's tables of key and value hold under the key of extension types, but for text that is JSON.

    Raises:
        LimitExceeded: more of them than any schema has.
    """
    keys = [found.start() - 4 for found in re.finditer(_HELD, schema)]
    words = np.frombuffer(schema, "<u4", len(schema) // 4).astype(np.int64)
    places = np.flatnonzero(np.isin(words + 4 * np.arange(len(words)), keys))  # words that lead to a key as offsets
    if len(places) > MOST:
        raise LimitExceeded(f"more than {MOST} references to the types of a schema")
    for place in places:
        data = _beside(schema, 4 * int(place))
        if data is not None and not _is_json(data):
            yield data


def _beside(schema: bytes, key: int) -> bytes | None:
    """The value of the table whose key's offset stands here; ``None`` where there is no such table."""
    for back in range(4, min(key, 1 << 16) + 1, 4):
        table = key - back
        fields = table - int.from_bytes(schema[table : table + 4], "little", signed=True)
        if not 0 <= fields <= len(schema) - 8:
            continue
        size, _, first, second = struct.unpack_from("<4H", schema, fields)
        if first == back and size >= 8 and second >= 4 and table + second + 4 <= len(schema):
            start = table + second + int.from_bytes(schema[table + second : table + second + 4], "little")
            length = int.from_bytes(schema[start : start + 4], "little")
            if start + 4 + length <= len(schema):
                return schema[start + 4 : start + 4 + length]
    return None


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return False
    return True
