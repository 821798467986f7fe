"""Affine removals: the component is set to that of a reference, not to zero.

``affine`` (affine concept editing, Marshall et al. 2024, arXiv 2411.09003, equation 7): h′ = h − r rᵀ(h − μ), with μ the
mean residual of the side that lacks the feature. In weights every writer of the layers is orthogonalized to r, and each
layer l gets the constant r rᵀ(μ_l − μ_{l−1}), so that behind every edited layer the component follows the reference.

``leace`` (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3, for two classes): with δ the difference of the means and Σ
the covariance of the residual stream, h′ = h − δ (δᵀΣ⁻¹(h − μ)) / (δᵀΣ⁻¹δ), the least change in the metric of Σ after
which no linear probe finds the feature. It reads along Σ⁻¹δ and writes along δ. Σ⁻¹δ comes with the direction when it
was found with ``--method leace``.
"""

from __future__ import annotations

import numpy as np

from ..errors import EditError, RecipeError
from ..records import EditStep
from . import F64, Context, LinearOutput
from .constant import add_constants
from .operations import Project
from .projected import neutral_mean
from .scale import scale, share_left


def affine(step: EditStep, context: Context) -> None:
    """Set the component to the reference's, in ``amount`` (1 is all of it).

    Raises:
        RecipeError: an amount outside 0 to 1.
        EditError: a family that can't hold the constant; a subspace or gate, which this kind does not have.
    """
    _plain(step)
    scale(step, context, share_left(step), lambda layer: context.basis(step, layer))
    vectors = {}
    for layer in step.layers:
        unit = context.vector(step, layer)
        vectors[layer] = step.amount * _step_of_mean(step, context, layer, unit) * unit
    add_constants(context, step, vectors)


def _step_of_mean(step: EditStep, context: Context, layer: int, reader: F64) -> float:
    """readerᵀ(μ_l − μ_{l−1}): what the layer adds to the reference's component; all of μ in the first layer."""
    first = context.directions[step.direction].meta.layers[0]
    mean = neutral_mean(step, context, layer)
    if layer > first:
        mean = mean - neutral_mean(step, context, layer - 1)
    return float((reader * mean).sum())


def _plain(step: EditStep) -> None:
    if step.also or step.norms not in (None, "free") or step.strengths:
        raise RecipeError(f"{step.kind} takes one direction, free norms and one amount",
                          hint="leave out `also`, `norms` and `strengths`")  # fmt: skip


def leace(step: EditStep, context: Context) -> None:
    """Erase the feature with the least change in the metric of the activations' covariance.

    Where a norm follows the writer the covariance says nothing of what is before it; the kind is refused there.

    Raises:
        RecipeError: an amount outside 0 to 1; options that this kind does not have.
        EditError: post-norm families; a direction without Σ⁻¹δ.
    """
    _plain(step)
    share_left(step)
    if context.architecture.family.post_norm:
        raise EditError(f"a {context.architecture.family.name} model has a norm after every writer, where the covariance "
                        "of the residual stream says nothing", hint="use `remove` or `projected`")  # fmt: skip
    direction = context.directions[step.direction]
    if direction.readers is None:
        raise EditError("this direction was found without the covariance that LEACE needs", where=direction.meta.feature,
                        hint="find it with `--method leace`")  # fmt: skip
    vectors: dict[int, F64] = {}
    hooks: dict[str, LinearOutput] = {}
    gate = context.gate(step)
    for writer in context.writers(step.roles or context.architecture.default_roles(), step.layers):
        if writer.layer is None:
            raise RecipeError("leace edits layers, not embeddings", where=writer.tensor)
        write, read = _pair(direction.vectors, direction.readers, direction.row(context.row(step, writer.layer)))
        write = -step.amount * write
        cleared = read / np.sqrt((read * read).sum()) if step.amount == 1.0 else None
        context.compiled.operations.append(
            Project(writer.tensor, writer.out_axis, write, read, cleared, f"LEACE with amount {step.amount:g}"))  # fmt: skip
        hooks[writer.module] = LinearOutput(writer.module, write, read, gate)
        vectors[writer.layer] = -write[:, 0] * _step_of_mean(step, context, writer.layer, read[:, 0])
    context.compiled.hooks += hooks.values()
    add_constants(context, step, vectors)


def _pair(vectors: np.ndarray, readers: np.ndarray, row: int) -> tuple[F64, F64]:
    """δ / (δᵀΣ⁻¹δ) and Σ⁻¹δ, each ``[d_model, 1]``, scaled so that readᵀ write = 1 with a reader of length one."""
    delta, reader = vectors[row].astype(np.float64), readers[row].astype(np.float64)
    reader = reader / np.sqrt((reader * reader).sum())
    overlap = float((delta * reader).sum())
    if not overlap > 1e-6 * float(np.sqrt((delta * delta).sum())):
        raise EditError("the direction and its reading vector do not agree", hint="find it again")
    return (delta / overlap)[:, None], reader[:, None]
