"""Keras models: the configuration that a loader builds layers from, wherever it lies (zip, HDF5, protocol buffer).

Loading one imports the module that each object names and calls what it finds there; Lambda layers hold marshalled code.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any

from ...errors import LimitExceeded, stated
from ...found import Finding
from ..items import Item
from ..listing import shown
from ..rules import Rule
from .python_tables import RUNNERS
from .unpacking import Missing
from .zips import Zip, unpack_entry

LAMBDA = Rule(
    "keras-lambda", "suspicious", "A Keras layer that holds code",
    "A Lambda layer keeps a Python function as marshalled bytecode. Loading the model (with safe mode off, or in a version that "
    "ignores it) makes it a function again, and using the model runs it.",
    "Don't load it unless you trust who made it as you trust a program's author. Ask for a model of ordinary layers.",
    ("CVE-2024-3660", "CVE-2025-9905", "CVE-2025-49655"),
)  # fmt: skip
MODULE = Rule(
    "keras-foreign-code", "suspicious", "A Keras configuration that imports code from elsewhere",
    "The loader imports the module that an object names and calls the function or class there with arguments from the file. "
    "With a module of Python's own that is running any program.",
    "Don't load it. Honest configurations name classes of Keras only.",
    ("CVE-2025-1550", "CVE-2025-8747", "GHSA-48g7-3x6r-xfhp", "GHSA-c9rc-mg46-23w3"),
)  # fmt: skip
OUTSIDE = Rule(
    "keras-outside-file", "suspicious", "A Keras layer that reads a file or address from elsewhere",
    "Lookup layers load their vocabulary from the path that the configuration names: a file of yours, or an address that learns "
    "who loads the model.",
    "Don't load it; a complete model brings its vocabulary with it.",
    ("CVE-2025-12058",),
)  # fmt: skip
UNREADABLE = Rule(
    "keras-config-broken", "broken", "A Keras configuration that is not valid JSON",
    "The model can't be loaded from it, and what it says could not be checked.",
    "Fetch the model again.",
)  # fmt: skip
RULES = (LAMBDA, MODULE, OUTSIDE, UNREADABLE)

MOST_CONFIG = 1 << 24  # bytes
MOST_CANDIDATES = 100_000
MOST_TRIED = 1 << 28  # bytes that are read for all candidates together
MOST_NODES = 2_000_000
_OWN = re.compile(
    r"(?:keras|tf_keras|keras_core|keras_hub|keras_nlp|keras_cv|keras_tuner|keras_preprocessing|tensorflow|tensorflow_hub|"
    r"tensorflow_addons|tensorflow_text|tensorflow_probability|transformers|tf_models)(?:\.|\Z)",
    re.ASCII,
)
_DANGEROUS = re.compile(rf"(?:{RUNNERS})(?:\.|\Z)", re.ASCII)
#: functions of Keras and of Python that do more than build a layer
_TOOLS = frozenset({
    "get_file", "enable_unsafe_deserialization", "func_load", "extract_archive", "_extract_archive", "load_model",
    "deserialize_keras_object", "run_cmd", "eval", "exec", "getattr", "compile", "__import__", "open", "setattr", "globals",
    "breakpoint", "load_weights", "system", "popen", "Popen",
})  # fmt: skip
_BUILTIN = frozenset({
    "function", "dict", "slice", "list", "tuple", "set", "type", "float", "int", "str", "bool", "bytes", "complex", "__tuple__",
    "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__typespec__", "__lambda__",
})  # fmt: skip
_READERS = {"TorchModuleWrapper": "a pickled module of torch", "TFSMLayer": "which loads a TensorFlow graph from a path"}
_FILES = re.compile(r"(?:write|read)_file|\bio\.|py_func|numpy_function|load_(?:op_)?library|matching_files")
_WORDS = re.compile(rb"\b(?:os|system|subprocess|popen|Popen|exec|eval|compile|__import__|importlib|socket|urllib|requests|builtins"
                    rb"|open|shutil|ctypes|pty|getattr|globals|marshal|pickle|base64)\b")  # fmt: skip


def scan_archive(item: Item, archive: Zip) -> Iterator[Finding]:
    """The configuration inside a ``.keras`` archive; nothing for other zips."""
    names = {e.name: e for e in archive.entries}
    entry = names.get("config.json")
    told = item.basename.lower().endswith(".keras") or "metadata.json" in names or any(n.endswith(".h5") for n in names)
    if entry is None or not told or entry.start < 0:
        return
    try:
        raw, _ = unpack_entry(item, entry, MOST_CONFIG)
        value = json.loads(raw)
    except (ValueError, RecursionError, LimitExceeded, Missing) as error:
        yield UNREADABLE.found(stated(error)[:200], file=shown(f"{item.name}!config.json"))
        return
    yield from scan_config(value, shown(f"{item.name}!config.json"))


def scan_embedded(item: Item) -> Iterator[Finding]:
    """Every configuration that lies as JSON text somewhere in a file (an attribute in HDF5, a field in a protocol buffer)."""
    end, budget = 0, [MOST_TRIED]
    for count, at in enumerate(_candidates(item)):
        if count > MOST_CANDIDATES or budget[0] < 0:
            raise LimitExceeded("more places that look like a configuration than can be read", where=item.name)
        if at < end:
            continue
        value, length, cut = _json_at(item, at, budget)
        if cut:
            yield UNREADABLE.found("a configuration that ends in the middle", file=shown(item.name), place=f"byte {at}")
        elif length:
            end = at + length
            yield from scan_config(value, shown(item.name))


def _json_at(item: Item, at: int, budget: list[int]) -> tuple[Any, int, bool]:
    """The JSON value that begins at a place, its length in bytes (0: there is none), whether it is a cut-off configuration."""
    text = ""
    with item.open() as file:
        for size in (1 << 9, 1 << 13, 1 << 16, 1 << 20, MOST_CONFIG):
            file.seek(at)
            raw = file.read(size)
            budget[0] -= len(raw)
            stop = re.search(rb"[\x00-\x08\x0e-\x1f]", raw)
            text = raw[: stop.start() if stop else None].decode("utf-8", "replace")
            try:
                value, length = json.JSONDecoder().raw_decode(text)
                return value, len(text[:length].encode()), False
            except RecursionError:
                return None, 0, True
            except json.JSONDecodeError as error:
                if stop or len(raw) < size or (error.pos < len(text) - 8 and not error.msg.startswith("Unterminated")):
                    break
        else:
            return None, 0, True  # so many bytes of text that are JSON up to there, and more
    return None, 0, '"class_name"' in text[:4096] and '"config"' in text[:4096]


def _candidates(item: Item) -> Iterator[int]:
    """Where an object with a key may begin."""
    pattern = re.compile(rb'\{(?:[ \t\r\n]{0,16}"[\t\n\r -\xff]{4}|[ \t\r\n]{17})')
    with item.open() as file:
        at, kept = 0, b""
        while block := file.read(1 << 20):
            data = kept + block
            for hit in pattern.finditer(data):
                if hit.end() > len(kept):
                    yield at - len(kept) + hit.start()
            kept = data[-24:]
            at += len(block)


def scan_config(value: Any, file: str) -> Iterator[Finding]:
    """Findings about a parsed configuration."""
    pending: list[tuple[str, Any]] = [("$", value)]
    seen = 0
    while pending:
        place, node = pending.pop()
        seen += 1
        if seen > MOST_NODES:
            raise LimitExceeded("a Keras configuration of more values than any model has")
        if isinstance(node, dict):
            if "class_name" in node or "registered_name" in node or node.get("type") == "Lambda":
                yield from _object(node, file, place)
            pending += [(f"{place}.{str(k)[:60]}"[:200], v) for k, v in node.items() if isinstance(v, dict | list)]
        else:
            pending += [(f"{place}[{i}]"[:200], v) for i, v in enumerate(node) if isinstance(v, dict | list)]


def _excerpt(value: Any, most: int = 400) -> str:
    """The beginning of a value as JSON; no more of it is written than that, since values lie inside values."""
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part[:most]
        if len(text) >= most:
            break
    return text[:most]


def _object(node: dict[str, Any], file: str, place: str) -> Iterator[Finding]:
    name, module, config = str(node.get("class_name") or ""), node.get("module"), node.get("config")
    registered = str(node.get("registered_name") or "")
    if "Lambda" in (name, name.rpartition(">")[2], registered.rpartition(">")[2]) or name == "__lambda__":
        code = _code(config)
        danger = sorted({w.decode() for w in _WORDS.findall(code)}) if code else []
        held = f"{len(code)} bytes of marshalled code" if code else "a function by name"
        yield LAMBDA.found(f"{name} with {held}" + (f" that uses {', '.join(danger)}" if danger else ""), file=file, place=place,
                           evidence=_words(code) if code else _excerpt(config),
                           severity="malicious" if danger else None)  # fmt: skip
    called = [w for w in (name, registered, config) if isinstance(w, str)]
    tools = sorted({w.rpartition(".")[2].rpartition(">")[2] for w in called} & _TOOLS)
    if isinstance(module, str) and module and (bad := _module(module, name)) is not None:
        yield MODULE.found(f"{module}.{name}" + (f" ({config[:100]})" if isinstance(config, str) else ""), file=file, place=place,
                           evidence=_excerpt(node), severity=bad)  # fmt: skip
    elif tools:
        yield MODULE.found(f"it calls {', '.join(tools)}", file=file, place=place, evidence=_excerpt(node),
                           severity="malicious")  # fmt: skip
    if name in _READERS:
        yield LAMBDA.found(f"{name}, {_READERS[name]}", file=file, place=place, evidence=_excerpt(config))
    function = config.get("function") if isinstance(config, dict) else None
    if name == "TFOpLambda" and isinstance(function, str) and _FILES.search(function):
        yield LAMBDA.found(f"TFOpLambda that calls {function[:100]}", file=file, place=place, severity="malicious")
    if isinstance(config, dict):
        path = config.get("vocabulary")
        if isinstance(path, str) and re.match(r"[/\\]|[A-Za-z]:|\w+://|.*\.\.[/\\]", path):
            yield OUTSIDE.found(f"{name or 'a layer'} reads {path[:200]!r}", file=file, place=place, evidence=path)


def _module(module: str, name: str) -> Any:
    """The severity of importing from a module; ``None`` when it is expected."""
    if _DANGEROUS.match(module):
        return "malicious"
    if module in ("builtins", "__builtin__"):
        return None if name in _BUILTIN or name in _TOOLS else "malicious"
    return None if _OWN.match(module) else "suspicious"


def _code(config: Any) -> bytes:
    """The marshalled code in a Lambda's configuration."""
    pending, texts = [config], list[str]()
    while pending:
        value = pending.pop()
        if isinstance(value, str) and len(value) > 40:
            texts.append(value)
        elif isinstance(value, dict):
            pending += [v for k, v in value.items() if k in ("function", "config", "code", "output_shape", "mask", "value")]
        elif isinstance(value, list):
            pending += value
    for text in texts:
        try:
            raw = base64.b64decode(re.sub(r"\s", "", text), validate=True)
        except (binascii.Error, ValueError):
            continue
        if raw[:1] in (b"\xe3", b"c", b"\x63"):  # a code object
            return raw
    return b""


def _words(code: bytes) -> str:
    """The readable words in marshalled code."""
    return " ".join(w.decode() for w in re.findall(rb"[ -~]{3,}", code)[:60])
