"""Black-box search with Optuna, for what can't be differentiated and as a check on what can.

It moves in the few numbers of :mod:`.kernels` and minimises two objectives, effect and damage. By default both come from
teacher-forced passes over the held-out prompts, first over a quarter of them: a trial that another one beats clearly there, on
the very same prompts, is pruned. A caller's own function may generate, ask a judge, or do anything else.

Samplers: TPE over all parameters at once (Bergstra et al. 2011; for several objectives Ozaki et al. 2020), and NSGA-II
(Deb et al. 2002). With a journal, runs resume and several processes share one study: see :mod:`.study`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..direction import Direction
from ..errors import EditError, MissingExtra, NonFinite, RecipeError, UsageError, stated
from ..features.select import compile_hooks
from ..records import EditSpec
from ..runtime import steering
from .kernels import Kernel, Ranges, Setting, edit_of, suggest
from .objectives import Group, Problem, Seen

if TYPE_CHECKING:
    from .study import SharedStudy

Judge = Callable[[EditSpec, dict[str, Direction]], tuple[float, float]]
FEWEST = 8  # held-out prompts below which a quarter says nothing
CLEARLY = 0.9  # another trial's figures on the quarter, as a share of this one's, both of them, at which it is pruned


@dataclass(frozen=True)
class Draws:
    """How many points are drawn, and how: ``trials`` of the whole study (those of earlier runs and of other processes with it),
    by ``sampler`` from ``seed``, kept in the journal ``storage`` (in memory without one)."""

    trials: int
    storage: Path | None = None
    seed: int = 0
    sampler: Literal["tpe", "nsga2"] = "tpe"

    @property
    def startup(self) -> int:
        """Trials that are drawn at random first: a third, ten at most."""
        return max(1, min(10, math.ceil(self.trials / 3)))


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial as an Edit with its direction. ``effect`` and ``damage`` are the objectives, less is better.

    ``seen`` is what the held-out prompts said, in their order (``None`` for a judge of the caller's). A pruned trial's figures
    are of a quarter of the prompts; a failed one's are NaN.
    """

    spec: EditSpec
    direction: Direction
    effect: float
    damage: float
    number: int
    setting: Setting
    seen: Seen | None = field(default=None, repr=False)
    state: Literal["complete", "pruned", "failed"] = "complete"

    @property
    def directions(self) -> dict[str, Direction]:
        """The direction by the digest under which the Edit names it."""
        return {self.spec.steps[0].direction: self.direction}


def blackbox(
    problem: Problem, direction: Direction, layers: Seq[int], draws: Draws, *, judge: Judge | None = None,
    on_trial: Callable[[Trial], None] | None = None, ranges: Ranges | None = None,
) -> list[Trial]:  # fmt: skip
    """Every trial that came to figures, by number, those of earlier runs and of other processes included.

    What other processes still run when all are given out is not waited for. ``judge`` is called with an Edit and its directions
    by digest. ``on_trial`` hears of each trial that ends in this process, pruned and failed ones too.

    Raises:
        MissingExtra: Optuna is not installed.
        UsageError: the journal belongs to another search; layers that the problem's passes take as unchanged.
        RecipeError: a layer at which the direction was not captured; no layer, or no trial.
    """
    try:
        from .study import SharedStudy
    except ImportError as error:
        raise MissingExtra("black-box search needs Optuna", hint="pip install 'weightsmith[search]'") from error
    box = _Box(problem, direction, sorted(layers), ranges or Ranges.of(problem.kind), judge)
    if draws.trials < 1 or not layers:
        raise RecipeError("a black-box search needs a trial and a layer", where=direction.meta.feature)
    if min(layers) < problem.passes.start:
        raise UsageError(f"layer {min(layers)} lies below {problem.passes.start}, where this problem's passes start",
                         hint="make the passes start at the first layer that may be edited")  # fmt: skip
    for layer in layers:
        direction.row(layer)
    with SharedStudy(draws, box.identity(draws.seed, draws.sampler)) as study:
        while (asked := study.ask(box.suggest)) is not None:
            ended = box.run(study, *asked)
            if on_trial and ended is not None:
                on_trial(ended)
        return [box.trial(t.number, box.suggest(_Said(t.params)), (t.values[0], t.values[1]), t.user_attrs.get("seen"))
                for t in study.completed()]  # fmt: skip


@dataclass(frozen=True)
class _Said:
    """The parameters of a trial that has ended, in the place of what chooses them."""

    params: dict[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.params[name])

    def suggest_categorical(self, name: str, choices: Seq[str]) -> Any:
        return self.params[name]


