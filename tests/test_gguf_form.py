"""A GGUF edited as a GGUF: touched tensors keep their type, all others their bytes, and the record says what is left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import llamacpp
import pico
from weightsmith.checkpoint import open_checkpoint, runnable
from weightsmith.direction import Direction
from weightsmith.errors import EditError, OutputExists
from weightsmith.features.select import compile_hooks
from weightsmith.formats import gguf
from weightsmith.formats.gguf_export import export_gguf
from weightsmith.jobs.edit import resolve_edit
from weightsmith.jobs.export import export
from weightsmith.runtime import load, steering

pytest.importorskip("xllamacpp")
NOTHING = dict.fromkeys(("remove", "amplify", "add", "layers", "source", "roles", "constant", "directions"))


@pytest.fixture(scope="module", params=[("llama", "Q8_0"), ("llama", "Q4_K_M"), ("qwen3", "Q4_0"), ("gemma3", "Q8_0")],
                ids=lambda p: "-".join(p))  # fmt: skip
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model, wide enough for K quants, as a GGUF file."""
    family, kind = request.param
    root = tmp_path_factory.mktemp("gguf")
    plain = {"attention_bias": False} if family == "gemma3" else {}
    folder = pico.build(family, root / "folder", torch.bfloat16, hidden_size=256, intermediate_size=256, **plain)
    export_gguf(open_checkpoint(str(folder)), root / "m.gguf", kind)
    return root / "m.gguf"


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and raw bytes of every tensor of a GGUF file."""
    data = path.read_bytes()
    return {t.name: (t.type, data[t.start : t.start + t.nbytes]) for t in gguf.read_header(path).tensors}


def a_direction(path: Path) -> Direction:
    return pico.a_direction(runnable(open_checkpoint(str(path))))


def test_only_the_writers_change_and_keep_their_types(source: Path, tmp_path: Path) -> None:
    record = export(str(source), a_direction(source), tmp_path / "o.gguf", form="gguf", remove=1.0, options=pico.CPU)
    before, after = tensors(source), tensors(tmp_path / "o.gguf")
    assert list(before) == list(after)
    assert {n: t for n, (t, _) in before.items()} == {n: t for n, (t, _) in after.items()}
    changed = [n for n in before if before[n] != after[n]]
    assert sorted(changed) == sorted(f"blk.{i}.{n}.weight" for i in range(pico.LAYERS) for n in ("attn_output", "ffn_down"))
    worst = max(t.left for t in record.tensors)  # type: ignore[union-attr, type-var]
    kinds = {before[n][0] for n in changed}
    assert 0 < worst < (0.02 if kinds == {"Q8_0"} else 0.3)
    assert bool(record.notes) == (worst > 0.01)
    metadata = gguf.read_header(tmp_path / "o.gguf").metadata
    assert metadata["general.base_model.count"] == 1
    assert json.loads(metadata["weightsmith.derivation"])["edit"] == record.edit.model_dump(by_alias=True)
    said = json.loads((tmp_path / "o.gguf.weightsmith.json").read_text())
    assert said["tensors"] == [t.model_dump() for t in record.tensors]
    assert (tmp_path / "o.gguf.Modelfile").read_text().startswith("FROM ./o.gguf")


def test_it_does_in_llama_cpp_what_the_hooks_do(source: Path, tmp_path: Path) -> None:
    direction = a_direction(source)
    checkpoint = runnable(open_checkpoint(str(source)))
    export(str(source), direction, tmp_path / "o.gguf", form="gguf", remove=1.0, options=pico.CPU)
    rows = [row[:24] for row in pico.ids()]
    model = load(checkpoint, pico.CPU)
    spec, found = resolve_edit(checkpoint, direction, **{**NOTHING, "remove": 1.0})

    def plain() -> list[np.ndarray]:
        with torch.no_grad():
            return [model.model(torch.tensor([row])).logits[0].float().numpy() for row in rows]

    base = plain()
    with steering(model, compile_hooks(model, spec, found)):
        wanted = plain()
    got = llamacpp.logits(tmp_path / "o.gguf", rows)
    alone = llamacpp.logits(source, rows)

    def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return float(np.sqrt(np.mean([((x - y) ** 2).mean() / y.var() for x, y in zip(a, b, strict=True)])))

    effect, rounding = apart(wanted, base), apart(alone, base)
    # the norm behind a Gemma writer gives most of a removed component's length back to the others
    assert effect > (0.003 if gguf.read_header(source).architecture == "gemma3" else 0.1)
    coarse = 0.9 if "Q4_0" in {t for t, _ in tensors(source).values()} else 0.35  # 4 bits round the edited tensors anew
    assert apart(got, wanted) < coarse * effect + 2 * rounding, (apart(got, wanted), effect, rounding)


def test_nothing_is_overwritten_and_what_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "o.gguf.Modelfile").write_text("mine")
    with pytest.raises(OutputExists):
        export(str(source), a_direction(source), tmp_path / "o.gguf", form="gguf", remove=1.0, options=pico.CPU)
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf.Modelfile"]
    if gguf.read_header(source).architecture == "qwen3":
        with pytest.raises(EditError, match=r"llama\.cpp loads no output bias"):
            export(str(source), a_direction(source), tmp_path / "p.gguf", form="gguf", add=0.3, options=pico.CPU)
        assert len(list(tmp_path.iterdir())) == 1
