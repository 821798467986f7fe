"""Indexes of FAISS, put together as faiss-cpu writes them; and some whose sizes do not fit."""

from __future__ import annotations

import struct
from pathlib import Path

from . import Case
from .weights import Build


def _head(kind: bytes, width: int, total: int, metric: int = 1) -> bytes:
    return struct.pack("<4siqqqBi", kind, width, total, 1 << 20, 1 << 20, 1, metric)


def _flat(width: int = 8, total: int = 20, kind: bytes = b"IxF2") -> bytes:
    return _head(kind, width, total) + struct.pack("<Q", width * total) + b"\x00\x00\x80\x3f" * (width * total)


def _mapped(inner: bytes, total: int = 20, kind: bytes = b"IxMp") -> bytes:
    return _head(kind, 8, total) + inner + struct.pack(f"<Q{total}q", total, *range(total))


def _lists(sizes: tuple[int, ...] = (3, 9, 8), *, sparse: bool = False, width: int = 8) -> bytes:
    made = _head(b"IwFl", width, sum(sizes)) + struct.pack("<QQ", len(sizes), 1) + _flat(width, len(sizes), b"IxFI")
    made += b"\0" + struct.pack("<Q", 0) + b"ilar" + struct.pack("<QQ", len(sizes), 4 * width)
    told = [n for pair in enumerate(sizes) for n in pair] if sparse else [*sizes]
    made += (b"sprs" if sparse else b"full") + struct.pack(f"<Q{len(told)}Q", len(told), *told)
    return made + b"".join(bytes(4 * width * n) + struct.pack(f"<{n}q", *range(n)) for n in sizes)


def _graph(total: int = 20) -> bytes:
    made = _head(b"IHNf", 8, total) + struct.pack("<Qd", 1, 1.0) + struct.pack("<Q2i", 2, 0, 4)
    made += struct.pack(f"<Q{total}i", total, *[1] * total) + struct.pack(f"<Q{total + 1}Q", total + 1, *range(0, 4 * total + 4, 4))
    return made + struct.pack(f"<Q{4 * total}i", 4 * total, *[-1] * 4 * total) + struct.pack("<5i", 0, 0, 40, 16, 1) + _flat()


def _file(data: bytes, name: str = "voice.index") -> Build:
    def build(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return build


_NOT = ("binary-not-analysed",)
_KNOWN = ("faiss-index",)
CASES: list[Case] = [
    Case("index-flat", _file(_flat()), rules=_KNOWN),
    Case("index-flat-dot", _file(_flat(kind=b"IxFI"), "index.faiss"), rules=_KNOWN),
    Case("index-lists", _file(_lists()), rules=_KNOWN),
    Case("index-lists-sparse", _file(_lists((0, 0, 20), sparse=True)), rules=_KNOWN),
    Case("index-graph", _file(_graph()), rules=_KNOWN),
    Case("index-mapped", _file(_mapped(_flat())), rules=_KNOWN),
    Case("index-mapped-graph", _file(_mapped(_graph(), kind=b"IxM2")), rules=_KNOWN),
    Case("index-cut", _file(_flat()[:-1]), "could not tell", _NOT),
    Case("index-bytes-behind", _file(_lists() + b"\x7fmore"), "could not tell", _NOT),
    Case("index-other-count", _file(_mapped(_flat(total=19))), "could not tell", _NOT),
    Case("index-of-itself", _file(_mapped(_mapped(_mapped(_mapped(_mapped(_mapped(_flat()))))))), "could not tell", _NOT),
    Case("index-huge-list", _file(_head(b"IxF2", 8, 1 << 40) + struct.pack("<Q", 1 << 43)), "could not tell", _NOT),
    Case("index-huge-lists", _file(_lists().replace(struct.pack("<QQ", 3, 1), struct.pack("<QQ", 1 << 60, 1))), "could not tell",
         _NOT),
]  # fmt: skip
