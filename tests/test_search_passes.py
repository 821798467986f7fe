"""Passes that share beginnings, branch and skip blocks say what plain passes say, in every family."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import pico
from trees import FAMILIES, STATES, Load, cases, grown, loader, nodes, tokens, unchanged, worst
from weightsmith.errors import OutOfMemory, RecipeError
from weightsmith.runtime import RunningModel
from weightsmith.search.ledger import Ledger
from weightsmith.search.passes import Passes, Tree

#: what a window or a chunk of 16 tokens cuts
WINDOWED = {"gemma2", "gemma3", "gpt_oss", "olmo3", "exaone4", "gemma4", "gemma4_unified", "gemma4_moe", "gemma4_shared",
            "gemma4_images", "gemma3_images", "cohere2", "llama4", "mistral_window", "qwen2_window", "phi3_window",
            "phi3_scaled"}  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return loader(tmp_path_factory.mktemp("pico"))


def starts(model: RunningModel) -> list[int]:
    return sorted({0, 1, len(model.blocks) - 1})


# Trees.


def random_continuations(dice: np.random.Generator) -> list[tuple[int, ...]]:
    """Few different tokens, so that many begin alike, some are the same and some go on from others."""
    return [tuple(int(x) for x in dice.integers(0, 3, dice.integers(0, 6))) for _ in range(dice.integers(0, 7))]


@pytest.mark.parametrize("seed", range(40))
def test_every_continuation_is_a_path_of_the_tree(seed: int) -> None:
    given = random_continuations(np.random.default_rng(seed))
    tree = Tree.of([7, 8], given)
    assert tree.prompt == (7, 8)
    assert [tuple(tree.tokens[n] for n in tree.path(e)) for e in tree.ends] == given
    assert all(parent < node for node, parent in enumerate(tree.parents))
    beginnings = {c[:n] for c in given for n in range(1, len(c) + 1)}  # one node for each beginning that differs
    assert len(tree.tokens) == len(beginnings)
    assert {tuple(tree.tokens[k] for k in tree.path(n)) for n in range(len(tree.tokens))} == beginnings
    followed = {n for n in range(len(tree.tokens)) if any(p == n for p in tree.parents)}
    assert set(tree.fed) == followed
    assert list(tree.fed) == sorted(followed)
    rows = [-1, *tree.fed]
    assert [rows[r] for r in tree.reads] == list(tree.parents)


def test_some_random_trees_branch_and_some_are_chains() -> None:
    found = [Tree.of([7], random_continuations(np.random.default_rng(seed))) for seed in range(40)]
    assert {t.chain for t in found} == {True, False}
    assert Tree.of([7], [(1, 2, 3), (1, 2), ()]).chain
    assert not Tree.of([7], [(1, 2), (3, 4)]).chain


def test_no_continuations_at_all(running: Load) -> None:
    model = running("llama")
    for given in ([], [()]):
        tree = Tree.of([40, 41, 42], given)
        assert (tree.tokens, tree.fed, tree.reads, tree.ends) == ((), (), (), (-1,) * len(given))
        passes = Passes(model, 1)
        (states,) = passes.states(passes.prepare([tree]))
        with torch.no_grad():
            plain = model.stack(input_ids=torch.tensor([[40, 41, 42]])).last_hidden_state[0, -1:]
        torch.testing.assert_close(states.detach(), plain, rtol=1e-5, atol=1e-5)
    assert Passes(model).states(Passes(model).prepare([])) == []


# Every family against plain passes.


@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_those_of_plain_passes(running: Load, name: str) -> None:
    model = running(name)
    for what, trees in cases().items():
        with torch.no_grad():
            plain = [nodes(model, t) for t in trees]
        for start in starts(model):
            for micro in (1, 1024):
                passes = Passes(model, start)
                passes.micro = micro
                with unchanged(model):
                    states = passes.states(passes.prepare(trees))
                for tree, state, expected in zip(trees, states, plain, strict=True):
                    found = torch.log_softmax(model.logits(state), -1)[list(tree.reads), list(tree.tokens)]
                    assert float((found - expected).abs().max()) < 1e-4, (what, start, micro)


@pytest.mark.parametrize("name", FAMILIES)
def test_who_branches_and_who_shares(running: Load, name: str) -> None:
    """The fallback is for those that need it, and for no one else."""
    model = running(name)
    for what, trees in cases().items():
        rows = Passes(model).prepare(trees)
        simple = name not in STATES and not (what.startswith("long") and name in WINDOWED)
        expected = {"shared": 8, "long shared": 24}.get(what, 0) if simple else 0
        assert len(rows.prefix) == expected, what
        branches = simple and name != "llama4_tuned"
        assert [len(r) > 1 for r in rows.rows] == [not branches and k in (0, 2) for k in range(len(trees))], what


def test_a_wrong_mask_or_position_is_found(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the agreement above says something: these trees feel each other's branches and their own depth."""
    from weightsmith.search import passes as module

    right = module._branched

    def without(key: str) -> Any:
        return lambda *args: {k: v for k, v in right(*args).items() if k != key}

    for name in ("llama", "gemma3", "gpt2", "gpt_oss", "cohere2"):
        for key in ("attention_mask", "position_ids"):
            monkeypatch.setattr(module, "_branched", without(key))
            assert worst(running(name), Passes(running(name), 1), cases()["one"]) > 1e-3, (name, key)
        monkeypatch.setattr(module, "_branched", right)
        assert worst(running(name), Passes(running(name), 1), cases()["one"]) < 1e-4


