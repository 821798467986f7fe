"""Names of other files in HDF5 files: found wherever they lie, and never at a cost that the file's size does not bound."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from corpus import hdf5_parts as files
from weightsmith.errors import LimitExceeded
from weightsmith.trust.items import Folder, Item
from weightsmith.trust.scanners import hdf5_links
from weightsmith.trust.scanners.hdf5_links import check_links

AWAY = files._bytes(files._LINK_UP)
MANY = files._bytes(files._MANY_AWAY)


def found(raw: bytes, base: int = 0, *beside: str) -> list[str]:
    """The rules that find something, one for each name."""
    folder = Folder(Path("."))
    folder.items.update({n: Item(n, 1, io.BytesIO) for n in beside})
    return [f.rule for f in check_links(Item("m.h5", len(raw), lambda: io.BytesIO(raw)), folder, base, set())]


@pytest.mark.parametrize("before", [0, 512, (1 << 20) - 800, (1 << 20) - 880, (1 << 20) - 40, 1 << 20])
def test_a_link_is_found_across_the_border_of_blocks(before: int) -> None:
    assert found(bytes(before) + AWAY, before) == ["hdf5-outside-file"]


def test_addresses_count_from_where_the_file_begins() -> None:
    assert found(bytes(512) + MANY, 512) == ["hdf5-outside-file"]
    assert found(bytes(512) + MANY, 0) == []


def test_a_number_in_a_virtual_name_stands_for_any() -> None:
    assert hdf5_links._there(Folder(Path(".")), "", "part-%b.h5") == []
    folder = Folder(Path("."))
    folder.items.update({n: Item(n, 1, io.BytesIO) for n in ("a/part-1.h5", "a/part-20.h5", "a/part-x.h5", "part-3.h5")})
    assert hdf5_links._there(folder, "a", "part-%b.h5") == ["a/part-1.h5", "a/part-20.h5"]


@pytest.mark.parametrize("raw", [
    b"\x01\x08\x40\x01a\x04\0\0a\0b\0",  # links, one behind the other
    b"\x07\0xx\0\0\0\0\x01\0\0\0\xff\xff\xff\xff" + bytes(8),  # each a list of 65,535 raw files
    b"\x04\x03" + bytes(8) + b"\x01\0\0\0",
])  # fmt: skip
def test_what_looks_like_names_everywhere_is_given_up(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_links, "MOST_TRIED", 1000)
    with pytest.raises(LimitExceeded):
        found(b"HEAP\0\0\0\0" + bytes(24) + raw * (1 << 14), 0, "a")


def test_numbers_that_look_like_a_message_lead_nowhere() -> None:
    assert found(b"\x89HDF\r\n\x1a\n" + b"\x07\0\0\0\0\0\0\0\x01\0\0\0\x01\0\x01\0" * 50 + bytes(64)) == []
