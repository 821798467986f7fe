"""The running model: loading, hooks, capture, log-probabilities, generation. Torch is imported here and not below.

Loading runs no code that comes with a model and needs no network. Hooks are context managers and never change a
tensor in place.
"""

from .load import RunningModel, load, need_torch

need_torch()  # one line that says what to install, before anything below imports torch

from .forward import Continuation, Sequence, answer_states, capture, score_answers  # noqa: E402
from .generate import generate, stream  # noqa: E402
from .hooks import Steering, steering  # noqa: E402

__all__ = [
    "Continuation",
    "RunningModel",
    "Sequence",
    "Steering",
    "answer_states",
    "capture",
    "generate",
    "load",
    "score_answers",
    "steering",
    "stream",
]
