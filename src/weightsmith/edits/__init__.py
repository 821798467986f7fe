"""The mathematics of edits, one file per kind, apart from the streaming.

An edit kind is a function ``compile(step, context)`` registered under its name. It appends *operations*, each of which
acts on one tensor, and *hooks*, which do the same to the outputs of running modules. Weights, adapters and hooks are
compiled from the same step, so they agree.

Operations see a writer in canonical orientation, ``[out, in]`` with ``out`` = d_model, whatever its layout on disk, in
blocks of rows; see :mod:`weightsmith.rewrite` for who calls them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..architecture import Architecture, Writer
from ..direction import Direction
from ..errors import EditError, RecipeError, ShapeMismatch
from ..formats.safetensors import TensorSpec
from ..records import EditStep, FittedConstant
from ..registry import Registry
from .numerics import F64 as F64
from .numerics import Array as Array
from .numerics import orthonormal


class State(Protocol):
    """One operation at work on one matrix ``[out, in]``."""

    def see(self, turn: int, rows: slice, values: Array) -> None:
        """Look at a block of rows, in ascending order, in each of the operation's turns; ``values`` may be overwritten."""
        ...

    def end(self, turn: int) -> bool:
        """The matrix has been seen whole in this turn; whether no further turn is needed."""
        ...

    def apply(self, rows: slice, values: Array) -> Array:
        """The block after the change; it may be changed in place."""
        ...

    def had(self) -> F64 | None:
        """clearedᵀ W ``[k, in]`` before the change where it is known after all turns, else ``None``."""
        ...

    def factors(self) -> tuple[F64, F64] | None:
        """(write ``[out, k]``, read ``[k, in]``) with change = write @ read, after all turns; ``None`` where the change
        has no low rank."""
        ...


class Operation(Protocol):
    """One change of one tensor.

    ``turns`` is how often, at most, the whole matrix must be seen before the first block can be changed; ``whole`` says that a
    matrix whose rows lie along the output axis can't be changed a few input vectors at a time. ``cleared`` holds
    orthonormal columns ``[out, k]`` along which nothing may be left, or ``None``.
    """

    @property
    def tensor(self) -> str:
        """Name of the tensor that is changed."""
        ...

    @property
    def out_axis(self) -> int:
        """Axis of the tensor on disk that runs over d_model: −2 or −1."""
        ...

    @property
    def turns(self) -> int: ...

    @property
    def whole(self) -> bool: ...

    @property
    def cleared(self) -> F64 | None: ...

    def begin(self, columns: slice, dtype: Any) -> State:
        """Start on the input vectors ``columns`` of one matrix; the arithmetic is done in ``dtype``."""
        ...

    def describe(self) -> str:
        """The change in one line, for the record."""
        ...


@dataclass(frozen=True)
class Gate:
    """When a hook acts: where the residual stream h after ``module`` has ĝᵀh > ``threshold`` (or <, with ``below``)."""

    module: str
    unit: F64
    threshold: float
    below: bool = False


@dataclass(frozen=True)
class LinearOutput:
    """On a module's output y ``[..., d_model]``: y + write (readᵀ y), both ``[d_model, k]``."""

    module: str
    write: F64
    read: F64
    gate: Gate | None = None


@dataclass(frozen=True)
class AddOutput:
    """On a module's output y ``[..., d_model]``: y + vector; ``layer`` is the block that it belongs to."""

    module: str
    vector: F64
    gate: Gate | None = None
    layer: int = -1


Hook = LinearOutput | AddOutput


@dataclass
class NewTensor:
    """A bias that the edit creates: zeros until operations fill it; ``beside`` is the tensor whose file it joins."""

    name: str
    length: int
    beside: str


