"""The scan itself: every scanner over every file, whole. Runs in a process of its own (:mod:`.child`).

The order: list the files; find out what each is; check the headers of weight files; read every byte once (SHA-256 of
files, BLAKE3 and values of tensors) while every scanner sees the files of its kinds and the members inside them; then let
every scanner see the folder as a whole. Whatever a scanner raises is a finding: nothing is skipped in silence.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, LimitExceeded, WeightsmithError, stated
from ..found import ORDER, Finding
from ..registry import Registry
from .items import Folder, Item, Scanner
from .kinds import kinds_of
from .listing import RULES as LISTING_RULES
from .listing import list_folder, shown
from .rules import Rule

if TYPE_CHECKING:
    from .ahead import Ahead

SCANNERS = Registry("scanners", {
    "archives": "weightsmith.trust.scanners.archives:Archives",
    "headers": "weightsmith.trust.scanners.headers:Headers",
    "layout": "weightsmith.trust.scanners.layout:Layout",
    "numbers": "weightsmith.trust.scanners.numbers:Numbers",
    "other-formats": "weightsmith.trust.scanners.other_formats:OtherFormats",
    "pickles": "weightsmith.trust.scanners.pickles:Pickles",
    "plain": "weightsmith.trust.scanners.plain:Plain",
    "reference": "weightsmith.trust.scanners.reference:Reference",
    "remote-code": "weightsmith.trust.scanners.remote:RemoteCode",
    "settings": "weightsmith.trust.scanners.settings:Settings",
    "templates": "weightsmith.trust.scanners.templates:Templates",
    "tokenizer": "weightsmith.trust.scanners.tokens:Tokens",
})  # fmt: skip
#: built-in scanners that don't run early
LATE = frozenset({"archives", "layout", "numbers", "other-formats", "pickles", "plain", "reference", "remote-code", "settings",
                  "templates", "tokenizer"})  # fmt: skip
#: built-in scanners of single files of kinds that few models have: what they look at and for; imported when there is one
WHEN_THERE: Mapping[str, tuple[frozenset[str], str]] = {
    "archives": (frozenset({"zip", "tar", "7z", "rar", "lz4", "gzip", "bzip2", "xz", "lzma", "zlib", "zstd"}),
                 "Archives: names, links, sizes and both directories checked, and every member scanned like a file"),
    "pickles": (frozenset({"pickle", "zlib"}),
                "Pickles: every import and call of every stream, against the list of what tensors need; torch's storages"),
}  # fmt: skip
MOST_FINDINGS = 50  # of one rule in one scan; the rest is counted
MOST_MEMBERS = 10_000  # of all archives of one model together
MOST_UNPACKED = 1 << 31  # bytes of members that are analysed
MOST_DEPTH = 5

FAILED = Rule(
    "scanner-failed", "unknown", "A check could not be carried out",
    "The scanner gave up on this file, so nobody knows what is in it. A file made to break a scanner looks like this too.",
    "Treat the file as not checked. If it is an honest file, report it to us with the message.",
)  # fmt: skip
NOT_ANALYSED = Rule(
    "not-analysed", "unknown", "A file of a kind that no check understands",
    "It was read and digested, but what a program would do with it is unknown; scans that leave such files out in silence "
    "are how payloads get past them.",
    "Find out what the file is for; remove it if the model works without it, or allow its kind in a policy.",
)  # fmt: skip
TOO_DEEP = Rule(
    "archive-too-deep", "unknown", "Archives deeper, of more members or larger than any honest one",
    f"Members were unpacked to {MOST_DEPTH} levels, {MOST_MEMBERS} members or {MOST_UNPACKED >> 30} GiB in all, and there is more.",
    "Do not unpack it. No model is stored like this.",
    ("https://cwe.mitre.org/data/definitions/409.html",),
)  # fmt: skip
RULES = (*LISTING_RULES, FAILED, NOT_ANALYSED, TOO_DEEP)

Tell = Callable[[str, int], None]


class Scan:
    """One scan of one model; ``tell`` hears (file, bytes read so far), often enough for a watchdog.

    ``apart``, ``hasher`` and ``digested`` are :class:`.stream.Reading`'s; digests of tensors that are to be compared are taken
    in any case.
    """

    def __init__(self, path: Path, *, skip: frozenset[str] = frozenset(), tell: Tell | None = None,
                 reference: Path | None = None, apart: bool = False, hasher: Ahead | None = None,
                 digested: bool = True) -> None:  # fmt: skip
        self.folder = Folder(path, single=not path.is_dir())
        self.skip, self.tell, self.reference = skip, tell or (lambda name, done: None), reference
        self.apart, self.hasher, self.digested = apart, hasher, digested
        self.members = self.unpacked = 0
        self.counts: Counter[str] = Counter()

    @cached_property
    def scanners(self) -> list[Scanner]:
        """All scanners; made when they are needed, so that the bytes are read while the modules are imported."""
        return [_later(name) if name in WHEN_THERE else SCANNERS.load(name)() for name in SCANNERS.names()]

    @cached_property
    def _known(self) -> frozenset[str]:
        """Kinds that some scanner looks at."""
        return frozenset().union(*(s.kinds for s in self.scanners))

    @property
    def sources(self) -> dict[str, str]:
        """The module that each scanner comes from."""
        return {scanner.name: SCANNERS.module(scanner.name) for scanner in self.scanners}

    @property
    def used(self) -> list[Rule]:
        """The rules of the findings so far; some are found by one scanner for another, which was not needed itself."""
        rules = {r.name: r for r in (*RULES, *(r for s in self.scanners for r in s.rules))}
        if not self.counts.keys() <= rules.keys():
            rules.update((r.name, r) for name in WHEN_THERE for r in SCANNERS.load(name).rules)
        return [rules[name] for name in self.counts if name in rules]

    def run(self) -> Iterator[Finding]:
        """All findings, none twice, :data:`MOST_FINDINGS` of one rule and those that are worse; the last says how many more."""
        seen: set[tuple[str, str, str, str]] = set()
        listed: Counter[str] = Counter()
        worst: dict[str, Finding] = {}  # one rule's findings may be notes first, and what counts behind them
        for finding in self._all():
            key = (finding.rule, finding.file, finding.place, finding.message)
            if key in seen:
                continue
            seen.add(key)
            self.counts[finding.rule] += 1
            known = worst.setdefault(finding.rule, finding)
            worse = ORDER.index(finding.severity) > ORDER.index(known.severity)
            if worse:
                worst[finding.rule] = finding
            if worse or self.counts[finding.rule] <= MOST_FINDINGS:
                listed[finding.rule] += 1
                yield finding
        for rule, count in self.counts.items():
            if count > listed[rule]:
                more = f"{count - listed[rule]} more findings of this rule are not listed"
                yield worst[rule].model_copy(update={"file": "", "place": "", "message": more, "evidence": ""})

    def _all(self) -> Iterator[Finding]:
        from . import stream

        yield from list_folder(self.folder.path, self.folder)
        for name in self.skip & self.folder.items.keys():
            del self.folder.items[name]
        if self.reference is not None:
            self.folder.reference = Folder(self.reference, single=not self.reference.is_dir())
            yield from (f for f in list_folder(self.reference, self.folder.reference) if f.severity == "unknown")
            yield from self._files(self.folder.reference, early=True, silent=True)
        yield from self._files(self.folder, early=True)
        # beside the scanners
        reading = stream.Reading(self.folder, apart=self.apart, hasher=self.hasher,
                                 digested=self.digested or self._compared)  # fmt: skip
        yield from self._files(self.folder, early=False)
        yield from self._whole(needs_bytes=False)
        yield from reading.finish(self.tell)
        yield from self._whole(needs_bytes=True)

    @property
    def _compared(self) -> bool:
        """Whether many tensors will be compared by their digests: with a reference's, or with those of another carrier."""
        folder = self.folder
        names = [t.name for h in folder.headers.values() for t in h.tensors]
        several = len(set(names)) != len(names) or any(n.rpartition("/")[2].startswith("consolidated") for n in folder.headers)
        return self.reference is not None or len(folder.ggufs) + bool(folder.headers) > 1 or several

    def _whole(self, *, needs_bytes: bool) -> Iterator[Finding]:
        for scanner in self.scanners:
            if scanner.needs_bytes == needs_bytes:
                self.tell("", 0)
                yield from self._guarded(scanner, "", partial(scanner.scan_folder, self.folder))

    def _files(self, folder: Folder, *, early: bool, silent: bool = False) -> Iterator[Finding]:
        made = [SCANNERS.load(n)() for n in SCANNERS.names() if n not in LATE] if early else self.scanners
        scanners = [s for s in made if s.early == early]
        known = frozenset().union(*(s.kinds for s in made))
        for item in list(folder.items.values()):
            self.tell(item.name, 0)
            found = self._item(item, folder, scanners, known if not early else None)
            yield from (f for f in found if not silent)

    def _item(self, item: Item, folder: Folder, scanners: list[Scanner], known: frozenset[str] | None) -> Iterator[Finding]:
        if known is not None and known.isdisjoint(item.kinds):
            kind = ", ".join(item.kinds)
            yield NOT_ANALYSED.found(f"its content is {kind or 'unknown'}, which no scanner reads",
                                     file=shown(item.name), evidence=item.head[:32].hex(" "))  # fmt: skip
        for scanner in scanners:
            if scanner.kinds.isdisjoint(item.kinds):
                continue
            for result in self._guarded(scanner, item.name, partial(scanner.scan_file, item, folder)):
                if isinstance(result, Finding):
                    yield result
                else:
                    yield from self._member(result, folder)

    def _member(self, item: Item, folder: Folder) -> Iterator[Finding]:
        """A member of an archive, as a file of its own; headers inside archives are checked with the rest."""
        self.members += 1
        self.unpacked += item.size
        self.tell(item.name, 0)
        if item.depth > MOST_DEPTH or self.members > MOST_MEMBERS or self.unpacked > MOST_UNPACKED:
            what = (f"it lies {item.depth} archives deep" if item.depth > MOST_DEPTH else
                    f"{MOST_MEMBERS} members were unpacked before it" if self.members > MOST_MEMBERS else
                    f"more than {MOST_UNPACKED >> 30} GiB were unpacked with it")  # fmt: skip
            yield TOO_DEEP.found(f"{what}; it was not analysed", file=shown(item.name))
            return
        try:
            item.kinds = item.kinds or kinds_of(item)
        except Exception as error:  # noqa: BLE001 - a member that is unpacked as it is read raises what its archive makes it
            yield FAILED.found(f"it can't be unpacked: {type(error).__name__}: {stated(error)[:200]}", file=shown(item.name))
            return
        yield from self._item(item, folder, self.scanners, self._known)

    def _guarded(self, scanner: Scanner, name: str, work: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """What a scanner yields; what it raises becomes a finding, and so does an item it can't take in."""
        with contextlib.closing(_started(work)) as results:
            while True:
                try:
                    result = next(results)
                except StopIteration:
                    return
                except LimitExceeded as error:
                    yield FAILED.found(f"{scanner.name}: {error.message}", file=shown(name))
                    return
                except (FormatError, WeightsmithError, OSError, MemoryError) as error:
                    said = error.message if isinstance(error, WeightsmithError) else str(error) or type(error).__name__
                    yield FAILED.found(f"{scanner.name}: {said[:300]}", file=shown(name))
                    return
                except Exception as error:  # noqa: BLE001 - on a stranger's bytes a scanner or its library may raise anything
                    yield FAILED.found(f"{scanner.name}: {type(error).__name__}: {str(error)[:300]}", file=shown(name))
                    return
                yield result


def _later(wanted: str) -> Scanner:
    """A scanner of :data:`WHEN_THERE` that is imported at its first file."""

    class Later(Scanner):
        name = wanted
        kinds, about = WHEN_THERE[wanted]
        real: Scanner | None = None

        def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
            if self.real is None:
                self.real = SCANNERS.load(wanted)()
            return self.real.scan_file(item, folder)

    return Later()


def _started(work: Callable[[], Iterable[Any]]) -> Generator[Any, None, None]:
    """An iterator that begins its work when it is first asked, so that an error at the start is caught like the others."""
    yield from work()
