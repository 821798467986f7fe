"""Honest models that look odd by chance or by design, each beside one that looks like it and is not honest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import Case, write_json
from .formats import TEXT_PICKLE
from .layout import Tensors, save

Build = Callable[[Path], None]
_DICE = np.random.default_rng(7)


def _length(low: int) -> Build:
    """An adapter's safetensors file whose header's length ends in these two bytes."""

    def build(path: Path) -> None:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        tensors = {name.format("A"): np.ones((4, 8), np.float32), name.format("B"): np.ones((8, 4), np.float32)}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for key, value in tensors.items():
            header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
            at += value.nbytes
        said = json.dumps(header).encode().ljust(low)
        data = b"".join(_DICE.standard_normal(v.shape).astype(np.float32).tobytes() for v in tensors.values())
        (path / "adapter_model.safetensors").write_bytes(len(said).to_bytes(8, "little") + said + data)
        write_json(path / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
                                                  "task_type": "CAUSAL_LM"})  # fmt: skip

    return build


def _both(path: Path) -> None:
    """A length that is a pickle's first string, which goes on through the header's first entry; what follows is run."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    begin = b"\x80\x02X" + bytes([1 + len(header)]) + bytes(4)
    (path / "model.safetensors").write_bytes(begin + header + b"0" + TEXT_PICKLE)


def hearing(letters: str = "abcdefghijklmnopqrstuvwxyz", tensors: Tensors | None = None, **changes: Any) -> Build:
    """A model that writes down what it hears, letter by letter."""

    def build(path: Path) -> None:
        words = ["|", *letters, "[UNK]", "[PAD]", "<s>", "</s>"]
        ids = {w: i for i, w in enumerate(words)}
        config = {"architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "intermediate_size": 32, "bos_token_id": 1, "eos_token_id": 2,
                  "pad_token_id": ids["[PAD]"], "vocab_size": len(words), "dtype": "float32"}  # fmt: skip
        write_json(path / "config.json", config | changes)
        write_json(path / "vocab.json", ids)
        write_json(path / "tokenizer_config.json", {
            "tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "[UNK]", "pad_token": "[PAD]"})  # fmt: skip
        prefix = str((config | changes)["model_type"]).replace("-", "_")
        attention, size = f"{prefix}.encoder.layers.0.", len(words)
        values = {attention + "attention.q_proj.weight": (16, 16), "lm_head.weight": (size, 16), "lm_head.bias": (size,)}
        made = {n: _DICE.standard_normal(s).astype(np.float32) for n, s in values.items()}
        save(path / "model.safetensors", made | (tensors or {}))

    return build


def _bounds(high: float, name: str = "input_max") -> Build:
    """A tower that hears, whose layers' bounds were not set yet."""

    def build(path: Path) -> None:
        write_json(path / "config.json", {"model_type": "gemma4_audio", "architectures": ["Gemma4AudioModel"], "hidden_size": 16})
        layer = "layers.0.self_attn.q_proj"
        made = {f"{layer}.linear.weight": _DICE.standard_normal((16, 16)).astype(np.float32)}
        for key, value in {"input_min": -math.inf, "output_min": -math.inf, "output_max": math.inf, name: high}.items():
            made[f"{layer}.{key}"] = np.array(value, np.float32)
        save(path / "model.safetensors", made)

    return build


_DISTANCES = {"wav2vec2_bert.encoder.layers.0.self_attn.distance_embedding.weight": np.ones((20, 8), np.float32)}
_TALKS = {"architectures": ["SpeechEncoderDecoderForConditionalGeneration"]}
CASES: list[Case] = [
    *(Case(f"safetensors-length-like-pickle-{n}", _length(0x280 + 256 * n)) for n in range(4)),
    Case("safetensors-length-is-pickle", _both, "malicious", ("pickle-code",),
         fires="import pickle; pickle.load(open(folder / 'model.safetensors', 'rb'))"),
    Case("ctc-end-unasked", hearing()),
    Case("ctc-end-of-another-letter", hearing(eos_token_id=3), "suspicious", ("end-is-a-word",)),
    Case("ctc-end-of-one-that-talks", hearing(**_TALKS), "suspicious", ("end-is-a-word",)),
    Case("ctc-table-of-distances", hearing(tensors=_DISTANCES, architectures=["Wav2Vec2BertForCTC"], model_type="wav2vec2-bert")),
    Case("bounds-not-set", _bounds(math.inf)),
    Case("bounds-nan", _bounds(math.nan), "broken", ("weights-not-finite",)),
    Case("bounds-the-wrong-way", _bounds(-math.inf), "broken", ("weights-not-finite",)),
    Case("infinite-gain-not-a-bound", _bounds(math.inf, "gain_max"), "broken", ("weights-not-finite",)),
]  # fmt: skip
