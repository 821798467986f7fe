"""The bytes that are checked are the bytes that are used: a private copy of a model's files, checked after it was made.

A path can be given other contents between a check and a use, and so can mapped memory while it is used. So what a loader
gets is a folder of our own (mode 0700) that holds the pinned files and nothing else: small ones as copies, large ones as
links to memory that the kernel has sealed against writing (``memfd`` with seals). Digests are taken of the copies. Where the
platform has no such memory, or too little is free, large files are copied to the cache's disk instead, as clones where the
file system can: then other processes of the same user could still change them, which other users can't.

Accepted trade-offs: while a model loads, its weights lie in memory once more; and a process that may debug ours can do
anything.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from ...checkpoint import PICKLES, RECORD, Checkpoint, open_checkpoint, read_json, runnable
from ...errors import DigestMismatch, FormatError, ManifestMismatch
from ...found import ScannedFile
from ...hub import Progress
from ...pinned import PinnedFile, PinnedModel
from ...storage import (
    alive,
    cache_dir,
    disk_errors,
    free_memory,
    parallel_map,
    require_space,
    share_blocks,
    usable_cores,
)
from .taken import blocks, model_files, opened

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: files below this are copied whole
LARGE = 32 << 20
PIECE = 64 << 20
BUFFER = 1 << 20
#: share of the free memory that a copy of the weights may take
SHARE = 0.7
#: weights in other formats, which no loader of ours reads
WEIGHTS = (*PICKLES, ".safetensors", ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".npz", ".tflite", ".nemo", ".zip")
# fcntl.h of Linux: F_ADD_SEALS; no more seals, no shrinking, no growing, no writing
_ADD_SEALS, _SEALS = 1033, 1 | 2 | 4 | 8


@dataclass(frozen=True)
class Held(Checkpoint):
    """A checkpoint that is held against ``entry``, and whose digests are the pinned ones.

    These were taken together with the digests of its files. ``unpinned`` names files of its folder that are not pinned.
    """

    entry: PinnedModel | None = field(default=None, compare=False)
    real: Path = field(default=Path(), compare=False)
    unpinned: tuple[str, ...] = field(default=(), compare=False)
    frozen: bool = field(default=False, compare=False)

    @property
    def pinned(self) -> PinnedModel:
        """What the lock says."""
        assert self.entry is not None
        return self.entry

    @property
    def title(self) -> str:
        """Short name for people."""
        return self.ref if self.source["kind"] != "local" else self.real.name or str(self.real)

    def known_digests(self) -> dict[str, str] | None:
        """The pinned digests, where all values are finite."""
        return None if self.pinned.not_finite else {n: self.pinned.tensors[n].blake3 for n in self.tensors}

    def _read_all(self, progress: Progress | None) -> dict[str, tuple[str, bool]]:
        bad = set(self.pinned.not_finite)
        return {name: (self.pinned.tensors[name].blake3, name not in bad) for name in self.tensors}

    def file_sha256(self) -> str:
        """SHA-256 of a GGUF file, as pinned."""
        return self.pinned.files[self.path.name].sha256

    def check_record(self) -> None:
        """Compare the pinned digests with those in the folder's own record, when it has one; no file is read again.

        Raises:
            DigestMismatch, ManifestMismatch: as for any checkpoint.
        """
        record = self.path / RECORD
        if self.kind != "folder" or not record.is_file():
            return
        outputs = read_json(record).get("outputs")
        if not isinstance(outputs, dict):
            raise FormatError("`outputs` must map the folder's files to their digests", where=self.real / RECORD)
        for name in {*outputs, *(f.name for f in self.weight_files)}:
            pinned = self.pinned.files.get(name)
            if pinned is None or name not in outputs:
                raise ManifestMismatch(f"{name!r:.120} is not both in the record and pinned", where=self.real)
            if pinned.sha256 != outputs[name]:
                raise DigestMismatch(f"{name!r:.120} is not the file that was written", where=self.real,
                                     hint="the file was changed or damaged after the edit; rebuild it")  # fmt: skip


@dataclass(frozen=True)
class Used(Held):
    """A checkpoint whose ``path`` is a private copy of pinned files; ``real`` is where they came from.

    Files that are not pinned are not in the copy. ``given`` is the checkpoint that was copied; ``sealed`` says whether nobody
    at all can change the large ones.
    """

    sealed: bool = field(default=False, compare=False)
    given: Checkpoint | None = field(default=None, compare=False)

    def derived(self) -> Path:
        """Where conversions of it are kept: with ``frozen`` beside the copy, so that none of an earlier run is used."""
        return (self.path.parent if self.kind == "gguf" else self.path) / "derived" if self.frozen else cache_dir()

    def require_scanned(self, files: Iterable[ScannedFile]) -> None:
        """Refuse a copy of other bytes than a scan saw; with this, a remembered verdict is one on digests.

        Raises:
            DigestMismatch: a file was changed between the scan and the copy, or was not read whole by the scan.
        """
        seen = {f.name: f.sha256 for f in files}
        for name, pinned in self.pinned.files.items():
            copied = self.path.name == name if self.kind == "gguf" else (self.path / name).exists()
            if copied and seen.get(name) != pinned.sha256:
                raise DigestMismatch(f"{name!r:.120} is not the file that was scanned", where=self.real,
                                     hint="run again when nobody writes to the folder")  # fmt: skip

    def remember(self, digests: Mapping[str, str], broken: Collection[str] = ()) -> None:
        """Nothing is remembered of a copy that is about to go."""

    def _place(self, digest: str) -> None:
        """It is no place to look for the model later."""


@dataclass(frozen=True)
class Streamed(Held):
    """A checkpoint at its own path, for jobs that read files and load nothing.

    Its config, template and settings were parsed from bytes that were checked. Its weights are not copied: a job that reads
    each tensor once and compares what it read with ``known_digests`` checks the very bytes that it uses. For any other they
    were checked beforehand, and could be changed since.
    """

    def require_files(self, digests: Mapping[str, str]) -> None:
        """Refuse files that were copied from the model (SHA-256 by name) and are not the pinned ones.

        Raises:
            DigestMismatch: with the name of the first.
        """
        for name, sha256 in digests.items():
            if name not in self.pinned.files or self.pinned.files[name].sha256 != sha256:
                raise _differs(name, self.real)


@dataclass(frozen=True)
class Conversion(Checkpoint):
    """The cache's conversion of a model whose files were checked against ``entry``."""

    entry: PinnedModel | None = field(default=None, compare=False)


