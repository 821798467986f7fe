"""The choice of layer and amount on the *select* prompts, by effect against damage, without generating from any edit.

Both are in nats per token, so they can be weighed one for one. *Effect* is the change of the log-odds of answers that
show the feature over answers that lack it, teacher-forced: the rise on neutral prompts for an addition, the fall where
the base shows the feature for a removal. *Damage* is KL(base ‖ edited) over the full vocabulary at every token of the
base's own greedy answers to neutral prompts. The rule: the candidate with the greatest effect − damage. An addition's
effect grows with its dose and its damage with the dose's square, so the rule stops where one more nat of effect costs
more than a nat of damage.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..direction import Direction
from ..plan import compile_edit
from ..records import Candidate, EditSpec, EditStep
from ..runtime import Continuation, RunningModel, answer_states, generate, score_answers, steering
from .extract import Activations, conversation
from .prompts import PromptSets
from .recipe import FeatureSpec

RULE = "greatest effect minus KL on the select prompts, both in nats per token"


@dataclass
class Trials:
    """Teacher-forced material: answers that show and lack the feature where an addition and a removal are judged, and
    the base's own neutral answers with their final hidden states."""

    add: tuple[list[Continuation], list[Continuation]]
    remove: tuple[list[Continuation], list[Continuation]]
    neutral: list[Continuation]
    states: list[torch.Tensor]
    base_add: float
    base_remove: float


def log_odds(model: RunningModel, sides: tuple[list[Continuation], list[Continuation]], step: str) -> float:
    """Mean log-probability per token of the first side's answers minus that of the second's, nats."""
    scores = np.array(score_answers(model, [*sides[0], *sides[1]], step))
    return float(scores[: len(sides[0])].mean() - scores[len(sides[0]) :].mean())


def kl_rows(model: RunningModel, base: Seq[torch.Tensor], edited: Seq[torch.Tensor]) -> list[torch.Tensor]:
    """KL(base ‖ edited) at every position, nats, one fp32 tensor an item; from final hidden states."""
    out = []
    with torch.inference_mode():
        for before, after in zip(base, edited, strict=True):
            p, q = torch.log_softmax(model.logits(before), -1), torch.log_softmax(model.logits(after), -1)
            out.append((p.exp() * (p - q)).sum(-1).clamp(min=0).cpu())
    return out


def prepare(
    model: RunningModel, spec: FeatureSpec, sets: PromptSets, select: Activations, n: int, tokens: int
) -> Trials:
    """Build the material from the first ``n`` select prompts, answers of ``tokens`` tokens."""
    part = sets.select
    if spec.contrast.kind == "texts":
        sides = tuple([_as_text(model, t) for t in rows[:n]] for rows in (part.shows, part.lacks))
        both = (sides[0], sides[1])
        add = remove = both
        neutral = sides[1]
    else:
        where_add = [model.encode(conversation(spec, "lacks", p, False)) for p in part.lacks[:n]]
        where_remove = [model.encode(conversation(spec, "shows", p, True)) for p in part.shows[:n]]
        where_lacks = [model.encode(conversation(spec, "lacks", p, True)) for p in part.lacks[:n]]
        answers = _contrast_answers(model, spec, select, where_lacks, where_remove, n, tokens)
        add, remove = _items(where_add, answers), _items(where_remove, answers)
        said = generate(model, where_add, tokens, "answering neutral prompts")
        neutral = [Continuation(tuple(p), tuple(a)) for p, a in zip(where_add, said, strict=True) if a]
    states = answer_states(model, neutral, "reading neutral answers")
    return Trials(add, remove, neutral, states, log_odds(model, add, "base: answers compared"),
                  log_odds(model, remove, "base: answers compared"))  # fmt: skip


def _as_text(model: RunningModel, text: str) -> Continuation:
    ids = model.tokens(text, special=True)
    return Continuation(tuple(ids[:1]), tuple(ids[1:] or ids))


Answers = list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]]


