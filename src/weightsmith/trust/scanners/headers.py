"""Headers of safetensors and GGUF files, checked against their specifications before any library parses them.

The parsers of :mod:`weightsmith.formats` bound every length before they act on it and stop at the first violation, which
becomes a finding of its own rule. What a header may hold and still be read by every loader (names, texts, padding) is
looked at afterwards. A header that passed is kept in the folder, for the scanners that compare it with the rest.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import FormatError, UnsupportedModel, WeightsmithError
from ...formats import gguf
from ...formats.safetensors import SafetensorsHeader, parse_header
from ...found import Finding, Severity
from ..items import Folder, Item, Scanner
from ..listing import shown
from . import gguf_keys
from .header_rules import (
    BY_FAULT,
    CODE,
    LARGE_TEXT,
    MARKUP,
    MOST_HEADER,
    MOST_TENSORS,
    NAME,
    OTHER_CONTENT,
    PADDING,
    PAYLOAD,
    RULES,
    SHAPE,
    SPEC,
)

_DTYPE = re.compile(r"[A-Z]{1,5}\d{1,3}\w{0,12}|BOOL")
LONG_NAME = 512  # characters; the longest names of real adapters have about 200
MOST_AXES = 64  # what numpy can hold; torch models have at most 5
LARGE = 1 << 21  # characters of text beside the tensors that are looked at
_ELEMENTS = 1 << 22  # of all arrays of a GGUF header; the largest vocabularies need a third of it
_GGUF_HEADER = 1 << 25  # bytes; the largest vocabularies need half of it
_SAID = 5  # names that one finding lists

#: the beginning of a pickle, an archive or a program, raw, in base64 or in hex (longer than any digest)
_DISGUISED = re.compile(
    r"(?<![A-Za-z0-9+/_-])(?:gA[I-X]|UEsDB|H4sI|TVqQ|f0VMR)[A-Za-z0-9+/_-]{24}|\x80[\x02-\x05][\x95}\]c(]|"
    r"(?<![0-9A-Fa-f])(?:800[2-5]|504[bB]0304|7[fF]454[cC]46|4[dD]5[aA]9000)[0-9A-Fa-f]{130}"
)
_CODE = re.compile(
    r"__import__\s{0,9}\(|\bos\.(?:system|popen|exec[lv]p?e?|spawn\w+)\s{0,9}\(|\bsubprocess\.\w+\s{0,9}\(|\b(?:eval|exec)\s{0,9}\("
    r"\s{0,9}(?:compile|base64|__|open|bytes|requests|input|'|\")|\bpickle\.loads?\s{0,9}\(|__reduce(?:_ex)?__|__(?:globals|subclasses|builtins|mro|class)__|"
    r"\bcurl\s[^|\n]{0,200}\|\s{0,9}(?:ba)?sh\b|\bbase64\.b(?:64|32|85)decode\s{0,9}\(|\bpowershell(?:\.exe)?\s-\w"
)
_MARKUP = re.compile(
    r"<\s{0,9}(?:script|iframe)\b|\bjavascript:|\bdata:text/html|"
    r"<[a-z]{1,20}\b[^<>]{0,200}\bon[a-z]{3,20}=|\x1b[\[\]P]", re.IGNORECASE
)
#: Greek, Cyrillic or full-width letters beside Latin ones
_ALIKE = re.compile(r"[A-Za-z_][\u0370-\u04ff\uff00-\uff5e]|[\u0370-\u04ff\uff00-\uff5e][A-Za-z_]")


class Headers(Scanner):
    """Parses the headers, says what is wrong with them, and keeps the good ones for the others."""

    name = "headers"
    rules = RULES
    kinds = frozenset({"safetensors", "gguf"})
    early = True
    about = "Headers of safetensors and GGUF files: every length, type, name and offset against the specification"

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Findings of one header; a good one is kept in ``folder.headers`` or ``folder.ggufs``."""
        if "safetensors" in item.kinds:
            yield from self._safetensors(item, folder)
        if "gguf" in item.kinds:
            yield from self._gguf(item, folder)

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Files that are called safetensors or GGUF and are not, and parts of a split GGUF that don't fit together."""
        for item in folder.items.values():
            kind = {".safetensors": "safetensors", ".gguf": "gguf"}.get(Path(item.basename).suffix.lower())
            if kind is None or kind in item.kinds or "lfs-pointer" in item.kinds:
                continue
            found = list(self._safetensors(item, None) if kind == "safetensors" else self._gguf(item, None))
            said = found[0].message if found else "its header can't be read"
            yield OTHER_CONTENT.found(f"called {kind}, and its content is {'+'.join(item.kinds) or 'unknown'}: {said}",
                                      file=shown(item.name), evidence=item.head[:32].hex(" "))  # fmt: skip
            yield from found
        yield from gguf_keys.splits(folder)

    def _safetensors(self, item: Item, folder: Folder | None) -> Iterator[Finding]:
        try:
            header = _parse_safetensors(item)
        except FormatError as error:
            yield _violation(error, item)
            return
        if folder is not None and item.outer is None:
            folder.headers[item.name] = header
        yield from _written(header, item)
        yield from names((t.name for t in header.tensors), item)
        yield from texts(header.metadata.items(), item)

    def _gguf(self, item: Item, folder: Folder | None) -> Iterator[Finding]:
        try:
            header = _parse_gguf(item)
        except (FormatError, UnsupportedModel) as error:
            yield _violation(error, item)
            return
        if folder is not None and item.outer is None:
            folder.ggufs[item.name] = header
        yield from names((t.name for t in header.tensors), item)
        yield from names(header.metadata, item, what="key")
        plain = ((k, v) for k, v in header.metadata.items() if isinstance(v, str) and not k.startswith("tokenizer.chat_template"))
        yield from texts(plain, item)
        yield from gguf_keys.findings(header, item)


