"""Affine removals: the component is set to that of a reference, not to zero.

``affine`` (affine concept editing, Marshall et al. 2024, arXiv 2411.09003, equation 7): h′ = h − r rᵀ(h − μ), with μ the
mean residual of the side that lacks the feature. In weights every writer of the layers is orthogonalized to r, and each
layer l gets the constant r rᵀ(μ_l − μ_{l−1}), with μ_l the mean *behind* it: what the layer adds to the component is what
it adds on average to the reference's. What comes from below the first edited layer stays. A layer is left as it is, with
a note, where its increment is not known: the first of all, unless the embedding is edited as well (then it gets all of
μ_0, and the component behind every layer is the reference's, whatever the text), and one whose neighbour the direction
does not have.

``leace`` (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3, for two classes): with δ the difference of the means and Σ
the covariance of the residual stream, h′ = h − δ (δᵀΣ⁻¹(h − μ)) / (δᵀΣ⁻¹δ), the least change in the metric of Σ after
which no linear probe finds the feature. It reads along Σ⁻¹δ and writes along δ. Σ⁻¹δ comes with the direction when it
was found with ``--method leace``. μ is the side's that lacks the feature, where the paper has the common mean: the same
up to a constant, which leaves that side where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..errors import EditError, RecipeError
from ..records import EditStep
from . import F64, Context, LinearOutput
from .constant import add_constants
from .operations import AddConstant, AddRankOne, Project
from .projected import neutral_mean
from .scale import scale, share_left


def affine(step: EditStep, context: Context) -> None:
    """Set the component to the reference's, in ``amount`` (1 is all of it).

    Raises:
        RecipeError: an amount outside 0 to 2; a subspace, kept norms or strengths, which this kind does not have.
        EditError: a family that can't hold the constant; a direction without the means of any edited layer.
    """
    _plain(step)
    factor = share_left(step)
    if step.amount == 0.0:
        return
    means = _increments(step, context)
    step = _within(step, means)
    start = len(context.compiled.operations)
    scale(step, context, factor, lambda layer: context.basis(step, layer))
    vectors = {}
    for layer, mean in means.items():
        unit = context.vector(step, layer)
        vectors[layer] = step.amount * float((unit * mean).sum()) * unit
    add_constants(context, step, vectors)
    _set_not_cleared(context, start)


def _increments(step: EditStep, context: Context) -> dict[int, F64]:
    """μ_l − μ_{l−1} ``[d_model]`` for each layer of the step where it is known."""
    meta = context.directions[step.direction].meta
    behind = 1 if meta.point == "resid_pre" else 0  # the mean behind block l is that before block l + 1
    embedding = "embed" in step.roles
    if embedding and 0 not in step.layers:
        raise RecipeError(f"{step.kind} of the embedding needs layer 0 as well, which puts its mean back",
                          hint="edit layers from 0, or leave the embedding out")  # fmt: skip
    found: dict[int, F64] = {}
    for layer in step.layers:
        after, before = layer + behind, layer + behind - 1
        if after not in meta.layers:
            continue
        if layer == 0 and embedding:
            found[layer] = neutral_mean(step, context, after)
        elif before in meta.layers:
            found[layer] = neutral_mean(step, context, after) - neutral_mean(step, context, before)
    if not found:
        raise EditError("the direction does not have the means before and behind any of these layers",
                        where=meta.feature, hint="find it in more layers, or use `projected`")  # fmt: skip
    if left_out := [str(x) for x in step.layers if x not in found]:
        context.compiled.notes.append(
            f"{step.kind} leaves layer {', '.join(left_out)} as it is: what it adds to the reference's mean is not known"
            + (" without the embedding (--roles +embed)" if "0" in left_out and not behind else ""))  # fmt: skip
    return found


def _within(step: EditStep, layers: Mapping[int, F64]) -> EditStep:
    return step.model_copy(update={"layers": list(layers)})


def _set_not_cleared(context: Context, start: int) -> None:
    """Nothing is to be left of a component only where no constant is put in its place."""
    operations = context.compiled.operations
    holders = {o.tensor for o in operations[start:] if isinstance(o, AddConstant | AddRankOne)}
    for k in range(start, len(operations)):
        operation = operations[k]
        if isinstance(operation, Project) and operation.tensor in holders:
            operations[k] = replace(operation, cleared=None)


def _plain(step: EditStep) -> None:
    if step.also or step.norms not in (None, "free") or step.strengths:
        raise RecipeError(f"{step.kind} takes one direction, free norms and one amount",
                          hint="leave out `also`, `norms` and `strengths`")  # fmt: skip


def leace(step: EditStep, context: Context) -> None:
    """Erase the feature with the least change in the metric of the activations' covariance.

    Where a norm follows the writer the covariance says nothing of what is before it; the kind is refused there.

    Raises:
        RecipeError: an amount outside 0 to 2; options that this kind does not have.
        EditError: post-norm families; a direction without Σ⁻¹δ.
    """
    _plain(step)
    share_left(step)
    if step.protect:
        raise RecipeError("leace can't protect other features: its change is fixed by the covariance",
                          hint="use `remove` or `projected`")  # fmt: skip
    if context.architecture.family.post_norm:
        raise EditError(f"a {context.architecture.family.name} model has a norm after every writer, where the covariance "
                        "of the residual stream says nothing", hint="use `remove` or `projected`")  # fmt: skip
    direction = context.directions[step.direction]
    if direction.readers is None:
        raise EditError("this direction was found without the covariance that LEACE needs", where=direction.meta.feature,
                        hint="find it with `--method leace`")  # fmt: skip
    if step.amount == 0.0:
        return
    means = _increments(step, context)
    step = _within(step, means)
    hooks: dict[str, LinearOutput] = {}
    gate, start = context.gate(step), len(context.compiled.operations)
    pairs = {layer: _pair(direction.vectors, direction.readers, direction.row(context.row(step, layer)))
             for layer in step.layers}  # fmt: skip
    for writer in context.writers(step.roles or context.architecture.default_roles(), step.layers):
        if writer.layer is None and step.source == "each":
            raise RecipeError("the embedding belongs to no layer: name the layer whose vector it should lose",
                              where=writer.tensor, hint="set `source` to a layer")  # fmt: skip
        write, read = pairs[step.layers[0] if writer.layer is None else writer.layer]
        write = -step.amount * write
        context.compiled.operations.append(
            Project(writer.tensor, writer.out_axis, write, read, read if step.amount == 1.0 else None,
                    f"LEACE with amount {step.amount:g}"))  # fmt: skip
        hooks[writer.module] = LinearOutput(writer.module, write, read, gate)
    context.compiled.hooks += hooks.values()
    add_constants(context, step, {
        layer: step.amount * float((pairs[layer][1][:, 0] * mean).sum()) * pairs[layer][0][:, 0]
        for layer, mean in means.items()
    })  # fmt: skip
    _set_not_cleared(context, start)


def _pair(vectors: np.ndarray, readers: np.ndarray, row: int) -> tuple[F64, F64]:
    """δ / (δᵀΣ⁻¹δ) and Σ⁻¹δ, each ``[d_model, 1]``, scaled so that readᵀ write = 1 with a reader of length one."""
    delta, reader = vectors[row].astype(np.float64), readers[row].astype(np.float64)
    reader = reader / np.sqrt((reader * reader).sum())
    overlap = float((delta * reader).sum())
    if not overlap > 1e-6 * float(np.sqrt((delta * delta).sum())):
        raise EditError("the direction and its reading vector do not agree", hint="find it again")
    return (delta / overlap)[:, None], reader[:, None]
