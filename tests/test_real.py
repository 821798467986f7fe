"""The whole chain on the real SmolLM2: found, enhanced, removed, measured; weights and hooks agree. Slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weightsmith import jobs
from weightsmith.checkpoint import open_checkpoint
from weightsmith.features.select import compile_hooks
from weightsmith.jobs.measure import Session
from weightsmith.measured import Difference, MeasureRecord

pytestmark = [pytest.mark.slow, pytest.mark.real]
MODEL = "demo:smollm2"


def figure(record: MeasureRecord, name: str, condition: str) -> Difference:
    return next(d for d in record.differences if d.name == name and condition in d.condition)


def test_melancholy_is_found_enhanced_and_removed(tmp_path: Path) -> None:
    direction = jobs.find(MODEL, "melancholy", tmp_path / "d.safetensors")
    assert max(q.auroc_low for q in direction.meta.quality) > 0.7
    forms = {"enhanced": jobs.edit(MODEL, direction, tmp_path / "enhanced", add="auto"),
             "removed": jobs.edit(MODEL, direction, tmp_path / "removed", remove="auto")}  # fmt: skip
    assert max(t.left or 0.0 for t in forms["removed"].tensors) < 0.01
    session = Session(MODEL, "melancholy", direction=direction, n=40, tokens=40)
    for name, derivation in forms.items():
        weights = session.compare(tmp_path / name)
        hooks = compile_hooks(session.base, derivation.edit, {direction.digest(): direction})
        running = session.compare_hooks(hooks)
        condition = "neutral" if name == "enhanced" else "persona"
        change = figure(weights, "sentiment", condition)
        assert (change.high < 0) if name == "enhanced" else (change.low > 0), change
        # the same edit in another form: only the rounding of the written tensors to bf16 stands between them
        for a, b in zip(weights.damage[:2], running.damage[:2], strict=True):
            assert abs(a.value - b.value) < 0.05 * max(a.value, b.value), (a.name, a.value, b.value)
        assert np.sign(figure(running, "sentiment", condition).value) == np.sign(change.value)
        print(name, "weights", change.value, "hooks", figure(running, "sentiment", condition).value)


def test_a_conversion_and_its_gguf_are_one_model(tmp_path: Path) -> None:
    jobs.convert(MODEL, tmp_path / "folder")
    from weightsmith.checkpoint import runnable

    assert runnable(open_checkpoint(MODEL)).digest() == open_checkpoint(str(tmp_path / "folder")).digest()
