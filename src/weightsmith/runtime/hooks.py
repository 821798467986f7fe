"""Edits as hooks on a running model: the same operations that the weights get, on the modules' outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..edits import AddOutput, ScaleOutput
from ..errors import NonFinite

if TYPE_CHECKING:
    from .load import RunningModel


@dataclass
class Steering:
    """Handle of active hooks; ``strength`` scales every amount and can change between tokens (1 = as written)."""

    strength: float = 1.0


def _changed(output: Any, change: Any) -> Any:
    """Apply ``change`` to a module's output, or to the first item of a tuple of outputs."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


@contextlib.contextmanager
def steering(model: RunningModel, operations: Sequence[ScaleOutput | AddOutput]) -> Iterator[Steering]:
    """Run ``model`` with ``operations`` as forward hooks while the context lasts; nothing is changed in place.

    Removing with factor f at strength s multiplies the component by 1 + s (f − 1); a constant is scaled by s.
    """
    handle = Steering()
    hooks = [model.module(op.module).register_forward_hook(_hook(op, handle, model)) for op in operations]
    try:
        yield handle
    finally:
        for hook in hooks:
            hook.remove()


def _hook(operation: ScaleOutput | AddOutput, handle: Steering, model: RunningModel) -> Any:
    vector = operation.u if isinstance(operation, ScaleOutput) else operation.vector
    tensor = torch.tensor(vector, dtype=torch.float32, device=model.device)
    if not torch.isfinite(tensor).all():
        raise NonFinite("the steering vector is not finite", where=operation.module)

    def scale(y: torch.Tensor) -> torch.Tensor:
        factor = handle.strength * (operation.factor - 1.0)  # type: ignore[union-attr]
        wide = y.float()
        return (wide + factor * (wide @ tensor).unsqueeze(-1) * tensor).to(y.dtype)

    def shift(y: torch.Tensor) -> torch.Tensor:
        return (y.float() + handle.strength * tensor).to(y.dtype)

    change = scale if isinstance(operation, ScaleOutput) else shift
    return lambda _module, _inputs, output: _changed(output, change)
