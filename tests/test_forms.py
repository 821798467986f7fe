"""What an edit writes: the forms that a constant takes in each family, and the files, byte by byte."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pico
from weightsmith.checkpoint import INDEX, KEPT, RECORD, open_checkpoint
from weightsmith.direction import Direction
from weightsmith.edits import AddOutput
from weightsmith.edits.constant import fit_writer
from weightsmith.errors import DigestMismatch, EditError, NonFinite, OutputExists, RecipeError, UnsafeModel, UsageError
from weightsmith.jobs.edit import edit
from weightsmith.jobs.measured import sentence
from weightsmith.options import RunOptions
from weightsmith.plan import compile_edit
from weightsmith.records import Derivation, EditSpec, EditStep, parse
from weightsmith.runtime import load, steering

Pico = Callable[..., Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Pico models by family, dtype and config, each built once."""
    root = tmp_path_factory.mktemp("pico")
    built: dict[str, Path] = {}

    def get(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
        key = f"{family}-{dtype}-{sorted(overrides.items())}"
        if key not in built:
            built[key] = pico.build(family, root / f"{family}{len(built)}", dtype, **overrides)
        return built[key]

    return get


def an_addition(direction: Direction, layers: list[int], amount: float = 0.8, **fields: Any) -> EditSpec:
    return EditSpec(steps=[EditStep(kind="add", direction=direction.digest(), source=1, layers=layers, amount=amount,
                                    **fields)])  # fmt: skip


def running(folder: Path) -> Any:
    return load(open_checkpoint(str(folder)), pico.CPU)


@torch.no_grad()
def logits_of(model: Any) -> list[torch.Tensor]:
    found = [model.model(input_ids=torch.tensor([row])).logits for row in pico.ids()]
    assert all(bool(torch.isfinite(x).all()) for x in found)
    return found


def apart(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference, as a share of the logits' spread."""
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(mine, theirs, strict=True))


def hooked(base: Path, spec: EditSpec, direction: Direction) -> list[torch.Tensor]:
    checkpoint = open_checkpoint(str(base))
    model = load(checkpoint, pico.CPU)
    found = {direction.digest(): direction}
    with steering(model, compile_edit(checkpoint, spec, found, hooks_only=True).hooks):
        return logits_of(model)


def loads_cleanly(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with pico.quiet():
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def files_in(folder: Path) -> set[str]:
    """Every file of a folder, by its path in it."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def audit(base: Path, out: Path, record: Derivation) -> None:
    """What holds for every output: the record says exactly what differs, and everything else is as it was."""
    before, after = pico.tensors(base), pico.tensors(out)
    changed = [n for n in before if before[n] != after[n]]
    new = [n for n in after if n not in before]
    assert [t.tensor for t in record.tensors if not t.added] == changed
    assert sorted(t.tensor for t in record.tensors if t.added) == sorted(new)
    assert set(before) <= set(after)
    for file in sorted(base.glob("*.safetensors")):
        old, fresh = pico.header_of(file), pico.header_of(out / file.name)
        assert fresh.get("__metadata__") == old.get("__metadata__")
        assert list(fresh)[: len(old)] == list(old)  # order kept, created tensors at the end
        assert all(fresh[n]["dtype"] == old[n]["dtype"] and fresh[n]["shape"] == old[n]["shape"]
                   for n in old if n != "__metadata__")  # fmt: skip
        if not new:
            assert fresh == old
    opened = open_checkpoint(str(out))
    assert record.digest == opened.digest()
    opened.check_record()
    on_disk = parse(Derivation, json.loads((out / RECORD).read_text()), out)
    assert on_disk == record
    assert files_in(out) == set(record.outputs) | {RECORD}
    for name, digest in record.outputs.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    kept = {p.name for p in base.iterdir()} - {RECORD}
    beside = {name for name in record.outputs if name.startswith(f"{KEPT}/")}
    assert kept == set(record.outputs) - beside
    assert {f"{KEPT}/direction-{digest[:16]}.safetensors" for digest in record.directions} <= beside
    rewritten = {f.name for f in base.glob("*.safetensors")} | {INDEX} if new else {
        f.name for f in base.glob("*.safetensors")}  # fmt: skip
    rewritten |= {"config.json"} if record.config_changes else set()
    for name in kept - rewritten:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


# Constants: exact where an output bias can exist.

EXACT = [
    ("llama", {}, "mlp.down_proj.bias", {"mlp_bias": True}),
    ("llama_bias", {}, "mlp.down_proj.bias", {"mlp_bias": True}),
    ("gpt2", {}, "mlp.c_proj.bias", {}),
    ("gpt_neox", {}, "mlp.dense_4h_to_h.bias", {}),
    ("gpt_neox_serial", {}, "mlp.dense_4h_to_h.bias", {}),
    ("qwen3", {}, "self_attn.o_proj.bias", {"attention_bias": True}),
    ("qwen3_bias", {}, "self_attn.o_proj.bias", {"attention_bias": True}),
    ("qwen3_moe", {}, "self_attn.o_proj.bias", {"attention_bias": True}),
    ("qwen3_moe_mixed", {}, "self_attn.o_proj.bias", {"attention_bias": True}),
    ("gpt_oss", {}, "self_attn.o_proj.bias", {"attention_bias": True}),
    ("gpt_oss", {"attention_bias": False}, "self_attn.o_proj.bias", {"attention_bias": True}),
    ("qwen2", {}, "self_attn.o_proj.bias", {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
                                            "attention_bias": True, "mlp_bias": False}),
]  # fmt: skip


@pytest.mark.parametrize("layers", [[1], [0, 1]], ids=["one", "all"])
@pytest.mark.parametrize(("family", "overrides", "bias", "flags"), EXACT, ids=[e[0] + str(len(e[1])) for e in EXACT])
def test_a_constant_is_exact_where_a_bias_can_exist(
    models: Pico, tmp_path: Path, family: str, overrides: dict[str, Any], bias: str, flags: dict[str, Any],
    layers: list[int],
) -> None:  # fmt: skip
    base = models(family, **overrides)
    form = "as-llama" if family == "qwen2" else None
    direction = pico.a_direction(base)
    record = edit(base, direction, tmp_path / "out", add=0.8, layers=layers, source=1, constant=form)
    audit(base, tmp_path / "out", record)
    loads_cleanly(tmp_path / "out")
    assert {k: config_of(tmp_path / "out")[k] for k in flags} == flags == record.config_changes
    unchanged = {k: v for k, v in config_of(tmp_path / "out").items() if k not in flags}
    assert unchanged == {k: v for k, v in config_of(base).items() if k not in flags}
    carrying = [t.tensor for t in record.tensors if t.operations]
    arch = open_checkpoint(str(base)).architecture
    assert carrying == [f"{arch.block(x)}{bias}" for x in layers]
    for t in record.tensors:  # what the flag creates beside them is zero
        if not t.operations:
            assert t.added
            assert not any(pico.tensors(tmp_path / "out")[t.tensor])
    edited = logits_of(running(tmp_path / "out"))
    spec = an_addition(direction, layers, constant=form)
    assert apart(edited, hooked(base, spec, direction)) < 3e-5
    assert apart(edited, logits_of(running(base))) > 0.02
    assert not record.fitted


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gpt_oss", "qwen3_moe"])
def test_the_dose_is_what_it_says(models: Pico, tmp_path: Path, family: str) -> None:
    """The biases grow by α v, with Σ‖α v‖/‖h‖ over the layers equal to the dose; a negative one goes the other way."""
    base = models(family)
    direction = pico.a_direction(base)
    for amount in (0.6, -0.6):
        out = tmp_path / f"out{amount}"
        edit(base, direction, out, add=amount, layers=[0, 1], source="each")
        arch = open_checkpoint(str(base)).architecture
        total = 0.0
        for layer in (0, 1):
            site = arch.constant_site(layer)
            assert site is not None
            old = np.frombuffer(pico.tensors(base).get(site.bias, bytes(4 * pico.WIDTH)), "<f4").astype(np.float64)
            step = np.frombuffer(pico.tensors(out)[site.bias], "<f4") - old
            along = float(step @ direction.unit(layer))
            assert np.linalg.norm(step - along * direction.unit(layer)) < 1e-6
            total += along / float(direction.resid_norm[layer])
        assert total == pytest.approx(amount, rel=1e-6)


@pytest.mark.parametrize("family", ["llama_bias", "gpt2", "qwen2"])
def test_a_constant_in_bf16(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family, torch.bfloat16)
    form = "as-llama" if family == "qwen2" else None
    record = edit(base, pico.a_direction(base), tmp_path / "out", add=0.8, constant=form)
    audit(base, tmp_path / "out", record)
    loads_cleanly(tmp_path / "out")
    assert {t.dtype for t in record.tensors} == {"BF16"}


def test_rewritten_as_llama_it_computes_and_reads_the_same(models: Pico, tmp_path: Path) -> None:
    """Rewriting alone changes nothing: a dose so small that the new biases are next to nothing leaves the logits."""
    base = models("qwen2")
    edit(base, pico.a_direction(base), tmp_path / "out", add=1e-9, constant="as-llama")
    before, after = running(base), running(tmp_path / "out")
    assert type(after.model).__name__ == "LlamaForCausalLM"
    assert apart(logits_of(after), logits_of(before)) < 1e-5
    assert after.identity.family == "llama"
    assert after.stop_tokens == before.stop_tokens
    said = [{"role": "user", "content": "Say it in 12 words,\n please."}]
    assert after.encode(said) == before.encode(said)
    assert before.tokens("the same 3 words") == after.tokens("the same 3 words")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert any("rewritten as Llama" in note for note in record["notes"])
    direction = pico.a_direction(tmp_path / "out")
    edit(tmp_path / "out", direction, tmp_path / "again", remove=1.0)  # and can be edited on, as what it is now


def test_rewriting_fills_in_what_llama_would_take_otherwise(models: Pico, tmp_path: Path) -> None:
    """Keys that a Qwen 2 config may leave out have other defaults in Llama."""
    base = tmp_path / "base"
    shutil.copytree(models("qwen2", num_key_value_heads=4), base)
    pico.edit_config(base, num_key_value_heads=None, bos_token_id=None, eos_token_id=None, pad_token_id=None,
                     head_dim=None, max_position_embeddings=None)  # fmt: skip
    (base / "generation_config.json").unlink()
    pico.edit_config(base, num_key_value_heads=4)
    edit(base, pico.a_direction(base), tmp_path / "out", add=1e-9, constant="as-llama")
    before, after = running(base), running(tmp_path / "out")
    assert after.stop_tokens == before.stop_tokens
    assert after.context_length == before.context_length
    assert apart(logits_of(after), logits_of(before)) < 1e-5


def test_a_sliding_window_is_not_rewritten(models: Pico, tmp_path: Path) -> None:
    base = models("qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=16)
    with pytest.raises(EditError, match="sliding window"):
        edit(base, pico.a_direction(base), tmp_path / "out", add=0.5, constant="as-llama")


@pytest.mark.parametrize(("family", "layers"), [("mistral", [0, 1]), ("phi3", [1]), ("qwen2", [1]), ("gpt2", [1])])
def test_a_fitted_constant_reports_what_it_delivers(
    models: Pico, tmp_path: Path, family: str, layers: list[int]
) -> None:
    width = "n_inner" if family == "gpt2" else "intermediate_size"
    base = models(family, **{width: 1024})  # wide enough for its MLP to express a constant
    direction = pico.a_direction(base)
    form = "fitted" if family == "gpt2" else None
    modules = [w.module for w in open_checkpoint(str(base)).architecture.writers
               if w.role == "mlp_down" and not w.is_bias and w.layer in layers]  # fmt: skip
    record = edit(base, direction, tmp_path / "out", add=0.8, layers=layers, source=1, constant=form, options=pico.CPU)
    audit(base, tmp_path / "out", record)
    loads_cleanly(tmp_path / "out")
    assert [t.tensor for t in record.tensors] == [f"{m}.weight" for m in modules]
    assert not record.config_changes
    assert [f.layer for f in record.fitted] == layers
    for report in record.fitted:
        assert report.n_tokens > 200
        assert report.mean_dose == pytest.approx(1.0, abs=0.02)
        assert report.spread < 0.3
    # measured on the weights that were written: what the linear's output gained, in units of the constant
    hooks = compile_edit(open_checkpoint(str(base)), an_addition(direction, layers, constant=form),
                         {direction.digest(): direction}, hooks_only=True).hooks  # fmt: skip
    for module, hook in zip(modules, hooks, strict=True):
        assert isinstance(hook, AddOutput)
        gained = delivered(base, tmp_path / "out", module, hook.vector)
        assert float(gained.mean()) == pytest.approx(1.0, abs=0.1)


@torch.no_grad()
def delivered(base: Path, out: Path, module: str, vector: np.ndarray) -> torch.Tensor:
    """(W′ − W)x·v/‖v‖² of every token but the first, for other prompts in the shape in which the fit saw them."""
    old, new = running(base), running(out)
    shares: list[torch.Tensor] = []
    seen: dict[str, torch.Tensor] = {}
    new.model.get_submodule(module).register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    step = new.model.get_submodule(module).weight - old.model.get_submodule(module).weight
    step = step.T if ".c_proj" in module else step  # Conv1D
    v = torch.from_numpy(vector).float()
    for text in ("How do I water a fern?", "What is a good name for a boat", "Tell me about the old harbour."):
        new.model(input_ids=torch.tensor([new.encode([{"role": "user", "content": text}])]))
        shares.append((seen["x"][0, 1:] @ step.T) @ v / (v @ v))
    return torch.cat(shares)


def test_a_fit_gives_the_same_bytes_again(models: Pico, tmp_path: Path) -> None:
    base = models("mistral")
    direction = pico.a_direction(base)
    one, two = (edit(base, direction, tmp_path / x, add=0.5, feature="melancholy", options=pico.CPU) for x in "ab")
    assert one == two


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gemma3_images", "olmo2"])
def test_post_norm_families_cannot_hold_a_constant(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family)
    direction = pico.a_direction(base)
    for form in (None, "exact", "fitted"):
        with pytest.raises(EditError, match=r"can't hold a constant in its weights: a norm follows every writer"):
            edit(base, direction, tmp_path / "out", add=0.5, constant=form)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    before = logits_of(running(base))
    assert apart(hooked(base, an_addition(direction, [1]), direction), before) > 0.02  # as a hook it works




@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_routed_experts_cannot_hold_a_constant(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family)
    direction = pico.a_direction(base)
    with pytest.raises(EditError, match="no output bias can exist"):
        edit(base, direction, tmp_path / "out", add=0.5, constant="exact")
    assert not (tmp_path / "out").exists()
    assert apart(hooked(base, an_addition(direction, [1]), direction), logits_of(running(base))) > 0.02


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_a_fit_into_routed_experts_is_refused(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family)
    form = "fitted" if family == "qwen3_moe" else None
    with pytest.raises(EditError, match="only routed experts"):
        edit(base, pico.a_direction(base), tmp_path / "out", add=0.5, constant=form, options=pico.CPU)


def test_the_weights_that_a_fit_goes_into(models: Pico) -> None:
    for family in ("mixtral", "qwen2_moe", "gpt_oss"):
        with pytest.raises(EditError, match="layer 1 has only routed experts"):
            fit_writer(open_checkpoint(str(models(family))).architecture, 1)
    mixed = open_checkpoint(str(models("qwen3_moe_mixed"))).architecture
    assert fit_writer(mixed, 0).tensor == "model.layers.0.mlp.down_proj.weight"


def test_forms_that_a_family_lacks_are_refused(models: Pico, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="can't be rewritten as Llama"):
        edit(models("mistral"), pico.a_direction(models("mistral")), tmp_path / "o", add=0.5, constant="as-llama")
    with pytest.raises(EditError, match=r"can't be exact\n.*--constant fitted, or --constant as-llama"):
        edit(models("qwen2"), pico.a_direction(models("qwen2")), tmp_path / "o", add=0.5, constant="exact")


def test_absurd_amounts(models: Pico, tmp_path: Path) -> None:
    base = models("llama")
    direction = pico.a_direction(base)
    for amounts, match in [({"remove": 2.5}, "0 to 2"), ({"remove": -0.1}, "0 to 2"), ({"amplify": -1.0}, "0 or more"),
                           ({"add": 11.0}, "drown")]:  # fmt: skip
        with pytest.raises(RecipeError, match=match):
            edit(base, direction, tmp_path / "out", **amounts)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one of --remove"):
        edit(base, direction, tmp_path / "out", remove=1.0, add=0.5)
    record = edit(base, direction, tmp_path / "large", add=2.0)
    assert any("large" in n for n in record.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_overflow_is_refused_and_leaves_nothing(models: Pico, tmp_path: Path, dtype: torch.dtype) -> None:
    base = models("llama", dtype)
    with pytest.raises(NonFinite, match="overflow"):
        edit(base, pico.a_direction(base), tmp_path / "out", amplify=1e60)
    assert list(tmp_path.iterdir()) == []


# Files.


@pytest.mark.parametrize(("family", "dtype"), [
    *((f, d) for f in pico.CONFIGS for d in (torch.float32, torch.bfloat16)), ("llama_bias", torch.float16),
    ("gemma2", torch.float16), ("gpt_oss", torch.float16),
])  # fmt: skip
def test_the_record_says_exactly_what_differs(models: Pico, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    base = models(family, dtype)
    record = edit(base, pico.a_direction(base, seed=3), tmp_path / "out", remove=1.0)
    audit(base, tmp_path / "out", record)
    writers = [w.tensor for w in open_checkpoint(str(base)).architecture.writers if w.role != "embed"]
    assert sorted(t.tensor for t in record.tensors) == sorted(writers)
    worst = {torch.float32: 5e-7, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    left = {t.tensor: t.left for t in record.tensors if not t.tensor.endswith("bias")}
    assert all(x is not None and x < worst for x in left.values()), left
    assert not record.notes  # a bias may have had next to nothing along u: the share left of it is no news
    assert not record.config_changes
    assert record.base_tensors == len(pico.tensors(base))


def test_the_share_left_is_the_share_left(models: Pico, tmp_path: Path) -> None:
    """The record's figure is the one that the written bytes have."""
    base = models("llama", torch.bfloat16)
    direction = pico.a_direction(base)
    record = edit(base, direction, tmp_path / "out", remove=1.0)
    unit = torch.from_numpy(direction.unit(1))
    for t in record.tensors:
        old, new = (torch.frombuffer(bytearray(pico.tensors(f)[t.tensor]), dtype=torch.bfloat16).double()
                    .reshape(pico.WIDTH, -1) for f in (base, tmp_path / "out"))  # fmt: skip
        assert t.left == pytest.approx(float((unit @ new).norm() / (unit @ old).norm()), rel=1e-4)


@pytest.mark.parametrize("norms", ["free", "input"])
def test_beyond_one_the_component_is_turned_round(models: Pico, tmp_path: Path, norms: Any) -> None:
    """uᵀW′ = −(s − 1) uᵀW, rescaled where norms are kept; nothing says that any of it is exact."""
    base = models("llama")
    direction = pico.a_direction(base)
    record = edit(base, direction, tmp_path / "out", remove=1.5, source=1, how={"norms": norms})
    unit = torch.from_numpy(direction.unit(1))
    for t in record.tensors:
        assert t.left is None
        old, new = (torch.frombuffer(bytearray(pico.tensors(f)[t.tensor]), dtype=torch.float32).double()
                    .reshape(pico.WIDTH, -1) for f in (base, tmp_path / "out"))  # fmt: skip
        scale = old.norm(dim=0) / (old - 1.5 * unit[:, None] * (unit @ old)).norm(dim=0) if norms == "input" else 1.0
        assert torch.allclose(unit @ new, -0.5 * (unit @ old) * scale, atol=1e-6)
        assert not torch.allclose(unit @ new, torch.zeros(()).double(), atol=1e-3)


@pytest.mark.parametrize(("step", "says"), [
    ({"amount": 1.0}, "x was removed exactly from 2 tensors"), ({"amount": 0.5}, "x was removed by 50% from 2 tensors"),
    ({"amount": 1.0, "strengths": {"mlp_down": [0.5, 1.0]}}, "x was removed by 50% to 100% from 2 tensors"),
    ({"amount": 1.0, "strengths": {"*": [1.0, 1.0]}}, "x was removed exactly from 2 tensors"),
    ({"amount": 1.5}, "x was removed by 150% (beyond 100% turned round) in 2 tensors"),
])  # fmt: skip
def test_exactly_is_said_of_what_is_exact(step: dict[str, Any], says: str) -> None:
    spec = EditSpec(steps=[EditStep(kind="remove", direction="d", source=0, layers=[0, 1], **step)])
    derivation: Any = SimpleNamespace(edit=spec, directions={"d": SimpleNamespace(feature="x")}, tensors=["a", "b"])
    assert says in sentence(derivation, "base", "")


@pytest.mark.parametrize("amount", [{"remove": 0.0}, {"add": 0.0}, {"amplify": 1.0}], ids=["remove", "add", "amplify"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "mistral", "qwen2"])
def test_amount_nothing_changes_nothing(
    models: Pico, tmp_path: Path, family: str, amount: dict[str, float]
) -> None:
    base = models(family)
    record = edit(base, pico.a_direction(base), tmp_path / "out", **amount)  # type: ignore[arg-type]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in base.iterdir()} | {RECORD}
    for file in base.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert record.tensors == []
    assert record.digest == record.base.digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_removing_twice_is_removing_once(models: Pico, tmp_path: Path, dtype: torch.dtype) -> None:
    base = models("llama_bias", dtype)
    direction = pico.a_direction(base)
    edit(base, direction, tmp_path / "once", remove=1.0)
    second = edit(tmp_path / "once", direction, tmp_path / "twice", remove=1.0, transfer=True)
    assert second.transferred
    assert second.base_record is not None
    once, twice = pico.tensors(tmp_path / "once"), pico.tensors(tmp_path / "twice")
    step = 2.0**-23 if dtype == torch.float32 else 2.0**-8
    for name in once:
        a, b = (torch.frombuffer(bytearray(x[name]), dtype=dtype).double() for x in (once, twice))
        assert float((a - b).abs().max()) <= step * float(a.abs().max()), name


@pytest.mark.parametrize("family", ["llama_bias", "gemma2", "gpt2", "mixtral", "gpt_oss"])
def test_the_same_edit_gives_the_same_bytes(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family, torch.bfloat16)
    direction = pico.a_direction(base)
    records = [edit(base, direction, tmp_path / name, remove=0.7, roles=["+embed"]) for name in ("a", "b")]
    assert records[0] == records[1]
    for name in files_in(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def a_copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize("kind", ["remove", "add"])
@pytest.mark.parametrize("index", [True, False], ids=["index", "no-index"])
def test_shards_stay_shards(tmp_path: Path, kind: str, index: bool) -> None:
    """Each tensor in its shard; a created bias in the shard of its weight, at the end, and in the index."""
    base = pico.build("llama", tmp_path / "base", shard="30KB")
    shards = sorted(p.name for p in base.glob("*.safetensors"))
    assert len(shards) > 2
    if not index:
        pico.drop_index(base)
    record = edit(base, pico.a_direction(base), tmp_path / "out", **{kind: 1.0}, source=1)
    audit(base, tmp_path / "out", record)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == shards
    assert (tmp_path / "out" / INDEX).is_file() == index
    for t in record.tensors:
        if t.added:
            weight = t.tensor.removesuffix("bias") + "weight"
            homes = {n for n in shards if t.tensor in pico.header_of(tmp_path / "out" / n)}
            assert homes == {n for n in shards if weight in pico.header_of(base / n)}
    if not index:
        return
    data = json.loads((tmp_path / "out" / INDEX).read_text())
    held = {name: file.name for file in (tmp_path / "out").glob("*.safetensors")
            for name in pico.header_of(file) if name != "__metadata__"}  # fmt: skip
    assert data["weight_map"] == held
    assert data["metadata"]["total_size"] == sum(len(raw) for raw in pico.tensors(tmp_path / "out").values())
    loads_cleanly(tmp_path / "out")
    if kind == "remove":
        assert (tmp_path / "out" / INDEX).read_bytes() == (base / INDEX).read_bytes()


def test_sharding_does_not_change_the_digest(tmp_path: Path) -> None:
    whole = pico.build("llama", tmp_path / "whole")
    split = pico.build("llama", tmp_path / "split", shard="30KB")
    assert open_checkpoint(str(whole)).digest() == open_checkpoint(str(split)).digest()
    direction = pico.a_direction(whole)
    one = edit(whole, direction, tmp_path / "one", add=0.5)
    many = edit(split, direction, tmp_path / "many", add=0.5)
    assert one.digest == many.digest


def test_metadata_and_odd_order_survive(models: Pico, tmp_path: Path) -> None:
    """A file that another program wrote, with its own metadata and its tensors in reverse."""
    from weightsmith.formats.safetensors import read_header, write_file

    base = a_copy(models("llama"), tmp_path / "base")
    raw = pico.tensors(base)
    specs = read_header(base / "model.safetensors").tensors[::-1]
    write_file(base / "model.safetensors",
               [(s.name, s.dtype, s.shape, lambda out, data=raw[s.name]: out.write(data)) for s in specs],
               {"format": "pt", "made by": "hand"})  # fmt: skip
    for kind in ("remove", "add"):
        record = edit(base, pico.a_direction(base), tmp_path / kind, **{kind: 1.0})
        audit(base, tmp_path / kind, record)
        assert pico.header_of(tmp_path / kind / "model.safetensors")["__metadata__"]["made by"] == "hand"


def test_other_files_come_along_and_code_does_not(models: Pico, tmp_path: Path) -> None:
    base = a_copy(models("llama"), tmp_path / "base")
    (base / "LICENSE").write_text("all yours")
    (base / "modeling_pico.py").write_text("raise SystemExit")
    (base / "old.bin").write_bytes(b"\x80\x04N.")
    (base / ".hidden").write_text("x")
    (base / "runs").mkdir()
    edit(base, pico.a_direction(base), tmp_path / "out", remove=1.0)
    assert (tmp_path / "out" / "LICENSE").read_text() == "all yours"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not {"modeling_pico.py", "old.bin", ".hidden", "runs"} & {p.name for p in (tmp_path / "out").iterdir()}


def test_an_edited_model_that_was_changed_since_is_not_edited_on(models: Pico, tmp_path: Path) -> None:
    base = models("llama")
    direction = pico.a_direction(base)
    edit(base, direction, tmp_path / "out", remove=0.5)
    file = tmp_path / "out" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DigestMismatch, match=r"model\.safetensors"):
        edit(tmp_path / "out", direction, tmp_path / "on", remove=0.5, transfer=True)
    assert not (tmp_path / "on").exists()


def test_the_base_is_never_written(models: Pico, tmp_path: Path) -> None:
    base = a_copy(models("llama"), tmp_path / "base")
    before = {p: p.read_bytes() for p in base.iterdir()}
    direction = pico.a_direction(base)
    with pytest.raises(OutputExists):
        edit(base, direction, base, remove=1.0)
    with pytest.raises(UsageError, match="inside the base"):
        edit(base, direction, base / "inside", remove=1.0)
    edit(base, direction, tmp_path / "out", remove=1.0)
    assert {p: p.read_bytes() for p in base.iterdir()} == before


def test_quantised_weights_are_refused(models: Pico, tmp_path: Path) -> None:
    base = a_copy(models("llama"), tmp_path / "base")
    direction = pico.a_direction(base)
    file = base / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F32"', b'"I32"')
    file.write_bytes(data[:8] + header + data[8 + length :])
    with pytest.raises(UnsafeModel, match="weights-whole-numbers"):  # whole numbers without scales, as the scan says
        edit(base, direction, tmp_path / "out", remove=1.0, transfer=True)
    with pytest.raises(EditError, match="I32: quantised"):
        edit(base, direction, tmp_path / "out", remove=1.0, transfer=True, options=RunOptions(allow=("suspicious",)))