def header_of(item: Item) -> SafetensorsHeader | gguf.GgufHeader:
    """The header of an item of one of the two kinds.

    Raises:
        FormatError: it breaks its specification.
        UnsupportedModel: a version, byte order or type that is not known here.
    """
    return _parse_safetensors(item) if "safetensors" in item.kinds else _parse_gguf(item)


def _parse_safetensors(item: Item) -> SafetensorsHeader:
    with item.open() as file:
        return parse_header(file, item.size, item.path or Path(item.name), most=MOST_HEADER, entries=MOST_TENSORS)


def _parse_gguf(item: Item) -> gguf.GgufHeader:
    path = item.path or Path(item.name)
    with item.open() as file:
        try:
            handle = file.fileno()
        except OSError:  # a member in memory
            return gguf.parse_header(file.read(_GGUF_HEADER), item.size, path, elements=_ELEMENTS, most=_GGUF_HEADER)
        if item.size < gguf.SMALLEST:
            return gguf.parse_header(file.read(), item.size, path)
        with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as data:
            return gguf.parse_header(data, item.size, path, elements=_ELEMENTS, most=_GGUF_HEADER)


def _violation(error: WeightsmithError, item: Item) -> Finding:
    """A parser's error as a finding of the rule for its kind of fault."""
    fault = str(error.fields.get("fault", ""))
    rule = BY_FAULT.get(fault, SPEC)
    severity: Severity | None = None
    if fault == "dtype" and int(error.fields.get("kind", 0)) >= 64:
        severity = "broken"  # no release of ggml is near such a number
    if fault == "dtype" and (named := re.search(r"unknown dtype '(.*)'", error.message)) and not _DTYPE.fullmatch(named[1]):
        severity = "broken"  # no later version of the format would call a type so
    if rule.severity == "unknown" and max(map(int, re.findall(r"\d{1,20}", error.message)), default=0) > item.size:
        severity = "broken"  # it claims more than the whole file can hold
    if rule.severity == "suspicious":
        severity = "broken"  # the parser refused it
    return rule.found(error.message[:300], file=shown(item.name), severity=severity, evidence=item.head[:48].hex(" "))


def _written(header: SafetensorsHeader, item: Item) -> Iterator[Finding]:
    """What the reference writer never does, in a header that can be read."""
    raw, file = header.raw, shown(item.name)
    if raw[:1] != b"{":
        yield PADDING.found("the header does not begin with '{'", file=file, place="byte 8", evidence=raw[:32].hex(" "))
    end = raw.rstrip(b" ")
    if end[-1:] != b"}":
        yield PADDING.found("the header is padded with something else than spaces", file=file,
                            place=f"byte {8 + len(end)}", evidence=end[-32:].hex(" "))  # fmt: skip
    if many := [t for t in header.tensors if len(t.shape) > MOST_AXES]:
        yield SHAPE.found(f"{len(many)} tensors with more than {MOST_AXES} axes, e.g. {len(many[0].shape)}", file=file,
                          place=f"tensor {many[0].name[:100]!r}")  # fmt: skip


def names(found: Iterable[str], item: Item, what: str = "tensor") -> Iterator[Finding]:
    """Findings about names that can't be shown as they are, or that nobody would give."""
    odd = [n for n in found if len(n) > LONG_NAME or not n.isprintable() or n != n.strip() or not n or
           (not n.isascii() and _ALIKE.search(n))]  # fmt: skip
    for name in odd[:_SAID]:
        why = (f"has {len(name)} characters" if len(name) > LONG_NAME else "is blank" if not name.strip() else
               "mixes letters that look alike" if name.isprintable() and not name.isascii() else
               "holds characters that are not shown, or act on a terminal")  # fmt: skip
        more = f" (and {len(odd) - _SAID} others)" if len(odd) > _SAID and name is odd[_SAID - 1] else ""
        yield NAME.found(f"the name of a {what} {why}{more}", file=shown(item.name), place=f"{what} {name[:100]!r}",
                         evidence=name[:200].encode("unicode_escape").decode())  # fmt: skip


def texts(pairs: Iterable[tuple[str, str]], item: Item) -> Iterator[Finding]:
    """Findings about free texts of a header: programs in disguise, code, markup that acts, sheer size."""
    size = 0
    for key, whole in pairs:
        text = whole[: max(0, LARGE - size)]
        size += len(key) + len(whole)
        for rule, pattern in ((PAYLOAD, _DISGUISED), (CODE, _CODE), (MARKUP, _MARKUP)):
            for part in (key, text):
                if match := pattern.search(part):
                    begin = max(0, match.start() - 60)
                    yield rule.found(f"{key[:100]!r}: {rule.title[0].lower()}{rule.title[1:]}", file=shown(item.name),
                                     place=f"metadata {key[:100]!r}", evidence=part[begin : match.end() + 160])  # fmt: skip
                    break
    if size > LARGE:
        yield LARGE_TEXT.found(f"{size} characters of text beside the tensors; {LARGE} were looked at", file=shown(item.name))

