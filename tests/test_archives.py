"""Archives and other formats: everything inside is seen, nothing is unpacked without bound, no bytes make a scanner fail."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounded import ends_within
from corpus.archives import CASES as ARCHIVES
from corpus.archives import EVIL, Raw, seven, tarred, zeros, zipped
from corpus.formats import CASES as FORMATS
from corpus.formats import field, hdf5, lambda_layer, onnx, saved_model, tensor
from weightsmith.errors import FormatError, LimitExceeded
from weightsmith.found import Finding
from weightsmith.trust.items import Folder, Item
from weightsmith.trust.kinds import kinds_of
from weightsmith.trust.scan import Scan
from weightsmith.trust.scanners import archives, keras, protobuf, unpacking, yamls
from weightsmith.trust.scanners.archive_rules import leads_out
from weightsmith.trust.scanners.archives import Archives
from weightsmith.trust.scanners.other_formats import OtherFormats
from weightsmith.trust.scanners.plain import Plain

OURS = (Archives, Plain, OtherFormats)


def item(data: bytes, name: str = "file") -> Item:
    """Bytes as a file."""
    made = Item(name, len(data), lambda: io.BytesIO(data))
    made.kinds = kinds_of(made)
    return made


def scanned(of: Item, depth: int = 0) -> Iterator[Finding | Item]:
    """Everything that our scanners say of a file and of what is in it, members included."""
    folder = Folder(Path(), items={of.name: of})
    for kind in OURS:
        scanner = kind()
        if scanner.kinds & set(of.kinds):
            for found in scanner.scan_file(of, folder):
                yield found
                if isinstance(found, Item) and depth < 4:
                    found.kinds = found.kinds or kinds_of(found)
                    yield from scanned(found, depth + 1)
        if not depth:
            yield from scanner.scan_folder(folder)


def members(data: bytes, name: str = "file") -> dict[str, bytes]:
    """The members that come out, by their last name."""
    return {i.name.rpartition("!")[2]: i.read(1 << 30) for i in scanned(item(data, name)) if isinstance(i, Item)}


def rules(data: bytes, name: str = "file") -> set[str]:
    """The rules that find something."""
    return {f.rule for f in scanned(item(data, name)) if isinstance(f, Finding)}


# -- members come out as they went in --------------------------------------------------------------------------

FILES = {"a.txt": b"hello\n" * 99, "b/c.bin": bytes(range(256)) * 9, "d": b"x"}


@pytest.mark.parametrize(
    "data",
    [
        zipped(FILES),
        zipped(FILES, method=8),
        zipped(FILES, method=zipfile.ZIP_BZIP2),
        tarred(FILES),
        tarred(FILES, form=tarfile.GNU_FORMAT),
        tarred(FILES, form=tarfile.USTAR_FORMAT),
        seven(FILES),
    ],
    ids=["stored", "deflate", "bzip2", "pax", "gnu", "ustar", "7z"],
)
def test_members_come_out_whole(data: bytes) -> None:
    assert members(data) == FILES
    assert not {f for f in rules(data) if f != "binary-not-analysed"}


@given(
    st.dictionaries(
        st.text("abc/.é", min_size=1, max_size=120).filter(
            lambda n: not leads_out(n) and ".." not in n and not n.endswith("/") and not n.startswith("./")
        ),
        st.binary(max_size=2000),
        max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_our_listing_of_a_tar_is_pythons(names: dict[str, bytes], form: int) -> None:
    data = tarred(dict(names), form=form)
    ours = {e.name: data[e.start : e.start + e.size] for e in archives.Tar(item(data)).entries()}
    assert ours == names


@given(
    st.dictionaries(
        st.text("abc/é_", min_size=1, max_size=40).filter(lambda n: not n.startswith("/") and not n.endswith("/")),
        st.binary(max_size=2000),
        max_size=6,
    ),
    st.sampled_from([0, 8]),
    st.booleans(),
)
def test_an_ordinary_zip_has_no_findings(names: dict[str, bytes], method: int, streamed: bool) -> None:
    out = io.BytesIO()
    if streamed:
        out.seekable = lambda: False  # type: ignore[method-assign]
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    listed = archives.read_zip(item(out.getvalue()))
    assert listed.findings == []
    assert {e.name: archives.unpack_entry(item(out.getvalue()), e) for e in listed.entries} == {
        n: (d, "") for n, d in names.items()
    }


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lzma.compress,
        lambda d: lzma.compress(d, lzma.FORMAT_ALONE),
        __import__("bz2").compress,
        __import__("zlib").compress,
    ],
    ids=["gzip", "xz", "lzma", "bzip2", "zlib"],
)
def test_streams_come_out_whole(pack: object) -> None:
    data = random.Random(1).randbytes(300_000) + b"text " * 1000
    assert list(members(pack(data)).values()) == [data]  # type: ignore[operator]


# -- large members -------------------------------------------------------------------------------------------------


def test_a_large_member_is_read_again_instead_of_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "WHOLE", 1000)
    data = random.Random(2).randbytes(700_000)
    for packed in (zipped({"a": data}), zipped({"a": data}, method=8), gzip.compress(data), tarred({"a": data})):
        (found,) = [i for i in Archives().scan_file(item(packed), Folder(Path())) if isinstance(i, Item)]
        with found.open() as file:
            for at, size in ((600_000, 10), (5, 100), (0, 700_000), (699_999, 9), (700_000, 1)):
                file.seek(at)
                assert file.read(size) == data[at : at + size]


def test_reading_it_over_and_over_has_a_budget() -> None:
    spent = [1000]
    opened = unpacking.again(lambda: iter([b"x" * 100] * 3), 300, spent)
    with pytest.raises(LimitExceeded):  # noqa: PT012
        for _ in range(9):
            with opened() as file:
                file.seek(299)
                file.read(1)


def test_all_archives_together_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_UNPACKED", 5000)
    assert "archive-too-large" in rules(zipped({str(i): bytes(1000) for i in range(9)}, method=8))
    assert "archive-too-large" in rules(gzip.compress(bytes(9000)))


@pytest.mark.parametrize("make", ["zip-bomb", "gzip-bomb", "zip-overlapping-bomb"])
def test_bombs_cost_little(make: str, tmp_path: Path) -> None:
    case = next(c for c in ARCHIVES if c.name == make)
    case.build(tmp_path)
    with ends_within(20):
        assert "archive-bomb" in {f.rule for f in Scan(tmp_path).run()}


# -- what two readers see differently ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["name", "flags", "method", "crc", "packed", "size"])
@pytest.mark.parametrize("where", ["local", "central"])
def test_every_field_that_is_stored_twice_is_compared(name: str, where: str) -> None:
    archive = Raw()
    archive.add("other", b"x" * 50)
    archive.add("a", b"hello", **{where: {name: b"c" if name == "name" else 1}})  # type: ignore[arg-type]
    assert "archive-ambiguous" in rules(archive.done())


@given(st.integers(1, 3000))
def test_bytes_around_an_archive_are_told(count: int) -> None:
    data = zipped({"a": b"b"})
    noise = b"\xf1" * count
    assert "archive-extra-data" in rules(noise + data)
    assert "archive-extra-data" in rules(data + noise)


@given(st.integers(0, 200))
def test_a_shortened_archive_is_never_clean(cut: int) -> None:
    for data in (zipped({"a": b"b" * 90}), seven({"a": b"b" * 90}), gzip.compress(b"hello" * 50)):
        assert rules(data[: max(8, len(data) - 1 - cut)]) & {"archive-broken", "archive-ambiguous", "archive-extra-data"}


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("a/b", False),
        ("a/../b", False),
        ("./a", False),
        ("a..b", False),
        ("...", False),
        ("../a", True),
        ("a/../../b", True),
        ("/a", True),
        ("\\a", True),
        ("C:a", True),
        ("a\\..\\..\\b", True),
        (".. /a", True),
        ("", False),
    ],
)
def test_names_that_lead_out(name: str, out: bool) -> None:
    assert bool(leads_out(name)) is out


def test_a_member_with_a_wrong_checksum_is_scanned_all_the_same() -> None:
    archive = Raw()
    archive.add("a.pkl", EVIL, local={"crc": 1}, central={"crc": 1})
    assert members(archive.done())["a.pkl"] == EVIL


def test_a_file_that_contains_itself_ends() -> None:
    whole = item(zipped({"a": b"x"}))
    inner = Item("file!a", whole.size, whole.opener, outer=whole, kinds=("zip",))
    assert [f.rule for f in Archives().scan_file(inner, Folder(Path())) if isinstance(f, Finding)] == ["archive-bomb"]


# -- other formats -----------------------------------------------------------------------------------------------------


def test_a_lambda_is_found_wherever_the_configuration_lies() -> None:
    layer = lambda_layer("lambda x: x")
    for padding in (0, 1, 4095, 65_530, 1 << 20):
        assert "keras-lambda" in rules(b"\x89HDF\r\n\x1a\n" + b"\x90" * padding + hdf5(layer)[8:])


def test_nested_json_without_end_is_bounded() -> None:
    with ends_within(50), pytest.raises(LimitExceeded):
        list(keras.scan_embedded(item(b"\x89HDF\r\n\x1a\n" + b'{"a' * 400_000)))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.exec",
        "nemo.x.os.popen",
        "torch.hub.load",
        "subprocess.Popen",
        "a.b.__init__.x",
        "importlib.import_module",
        "nemo.utils.subprocess.call",
    ],
)
def test_targets_that_run_programs(target: str) -> None:
    assert yamls.judge_target(target) == "malicious"


@pytest.mark.parametrize("target", ["nemo.collections.asr.modules.X", "torch.nn.Linear", "transformers.AutoModel"])
def test_targets_of_model_libraries(target: str) -> None:
    assert yamls.judge_target(target) == ""


@pytest.mark.parametrize(
    "text", ["[a," * 100_000, "- " * 100_000, "{a: " * 100_000, "? " * 50_000, "&a [*a, *a]", "a: *b", "\t- x", "%YAML"]
)
def test_yaml_that_parsers_take_long_for_is_bounded(text: str) -> None:
    with ends_within(20):
        assert all(isinstance(f, Finding) for f in yamls.check(item(text.encode(), "a.yaml")))


@given(st.binary(max_size=300))
def test_fields_of_any_bytes_end(data: bytes) -> None:
    try:
        fields = list(protobuf.Messages(io.BytesIO(data), len(data)).fields())
    except FormatError:
        return
    assert all(0 <= f.start <= f.end <= len(data) for f in fields)
    assert sum(f.size for f in fields) <= len(data)


def test_a_protocol_buffer_of_many_fields_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MOST_FIELDS", 100)
    with pytest.raises(LimitExceeded):
        rules(onnx(*[tensor("w")] * 99), "a.onnx")


def test_only_data_that_something_refers_to_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(onnx(tensor("w", location="sub/../weights.data")))
    (tmp_path / "b.onnx").write_bytes(onnx(tensor("w", location="b.data", length="4")))
    for name in ("b.data", "c.data"):
        (tmp_path / name).write_bytes(b"\xf1\x02\xff\x9c")
    unknown = {f.file for f in Scan(tmp_path).run() if f.rule == "binary-not-analysed"}
    assert unknown == {"c.data"}


def test_operators_are_found_in_every_place() -> None:
    assert "tensorflow-file-operator" in rules(saved_model("WriteFile"), "saved_model.pb")
    assert "tensorflow-file-operator" in rules(saved_model("WriteFile", in_function=True), "x.pb")
    assert not rules(saved_model("MatMul"), "saved_model.pb")


# -- bytes made to break a scanner ---------------------------------------------------------------------------------------


def _seeds(folder: Path) -> list[tuple[str, bytes]]:
    """The files of the small cases of both corpora."""
    found = []
    for number, case in enumerate([*ARCHIVES, *FORMATS]):
        if "bomb" not in case.name and "grows" not in case.name:
            place = folder / str(number)
            place.mkdir()
            case.build(place)
            found += [(p.name, p.read_bytes()) for p in place.rglob("*") if p.is_file() and p.stat().st_size < 100_000]
    return found


def _changed(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A file with some bytes changed, taken out, put in or replaced by another's."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(out) + 1)
        what = chance.randrange(5)
        if what == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            del out[at : at + chance.randrange(40)]
        elif what == 2:
            out[at:at] = chance.randbytes(chance.randrange(20))
        elif what == 3:
            out[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
        else:
            out[at:] = other[chance.randrange(len(other) + 1) :][:2000]
    return bytes(out)


def _attacked(seeds: list[tuple[str, bytes]], seed: int, count: int) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        name, data = chance.choice(seeds)
        data = _changed(data, chance.choice(seeds)[1], chance)
        with ends_within(5):
            try:
                for found in scanned(item(data, name)):
                    assert isinstance(found, Finding | Item)
            except (FormatError, LimitExceeded):
                pass  # the scan makes a finding of it


def test_changed_files_never_break_a_scanner(tmp_path: Path) -> None:
    _attacked(_seeds(tmp_path), 1, 1500)


@pytest.mark.slow
def test_many_changed_files_never_break_a_scanner(tmp_path: Path) -> None:
    seeds = _seeds(tmp_path)
    for seed in range(2, 42):
        _attacked(seeds, seed, 2000)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [
            b"",
            b"PK\x03\x04",
            b"PK\x05\x06",
            b"7z\xbc\xaf'\x1c\x00\x04",
            b"\x93NUMPY\x01\x00",
            b"\x1f\x8b\x08",
            b"\xfd7zXZ\x00",
            b"\x89HDF\r\n\x1a\n",
            b"\x81\xa1a",
            b"\x08\x08:",
            b"<svg>",
            b"---\n",
            b"\x18\0\0\0TFL3",
            b"\x78\x9c",
            b"BZh91AY&SY",
        ]
    ),
    st.binary(max_size=200),
    st.sampled_from(["a", "a.onnx", "a.yaml", "a.msgpack", "a.keras", "a.bin"]),
)
def test_any_bytes_behind_a_magic_are_judged(magic: bytes, data: bytes, name: str) -> None:
    with ends_within(5), contextlib.suppress(FormatError, LimitExceeded):
        list(scanned(item(magic + data, name)))


def test_a_member_that_claims_gigabytes_takes_no_memory() -> None:
    import tracemalloc

    archive = Raw()
    archive.add("a", b"", method=8, packed=zeros(1 << 20), local={"size": 1 << 29}, central={"size": 1 << 29})
    big = struct.pack("<Q", 1 << 40)
    tracemalloc.start()
    for data in (
        archive.done(),
        field(7, b"")[:1] + b"\xff" * 8 + b"\x7f",
        b"\xdd\xff\xff\xff\xff",
        b"7z\xbc\xaf'\x1c\0\4" + bytes(4) + big * 3,
    ):
        with contextlib.suppress(FormatError, LimitExceeded):
            list(scanned(item(data, "a.onnx")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23
