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

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..checkpoint import Checkpoint, read_json
from ..errors import UsageError
from ..held import held_alone
from ..measured import MEASUREMENTS, MeasureRecord
from ..options import RunOptions
from ..records import parse
from ..searched import NOTHING, SEARCH, TARGET, Gain, Point, SearchRecord, Tick
from ..storage import canonical_json, made_folders, refuse_existing, write_whole
from .edit import save_edit
from .files import as_checkpoint

if TYPE_CHECKING:
    from ..features.prompts import PromptSets
    from ..features.recipe import FeatureSpec
    from ..search.run import Found, Plan, Search
    from ..search.workers import Crew

Model = Checkpoint | str | Path
LEAST = 4  # prompts of each side and part


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for, apart from model and feature.

    ``kind`` is ``remove`` or ``add``. ``prompts`` of each side are trained on, ``held`` are held out, answers have
    ``tokens`` tokens. ``weights`` are those of the damage, in the order of the sweep. ``directions`` lets the descent turn
    the directions as well, ``oblique`` lets what is read differ from what is written; a removal takes ``rank`` of them out at
    each layer. ``protect`` names features that must
    not move. ``trials`` of black-box search are added (``sampler`` ``tpe`` or ``nsga2``). An addition aims ``level`` times as
    far as the persona takes the model, and ``rounds`` of unlearning its own repetitions follow. ``confirm`` points of the
    front are measured on ``confirm_n`` unseen prompts a condition, with answers of ``confirm_tokens`` tokens. ``target`` is
    the wanted value of the feature's own score (a rate, a mean sentiment), which chooses the point in place of the knee: where
    none of the confirmed ones lies at it, up to ``confirm`` more are measured, as long as they are likely to.
    ``workers`` (a number, ``ray`` or ``ray:HOST:PORT``) run the descents, each from the closed form, and the confirmations.
    ``force`` searches a feature that can't be separated.
    """

    kind: str = "remove"
    prompts: int = 32
    held: int = 16
    tokens: int = 16
    weights: tuple[float, ...] | None = None
    steps: int | None = None
    directions: bool = True
    oblique: bool = False
    rank: int = 1
    start: int | None = None
    protect: tuple[str, ...] = ()
    trials: int = 0
    sampler: str = "tpe"
    confirm: int = 3
    confirm_n: int = 24
    confirm_tokens: int = 96
    target: float | None = None
    reference: float = 0.5
    level: float = 1.2
    rounds: int = 4
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
        UsageError: bad options, or a folder of another search; OutputExists; OutputBusy: another search writes it;
        EditError: a feature that the model does not show or whose sides can't be told apart; RecipeError; OutOfMemory;
        UnsupportedModel; MissingExtra; ResourceError: workers were lost.
    """
    wish = SearchOptions(**wishes)
    options = options or RunOptions()
    run = _Run(model, feature, Path(out), wish, options, listener or Listener())
    try:
        with made_folders(run.out), held_alone(run.out):
            return run.go()
    finally:
        if run.crew is not None:
            run.crew.release()


def search_plan(wish: SearchOptions, options: RunOptions, *, personas: bool) -> Plan:
    """The search's plan from the options; the steps differ where the loss is a distance from a teacher (``personas``).

    Raises:
        UsageError: an option that makes no sense.
    """
    from ..search.fluent import Rounds
    from ..search.gradient import Descent
    from ..search.material import Sizes
    from ..search.run import Plan

    if wish.kind not in ("remove", "add"):
        raise UsageError(f"can't search for {wish.kind!r}", hint="remove or add")
    if min(wish.prompts, wish.held) < LEAST or wish.tokens < 1:
        raise UsageError(f"{wish.prompts} prompts with {wish.held} held out are too few to see anything",
                         hint="at least 4 of each; 32 and 16 is usual")  # fmt: skip
    if wish.weights is not None and (not wish.weights or not all(0 <= w < math.inf for w in wish.weights)):
        raise UsageError("the weights of the damage must be numbers of 0 or more", hint="for example 100,30,8")
    if not (0 < wish.level < math.inf and 0 < wish.reference < math.inf):
        raise UsageError("the level and the reference damage must be numbers above 0")
    if wish.target is not None and not (math.isfinite(wish.target) and wish.confirm):
        raise UsageError("a target is a number that confirmed figures are compared with",
                         hint="leave --confirm at 1 or more")  # fmt: skip
    if wish.oblique and wish.kind == "add":
        raise UsageError("an addition reads nothing, so it can't be oblique", hint="leave --oblique out, or look for removals")
    if wish.rank > 1 and wish.kind == "add":
        raise UsageError("an addition has one vector at each layer", hint="leave --rank out, or look for removals")
    if wish.sampler not in ("tpe", "nsga2"):
        raise UsageError(f"no sampler is called {wish.sampler!r}", hint="tpe or nsga2")
    how = Descent(seed=options.seed)
    if wish.kind == "add":
        how = replace(how, weights=(0.1,), steps=16, more=8, check=8, turn=1e-4, rate=0.0)
    elif personas:
        how = replace(how, weights=(1.0, 0.2, 5.0), steps=16, check=8, turn=3e-3)
    changes: dict[str, Any] = {"weights": wish.weights, "steps": wish.steps}
    how = replace(how, **{k: v for k, v in changes.items() if v is not None})
    if not wish.directions and wish.kind == "remove":
        how = replace(how, turn=0.0)
    return Plan(wish.kind, Sizes(wish.prompts, wish.held, wish.tokens), how, wish.start, trials=wish.trials,  # type: ignore[arg-type]
                factors=(0.7, 0.4) if wish.kind == "remove" else (0.5, 0.75, 1.25, 1.5), reference=wish.reference,
                oblique=wish.oblique, rank=wish.rank, level=wish.level,
                rounds=Rounds(wish.rounds) if wish.rounds and personas else None, force=wish.force)  # fmt: skip


