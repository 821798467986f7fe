"""Tokenizers: ids against embeddings, tokens that hide or drop text, rules that rewrite it, carriers that disagree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import FormatError, LimitExceeded, WeightsmithError, stated
from ...found import Finding
from ..items import Folder, Scanner
from ..listing import shown
from ..rules import Rule
from . import marks_whole, ranks, responses, token_settings, tokenizer_class, tokenizer_losses, tokenizer_rules
from .added import RULES as ADDED
from .added import WORDS, check_added
from .facts import Place, places
from .tokenizer_rules import check_charsmap, check_rules
from .vocabulary import (
    NORMAL,
    Vocabulary,
    exchanged,
    from_gguf,
    from_tokenizer_json,
    is_words,
    looks_special,
    merge_pairs,
    readable,
    sentencepiece_part,
    vocabularies,
)

INVALID = Rule(
    "tokenizer-invalid", "broken", "A tokenizer file without a usable vocabulary",
    "The tokenizer's library refuses it, or guesses.",
    "Fetch the tokenizer again from its publisher.",
)  # fmt: skip
BEYOND = Rule(
    "token-without-embedding", "broken", "Tokens that the model has no embedding for",
    "A text that contains one stops the model with an error of the device, or makes a careless program read memory that is not "
    "the model's.",
    "Use the tokenizer that belongs to these weights.",
    ("https://cwe.mitre.org/data/definitions/125.html",),
)  # fmt: skip
TWICE = Rule(
    "token-id-twice", "suspicious", "Two tokens have one id",
    "The model reads two texts as one, and which of them is written depends on the reader: a way to exchange words.",
    "Compare with the tokenizer of the base model.",
)  # fmt: skip
DISAGREE = Rule(
    "tokenizers-disagree", "suspicious", "Two tokenizer files give one token two ids",
    "One loader reads this file, another that one; each turns the same text into other tokens.",
    "Compare each with the base model's, and remove the one that is not.",
)  # fmt: skip
DIFFERENT = Rule(
    "tokenizers-differ", "note", "Two tokenizer files do not hold the same tokens",
    "What both hold agrees; one of them has more. Vocabularies that were extended in one file only look like this.",
    "Nothing, when you use one loader.",
)  # fmt: skip
MERGES = Rule(
    "merges-invalid", "broken", "Merges of tokens that do not exist",
    "The tokenizer's library refuses the file; another reader skips them and cuts text otherwise.",
    "Fetch the tokenizer again from its publisher.",
)  # fmt: skip
EXCHANGED = Rule(
    "token-ids-exchanged", "suspicious", "Tokens stand in each other's place",
    "A vocabulary of merges is numbered in the order of the merges. Here a few tokens have exchanged numbers and all others keep "
    "to the order: words were swapped, so that the model reads and writes one where the user sees the other.",
    "Use the tokenizer of the base model.",
)  # fmt: skip
WORD_ENDS = Rule(
    "gguf-end-is-a-word", "suspicious", "An ordinary token ends the answer",
    "Answers are cut off wherever the word comes, or never end because the real end token was exchanged for it.",
    "Compare the token with the base model's.",
)  # fmt: skip
RANDOM = Rule(
    "tokenizer-random", "suspicious", "The tokenizer cuts text at random",
    "Dropout belongs to training. The same prompt gives other tokens, and other answers, each time.",
    "Set the model's `dropout` in tokenizer.json to null.",
)  # fmt: skip
HOLES = Rule(
    "token-ids-missing", "note", "Ids within the vocabulary that no token has",
    "Honest vocabularies have reserved ids. A model that writes one of them writes nothing.",
    "Nothing, unless the base model's tokenizer has them.",
)  # fmt: skip
CUTS = Rule(
    "tokenizer-truncates", "note", "The tokenizer cuts off long texts by itself",
    "Usual for models that give embeddings; a model that writes text would not see the rest of a long prompt.",
    "Nothing for an embedding model; else set `truncation` in tokenizer.json to null.",
)  # fmt: skip
_MANY_LETTERS, _FEW_LETTERS = 60, 6
_VERSIONED = re.compile(r"tokenizer\.[\d.]+\.json")
_FILES = frozenset({"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
                    "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})  # fmt: skip
_SHOWN = 12
MOST_LATE = 4096  # markers for images and sounds, which a model without these towers has no embedding for
_LATE = re.compile(r"(?i)im(?:a)?ge?\b|image|audio|visi|video|speech|sound|pad|unused|reserved|extra|soft|patch|mask|boi|eoi")
_SHORTEST = 64  # tokens; no model that writes text was ever meant to read less
_MODELS = frozenset({"BPE", "Unigram", "WordPiece", "WordLevel"})


class Tokens(Scanner):
    """Every tokenizer of the folder."""

    name = "tokenizer"
    rules = (INVALID, BEYOND, TWICE, DISAGREE, DIFFERENT, *ADDED, MERGES, EXCHANGED, WORD_ENDS, RANDOM, HOLES, CUTS,
             *tokenizer_rules.RULES, *tokenizer_losses.RULES, *token_settings.RULES, *marks_whole.RULES,
             *tokenizer_class.RULES, *responses.RULES, *ranks.RULES)
    needs_bytes = False
    about = "Tokenizers: ids against embeddings, added and special tokens, merges, rules that rewrite text, files that disagree"

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Each directory's tokenizer files, then GGUF files."""
        for place in places(folder):
            yield from _place(place)
        listed = {p.prefix for p in places(folder)}
        others: dict[str, list[str]] = {}  # pipelines keep a tokenizer in a directory of its own
        for name in folder.items:
            head, slash, base = name.rpartition("/")
            if head + slash not in listed:
                others.setdefault(head + slash, []).append(base)
        for prefix, names in others.items():
            if not _FILES.isdisjoint(names):
                yield from _place(Place(folder, prefix, names))
        for name in folder.ggufs:
            yield from _gguf(folder, name)
        yield from ranks.check_ranks(folder)


