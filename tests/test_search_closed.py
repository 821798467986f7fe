"""The front and its knee; closed forms against what they promise; repetitions found and unlearned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pico
import searching
from weightsmith.checkpoint import open_checkpoint
from weightsmith.direction import Direction
from weightsmith.edits import LinearOutput
from weightsmith.errors import EditError, NonFinite
from weightsmith.features.extract import Activations, Side
from weightsmith.features.prompts import prompt_sets
from weightsmith.features.recipe import load_feature
from weightsmith.features.select import compile_hooks
from weightsmith.jobs.edit import find_directions, load_edit
from weightsmith.jobs.search import SearchOptions, load_search, search_plan
from weightsmith.runtime import RunningModel, generate, load, steering
from weightsmith.search import closed, fluent
from weightsmith.search.fluent import Rounds, repeats, unlearn
from weightsmith.search.front import hypervolume, knee, pareto
from weightsmith.search.gradient import Descent, Snapshot
from weightsmith.search.objectives import Problem
from weightsmith.search.run import Search
from weightsmith.search.space import Space

FIGURE = st.floats(0, 1).map(lambda x: round(x, 2))  # so that ties come about
POINTS = st.lists(st.tuples(FIGURE, FIGURE), max_size=12)
SOME = st.lists(st.tuples(FIGURE, FIGURE), min_size=1, max_size=12)


# -- the front ---------------------------------------------------------------------------------------------


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = pareto(points)
    values = [points[i] for i in front]
    assert len(set(values)) == len(values)
    assert set(values) == {p for p in points if not any(dominates(q, p) for q in points)}
    assert [d for _, d in values] == sorted(d for _, d in values)
    assert all(points.index(points[i]) == i for i in front), "of equal ones the first"


@given(POINTS, SOME)
def test_hypervolume_never_falls_and_knows_no_order(points: list[tuple[float, float]], more: list[tuple[float, float]]) -> None:
    before = hypervolume(points, 0.5)
    both = hypervolume([*points, *more], 0.5)
    assert 0 <= before <= both + 1e-12
    assert both <= 1 + 1e-12
    assert hypervolume([*more, *points][::-1], 0.5) == pytest.approx(both, abs=1e-12)
    if before > 1 - 1e-9:
        assert any(e >= 1 and d <= 0 for e, d in points)
    assert hypervolume([*points, (1.0, 0.0)], 0.5) == pytest.approx(1)


@given(SOME, st.floats(0.05, 2), st.floats(0.05, 2))
def test_hypervolume_is_the_area(points: list[tuple[float, float]], reference: float, whole: float) -> None:
    """Counted on a fine grid."""
    steps = (np.arange(200) + 0.5) / 200
    effect, damage = steps[:, None] * whole, steps[None, :] * reference
    covered = np.zeros((200, 200), bool)
    for e, d in points:
        covered |= (effect <= e) & (damage >= d)
    assert hypervolume(points, reference, whole) == pytest.approx(covered.mean(), abs=0.04)


def test_hypervolume_by_hand_and_at_the_ends() -> None:
    assert hypervolume([], 0.5) == 0
    assert hypervolume([(0.5, 0.25)], 0.5) == 0.25
    assert hypervolume([(0.5, 0.25), (1.0, 0.25)], 0.5) == 0.5
    assert hypervolume([(0.5, 0.1), (0.8, 0.3)], 0.5) == pytest.approx((0.5 * 0.4 + 0.3 * 0.2) / 0.5)
    for outside in ((0.9, 0.5), (0.9, 7.0), (-0.3, 0.1), (0.0, 0.0)):
        assert hypervolume([outside], 0.5) == 0, outside
    assert hypervolume([(3.0, -1e-9)], 0.5) == 1
    assert hypervolume([(1.0, 0.0)], 0.0) == 0
    assert hypervolume([(1.0, 0.0)], 0.5, 0.0) == 0


@given(SOME)
def test_the_knee_lies_on_the_front(points: list[tuple[float, float]]) -> None:
    assert knee(points) in pareto(points)


SHARES = st.lists(st.integers(1, 89).map(lambda x: x / 100), min_size=1, max_size=6)


@given(SHARES, SHARES)
def test_the_knee_of_an_l_is_its_corner(up: list[float], along: list[float]) -> None:
    """A front that rises at (nearly) no damage, and then costs a lot for (nearly) nothing more."""
    rising = [(0.8 * e, 0.001 * e) for e in up]
    flat = [(0.9 + 0.01 * d, 0.01 + d) for d in along]
    points = [(0.0, 0.0), *rising, (0.9, 0.01), *flat, (0.95, 1.0)]
    assert points[knee(points) or 0] == (0.9, 0.01)
    scaled = [(40 * e - 3, 1e-3 * d + 1) for e, d in points]
    assert knee(scaled) == knee(points)


def test_the_knee_of_few_points() -> None:
    assert knee([]) is None
    assert knee([(0.3, 0.2)]) == 0
    assert knee([(0.9, 0.2), (0.3, 0.1)]) == 0
    assert knee([(0.3, 0.1), (0.9, 0.2)]) == 1
    assert knee([(0.3, 0.1), (0.3, 0.2), (0.2, 0.4)]) == 0


# -- closed forms ------------------------------------------------------------------------------------------


def acts(n: int, width: int, seed: int = 0, strong: Any = None) -> tuple[Direction, Activations]:
    """Both sides of ``n`` prompts in two layers, one apart from the other along a fixed vector; ``strong`` axes of energy."""
    dice = np.random.default_rng(seed)
    apart = dice.standard_normal((2, width)) * 0.7
    base = dice.standard_normal((2, n, 2, width))
    if strong is not None:
        base += dice.standard_normal((2, n, 2, len(strong))) * 50 @ strong
    base[0] += apart
    sides = [Side(b.astype(np.float32), np.linalg.norm(b, axis=-1).astype(np.float32)) for b in base]
    means = [b.mean(0).astype(np.float32) for b in base]
    made = Direction((means[0] - means[1]), np.ones(2, np.float32), means[0], means[1], META)
    return made, Activations(sides[0], sides[1], paired=False)


@pytest.fixture(scope="module", autouse=True)
def meta(folder: Path) -> None:
    """The metadata of some direction: closed forms copy it."""
    global META
    META = pico.a_direction(folder).meta


META: Any = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searching.build(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> RunningModel:
    return load(open_checkpoint(str(folder)), pico.CPU)


def test_null_space_reads_nothing_on_neutral_prompts() -> None:
    direction, seen = acts(12, 64)
    readers = closed.null_space(direction, seen)
    for k in range(2):
        unit = direction.vectors[k] / np.linalg.norm(direction.vectors[k])
        shows, lacks = seen.shows.means[:, k].astype(float), seen.lacks.means[:, k].astype(float)
        assert np.abs(lacks @ unit).mean() > 0.3, "the direction itself reads something there"
        assert np.abs(lacks @ readers[k]).max() < 0.05 * np.abs(lacks @ unit).max()
        np.testing.assert_allclose(shows @ readers[k], shows @ unit, atol=0.05 * np.abs(shows @ unit).max())


@pytest.mark.parametrize(("n", "width"), [(12, 64), (40, 16)])
def test_null_space_is_the_least_of_its_objective(n: int, width: int) -> None:
    direction, seen = acts(n, width, 1)
    readers = closed.null_space(direction, seen)
    for k in range(2):
        unit = direction.vectors[k].astype(float) / np.linalg.norm(direction.vectors[k].astype(float))
        shows, lacks = seen.shows.means[:, k].astype(float), seen.lacks.means[:, k].astype(float)
        energy = shows.T @ shows + lacks.T @ lacks
        penalty = 0.01 * np.trace(energy) / width
        primal = np.linalg.solve(energy + penalty * np.eye(width), shows.T @ shows @ unit + penalty * unit)
        np.testing.assert_allclose(readers[k], primal, atol=1e-9)


def test_spectral_leaves_nothing_along_strong_neutral_axes() -> None:
    width, dice = 48, np.random.default_rng(3)
    strong = np.linalg.qr(dice.standard_normal((width, 3)))[0].T
    direction, seen = acts(30, width, 2, strong)
    left = closed.spectral(direction, seen)
    assert left.meta.method == "spectral residual"
    assert left.digest() != direction.digest()
    for k in range(2):
        before, after = direction.vectors[k].astype(float), left.vectors[k].astype(float)
        assert np.abs(strong @ before).max() > 1, "there was something to take out"
        assert np.abs(strong @ after).max() < 0.01 * np.abs(strong @ before).max()
        weak = np.eye(width) - strong.T @ strong
        assert np.linalg.norm(weak @ after) > 0.3 * np.linalg.norm(weak @ before)
        assert np.linalg.norm(after) < np.linalg.norm(before)


# -- candidates on a model, and their files ----------------------------------------------------------------


def a_search(folder: Path, model: RunningModel, where: Path, contrast: str, kind: str, **wishes: Any) -> tuple[Search, Path]:
    """A search that has read its prompts, with the plan that the job would give it."""
    feature = searching.recipe(where, contrast)
    spec, home = load_feature(str(feature))
    small = {k: v for k, v in searching.SMALL.items() if not k.startswith("confirm")}
    plan = search_plan(SearchOptions(kind=kind, **(small | wishes)), pico.CPU, personas=contrast in ("personas", "pairs"))
    found = Search(replace(model, notes=[]), spec, prompt_sets(spec, home), plan)
    found.gather()
    return found, feature


@pytest.mark.parametrize(("contrast", "kind"), [("prompt_sets", "remove"), ("personas", "remove"), ("pairs", "add")])
def test_every_candidate_has_a_form_as_hooks_and_does_something(
    folder: Path, model: RunningModel, tmp_path: Path, contrast: str, kind: str
) -> None:
    search, _ = a_search(folder, model, tmp_path, contrast, kind)
    assert search.material is not None
    made = closed.candidates(model, search.material, search.layers)
    names = {m.method for m in made}
    all_kinds = {"single layer", "COSMIC", "projected", "biprojected", "spectral residual", "LEACE", "null space"}
    assert names == (all_kinds if kind == "remove" else {"single layer"})
    base = search.problem.base
    assert base is not None
    for m in made:
        if m.method == "null space" and contrast == "personas":  # what it reads there points away from what it writes
            with pytest.raises(EditError, match="do not agree"):
                compile_hooks(model, m.spec, m.directions)
            assert closed.look(model, search.problem, m) is None
            assert "do not agree" in m.fault
            continue
        hooks = compile_hooks(model, m.spec, m.directions)
        assert hooks
        assert {h.layer for h in hooks if hasattr(h, "layer")} <= set(search.layers)
        seen = closed.look(model, search.problem, m)
        assert seen is not None, m.method
        assert not m.fault
        assert seen.damage.mean() > 1e-6, m.method
        assert np.abs(seen.odds - base.odds).max() > 1e-3, m.method
    best = closed.screened(model, search.problem, made, search.loss, 3, 2)
    assert len(best) == 2
    everything = sorted(search.loss(s) for m in made if (s := closed.look(model, search.problem, m, 3)) is not None)
    few = [search.loss(s) for m in best if (s := closed.look(model, search.problem, m, 3)) is not None]
    assert sorted(few) == pytest.approx(everything[:2])
    assert [search.loss(m.seen) for m in best if m.seen] == sorted(search.loss(m.seen) for m in best if m.seen)


def test_what_was_not_possible_is_noted_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that can't hold it, and logits that are NaN: the others are candidates all the same."""
    behind = load(open_checkpoint(str(pico.build("gemma2", tmp_path / "model", num_hidden_layers=searching.DEPTH))), pico.CPU)
    search, _ = a_search(tmp_path, behind, tmp_path / "f", "prompt_sets", "remove")
    see, now = search.problem.see, [""]
    hooks_of = closed.compile_hooks

    def compiled(model: RunningModel, spec: Any, directions: Any) -> Any:
        now[0] = "bad" if spec.steps[0].kind == "projected" else ""
        return hooks_of(model, spec, directions)

    def spoiled(**more: Any) -> Any:
        if now[0]:
            raise NonFinite("the edited model's logits hold NaN or infinity")
        return see(**more)

    monkeypatch.setattr(closed, "compile_hooks", compiled)
    monkeypatch.setattr(search.problem, "see", spoiled)
    assert search.floor()
    (projected, leace, null) = [n for n in search.notes if n.startswith("closed form not possible: ")]
    assert "projected (layer" in projected
    assert projected.endswith(": the edited model's logits hold NaN or infinity")
    for note, method in ((leace, "LEACE"), (null, "null space")):
        assert note.startswith(f"closed form not possible: {method} (")
        assert "gemma2 model has a norm after every writer" in note
    assert not any(f.point.what.startswith(("LEACE", "null space", "projected")) for f in search.found)


