"""``rebuild``, ``diff`` and ``undo``: what a derivative is, from its record and its base. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np

from .. import __version__
from ..checkpoint import KEPT, RECORD, Checkpoint, open_checkpoint, read_json, runnable, seen_places
from ..compare import changed_tensors, diff_checkpoints
from ..direction import Direction, is_direction, load_direction
from ..edits import F64
from ..errors import DigestMismatch, FormatError, RecipeError, UsageError, WeightsmithError
from ..execute import (
    FITS,
    KEEP_TOTAL,
    MARGIN,
    check_unchanged,
    copy_small_files,
    file_plans,
    kept_files,
    lanes,
    make_record,
    refuse_inside,
    refuse_stray_links,
    small_digests,
    small_files,
    write_small_files,
)
from ..formats.safetensors import TensorDigest, digest_and_check, read_header, read_tensor
from ..held import held_folder, unfinished_bytes
from ..lanes import FilePlan, FileResult, Lane, Stopped, rewritten
from ..options import RunOptions
from ..plan import EditPlan, plan_edit
from ..records import (
    DERIVATION,
    EDIT,
    Derivation,
    DiffRecord,
    EditSpec,
    FittedConstant,
    ModelIdentity,
    RebuildRecord,
    parse,
)
from ..storage import digest_of, parallel_map, refuse_existing, require_space
from .edit import find_directions
from .files import as_checkpoint, held_to_pins


def diff(a: Checkpoint | str | Path, b: Checkpoint | str | Path, *, options: RunOptions | None = None) -> DiffRecord:
    """What differs between two models, exactly, tensor by tensor and file by file.

    A GGUF file beside a folder, whose types have nothing in common, is compared as the bf16 folder that it stands for: what an
    edit of it began from. The record notes that.

    Raises:
        UsageError, FormatError: one of them can't be opened.
        UnsupportedModel: a GGUF file that no folder stands for.
    """
    options = options or RunOptions()
    models = [held_to_pins(as_checkpoint(m, options), options) for m in (a, b)]
    notes = []
    if {m.kind for m in models} == {"folder", "gguf"}:
        notes = [f"{m.title} is a GGUF file: compared is the bf16 folder that it stands for" for m in models if m.kind == "gguf"]
        models = [runnable(m, progress=options.progress) for m in models]
    return diff_checkpoints(*models).model_copy(update={"notes": notes})


def load_record(model: Checkpoint) -> Derivation:
    """The derivation record of an edited model.

    Raises:
        UsageError: the folder has none.
        RecipeError: it is malformed, or of a newer version.
    """
    path = model.path / RECORD
    if model.kind == "gguf" and (beside := model.path.with_name(f"{model.path.name}.weightsmith.json")).is_file():
        raise UsageError("a GGUF is not rebuilt or undone: its weights were quantised again", where=model.path,
                         hint=f"its record is in {beside.name}; rebuild the edit as weights and export it again")  # fmt: skip
    if model.kind != "folder" or not path.is_file():
        raise UsageError("there is no record of how this model was made", where=model.path,
                         hint=f"only models that `weightsmith edit` wrote have a {RECORD}")  # fmt: skip
    data = read_json(path)
    record: Derivation = parse(Derivation, data, path, DERIVATION)
    parse(EditSpec, data["edit"], path, EDIT)  # its own schema as well
    return record


def find_base(
    model: Checkpoint, record: Derivation, base: Checkpoint | str | Path | None, options: RunOptions
) -> Checkpoint:
    """The base of a record: the given model, or one that was seen with its digest and still has it; of several the one
    whose other files are those that ``model`` has from its base.

    Raises:
        UsageError: no base is given and none is known here.
        DigestMismatch: the model that is given is not the base.
    """
    if base is None:
        known = None
        for place in seen_places(record.base.digest):
            with contextlib.suppress(WeightsmithError, OSError):  # something else stands there now
                found = as_checkpoint(place, options)
                if found.kind != "folder" or found.path.resolve() == model.path.resolve() \
                        or found.digest(options.progress) != record.base.digest:  # fmt: skip
                    continue
                if _has_its_files(found, record):
                    return found
                known = known or found
        if known is not None:
            return known
        raise UsageError(f"the base {record.base.ref} ({record.base.digest[:16]}…) is not known on this machine",
                         hint="name it with --base")  # fmt: skip
    dequantize = options.dequantize or "dequantised_from" in record.base_source
    found = held_to_pins(runnable(as_checkpoint(base, options), dequantize=dequantize, progress=options.progress), options)
    digest = found.digest(options.progress)
    if digest != record.base.digest:
        raise DigestMismatch(f"this is not the base: its digest is {digest[:16]}…, the record names "
                             f"{record.base.digest[:16]}… ({record.base.ref})", where=found.ref,
                             hint="fetch the revision that the record names")  # fmt: skip
    return found


def _has_its_files(base: Checkpoint, record: Derivation) -> bool:
    """Whether a model's small files are the ones that came along when the record was made."""
    rewritten = {"config.json"} if record.config_changes else set()
    own = base.path / RECORD
    return (read_json(own) if own.is_file() else None) == record.base_record and all(
        _holds(path, record.outputs.get(path.name)) for path in small_files(base) if path.name not in rewritten)  # fmt: skip


