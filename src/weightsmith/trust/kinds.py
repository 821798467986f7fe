"""What a file is, by its content; a name only decides between kinds of text, and in doubt for the more dangerous kind.

A file can be two things at once: a zip archive is found by its last bytes, a tar by its first block's checksum, most
other formats by their first bytes. So every test is made, and whatever a file is taken for by any reader is scanned.
"""

from __future__ import annotations

import encodings.utf_16  # noqa: F401 - at once: a scan can't import anything later
import re
import zlib
from typing import BinaryIO

from .items import HEAD, Item
from .members import hdf5_in_member, zips_in_members
from .opcodes import Reading, read_as_pickle

#: first bytes -> kind
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "gguf"), (b"FUGG", "gguf"), (b"lmgg", "ggml"), (b"fmgg", "ggml"), (b"tjgg", "ggml"), (b"algg", "ggml"),
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"PK\x07\x08", "zip"), (b"ZXTN", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07", "rar"), (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4"), (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x93NUMPY", "numpy"), (b"\x89HDF\r\n\x1a\n", "hdf5"), (b"\x7fELF", "executable"), (b"\x00asm", "executable"),
    (b"\xfe\xed\xfa\xce", "executable"), (b"\xfe\xed\xfa\xcf", "executable"), (b"\xce\xfa\xed\xfe", "executable"),
    (b"\xcf\xfa\xed\xfe", "executable"), (b"\xca\xfe\xba\xbe", "executable"), (b"\xca\xfe\xba\xbf", "executable"),
    (b"dex\n03", "executable"), (b"!<arch>\n", "executable"), (b"#!", "script"),
    (b"\x4c\x00\x00\x00\x01\x14\x02\x00\x00\x00\x00\x00\xc0\x00\x00\x00\x00\x00\x00\x46", "executable"),
    (b"\x89PNG\r\n\x1a\n", "image"), (b"\xff\xd8\xff", "image"), (b"GIF87a", "image"), (b"GIF89a", "image"),
    (b"II*\x00", "image"), (b"MM\x00*", "image"), (b"PAR1", "parquet"), (b"ARROW1", "arrow"),
    (b"OggS", "media"), (b"fLaC", "media"), (b"ID3", "media"), (b"\x1aE\xdf\xa3", "media"),
    (b"wOFF", "media"), (b"wOF2", "media"), (b"OTTO", "media"), (b"\x00\x01\x00\x00\x00", "media"),
    (b"%PDF-", "pdf"), (b"SQLite format 3\x00", "sqlite"), (b"version https://git-lfs", "lfs-pointer"),
    (b"version https://hawser", "lfs-pointer"), (b"{\\rtf", "document"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "document"),
    (b"\x00\x00\x00\x01Bud1", "desktop"), (b":W&B", "wandb"),
)  # fmt: skip
_KIND_OF = dict(_MAGIC)
_BEGINS = re.compile(b"|".join(re.escape(magic) for magic, _ in _MAGIC))  # the first one that fits, in one step for all
_ZIPS = tuple(magic for magic, kind in _MAGIC if kind == "zip")
#: beginnings that raw numbers have as well, believed under these names only
_SHORT = (b"\x00\x01\x00\x00\x00", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa", b"BM", b"\x00\x00\x01\x00",
          b"II*\x00", b"MM\x00*", b"ID3")  # fmt: skip
_SHORT_NAMES = (".mp3", ".ttf", ".otf", ".bmp", ".ico", ".tif", ".tiff", ".dng")
_AT: tuple[tuple[int, bytes, str], ...] = (
    (4, b"TFL3", "tflite"), (4, b"ORTM", "ort"), (8, b"WEBP", "image"), (8, b"WAVE", "media"), (8, b"AVI ", "media"),
    (4, b"ftyp", "media"), (257, b"ustar", "tar"),
)  # fmt: skip
_BY_NAME = {
    ".json": "json", ".jinja": "template", ".jinja2": "template", ".j2": "template", ".py": "python", ".pyi": "python",
    ".ipynb": "notebook", ".yaml": "yaml", ".yml": "yaml", ".xml": "xml", ".svg": "xml", ".html": "html", ".htm": "html",
    ".sh": "script", ".bat": "script", ".cmd": "script", ".ps1": "script", ".js": "script", ".mjs": "script",
    ".rb": "script", ".pl": "script", ".lua": "script", ".vbs": "script", ".hta": "script", ".command": "script",
    ".jsonl": "text", ".toml": "text", ".md": "text", ".txt": "text", ".rst": "text", ".cfg": "text", ".ini": "text",
    ".csv": "text", ".tsv": "text", ".log": "text", ".tex": "text", ".bib": "text", ".ndjson": "text", ".lock": "text",
}  # fmt: skip
#: names that Python programs hand to an unpickler without looking
PICKLE_NAMES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".p", ".dat", ".data", ".pk", ".npy",
                ".model", ".sav", ".mdl", ".th", ".t7", ".pt2", ".ptl", ".pdparams", ".pdopt", ".pdmodel")  # fmt: skip
