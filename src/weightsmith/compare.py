"""What differs between two checkpoints, exactly: tensor by tensor and file by file, however they are sharded.

Two tensors are the same when dtype, shape and bytes are. For those that differ the values are compared in blocks, in
fp64: how many elements changed, the largest change, and ‖B − A‖/‖A‖.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import INDEX, RECORD, Checkpoint, read_json
from .errors import FormatError
from .formats import gguf
from .formats.safetensors import FLOAT_DTYPES, TensorSpec, decode
from .records import DiffRecord, FileDifference, TensorDifference
from .storage import parallel_map, sha256_range

BLOCK = 1 << 20  # elements compared at a time


def changed_tensors(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Names that both have and whose digests differ, in the order of ``a``."""
    return [name for name, digest in a.items() if name in b and b[name] != digest]


def diff_checkpoints(a: Checkpoint, b: Checkpoint) -> DiffRecord:
    """Every difference between two checkpoints; their own records of how they were made are left out.

    Raises:
        Truncated: a file became shorter while it was read.
    """
    before, after = a.tensor_digests(), b.tensor_digests()
    tensors: list[TensorDifference] = []
    both: list[str] = []
    for name, spec in a.tensors.items():
        other = b.tensors.get(name)
        if other is None:
            tensors.append(_only(spec, "only in A"))
        elif (spec.dtype, spec.shape) != (other.dtype, other.shape):
            tensors.append(TensorDifference(tensor=name, what="another type or shape",
                                            a=_form(spec), b=_form(other)))  # fmt: skip
        elif before[name] != after[name]:
            both.append(name)
    tensors += parallel_map(lambda n: _compared(a.tensors[n], b.tensors[n]), both)
    tensors += [_only(spec, "only in B") for name, spec in b.tensors.items() if name not in a.tensors]
    order = {name: i for i, name in enumerate([*a.tensors, *b.tensors])}
    tensors.sort(key=lambda t: order[t.tensor])
    same = sum(before[n] == after.get(n) and _form(a.tensors[n]) == _form(b.tensors[n]) for n in before)
    return DiffRecord(a=a.ref, b=b.ref, a_digest=a.digest_of(before), b_digest=b.digest_of(after),
                      identical_tensors=same, tensors=tensors, files=_files(a, b))  # fmt: skip


def _form(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _only(spec: TensorSpec, what: Any) -> TensorDifference:
    forms = {"a": _form(spec)} if what == "only in A" else {"b": _form(spec)}
    return TensorDifference(tensor=spec.name, what=what, **forms)


def _compared(a: TensorSpec, b: TensorSpec) -> TensorDifference:
    changed = seen = 0
    largest = moved = length = 0.0
    for x, y in zip(_values(a), _values(b), strict=True):
        changed += int(np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y))))
        seen += x.size
        with np.errstate(invalid="ignore", over="ignore"):
            delta = y - x
            largest = max(largest, float(np.nanmax(np.abs(delta), initial=0.0)))
            moved += float(np.nansum(delta * delta))
            length += float(np.nansum(x * x))
    return TensorDifference(tensor=a.name, what="changed", a=_form(a), b=_form(b), elements_changed=changed,
                            elements=seen, largest=largest,
                            relative=math.sqrt(moved / length) if length else None)  # fmt: skip


def _values(spec: TensorSpec) -> Iterator[Any]:
    """The tensor's values in blocks, fp64, flat; raw bytes as numbers where the dtype is none of ours."""
    unit, decoder = _unit(spec)
    step = max(unit[1], BLOCK // unit[0] * unit[1])
    with spec.file.open("rb", buffering=0) as file:
        position = spec.start
        while position < spec.start + spec.nbytes:
            file.seek(position)
            want = min(step, spec.start + spec.nbytes - position)
            raw = file.read(want) or b""
            while len(raw) < want:
                more = file.read(want - len(raw))
                if not more:
                    raise FormatError(f"tensor {spec.name!r} ends early", where=spec.file)
                raw += more
            yield decoder(raw)
            position += want


def _unit(spec: TensorSpec) -> tuple[tuple[int, int], Any]:
    """(elements, bytes) of what is decoded together, and the decoder."""
    if spec.dtype in FLOAT_DTYPES:
        width = spec.nbytes // max(1, spec.numel)
        return (1, width), lambda raw: decode(raw, spec.dtype, np.float64)
    kinds = {name: (elements, nbytes) for name, elements, nbytes in gguf.GGML_TYPES.values()}
    if spec.dtype in kinds and spec.shape:
        elements, nbytes = kinds[spec.dtype]
        row = spec.shape[-1] // elements * nbytes
        return (spec.shape[-1], row), lambda raw: gguf.decode_rows(
            spec.dtype, np.frombuffer(raw, np.uint8).reshape(-1, row)).astype(np.float64).reshape(-1)  # fmt: skip
    return (1, 1), lambda raw: np.frombuffer(raw, np.uint8).astype(np.float64)


def _metadata(a: Path, b: Path) -> list[FileDifference]:
    """The metadata keys (template, tokenizer, settings) in which two GGUF files differ, as one entry."""
    mine, theirs = gguf.read_header(a).metadata, gguf.read_header(b).metadata
    missing = object()
    keys = sorted(k for k in mine.keys() | theirs.keys() if repr(mine.get(k, missing)) != repr(theirs.get(k, missing)))
    return [FileDifference(file="(metadata)", what="changed", keys=keys)] if keys else []


def _files(a: Checkpoint, b: Checkpoint) -> list[FileDifference]:
    """Differences of all files but weights, their index and derivation records, by relative path."""
    if a.kind == b.kind == "gguf":
        return _metadata(a.path, b.path)
    if a.kind != "folder" or b.kind != "folder":
        return []
    mine, theirs = _small(a), _small(b)
    found: list[FileDifference] = []
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in theirs:
            found.append(FileDifference(file=name, what="only in A"))
        elif name not in mine:
            found.append(FileDifference(file=name, what="only in B"))
        elif sha256_range(mine[name]) != sha256_range(theirs[name]):
            found.append(FileDifference(file=name, what="changed", keys=_keys(mine[name], theirs[name])))
    return found


def _small(checkpoint: Checkpoint) -> dict[str, Path]:
    weights = {f.name for f in checkpoint.weight_files}
    return {
        p.relative_to(checkpoint.path).as_posix(): p for p in checkpoint.path.rglob("*")
        if p.is_file() and p.name not in (*weights, INDEX, RECORD)
        and not any(part.startswith(".") for part in p.relative_to(checkpoint.path).parts)
    }  # fmt: skip


def _keys(a: Path, b: Path) -> list[str]:
    """Top-level keys of two JSON files whose values differ; nothing for files that are not JSON objects."""
    try:
        mine, theirs = read_json(a), read_json(b)
    except FormatError:
        return []
    return sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k) or (k in mine) != (k in theirs))

