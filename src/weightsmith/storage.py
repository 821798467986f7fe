"""What every writer of files shares: canonical JSON, digests, outputs that appear whole or not at all.

Accepted trade-off: what is written here is flushed with ``fsync`` once per file before the final rename, which
costs a little time and buys that a power cut can't leave a complete-looking folder with empty files (edited weights,
whose record has their digests, are not: see :mod:`weightsmith.execute`).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from .errors import DiskFull, FormatError, OutputExists, ResourceError, Truncated, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BLOCK = 1 << 22
_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file
#: scratch names of this very process; what has its number and is not here was left by a dead one
_LIVE: set[str] = set()


class Mover(Protocol):
    """Puts finished outputs where this process may not write: someone who may does it, see :func:`write_through`."""

    def takes(self, target: Path) -> bool:
        """Whether ``target`` is to be put in its place by this one; this process writes anything else itself."""

    def aside(self, target: Path) -> Path:
        """A free name to write ``target`` under until it is finished."""

    def put(self, made: Path, target: Path, *, replace: bool) -> None:
        """Have ``made``, a name from :meth:`aside`, renamed to ``target``; returns when it stands there."""

    def withdraw(self, target: Path) -> None:
        """Have a file removed that was put there before."""


_MOVER: list[Mover] = []


def _mover(target: Path) -> Mover | None:
    return next((m for m in _MOVER if m.takes(target)), None)


def write_through(mover: Mover) -> None:
    """From now on, what this process writes whole is put in its place by ``mover``."""
    _MOVER[:] = [mover]


def withdraw(target: Path) -> None:
    """Remove a file that this process wrote whole, if it is there."""
    target = Path(os.path.abspath(target))
    if (mover := _mover(target)) is not None:
        mover.withdraw(target)
    else:
        target.unlink(missing_ok=True)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces and no NaN: equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def strict_json(raw: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """A value from JSON that must be UTF-8 and hold no half of a surrogate pair, which could not be written again.

    Raises:
        ValueError, RecursionError: anything else.
    """
    value = json.loads(raw.decode(), object_pairs_hook=pairs)
    if b"\\ud" in raw or b"\\uD" in raw:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json(path: Path) -> Any:
    """A JSON object from a file.

    Raises:
        FormatError: not UTF-8, not JSON, or not an object.
    """
    try:
        value = strict_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON ({error})", where=path) from error
    if not isinstance(value, dict):
        raise FormatError("expected a JSON object", where=path)
    return value


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def share_blocks(source: int, target: int) -> bool:
    """Share all blocks of the open file ``source`` with ``target``, where the file system copies on write; whether it could."""
    if fcntl is None:
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def sha256_range(path: Path, start: int = 0, length: int | None = None) -> str:
    """SHA-256 of ``length`` bytes of a file from ``start`` (to its end by default).

    Raises:
        Truncated: the file is shorter than that.
    """
    digest = hashlib.sha256()
    left = path.stat().st_size - start if length is None else length
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left > 0:
            got = file.readinto(view[: min(left, BLOCK)])
            if not got:
                raise Truncated(f"{left} bytes short", where=path)
            digest.update(view[:got])
            left -= got
    return digest.hexdigest()


def parallel_map(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int | None = None,
    stop: threading.Event | None = None, quiet: type[BaseException] | None = None,
) -> list[Any]:  # fmt: skip
    """``[function(x) for x in items]`` on threads, in order; hashing and numpy release the lock.

    ``stop`` is set as soon as one of them fails or the user interrupts, so that long ones can end early; what these
    then raise, ``quiet``, never hides the error that was first.
    """
    with ThreadPoolExecutor(max_workers=workers or usable_cores()) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        failed = [f for f in futures if f.done() and not f.cancelled() and f.exception() is not None]
        if failed:
            if stop is not None:
                stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            ended = [f.exception() for f in futures if f.done() and not f.cancelled() and f.exception() is not None]
            raise next((e for e in ended if quiet is None or not isinstance(e, quiet)), ended[0])  # type: ignore[misc]
        return [f.result() for f in futures]


def usable_cores() -> int:
    """Cores that this process may use (cgroup and affinity aware where the platform says so)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of memory that can be had without swapping: what the system says, and the limit of our control group; 0 where
    it does not say."""
    free = 0
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        row = next(r for r in Path("/proc/meminfo").read_text().splitlines() if r.startswith("MemAvailable:"))
        free = int(row.split()[1]) << 10
    with contextlib.suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return free


def all_memory() -> int:
    """Bytes of memory that this machine, or our control group, has; 0 where it does not say."""
    whole = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            whole = min(whole, int(limit))
    return whole


def cache_dir() -> Path:
    """Root of the cache: ``$WEIGHTSMITH_CACHE``, else the platform's user cache folder."""
    if override := os.environ.get("WEIGHTSMITH_CACHE"):
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "weightsmith"


