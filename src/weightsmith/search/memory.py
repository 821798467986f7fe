"""A bound in bytes on what a pass with gradients keeps for the way back.

What autograd keeps is counted as it keeps it, so the figure needs no formula for a family. Only where a rough prediction
comes near the bound is anything counted at all: one prompt is passed first, and then as many tokens at once as its bytes
allow. Where they are too few, activations within blocks are computed a second time instead of kept.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..errors import OutOfMemory
from ..storage import free_memory
from .blocks import can_recompute

if TYPE_CHECKING:
    from ..runtime import RunningModel

SHARE = 0.8  # of what is free, where no bound was given: others want memory too
SPARE = 2.0  # what a pass takes at its height, for each byte that it keeps: 1.6 in tensors, and what allocators hold back
FEW = 128  # fewer tokens at once than these waste more than computing activations twice


@dataclass
class Kept:
    """Bytes that autograd keeps of one pass, without weights: within blocks, and after them (the ``lm_head``'s)."""

    weights: frozenset[int]
    blocks: int = 0
    seen: dict[int, int] = field(default_factory=dict)

    @property
    def whole(self) -> int:
        """All of them."""
        return sum(self.seen.values())

    def through(self) -> None:
        """The blocks have been passed: what follows comes after them."""
        self.blocks = self.whole

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that is kept; several views of one memory count once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor


@dataclass
class Bound:
    """How many bytes one pass may keep, and what a token was seen to take of them.

    ``limit`` is for what comes beside that which is there already. ``given`` says that it comes from an option: what can't
    keep to it is refused. ``token`` and ``inner`` are bytes a padded token, all and those within blocks; 0 while unknown.
    """

    limit: float
    given: bool
    token: float = 0.0
    inner: float = 0.0

    @classmethod
    def of(cls, model: RunningModel) -> Bound:
        """From the model's options, else from what is free on its device; of several, on the one that has least. To be asked
        for when the model has run: a processor reads weights from their file when they are first used.

        Raises:
            OutOfMemory: what is there already is more than the options allow.
        """
        wish, on = model.options.memory, model.devices or (model.device,)
        if wish is None:
            return cls(SHARE * min(free_on(d) for d in on) / SPARE, False)
        weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.model.parameters()}
        there = max([*(in_use(d) for d in on), sum(weights.values()) / len(on)])
        if wish <= there:
            raise OutOfMemory(f"the loaded model takes {_size(there)}, and --memory allows {_size(wish)}",
                              hint="allow more, or use a narrower --dtype")  # fmt: skip
        return cls((wish - there) / SPARE, True)

    def near(self, model: RunningModel, tokens: int, layers: int) -> bool:
        """Whether ``tokens`` passed at once through ``layers`` edited blocks could come near the bound."""
        # from the weights: configurations name widths in many ways, and some have one for each layer
        wide = max(max(p.shape[-2:]) for p in model.blocks[-1].parameters() if p.ndim >= 2)
        a_layer = (12 * model.architecture.d_model + 4 * wide) * model.dtype.itemsize  # seen on Llama-like blocks
        return 2 * tokens * (a_layer * layers + 20 * model.head.weight.shape[0]) > self.limit

    @contextlib.contextmanager
    def counting(self, model: RunningModel) -> Iterator[Kept]:
        """Count what is kept of the pass within."""
        kept = Kept(frozenset(p.untyped_storage().data_ptr() for p in model.model.parameters()))
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            yield kept

    def learn(self, kept: Kept, tokens: int) -> None:
        """What ``tokens`` padded tokens took, with nothing computed twice."""
        self.token, self.inner = kept.whole / tokens, kept.blocks / tokens

    def settle(self, model: RunningModel, layers: int, prefix: int, largest: int, most: int) -> tuple[int, bool]:
        """Tokens at once, at most ``most``, and whether blocks are computed twice, where too few would fit otherwise.

        A tree of ``largest`` padded tokens can't be parted, and ``prefix`` tokens of a shared beginning are kept whole.

        Raises:
            OutOfMemory: one tree does not keep to a bound that was given.
        """
        left = self.limit - prefix * self.token
        fit = _halved(most, left / self.token)
        if fit >= min(most, max(largest, FEW)):
            return fit, False
        if not can_recompute(model):
            return self._enough(model, fit, largest, self.token), False
        # two of each block's input: as it came out of the one before, and with what a hook did to it
        again = self.token - self.inner * (1 - 1 / layers) + 2 * layers * model.architecture.d_model * model.dtype.itemsize
        return self._enough(model, _halved(most, left / again), largest, again), True

    def _enough(self, model: RunningModel, fit: int, largest: int, each: float) -> int:
        if fit >= largest:
            return fit
        need = _size(SPARE * each * largest)
        if self.given:
            raise OutOfMemory(f"one prompt with what may follow it ({largest} tokens) takes about {need} beside the model, and "
                              f"--memory leaves {_size(max(0.0, SPARE * self.limit))}",
                              hint="allow more, use a narrower --dtype, or shorten the prompts")  # fmt: skip
        model.note(f"one prompt with what may follow it takes about {need}, more than seems to be free: it is tried all the same")
        return max(1, fit)


def _halved(most: int, fit: float) -> int:
    """``most`` halved until it fits: a bound that differs a little must not change how prompts are grouped, and with it the
    rounding."""
    while most > 1 and most > fit:
        most //= 2
    return most if most <= fit else 0


def free_on(device: str) -> float:
    """Bytes that can still be had on a device; infinite where it does not say."""
    kind = torch.device(device).type
    if kind == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if kind == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return float(free_memory() or float("inf"))


def in_use(device: str) -> float:
    """Bytes that this process takes on a device now (on a processor without /proc: at the most so far)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return float(torch.cuda.memory_allocated(device))
    if kind == "mps":
        return float(torch.mps.driver_allocated_memory())
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", encoding="ascii") as file:
        return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    if sys.platform == "win32":
        return 0.0
    import resource  # not there on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def _size(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"

