"""A warm process that forks one child for each command, so that a hundred commands can be killed in a few seconds.

The child runs the command line as it is. It can be made to die, stop or meet an error at its n-th *step*: before and
half-way through everything that changes a file or folder. Steps are numbered the same in every run on one thread.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

#: steps that fail on a full disk; the others free space, or need none
NEED_SPACE = ("open", "os.mkdir", "pwrite", "copy_file_range", "write", "copyfile")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), its words, its seconds and the steps that it took."""

    code: int
    out: str
    err: str
    seconds: float
    steps: list[str]

    @property
    def words(self) -> str:
        """Both streams, white space made plain."""
        return " ".join((self.out + " " + self.err).split())


class Warm:
    """The warm process; use it as a context manager."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        known = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, __file__], env=known, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)  # fmt: skip

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(20)
        assert self.process.stdout
        self.process.stdout.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def here(self, *argv: object) -> None:
        """Run a command in the warm process itself, so that what it imports is there for every child."""
        answer = self._ask(here=[str(a) for a in argv], cache=str(self.cache))
        assert answer["code"] == 0, answer["said"]

    def run(self, *argv: object, after: float | None = None, number: int = signal.SIGKILL, at: int = -1, do: str = "die",
            errno: int = 0, user: int | None = None, cache: Path | None = None) -> Ended:  # fmt: skip
        """Run a command: the signal ``number`` comes ``after`` so many seconds, or the step ``at`` dies, or meets
        ``errno`` (``do="raise"``: this step and all later ones that need space); as another ``user``."""
        return Ended(**self._ask(argv=[str(a) for a in argv], after=after, number=int(number), at=at, do=do, errno=errno,
                                 user=user, cache=str(cache or self.cache), hold=False))  # fmt: skip

    def hold(self, *argv: object, at: int) -> int:
        """Run a command until its step ``at``, where it stops; its process number."""
        return int(self._ask(argv=[str(a) for a in argv], after=None, number=0, at=at, do="stop", errno=0, user=None,
                             cache=str(self.cache), hold=True)["pid"])  # fmt: skip

    def go_on(self, pid: int, number: int = signal.SIGCONT) -> Ended:
        """Let a held command go on, or kill it, and wait for its end."""
        return Ended(**self._ask(pid=pid, number=int(number)))


# -- the process itself ------------------------------------------------------------------------------------


class Steps:
    """Counts the steps of this process, and acts at one of them."""

    def __init__(self, at: int, do: str, errno: int) -> None:
        import threading

        self.at, self.do, self.errno = at, do, errno
        self.names: list[str] = []
        self.lock = threading.Lock()
        self.quiet = threading.local()

    def __call__(self, name: str) -> None:
        if getattr(self.quiet, "on", False):
            return
        with self.lock:
            number = len(self.names)
            self.names.append(name)
        if self.do == "raise":
            if 0 <= self.at <= number and name.split(" ")[0] in NEED_SPACE:
                raise OSError(self.errno, os.strerror(self.errno))
        elif number == self.at:
            os.kill(os.getpid(), signal.SIGSTOP if self.do == "stop" else signal.SIGKILL)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: whatever changes folders, before it happens."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
                self(f"open {path}")
        elif event in ("os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.chmod", "os.link", "os.truncate",
                       "fcntl.flock"):  # fmt: skip
            self(event)

    def install(self) -> None:
        import shutil

        sys.addaudithook(self.heard)
        pwrite, moved, sync = os.pwrite, os.copy_file_range, os.fsync

        def half_pwrite(handle: int, data: Any, position: int) -> int:
            self("pwrite")
            done = pwrite(handle, memoryview(data)[: len(data) // 2], position)
            self("pwrite half")
            return done + pwrite(handle, memoryview(data)[done:], position + done)

        def half_moved(source: int, target: int, count: int, start: int, to: int) -> int:
            self("copy_file_range")
            done = moved(source, target, max(1, count // 2), start, to)
            self("copy_file_range half")
            return done + (moved(source, target, count - done, start + done, to + done) if count > done else 0)

        def half_written(path: Path, data: bytes) -> int:
            self("write")
            with path.open("wb", buffering=0) as file:
                done = file.write(data[: len(data) // 2]) or 0
                self("write half")
                return done + (file.write(data[done:]) or 0)

        def half_copied(source: Any, target: Any, **_: Any) -> Any:
            self("copyfile")
            half_written(Path(target), Path(source).read_bytes())
            return target

        def synced(handle: int) -> None:
            self("fsync")
            sync(handle)

        os.pwrite, os.copy_file_range, os.fsync = half_pwrite, half_moved, synced  # type: ignore[assignment]
        shutil.copyfile = half_copied  # type: ignore[assignment]
        Path.write_bytes = half_written  # type: ignore[assignment,method-assign]
        Path.write_text = lambda path, text, **_: half_written(path, text.encode())  # type: ignore[assignment,method-assign]


def _child(request: dict[str, Any], note: Path) -> None:
    from weightsmith.cli.main import run

    os.environ["WEIGHTSMITH_CACHE"] = request["cache"]
    for stream, name in ((1, "out"), (2, "err")):
        handle = os.open(note / name, os.O_WRONLY | os.O_CREAT, 0o666)
        os.dup2(handle, stream)
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    steps = Steps(request["at"], request["do"], request["errno"])
    steps.install()
    code = run(request["argv"])
    steps.quiet.on = True
    sys.stdout.flush()
    sys.stderr.flush()
    if request["user"] is None:
        with open(note / "steps", "w", encoding="utf-8") as file:
            json.dump(steps.names, file)
    os._exit(code)


def _serve() -> None:
    import shutil
    import time

    from weightsmith.cli.main import run

    begun: dict[int, tuple[Path, float]] = {}

    def ended(pid: int, status: int) -> dict[str, Any]:
        note, start = begun.pop(pid)
        told = {name: (note / name).read_text() if (note / name).exists() else "" for name in ("out", "err", "steps")}
        shutil.rmtree(note)
        return {"code": os.waitstatus_to_exitcode(status), "out": told["out"], "err": told["err"],
                "seconds": time.perf_counter() - start, "steps": json.loads(told["steps"] or "[]")}  # fmt: skip

    for line in sys.stdin:
        request = json.loads(line)
        if "here" in request:
            os.environ["WEIGHTSMITH_CACHE"] = request["cache"]
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
                answer = {"code": run(request["here"]), "said": said.getvalue()}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            continue
        if "argv" in request:
            note = Path(tempfile.mkdtemp())
            start = time.perf_counter()
            pid = os.fork()
            if pid == 0:
                try:
                    _child(request, note)
                finally:
                    os._exit(99)
            begun[pid] = note, start
            if request["after"] is not None:
                time.sleep(request["after"])
                os.kill(pid, request["number"])  # one that has ended is still there until it is waited for
        else:
            pid = request["pid"]
            os.kill(pid, request["number"])
        _pid, status = os.waitpid(pid, os.WUNTRACED)
        answer = {"pid": pid} if os.WIFSTOPPED(status) else ended(pid, status)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