def _differs(name: str, where: Path) -> DigestMismatch:
    return DigestMismatch(f"{name!r:.120} is not the file that was pinned", where=where,
                          hint="`weightsmith verify` shows what differs; `weightsmith pin --update` pins a change")  # fmt: skip


def streamed(checkpoint: Checkpoint, entry: PinnedModel, *, frozen: bool = False, weights: bool = True) -> Streamed:
    """``checkpoint`` held against ``entry`` without a copy of its weights; with ``weights`` they are digested now.

    Raises:
        DigestMismatch: a file is not the one that was pinned.
        ManifestMismatch: as for :func:`used_bytes`, or tensors of other names, dtypes or shapes than pinned.
    """
    wanted, unpinned = _wanted(checkpoint, entry, frozen)
    heavy = {n: p for n, p in wanted.items() if p in set(checkpoint.weight_files)}
    for name, path in heavy.items() if weights else ():
        with opened(path) as (handle, info):
            if info.st_size != entry.files[name].size or _blake3(handle, path) != entry.files[name].blake3:
                raise _differs(name, checkpoint.path)
    with _private() as folder:
        copies = _Copies(folder, checkpoint.path, in_memory=False)
        copies.make({n: p for n, p in wanted.items() if n not in heavy}, entry.files, None)
        for name, path in heavy.items():
            (folder / name).symlink_to(path.resolve())
        checked = open_checkpoint(str(folder / (next(iter(heavy)) if checkpoint.kind == "gguf" else "")))
    whole = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)}
    whole |= {n: getattr(checked, n) for n in ("config", "chat_template", "tokenizer", "generation")}
    found = Streamed(**whole, entry=entry, real=checkpoint.path, unpinned=unpinned, frozen=frozen)
    _check_tensors(found, entry)
    return found


