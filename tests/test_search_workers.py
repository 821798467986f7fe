"""Descents and confirmations on several workers are those of one; a worker that is lost loses nothing that has ended."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pico
import searching
from test_search_space import a_problem
from trees import Load, loader
from weightsmith.errors import DigestMismatch, MissingExtra, NonFinite, OutputExists, ResourceError, UsageError
from weightsmith.jobs.search import Listener, search
from weightsmith.jobs.search_workers import SearchWorker
from weightsmith.measure import workers as pools
from weightsmith.measure.workers import CORES, Actors, Pool, absolute
from weightsmith.search import gradient
from weightsmith.search.gradient import Descent, Snapshot
from weightsmith.search.objectives import Problem
from weightsmith.search.run import APART
from weightsmith.search.space import Space, Values
from weightsmith.search.workers import Crew, Task, Worker
from weightsmith.searched import SearchRecord
from weightsmith.storage import usable_cores

WEIGHTS = (0.1, 1.0, 0.5)
HOW = Descent(weights=WEIGHTS, steps=6, more=2, batch=2, check=3, rate=0.05, turn=0.02)


class FakeRay:
    """What is asked of Ray, done in this process: the job that was begun last ends first, and whatever travels is pickled.

    ``deaths`` are (actor, call), counted from 0: that actor is lost at that call, as any later one."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayActorError(RayError):
            pass

        class RayTaskError(RayError):
            cause: Exception

    def __init__(self, deaths: Collection[tuple[int, int]] = (), cpus: int = 8) -> None:
        self.deaths, self.cpus = set(deaths), cpus
        self.made: list[Actor] = []
        self.killed: list[Actor] = []
        self.begun: list[str] = []

    def is_initialized(self) -> bool:
        return True

    def init(self, **_: Any) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=partial(self.make, kind)))

    def make(self, kind: type, *args: Any) -> Actor:
        self.made.append(Actor(self, len(self.made), kind(*travelled(args))))
        return self.made[-1]

    def put(self, value: Any) -> Any:
        return value

    def wait(self, running: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        assert num_returns == 1
        return running[-1:], running[:-1]

    def get(self, ref: Begun) -> Any:
        return ref.work()

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


class Begun:
    """A result that is on its way."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work


class Actor:
    """A worker and its calls."""

    def __init__(self, ray: FakeRay, number: int, worker: Any) -> None:
        self.ray, self.number, self.worker = ray, number, worker
        self.calls, self.dead = 0, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: Begun(partial(self.run, name, args)))

    def run(self, name: str, args: tuple[Any, ...]) -> Any:
        self.dead |= (self.number, self.calls) in self.ray.deaths
        self.calls += 1
        self.ray.begun.append(name)
        if self.dead:
            raise self.ray.exceptions.RayActorError
        try:
            return travelled(getattr(self.worker, name)(*travelled(args)))
        except Exception as error:
            task = self.ray.exceptions.RayTaskError()
            task.cause = travelled(error)
            raise task from error


def travelled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    """Put a fake Ray in place."""

    def put(*deaths: tuple[int, int], **more: Any) -> FakeRay:
        made = FakeRay(deaths, **more)
        monkeypatch.setattr(pools, "_ray", lambda: made)
        return made

    return put


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return loader(tmp_path_factory.mktemp("pico"))


Made = tuple[Problem, Space, Values]


def made(load: Load, kind: Any = "remove", *, oblique: bool = False, protect: bool = False, rank: int = 1) -> Made:
    """A problem, its space, and where its descents begin."""
    model = load("llama")
    problem = a_problem(model, kind, margin=60.0)
    if protect:
        other = a_problem(model, kind).damage
        problem.protect["other"] = other
        problem.base = problem.see()
    space = Space(model, kind, pico.a_direction(model.checkpoint), [1], None, oblique=oblique, rank=rank)
    return problem, space, space.begin(0.4)


def said(snapshot: Snapshot) -> list[Any]:
    """Everything of a snapshot, exactly."""
    seen, values = snapshot.seen, snapshot.values
    parts = [values.strengths, values.vectors, *([] if values.readers is None else [values.readers])]
    figures = [seen.odds, seen.damage, seen.distance, *seen.protected.values()]
    return [snapshot.weight, snapshot.step, *(p.numpy().tobytes() for p in parts), *(x.tobytes() for x in figures)]


def alone(task: Made, weight: float, how: Descent = HOW) -> gradient.Sweep:
    """The local descent for one weight."""
    problem, space, begin = task
    return gradient.sweep(problem, space, begin, replace(how, weights=(weight,)))


def spread(task: Made, count: int = 2, how: Descent = HOW) -> tuple[Crew, list[Snapshot], list[Any], list[int]]:
    """The sweep on some workers: snapshots, ticks and the ends of descents as they were told, and the crew."""
    crew = Crew(str(count), pico.CPU, Worker)
    told: list[Snapshot] = []
    ticks: list[Any] = []
    ended: list[int] = []
    found = crew.sweep(*task, how, ticks.append, told.append, ended.append)
    assert (found.snapshots, found.ticks) == (told, ticks)
    return crew, told, ticks, ended


CASES: dict[str, dict[str, Any]] = {
    "removal": {}, "addition": {"kind": "add"}, "oblique": {"oblique": True}, "protected": {"protect": True},
    "of rank 2": {"rank": 2}}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_descent_is_that_of_a_local_run(running: Load, fake: Callable[..., FakeRay], case: str) -> None:
    ray = fake()
    task = made(running, **CASES[case])
    before = replace(task[0].passes.ledger)
    crew, told, ticks, ended = spread(task)
    after = replace(task[0].passes.ledger)
    locals_ = [alone(task, w) for w in WEIGHTS]
    assert [said(s) for s in told] == [said(s) for one in locals_ for s in one.snapshots]
    expected = [t.model_copy(update={"run": i}) for i, one in enumerate(locals_) for t in one.ticks]
    assert ticks == expected
    assert ended == [0, 1, 2]
    assert len({s.weight for s in told}) == 3
    assert len(ray.made) == 2
    # each worker read the layers below once, and the steps cost what they cost here
    mine = task[0].passes.ledger
    assert after.backward - before.backward == mine.backward - after.backward
    assert after.passed - before.passed > mine.passed - after.passed
    crew.release()
    assert ray.killed == ray.made


def test_a_lost_worker_costs_its_own_job_alone(running: Load, fake: Callable[..., FakeRay]) -> None:
    task = made(running)
    ray = fake((1, 0))
    crew, told, _, ended = spread(task)
    assert [said(s) for s in told] == [said(s) for w in WEIGHTS for s in alone(task, w).snapshots]
    assert ended == [0, 1, 2]
    assert ray.begun == ["descend"] * 4
    assert crew._actors == ray.made[:1]


def test_a_job_that_takes_two_workers_ends_it_and_the_others_are_kept(running: Load, fake: Callable[..., FakeRay]) -> None:
    task = made(running)
    fake((2, 0), (1, 1))
    told: list[Snapshot] = []
    ended: list[int] = []
    crew = Crew("3", pico.CPU, Worker)
    with pytest.raises(ResourceError, match=r"two workers .* weighted 0\.1; 2 of 3 have ended and are kept") as caught:
        crew.sweep(*task, HOW, on_snapshot=told.append, on_descent=ended.append)
    assert "--resume" in str(caught.value.hint)
    assert ended == [1, 2]
    assert [said(s) for s in told] == [said(s) for w in WEIGHTS[1:] for s in alone(task, w).snapshots]


def test_when_every_worker_is_lost_what_has_ended_is_kept(running: Load, fake: Callable[..., FakeRay]) -> None:
    task = made(running)
    fake((0, 1))
    ended: list[int] = []
    with pytest.raises(ResourceError, match="every worker is lost") as caught:
        Crew("1", pico.CPU, Worker).sweep(*task, HOW, on_descent=ended.append)
    assert "--resume" in str(caught.value.hint)
    assert ended == [0]


@pytest.mark.parametrize("error", [NonFinite("NaN in the logits", where="here"), KeyError("a bug")])
def test_what_a_worker_raises_is_raised_here(
    running: Load, fake: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ray = fake()

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Worker, "descend", fail)
    expected = NonFinite if isinstance(error, NonFinite) else ray.exceptions.RayTaskError
    with pytest.raises(expected) as caught:
        Crew("2", pico.CPU, Worker).sweep(*made(running), HOW)
    if isinstance(error, NonFinite):
        assert caught.value.args == error.args
        assert caught.value.where == "here"
    assert len(ray.begun) == 1


def test_a_worker_with_another_model_says_so(running: Load, fake: Callable[..., FakeRay], tmp_path: Path) -> None:
    """The model is loaded by the first call, so that what fails there is no lost worker."""
    fake()
    task = made(running)
    other = pico.build("llama", tmp_path / "other", seed=1)

    class Elsewhere(Worker):
        def __init__(self, ref: str, digest: str, options: Any) -> None:
            super().__init__(str(other), digest, options)

    with pytest.raises(DigestMismatch, match="another model"):
        Crew("2", pico.CPU, Elsewhere).sweep(*task, HOW)


def test_what_is_sent_is_small(running: Load) -> None:
    """No weights, no outputs of layers, and of a teacher that is a view its own rows alone."""
    import torch

    problem, space, _ = made(running)
    item = problem.damage.items[0]
    assert item.teacher is not None
    wide = torch.zeros((4000, *item.teacher.shape[1:]))
    wide[: len(item.teacher)] = item.teacher
    item.teacher = wide[: len(item.teacher)]
    size = len(pickle.dumps(Task.of(problem, space)))
    states = sum(i.teacher.nbytes for g in (problem.effect, problem.damage) for i in g.items if i.teacher is not None)
    assert size < 2 * states + 40_000
    assert size < wide.nbytes


def test_nothing_of_a_problem_is_forgotten() -> None:
    sent = {f.name for f in dataclasses.fields(Task)}
    assert {f.name for f in dataclasses.fields(Problem)} <= sent | {"model", "passes"}


def test_cores_are_shared_out(fake: Callable[..., FakeRay]) -> None:
    fake()
    assert Actors("2", pico.CPU).share == max(1, usable_cores() // 2)
    assert Actors("500", pico.CPU).share == 1
    assert Actors("ray", pico.CPU).share == CORES
    with pytest.raises(UsageError, match="can't read the workers"):
        Actors("many", pico.CPU)


def test_paths_are_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert absolute("model") == str(tmp_path / "model")
    assert absolute("demo:smollm2") == "demo:smollm2"


# Whole searches.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searching.build(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def feature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searching.recipe(tmp_path_factory.mktemp("f"))


def figures(record: SearchRecord) -> list[Any]:
    """Everything that a run found."""
    return [p.model_dump() for p in record.points]


def test_a_whole_search_is_that_of_one_process(
    model: Path, feature: Path, tmp_path: Path, fake: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = searching.sought(model, feature, tmp_path / "here")
    ray = fake((1, 1))
    monkeypatch.chdir(feature.parent)
    there = searching.sought(model, feature.name, tmp_path / "there", workers="2")
    assert figures(there) == figures(here)
    assert sum(bool(p.confirmed) for p in there.points) == 2
    assert (APART in there.notes, APART in here.notes) == (True, False)
    assert [t.model_dump() for t in there.ticks] == [t.model_dump() for t in here.ticks]
    assert set(ray.begun) == {"descend", "confirm"}
    assert ray.killed
    for folder in ("edits", "confirmed"):
        names = [sorted(f.name for f in (tmp_path / run / folder).iterdir()) for run in ("here", "there")]
        assert names[0] == names[1]
    edits = [[f.read_bytes() for f in sorted((tmp_path / run / "edits").iterdir())] for run in ("here", "there")]
    assert edits[0] == edits[1]


def test_a_search_that_lost_a_descent_goes_on_with_it(
    model: Path, feature: Path, tmp_path: Path, fake: Callable[..., FakeRay]
) -> None:
    wish: dict[str, Any] = {"workers": "3", "weights": (0.5, 2.0, 0.1), "confirm": 0}
    fake()
    whole = searching.sought(model, feature, tmp_path / "whole", **wish)
    fake((2, 0), (1, 1))
    with pytest.raises(ResourceError, match="two workers"):
        searching.sought(model, feature, tmp_path / "run", **wish)
    ray = fake()
    again = searching.sought(model, feature, tmp_path / "run", resume=True, **wish)
    assert ray.begun == ["descend"]
    assert again.finished

    def by_step(record: SearchRecord) -> Any:
        return sorted((p.what, p.effect, p.damage) for p in record.points)

    # an Edit file holds strengths to four digits, and what is made weaker at the end is made from one
    for found, expected in zip(by_step(again), by_step(whole), strict=True):
        assert found == (expected[0], pytest.approx(expected[1], rel=1e-3), pytest.approx(expected[2], rel=1e-3))
    assert sorted((t.run, t.step) for t in again.ticks) == sorted((t.run, t.step) for t in whole.ticks)


def test_a_lost_confirmation_is_done_by_another(
    model: Path, feature: Path, tmp_path: Path, fake: Callable[..., FakeRay]
) -> None:
    ray = fake((0, 1), (1, 1), (2, 1))  # three descents, then each dies at its first confirmation
    with pytest.raises(ResourceError, match=r"the confirmation of .* 0 of 2 have ended"):
        searching.sought(model, feature, tmp_path / "run", workers="3", weights=(0.5, 2.0, 0.1))
    assert ray.begun[:3] == ["descend"] * 3
    ray = fake()
    record = searching.sought(model, feature, tmp_path / "run", workers="3", weights=(0.5, 2.0, 0.1), resume=True)
    assert ray.begun == ["confirm"] * 2
    assert sum(bool(p.confirmed) for p in record.points) == 2


def test_a_recipe_that_differs_on_a_worker_is_refused(
    model: Path, tmp_path: Path, fake: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = searching.recipe(tmp_path / "f")
    fake()
    real = SearchWorker.confirm

    def confirm(self: SearchWorker, *args: Any) -> bytes:
        feature.write_text(feature.read_text().replace("A small one.", "Another."))
        return real(self, *args)

    monkeypatch.setattr(SearchWorker, "confirm", confirm)
    with pytest.raises(DigestMismatch, match="another feature"):
        searching.sought(model, feature, tmp_path / "run", workers="2")


def test_without_ray_there_is_one_line_to_install(
    model: Path, feature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="Ray") as caught:
        searching.sought(model, feature, tmp_path / "run", workers="2")
    assert "weightsmith[ray]" in str(caught.value.hint)
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_refused_before_workers_start(
    model: Path, feature: Path, tmp_path: Path, fake: Callable[..., FakeRay]
) -> None:
    ray = fake()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    with pytest.raises(OutputExists):
        searching.sought(model, feature, tmp_path / "run", workers="2")
    assert not ray.made


# With Ray itself.


@pytest.fixture(scope="module")
def real() -> Iterator[None]:
    pytest.importorskip("ray")
    import ray

    Pool("2", pico.CPU)  # starts it, with two cores
    yield
    ray.shutdown()


def pids(actors: list[Any]) -> list[int]:
    """The processes of some actors, once they are up."""
    import ray

    found: list[int] = ray.get([a.__ray_call__.remote(lambda _: os.getpid()) for a in actors])
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("real")
class TestRay:
    """Two local workers."""

    def test_a_whole_search(self, model: Path, feature: Path, tmp_path: Path) -> None:
        here = searching.sought(model, feature, tmp_path / "here")
        there = searching.sought(model, feature, tmp_path / "there", workers="2")
        assert figures(there) == figures(here)

    def test_a_worker_that_is_killed_in_the_middle(self, running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        task = made(running)
        how = replace(HOW, steps=150, check=50)
        crew = Crew("2", pico.CPU, Worker)
        crew.match(task[0].model)
        victim = pids(crew._for(task[0].model.checkpoint))[0]
        begun = time.perf_counter()
        locals_ = [alone(task, w, how) for w in WEIGHTS]
        seconds = (time.perf_counter() - begun) / len(WEIGHTS)
        told: list[Snapshot] = []
        lost: list[int] = []
        real = crew.twice

        def twice(*args: Any) -> Callable[[Any], None]:
            inner = real(*args)

            def note(job: Any) -> None:
                lost.append(job)
                inner(job)

            return note

        monkeypatch.setattr(crew, "twice", twice)
        # the first call loads the model, which takes longer than a descent: the middle of the second one's
        killer = threading.Thread(target=_kill_when, args=(victim, told, seconds / 2))
        killer.start()
        crew.sweep(*task, replace(how, weights=WEIGHTS * 2), on_snapshot=told.append)
        killer.join()
        assert len(lost) == 1
        assert len(crew._actors) == 1
        assert [said(s) for s in told] == [said(s) for one in locals_ * 2 for s in one.snapshots]
        crew.release()

    def test_a_worker_that_cannot_load_says_why(self, running: Load) -> None:
        task = made(running)
        crew = Crew("2", pico.CPU, Worker)
        crew.match(task[0].model)
        crew._actors = [crew.ray.remote(Worker).remote(str(task[0].model.checkpoint.ref), "0" * 64, crew.options)]
        crew._of = pools.model_key(task[0].model.checkpoint)
        with pytest.raises(DigestMismatch, match="another model"):
            crew.sweep(*task, HOW)
        crew.release()

    @pytest.mark.real
    def test_the_real_model_with_a_worker_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """SmolLM2: every weight's descent is there, and the first one is that of a local run."""
        crews: list[Crew] = []
        left: list[int] = []
        match, release = Crew.match, Crew.release

        def seen(self: Crew, model: Any) -> None:
            crews.append(self)
            match(self, model)

        def ended(self: Crew) -> None:
            left.append(len(self._actors))
            release(self)

        monkeypatch.setattr(Crew, "match", seen)
        monkeypatch.setattr(Crew, "release", ended)
        wish: dict[str, Any] = {"prompts": 8, "held": 6, "tokens": 8, "steps": 4, "confirm": 2, "confirm_n": 4,
                                "confirm_tokens": 8, "force": True}  # fmt: skip
        options = replace(pico.CPU, use_cache=True)
        told: list[Any] = []

        def kill() -> None:
            _kill_when(pids(crews[0]._actors)[0], told, 1.0)

        def tick(t: Any) -> None:
            if not told:
                threading.Thread(target=kill).start()
            told.append(t)

        there = search("demo:smollm2", "melancholy", tmp_path / "there", options=options, listener=Listener(tick=tick),
                       workers="2", weights=(1.0, 0.2, 5.0, 2.0), **wish)  # fmt: skip
        assert there.finished
        assert {p.weight for p in there.points if p.stage == "gradient"} >= {1.0, 0.2, 5.0, 2.0}
        assert left[-1] == 1, "one of the two was lost"
        assert sum(bool(p.confirmed) for p in there.points) == 2
        here = search("demo:smollm2", "melancholy", tmp_path / "here", options=options, weights=(1.0,),
                      **wish | {"confirm": 0})  # fmt: skip
        first = [[p for p in r.points if p.weight == 1.0 and "times" not in p.what] for r in (here, there)]
        assert len(first[0]) == len(first[1]) > 0
        for a, b in zip(*first, strict=True):
            assert (a.effect, a.damage) == (pytest.approx(b.effect, rel=1e-4), pytest.approx(b.damage, rel=1e-4))


def _kill_when(victim: int, told: list[Any], seconds: float) -> None:
    """Kill a process some seconds after something was told."""
    end = time.monotonic() + 120
    while not told and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(victim, signal.SIGKILL)
