"""Archives: traversal, links, disagreeing directories, bombs, disguises; and what honest programs write."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from . import MARKER, Case

SOURCE = f"__import__('pathlib').Path(__import__('os').environ[{MARKER!r}]).touch()"
EVIL = b"\x80\x02cbuiltins\nexec\nq\x00X" + struct.pack("<I", len(SOURCE)) + SOURCE.encode() + b"q\x01\x85q\x02Rq\x03."
HONEST = pickle.dumps({"rate": 0.1, "steps": [1, 2, 3]}, 2)
OUT = "import os, tarfile, warnings\nwarnings.simplefilter('ignore')\n"
Build = Callable[[Path], None]


class Raw:
    """A zip archive written field by field; ``local`` and ``central`` change single fields of a member's two headers."""

    def __init__(self) -> None:
        self.out, self.directory, self.count = bytearray(), bytearray(), 0

    def add(
        self,
        name: str | bytes,
        data: bytes,
        *,
        method: int = 0,
        local: dict[str, int | bytes] | None = None,
        central: dict[str, int | bytes] | None = None,
        listed: bool = True,
        mode: int = 0,
        at: int | None = None,
        packed: bytes | None = None,
    ) -> None:
        """One member; ``at``: no bytes of its own, the header lies there."""
        raw = name.encode() if isinstance(name, str) else name
        if packed is None:
            packed = data
            if method == 8:
                deflate = zlib.compressobj(9, wbits=-15)
                packed = deflate.compress(data) + deflate.flush()
        told: dict[str, int | bytes] = {
            "name": raw,
            "flags": 0,
            "method": method,
            "crc": zlib.crc32(data),
            "packed": len(packed),
            "size": len(data),
        }
        here, there = {**told, **(local or {})}, {**told, **(central or {})}
        offset = len(self.out) if at is None else at
        if at is None:
            self.out += (
                struct.pack(
                    "<4s5H3L2H",
                    b"PK\x03\x04",
                    20,
                    here["flags"],
                    here["method"],
                    0,
                    33,
                    here["crc"],
                    here["packed"],
                    here["size"],
                    len(here["name"]),
                    0,
                )
                + here["name"]
                + packed
            )
        if listed:
            self.count += 1
            self.directory += struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                0x0314,
                20,
                there["flags"],
                there["method"],
                0,
                33,
                there["crc"],
                there["packed"],
                there["size"],
                len(there["name"]),
                0,
                0,
                0,
                0,
                mode << 16,
                offset,
            )
            self.directory += there["name"]

    def done(self, *, comment: bytes = b"", count: int | None = None) -> bytes:
        """The archive."""
        count = self.count if count is None else count
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(self.directory), len(self.out), len(comment))
        return bytes(self.out + self.directory + end + comment)


def zipped(members: dict[str, bytes], *, method: int = 0) -> bytes:
    """An ordinary zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes | tuple[bytes, str]], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive; a value ``(type, target)`` makes a link or a device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes | Callable[[], bytes]) -> Build:
    """Builds a folder of one file."""

    def build(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())

    return build


def raw(*adds: tuple[tuple[object, ...], dict[str, object]], **done: object) -> bytes:
    """A :class:`Raw` archive in one expression."""
    archive = Raw()
    for positional, named in adds:
        archive.add(*positional, **named)  # type: ignore[arg-type]
    return archive.done(**done)  # type: ignore[arg-type]


def member(*positional: object, **named: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments for :meth:`Raw.add`."""
    return positional, named


def zeros(size: int) -> bytes:
    """So many zeros, deflated."""
    deflate = zlib.compressobj(9, wbits=-15)
    block = bytes(1 << 20)
    return b"".join(deflate.compress(block) for _ in range(size >> 20)) + deflate.flush()


def bomb() -> bytes:
    """A zip whose one member unpacks to 512 MiB."""
    size = 512 << 20
    return raw(member("weights.bin", b"", method=8, packed=zeros(size), local={"size": size}, central={"size": size}))


def gzip_bomb() -> bytes:
    """Half a GiB in a gzip stream."""
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + zeros(512 << 20) + bytes(8)


def overlapping() -> bytes:
    """Members that share one kernel."""
    archive = Raw()
    archive.add("a", bytes(100_000), method=8)
    for number in range(50):
        archive.add(f"b{number}", bytes(100_000), method=8, at=0, central={"packed": 116, "crc": zlib.crc32(bytes(100_000))})
    return archive.done()


def nested(depth: int, inner: bytes) -> bytes:
    """Zips inside zips."""
    for level in range(depth):
        inner = zipped({f"level{level}.zip": inner}, method=8)
    return inner


