"""What every kind of edit does to weights and to the running model, against plain fp64 numpy and plain torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import pico
from kinds import (
    DTYPES,
    Pico,
    a_basis,
    a_step,
    builder,
    canonical,
    gained,
    operations_of,
    removal,
    rewritten,
    write,
    writers,
)
from weightsmith.checkpoint import open_checkpoint
from weightsmith.edits.numerics import orthonormal
from weightsmith.edits.operations import AddConstant, ProjectKeepInputNorms, ProjectKeepOutputNorms
from weightsmith.errors import EditError, NonFinite
from weightsmith.formats.safetensors import decode, encode, read_tensor

#: layouts: linears with biases, Conv1D, fused experts in both orders, gains behind the writer
FAMILIES = ["llama_bias", "gpt2", "mixtral", "gpt_oss", "qwen2_moe", "gemma2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Pico models by family, dtype and config, each built once."""
    return builder(tmp_path_factory.mktemp("pico"))


# --- removal and amplification ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "amount", "factor", "also"), [
    ("remove", 1.0, 0.0, 0), ("remove", 1.0, 0.0, 2), ("remove", 0.6, 0.4, 1), ("amplify", 2.5, 2.5, 1),
])  # fmt: skip
def test_scaling_agrees_with_fp64(
    models: Pico, tmp_path: Path, family: str, kind: str, amount: float, factor: float, also: int
) -> None:
    """W − (1 − f) U UᵀW on every tensor that writes to the stream, in each layout on disk."""
    base = models(family)
    directions = [pico.a_direction(base, seed=s) for s in range(also + 1)]
    roles = [*open_checkpoint(str(base)).architecture.default_roles(), "embed"]
    step = a_step(kind, directions[0], also=[d.digest() for d in directions[1:]], amount=amount, roles=roles)
    write(base, [step], directions, tmp_path / "out")
    before, after = writers(base), writers(tmp_path / "out")
    assert len(before) > 4
    for name, (writer, w) in before.items():
        u = gained(base, writer, np.stack([d.unit(1) for d in directions], 1))
        expected = w + (factor - 1.0) * u @ (u.T @ w)
        got = after[name][1]
        assert np.abs(got - expected).max() <= 2.0**-23 * np.abs(expected).max(), name
        if factor == 0.0:
            assert np.linalg.norm(u.T @ got) <= 1e-6 * np.linalg.norm(got), name


@pytest.mark.parametrize(("shape", "axis"), [
    ((48, 70), -2), ((70, 48), -1), ((3, 48, 70), -2), ((3, 70, 48), -1), ((48,), -1), ((5, 48), -1), ((200, 3000), -2),
])  # fmt: skip
@pytest.mark.parametrize("k", [1, 3])
def test_removal_is_exact_and_done_once_for_all(shape: tuple[int, ...], axis: int, k: int) -> None:
    w = np.random.default_rng(1).standard_normal(shape)
    u = a_basis(shape[axis], k)
    once, left = rewritten(w, [removal(u, axis)])
    rows = np.moveaxis(once, axis, 0).reshape(shape[axis], -1)
    assert np.abs(u.T @ rows).max() <= 1e-6 * np.abs(rows).max()
    assert left is not None
    assert left < 1e-6
    twice, _ = rewritten(once, [removal(u, axis)])
    assert np.abs(twice - once).max() <= 2.0**-23 * np.abs(once).max()


def test_an_empty_tensor_stays_empty() -> None:
    for shape, axis in (((48, 0), -2), ((0, 48), -1), ((0, 48, 5), -2)):
        assert rewritten(np.zeros(shape), [removal(a_basis(48), axis)])[0].shape == shape


def test_a_removal_in_part_can_be_amplified_back(models: Pico, tmp_path: Path) -> None:
    base = models("gemma2")
    direction = pico.a_direction(base)
    write(base, [a_step("remove", direction, amount=0.75)], [direction], tmp_path / "less")
    write(tmp_path / "less", [a_step("amplify", direction, amount=4.0)], [direction], tmp_path / "back")
    before, less, back = (writers(f) for f in (base, tmp_path / "less", tmp_path / "back"))
    for name, (_, w) in before.items():
        assert np.abs(back[name][1] - w).max() <= 2e-6 * np.abs(w).max(), name
    assert any(np.abs(less[n][1] - w).max() > 0.05 * np.abs(w).max() for n, (_, w) in before.items())


# --- what is taken out of the direction first ------------------------------------------------------------------------


