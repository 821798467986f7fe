"""Signatures of models in the form of the OpenSSF (OMS 1.0): read, checked against a key, a certificate or an identity.

A signature is a Sigstore bundle (JSON) around a DSSE envelope around an in-toto statement, which lists every file of the
model with its digest. Three questions are kept apart: is the envelope signed by whom the user names
(:mod:`.oms_keys`, :mod:`.oms_sigstore`), does the statement make sense (here), and are the files those that it lists
(:func:`.vouched.compare`). The statement is not looked into before the first is answered.

Where the reference command is laxer, this reader is not: certificates are checked at the present and not at the time that
they themselves name, exactly one signature is read, resources must be in order and without duplicates, and paths that the
signer left out are nobody's unless they are bookkeeping of git or the user says so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import BadSignature, FormatError, LimitExceeded
from ...pinned import inside
from ...storage import strict_json
from .taken import LEFT_OUT, hub_blobs, walk
from .vouched import Said, Source, covers, is_left_out

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
#: what a signer may leave out without a word
ALLOWED = (".git", ".gitattributes", ".github", ".gitignore")
NAMES = ("model.sig", "model.sigstore.json", "signature.sig")
MAX_BYTES = 64 << 20
_LENGTHS = {"sha256": 64, "blake2b": 128, "blake3": 64}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A signature file, taken apart and not yet believed.

    ``payload`` is what was signed, ``signature`` the raw signature, ``material`` says with what: a key's hint, a chain of
    certificates, or a Fulcio certificate with entries of a transparency log. ``raw`` is the whole file.
    """

    path: Path
    payload: bytes
    signature: bytes
    material: Mapping[str, Any]
    raw: bytes

    @property
    def method(self) -> str:
        """``key``, ``certificate`` or ``sigstore``: who has to be named to check it."""
        if "x509CertificateChain" in self.material:
            return "certificate"
        return "sigstore" if "certificate" in self.material else "key"

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over (DSSE's pre-authentication encoding)."""
        return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(self.payload), self.payload)


def find_signature(folder: Path) -> Path | None:
    """The signature in a model's folder, by its usual names."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_bundle(path: Path) -> Bundle:
    """Take a signature file apart.

    Raises:
        FormatError: not a bundle of version 0.3 with one DSSE signature over an in-toto statement.
        LimitExceeded: larger than 64 MiB.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise LimitExceeded("a signature of more than 64 MiB", where=path)
    value = _json(raw, path)
    if value.get("mediaType") != BUNDLE:
        raise FormatError(f"not a signature that is known: its type is {value.get('mediaType')!r:.100}", where=path,
                          hint=f"expected {BUNDLE}")  # fmt: skip
    envelope, material = value.get("dsseEnvelope"), value.get("verificationMaterial")
    if not isinstance(envelope, dict) or not isinstance(material, dict) or "messageSignature" in value:
        raise FormatError("expected verificationMaterial and a dsseEnvelope, nothing else that is signed", where=path)
    if envelope.get("payloadType") != PAYLOAD:
        raise FormatError(f"the payload is {envelope.get('payloadType')!r:.100}, not {PAYLOAD}", where=path)
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise FormatError("exactly one signature is expected in the envelope", where=path,
                          hint="two signers make two files")  # fmt: skip
    if sum(k in material for k in ("publicKey", "x509CertificateChain", "certificate")) != 1:
        raise FormatError("expected one of publicKey, x509CertificateChain and certificate", where=path)
    return Bundle(path, _bytes(envelope.get("payload"), path), _bytes(signatures[0].get("sig"), path), material, raw)


