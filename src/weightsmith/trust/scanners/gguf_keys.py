"""What the metadata of a GGUF file has to be for its readers: types of keys, the vocabulary, layers, split files."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from ...formats.gguf import GgufHeader, GgufTensor
from ...found import Finding
from ..items import Folder, Item
from ..listing import shown
from . import gguf_parts
from .header_rules import HOLE, KEY_TYPE, LAYERS, NO_ARCHITECTURE, SPLIT, TOKEN_ID, TRAILING, TYPES, VOCABULARY

#: ids that a model needs to begin and to stop; of the others readers only warn
_NEEDED = ("bos", "eos", "eot")
_NONE = ((1 << 32) - 1, -1)  # what converters write for "has none"
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int for v in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) in (int, float) for v in value)


_TYPES: tuple[tuple[re.Pattern[str], str, Callable[[Any], bool]], ...] = (
    (re.compile(r"general\.(?:architecture|name|type)|tokenizer\.ggml\.(?:model|pre)|tokenizer\.chat_template(?:\..+)?"), "a text",
     lambda v: isinstance(v, str)),
    (re.compile(r"tokenizer\.(?:ggml\.(?:tokens|merges)|chat_templates)"), "a list of texts", _texts),
    (re.compile(r"tokenizer\.ggml\.scores"), "a list of numbers", _numbers),
    (re.compile(r"tokenizer\.ggml\.token_type"), "a list of whole numbers", _integers),
    (re.compile(r"tokenizer\.ggml\.add_(?:bos|eos|sep)_token|tokenizer\.ggml\.add_space_prefix"), "true or false",
     lambda v: isinstance(v, bool)),
    (re.compile(r"general\.(?:alignment|file_type|quantization_version)|tokenizer\.ggml\.\w+_token_id|split\.(?:no|count|tensors\.count)"
                r"|[\w\-]+\.(?:block_count|context_length|embedding_length|expert_count|expert_used_count|vocab_size)"),
     "a whole number", lambda v: type(v) is int),
)  # fmt: skip


def findings(header: GgufHeader, item: Item) -> Iterator[Finding]:
    """Findings about one file whose header could be parsed."""
    file = shown(item.name)
    yield from (f for finder in (_types, _architecture, _vocabulary, _token_ids, _layers) for f in finder(header, file))
    if header.metadata.get("split.count", 1) == 1:  # else all parts are looked at together
        yield from gguf_parts.findings(header.tensors, header.metadata, file)
    yield from _placed(header, item.size, file)


def _types(header: GgufHeader, file: str) -> Iterator[Finding]:
    for key, value in header.metadata.items():
        for pattern, wanted, fits in _TYPES:
            if pattern.fullmatch(key) and not fits(value):
                yield KEY_TYPE.found(f"{key} has to be {wanted}", file=file, place=f"metadata {key!r}",
                                     evidence=str(value[:5] if isinstance(value, list | str) else value)[:200])  # fmt: skip
        if isinstance(value, float) and not math.isfinite(value):
            yield TYPES.found(f"{key[:100]} is {value}", file=file, place=f"metadata {key[:100]!r}")
        if type(value) is int and value > 1 << 40 and key.endswith(("_count", "_length")):
            yield TYPES.found(f"{key[:100]} is {value}", file=file, place=f"metadata {key[:100]!r}")


def _architecture(header: GgufHeader, file: str) -> Iterator[Finding]:
    data = header.metadata
    name = data.get("general.architecture")
    if isinstance(name, str):
        if not _ARCHITECTURE.fullmatch(name):
            yield KEY_TYPE.found("general.architecture is not the name of an architecture", file=file,
                                 place="metadata 'general.architecture'", evidence=name)  # fmt: skip
    elif name is None and not data.get("split.no"):
        layers = any(_BLOCK.match(t.name) and t.name.endswith((".weight", ".bias")) for t in header.tensors)
        model = "tokenizer.ggml.tokens" in data or layers
        rule = KEY_TYPE if model else NO_ARCHITECTURE
        yield rule.found("there is no general.architecture", file=file)


def _vocabulary(header: GgufHeader, file: str) -> Iterator[Finding]:
    data = header.metadata
    tokens = data.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not _texts(tokens):
        return
    count = len(tokens)
    for part in ("scores", "token_type"):
        values = data.get(f"tokenizer.ggml.{part}")
        if isinstance(values, list) and len(values) != count:
            yield VOCABULARY.found(f"{count} tokens and {len(values)} of {part}", file=file,
                                   place=f"metadata 'tokenizer.ggml.{part}'")  # fmt: skip
    types = data.get("tokenizer.ggml.token_type")
    if isinstance(types, list) and _integers(types) and (odd := sorted({t for t in types if not 0 <= t <= 6})):
        yield VOCABULARY.found(f"token types that do not exist: {odd[:5]}", file=file,
                               place="metadata 'tokenizer.ggml.token_type'")  # fmt: skip
    scores = data.get("tokenizer.ggml.scores")
    if isinstance(scores, list) and _numbers(scores) and any(s != s for s in scores):
        yield VOCABULARY.found("scores that are not numbers (NaN)", file=file, place="metadata 'tokenizer.ggml.scores'")
    rows = next((t.shape[0] for t in header.tensors if t.name == "token_embd.weight" and len(t.shape) == 2), count)
    if rows != count and data.get("general.type", "model") == "model":
        yield VOCABULARY.found(f"{count} tokens and an embedding of {rows} rows", file=file, place="tensor 'token_embd.weight'")


def _token_ids(header: GgufHeader, file: str) -> Iterator[Finding]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return
    for key, value in header.metadata.items():
        if not re.fullmatch(r"tokenizer\.ggml\.\w+_token_id", key) or type(value) is not int or 0 <= value < len(tokens):
            continue
        needed = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id") in _NEEDED and value not in _NONE
        yield TOKEN_ID.found(f"{key} is {value}, and there are {len(tokens)} tokens", file=file, place=f"metadata {key!r}",
                             severity=None if needed else "note")  # fmt: skip


def _layers(header: GgufHeader, file: str) -> Iterator[Finding]:
    data = header.metadata
    arch = data.get("general.architecture")
    count = data.get(f"{arch}.block_count")
    # a part of a split model has some layers only; of the architecture `deci` some layers are empty by design
    if data.get("split.count", 1) != 1 or arch == "deci" or type(count) is not int or data.get("general.type", "model") != "model":
        return
    more = data.get(f"{arch}.nextn_predict_layers", 0)  # layers that only speed generation up; some files leave them out
    whole = count + (more if type(more) is int else 0)  # whether they are counted depends on who writes
    count -= more if type(more) is int else 0
    there = {int(m[1]) for t in header.tensors if (m := _BLOCK.match(t.name))}
    if not there:
        return
    missing = count - sum(1 for n in there if n < count)
    if missing > 0:
        first = next(n for n in range(count) if n not in there)
        yield LAYERS.found(f"{missing} of {count} layers have no tensor, e.g. layer {first}", file=file)
    if beyond := sorted(n for n in there if n >= whole):
        yield LAYERS.found(f"it says {whole} layers and has tensors of {len(beyond)} more, e.g. of layer {beyond[0]}", file=file)


def _placed(header: GgufHeader, size: int, file: str) -> Iterator[Finding]:
    """Bytes that no tensor owns: more than the padding to the alignment."""
    position, before = header.data_start, "the header"
    for tensor in sorted(header.tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start > _padded(position, header):
            yield HOLE.found(f"{tensor.start - position} bytes between {before[:100]} and {tensor.name[:100]!r}", file=file,
                             place=f"byte {position}")  # fmt: skip
            break
        position, before = _end(tensor), repr(tensor.name)
    last = max((_end(t) for t in header.tensors), default=header.data_start)
    if size > _padded(last, header):
        yield TRAILING.found(f"{size - last} bytes after the last tensor belong to nothing", file=file, place=f"byte {last}",
                             severity="suspicious")  # fmt: skip


def _end(tensor: GgufTensor) -> int:
    return tensor.start + tensor.nbytes


def _padded(position: int, header: GgufHeader) -> int:
    return position + -(position - header.data_start) % header.alignment


def splits(folder: Folder) -> Iterator[Finding]:
    """Findings about models that lie in several GGUF files: every part there, once, and of one model."""
    groups: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for name, header in folder.ggufs.items():
        count, number = header.metadata.get("split.count"), header.metadata.get("split.no")
        match = _PART.fullmatch(name)
        split = type(count) is int and type(number) is int and count > 1
        if not split and match is None:
            continue
        if not split or match is None or (int(match[2]), int(match[3])) != (number + 1, count):  # type: ignore[operator]
            yield SPLIT.found(f"its name and its keys differ: part {number} (counted from 0) of {count}", file=shown(name))
            continue
        groups[match[1], count][number] = name  # type: ignore[index]
    for (stem, count), parts in groups.items():
        first = shown(parts[min(parts)])
        if missing := [n for n in range(min(count, 1 << 16)) if n not in parts]:
            example = f"{shown(stem)}-{missing[0] + 1:05d}-of-{count:05d}.gguf"
            yield SPLIT.found(f"{len(missing)} of {count} parts are not there, e.g. {example}", file=first,
                              severity="unknown" if folder.single else None)  # fmt: skip
            continue
        headers = [folder.ggufs[parts[n]] for n in range(count)]
        wanted = {h.metadata.get("split.tensors.count") for h in headers} - {None}
        names = [t.name for h in headers for t in h.tensors]
        if len(wanted) > 1 or (wanted and next(iter(wanted)) != len(names)) or len(set(names)) != len(names):
            stated = ", ".join(sorted(map(str, wanted))) or "no number"
            yield SPLIT.found(f"{len(names)} tensors in {count} parts, {len(set(names))} different names; stated: {stated}",
                              file=first)  # fmt: skip
        yield from gguf_parts.findings((t for h in headers for t in h.tensors), headers[0].metadata, first)
