"""GGUF files of whole small models: with tensors that are missing or of another shape, and as converters write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.formats import gguf_write

from . import Case

Shapes = dict[str, tuple[int, ...]]
WIDTH, MIDDLE, LAYERS, HEADS, SHARED, WORDS = 32, 64, 6, 4, 2, 48
LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp"


def llama() -> Shapes:
    """A Llama whose head is tied to its embeddings."""
    few = WIDTH // HEADS * SHARED
    block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (few, WIDTH), "attn_v": (few, WIDTH),
             "attn_output": (WIDTH, WIDTH), "ffn_gate": (MIDDLE, WIDTH), "ffn_up": (MIDDLE, WIDTH),
             "ffn_down": (WIDTH, MIDDLE)}  # fmt: skip
    found: Shapes = {"token_embd.weight": (WORDS, WIDTH), "output_norm.weight": (WIDTH,), "rope_freqs.weight": (4,)}
    return found | {f"blk.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in block.items()}


def gpt2() -> Shapes:
    """A GPT-2: one matrix for queries, keys and values, no gate."""
    block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_qkv": (3 * WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
             "ffn_up": (MIDDLE, WIDTH), "ffn_down": (WIDTH, MIDDLE)}  # fmt: skip
    found: Shapes = {"token_embd.weight": (WORDS, WIDTH), "output_norm.weight": (WIDTH,), "position_embd.weight": (64, WIDTH)}
    return found | {f"blk.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in block.items()}


def mixture() -> Shapes:
    """A mixture of experts whose first layer is dense."""
    found = llama()
    for n in range(1, LAYERS):
        for name in ("gate", "up", "down"):
            found[f"blk.{n}.ffn_{name}_exps.weight"] = (4, *found.pop(f"blk.{n}.ffn_{name}.weight"))
        found[f"blk.{n}.ffn_gate_inp.weight"] = (4, WIDTH)
    return found


def _written(shapes: Shapes, arch: str = "llama", **keys: Any) -> Callable[[Path], None]:
    """A file of these tensors; ``keys`` change the metadata (``__`` stands for a dot)."""

    def build(folder: Path) -> None:
        said: dict[str, Any] = {
            "general.architecture": arch, f"{arch}.block_count": LAYERS, f"{arch}.embedding_length": WIDTH,
            f"{arch}.feed_forward_length": MIDDLE, f"{arch}.attention.head_count": HEADS, f"{arch}.context_length": 64,
            f"{arch}.attention.head_count_kv": HEADS if arch == "gpt2" else SHARED,
        } | {key.replace("__", "."): value for key, value in keys.items()}  # fmt: skip
        dice = np.random.default_rng(0)
        entries = []
        for name, shape in shapes.items():
            values = np.ones(shape) if len(shape) == 1 else dice.standard_normal(shape) * 0.1
            entries.append(gguf_write.array_entry(name, values.astype(np.float32)))
        gguf_write.write_gguf(folder / "model.gguf", said, entries)

    return build


def _without(*names: str, shapes: Callable[[], Shapes] = llama) -> Shapes:
    return {name: shape for name, shape in shapes().items() if not any(part in name for part in names)}


def _bad(name: str, shapes: Shapes, rule: str = "gguf-part-missing", arch: str = "llama", **keys: Any) -> Case:
    return Case(f"gguf-parts-{name}", _written(shapes, arch, **keys), "broken", (rule,), see=LLAMA_CPP)


def _good(name: str, shapes: Shapes, arch: str = "llama", **keys: Any) -> Case:
    return Case(f"gguf-parts-{name}-honest", _written(shapes, arch, **keys))


CASES = [
    _bad("no-queries", _without("attn_q")),
    _bad("no-queries-of-one", _without("blk.3.attn_q")),
    _bad("no-norm", _without("output_norm")),
    _bad("no-embeddings", _without("token_embd")),
    _bad("no-positions", _without("position_embd", shapes=gpt2), arch="gpt2"),
    _bad("no-experts", _without("blk.2.ffn_down_exps", shapes=mixture), llama__expert_count=4, llama__expert_used_count=2),
    _bad("other-family", _without("blk.4.attn_output"), arch="apertus"),
    _bad("few-queries", llama() | {f"blk.{n}.attn_q.weight": (16, WIDTH) for n in range(LAYERS)}, "gguf-part-shape"),
    _bad("narrow", llama() | {f"blk.{n}.ffn_up.weight": (32, WIDTH) for n in range(LAYERS)}, "gguf-part-shape"),
    _bad("heads-say-otherwise", llama(), "gguf-part-shape", llama__attention__head_count_kv=4),
    _good("tied", llama()),
    _good("gpt2", gpt2(), "gpt2"),
    _good("mixture", mixture(), llama__expert_count=4, llama__expert_used_count=2),
    _good("head-of-its-own", llama() | {"output.weight": (WORDS, WIDTH)}),
    _good("long-heads", llama() | {f"blk.{n}.attn_{p}.weight": s for n in range(LAYERS) for p, s in
                                   (("q", (64, WIDTH)), ("k", (32, WIDTH)), ("v", (32, WIDTH)), ("output", (WIDTH, 64)))},
          llama__attention__key_length=16, llama__attention__value_length=16),
    _good("heads-by-layer", _without("blk.2.attn_k", "blk.2.attn_v", "blk.2.attn_q", "blk.2.attn_output"), "openelm",
          openelm__attention__head_count=gguf_write.Typed([4, 4, 0, 4, 4, 4], "array", "i32")),
    _good("two-kinds-of-layers", _without("blk.2.attn_k", "blk.2.attn_v", "blk.2.attn_q", "blk.2.attn_output")
          | {"blk.2.shortconv.conv.weight": (WIDTH, 3)}, "lfm2"),
    _good("adapter", _without("attn_q"), general__type="adapter"),
]  # fmt: skip
