"""Pico models: every family in a few kilobytes, with nothing left at a value that could hide a mistake.

Every norm gain, every bias and every matrix is random: a model with gains of one, or with biases of zero, would pass
with the gain or the bias forgotten. The tokenizer is a real fast one with one token a character, so that prompts of
words differ from one another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightsmith.checkpoint import INDEX, Checkpoint, open_checkpoint
from weightsmith.direction import Direction
from weightsmith.formats.safetensors import read_header, write_file
from weightsmith.options import RunOptions
from weightsmith.records import DirectionMeta
from weightsmith.runtime.load import identity

VOCAB = 96
LAYERS = 2
WIDTH = 32
BOS, EOS, PAD, UNK = 1, 2, 0, 3
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]
_TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
#: prompts of unequal length, for real inputs
PROMPTS = ("the sea", "a letter to an old friend, please", "why?", "say something kind about the rain in the hills")
CPU = RunOptions(device="cpu", dtype="float32", threads=1)

_BASE = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
         "max_position_embeddings": 512, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
         "initializer_range": 0.02, "tie_word_embeddings": False}  # fmt: skip
_KV = {"num_key_value_heads": 2, "intermediate_size": 64}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_VISION = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
           "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
_SLIDING = {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_LINEAR = {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
           "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}  # fmt: skip
#: latent attention (MLA), and a plain layer before the mixtures
_LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
           "qk_nope_head_dim": 8, "v_head_dim": 8}  # fmt: skip
_ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
           "routed_scaling_factor": 1.5}  # fmt: skip
_GEMMA4 = {"head_dim": 8, "global_head_dim": 16, "sliding_window": 16, "attention_bias": True,
           "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": VOCAB,
           "hidden_size_per_layer_input": 0, "tie_word_embeddings": True}  # fmt: skip

#: family -> (model_type, config); biases are switched on wherever the family's code has a switch
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_BASE, **_KV}),
    "llama_bias": ("llama", {**_BASE, **_KV, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_BASE, **_KV, "sliding_window": None}),
    "qwen2": ("qwen2", {**_BASE, **_KV}),
    "qwen3": ("qwen3", {**_BASE, **_KV, "head_dim": 8}),
    "qwen3_bias": ("qwen3", {**_BASE, **_KV, "head_dim": 8, "attention_bias": True}),
    "gemma2": ("gemma2", {**_BASE, **_KV, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
                          "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "attention_bias": True,
                          "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {**_BASE, **_KV, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
                               "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True,
                               "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {**_BASE, **_KV, "attention_bias": True}),
    "phi3": ("phi3", {**_BASE, **_KV, "original_max_position_embeddings": 512}),
    "gpt2": ("gpt2", {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 512,
                      "n_inner": 64, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}),
    "gpt_neox": ("gpt_neox", {**_BASE, "intermediate_size": 64, "use_parallel_residual": True}),
    "mixtral": ("mixtral", {**_BASE, **_KV, "num_experts_per_tok": 2, "num_local_experts": 3}),
    "qwen3_moe": ("qwen3_moe", {**_BASE, **_KV, **_MOE, "head_dim": 8, "num_experts": 3, "norm_topk_prob": True}),
    "qwen2_moe": ("qwen2_moe", {**_BASE, **_KV, **_MOE, "num_experts": 3, "shared_expert_intermediate_size": 32}),
    "gpt_oss": ("gpt_oss", {**_BASE, **_KV, "head_dim": 8, "num_experts_per_tok": 2, "num_local_experts": 3,
                            "sliding_window": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "olmo3": ("olmo3", {**_BASE, **_KV, **_SLIDING, "attention_bias": True}),
    "exaone4": ("exaone4", {**_BASE, **_KV, **_SLIDING}),
    "gemma4": ("gemma4_text", {**_BASE, **_KV, **_GEMMA4, "hidden_size_per_layer_input": 8,
                               "final_logit_softcapping": 3.0}),
    "gemma4_unified": ("gemma4_unified_text", {**_BASE, **_KV, **_GEMMA4}),
    "glm": ("glm", {**_BASE, **_KV, "head_dim": 8, "attention_bias": True}),
    "glm4": ("glm4", {**_BASE, **_KV, "head_dim": 8, "attention_bias": True}),
    "glm4_moe": ("glm4_moe", {**_BASE, **_KV, **_MOE, **_ROUTED, "head_dim": 8, "attention_bias": True,
                              "use_qk_norm": True}),
    "deepseek_v2": ("deepseek_v2", {**_BASE, **_KV, **_MOE, **_ROUTED, **_LATENT, "attention_bias": True,
                                    "mlp_bias": True, "topk_method": "group_limited_greedy"}),
    "deepseek_v3": ("deepseek_v3", {**_BASE, **_KV, **_MOE, **_ROUTED, **_LATENT, "attention_bias": True}),
    "qwen3_5": ("qwen3_5_text", {**_BASE, **_KV, **_LINEAR, "attention_bias": True}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {**_BASE, **_KV, **_MOE, **_LINEAR, "num_experts": 3,
                                         "shared_expert_intermediate_size": 32}),
    "qwen3_next": ("qwen3_next", {**_BASE, **_KV, **_MOE, **_LINEAR, "num_experts": 3, "attention_bias": True,
                                  "shared_expert_intermediate_size": 32}),
    "smollm3": ("smollm3", {**_BASE, **_KV, "attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 0]}),
    "ministral3": ("ministral3", {**_BASE, **_KV, "head_dim": 8}),
    "cohere2": ("cohere2", {**_BASE, **_KV, **_SLIDING, "attention_bias": True, "logit_scale": 0.25,
                            "tie_word_embeddings": True}),
    "granite": ("granite", {**_BASE, **_KV, "attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.4,
                            "embedding_multiplier": 2.0, "logits_scaling": 2.0, "attention_multiplier": 0.3}),
    "olmoe": ("olmoe", {**_BASE, **_KV, "num_experts_per_tok": 2, "num_experts": 3, "attention_bias": True}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**_BASE, **_KV, "head_dim": 8, "attention_bias": True}),
    "lfm2": ("lfm2", {**_BASE, **_KV, "layer_types": ["conv", "full_attention"], "conv_bias": True,
                      "block_auto_adjust_ff_dim": False}),
    "llama4": ("llama4_text", {**_BASE, **_KV, "head_dim": 8, "num_experts_per_tok": 2, "num_local_experts": 3,
                               "intermediate_size_mlp": 48, "moe_layers": [1], "attention_bias": True,
                               "attention_chunk_size": 16, "no_rope_layers": [1, 0]}),
    "gemma": ("gemma", {**_BASE, **_KV, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "seed_oss": ("seed_oss", {**_BASE, **_KV, "head_dim": 8, "attention_bias": True, "attention_out_bias": True,
                              "mlp_bias": True}),
    "glm4_moe_lite": ("glm4_moe_lite", {**_BASE, **_KV, **_MOE, **_ROUTED, **_LATENT, "attention_bias": True,
                                        "mlp_layer_types": ["dense", "sparse"]}),
    "minimax_m2": ("minimax_m2", {**_BASE, **_KV, "head_dim": 8, "rotary_dim": 4, "num_experts_per_tok": 2,
                                  "num_local_experts": 3}),
    # the same families in other shapes
    "gemma4_moe": ("gemma4_text", {**_BASE, **_KV, **_GEMMA4, "enable_moe_block": True, "num_experts": 3,
                                   "top_k_experts": 2, "moe_intermediate_size": 32}),
    "gemma4_shared": ("gemma4_text", {**_BASE, **_KV, **_GEMMA4, "num_hidden_layers": 4, "hidden_size_per_layer_input": 8,
                                      "layer_types": ["sliding_attention", "full_attention"] * 2,
                                      "num_kv_shared_layers": 2, "use_double_wide_mlp": True}),
    "qwen3_next_mixed": ("qwen3_next", {**_BASE, **_KV, **_MOE, **_LINEAR, "num_experts": 3, "mlp_only_layers": [0],
                                        "shared_expert_intermediate_size": 32}),
    "deepseek_v3_plain_q": ("deepseek_v3", {**_BASE, **_KV, **_MOE, **_ROUTED, **_LATENT, "q_lora_rank": None,
                                            "first_k_dense_replace": 0}),
    "gpt_neox_serial": ("gpt_neox", {**_BASE, "intermediate_size": 64, "use_parallel_residual": False}),
    "qwen3_moe_mixed": ("qwen3_moe", {**_BASE, **_KV, **_MOE, "head_dim": 8, "num_experts": 3,
                                      "mlp_only_layers": [0], "attention_bias": True}),
    "gemma3_images": ("gemma3", {
        "text_config": {**_BASE, **_KV, "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8,
                        "sliding_window": 16, "tie_word_embeddings": True},
        "vision_config": _VISION, "mm_tokens_per_image": 4, "boi_token_index": 93, "eoi_token_index": 94,
        "image_token_index": 95}),
    "gemma4_images": ("gemma4", {
        "text_config": {**_BASE, **_KV, **_GEMMA4, "model_type": "gemma4_text", "hidden_size_per_layer_input": 8},
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "patch_size": 4,
                          "position_embedding_size": 64},
        "audio_config": None, "image_token_id": 95, "boi_token_id": 93, "eoi_token_id": 94, "video_token_id": 92,
        "audio_token_id": 91}),
    "mistral3_images": ("mistral3", {
        "text_config": {**_BASE, **_KV, "model_type": "ministral3", "head_dim": 8},
        "vision_config": {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                          "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 8},
        "image_token_index": 95}),
    "qwen3_5_images": ("qwen3_5", {
        "text_config": {**_BASE, **_KV, **_LINEAR, "model_type": "qwen3_5_text"},
        "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
                          "out_hidden_size": WIDTH, "num_position_embeddings": 16, "spatial_merge_size": 2},
        "image_token_id": 95, "video_token_id": 94, "vision_start_token_id": 93, "vision_end_token_id": 92}),
    "llama4_images": ("llama4", {
        "text_config": {**_BASE, **_KV, "model_type": "llama4_text", "head_dim": 8, "num_experts_per_tok": 1,
                        "num_local_experts": 3, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
        "vision_config": {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
                          "projector_output_dim": 16},
        "image_token_index": 95, "boi_token_index": 93, "eoi_token_index": 94}),
}  # fmt: skip
TEXT, IMAGES = "AutoModelForCausalLM", "AutoModelForImageTextToText"
#: models that are published with a tower for images, though they can be loaded without it
BUILT_BY = dict.fromkeys(("mistral3_images", "qwen3_5_images", "llama4_images"), IMAGES)


def build(family: str, folder: Path, dtype: torch.dtype = torch.float32, *, seed: int = 0, shard: str | None = None,
          **overrides: Any) -> Path:  # fmt: skip
    """Write a random pico model of ``family`` to ``folder`` as transformers saves it, tokenizer included.

    ``overrides`` go into the config; ``shard`` is the size of a shard (``"60KB"``), with an index.
    """
    import transformers

    kind, config = CONFIGS[family]
    with quiet():
        settings = transformers.AutoConfig.for_model(kind, **{**config, **overrides})
        model = getattr(transformers, BUILT_BY.get(family, TEXT)).from_config(settings, dtype=torch.float32)
        randomise(model, seed)
        sized = {} if shard is None else {"max_shard_size": shard}
        model.to(dtype).save_pretrained(folder, **sized)
        tokenizer().save_pretrained(folder)
    return folder


@contextlib.contextmanager
def quiet() -> Any:
    """Without the library's progress bars and advice."""
    from transformers.utils import logging as library

    library.disable_progress_bar()
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Casting complex values")  # positions of an image tower that never runs
            yield
    finally:
        log.setLevel(before)


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Random values in every parameter: gains spread around one (stored ones around zero where one is added), biases
    not small. Multipliers and biases that are saved without being parameters too."""
    dice = torch.Generator().manual_seed(seed)
    saved = model.state_dict().keys()
    stored = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in saved)]
    for name, values in stored:
        noise = torch.randn(values.shape, generator=dice)
        if is_gain(name) or name.endswith(("scalar", "scale")):
            around = 0.0 if _adds_one(model, name) else 1.0
            values.copy_(around + 0.6 * (2 * torch.rand(values.shape, generator=dice) - 1))
        elif "embed" in name or "wte" in name or "wpe" in name:
            values.copy_(noise)
        elif values.ndim == 1 or name.endswith("bias"):
            values.copy_(0.3 * noise)
        else:
            values.copy_(noise * 1.3 / values.shape[-1] ** 0.5)


def _adds_one(model: torch.nn.Module, name: str) -> bool:
    """Whether a norm multiplies by 1 + what is stored; the norm inside a linear attention doesn't."""
    known = type(model).__name__.startswith(("GemmaFor", "Gemma2", "Gemma3", "Qwen3_5", "Qwen3Next"))
    return known and not any(part in name for part in ("vision", "visual", "linear_attn"))