def test_leace_takes_out_what_it_reads(folder: Path, model: RunningModel, tmp_path: Path) -> None:
    search, _ = a_search(folder, model, tmp_path, "prompt_sets", "remove")
    assert search.material is not None
    made = closed.candidates(model, search.material, search.layers)
    leace = next(m for m in made if m.method == "LEACE")
    (direction,) = leace.directions.values()
    hooks = [h for h in compile_hooks(model, leace.spec, leace.directions) if isinstance(h, LinearOutput)]
    assert len(hooks) == 2 * len(leace.spec.steps[0].layers), "both writers of each layer"
    inside = search.material.activations
    for layer in leace.spec.steps[0].layers:
        shows, lacks = (getattr(inside, s).means[:, layer].astype(float) for s in ("shows", "lacks"))
        delta = shows.mean(0) - lacks.mean(0)
        mine = [h for h in hooks if f".{layer}." in h.module]
        assert len(mine) == 2
        for hook in mine:
            read, write = hook.read[:, 0], hook.write[:, 0]
            assert float(write @ delta) == pytest.approx(-np.linalg.norm(write) * np.linalg.norm(delta), rel=1e-5)
            assert float(read @ write) == pytest.approx(-1, abs=1e-5)
            erased = [x + (x @ read)[:, None] * write for x in (shows, lacks)]
            gap = erased[0].mean(0) - erased[1].mean(0)
            assert np.linalg.norm(gap) < 1e-4 * np.linalg.norm(delta), "no linear probe finds it"
            assert float(np.abs(erased[0] @ read).max()) < 1e-4 * float(np.abs(shows @ read).max())
    assert direction.readers is not None
    assert not np.allclose(direction.readers[0] / np.linalg.norm(direction.readers[0]),
                           direction.vectors[0] / np.linalg.norm(direction.vectors[0]), atol=0.05)  # fmt: skip


