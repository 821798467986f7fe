"""Whole outputs under errors, races, interrupts and leftovers; canonical JSON; digests; the cache."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith import storage
from weightsmith.errors import DiskFull, OutputExists, Truncated, UsageError
from weightsmith.storage import (
    canonical_json,
    digest_of,
    disk_errors,
    parallel_map,
    sha256_range,
    strict_json,
    whole_file,
    whole_folder,
    write_cache,
    write_whole,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def write_folder(target: Path, error: BaseException | None = None, text: str = "x") -> None:
    with whole_folder(target) as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub/a.txt").write_text(text)
        if error is not None:
            raise error


def write_file(target: Path, error: BaseException | None = None, text: str = "x") -> None:
    with whole_file(target) as scratch:
        scratch.write_text(text)
        if error is not None:
            raise error


WRITERS: dict[str, Callable[..., None]] = {"folder": write_folder, "file": write_file}
both = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# -- whole or not at all -----------------------------------------------------------------------------------


@both
def test_an_output_appears_whole(tmp_path: Path, write: Callable[..., None]) -> None:
    out = tmp_path / "a/b/out"
    write(out)
    assert names(out.parent) == ["out"]
    assert (out / "sub/a.txt" if out.is_dir() else out).read_text() == "x"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == (0o777 if out.is_dir() else 0o666) & ~mask


@both
@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyboardInterrupt(), SystemExit(1), MemoryError(), GeneratorExit(), OSError(errno.EIO, "bad")],
    ids=lambda e: type(e).__name__,
)
def test_any_error_leaves_nothing(tmp_path: Path, write: Callable[..., None], error: BaseException) -> None:
    with pytest.raises(type(error)):
        write(tmp_path / "new/deep/out", error)
    assert names(tmp_path) == []
    (tmp_path / "kept").mkdir()
    with pytest.raises(type(error)):
        write(tmp_path / "kept/deep/out", error)
    assert names(tmp_path / "kept") == []


@both
def test_an_output_that_exists_is_left_alone(tmp_path: Path, write: Callable[..., None]) -> None:
    for make in (lambda p: p.write_text("mine"), lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to(p.name),
                 lambda p: (p.mkdir(), (p / "own").write_text("mine"))):  # fmt: skip
        out = tmp_path / f"out{len(names(tmp_path))}"
        make(out)
        before = names(tmp_path)
        with pytest.raises(OutputExists, match="left alone"):
            write(out)
        assert names(tmp_path) == before
    assert (tmp_path / "out0").read_text() == "mine"
    assert (tmp_path / "out3/own").read_text() == "mine"


def test_an_empty_folder_is_free_for_a_folder_and_taken_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        write_file(tmp_path / "out")
    with pytest.raises(ValueError, match="x"):
        write_folder(tmp_path / "out", ValueError("x"))
    assert names(tmp_path / "out") == []
    write_folder(tmp_path / "out")
    assert names(tmp_path / "out") == ["sub"]


@both
def test_of_many_writers_at_once_exactly_one_wins_and_nothing_is_torn(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    start = threading.Barrier(8)

    def one(i: int) -> bool:
        start.wait()
        try:
            write(tmp_path / "out", None, str(i))
        except OutputExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(one, range(8)))
    assert won.count(True) == 1
    assert names(tmp_path) == ["out"]
    file = tmp_path / "out/sub/a.txt" if (tmp_path / "out").is_dir() else tmp_path / "out"
    assert file.read_text() == str(won.index(True))


@both
def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path, write: Callable[..., None]) -> None:
    out = tmp_path / "out"

    def race() -> None:
        with whole_folder(out) if write is write_folder else whole_file(out) as scratch:
            (scratch / "a" if scratch.is_dir() else scratch).write_text("ours")
            out.mkdir()
            (out / "theirs").write_text("x")

    with pytest.raises(OutputExists):
        race()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["theirs"]


@pytest.mark.parametrize("call", ["fsync", "link", "rename", "chmod", "mkdir", "unlink"])
@pytest.mark.parametrize("after", [False, True])
@both
def test_an_interrupt_inside_every_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None], call: str, after: bool
) -> None:
    """Ctrl-C just before or just after a call: the output is whole or absent, never torn, and nothing else stays."""
    real, struck = getattr(os, call), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs) if after or struck else None
        if not struck:
            struck.append(call)
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(os, call, interrupted)
    try:
        write(tmp_path / "new/out")
    except KeyboardInterrupt:
        assert struck
    monkeypatch.undo()
    if (tmp_path / "new/out").exists():
        assert names(tmp_path / "new") == ["out"]
        assert names(tmp_path / "new/out") == ["sub"] if write is write_folder else True
    else:
        assert names(tmp_path) == []


@both
def test_leftovers_of_dead_runs_are_swept_and_no_others(tmp_path: Path, write: Callable[..., None]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    for name in ("out", "o*t", "out[1]", "out?"):
        left = {f".{name}.partial-{dead.pid}-1": True, f".{name}.partial-{os.getpid()}-2": True,
                f".{name}.partial-{alive}-3": False, f".{name}.partial-x": False, f".{name}x.partial-{dead.pid}-4": False,
                f".{name}.partial-{dead.pid}": True}  # fmt: skip
        for number, item in enumerate(left):
            if number % 2:
                (tmp_path / item).mkdir()
                (tmp_path / item / "weights").write_text("x")
            else:
                (tmp_path / item).write_text("x")
        write(tmp_path / name)
        for item, swept in left.items():
            assert (tmp_path / item).exists() != swept, item


def test_a_partial_of_this_very_process_in_use_is_not_swept(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as first:
        (first / "a").write_text("x")
        storage.sweep_partials(tmp_path / "out")
        assert (first / "a").exists()
    assert names(tmp_path) == ["out"]


def test_replacing_is_whole_too(tmp_path: Path) -> None:
    target = tmp_path / "cache.json"
    write_whole(target, b"old")
    with pytest.raises(OutputExists):
        write_whole(target, b"new")

    def torn() -> None:
        with whole_file(target, replace=True) as scratch:
            scratch.write_bytes(b"half")
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        torn()
    assert target.read_bytes() == b"old"
    write_whole(target, b"new", replace=True)
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["cache.json"]


def test_readers_of_a_replaced_file_never_see_half(tmp_path: Path) -> None:
    target, stop = tmp_path / "entry", threading.Event()
    pages = [bytes([i]) * 100_000 for i in range(4)]
    write_whole(target, pages[0], replace=True)

    def churn(page: bytes) -> None:
        while not stop.is_set():
            write_whole(target, page, replace=True)

    threads = [threading.Thread(target=churn, args=(p,)) for p in pages]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            assert target.read_bytes() in pages
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert names(tmp_path) == ["entry"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "out")
    assert names(tmp_path) == ["out"]


# -- errors of the system ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EFBIG, DiskFull), (errno.EACCES, UsageError),
     (errno.EROFS, UsageError), (errno.EPERM, UsageError), (errno.EIO, OSError)],
)  # fmt: skip
def test_errors_of_the_system_in_plain_words(tmp_path: Path, number: int, error: type[Exception]) -> None:
    with pytest.raises(error) as caught, disk_errors(tmp_path):
        raise OSError(number, "x")
    if error is not OSError:
        assert str(tmp_path) in str(caught.value)
    for write in WRITERS.values():
        with pytest.raises(error):
            write(tmp_path / "out", OSError(number, "x"))
        assert names(tmp_path) == []


def test_require_space_looks_at_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    storage.require_space(tmp_path / "not/yet/there", 1)
    with pytest.raises(DiskFull, match="nothing was written"):
        storage.require_space(tmp_path / "not/yet/there", 1 << 60)


def test_a_cache_that_can_not_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    write_cache(tmp_path / "file/entry", b"x")
    write_cache(Path("/proc/nowhere/entry"), b"x")
    write_cache(tmp_path / "good/entry", b"x")
    assert names(tmp_path) == ["file", "good"]
    monkeypatch.setattr(Path, "write_bytes", lambda *_: json.loads("a bug"))
    with pytest.raises(ValueError, match="Expecting value"):  # a bug is not hidden
        write_cache(tmp_path / "bad", b"x")


# -- JSON and digests --------------------------------------------------------------------------------------


@given(JSON)
@settings(max_examples=60)
def test_canonical_json_reads_back_and_does_not_depend_on_order(value: Any) -> None:
    raw = canonical_json(value) if _encodes(value) else b"null"
    back = json.loads(raw)
    assert canonical_json(back) == raw
    if isinstance(value, dict) and _encodes(value):
        assert canonical_json(dict(reversed(value.items()))) == raw
        assert digest_of(value) == hashlib.sha256(raw).hexdigest()


def _encodes(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("value", [math.nan, math.inf, [{"a": -math.inf}]])
def test_canonical_json_has_no_nan(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", '{"a": "é"}'.encode("latin-1"), "{}".encode("utf-16"), b"\xef\xbb\xbf{}", rb'"\ud800"',
     rb'{"\uDFFF": 1}', b"[" * 100_000, b"1" * 5000],
)  # fmt: skip
def test_strict_json_refuses(raw: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        strict_json(raw)


def test_strict_json_takes_whole_surrogate_pairs() -> None:
    assert strict_json(rb'"\ud83d\ude00"') == "😀"


@given(st.binary(max_size=300), st.integers(0, 310), st.integers(0, 310))
@settings(max_examples=60)
def test_sha256_of_a_range(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: int, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "range.bin"
    path.write_bytes(data)
    assert sha256_range(path) == hashlib.sha256(data).hexdigest()
    if start + length <= len(data):
        assert sha256_range(path, start, length) == hashlib.sha256(data[start : start + length]).hexdigest()
    elif length:
        with pytest.raises(Truncated, match="bytes short"):
            sha256_range(path, start, length)


def test_remembered_digests_follow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    for content in (b"one", b"two", b"other length"):
        time.sleep(0.02)  # the file's times tick every few milliseconds
        file.write_bytes(content)
        for _ in range(2):
            assert storage.remembered_sha256(file) == hashlib.sha256(content).hexdigest()
    assert len(list((tmp_path / "cache/file-digests").iterdir())) == 3
    for entry in (tmp_path / "cache/file-digests").iterdir():
        entry.write_bytes(b'"short"')
    assert storage.remembered_sha256(file) == hashlib.sha256(b"other length").hexdigest()


def test_parallel_map_keeps_order_and_tells_the_others_to_stop() -> None:
    assert parallel_map(lambda x: x * x, range(50), workers=4) == [x * x for x in range(50)]
    stop, seen = threading.Event(), []

    def work(i: int) -> None:
        if i == 0:
            raise KeyboardInterrupt
        seen.append(stop.wait(5))

    with pytest.raises(KeyboardInterrupt):
        parallel_map(work, range(2), workers=2, stop=stop)
    assert all(seen)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path))
    assert storage.cache_dir() == tmp_path
    monkeypatch.delenv("WEIGHTSMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert storage.cache_dir() == tmp_path / "x/weightsmith"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert storage.cache_dir() == Path.home() / ".cache/weightsmith"
