"""No space left, Ctrl-C, and kills: outputs appear whole or not at all, and the cache never holds half of anything."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clirun import World, cli, make_world, partials, refused, tree
from weightsmith import jobs
from weightsmith.cli.main import Terminated, run_guarded
from weightsmith.jobs.measured import save_record, save_report
from weightsmith.options import RunOptions
from weightsmith.storage import cache_dir

KEEP = "free some space or choose another disk"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def a_plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of known size; how it is drawn is tested elsewhere."""
    monkeypatch.setattr("weightsmith.report.html.render_report", lambda *_, **__: "<html>" + "x" * 6_000)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own: nothing is remembered."""
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_foresight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The free space is not looked at beforehand, as when another program fills the disk meanwhile."""
    for module in ("weightsmith.execute", "weightsmith.formats.gguf_convert", "weightsmith.checkpoint"):
        monkeypatch.setattr(f"{module}.require_space", lambda *_: None)


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the next write fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real, full little disk, where the tests may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def commands(world: World, out: Path) -> dict[str, tuple[object, ...]]:
    measure = ("measure", world.edited, "--against", world.model, "--feature", world.feature, "--tokens", "2")
    return {
        "edit": ("edit", world.model, world.direction, "--remove", "1", "-o", out),
        "convert": ("convert", world.gguf, "-o", out),
        "find": ("find", world.model, world.feature, "-o", out, "--no-choose"),
        "measure": (*measure, "-o", out.with_suffix(".html")),
        "measure both": (*measure, "-o", out),
    }


# -- no space ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "limit"), [("edit", 60_000), ("edit", 300), ("convert", 20_000), ("find", 800),
                                             ("measure", 5_000), ("measure both", 5_000)])  # fmt: skip
@pytest.mark.usefixtures("no_foresight")
def test_a_write_that_fails_half_way(world: World, tmp_path: Path, verb: str, limit: int) -> None:
    with file_limit(limit):
        refused(tmp_path, *commands(world, tmp_path / "new/out")[verb], says=("no space left", "out", KEEP))


@pytest.mark.parametrize("verb", ["edit", "convert", "find", "measure"])
@pytest.mark.usefixtures("no_foresight")
def test_a_disk_that_fills(world: World, tmp_path: Path, verb: str) -> None:
    with small_disk(tmp_path / "disk", "64k" if verb in ("edit", "convert") else "4k") as disk:
        (disk / "other").write_bytes(b"x" * 100)
        refused(tmp_path, *commands(world, disk / "new/out")[verb], says=("no space left", "out", KEEP))


@pytest.mark.parametrize("verb", ["edit", "convert"])
def test_a_disk_that_is_known_to_be_too_small(world: World, tmp_path: Path, verb: str) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        refused(tmp_path, *commands(world, disk / "out")[verb], says=("are needed and", "nothing was written", KEEP))


