"""The folder as a whole, settings and references: honest models of every family are clean, and no JSON breaks a scanner."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pico
from bounded import ends_within
from corpus.layout import LAYERS, config, folder, save, sharded, tensors, tokenizer, write_gguf
from corpus.tokens import IDS
from weightsmith.found import Finding
from weightsmith.trust.scan import Scan
from weightsmith.trust.scanners import strict
from weightsmith.trust.scanners.facts import places
from weightsmith.trust.scanners.layout import leaves

OURS = {"layout", "tokenizer", "settings", "reference"}


def scan(path: Path, reference: Path | None = None) -> list[Finding]:
    """All findings, in this process."""
    return list(Scan(path, reference=reference).run())


def above(found: list[Finding]) -> list[tuple[str, str, str]]:
    """What is more than a note."""
    return [(f.rule, f.file, f.message) for f in found if f.severity != "note"]


def rules(found: list[Finding]) -> set[str]:
    return {f.rule for f in found}


# -- honest models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(pico.CONFIGS))
def test_every_family_is_clean(family: str, tmp_path: Path) -> None:
    pico.build(family, tmp_path / "model")
    assert above(scan(tmp_path / "model")) == []


def test_shards_and_half_precision_are_clean(tmp_path: Path) -> None:
    import torch

    pico.build("llama", tmp_path / "model", torch.bfloat16, shard="20KB")
    found = scan(tmp_path / "model")
    assert above(found) == []
    assert "index-total" not in rules(found)


_SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"), 5),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    "decoder_attention_heads": 4,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    "num_key_value_heads": 2, "vocab_size": 99, "d_kv": 8, "rotary_dim": 4, "projection_dim": 16, "image_size": 32, "patch_size": 8,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "head_dim": 8, "num_layers": 5,
}  # fmt: skip
_OTHERS = {
    "bert": "MaskedLM", "roberta": "MaskedLM", "modernbert": "MaskedLM", "deberta-v2": "MaskedLM", "albert": "MaskedLM",
    "t5": "Seq2SeqLM", "bart": "Seq2SeqLM", "marian": "Seq2SeqLM", "m2m_100": "Seq2SeqLM", "opt": "CausalLM", "bloom": "CausalLM",
    "falcon": "CausalLM", "gptj": "CausalLM", "mpt": "CausalLM", "rwkv": "CausalLM", "stablelm": "CausalLM", "phi": "CausalLM",
    "starcoder2": "CausalLM", "gpt_bigcode": "CausalLM", "xglm": "CausalLM", "clip": "ZeroShotImageClassification",
    "vit": "ImageClassification", "wav2vec2": "CTC", "whisper": "SpeechSeq2Seq", "paligemma": "ImageTextToText",
    "qwen2_vl": "ImageTextToText", "qwen3": "SequenceClassification", "llama": "TokenClassification",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(_OTHERS))
def test_models_of_families_without_data_are_clean(kind: str, tmp_path: Path) -> None:
    import transformers

    def shrink(settings: Any) -> None:
        for key, value in _SMALL.items():
            if type(getattr(settings, key, None)) is int and not isinstance(getattr(type(settings), key, None), property):
                setattr(settings, key, value)
        for inner in list(vars(settings).values()):
            if isinstance(inner, transformers.PretrainedConfig):
                shrink(inner)

    with pico.quiet():
        chosen = transformers.AutoConfig.for_model(kind)
        shrink(chosen)
        if getattr(chosen, "layer_types", None):
            chosen.layer_types = (list(chosen.layer_types) * 5)[: chosen.num_hidden_layers]
        model = getattr(transformers, "AutoModelFor" + _OTHERS[kind]).from_config(chosen)
        pico.randomise(model, 0)
        model.save_pretrained(tmp_path)
    assert [f for f in above(scan(tmp_path)) if f[0] not in ("weights-absurd", "layer-apart")] == []


# -- JSON ----------------------------------------------------------------------------------------------------


@given(st.text(st.characters(), max_size=12), st.booleans())
def test_half_letters_are_found_as_python_finds_them(text: str, escaped: bool) -> None:
    raw = json.dumps(text).encode()
    raw = raw.replace(b"\\u", b"\\\\u") if escaped else raw
    halves = any(0xD800 <= ord(c) <= 0xDFFF for c in json.loads(raw))
    assert strict._half_pair(raw) == halves


@given(st.lists(st.sampled_from(["\\ud83d", "\\ude00", "\\\\", "x", "\\uD800", "\\u0041"]), max_size=8))
def test_half_letters_next_to_each_other(parts: list[str]) -> None:
    raw = ('"' + "".join(parts) + '"').encode()
    assert strict._half_pair(raw) == any(0xD800 <= ord(c) <= 0xDFFF for c in json.loads(raw))


@pytest.mark.parametrize("path", ["../x", "a/../../b", "/etc/x", "C:\\x", "..\\x", "https://h/x", "~/x", "\\\\host\\x", "a\0b"])
def test_paths_that_leave(path: str) -> None:
    assert leaves(path)


@pytest.mark.parametrize("path", ["model-00001-of-00002.safetensors", "sub/model.safetensors", "..model", "a..b", "x..safetensors"])
def test_paths_that_stay(path: str) -> None:
    assert not leaves(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=8)


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value that can be replaced: container and key."""
    found, pending = [], [value]
    while pending:
        here = pending.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else []
        found += [(here, k) for k in keys]
        pending += [here[k] for k in keys]
    return found


