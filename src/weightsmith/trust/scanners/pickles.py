"""Pickles: every stream of a file is run on descriptions, and judged by what tensors need."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import WHOLE, Folder, Item, Scanner
from ..kinds import kinds_of
from ..listing import shown
from ..rules import Rule
from ..scan import WHEN_THERE
from . import pickle_judge, torch_state
from .pickle_arrays import Arrays
from .pickle_judge import Judge
from .pickle_machine import Machine, Stream
from .pickle_values import Cursor, Held, Long, Made, Opaque, PickleEnds, Value, rendered
from .unpacking import again, part

BROKEN = Rule(
    "pickle-broken", "broken", "A pickle that does not read to its end",
    "No loader gives anything back from it, but every loader has done by then what stands before the break: the findings "
    "of this scan cover that part. Files are broken on purpose so that scanners give up on them.",
    "Fetch it again; if it stays so, do not load it.",
    ("https://www.reversinglabs.com/blog/rl-identifies-malware-ml-model-hosted-on-hugging-face",),
)  # fmt: skip
TOO_LARGE = Rule(
    "pickle-too-large", "unknown", "A pickle that was not followed to its end",
    "It has more opcodes or objects than are looked at, or holds something that only its own reader can measure. What lies "
    "behind that point was not checked.",
    "Treat the file as not checked; ask for the tensors alone.",
)  # fmt: skip
TRAILING = Rule(
    "pickle-trailing", "suspicious", "Bytes behind the end of a pickle",
    "An unpickler stops at the first STOP; a program that reads on, or reads the file as another format, finds something "
    "that others do not see.",
    "Ask the publisher what the bytes are for.",
    ("https://cwe.mitre.org/data/definitions/436.html",),
)  # fmt: skip
DIFFER = Rule(
    "pickle-readers-differ", "broken", "A pickle that two unpicklers read differently",
    "No writer of pickles makes such a stream: frames that lie about their length, values left behind, buffers from outside. "
    "What one reader (or scanner) sees, another does not.",
    "Do not load it.",
    ("https://cwe.mitre.org/data/definitions/436.html",),
)  # fmt: skip
DISGUISED = Rule(
    "pickle-disguised", "suspicious", "A pickle under the name of another format",
    "The name says that nothing can be run; a loader that looks at the content, or falls back to pickle, runs it all the same.",
    "Do not load it; ask the publisher why it is called so.",
)  # fmt: skip
RULES = (*pickle_judge.RULES, *torch_state.RULES, BROKEN, TOO_LARGE, TRAILING, DIFFER, DISGUISED)

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch file that is no zip
_MOST_STREAMS = 64
MOST_UNPACKED = 1 << 30  # bytes of a compressed stream
_MOST_STORAGES = 200_000
_OTHER = (".safetensors", ".gguf", ".json", ".jsonl", ".txt", ".md", ".yaml", ".yml", ".toml", ".jinja", ".py", ".html", ".xml",
          ".csv", ".png", ".jpg", ".jpeg", ".gif", ".pdf", ".onnx", ".npy", ".npz", ".zip", ".gz", ".tar")  # fmt: skip


class Pickles(Scanner):
    """Pickles of every protocol, plain, of joblib, dill and cloudpickle, and torch's files that are no zip."""

    name = "pickles"
    rules = RULES
    kinds, about = WHEN_THERE[name]

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Findings of one file or member; members of bytes that it would unpickle in turn."""
        file = shown(item.name)
        if "pickle" not in item.kinds:
            yield _unpacked(item)
            return
        if item.outer is None and item.basename.lower().endswith(_OTHER):
            yield DISGUISED.found(f"its content is a pickle, its name ends in {item.basename.rpartition('.')[2]!r}", file=file)
        outer = item.outer.kinds if item.outer is not None else ()
        if "tar" in outer and item.basename in ("pickle", "tensors", "storages"):
            yield from _Reading(item, folder).old_tar()
        elif "zip" in outer and item.basename in ("constants.pkl", "attributes.pkl"):
            yield from _Reading(item, folder, script=True).single()
        else:
            yield from _Reading(item, folder).file()


def _unpacked(item: Item) -> Item:
    """What a zlib stream without any header around it holds, as joblib writes it.

    Raises:
        FormatError: it is damaged.
        LimitExceeded: it unpacks to more than a file here may.
    """

    def chunks() -> Iterator[bytes]:
        inner = zlib.decompressobj()
        with item.open() as file:
            while not inner.eof:
                data = inner.unconsumed_tail or file.read(1 << 18)
                if not data:
                    raise FormatError("a compressed stream that is cut off", where=item.name)
                try:
                    yield inner.decompress(data, 1 << 18)
                except zlib.error as error:
                    raise FormatError(f"a damaged compressed stream ({error})", where=item.name) from error

    size = 0
    for chunk in chunks():
        size += len(chunk)
        if size > MOST_UNPACKED:
            raise LimitExceeded(f"unpacks to more than {MOST_UNPACKED >> 30} GiB", where=item.name)
    return Item(f"{item.name}!unpacked", size, again(chunks, size, [8 * size]), outer=item)


def scan_stream(reader: BinaryIO, name: str) -> Iterator[Finding]:
    """Findings of the pickle that begins where ``reader`` stands and should end where it ends; ``name`` is the file's."""
    data = reader.read(WHOLE + 1)
    if len(data) > WHOLE:
        raise LimitExceeded(f"more than {WHOLE} bytes of objects", where=name)
    item = Item(name, len(data), lambda: io.BytesIO(data))
    yield from (f for f in _Reading(item, None).file() if isinstance(f, Finding))