def test_projected_directions_do_not_lean_on_the_neutral_mean(models: Pico) -> None:
    base = models("llama_bias", num_hidden_layers=4)
    direction = pico.a_direction(base)
    means, r = direction.mean_lacks.astype(np.float64), direction.unit(1)
    architecture = open_checkpoint(str(base)).architecture
    layer_of = {w.tensor: w.layer for w in architecture.writers}
    plain = operations_of(base, a_step("projected", direction), [direction])
    both = operations_of(base, a_step("biprojected", direction), [direction])
    assert len(plain) == len(both) == 4 * 4
    for name, operation in plain.items():
        (u,) = operation.read.T
        rest = r - means[1] * (means[1] @ r) / (means[1] @ means[1])
        assert np.allclose(u, rest / np.linalg.norm(rest), atol=1e-12), name
    for name, operation in both.items():
        (u,) = operation.basis.T
        here = [means[1], means[layer_of[name]]]
        assert max(abs(u @ m) / np.linalg.norm(m) for m in here) < 1e-12
        part = np.linalg.lstsq(np.stack(here, 1), r, rcond=None)[0] @ np.stack(here)
        assert np.allclose(u, (r - part) / np.linalg.norm(r - part), atol=1e-9), name
        assert isinstance(operation, ProjectKeepInputNorms)  # the kind keeps input norms unless told otherwise


def test_a_direction_that_is_the_mean_is_refused(models: Pico) -> None:
    base = models("llama_bias")
    direction = pico.a_direction(base)
    direction = dataclasses.replace(direction, mean_lacks=direction.vectors * np.float32(3))
    with pytest.raises(EditError, match="outside what is kept"):
        operations_of(base, a_step("projected", direction), [direction])


@pytest.mark.parametrize("norms", ["free", "input"])
def test_protected_features_do_not_move(models: Pico, tmp_path: Path, norms: str) -> None:
    base = models("mixtral")
    direction, *guarded = (pico.a_direction(base, seed=s) for s in (0, 4, 5))
    step = a_step("remove", direction, protect=[d.digest() for d in guarded], norms=norms)
    write(base, [step], [direction, *guarded], tmp_path / "out")
    p = np.stack([d.unit(1) for d in guarded], 1)
    u = orthonormal([*(d.unit(1) for d in guarded), direction.unit(1)])[:, -1]
    after = writers(tmp_path / "out")
    for name, (writer, w) in writers(base).items():
        got = after[name][1]
        if writer.role != "embed":
            assert np.abs(p.T @ got - p.T @ w).max() <= 1e-6 * np.abs(w).max(), name
            assert np.linalg.norm(u @ got) <= 1e-6 * np.linalg.norm(u @ w), name
            if norms == "input":
                assert np.allclose(np.linalg.norm(got, axis=-2), np.linalg.norm(w, axis=-2), rtol=1e-6), name


def test_protection_in_front_of_a_norm(models: Pico, tmp_path: Path) -> None:
    """Gains make orthogonal directions oblique: what the norm sees along g ⊙ P must stay, along g ⊙ u must go."""
    base = models("gemma2")
    direction, guarded = pico.a_direction(base), pico.a_direction(base, seed=4)
    step = a_step("remove", direction, protect=[guarded.digest()])
    write(base, [step], [direction, guarded], tmp_path / "out")
    u = orthonormal([guarded.unit(1), direction.unit(1)])[:, 1:]
    after = writers(tmp_path / "out")
    for name, (writer, w) in writers(base).items():
        if writer.role != "embed":
            p, r = gained(base, writer, guarded.unit(1)[:, None]), gained(base, writer, u)
            assert abs(float((p * r).sum())) > 0.01  # oblique indeed
            assert np.abs(p.T @ (after[name][1] - w)).max() <= 1e-6 * np.abs(w).max(), name
            assert np.linalg.norm(r.T @ after[name][1]) <= 1e-6 * np.linalg.norm(r.T @ w), name
    for fields in ({"norms": "input"}, {"also": [pico.a_direction(base, seed=7).digest()]}):
        with pytest.raises(EditError, match="free norms only"):
            operations_of(base, step.model_copy(update=fields), [direction, guarded, pico.a_direction(base, seed=7)])


