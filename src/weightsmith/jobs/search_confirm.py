"""Finalists of a search, measured: full-length answers to unseen prompts, scored and compared like any edit."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, read_json
from ..measured import MEASUREMENTS, Difference, MeasureRecord
from ..options import RunOptions
from ..records import parse
from ..searched import Confirmed, Point
from ..storage import canonical_json, write_whole
from .search_target import likeliest, main_score

if TYPE_CHECKING:
    from ..direction import Direction
    from ..features.recipe import FeatureSpec
    from ..measure.subject import Subject
    from ..measure.suites import Suite
    from ..search.objectives import Problem
    from ..search.run import Found, Search
    from .measure import Session

FEW = 16  # fewer prompts than these are noted
FAR = 0.1  # a predicted chance so far outside of the confirmed interval disagrees with it


def finalists(search: Search, most: int) -> list[Found]:
    """The points of the front that are confirmed: the knee, the most effect, and halfway in effect between the knee and the
    least damage; then others."""
    points = {p.name: p for p in search.points() if p.front}
    pairs = [(f, *pair) for f, pair in zip(search.found, search.pairs(), strict=True) if f.point.name in points]
    front = sorted(pairs, key=lambda found: found[2])
    middle = next((i for i, (f, _, _) in enumerate(front) if points[f.point.name].knee), len(front) - 1)
    order = [middle, len(front) - 1, _halfway([effect for _, effect, _ in front[: middle + 1]]), (middle + len(front)) // 2, 0]
    return [front[i][0] for i in list(dict.fromkeys(i for i in [*order, *range(len(front))] if 0 <= i < len(front)))[:most]]


def _halfway(effects: Sequence[float]) -> int:
    """The place before the last whose effect is nearest to the middle between the first and the last. By effect and not by
    place: the points of least damage, the smallest doses, often lie close together."""
    middle = (effects[0] + effects[-1]) / 2 if effects else 0.0
    return min(range(len(effects) - 1), key=lambda i: abs(effects[i] - middle), default=0)


@dataclass(frozen=True, eq=False)
class Brief:
    """How finalists are measured: recipes by name or file, with the digests of their text and of their prompts. ``key`` tells
    one brief from another."""

    names: tuple[str, ...]
    digests: tuple[tuple[str, str], ...]
    suite: Suite
    direction: Direction | None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, search: Search, feature: str, wish: Any) -> Brief:
        """As the options want it."""
        from ..measure.suites import Suite

        assert search.material is not None
        # refusals that a system prompt asks for are for `measure`: a seventh of the answers each, and nothing is chosen by them
        suite = Suite("confirmation", n=wish.confirm_n, tokens=wish.confirm_tokens, safety=min(12, wish.confirm_n), longer=0,
                      shown=search.plan.kind == "remove", texts=False, asked=False)  # fmt: skip
        pairs = zip([feature, *wish.protect], [(search.spec, search.sets), *search.protect], strict=True)
        asked = [(name, (spec.digest, sets.digest)) for name, (spec, sets) in pairs if _asked(spec)]
        return cls(tuple(n for n, _ in asked), tuple(d for _, d in asked), suite,
                   search.material.direction if _asked(search.spec) else None)  # fmt: skip

    def session(self, checkpoint: Checkpoint, options: RunOptions) -> tuple[Session, Subject]:
        """A session with this base, and the base."""
        from .measure import Session

        # a recipe of one's own may have taken prompts of the safety sets: those are left out, with a note
        session = Session(checkpoint, self.names, options=options, suite=self.suite, drop_overlap=True, direction=self.direction)
        assert session.base is not None, "a session with a model to compare with has a base"
        return session, session.base


def confirm(
    search: Search, feature: str, checkpoint: Checkpoint, wish: Any, options: RunOptions, folder: Path,
    confirmed: dict[str, MeasureRecord], say: Callable[[str], None],
) -> None:  # fmt: skip
    """Measure the finalists as hooks on the running model, or on the workers, each kept as a file as it ends; then, while
    none lies at the target, as many other points of the front again as are likely to."""
    search.notes += _say_sight(search, wish, say)
    work = _Confirmations(search, Brief.of(search, feature, wish), checkpoint, options, folder, confirmed, say)
    first = finalists(search, wish.confirm)
    work.measure(first)
    if wish.target is not None:
        work.approach(wish.target, wish.confirm - (len(confirmed) - len(first)))
    # the finalists in their order and then the others, whichever ended first
    for name in dict.fromkeys([*(f.point.name for f in first), *sorted(confirmed)]):
        confirmed[name] = confirmed.pop(name)


@dataclass(eq=False)
class _Confirmations:
    """The measurements of one run's points; those that an earlier run took are read from their files."""

    search: Search
    brief: Brief
    checkpoint: Checkpoint
    options: RunOptions
    folder: Path
    confirmed: dict[str, MeasureRecord]
    say: Callable[[str], None]
    session: tuple[Session, Subject] | None = None

    def __post_init__(self) -> None:
        for name in (p.name for p in self.search.points() if p.front):
            file = self.folder / f"{name}.json"
            if file.is_file():
                self.confirmed[name] = parse(MeasureRecord, read_json(file), file, MEASUREMENTS)

    def measure(self, points: Sequence[Found]) -> None:
        """Those of ``points`` that were not measured yet."""
        todo = [f for f in points if f.point.name not in self.confirmed]
        if todo and self.search.crew is not None:
            from .search_workers import confirm_apart

            self.search.timed("confirmation", partial(confirm_apart, self.search, self.search.crew, self.brief, todo, self._keep))
        elif todo:
            self._here(todo)

    def approach(self, target: float, most: int) -> None:
        """At the most ``most`` further points of the front, while one is likely to lie at the target."""
        search = self.search
        effects = {f.point.name: effect for f, (effect, _) in zip(search.found, search.pairs(), strict=True)}
        key = main_score(search.spec, search.plan.kind)[0]
        for _ in range(most):
            guess = likeliest(with_confirmed(search.points(), self.confirmed, search.problem, search.spec), effects, key, target)
            if guess is None:
                return
            point, expected = guess
            self.say(f"no confirmed point lies at the target of {target:.2f} yet: next is {point.name}, from which about "
                     f"{expected:.2f} is expected")  # fmt: skip
            self.measure([f for f in search.found if f.point.name == point.name])

    def _here(self, todo: Sequence[Found]) -> None:
        from ..features.select import compile_hooks

        search = self.search
        if self.session is None:
            self.session = self.brief.session(self.checkpoint, self.options)
            self.session[1].adopt(search.model)
            search.timed("confirmation: the base", self.session[0].measure_base)
        session, base = self.session
        for found in todo:
            base.adopt(search.model)  # a base that no scorer asks was let go of
            hooks = compile_hooks(search.model, found.spec, found.directions)
            name = found.point.name
            self._keep(found, search.timed(f"confirmation: {name}", partial(session.compare_hooks, hooks, title=name)))

    def _keep(self, found: Found, record: MeasureRecord) -> None:
        name = found.point.name
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{name}.json", canonical_json(record.model_dump(by_alias=True)), replace=True)
        self.confirmed[name] = record
        self.say(f"confirmed {name}")