@pytest.mark.parametrize("name", ["gemma3", "gpt_oss", "cohere2", "llama4", "mistral_window"])
def test_a_sequence_longer_than_the_window(running: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of a call decides: one token over the window, and nothing branches; exactly at it, all does."""
    from weightsmith.search import passes as module

    model, dice = running(name), np.random.default_rng(3)
    for over in (0, 1):
        trees = grown(dice, [tokens(dice, 9 + over), tokens(dice, 4)])
        rows = Passes(model).prepare(trees)
        assert (len(rows.rows[0]) == 1) is (over == 0)
        assert worst(model, Passes(model, 1), trees) < 1e-4
    monkeypatch.setattr(module, "slides", lambda *_: False)
    assert worst(model, Passes(model, 1), cases()["long"]) > 1e-3  # branches that ignore the window are wrong


def test_queries_scaled_by_position_do_not_branch(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 takes a token's slot for its position; that of a branch is not its depth."""
    from weightsmith.search import passes as module

    model = running("llama4_tuned")
    short = [Tree.of((40, 41), [(50,)])]
    assert len(Passes(model).prepare(short).rows[0]) == 1
    monkeypatch.setattr(module, "_counts_slots", lambda *_: False)
    assert worst(model, Passes(model), cases()["long"]) > 1e-3


def test_positions_of_two_scales_do_not_mix(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi 3 takes the scale for long inputs for all rows of a pass, where one of them is long."""
    from weightsmith.search import passes as module

    model, dice = running("phi3_scaled"), np.random.default_rng(3)
    short, long = ([Tree.of(tokens(dice, n), [(40, 41), (42, 43)])] for n in (12, 17))
    at = [Tree.of(tokens(dice, 16), [(40, 41)])]  # 17 tokens pass: the prompt by itself would get the other scale
    head = tokens(dice, 9)  # alone it would get the scale for short ones
    begins = [Tree.of((*head, *tokens(dice, 9)), [(40, 41), (42, 43)]) for _ in range(2)]
    for trees in (short, long, begins):
        assert worst(model, Passes(model), trees) < 1e-4
    for trees in (short + long, at):
        with pytest.raises(RecipeError, match="below 16 tokens and some above"):
            Passes(model).prepare(trees)
    monkeypatch.setattr(module, "_rescaled", lambda *_: False)
    for trees in (short + long, at, begins):
        assert worst(model, Passes(model), trees) > 1e-3


def test_blocks_whose_keys_are_read_later_are_not_skipped(running: Load) -> None:
    """Gemma 4: the last blocks read the keys of others, which the pass must reach."""
    assert [Passes(running("gemma4_shared"), s).start for s in range(4)] == [0, 0, 0, 0]
    deep = running("gemma4_deep")
    assert [Passes(deep, s).start for s in range(6)] == [0, 1, 2, 2, 2, 2]
    assert [Passes(running("gemma4"), s).start for s in range(2)] == [0, 1]
    for start in range(6):
        for trees in cases(1).values():
            assert worst(deep, Passes(deep, start), trees) < 1e-4


@pytest.mark.parametrize("name", ["qwen2", "qwen3_next"])
def test_one_tree_of_many_and_in_any_order(running: Load, name: str) -> None:
    model, trees = running(name), cases()["shared"]
    passes = Passes(model, 1)
    rows = passes.prepare(trees)
    whole = passes.states(rows)
    for pick in ([2], [3, 0], [1, 1]):
        for i, state in zip(pick, passes.states(rows, pick), strict=True):
            torch.testing.assert_close(state, whole[i], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_passed_is_refused(running: Load) -> None:
    model = running("gpt2")
    passes = Passes(model)
    with pytest.raises(RecipeError, match="no tokens"):
        passes.prepare([Tree.of([], [(40, 41)])])
    with pytest.raises(RecipeError, match="600 tokens, the model reads 512"):
        passes.prepare([Tree.of([40] * 600, [])])
    with pytest.raises(RecipeError, match="513 tokens"):
        passes.prepare([Tree.of([40] * 500, [tuple([41] * 13)])])
    wide = Tree.of([40] * 508, [(k, k + 1, k + 2) for k in range(30, 50)])  # many nodes, but none of them deep
    (states,) = passes.states(passes.prepare([wide]))
    assert len(states) == 41


# Blocks that are not run.


def changing(model: RunningModel, start: int) -> Any:
    """Hooks that change the output of every block from ``start`` on."""
    dice = torch.Generator().manual_seed(3)
    handles = []
    for block in model.blocks[start:]:
        vector = torch.randn(pico.WIDTH, generator=dice)

        def hook(_m: Any, _i: Any, out: Any, vector: torch.Tensor = vector) -> Any:
            return (out[0] * 0.7 + vector, *out[1:]) if isinstance(out, tuple) else out * 0.7 + vector

        handles.append(block.register_forward_hook(hook))
    return handles


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_oss", "gpt_neox", "qwen3_next", "lfm2", "deepseek_v3",
                                  "gemma4", "gemma4_deep", "mixtral"])  # fmt: skip
def test_skipping_gives_what_not_skipping_gives(running: Load, name: str) -> None:
    model = running(name)
    start = len(model.blocks) - 1
    ran: list[int] = []
    watch = [m.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(model.blocks)
             for m in list(block.children())[:1]]  # fmt: skip
    for trees in cases().values():
        plain, skips = Passes(model, 0), Passes(model, start)
        rows = plain.prepare(trees), skips.prepare(trees)
        before = skips.states(rows[1])
        handles = changing(model, skips.start)
        expected = plain.states(rows[0])
        ran.clear()
        found = skips.states(rows[1])
        for handle in handles:
            handle.remove()
        assert set(ran) == set(range(skips.start, len(model.blocks)))  # the others were not run
        assert skips.start > 0
        for a, b, unhooked in zip(found, expected, before, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            assert float((a - unhooked).abs().max()) > 0.01
    for handle in watch:
        handle.remove()


class Breaks(Exception):
    pass


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma4_deep", "qwen3_next"])
def test_an_exception_leaves_the_model_as_it_was(running: Load, name: str) -> None:
    model, trees = running(name), cases()["shared"]
    passes = Passes(model, len(model.blocks) - 1)
    rows = passes.prepare(trees)
    expected = passes.states(rows)

    def fails(*_: Any) -> None:
        raise Breaks

    with unchanged(model), pytest.raises(Breaks):
        passes.each(rows, range(len(rows)), fails)
    for block, work in ((0, lambda: passes.prepare(trees)), (-1, lambda: passes.states(rows))):
        with unchanged(model):
            handle = next(model.blocks[block].children()).register_forward_hook(fails)
            with pytest.raises(Breaks):
                work()
            handle.remove()
    again = passes.states(passes.prepare(trees))
    for a, b in zip(again, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# Memory.


def out_of(limit: int, model: RunningModel) -> Any:
    """A hook on the last block that can't hold more than ``limit`` tokens at once."""
    def hook(_m: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[0] * hidden.shape[1] > limit:
            raise torch.OutOfMemoryError("out of memory")

    return model.blocks[0].register_forward_pre_hook(hook, with_kwargs=True)


def test_a_batch_that_does_not_fit_is_halved(running: Load) -> None:
    model = dataclasses.replace(running("llama"), notes=[])
    trees = cases()["long"]
    for start in (0, 1):
        passes = Passes(model, start)
        expected = passes.states(passes.prepare(trees))
        small = Passes(model, start)
        handle = out_of(40, model)
        found = small.states(small.prepare(trees))
        with pytest.raises(OutOfMemory):
            Passes(model, start).states(Passes(model, start).prepare([Tree.of((40,) * 41, [])]))
        handle.remove()
        assert small.micro < passes.micro
        assert model.notes
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# What was passed.


class Meter:
    """Counts what really goes through a model's embedding, each block's first part and the states that are read; padding
    is token 0."""

    def __init__(self, model: RunningModel) -> None:
        self.tokens = self.layers = 0
        embedding = model.model.get_input_embeddings()
        self.handles = [embedding.register_forward_hook(self._embedded)]
        for block in model.blocks:
            self.handles.append(next(block.children()).register_forward_hook(self._passed))

    def _embedded(self, _m: Any, args: Any, _o: Any) -> None:
        self.now = int((args[0] != 0).sum())
        self.tokens += self.now

    def _passed(self, *_: Any) -> None:
        self.layers += self.now

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "qwen3_next", "llama4_tuned"])
@pytest.mark.parametrize("start", [0, 1])
def test_the_ledger_says_what_was_passed(running: Load, name: str, start: int) -> None:
    model = running(name)
    for trees in cases().values():
        meter, passes = Meter(model), Passes(model, start)
        passes.states(passes.prepare(trees))
        vector = torch.zeros(pico.WIDTH, requires_grad=True)
        before, tokens_before = passes.ledger.backward, meter.tokens
        handle = model.blocks[start].register_forward_hook(lambda _m, _i, out, v=vector: (
            (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v))  # fmt: skip
        read: list[int] = []

        def use(_which: list[int], states: list[torch.Tensor], read: list[int] = read) -> torch.Tensor:
            read.extend(len(s) for s in states)
            return torch.stack([s.sum() for s in states]).sum()

        rows = passes.prepare(trees)
        prepared = meter.tokens
        passes.each(rows, [0, len(trees) - 1][: len(trees)], use, [vector])
        handle.remove()
        meter.stop()
        assert passes.ledger.passed == meter.tokens
        assert passes.ledger.layers == meter.layers
        assert before == 0
        assert passes.ledger.backward == meter.tokens - prepared > 0
        assert prepared > tokens_before or start == 0
        assert passes.ledger.heads == sum(1 + len(t.fed) for t in trees) + sum(read)


def test_what_each_saving_saved(running: Load) -> None:
    """By hand: two prompts of 8 + 2 tokens, the first with (a b c), (a d e), the second with (a); two layers."""
    dice = np.random.default_rng(0)
    head = tokens(dice, 8)
    trees = [Tree.of((*head, 40, 41), [(50, 51, 52), (50, 53, 54)]), Tree.of((*head, 42, 43), [(50,)])]
    passes = Passes(running("llama"), 1)
    passes.states(passes.prepare(trees))
    ledger = passes.ledger
    # fed: 8 of the prefix, 2 + 3 of the first tree (a, b and d), 2 of the second
    assert (ledger.passed, ledger.layers) == (2 * 15, 2 * 15)
    assert ledger.below == 15
    assert ledger.prefixes == 8 * 2  # once more, in two layers
    assert ledger.unread == 3 * 2  # the last token of each of three continuations
    assert ledger.branches == 3 * 2  # 2 × (2 + 2) tokens in place of 2 + 3
    assert (ledger.heads, ledger.heads_unread) == (4 + 1, 7 - 5)
    assert ledger.factors()["below"] == pytest.approx(1.5)
    twice = Ledger()
    twice.add(ledger)
    twice.add(ledger)
    assert twice.passed == 60
    assert twice.factors() == ledger.factors()
