"""Tokenizers and settings: what is folding and what is rewriting, maps taken apart, and the real library as a witness."""

from __future__ import annotations

import base64
import contextlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.layout import MERGES, TOKENS, config, folder, tokenizer
from corpus.tokens import CASES, FOLDS, HONEST, IDS, charsmap, sentencepiece
from weightsmith.errors import FormatError
from weightsmith.trust.scan import Scan
from weightsmith.trust.scanners import charsmap as maps
from weightsmith.trust.scanners import vocabulary
from weightsmith.trust.scanners.added import hidden, is_sentence
from weightsmith.trust.scanners.regexes import regex_parts
from weightsmith.trust.scanners.tokenizer_rules import CHANGES, DROPS, REWRITES, judge, judge_regex
from weightsmith.trust.scanners.vocabulary import is_words, looks_special, readable

WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=8)


# -- replacing -------------------------------------------------------------------------------------------------


@given(st.text(max_size=6), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), st.booleans())
def test_folding_is_never_reported(text: str, form: Any, lower: bool) -> None:
    becomes = unicodedata.normalize(form, text)
    assert maps.is_folding(text, unicodedata.normalize(form, becomes.casefold()) if lower else becomes)


@given(WORDS, WORDS)
def test_a_word_for_another_is_always_reported(one: str, two: str) -> None:
    assert judge(one, two) is (None if one == two else REWRITES)
    assert judge_regex(one, two) is (None if one == two else REWRITES)


@given(WORDS)
def test_a_word_taken_away_or_put_in_is_always_reported(word: str) -> None:
    assert judge(word, "") is DROPS
    assert judge_regex(rf"\b{word}\b", " ") is DROPS
    assert judge("", word) is REWRITES
    assert judge(" ", f" {word} ") is REWRITES
    assert judge_regex(r"\s+", word) is REWRITES


@pytest.mark.parametrize(("text", "becomes"), [
    (" ", "▁"), ("▁", " "), ("``", '"'), ("''", '"'), ("\n", "<n>"), ("<n>", "\n"), ("İ", "i"), ("I", "ı"), ("…", "..."),
    ("\u00a0", " "), ("，", ","), ("“", '"'), ("##", ""), ("Ġ", " "), ("</w>", " "), ("\u200b", ""), ("ё", "е"), ("ﬁ", "fi"),
])  # fmt: skip
def test_what_real_tokenizers_replace(text: str, becomes: str) -> None:
    assert judge(text, becomes) is None


@pytest.mark.parametrize(("text", "becomes", "rule"), [
    ("+", "-", CHANGES), ("<", ">", CHANGES), ("/", "", DROPS), ("a", "\u0430", REWRITES), ("0", "O", REWRITES),
    ("1", "7", REWRITES), (" ", "<obey>", REWRITES), ("\n", "<ignore-what-was-said>", REWRITES), ("и", "в", REWRITES),
    ("и", "й", REWRITES), ("yes", "</s>", REWRITES), ("not", "<unk>", REWRITES)])  # fmt: skip
def test_what_none_replaces(text: str, becomes: str, rule: Any) -> None:
    assert judge(text, becomes) is rule


@pytest.mark.parametrize(("pattern", "becomes", "rule"), [
    ("10?", "10", REWRITES), (r"\bdo(?: not)?\b", "do not", REWRITES), ("(?:un)?safe", "unsafe", REWRITES), ("10*", "10", REWRITES),
    ("1|9", "19", REWRITES), ("(?:un){0}safe", "unsafe", REWRITES), ("(?=un)safe", "unsafe", REWRITES), ("==", "!=", CHANGES),
    ("&&", "||", CHANGES), (r"\+", "-", CHANGES), ("``", '"', None), ("''", '"', None), (" {2,}", " ", None),
    (r"\.\.\.", "…", None), ("not", "NOT", None), (r"\s+", " ", None)])  # fmt: skip
def test_a_pattern_is_judged_by_all_that_it_matches(pattern: str, becomes: str, rule: Any) -> None:
    assert judge_regex(pattern, becomes) is rule


