"""A removal that reads along one vector and writes along another: algebra, agreement of weights and hooks, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import pico
from kinds import Pico, a_step, builder, write, writers
from weightsmith.checkpoint import open_checkpoint
from weightsmith.direction import Direction
from weightsmith.errors import EditError, RecipeError
from weightsmith.features.select import compile_hooks
from weightsmith.plan import compile_edit
from weightsmith.records import EditSpec
from weightsmith.runtime import load, steering


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Pico models by family, dtype and config, each built once."""
    return builder(tmp_path_factory.mktemp("pico"))


def with_readers(base: Path, *, same: bool = False) -> Direction:
    found = pico.a_direction(base)
    rows = found.vectors if same else np.random.default_rng(5).standard_normal(found.vectors.shape)
    return dataclasses.replace(found, readers=np.asarray(rows, np.float32))


def unit(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_weights_are_changed_by_the_equation(family: str, models: Pico, tmp_path: Path) -> None:
    base = models(family)
    direction = with_readers(base)
    layers, strengths = direction.meta.layers, [0.3, 1.2][: len(direction.meta.layers)]
    step = a_step("oblique", direction, source="each", layers=layers[:2], strengths={"attn_out": strengths[: len(layers[:2])]})
    write(base, [step], [direction], tmp_path / "out")
    before, after = writers(base), writers(tmp_path / "out")
    for name, (writer, w) in before.items():
        if writer.layer is None or writer.layer not in layers[:2]:
            np.testing.assert_array_equal(after[name][1], w)
            continue
        s = strengths[layers.index(writer.layer)] if writer.role == "attn_out" else 1.0
        row = direction.row(writer.layer)
        v, r = unit(direction.vectors[row]), unit(direction.readers[row])  # type: ignore[index]
        expected = w - s * v[:, None] * (r @ w)[..., None, :]
        np.testing.assert_allclose(after[name][1], expected, atol=1e-6 * np.abs(w).max() + 1e-7)


def test_with_readers_equal_to_the_direction_it_is_a_removal(models: Pico, tmp_path: Path) -> None:
    base = models("llama")
    direction = with_readers(base, same=True)
    for kind in ("oblique", "remove"):
        write(base, [a_step(kind, direction, source="each", amount=0.7)], [direction], tmp_path / kind)
    for name, (_, w) in writers(tmp_path / "oblique").items():
        np.testing.assert_allclose(w, writers(tmp_path / "remove")[name][1], atol=1e-7)


def test_hooks_do_what_weights_do(models: Pico, tmp_path: Path) -> None:
    base = models("llama")
    direction = with_readers(base)
    step = a_step("oblique", direction, source="each", amount=0.8)
    write(base, [step], [direction], tmp_path / "out")
    running, edited = (load(open_checkpoint(str(p)), pico.CPU) for p in (base, tmp_path / "out"))
    ids = torch.arange(20, 36)[None]
    hooks = compile_hooks(running, EditSpec(steps=[step]), {direction.digest(): direction})
    with torch.no_grad():
        plain = running.stack(input_ids=ids).last_hidden_state
        with steering(running, hooks):
            hooked = running.stack(input_ids=ids).last_hidden_state
        written = edited.stack(input_ids=ids).last_hidden_state
    assert float((hooked - written).abs().max()) < 1e-4 < float((hooked - plain).abs().max())


def test_what_it_can_not_do_is_refused(models: Pico) -> None:
    base = models("llama")
    direction = with_readers(base)
    known = {direction.digest(): direction}

    def compile_(family: str, found: Direction, **fields: object) -> None:
        step = a_step("oblique", found, **fields)
        compile_edit(open_checkpoint(str(models(family))), EditSpec(steps=[step]), known | {found.digest(): found})

    with pytest.raises(EditError, match="no readers"):
        compile_("llama", pico.a_direction(base))
    with pytest.raises(RecipeError, match="from 0 to 2"):
        compile_("llama", direction, amount=2.5)
    with pytest.raises(RecipeError, match="one direction"):
        compile_("llama", direction, norms="input")
    with pytest.raises(EditError, match="norm after every writer"):
        compile_("gemma2", with_readers(models("gemma2")))
