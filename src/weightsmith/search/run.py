"""One search from a loaded model to its candidates: material, closed forms, descents, and their points."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..direction import Direction
from ..errors import EditError
from ..measure.stats import tails
from ..records import EditSpec
from ..searched import Gain, Point, Stage, Stretch, Tick
from . import closed, gradient, material
from .fluent import Rounds, most_fluent, unlearn
from .front import hypervolume, knee, pareto
from .gradient import Descent
from .ledger import Ledger
from .material import Aim, Material, Sizes
from .objectives import Problem, Seen
from .passes import Passes
from .space import Kind, Space, Values, curves

if TYPE_CHECKING:
    from ..features.prompts import PromptSets
    from ..features.recipe import FeatureSpec
    from ..runtime import RunningModel
    from .workers import Crew

SCREEN = 6  # held-out prompts of each kind that every closed form is tried on
ROUNDS = 1000
LEFT = 2  # prompts of each kind and part without which there is no interval
APART = "the descents ran apart, on several workers: each began with the closed form, none where another one ended"


@dataclass(frozen=True)
class Plan:
    """What a search does, apart from the model and the feature.

    ``start`` is the first layer that may be edited (at 40% of the depth by default). ``weights`` are those of the damage, in
    the order of the sweep; ``turn`` of 0 keeps the directions of the closed form. ``reference`` is the damage at which the
    hypervolume's box ends, nats per token. ``few`` tries single layers only as closed forms. An addition aims ``level``
    times as far as the persona takes the model, and ``rounds`` of unlearning repetitions follow its descent.
    """

    kind: Kind
    sizes: Sizes = field(default_factory=Sizes)
    descent: Descent = field(default_factory=Descent)
    start: int | None = None
    screen: int = SCREEN
    keep: int = 2
    trials: int = 0
    factors: tuple[float, ...] = (0.7, 0.4)
    reference: float = 0.5
    few: bool = False
    oblique: bool = False
    rank: int = 1
    level: float = 1.0
    rounds: Rounds | None = None
    force: bool = False


@dataclass(eq=False)
class Found:
    """One candidate with everything that it takes to use it."""

    point: Point
    spec: EditSpec
    directions: dict[str, Direction]
    seen: Seen


@dataclass(eq=False)
class Search:
    """A search at work; ``found`` grows as it goes, so that what was found is there whenever it is stopped."""

    model: RunningModel
    spec: FeatureSpec
    sets: PromptSets
    plan: Plan
    protect: Seq[tuple[FeatureSpec, PromptSets]] = ()
    on_tick: Callable[[Tick], None] = lambda _: None
    on_found: Callable[[Found], None] = lambda _: None
    on_stage: Callable[[], None] = lambda: None
    ledger: Ledger = field(default_factory=Ledger)
    found: list[Found] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    material: Material | None = None
    ended: list[int] = field(default_factory=list)  # descents that are finished, by their place in the sweep
    crew: Crew | None = None  # the workers that descents run on, apart from one another

    @property
    def start(self) -> int:
        """The first layer that may be edited."""
        deep = self.model.architecture.n_layers
        given = self.plan.start
        return given if given is not None else max(1, round(0.4 * deep))

    @property
    def layers(self) -> list[int]:
        """The layers that may be edited."""
        return list(range(self.start, self.model.architecture.n_layers))

    @property
    def problem(self) -> Problem:
        """What candidates are compared on.

        Raises:
            EditError: nothing was gathered yet.
        """
        if self.material is None:
            raise EditError("the search has not read its prompts yet")
        return self.material.problem

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Do one stage and note what it took."""
        before, begun = replace(self.ledger), time.perf_counter()
        try:
            return work()
        finally:
            now = self.ledger
            spent = {k: getattr(now, k) - getattr(before, k) for k in ("passed", "backward", "generated")}
            self.stretches.append(Stretch(name=name, seconds=time.perf_counter() - begun, **spent))

    def gather(self) -> Material:
        """Read and answer what candidates are compared on.

        Raises:
            EditError: a feature that the model does not show, or whose sides can't be told apart or get the same answers.
        """
        passes = Passes(self.model, self.start, self.ledger)
        plan = self.plan
        aim = Aim(plan.kind, plan.sizes, plan.level, plan.force)
        self.material = self.timed("the base's answers", lambda: material.gather(
            self.model, self.spec, self.sets, aim, passes, self.protect))  # fmt: skip
        refuse_empty(self.spec.name, self.material.problem)
        self.notes += self.material.notes
        return self.material

    def floor(self) -> list[Found]:
        """The closed-form candidates: all on a few prompts, the best of them on all held-out ones."""
        assert self.material is not None
        made = closed.candidates(self.model, self.material, self.layers, few=self.plan.few)
        tell: Callable[[int, int], None] = lambda a, b: self.model.options.report("trying closed forms", a, b)  # noqa: E731
        best = self.timed("closed forms", lambda: closed.screened(
            self.model, self.problem, made, self.loss, self.plan.screen, self.plan.keep, tell))  # fmt: skip
        self.notes += [f"closed form not possible: {m.method} ({m.what}): {m.fault}" for m in made if m.fault]
        for m in best:
            self._add("closed form", f"{m.method}: {m.what}", m.spec, m.directions, m.seen)
        self._gained("closed forms")
        return self.found

    def loss(self, seen: Seen) -> float:
        """The first descent's objective, by which closed forms are ranked and the descent's start is chosen."""
        return self.problem.loss_of(seen) + self.plan.descent.weights[0] * self.problem.cost_of(seen)

    def take_up(self, found: Found) -> None:
        """A point of an earlier, interrupted run."""
        self.found.append(found)

    def descend(self) -> None:
        """The sweep of descents from the best closed form, and its points made weaker; an interrupted sweep goes on where
        its last whole descent ended. On workers each descent begins with the closed form."""
        assert self.material is not None
        source = self._source()
        space = Space(self.model, self.plan.kind, self.material.direction, self.layers, source, oblique=self.plan.oblique,
                      rank=self.plan.rank)  # fmt: skip
        again, whole, apart = self._again(space), self.plan.descent, self.crew is not None
        start = again[0].values if again and not apart else self._begin(space)
        left = [i for i in range(len(whole.weights)) if i not in self.ended]
        how = replace(whole, weights=tuple(whole.weights[i] for i in left),
                      steps=whole.more if self.ended and not apart else whole.steps)  # fmt: skip
        if apart:
            self.notes.append(APART)
        learned = bool(how.turn) or self.plan.kind == "add"

        def keep(snapshot: gradient.Snapshot) -> None:
            what = _what(snapshot)
            try:
                spec, directions = space.edit(snapshot.values, what, "gradient", learned=learned)
            except EditError as error:
                self.notes.append(f"{what}: {error.message}")
                return
            self._add("gradient", what, spec, directions, snapshot.seen, snapshot.weight)

        def tick(t: Tick) -> None:
            t = t.model_copy(update={"run": left[t.run]})
            self.ticks.append(t)
            self.on_tick(t)

        def ended(run: int) -> None:
            self.ended.append(left[run])
            self.on_stage()

        sweep = gradient.sweep if self.crew is None else self.crew.sweep
        swept = self.timed("descents", lambda: sweep(self.problem, space, start, how, tick, keep, ended))
        self.notes += swept.notes
        if not (swept.snapshots or again):
            return
        top = min([*again, *swept.snapshots], key=lambda s: self.loss(s.seen))
        if self.plan.rounds is not None and self.plan.kind == "add":
            rounds = self.plan.rounds
            told = self.timed("unlearning repetitions", lambda: unlearn(self.problem, space, top, how, rounds,
                                                                        self.model.options.report))  # fmt: skip
            for snapshot in told:
                keep(snapshot)
            top = most_fluent([top, *told], self.problem)
            self._offer(top)
        if self.plan.factors:
            for weaker in self.timed("the same, weaker", lambda: gradient.scaled(self.problem, space, top, self.plan.factors)):
                keep(weaker)
        self._gained("descents")

    def _offer(self, top: gradient.Snapshot) -> None:
        """Of the additions by descent offer this one alone, whose own answers loop least."""
        if top.loops is not None:
            self.notes.append(f"degenerate of the answers to the prompts trained on: {top.loops:.0%} ({_what(top)})")
        ours = [i for i, f in enumerate(self.found) if f.point.stage == "gradient"]
        if any(self.found[i].point.what == _what(top) for i in ours):  # it may be one that no Edit can hold
            for i in ours:
                point = self.found[i].point
                looping = {"looping": point.what != _what(top)}
                self.found[i] = replace(self.found[i], point=point.model_copy(update=looping))

    def _again(self, space: Space) -> list[gradient.Snapshot]:
        """The best point of the descents that an earlier run has finished, if there is one."""
        earlier = [f for f in self.found if f.point.stage == "gradient"] if self.ended else []
        if not earlier:
            return []
        best = min(earlier, key=lambda f: self.loss(f.seen))
        return [gradient.Snapshot(space.values_of(best.spec, best.directions), best.seen, best.point.weight or 0.0,
                                  _step_of(best.point))]  # fmt: skip

    def _source(self) -> int:
        """The layer whose vector the descent starts from: the best single-layer candidate's, else the one that separates best."""
        assert self.material is not None
        single = [f for f in self.found if f.point.stage == "closed form" and isinstance(f.spec.steps[0].source, int)]
        if not single:
            return self.material.source
        best = min(single, key=lambda f: self.loss(f.seen))
        return int(best.spec.steps[0].source)

    def _begin(self, space: Space) -> Values:
        if self.plan.kind == "remove":
            return space.begin(0.5)
        amounts = [f.spec.steps[0].amount for f in self.found if f.point.stage == "closed form"]
        return space.begin(amounts[0] if amounts else 0.2)

    def blackbox(self, storage: Any, seed: int, sampler: Literal["tpe", "nsga2"]) -> None:
        """Optuna's trials over the same edits, judged by the same passes."""
        from .blackbox import Draws, blackbox

        assert self.material is not None
        direction, draws = self.material.direction, Draws(self.plan.trials, storage, seed, sampler)
        trials = self.timed("black box", lambda: blackbox(self.problem, direction, self.layers, draws))
        for trial in trials:
            self._add("black box", f"trial {trial.number}", trial.spec, trial.directions, trial.seen)
        self._gained("black box")

    def _add(
        self, stage: Stage, what: str, spec: EditSpec, directions: dict[str, Direction], seen: Seen | None,
        weight: float | None = None,
    ) -> None:  # fmt: skip
        if seen is None:
            return
        letter = {"closed form": "c", "gradient": "g", "black box": "b"}[stage]
        count = sum(f.point.stage == stage for f in self.found) + 1
        point = point_of(self.problem, seen, f"{letter}{count:02d}", stage, what, weight)
        named = spec.model_copy(update={"name": f"{self.spec.name} {point.name}", "description": what})
        found = Found(point.model_copy(update={"strengths": curves(spec)}), named,
                      directions, seen)  # fmt: skip
        self.found.append(found)
        self.on_found(found)

    def _gained(self, stage: str) -> None:
        # where the box ends with the most effect, it has grown: all stages are seen in the same one
        self.gains = [g.model_copy(update={"hypervolume": self.hypervolume(g.points)}) for g in self.gains]
        self.gains.append(Gain(stage=stage, hypervolume=self.hypervolume(), points=len(self.found)))

    def pairs(self) -> list[tuple[float, float]]:
        """(effect, damage) of every candidate, as the front has them: effect as a share of the base's chance where there is
        one, else in nats; damage with that of protected features."""
        return [pair(self.problem, f.seen) for f in self.found]

    def hypervolume(self, first: int | None = None) -> float:
        """Of what was found so far and is offered (or of the ``first`` so many); the box ends at the plan's reference damage and
        at no chance left (or at the most effect of all)."""
        pairs = self.pairs()
        offered = [(e, d) if not f.point.looping else (0.0, d) for f, (e, d) in zip(self.found, pairs, strict=True)]
        whole = 1.0 if self.problem.chance else max([e for e, _ in offered], default=1.0)
        return hypervolume(offered[:first], self.plan.reference, max(whole, 1e-9))

    def points(self) -> list[Point]:
        """All points, with the front, the knee and the best closed form marked."""
        pairs = self.pairs()
        offered = [i for i, f in enumerate(self.found) if not f.point.looping]
        front = {offered[k] for k in pareto([pairs[i] for i in offered])}
        best = knee([pairs[i] for i in offered])
        middle = None if best is None else offered[best]
        closed_forms = [i for i, f in enumerate(self.found) if f.point.stage == "closed form"]
        begin = min(closed_forms, key=lambda i: self.loss(self.found[i].seen), default=None)
        return [f.point.model_copy(update={"front": i in front, "knee": i == middle, "start": i == begin})
                for i, f in enumerate(self.found)]  # fmt: skip


