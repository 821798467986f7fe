"""What each part of a block adds to the residual stream, read off plain transformers.

Modules are found by their own names, apart from Weightsmith's roles and hooks. In post-norm families a part is the
output of the norm that follows. A pass over the blocks shows that the parts make up everything that a block adds: a
writer that the roles forget can't hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pico

#: the norms after attention and MLP by model type, where there are any
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
AFTER = {
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text"), _AFTER),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), _AFTER),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
ATTENTION = ("self_attn", "attention", "attn", "linear_attn", "conv")
MLP = ("mlp", "feed_forward")
#: a third part, in Gemma 4
OWN_INPUTS = "post_per_layer_input_norm"
STACKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}

Parts = dict[str, torch.Tensor]


def norms_after(family: str) -> tuple[str, str] | None:
    """The norms after attention and MLP in a pico model, or ``None``."""
    return AFTER.get(pico.model_type(family))


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers alone loads it, with no key missing, unexpected or of another shape."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    with pico.quiet():
        config = transformers.AutoConfig.from_pretrained(folder)
        auto = getattr(transformers, pico.TEXT if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else pico.IMAGES)
        model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    unused = [k for k in info["unexpected_keys"] if not k.startswith(("vision_model.", "multi_modal_projector."))]
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not unused
    return model.eval()


def stack(model: Any, family: str) -> Any:
    """The decoder blocks, under whichever name the model has them."""
    names = [n for start, n in STACKS.items() if family.startswith(start)] or ["model.language_model.layers",
                                                                               "model.layers"]  # fmt: skip
    modules = dict(model.named_modules())
    return next(modules[n] for n in names if n in modules)


def first(output: Any) -> torch.Tensor:
    """A module's output, or the first item of several."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def modules_of(block: Any, family: str) -> dict[str, Any]:
    """The modules whose outputs a block adds to the stream, by part."""
    norms = norms_after(family)
    if norms is not None:
        found = {"attn": getattr(block, norms[0]), "mlp": getattr(block, norms[1])}
    else:
        found = {part: next(getattr(block, n) for n in names if hasattr(block, n))
                 for part, names in (("attn", ATTENTION), ("mlp", MLP))}  # fmt: skip
    return found | ({"own": getattr(block, OWN_INPUTS)} if hasattr(block, OWN_INPUTS) else {})


@torch.no_grad()
def added(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> list[Parts]:
    """What each part of each block adds to the residual stream, fp64 ``[tokens, d_model]``, up to a multiplier."""
    model = plain(folder, dtype)
    blocks = stack(model, family)
    parts: list[dict[str, list[torch.Tensor]]] = [{} for _ in blocks]
    handles: list[Any] = []

    def keep(layer: int, part: str) -> Any:
        return lambda _m, _i, out: parts[layer].setdefault(part, []).append(first(out).detach().double())

    for layer, block in enumerate(blocks):
        handles += [m.register_forward_hook(keep(layer, part)) for part, m in modules_of(block, family).items()]
        handles.append(block.register_forward_hook(keep(layer, "out")))
        handles.append(block.register_forward_pre_hook(
            lambda _m, args, kwargs, layer=layer: parts[layer].setdefault("in", []).append(
                (args[0] if args else kwargs["hidden_states"]).detach().double().clone()), with_kwargs=True))  # fmt: skip
    for row in pico.ids():
        logits = model(input_ids=torch.tensor([row])).logits
        assert torch.isfinite(logits).all()
    for handle in handles:
        handle.remove()
    flat = [{n: torch.cat([t.reshape(-1, t.shape[-1]) for t in ts]) for n, ts in p.items()} for p in parts]
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    share = getattr(model.config.get_text_config(), "residual_multiplier", 1.0)
    for part, block in zip(flat, blocks, strict=True):  # nothing else adds to the stream
        whole = part["in"] + share * sum(part[n] for n in names_of([part]))
        whole = whole * float(getattr(block, "layer_scalar", torch.ones(1)))
        torch.testing.assert_close(whole, part["out"], rtol=tolerance, atol=tolerance)
    return flat


def names_of(found: Sequence[Parts]) -> list[str]:
    """The parts that blocks have, in order."""
    return [n for n in ("attn", "mlp", "own") if n in found[0]]


def shares(found: list[Parts], units: list[np.ndarray]) -> np.ndarray:
    """The largest |component along r| / |added| of any token, ``[layers, parts]``."""
    names = names_of(found)
    out = np.zeros((len(found), len(names)))
    for layer, (parts, unit) in enumerate(zip(found, units, strict=True)):
        for k, name in enumerate(names):
            share = (parts[name] @ torch.from_numpy(unit)).abs() / parts[name].norm(dim=-1)
            out[layer, k] = float(share.max())
    return out
