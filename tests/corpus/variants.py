"""Weights of one model in two precisions: with the same values, with others, and averaged ones, which differ by design."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import Case
from .weights import Tensors, entries, llama, model, packed
from .weights_values import halves


def _two(other: Callable[[], Tensors], tag: str = "fp16") -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        model(folder)
        header, data = entries(other())
        (folder / f"model.{tag}.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))

    return build


def _as(kind: str, tensors: Tensors) -> Tensors:
    return {name: values.astype(kind) for name, values in tensors.items()}


def _bad(name: str, other: Callable[[], Tensors], tag: str = "fp16") -> Case:
    return Case(f"variant-{name}", _two(other, tag), "suspicious", ("weights-disagree",))


def _good(name: str, other: Callable[[], Tensors], tag: str = "fp16") -> Case:
    return Case(f"variant-{name}-honest", _two(other, tag))


CASES = [
    _bad("other-values", lambda: llama(7)),
    _bad("other-values-halved", lambda: _as("float16", llama(7))),
    _bad("other-values-bf16", lambda: halves(llama(7)), "bf16"),
    _bad("one-matrix", lambda: _as("float16", llama()) | {"lm_head.weight": llama(7)["lm_head.weight"].astype(np.float16)}),
    _good("same-values", llama),
    _good("halved", lambda: _as("float16", llama())),
    _good("bf16", lambda: halves(llama()), "bf16"),
    _good("averaged", lambda: _as("float16", llama(7)), "non_ema"),
]
