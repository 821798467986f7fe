"""What bytes can do beyond a header: pickles in HDF5, weights that answer one thing to all, metadata and settings beyond use."""

from __future__ import annotations

import base64
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from . import Case, layout, write_json
from .archives import EVIL, SOURCE, file
from .formats import TEXT_PICKLE
from .weights import (
    ARRAY,
    CONFIG,
    DATA,
    F32,
    I32,
    STRING,
    U32,
    WORDS,
    Build,
    Tensors,
    array,
    gguf_file,
    info,
    llama,
    model,
    pair,
    pairs,
)
from .weights_values import damaged

# -- HDF5 as PyTables writes it ---------------------------------------------------------------------------------------

#: files of PyTables around a place for one value of 480 bytes: an attribute of the root, an object of a variable array
_ATTRIBUTE = (
    b"c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfIM`76F!=;1%?PDCp!5nRm^eFFP68?}05xBM8Nz=7RTmQE>WXYWx;>*{WCIUZ#{du=0p)W*=@U$->R{<GfJ*iXLen"
    b"dHy5?a}fZE5#0LnEXo*_P<1S~87aRU<=fz)XrspDX9_HhgjhN@#la<6-ke`o-TdJZrQa}5gi^!Ed+XGT(QsAm9mhXqu<1Xz7QWQe1ak85zen}3k6V@NzM{"
    b"YH9*Q2h{hG6MYo(x04`4i*;%;s=Zf^$rdIq(D6_"
)
_OBJECT = (
    b"c-rlk%}&BV5XX00s0}KqdO;6_qbCB!gGVZqkEF1qEd)-89~V7%;UV-*d;}lC$Kc2#c*E}QwCoZwe%x?=kPJKf-w(Dkv*~lY(cI6S<Os*MNrpH?WeL0&^>)"
    b"&K1(t$+0{dbleoOQf!0*8PB~!NN;Ew{&<Lc!a$vRF}TALvMk+$ddxgDi(BzZG*-R*QXRpYV!$8`^2rS-VpBc(LHdDcXo$d3b<9654rLwvdJRMFX_?z>?Kx"
    b"~#I#R=@^*O>c|O&<ny2>j}N7=&R)l?BfFT1)=YcBlptx!by__T{oI+8h=)<!nj@Oqa>Y2SW30LPV&)=`?>EJo`I8UWM*b#EB?PJ-8Rf;8pf-&DivvwIfQZ"
    b"CnX8!(U!B*EvY(;v27x>N!Fio)^=D-1^(!Ilu?7{h0U6A_-|+qXsHAZy;y3gL4dzCyE9c>QOL>lu*Y|ffGkIUoPwoq6!+sV;y-nBZ2!bF8f*{*RtIm9?T="
    b">cTKZhT+S}M)sX(0%LAP9mW2!d=g{7rC?U%efE0HU~Wd;"
)
_ROOM = 480
TABLES = "https://www.pytables.org/usersguide/libref/declarative_classes.html#the-attributeset-class"
_READ = "import tables, warnings\nwarnings.simplefilter('ignore')\nfile = tables.open_file(folder / 'model.h5')\n"


def _tables(value: bytes, *, heap: bool = False) -> Build:
    """A file of PyTables that holds a value."""
    assert len(value) <= _ROOM
    made = zlib.decompress(base64.b85decode(_OBJECT if heap else _ATTRIBUTE))
    return file("model.h5", made.replace(b"@@", value.ljust(_ROOM, b"\0")))


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _packed(folder: Path) -> None:
    """A heap of links or attributes with a filter."""
    _tables(b"a text")(folder)
    with (folder / "model.h5").open("ab") as out:
        out.write(b"FRHP\0\x08\0\x10\0" + bytes(200))


