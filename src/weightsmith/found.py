"""What a scan says, as records: findings, the files that were read, and one verdict.

A finding is data, never an exception. Its ``severity`` is its rule's unless a policy changes it, and the worst one
decides the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from .records import Strict

SCAN = "weightsmith/scan/1"

Severity = Literal["note", "suspicious", "unknown", "broken", "malicious"]
Verdict = Literal["clean", "suspicious", "could not tell", "broken", "malicious"]

#: from harmless to worst; ``unknown`` is what could not be analysed: nobody can consent to that, so it outweighs suspicion
ORDER: tuple[Severity, ...] = ("note", "suspicious", "unknown", "broken", "malicious")
_VERDICTS: dict[Severity, Verdict] = {
    "note": "clean", "suspicious": "suspicious", "unknown": "could not tell", "broken": "broken", "malicious": "malicious",
}  # fmt: skip
EXIT_CODES: dict[Verdict, int] = {"clean": 0, "suspicious": 1, "broken": 1, "malicious": 1, "could not tell": 2}


class Finding(Strict):
    """One thing that a rule found.

    ``file`` is the path inside the model folder (POSIX, a member of an archive after ``!``), empty for the folder as a
    whole; ``place`` says where in it (``byte 17``, ``tensor 'lm_head.weight'``, ``$.auto_map.AutoConfig``); ``message``
    is one sentence, ``evidence`` an excerpt. Both may hold bytes of the model: whoever prints them escapes them.
    """

    rule: str
    severity: Severity
    file: str = ""
    place: str = ""
    message: str
    evidence: str = ""


class ScannedFile(Strict):
    """One file of the folder: its content's kind (not its name's), its size in bytes and its SHA-256.

    ``sha256`` is ``None`` for what could not be read whole; a finding then says why.
    """

    name: str
    kind: str
    size: int
    sha256: str | None = None


class ScannedTensor(Strict):
    """One tensor's BLAKE3 digest and whether all of its values are finite, taken in the pass that read the file."""

    file: str
    name: str
    blake3: str
    finite: bool


class RuleText(Strict):
    """What a rule means, beside its findings."""

    title: str
    severity: Severity
    why: str
    action: str
    see: list[str] = Field(default_factory=list)


class ScanRecord(Strict):
    """The outcome of one scan.

    ``rules`` explains each rule that found something; ``checked`` lists what was looked at and ``unchecked`` what this
    scan could not look at, in sentences; ``policy`` names the policy's digest, empty for the default one. ``seconds`` is
    wall time; ``bytes`` counts the bytes of all files.
    """

    schema_id: str = Field(SCAN, alias="schema")
    version: str
    model: str
    path: str
    verdict: Verdict
    findings: list[Finding]
    rules: dict[str, RuleText]
    files: list[ScannedFile]
    tensors: list[ScannedTensor] = Field(default_factory=list)
    checked: list[str] = Field(default_factory=list)
    unchecked: list[str] = Field(default_factory=list)
    scanners: dict[str, str] = Field(default_factory=dict)
    policy: str = ""
    seconds: float = 0.0
    bytes: int = 0


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The verdict that the worst finding makes; ``clean`` without any."""
    worst = max((ORDER.index(f.severity) for f in findings), default=0)
    return _VERDICTS[ORDER[worst]]