_WEAK = frozenset({"media", "image", "bzip2", "lzma", "arrow", "coreml-weights", "leveldb"})  # known by few bytes of the beginning
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
ASCII = bytes(range(128))
_EOCD_AREA = (1 << 16) + 22  # bytes at the end in which readers look for a zip's last record


def kinds_of(item: Item) -> tuple[str, ...]:
    """What an item is; ``("empty",)`` for no bytes, ``("binary",)`` for bytes that nothing here knows."""
    head = item.head if item.size else b""
    if not head:
        return ("empty",)
    found = _by_begin(item, head)
    found += _by_end(item, head, tar="tar" in found)
    if not found or ("pickle" not in found and set(found) <= _WEAK):
        reading = read_as_pickle(head, item.size)
        if reading in (Reading.CODE, Reading.DATA) or (reading is Reading.OPEN and item.basename.lower().endswith(PICKLE_NAMES)):
            found.append("pickle")
    if item.basename.endswith(".incomplete"):  # the beginning of something: only what is dangerous in itself counts
        whole = [kind for kind in found if kind in ("pickle", "executable") or (kind == "zip" and _zip_end(item))]
        return ("partial", *dict.fromkeys(whole))
    if not found:
        found = [_text_kind(item, head) or _binary_kind(item, head)]
    return tuple(dict.fromkeys(found))


def _by_begin(item: Item, head: bytes) -> list[str]:
    """Every kind that the first bytes are a sign of."""
    found = []
    if not head.startswith(b"GGUF") and is_safetensors(head, item.size):
        found.append("safetensors")
    if match := _BEGINS.match(head):
        found.append(_KIND_OF[match[0]])
    found += [kind for at, magic, kind in _AT if head[at : at + len(magic)] == magic]
    found += [kind for test, kind in _TESTS if kind not in found and test(head, item.size)]
    if set(found) <= {"media", "image"} and head.startswith(_SHORT) and not item.basename.lower().endswith(_SHORT_NAMES):
        return []
    return ["git" if kind == "zlib" and _loose_object(item, head) else kind for kind in found]


def _is_pe(head: bytes, size: int) -> bool:
    if not head.startswith(b"MZ") or len(head) < 64:
        return False
    at = int.from_bytes(head[60:64], "little")
    return head[at : at + 2] in (b"PE", b"NE", b"LE", b"LX") or at >= len(head) or head.startswith(b"MZqFpD")


def _is_pickle(head: bytes, size: int) -> bool:
    """Whether it says so itself; with a version that few writers use, whether it also goes on as one, and so with the length
    of a safetensors header, whose two lowest bytes may be any."""
    if head[:1] != b"\x80" or len(head) < 2 or head[1] > 15:
        return False
    return (2 <= head[1] <= 5 and not is_safetensors(head, size)) or read_as_pickle(head, size) is not Reading.NO


def _is_tfrecord(head: bytes, size: int) -> bool:
    """Length, its masked CRC-32C, data, the data's."""
    length = int.from_bytes(head[:8], "little")
    return size >= 16 and length + 16 <= size and masked_crc32c(head[:8]) == int.from_bytes(head[8:12], "little")


def _is_lzma(head: bytes, size: int) -> bool:
    """The old .lzma header: properties, a dictionary of a power of two (or 1.5 times one), a sane or unknown size."""
    if len(head) < 14 or head[0] != 0x5D or head[13]:
        return False
    words = int.from_bytes(head[1:5], "little")
    unpacked = int.from_bytes(head[5:13], "little")
    low = words & -words
    return words >= 1 << 12 and words in (low, 3 * low) and (unpacked == (1 << 64) - 1 or unpacked < 1 << 40)


def _is_zlib(head: bytes, size: int) -> bool:
    """A zlib stream, as joblib writes: two bytes that fit together, and what they begin."""
    if head[0] != 0x78 or len(head) < 8 or int.from_bytes(head[:2], "big") % 31:
        return False
    try:
        return bool(zlib.decompressobj().decompress(head, 64)) or size < 16
    except zlib.error:
        return False


