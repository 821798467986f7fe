"""``SHA256SUMS`` files, as coreutils and the BSDs write them.

Three shapes of a line: ``HEX  NAME`` (text), ``HEX *NAME`` (binary) and ``SHA256 (NAME) = HEX`` (tag). A line that begins
with a backslash has ``\\\\``, ``\\n`` and ``\\r`` in its name escaped. Lines of ``#`` and empty ones are left out. Anything else
is an error with its line: a line that is passed over in silence is a file that nobody checks.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ...errors import FormatError, LimitExceeded
from ...pinned import inside
from .vouched import Said, Source

NAMES = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt", "checksums.sha256", "CHECKSUMS.sha256")
MAX_BYTES = 64 << 20
_PLAIN = re.compile(r"([0-9A-Fa-f]{64}) [ *](.+)", re.DOTALL)
_TAG = re.compile(r"SHA256 ?\((.+)\) ?= ?([0-9A-Fa-f]{64})", re.DOTALL)
_OTHER = re.compile(r"([0-9A-Fa-f]{32,128}) [ *].+|([A-Za-z0-9/-]+) ?\(.+\) ?= ?[0-9A-Fa-f]+", re.DOTALL)


def find_sums(folder: Path) -> Path | None:
    """The file of checksums in a model's folder, by its usual names."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_sums(path: Path) -> Source:
    """The digests of a file of checksums.

    Raises:
        FormatError: a malformed line, another algorithm, a name that leaves the folder, or one file with two digests.
        LimitExceeded: larger than 64 MiB.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise LimitExceeded("a file of checksums of more than 64 MiB", where=path)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", where=path) from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#"):
            continue
        name, digest = _parsed(line, f"{path}, line {number}")
        if found.setdefault(name, digest) != digest:
            raise FormatError(f"{name!r:.120} has two digests", where=f"{path}, line {number}")
    if not found:
        raise FormatError("it lists no file", where=path)
    files = {name: (Said("sha256", digest),) for name, digest in found.items()}
    # a list can't hold its own digest
    return Source(f"sums:{path.name}", "sums", path.name, files, hashlib.sha256(raw).hexdigest(), left_out=(path.name,))


def _parsed(line: str, where: str) -> tuple[str, str]:
    escaped = line.startswith("\\")
    body = line[1:] if escaped else line
    if match := _TAG.fullmatch(body):
        name, digest = match[1], match[2]
    elif match := _PLAIN.fullmatch(body):
        digest, name = match[1], match[2]
    else:
        other = _OTHER.fullmatch(body)
        what = "a digest of another algorithm than SHA-256" if other else "not a line of a file of checksums"
        raise FormatError(what, where=where, hint="expected `HEX  NAME`, as `sha256sum` writes it")
    name = _unescaped(name, where) if escaped else name
    while name.startswith("./"):
        name = name[2:]
    try:
        return inside(name), digest.lower()
    except ValueError as error:
        raise FormatError(str(error), where=where) from error


def _unescaped(name: str, where: str) -> str:
    parts = re.split(r"(\\.?)", name, flags=re.DOTALL)
    known = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
    if bad := [p for p in parts[1::2] if p not in known]:
        raise FormatError(f"unknown escape {bad[0]!r}", where=where)
    return "".join(known.get(p, p) if i % 2 else p for i, p in enumerate(parts))
