"""Values that only the other layers of a model, or its rows among themselves, show to be wrong; honest ones that look alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import Case
from .weights import LAYERS, WIDTH, Tensors, entries, llama, packed
from .weights_values import damaged

ODD = "model.layers.{}.mixer.strange_b.weight"  # a name that no list has
GAIN = "model.layers.{}.norm_1.weight"
ROWS = 512


def _strange(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """Layers of a family that nothing is known of."""

    def build(folder: Path) -> None:
        dice = np.random.default_rng(4)
        tensors: Tensors = {}
        for n in range(LAYERS + 2):
            tensors[ODD.format(n)] = (dice.standard_normal((64, WIDTH)) * 0.05).astype(np.float32)
            tensors[GAIN.format(n)] = np.ones(WIDTH, np.float32)
        change(tensors)
        header, data = entries(tensors)
        (folder / "model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))

    return build


def _table(change: Callable[[Any], object], name: str = "shared.weight") -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        values = np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)
        change(values)
        header, data = entries({name: values})
        (folder / "model.safetensors").write_bytes(packed({"__metadata__": {"format": "pt"}, **header}, data))

    return build


def _every(tensors: Tensors, value: float) -> None:
    for n in range(LAYERS + 2):
        tensors[ODD.format(n)].fill(value)


def _pruned(tensors: Tensors) -> None:
    """Half of each matrix is zero, here and there."""
    dice = np.random.default_rng(6)
    for values in tensors.values():
        if values.ndim == 2:
            values *= dice.random(values.shape) > 0.5


def _bad(name: str, build: Callable[[Path], None], rule: str, verdict: str = "suspicious") -> Case:
    return Case(f"kin-{name}", build, verdict, (rule,))


def _good(name: str, build: Callable[[Path], None]) -> Case:
    return Case(f"kin-{name}-honest", build)


DOWN = "model.layers.1.mlp.down_proj.weight"
CASES = [
    _bad("one-layer-zero", _strange(lambda t: t[ODD.format(2)].fill(0)), "weights-constant"),
    _bad("one-layer-constant", _strange(lambda t: t[ODD.format(3)].fill(0.05)), "weights-constant"),
    _bad("one-layer-large", _strange(lambda t: t[ODD.format(1)].__imul__(1000)), "layer-apart"),
    _bad("one-layer-half-empty", _strange(lambda t: t[ODD.format(1)][:, ::2].fill(0)), "weights-blank"),
    _bad("one-gain-zero", _strange(lambda t: t[GAIN.format(1)].fill(0)), "weights-constant"),
    _bad("embeddings-every-second-row", _table(lambda v: v[::2].fill(0)), "weights-blank"),
    _bad("embeddings-mostly-equal", _table(lambda v: v[: ROWS * 3 // 4].__imul__(0).__iadd__(0.3)), "weights-rows-equal"),
    _bad("embeddings-equal", _table(lambda v: v.__imul__(0).__iadd__(np.arange(WIDTH))), "weights-rows-equal", "broken"),
    _bad("state-space-embeddings-equal", _table(lambda v: v.__imul__(0).__iadd__(np.arange(WIDTH)), "backbone.embeddings.weight"),
         "weights-rows-equal", "broken"),
    _bad("t5-queries-zero", _table(lambda v: v.fill(0), "encoder.block.0.layer.0.SelfAttention.q.weight"), "weights-constant",
         "broken"),
    _bad("every-second-output-zero", damaged(lambda t: t[DOWN][:, ::2].fill(0)), "weights-blank"),
    _good("plain", _strange(lambda t: None)),
    _good("all-layers-zero", _strange(lambda t: _every(t, 0.0))),
    _good("pruned", _strange(_pruned)),
    _good("pruned-llama", damaged(_pruned)),
    _good("gains-begun-at-zero", _strange(lambda t: [t[GAIN.format(n)].fill(0) for n in range(LAYERS + 2)] and None)),
    _good("padded-rows", _table(lambda v: v[ROWS * 7 // 8 :].fill(0))),
    _good("new-rows-alike", _table(lambda v: v[ROWS // 2 :].__imul__(0).__iadd__(0.1))),
    _good("large-embeddings", _table(lambda v: v.__imul__(150), "shared.weight")),
    _good("llama", damaged(lambda t: t.update(llama(9)))),
]
