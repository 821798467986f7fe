"""Several carriers of one thing that disagree: weights in two formats, the config in two dialects, GGUF beside a folder.

Which carrier counts depends on the program that loads the folder, so where they differ, two people who load the same
folder run two models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ...formats.gguf import GgufHeader
from ...found import Finding
from ..items import Folder, TensorFacts
from ..listing import shown
from ..rules import Rule
from ..values import Measured
from .facts import LOADED, Place, Weights, role_of, tensors_of, whole_number

WEIGHTS = Rule(
    "weights-disagree", "suspicious", "The folder holds the weights twice, and they differ",
    "Loaders choose by file name: one takes safetensors, another the pickle, a third the original format. Each runs another "
    "model, and a check that looks at one of them says nothing of the others.",
    "Keep the carrier that the publisher's digests confirm and remove the other.",
)  # fmt: skip
CONFIGS = Rule(
    "configs-disagree", "suspicious", "Two settings files describe two different models",
    "config.json is read by one loader and params.json, or a GGUF file's metadata, by another.",
    "Find out which belongs to the weights; fetch both again from one revision.",
)  # fmt: skip
BROKEN_GGUF = Rule(
    "gguf-vocabulary-size", "broken", "A GGUF file whose vocabulary and embeddings differ in size",
    "A token without an embedding makes a program read outside the table; llama.cpp refuses the file.",
    "Convert the model again.",
)  # fmt: skip
RULES = (WEIGHTS, CONFIGS, BROKEN_GGUF)

_BUFFERS = re.compile(r"(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids|num_batches_tracked|lm_head\.\w+|"
                      r"embed_tokens\.weight|embed_out\.weight|decoder\.(weight|bias)|predictions\.bias)$")  # fmt: skip
#: names of Mistral's and Llama's own format -> transformers' names, for what is stored the same way in both
_ORIGINAL = {
    "attention.wv.weight": "self_attn.v_proj.weight", "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight", "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight", "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}  # fmt: skip
_TOP = {"tok_embeddings.weight": "embed_tokens.weight", "norm.weight": "norm.weight", "output.weight": "lm_head.weight"}
#: params.json -> config.json
_PARAMS = {
    "dim": ("hidden_size",), "n_layers": ("num_hidden_layers",), "n_heads": ("num_attention_heads",),
    "n_kv_heads": ("num_key_value_heads",), "hidden_dim": ("intermediate_size",), "vocab_size": ("vocab_size",),
    "head_dim": ("head_dim",), "rope_theta": ("rope_theta",),
}  # fmt: skip
_GGUF = {"block_count": ("num_hidden_layers", "n_layer", "num_layers"),
         "embedding_length": ("hidden_size", "n_embd", "d_model"),
         "feed_forward_length": ("intermediate_size", "n_inner"),
         "attention.head_count": ("num_attention_heads", "n_head")}  # fmt: skip
#: variants that hold the same weights in other floats
_PRECISION = re.compile(r"\.(?:fp16|bf16|fp32|float16|bfloat16|float32|half)(?=[.-])", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|draft|mtp|lora|adapter|vocab|imatrix|clip|eagle", re.IGNORECASE)


def compare(place: Place) -> Iterator[Finding]:
    """Findings about one directory."""
    loaded = place.loaded
    ours = _Names(loaded.tensors if loaded is not None else ())
    for weights in place.weights:
        if loaded is None or weights is loaded or not weights.tensors:
            continue
        base = weights.name.removeprefix(place.prefix)
        role = role_of(base)
        if base in LOADED or role == "variant":
            yield from _same(place, loaded, ours, weights, role == "variant")
        elif role == "consolidated":
            yield from _original(place, loaded, weights)
    yield from _params(place)
    yield from _ggufs(place)


def differ(folder: Folder, name: str, first: Weights, second: Weights) -> bool:
    """Whether two carriers hold other contents under one name; where a digest is missing, shapes alone decide."""
    one, two = first.tensors[name], second.tensors[name]
    if one[1] != two[1]:
        return True
    return one[0] == two[0] and folder.alike((one[2], name), (two[2], name)) is False


def _plain(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


class _Names:
    """Names of one carrier's tensors as they are compared, made once for all carriers that it is compared with."""

    def __init__(self, tensors: Iterable[str]) -> None:
        self.plain = {_plain(n): n for n in tensors}

    @cached_property
    def shortest(self) -> int:
        """Letters of the shortest one."""
        return min(map(len, self.plain), default=0)

    @cached_property
    def cut(self) -> dict[str, str]:
        """Names without their first part."""
        return {n.partition(".")[2]: full for n, full in self.plain.items()}


