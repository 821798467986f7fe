"""The running model against plain transformers: capture, logits, scores and generation, in batches of unequal length."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import (
    FormatError,
    ManifestMismatch,
    NonFinite,
    RecipeError,
    RemoteCode,
    UnsafeModel,
    UnsupportedModel,
)
from weightsmith.jobs.edit import edit
from weightsmith.options import RunOptions
from weightsmith.plan import compile_edit
from weightsmith.records import EditSpec, EditStep
from weightsmith.runtime import (
    Continuation,
    RunningModel,
    Sequence,
    answer_states,
    capture,
    generate,
    load,
    score_answers,
    steering,
    stream,
)
from weightsmith.runtime.forward import shared_prefix
from weightsmith.runtime.load import quick
from weightsmith.trust.gate import Shield, scan_path

#: name -> (family, config): windows of 16 tokens are shorter than the prompts
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}), "llama_bias": ("llama_bias", {}), "mistral_window": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {}), "qwen3": ("qwen3", {}), "gemma2": ("gemma2", {}), "gemma3": ("gemma3", {}),
    "gemma3_images": ("gemma3_images", {}), "olmo2": ("olmo2", {}), "phi3": ("phi3", {}), "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}), "mixtral": ("mixtral", {}), "qwen3_moe": ("qwen3_moe", {}),
    "qwen2_moe": ("qwen2_moe", {}), "gpt_oss": ("gpt_oss", {}),
    # logits that are scaled; states in place of a cache; attention in chunks; layers that share keys
    "cohere2": ("cohere2", {}), "granite": ("granite", {}), "qwen3_5": ("qwen3_5", {}), "lfm2": ("lfm2", {}),
    "llama4": ("llama4", {"attention_chunk_size": 16}), "gemma4": ("gemma4_shared", {}), "glm4": ("glm4", {}),
    "deepseek_v3": ("deepseek_v3", {}),
}  # fmt: skip
TALKS = ("Why is the sea salt?", "Write a letter to an old friend about the rain in the hills, please.", "Hm?",
         "Give me three words for a warm wind.", "Which of the two is the tallest tree?")  # fmt: skip
ALONE = ("the sea", "a letter to an old friend, please", "why?", "say something kind about the rain in the hills")
#: small batches, so that there are several
SMALL = dataclasses.replace(pico.CPU, batch_size=2, batch_tokens=160)
#: what stands for the gate where the loader's own checks are asked for
SHIELD = Shield(scan_path(Path(__file__), "none"), remembered=False)


#: A beginning that is shared stands before padding that is not: a window then counts the padding as tokens.
#: Disabling ``shared_prefix`` makes every one of these pass.
CASES = [(name, kind) for name in MODELS for kind in ("talks", "alone")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunningModel]:
    """Running pico models, each loaded once."""
    root = tmp_path_factory.mktemp("pico")
    loaded: dict[str, RunningModel] = {}

    def get(name: str, options: RunOptions = pico.CPU) -> RunningModel:
        if name not in loaded:
            family, config = MODELS[name]
            folder = pico.build(family, root / name, **config)
            loaded[name] = load(open_checkpoint(str(folder)), pico.CPU)
        return dataclasses.replace(loaded[name], options=options)

    return get


def prompts_of(model: RunningModel, kind: str) -> list[list[int]]:
    """Token ids with a beginning in common (the template and a system message), or without one."""
    if kind == "alone":
        return pico.ids(ALONE)
    system = {"role": "system", "content": "You are a lighthouse keeper."}
    return [model.encode([system, {"role": "user", "content": text}]) for text in TALKS]


def test_the_two_kinds_of_prompts_are_two_kinds(running: Callable[..., RunningModel]) -> None:
    talks, alone = (prompts_of(running("llama"), kind) for kind in ("talks", "alone"))
    assert shared_prefix(talks, [len(p) - 1 for p in talks]) >= 30
    assert shared_prefix(alone, [len(p) - 1 for p in alone]) == 0
    assert len({len(p) for p in talks}) == len(talks)
    assert len({len(p) for p in alone}) == len(alone)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_capture_reads_the_hidden_states(running: Callable[..., RunningModel], name: str, kind: str) -> None:
    model = running(name, SMALL)
    rows = prompts_of(model, kind)
    spans = [(len(r) - 1 - k % 3, len(r)) for k, r in enumerate(rows)]
    if kind == "alone":
        spans[1] = (0, len(rows[1]))
    sequences = [Sequence(tuple(r), *s) for r, s in zip(rows, spans, strict=True)]
    layers = list(range(pico.LAYERS))
    got = {point: capture(model, sequences, layers, point) for point in ("resid_pre", "resid_post")}
    for k, (row, (start, stop)) in enumerate(zip(rows, spans, strict=True)):
        states = hidden_states(model, row)
        for layer in layers:
            for point, at in (("resid_pre", layer), ("resid_post", layer + 1)):
                h = states[at][start:stop]
                values, norms = got[point]
                scale = float(h.norm(dim=-1).mean())
                assert np.abs(values[k, layer] - h.mean(0).numpy()).max() < 1e-5 * scale
                assert norms[k, layer] == pytest.approx(scale, rel=1e-5)
    (one, _), (both, _) = (capture(model, sequences, x) for x in ([1], [0, 1]))
    np.testing.assert_array_equal(one[:, 0], both[:, 1])


@torch.no_grad()
def hidden_states(model: RunningModel, row: list[int]) -> list[torch.Tensor]:
    """``[tokens, d_model]`` before the first block and after each; transformers norms its last one, so that is hooked."""
    last: list[torch.Tensor] = []
    handle = model.blocks[-1].register_forward_hook(
        lambda _m, _i, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    found = model.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
    handle.remove()
    return [*(h[0] for h in found[:-1]), last[0][0]]


@torch.no_grad()
@pytest.mark.parametrize("name", list(MODELS))
def test_logits_are_the_models_own(running: Callable[..., RunningModel], name: str) -> None:
    model = running(name)
    for row in pico.ids():
        ids = torch.tensor([row])
        mine = model.logits(model.stack(input_ids=ids).last_hidden_state)
        theirs = model.model(input_ids=ids).logits
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    if name == "gemma2":  # the cap is there, and low enough to show
        assert float(theirs.abs().max()) <= 3.0
        assert float(theirs.abs().max()) > 2.0


@torch.no_grad()
def greedy(model: RunningModel, row: list[int], count: int) -> list[int]:
    """What transformers answers to one prompt, without the token that ends it."""
    ids = torch.tensor([row])
    with pico.quiet():
        out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                                   pad_token_id=pico.PAD)  # fmt: skip
    answer: list[int] = out[0, len(row) :].tolist()
    return answer[:-1] if answer and answer[-1] in model.stop_tokens else answer


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_generation_is_greedy_decoding(
    running: Callable[..., RunningModel], name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = running(name)
    rows = prompts_of(model, kind)
    expected = [greedy(model, row, 16) for row in rows]
    assert generate(model, rows, 16) == expected
    # end some rows early: a token that turns up in the middle of an answer becomes an end token
    longest = max(expected, key=lambda a: len(set(a)))
    end = longest[len(longest) // 2]
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", [pico.EOS, end])
    expected = [greedy(model, row, 16) for row in rows]
    assert len({len(a) for a in expected}) > 1 or len(expected[0]) < 16
    assert generate(model, rows, 16) == expected
    small = dataclasses.replace(model, options=dataclasses.replace(pico.CPU, batch_size=1, batch_tokens=20))
    assert generate(small, rows, 16) == expected


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_oss"])
def test_a_stream_says_what_generation_says(running: Callable[..., RunningModel], name: str) -> None:
    model = running(name)
    for row, answer in zip(pico.ids(), generate(model, pico.ids(), 16), strict=True):
        pieces = list(stream(model, row, 16))
        assert "".join(pieces) == model.decode(answer)
    if name != "llama":  # the others are too sure of themselves
        return
    hot = ["".join(stream(model, pico.ids()[0], 16, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


@torch.no_grad()
def logprob(model: RunningModel, item: Continuation) -> float:
    """Mean log-probability of the answer's tokens, from the logits of one plain pass."""
    ids = torch.tensor([[*item.prompt, *item.answer]])
    shares = torch.log_softmax(model.model(input_ids=ids).logits[0].double(), -1)
    at = range(len(item.prompt) - 1, ids.shape[1] - 1)
    return float(np.mean([float(shares[i, t]) for i, t in zip(at, item.answer, strict=True)]))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scores_are_the_same_by_either_path(running: Callable[..., RunningModel], name: str, kind: str) -> None:
    """Answers that share a prompt run on its repeated cache; alone they run as whole rows."""
    model = running(name, SMALL)
    answers = [tuple(a) for a in pico.ids(("no", "yes, of course", "I would rather not say that", "K"))]
    items = [Continuation(tuple(p), a) for k, p in enumerate(prompts_of(model, kind))
             for a in answers[: 4 - k % 2]]  # fmt: skip
    items = items[::2] + items[1::2]  # not in the order of the prompts
    expected = [logprob(model, item) for item in items]
    assert score_answers(model, items) == pytest.approx(expected, rel=2e-5, abs=2e-5)
    alone = [score_answers(model, [item])[0] for item in items[:6]]
    assert alone == pytest.approx(expected[:6], rel=2e-5, abs=2e-5)
    states = answer_states(model, items)
    assert [s.shape for s in states] == [(len(i.answer), pico.WIDTH) for i in items]
    by_states = [float(torch.log_softmax(model.logits(s), -1)[range(len(i.answer)), list(i.answer)].mean())
                 for s, i in zip(states, items, strict=True)]  # fmt: skip
    assert by_states == pytest.approx(expected, rel=2e-5, abs=2e-5)


