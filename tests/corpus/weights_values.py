"""Good headers around values that can't be: what a damaged, wiped or sabotaged model holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import Case, write_json
from .weights import CONFIG, MIDDLE, WIDTH, Build, Tensors, entries, hidden_zip, llama, model, packed

Q0, DOWN2 = "model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"


def damaged(change: Callable[[Tensors], None]) -> Build:
    """The small Llama with changed values."""

    def build(folder: Path) -> None:
        tensors = llama()
        change(tensors)
        model(folder, tensors)

    return build


def one(name: str, value: float, kind: Any = np.float32) -> Build:
    """One element of one tensor set to a value, in a dtype."""

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].astype(kind)
        tensors[name].reshape(-1)[7] = value

    return damaged(change)


def halves(tensors: Tensors) -> Tensors:
    """All matrices as bfloat16 words."""
    return {n: (v.view(np.uint32) >> 16).astype(np.uint16) for n, v in tensors.items()}


def _bf16_nan(folder: Path) -> None:
    tensors = halves(llama())
    tensors[DOWN2].reshape(-1)[-1] = 0x7FC0
    model(folder, tensors, torch_dtype="bfloat16")


def _copy_layer(tensors: Tensors, matrices_only: bool = False) -> None:
    for name in list(tensors):
        if name.startswith("model.layers.1.") and not (matrices_only and "mlp" not in name):
            tensors[name] = tensors[name.replace(".1.", ".0.", 1)].copy()


def _shards(folder: Path, tensors: Tensors, count: int = 3) -> None:
    write_json(folder / "config.json", CONFIG)
    weight_map = {}
    names = list(tensors)
    for n in range(count):
        part = {k: tensors[k] for k in names[n::count]}
        file = f"model-{n + 1:05d}-of-{count:05d}.safetensors"
        header, data = entries(part)
        (folder / file).write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))
        weight_map.update(dict.fromkeys(part, file))
    total = sum(v.nbytes for v in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _nan_in_last_shard(folder: Path) -> None:
    tensors = llama()
    tensors[list(tensors)[2::3][-1]].reshape(-1)[-1] = math.nan
    _shards(folder, tensors)


def _booleans(folder: Path) -> None:
    header, data = entries(llama())
    header["flags"] = {"dtype": "BOOL", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
    write_json(folder / "config.json", CONFIG)
    (folder / "model.safetensors").write_bytes(packed(header, data + b"\0\1\7\1"))


def _interrupted(folder: Path) -> None:
    """A matrix of 4 MiB whose second half never came."""
    tensors = llama()
    tensors[DOWN2] = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    tensors[DOWN2][512:] = 0
    header, data = entries(tensors)
    (folder / "model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))


def _v(name: str, build: Build, rule: str, verdict: str = "broken") -> Case:
    return Case(f"values-{name}", build, verdict, (rule,))


CASES = [
    _v("nan-f32", one(Q0, math.nan), "weights-not-finite"),
    _v("nan-f16", one(Q0, math.nan, np.float16), "weights-not-finite"),
    _v("nan-f64", one(Q0, math.nan, np.float64), "weights-not-finite"),
    _v("nan-bf16", _bf16_nan, "weights-not-finite"),
    _v("infinity", one(Q0, math.inf), "weights-not-finite"),
    _v("minus-infinity", one(Q0, -math.inf, np.float16), "weights-not-finite"),
    _v("nan-norm", one("model.norm.weight", math.nan), "weights-not-finite"),
    _v("nan-shard", _nan_in_last_shard, "weights-not-finite"),
    _v("zero-matrix", damaged(lambda t: t[DOWN2].fill(0)), "weights-constant"),
    _v("zero-head", damaged(lambda t: t["lm_head.weight"].fill(0)), "weights-constant"),
    _v("minus-zero", damaged(lambda t: t[DOWN2].fill(-0.0)), "weights-constant"),
    _v("constant-matrix", damaged(lambda t: t[DOWN2].fill(0.02)), "weights-constant"),
    _v("all-zero", damaged(lambda t: [v.fill(0) for v in t.values()] and None), "weights-constant"),
    _v("nearly-zero", damaged(lambda t: t[DOWN2].__imul__(np.arange(WIDTH * MIDDLE).reshape(WIDTH, MIDDLE) == 7)),
       "weights-blank", "suspicious"),
    _v("download-interrupted", _interrupted, "weights-blank", "suspicious"),
    _v("program-in-a-tensor", damaged(lambda t: t.update(extra=np.frombuffer(hidden_zip() + bytes(4), np.uint8).copy())),
       "tensor-payload", "suspicious"),
    _v("one-huge-value", one(Q0, 3e38), "weights-absurd", "suspicious"),
    _v("scaled-matrix", damaged(lambda t: t[DOWN2].__imul__(1e6)), "weights-absurd", "suspicious"),
    _v("vanishing-matrix", damaged(lambda t: t[DOWN2].__imul__(1e-30)), "weights-absurd", "suspicious"),
    _v("layer-300-times", damaged(lambda t: t[DOWN2].__imul__(300)), "layer-apart", "suspicious"),
    _v("layer-copied", damaged(_copy_layer), "layers-repeated", "suspicious"),
    _v("half-a-layer-copied", damaged(lambda t: _copy_layer(t, True)), "layers-repeated", "suspicious"),
    _v("booleans", _booleans, "boolean-values"),
]  # fmt: skip
