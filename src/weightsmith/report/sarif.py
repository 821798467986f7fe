"""A scan as SARIF 2.1.0, the format that code hosts show beside a change."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ..found import Finding, ScanRecord, Severity

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS: dict[Severity, str] = {
    "note": "note", "suspicious": "warning", "unknown": "error", "broken": "error", "malicious": "error",
}  # fmt: skip


def sarif(records: list[ScanRecord]) -> dict[str, Any]:
    """One SARIF log with a run for each scan; the verdict stands in the run's properties."""
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(r) for r in records]}


def _run(record: ScanRecord) -> dict[str, Any]:
    names = sorted(record.rules)
    driver = {
        "name": "weightsmith", "version": record.version,
        "rules": [{
            "id": name, "shortDescription": {"text": record.rules[name].title},
            "fullDescription": {"text": record.rules[name].why}, "help": {"text": _help(record, name)},
            "defaultConfiguration": {"level": _LEVELS[record.rules[name].severity]},
        } for name in names],
    }  # fmt: skip
    return {
        "tool": {"driver": driver},
        "originalUriBaseIds": {"MODEL": {"description": {"text": f"the folder of {record.model}"}}},
        "invocations": [{"executionSuccessful": record.verdict != "could not tell"}],
        "results": [_result(f, names) for f in record.findings],
        "properties": {"verdict": record.verdict, "model": record.model, "files": len(record.files), "bytes": record.bytes},
    }  # fmt: skip


def _help(record: ScanRecord, name: str) -> str:
    rule = record.rules[name]
    return "\n".join([rule.action, *rule.see])


def _result(finding: Finding, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ruleId": finding.rule, "level": _LEVELS[finding.severity], "message": {"text": finding.message},
        "properties": {"severity": finding.severity, "evidence": finding.evidence},
    }  # fmt: skip
    if finding.rule in names:
        found["ruleIndex"] = names.index(finding.rule)
    file, _, member = finding.file.partition("!")
    place: dict[str, Any] = {"artifactLocation": {"uri": quote(file or "."), "uriBaseId": "MODEL"}}
    location: dict[str, Any] = {"physicalLocation": place}
    logical = " ".join(part for part in (member, finding.place) if part)
    if logical:
        location["logicalLocations"] = [{"fullyQualifiedName": logical}]
    found["locations"] = [location]
    return found
