"""The scan as a whole: awkward folders, scanners that fail, the process that scans, the gate, policies and outputs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clirun
import pico
from weightsmith import RunOptions, open_checkpoint
from weightsmith.errors import NotAnalysed, RecipeError, UnsafeModel, UsageError
from weightsmith.found import Finding, ScanRecord, verdict_of
from weightsmith.jobs import scan
from weightsmith.report.sarif import sarif
from weightsmith.runtime import load
from weightsmith.trust import child, gate, listing
from weightsmith.trust.items import Folder, Item, Scanner
from weightsmith.trust.rules import Rule
from weightsmith.trust.scan import SCANNERS, Scan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean pico model."""
    folder = tmp_path_factory.mktemp("scan") / "model"
    pico.build("qwen2", folder)
    return folder


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    import shutil

    return Path(shutil.copytree(model, tmp_path / "copy"))


def rules(path: Path) -> dict[str, str]:
    """Rules above a note that fired, with the files."""
    return {f.rule: f.file for f in gate.scan_path(path, "m").findings if f.severity != "note"}


# -- awkward folders ------------------------------------------------------------------------------------------


def test_a_clean_model_is_clean_and_read_whole(model: Path) -> None:
    record = scan(model)
    assert record.verdict == "clean"
    names = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    assert {f.name for f in record.files} == names
    assert all(f.sha256 and len(f.sha256) == 64 for f in record.files)
    opened = open_checkpoint(str(model))
    assert {t.name: t.blake3 for t in record.tensors} == opened.tensor_digests()
    assert ScanRecord.model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_pipes_sockets_devices_and_links_are_named_and_never_opened(copy: Path) -> None:
    os.mkfifo(copy / "weights.bin")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(copy)  # a socket's path is short
        server.bind("sock")
        os.chdir(here)
    (copy / "loop").symlink_to("loop")
    (copy / "away").symlink_to("/etc/hostname")
    (copy / "up").symlink_to("..")
    found = gate.scan_path(copy, "m")
    by_rule: dict[str, set[str]] = {}
    for f in found.findings:
        by_rule.setdefault(f.rule, set()).add(f.file)
    assert by_rule["special-file"] == {"weights.bin", "sock"}
    assert by_rule["link-broken"] == {"loop"}
    assert by_rule["link-leaves-folder"] == {"away", "up"}
    assert found.verdict == "suspicious"


