"""``verify``: everything that vouches for a model, asked; what could be checked, what came of it, and what could not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..checkpoint import RECORD, Checkpoint, read_json
from ..errors import IntegrityError, WeightsmithError, advice
from ..hub import locate
from ..options import RunOptions
from ..pinned import Check, PinnedModel, VerificationRecord
from ..trust.pins.lock import NAME, Lock, check, find_lock
from ..trust.pins.oms import find_signature
from ..trust.pins.sources import Signers, from_hub, signed_source
from ..trust.pins.sums import find_sums, read_sums
from ..trust.pins.taken import Taken, model_files, take_all
from ..trust.pins.vouched import Said, Source, compare, is_fault
from .files import as_checkpoint

Kind = Literal["lock", "sums", "oms", "hub", "record"]


@dataclass(frozen=True, slots=True)
class _Model:
    """The model with the digests of its files, taken once for all checks."""

    checkpoint: Checkpoint
    files: Mapping[str, Path]
    taken: Mapping[str, Taken]
    beside: tuple[str, ...]  # files of the folder that vouch themselves


def verify(
    model: Checkpoint | str | Path,
    *,
    lock: str | Path | None = None,
    sums: str | Path | None = None,
    signature: str | Path | None = None,
    hub: str | None = None,
    signers: Signers | None = None,
    options: RunOptions | None = None,
) -> VerificationRecord:
    """Hold a model against every source that is there or named: a lock, checksums, a signature, the hub, its own record.

    All digests are taken now. A source that was named and can't be checked makes the verdict *could not tell*, one that was
    only found does not.
    """
    options, signers, began = options or RunOptions(), signers or Signers(), time.perf_counter()
    held = find_lock(explicit=lock)
    if isinstance(model, str) and held is not None:
        model = held.revision_of(model)
    checkpoint, broken = _opened(model, options)
    folder = checkpoint.path if checkpoint.kind == "folder" else checkpoint.path.parent
    at_sums = Path(sums) if sums else find_sums(folder)
    at_signature = Path(signature) if signature else _signature(checkpoint, folder)
    files = model_files(checkpoint)
    files.pop(NAME, None)
    beside = tuple(n for n, p in files.items() if p.resolve() in {x.resolve() for x in (at_sums, at_signature) if x})
    here = _Model(checkpoint, files, take_all(files, checkpoint, options.progress), beside)
    checks = [
        _lock(here, held, named=bool(lock)),
        _sums(here, at_sums),
        _oms(here, at_signature, signers),
        _hub(here, hub, options),
        _record(here),
    ]
    asked = {"lock": bool(lock), "sums": bool(sums), "oms": bool(signature) or signers.any, "hub": bool(hub)}
    return VerificationRecord(
        version=__version__, model=checkpoint.ref, path=str(checkpoint.path), verdict=_verdict(checks, asked), checks=checks,
        files=len(files), broken=broken, nobody=_nobody(here, checks), bytes=sum(t.size for t in here.taken.values()),
        seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip


def _opened(model: Checkpoint | str | Path, options: RunOptions) -> tuple[Checkpoint, str]:
    """The model, or where it can't be opened as one its bare files and why: bytes can be compared all the same."""
    try:
        return as_checkpoint(model, options), ""
    except WeightsmithError as error:
        located = locate(str(model), offline=options.offline, progress=options.progress)
        kind = "folder" if located.path.is_dir() else "gguf"
        return Checkpoint(located.ref, kind, located.path, {}, {}, (), (), located.source, None, {}, {}), error.message


def _signature(checkpoint: Checkpoint, folder: Path) -> Path | None:
    if checkpoint.kind == "folder":
        return find_signature(folder)
    beside = checkpoint.path.with_name(checkpoint.path.name + ".sig")
    return beside if beside.is_file() else None


def _verdict(checks: list[Check], asked: Mapping[str, bool]) -> Literal["agrees", "differs", "could not tell"]:
    outcomes = {c.outcome for c in checks}
    if "differs" in outcomes:
        return "differs"
    failed = any(asked.get(c.kind) and c.outcome != "agrees" for c in checks)
    return "agrees" if "agrees" in outcomes and not failed else "could not tell"


def _tried(kind: Kind, name: str, job: Callable[[], Check]) -> Check:
    """The outcome of one check; an error of ours is one as well."""
    try:
        return job()
    except IntegrityError as error:
        return Check(kind=kind, name=name, outcome="differs", why=_told(error))
    except WeightsmithError as error:
        return Check(kind=kind, name=name, outcome="could not tell", why=_told(error))
    except OSError as error:
        return Check(kind=kind, name=name, outcome="could not tell", why=error.strerror or type(error).__name__)


def _told(error: WeightsmithError) -> str:
    return "; ".join(filter(None, (error.message, advice(error))))


