"""Names that promise one thing and content that is another, and files that are two things at once."""

from __future__ import annotations

from collections.abc import Iterator

from ...found import Finding
from ..items import Item
from ..listing import shown
from ..rules import Rule

DISGUISED = Rule(
    "disguised-code", "malicious", "Code under the name of data",
    "The content is a program, a script or a pickle; the name says weights, text or a picture. It waits for a program that goes by "
    "content, or for a helper that starts it under its real type.",
    "Remove it. An honest file has the ending of what it is.",
    ("https://cwe.mitre.org/data/definitions/646.html",),
)  # fmt: skip
MISNAMED = Rule(
    "wrong-extension", "suspicious", "The content is not what the name says",
    "Programs that go by the name and programs that go by the content treat the file differently, and so do scanners.",
    "Ask the publisher what the file is, or rename it to what it is.",
    ("CVE-2025-10155", "https://cwe.mitre.org/data/definitions/646.html"),
)  # fmt: skip
TWO = Rule(
    "two-formats", "suspicious", "One file that is two things at once",
    "One program sees the harmless half, another loads the other half.",
    "Don't use it; ask the publisher why.",
    ("https://cwe.mitre.org/data/definitions/436.html",),
)  # fmt: skip
RULES = (DISGUISED, MISNAMED, TWO)

_PACKED = frozenset({"gzip", "zlib", "bzip2", "xz", "lzma", "zstd", "lz4", "7z", "rar"})
_TEXTS = frozenset({"text", "json", "yaml", "xml", "html", "template", "notebook", "python", "script", "lfs-pointer", "empty",
                    "partial"})  # fmt: skip
_CODE = frozenset({"executable", "bytecode", "pickle"})
#: endings that only one kind of content has
_MEANT: dict[str, frozenset[str]] = {
    ".safetensors": frozenset({"safetensors"}), ".gguf": frozenset({"gguf"}), ".json": _TEXTS, ".txt": _TEXTS, ".md": _TEXTS,
    ".jsonl": _TEXTS, ".yaml": _TEXTS, ".yml": _TEXTS, ".jinja": _TEXTS, ".py": _TEXTS, ".csv": _TEXTS, ".tsv": _TEXTS,
    ".rst": _TEXTS, ".toml": _TEXTS, ".cfg": _TEXTS, ".ini": _TEXTS, ".html": _TEXTS, ".xml": _TEXTS, ".svg": _TEXTS,
    ".png": frozenset({"image"}), ".jpg": frozenset({"image"}), ".jpeg": frozenset({"image"}), ".gif": frozenset({"image"}),
    ".webp": frozenset({"image"}), ".pdf": frozenset({"pdf"}), ".parquet": frozenset({"parquet"}), ".npy": frozenset({"numpy"}),
    ".npz": frozenset({"zip"}), ".keras": frozenset({"zip", "hdf5"}), ".h5": frozenset({"hdf5"}), ".onnx": frozenset({"onnx"}),
    ".nemo": frozenset({"tar", "gzip"}), ".msgpack": frozenset({"msgpack"}), ".tflite": frozenset({"tflite", "zip"}),
}  # fmt: skip
#: endings under which torch looks for its own files
_CHECKPOINTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_ALWAYS = frozenset({"lfs-pointer", "empty", "partial"})
#: pairs that programs make on purpose: labels behind a TFLite model
_HONEST_PAIRS = (frozenset({"tflite", "zip"}),)


def check(item: Item) -> Iterator[Finding]:
    """What one file of the folder claims against what it is."""
    kinds = frozenset(item.kinds)
    name = item.basename.lower()
    if kinds & _ALWAYS or name.endswith(".incomplete"):
        return
    said = "+".join(item.kinds)
    if len(kinds) > 1 and kinds not in _HONEST_PAIRS:
        yield TWO.found(f"{' and '.join(item.kinds)} in one file", file=shown(item.name), evidence=item.head[:32].hex(" "))
    ending = next((e for e in _MEANT if name.endswith(e)), "")
    if ending and not kinds & _MEANT[ending]:
        if "binary" in kinds and ending not in (".safetensors", ".gguf"):
            return  # said by what reads unknown files
        rule = DISGUISED if kinds & _CODE or ("script" in kinds and ending not in _SCRIPTED) else MISNAMED
        yield rule.found(f"named {ending}, its content is {said}", file=shown(item.name), evidence=_evidence(item))
    elif name.endswith(_CHECKPOINTS):
        if kinds & {"executable", "script"}:
            yield DISGUISED.found(f"named like a checkpoint, it is {said}", file=shown(item.name), evidence=_evidence(item))
        elif kinds & (_PACKED - _packed_honestly(name)) or (kinds & (_TEXTS - {"pickle"}) and not _list_of_text(name)):
            yield MISNAMED.found(f"named like a checkpoint, it is {said}", file=shown(item.name), evidence=_evidence(item))


_SCRIPTED = (".py", ".txt", ".md")


def _packed_honestly(name: str) -> frozenset[str]:
    """Compressed streams that the writer of this ending makes itself."""
    return _PACKED - {"7z", "rar"} if name.endswith((".joblib", ".pkl", ".pickle")) else frozenset()


def _list_of_text(name: str) -> bool:
    return name in ("vocab.bin", "labels.bin")


def _evidence(item: Item) -> str:
    return repr(item.head[:48])[2:-1]
