"""Tokenizers whose model reads words as unknown or leaves letters out, or whose decoder takes other letters for bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Case, write_json
from .layout import config, folder

Build = Callable[[Path], None]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ENDS = ("", "a", "ab", "tion", "ing", "ness", "ation", "able", "ment", "fulness", "isation", "less")
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(sign: str = "##", without: tuple[str, ...] = (), **model: Any) -> dict[str, Any]:
    """A vocabulary of BERT's kind: letters, words, further pieces."""
    words = [c + d + e for c in _LETTERS for d in "aeiou" for e in _ENDS]
    tokens = [*_SPECIAL, *_LETTERS, *(sign + c for c in _LETTERS), *words, *(sign + w for w in words)]
    vocabulary = {t: i for i, t in enumerate(t for t in dict.fromkeys(tokens) if t not in without)}
    marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    around = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]  # fmt: skip
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [marks | {"id": i, "content": t, "special": True} for i, t in enumerate(_SPECIAL)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": around, "pair": around + second,
                           "special_tokens": {t: {"id": t, "ids": [_SPECIAL.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")}},
        "decoder": {"type": "WordPiece", "prefix": sign, "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": sign, "max_input_chars_per_word": 100,
                  "vocab": vocabulary} | model,
    }  # fmt: skip


def _bytewise(**parts: Any) -> dict[str, Any]:
    """A vocabulary of letters that stand for bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = ["<pad>", "<s>", "</s>", *map(chr, plain), *(chr(256 + i) for i in range(256 - len(plain)))]
    merges = [["Ġ", c] for c in _LETTERS] + [["Ġ" + c, d] for c in _LETTERS[:12] for d in "aeiou"]
    tokens += ["".join(m) for m in merges]
    rule = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "vocab": {t: i for i, t in enumerate(tokens)},
             "merges": merges}  # fmt: skip
    model |= parts.pop("model", {})
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": rule, "decoder": rule,
            "post_processor": None, "model": model,
            "added_tokens": [marks | {"id": i, "content": t, "special": True} for i, t in enumerate(tokens[:3])]} | parts


def _merging(change: Callable[[list[list[str]]], list[list[str]]] = list, **parts: Any) -> dict[str, Any]:
    """The same with more merges, which are changed while the vocabulary is not."""
    made = _bytewise()
    merges = [["Ġ", c] for c in _LETTERS] + [["Ġ" + c, d] for c in _LETTERS for d in "aeiou"]
    merges += [[m[0] + m[1], "n"] for m in merges[26:]]
    tokens = [*list(made["model"]["vocab"])[: 3 + 256], *("".join(m) for m in merges)]
    return _bytewise(model={"vocab": {t: i for i, t in enumerate(tokens)}, "merges": change(merges), **parts})


def _plain() -> dict[str, Any]:
    """A model of letters that stand for themselves."""
    tokens = ["<pad>", "<s>", "</s>", " ", *_LETTERS, *map(chr, range(0xE0, 0x100))]
    return {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}


def _of(made: dict[str, Any], **settings: Any) -> Build:
    """A folder with a tokenizer; one of WordPiece belongs to a model that does not write."""
    size = len(made["model"]["vocab"])
    kind = {} if made["model"]["type"] == "BPE" else {"architectures": ["LlamaModel"]}

    def build(path: Path) -> None:
        folder(path, weights={}, config=config(vocab_size=size, **kind), tokenizer=made)
        if settings:
            file = path / "tokenizer_config.json"
            write_json(file, (json.loads(file.read_text()) if file.exists() else {}) | settings)

    return build


def _swapped() -> dict[str, Any]:
    made = wordpiece()
    pair = made["post_processor"]["pair"]
    made["post_processor"]["pair"] = [pair[0], pair[3], pair[2], pair[1], pair[4]]
    return made


_RULES = ("tokenizer-loses-text",)
_SIGNED = {"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": "always", "split": True}
CASES: list[Case] = [
    Case("tok-ending-nowhere", _of(_bytewise(model={"end_of_word_suffix": "Ġ!"})), "suspicious", _RULES),
    Case("tok-ending-of-letters", _of(_bytewise(model={"end_of_word_suffix": "a"})), "suspicious", ("tokenizer-changes-text",)),
    Case("tok-further-sign-nowhere", _of(_bytewise(model={"continuing_subword_prefix": "@@"})), "suspicious",
         (*_RULES, "merges-invalid")),
    Case("tok-decoder-takes-sign-for-space", _of(_bytewise(decoder=_SIGNED)), "suspicious", _RULES),
    Case("tok-decoder-ending", _of(_bytewise(decoder={"type": "BPEDecoder", "suffix": "Ġ"})), "suspicious", _RULES),
    Case("tok-bytes-by-sign-alone", _of(_bytewise(pre_tokenizer=_SIGNED)), "suspicious", _RULES),
    Case("tok-decoder-of-bytes-alone", _of(_bytewise(normalizer={"type": "Lowercase"}, pre_tokenizer=None, model=_plain())),
         "suspicious", _RULES),
    Case("tok-longest-word", _of(wordpiece(max_input_chars_per_word=3)), "suspicious", _RULES),
    Case("tok-longest-word-of-eight", _of(wordpiece(max_input_chars_per_word=8)), "suspicious", _RULES),
    Case("tok-other-sign", _of(wordpiece(continuing_subword_prefix="@@")), "suspicious", _RULES),
    Case("tok-no-sign", _of(wordpiece(continuing_subword_prefix="")), "suspicious", _RULES),
    Case("tok-letters-gone", _of(wordpiece(without=("##x", "##n"))), "suspicious", _RULES),
    Case("tok-first-letters-gone", _of(wordpiece(without=("x", "n"))), "suspicious", _RULES),
    Case("tok-second-text-first", _of(_swapped()), "suspicious", ("tokenizer-template",)),
    Case("tok-length-one", _of(_bytewise(), model_max_length=1), "broken", ("tokenizer-length",)),
    Case("tok-merges-cut", _of(_merging(lambda m: m[:-80])), "suspicious", ("tokens-unreachable",)),
    Case("tok-merges-thinned", _of(_merging(lambda m: m[:156] + m[156::2])), "suspicious", ("tokens-unreachable",)),
    Case("tok-merges-out-of-order", _of(_merging(lambda m: m[26:] + m[:26])), "suspicious", ("tokens-unreachable",)),
    Case("tok-merges-honest", _of(_merging())),
    Case("tok-merges-few-less-honest", _of(_merging(lambda m: m[:-12]))),
    Case("tok-merges-every-way-honest", _of(_merging(lambda m: [*m, *m[26:66]]))),
    Case("tok-merges-whole-words-honest", _of(_merging(lambda m: m[:-80], ignore_merges=True))),
    Case("tok-bytes-honest", _of(_bytewise(), model_max_length=64)),
    Case("tok-wordpiece-honest", _of(wordpiece())),
    Case("tok-wordpiece-other-sign-honest", _of(wordpiece("@@"))),
    Case("tok-wordpiece-long-words-honest", _of(wordpiece(max_input_chars_per_word=50))),
]  # fmt: skip
