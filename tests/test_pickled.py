"""Torch pickles are converted in the sandbox, byte for byte, and never loaded in any other way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import pico
from weightsmith import convert, open_checkpoint
from weightsmith.checkpoint import INDEX
from weightsmith.errors import PickleOnly, UnsafeModel, UnsupportedModel, UsageError
from weightsmith.formats.safetensors import read_header, read_tensor
from weightsmith.runtime import load


def pickled(folder: Path, parts: int = 1, *, zipped: bool = True) -> dict[str, torch.Tensor]:
    """Turn a pico model into one with torch pickles; its tensors."""
    pico.build("llama", folder)
    [file] = folder.glob("*.safetensors")
    state = {s.name: torch.from_numpy(read_tensor(s).copy()).to(torch.bfloat16) for s in read_header(file).tensors}
    file.unlink()
    names = sorted(state)
    if parts == 1:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return state
    weight_map = {}
    for i in range(parts):
        name = f"pytorch_model-{i + 1:05d}-of-{parts:05d}.bin"
        torch.save({n: state[n] for n in names[i::parts]}, folder / name, _use_new_zipfile_serialization=zipped)
        weight_map.update(dict.fromkeys(names[i::parts], name))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return state


@pytest.mark.parametrize(("parts", "zipped"), [(1, True), (1, False), (3, True)])
def test_every_byte_arrives_and_the_model_runs(tmp_path: Path, parts: int, zipped: bool) -> None:
    state = pickled(tmp_path / "m", parts, zipped=zipped)
    with pytest.raises(PickleOnly, match="weightsmith convert"):
        open_checkpoint(str(tmp_path / "m"))
    convert(tmp_path / "m", tmp_path / "out")
    made = open_checkpoint(str(tmp_path / "out"))
    assert made.tensors.keys() == state.keys()
    for name, tensor in state.items():
        spec = made.tensors[name]
        assert spec.dtype == "BF16"
        with spec.file.open("rb") as file:
            file.seek(spec.start)
            assert file.read(spec.nbytes) == tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert (tmp_path / "out" / INDEX).is_file() == (parts > 1)
    assert not list((tmp_path / "out").glob("*.bin*"))
    assert load(made, pico.CPU).shield is not None


def test_views_transposes_and_shared_storages(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"a": whole, "b": whole.t(), "c": whole[1:3, ::2], "d": torch.tensor(3.0), "e": torch.zeros(0, 5), "f": whole}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out")
    found = {s.name: read_tensor(s) for s in read_header(tmp_path / "out" / "model.safetensors").tensors}
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        assert (found[name] == tensor.numpy()).all()


class Payload:
    """Makes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def test_a_payload_is_stopped_by_the_scan(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Payload(tmp_path / "marker")}, tmp_path / "bad.bin")
    with pytest.raises(UnsafeModel, match="malicious"):
        convert(tmp_path / "bad.bin", tmp_path / "out")
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out").exists()
    torch.load(tmp_path / "bad.bin", weights_only=False)  # and it would have acted
    assert (tmp_path / "marker").exists()


def test_and_by_torch_where_the_scan_is_blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightsmith.runtime import pickled as module
    from weightsmith.trust.gate import Shield

    torch.save({"x": Payload(tmp_path / "marker")}, tmp_path / "bad.bin")
    monkeypatch.setattr(module, "inspect", lambda *_, **__: (None, False))
    monkeypatch.setattr(module, "admit", lambda *_, **__: Shield(None, False))  # type: ignore[arg-type]
    monkeypatch.setattr(Shield, "line", "")
    with pytest.raises(PickleOnly, match="torch refuses it"):
        convert(tmp_path / "bad.bin", tmp_path / "out")
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("what", "said"), [
    ([torch.ones(2)], "holds a list"),
    ({"a": torch.ones(2), "b": "text"}, "'b' is a str"),
    ({"a": torch.ones(2).to_sparse()}, "safetensors can't hold"),
    ({}, "holds a dict"),
])  # fmt: skip
def test_what_is_no_state_dict_is_refused(tmp_path: Path, what: Any, said: str) -> None:
    torch.save(what, tmp_path / "odd.pt")
    with pytest.raises(UnsupportedModel, match=said):
        convert(tmp_path / "odd.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_candidates_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="2 files could be the weights"):
        convert(tmp_path, tmp_path / "out")
