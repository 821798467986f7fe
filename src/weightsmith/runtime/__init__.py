"""The running model: loading, hooks, capture, log-probabilities, generation. Torch is imported here and not below.

Loading runs no code that comes with a model and needs no network. Hooks are context managers and never change a
tensor in place.
"""

from .forward import Continuation, Sequence, answer_states, capture, score_answers
from .generate import generate, stream
from .hooks import Steering, steering
from .load import RunningModel, load

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
