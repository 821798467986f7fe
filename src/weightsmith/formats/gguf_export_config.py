"""What a Hugging Face config becomes in GGUF: names and shapes of all tensors, and the architecture's metadata.

The inverse of :mod:`.gguf_config`, from the same table of families.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedModel
from .gguf import Array
from .gguf_config import FAMILIES, Family
from .gguf_write import Value
from .safetensors import TensorSpec

#: ``model_type`` -> GGUF architecture
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
                 "gemma3_text": "gemma3"}  # fmt: skip
_LEFTOVERS = (".rotary_emb.inv_freq",)  # buffers that old versions of transformers saved


@dataclass(frozen=True)
class Layout:
    """A model as GGUF has it: GGUF tensor name -> (transformers name, shape), and metadata."""

    arch: str
    family: Family
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, Value]
    rope_divisors: Array | None

    @property
    def grouped(self) -> bool:
        """Whether several queries share a key."""
        return self.kv_heads < self.heads

    def heads_of(self, name: str) -> int:
        """Heads whose rows must be interleaved in the tensor of this GGUF name; 0 for none."""
        if not self.family.permuted:
            return 0
        return self.heads if ".attn_q." in name else self.kv_heads if ".attn_k." in name else 0

    def offset_of(self, name: str) -> float:
        """What is added to the values of this tensor."""
        return self.family.norm_offset if "norm.weight" in name else 0.0


class _Config:
    """A ``config.json`` with types checked on the way."""

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values, self.where = values, where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise FormatError(f"config.json: {key} is {value!r:.60}, not a positive whole number", where=self.where)
        return value

    def real(self, key: str, default: float | None = None, of: Mapping[str, Any] | None = None) -> float:
        value = (self.values if of is None else of).get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise FormatError(f"config.json: {key} is {value!r:.60}, not a positive number", where=self.where)
        return float(value)

    def refuse(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"GGUF can't say: {what}", where=self.where)


def layout_of(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec], where: Path) -> Layout:
    """The GGUF form of a model, everything checked against its tensors.

    Raises:
        UnsupportedModel: a family, a feature or a tensor that GGUF can't say.
        FormatError: a tensor is missing or has another shape than the config says.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise UnsupportedModel(f"model type {kind!r} can't be exported; known: {', '.join(sorted(ARCHITECTURES))}",
                               where=where)  # fmt: skip
    arch, found = ARCHITECTURES[kind], _Config(config, where)
    family = FAMILIES[arch]
    layers, hidden = found.integer("num_hidden_layers"), found.integer("hidden_size")
    heads = found.integer("num_attention_heads", 8 if arch.startswith("gemma") else None)
    kv_heads = found.integer("num_key_value_heads", heads)
    head_dim = found.integer("head_dim", _default_head(arch, hidden, heads))
    if heads % kv_heads or head_dim % 2:
        raise FormatError(f"config.json: {heads} heads of {head_dim}, {kv_heads} for keys", where=where)
    vocab = found.integer("vocab_size")
    sizes = {"D": hidden, "F": found.integer("intermediate_size"), "H": head_dim, "K": kv_heads * head_dim,
             "Q": heads * head_dim}  # fmt: skip
    _check_features(found, arch, family)
    names = _names(config, family, layers, bool(config.get("tie_word_embeddings", arch.startswith("gemma"))))
    shapes = {source: (name, tuple({**sizes, "V": vocab}[letter] for letter in word)) for source, (name, word)
              in names.items()}  # fmt: skip
    _check_tensors(shapes, tensors, where)
    rope, divisors = _rope(found, arch, head_dim)
    metadata: dict[str, Value] = {
        f"{arch}.block_count": layers, f"{arch}.context_length": _context(found, kind),
        f"{arch}.embedding_length": hidden, f"{arch}.feed_forward_length": sizes["F"],
        f"{arch}.attention.head_count": heads, f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": found.real("rms_norm_eps", 1e-6),
        f"{arch}.attention.key_length": head_dim, f"{arch}.attention.value_length": head_dim,
        f"{arch}.vocab_size": vocab, f"{arch}.rope.dimension_count": head_dim, **rope,
    }  # fmt: skip
    if arch.startswith("gemma"):
        metadata |= _gemma(found, arch, layers, hidden, heads, head_dim)
    return Layout(arch, family, layers, heads, kv_heads, head_dim, vocab, shapes, metadata, divisors)