_NO_PROTOCOL = _text("builtins") + _text("exec") + b"\x93" + _text(SOURCE) + b"\x85R."
_NUMBERS = pickle.dumps({"rows": np.arange(4, dtype=np.int8), "name": "a"}, 4)
HDF5 = [
    Case("h5-attribute", _tables(EVIL), "malicious", ("pickle-code",), _READ + "file.root._v_attrs.cfg\n", TABLES, ("tables",)),
    Case("h5-attribute-protocol-0", _tables(TEXT_PICKLE), "malicious", ("pickle-code",), _READ + "file.root._v_attrs.cfg\n", TABLES,
         ("tables",)),
    Case("h5-attribute-without-protocol", _tables(b"N0" + _NO_PROTOCOL), "malicious", ("pickle-code",),
         _READ + "file.root._v_attrs.cfg\n", TABLES, ("tables",)),
    Case("h5-attribute-that-breaks", _tables(EVIL[:-1] + b"00."), "malicious", ("pickle-code",),
         _READ + "file.root._v_attrs.cfg\n", TABLES, ("tables",)),
    Case("h5-object", _tables(EVIL, heap=True), "malicious", ("pickle-code",), _READ + "file.root.data[:]\n", TABLES, ("tables",)),
    Case("h5-object-protocol-0", _tables(b"(lp0\n0" + TEXT_PICKLE, heap=True), "malicious", ("pickle-code",),
         _READ + "file.root.data[:]\n", TABLES, ("tables",)),
    Case("h5-heap-packed", _packed, "could not tell", ("hdf5-not-read",)),
    Case("h5-text-honest", _tables(b"cat\ndog\nmouse, and other words that end with a dot.")),
    Case("h5-list-honest", _tables(pickle.dumps([1, "two", None, {"index": 1.5, "c": "index"}], 0))),
    Case("h5-frequency-honest", _tables(b"cpandas._libs.tslibs.offsets\nDay\n(I1\nI0\ntR.")),
    Case("h5-array-honest", _tables(_NUMBERS, heap=True)),
    Case("h5-array-attribute-honest", _tables(_NUMBERS)),
]  # fmt: skip

# -- weights ----------------------------------------------------------------------------------------------------------

_O1, _UP1, _HEAD = "model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"


def _same(name: str, share: float = 1.0) -> Build:
    """The last rows of a matrix made equal."""

    def change(tensors: Tensors) -> None:
        rows = tensors[name]
        rows[round(len(rows) * (1 - share)) :] = rows[-1]

    return damaged(change)


def _constant_but_one(tensors: Tensors) -> None:
    tensors[_O1].fill(0.02)
    tensors[_O1][0, 0] = 0.021


def _copied(*pairs: tuple[int, int], changed: int = 1) -> Build:
    """Layers that are others again, with a few values of each matrix changed."""

    def change(tensors: Tensors) -> None:
        for copy, source in pairs:
            for name in [n for n in tensors if n.startswith(f"model.layers.{copy}.") and tensors[n].ndim == 2]:
                tensors[name] = tensors[name.replace(f".{copy}.", f".{source}.", 1)].copy()
                tensors[name].reshape(-1)[: changed * 7 : 7] += 0.01

    return damaged(change)


def _loud_row(times: float) -> Build:
    return damaged(lambda t: t[_HEAD][5].__imul__(times))


def _gain(name: str, size: float) -> Build:
    return damaged(lambda t: t[name].__imul__(size))


def _integers(scales: bool = False, **config: Any) -> Build:
    def build(folder: Path) -> None:
        tensors = llama()
        tensors[_UP1] = (tensors[_UP1] * 100).astype(np.int8)
        if scales:
            tensors[f"{_UP1}_scale"] = np.full(len(tensors[_UP1]), 0.01, np.float32)
        model(folder, tensors, **config)

    return build


def _torch(folder: Path) -> None:
    """Equal rows in a file of torch."""
    import torch

    tensors = llama()
    tensors[_HEAD][:] = tensors[_HEAD][3]
    write_json(folder / "config.json", CONFIG)
    torch.save({n: torch.from_numpy(v) for n, v in tensors.items()}, folder / "pytorch_model.bin")


def _v(name: str, build: Build, rule: str = "", verdict: str = "suspicious") -> Case:
    return Case(f"values-{name}", build, verdict if rule else "clean", (rule,) if rule else ())


VALUES = [
    _v("head-rows-equal", _same(_HEAD), "weights-rows-equal", "broken"),
    _v("embedding-rows-equal", _same("model.embed_tokens.weight"), "weights-rows-equal", "broken"),
    _v("rows-equal-in-torch", _torch, "weights-rows-equal", "broken"),
    _v("constant-but-one", damaged(_constant_but_one), "weights-rows-equal", "broken"),
    _v("padded-rows-honest", _same("model.embed_tokens.weight", 0.4)),
    _v("layer-copied-but-one", _copied((2, 0)), "layers-repeated"),
    _v("layer-copied-but-some", _copied((2, 0), changed=4), "layers-repeated"),
    _v("layers-upscaled-and-tuned-honest", _copied((2, 0), (3, 1), changed=3)),
    _v("head-row-loud", _loud_row(3e4), "weights-absurd"),
    _v("head-row-large-honest", _loud_row(100)),
    _v("gain-1e6", _gain("model.norm.weight", 1e6), "weights-absurd"),
    _v("gain-1e5-of-a-layer", _gain("model.layers.1.input_layernorm.weight", 1e5), "weights-absurd"),
    _v("gain-900-honest", _gain("model.layers.1.input_layernorm.weight", 900)),
    _v("integers-without-scales", _integers(), "weights-whole-numbers"),
    _v("integers-with-scales-honest", _integers(scales=True)),
    _v("integers-told-honest", _integers(quantization_config={"quant_method": "x", "bits": 8})),
]  # fmt: skip

