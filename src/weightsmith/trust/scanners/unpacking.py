"""Reading what is packed without ever holding it whole: parts of files, and compressed streams that can be read again."""

from __future__ import annotations

import bz2
import contextlib
import importlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, cast

from ...errors import FormatError, LimitExceeded

_zstd: Any = None
with contextlib.suppress(ImportError):  # at once: a scan can't import anything later
    _zstd = importlib.import_module("compression.zstd")

BLOCK = 1 << 18  # bytes that are read and unpacked at a time
LZMA_MEMORY = 1 << 27  # bytes of dictionary that an xz or lzma stream may ask for

Open = Callable[[], BinaryIO]
Chunks = Callable[[], Iterator[bytes]]


class Missing(Exception):
    """No library here unpacks this."""


class Locked(Missing):
    """It asks for a password."""


class Inflater(Protocol):
    """One compressed stream: unpacks what it is fed, at most ``most`` bytes at a time."""

    def feed(self, data: bytes, most: int) -> bytes:
        """Up to ``most`` bytes more; ``data`` is empty while ``hungry`` is false."""

    @property
    def hungry(self) -> bool:
        """Whether it has used up what it was fed."""

    @property
    def over(self) -> bool:
        """Whether the stream has ended."""

    @property
    def rest(self) -> bytes:
        """What was fed but lies behind the stream's end."""


class _Zlib:
    def __init__(self, bits: int) -> None:
        self.inner, self.left, self.full = zlib.decompressobj(bits), b"", False

    def feed(self, data: bytes, most: int) -> bytes:
        out = self.inner.decompress(self.left + data, most)
        self.left = self.inner.unconsumed_tail
        self.full = len(out) == most
        return out

    @property
    def hungry(self) -> bool:
        return not self.left and not self.full

    @property
    def over(self) -> bool:
        return self.inner.eof

    @property
    def rest(self) -> bytes:
        return self.inner.unused_data


class _Std:
    """bz2's, lzma's and Python 3.14's zstd decompressors, which work alike."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def feed(self, data: bytes, most: int) -> bytes:
        return cast(bytes, self.inner.decompress(data, most))

    @property
    def hungry(self) -> bool:
        return bool(self.inner.needs_input)

    @property
    def over(self) -> bool:
        return bool(self.inner.eof)

    @property
    def rest(self) -> bytes:
        return cast(bytes, self.inner.unused_data)


def raw_deflate() -> Inflater:
    """As in zip archives."""
    return _Zlib(-15)


def gzip_stream() -> Inflater:
    """A gzip member."""
    return _Zlib(31)


def zlib_stream() -> Inflater:
    """A zlib stream."""
    return _Zlib(15)


def bzip2_stream() -> Inflater:
    """A bzip2 stream."""
    return _Std(bz2.BZ2Decompressor())


def xz_stream() -> Inflater:
    """An xz stream."""
    return _Std(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY))


def lzma_stream() -> Inflater:
    """An old .lzma stream."""
    return _Std(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY))


def zstd_stream() -> Inflater:
    """A zstd frame; needs Python 3.14.

    Raises:
        Missing: an older one.
    """
    if _zstd is None:
        raise Missing("zstd is unpacked from Python 3.14 on")
    return _Std(_zstd.ZstdDecompressor())


class Feed:
    """``size`` bytes of a file from where it stands, with the right to give some back."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left, self.back = file, size, b""

    def take(self) -> bytes:
        """The next bytes, nothing at the end."""
        if self.back:
            data, self.back = self.back, b""
            return data
        data = self.file.read(min(BLOCK, self.left))
        self.left = self.left - len(data) if data else 0
        return data

    def skip_zeros(self) -> int:
        """Skip padding; how many bytes are left behind it."""
        while not self.back and (data := self.take()):
            self.back = data.lstrip(b"\0")
        return len(self.back) + self.left


def unpack(feed: Feed, make: Callable[[], Inflater]) -> Iterator[bytes]:
    """Chunks of the one stream that begins here; what lies behind its end is given back to ``feed``.

    Raises:
        FormatError: damaged or cut off.
        LimitExceeded: it asks for too much memory.
    """
    stream = make()
    while not stream.over:
        data = feed.take() if stream.hungry else b""
        if stream.hungry and not data:
            raise FormatError("cut off in the middle of compressed data")
        try:
            out = stream.feed(data, BLOCK)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            if "emory" in str(error):
                raise LimitExceeded(f"compressed data that asks for more than {LZMA_MEMORY >> 20} MiB of memory") from error
            raise FormatError(f"damaged compressed data ({str(error)[:100]})") from error
        if out:
            yield out
    feed.back = stream.rest


class _Sized(io.RawIOBase):
    """Something of ``size`` bytes that is read from the place ``at``."""

    def __init__(self, size: int) -> None:
        self.size, self.at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at


class _Part(_Sized):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__(size)
        self.file, self.start = file, start

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.start + self.at)
        data = self.file.read(max(0, min(len(buffer), self.size - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def part(source: Open, start: int, size: int) -> Open:
    """Opens ``size`` bytes from ``start`` on as a file of their own."""
    return lambda: cast(BinaryIO, io.BufferedReader(_Part(source(), start, size)))


class _Again(_Sized):
    """Unpacked bytes as a file; seeking back unpacks from the start again, within a budget."""

    def __init__(self, chunks: Chunks, size: int, spent: list[int]) -> None:
        super().__init__(size)
        self.make, self.spent, self.real = chunks, spent, 0
        self.chunks, self.left = chunks(), b""

    def readinto(self, buffer: Any) -> int:
        if self.at < self.real:
            self.chunks, self.left, self.real = self.make(), b"", 0
        while self.real + len(self.left) <= self.at:
            self.real += len(self.left)
            self.left = next(self.chunks, b"")
            self.spent[0] -= len(self.left)
            if not self.left:
                return 0
            if self.spent[0] < 0:
                raise LimitExceeded("unpacking it over and over takes too long")
        data = self.left[self.at - self.real :][: len(buffer)]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def again(chunks: Chunks, size: int, spent: list[int]) -> Open:
    """Opens what ``chunks`` yields as a file of ``size`` bytes; ``spent[0]`` is how many bytes may be unpacked in all."""
    return lambda: cast(BinaryIO, io.BufferedReader(_Again(chunks, size, spent), BLOCK))
