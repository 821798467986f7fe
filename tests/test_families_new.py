"""Families whose blocks are not all alike: several token mixers, plain layers before mixtures, parts that are scaled,
inputs of each layer's own, heads that draft tokens. What one family does and others don't, each as a property."""

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
from residual import added, plain, shares, stack
from weightsmith.architecture import DEFAULT_ROLES, REFUSED, ROLES, Architecture, families, resolve
from weightsmith.checkpoint import open_checkpoint
from weightsmith.direction import Direction
from weightsmith.edits import Context
from weightsmith.errors import EditError, UnsupportedModel
from weightsmith.formats.safetensors import TensorSpec
from weightsmith.jobs.edit import edit
from weightsmith.options import RunOptions
from weightsmith.plan import compile_edit
from weightsmith.records import EditSpec, EditStep
from weightsmith.runtime import load, steering

BOUND = 2e-6
Pico = Callable[..., Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Pico models by family and config, each built once."""
    root = tmp_path_factory.mktemp("pico")
    built: dict[str, Path] = {}

    def get(family: str, **overrides: Any) -> Path:
        key = f"{family}-{json.dumps(overrides, sort_keys=True)}"
        if key not in built:
            built[key] = pico.build(family, root / f"{family}{len(built)}", **overrides)
        return built[key]

    return get


def architecture(folder: Path) -> Architecture:
    return open_checkpoint(str(folder)).architecture


def one_vector(direction: Direction) -> list[np.ndarray]:
    return [direction.unit(1)] * len(direction.meta.layers)


def stems(folder: Path, role: str) -> list[list[str]]:
    """What the weights of a role are called, layer by layer, experts without their numbers."""
    arch = architecture(folder)
    found: list[list[str]] = [[] for _ in range(arch.n_layers)]
    for w in arch.writers:
        if w.role == role and w.layer is not None and not w.is_bias:
            found[w.layer].append(w.tensor.removeprefix(arch.block(w.layer)))
    return found


# Which layer has which writers.


@pytest.mark.parametrize(("family", "mixers"), [
    ("qwen3_5", ["linear_attn.out_proj.weight", "self_attn.o_proj.weight"]),
    ("qwen3_5_images", ["linear_attn.out_proj.weight", "self_attn.o_proj.weight"]),
    ("qwen3_5_moe", ["linear_attn.out_proj.weight", "self_attn.o_proj.weight"]),
    ("qwen3_next", ["linear_attn.out_proj.weight", "self_attn.o_proj.weight"]),
    ("lfm2", ["conv.out_proj.weight", "self_attn.out_proj.weight"]),
])  # fmt: skip
def test_every_layer_has_one_token_mixer(models: Pico, family: str, mixers: list[str]) -> None:
    assert stems(models(family), "attn_out") == [[m] for m in mixers]


@pytest.mark.parametrize(("family", "mlp"), [
    ("deepseek_v2", "mlp.down_proj.weight"), ("deepseek_v3", "mlp.down_proj.weight"),
    ("glm4_moe", "mlp.down_proj.weight"), ("qwen3_next_mixed", "mlp.down_proj.weight"),
    ("llama4", "feed_forward.down_proj.weight"),
])  # fmt: skip
def test_the_first_layer_is_plain_and_the_second_a_mixture(models: Pico, family: str, mlp: str) -> None:
    assert stems(models(family), "mlp_down") == [[mlp], []]
    for role in ("experts", "shared_experts"):
        plain_layer, mixture = stems(models(family), role)
        assert not plain_layer
        assert mixture


def test_llama4_experts_write_along_their_last_axis(models: Pico) -> None:
    (experts,) = [w for w in architecture(models("llama4")).writers if w.role == "experts"]
    assert (experts.tensor, experts.out_axis) == ("model.layers.1.feed_forward.experts.down_proj", -1)


def test_no_role_is_forgotten_by_default() -> None:
    """Every role writes in a layer, but for the embeddings."""
    assert (*DEFAULT_ROLES, "embed") == ROLES


@pytest.mark.parametrize(("family", "role", "column"), [
    ("gemma4", "per_layer", 2), ("gemma4_images", "per_layer", 2), ("gemma4_shared", "attn_out", 0),
    ("gemma4_moe", "experts", 1), ("gemma4_moe", "mlp_down", 1),
    ("deepseek_v3", "shared_experts", 1), ("deepseek_v3", "experts", 1), ("deepseek_v2", "mlp_down", 1),
    ("glm4_moe", "shared_experts", 1), ("llama4", "experts", 1), ("llama4", "shared_experts", 1),
    ("qwen3_5_moe", "shared_experts", 1), ("qwen3_next", "experts", 1), ("olmoe", "experts", 1),
])  # fmt: skip
def test_a_role_left_out_shows(models: Pico, tmp_path: Path, family: str, role: str, column: int) -> None:
    """The measurement that the other tests rely on sees each role: leaving one out leaves its layers, and only them."""
    base = models(family)
    direction = pico.a_direction(base)
    arch = architecture(base)
    edit(base, direction, tmp_path / "out", remove=1.0, source=1, roles=[r for r in arch.default_roles() if r != role])
    left = shares(added(tmp_path / "out", family), one_vector(direction))
    layers = sorted({w.layer for w in arch.writers if w.role == role and w.layer is not None})
    assert (left[layers, column] > 0.05).all(), left
    left[layers, column] = 0
    assert (left <= BOUND).all(), left


@pytest.mark.parametrize(("family", "mixer"), [("qwen3_5", "linear_attn"), ("lfm2", "conv"), ("lfm2", "self_attn")])
def test_a_token_mixer_left_out_shows(
    models: Pico, tmp_path: Path, family: str, mixer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Architecture.select
    monkeypatch.setattr(Architecture, "select", lambda self, roles, layers: [
        w for w in right(self, roles, layers) if f".{mixer}." not in w.tensor])  # fmt: skip
    base = models(family)
    direction = pico.a_direction(base)
    edit(base, direction, tmp_path / "out", remove=1.0, source=1)
    left = shares(added(tmp_path / "out", family), one_vector(direction))
    assert (left > 0.05).sum() == 1


# Gemma 4.


def test_what_the_config_promises_must_be_there(models: Pico, tmp_path: Path) -> None:
    """Where a layer has inputs of its own the config says so; a loader would make up the missing matrix."""
    shutil.copytree(models("gemma4"), tmp_path / "m")
    pico.rename(tmp_path / "m", {"model.layers.1.per_layer_projection.weight": None})
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.per_layer_projection.*hidden_size_per_layer_input"):
        architecture(tmp_path / "m")
    pico.edit_config(tmp_path / "m", hidden_size_per_layer_input=None)  # the code's own default is 256
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.per_layer_projection"):
        architecture(tmp_path / "m")
    pico.edit_config(tmp_path / "m", hidden_size_per_layer_input=0)
    assert "per_layer" not in architecture(tmp_path / "m").default_roles()


def test_gemma4s_mixture_has_two_norms_after_it(models: Pico) -> None:
    """The MLP's and the experts' normed outputs are added up, and the sum passes one more."""
    gains = {w.role: w.gains for w in architecture(models("gemma4_moe")).writers if w.layer == 1}
    norms = "model.layers.1.post_feedforward_layernorm{}.weight"
    assert gains["mlp_down"] == (norms.format("_1"), norms.format(""))
    assert gains["experts"] == (norms.format("_2"), norms.format(""))


@pytest.mark.parametrize("forgotten", ["gain", "outer_gain"])
def test_one_gain_of_two_forgotten_shows(
    models: Pico, tmp_path: Path, forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Context.written
    monkeypatch.setattr(Context, "written", lambda self, w, basis: right(
        self, dataclasses.replace(w, **{forgotten: None}) if w.outer_gain else w, basis))  # fmt: skip
    base = models("gemma4_moe")
    direction = pico.a_direction(base)
    edit(base, direction, tmp_path / "out", remove=1.0, source=1)
    left = shares(added(tmp_path / "out", "gemma4_moe"), one_vector(direction))
    assert (left[:, 1] > 100 * BOUND).all(), left
    assert (left[:, 0] <= BOUND).all(), left


def test_gemma4_without_inputs_of_its_own(models: Pico) -> None:
    """The large ones have none."""
    arch = architecture(models("gemma4", hidden_size_per_layer_input=0))
    assert arch.default_roles() == ["attn_out", "mlp_down"]


# Constants: where what is written is scaled or normed afterwards, weights hold none, and a hook adds it to the block.


def an_addition(direction: Direction, layer: int) -> EditSpec:
    return EditSpec(steps=[EditStep(kind="add", direction=direction.digest(), source=1, layers=[layer], amount=0.8)])


SCALED = ["granite", "gemma4", "gemma4_unified", "olmo3", "exaone4", "glm4"]


@pytest.mark.parametrize("family", SCALED)
def test_a_constant_that_would_be_scaled_is_refused(models: Pico, tmp_path: Path, family: str) -> None:
    base = models(family)
    direction = pico.a_direction(base)
    with pytest.raises(EditError, match="can't hold a constant"):
        edit(base, direction, tmp_path / "out", add=0.5, source=1)
    assert not (tmp_path / "out").exists()
    assert architecture(base).constant_site(0) is None


@torch.no_grad()
def block_outputs(running: Any, family: str, layer: int) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    block = stack(running.model, family)[layer]
    # the hook comes after those that are on already, so it sees what they made of the output
    handle = block.register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    for row in pico.ids():
        running.model(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat([t.reshape(-1, t.shape[-1]) for t in kept]).double()


@pytest.mark.parametrize("family", SCALED)
def test_a_hook_adds_the_whole_constant(models: Pico, family: str) -> None:
    """Behind the multiplier and the norm: the block's output moves by α‖h‖ along the vector, at every token."""
    checkpoint = open_checkpoint(str(models(family)))
    direction = pico.a_direction(checkpoint)
    running = load(checkpoint, pico.CPU)
    before = block_outputs(running, family, 0)
    spec = an_addition(direction, 0)
    with steering(running, compile_edit(checkpoint, spec, {direction.digest(): direction}, hooks_only=True).hooks):
        moved = block_outputs(running, family, 0) - before
    wanted = 0.8 * float(direction.resid_norm[0]) * direction.unit(1)
    torch.testing.assert_close(moved, torch.from_numpy(wanted).expand_as(moved), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biased", [False, True], ids=["new-bias", "old-bias"])
@pytest.mark.parametrize(("family", "part"), [
    ("smollm3", "mlp"), ("cohere2", "attn"), ("olmoe", "attn"), ("hunyuan_v1_dense", "attn"), ("llama4", "attn"),
    ("gemma", "attn"), ("seed_oss", "mlp"),
])  # fmt: skip
def test_an_exact_constant_is_what_the_part_adds_more(
    models: Pico, tmp_path: Path, family: str, part: str, biased: bool
) -> None:
    """In the first layer, whose input does not change: by the same vector at every token."""
    flag = "mlp_bias" if part == "mlp" else "attention_bias"
    base = models(family, **{flag: biased})
    direction = pico.a_direction(base)
    edit(base, direction, tmp_path / "out", add=0.8, source=1, layers=[0])
    assert json.loads((tmp_path / "out" / "config.json").read_text())[flag] is True
    moved = added(tmp_path / "out", family)[0][part] - added(base, family)[0][part]
    wanted = 0.8 * float(direction.resid_norm[0]) * direction.unit(1)
    torch.testing.assert_close(moved, torch.from_numpy(wanted).expand_as(moved), rtol=1e-4, atol=1e-4)


# Heads that draft tokens lie beside the layers and are no layers.


def with_layer_after_the_last(models: Pico, folder: Path, marker: str | None) -> tuple[Path, list[str]]:
    """DeepSeek's and GLM's way: one more numbered layer, told by a projection of its own."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(models("glm4_moe"), folder)
    held = load_file(folder / "model.safetensors")
    more = {n.replace("layers.1.", "layers.2."): t.clone() for n, t in held.items() if n.startswith("model.layers.1.")}
    if marker:
        more[f"model.layers.2.{marker}"] = torch.randn(pico.WIDTH, 2 * pico.WIDTH)
    save_file(held | more, folder / "model.safetensors", {"format": "pt"})
    return folder, list(more)


def test_a_draft_layer_is_copied_and_not_edited(models: Pico, tmp_path: Path) -> None:
    folder, draft = with_layer_after_the_last(models, tmp_path / "m", "eh_proj.weight")
    assert architecture(folder).n_layers == pico.LAYERS
    direction = pico.a_direction(folder)
    allowed = RunOptions(device="cpu", dtype="float32", threads=1, allow=("suspicious",))  # the draft is a copy of a layer
    record = edit(folder, direction, tmp_path / "out", remove=1.0, source=1, options=allowed)
    assert not {t.tensor for t in record.tensors} & set(draft)
    before, after = pico.tensors(folder), pico.tensors(tmp_path / "out")
    assert all(before[n] == after[n] for n in draft)
    load(open_checkpoint(str(tmp_path / "out")), allowed)


def test_a_layer_after_the_last_that_drafts_nothing_is_refused(models: Pico, tmp_path: Path) -> None:
    folder, _ = with_layer_after_the_last(models, tmp_path / "m", None)
    with pytest.raises(UnsupportedModel, match=r"the files hold more.*layers\.2\."):
        architecture(folder)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_images", "qwen3_next"])
def test_a_draft_model_beside_the_model_is_not_the_model(models: Pico, family: str) -> None:
    """Qwen's way: its names end like those of the first layer."""
    checkpoint = open_checkpoint(str(models(family)))
    arch = checkpoint.architecture
    both: dict[str, TensorSpec] = dict(checkpoint.tensors)
    for name, spec in checkpoint.tensors.items():
        both["mtp." + name.removeprefix(arch.prefix)] = spec
    assert resolve(checkpoint.config, both).writers == arch.writers


# Refusals.


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_families_with_several_streams_are_refused_with_the_reason(models: Pico, tmp_path: Path, kind: str) -> None:
    shutil.copytree(models("llama"), tmp_path / "m")
    pico.edit_config(tmp_path / "m", model_type=kind)
    with pytest.raises(UnsupportedModel, match=rf"'{kind}' can't be edited: .*streams"):
        architecture(tmp_path / "m")
    assert kind not in families()


@pytest.mark.parametrize(("family", "missing", "match"), [
    ("qwen3_5", "model.layers.0.linear_attn.out_proj.weight", r"layers\.0\.linear_attn\.out_proj"),
    ("qwen3_5", "model.layers.1.self_attn.o_proj.weight", r"layer 1 .*linear_attn\.out_proj.*self_attn\.o_proj"),
    ("lfm2", "model.layers.0.conv.out_proj.weight", r"layer 0 .*conv\.out_proj"),
    ("deepseek_v3", "model.layers.1.mlp.shared_experts.down_proj.weight", r"layers\.1\.mlp\.shared_experts"),
    ("deepseek_v3", "model.layers.0.mlp.down_proj.weight", r"layer 0 .*mlp\.down_proj"),
    ("deepseek_v3", "model.layers.1.mlp.experts.2.down_proj.weight", r"3 of 4 experts"),
    ("llama4", "model.layers.1.feed_forward.experts.down_proj", r"layer 1 .*feed_forward\.experts\.down_proj"),
    ("llama4", "model.layers.1.feed_forward.shared_expert.down_proj.weight", r"layers\.1\.feed_forward\.shared_expert"),
    ("gemma4", "model.layers.0.post_per_layer_input_norm.weight", r"norm gain.*layers\.0\.post_per_layer_input_norm"),
    ("glm4", "model.layers.1.post_self_attn_layernorm.weight", r"norm gain.*layers\.1\.post_self_attn_layernorm"),
])  # fmt: skip
def test_what_is_missing_is_named(models: Pico, tmp_path: Path, family: str, missing: str, match: str) -> None:
    shutil.copytree(models(family), tmp_path / "m")
    assert missing in pico.tensors(tmp_path / "m")
    pico.rename(tmp_path / "m", {missing: None})
    with pytest.raises(UnsupportedModel, match=match):
        architecture(tmp_path / "m")


def test_multipliers_and_scalars_of_pico_models_differ_from_one(models: Pico) -> None:
    """A layer scalar of one, as a fresh model has it, would hide whether it counts."""
    scalars = [float(b.layer_scalar) for b in stack(plain(models("gemma4_shared")), "gemma4_shared")]
    assert len(scalars) == 4
    assert min(abs(s - 1) for s in scalars) > 0.01
    assert pico.CONFIGS["granite"][1]["residual_multiplier"] != 1
