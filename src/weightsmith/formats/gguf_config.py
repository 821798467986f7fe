"""What a GGUF file says about its model: the known architectures, and the Hugging Face config that follows.

A family is read only when everything in the file is understood. Metadata that changes the mathematics in a way
that the Hugging Face class can't express is refused, since a model that is half right would be worse than none.
transformers' own GGUF reader ignores rope scaling, Llama 3's and Phi-3's rope factors, Gemma's soft caps, layer
pattern and attention scale, and a partial rotation; here they are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedModel
from . import gguf
from .gguf import GgufHeader, GgufTensor

# -- architectures -----------------------------------------------------------------------------------------

# A shape is a word over D hidden, F feed-forward, H head, K all key heads, Q all query heads, P = Q + 2K, G = 2F.
Leaves = Mapping[str, tuple[str, str]]
_ATTENTION: Leaves = {
    "attn_norm.weight": ("input_layernorm.weight", "D"),
    "attn_q.weight": ("self_attn.q_proj.weight", "QD"),
    "attn_k.weight": ("self_attn.k_proj.weight", "KD"),
    "attn_v.weight": ("self_attn.v_proj.weight", "KD"),
    "attn_output.weight": ("self_attn.o_proj.weight", "DQ"),
}
_MLP: Leaves = {
    "ffn_norm.weight": ("post_attention_layernorm.weight", "D"),
    "ffn_gate.weight": ("mlp.gate_proj.weight", "FD"),
    "ffn_up.weight": ("mlp.up_proj.weight", "FD"),
    "ffn_down.weight": ("mlp.down_proj.weight", "DF"),
}
_QKV_BIAS: Leaves = {
    "attn_q.bias": ("self_attn.q_proj.bias", "Q"),
    "attn_k.bias": ("self_attn.k_proj.bias", "K"),
    "attn_v.bias": ("self_attn.v_proj.bias", "K"),
}
_ATTENTION_BIAS: Leaves = {**_QKV_BIAS, "attn_output.bias": ("self_attn.o_proj.bias", "D")}
_MLP_BIAS: Leaves = {
    "ffn_gate.bias": ("mlp.gate_proj.bias", "F"),
    "ffn_up.bias": ("mlp.up_proj.bias", "F"),
    "ffn_down.bias": ("mlp.down_proj.bias", "D"),
}
_QK_NORM: Leaves = {
    "attn_q_norm.weight": ("self_attn.q_norm.weight", "H"),
    "attn_k_norm.weight": ("self_attn.k_norm.weight", "H"),
}
_GEMMA: Leaves = {
    **_ATTENTION, **_MLP,
    "ffn_norm.weight": ("pre_feedforward_layernorm.weight", "D"),
    "post_attention_norm.weight": ("post_attention_layernorm.weight", "D"),
    "post_ffw_norm.weight": ("post_feedforward_layernorm.weight", "D"),
}  # fmt: skip
_PHI3: Leaves = {
    "attn_norm.weight": ("input_layernorm.weight", "D"),
    "attn_qkv.weight": ("self_attn.qkv_proj.weight", "PD"),
    "attn_output.weight": ("self_attn.o_proj.weight", "DQ"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "D"),
    "ffn_up.weight": ("mlp.gate_up_proj.weight", "GD"),
    "ffn_down.weight": ("mlp.down_proj.weight", "DF"),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: its transformers names, its tensors per layer, and what the GGUF converter did to them.

    ``optional`` are groups of tensors, each present whole or not at all, by the config flag that tells.
    """

    model_type: str
    model_class: str
    leaves: Leaves
    optional: Mapping[str, Leaves] = field(default_factory=dict)
    permuted: bool = False  # queries and keys interleaved for ggml's rotary embedding
    norm_offset: float = 0.0  # added to every norm weight
    activation: str = "hidden_act"
    partial_rotary: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", {**_ATTENTION, **_MLP},
                     {"attention_bias": _ATTENTION_BIAS, "mlp_bias": _MLP_BIAS}, permuted=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", {**_ATTENTION, **_QKV_BIAS, **_MLP}),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", {**_ATTENTION, **_QK_NORM, **_MLP},
                     {"attention_bias": _ATTENTION_BIAS}),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _GEMMA, norm_offset=1.0, activation="hidden_activation"),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", {**_GEMMA, **_QK_NORM}, norm_offset=1.0,
                      activation="hidden_activation"),
    "phi3": Family("phi3", "Phi3ForCausalLM", _PHI3, partial_rotary=True),
}  # fmt: skip
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# metadata that changes what the model computes, with the only value that the classes above can express
_NEUTRAL: dict[str, Any] = {
    "expert_count": 0, "logit_scale": 1.0, "embedding_scale": 1.0, "residual_scale": 1.0, "attention.scale": None,
    "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "attention.causal": True,
    "attention.temperature_scale": 0.0, "attention.shared_kv_layers": 0, "use_parallel_residual": False,
    "rope.scaling.yarn_log_multiplier": 0.0, "rope.dimension_sections": None, "nextn_predict_layers": 0,
}  # fmt: skip


