"""Decoder blocks that are stood in for, or whose activations are computed twice instead of kept."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from ..runtime import RunningModel

Forward = Callable[..., Any]


@contextlib.contextmanager
def forwards(modules: Seq[Any], make: Callable[[int, Forward], Forward]) -> Iterator[None]:
    """Give each module the ``forward`` that ``make`` makes of its place and its own, while the context lasts."""
    before = [m.__dict__.get("forward") for m in modules]  # a module that is spread over devices has one of its own
    try:
        for place, module in enumerate(modules):
            module.forward = make(place, module.forward)
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is not None:
                module.forward = own
            elif "forward" in module.__dict__:
                del module.forward  # the class's own is behind it


def standing_in(blocks: Seq[Any], output: Any) -> contextlib.AbstractContextManager[None]:
    """These blocks are not run: what comes out of each is ``output``."""
    return forwards(blocks, lambda _place, _own: lambda *_a, **_k: output)


def can_recompute(model: RunningModel) -> bool:
    """Whether a block can be run a second time by itself: not where blocks hand keys and values to later ones."""
    config = model.model.config.get_text_config()
    return "reuse" not in (getattr(config, "kv_sharing_modes", None) or ()) and not getattr(config, "num_kv_shared_layers", 0)


def recomputing(blocks: Seq[Any], first: int = 0) -> contextlib.AbstractContextManager[None]:
    """Keep only the input of each block, and run it again on the way back (gradient checkpointing: Chen et al. 2016, arXiv
    1604.06174, section 3); ``first`` is the place of ``blocks[0]`` in the stack."""

    def make(place: int, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            def run(*inputs: Any) -> Any:
                layer = first + place
                return own(*(_apart(x, layer) for x in inputs), **{name: _apart(x, layer) for name, x in kwargs.items()})

            if not torch.is_grad_enabled():
                return own(*args, **kwargs)
            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)

        return forward

    return forwards(blocks, make)


def _apart(value: Any, layer: int) -> Any:
    """A cache whose ``layer`` is a copy, so that running the block again does not write to it again; anything else as it is."""
    if not isinstance(getattr(value, "layers", None), list):
        return value
    fresh = copy.copy(value)
    fresh.layers = [copy.copy(x) if k == layer else x for k, x in enumerate(value.layers)]
    return fresh
