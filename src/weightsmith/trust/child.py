"""A scan in a process of its own: no network, no writing, no programs, limits on memory and on silence.

The bytes are a stranger's, and the parsers that read them have bugs. So the process that reads them can do nothing with
what it is made to do, and when it crashes, hangs or takes too much memory, that is a finding about the file that it was
reading, and a new process goes on with the others.

On Linux the process is a fork, so that a scan does not pay for starting Python again: of this process while it has one
thread and no model library, else of a small server that is started once. Elsewhere each scan starts a process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..found import Finding
from . import ahead
from .rules import Rule

MEMORY = 1 << 30  # bytes of data that the process may have
SILENCE = 60.0  # seconds in which it must say where it is
BATCH = 500  # files or tensors that one event tells of
BEHIND = 5  # niceness of a scan while a process hashes for it: of the two, that one is waited for
ATTEMPTS = 4  # files that may stop it before the scan is given up

CRASHED = Rule(
    "scanner-stopped", "unknown", "A check crashed, hung or took too much memory",
    f"The process that reads the files ended in the middle of this one, was silent for {SILENCE:.0f} seconds, or asked for more "
    f"than {MEMORY >> 20} MiB. The file was not checked, and may have been made for that.",
    "Treat the file as not checked. If it is an honest file, report it to us.",
)  # fmt: skip

_SILENT = f"was silent for {SILENCE:.0f} seconds and was stopped"
Event = dict[str, Any]
Emit = Callable[[Event], None]


@dataclass
class Outcome:
    """What came of one scan: findings, files, tensors and rules as plain data, in the order of the events."""

    findings: list[Finding] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    why: str = "ended early"


def scan_events(request: Event, emit: Emit) -> None:
    """Scan ``request["path"]`` in this process and tell ``emit`` of everything: findings, files, tensors, the end."""
    from .listing import shown
    from .scan import Scan

    def tell(name: str, done: int) -> None:
        emit({"at": shown(name), "done": done})

    reference, path = request.get("reference"), _path(request["path"])
    scan = Scan(path, skip=frozenset(request.get("skip", ())), tell=tell, reference=_path(reference) if reference else None,
                apart=ahead.can_fork(), hasher=ahead.begin(path), digested=request.get("digests", True))  # fmt: skip
    for finding in scan.run():
        emit({"finding": finding.model_dump()})
    files = [{"name": shown(item.name), "kind": "+".join(item.kinds), "size": item.size, "sha256": item.sha256}
             for item in scan.folder.items.values()]  # fmt: skip
    tensors = [{"file": shown(file), "name": name, "blake3": facts.blake3, "finite": facts.finite}
               for (file, name), facts in scan.folder.tensors.items() if request.get("digests", True)]  # fmt: skip
    for kind, told in (("files", files), ("tensors", tensors)):
        for at in range(0, len(told), BATCH):
            emit({kind: told[at : at + BATCH]})
    used = {rule.name: rule.text.model_dump() for rule in scan.used}
    emit({"end": {"rules": used, "unchecked": scan.folder.unchecked,
                  "checked": [s.about for s in scan.scanners if s.about],
                  "scanners": scan.sources}})  # fmt: skip


def _path(name: str) -> Path:
    """A path as it travels: its bytes in hex, since a name may hold bytes that are not text."""
    return Path(os.fsdecode(bytes.fromhex(name)))


def run_scan(request: Event, heard: Callable[[str, int], None] | None = None) -> Outcome:
    """Scan in a restricted child process; whatever stops it is a finding, and the other files are scanned all the same."""
    skip: list[str] = []
    stopped: list[Finding] = []
    careful = False  # told of each file at once, so that it is sure which one stopped the process
    for _ in range(ATTEMPTS + 1):
        outcome, at = _attempt({**request, "skip": skip, "careful": careful}, heard)
        if outcome.end:
            break
        if not careful:
            careful = True
            continue
        stopped.append(CRASHED.found(f"the scan {outcome.why}", file=at))
        if not at or at in skip:
            break
        skip.append(at)
    outcome.findings += stopped
    if stopped:
        outcome.end.setdefault("rules", {})[CRASHED.name] = CRASHED.text.model_dump()
    return outcome


def _attempt(request: Event, heard: Callable[[str, int], None] | None) -> tuple[Outcome, str]:
    """One process's events, and the file that it was at when it ended."""
    outcome, at = Outcome(), ""
    with contextlib.closing(_events(request)) as events, ahead.used_up():
        for event in events:
            if "at" in event:
                at = event["at"] or at
                if heard is not None:
                    heard(event["at"], event["done"])
            elif "finding" in event:
                outcome.findings.append(Finding.model_validate(event["finding"]))
            elif "files" in event:
                outcome.files += event["files"]
            elif "tensors" in event:
                outcome.tensors += event["tensors"]
            elif "end" in event:
                outcome.end = event["end"]
            elif "bug" in event:
                raise RuntimeError(event["bug"])
            elif "stopped" in event:
                outcome.why = str(event["stopped"])
    return outcome, at


