"""From an edit to exact tensors: which are changed and how, which are created, which files they lie in.

Nothing is read here but norm gains, which are a few kilobytes; the plan can be printed before anything is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .checkpoint import Checkpoint
from .direction import Direction
from .edits import F64, KINDS, Compiled, Context, NewTensor, Operation
from .edits.numerics import ROWS
from .errors import EditError, RecipeError, UnsupportedModel
from .formats.safetensors import FLOAT_DTYPES, read_tensor
from .records import EditSpec, EditStep, FittedConstant
from .rewrite import CHUNK, PANEL


@dataclass(frozen=True)
class EditPlan:
    """What an edit will do to one checkpoint.

    ``operations`` are by tensor name, in the order in which they apply; ``new`` are tensors that will be created,
    with the dtype of the weight beside them.
    """

    checkpoint: Checkpoint
    spec: EditSpec
    operations: Mapping[str, list[Operation]]
    compiled: Compiled
    fits: Mapping[int, tuple[F64, FittedConstant]] = field(default_factory=dict)

    @classmethod
    def nothing(cls, checkpoint: Checkpoint, spec: EditSpec) -> EditPlan:
        """The plan that changes nothing."""
        return cls(checkpoint, spec, {}, Compiled())

    @property
    def new(self) -> Mapping[str, NewTensor]:
        """Tensors that the edit creates."""
        return self.compiled.new

    @property
    def touched(self) -> list[str]:
        """Names of existing tensors that change, in file order."""
        return [n for n in self.checkpoint.tensors if n in self.operations]

    @property
    def bytes_read(self) -> int:
        """Bytes of all weight files."""
        return sum(f.stat().st_size for f in self.checkpoint.weight_files)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output's weights."""
        extra = sum(t.length * self.checkpoint.tensors[t.beside].nbytes // self.checkpoint.tensors[t.beside].numel
                    for t in self.new.values())  # fmt: skip
        return self.bytes_read + extra

    @property
    def bytes_rewritten(self) -> int:
        """Bytes of the existing tensors that change."""
        return sum(self.checkpoint.tensors[n].nbytes for n in self.touched)

    def peak_memory(self, lanes: int, keep: int) -> int:
        """An upper bound of the resident memory of carrying it out with so many ``lanes``, in bytes.

        The interpreter with its libraries, and for each lane: a tensor that is held between its turns (at most ``keep``
        bytes), the blocks of one in the arithmetic dtype with their scratch, and the buffers of copying and digesting.
        """
        def block(name: str) -> int:
            spec = self.checkpoint.tensors[name]
            wide = 8 if spec.dtype in ("F32", "F64") else 4
            whole = any(o.whole for o in self.operations[name])
            if self.operations[name][0].out_axis == -1:
                return 8 * wide * (spec.numel if whole else max(CHUNK, spec.shape[-1]))
            columns = spec.shape[-1]
            # a block as raw words in and out, one panel of it worked on, and for each operation its sums over the rows
            sums = 3 * 8 * columns * sum(1 if o.cleared is None else o.cleared.shape[1] for o in self.operations[name])
            return ROWS * columns * 2 * wide + 8 * wide * ROWS * (columns if whole else min(columns, PANEL)) + sums

        most = max((min(keep, self.checkpoint.tensors[n].nbytes) + block(n) for n in self.touched), default=0)
        return (96 << 20) + lanes * (most + (4 << 20))

    def as_record(self) -> dict[str, Any]:
        """The plan as plain data, for ``--dry-run --json``."""
        return {
            "tensors_changed": self.touched,
            "tensors_added": list(self.new),
            "config_changes": self.compiled.config,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bytes_rewritten": self.bytes_rewritten,
            "operations": {n: [o.describe() for o in ops] for n, ops in self.operations.items()},
            "notes": self.compiled.notes,
        }


