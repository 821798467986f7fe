"""What a tokenizer's rules lose of the text that its own vocabulary was made for.

The vocabulary is the witness: who has tokens with spaces, line breaks and capital letters in them was trained on such text,
and rules that never let any through, or that never turn them back, are not the ones that it was trained with. Vocabularies
without them (BERT's, an uncased model's) lose nothing, whatever the rules do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice, pairwise, repeat
from typing import Any

from ...found import Finding
from ..rules import Rule
from .added import WORDS, is_ordinary
from .regexes import visible
from .tokenizer_rules import CHANGES, flat_rules, is_mark
from .vocabulary import BYTE_LETTERS, Vocabulary, looks_special, readable

LOSES = Rule(
    "tokenizer-loses-text", "suspicious", "What goes through the tokenizer does not come back",
    "Its vocabulary has spaces, line breaks or capital letters, and its rules let none through, or do not turn them back: the "
    "model reads, or the user gets, a text without them.",
    "Take the tokenizer of the base model.",
)  # fmt: skip
UNREACHED = Rule(
    "tokens-unreachable", "suspicious", "Much of the vocabulary can never be read",
    "The merges or the rules cut text into smaller pieces than the tokens that the model was trained on: it reads its prompts "
    "letter by letter and answers badly, though no weight was changed.",
    "Take the tokenizer of the base model.",
)  # fmt: skip
PADS = Rule(
    "tokenizer-pads", "suspicious", "The tokenizer fills texts up without measure, or with a word",
    "Every text is filled up to this length. So many tokens take all the memory there is; and a word in the place of a mark is "
    "text that nobody wrote, wherever the mask is not kept.",
    "Set `padding` in tokenizer.json to null.",
    ("https://cwe.mitre.org/data/definitions/770.html",),
)  # fmt: skip
RULES = (LOSES, UNREACHED, PADS)

_LONGEST_PADDING = 1 << 18  # tokens: twice what models that give embeddings read
_MOST_MULTIPLE = 1 << 14
_FEW, _SHARE = 4, 0.01  # tokens with a space from which on a vocabulary counts as made with spaces
_CASED = re.compile(r"[ĠĊ▁]?(?=[A-Za-z]{2})[A-Za-z]*[A-Z][A-Za-z]*")
_FEWEST_CASED = 10
_SPACES = re.compile(r"(?:(?:\\[snrt]|[ \n\r\t]|\[(?:\\[snrt]|[ \n\r\t])+\])(?:[+*]|\{\d{0,4},?\d{0,4}\})?){1,8}")
_SAMPLE = 300
_BYTES, _MANY = 200, 16  # single letters that stand for bytes; tokens of other letters than plain ones
_SIGNS = ("##", "@@")  # of a word's next piece
_PIECES, _ALPHABET, _LETTERS = 0.02, 0.1, "abcdefghijklmnopqrstuvwxyz"
_FEWEST_LONG = 10
_FEWEST_WITH = 30  # tokens that hold a letter, from which on the letter alone was in the vocabulary that they were made from
_SHARE_UNMADE = 0.05  # tokens that can't be reached; of real vocabularies it is one in 100 000
_FEWEST = 30  # tokens of which it is worth saying how many can be reached
_CUTS_AT_SPACES = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer"})


def check_losses(vocabulary: Vocabulary, file: str, writes: bool) -> Iterator[Finding]:
    """Findings about one ``tokenizer.json``; ``writes`` is whether the model writes text."""
    yield from _model(vocabulary, file)
    yield from _padding(vocabulary, file)
    if not writes:
        return
    stages = {s: list(flat_rules(vocabulary.settings.get(s), s)) for s in ("normalizer", "pre_tokenizer", "decoder")}
    coming = [*stages["normalizer"], *stages["pre_tokenizer"]]
    bytewise = vocabulary.kind == "BPE" and has_many(vocabulary, "Ġ")
    marked = not bytewise and has_many(vocabulary, "▁")
    every = bytewise and _has_all_bytes(vocabulary)
    if bytewise and not any(r["type"] == "ByteLevel" or (not every and "Ġ" in str(dict(r))) for _, r in coming):
        yield LOSES.found("the vocabulary is one of bytes, and no rule turns text into them: spaces and all but plain letters are "
                          "lost", file=file, place="$.pre_tokenizer")  # fmt: skip
    elif bytewise or marked:
        yield from _spaces(coming, file)
    yield from _way_back(vocabulary, [r for _, r in stages["decoder"]], bytewise, marked, file)
    if not bytewise and any(r["type"] == "ByteLevel" for _, r in stages["decoder"]) and (
            not any(r["type"] == "ByteLevel" for _, r in coming) and sum(not t.isascii() for t in vocabulary.base) >= _MANY):
        yield LOSES.found("the decoder takes letters for bytes, and no rule turned them into these: all but plain letters are lost "
                          "in what the model writes", file=file, place="$.decoder")  # fmt: skip
    yield from _lines_and_case(vocabulary, stages["normalizer"], bytewise, file)
    for at, rule in [*stages["normalizer"], *stages["decoder"]]:
        yield from _one_rule(rule, at, file)
    said = list(_reached(vocabulary, stages["pre_tokenizer"], file))
    yield from said or (_unmade(vocabulary, file) if every else ())


def has_many(vocabulary: Vocabulary, mark: str) -> bool:
    """Whether so many tokens begin with a mark that the vocabulary was made with it."""
    whole = "\0" + "\0".join(vocabulary.base)  # counted at once: there may be a quarter of a million
    return whole.count(f"\0{mark}") - (mark in vocabulary.base) >= max(_FEW, _SHARE * len(vocabulary.base))


def _has_all_bytes(vocabulary: Vocabulary) -> bool:
    """Whether the vocabulary has a token for nearly every byte that text has: the sign of a space is then one of them."""
    return sum(c in vocabulary.base for c in BYTE_LETTERS) >= _BYTES


# -- on the way in ------------------------------------------------------------------------------------------------


def _left(rule: Mapping[str, Any]) -> str:
    """What a normaliser leaves of two words and two lines; what it puts in their place counts when it can be seen."""
    text, content = "a b\nc", rule.get("content")
    if rule["type"] == "BertNormalizer" and rule.get("clean_text", True) is True:
        return text.replace("\n", " ")
    source = _spaces_only(rule.get("pattern"))
    if rule["type"] != "Replace" or source is None or not isinstance(content, str) or content.strip():
        return text
    return re.sub(source, lambda _: content, text)


def _spaces_only(pattern: Any) -> str | None:
    """The source of a pattern that matches white space and nothing else; ``None`` for any other."""
    if isinstance(pattern, dict) and isinstance(source := pattern.get("Regex"), str):
        if len(source) >= 100 or not _SPACES.fullmatch(source):
            return None
        try:
            re.compile(source)
        except re.error:  # Oniguruma takes some that Python does not (` {5,2}`)
            return None
        return source
    text = pattern.get("String") if isinstance(pattern, dict) else pattern
    return re.escape(text) if isinstance(text, str) and text and not text.strip() else None


def _spaces(rules: list[tuple[str, Mapping[str, Any]]], file: str) -> Iterator[Finding]:
    """Rules that throw away the spaces which the vocabulary has, and none behind that puts them back."""
    for n, (at, rule) in enumerate(rules):
        kind, pattern = rule["type"], _spaces_only(rule.get("pattern"))
        if kind in ("Metaspace", "ByteLevel") or (kind == "Replace" and pattern is not None and _stands(rule.get("content"))):
            return  # no space is left to lose
        cuts = kind in _CUTS_AT_SPACES or (kind == "CharDelimiterSplit" and rule.get("delimiter") == " ") or (
            kind == "Split" and rule.get("behavior") == "Removed" and rule.get("invert") is not True and pattern is not None
            and bool(re.fullmatch(pattern, " ")))  # fmt: skip
        if (cuts and not any(_puts_back(r) for _, r in rules[n + 1 :])) or "ab" in _left(rule):
            yield LOSES.found(f"{kind} takes spaces out of every text, and the vocabulary has them", file=file, place=at,
                              evidence=str(dict(rule))[:300])  # fmt: skip
            return


def _stands(content: Any) -> bool:
    """Whether a text that stands for spaces can be told from nothing."""
    return isinstance(content, str) and bool(content.strip())


def _puts_back(rule: Mapping[str, Any]) -> bool:
    """Whether a rule puts a space before each piece."""
    if rule["type"] == "Metaspace":
        return bool(rule.get("prepend_scheme", "always" if rule.get("add_prefix_space", True) else "never") == "always")
    return bool(rule["type"] == "ByteLevel" and rule.get("add_prefix_space", True) is True)


def _lines_and_case(
    vocabulary: Vocabulary, rules: list[tuple[str, Mapping[str, Any]]], bytewise: bool, file: str
) -> Iterator[Finding]:
    """Line breaks and capital letters that the vocabulary has and the normaliser lets none of through."""
    line = "Ċ" if bytewise else "\n"
    for at, rule in rules:
        left = _left(rule)
        lone = "bc" in left and line in vocabulary.base  # the lines' words are joined
        if "\n" not in left and (lone or sum(line in t and len(t) > 1 for t in vocabulary.base) >= _FEW):
            yield LOSES.found(f"{rule['type']} takes line breaks out of every text, and the vocabulary has them", file=file,
                              place=at, evidence=str(dict(rule))[:300])  # fmt: skip
        if rule["type"] == "Lowercase" or (rule["type"] == "BertNormalizer" and rule.get("lowercase", True) is True):
            cased = [t for t in vocabulary.base if len(t) > 1 and _CASED.fullmatch(t)]
            if len(cased) >= max(_FEWEST_CASED, _SHARE * len(vocabulary.base)):
                yield LOSES.found(f"{rule['type']} writes every text small, and {len(cased)} tokens have capital letters",
                                  file=file, place=at, evidence=", ".join(map(repr, cased[:12])))  # fmt: skip


def _one_rule(rule: Mapping[str, Any], at: str, file: str) -> Iterator[Finding]:
    """Signs that are put before every text, and words whose capital letters alone are changed."""
    if rule["type"] == "Prepend" and isinstance(text := rule.get("prepend"), str):
        seen = visible(text)
        if seen and seen != "_" and not any(c.isalnum() for c in seen) and not looks_special(text):
            yield CHANGES.found(f"{text!r:.120} is put before every text", file=file, place=at, evidence=str(dict(rule))[:300])
    pattern, content = rule.get("pattern"), rule.get("content")
    source = next(iter(pattern.values()), None) if isinstance(pattern, dict) else pattern
    if rule["type"] == "Replace" and isinstance(source, str) and isinstance(content, str) and source != content and (
            sum(map(str.isalpha, source)) > 1 and source.casefold() == content.casefold()):  # fmt: skip
        yield CHANGES.found(f"{source!r:.80} becomes {content!r:.80}", file=file, place=at, evidence=str(dict(rule))[:300])


# -- on the way out -----------------------------------------------------------------------------------------------


def _way_back(
    vocabulary: Vocabulary, decoders: list[Mapping[str, Any]], bytewise: bool, marked: bool, file: str
) -> Iterator[Finding]:
    """A decoder that does not turn the vocabulary's spelling back into text."""
    kinds, said = {r["type"] for r in decoders}, str([dict(r) for r in decoders])
    if bytewise and "ByteLevel" not in kinds and ("Ġ" not in said or _has_all_bytes(vocabulary)):
        what = "the letters that stand for bytes"
    elif marked and "Metaspace" not in kinds and "▁" not in said:
        what = "the sign that stands for spaces"
    elif not bytewise and not marked and "WordPiece" not in kinds and "##" not in said and has_many(vocabulary, "##"):
        what = "the sign of a word's next piece"
    else:
        return
    yield LOSES.found(f"the decoder does not turn {what} back: {', '.join(sorted(kinds)) or 'there is none'}", file=file,
                      place="$.decoder", evidence=said[:300])  # fmt: skip


