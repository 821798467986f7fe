"""A machine that runs a pickle without running anything: each opcode of every protocol, on descriptions of values.

It has its own loop, since the library's disassembler gives up on streams that unpicklers read to the end. Wherever the
unpicklers that exist differ (the interpreter's two, torch's, joblib's), it goes on if any of them does. What a stream
imports, calls and rewrites is told to a :class:`Witness` at once, so that it is known even if the stream breaks later.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import LimitExceeded
from .pickle_values import KEPT, Cursor, Global, Held, Long, Made, Opaque, Pers, PickleEnds, Value, unescaped

MOST_OPCODES = 12_000_000
MOST_TEXT = 1 << 27  # bytes of strings that are kept; after that only short ones are
MOST_ITEMS = 3_000_000  # values in lists, dicts and sets that are kept
MOST_OBJECTS = 3_000_000  # containers and results of calls, and memo entries
MOST_IMPORTS = 100_000
MEMO_JUMP = 1 << 22  # a memo index this far beyond the opcodes so far makes the C unpickler allocate for all before it


class Witness:
    """Hears what a stream does; each ``at`` is the position of the opcode. The base class hears nothing."""

    def imported(self, name: Global, at: int) -> None:
        """GLOBAL, STACK_GLOBAL or INST imports a name."""

    def computed(self, what: str, at: int) -> None:
        """An import whose name is not in the stream."""

    def called(self, func: Value, args: Value, how: str, at: int) -> None:
        """Something is called, by the opcode ``how``."""

    def built(self, value: Value, state: Value, at: int) -> None:
        """BUILD sets the state of a value."""

    def changed(self, value: Value, at: int) -> None:
        """Items are put into something that is no container."""

    def seen(self, value: bytes | Long, at: int) -> None:
        """A byte string that begins as a pickle does."""

    def supplied(self, pid: Value, at: int) -> None:
        """A persistent id."""


@dataclass
class Stream:
    """One pickle that was run: from ``start`` to ``end`` (after STOP), what it leaves (``top``), and how it ended.

    ``problem`` says why no unpickler goes on at ``end`` when it did not reach STOP; ``limit`` why this machine did not,
    while an unpickler might; ``odd`` lists what unpicklers take
    differently or no pickler writes. ``opcodes`` counts them.
    """

    start: int
    end: int = 0
    protocol: int = 0
    top: Value = None
    stopped: bool = False
    problem: str = ""
    limit: str = ""
    odd: list[str] = field(default_factory=list)
    opcodes: int = 0


class Machine:
    """Runs one stream after the other from a cursor; each has a memo of its own."""

    def __init__(self, cursor: Cursor, witness: Witness, *, after_build: Callable[[Machine, Made], Value] | None = None) -> None:
        self.cursor, self.witness, self.after_build = cursor, witness, after_build
        self.items = self.kept = self.objects = 0
        self._fresh()

    def _fresh(self) -> None:
        self.stack: list[Value] = []
        self.below: list[list[Value]] = []
        self.memo: dict[int, Value] = {}
        self.names: dict[tuple[str, str], Global] = {}
        self.frame_end = 0
        self.at = 0

    def run(self) -> Stream:
        """Run to STOP, to the first thing that no unpickler goes on after, to the end of the bytes, or to a limit."""
        self._fresh()
        cursor = self.cursor
        self.stream = stream = Stream(cursor.position)
        try:
            self._loop(cursor, stream)
        except LimitExceeded as error:
            stream.limit = error.message
        except PickleEnds as end:
            stream.problem = str(end)
        except IndexError:
            stream.problem = "takes more from the stack than is there"
        except KeyError:
            stream.problem = "uses a memo entry that was never made"
        except (ValueError, UnicodeError, struct.error, OverflowError) as error:
            stream.problem = f"an argument can't be read ({str(error)[:80]})"
        if stream.problem:
            stream.problem += f" (opcode {stream.opcodes}, byte {self.at})"
        stream.end = cursor.position
        return stream

    def _loop(self, cursor: Cursor, stream: Stream) -> None:
        """Opcode after opcode, up to STOP; the cursor's buffer is looked into directly, since there may be millions."""
        steps = _STEPS
        count = 0
        while True:
            at = cursor.at
            if at >= len(cursor.buffer):
                if not cursor.more(1):
                    raise PickleEnds("the bytes end before STOP")
                at = cursor.at
            code = cursor.buffer[at]
            self.at = start = cursor.base + at
            cursor.at = at + 1
            if code == 0x2E:
                stream.top, stream.stopped = self.stack.pop(), True
                self._leave_frame()
                return
            step = steps.get(code)
            if step is None:
                raise PickleEnds(f"byte {code:#04x} is no opcode")
            step(self)
            stream.opcodes = count = count + 1
            if self.frame_end and cursor.base + cursor.at >= self.frame_end:
                if cursor.base + cursor.at > self.frame_end and start < self.frame_end:
                    self.odd("an opcode crosses the end of its frame")
                self.frame_end = 0
            if not count & 0xFFF and (count > MOST_OPCODES or len(self.memo) > MOST_OBJECTS or self.objects > MOST_OBJECTS):
                raise LimitExceeded(f"a pickle of more than {MOST_OPCODES} opcodes or {MOST_OBJECTS} objects")

    # -- what the opcodes share ---------------------------------------------------------------------------

    def odd(self, what: str) -> None:
        """Note once what unpicklers take differently."""
        if len(self.stream.odd) < 8 and what not in self.stream.odd:
            self.stream.odd.append(what)

    def marked(self) -> list[Value]:
        """The values since the last mark, and the stack as it was before it."""
        values = self.stack
        self.stack = self.below.pop()
        return values

    def named(self, module: str, name: str) -> Global:
        """A name that is imported; the witness hears of it each time."""
        found = self.names.get((module, name))
        if found is None:
            found = self.names[module, name] = Global(module, name)
            if len(self.names) > MOST_IMPORTS:
                raise LimitExceeded(f"a pickle of more than {MOST_IMPORTS} imports")
        self.witness.imported(found, self.at)
        return found

    def call(self, func: Value, args: Value, how: str) -> None:
        """Call something and push what it gives."""
        self.witness.called(func, args, how, self.at)
        self.objects += 1
        self.stack.append(Made(func, args, how))

    def put(self, target: Value, values: list[Value], kind: str) -> None:
        """Put values into a container, or into what takes their place."""
        if isinstance(target, Held) and target.kind != kind and (target.kind, kind) != ("list", "dict"):
            raise PickleEnds(f"puts items of a {kind} into a {target.kind}")
        if isinstance(target, (Held, Made)):
            self.items += len(values)
            if self.items <= MOST_ITEMS:
                target.items.extend(values)
            else:
                target.cut = True
        else:
            self.witness.changed(target, self.at)

    def room(self, size: int) -> int:
        """How long a string may be to be kept; ``size`` bytes more will be."""
        self.kept += min(size, KEPT)
        return KEPT if self.kept < MOST_TEXT else 512

    def line(self) -> bytes | None:
        """A line that is an argument, or ``None`` when it is too long to be kept."""
        line = self.cursor.line()
        return line if len(line) <= self.room(len(line)) else None

    def memoize(self, index: int) -> None:
        """Name the top of the stack."""
        if index > MEMO_JUMP + 16 * self.stream.opcodes:
            self.odd(f"memo entry {index} makes an unpickler allocate {index >> 26} GiB")
        self.memo[index] = self.stack[-1]

    def _leave_frame(self) -> None:
        if self.cursor.position < self.frame_end:
            self.odd("STOP comes before its frame ends")
        if self.below or self.stack:
            self.odd("values are left on the stack")


