"""The data of the measuring suites: complete, apart from the prompts that directions are found on, and strictly read."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from weightsmith.errors import FormatError, RecipeError, UsageError
from weightsmith.features.prompts import NEAR, PARTS, prompt_sets, similarity
from weightsmith.features.recipe import load_feature, shipped_features
from weightsmith.measure.degenerate import why_degenerate
from weightsmith.measure.sets import (
    FRAMES,
    NEUTRAL_SYSTEM,
    asked_refusals,
    parse_asked_refusals,
    parse_scenarios,
    parse_texts,
    parse_wordings,
    perplexity_texts,
    scenario_features,
    scenarios,
    shipped_wordings,
    wordings,
)


@cache
def parts(feature: str) -> dict[str, tuple[str, ...]]:
    spec, folder = load_feature(feature)
    sets = prompt_sets(spec, folder)
    return {name: (*sets.part(name).shows, *sets.part(name).lacks) for name in PARTS}


@cache
def found_on() -> frozenset[str]:
    """The prompts of any feature that a direction, a layer or an amount comes from."""
    return frozenset(p for feature in shipped_features() for part in PARTS[:2] for p in parts(feature)[part])


@cache
def reported() -> frozenset[str]:
    return frozenset(p for feature in shipped_features() for p in parts(feature)["report"])


def key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


@cache
def grams(text: str) -> frozenset[str]:
    padded = f" {key(text)} "
    return frozenset(padded[i : i + 4] for i in range(max(1, len(padded) - 3)))


@cache
def index(texts: frozenset[str]) -> dict[str, list[str]]:
    """Which texts hold a 4-gram."""
    found: dict[str, list[str]] = {}
    for text in sorted(texts):
        for gram in grams(text):
            found.setdefault(gram, []).append(text)
    return found


def near(texts: list[str], others: frozenset[str], limit: float = NEAR) -> list[tuple[str, str]]:
    """Pairs from both sides that are nearly the same: :func:`similarity` over all pairs, by an index."""
    pairs = []
    for text in texts:
        shared = Counter(o for gram in grams(text) for o in index(others).get(gram, ()))
        pairs += [(text, o) for o, n in shared.items() if n >= limit * (len(grams(text)) + len(grams(o)) - n)]
    return pairs


def test_near_is_the_similarity_of_the_split() -> None:
    a, b = "Why do some lakes turn pink?", "Why do some lakes turn green?"
    assert near([a], frozenset([b]), similarity(a, b)) == [(a, b)]
    assert near([a], frozenset([b]), similarity(a, b) + 1e-9) == []


# wordings


def test_every_reported_prompt_has_three_written_wordings() -> None:
    assert len(reported()) == 288
    for prompt in reported():
        found, source = wordings(prompt)
        assert (len(found), source) == (3, "shipped"), prompt


def test_wordings_belong_to_shipped_prompts_and_are_one_line_each() -> None:
    known = found_on() | reported() | everything()
    for prompt, others in shipped_wordings().items():
        assert prompt in known, f"no such prompt: {prompt}"
        assert len(others) == 3
        for text in others:
            assert 12 <= len(text) <= 160, text
            assert text == text.strip()
            assert text[-1] in '.?!"', text
            assert "  " not in text


@cache
def everything() -> frozenset[str]:
    from importlib.resources import files

    folder = files("weightsmith").joinpath("features/shipped/prompts")
    return frozenset(line for f in folder.iterdir() for line in f.read_text(encoding="utf-8").splitlines() if line)


def test_no_wording_is_a_prompt_or_another_wording() -> None:
    texts = [t for others in shipped_wordings().values() for t in others]
    keys = [key(t) for t in texts]
    assert len(set(keys)) == len(keys), {t for t in texts if keys.count(key(t)) > 1}
    assert not {key(p) for p in everything()} & set(keys)


def test_wordings_change_the_words_and_not_only_a_prefix() -> None:
    for prompt, others in shipped_wordings().items():
        for i, text in enumerate(others):
            # 0.6: what both have to quote (a limerick, a title) counts as equal
            assert similarity(text, prompt) < 0.6, (prompt, text)
            assert key(prompt) not in key(text), (prompt, text)
            assert all(similarity(text, other) < NEAR for other in others[:i]), (prompt, text)


def test_no_wording_is_near_a_prompt_that_a_direction_is_found_on() -> None:
    for prompt in reported():
        assert near(list(shipped_wordings()[prompt]), found_on()) == []


def test_other_prompts_are_framed() -> None:
    prompt = "Name a {river} in Peru: any."
    found, source = wordings(f" {prompt} ", 5)
    assert source == "frames"
    assert len({key(f) for f in found}) == 5
    assert all(f.endswith(prompt) and f != prompt for f in found)
    # a shipped prompt has three: more can only be framed
    known = min(shipped_wordings())
    assert wordings(known, 2) == (list(shipped_wordings()[known][:2]), "shipped")
    assert wordings(known, 4)[1] == "frames"
    for n in (0, len(FRAMES) + 1):
        with pytest.raises(UsageError, match="1 to 5"):
            wordings(known, n)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("  a wording\n", "before any prompt"),
        ("a prompt\nanother\n  in other words\n", "without other wordings"),
        ("a prompt\n  in other words\na prompt\n  again\n", "stands twice"),
        ("a prompt\n   three blanks in\n", "indented by 3"),
        ("a prompt \n  in other words\n", "ends in blanks"),
    ],
)
def test_malformed_wordings_are_refused(text: str, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        parse_wordings(text, "x")


def test_wordings_are_read_as_written() -> None:
    assert parse_wordings("a: b?\n  c\n  d\n\ne\n  f\n", "x") == {"a: b?": ("c", "d"), "e": ("f",)}


# scenarios


def test_every_shipped_feature_has_scenarios_and_nothing_else_has() -> None:
    assert scenario_features() == shipped_features()
    with pytest.raises(RecipeError, match="no scenarios"):
        scenarios("../perplexity")


@pytest.mark.parametrize("feature", shipped_features())
def test_scenarios_are_many_short_and_apart_from_what_the_direction_is_found_on(feature: str) -> None:
    found = scenarios(feature)
    assert len(found) >= 12
    openings = [turns[0] for turns in found]
    assert len({key(t) for t in openings}) == len(openings)
    for turns in found:
        assert len({key(t) for t in turns}) == 3
        assert all(4 <= len(t) <= 140 for t in turns), turns
        assert near(list(turns), found_on()) == []
        assert near(list(turns), reported()) == []


def test_no_turn_stands_in_two_scenarios() -> None:
    turns = [key(t) for feature in scenario_features() for scenario in scenarios(feature) for t in scenario]
    assert {t for t in turns if turns.count(t) > 1} == set()


SCENARIO = """schema: weightsmith/scenarios/1
feature: refusal
licence: Apache-2.0
scenarios:
  - turns: ["a", "b", "c"]
