"""Vocabularies that are lists of byte strings by rank: tiktoken's files and Mistral's ``tekken.json``."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator
from typing import Any

from ...errors import LimitExceeded
from ...found import Finding
from ..items import Folder, Item
from ..listing import shown
from ..rules import Rule
from .vocabulary import is_words

TWICE = Rule(
    "ranks-twice", "broken", "Two tokens with one rank, or one token with two",
    "Readers keep the first or the last: what the model reads is not what another program reads.",
    "Fetch the vocabulary again from its publisher.",
)  # fmt: skip
UNREADABLE = Rule(
    "ranks-unreadable", "broken", "A list of ranks with entries that can't be read",
    "Every line is a byte string in Base64 and its rank. Readers stop, or leave the entry out.",
    "Fetch the vocabulary again from its publisher.",
)  # fmt: skip
SPELLED = Rule(
    "ranks-spelled-otherwise", "suspicious", "A token is spelled otherwise than its bytes",
    "The bytes count, and the text beside them is what a reader of the file sees: another word is read than it seems.",
    "Compare with the vocabulary of the base model.",
)  # fmt: skip
TOO_LARGE = Rule(
    "ranks-too-large", "unknown", "A list of ranks too large to be checked",
    "No known vocabulary has a million tokens, or takes 64 MiB.",
    "Find out what it is for; compare with the vocabulary of the base model.",
)  # fmt: skip
WORD = Rule(
    "ranks-special-word", "suspicious", "An ordinary word is among the special tokens",
    "Special tokens are left out when the model's answer is turned into text, and text that holds them is refused or cut "
    "otherwise: the word disappears.",
    "Compare with the vocabulary of the base model; no family marks words.",
)  # fmt: skip
RULES = (TWICE, UNREADABLE, SPELLED, TOO_LARGE, WORD)
LARGEST = 1 << 26  # bytes
MOST = 1 << 20  # tokens

Entry = tuple[bytes, int, str | None]


def check_ranks(folder: Folder) -> Iterator[Finding]:
    """Findings about every such vocabulary of the folder."""
    for item in folder.items.values():
        tekken = item.basename == "tekken.json"
        if not (tekken or item.basename.endswith(".tiktoken")):
            continue
        try:
            if item.size > LARGEST:
                raise LimitExceeded(f"{item.size} bytes")
            data = _parsed(item) if tekken else None
            entries = _tekken(data) if tekken else _tiktoken(item)
        except LimitExceeded as error:
            yield TOO_LARGE.found(error.message, file=shown(item.name))
            continue
        if isinstance(entries, str):
            yield UNREADABLE.found(entries, file=shown(item.name))
        elif entries:
            yield from _judged(entries, shown(item.name))
        if tekken:
            yield from _special(data, shown(item.name))


def _judged(entries: list[Entry], file: str) -> Iterator[Finding]:
    ranks: dict[int, bytes] = {}
    tokens: dict[bytes, int] = {}
    twice = [(token, rank) for token, rank, _ in entries
             if ranks.setdefault(rank, token) != token or tokens.setdefault(token, rank) != rank]  # fmt: skip
    if twice:
        token, rank = twice[0]
        there = f"{ranks[rank]!r:.60} has it as well" if ranks[rank] != token else f"it has {tokens[token]} as well"
        yield TWICE.found(f"{len(twice)} entries, e.g. {token!r:.60} has the rank {rank}: {there}", file=file)
    other = [(token, text) for token, _, text in entries if text is not None and _text(token) not in (None, text)]
    if other:
        token, text = other[0]
        yield SPELLED.found(f"{len(other)} tokens, e.g. {token!r:.60} is spelled {text!r:.60}", file=file,
                            evidence="; ".join(f"{a!r:.40}: {b!r:.40}" for a, b in other[:12]))  # fmt: skip


def _special(data: Any, file: str) -> Iterator[Finding]:
    """Words among the special tokens of a ``tekken.json``."""
    rows = data.get("special_tokens") if isinstance(data, dict) else None
    named = [row.get("token_str") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    words = [text for text in named if isinstance(text, str) and is_words(text)]
    if words:
        yield WORD.found(f"{len(words)} of them, e.g. {words[0]!r:.60}", file=file, place="$.special_tokens",
                         evidence=", ".join(f"{word!r:.40}" for word in words[:12]))  # fmt: skip


def _text(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None  # part of a letter


def _tiktoken(item: Item) -> list[Entry] | str:
    found: list[Entry] = []
    for number, line in enumerate(io.BytesIO(item.read(LARGEST)), 1):
        if not line.strip():
            continue
        if len(found) >= MOST:
            raise LimitExceeded(f"more than {MOST} tokens")
        try:
            token, rank = line.split()
            found.append((base64.b64decode(token), int(rank), None))  # as readers do: one real file has a lone "="
        except (binascii.Error, ValueError):
            return f"line {number} is {line[:100]!r:.60}"
    return found


def _parsed(item: Item) -> Any:
    try:
        return json.loads(item.read(LARGEST))
    except (ValueError, RecursionError):
        return None  # said by what reads settings


def _tekken(data: Any) -> list[Entry] | str:
    if data is None:
        return []
    rows = data.get("vocab") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        return "there is no list of tokens in it"
    if len(rows) > MOST:
        raise LimitExceeded(f"more than {MOST} tokens")
    found: list[Entry] = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"entry {number} is {row!r:.60}"
        raw, rank, text = row.get("token_bytes"), row.get("rank"), row.get("token_str")
        try:
            token = base64.b64decode(raw, validate=True) if isinstance(raw, str) else None
        except (binascii.Error, ValueError):
            token = None
        if token is None or type(rank) is not int:
            return f"entry {number} is {row!r:.120}"
        found.append((token, rank, text if isinstance(text, str) else None))
    return found