def replan(model: Checkpoint, record: Derivation, base: Checkpoint, given: list[Path] | None = None) -> EditPlan:
    """The plan that the record stands for, from the directions and fitted vectors that are kept beside it.

    Raises:
        RecipeError: a direction is missing or is not the one that the record names.
    """
    directions: dict[str, Direction] = {}
    if record.tensors:
        directions = kept_directions(model, record, given or [])
    fits: dict[int, tuple[F64, FittedConstant]] = {}
    reports = {f.layer: f for f in record.fitted}
    file = model.path / KEPT / FITS
    if reports and not file.is_file():
        raise RecipeError(f"{KEPT}/{FITS} is missing, which holds the constants' fitted vectors", where=model.path)
    if reports:
        for spec in read_header(file).tensors:
            if not spec.name.isdecimal() or int(spec.name) not in reports or len(spec.shape) != 1 or spec.dtype != "F64":
                raise FormatError(f"{spec.name!r} is not the fitted vector of a layer of the record", where=file)
            fits[int(spec.name)] = (np.asarray(read_tensor(spec), np.float64), reports[int(spec.name)])
    if not record.tensors and not record.config_changes:
        return EditPlan.nothing(base, record.edit)
    return plan_edit(base, record.edit, directions, fits)


def kept_directions(model: Checkpoint, record: Derivation, given: list[Path]) -> dict[str, Direction]:
    """The directions of a record, by digest: from the given files, from beside it, or from the cache."""
    found: dict[str, Direction] = {}
    beside = model.path / KEPT
    for path in sorted(beside.glob("direction-*.safetensors")) if beside.is_dir() else []:
        with contextlib.suppress(WeightsmithError):  # a damaged one is as good as none: it is missed below, by digest
            if is_direction(path):
                direction = load_direction(path)
                found[direction.digest()] = direction
    wanted = set(record.edit.digests)
    if not wanted <= found.keys():
        found.update(find_directions(record.edit, None, given, found))
    return {d: found[d] for d in record.edit.digests}


def rebuild(
    model: Checkpoint | str | Path, *, base: Checkpoint | str | Path | None = None, directions: list[Path] | None = None,
    options: RunOptions | None = None,
) -> RebuildRecord:  # fmt: skip
    """Make a derivative again from its base and its record, without writing it, and compare every byte, and the record
    itself with the one that comes out. What can't be known from files is taken as it stands: names and descriptions,
    where the base was, and how well a fitted constant did on prompts.

    Raises:
        UsageError: no record, or no base; DigestMismatch: not the base that the record names.
        RecipeError: a direction is missing.
    """
    options = options or RunOptions()
    there = as_checkpoint(model, options)
    record = load_record(there)
    found = find_base(there, record, base, options)
    plan = replan(there, record, found, directions)
    results = _virtually(plan, options)
    digests = {n: d for r in results for n, d in r.digests.items()}
    names = kept_directions(there, record, directions or []) if plan.operations else {}
    with tempfile.TemporaryDirectory() as scratch:
        write_small_files(plan, Path(scratch), names)
        made = _made_again(plan, record, found, results, names, small_digests(Path(scratch), []))
    expected = made.outputs
    files = [n for n in sorted(expected.keys() | record.outputs.keys()) if not _holds(there.path / n, expected.get(n))]
    # digests that are remembered say nothing of a disk that went bad: where a file is not what it should be, read it
    actual = _read(there) if {f.name for f in there.weight_files} & {*files} else there.tensor_digests(options.progress)
    order = [r.spec.name for f in file_plans(plan) for r in f.regions]
    wrong = set(changed_tensors(digests, actual)) | (digests.keys() ^ actual.keys())
    tensors = [n for n in [*order, *sorted(actual.keys() - set(order))] if n in wrong]
    notes = []
    if claims := _claims(record, made):
        files.append(RECORD)
        notes.append(f"the record claims other {', '.join(claims)}")
    if extra := sorted(n for n in _names(there) if n not in {*expected, *record.outputs, RECORD}):
        notes.append(f"{len(extra)} files are there that the record does not name: {', '.join(extra[:3])}"
                     f"{' and others' if len(extra) > 3 else ''}")  # fmt: skip
    return RebuildRecord(
        model=there.ref, base=found.ref, base_digest=record.base.digest, record_digest=record.digest,
        rebuilt_digest=made.digest, found_digest=there.digest_of(actual), tensors=tensors, files=files,
        first_tensor=tensors[0] if tensors else None, made_with=record.versions,
        rebuilt_with={"weightsmith": __version__, "numpy": np.__version__}, notes=notes,
    )  # fmt: skip


