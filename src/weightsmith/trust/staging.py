"""Outputs of a restricted process: it writes them into a folder beside their place, and its owner moves them there.

Whoever runs a model may not write where the output goes, since other files lie there too. So the process that starts it, the
*owner*, makes a folder ``.NAME.partial-PID-…`` beside the output; the restricted process writes what is unfinished into the
part of it that it may write to, and asks its owner over a pipe to put what is finished in its place. The owner takes it out
of that part first, looks that it is a plain file or a folder of plain files and folders, and renames it: the output appears
whole or not at all, whichever of the two is killed at whatever moment, and what a kill leaves behind is removed by the next
command that writes there (:func:`weightsmith.storage.sweep_partials`).

Nothing else can be asked for: only the outputs that were named beforehand are put anywhere, never over something that is
there. One kind of output has no name beforehand: what is saved out of a conversation. It
is read and written anew by the owner, as JSON of that one kind, to a new ``.json`` file outside of hidden folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import OutputExists, UsageError
from ..storage import (
    disk_errors,
    finish_file,
    finish_folder,
    fsync,
    made_folders,
    refuse_existing,
    strict_json,
    sweep_partials,
    write_whole,
)

#: the part of a stage that the restricted process writes to
_IN = "in"
_LINE = 1 << 16  # bytes of a request
_MOST_SAVED = 64 << 20  # bytes of a conversation
CHAT = "weightsmith/chat/1"


class Stages:
    """The owner's side: the folders beside the outputs, and what of them was put in its place."""

    def __init__(self) -> None:
        self.folders: dict[Path, Path] = {}  # a place of outputs, and the stage in it
        self.targets: set[Path] = set()
        self.saves: Path | None = None  # where files without a name beforehand are written
        self._put: dict[Path, tuple[int, int]] = {}

    @contextlib.contextmanager
    def open(self, targets: list[Path], saves: Path | None) -> Iterator[Stages]:
        """Make the stages of ``targets``; at the end they are gone, and so are parent folders that nothing came into.

        Raises:
            UsageError: a place can't be written to; DiskFull.
        """
        self.saves = saves
        with contextlib.ExitStack() as ends:
            for target in targets:
                self.targets.add(target)
                if target.parent not in self.folders:
                    self.folders[target.parent] = ends.enter_context(self._stage(target))
            yield self

    @contextlib.contextmanager
    def _stage(self, target: Path) -> Iterator[Path]:
        owner = os.getpid()
        stage = target.parent / f".{target.name}.partial-{owner}-{secrets.token_hex(4)}"
        try:
            with disk_errors(target), made_folders(target.parent):
                sweep_partials(target)
                stage.mkdir(0o700)
                try:
                    (stage / _IN).mkdir(0o700)
                    yield stage
                finally:
                    if os.getpid() == owner:
                        _clear(stage)
                if not any(target.parent in (p.parent, *p.parent.parents) for p in self._put):
                    raise _NothingCame
        except _NothingCame:
            return

    @property
    def writable(self) -> list[Path]:
        """What the restricted process may write to."""
        return [stage / _IN for stage in self.folders.values()]

    def serve(self, asked: IO[bytes], answers: IO[bytes]) -> None:
        """Answer requests, one JSON line each, until nobody asks any more."""
        while (line := asked.readline(_LINE)).endswith(b"\n"):
            try:
                request = json.loads(line)
                answer = self._answer(request)
            except OutputExists:
                answer = {"taken": True}
            except UsageError as error:
                answer = {"refused": error.message, "hint": error.hint}
            except OSError as error:
                answer = {"errno": error.errno, "said": error.strerror}
            except (ValueError, KeyError, TypeError, RecursionError):
                answer = {"refused": "not a request", "hint": None}
            try:
                answers.write(json.dumps(answer).encode() + b"\n")
                answers.flush()
            except (OSError, ValueError):  # it is gone
                return

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        target = Path(os.fsdecode(bytes.fromhex(request["target"])))
        if request["do"] == "withdraw":
            info = target.lstat()
            if self._put.get(target) == (info.st_dev, info.st_ino) and stat.S_ISREG(info.st_mode):
                target.unlink()
            return {}
        name = str(request["made"])
        if Path(name).name != name or name in ("", ".", ".."):
            raise UsageError("no name of an output")
        if target in self.targets:
            self._place(name, target)
        elif self.saves is not None:
            _save(self.saves / name, target)
        else:
            raise UsageError("not an output of this command")
        return {}

    def _place(self, name: str, target: Path) -> None:
        stage = self.folders[target.parent]
        made = stage / name
        (stage / _IN / name).rename(made)  # out of reach, so that it stays what it is now
        try:
            folder = _refuse_odd(made)
            if folder:
                finish_folder(made, target)
            else:
                finish_file(made, target, replace=False)
                fsync(target.parent)
        finally:
            _clear(made)
        info = target.lstat()
        self._put[target] = (info.st_dev, info.st_ino)


