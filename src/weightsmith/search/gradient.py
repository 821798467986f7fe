"""Descent on strengths and directions, started from the closed form and stopped on held-out prompts.

The loss of a step is the effect's over a batch of prompts plus ``weight`` × KL over a batch of neutral ones (and of each
protected feature). Adam (Kingma and Ba 2015, arXiv 1412.6980); after each step the values are put back into the space, so
that strengths reach 0 and 1 exactly. Every few steps the held-out prompts are read: each such reading is a candidate, and
when their loss has not fallen twice in a row the descent ends. A sweep runs one descent for each weight, each begun where
the one before ended. NaN in a step is undone and the step halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import NonFinite
from ..searched import Tick
from .objectives import Group, Problem, Seen
from .space import Space, Values

PATIENCE = 2
BACKOFFS = 4


@dataclass(frozen=True)
class Descent:
    """How a descent goes. ``weights`` are those of the damage, in the order of the sweep; ``steps`` for the first and
    ``more`` for each later one; ``batch`` prompts of each kind a step; ``check`` steps between two readings of the held-out
    prompts; ``rate`` and ``turn`` the step sizes of strengths and of directions (0: directions stay)."""

    weights: tuple[float, ...] = (100.0, 20.0)
    steps: int = 12
    more: int = 6
    batch: int = 8
    check: int = 4
    rate: float = 0.03
    turn: float = 0.0015
    seed: int = 0


@dataclass(eq=False)
class Snapshot:
    """Values and what they did on the held-out prompts."""

    values: Values
    seen: Seen
    weight: float
    step: int
    what: str = ""


@dataclass(eq=False)
class Sweep:
    """What a sweep found."""

    snapshots: list[Snapshot] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tell: Callable[[Snapshot], None] = lambda _: None


class _Dice:
    """Prompts in a shuffled order, all of them before any comes again; the same for the same seed."""

    def __init__(self, places: Seq[int], rng: np.random.Generator) -> None:
        self.places, self.rng, self.left = list(places), rng, list[int]()

    def draw(self, n: int) -> list[int]:
        found: list[int] = []
        while len(found) < min(n, len(self.places)):
            if not self.left:
                self.left = [self.places[int(i)] for i in self.rng.permutation(len(self.places))]
            if self.left[-1] in found:  # a round has ended within this batch
                self.left.sort(key=lambda x: x in found, reverse=True)
            found.append(self.left.pop())
        return found


def sweep(
    problem: Problem, space: Space, begin: Values, how: Descent, on_tick: Callable[[Tick], None] = lambda _: None,
    on_snapshot: Callable[[Snapshot], None] = lambda _: None, on_descent: Callable[[int], None] = lambda _: None,
) -> Sweep:  # fmt: skip
    """One descent for each weight, warm-started; every reading of the held-out prompts is a snapshot, and is told, as is the
    end of each descent (its place in the sweep)."""
    found, values = Sweep(tell=on_snapshot), begin.copy()
    rng = np.random.default_rng(how.seed)
    groups = [problem.damage, *problem.protect.values()]
    dice = [_Dice(g.train, rng) for g in (problem.effect, *groups)]
    for run, weight in enumerate(how.weights):
        steps = how.steps if run == 0 else how.more
        best = _descend(problem, space, values, how, run, weight, steps, dice, groups, found, on_tick)
        values = best.values.copy()
        on_descent(run)
    return found


def _descend(
    problem: Problem, space: Space, begin: Values, how: Descent, run: int, weight: float, steps: int, dice: list[_Dice],
    groups: list[Group], found: Sweep, on_tick: Callable[[Tick], None],
) -> Snapshot:  # fmt: skip
    values = begin.copy()
    params = [values.strengths.requires_grad_()] if space.kind == "remove" else []
    if how.turn or space.kind == "add":
        params.append(values.vectors.requires_grad_())
    if values.readers is not None:
        params.append(values.readers.requires_grad_())
    optimiser, scale, worse = optimiser_for(values, params, how, 1.0), 1.0, 0
    best: Snapshot | None = None
    step = 0
    while step < steps:
        before = values.copy()
        batches = [d.draw(how.batch) for d in dice]
        with space.hooked(values):
            effect, slopes = problem.effect_loss(batches[0], params)
            costs = [problem.distance_loss(g, b, weight, params) for g, b in zip(groups, batches[1:], strict=True)]
        damage = costs[0][0] / weight if weight else 0.0
        for param, *parts in zip(params, slopes, *(c[1] for c in costs), strict=True):
            param.grad = torch.stack(parts).sum(0)
        if all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in params) and math.isfinite(effect + damage):
            optimiser.step()
            space.normalise(values)
        else:
            scale /= 2
            ends = scale < 2.0**-BACKOFFS
            what = "the descent ended" if ends else f"it went on with a step of {scale:g}"
            found.notes.append(f"weight {weight:g}, step {step + 1}: NaN or infinity; {what}")
            if ends:
                break
            values.restore(before)
            optimiser = optimiser_for(values, params, how, scale)
            step += 1
            continue
        step += 1
        tick = Tick(run=run, step=step, weight=weight, effect_loss=effect, damage=damage)
        if step % how.check == 0 or step == steps:
            seen = look(problem, space, values)
            if seen is not None:
                snapshot = Snapshot(values.copy(), seen, weight, step)
                found.snapshots.append(snapshot)
                found.tell(snapshot)
                tick = tick.model_copy(update={"held_effect": problem.loss_of(seen), "held_damage": float(seen.damage.mean())})
                if best is None or _total(problem, seen, weight) < _total(problem, best.seen, weight):
                    best, worse = snapshot, 0
                else:
                    worse += 1
        found.ticks.append(tick)
        on_tick(tick)
        if worse >= PATIENCE:
            break
    return best or Snapshot(begin.copy(), problem.base or problem.see(), weight, 0)


def look(problem: Problem, space: Space, values: Values) -> Seen | None:
    """What the values do on held-out prompts; ``None`` where the logits are NaN."""
    try:
        with torch.no_grad(), space.hooked(values):
            return problem.see()
    except NonFinite:
        return None


def _total(problem: Problem, seen: Seen, weight: float) -> float:
    return problem.loss_of(seen) + weight * problem.cost_of(seen)


def optimiser_for(values: Values, params: Seq[torch.Tensor], how: Descent, scale: float) -> torch.optim.Optimizer:
    rates = {id(values.strengths): how.rate, id(values.vectors): how.turn, id(values.readers): how.turn}
    return torch.optim.Adam([{"params": [p], "lr": rates[id(p)] * scale} for p in params], betas=(0.9, 0.98))


def scaled(problem: Problem, space: Space, snapshot: Snapshot, factors: Seq[float]) -> list[Snapshot]:
    """The same edit, weaker or stronger: strengths (of an addition its doses) times each factor."""
    found = []
    for factor in factors:
        values = snapshot.values.copy()
        values.strengths.mul_(factor)
        space.normalise(values)
        seen = look(problem, space, values)
        if seen is not None:
            what = f"{snapshot.what} times {factor:g}".strip()
            found.append(Snapshot(values, seen, snapshot.weight, snapshot.step, what))
    return found
