"""Replies: sampling against transformers' processors, rows that don't feel their batch, memory, context, going on."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import FormatError, NonFinite, OutOfMemory, RecipeError
from weightsmith.options import RunOptions
from weightsmith.runtime import (
    Continuation,
    Decoding,
    Reply,
    RunningModel,
    Sequence,
    answer_states,
    capture,
    continue_replies,
    default_decoding,
    generate,
    load,
    replies,
    score_answers,
)
from weightsmith.runtime.sample import dice, draw, penalised, warped

MODULE = sys.modules["weightsmith.runtime.generate"]  # the package has a function of that name

#: windows of 16 tokens are shorter than the prompts; states in place of a cache; chunks; layers that share keys
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}), "mistral_window": ("mistral", {"sliding_window": 16}), "qwen2": ("qwen2", {}),
    "gemma2": ("gemma2", {}), "gemma3": ("gemma3", {}), "gpt2": ("gpt2", {}), "gpt_oss": ("gpt_oss", {}),
    "qwen3_5": ("qwen3_5", {}), "lfm2": ("lfm2", {}), "llama4": ("llama4", {"attention_chunk_size": 16}),
    "llama4_tuned": ("llama4", {"attention_chunk_size": 16, "attn_temperature_tuning": True, "floor_scale": 4}),
    "gemma4": ("gemma4_shared", {}), "deepseek_v3": ("deepseek_v3", {}),
}  # fmt: skip
#: hot, since the likeliest tokens of some pico models are very likely
HOT = Decoding(24, temperature=8.0, top_k=30, top_p=0.95, min_p=0.02, repetition_penalty=1.1, seed=3)
WAYS = {"greedy": Decoding(24), "sampled": HOT, "penalised": Decoding(24, repetition_penalty=1.3)}
Get = Callable[..., RunningModel]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """Running pico models, each loaded once; end tokens are many, so that rows end early and unevenly."""
    root = tmp_path_factory.mktemp("pico")
    loaded: dict[str, RunningModel] = {}

    def get(name: str = "llama", options: RunOptions = pico.CPU, ends: int = 6) -> RunningModel:
        if name not in loaded:
            family, config = MODELS[name]
            loaded[name] = load(open_checkpoint(str(pico.build(family, root / name, **config))), pico.CPU)
        loaded[name].model.generation_config.eos_token_id = [pico.EOS, *range(20, 20 + ends)]
        return dataclasses.replace(loaded[name], options=options, notes=[])

    return get


def prompts(count: int = 16, head: int = 0) -> list[list[int]]:
    """Random prompts of unequal length, after ``head`` tokens in common."""
    random = np.random.default_rng(1)
    start = random.integers(30, 90, head).tolist()
    return [[*start, *random.integers(30, 90, int(n)).tolist()] for n in random.integers(2, 30, count)]


def sized(rows: int) -> RunOptions:
    return dataclasses.replace(pico.CPU, batch_size=max(1, rows // 4))


# Rows and batches.


@pytest.mark.parametrize("head", [0, 12])
@pytest.mark.parametrize("way", ["greedy", "sampled"])
@pytest.mark.parametrize("name", list(MODELS))
def test_a_reply_does_not_depend_on_its_batch(running: Get, name: str, way: str, head: int) -> None:
    model, rows = running(name, sized(6)), prompts(14, head=head)
    alone = [replies(model, [row], WAYS[way])[0] for row in rows]
    assert replies(model, rows, WAYS[way]) == alone
    if way == "sampled":  # rows do leave at different steps; a pico model's likeliest token is often the same for ever
        assert len({len(r.tokens) for r in alone}) > 1
        assert any(r.ended for r in alone)


def test_a_cache_that_is_grown_and_moved_holds_the_same_tokens(running: Get) -> None:
    """Long answers over few rows: buffers run full, are moved and take longer rows in."""
    model = running("llama", sized(4), ends=1)
    rows = [*prompts(6), *prompts(2, head=150)]
    model.model.generation_config.eos_token_id = []
    long = Decoding(200, temperature=1.0, seed=1)
    alone = [replies(model, [row], long)[0] for row in rows]
    assert replies(model, rows, long) == alone
    assert max(len(r.tokens) for r in alone) == 200


def test_replies_and_their_ends(running: Get) -> None:
    model, rows = running("llama", sized(8)), prompts()
    found = replies(model, rows, Decoding(24))
    assert generate(model, rows, 24) == [r.tokens for r in found]
    assert all(r.ended or len(r.tokens) == 24 for r in found)
    assert not any(set(r.tokens) & model.stop_tokens for r in found)
    assert replies(model, [], Decoding(4)) == []


@torch.no_grad()
def test_greedy_with_a_penalty_is_transformers_own(running: Get) -> None:
    model = running("llama")
    for row, reply in zip(prompts(6), replies(model, prompts(6), WAYS["penalised"]), strict=True):
        ids = torch.tensor([row])
        with pico.quiet():
            out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
                                       repetition_penalty=1.3, pad_token_id=pico.PAD,
                                       eos_token_id=sorted(model.stop_tokens))[0, len(row) :].tolist()  # fmt: skip
        assert reply.tokens == [t for t in out if t not in model.stop_tokens]
    assert replies(model, prompts(6), WAYS["penalised"]) != replies(model, prompts(6), Decoding(24))


def test_every_reply_is_reported_once_as_it_ends(running: Get) -> None:
    model, rows = running("llama", sized(4)), prompts(12)
    heard: list[tuple[int, Reply]] = []
    steps: list[int] = []
    options = dataclasses.replace(model.options, progress=lambda _s, done, _n: steps.append(done))
    found = replies(dataclasses.replace(model, options=options), rows, HOT, on_reply=lambda i, r: heard.append((i, r)))
    assert sorted(i for i, _ in heard) == list(range(12))
    assert all(found[i] == r for i, r in heard)
    assert steps == list(range(1, 13))


# Sampling.


@pytest.mark.parametrize("decoding", [
    Decoding(1, temperature=0.7), Decoding(1, temperature=1.0, top_k=5), Decoding(1, temperature=1.3, top_p=0.8),
    Decoding(1, temperature=1.0, min_p=0.1), Decoding(1, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1),
    Decoding(1, temperature=1.5, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.5),
    Decoding(1, temperature=1.0, top_p=0.999), Decoding(1, temperature=4.0, top_p=0.99), Decoding(1, temperature=1.0, top_k=5000),
], ids=str)  # fmt: skip
def test_the_filters_are_those_of_transformers(decoding: Decoding) -> None:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    seeded = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 1000, generator=seeded)
    seen = torch.randint(0, 1000, (8, 40), generator=seeded)
    chain: Any = LogitsProcessorList()
    mine = logits
    if decoding.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
        mine = penalised(logits, seen, decoding.repetition_penalty)
    chain.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        chain.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        chain.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p:
        chain.append(MinPLogitsWarper(decoding.min_p))
    torch.testing.assert_close(warped(mine, decoding), chain(seen, logits.clone()))


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    scores = torch.tensor([0.5, -torch.inf, 2.0, 1.0, -torch.inf]).repeat(10_000, 1)
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    found = torch.bincount(draw(scores, uniform), minlength=5).double() / 10_000
    torch.testing.assert_close(found, torch.softmax(scores[0].double(), -1), atol=1.01e-4, rtol=0)
    edges = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(scores[:2], edges).tolist() == [0, 3]


def test_dice_depend_on_seed_and_prompt_alone() -> None:
    one = dice(1, [5, 6], 100)
    np.testing.assert_array_equal(one[:10], dice(1, (5, 6), 10))
    assert not np.isin(one, dice(2, [5, 6], 100)).any()
    assert not np.isin(one, dice(1, [6, 5], 100)).any()
    many = np.concatenate([dice(s, [7], 50) for s in range(200)])
    assert 0 <= many.min() < 0.001
    assert 0.999 < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01


def test_seeds(running: Get) -> None:
    model = running("llama", sized(8))
    rows = [prompts(1)[0]] * 4
    a, b, c, d = replies(model, rows, Decoding(24, temperature=1.5), seeds=[1, 2, 1, 3])
    assert a == c
    assert len({tuple(x.tokens) for x in (a, b, d)}) == 3
    assert replies(model, rows[:1], Decoding(24, temperature=1.5, seed=2)) == [b]
    with pytest.raises(RecipeError, match="need a seed"):
        replies(model, rows, Decoding(4, temperature=1.0))
    with pytest.raises(RecipeError, match="2 seeds for 4 prompts"):
        replies(model, rows, HOT, seeds=[1, 2])


@pytest.mark.parametrize(("settings", "expected", "said"), [
    ({}, Decoding(9, temperature=1.0, seed=4), "no sampling of its own"),
    ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1},
     Decoding(9, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1, seed=4),
     "temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.1"),
    ({"top_k": 64, "top_p": 0.95}, Decoding(9, temperature=1.0, top_k=64, top_p=0.95, seed=4), "top_p 0.95, top_k 64"),
    ({"min_p": 0.1, "temperature": 1}, Decoding(9, temperature=1.0, min_p=0.1, seed=4), "temperature 1, min_p 0.1"),
    ({"temperature": 0.0}, Decoding(9), "temperature 0"),
])  # fmt: skip
def test_the_models_own_sampling(running: Get, settings: dict[str, Any], expected: Decoding, said: str) -> None:
    model = dataclasses.replace(running(), model=SimpleNamespace(generation_config=SimpleNamespace(**settings)))
    assert default_decoding(model, 9, seed=4) == expected
    assert said in model.notes[0]


def test_sampling_settings_that_are_none_are_refused(running: Get) -> None:
    for settings, kind in (({"temperature": "hot"}, FormatError), ({"top_p": True}, FormatError), ({"top_p": 7.0}, RecipeError)):
        model = dataclasses.replace(running(), model=SimpleNamespace(generation_config=SimpleNamespace(**settings)))
        with pytest.raises(kind):
            default_decoding(model, 9)


# Going on.


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_5"])
def test_going_on_is_having_gone_on(running: Get, name: str, way: str) -> None:
    model, rows = running(name, sized(8)), prompts(12, head=9)
    whole = replies(model, rows, WAYS[way])
    for cut in (1, 7, 23):
        known = replies(model, rows, dataclasses.replace(WAYS[way], max_new_tokens=cut))
        assert [k.tokens for k in known] == [w.tokens[:cut] for w in whole]
        assert continue_replies(model, rows, known, WAYS[way]) == whole


def test_what_is_done_is_not_run_again(running: Get) -> None:
    model, rows = running("llama", sized(8)), prompts(6)
    whole = replies(model, rows, Decoding(24))
    with passes(model, most=0):
        assert continue_replies(model, rows, whole, Decoding(24), on_reply=lambda *_: pytest.fail("called")) == whole
        short = continue_replies(model, rows, whole, Decoding(2))
    assert short == replies(model, rows, Decoding(2))


# Memory.


@contextmanager
def passes(model: RunningModel, most: int, error: type[Exception] = MemoryError, text: str = "") -> Iterator[list[int]]:
    """The rows of every pass; one with more than ``most`` rows fails."""
    seen: list[int] = []

    def hook(_m: Any, _a: Any, kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > most:
            raise error(text)

    handle = model.stack.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


FULL = [(torch.OutOfMemoryError, "CUDA out of memory"), (MemoryError, ""),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")]  # fmt: skip


@pytest.mark.parametrize(("error", "text"), FULL)
@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_a_batch_that_does_not_fit_is_halved(running: Get, name: str, error: type[Exception], text: str) -> None:
    model, rows = running(name, sized(16)), prompts(10) + prompts(2, head=1)
    rows += [row[:] for row in rows]  # equal lengths, for the family that needs them
    expected = replies(model, rows, HOT)
    assert not model.notes
    heard: list[int] = []
    most = 3 if name == "llama" else 1
    with passes(model, most, error, text) as seen:
        assert replies(model, rows, HOT, on_reply=lambda i, _: heard.append(i)) == expected
    assert sorted(heard) == list(range(len(rows)))
    assert any("did not fit in memory" in n for n in model.notes)
    assert sum(n > most for n in seen) <= 4  # it does not try the larger size again


@pytest.mark.parametrize(("error", "text"), FULL)
def test_reading_and_scoring_are_halved_too(running: Get, error: type[Exception], text: str) -> None:
    rows = [tuple(p) for p in prompts(12, head=10)]
    few = [Continuation(rows[0], tuple(a)) for a in prompts(2)] + [Continuation(r, (40, 41, 42)) for r in rows]
    many = [Continuation(r, tuple(a)) for r in rows for a in prompts(3)]
    calls: list[Callable[[RunningModel], Any]] = [
        lambda m: capture(m, [Sequence(r, len(r) - 2, len(r)) for r in rows], [0, 1])[0],
        lambda m: torch.cat(answer_states(m, few)).numpy(),
        lambda m: np.array(score_answers(m, few)), lambda m: np.array(score_answers(m, many)),
    ]  # fmt: skip
    for call in calls:
        model = running("llama", dataclasses.replace(pico.CPU, batch_size=12))
        expected = call(model)
        with passes(model, 3, error, text):
            np.testing.assert_allclose(call(model), expected, rtol=2e-5, atol=2e-5)
        assert any("did not fit in memory" in n for n in model.notes)
        with passes(model, 0, error, text), pytest.raises(OutOfMemory):
            call(model)


def test_one_row_that_does_not_fit_is_an_error(running: Get) -> None:
    for head in (0, 12):
        with passes(running(), 0), pytest.raises(OutOfMemory, match="one row alone"):
            replies(running("llama", sized(8)), prompts(5, head=head), Decoding(4))


def test_a_small_cache_lets_more_rows_in(running: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are bounded by their tokens, and where a token takes little in the cache by their bytes."""
    rows = prompts(12, head=10)
    longest = max(map(len, rows)) + 6
    found, most = [], []
    for limit in (0, 1 << 30):
        monkeypatch.setattr(MODULE, "CACHE", limit)
        model = running("llama", dataclasses.replace(pico.CPU, batch_tokens=longest))
        tried: list[int] = []
        right = MODULE._Joining.join

        def join(self: Any, new: list[Any], tried: list[int] = tried, right: Any = right) -> list[Any]:
            tried.append(len(self.rows) + len(new))
            return list(right(self, new))

        with monkeypatch.context() as patch:
            patch.setattr(MODULE._Joining, "join", join)
            found.append([r.tokens for r in replies(model, rows, Decoding(6))])
        most.append(max(tried))
    assert found[0] == found[1]
    assert most[0] <= 4 * longest // min(map(len, rows))
    assert most[1] == len(rows) > most[0]


