"""One pass over every byte of every file: SHA-256 of files, BLAKE3 and values of tensors.

SHA-256 of one file can't be shared among cores and takes longer than all the rest, so the pass is built around it. A
process that began first takes it of the largest files (:mod:`.ahead`), while this pass digests their tensors and looks at
their values. Of the other files each worker takes whole ones; a worker that finds none left takes over the SHA-256 of a
file that another one is reading, block by block. Blocks are read into a few buffers that stay in the cache; only a fork
maps files into memory, so that one which shrinks is a finding and not a crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import fields
from math import prod
from operator import attrgetter
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..found import Finding
from ..storage import usable_cores
from .ahead import OUT_OF_MEMORY, Ahead, keep_only
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
WINDOW = 1 << 25  # bytes of a file that are mapped at once
PATIENCE = 5.0  # seconds after which somebody is told while a digest is waited for
LAST = 5  # more niceness for who reads: it has time until the digest is there, and the scanners have much to do one after another
LEAD = 1 << 31  # bytes that the values of a file may be read before its digest is taken

CHANGED = Rule(
    "file-changed", "unknown", "A file changed while it was scanned",
    "What was checked is not what is there now: somebody writes to the folder, or wants the scan to see something else than the "
    "loader.",
    "Find out who writes to the folder, wait until it is done, and scan again.",
    ("https://cwe.mitre.org/data/definitions/367.html",),
)  # fmt: skip

_FACTS = attrgetter(*(f.name for f in fields(Measured)[:-1]))  # all but the first bytes, which travel as text
Tell = Callable[[str, int], None]
Span = tuple[int, int, str, str, bool, int]  # begin and end in the file, name, dtype or ggml type, whether it is the latter, rows


def read_all(folder: Folder, tell: Tell) -> Iterator[Finding]:
    """Read every file once; fills ``item.sha256`` and ``folder.tensors``, and tells ``tell(name, bytes)`` as it goes on.

    A file that can't be read to its end, or is not the listed one any more, is a finding and has no digest.
    """
    yield from Reading(folder).finish(tell)


class Reading:
    """A pass that goes on behind the caller's back: other work can be done between the start and :meth:`finish`.

    The headers have to be in the folder when it starts. A small folder is read by :meth:`finish` itself. ``apart`` has the
    others read by a fork, so that neither side waits for the other's interpreter; the caller must be able to fork.
    ``hasher`` takes the digests of some of the files; ``digested`` asks for those of tensors too.
    """

    def __init__(self, folder: Folder, *, apart: bool = False, hasher: Ahead | None = None, digested: bool = True) -> None:
        taken = hasher.take_over() if hasher is not None else set()
        self.jobs = [_Job(item, folder, hasher if item.listed in taken else None, number, digested=digested)
                     for number, item in enumerate(sorted(folder.items.values(), key=lambda i: -i.size))]  # fmt: skip
        self.folder, self.crew, self.hasher = folder, _Crew(self.jobs), hasher
        self.interval = sys.getswitchinterval()
        self.threads: list[threading.Thread] = []
        self.fork: tuple[int, int] | None = None
        if sum(j.item.size for j in self.jobs) > SMALL:
            if apart:
                with contextlib.suppress(OSError):  # no more processes are to be had: then this one reads
                    self.fork = self._forked()
            if self.fork is None and usable_cores() > 1:
                self._start()

    def _start(self) -> None:
        sys.setswitchinterval(SWITCH)
        for _ in range(min(MOST_WORKERS, usable_cores())):
            self.threads.append(threading.Thread(target=self.crew.work, daemon=True))
            self.threads[-1].start()

    def _forked(self) -> tuple[int, int]:
        """The process that reads, and the pipe in which it tells what it found."""
        begin, end = os.pipe()
        try:
            child = os.fork()
        except OSError:
            os.close(begin)
            os.close(end)
            raise
        if not child:
            self._tell_all(end)
        os.close(end)
        return child, begin

    def _tell_all(self, out: int) -> None:
        """What the fork does: read, write events, never return."""
        code = 70
        try:
            os.nice(LAST)
            keep_only(out, *(self.hasher.handles if self.hasher is not None else ()))
            with os.fdopen(out, "w", encoding="ascii", buffering=1 << 16) as stream:
                try:
                    for job in self.jobs:
                        job.apart = True
                    self._start()
                    for event in self._events():
                        stream.write(json.dumps(event) + "\n")
                        if "at" in event:
                            stream.flush()
                except MemoryError:
                    raise
                except Exception:  # noqa: BLE001 - whatever it is, it is raised where the events are read
                    stream.write(json.dumps({"bug": traceback.format_exc()}) + "\n")
            code = 0
        except MemoryError:
            code = OUT_OF_MEMORY
        finally:
            os._exit(code)

    def finish(self, tell: Tell) -> Iterator[Finding]:
        """Wait for the end; fills the folder and yields what was found.

        Raises:
            MemoryError: the process that reads asked for too much.
        """
        try:
            if self.fork is None and not self.threads:
                self.crew.work()
            for event in self._heard(*self.fork) if self.fork is not None else self._events():
                if "at" in event:
                    tell(event["at"], event["done"])
                elif "cut" in event:
                    yield from (CHANGED.found("it became shorter while it was read, or can't be read to its end",
                                              file=shown(j.item.name)) for j in self.jobs if j.item.sha256 is None)  # fmt: skip
                else:
                    yield from self._take(event, tell)
            for thread in self.threads:
                thread.join()
        finally:
            sys.setswitchinterval(self.interval)

    def _heard(self, child: int, pipe: int) -> Iterator[dict[str, Any]]:
        """What the fork tells. When it was stopped by a signal, this process ends in the same way: the parent names the file."""
        with os.fdopen(pipe, "r", encoding="ascii") as stream:
            for line in stream:
                if not line.endswith("\n"):  # it was stopped in the middle of a line; how, its exit status says
                    break
                event = json.loads(line)
                if "bug" in event:
                    raise RuntimeError(event["bug"])
                yield event
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == OUT_OF_MEMORY:
            raise MemoryError
        if code == -getattr(signal, "SIGBUS", 0):
            yield {"cut": True}
            return
        if code < 0:
            os.kill(os.getpid(), -code)
        if code:
            raise RuntimeError(f"the process that reads ended with code {code}")

    def _events(self) -> Iterator[dict[str, Any]]:
        """Where the workers are, and what each file came to, as plain data."""
        working = len(self.threads) or 1
        while working:
            event = self.crew.events.get()
            if event is None:
                working -= 1
            elif isinstance(event, BaseException):
                raise event
            elif isinstance(event, _Job):
                yield {"job": event.number, **event.outcome()}
            else:
                yield {"at": event[0], "done": event[1]}

    def _take(self, event: dict[str, Any], tell: Tell) -> Iterator[Finding]:
        """Put what came of a file where the scanners look for it."""
        item = self.jobs[event["job"]].item
        tell(item.name, item.size)
        if event["finding"] is not None:
            yield Finding.model_validate(event["finding"])
            return
        item.sha256 = event["sha256"]
        for name, head, facts in event["facts"]:
            values: list[Any] = [*facts, bytes.fromhex(head)]  # in the order of the fields
            self.folder.tensors[item.name, name] = Measured(*values)


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
                job.settle(self.events)
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
            alone = [j for j in self.running if not j.helped and j.hasher is None and j.item.size - j.done > BLOCK * SLOTS]
            job = max(alone, key=lambda j: j.item.size - j.done, default=None)
            return job if job is not None and job.join() else None


class _Job:
    """One file: read by one worker, hashed by it or by another one that came to help."""

    def __init__(self, item: Item, folder: Folder, hasher: Ahead | None = None, number: int = 0, *, digested: bool = True) -> None:
        self.item, self.hasher, self.number, self.digested = item, hasher, number, digested
        self.spans, self.origin = _spans(item, folder)
        self.begins = [s[0] for s in self.spans]
        self.sha = hashlib.sha256()
        self.facts: dict[str, Measured] = {}
        self.finding: Finding | None = None
        self.digest: str | None = None
        self.done = 0
        self.helped = self.closed = self.apart = False
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
        raw, size = getattr(file, "raw", file), self.item.size
        unfinished: dict[str, Values] = {}
        if self.apart and self.hasher is not None and self.origin % 8 == 0:  # whole words can be looked at where they lie
            index = self._mapped(raw, events, unfinished)
        else:
            index = self._copied(raw, events, unfinished)
        self._look(np.empty(0, np.uint8), size, index, unfinished)
        if _state(file) != before:
            raise FileChanged("it was written to while it was read", where=self.item.name)

    def _copied(self, raw: Any, events: SimpleQueue[Any], unfinished: dict[str, Values]) -> int:
        """Read block by block; hash it, or give it to who helps."""
        size, index = self.item.size, 0
        for _ in range(SLOTS if size > BLOCK * SLOTS else 1):
            self.free.put(np.empty(min(size, BLOCK) + 64, np.uint8))
        while self.done < size:
            end = self._end(min(self.done + BLOCK, size))
            buffer = self.free.get()
            shift = (self.done - self.origin) % 64  # words lie where the processor likes them
            block = buffer[shift : shift + end - self.done]
            _fill(raw, memoryview(block), self.item)
            if self.helped:
                self.todo.put((buffer, block))
                index = self._look(block, end, index, unfinished)
            else:
                if self.hasher is None:
                    self.sha.update(block)
                index = self._look(block, end, index, unfinished)
                self.free.put(buffer)
            self._on(end, events)
        if raw.read(1):
            raise FileChanged("it became longer while it was read", where=self.item.name)
        return index

    def _mapped(self, raw: Any, events: SimpleQueue[Any], unfinished: dict[str, Values]) -> int:
        """Look at a file of which somebody else takes the digest, without a copy, a window at a time.

        Only a fork does so: a file that shrinks, or a disk that fails, ends it by SIGBUS.
        """
        size, index = self.item.size, 0
        while self.done < size:
            base = self.done // mmap.PAGESIZE * mmap.PAGESIZE
            stop = min(base + WINDOW, size)
            with self._window(raw, base, stop) as mapped:
                whole = np.frombuffer(mapped, np.uint8)
                while stop - self.done >= (1 if stop == size else BLOCK):  # the next window holds a cut element whole
                    end = self._end(min(self.done + BLOCK, stop))
                    index = self._look(whole[self.done - base : end - base], end, index, unfinished)
                    self._on(end, events)
                del whole
        return index

    def _window(self, raw: Any, base: int, stop: int) -> mmap.mmap:
        try:
            return mmap.mmap(raw.fileno(), stop - base, mmap.MAP_PRIVATE | mmap.MAP_POPULATE, mmap.PROT_READ, offset=base)
        except ValueError as error:  # more than the file has by now
            raise FileChanged("it became shorter while it was read", where=self.item.name) from error

    def _on(self, end: int, events: SimpleQueue[Any]) -> None:
        """Everything before ``end`` is done: say so now and then."""
        tell = end // TELL > self.done // TELL
        self.done = end
        if tell:
            events.put((self.item.name, end))
            self._wait(end)

    def _wait(self, end: int) -> None:
        """Not too far in front of who takes the digest, so that what was read from the disk is still in memory for it."""
        while self.hasher is not None and self.item.listed is not None and end - self.hasher.done(self.item.listed) > LEAD:
            time.sleep(0.01)

    def outcome(self) -> dict[str, Any]:
        """What came of the file, as plain data."""
        if self.finding is not None:
            return {"finding": self.finding.model_dump()}
        facts = [(name, f.head.hex(), _FACTS(f)) for name, f in self.facts.items()]
        return {"finding": None, "sha256": self.digest or self.sha.hexdigest(), "facts": facts}

    def settle(self, events: SimpleQueue[Any]) -> None:
        """Wait for the digest that is taken beside; take it here when there is none, since who hashes may be gone."""
        if self.finding is not None or self.hasher is None or self.item.listed is None:
            return
        while not self.hasher.said(self.item.listed, PATIENCE):
            events.put((self.item.name, self.hasher.done(self.item.listed)))
        self.digest = self.hasher.digest(self.item.listed)
        if self.digest is None:
            self.hasher, self.spans, self.begins, self.done = None, [], [], 0
            self.run(events)

    def _end(self, end: int) -> int:
        """The end of a block, moved back so that it does not cut an element in two."""
        at = bisect_right(self.begins, end) - 1
        if at < 0:
            return end
        begin, stop, _, kind, quantised, _ = self.spans[at]
        unit = unit_of(kind, quantised)
        whole = begin + (end - begin) // unit * unit
        return whole if end < stop and whole > self.done else end

    def _look(self, block: np.ndarray[Any, Any], end: int, index: int, unfinished: dict[str, Values]) -> int:
        """Hand a block, which ends at ``end``, to the tensors that lie in it; the first one that is not complete."""
        start = end - block.size
        while index < len(self.spans) and self.spans[index][0] <= end:
            begin, stop, name, kind, quantised, rows = self.spans[index]
            values = unfinished.pop(name, None) or Values(kind, quantised=quantised, digested=self.digested, size=stop - begin,
                                                          row=(stop - begin) // rows if rows > 1 else 0)  # fmt: skip
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
        spans = [(t.start, t.start + t.nbytes, t.name, t.dtype, False, prod(t.shape[:-1])) for t in header.tensors]
        return spans, header.data_start
    if (model := folder.ggufs.get(item.name)) is not None:
        spans = [(t.start, t.start + t.nbytes, t.name, t.type, True, prod(t.shape[:-1])) for t in model.tensors]
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
