"""The lock file ``weightsmith.lock``: reading, writing, finding it, and holding a model against its entry.

Whoever loads a model uses :func:`guarded`: it hands out a checkpoint whose bytes are a private copy of what was checked.
Whoever only reads files (an edit, an export) uses :func:`check` with fresh digests.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...checkpoint import Checkpoint, runnable
from ...errors import DigestMismatch, FormatError, LimitExceeded, ManifestMismatch, NotPinned, UsageError
from ...hub import Progress
from ...pinned import LOCK, FileVerdict, LockRecord, PinnedModel, PinnedTensor, TensorChange
from ...storage import strict_json, write_whole
from .guard import Streamed, Used, lasting, streamed, used_bytes
from .taken import Taken, model_files, take_all
from .vouched import Digests, Said, Source, compare, digest_of_said

NAME = "weightsmith.lock"
VARIABLE = "WEIGHTSMITH_LOCK"
MAX_BYTES = 256 << 20
_REPO = re.compile(r"[^/@]+/[^/@]+")
_ROWS = ("files", "tensors", "sources")


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock as it was read: where it stands and what it holds."""

    path: Path
    record: LockRecord

    def name_of(self, model: Checkpoint | str) -> str:
        """How this lock calls a model: ``org/name@revision``, ``demo:NAME``, or a path relative to the lock."""
        if isinstance(model, Checkpoint):
            source = model.source
            if source["kind"] == "hub":
                return f"{source['repo']}@{source['revision']}"
            return model.ref if source["kind"] == "demo" else self._relative(model.path)
        path = Path(model).expanduser()
        return self._relative(path) if path.exists() else model

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(self.path.parent))).as_posix()

    def entry_for(self, model: Checkpoint | str) -> PinnedModel | None:
        """The entry of a model, or ``None`` when the lock says nothing of it.

        Raises:
            ManifestMismatch: it pins another revision of this hub model, and this one not.
        """
        name = self.name_of(model)
        if name in self.record.models:
            return self.record.models[name]
        repo = name.partition("@")[0]
        others = [n for n in self.record.models if n.startswith(f"{repo}@")]
        if others and _REPO.fullmatch(repo):
            raise ManifestMismatch(f"the lock pins another revision than {name}: {others[0]}", where=self.path,
                                   hint=f"name that revision, or see what changed: `weightsmith pin {repo} --update`")  # fmt: skip
        return None

    def revision_of(self, ref: str) -> str:
        """``org/name`` as ``org/name@revision`` when the lock pins exactly one revision of it; any other reference as it is."""
        found = [n for n in self.record.models if n.startswith(f"{ref}@")]
        return found[0] if len(found) == 1 and _REPO.fullmatch(ref) and not Path(ref).exists() else ref

    def source(self, name: str) -> Source:
        """One entry as a source of digests, for whoever compares it with others.

        Raises:
            UsageError: no such entry.
        """
        if name not in self.record.models:
            raise UsageError(f"the lock says nothing of {name!r:.120}", where=self.path)
        files: Digests = {n: (Said("sha256", f.sha256),) for n, f in self.record.models[name].files.items()}
        return Source(f"lock:{self.path.name}", "lock", f"{name} in {self.path.name}", files, digest_of_said(files))


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"{twice!r:.120} stands twice", hint="two pins were merged by hand; pin it again")
    return found


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        UsageError: there is none.
        FormatError: not JSON, duplicate keys, unknown fields, paths that leave a folder, or a newer version.
        LimitExceeded: larger than 256 MiB.
    """
    if not path.is_file():
        raise UsageError("no lock file", where=path, hint="`weightsmith pin MODEL` writes one")
    if path.stat().st_size > MAX_BYTES:
        raise LimitExceeded("a lock of more than 256 MiB", where=path)
    try:
        value = strict_json(path.read_bytes(), _no_twice)
    except FormatError as error:
        error.where = str(path)
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the lock is not valid JSON ({error})", where=path,
                          hint="restore it, or remove it and write it anew with `weightsmith pin`") from error  # fmt: skip
    found = value.get("schema") if isinstance(value, dict) else None
    if found != LOCK:
        newer = isinstance(found, str) and re.fullmatch(r"weightsmith/lock/\d+", found)
        raise FormatError(f"the lock's schema is {found!r:.80}; this version reads {LOCK!r}", where=path,
                          hint="a newer Weightsmith is needed" if newer else "this is not a lock of Weightsmith")  # fmt: skip
    try:
        return Lock(path, LockRecord.model_validate(value))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])[:200]
        message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise FormatError(f"{place}: {message}", where=path, hint="docs/pin.md lists every field") from error


def lock_text(record: LockRecord) -> bytes:
    """The lock's one form: keys sorted, one line for each file, tensor and source."""
    data = record.model_dump(by_alias=True)
    models = []
    for name, model in sorted(data["models"].items()):
        fields = []
        for key, value in sorted(model.items()):
            if key in _ROWS:
                rows = [f"    {_line(row)}: {_line(value[row])}" for row in sorted(value)]
                fields.append(f"   {_line(key)}: {{" + ("\n" + ",\n".join(rows) + "\n   }" if rows else "}"))
            else:
                fields.append(f"   {_line(key)}: {_line(value)}")
        models.append(f"  {_line(name)}: {{\n" + ",\n".join(fields) + "\n  }")
    inner = "\n" + ",\n".join(models) + "\n " if models else ""
    return f'{{\n "models": {{{inner}}},\n "schema": {_line(data["schema"])}\n}}\n'.encode()


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def write_lock(path: Path, record: LockRecord) -> None:
    """Write a lock whole or not at all, in place of the old one."""
    write_whole(path, lock_text(record), replace=True)


