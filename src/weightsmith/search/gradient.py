"""Descent on strengths and directions, started from the closed form and stopped on held-out prompts.

The loss of a step is the effect's over a batch of prompts plus ``weight`` × KL over a batch of neutral ones (and of each
protected feature). Adam (Kingma and Ba 2015, arXiv 1412.6980); after each step the values are put back into the space, so
that strengths reach 0 and 1 exactly. Every few steps the held-out prompts are read: each such reading is a candidate, and
when their loss has not fallen twice in a row the descent ends. A sweep runs one descent for each weight, each begun where
the one before ended. A step with NaN is not taken, and those that follow are half as long.
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
from .objectives import Problem, Seen
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
    """Values and what they did on the held-out prompts; ``loops`` is the share of the model's own answers under them that are
    degenerate, where these were read."""

    values: Values
    seen: Seen
    weight: float
    step: int
    what: str = ""
    loops: float | None = None


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
    work = _Descents(problem, space, how, found, on_tick)
    for run in range(len(how.weights)):
        values = work.descend(run, values).values.copy()
        on_descent(run)
    return found


@dataclass(eq=False)
class _Descents:
    """What the descents of one sweep share."""

    problem: Problem
    space: Space
    how: Descent
    found: Sweep
    on_tick: Callable[[Tick], None]

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.how.seed)
        self.groups = [self.problem.damage, *self.problem.protect.values()]
        self.dice = [_Dice(g.train, rng) for g in (self.problem.effect, *self.groups)]

    def descend(self, run: int, begin: Values) -> Snapshot:
        """The descent at place ``run`` of the sweep; its best reading, or what it began with where there was none."""
        how, values = self.how, begin.copy()
        weight, steps = how.weights[run], how.steps if run == 0 else how.more
        params = self._params(values)
        optimiser, scale, worse = optimiser_for(values, params, how, 1.0), 1.0, 0
        best: Snapshot | None = None
        moved = False  # since the held-out prompts were last read
        for step in range(1, steps + 1):
            effect, damage = self._slopes(values, params, weight)
            tick = None
            if math.isfinite(effect + damage) and all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in params):
                optimiser.step()
                self.space.normalise(values)
                moved, tick = True, Tick(run=run, step=step, weight=weight, effect_loss=effect, damage=damage)
            else:  # the values are those from before it
                scale /= 2
                optimiser = optimiser_for(values, params, how, scale)
            ended = scale < 2.0**-BACKOFFS
            if tick is None:
                what = "the descent ended" if ended else f"it went on with a step of {scale:g}"
                self.found.notes.append(f"weight {weight:g}, step {step}: NaN or infinity; {what}")
            # what good steps have reached is read, whether or not the one at which it is due was good
            if moved and (ended or step % how.check == 0 or step == steps):
                moved, snapshot = False, self._read(values, weight, step)
                if snapshot is not None:
                    held = self.problem.loss_of(snapshot.seen), float(snapshot.seen.damage.mean())
                    tick = tick and tick.model_copy(update={"held_effect": held[0], "held_damage": held[1]})
                    better = best is None or self._total(snapshot) < self._total(best)
                    best, worse = (snapshot, 0) if better else (best, worse + 1)
            if tick is not None:
                self.found.ticks.append(tick)
                self.on_tick(tick)
            if ended or worse >= PATIENCE:
                break
        return best or Snapshot(begin.copy(), self.problem.base or self.problem.see(), weight, 0)

    def _params(self, values: Values) -> list[torch.Tensor]:
        """What a descent changes."""
        params = [values.strengths.requires_grad_()] if self.space.kind == "remove" else []
        if self.how.turn or self.space.kind == "add":
            params.append(values.vectors.requires_grad_())
        if values.readers is not None:
            params.append(values.readers.requires_grad_())
        return params

    def _slopes(self, values: Values, params: list[torch.Tensor], weight: float) -> tuple[float, float]:
        """Put the gradients of a new batch into ``params``; the effect's loss and the damage."""
        batches = [d.draw(self.how.batch) for d in self.dice]
        with self.space.hooked(values):
            effect, slopes = self.problem.effect_loss(batches[0], params)
            costs = [self.problem.distance_loss(g, b, weight, params) for g, b in zip(self.groups, batches[1:], strict=True)]
        for param, *parts in zip(params, slopes, *(c[1] for c in costs), strict=True):
            param.grad = torch.stack(parts).sum(0)
        return effect, costs[0][0] / weight if weight else 0.0

    def _read(self, values: Values, weight: float, step: int) -> Snapshot | None:
        seen = look(self.problem, self.space, values)
        if seen is None:
            return None
        snapshot = Snapshot(values.copy(), seen, weight, step)
        self.found.snapshots.append(snapshot)
        self.found.tell(snapshot)
        return snapshot

    def _total(self, snapshot: Snapshot) -> float:
        return _total(self.problem, snapshot.seen, snapshot.weight)


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