def _compared(here: _Model, kind: Kind, name: str, source: Source, **more: Any) -> Check:
    """What came of one source; without a ``name`` it is called what it calls itself."""
    name = name or source.what
    same, verdicts = compare(source, here.files, here.taken)
    verdicts = [v for v in verdicts if v.what != "unlisted" or v.file not in here.beside]
    bad = any(is_fault(source, v) for v in verdicts)
    if not same and not bad:
        return Check(kind=kind, name=name, outcome="could not tell", why="it lists no file of this model", files=verdicts)
    return Check(kind=kind, name=name, outcome="differs" if bad else "agrees", signer=source.signer, same=same,
                 files=verdicts, **more)  # fmt: skip


def _lock(here: _Model, held: Lock | None, *, named: bool) -> Check:
    if held is None:
        return Check(kind="lock", name="", outcome="absent", why=f"there is no {NAME} here or above")
    name = _near(held.path)

    def job() -> Check:
        entry = held.entry_for(here.checkpoint)
        if entry is None:
            why = f"{name} says nothing of {held.name_of(here.checkpoint)}"
            return Check(kind="lock", name=name, outcome="could not tell" if named else "absent", why=why)
        checked = check(here.checkpoint, entry, here.taken)
        verdicts = [v for v in checked.files if v.what != "unlisted" or v.file not in here.beside]
        tensors = checked.tensors if here.checkpoint.tensors else []
        why = "" if verdicts or tensors else _forged(here, entry)
        return Check(kind="lock", name=name, outcome="differs" if verdicts or tensors or why else "agrees", same=checked.same,
                     files=verdicts, tensors=tensors, why=why)  # fmt: skip

    return _tried("lock", name, job)


def _forged(here: _Model, entry: PinnedModel) -> str:
    """What is wrong with an entry whose files are those here: its digest may have been edited by hand."""
    if here.checkpoint.tensors and here.checkpoint.digest_of({n: t.blake3 for n, t in entry.tensors.items()}) != entry.digest:
        return "the lock's digest of the model does not follow from its tensors; pin it again"
    return ""


def _near(path: Path) -> str:
    """A path as people name it: from the current folder, where it lies below that."""
    whole = Path(os.path.abspath(path))
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path)


def _sums(here: _Model, path: Path | None) -> Check:
    if path is None:
        return Check(kind="sums", name="", outcome="absent", why="there is no SHA256SUMS beside the model")
    # what comes in the same folder says that the folder is whole, not who made it
    independent = not path.parent.resolve().is_relative_to(here.checkpoint.path.resolve())
    name = _near(path)
    return _tried("sums", name, lambda: _compared(here, "sums", name, _for_one(read_sums(path), here), independent=independent))


def _for_one(source: Source, here: _Model) -> Source:
    """For one GGUF file: the list may name its neighbours as well."""
    if here.checkpoint.kind != "gguf":
        return source
    return Source(source.name, source.kind, source.what, {n: d for n, d in source.files.items() if n in here.files},
                  source.digest)  # fmt: skip


def _oms(here: _Model, path: Path | None, signers: Signers) -> Check:
    if path is None:
        why = "there is no model.sig beside the model" + (", and a signature was asked for" if signers.any else "")
        return Check(kind="oms", name="", outcome="could not tell" if signers.any else "absent", why=why)
    name = _near(path)
    return _tried("oms", name, lambda: _compared(here, "oms", name, signed_source(path, here.checkpoint, signers)))


def _hub(here: _Model, ref: str | None, options: RunOptions) -> Check:
    source = here.checkpoint.source
    if ref is None and source["kind"] != "hub":
        return Check(kind="hub", name="", outcome="absent", why="it was not fetched from one; --hub ORG/NAME@REVISION asks")
    name = ref or f"{source['repo']}@{source['revision']}"
    found = _tried("hub", name, lambda: _compared(here, "hub", "", from_hub(ref or "", here.checkpoint, offline=options.offline)))
    if found.outcome == "could not tell" and source["kind"] == "hub":
        found.why += "; the cache of the download is no independent witness"
    return found


def _record(here: _Model) -> Check:
    """The folder's own record of an edit: it says that nothing was damaged since, not who wrote it."""
    path = here.checkpoint.path / RECORD
    if here.checkpoint.kind != "folder" or not path.is_file():
        why = f"there is no {RECORD}, so it is not an edit of Weightsmith"
        return Check(kind="record", name="", outcome="absent", why=why, independent=False)

    def job() -> Check:
        outputs = read_json(path).get("outputs")
        rows = outputs if isinstance(outputs, dict) else {}
        said = {str(n): (Said("sha256", d),) for n, d in rows.items() if isinstance(d, str)}
        return _compared(here, "record", name, Source("record", "sums", RECORD, said, ""), independent=False)

    name = _near(path)
    return _tried("record", name, job)


def _nobody(here: _Model, checks: list[Check]) -> list[str]:
    """Files for which none of the sources that agree vouches."""
    vouched: set[str] = set()
    for found in (c for c in checks if c.outcome == "agrees"):
        vouched |= set(here.files) - {v.file for v in found.files}
    return [n for n in here.files if n not in vouched and n not in here.beside]
