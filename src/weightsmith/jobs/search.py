"""``search``: the best edits of a feature, as a front of effect against damage, each with its Edit file, in one folder.

The folder (schema :data:`~weightsmith.searched.SEARCH`)::

    search.json           everything that was found; the page is drawn from it
    edits/NAME.yaml       the Edit of each point, with the directions that it names beside it
    confirmed/NAME.json   measurements of the finalists on prompts that the search never saw
    report.html           the page
    state.json            what `--resume` needs

Every file appears whole; ``search.json`` is written anew as points are found, so an interrupted run keeps its best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..checkpoint import Checkpoint, read_json
from ..errors import UsageError
from ..measured import MEASUREMENTS, MeasureRecord
from ..options import RunOptions
from ..records import parse
from ..searched import SEARCH, Point, SearchRecord, Tick
from ..storage import canonical_json, refuse_existing, write_whole
from .edit import save_edit
from .files import as_checkpoint

if TYPE_CHECKING:
    from ..search.run import Found, Plan, Search

Model = Checkpoint | str | Path


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for, apart from model and feature.

    ``kind`` is ``remove`` or ``add``. ``prompts`` of each side are trained on, ``held`` are held out, answers have
    ``tokens`` tokens. ``weights`` are those of the damage, in the order of the sweep. ``directions`` lets the descent turn
    the directions as well. ``protect`` names features that must not move. ``trials`` of black-box search are added
    (``sampler`` ``tpe`` or ``nsga2``). ``confirm`` points of the front are measured on ``confirm_n`` unseen prompts a
    condition, with answers of ``confirm_tokens`` tokens. ``target`` is the wanted value of the feature's own score (a rate,
    a mean sentiment), which chooses the point in place of the knee. ``force`` searches a feature that can't be separated.
    """

    kind: str = "remove"
    prompts: int = 32
    held: int = 16
    tokens: int = 16
    weights: tuple[float, ...] | None = None
    steps: int | None = None
    directions: bool = True
    start: int | None = None
    protect: tuple[str, ...] = ()
    trials: int = 0
    sampler: str = "tpe"
    confirm: int = 3
    confirm_n: int = 24
    confirm_tokens: int = 96
    target: float | None = None
    reference: float = 0.5
    workers: str | None = None
    force: bool = False
    resume: bool = False


