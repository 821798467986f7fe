"""What stood behind something that a scan once did not look behind: many values, escapes, links, a second way of reading."""

from __future__ import annotations

import base64
import json
import marshal
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Case
from .assembly import SHELL, Reduced
from .formats import field
from .layout import config, folder
from .tokens import charsmap, sentencepiece

Build = Callable[[Path], None]
_CODE = "{% if (''.__class__.__mro__[1].__subclasses__()) %}{% endif %}{% for m in messages %}{% set x = m %}{% endfor %}"
_RUN = {"module": "subprocess", "class_name": "run", "config": "id", "registered_name": "run"}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_HONEST_MODULE = "sentence_transformers.models.Normalize"


def _file(name: str, data: bytes | str) -> Build:
    raw = data.encode() if isinstance(data, str) else data
    return lambda path: (path / name).write_bytes(raw) and None


def _beside(name: str, data: str) -> Build:
    """A whole model with one more file."""

    def build(path: Path) -> None:
        folder(path)
        (path / name).write_text(data, encoding="utf-8")

    return build


def _inside(inner: str, name: str, data: str) -> Build:
    def build(path: Path) -> None:
        (path / inner).mkdir()
        (path / inner / name).write_text(data)

    return build


def _escaped(**changes: Any) -> str:
    """Settings of a tokenizer in which letters are written as JSON's escapes."""
    text = json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"} | changes)
    return text.replace("chat_template", "chat_templat\\u0065").replace("{%", "{\\u0025")


def _modules(*types: str, path: str = "") -> str:
    return json.dumps([{"idx": i, "name": str(i), "path": path if not i else "", "type": t} for i, t in enumerate(types)])


def _layer(**before: Any) -> str:
    """A Lambda layer of Keras; ``before`` stands before what says that it is one."""
    code = base64.b64encode(marshal.dumps(compile("__import__('os').system('id')", "x", "eval"))).decode()
    return json.dumps(before | {"class_name": "Lambda", "config": {"name": "l", "function": [code, None, None]}})


def _hdf5(text: str, at: int = 0) -> bytes:
    return b"# notes ".ljust(at) * bool(at) + _HDF5 + bytes(64) + text.encode() + bytes(64)


def _generator(link: str, inside: str) -> Build:
    """Code for ``generate`` in a folder that is a link."""

    def build(path: Path) -> None:
        folder(path)
        (path / inside).mkdir(exist_ok=True)
        (path / inside / "generate.py").write_text("def generate(model, **kwargs):\n    return None\n")
        os.symlink(link, path / "custom_generate")

    return build


# -- tar archives in which Python finds members that the sizes hide -------------------------------------------