def _place(place: Place) -> Iterator[Finding]:
    file = place.prefix + "tokenizer.json"
    found = list(vocabularies(place))
    for name in place.names:
        if _VERSIONED.fullmatch(name) and (other := from_tokenizer_json(place.json(name), place.prefix + name)) is not None:
            found.append(other)  # which the library takes in the place of tokenizer.json when its version fits
    if place.json("tokenizer.json") and (not found or found[0].source != file):
        yield INVALID.found("no model with a vocabulary", file=shown(file), place="$.model")
    for vocabulary in found:
        yield from check_vocabulary(vocabulary, place.rows, place.generates)
    for vocabulary in found:
        if vocabulary.kind == "sentencepiece":
            yield from _sentencepiece_rules(place, vocabulary.source)
    yield from _config_tokens(place, found[0] if found else None)
    yield from token_settings.check_settings(place, found[0] if found else None)
    yield from responses.check_responses(place)
    if found:
        yield from marks_whole.check_marks(place, found[0])
        yield from tokenizer_class.check_class(place, found[0])
        yield from _agree(place, found)


def check_vocabulary(vocabulary: Vocabulary, rows: int | None, writes: bool = False) -> Iterator[Finding]:
    """Findings about one carrier; ``rows`` are the embeddings' where they are known, ``writes`` says that the model writes text."""
    file = shown(vocabulary.source)
    ids = list(vocabulary.base.values())
    if None in vocabulary.base or set(map(type, ids)) - {int} or (ids and min(ids) < 0):
        bad = next((t, i) for t, i in vocabulary.base.items() if t is None or type(i) is not int or i < 0)
        yield INVALID.found(f"token {bad[0]!r:.60} has the id {bad[1]!r:.40}", file=file, place="vocab")
        return
    yield from _doubles(vocabulary, ids, file)
    yield from _beyond(vocabulary, ids, rows, file)
    yield from _added(vocabulary, file, writes)
    if vocabulary.settings and vocabulary.kind != "gguf":
        yield from _merges(vocabulary, file)
        yield from check_rules(vocabulary, file, writes)
        yield from tokenizer_losses.check_losses(vocabulary, file, writes)
        yield from _modes(vocabulary, file, writes)