def _asked(spec: FeatureSpec) -> bool:
    """Whether answers can show the feature; labelled texts are not prompts."""
    return spec.contrast.kind != "texts"


def sight(search: Search, wish: Any) -> tuple[int, bool, float]:
    """What a confirmation can show: prompts a condition, whether the main score is a rate, and the smallest true change of
    it (else of its mean, in standard deviations) that is found with 80% power; infinite where none ever is."""
    from ..measure.power import minimum_detectable

    report = search.sets.report
    n = min(wish.confirm_n, len(report.lacks if search.plan.kind == "add" else report.shows))
    key = main_score(search.spec, search.plan.kind)[0]
    rate = key.endswith((".refuses", ".phrases"))
    return n, rate, minimum_detectable(n, rate)


def _say_sight(search: Search, wish: Any, say: Callable[[str], None]) -> list[str]:
    """Say what the confirmation can show, before it begins; notes where that is little."""
    if not _asked(search.spec):
        return ["labelled texts are not prompts, so no answer can confirm this feature: safety and damage alone are confirmed"]
    n, rate, least = sight(search, wish)
    if math.isinf(least):
        shown = f"{n} prompts can't confirm any change (6 would have to change, all one way)"
    else:
        change = f"{least:.0%} of the prompts" if rate else f"{least:.2f} standard deviations"
        shown = f"{n} prompts confirm a change of {change} or more (p < 0.05 in 80% of all tries)"
    say(shown)
    return [shown] if n < FEW else []


