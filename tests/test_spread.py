"""A model over several devices: the same answers, and no operation whose tensors lie on two of them.

There is one real device here. That the figures stay is tested with two names for it; that every tensor is where it is needed, on
tensors without values (torch's fake ones), which know these names apart and refuse to mix them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import pico
from test_search_gradient import a_space, agree, parameters, plainly, weighed
from trees import Load, cases, loader
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import MissingExtra, UnsupportedModel
from weightsmith.features.select import compile_hooks
from weightsmith.records import EditSpec, EditStep
from weightsmith.runtime import RunningModel, load
from weightsmith.runtime.forward import Continuation, Sequence, answer_states, capture, score_answers
from weightsmith.runtime.generate import generate, replies, stream
from weightsmith.runtime.hooks import steering
from weightsmith.runtime.sample import Decoding
from weightsmith.runtime.spread import assign, device_names
from weightsmith.search.passes import Passes

TWO = ("cpu:0", "cpu:1")
SPREAD = ["llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3", "mixtral", "deepseek_v3", "qwen3_next", "lfm2", "gpt_oss",
          "cohere2"]  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return loader(tmp_path_factory.mktemp("pico"))


def over_two(model: RunningModel) -> RunningModel:
    # torch gives processor memory no index, so accelerate would move what already is where it belongs, and lose its type
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.modeling.check_device_same", lambda a, b: a.type == b.type)
        return load(model.checkpoint, dataclasses.replace(model.options, device=",".join(TWO)))


def work(model: RunningModel) -> dict[str, Any]:
    """A bit of everything that runs a model."""
    rows = pico.ids()
    layers = list(range(len(model.blocks)))
    direction = pico.a_direction(model.checkpoint)
    step = EditStep(kind="add", direction=direction.digest(), source=layers[-1], layers=layers, amount=0.2)
    hooks = compile_hooks(model, EditSpec(steps=[step]), {direction.digest(): direction})
    ends = [Continuation(tuple(r), tuple(r[:3])) for r in rows]
    found: dict[str, Any] = {
        "captured": capture(model, [Sequence(tuple(r), 0, len(r)) for r in rows], layers)[0],
        "states": torch.cat([s.detach() for s in answer_states(model, ends)]),
        "scores": score_answers(model, [Continuation(tuple(rows[0]), (a, 40)) for a in range(30, 40)]),
        "greedy": generate(model, rows, 6),
        "sampled": [r.tokens for r in replies(model, rows, Decoding(6, temperature=0.8, seed=3, repetition_penalty=1.2))],
        "streamed": list(stream(model, rows[0], 4)),
    }
    with steering(model, hooks):
        found["steered"] = generate(model, rows, 6)
    return found


@pytest.mark.parametrize("name", SPREAD)
def test_spread_or_not_it_says_the_same(running: Load, name: str) -> None:
    model = running(name)
    spread = over_two(model)
    assert spread.devices == TWO
    assert spread.ran["device"] == "cpu:0,cpu:1"
    placed = spread.model.hf_device_map
    assert set(map(str, placed.values())) == set(TWO)
    one, two = work(model), work(spread)
    for key, value in one.items():
        if isinstance(value, np.ndarray | torch.Tensor):
            assert np.allclose(np.asarray(value), np.asarray(two[key]), rtol=1e-5, atol=1e-6), key
        elif key == "scores":
            assert value == pytest.approx(two[key], rel=1e-5)
        else:
            assert value == two[key], key


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral", "qwen3_next"])
@pytest.mark.parametrize("kind", ["remove", "add"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_a_spread_model_are_the_same(running: Load, name: str, kind: str, recompute: bool) -> None:
    model = running(name)
    spread, trees = over_two(model), cases(2)["long shared"]
    space, values = a_space(model, kind)
    expected = plainly(model, space, values, trees)
    for start in (0, 1):
        own = Passes(spread, start)
        own.recompute = recompute
        space, values = a_space(spread, kind)
        rows = own.prepare(trees)
        wrapped = [b.__dict__.get("forward") for b in spread.blocks]
        assert all(wrapped)
        with space.hooked(values):
            found = own.each(rows, range(len(trees)), weighed(spread, trees), parameters(values))
        assert [b.__dict__.get("forward") for b in spread.blocks] == wrapped
        if start == 0:
            assert agree(found, expected)


class Apart(FakeTensorMode):
    """Fake tensors, of which every number that is asked for is a half."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            return True if kind == torch.bool else 0.5 if kind.is_floating_point else 0
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, FakeTensor) and tensor.fake_device == torch.device("cpu"):
                tensor.fake_device = torch.device(TWO[0])  # made of numbers, which torch puts on the nameless one
        return super().dispatch(func, types, args, kwargs)


class Numbers(TorchFunctionMode):
    """Tensors that are made of numbers lie where they are meant to: torch makes them on the nameless processor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is not torch.tensor:
            return func(*args, **given)
        values = np.asarray(args[0])
        kinds = {"b": torch.bool, "i": torch.long, "f": torch.float32}
        return torch.empty(values.shape, dtype=given.get("dtype") or kinds[values.dtype.kind], device=given.get("device") or TWO[0])


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Tensors without values, on the first of the two devices where nobody says another."""
    with Apart(allow_non_fake_inputs=False), torch.device(TWO[0]), Numbers():
        yield


def test_fake_tensors_see_what_lies_apart() -> None:
    with apart():
        a, b = torch.zeros(2, device="cpu:0"), torch.zeros(2, device="cpu:1")
        with pytest.raises(RuntimeError, match="same device"):
            a + b
        assert float(a.sum()) == 0.5
        assert (a.to("cpu:1") + b).device == b.device


