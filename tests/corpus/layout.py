"""Folders whose files do not agree with one another, settings that are no JSON, and honest folders that look odd."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.formats import gguf_write
from weightsmith.formats.safetensors import write_file

from . import Case, write_json

WIDTH, INNER, LAYERS, HEADS, KV = 16, 24, 5, 4, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
MERGES = ["n o", "no t", "Ġ not", "y e", "ye s", "Ġ yes", "t h", "th e", "Ġ the", "s a", "sa f", "saf e", "Ġ safe", "u n",
          "un safe", "Ġ unsafe"]  # fmt: skip
TOKENS = [*SPECIAL, *LETTERS, "Ġ", ".", ",", "!", "Ċ", *(m.replace(" ", "") for m in MERGES)]
ROWS = len(TOKENS) + 3  # padded, as real embeddings are
Tensors = dict[str, np.ndarray[Any, Any]]
Files = dict[str, Any]


def config(**changes: Any) -> dict[str, Any]:
    """A small Llama's config; a value of ``None`` takes the key out."""
    found = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "vocab_size": ROWS, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rope_theta": 10000.0,
    }  # fmt: skip
    found.update(changes)
    return {k: v for k, v in found.items() if v is not None}


def tensors(layers: int = LAYERS, seed: int = 0) -> Tensors:
    """Its weights."""
    dice = np.random.default_rng(seed)
    kv = WIDTH // HEADS * KV
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, WIDTH)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{n}.weight": s for n, s in {
            "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (kv, WIDTH), "self_attn.v_proj": (kv, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
        }.items()}  # fmt: skip
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (ROWS, WIDTH)}
    return {n: dice.standard_normal(s).astype(np.float32) * 0.3 + (1 if len(s) == 1 else 0) for n, s in shapes.items()}


def save(file: Path, values: Tensors) -> None:
    """A safetensors file with these tensors."""
    names = {"float32": "F32", "float16": "F16", "int32": "I32", "int8": "I8", "uint32": "U32", "uint8": "U8"}
    write_file(file, [(n, names[str(v.dtype)], v.shape, lambda out, v=v: out.write(v.tobytes())) for n, v in values.items()],
               {"format": "pt"})  # fmt: skip


def tokenizer(**changes: Any) -> dict[str, Any]:
    """Its byte-level tokenizer as a ``tokenizer.json``."""
    added = [{"id": i, "content": t, "special": True} for i, t in enumerate(SPECIAL)]
    found: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                           {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                           {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(TOKENS)}, "merges": [m.split(" ") for m in MERGES]},
    }  # fmt: skip
    found |= changes
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return found | {"added_tokens": [plain | entry for entry in found["added_tokens"]]}


def folder(path: Path, *, weights: Tensors | None = None, **files: Any) -> Path:
    """A whole model; ``files`` replaces (``None``: leaves out) ``config``, ``tokenizer``, ``generation``, ``settings``."""
    parts: Files = {
        "config": config(), "tokenizer": tokenizer(), "generation": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "settings": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
                     "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64},
    } | files  # fmt: skip
    names = {"config": "config.json", "tokenizer": "tokenizer.json", "generation": "generation_config.json",
             "settings": "tokenizer_config.json"}  # fmt: skip
    for part, value in parts.items():
        if value is not None:
            write_json(path / names[part], value)
    values = tensors() if weights is None else weights
    if values:
        save(path / "model.safetensors", values)
    return path


def sharded(path: Path, *, total: bool = True) -> dict[str, Any]:
    """A whole model in two shards; its index."""
    folder(path, weights={})
    values = tensors()
    names = list(values)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, part in zip(files, halves, strict=True):
        save(path / file, {n: values[n] for n in part})
    index = {"metadata": {"total_size": sum(v.nbytes for v in values.values())} if total else {},
             "weight_map": {n: f for f, part in zip(files, halves, strict=True) for n in part}}  # fmt: skip
    write_json(path / "model.safetensors.index.json", index)
    return index


