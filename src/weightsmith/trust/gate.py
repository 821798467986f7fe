"""The gate: what every job that takes a model goes through before anything of the model is used.

A verdict is remembered by what the system says of each file: its path, size, times of change, inode. That finds a file that
was replaced or written to, and costs no reading. It does not find a disk that fails in silence, nor somebody who can set
the clock or write to the disk below the file system; ``frozen`` reads everything again each time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint import Checkpoint
from ..errors import NotAnalysed, UnsafeModel, UsageError
from ..found import ORDER, SCAN, Finding, RuleText, ScannedFile, ScannedTensor, ScanRecord, verdict_of
from ..options import Progress, RunOptions
from ..storage import cached_json, remember_sha256, stat_key, write_cache

_NAMED = 3  # findings that an error names
_MOST = 100_000  # files whose state is compared; a folder of more is scanned each time


@dataclass(frozen=True)
class Shield:
    """What was checked before a model was used: the scan's record, and whether it was remembered."""

    record: ScanRecord
    remembered: bool
    consented: tuple[str, ...] = ()
    pinned: str = ""

    @property
    def line(self) -> str:
        """One line for people."""
        record, count = self.record, len(self.record.files)
        size = next((f"{record.bytes / n:.3g} {u}" for u, n in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if record.bytes >= n),
                    f"{record.bytes} B")
        when = "remembered, files unchanged" if self.remembered else f"scanned in {record.seconds:.1f} s"
        what = record.verdict + (" by your policy" if record.policy else "")
        if self.consented:
            what += " (allowed by you)" if self.consented == (record.verdict,) else f" (you allowed {', '.join(self.consented)})"
        return f"{what}: {count} {'file' if count == 1 else 'files'}, {size}, {when}; {self.pinned or 'not pinned'}"


def scan_path(path: Path, ref: str, reference: Path | None = None, progress: Progress | None = None, *,
              digests: bool = True) -> ScanRecord:  # fmt: skip
    """Scan one folder or file in a restricted process of its own; without ``digests`` those of single tensors are left out.

    Raises:
        UsageError: nothing there.
    """
    from pydantic import TypeAdapter

    from .child import run_scan

    started = time.perf_counter()
    if not os.path.lexists(path):
        raise UsageError("no such model", where=path)
    request: dict[str, Any] = {"path": os.fsencode(path).hex(), "digests": digests}
    if reference is not None:
        request["reference"] = os.fsencode(reference).hex()
    total = max(1, _size(path)) if progress else 1
    done: dict[str, int] = {}

    read = 0

    def heard(name: str, count: int) -> None:
        nonlocal read
        if (more := count - done.get(name, 0)) > 0:
            done[name] = count
            read += more
        if progress:
            progress("scanning", min(read, total - 1), total)

    outcome = run_scan(request, heard if progress else None)
    if progress:
        progress("scanning", total, total)
    files = TypeAdapter(list[ScannedFile]).validate_python(outcome.files)
    return ScanRecord(
        schema_id=SCAN, version=__version__, model=ref, path=os.fsencode(path).decode("utf-8", "backslashreplace"),
        verdict=verdict_of(outcome.findings), findings=worst_first(outcome.findings),
        rules={n: RuleText.model_validate(t) for n, t in outcome.end.get("rules", {}).items()}, files=files,
        tensors=TypeAdapter(list[ScannedTensor]).validate_python(outcome.tensors),
        checked=outcome.end.get("checked", []), unchecked=outcome.end.get("unchecked", []),
        scanners=outcome.end.get("scanners", {}), seconds=time.perf_counter() - started, bytes=sum(f.size for f in files),
    )  # fmt: skip


