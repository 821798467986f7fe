"""Carry out an edit plan: a new folder that appears whole or not at all.

Untouched tensors are copied byte for byte; touched ones go up to fp64, are edited in a fixed order of elementwise
operations (so the bytes depend on neither threads nor BLAS), cast back to nearest even and checked to be finite. The
output keeps the shards, the metadata and the tensor order of the input; a created bias comes at the end of the shard
that holds its weight.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import __version__
from .checkpoint import INDEX, PICKLES, RECORD, Checkpoint, read_json
from .edits.scale import ScaleComponent, left_share
from .errors import NonFinite, Truncated, UsageError
from .formats.safetensors import SafetensorsHeader, TensorSpec, build_header, encode, read_tensor
from .options import RunOptions
from .plan import EditPlan
from .records import Derivation, DirectionMeta, ModelIdentity, TensorRecord
from .storage import BLOCK, digest_of, parallel_map, require_space, whole_folder

_LEFT_BEHIND = (*PICKLES, ".py", ".gguf", ".safetensors", ".lock")


@dataclass
class _Written:
    """What came of one weight file."""

    name: str
    sha256: str
    tensors: list[TensorRecord] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


class _Tee:
    """A file that digests what is written to it, and takes no more once ``stop`` is set."""

    def __init__(self, file: BinaryIO, stop: threading.Event) -> None:
        self.file = file
        self.stop = stop
        self.sha = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        if self.stop.is_set():
            raise RuntimeError("stopped: another shard failed, or the user interrupted")
        self.file.write(data)
        self.sha.update(data)


def execute(
    plan: EditPlan,
    out: Path,
    base: ModelIdentity,
    directions: Mapping[str, DirectionMeta],
    *,
    transferred: bool = False,
    options: RunOptions | None = None,
) -> Derivation:
    """Write the edited model and its record to ``out``.

    Raises:
        OutputExists, DiskFull: nothing is written or left behind.
        NonFinite: NaN or infinity in a touched tensor, before or after the edit.
        UsageError: ``out`` lies inside the base folder.
    """
    options = options or RunOptions()
    checkpoint = plan.checkpoint
    real = Path(os.path.realpath(out))  # Path.resolve raises on a loop of links
    if checkpoint.path.resolve() in (real, *real.parents):
        raise UsageError("the output lies inside the base model", where=out, hint="choose another place with -o")
    require_space(out.absolute().parent, plan.bytes_written + (16 << 20))
    with whole_folder(out) as scratch:
        done, stop = 0, threading.Event()

        def write(header: SafetensorsHeader) -> _Written:
            nonlocal done
            written = _write_shard(plan, header, scratch / header.path.name, stop)
            done += 1
            options.report("writing weights", done, len(checkpoint.headers))
            return written

        written = parallel_map(write, checkpoint.headers, stop=stop)
        _copy_rest(checkpoint, scratch)
        _apply_config(checkpoint, plan, scratch)
        record = _record(plan, written, base, directions, transferred, scratch)
        text = json.dumps(record.model_dump(by_alias=True), indent=1, ensure_ascii=False)
        (scratch / RECORD).write_text(text + "\n", encoding="utf-8")
    return record


def _write_shard(plan: EditPlan, header: SafetensorsHeader, target: Path, stop: threading.Event) -> _Written:
    new = [t for t in plan.new.values() if plan.checkpoint.tensors[t.beside].file == header.path]
    created = [(t.name, plan.checkpoint.tensors[t.beside].dtype, (t.length,)) for t in new]
    raw = header.raw
    prefix = len(raw).to_bytes(8, "little") + raw
    if created:
        entries = [(s.name, s.dtype, s.shape) for s in header.tensors]
        prefix = build_header([*entries, *created], header.metadata)
    result = _Written(target.name, "")
    with target.open("wb") as file, header.path.open("rb", buffering=0) as source:
        out = _Tee(file, stop)
        out.write(prefix)
        for spec in header.tensors:
            result.shapes[spec.name] = (spec.dtype, spec.shape)
            if spec.name in plan.operations:
                data, record = _edited(plan, spec, None)
                result.tensors.append(record)
                result.digests[spec.name] = hashlib.sha256(data).hexdigest()
                out.write(data)
            else:
                result.digests[spec.name] = _copy_range(source, out, spec)
        for name, dtype, shape in created:
            data, record = _edited(plan, TensorSpec(name, dtype, shape, target, 0, 0), np.zeros(shape, np.float64))
            result.tensors.append(record)
            result.shapes[name] = (dtype, shape)
            result.digests[name] = hashlib.sha256(data).hexdigest()
            out.write(data)
        result.sha256 = out.sha.hexdigest()
    return result


def _copy_range(source: Any, out: _Tee, spec: TensorSpec) -> str:
    digest = hashlib.sha256()
    source.seek(spec.start)
    left = spec.nbytes
    while left:
        data = source.read(min(left, BLOCK))
        if not data:
            raise Truncated(f"tensor {spec.name!r} ends early: the base changed while it was read", where=spec.file)
        digest.update(data)
        out.write(data)
        left -= len(data)
    return digest.hexdigest()


def _edited(
    plan: EditPlan, spec: TensorSpec, start: np.ndarray[Any, Any] | None
) -> tuple[bytes, TensorRecord]:
    """Bytes of one edited or created tensor, and its record."""
    before = np.asarray(read_tensor(spec) if start is None else start, np.float64)
    if not np.isfinite(before).all():
        raise NonFinite(f"the base's {spec.name!r} holds NaN or infinity", where=spec.file)
    values = before
    operations = plan.operations.get(spec.name, [])
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below, by name
        for operation in operations:
            values = operation.apply(values)
        data = encode(values, spec.dtype)
    after = _decode(data, spec)
    if not np.isfinite(after).all():
        raise NonFinite(f"{spec.name!r} would overflow {spec.dtype}", where=plan.spec.name or "edit",
                        hint="use a smaller amount")  # fmt: skip
    left = None
    if len(operations) == 1 and isinstance(operations[0], ScaleComponent) and operations[0].factor == 0.0:
        left = left_share(before, after, operations[0].u, operations[0].out_axis)
    record = TensorRecord(tensor=spec.name, dtype=spec.dtype, operations=[o.describe() for o in operations], left=left,
                          added=start is not None)  # fmt: skip
    return data, record


def _decode(data: bytes, spec: TensorSpec) -> np.ndarray[Any, Any]:
    from .formats.safetensors import bf16_to_f32

    if spec.dtype == "BF16":
        return bf16_to_f32(np.frombuffer(data, "<u2")).astype(np.float64).reshape(spec.shape)
    kind = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[spec.dtype]
    return np.frombuffer(data, kind).astype(np.float64).reshape(spec.shape)


def _copy_rest(checkpoint: Checkpoint, scratch: Path) -> None:
    """Config, tokenizer, template, licence: every plain file that is neither weights, code nor an old record."""
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_file() and path.suffix not in _LEFT_BEHIND and path.name not in (RECORD, INDEX) \
                and not path.name.startswith("."):  # fmt: skip
            shutil.copyfile(path, scratch / path.name)


def _apply_config(checkpoint: Checkpoint, plan: EditPlan, scratch: Path) -> None:
    if plan.compiled.config:
        config = read_json(checkpoint.path / "config.json")
        target = config["text_config"] if isinstance(config.get("text_config"), dict) else config
        target.update(plan.compiled.config)
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    index = checkpoint.path / INDEX
    if not index.is_file():
        return
    if not plan.new:
        shutil.copyfile(index, scratch / INDEX)
        return
    data = read_json(index)
    for tensor in plan.new.values():
        data["weight_map"][tensor.name] = checkpoint.tensors[tensor.beside].file.name
    if isinstance(data.get("metadata"), dict) and isinstance(data["metadata"].get("total_size"), int):
        data["metadata"]["total_size"] += plan.bytes_written - plan.bytes_read
    (scratch / INDEX).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _record(
    plan: EditPlan, written: list[_Written], base: ModelIdentity, directions: Mapping[str, DirectionMeta],
    transferred: bool, scratch: Path,
) -> Derivation:  # fmt: skip
    outputs = {w.name: w.sha256 for w in written}
    for path in sorted(scratch.iterdir()):
        if path.name not in outputs:
            outputs[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = sorted((n, *w.shapes[n], d) for w in written for n, d in w.digests.items())
    old = plan.checkpoint.path / RECORD
    notes = list(plan.compiled.notes)
    tensors = [t for w in written for t in w.tensors]
    shapes = {n: shape for w in written for n, (_, shape) in w.shapes.items()}
    # a single bias may have had next to nothing along u, so the share that rounding leaves of it says little
    if coarse := [t for t in tensors if t.left is not None and t.left > 0.01 and len(shapes[t.tensor]) > 1]:
        worst = max(coarse, key=lambda t: t.left or 0.0)
        notes.append(f"rounding to {worst.dtype} leaves more than 1% of the direction in {len(coarse)} tensors, "
                     f"at most {worst.left:.1%} in {worst.tensor}")  # fmt: skip
    return Derivation(
        base=base,
        base_source=dict(plan.checkpoint.source),
        base_tensors=len(plan.checkpoint.tensors),
        edit=plan.spec,
        directions=dict(directions),
        transferred=transferred,
        compute={"edit": "numpy fp64, elementwise, fixed order", "cast": "round to nearest even"},
        tensors=tensors,
        fitted=plan.compiled.fitted,
        notes=notes,
        config_changes=plan.compiled.config,
        outputs=dict(sorted(outputs.items())),
        digest=digest_of([[n, d, list(s), h] for n, d, s, h in rows]),
        versions={"weightsmith": __version__, "numpy": np.__version__},
        base_record=read_json(old) if old.is_file() else None,
    )
