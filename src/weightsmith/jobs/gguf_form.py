"""An edited model as a GGUF file: a GGUF edited in its own form, or a folder quantised to a file type.

A GGUF keeps the type of every tensor: the touched ones are dequantised, edited in fp64 and quantised to their own type
again, *held* along the removed directions, since plain rounding to 4 bits would put half of them back; all other tensors
are copied byte for byte. From a folder the edited weights go to a file type such as Q8_0 or Q4_K_M. The record stands in
the metadata under ``weightsmith.derivation``, and whole, with what is left of each direction, beside the file.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..checkpoint import Checkpoint
from ..direction import Direction
from ..edits import Operation
from ..edits.numerics import orthonormal
from ..errors import EditError
from ..execute import execute
from ..formats import gguf, gguf_edit, gguf_export
from ..formats.gguf_hold import Hold
from ..formats.safetensors import TensorSpec
from ..options import RunOptions
from ..plan import EditPlan
from ..records import Derivation, EditSpec, TensorRecord
from ..rewrite import Rewriting
from ..storage import refuse_existing, remembered_sha256, sha256_range, write_whole
from .edit import prepare
from .files import as_checkpoint
from .imported import base_identity


def as_gguf(
    checkpoint: Checkpoint, spec: EditSpec, found: Mapping[str, Direction], out: Path, *, transfer: bool,
    feature: str | None, file_type: str | None, options: RunOptions,
) -> Derivation:  # fmt: skip
    """Write the edited model as the GGUF file ``out``, with a Modelfile for Ollama and the whole record beside it.

    Without a ``file_type`` a model that came as a GGUF keeps its tensors' types, and a folder becomes Q8_0.

    Raises:
        EditError: a constant that llama.cpp would refuse; UnsupportedModel: a family that is not written as GGUF.
        OutputExists: one of the three files is there. UsageError: no such file type.
    """
    out = out.absolute()
    beside = {"modelfile": out.with_name(out.name + ".Modelfile"), "record": out.with_name(out.name + ".weightsmith.json")}
    for path in (out, *beside.values()):
        refuse_existing(path, folder=False)
    plan = prepare(checkpoint, spec, found, transfer=transfer, feature=feature, options=options)
    origin = checkpoint.origin
    if origin is not None and origin.kind == "gguf" and file_type is None:
        record, stops = _in_its_own_form(plan, origin.path, found, out, transfer, options)
    else:
        record, stops = _from_folder(plan, found, out, file_type or "Q8_0", transfer, options)
    digest = as_checkpoint(out).digest(options.progress)
    record = record.model_copy(update={"outputs": {out.name: sha256_range(out)}, "digest": digest})
    write_whole(beside["modelfile"], gguf_export.modelfile(out.name, stops).encode())
    text = json.dumps(record.model_dump(by_alias=True), indent=1, ensure_ascii=False)
    write_whole(beside["record"], text.encode() + b"\n")
    return record


def _metadata(checkpoint: Checkpoint, record: Derivation) -> dict[str, Any]:
    origin = gguf_edit.provenance(name=checkpoint.title, version=checkpoint.source.get("revision"),
                                  organization=_organization(checkpoint.ref), repo_url=_repository(checkpoint.ref),
                                  derivation=record.model_dump(by_alias=True, mode="json"))  # fmt: skip
    return {**origin, "general.name": f"{checkpoint.title} {record.edit.name}".strip()}


def _organization(ref: str) -> str | None:
    return ref.split("/")[0] if _is_hub(ref) else None


def _repository(ref: str) -> str | None:
    return f"https://huggingface.co/{ref.split('@')[0]}" if _is_hub(ref) else None


def _is_hub(ref: str) -> bool:
    return ref.count("/") == 1 and not ref.startswith((".", "/", "~")) and not Path(ref).exists()


def _from_folder(
    plan: EditPlan, found: Mapping[str, Direction], out: Path, file_type: str, transfer: bool, options: RunOptions
) -> tuple[Derivation, tuple[str, ...]]:
    """By way of an edited folder beside the output."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.partial-") as scratch:
        folder = Path(scratch) / "model"
        record = execute(plan, folder, found, transfer=transfer, options=options)
        made = gguf_export.export_gguf(as_checkpoint(folder), out, file_type, progress=options.progress,
                                       metadata=_metadata(plan.checkpoint, record))  # fmt: skip
    return record, tuple(made.stops)


