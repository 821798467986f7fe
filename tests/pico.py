"""Pico models: every family in a few kilobytes, with nothing left at a value that could hide a mistake.

Every norm gain, every bias and every matrix is random: a model with gains of one, or with biases of zero, would pass
with the gain or the bias forgotten. The tokenizer is a real fast one with one token a character, so that prompts of
words differ from one another.
"""

from __future__ import annotations

import contextlib
import json
import logging
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
    # the same families in other shapes
    "gpt_neox_serial": ("gpt_neox", {**_BASE, "intermediate_size": 64, "use_parallel_residual": False}),
    "qwen3_moe_mixed": ("qwen3_moe", {**_BASE, **_KV, **_MOE, "head_dim": 8, "num_experts": 3,
                                      "mlp_only_layers": [0], "attention_bias": True}),
    "gemma3_images": ("gemma3", {
        "text_config": {**_BASE, **_KV, "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8,
                        "sliding_window": 16, "tie_word_embeddings": True},
        "vision_config": _VISION, "mm_tokens_per_image": 4, "boi_token_index": 93, "eoi_token_index": 94,
        "image_token_index": 95}),
}  # fmt: skip


def build(family: str, folder: Path, dtype: torch.dtype = torch.float32, *, seed: int = 0, shard: str | None = None,
          **overrides: Any) -> Path:  # fmt: skip
    """Write a random pico model of ``family`` to ``folder`` as transformers saves it, tokenizer included.

    ``overrides`` go into the config; ``shard`` is the size of a shard (``"60KB"``), with an index.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config = CONFIGS[family]
    with quiet():
        settings = AutoConfig.for_model(kind, **{**config, **overrides})
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
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
        yield
    finally:
        log.setLevel(before)


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Random values in every parameter: gains spread around one (Gemma's stored ones around zero), biases not small."""
    dice = torch.Generator().manual_seed(seed)
    for name, values in model.named_parameters():
        noise = torch.randn(values.shape, generator=dice)
        if is_gain(name):
            around = 0.0 if "gemma" in type(model).__name__.lower() and "vision" not in name else 1.0
            values.copy_(around + 0.6 * (2 * torch.rand(values.shape, generator=dice) - 1))
        elif "embed" in name or "wte" in name or "wpe" in name:
            values.copy_(noise)
        elif values.ndim == 1 or name.endswith("bias"):
            values.copy_(0.3 * noise)
        else:
            values.copy_(noise * 1.3 / values.shape[-1] ** 0.5)


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
