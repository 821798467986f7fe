"""The tokenizer of a Hugging Face folder as GGUF metadata: the inverse of :mod:`.gguf_tokenizer`.

A byte-level BPE tokenizer goes by the name of how it cuts text (``tokenizer.ggml.pre``); the name is looked up by what
``tokenizer.json`` says it does, never by the model's name, and one that no name fits is refused. llama.cpp never applies
the NFC normalisation of Qwen, so that is not compared.

A SentencePiece tokenizer needs a score for every piece. They are taken from ``tokenizer.model`` where the folder has it;
else the order of the merges in ``tokenizer.json`` gives scores by which llama.cpp merges in that very order.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedModel
from ..storage import read_json
from .gguf_tokenizer import _PRE, SPACE, TURN_ENDS
from .gguf_write import Typed, Value

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_HINT = "convert it with llama.cpp's own convert_hf_to_gguf.py"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Metadata of the tokenizer, and the texts at which generation stops."""

    metadata: dict[str, Value]
    stops: tuple[str, ...]


def vocabulary_metadata(folder: Path, rows: int, config: Mapping[str, Any], chat_template: str | None) -> Vocabulary:
    """The ``tokenizer.*`` metadata of the model in ``folder``, whose embedding has ``rows`` rows.

    Raises:
        UnsupportedModel: a tokenizer that GGUF has no name for, or that is not BPE.
        FormatError: ``tokenizer.json`` is missing or malformed, or has tokens that the embedding lacks.
    """
    files = _Files(Path(folder), rows, config)
    if files.model.get("byte_fallback"):
        found = _sentencepiece(files)
    else:
        found = _byte_level(files)
    found |= {f"tokenizer.ggml.{name}_token_id": number for name, number in files.special.items()}
    found["tokenizer.ggml.add_bos_token"] = files.template_has("bos")
    found["tokenizer.ggml.add_eos_token"] = files.template_has("eos")
    stops = files.stops()
    extra = [i for i in stops if i != files.special.get("eos") and files.tokens[i] not in TURN_ENDS]
    if extra:
        found["tokenizer.ggml.eot_token_id"] = extra[0]
    if chat_template is not None:
        found["tokenizer.chat_template"] = chat_template
    return Vocabulary(found, tuple(files.tokens[i] for i in stops))


