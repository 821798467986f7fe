"""Pickles of pandas' tables, by the names of several releases, and hostile ones that borrow those names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import Case
from .assembly import BUILD, EMPTY_TUPLE, NEWOBJ, SHELL, STOP, args, call, named, proto, raw_bytes, text

Build = Callable[[Path], None]
LOAD = "import pickle\npickle.loads((folder / 'table.pkl').read_bytes())"


def _file(data: bytes) -> Build:
    return lambda folder: (folder / "table.pkl").write_bytes(data) and None


def _array() -> bytes:
    """Two numbers, as NumPy pickles them."""
    made = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), b"K\x00\x85", raw_bytes(b"b"))
    kind = call("numpy", "dtype", text("i8"), b"\x89", b"\x88")
    kind += b"(K\x03" + text("<") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00t" + BUILD
    return made + b"(K\x01K\x02\x85" + kind + b"\x89" + raw_bytes(bytes(16)) + b"t" + BUILD


def _index(kind: bytes, function: str = "_new_Index", module: str = "pandas.core.indexes.base", **fields: bytes) -> bytes:
    return call(module, function, kind, b"}(" + b"".join(text(k) + v for k, v in fields.items()) + b"u")


RANGE = _index(named("pandas.core.indexes.range", "RangeIndex"), start=b"K\x00", stop=b"K\x02", step=b"K\x01")


def _frame(block: bytes, index: bytes = RANGE) -> bytes:
    manager = call("pandas.core.internals.managers", "BlockManager", block + b"\x85", b"](" + RANGE + index + b"e")
    state = b"}(" + text("_mgr") + manager + text("_typ") + text("dataframe") + text("attrs") + b"}" + b"u"
    return proto(2) + named("pandas.core.frame", "DataFrame") + EMPTY_TUPLE + NEWOBJ + state + BUILD + STOP


SLICE = call("builtins", "slice", b"K\x00", b"K\x01", b"K\x01")
BLOCK = call("pandas._libs.internals", "_unpickle_block", _array(), SLICE, b"K\x02")
DATED = "pandas.core.indexes.datetimes"
OLD = named("pandas.core.internals.blocks", "IntBlock") + EMPTY_TUPLE + NEWOBJ
DATES = _index(named(DATED, "DatetimeIndex"), "_new_DatetimeIndex", DATED, data=_array())
MAPPED = _index(named("numpy", "memmap"), filename=text("table.pkl"), shape=b"K\x01", mode=text("w+"))
HOSTILE = [
    Case("frame-index-maps-a-file", _file(_frame(BLOCK, MAPPED)), "malicious", ("pickle-unlisted-call",)),
    Case("frame-index-of-a-process", _file(_frame(BLOCK, _index(named("subprocess", "Popen"), args=text("id")))), "malicious"),
    Case("frame-index-of-a-stranger", _file(_frame(BLOCK, _index(named("evil.mod", "Index")))), "malicious"),
    Case("frame-index-computed", _file(_frame(BLOCK, _index(call("pandas.core.indexes.base", "_new_Index")))), "malicious"),
    Case("frame-block-of-a-call", _file(_frame(call("pandas", "eval", text("1")))), "malicious"),
    Case("frame-reads-a-file", _file(_frame(call("pandas", "read_pickle", text("other.pkl")))), "malicious"),
    Case("frame-called", _file(proto(2) + call("pandas.core.frame", "DataFrame", text("x")) + STOP), "malicious",
         ("pickle-unlisted-call",)),
    Case("frame-with-a-shell", _file(_frame(call("os", "system", text(SHELL)))), "malicious", ("pickle-code",),
         LOAD, needs=("pandas",)),
]  # fmt: skip
HONEST = [
    Case("frame", _file(_frame(BLOCK))),
    Case("frame-old", _file(_frame(OLD, DATES))),
    Case("frame-texts", _file(_frame(BLOCK, _index(named("pandas.core.indexes.base", "Index"), data=_array(), name=b"N")))),
    Case("frame-older-index", _file(_frame(BLOCK, _index(named("pandas.core.indexes.numeric", "Int64Index"), data=_array())))),
    Case("series-of-zone", _file(proto(4) + args(call("pytz", "_p", text("Europe/Berlin"), b"K\x01", b"K\x00", text("CET")),
                                                 call("zoneinfo", "ZoneInfo._unpickle", text("Europe/Berlin"), b"K\x01")) + STOP)),
]  # fmt: skip
CASES = HOSTILE + HONEST