def find_lock(start: Path | None = None, explicit: str | Path | None = None) -> Lock | None:
    """The lock that holds here: ``explicit``, else ``$WEIGHTSMITH_LOCK``, else ``weightsmith.lock`` in ``start`` (the current
    folder) or the nearest folder above it, up to the root of a repository or the home folder.

    Raises:
        UsageError: one was named and is not there.
        FormatError: it can't be read.
    """
    named = explicit or os.environ.get(VARIABLE)
    if named:
        return read_lock(Path(named).expanduser())
    folder = Path(os.path.abspath(start or Path.cwd()))
    home = Path.home()
    for here in (folder, *folder.parents):
        if (here / NAME).is_file():
            return read_lock(here / NAME)
        if here == home or (here / ".git").exists():
            break
    return None


def pinned_ref(ref: str, lock: str | Path | None = None) -> str:
    """``org/name`` as the one revision of it that the lock which holds here pins; any other reference as it is.

    Raises:
        UsageError, FormatError: see :func:`find_lock`.
    """
    if not _REPO.fullmatch(ref) or Path(ref).exists():  # a lock has nothing to say of it
        return ref
    held = find_lock(explicit=lock)
    return ref if held is None else held.revision_of(ref)


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of holding a model against its entry: verdicts on the files that are not as pinned, and their tensors."""

    same: int
    files: list[FileVerdict]
    tensors: list[TensorChange]

    @property
    def good(self) -> bool:
        """Whether every pinned file is as it was pinned; files that are not pinned don't count here."""
        return all(f.what == "unlisted" for f in self.files)

    @property
    def unpinned(self) -> list[str]:
        """Files that the entry doesn't name."""
        return [f.file for f in self.files if f.what == "unlisted"]


def check(checkpoint: Checkpoint, entry: PinnedModel, taken: Mapping[str, Taken] | None = None,
          progress: Progress | None = None) -> Checked:  # fmt: skip
    """Hold a model's files against its entry, by digests that are taken now (or were, as ``taken``): none is remembered."""
    files = model_files(checkpoint)
    files.pop(NAME, None)
    taken = taken if taken is not None else take_all(files, checkpoint, progress)
    said: Digests = {n: (Said("sha256", f.sha256),) for n, f in entry.files.items()}
    same, found = compare(Source("lock", "lock", "", said, ""), files, taken)
    return Checked(same, found, tensor_changes(entry.tensors, tensors_of(checkpoint, taken)))


def require(checkpoint: Checkpoint, entry: PinnedModel, *, frozen: bool = False, progress: Progress | None = None) -> Checked:
    """:func:`check`, where anything else than the pinned bytes is an error; with ``frozen`` further files are one as well.

    Raises:
        DigestMismatch, ManifestMismatch: with the first file and tensor that differ.
    """
    checked = check(checkpoint, entry, None, progress)
    bad = next((f for f in checked.files if f.what != "unlisted"), None)
    if bad is not None:
        tensor = f"; the first tensor that differs is {checked.tensors[0].tensor!r:.120}" if checked.tensors else ""
        error = ManifestMismatch if bad.what == "missing" else DigestMismatch
        what = "is pinned and not there" if bad.what == "missing" else f"is not the file that was pinned{tensor}"
        raise error(f"{bad.file!r:.120} {what}", where=checkpoint.path, hint="`weightsmith verify` shows all of it")
    if frozen and checked.unpinned:
        raise ManifestMismatch(f"{checked.unpinned[0]!r:.120} is there and not pinned", where=checkpoint.path)
    return checked


