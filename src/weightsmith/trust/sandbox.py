"""A process that gives away what it does not need, for good: what a model's loader could do afterwards, nobody can do.

On Linux two mechanisms of the kernel are used, neither of which needs any right. *Landlock* (5.13 and later) says which
files may be opened, and from later versions which TCP ports, and that no process outside may be sent a signal; it is reached
through ``landlockpy``, which is plain Python and knows every version of it. *seccomp* takes sockets, programs and other
processes away (:mod:`.seccomp`, which says why it is our own). Elsewhere, and on older kernels, the process goes on and the
:class:`Restrictions` say what could not be restricted.

What stays readable is what Python and the libraries need: the interpreter's folders and those on ``sys.path``, the system's
libraries, a few plain files of ``/etc``, ``/proc`` as far as it is about this process and the machine, ``/sys``. Your home
folder is not among them, unless Python itself is installed in it; then only that part. Nothing wider than your home is
ever taken from ``sys.path``, and not the working folder.

Two limits to know. Files that are open already stay open. And Landlock restricts the thread that asks and what it starts
later: threads that run already are included only from Linux 7.0 on, so call this first; if others run, it is said.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import seccomp

if TYPE_CHECKING:
    from landlockpy import Ruleset

Where = str | os.PathLike[str]

_SYSTEM = ("/lib", "/lib32", "/lib64", "/usr", "/nix/store", "/gnu/store", "/run/current-system", "/opt/rocm", "/opt/cuda",
           "/sys", "/etc/alternatives", "/etc/fonts", "/etc/group", "/etc/inputrc", "/etc/ld.so.cache", "/etc/ld.so.conf",
           "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/locale.alias", "/etc/localtime", "/etc/mime.types",
           "/etc/nsswitch.conf", "/etc/os-release", "/etc/passwd", "/etc/ssl/openssl.cnf", "/etc/terminfo",
           "/etc/timezone", "/etc/OpenCL", "/etc/vulkan", "/etc/nvidia")  # fmt: skip
#: about the machine, and about this process (where ``/proc/self`` leads)
_PROC = ("/proc/self", "/proc/bus", "/proc/cgroups", "/proc/cmdline", "/proc/cpuinfo", "/proc/devices", "/proc/driver",
         "/proc/filesystems", "/proc/interrupts", "/proc/loadavg", "/proc/meminfo", "/proc/modules", "/proc/stat",
         "/proc/sys", "/proc/uptime", "/proc/version", "/proc/vmstat", "/proc/zoneinfo")  # fmt: skip
_FOR_NAMES = ("/etc/ca-certificates", "/etc/crypto-policies", "/etc/gai.conf", "/etc/host.conf", "/etc/hosts", "/etc/pki",
              "/etc/protocols", "/etc/resolv.conf", "/etc/services", "/etc/ssl/certs", "/etc/ssl/cert.pem",
              "/run/systemd/resolve")  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_WEIGHTS = (".safetensors", ".gguf")
#: the graphics card's; its driver names threads by writing to /proc
_GRAPHICS = ("nvidia*", "dri", "kfd", "accel", "dxg")


@dataclass(frozen=True, slots=True)
class Restrictions:
    """What a process may no longer do, in plain words; and what it still may, since that could not be taken away or was
    left open on request."""

    in_force: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """One line for people."""
        if not self.in_force:
            return "sandbox: none; " + "; ".join(self.open)
        return f"sandbox: {', '.join(self.in_force)}" + (f"; left open: {'; '.join(self.open)}" if self.open else "")


def sandbox(
    *, read: Iterable[Where] | None = (), write: Iterable[Where] = (), network: bool | Iterable[int] = False,
    execute: bool = False,
) -> Restrictions:  # fmt: skip
    """Restrict the calling process, and all that it starts, for good.

    ``read`` and ``write`` are files and folders (with all that is in them) that may be read, or read and written, beside
    what Python itself needs; ``read=None`` leaves reading as it is. ``network`` may be the TCP ports that may be connected
    to; names are looked up by UDP, which goes with the rest (port 53 and ``RES_OPTIONS=use-vc`` help). ``execute`` lets other
    programs be started; they are restricted in the same way.

    Call it before threads are started. Modes, owners and times of files can't be changed afterwards: the kernel says that it
    was done and does nothing.

    Raises:
        UsageError: one of the paths is not there.
    """
    readable = None if read is None else [_there(p) for p in read]
    writable = [_there(p) for p in write]
    ports = None if isinstance(network, bool) else tuple(network)
    wish = _Wish(readable, writable, bool(network) if ports is None else True, ports, execute)
    if sys.platform != "linux":
        return Restrictions((), (f"this platform ({sys.platform}) lets no process restrict itself: files, network and programs "
                                 "stay as they are",))  # fmt: skip
    made = _Made([], [])
    version = _landlock(wish, made)
    _filter(wish, made, version)
    return Restrictions(tuple(made.in_force), tuple(made.open))


@dataclass(frozen=True)
class _Wish:
    read: list[Path] | None
    write: list[Path]
    network: bool
    ports: tuple[int, ...] | None
    execute: bool


@dataclass(frozen=True)
class _Made:
    in_force: list[str]
    open: list[str]


def _there(path: Where) -> Path:
    if not os.path.exists(path):
        raise UsageError("it has to be there before the sandbox is closed", where=path)
    return Path(path)


# -- files -----------------------------------------------------------------------------------------------------


def _landlock(wish: _Wish, made: _Made) -> int:
    """Put the rules for files in force; the version of Landlock, 0 without it."""
    threads = _threads()
    try:
        import landlockpy

        version = landlockpy.abi_version()
        if version:
            with _rules(wish) as rules:
                rules.restrict(landlockpy.RestrictFlag.TSYNC)
    except (ImportError, OSError) as error:
        version, why = 0, str(error)
    else:
        why = "this kernel has no Landlock"
    if not version:
        made.open.append(f"files ({why}): all that you may read and write")
        return 0
    if wish.read is not None:
        made.in_force.append("no reading but what it needs")
    else:
        made.open.append("reading")
    made.in_force.append("no writing outside of its folders")
    if version < 5:
        made.open.append("commands to devices that are readable")
    if version < 6:
        made.open.append("signals to your other processes")
    if version < 8 and threads > 1:
        made.open.append(f"files, for {threads - 1} threads that ran before")
    return version


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


@contextlib.contextmanager
def _rules(wish: _Wish) -> Iterator[Ruleset]:
    from landlockpy import AccessFS, AccessNet, Ruleset, Scope, fs_for_abi, net_for_abi
    from landlockpy.flags import LATEST_ABI

    reading = AccessFS.READ_FILE | AccessFS.READ_DIR
    handled = fs_for_abi(LATEST_ABI) & ~AccessFS.RESOLVE_UNIX
    handled &= ~AccessFS.EXECUTE if wish.execute else ~AccessFS.NONE
    handled &= ~reading if wish.read is None else ~AccessFS.NONE
    net, scope = net_for_abi(LATEST_ABI), Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL
    if wish.network and wish.ports is None:
        net, scope = AccessNet.NONE, Scope.SIGNAL
    on_file = AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.TRUNCATE
    device = on_file | AccessFS.IOCTL_DEV
    writing = handled & ~(AccessFS.EXECUTE | AccessFS.MAKE_CHAR | AccessFS.MAKE_BLOCK | AccessFS.IOCTL_DEV)
    with Ruleset(handled_fs=handled, handled_net=net, scoped=scope) as rules:
        for path in [*_readable(wish), *(wish.read or ())]:
            _allow(rules, path, reading, on_file)
        for path in _devices():
            _allow(rules, path, device | reading, device)
        for path in wish.write:
            _allow(rules, path, writing, on_file)
        for port in wish.ports or ():
            rules.allow_port(port, AccessNet.CONNECT_TCP)
        yield rules


def _allow(rules: Any, path: Where, folder: Any, file: Any) -> None:
    """Allow ``path`` if it is there; a rule for what is no folder may hold only what can be done to files."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        rules.allow_path(path, folder if os.path.isdir(path) else folder & file)


