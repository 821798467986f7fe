"""``pin``: write the digests of a model into a lock, with who else vouches for them; show what changed before that."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import BaseChanged, DigestMismatch, UsageError
from ..options import RunOptions
from ..pinned import Disagreement, LockRecord, PinChanges, PinnedFile, PinnedModel, PinnedSource, PinRecord
from ..trust.pins.changes import changes, keep_texts
from ..trust.pins.lock import NAME, VARIABLE, Lock, find_lock, read_lock, tensors_of, write_lock
from ..trust.pins.sources import Signers, find_source, unique_names
from ..trust.pins.taken import Taken, model_files, take_all
from ..trust.pins.vouched import Source, compare, is_fault

HERE = "here"
WEIGHTS = "(all tensors)"


@dataclass(frozen=True, slots=True)
class _Told:
    """What the sources say of the files here: by file, who agrees and who says which other digest."""

    agree: dict[str, list[str]]
    against: dict[str, dict[str, str]]
    pinned: dict[str, PinnedSource]


def pin(
    model: Checkpoint | str | Path,
    *,
    lock: str | Path | None = None,
    sources: Sequence[str] = (),
    trust: Sequence[str] = (),
    update: bool = False,
    signers: Signers | None = None,
    consent: Callable[[PinRecord], bool] | None = None,
    options: RunOptions | None = None,
) -> PinRecord:
    """Pin a model: digests of all its files and tensors, taken now, and what each of ``sources`` says of them.

    Where sources disagree nothing is written unless ``trust`` names whom to believe (a source, or ``here`` for the bytes on
    disk). ``update`` replaces an entry that says otherwise, after ``consent`` was asked with what changed. The record's
    ``written`` says what came of it.

    Raises:
        DigestMismatch: the model is pinned with other contents and ``update`` was not asked for, or a trusted source says
            something else than the bytes here.
        UsageError: a source is none, or ``trust`` names no source.
        BaseChanged: the entry was changed by somebody else meanwhile.
    """
    options = options or RunOptions()
    target, held = _held(lock)
    checkpoint = _opened(model, held, update, options)
    files = model_files(checkpoint)
    if checkpoint.kind == "folder" and (checkpoint.path / NAME).exists():
        files.pop(NAME, None)  # a lock can't hold its own digest
    taken = take_all(files, checkpoint, options.progress)
    found = unique_names([
        find_source(s, checkpoint, signers or Signers(), offline=options.offline, progress=options.progress) for s in sources
    ])  # fmt: skip
    entry = _entry(checkpoint, taken)
    told = _told(found, entry, files, taken)
    _check_trust(trust, found)
    name = held.name_of(checkpoint)
    old_name, old = _old(held, name, checkpoint, update)
    record = PinRecord(
        model=checkpoint.ref, name=name, lock=str(target), written=False, files=len(files), tensors=len(entry.tensors),
        bytes=sum(t.size for t in taken.values()), digest=entry.digest, sources=told.pinned,
        disagreements=_disagreements(found, told, entry), nobody=[n for n in files if found and not told.agree.get(n)],
        changes=None if old is None else changes(old, entry, files, (old_name, name), _snapshot(checkpoint, old)),
    )  # fmt: skip
    if not _settled(told, trust):
        return record
    _settle(entry, told, old if record.changes is not None and record.changes.same else None)
    if record.changes is not None and not record.changes.same:
        if not update:
            raise DigestMismatch(
                f"pinned already with other contents ({_count(record.changes)})", where=name,
                hint="`weightsmith verify` shows them; `weightsmith pin --update` shows what changed and pins it",
            )  # fmt: skip
        if consent is not None and not consent(record):
            return record
    _write(target, name, entry, old_name, old)
    keep_texts(files, entry)
    return record.model_copy(update={"written": True})


def _write(target: Path, name: str, entry: PinnedModel, old_name: str, old: PinnedModel | None) -> None:
    """Put the entry into the lock as it is now: another pin may have been written while this model was read.

    Raises:
        BaseChanged: this very entry was.
    """
    models = read_lock(target).record.models if target.exists() else {}
    if models.get(old_name) != old:
        raise BaseChanged(f"{old_name!r:.120} was pinned by somebody else meanwhile", where=target, hint="run again")
    kept = {n: m for n, m in models.items() if n != old_name}
    write_lock(target, LockRecord(models={**kept, name: entry}))


def _held(lock: str | Path | None) -> tuple[Path, Lock]:
    """Where the lock goes, and what stands there."""
    named = lock or os.environ.get(VARIABLE)
    if named is None and (found := find_lock()) is not None:
        return found.path, found
    target = Path(named).expanduser() if named else Path.cwd() / NAME
    if target.is_dir():
        raise UsageError("a folder, not a file", where=target, hint=f"for example --lock {target / NAME}")
    return target, read_lock(target) if target.exists() else Lock(target, LockRecord())


def _opened(model: Checkpoint | str | Path, held: Lock, update: bool, options: RunOptions) -> Checkpoint:
    """With a lock, ``org/name`` is the revision that it pins; to be updated, it is what the hub has now."""
    if isinstance(model, Checkpoint):
        return model
    ref = str(model) if update else held.revision_of(str(model))
    return open_checkpoint(ref, offline=options.offline, progress=options.progress)


def _entry(checkpoint: Checkpoint, taken: Mapping[str, Taken]) -> PinnedModel:
    tensors = tensors_of(checkpoint, taken)
    rows = {n: row for t in taken.values() for n, row in t.tensors.items()}
    return PinnedModel(
        kind="gguf" if checkpoint.kind == "gguf" else "folder", source=_source(checkpoint),
        digest=checkpoint.digest_of({n: t.blake3 for n, t in tensors.items()}), tensors=tensors,
        files={n: PinnedFile(size=t.size, sha256=t.sha256, blake3=t.blake3) for n, t in taken.items()},
        not_finite=sorted(n for n, row in rows.items() if not row[1]),
    )  # fmt: skip


def _source(checkpoint: Checkpoint) -> dict[str, str]:
    """Where the files came from, without what another lock of the same bytes would say otherwise."""
    return {k: v for k, v in sorted(checkpoint.source.items()) if k in ("kind", "repo", "revision", "package")}


def _told(found: Sequence[Source], entry: PinnedModel, files: Mapping[str, Path], taken: Mapping[str, Taken]) -> _Told:
    agree: dict[str, list[str]] = {}
    against: dict[str, dict[str, str]] = {}
    pinned: dict[str, PinnedSource] = {}
    for source in found:
        same, verdicts = compare(source, files, taken)
        odd = {v.file for v in verdicts}
        for name in source.files:
            if name in files and name not in odd:
                agree.setdefault(name, []).append(source.name)
        for v in (v for v in verdicts if is_fault(source, v)):
            said = {"missing": v.said, "unlisted": "not listed"}.get(v.what, v.said)
            against.setdefault(v.file, {})[source.name] = said
        weights = "" if not source.weights else "same" if source.weights == entry.digest else "others"
        if weights == "others" and not any(source.name in says for says in against.values()):
            against.setdefault(WEIGHTS, {})[source.name] = f"blake3:{source.weights}"
        if not same and not weights and not any(source.name in says for says in against.values()):
            raise UsageError("it says nothing of any file of this model", where=source.what)
        pinned[source.name] = PinnedSource(kind=source.kind, what=source.what, digest=source.digest, files=len(source.files),
                                           same=same, signer=source.signer, weights=weights)  # fmt: skip
    return _Told(agree, against, pinned)


def _disagreements(found: Sequence[Source], told: _Told, entry: PinnedModel) -> list[Disagreement]:
    rows = []
    for name, others in sorted(told.against.items()):
        here = f"blake3:{entry.digest}" if name == WEIGHTS else "not there"
        if name in entry.files:
            algorithms = {text.partition(":")[0] for text in others.values()}
            here = "as the others say" if algorithms == {"git"} and told.agree.get(name) else f"sha256:{entry.files[name].sha256}"
        says = {HERE: here}
        for source in found:
            if source.name in told.agree.get(name, []):
                says[source.name] = "as here"
            elif source.name in others:
                says[source.name] = others[source.name]
        rows.append(Disagreement(file=name, says=says))
    return rows


def _check_trust(trust: Sequence[str], found: Sequence[Source]) -> None:
    known = [HERE, *(s.name for s in found)]
    if bad := [t for t in trust if t not in known]:
        raise UsageError(f"--trust names no source: {bad[0]!r:.80}", hint=f"known here: {', '.join(known)}")


def _settled(told: _Told, trust: Sequence[str]) -> bool:
    """Whether it may be pinned: nobody says otherwise, or whoever is trusted says what the bytes here are.

    Raises:
        DigestMismatch: a trusted source says otherwise.
    """
    if not told.against:
        return True
    for name, others in told.against.items():
        for source in trust:
            if source in others:
                raise DigestMismatch(f"not what {source} says ({others[source]}), which you trust", where=name,
                                     hint="get the model from somewhere else")  # fmt: skip
    return bool(trust)


def _settle(entry: PinnedModel, told: _Told, before: PinnedModel | None) -> None:
    """Write who vouches, and who was overruled, into the entry.

    ``before`` is the entry of the same contents that this one replaces: what others said of them then still holds, unless
    they were asked again.
    """
    overruled = {source for says in told.against.values() for source in says}
    for name, pinned in entry.files.items():
        pinned.by = told.agree.get(name, [])
        pinned.against = told.against.get(name, {})
    entry.sources = {n: s.model_copy(update={"trusted": n not in overruled}) for n, s in told.pinned.items()}
    if before is not None:
        entry.sources = {**before.sources, **entry.sources}
        for name, pinned in entry.files.items():
            was = before.files[name]
            pinned.by = [*(n for n in was.by if n not in told.pinned), *pinned.by]
            pinned.against = {**{n: d for n, d in was.against.items() if n not in told.pinned}, **pinned.against}


def _old(held: Lock, name: str, checkpoint: Checkpoint, update: bool) -> tuple[str, PinnedModel | None]:
    """The entry that a pin replaces: of the same name, or for an update the only other revision of the same hub model."""
    models = held.record.models
    if name in models or not update:
        return name, models.get(name)
    repo = checkpoint.source.get("repo")
    others = [n for n in models if repo and n.startswith(f"{repo}@")]
    if len(others) > 1:
        raise UsageError(f"the lock pins {len(others)} revisions of {repo}", where=held.path,
                         hint="pin the new one without --update; it then stands beside them")  # fmt: skip
    return (others[0], models[others[0]]) if others else (name, None)


def _snapshot(checkpoint: Checkpoint, old: PinnedModel) -> Path | None:
    """Where the hub's cache may still hold the old revision."""
    revision = old.source.get("revision", "")
    if checkpoint.source["kind"] != "hub" or not re.fullmatch(r"[0-9a-f]{40}", revision, re.ASCII):
        return None
    return checkpoint.path.parent / revision


def _count(found: PinChanges) -> str:
    return f"{len(found.files)} {'file' if len(found.files) == 1 else 'files'}"