def test_scores_differ_from_one_another(running: Callable[..., RunningModel]) -> None:
    """So that the agreement above says something."""
    prompt = tuple(pico.ids()[0])
    items = [Continuation(prompt, tuple(a)) for a in pico.ids(("no", "yes, of course", "K"))]
    found = score_answers(running("llama"), items)
    assert min(abs(a - b) for k, a in enumerate(found) for b in found[:k]) > 0.01


@pytest.mark.parametrize("name", ["llama_bias", "gemma2", "gpt2", "gpt_oss", "qwen2_moe"])
def test_steering_holds_while_answering(running: Callable[..., RunningModel], name: str, tmp_path: Path) -> None:
    """With a cache and in batches, hooks answer and score as the edited weights do."""
    model = running(name)
    direction = pico.a_direction(model.checkpoint)
    step = EditStep(kind="remove", direction=direction.digest(), source=1, layers=[0, 1], amount=1.0)
    hooks = compile_edit(model.checkpoint, EditSpec(steps=[step]), {step.direction: direction}, hooks_only=True).hooks
    edit(model.checkpoint, direction, tmp_path / "out", remove=1.0, source=1)
    edited = load(open_checkpoint(str(tmp_path / "out")), pico.CPU)
    rows = prompts_of(model, "talks")
    items = [Continuation(tuple(rows[0]), tuple(a)) for a in pico.ids(("no", "yes, of course", "K"))]
    hooks_before = [len(m._forward_hooks) for m in model.model.modules()]
    unsteered, before = generate(model, rows, 12), score_answers(model, items)
    with steering(model, hooks):
        assert generate(model, rows, 12) == generate(edited, rows, 12)
        assert score_answers(model, items) == pytest.approx(score_answers(edited, items), abs=3e-5)
        assert score_answers(model, items) != pytest.approx(before, abs=1e-2)
    assert generate(model, rows, 12) == unsteered
    assert [len(m._forward_hooks) for m in model.model.modules()] == hooks_before