def with_confirmed(
    points: Sequence[Point], confirmed: dict[str, MeasureRecord], problem: Problem, spec: FeatureSpec
) -> list[Point]:
    """The points with what was confirmed of them."""
    key, sign = main_score(spec, problem.kind)
    found = []
    for point in points:
        record = confirmed.get(point.name)
        if record is not None:
            figures = _figures(record, key, spec.name)
            point = point.model_copy(update={"confirmed": figures, "record": f"confirmed/{point.name}.json",
                                             "disagrees": _disagrees(point, figures, key, sign, problem)})  # fmt: skip
        found.append(point)
    return found


def _figures(record: MeasureRecord, key: str, feature: str) -> list[Confirmed]:
    where = key.rpartition(".")[0]
    wanted = [key, f"{where}.degenerate", f"{where}.off-topic", "safety.harmful.complies", "safety.harmless.complies",
              "safety.borderline.refuses", "safety.harmless.refuses"]  # fmt: skip
    by_key: dict[str, Difference] = {d.key: d for d in record.differences}
    rows = [by_key[k] for k in dict.fromkeys(wanted) if k in by_key]
    rows += [d for d in record.differences if d.group not in (feature, "safety", "damage") and d.key.endswith(".refuses")]
    found = [Confirmed(key=d.key, name=f"{d.name}, {d.condition}", unit=d.unit, base=d.base.value,
                       base_low=d.base.low, base_high=d.base.high, value=d.edited.value, low=d.edited.low, high=d.edited.high,
                       change=d.value, change_low=d.low, change_high=d.high,
                       verdict=d.verdict, n=d.n) for d in rows]  # fmt: skip
    for m in record.damage:
        if m.key.endswith("kl.mean"):
            found.append(Confirmed(key=m.key, name=f"{m.name}, {m.condition}", unit=m.unit, value=m.value, low=m.low,
                                   high=m.high, n=m.n))  # fmt: skip
    return found


def _disagrees(point: Point, figures: Sequence[Confirmed], key: str, sign: float, problem: Problem) -> str:
    """How what was confirmed differs from what the search saw."""
    main = next((f for f in figures if f.key == key), None)
    if main is None or main.change is None or main.change_low is None or main.change_high is None:
        return ""
    if problem.chance and point.chance is not None:
        if main.low - FAR <= point.chance <= main.high + FAR:
            return ""
        return (f"the search saw a chance of {point.chance:.0%}, confirmed are {main.value:.0%} "
                f"[{main.low:.0%}, {main.high:.0%}]")  # fmt: skip
    wanted = -1.0 if problem.kind == "remove" else 1.0
    towards = wanted * sign
    low, high = sorted((towards * main.change_low, towards * main.change_high))
    if point.effect_low <= 0 or low > 0:
        return ""
    how = "went the other way" if high < 0 else "may be chance"
    return (f"the search saw an effect of {point.effect:+.2f} nats, the confirmed change of {main.change:+.2f} "
            f"[{main.change_low:+.2f}, {main.change_high:+.2f}] {how}")  # fmt: skip
