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
from ..checkpoint import INDEX, KEPT, RECORD, Checkpoint, open_checkpoint, read_json, runnable, seen_at
from ..compare import changed_tensors, diff_checkpoints
from ..direction import Direction, is_direction, load_direction
from ..edits import F64
from ..errors import DigestMismatch, FormatError, RecipeError, UsageError, WeightsmithError
from ..execute import FITS, KEEP_TOTAL, copy_small_files, file_plans, lanes, small_digests, write_small_files
from ..formats.safetensors import TensorDigest, read_header, read_tensor
from ..held import held_folder
from ..lanes import FilePlan, FileResult, Lane, Stopped, rewritten
from ..options import RunOptions
from ..plan import EditPlan, plan_edit
from ..records import DERIVATION, Derivation, DiffRecord, FittedConstant, RebuildRecord, parse
from ..storage import digest_of, parallel_map, require_space
from .edit import find_directions
from .files import as_checkpoint


def diff(a: Checkpoint | str | Path, b: Checkpoint | str | Path, *, options: RunOptions | None = None) -> DiffRecord:
    """What differs between two models, exactly, tensor by tensor and file by file.

    Raises:
        UsageError, FormatError: one of them can't be opened.
    """
    return diff_checkpoints(as_checkpoint(a, options), as_checkpoint(b, options))


def load_record(model: Checkpoint) -> Derivation:
    """The derivation record of an edited model.

    Raises:
        UsageError: the folder has none.
        RecipeError: it is malformed, or of a newer version.
    """
    path = model.path / RECORD
    if model.kind != "folder" or not path.is_file():
        raise UsageError("there is no record of how this model was made", where=model.path,
                         hint=f"only models that `weightsmith edit` wrote have a {RECORD}")  # fmt: skip
    record: Derivation = parse(Derivation, read_json(path), path, DERIVATION)
    return record


def find_base(record: Derivation, base: Checkpoint | str | Path | None, options: RunOptions) -> Checkpoint:
    """The base of a record: the given model, or the one that was last seen with its digest; checked by digest.

    Raises:
        UsageError: no base is given and none is known here.
        DigestMismatch: the model that is given is not the base.
    """
    if base is None:
        place = seen_at(record.base.digest)
        if place is None:
            raise UsageError(f"the base {record.base.ref} ({record.base.digest[:16]}…) is not known on this machine",
                             hint="name it with --base")  # fmt: skip
        base = place
    found = runnable(as_checkpoint(base, options), dequantize=options.dequantize, progress=options.progress)
    digest = found.digest(options.progress)
    if digest != record.base.digest:
        raise DigestMismatch(f"this is not the base: its digest is {digest[:16]}…, the record names "
                             f"{record.base.digest[:16]}… ({record.base.ref})", where=found.path,
                             hint="fetch the revision that the record names")  # fmt: skip
    return found


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
    """Make a derivative again from its base and its record, without writing it, and compare every byte.

    Raises:
        UsageError: no record, or no base; DigestMismatch: not the base that the record names.
        RecipeError: a direction is missing.
    """
    options = options or RunOptions()
    there = as_checkpoint(model, options)
    record = load_record(there)
    found = find_base(record, base, options)
    plan = replan(there, record, found, directions)
    results = _virtually(plan, options)
    digests = {n: d for r in results for n, d in r.digests.items()}
    actual = there.tensor_digests(options.progress)
    order = [r.spec.name for f in file_plans(plan) for r in f.regions]
    wrong = set(changed_tensors(digests, actual)) | (digests.keys() ^ actual.keys())
    tensors = [n for n in [*order, *sorted(actual.keys() - set(order))] if n in wrong]
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch)
        write_small_files(plan, small, {d: _direction(there, record, d, directions) for d in plan.spec.digests}
                          if plan.operations else {})  # fmt: skip
        expected = {**{r.name: r.sha256 for r in results}, **small_digests(small, [])}
    files = [n for n in sorted(expected.keys() | record.outputs.keys()) if not _holds(there.path / n, expected.get(n))]
    notes = []
    if record.outputs != expected:
        odd = sorted(n for n in expected.keys() | record.outputs.keys() if expected.get(n) != record.outputs.get(n))
        notes.append(f"the record claims another digest of {', '.join(odd[:3])}{' and others' if len(odd) > 3 else ''}")
    shapes = {r.spec.name: (r.spec.dtype, r.spec.shape) for f in file_plans(plan) for r in f.regions}
    rows = [[n, shapes[n][0], list(shapes[n][1]), digests[n]] for n in sorted(digests)]
    return RebuildRecord(
        model=there.ref, base=found.ref, base_digest=record.base.digest, record_digest=record.digest,
        rebuilt_digest=digest_of(rows), found_digest=there.digest_of(actual), tensors=tensors, files=files,
        first_tensor=tensors[0] if tensors else None, made_with=record.versions,
        rebuilt_with={"weightsmith": __version__, "numpy": np.__version__}, notes=notes,
    )  # fmt: skip


def _direction(model: Checkpoint, record: Derivation, digest: str, given: list[Path] | None) -> Direction:
    return kept_directions(model, record, given or [])[digest]


def _holds(path: Path, digest: str | None) -> bool:
    if digest is None or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _virtually(plan: EditPlan, options: RunOptions) -> list[FileResult]:
    """What each output file would be, digested and not written."""
    files = file_plans(plan)
    count = lanes(options, len(files))
    total, done, lock = sum(f.size for f in files), 0, threading.Lock()

    def one(file: FilePlan) -> FileResult:
        nonlocal done
        result, whole = FileResult(file.name), hashlib.sha256(file.prefix)
        for region in file.regions:
            digest = TensorDigest(region.spec.dtype)
            for block in rewritten(file, region, KEEP_TOTAL // count, plan.spec.name or "edit"):
                whole.update(block)
                digest.update(block)
            result.digests[region.spec.name] = digest.hexdigest()
            with lock:
                done += region.spec.nbytes
                options.report("rebuilding", done, total)
        result.sha256 = whole.hexdigest()
        return result

    return parallel_map(one, files, workers=count)


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
    record = load_record(as_checkpoint(model, options))
    found = find_base(record, base, options)
    plan = EditPlan.nothing(found, record.edit)
    files = file_plans(plan)
    require_space(Path(out).absolute().parent, plan.bytes_written + (16 << 20))
    stop = threading.Event()
    with held_folder(Path(out), digest_of([record.base.digest, "undo"])) as held:
        lane = Lane(held.path, stop, KEEP_TOTAL, "undo", lambda _more: None)
        results = parallel_map(lane.write, files, workers=lanes(options, len(files)), stop=stop, quiet=Stopped)
        digest = found.digest_of({n: d for r in results for n, d in r.digests.items()})
        if digest != record.base.digest:
            raise DigestMismatch("the base changed while it was copied", where=found.path, hint="try again")
        copy_small_files(found, held.path)
        if (found.path / INDEX).is_file():
            (held.path / INDEX).write_bytes((found.path / INDEX).read_bytes())
        if (found.path / RECORD).is_file():  # the base is itself a derivative
            (held.path / RECORD).write_bytes((found.path / RECORD).read_bytes())
            if (found.path / KEPT).is_dir():
                shutil.copytree(found.path / KEPT, held.path / KEPT)
    open_checkpoint(str(out), offline=True).remember({n: d for r in results for n, d in r.digests.items()})
    return record