# -- GGUF -------------------------------------------------------------------------------------------------------------

LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp"
_LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]
_LONG = [a + b for a in _LETTERS[:10] for b in _LETTERS[:10]]
_KEY = "tokenizer.ggml."


def _g(name: str, *more: bytes, rule: str = "", verdict: str = "suspicious", **other: bytes | None) -> Case:
    return Case(f"gguf-{name}", file("model.gguf", gguf_file([*pairs(**other), *more])), verdict if rule else "clean",
                (rule,) if rule else (), see=LLAMA_CPP)  # fmt: skip


def _byte_level(merges: int) -> dict[str, bytes | None]:
    """A vocabulary of byte-level BPE, as far as the embedding goes; its tokens, and as many merges."""
    tokens = [*WORDS[:3], *_LETTERS, *_LONG]
    made = [f"{w[0]} {w[1]}" for w in _LONG][:merges]
    return {"tokenizer__ggml__model": pair(f"{_KEY}model", STRING, "gpt2"), "tokenizer__ggml__scores": None,
            "tokenizer__ggml__tokens": pair(f"{_KEY}tokens", ARRAY, array(STRING, tokens)),
            "tokenizer__ggml__merges": pair(f"{_KEY}merges", ARRAY, array(STRING, made)),
            "tokenizer__ggml__token_type": pair(f"{_KEY}token_type", ARRAY, array(I32, [2, 3, 3] + [1] * (len(tokens) - 3)))}


def _bpe(merges: int) -> bytes:
    rows = 3 + len(_LETTERS) + len(_LONG)
    table = np.random.default_rng(5).standard_normal((rows, 32)).astype(np.float32).tobytes()
    return gguf_file(pairs(**_byte_level(merges), llama__block_count=pair("llama.block_count", U32, 1)),
                     [info("token_embd.weight", [32, rows], 0, 0)], table)  # fmt: skip


def _loud_gain() -> bytes:
    return gguf_file(data=DATA[:-128] + np.full(32, 1e6, np.float32).tobytes())


def _count(value: int) -> bytes:
    return pair("llama.block_count", U32, value)


GGUFS = [
    _g("suppresses-words", pair(f"{_KEY}suppress_tokens", ARRAY, array(I32, [3, 4])), rule="settings-steer"),
    _g("suppresses-markers-honest", pair(f"{_KEY}suppress_tokens", ARRAY, array(I32, [1]))),
    _g("samples-hot", pair("general.sampling.temp", F32, 100.0), rule="settings-absurd"),
    _g("samples-honest", pair("general.sampling.temp", F32, 0.7), pair("general.sampling.top_k", I32, struct.pack("<i", 20)),
       pair("general.sampling.top_p", F32, 0.8), pair("general.sampling.penalty_repeat", F32, 1.05)),
    _g("epsilon-huge", pair("llama.attention.layer_norm_rms_epsilon", F32, 1e6), rule="settings-absurd"),
    _g("epsilon-honest", pair("llama.attention.layer_norm_rms_epsilon", F32, 1e-5), pair("llama.rope.freq_base", F32, 1e6),
       pair("llama.rope.scaling.factor", F32, 40.0), pair("llama.expert_count", U32, 8), pair("llama.expert_used_count", U32, 2)),
    _g("experts-none-used", pair("llama.expert_count", U32, 8), pair("llama.expert_used_count", U32, 0), rule="settings-impossible",
       verdict="broken"),
    _g("dense-honest", pair("llama.expert_count", U32, 0), pair("llama.expert_used_count", U32, 0)),
    _g("layers-beyond", rule="gguf-layers", verdict="broken", llama__block_count=_count(1)),
    _g("layers-for-drafts-honest", pair("llama.nextn_predict_layers", U32, 1), llama__block_count=_count(1)),
    _g("rope-scaled-away", pair("llama.rope.scaling.factor", F32, 1e6), rule="settings-absurd"),
    _g("pre-tokenizer-a-path", pair(f"{_KEY}pre", STRING, "../../x"), rule="settings-impossible", verdict="broken"),
    _g("pre-tokenizer-new-honest", pair(f"{_KEY}pre", STRING, "llama-9")),
    Case("gguf-merges-gone", file("model.gguf", _bpe(1)), "suspicious", ("gguf-merges",), see=LLAMA_CPP),
    Case("gguf-merges-honest", file("model.gguf", _bpe(100))),
    Case("gguf-gain-1e6", file("model.gguf", _loud_gain()), "suspicious", ("weights-absurd",)),
]  # fmt: skip

# -- settings ---------------------------------------------------------------------------------------------------------


