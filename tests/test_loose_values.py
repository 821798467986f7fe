"""Values of arrays in NumPy's and ONNX files: read block by block, once each; what is not read is said to be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from corpus.formats import field, onnx
from weightsmith.trust.gate import scan_path
from weightsmith.trust.scanners import loose_values


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("at", [0, 1, 130, 999])
def test_a_nan_is_found_wherever_it_lies(dtype: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loose_values, "_BLOCK", 64)
    array = np.ones(1000, dtype)
    for value in (1.0, np.nan):
        array[at] = value
        found = loose_values.check_array("a.weight.npy", io.BytesIO(array.tobytes()), array.dtype, (1000,), array.nbytes, True)
        assert [f.rule for f in found] == ["weights-not-finite"] * bool(np.isnan(value))


def test_tensors_that_share_their_bytes_are_not_read_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = b"".join(field(13, field(1, k) + field(2, v)) for k, v in {"location": "d", "offset": "0", "length": "4096"}.items())
    (tmp_path / "model.onnx").write_bytes(onnx(*[field(1, 1024) + field(2, 1) + field(8, f"w{i}") + told + field(14, 1)
                                                 for i in range(500)]))  # fmt: skip
    (tmp_path / "d").write_bytes(np.ones(1024, "<f4").tobytes())
    read: list[int] = []
    plain = loose_values.measured
    monkeypatch.setattr("weightsmith.trust.scanners.onnx.measured", lambda *a, **k: read.append(a[2]) or plain(*a, **k))
    from weightsmith.trust.scan import Scan

    list(Scan(tmp_path).run())
    assert 0 < sum(read) <= 2 * 4096


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x81\xa1w\xcb" + bytes(8))
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(88))
    record = scan_path(tmp_path, "model")
    assert any("2 files" in line and "HDF5, MessagePack" in line for line in record.unchecked), record.unchecked
    assert not any("all tensors" in line for line in record.checked)