@pytest.mark.parametrize("kind", ["remove", "amplify"])
def test_strengths_by_role_and_layer(models: Pico, tmp_path: Path, kind: str) -> None:
    base = models("llama_bias", num_hidden_layers=4)
    direction = pico.a_direction(base)
    strengths = {"attn_out": [1.0, 0.5, 0.0], "*": [0.5, 1.0, 1.0]}
    amount = 0.8 if kind == "remove" else 3.0
    step = a_step(kind, direction, layers=[0, 1, 3], strengths=strengths, amount=amount)
    write(base, [step], [direction], tmp_path / "out")
    u, after = direction.unit(1), writers(tmp_path / "out")
    for name, (writer, w) in writers(base).items():
        share = 0.0
        if writer.layer in (0, 1, 3):
            k = (0, 1, 3).index(writer.layer)
            share = strengths["*"][k] * (strengths["attn_out"][k] if writer.role == "attn_out" else 1.0)
        factor = 1 - share * amount if kind == "remove" else 1 + share * (amount - 1)
        assert np.allclose(u @ after[name][1], factor * (u @ w), atol=1e-6 * np.abs(w).max()), name
        if share == 0.0:
            assert np.array_equal(after[name][1], w), name


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [((48, 70), -2), ((70, 48), -1), ((3, 48, 70), -2), ((3, 70, 48), -1)])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("factor", [0.0, 0.3, 2.0])
def test_input_norms_are_kept_and_the_removal_is_exact(
    shape: tuple[int, ...], axis: int, k: int, factor: float
) -> None:
    w = np.random.default_rng(2).standard_normal(shape)
    u = a_basis(48, k)
    new, left = rewritten(w, [ProjectKeepInputNorms("t", axis, u, factor, "x")])
    before, after = (np.moveaxis(x, axis, 0) for x in (w, new))
    assert np.allclose(np.linalg.norm(after, axis=0), np.linalg.norm(before, axis=0), rtol=1e-6)
    along = np.tensordot(u, after, (0, 0))
    expected = before - (1 - factor) * np.tensordot(u, np.tensordot(u, before, (0, 0)), (1, 0))
    expected *= np.linalg.norm(before, axis=0) / np.linalg.norm(expected, axis=0)
    assert np.allclose(after, expected, rtol=1e-5, atol=1e-6)
    if factor == 0.0:
        assert np.abs(along).max() <= 1e-6
        assert left is not None
        assert left < 1e-6


def test_an_input_vector_along_the_direction_has_no_norm_to_keep() -> None:
    w, u = np.random.default_rng(2).standard_normal((48, 5)), a_basis(48)
    w[:, 3] = 7 * u[:, 0]
    with pytest.raises(EditError, match="wholly along"):
        rewritten(w, [ProjectKeepInputNorms("t", -2, u, 0.0, "x")])
    w[:, 3] = 0
    assert not rewritten(w, [ProjectKeepInputNorms("t", -2, u, 0.0, "x")])[0][:, 3].any()


