"""Least-squares concept erasure: the shrunk covariance, the pair of vectors, and what a probe finds afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from kinds import Pico, a_step, builder, operations_of, rewritten
from weightsmith.checkpoint import open_checkpoint
from weightsmith.direction import load_direction
from weightsmith.features.methods import leace, logistic_probe, shrinkage
from weightsmith.features.quality import auroc
from weightsmith.plan import compile_edit
from weightsmith.records import EditSpec

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Pico models by family, dtype and config, each built once."""
    return builder(tmp_path_factory.mktemp("pico"))


def two_sides(n: int, d: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Two classes that differ in their means, in activations whose dimensions go together and differ in size; the
    matrix that mixed them."""
    dice = np.random.default_rng(7)
    mix = (np.eye(d) + 0.5 * dice.standard_normal((d, d)) / d**0.5) * np.exp(dice.uniform(-1, 1, d))
    axis = dice.standard_normal(d)
    dice = np.random.default_rng(seed)
    lacks = dice.standard_normal((n, d)) @ mix + 3
    shows = dice.standard_normal((n, d)) @ mix + 3 + axis
    return shows, lacks, mix


def erased(x: Array, write: Array, read: Array, amount: float = 1.0) -> Array:
    return x - amount * np.outer(x @ read, write) / float(read @ write)


def best_probe(shows: Array, lacks: Array) -> Array:
    """Least squares with a constant."""
    x = np.vstack([shows, lacks])
    y = np.r_[np.ones(len(shows)), -np.ones(len(lacks))]
    return np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0][:-1]


def test_the_pair_is_the_papers() -> None:
    """Theorem 4.3 itself, W⁺ P W with W = Σ^(−1/2) from an eigenvalue decomposition and Σ about the common mean."""
    shows, lacks, _ = two_sides(20000, 12)
    x, z = np.vstack([shows, lacks]), np.r_[np.ones(len(shows)), np.zeros(len(lacks))]
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T
    across = whiten @ ((x - x.mean(0)).T @ (z - z.mean()) / len(x))
    projection = np.outer(across, across) / (across @ across)
    expected = np.eye(12) - np.linalg.inv(whiten) @ projection @ whiten
    write, read = leace(shows, lacks, False), leace.reader(shows, lacks, False)
    mine = np.eye(12) - np.outer(write, read) / (read @ write)
    assert np.abs(mine - expected).max() < 2e-3 * np.abs(expected).max()  # but for the little that is shrunk
    assert np.abs(expected - (np.eye(12) - np.outer(write, write) / (write @ write))).max() > 0.1


def test_agreement_with_the_authors_package() -> None:
    concept_erasure = pytest.importorskip("concept_erasure")
    shows, lacks, _ = two_sides(20000, 12)
    x = torch.from_numpy(np.vstack([shows, lacks]))
    z = torch.cat([torch.ones(len(shows)), torch.zeros(len(lacks))]).long()
    eraser = concept_erasure.LeaceFitter.fit(x, z).eraser
    write, read = leace(shows, lacks, False), leace.reader(shows, lacks, False)
    mine = np.eye(12) - np.outer(write, read) / (read @ write)
    assert np.abs(mine - eraser.P.numpy()).max() < 5e-3 * np.abs(mine).max()


def test_no_linear_probe_finds_the_feature_on_held_out_data() -> None:
    train, test = two_sides(3000, 24, 1)[:2], two_sides(3000, 24, 2)[:2]
    write, read = leace(*train, False), leace.reader(*train, False)
    for probe in (best_probe, lambda a, b: logistic_probe(a, b, False)):
        w = probe(*train)
        assert auroc(test[0][:800] @ w, test[1][:800] @ w) > 0.95
        w = probe(*(erased(x, write, read) for x in train))
        left = auroc(*(erased(x[:800], write, read) @ w for x in test))
        assert abs(left - 0.5) < 0.06, left
        w = probe(*(erased(x, read, read) for x in train))  # to take out what a probe reads is not enough
        assert auroc(*(erased(x[:800], read, read) @ w for x in test)) > 0.75


def test_the_change_is_the_least_in_the_metric_of_the_covariance() -> None:
    """Of all rank-one erasures that make the means equal (write ∝ δ), over readers: Σ⁻¹δ costs least."""
    shows, lacks, _ = two_sides(4000, 24)
    x = np.vstack([shows - shows.mean(0), lacks - lacks.mean(0)])
    sigma = x.T @ x / len(x)
    write, read = leace(shows, lacks, False), leace.reader(shows, lacks, False)

    def cost(reader: Array) -> float:
        change = x - erased(x, write, reader)
        return float(np.einsum("ni,ij,nj->", change, np.linalg.inv(sigma), change)) / len(x)

    least = cost(read)
    assert least < 0.8 * cost(write)
    dice = np.random.default_rng(0)
    for _ in range(20):
        assert cost(read + 0.1 * np.linalg.norm(read) * dice.standard_normal(24) / 24**0.5) > least


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    """Against the formula written out, prompt by prompt; it does what it is for where prompts are few."""
    dice = np.random.default_rng(0)
    mix = dice.standard_normal((30, 30)) * np.exp(dice.uniform(-1, 1, 30))
    true = mix.T @ mix
    for n in (8, 25, 200, 5000):
        x = dice.standard_normal((n, 30)) @ mix
        s = x.T @ x / n
        mean = np.trace(s) / 30
        apart = ((s - mean * np.eye(30)) ** 2).sum()
        noise = sum(((np.outer(row, row) - s) ** 2).sum() for row in x) / n**2
        rho, found = shrinkage(x)
        assert found == pytest.approx(mean)
        assert rho == pytest.approx(min(noise, apart) / apart, rel=1e-9)
        shrunk = (1 - rho) * s + rho * mean * np.eye(30)
        assert ((shrunk - true) ** 2).sum() < ((s - true) ** 2).sum() * (1 + 1e-3)


@pytest.mark.parametrize("n", [6, 40, 500])
def test_the_reader_solves_the_shrunk_system(n: int) -> None:
    """Fewer prompts than dimensions, about as many, more: the small system gives what the large one does."""
    shows, lacks, _ = two_sides(n, 40)
    x = np.vstack([shows - shows.mean(0), lacks - lacks.mean(0)])
    rho, mean = shrinkage(x)
    sigma = (1 - rho) * x.T @ x / len(x) + rho * mean * np.eye(40)
    reader = leace.reader(shows, lacks, False)
    assert np.allclose(reader, np.linalg.solve(sigma, shows.mean(0) - lacks.mean(0)), rtol=1e-6)


def test_sides_without_spread_are_read_along_the_difference() -> None:
    shows, lacks = np.ones((5, 4)) * 2, np.ones((5, 4))
    with np.errstate(all="raise"):
        assert np.array_equal(leace.reader(shows, lacks, True), leace(shows, lacks, True))
        assert np.array_equal(leace.reader(lacks, lacks, True), np.zeros(4))
    one = leace.reader(np.arange(4.0)[None] + 1, np.zeros((1, 4)), True)
    assert np.isfinite(one).all()


def test_weights_are_rewritten_with_the_pair(models: Pico) -> None:
    """(I − δ qᵀ/(qᵀδ)) W on every writer, so that nothing is written along the reader."""
    base = models("llama_bias")
    direction = pico.a_direction(base)
    dice = np.random.default_rng(3)
    direction = dataclasses.replace(direction, readers=(0.8 * direction.vectors + 0.5 * dice.standard_normal(
        direction.vectors.shape)).astype(np.float32))  # fmt: skip
    assert direction.readers is not None
    operations = operations_of(base, a_step("leace", direction, layers=[1]), [direction])
    operation = operations["model.layers.1.self_attn.o_proj.weight"]
    w = dice.standard_normal((pico.WIDTH, 50))
    new, left = rewritten(w, [dataclasses.replace(operation)])
    delta, q = direction.vectors[1].astype(np.float64), direction.readers[1].astype(np.float64)
    assert np.allclose(new, w - np.outer(delta, q @ w) / (q @ delta), atol=1e-6)
    assert np.abs(q @ new).max() < 1e-5
    assert left is not None
    assert left < 1e-6


def test_find_keeps_the_reader_through_the_choice(
    models: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the running model to the file and back: the reader is Σ⁻¹δ of the activations that were read."""
    from weightsmith.features import extract, select
    from weightsmith.jobs.find import find

    base, kept = models("llama_bias"), []
    read = extract.read_part

    def reading(*arguments: Any) -> Any:
        kept.append(read(*arguments))
        return kept[-1]

    monkeypatch.setattr(extract, "read_part", reading)
    monkeypatch.setattr(select, "prepare", lambda *a: type("T", (), {"rule": "none"}))
    monkeypatch.setattr(select, "choose", lambda *a: [])
    direction = find(str(base), "melancholy", tmp_path / "d.safetensors", method="leace", response_tokens=2,
                     options=dataclasses.replace(pico.CPU, use_cache=False))  # fmt: skip
    loaded = load_direction(tmp_path / "d.safetensors")
    assert loaded.meta.rule == "none"
    assert loaded.readers is not None
    assert np.array_equal(loaded.readers, direction.readers if direction.readers is not None else 0)
    shows, lacks = (s.means[:, 1].astype(np.float64) for s in (kept[0].shows, kept[0].lacks))
    assert np.allclose(loaded.readers[1], leace.reader(shows, lacks, True), rtol=1e-5)
    assert np.allclose(loaded.vectors[1], shows.mean(0) - lacks.mean(0), rtol=1e-5, atol=1e-6)
    step = a_step("leace", loaded, layers=[1])
    compile_edit(open_checkpoint(str(base)), EditSpec(steps=[step]), {loaded.digest(): loaded})
