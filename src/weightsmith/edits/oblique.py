"""A removal that reads along one vector and writes along another.

For a writer W ``[out, in]``, a unit reader r and a unit direction v of each layer, and a strength s::

    W′ = W − s v (rᵀW)        b′ = b − s v (rᵀb)

With r = v it is ``remove``. A reader of its own lets an edit act on what the feature's trigger looks like, and take away what
it leads to: a search finds both by descent (:mod:`weightsmith.search`). Nothing is exact about it: what is left along either
vector is what the search left.
"""

from __future__ import annotations

import numpy as np

from ..errors import EditError, RecipeError
from ..records import EditStep
from . import F64, Context, LinearOutput
from .operations import Project


def oblique(step: EditStep, context: Context) -> None:
    """Take ``amount`` times each strength of the direction out, as far as the reader reads it.

    Raises:
        RecipeError: an amount outside 0 to 2; a subspace, kept norms or protected features, which this kind does not have.
        EditError: a post-norm family; a direction without readers.
    """
    if step.also or step.protect or step.norms not in (None, "free"):
        raise RecipeError("oblique takes one direction and free norms", hint="leave out `also`, `protect` and `norms`")
    if not 0.0 <= step.amount <= 2.0:
        raise RecipeError(f"oblique takes an amount from 0 to 2, not {step.amount:g}")
    if context.architecture.family.post_norm:
        raise EditError(f"a {context.architecture.family.name} model has a norm after every writer: what is read there is not "
                        "what the residual stream gets", hint="use `remove`")  # fmt: skip
    direction = context.directions[step.direction]
    if direction.readers is None:
        raise EditError("this direction has no readers of its own", where=direction.meta.feature, hint="use `remove`")
    hooks: dict[str, LinearOutput] = {}
    gate = context.gate(step)
    for writer in context.writers(step.roles or context.architecture.default_roles(), step.layers):
        if writer.layer is None:
            raise RecipeError("the embedding belongs to no layer, and has no reader", where=writer.tensor)
        amount = context.strength(step, writer.role, writer.layer)
        if amount == 0.0:
            continue
        row = direction.row(context.row(step, writer.layer))
        write, read = _unit(direction.vectors[row]), _unit(direction.readers[row])
        context.compiled.operations.append(
            Project(writer.tensor, writer.out_axis, -amount * write, read, None, f"oblique removal, strength {amount:g}"))
        hooks[writer.module] = LinearOutput(writer.module, -amount * write, read, gate)
    context.compiled.hooks += hooks.values()


def _unit(row: np.ndarray) -> F64:
    """``[d_model, 1]`` of length one."""
    wide = row.astype(np.float64)
    size = float(np.sqrt((wide * wide).sum()))
    if size == 0.0:
        raise EditError("a vector of length 0 has no direction")
    return np.asarray((wide / size)[:, None], np.float64)
