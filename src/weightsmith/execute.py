"""Carry out an edit plan: a new folder that appears whole or not at all.

Untouched byte ranges are moved by the kernel; touched tensors are edited in a fixed order of elementwise operations (so
the bytes depend on neither threads nor BLAS), cast back to nearest even and checked to be finite. The output keeps the
shards, the metadata and the tensor order of the input; a created bias comes at the end of the shard that holds its
weight. Each file is read back once, for its SHA-256 and for its tensors' digests; the latter are compared with the
base's, which proves that only planned tensors changed and that the base did not change while it was read.

Accepted trade-off: weight files are not flushed to the disk before the final rename, as `cp` does not either. A kill
leaves the output absent or complete; after a power cut its digests tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import __version__
from .checkpoint import INDEX, KEPT, PICKLES, RECORD, Checkpoint, open_checkpoint, read_json
from .direction import Direction
from .errors import BaseChanged, DigestMismatch, EditError, FormatError, UsageError
from .formats.safetensors import TensorSpec, build_header, read_header, write_file
from .held import HeldFolder, held_folder, unfinished_bytes
from .lanes import STILL, FilePlan, FileResult, Lane, Region, Stopped
from .options import RunOptions
from .plan import EditPlan
from .records import Derivation, ModelIdentity, TensorRecord
from .storage import (
    digest_of,
    fsync,
    parallel_map,
    remember_sha256,
    require_space,
    sha256_range,
    stat_key,
    usable_cores,
)
from .trust.pins.guard import Held

_LEFT_BEHIND = (*PICKLES, ".py", ".gguf", ".safetensors", ".lock")
_CASTS = {"nearest": "round to nearest even", "balanced": "to a neighbour, balanced along the cleared directions"}
#: file of fitted vectors: F64, one a layer
FITS = "fits.safetensors"
MEMORY = 1 << 30  # bytes that an edit stays under, whatever the model
MARGIN = 16 << 20  # bytes of disk for the small files
KEEP_TOTAL = 1 << 28  # bytes of touched tensors that all lanes together hold between turns


def execute(
    plan: EditPlan,
    out: Path,
    directions: Mapping[str, Direction],
    *,
    transfer: bool = False,
    resume: bool = False,
    options: RunOptions | None = None,
) -> Derivation:
    """Write the edited model and its record to ``out``.

    ``directions`` are by digest; those that the edit names go into the output with its record, so that anyone who has
    the base can rebuild it. ``resume`` goes on with an unfinished run of the same edit, and keeps what is finished
    should this one be interrupted.

    Raises:
        OutputExists, OutputBusy, DiskFull: nothing is written or left behind.
        NonFinite: NaN or infinity in the base, or an edit that overflows its dtype.
        BaseChanged: the base is not what it was when the work began.
        DirectionModelMismatch: a direction of other weights, without ``transfer``.
        UsageError: ``out`` lies inside the base folder; a file of the base is a link to somewhere else.
    """
    options = options or RunOptions()
    checkpoint = plan.checkpoint
    refuse_inside(checkpoint, out)
    refuse_stray_links(checkpoint)
    require_space(out.absolute().parent, plan.bytes_written + MARGIN - unfinished_bytes(out))
    before = [stat_key(f) for f in checkpoint.weight_files]
    check_unchanged(checkpoint)
    known = checkpoint.known_digests()
    named = {d: directions[d] for d in plan.spec.digests}
    with held_folder(out, run_key(plan, before), resume=resume) as held:
        results = _write_all(plan, held, known, options)
        base = _identify(plan, results, known, before)
        transferred = [d.check_model(base, transfer=transfer) for d in named.values()]
        write_small_files(plan, held.path, named)
        record = make_record(plan, results, base, named, any(transferred), small_digests(held.path, results))
        text = json.dumps(record.model_dump(by_alias=True), indent=1, ensure_ascii=False)
        (held.path / RECORD).write_text(text + "\n", encoding="utf-8")
        fsync(held.path / RECORD)
    _remember(out, record, results)
    return record


def refuse_inside(checkpoint: Checkpoint, out: Path) -> None:
    """Raise :class:`UsageError` when ``out`` is the model's folder or lies in it."""
    real = Path(os.path.realpath(out))  # Path.resolve raises on a loop of links
    if checkpoint.path.resolve() in (real, *real.parents):
        raise UsageError("the output lies inside the base model", where=out, hint="choose another place with -o")


