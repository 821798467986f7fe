"""Attention there and back in plain products against PyTorch's fused kernel, on a processor, in one run.

    python benchmarks/search/attention.py [--threads 2]

The shapes are those of SmolLM2's passes with gradients: at most 1,024 tokens a micro-batch, 9 heads on 3 groups of 64. The
products are 4 · heads · tokens · keys · d FLOP there and 8 back: 0.4 to 1.8 GFLOP from 60 to 256 keys, 4 to 18 ms at the
100 GFLOP/s of small products. The fused kernel computes as much, in blocks that are made for long rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from weightsmith.search.attention import attend

MODULE = SimpleNamespace(num_key_value_groups=3, is_causal=True)
WAYS: dict[str, Callable[..., Any]] = {"fused": sdpa_attention_forward, "plain": attend}


def milliseconds(way: Callable[..., Any], dtype: torch.dtype, keys: int, times: int = 15) -> float:
    """The median time there and back, after two runs that are not counted."""
    rows = 1024 // keys
    torch.manual_seed(0)
    inputs = [torch.randn(rows, heads, keys, 64, dtype=dtype, requires_grad=True) for heads in (9, 3, 3)]
    mask = torch.ones(rows, 1, keys, keys, dtype=torch.bool).tril()
    back = torch.randn(rows, keys, 9, 64, dtype=dtype)
    found = []
    for _ in range(times + 2):
        began = time.perf_counter()
        torch.autograd.grad(way(MODULE, *inputs, mask)[0], inputs, back)
        found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found[2:])


def main() -> None:
    """Print both times and their ratio by dtype and length."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    for dtype in (torch.bfloat16, torch.float32):
        for keys in (60, 130, 200, 256):
            fused, plain = (milliseconds(way, dtype, keys) for way in WAYS.values())
            what = f"{dtype!s:15} {1024 // keys:2} rows of {keys:3}"
            print(f"{what}: fused {fused:5.1f} ms, plain {plain:5.1f} ms, {plain / fused:.2f}")


if __name__ == "__main__":
    main()
