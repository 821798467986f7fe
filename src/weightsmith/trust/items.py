"""What a scanner is given: the files of one model, opened safely, and a place for what was already found out about them.

A path is opened once for each reading, never through a link that was not checked and never when it is a device or a
pipe, and only if it is still the file that was listed: same device, inode, size and times.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from blake3 import blake3

from ..errors import FormatError, LimitExceeded, WeightsmithError
from ..formats.gguf import GgufHeader
from ..formats.safetensors import SafetensorsHeader
from ..found import Finding
from ..storage import strict_json, usable_cores
from .identity import FLAGS, Identity, identity
from .rules import Rule

HEAD = 1 << 16  # bytes of either end of a file that decide what it is
WHOLE = 1 << 26  # bytes that a scanner may take into memory at once
_BLOCK = 1 << 22  # bytes of a tensor that are digested at once


class FileChanged(WeightsmithError):
    """A file is no longer the one that was listed: somebody writes to the folder while it is scanned."""


@dataclass(eq=False)
class Item:
    """One file, or one member of an archive (``name`` then is ``archive!member``).

    ``kinds`` is what its content is (:mod:`.kinds`), more than one for a file that two readers take for two things.
    ``opener`` opens it anew at its first byte, seekable, for reading; ``listed`` is the plain file that it then is.
    """

    name: str
    size: int
    opener: Callable[[], BinaryIO] = field(repr=False)
    path: Path | None = None
    listed: Identity | None = None
    outer: Item | None = field(default=None, repr=False)
    kinds: tuple[str, ...] = ()
    sha256: str | None = None

    def open(self) -> BinaryIO:
        """The bytes from the first one on; the caller closes it.

        Raises:
            FileChanged: not the file that was listed.
            OSError: it can't be opened.
        """
        return self.opener()

    def read(self, most: int = WHOLE) -> bytes:
        """All bytes.

        Raises:
            LimitExceeded: more than ``most``.
        """
        if self.size > most:
            raise LimitExceeded(f"{self.size} bytes; at most {most} are taken into memory", where=self.name)
        with self.open() as file:
            return file.read(most + 1)

    def blake3(self, start: int, nbytes: int) -> str:
        """BLAKE3 digest of a part of it, in hex."""
        digest, left = blake3(max_threads=usable_cores()), nbytes
        with self.open() as file:
            file.seek(start)
            while left and (block := file.read(min(left, _BLOCK))):
                digest.update(block)
                left -= len(block)
        return str(digest.hexdigest())

    @cached_property
    def head(self) -> bytes:
        """The first 64 KiB."""
        with self.open() as file:
            return file.read(HEAD)

    @cached_property
    def tail(self) -> bytes:
        """The last 64 KiB."""
        if self.size <= HEAD:
            return self.head
        with self.open() as file:
            file.seek(max(0, self.size - HEAD))
            return file.read(HEAD)

    @cached_property
    def basename(self) -> str:
        """The last part of its name."""
        return self.name.rsplit("!", 1)[-1].rsplit("/", 1)[-1]

    @property
    def depth(self) -> int:
        """How many archives it lies in."""
        return 0 if self.outer is None else self.outer.depth + 1

    def text(self, most: int = WHOLE) -> str:
        """All of it as UTF-8 text.

        Raises:
            LimitExceeded: more than ``most`` bytes.
            FormatError: not UTF-8.
        """
        try:
            return self.read(most).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"not UTF-8 (byte {error.start})", where=self.name) from error

    def member(self, name: str, data: bytes) -> Item:
        """An item for a member that was unpacked into memory."""
        return Item(f"{self.name}!{name}", len(data), lambda: io.BytesIO(data), outer=self)


def file_item(name: str, path: Path, real: str | None = None) -> Item:
    """An item for a plain file, bound to what it is now; ``real`` is its path without links, where that is known.

    Raises:
        OSError: it is not there.
    """
    info = os.stat(path)
    listed = identity(info)

    def open_it() -> BinaryIO:
        handle = os.open(opened, FLAGS)
        if identity(os.fstat(handle)) != listed:
            os.close(handle)
            raise FileChanged("changed while it was scanned", where=name)
        return os.fdopen(handle, "rb")

    opened = real or str(path.resolve())  # the links on the way were judged when the folder was listed
    return Item(name, info.st_size, open_it, path=path, listed=listed)


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What the pass over a tensor's bytes found: BLAKE3 digest (empty where nobody wanted it: :meth:`Folder.digest` then takes
    it), whether all values are finite, and the greatest magnitude (``None`` for dtypes that are not read as numbers);
    ``constant`` is true when all values are equal."""

    blake3: str
    finite: bool
    peak: float | None = None
    constant: bool = False

    @property
    def trait(self) -> tuple[Any, ...]:
        """What equal bytes have in common wherever they lie, and other ones hardly ever: who has it is worth a digest."""
        return self.finite, repr(self.peak), self.constant


