"""Writing one weight file: a producer fills it in order and a reader, one step behind, digests what is there.

Byte ranges that the edit does not touch are moved by the kernel: as a clone of the whole file where the file system
shares blocks, else with ``copy_file_range``, else by reading and writing. Touched tensors are rewritten in blocks. The
reader takes the file's SHA-256, each tensor's digest and its finiteness from the *output*, in one pass, while the pages
are still in memory; so what is recorded is what was written, and a tensor that was not to change and did is found here.

The producer is at most :data:`AHEAD` bytes ahead, so that the reader never waits for the disk, and memory stays bounded
whatever the size of a file or tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .edits import Operation
from .errors import NonFinite, Truncated
from .formats.safetensors import TensorDigest, TensorSpec
from .records import TensorRecord
from .rewrite import Rewriting
from .storage import share_blocks

AHEAD = 1 << 29
BEHIND = 1 << 23  # how far a lane that is alone writes before it reads
PASS = 1 << 20  # bytes that are read and digested at a time: they stay in the cache between the two digests
COPY = 1 << 23  # bytes of one kernel copy
STILL = "let nothing write to the base, and try again"


@dataclass(frozen=True)
class Region:
    """A tensor's place in the output; ``source`` is where it lies in the base, ``None`` for a created bias."""

    spec: TensorSpec
    source: TensorSpec | None
    operations: Sequence[Operation]
    balanced: bool = False


@dataclass(frozen=True)
class FilePlan:
    """One output file: its header bytes, then its regions without a hole."""

    name: str
    base: Path
    prefix: bytes
    regions: Sequence[Region]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.prefix) + sum(r.spec.nbytes for r in self.regions)

    @property
    def in_place(self) -> bool:
        """Whether every tensor lies where it lies in the base, so that the base's file can be shared."""
        return all(r.source is not None and r.source.start == r.spec.start for r in self.regions)


@dataclass
class FileResult:
    """What came of one file: digests by tensor of the output, and of the base's bytes where a tensor was rewritten."""

    name: str
    sha256: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    base_digests: dict[str, str] = field(default_factory=dict)
    tensors: list[TensorRecord] = field(default_factory=list)

    def as_note(self) -> dict[str, Any]:
        """As plain data, for the journal."""
        return {"name": self.name, "sha256": self.sha256, "digests": self.digests, "base_digests": self.base_digests,
                "tensors": [t.model_dump() for t in self.tensors]}  # fmt: skip

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> FileResult:
        """Back from the journal."""
        tensors = [TensorRecord.model_validate(t) for t in note["tensors"]]
        return cls(note["name"], note["sha256"], dict(note["digests"]), dict(note["base_digests"]), tensors)


class Stopped(Exception):
    """Another part of the job failed, or the user interrupted."""


class _Front:
    """How far a file is written and how far it is read, and the waiting for either."""

    def __init__(self, stop: threading.Event) -> None:
        self.condition = threading.Condition()
        self.written = self.read = 0
        self.stop = stop
        self.closed = False

    def advance(self, *, written: int = 0, read: int = 0) -> None:
        with self.condition:
            self.written += written
            self.read += read
            self.condition.notify_all()

    def close(self) -> None:
        """This file came to nothing: nobody waits for it any more."""
        with self.condition:
            self.closed = True
            self.condition.notify_all()

    def wait_for(self, position: int) -> None:
        """Wait until ``position`` bytes are written."""
        self.wait(lambda: self.written >= position)

    def wait(self, ready: Callable[[], bool]) -> None:
        with self.condition:
            while True:
                if self.closed or self.stop.is_set():  # asked first: a lane that never has to wait must end as well
                    raise Stopped
                if ready():
                    return
                self.condition.wait(0.2)