def _in_its_own_form(
    plan: EditPlan, source: Path, found: Mapping[str, Direction], out: Path, transfer: bool, options: RunOptions
) -> tuple[Derivation, tuple[str, ...]]:
    header = gguf.read_header(source)
    added = _added(plan, header)
    base = base_identity(plan.checkpoint, options)
    named = {d: found[d] for d in plan.spec.digests}
    transferred = sum(d.check_model(base, transfer=transfer) for d in named.values()) > 0  # each is checked
    record = Derivation(
        base=base, base_source=dict(plan.checkpoint.source) | {"gguf_sha256": remembered_sha256(source)},
        base_tensors=len(header.tensors), edit=plan.spec, directions={d: x.meta for d, x in named.items()},
        transferred=transferred, compute={"edit": "fp64, elementwise, fixed order", "cast": "to each tensor's own type, held"},
        tensors=[], fitted=plan.compiled.fitted, notes=list(plan.compiled.notes), config_changes={}, outputs={},
        digest="", versions={"weightsmith": __version__, "numpy": np.__version__},
    )  # fmt: skip
    shapes, kinds = gguf_edit.hf_names(source), {t.name: t.dtype for t in plan.checkpoint.origin.tensors.values()}  # type: ignore[union-attr]
    touched = [n for n in plan.operations if n in shapes]
    holds = {n: hold for n in touched if (hold := _hold(plan.operations[n])) is not None}
    left: dict[str, float] = {}

    def measured(name: str, before: Any, after: Any) -> None:
        if name in holds:
            left[name] = _left(holds[name], before, after)

    gguf_edit.edit_gguf(source, out, {n: _whole(n, shapes[n], plan.operations[n]) for n in touched}, holds=holds, added=added,
                        metadata=_metadata(plan.checkpoint, record), measured=measured, progress=options.progress)  # fmt: skip
    rows = [TensorRecord(tensor=n, dtype=kinds.get(n, "F32"), operations=[o.describe() for o in plan.operations.get(n, ())],
                         left=left.get(n), added=n in added) for n in [*touched, *added]]  # fmt: skip
    notes = [*record.notes, *_coarse(rows, shapes)]
    record = record.model_copy(update={"tensors": rows, "notes": notes})
    return record, ()


def _whole(name: str, shape: tuple[int, ...], operations: list[Operation]) -> Any:
    """The operations on a whole fp32 tensor, computed in fp64."""

    def change(values: Any) -> Any:
        data = np.ascontiguousarray(values, "<f4").tobytes()
        spec = TensorSpec(name, "F32", shape, Path(name), 0, len(data))
        out = b"".join(Rewriting(spec, operations, lambda a, b: memoryview(data)[a:b], name).blocks())
        return np.frombuffer(out, "<f4").reshape(shape)

    return change


def _hold(operations: list[Operation]) -> Hold | None:
    """What must survive the quantiser: the products with every cleared direction."""
    cleared = [column for o in operations if o.cleared is not None for column in o.cleared.T]
    if not cleared:
        return None
    return Hold(orthonormal(cleared).T, 0 if operations[0].out_axis == -2 else 1)


def _left(hold: Hold, before: Any, after: Any) -> float:
    def energy(values: Any) -> float:
        wide = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        along = hold.vectors @ wide if hold.axis == 0 else wide @ hold.vectors.T
        return float((along * along).sum())

    had = energy(before)
    return math.sqrt(energy(after) / had) if had else 0.0


def _coarse(rows: list[TensorRecord], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    coarse = [t for t in rows if t.left is not None and t.left > 0.01 and len(shapes.get(t.tensor, ())) > 1]
    if not coarse:
        return []
    worst = max(coarse, key=lambda t: t.left or 0.0)
    return [f"quantising leaves more than 1% of the direction in {len(coarse)} tensors, at most {worst.left:.1%} in "
            f"{worst.tensor} ({worst.dtype})"]  # fmt: skip


def _added(plan: EditPlan, header: gguf.GgufHeader) -> dict[str, gguf_edit.Added]:
    """Biases that the edit creates.

    Raises:
        EditError: llama.cpp would not load them.
    """
    if "model_type" in plan.compiled.config:
        raise EditError("a GGUF of another architecture can't be rewritten as Llama", where=header.path,
                        hint="use --constant fitted")  # fmt: skip
    if plan.new and header.architecture != "llama":
        raise EditError(f"llama.cpp loads no output bias in a {header.architecture} model", where=header.path,
                        hint="use --constant fitted, or export a control vector")  # fmt: skip
    found: dict[str, gguf_edit.Added] = {}
    for name, new in plan.new.items():
        zeros = np.zeros(new.length, np.float32)
        operations = plan.operations.get(name, [])
        found[name] = gguf_edit.Added(_whole(name, (new.length,), operations)(zeros) if operations else zeros)
    return found


__all__ = ["as_gguf"]
