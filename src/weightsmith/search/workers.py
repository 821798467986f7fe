"""The descents of a sweep on several processes, GPUs or machines, through Ray (an extra).

One actor a GPU (or a share of the cores) loads the model once and is sent what the driver has gathered: prompts, the base's
answers with the states that chose their tokens, and the direction; a few megabytes, and nothing is generated twice. A job is
the descent for one weight of the damage. All jobs begin with the same values, so none waits for another; a local sweep begins
each where the one before ended. What comes back are values, what they did on the held-out prompts, and the ticks. The driver
hears of them in the order of the weights, whoever was first, so that a run's points do not depend on its workers.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..direction import Direction
from ..errors import EditError, ResourceError
from ..measure import workers
from ..searched import Tick
from . import gradient
from .gradient import Descent, Snapshot, Sweep
from .ledger import Ledger
from .objectives import Group, Item, Problem, Seen
from .passes import Passes
from .space import Kind, Space, Values

if TYPE_CHECKING:
    from ..runtime import RunningModel

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]] | None]  # the fields of Values, as they travel


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that candidates are compared on but the model; ``key`` tells one task from another."""

    kind: Kind
    start: int
    layers: list[int]
    source: int | None
    direction: Direction
    effect: Group
    damage: Group
    protect: dict[str, Group]
    loss: Literal["odds", "distil"]
    chance: bool
    margin: float
    base: Seen
    oblique: bool
    rank: int
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, problem: Problem, space: Space) -> Task:
        """What a prepared problem and its space were made from.

        Raises:
            EditError: it is not prepared.
        """
        if problem.base is None:
            raise EditError("the search has not read its prompts yet")
        return cls(problem.kind, problem.passes.start, space.layers, space.source, space.direction, _apart(problem.effect),
                   _apart(problem.damage), {n: _apart(g) for n, g in problem.protect.items()}, problem.loss, problem.chance,
                   problem.margin, problem.base, space.oblique, space.rank)  # fmt: skip

    def on(self, model: RunningModel) -> tuple[Problem, Space]:
        """The same problem and space on a running model; the layers below the first edited one are read here."""
        problem = Problem(model, self.kind, Passes(model, self.start), _moved(self.effect, model.device),
                          _moved(self.damage, model.device), {n: _moved(g, model.device) for n, g in self.protect.items()},
                          self.loss, self.chance, self.margin, self.base)  # fmt: skip
        for group in (problem.effect, problem.damage, *problem.protect.values()):
            group.prepare(model, problem.passes)
        return problem, Space(model, self.kind, self.direction, self.layers, self.source, oblique=self.oblique, rank=self.rank)


def _apart(group: Group) -> Group:
    """A group without what was read for it; teachers in memory of their own, since a view takes all of it along."""
    items = [_with(i, None if i.teacher is None else i.teacher.detach().to("cpu", copy=True).contiguous()) for i in group.items]
    return replace(group, items=items, rows=None, targets={})  # type: ignore[arg-type]  # as in a fresh one


def _moved(group: Group, device: str) -> Group:
    items = [_with(i, None if i.teacher is None else i.teacher.to(device)) for i in group.items]
    return replace(group, items=items, targets={})


def _with(item: Item, teacher: torch.Tensor | None) -> Item:
    return replace(item, teacher=teacher, own=None)


@dataclass(frozen=True, eq=False)
class Reading:
    """A snapshot as it travels."""

    values: Arrays
    seen: Seen
    step: int


@dataclass(frozen=True, eq=False)
class Descended:
    """What one descent found, and what it took."""

    readings: list[Reading]
    ticks: list[Tick]
    notes: list[str]
    spent: Ledger


class Worker(workers.Worker):
    """What one actor of a search does. Plain Python, so that it can be tested without Ray."""

    _ready: tuple[str, Problem, Space] | None = None

    def descend(self, task: Task, begin: Arrays, how: Descent) -> Descended:
        """The descent for the one weight of ``how`` from the given values."""
        if self._ready is None or self._ready[0] != task.key:
            self._ready = (task.key, *task.on(self.model))
        _, problem, space = self._ready
        found = gradient.sweep(problem, space, _values(begin, self.model.device), how)
        spent, problem.passes.ledger = problem.passes.ledger, Ledger()
        return Descended([Reading(_arrays(s.values), s.seen, s.step) for s in found.snapshots], found.ticks, found.notes, spent)


