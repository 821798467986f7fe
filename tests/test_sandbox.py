"""What a sandboxed process can't do, what it still can, and that its outputs appear whole or not at all.

Payloads only ever make marker files below ``tmp_path``, and say what they could do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clirun import partials, tree
from weightsmith.errors import OutputExists, UsageError
from weightsmith.trust import seccomp
from weightsmith.trust.apart import apart
from weightsmith.trust.sandbox import Restrictions, python_folders, sandbox
from weightsmith.trust.staging import Stages

linux = pytest.mark.skipif(sys.platform != "linux", reason="the mechanisms are Linux's")

#: everything that a payload would like to do; each says what came of it
PAYLOAD = r"""
import ctypes, errno, json, os, socket, subprocess, sys, threading
LIBC = ctypes.CDLL(None, use_errno=True)
MINE = os.path.dirname(os.path.abspath(__file__)) if "__file__" in globals() else ""

def call(number, *rest):
    if LIBC.syscall(number, *rest) < 0:
        raise OSError(ctypes.get_errno(), "")

def touch(path):
    with open(path, "a"):
        pass

def changed(path):
    before = os.stat(path).st_mode
    os.chmod(path, before ^ 0o111)
    if os.stat(path).st_mode == before:
        raise OSError(errno.EPERM, "nothing happened")

def wishes(outside, owner):
    return {
        "tcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "tcp6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "datagrams to a name": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "write": lambda: touch(outside + "/marker"),
        "overwrite": lambda: touch(outside + "/secret"),
        "truncate": lambda: os.truncate(outside + "/secret", 0),
        "link": lambda: os.link(outside + "/secret", outside + "/linked") or touch(outside + "/secret"),
        "folder": lambda: os.mkdir(outside + "/made"),
        "mode": lambda: changed(outside + "/secret"),
        "read": lambda: open(outside + "/secret").read(),
        "list": lambda: os.listdir(outside),
        "environment of the owner": lambda: open(f"/proc/{owner}/environ", "rb").read(1),
        "memory of the owner": lambda: open(f"/proc/{owner}/mem", "rb"),
        "signal": lambda: os.kill(owner, 0),
        "program": lambda: subprocess.run(["/bin/true"], check=True),
        "spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "become": lambda: os.execv("/nowhere/at/all", ["x"]) ,
        "io_uring": lambda: call(425, 1, 0),
        "namespace": lambda: call(272 if os.uname().machine == "x86_64" else 97, 0x10000000),
        "trace": lambda: call(101 if os.uname().machine == "x86_64" else 117, 16, owner, 0, 0),
        "rename": lambda: os.rename(outside + "/secret", outside + "/taken"),
        "remove": lambda: os.unlink(outside + "/old"),
    }

def come_of(wish):
    try:
        wish()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except Exception as error:
        return type(error).__name__
    return "done"

def attempt(outside, owner):
    found = {name: come_of(wish) for name, wish in wishes(outside, owner).items()}
    later = {}
    thread = threading.Thread(target=lambda: later.update({n: come_of(w) for n, w in wishes(outside, owner).items()}))
    thread.start()
    thread.join()
    begin, end = os.pipe()
    if not (child := os.fork()):
        os.write(end, json.dumps({n: come_of(w) for n, w in wishes(outside, owner).items()}).encode())
        os._exit(0)
    os.close(end)
    with open(begin, "rb") as told:
        forked = json.loads(told.read() or b"{}")
    os.waitpid(child, 0)
    return {"here": found, "in a thread": later, "in a fork": forked}
"""
DENIED = ("EPERM", "EACCES")


def python(code: str, *argv: object, **environment: str) -> Any:
    """What a fresh process prints as JSON, in its last line."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=False,
                          env={**os.environ, **environment}, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_all_denied(told: dict[str, dict[str, str]]) -> None:
    for where, found in told.items():
        assert len(found) == 25, where
        left = {name: what for name, what in found.items() if what not in DENIED}
        assert not left, f"{where}: {left}"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's private folder."""
    folder = tmp_path / "home/.ssh"
    folder.mkdir(parents=True)
    (folder / "secret").write_text("a key")
    (folder / "old").write_text("another")
    return folder


# -- the process itself --------------------------------------------------------------------------------------


