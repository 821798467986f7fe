"""The bound in bytes of passes with gradients: what it does to memory, and that it does nothing to what they find."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from test_search_gradient import SOME, a_space, agree, parameters, plainly, weighed
from trees import Load, cases, loader, unchanged
from weightsmith.cli.search import _bytes
from weightsmith.errors import OutOfMemory, UsageError
from weightsmith.runtime import RunningModel
from weightsmith.search import memory
from weightsmith.search.blocks import can_recompute
from weightsmith.search.memory import SPARE, Bound
from weightsmith.search.passes import Passes


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return loader(tmp_path_factory.mktemp("pico"))


class Live(TorchDispatchMode):
    """Bytes of tensors that are alive at once, at the most, of those made within."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in inputs and storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def tight(model: RunningModel, limit: float, *, given: bool = True) -> Passes:
    found = Passes(model)
    found.bound = Bound(limit, given)
    return found


def a_pass(own: Passes, model: RunningModel, what: str = "long shared") -> tuple[tuple[float, list[torch.Tensor]], int]:
    """What a pass with gradients finds, and the bytes that it took at its height."""
    trees = cases(2)[what]
    space, values = a_space(model)
    rows = own.prepare(trees)
    with unchanged(model), space.hooked(values), Live() as live:
        found = own.each(rows, range(len(trees)), weighed(model, trees), parameters(values))
    return found, live.most


@pytest.mark.parametrize("name", SOME)
def test_what_is_computed_twice_is_the_same(running: Load, name: str) -> None:
    model = running(name)
    for kind, what in (("remove", "shared"), ("remove", "long"), ("add", "long shared")):
        trees = cases(2)[what]
        space, values = a_space(model, kind)
        expected = plainly(model, space, values, trees)
        own = Passes(model)
        own.recompute = can_recompute(model)
        rows = own.prepare(trees)
        with unchanged(model), space.hooked(values):
            before = [dict(b.__dict__) for b in model.blocks]
            found = own.each(rows, range(len(trees)), weighed(model, trees), parameters(values))
            assert [dict(b.__dict__) for b in model.blocks] == before
        assert agree(found, expected), (kind, what)


def test_some_families_can_be_computed_twice_and_some_not(running: Load) -> None:
    assert can_recompute(running("llama"))
    assert not can_recompute(running("gemma4_shared"))


def settled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """What every pass settles on: tokens at once, and whether blocks are computed twice."""
    found: list[tuple[int, bool]] = []
    right = Bound.settle

    def settle(self: Bound, *given: Any) -> tuple[int, bool]:
        found.append(right(self, *given))
        return found[-1]

    monkeypatch.setattr(Bound, "settle", settle)
    return found


def test_less_memory_leads_to_the_same_with_less(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = running("llama_deep"), settled(monkeypatch)
    monkeypatch.setattr(memory, "FEW", 1)
    free = tight(model, 1e18)
    plain, most = a_pass(free, model, "long")
    assert not seen  # far from the bound nothing is counted
    assert free.bound is not None
    assert free.bound.token == 0
    for limit in (0.5 * most, 0.25 * most / SPARE):
        own = tight(model, limit)
        found, took = a_pass(own, model, "long")
        assert agree(found, plain)
        assert took <= SPARE * limit
        assert took < most
    assert [again for _, again in seen] == [False, True]


def test_computing_twice_keeps_one_block_and_inputs(running: Load) -> None:
    model = running("llama_deep")
    plain, most = a_pass(tight(model, 1e18), model, "long")
    own = tight(model, 1e18)
    own.recompute = True
    found, took = a_pass(own, model, "long")
    assert agree(found, plain)
    assert took < most / 2


def test_what_cannot_fit_is_refused_before_it_is_tried(running: Load) -> None:
    model = dataclasses.replace(running("llama"), notes=[])
    with pytest.raises(OutOfMemory, match="one prompt with what may follow it") as caught:
        a_pass(tight(model, 1000.0), model)
    assert "--memory" in caught.value.message
    expected, _ = a_pass(tight(model, 1e18), model)
    found, _ = a_pass(tight(model, 1000.0, given=False), model)  # the system's word is no bound: it is tried
    assert agree(found, expected)
    assert "tried all the same" in model.notes[-1]


def test_a_model_larger_than_the_bound_is_said(running: Load) -> None:
    model = running("llama")
    little = dataclasses.replace(model, options=dataclasses.replace(model.options, memory=1000))
    with pytest.raises(OutOfMemory, match="the loaded model takes"):
        a_pass(Passes(little), little)
    plenty = dataclasses.replace(model, options=dataclasses.replace(model.options, memory=1 << 60))
    own = Passes(plenty)
    a_pass(own, plenty)
    assert own.bound is not None
    assert own.bound.given


def test_an_allocation_that_fails_for_one_row_is_tried_with_blocks_computed_twice(
    running: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(running("llama"), notes=[])
    expected, _ = a_pass(tight(model, 1e18), model)
    own, right = tight(model, 1e18), torch.autograd.grad

    def scarce(*args: Any, **more: Any) -> Any:
        if not own.recompute:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(*args, **more)

    monkeypatch.setattr(torch.autograd, "grad", scarce)
    found, _ = a_pass(own, model)
    assert agree(found, expected)
    assert own.recompute
    assert "computed twice" in model.notes[-1]


@pytest.mark.parametrize(("text", "size"), [("6GB", 6e9), ("800mb", 8e8), ("1.5 GiB", 1.5 * 2**30), ("4096", 4096), ("2T", 2e12)])
def test_amounts_of_memory(text: str, size: float) -> None:
    assert _bytes(text) == int(size)


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "3XB", "GB", "1e9"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        _bytes(text)
