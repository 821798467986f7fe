"""Edits as hooks on a running model: the same operations that the weights get, on the modules' outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..edits import AddOutput, Gate, Hook, LinearOutput
from ..errors import NonFinite, UsageError

if TYPE_CHECKING:
    from .load import RunningModel


@dataclass(eq=False)
class Steering:
    """Handle of active hooks.

    ``strength`` scales every amount (1 = as written) and can change between tokens: a number, or a tensor with one value
    for each row of the batch, ``[batch]``, or for each position of it, ``[batch, tokens]`` (for one pass: generation moves
    rows between batches and takes numbers only). ``open`` holds, by gated
    module, where the gate let the edit act in the last pass, ``[batch, tokens]`` bool.
    """

    strength: float | torch.Tensor = 1.0
    open: dict[str, torch.Tensor] = field(default_factory=dict)

    def factor(self, output: torch.Tensor) -> float | torch.Tensor:
        """The strength, shaped to multiply a module's output ``[batch, tokens, d_model]``, or ``[batch × tokens, d_model]``
        where the module is a mixture, which sees the positions of all rows one after another.

        Raises:
            UsageError: a tensor whose shape fits neither the batch nor its positions.
        """
        if not isinstance(self.strength, torch.Tensor):
            return self.strength
        given = self.strength.to(output.device, torch.float32)
        if output.ndim == 3 and tuple(given.shape) in {(len(output),), tuple(output.shape[:2])}:
            return given.reshape(*given.shape, *[1] * (3 - given.ndim))
        if output.ndim == 2 and given.ndim == 2 and given.numel() == len(output):
            return given.reshape(-1, 1)
        if output.ndim == 2 and given.ndim == 1 and len(output) % max(1, len(given)) == 0:
            return given.repeat_interleave(len(output) // len(given)).unsqueeze(-1)
        raise UsageError(f"a strength of shape {list(given.shape)} fits neither the rows nor the positions of a batch of "
                         f"shape {list(output.shape[:-1])}", hint="give a number, [batch] or [batch, tokens]")  # fmt: skip


def _changed(output: Any, change: Any) -> Any:
    """Apply ``change`` to a module's output, or to the first item of a tuple of outputs."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


@contextlib.contextmanager
def steering(model: RunningModel, operations: Sequence[Hook]) -> Iterator[Steering]:
    """Run ``model`` with ``operations`` as forward hooks while the context lasts; nothing is changed in place.

    A linear change y + A(Bᵀy) at strength s is y + s A(Bᵀy); a constant is scaled by s. A gated one acts only at the
    positions where the residual stream at its gate lies beyond the threshold.
    """
    handle = Steering()
    model.steered.append(handle)
    gates = {id(op.gate): op.gate for op in operations if op.gate is not None}
    hooks = [model.module(gate.module).register_forward_hook(_gate(gate, handle, model)) for gate in gates.values()]
    hooks += [model.module(op.module).register_forward_hook(_hook(op, handle, model)) for op in operations]
    try:
        yield handle
    finally:
        model.steered.remove(handle)
        for hook in hooks:
            hook.remove()


def _tensor(values: Any, model: RunningModel, where: str) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.float32, device=model.device)
    if not torch.isfinite(tensor).all():
        raise NonFinite("the steering vector is not finite", where=where)
    return tensor


def _key(gate: Gate) -> str:
    return f"{gate.module}:{id(gate)}"


def _gate(gate: Gate, handle: Steering, model: RunningModel) -> Any:
    unit = _tensor(gate.unit, model, gate.module)

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        along = stream.float() @ unit.to(stream.device)
        handle.open[_key(gate)] = along < gate.threshold if gate.below else along > gate.threshold

    return look


def _hook(operation: Hook, handle: Steering, model: RunningModel) -> Any:
    def strength(y: torch.Tensor) -> float | torch.Tensor:
        factor = handle.factor(y)
        if operation.gate is None:
            return factor
        is_open = handle.open[_key(operation.gate)].to(y.device, torch.float32)
        return is_open.reshape(*y.shape[:-1], 1) * factor

    if isinstance(operation, AddOutput):
        vector = _tensor(operation.vector, model, operation.module)
        return lambda _m, _i, output: _changed(output, lambda y: (y.float() + strength(y) * vector.to(y.device)).to(y.dtype))
    write = _tensor(operation.write, model, operation.module)
    read = _tensor(operation.read, model, operation.module)

    def linear(y: torch.Tensor) -> torch.Tensor:
        wide = y.float()
        return (wide + strength(y) * ((wide @ read.to(y.device)) @ write.to(y.device).T)).to(y.dtype)

    assert isinstance(operation, LinearOutput)
    return lambda _m, _i, output: _changed(output, linear)
