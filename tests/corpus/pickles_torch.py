"""Torch's files, zip, older sequence and first tar: with payloads, with two readings, and with storages that do not fit."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

from . import Case
from .assembly import (
    BUILD,
    EMPTY_DICT,
    EMPTY_TUPLE,
    NEWOBJ,
    NONE,
    POP,
    PYTHON,
    REDUCE,
    STOP,
    TUPLE1,
    args,
    call,
    named,
    proto,
    put,
    python,
    system,
    text,
)  # fmt: skip

BIN = "pytorch_model.bin"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
Members = list[tuple[str, bytes]]


def load(name: str = BIN) -> str:
    """Source that loads a file with torch's unsafe loader."""
    return f"import torch; torch.load(folder / {name!r}, weights_only=False)"


def saved(value: Any = None, *, legacy: bool = False, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    import torch

    file = io.BytesIO()
    torch.manual_seed(0)
    value = {"a.weight": torch.randn(4, 3), "b": torch.arange(5)} if value is None else value
    torch.save(value, file, _use_new_zipfile_serialization=not legacy, **options)
    return file.getvalue()


def members(data: bytes) -> Members:
    """Names and bytes of a zip's members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zipped(parts: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive; names may come twice."""
    import warnings

    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in parts:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def changed(change: Callable[[Members], Members], method: int = zipfile.ZIP_STORED) -> Callable[[], bytes]:
    """A saved file whose members were changed."""
    return lambda: zipped(change(members(saved())), method)


def with_pickle(data: bytes) -> Callable[[Members], Members]:
    """Another ``data.pkl``."""
    return lambda parts: [(n, data if n.endswith("data.pkl") else d) for n, d in parts]


def planted(parts: Members) -> Members:
    """The payload before the tensors: they load as if nothing was."""
    extra = call("builtins", "exec", text(PYTHON)) + POP
    return [(n, d[:2] + extra + d[2:] if n.endswith("data.pkl") else d) for n, d in parts]


def plus(*more: tuple[str, bytes], first: bool = False) -> Callable[[Members], Members]:
    """More members, in the archive's own folder."""

    def change(parts: Members) -> Members:
        root = parts[0][0].partition("/")[0]
        extra = [(n.replace("ROOT", root), d) for n, d in more]
        return extra + parts if first else parts + extra

    return change


def without(ending: str) -> Callable[[Members], Members]:
    """Without one member."""
    return lambda parts: [(n, d) for n, d in parts if not n.endswith(ending)]


def _patched(find: bytes, offset: int, value: bytes, *, name: bytes = b"data.pkl") -> Callable[[], bytes]:
    """Bytes of the header with signature ``find`` that belongs to a member, changed."""

    def build() -> bytes:
        data = bytearray(zipped(planted(members(saved()))))
        size = 30 if find == b"PK\x03\x04" else 46
        at = data.find(find)
        while not data[at + size : at + size + 40].split(b"PK")[0].rpartition(b"/")[2].startswith(name):
            at = data.find(find, at + 4)
        data[at + offset : at + offset + len(value)] = value
        return bytes(data)

    return build


def _wrong_checksums() -> bytes:
    """Python's zip reader refuses the pickle, torch's reads it."""
    data = bytearray(zipped(planted(members(saved()))))
    for signature, offset, size in ((b"PK\x03\x04", 14, 30), (b"PK\x01\x02", 16, 46)):
        at = data.find(signature)
        while at >= 0:
            if b"data.pkl" in data[at + size : at + size + 24]:
                data[at + offset : at + offset + 4] = b"\x01\x02\x03\x04"
            at = data.find(signature, at + 4)
    return bytes(data)


def _damaged_storage() -> bytes:
    data = bytearray(saved())
    at = data.find(b"PK\x03\x04", data.find(b"data/0") - 40)
    start = at + 30 + sum(struct.unpack_from("<2H", data, at + 26))
    data[start] ^= 1
    return bytes(data)


# -- torch's sequence of pickles -----------------------------------------------------------------------------------


def sequence(**parts: bytes) -> bytes:
    """Magic, protocol, system, object, keys and storages, with any of them replaced."""
    whole = {"magic": MAGIC, "protocol": pickle.dumps(1001, 2), "system": pickle.dumps({"little_endian": True}, 2),
             "object": pickle.dumps({}, 2), "keys": pickle.dumps([], 2), "storages": b"", **parts}  # fmt: skip
    return b"".join(whole.values())


def _storage(numel: int = 4, key: str = "7") -> bytes:
    kind, count = named("torch", "FloatStorage"), struct.pack("<cI", b"J", numel)
    pid = args(text("storage"), kind, text(key), text("cpu"), count, NONE) + b"Q"
    hooks = call("collections", "OrderedDict")
    tensor = call("torch._utils", "_rebuild_tensor_v2", pid, b"K\x00", args(b"K\x04"), args(b"K\x01"), b"\x89", hooks)
    return proto(2) + EMPTY_DICT + text("a") + tensor + b"s" + STOP


def _container(func: bytes, code: str) -> bytes:
    """An id that stands for a class in old files, which is then called."""
    return proto(2) + args(text("module"), func, NONE, NONE) + b"Q" + text(code) + TUPLE1 + REDUCE + STOP


_DATA = struct.pack("<q4f", 4, 1, 2, 3, 4)
_KEYS = pickle.dumps(["7"], 2)


# -- torch's first format --------------------------------------------------------------------------------------------


def tarred(**parts: bytes) -> bytes:
    """A tar of storages, tensors and pickle, with any of them replaced."""
    storages = pickle.dumps(1, 2) + proto(2) + args(b"K\x07", text("cpu"), named("torch", "FloatStorage")) + STOP + _DATA
    tensors = pickle.dumps(1, 2) + proto(2) + args(b"K\x09", b"K\x07", named("torch", "FloatTensor")) + STOP
    tensors += struct.pack("<iiqqq", 1, 0, 4, 1, 0)
    whole = {"storages": storages + pickle.dumps([], 2), "tensors": tensors,
             "pickle": proto(2) + EMPTY_DICT + text("a") + b"K\x09Q" + b"s" + STOP, **parts}  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in whole.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _script() -> bytes:
    import torch

    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


def _whole() -> bytes:
    import torch

    return saved(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))


