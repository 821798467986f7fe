"""Black-box search: tents over layers, trials that are Edits, a journal that loses nothing and that processes share."""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.direction import Direction, load_direction
from weightsmith.edits import AddOutput, LinearOutput
from weightsmith.errors import EditError, MissingExtra, RecipeError, UsageError
from weightsmith.features.select import compile_hooks
from weightsmith.records import EditSpec
from weightsmith.runtime import Continuation, RunningModel, answer_states, generate, load, steering
from weightsmith.search import blackbox as module
from weightsmith.search.blackbox import Draws, Trial, blackbox
from weightsmith.search.kernels import ALL, Kernel, Ranges, Setting, between, edit_of
from weightsmith.search.objectives import Group, Item, Problem
from weightsmith.search.passes import Passes, Tree

DEPTH = 4
LAYERS = list(range(DEPTH))
WORDS = ("sea", "rain", "an old friend", "why", "hills", "stone", "a lamp", "bread", "night", "the road", "salt", "wool")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.build("llama", tmp_path_factory.mktemp("m") / "model", num_hidden_layers=DEPTH)


@pytest.fixture(scope="module")
def model(folder: Path) -> RunningModel:
    return load(open_checkpoint(str(folder)), pico.CPU)


def a_problem(model: RunningModel, n: int = 12, kind: Any = "remove") -> Problem:
    """Openings that the model may choose, and its own answers, to ``n`` prompts; 4 of them are trained on."""
    prompts = [model.tokens(f"tell me of {w}, please") for w in WORDS[:n]]
    answers = generate(model, prompts, 4)
    effect = [Item(Tree.of(p, [(20, 21), (30, 31)]), shows=(0, 1)) for p in prompts]
    rows = [Continuation(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]
    states = [s.clone() for s in answer_states(model, rows)]
    damage = [Item(Tree.of(r.prompt, [r.answer]), taught=0, teacher=s) for r, s in zip(rows, states, strict=True)]
    train, held = list(range(min(4, n // 2))), list(range(min(4, n // 2), n))
    problem = Problem(model, kind, Passes(model), Group(effect, train, held), Group(damage, train, held))
    problem.prepare()
    return problem


@pytest.fixture(scope="module")
def problem(model: RunningModel) -> Problem:
    return a_problem(model)


@pytest.fixture(scope="module")
def direction(folder: Path) -> Direction:
    return pico.a_direction(folder, seed=3)


def by_numbers(spec: EditSpec, directions: dict[str, Direction]) -> tuple[float, float]:
    """A judge without a model: two objectives that pull apart."""
    step = spec.steps[0]
    total = sum(map(sum, step.strengths.values())) * step.amount
    return abs(total - 6.0), total**2 + len(step.layers)


def params(trials: list[Trial]) -> list[Any]:
    return [(t.setting, t.effect, t.damage) for t in trials]


# Tents.

numbers = st.floats(0.0, 2.0)


@given(numbers, st.floats(0, 30), st.floats(0, 1), st.floats(0.01, 20), st.floats(-5, 35))
def test_a_tent_is_never_above_its_top_nor_beyond_its_distance(
    most: float, position: float, share: float, distance: float, layer: float
) -> None:
    kernel = Kernel(most, position, share * most, distance)
    value = kernel.at(layer)
    assert value <= most
    if abs(layer - position) > distance:
        assert value == 0.0
    else:
        assert value >= share * most - 1e-12
    assert kernel.at(position) == most


@given(numbers, st.integers(0, 30), st.floats(0, 1), st.floats(0.01, 20), st.integers(0, 12))
def test_a_tent_is_symmetric_and_falls(most: float, at: int, share: float, distance: float, away: int) -> None:
    kernel = Kernel(most, at, share * most, distance)
    assert kernel.at(at + away) == kernel.at(at - away)
    assert kernel.at(at + away + 1) <= kernel.at(at + away)


def test_a_tent_by_hand() -> None:
    kernel = Kernel(1.2, 10.0, 0.4, 4.0)
    assert [round(kernel.at(x), 12) for x in (5, 6, 8, 10, 11, 14, 15)] == [0, 0.4, 0.8, 1.2, 1.0, 0.4, 0]
    assert Kernel(1.0, 3.0, 0.5, 0.0).at(3) == 1.0
    assert Kernel(1.0, 3.0, 0.5, 0.0).at(4) == 0.0


def test_directions_between_layers(direction: Direction) -> None:
    found = between(direction, 1.25, LAYERS)
    mixed = 0.75 * direction.unit(1) + 0.25 * direction.unit(2)
    for layer in LAYERS:
        assert found.unit(layer) == pytest.approx(mixed / np.linalg.norm(mixed), abs=1e-6)
        assert found.resid_norm[found.row(layer)] == direction.resid_norm[direction.row(layer)]
    assert "at layer 1.25" in found.meta.expression
    assert between(direction, 2.0, LAYERS).unit(0) == pytest.approx(direction.unit(2), abs=1e-6)
    assert between(direction, 99.0, LAYERS).unit(0) == pytest.approx(direction.unit(3), abs=1e-6)  # the last there is
    with pytest.raises(RecipeError, match="no layer 7"):
        between(direction, 1.0, [7])


def test_a_point_is_the_edit_that_it_says(model: RunningModel, direction: Direction) -> None:
    """y − s û (ûᵀy) with s from the tent, by role and layer, beyond 1 too."""
    setting = Setting({"attn_out": Kernel(1.5, 2.5, 0.5, 1.0), "mlp_down": Kernel(1.0, 0.0, 0.0, 2.0)}, 0.5)
    spec, used = edit_of(setting, direction, "remove", LAYERS, "x")
    assert spec.steps[0].strengths == {"attn_out": [0, 0, 1.0, 1.0], "mlp_down": [1.0, 0.5, 0, 0]}
    hooks = {h.module: h for h in compile_hooks(model, spec, {used.digest(): used})}
    assert len(hooks) == 4
    unit = used.unit(0)[:, None]
    for layer, role, strength in ((2, "attn_out", 1.0), (3, "attn_out", 1.0), (0, "mlp_down", 1.0), (1, "mlp_down", 0.5)):
        name = next(w.module for w in model.architecture.select([role], [layer]))
        hook = hooks[name]
        assert isinstance(hook, LinearOutput)
        assert hook.write @ hook.read.T == pytest.approx(-strength * unit @ unit.T, abs=1e-6)
    beyond, used = edit_of(Setting({"attn_out": Kernel(1.5, 2.0, 1.5, 1.0)}, None), direction, "remove", LAYERS)
    first = compile_hooks(model, beyond, {used.digest(): used})[0]
    assert isinstance(first, LinearOutput)
    assert first.write == pytest.approx(-1.5 * first.read)


def test_an_addition_delivers_its_dose(model: RunningModel, direction: Direction) -> None:
    spec, used = edit_of(Setting({ALL: Kernel(1.0, 1.0, 0.5, 1.0)}, None, 0.6), direction, "add", LAYERS)
    assert spec.steps[0].layers == [0, 1, 2]
    assert spec.steps[0].dose == pytest.approx(0.6, abs=1e-3)
    shares = {h.layer: float(np.linalg.norm(h.vector)) / float(direction.resid_norm[h.layer])
              for h in compile_hooks(model, spec, {used.digest(): used}) if isinstance(h, AddOutput)}  # fmt: skip
    assert shares == pytest.approx({0: 0.15, 1: 0.3, 2: 0.15}, abs=1e-3)


def test_a_point_without_a_layer_is_no_edit(direction: Direction) -> None:
    with pytest.raises(EditError, match="nothing is left"):
        edit_of(Setting({"mlp_down": Kernel(1.0, 1.5, 0.5, 0.2)}, None), direction, "remove", LAYERS)


# Trials.


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
@pytest.mark.parametrize("kind", ["remove", "add"])
def test_the_same_seed_finds_the_same(model: RunningModel, direction: Direction, kind: Any, sampler: Any) -> None:
    problem = a_problem(model, 4, kind)
    ways = [blackbox(problem, direction, LAYERS, Draws(10, seed=seed, sampler=sampler), judge=by_numbers) for seed in (1, 1, 2)]
    assert params(ways[0]) == params(ways[1])
    assert params(ways[0]) != params(ways[2])
    assert len(ways[0]) == 10
    assert len({t.setting.source for t in ways[0]}) > 2
    assert None in {t.setting.source for t in ways[0]}


def test_trials_stay_in_their_ranges(problem: Problem, direction: Direction) -> None:
    narrow = Ranges(most=(0.2, 0.5), position=(0.0, 0.4), distance=0.5, source=(0.5, 0.6))
    for trial in blackbox(problem, direction, [1, 2, 3], Draws(12), judge=by_numbers, ranges=narrow):
        assert trial.setting.source is None or 1.5 <= trial.setting.source <= 1.8
        for kernel in trial.setting.kernels.values():
            assert 0.2 <= kernel.most <= 0.5
            assert 0 <= kernel.least <= kernel.most
            assert 1.0 <= kernel.position <= 1.8
            assert kernel.distance == 1.0
        assert set(trial.spec.steps[0].layers) <= {1, 2, 3}


def test_trials_are_judged_under_their_own_hooks(problem: Problem, direction: Direction) -> None:
    heard: list[Trial] = []
    found = blackbox(problem, direction, LAYERS, Draws(8, seed=5), on_trial=heard.append)
    assert [t.number for t in heard] == list(range(8))
    assert params(found) == params([t for t in heard if t.state == "complete"])
    assert found
    for trial in found[:3]:
        hooks = compile_hooks(problem.model, trial.spec, trial.directions)
        with torch.no_grad(), steering(problem.model, hooks):
            seen = problem.see()
        assert trial.seen is not None
        assert trial.seen.odds == pytest.approx(seen.odds, rel=1e-4, abs=1e-5)
        assert trial.seen.damage == pytest.approx(seen.damage, rel=1e-3, abs=1e-5)
        assert trial.effect == pytest.approx(problem.loss_of(seen), rel=1e-4)
        assert trial.damage == pytest.approx(problem.cost_of(seen), rel=1e-3)


def test_an_edit_and_its_direction_survive_their_files(
    problem: Problem, direction: Direction, tmp_path: Path
) -> None:
    for trial in blackbox(problem, direction, LAYERS, Draws(4, seed=1), judge=by_numbers):
        digest = trial.direction.save(tmp_path / f"{trial.number}.safetensors")
        again = load_direction(tmp_path / f"{trial.number}.safetensors")
        spec = EditSpec.model_validate(json.loads(trial.spec.model_dump_json(by_alias=True)))
        assert spec == trial.spec
        assert digest == spec.steps[0].direction
        mine = compile_hooks(problem.model, trial.spec, trial.directions)
        theirs = compile_hooks(problem.model, spec, {digest: again})
        for a, b in zip(mine, theirs, strict=True):
            assert isinstance(a, LinearOutput)
            assert isinstance(b, LinearOutput)
            assert a.module == b.module
            assert np.array_equal(a.write, b.write)
            assert np.array_equal(a.read, b.read)


def test_a_trial_that_is_beaten_on_the_quarter_is_pruned(
    problem: Problem, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where another is better in both; what was pruned is given to whoever listens, and is not among the found."""
    def run() -> tuple[list[Trial], list[Trial]]:
        heard: list[Trial] = []
        return blackbox(problem, direction, LAYERS, Draws(12, seed=2), on_trial=heard.append), heard

    monkeypatch.setattr(module, "CLEARLY", -math.inf)
    every, _ = run()
    assert len(every) == 12
    monkeypatch.setattr(module, "CLEARLY", 1.0)
    found, heard = run()
    pruned = [t for t in heard if t.state == "pruned"]
    assert pruned
    assert all(t.seen is None for t in pruned)
    assert {t.number for t in found} | {t.number for t in pruned} == set(range(12))
    assert min(t.number for t in pruned) >= 4  # a third is random, and told what it came to
    assert params(found)[:4] == params(every)[:4]


def test_few_prompts_are_read_at_once(model: RunningModel, direction: Direction) -> None:
    problem = a_problem(model, 8)
    assert len(blackbox(problem, direction, LAYERS, Draws(8, seed=2))) == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_trial_without_a_number_fails_alone(problem: Problem, direction: Direction, bad: float) -> None:
    calls: list[int] = []

    def judge(spec: EditSpec, directions: dict[str, Direction]) -> tuple[float, float]:
        calls.append(1)
        return (bad, 1.0) if len(calls) == 3 else by_numbers(spec, directions)

    heard: list[Trial] = []
    found = blackbox(problem, direction, LAYERS, Draws(6), judge=judge, on_trial=heard.append)
    assert [t.number for t in found] == [0, 1, 3, 4, 5]
    assert [t.state for t in heard] == ["complete"] * 2 + ["failed"] + ["complete"] * 3


def test_a_nan_in_the_model_fails_the_trial_alone(
    problem: Problem, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    was = RunningModel.logits

    def logits(self: RunningModel, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return was(self, hidden) * (math.nan if len(calls) == 1 else 1.0)

    monkeypatch.setattr(RunningModel, "logits", logits)
    assert [t.number for t in blackbox(problem, direction, LAYERS, Draws(3))] == [1, 2]


# Journals.


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run" / "trials.log"
    assert not list(tmp_path.rglob("worker-*")), "a process that has ended left its file"


def test_a_journal_is_gone_on_with(problem: Problem, direction: Direction, journal: Path) -> None:
    whole = blackbox(problem, direction, LAYERS, Draws(9, seed=4))
    kept = blackbox(problem, direction, LAYERS, Draws(9, storage=journal, seed=4))
    assert params(kept) == params(whole)
    heard: list[Trial] = []
    again = blackbox(problem, direction, LAYERS, Draws(9, storage=journal, seed=4), on_trial=heard.append)
    assert not heard
    assert params(again) == params(whole)
    for a, b in zip(again, whole, strict=True):
        assert a.seen is not None
        assert b.seen is not None
        assert np.array_equal(a.seen.odds, b.seen.odds)
        assert a.spec == b.spec


def test_an_interrupted_trial_is_tried_again(problem: Problem, direction: Direction, journal: Path) -> None:
    """What was finished is kept, what was running is done again, and the run ends as it would have ended."""
    def run(storage: Path | None, stop: int = -1) -> tuple[list[Trial], list[Trial]]:
        heard: list[Trial] = []

        def judge(spec: EditSpec, directions: dict[str, Direction]) -> tuple[float, float]:
            if len(heard) == stop:
                raise KeyboardInterrupt
            return by_numbers(spec, directions)

        return blackbox(problem, direction, LAYERS, Draws(8, storage=storage), judge=judge, on_trial=heard.append), heard

    with pytest.raises(KeyboardInterrupt):
        run(journal, 5)
    found, heard = run(journal)
    assert len(heard) == 3
    assert params(found) == params(run(None)[0])
    assert [t.number for t in found] == [0, 1, 2, 3, 4, 6, 7, 8]


def test_a_line_that_was_not_finished_is_cut_off(problem: Problem, direction: Direction, journal: Path) -> None:
    blackbox(problem, direction, LAYERS, Draws(3, storage=journal), judge=by_numbers)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 6, "tri')
    assert len(blackbox(problem, direction, LAYERS, Draws(3, storage=journal), judge=by_numbers)) == 3
    journal.write_bytes(whole[:-7])  # the last trial's end
    found = blackbox(problem, direction, LAYERS, Draws(3, storage=journal), judge=by_numbers)
    assert params(found) == params(blackbox(problem, direction, LAYERS, Draws(3), judge=by_numbers))


def test_another_search_does_not_go_on_with_it(problem: Problem, direction: Direction, folder: Path, journal: Path) -> None:
    blackbox(problem, direction, LAYERS, Draws(2, storage=journal), judge=by_numbers)
    other = pico.a_direction(folder, seed=9)
    for changed, says in (({"direction": other}, "direction"), ({"layers": [0, 1]}, "layers"),
                          ({"draws": Draws(2, journal, seed=7)}, "seed")):  # fmt: skip
        told: dict[str, Any] = {"direction": direction, "layers": LAYERS, "draws": Draws(2, journal), **changed}
        with pytest.raises(UsageError, match=f"another search: .*{says}"):
            blackbox(problem, judge=by_numbers, **told)


def test_a_worker_lives_as_long_as_its_study_is_open(journal: Path) -> None:
    """And one that was refused leaves nothing behind."""
    from weightsmith.search.study import SharedStudy

    with SharedStudy(Draws(3, journal), {"a": 1}) as one, SharedStudy(Draws(3, journal), {"a": 1}) as two:
        assert (two._lives(one.me), one._lives(two.me)) == (True, True)
        with pytest.raises(UsageError, match="a differs"), SharedStudy(Draws(3, journal), {"a": 2}):
            pass
        assert len(list(journal.parent.rglob("worker-*"))) == 2
    assert not two._lives(one.me)
    assert not list(journal.parent.rglob("worker-*"))


def share(folder: str, journal: str, dies: int, out: Any = None) -> None:
    """A process that works on a study; it kills itself at its trial ``dies``."""
    model = load(open_checkpoint(folder), pico.CPU)
    calls: list[int] = []

    def judge(spec: EditSpec, directions: dict[str, Direction]) -> tuple[float, float]:
        calls.append(1)
        if len(calls) == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if out is not None:
            out.put(len(calls))
        return by_numbers(spec, directions)

    blackbox(a_problem(model, 4), pico.a_direction(Path(folder), seed=3), LAYERS, Draws(24, storage=Path(journal)), judge=judge)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_two_processes_share_a_study_and_one_is_killed(
    model: RunningModel, folder: Path, direction: Direction, tmp_path: Path
) -> None:
    journal = tmp_path / "trials.log"
    spawn = multiprocessing.get_context("spawn")
    out = spawn.Queue()
    other = spawn.Process(target=share, args=(str(folder), str(journal), 6, out))
    other.start()
    out.get(timeout=120)  # it is at work
    mine: list[Trial] = []

    def judge(spec: EditSpec, directions: dict[str, Direction]) -> tuple[float, float]:
        if not mine:
            other.join(120)
        return by_numbers(spec, directions)

    found = blackbox(a_problem(model, 4), direction, LAYERS, Draws(24, storage=journal), judge=judge, on_trial=mine.append)
    assert other.exitcode == -signal.SIGKILL
    assert len(found) == 24  # theirs, mine, and the one that was running when it died
    assert len(mine) < 24
    assert len({repr(t.setting) for t in found}) == 24
    assert not list(tmp_path.rglob("worker-*"))


# The benchmark's baseline.


def test_the_baseline_counts_and_repeats(model: RunningModel) -> None:
    file = Path(__file__).parents[1] / "benchmarks" / "search" / "baseline.py"
    spec = importlib.util.spec_from_file_location("baseline", file)
    assert spec is not None
    assert spec.loader is not None
    baseline = importlib.util.module_from_spec(spec)
    sys.modules["baseline"] = baseline  # its dataclasses look themselves up there
    spec.loader.exec_module(baseline)
    assert [baseline.refuses(x) for x in ("I’m sorry.", " ", "I  cannot", "Take two eggs.")] == [True, True, True, False]
    harmful, harmless = [f"take the {w}" for w in WORDS[:6]], [f"tell of the {w}" for w in WORDS[:5]]
    found, again = (baseline.run_baseline(model, harmful, harmless, 4, 3, 8) for _ in range(2))
    assert [(t.spec, t.refusals, t.kl) for t in found.trials] == [(t.spec, t.refusals, t.kl) for t in again.trials]
    assert (found.prefilled, found.generated) == (again.prefilled, again.generated)
    assert found.generated <= 5 * 6 * 8
    # the base's two passes and the extraction, then two a trial
    each = {t.prefilled for t in found.trials}
    assert len(each) == 1
    assert found.prefilled > 5 * each.pop()
    assert [t.kl for t in found.front] == sorted(t.kl for t in found.front)
    for t in found.trials:
        assert any(f.kl <= t.kl and f.refusals <= t.refusals for f in found.front)
        first = compile_hooks(model, t.spec, t.directions)
        assert first
        states = [answer_states(model, [Continuation(tuple(baseline._encoded(model, [p])[0]), (9,))]) for p in harmless]
        base = torch.log_softmax(model.logits(torch.cat([s[0] for s in states])), -1)
        with steering(model, first):
            states = [answer_states(model, [Continuation(tuple(baseline._encoded(model, [p])[0]), (9,))]) for p in harmless]
        edited = torch.log_softmax(model.logits(torch.cat([s[0] for s in states])), -1)
        assert t.kl == pytest.approx(float((base.exp() * (base - edited)).sum(-1).mean()), rel=1e-3, abs=1e-6)


# Refusals.


def test_what_makes_no_sense_is_refused(model: RunningModel, problem: Problem, direction: Direction) -> None:
    with pytest.raises(RecipeError, match="a trial and a layer"):
        blackbox(problem, direction, LAYERS, Draws(0))
    with pytest.raises(RecipeError, match="no layer 7"):
        blackbox(problem, direction, [0, 7], Draws(1))
    above = replace(problem, passes=Passes(model, start=2))
    with pytest.raises(UsageError, match="layer 1 lies below 2"):
        blackbox(above, direction, [1, 2], Draws(1))


def test_without_optuna_it_says_what_to_install(
    problem: Problem, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "weightsmith.search.study", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"weightsmith\[search\]"):
        blackbox(problem, direction, LAYERS, Draws(1))