def _arrays(values: Values) -> Arrays:
    parts = {f.name: getattr(values, f.name) for f in fields(values)}
    return {name: None if x is None else x.detach().cpu().numpy().copy() for name, x in parts.items()}


def _values(parts: Arrays, device: str) -> Values:
    # copied: what Ray hands out can't be written to
    made: dict[str, Any] = {name: None if x is None else torch.tensor(x, device=device) for name, x in parts.items()}
    return Values(**made)


class Crew(workers.Actors):
    """The actors of one search."""

    kept = "what has ended is kept: --resume goes on from there"

    def match(self, model: RunningModel) -> None:
        """Workers compute on the kind of device, on as many of them, and in the dtype, of the driver's own model."""
        device, dtype = ",".join(model.devices) or model.device.split(":")[0], str(model.dtype).removeprefix("torch.")
        self.options = replace(self.options, device=device, dtype=dtype)

    def twice(self, what: Callable[[Any], str], ended: Callable[[], int], count: int) -> Callable[[Any], None]:
        """A ``lost`` for :meth:`spread`: a job that two workers were lost with is given up, since a third would follow.

        Raises:
            ResourceError: there is one; says how many of the ``count`` jobs have ``ended``.
        """
        times: Counter[Any] = Counter()

        def lost(job: Any) -> None:
            times[job] += 1
            if times[job] > 1:
                raise ResourceError(f"two workers were lost with the same job, {what(job)}; {ended()} of {count} have ended and "
                                    "are kept", hint="if they ran out of memory, take fewer workers or a narrower --dtype; "
                                    "--resume goes on with what is left")  # fmt: skip

        return lost

    def sweep(
        self, problem: Problem, space: Space, begin: Values, how: Descent, on_tick: Callable[[Tick], None] = lambda _: None,
        on_snapshot: Callable[[Snapshot], None] = lambda _: None, on_descent: Callable[[int], None] = lambda _: None,
    ) -> Sweep:  # fmt: skip
        """As :func:`.gradient.sweep`, but every descent begins with ``begin``, and takes the steps of a first one.

        Whatever ends this, what has ended before was told of.

        Raises:
            ResourceError: every worker is lost, or two with the same descent. What a worker raises is raised here.
        """
        self.match(problem.model)
        found, waiting, told = Sweep(tell=on_snapshot), dict[int, Descended](), list[int]()
        task, values, count = self.ray.put(Task.of(problem, space)), _arrays(begin), len(how.weights)

        def send(actor: Any, run: int) -> Any:
            return actor.descend.remote(task, values, replace(how, weights=(how.weights[run],)))

        def tell(run: int) -> None:
            made = waiting.pop(run)
            told.append(run)
            _tell(made, run, how.weights[run], problem, found, on_tick)
            on_descent(run)

        def keep(run: int, made: Descended) -> None:
            waiting[run] = made
            self.report("descents on the workers", len(told) + len(waiting), count)
            while len(told) in waiting:  # in the order of the weights
                tell(len(told))

        def name(run: int) -> str:
            return f"the descent with the damage weighted {how.weights[run]:g}"

        lost = self.twice(name, lambda: len(told) + len(waiting), count)
        try:
            self.report("descents on the workers", 0, count)
            self.spread(problem.model.checkpoint, range(count), send, keep, lost)
        finally:
            for run in sorted(waiting):
                tell(run)
        return found


def _tell(made: Descended, run: int, weight: float, problem: Problem, found: Sweep, on_tick: Callable[[Tick], None]) -> None:
    """Take one descent into the sweep, as if it had just run here."""
    problem.passes.ledger.add(made.spent)
    found.notes += made.notes
    for tick in made.ticks:
        found.ticks.append(tick.model_copy(update={"run": run}))
        on_tick(found.ticks[-1])
    for r in made.readings:
        snapshot = Snapshot(_values(r.values, problem.model.device), r.seen, weight, r.step)
        found.snapshots.append(snapshot)
        found.tell(snapshot)