def seven(members: dict[str, bytes]) -> bytes:
    """A 7z archive, packed with LZMA2, with a plain header."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]
    packed = lzma.compress(b"".join(members.values()), lzma.FORMAT_RAW, filters=filters)

    def number(value: int) -> bytes:
        return bytes([value]) if value < 0x80 else bytes([0xC0 | value >> 16, value & 255, value >> 8 & 255])

    sizes = [len(d) for d in members.values()]
    header = b"\x01\x04\x06" + number(0) + number(1) + b"\x09" + number(len(packed)) + b"\x00"
    header += b"\x07\x0b" + number(1) + b"\x00" + number(1) + b"\x21\x21\x01\x08" + b"\x0c" + number(sum(sizes)) + b"\x00"
    header += (
        b"\x08\x0d" + number(len(sizes)) + (b"\x09" + b"".join(map(number, sizes[:-1])) if sizes[1:] else b"") + b"\x00\x00"
    )
    names = b"\x00" + "".join(f"{n}\0" for n in members).encode("utf-16-le")
    header += b"\x05" + number(len(sizes)) + b"\x11" + number(len(names)) + names + b"\x00\x00"
    start = struct.pack("<QQL", len(packed), len(header), zlib.crc32(header))
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + struct.pack("<L", zlib.crc32(start)) + start + packed + header


def two_sizes() -> bytes:
    """A tar whose second member is inside the first for a reader that prefers the header's size to the extended one."""
    hidden = tarred({"hidden.pkl": EVIL}, form=tarfile.USTAR_FORMAT)[:1024]
    out = bytearray(tarred({"weights.txt": hidden}, form=tarfile.USTAR_FORMAT))
    out[124:136] = b"00000000000\0"
    check = sum(out[:512]) - sum(out[148:156]) + 256
    out[148:156] = b"%06o\0 " % check
    value = b"17 size=%d\n" % len(hidden)
    value = b"%d size=%d\n" % (len(value), len(hidden))
    extra = tarfile.TarInfo("PaxHeader")
    extra.type, extra.size = b"x", len(value)
    return extra.tobuf(tarfile.USTAR_FORMAT) + value.ljust(512, b"\0") + bytes(out)


def behind_the_end() -> bytes:
    """A tar with a second archive behind the blocks that end the first."""
    return tarred({"a.txt": b"weights\n"}) + tarred({"b.pkl": EVIL})


def quine() -> bytes:
    """A zip that holds a copy of itself, for a scanner that compares sizes and ends: one member with the outer bytes."""
    return raw(member("r.zip", b"", method=8, packed=zeros(64 << 20), local={"size": 5}, central={"size": 5}))


def zip64_disagrees() -> bytes:
    """Two end records of different sizes."""
    plain = zipped({"a.txt": b"one", "b.txt": b"two"})
    end = len(plain) - 22
    count, size, offset = struct.unpack_from("<H2L", plain, end + 10)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count - 1, count - 1, size, offset)
    return plain[:end] + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1) + plain[end:]


def two_ends() -> bytes:
    """An archive in the comment of another."""
    inner = zipped({"data.pkl": EVIL})
    return raw(member("a.txt", b"weights\n"), comment=inner)


UNPACK_TAR = OUT + (
    "target = folder / 'out'\ntarget.mkdir()\n"
    "tarfile.open(folder / '{name}').extractall(target, filter='fully_trusted')\n"
    "if (folder / 'escaped.txt').exists(): open(os.environ['" + MARKER + "'], 'w').close()\n"
)
NPZ = "import numpy\nx = numpy.load(folder / 'arrays.npz', allow_pickle=True)\nx['a']\n"


