"""The choice of layer and amount on the *select* prompts, by effect against damage.

*Effect* is the change of the log-odds, in nats per token, of answers that show the feature over answers that lack it,
teacher-forced: the rise on neutral prompts for an addition, the fall where the base shows the feature for a removal.
*Damage* is KL(base ‖ edited) in nats per token over the full vocabulary at every token of the base's own greedy
answers to neutral prompts.

The rules. An addition's effect grows with its dose and its damage with the dose's square, so windows are compared by
effect / √KL, which no dose can flatter, and the dose is then the one with the greatest effect whose KL stays within a
budget (one nat per token unless asked otherwise; what the feature's own persona prompt costs on the same answers stands
beside it, since prompting is the bar that steering has to beat). A removal has no dose: the greatest effect − KL.
Nothing is generated from a candidate but the chosen addition: while more of its answers are degenerate than the base's
plus a tenth, its dose is lowered by a fifth, at most four times.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..direction import Direction
from ..errors import EditError
from ..measure.degenerate import why_degenerate
from ..plan import compile_edit
from ..records import Candidate, EditSpec, EditStep
from ..runtime import Continuation, RunningModel, answer_states, generate, score_answers, steering
from .extract import Activations, conversation
from .prompts import PromptSets
from .recipe import FeatureSpec

RULE = (
    "add: best window by effect / √KL, then the greatest effect with KL within the budget of {budget:.2f} nats per token "
    "{why}, lowered while over a tenth more of its answers are degenerate than of the base's; remove: greatest effect − KL"
)
BUDGET = 1.0  # nats per token
COARSE_DOSE = 0.25


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
    budget: float
    why: str
    tokens: int

    @property
    def rule(self) -> str:
        """The rule of choice, with this feature's budget, for the record."""
        return RULE.format(budget=self.budget, why=self.why)


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
    model: RunningModel, spec: FeatureSpec, sets: PromptSets, select: Activations, n: int, tokens: int,
    budget: float = BUDGET,
) -> Trials:  # fmt: skip
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
    why = ""
    if spec.contrast.kind == "personas":
        cost = _persona_cost(model, spec, part.lacks[:n], neutral, states)
        why = f"(the persona prompt itself costs {cost:.2f})"
    return Trials(add, remove, neutral, states, log_odds(model, add, "comparing answers of the base"),
                  log_odds(model, remove, "comparing answers of the base"), budget, why, tokens)  # fmt: skip


def _persona_cost(
    model: RunningModel, spec: FeatureSpec, prompts: Seq[str], neutral: list[Continuation], states: list[torch.Tensor]
) -> float:
    """KL(base ‖ base under the persona), nats per token, over the base's own neutral answers."""
    answers = {item.prompt: item.answer for item in neutral}
    plain = [tuple(model.encode(conversation(spec, "lacks", p, False))) for p in prompts]
    items = [Continuation(tuple(model.encode(conversation(spec, "shows", p, True))), answers[key])
             for p, key in zip(prompts, plain, strict=True) if key in answers]  # fmt: skip
    return float(torch.cat(kl_rows(model, states, answer_states(model, items, "reading under the persona"))).mean())


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
    """The hooks of an edit on a running model; fitted constants are exact as hooks and need no fit.

    Raises:
        EditError: an edit that hooks can't do.
    """
    compiled = compile_edit(model.checkpoint, spec, directions, hooks_only=True)
    if compiled.unhooked:
        raise EditError(f"this edit has no form as hooks: {compiled.unhooked}", where=spec.name or "edit",
                        hint="leave the embedding out, or write it as weights with `weightsmith edit`")  # fmt: skip
    return compiled.hooks


def sources(layers: Seq[int]) -> list[int]:
    """Layers whose vector is tried: five, from 35% to 80% of the depth that was captured."""
    return sorted({layers[round(f * (len(layers) - 1))] for f in (0.35, 0.46, 0.57, 0.68, 0.8)})


