"""Weight files: headers that break their specification, values that can't be, and what real exporters write."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import Case, write_json

Build = Callable[[Path], None]
Tensors = dict[str, np.ndarray[Any, Any]]
SPEC = "https://huggingface.co/docs/safetensors/index#format"
GGUF_SPEC = "https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"
WIDTH, MIDDLE, VOCAB, LAYERS = 16, 24, 32, 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": MIDDLE,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64",
           "bool": "BOOL", "uint16": "BF16"}  # fmt: skip


# -- safetensors: a small Llama, and its header in every wrong way ---------------------------------------------


def llama(seed: int = 0) -> Tensors:
    """The tensors of a Llama of four layers, random."""
    dice = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray[Any, Any]:
        return (dice.standard_normal(shape) * 0.2).astype(np.float32)

    found: Tensors = {"model.embed_tokens.weight": matrix(VOCAB, WIDTH)}
    for n in range(LAYERS):
        at = f"model.layers.{n}"
        for part in "qkvo":
            found[f"{at}.self_attn.{part}_proj.weight"] = matrix(WIDTH, WIDTH)
        found[f"{at}.mlp.gate_proj.weight"] = matrix(MIDDLE, WIDTH)
        found[f"{at}.mlp.up_proj.weight"] = matrix(MIDDLE, WIDTH)
        found[f"{at}.mlp.down_proj.weight"] = matrix(WIDTH, MIDDLE)
        found[f"{at}.input_layernorm.weight"] = np.ones(WIDTH, np.float32)
        found[f"{at}.post_attention_layernorm.weight"] = np.ones(WIDTH, np.float32)
    found["model.norm.weight"] = np.ones(WIDTH, np.float32)
    found["lm_head.weight"] = matrix(VOCAB, WIDTH)
    return found


def entries(tensors: Tensors) -> tuple[dict[str, Any], bytes]:
    """Header entries and data of tensors, one after another; 16-bit words stand for bfloat16."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        raw = values.tobytes()
        header[name] = {"dtype": _DTYPES[str(values.dtype)], "shape": list(values.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}  # fmt: skip
        data += raw
    return header, data


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header (JSON, or bytes as they are) and data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def model(folder: Path, tensors: Tensors | None = None, **config: Any) -> None:
    """A whole folder: config and one file."""
    header, data = entries(tensors if tensors is not None else llama())
    write_json(folder / "config.json", {**CONFIG, **config})
    (folder / "model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))


def raw_file(content: Callable[[dict[str, Any], bytes], bytes], name: str = "model.safetensors") -> Build:
    """A folder whose weights are made from the good header and data."""

    def build(folder: Path) -> None:
        write_json(folder / "config.json", CONFIG)
        header, data = entries(llama())
        (folder / name).write_bytes(content(header, data))

    return build


def changed(change: Callable[[dict[str, Any]], None], metadata: Any = None) -> Build:
    """The good file with its header changed."""

    def content(header: dict[str, Any], data: bytes) -> bytes:
        change(header)
        return packed({"__metadata__": {"format": "pt"} if metadata is None else metadata, **header}, data)

    return raw_file(content)


def field(**fields: Any) -> Build:
    """The good file with fields of one entry changed."""
    return changed(lambda h: h["model.norm.weight"].update(fields))


def told(**metadata: Any) -> Build:
    """The good file with more metadata."""
    return changed(lambda h: None, {"format": "pt", **metadata})


def renamed(name: str) -> Build:
    """The good file with one more tensor of another name."""
    return changed(lambda h: h.update({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}))


def overlapping(header: dict[str, Any]) -> None:
    entry = header["lm_head.weight"]
    entry["data_offsets"] = [at - 4 * WIDTH for at in entry["data_offsets"]]


def twice(header: dict[str, Any], data: bytes, key: str = '"model.norm.weight"') -> bytes:
    text = json.dumps(header)
    again = json.dumps({**header["model.norm.weight"], "data_offsets": [0, 4 * WIDTH]})
    return packed(text[:-1].encode() + f", {key}: {again}}}".encode(), data)


def hidden_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "behind the weights")
    return file.getvalue()


def literal(old: str, new: str) -> Build:
    """The good file with a piece of its header's JSON text replaced."""

    def content(header: dict[str, Any], data: bytes) -> bytes:
        header["model.norm.weight"]["shape"] = ["HERE"]
        text = json.dumps(header)
        assert old in text
        return packed(text.replace(old, new).encode("utf-8", "surrogatepass"), data)

    return raw_file(content)


_PICKLE = base64.b64encode(b"\x80\x04\x95\x2a" + bytes(7) + b"}\x94\x8c\x04note\x94\x8c\x12just a harmless one\x94s.").decode()


def _st(name: str, build: Build, rule: str, verdict: str = "broken") -> Case:
    return Case(f"safetensors-{name}", build, verdict, (rule,), see=SPEC)


SAFETENSORS = [
    _st("data-cut", raw_file(lambda h, d: packed(h, d[:-100])), "weights-truncated"),
    _st("header-cut", raw_file(lambda h, d: packed(h)[:500]), "weights-truncated"),
    _st("seven-bytes", raw_file(lambda h, d: b"\x10\0\0\0\0\0\0"), "weights-truncated"),
    _st("no-bytes", raw_file(lambda h, d: b""), "weights-truncated"),
    _st("length-all-ones", raw_file(lambda h, d: packed(h, d, (1 << 64) - 1)), "header-length"),
    _st("length-over-limit", raw_file(lambda h, d: packed(h, d, 100_000_001)), "header-length"),
    _st("header-17-mib", raw_file(lambda h, d: packed(json.dumps(h).encode() + b" " * (17 << 20), d)), "header-too-large",
        "could not tell"),
    _st("many-tensors", changed(lambda h: h.update({f"{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
                                                     for i in range(140_000)})), "header-too-large", "could not tell"),
    _st("list-bomb", raw_file(lambda h, d: packed(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}", d)), "header-too-large",
        "could not tell"),
    _st("tensor-twice", raw_file(twice), "header-duplicate"),
    _st("tensor-twice-escaped", raw_file(lambda h, d: twice(h, d, '"model.norm.\\u0077eight"')), "header-duplicate"),
    _st("metadata-twice", raw_file(lambda h, d: packed(b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"},'
                                                       + json.dumps(h).encode()[1:], d)), "header-duplicate"),
    _st("field-twice", literal('["HERE"]', f'[{WIDTH}], "dtype": "F32"'), "header-duplicate"),
    _st("overlap", changed(overlapping), "tensor-overlap"),
    _st("same-bytes", changed(lambda h: h.update(copy=h["lm_head.weight"])), "tensor-overlap"),
    _st("hole", raw_file(lambda h, d: packed({k: v for k, v in h.items() if k != "model.norm.weight"}, d)), "tensor-hole"),
    _st("tail", raw_file(lambda h, d: packed(h, d + b"\0")), "trailing-data"),
    _st("tail-zip", raw_file(lambda h, d: packed(h, d + hidden_zip())), "trailing-data"),
    _st("unknown-dtype", field(dtype="F128"), "tensor-dtype", "could not tell"),
    _st("dtype-a-list", field(dtype=["F32"]), "tensor-dtype", "could not tell"),
    _st("shape-too-long", field(shape=[WIDTH + 1]), "tensor-shape"),
    _st("shape-wraps", field(shape=[1 << 32, 1 << 32]), "tensor-overflow"),
    _st("shape-beyond-64-bits", field(shape=[0, 1 << 70]), "tensor-overflow"),
    _st("shape-negative", field(shape=[-WIDTH]), "header-types"),
    _st("shape-fraction", field(shape=[float(WIDTH)]), "header-types"),
    _st("shape-true", field(shape=[True]), "header-types"),
    _st("shape-nan", field(shape=[math.nan]), "header-types"),
    _st("shape-1e999", literal('["HERE"]', "[1e999]"), "header-types"),
    _st("offsets-backwards", field(data_offsets=[64, 0]), "header-types"),
    _st("offsets-negative", field(data_offsets=[-64, 0]), "header-types"),
    _st("another-field", field(strides=[1]), "header-types"),
    _st("100-axes", changed(lambda h: h["model.norm.weight"].update(shape=[WIDTH, *[1] * 99])), "tensor-shape"),
    _st("metadata-number", told(step=3), "header-metadata"),
    _st("metadata-nested", told(a={"b": "c"}), "header-metadata"),
    _st("metadata-list", changed(lambda h: None, [1]), "header-metadata"),
    _st("not-json", raw_file(lambda h, d: packed(json.dumps(h).encode()[:-1] + b";", d)), "header-not-json"),
    _st("two-values", raw_file(lambda h, d: packed(json.dumps(h).encode() + b"{}", d)), "header-not-json"),
    _st("half-a-surrogate", literal('"model.norm.weight"', '"\\ud800"'), "header-not-json"),
    _st("latin-1", raw_file(lambda h, d: packed('{"__metadata__":{"é":"é"},'.encode("latin-1") + json.dumps(h).encode()[1:], d)),
        "header-not-utf8"),
    _st("deep", raw_file(lambda h, d: packed(b'{"a":' * 90_000, d)), "header-nested"),
    _st("padded-with-nul", raw_file(lambda h, d: packed(json.dumps(h).encode() + b"\0" * 8, d)), "header-not-json"),
    _st("padded-with-newlines", raw_file(lambda h, d: packed(json.dumps(h).encode() + b"\n" * 8, d)), "header-padding"),
    _st("begins-with-space", raw_file(lambda h, d: packed(b" " + json.dumps(h).encode(), d)), "header-padding"),
    _st("is-html", raw_file(lambda h, d: b"<!DOCTYPE html><html><body>404</body></html>"), "weights-not-what-they-say"),
    _st("is-zeros", raw_file(lambda h, d: bytes(4096)), "weights-not-what-they-say"),
    _st("is-gguf", raw_file(lambda h, d: gguf_file()), "weights-not-what-they-say"),
    _st("escape-in-name", renamed("\x1b[2Jmodel"), "tensor-name", "suspicious"),
    _st("bidi-in-name", renamed("model.\u202ethgiew"), "tensor-name", "suspicious"),
    _st("zero-width-in-name", renamed("model.norm\u200b.weight"), "tensor-name", "suspicious"),
    _st("long-name", renamed("a" * 60_000), "tensor-name", "suspicious"),
    _st("cyrillic-in-name", renamed("m\u043edel.norm.weight"), "tensor-name", "suspicious"),
    _st("blank-name", renamed(" "), "tensor-name", "suspicious"),
    _st("metadata-pickle", told(extra=_PICKLE), "metadata-payload", "suspicious"),
    _st("metadata-zip", told(extra=base64.b64encode(hidden_zip()).decode()), "metadata-payload", "suspicious"),
    _st("metadata-code", told(note="__import__('os').getcwd()"), "metadata-code", "suspicious"),
    _st("metadata-template", told(note="{{ ''.__class__.__mro__ }}"), "metadata-code", "suspicious"),
    _st("metadata-script", told(note="<script>alert(1)</script>"), "metadata-markup", "suspicious"),
    _st("metadata-handler", told(note='<img src=x onerror="alert(1)">'), "metadata-markup", "suspicious"),
]  # fmt: skip


# -- GGUF --------------------------------------------------------------------------------------------------

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: Any) -> bytes:
    raw = {U32: lambda: struct.pack("<I", value), F32: lambda: struct.pack("<f", value), STRING: lambda: text(value)}.get(
        kind, lambda: value)()  # fmt: skip
    return text(key) + struct.pack("<I", kind) + raw


def array(kind: int, values: list[Any]) -> bytes:
    form = {STRING: text, F32: lambda v: struct.pack("<f", v), I32: lambda v: struct.pack("<i", v)}.get(kind, lambda v: v)
    return struct.pack("<IQ", kind, len(values)) + b"".join(map(form, values))


TOKENS = 8
WORDS = ["<unk>", "<s>", "</s>", "the", "sea", "is", "wide", "and"]


def pairs(**other: bytes | None) -> list[bytes]:
    """Metadata of a small Llama; keyword arguments replace or drop a pair (``__`` stands for a dot)."""
    known = {
        "general.architecture": pair("general.architecture", STRING, "llama"),
        "llama.block_count": pair("llama.block_count", U32, 2),
        "tokenizer.ggml.model": pair("tokenizer.ggml.model", STRING, "llama"),
        "tokenizer.ggml.tokens": pair("tokenizer.ggml.tokens", ARRAY, array(STRING, WORDS)),
        "tokenizer.ggml.scores": pair("tokenizer.ggml.scores", ARRAY, array(F32, [float(-i) for i in range(TOKENS)])),
        "tokenizer.ggml.token_type": pair("tokenizer.ggml.token_type", ARRAY, array(I32, [2, 3, 3] + [1] * (TOKENS - 3))),
        "tokenizer.ggml.bos_token_id": pair("tokenizer.ggml.bos_token_id", U32, 1),
        "tokenizer.ggml.eos_token_id": pair("tokenizer.ggml.eos_token_id", U32, 2),
    }  # fmt: skip
    found = {**known, **{k.replace("__", "."): v for k, v in other.items()}}
    return [v for v in found.values() if v is not None]


def info(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def _values(count: int, seed: int = 3) -> bytes:
    return (np.random.default_rng(seed).standard_normal(count) * 0.1).astype(np.float32).tobytes()


INFOS = [info("token_embd.weight", [32, TOKENS], 0, 0), info("blk.0.attn_q.weight", [32, 32], 0, 1024),
         info("blk.1.attn_q.weight", [32, 32], 0, 5120), info("output_norm.weight", [32], 0, 9216)]  # fmt: skip
DATA = _values(8 * 32) + _values(1024, 4) + _values(1024, 5) + np.ones(32, np.float32).tobytes()


def gguf_file(metadata: list[bytes] | None = None, infos: list[bytes] | None = None, data: bytes = DATA, *, version: int = 3,
              counts: tuple[int, int] | None = None) -> bytes:  # fmt: skip
    """A GGUF file from its parts."""
    metadata, infos = pairs() if metadata is None else metadata, INFOS if infos is None else infos
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(infos), len(metadata)))) + b"".join(metadata + infos)
    return head + b"\0" * (-len(head) % 32) + data