def test_rows_that_begin_differently_are_bounded_by_bytes_too(running: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a token takes is seen in the first rows' cache, where no common beginning tells it: the others join before a step."""
    rows = [[10 + i, *p] for i, p in enumerate(prompts(12, head=0))]
    model = running("llama", dataclasses.replace(pico.CPU, batch_tokens=max(map(len, rows)) + 6))
    done: list[tuple[str, int]] = []
    for name in ("join", "step"):
        right = getattr(MODULE._Joining, name)

        def call(self: Any, *a: Any, name: str = name, right: Any = right) -> list[Any]:
            done.append((name, sum(map(len, a))))
            return list(right(self, *a))

        monkeypatch.setattr(MODULE._Joining, name, call)
    replies(model, rows, Decoding(6))
    assert [n for n, _ in done[:3]] == ["join", "join", "step"]
    assert done[0][1] < done[0][1] + done[1][1] == len(rows)


def test_other_errors_are_not_taken_for_memory(running: Get) -> None:
    with passes(running(), 0, RuntimeError, "shapes do not match"), pytest.raises(RuntimeError, match="shapes"):
        replies(running("llama", sized(8)), prompts(5), Decoding(4))


# What is no number, and what is too long.


@pytest.mark.parametrize("way", list(WAYS))
def test_one_row_that_is_no_number_is_an_error(running: Get, way: str) -> None:
    model, rows = running("llama", sized(16)), prompts(8)
    weight = model.model.get_input_embeddings().weight
    old = weight[91].clone()
    try:
        weight[91] = torch.nan
        replies(model, rows, dataclasses.replace(WAYS[way], max_new_tokens=1))  # 91 is in no prompt yet
        with pytest.raises(NonFinite):
            replies(model, [*rows[:3], [91, 30], *rows[3:]], WAYS[way])
    finally:
        weight[91] = old
    head = model.model.get_output_embeddings().weight
    old = head[50].clone()
    try:
        head[50] = torch.nan  # one logit of all
        with pytest.raises(NonFinite):
            replies(model, rows, WAYS[way])
    finally:
        head[50] = old


def test_the_end_of_the_context(running: Get) -> None:
    model = running("llama", ends=1)
    rows = [[40] * 500, [41] * 20]
    model.model.generation_config.eos_token_id = []
    found = replies(model, rows, Decoding(30))
    assert len(found[0].tokens) == 12
    assert not found[0].ended
    assert len(found[1].tokens) == 30
    assert any("end of the model's context of 512 tokens" in n for n in model.notes)
    with passes(model, 0):
        for bad in ([40] * 512, [40] * 600, []):
            with pytest.raises(RecipeError):
                replies(model, [[41] * 20, bad], Decoding(4))


def test_a_batch_that_can_not_admit_join_and_step_is_none(running: Get) -> None:
    from weightsmith.runtime.generate import _Batch

    half = type("Half", (_Batch,), {"admit": None, "join": None})
    with pytest.raises(TypeError, match=r"abstract method '?step"):
        half(running(), Decoding(4), None)


def test_the_words_need_no_torch() -> None:
    code = "import weightsmith.measure.asks, weightsmith.runtime as r, sys; r.Decoding(3); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# A real model.


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_a_real_model_answers_alike_in_any_batch(way: str) -> None:
    from importlib.resources import files

    options = RunOptions(device="cpu", dtype="float32")
    model = load(open_checkpoint("demo:smollm2"), options)
    text = files("weightsmith").joinpath("features/shipped/prompts/everyday.txt").read_text(encoding="utf-8")
    rows = [model.encode([{"role": "user", "content": line}]) for line in text.splitlines()[:48]]
    decoding = Decoding(64) if way == "greedy" else Decoding(64, temperature=0.7, top_p=0.8, top_k=20, seed=0)
    alone = [replies(model, [row], decoding)[0] for row in rows]
    batched = dataclasses.replace(model, options=dataclasses.replace(options, batch_size=8))
    assert replies(batched, rows, decoding) == alone