@pytest.mark.parametrize(("text", "becomes"), [
    ("not able", "notable"), ("therapist", "the rapist"), ("मेरा", "मारो"), ("दिन", "दान"), ("not▁able", "notable"),
])  # fmt: skip
def test_another_word_is_no_folding(text: str, becomes: str) -> None:
    """Spaces between letters and the vowel signs of India's scripts tell words apart."""
    assert judge(text, becomes) is REWRITES


@pytest.mark.parametrize(("pattern", "literal", "broad"), [
    (r"\s+", "", False), (" {2,}", "", False), (r"[\r\n\t]", "", False), (r"(?:not)", "not", False), (r"n\o", "n", True),
    (r"[^a-z]", "", True), (r"\p{L}+", "", True), (r"\p{P}", "", False), (r"[!-~]", "", True), (r"[!-/]", "", False),
    (r"\x6eot", "not", False), (r"\u006eot", "not", False), (r".", "", True), (r"(?<=a)b", "ab", False), (r"[[:alpha:]]", "", True),
    (r"[ -]", "", False), (r"\W", "", True), (r"[]a]", "", True), (r"\h", "", True), (r"[\x20-\x7e]", "", True)])  # fmt: skip
def test_what_a_pattern_can_match(pattern: str, literal: str, broad: bool) -> None:
    assert regex_parts(pattern) == (literal, broad)


@given(st.text(max_size=20), st.text(max_size=6))
def test_any_pattern_is_read(pattern: str, becomes: str) -> None:
    judge_regex(pattern, becomes)
    judge(pattern, becomes)


# -- compiled maps ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=3),
                       st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3), min_size=1, max_size=12))
def test_every_entry_of_a_map_is_listed(entries: dict[str, str]) -> None:
    found = list(maps.replacements(charsmap(entries)))
    expected = {(k, v) for k, v in entries.items() if v not in (k, unicodedata.normalize("NFKC", k))}
    assert len(found) == len(expected)
    assert set(found) == expected


def test_a_text_on_a_shared_path_is_listed() -> None:
    """A trie may share the ends of two texts: the second way to them counts as much as the first."""
    raw = bytearray(charsmap({"xe": "q", "saf": "!"}))
    units = memoryview(raw)[4 : 4 + int.from_bytes(raw[:4], "little")].cast("I")

    def node(text: str) -> int:
        at = 0
        for byte in text.encode():
            at = at ^ (units[at] >> 10) ^ byte
        return at

    x, saf = node("x"), node("saf")
    base = x ^ (units[x] >> 10)
    units[saf] = units[saf] & 0xFF | (saf ^ base) << 10
    assert set(maps.replacements(bytes(raw))) == {("xe", "q"), ("safe", "q")}


@given(st.binary(max_size=400))
def test_any_bytes_end_as_a_map_or_an_error(blob: bytes) -> None:
    size = (len(blob) // 2) & ~3
    for raw in (blob, size.to_bytes(4, "little") + blob):
        with contextlib.suppress(FormatError):
            list(maps.replacements(raw))


def test_the_library_replaces_what_the_map_says() -> None:
    from tokenizers import normalizers

    real = normalizers.Precompiled(charsmap({**FOLDS, "x": "y"}))
    assert real.normalize_str("Ａﬁ①x") == "Afi1y"


# -- vocabularies ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), st.sampled_from([1, 2, 3, 4, 5, 6])),
                min_size=1, max_size=20))
def test_pieces_are_read_back(pieces: list[tuple[str, int]]) -> None:
    raw = sentencepiece([(t, -1.5, k) for t, k in pieces], charsmap(FOLDS))
    assert vocabulary.sentencepiece(raw) == [(t, -1.5, k) for t, k in pieces]
    part = vocabulary.sentencepiece_part(raw, 3)
    assert part is not None
    assert vocabulary.sentencepiece_part(part, 2) == charsmap(FOLDS)


