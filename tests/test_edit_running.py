"""Edits on the running model: as hooks they do what the weights do, and gates and strengths act where they should."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from kinds import Pico, a_step, builder, operations_of, write
from weightsmith.checkpoint import open_checkpoint
from weightsmith.direction import Direction
from weightsmith.edits.operations import Project
from weightsmith.errors import EditError, RecipeError, UsageError
from weightsmith.jobs.edit import edit
from weightsmith.plan import compile_edit
from weightsmith.records import EditSpec, EditStep, GateSpec
from weightsmith.runtime import load, steering

FOUR = {"num_hidden_layers": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Pico models by family, dtype and config, each built once."""
    return builder(tmp_path_factory.mktemp("pico"))


def running(folder: Path) -> Any:
    return load(open_checkpoint(str(folder)), pico.CPU)


def hooks(base: Path, steps: Sequence[EditStep], known: Sequence[Direction]) -> list[Any]:
    found = {d.digest(): d for d in known}
    return compile_edit(open_checkpoint(str(base)), EditSpec(steps=list(steps)), found, hooks_only=True).hooks


@torch.no_grad()
def stream(model: Any, rows: Sequence[Sequence[int]] | None = None) -> list[torch.Tensor]:
    """The residual stream behind every block, fp64 ``[layers, tokens, d_model]``, one tensor a prompt."""
    found = []
    for row in rows or pico.ids():
        seen: list[torch.Tensor] = []

        def keep(_m: Any, _i: Any, out: Any, seen: list[torch.Tensor] = seen) -> None:
            seen.append((out[0] if isinstance(out, tuple) else out)[0].double())

        blocks = [model.module(model.architecture.block(k).removesuffix(".")) for k in range(model.architecture.n_layers)]
        handles = [b.register_forward_hook(keep) for b in blocks]
        model.model(input_ids=torch.tensor([row]))
        for handle in handles:
            handle.remove()
        found.append(torch.stack(seen))
    return found


