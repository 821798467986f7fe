"""Attention for passes with gradients on a processor, where the fused kernel's way back is slow.

On 2 cores without AMX the fused kernel takes 23 to 28 ms there and back for one layer of SmolLM2 (7 rows of 130 tokens, bf16), the
same in plain products 6 to 9 (``benchmarks/search/attention.py``). They keep the probabilities in the model's dtype,
``2 · heads · keys`` bytes a token in bf16, which for the short rows of a search is little beside what the rest of a block keeps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..runtime import RunningModel

NAME = "weightsmith"
LONGEST = 192  # keys: from about here on the fused kernel is as fast, and keeps less
_MASKED = -1e30


class _Plain(torch.autograd.Function):
    """softmax(scale · q kᵀ + mask) v, with the gradients written out.

    ``q [rows, heads, queries, d]``, ``k [rows, groups, keys, d]``, ``v [rows, groups, keys, d_v]``; consecutive heads share
    the keys and values of a group, which are not repeated for them. ``mask`` is added, fp32, of any shape that spreads to
    ``[rows, 1 or heads, queries, keys]``.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        rows, heads, queries, _ = q.shape
        packed = q.reshape(rows, k.shape[1], -1, q.shape[3])
        scores = torch.matmul(packed, k.transpose(-1, -2)).float().mul_(scale).view(rows, heads, queries, k.shape[2])
        if mask is not None:
            scores += mask
        share = scores.softmax(-1).to(v.dtype).view(rows, k.shape[1], -1, k.shape[2])
        ctx.save_for_backward(packed, k, v, share)
        ctx.scale, ctx.shape = scale, q.shape
        return torch.matmul(share, v).view(rows, heads, queries, v.shape[3])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        packed, k, v, share = ctx.saved_tensors
        out = grads[0].reshape(*packed.shape[:3], v.shape[3])
        to_v = torch.matmul(share.transpose(-1, -2), out) if ctx.needs_input_grad[2] else None
        at = torch.matmul(out, v.transpose(-1, -2)).float()
        weighted = at.mul_(share)
        scores = torch.addcmul(weighted, weighted.sum(-1, keepdim=True), share.float(), value=-1).mul_(ctx.scale).to(k.dtype)
        to_q = torch.matmul(scores, k).view(ctx.shape) if ctx.needs_input_grad[0] else None
        to_k = torch.matmul(scores.transpose(-1, -2), packed) if ctx.needs_input_grad[1] else None
        return to_q, to_k, to_v, None, None


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, *,
    scaling: float | None = None, is_causal: bool | None = None, **more: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The library's SDPA interface, in plain products where a gradient goes back through short rows on a processor."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    back = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    causal = causal and query.shape[2] > 1 and attention_mask is None
    known = not any(more.get(name) for name in ("dropout", "softcap", "output_attentions")) and more.get("position_bias") is None
    known = known and query.shape[0] == key.shape[0] and (not causal or query.shape[2] == key.shape[2])
    if not (back and known and query.device.type == "cpu" and key.shape[2] <= LONGEST):
        given = {"scaling": scaling, "is_causal": is_causal, **more}
        fused: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return fused
    if causal:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros(attention_mask.shape, device=query.device).masked_fill_(~attention_mask, _MASKED)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = _Plain.apply(query, key, value, attention_mask, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def quick_back(model: RunningModel) -> Iterator[None]:
    """While it lasts, a model that attends by SDPA attends by :func:`attend`; others are left as they are."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) != "sdpa" or not torch.is_grad_enabled():
        yield
        return
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = "sdpa"
