"""An output folder that one process holds while it grows, and that a later one can go on with.

The unfinished folder is called ``.NAME.partial`` and stands beside NAME; the finished one is renamed to NAME, so a kill
at any moment leaves NAME absent or complete. The folder itself is locked (``flock``), and the kernel lets go of a lock
when its process dies, so no lock can be stale. Where there is no ``flock`` the number of the holder's process decides.

What is finished is written to a journal inside. A run that is told to resume continues from it when its key (what would
be written) is the same; any other run starts afresh. Whatever the journal does not name is half-written, or was made from
files that may have changed since, and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import EditError, FormatError, IntegrityError, OutputBusy, UsageError
from .storage import (
    alive,
    canonical_json,
    digest_of,
    disk_errors,
    fsync,
    made_folders,
    refuse_existing,
    strict_json,
    umask,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

JOURNAL = ".journal"
HOLDER = "holder.json"


class HeldFolder:
    """The unfinished folder of one output: ``path`` to write into, and a journal of what is finished."""

    def __init__(self, path: Path, key: str, *, resumed: bool) -> None:
        self.path = path
        self.key = key
        self.resumed = resumed

    def done(self, name: str) -> dict[str, Any] | None:
        """What was noted for ``name`` by an earlier run, or ``None``."""
        entry = self.path / JOURNAL / f"{name}.json"
        try:
            value = strict_json(entry.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(noted := value.get("value"), dict):
            return None
        return noted if digest_of(noted) == value.get("digest") else None

    def note(self, name: str, value: dict[str, Any]) -> None:
        """Note that ``name`` is finished; the entry appears whole or not at all."""
        entry = self.path / JOURNAL / f"{name}.json"
        fresh = entry.with_suffix(".new")
        fresh.write_bytes(canonical_json({"value": value, "digest": digest_of(value)}))
        fresh.replace(entry)

    def drop_unfinished(self) -> bool:
        """Remove everything that the journal does not name; whether anything is left."""
        left = False
        for entry in list(self.path.iterdir()):
            if entry.name == JOURNAL:
                continue
            if self.done(entry.name) is not None and entry.is_file() and not entry.is_symlink():
                left = True
            else:
                _remove(entry)
        return left


@contextlib.contextmanager
def held_folder(target: Path, key: str, *, resume: bool = False) -> Iterator[HeldFolder]:
    """Hold ``.NAME.partial`` beside ``target``; rename it to ``target`` at the end.

    On an error or an interrupt it is removed, unless ``resume``: then what is finished stays for the next run with
    ``resume``, but for errors that the next run would meet again. A kill that can't be caught leaves it, and the next run
    removes it or, with ``resume`` and the same ``key``, goes on.

    Raises:
        OutputExists: ``target`` is taken.
        OutputBusy: another process is writing it.
        UsageError: ``resume``, and what is there belongs to another edit.
        DiskFull: no space left.
    """
    target = Path(os.path.abspath(target))
    refuse_existing(target)
    partial = target.parent / f".{target.name}.partial"
    kept = "what is finished was kept for --resume" if resume else "nothing was kept"
    with disk_errors(target, kept), made_folders(target.parent), _locked(partial, target) as lock:
        held = None
        try:
            refuse_existing(target)  # whoever held it may have finished in between
            _check_key(partial, key, resume)
            held = _prepare(partial, key, resume)
            yield held
            shutil.rmtree(partial / JOURNAL)
            partial.chmod(0o777 & ~umask())
            _rename(partial, target)
            fsync(target.parent)
        except BaseException as error:
            keep = resume and not isinstance(error, IntegrityError | EditError | FormatError)
            try:
                _give_up(partial, lock, held, keep)
            finally:
                _give_up(partial, lock, held, keep)  # an interrupt may have struck in there as well
            raise


def _give_up(partial: Path, lock: int | None, held: HeldFolder | None, keep: bool) -> None:
    """Remove the folder, or with ``keep`` what is unfinished in it; one that someone else made anew is left alone."""
    if not _same(partial, lock):
        return
    if keep:
        try:
            if held is None:
                partial.rmdir()  # fails where there is anything in it
                return
            if held.drop_unfinished():
                return
        except OSError:
            return
    shutil.rmtree(partial, ignore_errors=True)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _rename(partial: Path, target: Path) -> None:
    try:
        if os.name == "nt" and target.is_dir():
            target.rmdir()  # an empty one, as was checked
        partial.rename(target)
    except OSError:
        refuse_existing(target)
        raise


def _known_key(partial: Path) -> Any:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return strict_json((partial / JOURNAL / "key.json").read_bytes())
    return None


def _check_key(partial: Path, key: str, resume: bool) -> None:
    if resume and _known_key(partial) not in (None, {"key": key}):
        raise UsageError("the unfinished folder belongs to another edit, base or version; it was left alone", where=partial,
                         hint="run without --resume to start again")  # fmt: skip


def _prepare(partial: Path, key: str, resume: bool) -> HeldFolder:
    journal = partial / JOURNAL
    resumed = resume and _known_key(partial) == {"key": key}
    if resumed:
        HeldFolder(partial, key, resumed=True).drop_unfinished()
    else:
        for entry in list(partial.iterdir()):
            _remove(entry)
        journal.mkdir(mode=0o700)
        (journal / "key.json").write_bytes(canonical_json({"key": key}))
    who = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    (journal / HOLDER).write_text(json.dumps(who), encoding="utf-8")
    return HeldFolder(partial, key, resumed=resumed)


@contextlib.contextmanager
def _locked(partial: Path, target: Path) -> Iterator[int | None]:
    """The lock on ``partial``, which is made where it does not stand; its file descriptor."""
    while True:
        with contextlib.suppress(FileExistsError):
            partial.mkdir(0o700)
        if fcntl is None:
            _refuse_living(partial, target)
            yield None
            return
        try:
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # its holder has just finished or given up
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise UsageError("a file or link stands where the unfinished folder goes", where=partial,
                             hint="remove it, or choose another name with -o") from error  # fmt: skip
        try:
            _lock(handle, partial, target)
            if not _same(partial, handle):
                refuse_existing(target)
                continue
            yield handle
            return
        finally:
            os.close(handle)


def _lock(handle: int, folder: Path, target: Path) -> None:
    """Lock the open ``folder`` for ``target``, or refuse."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(folder, target) from None
    except OSError:  # a file system without locks
        _refuse_living(folder, target)