def npz(folder: Path) -> None:
    """An npz with a pickle for an array."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header = header.ljust(117) + b"\n"
    (folder / "arrays.npz").write_bytes(
        zipped({"a.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + EVIL})
    )


def torch_file(folder: Path) -> None:
    """What torch writes."""
    import torch

    torch.save({"layer.weight": torch.ones(4, 4), "layer.bias": torch.zeros(4)}, folder / "pytorch_model.bin")


def with_hidden_member(folder: Path) -> None:
    """A torch file with a member that only a walk from the first byte finds."""
    import torch

    held = io.BytesIO()
    torch.save({"layer.weight": torch.ones(4, 4)}, held)
    data = held.getvalue()
    end = data.rfind(b"PK\x05\x06")
    (offset,) = struct.unpack_from("<L", data, end + 16)
    hidden = Raw()
    hidden.add("archive/data.pkl", EVIL, listed=False)
    tail = bytearray(data[offset:])
    at = tail.rfind(b"PK\x05\x06")
    struct.pack_into("<L", tail, at + 16, offset + len(hidden.out))
    locator = tail.rfind(b"PK\x06\x07")
    if locator >= 0:
        record = tail.rfind(b"PK\x06\x06")
        struct.pack_into("<Q", tail, locator + 8, offset + len(hidden.out) + record)
        struct.pack_into("<Q", tail, record + 48, offset + len(hidden.out))
    (folder / "pytorch_model.bin").write_bytes(data[:offset] + bytes(hidden.out) + bytes(tail))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 1234567\n"
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"
    b"\x00\x00\x00\x00IEND\xaeB`\x82"
)
_gz = functools.partial(gzip.compress, mtime=0)

_ZIPS = [
    Case(
        "zip-climbs-out",
        file("weights.zip", lambda: zipped({"../../start.sh": b"echo\n"})),
        "malicious",
        ("archive-traversal",),
    ),
    Case(
        "zip-absolute", file("weights.zip", lambda: raw(member("/etc/cron.d/x", b"x"))), "malicious", ("archive-traversal",)
    ),
    Case("zip-drive", file("weights.zip", lambda: raw(member("C:\\x.txt", b"x"))), "malicious", ("archive-traversal",)),
    Case(
        "zip-backslashes",
        file("weights.zip", lambda: raw(member("..\\..\\x.txt", b"x"))),
        "malicious",
        ("archive-traversal",),
    ),
    Case(
        "zip-up-and-down", file("weights.zip", lambda: raw(member("a/../b.txt", b"x"))), "suspicious", ("archive-ambiguous",)
    ),
    Case(
        "zip-zero-in-name",
        file("weights.zip", lambda: raw(member("b.txt\0.pkl", b"x"))),
        "suspicious",
        ("archive-ambiguous",),
    ),
    Case(
        "zip-link-out",
        file("weights.zip", lambda: raw(member("a.txt", b"/etc/passwd", mode=0o120777))),
        "malicious",
        ("archive-traversal",),
    ),
    Case(
        "zip-device", file("weights.zip", lambda: raw(member("a.txt", b"", mode=0o020666))), "suspicious", ("archive-link",)
    ),
    Case(
        "zip-two-names",
        file("weights.zip", lambda: raw(member("a.txt", b"weights\n", local={"name": b"b.txt"}))),
        "suspicious",
        ("archive-ambiguous",),
        see="CVE-2025-1944",
    ),
    Case(
        "zip-two-flags",
        file("weights.zip", lambda: raw(member("a.txt", b"weights\n", central={"flags": 1}))),
        "could not tell",
        ("archive-ambiguous", "archive-encrypted"),
        see="CVE-2025-1945",
    ),
    Case(
        "zip-two-methods",
        file("weights.zip", lambda: raw(member("a.txt", b"weights\n", local={"method": 8}))),
        "suspicious",
        ("archive-ambiguous",),
    ),
    Case(
        "zip-two-sizes",
        file("weights.zip", lambda: raw(member("a.txt", b"weights\n", local={"size": 4, "packed": 4}))),
        "suspicious",
        ("archive-ambiguous",),
    ),
    Case(
        "zip-wrong-checksum-hides-pickle",
        file("weights.zip", lambda: raw(member("data/a.pkl", EVIL, local={"crc": 1}, central={"crc": 1}))),
        "malicious",
        ("archive-broken",),
        see="CVE-2025-10156",
    ),
    Case(
        "zip-same-name-twice",
        file("weights.zip", lambda: raw(member("a.txt", b"one"), member("a.txt", b"two"))),
        "suspicious",
        ("archive-ambiguous",),
    ),
    Case(
        "zip-member-not-listed",
        file("weights.zip", lambda: raw(member("a.txt", b"one"), member("b.pkl", EVIL, listed=False))),
        "suspicious",
        ("archive-ambiguous",),
    ),
    Case(
        "zip-bytes-between",
        file(
            "weights.zip",
            lambda: (lambda r: (r.add("a", b"one"), r.out.extend(b"something else" * 9), r.add("b", b"two"), r.done())[-1])(
                Raw()
            ),
        ),
        "suspicious",
        ("archive-extra-data",),
    ),
    Case(
        "zip-count-lies",
        file("weights.zip", lambda: raw(member("a.txt", b"one"), member("b.txt", b"two"), count=1)),
        "suspicious",
        ("archive-ambiguous",),
    ),
    Case("zip-in-comment", file("weights.zip", two_ends), "malicious", ("archive-extra-data", "archive-ambiguous")),
    Case("zip-two-end-records", file("weights.zip", zip64_disagrees), "suspicious", ("archive-ambiguous",)),
    Case(
        "zip-bytes-behind",
        file("weights.zip", lambda: zipped({"a.txt": b"x"}) + b"more" * 20),
        "suspicious",
        ("archive-extra-data",),
    ),
    Case(
        "zip-bytes-before",
        file("weights.zip", lambda: b"\x7fELF" + bytes(300) + zipped({"a.txt": b"x"})),
        "suspicious",
        ("archive-extra-data", "two-formats"),
    ),
    Case(
        "zip-behind-text",
        file("README.md", lambda: b"# Model\n" + zipped({"a.pkl": EVIL})),
        "malicious",
        ("archive-extra-data",),
    ),
    Case("zip-behind-picture", file("logo.png", lambda: PNG + zipped({"a.txt": b"x"})), "suspicious", ("two-formats",)),
    Case(
        "zip-far-from-end",
        file("notes.txt", lambda: b"x" * 70_000 + zipped({"a.pkl": EVIL})[:-2] + b"\xff\xff" + b" " * 65_535),
        "malicious",
        ("archive-extra-data",),
    ),
    Case("zip-bomb", file("weights.zip", bomb), "malicious", ("archive-bomb",), see="CWE-409"),
    Case("zip-overlapping-bomb", file("weights.zip", overlapping), "malicious", ("archive-bomb",)),
    Case("zip-grows-past-its-size", file("weights.zip", quine), "broken", ("archive-broken",)),
    Case(
        "zip-nested-beyond-use",
        file("weights.zip", lambda: nested(9, zipped({"a.pkl": EVIL}))),
        "could not tell",
        ("archive-too-deep",),
    ),
    Case("zip-nested-pickle", file("weights.zip", lambda: nested(3, zipped({"a.pkl": EVIL}))), "malicious"),
    Case(
        "zip-encrypted",
        file(
            "weights.zip",
            lambda: raw(member("a.bin", b"\x93\x11\x08" * 9, local={"flags": 1, "crc": 7}, central={"flags": 1, "crc": 7})),
        ),
        "could not tell",
        ("archive-encrypted",),
    ),
    Case("zip-cut-off", file("weights.zip", lambda: zipped({"a.txt": b"x" * 500})[:300]), "broken", ("archive-broken",)),
    Case(
        "zip-unknown-method",
        file("weights.zip", lambda: raw(member("a.txt", b"x" * 9, local={"method": 98}, central={"method": 98}))),
        "could not tell",
        ("archive-not-opened",),
    ),
    Case("zip-json-name", file("vocab.json", lambda: zipped({"a.txt": b"x"})), "broken", ("wrong-extension",)),
    Case("torch-hidden-member", with_hidden_member, "suspicious", ("archive-ambiguous",)),
    Case("npz-object-payload", npz, "malicious", fires=NPZ, needs=("numpy",)),
]

_OTHERS = [
    Case(
        "tar-climbs-out",
        file("model.tar", lambda: tarred({"../escaped.txt": b"x"})),
        "malicious",
        ("archive-traversal",),
        fires=UNPACK_TAR.replace("{name}", "model.tar"),
        see="CVE-2007-4559",
    ),
    Case(
        "tar-gz-link-out",
        file("model.tar.gz", lambda: _gz(tarred({"here": (tarfile.SYMTYPE, ".."), "here/escaped.txt": b"x"}))),
        "malicious",
        ("archive-traversal",),
        fires=UNPACK_TAR.replace("{name}", "model.tar.gz"),
    ),
    Case(
        "tar-hard-link-out",
        file("model.tar", lambda: tarred({"a": (tarfile.LNKTYPE, "../../etc/passwd")})),
        "malicious",
        ("archive-traversal",),
    ),
    Case("tar-device", file("model.tar", lambda: tarred({"a": (tarfile.CHRTYPE, "")})), "suspicious", ("archive-link",)),
    Case("tar-two-sizes", file("model.tar", two_sizes), "malicious", ("archive-ambiguous",), see="CVE-2025-62518"),
    Case("tar-behind-the-end", file("model.tar", behind_the_end), "malicious", ("archive-ambiguous",)),
    Case("tar-cut-off", file("model.tar", lambda: tarred({"a.txt": b"x" * 5000})[:3000]), "broken", ("archive-broken",)),
    Case("tar-payload", file("model.tar", lambda: tarred({"model/optimizer.pkl": EVIL})), "malicious"),
    Case(
        "tar-same-name-twice",
        file("model.tar", lambda: tarred({"a.txt": b"one", "./a.txt": b"two"})),
        "suspicious",
        ("archive-ambiguous",),
    ),
    Case("gzip-bomb", file("weights.gz", gzip_bomb), "malicious", ("archive-bomb",)),
    Case(
        "gzip-payload",
        file("model.joblib", lambda: _gz(EVIL)),
        "malicious",
        needs=("joblib",),
        fires="import joblib\njoblib.load(folder / 'model.joblib')\n",
    ),
    Case("bzip2-payload", file("state.pkl.bz2", lambda: bz2.compress(EVIL)), "malicious"),
    Case("xz-payload", file("state.pkl.xz", lambda: lzma.compress(EVIL)), "malicious"),
    Case(
        "lzma-payload",
        file("state.joblib", lambda: lzma.compress(EVIL, lzma.FORMAT_ALONE)),
        "malicious",
        needs=("joblib",),
        fires="import joblib\njoblib.load(folder / 'state.joblib')\n",
    ),
    Case("gzip-cut-off", file("a.txt.gz", lambda: _gz(b"hello " * 500)[:-20]), "broken", ("archive-broken",)),
    Case(
        "gzip-then-something",
        file("a.txt.gz", lambda: _gz(b"hello " * 50) + b"something else"),
        "suspicious",
        ("archive-extra-data",),
    ),
    Case("gzip-named-checkpoint", file("pytorch_model.bin", lambda: _gz(HONEST)), "suspicious", ("wrong-extension",)),
    Case(
        "7z-payload-named-checkpoint",
        file("pytorch_model.bin", lambda: seven({"data.pkl": EVIL})),
        "malicious",
        ("wrong-extension",),
        see="nullifAI",
    ),
    Case(
        "7z-climbs-out",
        file("model.7z", lambda: seven({"../a.txt": b"x", "b.txt": b"y"})),
        "malicious",
        ("archive-traversal",),
    ),
    Case("7z-damaged", file("model.7z", lambda: seven({"a.txt": b"x" * 300})[:-9]), "broken", ("archive-broken",)),
    Case("rar-not-opened", file("model.rar", b"Rar!\x1a\x07\x01\x00" + bytes(60)), "could not tell", ("archive-not-opened",)),
    Case("lz4-not-opened", file("model.lz4", b"\x04\x22\x4d\x18" + bytes(60)), "could not tell", ("archive-not-opened",)),
]

_CLEAN = [
    Case("clean-torch-zip", torch_file),
    Case("clean-zip", file("extras.zip", lambda: zipped({"a/notes.txt": b"hello\n", "b.csv": b"1,2\n"}, method=8))),
    Case("clean-zip-bzip2", file("extras.zip", lambda: zipped({"a.txt": b"hello\n" * 50}, method=zipfile.ZIP_BZIP2))),
    Case("clean-npz", lambda folder: __import__("numpy").savez(folder / "stats.npz", a=[1.0, 2.0], b=["x"])),
    Case(
        "clean-npz-compressed",
        lambda folder: __import__("numpy").savez_compressed(folder / "stats.npz", a=[[0.0] * 999] * 99),
    ),
    Case("clean-tar", file("extras.tar", lambda: tarred({"a/" + "n" * 150 + ".txt": b"hello\n", "b.csv": b"1,2\n"}))),
    Case(
        "clean-tar-gnu", file("extras.tar", lambda: tarred({"a/" + "n" * 150 + ".txt": b"hello\n"}, form=tarfile.GNU_FORMAT))
    ),
    Case(
        "clean-tar-link-inside",
        file("extras.tar", lambda: tarred({"a.txt": b"hello\n", "b.txt": (tarfile.SYMTYPE, "a.txt")})),
    ),
    Case("clean-tar-gz", file("extras.tar.gz", lambda: _gz(tarred({"a.txt": b"hello\n"})))),
    Case("clean-gzip-two-members", file("corpus.txt.gz", lambda: _gz(b"hello\n") + _gz(b"again\n"))),
    Case("clean-xz", file("corpus.jsonl.xz", lambda: lzma.compress(b'{"a": 1}\n' * 9))),
    Case("clean-bz2", file("corpus.txt.bz2", lambda: bz2.compress(b"hello\n" * 9))),
    Case("clean-joblib-gzip", lambda folder: __import__("joblib").dump({"a": [1, 2]}, folder / "params.joblib", compress=3)),
    Case("clean-7z", file("extras.7z", lambda: seven({"a.txt": b"hello\n" * 9, "b.txt": b"x"}))),
]
CASES = [*_ZIPS, *_OTHERS, *_CLEAN]