def refuse_stray_links(checkpoint: Checkpoint) -> None:
    """Refuse files that would come along and are links out of the folder: what they point at is not the model's, and the
    output may be published. A hub snapshot's links into its own ``blobs`` are what they should be.

    Raises:
        UsageError: with the name of the link.
    """
    folder = checkpoint.path.resolve()
    homes = [folder, *(parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots")]
    for path in (*checkpoint.weight_files, *small_files(checkpoint), *kept_files(checkpoint)):
        real = path.resolve()
        if not any(home.resolve() in real.parents for home in homes):
            raise UsageError(f"{path.name!r} is a link to {real}, outside of the model's folder; it was not copied",
                             where=checkpoint.path, hint="put the file itself there, or open the folder that holds it")  # fmt: skip


def check_unchanged(checkpoint: Checkpoint) -> None:
    """That headers and config are still the ones that the plan was made from.

    Raises:
        BaseChanged: they are not.
    """
    what = None
    try:
        what = next((h.path.name for h in checkpoint.headers if read_header(h.path).raw != h.raw), None)
        config = checkpoint.path / "config.json"
        if json.dumps(read_json(config), sort_keys=True) != json.dumps(dict(checkpoint.config), sort_keys=True):
            what = config.name
    except (OSError, FormatError) as error:
        raise BaseChanged(f"a file changed after the base was opened: {error}", where=checkpoint.path, hint=STILL) from error
    if what is not None:
        raise BaseChanged(f"{what!r} changed after the base was opened", where=checkpoint.path, hint=STILL)


def run_key(plan: EditPlan, base: Sequence[Any]) -> str:
    """What decides the bytes of an unfinished folder: base files, config, edit, fitted vectors and version."""
    fits = {str(layer): np.asarray(w).tolist() for layer, (w, _) in sorted(plan.fits.items())}
    config = hashlib.sha256((plan.checkpoint.path / "config.json").read_bytes()).hexdigest()
    return digest_of([list(base), config, plan.spec.model_dump(by_alias=True), fits, __version__])


def file_plans(plan: EditPlan) -> list[FilePlan]:
    """Every output weight file: the base's layout, created biases at the end of their shard."""
    return [_file_plan(plan, header) for header in plan.checkpoint.headers]


def _file_plan(plan: EditPlan, header: Any) -> FilePlan:
    new = [t for t in plan.new.values() if plan.checkpoint.tensors[t.beside].file == header.path]
    created = [(t.name, plan.checkpoint.tensors[t.beside].dtype, (t.length,)) for t in new]
    prefix = len(header.raw).to_bytes(8, "little") + header.raw
    if created:
        entries = [(s.name, s.dtype, s.shape) for s in header.tensors]
        prefix = build_header([*entries, *created], header.metadata)
    regions: list[Region] = []
    balanced = plan.spec.rounding == "balanced"
    position = len(prefix)
    for spec in header.tensors:
        moved = TensorSpec(spec.name, spec.dtype, spec.shape, spec.file, position, spec.nbytes)
        regions.append(Region(moved, spec, plan.operations.get(spec.name, ()), balanced))
        position += spec.nbytes
    for name, dtype, shape in created:
        nbytes = shape[0] * (plan.checkpoint.tensors[plan.new[name].beside].nbytes
                             // plan.checkpoint.tensors[plan.new[name].beside].numel)  # fmt: skip
        spec = TensorSpec(name, dtype, shape, header.path, position, nbytes)
        regions.append(Region(spec, None, plan.operations.get(name, ()), balanced))
        position += nbytes
    return FilePlan(header.path.name, header.path, prefix, regions)


def needs(plan: EditPlan, options: RunOptions) -> dict[str, int]:
    """Bytes of memory (at most) and of disk that carrying out a plan takes, and how many lanes it runs in."""
    count = lanes(options, plan)
    return {"lanes": count, "peak_memory": plan.peak_memory(count, KEEP_TOTAL // count),
            "disk_needed": plan.bytes_written + MARGIN}  # fmt: skip


def lanes(options: RunOptions, plan: EditPlan) -> int:
    """How many files are written side by side: as many as cores, as long as their blocks fit :data:`MEMORY`."""
    count = max(1, min(options.threads or usable_cores(), len(plan.checkpoint.headers)))
    while count > 1 and plan.peak_memory(count, KEEP_TOTAL // count) > MEMORY:
        count -= 1
    return count


def _write_all(
    plan: EditPlan, held: HeldFolder, known: Mapping[str, str] | None, options: RunOptions
) -> list[FileResult]:
    files = file_plans(plan)
    count = lanes(options, plan)
    total, done, lock, stop = sum(f.size for f in files), 0, threading.Lock(), threading.Event()

    def report(more: int) -> None:
        nonlocal done
        with lock:
            done += more
            options.report("writing weights", done, total)

    lane = Lane(held.path, stop, KEEP_TOTAL // count, plan.spec.name or "edit", report,
                finite=() if known is None else known.keys(), alone=count >= usable_cores())  # fmt: skip

    def write(file: FilePlan) -> FileResult:
        if (note := _finished(held, file)) is not None:
            report(file.size)
            return note
        result = lane.write(file)
        held.note(file.name, result.as_note())
        return result

    return parallel_map(write, files, workers=count, stop=stop, quiet=Stopped)


def _finished(held: HeldFolder, file: FilePlan) -> FileResult | None:
    """What an earlier run noted of this file, when the file is there with the digest that it noted."""
    note = held.done(file.name) if held.resumed else None
    path = held.path / file.name
    if note is None or not path.is_file() or path.stat().st_size != file.size or sha256_range(path) != note["sha256"]:
        return None
    return FileResult.from_note(note)


def _identify(
    plan: EditPlan, results: Sequence[FileResult], known: Mapping[str, str] | None, before: Sequence[Any]
) -> ModelIdentity:
    """Who the base is, from the very bytes that were read; that it is still the one that was planned with.

    Raises:
        BaseChanged: a file, or the digest of a tensor, is not what it was.
        EditError: a tensor that was to stay as it is differs from the base's.
    """
    checkpoint = plan.checkpoint
    found: dict[str, str] = {}
    for result in results:
        new = plan.new.keys()
        found.update({n: d for n, d in result.digests.items() if n not in new} | result.base_digests)
    for file, then in zip(checkpoint.weight_files, before, strict=True):
        if not _is_still(file, then):
            raise BaseChanged(f"{file.name!r} changed while it was read", where=checkpoint.path, hint=STILL)
    if known is not None:
        for name, digest in found.items():
            if known[name] != digest and isinstance(checkpoint, Held):
                raise DigestMismatch(f"the tensor {name!r} is not the one that was pinned", where=checkpoint.path,
                                     hint="`weightsmith verify` shows what differs")  # fmt: skip
            if known[name] != digest:
                if name in plan.operations:
                    raise BaseChanged(f"the tensor {name!r} is not what it was when the base was first read",
                                      where=checkpoint.path, hint=STILL)  # fmt: skip
                raise EditError(f"the tensor {name!r} was to stay as it is and differs from the base's",
                                where=checkpoint.path, hint="the base or the disk changed under the edit: try again")  # fmt: skip
    check_unchanged(checkpoint)
    checkpoint.remember(found)
    arch = checkpoint.architecture
    return ModelIdentity(ref=checkpoint.ref, digest=checkpoint.digest_of(found), family=arch.family.name,
                         n_layers=arch.n_layers, d_model=arch.d_model)  # fmt: skip


def _is_still(file: Path, then: list[Any]) -> bool:
    try:
        return stat_key(file) == then
    except OSError:  # it is gone
        return False


def write_small_files(plan: EditPlan, folder: Path, directions: Mapping[str, Direction]) -> None:
    """Config, tokenizer, template, licence and index, and under ``weightsmith/`` what a rebuild needs."""
    copy_small_files(plan.checkpoint, folder)
    _apply_config(plan.checkpoint, plan, folder)
    if not plan.operations:  # nothing to rebuild: the output is the base
        return
    kept = folder / KEPT
    kept.mkdir(exist_ok=True)
    for digest, direction in directions.items():
        (kept / f"direction-{digest[:16]}.safetensors").write_bytes(direction.to_bytes())
    if plan.fits:
        rows = sorted(plan.fits.items())
        write_file(kept / FITS, [(str(layer), "F64", np.shape(w), partial(_put, w)) for layer, (w, _) in rows])


def _put(values: Any, file: BinaryIO) -> None:
    file.write(np.asarray(values, "<f8").tobytes())


def small_digests(folder: Path, results: Sequence[FileResult]) -> dict[str, str]:
    """SHA-256 of every file in ``folder`` but the weights and the record, by relative path."""
    weights = {r.name for r in results}
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (*weights, RECORD) and not path.relative_to(folder).parts[0].startswith(".j")
    }


def small_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """Config, tokenizer, template, licence: every plain file that is neither weights, code nor an old record."""
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_file() and path.suffix not in _LEFT_BEHIND and path.name not in (RECORD, INDEX, KEPT) \
                and not path.name.startswith("."):  # fmt: skip
            yield path


def kept_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """The index, and what an edited model has of its own: its record and what stands beside that."""
    kept = checkpoint.path / KEPT
    names = [checkpoint.path / INDEX, checkpoint.path / RECORD, *(sorted(kept.iterdir()) if kept.is_dir() else [])]
    return (path for path in names if path.is_file())


def copy_small_files(checkpoint: Checkpoint, scratch: Path) -> None:
    """Copy :func:`small_files` to ``scratch``."""
    for path in small_files(checkpoint):
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


#: share left of a removed direction from which there was next to none of it before: one that was taken out already, say
NEXT_TO_NONE = 0.3


def left_notes(matrices: Sequence[TensorRecord]) -> list[str]:
    """What to say where more than 1% of a removed direction is left; a bias may have had next to nothing along it, so
    that the share that rounding leaves of it says little."""
    notes = []
    coarse = [t for t in matrices if t.left is not None and t.left > 0.01]
    for several in (False, True):
        group = [t for t in coarse if (len(t.operations) > 1) == several]
        if not group:
            continue
        worst = max(group, key=lambda t: t.left or 0.0)
        why = "other steps write again, or rounding leaves," if several else f"rounding to {worst.dtype} leaves"
        # an exact removal leaves what rounding puts there and nothing else
        bare = "" if several or (worst.left or 0.0) < NEXT_TO_NONE else ", which held hardly more of it before the edit"
        notes.append(f"{why} more than 1% of the direction in {len(group)} tensors, at most {worst.left:.1%} in "
                     f"{worst.tensor}{bare}")  # fmt: skip
    return notes


def make_record(
    plan: EditPlan, results: Sequence[FileResult], base: ModelIdentity, directions: Mapping[str, Direction],
    transferred: bool, small: Mapping[str, str],
) -> Derivation:  # fmt: skip
    """The derivation record of what was written."""
    checkpoint = plan.checkpoint
    shapes = {r.spec.name: (r.spec.dtype, r.spec.shape) for f in file_plans(plan) for r in f.regions}
    rows = sorted((n, *shapes[n], d) for r in results for n, d in r.digests.items())
    old = checkpoint.path / RECORD
    notes = list(plan.compiled.notes)
    tensors = [t for r in results for t in r.tensors]
    notes += left_notes([t for t in tensors if len(shapes[t.tensor][1]) > 1])
    return Derivation(
        base=base,
        base_source=dict(checkpoint.source),
        base_tensors=len(checkpoint.tensors),
        edit=plan.spec,
        directions={d: direction.meta for d, direction in directions.items()},
        transferred=transferred,
        compute={"edit": "elementwise IEEE operations in a fixed order, fp32 (fp64 for fp32 and fp64 weights)",
                 "cast": _CASTS[plan.spec.rounding]},
        tensors=tensors,
        fitted=plan.compiled.fitted,
        notes=notes,
        config_changes=plan.compiled.config,
        outputs=dict(sorted({**{r.name: r.sha256 for r in results}, **small}.items())),
        digest=digest_of([[n, d, list(s), h] for n, d, s, h in rows]),
        versions={"weightsmith": __version__, "numpy": np.__version__},
        base_record=read_json(old) if old.is_file() else None,
    )  # fmt: skip


def _remember(out: Path, record: Derivation, results: Sequence[FileResult]) -> None:
    """Keep the digests of what was just written, so that the next command need not read it again."""
    written = open_checkpoint(str(out.absolute()), offline=True)
    written.remember({n: d for r in results for n, d in r.digests.items()})
    for name, digest in record.outputs.items():
        remember_sha256(out / name, digest)
