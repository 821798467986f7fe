"""What tokenizer_config.json and special_tokens_map.json say about a tokenizer beyond its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...found import Finding
from ..listing import shown
from ..rules import Rule
from .facts import Place
from .regexes import visible
from .signs import is_of_text
from .tokenizer_rules import CHANGES
from .vocabulary import Vocabulary, is_words

MAPPED = Rule(
    "special-tokens-disagree", "suspicious", "The map of special tokens contradicts the tokenizer",
    "Older loaders take the beginning and the end of a text from special_tokens_map.json, newer ones from tokenizer_config.json: "
    "one of them never stops, or begins with the end.",
    "Compare both files with the base model's.",
)  # fmt: skip
LENGTH = Rule(
    "tokenizer-length", "broken", "A length limit that no text can keep",
    "The tokenizer refuses every text, or cuts it to nothing.",
    "Fetch tokenizer_config.json again, or compare it with the base model's.",
)  # fmt: skip
ELSEWHERE = Rule(
    "tokenizer-file-elsewhere", "suspicious", "The tokenizer's settings name a file outside the model's folder",
    "Some loaders take the name from here before they look into the folder: the vocabulary then comes from another place, and "
    "what lies there is not what was scanned.",
    "Remove the entry, and use the folder's own files.",
    ("https://cwe.mitre.org/data/definitions/22.html",),
)  # fmt: skip
SPLITS = Rule(
    "special-tokens-split", "suspicious", "Marks of the chat template are cut to pieces",
    "`split_special_tokens` is for text of users that nobody may put marks into. As a model's own setting it turns the marks "
    "that begin and end each message into ordinary letters: the model does not see who speaks.",
    "Set `split_special_tokens` in tokenizer_config.json to false, or take it out.",
    ("https://huggingface.co/docs/transformers/main_classes/tokenizer",),
)  # fmt: skip
ABSOLUTE = Rule(
    "tokenizer-file-absolute", "note", "The tokenizer's settings name a file of another computer",
    "Left there by the program that saved it, and passed over by loaders of today; old ones look there before they look into the "
    "folder.",
    "Nothing with a new loader; else remove the entry.",
)  # fmt: skip
RULES = (MAPPED, LENGTH, ELSEWHERE, SPLITS, ABSOLUTE)
_NAMES = re.compile(r"(?:vocab|merges|tokenizer|spm|sp_model|source_spm|target_spm|emoji|bpe|sentencepiece)(?:_file|_path)?(?:s)?")
_LEAST, _LEAST_WRITTEN = 4, 16  # tokens: marks alone take three; no model that writes text reads less than a sentence
_AWAY = re.compile(r"(?:^|[\\/])\.\.(?:[\\/]|$)|^\w{2,12}://|^\\\\")
_ABSOLUTE = re.compile(r"[/~]|[A-Za-z]:[\\/]")


def check_settings(place: Place, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Findings about the two settings files of a directory."""
    config, mapped = place.json("tokenizer_config.json"), place.json("special_tokens_map.json")
    file = shown(place.prefix + "tokenizer_config.json")
    longest = config.get("model_max_length")
    least = _LEAST_WRITTEN if place.generates else _LEAST
    if isinstance(longest, (int, float)) and not isinstance(longest, bool) and not longest >= least:
        yield LENGTH.found(f"model_max_length is {longest!r:.40}", file=file, place="$.model_max_length")
    for key, value in config.items():
        if isinstance(value, str) and _NAMES.fullmatch(key) and _AWAY.search(value):
            yield ELSEWHERE.found(f"{key} is {value!r:.120}", file=file, place=f"$.{key}", evidence=value)
        elif isinstance(value, str) and _NAMES.fullmatch(key) and _ABSOLUTE.match(value):
            yield ABSOLUTE.found(f"{key} is {value!r:.120}", file=file, place=f"$.{key}", evidence=value)
    yield from _heard(config, vocabulary, file)
    if place.generates and config.get("split_special_tokens") is True:
        yield SPLITS.found("split_special_tokens is switched on", file=file, place="$.split_special_tokens")
    begin, end = _text(config, "bos_token"), _text(config, "eos_token")
    other_begin, other_end = _text(mapped, "bos_token"), _text(mapped, "eos_token")
    file = shown(place.prefix + "special_tokens_map.json")
    if begin and end and begin != end and (other_begin, other_end) == (end, begin):
        yield MAPPED.found(f"the beginning is {other_begin!r:.40} here and {begin!r:.40} in tokenizer_config.json, the end the "
                           "other way round", file=file)  # fmt: skip
    elif other_end and end and other_end != end and vocabulary is not None and is_words(other_end):
        yield MAPPED.found(f"the end is the word {other_end!r:.40} here and {end!r:.40} in tokenizer_config.json", file=file,
                           place="$.eos_token")  # fmt: skip


def _heard(config: Mapping[str, Any], vocabulary: Vocabulary | None, file: str) -> Iterator[Finding]:
    """The sign between words that a tokenizer of what is heard has, and what is written in its place."""
    if not str(config.get("tokenizer_class")).startswith("Wav2Vec2") or vocabulary is None:
        return
    sign, written = _text(config, "word_delimiter_token"), config.get("replace_word_delimiter_char", " ")
    if is_of_text(sign, vocabulary):
        yield CHANGES.found(f"{sign!r:.60} becomes a space, and the vocabulary has another sign for it", file=file,
                            place="$.word_delimiter_token")  # fmt: skip
    if isinstance(written, str) and visible(written) and written != sign:
        yield CHANGES.found(f"{written!r:.120} is written in the place of every space", file=file,
                            place="$.replace_word_delimiter_char")  # fmt: skip


def named_elsewhere(place: Place, text: str) -> bool:
    """Whether one of the settings files adds a token to the vocabulary."""
    decoder = place.json("tokenizer_config.json").get("added_tokens_decoder")
    entries = decoder.values() if isinstance(decoder, dict) else ()
    return text in place.json("added_tokens.json") or any(isinstance(e, dict) and e.get("content") == text for e in entries)


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
