"""Files of other frameworks and files without weights: hostile ones, broken ones, and what honest exporters leave in a folder."""

from __future__ import annotations

import base64
import gzip
import json
import marshal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from . import Case
from .archives import EVIL, HONEST, LFS, PNG, SOURCE, file, seven, tarred, zipped

Build = Callable[[Path], None]
TEXT_PICKLE = b"c__builtin__\nexec\n(V" + SOURCE.encode() + b"\ntR."
PADDED = b"N0" * 40_000 + TEXT_PICKLE
LOAD = "import pickle\npickle.load(open(folder / '{name}', 'rb'))\n"
YAML = "import yaml\nyaml.unsafe_load(open(folder / '{name}'))\n"


def field(number: int, value: int | bytes | str | float) -> bytes:
    """One field of a protocol buffer: a number, bytes or text, or a 32-bit float."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tensor(name: str, **external: str) -> bytes:
    """A float tensor of one element, or one whose data lies elsewhere."""
    out = field(1, 1) + field(2, 1) + field(8, name)
    if not external:
        return out + field(9, bytes(4))
    return out + b"".join(field(13, field(1, k) + field(2, v)) for k, v in external.items()) + field(14, 1)


def onnx(*tensors: bytes, operator: str = "Add", domain: str = "", inner: bytes = b"") -> bytes:
    """An ONNX model; ``inner`` is a graph inside its node."""
    node = field(1, "x") + field(1, "w") + field(2, "y") + field(4, operator) + (field(7, domain) if domain else b"")
    node += field(5, field(1, "body") + field(6, inner) + field(20, 5)) if inner else b""
    graph = field(1, node) + field(2, "g") + b"".join(field(5, t) for t in tensors)
    return field(1, 8) + field(2, "pytorch") + field(7, graph) + field(8, field(2, 17))


def saved_model(operator: str, *, in_function: bool = False) -> bytes:
    """A TensorFlow saved model with one operator, in its graph or in a function."""
    node = field(1, "n") + field(2, operator) + field(3, "x")
    plain = field(1, field(1, "x") + field(2, "Placeholder"))
    graph = plain + (field(2, field(1, field(3, node))) if in_function else field(1, node))
    return field(1, 1) + field(2, field(1, field(1, "meta")) + field(2, graph))


def sequential(*layers: dict[str, object]) -> dict[str, object]:
    """A Keras configuration."""
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "m", "layers": list(layers)},
        "registered_name": None,
    }


def dense() -> dict[str, object]:
    """An honest layer."""
    return {
        "module": "keras.layers",
        "class_name": "Dense",
        "config": {
            "units": 4,
            "activation": "relu",
            "kernel_initializer": {
                "module": "keras.initializers",
                "class_name": "GlorotUniform",
                "config": {"seed": None},
                "registered_name": None,
            },
        },
        "registered_name": None,
    }


def code(source: str) -> str:
    """Marshalled code as Keras stores it."""
    return base64.b64encode(marshal.dumps(compile(source, "x", "eval"))).decode()


def lambda_layer(source: str) -> dict[str, object]:
    """A layer that holds code."""
    return {
        "module": "keras.layers",
        "class_name": "Lambda",
        "registered_name": None,
        "config": {
            "function": {"class_name": "__lambda__", "config": {"code": code(source), "defaults": None, "closure": None}}
        },
    }


def keras(*layers: dict[str, object], text: str | None = None) -> bytes:
    """A ``.keras`` archive."""
    config = json.dumps(sequential(*layers)) if text is None else text
    return zipped(
        {
            "metadata.json": b'{"keras_version": "3.8.0"}',
            "config.json": config.encode(),
            "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(88),
        }
    )


def hdf5(*layers: dict[str, object], text: str | None = None) -> bytes:
    """An HDF5 file as far as a search in it goes: its signature, and the configuration as an attribute's text."""
    text = json.dumps(sequential(*layers)) if text is None else text
    return b"\x89HDF\r\n\x1a\n" + bytes(500) + text.encode() + bytes(500)


