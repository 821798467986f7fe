"""Pickles that execute, hide or break, and those that honest programs write."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import marshal
import os
import pickle
import zlib
from collections.abc import Callable

from . import Case
from .assembly import (
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    PYTHON,
    REDUCE,
    SHELL,
    STACK_GLOBAL,
    STOP,
    TUPLE,
    TUPLE1,
    TUPLE2,
    Reduced,
    args,
    call,
    frame,
    named,
    proto,
    put,
    python,
    raw_bytes,
    stacked,
    system,
    text,
)  # fmt: skip
from .pickles_benign import BENIGN
from .pickles_torch import TORCH

LOAD = "import pickle; pickle.load(open(folder / 'model.pkl', 'rb'))"
_PICKLE = "https://docs.python.org/3/library/pickle.html"
CODE = ("pickle-code",)
CALL = ("pickle-unlisted-call",)
COMPUTED = ("pickle-computed",)
REWRITES = ("pickle-rewrites-class",)


def evil(name: str, data: bytes | Callable[[], bytes], rules: tuple[str, ...] = CODE, *, fires: str = LOAD,
         file: str = "model.pkl", see: str = _PICKLE, verdict: str = "malicious", needs: tuple[str, ...] = ()) -> Case:  # fmt: skip
    """A case of one hostile file."""
    return Case(f"pickle-{name}", put(data, file), verdict, rules, fires, see, needs)


def _protocols() -> list[Case]:
    return [evil(f"protocol-{n}", pickle.dumps(Reduced(os.system, SHELL), protocol=n)) for n in range(6)]


def _memoized() -> bytes:
    """Names that are stored first, out of order and twice, and fetched later."""
    body = text("nothing") + b"q\x09" + POP + text("os") + b"q\x05" + POP + text("system") + b"r\x09\x00\x00\x00" + POP
    return proto(4) + body + b"h\x05" + b"j\x09\x00\x00\x00" + STACK_GLOBAL + text(SHELL) + TUPLE1 + REDUCE + STOP


def _memoize_after_put() -> bytes:
    """MEMOIZE counts entries, not indices: a reader that takes the greatest index plus one fetches the wrong name."""
    body = text("collections") + b"q\x07" + POP + text("posix") + b"\x94" + POP + text("system") + b"\x94" + POP
    return proto(4) + body + b"h\x01" + b"h\x02" + STACK_GLOBAL + text(SHELL) + TUPLE1 + REDUCE + STOP


_FORMS = [
    evil("stack-global", proto(4) + stacked("os", "system") + text(SHELL) + TUPLE1 + REDUCE + STOP),
    evil("inst", b"(S'" + SHELL.replace("'", "\\'").encode() + b"'\nios\nsystem\n."),
    evil("obj", proto(2) + MARK + named("os", "system") + text(SHELL) + OBJ + STOP),
    evil("newobj", proto(2) + named("subprocess", "Popen") + EMPTY_TUPLE + NEWOBJ + STOP, fires=""),
    evil("newobj-ex", proto(4) + named("builtins", "object") + EMPTY_TUPLE + EMPTY_DICT + NEWOBJ_EX + POP
         + named("os", "system") + text(SHELL) + TUPLE1 + REDUCE + STOP),
    evil("memoized-names", _memoized()),
    evil("memoize-after-put", _memoize_after_put()),
    evil("dotted-name", proto(4) + stacked("os", "path.os.system") + text(SHELL) + TUPLE1 + REDUCE + STOP),
    evil("dotted-name-of-a-trusted-module", proto(4) + stacked("collections", "_sys.modules.__class__") + POP
         + stacked("torch", "serialization.os.system") + text(SHELL) + TUPLE1 + REDUCE + STOP, CODE + CALL, needs=("torch",)),
    evil("python-2-names", call("__builtin__", "eval", b"V" + PYTHON.encode() + b"\n") + STOP),
    evil("python-2-module", call("commands", "getoutput", b"V" + SHELL.encode() + b"\n") + STOP),
    evil("escaped-text", b"S'\\x6f\\x73'\nS'sys\\164em'\n\x93" + args(text(SHELL)) + REDUCE + STOP),
    evil("unicode-escapes", b"V\\u006fs\nVs\\u0079stem\n\x93" + args(text(SHELL)) + REDUCE + STOP),
    evil("popped", proto(2) + call("os", "system", text(SHELL)) + POP + EMPTY_DICT + STOP),
    evil("popped-with-mark", proto(2) + EMPTY_DICT + MARK + call("os", "system", text(SHELL)) + b"1" + STOP),
    evil("below-the-top", proto(2) + call("os", "system", text(SHELL)) + EMPTY_DICT + STOP),
    evil("dup", proto(2) + named("os", "system") + DUP + text(SHELL) + TUPLE1 + REDUCE + b"0" + STOP),
    evil("odd-first-opcode", b"N0K\x010" + call("os", "system", text(SHELL)) + STOP),
    evil("broken-after-payload", system()[:-1] + b"\xff\xff\xff"),
    evil("cut-after-payload", system()[:-1]),
    evil("stack-underflow-after-payload", system()[:-1] + b"000000."),
    evil("wrong-memo-after-payload", system()[:-1] + b"h\x63."),
    evil("non-ascii-import-before-payload", proto(2) + MARK + text("x") + b"1" + system()[2:-1] + "cé\nè\n".encode() + STOP),
    evil("invalid-utf8-text", system()[:-1] + b"X\x02\x00\x00\x00\xff\xfe."),
    evil("second-stream", pickle.dumps({"a": 1}) + system(),
         fires="import pickle; f = open(folder / 'model.pkl', 'rb'); pickle.load(f); pickle.load(f)"),
    evil("third-stream", pickle.dumps(1) + pickle.dumps([2]) + system(4),
         fires="import pickle; f = open(folder / 'model.pkl', 'rb'); pickle.load(f); pickle.load(f); pickle.load(f)"),
    evil("broken-second-stream", pickle.dumps({"a": 1}) + system()[:-1] + b"\xff",
         fires="import pickle; f = open(folder / 'model.pkl', 'rb'); pickle.load(f); pickle.load(f)"),
    evil("frame-hides", proto(4) + frame(EMPTY_DICT + STOP + b"N" * 6) + call("os", "system", text(SHELL)) + STOP,
         CODE, fires=""),
    evil("frame-lies", proto(4) + frame(call("os", "system", text(SHELL)) + STOP, 4), CODE),
    *(evil(f"number-{name}", start + POP + named("os", "system") + MARK + f"S'{SHELL}'\n".encode() + TUPLE + REDUCE + STOP,
           file="vocab.txt", fires="import pickle; pickle.load(open(folder / 'vocab.txt', 'rb'))")
      for name, start in {  # numbers that the unpickler in C takes, and the library that lists opcodes does not
          "hex": b"I0x10\n", "long-hex": b"L0x10L\n", "binary": b"I0b1\n", "octal": b"I0o7\n", "underscore": b"I0x_1\n",
          "nul": b"I1\0xyz\n", "long-nul": b"L1\0xyz\n", "float-nul": b"F1.0\0abc\n", "put-nul": b"I1\np0\0junk\n",
      }.items()),
    evil("old-string-of-another-encoding", b"S'\xff'\n" + POP + call("os", "system", text(SHELL)) + STOP, file="vocab.txt",
         fires="import pickle; pickle.load(open(folder / 'vocab.txt', 'rb'), encoding='latin1')"),
    evil("persistent-id", proto(2) + text("x") + b"Q" + STOP, ("pickle-persistent-id",), fires="", verdict="suspicious"),
    evil("extension", proto(2) + b"\x82\x01" + EMPTY_TUPLE + REDUCE + STOP, COMPUTED, see="copyreg.add_extension",
         fires="import copyreg, webbrowser, os, pickle\ncopyreg.add_extension('builtins', 'list', 1)\n"
         "copyreg._extension_cache[1] = lambda: open(os.environ['WEIGHTSMITH_MARKER'], 'w')\n" + LOAD),
    evil("computed-name", proto(4) + text("os") + call("_codecs", "encode", text("flfgrz"), text("rot13")) + STACK_GLOBAL
         + text(SHELL) + TUPLE1 + REDUCE + STOP, COMPUTED),
    evil("computed-module", proto(4) + call("builtins", "str", raw_bytes(b"os"), text("utf8")) + text("system") + STACK_GLOBAL
         + text(SHELL) + TUPLE1 + REDUCE + STOP, COMPUTED),
    evil("huge-name", proto(4) + text("a" * 70_000) + text("b") + STACK_GLOBAL + STOP, COMPUTED, fires=""),
    evil("called-result", proto(2) + call("builtins", "getattr", named("collections", "OrderedDict"), text("fromkeys"))
         + text("ab") + TUPLE1 + REDUCE + STOP, COMPUTED, fires=""),
    evil("needs-buffers", proto(5) + b"\x97" + STOP, ("pickle-readers-differ",), fires="", verdict="broken"),
    evil("memo-jump", proto(2) + text("x") + b"r\xff\xff\xff\x0f" + STOP, ("pickle-asks-for-memory",), fires="",
         verdict="broken"),
    evil("bytearray-many", proto(2) + b"](" + call("builtins", "bytearray", b"J\xff\xff\xff\x7f") * 50 + b"e" + STOP,
         ("pickle-asks-for-memory",), fires="", verdict="broken"),
    evil("bytearray-bomb", proto(2) + call("builtins", "bytearray", b"\x8a\x05\x00\x00\x00\x00\x10") + STOP,
         ("pickle-asks-for-memory",), fires="", verdict="broken"),
    evil("not-to-its-end", proto(2) + EMPTY_DICT + text("x"), ("pickle-broken",), fires="", verdict="broken"),
    evil("text-behind", pickle.dumps({"a": 1}) + b"\n<script>", ("pickle-trailing",), fires="", verdict="suspicious"),
    evil("named-only", proto(4) + stacked("some_package.module", "hook") + STOP, ("pickle-unlisted-name",), fires="",
         verdict="suspicious"),
    evil("named-system", proto(4) + stacked("antigravity", "geohash") + STOP, CODE, fires=""),
]  # fmt: skip


def _set_state_of_class() -> bytes:
    """Gives a harmless class a ``__setstate__`` and then uses it, all with BUILD."""
    return (named("argparse", "Namespace") + b"q\x01" + NONE + MARK + text("__setstate__") + named("os", "system") + b"d"
            + TUPLE2 + BUILD + POP + b"h\x01" + EMPTY_TUPLE + NEWOBJ + text(SHELL) + BUILD)  # fmt: skip


_GADGETS: list[tuple[str, bytes, tuple[str, ...], tuple[str, ...], str]] = [
    ("exec", call("builtins", "exec", text(PYTHON)), CODE, (), ""),
    ("posix", call("posix", "system", text(SHELL)), CODE, (), ""),
    ("subprocess", call("subprocess", "check_call", MARK + text("sh") + text("-c") + text(SHELL) + b"l"), CODE, (), ""),
    ("runpy", call("runpy", "_run_code", text(PYTHON), EMPTY_DICT), CODE, (), "CVE-2025-1716"),
    ("timeit", call("timeit", "timeit", text(PYTHON), text("pass"), named("time", "perf_counter"), b"K\x01"), CODE, (), ""),
    ("cprofile", call("cProfile", "run", text(PYTHON)), CODE, (), ""),
    ("profile", call("profile", "run", text(PYTHON)), CODE, (), ""),
    ("pdb", call("bdb", "Bdb.run", call("bdb", "Bdb"), text(PYTHON)), CODE, (), ""),
    ("pydoc", call("pydoc", "pipepager", text("x"), text(SHELL)), CODE, (), ""),
    ("doctest", call("doctest", "debug_script", text(PYTHON), b"\x88"), CODE, (), ""),
    ("code", call("code", "InteractiveInterpreter.runcode", call("code", "InteractiveInterpreter"), text(PYTHON)), CODE, (), ""),
    ("trace", call("trace", "Trace.run", call("trace", "Trace", b"K\x00", b"K\x00"), text(PYTHON)), CODE, (), ""),
    ("open", call("_io", "open", call("posixpath", "expandvars", text("$WEIGHTSMITH_MARKER")), text("w")), CODE, (), ""),
    ("logging", call("logging", "FileHandler", call("posixpath", "expandvars", text("$WEIGHTSMITH_MARKER"))), CODE, (), ""),
    ("partial", call("functools", "partial", named("os", "system"), text(SHELL)) + EMPTY_TUPLE + REDUCE, CODE, (), ""),
    ("methodcaller", call("operator", "methodcaller", text("system"), text(SHELL)) + call("importlib", "import_module", text("os"))
     + TUPLE1 + REDUCE, CODE, (), ""),
    ("distutils", call("_osx_support", "_read_output", text(SHELL)), CODE, (), ""),
    ("asyncio", call("multiprocessing.util", "spawnv_passfds", raw_bytes(b"/bin/sh"),
     MARK + raw_bytes(b"sh") + raw_bytes(b"-c") + raw_bytes(SHELL.encode() + b"; sleep 0") + b"l", EMPTY_TUPLE)
     + POP + call("time", "sleep", b"K\x01"), CODE, (), ""),
    ("function-type", call("types", "FunctionType", call("marshal", "loads", raw_bytes(marshal.dumps(
        compile(PYTHON, "x", "exec")))), call("builtins", "globals")) + EMPTY_TUPLE + REDUCE, CODE, (), ""),
    ("numpy-runstring", call("numpy.testing._private.utils", "runstring", text(PYTHON), EMPTY_DICT), CODE, ("numpy",),
     "GHSA-r54c-2xmf-2cf3"),
    ("numpy-crackfortran", call("numpy.f2py.crackfortran", "myeval", text(PYTHON)), CODE, ("numpy",), ""),
    ("numpy-memmap", call("numpy", "memmap", call("posixpath", "expandvars", text("$WEIGHTSMITH_MARKER")), text("u1"), text("w+"),
     b"K\x00", b"K\x01"), CODE + CALL, ("numpy",), ""),
    ("torch-execwrapper", call("torch.jit.unsupported_tensor_ops", "execWrapper", text(PYTHON), EMPTY_DICT, EMPTY_DICT), CODE,
     ("torch",), "GHSA-4675-36f9-wf6r"),
    ("torch-collect-env", call("torch.utils.collect_env", "run", text(SHELL)), CODE, ("torch",), ""),
    ("sympy", call("sympy.core.sympify", "sympify", text(PYTHON)), CALL, ("sympy",), ""),
    ("sympy-parser", call("sympy.parsing.sympy_parser", "eval_expr", text(PYTHON), EMPTY_DICT, EMPTY_DICT), CALL, ("sympy",), ""),
    ("networkx", call("fsspec.implementations.local", "LocalFileSystem.touch",
     call("fsspec.implementations.local", "LocalFileSystem"), call("posixpath", "expandvars", text("$WEIGHTSMITH_MARKER"))),
     CALL, ("fsspec",), ""),
    ("nested-loads", call("pickle", "loads", raw_bytes(python())), CODE, (), ""),
    ("nested-in-trusted-call", call("torch.storage", "_load_from_bytes", raw_bytes(system())), CODE, ("torch",), ""),
    ("nested-computed", call("torch.storage", "_load_from_bytes", call("_codecs", "encode",
     text(system().decode("latin-1")), text("latin1"))), CODE, ("torch",), ""),
    ("from-type", call("torch._tensor", "_rebuild_from_type_v2", named("os", "system"), named("torch", "Tensor"),
     args(text(SHELL)), NONE), CODE, ("torch",), ""),
    ("from-type-unlisted", call("torch._tensor", "_rebuild_from_type_v2", named("sympy.core.sympify", "sympify"),
     named("torch", "Tensor"), args(text(PYTHON)), NONE), CALL, ("torch", "sympy"), ""),
    ("from-type-twice", call("torch._tensor", "_rebuild_from_type_v2", named("torch._tensor", "_rebuild_from_type_v2"),
     named("torch", "Tensor"), args(named("sympy.core.sympify", "sympify"), named("torch", "Tensor"), args(text(PYTHON)), NONE),
     NONE), CALL, ("torch", "sympy"), ""),
    ("newobj-function", call("copyreg", "__newobj__", named("subprocess", "Popen"), text(SHELL)), CODE, (), "-"),
    ("default-factory", call("collections", "defaultdict", named("sympy.interactive", "init_session")), CALL, (), "-"),
    ("getattr", call("builtins", "getattr", call("importlib", "import_module", text("os")), text("system")) + text(SHELL)
     + TUPLE1 + REDUCE, CODE, (), ""),
    ("class-state", _set_state_of_class(), REWRITES, (), ""),
    ("dunder-class", call("argparse", "Namespace") + MARK + text("__class__") + named("collections", "OrderedDict") + b"d" + BUILD,
     REWRITES, (), "-"),
    ("sklearn-external", call("sklearn.utils._joblib", "Parallel", b"K\x01"), CALL, (), "-"),
    ("sklearn-kept", call("sklearn.metrics._classification", "accuracy_score", b"K\x01", b"K\x01"), CALL, (), "-"),
    ("sklearn-private", call("sklearn.metrics._scorer", "_Scorer", named("numpy", "mean"), b"K\x01", EMPTY_DICT), CALL, (), "-"),
    ("numpy-kept", call("numpy", "mean", EMPTY_DICT), CALL, (), "-"),
    ("dunder-reduce", call("builtins", "type", text("X"), EMPTY_TUPLE, EMPTY_DICT), CALL, (), "-"),
    ("dill-code", call("dill._dill", "_create_code", b"K\x00"), CODE, (), "-"),
]  # fmt: skip


def _gadgets() -> list[Case]:
    made = []
    for name, body, rules, needs, see in _GADGETS:
        fires = "" if see == "-" else "import torch\n" * ("torch" in needs) + LOAD
        made.append(evil(f"gadget-{name}", proto(4) + body + STOP, rules, needs=needs, fires=fires,
                         see=see if len(see) > 1 else _PICKLE))  # fmt: skip
    return made


def _object_array() -> bytes:
    """An array of objects: joblib writes a pickle of its own between the opcodes."""
    import joblib
    import numpy as np

    file = io.BytesIO()
    joblib.dump({"w": np.arange(4.0), "x": np.array([Reduced(os.system, SHELL)], dtype=object)}, file)
    return file.getvalue()


def _with_joblib() -> list[Case]:
    """Joblib's own files, plain and packed."""
    load = "import joblib; joblib.load(folder / 'model.joblib')"
    plain = python(3)
    packed = {"zlib": zlib.compress(plain), "gzip": gzip.compress(plain, mtime=0), "bz2": bz2.compress(plain),
              "xz": lzma.compress(plain), "lzma": lzma.compress(plain, lzma.FORMAT_ALONE)}  # fmt: skip
    made = [evil("joblib-object-array", _object_array, fires=load, file="model.joblib", needs=("joblib",))]
    made += [evil(f"joblib-{name}", data, fires=load, file="model.joblib", needs=("joblib",)) for name, data in packed.items()]
    return made