def test_the_second_of_two_files_does_not_fit(world: World, tmp_path: Path) -> None:
    argv = commands(world, tmp_path / "r")["measure both"]
    assert cli(*argv).code == 0
    first, second = ((tmp_path / f"r{s}").stat().st_size for s in (".html", ".json"))
    assert first < second - 1_000
    for suffix in (".html", ".json"):
        (tmp_path / f"r{suffix}").unlink()
    with file_limit((first + second) // 2):
        refused(tmp_path, *argv, says=("no space left", "r.json"))


def test_a_full_or_missing_cache_costs_time_but_no_result(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for number, cache in enumerate(("/proc/nowhere", tmp_path / "file", tmp_path / "file/sub")):
        monkeypatch.setenv("WEIGHTSMITH_CACHE", str(cache))
        for verb, argv in commands(world, tmp_path / f"out{number}").items():
            if verb in ("edit", "find", "measure"):
                done = cli(*argv)
                assert done.code == 0, f"{verb}: {done.err}"
                shutil.rmtree(tmp_path / f"out{number}") if verb == "edit" else None
    with small_disk(tmp_path / "disk", "4k") as disk:
        monkeypatch.setenv("WEIGHTSMITH_CACHE", str(disk / "cache"))
        done = cli(*commands(world, tmp_path / "out")["find"])
        assert done.code == 0, done.err
        kept = [p for p in disk.rglob("*") if p.is_file()]
        assert all(json.loads(p.read_bytes()) for p in kept), "what fitted is whole"
        assert not list(disk.rglob("*.npz")), "and what did not is not there"
        refused(tmp_path, "find", world.gguf, world.feature, "-o", tmp_path / "d", says=("GB are needed", "disk"))


@pytest.mark.usefixtures("fresh_cache")
def test_a_torn_cache_is_made_again(world: World, tmp_path: Path, fresh_cache: Path) -> None:
    find = commands(world, tmp_path / "d")["find"]
    assert cli(*find).code == 0
    assert cli(*commands(world, tmp_path / "out")["edit"]).code == 0
    good = (tmp_path / "d").read_bytes()
    entries = [p for p in fresh_cache.rglob("*") if p.is_file()]
    assert len(entries) >= 5
    for torn in (lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PK\3\4" + bytes(60), lambda b: b'{"a": ["b"]}',
                 lambda b: b'"x"', lambda b: b"[" * 99_999, lambda b: b"\x93NUMPY\1\0" + bytes(70)):  # fmt: skip
        for entry in entries:
            entry.write_bytes(torn(entry.read_bytes()))
        (tmp_path / "d").unlink()
        done = cli(*find)
        assert done.code == 0, done.err
        assert (tmp_path / "d").read_bytes() == good
        shutil.rmtree(tmp_path / "out")
        assert cli(*commands(world, tmp_path / "out")["edit"]).code == 0


# -- Ctrl-C at every step ----------------------------------------------------------------------------------


class Striker:
    """Counts the steps of a job, and interrupts at one of them."""

    def __init__(self, at: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.error, self.steps = at, error, []

    def __call__(self, step: str, done: int, total: int) -> None:
        self.steps.append(step)
        if len(self.steps) - 1 == self.at:
            raise self.error


def interesting(steps: list[str]) -> list[int]:
    """The first call of every step, the last of every second one."""
    names = sorted(set(steps))
    return sorted({steps.index(s) for s in names} | {len(steps) - 1 - steps[::-1].index(s) for s in names[::2]})


def job(world: World, verb: str, out: Path, tell: Striker) -> Callable[[], int]:
    options = RunOptions(progress=tell, device="cpu")

    def run() -> int:
        if verb == "find":
            jobs.find(world.model, str(world.feature), out, site="response_mean", response_tokens=2, trial_prompts=2,
                      options=options)  # fmt: skip
        elif verb == "edit":
            jobs.edit(world.model, world.direction, out, remove=1.0, options=options)
        elif verb == "convert":
            jobs.convert(world.gguf, out, options)
        elif verb == "edit a GGUF":
            jobs.find(world.gguf, str(world.feature), out, choose=False, options=options)
        else:
            record = jobs.measure(world.edited, world.model, str(world.feature), tokens=2, options=options)
            save_record(record, out.with_suffix(".json"))
            save_report([record], out.with_suffix(".html"))
        return 0

    return run


@pytest.mark.parametrize("verb", ["find", "edit", "convert", "edit a GGUF", "measure"])
def test_an_interrupt_at_every_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    counted = Striker()
    (tmp_path / "first").mkdir()
    assert run_guarded(job(world, verb, tmp_path / "first/out", counted)) == 0
    (tmp_path / "second").mkdir()
    for at in interesting(counted.steps):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        tell = Striker(at, KeyboardInterrupt if at % 2 else Terminated)
        assert run_guarded(job(world, verb, tmp_path / "second/out", tell)) == 2
        assert len(tell.steps) > at
        assert tree(tmp_path / "second") == {}, counted.steps[at]
        assert partials(cache_dir()) == []
        assert capsys.readouterr().err == "\ninterrupted; nothing half-written was left behind\n"
    assert run_guarded(job(world, verb, tmp_path / "second/out", Striker())) == 0
    if verb != "measure":  # its record holds the seconds that it took
        assert tree(tmp_path / "second") == tree(tmp_path / "first")


# -- real signals ------------------------------------------------------------------------------------------

DRIVER = """
import os, sys, threading, time
number, after = int(sys.argv[1]), float(sys.argv[2])
begun = threading.Event()

def strike():
    if after >= 0:
        begun.wait()
    time.sleep(abs(after))
    os.kill(os.getpid(), number)

threading.Thread(target=strike, daemon=True).start()
import weightsmith.lanes as lanes, weightsmith.formats.gguf_convert as convert

def slow(function):
    def call(*args):
        begun.set()
        time.sleep(0.025)
        return function(*args)
    return call

lanes._pwrite, lanes._move = slow(lanes._pwrite), slow(lanes._move)
convert._bf16 = slow(convert._bf16)
from weightsmith.cli.main import main
main(sys.argv[3:])
"""


def struck(argv: tuple[object, ...], number: int, after: float, cache: Path) -> tuple[int, str]:
    """Exit code and standard error of a command that gets a signal ``after`` seconds of writing (before, if negative)."""
    words = [sys.executable, "-c", DRIVER, str(int(number)), str(after), *map(str, argv)]
    environment = {**os.environ, "WEIGHTSMITH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


KILLS = [("edit", signal.SIGINT, 2), ("edit", signal.SIGTERM, 1), ("edit", signal.SIGHUP, 1), ("edit", signal.SIGKILL, 2),
         ("convert", signal.SIGINT, 1), ("convert", signal.SIGTERM, 1), ("convert", signal.SIGKILL, 1)]  # fmt: skip


def test_signals_at_random_moments_of_writing(world: World, tmp_path: Path) -> None:
    dice = random.Random()  # other moments in every run: a moment that hurts is a bug whenever it is found
    reference: dict[str, Any] = {}
    for verb in ("edit", "convert"):
        assert cli(*commands(world, tmp_path / verb)[verb]).code == 0
        reference[verb] = tree(tmp_path / verb)
    cases = [(verb, number, dice.uniform(0, 0.45)) for verb, number, times in KILLS for _ in range(times)]
    cases += [("edit", signal.SIGINT, -dice.uniform(0, 0.3)), ("convert", signal.SIGTERM, -dice.uniform(0, 0.3))]
    folders = [tmp_path / f"run{i}" for i in range(len(cases))]

    def one(i: int) -> tuple[int, str]:
        verb, number, after = cases[i]
        folders[i].mkdir()
        return struck(commands(world, folders[i] / "deep/out")[verb], number, after, tmp_path / "cache")

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(one, range(len(cases))))
    for (verb, number, after), folder, (code, err) in zip(cases, folders, results, strict=True):
        told = f"{verb} struck by {number.name} after {after:.3f} s: exit {code}\n{err}"
        out, left = folder / "deep/out", tree(folder)
        if out.exists():  # it was done before it was struck
            assert tree(out) == reference[verb], told
            continue
        if number == signal.SIGKILL:
            assert code == -9, told
            names = [n.split("/")[1] for n in left if "/" in n]
            assert all(n.startswith(".out.partial") for n in names), told
        else:
            assert left == {}, told
            assert code == 2 if after >= 0 else code in (2, -number), told
            assert "interrupted" in err if code == 2 else True, told
        assert cli(*commands(world, out)[verb]).code == 0
        assert tree(out) == reference[verb], told
        assert os.listdir(folder / "deep") == ["out"], told
    assert partials(tmp_path / "cache") == []


EARLY = """
import os, signal, sys
from importlib.abc import MetaPathFinder

module = sys.argv.pop(1)

class Strike(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        for _ in range(2 if name == module else 0):
            os.kill(os.getpid(), signal.SIGINT)

from weightsmith.start import main
sys.meta_path.insert(0, Strike())
main()
"""


@pytest.mark.parametrize("module", ["weightsmith.cli", "typer", "weightsmith.cli.search"])
def test_ctrl_c_while_it_is_still_being_imported_is_no_traceback(module: str) -> None:
    """Twice at once, as from a hand that trembles."""
    done = subprocess.run([sys.executable, "-c", EARLY, module, "show", "features"], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == "\ninterrupted; nothing half-written was left behind\n"
