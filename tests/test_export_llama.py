"""Our adapters and control vectors under llama.cpp: the logits are those of the hooks, and of the edited weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
import llamacpp  # noqa: E402
import pico  # noqa: E402
from weightsmith.checkpoint import open_checkpoint  # noqa: E402
from weightsmith.errors import EditError, UnsupportedModel  # noqa: E402
from weightsmith.formats import gguf, gguf_export  # noqa: E402
from weightsmith.jobs.export import export  # noqa: E402
from weightsmith.plan import compile_edit  # noqa: E402
from weightsmith.records import EditSpec, EditStep  # noqa: E402
from weightsmith.runtime import load, steering  # noqa: E402

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
HEADS = {"head_dim": 16}
GEMMA = {**HEADS, "attention_bias": False, "query_pre_attn_scalar": 16}
GEMMA2 = {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA3 = {**GEMMA, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
#: name -> (family, overrides, agreement: ggml looks Gemma's GELU up in a table of fp16)
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "llama": ("llama", {}, 3e-5), "llama, tied": ("llama", {"tie_word_embeddings": True}, 3e-5),
    "mistral": ("mistral", {}, 3e-5), "qwen2": ("qwen2", {}, 3e-5), "qwen3": ("qwen3", HEADS, 3e-5),
    "gemma2": ("gemma2", GEMMA2, 5e-3), "gemma3": ("gemma3", GEMMA3, 5e-3),
}  # fmt: skip
ROWS = [list(map(int, np.random.default_rng(n).integers(7, 80, n))) for n in (1, 9, 40)]
Logits = list[np.ndarray[Any, Any]]


class Trial:
    """A model, its F32 GGUF file, and two directions."""

    def __init__(self, folder: Path, case: str) -> None:
        family, changes, self.close = CASES[case]
        self.model = pico.build(family, folder / "model", **{**SMALL, **changes})
        self.checkpoint = open_checkpoint(str(self.model))
        self.gguf = folder / "model.gguf"
        gguf_export.export_gguf(self.checkpoint, self.gguf, "F32")
        self.directions = [pico.a_direction(self.checkpoint, seed) for seed in (0, 4)]
        self.known = {d.digest(): d for d in self.directions}
        self.files = [folder / f"{n}.safetensors" for n in range(2)]
        for direction, file in zip(self.directions, self.files, strict=True):
            direction.save(file)
        self.plain = llamacpp.logits(self.gguf, ROWS)

    def spec(self, *steps: dict[str, Any]) -> EditSpec:
        usual = {"direction": self.directions[0].digest(), "source": 1, "layers": [0, 1, 2], "amount": 1.0}
        return EditSpec(steps=[EditStep(**{**usual, **s}) for s in steps])

    def export(self, spec: EditSpec, out: Path, form: str, **options: Any) -> Path:
        export(self.checkpoint, spec, out, form=form, directions=self.files, options=pico.CPU, **options)
        return out

    def hooked(self, spec: EditSpec) -> Logits:
        model = load(self.checkpoint, pico.CPU)
        hooks = compile_edit(self.checkpoint, spec, self.known, hooks_only=True).hooks
        with torch.no_grad(), steering(model, hooks):
            return [model.model(torch.tensor([row])).logits[0].numpy() for row in ROWS]

    def agrees(self, got: Logits, reference: Logits) -> None:
        assert furthest(reference, self.plain) > 0.1  # it does something
        assert furthest(reference, got) < self.close


def furthest(a: Logits, b: Logits) -> float:
    """Largest difference of two lists of logits, as a share of the spread of ``a``."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)) / float(np.std(np.concatenate(a)))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    built: dict[str, Trial] = {}

    def get(case: str) -> Trial:
        if case not in built:
            built[case] = Trial(tmp_path_factory.mktemp("llama"), case)
        return built[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_the_edit(trial: Callable[[str], Trial], tmp_path: Path, case: str) -> None:
    """Ranks 1, 2 and 3 in one file, whose alpha is one for all."""
    one = trial(case)
    other = one.directions[1].digest()
    spec = one.spec({"kind": "remove", "amount": 0.8}, {"kind": "amplify", "amount": 2.0, "direction": other, "layers": [1]},
                    {"kind": "projected", "layers": [1], "roles": ["mlp_down"]})  # fmt: skip
    path = one.export(spec, tmp_path / "lora.gguf", "gguf-lora")
    assert len({t.shape[0] for t in gguf.read_header(path).tensors if t.name.endswith("lora_a")}) == 3
    one.agrees(llamacpp.logits(one.gguf, ROWS, lora=path), one.hooked(spec))


@pytest.mark.parametrize("case", ["llama", "mistral", "gemma2", "gemma3"])
def test_a_control_vector_is_the_addition(trial: Callable[[str], Trial], tmp_path: Path, case: str) -> None:
    """Behind the blocks, in post-norm families too; strength 1 is the edit, and half of it half."""
    one = trial(case)
    spec = one.spec({"kind": "add", "amount": 1.5, "layers": [1, 2], "source": "each"})
    path = one.export(spec, tmp_path / "v.gguf", "control-vector")
    one.agrees(llamacpp.logits(one.gguf, ROWS, control_vector=path), one.hooked(spec))
    half = one.spec({"kind": "add", "amount": 0.75, "layers": [1, 2], "source": "each"})
    assert (
        furthest(one.hooked(half), llamacpp.logits(one.gguf, ROWS, control_vector=path, control_scale=0.5)) < one.close
    )


def test_where_weights_add_earlier_the_vector_is_another(trial: Callable[[str], Trial], tmp_path: Path) -> None:
    one = trial("qwen3")
    spec = one.spec({"kind": "add", "amount": 1.5, "layers": [1, 2]})
    got = llamacpp.logits(one.gguf, ROWS, control_vector=one.export(spec, tmp_path / "v.gguf", "control-vector"))
    assert furthest(one.hooked(spec), got) > 0.01
    behind = one.spec({"kind": "add", "amount": 1.5, "layers": [1, 2], "constant": "fitted"})
    one.agrees(got, one.hooked(behind))  # the hook of a fitted constant stands behind the MLP


def test_embeddings_in_an_adapter(trial: Callable[[str], Trial], tmp_path: Path) -> None:
    """Looked up by token where they are not tied; where they are llama.cpp can't use the pair, which is refused."""
    one, tied = trial("llama"), trial("llama, tied")
    roles = ["attn_out", "mlp_down", "embed"]
    path = one.export(one.spec({"kind": "remove", "roles": roles}), tmp_path / "e.gguf", "gguf-lora")
    one.agrees(llamacpp.logits(one.gguf, ROWS, lora=path), one.hooked(one.spec({"kind": "remove", "roles": roles})))
    with pytest.raises(EditError, match="embeddings are tied"):
        tied.export(tied.spec({"kind": "remove", "roles": roles}), tmp_path / "t.gguf", "gguf-lora")
    with pytest.raises(llamacpp.LlamaFailed):  # why: the same pair on the tied model
        llamacpp.logits(tied.gguf, ROWS, lora=path)


def test_an_edited_model_in_one_file(trial: Callable[[str], Trial], tmp_path: Path) -> None:
    one = trial("llama")
    spec = one.spec({"kind": "remove"}, {"kind": "add", "amount": 0.5, "layers": [1]})
    path = one.export(spec, tmp_path / "m.gguf", "gguf", file_type="F32")
    one.agrees(llamacpp.logits(path, ROWS), one.hooked(spec))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "m.gguf.Modelfile", "m.gguf.weightsmith.json"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gguf-lora", "gguf"])
def test_a_fitted_constant_is_the_same_in_every_file(trial: Callable[[str], Trial], tmp_path: Path, form: str) -> None:
    """One rank-1 update in weights, adapter and GGUF: the fit is made anew each time and comes out the same."""
    one = trial("mistral")
    spec = one.spec({"kind": "add", "amount": 1.5, "layers": [1], "constant": "fitted"})
    export(one.checkpoint, spec, tmp_path / "w", form="weights", directions=one.files, options=pico.CPU)
    with torch.no_grad():
        model = load(open_checkpoint(str(tmp_path / "w")), pico.CPU).model
        reference = [model(torch.tensor([row])).logits[0].numpy() for row in ROWS]
    path = one.export(spec, tmp_path / "m.gguf", form, file_type="F32")
    got = llamacpp.logits(one.gguf, ROWS, lora=path) if form == "gguf-lora" else llamacpp.logits(path, ROWS)
    assert furthest(reference, one.plain) > 0.05
    assert furthest(reference, got) < one.close


def test_what_llama_cpp_cant_hold_is_refused(trial: Callable[[str], Trial], tmp_path: Path) -> None:
    one = trial("llama")
    with pytest.raises(EditError, match="no bias"):
        one.export(one.spec({"kind": "add", "amount": 0.5}), tmp_path / "o", "gguf-lora")
    with pytest.raises(EditError, match="behind block 0"):
        one.export(one.spec({"kind": "add", "amount": 0.5}), tmp_path / "o", "control-vector")
    biased = pico.build("llama_bias", tmp_path / "biased")
    with pytest.raises(EditError, match="no bias"):  # the bias that is there would have to move
        export(biased, pico.a_direction(biased), tmp_path / "o", form="gguf-lora", remove=1.0, options=pico.CPU)
    phi = pico.build("phi3", tmp_path / "phi")
    for form in ("gguf-lora", "gguf"):
        with pytest.raises(UnsupportedModel):
            export(phi, pico.a_direction(phi), tmp_path / "o", form=form, remove=1.0, options=pico.CPU)
    assert not (tmp_path / "o").exists()


def test_the_files_say_where_they_come_from(trial: Callable[[str], Trial], tmp_path: Path) -> None:
    import json

    one = trial("llama")
    lora = one.export(one.spec({"kind": "remove"}), tmp_path / "l.gguf", "gguf-lora")
    vector = one.export(one.spec({"kind": "add", "amount": 0.5, "layers": [2]}), tmp_path / "v.gguf", "control-vector")
    found = gguf.read_header(lora).metadata
    assert (found["general.type"], found["adapter.type"], found["adapter.lora.alpha"]) == ("adapter", "lora", 1.0)
    for path in (lora, vector):
        record = json.loads(gguf.read_header(path).metadata["weightsmith.derivation"])
        assert record["base"]["digest"] == one.checkpoint.digest()
        assert set(record["directions"]) == {one.directions[0].digest()}
    found = gguf.read_header(vector).metadata
    assert (found["controlvector.model_hint"], found["controlvector.layer_count"]) == ("llama", 1)
    assert [t.name for t in gguf.read_header(vector).tensors] == ["direction.2"]