def _made_again(
    plan: EditPlan, record: Derivation, base: Checkpoint, results: list[FileResult], directions: dict[str, Direction],
    small: dict[str, str],
) -> Derivation:  # fmt: skip
    """The record that this edit of this base would get today."""
    arch = base.architecture
    identity = ModelIdentity(ref=record.base.ref, digest=record.base.digest, family=arch.family.name,
                             n_layers=arch.n_layers, d_model=arch.d_model)  # fmt: skip
    if not plan.operations:  # nothing was done with the directions, so they are not kept
        made = make_record(plan, results, identity, {}, record.transferred, small)
        return made.model_copy(update={"directions": record.directions, "notes": record.notes})
    transferred = any(d.check_model(identity, transfer=True) for d in directions.values())
    return make_record(plan, results, identity, directions, transferred, small)


def _claims(record: Derivation, made: Derivation) -> list[str]:
    """Fields of a record that are not what comes out; the wording of another version is let pass."""
    fields = ["base_tensors", "directions", "transferred", "config_changes", "outputs", "digest"]
    if record.versions.get("weightsmith") == __version__:
        fields += ["base", "compute", "notes"]
    if made.base_record is not None:  # the base at hand may be the same weights without their record
        fields.append("base_record")
    odd = [name for name in fields if getattr(record, name) != getattr(made, name)]
    exact = record.versions == made.versions
    mine, theirs = ([t if exact else (t.tensor, t.dtype, t.added) for t in r.tensors] for r in (record, made))
    return odd + (["tensors"] if mine != theirs else [])


def _read(model: Checkpoint) -> dict[str, str]:
    rows = parallel_map(digest_and_check, model.tensors.values())
    return {name: row[0] for name, row in zip(model.tensors, rows, strict=True)}


def _names(model: Checkpoint) -> set[str]:
    """Plain files of a folder, by relative path; hidden ones are other programs' own."""
    found = (p.relative_to(model.path) for p in model.path.rglob("*") if p.is_file())
    return {p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts)}


def _holds(path: Path, digest: str | None) -> bool:
    if digest is None or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _virtually(plan: EditPlan, options: RunOptions) -> list[FileResult]:
    """What each output file would be, digested and not written."""
    files = file_plans(plan)
    count = lanes(options, plan)
    total, done, lock, stop = sum(f.size for f in files), 0, threading.Lock(), threading.Event()

    def one(file: FilePlan) -> FileResult:
        nonlocal done
        result, whole = FileResult(file.name), hashlib.sha256(file.prefix)
        for region in file.regions:
            digest = TensorDigest(region.spec.dtype)
            for block in rewritten(file, region, KEEP_TOTAL // count, plan.spec.name or "edit", result.tensors):
                if stop.is_set():
                    raise Stopped
                whole.update(block)
                digest.update(block)
            result.digests[region.spec.name] = digest.hexdigest()
            with lock:
                done += region.spec.nbytes
                options.report("rebuilding", done, total)
        result.sha256 = whole.hexdigest()
        return result

    return parallel_map(one, files, workers=count, stop=stop, quiet=Stopped)


def undo(
    model: Checkpoint | str | Path, out: str | Path, *, base: Checkpoint | str | Path | None = None,
    options: RunOptions | None = None,
) -> Derivation:  # fmt: skip
    """Write the base of a derivative to ``out``, byte for byte, checked against the digest that the record names.

    Raises:
        UsageError: no record, or no base is known here; DigestMismatch: not the base that the record names.
        OutputExists, OutputBusy, DiskFull: nothing is written.
    """
    options = options or RunOptions()
    refuse_existing(Path(out))
    there = as_checkpoint(model, options)
    record = load_record(there)
    found = find_base(there, record, base, options)
    for folder in (there, found):
        refuse_inside(folder, Path(out))
    refuse_stray_links(found)
    plan = EditPlan.nothing(found, record.edit)
    files = file_plans(plan)
    require_space(Path(out).absolute().parent, plan.bytes_written + MARGIN - unfinished_bytes(Path(out)))
    check_unchanged(found)
    stop = threading.Event()
    with held_folder(Path(out), digest_of([record.base.digest, "undo"])) as held:
        lane = Lane(held.path, stop, KEEP_TOTAL, "undo", lambda _more: None)
        results = parallel_map(lane.write, files, workers=lanes(options, plan), stop=stop, quiet=Stopped)
        digest = found.digest_of({n: d for r in results for n, d in r.digests.items()})
        if digest != record.base.digest:
            raise DigestMismatch("the base changed while it was copied", where=found.path, hint="try again")
        copy_small_files(found, held.path)
        for path in kept_files(found):  # a record where the base is itself a derivative
            target = held.path / path.relative_to(found.path)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    written = open_checkpoint(str(Path(out).absolute()), offline=True)
    written.remember({n: d for r in results for n, d in r.digests.items()})
    return record
