"""Decoders that take signs of the text for signs of the vocabulary, and vocabularies that are made with such signs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Case, write_json
from .honest_odd import hearing
from .layout import TOKENS, config, folder, tokenizer

Build = Callable[[Path], None]
_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _out(*rules: dict[str, Any]) -> Build:
    """A model whose decoder goes on after the bytes."""
    return lambda path: folder(path, tokenizer=tokenizer(decoder={"type": "Sequence", "decoders": [_BYTES, *rules]})) and None


def _made_with(decoder: dict[str, Any], before: str = "", behind: str = "", *more: str, **changes: Any) -> Build:
    """A vocabulary of letters, each once as it is and once with a sign."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *more, *_LETTERS, *(before + c + behind for c in _LETTERS)]

    def build(path: Path) -> None:
        made = tokenizer(decoder=decoder, pre_tokenizer={"type": "WhitespaceSplit"}, **changes)
        made["model"] |= {"vocab": {t: i for i, t in enumerate(dict.fromkeys(tokens))}, "merges": []}
        if behind:
            made["model"]["end_of_word_suffix"] = behind
        size = len(made["model"]["vocab"])
        folder(path, weights={}, tokenizer=made, config=config(vocab_size=size, architectures=["LlamaModel"]))

    return build


def _heard(letters: str = _LETTERS, **settings: Any) -> Build:
    """A model that hears; its tokenizer's settings changed."""

    def build(path: Path) -> None:
        hearing(letters)(path)
        file = path / "tokenizer_config.json"
        write_json(file, json.loads(file.read_text()) | settings)

    return build


def _ctc(**changes: Any) -> dict[str, Any]:
    return {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True} | changes


_NAME = ("tokenizer-changes-text", "tokenizer-drops-text")
_HOSTILE = {
    "ending-is-a-dot": {"type": "BPEDecoder", "suffix": "."}, "ending-is-at": {"type": "BPEDecoder", "suffix": "@@"},
    "ending-is-a-tag": {"type": "BPEDecoder", "suffix": "</b>"},
    "space-is-a-hyphen": {"type": "Metaspace", "replacement": "-", "prepend_scheme": "never", "split": True},
    "piece-is-a-heading": {"type": "WordPiece", "prefix": "##", "cleanup": False},
    "piece-is-a-hyphen": {"type": "WordPiece", "prefix": "-", "cleanup": False},
    "heading-replaced": {"type": "Replace", "pattern": {"String": "##"}, "content": ""},
    "hyphen-replaced": {"type": "Replace", "pattern": {"String": "-"}, "content": " "},
    "minus-stripped": {"type": "Strip", "content": "-", "start": 1, "stop": 0},
}  # fmt: skip
assert "." in TOKENS
CASES: list[Case] = [
    *(Case(f"tok-out-{name}", _out(rule), "suspicious", _NAME) for name, rule in _HOSTILE.items()),
    Case("tok-in-space-is-a-hyphen", lambda p: folder(p, tokenizer=tokenizer(pre_tokenizer={
        "type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "-", "prepend_scheme": "never", "split": True},
                                              _BYTES]})) and None, "suspicious", _NAME),
    Case("tok-heard-hyphen-is-space", _made_with(_ctc(word_delimiter_token="-"), "", "", "|", "-"), "suspicious", _NAME),
    Case("tok-heard-dot-is-silence", _made_with(_ctc(pad_token="."), "", "", "|", ".", "-"), "suspicious", _NAME),
    Case("tok-heard-setting-dot-is-space", _heard(_LETTERS + ".", word_delimiter_token="."), "suspicious", _NAME),
    Case("tok-heard-setting-space-is-word", _heard(replace_word_delimiter_char=" not "), "suspicious", _NAME),
    Case("tok-signs-end-of-word-honest", _made_with({"type": "BPEDecoder", "suffix": "</w>"}, "", "</w>")),
    Case("tok-signs-own-ending-honest", _made_with({"type": "BPEDecoder", "suffix": "@"}, "", "@")),
    Case("tok-signs-dotted-pieces-honest", _made_with({"type": "WordPiece", "prefix": "·", "cleanup": True}, "·")),
    Case("tok-signs-one-for-spaces-honest", _made_with(
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": False}, "", "", "_")),
    Case("tok-heard-bar-honest", _made_with(_ctc(), "", "", "|", ".", "-")),
    Case("tok-heard-star-honest", _made_with(_ctc(word_delimiter_token="*"), "", "", "*", ".")),
    Case("tok-heard-settings-honest", _heard(_LETTERS + ".-", replace_word_delimiter_char=" ")),
]  # fmt: skip