@contextlib.contextmanager
def disk_errors(where: object, kept: str = "nothing was kept") -> Iterator[None]:
    """Turn the operating system's "no space" and "not permitted" into one clear error each."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"no space left while writing; {kept}",
                where=where,
                hint="free some space or choose another disk with -o",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError("not permitted to write here", where=where, hint="choose another place with -o") from error
        raise


def refuse_existing(path: Path, *, folder: bool = True) -> None:
    """Raise :class:`OutputExists` when ``path`` is taken (where a ``folder`` is to stand, an empty one is not)."""
    empty = folder and path.is_dir() and _is_empty(path)
    if path.is_symlink() or (path.exists() and not empty):
        raise OutputExists(
            "the output exists already; it was left alone",
            where=path,
            hint="remove it or choose another name with -o",
        )


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except PermissionError:  # whatever is in it, it is not for us
        return False


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A scratch folder beside ``target`` that is renamed to ``target`` at the end, or removed on any error.

    A killed process can leave only one clearly named ``.NAME.partial-*`` folder, never a torn ``target``.

    Raises:
        OutputExists: ``target`` is taken.
        DiskFull: no space left.
    """
    target = Path(os.path.abspath(target))
    refuse_existing(target)
    with _scratch(target) as scratch:
        scratch.mkdir(0o700)
        yield scratch
        for path in sorted(scratch.rglob("*")):
            if path.is_file():
                fsync(path)
        _put(scratch, target, replace=False)


def _put(made: Path, target: Path, *, replace: bool) -> None:
    if (mover := _mover(target)) is not None:
        mover.put(made, target, replace=replace)
    elif made.is_dir():
        finish_folder(made, target)
    else:
        finish_file(made, target, replace=replace)


def finish_folder(made: Path, target: Path) -> None:
    """Give a finished folder the usual mode and rename it to ``target``.

    Raises:
        OutputExists: ``target`` is taken.
    """
    made.chmod(0o777 & ~umask())
    try:
        made.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            refuse_existing(target)
        raise
    fsync(target.parent)


def finish_file(made: Path, target: Path, *, replace: bool) -> None:
    """Give a finished file the usual mode and rename it to ``target``.

    Raises:
        OutputExists: ``target`` is taken, and ``replace`` is false.
    """
    made.chmod(0o666 & ~umask())
    if replace:
        made.replace(target)
    else:
        _rename_new(made, target)


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A free name beside ``target``; whatever stands there at the end is removed, and after an error the parent
    folders that were made for it as well."""
    if (mover := _mover(target)) is not None:
        aside = mover.aside(target)
        try:
            with disk_errors(target):
                yield aside
        finally:
            _remove(aside)
        return
    scratch = target.parent / f".{target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with disk_errors(target), made_folders(target.parent):
            sweep_partials(target)
            _LIVE.add(scratch.name)
            try:
                yield scratch
            except BaseException:
                _remove(scratch)
                raise
    finally:
        try:
            _remove(scratch)
        finally:  # an interrupt may have struck in there as well
            _remove(scratch)
            _LIVE.discard(scratch.name)


@contextlib.contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """``folder`` and its parents exist; after an error those that were made for it are removed, where empty.

    Raises:
        UsageError: one of them is a file.
    """
    made: list[Path] = []
    try:
        for parent in reversed([folder, *folder.parents]):
            if not parent.is_dir():
                if parent.exists():
                    raise UsageError("a file, not a folder", where=parent, hint="choose another place with -o")
                made.append(parent)
                parent.mkdir(exist_ok=True)
        yield
    except BaseException:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sweep_partials(target: Path) -> None:
    """Remove what killed runs left for ``target``: partial folders whose process is gone."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        owner = left.name.rsplit(".partial-", 1)[1].split("-")[0]
        if owner.isdecimal() and left.name not in _LIVE and not alive(int(owner)):
            _remove(left)