@dataclass(frozen=True)
class Listener:
    """Who is told of steps and points while a search runs."""

    tick: Callable[[Tick], None] = lambda _: None
    point: Callable[[Point], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None


def search(
    model: Model, feature: str, out: str | Path, *, options: RunOptions | None = None, listener: Listener | None = None,
    **wishes: Any,
) -> SearchRecord:  # fmt: skip
    """Search ``model`` for edits of ``feature`` and write the run to the folder ``out``. ``wishes`` are the fields of
    :class:`SearchOptions`.

    Raises:
        UsageError: bad options, or a folder of another search; OutputExists; EditError: a feature that the model does not
        show or whose sides can't be told apart; RecipeError; OutOfMemory; UnsupportedModel.
    """
    wish = SearchOptions(**wishes)
    options = options or RunOptions()
    return _Run(model, feature, Path(out), wish, options, listener or Listener()).go()


def search_plan(wish: SearchOptions, options: RunOptions) -> Plan:
    """The search's plan from the options.

    Raises:
        UsageError: an option that makes no sense.
    """
    from ..search.gradient import Descent
    from ..search.material import Sizes
    from ..search.run import Plan

    if wish.kind not in ("remove", "add"):
        raise UsageError(f"can't search for {wish.kind!r}", hint="remove or add")
    if min(wish.prompts, wish.held) < 4 or wish.tokens < 1:
        raise UsageError(f"{wish.prompts} prompts with {wish.held} held out are too few to see anything",
                         hint="at least 4 of each; 32 and 16 is usual")  # fmt: skip
    if wish.weights is not None and (not wish.weights or min(wish.weights) < 0):
        raise UsageError("the weights of the damage must be numbers of 0 or more")
    how = Descent(seed=options.seed)
    if wish.kind == "add":
        how = replace(how, weights=(0.3, 0.1), steps=24, more=12, check=6, turn=1e-4, rate=0.0)
    changes: dict[str, Any] = {"weights": wish.weights, "steps": wish.steps}
    how = replace(how, **{k: v for k, v in changes.items() if v is not None})
    if not wish.directions and wish.kind == "remove":
        how = replace(how, turn=0.0)
    return Plan(wish.kind, Sizes(wish.prompts, wish.held, wish.tokens), how, wish.start, trials=wish.trials,  # type: ignore[arg-type]
                factors=(0.7, 0.4) if wish.kind == "remove" else (0.5, 0.75, 1.25, 1.5), reference=wish.reference,
                force=wish.force)  # fmt: skip


class _Run:
    """One run and its folder."""

    def __init__(
        self, model: Model, feature: str, out: Path, wish: SearchOptions, options: RunOptions, listener: Listener
    ) -> None:
        from ..features.prompts import prompt_sets
        from ..features.recipe import load_feature

        self.out, self.wish, self.options, self.listener = out, wish, options, listener
        self.feature, self.model = feature, model
        self.plan = search_plan(wish, options)
        spec, folder = load_feature(feature)
        self.spec, self.sets = spec, prompt_sets(spec, folder)
        self.protect = []
        for name in wish.protect:
            other, where = load_feature(name)
            if other.name == spec.name:
                raise UsageError(f"{name!r} can't be searched for and protected at once")
            self.protect.append((other, prompt_sets(other, where)))
        self.checkpoint = as_checkpoint(model, options)
        self.old = self._earlier()
        self.search: Search | None = None
        self.confirmed: dict[str, MeasureRecord] = {}
        self.begun = time.perf_counter()

    def _earlier(self) -> SearchRecord | None:
        """The record of the run that is resumed.

        Raises:
            UsageError: there is none, or it is of another search.
        """
        file = self.out / "search.json"
        if not self.wish.resume:
            refuse_existing(self.out)
            return None
        if not file.is_file():
            return None
        record = load_search(file)
        mine = (self.spec.digest, self.sets.digest, self.wish.kind, self.checkpoint.digest(self.options.progress))
        theirs = (record.feature_digest, record.prompts_digest, record.kind, record.model.digest)
        if mine != theirs or record.options != self._options():
            raise UsageError("this folder holds another search (feature, prompts, model or options differ)", where=self.out,
                             hint="resume with the same command, or choose another folder")  # fmt: skip
        return record

    def _options(self) -> dict[str, Any]:
        wish = self.wish
        kept = ("kind", "prompts", "held", "tokens", "steps", "directions", "start", "trials", "sampler", "reference", "force")
        found = {k: getattr(wish, k) for k in kept}
        return found | {"weights": " ".join(f"{w:g}" for w in self.plan.descent.weights), "seed": self.options.seed,
                        "protect": " ".join(wish.protect)}  # fmt: skip

    def go(self) -> SearchRecord:
        """All stages, each kept as it ends."""
        from ..runtime.load import load
        from ..search.run import Search

        running = load(self.checkpoint, self.options)
        self.search = Search(running, self.spec, self.sets, self.plan, self.protect, on_tick=self.listener.tick,
                             on_found=self._found, on_stage=self._keep_state)  # fmt: skip
        self.out.mkdir(parents=True, exist_ok=True)
        self.search.gather()
        try:
            self._look()
            self._confirm()
        except KeyboardInterrupt:
            self._write(finished=False)
            raise
        return self._write(finished=True)

    def _look(self) -> None:
        assert self.search is not None
        search = self.search
        state = self._take_up()
        if not state.get("floor"):
            search.floor()
        search.done = int(state.get("descents", 0))
        if search.done < len(self.plan.descent.weights):
            search.descend()
        if self.wish.trials:
            search.blackbox(self.out / "trials.log", self.options.seed, self.wish.sampler)

    def _take_up(self) -> dict[str, Any]:
        """The points of an interrupted run, as they were found; how far it had come."""
        from ..search.objectives import Seen
        from ..search.run import Found
        from .edit import find_directions, load_edit

        file = self.out / "state.json"
        if self.old is None or not file.is_file():
            return {}
        state = read_json(file)
        assert self.search is not None
        for point in self.old.points:
            if point.stage == "black box":  # Optuna's journal has these
                continue
            kept, at = state["seen"][point.name], self.out / point.edit
            odds, damage, distance = (np.array(kept[k]) for k in ("odds", "damage", "distance"))
            seen = Seen(odds, damage, distance, {n: np.array(x) for n, x in kept["protected"].items()})
            spec = load_edit(at)
            fresh = point.model_copy(update={"confirmed": [], "record": "", "disagrees": ""})
            self.search.take_up(Found(fresh, spec, find_directions(spec, at.parent, []), seen))
        self.search.ticks = [t for t in self.old.ticks if t.run < int(state["descents"])]
        return dict(state)

    def _found(self, found: Found) -> None:
        self.listener.point(found.point)
        self._save(found)
        self._write(finished=False)

    def _keep_state(self) -> None:
        search = self.search
        assert search is not None
        seen = {f.point.name: {"odds": f.seen.odds.tolist(), "damage": f.seen.damage.tolist(),
                               "distance": f.seen.distance.tolist(),
                               "protected": {n: x.tolist() for n, x in f.seen.protected.items()}} for f in search.found}  # fmt: skip
        state = {"seen": seen, "descents": search.done, "floor": any(g.stage == "closed forms" for g in search.gains)}
        write_whole(self.out / "state.json", canonical_json(state), replace=True)

    def _save(self, found: Found) -> None:
        folder = self.out / "edits"
        folder.mkdir(parents=True, exist_ok=True)
        for digest, direction in found.directions.items():
            file = folder / f"direction-{digest[:12]}.safetensors"
            if not file.exists():
                direction.save(file)
        file = folder / f"{found.point.name}.yaml"
        if not file.exists():
            save_edit(found.spec, file)

    def _confirm(self) -> None:
        """Measure the finalists on the *report* prompts, with full-length answers."""
        from .search_confirm import confirm

        assert self.search is not None
        if self.wish.confirm:
            confirm(self.search, self.feature, self.checkpoint, self.wish, self.options, self.out / "confirmed",
                    self.confirmed, self.listener.say)  # fmt: skip

    def _write(self, *, finished: bool) -> SearchRecord:
        from ..report.searched import save_search

        record = self.record(finished=finished)
        self._keep_state()
        write_whole(self.out / "search.json", canonical_json(record.model_dump(by_alias=True)), replace=True)
        if finished or self.confirmed:
            save_search(record, self.confirmed, self.out / "report.html", replace=True)
        return record

    def record(self, *, finished: bool) -> SearchRecord:
        """Everything that was found so far."""
        from .search_confirm import with_confirmed

        search = self.search
        assert search is not None and search.material is not None, "points come after the material"
        material, problem = search.material, search.problem
        points = [p.model_copy(update={"edit": f"edits/{p.name}.yaml"}) for p in search.points()]
        points = with_confirmed(points, self.confirmed, problem, self.spec)
        decode = search.model.decode
        return SearchRecord(
            feature=self.spec.name, feature_description=self.spec.description.strip(), feature_digest=self.spec.digest,
            kind=self.plan.kind, model=search.model.identity, protect=[s.name for s, _ in self.protect],
            objective=_objective(problem), reference_damage=self.plan.reference, separation=material.separation,
            source=material.source, start=search.start,
            n={"train": len(problem.effect.train), "held out": len(problem.effect.held), "neutral, train": len(problem.damage.train),
               "neutral, held out": len(problem.damage.held)},  # fmt: skip
            prompts_digest=self.sets.digest, shows={decode(list(k)): v for k, v in material.openings.shows.items()},
            lacks={decode(list(k)): v for k, v in material.openings.lacks.items()}, points=points,
            knee=next((p.name for p in points if p.knee), ""), target=self.wish.target, ticks=search.ticks,
            stretches=search.stretches, gains=search.gains, factors=search.ledger.factors(), options=self._options(),
            ran=search.model.ran, versions={"weightsmith": __version__}, notes=[*search.notes, *search.model.notes],
            finished=finished,
        )  # fmt: skip


def _objective(problem: Any) -> str:
    if problem.loss == "distil":
        return "context distillation: KL from the model's own distribution under the other prompt"
    if not problem.chance:
        return "log-probability of the texts that show the feature against those that lack it"
    return "log-odds of the openings by which the model itself shows the feature, teacher-forced"


def load_search(path: str | Path) -> SearchRecord:
    """Read a run's ``search.json`` (or the folder that holds it).

    Raises:
        RecipeError: not a search, or one of a newer version.
    """
    path = Path(path)
    file = path / "search.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError("no search is there", where=path)
    record: SearchRecord = parse(SearchRecord, read_json(file), file, SEARCH)
    return record


def load_confirmed(out: Path, record: SearchRecord) -> dict[str, MeasureRecord]:
    """The measurements of a run's confirmed points, by name."""
    found = {}
    for point in record.points:
        file = out / point.record
        if point.record and file.is_file():
            found[point.name] = parse(MeasureRecord, read_json(file), file, MEASUREMENTS)
    return found