@pytest.mark.parametrize(("shape", "axis"), [((96, 70), -2), ((70, 96), -1), ((2, 96, 130), -2)])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_output_norms_are_kept_and_the_removal_is_exact(
    shape: tuple[int, ...], axis: int, k: int, dtype: str
) -> None:
    """Rescaling the rows once after the removal, which looks the same, puts much of it back."""
    dice = np.random.default_rng(2)
    u = orthonormal([x**3 for x in dice.standard_normal((k, 96))])  # a few rows have most of it, as in real models
    w = dice.standard_normal(shape)
    w = w + np.moveaxis(np.multiply.outer(6 * u[:, 0], dice.standard_normal(w.size // 96)).reshape(
        96, *np.moveaxis(w, axis, 0).shape[1:]), 0, axis)  # fmt: skip
    w = decode(encode(w.ravel(), dtype), dtype, np.float64).reshape(shape)
    new, left = rewritten(w, [ProjectKeepOutputNorms("t", axis, u, "x")], dtype)
    assert left is not None
    for old, got in zip(*(np.moveaxis(x, axis, -2).reshape(-1, 96, shape[-1 if axis == -2 else -2]) for x in (w, new)),
                        strict=True):  # fmt: skip
        norms = np.linalg.norm(old, axis=1)
        assert np.abs(np.linalg.norm(got, axis=1) / norms - 1).max() < (2e-4 if dtype == "F32" else 3e-3)
        had = np.linalg.norm(u.T @ old)
        assert np.linalg.norm(u.T @ got) / had < (1e-6 if dtype == "F32" else 3e-3)
        naive = old - u @ (u.T @ old)
        naive *= (norms / np.linalg.norm(naive, axis=1))[:, None]
        assert np.linalg.norm(u.T @ naive) / had > 0.05


def test_a_row_that_outweighs_the_others_is_refused() -> None:
    w, u = np.random.default_rng(2).standard_normal((48, 70)), a_basis(48)
    w[7] *= 1000
    with pytest.raises(EditError, match="one row outweighs") as refusal:
        rewritten(w, [ProjectKeepOutputNorms("t", -2, u, "x")])
    assert "row 7" in str(refusal.value)


def test_norms_of_outputs_are_kept_by_exact_removals_only(models: Pico) -> None:
    base = models("llama_bias")
    directions = [pico.a_direction(base, seed=s) for s in (0, 1)]
    with pytest.raises(EditError, match="exact removal only"):
        operations_of(base, a_step("remove", directions[0], norms="output", amount=0.5), directions)
    with pytest.raises(EditError, match="beside protected"):
        operations_of(base, a_step("remove", directions[0], norms="output", protect=[directions[1].digest()]), directions)


# --- steps one after another, and what is left -----------------------------------------------------------------------


def test_steps_compose_in_order(models: Pico, tmp_path: Path) -> None:
    """Remove, then scale what another direction still has, then add: each acts on what the ones before it left."""
    base = models("llama_bias")
    one, two, three = (pico.a_direction(base, seed=s) for s in range(3))
    steps = [a_step("remove", one), a_step("amplify", two, amount=3.0), a_step("add", three, amount=0.5)]
    record = write(base, steps, [one, two, three], tmp_path / "out")
    a, b = one.unit(1), two.unit(1)
    after = writers(tmp_path / "out")
    for name, (writer, w) in writers(base).items():
        if writer.role == "embed":
            continue
        w1 = w - np.outer(a, a @ w)
        w2 = w1 + 2 * np.outer(b, b @ w1)
        if name.endswith("down_proj.bias"):  # where a constant goes in this family
            w2 = w2 + 0.5 / 2 * three.resid_norm[writer.layer] * three.unit(1)[:, None]
        got = after[name][1]
        assert np.abs(got - w2).max() <= 3e-7 * np.abs(w2).max(), name
        (left,) = [t.left for t in record.tensors if t.tensor == name]
        assert left == pytest.approx(np.linalg.norm(a @ got) / np.linalg.norm(a @ w), rel=1e-4), name


def test_removals_that_undo_each_other_are_not_blamed_on_rounding(models: Pico, tmp_path: Path) -> None:
    base = models("llama_bias")
    one, two = pico.a_direction(base), pico.a_direction(base, seed=1)
    two = dataclasses.replace(two, vectors=one.vectors + two.vectors)
    record = write(base, [a_step("remove", d) for d in (one, two)], [one, two], tmp_path / "out")
    (note,) = record.notes
    assert note.startswith("other steps write again")
    assert "F32" not in note
    also = write(base, [a_step("remove", one, also=[two.digest()])], [one, two], tmp_path / "both")
    assert also.notes == []


def test_what_is_left_is_measured_after_all_steps() -> None:
    """Two removals that are not orthogonal: the second brings back some of the first, and the figure says so."""
    w = np.random.default_rng(3).standard_normal((48, 70))
    a, b = (x / np.linalg.norm(x) for x in (np.ones((48, 1)), np.ones((48, 1)) + 9 * a_basis(48)))
    new, left = rewritten(w, [removal(a), removal(b)])
    kept = [np.linalg.norm(x.T @ new) for x in (a, b)]
    had = [np.linalg.norm(x.T @ w) for x in (a, b)]
    assert kept[0] > 0.05 * had[0]
    assert left == pytest.approx(np.hypot(*kept) / np.hypot(*had), rel=1e-5)
    both, left = rewritten(w, [removal(orthonormal([a[:, 0], b[:, 0]]))])  # as one subspace nothing is left
    assert np.abs(np.hstack([a, b]).T @ both).max() < 1e-5
    assert left is not None
    assert left < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((96, 300), -2), ((300, 96), -1), ((96, 2500), -2)])
