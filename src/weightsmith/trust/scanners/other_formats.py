"""Weights of other frameworks: NumPy, HDF5, ONNX, TensorFlow, TFLite, Flax, OpenVINO, and binary files nobody claims."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from math import prod
from posixpath import dirname
from typing import Any

from numpy.lib import format as npy

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import WHOLE, Folder, Item, Scanner
from ..listing import shown
from ..rules import Rule
from . import arrows, faiss, hdf5_links, keras, loose_values, msgpacks, onnx, tensorflow, unpacking
from .protobuf import Messages

OBJECTS = Rule(
    "numpy-objects", "note", "A NumPy array of Python objects",
    "Such an array is a pickle, which can run any code when it is loaded with `allow_pickle=True`; the pickle was analysed.",
    "Ask for an array of numbers or text.",
    ("CVE-2019-6446",),
)  # fmt: skip
ARRAY = Rule(
    "numpy-broken", "broken", "A NumPy file that its format does not allow",
    "Its header can't be read, or the data is shorter than the header says.",
    "Fetch it again.",
)  # fmt: skip
BEHIND = Rule(
    "numpy-extra-data", "suspicious", "Bytes behind the end of an array",
    "NumPy does not read them; something else may.",
    "Ask the publisher what they are.",
)  # fmt: skip
UNKNOWN = Rule(
    "binary-not-analysed", "unknown", "A binary file that no check understands",
    "It was read and digested, but what a program would do with it is unknown, and no file of the model says that it holds its "
    "weights. Scans that leave such files out in silence are how payloads get past them.",
    "Find out what the file is for; remove it if the model works without it, or allow its kind in a policy.",
)  # fmt: skip
INDEX = Rule(
    "faiss-index", "note", "An index of FAISS",
    "Vectors to search in, and numbers about them. Sizes in the file fit its bytes; faiss trusts them.",
    "Nothing, if the program that the model is for searches in it.",
    ("https://github.com/facebookresearch/faiss/wiki/Index-IO,-cloning-and-hyper-parameter-tuning",),
)  # fmt: skip
RULES = (OBJECTS, ARRAY, BEHIND, UNKNOWN, INDEX)

MOST_ARRAYS = 1000
_MOST_HEADER = 1 << 16
#: models that programs in C and C++ read, which hold numbers and words only: KenLM, fastText, CRFsuite
_KNOWN = (b"mmap lm http://kheafield.com/code format version", (793712314).to_bytes(4, "little"))
#: kinds that may hold weights whose values are not looked at
_UNREAD = {"hdf5": "HDF5", "msgpack": "MessagePack", "tflite": "TFLite", "ort": "ONNX Runtime", "ggml": "ggml before GGUF",
           "coreml-weights": "Core ML"}  # fmt: skip
_LARGE = 1 << 30  # bytes; a matrix of importances has a few hundred MB at most
_NAMED_RAW = re.compile(r"variables\.data-\d{5}-of-\d{5}\Z|.*\.data-\d{5}-of-\d{5}\Z", re.ASCII)


class OtherFormats(Scanner):
    """Checks what these formats can do beyond holding numbers, and clears raw data that another file refers to."""

    name = "other-formats"
    kinds = frozenset({"numpy", "hdf5", "onnx", "tflite", "ort", "protobuf", "msgpack", "ggml", "leveldb", "coreml-weights",
                       "binary", "arrow", "parquet"})  # fmt: skip
    rules = (*RULES, *onnx.RULES, *tensorflow.RULES, *msgpacks.RULES, *hdf5_links.RULES,
             *loose_values.RULES, *arrows.RULES)
    about = "Models of other frameworks: object arrays, Keras and TensorFlow code, data outside the folder, unknown binaries; " \
            "values of NumPy's arrays and of ONNX tensors"  # fmt: skip

    def __init__(self) -> None:
        self.referenced: set[str] = set()
        self.unread: dict[str, str] = {}  # files whose values nobody looks at, and what they are

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Findings of one file."""
        for kind in item.kinds:
            if kind in _UNREAD:
                self.unread[item.name] = _UNREAD[kind]
            if kind == "numpy":
                yield from _numpy(item)
            elif kind == "hdf5":
                yield from keras.scan_embedded(item)
                from . import hdf5  # with all that takes pickles apart: only when there is such a file

                yield from hdf5.scan(item, folder, self.referenced)
            elif kind in ("onnx", "protobuf"):
                yield from self._protobuf(item, folder)
            elif kind == "tflite":
                yield from tensorflow.scan_tflite(item)
            elif kind == "msgpack":
                yield from msgpacks.scan(item)
            elif kind in ("arrow", "parquet"):
                yield from arrows.scan(item, kind)
            elif kind == "ort" or kind == "ggml":
                yield UNKNOWN.found(f"{_LONG[kind]}, whose readers trust every number in it", file=shown(item.name))
            elif kind == "binary" and item.outer is not None:
                yield _unknown(item)

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Binary files that nothing in the folder refers to, and Keras models that lie unpacked in it."""
        known: dict[str, set[tuple[str, int]]] = {}
        for item in folder.items.values():
            if "json" in item.kinds:
                yield from _unpacked_keras(item, folder)
            if "binary" in item.kinds and item.name not in self.referenced:
                if not _companion(item, folder, known):
                    yield _unknown(item)
                elif not item.head.startswith(_KNOWN):
                    self.unread[item.name] = "raw data"
        if self.unread:
            kinds = ", ".join(sorted(set(self.unread.values())))
            folder.unchecked.append(f"the values in {len(self.unread)} file{'s' * (len(self.unread) > 1)} of formats whose values "
                                    f"are not read ({kinds}), e.g. {shown(min(self.unread))}")  # fmt: skip

    def _protobuf(self, item: Item, folder: Folder) -> Iterator[Finding]:
        with item.open() as file:
            model = onnx.looks_like_model(Messages(file, item.size))
        if model or item.basename.lower().endswith(".onnx"):
            yield from onnx.scan_onnx(item, folder, self.referenced)
            if item.outer is not None:
                self.unread[item.name] = "ONNX in an archive"
            return
        with item.open() as file:
            kind = tensorflow.classify(Messages(file, item.size), item)
        if kind in ("saved model", "graph"):
            yield from tensorflow.scan_graph(item, kind)
            yield from keras.scan_embedded(item)
        elif kind == "keras metadata":
            yield from keras.scan_embedded(item)
        elif not kind:
            yield from keras.scan_embedded(item)
            if item.outer is not None or item.name not in self.referenced:
                yield _unknown(item)


#: what a Keras configuration can't be without, in letters or in escapes that JSON takes for them
_OF_KERAS = re.compile(rb"class_name|registered_name|Lambda|\\u00[4-7]")


def _unpacked_keras(item: Item, folder: Folder) -> Iterator[Finding]:
    """A file of JSON that a loader may build layers from."""
    plain = item.basename in ("tokenizer.json", "vocab.json")  # many values, and escapes in all of them
    if item.size > WHOLE or not (plain or _OF_KERAS.search(item.read())):  # of a larger one is said that it is not read
        return
    try:
        value = folder.json(item.name)
    except FormatError:  # said when it was read
        return
    if plain and isinstance(value, dict) and not value.keys() & {"class_name", "registered_name"}:
        return
    if isinstance(value, dict | list):
        yield from keras.scan_config(value, shown(item.name))


_LONG = {"ort": "an ONNX Runtime model", "ggml": "a model of ggml before GGUF"}


def _unknown(item: Item) -> Finding:
    with item.open() as file:
        if faiss.is_index(item.head, file, item.size):
            return INDEX.found(item.head[:4].decode("ascii"), file=shown(item.name))
    return UNKNOWN.found("binary data of unknown kind", file=shown(item.name), evidence=item.head[:32].hex(" "))


def _companion(item: Item, folder: Folder, known: dict[str, set[tuple[str, int]]]) -> bool:
    """Whether another file of the folder describes these raw bytes."""
    base = f"{dirname(item.name)}/" if "/" in item.name else ""
    if "imatrix" in item.basename and _is_imatrix(item):
        return True
    crf = item.head[:4] == b"lCRF" and int.from_bytes(item.head[4:8], "little") == item.size and item.head[8:12] == b"FOMC"
    if crf or item.head.startswith(_KNOWN) or _in_manifest(item, folder, base, known):
        return True
    stem = item.basename.rpartition(".")[0]
    if _NAMED_RAW.match(item.basename):
        index = folder.items.get(base + item.basename.split(".data-")[0] + ".index")
        return index is not None and "leveldb" in index.kinds
    if item.basename.endswith(".bin"):
        graph = folder.items.get(f"{base}{stem}.xml")
        return graph is not None and _openvino_needs(graph) == item.size
    return False


def _in_manifest(item: Item, folder: Folder, base: str, known: dict[str, set[tuple[str, int]]]) -> bool:
    """Whether the list of raw weights of MLC or of TensorFlow.js names the file, with its size where there is one."""
    if base not in known:
        known[base] = _manifest(folder, base)
    return (item.basename, item.size) in known[base] or (item.basename, -1) in known[base]


def _manifest(folder: Folder, base: str) -> set[tuple[str, int]]:
    """The names in the lists of one directory, each with its size, or with -1 where there is none."""
    found: set[tuple[str, int]] = set()
    for name in ("ndarray-cache.json", "tensor-cache.json"):
        records = folder.json_object(base + name).get("records")
        for record in records if isinstance(records, list) else ():
            path, size = (record.get("dataPath"), record.get("nbytes")) if isinstance(record, dict) else (None, None)
            if isinstance(path, str) and isinstance(size, int) and size >= 0:
                found.add((path, size))
    groups = folder.json_object(base + "model.json").get("weightsManifest")
    for group in groups if isinstance(groups, list) else ():
        paths = group.get("paths") if isinstance(group, dict) else None
        found.update((path, -1) for path in (paths if isinstance(paths, list) else ()) if isinstance(path, str))
    return found


def _is_imatrix(item: Item) -> bool:
    """Whether it is llama.cpp's old matrix of importances, to the last byte: names, counts and numbers."""

    def number() -> int:
        return int.from_bytes(file.read(4), "little", signed=True)

    with item.open() as file:
        for _ in range(number() if item.size < _LARGE else 0):
            name = file.read(min(max(number(), 0), 256))
            calls, values = number(), number()
            if not re.fullmatch(rb"[\w.-]{1,255}", name) or calls < 0 or values < 0 or file.tell() + 4 * values > item.size:
                return False
            file.seek(4 * values, 1)
        if (at := file.tell()) > 12 and item.size - at >= 8:  # newer ones go on with the number of chunks and the text's name
            number()
            at += 8 + len(file.read(min(max(number(), 0), 4096)))
        return at == item.size > 12