def tensors_of(checkpoint: Checkpoint, taken: Mapping[str, Taken]) -> dict[str, PinnedTensor]:
    """The tensors of a checkpoint as a lock names them, from digests of its files."""
    digests = {n: row[0] for t in taken.values() for n, row in t.tensors.items()}
    return {
        name: PinnedTensor(dtype=t.dtype, shape=list(t.shape), blake3=digests[name])
        for name, t in checkpoint.tensors.items() if name in digests
    }  # fmt: skip


def tensor_changes(old: Mapping[str, PinnedTensor], new: Mapping[str, PinnedTensor]) -> list[TensorChange]:
    """What differs between two sets of tensors, by name."""

    def form(t: PinnedTensor | None) -> str:
        return "" if t is None else f"{t.dtype} {'x'.join(map(str, t.shape)) or 'scalar'}"

    found: list[TensorChange] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        what: Any = "changed" if form(before) == form(after) else "another type or shape"
        what = "added" if before is None else "removed" if after is None else what
        found.append(TensorChange(tensor=name, what=what, before=form(before), after=form(after)))
    return found


@contextlib.contextmanager
def guarded(
    checkpoint: Checkpoint, lock: Lock | None, *, frozen: bool = False, progress: Progress | None = None
) -> Iterator[Checkpoint | Used]:
    """The checkpoint to load: with a lock that pins it, a private copy of bytes that were checked after they were copied.

    Without a lock, or where it says nothing of this model, the checkpoint itself. For a conversion its original is checked, and
    the conversion of those bytes is handed out: with ``frozen`` a new one, else the cache's, by their digest. Whatever is read
    through the path of a :class:`.guard.Used` until the block ends can't be changed by whoever writes to the model's folder
    meanwhile. Memory that was mapped from it stays what it is afterwards.

    Raises:
        NotPinned: with ``frozen``, and nobody pinned it.
        ManifestMismatch: a pinned file is missing, or with ``frozen`` there is one more; or another revision is pinned.
        DigestMismatch: a file is not the one that was pinned.
    """
    if checkpoint.origin is not None:  # a conversion: the file that it was made from is what is pinned
        with guarded(checkpoint.origin, lock, frozen=frozen, progress=progress) as used:
            same = not isinstance(used, Used)
            yield checkpoint if same else runnable(used, dequantize=used.kind == "folder", progress=progress)
        return
    entry = _entry(checkpoint, lock, frozen)
    if entry is None:
        yield checkpoint
        return
    with used_bytes(checkpoint, entry, frozen=frozen, progress=progress) as used:
        yield used


def held(
    checkpoint: Checkpoint, lock: Lock | None, *, frozen: bool = False, weights: bool = True
) -> Checkpoint | Streamed:
    """The checkpoint for a job that reads files and loads nothing: with a lock that pins it, one whose small files were
    checked before they were parsed, and whose ``known_digests`` are the pinned ones.

    For a conversion its original is checked, and the cache's conversion of what is pinned handed out. With ``weights`` these
    are checked now; a job that compares each tensor with ``known_digests`` as it reads it need not.

    Raises:
        NotPinned, ManifestMismatch, DigestMismatch: as for :func:`guarded`.
    """
    if checkpoint.origin is not None:  # a conversion: the file that it was made from is what is pinned
        if _entry(checkpoint.origin, lock, frozen) is None:
            return checkpoint
        with guarded(checkpoint.origin, lock, frozen=frozen) as used:
            return lasting(runnable(used, dequantize=used.kind == "folder"))
    entry = _entry(checkpoint, lock, frozen)
    return checkpoint if entry is None else streamed(checkpoint, entry, frozen=frozen, weights=weights)


def _entry(checkpoint: Checkpoint, lock: Lock | None, frozen: bool) -> PinnedModel | None:
    entry = lock.entry_for(checkpoint) if lock is not None else None
    if entry is None and frozen:
        told = "there is no lock" if lock is None else f"the lock says nothing of {lock.name_of(checkpoint)}"
        raise NotPinned(f"{told}, and --frozen uses only what is pinned", where=lock.path if lock else checkpoint.path,
                        hint="`weightsmith pin MODEL` after you have checked it")  # fmt: skip
    return entry