_forked: list[bool] = []


def _events(request: Event) -> Generator[Event, None, None]:
    if sys.platform != "linux":
        yield from _of_process([sys.executable, "-m", __name__], request)
    elif ahead.can_fork():
        if _forked:  # the first scan of a process imports its scanners while it reads; for more, once is enough
            _warm()
        _forked.append(True)
        yield from _of_fork(request)
    else:
        try:
            server = _server()
        except PermissionError:  # in the sandbox no program can be started: what was made there is scanned by a fork all the same
            yield from _of_fork(request)
            return
        yield from server.events(request)


# -- the child ---------------------------------------------------------------------------------------------


def _restrict(request: Event) -> None:
    """Take from this process what a scan does not need."""
    from .sandbox import sandbox

    if sys.platform == "linux":
        import resource

        most = MEMORY + _data()
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    paths = [_path(request[key]).resolve() for key in ("path", "reference") if request.get(key)]
    for path in list(paths):  # a snapshot in the hub's cache is links to its blobs
        if path.parent.name == "snapshots":
            paths.append(path.parent.parent / "blobs")
    sandbox(read=[p for p in paths if p.exists()], write=[])


def _data() -> int:
    """Bytes of data that this process has from whom it was forked from, which is none of the scan's."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except PermissionError:  # a fork inside the sandbox may not ask about itself
        return 1 << 36


def _child(request: Event, out: int) -> None:
    """What the forked process does: restrict itself, scan, write events; never returns."""
    code = 70
    try:
        with os.fdopen(out, "w", encoding="ascii", buffering=1 << 16) as stream:
            last = 0.0

            def emit(event: Event) -> None:
                nonlocal last
                stream.write(json.dumps(event) + "\n")
                now = time.monotonic()
                if "at" in event and now - last > 0.05:
                    stream.flush()
                    last = now

            def at_once(event: Event) -> None:
                emit(event)
                stream.flush()

            try:
                gc.disable()  # it lives for a second or two, and has a limit on its memory
                _restrict(request)
                if ahead.begin(_path(request["path"])) is not None:
                    os.nice(BEHIND)
                scan_events(request, at_once if request.get("careful") else emit)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - what no scanner caused is a bug of ours, and the parent says so
                at_once({"bug": traceback.format_exc()})
        code = 0
    except MemoryError:
        code = ahead.OUT_OF_MEMORY
    finally:
        os._exit(code)


def _warm() -> None:
    """Import what scanners use before the files of the installation are out of reach for a while."""
    import encodings.idna  # noqa: F401

    from .scan import SCANNERS

    for name in SCANNERS.names():
        SCANNERS.load(name)
    gc.freeze()  # what was imported is no garbage, and need not be looked through again


def _of_fork(request: Event) -> Iterator[Event]:
    """Events of a forked child; it is killed when it is silent for too long, or when nobody listens any more."""
    begin, end = os.pipe()
    child = os.fork()
    if not child:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.close(begin)
        _child(request, end)
    os.close(end)
    silent = ended = closed = False
    try:
        for event in _lines(begin):
            if event is None:
                silent = True
                break
            ended = ended or "end" in event
            yield event
        else:
            closed = True
    finally:
        os.close(begin)
        if not closed:
            os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
        _, status = os.waitpid(child, 0)
    if not ended:
        yield {"stopped": _why(status, silent)}


def _why(status: int, silent: bool) -> str:
    if silent:
        return _SILENT
    code = os.waitstatus_to_exitcode(status)
    if code == ahead.OUT_OF_MEMORY:
        return f"asked for more than {MEMORY >> 20} MiB"
    return f"was ended by signal {-code}" if code < 0 else f"ended early with code {code}"


def _lines(handle: int) -> Iterator[Event | None]:
    """JSON lines of a pipe; ``None`` once nothing came for :data:`SILENCE` seconds."""
    left = b""
    while True:
        ready, _, _ = select.select([handle], [], [], SILENCE)
        if not ready:
            yield None
            return
        block = os.read(handle, 1 << 16)
        if not block:
            return
        *lines, left = (left + block).split(b"\n")
        for line in lines:
            yield json.loads(line)


# -- where this process can't fork ---------------------------------------------------------------------------


def _of_process(command: list[str], request: Event) -> Iterator[Event]:
    """Events of a fresh process, for platforms without a safe fork."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.close()
        watchdog = _Watchdog(process)
        ended = False
        with watchdog:
            for line in process.stdout:
                watchdog.fed()
                event = json.loads(line)
                ended = ended or "end" in event
                yield event
        code = process.wait()
    if not ended:
        yield {"stopped": _SILENT if watchdog.bit else f"ended early with code {code}"}


