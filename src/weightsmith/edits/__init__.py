"""The mathematics of edits, one file per kind, apart from the streaming.

An edit kind is a function ``compile(step, context) -> list[Operation]`` registered under its name. An *operation* acts
on one tensor in fp64 and knows its own description. Weights and hooks are compiled from the same step, so they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..architecture import Architecture, Writer
from ..direction import Direction
from ..formats.safetensors import TensorSpec
from ..records import EditStep, FittedConstant
from ..registry import Registry

F64 = np.ndarray[Any, np.dtype[np.float64]]


class Operation(Protocol):
    """One change of one tensor."""

    @property
    def tensor(self) -> str:
        """Name of the tensor that is changed."""
        ...

    def apply(self, values: F64) -> F64:
        """The tensor after the change, fp64, same shape."""
        ...

    def describe(self) -> str:
        """The change in one line, for the record."""
        ...


@dataclass(frozen=True)
class ScaleOutput:
    """On a module's output y ``[..., d_model]``: y + (factor − 1) u (uᵀy)."""

    module: str
    u: F64
    factor: float


@dataclass(frozen=True)
class AddOutput:
    """On a module's output y ``[..., d_model]``: y + vector."""

    module: str
    vector: F64


@dataclass
class NewTensor:
    """A bias that the edit creates: zeros until operations fill it; ``beside`` is the tensor whose file it joins."""

    name: str
    length: int
    beside: str


@dataclass
class Compiled:
    """What the steps of an edit come to on one checkpoint."""

    operations: list[Operation] = field(default_factory=list)
    hooks: list[ScaleOutput | AddOutput] = field(default_factory=list)
    new: dict[str, NewTensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fitted: list[FittedConstant] = field(default_factory=list)


@dataclass
class Context:
    """What an edit kind may read: the checkpoint's roles, shapes and gains, the directions, fitted constants.

    ``gain(name)`` returns the stored gain of a norm, fp64 ``[d_model]``. ``fits[layer]`` is the vector w
    ``[d_in]`` with wᵀx ≈ 1, for constants that have to be fitted; it is absent unless the caller ran the model.
    """

    architecture: Architecture
    tensors: Mapping[str, TensorSpec]
    config: Mapping[str, Any]
    directions: Mapping[str, Direction]
    gains: Mapping[str, F64]
    fits: Mapping[int, tuple[F64, FittedConstant]]
    compiled: Compiled
    hooks_only: bool = False

    def vector(self, step: EditStep, layer: int) -> F64:
        """Unit vector that ``step`` uses in ``layer``."""
        direction = self.directions[step.direction]
        return direction.unit(layer if step.source == "each" else int(step.source))

    def written(self, writer: Writer, unit: F64) -> F64:
        """The unit vector u that ``writer``'s output must be read along: r, or g ⊙ r / ‖g ⊙ r‖ where a norm follows."""
        if writer.gain is None:
            return unit
        scaled = (self.gains[writer.gain] + writer.gain_offset) * unit
        return scaled / float(np.sqrt((scaled * scaled).sum()))

    def writers(self, roles: Sequence[str], layers: Sequence[int]) -> list[Writer]:
        """Writers of these roles and layers, biases that earlier steps created included."""
        found = self.architecture.select(roles, layers)
        for name in self.compiled.new:
            match = next((w for w in found if name.removesuffix("bias") == w.tensor.removesuffix("weight")), None)
            if match is not None and not any(w.tensor == name for w in found):
                found.append(Writer(match.role, match.layer, name, -1, match.module, True, match.gain,
                                    match.gain_offset))  # fmt: skip
        return found


KINDS = Registry(
    "edits",
    {
        "remove": "weightsmith.edits.scale:remove",
        "amplify": "weightsmith.edits.scale:amplify",
        "add": "weightsmith.edits.constant:add",
    },
)
