"""Torch pickles as safetensors: scanned first, then read with ``weights_only`` in a process that can do nothing else.

Three things have to fail for a pickle to act: the scan's list of what tensors need, torch's own list, and the sandbox, which
leaves the process no network, no programs, and no place to write but the unfinished output.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, ManifestMismatch, PickleOnly, UnsupportedModel, UsageError, WeightsmithError
from ..formats.safetensors import write_file
from ..options import RunOptions
from ..storage import read_json, require_space, whole_folder
from ..trust.gate import admit, inspect
from .load import need_torch

if TYPE_CHECKING:
    import torch

INDEX = "pytorch_model.bin.index.json"
NEW_INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
#: what a trainer leaves beside the weights, none of which runs a model
_STATES = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "random_states")
#: other keys under which a state dict is stored whole
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_SMALL = 100_000_000  # a file beside the weights that is larger than this is no tokenizer
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32",
           "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
           "float8_e5m2": "F8_E5M2"}  # fmt: skip


def convert_pickles(model: Path, out: Path, options: RunOptions) -> Path:
    """Write the folder (or single file) of torch pickles at ``model`` as a safetensors folder at ``out``, whole or not at all.

    Every tensor keeps its bytes, dtype and shape. Files beside the weights are copied but for trainer states and code.

    Raises:
        MissingExtra: torch is not installed.
        UnsafeModel, NotAnalysed: what the scan found.
        UnsupportedModel: not a plain state dict; ManifestMismatch: the index and the files disagree.
        OutputExists: ``out`` is taken.
    """
    need_torch()
    record, remembered = inspect(model, str(model), fresh=options.frozen, progress=options.progress)
    shield = admit(record, remembered, allow=options.allow)
    if options.tell is not None:
        options.tell(f"{model.name}: {shield.line}")
    files = pickled_files(model)
    require_space(out.absolute().parent, sum(f.stat().st_size for f in files) + (1 << 20))
    with whole_folder(out) as scratch:
        done = _in_sandbox(files, scratch, options)
        _write_index(scratch, done)
        if model.is_dir():
            _copy_small(model, scratch)
    return out


def pickled_files(model: Path) -> list[Path]:
    """The weight files of a folder of pickles, in order.

    Raises:
        ManifestMismatch: the index names a file that is not there, or that lies elsewhere.
        UsageError: several candidates and no index.
    """
    if not model.is_dir():
        return [model]
    index = model / INDEX
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
            raise FormatError("weight_map must map tensor names to file names", where=index)
        files = [model / name for name in sorted(set(names.values()))]
        for file in files:
            if file.parent != model or not file.is_file():
                raise ManifestMismatch(f"the index names {file.name!r}, which is not a file of the folder", where=index)
        return files
    found = sorted(p for p in model.iterdir() if p.suffix in PICKLED and p.is_file() and not p.name.startswith(_STATES))
    plain = [p for p in found if p.name == "pytorch_model.bin"] or found
    if len(plain) != 1:
        raise UsageError(f"{len(plain)} files could be the weights: {', '.join(p.name for p in plain) or 'none'}", where=model,
                         hint="give the one file to convert")  # fmt: skip
    return plain


def _in_sandbox(files: list[Path], scratch: Path, options: RunOptions) -> dict[str, str]:
    """Tensor name -> file name, as the process in the sandbox wrote them."""
    job = {"files": [str(f.absolute()) for f in files], "out": str(scratch)}
    command = [sys.executable, "-m", __name__]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        said, errors = process.communicate(json.dumps(job).encode())
    try:
        answer = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise PickleOnly(f"the process that read the pickles ended early ({process.returncode}): {last[:200]}",
                         where=files[0]) from None  # fmt: skip
    if "error" in answer:
        kind = UnsupportedModel if answer["kind"] == "shape" else PickleOnly
        raise kind(str(answer["error"])[:500], where=str(answer["where"]))
    if options.tell is not None and answer["open"]:
        options.tell(answer["sandbox"])
    return {str(name): str(file) for name, file in answer["tensors"].items()}


def _write_index(scratch: Path, tensors: dict[str, str]) -> None:
    files = sorted(set(tensors.values()))
    if files == ["model.safetensors"]:
        return
    total = sum((scratch / f).stat().st_size for f in files)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(tensors.items()))}
    (scratch / NEW_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_small(model: Path, scratch: Path) -> None:
    for path in sorted(model.iterdir()):
        left = path.suffix in (*PICKLED, ".py", ".pkl", ".safetensors") or path.name in (INDEX, NEW_INDEX) \
            or path.name.startswith(_STATES)
        if path.is_file() and not path.is_symlink() and not left and path.stat().st_size < _SMALL:
            shutil.copyfile(path, scratch / path.name)


# -- in the sandbox -------------------------------------------------------------------------------------------


class _NotPlain(Exception):
    """The file holds something else than tensors by name."""


def _serve() -> None:
    from ..trust.sandbox import sandbox

    job = json.loads(sys.stdin.readline())
    caged = sandbox(read=job["files"], write=[job["out"]])  # before torch, whose threads would stay outside of it
    import torch

    torch.set_num_threads(1)
    tensors: dict[str, str] = {}
    where = ""
    try:
        for number, where in enumerate(job["files"]):
            name = new_name(Path(where).name, len(job["files"]), number)
            for tensor in _convert(Path(where), Path(job["out"]) / name):
                if tensor in tensors:
                    raise _NotPlain(f"the tensor {tensor!r} stands in two files")
                tensors[tensor] = name
        answer: dict[str, Any] = {"tensors": tensors, "sandbox": caged.line, "open": bool(caged.open)}
    except _NotPlain as error:
        answer = {"error": str(error), "kind": "shape", "where": where}
    except WeightsmithError as error:
        answer = {"error": error.message, "kind": "shape", "where": where}
    except Exception as error:  # noqa: BLE001 - the unpickler raises anything; what it refused is what is told
        named = re.search(r"Unsupported (?:global|class|operand)[^.]*?(?:GLOBAL )?([\w.]+)", str(error))
        said = f"it asks for {named[1]}" if named else type(error).__name__
        answer = {"error": f"torch refuses it: {said}", "kind": "refused", "where": where}
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        out.write(json.dumps(answer) + "\n")


def new_name(name: str, count: int, number: int) -> str:
    """What a converted file is called: ``model.safetensors``, or with its number where there are several."""
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _convert(path: Path, target: Path) -> Iterator[str]:
    import torch

    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    state = _state_dict(loaded)
    entries = [(name, _DTYPES[str(t.dtype).removeprefix("torch.")], tuple(t.shape), _filler(t)) for name, t in state.items()]
    write_file(target, entries, {"format": "pt"})
    yield from state


def _state_dict(loaded: Any) -> dict[str, torch.Tensor]:
    import torch

    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise _NotPlain(f"holds a {type(loaded).__name__}, not tensors by name")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _NotPlain(f"{str(name)[:80]!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or str(value.dtype).removeprefix("torch.") not in _DTYPES:
            raise _NotPlain(f"{name[:80]!r} is of a kind that safetensors can't hold: {value.layout}, {value.dtype}")
    return dict(loaded)


def _filler(tensor: torch.Tensor) -> Any:
    import torch

    def fill(out: Any) -> None:
        flat = tensor.detach().contiguous().reshape(-1)
        for start in range(0, flat.numel(), 1 << 22):  # in pieces, so that a view of a huge storage stays one
            out.write(flat[start : start + (1 << 22)].view(torch.uint8).numpy().tobytes())

    return fill


if __name__ == "__main__":
    _serve()