# -- the model ----------------------------------------------------------------------------------------------------


def _model(vocabulary: Vocabulary, file: str) -> Iterator[Finding]:
    """Endings and beginnings of pieces that no token has, and the unknown token by its number."""
    model = vocabulary.settings.get("model")
    model = model if isinstance(model, dict) else {}
    ending, beginning = model.get("end_of_word_suffix"), model.get("continuing_subword_prefix")
    for sign, key, what in ((ending, "end_of_word_suffix", "the last piece of each word has to end with {}"),
                            (beginning, "continuing_subword_prefix", "each further piece of a word has to begin with {}")):
        if vocabulary.kind == "BPE" and isinstance(sign, str) and sign and _hardly(vocabulary, sign, last=key[0] == "e"):
            yield LOSES.found(f"{what.format(repr(sign)[:40])}, and hardly a token does", file=file, place=f"$.model.{key}")
    if isinstance(ending, str) and any(c.isalnum() for c in ending) and not is_mark(ending):
        yield CHANGES.found(f"{ending!r:.40} is put behind each word", file=file, place="$.model.end_of_word_suffix")
    if vocabulary.kind == "WordPiece":
        yield from _pieces(vocabulary, model, file)
    if isinstance(beginning, str) and any(c.isalnum() for c in beginning):
        yield CHANGES.found(f"{beginning!r:.40} is put before each further piece of a word", file=file,
                            place="$.model.continuing_subword_prefix")  # fmt: skip
    unknown = model.get("unk_id")
    text = vocabulary.texts.get(unknown) if vocabulary.kind == "Unigram" and type(unknown) is int else None
    if text is not None and is_ordinary(text) and readable(text).strip().casefold() not in ("unk", "unknown", "oov"):
        yield WORDS.found(f"what the vocabulary lacks is read as {text!r:.60}", file=file, place="$.model.unk_id")