def a_gguf(content: bytes | Callable[[], bytes], name: str = "model.gguf") -> Build:
    def build(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())

    return build


def _gg(name: str, content: Any, rule: str, verdict: str = "broken") -> Case:
    return Case(f"gguf-{name}", a_gguf(content), verdict, (rule,), see=GGUF_SPEC)


def _with(more: bytes) -> bytes:
    return gguf_file([*pairs(), more])


HUGE = struct.pack("<Q", 1 << 60)


def _swapped(position: int, entry: bytes) -> list[bytes]:
    return [*INFOS[:position], entry, *INFOS[position + 1 :]]


def two_parts(*, second: bool = True, other: int = 2) -> Build:
    """A model in two files, as ``gguf-split`` writes it."""

    def build(folder: Path) -> None:
        def keys(number: int) -> list[bytes]:
            return [pair("split.no", 2, struct.pack("<H", number)), pair("split.count", 2, struct.pack("<H", 2)),
                    pair("split.tensors.count", I32, struct.pack("<i", other + 2))]  # fmt: skip

        (folder / "model-00001-of-00002.gguf").write_bytes(gguf_file([*pairs(), *keys(0)], INFOS[:2], DATA[:5120]))
        if second:
            infos = [info("blk.1.attn_q.weight", [32, 32], 0, 0), info("output_norm.weight", [32], 0, 4096)]
            (folder / "model-00002-of-00002.gguf").write_bytes(gguf_file(keys(1), infos, DATA[5120:]))

    return build


