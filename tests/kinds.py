"""Steps, tensors and matrices for the tests of edit kinds: what was edited, read back as plain fp64 numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pico
from bits import a_basis as a_basis
from bits import removal as removal
from weightsmith.checkpoint import open_checkpoint
from weightsmith.direction import Direction
from weightsmith.edits import Operation
from weightsmith.execute import execute
from weightsmith.formats.safetensors import TensorSpec, decode, encode, read_tensor
from weightsmith.plan import compile_edit, plan_edit
from weightsmith.records import Derivation, EditSpec, EditStep
from weightsmith.rewrite import Rewriting

Pico = Callable[..., Path]
Array = np.ndarray[Any, Any]
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn,
          "F8_E5M2": torch.float8_e5m2}  # fmt: skip


def builder(root: Path) -> Pico:
    """Pico models by family, dtype and config, each built once."""
    built: dict[str, Path] = {}

    def get(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
        key = f"{family}-{dtype}-{sorted(overrides.items())}"
        if key not in built:
            built[key] = pico.build(family, root / f"{family}{len(built)}", dtype, **overrides)
        return built[key]

    return get


def a_step(kind: str, direction: Direction, **fields: Any) -> EditStep:
    layers = fields.pop("layers", list(direction.meta.layers))
    return EditStep(**{"kind": kind, "direction": direction.digest(), "source": 1, "layers": layers, "amount": 1.0,
                       **fields})  # fmt: skip


def write(base: Path, steps: Sequence[EditStep], known: Sequence[Direction], out: Path) -> Derivation:
    found = {d.digest(): d for d in known}
    return execute(plan_edit(open_checkpoint(str(base)), EditSpec(steps=list(steps)), found), out, found, transfer=True)


def canonical(values: Array, out_axis: int) -> Array:
    """A tensor as fp64 ``[..., out, in]``."""
    wide = values.astype(np.float64)
    return wide if out_axis == -2 else wide.reshape(-1, wide.shape[-1]).T


def writers(folder: Path) -> dict[str, tuple[Any, Array]]:
    """Every tensor that writes to the residual stream, as fp64 ``[..., out, in]``."""
    checkpoint = open_checkpoint(str(folder))
    return {w.tensor: (w, canonical(read_tensor(checkpoint.tensors[w.tensor]), w.out_axis))
            for w in checkpoint.architecture.writers}  # fmt: skip


def gained(folder: Path, writer: Any, columns: Array) -> Array:
    """Orthonormal basis of g ⊙ columns, with the gains read here and now, by way of QR."""
    checkpoint = open_checkpoint(str(folder))
    for name in writer.gains:
        columns = columns * (read_tensor(checkpoint.tensors[name]) + writer.gain_offset).astype(np.float64)[:, None]
    return np.linalg.qr(columns)[0]


def rewritten(w: Array, operations: Sequence[Operation], dtype: str = "F32") -> tuple[Array, float | None]:
    """A tensor through operations, from bytes to bytes; its values after the cast, and the share left."""
    raw = memoryview(encode(np.ascontiguousarray(w).reshape(-1), dtype))
    job = Rewriting(TensorSpec("t", dtype, w.shape, Path("t"), 0, len(raw)), operations, lambda a, b: raw[a:b])
    with np.errstate(over="ignore", invalid="ignore"):
        data = b"".join(job.blocks())
    return decode(data, dtype, np.float64).reshape(w.shape), job.left.share()


def operations_of(base: Path, step: EditStep, known: Sequence[Direction]) -> dict[str, Any]:
    compiled = compile_edit(open_checkpoint(str(base)), EditSpec(steps=[step]), {d.digest(): d for d in known})
    return {o.tensor: o for o in compiled.operations}
