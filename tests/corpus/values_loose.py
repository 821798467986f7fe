"""Values that can't be among weights of NumPy's files and of ONNX models; data, masks and constants that may hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import Case
from .formats import field, onnx
from .weights import Build

_Q = "layers.0.attention.wq.weight"
_INF = float("inf")


def _values(shape: tuple[int, ...] = (64, 64), dtype: str = "<f4", **put: float) -> np.ndarray[Any, Any]:
    """Small numbers, with others at some places (``at_77=...``)."""
    made = np.random.default_rng(7).standard_normal(shape).astype(dtype)
    for at, value in put.items():
        made.reshape(-1)[int(at.removeprefix("at_"))] = value
    return made


def _npz(name: str = "weights.npz", *, packed: bool = False, **arrays: np.ndarray[Any, Any]) -> Build:
    return lambda folder: (np.savez_compressed if packed else np.savez)(folder / name, **arrays)  # type: ignore[arg-type]


def _npy(name: str, array: np.ndarray[Any, Any]) -> Build:
    return lambda folder: np.save(folder / name, array)


def _tensor(name: str, array: np.ndarray[Any, Any], how: int = 9) -> bytes:
    """A tensor of ONNX with its bytes (9) or packed floats (4)."""
    kind = {"<f4": 1, "<f2": 10, "<f8": 11}[array.dtype.str]
    shape = b"".join(field(1, n) for n in array.shape)
    return shape + field(2, kind) + field(8, name) + field(how, array.tobytes())


def _onnx(*tensors: bytes) -> Build:
    def build(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(onnx(*tensors))

    return build


def _beside(name: str, array: np.ndarray[Any, Any], behind: int = 4096) -> Build:
    """A model whose tensor lies in a file of its own."""

    def build(folder: Path) -> None:
        told = {"location": "model.onnx_data", "offset": str(behind), "length": str(array.nbytes)}
        shape = b"".join(field(1, n) for n in array.shape)
        entries = b"".join(field(13, field(1, k) + field(2, v)) for k, v in told.items())
        (folder / "model.onnx").write_bytes(onnx(shape + field(2, 1) + field(8, name) + entries + field(14, 1)))
        (folder / "model.onnx_data").write_bytes(bytes(behind) + array.tobytes())

    return build


_NAN = ("weights-not-finite",)
CASES: list[Case] = [
    Case("npz-nan", _npz(**{_Q: _values(at_4095=np.nan)}), "broken", _NAN),
    Case("npz-infinity-packed", _npz(packed=True, **{_Q: _values(dtype="<f2", at_9=-_INF)}), "broken", _NAN),
    Case("npz-nan-big-endian", _npz(**{_Q: _values(dtype=">f8", at_9=np.nan)}), "broken", _NAN),
    Case("npz-nan-in-weights", _npz(**{"arr_0": _values(at_9=np.nan)}), "broken", _NAN),
    Case("npz-zero", _npz(**{_Q: _values() * 0, "x": _values()}), "broken", ("weights-constant",)),
    Case("npz-rows-equal", _npz(**{_Q: np.repeat(_values((1, 64)), 64, 0)}), "broken", ("weights-rows-equal",)),
    Case("npy-nan-in-weight", _npy("encoder.weight.npy", _values(at_0=np.nan)), "broken", _NAN),
    Case("onnx-nan", _onnx(_tensor("W", _values(at_4095=np.nan))), "broken", _NAN),
    Case("onnx-nan-packed-floats", _onnx(_tensor("W", _values(at_1=np.nan), 4)), "broken", _NAN),
    Case("onnx-zero", _onnx(_tensor("model.layers.0.self_attn.q_proj.weight", _values() * 0)), "broken", ("weights-constant",)),
    Case("onnx-nan-beside", _beside("onnx::MatMul_77", _values(at_1=np.nan)), "broken", _NAN),
    Case("npz-honest", _npz(**{_Q: _values(), "layers.0.attention.wq.bias": _values((64,)) * 0})),
    Case("npz-honest-columns", _npz(**{_Q: np.asfortranarray(np.repeat(_values((1, 64)), 64, 0).T + _values())})),
    Case("npy-data-with-gaps", _npy("features.npy", _values(at_3=np.nan)), rules=("array-not-finite",)),
    Case("npz-data-with-gaps", _npz("train_data.npz", x=_values(at_3=np.nan) * 1e9, y=_values((64,))), rules=("array-not-finite",)),
    Case("onnx-honest", _onnx(_tensor("onnx::MatMul_77", _values()), _tensor("model.norm.weight", _values((64,))))),
    Case("onnx-mask-honest", _onnx(_tensor("/model/Constant_4_output_0", np.triu(np.full((64, 64), -_INF, "<f4"), 1)),
                                   _tensor("/model/Constant_5_output_0", np.full((64, 64), np.finfo("f4").min, "<f4")),
                                   _tensor("/model/Constant_6_output_0", np.array([np.nan], "<f4")))),
    Case("onnx-beside-honest", _beside("onnx::MatMul_77", _values())),
]  # fmt: skip