# Refusals.


def test_what_cannot_be_read_is_refused(running: Callable[..., RunningModel]) -> None:
    model = running("llama")
    with pytest.raises(RecipeError, match="no tokens"):
        generate(model, [[]], 4)
    with pytest.raises(RecipeError, match="600 tokens, the model reads 512"):
        capture(model, [Sequence((5,) * 600, 0, 600)], [0])
    with pytest.raises(RecipeError, match="answer came to no tokens"):
        answer_states(model, [Continuation((5, 6), ())])


@pytest.fixture
def copy(running: Callable[..., RunningModel], tmp_path: Path) -> Path:
    return Path(shutil.copytree(running("llama").checkpoint.path, tmp_path / "copy"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_the_models_own_is_never_run(copy: Path, file: str) -> None:
    import json

    data = json.loads((copy / file).read_text())
    data["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", "evil.T"],
                        "AutoConfig": "evil.Config"}  # fmt: skip
    (copy / file).write_text(json.dumps(data))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    with pytest.raises(RemoteCode, match="not run"):
        load(open_checkpoint(str(copy)), pico.CPU)
    model = load(open_checkpoint(str(copy)), dataclasses.replace(pico.CPU, ignore_remote_code=True))
    assert type(model.model).__name__ == "LlamaForCausalLM"
    assert not (copy / "ran").exists()


def test_missing_weights_are_not_made_up(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pico.rename(copy, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(UnsafeModel, match=r"1 of 20 weights .* missing.*layers\.1\.mlp\.up_proj"):
        load(open_checkpoint(str(copy)), pico.CPU)
    monkeypatch.setattr(sys.modules["weightsmith.runtime.load"], "pass_gate", lambda *_: SHIELD)
    with pytest.raises(ManifestMismatch, match=r"1 weights .* missing.*layers\.1\.mlp\.up_proj"):
        load(open_checkpoint(str(copy)), pico.CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(copy: Path, value: float) -> None:
    checkpoint = open_checkpoint(str(copy))
    spec = checkpoint.tensors["model.layers.1.input_layernorm.weight"]
    with spec.file.open("r+b") as file:
        file.seek(spec.start + 8)
        file.write(np.float32(value).tobytes())
    with pytest.raises(NonFinite, match=r"layers\.1\.input_layernorm"):
        load(open_checkpoint(str(copy)), pico.CPU)
    with pytest.raises(NonFinite, match=r"layers\.1\.input_layernorm"):
        edit(copy, pico.a_direction(copy), copy.parent / "out", remove=1.0)


def test_a_config_that_does_not_fit_the_weights_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pico.edit_config(copy, intermediate_size=128)
    with pytest.raises(UnsafeModel, match="another shape than the config says"):
        load(open_checkpoint(str(copy)), pico.CPU)
    monkeypatch.setattr(sys.modules["weightsmith.runtime.load"], "pass_gate", lambda *_: SHIELD)
    with pytest.raises((ManifestMismatch, UnsupportedModel)):
        load(open_checkpoint(str(copy)), pico.CPU)


@pytest.mark.parametrize(("amx", "avx", "wish", "expected"), [
    (True, False, None, "bfloat16"), (False, True, None, "bfloat16"), (False, False, None, None),
    (True, True, "float32", "float32"),
])  # fmt: skip
def test_a_search_takes_bf16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool, wish: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert quick(RunOptions(device="cpu", dtype=wish)).dtype == expected


def test_unknown_devices_and_dtypes(running: Callable[..., RunningModel]) -> None:
    checkpoint = running("llama").checkpoint
    with pytest.raises(UnsupportedModel, match="dtype 'int3'"):
        load(checkpoint, RunOptions(device="cpu", dtype="int3"))
    with pytest.raises(UnsupportedModel, match="device 'abacus'"):
        load(checkpoint, RunOptions(device="abacus"))


def test_templates(copy: Path) -> None:
    """A template without system messages gets them in the first user message; a broken one is a clear error."""
    system = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    template = copy / "chat_template.jinja"
    template.write_text("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
                        "[{{ m.content }}]{% endfor %}")  # fmt: skip
    model = load(open_checkpoint(str(copy)), pico.CPU)
    assert model.render(system) == "[S\n\nU]"
    assert any("no system message" in n for n in model.notes)
    template.write_text("{{ 1 / 0 }}")
    model = load(open_checkpoint(str(copy)), pico.CPU)
    with pytest.raises(FormatError, match="template fails"):
        model.render(system)
    template.unlink()
    model = load(open_checkpoint(str(copy)), pico.CPU)
    assert not model.has_template
    assert model.render(system) == "S\n\nU"
    assert any("no chat template" in n for n in model.notes)