def _size(path: Path) -> int:
    """Bytes of the files, for a progress bar; an estimate where there are very many."""
    if not path.is_dir():
        return path.stat().st_size
    total = seen = 0
    for base, _, names in os.walk(path):
        for name in names:
            info = os.lstat(os.path.join(base, name))
            total, seen = total + info.st_size, seen + 1
        if seen > _MOST:
            break
    return total


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order in which they are read."""
    return sorted(findings, key=lambda f: (-ORDER.index(f.severity), f.rule, f.file, f.place))


def judged(record: ScanRecord, policy: Path) -> ScanRecord:
    """A record as a policy sees it.

    Raises:
        RecipeError: a malformed policy.
    """
    from . import policy as policies

    rules = all_rules()
    read, digest = policies.read_policy(policy, rules)
    kept = worst_first(policies.apply(read, record.findings, record.files, licence_of(Path(record.path))))
    added = {f.rule: rules[f.rule].text for f in kept if f.rule in rules}
    return record.model_copy(update={"findings": kept, "verdict": verdict_of(kept), "policy": digest,
                                     "rules": {**record.rules, **added}})  # fmt: skip


def all_rules() -> dict[str, Any]:
    """Every rule of every scanner, by name.

    Raises:
        UsageError: two scanners have a rule of one name.
    """
    from . import policy as policies
    from .child import CRASHED
    from .rules import by_name
    from .scan import RULES, SCANNERS

    scanners = [SCANNERS.load(name)() for name in SCANNERS.names()]
    return by_name([*RULES, CRASHED, *policies.RULES, *(rule for scanner in scanners for rule in scanner.rules)])


def licence_of(path: Path) -> str | None:
    """The licence that the model's card names in its front matter, in lower case."""
    from ..cards.plain_yaml import Scalar, read_yaml

    card = path / "README.md" if path.is_dir() else path.parent / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        text = file.read(1 << 16)
    if not text.startswith("---"):
        return None
    data, _ = read_yaml(text[3:].partition("\n---")[0])
    licence = data.get("license") if isinstance(data, dict) else None
    return str(licence).casefold() if isinstance(licence, Scalar) and licence.strip() else None


# -- remembered verdicts -------------------------------------------------------------------------------------


def known_verdict(path: Path) -> ScanRecord | None:
    """The remembered record of a model whose files are what they were when it was scanned."""
    key = _state(path)
    return None if key is None else _recall(cached_json("verdicts", key)[1])


#: what this process has scanned, by place: who scanned it, the state of its files, the record. A fork that may start no
#: program, or may not write to the cache, need not scan it again
_SCANNED: dict[Path, tuple[int, list[Any], ScanRecord]] = {}


def inspect(path: Path, ref: str, *, fresh: bool = False, progress: Progress | None = None) -> tuple[ScanRecord, bool]:
    """The record of a model, and whether it was remembered; ``fresh`` reads everything again.

    Raises:
        UsageError: nothing there.
    """
    key = _state(path)
    owner, state, mine = _SCANNED.get(path, (0, None, None))
    if mine is not None and state == key and owner != os.getpid():
        return mine, False
    entry = known = None
    if key is not None:
        entry, value = cached_json("verdicts", key)
        known = None if fresh else _recall(value)
    if known is not None:
        return known, True
    record = scan_path(path, ref, progress=progress)
    if entry is not None and key is not None and _state(path) == key:  # what was written to meanwhile is scanned again next time
        write_cache(entry, record.model_dump_json(by_alias=True).encode())
        _SCANNED[path] = (os.getpid(), key, record)
    return record, False


def _recall(value: Any) -> ScanRecord | None:
    if not isinstance(value, dict):
        return None
    from pydantic import ValidationError

    try:
        record = ScanRecord.model_validate(value)
    except ValidationError:
        return None
    return record if record.version == __version__ else None


def _state(path: Path) -> list[Any] | None:
    """What identifies the files of a model and the scanners; ``None`` for too many files, or ones that can't be asked."""
    files: list[Path] = [path]
    if path.is_dir():
        for base, folders, names in os.walk(path):
            files += [Path(base) / name for name in (*names, *folders)]
            if len(files) > _MOST:
                return None
    try:
        return [_scanners(), [[_lstat(f), stat_key(f)] for f in sorted(files)]]
    except (OSError, RuntimeError):  # a link to nowhere, or to itself
        return None


def _lstat(path: Path) -> list[int]:
    info = os.lstat(path)
    return [info.st_mode, info.st_ino, info.st_mtime_ns, info.st_ctime_ns]


