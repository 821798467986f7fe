"""Fitting a constant where no bias can hold one: w with wᵀx ≈ 1 over the inputs x of a linear.

Ridge regression in the dual (as many unknowns as tokens), on the inputs that the model really sees *while the constants
of earlier layers are in place*. A plain mean-input fit (w ∝ x̄) delivers only part of the dose on other prompts; here
the penalty is chosen on prompts left out of the fit, w is rescaled there to a mean of one, and the delivered dose is
reported on a third set of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch

from ..edits import AddOutput
from ..errors import EditError
from ..records import FittedConstant
from ..runtime import RunningModel, generate, steering
from ..runtime.forward import batches, padded

F64 = np.ndarray[Any, np.dtype[np.float64]]
MAX_TOKENS = 3000  # rows of the dual system: its solve costs MAX_TOKENS³/3 operations a layer
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def fit_constants(
    model: RunningModel, prompts: Seq[list[int]], additions: Seq[AddOutput], layers: Seq[int], tokens: int = 24
) -> dict[int, tuple[F64, FittedConstant]]:
    """w ``[d_in]`` and its report for every layer, from ``prompts`` (token ids) and the model's answers to them.

    ``additions[k]`` is the constant of ``layers[k]``.

    Raises:
        EditError: too few prompts to hold some out.
    """
    if len(prompts) < 10:
        raise EditError(f"{len(prompts)} prompts are too few to fit a constant and test it", hint="give at least 10")
    answers = generate(model, prompts, tokens, "fitting constants: answering")
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    inputs = _inputs(model, rows, additions)
    part = np.arange(len(rows)) % 5  # 3/5 fit, 1/5 tune, 1/5 report, by prompt
    return {
        layer: _fit(layer, inputs[op.module], part) for layer, op in zip(layers, additions, strict=True)
    }


def _inputs(model: RunningModel, rows: Seq[list[int]], additions: Seq[AddOutput]) -> dict[str, list[F64]]:
    """Inputs of each module, per prompt ``[tokens, d_in]``; the first token, which every model treats apart, left out."""
    found: dict[str, list[F64]] = {op.module: [np.empty(0)] * len(rows) for op in additions}
    current: list[int] = []

    def keep(module: str) -> Any:
        def hook(_m: Any, args: tuple[torch.Tensor, ...]) -> None:
            wide = args[0].float().cpu().numpy()
            for b, i in enumerate(current):
                found[module][i] = wide[b, 1 : len(rows[i])].astype(np.float64)

        return hook

    handles = [model.module(op.module).register_forward_pre_hook(keep(op.module)) for op in additions]
    try:
        with torch.inference_mode(), steering(model, additions):
            for batch in batches([len(r) for r in rows], model.options.batch_tokens, model.options.batch_size):
                current[:] = batch
                model.stack(input_ids=padded([rows[i] for i in batch], model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _fit(layer: int, inputs: list[F64], part: Any) -> tuple[F64, FittedConstant]:
    def rows(keep: Any) -> F64:
        return np.concatenate([x for x, k in zip(inputs, keep, strict=True) if k])

    train, tune, report = rows(part < 3), rows(part == 3), rows(part == 4)
    if len(train) > MAX_TOKENS:
        train = train[np.linspace(0, len(train) - 1, MAX_TOKENS).astype(int)]
    gram = train @ train.T
    scale = float(np.trace(gram)) / len(train)
    best: tuple[float, F64] | None = None
    for penalty in PENALTIES:
        w = train.T @ np.linalg.solve(gram + penalty * scale * np.eye(len(train)), np.ones(len(train)))
        got = tune @ w
        w = w / got.mean()
        error = float(((tune @ w - 1) ** 2).mean())
        if np.isfinite(error) and (best is None or error < best[0]):
            best = (error, w)
    if best is None:
        raise EditError(f"no constant can be fitted in layer {layer}: its inputs are degenerate")
    delivered = report @ best[1]
    return best[1], FittedConstant(layer=layer, mean_dose=float(delivered.mean()), spread=float(delivered.std()),
                                   n_tokens=len(report))  # fmt: skip