def _default_head(arch: str, hidden: int, heads: int) -> int:
    """``head_dim`` where the config leaves it out."""
    return 256 if arch.startswith("gemma") else 128 if arch == "qwen3" else hidden // heads


def _context(found: _Config, kind: str) -> int:
    context = found.integer("max_position_embeddings")
    window = found.values.get("sliding_window")
    return min(context, window) if kind == "mistral" and type(window) is int and window > 0 else context


def _check_features(found: _Config, arch: str, family: Family) -> None:
    """Refuse what changes the mathematics and has no place in the file."""
    values = found.values
    wanted = "gelu_pytorch_tanh" if arch.startswith("gemma") else "silu"
    if values.get(family.activation, values.get("hidden_act", wanted)) not in (wanted, None):
        raise found.refuse(f"activation {values.get(family.activation)!r} of {arch}")
    if values.get("use_sliding_window") and values.get("sliding_window"):
        raise found.refuse(f"a sliding window in {arch}")
    if arch == "gemma3" and (values.get("attn_logit_softcapping") or values.get("final_logit_softcapping")):
        raise found.refuse("soft caps in gemma3")
    if arch == "gemma3" and values.get("use_bidirectional_attention"):
        raise found.refuse("attention in both directions")
    if arch == "qwen3" and values.get("attention_bias"):  # llama.cpp refuses the bias of the attention's output
        raise found.refuse("attention_bias in qwen3")
    flags = {flag for flag in ("attention_bias", "mlp_bias") if values.get(flag)} - family.optional.keys()
    if flags:
        raise found.refuse(f"{min(flags)} in {arch}")


def _names(config: Mapping[str, Any], family: Family, layers: int, tied: bool) -> dict[str, tuple[str, str]]:
    """GGUF name -> (transformers name, shape as a word; V stands for the vocabulary)."""
    leaves = dict(family.leaves)
    for flag, group in family.optional.items():
        leaves |= group if config.get(flag) else {}
    found = {"token_embd.weight": ("model.embed_tokens.weight", "VD")}
    for layer in range(layers):
        found |= {f"blk.{layer}.{leaf}": (f"model.layers.{layer}.{name}", word)
                  for leaf, (name, word) in leaves.items()}  # fmt: skip
    found["output_norm.weight"] = ("model.norm.weight", "D")
    if not tied:
        found["output.weight"] = ("lm_head.weight", "VD")
    return found


def _check_tensors(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], tensors: Mapping[str, TensorSpec], where: Path
) -> None:
    for name, shape in shapes.values():
        if name not in tensors:
            raise FormatError(f"the model lacks tensor {name!r}", where=where)
        if tensors[name].shape != shape:
            raise FormatError(f"tensor {name!r} is {list(tensors[name].shape)}, not {list(shape)}", where=where)
    known = {name for name, _ in shapes.values()} | {"lm_head.weight"}  # a tied one is never read
    unknown = [n for n in tensors if n not in known and not n.endswith(_LEFTOVERS)]
    if unknown:
        raise UnsupportedModel(f"GGUF has no place for tensor {unknown[0]!r} of this family", where=where)


def _gemma(found: _Config, arch: str, layers: int, hidden: int, heads: int, head_dim: int) -> dict[str, Value]:
    values, second = found.values, arch == "gemma2"
    largest = layers == (46 if second else 62)
    scale = hidden // heads if largest else head_dim
    if found.real("query_pre_attn_scalar", 256) != scale:
        raise found.refuse(f"query_pre_attn_scalar {values.get('query_pre_attn_scalar')} with heads of {head_dim}")
    period = 2 if second else 6
    types = values.get("layer_types")
    if types is None:
        period = found.integer("sliding_window_pattern", period)
    elif types != _pattern(period, layers):
        period = next((p for p in range(1, layers + 1) if types == _pattern(p, layers)), 0)
        if not period:
            raise found.refuse("layers with and without a window in no regular order")
    pairs: dict[str, Value] = {f"{arch}.attention.sliding_window": found.integer("sliding_window", 4096)}
    if period != (2 if second else 6):
        pairs[f"{arch}.attention.sliding_window_pattern"] = period
    if second:
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            pairs[f"{arch}.{key}"] = found.real(key)
    return pairs