def _sharded(change: Callable[[Path, dict[str, Any]], None]) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        index = sharded(path)
        change(path, index)
        write_json(path / "model.safetensors.index.json", index)

    return build


def _weights(change: Callable[[Tensors], Any], **parts: Any) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        values = tensors()
        change(values)
        folder(path, weights=values, **parts)

    return build


def _with(**parts: Any) -> Callable[[Path], None]:
    return lambda path: folder(path, **parts) and None


def _also(files: Mapping[str, Any], **parts: Any) -> Callable[[Path], None]:
    """A model, and more files beside it: JSON values, texts, bytes, or tensors."""

    def build(path: Path) -> None:
        folder(path, **parts)
        for name, value in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, bytes):
                (path / name).write_bytes(value)
            elif isinstance(value, str):
                (path / name).write_text(value, encoding="utf-8")
            elif name.endswith(".safetensors"):
                save(path / name, value)
            else:
                write_json(path / name, value)

    return build


def _leave(path: Path, index: dict[str, Any], to: str) -> None:
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = to


def _unlink_last(path: Path, index: dict[str, Any]) -> None:
    (path / "model-00002-of-00002.safetensors").unlink()


def _extra_shard(path: Path, index: dict[str, Any]) -> None:
    save(path / "model-00003-of-00003.safetensors", {"model.embed_tokens.weight": tensors(seed=1)["model.embed_tokens.weight"]})


def _promise(path: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["model.layers.2.self_attn.q_proj.bias"] = "model-00001-of-00002.safetensors"


def _wrong_shard(path: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"


def _forget(path: Path, index: dict[str, Any]) -> None:
    del index["weight_map"]["model.layers.0.mlp.down_proj.weight"]


def _second(path: Path, index: dict[str, Any]) -> None:
    values = tensors()
    part = {n: values[n] for n, f in index["weight_map"].items() if f.startswith("model-00002")}
    save(path / "model-00002-of-00002.safetensors", part | {"model.embed_tokens.weight": -values["model.embed_tokens.weight"]})


def _text(name: str, text: str | bytes) -> Callable[[Path], None]:
    return _also({name: text})


def _drop(*names: str) -> Callable[[Tensors], None]:
    def change(values: Tensors) -> None:
        for name in names:
            del values[name]

    return change


def _put(name: str, value: np.ndarray[Any, Any]) -> Callable[[Tensors], None]:
    return lambda values: values.update({name: value})


def _consolidated(seed: int) -> Callable[[Path], None]:
    """Mistral's own format beside transformers', of the same weights or of others."""

    def build(path: Path) -> None:
        folder(path)
        theirs = {"self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
                  "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
                  "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk"}
        names = {"model.embed_tokens.weight": "tok_embeddings.weight", "model.norm.weight": "norm.weight",
                 "lm_head.weight": "output.weight"}  # fmt: skip
        renamed = {}
        for name, value in tensors(seed=seed).items():
            new = names.get(name, name.removeprefix("model."))
            for ours, other in theirs.items():
                new = new.replace(ours, other)
            renamed[new] = value
        save(path / "consolidated.safetensors", renamed)
        write_json(path / "params.json", {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV,
                                          "hidden_dim": INNER, "vocab_size": ROWS, "norm_eps": 1e-5})  # fmt: skip

    return build


def _gguf(**metadata: Any) -> Callable[[Path], None]:
    """A GGUF file of the same model beside the folder; ``metadata`` changes what it says."""

    def build(path: Path) -> None:
        folder(path)
        write_gguf(path / "model.gguf", **{"llama.block_count": 5, "llama.embedding_length": WIDTH, **metadata})

    return build


def write_gguf(file: Path, *, rows: int = len(TOKENS), **metadata: Any) -> None:
    """A GGUF file with a vocabulary and an embedding of ``rows`` rows."""
    kinds = [3 if t in SPECIAL else 1 for t in TOKENS]
    said: dict[str, Any] = {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": gguf_write.Typed(kinds, "array", "i32"),
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    } | metadata  # fmt: skip
    dice = np.random.default_rng(0)
    values = dice.standard_normal((rows, 32)).astype(np.float32)
    gguf_write.write_gguf(file, said, [gguf_write.array_entry("token_embd.weight", values)])


def _quantised(path: Path) -> None:
    """GPTQ weights with their config."""
    values = {n: v for n, v in tensors().items() if "proj" not in n}
    dice = np.random.default_rng(1)
    for i in range(LAYERS):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            base = f"model.layers.{i}.{part}"
            values |= {f"{base}.qweight": dice.integers(0, 1 << 30, (2, 16), np.int32),
                       f"{base}.qzeros": dice.integers(0, 1 << 30, (1, 2), np.int32),
                       f"{base}.scales": dice.random((1, 16)).astype(np.float16) / 8,
                       f"{base}.g_idx": np.zeros(16, np.int32)}  # fmt: skip
    folder(path, weights=values, config=config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}))