def refuse_few(name: str, sets: PromptSets) -> None:
    """Raise :class:`UsageError` where a recipe's own split leaves too few prompts to train on or to hold out."""
    for part, what in (("extract", "to train on"), ("select", "held out")):
        n = min(len(sets.part(part).shows), len(sets.part(part).lacks))
        if n < LEAST:
            raise UsageError(f"the recipe's split leaves {n} prompts {what}: too few to see anything", where=name,
                             hint=f"give `split` at least {LEAST} of {part}, and prompts for them")  # fmt: skip


def refuse_spent(sets: PromptSets, wish: SearchOptions, name: str, theirs: PromptSets) -> None:
    """Raise :class:`UsageError` where the search reads (nearly) all *report* prompts of a protected feature, so that none would be
    left to confirm it with: this is known before the search and not after it."""
    from ..measure.overlap import overlaps, sketch

    read = {}
    for part, n in (("extract", wish.prompts), ("select", wish.held)):
        split = sets.part(part)
        read[part] = [sketch(p) for p in dict.fromkeys((*split.shows[:n], *split.lacks[:n]))]
    report = theirs.report
    gone = {p for _, p in overlaps(read, list(dict.fromkeys((*report.shows, *report.lacks))))}
    if min(sum(p not in gone for p in side) for side in (report.shows, report.lacks)) < 2:
        raise UsageError("the search would read this feature's report prompts: none is left to confirm it with", where=name,
                         hint="give its recipe other prompts, or --confirm 0")  # fmt: skip


def _crew(wish: str | None, options: RunOptions) -> Crew | None:
    """The workers, where some are wished for."""
    if wish is None:
        return None
    from ..runtime.load import need_torch

    need_torch()
    from .search_workers import crew

    return crew(wish, options)


