"""Answers of a real model with weights laid out for the processor's products, against weights as they are, in one run.

    python benchmarks/decode.py [demo:smollm2] [--rows 24] [--tokens 64]

A step reads all weights once and does 2 FLOP a weight and row: 135 M weights take 27 ms in bf16 and 54 in fp32 at 10 GB/s, and
24 rows 6.5 GFLOP, 22 ms at 300 GFLOP/s. What is above that is the layout of weights at every product, and Python.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from unittest import mock

from weightsmith.checkpoint import Checkpoint, open_checkpoint, runnable
from weightsmith.options import RunOptions
from weightsmith.runtime import Decoding, RunningModel, load, replies
from weightsmith.runtime import packed as layout


def answer(model: RunningModel, rows: int, tokens: int) -> tuple[float, list[list[int]]]:
    """The median milliseconds of a step, and the answers."""
    texts = [f"Tell me about the number {i} and its friends." for i in range(rows)]
    asked = [model.encode([{"role": "user", "content": t}]) for t in texts]
    ends: list[float] = []
    with mock.patch.object(type(model), "logits", _timed(type(model).logits, ends)):
        found = replies(model, asked, Decoding(tokens))
    return 1e3 * statistics.median(b - a for a, b in itertools.pairwise(ends[2:])), [r.tokens for r in found]


def _timed(logits: object, ends: list[float]) -> object:
    def timed(*given: object) -> object:
        found = logits(*given)  # type: ignore[operator]
        ends.append(time.perf_counter())
        return found

    return timed


def compare(checkpoint: Checkpoint, dtype: str, rows: int, tokens: int) -> None:
    """Print both times, their ratio, how long the layout took, and how many answers are the same."""
    model = load(checkpoint, RunOptions(device="cpu", dtype=dtype))
    answer(model, 2, 8)
    with mock.patch.object(layout, "LEAST", 1 << 60):
        plain, before = answer(model, rows, tokens)
    began = time.perf_counter()
    with layout.packed(model, rows * tokens, tokens):
        took = time.perf_counter() - began
    packed, after = answer(model, rows, tokens)
    same = sum(a == b for a, b in zip(before, after, strict=True))
    print(f"{dtype}, {rows} rows of {tokens} tokens: a step {plain:.0f} ms plain, {packed:.0f} laid out, {packed / plain:.2f}; "
          f"layout {took:.1f} s; {same} of {rows} answers the same", flush=True)  # fmt: skip


def main() -> None:
    """Both dtypes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo:smollm2")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    wish = parser.parse_args()
    for dtype in ("bfloat16", "float32"):
        compare(runnable(open_checkpoint(wish.model)), dtype, wish.rows, wish.tokens)


if __name__ == "__main__":
    main()
