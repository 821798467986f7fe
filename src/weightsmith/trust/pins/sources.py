"""From what a user names to a source of digests: the hub, a mirror, a lock, a list of checksums, a signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ...checkpoint import Checkpoint, open_checkpoint
from ...errors import UsageError
from ...hub import Progress
from .lock import Lock, read_lock
from .oms import Bundle, read_bundle, source_of
from .published import published
from .sums import read_sums
from .taken import model_files, take_all
from .vouched import Digests, Said, Source, digest_of_said

FORMS = "hub, hub:ORG/NAME@REVISION, sums:FILE, lock:FILE, oms:FILE, or another copy of the model"


@dataclass(frozen=True, slots=True)
class Signers:
    """Whom a user trusts to sign: a public key, root certificates, or an identity with its issuer.

    ``root`` is a Sigstore trust root instead of the shipped one, ``at`` the time at which certificates must be valid, the
    present by default; ``ignored`` names what a signer may have left out.
    """

    key: Path | None = None
    certificates: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None
    root: Path | None = None
    at: datetime | None = None
    ignored: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether anybody was named."""
        return bool(self.key or self.certificates or self.identity)


def signed_source(signature: Path, checkpoint: Checkpoint, signers: Signers) -> Source:
    """What a signature says, once it was checked who made it.

    Raises:
        UsageError: nobody was named who may have signed.
        BadSignature: it doesn't hold.
        FormatError: it can't be read.
        MissingExtra: a library is missing.
    """
    bundle = read_bundle(signature)
    signer = _signer(bundle, signers)
    model = checkpoint.path
    return dataclasses.replace(source_of(bundle, model, signers.ignored), signer=signer)


def _signer(bundle: Bundle, signers: Signers) -> str:
    from .oms_keys import check_certificate, check_key
    from .oms_sigstore import check_identity

    wanted = {"key": "--key PUBLIC.pem", "certificate": "--certificate ROOTS.pem", "sigstore": "--identity WHO --issuer URL"}
    if not signers.any:
        raise UsageError(f"signed with a {bundle.method}, and nobody was named to check it against", where=bundle.path,
                         hint=f"say whose signature you trust: {wanted[bundle.method]}")  # fmt: skip
    if sum(map(bool, (signers.key, signers.certificates, signers.identity))) > 1:
        raise UsageError("name one of a key, certificates and an identity", where=bundle.path)
    if signers.key is not None:
        return check_key(bundle, signers.key)
    if signers.certificates:
        return check_certificate(bundle, signers.certificates, signers.at)
    if not signers.issuer:
        raise UsageError("an identity needs its issuer", hint="for example --issuer https://accounts.google.com")
    return check_identity(bundle, str(signers.identity), signers.issuer, signers.root)


def find_source(
    spec: str, checkpoint: Checkpoint, signers: Signers, *, offline: bool = False, progress: Progress | None = None
) -> Source:
    """The source that ``spec`` names (see :data:`FORMS`).

    Raises:
        UsageError: no such thing.
        BadSignature, FormatError, NetworkError, MissingExtra: as for each kind.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in ("sums", "lock", "oms"):
        path = Path(rest.partition("#")[0] if kind == "lock" else rest).expanduser()
        if not path.is_file():
            raise UsageError("no such file", where=path, hint=f"{kind}:FILE is a file that you have")
        if kind == "sums":
            return read_sums(path)
        if kind == "oms":
            return signed_source(path, checkpoint, signers)
        return from_lock(read_lock(path), checkpoint, rest.partition("#")[2])
    if kind == "hub":
        return from_hub(rest, checkpoint, offline=offline)
    return from_mirror(open_checkpoint(spec, offline=offline, progress=progress), spec, progress)


def from_hub(ref: str, checkpoint: Checkpoint, *, offline: bool) -> Source:
    """What the hub says of ``ref``, or of the revision that the model was fetched from."""
    if not ref:
        if checkpoint.source["kind"] != "hub":
            raise UsageError("this model was not fetched from the hub", where=checkpoint.ref,
                             hint="say what it is a copy of: hub:ORG/NAME@REVISION")  # fmt: skip
        return published(checkpoint.source["repo"], checkpoint.source["revision"], offline=offline)
    repo, _, revision = ref.partition("@")
    return published(repo, revision or None, offline=offline)


def from_mirror(other: Checkpoint, spec: str, progress: Progress | None = None) -> Source:
    """Another copy of the model as a source: its files are read and digested."""
    taken = take_all(model_files(other), other, progress)
    files: Digests = {n: (Said("sha256", t.sha256),) for n, t in taken.items()}
    digests = {n: row[0] for t in taken.values() for n, row in t.tensors.items()}
    return Source(f"mirror:{spec}", "mirror", spec, files, digest_of_said(files), complete=False,
                  weights=other.digest_of(digests))  # fmt: skip


def from_lock(lock: Lock, checkpoint: Checkpoint, name: str = "") -> Source:
    """Somebody else's lock as a source: the entry ``name``, or the one that can be meant.

    Raises:
        UsageError: it can't be told which entry is meant.
    """
    models = lock.record.models
    if name:
        return dataclasses.replace(lock.source(name), weights=models[name].digest)
    repo = checkpoint.source.get("repo", "")
    tries = [lock.name_of(checkpoint), *(n for n in models if repo and n.startswith(f"{repo}@"))]
    here = [n for n in models if Path(n).name == checkpoint.path.name]
    chosen = next((n for n in tries if n in models), here[0] if len(here) == 1 else None)
    chosen = chosen or (next(iter(models)) if len(models) == 1 else None)
    if chosen is None:
        raise UsageError("it can't be told which of its models is meant", where=lock.path,
                         hint=f"name one: lock:{lock.path}#NAME")  # fmt: skip
    return dataclasses.replace(lock.source(chosen), weights=models[chosen].digest)


def unique_names(sources: Sequence[Source]) -> list[Source]:
    """The same sources under names that differ: a second ``sums:SHA256SUMS`` becomes ``sums:SHA256SUMS#2``."""
    seen: dict[str, int] = {}
    found = []
    for source in sources:
        seen[source.name] = seen.get(source.name, 0) + 1
        n = seen[source.name]
        found.append(source if n == 1 else dataclasses.replace(source, name=f"{source.name}#{n}"))
    return found
