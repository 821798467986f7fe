"""The edit engine under kills: at random moments and at every single write, resumed, run twice at once.

Whatever happens, the output is absent or complete and right, and at most one ``.OUT.partial`` is left beside it, which no
lock guards any more: the next run, with ``--resume`` or without, gives the bytes of a run that nothing disturbed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import pico
from clirun import cli, flip, tree
from warm import NEED_SPACE, Warm
from weightsmith import held, jobs, lanes
from weightsmith.errors import BaseChanged, DiskFull, NonFinite, OutputBusy, OutputExists, UsageError
from weightsmith.held import JOURNAL, held_folder
from weightsmith.lanes import FilePlan, FileResult, Lane
from weightsmith.options import RunOptions

KILLS = 100
ONE = RunOptions(threads=1)


@dataclass(frozen=True)
class Bench:
    """A sharded model, two edits of it, and the trees that undisturbed runs give."""

    warm: Warm
    base: Path
    direction: Path
    reference: dict[str, str]
    added: dict[str, str]
    seconds: float

    def argv(self, out: Path, *more: object, add: bool = False) -> tuple[object, ...]:
        """The command."""
        amount = ("--add", "0.5") if add else ("--remove", "1")
        return ("edit", self.base, self.direction, *amount, "-o", out, *more)

    def of(self, add: bool) -> dict[str, str]:
        """What it gives."""
        return self.added if add else self.reference


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("bench")
    base = pico.build("llama", root / "base", shard="20KB")
    assert len(list(base.glob("*.safetensors"))) >= 4
    pico.a_direction(base).save(root / "d.safetensors")
    with Warm(root / "cache") as warm:
        made = Bench(warm, base, root / "d.safetensors", {}, {}, 0)
        for name, add, found in (("plain", False, made.reference), ("added", True, made.added)):
            warm.here(*made.argv(root / name, add=add))
            found.update(tree(root / name))
        spent = [warm.run(*made.argv(root / f"n{i}")).seconds for i in range(5)]
        yield Bench(warm, base, made.direction, made.reference, made.added, sorted(spent)[2])


def after_a_death(bench: Bench, folder: Path, told: str, *, add: bool = False, resume: bool = False) -> bool:
    """What has to hold when a run died, and that the next one is as if it had not been; whether the output was there."""
    out = folder / "out"
    names = set(os.listdir(folder))
    assert names <= {"out", ".out.partial"}, told
    finished = out.exists()
    if finished:
        assert tree(out) == bench.of(add), told
        assert names == {"out"}, told
        shutil.rmtree(out)
    done = bench.warm.run(*bench.argv(out, *(["--resume"] if resume else []), add=add))
    assert done.code == 0, f"{told}\n{done.err}"
    assert tree(out) == bench.of(add), told
    assert os.listdir(folder) == ["out"], told
    return finished


# -- kills -------------------------------------------------------------------------------------------------


def test_a_hundred_kills_at_random_moments(bench: Bench, tmp_path: Path) -> None:
    dice = random.Random()  # other moments in every run: a moment that hurts is a bug whenever it is found
    cases = [(dice.uniform(0, 1.2 * bench.seconds), bool(i % 2), bool(i % 3), bool(dice.getrandbits(1))) for i in range(KILLS)]
    with Warm(tmp_path / "cache") as other:
        other.here("show", bench.base)
        benches = [bench, replace(bench, warm=other)]

        def one(number: int) -> tuple[bool, bool]:
            mine = benches[number % 2]
            (folder := tmp_path / str(number)).mkdir()
            after, resume, add, again = cases[number]
            ended = mine.warm.run(*mine.argv(folder / "out", *(["--resume"] if resume else []), add=add), after=after)
            assert ended.code in (0, -signal.SIGKILL), ended.err
            finished = after_a_death(mine, folder, f"killed after {after:.4f} s", add=add, resume=again)
            return ended.code != 0, finished

        with ThreadPoolExecutor(2) as pool:
            rows = [pool.submit(lambda first: [one(n) for n in range(first, KILLS, 2)], first) for first in (0, 1)]
            results = [pair for row in rows for pair in row.result()]
    assert sum(died for died, _ in results) > KILLS // 3
    assert sum(finished for _, finished in results) < KILLS


def every_step(bench: Bench, folder: Path, add: bool, resume: bool) -> list[str]:
    (folder / "count").mkdir()
    more = ["--threads", "1", *(["--resume"] if resume else [])]
    steps = bench.warm.run(*bench.argv(folder / "count/out", *more, add=add)).steps
    for kind in (*NEED_SPACE, "pwrite half", "write half", "os.rename", "os.rmdir", "os.remove", "fsync", "fcntl.flock"):
        assert any(s.startswith(kind) for s in steps), f"{kind} is not seen"
    return steps


@pytest.mark.parametrize("stride", [pytest.param(17, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_death_at_every_write(bench: Bench, tmp_path: Path, stride: int) -> None:
    for add in (False, True):
        (folder := tmp_path / str(add)).mkdir()
        steps = every_step(bench, folder, add, resume=False)
        seen = 0
        for at in range(random.randrange(stride), len(steps), stride):
            (folder / "run").mkdir()
            ended = bench.warm.run(*bench.argv(folder / "run/out", "--threads", "1", add=add), at=at)
            assert ended.code == -signal.SIGKILL or at > len(steps) - 9, f"step {at}: {ended.code} {ended.err}"
            seen += after_a_death(bench, folder / "run", f"died at step {at}, {steps[at]}", add=add, resume=at // stride % 2 == 0)
            shutil.rmtree(folder / "run")
        assert seen, "the last steps keep what was done in the cache"


@pytest.mark.slow
def test_death_at_every_write_of_a_resumed_run(bench: Bench, tmp_path: Path) -> None:
    """A run that dies half-way, one that goes on and dies at every write, and a third that finishes."""
    begun = tmp_path / "begun"
    begun.mkdir()
    total = len(every_step(bench, tmp_path, False, resume=True))
    bench.warm.run(*bench.argv(begun / "out", "--threads", "1", "--resume"), at=total // 2)
    assert (begun / ".out.partial" / JOURNAL).is_dir()
    for at in range(total):
        shutil.copytree(begun, tmp_path / "run", copy_function=shutil.copy2)
        ended = bench.warm.run(*bench.argv(tmp_path / "run/out", "--threads", "1", "--resume"), at=at)
        after_a_death(bench, tmp_path / "run", f"died at step {at}", resume=bool(at % 2))
        shutil.rmtree(tmp_path / "run")
        if ended.code == 0:
            break
    assert 20 < at < total, "less was left to do than in a whole run"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("stride", [pytest.param(13, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_a_disk_that_fills_at_every_write(bench: Bench, tmp_path: Path, stride: int, number: int) -> None:
    """From one write on nothing more fits: one error, nothing left, whatever the write was."""
    steps = every_step(bench, tmp_path, False, resume=False)
    partial = next(i for i, s in enumerate(steps) if s.startswith("os.mkdir"))
    saved = next(i for i, s in enumerate(steps) if s == "os.rename" and "flock" not in "".join(steps[i:]))
    refused = 0
    for at in range(partial, len(steps), stride):
        (tmp_path / "run").mkdir()
        out = tmp_path / "run/deep/out"
        ended = bench.warm.run(*bench.argv(out, "--threads", "1"), at=at, do="raise", errno=number)
        told = f"full at step {at}, {steps[at]}: {ended.code} {ended.err}"
        if ended.code == 0:  # only the cache was left to write, or nothing but names
            assert tree(out) == bench.reference, told
        else:
            refused += 1
            assert ended.code == 2, told
            assert "no space left while writing; nothing was kept" in ended.words, told
            assert ended.err.count("error[disk-full]") == 1, told
            assert os.listdir(tmp_path / "run") == [], told
        shutil.rmtree(tmp_path / "run")
    assert refused >= (saved - partial) // stride // 4


# -- going on ----------------------------------------------------------------------------------------------


class Written:
    """Which files are written, and an error instead of the one that comes ``at``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.at, self.error = -1, KeyboardInterrupt
        whole = Lane.write

        def write(lane: Lane, plan: FilePlan) -> FileResult:
            if len(self.names) == self.at:
                raise self.error
            self.names.append(plan.name)
            return whole(lane, plan)

        monkeypatch.setattr(Lane, "write", write)

    def strike(self, at: int, error: type[BaseException] | BaseException = KeyboardInterrupt) -> None:
        """Raise instead of writing the file number ``at``."""
        self.names, self.at, self.error = [], at, error  # type: ignore[assignment]

    def calm(self) -> None:
        """Raise no more, and count anew."""
        self.names, self.at = [], -1


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


