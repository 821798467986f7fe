"""How a reply is chosen: the words for it, the model's own settings, and the dice. Torch is imported only to sample.

The filters have the meaning and the order of transformers' logits processors: repetition penalty (Keskar et al. 2019,
section 4.1, over prompt and answer), temperature, top-k, top-p (Holtzman et al. 2020, section 3.1), min-p (Nguyen et
al. 2024, section 3). The token is then found by inverting the cumulative distribution in the order of token ids.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, RecipeError

if TYPE_CHECKING:
    import torch

    from .load import RunningModel

#: the first guess of how many tokens hold ``top_p`` of the probability; grows when they don't
_LIKELY = 256


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a reply is chosen; temperature 0 is greedy. ``seed`` is ``None`` for greedy replies."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        ok = (self.max_new_tokens > 0 and self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0
              and 0 <= self.min_p < 1 and self.repetition_penalty > 0)  # fmt: skip
        if not ok:
            raise RecipeError(f"a decoding that can't be: {self}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said: token ids without the end token; ``ended`` when it ended by itself."""

    tokens: list[int]
    ended: bool


def default_decoding(model: RunningModel, max_new_tokens: int, seed: int | None = None) -> Decoding:
    """The model's own way to sample, from its ``generation_config``, whether or not that says ``do_sample``; temperature 1
    and nothing else where it has none. What was used goes into the model's notes.

    transformers' fallback of ``top_k`` 50 is no setting of the model's and is not used.

    Raises:
        FormatError: a setting is no number; RecipeError: it is out of its range.
    """
    config = model.model.generation_config
    kinds: dict[str, type] = {"temperature": float, "top_p": float, "top_k": int, "min_p": float,
                              "repetition_penalty": float}  # fmt: skip
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = getattr(config, name, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(f"{name} in generation_config.json is no number: {value!r:.40}",
                              where=model.checkpoint.path)  # fmt: skip
        found[name] = kind(value)
    if not found.keys() & {"temperature", "top_p", "top_k", "min_p"}:
        model.note("the model names no sampling of its own: temperature 1 was used")
    else:
        named = ", ".join(f"{n} {v:g}" for n, v in found.items())
        model.note(f"sampled as the model's own generation_config says: {named}")
    decoding = Decoding(max_new_tokens, **{"temperature": 1.0, **found})
    return decoding if decoding.greedy else Decoding(max_new_tokens, **{"temperature": 1.0, **found}, seed=seed)


def dice(seed: int, prompt: Seq[int], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``count`` uniform numbers in [0, 1), one a step, that depend on the seed and the prompt's ids alone.

    A counter-based generator (Philox, Salmon et al. 2011) whose key is a digest of both: a reply depends neither on its
    batch nor on its neighbours, and going on from any step finds the same numbers.
    """
    ids = np.asarray(prompt, dtype="<i8").tobytes()
    key = hashlib.sha256(f"{seed}:".encode() + ids).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)


def penalised(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits ``[rows, vocab]`` with the tokens ``seen`` (ids ``[rows, n]``, repeats allowed) made less likely."""
    import torch

    old = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


def warped(logits: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Logits ``[rows, vocab]`` after temperature, top-k, top-p and min-p; -inf where a token can't be drawn.

    Tokens that tie with the last one kept are kept too.
    """
    import torch

    scores = logits / decoding.temperature if decoding.temperature != 1 else logits
    vocab = scores.shape[-1]
    kept = vocab
    if 0 < decoding.top_k < vocab:
        least = scores.topk(decoding.top_k).values[:, -1:]
        inside = scores >= least
        scores = torch.where(inside, scores, -math.inf)
        kept = int(inside.sum(-1).max()) if decoding.top_p < 1 else vocab
    if decoding.top_p < 1:
        scores = torch.where(scores >= _nucleus(scores, decoding.top_p, kept), scores, -math.inf)
    if decoding.min_p > 0:
        least = scores.amax(-1, keepdim=True) + math.log(decoding.min_p)
        scores = torch.where(scores >= least, scores, -math.inf)
    return scores


def _nucleus(scores: torch.Tensor, top_p: float, kept: int) -> torch.Tensor:
    """The lowest score ``[rows, 1]`` among the likeliest tokens that together hold ``top_p``; ``kept`` bounds how many
    are finite. Only as many as it takes are sorted."""
    import torch

    whole = scores.logsumexp(-1, keepdim=True)
    count = min(_LIKELY, kept)
    while True:
        best = scores.topk(count).values
        shares = (best - whole).exp()
        before = shares.cumsum(-1) - shares
        inside = before < top_p
        if count == kept or not bool(inside[:, -1].any()):
            return torch.where(inside, best, math.inf).amin(-1, keepdim=True)
        count = min(count * 8, kept)


def draw(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Token ids ``[rows]``: the first one whose cumulative probability exceeds ``uniform`` (fp64 ``[rows]``)."""
    import torch

    if scores.device.type == "mps":  # which has no fp64
        return draw(scores.cpu(), uniform.cpu())
    uniform = uniform.to(scores.device)
    shares = torch.softmax(scores, -1).cumsum(-1, dtype=torch.float64)
    total = shares[:, -1]
    aim = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(shares, aim[:, None], right=True)[:, 0]