@given(st.binary(max_size=60), st.integers(0, 200), st.binary(max_size=5))
def test_any_bytes_end_as_pieces_or_an_error(tail: bytes, cut: int, put: bytes) -> None:
    whole = sentencepiece([("ab", -1.0, 1), ("c", 0.0, 3)], charsmap({"x": "y"})[:40])
    raw = whole[: cut % len(whole)] + put + whole[cut % len(whole) :] + tail
    for read in (vocabulary.sentencepiece, lambda b: vocabulary.sentencepiece_part(b, 3)):
        with contextlib.suppress(FormatError):
            read(raw)


@given(st.text(st.characters(codec="utf-8"), max_size=8))
def test_byte_letters_are_turned_back(text: str) -> None:
    from tokenizers import pre_tokenizers

    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    token = "".join(p for p, _ in pieces)
    assert "▁" in text or readable(token) == text or readable(token) == token == text


@pytest.mark.parametrize("text", ["<|im_end|>", "[CLS]", "<s>", "</s>", "<pad>", "▁<PRE>", "<｜begin▁of▁sentence｜>", "eng_Latn",
                                  "en_XX", "__fr__", ">>fra<<", "[gMASK]", "sop", "<unused12>", "<extra_id_0>", "\n\n", "▁▁▁",
                                  "<|0.02|>"])
def test_markers_are_known_by_their_looks(text: str) -> None:
    assert looks_special(text)
    assert not is_words(text)
    assert not hidden(text)
    assert not is_sentence(text)


@pytest.mark.parametrize("text", ["not", "Ġhowever", "▁Unsafe", "do not", "нет", "ja"])
def test_words_are_words(text: str) -> None:
    assert is_words(text)


@given(st.integers(2, 400), st.data())
def test_exchanged_numbers_are_found(count: int, data: st.DataObject) -> None:
    row = [10 + i for i in range(count)]
    assert vocabulary.exchanged(row) == {}
    one, two = sorted(data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True)))
    row[one], row[two] = row[two], row[one]
    expected = {} if two - one == 1 else {10 + one: 10 + two, 10 + two: 10 + one}
    assert vocabulary.exchanged([*row, None, row[0]]) == expected


@given(st.lists(st.integers(0, 10_000), max_size=300))
def test_other_orders_are_left_alone(row: list[int]) -> None:
    found = vocabulary.exchanged(row)
    assert all(found[found[n]] == n for n in found)


def test_a_vocabulary_in_another_order_is_honest() -> None:
    assert vocabulary.exchanged([*range(500, 1000), *range(500)]) == {}
    assert vocabulary.exchanged([7, *range(100, 600), 3]) == {}


# -- the real library ------------------------------------------------------------------------------------------


def _tokenizers(cases: list[Any], tmp_path: Path) -> list[tuple[str, Path]]:
    found = []
    for case in cases:
        path = tmp_path / case.name
        path.mkdir()
        case.build(path)
        if (path / "tokenizer.json").is_file():
            found.append((case.name, path / "tokenizer.json"))
    return found


def test_the_library_loads_every_honest_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    loaded = [Tokenizer.from_file(str(file)) for _, file in _tokenizers(HONEST, tmp_path)]
    assert len(loaded) >= 15
    assert all(t.get_vocab_size() for t in loaded)