def _doubles(vocabulary: Vocabulary, ids: list[int], file: str) -> Iterator[Finding]:
    """One id for two tokens, two ids for one token, and ids that nothing has."""
    if not vocabulary.counted and len(set(ids)) != len(ids):
        by_id: dict[int, list[str]] = {}
        for token, number in vocabulary.base.items():
            by_id.setdefault(number, []).append(token)
        pairs = [(i, t) for i, t in by_id.items() if len(t) > 1]
        yield TWICE.found(f"{len(pairs)} ids have more than one token, e.g. {pairs[0][0]}: {pairs[0][1][0]!r:.40} and "
                          f"{pairs[0][1][1]!r:.40}", file=file, place="vocab",
                          evidence="; ".join(f"{i}: {', '.join(map(repr, t[:4]))}" for i, t in pairs[:_SHOWN]))  # fmt: skip
    if vocabulary.listed and vocabulary.listed != len(vocabulary.base) and vocabulary.kind != "gguf":
        yield TWICE.found(f"{vocabulary.listed - len(vocabulary.base)} tokens are listed twice", file=file, place="vocab",
                          severity="note")  # fmt: skip
    wanted = {a.id for a in vocabulary.added if type(a.id) is int}
    if vocabulary.counted:
        every = list(vocabulary.base)
        texts = {i: every[i] for i in wanted if 0 <= i < len(every)}
    else:
        texts = {i: t for t, i in vocabulary.base.items() if i in wanted} if wanted else {}
    taken: dict[int, str] = {}
    for added in vocabulary.added:
        if type(added.id) is not int or added.id < 0:
            yield INVALID.found(f"the added token {added.text!r:.60} has the id {added.id!r:.40}", file=file,
                                place="$.added_tokens")  # fmt: skip
            continue
        base = vocabulary.base.get(added.text)
        if base is not None and base != added.id:
            yield TWICE.found(f"{added.text!r:.60} has the id {base} in the vocabulary and {added.id} as an added token",
                              file=file, place="$.added_tokens")  # fmt: skip
        elif texts.get(added.id, added.text) != added.text:
            yield TWICE.found(f"the added token {added.text!r:.60} takes the id {added.id} of {texts[added.id]!r:.60}", file=file,
                              place="$.added_tokens")  # fmt: skip
        elif taken.setdefault(added.id, added.text) != added.text:
            yield TWICE.found(f"the added tokens {taken[added.id]!r:.60} and {added.text!r:.60} have the id {added.id}", file=file,
                              place="$.added_tokens")  # fmt: skip
    if vocabulary.counted and all(i < len(ids) for i in taken):
        return
    used = set(ids) | taken.keys()
    holes = (max(used) + 1 - len(used)) if used else 0
    if holes and vocabulary.source.endswith("tokenizer.json"):
        first = next(i for i in range(len(used) + 1) if i not in used)
        yield HOLES.found(f"{holes} ids have no token, from {first} on", file=file)


def _beyond(vocabulary: Vocabulary, ids: list[int], rows: int | None, file: str) -> Iterator[Finding]:
    """Ids past the last embedding."""
    if rows is None or vocabulary.kind == "gguf":
        return
    if ids and max(ids) >= rows:
        known = {a.text for a in vocabulary.added}
        shared = [t for t, i in vocabulary.base.items() if i >= rows]
        over = [t for t in shared if t not in known]
        if over:
            unused = vocabulary.types and all(vocabulary.types[vocabulary.base[t]] != NORMAL for t in over)
            yield BEYOND.found(f"{len(over)} tokens have ids beyond the {rows} embeddings, e.g. {over[0]!r:.60}", file=file,
                               evidence=", ".join(f"{t!r:.40}" for t in shared[:_SHOWN]), severity="note" if unused else None)
    late = [a for a in vocabulary.added if type(a.id) is int and a.id >= rows]
    if late:
        marked = all((a.special or vocabulary.is_marker(a.id)) and _LATE.search(a.text) for a in late)
        few = len(late) <= MOST_LATE and marked and max(a.id for a in late) < rows + len(late) + 64
        yield BEYOND.found(f"{len(late)} added tokens have ids beyond the {rows} embeddings, e.g. {late[0].text!r:.60} "
                           f"({late[0].id})", file=file, place="$.added_tokens", severity="note" if few else None,
                           evidence=", ".join(f"{a.text!r:.40}" for a in late[:_SHOWN]))  # fmt: skip