def an_edit(bench: Bench, out: Path, resume: bool = True, **amounts: Any) -> None:
    jobs.edit(bench.base, bench.direction, out, resume=resume, options=ONE, **(amounts or {"remove": 1.0}))


def shards(bench: Bench) -> list[str]:
    return sorted(p.name for p in bench.base.glob("*.safetensors"))


def begun(bench: Bench, written: Written, out: Path, finished: int, resume: bool = True) -> Path:
    """An edit that was interrupted before its file number ``finished``; its unfinished folder."""
    written.strike(finished)
    with pytest.raises(KeyboardInterrupt):
        an_edit(bench, out, resume)
    written.calm()
    return out.parent / f".{out.name}.partial"


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_an_interrupt_keeps_what_is_finished_only_with_resume(
    bench: Bench, tmp_path: Path, written: Written, finished: int
) -> None:
    partial = begun(bench, written, tmp_path / "out", finished)
    if finished:
        assert {p.name for p in partial.iterdir()} == {JOURNAL, *shards(bench)[:finished]}
    else:
        assert os.listdir(tmp_path) == [], "there was nothing to keep"
    an_edit(bench, tmp_path / "out")
    assert written.names == shards(bench)[finished:], "only what was not finished is written"
    assert tree(tmp_path / "out") == bench.reference
    assert os.listdir(tmp_path) == ["out"]
    begun(bench, written, tmp_path / "two", finished, resume=False)
    assert os.listdir(tmp_path) == ["out"]