@dataclass
class Compiled:
    """What the steps of an edit come to on one checkpoint.

    ``no_hooks`` says why a running module can't do the same by a change of its output, where that is so, and
    ``only_hooks`` why weights can't. ``unhooked`` names what the hooks leave out, where an adapter can hold it.
    """

    operations: list[Operation] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    new: dict[str, NewTensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fitted: list[FittedConstant] = field(default_factory=list)
    no_hooks: str = ""
    only_hooks: str = ""
    unhooked: str = ""


@dataclass
class Context:
    """What an edit kind may read: the checkpoint's roles, shapes and gains, the directions, fitted constants.

    ``gains`` are the stored gains of norms by name, fp64 ``[d_model]``. ``fits[layer]`` is the vector w ``[d_in]``
    with wᵀx ≈ 1, for constants that have to be fitted; it is absent unless the caller ran the model.
    """

    architecture: Architecture
    tensors: Mapping[str, TensorSpec]
    config: Mapping[str, Any]
    directions: Mapping[str, Direction]
    gains: Mapping[str, F64]
    fits: Mapping[int, tuple[F64, FittedConstant]]
    compiled: Compiled
    hooks_only: bool = False

    def row(self, step: EditStep, layer: int) -> int:
        """The layer whose vector ``step`` uses in ``layer``."""
        return layer if step.source == "each" else int(step.source)

    def vector(self, step: EditStep, layer: int) -> F64:
        """Unit vector that ``step`` uses in ``layer``, fp64 ``[d_model]``, protected features taken out."""
        source = self.row(step, layer)
        return self.residual(self.directions[step.direction].unit(source), self.guarded(step, layer), step)

    def guarded(self, step: EditStep, layer: int) -> list[F64]:
        """Unit vectors that must not move: the protected directions at the layer whose vector is used."""
        source = self.row(step, layer)
        for digest in step.protect:
            self._same_width(digest, step)
        return [self.directions[digest].unit(source) for digest in step.protect]

    def _same_width(self, digest: str, step: EditStep) -> None:
        width = self.directions[digest].vectors.shape[1]
        if width != self.architecture.d_model:
            raise ShapeMismatch(f"the direction {digest[:16]}… has width {width}, this model {self.architecture.d_model}",
                                where=step.kind)  # fmt: skip

    @staticmethod
    def residual(unit: F64, others: Sequence[F64], step: EditStep) -> F64:
        """What is left of ``unit`` after its part in the span of ``others`` is taken out, at length one.

        Raises:
            EditError: less than a twentieth is left, so there is nothing to edit that is the feature's own.
        """
        if not others:
            return unit
        rest = unit.copy()
        for other in orthonormal(others).T:
            rest -= other * float((other * rest).sum())
        norm = float(np.sqrt((rest * rest).sum()))
        if norm < 0.05:
            raise EditError(f"only {norm:.1%} of the direction lies outside what is kept", where=step.kind,
                            hint="protect fewer features, or use another layer's vector")  # fmt: skip
        return np.asarray(rest / norm, np.float64)

    def basis(self, step: EditStep, layer: int, *keep: F64) -> F64:
        """Orthonormal columns ``[d_model, k]`` of everything that ``step`` acts on in ``layer``: its direction, the
        ones of ``also``; the span of ``keep`` and of the protected features taken out of each."""
        source = self.row(step, layer)
        for digest in (step.direction, *step.also):
            self._same_width(digest, step)
        units = [self.directions[digest].unit(source) for digest in (step.direction, *step.also)]
        others = [*keep, *self.guarded(step, layer)]
        return orthonormal([self.residual(unit, others, step) for unit in units])

    def written(self, writer: Writer, basis: F64) -> F64:
        """What ``writer``'s output must be read along: the basis ``[d_model, k]``, or where norms with gain g follow
        (the product of their gains, where there are two) an orthonormal basis of g ⊙ each of its columns."""
        if not writer.gains:
            return basis
        gain = np.ones(len(basis))
        for name in writer.gains:
            gain = gain * (self.gains[name] + writer.gain_offset)
        return orthonormal([gain * column for column in basis.T])

    def strength(self, step: EditStep, role: str, layer: int | None) -> float:
        """The step's amount in one role and layer."""
        amount = step.amount
        for key in dict.fromkeys((role, "*")):  # an addition has the one role `*`, which must not count twice
            if key in step.strengths and layer is not None:
                amount *= step.strengths[key][step.layers.index(layer)]
        return amount

    def gate(self, step: EditStep) -> Gate | None:
        """The step's gate as a module and a unit vector.

        Raises:
            RecipeError: its layer is not below the first edited one, so it could not be known in time.
        """
        if step.gate is None:
            return None
        layer = step.gate.layer
        if not 0 <= layer < self.architecture.n_layers:
            raise RecipeError(f"the gate's layer {layer} is not one of 0 to {self.architecture.n_layers - 1}")
        if layer >= min(step.layers):
            raise RecipeError(f"the gate reads layer {layer}, which is not below the first edited layer {min(step.layers)}",
                              hint="a gate must be known before what it opens")  # fmt: skip
        self.compiled.only_hooks = "a gate depends on the running text"
        unit = self.directions[step.gate.direction].unit(layer)
        return Gate(self.architecture.block(layer).removesuffix("."), unit, step.gate.threshold, step.gate.below)

    def writers(self, roles: Sequence[str], layers: Sequence[int]) -> list[Writer]:
        """Writers of these roles and layers, biases that earlier steps created included."""
        found = self.architecture.select(roles, layers)
        for name in self.compiled.new:
            match = next((w for w in found if name.removesuffix("bias") == w.tensor.removesuffix("weight")), None)
            if match is not None and not any(w.tensor == name for w in found):
                found.append(Writer(match.role, match.layer, name, -1, match.module, True, match.gain,
                                    match.gain_offset, match.outer_gain))  # fmt: skip
        return found


KINDS = Registry(
    "edits",
    {
        "remove": "weightsmith.edits.scale:remove",
        "amplify": "weightsmith.edits.scale:amplify",
        "projected": "weightsmith.edits.projected:projected",
        "biprojected": "weightsmith.edits.projected:biprojected",
        "affine": "weightsmith.edits.affine:affine",
        "leace": "weightsmith.edits.affine:leace",
        "oblique": "weightsmith.edits.oblique:oblique",
        "add": "weightsmith.edits.constant:add",
    },
)
