"""Activation capture against a plain batched forward of the stack and of the whole model, over the same tokens.

    python benchmarks/capture.py MODEL

Prediction: capture skips the lm_head, the mask and the shared beginning of the prompts, and keeps one vector a prompt and
layer, so it should be at least as fast as the plain forward (ratio ≥ 1).
"""

from __future__ import annotations

import sys
import time

import torch

from weightsmith.checkpoint import open_checkpoint
from weightsmith.features.prompts import prompt_sets
from weightsmith.features.recipe import load_feature
from weightsmith.options import RunOptions
from weightsmith.runtime import Sequence, capture, load
from weightsmith.runtime.forward import batches, padded


def main() -> None:
    model = load(open_checkpoint(sys.argv[1] if len(sys.argv) > 1 else "demo:smollm2"), RunOptions())
    spec, folder = load_feature("melancholy")
    prompts = prompt_sets(spec, folder).extract.shows
    rows = [model.encode([{"role": "user", "content": p}]) for p in prompts]
    sequences = [Sequence(tuple(r), len(r) - 1, len(r)) for r in rows]
    layers = list(range(model.architecture.n_layers))
    tokens = sum(map(len, rows))

    def plain(whole: bool) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in batches([len(r) for r in rows], model.options.batch_tokens, model.options.batch_size):
                ids = padded([rows[i] for i in batch], model.device)
                mask = torch.ones_like(ids)
                (model.model if whole else model.stack)(input_ids=ids, attention_mask=mask, use_cache=False)
        return time.perf_counter() - start

    def ours() -> float:
        start = time.perf_counter()
        capture(model, sequences, layers)
        return time.perf_counter() - start

    ours(), plain(False)  # warm up
    best = {"capture": min(ours() for _ in range(3)), "stack": min(plain(False) for _ in range(3)),
            "model": min(plain(True) for _ in range(3))}  # fmt: skip
    for name, seconds in best.items():
        print(f"{name:8} {tokens / seconds:8.0f} tokens/s   {seconds:.2f} s")
    print(f"ratio over the stack {best['stack'] / best['capture']:.2f}, over the whole model {best['model'] / best['capture']:.2f}")


if __name__ == "__main__":
    main()