GGUFS = [
    _gg("cut", gguf_file()[:-200], "weights-truncated"),
    _gg("header-cut", gguf_file()[:300], "weights-truncated"),
    _gg("20-bytes", gguf_file()[:20], "weights-truncated"),
    _gg("array-2-60", _with(pair("k", ARRAY, struct.pack("<I", U32) + HUGE)), "header-too-large", "broken"),
    _gg("strings-2-60", _with(pair("k", ARRAY, struct.pack("<I", STRING) + HUGE)), "header-too-large", "broken"),
    _gg("string-2-60", _with(pair("k", 13, b"")[:-4] + struct.pack("<I", STRING) + HUGE), "header-too-large", "broken"),
    _gg("tensors-2-40", gguf_file(counts=(1 << 40, 8)), "header-too-large", "broken"),
    _gg("pairs-2-63", gguf_file(counts=(4, 1 << 63)), "header-too-large", "broken"),
    _gg("more-tensors-than-there", gguf_file(counts=(400, 8)), "tensor-name"),
    _gg("key-twice", _with(pair("general.architecture", STRING, "gemma")), "header-duplicate"),
    _gg("tensor-twice", gguf_file(infos=_swapped(2, info("blk.0.attn_q.weight", [32, 32], 0, 5120))), "header-duplicate"),
    _gg("alignment-24", _with(pair("general.alignment", U32, 24)), "tensor-alignment"),
    _gg("alignment-0", _with(pair("general.alignment", U32, 0)), "tensor-alignment"),
    _gg("alignment-text", _with(pair("general.alignment", STRING, "32")), "tensor-alignment"),
    _gg("unaligned", gguf_file(infos=_swapped(3, info("output_norm.weight", [30], 0, 9220))), "tensor-alignment"),
    _gg("overlap", gguf_file(infos=_swapped(2, info("blk.1.attn_q.weight", [32, 32], 0, 1056))), "tensor-overlap"),
    _gg("same-bytes", gguf_file(infos=_swapped(2, info("blk.1.attn_q.weight", [32, 32], 0, 1024))), "tensor-overlap"),
    _gg("beyond-the-end", gguf_file(infos=_swapped(3, info("output_norm.weight", [32], 0, 1 << 40))), "weights-truncated"),
    _gg("offset-wraps", gguf_file(infos=_swapped(3, info("output_norm.weight", [32], 0, (1 << 64) - 32))), "weights-truncated"),
    _gg("type-4", gguf_file(infos=_swapped(3, info("output_norm.weight", [32], 4, 9216))), "tensor-dtype", "could not tell"),
    _gg("type-999", gguf_file(infos=_swapped(3, info("output_norm.weight", [32], 999, 9216))), "tensor-dtype"),
    _gg("half-a-block", gguf_file(infos=_swapped(1, info("blk.0.attn_q.weight", [33, 31], 8, 1024))), "tensor-shape"),
    _gg("product-wraps", gguf_file(infos=_swapped(3, info("output_norm.weight", [1 << 33, 1 << 33], 0, 9216))), "tensor-overflow"),
    _gg("dimension-2-63", gguf_file(infos=_swapped(3, info("output_norm.weight", [0, 1 << 63], 0, 9216))), "tensor-overflow"),
    _gg("five-axes", gguf_file(infos=_swapped(3, info("output_norm.weight", [32, 1, 1, 1, 1], 0, 9216))), "tensor-shape"),
    _gg("version-1", gguf_file(version=1), "gguf-version", "could not tell"),
    _gg("version-4000", gguf_file(version=4000), "gguf-version", "could not tell"),
    _gg("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "gguf-byte-order", "could not tell"),
    _gg("nested-arrays", _with(pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 200)), "header-nested"),
    _gg("boolean-2", _with(pair("tokenizer.ggml.add_bos_token", BOOL, b"\2")), "header-types"),
    _gg("unknown-value-type", _with(pair("k", 13, bytes(8))), "header-types"),
    _gg("not-utf8", _with(pair("k", STRING, b"\xff\xfe")), "header-not-utf8"),
    _gg("key-not-utf8", _with(text(b"\xff") + struct.pack("<IB", BOOL, 1)), "header-not-utf8"),
    _gg("nan-metadata", _with(pair("llama.rope.freq_base", F32, math.nan)), "header-types"),
    _gg("no-architecture", gguf_file(pairs(general__architecture=None)), "gguf-key"),
    _gg("architecture-a-number", gguf_file(pairs(general__architecture=pair("general.architecture", U32, 7))), "gguf-key"),
    _gg("architecture-a-path", gguf_file(pairs(general__architecture=pair("general.architecture", STRING, "../../llama"))),
        "gguf-key"),
    _gg("tokens-numbers", gguf_file(pairs(tokenizer__ggml__tokens=pair("tokenizer.ggml.tokens", ARRAY, array(I32, [1] * TOKENS)))),
        "gguf-key"),
    _gg("scores-short", gguf_file(pairs(tokenizer__ggml__scores=pair("tokenizer.ggml.scores", ARRAY, array(F32, [0.0])))),
        "gguf-vocabulary"),
    _gg("scores-nan", gguf_file(pairs(tokenizer__ggml__scores=pair("tokenizer.ggml.scores", ARRAY,
                                                                   array(F32, [math.nan] * TOKENS)))), "gguf-vocabulary"),
    _gg("types-short", gguf_file(pairs(tokenizer__ggml__token_type=pair("tokenizer.ggml.token_type", ARRAY, array(I32, [1])))),
        "gguf-vocabulary"),
    _gg("type-9999", gguf_file(pairs(tokenizer__ggml__token_type=pair("tokenizer.ggml.token_type", ARRAY,
                                                                      array(I32, [9999] * TOKENS)))), "gguf-vocabulary"),
    _gg("embedding-longer", gguf_file(pairs(tokenizer__ggml__tokens=pair("tokenizer.ggml.tokens", ARRAY, array(STRING, ["a"])),
                                            tokenizer__ggml__scores=None, tokenizer__ggml__token_type=None,
                                            tokenizer__ggml__bos_token_id=None, tokenizer__ggml__eos_token_id=None)),
        "gguf-vocabulary"),
    _gg("eos-outside", gguf_file(pairs(tokenizer__ggml__eos_token_id=pair("tokenizer.ggml.eos_token_id", U32, 1000))),
        "gguf-token-id"),
    _gg("layers-missing", gguf_file(pairs(llama__block_count=pair("llama.block_count", U32, 5))), "gguf-layers"),
    _gg("hole", gguf_file(infos=_swapped(3, info("output_norm.weight", [32], 0, 10240)), data=DATA + bytes(1024)), "tensor-hole"),
    _gg("tail", gguf_file(data=DATA + b"behind the model" * 40), "trailing-data", "suspicious"),
    _gg("escape-in-key", _with(pair("note\x1b[2J", STRING, "x")), "tensor-name", "suspicious"),
    _gg("metadata-code", _with(pair("general.description", STRING, "__import__('os').getcwd()")), "metadata-code", "suspicious"),
    _gg("is-text", b"a text that is called a model\n" * 30, "weights-not-what-they-say"),
    _gg("half-scale-nan", lambda: _quantised(nan=True), "weights-not-finite"),
    Case("gguf-part-missing", two_parts(second=False), "broken", ("gguf-split",), see=GGUF_SPEC),
    Case("gguf-parts-count-wrong", two_parts(other=40), "broken", ("gguf-split",), see=GGUF_SPEC),
]  # fmt: skip


def _quantised(nan: bool = False) -> bytes:
    """One matrix of Q8_0 blocks; with ``nan``, one of its scales is not a number."""
    dice = np.random.default_rng(0)
    blocks = np.zeros((32, 34), np.uint8)
    blocks[:, :2] = np.full(32, 0.01, np.float16).view(np.uint8).reshape(32, 2)
    blocks[:, 2:] = dice.integers(0, 256, (32, 32))
    if nan:
        blocks[17, :2] = np.array([math.nan], np.float16).view(np.uint8)
    data = DATA[:1024] + blocks.tobytes() + bytes(0) + DATA[5120:]
    infos = [INFOS[0], info("blk.0.attn_q.weight", [32, 32], 8, 1024), info("blk.1.attn_q.weight", [32, 32], 0, 2112),
             info("output_norm.weight", [32], 0, 6208)]  # fmt: skip
    return gguf_file(infos=infos, data=data)

CASES: list[Case] = [*SAFETENSORS, *GGUFS]