def test_without_resume_it_starts_afresh(bench: Bench, tmp_path: Path, written: Written) -> None:
    begun(bench, written, tmp_path / "out", 3)
    an_edit(bench, tmp_path / "out", resume=False)
    assert written.names == shards(bench)
    assert tree(tmp_path / "out") == bench.reference
    an_edit(bench, tmp_path / "two")
    assert tree(tmp_path / "two") == bench.reference, "nothing to go on with is no error"


DAMAGE: dict[str, Callable[[Path, str], object]] = {
    "a bit": lambda folder, name: flip(folder / name, 9_000),
    "its end": lambda folder, name: os.truncate(folder / name, 9_000),
    "gone": lambda folder, name: (folder / name).unlink(),
    "a folder": lambda folder, name: ((folder / name).unlink(), (folder / name).mkdir()),
    "a link": lambda folder, name: ((folder / name).rename(folder.parent / name), (folder / name).symlink_to("../" + name)),
    "its note": lambda folder, name: (folder / JOURNAL / f"{name}.json").write_text("{}"),
    "half its note": lambda folder, name: os.truncate(folder / JOURNAL / f"{name}.json", 300),
    "a letter of its note": lambda folder, name: swap(folder / JOURNAL / f"{name}.json", '"F32"', '"F16"'),
    "a digest in its note": lambda folder, name: swap(folder / JOURNAL / f"{name}.json", '"digests":{', '"digests":{"x":"",'),
}  # fmt: skip


