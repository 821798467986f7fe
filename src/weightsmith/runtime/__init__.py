"""The running model: loading, hooks, capture, log-probabilities, generation. Torch is imported with the first public name.

Loading runs no code that comes with a model and needs no network. Hooks are context managers and never change a
tensor in place.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .forward import Continuation, Sequence, answer_states, capture, score_answers
    from .generate import continue_replies, generate, replies, stream
    from .hooks import Steering, steering
    from .load import RunningModel, load
    from .sample import Decoding, Reply, default_decoding

_HOME = {
    "Continuation": "forward",
    "Decoding": "sample",
    "Reply": "sample",
    "RunningModel": "load",
    "Sequence": "forward",
    "Steering": "hooks",
    "answer_states": "forward",
    "capture": "forward",
    "continue_replies": "generate",
    "default_decoding": "sample",
    "generate": "generate",
    "load": "load",
    "replies": "generate",
    "score_answers": "forward",
    "steering": "hooks",
    "stream": "generate",
}

__all__ = [
    "Continuation",
    "Decoding",
    "Reply",
    "RunningModel",
    "Sequence",
    "Steering",
    "answer_states",
    "capture",
    "continue_replies",
    "default_decoding",
    "generate",
    "load",
    "replies",
    "score_answers",
    "steering",
    "stream",
]


def __getattr__(name: str) -> Any:
    # lazy: the nouns of ``sample`` are used where torch is not installed
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    if home != "sample":
        from .load import need_torch

        need_torch()  # one line that says what to install, before anything below imports torch
    return getattr(importlib.import_module(f".{home}", __name__), name)


class _Package(types.ModuleType):
    """A package whose public names are not taken over by its files: importing ``runtime.load`` would bind that name to
    the module, and ``from weightsmith.runtime import load`` would depend on what was imported before."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
