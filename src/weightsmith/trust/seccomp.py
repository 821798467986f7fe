"""System calls that a restricted process may no longer make: a filter that the kernel runs before each of them.

The filter is written here, a few hundred instructions of classic BPF, and handed over with ``seccomp(2)``. The library for
this, libseccomp, is LGPL and a shared object of the system that many containers lack; ``pyseccomp`` only calls it. What is
left of the task without it is a table of numbers, which the tests compare with libseccomp's own where that is installed.

A list of what is denied, not of what is allowed: torch, CUDA and the C library change what they need with every version. So
files and signals are Landlock's business (:mod:`.sandbox`), and what is denied here is what no model needs: sockets,
programs, other processes' memory, mounts and namespaces, the kernel's keys, and each way around (io_uring, BPF, another
architecture's numbers). A denied call fails with ``EPERM``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass

#: AUDIT_ARCH_* of the machines whose numbers are known, and the column of the tables
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000  # x86_64: numbers of the x32 ABI, which would pass by a filter of plain numbers

Numbers = dict[str, tuple[int | None, int | None]]

#: never: other processes, namespaces and mounts, the kernel itself, its keys, and what would go around this filter
ALWAYS: Numbers = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_getfd": (438, 438), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97),
    "setns": (308, 268), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "nfsservctl": (180, 42), "lookup_dcookie": (212, 18),
    "syslog": (103, 116), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "vhangup": (153, 58), "personality": (135, 92), "uselib": (134, None),
    "_sysctl": (156, None), "mq_open": (240, 180), "mq_unlink": (241, 181), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "semget": (64, 190), "shmget": (29, 194), "shmat": (30, 196),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469),
}  # fmt: skip
#: without a network; ``socket`` and ``socketpair`` are looked at more closely
NETWORK: Numbers = {"connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242)}
#: without other programs
PROGRAMS: Numbers = {"execve": (59, 221), "execveat": (322, 281)}
#: modes, owners and times of files. Landlock knows nothing of them, and a filter can't see whose file it is. Python's own
#: library and many others change the mode of what they have just written and fail if they can't: they are told that it was
#: done, and nothing happens
ATTRIBUTES: Numbers = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
#: what older versions of Landlock leave open
TRUNCATE: Numbers = {"truncate": (76, 45)}
#: these are looked at more closely
_CLOSER: Numbers = {"socket": (41, 198), "socketpair": (53, 199), "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29),
                    "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269), "prlimit64": (302, 261)}  # fmt: skip
_SECCOMP: Numbers = {"seccomp": (317, 277)}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone knows
_PUSH_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX: type into the terminal for whoever reads it next
_UNIX, _INET, _INET6, _STREAM, _TYPE, _TCP = 1, 2, 10, 1, 0xF, 6
_FAST_OPEN = 0x20000000  # MSG_FASTOPEN: connects without having been asked whether it may

_SET_FILTER, _ALL_THREADS, _NO_NEW_PRIVS, _PARENT_DEATH = 1, 1, 38, 1


@dataclass(frozen=True, slots=True)
class Denials:
    """What a filter denies. ``network`` is ``"none"``, ``"tcp"`` (nothing but TCP, whose ports Landlock knows) or ``"any"``."""

    network: str = "none"
    execute: bool = False
    truncate: bool = False


def argument(k: int) -> int:
    """Offset of the low half of the k-th argument of a system call, on a little-endian machine."""
    return 16 + 8 * k


class _Program:
    """BPF instructions, one after the other."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []

    def add(self, operation: int, k: int, then: int = 0, otherwise: int = 0) -> None:
        self.code.append((operation, then, otherwise, k))

    def answer(self, error: int | None) -> None:
        self.add(_RETURN, _ALLOW if error is None else _ERRNO | error)

    def deny(self, numbers: list[int], error: int) -> None:
        """Answer each of these with ``error``."""
        for number in numbers:
            self.add(_EQUAL, number, 0, 1)
            self.answer(error)

    def closer(self, number: int, rule: _Program) -> None:
        """For one call, a program of its own, each of whose paths ends in an answer."""
        self.add(_EQUAL, number, 0, len(rule.code))
        self.code += rule.code

    def raw(self) -> bytes:
        return b"".join(struct.pack("<HBBI", *row) for row in self.code)


