"""Roles by family: what an edit says about a model's weights is measured on the running model.

What each part of a block adds to the residual stream is read off plain transformers, by ``residual.py``, which also
shows that the parts make up everything that a block adds.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from residual import added, norms_after, plain, shares
from weightsmith.architecture import families, resolve
from weightsmith.checkpoint import Checkpoint, open_checkpoint
from weightsmith.direction import Direction, load_direction
from weightsmith.edits import Context
from weightsmith.errors import RecipeError, ShapeMismatch, UnsupportedModel, UsageError
from weightsmith.formats.safetensors import TensorSpec
from weightsmith.jobs.edit import edit
from weightsmith.plan import compile_edit
from weightsmith.records import EditSpec, EditStep
from weightsmith.runtime import load, steering

MODELS = list(pico.CONFIGS)
POST_NORM = [m for m in MODELS if norms_after(m) is not None]
#: these can be edited as files; `load` knows only what AutoModelForCausalLM builds
FILES_ONLY = ("mistral3_images",)
RUN = [m for m in MODELS if m not in FILES_ONLY]
#: |component along r| / |added|: rounding of the weights and of the arithmetic in the dtype
BOUND = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
BASE_HAS = 0.1

Pico = Callable[..., Path]


def one_vector(direction: Direction, layer: int = 1) -> list[np.ndarray]:
    """The vector of ``layer``, which the edit uses in every layer."""
    return [direction.unit(layer)] * len(direction.meta.layers)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Pico models by family, dtype and config, each built once."""
    root = tmp_path_factory.mktemp("pico")
    built: dict[str, Path] = {}

    def get(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
        key = f"{family}-{str(dtype).rpartition('.')[2]}-{json.dumps(overrides, sort_keys=True)}"
        if key not in built:
            built[key] = pico.build(family, root / f"{family}{len(built)}", dtype, **overrides)
        return built[key]

    return get


def test_every_family_of_the_data_has_a_pico_model() -> None:
    assert {f.name for f in families().values()} == {families()[pico.model_type(m)].name for m in MODELS}


@pytest.mark.parametrize("family", MODELS)
def test_pico_models_hide_nothing(models: Pico, family: str) -> None:
    """Every gain differs from one and from its neighbours, every bias from zero; each writer's bias is there."""
    names = 0
    for name, values in plain(models(family)).named_parameters():
        if any(tower in name for tower in ("vision", "visual", "multi_modal")):
            continue
        if pico.is_gain(name):
            assert values.std() > 0.1, name
            names += 1
        if pico.is_bias(name):
            assert values.abs().min() > 0, name
            assert values.std() > 0.1, name
    assert names >= pico.LAYERS + 1  # Cohere has one norm a layer, others two or four


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", MODELS)
def test_removed_means_that_no_module_adds_along_it(
    models: Pico, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    base = models(family, dtype)
    direction = pico.a_direction(base)
    record = edit(base, direction, tmp_path / "out", remove=1.0, source=1)
    units = one_vector(direction)
    before, after = shares(added(base, family), units), shares(added(tmp_path / "out", family), units)
    assert (before > BASE_HAS).all()
    assert (after <= BOUND[dtype]).all(), after
    if dtype == torch.bfloat16:  # run in bf16 as well: the arithmetic rounds too
        assert (shares(added(tmp_path / "out", family, dtype), units) <= 2 * BOUND[dtype]).all()
    assert record.base.family == families()[pico.model_type(family)].name
    assert not record.config_changes


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2", "qwen2_moe"])
def test_each_layer_can_lose_its_own_vector(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family)
    direction = pico.a_direction(base)
    edit(base, direction, tmp_path / "out", remove=1.0, source="each")
    found = added(tmp_path / "out", family)
    assert (shares(found, [direction.unit(x) for x in range(pico.LAYERS)]) <= BOUND[torch.float32]).all()
    assert (shares(found, one_vector(direction))[0] > BASE_HAS).all()


@pytest.mark.parametrize(("role", "column"), [("attn_out", 0), ("mlp_down", 1)])
def test_only_the_chosen_role_and_layer_loses_it(models: Pico, tmp_path: Path, role: str, column: int) -> None:
    base = models("llama_bias")
    direction = pico.a_direction(base)
    edit(base, direction, tmp_path / "out", remove=1.0, roles=[role], layers=[1])
    left = shares(added(tmp_path / "out", "llama_bias"), one_vector(direction))
    assert left[1, column] <= BOUND[torch.float32]
    left[1, column] = 1.0
    assert (left > BASE_HAS).all()


# The same check fails for each of the mistakes that it is there to find.


def failing(models: Pico, out: Path, family: str) -> np.ndarray:
    """Which parts of which layers break the bound after the edit."""
    base = models(family)
    direction = pico.a_direction(base, seed=3)
    edit(base, direction, out, remove=1.0)
    return shares(added(out, family), one_vector(direction)) > 100 * BOUND[torch.float32]


@pytest.mark.parametrize("family", POST_NORM)
def test_r_in_place_of_g_times_r_fails(
    models: Pico, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "written", lambda _self, _writer, unit: unit)
    assert failing(models, tmp_path / "out", family).all()


@pytest.mark.parametrize("family", POST_NORM)
def test_the_wrong_offset_of_the_gain_fails(
    models: Pico, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gain of Gemma 2 and 3 is 1 + what is stored, everyone else's what is stored."""
    right = Context.written
    monkeypatch.setattr(
        Context, "written",
        lambda self, w, unit: right(self, dataclasses.replace(w, gain_offset=1 - w.gain_offset), unit),
    )  # fmt: skip
    assert failing(models, tmp_path / "out", family).all()


@pytest.mark.parametrize(("family", "parts"), [
    ("llama_bias", (0, 1)), ("gpt2", (0, 1)), ("gpt_neox", (0, 1)), ("gpt_neox_serial", (0, 1)), ("gpt_oss", (0, 1)),
    ("qwen3_bias", (0,)), ("qwen3_moe_mixed", (0,)), ("gemma2", (0,)), ("gemma3", (0,)), ("olmo2", (0,)),
    ("gemma4", (0,)), ("gemma4_unified", (0,)), ("olmo3", (0,)), ("cohere2", (0,)), ("granite", (0, 1)),
    ("smollm3", (0, 1)), ("hunyuan_v1_dense", (0,)), ("olmoe", (0,)), ("llama4", (0,)), ("deepseek_v3", (0,)),
    ("deepseek_v2", (0, 1)), ("gemma", (0,)), ("seed_oss", (0, 1)), ("glm4_moe_lite", (0,)),
])  # fmt: skip
def test_a_forgotten_bias_fails(
    models: Pico, tmp_path: Path, family: str, parts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Context.writers
    monkeypatch.setattr(
        Context, "writers", lambda self, roles, layers: [w for w in right(self, roles, layers) if not w.is_bias]
    )
    failed = failing(models, tmp_path / "out", family)
    assert [k for k in (0, 1) if failed[:, k].all()] == list(parts)
    assert failed.sum() == pico.LAYERS * len(parts)


def test_a_forgotten_transposition_fails(models: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's square attention output would take an edit along the wrong axis without a word."""
    right = Context.writers

    def transposed(self: Context, roles: Any, layers: Any) -> Any:
        return [w if w.is_bias else dataclasses.replace(w, out_axis=-2)
                for w in right(self, roles, layers) if w.role == "attn_out"]  # fmt: skip

    monkeypatch.setattr(Context, "writers", transposed)
    assert failing(models, tmp_path / "out", "gpt2").all()


def a_spec(direction: Direction, kind: str, amount: float, **fields: Any) -> EditSpec:
    step = {"kind": kind, "direction": direction.digest(), "source": 1, "layers": direction.meta.layers,
            "amount": amount, **fields}  # fmt: skip
    return EditSpec(steps=[EditStep(**step)])


@torch.no_grad()
def logits_of(running: Any) -> list[torch.Tensor]:
    return [running.model(input_ids=torch.tensor([row])).logits for row in pico.ids()]


def same_logits(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference, as a share of the logits' spread."""
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("family", RUN)
def test_hooks_and_weights_agree(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family)
    checkpoint = open_checkpoint(str(base))
    direction = pico.a_direction(checkpoint)
    running = load(checkpoint, pico.CPU)
    plain_logits = logits_of(running)
    for k, (kind, amount) in enumerate([("remove", 1.0), ("remove", 0.5), ("amplify", 2.0)]):
        spec = a_spec(direction, kind, amount)
        with steering(running, compile_edit(checkpoint, spec, {direction.digest(): direction}, hooks_only=True).hooks):
            hooked = logits_of(running)
        edit(base, direction, tmp_path / str(k), **{kind: amount}, source=1)
        edited = logits_of(load(open_checkpoint(str(tmp_path / str(k))), pico.CPU))
        assert same_logits(hooked, edited) < 3e-5
        assert same_logits(edited, plain_logits) > 0.02  # the edit does something
    assert same_logits(logits_of(running), plain_logits) == 0  # the hooks are gone


@pytest.mark.parametrize("family", ["llama_bias", "olmo2", "gpt_oss"])
def test_strength_of_a_hook_follows_the_weights(models: Pico, tmp_path: Path, family: str) -> None:
    """Removing with strength 1/2 is removing half; strength can change while the hooks are on."""
    base = models(family)
    checkpoint = open_checkpoint(str(base))
    direction = pico.a_direction(checkpoint)
    running = load(checkpoint, pico.CPU)
    before = logits_of(running)
    edit(base, direction, tmp_path / "out", remove=0.5, source=1)
    half = logits_of(load(open_checkpoint(str(tmp_path / "out")), pico.CPU))
    compiled = compile_edit(checkpoint, a_spec(direction, "remove", 1.0), {direction.digest(): direction})
    with steering(running, compiled.hooks) as handle:
        handle.strength = 0.5
        assert same_logits(logits_of(running), half) < 3e-5
        handle.strength = 0.0
        assert same_logits(logits_of(running), before) < 1e-6


def test_steps_compose_in_order(models: Pico, tmp_path: Path) -> None:
    """A constant that an earlier step put into a new bias is taken out again by a later removal; hooks do the same."""
    base = models("llama")
    checkpoint = open_checkpoint(str(base))
    direction = pico.a_direction(checkpoint)
    found = {direction.digest(): direction}
    steps = [a_spec(direction, kind, amount).steps[0] for kind, amount in (("add", 0.7), ("remove", 1.0))]
    direction.save(tmp_path / "d.safetensors")
    running = load(checkpoint, pico.CPU)
    for k, spec in enumerate((EditSpec(steps=steps), EditSpec(steps=steps[::-1]))):
        edit(base, spec, tmp_path / f"out{k}", directions=[tmp_path / "d.safetensors"])
        edited = logits_of(load(open_checkpoint(str(tmp_path / f"out{k}")), pico.CPU))
        with steering(running, compile_edit(checkpoint, spec, found, hooks_only=True).hooks):
            assert same_logits(logits_of(running), edited) < 3e-5
    left = [shares(added(tmp_path / f"out{k}", "llama"), one_vector(direction)) for k in (0, 1)]
    assert (left[0] <= BOUND[torch.float32]).all()
    assert (left[1][:, 1] > BASE_HAS).all()


# Names: what is on disk, what is in memory, and what stands before them.


def architecture(folder: Path) -> Any:
    return open_checkpoint(str(folder)).architecture


def test_experts_are_single_on_disk_and_fused_in_memory(models: Pico) -> None:
    for family, name in [("mixtral", "model.layers.1.block_sparse_moe.experts.2.w2.weight"),
                         ("qwen3_moe", "model.layers.1.mlp.experts.2.down_proj.weight"),
                         ("qwen2_moe", "model.layers.1.mlp.experts.2.down_proj.weight")]:  # fmt: skip
        arch = architecture(models(family))
        experts = [w for w in arch.writers if w.role == "experts"]
        assert len(experts) == 3 * pico.LAYERS
        assert name in [w.tensor for w in experts]
        running = load(open_checkpoint(str(models(family))), pico.CPU)
        assert {running.module(w.module).down_proj.shape for w in experts} == {(3, 32, experts_in(family))}


def experts_in(family: str) -> int:
    return 64 if family == "mixtral" else 32


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "qwen3_5_moe", "qwen3_next", "deepseek_v2",
                                    "deepseek_v3", "glm4_moe", "olmoe", "glm4_moe_lite", "minimax_m2"])  # fmt: skip
def test_experts_saved_fused_are_edited_too(models: Pico, tmp_path: Path, family: str) -> None:
    """transformers can save its own fused layout; the edit is the same."""
    model = plain(models(family))
    shutil.copytree(models(family), tmp_path / "fused")
    with pico.quiet():
        model.save_pretrained(tmp_path / "fused", save_original_format=False)
    one_by_one = [w for w in architecture(models(family)).writers if w.role == "experts"]
    assert len(one_by_one) > len({w.layer for w in one_by_one})
    fused = [w.tensor for w in architecture(tmp_path / "fused").writers if w.role == "experts"]
    assert fused == [f"model.layers.{x}.mlp.experts.down_proj" for x in sorted({w.layer for w in one_by_one})]
    direction = pico.a_direction(tmp_path / "fused")
    edit(tmp_path / "fused", direction, tmp_path / "out", remove=1.0)
    assert (shares(added(tmp_path / "out", family), one_vector(direction)) <= BOUND[torch.float32]).all()


def test_gpt_oss_is_fused_on_disk_with_a_bias(models: Pico) -> None:
    arch = architecture(models("gpt_oss"))
    experts = {w.tensor: w for w in arch.writers if w.role == "experts" and w.layer == 0}
    assert [(w.out_axis, w.is_bias) for w in experts.values()] == [(-1, False), (-1, True)]
    assert list(experts) == ["model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.down_proj_bias"]


def test_shared_experts_have_a_role_of_their_own(models: Pico, tmp_path: Path) -> None:
    base = models("qwen2_moe")
    direction = pico.a_direction(base)
    record = edit(base, direction, tmp_path / "out", remove=1.0, roles=["shared_experts"])
    assert [t.tensor for t in record.tensors] == [
        f"model.layers.{x}.mlp.shared_expert.down_proj.weight" for x in range(pico.LAYERS)
    ]


def test_layers_of_a_mixture_may_be_plain(models: Pico) -> None:
    roles = {(w.layer, w.role) for w in architecture(models("qwen3_moe_mixed")).writers}
    assert {(0, "mlp_down"), (1, "experts")} <= roles
    assert not {(1, "mlp_down"), (0, "experts")} & roles


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
def test_both_names_of_the_number_of_experts(models: Pico, tmp_path: Path, key: str) -> None:
    """Qwen's own configs say num_experts; transformers 5 saves num_local_experts."""
    shutil.copytree(models("qwen3_moe"), tmp_path / "m")
    pico.edit_config(tmp_path / "m", num_experts=None, num_local_experts=None)
    pico.edit_config(tmp_path / "m", **{key: 3})
    assert sum(w.role == "experts" for w in architecture(tmp_path / "m").writers) == 3 * pico.LAYERS


@pytest.mark.parametrize(("prefix", "unembed"), [
    ("model.", "lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("", "lm_head.weight"),
])  # fmt: skip
def test_prefixes_resolve(models: Pico, tmp_path: Path, prefix: str, unembed: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(models("llama"), folder)
    names = {n: prefix + n.removeprefix("model.") for n in pico.tensors(folder) if n.startswith("model.")}
    pico.rename(folder, names | {"lm_head.weight": unembed})
    arch = architecture(folder)
    assert (arch.prefix, arch.unembed, arch.tied) == (prefix, unembed, False)
    direction = pico.a_direction(folder)
    record = edit(folder, direction, tmp_path / "out", remove=1.0, roles=["+embed"])
    assert all(t.tensor.startswith(f"{prefix}layers.") or t.tensor == f"{prefix}embed_tokens.weight"
               for t in record.tensors)  # fmt: skip
    assert len(record.tensors) == 2 * pico.LAYERS + 1


def test_a_model_that_reads_images_is_edited_in_its_language_part(models: Pico, tmp_path: Path) -> None:
    base = models("gemma3_images")
    assert architecture(base).prefix == "language_model.model."
    record = edit(base, pico.a_direction(base), tmp_path / "out", remove=1.0)
    assert not [t.tensor for t in record.tensors if "vision" in t.tensor or "multi_modal" in t.tensor]
    renamed = tmp_path / "renamed"  # the names that newer files have
    shutil.copytree(base, renamed)
    pico.rename(renamed, {n: f"model.{n}" for n in pico.tensors(renamed)}
                | {n: n.replace("language_model.model.", "model.language_model.") for n in pico.tensors(renamed)
                   if n.startswith("language_model.")})  # fmt: skip
    assert architecture(renamed).prefix == "model.language_model."
    direction = pico.a_direction(renamed)
    edit(renamed, direction, tmp_path / "out2", remove=1.0)
    assert (shares(added(tmp_path / "out2", "gemma3_images"), one_vector(direction)) <= BOUND[torch.float32]).all()


def test_gpt2_without_a_prefix(models: Pico, tmp_path: Path) -> None:
    """The first GPT-2 files have no ``transformer.``."""
    folder = tmp_path / "m"
    shutil.copytree(models("gpt2"), folder)
    pico.rename(folder, {n: n.removeprefix("transformer.") for n in pico.tensors(folder)})
    assert architecture(folder).prefix == ""
    direction = pico.a_direction(folder)
    edit(folder, direction, tmp_path / "out", remove=1.0)
    assert (shares(added(tmp_path / "out", "gpt2"), one_vector(direction)) <= BOUND[torch.float32]).all()


# Embeddings.


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "gemma3_images"])
def test_embeddings_change_only_when_asked_for(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family)
    arch = architecture(base)
    direction = pico.a_direction(base)
    embeddings = [w.tensor for w in arch.writers if w.role == "embed"]
    assert embeddings
    before = pico.tensors(base)
    without = edit(base, direction, tmp_path / "without", remove=1.0)
    record = edit(base, direction, tmp_path / "with", remove=1.0, roles=["+embed"])
    for name in embeddings:
        assert pico.tensors(tmp_path / "without")[name] == before[name]
        assert pico.tensors(tmp_path / "with")[name] != before[name]
    assert {t.tensor for t in record.tensors} == {t.tensor for t in without.tensors} | set(embeddings)
    tied = [n for n in record.notes if "unembedding changed" in n]
    assert tied == ([f"{embeddings[0]} is tied: the unembedding changed with it"] if arch.tied else [])
    assert not [n for n in without.notes if "unembedding" in n]
    model = plain(tmp_path / "with")
    table = model.get_input_embeddings().weight.detach().double() @ torch.from_numpy(direction.unit(1))
    assert float(table.abs().max()) < 1e-6
    head = model.get_output_embeddings().weight.detach().double() @ torch.from_numpy(direction.unit(1))
    assert (float(head.abs().max()) < 1e-6) == arch.tied
    assert (model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
            ) == arch.tied  # fmt: skip


def test_a_tied_unembedding_that_is_stored_as_well_changes_too(models: Pico, tmp_path: Path) -> None:
    """Two copies of a tied matrix must stay equal: a loader unties them when they differ."""
    base = tmp_path / "base"
    pico.build("llama", base, tie_word_embeddings=True)
    assert "lm_head.weight" not in pico.tensors(base)
    model = plain(base)
    copied = model.state_dict() | {"lm_head.weight": model.lm_head.weight.detach().clone()}
    from safetensors.torch import save_file

    save_file({n: t.clone() for n, t in copied.items()}, base / "model.safetensors", {"format": "pt"})
    arch = architecture(base)
    assert arch.tied
    direction = pico.a_direction(base)
    record = edit(base, direction, tmp_path / "out", remove=1.0, roles=["+embed"])
    after = pico.tensors(tmp_path / "out")
    assert after["lm_head.weight"] == after["model.embed_tokens.weight"] != pico.tensors(base)["lm_head.weight"]
    assert [n for n in record.notes if "unembedding changed" in n]
    edited = plain(tmp_path / "out")
    assert edited.lm_head.weight.data_ptr() == edited.model.embed_tokens.weight.data_ptr()


def test_the_embedding_belongs_to_no_layer(models: Pico, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="embedding belongs to no layer"):
        edit(models("llama"), pico.a_direction(models("llama")), tmp_path / "out", remove=1.0, source="each",
             roles=["+embed"])  # fmt: skip
    assert not (tmp_path / "out").exists()


# Refusals name what is missing.


def refused(folder: Path, match: str) -> None:
    """Neither resolved nor edited; the direction is one that was found before the files were damaged."""
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(UnsupportedModel, match=match):
        _ = checkpoint.architecture
    with pytest.raises(UnsupportedModel, match=match):
        edit(folder, load_direction(folder.parent / "d.safetensors"), folder.parent / "refused", remove=1.0)
    assert not (folder.parent / "refused").exists()


@pytest.fixture
def copy(models: Pico, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a pico model to damage, with a direction beside it."""

    def make(family: str) -> Path:
        pico.a_direction(models(family)).save(tmp_path / "d.safetensors")
        return Path(shutil.copytree(models(family), tmp_path / "copy"))

    return make


def test_an_unknown_family_is_refused_by_name(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    pico.edit_config(folder, model_type="mamba9")
    refused(folder, "'mamba9'.*no role data")
    with pytest.raises(UnsupportedModel, match=r"known families: .*gemma2.*qwen3_moe.*YAML"):
        _ = open_checkpoint(str(folder)).architecture
    pico.edit_config(folder, model_type=None)
    refused(folder, "None has no role data|'None'")


@pytest.mark.parametrize(("family", "missing", "match"), [
    ("mixtral", "model.layers.1.block_sparse_moe.experts.1.w2.weight", r"2 of 3 experts.*experts\.1\.w2\.weight"),
    ("qwen3_moe", "model.layers.0.mlp.experts.0.down_proj.weight", r"2 of 3 experts.*experts\.0\.down_proj"),
    ("gemma2", "model.layers.0.post_attention_layernorm.weight", r"norm gain.*layers\.0\.post_attention_layernorm"),
    ("olmo2", "model.layers.1.post_feedforward_layernorm.weight", r"norm gain.*layers\.1\.post_feedforward"),
    ("llama", "model.layers.1.self_attn.o_proj.weight", r"llama model lacks model\.layers\.1\.self_attn\.o_proj\.weight"),
    ("llama", "model.layers.0.self_attn.o_proj.weight", r"layers\.0\.self_attn\.o_proj\.weight.*llama model"),
    ("llama", "model.layers.1.mlp.down_proj.weight", r"llama model lacks model\.layers\.1\.mlp\.down_proj\.weight"),
    ("llama", "model.embed_tokens.weight", r"embedding 'model\.embed_tokens\.weight' is missing"),
    ("qwen2_moe", "model.layers.1.mlp.shared_expert.down_proj.weight", r"layers\.1\.mlp\.shared_expert\.down_proj"),
    ("gpt_oss", "model.layers.1.mlp.experts.down_proj", r"gpt_oss model lacks .*mlp\.experts\.down_proj\n"),
    ("gpt_oss", "model.layers.1.mlp.experts.down_proj_bias", r"layers\.1\.mlp\.experts\.down_proj_bias"),
    ("gpt2", "transformer.h.1.mlp.c_proj.bias", r"h\.1\.mlp\.c_proj\.bias"),
    ("gpt2", "transformer.wpe.weight", r"wpe\.weight"),
])  # fmt: skip
def test_what_is_missing_is_named(
    copy: Callable[[str], Path], family: str, missing: str, match: str
) -> None:
    folder = copy(family)
    pico.rename(folder, {missing: None})
    refused(folder, match)


def test_quantised_experts_are_refused_with_the_reason(copy: Callable[[str], Path]) -> None:
    """As gpt-oss is published: MXFP4 blocks and scales in place of one matrix."""
    folder = copy("gpt_oss")
    experts = "model.layers.{}.mlp.experts.down_proj"
    pico.rename(folder, {experts.format(x): experts.format(x) + "_blocks" for x in range(pico.LAYERS)})
    refused(folder, r"lacks model\.layers\.0\.mlp\.experts\.down_proj\n.*quantised")


def test_a_config_without_a_count_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("mixtral")
    pico.edit_config(folder, num_local_experts=None)
    refused(folder, "no usable 'num_local_experts'")
    pico.edit_config(folder, num_local_experts=3, num_hidden_layers=None)
    refused(folder, "no usable 'num_hidden_layers'")


def test_a_writer_of_another_width_is_refused(models: Pico) -> None:
    checkpoint = open_checkpoint(str(models("llama")))
    name = "model.layers.1.mlp.down_proj.weight"
    wrong = dict(checkpoint.tensors) | {name: dataclasses.replace(checkpoint.tensors[name], shape=(64, 32))}
    with pytest.raises(ShapeMismatch, match=r"layers\.1\.mlp\.down_proj.*\[64, 32\].*32"):
        resolve(checkpoint.config, wrong)


def test_two_language_models_in_one_file_are_refused(models: Pico) -> None:
    checkpoint = open_checkpoint(str(models("llama")))
    both: dict[str, TensorSpec] = dict(checkpoint.tensors)
    both |= {f"draft.{n}": s for n, s in checkpoint.tensors.items()}
    with pytest.raises(UnsupportedModel, match="several tensors end in"):
        resolve(checkpoint.config, both)


def test_an_absent_role_or_layer_is_refused(models: Pico, tmp_path: Path) -> None:
    base = models("llama")
    direction = pico.a_direction(base)
    with pytest.raises(UnsupportedModel, match="no tensor has the role experts"):
        edit(base, direction, tmp_path / "out", remove=1.0, roles=["experts"])
    with pytest.raises(UsageError, match="layer 7 is not one of 0 to 1"):
        edit(base, direction, tmp_path / "out", remove=1.0, layers=[0, 7])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", RUN)
def test_every_writer_in_the_data_is_a_module_in_memory(models: Pico, family: str) -> None:
    """The two name maps agree: what a writer's tensor is on disk, its module holds in memory, values included."""
    checkpoint: Checkpoint = open_checkpoint(str(models(family)))
    running = load(checkpoint, pico.CPU)
    raw = pico.tensors(models(family))
    for writer in checkpoint.architecture.writers:
        stored = torch.frombuffer(bytearray(raw[writer.tensor]), dtype=torch.float32)
        inside = dict(running.module(writer.module).named_parameters())
        held = [p.detach().reshape(-1) for n, p in inside.items() if n.endswith("bias") == writer.is_bias]
        assert any(_holds(p, stored) for p in held), writer.tensor


def _holds(whole: torch.Tensor, part: torch.Tensor) -> bool:
    if whole.numel() % part.numel():
        return False
    return bool((whole.reshape(-1, part.numel()) == part).all(1).any())


def test_layers_that_the_config_does_not_name_are_refused(tmp_path: Path) -> None:
    """A loader would leave them out without a word, and so would an edit."""
    folder = pico.build("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="the files hold more"):
        _ = open_checkpoint(str(folder)).architecture
