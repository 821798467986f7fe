"""The files of a model folder, listed without following what leads out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import stated
from ..found import Finding
from .items import Folder, file_item
from .kinds import kinds_of
from .rules import Rule

MOST_FILES = 100_000
MOST_DEPTH = 64
MOST_LINKED = 1000  # folders that are reached through links: each link to a folder of links doubles what there is to list
SPARSE = 1 << 30  # bytes from which on a file that is mostly holes is not read

LINK = Rule(
    "link-leaves-folder", "suspicious", "A link leads out of the model's folder",
    "A loader follows it, and reads (or, when it writes there, overwrites) a file of yours that is not part of the model; "
    "what lies behind it can change after the scan.",
    "Replace the link by the file it should be, or ask the publisher why it is there.",
    ("https://cwe.mitre.org/data/definitions/59.html",),
)  # fmt: skip
LOOP = Rule(
    "link-broken", "suspicious", "A link leads nowhere, or to itself",
    "The file that should be there is missing, and whoever can make what the link names decides what it will be; a program "
    "that follows links without a limit never ends.",
    "Fetch the model again, or restore the file.",
)  # fmt: skip
SPECIAL = Rule(
    "special-file", "suspicious", "A pipe, socket or device among the model's files",
    "A model is plain files. Reading a pipe or a device can hang, block another program, or have effects of its own.",
    "Remove it; no model needs one.",
)  # fmt: skip
UNREADABLE = Rule(
    "unreadable", "unknown", "A file or folder could not be read",
    "What could not be read was not checked, and a program with other rights may well read it.",
    "Give yourself the right to read it (or find out why the disk fails), and scan again.",
)  # fmt: skip
TOO_MANY = Rule(
    "too-many-files", "unknown", "More files than a model has",
    f"A scan lists at most {MOST_FILES} files in {MOST_DEPTH} levels of folders, and {MOST_LINKED} folders behind links; the rest "
    "was not looked at.",
    "Scan the folder that holds the model alone.",
)  # fmt: skip
HOLES = Rule(
    "sparse-file", "unknown", "A large file that is mostly holes",
    "It claims many bytes and hardly holds any, which makes every program that reads it whole work for nothing; "
    "it was not read.",
    "Fetch the file again: an interrupted download looks like this.",
)  # fmt: skip
ODD_NAME = Rule(
    "odd-name", "suspicious", "A file name with control characters or bytes that are not text",
    "Printed as it is, such a name can rewrite what a terminal shows, or look like another name.",
    "Rename the file, or ask the publisher why it is called so.",
    ("https://cwe.mitre.org/data/definitions/150.html",),
)  # fmt: skip
RULES = (LINK, LOOP, SPECIAL, UNREADABLE, TOO_MANY, HOLES, ODD_NAME)


def list_folder(path: Path, folder: Folder) -> Iterator[Finding]:
    """Fill ``folder.items`` with every plain file below ``path`` (or ``path`` itself), kinds included."""
    if not path.is_dir():
        yield from _add(path.name, path, folder)
        return
    pending: list[tuple[Path, str, int]] = [(path, "", 0)]
    linked, base = 0, ""
    while pending:
        here, prefix, depth = pending.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except OSError as error:
            yield UNREADABLE.found(f"can't be listed: {error.strerror}", file=shown(prefix.rstrip("/")))
            continue
        real = str(here.resolve())
        base = base or real  # the folder itself comes first
        linked += real != os.path.join(base, prefix).rstrip("/")
        for entry in entries:
            name = prefix + entry.name
            if len(folder.items) >= MOST_FILES or linked > MOST_LINKED or depth > MOST_DEPTH:
                yield TOO_MANY.found(f"stopped at {shown(name)!r}")
                return
            yield from _entry(Path(entry.path), name, os.path.join(real, entry.name), path, folder, pending, depth)


def _entry(
    file: Path, name: str, real: str, root: Path, folder: Folder, pending: list[tuple[Path, str, int]], depth: int
) -> Iterator[Finding]:
    """One directory entry: a folder is put on the list, a plain file becomes an item, a link is judged first.

    ``real`` is its path in a folder without links on the way, so that not every file's has to be asked for.
    """
    if name != shown(name):
        yield ODD_NAME.found("the name holds characters that a terminal would act on, or bytes that are not text",
                             file=shown(name))  # fmt: skip
    try:
        mode = os.lstat(file).st_mode
        if stat.S_ISLNK(mode):
            mode, real = os.stat(file).st_mode, ""
            if not stays_inside(file, root):
                yield LINK.found(f"leads to {shown(os.readlink(file))!r}; it was not followed", file=shown(name))
                return
            if stat.S_ISDIR(mode) and file.parent.resolve().is_relative_to(file.resolve()):
                yield LOOP.found("leads to a folder that it lies in", file=shown(name))
                return
    except OSError as error:
        link = file.is_symlink()
        rule = LOOP if link else UNREADABLE
        yield rule.found(f"can't be followed: {error.strerror}" if link else f"{error.strerror}", file=shown(name))
        return
    if stat.S_ISDIR(mode):
        pending.append((file, name + "/", depth + 1))
    elif stat.S_ISREG(mode):
        yield from _add(name, file, folder, real)
    else:
        yield SPECIAL.found(f"a {_special(mode)}; it was not opened", file=shown(name))


def _add(name: str, path: Path, folder: Folder, real: str = "") -> Iterator[Finding]:
    try:
        item = file_item(name, path, real or None)
        blocks = getattr(os.stat(path), "st_blocks", None)
        if blocks is not None and item.size > SPARSE and blocks * 512 * 8 < item.size:
            yield HOLES.found(f"{item.size} bytes of which {blocks * 512} are on the disk", file=shown(name))
            return
        item.kinds = kinds_of(item)
    except OSError as error:
        yield UNREADABLE.found(f"can't be read: {error.strerror}", file=shown(name))
        return
    except Exception as error:  # noqa: BLE001 - bytes of a stranger; what can't be told apart can't be skipped either
        yield UNREADABLE.found(f"nobody can tell what it is: {type(error).__name__}: {stated(error)[:200]}", file=shown(name))
        return
    folder.items[name] = item


def stays_inside(link: Path, root: Path) -> bool:
    """Whether a link ends below ``root``, or in the blobs of the hub's cache that ``root`` is a snapshot of."""
    target, base = link.resolve(), root.resolve()
    if target.is_relative_to(base):
        return True
    snapshots = base.parent
    return (snapshots.name == "snapshots" and snapshots.parent.name.startswith(("models--", "datasets--"))
            and target.parent == snapshots.parent / "blobs")  # fmt: skip


def _special(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "character device"),
             (stat.S_ISBLK, "block device"))  # fmt: skip
    return next((name for test, name in kinds if test(mode)), "special file")


def shown(name: str) -> str:
    """A file name as text that can be printed and written: stray bytes and control characters become escapes."""
    if name.isascii() and name.isprintable():
        return name  # nearly every one of many thousands
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)