def _header(name: str, size: int, kind: bytes, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    raw = bytearray(info.tobuf(format=tarfile.GNU_FORMAT))
    raw[124:136] = b"%011o\0" % size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _record(text: bytes, width: int = 0) -> bytes:
    """A record of an extended header, with its length before it."""
    size = len(text) + 1
    while len(b"%0*d" % (width, size)) + 1 + len(text) != size:
        size += 1
    return b"%0*d " % (width, size) + text


def _hidden() -> bytes:
    payload = pickle.dumps(Reduced(os.system, SHELL))
    return _header("model_weights.ckpt", len(payload), tarfile.REGTYPE) + _padded(payload)


def _nemo(part: bytes) -> Build:
    config = _header("model_config.yaml", 8, tarfile.REGTYPE) + _padded(b"name: x\n")
    return _file("model.nemo", config + part + bytes(1024))


def _sized(record: bytes, before: bytes = b"") -> Build:
    """A file whose size one reader takes from its header, and another from a record."""
    text = b"a note\n" * 20_000
    text = text[: len(text) // 512 * 512]
    size = record.replace(b"SIZE", b"%d" % len(text))
    told = before or _record(size, 21 if size.startswith(b"size=") and not before else 0)
    block = _header("p", len(told), b"x") + _padded(told + (_record(size) if before else b""))
    hidden = _hidden()
    return _nemo(block + _header("notes.txt", len(text) + len(hidden), tarfile.REGTYPE) + text + hidden)


_UNPACKS = ("import pickle, tarfile\narchive = tarfile.open(folder / 'model.nemo')\n"
            "pickle.load(archive.extractfile('model_weights.ckpt'))")  # fmt: skip
_TAR = ("archive-ambiguous",)


# -- SentencePiece and TensorFlow ------------------------------------------------------------------------------


_PIECES = [("<unk>", 0.0, 2), ("▁a", -1.0, 1)]


def _normaliser() -> bytes:
    return field(3, field(1, b"custom") + field(2, charsmap({"yes": "no"})))


def _pieces(*, turned: bool = False) -> bytes:
    parts = [(field(1, t), field(2, s), field(3, k)) for t, s, k in _PIECES]
    return b"".join(field(1, s + t + k if turned else t + s + k) for t, s, k in parts)


def _graph(*nodes: tuple[bytes, bytes]) -> bytes:
    """A saved model whose nodes print: (name, where to)."""
    printing = [field(1, field(1, name) + field(2, "PrintV2") + field(5, field(1, "output_stream") + field(2, field(2, to))))
                for name, to in nodes]  # fmt: skip
    return field(1, 1) + field(2, field(2, b"".join(printing)))


_MORE = {"k": "sdpa"} | {f"k{i}": "sdpa" for i in range(200)}
_TUPLES = "".join(f"k{i}: !!python/tuple [1]\n" for i in range(60))
_SHELLED = "a: !!python/object/apply:os.system ['touch $WEIGHTSMITH_MARKER']\n"
HOSTILE = [
    Case("yaml-tag-behind-notes", _file("x.yaml", _TUPLES + _SHELLED + "b: !!python/tuple [1]\n"), "malicious",
         ("yaml-builds-objects",), "import yaml\nyaml.unsafe_load((folder / 'x.yaml').read_text())", needs=("yaml",)),
    Case("yaml-tag-far-in-text", _file("settings", "a: 1\n" * 20_000 + _SHELLED), "malicious", ("yaml-builds-objects",)),
    Case("yaml-target-by-alias", _file("model_config.yaml", "a: &v os.system\nmodel:\n  _target_: *v\n  command: id\n"),
         "malicious", ("config-names-code",), see="CVE-2025-23304"),
    Case("yaml-key-by-alias", _file("model_config.yaml", "a: &k _target_\nmodel:\n  *k : os.system\n  command: id\n"), "malicious",
         ("config-names-code",), see="CVE-2025-23304"),
    Case("yaml-target-computed", _file("model_config.yaml", "a: os.system\nmodel:\n  _target_: ${a}\n  command: id\n"),
         "malicious", ("config-names-code",), see="CVE-2025-23304"),
    Case("yaml-class-path-in-flow", _file("x.yaml", "model: {class_path: evil.mod.Cls, init_args: {}}\n"), "suspicious",
         ("config-imports",)),
    Case("yaml-tag-that-calls", _file("hyperparams.yaml", "a: !apply:os.system [id]\n"), "malicious", ("config-names-code",),
         see="https://github.com/speechbrain/HyperPyYAML"),
    Case("yaml-tag-that-imports", _file("hyperparams.yaml", "a: !new:evil.mod.Cls\n    b: 1\n"), "suspicious",
         ("config-names-code",)),
    Case("module-behind-many", _file("modules.json", _modules(*[_HONEST_MODULE] * 201, "evil.Cls")), "suspicious",
         ("remote-code",)),
    Case("module-path-behind-many", _file("modules.json", _modules(*[_HONEST_MODULE] * 8000, path="../../up")), "suspicious",
         ("path-leaves-folder",)),
    Case("kernel-behind-many", _beside("config.json", json.dumps(config(
        _attn_implementation=_MORE | {"text_config": "a/kernels"}))), "suspicious", ("remote-kernel",)),
    Case("module-of-a-router", _file("router_config.json", json.dumps({"types": {"query_0_X": "evil.Cls"}, "structure": {}})),
         "suspicious", ("remote-code",)),
    Case("library-of-an-adapter", _file("adapter_config.json", json.dumps({"peft_type": "LORA", "auto_mapping": {
        "base_model_class": "Cls", "parent_library": "evil"}})), "suspicious", ("config-imports",),
         see="https://github.com/huggingface/peft/blob/main/src/peft/auto.py"),
    Case("class-path-in-an-archive", _nemo(_header("x.yaml", 23, tarfile.REGTYPE) + _padded(b"class_path: evil.m.Cls\n")),
         "suspicious", ("config-imports",)),
    Case("pipeline-of-modules", _file("modular_model_index.json", json.dumps({"_class_name": "ModularPipeline", "unet": [
        "evil", "Cls", {"type_hint": ["evil", "Cls"]}]})), "suspicious", ("remote-code",)),
    Case("target-of-many-letters", _file("config.json", json.dumps({"_target_": "os." + "path.os." * 60 + "system"})), "suspicious",
         ("config-imports",)),
    Case("template-in-escapes", _beside("tokenizer_config.json", _escaped(chat_template=_CODE)), "malicious", ("template-code",)),
    Case("keras-in-escapes", _file("config.json", json.dumps(_RUN).replace("_name", "_nam\\u0065")),
         "malicious", ("keras-foreign-code",)),
    Case("keras-far-in-file", _file("task.json", json.dumps({"pad": " " * 70_000} | _RUN)), "malicious", ("keras-foreign-code",)),
    Case("keras-in-large-file", _file("task.json", json.dumps(_RUN | {"pad": " " * (17 << 20)})), "malicious",
         ("keras-foreign-code",)),
    Case("keras-in-a-list", _file("task.json", json.dumps([_RUN])), "malicious", ("keras-foreign-code",)),
    Case("keras-layer-of-megabytes", _file("model.h5", _hdf5(_layer(pad="A" * (17 << 20)))), "broken", ("keras-config-broken",)),
    Case("hdf5-behind-text", _file("model.hdf5", _hdf5(_layer(), 131_072)), "malicious", ("keras-lambda",)),
    Case("code-through-a-link", _generator("zz", "zz"), "suspicious", ("remote-code",)),
    Case("code-through-a-link-to-itself", _generator(".", "."), "suspicious", ("link-broken",)),
    Case("settings-in-capitals", _file("tokenizer_config.JSON", json.dumps({"chat_template": _CODE})), "suspicious",
         ("name-other-case",), see="https://cwe.mitre.org/data/definitions/178.html"),
    Case("tar-folder-with-bytes", _nemo(_header("d/", len(_hidden()), tarfile.DIRTYPE) + _hidden()), "suspicious", _TAR, _UNPACKS),
    Case("tar-link-with-bytes", _nemo(_header("l", len(_hidden()), tarfile.SYMTYPE, "model_config.yaml") + _hidden()), "suspicious",
         _TAR, _UNPACKS),
    Case("tar-old-folder-with-bytes", _nemo(_header("d/", len(_hidden()), tarfile.AREGTYPE) + _hidden()), "suspicious", _TAR,
         _UNPACKS),
    Case("tar-size-with-zeros", _sized(b"size=SIZE\n"), "suspicious", _TAR, _UNPACKS),
    Case("tar-size-with-blank", _sized(b"size= SIZE\n"), "suspicious", _TAR, _UNPACKS),
    Case("tar-size-in-padding", _sized(b"size=SIZE\n", before=_record(b"a=b\n")), "malicious", _TAR, _UNPACKS),
    Case("pieces-behind-their-map", _file("tokenizer.model", _normaliser() + _pieces()), "malicious", ("tokenizer-rewrites",)),
    Case("pieces-with-two-maps", _file("tokenizer.model", _pieces() + _normaliser() + field(3, field(1, b"x"))), "malicious",
         ("tokenizer-rewrites",)),
    Case("pieces-turned-round", _file("tokenizer.model", _pieces(turned=True) + _normaliser()), "malicious",
         ("tokenizer-rewrites",)),
    Case("pieces-too-large", _file("tokenizer.model", _pieces() + _normaliser() + field(2, field(1, b"x" * (65 << 20)))),
         "could not tell", ("scanner-failed",)),
    Case("vocabulary-that-begins-odd", _file("vocab.json", json.dumps({"odd": "x"} | {f"t{i}": i for i in range(200)})), "broken",
         ("tokenizer-invalid",)),
    Case("tokenizer-of-a-pipeline", _inside("tokenizer", "tokenizer_config.json", '{"vocab_file": "../../../x"}'), "suspicious",
         ("tokenizer-file-elsewhere",)),
    Case("prints-to-a-file-second", _file("saved_model.pb", _graph((b"a", b"stderr"), (b"b", b"file:///tmp/x"))), "malicious",
         ("tensorflow-file-operator",)),
    Case("prints-to-a-file-late", _file("saved_model.pb", _graph((b"a" * 500, b"file:///tmp/x"))), "malicious",
         ("tensorflow-file-operator",)),
    Case("text-graph-prints-to-a-file", _file("saved_model.pbtxt", 'meta_graphs { graph_def { node { op: "PrintV2" attr { key: '
         '"output_stream" value { s: "file:///tmp/x" } } } } }\n'), "malicious", ("tensorflow-file-operator",)),
    Case("text-graph-in-escapes", _file("saved_model.pbtxt", 'meta_graphs { graph_def { node { op: "Write\\106ile" } } }\n'),
         "suspicious", ("tensorflow-file-operator",)),
    Case("text-graph-in-two-strings", _file("saved_model.pbtxt", 'meta_graphs { graph_def { node { op: "Write" "File" } } }\n'),
         "suspicious", ("tensorflow-file-operator",)),
]
HONEST = [
    Case("hyperparams-of-speechbrain", _file("hyperparams.yaml", "b: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN\n"
         "    input_size: 80\nr: !ref <b>\nn: !name:torch.nn.BatchNorm1d\ns: !apply:torch.manual_seed [1]\n")),
    Case("saved-model-that-prints", _file("saved_model.pb", _graph((b"a", b"stderr")))),
    Case("text-graph-plain", _file("saved_model.pbtxt", 'meta_graphs { graph_def { node { name: "a" op: "MatMul" } node { '
         'op: "Add" input: "a" } } }\n')),
    Case("pieces-as-written", _file("tokenizer.model", sentencepiece(_PIECES))),
    Case("many-added-tokens", _file("tokenizer_config.json", json.dumps({"added_tokens_decoder": {
        str(i): {"content": f"<special_{i}>", "special": True} for i in range(65_000)}}))),
]  # fmt: skip
CASES = HOSTILE + HONEST
