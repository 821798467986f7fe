"""What bytes can do beyond a header: pickles in HDF5, weights that answer one thing to all, metadata and settings beyond use."""

from __future__ import annotations

import base64
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import Case
from .archives import EVIL, SOURCE, file
from .formats import TEXT_PICKLE

Build = Callable[[Path], None]

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

CASES: list[Case] = [*HDF5]