_NEUTRAL_BUT_GEMMA: dict[str, Any] = {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0}


class Model:
    """A header read as one of the known families: its dimensions, and its metadata with types checked."""

    def __init__(self, header: GgufHeader) -> None:
        self.header, self.path, self.arch = header, header.path, header.architecture
        if self.arch not in FAMILIES:
            raise UnsupportedModel(
                f"GGUF architecture {self.arch!r}; known: {', '.join(sorted(FAMILIES))}",
                where=self.path,
                hint="use the model's original Hugging Face folder instead",
            )
        if header.metadata.get("general.type", "model") != "model":
            raise UnsupportedModel(f"a GGUF of type {header.metadata['general.type']!r}", where=self.path)
        if self.metadata("split.count", int, 1) > 1:
            raise UnsupportedModel(
                "one part of a split GGUF", where=self.path, hint="join the parts with `llama-gguf-split --merge`"
            )
        self.family = FAMILIES[self.arch]
        self.tensors = {t.name: t for t in header.tensors}
        for key, neutral in (_NEUTRAL | ({} if self.arch.startswith("gemma") else _NEUTRAL_BUT_GEMMA)).items():
            if header.metadata.get(f"{self.arch}.{key}", neutral) != neutral:
                value = header.metadata[f"{self.arch}.{key}"]
                raise UnsupportedModel(f"{self.arch} with {key} = {value!r}", where=self.path)
        self.layers, self.hidden = self.integer("block_count"), self.integer("embedding_length")
        self.heads, self.feed_forward = self.integer("attention.head_count"), self.integer("feed_forward_length")
        self.kv_heads = self.integer("attention.head_count_kv", self.heads)
        if self.layers > len(self.tensors):
            raise FormatError(f"{self.layers} layers and {len(self.tensors)} tensors", where=self.path)
        fused = "blk.0.attn_qkv.weight" in self.tensors
        rows = self.tensor("blk.0.attn_qkv.weight" if fused else "blk.0.attn_q.weight").rows
        self.head_dim = rows // (self.heads + 2 * self.kv_heads if fused else self.heads)
        if self.head_dim < 1 or self.heads % self.kv_heads:
            raise FormatError(f"{self.heads} heads and {self.kv_heads} for keys in {rows} rows", where=self.path)

    def metadata(self, key: str, kind: type, default: Any) -> Any:
        value = self.header.metadata.get(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if value is not default and type(value) is not kind:
            raise FormatError(f"{key} is {value!r:.60}, not {kind.__name__}", where=self.path)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number; a per-layer array counts where all layers agree."""
        value = self.header.metadata.get(f"{self.arch}.{key}", default)
        if isinstance(value, list) and value:
            if any(v != value[0] for v in value):
                raise UnsupportedModel(f"{self.arch}.{key} differs between layers", where=self.path)
            value = value[0]
        if type(value) is not int or value < 1:
            raise FormatError(f"{self.arch}.{key} is {value!r:.60}, not a positive number", where=self.path)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number, not negative, as the shortest decimal that has the same fp32 value."""
        value = self.metadata(f"{self.arch}.{key}", float, default)
        if value is None or not 0 <= value < math.inf:
            raise FormatError(f"{self.arch}.{key} is {value!r}", where=self.path)
        return shortest(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.real(key, default)
        if not value:
            raise FormatError(f"{self.arch}.{key} is zero", where=self.path)
        return value

    def token(self, name: str) -> int | None:
        """Id of a special token, or ``None``; -1 and its unsigned twin mean none."""
        value: int | None = self.metadata(f"tokenizer.ggml.{name}_token_id", int, None)
        return None if value in (-1, 0xFFFFFFFF) else value

    def tensor(self, name: str) -> GgufTensor:
        if name not in self.tensors:
            raise FormatError(f"the {self.arch} model lacks tensor {name!r}", where=self.path)
        return self.tensors[name]

    def present(self, leaves: Leaves) -> bool:
        return any(f"blk.0.{leaf}" in self.tensors for leaf in leaves)

    def shape(self, word: str) -> tuple[int, ...]:
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {"D": self.hidden, "F": self.feed_forward, "G": 2 * self.feed_forward, "H": self.head_dim,
                 "K": k, "P": q + 2 * k, "Q": q}  # fmt: skip
        return tuple(sizes[letter] for letter in word)


def shortest(value: float) -> float:
    """``value``, or the shortest decimal with the same fp32 bits when it is an fp32: 9.99999975e-06 to 1e-05."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if math.isfinite(value) and float(single) == value else value


# -- config ------------------------------------------------------------------------------------------------


def config_from_gguf(header: GgufHeader) -> dict[str, Any]:
    """The ``config.json`` of the model, in transformers 5 form; no vocabulary is needed in ``header``.

    Raises:
        UnsupportedModel: an architecture or a feature of it that is not known here; it is named.
        FormatError: metadata or tensors that the architecture needs are missing or contradict each other.
    """
    model = Model(header)
    family = model.family
    config: dict[str, Any] = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        "dtype": "bfloat16",
        "vocab_size": model.tensor("token_embd.weight").rows,
        "hidden_size": model.hidden,
        "intermediate_size": model.feed_forward,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": model.integer("context_length"),
        "rms_norm_eps": model.real("attention.layer_norm_rms_epsilon"),
        family.activation: "gelu_pytorch_tanh" if model.arch.startswith("gemma") else "silu",
        "rope_parameters": _rope(model),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "bos_token_id": model.token("bos"),
        "eos_token_id": model.token("eos"),
        "pad_token_id": model.token("padding"),
    }
    if model.arch not in ("qwen2", "phi3") or model.head_dim * model.heads != model.hidden:
        config["head_dim"] = model.head_dim
    config |= {flag: model.present(leaves) for flag, leaves in family.optional.items()}
    config |= {"gemma2": _gemma, "gemma3": _gemma, "phi3": _phi3}.get(model.arch, lambda _: {})(model)
    return config


def _gemma(model: Model) -> dict[str, Any]:
    """Windows, soft caps and the attention scale, which the file leaves to the reader: the largest model of each
    generation (46 and 62 layers) scales by hidden size over heads, all others by the head size."""
    second = model.arch == "gemma2"
    largest = model.layers == (46 if second else 62)
    pattern: Any = model.header.metadata.get(f"{model.arch}.attention.sliding_window_pattern", 2 if second else 6)
    if type(pattern) is int and pattern > 0:
        pattern = [(i + 1) % pattern != 0 for i in range(model.layers)]
    if not isinstance(pattern, list) or len(pattern) != model.layers:
        raise FormatError(f"{model.arch}.attention.sliding_window_pattern is {pattern!r:.60}", where=model.path)

    def cap(kind: str, default: float) -> float | None:
        return model.real(f"{kind}_logit_softcapping", default if second else 0.0) or None

    return {
        "query_pre_attn_scalar": model.hidden // model.heads if largest else model.head_dim,
        "sliding_window": model.integer("attention.sliding_window", 4096 if second else None),
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern],
        "attn_logit_softcapping": cap("attn", 50.0),
        "final_logit_softcapping": cap("final", 30.0),
        "attention_bias": False,
    }


def _phi3(model: Model) -> dict[str, Any]:
    context = model.integer("context_length")
    return {
        "original_max_position_embeddings": model.integer("rope.scaling.original_context_length", context),
        "sliding_window": model.metadata("phi3.attention.sliding_window", int, 0) or None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }


def _rope(model: Model) -> dict[str, Any]:
    """``rope_parameters``; the factors of Llama 3 and Phi-3 come as tensors, not as metadata."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.positive("rope.freq_base", 10_000.0)}
    rotated = model.integer("rope.dimension_count", model.head_dim)
    if model.family.partial_rotary:
        rope["partial_rotary_factor"] = rotated / model.head_dim
    elif rotated != model.head_dim:
        raise UnsupportedModel(f"{model.arch} that rotates {rotated} of {model.head_dim} dimensions", where=model.path)
    kind = model.metadata(f"{model.arch}.rope.scaling.type", str, "none")
    attention = model.positive("rope.scaling.attn_factor", 1.0)
    if "rope_factors_long.weight" in model.tensors or kind == "longrope":
        rope |= _long_rope(model, attention)
    elif "rope_freqs.weight" in model.tensors:
        rope |= _llama3_rope(model, rope["rope_theta"])
    elif kind == "yarn":
        factor = model.positive("rope.scaling.factor")
        rope |= {"rope_type": "yarn", "factor": factor,
                 "original_max_position_embeddings": model.integer("rope.scaling.original_context_length")}  # fmt: skip
        rope |= {b: model.real(f"rope.scaling.yarn_{b}", d) for b, d in (("beta_fast", 32.0), ("beta_slow", 1.0))}
        if attention != 1.0:  # ggml multiplies its own magnitude correction by it
            rope["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": model.positive("rope.scaling.factor")}
    elif kind != "none":
        raise UnsupportedModel(f"rope scaling {kind!r}; known: none, linear, yarn, longrope", where=model.path)
    elif (legacy := model.positive("rope.scale_linear", 1.0)) != 1.0:
        rope |= {"rope_type": "linear", "factor": legacy}
    if attention != 1.0 and rope["rope_type"] in ("default", "linear", "llama3"):
        raise UnsupportedModel(f"{model.arch} with rope.scaling.attn_factor = {attention}", where=model.path)
    if model.arch == "gemma3":  # scaling is for the layers that see everything; the others have their own base
        local = model.positive("rope.freq_base_swa", 10_000.0)
        return {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return rope


def _factors(model: Model, name: str) -> list[float]:
    values = gguf.dequantize(model.tensor(name)).ravel()
    if values.size > model.head_dim or not (np.isfinite(values).all() and (values > 0).all()):
        raise FormatError(f"tensor {name!r} holds no rope factors", where=model.path)
    return [shortest(float(v)) for v in values]


def _long_rope(model: Model, attention: float) -> dict[str, Any]:
    original = model.integer("rope.scaling.original_context_length")
    long, short = (_factors(model, f"rope_factors_{kind}.weight") for kind in ("long", "short"))
    scale = model.integer("context_length") / original
    implied = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 < original else 1.0
    found = {"rope_type": "longrope", "long_factor": long, "short_factor": short,
             "original_max_position_embeddings": original}  # fmt: skip
    return found if math.isclose(attention, implied, rel_tol=1e-5) else found | {"attention_factor": attention}


def _llama3_rope(model: Model, theta: float) -> dict[str, Any]:
    """Llama 3's parameters from the divisors that they gave; all ones mean that nothing is scaled."""
    divisors = np.array(_factors(model, "rope_freqs.weight"))
    if (divisors == 1.0).all():
        return {}
    low, high, factor = 1.0, 4.0, float(divisors.max())
    original = model.integer("rope.scaling.original_context_length", 8192)
    turns = original / (2 * math.pi * theta ** (np.arange(len(divisors)) / len(divisors)))  # within that context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), divisors, rtol=1e-4):
        raise UnsupportedModel("rope factors that don't follow Llama 3's rule", where=model.path)
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original}  # fmt: skip