class SourceReader:
    """Reads ranges of one tensor of the base by position, and digests each byte the first time that it is read."""

    def __init__(self, spec: TensorSpec, handle: int, keep: int) -> None:
        self.spec = spec
        self.handle = handle
        self.digest = TensorDigest(spec.dtype)
        self.seen = 0
        self.kept: bytes | None = None
        if spec.nbytes <= keep:
            self.kept = self._pread(0, spec.nbytes)
            self._digest(memoryview(self.kept))

    def __call__(self, start: int, stop: int) -> memoryview:
        if self.kept is not None:
            return memoryview(self.kept)[start:stop]
        data = memoryview(self._pread(start, stop))
        if start == self.seen:
            self._digest(data)
        return data

    def _digest(self, data: memoryview) -> None:
        for begin in range(0, len(data), PASS):
            self.digest.update(data[begin : begin + PASS])
        self.seen += len(data)
        if not self.digest.finite:
            raise NonFinite(f"the base's {self.spec.name!r} holds NaN or infinity", where=self.spec.file)

    def _pread(self, start: int, stop: int) -> bytes:
        parts, position = [], self.spec.start + start
        while position < self.spec.start + stop:
            data = _pread(self.handle, self.spec.start + stop - position, position, self.spec.file)
            if not data:
                raise Truncated(f"tensor {self.spec.name!r} ends early: the base changed while it was read",
                                where=self.spec.file, hint=STILL)  # fmt: skip
            parts.append(data)
            position += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Lane:
    """Writes files one after another with two threads; several lanes run side by side.

    ``keep`` is how many bytes of one tensor may be held in memory between its turns. ``finite`` names tensors that are
    known to hold neither NaN nor infinity, provided that they are what they were, which their digests tell. A lane has two
    threads; with ``alone`` one thread does both parts in turn, which is faster where the other lanes keep all cores busy.
    """

    def __init__(
        self, folder: Path, stop: threading.Event, keep: int, what: str, report: Callable[[int], None], *,
        finite: Collection[str] = (), alone: bool = False,
    ) -> None:  # fmt: skip
        self.finite = finite
        self.alone = alone
        self.folder = folder
        self.stop = stop
        self.keep = keep
        self.what = what
        self.report = report

    def write(self, plan: FilePlan) -> FileResult:
        """Write and digest one file.

        Raises:
            NonFinite: NaN or infinity in the base, or an edit that overflows its dtype.
            Truncated: the base's file became shorter.
        """
        result, front = FileResult(plan.name), _Front(self.stop)
        if self.alone:
            return self._write_alone(plan, front, result)
        with ThreadPoolExecutor(1) as pool:
            target = os.open(self.folder / plan.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                reading = pool.submit(self._guarded, front, self._digest, plan, target, result)
                try:
                    self._guarded(front, self._produce, plan, target, result)
                except Stopped:
                    reading.result()  # the reader's own error says more
                    raise
                reading.result()
            except BaseException:
                front.close()  # an interrupt: the reader has to end before its file is closed
                with contextlib.suppress(BaseException):
                    reading.result()
                raise
            finally:
                os.close(target)
        return result

    def _write_alone(self, plan: FilePlan, front: _Front, result: FileResult) -> FileResult:
        target = os.open(self.folder / plan.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            reader = self._digesting(front, plan, target, result)
            for _ in self._producing(front, plan, target, result):
                if self.stop.is_set():
                    raise Stopped
                if front.written - front.read >= BEHIND:
                    next(reader, None)
            for _ in reader:
                pass
        finally:
            os.close(target)
        return result

    @staticmethod
    def _guarded(front: _Front, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(front, *arguments)
        except BaseException:
            front.close()
            raise

    def _produce(self, front: _Front, plan: FilePlan, target: int, result: FileResult) -> None:
        for _ in self._producing(front, plan, target, result):
            front.wait(lambda: front.written - front.read < AHEAD)

    def _producing(self, front: _Front, plan: FilePlan, target: int, result: FileResult) -> Iterator[None]:
        """Write the file; yields after each piece."""
        source = os.open(plan.base, os.O_RDONLY)
        try:
            shared = plan.in_place and share_blocks(source, target)
            if shared and os.fstat(target).st_size != plan.size:
                raise Truncated("the base's file has another size than when it was opened", where=plan.base, hint=STILL)
            _pwrite(target, plan.prefix, 0)
            front.advance(written=len(plan.prefix))
            for region in plan.regions:
                if region.operations or region.source is None:
                    yield from self._rewrite(front, region, source, target, result)
                elif shared:
                    front.advance(written=region.spec.nbytes)
                else:
                    yield from self._copy(front, region.source, source, target, region.spec.start)
        finally:
            os.close(source)

    def _rewrite(
        self, front: _Front, region: Region, source: int, target: int, result: FileResult
    ) -> Iterator[None]:
        position = region.spec.start
        if region.source is None:
            zeros = bytes(region.spec.nbytes)
            job = Rewriting(region.spec, region.operations, lambda a, b: zeros[a:b], self.what, region.balanced)
            read = None
        else:
            zeros, read = b"", SourceReader(region.source, source, self.keep)
            job = Rewriting(region.spec, region.operations, read, self.what, region.balanced)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused, by name
            changed: Iterable[bytes | memoryview] = job.blocks() if region.operations else [zeros]
            for block in changed:
                _pwrite(target, block, position)
                position += len(block)
                front.advance(written=len(block))
                yield
        if read is not None:
            result.base_digests[region.spec.name] = read.digest.hexdigest()
        result.tensors.append(_record(region, job))

    def _copy(self, front: _Front, spec: TensorSpec, source: int, target: int, to: int) -> Iterator[None]:
        done = 0
        while done < spec.nbytes:
            moved = _move(source, target, min(COPY, spec.nbytes - done), spec.start + done, to + done, spec.file)
            if not moved:
                raise Truncated(f"tensor {spec.name!r} ends early: the base changed while it was read", where=spec.file,
                                hint=STILL)  # fmt: skip
            done += moved
            front.advance(written=moved)
            yield

    def _digest(self, front: _Front, plan: FilePlan, target: int, result: FileResult) -> None:
        for _ in self._digesting(front, plan, target, result):
            pass

    def _digesting(self, front: _Front, plan: FilePlan, target: int, result: FileResult) -> Iterator[None]:
        """Digest the output as it appears; where the lane is alone it yields whenever it has caught up."""
        whole = hashlib.sha256()
        buffer = memoryview(bytearray(PASS))
        for block in self._arriving(front, target, 0, len(plan.prefix), buffer):
            if not block:
                yield
            whole.update(block)
        for region in plan.regions:
            # what was rewritten was checked then
            digest = TensorDigest(region.spec.dtype, check=not region.operations and region.spec.name not in self.finite)
            for block in self._arriving(front, target, region.spec.start, region.spec.nbytes, buffer):
                if not block:
                    yield
                    continue
                whole.update(block)
                digest.update(block)
            if not digest.finite:
                raise NonFinite(f"the base's {region.spec.name!r} holds NaN or infinity", where=plan.base,
                                hint="the file is damaged, or was broken when it was made: fetch it again")  # fmt: skip
            result.digests[region.spec.name] = digest.hexdigest()
        result.sha256 = whole.hexdigest()

    def _arriving(
        self, front: _Front, target: int, start: int, length: int, buffer: memoryview
    ) -> Iterator[memoryview]:
        """Blocks of the output from ``start``, each as soon as it is written."""
        position, end = start, start + length
        while position < end:
            stop = min(end, position + len(buffer))
            while self.alone and front.written < stop:
                yield buffer[:0]
            front.wait_for(stop)
            view = buffer[: stop - position]
            filled = 0
            while filled < len(view):
                got = os.preadv(target, [view[filled:]], position + filled)
                if not got:
                    raise Truncated("the output became shorter while it was written", where=self.folder)
                filled += got
            yield view
            position = stop
            front.advance(read=len(view))
            self.report(len(view))


def _record(region: Region, job: Rewriting) -> TensorRecord:
    return TensorRecord(
        tensor=region.spec.name, dtype=region.spec.dtype, operations=[o.describe() for o in region.operations],
        left=job.left.share(), added=region.source is None)  # fmt: skip


def rewritten(
    plan: FilePlan, region: Region, keep: int, what: str, records: list[TensorRecord]
) -> Iterator[bytes | memoryview]:
    """The new bytes of one region in blocks, read from the base and written nowhere; what was done to it goes into
    ``records`` at the end."""
    if region.source is None:
        zeros = bytes(region.spec.nbytes)
        job = Rewriting(region.spec, region.operations, lambda a, b: zeros[a:b], what, region.balanced)
        yield from job.blocks() if region.operations else [zeros]
        records.append(_record(region, job))
        return
    handle = os.open(plan.base, os.O_RDONLY)
    try:
        reader = SourceReader(region.source, handle, keep if region.operations else 0)
        if region.operations:
            job = Rewriting(region.spec, region.operations, reader, what, region.balanced)
            with np.errstate(over="ignore", invalid="ignore"):
                yield from job.blocks()
            records.append(_record(region, job))
            return
        for start in range(0, region.spec.nbytes, PASS):
            yield reader(start, min(region.spec.nbytes, start + PASS))
    finally:
        os.close(handle)


def _move(source: int, target: int, length: int, start: int, to: int, name: Path) -> int:
    """Copy up to ``length`` bytes by position, in the kernel where it can; the number of bytes, 0 at the end."""
    if hasattr(os, "copy_file_range"):
        # another file system, or one that can't, or one that says 0 where there is more: then by hand
        with contextlib.suppress(OSError):
            if moved := os.copy_file_range(source, target, length, start, to):
                return moved
    data = _pread(source, min(length, 1 << 22), start, name)
    _pwrite(target, data, to)
    return len(data)


def _pread(source: int, length: int, start: int, name: Path) -> bytes:
    try:
        return os.pread(source, length, start)
    except OSError as error:
        error.filename = str(name)  # a call by descriptor does not know it
        raise


def _pwrite(target: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(target, view, position)
        view, position = view[done:], position + done
