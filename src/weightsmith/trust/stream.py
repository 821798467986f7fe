"""One pass over every byte of every file: SHA-256 of files, BLAKE3 and values of tensors.

SHA-256 of one file can't be shared among cores and takes longer than all the rest, so the pass is built around it. Each
worker takes whole files, the largest first; a worker that finds none left takes over the SHA-256 of a file that another
one is reading, block by block, while that one reads on, digests tensors and looks at their values. Blocks are read into
a few buffers that stay in the cache; nothing is mapped into memory, so that a file which shrinks is a finding and not a
crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..found import Finding
from ..storage import usable_cores
from .items import FileChanged, Folder, Item
from .listing import UNREADABLE, shown
from .rules import Rule
from .values import Measured, Values, unit_of

BLOCK = 1 << 20  # bytes: two of them are in a core's second cache
SLOTS = 4  # buffers of one file
SMALL = 1 << 22  # bytes of a whole folder for which threads are not worth their start
MOST_WORKERS = 16
SWITCH = 2e-4  # seconds that Python code may keep the interpreter from a thread that comes back with a hashed block
TELL = 1 << 24  # bytes after which somebody is told

CHANGED = Rule(
    "file-changed", "unknown", "A file changed while it was scanned",
    "What was checked is not what is there now: somebody writes to the folder, or wants the scan to see something else than the "
    "loader.",
    "Find out who writes to the folder, wait until it is done, and scan again.",
    ("https://cwe.mitre.org/data/definitions/367.html",),
)  # fmt: skip

Tell = Callable[[str, int], None]
Span = tuple[int, int, str, str, bool]  # begin and end in the file, name, dtype or ggml type, whether it is the latter


def read_all(folder: Folder, tell: Tell) -> Iterator[Finding]:
    """Read every file once; fills ``item.sha256`` and ``folder.tensors``, and tells ``tell(name, bytes)`` as it goes on.

    A file that can't be read to its end, or is not the listed one any more, is a finding and has no digest.
    """
    yield from Reading(folder).finish(tell)


class Reading:
    """A pass that goes on behind the caller's back: other work can be done between the start and :meth:`finish`.

    The headers have to be in the folder when it starts. A small folder is read by :meth:`finish` itself.
    """

    def __init__(self, folder: Folder) -> None:
        jobs = sorted((_Job(item, folder) for item in folder.items.values()), key=lambda j: -j.item.size)
        self.folder, self.crew = folder, _Crew(jobs)
        workers = min(MOST_WORKERS, usable_cores()) if sum(j.item.size for j in jobs) > SMALL else 1
        self.threads = [threading.Thread(target=self.crew.work, daemon=True) for _ in range(workers)] if workers > 1 else []
        self.interval = sys.getswitchinterval()
        if self.threads:
            sys.setswitchinterval(SWITCH)
        for thread in self.threads:
            thread.start()

    def finish(self, tell: Tell) -> Iterator[Finding]:
        """Wait for the end; fills the folder and yields what was found."""
        try:
            if not self.threads:
                self.crew.work()
            yield from self._events(tell)
            for thread in self.threads:
                thread.join()
        finally:
            sys.setswitchinterval(self.interval)

    def _events(self, tell: Tell) -> Iterator[Finding]:
        working = len(self.threads) or 1
        while working:
            event = self.crew.events.get()
            if event is None:
                working -= 1
            elif isinstance(event, BaseException):
                raise event
            elif isinstance(event, _Job):
                tell(event.item.name, event.item.size)
                yield from _taken(event, self.folder)
            else:
                tell(*event)


def _taken(job: _Job, folder: Folder) -> Iterator[Finding]:
    """Put what a finished job found where the scanners look for it."""
    if job.finding is not None:
        yield job.finding
        return
    job.item.sha256 = job.sha.hexdigest()
    for name, facts in job.facts.items():
        folder.tensors[job.item.name, name] = facts


class _Crew:
    """The workers' common list of files, and the queue on which they report."""

    def __init__(self, jobs: list[_Job]) -> None:
        self.waiting = jobs[::-1]
        self.running: list[_Job] = []
        self.events: SimpleQueue[Any] = SimpleQueue()
        self.lock = threading.Lock()

    def work(self) -> None:
        """One worker: files as long as there are some, then help for those that run."""
        try:
            while (job := self._next()) is not None:
                job.run(self.events)
                with self.lock:
                    self.running.remove(job)
                self.events.put(job)
            while (job := self._needy()) is not None:
                job.help()
        except BaseException as error:  # noqa: BLE001 - it is raised where the results are read
            self.events.put(error)
        self.events.put(None)

    def _next(self) -> _Job | None:
        with self.lock:
            if not self.waiting:
                return None
            self.running.append(self.waiting.pop())
            return self.running[-1]

    def _needy(self) -> _Job | None:
        """The running file with the most bytes left that nobody helps with yet."""
        with self.lock:
            alone = [j for j in self.running if not j.helped and j.item.size - j.done > BLOCK * SLOTS]
            job = max(alone, key=lambda j: j.item.size - j.done, default=None)
            return job if job is not None and job.join() else None


