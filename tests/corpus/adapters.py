"""LoRA adapters that do nothing, or leave nothing of the model, and honest ones that look alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import Case, write_json
from .weights import WIDTH, Tensors, entries, packed

RANK = 4
PEFT = "https://github.com/huggingface/peft/blob/main/src/peft/tuners/tuners_utils.py"


def _halves(modules: Iterable[str], sides: str = "AB", times: float = 1.0) -> Tensors:
    """Both matrices of modules."""
    dice = np.random.default_rng(3)
    shapes = {"A": (RANK, WIDTH), "B": (WIDTH, RANK)}
    return {f"base_model.model.{module}.lora_{side}.weight":
            (dice.standard_normal(shapes[side]) * (times if side == "B" else 0.1)).astype(np.float32)
            for module in modules for side in sides}  # fmt: skip


def _modules(*ends: str) -> list[str]:
    return [f"model.layers.{n}.{end}" for n in range(2) for end in ends]


def _adapter(tensors: Tensors, targets: Any, **more: Any) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        header, data = entries(tensors)
        (folder / "adapter_model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))
        write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": RANK,
                                                    "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM",
                                                    **more})  # fmt: skip

    return build


def _bad(name: str, tensors: Tensors, targets: Any, rule: str, verdict: str = "broken", **more: Any) -> Case:
    return Case(f"adapter-of-{name}", _adapter(tensors, targets, **more), verdict, (rule,), see=PEFT)


def _good(name: str, tensors: Tensors, targets: Any, **more: Any) -> Case:
    return Case(f"adapter-of-{name}-honest", _adapter(tensors, targets, **more))


QUERIES = _modules("self_attn.q_proj")
BOTH = _modules("self_attn.q_proj", "mlp.up_proj")
PATTERN = r".*\.(?:self_attn|mlp)\.(?:q_proj|up_proj)"
EMBEDDING: Tensors = {
    "base_model.model.model.embed_tokens.lora_embedding_A": np.full((RANK, 32), 0.1, np.float32),
    "base_model.model.model.embed_tokens.lora_embedding_B": np.zeros((WIDTH, RANK), np.float32),
}
MAGNITUDES: Tensors = {f"base_model.model.{m}.lora_magnitude_vector.weight": np.full(WIDTH, 3.0, np.float32) for m in QUERIES}
HEAD: Tensors = {"base_model.model.lm_head.weight": np.random.default_rng(1).standard_normal((32, WIDTH)).astype(np.float32)}

CASES = [
    _bad("without-b", _halves(QUERIES, "A"), ["q_proj"], "adapter-half"),
    _bad("without-a", _halves(QUERIES, "B"), ["q_proj"], "adapter-half"),
    _bad("other-modules", _halves(QUERIES), ["k_proj"], "adapter-elsewhere"),
    _bad("other-modules-in-part", _halves(BOTH), ["q_proj"], "adapter-elsewhere", "suspicious"),
    _bad("other-pattern", _halves(QUERIES), r"model\.layers\.\d+\.self_attn\.(?:k_proj|v_proj)", "adapter-elsewhere",
         "suspicious"),
    _bad("huge", _halves(QUERIES, times=3e5), ["q_proj"], "adapter-absurd", "suspicious"),
    _bad("loud", _halves(QUERIES, times=2e3), ["q_proj"], "adapter-absurd", "suspicious"),
    _good("two-modules", _halves(BOTH), ["q_proj", "up_proj"]),
    _good("whole-names", _halves(BOTH), BOTH),
    _good("pattern", _halves(BOTH), PATTERN),
    _good("open-pattern", _halves(BOTH), r"model\.layers\.[01]\..*"),
    _good("all-linear", _halves(BOTH), "all-linear"),
    _good("default-modules", _halves(QUERIES), None),
    _good("magnitudes", _halves(QUERIES) | MAGNITUDES, ["q_proj"], use_dora=True),
    _good("embedding", _halves(QUERIES) | EMBEDDING, ["q_proj", "embed_tokens"]),
    _good("head-saved", _halves(QUERIES) | HEAD, ["q_proj"], modules_to_save=["lm_head"]),
    _good("of-parameters", _halves(_modules("mlp.experts")), [], target_parameters=["mlp.experts.gate_up_proj"]),
    _good("root-of-the-rank", _halves(QUERIES, times=5.0), ["q_proj"], use_rslora=True, lora_alpha=64),
]
