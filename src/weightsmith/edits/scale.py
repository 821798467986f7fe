"""Scaling what a writer says along a direction or a subspace: removal (orthogonalization) and amplification.

For a writer W ``[out, in]`` (out = d_model), an orthonormal basis U ``[out, k]`` and a factor f::

    W′ = W + (f − 1) U (UᵀW)        b′ = b + (f − 1) U (Uᵀb)

``remove`` with amount s has f = 1 − s, so s = 1 is exact orthogonalization (Arditi et al. 2024, arXiv 2406.11717,
section 2.4, "weight orthogonalization"; k > 1 is the same with a subspace): the writer then contributes nothing along
U. Beyond 1, up to 2, the component is turned round, and nothing is exact there. ``amplify`` with amount F has f = F and
scales *both* poles of what the writer already says along U, so it enhances nothing one-sided. In post-norm families U is a
basis of g ⊙ r, since the norm that follows multiplies by its gain g.

``norms: input`` rescales each input vector (column of W) to its old length afterwards, which leaves a removal exact;
``norms: output`` keeps the norm of each output row, by alternating projection. Rescaling rows once, naively, would put
back much of what was removed.

Protected features P are taken out of r beforehand, so that PᵀW stays. Where input norms are kept, what a column has along
P is not rescaled; where a norm with gain g follows, U stays the reader and the change is written orthogonally to g ⊙ P.
"""

from __future__ import annotations

from collections.abc import Callable

from ..architecture import Writer
from ..errors import EditError, RecipeError
from ..records import EditStep
from . import F64, Context, LinearOutput, Operation
from .numerics import orthonormal
from .operations import Project, ProjectKeepInputNorms, ProjectKeepOutputNorms


def scale(step: EditStep, context: Context, factor: Callable[[float], float], basis: Callable[[int], F64]) -> None:
    """Scale what each writer of the step says along ``basis(layer)`` ``[d_model, k]`` by ``factor(amount)``.

    Raises:
        RecipeError: embeddings without a source layer.
        EditError: norms that can't be kept by this kind.
    """
    roles = step.roles or context.architecture.default_roles()
    hooks: dict[str, LinearOutput] = {}
    gate = context.gate(step)
    for writer in context.writers(roles, step.layers):
        if writer.layer is None and step.source == "each":
            raise RecipeError("the embedding belongs to no layer: name the layer whose vector it should lose",
                              where=writer.tensor, hint="set `source` to a layer")  # fmt: skip
        amount = factor(context.strength(step, writer.role, writer.layer))
        if amount == 1.0:
            continue
        layer = 0 if writer.layer is None else writer.layer
        u = context.written(writer, basis(layer))
        kept = [context.written(writer, orthonormal(guarded)) for guarded in [context.guarded(step, layer)] if guarded]
        write = _beside(u, kept[0], step) if kept and writer.gains else u
        context.compiled.operations.append(_operation(step, writer, u, write, amount, kept[0] if kept else None))
        hooks[writer.module] = LinearOutput(writer.module, (amount - 1.0) * write, u, gate)
        if context.architecture.tied and writer.tensor == context.architecture.embedding:
            context.compiled.notes.append(f"{writer.tensor} is tied: the unembedding changed with it")
            context.compiled.unhooked = "a tied embedding is read by the unembedding too, which no hook on it reaches"
    context.compiled.hooks += hooks.values()
    if hooks and _norms(step) != "free":
        context.compiled.no_hooks = "the rescaling depends on the weights, not on what the module says"


def _norms(step: EditStep) -> str:
    return step.norms or ("input" if step.kind == "biprojected" else "free")


def _beside(u: F64, kept: F64, step: EditStep) -> F64:
    """w ``[out, 1]`` with uᵀw = 1 and nothing along ``kept``: a norm's gains leave orthogonal directions oblique.

    Raises:
        EditError: a subspace, or kept norms, beside protected features in a post-norm family.
    """
    if u.shape[1] > 1 or _norms(step) != "free":
        raise EditError("where a norm follows the writers, features can be protected from the removal of one direction "
                        "with free norms only", where=step.kind, hint="leave out `also`, and use `norms: free`")  # fmt: skip
    rest = Context.residual(u[:, 0], list(kept.T), step)[:, None]
    return rest / float((rest * u).sum())


def _operation(step: EditStep, writer: Writer, u: F64, write: F64, factor: float, kept: F64 | None) -> Operation:
    span = "u" if u.shape[1] == 1 else f"{u.shape[1]} directions"
    what = f"component along {span} times {factor:g}"
    norms = _norms(step)
    if norms == "input":
        return ProjectKeepInputNorms(writer.tensor, writer.out_axis, u, factor, f"{what}, input norms kept", kept)
    if norms == "output" and not writer.is_bias:
        if factor != 0.0:
            raise EditError("row norms can be kept by an exact removal only", where=step.kind,
                            hint="use amount 1, or `norms: input`")  # fmt: skip
        if kept is not None:
            raise EditError("row norms can't be kept beside protected features", where=step.kind,
                            hint="use `norms: input` or `norms: free`")  # fmt: skip
        return ProjectKeepOutputNorms(writer.tensor, writer.out_axis, u, f"{what}, row norms kept")
    return Project(writer.tensor, writer.out_axis, (factor - 1.0) * write, u, u if factor == 0.0 else None, what)


def share_left(step: EditStep) -> Callable[[float], float]:
    """The factor f = 1 − s of a removal: nothing is left at s = 1, and beyond 1 the component is turned round.

    Raises:
        RecipeError: an amount, or an amount times a strength, outside 0 to 2.
    """

    def factor(amount: float) -> float:
        if not 0.0 <= amount <= 2.0:
            raise RecipeError(f"{step.kind} takes an amount from 0 to 2, not {amount:g}",
                              hint="to turn a component up use `amplify`, to add one use `add`")  # fmt: skip
        return 1.0 - amount

    factor(step.amount)
    return factor


def remove(step: EditStep, context: Context) -> None:
    """Take ``amount`` of the component out; 1 is exact orthogonalization, beyond 1 the component is turned round.

    Raises:
        RecipeError: an amount outside 0 to 2.
    """
    scale(step, context, share_left(step), lambda layer: context.basis(step, layer))


def amplify(step: EditStep, context: Context) -> None:
    """Multiply the component by ``amount``, both poles alike; 1 changes nothing.

    Strengths s make the factor 1 + s (amount − 1), so that a strength of 0 changes nothing either.

    Raises:
        RecipeError: a negative amount.
    """
    if step.amount < 0.0:
        raise RecipeError(f"amplify takes a factor of 0 or more, not {step.amount:g}")
    excess = step.model_copy(update={"amount": step.amount - 1.0})
    scale(excess, context, lambda amount: max(0.0, 1.0 + amount), lambda layer: context.basis(step, layer))
