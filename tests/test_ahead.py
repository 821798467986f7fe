"""The digest that is begun first, and the fork that reads the rest: the same answer as one pass by one process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightsmith.formats.safetensors import write_file
from weightsmith.start import scanned
from weightsmith.trust import child
from weightsmith.trust.ahead import _in_memory, begin, can_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")

#: reads a folder as the scan does, twice: apart with a hasher, and in one process; small limits, so that small files do
READ = """
import json, os, signal, sys, time
from pathlib import Path
from weightsmith.trust import ahead, stream
from weightsmith.trust.items import Folder
from weightsmith.trust.listing import list_folder
from weightsmith.trust.scanners.headers import Headers
ahead.LARGE = 100_000
ahead._BLOCK, ahead._TELL, ahead._WINDOW, ahead._ASKED = 5000, 20_000, 1 << 14, 1 << 12
stream.SMALL, stream.BLOCK, stream.TELL, stream.WINDOW, stream.LEAD = 0, 5000, 20_000, 1 << 15, 1 << 16

def listed():
    folder = Folder(root)
    assert not list(list_folder(root, folder))
    for item in folder.items.values():
        for kind in item.kinds:
            if kind in Headers.kinds:
                list(Headers().scan_file(item, folder))
    return folder

def result(folder, found):
    return {"found": [(f.rule, f.file) for f in found], "sha256": {n: i.sha256 for n, i in folder.items.items()},
            "facts": sorted([n, repr(f)] for n, f in folder.tensors.items())}

root = Path(sys.argv[1])
told = []
BEFORE
hasher = ahead.begin(root)
folder = listed()
BETWEEN
reading = stream.Reading(folder, apart=True, hasher=hasher)
found = list(reading.finish(lambda name, done: told.append((name, done))))
apart = result(folder, found)
ahead.end()
folder = listed()
together = result(folder, list(stream.read_all(folder, lambda name, done: None)))
print(json.dumps({"apart": apart, "together": together, "taken": len(hasher.numbers), "told": told}))
"""


def read(root: Path, before: str = "", between: str = "") -> dict[str, Any]:
    """What both ways of reading find, in a process that can fork."""
    code = READ.replace("BEFORE", before).replace("BETWEEN", between)
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two weight files with all kinds of words, one whose data begin at an odd place, and small files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "model"
    folder.mkdir()
    for name, sizes in (("one", (60_001, 7, 90_001)), ("two", (200_003, 5))):
        entries = []
        for at, (dtype, width) in enumerate((("BF16", 2), ("F32", 4), ("U8", 1))):
            for number, size in enumerate(sizes):
                raw = rng.standard_normal(size * width // 4 + 1).astype("<f4").tobytes()[: size * width]
                entries.append((f"{name}.{at}.{number}", dtype, (size,), lambda file, raw=raw: file.write(raw)))
        write_file(folder / f"{name}.safetensors", entries)
    whole = (folder / "one.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length] + b" " * 3  # data at an odd place, which the format allows
    (folder / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "data.bin").write_bytes(os.urandom(300_000))
    return folder


def digests(root: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in root.iterdir()}


@pytest.mark.parametrize("between", ["", "time.sleep(0.5)"], ids=["at once", "all taken"])
def test_both_ways_find_the_same(root: Path, between: str) -> None:
    out = read(root, between=between)
    assert out["taken"] == 4
    assert out["apart"] == out["together"]
    assert out["apart"]["sha256"] == digests(root)
    assert len(out["apart"]["facts"]) == 24
    assert out["apart"]["found"] == []
    assert {name for name, _ in out["told"]} == set(digests(root))


@pytest.mark.parametrize("there", ["True", "False", "begin // ahead._WINDOW % 2 == 0", "begin // ahead._WINDOW % 3 == 1"])
def test_what_lies_in_memory_and_what_is_read_are_one_file(root: Path, there: str) -> None:
    """Windows that are mapped, that are read, and both in turn."""
    out = read(root, before=f"ahead._in_memory = lambda handle, begin, end: {there}", between="time.sleep(0.5)")
    assert out["apart"] == out["together"]
    assert out["apart"]["sha256"] == digests(root)


def test_nothing_lies_in_memory_behind_the_end(tmp_path: Path) -> None:
    """Not even of a file that was just written: what became shorter is not mapped."""
    file = tmp_path / "f"
    file.write_bytes(bytes(1 << 20))
    handle = os.open(file, os.O_RDONLY)
    try:
        assert not _in_memory(handle, 0, (1 << 20) + 1)
    finally:
        os.close(handle)


def test_a_file_that_shrinks_under_the_hasher_is_a_finding(root: Path) -> None:
    """The kernel ends the hasher; the other files' digests are taken all the same."""
    code = """
import mmap, types
def mapped(handle, length, *args, **more):
    while not (root.parent / "go").exists():
        time.sleep(0.01)
    found = mmap.mmap(handle, length, *args, **more)
    if os.fstat(handle).st_size == 300_000:
        os.truncate(root / "data.bin", 1000)
    return found
ahead.mmap = types.SimpleNamespace(mmap=mapped, MAP_SHARED=mmap.MAP_SHARED, PROT_READ=mmap.PROT_READ)
ahead._in_memory = lambda *a: True
"""
    whole = digests(root)
    out = read(root, before=code, between="(root.parent / 'go').touch()\ntime.sleep(1)")
    assert ["file-changed", "data.bin"] in out["apart"]["found"]
    assert out["apart"]["sha256"] == {**whole, "data.bin": None}