def _frame(m: Machine) -> None:
    length = int.from_bytes(m.cursor.take(8), "little")
    if m.frame_end:
        m.odd("a frame begins inside another")
    m.frame_end = m.cursor.position + length


def _proto(m: Machine) -> None:
    number = m.cursor.take(1)[0]
    if number > 5:
        raise PickleEnds(f"protocol {number} does not exist")
    if m.stream.opcodes:
        m.odd("the protocol is stated in the middle")
    m.stream.protocol = max(m.stream.protocol, number)


def _mark(m: Machine) -> None:
    m.below.append(m.stack)
    m.objects += 1
    m.stack = []


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.marked()


def _held(kind: str, marked: bool) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        values = m.marked() if marked else []
        if kind == "dict" and len(values) % 2:
            raise PickleEnds("a dict of an odd number of items")
        made = Held(kind, [])
        m.objects += 1
        m.put(made, values, kind)
        m.stack.append(made)

    return step


def _tuple(count: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        if len(m.stack) < count:
            raise IndexError
        values = tuple(m.stack[-count:])
        m.objects += 1
        m.stack[-count:] = [values]

    return step


def _into(kind: str, count: int) -> Callable[[Machine], None]:
    """APPEND, SETITEM (``count`` values from the stack) and their plural forms (``count`` 0: all since the mark)."""

    def step(m: Machine) -> None:
        if count:
            if len(m.stack) <= count:
                raise IndexError
            values = m.stack[-count:]
            del m.stack[-count:]
        else:
            values = m.marked()
        if kind == "dict" and len(values) % 2:
            raise PickleEnds("an odd number of items for a dict")
        m.put(m.stack[-1], values, kind)

    return step


def _name(m: Machine) -> tuple[str, str]:
    module, name = m.cursor.line(open_end=True), m.cursor.line(open_end=True)
    if len(module) > KEPT or len(name) > KEPT:
        raise PickleEnds("an import name of more than 64 KiB")
    return module.decode(), name.decode()


def _global(m: Machine) -> None:
    m.stack.append(m.named(*_name(m)))


def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if isinstance(module, str) and isinstance(name, str):
        m.stack.append(m.named(module, name))
        return
    m.witness.computed(f"STACK_GLOBAL of {type(module).__name__} and {type(name).__name__}", m.at)
    m.stack.append(Opaque("computed import"))


def _extension(size: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.witness.computed(f"extension {int.from_bytes(m.cursor.take(size), 'little')} of the copyreg registry", m.at)
        m.stack.append(Opaque("computed import"))

    return step


def _inst(m: Machine) -> None:
    name = m.named(*_name(m))
    m.call(name, tuple(m.marked()), "INST")


def _obj(m: Machine) -> None:
    values = m.marked()
    m.call(values[0], tuple(values[1:]), "OBJ")


def _reduce(m: Machine) -> None:
    args, func = m.stack.pop(), m.stack.pop()
    m.call(func, args, "REDUCE")


def _newobj(m: Machine) -> None:
    args, func = m.stack.pop(), m.stack.pop()
    m.call(func, args, "NEWOBJ")


def _newobj_ex(m: Machine) -> None:
    named, args, func = m.stack.pop(), m.stack.pop(), m.stack.pop()
    more = tuple(named.items) if isinstance(named, Held) else (named,)
    every = (*args, *more) if isinstance(args, tuple) else (args, *more)
    m.objects += len(every)  # a copy each time, of what may be one long tuple
    if m.objects > MOST_OBJECTS:
        raise LimitExceeded(f"a pickle of more than {MOST_OBJECTS} objects")
    m.call(func, every, "NEWOBJ_EX")


def _build(m: Machine) -> None:
    state, value = m.stack.pop(), m.stack[-1]
    m.witness.built(value, state, m.at)
    if isinstance(value, Made):
        value.state = state
        if m.after_build is not None:
            m.stack[-1] = m.after_build(m, value)


def _persistent(m: Machine, pid: Value) -> None:
    m.witness.supplied(pid, m.at)
    m.objects += 1
    m.stack.append(Pers(pid))


def _string(size: int, decode: Callable[[bytes], Value], text: bool) -> Callable[[Machine], None]:
    """A counted string: ``size`` bytes of length (of BINSTRING signed, where a negative one ends every reader)."""

    def step(m: Machine) -> None:
        length = int.from_bytes(m.cursor.take(size), "little")
        found = m.cursor.text(length, m.room(length), text=text)
        first = found.first if isinstance(found, Long) else found
        if first[:1] == b"\x80" and len(first) > 2 and 2 <= first[1] <= 5 and not text:
            m.witness.seen(found, m.at)
        m.stack.append(found if isinstance(found, Long) else decode(found))

    return step


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str:
    """Python 2's ``str``, of which readers make text or bytes; as text it can become the name of an import."""
    return raw.decode("latin-1")


def _quoted(m: Machine) -> None:
    line = m.line()
    if line is None:
        m.stack.append(Opaque("long text"))
        return
    if line[-1:] != line[:1]:
        line = line.rstrip(bytes(range(33)))  # one reader takes blanks after the quote
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise PickleEnds("a string without its quotes")
    m.stack.append(_old_text(unescaped(line[1:-1])))


def _unicode_line(m: Machine) -> None:
    line = m.line()
    m.stack.append(Opaque("long text") if line is None else line.decode("raw-unicode-escape"))


def _int_line(m: Machine) -> None:
    line = m.cursor.number()
    if line in (b"00", b"01"):
        m.stack.append(line == b"01")
        return
    m.stack.append(_number(line[:-1] if line[-1:] in (b"l", b"L") else line))


def _number(text: bytes) -> Value:
    if len(text) > 64:
        return Opaque("a long number")
    try:
        return int(text, 0)
    except ValueError:
        return int(text)


def _float_line(m: Machine) -> None:
    line = m.cursor.number()
    m.stack.append(float(line) if len(line) <= KEPT else Opaque("a long number"))


def _int(size: int, signed: bool) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.stack.append(int.from_bytes(m.cursor.take(size), "little", signed=signed))

    return step


def _long(size: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        length = int.from_bytes(m.cursor.take(size), "little")
        if length > 64:
            m.cursor.skip(length)
            m.stack.append(Opaque("a long number"))
        else:
            m.stack.append(int.from_bytes(m.cursor.take(length), "little", signed=True))

    return step


def _put_line(m: Machine) -> None:
    index = _number(m.cursor.number())
    if not isinstance(index, int) or index < 0:
        raise PickleEnds("a memo index that is no number")
    m.memoize(index)


def _get_line(m: Machine) -> None:
    m.stack.append(m.memo[_number(m.cursor.number())])


def _put(size: int) -> Callable[[Machine], None]:
    return lambda m: m.memoize(int.from_bytes(m.cursor.take(size), "little"))


def _get(size: int) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(m.memo[int.from_bytes(m.cursor.take(size), "little")])


def _constant(value: Value) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(value)


def _next_buffer(m: Machine) -> None:
    m.odd("it needs buffers from outside the file")
    m.stack.append(Opaque("buffer"))


def _read_only(m: Machine) -> None:
    m.stack.append(m.stack.pop())


_STEPS: dict[int, Callable[[Machine], None]] = {ord(key): step for key, step in {
    "\x80": _proto, "\x95": _frame, "(": _mark, "0": _pop, "1": lambda m: _drop(m), "2": lambda m: m.stack.append(m.stack[-1]),
    "N": _constant(None), "\x88": _constant(True), "\x89": _constant(False), ")": _constant(()),
    "I": _int_line, "L": _int_line, "F": _float_line, "J": _int(4, True), "K": _int(1, False), "M": _int(2, False),
    "\x8a": _long(1), "\x8b": _long(4), "G": lambda m: m.stack.append(struct.unpack(">d", m.cursor.take(8))[0]),
    "S": _quoted, "T": _string(4, _old_text, False), "U": _string(1, _old_text, False),
    "V": _unicode_line, "X": _string(4, _utf8, True), "\x8c": _string(1, _utf8, True), "\x8d": _string(8, _utf8, True),
    "B": _string(4, bytes, False), "C": _string(1, bytes, False), "\x8e": _string(8, bytes, False),
    "\x96": _string(8, bytes, False), "\x97": _next_buffer, "\x98": _read_only,
    "]": _held("list", False), "l": _held("list", True), "}": _held("dict", False), "d": _held("dict", True),
    "\x8f": _held("set", False), "\x91": _held("set", True), "t": lambda m: _marked_tuple(m),
    "\x85": _tuple(1), "\x86": _tuple(2), "\x87": _tuple(3),
    "a": _into("list", 1), "e": _into("list", 0), "s": _into("dict", 2), "u": _into("dict", 0), "\x90": _into("set", 0),
    "c": _global, "\x93": _stack_global, "i": _inst, "o": _obj, "R": _reduce, "b": _build, "\x81": _newobj,
    "\x92": _newobj_ex, "\x82": _extension(1), "\x83": _extension(2), "\x84": _extension(4),
    "P": lambda m: _persistent(m, m.cursor.line().decode("ascii", "replace")), "Q": lambda m: _persistent(m, m.stack.pop()),
    "p": _put_line, "q": _put(1), "r": _put(4), "\x94": lambda m: m.memoize(len(m.memo)),
    "g": _get_line, "h": _get(1), "j": _get(4),
}.items()}  # fmt: skip


def _drop(m: Machine) -> None:
    m.marked()


def _marked_tuple(m: Machine) -> None:
    values = m.marked()
    m.objects += 1
    m.stack.append(tuple(values))