def _is_bytecode(head: bytes, size: int) -> bool:
    """Python's compiled code: a version, a line's end, flags, and an object of code."""
    return head[2:4] == b"\r\n" and head[16:17] in (b"\xe3", b"c") and size > 32


_TESTS = (
    (_is_bytecode, "bytecode"),
    (_is_zlib, "zlib"),
    (_is_pe, "executable"), (_is_pickle, "pickle"), (_is_tfrecord, "tfrecord"), (_is_lzma, "lzma"),
    (lambda head, size: bool(re.match(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", head)), "bzip2"),
    (lambda head, size: len(head) > 3 and head[0] == 0xFF and head[1] in (0xFB, 0xF3, 0xF2, 0xFA) and head[2] < 0xF0, "media"),
    (lambda head, size: head.startswith(b"BM") and int.from_bytes(head[2:6], "little") == size, "image"),
    (lambda head, size: head.startswith(b"\x00\x00\x01\x00") and head[5:6] == b"\x00", "image"),
    (lambda head, size: head[:8] == b"\xff\xff\xff\xff" + head[4:8] and 0 < int.from_bytes(head[4:8], "little") < size
     and b"\x00" in head[8:12], "arrow"),
    (lambda head, size: size >= 128 and head[64:68] == b"\xef\xbe\xad\xde" and head[4:8] == b"\x02\x00\x00\x00", "coreml-weights"),
    (lambda head, size: len(head) >= 512 and _tar_checksum(head), "tar"),
)  # fmt: skip


def _by_end(item: Item, head: bytes, *, tar: bool) -> list[str]:
    """Kinds that a reader finds without looking at the first bytes; what lies whole in one member of a ``tar`` is that member's."""
    found = [] if head.startswith(_ZIPS) or not _zip_end(item, tar=tar) else ["zip"]
    if item.size > 16:
        with item.open() as file:
            for place in (1 << n for n in range(9, (item.size - 1).bit_length())):  # where HDF5's own library looks for it
                file.seek(place)
                if file.read(8) == b"\x89HDF\r\n\x1a\n":
                    if not tar or not hdf5_in_member(item, place):
                        found.append("hdf5")
                    break
            file.seek(item.size - 8)
            if file.read(8) == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
                found.append("leveldb")
    return found


def _zip_end(item: Item, *, tar: bool = False) -> bool:
    """Whether some reader takes the last bytes for the end of a zip archive: the record's signature, and a directory entry
    where it says that the directory begins (counted from the file's start, or back from the record), or zip64's locator."""
    area = min(item.size, _EOCD_AREA)
    ends = []
    with item.open() as file:
        file.seek(item.size - area)
        tail = file.read(area)
        at = tail.rfind(b"PK\x05\x06")
        for _ in range(64):
            if at < 0:
                break
            where = item.size - area + at
            if len(tail) - at >= 22 and _points_to_entry(file, tail, at, where):
                if not tar:
                    return True
                ends.append(where)
            at = tail.rfind(b"PK\x05\x06", 0, at)
    if at >= 0:
        return True  # so many signatures are no accident
    return bool(ends) and not zips_in_members(item, ends)


def _points_to_entry(file: BinaryIO, tail: bytes, at: int, where: int) -> bool:
    size, offset = int.from_bytes(tail[at + 12 : at + 16], "little"), int.from_bytes(tail[at + 16 : at + 20], "little")
    if tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        return True
    for start in (where - size, offset):
        if 0 <= start < where:
            file.seek(start)
            if file.read(4) == b"PK\x01\x02":
                return True
    return False


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether the first bytes are a length and the JSON object that a safetensors file begins with."""
    if len(head) < 9:
        return False
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length >= 2 and (length <= size or head[:64].find(b'"dtype"') > 0)


def _tar_checksum(head: bytes) -> bool:
    """Whether the first block is a tar header by its own checksum (old tar has no magic)."""
    field = head[148:156].strip(b"\0 ")
    if not field or not re.fullmatch(rb"[0-7]{1,7}", field) or not head[0]:
        return False
    rest = head[:148] + head[156:512]
    off = sum(rest) + 8 * 32 - int(field, 8)
    return not off or off == 256 * len(rest.translate(None, ASCII))  # some programs add signed bytes


def _text_kind(item: Item, head: bytes) -> str:
    """A kind of text, or ``""`` when the first bytes are not text."""
    text = as_text(head)
    if text is None or (item.basename.lower().endswith((".onnx", ".pb")) and looks_like_protobuf(head, cut=True)):
        return ""
    dot = item.basename.rfind(".")
    named = _BY_NAME.get(item.basename[dot:].lower(), "") if dot >= 0 else ""
    if named:
        return named
    if _CONTROLS.search(text) and looks_like_protobuf(head):
        return ""
    begin = text.lstrip("\ufeff \t\r\n")[:256]
    if re.match(r"(?i)<\?xml|<svg[\s>]", begin):
        return "xml"
    if re.match(r"(?i)<!doctype html|<html[\s>]", begin):
        return "html"
    return "json" if re.match(r"\{\s*[\"}]|\[\s*[\[{\"\d\]tfn-]", begin) and item.size > 2 else "text"


def as_text(head: bytes) -> str | None:
    """The first bytes as text: UTF-8, UTF-16 with a mark, or a single-byte encoding that holds no control characters."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head[: len(head) & ~1].decode("utf-16", "replace")
        return None if text.count("\ufffd") + text.count("\0") > len(text) // 50 else text
    if _has_nul(head):
        return None
    try:
        return head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start >= len(head) - 4 and len(head) == HEAD:  # cut in the middle of a character
            return head[: error.start].decode("utf-8")
    controls = sum(head.count(bytes([c])) for c in range(32) if c not in (9, 10, 12, 13, 27))
    high = len(head) - len(head.translate(None, bytes(range(128, 256))))
    return head.decode("latin-1") if not controls and high * 5 < len(head) else None


def _has_nul(head: bytes) -> bool:
    return b"\x00" in head


def _binary_kind(item: Item, head: bytes) -> str:
    name = item.basename.lower()
    if name.endswith(".msgpack") or ((head[0] in (0xDE, 0xDF) or 0x81 <= head[0] <= 0x8F) and _msgpack_key(head)):
        return "msgpack"
    if name.endswith(".onnx") and looks_like_protobuf(head, cut=True):
        return "onnx"
    if looks_like_protobuf(head, cut=name.endswith((".pb", ".mlmodel"))):
        return "protobuf"
    stored = (b"\xfftOc", b"PACK\x00\x00\x00\x02", b"DIRC\x00", b"RIDX\x00", b"MIDX\x01")
    if head.startswith(stored) and "/.git/" in "/" + item.name:
        return "git"
    return "binary"


def _msgpack_key(head: bytes) -> bool:
    """Whether a map's first key is a short text."""
    at = {0xDE: 3, 0xDF: 5}.get(head[0], 1)
    first = head[at : at + 1]
    if not first or not (0xA1 <= first[0] <= 0xBF or first[0] == 0xD9):
        return False
    begin, length = (at + 1, first[0] & 31) if first[0] != 0xD9 else (at + 2, head[at + 1] if len(head) > at + 1 else 0)
    key = head[begin : begin + length]
    return len(key) == length > 0 and key.isascii() and key.decode().isprintable()


def _loose_object(item: Item, head: bytes) -> bool:
    """Whether it is an object in git's own store."""
    if "/.git/objects/" not in "/" + item.name:
        return False
    return zlib.decompressobj().decompress(head, 64).startswith((b"blob ", b"tree ", b"commit ", b"tag "))


def looks_like_protobuf(head: bytes, *, cut: bool = False) -> bool:
    """Whether the first fields parse as a protocol buffer: field numbers up to 100 (with ``cut``, up to 4,000, and the last one
    may leave the file), lengths inside, known wire types."""
    at = fields = 0
    while at < len(head) and fields < 8:
        key, at = varint(head, at)
        if key < 0 or not 1 <= key >> 3 <= (4000 if cut else 100) or key & 7 not in (0, 1, 2, 5):
            return False
        if key & 7 == 0:
            _, at = varint(head, at)
        elif key & 7 == 2:
            length, at = varint(head, at)
            if length < 0:
                return False
            at += length
        else:
            at += 8 if key & 7 == 1 else 4
        if at < 0:
            return False
        fields += 1
    return fields > 0 and (cut or at <= len(head) or len(head) >= HEAD)


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A protocol buffer's variable-length number and where it ends; ``(-1, -1)`` when it doesn't."""
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
        shift += 7
    return -1, -1


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), masked as TensorFlow's record files do; for short inputs only."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