class _Watchdog:
    """Kills a process that says nothing for :data:`SILENCE` seconds; pipes can't be waited for everywhere."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.bit, self.last = process, False, time.monotonic()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def fed(self) -> None:
        """It said something."""
        self.last = time.monotonic()

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.process.poll() is None and self.bit:
            self.process.kill()

    def _watch(self) -> None:
        while not self.done.wait(1.0):
            if time.monotonic() - self.last > SILENCE:
                self.bit = True
                self.process.kill()
                return


class _Server:
    """A process with one thread that forks for each scan: started once, ends with this process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", __name__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lock = threading.Lock()
        self.owner = os.getpid()
        self.gone = False
        weakref.finalize(self, _end, self.process)

    def events(self, request: Event) -> Iterator[Event]:
        with self.lock:
            whole = False
            try:
                if not self.gone:  # it may have gone while this thread waited for it
                    for event in self._answers(request):
                        if "over" in event:
                            whole = True
                            return
                        yield event
            finally:
                if not whole:  # nobody listened to the end, or it ended: what it said last would be taken for the next scan's
                    self.gone = True
                    _end(self.process)
            yield {"stopped": "lost its process"}

    def _answers(self, request: Event) -> Iterator[Event]:
        """What it says to a request, as far as it gets."""
        stdin, stdout = _pipes(self.process)
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            for line in stdout:
                if line.endswith(b"\n"):  # it may end in the middle of one
                    yield json.loads(line)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in _pipes(process):
        with contextlib.suppress(OSError):
            pipe.close()
    process.kill()
    process.wait()


_servers: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        if not _servers or _servers[0].gone or _servers[0].process.poll() is not None or _servers[0].owner != os.getpid():
            _servers[:] = [_Server()]
        return _servers[0]


def _serve() -> None:
    """The server's loop: a request a line, its events, then ``over``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever asks; this process ends with it
    _warm()
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        for event in _of_fork(json.loads(line)):
            out.write(json.dumps(event).encode() + b"\n")
            if "at" in event:
                out.flush()
        out.write(b'{"over": 1}\n')
        out.flush()


def _write(stream: IO[str], event: Event) -> None:
    stream.write(json.dumps(event) + "\n")
    if "at" in event:
        stream.flush()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        _serve()
    else:
        wanted = json.loads(sys.stdin.readline())
        _restrict(wanted)
        with os.fdopen(os.dup(1), "w", encoding="ascii") as lines:
            scan_events(wanted, lambda event: _write(lines, event))