class _Files:
    """The folder's tokenizer files, checked as far as they are used."""

    def __init__(self, folder: Path, rows: int, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.path = folder / "tokenizer.json"
        if not self.path.is_file():
            raise FormatError("tokenizer.json is missing", where=folder, hint="save the tokenizer as a fast one first")
        self.json = _read(self.path)
        self.settings = _read(folder / "tokenizer_config.json")
        self.generation = _read(folder / "generation_config.json")
        self.model = self.part("model", dict)
        if self.model.get("type") != "BPE":
            raise UnsupportedModel(f"a {self.model.get('type')} tokenizer", where=self.path, hint=_HINT)
        added = self.json.get("added_tokens") or []
        if not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added):
            raise FormatError("added_tokens must be objects with content", where=self.path)
        self.added: dict[str, dict[str, Any]] = {t["content"]: t for t in added}
        self.vocab: dict[str, int] = {**self.part("vocab", dict, self.model), **{t["content"]: t["id"] for t in added}}
        self.tokens = [f"[PAD{i}]" for i in range(rows)]
        self.types = [_UNUSED] * rows
        base = self.model["vocab"]
        for token, number in list(self.vocab.items()):
            if type(number) is int and number >= rows and token not in base:
                del self.vocab[token]  # such as Gemma's token for images in a model that reads text only
                continue
            if type(number) is not int or not 0 <= number < rows:
                raise FormatError(f"token {token!r} has id {number!r}; the embedding has {rows} rows", where=self.path)
            self.tokens[number] = token
            entry = self.added.get(token)
            self.types[number] = _NORMAL if entry is None else _CONTROL if entry.get("special") else _USER_DEFINED
        self.special = self._special()

    def part(self, name: str, kind: type, of: Mapping[str, Any] | None = None) -> Any:
        value = (self.json if of is None else of).get(name)
        if not isinstance(value, kind):
            raise FormatError(f"{name!r} is missing or no {kind.__name__}", where=self.path)
        return value

    def _special(self) -> dict[str, int]:
        """GGUF's names of the special tokens and their ids: the tokenizer's own, else the config's."""
        found: dict[str, int] = {}
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            token = self.settings.get(f"{ours}_token")
            token = token.get("content") if isinstance(token, dict) else token
            number = self.vocab.get(token) if isinstance(token, str) else None
            if number is None:
                number = self.config.get(f"{ours}_token_id")
                number = number[0] if isinstance(number, list) and number else number
            if type(number) is int and 0 <= number < len(self.tokens):
                found[theirs] = number
        return found

    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's own, then those of the generation config."""
        named = self.generation.get("eos_token_id", self.config.get("eos_token_id"))
        ends = [self.special.get("eos"), *(named if isinstance(named, list) else [named])]
        return tuple(dict.fromkeys(i for i in ends if type(i) is int and 0 <= i < len(self.tokens)))

    def template_has(self, role: str) -> bool:
        """Whether the post-processor puts the begin or end token around a single text."""
        number = self.special.get(role)
        if number is None:
            return False
        for stage in _stages(self.json.get("post_processor"), "processors"):
            single = stage.get("single")
            if stage.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
                piece = single[0 if role == "bos" else -1]
                if isinstance(piece, dict) and (piece.get("SpecialToken") or {}).get("id") == self.tokens[number]:
                    return True
        return False

    def merges(self) -> list[str]:
        """Merges as GGUF writes them, the two pieces with a space between."""
        found = []
        for merge in self.part("merges", list, self.model):
            pair = merge if isinstance(merge, list) else str(merge).split(" ")
            if len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
                raise FormatError(f"merge {merge!r:.60} is not a pair", where=self.path)
            found.append(f"{pair[0]} {pair[1]}")
        return found


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}



def _stages(value: Any, name: str) -> list[dict[str, Any]]:
    """A stage of the pipeline as a flat list: nothing, one, or a ``Sequence`` of them."""
    if not isinstance(value, dict):
        return []
    if value.get("type") == "Sequence":
        inner = value.get(name)
        return [stage for part in (inner if isinstance(inner, list) else []) for stage in _stages(part, name)]
    return [value]


# -- byte-level BPE ----------------------------------------------------------------------------------------


def _byte_level(files: _Files) -> dict[str, Value]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_name(files),
        "tokenizer.ggml.tokens": Typed(files.tokens, "array", "str"),
        "tokenizer.ggml.token_type": Typed(files.types, "array", "i32"),
        "tokenizer.ggml.merges": Typed(files.merges(), "array", "str"),
    }


def _pre_name(files: _Files) -> str:
    """The name of the way in which the tokenizer cuts text before it merges."""
    normalizers = [s.get("type") for s in _stages(files.json.get("normalizer"), "normalizers")]
    stages = _stages(files.json.get("pre_tokenizer"), "pretokenizers")
    kinds = [s.get("type") for s in stages]
    digits = "Digits" in kinds and all(s.get("individual_digits") for s in stages if s.get("type") == "Digits")
    patterns = [s.get("pattern") for s in stages if s.get("type") == "Split"]
    split = patterns[0].get("Regex") if len(patterns) == 1 and isinstance(patterns[0], dict) else None
    known = (
        set(kinds) <= {"Digits", "Split", "ByteLevel"} and kinds[-1:] == ["ByteLevel"] and set(normalizers) <= {"NFC"}
        and len(kinds) == len(set(kinds)) and not stages[-1].get("add_prefix_space")
        and bool(stages[-1].get("use_regex", True)) == (not patterns)
    )  # fmt: skip
    ignore = bool(files.model.get("ignore_merges"))
    for name, pre in _PRE.items() if known else ():
        if (pre.split, pre.digits, pre.ignore_merges) == (split, digits, ignore) and (split or not patterns):
            return name
    what = json.dumps(files.json.get("pre_tokenizer"), ensure_ascii=False)
    raise UnsupportedModel(f"GGUF has no name that is known here for the pre-tokenizer {what:.300}", where=files.path,
                           hint=_HINT)  # fmt: skip


