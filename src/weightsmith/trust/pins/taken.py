"""Digests of a model's files, each taken from one reading of it: SHA-256, BLAKE3, git's own, and those of the tensors.

All digests of a file are of the same bytes in memory: if they were taken in two readings, a file that changes in between
could be vouched for with one digest and used under another.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from ...checkpoint import Checkpoint
from ...errors import BaseChanged, FormatError, LimitExceeded, Truncated, UsageError
from ...formats.safetensors import DTYPE_BITS, TensorDigest, TensorSpec, all_finite
from ...hub import Progress
from ...pinned import inside
from ...storage import parallel_map, usable_cores

BLOCK = 1 << 22
#: files that git, and not its extension for large files, may hold: the hub moves all above 10 MiB out
GIT = 32 << 20
#: below this a second thread costs more than it saves
LARGE = 64 << 20
MAX_FILES = 100_000
#: bookkeeping of git and of downloads, at the top of a folder only; no loader reads it
LEFT_OUT = (".git", ".cache")


@dataclass(frozen=True, slots=True)
class Taken:
    """What one file holds.

    ``size`` in bytes; ``sha256``, ``blake3`` and ``git`` (the SHA-1 of the file as git stores it; empty above 32 MiB) in hex
    digits; ``tensors`` maps a name to its BLAKE3 digest and whether all of its values are finite.
    """

    size: int
    sha256: str
    blake3: str
    git: str = ""
    tensors: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


def model_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files of a model by their names: relative POSIX paths, or the one name of a GGUF file.

    Raises:
        UsageError: one safetensors file of a folder was named instead of the folder.
    """
    if checkpoint.kind == "gguf":
        return {_named(checkpoint.path.name, checkpoint.path): checkpoint.path}
    ref = Path(checkpoint.ref).expanduser()
    if checkpoint.source["kind"] == "local" and ref.is_file():
        raise UsageError("one file of a folder was named", where=ref, hint=f"name the folder: {ref.parent}")
    return folder_files(checkpoint.path)


def folder_files(folder: Path) -> dict[str, Path]:
    """Every regular file below ``folder`` by its relative POSIX path, sorted.

    A link is followed to a file of the same folder, or of the cache of the hub that the folder belongs to. ``.git`` and
    ``.cache`` at the top are left out.

    Raises:
        FormatError: a link that leaves the folder, a link to a folder, a special file, or a name that isn't UTF-8.
        LimitExceeded: more than 100,000 files.
    """
    roots = [folder.resolve()]
    if (blobs := hub_blobs(folder)) is not None:
        roots.append(blobs)
    found: dict[str, Path] = {}
    for path, kind in walk(folder):
        name = _named(path.relative_to(folder).as_posix(), folder)
        if name.split("/")[0] in LEFT_OUT or kind == "folder":
            continue
        if kind == "link":
            real = Path(os.path.realpath(path))
            if real.is_dir():
                raise FormatError(f"{name!r} is a link to a folder", where=folder, hint="put the folder itself there")
            if not any(real.is_relative_to(root) for root in roots):
                raise FormatError(f"{name!r} is a link that leaves the folder", where=folder,
                                  hint="put a copy of the file there")  # fmt: skip
            kind = "file" if real.is_file() else "nothing"
        if kind != "file":
            raise FormatError(f"{name!r} is not a plain file", where=folder, hint="remove it from the folder")
        found[name] = path
        if len(found) > MAX_FILES:
            raise LimitExceeded(f"the folder holds more than {MAX_FILES} files", where=folder)
    return dict(sorted(found.items()))


def walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything below ``folder`` with what it is: ``folder``, ``file``, ``link`` or ``other``; links are not followed."""

    def raised(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=raised):
        for name in (*folders, *files):
            path = Path(root, name)
            mode = path.lstat().st_mode
            kinds = ((stat.S_ISLNK, "link"), (stat.S_ISDIR, "folder"), (stat.S_ISREG, "file"))
            yield path, next((kind for test, kind in kinds if test(mode)), "other")


def hub_blobs(folder: Path) -> Path | None:
    """Where the files of a snapshot in the hub client's cache really lie, when ``folder`` is one."""
    folder = folder.absolute()
    blobs = folder.parent.parent / "blobs"
    return blobs.resolve() if folder.parent.name == "snapshots" and blobs.is_dir() else None


