"""What bytes can do beyond a header: pickles in HDF5, weights that answer one thing to all, metadata and settings beyond use."""

from __future__ import annotations

import base64
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from . import Case, write_json
from .archives import EVIL, SOURCE, file
from .formats import TEXT_PICKLE
from .weights import CONFIG, Build, Tensors, llama, model
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
    Case("h5-list-honest", _tables(pickle.dumps([1, "two", None, {"a": 1.5}], 0))),
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

CASES: list[Case] = [*HDF5, *VALUES]