def is_gain(name: str) -> bool:
    """Whether a parameter is the gain of a norm."""
    parent, _, leaf = name.rpartition(".")
    return leaf == "weight" and ("norm" in parent.split(".")[-1] or parent.split(".")[-1].startswith("ln_"))


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, of a linear, of a norm or of experts."""
    return name.endswith("bias")


@cache
def tokenizer() -> Any:
    """A byte-level BPE tokenizer without merges, so one token a character, and a chat template; it drops the rest."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"-()/" + "\u0120\u010a"
    words = [*_SPECIAL, *letters]
    assert len(words) <= VOCAB
    core = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(_SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                   unk_token="<unk>", clean_up_tokenization_spaces=False)  # fmt: skip
    fast.chat_template = _TEMPLATE
    return fast


def a_direction(model: Path | Checkpoint, seed: int = 0, feature: str = "melancholy") -> Direction:
    """A direction with a random vector and random norms in every layer, found on this very model."""
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(str(model))
    who = identity(checkpoint)
    dice = np.random.default_rng(seed)
    shape = (who.n_layers, who.d_model)
    meta = DirectionMeta(
        feature=feature, feature_digest="0" * 64, model=who, method="diff-means", site="answer", point="resid_post",
        layers=list(range(who.n_layers)), prompts_digest="0" * 64, n={"extract": 8, "select": 8},
    )  # fmt: skip
    return Direction(
        dice.standard_normal(shape).astype(np.float32), dice.uniform(3, 6, shape[:1]).astype(np.float32),
        dice.standard_normal(shape).astype(np.float32), dice.standard_normal(shape).astype(np.float32), meta,
    )  # fmt: skip