class _NothingCame(Exception):
    """Ends :meth:`Stages._stage` such that folders that were made for an output go again."""


def _clear(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _refuse_odd(made: Path) -> bool:
    """Whether it is a folder.

    Raises:
        UsageError: a link, a device, a second name of another file; or one in the folder.
    """
    folder = stat.S_ISDIR(made.lstat().st_mode)
    inside = [Path(base) / n for base, folders, names in os.walk(made) for n in (*folders, *names)]
    for path in (made, *inside):
        info = path.lstat()
        if not (stat.S_ISDIR(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_nlink == 1)):
            raise UsageError(f"{path.name!r} is neither a plain file nor a folder; the output was refused")
    return folder


def _save(made: Path, target: Path) -> None:
    if target.suffix != ".json" or any(part.startswith(".") for part in target.parts):
        raise UsageError("from the sandbox, only to a .json file outside of hidden folders",
                         hint="name it so, or start with --no-sandbox")  # fmt: skip
    handle = os.open(made, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UsageError("not a conversation")
        value = strict_json(file.read(_MOST_SAVED))
    if not isinstance(value, dict) or value.get("schema") != CHAT:
        raise UsageError("not a conversation")
    write_whole(target, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


class Through:
    """The restricted process's side: a :class:`weightsmith.storage.Mover` that asks its owner."""

    def __init__(self, stages: Stages, asks: IO[bytes], answers: IO[bytes], own: list[Path]) -> None:
        self._stages, self._asks, self._answers, self._own = stages, asks, answers, own
        self._turn = threading.Lock()

    def takes(self, target: Path) -> bool:
        """Outputs that were named beforehand; and, where a conversation may be saved, whatever lies elsewhere."""
        if target in self._stages.targets:
            return True
        return self._stages.saves is not None and not any(own in target.parents for own in self._own)

    def aside(self, target: Path) -> Path:
        """A free name in the stage."""
        folder = self._stages.folders[target.parent] / _IN if target in self._stages.targets else self._stages.saves
        assert folder is not None
        return folder / f"{secrets.token_hex(4)}-{target.name}"

    def put(self, made: Path, target: Path, *, replace: bool) -> None:
        """Have it put in its place, which must be free: no output of a command replaces anything.

        Raises:
            OutputExists: the place is taken; UsageError: the owner refuses; OSError: it can't.
        """
        self._ask(target, {"do": "put", "made": made.name})

    def withdraw(self, target: Path) -> None:
        """Have a file removed that was put there."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(target, {"do": "withdraw"})

    def _ask(self, target: Path, request: dict[str, Any]) -> None:
        with self._turn:
            self._asks.write(json.dumps(request | {"target": os.fsencode(target).hex()}).encode() + b"\n")
            self._asks.flush()
            said = self._answers.readline()
        answer = json.loads(said) if said else {"refused": "the process that puts outputs in their place is gone"}
        if answer.get("taken"):
            with contextlib.suppress(OSError):
                refuse_existing(target, folder=False)
            raise OutputExists("the output exists already; it was left alone", where=target,
                               hint="remove it or choose another name with -o")  # fmt: skip
        if "refused" in answer:
            raise UsageError(str(answer["refused"]), where=target, hint=answer.get("hint"))
        if "errno" in answer:
            raise OSError(answer["errno"], answer["said"], str(target))
