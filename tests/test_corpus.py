"""The gate against its corpus: everything hostile and broken is caught, nothing honest is, and nothing is executed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from corpus import MARKER, Case, all_cases
from weightsmith.found import EXIT_CODES, ORDER
from weightsmith.trust.gate import all_rules, scan_path

CASES = all_cases()
HOSTILE = [c for c in CASES if c.verdict != "clean"]
HONEST = [c for c in CASES if c.verdict == "clean"]


def made(case: Case, folder: Path) -> None:
    """Build a case; what the exporters warn of is none of ours."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.build(folder)


def test_the_corpus_is_large_enough() -> None:
    assert len(HOSTILE) >= 120
    assert len(HONEST) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_verdict(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, marker = tmp_path / "model", tmp_path / "marker"
    made(case, folder)
    monkeypatch.setenv(MARKER, str(marker))
    record = scan_path(folder, "model")
    above = [(f.rule, f.file, f.message) for f in record.findings if f.severity != "note"]
    assert record.verdict == case.verdict, above
    assert not case.rules or {f.rule for f in record.findings} & set(case.rules), above
    assert all(f.rule in record.rules for f in record.findings)
    if record.tensors:  # without their digests it says the same
        quick = scan_path(folder, "model", digests=False)
        assert (quick.findings, quick.files, quick.tensors) == (record.findings, record.files, [])
    assert not marker.exists()


def test_every_expected_rule_exists() -> None:
    assert {r for c in CASES for r in c.rules} <= set(all_rules())


def test_each_payload_that_executes_is_proved_to_fire(tmp_path: Path) -> None:
    jobs = []
    for number, case in enumerate(c for c in HOSTILE if c.fires):
        if all(importlib.util.find_spec(n) for n in case.needs):
            folder = tmp_path / str(number)
            made(case, folder)
            marker = str(tmp_path / f"{number}.marker")
            jobs.append({"name": case.name, "folder": str(folder), "marker": marker, "fires": case.fires})
    assert len(jobs) >= 40
    script = Path(__file__).parent / "corpus" / "firing.py"
    lines = "".join(json.dumps(j) + "\n" for j in jobs)
    done = subprocess.run([sys.executable, str(script)], input=lines, capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(jobs), done.stderr[-2000:]
    assert not [(a["name"], a["said"][-300:]) for a in answers if not a["fired"]]


def test_verdicts_have_an_order_and_an_exit_code() -> None:
    assert ORDER == ("note", "suspicious", "unknown", "broken", "malicious")
    assert {EXIT_CODES[v] for v in ("suspicious", "malicious", "broken")} == {1}
    assert EXIT_CODES["clean"] == 0
    assert EXIT_CODES["could not tell"] == 2