@pytest.mark.parametrize(("contrast", "kind"), [("prompt_sets", "remove"), ("personas", "add"), ("texts", "remove")])
def test_edits_from_their_files_do_what_the_search_saw(
    folder: Path, model: RunningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contrast: str, kind: str
) -> None:
    search, feature = a_search(folder, model, tmp_path / "f", contrast, kind)
    searching.sought(folder, feature, tmp_path / "run", kind=kind, confirm=0)
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))  # directions come from beside the Edit
    record = load_search(tmp_path / "run")
    kept = json.loads((tmp_path / "run/state.json").read_text())["seen"]
    base = search.problem.base
    assert base is not None
    assert {p.stage for p in record.points} == {"closed form", "gradient"}
    for point in record.points:
        file = tmp_path / "run" / point.edit
        spec = load_edit(file)
        hooks = compile_hooks(model, spec, find_directions(spec, file.parent, []))
        with torch.no_grad(), steering(model, hooks):
            seen = search.problem.see()
        odds = np.array(kept[point.name]["odds"])
        moved = float(np.abs(odds - base.odds).max())
        np.testing.assert_allclose(seen.odds, odds, atol=2e-3 * max(1.0, moved), err_msg=f"{point.name} {point.what}")
        effect = float((base.odds - seen.odds).mean()) * (1 if kind == "remove" else -1)
        assert effect == pytest.approx(point.effect, abs=2e-3 * max(1.0, moved))
        assert float(seen.damage.mean()) == pytest.approx(point.damage, rel=0.02, abs=1e-5)
        if point.chance is not None:
            assert point.chance == pytest.approx(float((1 / (1 + np.exp(-odds))).mean()))