def npy(descr: str, shape: str, data: bytes) -> bytes:
    """A NumPy file."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def files(members: dict[str, bytes]) -> Build:
    """Builds a folder of several files, in folders of their own."""

    def build(folder: Path) -> None:
        for name, data in members.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    return build


def record(data: bytes) -> bytes:
    """One record of TensorFlow's event files."""

    def crc(raw: bytes) -> bytes:
        value = 0xFFFFFFFF
        for byte in raw:
            value ^= byte
            for _ in range(8):
                value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        value ^= 0xFFFFFFFF
        return struct.pack("<L", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + crc(length) + data + crc(data)


def pieces() -> bytes:
    """A sentencepiece model."""
    words = ["<unk>", "<s>", "</s>", "\u2581the", "\u2581a"]
    out = b"".join(
        field(1, field(1, w) + field(2, -float(i)) + (field(3, 2) if i == 0 else b"")) for i, w in enumerate(words)
    )
    return out + field(2, field(1, "corpus.txt") + field(4, 5)) + field(3, field(1, "identity"))


def loose(kind: bytes, data: bytes) -> bytes:
    """An object in git's store."""
    return zlib.compress(kind + b" %d\0" % len(data) + data)


def nemo(config: str) -> bytes:
    """A ``.nemo`` archive."""
    return tarred({"./model_config.yaml": config.encode(), "./model_weights.ckpt": HONEST})


def parquet(folder: Path) -> None:
    """A table."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), folder / "train.parquet")
    with (
        pyarrow.OSFile(str(folder / "data.arrow"), "wb") as out,
        pyarrow.ipc.new_stream(out, pyarrow.schema([("a", "int64")])) as writer,
    ):
        writer.write_table(pyarrow.table({"a": [1, 2]}))


NEMO = (
    "target: nemo.collections.asr.models.EncDecCTCModel\noptim:\n  name: adamw\npreprocessor:\n  _target_: {}\n  args: []\n"
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ELF = b"\x7fELF\x02\x01\x01" + bytes(200)
PE = b"MZ" + bytes(58) + struct.pack("<L", 64) + b"PE\0\0" + bytes(100)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
BLANK_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="3" height="4"/></svg>'
OPENVINO = (
    b'<?xml version="1.0"?>\n<net name="m" version="11"><layers><layer id="0" type="Const">'
    b'<data element_type="f32" shape="2, 2" offset="0" size="16"/></layer></layers></net>'
)
INDEX = bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
RAW = bytes(range(1, 17))
PTH = f"import os; exec({SOURCE!r})\n".encode()

_CODE = [
    Case(
        "yaml-object-apply",
        file("config.yaml", f"!!python/object/apply:builtins.exec [{json.dumps(SOURCE)}]\n".encode()),
        "malicious",
        ("yaml-builds-objects",),
        YAML.replace("{name}", "config.yaml"),
        "CVE-2020-14343",
        ("yaml",),
    ),
    Case(
        "yaml-handle",
        file(
            "a.yml", f"%TAG ! tag:yaml.org,2002:python/\n---\n!object/apply:builtins.exec [{json.dumps(SOURCE)}]\n".encode()
        ),
        "malicious",
        ("yaml-builds-objects",),
        YAML.replace("{name}", "a.yml"),
        needs=("yaml",),
    ),
    Case(
        "yaml-escaped-tag",
        file("a.yml", f"!<tag:yaml.org,2002:pyth%6Fn/object/apply:builtins.exec> [{json.dumps(SOURCE)}]\n".encode()),
        "malicious",
        ("yaml-builds-objects",),
        YAML.replace("{name}", "a.yml"),
        needs=("yaml",),
    ),
    Case(
        "yaml-then-broken",
        file("a.yml", b"x: !!python/object/apply:os.getpid []\ny: [\n"),
        "malicious",
        ("yaml-builds-objects",),
    ),
    Case(
        "yaml-without-its-name",
        file("params.txt", b"lr: 1\nx: !!python/object/apply:os.getpid []\n"),
        "malicious",
        ("yaml-builds-objects",),
    ),
    Case("yaml-grows", file("a.yaml", BOMB.encode()), "malicious", ("yaml-bomb",), see="CWE-776"),
    Case(
        "nemo-calls-system",
        file("m.nemo", lambda: nemo(NEMO.format("os.system"))),
        "malicious",
        ("config-names-code",),
        see="CVE-2025-23304",
    ),
    Case(
        "nemo-through-its-own-module",
        file("m.nemo", lambda: nemo(NEMO.format("nemo.utils.exp_manager.subprocess.run"))),
        "malicious",
        ("config-names-code",),
    ),
    Case(
        "nemo-gz-foreign-class",
        file("m.nemo", lambda: gzip.compress(nemo(NEMO.format("mypackage.layers.Custom")), mtime=0)),
        "suspicious",
        ("config-names-code",),
    ),
    Case(
        "keras-lambda-system",
        file("m.keras", lambda: keras(dense(), lambda_layer("__import__('os').getpid()"))),
        "malicious",
        ("keras-lambda",),
        see="CVE-2024-3660",
    ),
    Case(
        "keras-lambda-plain",
        file("m.keras", lambda: keras(lambda_layer("lambda x: x * 2 + (1, 2, 3)[0]"))),
        "suspicious",
        ("keras-lambda",),
    ),
    Case(
        "keras-lambda-escaped",
        file(
            "m.keras",
            lambda: keras(
                text=json.dumps(sequential(lambda_layer("lambda x: x")))
                .replace("Lambda", "L\\u0061mbda")
                .replace("__lambda__", "_\\u005flambda__")
            ),
        ),
        "suspicious",
        ("keras-lambda",),
    ),
    Case(
        "keras-imports-os",
        file(
            "m.keras",
            lambda: keras({"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}),
        ),
        "malicious",
        ("keras-foreign-code",),
        see="CVE-2025-1550",
    ),
    Case(
        "keras-builtin-exec",
        file("m.keras", lambda: keras({"module": "builtins", "class_name": "exec", "config": {}, "registered_name": None})),
        "malicious",
        ("keras-foreign-code",),
    ),
    Case(
        "keras-get-file",
        file(
            "m.keras",
            lambda: keras(
                {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"}
            ),
        ),
        "malicious",
        ("keras-foreign-code",),
        see="CVE-2025-8747",
    ),
    Case(
        "keras-unknown-module",
        file("m.keras", lambda: keras({**dense(), "module": "helpers.layers"})),
        "suspicious",
        ("keras-foreign-code",),
    ),
    Case(
        "keras-reads-vocabulary",
        file(
            "m.keras",
            lambda: keras(
                {
                    "module": "keras.layers",
                    "class_name": "StringLookup",
                    "config": {"vocabulary": "/etc/passwd"},
                    "registered_name": None,
                }
            ),
        ),
        "suspicious",
        ("keras-outside-file",),
        see="CVE-2025-12058",
    ),
    Case(
        "keras-not-json",
        file("m.keras", lambda: keras(text='{"class_name": "Sequential", ')),
        "broken",
        ("keras-config-broken",),
    ),
    Case(
        "h5-lambda",
        file("m.h5", lambda: hdf5(lambda_layer("__import__('os').getpid()"))),
        "malicious",
        ("keras-lambda",),
        see="CVE-2025-9905",
    ),
    Case(
        "keras-metadata-lambda",
        file(
            "keras_metadata.pb",
            lambda: field(1, field(2, 1) + field(5, json.dumps(sequential(lambda_layer("__import__('os').getpid()"))))),
        ),
        "malicious",
        ("keras-lambda",),
    ),
    Case(
        "onnx-climbs-out",
        file("m.onnx", onnx(tensor("w", location="../../etc/passwd"))),
        "malicious",
        ("onnx-outside-file",),
        see="CVE-2022-25882",
    ),
    Case(
        "onnx-up-and-down",
        file("m.onnx", onnx(tensor("w", location="a/../../b"))),
        "malicious",
        ("onnx-outside-file",),
        see="CVE-2024-27318",
    ),
    Case("onnx-absolute", file("m.onnx", onnx(tensor("w", location="/etc/passwd"))), "malicious", ("onnx-outside-file",)),
    Case("onnx-drive", file("m.onnx", onnx(tensor("w", location="C:\\x"))), "malicious", ("onnx-outside-file",)),
    Case(
        "onnx-in-inner-graph",
        file("m.onnx", onnx(inner=field(5, tensor("w", location="../b")))),
        "malicious",
        ("onnx-outside-file",),
    ),
    Case("onnx-data-missing", file("m.onnx", onnx(tensor("w", location="m.onnx_data"))), "broken", ("onnx-data-missing",)),
    Case(
        "onnx-data-short",
        files({"m.onnx": onnx(tensor("w", location="m.onnx_data", offset="8", length="16")), "m.onnx_data": RAW}),
        "broken",
        ("onnx-data-missing",),
    ),
    Case(
        "onnx-python-operator",
        file("m.onnx", onnx(tensor("w"), operator="PyOp", domain="ai.onnx.contrib")),
        "suspicious",
        ("onnx-python-operator",),
    ),
    Case("onnx-cut-off", file("m.onnx", onnx(tensor("w"))[:-9]), "broken", ("onnx-broken",)),
    Case(
        "onnx-refers-to-pickle",
        files({"m.onnx": onnx(tensor("w", location="pytorch_model.bin")), "pytorch_model.bin": EVIL}),
        "malicious",
    ),
    Case("saved-model-writes", file("saved_model.pb", saved_model("WriteFile")), "malicious", ("tensorflow-file-operator",)),
    Case(
        "saved-model-reads-in-function",
        file("saved_model.pb", saved_model("ReadFile", in_function=True)),
        "suspicious",
        ("tensorflow-file-operator",),
    ),
    Case(
        "frozen-graph-python",
        file("graph.pb", field(1, field(1, "a") + field(2, "PyFunc")) + field(4, field(1, 24))),
        "suspicious",
        ("tensorflow-file-operator",),
    ),
    Case(
        "tflite-writes",
        file("m.tflite", struct.pack("<L", 16) + b"TFL3" + bytes(40) + b"FlexWriteFile\0" + bytes(20)),
        "malicious",
        ("tensorflow-file-operator",),
    ),
    Case(
        "npy-payload",
        file("a.npy", npy("'|O'", "(1,)", EVIL)),
        "malicious",
        needs=("numpy",),
        fires="import numpy\nnumpy.load(folder / 'a.npy', allow_pickle=True)\n",
    ),
    Case(
        "npy-second-payload",
        file("a.npy", npy("'<f4'", "(1,)", bytes(4)) + npy("'|O'", "(1,)", EVIL)),
        "malicious",
        needs=("numpy",),
        fires="import numpy\nf = open(folder / 'a.npy', 'rb')\nnumpy.load(f)\nnumpy.load(f, allow_pickle=True)\n",
    ),
    Case("npy-pickle-behind", file("a.npy", npy("'<f4'", "(1,)", bytes(4)) + EVIL), "malicious", ("numpy-extra-data",)),
    Case(
        "old-pickle-as-bin",
        file("pytorch_model.bin", TEXT_PICKLE),
        "malicious",
        fires=LOAD.replace("{name}", "pytorch_model.bin"),
    ),
    Case(
        "old-pickle-padded", file("pytorch_model.bin", PADDED), "malicious", fires=LOAD.replace("{name}", "pytorch_model.bin")
    ),
    Case("old-pickle-as-text", file("notes.txt", TEXT_PICKLE), "malicious", fires=LOAD.replace("{name}", "notes.txt")),
    Case(
        "pickle-protocol-0-marked",
        file("weights.dat", b"\x80\x00" + TEXT_PICKLE),
        "malicious",
        fires=LOAD.replace("{name}", "weights.dat"),
    ),
    Case(
        "pickle-after-plain-one",
        file("a.pt", b"I1\n." + TEXT_PICKLE),
        "malicious",
        fires="import pickle\nf = open(folder / 'a.pt', 'rb')\npickle.load(f)\npickle.load(f)\n",
    ),
    Case(
        "pickle-in-tar-name",
        file("model.bin", lambda: tarred({"GGUF\x03": b"x", "a.pkl": EVIL})),
        "malicious",
        ("two-formats",),
    ),
]

_MORE = [
    Case(
        "keras-padded-configuration",
        file("m.h5", lambda: hdf5(text=json.dumps(lambda_layer("lambda x: x")).replace("{", "{" + " " * 99))),
        "suspicious",
        ("keras-lambda",),
    ),
    Case(
        "keras-odd-first-key",
        file("m.h5", lambda: hdf5(text=json.dumps({"\xe9": 0, **lambda_layer("lambda x: x")}, ensure_ascii=False))),
        "suspicious",
        ("keras-lambda",),
    ),
    Case(
        "keras-unpacked",
        file("config.json", lambda: json.dumps(sequential(lambda_layer("__import__('os').getpid()"))).encode()),
        "malicious",
        ("keras-lambda",),
    ),
    Case(
        "keras-operator-writes",
        file("m.h5", lambda: hdf5({"class_name": "TFOpLambda", "config": {"name": "x", "function": "io.write_file"}})),
        "malicious",
        ("keras-lambda",),
    ),
    Case(
        "keras-pickled-torch-module",
        file("m.keras", lambda: keras({**dense(), "class_name": "TorchModuleWrapper", "config": {"module": "gAJ9Lg=="}})),
        "suspicious",
        ("keras-lambda",),
        see="CVE-2025-49655",
    ),
    Case(
        "onnx-two-locations",
        file("m.onnx", onnx(tensor("w", location="../x") + field(13, field(1, "location") + field(2, "m.onnx")))),
        "malicious",
        ("onnx-outside-file",),
    ),
    Case(
        "saved-model-text-writes",
        file("saved_model.pbtxt", b'meta_graphs { graph_def { node { name: "n" op: "WriteFile" } } }\n'),
        "malicious",
        ("tensorflow-file-operator",),
    ),
    Case(
        "bytecode",
        files({"__pycache__/modeling.cpython-311.pyc": b"\xa7\r\r\n" + bytes(12) + b"\xe3" + bytes(99)}),
        "suspicious",
        ("python-bytecode",),
    ),
    Case(
        "yaml-dumped-settings",
        file("a.yaml", b"a: !!python/object:argparse.Namespace {lr: 1}\n"),
        "suspicious",
        ("yaml-builds-objects",),
    ),
    Case("yaml-class", file("a.yaml", b"a: !!python/object/new:mypackage.Thing {lr: 1}\n"), "malicious", ("yaml-builds-objects",)),
    Case("clean-yaml-tuple", file("a.yaml", b"shape: !!python/tuple [1, 2]\n")),
    Case("archive-as-download", files({".cache/huggingface/download/a.incomplete": zipped({"a.pkl": EVIL})}), "malicious"),
    Case("numbers-like-sound", file("extra.dat", b"\xff\xfb" + b"\x90\xf1" * 40), "could not tell", ("binary-not-analysed",)),
    Case("numbers-like-git", file("extra.dat", b"DIRC\x00\xff\xf1" * 40), "could not tell", ("binary-not-analysed",)),
]
_PLAIN = [
    Case(
        "startup-lines-as-weights",
        file("model.pth", PTH),
        "malicious",
        ("startup-code",),
        "import site\nsite.addsitedir(str(folder))\n",
    ),
    Case("program-as-weights", file("model.safetensors", ELF), "malicious", ("disguised-code",)),
    Case("program-as-checkpoint", file("pytorch_model.bin", PE), "malicious", ("disguised-code",)),
    Case("library", file("libops.so", ELF), "suspicious", ("native-program",)),
    Case("windows-program", file("setup.exe", PE), "suspicious", ("native-program",)),
    Case("script-as-checkpoint", file("pytorch_model.bin", b"#!/bin/sh\necho\n"), "malicious", ("disguised-code",)),
    Case(
        "page-as-checkpoint",
        file("pytorch_model.bin", b"<html><body>Not found</body></html>"),
        "suspicious",
        ("wrong-extension",),
    ),
    Case("pointer-weights", file("model.safetensors", LFS), "broken", ("lfs-pointer",)),
    Case("pointer-onnx", files({"onnx/model.onnx": LFS}), "broken", ("lfs-pointer",)),
    Case("empty-weights", file("model.safetensors", b""), "broken", ("empty-file",)),
    Case("empty-config", file("config.json", b""), "broken", ("empty-file",)),
    Case(
        "download-broken-off",
        file("model-00001-of-00002.safetensors.a1b2.incomplete", b"\x08" + bytes(99)),
        "broken",
        ("download-incomplete",),
    ),
    Case("hook", files({".git/hooks/post-checkout": b"#!/bin/sh\necho\n"}), "suspicious", ("git-hook",)),
    Case("svg-script", file("logo.svg", SVG), "suspicious", ("active-content",)),
    Case(
        "svg-entity",
        file("logo.svg", b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'),
        "suspicious",
        ("active-content",),
    ),
    Case(
        "pdf-launch",
        file("paper.pdf", b"%PDF-1.4\n1 0 obj <</OpenAction <</S /Launch /F (x)>> >> endobj\n%%EOF"),
        "suspicious",
        ("active-content",),
    ),
    Case("png-then-pickle", file("logo.png", PNG + EVIL), "suspicious", ("appended-data",)),
    Case("png-then-7z", file("logo.png", lambda: PNG + seven({"a": b"x"})), "suspicious", ("appended-data",)),
    Case(
        "jpeg-then-program",
        file("logo.jpg", b"\xff\xd8\xff\xe0" + bytes(60) + b"\xff\xd9" + ELF),
        "suspicious",
        ("appended-data",),
    ),
    Case("unknown-binary", file("extra.dat", b"\xf1\x02\x03\xff" * 64), "could not tell", ("binary-not-analysed",)),
    Case(
        "unknown-protobuf",
        file("thing.pb", field(1, 3) + field(3, "abc") + field(5, b"\xff\xfe")),
        "could not tell",
        ("binary-not-analysed",),
    ),
    Case("ggml", file("ggml-model.bin", b"lmgg" + bytes(99)), "could not tell", ("binary-not-analysed",)),
    Case(
        "openvino-wrong-size", files({"m.xml": OPENVINO, "m.bin": b"\xf1" * 40}), "could not tell", ("binary-not-analysed",)
    ),
    Case(
        "variables-without-index",
        files({"variables/variables.data-00000-of-00001": b"\xf1" * 40}),
        "could not tell",
        ("binary-not-analysed",),
    ),
    Case(
        "tflite-root-outside",
        file("m.tflite", struct.pack("<L", 1 << 30) + b"TFL3" + bytes(40)),
        "broken",
        ("tensorflow-broken",),
    ),
    Case("msgpack-cut-off", file("flax_model.msgpack", b"\x81\xa1a\xc6\x7f\xff\xff\xff"), "broken", ("msgpack-broken",)),
    Case("msgpack-goes-on", file("flax_model.msgpack", b"\x81\xa1a\x01" + EVIL), "broken", ("msgpack-broken",)),
    Case("msgpack-unknown-type", file("flax_model.msgpack", b"\x81\xa1a\xd4\x2a\x00"), "suspicious", ("msgpack-extension",)),
    Case("npy-short", file("a.npy", npy("'<f4'", "(9,)", bytes(4))), "broken", ("numpy-broken",)),
    Case("npy-odd-header", file("a.npy", npy("__import__", "(9,)", bytes(4))), "broken", ("numpy-broken",)),
    Case("npy-bytes-behind", file("a.npy", npy("'<f4'", "(1,)", bytes(4)) + b"more\n"), "suspicious", ("numpy-extra-data",)),
]

_HUB = ".cache/huggingface/"
_CLEAN = [
    Case("clean-onnx", file("m.onnx", onnx(tensor("w")))),
    Case("clean-onnx-own-domain", file("m.onnx", onnx(tensor("w"), operator="Fused", domain="com.example"))),
    Case(
        "clean-onnx-data",
        files(
            {
                "onnx/m.onnx": onnx(tensor("w", location="m.onnx_data", offset="4", length="4")),
                "onnx/m.onnx_data": b"\xf1" * 16,
            }
        ),
    ),
    Case("clean-openvino", files({"m.xml": OPENVINO, "m.bin": b"\xf1" * 16})),
    Case("clean-tflite", file("m.tflite", struct.pack("<L", 16) + b"TFL3" + bytes(40))),
    Case(
        "clean-tflite-labels",
        file("m.tflite", lambda: struct.pack("<L", 16) + b"TFL3" + bytes(40) + zipped({"labels.txt": b"cat\n"})),
    ),
    Case(
        "clean-saved-model",
        files(
            {
                "saved_model.pb": saved_model("MatMul"),
                "fingerprint.pb": field(1, 7) + field(2, 9),
                "variables/variables.index": INDEX,
                "variables/variables.data-00000-of-00001": b"\xf1" * 16,
            }
        ),
    ),
    Case(
        "clean-keras",
        file(
            "m.keras",
            lambda: keras(
                dense(),
                {
                    "module": "keras.layers",
                    "class_name": "Activation",
                    "config": {
                        "activation": {
                            "module": "builtins",
                            "class_name": "function",
                            "config": "silu",
                            "registered_name": "function",
                        }
                    },
                    "registered_name": None,
                },
            ),
        ),
    ),
    Case("clean-h5", file("tf_model.h5", lambda: hdf5(dense()))),
    Case(
        "clean-flax", file("flax_model.msgpack", b"\x81\xa6params\x81\xa1a\xc7\x0a\x01\x93\x91\x01\xa2f4\xc4\x02" + bytes(2))
    ),
    Case(
        "clean-npy",
        files(
            {
                "a.npy": npy("'<f4'", "(2, 2)", bytes(16)),
                "b.npy": npy("[('a', '<f4'), ('b', '<i8')]", "(1,)", bytes(12)),
                "c.npy": npy("'<U3'", "(1,)", bytes(12)),
                "d.npy": npy("'|O'", "(1,)", HONEST),
            }
        ),
    ),
    Case(
        "clean-nemo",
        file("m.nemo", lambda: nemo(NEMO.format("nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor"))),
    ),
    Case(
        "clean-yaml",
        files(
            {
                "mergekit_config.yml": b"models:\n  - model: a/b\n    parameters: {weight: 0.5}\nmerge_method: linear\n",
                "config.yaml": b"base: &b {lr: 1e-4}\nrun:\n  <<: *b\n  when: 2024-01-01\n  target: all-linear\n",
                "empty.yaml": b"# nothing\n",
            }
        ),
    ),
    Case(
        "clean-core-ml",
        files(
            {
                "m.mlpackage/Manifest.json": b'{"fileFormatVersion": "1.0.0"}',
                "m.mlpackage/Data/com.apple.CoreML/weights/weight.bin": struct.pack("<LL", 1, 2)
                + bytes(56)
                + b"\xef\xbe\xad\xde"
                + bytes(60)
                + RAW,
            }
        ),
    ),
    Case("clean-sentencepiece", file("tokenizer.model", pieces())),
    Case("clean-tiktoken", file("qwen.tiktoken", b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)))),
    Case(
        "clean-trainer",
        files(
            {
                "runs/events.out.tfevents.1.host": record(field(2, 1) + b"\x09" + bytes(8)) + record(field(2, 2)),
                "wandb/run-1.wandb": b":W&B\x00\x01\x00" + bytes(40),
                "trainer_state.json": b'{"epoch": 1.0}',
                "latest": b"global_step10",
                "train.log": b"loss 1.0\n",
                "checkpoint": b'model_checkpoint_path: "a"\n',
            }
        ),
    ),
    Case(
        "clean-download",
        files(
            {
                _HUB + ".gitignore": b"*\n",
                _HUB + "CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55\n",
                _HUB + "download/config.json.metadata": b"0123456789abcdef\nabc\n1720000000.1\n",
                _HUB + "download/config.json.lock": b"",
                _HUB + "download/x.a1b2.incomplete": b"\x90\x01" + bytes(20),
            }
        ),
    ),
    Case(
        "clean-clone",
        files(
            {
                ".git/HEAD": b"ref: refs/heads/main\n",
                ".git/config": b"[core]\n\tbare = false\n",
                ".git/index": b"DIRC\x00\x00\x00\x02" + bytes(40),
                ".git/objects/ab/cdef": loose(b"blob", b"hello\n" * 9),
                ".git/hooks/pre-push.sample": b"#!/bin/sh\necho\n",
                ".git/objects/pack/pack-1.pack": b"PACK\x00\x00\x00\x02" + bytes(40),
                ".git/objects/pack/pack-1.idx": b"\xfftOc" + bytes(40),
                ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
            }
        ),
    ),
    Case(
        "clean-texts",
        files(
            {
                "README.md": b"[![badge](a.png)](b)\n# Model\n",
                "LICENSE": "Copyright \xa9 1999 Someone\n".encode("latin-1") * 9,
                "labels.txt": b"cat\ndog\nbird\n",
                "vocab.txt": b"[PAD]\n[UNK]\n.\nthe\n",
                "NOTICE": "Mod\xe8le\n".encode("utf-16"),
                "merges.txt": b"#version: 0.2\n\xc4\xa0 t\n",
                "Vienna.txt": b"Vienna\n.\n",
                "notes.txt": b"(1) one\n(2) two\n",
                "requirements.txt": b"torch>=2\n",
                "Dockerfile": b"FROM python:3.11\n",
                "data.jsonl": b'{"a": 1}\n{"a": 2}\n',
                "table.csv": b"a,b\n1,2\n",
                "chat.txt": b"I like it.\n.\n",
                "__init__.py": b"",
                ".gitkeep": b"",
                "a.lock": b"",
            }
        ),
    ),
    Case(
        "clean-pictures",
        files(
            {
                "a.png": PNG,
                "b.png": PNG + b"\0" * 9,
                "c.jpg": b"\xff\xd8\xff\xe0" + bytes(60) + b"\xff\xd9",
                "d.gif": b"GIF89a" + bytes(30) + b"\0;",
                "e.webp": b"RIFF\x20\0\0\0WEBPVP8 " + bytes(30),
                "f.svg": BLANK_SVG,
                "g.wav": b"RIFF\x20\0\0\0WAVEfmt " + bytes(30),
                "h.mp3": b"ID3\x04" + bytes(30),
                "i.mp4": b"\0\0\0\x18ftypmp42" + bytes(30),
                "j.pdf": b"%PDF-1.4\n1 0 obj <<>> endobj\n%%EOF",
                "k.ico": b"\0\0\x01\0\x01\0" + bytes(30),
                ".DS_Store": b"\0\0\0\x01Bud1" + bytes(30),
                "l.ttf": b"\0\x01\0\0\0\x0c" + bytes(30),
            }
        ),
    ),
    Case(
        "clean-page-and-notebook",
        files(
            {
                "plot.html": b"<!DOCTYPE html><html><script>plot()</script></html>",
                "demo.ipynb": b'{"cells": [], "nbformat": 4}',
                "convert.sh": b"#!/bin/sh\npython convert.py\n",
                "old.rtf": b"{\\rtf1 hello}",
            }
        ),
    ),
    Case("clean-tables", parquet, needs=("pyarrow",)),
]
CASES = [*_CODE, *_MORE, *_PLAIN, *_CLEAN]