@dataclass(eq=False)
class _Box:
    """What one search looks in, and how it judges."""

    problem: Problem
    direction: Direction
    layers: list[int]
    ranges: Ranges
    judge: Judge | None

    def __post_init__(self) -> None:
        self.roles = self.problem.model.architecture.default_roles()
        groups = [self.problem.effect, self.problem.damage, *self.problem.protect.values()]
        self.parts: list[Problem] = []
        if self.judge is None and min(len(g.held) for g in groups) >= FEWEST:
            self.parts = [self._part(True), self._part(False)]

    def _part(self, quarter: bool) -> Problem:
        """The problem with every fourth held-out prompt, or with the others; what was read of them is shared."""
        problem = self.problem

        def some(group: Group) -> Group:
            return replace(group, held=[x for k, x in enumerate(group.held) if (k % 4 == 0) == quarter])

        return replace(problem, effect=some(problem.effect), damage=some(problem.damage),
                       protect={n: some(g) for n, g in problem.protect.items()})  # fmt: skip

    def identity(self, seed: int, sampler: str) -> dict[str, Any]:
        """What must be the same for a journal to be gone on with."""
        ranges = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.ranges).items()}
        n = [len(self.problem.effect.held), len(self.problem.damage.held)]
        return {"model": self.problem.model.identity.digest, "kind": self.problem.kind, "layers": self.layers, "seed": seed,
                "direction": self.direction.digest(), "sampler": sampler, "ranges": ranges,
                "judge": self.judge is not None, "prompts": n}  # fmt: skip

    def suggest(self, trial: Any) -> Setting:
        """The point that a trial's parameters say."""
        depth = self.problem.model.architecture.n_layers
        return suggest(trial, self.problem.kind, self.roles, self.layers, depth, self.ranges)

    def edit(self, number: int, setting: Setting) -> tuple[EditSpec, Direction]:
        """The Edit of a point."""
        return edit_of(setting, self.direction, self.problem.kind, self.layers, f"trial {number}")

    def trial(self, number: int, setting: Setting, values: tuple[float, float], seen: dict[str, Any] | None) -> Trial:
        """A trial from what the journal holds of it."""
        return Trial(*self.edit(number, setting), *values, number, setting, _unpacked(seen))

    def run(self, study: SharedStudy, trial: Any, setting: Setting) -> Trial | None:
        """Judge one point and tell the study; ``None`` where the point is no edit at all."""
        try:
            spec, direction = self.edit(trial.number, setting)
        except EditError as error:
            study.fail(trial, stated(error))
            return None
        made = Trial(spec, direction, math.nan, math.nan, trial.number, setting, state="failed")
        try:
            effect, damage, quarter, seen = self._judged(made, study)
        except NonFinite as error:
            study.fail(trial, stated(error))
            return made
        if not (math.isfinite(effect) and math.isfinite(damage)):
            study.fail(trial, "the objectives are NaN or infinite")
            return made
        notes: dict[str, Any] = {} if quarter is None else {"quarter": list(quarter)}
        if self.judge is None and seen is None:
            study.prune(trial, notes)
            return replace(made, effect=effect, damage=damage, state="pruned")
        study.complete(trial, (effect, damage), notes if seen is None else {**notes, "seen": _packed(seen)})
        return replace(made, effect=effect, damage=damage, seen=seen, state="complete")

    def _judged(self, made: Trial, study: SharedStudy) -> tuple[float, float, tuple[float, float] | None, Seen | None]:
        """Effect, damage, both on the quarter, and what was seen; neither of these for a judge of the caller's, and nothing
        seen where the trial is to be pruned."""
        if self.judge is not None:
            effect, damage = self.judge(made.spec, made.directions)
            return float(effect), float(damage), None, None
        model, quarter = self.problem.model, None
        with torch.no_grad(), steering(model, compile_hooks(model, made.spec, made.directions)):
            if self.parts:
                first = self.parts[0].see()
                quarter = self._figures(first)
                if _beaten(quarter, study):
                    return *quarter, quarter, None
                seen = _joined(first, self.parts[1].see())
            else:
                seen = self.problem.see()
        return *self._figures(seen), quarter, seen

    def _figures(self, seen: Seen) -> tuple[float, float]:
        return self.problem.loss_of(seen), self.problem.cost_of(seen)


def _beaten(mine: tuple[float, float], study: SharedStudy) -> bool:
    """Whether a trial that was completed did clearly better on the quarter, in both; not while trials are still random."""
    others = study.completed()
    if len(others) < study.draws.startup:
        return False
    quarters = [t.user_attrs["quarter"] for t in others if "quarter" in t.user_attrs]
    return any(all(o <= CLEARLY * m for o, m in zip(other, mine, strict=True)) for other in quarters)


def _joined(quarter: Seen, rest: Seen) -> Seen:
    """Both parts in the order of the held-out prompts."""

    def both(a: Any, b: Any) -> Any:
        out = np.empty(len(a) + len(b))
        places = np.arange(len(out)) % 4 == 0
        out[places], out[~places] = a, b
        return out

    return Seen(both(quarter.odds, rest.odds), both(quarter.damage, rest.damage), both(quarter.distance, rest.distance),
                {n: both(x, rest.protected[n]) for n, x in quarter.protected.items()})  # fmt: skip


def _packed(seen: Seen) -> dict[str, Any]:
    return {"odds": seen.odds.tolist(), "damage": seen.damage.tolist(), "distance": seen.distance.tolist(),
            "protected": {n: x.tolist() for n, x in seen.protected.items()}}  # fmt: skip


def _unpacked(kept: dict[str, Any] | None) -> Seen | None:
    if kept is None:
        return None
    odds, damage, distance = (np.array(kept[k]) for k in ("odds", "damage", "distance"))
    return Seen(odds, damage, distance, {n: np.array(x) for n, x in kept["protected"].items()})


__all__ = ["Draws", "Judge", "Kernel", "Ranges", "Setting", "Trial", "blackbox"]