def _pattern(period: int, layers: int) -> list[str]:
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


# -- rotary embedding --------------------------------------------------------------------------------------


def _rope(found: _Config, arch: str, head_dim: int) -> tuple[dict[str, Value], Array | None]:
    """Metadata of the rotary embedding, and Llama 3's divisors ``[head_dim / 2]`` where it scales by them."""
    default = 1_000_000.0 if arch == "gemma3" else 10_000.0
    rope = found.values.get("rope_parameters")
    if rope is None:  # as transformers wrote it before version 5
        rope = dict(found.values.get("rope_scaling") or {})
        rope["rope_theta"] = found.real("rope_theta", default)
    if not isinstance(rope, dict):
        raise FormatError("config.json: rope_parameters is no object", where=found.where)
    pairs: dict[str, Value] = {}
    if arch == "gemma3":
        local = rope.get("sliding_attention") or {"rope_theta": found.values.get("rope_local_base_freq", 10_000.0)}
        if local.get("rope_type", "default") != "default":
            raise found.refuse("a scaled rotary embedding in layers with a window")
        pairs["gemma3.rope.freq_base_swa"] = found.real("rope_theta", 10_000.0, local)
        rope = rope.get("full_attention") or rope
    if rope.get("partial_rotary_factor", found.values.get("partial_rotary_factor", 1.0)) not in (1.0, 1):
        raise found.refuse("a rotary embedding of a part of each head")
    pairs[f"{arch}.rope.freq_base"] = theta = found.real("rope_theta", default, rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return pairs, None
    factor = found.real("factor", None, rope)
    if kind == "linear":
        return pairs | {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": factor}, None
    original = rope.get("original_max_position_embeddings")
    if type(original) is not int or original < 1:
        raise FormatError(f"config.json: original_max_position_embeddings is {original!r:.60}", where=found.where)
    if kind == "yarn":
        return pairs | _yarn(found, arch, rope, factor, original), None
    if kind != "llama3" or arch == "gemma3":
        raise found.refuse(f"rope scaling {kind!r} of {arch}")
    if original != 8192:
        pairs[f"{arch}.rope.scaling.original_context_length"] = original
    return pairs, _divisors(found, rope, theta, factor, original, head_dim)


def _yarn(found: _Config, arch: str, rope: Mapping[str, Any], factor: float, original: int) -> dict[str, Value]:
    if rope.get("mscale") or rope.get("mscale_all_dim") or rope.get("truncate") is False:
        raise found.refuse("mscale or truncate of a yarn rotary embedding")
    pairs: dict[str, Value] = {
        f"{arch}.rope.scaling.type": "yarn", f"{arch}.rope.scaling.factor": factor,
        f"{arch}.rope.scaling.original_context_length": original,
    }  # fmt: skip
    for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if (value := found.real(key, usual, rope)) != usual:
            pairs[f"{arch}.rope.scaling.yarn_{key}"] = value
    if rope.get("attention_factor") is not None:  # ggml multiplies its own magnitude correction by it
        pairs[f"{arch}.rope.scaling.attn_factor"] = found.real("attention_factor", None, rope) / (
            0.1 * math.log(factor) + 1.0
        )
    return pairs


def _divisors(
    found: _Config, rope: Mapping[str, Any], theta: float, factor: float, original: int, head_dim: int
) -> Array:
    """Llama 3's rule: long waves are slowed by ``factor``, short ones not, those between by a mix."""
    low, high = found.real("low_freq_factor", 1.0, rope), found.real("high_freq_factor", 4.0, rope)
    if high <= low:
        raise FormatError("config.json: high_freq_factor must exceed low_freq_factor", where=found.where)
    turns = original / (2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)