def refuse_empty(feature: str, problem: Problem) -> None:
    """Raise :class:`EditError` where the model's answers leave (nearly) nothing to compare candidates on."""
    told = "only {n} of the prompts {part} get other answers where the feature is shown"
    if problem.loss == "odds":
        told = "only {n} prompts {part} are long enough to be read"
    quiet = "only {n} neutral prompts {part} have an answer that lacks the feature"
    groups = [(told, problem.effect), (quiet, problem.damage)]
    groups += [("only {n} prompts {part} of the protected " + name + " have an answer", g) for name, g in problem.protect.items()]
    for words, group in groups:
        for part, places in (("to train on", group.train), ("held out", group.held)):
            if len(places) < LEFT:
                raise EditError(words.format(n=len(places), part=part), where=feature,
                                hint="give longer answers (--tokens) or more prompts, or choose another feature")  # fmt: skip


def _what(snapshot: gradient.Snapshot) -> str:
    """What a point of a descent is, in a line."""
    how_much = f" {snapshot.what}" if snapshot.what else ""
    return f"descent, damage weighted {snapshot.weight:g}, step {snapshot.step}{how_much}"


def _step_of(point: Point) -> int:
    """The step at which a descent's reading was taken, which its ``what`` ends with."""
    return int(point.what.rpartition("step ")[2])


