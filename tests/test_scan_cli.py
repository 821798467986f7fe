"""``weightsmith scan`` on the command line: several models, outputs, what is refused before anything is read, and the layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clirun import assert_one_error, cli
from weightsmith.jobs import scan as scan_job

SCAN = scan_job.__globals__


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a clean model in it and one that leads outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("good", "odd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("plain text\n")
    (tmp_path / "odd" / "out").symlink_to("/etc/passwd")
    return tmp_path


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be read."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was read")

    monkeypatch.setitem(SCAN, "scan_path", never)


def test_one_model_that_is_not_there_does_not_hide_the_others(folder: Path) -> None:
    done = cli("scan", "good", "nowhere", "odd")
    assert done.code == 1, "the suspicious one decides"
    assert "nowhere: no such model" in done.err
    assert "3 models: 1 clean, 1 suspicious, 1 not scanned" in done.words
    assert cli("scan", "good", "nowhere").code == 2, "what was not scanned is not clean"


def test_json_holds_one_entry_for_each_model_in_their_order(folder: Path) -> None:
    done = cli("scan", "good", "nowhere", "odd", "--json", "-o", "all.json")
    first, second, third = json.loads(done.out)
    assert (first["verdict"], second["where"], third["verdict"]) == ("clean", "nowhere", "suspicious")
    assert json.loads((folder / "all.json").read_text())[1] == second
    assert json.loads(cli("scan", "good", "--json").out)["verdict"] == "clean"


@pytest.mark.usefixtures("unread")
def test_what_is_wrong_with_the_options_is_said_before_anything_is_read(folder: Path) -> None:
    (folder / "taken.json").write_text("mine")
    (folder / "policy.yaml").write_text("schema: weightsmith/policy/1\nrules: {no-such-rule: note}\n")
    for argv, said in (
        (("-o", "taken.json"), "exists already"),
        (("--policy", "policy.yaml"), "no rule is called 'no-such-rule'"),
        (("odd", "--policy", "policy.yaml"), "no rule is called 'no-such-rule'"),
        (("--sarif", "--json"), "two forms"),
    ):
        done = cli("scan", "good", *argv)
        assert done.code == 2
        assert said in done.err
        assert_one_error(done.err)
    assert (folder / "taken.json").read_text() == "mine"


@pytest.mark.parametrize("kind", ["pipe", "empty", "/dev/null"])
def test_what_holds_no_file_is_never_clean(folder: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(folder / kind)
    elif kind == "empty":
        (folder / kind).mkdir()
    done = cli("scan", kind)
    assert done.code == 2
    assert "clean" not in done.out


def test_many_findings_of_one_rule_are_told_once_and_counted(folder: Path) -> None:
    for number in range(30):
        (folder / "odd" / f"out{number}").symlink_to("/etc/passwd")
    done = cli("scan", "odd")
    assert done.out.count("link-leaves-folder") == 12
    assert "… and 19 more; --json prints all" in done.out
    assert done.out.count("→ ") == 1


def test_no_printed_line_ends_in_spaces_and_evidence_keeps_its_bar(folder: Path) -> None:
    (folder / "odd" / "run.py").write_text("import os\nos.system('" + "true " * 60 + "')\n")
    done = cli("scan", "odd")
    assert all(line == line.rstrip() for line in done.out.splitlines())
    long = [line for line in done.out.splitlines() if "true true" in line]
    assert len(long) > 1, "the evidence takes more than one line here"
    assert all(line.lstrip().startswith("│ ") for line in long)
