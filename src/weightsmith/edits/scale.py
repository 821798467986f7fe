"""Scaling a writer's component along a direction: removal (orthogonalization) and amplification.

For a writer W ``[out, in]`` (out = d_model) with unit vector u and a factor f::

    W′ = W + (f − 1) u (uᵀW)        b′ = b + (f − 1) u (uᵀb)

``remove`` with amount s has f = 1 − s, so s = 1 is exact orthogonalization (Arditi et al. 2024, arXiv 2406.11717,
section 2.4, "weight orthogonalization"): the writer then contributes nothing along u. ``amplify`` with amount F has
f = F and scales *both* poles of what the writer already says along u, so it enhances nothing one-sided. In post-norm
families u = g ⊙ r / ‖g ⊙ r‖, since the norm that follows multiplies by its gain g.

Sums run in fp64, row after row, with elementwise operations only: the bytes don't depend on threads or BLAS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import RecipeError
from ..records import EditStep
from . import F64, Context, ScaleOutput


def component(values: F64, u: F64, out_axis: int) -> F64:
    """uᵀW: the tensor's component along ``u`` over ``out_axis``, that axis removed. Summed in index order."""
    moved = np.moveaxis(values, out_axis, 0)
    total = np.zeros(moved.shape[1:], np.float64)
    for row, weight in zip(moved, u, strict=True):
        total += row * weight
    return total


def left_share(before: F64, after: F64, u: F64, out_axis: int) -> float:
    """‖uᵀW′‖ / ‖uᵀW‖, 0 where nothing was there."""
    had = float(np.sqrt((component(before, u, out_axis) ** 2).sum()))
    has = float(np.sqrt((component(after, u, out_axis) ** 2).sum()))
    return has / had if had else 0.0


@dataclass(frozen=True)
class ScaleComponent:
    """W + (factor − 1) u (uᵀW) on one tensor."""

    tensor: str
    u: F64
    out_axis: int
    factor: float

    def apply(self, values: F64) -> F64:
        """The tensor with its component along u scaled by ``factor``."""
        along = component(values, self.u, self.out_axis) * (self.factor - 1.0)
        moved = np.moveaxis(values, self.out_axis, 0).copy()
        for index, weight in enumerate(self.u):
            moved[index] += along * weight  # by index: a bias has scalars for rows
        return np.ascontiguousarray(np.moveaxis(moved, 0, self.out_axis))

    def describe(self) -> str:
        """One line for the record."""
        return f"component along u times {self.factor:g}"


def _scale(step: EditStep, context: Context, factor: float) -> None:
    if factor == 1.0:
        return
    roles = step.roles or context.architecture.default_roles()
    hooks: dict[str, ScaleOutput] = {}
    for writer in context.writers(roles, step.layers):
        if writer.layer is None and step.source == "each":
            raise RecipeError("the embedding belongs to no layer: name the layer whose vector it should lose",
                              where=writer.tensor, hint="set `source` to a layer")  # fmt: skip
        u = context.written(writer, context.vector(step, 0 if writer.layer is None else writer.layer))
        context.compiled.operations.append(ScaleComponent(writer.tensor, u, writer.out_axis, factor))
        hooks[writer.module] = ScaleOutput(writer.module, u, factor)
        if context.architecture.tied and writer.tensor == context.architecture.embedding:
            context.compiled.notes.append(f"{writer.tensor} is tied: the unembedding changed with it")
    context.compiled.hooks += hooks.values()


def remove(step: EditStep, context: Context) -> None:
    """Take ``amount`` of the component out; 1 is exact orthogonalization.

    Raises:
        RecipeError: an amount outside 0 to 1.
    """
    if not 0.0 <= step.amount <= 1.0:
        raise RecipeError(f"remove takes an amount from 0 to 1, not {step.amount:g}",
                          hint="to turn a component up use `amplify`, to add one use `add`")  # fmt: skip
    _scale(step, context, 1.0 - step.amount)


def amplify(step: EditStep, context: Context) -> None:
    """Multiply the component by ``amount``, both poles alike; 1 changes nothing.

    Raises:
        RecipeError: a negative amount.
    """
    if step.amount < 0.0:
        raise RecipeError(f"amplify takes a factor of 0 or more, not {step.amount:g}")
    _scale(step, context, step.amount)
