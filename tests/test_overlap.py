"""Prompts that were used already are known from their sketches: equal ones surely, near ones mostly, others hardly ever."""

from __future__ import annotations

import random
import re
from functools import cache
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import FormatError, RecipeError
from weightsmith.features.prompts import NEAR, similarity
from weightsmith.measure.overlap import overlaps, refuse_overlap, sketch


@cache
def shipped() -> list[str]:
    folder = files("weightsmith").joinpath("features/shipped/prompts")
    found = sorted(folder.iterdir(), key=lambda e: e.name)
    return [line for entry in found for line in entry.read_text(encoding="utf-8").splitlines() if line.strip()]


def changed(prompt: str, dice: random.Random, edits: int) -> str:
    """Words taken out, put in, or replaced by words of other prompts."""
    words = prompt.split()
    for _ in range(edits):
        at, how = dice.randrange(len(words)), dice.choice(["out", "in", "other"])
        new = dice.choice(dice.choice(shipped()).split())
        words[at : at + (how != "in")] = [] if how == "out" and len(words) > 2 else [new]
    return " ".join(words)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_a_sketch_is_short_hex_and_finds_its_own_prompt(prompt: str) -> None:
    made = sketch(prompt)
    assert re.fullmatch(r"[0-9a-f]{16}([0-9a-f]{8}){1,12}", made)
    assert made == sketch(prompt)
    assert made == sketch(f"  {prompt} !?"), "case, space and punctuation don't count"
    assert overlaps({"extract": [made]}, [prompt]) == [("extract", prompt)]


def test_a_sketch_holds_no_text() -> None:
    for prompt in shipped()[:50]:
        assert not any(word.casefold() in bytes.fromhex(sketch(prompt)).decode("latin1").casefold()
                       for word in prompt.split() if len(word) > 3)  # fmt: skip


def test_equal_prompts_are_found_whatever_their_case_and_punctuation() -> None:
    assert len({sketch(p)[:16] for p in shipped()}) == len(shipped())
    sketches = [sketch(p) for p in shipped()]
    loud = [f" {p.upper().rstrip('.?!')}!! " for p in shipped()[::6]]
    assert {p for _, p in overlaps({"extract": sketches}, loud)} == set(loud)
    a, b = shipped()[:2]
    assert overlaps({"extract": [sketch(a)[:16] + sketch(b)[16:]]}, [a]), "the digest alone is enough"


def test_parts_are_named_in_order() -> None:
    a, b, c = shipped()[:3]
    sketches = {"extract": [sketch(a), sketch(b)], "select": [sketch(b)]}
    assert overlaps(sketches, [b, c, a]) == [("extract", b), ("select", b), ("extract", a)]
    assert overlaps({}, [a]) == overlaps(sketches, []) == overlaps({"extract": []}, [a]) == []


def test_prompts_that_differ_are_let_through() -> None:
    """150 prompts against the other 1,050 shipped ones, some of which are alike in kind: 157,500 pairs, none near."""
    prompts = shipped()
    used, rest = prompts[::8], [p for i, p in enumerate(prompts) if i % 8]
    assert len(used) == 150
    wrong = [p for _, p in overlaps({"extract": [sketch(p) for p in used]}, rest)]
    assert len(wrong) <= 1, f"not near: {wrong}"


def test_edited_prompts_are_found_by_how_near_they_are() -> None:
    dice = random.Random(0)
    near, nearer, far, between = [], [], [], []
    for prompt in shipped():
        for edits in (1, 2, 4):
            other = changed(prompt, dice, edits)
            how_near = similarity(prompt, other)
            found = bool(overlaps({"select": [sketch(prompt)]}, [other]))
            place = nearer if how_near >= 0.85 else near if how_near >= NEAR else between if how_near >= 0.5 else far
            place.append(found)
    assert min(map(len, (near, nearer, far, between))) > 300
    assert sum(nearer) / len(nearer) > 0.95
    assert sum(near) / len(near) > 0.7
    assert sum(between) / len(between) < 0.4
    assert sum(far) / len(far) < 0.02


def test_short_prompts_are_compared_whole() -> None:
    """All 4-grams of a short prompt are in its sketch, so that nothing is estimated."""
    for a, b in (("go on", "go on now"), ("hello", "hello?"), ("hi", "ho"), ("你好吗", "你好吗？"), ("12345", "12346")):
        assert bool(overlaps({"extract": [sketch(a)]}, [b])) == (similarity(a, b) >= NEAR), (a, b)


def test_an_overlap_is_refused_by_name() -> None:
    used = shipped()[:5]
    sketches = {"extract": [sketch(p) for p in used[:3]], "select": [sketch(p) for p in used[3:]]}
    refuse_overlap(sketches, shipped()[5:40])
    with pytest.raises(RecipeError, match=r"used to find or choose the edit \(select\)") as caught:
        refuse_overlap(sketches, [shipped()[7], used[4]], where="kindness")
    assert used[4][:40] in caught.value.message
    assert (caught.value.where, caught.value.fields) == ("kindness", {"part": "select", "prompts": 1})
    assert caught.value.hint
    with pytest.raises(RecipeError, match=r"\(4 more overlap as well\)"):
        refuse_overlap(sketches, used)
    with pytest.raises(RecipeError, match=r"\(1 more overlaps as well\)"):
        refuse_overlap(sketches, used[:2])


@pytest.mark.parametrize("row", ["", "xyz", "0" * 16, "0" * 20, "0" * 15 + "g" + "0" * 8, "0" * (16 + 13 * 8), "A" * 24])
def test_what_is_no_sketch_is_refused(row: str) -> None:
    with pytest.raises(FormatError, match="not a sketch"):
        overlaps({"extract": [row]}, ["a prompt"])
