"""How the model itself shows a feature and how it does not: openings discovered from its own answers.

A greedy answer shows one opening; the next edit may only drive the model to another ("I'm sorry" to "Unfortunately"). So
the first tokens that come next in probability are tried as well: each is continued greedily after the prompts where it is
likeliest, and what comes out is read like any answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..runtime import generate

if TYPE_CHECKING:
    from ..runtime import RunningModel

Tokens = tuple[int, ...]
Label = Callable[[int, str, bool], bool | None]

LONGEST, SHORTEST = 6, 2  # tokens of an opening
TRIED, AFTER = 8, 3  # first tokens that are tried, and after how many prompts each
LIKELY = 0.015  # mean chance from which a first token is tried
MOST = 6  # openings that are kept


@dataclass(frozen=True)
class Openings:
    """Openings by which answers show the feature, and some by which they don't, with the mean chance of their first token
    on prompts whose answer shows it."""

    shows: dict[Tokens, float]
    lacks: dict[Tokens, float]
    generated: int = 0


def discover(
    model: RunningModel, prompts: Seq[Seq[int]], answers: Seq[Seq[int]], showing: Seq[bool], chances: torch.Tensor,
    label: Label, tokens: int,
) -> Openings:  # fmt: skip
    """Openings from the base's greedy ``answers`` and from what else is likely at their start.

    ``chances`` are the first token's probabilities ``[prompts, vocab]``; ``label(prompt, text, ended)`` says whether a text
    shows the feature. Empty where no answer shows it.
    """
    shown = [i for i, s in enumerate(showing) if s]
    if not shown:
        return Openings({}, {})
    mean = chances[shown].mean(0)
    greedy = [(tuple(answers[i]), showing[i]) for i in range(len(answers)) if answers[i]]
    known = Counter(a[0] for a, s in greedy if s)
    first = torch.topk(mean, min(TRIED + len(known), len(mean))).indices
    likely = [int(t) for t in first if float(mean[t]) >= LIKELY and int(t) not in known]
    asked = [(t, i) for t in likely[:TRIED] for i in sorted(shown, key=lambda i: -float(chances[i, t]))[:AFTER]]
    said = generate(model, [[*prompts[i], t] for t, i in asked], tokens, "trying other openings") if asked else []
    seen = list(greedy)
    for (token, i), rest in zip(asked, said, strict=True):
        answer = (token, *rest)
        shows = label(i, model.decode(list(answer)), len(rest) < tokens)
        if shows is not None:
            seen.append((answer, shows))
    return Openings(_shortest(seen, True, mean), _shortest(seen, False, mean), sum(map(len, said)))


def _shortest(seen: Seq[tuple[Tokens, bool]], side: bool, mean: torch.Tensor) -> dict[Tokens, float]:
    """The shortest beginnings of one side's answers with which (nearly) no answer of the other side begins, and which
    are no beginnings of each other; the likeliest few."""
    mine, theirs = Counter(a for a, s in seen if s == side), Counter(a for a, s in seen if s != side)
    found: Counter[Tokens] = Counter()
    for answer, times in mine.items():
        for n in range(SHORTEST, LONGEST + 1):
            head = answer[:n]
            here = sum(c for a, c in mine.items() if a[:n] == head)
            there = sum(c for a, c in theirs.items() if a[:n] == head)
            if len(head) < n:
                break
            if there <= here / 8:
                found[head] += times
                break
    free = [h for h in found if not any(o != h and h[: len(o)] == o for o in found)]
    size = Counter(a[0] for a, _ in seen)
    share = {h: float(mean[h[0]]) * found[h] / size[h[0]] for h in free}
    ranked = sorted(share.items(), key=lambda x: (-x[1], x[0]))[:MOST]
    return {h: s for h, s in ranked if s >= 0.02 * ranked[0][1]}
