"""Gradients through shared beginnings, branches and micro-batches against plain ones, and the descent that uses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pico
from test_search_space import a_problem
from trees import Load, cases, grown, loader, nodes, tokens, unchanged
from weightsmith.errors import NonFinite, OutOfMemory
from weightsmith.runtime import RunningModel
from weightsmith.search import gradient, passes
from weightsmith.search.gradient import Descent, Sweep, _Dice, sweep
from weightsmith.search.objectives import Problem
from weightsmith.search.passes import Passes, Tree
from weightsmith.search.space import Space, Values

SOME = ["llama", "gemma2", "gemma3", "gpt2", "gpt_oss", "gpt_neox", "phi3", "mixtral", "deepseek_v3", "qwen3_next", "lfm2",
        "cohere2", "llama4_tuned", "gemma4_deep", "mistral_window"]  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return loader(tmp_path_factory.mktemp("pico"))


def a_space(model: RunningModel, kind: Any = "remove", start: int = 0) -> tuple[Space, Values]:
    """All layers from ``start`` on, at random strengths (doses) and directions."""
    space = Space(model, kind, pico.a_direction(model.checkpoint), range(start, len(model.blocks)), None)
    dice = torch.Generator().manual_seed(1)
    values = space.begin(0.4)
    if kind == "remove":
        values.strengths = 0.2 + 0.7 * torch.rand(values.strengths.shape, generator=dice)
    else:
        values.vectors = 0.05 * torch.randn(values.vectors.shape, generator=dice)
    space.normalise(values)
    return space, values


def parameters(values: Values) -> list[torch.Tensor]:
    return [values.strengths.requires_grad_(), values.vectors.requires_grad_()]


def weights(trees: list[Tree]) -> list[torch.Tensor]:
    """How much each node counts, so that every one of them matters, and differently."""
    dice = torch.Generator().manual_seed(2)
    return [torch.rand(len(t.tokens), generator=dice) for t in trees]


def weighed(model: RunningModel, trees: list[Tree]) -> Any:
    """The ``use`` of a pass that sums what :func:`plainly` sums."""
    shares = weights(trees)

    def use(which: list[int], states: list[torch.Tensor]) -> torch.Tensor:
        total = model.logits(states[0]).new_zeros(())
        for i, s in zip(which, states, strict=True):
            logprobs = torch.log_softmax(model.logits(s), -1)
            total = total + (shares[i].to(total.device) * logprobs[list(trees[i].reads), list(trees[i].tokens)]).sum()
        return total

    return use


def plainly(model: RunningModel, space: Space, values: Values, trees: list[Tree]) -> tuple[float, list[torch.Tensor]]:
    """Value and gradients by one graph of plain passes, one for each node."""
    params = parameters(values)
    with space.hooked(values):
        parts = [(w * nodes(model, t)).sum() for w, t in zip(weights(trees), trees, strict=True)]
    whole = torch.stack(parts).sum()
    return float(whole.detach()), list(torch.autograd.grad(whole, params))


def agree(found: tuple[float, list[torch.Tensor]], expected: tuple[float, list[torch.Tensor]], rel: float = 1e-4) -> bool:
    """Whether value and gradients are the same, relative to their size."""
    near = [float((a - b).norm()) <= rel * float(b.norm()) for a, b in zip(found[1], expected[1], strict=True)]
    return abs(found[0] - expected[0]) <= rel * abs(expected[0]) and all(near)


@pytest.mark.parametrize("kind", ["remove", "add"])
@pytest.mark.parametrize("name", SOME)
def test_gradients_are_those_of_plain_passes(running: Load, name: str, kind: str) -> None:
    model = running(name)
    picked = ("shared", "long") if kind == "remove" else ("long shared",)
    for what in picked:
        trees = cases(2)[what]
        for start in (0, len(model.blocks) - 1):
            space, values = a_space(model, kind, start)
            params = parameters(values)
            expected = plainly(model, space, values, trees)
            assert all(float(g.norm()) > 1e-3 for g in expected[1])
            for micro in (45,) if start else (1, 45, 1024):
                own = Passes(model, start)
                own.micro = micro
                rows = own.prepare(trees)
                with unchanged(model), space.hooked(values):
                    found = own.each(rows, range(len(trees)), weighed(model, trees), params)
                assert agree(found, expected), (what, start, micro)


def test_what_acts_in_the_beginning_counts(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the way back through the shared beginning the gradients are others; so are they with it gone once too often."""
    model, trees = running("llama"), cases(2)["long shared"]
    space, values = a_space(model)
    expected, own = plainly(model, space, values, trees), Passes(model)
    rows = own.prepare(trees)
    assert len(rows.prefix) == 24

    def found() -> tuple[float, list[torch.Tensor]]:
        with space.hooked(values):
            return own.each(rows, range(len(trees)), weighed(model, trees), parameters(values))

    assert agree(found(), expected)
    right = passes._cut
    monkeypatch.setattr(passes, "_cut", lambda cache, start: ([], right(cache, start)[1]))
    without = found()
    assert without[0] == pytest.approx(expected[0], rel=1e-4)
    assert not agree(without, expected, 0.01)


