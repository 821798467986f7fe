"""Prompts with several continuations, and what plain transformers says about them: one pass for each continuation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.runtime import RunningModel, load
from weightsmith.search.passes import Passes, Rows, Tree

#: shapes that no family's plain pico model has: windows and chunks that some prompts exceed and some don't, queries scaled by
#: position, a layer's keys read by one that is not the next
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_deep": ("llama", {"num_hidden_layers": 12}),
    "mistral_window": ("mistral", {"sliding_window": 16}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "phi3_window": ("phi3", {"sliding_window": 16}),
    "llama4_tuned": ("llama4", {"attention_chunk_size": 512, "attn_temperature_tuning": True, "floor_scale": 4}),
    "ministral3_tuned": ("ministral3", {"rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 4}}),
    "phi3_scaled": ("phi3", {"original_max_position_embeddings": 16, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0],
        "original_max_position_embeddings": 16}}),
    "gemma4_deep": ("gemma4_shared", {"num_hidden_layers": 6, "sliding_window": 512,
                                      "layer_types": ["sliding_attention", "full_attention"] * 3}),
}  # fmt: skip
#: a model with a tower for images that transformers does not load as one that writes text
NOT_LOADED = "mistral3_images"
FAMILIES = [f for f in pico.CONFIGS if f != NOT_LOADED] + list(OTHERS)
#: layers that carry a state from token to token: no branches, and no beginning that is shared
STATES = {"qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen3_next_mixed", "lfm2", "qwen3_5_images"}

Load = Callable[[str], RunningModel]


def loader(root: Path) -> Load:
    """Running pico models by name, each built and loaded once."""
    loaded: dict[str, RunningModel] = {}

    def get(name: str) -> RunningModel:
        if name not in loaded:
            family, config = OTHERS.get(name, (name, {}))
            loaded[name] = load(open_checkpoint(str(pico.build(family, root / name, **config))), pico.CPU)
        return loaded[name]

    return get


def tokens(dice: np.random.Generator, count: int) -> tuple[int, ...]:
    """Random token ids, none of them special."""
    return tuple(int(x) for x in dice.integers(30, 90, count))


def grown(dice: np.random.Generator, prompts: Seq[tuple[int, ...]]) -> list[Tree]:
    """A tree for each prompt, of at most 7 nodes: one that branches at the prompt and later on, a chain, one with a
    continuation that others go on from, one of a single token."""
    found = []
    for k, prompt in enumerate(prompts):
        a, b, c, d, e, f, g = (int(x) for x in 30 + dice.permutation(60)[:7])
        shapes = [[(a, b, c), (a, d, e), (f, g)], [(a, b, c)], [(a,), (a, b), (a, c), (d, e)], [(a,)]]
        found.append(Tree.of(prompt, shapes[k % 4]))
    return found


def cases(seed: int = 0) -> dict[str, list[Tree]]:
    """Trees by what is special about their prompts. All but the ``long`` ones fit in 16 tokens, the pico models' window."""
    dice = np.random.default_rng(seed)
    head, longer = tokens(dice, 8), tokens(dice, 24)
    prompts = {
        "one": [tokens(dice, 9)],
        "lengths": [tokens(dice, n) for n in (3, 7, 10, 5)],
        "shared": [(*head, *tokens(dice, n)) for n in (1, 3, 2, 3)],
        "long": [tokens(dice, n) for n in (20, 31, 17, 26)],
        "long shared": [(*longer, *tokens(dice, n)) for n in (3, 5, 1, 9)],
    }
    return {name: grown(dice, rows) for name, rows in prompts.items()}


def nodes(model: RunningModel, tree: Tree) -> torch.Tensor:
    """Log-probability of each node after what leads to it: a plain pass for every one, no cache, no padding."""
    found = []
    for node, token in enumerate(tree.tokens):
        before = [*tree.prompt, *(tree.tokens[n] for n in tree.path(node)[:-1])]
        logits = model.model(input_ids=torch.tensor([before])).logits[0, -1]
        found.append(torch.log_softmax(logits.float(), -1)[token])
    return torch.stack(found)


def nodes_from(model: RunningModel, tree: Tree, states: torch.Tensor) -> torch.Tensor:
    """The same from a tree's states."""
    assert len(states) == 1 + len(tree.fed)
    return torch.log_softmax(model.logits(states), -1)[list(tree.reads), list(tree.tokens)]


def worst(model: RunningModel, passes: Passes, trees: list[Tree], rows: Rows | None = None) -> float:
    """The largest error of a node's log-probability."""
    with torch.no_grad():
        rows = rows or passes.prepare(trees)
        pairs = zip(trees, passes.states(rows), strict=True)
        return max(float((nodes_from(model, t, s) - nodes(model, t)).abs().max()) for t, s in pairs)


@contextlib.contextmanager
def unchanged(model: RunningModel) -> Iterator[None]:
    """Fails where a hook or a patched ``forward`` is left behind."""
    def hooks() -> list[tuple[int, int]]:
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.model.modules()]

    before = hooks()
    yield
    assert hooks() == before
    assert not [m for m in model.model.modules() if "forward" in vars(m)]