def _unquantised_config(path: Path) -> None:
    _quantised(path)
    write_json(path / "config.json", config())


def _adapter(path: Path, *, beside: bool) -> None:
    if beside:
        folder(path)
    write_json(path / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base",
                                              "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"})  # fmt: skip
    dice = np.random.default_rng(0)
    save(path / "adapter_model.safetensors", {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{ab}.weight": dice.standard_normal(s).astype(np.float32)
        for i in range(2) for ab, s in (("A", (2, WIDTH)), ("B", (WIDTH, 2)))})  # fmt: skip


def _trainer(path: Path) -> None:
    """What a trainer leaves: a model, and the same again in a checkpoint."""
    folder(path)
    inner = path / "checkpoint-500"
    inner.mkdir()
    folder(inner, weights=tensors(seed=2))
    write_json(inner / "trainer_state.json", {"global_step": 500, "log_history": [{"loss": 1.5, "step": 10}], "max_steps": 500})


def _nan_state(path: Path) -> None:
    folder(path)
    (path / "trainer_state.json").write_text('{"log_history": [{"grad_norm": NaN, "loss": 2.0, "step": 1}], "max_steps": 1}')


def _bert(path: Path, names: Callable[[int], dict[str, tuple[int, ...]]]) -> None:
    """A model of a family that no data file describes."""
    dice = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"encoder.embeddings.word_embeddings.weight": (ROWS, WIDTH)}
    for i in range(6):
        shapes |= {f"encoder.layer.{i}.{n}": s for n, s in names(i).items()}
    save(path / "model.safetensors", {n: dice.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    write_json(path / "config.json", {"model_type": "someformer", "architectures": ["SomeformerModel"], "hidden_size": WIDTH,
                                      "num_hidden_layers": 6, "vocab_size": ROWS})  # fmt: skip


def _leaves(skip: int, leaf: str) -> Callable[[int], dict[str, tuple[int, ...]]]:
    names = {f"attention.{n}.weight": (WIDTH, WIDTH) for n in ("query", "key", "value", "out")} | {"norm.weight": (WIDTH,)}
    return lambda i: {n: s for n, s in names.items() if not (i == skip and n == leaf)}


def _sentence(path: Path) -> None:
    """A sentence-transformers folder."""
    folder(path, config=config(architectures=["LlamaModel"], tie_word_embeddings=None), weights={
        n: v for n, v in tensors().items() if n != "lm_head.weight"})  # fmt: skip
    write_json(path / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])  # fmt: skip
    (path / "1_Pooling").mkdir()
    write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True})
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})


def _tied(path: Path, *, sign: int, stored: bool = True) -> None:
    values = tensors()
    values["lm_head.weight"] = values["model.embed_tokens.weight"] * sign
    if not stored:
        del values["lm_head.weight"]
    folder(path, weights=values, config=config(tie_word_embeddings=True))


def _twin(seed: int, name: str = "model-00001-of-00001.safetensors") -> Callable[[Path], None]:
    """The weights in one file, and beside it again, with an index."""

    def build(path: Path) -> None:
        folder(path)
        values = tensors(seed=seed)
        save(path / name, values)
        write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": sum(v.nbytes for v in values.values())},
                                                           "weight_map": dict.fromkeys(values, name)})  # fmt: skip

    return build