def faked(model: RunningModel) -> RunningModel:
    """The model without values, over two devices that are told apart. To be called, and used, within :func:`apart`."""
    from accelerate import dispatch_model
    from transformers import AutoModelForCausalLM

    fresh = AutoModelForCausalLM.from_config(model.model.config, dtype=torch.float32).eval().requires_grad_(False)
    pattern = model.prefix + model.architecture.family.block
    placed = assign(fresh, [pattern.format(i=i) for i in range(len(model.blocks))], TWO)
    for name, module in fresh.named_modules():
        for held, wrap in ((module._parameters, lambda x: nn.Parameter(x, requires_grad=False)), (module._buffers, lambda x: x)):
            for key, tensor in held.items():
                device = next(d for f, d in placed.items() if f"{name}.{key}".removeprefix(".").startswith((f + ".", f)))
                held[key] = None if tensor is None else wrap(tensor.to(device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks fake tensors where they are, to find those that are tied
        spread = dispatch_model(fresh, placed, skip_keys=fresh._skip_keys_device_placement)
    return dataclasses.replace(model, model=spread, device="cpu:0", devices=TWO, notes=[])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mistral"])
@pytest.mark.parametrize("kind", ["remove", "add"])
def test_gradients_mix_no_devices(running: Load, name: str, kind: str) -> None:
    model, trees = running(name), cases(2)["long shared"]
    with apart():
        spread = faked(model)
        space, values = a_space(spread, kind)
        for recompute in (False, True):
            own = Passes(spread, 1)
            own.recompute = recompute
            rows = own.prepare(trees)
            with space.hooked(values):
                _, sums = own.each(rows, range(len(trees)), weighed(spread, trees), parameters(values))
            assert {g.device for g in sums} == {torch.device("cpu:0")}


def test_everything_else_mixes_no_devices(running: Load) -> None:
    model = running("llama")
    with apart():
        spread = faked(model)
        kept = {b.self_attn.q_proj.weight.device for b in spread.blocks}
        assert kept == {torch.device(d) for d in TWO}
        out = spread.stack(input_ids=torch.zeros((1, 4), dtype=torch.long, device="cpu:0")).last_hidden_state
        assert out.device == torch.device("cpu:1")
        assert spread.logits(out).device == spread.head.weight.device
        layers = list(range(len(spread.blocks)))
        direction = pico.a_direction(model.checkpoint)
        step = EditStep(kind="add", direction=direction.digest(), source=layers[-1], layers=layers, amount=0.2)
        hooks = compile_hooks(spread, EditSpec(steps=[step]), {direction.digest(): direction})
        with steering(spread, hooks):
            spread.stack(input_ids=torch.zeros((1, 4), dtype=torch.long, device="cpu:0"))


# Where what goes.


class Stack(nn.Module):
    """Blocks of given sizes between an embedding and a head."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList([nn.Linear(1, n, bias=False) for n in sizes])
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("sizes", [[5] * 12, [5] * 7, [1, 1, 1, 1, 96], [96, 1, 1, 1, 1], list(range(1, 20))])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_blocks_go_in_order_and_every_device_gets_some(sizes: list[int], count: int) -> None:
    model, devices = Stack(sizes), [f"cuda:{k}" for k in range(count)]
    found = assign(model, [f"layers.{i}" for i in range(len(sizes))], devices)
    places = [devices.index(found[f"layers.{i}"]) for i in range(len(sizes))]
    assert places == sorted(places)
    assert set(places) == set(range(count))
    assert found["embed"] == devices[0]
    assert found["norm"] == devices[-1]
    for name, _ in model.named_parameters():
        assert sum(name == f or name.startswith(f + ".") for f in found) == 1


def test_even_blocks_are_shared_evenly() -> None:
    found = assign(Stack([7] * 12), [f"layers.{i}" for i in range(12)], ["a", "b", "c"])
    assert [list(found.values()).count(d) for d in "abc"] == [6, 4, 5]  # with the table and the scale, and with the norm


@pytest.mark.parametrize(("wish", "names"), [(None, []), ("cuda", ["cuda"]), ("cuda:0, cuda:1", ["cuda:0", "cuda:1"])])
def test_names_of_devices(wish: str | None, names: list[str]) -> None:
    assert device_names(wish) == names


@pytest.mark.parametrize("wish", ["cuda:0,cuda:0", "cuda:0,", ",", "cpu,meta", "cuda:0,nowhere"])
def test_names_that_make_no_sense(running: Load, wish: str) -> None:
    model = running("llama")
    with pytest.raises(UnsupportedModel):
        load(model.checkpoint, dataclasses.replace(model.options, device=wish))


def test_more_devices_than_layers(running: Load) -> None:
    model = running("llama")
    with pytest.raises(UnsupportedModel, match="2 layers can't be spread over 3 devices"):
        load(model.checkpoint, dataclasses.replace(model.options, device="cpu:0,cpu:1,cpu:2"))


def test_without_accelerate_the_command_to_install_is_said(running: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    model = running("llama")
    with pytest.raises(MissingExtra) as caught:
        load(model.checkpoint, dataclasses.replace(model.options, device=",".join(TWO)))
    assert "weightsmith[gpus]" in str(caught.value)


def test_the_folder_is_the_same_model(running: Load) -> None:
    model = running("llama")
    assert over_two(model).identity == model.identity == load(open_checkpoint(model.checkpoint.ref), model.options).identity
