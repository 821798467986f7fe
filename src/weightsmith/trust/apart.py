"""A computation in a process of its own that can only compute: for the one step of a job that runs a model.

Most edits are arithmetic on files and run no model. Where one does, to fit a constant, that step is done in a fork that may
read the model and nothing else, and whose result comes back as JSON. Whoever owns the process says whether that is done
(:func:`allow`): the command line does; in a program that uses the library, which may have threads and a model library
loaded, nothing is ever forked, and the step is done in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import ResourceError, WeightsmithError
from ..storage import cache_dir, sweep_partials


@dataclass(frozen=True)
class _Leave:
    say: Callable[[str], None]
    on: bool
    inherited: Collection[int]


_LEAVE: list[_Leave] = []


def allow(say: Callable[[str], None], *, on: bool, inherited: Collection[int] = ()) -> None:
    """Let this process fork for :func:`apart`, or with ``on=False`` have it said that it does not; ``say`` gets the line.
    ``inherited`` files were open when the process began."""
    _LEAVE[:] = [_Leave(say, on, frozenset(inherited))]


def apart(job: Callable[[bool], Any], read: Iterable[Path]) -> Any:
    """What ``job`` gives, plain data; in a restricted fork where that was allowed, else here. It may read ``read`` and the cache,
    and hears whether it is in a fork: progress can't be told from there.

    Raises:
        ResourceError: the fork was killed. What ``job`` raises of this package's errors is raised here.
    """
    leave = _LEAVE[0] if _LEAVE else None
    if leave is not None and not leave.on:
        leave.say("sandbox: off, as asked for: the model runs with all of your rights")
    if leave is None or not leave.on or sys.platform != "linux" or "torch" in sys.modules:
        return json.loads(json.dumps(job(False)))
    with temporary_folder() as temporary:
        return _forked(job, [p for p in (cache_dir(), *read) if p.exists()], temporary, leave)


def _forked(job: Callable[[bool], Any], read: list[Path], temporary: Path, leave: _Leave) -> Any:
    begin, end = os.pipe()
    owner = os.getpid()
    child = os.fork()
    if not child:
        _compute(job, read, temporary, owner, end, leave.inherited)
    os.close(end)
    try:
        with open(begin, "rb") as told:
            said = told.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if not said:
        code = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise ResourceError(f"the process that ran the model ended with {how}", hint="if memory ran out, try --dtype bfloat16")
    answer = json.loads(said)
    if answer["open"]:
        leave.say(answer["open"])
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    if "error" in answer:
        raise _again(answer["error"])
    return answer["value"]


def _compute(
    job: Callable[[bool], Any], read: list[Path], temporary: Path, owner: int, end: int, inherited: Collection[int]
) -> None:
    """What the fork does; never returns."""
    import traceback

    from .sandbox import sandbox

    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        shut(owner, (end,), inherited, temporary)
        made = sandbox(read=read, write=[temporary])
        answer: dict[str, Any] = {"open": made.line if made.open else ""}
        try:
            answer["value"] = job(True)
        except WeightsmithError as error:
            answer["error"] = {"kind": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        except Exception:  # noqa: BLE001 - a bug of ours, and the owner says so
            answer["bug"] = traceback.format_exc()
        with open(end, "wb") as out:
            out.write(json.dumps(answer).encode())
        code = 0
    finally:
        os._exit(code)


def _again(error: dict[str, Any]) -> WeightsmithError:
    kind = getattr(errors, str(error["kind"]), ResourceError)
    if not (isinstance(kind, type) and issubclass(kind, WeightsmithError)):
        kind = ResourceError
    made: WeightsmithError = kind(str(error["message"]), where=error["where"], hint=error["hint"])
    return made


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder whose name says whose it is, so that a later run removes what a killed one left."""
    place, owner = Path(tempfile.gettempdir()), os.getpid()
    folder = place / f".weightsmith.partial-{owner}-{secrets.token_hex(4)}"
    sweep_partials(place / "weightsmith")
    folder.mkdir(0o700)
    try:
        yield folder
    finally:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)


def shut(owner: int, ends: Collection[int], inherited: Collection[int], temporary: Path) -> None:
    """Make a fork a process of its own: it ends with its ``owner``, has its own ``temporary`` folder, and nothing that the
    owner opened is open in it but ``ends``. What was ``inherited`` by the owner stays, but for sockets."""
    from .seccomp import end_with_parent

    end_with_parent()
    if os.getppid() != owner:
        os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for handle in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            kept = handle in (0, 1, 2, null, *ends)
            theirs = handle in inherited and not stat.S_ISSOCK(os.fstat(handle).st_mode)
            if not kept and not theirs:
                os.dup2(null, handle, inheritable=False)  # not closed: whoever still knows the number would close another's
    for name in ("TMPDIR", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"):
        os.environ[name] = str(temporary)
    tempfile.tempdir = None