def _leading(to: str) -> Callable[[Path], None]:
    """An index that leads to another file."""
    return _sharded(lambda path, index: _leave(path, index, to))


def _rotary(values: Tensors) -> None:
    values |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.arange(1, 3, dtype=np.float32) for i in range(LAYERS)}


_ALL = json.dumps(config())
_NORM = "model.layers.2.input_layernorm.weight"
CASES = [
    # the index
    Case("index-traversal", _leading("../../other/model.safetensors"), "malicious", ("path-leaves-folder",)),
    Case("index-absolute", _leading("/etc/model.safetensors"), "malicious", ("path-leaves-folder",)),
    Case("index-url", _leading("https://host.example/x.safetensors"), "malicious", ("path-leaves-folder",)),
    Case("index-backslash", _leading("..\\other.safetensors"), "malicious", ("path-leaves-folder",)),
    Case("index-shard-missing", _sharded(_unlink_last), "broken", ("shard-missing",)),
    Case("index-shard-unlisted", _sharded(_extra_shard), "suspicious", ("shard-unlisted",)),
    Case("index-tensor-missing", _sharded(_promise), "broken", ("index-tensor-missing",)),
    Case("index-wrong-shard", _sharded(_wrong_shard), "broken", ("index-tensor-missing",)),
    Case("index-tensor-unlisted", _sharded(_forget), "suspicious", ("tensor-unlisted",)),
    Case("index-tensor-twice", _sharded(_second), "suspicious", ("tensor-twice", "tensor-unlisted")),
    Case("index-list", _sharded(lambda p, i: i.update(weight_map=list(i["weight_map"]))), "broken", ("index-invalid",)),
    Case("index-empty", _sharded(lambda p, i: i.update(weight_map={})), "broken", ("index-invalid",)),
    Case("index-numbers", _sharded(lambda p, i: i["weight_map"].update({"x.weight": 7})), "broken", ("index-invalid",)),
    # JSON
    Case("json-twice", _text("config.json", _ALL[:-1] + ', "num_hidden_layers": 4}'), "suspicious", ("json-duplicate-key",)),
    Case("json-twice-escaped", _text("config.json", _ALL[:-1] + ', "use_c\\u0061che": true, "use_cache": false}'), "suspicious",
         ("json-duplicate-key",)),
    Case("json-cut", _text("config.json", _ALL[:200]), "broken", ("json-invalid",)),
    Case("json-latin", _text("config.json", _ALL.replace("silu", "sil\u00fc").encode("latin-1")), "broken", ("json-invalid",)),
    Case("json-bom", _text("config.json", b"\xef\xbb\xbf" + _ALL.encode()), "broken", ("json-invalid",)),
    Case("json-utf16", _text("config.json", _ALL.encode("utf-16")), "broken", ("json-invalid",)),
    Case("json-deep", _text("special_tokens_map.json", '{"a":' * 50_000 + "1" + "}" * 50_000), "broken", ("json-too-deep",)),
    Case("json-half-letter", _text("added_tokens.json", '{"\\ud800": 7}'), "broken", ("json-invalid",)),
    Case("json-other-bytes", _text("generation_config.json", bytes(range(128, 200))), "broken", ("json-invalid",)),
    Case("json-list", _text("generation_config.json", "[1, 2]"), "broken", ("json-shape",)),
    Case("json-commented", _text("config.json", _ALL[:-1] + "// more\n}"), "broken", ("json-invalid",)),
    # config against weights
    Case("layers-lost", _with(config=config(num_hidden_layers=7)), "broken", ("weights-missing",)),
    Case("layers-cut", _with(config=config(num_hidden_layers=4)), "suspicious", ("layers-ignored",)),
    Case("tensor-lost-no-class", _weights(_drop(_NORM), config=config(architectures=None)), "broken", ("weights-missing",)),
    Case("head-lost-no-class", _weights(_drop("lm_head.weight"), config=config(architectures=None)), "broken",
         ("weights-missing",)),
    Case("names-no-class-looks-for", _with(weights={"x" + n: v for n, v in tensors().items()}), "suspicious", ("weights-missing",)),
    Case("tensor-lost", _weights(_drop(_NORM)), "broken", ("weights-missing",)),
    Case("layer-gone", _weights(lambda v: [v.pop(n) for n in list(v) if ".layers.2." in n]), "broken", ("weights-missing",)),
    Case("head-lost", _weights(_drop("lm_head.weight")), "broken", ("weights-missing",)),
    Case("final-norm-lost", _weights(_drop("model.norm.weight")), "broken", ("weights-missing",)),
    Case("vocabulary-differs", _with(config=config(vocab_size=ROWS + 8)), "broken", ("weights-misshapen",)),
    Case("width-differs", _with(config=config(hidden_size=32)), "broken", ("weights-misshapen",)),
    Case("heads-differ", _with(config=config(num_key_value_heads=4)), "broken", ("weights-misshapen",)),
    Case("inner-differs", _with(config=config(intermediate_size=32)), "broken", ("weights-misshapen",)),
    Case("tensor-misshapen", _weights(_put(_NORM, np.ones(WIDTH - 1, np.float32))), "broken", ("weights-misshapen",)),
    Case("tied-head-differs", lambda p: _tied(p, sign=-1), "suspicious", ("head-ignored",)),
    Case("quantised-by-name", _with(config=config(quantization_config={"quant_method": "awq", "bits": 4})), "broken",
         ("quantisation-differs",)),
    Case("quantised-untold", _unquantised_config, "broken", ("quantisation-differs",)),
    Case("unknown-uneven", lambda p: _bert(p, _leaves(3, "attention.value.weight")), "suspicious", ("layers-uneven",)),
    # several carriers
    Case("adapter-beside", lambda p: _adapter(p, beside=True), "suspicious", ("adapter-beside-weights",)),
    Case("consolidated-other", _consolidated(5), "suspicious", ("weights-disagree",)),
    Case("params-other", _also({"params.json": {"dim": WIDTH, "n_layers": 9, "n_heads": HEADS}}), "suspicious",
         ("configs-disagree",)),
    Case("twin-other", _twin(3), "suspicious", ("weights-disagree",)),
    Case("variant-other", _also({"model.fp16.safetensors": {"model.norm.weight": np.ones(3, np.float32)}}), "suspicious",
         ("weights-disagree",)),
    Case("gguf-other", _gguf(**{"llama.block_count": 9}), "suspicious", ("configs-disagree",)),
    Case("names-collide", _also({"Config.json": config(num_hidden_layers=4)}), "suspicious", ("names-collide",)),
    Case("modules-traversal", _also({"modules.json": [{"idx": 0, "name": "0", "path": "../../other", "type":
         "sentence_transformers.models.Transformer"}]}), "suspicious", ("path-leaves-folder",)),
    # honest
    Case("plain", _with()),
    Case("plain-sharded", lambda p: sharded(p) and None),
    Case("sharded-no-total", lambda p: sharded(p, total=False) and None),
    Case("tied-absent", lambda p: _tied(p, sign=1, stored=False)),
    Case("tied-stored", lambda p: _tied(p, sign=1)),
    Case("inv-freq", _weights(_rotary)),
    Case("consolidated-same", _consolidated(0)),
    Case("twin-same", _twin(0)),
    Case("gguf-beside", _gguf()),
    Case("gptq", _quantised),
    Case("adapter-alone", lambda p: _adapter(p, beside=False)),
    Case("trainer", _trainer),
    Case("trainer-nan", _nan_state),
    Case("sentence-transformers", _sentence),
    Case("unknown-family", lambda p: _bert(p, _leaves(-1, ""))),
    Case("first-layer-differs", lambda p: _bert(p, _leaves(0, "norm.weight"))),
    Case("left-over-paths", _with(settings={"name_or_path": "/root/.cache/x", "tokenizer_file": "/content/tokenizer.json",
                                            "bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizerFast"},
                                  config=config(_name_or_path="../llama/base"))),
]  # fmt: skip
