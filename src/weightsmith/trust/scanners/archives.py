"""Archives and compressed files: listed, checked, and every member scanned as a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import WHOLE, Folder, Item, Scanner
from ..listing import shown
from ..scan import WHEN_THERE
from . import archive_rules, keras, unpacking
from .archive_rules import AROUND, BOMB, BROKEN, ENCRYPTED, NOT_OPENED, TOO_LARGE, is_bomb
from .sevenzip import read_7z
from .tars import Tar
from .torch_files import scan_torch_zip
from .unpacking import Feed, Inflater, Locked, Missing
from .zip_rows import archives_in
from .zips import Zip, ZipEntry, check_entry, entry_chunks, inflater, read_zip, unpack_entry

MOST_UNPACKED = 1 << 31  # bytes that all archives of one model may unpack to here
_STREAMS: dict[str, tuple[Callable[[], Inflater], tuple[str, ...]]] = {
    "gzip": (unpacking.gzip_stream, (".gz", ".tgz")), "bzip2": (unpacking.bzip2_stream, (".bz2", ".tbz2")),
    "xz": (unpacking.xz_stream, (".xz", ".txz")), "lzma": (unpacking.lzma_stream, (".lzma",)),
    "zlib": (unpacking.zlib_stream, (".z", ".zlib")), "zstd": (unpacking.zstd_stream, (".zst", ".zstd")),
}  # fmt: skip


class Archives(Scanner):
    """Opens zip, tar, 7z and single compressed streams; rar and lz4 are told of, not opened."""

    name = "archives"
    rules = (*archive_rules.RULES, *keras.RULES)
    kinds, about = WHEN_THERE[name]

    def __init__(self) -> None:
        self.unpacked = 0

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Findings about the archive, and its members."""
        if _contains_itself(item):
            yield BOMB.found("it contains itself", file=shown(item.name))
            return
        ways = {"zip": self._zip, "tar": self._tar, "7z": self._7z}
        for kind in item.kinds:
            if kind not in self.kinds:
                continue
            try:
                if kind in _STREAMS:
                    yield from self._stream(item, kind)
                elif kind in ways:
                    yield from ways[kind](item, folder)
                else:
                    yield NOT_OPENED.found(f"a {kind} archive", file=shown(item.name))
            except Locked:
                yield ENCRYPTED.found("even its list of files asks for a password", file=shown(item.name))
            except Missing as error:
                yield NOT_OPENED.found(f"a {kind} archive: {error}", file=shown(item.name))
            except FormatError as error:
                yield BROKEN.found(f"as {kind}: {error.message}", file=shown(item.name))
            except LimitExceeded as error:
                yield TOO_LARGE.found(f"as {kind}: {error.message}", file=shown(item.name))

    # -- zip -------------------------------------------------------------------------------------------------

    def _zip(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        if item.basename.endswith(".distcp") and (parts := archives_in(item)):
            yield from parts
            return
        archive = read_zip(item)
        labels = "tflite" in item.kinds  # TFLite keeps its labels in a zip behind the model
        yield from (f for f in archive.findings if not labels or f.rule != AROUND.name)
        for entry in archive.entries:
            yield from check_entry(entry, item)
        skip: frozenset[str] = frozenset()
        if any(e.name.rpartition("/")[2].lower() == "data.pkl" for e in archive.entries):
            yield from scan_torch_zip(item, folder)
            skip = _torch_parts(archive)
        if any(f.rule == BOMB.name for f in archive.findings):
            return
        for entry in archive.entries:
            if entry.name not in skip and not entry.folder and entry.start >= 0 and entry.mode & 0o170000 != 0o120000:
                yield from self._entry(item, entry)
        yield from keras.scan_archive(item, archive)

    def _entry(self, item: Item, entry: ZipEntry) -> Iterator[Finding | Item]:
        place = f"member {entry.name[:200]!r}"
        name = shown(item.name)
        if is_bomb(entry.packed, entry.size):
            yield BOMB.found(f"{entry.packed} bytes that unpack to {entry.size}", file=name, place=place)
            return
        if entry.encrypted:
            yield ENCRYPTED.found("it asks for a password", file=name, place=place)
        full = f"{item.name}!{entry.name}"
        if entry.method == 0 and entry.size == entry.packed and entry.size > WHOLE:
            yield Item(full, entry.size, unpacking.part(item.opener, entry.start, entry.size), outer=item)
            return
        try:
            self._charge(entry.size)
            if entry.size > WHOLE:
                if entry.method:
                    inflater(entry.method)
                chunks = partial(entry_chunks, item, entry)
                yield Item(full, entry.size, unpacking.again(chunks, entry.size, [8 * entry.size]), outer=item)
            else:
                data, wrong = unpack_entry(item, entry)
                if wrong and not entry.encrypted:
                    yield BROKEN.found(wrong, file=name, place=place)
                if not wrong or (data and not entry.encrypted):
                    yield item.member(entry.name, data)
        except Missing as error:
            yield NOT_OPENED.found(str(error), file=name, place=place)

    def _charge(self, size: int) -> None:
        self.unpacked += size
        if self.unpacked > MOST_UNPACKED:
            raise LimitExceeded(f"its archives unpack to more than {MOST_UNPACKED >> 30} GiB")

    # -- tar and 7z -------------------------------------------------------------------------------------------

    def _tar(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        tar = Tar(item)
        for entry in tar.entries():
            if entry.size <= WHOLE:
                with unpacking.part(item.opener, entry.start, entry.size)() as file:
                    yield item.member(entry.name, file.read())
            else:
                opener = unpacking.part(item.opener, entry.start, entry.size)
                yield Item(f"{item.name}!{entry.name}", entry.size, opener, outer=item)
        yield from tar.findings

    def _7z(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        for found in read_7z(item, self._charge):
            if isinstance(found, Finding):
                yield found
            else:
                yield item.member(*found)

    # -- one compressed stream ----------------------------------------------------------------------------------

    def _stream(self, item: Item, kind: str) -> Iterator[Finding | Item]:
        name = shown(item.name)
        make, endings = _STREAMS[kind]
        kept: list[bytes] = []
        size = 0
        behind = [0]
        for piece in _all_streams(item, make, behind):
            size += len(piece)
            if size <= WHOLE:
                kept.append(piece)
            else:
                kept.clear()
            if is_bomb(item.size, size):
                yield BOMB.found(f"{item.size} bytes that unpack to more than {size}", file=name)
                return
            if size > MOST_UNPACKED:
                raise LimitExceeded(f"unpacks to more than {MOST_UNPACKED >> 30} GiB")
        self._charge(size)
        if behind[0]:
            yield AROUND.found(f"{behind[0]} bytes behind the compressed data", file=name)
        inner = _inner_name(item.basename, endings)
        if size <= WHOLE:
            yield item.member(inner, b"".join(kept))
        else:
            chunks = partial(_all_streams, item, make, [0])
            yield Item(f"{item.name}!{inner}", size, unpacking.again(chunks, size, [8 * size]), outer=item)


def _all_streams(item: Item, make: Callable[[], Inflater], behind: list[int]) -> Iterator[bytes]:
    """What all streams of a file unpack to, one after the other; ``behind[0]``: bytes at the end that are none."""
    magic = item.head[:3]
    with item.open() as file:
        feed = Feed(file, item.size)
        while True:
            yield from unpacking.unpack(feed, make)
            left = feed.skip_zeros()
            if not left or not feed.back.startswith(magic[: len(feed.back)]):
                behind[0] = left
                return


def _inner_name(name: str, endings: tuple[str, ...]) -> str:
    """What the unpacked file is called."""
    for ending in endings:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)] + (".tar" if ending.startswith(".t") else "")
    return name + ".unpacked"


def _torch_parts(archive: Zip) -> frozenset[str]:
    """The members that the reader of torch archives has looked at itself."""
    roots = {e.name[: -len("data.pkl")] for e in archive.entries if e.name.rpartition("/")[2].lower() == "data.pkl"}
    own = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
    pairs = [(e.name, e.name.removeprefix(root)) for e in archive.entries for root in roots if e.name.startswith(root)]
    return frozenset(name for name, inner in pairs if inner.lower() in own or inner.startswith("data/"))


def _contains_itself(item: Item) -> bool:
    outer = item.outer
    while outer is not None:
        if outer.size == item.size and outer.head == item.head and outer.tail == item.tail:
            return True
        outer = outer.outer
    return False