def test_some_trees_only_and_what_they_do_not_reach(running: Load) -> None:
    model, trees = running("llama"), cases(2)["shared"]
    space, values = a_space(model)
    expected = plainly(model, space, values, trees)
    own = Passes(model)
    rows, use = own.prepare(trees), weighed(model, trees)
    aside = torch.ones(3, requires_grad=True)
    with space.hooked(values):
        halves = [own.each(rows, pick, use, [*parameters(values), aside]) for pick in ([0, 3], [2, 1])]
    total = halves[0][0] + halves[1][0], [a + b for a, b in zip(halves[0][1][:2], halves[1][1][:2], strict=True)]
    assert agree(total, expected)
    assert halves[0][1][2].tolist() == [0, 0, 0]
    with space.hooked(values):
        value, none = own.each(rows, [0, 1, 2, 3], use)
    assert none == []
    assert value == pytest.approx(expected[0], rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gpt_neox_serial"])
def test_gradients_in_double_precision_by_finite_differences(tmp_path: Any, name: str) -> None:
    """The whole way in fp64 (in these families: other norms go down to fp32): a parameter that acts on every token, the shared
    beginning's too."""
    model = loader(tmp_path)(name)
    model.model.double()
    model = dataclasses.replace(model, dtype=torch.float64)
    trees = cases(3)["shared"]
    own = Passes(model, 1)
    own.micro = 20
    rows = own.prepare(trees)
    assert len(rows.prefix) == 8
    dice = torch.Generator().manual_seed(4)
    given = torch.randn((2, pico.WIDTH), generator=dice, dtype=torch.float64)
    read = torch.randn(pico.WIDTH, generator=dice, dtype=torch.float64)

    def value(at: torch.Tensor, params: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        def hook(_m: Any, _i: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            changed = first + at[0] * torch.tanh(first @ at[1])[..., None]
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        # in block 1, before its keys are made from it
        handle = next(m for n, m in model.blocks[1].named_modules() if n.endswith(("norm", "ln_1"))).register_forward_hook(hook)
        try:
            return own.each(rows, range(len(trees)), waves, params)
        finally:
            handle.remove()

    def waves(_which: list[int], states: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([torch.sin(s @ read).sum() for s in states]).sum()

    given.requires_grad_()
    (slope,) = value(given, [given])[1]
    assert slope.dtype == torch.float64
    for _ in range(3):
        way = torch.randn(given.shape, generator=dice, dtype=torch.float64)
        with torch.no_grad():
            rise = (value(given + 1e-5 * way, [])[0] - value(given - 1e-5 * way, [])[0]) / 2e-5
        assert float((slope * way).sum()) == pytest.approx(rise, rel=1e-6, abs=1e-7)


# Memory.


def test_no_memory_in_the_middle_leads_to_the_same(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first micro-batch fails, but a later one, when some gradients are summed already; and then the way back."""
    model = dataclasses.replace(running("llama"), notes=[])
    trees = cases(2)["long shared"]
    space, values = a_space(model)
    expected = plainly(model, space, values, trees)
    for fails_at in (1, 2, 3):
        own = Passes(model)
        own.micro = 24
        rows, use, calls = own.prepare(trees), weighed(model, trees), [0]
        right = torch.autograd.grad

        def scarce(*args: Any, calls: list[int] = calls, at: int = fails_at, right: Any = right, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return right(*args, **more)

        monkeypatch.setattr(torch.autograd, "grad", scarce)
        with unchanged(model), space.hooked(values):
            before = sum(len(m._forward_hooks) for m in model.model.modules())
            found = own.each(rows, range(len(trees)), use, parameters(values))
            assert sum(len(m._forward_hooks) for m in model.model.modules()) == before
        monkeypatch.undo()
        assert agree(found, expected), fails_at
        assert own.micro == 12
        assert calls[0] > fails_at
    assert "did not fit" in model.notes[0]


def test_one_row_that_does_not_fit_is_said(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trees = running("llama"), cases(2)["shared"]
    space, values = a_space(model)
    own = Passes(model)
    rows = own.prepare(trees)

    def none(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch.autograd, "grad", none)
    with unchanged(model), pytest.raises(OutOfMemory, match="one row alone"), space.hooked(values):
        own.each(rows, range(len(trees)), weighed(model, trees), parameters(values))
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), space.hooked(values):  # anything else is not taken for it
        own.each(rows, range(len(trees)), weighed(model, trees), parameters(values))


# The objectives' gradients.


def rises(work: Callable[[], tuple[float, list[torch.Tensor]]], params: list[torch.Tensor], slopes: list[torch.Tensor]) -> None:
    """Along random ways, and along the gradient itself, the value rises as the gradients say."""
    dice = torch.Generator().manual_seed(7)
    for k in range(4):
        ways = [torch.randn(p.shape, generator=dice) for p in params] if k else [g.clone() for g in slopes]
        size = float(torch.cat([w.flatten() for w in ways]).norm())
        ends = []
        for side in (1, -1):
            for p, w in zip(params, ways, strict=True):
                p.data.add_(side * 0.01 / size * w)
            ends.append(work()[0])
            for p, w in zip(params, ways, strict=True):
                p.data.sub_(side * 0.01 / size * w)
        said = sum(float((g * w).sum()) for g, w in zip(slopes, ways, strict=True)) / size
        whole = float(torch.cat([g.flatten() for g in slopes]).norm())
        assert (ends[0] - ends[1]) / 0.02 == pytest.approx(said, abs=0.01 * whole)


@pytest.mark.parametrize("kind", ["remove", "add"])
@pytest.mark.parametrize("loss", ["odds", "distil"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_next"])
def test_losses_rise_as_their_gradients_say(running: Load, name: str, loss: Any, kind: Any) -> None:
    model = running(name)
    problem = a_problem(model, kind, loss=loss, margin=20.0 if loss == "odds" else 0.0)
    space, values = a_space(model, kind, 1)
    params = parameters(values)
    for work in (lambda: problem.effect_loss([0, 2, 3], params),
                 lambda: problem.distance_loss(problem.damage, [1, 2], 5.0, params)):  # fmt: skip
        with space.hooked(values):
            _, slopes = work()
            assert float(torch.cat([g.flatten() for g in slopes]).norm()) > 1e-4
            rises(work, params, slopes)


def test_losses_are_means_over_items(running: Load) -> None:
    problem = a_problem(running("llama"))
    space, values = a_space(running("llama"), "remove", 1)
    with torch.no_grad(), space.hooked(values):
        each = [problem.effect_loss([i], [])[0] for i in range(4)]
        assert problem.effect_loss([0, 1, 2, 3], [])[0] == pytest.approx(np.mean(each), rel=1e-5)
        seen = problem.see(train=True)
        assert problem.loss_of(seen) == pytest.approx(np.mean(each), rel=1e-5)
        far = [problem.distance_loss(problem.damage, [i], 3.0, [])[0] for i in range(4)]
        assert problem.distance_loss(problem.damage, [0, 1, 2, 3], 3.0, [])[0] == pytest.approx(np.mean(far), rel=1e-5)
        assert problem.cost_of(seen) == pytest.approx(np.mean(far) / 3.0, rel=1e-4)
    assert len({round(x, 6) for x in each}) == 4


# The descent.


def bytes_of(found: Sweep) -> list[bytes]:
    return [s.values.strengths.numpy().tobytes() + s.values.vectors.numpy().tobytes() for s in found.snapshots]


QUICK = Descent(weights=(0.1, 1.0), steps=12, more=4, batch=2, check=4, rate=0.05, turn=0.02)


@pytest.fixture(scope="module")
def task(running: Load) -> tuple[Problem, Space]:
    model = running("llama")
    return a_problem(model, margin=60.0), a_space(model, "remove", 1)[0]


def test_a_seed_says_everything(task: tuple[Problem, Space]) -> None:
    problem, space = task
    begin = space.begin(0.5)
    first, again = sweep(problem, space, begin, QUICK), sweep(problem, space, begin, QUICK)
    assert bytes_of(first) == bytes_of(again)
    assert first.ticks == again.ticks
    assert [s.seen.odds.tolist() for s in first.snapshots] == [s.seen.odds.tolist() for s in again.snapshots]
    other = sweep(problem, space, begin, dataclasses.replace(QUICK, seed=1))
    assert bytes_of(other) != bytes_of(first)
    assert begin.strengths.tolist() == space.begin(0.5).strengths.tolist()  # what it begins with is not touched
    assert not begin.strengths.requires_grad


@pytest.mark.parametrize("kind", ["remove", "add"])
def test_the_loss_falls(running: Load, kind: Any) -> None:
    model = running("qwen2")
    problem = a_problem(model, kind, margin=60.0)
    space = a_space(model, kind, 1)[0]
    begin = space.begin(0.3)
    how = dataclasses.replace(QUICK, weights=(0.1,), steps=30, check=30, batch=4)
    heard: list[Any] = []
    told: list[Any] = []
    with unchanged(model):
        found = sweep(problem, space, begin, how, heard.append, told.append)

    def loss(values: Values) -> float:
        with torch.no_grad(), space.hooked(values):
            seen = problem.see(train=True)
        return problem.loss_of(seen) + 0.1 * problem.cost_of(seen)

    (last,) = found.snapshots
    assert loss(last.values) < loss(begin) - 0.3
    assert np.mean([t.effect_loss for t in found.ticks[-5:]]) < np.mean([t.effect_loss for t in found.ticks[:5]])
    assert heard == found.ticks
    assert told == found.snapshots
    assert [t.step for t in heard] == list(range(1, 31))
    assert (heard[-1].held_effect, heard[0].held_effect) == (pytest.approx(problem.loss_of(last.seen)), None)
    if kind == "remove":
        assert float(last.values.strengths.min()) >= 0
        assert float(last.values.strengths.max()) <= 1
        torch.testing.assert_close(last.values.vectors.norm(dim=1), torch.ones(len(space.layers)))
    assert float((last.values.vectors - begin.vectors).abs().max()) > 0.01


def test_directions_stay_where_they_should(task: tuple[Problem, Space]) -> None:
    problem, space = task
    begin = space.begin(0.5)
    found = sweep(problem, space, begin, dataclasses.replace(QUICK, turn=0.0))
    torch.testing.assert_close(found.snapshots[-1].values.vectors, begin.vectors, rtol=0, atol=1e-6)
    assert float((found.snapshots[-1].values.strengths - begin.strengths).abs().max()) > 0.01


def spoil(problem: Problem, monkeypatch: pytest.MonkeyPatch, at: set[int], what: str) -> list[list[torch.Tensor]]:
    """NaN in the loss or in the gradients of some steps; gives the parameters that each step began with."""
    right, begun = Problem.effect_loss, list[list[torch.Tensor]]()

    def wrong(self: Problem, which: Any, params: Any) -> Any:
        value, slopes = right(self, which, params)
        begun.append([p.detach().clone() for p in params])
        if len(begun) not in at:
            return value, slopes
        if what == "loss":
            return float("nan"), slopes
        slopes[0].view(-1)[0] = float(what)
        return value, slopes

    monkeypatch.setattr(Problem, "effect_loss", wrong)
    return begun


@pytest.mark.parametrize("what", ["loss", "nan", "inf"])
def test_nan_in_a_step_is_undone(task: tuple[Problem, Space], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    problem, space = task
    begun = spoil(problem, monkeypatch, {3}, what)
    found = sweep(problem, space, space.begin(0.5), dataclasses.replace(QUICK, weights=(0.1,)))
    assert len(found.notes) == 1
    assert "step 3" in found.notes[0]
    assert len(begun) == 12  # it went on
    assert all(torch.equal(a, b) for a, b in zip(begun[2], begun[3], strict=True))
    moved = [float((begun[k + 1][0] - begun[k][0]).abs().max()) for k in range(11)]
    assert moved[2] == 0
    assert min(moved[:2] + moved[3:]) > 0
    assert moved[3] == pytest.approx(moved[0] / 2, rel=0.2)  # Adam's first step is its rate: half as long now
    assert all(s.values.finite for s in found.snapshots)
    assert [t.step for t in found.ticks] == [k for k in range(1, 13) if k != 3]


@pytest.mark.parametrize(("bad", "read"), [
    ({4}, [4, 8, 12]), ({12}, [4, 8, 12]), ({3, 4}, [4, 8, 12]), ({5, 6, 7, 8}, [4, 12]), ({5, 6, 7, 8, 9}, [4])])
def test_held_out_prompts_are_read_though_their_step_is_nan(
    task: tuple[Problem, Space], monkeypatch: pytest.MonkeyPatch, bad: set[int], read: list[int]
) -> None:
    """What the good steps before it have reached is a candidate; what was read already is not read again."""
    problem, space = task
    begun = spoil(problem, monkeypatch, bad, "nan")
    found = sweep(problem, space, space.begin(0.5), dataclasses.replace(QUICK, weights=(0.1,)))
    assert [s.step for s in found.snapshots] == read
    assert [t.step for t in found.ticks] == [k for k in range(1, len(begun) + 1) if k not in bad]
    assert {t.step for t in found.ticks if t.held_damage is not None} == set(read) - bad
    before = [torch.equal(s.values.strengths, begun[s.step - 1][0]) for s in found.snapshots]
    assert before == [k in bad for k in read], "values of a step that was not taken are those from before it"


def test_what_was_reached_is_read_where_nan_ends_it(task: tuple[Problem, Space], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, space = task
    begun = spoil(problem, monkeypatch, set(range(3, 99)), "nan")
    (last,) = sweep(problem, space, space.begin(0.5), dataclasses.replace(QUICK, weights=(0.1,), check=50)).snapshots
    assert (last.step, len(begun)) == (2 + gradient.BACKOFFS + 1,) * 2
    assert torch.equal(last.values.strengths, begun[2][0])
    assert not torch.equal(last.values.strengths, begun[0][0])


def test_nan_in_every_step_ends_it(task: tuple[Problem, Space], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, space = task
    begun = spoil(problem, monkeypatch, set(range(1, 99)), "nan")
    begin = space.begin(0.5)
    found = sweep(problem, space, begin, dataclasses.replace(QUICK, weights=(0.1,)))
    assert len(begun) == gradient.BACKOFFS + 1 == len(found.notes)
    assert all(torch.equal(b[0], begin.strengths) for b in begun)
    assert not found.snapshots
    assert ["ended" in note for note in found.notes] == [False] * gradient.BACKOFFS + [True]


def test_a_reading_that_is_nan_is_no_candidate(task: tuple[Problem, Space], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, space = task
    right, calls = Problem.see, [0]

    def see(self: Problem, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise NonFinite("NaN")
        return right(self, **more)

    monkeypatch.setattr(Problem, "see", see)
    found = sweep(problem, space, space.begin(0.5), dataclasses.replace(QUICK, weights=(0.1,)))
    assert [s.step for s in found.snapshots] == [4, 12]


def test_patience(task: tuple[Problem, Space], monkeypatch: pytest.MonkeyPatch) -> None:
    """The third reading is the best; after two that are not better the descent ends, and the next begins at the best."""
    problem, space = task
    judged, look = [5.0, 4.0, 3.0, 3.0, 3.5, 9.0, 1.0, 8.0, 8.0, 0.0], gradient.look
    seen: list[Any] = []

    def looked(*args: Any) -> Any:
        seen.append(look(*args))
        return seen[-1]

    monkeypatch.setattr(gradient, "look", looked)
    monkeypatch.setattr(gradient, "_total", lambda _p, one, _w: judged[[one is s for s in seen].index(True)])
    begun = spoil(problem, monkeypatch, set(), "nan")
    how = dataclasses.replace(QUICK, steps=100, more=100, check=2)
    found = sweep(problem, space, space.begin(0.5), how)
    first, second = ([s for s in found.snapshots if s.weight == w] for w in (0.1, 1.0))
    assert [s.step for s in first] == [2, 4, 6, 8, 10]
    assert [s.step for s in second] == [2, 4, 6, 8]
    assert [(t.run, t.weight) for t in found.ticks] == [(0, 0.1)] * 10 + [(1, 1.0)] * 8
    assert torch.equal(begun[10][0], first[2].values.strengths)
    assert torch.equal(begun[10][1], first[2].values.vectors)


def test_weaker_and_stronger(task: tuple[Problem, Space]) -> None:
    problem, space = task
    (snapshot,) = sweep(problem, space, space.begin(0.5), dataclasses.replace(QUICK, weights=(0.1,), steps=4)).snapshots
    found = gradient.scaled(problem, space, snapshot, [0.0, 0.5, 1.0, 100.0])
    for made, factor in zip(found, (0.0, 0.5, 1.0, 100.0), strict=True):
        torch.testing.assert_close(made.values.strengths, (snapshot.values.strengths * factor).clamp(max=1.0))
        torch.testing.assert_close(made.values.vectors, snapshot.values.vectors)
    assert problem.base is not None
    np.testing.assert_allclose(found[0].seen.odds, problem.base.odds, atol=1e-4)
    np.testing.assert_allclose(found[2].seen.odds, snapshot.seen.odds, atol=1e-4)
    assert found[1].seen.damage.mean() < found[2].seen.damage.mean()


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (5, 2), (7, 3), (4, 4), (3, 8), (10, 7), (6, 5)])
def test_every_prompt_once_before_any_twice(size: int, batch: int) -> None:
    places = [10 * k + 3 for k in range(size)]
    for seed in range(20):
        dice = _Dice(places, np.random.default_rng(seed))
        drawn: list[int] = []
        for _ in range(12):
            batch_now = dice.draw(batch)
            assert len(batch_now) == min(batch, size)
            assert len(set(batch_now)) == len(batch_now)
            drawn += batch_now
            often = [drawn.count(p) for p in places]
            assert max(often) - min(often) <= 1
        for k in range(0, len(drawn) - size + 1, size):  # in each round every prompt
            assert sorted(drawn[k : k + size]) == places
    orders = {tuple(_Dice(places, np.random.default_rng(seed)).draw(size)) for seed in range(20)}
    assert len(orders) > 1 or size == 1
    assert _Dice([], np.random.default_rng(0)).draw(3) == []


def test_grown_trees_are_of_every_shape() -> None:
    """So that what is said above is said of branches and of chains."""
    made = grown(np.random.default_rng(0), [tokens(np.random.default_rng(1), 4)] * 4)
    assert [t.chain for t in made] == [False, True, False, True]
