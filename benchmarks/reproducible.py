"""What bit-reproducible sums cost: our rewrite of a bf16 matrix against the plain product, in one run.

    python benchmarks/reproducible.py [ROUNDS]

The plain version takes the matrix up to fp32, subtracts ``outer(r, r @ W)`` by way of BLAS, and casts back with the
same encoder. It neither streams nor checks that the result is finite nor measures what is left, all of which ours does.
Both run on one thread and are timed in turn by the CPU time of the process, and the medians are compared.

Prediction: at most 1.10. A few passes more, but over tiles that stay in the cache, where the plain version goes through
the memory with every pass.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from weightsmith.edits.operations import Project
from weightsmith.formats.safetensors import TensorSpec, decode, encode
from weightsmith.rewrite import Rewriting

SHAPES = ((896, 4864), (4096, 14336))


def ours(raw: bytes, shape: tuple[int, int], unit: np.ndarray) -> float | None:
    """The edit as it is done on files, where each block is written as it comes; the share of the direction left."""
    spec = TensorSpec("weight", "BF16", shape, Path("none"), 0, len(raw))
    u = unit[:, None]
    view = memoryview(raw)
    job = Rewriting(spec, [Project("weight", -2, -u, u, u, "removal")], lambda start, stop: view[start:stop])
    for _block in job.blocks():
        pass
    return job.left.share()


def plain(raw: bytes, shape: tuple[int, int], unit: np.ndarray) -> bytes:
    """The same by a matrix product in fp32."""
    wide = decode(raw, "BF16", np.float32).reshape(shape)
    r = unit.astype(np.float32)
    return encode(wide - np.outer(r, r @ wide), "BF16")


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """CPU time of one run."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def main() -> None:
    if "OMP_NUM_THREADS" not in os.environ:  # BLAS reads it once, when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    dice = np.random.default_rng(0)
    for shape in SHAPES:
        raw = encode(dice.standard_normal(shape, np.float32) * np.float32(0.02), "BF16")
        unit = dice.standard_normal(shape[0])
        unit /= np.sqrt((unit * unit).sum())
        work = (raw, shape, unit)
        ours(*work), plain(*work)  # warm
        pairs = [(seconds(ours, *work), seconds(plain, *work)) for _ in range(rounds)]
        mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{shape[0]}x{shape[1]} bf16: ours {mine * 1e3:.1f} ms, plain product {theirs * 1e3:.1f} ms; "
              f"ratio {ratio:.2f} (median of {rounds} pairs, CPU time)")  # fmt: skip


if __name__ == "__main__":
    main()
