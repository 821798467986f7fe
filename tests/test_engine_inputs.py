"""The edit engine on disks, bases and inputs that misbehave: one clear error each, nothing written, the base only read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from clirun import World, cli, edit_json, make_world, refused, tree
from test_interrupted import small_disk
from warm import Warm
from weightsmith import jobs, lanes
from weightsmith.checkpoint import INDEX, open_checkpoint
from weightsmith.direction import Direction, load_direction
from weightsmith.errors import (
    BaseChanged,
    DirectionModelMismatch,
    EditError,
    RecipeError,
    Truncated,
    UnsafeModel,
    WeightsmithError,
)
from weightsmith.formats.safetensors import TensorSpec, read_header
from weightsmith.options import RunOptions
from weightsmith.plan import compile_edit
from weightsmith.records import EditSpec, EditStep

KEEP = "free some space or choose another disk"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.build("llama", tmp_path_factory.mktemp("sharded") / "base", shard="60KB")


@pytest.fixture
def fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own: nothing is remembered."""
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


# -- disks -------------------------------------------------------------------------------------------------


def test_too_small_a_disk_is_told_before_the_first_byte(world: World, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        for argv in (("edit", world.model, world.direction, "--remove", "1"), ("undo", world.edited)):
            refused(tmp_path, *argv, "-o", disk / "new/out", says=("are needed and", "nothing was written", KEEP))


def test_what_an_earlier_run_left_counts_as_space(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that holds one copy of the model, not two, and the copy is half there."""
    monkeypatch.setattr("weightsmith.execute.MARGIN", 100_000)
    size = (world.model / "model.safetensors").stat().st_size
    with small_disk(tmp_path / "disk", str((size + 200_000) // 4096 * 4096)) as disk:
        left = disk / ".out.partial"
        left.mkdir()
        (left / "model.safetensors").write_bytes(bytes(size))
        done = cli("edit", world.model, world.direction, "--remove", "1", "-o", disk / "out")
        assert done.code == 0, done.err
        (disk / "out/model.safetensors").unlink()
        (disk / "other").write_bytes(bytes(size))
        refused(tmp_path, "edit", world.model, world.direction, "--remove", "1", "-o", disk / "two", says=("are needed",))


def bad_disk(monkeypatch: pytest.MonkeyPatch, call: str, number: int, calls: int = 1) -> list[int]:
    """The call number ``calls`` of a function of ``os``, and all later ones, fail."""
    real, seen, lock = getattr(os, call), [0], threading.Lock()

    def fails(*argv: Any, **more: Any) -> Any:
        with lock:
            seen[0] += 1
        if seen[0] >= calls:
            raise OSError(number, os.strerror(number))
        return real(*argv, **more)

    monkeypatch.setattr(os, call, fails)
    return seen


@pytest.mark.parametrize("call", ["pread", "preadv"])
@pytest.mark.parametrize(("calls", "resume"), [(1, False), (1, True), (3, False)])
@pytest.mark.usefixtures("fresh_cache")
def test_a_file_that_cannot_be_read(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, calls: int, resume: bool
) -> None:
    direction = tmp_path / "d.safetensors"
    pico.a_direction(sharded).save(direction)
    more = ("--resume",) if resume else ()
    with monkeypatch.context() as patch:
        seen = bad_disk(patch, call, errno.EIO, calls)
        said = refused(tmp_path, "edit", sharded, direction, "--remove", "1", "-o", tmp_path / "new/out", "--threads", "1", *more)
    assert seen[0] >= calls
    assert "Input/output error" in said.err
    if call == "pread":
        assert str(sharded / "model-0000") in said.err, "which file it is"


@pytest.mark.parametrize("number", [errno.EIO, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_kernels_that_cannot_copy(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whatever is wrong with copying in the kernel, it is tried by hand before it is an error."""
    same_bytes(sharded, tmp_path, lambda: bad_disk(monkeypatch, "copy_file_range", number))


def same_bytes(base: Path, folder: Path, change: Callable[[], object]) -> None:
    direction = pico.a_direction(base)
    for kind in ("remove", "add"):
        jobs.edit(base, direction, folder / kind, **{kind: 0.5})
    change()
    for kind in ("remove", "add"):
        jobs.edit(base, direction, folder / f"{kind}2", **{kind: 0.5})
        assert tree(folder / f"{kind}2") == tree(folder / kind)


def short(real: Callable[..., int], most: int) -> Callable[..., int]:
    return lambda source, target, count, start, to: real(source, target, min(count, most), start, to)


@pytest.mark.parametrize("way", ["short", "by a byte", "none", "zero", "tiny writes", "tiny reads", "cloned"])
def test_however_bytes_are_moved_they_are_the_same(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    real, called = os.copy_file_range, []
    pwrite, pread, preadv = os.pwrite, os.pread, os.preadv

    def clone(source: int, target: int) -> bool:
        called.append(1)
        os.truncate(target, 0)
        with open(os.dup(source), "rb") as file:
            file.seek(0)
            pwrite(target, file.read(), 0)
        return True

    def change() -> None:
        if way == "cloned":
            monkeypatch.setattr(lanes, "share_blocks", clone)
        elif way == "none":
            monkeypatch.delattr(os, "copy_file_range")
        elif way == "zero":  # some file systems say 0 where there is more
            monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
        elif way == "tiny writes":
            monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, memoryview(data)[:1000], at))
            monkeypatch.setattr(os, "preadv", lambda handle, into, at: preadv(handle, [into[0][:1000]], at))
        elif way == "tiny reads":
            monkeypatch.delattr(os, "copy_file_range")
            monkeypatch.setattr(os, "pread", lambda handle, count, at: pread(handle, min(count, 1000), at))
        else:
            monkeypatch.setattr(os, "copy_file_range", short(real, 777 if way == "short" else 1))

    same_bytes(sharded, tmp_path, change)
    assert bool(called) == (way == "cloned")


def test_a_real_clone_where_the_file_system_shares_blocks(sharded: Path, tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as a, (sharded / "config.json").open("rb") as b:
        if not lanes.share_blocks(b.fileno(), a.fileno()):
            pytest.skip("this file system does not share blocks")
    assert (tmp_path / "a").read_bytes() == (sharded / "config.json").read_bytes()


# -- a base that changes under our feet --------------------------------------------------------------------


def spec_of(base: Path, name: str) -> TensorSpec:
    return open_checkpoint(str(base)).tensors[name]


TOUCHED, UNTOUCHED = "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"


def overwrite(base: Path, name: str) -> None:
    spec = spec_of(base, name)
    with spec.file.open("r+b") as file:
        file.seek(spec.start + 4)
        old = file.read(4)
        file.seek(spec.start + 4)
        file.write((np.frombuffer(old, "<f4") * 2 + 1).astype("<f4").tobytes())


def exchange(base: Path, name: str) -> None:
    """Another file under the same name, as a download leaves it."""
    file = spec_of(base, name).file
    data = bytearray(file.read_bytes())
    data[spec_of(base, name).start] ^= 1
    (file.with_suffix(".new")).write_bytes(data)
    (file.with_suffix(".new")).replace(file)


def grow(base: Path, name: str) -> None:
    with spec_of(base, name).file.open("ab") as file:
        file.write(b"\0" * 64)


def shift(base: Path, name: str) -> None:
    """The same tensors behind a longer header."""
    file = spec_of(base, name).file
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    file.write_bytes((length + 64).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 64 + data[8 + length :])


CHANGES: dict[str, Callable[[Path, str], object]] = {
    "written over": overwrite, "exchanged": exchange, "grown": grow, "shifted": shift,
    "cut": lambda base, name: os.truncate(spec_of(base, name).file, spec_of(base, name).start + 5),
    "gone": lambda base, name: spec_of(base, name).file.unlink(),
    "touched": lambda base, name: spec_of(base, name).file.touch(),
}  # fmt: skip


@pytest.mark.parametrize("moment", ["before", "while", "after"])
@pytest.mark.parametrize("remembered", [True, False], ids=["remembered", "fresh"])
@pytest.mark.parametrize("name", [TOUCHED, UNTOUCHED], ids=["touched", "untouched"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("resume", [False, True], ids=["", "resume"])
@pytest.mark.usefixtures("fresh_cache")
def test_a_base_that_changes_during_the_edit(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str, remembered: bool, moment: str,
    resume: bool,
) -> None:  # fmt: skip
    """Before a file is opened, while it is written, and after it was."""
    base = copied(sharded, tmp_path / "base")
    direction = pico.a_direction(base)
    checkpoint = open_checkpoint(str(base))
    if not remembered:
        shutil.rmtree(os.environ["WEIGHTSMITH_CACHE"])
    real, done = lanes.Lane.write, []

    def happens() -> None:
        if not done:
            done.append(1)
            time.sleep(0.02)  # a file's times tick every few milliseconds
            CHANGES[change](base, name)

    def write(lane: lanes.Lane, plan: lanes.FilePlan) -> lanes.FileResult:
        mine = plan.name == checkpoint.tensors[name].file.name
        if mine and moment == "before":
            happens()
        result = real(lane, plan)
        if mine and moment == "after":
            happens()
        return result

    monkeypatch.setattr(lanes.Lane, "write", write)
    if moment == "while":
        pwrite, seen = os.pwrite, []

        def strikes(handle: int, data: Any, position: int) -> int:
            seen.append(1)
            if len(seen) == 3:
                happens()
            return pwrite(handle, data, position)

        monkeypatch.setattr(os, "pwrite", strikes)
    gone = change == "gone" and moment != "after"  # a disk that is away may come back: what is finished is kept
    with pytest.raises((BaseChanged, FileNotFoundError) if gone else (BaseChanged, Truncated)):
        jobs.edit(checkpoint, direction, tmp_path / "out", remove=1.0, options=RunOptions(threads=1), resume=resume)
    assert done
    assert set(os.listdir(tmp_path)) - ({".out.partial"} if gone and resume else set()) == {"base"}


@pytest.mark.parametrize("remembered", [True, False], ids=["remembered", "fresh"])
@pytest.mark.parametrize("change", [*CHANGES, "config"])
@pytest.mark.usefixtures("fresh_cache")
def test_a_base_that_changes_between_opening_and_editing(
    sharded: Path, tmp_path: Path, change: str, remembered: bool
) -> None:
    base = copied(sharded, tmp_path / "base")
    direction = pico.a_direction(base)
    checkpoint = open_checkpoint(str(base))
    assert checkpoint.architecture
    if not remembered:
        shutil.rmtree(os.environ["WEIGHTSMITH_CACHE"])
    time.sleep(0.02)
    if change == "config":
        edit_json(base / "config.json", lambda c: c.update(rms_norm_eps=1e-3))
    else:
        CHANGES[change](base, TOUCHED)
    expected: Any = (BaseChanged, Truncated, DirectionModelMismatch, FileNotFoundError, UnsafeModel)
    if change == "touched":  # nothing is different
        jobs.edit(checkpoint, direction, tmp_path / "out", remove=1.0)
        return
    with pytest.raises(expected):
        jobs.edit(checkpoint, direction, tmp_path / "out", remove=1.0)
    assert os.listdir(tmp_path) == ["base"]


@pytest.mark.usefixtures("fresh_cache")
def test_a_disk_that_writes_something_else_is_found_out(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untouched tensor that comes out differently, with the base as it was."""
    direction = pico.a_direction(sharded)  # its digests are remembered from here on
    real = lanes._move

    def garbles(source: int, target: int, *more: Any) -> int:
        moved = real(source, target, *more)
        os.pwrite(target, b"\1", more[2])
        return moved

    monkeypatch.setattr(lanes, "_move", garbles)
    with pytest.raises(EditError, match="was to stay as it is and differs"):
        jobs.edit(sharded, direction, tmp_path / "out", remove=1.0)
    assert os.listdir(tmp_path) == []


# -- where the files lie -----------------------------------------------------------------------------------


def nobodys(folder: Path) -> Path:
    """A folder that another user may enter; pytest's own may not be."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture
def open_place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root can be someone else")
def test_a_base_that_may_only_be_read_and_outputs_that_may_not_be_written(world: World, open_place: Path) -> None:
    base, mine, theirs = copied(world.model, open_place / "base"), open_place / "mine", open_place / "theirs"
    shutil.copy(world.direction, open_place / "d.safetensors")
    nobodys(open_place)
    for path in (base, *base.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    mine.mkdir()
    os.chown(mine, 65534, 65534)
    theirs.mkdir(0o755)
    (mine / "cache").mkdir()
    os.chown(mine / "cache", 65534, 65534)
    argv = ("edit", base, open_place / "d.safetensors", "--remove", "1", "-o")
    with Warm(open_place / "warm") as warm:
        warm.here(*argv, open_place / "reference")
        before = tree(open_place / "base")
        for out in (theirs / "out", theirs / "new/out", base / "../theirs/out"):
            ended = warm.run(*argv, out, user=65534, cache=mine / "cache")
            assert ended.code == 2, ended.err
            assert "not permitted to write here" in ended.words
            assert "choose another place with -o" in ended.words
            assert os.listdir(theirs) == []
        ended = warm.run(*argv, mine / "out", user=65534, cache=mine / "cache")
        assert ended.code == 0, ended.err
        assert tree(mine / "out") == tree(open_place / "reference")
        assert tree(open_place / "base") == before
        (theirs / ".out.partial").mkdir(0o700)
        ended = warm.run(*argv, theirs / "out", user=65534, cache=mine / "cache")
        assert ended.code == 2
        assert "not permitted" in ended.words


@pytest.mark.parametrize("verb", ["edit", "undo"])
def test_outputs_in_and_over_the_base(world: World, tmp_path: Path, verb: str) -> None:
    base = world.copy(tmp_path / "base")
    (tmp_path / "link").symlink_to("base")
    (tmp_path / "inner").symlink_to("base/sub")
    edited = tmp_path / "edited"
    assert cli("edit", base, world.direction, "--remove", "1", "-o", edited).code == 0
    argv = ("edit", base, world.direction, "--remove", "1") if verb == "edit" else ("undo", edited, "--base", base)
    for out, says in ((base, "exists already"), (tmp_path / "link", "exists already"), (base / "sub", "inside the base"),
                      (tmp_path / "link/sub/deep", "inside the base"), (tmp_path / "inner", "exists already"),
                      (tmp_path / "edited/../base/x", "inside the base")):  # fmt: skip
        refused(tmp_path, *argv, "-o", out, says=(says,))
    if verb == "undo":
        refused(tmp_path, *argv, "-o", edited / "sub", says=("inside",))
    assert cli(*(a if a != base else tmp_path / "link" for a in argv), "-o", tmp_path / "out").code == 0


@pytest.mark.parametrize("name", ["demo:smollm2", "~", "a b", "-x", "é\u202e", "x.safetensors", "m.gguf", "org/name@rev"])
def test_outputs_with_odd_names(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They are paths here, whatever they would mean as the name of a model."""
    monkeypatch.chdir(tmp_path)
    done = cli("edit", world.model, world.direction, "--remove", "1", "--out", f"./{name}" if name[0] == "-" else name)
    assert done.code == 0, done.err
    assert tree(tmp_path / name) == tree(world.edited)
    done = cli("undo", (tmp_path / name).absolute(), "--base", world.model, "-o", name + "2" if name[0] != "-" else "./-y")
    assert done.code == 0, done.err


# -- links -------------------------------------------------------------------------------------------------


def snapshot(source: Path, root: Path) -> Path:
    """A model as the hub's cache holds it: links into the blobs beside it."""
    blobs, folder = root / "models--org--m/blobs", root / "models--org--m/snapshots/0123abcd"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, blobs / f"{number:064x}")
        (folder / file.name).symlink_to(f"../../blobs/{number:064x}")
    return folder


@pytest.mark.parametrize("through", ["", "a link to the cache", "a link to the snapshot"])
def test_a_hub_snapshot_is_edited_and_no_link_comes_out(sharded: Path, tmp_path: Path, through: str) -> None:
    base = snapshot(sharded, tmp_path / "hub")
    direction = pico.a_direction(sharded)
    jobs.edit(sharded, direction, tmp_path / "plain", remove=1.0)
    if through:
        (tmp_path / "other").symlink_to("hub" if "cache" in through else base)
        base = tmp_path / "other" / ("models--org--m/snapshots/0123abcd" if "cache" in through else "")
    before = tree(tmp_path / "hub")
    jobs.edit(base, direction, tmp_path / "out", remove=1.0)
    mine, theirs = tree(tmp_path / "out"), tree(tmp_path / "plain")
    assert "link" not in mine.values()
    assert {k: v for k, v in mine.items() if k != "weightsmith.json"} == {k: v for k, v in theirs.items()
                                                                         if k != "weightsmith.json"}  # fmt: skip
    jobs.undo(tmp_path / "out", tmp_path / "back", base=base)
    assert tree(tmp_path / "back") == tree(sharded)
    assert tree(tmp_path / "hub") == before


@pytest.mark.parametrize("where", ["folder", "snapshot"])
@pytest.mark.parametrize("name", ["special_tokens_map.json", "config.json", "LICENSE", "shard", INDEX])
def test_links_out_of_the_model_are_refused_by_name(sharded: Path, tmp_path: Path, where: str, name: str) -> None:
    """What lies elsewhere is not the model's; the output may be published."""
    base = copied(sharded, tmp_path / "base") if where == "folder" else snapshot(sharded, tmp_path / "hub")
    name = sorted(p.name for p in sharded.glob("*.safetensors"))[0] if name == "shard" else name
    (secret := tmp_path / "secret").write_bytes((sharded / name).read_bytes() if (sharded / name).exists() else b'{"a": 1}')
    pico.a_direction(sharded).save(tmp_path / "d.safetensors")
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(os.path.relpath(secret, base))
    refused(tmp_path, "edit", base, tmp_path / "d.safetensors", "--remove", "1", "-o", tmp_path / "out",
            code=1, says=(name, "1 of 2 weight files are missing") if name.startswith("model-0") else
            (name, "leads to", "secret", "not followed", "link-leaves-folder"))  # fmt: skip
    if name.startswith("model-0"):
        return
    refused(tmp_path, "edit", base, tmp_path / "d.safetensors", "--remove", "1", "-o", tmp_path / "out", "--allow", "suspicious",
            says=(name, "is a link to", str(secret), "outside of the model's folder", "not copied"))  # fmt: skip


def test_links_inside_the_model_and_of_what_stays_behind(sharded: Path, tmp_path: Path) -> None:
    base = copied(sharded, tmp_path / "base")
    (base / "original").mkdir()
    (base / "LICENSE").rename(base / "original/LICENSE") if (base / "LICENSE").exists() else \
        (base / "original/LICENSE").write_text("yours")  # fmt: skip
    (base / "LICENSE").symlink_to("original/LICENSE")
    (base / "NOTICE").symlink_to("nowhere")
    (base / "readme").symlink_to(tmp_path)
    (base / "x.bin").symlink_to("/etc/passwd")
    (base / ".git").symlink_to("/etc/passwd")
    (base / "weightsmith").write_text("a file of that name is nobody's record")
    allowed = RunOptions(allow=("suspicious",))
    jobs.edit(base, pico.a_direction(base), tmp_path / "out", remove=1.0, options=allowed)
    found = tree(tmp_path / "out")
    assert "link" not in found.values()
    assert (tmp_path / "out/LICENSE").read_text() == "yours"
    assert not {"NOTICE", "readme", "x.bin", ".git"} & found.keys()
    jobs.undo(tmp_path / "out", tmp_path / "back", base=base)


def test_what_stands_beside_a_record_may_not_be_a_link_either(world: World, tmp_path: Path) -> None:
    """The base of an undo is itself an edited model, whose ``weightsmith`` folder comes along."""
    base, out = world.copy(tmp_path / "base", "edited"), tmp_path / "out"
    assert cli("edit", base, world.direction, "--amplify", "2", "--transfer", "-o", out).code == 0
    (tmp_path / "secret").write_text("x")
    (base / "weightsmith/more.txt").symlink_to(tmp_path / "secret")
    refused(tmp_path, "undo", out, "--base", base, "-o", tmp_path / "back", says=("more.txt", "is a link to"))


# -- edits that make no sense ------------------------------------------------------------------------------

NOBODY = "0" * 64
EDIT = """\
schema: weightsmith/edit/1
steps:
  - {{kind: {kind}, direction: {d}, source: 0, layers: [0, 1], amount: {amount}{more}}}
"""
ODD: dict[str, tuple[str, float, str, str]] = {
    "a layer beyond": ("remove", 1, ", roles: [mlp_down], strengths: {mlp_down: [1, 1, 1]}", "3 factors for 2 layers"),
    "few strengths": ("remove", 1, ", strengths: {'*': [1]}", "1 factors for 2 layers"),
    "no strengths": ("remove", 1, ", strengths: {'*': []}", "0 factors for 2 layers"),
    "NaN strengths": ("remove", 1, ", strengths: {'*': [1, .nan]}", "out of range float"),
    "infinite strengths": ("amplify", 2, ", strengths: {'*': [1, .inf]}", "out of range float"),
    "strengths of nobody": ("remove", 1, ", strengths: {lips: [1, 1]}", "role 'lips'"),
    "strengths too large": ("remove", 1, ", strengths: {'*': [1, 2.5]}", "from 0 to 2"),
    "strengths below zero": ("remove", 1, ", strengths: {'*': [1, -0.5]}", "from 0 to 2"),
    "strengths of roles for an addition": ("add", 0.5, ", strengths: {mlp_down: [1, 1]}", "belongs to layers"),
    "a billion removed": ("remove", 1e9, "", "from 0 to 2"), "a billion added": ("add", 1e9, "", "drown"),
    "less than nothing": ("amplify", -1e-9, "", "0 or more"), "minus a billion": ("add", -1e9, "", "drown"),
    "a missing companion": ("remove", 1, ", also: ['" + NOBODY + "']", "not at hand"),
    "a missing ward": ("remove", 1, ", protect: ['" + NOBODY + "']", "not at hand"),
    "itself twice": ("remove", 1, ", also: [{d}]", "linearly independent"),
    "itself protected": ("remove", 1, ", protect: [{d}]", "lies outside what is kept"),
    "a gate in weights": ("gated", 1, "", "no form as weights"),
    "a gate without a number": ("gated", 1, "NaN", "out of range float"),
    "norms of rows, amplified": ("amplify", 2, ", norms: output", "exact removal only"),
    "norms of an addition": ("add", 0.5, ", norms: input", "free norms"),
    "norms of what": ("remove", 1, ", norms: both", "norms"),
    "a subspace added": ("add", 0.5, ", also: [{d}]", "one direction"),
    "a constant of what": ("add", 0.5, ", constant: loose", "constant"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_an_edit_that_makes_no_sense(world: World, tmp_path: Path, case: str) -> None:
    kind, amount, more, says = ODD[case]
    digest = load_direction(world.direction).digest()
    if kind == "gated":
        threshold = ".nan" if more else "0.5"
        text = EDIT.format(kind="remove", d=digest, amount=1, more=f", gate: {{direction: {digest}, layer: 0, "
                           f"threshold: {threshold}}}").replace("layers: [0, 1]", "layers: [1]")  # fmt: skip
    else:
        text = EDIT.format(kind=kind, d=digest, amount=amount, more=more.replace("{d}", digest))
    (file := tmp_path / "edit.yaml").write_text(text)
    argv = ("edit", world.model, file, "--direction", world.direction)
    refused(tmp_path, *argv, "-o", tmp_path / "out", says=(says,))
    refused(tmp_path, *argv, "-o", tmp_path / "out", "--resume", says=(says,))
    refused(tmp_path, *argv, "--dry-run", says=(says,))


@pytest.mark.parametrize("field", ["--also", "--protect"])
def test_companions_of_another_width_or_model(world: World, tmp_path: Path, field: str) -> None:
    wide, other = (pico.build("llama", tmp_path / n, **o) for n, o in (("wide", {"hidden_size": 64}), ("other", {"seed": 5})))
    pico.a_direction(wide, seed=1).save(tmp_path / "wide.safetensors")
    pico.a_direction(other, seed=1).save(tmp_path / "other.safetensors")
    argv = ("edit", world.model, world.direction, "--remove", "1", "-o", tmp_path / "out", field)
    for more in ((), ("--transfer",)):
        refused(tmp_path, *argv, tmp_path / "wide.safetensors", *more, says=("width 64",))
    refused(tmp_path, *argv, tmp_path / "other.safetensors", says=("found on", "--transfer"))
    refused(tmp_path, *argv, tmp_path / "gone", says=("no such direction", "gone"))
    done = cli(*argv, tmp_path / "other.safetensors", "--transfer", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["transferred"] is True


def test_a_direction_of_nothing(world: World, tmp_path: Path) -> None:
    known = load_direction(world.direction)
    zero = Direction(known.vectors * np.float32(0), known.resid_norm, known.mean_shows, known.mean_lacks, known.meta)
    zero.save(tmp_path / "zero.safetensors")
    for how in (("--remove", "1"), ("--add", "0.5"), ("--amplify", "2")):
        refused(tmp_path, "edit", world.model, tmp_path / "zero.safetensors", *how, "-o", tmp_path / "out",
                says=("is zero or not finite",))  # fmt: skip


@pytest.mark.parametrize("dose", [0.5, 1.5, 1.6, 10.0, -2.0])
def test_a_large_dose_is_warned_of_in_units_of_the_stream(world: World, tmp_path: Path, dose: float) -> None:
    """‖αv‖/‖h‖, so the warning does not depend on how long the direction or the stream is."""
    known = load_direction(world.direction)
    for number, factor in enumerate((1.0, 100.0)):
        direction = Direction(known.vectors * np.float32(factor), known.resid_norm * np.float32(factor), known.mean_shows,
                              known.mean_lacks, known.meta)  # fmt: skip
        direction.save(tmp_path / f"{number}.safetensors")
        done = cli("edit", world.model, tmp_path / f"{number}.safetensors", "--add", dose, "-o", tmp_path / f"out{number}")
        assert done.code == 0, done.err
        assert ("is large" in done.words) == (abs(dose) > 1.5)
        record = json.loads((tmp_path / f"out{number}/weightsmith.json").read_text())
        assert any("is large" in note for note in record["notes"]) == (abs(dose) > 1.5)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "model.norm.weight"])
def test_a_header_that_names_a_tensor_twice(world: World, tmp_path: Path, name: str) -> None:
    folder = world.copy(tmp_path / "m")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[name])}}}'
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[8 + length :])
    for argv in (("edit", folder, world.direction, "--remove", "1", "--transfer", "-o", tmp_path / "out"),
                 ("diff", folder, world.model), ("undo", world.edited, "--base", folder, "-o", tmp_path / "out"),
                 ("rebuild", world.edited, "--base", folder)):  # fmt: skip
        refused(tmp_path, *argv, says=(f"names '{name}' twice", str(folder)))


def test_a_tensor_in_two_shards_with_an_index(sharded: Path, tmp_path: Path) -> None:
    """The index names one of them; which one a loader takes is anyone's guess."""
    base = copied(sharded, tmp_path / "base")
    direction = pico.a_direction(sharded)
    shards = sorted(base.glob("*.safetensors"))
    held = {file.name: read_header(file).tensors[0].name for file in shards}
    shutil.copy(shards[0], base / "model-00009.safetensors")
    edit_json(base / INDEX, lambda v: v["weight_map"].update({held[shards[0].name]: "model-00009.safetensors"}))
    with pytest.raises(WeightsmithError, match=r"stands in two files: model-0000.* and model-0000") as told:
        jobs.edit(base, direction, tmp_path / "out", remove=1.0)
    assert told.value.exit_code == 1
    assert os.listdir(tmp_path) == ["base"]


def test_a_shard_that_no_index_names_stays_behind(sharded: Path, tmp_path: Path) -> None:
    base = copied(sharded, tmp_path / "base")
    shutil.copy(sorted(base.glob("*.safetensors"))[0], base / "stranger.safetensors")
    jobs.edit(base, pico.a_direction(base), tmp_path / "out", remove=1.0)
    assert not (tmp_path / "out/stranger.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_infinity_that_turns_up_in_the_base(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the scan, and in the pass that copies, in a tensor that nobody touches, by name."""
    base = pico.build("llama", tmp_path / "base", dtype)
    direction = pico.a_direction(base)
    spec = spec_of(base, UNTOUCHED)
    time.sleep(0.02)
    with spec.file.open("r+b") as file:
        file.seek(spec.start)
        file.write(np.array(np.inf, "<f4" if dtype == torch.float32 else "<f2").tobytes())
    with pytest.raises(EditError, match=f"NaN or infinity, e.g. '{UNTOUCHED}'"):
        jobs.edit(base, direction, tmp_path / "out", remove=1.0)
    # and in the pass that copies, all the same
    monkeypatch.setattr(sys.modules["weightsmith.jobs.edit"], "passed", lambda *_: None)
    with pytest.raises(EditError, match=f"{UNTOUCHED}' holds NaN or infinity"):
        jobs.edit(base, direction, tmp_path / "out", remove=1.0)
    assert os.listdir(tmp_path) == ["base"]


def test_strengths_count_in_a_dose(world: World) -> None:
    """A dose can't grow past its limit, nor past its warning, by way of strengths."""
    checkpoint = open_checkpoint(str(world.model))
    known = load_direction(world.direction)
    found = {known.digest(): known}

    def compiled(strength: float) -> Any:
        step = EditStep(kind="add", direction=known.digest(), source=1, layers=[0, 1], amount=1.0,
                        strengths={"*": [strength, 1.0]})  # fmt: skip
        return compile_edit(checkpoint, EditSpec(steps=[step]), found, hooks_only=True)

    assert not compiled(1.0).notes
    assert any("a dose of 2 is large" in note for note in compiled(3.0).notes)
    with pytest.raises(RecipeError, match="drown"):
        compiled(1000.0)
