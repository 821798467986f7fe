"""What a file is taken for: by every reader's rule, in bounded time, and never by chance."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bounded import ends_within
from corpus.archives import EVIL, PNG, SOURCE, Raw, tarred, zipped
from corpus.formats import PADDED, TEXT_PICKLE, field, onnx, pieces, record, tensor
from weightsmith.trust.items import Item
from weightsmith.trust.kinds import _AT, _MAGIC, kinds_of, masked_crc32c
from weightsmith.trust.opcodes import Reading, read_as_pickle


def item(data: bytes, name: str = "file") -> Item:
    """Bytes as a file."""
    return Item(name, len(data), lambda: io.BytesIO(data))


def kinds(data: bytes, name: str = "file") -> tuple[str, ...]:
    """What they are taken for."""
    return kinds_of(item(data, name))


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a", b"", "empty"),
        ("a.json", b"[1]", "json"),
        ("a", b'{"a": 1}', "json"),
        ("README.md", b"[![x](y)](z)", "text"),
        ("a.py", b"import os\n", "python"),
        ("a", b"#!/bin/sh\n", "script"),
        ("a", zipped({"x": b"y"}), "zip"),
        ("a", tarred({"x": b"y"}), "tar"),
        ("a", EVIL, "pickle"),
        ("a", TEXT_PICKLE, "pickle"),
        ("a.bin", PADDED, "pickle"),
        ("a", pickle.dumps([1], 0), "pickle"),
        ("a", pickle.dumps({"a": 1}, 1), "pickle"),
        ("a.onnx", onnx(tensor("w")), "onnx"),
        ("tokenizer.model", pieces(), "protobuf"),
        ("a", record(b"abc"), "tfrecord"),
        ("a", zlib.compress(b"hello"), "zlib"),
        ("a", b"\xff\xfea\0b\0c\0", "text"),
        ("a", "Mod\xe8le\n".encode("latin-1") * 9, "text"),
        ("a", b"\xf1\x02\xff" * 40, "binary"),
        ("a.png", PNG, "image"),
        ("a", b"<svg width='1'/>", "xml"),
        ("x.incomplete", b"\x08\0\0", "partial"),
        ("labels.txt", b"cat\ndog\nbird\n", "text"),
        ("labels.txt", b"Vienna\n.\nthe\n", "text"),
        ("a.txt", b"cos\nsystem\nlives\n", "text"),
    ],
)
def test_kind_of_content(name: str, data: bytes, kind: str) -> None:
    assert kinds(data, name) == (kind,)


@pytest.mark.parametrize(
    "before", [b"# text\n", PNG, b"GGUF" + bytes(60), b"\x7fELF" + bytes(60), b"\xf1\x02\xff" * 40, EVIL]
)
def test_an_archive_is_seen_behind_anything(before: bytes) -> None:
    assert "zip" in kinds(before + zipped({"a": b"b"}))


@pytest.mark.parametrize("magic", [b"GGUF", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"7z\xbc\xaf'\x1c", b"\x93NUMPY"])
def test_a_tar_is_seen_under_any_magic(magic: bytes) -> None:
    """A tar begins with its first member's name, which can be any other format's magic."""
    info = tarfile.TarInfo("x")
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[: len(magic)] = magic
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:512]))
    assert "tar" in kinds(bytes(block) + bytes(1024))
    block[257:265] = bytes(8)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:512]))
    assert "tar" in kinds(bytes(block) + bytes(1024)), "old tar, which has no magic of its own"


@pytest.mark.parametrize("comment", [0, 1, 40_000, 65_514, 65_535])
def test_the_end_of_a_zip_is_found_wherever_readers_look(comment: int) -> None:
    archive = Raw()
    archive.add("a", b"b")
    data = b"text " * 20 + archive.done(comment=b" " * comment)
    assert zipfile.is_zipfile(io.BytesIO(data))
    assert "zip" in kinds(data)


@given(st.binary(max_size=300))
def test_a_signature_in_numbers_is_no_archive(data: bytes) -> None:
    assert "zip" not in kinds(
        b"\xf1\xf2" + data.replace(b"PK", b"xx") + b"PK\x05\x06" + bytes(18) + data.replace(b"PK", b"xx")
    )


@given(
    st.binary(max_size=400), st.sampled_from(["a", "a.bin", "a.json", "a.txt", "a.onnx", "a.pb", "a.msgpack", "x.incomplete"])
)
def test_any_bytes_have_a_kind(data: bytes, name: str) -> None:
    with ends_within(5):
        found = kinds(data, name)
        assert found
        assert len(set(found)) == len(found)


_OTHERS = [b"\x78\x9c", b"\xa7\r\r\n", b"\x5d\0\0", b"\xde", b"\0\0\1\0", b"BM", b"\xff\xfb"]


@pytest.mark.parametrize("magic", [m for m, _ in _MAGIC] + [m for _, m, _ in _AT] + _OTHERS)
def test_files_that_end_within_a_beginning_have_a_kind(magic: bytes) -> None:
    for size in range(1, 40):
        data = magic.ljust(40, b"\0")[:size]
        for name in ("a", "a.ico", "a.onnx", "a.msgpack", ".git/objects/a"):
            assert kinds(data, name)
            assert kinds(data.replace(b"\0", b"\xff"), name)


class Dangerous(pickle.Unpickler):
    """Reads pickles and imports nothing."""

    def find_class(self, module: str, name: str) -> object:
        raise ImportWarning


_OPCODES = st.sampled_from(
    [
        b"(",
        b"N",
        b"0",
        b"]",
        b"}",
        b")",
        b"2",
        b"1",
        b"a",
        b"l",
        b"t",
        b"d",
        b"s",
        b"I1\n",
        b"K\x01",
        b"V a\n",
        b"cos\nsystem\n",
        b"R",
        b"b",
        b".",
        b"q\0",
        b"h\0",
        b"X\x01\0\0\0a",
        b"\x80\x04",
        b"\x93",
        b"\x94",
        b"e",
        b"u",
        b"\x85",
        b"o",
        b"ios\nsystem\n",
        b"\x8c\x02os",
        b"\x8c\x06system",
    ]
)


@settings(max_examples=400)
@given(st.lists(_OPCODES, max_size=12).map(b"".join))
def test_whatever_an_unpickler_would_import_is_no_data(data: bytes) -> None:
    """A stream in which the real unpickler comes to an import is never taken for something without effect."""
    try:
        Dangerous(io.BytesIO(data)).load()
    except ImportWarning:
        assert read_as_pickle(data, len(data)) in (Reading.CODE, Reading.OPEN)
        assert "pickle" in kinds(data, "weights.bin")
    except Exception:  # noqa: BLE001 - the unpickler raises anything on a stream like this
        pass


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    ),
    st.integers(0, 5),
)
def test_every_pickle_of_plain_data_is_one(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    if len(data) > 2:
        assert read_as_pickle(data, len(data)) in (Reading.DATA, Reading.OPEN)
        assert "pickle" in kinds(data, "state.bin")


def test_a_payload_is_found_behind_any_padding() -> None:
    for pad in (b"N0", b"I1\n0", b"V" + b"x" * 70_000 + b"\n0", b"]0", b"(1", b"S'\xc3\xa9'\n0"):
        for times in (1, 1000, 40_000 // len(pad) + 1):
            assert "pickle" in kinds(pad * times + TEXT_PICKLE, "pytorch_model.bin"), (pad[:9], times)
    assert SOURCE.encode() in TEXT_PICKLE


def test_the_checksum_of_records_is_tensorflows() -> None:
    assert masked_crc32c(b"") == 0xA282EAD8
    assert masked_crc32c(struct.pack("<Q", 24)) == struct.unpack("<L", bytes.fromhex("a37f4b22"))[0]


def test_protobufs_without_a_zero_byte_are_no_text() -> None:
    assert kinds(field(1, 1) + field(2, b"\x0a\x03abc"), "saved_model.pb") == ("protobuf",)
    assert kinds(field(7, "x" * 40), "a.onnx") == ("onnx",), "made of printable characters only"


@pytest.mark.parametrize("first", [0x82, 0x83, 0x84])
def test_data_that_begins_like_an_extension_code_is_no_attack(first: int) -> None:
    """The opcode alone takes what a program registered, and imports nothing; a call after it is another matter."""
    rng = random.Random(first)
    found = [read_as_pickle(data := bytes([first]) + rng.randbytes(3000), len(data)) for _ in range(300)]
    assert found.count(Reading.CODE) < 15  # a call may follow by chance
    assert found.count(Reading.NO) > 270
    width = {0x82: 1, 0x83: 2, 0x84: 4}[first]
    data = bytes([first]) + bytes([1] * width) + b")R."
    assert read_as_pickle(data, len(data)) is Reading.CODE
