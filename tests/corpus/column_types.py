"""Arrow and Parquet tables whose types are pickles, and the extension types that honest ones have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from . import Case
from .assembly import STOP, call, proto, system, text

Build = Callable[[Path], None]
PICKLED = "arrow.py_extension_type"
SEE = "CVE-2023-47248"


def table(kind: str, *types: tuple[str, bytes], deep: bool = False) -> Build:
    """A table of one column for each extension type (name, metadata), in the given format."""

    def build(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.feather
        import pyarrow.parquet

        fields = [pa.field(f"x{n}", pa.int64(), metadata={"ARROW:extension:name": name, b"ARROW:extension:metadata": held})
                  for n, (name, held) in enumerate(types)]  # fmt: skip
        values: list[object] = [[1, 2]] * len(fields)
        if deep:
            fields, values = [pa.field("list", pa.struct(fields))], [[{f.name: 1 for f in fields}] * 2]
        schema = pa.schema(fields, metadata={"note": "about arrow tables"})
        data = pa.table([pa.array(v, f.type) for v, f in zip(values, fields, strict=True)], schema=schema)
        if kind == "parquet":
            pyarrow.parquet.write_table(data, folder / "data.parquet")
        elif kind == "feather":
            pyarrow.feather.write_feather(data, str(folder / "data.feather"))
        else:
            opened = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
            with opened(str(folder / "data.arrow"), schema) as writer:
                writer.write_table(data)

    return build


def _mentions(folder: Path) -> None:
    """A table about the advisory: the words stand among the data."""
    import pyarrow as pa
    import pyarrow.parquet

    words = pa.table({"text": [f"ARROW:extension:name = {PICKLED}", "ARROW:extension:metadata", PICKLED]})
    pyarrow.parquet.write_table(words, folder / "data.parquet")
    with pa.ipc.new_file(str(folder / "data.arrow"), words.schema) as writer:
        writer.write_table(words)


EVIL = system()
#: as old releases of datasets kept arrays of two axes
OLD_ARRAY = proto(2) + call("datasets.features.features", "Array2DExtensionType", b"K\x03K\x04\x86", text("float32")) + STOP
JSON = ("arrow.json", b"")
ARRAY = ("datasets.features.features.Array2DExtensionType", json.dumps([[3, 4], "float32"]).encode())
BITS = ("arrow.fixed_shape_tensor", b'{"shape":[2,2]}')
HOSTILE = [
    *(Case(f"arrow-pickle-{kind}", table(kind, (PICKLED, EVIL)), "malicious", ("pickle-code",), see=SEE)
      for kind in ("file", "stream", "parquet", "feather")),
    *(Case(f"arrow-pickle-deep-{kind}", table(kind, JSON, ARRAY, (PICKLED, EVIL), BITS, deep=True), "malicious", ("pickle-code",))
      for kind in ("file", "stream", "parquet")),
    Case("arrow-pickle-plain-text", table("parquet", (PICKLED, b"cposix\nsystem\n(S'id'\ntR.")), "malicious", ("pickle-code",)),
    Case("arrow-pickle-missing", table("stream", (PICKLED, b"{}")), "malicious", ("arrow-pickled-type",), see=SEE),
]  # fmt: skip
HONEST = [
    *(Case(f"arrow-types-{kind}", table(kind, JSON, ARRAY, BITS, ("geoarrow.wkb", b'{"crs":"EPSG:4326"}')))
      for kind in ("file", "stream", "parquet", "feather")),
    *(Case(f"arrow-array-of-old-{kind}", table(kind, (PICKLED, OLD_ARRAY), JSON)) for kind in ("file", "parquet")),
    Case("arrow-mentions", _mentions),
]  # fmt: skip
CASES = HOSTILE + HONEST