def test_a_hasher_that_is_gone_costs_no_digest(root: Path) -> None:
    """Stopped at its first byte, it has taken one file and says nothing of it."""
    stop = "ahead._hash = lambda *a: os.kill(os.getpid(), signal.SIGKILL)"
    out = read(root, before=stop, between="time.sleep(0.5)")
    assert out["apart"] == out["together"]
    assert out["apart"]["sha256"] == digests(root)


def test_a_file_that_changed_before_it_was_listed_is_hashed_again(root: Path) -> None:
    """What was begun is not the file that the scan lists, so its digest is not taken for it."""
    change = "(root / 'data.bin').write_bytes(b'x' * 300_000)"
    code = f"real = ahead._large\ndef late(path):\n    found = real(path)\n    {change}\n    return found\nahead._large = late"
    out = read(root, before=code)
    assert out["apart"] == out["together"]
    assert out["apart"]["sha256"]["data.bin"] == hashlib.sha256(b"x" * 300_000).hexdigest()


def test_a_file_that_changes_while_it_is_read_is_a_finding(root: Path) -> None:
    code = """
real = stream._Job._on
def on(self, end, events):
    real(self, end, events)
    if self.item.name == "data.bin":
        os.utime(self.item.path)
stream._Job._on = on
"""
    out = read(root, before=code, between="time.sleep(0.5)")
    assert ["file-changed", "data.bin"] in out["apart"]["found"]
    assert out["apart"]["sha256"]["data.bin"] is None


def test_a_file_that_shrinks_under_the_mapping_is_a_finding_and_no_crash(root: Path) -> None:
    code = """
real = stream._Job._on
def on(self, end, events):
    if self.item.name == "two.safetensors":
        os.truncate(self.item.path, 1000)
    real(self, end, events)
stream._Job._on = on
"""
    out = read(root, before=code, between="time.sleep(0.5)")
    assert ["file-changed", "two.safetensors"] in out["apart"]["found"]
    assert out["apart"]["sha256"]["two.safetensors"] is None


def test_a_file_that_shrinks_between_two_windows_is_a_finding(root: Path) -> None:
    code = """
real = stream._Job._window
def window(self, raw, base, stop):
    if base and self.item.name == "two.safetensors":
        os.truncate(self.item.path, 1000)
    return real(self, raw, base, stop)
stream._Job._window = window
"""
    out = read(root, before=code, between="time.sleep(0.5)")
    assert ["file-changed", "two.safetensors"] in out["apart"]["found"]
    assert out["apart"]["sha256"]["data.bin"] == digests(root)["data.bin"]


def test_where_no_more_processes_are_to_be_had_one_reads(root: Path) -> None:
    """Neither a fork for the digests nor one for the values: the same answer."""
    code = "def refuse():\n    raise BlockingIOError(11, 'no')\n"
    out = read(root, between=code + "os.fork = refuse\ntime.sleep(0.5)")
    assert out["apart"] == out["together"]
    assert out["apart"]["sha256"] == digests(root)
    done = subprocess.run([sys.executable, "-c", code + """
import os, sys
from pathlib import Path
from weightsmith.trust import ahead
os.fork, ahead.LARGE = refuse, 1000
print(ahead.begin(Path(sys.argv[1])), len(os.listdir("/proc/self/fd")), end=" ")
print(ahead.begin(Path(sys.argv[1])), len(os.listdir("/proc/self/fd")))
""", str(root)], capture_output=True, text=True, check=True)  # fmt: skip
    one, handles, two, more = done.stdout.split()
    assert (one, two, handles) == ("None", "None", more)  # and no pipe is left open