def window(source: int, n_layers: int) -> list[int]:
    """A fifth of the model's layers around ``source``, over which an addition is spread."""
    width = max(1, n_layers // 5)
    first = max(0, min(source - width // 2, n_layers - width))
    return list(range(first, first + width))


def choose(model: RunningModel, direction: Direction, trials: Trials) -> list[Candidate]:
    """Try additions and removals on a coarse grid, fit the dose of the best addition, and mark the chosen of each."""
    added, removed = _try_additions(model, direction, trials), _try_removals(model, direction, trials)
    within = [c for c in added if c.kl <= trials.budget] or [min(added, key=lambda c: c.kl)]
    top = max(within, key=lambda c: c.effect)
    added.remove(top)
    added += (eased := _eased(model, direction, trials, top))
    best = [eased[-1], max(removed, key=lambda c: c.effect - c.kl)]
    return [c.model_copy(update={"chosen": any(c is b for b in best)}) for c in (*added, *removed)]


def _eased(model: RunningModel, direction: Direction, trials: Trials, top: Candidate) -> list[Candidate]:
    """``top`` and what its dose was lowered to, the last one being fluent, or the lowest that was tried."""
    base = _degenerate(model, trials)
    found: list[Candidate] = []
    while True:
        spec = EditSpec(steps=[EditStep(kind="add", direction="candidate", source=top.source, layers=top.layers,
                                        amount=top.amount)])  # fmt: skip
        with steering(model, compile_hooks(model, spec, {"candidate": direction})):
            share = _degenerate(model, trials)
        found.append(top.model_copy(update={"degenerate": share}))
        if share <= base + 0.1 or len(found) > 4:
            return found
        top = evaluate(model, direction, trials, "add", top.source, top.layers, round(top.amount * 0.8, 4))


def _degenerate(model: RunningModel, trials: Trials) -> float:
    """Share of degenerate answers to the neutral prompts, a little longer than the ones that were compared."""
    prompts = [item.prompt for item in trials.neutral]
    said = generate(model, prompts, trials.tokens * 3 // 2, "reading what it says")
    return float(np.mean([why_degenerate(model.decode(a)) is not None for a in said]))


def _usable(direction: Direction, window_: list[int]) -> list[int]:
    """The layers of a window that the direction has: a dose needs the residual norm of each."""
    return [x for x in window_ if x in set(direction.meta.layers)]


def _try_additions(model: RunningModel, direction: Direction, trials: Trials) -> list[Candidate]:
    n_layers, step = model.architecture.n_layers, "choosing where and how much to add"
    tried: list[Candidate] = []
    picks = sources(direction.meta.layers)
    total = len(picks) + 2
    for source in picks:
        model.options.report(step, len(tried), total)
        layers = _usable(direction, window(source, n_layers))
        tried.append(evaluate(model, direction, trials, "add", source, layers, COARSE_DOSE))
    best = max(tried, key=lambda c: c.effect / max(c.kl, 1e-9) ** 0.5)
    for _ in range(2):
        # KL grows with the square of the dose: aim a little under the budget from the nearest dose that is known
        near = min((c for c in tried if c.source == best.source), key=lambda c: abs(np.log(max(c.kl, 1e-9) / trials.budget)))
        dose = round(near.amount * float(np.sqrt(0.95 * trials.budget / max(near.kl, 1e-9))), 3)
        model.options.report(step, len(tried), total)
        if all(dose != c.amount for c in tried if c.source == best.source) and 0 < dose <= 4:
            tried.append(evaluate(model, direction, trials, "add", best.source, best.layers, dose))
    model.options.report(step, total, total)
    return tried


def _try_removals(model: RunningModel, direction: Direction, trials: Trials) -> list[Candidate]:
    everywhere, step = list(range(model.architecture.n_layers)), "choosing what to remove"
    tried: list[Candidate] = []
    picks = sources(direction.meta.layers)
    for source in picks:
        model.options.report(step, len(tried), len(picks))
        tried.append(evaluate(model, direction, trials, "remove", source, everywhere, 1.0))
    model.options.report(step, len(picks), len(picks))
    return tried
