"""What a class always has: models as the library saves them lack nothing, and nothing of it can be left out unseen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from weightsmith.trust.scan import Scan
from weightsmith.trust.scanners import weight_kinds

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4, "pad_token_id": 0, "eos_token_id": 1,
      "decoder_start_token_id": 0}  # fmt: skip
MODELS = {
    "MistralForCausalLM": ("mistral", SMALL),
    "GPT2LMHeadModel": ("gpt2", {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4}),
    "BloomForCausalLM": ("bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "OPTForCausalLM": ("opt", {**SMALL, **OPT}), "BertForMaskedLM": ("bert", SMALL), "T5ForConditionalGeneration": ("t5", T5),
    "StableLmForCausalLM": ("stablelm", {**SMALL, "use_qkv_bias": True}), "MambaForCausalLM": ("mamba", {**SMALL, "state_size": 4}),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a small model of one class, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            kind, told = MODELS[name]
            made[name] = tmp_path_factory.mktemp(kind)
            getattr(transformers, name)(transformers.AutoConfig.for_model(kind, **told)).save_pretrained(made[name])
        return made[name]

    return get


def _gone(folder: Path, out: Path, *, pattern: str) -> int:
    """A copy without the tensors that match; how many those were."""
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not re.search(pattern, n)}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return len(tensors) - len(kept)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_a_class_can_be_left_out(saved: Any, name: str) -> None:
    """Each kind that the table knows of it, everywhere and in the first layer alone."""
    names = list(load_file(saved(name) / "model.safetensors"))
    known = weight_kinds.class_of([name])
    assert known is not None
    assert list(weight_kinds.missing(known, names)) == []
    wanted = [f"{stack}.*.{leaf}" for stack, leaves in known.always.items() if stack for leaf in leaves]
    assert len(wanted) >= 6
    for kind in wanted:
        within = re.compile(rf"(?:^|\.){re.escape(kind).replace(re.escape('*'), '[0-9]+')}$")
        first = re.compile(within.pattern.replace("[0-9]+", "0", 1))
        assert any(map(within.search, names)), kind
        assert kind in [k for k, where in weight_kinds.missing(known, [n for n in names if not within.search(n)]) if not where]
        assert (kind, "0") in weight_kinds.missing(known, [n for n in names if not first.search(n)])


@pytest.mark.parametrize(("name", "pattern", "place"), [
    ("MistralForCausalLM", r"q_proj", "layers.*.self_attn.q_proj.weight"),
    ("GPT2LMHeadModel", r"h\.3\.ln_2\.weight", "h.*.ln_2.weight"),
    ("T5ForConditionalGeneration", r"EncDecAttention\.v", "decoder.block.*.layer.*.EncDecAttention.v.weight"),
    ("BertForMaskedLM", r"attention\.self\.query", "encoder.layer.*.attention.self.query.weight"),
])  # fmt: skip
def test_a_folder_with_holes_is_broken(saved: Any, tmp_path: Path, name: str, pattern: str, place: str) -> None:
    assert [f for f in Scan(saved(name)).run() if f.severity != "note"] == []
    assert _gone(saved(name), tmp_path / "m", pattern=pattern)
    found = [f for f in Scan(tmp_path / "m").run() if f.rule == "weights-missing"]
    assert any(place in f.message for f in found)
    assert {f.severity for f in found} == {"broken"}


@pytest.mark.parametrize("name", ["MistralForCausalLM", "BertForMaskedLM"])
def test_other_names_are_no_holes(saved: Any, name: str) -> None:
    """A checkpoint of another library's names, one of a part, and names from TensorFlow."""
    known = weight_kinds.class_of([name])
    assert known is not None
    names = list(load_file(saved(name) / "model.safetensors"))
    fused = [re.sub(r"(self_attn|self)\.(k_proj|key)\.", r"\1.kv.", n) for n in names if not re.search(r"v_proj|value", n)]
    old = [n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for n in names]
    for other in (fused, old, names[:1], [], [n.partition(".")[2] for n in names if n.startswith(known.prefix)]):
        assert list(weight_kinds.missing(known, other)) == []


def test_the_table_is_of_the_library_that_the_tests_have() -> None:
    """Every class of it exists, and its lists are of one another."""
    raw = json.loads(Path(weight_kinds.__file__).with_suffix(".json").read_text("utf-8"))
    assert len(raw["types"]) > 500
    for one in raw["types"].values():
        for stack, leaves in one["always"].items():
            assert set(leaves).isdisjoint(one["may"].get(stack, ()))
            assert set(leaves).isdisjoint(one["uneven"].get(stack, ()))
        assert all(hasattr(transformers, name) for name in one["classes"])
    assert weight_kinds.class_of(["NobodysForCausalLM", "MistralForCausalLM"]) is None
    assert weight_kinds.class_of([]) is None
