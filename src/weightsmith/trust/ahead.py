"""SHA-256 of a model's large files, taken by a process of its own that begins before all the rest.

Cores can't share the SHA-256 of one file, and it takes longer than everything else that is done to the file. So it is
begun first, while the scan is still being imported, and goes on beside it. The process reads and hashes; it parses
nothing. It takes the largest file first, then the next one, until the scan comes and takes over what is left
(:meth:`Ahead.take_over`). A digest holds for the file of one :func:`~.identity.identity`, before and after the reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from .identity import FLAGS, Identity, identity

OUT_OF_MEMORY = 71  # exit code of a process of a scan that asked for too much
LARGE = 1 << 25  # bytes from which a file is worth a process
MOST = 1024  # files
_ENTRIES = 20_000  # of a folder that are looked at
_BLOCK = 1 << 18  # bytes: it stays in the cache between being read and being hashed
_WINDOW = 1 << 24  # bytes that are mapped at once, where the file lies in memory
_ASKED = 1 << 20
_TELL = 1 << 26  # bytes after which it says where it is
_TOKEN = 2  # bytes of a file's number in the pipe of what is to be done


class Ahead:
    """The process, seen from the scan that it works for."""

    def __init__(self, root: Path, files: list[tuple[Path, Identity]]) -> None:
        self.root, self.owner = root, os.getpid()
        self.numbers = {known: number for number, (_, known) in enumerate(files)}
        self._done = [0] * len(files)
        self._digests: dict[int, str | None] = {}
        self._left, self._lock = b"", threading.Lock()
        self._tokens, give = os.pipe()
        os.write(give, b"".join(n.to_bytes(_TOKEN, "little") for n in range(len(files))))
        os.close(give)
        self._results, out = os.pipe()
        try:
            self.process = os.fork()
        except OSError:
            for handle in (self._tokens, self._results, out):
                os.close(handle)
            raise
        if not self.process:
            _hash_all(files, self._tokens, out)
        os.close(out)

    @property
    def handles(self) -> tuple[int, int]:
        """The pipes that a fork has to keep to use this."""
        return self._tokens, self._results

    def take_over(self) -> set[Identity]:
        """What it works on, or is done with; the other files are the caller's from now on."""
        raw = b""
        while more := os.read(self._tokens, 1 << 16):
            raw += more
        left = {int.from_bytes(raw[i : i + _TOKEN], "little") for i in range(0, len(raw), _TOKEN)}
        return {known for known, number in self.numbers.items() if number not in left}

    def done(self, known: Identity) -> int:
        """Bytes of a file that are hashed, as far as it has said; the file's size once it has ended."""
        with self._lock:
            while self._ready(0) and self._hear():
                pass
            number = self.numbers[known]
            return known[2] if number in self._digests else self._done[number]

    def said(self, known: Identity, seconds: float) -> bool:
        """Wait for that long at the most; whether it is done with a file, or gone."""
        number = self.numbers[known]
        with self._lock:
            if number not in self._digests and self._ready(seconds):
                self._hear()
            return number in self._digests

    def _ready(self, seconds: float) -> bool:
        """Whether it says something within that time; a handle's number may be any."""
        poll = select.poll()
        poll.register(self._results, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def digest(self, known: Identity) -> str | None:
        """Wait for a file's SHA-256; ``None`` when the file was not the same all the time, or the process is gone."""
        number = self.numbers[known]
        with self._lock:
            while number not in self._digests and self._hear():
                pass
            return self._digests.get(number)

    def _hear(self) -> bool:
        """Take in what it says next; false when it says no more."""
        block = os.read(self._results, 1 << 16)
        if not block:
            self._digests = {n: self._digests.get(n) for n in self.numbers.values()}
            return False
        *lines, self._left = (self._left + block).split(b"\n")
        for line in lines:
            kind, number, value = line.decode("ascii").split(" ")
            if kind == "at":
                self._done[int(number)] = int(value)
            else:
                self._digests[int(number)] = value if kind == "is" else None
        return True

    def end(self) -> None:
        """Stop it, if this process started it, and let go of its pipes."""
        os.close(self._tokens)
        os.close(self._results)
        if os.getpid() == self.owner:
            os.kill(self.process, signal.SIGKILL)  # not yet waited for, so the number is still its own
            os.waitpid(self.process, 0)


def can_fork() -> bool:
    """Whether a fork of this process is sound: on Linux, while there is one thread and no library with threads of its own."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


_current: list[Ahead] = []


def begin(path: Path) -> Ahead | None:
    """Begin with the large files of a model, or go on with what was begun for it; ``None`` where there are none, or no fork."""
    path = path.absolute()
    if _current and _current[0].root == path:
        return _current[0]
    end()
    if can_fork() and (files := _large(path)):
        with contextlib.suppress(OSError):  # no more processes are to be had
            _current.append(Ahead(path, files))
    return _current[0] if _current else None


def end() -> None:
    """Stop what :func:`begin` began."""
    while _current:
        _current.pop().end()


@contextlib.contextmanager
def used_up() -> Iterator[None]:
    """For one scan: what was begun for it is no good for another."""
    try:
        yield
    finally:
        end()


def _large(path: Path) -> list[tuple[Path, Identity]]:
    """Large plain files below a path, on its own disk, the largest first; what can't be asked is the scan's to name."""
    found: dict[Identity, Path] = {}
    with contextlib.suppress(OSError, RuntimeError):
        disk = os.stat(path).st_dev
        pending, seen = [path], 0
        while pending and seen < _ENTRIES:
            here = pending.pop()
            for entry in os.scandir(here) if here.is_dir() else [here]:
                seen += 1
                if seen > _ENTRIES:
                    break
                info = os.stat(entry)
                if stat.S_ISDIR(info.st_mode):
                    if not os.path.islink(entry):
                        pending.append(Path(entry))
                elif (stat.S_ISREG(info.st_mode) and info.st_size >= LARGE and info.st_dev == disk
                      and info.st_blocks * 1024 >= info.st_size):  # fmt: skip
                    found.setdefault(identity(info), Path(entry).resolve())  # one file may have two names
    return sorted(((file, known) for known, file in found.items()), key=lambda f: (-f[1][2], f[0]))[:MOST]


def keep_only(*handles: int) -> None:
    """Close all other handles of a fork, so that nobody waits for it who waits for the end of a pipe."""
    low = 0
    for handle in sorted(handles):
        os.closerange(low, handle)
        low = handle + 1
    os.closerange(low, 1 << 16)


# -- the process itself ------------------------------------------------------------------------------------


def _hash_all(files: list[tuple[Path, Identity]], tokens: int, out: int) -> None:
    """Hash one file after the other as long as the pipe holds their numbers; never returns."""
    import resource  # which there is where there are forks

    code = 70
    try:
        keep_only(tokens, out)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a file that shrinks while it is mapped ends this
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        while token := os.read(tokens, _TOKEN):
            at = int.from_bytes(token, "little")
            digest = None
            with contextlib.suppress(OSError, ValueError):  # the latter from what is shorter by now
                digest = _hash(*files[at], at, out)
            os.write(out, (f"is {at} {digest}\n" if digest else f"no {at} -\n").encode("ascii"))
        code = 0
    finally:  # nobody reads what it would say of an error: the scan then takes the digest itself
        os._exit(code)


def _hash(file: Path, known: Identity, number: int, out: int) -> str | None:
    handle = os.open(file, FLAGS)
    try:
        if identity(os.fstat(handle)) != known:
            return None
        digest, done, told = hashlib.sha256(), 0, 0
        buffer = memoryview(bytearray(_BLOCK))
        while done < known[2]:
            stop = min(done + _WINDOW, known[2])
            if _in_memory(handle, done, stop):
                with mmap.mmap(handle, stop - done, mmap.MAP_SHARED, mmap.PROT_READ, offset=done) as mapped:
                    digest.update(mapped)
                done = stop
            while done < stop:
                if not (got := os.readv(handle, [buffer[: stop - done]])):
                    return None
                digest.update(buffer[:got])
                done += got
            os.lseek(handle, done, os.SEEK_SET)
            if done - told >= _TELL:
                told = done
                os.write(out, f"at {number} {done}\n".encode("ascii"))
        return digest.hexdigest() if identity(os.fstat(handle)) == known else None
    finally:
        os.close(handle)


def _in_memory(handle: int, begin: int, end: int) -> bool:
    """Whether a part of a file can be mapped without a wait for the disk: reading is faster where it has to be waited for,
    and copies what need not be copied where it is there. Asked of one byte in each MiB."""
    byte = bytearray(1)
    try:
        return sys.platform == "linux" and all(
            os.preadv(handle, [byte], at, os.RWF_NOWAIT) == 1 for at in range(begin, end, _ASKED))
    except OSError:  # it would have to wait, or the file system can't say
        return False