class _Job:
    """One file: read by one worker, hashed by it or by another one that came to help."""

    def __init__(self, item: Item, folder: Folder) -> None:
        self.item = item
        self.spans, self.origin = _spans(item, folder)
        self.begins = [s[0] for s in self.spans]
        self.sha = hashlib.sha256()
        self.facts: dict[str, Measured] = {}
        self.finding: Finding | None = None
        self.done = 0
        self.helped = self.closed = False
        self.lock = threading.Lock()
        self.todo: SimpleQueue[Any] = SimpleQueue()
        self.free: SimpleQueue[Any] = SimpleQueue()
        self.hashed: SimpleQueue[None] = SimpleQueue()

    # -- the one who helps

    def join(self) -> bool:
        """Take over the SHA-256 from the next block on; false when the file is read already."""
        with self.lock:
            self.helped = not self.closed
            return self.helped

    def help(self) -> None:
        """Hash blocks until there are no more."""
        while (task := self.todo.get()) is not None:
            buffer, view = task
            self.sha.update(view)
            self.free.put(buffer)
        self.hashed.put(None)

    # -- the one who reads

    def run(self, events: SimpleQueue[Any]) -> None:
        """Read the file whole."""
        try:
            with self.item.open() as file:
                self._read(file, events)
        except FileChanged as error:
            self.finding = CHANGED.found(error.message, file=shown(self.item.name))
        except OSError as error:
            self.finding = UNREADABLE.found(f"can't be read: {error.strerror or error}", file=shown(self.item.name))
        finally:
            with self.lock:
                self.closed, helped = True, self.helped
            if helped:
                self.todo.put(None)
                self.hashed.get()

    def _read(self, file: Any, events: SimpleQueue[Any]) -> None:
        before = _state(file)
        raw, size, told = getattr(file, "raw", file), self.item.size, 0
        slots = SLOTS if size > BLOCK * SLOTS else 1
        for _ in range(slots):
            self.free.put(np.empty(min(size, BLOCK) + 64, np.uint8))
        open_values: dict[str, Values] = {}
        index = 0
        while self.done < size:
            end = self._end(min(self.done + BLOCK, size))
            buffer = self.free.get()
            shift = (self.done - self.origin) % 64  # words lie where the processor likes them
            block = buffer[shift : shift + end - self.done]
            _fill(raw, memoryview(block), self.item)
            if self.helped:
                self.todo.put((buffer, block))
                index = self._look(block, end, index, open_values)
            else:
                self.sha.update(block)
                index = self._look(block, end, index, open_values)
                self.free.put(buffer)
            self.done = end
            if end - told >= TELL:
                told = end
                events.put((self.item.name, end))
        self._look(np.empty(0, np.uint8), size, index, open_values)
        if raw.read(1) or _state(file) != before:
            raise FileChanged("it was written to while it was read", where=self.item.name)

    def _end(self, end: int) -> int:
        """The end of a block, moved back so that it does not cut an element in two."""
        at = bisect_right(self.begins, end) - 1
        if at < 0:
            return end
        begin, stop, _, kind, quantised = self.spans[at]
        unit = unit_of(kind, quantised)
        whole = begin + (end - begin) // unit * unit
        return whole if end < stop and whole > self.done else end

    def _look(self, block: np.ndarray[Any, Any], end: int, index: int, unfinished: dict[str, Values]) -> int:
        """Hand a block, which ends at ``end``, to the tensors that lie in it; the first one that is not complete."""
        start = end - block.size
        while index < len(self.spans) and self.spans[index][0] <= end:
            begin, stop, name, kind, quantised = self.spans[index]
            values = unfinished.pop(name, None) or Values(kind, quantised=quantised)
            low, high = max(begin, start), min(stop, end)
            if low < high:
                values.update(block[low - start : high - start])
            if stop > end:
                unfinished[name] = values
                break
            self.facts[name] = values.facts()
            index += 1
        return index


def _fill(raw: Any, view: memoryview, item: Item) -> None:
    filled = 0
    while filled < len(view):
        got = raw.readinto(view[filled:])
        if not got:
            raise FileChanged("it became shorter while it was read", where=item.name)
        filled += got


def _spans(item: Item, folder: Folder) -> tuple[list[Span], int]:
    """The tensors of a file in the order of their bytes, and where its data begins."""
    if (header := folder.headers.get(item.name)) is not None:
        return [(t.start, t.start + t.nbytes, t.name, t.dtype, False) for t in header.tensors], header.data_start
    if (model := folder.ggufs.get(item.name)) is not None:
        spans = [(t.start, t.start + t.nbytes, t.name, t.type, True) for t in model.tensors]
        return sorted(spans), model.data_start
    return [], 0


def _state(file: Any) -> tuple[int, ...]:
    with contextlib.suppress(OSError):
        info = os.fstat(file.fileno())
        return info.st_size, info.st_mtime_ns, info.st_ctime_ns
    return ()


def facts_of(item: Item, folder: Folder) -> dict[str, Measured]:
    """Facts of the tensors of one item whose header ``folder`` holds, read on this thread.

    Raises:
        FileChanged, OSError: it can't be read whole.
    """
    job = _Job(item, folder)
    with item.open() as file:
        job._read(file, SimpleQueue())
    return job.facts