def case(name: str, data: bytes | Callable[[], bytes], verdict: str = "malicious", rules: tuple[str, ...] = ("pickle-code",),
         *, file: str = BIN, fires: bool = True, see: str = "") -> Case:  # fmt: skip
    """A case of one torch file; those that are malicious fire."""
    run = load(file) if fires and verdict == "malicious" else ""
    return Case(f"torch-{name}", put(data, file), verdict, rules, run, see or "https://docs.pytorch.org/docs/stable/notes/serialization.html",
                ("torch",))  # fmt: skip


_LAYER = named("torch.nn.modules.linear", "Linear") + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + text("in_features") + b"K\x01s" + BUILD
_SIZE, _DIFFER, _TRAILING = ("torch-storage-size",), ("torch-readers-differ", "archive-ambiguous"), ("pickle-trailing",)
TORCH: list[Case] = [
    case("payload", changed(with_pickle(system()))),
    case("payload-beside-tensors", changed(planted)),
    case("payload-deflated", changed(planted, zipfile.ZIP_DEFLATED)),
    case("payload-broken-behind", changed(with_pickle(system()[:-1] + b"\xff"))),
    case("payload-wrong-checksum", _wrong_checksums, see="CVE-2025-10156"),
    case("payload-other-local-name", _patched(b"PK\x03\x04", 30, b"x"), see="CVE-2025-1944"),
    case("payload-password-flag", _patched(b"PK\x03\x04", 6, b"\x01"), see="CVE-2025-1945"),
    case("payload-twice-last", changed(plus(("ROOT/data.pkl", system()))), fires=False),
    case("payload-twice-first", changed(plus(("ROOT/data.pkl", system()), first=True)), fires=False),
    case("payload-in-second-folder", changed(plus(("other/data.pkl", system()))), fires=False),
    case("payload-in-first-folder", changed(plus(("0/data.pkl", system()), ("0/version", b"3\n"), first=True)), fires=False),
    case("payload-other-case", changed(plus(("ROOT/DATA.PKL", system()))), fires=False),
    case("payload-in-version", changed(lambda p: [(n, system() if n.endswith("/version") else d) for n, d in p]), fires=False),
    case("payload-as-unused-storage", changed(plus(("ROOT/data/99", system()))), fires=False),
    case("payload-as-other-member", changed(plus(("ROOT/extra/notes", system()))), fires=False),
    case("payload-before-zip", lambda: system() + saved()),
    case("payload-behind-stop", changed(lambda p: [(n, d + system() if n.endswith("data.pkl") else d) for n, d in p]), fires=False),
    case("adapter", changed(planted), file="adapter_model.bin"),
    case("optimizer", changed(planted), file="optimizer.pt"),
    case("rng-state", changed(planted), file="rng_state.pth"),
    case("storage-missing", changed(without("data/0")), "broken", _SIZE),
    case("storage-short", changed(lambda p: [(n, d[:-4] if n.endswith("data/0") else d) for n, d in p]), "broken", _SIZE),
    case("storage-long", changed(lambda p: [(n, d + b"1234" if n.endswith("data/1") else d) for n, d in p]), "broken", _SIZE),
    case("storage-damaged", _damaged_storage, "broken", ("torch-storage-damaged",)),
    case("storage-unused", changed(plus(("ROOT/data/99", b"\0" * 64))), "suspicious", ("torch-unused-member",)),
    case("two-pickles", changed(plus(("other/data.pkl", pickle.dumps({})))), "broken", _DIFFER),
    case("method-bzip2", changed(lambda p: p, zipfile.ZIP_BZIP2), "broken", _DIFFER),
    case("behind-stop", changed(lambda p: [(n, d + b"more" if n.endswith("data.pkl") else d) for n, d in p]), "suspicious",
         _TRAILING),
    case("script", _script, "suspicious", ("torchscript",), file="model.pt"),
    case("whole-module", _whole, "suspicious", ("pickle-whole-module",), file="model.pt"),
    case("whole-module-of-a-library", changed(with_pickle(
        proto(2) + named("somewhere.nn.tasks", "Detector") + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + text("model") + _LAYER + b"s"
        + BUILD + STOP)), "suspicious", ("pickle-whole-module",), file="best.pt"),
    case("whole-module-with-a-call", changed(with_pickle(
        proto(2) + _LAYER + POP + named("somewhere.nn.tasks", "Detector") + text("x") + TUPLE1 + NEWOBJ + STOP)),
        rules=("pickle-unlisted-call",), file="best.pt", fires=False),
    case("sequence-payload-as-magic", sequence(magic=system())),
    case("sequence-payload-as-protocol", sequence(protocol=python())),
    case("sequence-payload-as-system", sequence(system=python())),
    case("sequence-payload-as-object", sequence(object=python())),
    case("sequence-payload-as-keys", sequence(keys=python())),
    case("sequence-payload-behind", sequence(object=_storage(), keys=_KEYS, storages=_DATA + system()), fires=False),
    case("sequence-payload-as-container", sequence(object=_container(named("builtins", "exec"), PYTHON))),
    case("sequence-unlisted-container", sequence(object=_container(named("sympy.core.sympify", "sympify"), PYTHON)),
         rules=("pickle-unlisted-call",)),
    case("sequence-cut", sequence(object=_storage(), keys=_KEYS, storages=_DATA[:-2]), "broken", _SIZE),
    case("sequence-other-size", sequence(object=_storage(8), keys=_KEYS, storages=_DATA), "broken", _SIZE),
    case("sequence-other-key", sequence(object=_storage(key="8"), keys=_KEYS, storages=_DATA), "broken", _SIZE),
    case("sequence-outside", sequence(object=_storage(2), keys=_KEYS, storages=struct.pack("<q2f", 2, 1, 2)), "broken",
         ("torch-tensor-outside",)),
    case("tar-payload-as-pickle", tarred(pickle=system()), file="model.pth"),
    case("tar-payload-in-storages", tarred(storages=pickle.dumps(1, 2) + system()), file="model.pth"),
    case("tar-payload-in-tensors", tarred(tensors=pickle.dumps(1, 2) + python()), file="model.pth"),
]  # fmt: skip