def alive(pid: int) -> bool:
    if pid == os.getpid():  # in a container every run may have the same number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fsync(path: Path) -> None:
    """Flush one file or folder to the disk, where the platform lets a folder be opened for it."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(target: Path, *, replace: bool = False, flush: bool = True) -> Iterator[Path]:
    """A scratch path beside ``target`` that is renamed to it at the end, or removed on any error.

    Without ``flush`` a power cut may leave it empty, as a cache entry may be.

    Raises:
        OutputExists: ``target`` is taken and ``replace`` is false.
        DiskFull: no space left.
    """
    target = Path(os.path.abspath(target))
    if not replace:
        refuse_existing(target, folder=False)
    with _scratch(target) as scratch:
        scratch.touch(0o600, exist_ok=False)
        yield scratch
        if flush:
            fsync(scratch)
        _put(scratch, target, replace=replace)


def _rename_new(scratch: Path, target: Path) -> None:
    """Rename without ever replacing: a hard link fails where the name is taken; then drop the old name."""
    try:
        os.link(scratch, target)
    except FileExistsError:
        refuse_existing(target, folder=False)
        raise
    except OSError:  # no hard links on this file system
        scratch.rename(target)


def write_whole(target: Path, data: bytes, *, replace: bool = False, flush: bool = True) -> None:
    """Write ``data`` to ``target`` whole or not at all."""
    with whole_file(target, replace=replace, flush=flush) as scratch:
        scratch.write_bytes(data)


def write_cache(target: Path, data: bytes) -> None:
    """Write a cache entry whole, or not at all: a cache that can't be written costs time, never a result.

    It is not flushed to the disk, which would cost an edit more than all its reading and writing of a small model: whoever
    reads an entry takes one that is torn for absent.
    """
    with contextlib.suppress(OSError, DiskFull, UsageError):
        write_whole(target, data, replace=True, flush=False)


def require_space(folder: Path, needed: int) -> None:
    """Raise :class:`DiskFull` before the first byte is written when ``needed`` bytes can't fit."""
    probe = folder
    while not probe.exists():
        probe = probe.parent
    try:
        free = shutil.disk_usage(probe).free
    except OSError as error:
        raise ResourceError(f"can't read the free space: {error}", where=probe) from error
    if free < needed:
        raise DiskFull(
            f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; nothing was written",
            where=probe,
            hint="free some space or choose another disk with -o",
        )


def cached_json(kind: str, key: Any) -> tuple[Path, Any | None]:
    """Path of a small cached JSON value for ``key``, and the value when it is there and readable."""
    path = cache_dir() / kind / f"{digest_of(key)[:40]}.json"
    try:
        return path, json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return path, None


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a large file, remembered while it does not change (size, times, inode)."""
    entry, known = cached_json("file-digests", stat_key(path))
    if not (isinstance(known, str) and len(known) == 64):
        known = sha256_range(path)
        write_cache(entry, json.dumps(known).encode())
    return known


def remember_sha256(path: Path, digest: str) -> None:
    """Keep the SHA-256 of a file that was just written, for :func:`remembered_sha256`."""
    write_cache(cached_json("file-digests", stat_key(path))[0], json.dumps(digest).encode())


def stat_key(path: Path) -> list[Any]:
    """What identifies an unchanged file: real path, size, mtime, ctime and inode."""
    real = path.resolve()
    info = path.stat()  # a link to sealed memory resolves to nothing
    name = os.fsencode(real).decode("utf-8", "backslashreplace")  # a path may hold bytes that are not text
    return [name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]
