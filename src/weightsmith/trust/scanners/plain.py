"""Files that hold no weights: text, pictures, documents, configuration in YAML, and what should not be there at all."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import LimitExceeded
from ...found import Finding
from ..items import HEAD, Folder, Item, Scanner
from ..listing import shown
from ..rules import Rule
from . import disguise, ollama, script_rules, scripts, tensorflow, workspace, yamls
from .facts import INDEX

EMPTY = Rule(
    "empty-file", "broken", "A weight or configuration file without a single byte",
    "A loader that needs it fails, or falls back to other files and defaults than the publisher meant.",
    "Fetch the model again.",
)  # fmt: skip
POINTER = Rule(
    "lfs-pointer", "broken", "A Git LFS pointer instead of the file itself",
    "The download is incomplete: the file holds the address of the content, a few lines of text, and not the content.",
    "Fetch it with `git lfs pull`, or download the model again.",
    ("https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md",),
)  # fmt: skip
PARTIAL = Rule(
    "download-incomplete", "broken", "A download that was interrupted",
    "The file holds the beginning of another file only.",
    "Fetch the model again; remove the rest of the old download.",
)  # fmt: skip
PROGRAM = Rule(
    "native-program", "suspicious", "A native program or library among the model's files",
    "Weights need no machine code. Whoever starts it, or loads it as a plug-in, gives it all rights of their own.",
    "Remove it unless you know what it is for and trust who built it.",
)  # fmt: skip
BYTECODE = Rule(
    "python-bytecode", "suspicious", "Compiled Python among the model's files",
    "Python runs it instead of the source beside it, and nobody can read what it does.",
    "Remove it; Python makes it again from the source.",
)  # fmt: skip
START = Rule(
    "startup-code", "malicious", "Code that runs when Python starts, in a file that looks like weights",
    "Lines that begin with `import` in a `.pth` file are run at every start of Python once the file lies in site-packages.",
    "Remove it. Weights of this ending are never text.",
    ("https://docs.python.org/3/library/site.html",),
)  # fmt: skip
ACTIVE = Rule(
    "active-content", "suspicious", "A picture or document that runs code or fetches something when it is opened",
    "Scripts in an SVG run in the browser that shows it; launch actions in a PDF start programs; XML entities read local files.",
    "Don't open it outside a sandbox; no model needs it.",
    ("https://cwe.mitre.org/data/definitions/611.html", "https://cwe.mitre.org/data/definitions/79.html"),
)  # fmt: skip
APPENDED = Rule(
    "appended-data", "suspicious", "A picture with something else behind its end",
    "Viewers show the picture, other programs find the archive, program or pickle behind it.",
    "Ask the publisher what it is; a picture ends where its format says.",
)  # fmt: skip
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".keras", ".npz", ".npy", ".msgpack", ".pb",
            ".tflite", ".model", ".nemo")  # fmt: skip
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
_CODE = re.compile(rb"^[ \t\f\v]{0,64}(?:import|from|exec|eval)\b[\s(][^\n]{0,160}", re.MULTILINE)
_PROSE = (".md", ".txt", ".jsonl", ".ndjson", ".csv", ".tsv", ".log", ".rst", ".tex", ".bib")  # nobody reads them as YAML
_TAGGED = re.compile(rb"!!python/|tag:yaml\.org,2002:python/")
_SVG = re.compile(rb"(?i)<\s*(?:\w+:)?script|\bon(?:load|error|click|mouseover|begin)\s*=|javascript:|<\s*foreignObject")
_ENTITY = re.compile(rb"<!ENTITY")
_PDF_NAMES = rb"/(?:Launch|JavaScript|JS|OpenAction|AA|EmbeddedFiles|RichMedia)"
_PDF_ESCAPED = re.compile(rb"/[A-Za-z]{0,14}#[0-9A-Fa-f]{2}[A-Za-z0-9#]{0,40}")
_PDF = re.compile(rb"/(?:Launch|JavaScript|JS|EmbeddedFiles|RichMedia)\b")
_BEHIND = re.compile(
    rb"PK\x03\x04|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x7fELF|\x1f\x8b\x08|MZ.{58}|\x80[\x02-\x05][\x95c}(\]]", re.DOTALL
)


class Plain(Scanner):
    """Says what is wrong with files that are not weights; most of them are merely known."""

    name = "plain"
    kinds = frozenset({
        "empty", "text", "image", "media", "pdf", "parquet", "arrow", "xml", "html", "yaml", "lfs-pointer", "partial", "script",
        "executable", "bytecode", "document", "sqlite", "notebook", "desktop", "wandb", "git", "tfrecord",
    })  # fmt: skip
    rules = (EMPTY, POINTER, PARTIAL, PROGRAM, BYTECODE, START, ACTIVE, APPENDED, *script_rules.RULES, *workspace.RULES,
          *ollama.RULES,
             *disguise.RULES, *yamls.RULES)  # fmt: skip
    about = "Files without weights: incomplete downloads, programs, active content, YAML that builds objects, false endings"

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Findings of one file."""
        for kind in item.kinds:
            check = _CHECKS.get(kind)
            if check is not None:
                yield from check(item)

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """What names promise and content does not keep."""
        for item in folder.items.values():
            yield from disguise.check(item)
        yield from workspace.check(folder)
        yield from ollama.check(folder)


