"""What is pinned and what was verified, as records: the lock file, and the outcome of ``weightsmith verify``.

A lock is JSON of one shape only: keys sorted, one line for each file and each tensor, so that a change of one file is a
change of one line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_serializer

from .records import Strict

LOCK = "weightsmith/lock/1"
VERIFICATION = "weightsmith/verification/1"

Hex64 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


def inside(name: str) -> str:
    """A relative POSIX path that stays below the folder it is relative to, or a ``ValueError``."""
    parts = name.split("/")
    odd = "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name)
    if odd or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:200]!r} is not a plain path inside the folder")
    return name


Inside = Annotated[str, AfterValidator(inside)]


class _Short(Strict):
    """A record that leaves out what is empty: it stands on one line."""

    @model_serializer(mode="wrap")
    def _filled(self, whole: Any) -> dict[str, Any]:
        return {k: v for k, v in whole(self).items() if v not in ({}, [], "", None)}


class PinnedFile(_Short):
    """One file: its bytes, and who else vouches for them.

    ``size`` is in bytes. ``by`` names the sources that gave the same digest, ``against`` the sources that gave another
    one, with it: whoever pinned the file chose not to trust these.
    """

    size: int = Field(ge=0)
    sha256: Hex64
    blake3: Hex64
    by: list[str] = []
    against: dict[str, str] = {}


class PinnedTensor(Strict):
    """One tensor: dtype, shape in elements, and the BLAKE3 digest of its bytes."""

    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    blake3: Hex64


SourceKind = Literal["hub", "mirror", "sums", "oms", "lock"]


class PinnedSource(_Short):
    """Somebody who said digests: ``what`` is a reference or a file name; ``digest`` the SHA-256 of what was said.

    ``signer`` is whose key or certificate made a signature hold. ``same`` counts the files of which it gave the same digest;
    ``weights`` says whether its tensors are the same, for a source that has them. ``trusted`` is false where it says something
    else of a file and was overruled.
    """

    kind: SourceKind
    what: str
    digest: Hex64
    files: int = 0
    same: int = 0
    signer: str = ""
    weights: Literal["", "same", "others"] = ""
    trusted: bool = True


class PinnedModel(Strict):
    """One model of a lock.

    ``digest`` is over all tensors (see ``Checkpoint.digest``); ``source`` says where the files came from;
    ``not_finite`` names tensors that hold NaN or infinity.
    """

    kind: Literal["folder", "gguf"]
    source: dict[str, str]
    digest: Hex64
    files: dict[Inside, PinnedFile]
    tensors: dict[str, PinnedTensor]
    sources: dict[str, PinnedSource] = {}
    not_finite: list[str] = []


class LockRecord(Strict):
    """The whole lock file; models by reference (``org/name@revision``, ``demo:NAME``, or a path relative to the lock)."""

    schema_id: str = Field(LOCK, alias="schema")
    models: dict[str, PinnedModel] = {}


# -- what changed between two pins -----------------------------------------------------------------------------------


class FileChange(Strict):
    """One file of two versions; ``details`` are sentences: JSON keys with their old and new values, lines of a template."""

    file: str
    what: Literal["added", "removed", "changed"]
    details: list[str] = []


class TensorChange(Strict):
    """One tensor of two versions; ``before`` and ``after`` are dtype and shape."""

    tensor: str
    what: Literal["added", "removed", "changed", "another type or shape"]
    before: str = ""
    after: str = ""


class PinChanges(Strict):
    """What differs between what is pinned and what is there now."""

    before: str
    after: str
    files: list[FileChange] = []
    tensors: list[TensorChange] = []
    same_tensors: int = 0

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.files and not self.tensors


# -- verification ----------------------------------------------------------------------------------------------------

Said = Literal["same", "differs", "missing", "unlisted"]


class FileVerdict(Strict):
    """What one source says of one file: ``said`` is its digest, ``got`` that of the bytes here, both ``algorithm:hex``."""

    file: str
    what: Said
    said: str = ""
    got: str = ""


class Check(Strict):
    """One source that could vouch for the model, and what came of asking it.

    ``outcome``: *agrees*, *differs* (a bad verdict), *could not tell* (it is there and can't be used: ``why`` says what is
    missing), *absent* (there is none). ``same`` counts files with the same digest; ``files`` lists only the others.
    ``signer`` is whose key or certificate signed; ``independent`` is false for what comes with the model itself.
    """

    kind: Literal["lock", "sums", "oms", "hub", "record"]
    name: str
    outcome: Literal["agrees", "differs", "could not tell", "absent"]
    why: str = ""
    signer: str = ""
    independent: bool = True
    same: int = 0
    files: list[FileVerdict] = []
    tensors: list[TensorChange] = []


class PinRecord(Strict):
    """What ``weightsmith pin`` did or would do: sources and where they disagree."""

    model: str
    name: str
    lock: str
    written: bool
    files: int
    tensors: int
    bytes: int
    digest: str
    sources: dict[str, PinnedSource] = {}
    disagreements: list[Disagreement] = []
    nobody: list[str] = []
    changes: PinChanges | None = None


class Disagreement(Strict):
    """One file of which the sources say different things; ``says`` maps a source (``here`` is the bytes on disk) to its
    digest, ``not there`` or ``not listed``."""

    file: str
    says: dict[str, str]


class VerificationRecord(Strict):
    """The outcome of ``weightsmith verify``.

    ``verdict`` is *agrees* when at least one check could be made and none differs. ``nobody`` lists files for which no
    source that agrees vouches. ``broken`` says why the files can't be opened as a model, where they can't. ``bytes`` counts
    the bytes that were read.
    """

    schema_id: str = Field(VERIFICATION, alias="schema")
    version: str
    model: str
    path: str
    verdict: Literal["agrees", "differs", "could not tell"]
    checks: list[Check]
    files: int
    broken: str = ""
    nobody: list[str] = []
    bytes: int = 0
    seconds: float = 0.0
