"""Keeping an addition fluent: what the edited model says itself is read, and its repetitions are unlearned.

Teacher-forced losses never see the model's own answers, where a constant that pushes at every token tends to end in loops.
So a few rounds run on the model's own text: answers are generated under the edit, and the tokens that complete a group of
three tokens that was said before are made unlikely (unlikelihood training, Welleck et al. 2020, arXiv 1908.04319, section
4.2), beside the losses of the descent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from ..measure.degenerate import why_degenerate
from ..runtime import generate
from .gradient import Descent, Snapshot, look, optimiser_for
from .objectives import Problem
from .passes import Rows, Tree, Use
from .space import Space, Values

GRAM = 3
LIKELY = math.log(0.02)


@dataclass(frozen=True)
class Rounds:
    """How often the model is asked at the most, for how many tokens, and how many steps follow each time; it is asked no more
    once at most ``fluent`` of its answers are degenerate."""

    rounds: int = 4
    tokens: int = 96
    steps: int = 8
    batch: int = 8
    prompts: int = 24
    weight: float = 8.0
    fluent: float = 0.0


def repeats(answer: Seq[int], gram: int = GRAM) -> list[int]:
    """Places of tokens that complete a group of ``gram`` tokens that was said before in the same answer."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for at in range(gram - 1, len(answer)):
        group = tuple(answer[at - gram + 1 : at + 1])
        if group in seen:
            found.append(at)
        seen.add(group)
    return found


def unlearn(
    problem: Problem, space: Space, begin: Snapshot, how: Descent, rounds: Rounds,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Snapshot]:  # fmt: skip
    """Rounds of asking and unlearning from ``begin``, whose own ``loops`` is noted; one snapshot a round, with its."""
    work, found = _Unlearning(problem, space, how, rounds, begin.weight, begin.values.copy()), list[Snapshot]()
    values, asked = work.values, [problem.effect.items[i].tree.prompt for i in problem.effect.train[: rounds.prompts]]
    whole, last = rounds.rounds * rounds.steps, begin
    for turn in range(rounds.rounds + 1):
        with torch.no_grad(), space.hooked(values):
            said = generate(problem.model, asked, rounds.tokens, "reading what the edit says")
        problem.passes.ledger.generated += sum(map(len, said))
        last.loops = float(np.mean([why_degenerate(problem.model.decode(a)) is not None for a in said]))
        if turn == rounds.rounds or last.loops <= rounds.fluent:
            break
        loops = _Loops.of(problem, asked, said)
        for step in range(rounds.steps):
            tell("unlearning repetitions", turn * rounds.steps + step, whole)
            work.step(loops)
        seen = look(problem, space, values)
        if seen is None:
            break
        last = Snapshot(values.copy(), seen, begin.weight, begin.step, f"and round {turn + 1} of unlearning repetitions")
        found.append(last)
    tell("unlearning repetitions", whole, whole)
    return found


def most_fluent(snapshots: Seq[Snapshot], problem: Problem) -> Snapshot:
    """The one whose answers are degenerate least often, to a twentieth; of equal ones that of the least loss."""
    return min(snapshots, key=lambda s: (round(20 * (1.0 if s.loops is None else s.loops)), problem.loss_of(s.seen)))


@dataclass(eq=False)
class _Loops:
    """The answers in which something repeats, up to the last repetition: what follows it, and the others, have nothing to
    unlearn and need no pass. ``marked`` and ``lengths`` (of the whole answers) are by tree, ``places`` by answer."""

    rows: Rows
    marked: list[list[int]]
    lengths: list[int]
    places: list[int | None]

    @classmethod
    def of(cls, problem: Problem, asked: Seq[Seq[int]], said: Seq[list[int]]) -> _Loops:
        """From prompts and what the edited model answered to them."""
        trees: list[Tree] = []
        marked: list[list[int]] = []
        lengths: list[int] = []
        places: list[int | None] = []
        for prompt, answer in zip(asked, said, strict=True):
            if not answer:
                continue
            found = repeats(answer)
            places.append(len(trees) if found else None)
            if found:
                trees.append(Tree.of(prompt, [answer[: found[-1] + 1]]))
                marked.append(found)
                lengths.append(len(answer))
        return cls(problem.passes.prepare(trees), marked, lengths, places)


@dataclass(eq=False)
class _Unlearning:
    """The steps of all rounds, on the vectors of ``values``; ``weight`` is that of the damage."""

    problem: Problem
    space: Space
    how: Descent
    rounds: Rounds
    weight: float
    values: Values

    def __post_init__(self) -> None:
        self.params = [self.values.vectors.requires_grad_()]
        self.optimiser = optimiser_for(self.values, self.params, self.how, 1.0)
        self.rng = np.random.default_rng(self.how.seed + 1)

    def step(self, loops: _Loops) -> None:
        """One step on repetitions, effect and damage; none where its gradient is not finite."""
        # effect and damage are there to be kept, and half of a descent's batch keeps them
        problem, batch = self.problem, max(1, self.how.batch // 2)
        drawn = self._pick(range(len(loops.places)), self.rounds.batch)
        chosen = [k for k in (loops.places[i] for i in drawn) if k is not None]
        with self.space.hooked(self.values):
            parts = [problem.effect_loss(self._pick(problem.effect.train, batch), self.params)[1]]
            if chosen:
                parts.append(problem.passes.each(loops.rows, chosen, self._repeating(loops, len(drawn)), self.params)[1])
            for group in (problem.damage, *problem.protect.values()):
                parts.append(problem.distance_loss(group, self._pick(group.train, batch), self.weight, self.params)[1])
        gradient = torch.stack([p[0] for p in parts]).sum(0)
        if bool(torch.isfinite(gradient).all()):
            self.params[0].grad = gradient
            self.optimiser.step()

    def _pick(self, places: Seq[int], n: int) -> list[int]:
        return [places[int(i)] for i in self.rng.permutation(len(places))[:n]]

    def _repeating(self, loops: _Loops, count: int) -> Use:
        """The loss of the marked tokens, a mean over ``count`` answers."""

        def use(which: list[int], states: list[torch.Tensor]) -> torch.Tensor:
            # of most tokens nothing is asked: the lm_head reads only the states that predict a marked one
            trees = [loops.rows.trees[i] for i in which]
            asked = [[tree.reads[n] for n in loops.marked[i]] for i, tree in zip(which, trees, strict=True)]
            found = self.problem.logprobs([s[a] for s, a in zip(states, asked, strict=True)])
            total = found[0].new_zeros(())
            for i, tree, logprobs in zip(which, trees, found, strict=True):
                node = logprobs[range(len(logprobs)), [tree.tokens[n] for n in loops.marked[i]]]
                # what is unlikely already has nothing to unlearn, and its gradient would drown in numbers too small to be
                # multiplied fast
                node = node[node > LIKELY]
                if len(node):
                    total = total - torch.log1p(-node.exp().clamp(max=1 - 1e-4)).sum() / loops.lengths[i]
            return total * (self.rounds.weight / count)

        return use
