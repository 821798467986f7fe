"""Weight files as real exporters write them, and honest values that look odd: a scan has to say clean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import Case, write_json
from .weights import CONFIG, WIDTH, Tensors, entries, gguf_file, llama, model, packed, raw_file, two_parts
from .weights_values import damaged

Build = Callable[[Path], None]


def _torch_file(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    write_json(folder / "config.json", {**CONFIG, "torch_dtype": "bfloat16"})
    found = {n: torch.from_numpy(v).to(torch.bfloat16) for n, v in llama().items()}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def _numpy_file(folder: Path) -> None:
    from safetensors.numpy import save_file

    write_json(folder / "config.json", CONFIG)
    save_file(llama(), folder / "model.safetensors")


def _transformers(family: str, dtype: str = "float32", shard: str | None = None) -> Build:
    def build(folder: Path) -> None:
        import torch

        import pico

        pico.build(family, folder, getattr(torch, dtype), shard=shard)

    return build


def _odd_shapes(folder: Path) -> None:
    """No elements, no axes, whole numbers of all sizes, 8-bit floats."""
    import torch
    from safetensors.torch import save_file

    save_file({
        "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5), "none": torch.zeros(0), "logit_scale": torch.tensor(4.6),
        "ids": torch.arange(512).reshape(1, 512), "bytes": torch.arange(256, dtype=torch.uint8),
        "flags": torch.ones(8, dtype=torch.bool),
        "small": torch.randn(4, 8).to(torch.float8_e4m3fn), "wide": torch.randn(4, 8).to(torch.float8_e5m2),
        "double": torch.randn(3, 3, dtype=torch.float64), "complex": torch.randn(4, dtype=torch.complex64),
    }, folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip


def _adapter(folder: Path) -> None:
    """A LoRA that was never trained: its B is zero."""
    dice = np.random.default_rng(1)
    found: Tensors = {}
    for n in range(2):
        at = f"base_model.model.model.layers.{n}.self_attn.q_proj"
        found[f"{at}.lora_A.weight"] = dice.standard_normal((8, WIDTH)).astype(np.float32)
        found[f"{at}.lora_B.weight"] = np.zeros((WIDTH, 8), np.float32)
    header, data = entries(found)
    (folder / "adapter_model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))
    write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM", "bias": "none", "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True,
    })  # fmt: skip


def _kohya(folder: Path) -> None:
    """An image LoRA as sd-scripts writes it: kilobytes of JSON in the metadata, one module untrained."""
    dice = np.random.default_rng(2)
    found: Tensors = {}
    for n in range(3):
        at = f"lora_unet_down_blocks_{n}_attentions_0_proj_in"
        found[f"{at}.lora_down.weight"] = dice.standard_normal((4, 32)).astype(np.float16)
        found[f"{at}.lora_up.weight"] = (dice.standard_normal((32, 4)) * (n > 0)).astype(np.float16)
        found[f"{at}.alpha"] = np.array(4, np.float16)
    tags = {"img": {f"tag {i} (solo), 1girl": i for i in range(500)}}
    meta = {
        "ss_tag_frequency": json.dumps(tags), "ss_bucket_info": json.dumps({"buckets": {"0": {"resolution": [512, 768]}}}),
        "ss_output_name": "style", "sshs_model_hash": "8004" + "ab" * 30, "ss_training_comment": "lr 1e-4; <lora:style:0.8>",
        "modelspec.thumbnail": "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ" + "Ab0" * 200,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "ss_network_args": json.dumps({"conv_dim": "4"}), "modelspec.description": "<p>A style. <b>Use 0.8</b>.</p>",
    }  # fmt: skip
    header, data = entries(found)
    (folder / "style.safetensors").write_bytes(packed({"__metadata__": meta, **header}, data))


def _buffers(folder: Path) -> None:
    """What old checkpoints carry along: causal masks, positions, statistics, a mask of infinities."""
    found = llama()
    size = 8
    found["h.0.attn.bias"] = np.tril(np.ones((1, 1, size, size), np.uint8))
    found["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    found["text_model.attn_mask"] = np.triu(np.full((size, size), -math.inf, np.float32), 1)
    found["position_ids"] = np.arange(size, dtype=np.int64)[None]
    found["rotary_emb.inv_freq"] = (1 / 10_000 ** (np.arange(4) / 4)).astype(np.float32)
    found["bn.running_var"] = np.array([3e8, 1.0, 2.0], np.float32)
    found["bn.num_batches_tracked"] = np.array(123_456_789, np.int64)
    found["embeddings.token_type_embeddings.weight"] = np.zeros((1, WIDTH), np.float32)
    found["query_tokens"] = np.zeros((1, 32, 256), np.float32)
    found["model.layers.0.self_attn.q_proj.bias"] = np.zeros(WIDTH, np.float32)
    header, data = entries(found)
    (folder / "model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))


def _deeper(tensors: Tensors) -> None:
    """Layers 2 and 3 are 0 and 1 again, as a merge that makes a model deeper does it."""
    for name in list(tensors):
        for copy, source in ((2, 0), (3, 1)):
            if name.startswith(f"model.layers.{copy}."):
                tensors[name] = tensors[name.replace(f".{copy}.", f".{source}.", 1)].copy()


def _merge(folder: Path) -> None:
    tensors = llama()
    for name in list(tensors):
        if name.startswith("model.layers.3."):
            tensors[name] = tensors[name.replace(".3.", ".2.", 1)].copy()
    model(folder, tensors)
    recipe = "merge_method: passthrough\nslices:\n- sources:\n  - layer_range: [0, 3]\n    model: a/b\n"
    (folder / "mergekit_config.yml").write_text(recipe)


def _shared(folder: Path) -> None:
    """Experts of one dense model: all equal at the start."""
    found = llama()
    part = found.pop("model.layers.0.mlp.down_proj.weight")
    for n in range(4):
        found[f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight"] = part
    header, data = entries(found)
    (folder / "model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))


def _gguf_written(quantised: str | None) -> Build:
    """By the ``gguf`` package's writer, with a vocabulary."""

    def build(folder: Path) -> None:
        from gguf import GGMLQuantizationType, GGUFWriter, quantize

        writer = GGUFWriter(folder / "model.gguf", "llama")
        writer.add_name("A small one")
        writer.add_description("Converted with care; see https://example.org/model for more.")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(256)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([*(f"t{i}" for i in range(20)), "<s>", "</s>", "<extra>", "<0x0A>"])
        writer.add_token_types([1] * 20 + [3, 3, 5, 6])
        writer.add_token_merges(["a b", "ab c"])
        writer.add_bos_token_id(20)
        writer.add_eos_token_id(21)
        writer.add_pad_token_id((1 << 32) - 1)
        writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
        dice = np.random.default_rng(0)
        shapes = {"token_embd.weight": (24, 256), "blk.0.attn_q.weight": (256, 256), "blk.0.ffn_up.weight": (512, 256)}
        for name, shape in shapes.items():
            values = (dice.standard_normal(shape) * 0.05).astype(np.float32)
            kind = GGMLQuantizationType[quantised] if quantised else None
            writer.add_tensor(name, quantize(values, kind) if kind is not None else values.astype(np.float16), raw_dtype=kind)
        writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return build