@cache
def _scanners() -> str:
    """What identifies the scanners that a verdict came from: their files, and those of other packages by version."""
    from importlib.metadata import entry_points

    here = Path(__file__).parent
    own = [stat_key(f)[1:3] for folder in (here, here.parent / "formats") for f in sorted(folder.rglob("*.py"))]
    others = [f"{p.name}={p.value}={p.dist.version if p.dist else ''}" for p in entry_points(group="weightsmith.scanners")]
    return hashlib.sha256(repr([own, sorted(others)]).encode()).hexdigest()


# -- judging --------------------------------------------------------------------------------------------------


def admit(record: ScanRecord, remembered: bool, *, allow: Iterable[str] = (), consented: Iterable[str] = ()) -> Shield:
    """Let a model in, or say why not.

    ``allow`` may hold ``suspicious``; ``consented`` names rules whose suspicious findings were agreed to in another way.

    Raises:
        UnsafeModel: malicious, broken, or suspicious without consent.
        NotAnalysed: a file could not be analysed.
    """
    names = frozenset(consented)
    left = [f for f in record.findings if not (f.severity == "suspicious" and f.rule in names)]
    agreed = sorted({f.rule for f in record.findings} - {f.rule for f in left})
    verdict = verdict_of(left)
    if verdict == "clean" or (verdict == "suspicious" and "suspicious" in allow):
        given = [*agreed, *(["suspicious"] if verdict == "suspicious" else [])]
        return Shield(record, remembered, tuple(given))
    worst = [f for f in left if verdict_of([f]) == verdict]
    said = "; ".join(f"{f.file or 'the folder'}: {f.message} [{f.rule}]" for f in worst[:_NAMED])
    more = f"; and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    kind = NotAnalysed if verdict == "could not tell" else UnsafeModel
    hint = "look at it with `weightsmith scan`"
    if verdict == "suspicious":
        hint += "; --allow suspicious consents"
    rules = ",".join(sorted({f.rule for f in worst}))
    raise kind(f"{verdict}: {said}{more}", where=record.path, hint=hint, verdict=verdict, rules=rules)


def pass_gate(checkpoint: Checkpoint, options: RunOptions) -> Shield:
    """Scan the model behind ``checkpoint``, or recall its verdict, and let it in; what was read is kept for its digests.

    Raises:
        UnsafeModel, NotAnalysed: see :func:`admit`.
        NonFinite: NaN or infinity in the weights.
        RecipeError: a malformed policy.
    """
    model = checkpoint.origin or checkpoint
    record, remembered = inspect(model.path, model.ref, fresh=options.frozen, progress=options.progress)
    if not remembered:
        _keep_digests(model, record)
    if options.policy is not None:
        record = judged(record, Path(options.policy))
    if any(not t.finite for t in record.tensors):
        model.check_finite(options.progress)
    consented = _remote_rules() if options.ignore_remote_code else ()
    return admit(record, remembered, allow=options.allow, consented=consented)


def _keep_digests(model: Checkpoint, record: ScanRecord) -> None:
    """Hand the digests that the scan took to whoever would read the files again for them."""
    for file in record.files:
        path = model.path / file.name if model.path.is_dir() else model.path
        if file.sha256 and path in model.weight_files:
            remember_sha256(path, file.sha256)
    found: dict[str, ScannedTensor] = {}
    if model.kind == "folder":
        names = {f.relative_to(model.path).as_posix() for f in model.weight_files}
        found = {t.name: t for t in record.tensors if t.file in names}
    elif len(record.tensors) == len(model.tensors):  # the names are those of the converted model, the order is the file's
        found = dict(zip(model.tensors, record.tensors, strict=True))
    if found.keys() >= model.tensors.keys():
        model.remember({n: t.blake3 for n, t in found.items()}, {n for n, t in found.items() if not t.finite})


@cache
def _remote_rules() -> tuple[str, ...]:
    """Rules about a model that asks for code: whoever loads it with the built-in class has weighed those."""
    from .scan import SCANNERS

    return tuple(rule.name for rule in SCANNERS.load("remote-code").rules)