@contextlib.contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Hold a folder that grows in its own place until the block ends; the kernel lets go of it when the process dies. Where
    there are no locks nobody holds it.

    Raises:
        OutputBusy: another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(handle, folder, folder)
        yield
    finally:
        os.close(handle)


def unfinished_bytes(target: Path) -> int:
    """Bytes on disk of what an earlier run left for ``target``: they are written over, not written anew."""
    target = Path(os.path.abspath(target))
    found = 0
    for path in (target.parent / f".{target.name}.partial").rglob("*"):
        with contextlib.suppress(OSError):
            info = path.lstat()
            found += min(info.st_size, getattr(info, "st_blocks", 0) * 512)
    return found


def _same(partial: Path, handle: int | None) -> bool:
    """Whether ``partial`` is still the folder that was locked."""
    if handle is None:
        return True
    try:
        now, then = partial.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (now.st_ino, now.st_dev) == (then.st_ino, then.st_dev)


def _holder(partial: Path) -> dict[str, Any]:
    try:
        value = json.loads((partial / JOURNAL / HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _busy(partial: Path, target: Path) -> OutputBusy:
    who = _holder(partial)
    name = f"process {who.get('pid')} on {who.get('host')}, since {who.get('since')}" if who else "another process"
    return OutputBusy(f"{name} is writing this output", where=target, hint="wait for it, or choose another name with -o")


def _refuse_living(partial: Path, target: Path) -> None:
    who = _holder(partial)
    pid = who.get("pid")
    if isinstance(pid, int) and pid != os.getpid() and (who.get("host") != platform.node() or alive(pid)):
        raise _busy(partial, target)