def _function() -> object:
    """A function that makes the marker, of a module that nobody can import."""
    scope: dict[str, object] = {"__name__": "__main__"}
    exec(compile(f"def f():\n {PYTHON}\n", "x", "exec"), scope)
    return scope["f"]


def _by_dill() -> bytes:
    import dill

    return bytes(dill.dumps(_function(), recurse=True, byref=False))[:-1] + EMPTY_TUPLE + REDUCE + STOP


def _by_cloudpickle() -> bytes:
    import cloudpickle

    return bytes(cloudpickle.dumps(_function()))[:-1] + EMPTY_TUPLE + REDUCE + STOP


_BY_PICKLERS = [
    evil("dill-function", _by_dill, needs=("dill",), fires="import dill; dill.load(open(folder / 'model.pkl', 'rb'))"),
    evil("cloudpickle-function", _by_cloudpickle, needs=("cloudpickle",)),
]
def _wrapped(made: bytes, dtype: bytes, size: int, array: bytes) -> bytes:
    """A joblib array of ``size`` elements, written by hand."""
    state = (MARK + text("subclass") + named("numpy", "ndarray") + text("shape") + b"M" + size.to_bytes(2, "little") + TUPLE1
             + text("order") + text("C") + text("dtype") + dtype + text("allow_mmap") + b"\x89" + b"d")  # fmt: skip
    return proto(2) + made + state + BUILD + array