def test_what_is_left_and_how_it_is_rounded(dtype: str, shape: tuple[int, int], axis: int) -> None:
    """The figure is the one that the written bytes have, and the bytes are torch's rounding of the exact result."""
    dice = np.random.default_rng(4)
    w = torch.from_numpy(0.5 * dice.standard_normal(shape) + 0.3).to(DTYPES[dtype]).double().numpy()
    u = a_basis(96)
    new, left = rewritten(w, [removal(u, axis)], dtype)
    before, after = canonical(w, axis), canonical(new, axis)
    assert left == pytest.approx(np.linalg.norm(u.T @ after) / np.linalg.norm(u.T @ before), rel=1e-3)
    exact = torch.from_numpy(np.ascontiguousarray(canonical(before - u @ (u.T @ before), axis) if axis == -1 else
                                                  before - u @ (u.T @ before)))  # fmt: skip
    if dtype != "F32":  # which is computed in fp64: its own rounding is all
        exact = exact.float()
    expected = exact.to(DTYPES[dtype]).double().numpy()
    same = np.mean(expected.reshape(-1) == new.reshape(-1))
    assert same > (0.9999 if dtype == "F32" else 0.999)  # ties of the intermediate may fall to either side
    assert left < {"F32": 1e-6, "BF16": 0.01, "F16": 2e-3}.get(dtype, 0.2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cast_is_to_nearest_even(dtype: str) -> None:
    """A constant on a bias of zeros gives the constant, rounded: values halfway between two, and all others."""
    codes = np.arange(0, 200 if dtype.startswith("F8") else 30000, 1 if dtype.startswith("F8") else 7)
    width = {"F32": 4, "BF16": 2, "F16": 2}.get(dtype, 1)
    grid = decode(codes.astype(f"<u{width}").tobytes(), dtype, np.float64)
    grid = np.unique(grid[np.isfinite(grid)])
    values = np.concatenate([(grid[1:] + grid[:-1]) / 2, grid, np.nextafter((grid[1:] + grid[:-1]) / 2, np.inf)])
    values = values[np.abs(values) < grid.max()].astype(np.float32).astype(np.float64)
    new, _ = rewritten(np.zeros(len(values)), [AddConstant("t", values)], dtype)
    assert np.array_equal(new, torch.from_numpy(values).float().to(DTYPES[dtype]).double().numpy())


@pytest.mark.parametrize(("dtype", "warned"), [("BF16", False), ("F8_E4M3", True)])
def test_a_coarse_dtype_is_named_in_a_note(tmp_path: Path, dtype: str, warned: bool) -> None:
    base = pico.build("llama", tmp_path / "base", DTYPES[dtype] if dtype == "BF16" else torch.float32)
    if dtype != "BF16":
        recast(base / "model.safetensors", dtype)
    direction = pico.a_direction(base)
    record = write(base, [a_step("remove", direction)], [direction], tmp_path / "out")
    assert {t.dtype for t in record.tensors} == {dtype}
    assert any(dtype in n and "1%" in n for n in record.notes) == warned
    assert (max(t.left or 0 for t in record.tensors) > 0.01) == warned


def test_what_was_removed_before_is_said_to_be_that(tmp_path: Path) -> None:
    base = pico.build("llama", tmp_path / "base", torch.bfloat16)
    direction = pico.a_direction(base)
    once = write(base, [a_step("remove", direction)], [direction], tmp_path / "once")
    assert not [n for n in once.notes if "hardly more" in n]
    twice = write(tmp_path / "once", [a_step("remove", direction)], [direction], tmp_path / "twice")
    assert [n for n in twice.notes if "which held hardly more of it before the edit" in n]


def recast(file: Path, dtype: str) -> None:
    """Give every matrix of a file another dtype."""
    from weightsmith.formats.safetensors import read_header, write_file

    specs = read_header(file).tensors
    data = {s.name: encode(read_tensor(s).reshape(-1), dtype if len(s.shape) > 1 else s.dtype) for s in specs}
    write_file(file, [(s.name, dtype if len(s.shape) > 1 else s.dtype, s.shape,
                       lambda out, raw=data[s.name]: out.write(raw)) for s in specs], {"format": "pt"})  # fmt: skip


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2", "F32"])
def test_overflow_names_the_tensor(dtype: str) -> None:
    top = float(torch.finfo(DTYPES[dtype]).max)
    w = np.full((8, 6), top / 2)
    u = np.ones((8, 1)) / np.sqrt(8)
    with pytest.raises(NonFinite, match=f"'t' would overflow {dtype}"):
        rewritten(w, [removal(u, factor=5.0)], dtype)
    with pytest.raises(NonFinite, match="'t' would overflow"):
        rewritten(w.T.copy(), [removal(u, -1, factor=5.0)], dtype)
