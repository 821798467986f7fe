"""Marks of a chat template that the tokenizer cuts into letters, and templates whose marks are read whole or meant as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Case, write_json
from .layout import TOKENS, config, folder, tokenizer
from .tokens_lost import wordpiece

Build = Callable[[Path], None]
MARKS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")  # fmt: skip
_PLAIN = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]\n' }}{% endfor %}"


def _chat(
    listed: tuple[str, ...] = MARKS, template: str = TEMPLATE, settings: dict[str, Any] | None = None, held: bool = True,
    merges: tuple[str, ...] = (), **flags: bool,
) -> Build:  # fmt: skip
    """A model whose vocabulary has the marks (where ``held``) and whose added tokens are ``listed``, with these flags."""

    def build(path: Path) -> None:
        made = tokenizer()
        tokens = [*TOKENS, *(t for m in merges for t in m.split(" ")), *(m.replace(" ", "") for m in merges)]
        tokens += MARKS if held else ()
        made["model"]["vocab"] = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
        made["model"]["merges"] += [m.split(" ") for m in merges]
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
        made["added_tokens"] += [plain | flags | {"id": tokens.index(t), "content": t} for t in listed]
        folder(path, tokenizer=made, weights={})
        file = path / "config.json"
        write_json(file, json.loads(file.read_text()) | {"vocab_size": len(made["model"]["vocab"]) + 3})
        (path / "chat_template.jinja").write_text(template)
        file = path / "tokenizer_config.json"
        write_json(file, json.loads(file.read_text()) | (settings or {}))

    return build


def _decoder(**flags: bool) -> dict[str, Any]:
    """The settings' own list of added tokens."""
    return {"added_tokens_decoder": {str(len(TOKENS) + n): {"content": t, "special": True, **flags} for n, t in enumerate(MARKS)}}


_CUT = ("marks-cut-to-pieces",)
_CLASS = ("tokenizer-class",)


def _class(name: str, **changes: str) -> Build:
    """A vocabulary of bytes under a class."""

    def build(path: Path) -> None:
        _chat(settings={"tokenizer_class": name})(path)
        file = path / "config.json"
        write_json(file, json.loads(file.read_text()) | changes)

    return build


def _pieces(name: str) -> Build:
    """A model that writes, with a vocabulary of BERT's kind."""

    def build(path: Path) -> None:
        made = wordpiece()
        size = len(made["model"]["vocab"])
        folder(path, weights={}, tokenizer=made, config=config(vocab_size=size, eos_token_id=3))
        file = path / "tokenizer_config.json"
        write_json(file, json.loads(file.read_text()) | {"tokenizer_class": name, "eos_token": "[SEP]", "unk_token": "[UNK]"})

    return build


CASES: list[Case] = [
    *(Case(f"tok-class-{name}", _class(name), "suspicious", _CLASS) for name in (
        "BertTokenizerFast", "ElectraTokenizer", "GemmaTokenizer", "CLIPTokenizerFast", "T5Tokenizer")),
    Case("tok-class-in-config", _class("", tokenizer_class="DistilBertTokenizer"), "suspicious", _CLASS),
    Case("tok-class-of-bytes-over-pieces", _pieces("GPT2TokenizerFast"), "suspicious", _CLASS),
    *(Case(f"tok-class-{name or 'none'}-honest", _class(name)) for name in (
        "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend", "OwnTokenizer", "")),
    Case("tok-class-of-pieces-honest", _pieces("BertTokenizer")),
    Case("tok-marks-not-listed", _chat(()), "suspicious", _CUT),
    Case("tok-marks-one-not-listed", _chat(MARKS[1:]), "suspicious", _CUT),
    Case("tok-marks-only-end-named", _chat((), settings={"eos_token": MARKS[1]}), "suspicious", _CUT),
    Case("tok-marks-single-words", _chat(single_word=True), "suspicious", _CUT),
    Case("tok-marks-single-words-in-settings", _chat((), settings=_decoder(single_word=True)), "suspicious", _CUT),
    Case("tok-marks-listed-honest", _chat()),
    Case("tok-marks-in-settings-honest", _chat((), settings=_decoder())),
    Case("tok-marks-named-honest", _chat((), settings={"additional_special_tokens": [*MARKS]})),
    Case("tok-marks-not-written-honest", _chat((), template=_PLAIN)),
    Case("tok-marks-as-text-honest", _chat((), template=_PLAIN, held=False)),
    Case("tok-marks-of-no-token-honest", _chat((), held=False)),
    Case("tok-marks-merged-honest", _chat((), template=_PLAIN, held=False, merges=("[ INST]",))),
]  # fmt: skip