def _added(vocabulary: Vocabulary, file: str, writes: bool = False) -> Iterator[Finding]:
    """Added tokens by what they are spelled like."""
    entries = [(a.text, a.special, a.id) for a in vocabulary.added]
    if vocabulary.types and vocabulary.kind in ("gguf", "sentencepiece"):
        entries += [(t, vocabulary.types[i] in (2, 3), i) for t, i in vocabulary.base.items()
                    if i < len(vocabulary.types) and vocabulary.types[i] in (3, 4)]  # fmt: skip
    yield from check_added(entries, file, writes=writes and vocabulary.kind != "sentencepiece")


def _merges(vocabulary: Vocabulary, file: str) -> Iterator[Finding]:
    """Every merge joins two tokens into a third."""
    model = vocabulary.settings.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    if merges is None or vocabulary.kind != "BPE" or not isinstance(model, dict):
        return
    halves = vocabulary.halves
    if halves is None:
        yield MERGES.found("merges must be pairs of tokens", file=file, place="$.model.merges")
        return
    known = vocabulary.ids
    lost = set(halves).difference(known)
    if vocabulary.first_made is None:
        numbers = list(map(known.get, vocabulary.made))
        if None in numbers:
            lost.update(t for t in vocabulary.made if t not in known)
        yield from _order(vocabulary.base, numbers, file)
    # many vocabularies number single characters in the order of their bytes, others by how frequent they are
    letters, digits = ([i for c in map(chr, span) if type(i := known.get(c)) is int] for span in (range(33, 127), range(48, 58)))
    if len(letters) > _MANY_LETTERS:
        yield from _order(vocabulary.base, letters, file, most=_FEW_LETTERS)
    elif len(digits) == 10:
        yield from _order(vocabulary.base, digits, file, most=2)
    if lost:
        every = zip(halves[::2], halves[1::2], vocabulary.made, strict=True)
        at = next(i for i, three in enumerate(every) if not lost.isdisjoint(three))
        yield MERGES.found(f"{len(lost)} tokens of the merges are not in the vocabulary, e.g. {min(lost)!r:.60}", file=file,
                           place=f"$.model.merges[{at}]",
                           evidence=", ".join(f"{t!r:.40}" for t in sorted(lost)[:_SHOWN]))  # fmt: skip


def _order(ids: Mapping[str, Any], numbers: list[Any], file: str, most: int = 1 << 30) -> Iterator[Finding]:
    """Tokens that were exchanged among the numbers which the order of the merges, or of the bytes, gives; at most so many."""
    swapped = exchanged(numbers)
    if 0 < len(swapped) <= most:
        texts = {i: t for t, i in ids.items() if type(i) is int and i in swapped}
        named = "; ".join(f"{readable(texts[i])!r:.40} ({i}) in the place of {readable(texts[j])!r:.40} ({j})"
                          for j, i in swapped.items() if i in texts and j in texts)  # fmt: skip
        yield EXCHANGED.found(f"{len(swapped)} tokens have exchanged ids: {named:.160}", file=file, place="vocab", evidence=named)


def _modes(vocabulary: Vocabulary, file: str, writes: bool) -> Iterator[Finding]:
    """The kind of model and its unknown token, dropout, truncation; ``writes`` is whether the model writes text."""
    model = vocabulary.settings.get("model")
    if vocabulary.kind not in _MODELS:
        yield INVALID.found(f"a model of an unknown type, {vocabulary.kind!r:.60}", file=file, place="$.model.type")
    model = model if isinstance(model, dict) else {}
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown and unknown not in vocabulary.ids:
        yield INVALID.found(f"the unknown token {unknown!r:.60} is not in the vocabulary", file=file, place="$.model.unk_token",
                            severity="note" if vocabulary.kind == "BPE" else None)  # fmt: skip
    elif isinstance(unknown, str) and is_words(unknown) and readable(unknown).strip().casefold() not in ("unk", "unknown", "oov"):
        yield WORDS.found(f"what the vocabulary lacks is read as {unknown!r:.60}", file=file, place="$.model.unk_token")
    if isinstance(dropout := model.get("dropout"), (int, float)) and dropout:
        yield RANDOM.found(f"dropout is {dropout!r:.20}", file=file, place="$.model.dropout")
    if isinstance(truncation := vocabulary.settings.get("truncation"), dict):
        most = truncation.get("max_length")
        short = writes and isinstance(most, int) and most < _SHORTEST
        yield CUTS.found(f"texts are cut to {most!r:.20} tokens", file=file, place="$.truncation",
                         evidence=str(truncation)[:200], severity="suspicious" if short else None)  # fmt: skip