def pair(problem: Problem, seen: Seen) -> tuple[float, float]:
    """(effect, damage) as the front compares them."""
    base = problem.base
    assert base is not None, "a prepared problem has a base"
    if problem.chance:
        before, after = float(_chance(base.odds).mean()), float(_chance(seen.odds).mean())
        effect = (before - after) / before if problem.kind == "remove" else (after - before) / max(1 - before, 1e-9)
    else:
        effect = problem.sign * float((base.odds - seen.odds).mean())
    return effect, problem.cost_of(seen)


def _chance(odds: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-np.clip(odds, -60, 60)))


def point_of(
    problem: Problem, seen: Seen, name: str, stage: Stage, what: str, weight: float | None = None
) -> Point:
    """A candidate's figures with 95% bootstrap intervals over the held-out prompts."""
    assert problem.base is not None, "a prepared problem has a base"
    effect = problem.sign * (problem.base.odds - seen.odds)
    rng = np.random.default_rng(0)

    def bounds(values: Any) -> tuple[float, float]:
        picks = rng.integers(0, len(values), (ROUNDS, len(values)))
        low, high = np.quantile(values[picks].mean(1), tails(len(values)))
        return float(low), float(high)

    (low, high), (least, most) = bounds(effect), bounds(seen.damage)
    return Point(
        name=name, stage=stage, what=what, effect=float(effect.mean()), effect_low=low, effect_high=high,
        chance=float(_chance(seen.odds).mean()) if problem.chance else None, damage=float(seen.damage.mean()),
        damage_low=least, damage_high=most, protected={n: float(x.mean()) for n, x in seen.protected.items()},
        n=len(effect), weight=weight,
    )  # fmt: skip