def swap(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_damaged_since_is_written_again(bench: Bench, tmp_path: Path, written: Written, damage: str) -> None:
    partial = begun(bench, written, tmp_path / "out", 3)
    noted = next(n for n in shards(bench)[:3] if '"F32"' in (partial / JOURNAL / f"{n}.json").read_text())
    DAMAGE[damage](partial, noted)
    an_edit(bench, tmp_path / "out")
    assert written.names == sorted({noted, *shards(bench)[3:]})
    assert tree(tmp_path / "out") == bench.reference


def test_strangers_in_the_unfinished_folder_do_not_come_along(bench: Bench, tmp_path: Path, written: Written) -> None:
    partial = begun(bench, written, tmp_path / "out", 2)
    (partial / "LICENSE").write_text("of a base that has none any more")
    (partial / "weightsmith").mkdir()
    (partial / "weightsmith/direction-0.safetensors").write_bytes(b"old")
    (partial / "loop").symlink_to("loop")
    an_edit(bench, tmp_path / "out")
    assert tree(tmp_path / "out") == bench.reference


def test_another_edit_or_base_is_not_gone_on_with(bench: Bench, tmp_path: Path, written: Written) -> None:
    base = tmp_path / "base"
    shutil.copytree(bench.base, base)
    mine = replace(bench, base=base)
    (tmp_path / "w").mkdir()
    out = tmp_path / "w/out"
    partial = begun(mine, written, out, 3)
    before = tree(partial)

    def refused(**amounts: float) -> None:
        with pytest.raises(UsageError, match=r"another edit, base or version; it was left alone\n.*without --resume"):
            an_edit(mine, out, **amounts)
        assert tree(partial) == before, "what was finished is not lost by asking"
        assert written.names == []

    refused(remove=0.5)
    refused(add=0.5)
    shard = base / shards(bench)[-1]
    content = shard.read_bytes()
    shard.write_bytes(content)  # the same bytes, but who knows
    refused()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"use_cache": False}))
    refused()
    an_edit(mine, out, resume=False)
    assert written.names == shards(bench)


@pytest.mark.parametrize(("error", "kept"), [
    (DiskFull("full"), True), (OSError(errno.ENOSPC, "full"), True), (OSError(errno.EIO, "bad disk"), True),
    (MemoryError(), True), (BaseChanged("other"), False), (NonFinite("nan"), False),
], ids=lambda x: type(x).__name__)  # fmt: skip
def test_what_would_fail_again_is_not_kept(
    bench: Bench, tmp_path: Path, written: Written, error: Exception, kept: bool
) -> None:
    written.strike(2, error)
    with pytest.raises(Exception) as told:
        an_edit(bench, tmp_path / "out")
    assert os.listdir(tmp_path) == ([".out.partial"] if kept else [])
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        assert "what is finished was kept for --resume" in str(told.value)