def _empty(item: Item) -> Iterator[Finding]:
    name = item.basename.lower()
    if name.endswith(_WEIGHTS) or name in _NEEDED or INDEX.search(name):
        yield EMPTY.found("it has no bytes", file=shown(item.name))


def _pointer(item: Item) -> Iterator[Finding]:
    text = item.head[:2048].decode("utf-8", "replace")
    size = re.search(r"^size (\d{1,18})$", text, re.MULTILINE)
    said = f"the file should have {size[1]} bytes and has {item.size}" if size else "and no size is given in it"
    yield POINTER.found(said, file=shown(item.name), evidence=text[:200])


def _partial(item: Item) -> Iterator[Finding]:
    cached = "/.cache/huggingface/" in "/" + item.name
    yield PARTIAL.found("left over from an interrupted download" + ("; loaders don't look there" if cached else ""),
                        file=shown(item.name), severity="note" if cached else None)  # fmt: skip


def _text(item: Item) -> Iterator[Finding]:
    name = item.basename.lower()
    if name.endswith(".pth") and (hit := next(_search(item, _CODE), None)):
        yield START.found("lines that Python would run", file=shown(item.name), place=f"byte {hit[0]}",
                          evidence=hit[1].decode("utf-8", "replace"))  # fmt: skip
    if item.basename == "MLmodel":
        yield from yamls.check(item)
    if name.endswith((".pbtxt", ".prototxt", ".pbtext")):
        yield from tensorflow.scan_text(item)
    if scripts.judged(item):
        yield from scripts.check(item)
    told = _TAGGED.search(item.head) if name.endswith(_PROSE) else next(_search(item, _TAGGED), None)
    if told:
        yield from (f for f in yamls.check(item) if f.rule in (yamls.TAG.name, yamls.UNREAD.name))


def _xml(item: Item) -> Iterator[Finding]:
    for offset, hit in _search(item, _SVG, _ENTITY):
        what = "an entity, which can read local files or grow without end" if hit.startswith(b"<!ENTITY") else "a script"
        yield ACTIVE.found(f"it holds {what}", file=shown(item.name), place=f"byte {offset}", evidence=repr(hit[:100])[2:-1])
        return


def _html(item: Item) -> Iterator[Finding]:
    for offset, _ in _search(item, re.compile(rb"(?i)<\s*script")):
        yield ACTIVE.found("a page with scripts; loaders don't open it", file=shown(item.name), place=f"byte {offset}",
                           severity="note")  # fmt: skip
        return