def _named(name: str, where: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise FormatError("a file name is not UTF-8", where=where, hint="rename the file") from error
    try:
        return inside(name)
    except ValueError as error:
        raise FormatError(str(error), where=where, hint="rename the file") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of a regular file, opened without waiting for a writer as a fifo would, and its status.

    Raises:
        FormatError: not a regular file.
        BaseChanged: it is another file at the end, or has changed.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise FormatError("not a plain file", where=path) from error
        raise
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise FormatError("not a plain file", where=path)
        yield handle, before
        if _state(os.fstat(handle)) != _state(before):
            raise BaseChanged("the file changed while it was read", where=path, hint="run again when nobody writes to it")
    finally:
        os.close(handle)


def _state(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def blocks(handle: int, path: Path, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
    """The bytes of an open file in blocks of 4 MiB; each is overwritten two blocks later.

    Raises:
        Truncated: the file is shorter.
    """
    left = os.fstat(handle).st_size - start if length is None else length
    buffers = [memoryview(bytearray(min(BLOCK, max(left, 1)))) for _ in range(2)]
    turn = 0
    with open(handle, "rb", buffering=0, closefd=False) as file:
        file.seek(start)
        while left > 0:
            view = buffers[turn][: min(left, BLOCK)]
            filled = 0
            while filled < len(view):
                got = file.readinto(view[filled:])
                if not got:
                    raise Truncated(f"{left - filled} bytes short", where=path)
                filled += got
            yield view
            left -= filled
            turn = 1 - turn


def take(path: Path, tensors: Iterable[TensorSpec] = (), told: Callable[[int], None] | None = None) -> Taken:
    """All digests of a file in one reading; ``tensors`` are those that lie in it.

    Raises:
        FormatError: not a regular file.
        LimitExceeded: more than a gigabyte, of which less than an eighth is on the disk: it would be read for hours.
        BaseChanged: it changed meanwhile.
        Truncated: it ends early.
    """
    with opened(path) as (handle, info):
        if info.st_size > 1 << 30 and getattr(info, "st_blocks", info.st_size) * 512 < info.st_size // 8:
            raise LimitExceeded("mostly holes on the disk; it was not read", where=path, hint="no weights look like that")
        hashes: list[Any] = [hashlib.sha256(), blake3()]
        if info.st_size <= GIT:
            hashes.append(hashlib.sha1(b"blob %d\0" % info.st_size, usedforsecurity=False))
        inner = _Tensors(tensors)
        with _beside(info.st_size) as beside:
            position = 0
            for block in blocks(handle, path):
                slow = beside(hashes[0].update, block)
                for other in hashes[1:]:
                    other.update(block)
                inner.update(position, block)
                position += len(block)
                if slow is not None:
                    slow.result()
                if told:
                    told(len(block))
        digests = [h.hexdigest() for h in hashes]
        return Taken(info.st_size, digests[0], digests[1], digests[2] if len(digests) > 2 else "", inner.digests(path))


@contextlib.contextmanager
def _beside(size: int) -> Iterator[Callable[[Callable[[memoryview], object], memoryview], Future[object] | None]]:
    """A function that runs another on a second thread for a large file, and at once for a small one."""
    if size < LARGE or usable_cores() < 2:

        def now(function: Callable[[memoryview], object], block: memoryview) -> None:
            function(block)

        yield now
        return
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, block: pool.submit(function, block)


class _Tensors:
    """The digests of the tensors of one file, fed with its bytes from the first to the last."""

    def __init__(self, tensors: Iterable[TensorSpec]) -> None:
        self.rows = sorted((_Tensor(spec) for spec in tensors), key=lambda row: row.spec.start)
        self.first = 0

    def update(self, position: int, block: memoryview) -> None:
        """Take in the file's bytes from ``position``."""
        end = position + len(block)
        for at in range(self.first, len(self.rows)):
            spec = self.rows[at].spec
            if spec.start >= end:
                break
            self.rows[at].update(block[max(spec.start - position, 0) : min(spec.start + spec.nbytes, end) - position])
            if spec.start + spec.nbytes <= end and at == self.first:
                self.first += 1

    def digests(self, path: Path) -> dict[str, tuple[str, bool]]:
        """Digest and finiteness by name."""
        for row in self.rows:
            if row.fed != row.spec.nbytes:
                raise Truncated(f"tensor {row.spec.name!r} ends early", where=path)
        return {row.spec.name: (row.hash.hexdigest(), row.finite) for row in self.rows}


class _Tensor:
    """One of them; its elements may lie across two blocks where the file's header has an odd length."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.hash = TensorDigest(spec.dtype, check=False)
        self.finite = True
        self.fed = 0
        self.rest = b""

    def update(self, piece: memoryview) -> None:
        """Take in the next bytes."""
        self.hash.update(piece)
        self.fed += len(piece)
        whole = piece
        width = max(1, DTYPE_BITS.get(self.spec.dtype, 8) // 8)
        if self.rest or len(piece) % width:
            joined = self.rest + bytes(piece)
            cut = len(joined) - len(joined) % width
            self.rest, whole = joined[cut:], memoryview(joined)[:cut]
        self.finite = self.finite and all_finite(whole, self.spec.dtype)


def take_all(
    files: Mapping[str, Path], checkpoint: Checkpoint | None = None, progress: Progress | None = None
) -> dict[str, Taken]:
    """:func:`take` of many files, on all cores; the tensors of ``checkpoint`` among them."""
    inside: dict[Path, list[TensorSpec]] = {}
    for spec in checkpoint.tensors.values() if checkpoint is not None else ():
        inside.setdefault(spec.file, []).append(spec)
    total = sum(p.stat().st_size for p in files.values())
    done = 0

    def told(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress("digesting files", done, total)

    # the largest first: the last to end is then a small one
    order = sorted(files, key=lambda n: -files[n].stat().st_size)
    rows = parallel_map(lambda n: take(files[n], inside.get(files[n], ()), told), order)
    found = dict(zip(order, rows, strict=True))
    return {name: found[name] for name in files}


ALGORITHMS: dict[str, Callable[[], Any]] = {
    "sha256": hashlib.sha256, "blake2b": hashlib.blake2b, "blake3": blake3,
}  # fmt: skip


def digest_range(path: Path, algorithm: str, start: int = 0, length: int | None = None) -> str:
    """Hex digest of a part of a file by one of :data:`ALGORITHMS`.

    Raises:
        Truncated: the file is shorter.
    """
    digest = ALGORITHMS[algorithm]()
    with opened(path) as (handle, _):
        for block in blocks(handle, path, start, length):
            digest.update(block)
    return str(digest.hexdigest())