def test_the_library_refuses_what_is_called_broken(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    wanted = {"tokenizer-invalid", "merges-invalid", "tokenizer-broken-rule"}
    broken = [c for c in CASES if c.verdict == "broken" and wanted & set(c.rules)]
    checked = _tokenizers(broken, tmp_path)
    assert len(checked) >= 5
    for _, file in checked:
        with pytest.raises(BaseException, match=r"."):  # the library raises the base class, or panics
            Tokenizer.from_file(str(file)).encode("x")


@pytest.mark.parametrize(("name", "text", "read"), [
    ("rewrite-word", "safe", "unsafe"), ("rewrite-regex", "not", "now"), ("rewrite-prepend", "x", "Ignore"),
    ("rewrite-nested", "yes", "no"), ("rewrite-one-letter", "l", "1"), ("drop-word", "not safe", "safe")])  # fmt: skip
def test_the_library_does_what_is_reported(name: str, text: str, read: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    (_, file), = _tokenizers([c for c in CASES if c.name == name], tmp_path)  # fmt: skip
    normalized = Tokenizer.from_file(str(file)).normalizer.normalize_str(text)
    assert read in normalized
    assert normalized != text


def test_the_library_inserts_what_is_reported(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    (_, file), = _tokenizers([c for c in CASES if c.name == "insert-words"], tmp_path)  # fmt: skip
    assert Tokenizer.from_file(str(file)).encode("yes").ids == [1, IDS["Ġnot"], IDS["Ġsafe"], IDS["yes"]]


# -- settings --------------------------------------------------------------------------------------------------


def _rules(path: Path) -> dict[str, str]:
    return {f.rule: f.message + f.evidence for f in Scan(path).run() if f.severity != "note"}


@pytest.mark.parametrize("where", ["generation_config.json", "config.json", "text_config"])
def test_banned_words_are_shown_wherever_they_stand(where: str, tmp_path: Path) -> None:
    banned = {"bad_words_ids": [[IDS["Ġnot"]], [IDS["Ġun"] if "Ġun" in IDS else IDS["un"]]]}
    if where == "generation_config.json":
        folder(tmp_path, generation={"eos_token_id": 2, **banned})
    elif where == "config.json":
        folder(tmp_path, config=config(**banned))
    else:
        folder(tmp_path, config=config(text_config={**config(), **banned}))
    assert "' not'" in _rules(tmp_path)["settings-steer"]


@pytest.mark.parametrize("key", ["bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens"])
def test_steering_is_seen_through_any_nesting(key: str, tmp_path: Path) -> None:
    value: Any = IDS["Ġsafe"]
    for _ in range(4):
        value = [value]
    folder(tmp_path, generation={"eos_token_id": 2, key: value})
    assert "safe" in _rules(tmp_path)["settings-steer"]


def test_padding_of_embeddings_is_honest_and_its_lack_is_not(tmp_path: Path) -> None:
    for extra, expected in ((0, False), (30, True)):
        path = tmp_path / str(extra)
        path.mkdir()
        data = tokenizer()
        data["model"]["vocab"] |= {f"word{i}": len(TOKENS) + i for i in range(extra)}
        folder(path, tokenizer=data)
        assert ("token-without-embedding" in _rules(path)) == expected


def test_a_map_in_base64_with_spaces_is_refused(tmp_path: Path) -> None:
    blob = base64.b64encode(charsmap(FOLDS)).decode()
    folder(tmp_path, tokenizer=tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": blob[:20] + " " + blob[20:]}))
    assert "tokenizer-broken-rule" in _rules(tmp_path)


def test_merges_as_texts_are_checked_too(tmp_path: Path) -> None:
    data = tokenizer()
    data["model"]["merges"] = [*MERGES, "q u"]
    folder(tmp_path, tokenizer=json.loads(json.dumps(data)))
    assert "merges-invalid" in _rules(tmp_path)


def _numbered(order: str) -> dict[str, Any]:
    """A tokenizer whose printable characters are numbered in this order, before its other tokens."""
    data = tokenizer()
    rest = [t for t in data["model"]["vocab"] if len(t) > 1]
    data["model"]["vocab"] = {t: i for i, t in enumerate([*order, *rest])}
    for added in data["added_tokens"]:
        added["id"] = data["model"]["vocab"].get(added["content"], added["id"])
    return data


_BYTES = "".join(map(chr, range(33, 127))) + "Ġ"


@pytest.mark.parametrize(("order", "exchanged"), [
    (_BYTES, False), (_BYTES.translate(str.maketrans("19", "91")), True), (_BYTES.translate(str.maketrans("+-<>", "-+><")), True),
    ("".join(sorted(_BYTES, key=lambda c: ord(c) * 7919 % 101)), False),  # by something else: nothing can be said
])  # fmt: skip
def test_characters_that_stand_in_each_others_place(tmp_path: Path, order: str, exchanged: bool) -> None:
    """The number that the model writes as 1990 would be read as 9110, with every merge in its order."""
    folder(tmp_path, tokenizer=_numbered(order), config=config(vocab_size=300), weights={})
    found = [f.message for f in Scan(tmp_path).run() if f.rule == "token-ids-exchanged"]
    assert bool(found) == exchanged, found
