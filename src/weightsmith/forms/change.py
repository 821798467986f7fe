"""An edit as the change of each module: low-rank factors, and a constant.

A linear says W x + b. Whatever the steps, a linear change of what it says comes to ΔW = write @ read, of exact rank, and
to a constant Δb, which includes what the change makes of the bias that is there. Adapters hold both, where their format
can.

An adapter's constant needs no bias in the model, so an addition is exact in every family whose layers end in a linear:
it is fitted only where the edit asks for ``constant: fitted``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..architecture import Writer
from ..checkpoint import Checkpoint
from ..direction import Direction
from ..edits import F64, AddOutput, Compiled, LinearOutput, Operation
from ..errors import EditError, Truncated
from ..formats.safetensors import TensorSpec, read_tensor
from ..plan import compile_edit
from ..records import EditSpec, EditStep, FittedConstant
from ..rewrite import Reader, blocks, low_rank
from ..storage import parallel_map, usable_cores

#: singular values of a change below this share of the largest are rounding
DEPENDENT = 1e-10
PART = 1 << 24  # elements of an embedding that are read at a time
GATED = "a gate depends on the running text, and no file can hold it"
NORMS = "keeping norms rescales each vector by itself, which has no low rank"
EXPERTS = "routed experts end this layer, and an adapter has no constant for them"
Factors = tuple[F64, F64]
Fits = Mapping[int, tuple[F64, FittedConstant]]


@dataclass(frozen=True)
class Matrix:
    """The change of one tensor: for each of its matrices (several where experts are fused) (write ``[out, k]``,
    read ``[k, in]``), fp64 and of exact rank; ``what`` says it in words."""

    writer: Writer
    factors: Sequence[Factors]
    what: Sequence[str]

    @property
    def rank(self) -> int:
        """The largest rank of its matrices."""
        return max(int(write.shape[1]) for write, _ in self.factors)


@dataclass(frozen=True)
class Change:
    """What an edit comes to on one checkpoint: matrices by tensor name, constants ``[d_model]`` by module."""

    matrices: Mapping[str, Matrix]
    constants: Mapping[str, F64]
    fitted: Sequence[FittedConstant] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)


def needs_fit(step: EditStep) -> bool:
    """Whether a step's constant is a fitted rank-1 update in an adapter: only on request."""
    return step.constant == "fitted" and step.amount != 0.0


def exactly(spec: EditSpec) -> EditSpec:
    """``spec`` with every constant exact that does not ask to be fitted, as an adapter holds it."""
    steps = [s if s.constant else s.model_copy(update={"constant": "exact"}) for s in spec.steps]
    return spec.model_copy(update={"steps": steps})


def refuse_unheld(spec: EditSpec) -> None:
    """Refuse what no adapter can hold.

    Raises:
        EditError: a gate, or norms that are kept.
    """
    for step in spec.steps:
        if step.gate is not None:
            raise _no_form(spec, GATED, "use it as hooks: `weightsmith chat --edit`, or `steering` in Python")
        if step.norms in ("input", "output") or (step.kind == "biprojected" and step.norms is None):
            raise _no_form(spec, NORMS, "use `--norms free`, or write it as weights")


def _no_form(spec: EditSpec, why: str, hint: str) -> EditError:
    return EditError(f"this edit has no form as an adapter: {why}", where=spec.name or "edit", hint=hint)


def change_of(
    checkpoint: Checkpoint, spec: EditSpec, directions: Mapping[str, Direction], fits: Fits | None = None
) -> Change:
    """Compile ``spec`` and compute its change of every tensor; the weights are read, nothing is written.

    Raises:
        EditError: an edit that has no such form: gates, kept norms, a constant that no linear can hold.
        RecipeError, UnknownPlugin: as :func:`weightsmith.plan.compile_edit`.
    """
    refuse_unheld(spec)
    fitted = any(needs_fit(s) for s in spec.steps)
    compiled = compile_edit(checkpoint, spec if fitted else exactly(spec), directions, fits, hooks_only=not fitted)
    writers = {w.tensor: w for w in checkpoint.architecture.writers}
    constants = _constants_of_tensors(checkpoint, compiled) if fitted else _constants_of_hooks(checkpoint, compiled)
    changed: dict[str, list[Operation]] = {}
    for operation in compiled.operations:
        if operation.tensor in writers and not _is_output_bias(writers[operation.tensor], checkpoint):
            changed.setdefault(operation.tensor, []).append(operation)
    found = parallel_map(lambda name: _matrix(checkpoint, writers[name], changed[name]), list(changed),
                         workers=usable_cores())  # fmt: skip
    if any(m is None for m in found):
        raise _no_form(spec, NORMS, "write it as weights")
    matrices = {m.writer.tensor: m for m in found if m is not None and m.rank}
    return Change(matrices, constants, compiled.fitted, compiled.notes)


def _is_output_bias(writer: Writer, checkpoint: Checkpoint) -> bool:
    """A bias of one linear, which is a constant of its module; the biases of fused experts are a matrix."""
    return writer.is_bias and len(checkpoint.tensors[writer.tensor].shape) == 1


def _reader(spec: TensorSpec) -> Reader:
    def read(start: int, stop: int) -> bytes:
        with spec.file.open("rb") as file:
            file.seek(spec.start + start)
            data = file.read(stop - start)
        if len(data) != stop - start:
            raise Truncated("the file ends before the tensor does", where=spec.file)
        return data

    return read