def _bytes(text: Any, where: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise FormatError("a field is not base64", where=where) from error


def _json(raw: bytes, where: object) -> dict[str, Any]:
    """A JSON object without duplicate keys, of which two readers may take different ones."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise FormatError("a key stands twice", where=where)
        return found

    try:
        value = strict_json(raw, pairs)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON ({error})", where=where) from error
    if not isinstance(value, dict):
        raise FormatError("expected a JSON object", where=where)
    return value


def source_of(bundle: Bundle, model: Path, ignored: Iterable[str] = ()) -> Source:
    """What a signature that was checked says of the files of ``model``; ``ignored`` is what the user allows it to leave out.

    Raises:
        BadSignature: the statement contradicts itself, leaves files out, or there are links where it allows none.
        FormatError: not a statement of OMS 1.0.
    """
    where = bundle.path
    value = _json(bundle.payload, where)
    if value.get("_type") != STATEMENT or value.get("predicateType") != PREDICATE:
        raise FormatError(f"a statement of another kind: {value.get('predicateType')!r:.100}", where=where,
                          hint=f"this version reads {PREDICATE}")  # fmt: skip
    predicate, subjects = value.get("predicate"), value.get("subject")
    if not isinstance(predicate, dict) or not isinstance(subjects, list) or len(subjects) != 1:
        raise FormatError("expected one subject and a predicate", where=where)
    how, resources = predicate.get("serialization"), predicate.get("resources")
    if not isinstance(how, dict) or not isinstance(resources, list) or not resources:
        raise FormatError("expected serialization and resources", where=where)
    method = _method(how, where)
    rows = [_resource(row, method, where) for row in resources]
    _check_order([name for name, _ in rows], method, where)
    whole = hashlib.sha256(b"".join(bytes.fromhex(said.value) for _, said in rows)).hexdigest()
    digest = subjects[0].get("digest") if isinstance(subjects[0], dict) else None
    if not isinstance(digest, dict) or digest.get("sha256") != whole:
        raise BadSignature("the digest of its subject is not that of the files it lists", where=where)
    files: dict[str, tuple[Said, ...]] = {}
    for name, said in rows:
        files[name] = (*files.get(name, ()), said)
    for said_of in files.values():
        covers(said_of, where)
    files = _single(files, model)
    left_out = _left_out(how, bundle.path, model, tuple(ignored))
    _check_links(model, how.get("allow_symlinks") is True, left_out, where)
    return Source(f"oms:{bundle.path.name}", "oms", bundle.path.name, files, hashlib.sha256(bundle.raw).hexdigest(),
                  strict=model.is_dir(), left_out=left_out)  # fmt: skip


def _method(how: Mapping[str, Any], where: object) -> str:
    method, links, skipped = how.get("method"), how.get("allow_symlinks"), how.get("ignore_paths", [])
    if method not in ("files", "shards"):
        raise FormatError(f"unknown method of serialization {method!r:.60}", where=where)
    if not isinstance(links, bool) or not isinstance(skipped, list) or not all(isinstance(p, str) for p in skipped):
        raise FormatError("allow_symlinks must be true or false, ignore_paths a list of names", where=where)
    return str(method)


def _resource(row: Any, method: str, where: object) -> tuple[str, Said]:
    """Name and digest of one listed file, or of one piece of it (``NAME:START:END``, digest ``sha256-sharded-SIZE``)."""
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("name", "algorithm", "digest")):
        raise FormatError("a resource needs name, algorithm and digest", where=where)
    name, algorithm, digest = row["name"], row["algorithm"], row["digest"]
    start, length = 0, None
    if method == "shards":
        match = re.fullmatch(r"(.+):(\d{1,18}):(\d{1,18})", name, re.DOTALL | re.ASCII)
        if match is None or int(match[2]) >= int(match[3]):
            raise FormatError(f"{name!r:.120} is not NAME:START:END", where=where)
        name, start, length = match[1], int(match[2]), int(match[3]) - int(match[2])
        algorithm = re.sub(r"-sharded-\d+\Z", "", algorithm)
    if algorithm not in _LENGTHS or not re.fullmatch(rf"[0-9a-f]{{{_LENGTHS.get(algorithm, 0)}}}", digest, re.ASCII):
        raise FormatError(f"{name!r:.120} has a digest that can't be read ({algorithm!r:.40})", where=where)
    try:
        return name if name == "." else inside(name), Said(algorithm, digest, start, length)
    except ValueError as error:
        raise BadSignature(str(error), where=where) from error


def _check_order(names: list[str], method: str, where: object) -> None:
    """Files in order, by code point or by folder (as the reference command sorts), each once; pieces in order."""
    if method == "files" and len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise BadSignature(f"{twice!r:.120} is listed twice", where=where)
    orders = (lambda n: n, lambda n: PurePosixPath(n).parts)
    if not any(names == sorted(names, key=order) for order in orders):
        raise BadSignature("the files that it lists are not in order", where=where)


def _single(files: dict[str, tuple[Said, ...]], model: Path) -> dict[str, tuple[Said, ...]]:
    """For a model of one file: the reference command calls it ``.``, the specification by its name."""
    if model.is_dir():
        return files
    said = files.pop(".", None)
    return files if said is None else {**files, model.name: said}


def _left_out(how: Mapping[str, Any], signature: Path, model: Path, ignored: tuple[str, ...]) -> tuple[str, ...]:
    """Names that the signature says nothing of and need not."""
    mine: tuple[str, ...] = ()
    itself = signature.parent.resolve() / signature.name  # it may be a link, as all files of the hub's cache are
    if model.is_dir() and itself.is_relative_to(model.resolve()):
        mine = (itself.relative_to(model.resolve()).as_posix(),)
    allowed = (*ALLOWED, *LEFT_OUT[1:], *mine, *ignored)
    for name in how.get("ignore_paths", []):
        if not is_left_out(name, allowed) and model.is_dir() and (model / name).exists():
            raise BadSignature(f"whoever signed left {name!r:.120} out, so nobody vouches for it", where=signature,
                               hint=f"remove it, or say --ignore {name!r:.60}")  # fmt: skip
    return allowed


def _check_links(model: Path, allowed: bool, left_out: tuple[str, ...], where: object) -> None:
    """No links but where the signer allowed them, and none that leave the model; the hub's cache is made of links of ours.

    Raises:
        BadSignature: there is one.
    """
    if not model.is_dir():
        return
    real, blobs = model.resolve(), hub_blobs(model)
    for path, kind in walk(model):
        name = path.relative_to(model).as_posix()
        if kind != "link" or is_left_out(name, left_out):
            continue
        target = path.resolve()
        if blobs is not None and target.is_relative_to(blobs):
            continue
        if not allowed:
            raise BadSignature(f"{name!r:.120} is a link, and the signature allows none", where=where)
        if not target.is_relative_to(real):
            raise BadSignature(f"{name!r:.120} is a link that leaves the model", where=where)