# -- carriers ------------------------------------------------------------------------------------------------


def _sentencepiece_rules(place: Place, source: str) -> Iterator[Finding]:
    """The map of characters that a SentencePiece model normalises and denormalises with."""
    data = place.folder.items[source].read(1 << 26)
    for number, at in ((3, "normalizer_spec"), (5, "denormalizer_spec")):
        try:
            spec = sentencepiece_part(data, number)
            raw = sentencepiece_part(spec, 2, whole=False) if spec else None
            if raw:
                yield from check_charsmap(raw, at, shown(source))
        except FormatError as error:
            yield tokenizer_rules.BROKEN_MAP.found(error.message, file=shown(source), place=at)


def _config_tokens(place: Place, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Tokens that tokenizer_config.json, special_tokens_map.json and added_tokens.json name."""
    pieces = place.json("tokenizer_config.json").get("sp_model_kwargs")
    if isinstance(pieces, dict) and pieces.get("enable_sampling"):
        yield RANDOM.found("sampling of pieces is switched on", file=shown(place.prefix + "tokenizer_config.json"),
                           place="$.sp_model_kwargs")  # fmt: skip
    for base in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        data = place.json(base)
        file = shown(place.prefix + base)
        named: list[tuple[str, bool, Any]] = []
        numbered: dict[str, Any] = {}
        decoder = data.get("added_tokens_decoder")
        for number, entry in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("content"), str):
                named.append((entry["content"], bool(entry.get("special")), number))
                numbered[entry["content"]] = int(number) if str(number).isdecimal() else number
        if base == "added_tokens.json":
            numbered = {t: i for t, i in data.items() if type(i) is int}
            named = [(t, False, i) for t, i in numbered.items()]
        yield from check_added(named, file, "$", place.generates)
        yield from check_added([(text, True, key) for key, text in _special_tokens(data)], file, "$")
        known = vocabulary.ids if vocabulary is not None else {}
        if vocabulary is not None and (wrong := {t: (i, known[t]) for t, i in numbered.items() if known.get(t, i) != i}):
            text, (here, there) = next(iter(wrong.items()))
            yield DISAGREE.found(f"{text!r:.60} has the id {here} here and {there} in {vocabulary.source}", file=file,
                                 evidence="; ".join(f"{t!r:.40}: {a} and {b}" for t, (a, b) in list(wrong.items())[:_SHOWN]))
        if place.rows is not None and (late := [t for t, i in numbered.items() if type(i) is int and i >= place.rows + MOST_LATE]):
            yield BEYOND.found(f"{late[0]!r:.60} has the id {numbered[late[0]]}, and there are {place.rows} embeddings", file=file)


def _special_tokens(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """``(key, text)`` of the special tokens that a settings file names."""
    for key, value in data.items():
        if not key.endswith(("_token", "_tokens")):
            continue
        several = isinstance(value, dict) and "content" not in value
        for entry in value if isinstance(value, list) else value.values() if several else [value]:
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str) and text:
                yield key, text


def _agree(place: Place, found: list[Vocabulary]) -> Iterator[Finding]:
    """The other carriers of a directory against the first."""
    first = found[0]
    for other in found[1:]:
        yield from compare_ids(first, other)
    merges = place.folder.items.get(place.prefix + "merges.txt")
    model = first.settings.get("model")
    if merges is not None and first.kind == "vocab" and merges.size < 1 << 26:
        lines = merges.read().decode("utf-8", "replace").split("\n")
        split = [p for line in lines if not line.startswith("#version") and len(p := line.rstrip("\r").split(" ")) == 2]
        yield from _order(first.base, list(map(first.base.get, map("".join, split))), shown(first.source))
    if merges is not None and isinstance(model, dict) and first.kind == "BPE":
        pairs = merge_pairs(model.get("merges"))
        try:
            lines = merges.text(1 << 26).split("\n")
        except (WeightsmithError, LimitExceeded):
            return
        kept = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
        ours = [" ".join(p) for p in pairs or []]
        if ours != kept:
            at = next((i for i, (a, b) in enumerate(zip(ours, kept, strict=False)) if a != b), min(len(ours), len(kept)))
            both = f"{ours[at] if at < len(ours) else 'the end'!r:.60} and {kept[at] if at < len(kept) else 'the end'!r:.60}"
            shorter = ours[: len(kept)] == kept or kept[: len(ours)] == ours
            rule = DIFFERENT if shorter else DISAGREE
            yield rule.found(f"merges.txt and {first.source} differ from merge {at} on: {both}", file=shown(merges.name))


def compare_ids(first: Vocabulary, other: Vocabulary) -> Iterator[Finding]:
    """Tokens to which two carriers give different ids; a SentencePiece model may be shifted as a whole."""
    if first.base == other.base:
        return
    theirs = other.base
    if other.types:
        theirs = {t: i for t, i in other.base.items() if other.types[i] == NORMAL}
    both = [(t, first.ids[t], i) for t, i in theirs.items() if t in first.ids and type(first.ids[t]) is type(i) is int]
    shifts = Counter(a - i for _, a, i in both)
    shift = shifts.most_common(1)[0][0] if both and other.types else 0
    wrong = [(t, a, i + shift) for t, a, i in both if a != i + shift]
    file = shown(other.source)
    if wrong:
        text, here, there = wrong[0]
        yield DISAGREE.found(f"{len(wrong)} tokens have other ids than in {first.source}, e.g. {text!r:.60}: {there} here and "
                             f"{here} there", file=file,
                             evidence="; ".join(f"{t!r:.40}: {b} and {a}" for t, a, b in wrong[:_SHOWN]))  # fmt: skip
    lone = len(theirs) - len(both)
    if lone:
        yield DIFFERENT.found(f"{lone} tokens of {other.source} are not in {first.source}", file=file)


# -- GGUF ----------------------------------------------------------------------------------------------------


def _gguf(folder: Folder, name: str) -> Iterator[Finding]:
    """The tokenizer of a GGUF file: arrays of one length, and against tokenizer.json beside it."""
    vocabulary = from_gguf(folder, name)
    metadata, file = folder.ggufs[name].metadata, shown(name)
    if vocabulary is None:
        return
    for key in ("token_type", "scores"):
        values = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(values, list) and len(values) != vocabulary.listed:
            yield INVALID.found(f"{len(values)} entries of {key} for {vocabulary.listed} tokens", file=file,
                                place=f"tokenizer.ggml.{key}")  # fmt: skip
            return
    yield from _added(vocabulary, file)
    for key in ("eos", "eot", "eom"):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        text = vocabulary.texts.get(number) if type(number) is int else None
        if type(number) is int and text is not None and vocabulary.types and vocabulary.types[number] == NORMAL and (
                not looks_special(text)):  # fmt: skip
            yield WORD_ENDS.found(f"{key} {number} is {readable(text)!r:.40}", file=file,
                                  place=f"tokenizer.ggml.{key}_token_id")  # fmt: skip
    merges = merge_pairs(metadata.get("tokenizer.ggml.merges"))
    if merges and metadata.get("tokenizer.ggml.model") == "gpt2":
        yield from _order(vocabulary.base, list(map(vocabulary.base.get, map("".join, merges))), file)
    raw = metadata.get("tokenizer.ggml.precompiled_charsmap")
    if isinstance(raw, list) and raw:
        try:
            yield from check_charsmap(bytes(b & 0xFF for b in raw), "tokenizer.ggml.precompiled_charsmap", file)
        except (FormatError, TypeError) as error:
            yield tokenizer_rules.BROKEN_MAP.found(stated(error)[:100], file=file, place="tokenizer.ggml.precompiled_charsmap")
    prefix = name.rpartition("/")[0]
    beside = from_tokenizer_json(folder.json_object(f"{prefix}/tokenizer.json" if prefix else "tokenizer.json"), "tokenizer.json")
    if beside is not None and vocabulary.types:
        normal = {t: i for t, i in vocabulary.base.items() if vocabulary.types[i] == NORMAL}
        wrong = [(t, i, beside.ids[t]) for t, i in normal.items() if t in beside.ids and beside.ids[t] != i]
        if wrong:
            yield DISAGREE.found(f"{len(wrong)} tokens have other ids than in tokenizer.json, e.g. {wrong[0][0]!r:.60}", file=file,
                                 evidence="; ".join(f"{t!r:.40}: {a} and {b}" for t, a, b in wrong[:_SHOWN]))  # fmt: skip