@linux
def test_nothing_of_it_can_be_done_in_any_thread_or_fork(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "given").write_text("x")
    before = tree(tmp_path)
    told = python(PAYLOAD + """
from weightsmith.trust.sandbox import sandbox
made = sandbox(read=[sys.argv[2]], write=[sys.argv[3]])
told = attempt(sys.argv[1], os.getppid())
a, b = socket.socketpair()
a.send(b"x")
import decimal, numpy as np, tempfile
tempfile.tempdir = sys.argv[3]
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
made_there = sys.argv[3] + "/x"
touch(made_there)
os.mkdir(sys.argv[3] + "/y")
os.rename(made_there, sys.argv[3] + "/y/z")
fine = [open(sys.argv[2]).read() == "x", b.recv(1) == b"x", float((np.ones((9, 9)) @ np.ones((9, 9))).sum()) == 729.0,
        open("/dev/urandom", "rb").read(1) != b"", bool(open("/proc/self/maps").read(1)), bool(os.listdir("/sys"))]
with open("/dev/null", "w") as null:
    null.write("x")
print(json.dumps([told, fine, made.line, list(made.open)]))
""", outside, tmp_path / "given", tmp_path / "in")  # fmt: skip
    assert_all_denied(told[0])
    assert all(told[1]), told[1]
    assert told[3] == []
    assert told[2].startswith("sandbox: no reading but what it needs, no writing outside of its folders, no network")
    assert (tmp_path / "in/y/z").is_file()
    assert {n: d for n, d in tree(tmp_path).items() if not n.startswith("in/")} == before


@linux
def test_without_a_sandbox_all_of_it_can_be_done(tmp_path: Path, outside: Path) -> None:
    """So that what is denied above is denied by the sandbox, and by nothing else."""
    told = python(PAYLOAD + """
found = {n: come_of(w) for n, w in wishes(sys.argv[1], os.getppid()).items()}
print(json.dumps(found))
""", outside)  # fmt: skip
    done = {name for name, what in told.items() if what == "done"}
    assert done >= {"tcp", "udp", "unix", "netlink", "write", "mode", "folder", "link", "program", "signal", "list"}
    assert "marker" in tree(outside)


@linux
def test_home_is_out_of_reach_although_python_may_live_in_it(tmp_path: Path, outside: Path) -> None:
    """Neither the home folder, nor what holds it, nor the working folder come with ``sys.path``."""
    home = outside.parent
    (home / "site").mkdir()
    found = python("""
import json, sys
sys.path += [sys.argv[1], sys.argv[1] + "/..", "/", sys.argv[1] + "/site", "", "."]
from weightsmith.trust.sandbox import python_folders
print(json.dumps([str(p) for p in python_folders()]))
""", home, HOME=str(home))  # fmt: skip
    assert str(home / "site") in found
    assert not {str(home), str(tmp_path), "/", os.getcwd()} & set(found)
    assert any(Path(p).is_relative_to(sys.prefix) or Path(sys.prefix).is_relative_to(p) for p in found)


