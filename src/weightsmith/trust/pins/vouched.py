"""What somebody says of a model's files, and whether the bytes here agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import FormatError
from ...pinned import FileVerdict, SourceKind
from ...storage import digest_of, parallel_map
from .taken import LEFT_OUT, Taken, digest_range

#: what is said of each file, by name: one digest of the whole, or those of its pieces in order
Digests = Mapping[str, "tuple[Said, ...]"]


@dataclass(frozen=True, slots=True)
class Said:
    """One digest: of a whole file, or of ``length`` bytes from ``start``.

    ``algorithm`` is ``sha256``, ``blake2b``, ``blake3``, or ``git`` for the SHA-1 of a file as git stores it.
    """

    algorithm: str
    value: str
    start: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One list of digests and who made it.

    ``name`` is how the lock calls it. A ``strict`` source means all files: one that it does not list is a fault. One that
    is not ``complete`` may list files that nobody fetched. ``left_out`` are names that it says nothing of on purpose.
    ``digest`` is the SHA-256 of what it said. ``signer`` is who signed it, as far as that was checked; ``weights`` the digest
    of its model, for a source that has the tensors.
    """

    name: str
    kind: SourceKind
    what: str
    files: Digests
    digest: str
    strict: bool = False
    complete: bool = True
    left_out: tuple[str, ...] = ()
    signer: str = ""
    weights: str = ""


def digest_of_said(files: Digests) -> str:
    """SHA-256 of what a source said, where it has no bytes of its own."""
    return digest_of({n: [[s.algorithm, s.value, s.start, s.length] for s in said] for n, said in files.items()})


def is_left_out(name: str, left_out: Iterable[str]) -> bool:
    """Whether a file is one of ``left_out``, or lies in a folder that is."""
    return any(name == skipped or name.startswith(skipped.rstrip("/") + "/") for skipped in left_out)


def compare(source: Source, files: Mapping[str, Path], taken: Mapping[str, Taken]) -> tuple[int, list[FileVerdict]]:
    """How many files have the digest that ``source`` gives, and a verdict on every other one, by name."""
    listed = [n for n in source.files if n in files]
    got = dict(zip(listed, parallel_map(lambda n: _got(source.files[n], files[n], taken[n]), listed), strict=True))
    same, found = 0, []
    for name in sorted({*source.files, *files}):
        if name not in files:
            if source.complete and name.split("/")[0] not in LEFT_OUT:
                found.append(FileVerdict(file=name, what="missing", said=_text(source.files[name])))
        elif name not in source.files:
            # a signature over pieces of files lists nothing for an empty file
            pieces = any(s.length is not None for said in source.files.values() for s in said)
            if not is_left_out(name, source.left_out) and not (pieces and taken[name].size == 0):
                found.append(FileVerdict(file=name, what="unlisted", got=f"sha256:{taken[name].sha256}"))
        elif got[name] == source.files[name]:
            same += 1
        else:
            said, have = _first_difference(source.files[name], got[name])
            found.append(FileVerdict(file=name, what="differs", said=said, got=have))
    return same, found


def is_fault(source: Source, verdict: FileVerdict) -> bool:
    """Whether a verdict counts against the model."""
    return verdict.what != "unlisted" or source.strict


def _got(said: tuple[Said, ...], path: Path, taken: Taken) -> tuple[Said, ...]:
    """The digests here that answer to ``said``."""
    return tuple(Said(s.algorithm, _digest(s, path, taken), s.start, s.length) for s in said)


def _digest(said: Said, path: Path, taken: Taken) -> str:
    if said.length is not None:
        if said.start + said.length > taken.size:
            return f"only {taken.size} bytes"
        return digest_range(path, said.algorithm, said.start, said.length)
    whole = {"sha256": taken.sha256, "blake3": taken.blake3, "git": taken.git}
    if said.algorithm == "git" and not taken.git:
        return "too large for git"
    return whole[said.algorithm] if said.algorithm in whole else digest_range(path, said.algorithm)


def _text(said: tuple[Said, ...]) -> str:
    first = said[0]
    return f"{first.algorithm}:{first.value}" + ("" if len(said) == 1 else f" and {len(said) - 1} more pieces")


def _first_difference(said: tuple[Said, ...], got: tuple[Said, ...]) -> tuple[str, str]:
    pairs = [(s, g) for s, g in zip(said, got, strict=True) if s != g]
    where = "" if pairs[0][0].length is None else f" at byte {pairs[0][0].start}"
    return tuple(f"{x.algorithm}:{x.value}{where}" for x in pairs[0])  # type: ignore[return-value]


def covers(said: tuple[Said, ...], where: object) -> int | None:
    """The size of a file that the pieces ``said`` make up without a hole or overlap, or ``None`` for a whole file.

    Raises:
        FormatError: there is a hole or an overlap.
    """
    if len(said) == 1 and said[0].length is None:
        return None
    end = 0
    for piece in sorted(said, key=lambda s: s.start):
        if piece.length is None or piece.start != end or piece.length <= 0:
            raise FormatError("the pieces of a file leave a hole or overlap", where=where)
        end += piece.length
    return end