def read_gains(checkpoint: Checkpoint) -> dict[str, F64]:
    """Every norm gain that stands between a writer and the residual stream, fp64 ``[d_model]``."""
    names = {gain for w in checkpoint.architecture.writers for gain in w.gains}
    return {n: np.asarray(read_tensor(checkpoint.tensors[n]), np.float64) for n in sorted(names)}


def compile_edit(
    checkpoint: Checkpoint,
    spec: EditSpec,
    directions: Mapping[str, Direction],
    fits: Mapping[int, tuple[F64, FittedConstant]] | None = None,
    *,
    hooks_only: bool = False,
) -> Compiled:
    """Compile every step of ``spec``, in order, into operations on tensors and on running modules.

    With ``hooks_only`` the operations on tensors are left out, and with them what weights can't hold: a constant is
    then exact in every family.

    Raises:
        RecipeError: a direction that is not there, a layer it lacks, an impossible amount.
        UnknownPlugin: an edit kind that is not installed.
        EditError: an edit that this family can't hold.
    """
    compiled = Compiled()
    context = Context(
        checkpoint.architecture, checkpoint.tensors, checkpoint.config, directions, read_gains(checkpoint),
        fits or {}, compiled, hooks_only,
    )  # fmt: skip
    for step in spec.steps:
        if absent := [d for d in step.digests if d not in directions]:
            raise RecipeError(f"the direction {absent[0][:16]}… was not found", where=spec.name or "edit",
                              hint="put its file beside the edit, or name it with --direction")  # fmt: skip
        _check_strengths(step, context)
        _warn_absurd(step, compiled)
        KINDS.load(step.kind)(step, context)
    if hooks_only and compiled.no_hooks:
        raise EditError(f"this edit has no form as hooks: {compiled.no_hooks}", where=spec.name or "edit",
                        hint="write it as weights with `weightsmith edit`")  # fmt: skip
    if not hooks_only and compiled.only_hooks:
        raise EditError(f"this edit has no form as weights: {compiled.only_hooks}", where=spec.name or "edit",
                        hint="use it as hooks: `weightsmith chat --edit`, or `steering` in Python")  # fmt: skip
    return compiled


def _check_strengths(step: EditStep, context: Context) -> None:
    roles = {w.role for w in context.architecture.writers}
    if odd := sorted(set(step.strengths) - roles - {"*"}):
        raise UnsupportedModel(f"no tensor has the role {odd[0]!r}", where="strengths",
                               hint=f"roles here: {', '.join(sorted(roles))}, or * for all")  # fmt: skip


def _warn_absurd(step: EditStep, compiled: Compiled) -> None:
    if step.kind == "add" and step.dose > 1.5:
        compiled.notes.append(f"a dose of {step.dose:g} is large: models often collapse above 1.5")
    if step.kind == "amplify" and step.amount > 10:
        compiled.notes.append(f"a factor of {step.amount:g} is large: models often collapse above 10")


def plan_edit(
    checkpoint: Checkpoint,
    spec: EditSpec,
    directions: Mapping[str, Direction],
    fits: Mapping[int, tuple[F64, FittedConstant]] | None = None,
) -> EditPlan:
    """Compile ``spec`` and check that every tensor it names can be edited.

    Raises:
        EditError: a tensor of a dtype that can't be cast back (a quantised checkpoint).
        RecipeError, UnknownPlugin: as :func:`compile_edit`.
    """
    compiled = compile_edit(checkpoint, spec, directions, fits)
    operations: dict[str, list[Operation]] = defaultdict(list)
    for operation in compiled.operations:
        operations[operation.tensor].append(operation)
    for name in operations:
        spec_ = checkpoint.tensors.get(name)
        if spec_ is not None and spec_.dtype not in FLOAT_DTYPES:
            raise EditError(f"{name!r} is {spec_.dtype}: quantised weights can't be edited in place",
                            where=checkpoint.path, hint="use the unquantised model")  # fmt: skip
    return EditPlan(checkpoint, spec, dict(operations), compiled, dict(fits or {}))