def _contrast_answers(
    model: RunningModel, spec: FeatureSpec, select: Activations, where_lacks: list[list[int]],
    where_remove: list[list[int]], n: int, tokens: int,
) -> Answers:  # fmt: skip
    """Per prompt: answers that show the feature and answers that lack it.

    Personas and pairs have the model's own answers under both sides; sets whose prompts differ have the recipe's
    continuations, or the model's own answers to the other side's prompts.
    """
    options: dict[str, Any] = next((s.options for s in spec.scorers if s.kind == "continuations"), {})
    if spec.contrast.kind == "prompt_sets" and options.get("shows") and options.get("lacks"):
        shows, lacks = ([tuple(model.tokens(t)) for t in options[side][:4]] for side in ("shows", "lacks"))
        return [(shows, lacks)] * n
    own = (select.shows.answers[:n], select.lacks.answers[:n])
    if not own[0]:
        own = (generate(model, where_remove, tokens, "answering (shows)"),
               generate(model, where_lacks, tokens, "answering (lacks)"))  # fmt: skip
    return [([tuple(a)] if a else [], [tuple(b)] if b else []) for a, b in zip(*own, strict=True)]


def _items(prompts: list[list[int]], answers: Answers) -> tuple[list[Continuation], list[Continuation]]:
    left, right = [], []
    for prompt, (shows, lacks) in zip(prompts, answers, strict=True):
        if shows and lacks:
            left += [Continuation(tuple(prompt), a) for a in shows]
            right += [Continuation(tuple(prompt), b) for b in lacks]
    return left, right


def evaluate(
    model: RunningModel, direction: Direction, trials: Trials, kind: str, source: int, layers: Seq[int], amount: float
) -> Candidate:
    """Effect and damage of one candidate, as hooks on the running model."""
    step = EditStep(kind=kind, direction="candidate", source=source, layers=list(layers), amount=amount)
    compiled = compile_hooks(model, EditSpec(steps=[step]), {"candidate": direction})
    with steering(model, compiled):
        if kind == "add":
            effect = log_odds(model, trials.add, f"trying {kind}") - trials.base_add
        else:
            effect = trials.base_remove - log_odds(model, trials.remove, f"trying {kind}")
        states = answer_states(model, trials.neutral, f"trying {kind}")
    damage = float(torch.cat(kl_rows(model, trials.states, states)).mean())
    return Candidate(kind="add" if kind == "add" else "remove", source=source, layers=list(layers), amount=amount,
                     effect=effect, kl=damage, n=len(trials.neutral))  # fmt: skip


def compile_hooks(model: RunningModel, spec: EditSpec, directions: dict[str, Direction]) -> list[Any]:
    """The hooks of an edit on a running model; fitted constants are exact as hooks and need no fit."""
    return compile_edit(model.checkpoint, spec, directions, hooks_only=True).hooks


def candidates(n_layers: int, layers: Seq[int], kind: str) -> list[tuple[int, list[int], float]]:
    """The coarse grid: (source layer, edited layers, amount)."""
    fractions = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    sources = sorted({layers[min(len(layers) - 1, round(f * (len(layers) - 1)))] for f in fractions})
    if kind == "remove":
        return [(s, list(range(n_layers)), 1.0) for s in sources]
    width = max(1, n_layers // 5)
    grid = []
    for source in sources:
        first = max(0, min(source - width // 2, n_layers - width))
        window = [x for x in range(first, first + width) if x in set(layers)] or [source]
        grid.append((source, window, 0.4))
    return grid


def choose(model: RunningModel, direction: Direction, trials: Trials) -> list[Candidate]:
    """Try the grid for both kinds, refine the dose of the best addition, and mark the chosen of each kind."""
    tried: list[Candidate] = []
    n_layers, layers = model.architecture.n_layers, direction.meta.layers
    for kind in ("add", "remove"):
        grid = candidates(n_layers, layers, kind)
        for done, (source, window, amount) in enumerate(grid):
            model.options.report(f"choosing layer and amount ({kind})", done, len(grid))
            tried.append(evaluate(model, direction, trials, kind, source, window, amount))
        best = _best(tried, kind)
        if kind == "add":
            for factor in (0.5, 1.5, 2.0, 3.0):
                amount = round(best.amount * factor, 4)
                tried.append(evaluate(model, direction, trials, kind, best.source, best.layers, amount))
                if tried[-1].effect - tried[-1].kl < best.effect - best.kl and factor > 1:
                    break
        best = _best(tried, kind)
        tried[tried.index(best)] = best.model_copy(update={"chosen": True})
        model.options.report(f"choosing layer and amount ({kind})", len(grid), len(grid))
    return tried


def _best(tried: list[Candidate], kind: str) -> Candidate:
    return max((c for c in tried if c.kind == kind), key=lambda c: c.effect - c.kl)