def _openvino_needs(graph: Item) -> int:
    """How many bytes of weights an OpenVINO graph refers to; -1 when it is none."""
    try:
        text = graph.read(1 << 26)
    except LimitExceeded:
        return -1
    if not re.search(rb"<net\s", text[:4096]):
        return -1
    most = 0
    for tag in re.finditer(rb"<data\s[^>]{0,2000}>", text):
        offset, size = re.search(rb'\boffset="(\d{1,18})"', tag[0]), re.search(rb'\bsize="(\d{1,18})"', tag[0])
        if offset and size:
            most = max(most, int(offset[1]) + int(size[1]))
    return most


# -- NumPy ---------------------------------------------------------------------------------------------------


def _numpy(item: Item) -> Iterator[Finding | Item]:
    """Every array in a file, one behind the other."""
    name, at, count = shown(item.name), 0, 0
    with item.open() as file:
        while at < item.size:
            if count == MOST_ARRAYS:
                raise LimitExceeded(f"more than {MOST_ARRAYS} arrays, one behind the other")
            file.seek(at)
            try:
                header, start = _array_header(file.read(_MOST_HEADER + 12))
                dtype, size = _array_size(header)
            except FormatError as error:
                rule = BEHIND if count else ARRAY
                yield rule.found(error.message, file=name, place=f"byte {at}")
                return
            begin, count = at + start, count + 1
            if dtype.hasobject:
                yield OBJECTS.found(f"dtype {dtype}, a pickle of {item.size - begin} bytes", file=name, place=f"byte {at}")
                yield from _object_pickle(item, begin)
                return
            at = begin + size
            if at > item.size:
                yield ARRAY.found(f"{size} bytes are needed and {item.size - begin} are there", file=name, place=f"byte {begin}")
                return
            file.seek(begin)
            yield from loose_values.check_array(item.name, file, dtype, header["shape"], size, not header["fortran_order"])
            file.seek(at)
            behind = file.read(8)
            if behind and not behind.startswith(b"\x93NUMPY"):
                yield BEHIND.found(f"{item.size - at} bytes", file=name, place=f"byte {at}", evidence=behind.hex(" "))
                if item.size - at <= WHOLE:
                    file.seek(at)
                    yield item.member(f"byte {at}", file.read(item.size - at))
                return