def _same(place: Place, loaded: Weights, known: _Names, other: Weights, variant: bool) -> Iterator[Finding]:
    """Two carriers of the same tensors under the same names."""
    names = _Names(other.tensors)
    ours, theirs = known.plain, names.plain
    if not ours.keys() & theirs.keys():  # one of them with the prefix of a head's class
        ours, theirs = (ours, names.cut) if known.shortest <= names.shortest else (known.cut, theirs)
    both = ours.keys() & theirs.keys()
    of_precision = bool(_PRECISION.search(other.name))
    facts, where = [], shown(other.files[0])
    for name in both:
        one, two = loaded.tensors[ours[name]], other.tensors[theirs[name]]
        if one[1] != two[1]:
            facts.append(f"{name}: {list(one[1])} and {list(two[1])}")
        elif variant and not of_precision:
            continue  # averaged weights, say, are others by design
        elif one[0] == two[0]:
            if place.folder.alike((one[2], ours[name]), (two[2], theirs[name])) is False:
                facts.append(f"{name}: other values")
        elif variant and _rounded_otherwise(place.folder.tensors.get((one[2], ours[name])),
                                            place.folder.tensors.get((two[2], theirs[name])), one[0], two[0]):  # fmt: skip
            facts.append(f"{name}: other values, and not by rounding")
    whole = loaded.complete and other.complete and not variant
    lone = [n for n in ours.keys() ^ theirs.keys() if not _BUFFERS.search(n)] if whole else []
    if facts:
        yield WEIGHTS.found(f"{len(facts)} tensors differ between {loaded.name!r} and {other.name!r}, e.g. {facts[0]}", file=where,
                            evidence="; ".join(sorted(facts)[:10]))  # fmt: skip
    if lone:
        yield WEIGHTS.found(f"{len(lone)} tensors are in one of {loaded.name!r} and {other.name!r} only, e.g. {sorted(lone)[0]!r}",
                            file=where, evidence=", ".join(sorted(lone)[:20]))  # fmt: skip


def _rounded_otherwise(first: TensorFacts | None, second: TensorFacts | None, dtype: str, other: str) -> bool:
    """Whether two tensors of one shape, in two kinds of floats, hold values that no rounding makes of one another: by the
    elements that the pass over the bytes kept, which lie at the same places in both."""
    one, two = (_kept(facts, kind) for facts, kind in ((first, dtype), (second, other)))
    if one is None or two is None or one.size != two.size:
        return False
    apart = np.abs(one - two) > np.maximum(np.abs(one), np.abs(two)) / 64 + 1e-6
    return int(np.count_nonzero(apart)) * 4 > one.size


def _kept(facts: TensorFacts | None, dtype: str) -> np.ndarray[Any, Any] | None:
    """The elements of a tensor that were kept; ``None`` where there are none that are numbers."""
    if not isinstance(facts, Measured) or not facts.pieces or not facts.finite:
        return None
    raw = bytes.fromhex(facts.pieces)
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    kind = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}.get(dtype)
    return None if kind is None else np.frombuffer(raw, kind).astype(np.float64)