def test_a_reader_that_is_stopped_in_the_middle_of_a_line_is_no_bug() -> None:
    done = subprocess.run([sys.executable, "-c", """
import os, signal
from weightsmith.trust import stream
begin, end = os.pipe()
child = os.fork()
if not child:
    os.write(end, b'{"at": "a", "done": 1}' + bytes([10]) + b'{"job": 0, "fin')
    os.kill(os.getpid(), signal.SIGBUS)
os.close(end)
print(list(stream.Reading.__new__(stream.Reading)._heard(child, begin)))
"""], capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "[{'at': 'a', 'done': 1}, {'cut': True}]"


def test_somebody_is_told_while_a_digest_is_waited_for(root: Path) -> None:
    """The watchdog stops whoever is silent; a hasher may take long, and may be gone so that all is hashed anew."""
    slow = """
stream.PATIENCE = 0.05
ahead._TELL = 1 << 40
real = ahead._hash
ahead._hash = lambda *a: (time.sleep(0.6), real(*a))[1]
"""
    out = read(root, before=slow)
    assert out["apart"] == out["together"]
    assert sum(name == "two.safetensors" for name, _ in out["told"]) > 5
    gone = "ahead._hash = lambda *a: os.kill(os.getpid(), signal.SIGKILL)"
    again = [done for name, done in read(root, before=gone, between="time.sleep(0.5)")["told"] if name == "two.safetensors"]
    assert again.count(min(again)) > 1  # it is read from its beginning once more, and says so


def test_what_the_reading_process_raises_is_raised(root: Path) -> None:
    code = "stream.Values.update = lambda self, block: 1 // 0"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        read(root, before=code)


def test_no_process_is_left_over(root: Path) -> None:
    """Neither when the scan ends well, nor when whoever began is killed."""
    done = subprocess.run([sys.executable, "-c", """
import sys, time
from pathlib import Path
from weightsmith.trust import ahead
ahead.LARGE, ahead._BLOCK, ahead._TELL = 100_000, 64, 1
slow = type("Slow", (), {"update": lambda self, block: time.sleep(0.01)})
ahead._hash.__globals__["hashlib"] = type("Slowly", (), {"sha256": slow})
hasher = ahead.begin(Path(sys.argv[1]))
print(hasher.process, flush=True)
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
""", str(root)], capture_output=True, text=True, check=False)  # fmt: skip
    child = int(done.stdout)
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text(encoding="ascii").split(")")[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        subprocess.run(["sleep", "0.05"], check=True)
    raise AssertionError("the hasher goes on, though nobody listens")


def test_nothing_is_begun_where_a_fork_is_not_sound(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may hold a lock that the fork would wait for."""
    monkeypatch.setattr("weightsmith.trust.ahead.LARGE", 1000)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert not can_fork()
        assert begin(root) is None
    finally:
        over.set()
        thread.join()


# Where a command begins.


@pytest.mark.parametrize(("words", "path"), [
    (["scan", "m"], "m"), (["scan", "--json", "m", "n"], "m"), (["scan", "-o", "out", "--policy", "p", "m"], "m"),
    (["scan"], ""), (["show", "m"], ""), ([], ""), (["scan", "--explain", "rule"], ""), (["scan", "--help", "m"], ""),
    (["scan", "--reference", "base", "--notes", "m"], "m"), (["scan", "-q"], ""),
])  # fmt: skip
def test_the_model_of_a_command_line(words: list[str], path: str) -> None:
    assert scanned(words) == path


BEGUN = """
import json, sys
from pathlib import Path
from weightsmith import start
from weightsmith.trust import ahead
ahead.LARGE = 1000
sys.argv = ["weightsmith", "scan", *sys.argv[1:]]
real, seen = ahead.begin, []
def begin(path):
    found = real(path)
    seen.append([str(path), found is not None, "typer" in sys.modules, found is not None and id(found)])
    return found
ahead.begin = begin
try:
    start.main()
finally:
    sys.stderr.write(json.dumps(seen))
"""


def test_a_digest_is_begun_before_anything_heavy_is_imported_and_is_the_one_that_is_used(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BEGUN, str(root), "--json"], capture_output=True, text=True, check=False)
    seen = json.loads(done.stderr.splitlines()[-1])
    assert len(seen) >= 2
    assert seen[0][:3] == [str(root), True, False]
    assert seen[1][1:] == [True, True, seen[0][3]]


def test_what_was_begun_for_the_wrong_path_is_thrown_away(root: Path, tmp_path: Path) -> None:
    """A word that only looks like the model costs nothing but its reading."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.bin").write_bytes(b"x" * 5000)
    script = BEGUN.replace("start.main()", "ahead.begin(Path(sys.argv.pop(2))); start.main()")
    done = subprocess.run([sys.executable, "-c", script, str(other), str(root), "--json"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    record = json.loads(done.stdout)
    for file in record["files"]:
        assert file["sha256"] == hashlib.sha256((root / file["name"]).read_bytes()).hexdigest()


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_what_an_interrupted_scan_had_to_say_is_not_taken_for_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(child.ahead, "can_fork", lambda: False)  # a process of its own scans, one model after the other
    for name, count in (("one", 30), ("two", 3)):
        (tmp_path / name).mkdir()
        for k in range(count):
            (tmp_path / name / f"{name}-{k}.json").write_text("{}")
    for _ in range(2):
        with closing(child._events({"path": os.fsencode(tmp_path / "one").hex()})) as events:
            next(events)
            time.sleep(seconds)  # until all of it stands in the pipe
        outcome = child.run_scan({"path": os.fsencode(tmp_path / "two").hex()})
        assert sorted(f["name"] for f in outcome.files) == [f"two-{k}.json" for k in range(3)]
        assert outcome.end
        assert not outcome.findings