def _pdf(item: Item) -> Iterator[Finding]:
    for offset, hit in _search(item, _PDF_ESCAPED):  # names may be written with the numbers of their letters
        name = re.sub(rb"#([0-9A-Fa-f]{2})", lambda at: bytes([int(at[1], 16)]), hit)
        if re.fullmatch(_PDF_NAMES, name):
            yield ACTIVE.found(f"it holds {name.decode('ascii', 'replace')}, written as {hit.decode('ascii', 'replace')}",
                               file=shown(item.name), place=f"byte {offset}")  # fmt: skip
            return
    for offset, hit in _search(item, _PDF):
        yield ACTIVE.found(f"it holds {hit.decode('ascii', 'replace')}", file=shown(item.name), place=f"byte {offset}",
                           severity="note" if hit == b"/EmbeddedFiles" else None)  # fmt: skip
        return


def _script(item: Item) -> Iterator[Finding]:
    yield from scripts.check(item)


def _program(item: Item) -> Iterator[Finding]:
    yield PROGRAM.found("machine code", file=shown(item.name), evidence=item.head[:32].hex(" "))


def _bytecode(item: Item) -> Iterator[Finding]:
    words = b" ".join(re.findall(rb"[ -~]{4,}", item.head)[:40]).decode()
    yield BYTECODE.found("code that only Python reads", file=shown(item.name), evidence=words)


def _document(item: Item) -> Iterator[Finding]:
    for offset, hit in _search(item, re.compile(rb"_VBA_PROJECT|V\x00B\x00A\x00|\\objdata|\\objupdate|DDEAUTO")):
        yield ACTIVE.found("a document with macros or embedded objects", file=shown(item.name), place=f"byte {offset}",
                           evidence=repr(hit)[2:-1])  # fmt: skip
        return


def _image(item: Item) -> Iterator[Finding]:
    end = _image_end(item)
    if end is None or end >= item.size:
        return
    with item.open() as file:
        file.seek(end)
        behind = file.read(HEAD)
    hit = _BEHIND.search(behind[:64]) or _BEHIND.match(behind.lstrip(b"\0\r\n"))
    if hit:
        yield APPENDED.found(f"{item.size - end} bytes behind the picture", file=shown(item.name), place=f"byte {end}",
                             evidence=behind[:32].hex(" "))  # fmt: skip


def _image_end(item: Item) -> int | None:
    """Where a PNG, JPEG or GIF ends; ``None`` when that is not known."""
    if item.head.startswith(b"\x89PNG"):
        with item.open() as file:
            at = 8
            for _ in range(100_000):
                file.seek(at)
                chunk = file.read(8)
                if len(chunk) < 8:
                    return None
                at += 12 + int.from_bytes(chunk[:4], "big")
                if chunk[4:] == b"IEND":
                    return at
    try:
        data = item.read()
    except LimitExceeded:
        return None
    if data.startswith(b"\xff\xd8"):
        for magic in (b"\xff\xd9PK\x03\x04", b"\xff\xd97z\xbc\xaf", b"\xff\xd9Rar!", b"\xff\xd9\x7fELF", b"\xff\xd9\x80\x04\x95"):
            at = data.find(magic)
            if at >= 0:
                return at + 2
        at = data.rfind(b"\xff\xd9")
        return at + 2 if at >= 0 else None
    if data.startswith(b"GIF8"):
        at = data.rfind(b"\x00;")
        return at + 2 if at >= 0 else None
    return None


def _notebook(item: Item) -> Iterator[Finding]:
    yield script_rules.SCRIPT.found("a notebook; nothing in it was run", file=shown(item.name))


def _yaml(item: Item) -> Iterator[Finding]:
    yield from yamls.check(item)


def _search(item: Item, *patterns: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """Where patterns (of at most 256 bytes) occur, block by block."""
    with item.open() as file:
        at, kept = 0, b""
        while block := file.read(1 << 20):
            data = kept + block
            for pattern in patterns:
                for hit in pattern.finditer(data):
                    yield at - len(kept) + hit.start(), hit[0]
            kept = data[-256:]
            at += len(block)


_CHECKS = {
    "empty": _empty, "lfs-pointer": _pointer, "partial": _partial, "text": _text, "xml": _xml, "html": _html, "pdf": _pdf,
    "script": _script, "executable": _program, "bytecode": _bytecode, "document": _document, "image": _image, "notebook": _notebook,
    "yaml": _yaml,
}  # fmt: skip