class _Run:
    """One run and its folder."""

    def __init__(
        self, model: Model, feature: str, out: Path, wish: SearchOptions, options: RunOptions, listener: Listener
    ) -> None:
        from ..features.prompts import prompt_sets
        from ..features.recipe import load_feature
        from ..runtime.load import quick

        self.out, self.wish, self.options, self.listener = out, wish, options, listener
        self.feature, self.model = feature, model
        spec, folder = load_feature(feature)
        self.plan = search_plan(wish, options, personas=spec.contrast.kind in ("personas", "pairs"))
        self.spec, self.sets = spec, prompt_sets(spec, folder, offline=options.offline)
        self.protect: list[tuple[FeatureSpec, PromptSets]] = []
        for name in wish.protect:
            other, where = load_feature(name)
            if other.name == spec.name:
                raise UsageError(f"{name!r} can't be searched for and protected at once")
            if any(other.name == s.name for s, _ in self.protect):
                raise UsageError(f"{name!r} was given twice with --protect")
            self.protect.append((other, prompt_sets(other, where, offline=options.offline)))
        for name, sets in [(spec.name, self.sets), *((s.name, p) for s, p in self.protect)]:
            refuse_few(name, sets)
        for other, theirs in self.protect if wish.confirm else []:
            refuse_spent(self.sets, wish, other.name, theirs)
        self.checkpoint = as_checkpoint(model, options)
        deep = self.checkpoint.architecture.n_layers
        if not 0 <= (wish.start or 0) < deep:
            raise UsageError(f"no layer is left to edit from layer {wish.start} on", hint=f"the model has layers 0 to {deep - 1}")
        if not 1 <= wish.rank <= min(deep, self.checkpoint.architecture.d_model):  # one is started from for each layer
            raise UsageError(f"a rank of {wish.rank} is not possible here", hint=f"1 to {deep}, a direction for each layer")
        self.options = quick(options)
        self.old = self._earlier()
        self.search: Search | None = None
        self.settled = 0  # points of stages that have ended: what a resumed run need not find again
        self.earlier: list[str] = []  # notes of the run that is resumed
        self.confirmed: dict[str, MeasureRecord] = {}
        self.begun = time.perf_counter()
        self.crew = _crew(wish.workers, self.options)

    def _earlier(self) -> SearchRecord | None:
        """The record of the run that is resumed.

        Raises:
            UsageError: it is of another search; OutputExists: the folder holds something else, or is not to be resumed.
        """
        file = self.out / "search.json"
        if not self.wish.resume or not file.is_file():  # a folder of something else is not taken over either
            refuse_existing(self.out)
            return None
        record = load_search(file)
        mine = (self.spec.digest, self.sets.digest, self.wish.kind)
        theirs = (record.feature_digest, record.prompts_digest, record.kind)
        if mine != theirs or record.options != self._options():
            raise self._another("feature, prompts or options differ")
        return record

    def _another(self, why: str) -> UsageError:
        return UsageError(f"this folder holds another search ({why})", where=self.out,
                          hint="resume with the same command, or choose another folder")  # fmt: skip

    def _options(self) -> dict[str, Any]:
        wish = self.wish
        kept = ("kind", "prompts", "held", "tokens", "steps", "directions", "oblique", "rank", "start", "trials", "sampler",
                "reference", "level", "rounds", "force", "confirm_n", "confirm_tokens")  # fmt: skip
        found = {k: getattr(wish, k) for k in kept}
        return found | {"weights": " ".join(f"{w:g}" for w in self.plan.descent.weights), "seed": self.options.seed,
                        "dtype": self.options.dtype or "",
                        "protect": " ".join(wish.protect)}  # fmt: skip

    def go(self) -> SearchRecord:
        """All stages, each kept as it ends."""
        from ..runtime.load import load
        from ..search.run import Search

        self.old = self._earlier()  # what stands there now that nobody else writes it
        running = load(self.checkpoint, self.options)
        # of the weights that run, as the record has it: those of a GGUF file are read only behind the gate
        if self.old is not None and self.old.model.digest != running.identity.digest:
            raise self._another("the model differs")
        self.search = Search(running, self.spec, self.sets, self.plan, self.protect, on_tick=self.listener.tick,
                             on_found=self._found, on_stage=self._settle, crew=self.crew)  # fmt: skip
        self.search.gather()
        self._take_up()
        finished = False
        try:
            self._write(finished=False)
            self._look()
            self._confirm()
            finished = True
        finally:  # whatever stops it, what was found stays
            for found in self.search.found[-1:]:  # it may have stopped before this one's Edit was written
                self._save(found)
            record = self._write(finished=finished, page=bool(self.search.found))
        return record

    def _look(self) -> None:
        assert self.search is not None
        search = self.search
        ended = {g.stage for g in search.gains}
        if "closed forms" not in ended:
            search.floor()
            self._settle()
        if "descents" not in ended:
            search.descend()
            self._settle()
        if self.wish.trials:
            search.blackbox(self.out / "trials.log", self.options.seed, "nsga2" if self.wish.sampler == "nsga2" else "tpe")

    def _take_up(self) -> None:
        """What the stages of an interrupted run that had ended gave; what came after them is found anew."""
        from ..search.ledger import Ledger
        from ..search.objectives import Seen
        from ..search.run import Found
        from .edit import find_directions, load_edit

        file = self.out / "state.json"
        if self.old is None or not file.is_file():
            return
        state = read_json(file)
        search, old = self.search, self.old
        assert search is not None
        # what is offered of descents that had not ended is settled anew
        anew = {} if any(g["stage"] == "descents" for g in state["gains"]) else {"looping": False}
        for point in old.points[: int(state["settled"])]:
            kept, at = state["seen"][point.name], self.out / point.edit
            odds, damage, distance = (np.array(kept[k]) for k in ("odds", "damage", "distance"))
            seen = Seen(odds, damage, distance, {n: np.array(x) for n, x in kept["protected"].items()})
            spec = load_edit(at)
            fresh = point.model_copy(update={"confirmed": [], "record": "", "disagrees": "", **anew})
            search.take_up(Found(fresh, spec, find_directions(spec, at.parent, []), seen))
        search.ended = list(state["descents"])
        search.ticks = [t for t in old.ticks if t.run in search.ended]
        gains = [Gain(**g) for g in state["gains"]]
        search.gains = [g for g in gains if g.stage != "black box"]  # Optuna's journal has these
        search.stretches[:0] = old.stretches
        search.ledger.add(Ledger(**state.get("ledger", {})))
        self.settled, self.earlier = len(search.found), [n for n in old.notes if not n.startswith((TARGET, NOTHING))]

    def _found(self, found: Found) -> None:
        self._save(found)
        self._write(finished=False)
        self.listener.point(found.point)

    def _settle(self) -> None:
        """A stage (or one descent of the sweep) has ended."""
        assert self.search is not None
        self.settled = len(self.search.found)
        self._write(finished=False)

    def _keep_state(self) -> None:
        search = self.search
        assert search is not None
        seen: dict[str, Any] = {}
        for f in search.found:
            seen[f.point.name] = {k: getattr(f.seen, k).tolist() for k in ("odds", "damage", "distance")}
            seen[f.point.name]["protected"] = {n: x.tolist() for n, x in f.seen.protected.items()}
        state = {"seen": seen, "descents": search.ended, "settled": self.settled, "gains": [g.model_dump() for g in search.gains],
                 "ledger": asdict(search.ledger)}  # fmt: skip
        write_whole(self.out / "state.json", canonical_json(state), replace=True)

    def _save(self, found: Found) -> None:
        folder = self.out / "edits"
        folder.mkdir(parents=True, exist_ok=True)
        for digest, direction in found.directions.items():
            file = folder / f"direction-{digest[:12]}.safetensors"
            if not file.exists():
                direction.save(file)
        file = folder / f"{found.point.name}.yaml"
        file.unlink(missing_ok=True)  # of a stage that was interrupted, and is found anew
        save_edit(found.spec, file)

    def _confirm(self) -> None:
        """Measure the finalists on the *report* prompts, with full-length answers."""
        from .search_confirm import confirm

        assert self.search is not None
        if self.wish.confirm:
            confirm(self.search, self.feature, self.checkpoint, self.wish, self.options, self.out / "confirmed",
                    self.confirmed, self.listener.say)  # fmt: skip

    def _write(self, *, finished: bool, page: bool = False) -> SearchRecord:
        from ..report.searched import save_search

        record = self.record(finished=finished)
        self._keep_state()
        write_whole(self.out / "search.json", canonical_json(record.model_dump(by_alias=True)), replace=True)
        if finished or page or self.confirmed:
            save_search(record, self.confirmed, self.out / "report.html", replace=True)
        return record

    def record(self, *, finished: bool) -> SearchRecord:
        """Everything that was found so far."""
        from .search_confirm import with_confirmed
        from .search_target import chosen_point, main_score

        search = self.search
        assert search is not None, "points come after the search has begun"
        assert search.material is not None, "points come after the material"
        material, problem = search.material, search.problem
        points = [p.model_copy(update={"edit": f"edits/{p.name}.yaml"}) for p in search.points()]
        points = with_confirmed(points, self.confirmed, problem, self.spec)
        choice = chosen_point(points, main_score(self.spec, self.plan.kind)[0], self.wish.target, finished=finished)
        decode = search.model.decode
        return SearchRecord(
            feature=self.spec.name, feature_description=self.spec.description.strip(), feature_digest=self.spec.digest,
            kind=self.plan.kind, model=search.model.identity, protect=[s.name for s, _ in self.protect],
            objective=_objective(problem), reference_damage=self.plan.reference, separation=material.separation,
            source=material.source, start=search.start,
            n={"train": len(problem.effect.train), "held out": len(problem.effect.held),
               "neutral, train": len(problem.damage.train), "neutral, held out": len(problem.damage.held)},
            prompts_digest=self.sets.digest, shows={decode(list(k)): v for k, v in material.openings.shows.items()},
            lacks={decode(list(k)): v for k, v in material.openings.lacks.items()}, points=points,
            knee=next((p.name for p in points if p.knee), ""), chosen=choice.name,
            chosen_by=choice.by, target=self.wish.target, ticks=search.ticks,
            stretches=search.stretches, gains=search.gains, factors=search.ledger.factors(), options=self._options(),
            ran=search.model.ran, versions={"weightsmith": __version__},
            notes=list(dict.fromkeys([*self.earlier, *search.notes, *search.model.notes, *choice.notes])),
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
        raise UsageError("no search is there", where=path, hint="name the folder that `weightsmith search -o` made")
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