def _imatrix(folder: Path) -> None:
    """An importance matrix: a GGUF file without an architecture."""
    from .weights import STRING, info, pair

    (folder / "imatrix.gguf").write_bytes(gguf_file(
        [pair("general.type", STRING, "imatrix")], [info("blk.0.attn_q.weight.in_sum2", [32], 0, 0)],
        np.arange(1, 33, dtype=np.float32).tobytes()))  # fmt: skip


def _vocabulary_only(folder: Path) -> None:
    from .weights import U32, pair, pairs

    keys = [*pairs(llama__block_count=None), pair("llama.block_count", U32, 2)]
    (folder / "ggml-vocab-small.gguf").write_bytes(gguf_file(keys, [], b""))


def _expanded(tensors: Tensors) -> None:
    for name in ("self_attn.q_proj.bias",):
        tensors[f"model.layers.1.{name}"] = np.zeros(WIDTH, np.float32)


CASES = [
    Case("honest-safetensors-torch-bf16", _torch_file, needs=("torch",)),
    Case("honest-safetensors-numpy-no-metadata", _numpy_file),
    Case("honest-transformers-llama", _transformers("llama"), needs=("torch", "transformers")),
    Case("honest-transformers-shards", _transformers("qwen2", shard="60KB"), needs=("torch", "transformers")),
    Case("honest-transformers-gemma2-bf16", _transformers("gemma2", "bfloat16"), needs=("torch", "transformers")),
    Case("honest-transformers-mixtral-f16", _transformers("mixtral", "float16"), needs=("torch", "transformers")),
    Case("honest-odd-shapes-and-dtypes", _odd_shapes, needs=("torch",)),
    Case("honest-adapter-zero-b", _adapter), Case("honest-kohya-metadata", _kohya), Case("honest-old-buffers", _buffers),
    Case("honest-header-padded", raw_file(lambda h, d: packed(json.dumps(h).encode() + b" " * 4000, d))),
    Case("honest-header-unaligned", raw_file(lambda h, d: packed(json.dumps(h).encode() + b" " * (5 - len(json.dumps(h)) % 8), d))),
    Case("honest-depth-upscaled", damaged(_deeper)), Case("honest-mergekit-repeat", _merge), Case("honest-equal-experts", _shared),
    Case("honest-zero-bias", damaged(_expanded)),
    Case("honest-gguf-small", lambda folder: (folder / "model.gguf").write_bytes(gguf_file()) and None),
    Case("honest-gguf-f16", _gguf_written(None), needs=("gguf",)), Case("honest-gguf-q8-0", _gguf_written("Q8_0"), needs=("gguf",)),
    Case("honest-gguf-q4-0", _gguf_written("Q4_0"), needs=("gguf",)), Case("honest-gguf-two-parts", two_parts()),
    Case("honest-gguf-imatrix", _imatrix), Case("honest-gguf-vocabulary-only", _vocabulary_only),
]  # fmt: skip
