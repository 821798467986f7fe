"""Several zip archives in one file, one behind the other, as torch's distributed checkpoints are written."""

from __future__ import annotations

from ..items import Item
from . import unpacking

MOST = 4096  # archives in one file
BLOCK = 1 << 20
_END = b"PK\x05\x06"


def archives_in(item: Item) -> list[Item]:
    """Each archive of a file that is nothing but archives; empty when it is one, or when anything lies between them."""
    found: list[tuple[int, int]] = []
    start = 0
    with item.open() as file:
        at, kept, tried = 0, b"", 0
        while block := file.read(BLOCK):
            data, base = kept + block, at - len(kept)
            hit = data.find(_END)
            while 0 <= hit <= len(data) - 22:
                here, tail = base + hit, data[hit : hit + 22]
                size, offset = int.from_bytes(tail[12:16], "little"), int.from_bytes(tail[16:20], "little")
                wide = data[max(0, hit - 20) : hit].startswith(b"PK\x06\x07")
                whole = start + offset + size == here - 76 * wide or (wide and offset == 0xFFFFFFFF)
                if here + 22 > start and whole and tail[20:22] == b"\0\0":
                    found.append((start, here + 22))
                    start = here + 22
                hit, tried = data.find(_END, hit + 4), tried + 1
            if len(found) > MOST or tried > 4 * MOST:
                return []
            kept = data[-21:]
            at += len(block)
        if start != item.size or len(found) < 2:
            return []
        for begin, _ in found:
            file.seek(begin)
            if file.read(4) != b"PK\x03\x04":
                return []
    return [Item(f"{item.name}!part {n}", end - begin, unpacking.part(item.opener, begin, end - begin), outer=item)
            for n, (begin, end) in enumerate(found)]  # fmt: skip