# -- SentencePiece -----------------------------------------------------------------------------------------


def _sentencepiece(files: _Files) -> dict[str, Value]:
    types = list(files.types)
    for i, token in enumerate(files.tokens):
        if _BYTE_PIECE.fullmatch(token):
            types[i] = _BYTE
    unknown = files.model.get("unk_token")
    if isinstance(unknown, str) and unknown in files.vocab:
        types[files.vocab[unknown]] = _UNKNOWN
    # what is searched for in the text as it is written must be spelled as it is written
    tokens = [t.replace(SPACE, " ") if types[i] == _USER_DEFINED else t for i, t in enumerate(files.tokens)]
    scores = _scores_of_model(files) or _scores_of_merges(files)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": Typed(tokens, "array", "str"),
        "tokenizer.ggml.scores": Typed(scores, "array", "f32"),
        "tokenizer.ggml.token_type": Typed(types, "array", "i32"),
        "tokenizer.ggml.add_space_prefix": _prefixes(files),
    }


def _prefixes(files: _Files) -> bool:
    """Whether a space is put before the text."""
    normalizers = _stages(files.json.get("normalizer"), "normalizers")
    if any(s.get("type") == "Prepend" for s in normalizers):
        return True
    cuts = _stages(files.json.get("pre_tokenizer"), "pretokenizers")
    return any(s.get("type") == "Metaspace" and s.get("prepend_scheme", "always") != "never" for s in cuts)


def _scores_of_merges(files: _Files) -> list[float]:
    """Scores by which llama.cpp, which joins the pair whose result scores best, merges in the order of the merges."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(files.merges()):
        first.setdefault(merge.replace(" ", ""), rank)
    last = float(len(first))
    ranks = {token: float(i) for i, token in enumerate(sorted(first, key=first.__getitem__))}
    return [-ranks.get(token, last) if files.types[i] == _NORMAL else 0.0 for i, token in enumerate(files.tokens)]


def _scores_of_model(files: _Files) -> list[float] | None:
    """Scores out of ``tokenizer.model``, or ``None`` where there is none."""
    path = files.folder / "tokenizer.model"
    if not path.is_file():
        return None
    scores = [0.0] * len(files.tokens)
    seen = 0
    for piece, score in _pieces(path.read_bytes(), path):
        number = files.vocab.get(piece)
        if number is not None:
            scores[number] = score
            seen += 1
    if seen < len(files.model["vocab"]) // 2:
        raise FormatError("tokenizer.model and tokenizer.json hold different vocabularies", where=path)
    return scores


def _pieces(data: bytes, where: Path) -> list[tuple[str, float]]:
    """Pieces and scores of a SentencePiece model: a protobuf whose repeated field 1 is (1: text, 2: fp32 score)."""
    found = []
    for field, raw in _fields(data, where):
        if field == 1 and isinstance(raw, bytes):
            inner = dict(_fields(raw, where))
            text, score = inner.get(1, b""), inner.get(2, bytes(4))
            if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
                raise FormatError("not a SentencePiece model", where=where)
            found.append((text.decode(errors="replace"), float(struct.unpack("<f", score)[0])))
    return found


def _fields(data: bytes, where: Path) -> list[tuple[int, int | bytes]]:
    """The fields of one protobuf message: number, and an integer or the raw bytes."""
    found: list[tuple[int, int | bytes]] = []
    pos = 0
    while pos < len(data):
        key, pos = _varint(data, pos, where)
        kind = key & 7
        if kind == 0:
            value, pos = _varint(data, pos, where)
            found.append((key >> 3, value))
            continue
        if kind == 2:
            length, pos = _varint(data, pos, where)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise FormatError("not a SentencePiece model", where=where)
        if pos + length > len(data):
            raise FormatError("the SentencePiece model ends early", where=where)
        found.append((key >> 3, data[pos : pos + length]))
        pos += length
    return found


def _varint(data: bytes, pos: int, where: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if pos >= len(data):
            break
        byte = data[pos]
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, pos
    raise FormatError("not a SentencePiece model", where=where)
