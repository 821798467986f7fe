"""Activation addition as weights: a constant αv in the residual stream, in units of ‖αv‖/‖h‖.

A *dose* D over layers L adds ``α_l v_l`` in each layer l with ``α_l = D / |L| · ‖h_l‖``, where ‖h_l‖ is the mean norm
of the residual stream there: the doses of the layers add up to D (activation addition: Turner et al. 2023, arXiv
2308.10248; a relative dose near 0.7 usually works, one near 1.9 collapses).

Three forms. *exact*: an output bias ``b′ = b + αv``, where the family's code can hold one; other biases that the
same config flag creates are zeros. *as-llama*: Qwen 2 is Llama with ``attention_bias``, so its files are rewritten
under that name and the output bias is exact. *fitted*: a rank-1 update ``W′ = W + αv wᵀ`` whose w is fitted by ridge
regression so that ``wᵀx ≈ 1`` on the linear's inputs x; it is reported with its held-out mean dose and spread. Where
a norm follows the writer a constant can't survive (the norm divides by the norm of the whole), so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..architecture import Architecture, Writer
from ..errors import EditError, RecipeError
from ..records import EditStep
from . import F64, AddOutput, Context, NewTensor
from .operations import AddConstant, AddRankOne

#: what Qwen 2's code assumes where a config is silent and Llama's assumes something else
_QWEN2_DEFAULTS = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "bos_token_id": None,
                   "eos_token_id": None}  # fmt: skip


def constant_form(context: Context, step: EditStep) -> str:
    """Which form this model takes: the step's own wish, or the exact one where there is one.

    Raises:
        EditError: post-norm families, which can't hold a constant; a wish that this family can't fulfil.
    """
    family = context.architecture.family
    if family.post_norm and not context.hooks_only:
        what = "a multiplier" if family.scaled else "a norm"
        raise EditError(f"a {family.name} model can't hold a constant in its weights: {what} follows every writer",
                        hint="--remove and --amplify work here; `weightsmith chat` adds it as a hook")  # fmt: skip
    exact = context.architecture.constant_site(step.layers[0]) is not None
    wish = step.constant or ("exact" if exact else "fitted")
    if wish == "exact" and not exact and not context.hooks_only:
        other = ", or --constant as-llama" if family.as_llama else ""
        raise EditError(f"no output bias can exist in a {family.name} model, so the addition can't be exact",
                        hint=f"use --constant fitted{other}")  # fmt: skip
    if wish == "as-llama" and not family.as_llama:
        raise EditError(f"a {family.name} model can't be rewritten as Llama", hint="use --constant fitted")
    if wish == "as-llama" and context.config.get("use_sliding_window"):
        raise EditError("the model uses a sliding window, which Llama does not have", hint="use --constant fitted")
    return wish


def doses(step: EditStep, context: Context) -> dict[int, F64]:
    """The vector α_l v_l of each layer.

    Raises:
        RecipeError: amplitudes that would be absurd (a total dose above 10).
    """
    if step.dose > 10:
        raise RecipeError(f"a dose of {step.dose:g} would drown the model: 0.3 to 1 is usual, 2 collapses it")
    direction = context.directions[step.direction]
    return {
        layer: context.strength(step, "*", layer) / len(step.layers)
        * float(direction.resid_norm[direction.row(layer)]) * context.vector(step, layer)
        for layer in step.layers
    }  # fmt: skip


def hook_module(context: Context, layer: int, form: str) -> str:
    """The module whose output receives the constant in ``layer``; the same for weights and hooks.

    In post-norm families, and where routed experts end the layer, only hooks can add a constant: to the whole block.
    """
    if context.architecture.family.post_norm:
        return context.architecture.block(layer).removesuffix(".")
    site = context.architecture.constant_site(layer)
    if form == "exact" and site is not None:
        return site.module
    order = ("attn_out",) if form == "as-llama" else ("mlp_down", "experts", "shared_experts")
    writers = [w for w in context.architecture.writers if w.layer == layer and w.role in order and not w.is_bias]
    first = min(writers, key=lambda w: order.index(w.role))
    if first.role == "experts":  # Llama 4's module gives each expert's part by itself: it would get the constant of each
        return context.architecture.block(layer).removesuffix(".")
    return first.module


def add(step: EditStep, context: Context) -> None:
    """Add a constant of relative dose ``amount`` over the step's layers.

    Raises:
        EditError: a family that can't hold one; a fitted form without a fit.
    """
    if step.amount == 0.0:
        return
    if step.also or step.norms not in (None, "free"):
        raise RecipeError("add takes one direction and free norms", hint="leave out `also` and `norms`, or use a step for each")
    if set(step.strengths) - {"*"}:
        raise RecipeError("an addition belongs to layers, not to roles", hint="give its strengths under `*`")
    context.architecture.select(context.architecture.default_roles(), step.layers)
    add_constants(context, step, doses(step, context))


def add_constants(context: Context, step: EditStep, vectors: Mapping[int, F64]) -> None:
    """Add a constant ``[d_model]`` in each layer, in the form that the model takes.

    Raises:
        EditError: a family that can't hold one; a fitted form without a fit.
    """
    form = constant_form(context, step)
    gate = context.gate(step)
    for layer, vector in vectors.items():
        context.compiled.hooks.append(AddOutput(hook_module(context, layer, form), vector, gate, layer))
        if context.hooks_only:
            continue
        if form == "exact":
            _exact(context, layer, vector)
        elif form == "as-llama":
            _bias(context, context.architecture.block(layer) + "self_attn.o_proj", vector)
        else:
            _fitted(context, layer, vector)
    if context.hooks_only:
        return
    if form == "exact":
        _fill_flagged(context)
    elif form == "as-llama":
        _rewrite_as_llama(context)


def _bias(context: Context, linear: str, vector: F64 | None) -> None:
    """Make sure that ``linear`` has a bias (of zeros), and add ``vector`` to it."""
    bias, weight = f"{linear}.bias", context.tensors[f"{linear}.weight"]
    if bias not in context.tensors and bias not in context.compiled.new:
        context.compiled.new[bias] = NewTensor(bias, weight.shape[0], weight.name)
    if vector is not None:
        context.compiled.operations.append(AddConstant(bias, vector))


def _exact(context: Context, layer: int, vector: F64) -> None:
    site = context.architecture.constant_site(layer)
    if site is None:
        raise EditError(f"layer {layer} has no output bias to hold a constant")
    if site.flag is None:
        context.compiled.operations.append(AddConstant(site.bias, vector))
    else:
        _bias(context, site.bias.removesuffix(".bias"), vector)


def _fill_flagged(context: Context) -> None:
    """A config flag creates biases in every layer: all that it names must exist, zeros where nothing is added."""
    for layer in range(context.architecture.n_layers):
        site = context.architecture.constant_site(layer)
        if site is None or site.flag is None:
            continue
        for linear in (*site.zeros, site.bias.removesuffix(".bias")):
            _bias(context, linear, None)
        context.compiled.config[site.flag] = True


def _rewrite_as_llama(context: Context) -> None:
    for layer in range(context.architecture.n_layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            _bias(context, f"{context.architecture.block(layer)}self_attn.{name}", None)
    changes: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": True,
                               "mlp_bias": False}  # fmt: skip
    absent = {k: v for k, v in _QWEN2_DEFAULTS.items() if k not in context.config}
    context.compiled.config.update(changes | absent)
    context.compiled.notes.append("rewritten as Llama with attention_bias, which computes the same and can hold a bias")


def fit_writer(architecture: Architecture, layer: int) -> Writer:
    """The linear weight that a fitted constant goes into in ``layer``.

    Raises:
        EditError: the layer has only routed experts, which no one vector w can serve.
    """
    for writer in architecture.writers:
        if writer.layer == layer and writer.role == "mlp_down" and not writer.is_bias:
            return writer
    raise EditError(f"layer {layer} has only routed experts: a constant can't be fitted into them",
                    hint="choose other layers, or use the hook in `weightsmith chat`")  # fmt: skip


def _fitted(context: Context, layer: int, vector: F64) -> None:
    writer = fit_writer(context.architecture, layer)
    fit = context.fits.get(layer)
    if fit is None:
        raise EditError(f"a constant in layer {layer} has to be fitted, which needs the running model",
                        hint="install weightsmith[model]")  # fmt: skip
    w, report = fit
    context.compiled.operations.append(AddRankOne(writer.tensor, vector, w, writer.out_axis))
    context.compiled.fitted.append(report)