@linux
def test_what_is_left_open_on_request_and_only_that(tmp_path: Path, outside: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as wanted, socket.create_server(("127.0.0.1", 0)) as other:
        told = python(PAYLOAD + """
from weightsmith.trust.sandbox import sandbox
made = sandbox(network=[int(sys.argv[2])])
def reach(port):
    return lambda: socket.create_connection(("127.0.0.1", port), 5).close()
tries = {"port": reach(int(sys.argv[2])), "other": reach(int(sys.argv[3])), "bind": lambda: socket.socket().bind(("127.0.0.1", 0)),
         "mptcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),
         "fast open": lambda: socket.socket().sendto(b"x", 0x20000000, ("127.0.0.1", int(sys.argv[3])))}
found = {n: come_of(t) for n, t in tries.items()} | {n: come_of(w) for n, w in wishes(sys.argv[1], os.getppid()).items()}
print(json.dumps([found, list(made.open)]))
""", outside, wanted.getsockname()[1], other.getsockname()[1])  # fmt: skip
        done = {name for name, what in told[0].items() if what == "done"}
        assert done == {"port", "tcp", "tcp6"}
        assert told[1] == [f"connections to TCP port {wanted.getsockname()[1]}"]
    told = python(PAYLOAD + """
from weightsmith.trust.sandbox import sandbox
made = sandbox(network=True, execute=True, read=None)
found = {n: come_of(w) for n, w in wishes(sys.argv[1], os.getppid()).items()}
found["restricted alike"] = subprocess.run(["/bin/sh", "-c", "echo > " + sys.argv[1] + "/marker"], capture_output=True).returncode
print(json.dumps([found, list(made.open)]))
""", outside)  # fmt: skip
    done = {name for name, what in told[0].items() if what == "done"}
    assert done >= {"tcp", "udp", "unix", "netlink", "program", "spawn", "read", "list"}
    assert not done & {"write", "overwrite", "mode", "signal", "io_uring", "namespace", "trace"}
    assert told[0]["restricted alike"] != 0
    assert told[1] == ["reading", "the network", "other programs, restricted alike"]


@linux
def test_a_second_sandbox_only_takes_more_away(tmp_path: Path, outside: Path) -> None:
    told = python(PAYLOAD + """
from weightsmith.trust.sandbox import sandbox
sandbox(write=[sys.argv[1]], network=True)
first = come_of(lambda: touch(sys.argv[1] + "/first"))
sandbox(write=[], read=None, network=True, execute=True)
found = {n: come_of(w) for n, w in wishes(sys.argv[1], os.getppid()).items()}
print(json.dumps([first, found]))
""", outside)  # fmt: skip
    assert told[0] == "done"
    assert {told[1][n] for n in ("write", "program", "mode")} <= set(DENIED)
    assert told[1]["tcp"] == "done"


def test_where_nothing_can_be_restricted_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    made = sandbox(read=[tmp_path], write=[tmp_path])
    assert made.in_force == ()
    assert made.line == ("sandbox: none; this platform (darwin) lets no process restrict itself: files, network and programs "
                         "stay as they are")  # fmt: skip
    with pytest.raises(UsageError, match="has to be there before"):
        sandbox(write=[tmp_path / "absent"])


@linux
def test_an_old_kernel_or_another_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import landlockpy

    monkeypatch.setattr(landlockpy, "abi_version", lambda: 0)
    monkeypatch.setattr(seccomp, "supported", lambda: False)
    made = sandbox()
    assert made.in_force == ()
    assert "files (this kernel has no Landlock): all that you may read and write" in made.open
    assert any("no filter of system calls is known" in what for what in made.open)
    asked: list[seccomp.Denials] = []
    monkeypatch.setattr(seccomp, "supported", lambda: True)
    monkeypatch.setattr(seccomp, "install", lambda denials: asked.append(denials) or True)
    assert sandbox().in_force == ("no network", "no other programs")
    assert asked[0].truncate, "what Landlock would do is done here"


@linux
@pytest.mark.parametrize(("version", "said"), [(4, {"signals to your other processes", "commands to devices that are readable"}),
                                               (5, {"signals to your other processes"}), (7, set())])  # fmt: skip
def test_what_a_version_of_landlock_lacks_is_said(monkeypatch: pytest.MonkeyPatch, version: int, said: set[str]) -> None:
    import landlockpy

    class Rules:
        def __init__(self, **_: Any) -> None: ...
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...
        def allow_path(self, *_: object) -> None: ...
        def restrict(self, *_: object) -> None: ...

    monkeypatch.setattr(landlockpy, "abi_version", lambda: version)
    monkeypatch.setattr(landlockpy, "Ruleset", Rules)
    monkeypatch.setattr("weightsmith.trust.sandbox._threads", lambda: 3 if version == 7 else 1)
    monkeypatch.setattr(seccomp, "install", lambda _: True)
    threads = {"files, for 2 threads that ran before"} if version == 7 else set()
    assert set(sandbox().open) == said | threads


def test_the_line_says_what_is_and_what_is_not() -> None:
    assert Restrictions(("no network",)).line == "sandbox: no network"
    assert Restrictions(("no network",), ("reading", "signals")).line == "sandbox: no network; left open: reading; signals"


def test_only_plain_folders_are_taken_from_python() -> None:
    assert all(p.is_absolute() and p.exists() for p in python_folders())


# -- the filter ------------------------------------------------------------------------------------------------

ALLOW, EPERM, ENOSYS, DONE = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x50000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def answered(raw: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would answer: the program, run on one call."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = [struct.unpack("<HBBI", raw[i : i + 8]) for i in range(0, len(raw), 8)]
    at, held = 0, 0
    while True:
        operation, then, otherwise, k = code[at]
        at += 1
        if operation == 0x06:
            return int(k)
        if operation == 0x20:
            held = struct.unpack_from("<I", data, k)[0]
        elif operation == 0x54:
            held &= k
        else:
            holds = {0x15: held == k, 0x35: held >= k, 0x45: bool(held & k)}[operation]
            at += then if holds else otherwise


@pytest.mark.parametrize("machine", ARCH)
def test_every_number_is_answered_as_the_tables_say(machine: str) -> None:
    column, arch = list(ARCH).index(machine), ARCH[machine]
    raw = seccomp.program(machine, seccomp.Denials())
    denied = {row[column] for t in (seccomp.ALWAYS, seccomp.NETWORK, seccomp.PROGRAMS) for row in t.values()} - {None}
    quiet = {row[column] for row in seccomp.ATTRIBUTES.values()} - {None}
    closer = {name: row[column] for name, row in seccomp._CLOSER.items()}
    for number in range(600):
        want = EPERM if number in denied else DONE if number in quiet else ALLOW
        want = {closer["socket"]: EPERM, closer["socketpair"]: EPERM, closer["clone3"]: ENOSYS}.get(number, want)
        assert answered(raw, arch, number) == want, number
        assert answered(raw, arch ^ 1, number) == EPERM, "another architecture's number"
        if machine == "x86_64":
            assert answered(raw, arch, number | 0x40000000) == EPERM, "x32"
    assert answered(raw, arch, closer["clone"], 0x10000011) == EPERM, "a user namespace"
    assert answered(raw, arch, closer["clone"], 0x3D0F00) == ALLOW, "a thread"
    assert answered(raw, arch, closer["ioctl"], 0, 0x5412) == EPERM, "typing into the terminal"
    assert answered(raw, arch, closer["ioctl"], 0, 0xDEAD00005412) == EPERM
    assert answered(raw, arch, closer["ioctl"], 0, 0x5401) == ALLOW
    assert answered(raw, arch, closer["prlimit64"], 0, 7) == ALLOW
    assert answered(raw, arch, closer["prlimit64"], 1, 7) == EPERM, "another process's limits"
    assert answered(raw, arch, closer["socketpair"], 1, 0x80001) == ALLOW
    assert answered(raw, arch, closer["socketpair"], 1, 0x80002) == EPERM
    tcp = seccomp.program(machine, seccomp.Denials("tcp"))
    assert answered(tcp, arch, closer["socket"], 2, 0x80801, 6) == ALLOW
    for odd in ((2, 2, 0), (1, 1, 0), (16, 3, 0), (2, 1, 132), (2, 1, 262), (10, 3, 58)):
        assert answered(tcp, arch, closer["socket"], *odd) == EPERM, odd
    assert answered(tcp, arch, closer["sendto"], 3, 0, 1, 0x20000000) == EPERM
    assert answered(tcp, arch, closer["sendto"], 3, 0, 1, 0x4000) == ALLOW
    every = seccomp.program(machine, seccomp.Denials("any", execute=True))
    for name, row in {**seccomp.NETWORK, **seccomp.PROGRAMS, "socket": seccomp._CLOSER["socket"]}.items():
        assert answered(every, arch, row[column]) == ALLOW, name


@pytest.mark.parametrize("machine", ARCH)
def test_the_numbers_are_those_of_the_system_library(machine: str) -> None:
    """An independent table, where it is installed; names that are newer than it are left out."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")
    column, checked = list(ARCH).index(machine), 0
    for table in (seccomp.ALWAYS, seccomp.NETWORK, seccomp.PROGRAMS, seccomp.ATTRIBUTES, seccomp.TRUNCATE, seccomp._CLOSER,
                  seccomp._SECCOMP):  # fmt: skip
        for name, row in table.items():
            found = library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(ARCH[machine]), name.encode())
            if found >= 0:
                checked += 1
                assert row[column] == found, name
            elif found < -1:  # known, and not a call of this machine
                assert row[column] is None, name
    assert checked > 70


# -- outputs -----------------------------------------------------------------------------------------------------

KILLS = 8
#: a command without a model: a file and a folder, each of some blocks
TOY = """
import os, sys, time
from pathlib import Path
from weightsmith.cli import main as entry, sandboxed
from weightsmith.options import RunOptions
from weightsmith.storage import whole_folder, withdraw, write_whole
out = Path(sys.argv[1])
pause = float(sys.argv[2])
before = sys.argv[3] if len(sys.argv) > 3 else ""

def job():
    given = {"sandbox": "off" not in before, "quiet": False, "offline": True}
    entered = sandboxed.enter("x.toy", given, {"out": out}, lambda tell: RunOptions())
    if entered.code is not None:
        return entered.code
    exec(before)
    write_whole(out / "file.json", b"x" * 300_000)
    time.sleep(pause)
    with whole_folder(out / "folder") as folder:
        for n in range(4):
            (folder / str(n)).write_bytes(b"x" * 50_000)
            time.sleep(pause)
    print("wrote", flush=True)
    return 0

sandboxed._NEEDS["toy"] = lambda k: sandboxed.Needs(outputs=[k["out"] / "file.json", k["out"] / "folder"], saves="saves" in before)
entry._invoke = lambda argv: job()
entry.main([])
"""


def toy(out: Path, pause: float = 0.0, before: str = "", **more: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", TOY, str(out), str(pause), before]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def ended(out: Path, before: str = "") -> tuple[int, str]:
    run = toy(out, 0.0, before)
    said, told = run.communicate(timeout=60)
    return run.returncode, said + told


def complete(out: Path) -> list[str]:
    """Outputs that are there, each of which is whole."""
    there = []
    if (out / "file.json").exists():
        assert (out / "file.json").read_bytes() == b"x" * 300_000
        there.append("file.json")
    if (out / "folder").exists():
        assert sorted(p.name for p in (out / "folder").iterdir()) == ["0", "1", "2", "3"]
        assert all(p.stat().st_size == 50_000 for p in (out / "folder").iterdir())
        there.append("folder")
    return there


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def child_of(run: subprocess.Popen[str]) -> int:
    limit = time.monotonic() + 20
    while not (found := children(run.pid)):
        assert time.monotonic() < limit
        assert run.poll() is None, run.communicate()
        time.sleep(0.002)
    return found[0]


@pytest.fixture
def lonely_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_outputs_come_through_the_owner_and_nothing_else_is_left(tmp_path: Path) -> None:
    out = tmp_path / "new/out"
    code, said = ended(out)
    assert (code, said) == (0, "wrote\n")
    assert complete(out) == ["file.json", "folder"]
    assert sorted(os.listdir(out)) == ["file.json", "folder"]
    assert not [n for n in os.listdir(tmp_path / "tmp") if "weightsmith" in n]
    mask = os.umask(0)
    os.umask(mask)
    assert (out / "file.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (out / "folder").stat().st_mode & 0o777 == 0o777 & ~mask
    code, said = ended(out)
    assert code == 2, "the outputs are there"
    assert "output-exists" in said


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_an_error_leaves_neither_outputs_nor_folders(tmp_path: Path) -> None:
    code, said = ended(tmp_path / "new/out", "raise entry.WeightsmithError('no')")
    assert (code, said) == (2, "error[weightsmith-error]: no\n")
    assert not (tmp_path / "new").exists()


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_the_child_may_ask_for_its_outputs_alone(tmp_path: Path) -> None:
    """Whatever code in it asks the owner for."""
    (tmp_path / "mine").write_text("mine")
    stage = "there = mover.aside(out / 'file.json'); "
    odd = {
        "mover.put(mine, mine, replace=True)": "not an output of this command",
        "mover.put(mine, out / 'file.json', replace=True)": "No such file",
        stage + "there.symlink_to(mine); mover.put(there, out / 'file.json', replace=False)": "neither a plain file nor",
        stage + "os.mkfifo(there); mover.put(there, out / 'file.json', replace=False)": "neither a plain file nor",
        stage + "there.mkdir(); (there / 'x').symlink_to(mine); mover.put(there, out / 'folder', replace=False)": "neither a plain",
        "mover._ask(out / 'file.json', {'do': 'put', 'made': '../../mine'})": "no name of an output",
        "mover._asks.write(b'[[[\\n'); mover._ask(mine, {'do': 'withdraw'})": "not a request",
        "write_whole(mine.parent / 'other', b'')": "not permitted to write here",
    }  # fmt: skip
    code = f"""
from weightsmith import storage
mover, mine, found = storage._MOVER[0], Path({str(tmp_path / "mine")!r}), []
for one in {list(odd)!r}:
    try:
        exec(one)
        found.append("done")
    except Exception as error:
        found.append(str(error))
mover._answers.readline()  # of the broken one
mover._ask(mine, {{"do": "withdraw"}})  # not put there by us
raise entry.WeightsmithError(repr(found))
"""
    done, said = ended(tmp_path / "out", code)
    assert done == 2, said
    for says in odd.values():
        assert says in said
    assert "done" not in said
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["cache", "mine", "tmp"]


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_what_was_put_can_be_withdrawn(tmp_path: Path) -> None:
    """As when the second of two files can't be written."""
    code, said = ended(tmp_path / "out", "write_whole(out / 'file.json', b'1'); withdraw(out / 'file.json')")
    assert (code, said) == (0, "wrote\n")
    assert complete(tmp_path / "out") == ["file.json", "folder"]


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_an_output_that_turns_up_in_the_meantime_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = toy(out, 0.5)
    limit = time.monotonic() + 20
    while not (out / "file.json").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    (out / "folder").mkdir()
    (out / "folder/mine").write_text("mine")
    said = "".join(run.communicate(timeout=30))
    assert run.returncode == 2
    assert "output-exists" in said
    assert tree(out).keys() == {"file.json", "folder", "folder/mine"}


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_only_conversations_are_saved_without_having_been_named(tmp_path: Path) -> None:
    talk = '{"schema": "weightsmith/chat/1", "messages": []}'
    home = tmp_path / "home"
    (home / ".hidden").mkdir(parents=True)
    tries = {"talk.json": (talk, ""), "again/talk.json": (talk, ""), ".bashrc": (talk, "only to a .json file"),
             "talk.sh": (talk, "only to a .json file"), ".hidden/talk.json": (talk, "only to a .json file"),
             "other.json": ('{"schema": "x"}', "not a conversation"), "list.json": ("[]", "not a conversation"),
             "no.json": ("rm", "not a request"), "talk.json ": (talk, "only to a .json file")}  # fmt: skip
    code = f"""
'saves'
for name, (data, says) in {tries!r}.items():
    try:
        write_whole(Path({str(home)!r}) / name, data.encode())
        assert not says, name
    except entry.WeightsmithError as error:
        assert says and says in str(error), (name, str(error))
try:
    write_whole(Path({str(home / "talk.json")!r}), b"{{}}")
except entry.WeightsmithError as error:
    assert error.code == "output-exists"
else:
    raise AssertionError
"""
    done, said = ended(tmp_path / "out", code)
    assert done == 0, said
    assert json.loads((home / "talk.json").read_text()) == json.loads(talk)
    assert tree(home).keys() == {"talk.json", ".hidden", "again", "again/talk.json"}


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_nothing_that_the_owner_opened_is_open_in_the_child(tmp_path: Path) -> None:
    begin = "import socket; kept = socket.create_server(('127.0.0.1', 0)); "
    words = TOY.replace("def job():", begin + "\ndef job():").replace("entry.main([])", "sandboxed.own_process(); entry.main([])")
    look = ("import stat; held = {os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') "
            "if os.path.exists(f'/proc/self/fd/{n}')}; "
            "raise entry.WeightsmithError(str([h for h in held if 'socket' in h]))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", words, str(tmp_path / "out"), "0", look], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert "error[weightsmith-error]: []" in done.stderr


# -- kills and signals -------------------------------------------------------------------------------------------


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_kills_at_random_moments_leave_nothing_torn(tmp_path: Path) -> None:
    dice = random.Random()  # other moments in every run: a moment that hurts is a bug whenever it is found
    seen: set[tuple[str, ...]] = set()
    start = time.monotonic()
    assert ended(tmp_path / "whole")[0] == 0
    long = time.monotonic() - start + 0.1
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        whose = number % 2
        run = toy(out, 0.02)
        inner = child_of(run) if whose else run.pid
        time.sleep(dice.uniform(0, 0.2) if whose else dice.uniform(0, long))
        with contextlib.suppress(ProcessLookupError):
            os.kill(inner, signal.SIGKILL)
        run.communicate(timeout=30)
        assert run.returncode in (0, 2, -signal.SIGKILL)
        time.sleep(0.05)  # the kernel ends the child with its owner
        there = complete(out) if out.is_dir() else []
        seen.add(tuple(there))
        if whose:
            assert not partials(out), "the owner lives, and tidies up"
        for name in there:  # what is finished would be refused
            (out / name).rename(tmp_path / f"{number}-{name}")
        assert ended(out)[0] == 0, "the next run is as if nothing had been"
        assert complete(out) == ["file.json", "folder"]
        assert sorted(os.listdir(out)) == ["file.json", "folder"]
    assert not [n for n in os.listdir(tmp_path / "tmp") if "weightsmith" in n]


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_the_child_ends_with_its_owner(tmp_path: Path) -> None:
    run = toy(tmp_path / "out", 5.0)
    inner = child_of(run)
    time.sleep(0.3)
    run.kill()
    run.communicate(timeout=10)
    limit = time.monotonic() + 5
    while Path(f"/proc/{inner}").exists() and time.monotonic() < limit and "zombie" not in _state(inner):
        time.sleep(0.01)
    assert not Path(f"/proc/{inner}").exists() or "zombie" in _state(inner)


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text()
    return ""


@linux
@pytest.mark.usefixtures("lonely_cache")
@pytest.mark.parametrize(("number", "whom"), [(signal.SIGINT, "owner"), (signal.SIGTERM, "owner"), (signal.SIGHUP, "owner"),
                                              (signal.SIGINT, "both"), (signal.SIGTERM, "both")])  # fmt: skip
def test_signals_reach_the_command(tmp_path: Path, number: int, whom: str) -> None:
    """Sent to the command by its number, or to both as a terminal does; each is heard once."""
    # these tests may run under nohup or in the background of a shell, and what is ignored is inherited
    before = signal.signal(number, signal.SIG_DFL)
    try:
        run = toy(tmp_path / "out", 60.0, start_new_session=True)
    finally:
        signal.signal(number, before)
    limit = time.monotonic() + 20
    while not (tmp_path / "out/file.json").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    (os.killpg if whom == "both" else os.kill)(run.pid, number)
    said, told = run.communicate(timeout=40)  # well before its pause is over
    assert (run.returncode, said) == (2, "")
    assert told == "\ninterrupted; nothing half-written was left behind\n"
    assert sorted(os.listdir(tmp_path / "out")) == ["file.json"]


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_a_child_that_is_killed_is_an_error_and_no_bug(tmp_path: Path) -> None:
    code, said = ended(tmp_path / "out", "os.kill(os.getpid(), 9)")
    assert code == 2
    assert "error[resource-error]: the process that ran the model was ended by SIGKILL" in said
    assert "--batch" in said
    assert not (tmp_path / "out").exists()


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_exit_codes_and_words_are_the_childs(tmp_path: Path) -> None:
    for code in ("raise SystemExit(7)", "os._exit(7)"):
        assert ended(tmp_path / "out", code)[0] == 7
    done, said = ended(tmp_path / "out", "1 / 0")
    assert done == 70
    assert said.count("This is a bug in weightsmith") == 1
    run = toy(tmp_path / "out", 0.0, "assert sys.stdin.read() == 'hello'; print('heard')", stdin=subprocess.PIPE)
    said, told = run.communicate("hello", timeout=30)
    assert (run.returncode, said, told) == (0, "heard\nwrote\n", "")


def test_stages_go_when_nothing_comes(tmp_path: Path) -> None:
    """And take along the folders that were made for them."""
    with Stages().open([tmp_path / "a/b/c"], None) as stages:
        assert len(stages.writable) == 1
        assert partials(tmp_path)
    assert tree(tmp_path) == {}
    with Stages().open([tmp_path / "a/b/c"], None) as stages:
        (stages.writable[0] / "x").write_text("new")
        (tmp_path / "a/b/c").write_text("mine")
        with pytest.raises(OutputExists):
            stages._place("x", tmp_path / "a/b/c")
    assert tree(tmp_path).keys() == {"a", "a/b", "a/b/c"}
    assert (tmp_path / "a/b/c").read_text() == "mine"


# -- one step apart ------------------------------------------------------------------------------------------------


def test_a_step_is_done_in_place_where_nobody_allowed_a_fork() -> None:
    assert apart(lambda forked: [forked, os.getpid(), (1, 2)], []) == [False, os.getpid(), [1, 2]]


@linux
@pytest.mark.usefixtures("lonely_cache")
def test_a_step_apart_can_only_compute(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "given").write_text("x")
    told = python(PAYLOAD + """
from pathlib import Path
from weightsmith import errors
from weightsmith.trust.apart import allow, apart
said, owner, given = [], os.getpid(), Path(sys.argv[2])

def job(forked):
    import tempfile
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    return [forked, os.getpid() == owner, given.read_text(), attempt(sys.argv[1], owner), 0.1 + 0.2]

def failed(job):
    try:
        apart(job, [])
    except errors.WeightsmithError as error:
        return [type(error).__name__, error.message, str(error.where), error.hint]

def shape(forked):
    raise errors.ShapeMismatch("too wide", where="here", hint="take less")

allow(said.append, on=True)
found = apart(job, [given, Path("/nowhere")])
wrong = [failed(shape), failed(lambda _: os.kill(os.getpid(), 9))]
try:
    apart(lambda _: 1 / 0, [])
except RuntimeError as error:
    bug = str(error)
allow(said.append, on=False)
found += [said[:], apart(lambda forked: forked, []), said]
print(json.dumps([found, wrong, bug]))
""", outside, tmp_path / "given")  # fmt: skip
    (forked, same, text, come, value, quiet, in_place, said), wrong, bug = told
    assert (forked, same, text, value) == (True, False, "x", 0.1 + 0.2)
    assert_all_denied(come)
    assert quiet == [], "all is in force"
    assert (in_place, said) == (False, ["sandbox: off, as asked for: the model runs with all of your rights"])
    assert wrong[0] == ["ShapeMismatch", "too wide", "here", "take less"]
    assert "ZeroDivisionError" in bug
    assert wrong[1][:2] == ["ResourceError", "the process that ran the model ended with SIGKILL"]
    assert not [n for n in os.listdir(tmp_path / "tmp") if "weightsmith" in n]


# -- real commands -----------------------------------------------------------------------------------------------

#: runs the command line with a payload in the library that loads the tokenizer
PLANTED = PAYLOAD + r"""
import importlib.abc, importlib.machinery
outside, owner = sys.argv[1], os.getpid()

class Planted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "transformers.models.auto.tokenization_auto":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        loader, run = spec.loader, spec.loader.exec_module
        def exec_module(module):
            run(module)
            real = module.AutoTokenizer.from_pretrained
            def planted(*args, **kwargs):
                where = os.path.join(os.environ["WEIGHTSMITH_CACHE"], "measured", "told.json")
                os.makedirs(os.path.dirname(where), exist_ok=True)
                if not os.path.exists(where):
                    with open(where, "w") as file:
                        told = {"here": {n: come_of(w) for n, w in wishes(outside, owner).items()}}
                        told |= attempt(outside, owner) if os.getpid() != owner else {}
                        places = {n: come_of(lambda n=n: touch(os.path.join(os.environ["WEIGHTSMITH_CACHE"], n, "forged")))
                                  for n in ("verdicts", "digests", "file-digests", "demo")}
                        json.dump([os.getpid() == owner, told, places], file)
                return real(*args, **kwargs)
            module.AutoTokenizer.from_pretrained = planted
        loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Planted())
from weightsmith.cli.main import main
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pico
    from clirun import feature_file

    folder = tmp_path_factory.mktemp("bench")
    pico.build("llama", folder / "model")
    feature_file(folder)
    return folder


def planted(tmp_path: Path, outside: Path, *argv: object) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    cache = tmp_path / "cache"
    for part in ("verdicts", "digests", "file-digests", "demo"):
        (cache / part).mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", PLANTED, str(outside), *map(str, argv)], capture_output=True, text=True,
                          check=False, env={**os.environ, "WEIGHTSMITH_CACHE": str(cache)}, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, json.loads((cache / "measured/told.json").read_text())


def lines(told: str) -> list[str]:
    return [line for line in told.splitlines() if "sandbox" in line]


@linux
@pytest.mark.parametrize("verb", ["find", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("measure", "chat"))])
def test_a_payload_in_a_loader_can_do_nothing(bench: Path, tmp_path: Path, outside: Path, verb: str) -> None:
    before, out = tree(outside), tmp_path / "out/made.json"
    argv: dict[str, tuple[object, ...]] = {
        "find": ("find", bench / "model", bench / "feature.yaml", "-o", out, "--no-choose"),
        "measure": ("measure", bench / "model", "--feature", bench / "feature.yaml", "-n", 2, "--tokens", 2, "-o", out),
        "chat": ("chat", bench / "model"),
    }  # fmt: skip
    done, (same, told, places) = planted(tmp_path, outside, *argv[verb])
    assert not same, "a process of its own"
    assert_all_denied(told)
    assert set(places.values()) == {"EACCES"}, "what vouches for files is out of reach"
    assert tree(outside) == before
    assert lines(done.stderr) == [], "all is in force, so there is nothing to say"
    if verb != "chat":
        assert out.is_file()
        assert os.listdir(out.parent) == ["made.json"]


@linux
def test_without_the_sandbox_it_can_and_that_is_said(bench: Path, tmp_path: Path, outside: Path) -> None:
    argv = ("find", bench / "model", bench / "feature.yaml", "-o", tmp_path / "d", "--no-choose", "--no-sandbox")
    done, (same, told, _) = planted(tmp_path, outside, *argv)
    assert same
    assert (outside / "marker").exists()
    assert told["here"]["program"] == "done"
    assert lines(done.stderr) == ["sandbox: off, as asked for: the model runs with all of your rights"]


@linux
@pytest.mark.slow
@pytest.mark.usefixtures("lonely_cache")
def test_an_edit_runs_its_model_apart(tmp_path: Path, outside: Path) -> None:
    """A constant that no bias can hold is fitted, on a model that may do nothing else; to the same bytes as without."""
    import pico

    model = pico.build("mistral", tmp_path / "model")
    pico.a_direction(model).save(tmp_path / "d.safetensors")
    made = [tmp_path / "cache/told.json", tmp_path / "one", tmp_path / "two"]
    code = PAYLOAD + """
import importlib
owner, told = os.getpid(), {}
job = importlib.import_module("weightsmith.jobs.edit")
real = job._fitted
def fitted(*rest):
    told.update(attempt(sys.argv[1], owner))
    sys.stderr.write(json.dumps([os.getpid() == owner, told]) + "\\n")
    return real(*rest)
job._fitted = fitted
from weightsmith.cli.main import main
main(sys.argv[2:])
"""
    words = ["edit", model, tmp_path / "d.safetensors", "--add", "0.5", "-o"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, (outside, *words, made[1]))], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    same, told = next(json.loads(line) for line in done.stderr.splitlines() if line.startswith("["))
    assert not same
    assert_all_denied(told)
    from clirun import cli

    assert cli(*words, made[2]).code == 0
    one, two = ({n: d for n, d in tree(p).items() if n.endswith(".safetensors")} for p in made[1:])
    assert one == two


@linux
@pytest.mark.slow
def test_a_frozen_model_is_scanned_before_and_not_again(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan starts a program, which the sandbox does not allow: what the owner scanned, the child takes."""
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-m", "weightsmith", "find", str(bench / "model"), str(bench / "feature.yaml"), "-o",
                           str(tmp_path / "d"), "--no-choose", "--frozen"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert "not permitted" not in done.stderr
    assert done.returncode == 0 or "not-pinned" in done.stderr, done.stderr


def test_help_pays_nothing_for_it() -> None:
    loaded = python("""
import json, sys
from weightsmith.cli.main import run
run(["--help"])
print(json.dumps([m for m in sys.modules if "landlock" in m or m.startswith("weightsmith.trust")]))
""")
    assert loaded == []


@linux
def test_a_model_that_was_made_inside_is_scanned_inside(tmp_path: Path) -> None:
    """Nobody outside has seen it, and no server can be started for it: a fork reads it, threads of a library or not."""
    import pico

    pico.build("llama", tmp_path / "model")
    (tmp_path / "tmp").mkdir()
    code = """
import sys
from pathlib import Path
from weightsmith.trust.sandbox import sandbox
sandbox(read=[sys.argv[1]], write=[sys.argv[2]])
import torch
torch.ones(300, 300) @ torch.ones(300, 300)
from weightsmith.trust import gate
record = gate.scan_path(Path(sys.argv[1]), "m")
sys.stdout.write(f"{record.verdict} {len(record.files)} {len(record.tensors)}")
"""
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "tmp")], env=env,
                          capture_output=True, text=True, check=False)  # fmt: skip
    files = [p for p in (tmp_path / "model").iterdir() if p.is_file()]
    assert done.stdout.split() == ["clean", str(len(files)), "21"], done.stderr


@linux
def test_a_lock_that_the_environment_names_can_be_read_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightsmith.cli.sandboxed import Needs, _settle
    from weightsmith.options import RunOptions

    lock = tmp_path / "elsewhere" / "pins.lock"
    lock.parent.mkdir()
    lock.write_text("{}", encoding="utf-8")
    given = {"quiet": True}
    assert lock not in _settle(Needs(), given, lambda _: RunOptions())
    monkeypatch.setenv("WEIGHTSMITH_LOCK", str(lock))
    assert lock in _settle(Needs(), given, lambda _: RunOptions())


@linux
def test_what_is_wrong_with_a_recipe_is_said_from_inside(tmp_path: Path) -> None:
    from weightsmith.cli.sandboxed import Needs, _settle
    from weightsmith.options import RunOptions

    recipe = tmp_path / "feature.yaml"
    for text in ("schema: nope\n", "schema: [", "\0", "name: a\nname: b\n"):
        recipe.write_text(text, encoding="utf-8")
        assert recipe in _settle(Needs(features=[str(recipe)]), {"quiet": True}, lambda _: RunOptions())
