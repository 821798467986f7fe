"""What changed between what a lock pins and what is there now: files, tensors, and what the difference means.

A lock holds digests only, so the small text files of a model are kept in the cache when it is pinned, by their SHA-256; the
hub's cache may hold an older revision as well. Where neither does, only that a file changed can be said.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...pinned import FileChange, PinChanges, PinnedModel
from ...storage import cache_dir, strict_json, write_cache

#: files of which the old text is worth keeping
KEPT = (".json", ".jinja", ".txt", ".md", ".model.txt", ".yaml", ".yml")
MAX_KEPT = 48 << 20
DETAILS = 40
_WIDTH = 100


def keep_texts(files: Mapping[str, Path], entry: PinnedModel) -> None:
    """Keep the small text files of what was just pinned, packed, for the next comparison."""
    for name, path in files.items():
        pinned = entry.files.get(name)
        if pinned is None or not name.endswith(KEPT) or pinned.size > MAX_KEPT or _kept(pinned.sha256).exists():
            continue
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() == pinned.sha256:
            write_cache(_kept(pinned.sha256), zlib.compress(raw, 1))


def _kept(sha256: str) -> Path:
    return cache_dir() / "pinned" / f"{sha256}.z"


def old_text(sha256: str, name: str, elsewhere: Path | None = None) -> bytes | None:
    """The bytes of a file that was pinned, from the cache or from an older snapshot; its digest is checked."""
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(_kept(sha256).read_bytes(), MAX_KEPT)
        if hashlib.sha256(raw).hexdigest() == sha256:
            return raw
    except (OSError, zlib.error):
        pass
    if elsewhere is not None and name.endswith(KEPT):
        path = elsewhere / name
        if path.is_file() and path.stat().st_size <= MAX_KEPT:
            raw = path.read_bytes()
            return raw if hashlib.sha256(raw).hexdigest() == sha256 else None
    return None


def changes(
    before: PinnedModel, after: PinnedModel, files: Mapping[str, Path], names: tuple[str, str], elsewhere: Path | None = None
) -> PinChanges:
    """What differs between two pins; ``files`` are those of ``after``, ``elsewhere`` a folder that may hold the old ones."""
    from .lock import tensor_changes

    found: list[FileChange] = []
    for name in sorted({*before.files, *after.files}):
        old, new = before.files.get(name), after.files.get(name)
        if old is None or new is None:
            found.append(FileChange(file=name, what="added" if old is None else "removed"))
        elif old.sha256 != new.sha256:
            found.append(FileChange(file=name, what="changed", details=_details(name, old.sha256, files.get(name), elsewhere)))
    tensors = tensor_changes(before.tensors, after.tensors)
    same = sum(before.tensors.get(n) == t for n, t in after.tensors.items())
    return PinChanges(before=names[0], after=names[1], files=found, tensors=tensors, same_tensors=same)


def _details(name: str, sha256: str, path: Path | None, elsewhere: Path | None) -> list[str]:
    if not name.endswith(KEPT) or path is None:
        return []
    old = old_text(sha256, name, elsewhere)
    if old is None:
        return ["the pinned text is not kept on this machine: only that it changed is known"]
    if path.stat().st_size > MAX_KEPT:
        return ["too large to be compared"]
    lines = list(text_changes(name, old, path.read_bytes()))
    return lines[:DETAILS] + ([f"… and {len(lines) - DETAILS} more"] if len(lines) > DETAILS else [])


def text_changes(name: str, old: bytes, new: bytes) -> Iterator[str]:
    """Sentences on how two versions of one text file differ: by key for JSON, by line for anything else."""
    if name.endswith(".json"):
        try:
            a, b = strict_json(old), strict_json(new)
        except (ValueError, RecursionError):
            pass
        else:
            yield from json_changes(a, b, "$")
            return
    yield from _lines(old.decode("utf-8", "replace"), new.decode("utf-8", "replace"))


def _lines(old: str, new: str) -> Iterator[str]:
    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0):
        if not line.startswith(("---", "+++")):
            yield _short(line)


def json_changes(old: Any, new: Any, where: str) -> Iterator[str]:
    """Keys that differ, with both values; templates by line, a tokenizer's vocabulary and merges by number.

    The depth is bounded by what the JSON reader takes.
    """
    if type(old) is type(new) and not isinstance(old, dict | list) and old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        if max(len(old), len(new)) > 1000 and where.endswith("vocab"):
            yield from _vocabulary(old, new, where)
            return
        for key in sorted({*old, *new}):
            here = f"{where}.{key}"
            if key not in old:
                yield _short(f"{here}: added, {_value(new[key])}")
            elif key not in new:
                yield _short(f"{here}: removed, was {_value(old[key])}")
            else:
                yield from json_changes(old[key], new[key], here)
    elif isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > _WIDTH:
        yield f"{where}: another text"
        yield from (f"  {line}" for line in _lines(old, new))
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list(old, new, where)
    else:
        yield _short(f"{where}: {_value(old)} → {_value(new)}")


def _list(old: list[Any], new: list[Any], where: str) -> Iterator[str]:
    if len(old) == len(new) <= 1000:
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from json_changes(a, b, f"{where}[{i}]")
        return
    a, b = ([json.dumps(v, sort_keys=True) for v in values] for values in (old, new))
    if a == b:
        return
    gone, come = set(a) - set(b), set(b) - set(a)
    order = ", in another order" if not gone and not come else ""
    yield f"{where}: {len(old)} entries → {len(new)}, {len(come)} added, {len(gone)} removed{order}"
    yield from (_short(f"{where}: added {v}") for v in sorted(come)[:3])
    yield from (_short(f"{where}: removed {v}") for v in sorted(gone)[:3])


def _vocabulary(old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
    gone, come = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    moved = sorted(k for k in old.keys() & new.keys() if old[k] != new[k])
    if not (gone or come or moved):
        return
    yield f"{where}: {len(come)} tokens added, {len(gone)} removed, {len(moved)} with another id"
    yield from (_short(f"{where}: added {k!r} as {new[k]}") for k in come[:3])
    yield from (_short(f"{where}: removed {k!r}, was {old[k]}") for k in gone[:3])
    yield from (_short(f"{where}: {k!r} was {old[k]} and is {new[k]}") for k in moved[:5])


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= 2 * _WIDTH else f"{text[: 2 * _WIDTH]}…"
