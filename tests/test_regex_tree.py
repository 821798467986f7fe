"""Patterns as trees, and the texts of special tokens of real families."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.trust.scanners.added import is_ordinary, is_sentence, is_sign
from weightsmith.trust.scanners.regex_tree import is_ambiguous, takes_words, tree


@given(st.text("()[]|*+?{}\\^$.,-ab1<:=!P ", max_size=40) | st.text(max_size=20))
def test_whatever_a_pattern_is_something_is_said_of_it(pattern: str) -> None:
    assert is_ambiguous(pattern) in (True, False)
    assert (takes_words(pattern) is None) is (tree(pattern) is None)


@pytest.mark.parametrize("pattern", ["(?:a|a)*b", "(a|aa)+$", r"(\w|\d)*", r"((a|b|[a-z]))*x", r"(?:not|[a-z])*!"])
def test_ambiguous(pattern: str) -> None:
    assert is_ambiguous(pattern)


@pytest.mark.parametrize("pattern", [
    r"(?:.|\n)*?", r"(?:[^<]|<(?!/think>))*", r"(?:(?!<\|tool_call_start\|>)[\s\S])*?", r"(?:\r?\n|\r)+", r"(?:a|b)*",
    r"(?:a|a)*+b",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
])  # fmt: skip
def test_not_ambiguous(pattern: str) -> None:
    assert not is_ambiguous(pattern)


@pytest.mark.parametrize(("pattern", "words"), [
    (r"\bnot\b", True), ("not |<x>", True), (".+", True), (r"\d+", True), (r"(?:n't|<x>)", True), (r"\s*", False),
    ("Action:", False),
    (r"<\|tool_call>call:(?P<name>\w+)", False), (r"(?:^|<think>\s*)", False), (r"(?:<\|a\|>)?[^<]*<\|b\|>", False), ("(", None),
])  # fmt: skip
def test_what_takes_words(pattern: str, words: bool | None) -> None:
    assert takes_words(pattern) is words


@pytest.mark.parametrize("text", [
    "<s>", "</s>", "[PAD]", "[INST]", "<|endoftext|>", "<｜begin▁of▁sentence｜>", "<｜place▁holder▁for▁pointer▁replace｜>",
    ">>TITLE<<",
    "<|0.00|>", "<extra_id_0>", "__en__", "en_XX", "eng_Latn", ">>fr<<", "[START_REF]", "<fim-prefix>", "▁<PRE>",
    "|||IP_ADDRESS|||", "|ENDOFTEXT|", "|SPEAKER|", "]~!b[", "]!p~[", "]~b]", "[e~[", "]<]minimax[>[", "<用户>", "<yes/>",
    "!", "sop",
    "[gMASK]", "<0x0A>", "<reserved_102>", "<SPECIAL_12>", "### Response:", "PAD_1", "extra_id_7", "unused12", "<EOD|LLM-jp>",
    "<loc_0>", "@@PAD@@", "{eos}", "\ue000", "👩\u200d🔬", "<dsml:", "｜DSML｜",
])  # fmt: skip
def test_marks_of_real_families_are_no_text(text: str) -> None:
    assert not is_ordinary(text)
    assert not is_sign(text)
    assert not is_sentence(text)


@pytest.mark.parametrize("text", ["n't", "'t", "don't", "https://", "a.b", "not", "7", "and/or"])
def test_text_is_text(text: str) -> None:
    assert is_ordinary(text)


@pytest.mark.parametrize("text", ["\n", " ", "\n\n", "-", " -", "▁-", "!=", "0.5", "$", "…"])
def test_signs_are_signs(text: str) -> None:
    assert is_sign(text)