def _wanted(checkpoint: Checkpoint, entry: PinnedModel, frozen: bool) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The pinned files that a job may read, and the names of those that are not pinned."""
    files = model_files(checkpoint)
    unpinned = tuple(n for n in files if n not in entry.files and n != "weightsmith.lock")
    if frozen and unpinned:
        raise ManifestMismatch(f"{unpinned[0]!r:.120} is there and not pinned", where=checkpoint.path,
                               hint="remove it, or pin the model again")  # fmt: skip
    if missing := [n for n in entry.files if n not in files]:
        raise ManifestMismatch(f"{missing[0]!r:.120} is pinned and not there", where=checkpoint.path)
    weights = set(checkpoint.weight_files)
    wanted = {n: p for n, p in files.items()
              if n in entry.files and (p in weights or not n.lower().endswith(WEIGHTS))}  # fmt: skip
    return wanted, unpinned


@contextlib.contextmanager
def used_bytes(
    checkpoint: Checkpoint, entry: PinnedModel, *, frozen: bool = False, progress: Progress | None = None
) -> Iterator[Used]:
    """A checkpoint over a private copy of ``entry``'s files; the copy goes when the block ends, mapped memory stays.

    Raises:
        DigestMismatch: a file is not the one that was pinned.
        ManifestMismatch: a pinned file is missing, or with ``frozen`` there is one that is not pinned.
        DiskFull: there is neither memory nor disk for the copy.
    """
    wanted, unpinned = _wanted(checkpoint, entry, frozen)
    with _private() as folder:
        large = sum(entry.files[n].size for n in wanted if entry.files[n].size >= LARGE)
        copies = _Copies(folder, checkpoint.path, in_memory=large <= SHARE * free_memory())
        try:
            copies.make(wanted, entry.files, progress)
            name = next(iter(wanted)) if checkpoint.kind == "gguf" else ""
            opened_ = open_checkpoint(str(folder / name))
            whole = {f.name: getattr(opened_, f.name) for f in fields(Checkpoint)}
            whole |= {"ref": checkpoint.ref, "source": checkpoint.source}
            used = Used(**whole, entry=entry, real=checkpoint.path, unpinned=unpinned, sealed=copies.in_memory,
                        frozen=frozen, given=checkpoint)  # fmt: skip
            _check_tensors(used, entry)
            yield used
        finally:
            copies.close()


def _check_tensors(used: Held, entry: PinnedModel) -> None:
    """The pinned digests answer to the tensors that the copy holds; a lock that was edited by hand could say anything."""
    for name, t in used.tensors.items():
        pinned = entry.tensors.get(name)
        if pinned is None or (pinned.dtype, tuple(pinned.shape)) != (t.dtype, t.shape):
            raise ManifestMismatch(f"the lock's tensors are not those of its files, e.g. {name!r:.120}", where=used.real,
                                   hint="pin the model again")  # fmt: skip
    digests = {name: row.blake3 for name, row in entry.tensors.items() if name in used.tensors}
    if used.digest_of(digests) != entry.digest:
        raise ManifestMismatch("the lock's digest of the model does not follow from its tensors", where=used.real,
                               hint="pin the model again")  # fmt: skip


#: where this process makes its private copies, when that was settled before it was restricted
_place: list[Path] = []


@contextlib.contextmanager
def own_place() -> Iterator[Path]:
    """A folder for the private copies of this process and its forks alone: no other run can write to them."""
    with _private() as folder:
        _place.append(folder)
        try:
            yield folder
        finally:
            _place.remove(folder)


@contextlib.contextmanager
def _private() -> Iterator[Path]:
    """A new folder of our own in the cache, gone at the end; what killed processes left is removed."""
    parent = _place[-1] if _place else cache_dir() / "used"
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.iterdir() if not _place else ():
            owner = left.name.partition("-")[0]
            if owner.isdecimal() and int(owner) != os.getpid() and not alive(int(owner)):
                shutil.rmtree(left, ignore_errors=True)
        folder = parent / f"{os.getpid()}-{secrets.token_hex(8)}"
        folder.mkdir(0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Copies:
    """The files of one private folder, and the sealed memory that its links lead to."""

    def __init__(self, folder: Path, real: Path, *, in_memory: bool) -> None:
        self.folder = folder
        self.real = real
        self.in_memory = in_memory and hasattr(os, "memfd_create") and fcntl is not None and Path("/proc/self/fd").is_dir()
        self.handles: list[int] = []

    def make(self, files: Mapping[str, Path], pinned: Mapping[str, PinnedFile], progress: Progress | None) -> None:
        """Copy every file, then hold the copy against its pinned digest."""
        for name, path in files.items():
            if path.stat().st_size != pinned[name].size:
                raise _differs(name, self.real)
        small = [n for n in files if pinned[n].size < LARGE]
        total, done = sum(pinned[n].size for n in files), 0

        def one(name: str) -> None:
            nonlocal done
            self._small(name, files[name], pinned[name])
            done += pinned[name].size
            if progress:
                progress("checking pinned files", done, total)

        parallel_map(one, small)
        for name in (n for n in files if pinned[n].size >= LARGE):
            target = self._large(name, files[name])
            if self._digest(target) != pinned[name].blake3:
                raise _differs(name, self.real)
            done += pinned[name].size
            if progress:
                progress("checking pinned files", done, total)

    def _digest(self, target: str) -> str:
        """BLAKE3 of a copy; what is sealed can't be cut, so it can be mapped."""
        if self.in_memory:
            digest = blake3(max_threads=usable_cores())
            digest.update_mmap(target)
            return str(digest.hexdigest())
        with opened(Path(target)) as (handle, _):
            return _blake3(handle, Path(target))

    def _small(self, name: str, path: Path, pinned: PinnedFile) -> None:
        with opened(path) as (handle, _):
            raw = b"".join(iter(lambda: os.read(handle, BUFFER), b"")) if pinned.size else b""
        if len(raw) != pinned.size or blake3(raw).hexdigest() != pinned.blake3:
            raise _differs(name, self.real)
        target = self._target(name)
        target.write_bytes(raw)

    def _target(self, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return target

    def _large(self, name: str, path: Path) -> str:
        """Copy a large file and link or put it into the folder; the path of the copy."""
        target = self._target(name)
        with opened(path) as (handle, info):
            if self.in_memory:
                copy = os.memfd_create("weightsmith", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                self.handles.append(copy)
                _copy(handle, copy, info.st_size)
                fcntl.fcntl(copy, _ADD_SEALS, _SEALS)
                target.symlink_to(f"/proc/self/fd/{copy}")
                return f"/proc/self/fd/{copy}"
            with disk_errors(target):
                require_space(self.folder, info.st_size)
                copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
                try:
                    if not share_blocks(handle, copy):
                        _copy(handle, copy, info.st_size)
                finally:
                    os.close(copy)
            return str(target)

    def close(self) -> None:
        """Let go of the memory; what is mapped from it stays."""
        for handle in self.handles:
            os.close(handle)
        self.handles.clear()


def _blake3(handle: int, path: Path) -> str:
    """BLAKE3 of an open file on all cores, by reading it and not by mapping it: a file that is cut meanwhile would kill us."""
    digest = blake3(max_threads=usable_cores())
    for block in blocks(handle, path):
        digest.update(block)
    return str(digest.hexdigest())


def _copy(source: int, target: int, size: int) -> None:
    """Copy ``size`` bytes, pieces on all cores."""
    if not hasattr(os, "preadv"):  # Windows and old systems: one after the other
        while block := os.read(source, BUFFER):
            os.write(target, block)
        return

    def piece(start: int) -> None:
        buffer = memoryview(bytearray(BUFFER))
        position, end = start, min(start + PIECE, size)
        while position < end:
            got = os.preadv(source, [buffer[: min(BUFFER, end - position)]], position)
            if not got:
                return  # shorter than it was: its digest will differ
            view = buffer[:got]
            while view:
                wrote = os.pwrite(target, view, position)
                view, position = view[wrote:], position + wrote

    os.ftruncate(target, size)
    parallel_map(piece, range(0, size, PIECE))


def lasting(checkpoint: Checkpoint) -> Checkpoint:
    """What to keep of a :class:`Used`, or of a conversion of one, when its copy is going: call it before the block ends.

    A folder becomes a :class:`Streamed` at its own place, a conversion the cache's, made of the checked bytes.
    """
    guard = checkpoint.origin or checkpoint
    if not isinstance(guard, Used) or guard.given is None:
        return checkpoint
    if guard is checkpoint:
        return streamed(guard.given, guard.pinned, frozen=guard.frozen, weights=False)
    if guard.frozen:
        checkpoint = runnable(replace(guard, frozen=False), dequantize=guard.kind == "folder")
    whole = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)} | {"origin": guard.given}
    return Conversion(**whole, entry=guard.pinned)


def describe(used: Any) -> str:
    """One line for people about what was checked, empty where nothing was."""
    if not isinstance(used, Held | Conversion) or used.entry is None:
        return ""
    count = len(used.entry.files)
    files = f"{count} {'file' if count == 1 else 'files'}"
    if isinstance(used, Conversion):
        return f"{files} as pinned, converted from a private copy"
    if not isinstance(used, Used):
        return f"{files} pinned, weights compared as they are read"
    return f"{files} as pinned, used from a private copy" + (f", {len(used.unpinned)} more left out" if used.unpinned else "")