def scan_data_pickle(item: Item, *, script: bool) -> tuple[list[Finding | Item], Judge, Stream]:
    """The pickle inside a torch archive: what was found, and what it describes."""
    reading = _Reading(item, None, script=script)
    found = list(reading.single())
    return found, reading.judge, reading.stream


class _Reading:
    """Reads one file's streams; ``folder`` is ``None`` where its tensors are nobody's."""

    def __init__(self, item: Item, folder: Folder | None, *, script: bool = False) -> None:
        self.item, self.folder, self.script = item, folder, script
        self.name = shown(item.name)
        self.judge = Judge(self.name, script=script)
        self.stream = Stream(0)

    def file(self) -> Iterator[Finding | Item]:
        """A file: one pickle, several, one with joblib's arrays, or torch's own sequence."""
        arrays = Arrays()
        with self.item.open() as file:
            machine = Machine(Cursor(file), self.judge, after_build=arrays.after_build)
            self.stream = machine.run()
            if self.stream.stopped and self.stream.top == MAGIC and type(self.stream.top) is int:
                machine.after_build = None
                yield from self._said(self.judge, self.stream)
                yield from self._legacy(machine)
                return
            yield from self._said(self.judge, self.stream)
            if self.stream.stopped:
                yield from self._behind(machine)
        if arrays.count:
            yield from self._as_plain()

    def single(self) -> Iterator[Finding | Item]:
        """One pickle that may refer to storages, and nothing behind it."""
        self.judge = Judge(self.name, script=self.script, ids=True)
        with self.item.open() as file:
            machine = Machine(Cursor(file), self.judge)
            self.stream = machine.run()
            yield from self._said(self.judge, self.stream)
            if self.stream.stopped:
                yield from self._behind(machine)

    def _said(self, judge: Judge, stream: Stream) -> Iterator[Finding | Item]:
        """What was found out about a stream that was run, and about the bytes in it that are unpickled in turn."""
        yield from judge.findings()
        yield from judge.odd(stream, DIFFER)
        if stream.limit:
            yield TOO_LARGE.found(stream.limit, file=self.name, place=f"byte {stream.end}")
        elif not stream.stopped:
            yield BROKEN.found(stream.problem, file=self.name, place=f"byte {stream.end}")
        yield from self._nested(judge)

    def _next(self, machine: Machine, *, ids: bool = False) -> tuple[Judge, Stream]:
        judge = machine.witness = Judge(self.name, ids=ids, script=self.script)
        return judge, machine.run()

    def _behind(self, machine: Machine) -> Iterator[Finding | Item]:
        """What lies behind STOP: more pickles, or bytes that are none."""
        machine.after_build = None
        for count in range(_MOST_STREAMS):
            begin = machine.cursor.position
            if not machine.cursor.peek(1):
                return
            judge = machine.witness = Judge(self.name, guess=True, script=self.script)
            stream = machine.run()
            judge.guess = not ((stream.stopped or stream.limit) and stream.opcodes)
            if judge.guess or count == _MOST_STREAMS - 1:
                yield TRAILING.found(f"{self.item.size - begin} bytes behind the pickle", file=self.name, place=f"byte {begin}")
                yield from judge.findings()
                return
            yield TRAILING.found("another pickle behind the first", file=self.name, place=f"byte {begin}")
            yield from self._said(judge, stream)
            if stream.limit:
                return

    def _as_plain(self) -> Iterator[Finding]:
        """A file of joblib as an ordinary unpickler takes it: arrays are opcodes to it."""
        judge = Judge(self.name, guess=True)
        with self.item.open() as file:
            Machine(Cursor(file), judge).run()
        yield from judge.findings()

    # -- bytes that are pickles themselves -------------------------------------------------------------------

    def _nested(self, judge: Judge) -> Iterator[Finding | Item]:
        certain = {id(value) for value, _, sure in judge.nested if sure}
        for value, at, sure in judge.nested:
            if not sure and id(value) in certain:
                continue
            inner = self._inner(value, at)
            if inner is None:
                if sure:
                    yield pickle_judge.COMPUTED.found("unpickles bytes that it builds while it is read", file=self.name,
                                                      place=f"byte {at}", evidence=rendered(value))  # fmt: skip
            elif inner.depth > 5:
                raise LimitExceeded("pickles inside pickles, deeper than 5")
            elif not sure:
                guess = Judge(shown(inner.name), guess=True)
                with inner.open() as file:
                    Machine(Cursor(file), guess).run()
                yield from guess.findings()
            elif set(kinds_of(inner)) - {"pickle"}:
                yield inner
            else:
                reading = _Reading(inner, None)
                reading.judge.asked = judge.asked  # all that one load takes counts together
                yield from reading.file()

    def _inner(self, value: Value, at: int) -> Item | None:
        """The bytes of a value as an item of their own; ``None`` when they are not in the file as they are."""
        if isinstance(value, Made) and value.is_a("_codecs", "encode") and isinstance(value.args, tuple) and value.args:
            value = self._encoded(value.args[0])
            if isinstance(value, Opaque):
                raise LimitExceeded("bytes that are unpickled in turn, written as a long line of text")
        if isinstance(value, str):
            value = value.encode("latin-1", "replace")
        if isinstance(value, bytes):
            return self.item.member(f"bytes at {at}", value)
        if isinstance(value, Long) and not value.text:
            opener = part(self.item.opener, value.start, value.length)
            return Item(f"{self.item.name}!bytes at {at}", value.length, opener, outer=self.item)
        return None

    def _encoded(self, value: Value) -> Value:
        """Bytes that an old protocol wrote as text of the same code points."""
        if isinstance(value, Long) and value.text and value.length <= WHOLE:
            with part(self.item.opener, value.start, value.length)() as file:
                value = file.read().decode("utf-8", "replace")
        return value

    # -- torch ------------------------------------------------------------------------------------------------

    def _legacy(self, machine: Machine) -> Iterator[Finding | Item]:
        """Torch's sequence behind the magic number: protocol, system, object, keys, then each storage's bytes."""
        streams = []
        for step in ("protocol", "system", "object", "keys"):
            judge, stream = self._next(machine, ids=step == "object")
            streams.append((judge, stream))
            yield from self._said(judge, stream)
            if not stream.stopped:
                return
        (_, protocol), _, (judge, self.stream), (_, keys) = streams
        if protocol.top != 1001 or not isinstance(keys.top, Held):
            yield BROKEN.found("its protocol is not 1001, or it has no list of storages", file=self.name)
            return
        state = torch_state.of_pickle(judge, self.stream.top, self.item)
        yield from state.findings
        yield from self._storages(machine, state, keys.top.items)
        if self.folder is not None:
            state.declare(self.item, self.folder)
        yield from self._behind(machine)

    def _storages(self, machine: Machine, state: torch_state.State, keys: list[Value]) -> Iterator[Finding]:
        nowhere = Folder(Path())
        if len(keys) > _MOST_STORAGES:
            raise LimitExceeded(f"more than {_MOST_STORAGES} storages")
        left = dict(state.storages)
        try:
            for key in keys:
                storage = left.pop(key, None) if isinstance(key, str) else None
                if storage is None:
                    yield torch_state.STORAGE_SIZE.found(f"storage {rendered(key)} belongs to no tensor, or comes twice",
                                                         file=self.name)  # fmt: skip
                    return
                size = int.from_bytes(machine.cursor.take(8), "little") * storage.itemsize
                if size != storage.nbytes:
                    yield torch_state.STORAGE_SIZE.found(f"storage {key[:60]!r} has {size} bytes, its tensors {storage.nbytes}",
                                                         file=self.name)  # fmt: skip
                    return
                yield from state.look(storage, machine.cursor.pieces(size), self.item, self.folder or nowhere)
        except PickleEnds:
            yield torch_state.STORAGE_SIZE.found("the file ends in the middle of its storages", file=self.name)
            return
        for key in list(left)[:10]:
            yield torch_state.STORAGE_SIZE.found(f"storage {key[:60]!r} is missing", file=self.name)

    def old_tar(self) -> Iterator[Finding | Item]:
        """A member of torch's first format, a tar of three files of pickles with raw numbers in between."""
        with self.item.open() as file:
            machine = Machine(Cursor(file), self.judge)
            judge, first = self._next(machine, ids=True)
            yield from self._said(judge, first)
            if not first.stopped:
                return
            if self.item.basename != "pickle":
                try:
                    yield from self._old_parts(machine, first.top if type(first.top) is int else 0)
                except PickleEnds as end:
                    yield BROKEN.found(str(end), file=self.name)
                    return
            yield from self._behind(machine)

    def _old_parts(self, machine: Machine, count: int) -> Iterator[Finding | Item]:
        for _ in range(min(count, _MOST_STORAGES)):
            judge, stream = self._next(machine)
            yield from self._said(judge, stream)
            if not stream.stopped:
                return
            if self.item.basename == "tensors":
                axes = int.from_bytes(machine.cursor.take(8)[:4], "little")
                machine.cursor.skip(16 * axes + 8)
                continue
            kind = stream.top[2] if isinstance(stream.top, tuple) and len(stream.top) == 3 else None
            size = torch_state.element_size(kind)
            machine.cursor.skip(int.from_bytes(machine.cursor.take(8), "little") * size)
        if self.item.basename == "storages":
            judge, stream = self._next(machine)
            yield from self._said(judge, stream)
