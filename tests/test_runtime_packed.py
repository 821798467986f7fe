"""Weights laid out for a processor's products: the same sums, while a batch is answered and no longer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import NonFinite
from weightsmith.runtime import Decoding, RunningModel, load, replies

layout = importlib.import_module("weightsmith.runtime.packed")
Running = Callable[..., RunningModel]
DTYPES = ("float32", "bfloat16")
ASKED = [pico.ids()[k % len(pico.ids())][: 3 + k] for k in range(12)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Running:
    """Running pico models, each loaded once."""
    root, loaded = tmp_path_factory.mktemp("pico"), dict[tuple[str, str], RunningModel]()

    def get(family: str = "llama", dtype: str = "float32") -> RunningModel:
        if (family, dtype) not in loaded:
            folder = root / f"{family}-{dtype}"
            loaded[family, dtype] = load(open_checkpoint(str(pico.build(family, folder))), replace(pico.CPU, dtype=dtype))
        return replace(loaded[family, dtype], packed=None)

    return get


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay weights out for any number of tokens."""
    monkeypatch.setattr(layout, "LEAST", 1)
    monkeypatch.setattr(layout, "STEPS", 1)


def able(dtype: str) -> None:
    if not layout.multiplies(getattr(torch, dtype)):
        pytest.skip(f"this processor has no products of laid-out weights in {dtype}")


def states(model: RunningModel, rows: int = 3) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.arange(30, 30 + 7 * rows).view(rows, 7)
        return torch.cat([(x := model.stack(input_ids=ids).last_hidden_state), model.logits(x).to(x.dtype)], -1)


@pytest.mark.parametrize("rows", [1, 8, 40])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_the_plain_weights(dtype: str, bias: bool, rows: int) -> None:
    able(dtype)
    torch.manual_seed(0)
    layer = nn.Linear(96, 160, bias=bias, dtype=getattr(torch, dtype))
    x = torch.randn(rows, 2, 96, dtype=layer.weight.dtype)
    with torch.inference_mode():
        plain, laid = layer(x), layout._product(layer.weight, layer.bias)(x)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert laid.shape == plain.shape
    assert laid.dtype == plain.dtype
    assert (laid.double() - exact).norm() <= 2 * (plain.double() - exact).norm() + 1e-6 * exact.norm()
    if dtype == "bfloat16":
        assert torch.equal(laid, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "cohere2", "granite", "mixtral", "gpt2", "lfm2"])
def test_a_model_computes_the_same(running: Running, always: None, family: str, dtype: str) -> None:
    able(dtype)
    model = running(family, dtype)
    before = states(model)
    with layout.packed(model, 1, 1):
        assert model.product is not None
        assert all("forward" in vars(layer) for layer, _ in model.packed.layers)
        during = states(model)
    torch.testing.assert_close(during, before, **({"rtol": 0, "atol": 0} if dtype == "bfloat16" else {"rtol": 1e-4, "atol": 1e-5}))
    assert model.product is None
    assert not any("forward" in vars(m) for m in model.model.modules())
    assert torch.equal(states(model), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_are_the_same_and_made_with_them(running: Running, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    able(dtype)
    model, uses = running("llama", dtype), list[Any]()
    plain = replies(model, ASKED, Decoding(24))
    assert model.packed is None, "288 tokens are not worth it"
    multiply = layout._multiply
    monkeypatch.setattr(layout, "_multiply", lambda *a: uses.append(a) or multiply(*a))
    monkeypatch.setattr(layout, "LEAST", len(ASKED) * 24)
    monkeypatch.setattr(layout, "STEPS", 24)
    assert replies(model, ASKED, Decoding(24)) == plain
    assert uses
    assert model.packed is not None
    kept, before = model.packed, len(uses)
    replies(model, ASKED[:2], Decoding(2))
    assert model.packed is kept, "laid out once"
    assert len(uses) > before, "what is there is used for short answers too"


def test_what_hooks_add_is_added(running: Running, always: None) -> None:
    able("float32")
    model = running()
    layer = next(m for m in model.stack.modules() if type(m) is nn.Linear)
    with layout.packed(model, 1, 1):
        before = states(model)
        with layer.register_forward_hook(lambda _m, _x, out: out + 1.0):
            assert not torch.allclose(states(model), before)
        torch.testing.assert_close(states(model), before)


def test_an_error_leaves_the_model_as_it_was(running: Running, always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    able("float32")
    model = running()
    monkeypatch.setattr(type(model), "logits", lambda self, x: x.new_full((len(x), 8), float("nan")))
    with pytest.raises(NonFinite):
        replies(model, ASKED, Decoding(4))
    assert model.product is None
    assert not any("forward" in vars(m) for m in model.model.modules())


def test_without_memory_for_them_answers_are_made_all_the_same(
    running: Running, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    able("float32")
    model = running()
    plain = replies(model, ASKED, Decoding(4))
    model.packed = None

    def no_room(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8589934592 bytes.")

    monkeypatch.setattr(layout, "_product", no_room)
    assert replies(model, ASKED, Decoding(4)) == plain
    assert model.packed is None


def test_where_they_are_worth_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    able("float32")
    model = running()
    enough = (layout.LEAST, layout.STEPS)
    assert layout.worth(model, *enough)
    assert not layout.worth(model, layout.LEAST - 1, layout.STEPS)
    assert not layout.worth(model, layout.LEAST, layout.STEPS - 1)
    for odd in ({"device": "cuda:0"}, {"devices": ("cpu", "cuda:0")}, {"dtype": torch.float64}, {"dtype": torch.float16},
                {"options": replace(model.options, memory=1 << 34)}):  # fmt: skip
        assert not layout.worth(replace(model, **odd), *enough), odd
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    for memory, expected in ((8 * weights, True), (8 * weights - 1, False), (0, False)):
        monkeypatch.setattr(layout, "all_memory", lambda memory=memory: memory)
        assert layout.worth(model, *enough) is expected