@torch.no_grad()
def logits(model: Any, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    return model.model(input_ids=torch.tensor(ids)).logits


def apart(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Largest difference, as a share of the spread."""
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(mine, theirs, strict=True))


def with_readers(direction: Direction) -> Direction:
    """As `find --method leace` gives it: a reader that is not the vector, and agrees with it."""
    noise = np.random.default_rng(9).standard_normal(direction.vectors.shape).astype(np.float32)
    return dataclasses.replace(direction, readers=direction.vectors * np.float32(0.8) + noise * np.float32(0.5))


def read_along(direction: Direction, kind: str) -> np.ndarray[Any, Any]:
    """The unit vector of layer 1 that a kind reads along."""
    assert direction.readers is not None
    reader = direction.readers[1].astype(np.float64)
    return direction.unit(1) if kind == "affine" else reader / np.linalg.norm(reader)


# --- hooks and weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama_bias", "gpt2", "gemma2", "qwen2_moe", "gpt_neox"])
@pytest.mark.parametrize(("kind", "fields"), [
    ("remove", {}), ("remove", {"amount": 0.4, "source": "each"}), ("amplify", {"amount": 2.0}), ("projected", {}),
    ("biprojected", {"norms": "free"}), ("affine", {"amount": 0.7}), ("affine", {"source": "each"}), ("leace", {}),
    ("leace", {"amount": 0.5, "source": "each"}),
])  # fmt: skip
def test_hooks_do_what_the_weights_do(
    models: Pico, tmp_path: Path, family: str, kind: str, fields: dict[str, Any]
) -> None:
    """Behind every block; a subspace and a protected feature where the kind has them."""
    base = models(family)
    direction, other, guarded = (pico.a_direction(base, seed=s) for s in range(3))
    direction = with_readers(direction)
    if kind not in ("affine", "leace"):
        post_norm = open_checkpoint(str(base)).architecture.family.post_norm
        fields = {**fields, "also": [] if post_norm else [other.digest()], "protect": [guarded.digest()]}
    known = [direction, other, guarded]
    step = a_step(kind, direction, **fields)
    if kind in ("affine", "leace") and family in ("gemma2", "qwen2_moe"):  # no constant, or only a fitted one
        with pytest.raises(EditError):
            write(base, [step], known, tmp_path / "out")
        return
    write(base, [step], known, tmp_path / "out")
    expected, plain = stream(running(tmp_path / "out")), stream(running(base))
    model = running(base)
    with steering(model, hooks(base, [step], known)):
        found = stream(model)
    assert apart(found, expected) < 1e-4
    assert apart(found, plain) > 0.05


@pytest.mark.parametrize(("kind", "norms"), [("remove", "input"), ("remove", "output"), ("biprojected", None)])
def test_kept_norms_have_no_hooks(models: Pico, kind: str, norms: str | None) -> None:
    base = models("llama_bias")
    direction = pico.a_direction(base)
    with pytest.raises(EditError, match="depends on the weights"):
        hooks(base, [a_step(kind, direction, norms=norms)], [direction])


@pytest.mark.parametrize("family", ["llama", "llama_bias", "gpt2", "mistral"])
@pytest.mark.parametrize("kind", ["remove", "projected", "biprojected", "affine", "leace"])
def test_amount_nothing_leaves_every_byte(models: Pico, tmp_path: Path, family: str, kind: str) -> None:
    base = models(family)
    direction = with_readers(pico.a_direction(base))
    record = write(base, [a_step(kind, direction, amount=0.0)], [direction], tmp_path / "out")
    assert record.tensors == []
    assert pico.tensors(base) == pico.tensors(tmp_path / "out")
    assert json.loads((base / "config.json").read_text()) == json.loads((tmp_path / "out" / "config.json").read_text())


# --- affine removals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weights", "hooks"])
@pytest.mark.parametrize("family", ["llama_bias", "llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["affine", "leace"])
@pytest.mark.parametrize("point", ["resid_post", "resid_pre"])
def test_the_component_is_the_references_whatever_the_text(
    models: Pico, tmp_path: Path, family: str, kind: str, point: str, how: str
) -> None:
    """All layers and the embedding edited: along what is read, the stream is the reference's mean at every token."""
    base = models(family, num_hidden_layers=3)
    direction = with_readers(pico.a_direction(base))
    direction = dataclasses.replace(direction, meta=direction.meta.model_copy(update={"point": point}))
    behind = 1 if point == "resid_pre" else 0
    layers = list(range(3 - behind))
    step = a_step(kind, direction, layers=layers, roles=["attn_out", "mlp_down", "embed"])
    reader = read_along(direction, kind)
    if how == "weights":
        write(base, [step], [direction], tmp_path / "out")
        found = stream(running(tmp_path / "out"))
    else:
        model = running(base)
        with steering(model, hooks(base, [step], [direction])):
            found = stream(model)
    spread = max(float((h @ torch.from_numpy(reader)).std()) for h in stream(running(base)))
    for h in found:
        for layer in layers:
            expected = reader @ direction.mean_lacks[layer + behind]
            along = (h[layer] @ torch.from_numpy(reader)).numpy()
            assert np.abs(along - expected).max() < 2e-4 * spread, layer


@pytest.mark.parametrize("point", ["resid_post", "resid_pre"])
@pytest.mark.parametrize(("amount", "layers"), [(1.0, [1, 2]), (0.6, [2, 3]), (1.0, [1, 3]), (1.0, [2, 1])])
@pytest.mark.parametrize("kind", ["affine", "leace"])
def test_a_window_follows_the_references_increments(
    models: Pico, tmp_path: Path, kind: str, point: str, amount: float, layers: list[int]
) -> None:
    """Above layers that are not edited: what a layer adds is what it adds to the reference's mean; a share of it is mixed
    with what the layer added before, where attention and MLP read the same."""
    base = models("llama_bias" if amount == 1.0 else "gpt_neox", num_hidden_layers=5)
    direction = with_readers(pico.a_direction(base))
    direction = dataclasses.replace(direction, meta=direction.meta.model_copy(update={"point": point}))
    write(base, [a_step(kind, direction, layers=layers, amount=amount)], [direction], tmp_path / "out")
    behind, r = (1 if point == "resid_pre" else 0), torch.from_numpy(read_along(direction, kind))
    means = torch.from_numpy(direction.mean_lacks).double()
    before, after = stream(running(base)), stream(running(tmp_path / "out"))
    for old, new in zip(before, after, strict=True):
        for layer in layers:
            added = (new[layer] - new[layer - 1]) @ r
            expected = float(r @ (means[layer + behind] - means[layer + behind - 1]))
            if amount == 1.0:
                assert float((added - expected).abs().max()) < 1e-4
            elif layer == layers[0]:  # below it nothing has changed
                mix = amount * expected + (1 - amount) * ((old[layer] - old[layer - 1]) @ r)
                assert float((added - mix).abs().max()) < 1e-4


def test_layers_whose_increment_is_not_known_are_left(models: Pico, tmp_path: Path) -> None:
    base = models("llama_bias", num_hidden_layers=4)
    direction = pico.a_direction(base)
    known = {layer: o for layer in range(4) for o in [f"model.layers.{layer}.mlp.down_proj.weight"]}

    def touched(found: Direction, **fields: Any) -> tuple[set[int], list[str]]:
        compiled = compile_edit(open_checkpoint(str(base)), EditSpec(steps=[a_step("affine", found, **fields)]),
                                {found.digest(): found})  # fmt: skip
        names = {o.tensor for o in compiled.operations}
        return {layer for layer, name in known.items() if name in names}, compiled.notes

    everywhere = list(range(4))
    layers, notes = touched(direction)
    assert layers == {1, 2, 3}
    assert "leaves layer 0" in notes[0]
    assert "+embed" in notes[0]
    assert touched(direction, roles=["attn_out", "mlp_down", "embed"]) == (set(everywhere), [])
    pre = dataclasses.replace(direction, meta=direction.meta.model_copy(update={"point": "resid_pre"}))
    assert touched(pre)[0] == {0, 1, 2}
    part = dataclasses.replace(
        direction, meta=direction.meta.model_copy(update={"layers": [1, 2]}), vectors=direction.vectors[1:3],
        mean_lacks=direction.mean_lacks[1:3], mean_shows=direction.mean_shows[1:3], resid_norm=direction.resid_norm[1:3])
    assert touched(part, layers=everywhere)[0] == {2}
    with pytest.raises(EditError, match="means before and behind"):
        touched(part, layers=[1, 3])
    with pytest.raises(RecipeError, match="needs layer 0"):
        touched(direction, layers=[1, 2], roles=["mlp_down", "embed"])


@pytest.mark.parametrize("kind", ["affine", "leace"])
def test_no_share_is_left_where_a_constant_is_put(models: Pico, kind: str) -> None:
    """The component of these tensors is set, not cleared, so the record claims nothing of them."""
    base = models("llama_bias")
    direction = with_readers(pico.a_direction(base))
    operations = operations_of(base, a_step(kind, direction), [direction])
    compiled = compile_edit(open_checkpoint(str(base)), EditSpec(steps=[a_step(kind, direction)]),
                            {direction.digest(): direction})  # fmt: skip
    holders = {t for t, o in operations.items() if not isinstance(o, Project)}
    assert holders
    for operation in compiled.operations:
        if isinstance(operation, Project):
            assert (operation.cleared is None) == (operation.tensor in holders)


def test_a_fitted_constant_for_an_affine_removal(models: Pico, tmp_path: Path) -> None:
    """Where no bias can exist: layers that are left out need no fit."""
    base = models("mistral")
    direction = pico.a_direction(base)
    record = edit(base, direction, tmp_path / "out", remove=1.0, source=1, how={"kind": "affine"}, options=pico.CPU)
    assert [f.layer for f in record.fitted] == [1]
    assert sorted(t.tensor.split(".")[2] for t in record.tensors) == ["1", "1"]


@pytest.mark.parametrize(("kind", "fields"), [
    ("affine", {"norms": "input"}), ("affine", {"strengths": {"*": [1.0, 1.0]}}), ("leace", {"also": "other"}),
    ("leace", {"protect": "other"}), ("add", {"norms": "output"}), ("add", {"also": "other"}),
])  # fmt: skip
def test_options_that_a_kind_does_not_have_are_refused(models: Pico, kind: str, fields: dict[str, Any]) -> None:
    base = models("llama_bias")
    direction, other = with_readers(pico.a_direction(base)), pico.a_direction(base, seed=1)
    fields = {k: [other.digest()] if v == "other" else v for k, v in fields.items()}
    with pytest.raises(RecipeError):
        operations_of(base, a_step(kind, direction, **fields), [direction, other])


def test_leace_needs_its_readers(models: Pico) -> None:
    base = models("llama_bias")
    direction = pico.a_direction(base)
    with pytest.raises(EditError, match="without the covariance"):
        operations_of(base, a_step("leace", direction), [direction])
    turned = dataclasses.replace(direction, readers=-direction.vectors)
    with pytest.raises(EditError, match="do not agree"):
        operations_of(base, a_step("leace", turned), [turned])


# --- gates and strengths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama_bias", "gpt2", "mixtral", "gemma2"])
@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("kind", ["remove", "add"])
def test_a_gate_opens_position_by_position(models: Pico, family: str, below: bool, kind: str) -> None:
    """In a batch: the module's output changes exactly where the stream at the gate is beyond the threshold."""
    base = models(family)
    direction, switch = pico.a_direction(base), pico.a_direction(base, seed=8)
    rows = [r[:12] for r in pico.ids() if len(r) >= 12] * 2
    model = running(base)
    block = model.module(model.architecture.block(0).removesuffix("."))
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _m, _i, out: seen.__setitem__(name, (out[0] if isinstance(out, tuple) else out).double())

    block.register_forward_hook(keep("gate"))
    logits(model, rows)
    along = seen["gate"] @ torch.from_numpy(switch.unit(0))
    ordered = along.flatten().unique()
    threshold = float(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1].mean())
    gate = GateSpec(direction=switch.digest(), layer=0, threshold=threshold, below=below)
    step = a_step(kind, direction, layers=[1], gate=gate, amount=0.8)
    compiled = hooks(base, [step], [direction, switch])
    where = {op.module for op in compiled}
    plain, edited = {}, {}
    for name in where:
        model.module(name).register_forward_hook(keep(f"before {name}"))
    logits(model, rows)
    plain = dict(seen)
    with steering(model, compiled) as handle:
        last = [model.module(n).register_forward_hook(keep(f"after {n}")) for n in where]
        logits(model, rows)
        edited = dict(seen)
    for h in last:
        h.remove()
    fires = (along < threshold) if below else (along > threshold)
    assert 0 < int(fires.sum()) < fires.numel()
    assert all(torch.equal(o, fires) for o in handle.open.values())
    for name in where:  # what the module itself said, before the hook, against after it
        change = (edited[f"after {name}"] - edited[f"before {name}"]).abs().amax(-1)
        assert torch.equal((change > 1e-6).reshape(-1), fires.reshape(-1)), name
        assert edited[f"after {name}"].shape == plain[f"before {name}"].shape


def test_gates_belong_to_the_running_model(models: Pico) -> None:
    base = models("llama_bias", **FOUR)
    direction = pico.a_direction(base)
    gate = GateSpec(direction=direction.digest(), layer=1, threshold=0.0)
    with pytest.raises(EditError, match="no form as weights"):
        operations_of(base, a_step("remove", direction, layers=[2, 3], gate=gate), [direction])
    for layer, layers in ((1, [1, 2]), (3, [1, 3]), (9, [2])):
        step = a_step("remove", direction, layers=layers, gate=gate.model_copy(update={"layer": layer}))
        with pytest.raises(RecipeError, match="gate"):
            hooks(base, [step], [direction])


@pytest.mark.parametrize("family", ["llama_bias", "gpt2", "mixtral", "qwen2_moe", "gpt_oss", "gemma2"])
@pytest.mark.parametrize("kind", ["remove", "add"])
def test_a_strength_for_each_row_and_for_each_position(models: Pico, family: str, kind: str) -> None:
    """Each row of a batch is what a run of its own gives; each position too, as far as nothing before it differs."""
    base = models(family)
    direction = pico.a_direction(base)
    rows = [r[:12] for r in pico.ids() if len(r) >= 12][:1] * 3
    model = running(base)
    strengths = [0.0, 0.5, 1.0]
    with steering(model, hooks(base, [a_step(kind, direction, amount=0.9)], [direction])) as handle:
        alone = []
        for s in strengths:
            handle.strength = s
            alone.append(logits(model, rows[:1])[0])
        handle.strength = torch.tensor(strengths)
        together = logits(model, rows)
        for mine, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
        assert float((together[0] - together[2]).abs().max()) > 0.05
        # a row that changes its strength halfway: the first half can't know, the second sees it only here
        handle.strength = torch.tensor(strengths)[:, None].expand(3, 12).clone()
        torch.testing.assert_close(logits(model, rows), together, atol=2e-5, rtol=1e-4)
        handle.strength[:, 6:] = 1.0
        switched = logits(model, rows)
        torch.testing.assert_close(switched[:, :6], together[:, :6], atol=2e-5, rtol=1e-4)
        assert float((switched[0, 6:] - together[0, 6:]).abs().max()) > 0.01
        torch.testing.assert_close(switched[2], together[2], atol=2e-5, rtol=1e-4)
        for wrong in (torch.ones(2, 3, 4), torch.ones(3, 5), torch.ones(7)):
            handle.strength = wrong
            with pytest.raises(UsageError, match="fits neither"):
                logits(model, rows)
    torch.testing.assert_close(alone[0], logits(model, rows[:1])[0])


@torch.no_grad()
def test_a_strength_that_changes_between_generated_tokens(models: Pico) -> None:
    """With a cache, token by token, against one pass with the same strength at every position."""
    base = models("llama_bias")
    direction, ids = pico.a_direction(base), pico.ids()[1][:10]
    model, schedule = running(base), [0.0, 0.3, 1.0, 0.5, 0.0, 0.9]
    with steering(model, hooks(base, [a_step("add", direction, amount=0.9)], [direction])) as handle:
        handle.strength = schedule[0]
        out = model.model(input_ids=torch.tensor([ids[:5]]), use_cache=True)
        found = [out.logits[0, -1]]
        for k, s in enumerate(schedule[1:]):
            handle.strength = s
            out = model.model(input_ids=torch.tensor([[ids[5 + k]]]), past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits[0, -1])
        handle.strength = torch.tensor([[schedule[0]] * 5 + schedule[1:]])
        whole = logits(model, [ids])[0, 4:]
        handle.strength = schedule[-1]
        fixed = logits(model, [ids])[0, 4:]
    torch.testing.assert_close(torch.stack(found), whole, atol=2e-5, rtol=1e-4)
    assert float((fixed - whole).abs().max()) > 0.01
