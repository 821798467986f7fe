"""``export``: one edit in another form: a LoRA adapter, a control vector, a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..checkpoint import KEPT, RECORD, Checkpoint, runnable, seen_places
from ..direction import Direction, is_direction, load_direction
from ..errors import RecipeError, UsageError
from ..execute import execute
from ..forms import FORMS, Export, FormTensor
from ..forms.change import change_of, exactly, needs_fit
from ..forms.control_vector import vectors_of, write_control_vector
from ..forms.gguf_lora import pairs_of, write_gguf_lora
from ..forms.lora import CONFIG, WEIGHTS, adapter_of, write_adapter
from ..options import RunOptions
from ..records import Derivation, EditSpec
from ..storage import refuse_existing, sha256_range, whole_folder
from .derive import find_base, load_record
from .edit import HOW_MADE, check_directions, find_directions, load_edit, needed_fits, prepare, resolve_edit
from .files import as_checkpoint, held_to_pins
from .gguf_form import as_gguf
from .imported import base_identity, with_imported

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_WISHES = ("remove", "amplify", "add", "layers", "source", "roles", "constant", "how", "directions")


def export(
    model: Checkpoint | str | Path,
    what: Direction | EditSpec | str | Path | None,
    out: str | Path,
    *,
    form: str,
    lora_dtype: str = "float32",
    file_type: str | None = None,
    transfer: bool = False,
    feature: str | None = None,
    options: RunOptions | None = None,
    **wishes: Any,
) -> Export | Derivation:
    """Write an edit of ``model`` to ``out`` as ``form``, one of :data:`weightsmith.forms.FORMS`, whole or not at all.

    Without ``what``, ``model`` is an edited model, whose record then says base and edit, or an Edit or direction file,
    whose base is the model that it was found on.

    ``what`` and ``wishes`` (amounts, layers, roles …) are as in :func:`weightsmith.jobs.edit`; ``what`` may also be a
    control vector file of llama.cpp or repeng. ``lora_dtype`` is that of a LoRA adapter's factors, ``file_type`` that of a
    GGUF file (by default a GGUF model keeps its tensors' types, and a folder becomes Q8_0).
    ``lora`` makes a folder, the GGUF forms make one file.

    Raises:
        EditError: an edit that this form can't hold, with the reason.
        UsageError: no such form; UnsupportedModel: a family that is not written as GGUF.
        OutputExists, DiskFull, DirectionModelMismatch, NonFinite: as :func:`weightsmith.jobs.edit`.
    """
    options, out = options or RunOptions(), Path(out)
    if form not in FORMS:
        raise UsageError(f"no such form {form!r}", hint=f"one of {', '.join(FORMS)}")
    if lora_dtype not in DTYPES:
        raise UsageError(f"no such dtype {lora_dtype!r} for an adapter", hint=f"one of {', '.join(DTYPES)}")
    refuse_existing(out, folder=form in ("weights", "lora"))
    if what is None:
        model, what, wishes = of_its_own(model, wishes, options)
        transfer = transfer or bool(wishes.pop("transferred", False))
    opened = runnable(as_checkpoint(model, options), dequantize=options.dequantize, progress=options.progress)
    checkpoint = held_to_pins(opened, options, weights=form != "weights")
    what, wishes = with_imported(checkpoint, what, dict.fromkeys(_WISHES) | wishes, transfer=transfer, options=options)
    spec, found = resolve_edit(checkpoint, what, **wishes)
    if form == "gguf":
        return as_gguf(checkpoint, spec, found, out, transfer=transfer, feature=feature, file_type=file_type,
                       options=options)  # fmt: skip
    if form == "weights":
        plan = prepare(checkpoint, spec, found, transfer=transfer, feature=feature, options=options)
        return execute(plan, out, found, transfer=transfer, options=options)
    check_directions(checkpoint, spec, found, transfer=transfer, options=options)
    if form == "control-vector":
        return _as_control_vector(checkpoint, spec, found, out, transfer, options)
    fits = needed_fits(checkpoint, spec if any(map(needs_fit, spec.steps)) else exactly(spec), found, feature, options)
    change = change_of(checkpoint, spec, found, fits)
    if form == "gguf-lora":
        entries, rows, alpha = pairs_of(checkpoint, change)
        record = _record("gguf-lora", checkpoint, spec, found, transfer, options, rows, change.fitted, change.notes)
        write_gguf_lora(out, checkpoint, entries, alpha, record)
        return record
    adapter = adapter_of(checkpoint, change)
    record = _record("lora", checkpoint, spec, found, transfer, options, adapter.rows, change.fitted,
                     [*change.notes, *adapter.notes])  # fmt: skip
    with whole_folder(out) as folder:
        write_adapter(folder, checkpoint, adapter, DTYPES[lora_dtype])
        _keep(folder, record, found)
    return record


def of_its_own(
    given: Checkpoint | str | Path, wishes: dict[str, Any], options: RunOptions
) -> tuple[Checkpoint | str, Direction | EditSpec | str | Path, dict[str, Any]]:
    """Base, edit and wishes of an edited model, an Edit file or a direction file that stands alone.

    Raises:
        UsageError: the base is not known on this machine.
        RecipeError: directions that can't be found, or that were found on different models.
    """
    path = Path(given.path if isinstance(given, Checkpoint) else given).expanduser()
    if (path / RECORD).is_file():
        model = as_checkpoint(given, options)
        record = load_record(model)
        kept = sorted((model.path / KEPT).glob("direction-*.safetensors"))
        more = {"directions": kept, "transferred": record.transferred}
        return find_base(model, record, None, options), record.edit, wishes | more
    if not path.exists() and not isinstance(given, Checkpoint):
        raise UsageError("no such model, Edit or direction", where=given, hint=HOW_MADE)
    if not path.is_file() or path.suffix == ".gguf":
        raise UsageError("say which edit: an Edit or a direction file", where=given,
                         hint="weightsmith export MODEL EDIT --as FORM -o OUT")  # fmt: skip
    if is_direction(path):
        return _home([load_direction(path)], options), path, wishes
    spec = load_edit(path)
    found = find_directions(spec, path.absolute().parent, wishes.get("directions") or [])
    return _home(list(found.values()), options), path, wishes


def _home(directions: list[Direction], options: RunOptions) -> Checkpoint | str:
    """The model that directions were found on, where it was last seen, else by its reference."""
    models = {d.meta.model.digest: d.meta.model for d in directions}
    if len(models) != 1:
        raise RecipeError("its directions were found on different models", hint="name the model before the Edit")
    who = next(iter(models.values()))
    for place in seen_places(who.digest):
        checkpoint = runnable(as_checkpoint(place, options), dequantize=options.dequantize)
        if checkpoint.digest() == who.digest:
            return checkpoint
    return who.ref


def _as_control_vector(
    checkpoint: Checkpoint,
    spec: EditSpec,
    found: Mapping[str, Direction],
    out: Path,
    transfer: bool,
    options: RunOptions,
) -> Export:
    vectors, notes = vectors_of(checkpoint, spec, found)
    rows = [FormTensor(target=f"direction.{layer}", rank=0, operations=["added behind the block"],
                       constant=float(np.sqrt((vector * vector).sum()))) for layer, vector in vectors.items()]  # fmt: skip
    record = _record("control-vector", checkpoint, spec, found, transfer, options, rows, (), notes)
    write_control_vector(out, checkpoint, vectors, record)
    return record


def _record(
    form: Any, checkpoint: Checkpoint, spec: EditSpec, found: Mapping[str, Direction], transfer: bool,
    options: RunOptions, rows: list[FormTensor], fitted: Any, notes: Any,
) -> Export:  # fmt: skip
    """What is said of the output; the base's digest is taken from all its bytes, and the directions checked against it."""
    base = base_identity(checkpoint, options)
    named = {d: found[d] for d in spec.digests}
    transferred = [d.check_model(base, transfer=transfer) for d in named.values()]
    return Export(form=form, base=base, base_source=dict(checkpoint.source), edit=spec, tensors=rows,
                  directions={d: direction.meta for d, direction in named.items()}, transferred=any(transferred),
                  fitted=list(fitted), notes=list(notes),
                  versions={"weightsmith": __version__, "numpy": np.__version__})  # fmt: skip


def _keep(folder: Path, record: Export, found: Mapping[str, Direction]) -> None:
    """The record and the directions beside an adapter, so that anyone who has the base can make it again."""
    (folder / KEPT).mkdir()
    for digest in record.directions:
        (folder / KEPT / f"direction-{digest[:16]}.safetensors").write_bytes(found[digest].to_bytes())
    record.outputs = {name: sha256_range(folder / name) for name in (CONFIG, WEIGHTS)}
    text = json.dumps(record.as_record(), indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


__all__ = ["export"]