def _config(name: str, rule: str = "", **changes: Any) -> Case:
    return Case(f"number-{name}", lambda p: layout.folder(p, config=layout.config(**changes)) and None,
                "suspicious" if rule else "clean", (rule,) if rule else ())  # fmt: skip


def _writes(name: str, rule: str = "", **settings: Any) -> Case:
    return Case(f"number-{name}", lambda p: layout.folder(p, generation={"eos_token_id": 2, **settings}) and None,
                "suspicious" if rule else "clean", (rule,) if rule else ())  # fmt: skip


def _adapter(name: str, rule: str = "", **settings: Any) -> Case:
    def build(folder: Path) -> None:
        write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4,
                                                    "lora_alpha": 8, **settings})  # fmt: skip
        dice = np.random.default_rng(2)
        at = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        layout.save(folder / "adapter_model.safetensors", {
            f"{at}A.weight": dice.standard_normal((4, 16)).astype(np.float32),
            f"{at}B.weight": dice.standard_normal((16, 4)).astype(np.float32)})  # fmt: skip

    return Case(f"adapter-{name}", build, "suspicious" if rule else "clean", (rule,) if rule else (),
                see="https://github.com/huggingface/peft/blob/main/src/peft/tuners/tuners_utils.py")  # fmt: skip


_ABSURD = "settings-absurd"
_UNSLOTH = (r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|out_proj"
            r"|fc1|o_proj|gate_proj|up_proj|down_proj|linear).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))")
SETTINGS = [
    _config("epsilon-0.09", _ABSURD, rms_norm_eps=0.09), _config("epsilon-honest", layer_norm_eps=1e-12, rms_norm_eps=1e-3),
    _config("theta-1.5", _ABSURD, rope_theta=1.5), _config("theta-100-honest", rope_theta=100.0),
    _config("theta-1.5-in-parameters", _ABSURD, rope_theta=None, rope_parameters={"rope_theta": 1.5, "rope_type": "default"}),
    _config("factor-1000", _ABSURD, rope_scaling={"rope_type": "linear", "factor": 1000.0}),
    _config("factor-2048-honest", rope_scaling={"rope_type": "yarn", "factor": 2048.0, "original_max_position_embeddings": 512}),
    Case("number-sounds-of-their-own-honest", lambda p: write_json(p / "config.json", {
        "architectures": ["CsmForConditionalGeneration"], "model_type": "csm", "vocab_size": 2051, "text_vocab_size": 128256,
        "bos_token_id": 128000}), "clean", ()),
    Case("number-sounds-of-none", lambda p: layout.folder(p, config=layout.config(text_vocab_size=1 << 17, bos_token_id=1 << 16))
         and None, "broken", ("special-id-outside",)),
    _config("factor-64-honest", rope_scaling={"rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096}),
    _config("four-positions", _ABSURD, max_position_embeddings=4), _config("window-of-four", _ABSURD, sliding_window=4),
    _config("window-honest", sliding_window=16, attention_dropout=0.9),
    _writes("temperature-9", _ABSURD, temperature=9.5, do_sample=True),
    _writes("temperature-2-honest", temperature=2.0, do_sample=True),
    _writes("penalty-4", _ABSURD, repetition_penalty=4.5), _writes("penalty-honest", repetition_penalty=1.8),
    _writes("beams-200", _ABSURD, num_beams=200), _writes("beams-20-honest", num_beams=20, no_repeat_ngram_size=2),
    _writes("decay-9", _ABSURD, exponential_decay_length_penalty=[1, 9.9]),
    _writes("decay-honest", exponential_decay_length_penalty=[15, 1.6]),
    _writes("never-under-2000", _ABSURD, min_new_tokens=2000), _writes("one-token-honest", max_new_tokens=1),
    _writes("at-least-142-honest", min_length=142),
    _adapter("pattern-slow", "adapter-slow-pattern", target_modules=r"(\w+\.?)+X"),
    _adapter("pattern-slow-in-ranks", "adapter-slow-pattern", rank_pattern={r"(a+)+$": 4}),
    _adapter("pattern-honest", target_modules=r".*\.layers\.\d+\.(?:self_attn|mlp)\.(?:q|k|v|o|gate|up|down)_proj"),
    _adapter("pattern-without-vision-honest", target_modules=r"^(?:(?!.*patch_embed).)*(?:linear|q_proj|v_proj).*$"),
    _adapter("pattern-of-unsloth-honest", target_modules=_UNSLOTH),
    _adapter("names-honest", target_modules=["q_proj"], rank_pattern={"^model.layers.0.self_attn.q_proj": 4}),
]  # fmt: skip

CASES: list[Case] = [*HDF5, *VALUES, *GGUFS, *SETTINGS]