def _matrix(checkpoint: Checkpoint, writer: Writer, operations: Sequence[Operation]) -> Matrix | None:
    spec = checkpoint.tensors[writer.tensor]
    parts = [low_rank(part, operations, _reader(part)) for part in _parts(spec, writer)]
    if any(part is None for part in parts):
        return None
    pairs = [pair for part in parts if part is not None for pair in part]
    if writer.role == "embed":  # every part writes along the same directions
        pairs = [(pairs[0][0], np.concatenate([read for _, read in pairs], axis=1))]
    if len(spec.shape) == 3 and writer.out_axis == -1:  # [experts, in, out]: all of them were read as one wide matrix
        write, read = pairs[0]
        pairs = [(write, part) for part in np.split(read, spec.shape[0], axis=1)]
    return Matrix(writer, [exact_rank(*pair) for pair in pairs], [o.describe() for o in operations])


def _parts(spec: TensorSpec, writer: Writer) -> list[TensorSpec]:
    """An embedding a few thousand tokens at a time, since a large one in fp64 would fill the memory; others whole."""
    if writer.role != "embed":
        return [spec]
    rows, width = spec.shape
    each, step = spec.nbytes // rows, max(1, PART // width)
    return [replace(spec, shape=(min(step, rows - first), width), start=spec.start + first * each,
                    nbytes=min(step, rows - first) * each) for first in range(0, rows, step)]  # fmt: skip


def exact_rank(write: np.ndarray[Any, Any], read: np.ndarray[Any, Any]) -> Factors:
    """The same product with independent columns of ``write`` and as many rows of ``read`` as it really has rank.

    Steps that act along the same direction come one after another as several columns; their product has less.
    """
    write, read = np.asarray(write, np.float64), np.asarray(read, np.float64)
    if not write.any() or not read.any():
        return write[:, :0], read[:0]
    if write.shape[1] == 1:
        return write, read
    basis, small = np.linalg.qr(write)
    core = small @ read
    left, sizes, right = np.linalg.svd(core, full_matrices=False)
    rank = int((sizes > DEPENDENT * sizes[0] * max(1.0, np.linalg.norm(write) * np.linalg.norm(read) / sizes[0])).sum())
    return basis @ (left[:, :rank] * sizes[:rank]), right[:rank]


# -- constants ---------------------------------------------------------------------------------------------


def _constants_of_hooks(checkpoint: Checkpoint, compiled: Compiled) -> dict[str, F64]:
    """What each module's output is moved by: its hooks in order, on the bias that it has."""
    holders = {w.module: w for w in checkpoint.architecture.writers if not w.is_bias}
    biases = {w.module: w.tensor for w in checkpoint.architecture.writers if _is_output_bias(w, checkpoint)}
    start: dict[str, F64] = {}
    now: dict[str, F64] = {}
    for hook in compiled.hooks:
        if isinstance(hook, AddOutput):
            _check_holder(checkpoint, holders.get(hook.module), hook.module)
        if hook.module not in now:
            name = biases.get(hook.module)
            bias = np.zeros(checkpoint.architecture.d_model) if name is None else _bias(checkpoint, name)
            start[hook.module], now[hook.module] = bias, bias
        y = now[hook.module]
        if isinstance(hook, LinearOutput):
            now[hook.module] = y + (hook.write * (hook.read * y[:, None]).sum(0)).sum(1)
        else:
            now[hook.module] = y + hook.vector
    return {module: now[module] - start[module] for module in now if (now[module] != start[module]).any()}


def _check_holder(checkpoint: Checkpoint, writer: Writer | None, module: str) -> None:
    """A constant needs a linear that writes to the residual stream without a norm between; else its hook is the block's.

    Raises:
        EditError: a post-norm family, or a layer that ends in routed experts.
    """
    if writer is not None:
        return
    family = checkpoint.architecture.family
    what = "a multiplier" if family.scaled else "a norm"
    why = f"a {family.name} model can't hold a constant in an adapter: {what} follows every writer"
    raise EditError(why if family.post_norm else EXPERTS, where=module,
                    hint="export a control vector, or use the hook in `weightsmith chat`")  # fmt: skip


def _bias(checkpoint: Checkpoint, name: str) -> F64:
    return np.asarray(read_tensor(checkpoint.tensors[name]), np.float64)


def _constants_of_tensors(checkpoint: Checkpoint, compiled: Compiled) -> dict[str, F64]:
    """What each bias changes by, where the weights' own operations are exported (a fit was asked for)."""
    modules = {w.tensor: w.module for w in checkpoint.architecture.writers if _is_output_bias(w, checkpoint)}
    made = {name: name.removesuffix(".bias") for name in compiled.new}
    found: dict[str, F64] = {}
    for name in dict.fromkeys(o.tensor for o in compiled.operations if o.tensor in modules or o.tensor in made):
        operations = [o for o in compiled.operations if o.tensor == name]
        before = _bias(checkpoint, name) if name in modules else np.zeros(compiled.new[name].length)
        delta = _applied(before, operations) - before
        if delta.any():
            found[modules.get(name) or made[name]] = delta
    return found


def _applied(vector: F64, operations: Sequence[Operation]) -> F64:
    """A bias ``[out]`` after ``operations``, in fp64."""
    values = vector[:, None].copy()
    for operation in operations:
        state = operation.begin(slice(0, 1), np.float64)
        for turn in range(operation.turns):
            for block in blocks(len(values)):
                state.see(turn, block, values[block].copy())
            if state.end(turn):
                break
        values = np.concatenate([state.apply(block, values[block].copy()) for block in blocks(len(values))])
    return values[:, 0]
