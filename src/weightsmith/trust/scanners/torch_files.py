"""Torch's zip archives: the pickle against the storages beside it, and what its readers would see differently.

The archive's own structure is checked where all zips are; here it is a torch file. Torch's reader takes the first member's
folder for the archive's name, ignores checksums, and opens stored and deflated members only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import WHOLE, Folder, Item
from ..kinds import kinds_of
from ..listing import shown
from . import torch_state, unpacking
from .pickles import scan_data_pickle
from .torch_state import DAMAGED, DIFFER, SCRIPT, STORAGE_SIZE, UNUSED, State
from .zips import Zip, ZipEntry, entry_chunks, read_zip

_MOST_ROOTS = 20
_RECORDS = {
    "version": rb"\d{1,4}\n?", "byteorder": rb"little|big", ".format_version": rb"\d{1,4}", ".storage_alignment": rb"\d{1,6}",
    ".data/serialization_id": rb"\d{1,40}",
}  # fmt: skip


def scan_torch_zip(item: Item, folder: Folder) -> Iterator[Finding | Item]:
    """Findings of an archive that holds a ``data.pkl``, and those of its members below that that are no storages."""
    archive = read_zip(item)
    file = shown(item.name)
    entries = [e for e in archive.entries if not e.folder]
    roots = list(dict.fromkeys(e.name[: -len("data.pkl")] for e in entries if e.name.rpartition("/")[2].lower() == "data.pkl"))
    first = entries[0].name.partition("/")[0] + "/" if entries else ""
    if len(roots) > 1:
        yield DIFFER.found(f"{len(roots)} members are called data.pkl: {', '.join(roots)[:200]}", file=file)
    elif roots[0] and not roots[0].startswith(first):
        yield DIFFER.found(f"torch takes {first!r} for its folder, the pickle is in {roots[0]!r}", file=file)
    seen: dict[str, str] = {}
    for entry in entries:
        before = seen.setdefault(entry.name.lower(), entry.name)
        if before != entry.name:
            yield DIFFER.found(f"{before[:100]!r} and {entry.name[:100]!r} differ in case only", file=file)
        if entry.method not in (0, 8):
            yield DIFFER.found(f"{entry.name[:100]!r} is packed by method {entry.method}, which torch can't unpack", file=file)
    if sum(e.name.lower().endswith("data.pkl") for e in entries) > _MOST_ROOTS:
        raise LimitExceeded(f"more than {_MOST_ROOTS} members called data.pkl")
    for root in roots:
        yield from _root(item, folder, archive, root, alone=len(roots) == 1)


def _root(item: Item, folder: Folder, archive: Zip, root: str, *, alone: bool) -> Iterator[Finding | Item]:
    """One ``data.pkl`` (or several copies of it) and what belongs to it."""
    file = shown(item.name)
    below: dict[str, list[ZipEntry]] = defaultdict(list)
    for entry in archive.entries:
        if entry.name.startswith(root) and not entry.folder and entry.start >= 0:
            below[entry.name[len(root) :]].append(entry)
    script = "constants.pkl" in below or any(name.startswith("code/") for name in below)
    if script:
        yield SCRIPT.found(f"{sum(n.startswith('code/') for n in below)} files of code", file=file,
                           evidence=", ".join(n for n in below if n.startswith("code/"))[:300])  # fmt: skip
    used: set[str] = set()
    little = True
    for name, pattern in _RECORDS.items():
        for entry in below.get(name, ()):
            data = _small(item, entry)
            if data is None or not re.fullmatch(pattern, data):
                yield UNUSED.found(f"the record {name!r} holds something else than it should", file=file,
                                   evidence=repr((data or b"")[:60]))  # fmt: skip
                yield member_item(item, entry)
            little = little and data != b"big"
    for name in [n for n in below if n.lower() == "data.pkl"]:
        for entry in below[name]:
            found, judge, stream = scan_data_pickle(member_item(item, entry), script=script)
            yield from found
            state = torch_state.of_pickle(judge, stream.top, item)
            yield from state.findings
            yield from _storages(item, folder if little else Folder(folder.path), state, below, used)
            if alone and name == "data.pkl" and len(below[name]) == 1 and stream.stopped:
                state.declare(item, folder)
    unused = [n for n in below if n.startswith("data/") and n not in used]
    for name in unused:  # bytes that nothing knows are told of below
        members = [member_item(item, entry) for entry in below[name]]
        yield from (member for member in members if kinds_of(member) != ("binary",))
    if unused and not script and (used or "version" in below):
        yield UNUSED.found(f"{len(unused)} members that no tensor uses, e.g. {unused[0][:100]!r}", file=file)


def _storages(item: Item, folder: Folder, state: State, below: dict[str, list[ZipEntry]], used: set[str]) -> Iterator[Finding]:
    file = shown(item.name)
    said = 0
    for key, storage in state.storages.items():
        entries = below.get(f"data/{key}", [])
        seen = f"data/{key}" in used
        used.add(f"data/{key}")
        if (not entries or any(e.size != storage.nbytes for e in entries)) and said < 10:
            said += 1
            what = f"{entries[0].size} bytes, its tensors {storage.nbytes}" if entries else "no member"
            yield STORAGE_SIZE.found(f"storage {key[:60]!r} has {what}", file=file)
        for entry in entries[:1] if not seen and all(e.size == storage.nbytes for e in entries) else ():
            try:
                yield from state.look(storage, entry_chunks(item, entry), item, folder)
            except FormatError as error:
                yield DAMAGED.found(f"storage {key[:60]!r}: {error.message}", file=file)


def _small(item: Item, entry: ZipEntry) -> bytes | None:
    if entry.size > 64:
        return None
    try:
        return b"".join(entry_chunks(item, entry))
    except FormatError:
        return None


def member_item(item: Item, entry: ZipEntry) -> Item:
    """A member as an item, unpacked while it is read."""
    name = f"{item.name}!{entry.name}"
    if entry.method == 0 and entry.size == entry.packed:
        return Item(name, entry.size, unpacking.part(item.opener, entry.start, entry.size), outer=item)
    return Item(name, entry.size, unpacking.again(partial(entry_chunks, item, entry), entry.size, [8 * max(entry.size, WHOLE)]),
                outer=item)  # fmt: skip