def _hardly(vocabulary: Vocabulary, sign: str, *, last: bool) -> bool:
    """Whether next to no token ends (``last``) or begins with a sign, among single letters and among all."""
    base = vocabulary.base
    count = sum(t.endswith(sign) if last else t.startswith(sign) for t in base)
    letters = [c for c in _LETTERS if c in base]
    carried = sum((c + sign if last else sign + c) in base for c in letters)
    return count < _PIECES * len(base) and carried <= _ALPHABET * len(letters)


def _pieces(vocabulary: Vocabulary, model: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """What makes WordPiece read words as unknown: the sign of further pieces, the longest word, letters that are not there."""
    base, sign = vocabulary.base, model.get("continuing_subword_prefix", "##")
    used = next((s for s in _SIGNS if has_many(vocabulary, s)), None)
    if isinstance(sign, str) and used is not None and sign != used and (not sign or not has_many(vocabulary, sign)):
        yield LOSES.found(f"each further piece of a word has to begin with {sign!r:.40}, and in the vocabulary they begin with "
                          f"{used!r}", file=file, place="$.model.continuing_subword_prefix")  # fmt: skip
    most = model.get("max_input_chars_per_word", 100)
    if type(most) is int and most < 100:
        longer = [t for t in base if len(t) > most + 2 and len(t.removeprefix("##")) > most and not looks_special(t)]
        if len(longer) >= max(_FEWEST_LONG, _SHARE * len(base)):
            yield LOSES.found(f"words of more than {most} letters are not read, and {len(longer)} tokens are longer", file=file,
                              place="$.model.max_input_chars_per_word", evidence=", ".join(map(repr, longer[:12])))  # fmt: skip
    if used is None:
        return
    whole = "\0" + "\0".join(base) + "\0"
    for before, what in (("", "at the beginning of a word"), (used, "further on in a word")):
        there = [c for c in _LETTERS if before + c in base]
        if len(there) * 2 < len(_LETTERS):
            continue
        lost = [c for c in _LETTERS if before + c not in base and whole.count(f"\0{before}{c}") >= _FEWEST_WITH]
        if lost:
            yield LOSES.found(f"the letter {lost[0]!r} has no token of its own {what}: words that need it are not read", file=file,
                              place="$.model.vocab", evidence=", ".join(map(repr, lost)))  # fmt: skip


def _reached(vocabulary: Vocabulary, cutting: list[tuple[str, Mapping[str, Any]]], file: str) -> Iterator[Finding]:
    """Whether tokens come out of their own letters, tried with a few hundred of them."""
    model = vocabulary.settings.get("model")
    skipped = {a.text for a in vocabulary.added}
    every = list(vocabulary.base)
    sample = [t for t in every[:: max(1, len(every) // _SAMPLE)] if len(t) > 1 and t not in skipped and not looks_special(t)]
    if len(sample) < _FEWEST or not isinstance(model, dict):
        return
    for at, rule in cutting:
        length = rule.get("length")
        if rule["type"] == "FixedLength" and type(length) is int and sum(len(t) > length + 1 for t in sample) > len(sample) / 2:
            yield UNREACHED.found(f"text is cut into pieces of {length} letters, and most tokens are longer", file=file, place=at)
    halves = vocabulary.halves if vocabulary.kind == "BPE" else None
    if vocabulary.kind != "BPE" or model.get("continuing_subword_prefix") or (halves is None and model.get("merges") != []):
        return
    ending = model.get("end_of_word_suffix")
    missed = [t for t in sample if len(_merged(t, vocabulary, ending if isinstance(ending, str) else "")) > 1]
    # of honest ones hardly one in a hundred is missed; where whole words are looked up first, merges matter less
    named = ", ".join(f"{readable(t)!r:.40}" for t in missed[:12])
    if len(missed) > (0.9 if model.get("ignore_merges") is True else 1 / 3) * len(sample):
        yield UNREACHED.found(f"{len(missed)} of {len(sample)} tokens that were tried do not come out of their own letters",
                              file=file, place="$.model.merges", evidence=named)  # fmt: skip


def _unmade(vocabulary: Vocabulary, file: str) -> Iterator[Finding]:
    """Tokens of bytes that no merge makes, and merges that stand before those of their own halves: of honest vocabularies there
    are next to none, since each token was once the next merge."""
    model, made = vocabulary.settings.get("model"), vocabulary.made
    if not isinstance(model, dict) or model.get("ignore_merges") is True or not made:
        return
    skipped, begin = {a.text for a in vocabulary.added}, vocabulary.first_made
    if begin is None:
        first = dict(zip(reversed(made), range(len(made) - 1, -1, -1), strict=True))
        others: Iterable[str] = (t for t in vocabulary.base if t not in first)
        early = _early(vocabulary, first)
    else:  # each merge makes the token of the next id: they stand in the order of the training
        others, early = chain(islice(vocabulary.base, begin), islice(vocabulary.base, begin + len(made), None)), []
    unmade = [t for t in others if len(t) > 1 and t not in skipped and not looks_special(t)]
    for odd, what in ((unmade, "tokens are made by no merge"), (early, "tokens are made before their halves are")):
        if len(odd) >= max(_FEWEST, _SHARE_UNMADE * len(vocabulary.base)):
            yield UNREACHED.found(f"{len(odd)} {what}, e.g. {readable(odd[0])!r:.40}", file=file, place="$.model.merges",
                                  evidence=", ".join(f"{readable(t)!r:.40}" for t in odd[:12]))  # fmt: skip


def _early(vocabulary: Vocabulary, first: Mapping[str, int]) -> list[str]:
    """What is made before its halves are; some list every way to make a token: one that is in order is enough."""
    import numpy as np

    made = vocabulary.made
    ranks = np.array(list(map(first.get, vocabulary.halves or [], repeat(-1)))).reshape(-1, 2)
    behind = (ranks.max(1) >= np.arange(len(made))).nonzero()[0].tolist()
    ordered = {made[n] for n in set(range(len(made))).difference(behind)} if behind else set(made)
    return [t for t in dict.fromkeys(made[n] for n in behind) if t not in ordered]


def _merged(token: str, vocabulary: Vocabulary, ending: str) -> list[str]:
    """The pieces into which merges make a token's letters; of a very long one no more than a few."""
    ended = bool(ending) and token.endswith(ending) and token != ending
    pieces = list(token[: -len(ending)] if ended else token)[:64]
    if ended and pieces:
        pieces[-1] += ending
    halves = vocabulary.halves or []
    while len(pieces) > 1:
        # looked up by what a merge makes: pairs of a quarter of a million would take longer than all else here
        found = ((rank, n) for n, (one, other) in enumerate(pairwise(pieces))
                 if (rank := vocabulary.rank(one + other)) is not None and halves[2 * rank] == one)  # fmt: skip
        best = min(found, default=None)
        if best is None:
            break
        at = best[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


# -- filling up ---------------------------------------------------------------------------------------------------


def _padding(vocabulary: Vocabulary, file: str) -> Iterator[Finding]:
    """How far texts are filled up, and with what."""
    padding = vocabulary.settings.get("padding")
    if not isinstance(padding, dict):
        return
    strategy, multiple = padding.get("strategy"), padding.get("pad_to_multiple_of")
    length = strategy.get("Fixed") if isinstance(strategy, dict) else None
    for value, most, what in ((length, _LONGEST_PADDING, "texts are filled up to {} tokens"),
                              (multiple, _MOST_MULTIPLE, "texts are filled up to a multiple of {} tokens")):  # fmt: skip
        if isinstance(value, (int, float)) and value > most:
            yield PADS.found(what.format(value), file=file, place="$.padding", evidence=str(padding)[:300])
    number = padding.get("pad_id")
    text = vocabulary.texts.get(number) if isinstance(number, int) else None
    unset = number == 0 and padding.get("pad_token") == "[PAD]" and "[PAD]" not in vocabulary.ids  # what the library begins with
    if isinstance(number, int) and text is not None and not unset and not vocabulary.is_marker(number) and is_ordinary(text):
        yield PADS.found(f"texts are filled up with {readable(text)!r:.60} ({number})", file=file, place="$.padding.pad_id",
                         evidence=str(padding)[:300])  # fmt: skip
