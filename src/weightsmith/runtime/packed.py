"""Weights laid out once for the processor's matrix products, while a batch is answered.

A step of decoding multiplies a few rows by every weight. For bf16 PyTorch has oneDNN lay out each weight anew at every
product, and for fp32 it asks MKL, which is slow for few rows on AMD's processors. Laid out beforehand, a step of SmolLM2 for 24
answers takes 74 ms in place of 94 in bf16 and 97 in place of 150 in fp32 (2 cores without AMX; ``benchmarks/decode.py``). In bf16
the sums are the same to the bit, in fp32 they are added in another order. The price is the weights' memory once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..storage import all_memory
from .forward import out_of_memory

if TYPE_CHECKING:
    from .load import RunningModel

LEAST = 512  # tokens to come, in so many steps or more: for fewer the layout is not worth its time, that of 10 to 25 steps
STEPS = 32
SHARE = 8  # of all memory, that weights may take once more. Not of what is free: in fp32 it shows in the last bits
_ROWS = 32  # what the layout is made for; others are served nearly as well

Product = Callable[[torch.Tensor], torch.Tensor]


def _product(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """``x [..., inputs] -> x Wᵀ + b`` with the weight ``[outputs, inputs]`` laid out now."""
    laid = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return partial(_multiply, laid, None if bias is None else bias.detach(), torch.ops.mkldnn._linear_pointwise.default)


def _multiply(laid: torch.Tensor, bias: torch.Tensor | None, product: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = product(x, laid, bias, "none", [], "")
    return out


@dataclass(frozen=True, eq=False)
class Packed:
    """The products of a model's linear layers, and that of its ``lm_head``."""

    layers: list[tuple[nn.Linear, Product]]
    head: Product

    @classmethod
    def of(cls, model: RunningModel) -> Packed:
        """All linear layers of the stack that nothing else has replaced."""
        layers = [m for m in model.stack.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
        head = model.head
        return cls([(m, _product(m.weight, m.bias)) for m in layers], _product(head.weight, head.bias))


def worth(model: RunningModel, tokens: int, steps: int) -> bool:
    """Whether ``tokens`` to be generated in ``steps`` are worth the layout, and this machine has products for it, and memory."""
    if tokens < LEAST or steps < STEPS or model.options.memory is not None:
        return False
    if any(d != "cpu" for d in (model.device, *model.devices)) or not multiplies(model.dtype):
        return False
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    return bool(SHARE * weights <= all_memory())


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor has fast products of weights that are laid out in ``dtype``."""
    if not torch._C._has_mkldnn or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and native)


def _packed(model: RunningModel, tokens: int, steps: int) -> Packed | None:
    if model.product is not None:
        return None
    if model.packed is None and worth(model, tokens, steps):
        try:
            model.packed = Packed.of(model)
        except Exception as error:  # what an allocator raises differs
            if not out_of_memory(error):
                raise
    return model.packed  # without them it is slower, and fits


@contextlib.contextmanager
def packed(model: RunningModel, tokens: int, steps: int) -> Iterator[None]:
    """While it lasts, the model's products use weights that are laid out, and no gradient goes back; they are kept for the next
    time. Where that is not :func:`worth` it, nothing changes."""
    kept = _packed(model, tokens, steps)
    if kept is None:
        yield
        return
    for layer, product in kept.layers:
        layer.forward = product  # type: ignore[method-assign,assignment]
    model.product = kept.head
    try:
        yield
    finally:
        model.product = None
        for layer, _ in kept.layers:
            del layer.forward