"""


def test_scenarios_are_read_strictly() -> None:
    assert parse_scenarios(SCENARIO, "x") == ("refusal", [("a", "b", "c")])
    for old, new in (
        ('"a", ', ""),
        ('"c"]', '"c", "d"]'),
        ('"b"', '"b\\nb"'),
        ('"b"', '" "'),
        ("scenarios/1", "scenarios/2"),
        ("- turns", "- turn"),
        ("licence", "license"),
        ('"b"', "7"),
    ):
        assert old in SCENARIO
        with pytest.raises(RecipeError):
            parse_scenarios(SCENARIO.replace(old, new), "x")


# refusals that the user asked for


def test_scopes_have_as_many_questions_inside_as_outside() -> None:
    found = asked_refusals()
    scopes = {a.scope for a in found}
    assert scopes == set(range(len(scopes)))
    assert len(scopes) >= 12
    assert len({a.system for a in found}) == len(scopes)
    for scope in scopes:
        for inside in (True, False):
            assert len({key(a.question) for a in found if a.scope == scope and a.inside == inside}) == 3
    assert all(len({a.system for a in found if a.scope == scope}) == 1 for scope in scopes)


def test_questions_of_scopes_are_one_line_and_stand_once() -> None:
    found = asked_refusals()
    questions = [key(a.question) for a in found]
    assert {q for q in questions if questions.count(q) > 1} == set()
    assert all(10 <= len(a.question) <= 100 for a in found)
    assert near([a.question for a in found], found_on()) == []


SCOPE = """schema: weightsmith/asked-refusals/1
licence: Apache-2.0
scopes:
  - {system: "only tea", inside: ["tea?"], outside: ["sea?"]}
  - {system: "only ink", inside: ["ink?"], outside: ["oak?", "elk?"]}
"""


def test_scopes_are_read_strictly() -> None:
    found = parse_asked_refusals(SCOPE, "x")
    assert [(a.system, a.question, a.inside, a.scope) for a in found] == [
        ("only tea", "tea?", True, 0), ("only tea", "sea?", False, 0),
        ("only ink", "ink?", True, 1), ("only ink", "oak?", False, 1), ("only ink", "elk?", False, 1),
    ]  # fmt: skip
    for old, new in (('["sea?"]', "[]"), ("inside", "within"), ("refusals/1", "refusals/9"), ('"only tea"', '"a\\nb"')):
        assert old in SCOPE
        with pytest.raises(RecipeError):
            parse_asked_refusals(SCOPE.replace(old, new), "x")


# texts and system prompts


def test_perplexity_texts_are_many_of_sane_length_and_sound() -> None:
    texts = perplexity_texts()
    assert len(texts) >= 24
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert 400 <= len(text) <= 1200, text[:60]
        assert why_degenerate(text) is None, text[:60]
        assert "\\" not in text
    assert sum("\n" in t for t in texts) >= 5  # code, tables and lists keep their lines


def test_shipped_code_and_data_are_valid() -> None:
    import ast
    import json

    texts = perplexity_texts()
    code = [t for t in texts if t.startswith("def ")]
    data = [t for t in texts if t.startswith("{")]
    assert code
    assert data
    for text in code:
        ast.parse(text)
    for text in data:
        json.loads(text)


def test_escapes_in_texts() -> None:
    assert parse_texts("a\\nb\n\nc\\\\nd\n", "x") == ["a\nb", "c\\nd"]
    for broken in ("a\\tb", "a\\"):
        with pytest.raises(FormatError, match="unknown escape"):
            parse_texts(broken, "x")


def test_neutral_system_prompts_differ_from_every_persona() -> None:
    assert len({key(s) for s in NEUTRAL_SYSTEM}) == 2
    specs = [load_feature(f)[0].contrast for f in shipped_features()]
    personas = frozenset(p for c in specs for p in (c.shows, c.lacks) if p)
    assert near(list(NEUTRAL_SYSTEM), personas, 0.2) == []