# -- repetitions -------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=14), st.integers(1, 4))
def test_repeats_are_the_ends_of_groups_said_before(answer: list[int], gram: int) -> None:
    slow = [at for at in range(len(answer)) if at >= gram - 1
            and any(answer[b - gram + 1 : b + 1] == answer[at - gram + 1 : at + 1] for b in range(gram - 1, at))]  # fmt: skip
    assert repeats(answer, gram) == slow


def test_repeats_by_hand() -> None:
    assert repeats([1, 2, 3, 1, 2, 3, 4]) == [5]
    assert repeats([7] * 5) == [3, 4]
    assert repeats([1, 2, 3, 2, 1]) == []
    assert repeats([]) == []


def log_chances(model: RunningModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probability of each of the answer's tokens."""
    hidden = model.stack(input_ids=torch.tensor([[*prompt, *answer]])).last_hidden_state[0]
    found = torch.log_softmax(model.logits(hidden[len(prompt) - 1 : -1]), -1)
    return found[range(len(answer)), answer]


def test_unlearning_makes_repetitions_unlikely(
    folder: Path, model: RunningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, _ = a_search(folder, model, tmp_path, "personas", "add")
    assert search.material is not None
    problem = search.problem
    space = Space(model, "add", search.material.direction, search.layers, search.material.source)
    values = space.begin(0.3)
    assert problem.base is not None
    begin = Snapshot(values, problem.base, 0.0, 0)
    how = Descent(weights=(0.0,), turn=0.01, rate=0.0)
    rounds = Rounds(rounds=1, tokens=40, steps=12, prompts=8, weight=30.0, fluent=-1.0)
    asked = [problem.effect.items[i].tree.prompt for i in problem.effect.train]
    with torch.no_grad(), space.hooked(values):
        said = generate(model, asked, rounds.tokens)
        before = [log_chances(model, list(p), a) for p, a in zip(asked, said, strict=True)]
    marks = [repeats(a) for a in said]
    assert sum(map(len, marks)) > 20, "a pico model repeats itself"
    (after_round,) = unlearn(problem, space, begin, how, rounds)
    assert "repetitions" in after_round.what
    torch.testing.assert_close(values.vectors, space.begin(0.3).vectors)  # what it began with is left alone
    with torch.no_grad(), space.hooked(after_round.values):
        after = [log_chances(model, list(p), a) for p, a in zip(asked, said, strict=True)]
    marked = [float(torch.cat([x[m] for x, m in zip(side, marks, strict=True)]).exp().mean()) for side in (before, after)]
    assert marked[1] < 0.7 * marked[0]
    monkeypatch.setattr(fluent, "repeats", lambda _: [])  # with nothing marked, other losses move it: not so far down
    (unmarked,) = unlearn(problem, space, begin, how, rounds)
    with torch.no_grad(), space.hooked(unmarked.values):
        others = torch.cat([log_chances(model, list(p), a)[m] for p, a, m in zip(asked, said, marks, strict=True)])
    assert marked[1] < 0.8 * float(others.exp().mean())


def an_addition(folder: Path, model: RunningModel, where: Path) -> tuple[Problem, Space, Snapshot]:
    """What unlearning begins with."""
    search, _ = a_search(folder, model, where, "personas", "add")
    assert search.material is not None
    assert search.problem.base is not None
    space = Space(model, "add", search.material.direction, search.layers, search.material.source)
    return search.problem, space, Snapshot(space.begin(0.3), search.problem.base, 0.1, 0)


def test_only_what_repeats_is_passed_to_be_unlearned(
    folder: Path, model: RunningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers up to their last repetition, and none without one; the loss is that of the whole answers."""
    monkeypatch.setattr(fluent, "LIKELY", -100.0)
    problem, space, begin = an_addition(folder, model, tmp_path)
    asked = [list(problem.effect.items[i].tree.prompt) for i in problem.effect.train[:3]]
    said = [[5, 6, 7, 5, 6, 7, 8, 9, 10], [], [11, 12, 13, 14]]
    loops = fluent._Loops.of(problem, asked, said)
    assert loops.places == [0, None]
    assert (loops.marked, loops.lengths) == ([[5]], [9])
    assert [t.tokens for t in loops.rows.trees] == [(5, 6, 7, 5, 6, 7)]
    work = fluent._Unlearning(problem, space, Descent(turn=0.01), Rounds(weight=2.0), 0.1, begin.values.copy())
    with space.hooked(work.values):
        loss, _ = problem.passes.each(loops.rows, [0], work._repeating(loops, 2), work.params)
        with torch.no_grad():
            chance = float(log_chances(model, asked[0], said[0])[5].exp())
    assert loss == pytest.approx(-np.log1p(-chance) / 9 * 2.0 / 2, rel=1e-3)


def test_no_step_is_taken_where_the_gradient_is_not_finite(
    folder: Path, model: RunningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, space, begin = an_addition(folder, model, tmp_path)
    call, count = searching.spoiled(problem.effect_loss, set(range(1, 99)))
    monkeypatch.setattr(problem, "effect_loss", call)
    (found,) = unlearn(problem, space, begin, Descent(turn=0.01), Rounds(1, 8, 3, fluent=-1.0))
    assert count == [3]
    torch.testing.assert_close(found.values.vectors, begin.values.vectors)


def test_nothing_said_is_nothing_to_unlearn(
    folder: Path, model: RunningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, space, begin = an_addition(folder, model, tmp_path)
    monkeypatch.setattr(fluent, "generate", lambda _m, asked, *_: [[] for _ in asked])
    found = unlearn(problem, space, begin, Descent(), Rounds(2, 8, 2))
    assert len(found) == 2


def test_it_is_unlearned_no_longer_than_answers_loop_and_the_most_fluent_round_is_offered(
    folder: Path, model: RunningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, space, begin = an_addition(folder, model, tmp_path)
    asked, n = [0], min(8, len(problem.effect.train))

    def looping(_text: str) -> str | None:  # of n answers each time all loop, then two, one, none
        asked[0] += 1
        turn, place = divmod(asked[0] - 1, n)
        return "loop" if place < (n, 2, 1, 0)[turn] else None

    monkeypatch.setattr(fluent, "why_degenerate", looping)
    found = unlearn(problem, space, begin, Descent(turn=0.01), Rounds(9, 8, 1, prompts=8))
    assert [begin.loops, *(s.loops for s in found)] == [1.0, 2 / n, 1 / n, 0.0]
    assert fluent.most_fluent([begin, *found], problem) is found[-1]
    found[0].loops = 0.0
    losses = [problem.loss_of(s.seen) for s in (found[0], found[-1])]
    assert fluent.most_fluent([begin, *found], problem) is (found[0] if losses[0] <= losses[1] else found[-1])


def test_only_what_came_of_the_unlearning_is_offered(
    folder: Path, model: RunningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fluent, "why_degenerate", lambda _: "loop")
    search, _ = a_search(folder, model, tmp_path, "personas", "add")
    search.plan = replace(search.plan, rounds=Rounds(2, 8, 1, prompts=4), factors=(0.5,))
    search.floor()
    search.descend()
    points = [p for p in search.points() if p.stage == "gradient"]
    offered = [p for p in points if not p.looping]
    assert len(offered) == 2  # the best round, and its half
    assert offered[1].what == f"{offered[0].what} times 0.5"
    assert not any(p.front for p in points if p.looping)
    assert any("degenerate of the answers" in n for n in search.notes)
    # a run that is gone on with may find another round the best: what is offered is settled anew
    once = next(f for f in search.found if f.point.what == next(p.what for p in points if p.looping))
    step = int(once.point.what.split("step ")[1].split()[0])
    assert once.point.weight is not None
    what = once.point.what.partition(f"step {step}")[2].strip()
    search._offer(Snapshot(None, once.seen, once.point.weight, step, what))  # type: ignore[arg-type]
    assert [p.what for p in search.points() if p.stage == "gradient" and not p.looping] == [once.point.what]
    search._offer(Snapshot(None, once.seen, 77.0, 1))  # type: ignore[arg-type]  # one that no Edit could hold changes nothing
    assert [p.what for p in search.points() if p.stage == "gradient" and not p.looping] == [once.point.what]