def _swallowed() -> bytes:
    """The array's bytes are a string that swallows the payload behind them, for who does not see that it is an array."""
    made = call("copyreg", "_reconstructor", named("joblib.numpy_pickle", "NumpyArrayWrapper"), named("builtins", "object"), NONE)
    payload = b"0" + call("os", "system", text(SHELL)) + STOP
    return _wrapped(made, call("numpy", "dtype", text("u1")), 5, b"B" + len(payload).to_bytes(4, "little") + payload + STOP)


def _two_sizes() -> bytes:
    """An element type whose name says one size and whose state says another: numpy believes the state."""
    made = named("joblib.numpy_pickle", "NumpyArrayWrapper") + EMPTY_TUPLE + NEWOBJ
    state = args(b"K\x03", text("|"), NONE, NONE, NONE, b"K\x05", b"K\x01", b"K\x00")
    payload = b"0" + call("os", "system", text(SHELL)) + STOP
    hidden = b"\0" * 5 + payload
    dtype = call("numpy", "dtype", text(f"V{len(hidden)}"), b"\x89", b"\x88") + state + BUILD
    return _wrapped(made, dtype, 1, hidden + b"N" + STOP)


_JOBLIB = "import joblib; joblib.load(folder / 'model.joblib')"
_HIDDEN = [
    evil("joblib-swallowed-payload", _swallowed, fires=_JOBLIB, file="model.joblib", needs=("joblib",)),
    evil("joblib-two-sizes", _two_sizes, ("pickle-too-large", *CODE), fires=_JOBLIB, file="model.joblib", needs=("joblib",),
         verdict="could not tell"),
    evil("state-from-ordered-dict", proto(2) + named("argparse", "Namespace") + EMPTY_TUPLE + NEWOBJ + NONE
         + call("collections", "OrderedDict", MARK + args(text("__class__"), named("types", "SimpleNamespace")) + b"l") + TUPLE2
         + BUILD + STOP, REWRITES, fires=""),
    evil("state-of-computed-name", proto(2) + named("argparse", "Namespace") + EMPTY_TUPLE + NEWOBJ + NONE
         + MARK + call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("U9")),
                       raw_bytes("__class__".encode("utf-32-le"))) + named("types", "SimpleNamespace") + b"d" + TUPLE2
         + BUILD + STOP, REWRITES, fires=""),
    evil("method-by-getattr", proto(2) + call("builtins", "getattr", named("transformers.training_args", "TrainingArguments"),
         text("set_save")) + STOP, CALL, fires=""),
    evil("plain-class-called", proto(2) + call("transformers.training_args", "TrainingArguments", text("/tmp/x")) + STOP, CALL,
         fires=""),
    evil("cut-off-import", proto(2) + b"Ncantigravity\nxy", CODE, fires=""),
]  # fmt: skip


_NAMES = [
    evil("disguised-json", system(), file="tokenizer_config.json", fires="import pickle; pickle.load(open(folder / "
         "'tokenizer_config.json', 'rb'))"),
    evil("disguised-text", call("os", "system", b"V" + SHELL.encode() + b"\n") + STOP, file="notes.txt",
         fires="import pickle; pickle.load(open(folder / 'notes.txt', 'rb'))"),
    evil("training-args", system(), file="training_args.bin", needs=("torch",),
         fires="import torch; torch.load(folder / 'training_args.bin', weights_only=False)"),
    evil("scheduler", python(), file="scheduler.pt", needs=("torch",),
         fires="import torch; torch.load(folder / 'scheduler.pt', weights_only=False)"),
    evil("no-extension", system(), file="weights", fires="import pickle; pickle.load(open(folder / 'weights', 'rb'))"),
]  # fmt: skip

CASES: list[Case] = [*_protocols(), *_FORMS, *_gadgets(), *_with_joblib(), *_BY_PICKLERS, *_HIDDEN, *_NAMES, *TORCH, *BENIGN]