@dataclass(eq=False)
class Folder:
    """One model: a folder, or a single file.

    The header scanners fill ``headers`` and ``ggufs`` before the bytes are read; ``tensors`` holds what the pass over
    the bytes found, by (file, tensor name). ``declared`` is for names, dtypes and shapes that other formats declare.
    ``reference`` is the model that this one is compared with, when there is one.
    """

    path: Path
    single: bool = False
    items: dict[str, Item] = field(default_factory=dict)
    headers: dict[str, SafetensorsHeader] = field(default_factory=dict)
    ggufs: dict[str, GgufHeader] = field(default_factory=dict)
    tensors: dict[tuple[str, str], TensorFacts] = field(default_factory=dict)
    declared: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    reference: Folder | None = None
    unchecked: list[str] = field(default_factory=list)
    _parsed: dict[str, Any] = field(default_factory=dict, repr=False)
    _digests: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def digest(self, file: str, name: str) -> str | None:
        """BLAKE3 of a tensor, taken now where the pass over the bytes did not; ``None`` where its bytes were not read.

        Raises:
            FileChanged, OSError: it can't be read again.
        """
        facts = self.tensors.get((file, name))
        if facts is None or facts.blake3:
            return facts.blake3 if facts else None
        if (file, name) not in self._digests:
            header = self.headers.get(file) or self.ggufs[file]
            spec = next(t for t in header.tensors if t.name == name)
            self._digests[file, name] = self.items[file].blake3(spec.start, spec.nbytes)
        return self._digests[file, name]

    def alike(self, one: tuple[str, str], two: tuple[str, str]) -> bool | None:
        """Whether two tensors, by file and name, have the same bytes; ``None`` where the bytes of one were not read.

        Raises:
            FileChanged, OSError: one can't be read again.
        """
        facts = [self.tensors.get(t) for t in (one, two)]
        if facts[0] is None or facts[1] is None:
            return None
        return facts[0].trait == facts[1].trait and self.digest(*one) == self.digest(*two)

    def json(self, name: str) -> Any:
        """The JSON value of a file of the folder, parsed once; ``None`` when there is no such file.

        Raises:
            FormatError: not UTF-8 or not JSON.
            LimitExceeded: too large.
        """
        if name not in self.items:
            return None
        if name not in self._parsed:
            try:
                self._parsed[name] = strict_json(self.items[name].read())
            except (ValueError, RecursionError) as error:
                self._parsed[name] = FormatError(f"not valid JSON ({str(error)[:200]})", where=name)
        if isinstance(self._parsed[name], FormatError):
            raise self._parsed[name]
        return self._parsed[name]

    def keep_json(self, name: str, value: Any) -> None:
        """Keep a value, or the error, of a file that was parsed elsewhere, so that it is parsed once."""
        self._parsed.setdefault(name, value)

    def json_object(self, name: str) -> dict[str, Any]:
        """The JSON object of a file; empty when it is absent or not readable (its own scanner says so)."""
        try:
            value = self.json(name)
        except (FormatError, LimitExceeded):
            return {}
        return value if isinstance(value, dict) else {}


class Scanner:
    """One plug-in of kind ``scanners``; a subclass has no state between models.

    ``kinds`` are the content kinds whose files it analyses: every file has to be analysed by some scanner, or the scan
    ends with *could not tell*. ``early`` ones run before the bytes are read, and fill the folder's headers.
    """

    name: ClassVar[str]
    rules: ClassVar[tuple[Rule, ...]] = ()
    kinds: ClassVar[frozenset[str]] = frozenset()
    early: ClassVar[bool] = False
    #: whether ``scan_folder`` waits for the pass over the bytes (``item.sha256``, ``folder.tensors``)
    needs_bytes: ClassVar[bool] = True
    #: what it looks at, in one sentence for the report
    about: ClassVar[str] = ""

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Findings of one file of its kinds; an :class:`Item` that it yields (a member) is scanned in turn."""
        yield from ()

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Findings that need the folder as a whole; runs after all files."""
        yield from ()
