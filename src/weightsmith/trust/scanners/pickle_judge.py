"""What the imports and calls of a pickle mean: a :class:`~.pickle_machine.Witness` that decides by an allow-list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...errors import LimitExceeded
from ...found import Finding, Severity
from ..rules import Rule
from .pickle_machine import Stream, Witness
from .pickle_names import is_called, is_enum, standing_of, takes_a_class, takes_arguments
from .pickle_sizes import Asked
from .pickle_values import Global, Held, Long, Made, Opaque, Pers, Value, rendered

MOST_KEPT = 20  # findings of one rule from one stream

CODE = Rule(
    "pickle-code", "malicious", "A pickle reaches the interpreter or the system",
    "Reading this file with an ordinary loader imports what the finding names, and calls it where the evidence shows a call: "
    "a program, a shell, an importer, a file. Nothing of this kind is needed to store a tensor.",
    "Do not load it with anything. Report it to the place that you have it from.",
    ("https://docs.python.org/3/library/pickle.html#module-pickle", "https://cwe.mitre.org/data/definitions/502.html"),
)  # fmt: skip
UNLISTED_CALL = Rule(
    "pickle-unlisted-call", "malicious", "A pickle calls something that tensors do not need",
    "Loading it runs the named function or class of a library with arguments from the file. Lists of bad names always miss "
    "some; this scan knows the few names that tensors, arrays and trainer states need, and this one is not among them.",
    "Do not load it. If you wrote the file yourself, save the tensors alone (safetensors, or a plain state dict).",
    ("https://cwe.mitre.org/data/definitions/502.html",),
)  # fmt: skip
UNLISTED_NAME = Rule(
    "pickle-unlisted-name", "suspicious", "A pickle imports something that tensors do not need",
    "Importing runs the named module. The stream does not call it, but whoever uses the loaded object may.",
    "Find out why it is there, or ask for the tensors alone.",
    ("https://cwe.mitre.org/data/definitions/502.html",),
)  # fmt: skip
COMPUTED = Rule(
    "pickle-computed", "malicious", "A pickle builds what it imports or calls while it is read",
    "The name of an import is put together at run time, or the result of one call is called again. Writers of pickles never "
    "do this; it hides the name from those who read the file without running it.",
    "Do not load it with anything.",
    ("https://cwe.mitre.org/data/definitions/502.html",),
)  # fmt: skip
REWRITES = Rule(
    "pickle-rewrites-class", "malicious", "A pickle changes a class or a function instead of an object",
    "Setting the state of a class, or special attributes of an object, makes harmless names do something else when they are "
    "used later, in this file or in the program that loads it.",
    "Do not load it with anything.",
    ("https://cwe.mitre.org/data/definitions/915.html",),
)  # fmt: skip
SETTINGS = Rule(
    "pickle-needs-unsafe-loader", "note", "A pickle holds objects of a trainer or a library",
    "These classes only hold settings or numbers, but a loader that admits them admits everything, and `weights_only` refuses "
    "the file. It is not needed to run the model.",
    "Leave it unread unless you continue the training, and then only from a source that you trust.",
)  # fmt: skip
WHOLE = Rule(
    "pickle-whole-module", "suspicious", "A model was pickled whole, with its classes",
    "It can only be read by a loader that runs what the file asks for, and with the very code that it was written with. "
    "This scan sees which classes are filled, not what their code does with it.",
    "Ask for a state dict (or safetensors) and the code; convert it in a sandbox if there is none.",
)  # fmt: skip
FOREIGN_ID = Rule(
    "pickle-persistent-id", "suspicious", "A pickle asks its reader for objects of another kind than storages",
    "Persistent ids are what torch's storages are stored under. What a reader makes of any other id is up to that reader.",
    "Find out which program wrote the file.",
)  # fmt: skip
BOMB = Rule(
    "pickle-asks-for-memory", "broken", "A pickle makes its reader take far more memory than the file holds",
    "A few bytes ask for gigabytes; the program that loads them ends or brings the machine down.",
    "Do not load it.",
    ("https://cwe.mitre.org/data/definitions/789.html",),
)  # fmt: skip
RULES = (CODE, UNLISTED_CALL, UNLISTED_NAME, COMPUTED, REWRITES, SETTINGS, WHOLE, FOREIGN_ID, BOMB)

MOST_NESTED = 10_000
MOST_NESTED_BYTES = 1 << 26  # of byte strings that only look like a pickle
MOST_LOOKED = 3_000_000  # arguments, sizes and keys of states that are looked at; one long tuple can be handed to a million calls
_ENCODINGS = {"latin1", "latin-1", "latin_1", "iso-8859-1", "utf-8", "utf8", "ascii"}
_STATE_KEYS = {"__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__", "__dict__"}


@dataclass(slots=True)
class _Use:
    """What a stream does with one imported name; ``bare`` while all that is made with it are empty instances."""

    name: Global
    at: int
    called_at: int = -1
    how: str = ""
    shown: str = ""
    bare: bool = True


class Judge(Witness):
    """Judges one file's streams; findings come at the end, one for each name.

    ``script`` is true inside a TorchScript archive, whose own class names (``__torch__``) only its own reader makes.
    ``ids`` is true where persistent ids belong: ``pids`` collects them. ``tensors`` are the calls that make tensors;
    ``nested`` the bytes that a reader would unpickle in turn, or that look like a pickle: (bytes or place, position, which).
    A ``guess`` is a reading of bytes that are probably no pickle: only what is certain is said then.
    """

    def __init__(self, file: str, *, script: bool = False, ids: bool = False, guess: bool = False) -> None:
        self.file, self.script, self.ids, self.guess = file, script, ids, guess
        self.uses: dict[Global, _Use] = {}
        self.found: list[Finding] = []
        self.pids: list[Value] = []
        self.nested: list[tuple[Value, int, bool]] = []
        self.tensors: list[tuple[str, tuple[Value, ...]]] = []
        self._unpickled: set[int] = set()
        self._harmless: set[tuple[Global, str]] = set()  # calls without arguments that were judged before
        self.asked = Asked()
        self._looked = 0
        self._bytes = 0
        self._counts: dict[str, int] = {}

    # -- what the machine tells ---------------------------------------------------------------------------

    def imported(self, name: Global, at: int) -> None:
        self.uses.setdefault(name, _Use(name, at))

    def computed(self, what: str, at: int) -> None:
        self._add(COMPUTED, f"an import that the stream does not name: {what}", at)

    def called(self, func: Value, args: Value, how: str, at: int) -> None:
        if args == () and (func, how) in self._harmless:
            return
        if isinstance(func, Pers) and isinstance(func.pid, tuple):  # old files: an id that holds a class stands for it
            func = next((part for part in func.pid if isinstance(part, Global)), func)
        if not isinstance(func, Global):
            if self._room(COMPUTED):
                self._add(COMPUTED, "calls the result of something else", at, f"{how} {rendered(func)}({rendered(args)})")
            return
        if func.name.startswith("_rebuild_") and isinstance(args, tuple):
            self.tensors.append((func.name, args))
        use = self.uses.setdefault(func, _Use(func, at))
        if use.called_at < 0:
            use.called_at, use.how = at, how
        use.bare = use.bare and how == "NEWOBJ" and args == ()
        standing = self._standing(func)
        if standing not in ("needed", "plain", "module"):
            if not use.shown:
                use.shown = f"{how} {rendered(Made(func, args, how))}"
            return
        values = args if isinstance(args, tuple) else (args,)
        self._look(len(values))
        for value in values:
            if isinstance(value, Global) and self._standing(value) == "unlisted":
                self._hands(func, value, args, at)
        if values and (much := self.asked.call(func, values, at)):
            self._add(BOMB, f"its calls ask for {much} bytes and more", at, rendered(Made(func, args, how)))
        reason = self._refused(func, values, how, at)
        if not values and not reason:
            self._harmless.add((func, how))
        if reason and self._room(UNLISTED_CALL):
            self._add(UNLISTED_CALL, f"{func} is called with {reason}", at, f"{how} {rendered(Made(func, args, how))}")

    def built(self, value: Value, state: Value, at: int) -> None:
        if much := self.asked.state(state, at):
            self._add(BOMB, f"its arrays ask for {much} bytes and more", at, rendered(value))
        if not self._room(REWRITES):
            return
        if isinstance(value, (Global, Pers)) or (isinstance(value, Made) and value.is_a("builtins", "getattr")):
            self._add(REWRITES, f"sets attributes of {rendered(value)}", at, rendered(state))
        if isinstance(value, (str, bytes, int, float, Held, tuple)) or value is None:
            self._add(REWRITES, "sets the state of a plain value", at, rendered(state), severity="suspicious")
        self._state(state, at)

    def changed(self, value: Value, at: int) -> None:
        if isinstance(value, Global):
            self._add(REWRITES, f"puts items into {value}", at)

    def supplied(self, pid: Value, at: int) -> None:
        if self.ids:
            self.pids.append(pid)
        elif self._room(FOREIGN_ID):
            self._add(FOREIGN_ID, "a persistent id where none belongs", at, rendered(pid))

    def seen(self, value: bytes | Long, at: int) -> None:
        size = value.length if isinstance(value, Long) else len(value)
        if len(self.nested) < MOST_NESTED and self._bytes + size <= MOST_NESTED_BYTES:
            self._bytes += size
            self.nested.append((value, at, False))

    # -- rules --------------------------------------------------------------------------------------------

    def _look(self, count: int) -> None:
        """So many more values are looked at.

        Raises:
            LimitExceeded: more than :data:`MOST_LOOKED` in all.
        """
        self._looked += count
        if self._looked > MOST_LOOKED:
            raise LimitExceeded(f"calls and states of more than {MOST_LOOKED} values")

    def _standing(self, name: Global) -> str:
        if self.script and name.module.startswith("__torch__"):
            return "needed"
        return standing_of(name.module, name.name)

    def _state(self, state: Value, at: int) -> None:
        """Special attributes among those that a state sets."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, Held | Made) and part.cut:
                raise LimitExceeded("a state of more values than are kept")
            for key in keys_of(part):
                self._look(1)
                if isinstance(key, (Made, Opaque, Long)):
                    self._add(REWRITES, "sets an attribute whose name is made while it is read", at)
                elif isinstance(key, str) and len(key) > 4 and key[:2] == key[-2:] == "__" and key not in _STATE_KEYS:
                    self._add(REWRITES, f"sets the special attribute {key!r}", at)

    def _hands(self, func: Global, value: Global, args: Value, at: int) -> None:
        use = self.uses.setdefault(value, _Use(value, at))
        use.bare = False
        if use.called_at < 0:
            use.called_at, use.how, use.shown = at, "REDUCE", f"handed to {func}: {rendered(args)}"

    def _refused(self, func: Global, args: tuple[Value, ...], how: str, at: int) -> str:
        """Why this call of a trusted name is none that a writer makes; empty when it is."""
        if self.script and func.module.startswith("__torch__"):
            return ""
        standing = standing_of(func.module, func.name)
        if standing == "needed":
            if not is_called(func.module, func.name) and how not in ("NEWOBJ", "NEWOBJ_EX"):
                return "arguments, though it is only ever named"
            check = _CHECKS.get(func.name)
            return check(self, args, how, at) if check is not None else ""
        if how in ("NEWOBJ", "NEWOBJ_EX"):
            return ""
        if is_enum(func.module, func.name) and len(args) == 1 and isinstance(args[0], (str, int)):
            return ""
        if takes_a_class(func.module, func.name):
            kind = args[0] if args else None
            own = isinstance(kind, Global) and kind.module.startswith("pandas.") and kind.name[:1].isupper()
            return "" if own else "a class that is none of pandas' own"
        if takes_arguments(func.module, func.name):
            return "a name of the system" if any(isinstance(v, Global) and self._standing(v) == "system" for v in args) else ""
        return f"arguments by {how}; its writers make it without a call" if args else ""

    def indirect(self, func: Value, args: Value, how: str, at: int) -> str:
        """A trusted function that calls what it is handed: judge that call as well."""
        if not isinstance(func, Global):
            return "something to call that the stream does not name"
        self.called(func, args, how, at)
        return ""

    def unpickled(self, value: Value, at: int) -> str:
        """Bytes that are unpickled in turn."""
        if not isinstance(value, (bytes, str, Long, Made)):
            return "bytes that are not in the stream"
        if id(value) not in self._unpickled:
            self._unpickled.add(id(value))  # it stays alive in the list
            self.nested.append((value, at, True))
            if len(self._unpickled) > MOST_NESTED:
                raise LimitExceeded(f"more than {MOST_NESTED} pickles inside a pickle")
        return ""

    # -- findings -----------------------------------------------------------------------------------------

    def _add(self, rule: Rule, message: str, at: int, evidence: str = "", *, severity: Severity | None = None) -> None:
        kept = severity or rule.severity  # what is milder leaves room for what is not
        if self._room(rule, kept):
            self._counts[f"{rule.name} {kept}"] = self._counts.get(f"{rule.name} {kept}", 0) + 1
            self.found.append(rule.found(message, file=self.file, place=f"byte {at}", evidence=evidence, severity=severity))

    def _room(self, rule: Rule, severity: str = "") -> bool:
        return self._counts.get(f"{rule.name} {severity or rule.severity}", 0) < MOST_KEPT

    def findings(self) -> Iterator[Finding]:
        """Everything that was found, one finding for each name."""
        settings: list[str] = []
        layers: list[str] = []
        kept: dict[str, int] = {}
        whole = any(self._standing(name) == "module" for name in self.uses)  # a model's own classes stand beside torch's
        for use in self.uses.values():
            standing = self._standing(use.name)
            called = use.called_at >= 0
            if standing == "plain":
                settings.append(str(use.name))
            elif standing == "module":
                layers.append(str(use.name))
            elif standing == "unlisted" and called and use.bare and whole:
                layers.append(str(use.name))
                continue
            if standing not in ("system", "unlisted") or (self.guess and not (called and _likely(use.name))):
                continue
            rule = CODE if standing == "system" else UNLISTED_CALL if called else UNLISTED_NAME
            kept[rule.name] = kept.get(rule.name, 0) + 1
            if kept[rule.name] <= MOST_KEPT:
                verb = f"calls {use.name} ({use.how})" if called else f"imports {use.name}"
                place = use.called_at if called else use.at
                yield rule.found(verb[:300], file=self.file, place=f"byte {place}", evidence=use.shown or str(use.name))
        if self.guess:
            return
        yield from self.found
        for rule, names in ((SETTINGS, settings), (WHOLE, layers)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                yield rule.found(f"made of {', '.join(names[:6])}{more}"[:300], file=self.file)

    def odd(self, stream: Stream, rule: Rule) -> Iterator[Finding]:
        """What unpicklers take differently in a stream."""
        for what in stream.odd:
            found = BOMB if "allocate" in what else rule
            yield found.found(what, file=self.file, place=f"pickle at byte {stream.start}")


def _likely(name: Global) -> bool:
    """Whether a name that was read from what may be no pickle at all is one that somebody wrote."""
    parts = f"{name.module}.{name.name}".split(".")
    return (all(part.isidentifier() and part.isascii() for part in parts) and len(name.module) > 1 < len(name.name)
            and ("." in name.module or name.module.islower()))  # a lone capitalised word is a class that a memo holds


def keys_of(value: Value) -> Iterator[Value]:
    """Keys of a dict, or of what is made like one (OrderedDict and its like), from pairs or from another dict."""
    if isinstance(value, Made):
        yield from value.items[::2]
        value = value.args[-1] if isinstance(value.args, tuple) and value.args else None
    if isinstance(value, Held) and value.kind == "dict":
        yield from value.items[::2]
    elif isinstance(value, Held):
        for pair in value.items:
            parts = pair.items if isinstance(pair, Held) else pair
            if isinstance(parts, (list, tuple)) and parts:
                yield parts[0]


# -- calls of trusted names that are only harmless with the right arguments --------------------------------------

Check = Callable[[Judge, tuple[Value, ...], str, int], str]


def _encode(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    good = len(args) == 1 or (len(args) == 2 and isinstance(args[1], str) and args[1].lower() in _ENCODINGS)
    return "" if good and isinstance(args[0], (str, Long, Opaque)) else "another codec than writers use"


def _getattr(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    """One version of the interpreter writes members of enumerations like this."""
    known = len(args) == 2 and isinstance(args[0], Global) and is_enum(args[0].module, args[0].name)
    if known and isinstance(args[1], str) and args[1].isidentifier() and not args[1].startswith("_"):
        return ""
    return "something else than a member of a known enumeration"


def _type(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    return "" if len(args) == 1 and not isinstance(args[0], (Global, Made)) else "arguments that make a class"


def _newobj(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    return judge.indirect(args[0], args[1:], "NEWOBJ", at) if args else "no class"


def _reconstructor(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    if len(args) != 3:
        return "other than three arguments"
    if not isinstance(args[1], Global) or standing_of(args[1].module, args[1].name) != "needed":
        return "a base that it does not name"
    return judge.indirect(args[0], (), "NEWOBJ", at)


def _from_type(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    if len(args) != 4 or not isinstance(args[2], tuple):
        return "other than a function, a type, arguments and a state"
    judge._state(args[3], at)
    return judge.indirect(args[0], args[2], "REDUCE", at)


def _with_state(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    judge._state(args[-1] if args else None, at)
    return ""


def _factory(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    if not args or args[0] is None:
        return ""
    factory = args[0]
    if isinstance(factory, Global) and standing_of(factory.module, factory.name) == "needed":
        return "" if factory.name not in ("type", "getattr", "_load_from_bytes") else "such a factory"
    return "a factory that is not a plain type"


def _load_from_bytes(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    return judge.unpickled(args[0], at) if len(args) == 1 else "other than one argument"


def _generator(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    """NumPy calls the second argument with the first: writers name their own constructor there, or nothing."""
    if len(args) < 2:
        return ""
    return judge.indirect(args[1], args[:1], "REDUCE", at)


def _bit_generator(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    """NumPy makes an instance of a class, or of one that it knows by name."""
    return judge.indirect(args[0], (), "REDUCE", at) if args and not isinstance(args[0], str) else ""


def _plain_values(judge: Judge, args: tuple[Value, ...], how: str, at: int) -> str:
    """Types whose instances are written as literals: a call has no arguments, or makes a subclass of theirs."""
    return "" if not args or how in ("NEWOBJ", "NEWOBJ_EX") else "arguments, where writers use a literal"


_CHECKS: dict[str, Check] = {
    "encode": _encode, "getattr": _getattr, "type": _type, "__newobj__": _newobj, "_reconstructor": _reconstructor,
    "_rebuild_from_type_v2": _from_type, "_rebuild_parameter_with_state": _with_state, "defaultdict": _factory,
    "_load_from_bytes": _load_from_bytes, "bytes": _plain_values,
    "int": _plain_values, "float": _plain_values, "str": _plain_values, "list": _plain_values, "dict": _plain_values,
    "tuple": _plain_values, "bool": _plain_values, "memmap": lambda *_: "a file to map",
    "__generator_ctor": _generator, "__randomstate_ctor": _generator, "__bit_generator_ctor": _bit_generator,
}  # fmt: skip