def _original(place: Place, loaded: Weights, other: Weights) -> Iterator[Finding]:
    """The publisher's own format against transformers': what both store the same way must be the same bytes."""
    prefix = place.embedding[0].removesuffix("embed_tokens.weight") if place.embedding else "model."
    facts = []
    for name in other.tensors:
        match = re.match(r"layers\.(\d+)\.(.+)$", name)
        theirs = _ORIGINAL.get(match[2]) if match else _TOP.get(name)
        if theirs is None:
            continue
        ours = f"{prefix}layers.{match[1]}.{theirs}" if match else theirs if "lm_head" in theirs else prefix + theirs
        if ours not in loaded.tensors:
            if match:
                facts.append(f"{name}: {ours} is not there")
            continue
        one, two = loaded.tensors[ours], other.tensors[name]
        if one[1] != two[1] and len(other.files) == 1:
            facts.append(f"{name}: {list(two[1])}, {ours}: {list(one[1])}")
        elif one[0] == two[0] and place.folder.alike((one[2], ours), (two[2], name)) is False:
            facts.append(f"{name} and {ours}: other values")
    packed = any(k in place.config for k in ("quantization_config", "compression_config"))
    if facts and not packed:
        yield WEIGHTS.found(f"{len(facts)} tensors differ between {loaded.name!r} and {other.name!r}, e.g. {facts[0]}",
                            file=shown(other.files[0]), evidence="; ".join(facts[:10]))  # fmt: skip


def _params(place: Place) -> Iterator[Finding]:
    """``params.json`` (also the one of ``original/``) against ``config.json``."""
    for base in ("params.json", "original/params.json"):
        params = place.json(base)
        if not params or not place.config or not {"dim", "n_layers"} <= params.keys():
            continue
        wrong = []
        for key, names in _PARAMS.items():
            ours, theirs = whole_number(params.get(key)), _first(place.text, names)
            if ours is not None and theirs is not None and ours != theirs:
                wrong.append(f"{key} {ours}, {names[0]} {theirs}")
        if wrong:
            yield CONFIGS.found(f"{base} and config.json differ: {wrong[0]}", file=shown(place.prefix + base),
                                evidence="; ".join(wrong))  # fmt: skip


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((n for k in names if (n := whole_number(config.get(k))) is not None), None)


def _ggufs(place: Place) -> Iterator[Finding]:
    """Each GGUF file: its vocabulary against its embeddings, its metadata against the config beside it."""
    for name in place.names:
        header = place.folder.ggufs.get(place.prefix + name)
        if header is None:
            continue
        file = shown(place.prefix + name)
        yield from _gguf_rows(header, file, place)
        kind = header.metadata.get("general.architecture")
        adapter = header.metadata.get("general.type") == "adapter"
        if not place.config or not isinstance(kind, str) or _NO_MODEL.search(name) or adapter:
            continue
        wrong = []
        for key, names in _GGUF.items():
            ours, theirs = whole_number(header.metadata.get(f"{kind}.{key}")), _first(place.text, names)
            drafts = whole_number(place.text.get("num_nextn_predict_layers")) or 0
            if ours is not None and theirs is not None and ours not in (theirs, theirs + drafts):
                wrong.append(f"{kind}.{key} {ours}, {names[0]} {theirs}")
        if wrong:
            yield CONFIGS.found(f"{name} and config.json differ: {wrong[0]}", file=file, evidence="; ".join(wrong))


def _gguf_rows(header: GgufHeader, file: str, place: Place) -> Iterator[Finding]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    shape = (tensors_of(place.folder, place.prefix + file) or {}).get("token_embd.weight", ("", ()))[1]
    count = len(tokens) if isinstance(tokens, list) else getattr(tokens, "count", None)
    if count is None or len(shape) != 2:
        return
    if count > shape[0]:
        yield BROKEN_GGUF.found(f"{count} tokens and {shape[0]} embeddings", file=file, place="tokenizer.ggml.tokens")
    elif count < shape[0]:
        yield BROKEN_GGUF.found(f"{count} tokens and {shape[0]} embeddings: the others can't be named", file=file,
                                place="tokenizer.ggml.tokens", severity="note")  # fmt: skip