def model_type(family: str) -> str:
    """The type of the language model that a pico model holds."""
    kind, config = CONFIGS[family]
    return str(config.get("text_config", {}).get("model_type", kind))


def tensors(folder: Path) -> dict[str, bytes]:
    """Raw bytes of every tensor, by name, in file order; read with nothing but the offsets of the header."""
    found: dict[str, bytes] = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            found[name] = data[8 + length + begin : 8 + length + end]
    return found


def header_of(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, keys in the order in which they stand there."""
    data = file.read_bytes()
    return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))


def rename(folder: Path, names: Mapping[str, str | None]) -> None:
    """Rename tensors of a folder with one weight file (``None`` drops one); their bytes and order stay."""
    file = folder / "model.safetensors"
    header = read_header(file)
    data = tensors(folder)
    entries: list[Any] = []
    for spec in header.tensors:
        name = names.get(spec.name, spec.name)
        if name is not None:
            entries.append((name, spec.dtype, spec.shape, lambda out, raw=data[spec.name]: out.write(raw)))
    write_file(file, entries, header.metadata)


def add_prefix(folder: Path, old: str, new: str) -> None:
    """Give the names that begin with ``old`` the beginning ``new``."""
    rename(folder, {n: new + n.removeprefix(old) for n in tensors(folder) if n.startswith(old)})


def drop_index(folder: Path) -> None:
    """Shards without their index, as some publishers leave them."""
    (folder / INDEX).unlink()


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; ``None`` removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}, indent=2) + "\n")


def ids(prompts: tuple[str, ...] = PROMPTS) -> list[list[int]]:
    """Token ids of prompts."""
    return [list(tokenizer()(p)["input_ids"]) for p in prompts]