def _object_pickle(item: Item, begin: int) -> Iterator[Item]:
    """The pickle of an object array, as a file of its own."""
    size = item.size - begin
    if size:
        inner = Item(f"{item.name}!objects", size, unpacking.part(item.opener, begin, size), outer=item)
        inner.kinds = ("pickle",)
        yield inner


def _array_header(raw: bytes) -> tuple[dict[str, Any], int]:
    version = raw[6] if len(raw) > 6 else 0
    width = {1: 2, 2: 4, 3: 4}.get(version)
    if width is None:
        raise FormatError(f"version {version} of the format")
    length = int.from_bytes(raw[8 : 8 + width], "little")
    text = raw[8 + width : 8 + width + length]
    if length > _MOST_HEADER or len(text) < length:
        raise FormatError(f"a header of {length} bytes")
    try:
        value = ast.literal_eval(text.decode("utf-8" if version == 3 else "latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, UnicodeDecodeError, TypeError) as error:
        raise FormatError("a header that is not a literal") from error
    if not isinstance(value, dict) or set(value) != {"descr", "fortran_order", "shape"}:
        raise FormatError("a header without descr, fortran_order and shape")
    return value, 8 + width + length


def _array_size(header: dict[str, Any]) -> tuple[Any, int]:
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape) or len(shape) > 64:
        raise FormatError("a shape that is none")
    try:
        dtype = npy.descr_to_dtype(header["descr"])
    except Exception as error:  # NumPy raises anything on a strange description
        raise FormatError(f"dtype {str(header['descr'])[:100]!r}") from error
    return dtype, prod(shape) * dtype.itemsize