def test_a_link_inside_the_folder_and_a_hub_snapshot_are_fine(copy: Path, tmp_path: Path) -> None:
    (copy / "copy.json").symlink_to("config.json")
    assert "link-leaves-folder" not in rules(copy)
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in copy.iterdir() if not p.is_symlink())):
        file.rename(repo / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert gate.scan_path(snapshot, "m").verdict == "clean"


def test_a_sparse_file_costs_nothing(copy: Path) -> None:
    with (copy / "model-00002.safetensors").open("wb") as file:
        file.truncate(64 << 30)
    started = time.monotonic()
    found = gate.scan_path(copy, "m")
    assert time.monotonic() - started < 20  # hashing 64 GB takes a minute at the least
    assert "sparse-file" in {f.rule for f in found.findings}


def test_names_that_a_terminal_would_act_on_come_out_escaped(copy: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    bad = os.fsencode(copy) + b"/\xff\x1b]0;owned\x07\xe2\x80\xae.json"
    Path(os.fsdecode(bad)).write_text("{}")
    code = clirun.run(["scan", str(copy)])
    printed = capfdbinary.readouterr().out
    assert code == 1
    assert b"odd-name" in printed
    assert not set(printed) & {0x1B, 0x07}
    assert "\u202e".encode() not in printed


def test_too_many_files_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_FILES", 50)
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text("x")
    findings = list(listing.list_folder(tmp_path, folder := Folder(tmp_path)))
    assert [f.rule for f in findings] == ["too-many-files"]
    assert len(folder.items) == 50


def test_an_unknown_binary_file_is_never_skipped(copy: Path) -> None:
    (copy / "blob").write_bytes(bytes(range(255, 0, -1)) * 40)
    found = gate.scan_path(copy, "m")
    assert "blob" in {f.file for f in found.findings if f.severity == "unknown"}
    assert found.verdict == "could not tell"


def test_nothing_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        scan(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="there is no file in it"):
        scan(tmp_path)


# -- scanners that fail ---------------------------------------------------------------------------------------


class Breaking(Scanner):
    """Fails in the way that the file's text says."""

    name = "breaking"
    rules = (Rule("never", "note", "t", "w", "a"),)
    kinds = frozenset({"text"})

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        said = item.text().strip()
        if said == "raise":
            raise ZeroDivisionError("no")
        if said == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if said == "hang":
            time.sleep(60)
        if said == "eat":
            bytearray(4 << 30)
        yield self.rules[0].found("seen", file=item.name)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scanner as a plug-in, and scans as forks of this process."""
    SCANNERS.names()
    monkeypatch.setattr(SCANNERS, "_targets", {**SCANNERS._all(), "breaking": f"{__name__}:Breaking"})
    monkeypatch.setattr(child, "_events", child._of_fork)
    monkeypatch.setattr(child, "SILENCE", 6.0)


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize(("how", "rule", "said"), [
    ("raise", "scanner-failed", "ZeroDivisionError"),
    ("die", "scanner-stopped", "signal 9"),
    ("hang", "scanner-stopped", "silent"),
    ("eat", "scanner-failed", "MemoryError"),
])  # fmt: skip
def test_whatever_a_scanner_does_is_a_finding_about_its_file(tmp_path: Path, how: str, rule: str, said: str) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_text(how)
    (tmp_path / "c.txt").write_text("fine as well")
    found = gate.scan_path(tmp_path, "m")
    failures = [f for f in found.findings if f.rule in (rule, "scanner-failed", "scanner-stopped")]
    assert [(f.rule, f.file) for f in failures] == [(rule, "b.txt")], failures
    failed = failures[0]
    assert failed.file == "b.txt"
    assert said in failed.message
    assert {f.file for f in found.findings if f.rule == "never"} == {"a.txt", "c.txt"}
    assert found.verdict == "could not tell"


@pytest.mark.usefixtures("breaking")
def test_what_the_caller_holds_is_not_counted(tmp_path: Path) -> None:
    held = bytearray(child.MEMORY + (64 << 20))
    held[::4096] = bytes(len(held[::4096])).replace(b"\0", b"\1")
    (tmp_path / "a.txt").write_text("fine")
    assert gate.scan_path(tmp_path, "m").verdict == "clean"
    del held


def test_a_bug_of_ours_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scan) -> Iterator[Finding]:
        raise KeyError("ours")
        yield

    monkeypatch.setattr(Scan, "run", broken)
    monkeypatch.setattr(child, "_events", child._of_fork)
    with pytest.raises(RuntimeError, match="ours"):
        gate.scan_path(tmp_path, "m")


def test_two_findings_that_say_the_same_are_one_and_floods_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule("flood", "suspicious", "t", "w", "a")
    scan_ = Scan(tmp_path)
    monkeypatch.setattr(scan_, "_all", lambda: iter([rule.found(str(i // 2)) for i in range(400)]))
    found = list(scan_.run())
    assert len(found) == 51
    assert found[-1].message == "150 more findings of this rule are not listed"
    assert found[-1].severity == "suspicious"


# -- the gate -------------------------------------------------------------------------------------------------


def test_a_verdict_is_remembered_until_any_file_changes(copy: Path) -> None:
    first, remembered = gate.inspect(copy, "m")
    assert not remembered
    assert gate.inspect(copy, "m") == (first, True)
    assert gate.known_verdict(copy) == first
    assert not gate.inspect(copy, "m", fresh=True)[1]
    config = copy / "config.json"
    info = config.stat()
    text = config.read_text()
    config.write_text(text.replace("0.02", "0.03"))
    os.utime(config, ns=(info.st_atime_ns, info.st_mtime_ns))  # size and time of change as before
    assert gate.known_verdict(copy) is None
    (copy / "more.txt").write_text("new")
    assert not gate.inspect(copy, "m")[1]


def test_load_refuses_what_the_scan_refuses(copy: Path) -> None:
    assert load(open_checkpoint(str(copy)), pico.CPU).shield is not None
    (copy / "away").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeModel, match="link-leaves-folder") as caught:
        load(open_checkpoint(str(copy)), pico.CPU)
    assert caught.value.exit_code == 1
    allowed = RunOptions(device="cpu", dtype="float32", threads=1, allow=("suspicious",))
    shield = load(open_checkpoint(str(copy)), allowed).shield
    assert shield is not None
    assert shield.consented == ("suspicious",)
    assert "suspicious (allowed by you)" in shield.line
    (copy / "blob").write_bytes(bytes(range(255, 0, -1)) * 40)
    with pytest.raises(NotAnalysed):
        load(open_checkpoint(str(copy)), allowed)


def test_one_line_says_what_was_checked(model: Path) -> None:
    said: list[str] = []
    load(open_checkpoint(str(model)), RunOptions(device="cpu", dtype="float32", threads=1, tell=said.append))
    assert len(said) == 1
    assert "clean: " in said[0]
    assert "not pinned" in said[0]


# -- policies, SARIF, the command line -----------------------------------------------------------------------


def write_policy(path: Path, text: str) -> str:
    path.write_text("schema: weightsmith/policy/1\n" + text)
    return str(path)


def test_a_policy_changes_what_fails(copy: Path, tmp_path: Path) -> None:
    (copy / "away").symlink_to("/etc/hostname")
    assert scan(copy).verdict == "suspicious"
    eased = scan(copy, policy=write_policy(tmp_path / "p", "rules: {link-leaves-folder: note}\n"))
    assert eased.verdict == "clean"
    assert len(eased.policy) == 64
    assert not scan(copy, policy=write_policy(tmp_path / "p", "rules: {link-leaves-folder: ignore}\n")).findings
    assert scan(copy, policy=write_policy(tmp_path / "p", "rules: {link-leaves-folder: malicious}\n")).verdict == "malicious"


def test_a_policy_that_allows_little_says_so_in_short(copy: Path, tmp_path: Path) -> None:
    for n in range(70):
        (copy / f"notes{n}.md").write_text("hello")
    record = scan(copy, policy=write_policy(tmp_path / "p", "formats: [json]\n"))
    found = [f for f in record.findings if f.rule == "format-not-allowed"]
    assert len(found) == 51
    assert next(f.message for f in found if not f.file).endswith("more findings of this rule are not listed")


def test_a_policy_lists_formats_and_licences(copy: Path, tmp_path: Path) -> None:
    record = scan(copy, policy=write_policy(tmp_path / "p", "formats: [json, text]\nlicences: [mit]\n"))
    found = {(f.rule, f.file) for f in record.findings}
    assert ("format-not-allowed", "model.safetensors") in found
    assert ("licence-not-allowed", "") in found
    assert not {f for f in found if f[1].endswith(".json")}
    (copy / "README.md").write_text("---\nlicense: MIT\n---\n# a model\n")
    assert "licence-not-allowed" not in {f.rule for f in scan(copy, policy=tmp_path / "p").findings}


@pytest.mark.parametrize(("text", "said"), [
    ("rules: {nothing-like-this: note}\n", "no rule is called"),
    ("rules: {}\nrules: {}\n", "stands there twice"),
    ("rulez: {}\n", "unknown field"),
    ("rules: {special-file: fine}\n", "special-file"),
    ("rules: [\n", "not valid YAML"),
    ("rules: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
])  # fmt: skip
def test_a_malformed_policy_is_one_clear_error(model: Path, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        scan(model, policy=write_policy(tmp_path / "p", text))


def test_sarif_names_every_rule_and_place(copy: Path) -> None:
    os.mkfifo(copy / "a pipe")
    record = scan(copy)
    log = json.loads(json.dumps(sarif([record])))
    [run] = log["runs"]
    assert log["version"] == "2.1.0"
    ids = [r["id"] for r in run["tool"]["driver"]["rules"]]
    assert {r["ruleId"] for r in run["results"]} <= set(ids)
    [result] = [r for r in run["results"] if r["ruleId"] == "special-file"]
    assert result["level"] == "warning"
    assert ids[result["ruleIndex"]] == "special-file"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%20pipe"


def command(*words: Any) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "weightsmith", "scan", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_exit_codes(copy: Path, model: Path, tmp_path: Path) -> None:
    assert command(model).returncode == 0
    os.mkfifo(copy / "pipe")
    assert command(copy).returncode == 1
    assert command(copy, "--allow", "suspicious").returncode == 0
    assert command(model, copy).returncode == 1
    (copy / "blob").write_bytes(bytes(range(255, 0, -1)) * 40)
    assert command(copy, "--allow", "suspicious").returncode == 2
    refused = command(copy, "--allow", "malicious")
    assert refused.returncode == 2
    assert "there is no consent" in refused.stderr
    assert command(tmp_path / "nowhere").returncode == 2
    assert command().returncode == 2


def test_the_table_the_json_and_explanations(copy: Path, tmp_path: Path) -> None:
    os.mkfifo(copy / "pipe")
    done = command(copy)
    assert "special-file" in done.stdout
    assert "no model needs one" in done.stdout
    data = json.loads(command(copy, "--json", "-o", tmp_path / "out.json").stdout)
    assert data["verdict"] == "suspicious"
    assert json.loads((tmp_path / "out.json").read_text()) == data
    assert [r["verdict"] for r in json.loads(command(copy, copy, "--json").stdout)] == ["suspicious"] * 2
    assert "no model needs one" in command("--explain", "special-file").stdout
    assert "did you mean special-file" in command("--explain", "special-fil").stderr


def test_the_worst_finding_decides() -> None:
    def verdict(*severities: Any) -> str:
        return verdict_of(Finding(rule="r", severity=s, message="m") for s in severities)

    assert verdict() == "clean"
    assert verdict("note") == "clean"
    assert verdict("note", "suspicious") == "suspicious"
    assert verdict("suspicious", "unknown") == "could not tell"
    assert verdict("unknown", "broken") == "broken"
    assert verdict("broken", "malicious", "note") == "malicious"


def test_every_rule_says_why_and_what_to_do_and_has_its_page() -> None:
    from weightsmith.report.rules import pages

    every = gate.all_rules()
    for name, rule in every.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert len(rule.why) > 30, name
        assert len(rule.action) > 8, name
        assert rule.title
        assert not rule.title.endswith("."), name
        assert all(re.match(r"(https://|CVE-\d{4}-\d{4,}$|GHSA-|CWE-)", s) for s in rule.see), name
    folder = Path(__file__).parent.parent / "docs" / "rules"
    wanted = pages(every.values())
    assert {p.name for p in folder.glob("*.md")} == wanted.keys(), "run `make rules`"
    for name, text in wanted.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{name}: run `make rules`"


def test_every_scanner_says_what_it_looks_at() -> None:
    for name in SCANNERS.names():
        made = SCANNERS.load(name)()
        assert made.name == name
        assert made.about, name