def program(machine: str, denials: Denials) -> bytes:
    """The filter for ``machine`` (``x86_64`` or ``aarch64``)."""
    arch, column = _MACHINES[machine]

    def numbers(*tables: Numbers) -> list[int]:
        return [row[column] for table in tables for row in table.values() if row[column] is not None]  # type: ignore[misc]

    made = _Program()
    made.add(_LOAD, _ARCH)
    made.add(_EQUAL, arch, 1, 0)
    made.answer(errno.EPERM)  # a call by another architecture's numbers
    made.add(_LOAD, _NUMBER)
    if machine == "x86_64":
        made.add(_AT_LEAST, _X32, 0, 1)
        made.answer(errno.EPERM)
    made.deny(numbers(ATTRIBUTES), 0)
    tables = [ALWAYS]
    tables += [NETWORK] if denials.network == "none" else []
    tables += [] if denials.execute else [PROGRAMS]
    tables += [TRUNCATE] if denials.truncate else []
    made.deny(numbers(*tables), errno.EPERM)
    made.deny(numbers({"clone3": _CLOSER["clone3"]}), errno.ENOSYS)  # its flags lie in memory; the C library then takes clone
    for name, rule in _closer_rules(denials).items():
        number = _CLOSER[name][column]
        assert number is not None
        made.closer(number, rule)
    made.answer(None)
    return made.raw()


def _closer_rules(denials: Denials) -> dict[str, _Program]:
    clone = _Program()
    clone.add(_LOAD, argument(0))
    clone.add(_ANY_BIT, _NAMESPACES, 0, 1)
    clone.answer(errno.EPERM)
    clone.answer(None)
    ioctl = _Program()
    ioctl.add(_LOAD, argument(1))
    for command in _PUSH_INPUT:
        ioctl.add(_EQUAL, command, 0, 1)
        ioctl.answer(errno.EPERM)
    ioctl.answer(None)
    limits = _Program()  # its own are its business
    _only(limits, 0, (0,))
    limits.answer(None)
    rules = {"clone": clone, "ioctl": ioctl, "prlimit64": limits}
    if denials.network == "any":
        return rules
    # two ends of one pipe are no network; a datagram socket of such a pair could still be sent to a name
    pair, socket = _Program(), _Program()
    _only(pair, 0, (_UNIX,))
    _only(pair, 1, (_STREAM,), _TYPE)
    pair.answer(None)
    if denials.network == "none":
        socket.answer(errno.EPERM)
        return rules | {"socketpair": pair, "socket": socket}
    _only(socket, 0, (_INET, _INET6))
    _only(socket, 1, (_STREAM,), _TYPE)
    _only(socket, 2, (0, _TCP))
    socket.answer(None)
    for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        rules[name] = _Program()
        rules[name].add(_LOAD, argument(flags))
        rules[name].add(_ANY_BIT, _FAST_OPEN, 0, 1)
        rules[name].answer(errno.EPERM)
        rules[name].answer(None)
    return rules | {"socketpair": pair, "socket": socket}


def _only(rule: _Program, k: int, values: tuple[int, ...], mask: int | None = None) -> None:
    """Go on only where the k-th argument is one of these."""
    rule.add(_LOAD, argument(k))
    if mask is not None:
        rule.add(_AND, mask)
    for left, value in zip(range(len(values), 0, -1), values, strict=True):
        rule.add(_EQUAL, value, left)
    rule.answer(errno.EPERM)


def supported() -> bool:
    """Whether there is a filter for this machine."""
    return sys.platform == "linux" and platform.machine() in _MACHINES and struct.calcsize("P") == 8


def install(denials: Denials) -> bool:
    """Put the filter before every thread of this process, for good; whether it stands before all of them.

    Raises:
        OSError: the kernel has no filters, or refuses this one.
    """
    machine = platform.machine()
    raw = program(machine, denials)
    code = ctypes.create_string_buffer(raw, len(raw))
    handed = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(raw) // 8, ctypes.addressof(code)), 16)
    number = _SECCOMP["seccomp"][_MACHINES[machine][1]]
    _prctl(_NO_NEW_PRIVS, 1)
    for flags in (_ALL_THREADS, 0):
        # with the first flag, a positive number is a thread that has another filter
        if (left := _call(number, _SET_FILTER, flags, handed)) == 0:
            return flags == _ALL_THREADS
        if left < 0 and not flags:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
    return False


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that comes about (Linux)."""
    import signal

    _prctl(_PARENT_DEATH, int(signal.SIGKILL))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _call(number: int | None, *arguments: object) -> int:
    return int(_libc().syscall(ctypes.c_long(number or 0), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


def _prctl(what: int, value: int) -> None:
    if _libc().prctl(ctypes.c_int(what), *(ctypes.c_ulong(v) for v in (value, 0, 0, 0))):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
