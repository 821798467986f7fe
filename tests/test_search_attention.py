"""Attention in plain products agrees with the library's fused one, forwards and backwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from weightsmith.search import attention  # noqa: E402
from weightsmith.search.attention import attend, quick_back  # noqa: E402


def _inputs(heads: int, groups: int, queries: int, keys: int, *, wide: int = 16) -> list[Any]:
    torch.manual_seed(heads + queries)
    shapes = [(2, heads, queries, 16), (2, groups, keys, 16), (2, groups, keys, wide)]
    return [torch.randn(s, requires_grad=True) for s in shapes]


def _mask(queries: int, keys: int, kind: str) -> Any:
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(2, 1, queries, keys).clone()
    seen[1, 0, :, : keys - queries - 1] = False
    return {"none": None, "bool": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)}[kind]


@pytest.mark.parametrize(
    ("queries", "keys", "kind"), [(7, 7, "none"), (7, 12, "bool"), (7, 12, "added"), (1, 9, "none"), (7, 12, "none")]
)
@pytest.mark.parametrize(("heads", "groups", "wide"), [(4, 4, 16), (6, 2, 16), (4, 1, 8)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_same_as_the_fused_kernel(
    queries: int, keys: int, kind: str, heads: int, groups: int, wide: int, scaling: float | None
) -> None:
    """Outputs and the gradients of queries, keys and values; also where there are more keys than queries and no mask, which
    SDPA takes in a way of its own."""
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    found = []
    for how in (sdpa_attention_forward, attend):
        inputs = _inputs(heads, groups, queries, keys, wide=wide)
        out, _ = how(module, *inputs, _mask(queries, keys, kind), scaling=scaling)
        torch.manual_seed(0)
        found.append([out.detach(), *torch.autograd.grad(out, inputs, torch.randn(out.shape))])
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


def test_in_bf16_as_near_to_fp32_as_the_fused_kernel() -> None:
    """The dtype in which it is used: its errors are at most twice those of the fused kernel, by output and by gradient."""
    module, mask = SimpleNamespace(num_key_value_groups=3, is_causal=True), _mask(40, 52, "bool")
    found = []
    for how, dtype in ((sdpa_attention_forward, torch.float32), (sdpa_attention_forward, torch.bfloat16), (attend, torch.bfloat16)):
        inputs = [x.detach().bfloat16().to(dtype).requires_grad_() for x in _inputs(6, 2, 40, 52)]
        out, _ = how(module, *inputs, mask)
        torch.manual_seed(0)
        back = torch.randn(out.shape).bfloat16().to(dtype)
        found.append([x.float() for x in (out.detach(), *torch.autograd.grad(out, inputs, back))])
    for exact, fused, plain in zip(*found, strict=True):
        assert 0 < float((plain - exact).norm()) <= 2 * float((fused - exact).norm())


def test_only_where_a_gradient_goes_back_through_short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    apply = attention._Plain.apply
    monkeypatch.setattr(attention._Plain, "apply", lambda *a: made.append(1) or apply(*a))
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    short, long = _inputs(2, 2, 5, 5), _inputs(2, 2, attention.LONGEST + 1, attention.LONGEST + 1)
    attend(module, *(x.detach() for x in short), None)
    attend(module, *long, None)
    with torch.no_grad():
        attend(module, *short, None)
    assert not made
    attend(module, *short, None)
    assert made


def test_a_model_gets_its_own_attention_back() -> None:
    """Also after an error; a model that does not attend by SDPA is not touched, and the gradients are those of before."""
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    running: Any = SimpleNamespace(model=model)
    ids = torch.arange(20).reshape(2, 10)
    grads = []
    for swapped in (False, True):
        hidden = model.get_input_embeddings()(ids).detach().requires_grad_()
        if swapped:
            with quick_back(running):
                assert model.config._attn_implementation == attention.NAME
                out = model(inputs_embeds=hidden).logits
        else:
            out = model(inputs_embeds=hidden).logits
        grads.append(torch.autograd.grad(out.square().sum(), hidden)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ZeroDivisionError), quick_back(running):
        _ = 1 / 0
    assert model.config._attn_implementation == "sdpa"
    model.config._attn_implementation = "eager"
    with quick_back(running):
        assert model.config._attn_implementation == "eager"
