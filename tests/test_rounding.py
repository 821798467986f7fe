"""Balanced rounding: to a neighbour, and what is left along the removed direction cancels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.edits.numerics import orthonormal
from weightsmith.edits.operations import Project
from weightsmith.formats.safetensors import FLOAT_WORDS, TensorSpec, decode, encode
from weightsmith.jobs.derive import rebuild
from weightsmith.jobs.edit import edit
from weightsmith.rewrite import Rewriting

SHAPE = (320, 200)


def rewritten(dtype: str, axis: int, rank: int, balanced: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(base, wanted, written, share left) of a removal from a random matrix ``[out, in]``."""
    dice = np.random.default_rng(1)
    base = decode(encode((dice.standard_normal(SHAPE) * 0.05).astype(np.float32), dtype), dtype, np.float32).reshape(SHAPE)
    u = orthonormal([dice.standard_normal(SHAPE[0]) for _ in range(rank)])
    stored = base if axis == -2 else np.ascontiguousarray(base.T)
    data = encode(stored, dtype)
    spec = TensorSpec("w", dtype, stored.shape, Path("w"), 0, len(data))
    job = Rewriting(spec, [Project("w", axis, -u, u, u, "test")], lambda a, b: data[a:b], balanced=balanced)
    out = decode(b"".join(job.blocks()), dtype, np.float64).reshape(stored.shape)
    out = out if axis == -2 else out.T
    wanted = base.astype(np.float64) - u @ (u.T @ base.astype(np.float64))
    left = float(np.linalg.norm(u.T @ out) / np.linalg.norm(u.T @ base))
    assert job.left.share() == pytest.approx(left, rel=2e-2, abs=2e-7)
    return base, wanted, out, left


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("dtype", sorted(FLOAT_WORDS))
def test_less_is_left_and_each_weight_is_a_neighbour(dtype: str, axis: int, rank: int) -> None:
    _, wanted, nearest, much = rewritten(dtype, axis, rank, balanced=False)
    _, _, balanced, little = rewritten(dtype, axis, rank, balanced=True)
    assert little < (0.1 if rank == 1 else 0.3) * much, (little, much)
    # every weight is one of the two values of the dtype between which the wanted one lies (up to fp32 arithmetic)
    moved = balanced != nearest
    assert 0 < moved.mean() < 0.2
    slack = 1e-6 * np.abs(wanted).max()
    assert ((wanted - nearest)[moved] * (wanted - balanced)[moved] <= slack * np.abs(wanted - balanced)[moved]).all()
    codes = [np.frombuffer(encode(x.astype(np.float32), dtype), FLOAT_WORDS[dtype]).astype(np.int64)
             for x in (nearest, balanced)]  # fmt: skip
    assert np.abs(codes[0] - codes[1]).max() == 1
    errors = [float(np.linalg.norm(x - wanted)) for x in (nearest, balanced)]
    assert errors[1] < 1.3 * errors[0]  # the coarser the grid on which the base stands, the more a move costs


@pytest.mark.parametrize("family", ["llama_bias", "gemma2", "gpt2", "mixtral"])
def test_a_whole_model_and_its_rebuild(tmp_path: Path, family: str) -> None:
    base = pico.build(family, tmp_path / "base", torch.bfloat16)
    direction = pico.a_direction(base)
    left: list[float] = []
    hows: Sequence[dict[str, str]] = ({}, {"rounding": "balanced"})
    for k, how in enumerate(hows):
        record = edit(base, direction, tmp_path / str(k), remove=1.0, how=how)
        left.append(max(t.left or 0.0 for t in record.tensors if len(open_checkpoint(str(base)).tensors[t.tensor].shape) > 1))
        assert record.edit.rounding == ("balanced" if how else "nearest")
    assert left[1] < 0.6 * left[0], left  # 32 rows leave few weights to choose among
    assert rebuild(tmp_path / "1", base=base).same
