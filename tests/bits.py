"""Digests of what every operation makes of a matrix; without torch, since other processes compute them as well."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.edits import Operation
from weightsmith.edits.numerics import orthonormal
from weightsmith.edits.operations import AddRankOne, Project, ProjectKeepInputNorms, ProjectKeepOutputNorms
from weightsmith.formats.safetensors import TensorSpec, encode
from weightsmith.rewrite import Rewriting


def a_basis(d: int, k: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    """Orthonormal columns ``[d, k]``."""
    return orthonormal(list(np.random.default_rng(seed).standard_normal((k, d))))


def removal(u: np.ndarray[Any, Any], out_axis: int = -2, factor: float = 0.0) -> Project:
    """What is along ``u`` times ``factor``."""
    return Project("t", out_axis, (factor - 1.0) * u, u, u if factor == 0.0 else None, "removal")


def weights(shape: tuple[int, ...], dtype: str, seed: int = 0) -> bytes:
    """A matrix with the spread of real weights."""
    dice = np.random.default_rng(seed)
    return encode((0.02 * dice.standard_normal(shape)).astype(np.float32).reshape(-1), dtype)


def digest(shape: tuple[int, ...], dtype: str, operations: list[Operation], *, figure: bool = True) -> str:
    """Of the rewritten bytes, and with ``figure`` of what was measured to be left."""
    raw = memoryview(weights(shape, dtype))
    job = Rewriting(TensorSpec("t", dtype, shape, Path("t"), 0, len(raw)), operations, lambda a, b: raw[a:b])
    whole = hashlib.sha256()
    for block in job.blocks():
        whole.update(block)
    if figure:
        whole.update(np.float64(job.left.share() or 0.0).tobytes())
    return whole.hexdigest()


def digests(rows: int = 896, columns: int = 4864, *, figure: bool = True) -> dict[str, str]:
    """Every operation on a matrix of a small real model, in each layout and dtype that matters."""
    def digest_(shape: tuple[int, ...], dtype: str, operations: list[Operation]) -> str:
        return digest(shape, dtype, operations, figure=figure)

    u = a_basis(rows, 2)
    w = 0.1 * a_basis(columns, 1, 3)[:, 0]
    one = u[:, :1]
    return {
        "remove bf16": digest_((rows, columns), "BF16", [removal(one)]),
        "remove f16, transposed": digest_((columns, rows), "F16", [removal(one, -1)]),
        "remove two f32": digest_((rows, columns // 4), "F32", [removal(u)]),
        "remove f8": digest_((rows, columns // 4), "F8_E4M3", [removal(one)]),
        "experts": digest_((3, rows // 4, columns // 4), "BF16", [removal(a_basis(rows // 4))]),
        "amplify, add": digest_((rows, columns // 2), "BF16", [removal(one, factor=2.5), AddRankOne("t", u[:, 1], w[
            : columns // 2], -2)]),
        "input norms": digest_((rows, columns // 2), "BF16", [ProjectKeepInputNorms("t", -2, one, 0.0, "x", u[:, 1:])]),
        "output norms": digest_((rows, columns // 8), "BF16", [ProjectKeepOutputNorms("t", -2, one, "x")]),
        "directions": hashlib.sha256(u.tobytes()).hexdigest(),
    }  # fmt: skip


def plain_product(rows: int = 896, columns: int = 4864) -> str:
    """What the usual code does: an fp32 product by way of BLAS, and a cast."""
    wide = np.frombuffer(weights((rows, columns), "F32"), "<f4").reshape(rows, columns)
    r = a_basis(rows)[:, 0].astype(np.float32)
    return hashlib.sha256(encode(wide - np.outer(r, r @ wide), "BF16")).hexdigest()