def test_going_on_needs_space_for_the_rest_alone(
    bench: Bench, tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("weightsmith.execute.require_space", lambda _folder, size: asked.append(size))
    begun(bench, written, tmp_path / "out", 3)
    an_edit(bench, tmp_path / "out")
    finished = sum((bench.base / n).stat().st_size for n in shards(bench)[:3])
    assert finished <= asked[0] - asked[1] < finished + 60_000, "and the few kilobytes of the journal"


# -- two at once -------------------------------------------------------------------------------------------


def middle(bench: Bench, folder: Path) -> int:
    """A step in the middle of the weights."""
    steps = every_step(bench, folder, False, resume=False)
    return [i for i, s in enumerate(steps) if s == "pwrite half"][5]


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_of_two_is_told_who_holds_it(bench: Bench, tmp_path: Path, resume: bool) -> None:
    at, out = middle(bench, tmp_path), tmp_path / "both/out"
    pid = bench.warm.hold(*bench.argv(out, "--threads", "1"), at=at)
    before = tree(tmp_path / "both")
    second = cli(*bench.argv(out, *(["--resume"] if resume else [])))
    assert second.code == 2
    assert "error[output-busy]" in second.err
    assert f"process {pid} on " in second.words
    assert tree(tmp_path / "both") == before
    assert cli("undo", bench.base.parent / "plain", "--base", bench.base, "-o", out).code == 2
    first = bench.warm.go_on(pid)
    assert first.code == 0, first.err
    assert tree(out) == bench.reference
    assert os.listdir(tmp_path / "both") == ["out"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_holder_that_is_killed_lets_go_at_once(bench: Bench, tmp_path: Path, resume: bool) -> None:
    at, out = middle(bench, tmp_path), tmp_path / "both/out"
    pid = bench.warm.hold(*bench.argv(out, "--threads", "1", "--resume"), at=at)
    assert bench.warm.go_on(pid, signal.SIGKILL).code == -signal.SIGKILL
    done = cli(*bench.argv(out, *(["--resume"] if resume else [])))
    assert done.code == 0, done.err
    assert tree(out) == bench.reference
    assert os.listdir(tmp_path / "both") == ["out"]


def test_an_output_that_turns_up_in_the_meantime_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the lock, and between the lock and the rename."""
    target = tmp_path / "out"

    def appears() -> None:
        target.mkdir()
        (target / "own.txt").write_text("mine")

    real = held._locked
    monkeypatch.setattr(held, "_locked", lambda *a: (appears(), real(*a))[1])
    with pytest.raises(OutputExists), held_folder(target, "key"):
        raise AssertionError("must not come here")
    assert tree(tmp_path).keys() == {"out", "out/own.txt"}
    monkeypatch.undo()
    shutil.rmtree(target)
    with pytest.raises(OutputExists), held_folder(target, "key"):
        appears()
    assert tree(tmp_path).keys() == {"out", "out/own.txt"}


def test_a_folder_that_is_another_ones_by_now_is_not_removed(tmp_path: Path) -> None:
    """Someone removed the unfinished folder by hand, and another run began in its place."""
    partial = tmp_path / ".out.partial"

    def begins_anew() -> None:
        partial.rename(tmp_path / "moved")
        partial.mkdir()
        (partial / "theirs").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), held_folder(tmp_path / "out", "key"):
        begins_anew()
    assert (partial / "theirs").read_text() == "x"


def test_files_and_links_where_the_unfinished_folder_goes(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    (tmp_path / "real").mkdir()
    (tmp_path / "real/own.txt").write_text("mine")
    for make in (lambda: partial.write_text("mine"), lambda: partial.symlink_to("real"), lambda: partial.symlink_to("no")):
        make()
        before = tree(tmp_path)
        with pytest.raises(UsageError, match="a file or link stands where"), held_folder(tmp_path / "out", "key"):
            raise AssertionError("must not come here")
        assert tree(tmp_path) == before
        partial.unlink()


def test_without_locks_the_number_of_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, or where a file system has none."""
    monkeypatch.setattr(held, "fcntl", None)
    journal = tmp_path / ".out.partial" / JOURNAL
    journal.mkdir(parents=True)
    for holder, busy in (({"pid": os.getppid(), "host": held.platform.node()}, True), ({"pid": 1, "host": "far"}, True),
                         ({"pid": 2**22 - 3, "host": held.platform.node()}, False), ({}, False)):  # fmt: skip
        journal.mkdir(parents=True, exist_ok=True)
        (journal / "holder.json").write_text(json.dumps(holder))
        if busy:
            with pytest.raises(OutputBusy, match=f"process {holder['pid']}"), held_folder(tmp_path / "out", "key"):
                raise AssertionError("must not come here")
        else:
            with held_folder(tmp_path / "out", "key"):
                pass
            (tmp_path / "out").rmdir()


# -- a lane that is told to stop ---------------------------------------------------------------------------


def test_a_failure_ends_the_other_lanes_soon(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that never has to wait for its reader."""
    import threading

    begun_both, moved = threading.Barrier(2), []
    real = lanes._move

    def slow(*argv: Any) -> int:
        if threading.current_thread() not in moved:
            moved.append(threading.current_thread())
            begun_both.wait(10)
            if len(moved) == 2 and moved[1] is threading.current_thread():
                raise OSError(errno.EIO, "bad disk")
        after.append(time.monotonic())
        time.sleep(0.05)
        return real(*argv[:2], min(argv[2], 64), *argv[3:])

    after: list[float] = []
    monkeypatch.setattr(lanes, "_move", slow)
    with pytest.raises(OSError, match="bad disk"):
        jobs.edit(bench.base, bench.direction, tmp_path / "out", remove=1.0, options=RunOptions(threads=2))
    assert len(after) < 60, "a file of 20 kB takes 300 moves at this pace"
    assert os.listdir(tmp_path) == []