_PARTS: dict[str, Callable[[], Any]] = {
    "config.json": lambda: config(rope_scaling={"rope_type": "yarn", "factor": 4.0}, quantization_config=None, text_config={
        "model_type": "llama", "vocab_size": 5}), "tokenizer.json": tokenizer,
    "generation_config.json": lambda: {"eos_token_id": [2, 3], "bad_words_ids": [[4]], "temperature": 0.5, "suppress_tokens": [5],
                                       "sequence_bias": [[[5], 1.0]], "forced_decoder_ids": [[1, 4]], "stop_strings": ["a"]},
    "tokenizer_config.json": lambda: {"eos_token": {"content": "</s>"}, "added_tokens_decoder": {"0": {"content": "<pad>"}},
                                      "additional_special_tokens": ["<x>"], "extra_special_tokens": {"a": "b"}},
    "adapter_config.json": lambda: {"peft_type": "LORA", "base_model_name_or_path": "x", "r": 2},
    "special_tokens_map.json": lambda: {"eos_token": "</s>"}, "added_tokens.json": lambda: {"<s>": 1},
    "vocab.json": lambda: dict(IDS), "params.json": lambda: {"dim": 16, "n_layers": 5},
    "modules.json": lambda: [{"path": "x"}], "model.safetensors.index.json": lambda: {},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    index = sharded(path)
    _PARTS["model.safetensors.index.json"] = lambda: copy.deepcopy(index)
    return path


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_json_breaks_a_scanner(data: st.DataObject, whole: Path) -> None:
    changed = data.draw(st.lists(st.sampled_from(sorted(_PARTS)), min_size=1, max_size=3, unique=True))
    for name, make in _PARTS.items():
        value = make()
        for _ in range(data.draw(st.integers(1, 4)) if name in changed else 0):
            spots = _spots(value)
            if spots:
                container, key = data.draw(st.sampled_from(spots))
                container[key] = data.draw(_JSON)
        (whole / name).write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")
    found = scan(whole, reference=whole)
    failed = [f.message for f in found if f.rule == "scanner-failed"]
    assert not [m for m in failed if m.split(":")[0] in OURS], failed


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_bytes_break_a_scanner(data: st.DataObject, whole: Path) -> None:
    name = data.draw(st.sampled_from(sorted(_PARTS)))
    raw = bytearray(json.dumps(_PARTS[name]()).encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    (whole / name).write_bytes(bytes(raw) or b"{")
    failed = [f.message for f in scan(whole) if f.rule == "scanner-failed"]
    (whole / name).write_text(json.dumps(_PARTS[name]()))
    assert not [m for m in failed if m.split(":")[0] in OURS], failed


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_embeddings_that_mlx_packed(bits: int, tmp_path: Path) -> None:
    """MLX quantises the embeddings too: words of 32 bits, with scales and biases by groups."""
    values = tensors()
    name = next(n for n in values if "embed_tokens" in n)
    rows, width = values[name].shape
    values[name] = np.arange(rows * (width * bits // 32), dtype=np.uint32).reshape(rows, -1)
    for beside in ("scales", "biases"):
        values[name.replace("weight", beside)] = np.linspace(0.1, 1, rows, dtype=np.float16).reshape(rows, 1)
    said = {"group_size": 32, "bits": bits}
    folder(tmp_path, weights=values, config=config(quantization=said, quantization_config=said))
    assert "weights-misshapen" not in {f.rule for f in scan(tmp_path) if f.severity != "note"}
    folder(tmp_path, weights=values, config=config(quantization={**said, "bits": bits + 8}))
    assert "weights-misshapen" in {f.rule for f in scan(tmp_path)}, "another number of bits does not fit"


@pytest.mark.parametrize("odd", [[], {}, [1, [2]], {"a": []}, None, "2", 2.5])
def test_an_end_token_whose_id_is_no_number(odd: Any, tmp_path: Path) -> None:
    """Found by the test of any JSON: what a file calls an id need not be hashable."""
    data = tokenizer()
    end = next(t for t in data["added_tokens"] if t["content"] == "</s>")
    end["id"] = odd
    folder(tmp_path, tokenizer=data)
    found = scan(tmp_path)
    assert not [f.message for f in found if f.rule == "scanner-failed"]
    assert {f.file for f in found if f.severity != "note"} & {"tokenizer.json", "generation_config.json"}


def test_a_large_vocabulary_takes_little_time(tmp_path: Path) -> None:
    data = tokenizer()
    words = [f"w{i}" for i in range(150_000)]
    data["model"]["vocab"] = {**IDS, **{w: len(IDS) + i for i, w in enumerate(words)}}
    data["model"]["merges"] = [["n", "o"], ["no", "t"]] * 100_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(data, indent=2))
    with ends_within(25):
        found = scan(tmp_path)
    assert above(found) == []


# -- what a loader takes -------------------------------------------------------------------------------------


def test_one_file_goes_before_an_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    save(tmp_path / "model.safetensors", tensors(seed=4))
    run = Scan(tmp_path)
    found = list(run.run())
    loaded = places(run.folder)[0].loaded
    assert loaded is not None
    assert loaded.name == "model.safetensors"
    assert "weights-disagree" in rules(found)


def test_every_lost_tensor_is_missed(tmp_path: Path) -> None:
    """Whatever single weight is taken out, somebody says so."""
    for name in tensors():
        values = tensors()
        del values[name]
        path = tmp_path / name
        path.mkdir()
        folder(path, weights=values)
        assert above(scan(path)), name


def test_every_misshapen_tensor_is_seen(tmp_path: Path) -> None:
    for name, value in tensors().items():
        path = tmp_path / name
        path.mkdir()
        folder(path, weights=tensors() | {name: np.concatenate([value, value[:1]])})
        assert rules(scan(path)) & {"weights-misshapen", "weights-missing"}, name


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_neox", "gemma2", "olmo2", "phi3"])
def test_a_lost_writer_is_missed_in_every_family(family: str, tmp_path: Path) -> None:
    path = pico.build(family, tmp_path / "model")
    name = next(n for n in pico.tensors(path) if ".1." in n and n.endswith(("o_proj.weight", "dense.weight")))
    pico.rename(path, {name: None})
    assert "weights-missing" in rules(scan(path))


# -- references ----------------------------------------------------------------------------------------------


def _pair(tmp_path: Path, **parts: Any) -> list[Finding]:
    """What a scan says of a changed copy against the original."""
    for name, changes in (("reference", {}), ("model", parts)):
        (tmp_path / name).mkdir()
        folder(tmp_path / name, **changes)
    return [f for f in scan(tmp_path / "model", tmp_path / "reference") if f.rule.startswith("reference-")]


def test_a_copy_has_no_differences(tmp_path: Path) -> None:
    assert _pair(tmp_path) == []


def test_exchanged_words_are_shown(tmp_path: Path) -> None:
    data = tokenizer()
    vocab = data["model"]["vocab"]
    vocab["Ġsafe"], vocab["Ġunsafe"] = vocab["Ġunsafe"], vocab["Ġsafe"]
    found = _pair(tmp_path, tokenizer=data)
    assert [f.rule for f in found] == ["reference-tokens"]
    assert "' safe' and ' unsafe' are exchanged" in found[0].evidence or "' unsafe' and ' safe' are exchanged" in found[0].evidence
    assert found[0].severity == "suspicious"


def test_how_added_tokens_are_found_is_compared(tmp_path: Path) -> None:
    data = tokenizer()
    data["added_tokens"][1]["single_word"] = True
    found = _pair(tmp_path, tokenizer=data)
    assert [(f.rule, f.message) for f in found] == [
        ("reference-tokenizer-rules", "'<s>' is only found as a word of its own in one and not in the other")]  # fmt: skip


def test_a_token_that_is_no_longer_added_is_a_difference(tmp_path: Path) -> None:
    data = tokenizer()
    del data["added_tokens"][2]
    found = _pair(tmp_path, tokenizer=data)
    assert ("reference-tokenizer-rules", "'</s>' is an added token in one and not in the other") in [
        (f.rule, f.message) for f in found]  # fmt: skip


def test_the_order_of_merges_counts(tmp_path: Path) -> None:
    data = tokenizer()
    merges = data["model"]["merges"]
    merges[0], merges[5] = merges[5], merges[0]
    assert rules(_pair(tmp_path, tokenizer=data)) == {"reference-tokenizer-rules"}


def test_two_ways_to_write_merges_are_one(tmp_path: Path) -> None:
    data = tokenizer()
    data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    assert _pair(tmp_path, tokenizer=data) == []


def test_settings_that_differ_are_named_by_key(tmp_path: Path) -> None:
    found = _pair(tmp_path, config=config(rope_theta=20000.0, transformers_version="9"))
    assert {(f.place, f.severity) for f in found} == {("$.rope_theta", "suspicious"), ("$.transformers_version", "note")}


def test_changed_values_are_counted(tmp_path: Path) -> None:
    values = tensors()
    for i in range(LAYERS):
        values[f"model.layers.{i}.mlp.down_proj.weight"] *= 1.01
    found = _pair(tmp_path, weights=values)
    assert [f.rule for f in found] == ["reference-values"]
    assert f"{LAYERS} of {len(values)} tensors" in found[0].message
    assert "5 down_proj" in found[0].message


def test_the_template_s_difference_is_shown(tmp_path: Path) -> None:
    settings_ = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 64,
                 "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0].content }}"}  # fmt: skip
    found = _pair(tmp_path, settings=settings_)
    assert [f.rule for f in found] == ["reference-template"]
    assert "+{{ messages[0].content }}" in found[0].evidence


@pytest.mark.parametrize("same", [True, False])
def test_a_gguf_file_carries_a_template_too(tmp_path: Path, same: bool) -> None:
    """A folder whose reference is a GGUF file, and the other way round."""
    (tmp_path / "model").mkdir()
    folder(tmp_path / "model")
    settings_ = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({**settings_, "chat_template": template}))
    (tmp_path / "other").mkdir()
    write_gguf(tmp_path / "other" / "a.gguf", **{"tokenizer.chat_template": template if same else template + "Bye."})
    for one, two in (("model", "other"), ("other", "model")):
        found = [f.message for f in scan(tmp_path / one, tmp_path / two) if f.rule == "reference-template"]
        assert found == ([] if same else ["the template 'default' differs"])


def test_files_more_and_fewer(tmp_path: Path) -> None:
    for name in ("model", "reference"):
        (tmp_path / name).mkdir()
        folder(tmp_path / name)
    (tmp_path / "model" / "notes.md").write_text("hello")
    (tmp_path / "model" / "extra.json").write_text("{}")
    (tmp_path / "reference" / "generation_config.json").rename(tmp_path / "reference" / "other.json")
    found = [f for f in scan(tmp_path / "model", tmp_path / "reference") if f.rule == "reference-files"]
    assert {(f.severity, f.evidence) for f in found} == {
        ("note", "notes.md"), ("suspicious", "extra.json, generation_config.json"), ("suspicious", "other.json")}  # fmt: skip


def test_gguf_against_gguf(tmp_path: Path) -> None:
    for name, count in (("a.gguf", 5), ("b.gguf", 6)):
        write_gguf(tmp_path / name, **{"llama.block_count": count, "general.name": name})
    found = [f for f in scan(tmp_path / "a.gguf", tmp_path / "b.gguf") if f.rule.startswith("reference-")]
    assert {(f.rule, f.place, f.severity) for f in found} == {
        ("reference-setting", "llama.block_count", "suspicious"), ("reference-setting", "general.name", "note"),
        ("reference-values", "", "suspicious")}  # fmt: skip