#: what Landlock's rules about /proc hold on to: the kernel forgets folders there that nobody has open
_PINNED: list[int] = []


def _readable(wish: _Wish) -> list[Where]:
    """What Python and its libraries read."""
    if wish.read is None:
        return []
    with contextlib.suppress(OSError):
        _PINNED.append(os.open("/proc/self", os.O_PATH | os.O_CLOEXEC))
    return [*_SYSTEM, *_PROC, *(_FOR_NAMES if wish.network else ()), *(("/bin", "/sbin") if wish.execute else ()),
            *python_folders()]  # fmt: skip


def python_folders() -> list[Path]:
    """The interpreter's folders, those that modules are imported from, and this package's own; nothing that holds all of
    your home, and not the working folder where it stands on ``sys.path`` for its own sake."""
    here, home = Path.cwd() if _has_cwd() else None, _home()
    package = Path(__file__).resolve().parents[1]
    wanted = [Path(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path) if p]
    found = [p.resolve() for p in wanted if p.is_absolute() and p.exists()]
    found = [p for p in found if p != here or p in package.parents]
    return list(dict.fromkeys(p for p in (*found, package) if p not in (home, *home.parents)))


def model_paths(path: Path) -> list[Path]:
    """What is read of a model at ``path``: its folder, or its file and what lies beside a safetensors file; the blobs of a
    snapshot in the hub's cache; and weights that a link in the folder leads to."""
    found = [path]
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".safetensors" and path.is_file():
        wide = folder.resolve() in (_home(), *_home().parents)
        found += [p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".model")] if wide else [folder]
    if path.is_dir():
        found += [p.resolve() for p in path.iterdir() if p.is_symlink() and p.resolve().suffix in _WEIGHTS]
    return [*found, *(p.parent / "blobs" for p in (folder, *folder.parents) if p.name == "snapshots")]


def _has_cwd() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _home() -> Path:
    with contextlib.suppress(RuntimeError):
        return Path.home().resolve()
    return Path("/root")


def _devices() -> list[Where]:
    found = [str(p) for pattern in _GRAPHICS for p in Path("/dev").glob(pattern)]
    return [*_DEVICES, *found, *(["/proc/self/task"] if found else [])]


# -- everything else ---------------------------------------------------------------------------------------------


def _filter(wish: _Wish, made: _Made, version: int) -> None:
    """Put the filter of system calls in force and say what it, with the rules for files, comes to."""
    network = "none" if not wish.network else "any" if wish.ports is None else "tcp"
    denials = seccomp.Denials(network, wish.execute, truncate=version < 3)
    try:
        if not seccomp.supported():
            raise OSError(f"no filter of system calls is known for {os.uname().machine}")
        everywhere = seccomp.install(denials)
    except OSError as error:
        made.open.append(f"sockets, programs and other processes ({error.strerror or error})")
        return
    if wish.ports is not None:
        said = " and ".join(map(str, wish.ports))
        made.in_force.append("no network but TCP")
        made.open.append(f"connections to TCP port {said}" if version >= 4 else "connections to every TCP port")
    elif wish.network:
        made.open.append("the network")
    else:
        made.in_force.append("no network")
    if wish.execute:
        made.open.append("other programs, restricted alike")
    else:
        made.in_force.append("no other programs")
    if not everywhere:
        made.open.append("threads that ran before, which have a filter of their own")
