"""Intervals, tests and rules against SciPy, published values and simulation."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from weightsmith.features.quality import auroc, auroc_interval
from weightsmith.measure.compare import perplexity_texts
from weightsmith.measure.degenerate import RULES, why_degenerate
from weightsmith.measure.stats import bootstrap_mean, measurement, paired, sign_flip, wilson

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=20)


# -- AUROC -------------------------------------------------------------------------------------------------


@given(SCORES, SCORES)
@settings(max_examples=150, deadline=None)
def test_auroc_is_the_mann_whitney_statistic(shows: list[float], lacks: list[float]) -> None:
    """Small integers, so that ties are everywhere."""
    a, b = np.array(shows), np.array(lacks)
    expected = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert auroc(a, b) == pytest.approx(expected, abs=1e-12)
    assert auroc(b, a) == pytest.approx(1 - expected, abs=1e-12)
    assert auroc(np.exp(a), np.exp(b)) == pytest.approx(expected, abs=1e-12), "only the order counts"


def test_auroc_of_known_cases() -> None:
    assert auroc(np.array([1.0, 2.0]), np.array([0.0, -1.0])) == 1.0
    assert auroc(np.array([0.0, 0.0]), np.array([0.0, 0.0])) == 0.5
    assert auroc(np.array([1.0, 0.0]), np.array([0.0])) == 0.75


@pytest.mark.parametrize("pairs", [False, True])
def test_auroc_intervals_cover(pairs: bool) -> None:
    """Two normals one deviation apart: the true AUROC is Φ(1/√2), more where pairs share half of their noise."""
    dice, n, hits, runs = np.random.default_rng(4), 40, 0, 200
    truth = stats.norm.cdf(1 / math.sqrt(2))
    for _ in range(runs):
        common = dice.standard_normal(n) * math.sqrt(0.5) if pairs else 0.0
        scale = math.sqrt(0.5) if pairs else 1.0
        shows = 1 + common + scale * dice.standard_normal(n)
        lacks = common + scale * dice.standard_normal(n)
        low, high = auroc_interval(shows, lacks, pairs, dice, rounds=300)
        hits += low <= truth <= high
        assert low <= auroc(shows, lacks) <= high
    assert 0.89 <= hits / runs <= 0.985


# -- intervals ---------------------------------------------------------------------------------------------

#: successes, n and 95% Wilson limits: Newcombe 1998, Statistics in Medicine 17, table I (method 3), and by hand
WILSON = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718),
          (10, 10, 0.7225, 1.0000), (5, 10, 0.2366, 0.7634), (0, 1, 0.0000, 0.7935)]  # fmt: skip


@pytest.mark.parametrize(("successes", "n", "low", "high"), WILSON)
def test_wilson_has_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert found == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=100, deadline=None)
def test_wilson_is_its_own_formula_and_symmetric(case: tuple[int, int]) -> None:
    k, n = case
    low, high = wilson(k, n)
    z, p = stats.norm.ppf(0.975), k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx((max(0.0, middle - half), min(1.0, middle + half)), abs=1e-9)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert 0 <= low <= p + 1e-12
    assert p - 1e-12 <= high <= 1


@pytest.mark.parametrize(
    "draw",
    [lambda d, n: d.normal(3, 2, n), lambda d, n: d.exponential(2.0, n), lambda d, n: d.uniform(-1, 5, n)],
    ids=["normal", "skewed", "uniform"],
)
def test_bootstrap_intervals_cover_near_95_percent(draw: Any) -> None:
    dice, runs, n = np.random.default_rng(1), 400, 60
    truth = {0: 3.0, 1: 2.0, 2: 2.0}
    which = ["normal", "exponential", "uniform"].index(draw.__code__.co_names[0])
    hits = 0
    for _ in range(runs):
        low, high = bootstrap_mean(draw(dice, n), rounds=400)
        hits += low <= truth[which] <= high
    # three standard errors of the simulation are 0.033; skewed samples of 60 are known to fall a little short
    assert 0.90 <= hits / runs <= 0.985


def test_bootstrap_agrees_with_scipy_and_is_seeded() -> None:
    values = np.random.default_rng(2).standard_normal(48) ** 2
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=3).confidence_interval
    assert bootstrap_mean(values) == pytest.approx((theirs.low, theirs.high), abs=0.04)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean(np.full(9, 2.5)) == (2.5, 2.5)


# -- tests -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_sign_flips_of_few_pairs_are_exact(values: list[float]) -> None:
    change = np.array(values)
    p = sign_flip(change)
    n = len(change)
    signs = np.array([[1 if i >> k & 1 else -1 for k in range(n)] for i in range(1 << n)])
    assert p == pytest.approx((np.abs(signs @ change) >= abs(change.sum()) - 1e-9).mean())
    assert sign_flip(-change) == pytest.approx(p)
    assert 2 / 2**n - 1e-12 <= p <= 1


def test_sign_flip_of_known_cases() -> None:
    assert sign_flip(np.zeros(5)) == 1.0
    assert sign_flip(np.ones(6)) == 2 / 64
    assert sign_flip(np.array([1.0, -1.0])) == 1.0
    # Fisher's Darwin maize data, 15 pairs: 1,726 of all 32,768 flips (The Design of Experiments, section 21)
    darwin = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], float)
    assert sign_flip(darwin) == pytest.approx(1726 / 32768, abs=0.006)
    assert sign_flip(darwin) == sign_flip(darwin), "seeded"


def test_sign_flip_agrees_with_scipy() -> None:
    change = np.random.default_rng(5).normal(0.4, 1, 12)
    theirs = stats.permutation_test((change,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True)
    assert sign_flip(change) == pytest.approx(theirs.pvalue, abs=1e-9)


def test_sign_flip_p_values_are_uniform_where_nothing_changed() -> None:
    dice = np.random.default_rng(6)
    ps = np.array([sign_flip(dice.standard_normal(20), rounds=400) for _ in range(300)])
    assert stats.kstest(ps, "uniform").pvalue > 0.001
    assert 0.02 <= (ps <= 0.05).mean() <= 0.09


def ones(n: int, k: int) -> list[float]:
    return [1.0] * k + [0.0] * (n - k)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (1, 0, 1.0), (6, 1, 16 / 128), (10, 2, 0.038574), (15, 5, 0.041389), (4, 4, 1.0)],
)
def test_mcnemar_has_the_known_values(gained: int, lost: int, p: float) -> None:
    """Twice the smaller binomial tail of the pairs that differ, at most 1 (McNemar 1947, exact form)."""
    base = np.array([0.0] * gained + [1.0] * lost + [1.0] * 7 + [0.0] * 9)
    edited = np.array([1.0] * gained + [0.0] * lost + [1.0] * 7 + [0.0] * 9)
    found = paired("r", base, edited, "share", "c", rate=True)
    assert found.p == pytest.approx(p, abs=1e-6)
    assert found.test == "McNemar, exact"
    assert found.value == pytest.approx((gained - lost) / len(base))
    tail = sum(math.comb(gained + lost, i) for i in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    assert found.p == pytest.approx(min(1.0, 2 * tail))


def test_paired_differences() -> None:
    dice = np.random.default_rng(7)
    base = dice.standard_normal(30)
    found = paired("s", base, base + 0.5 + 0.1 * dice.standard_normal(30), "u", "c")
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.1, "paired: the spread between prompts drops out"
    assert found.p < 0.001
    assert found.value == pytest.approx(found.edited.value - found.base.value)
    assert (found.base.n, found.edited.n, found.n) == (30, 30, 30)
    back = paired("s", base, base, "u", "c")
    assert (back.value, back.low, back.high, back.p) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="30 and 29 prompts"):
        paired("s", base, base[1:], "u", "c")


def test_measurements() -> None:
    mean = measurement("m", np.array([1.0, 2.0, 3.0]), "u", "c")
    assert (mean.value, mean.n, mean.interval, mean.values) == (2.0, 3, "bootstrap", [1.0, 2.0, 3.0])
    assert mean.low <= mean.value <= mean.high
    rate = measurement("r", np.array(ones(20, 0)), "share", rate=True)
    assert (rate.value, rate.low, rate.interval) == (0.0, 0.0, "wilson")
    assert rate.high == pytest.approx(0.1611, abs=1e-4), "no case seen is not none there is"
    one = measurement("o", np.array([4.0]), "u")
    assert (one.low, one.high, one.interval) == (4.0, 4.0, "none")
    for bad in ([], [math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="no finite values"):
            measurement("b", np.array(bad), "u")


# -- degenerate answers ------------------------------------------------------------------------------------

GOOD = [
    "Paris is the capital of France.",
    "No.",
    "42",
    "It is very, very, very good.",
    "No, no, no! That is not what I meant.",
    "1. Preheat the oven.\n2. Mix flour and sugar.\n3. Bake for 20 minutes.\n4. Let it cool.\n5. Serve with cream.",
    "- apples\n- pears\n- plums\n- cherries\n- grapes",
    "```python\nfor i in range(10):\n    print(i ** 2, end=' ')\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    "The rain in Spain stays mainly in the plain, said the man with the cane to the crane by the lane, and then he "
    "walked home through quiet streets, thinking about bread, weather, letters, and an old friend from school.",
    "Das Wetter ist heute schön, und morgen wird es noch schöner.",
    "Погода сегодня хорошая, а завтра будет ещё лучше.",
    "今日は天気がいいです。明日も晴れるでしょう。",
    "الطقس جميل اليوم وسيكون أجمل غدا",
    "HTTP, HTML, CSS and XML are four names that you will meet often when you build a page for the web.",
    "I'm sorry, but I can't help with that.",
    "E = mc^2, where m is the mass, c the speed of light and E the energy; so 1 kg is about 9 * 10^16 J.",
    "Well well well, what do we have here?",
]
BAD = [
    ("", "empty"), ("   \n\t ", "empty"), ("...", "empty"), ("!!! ???", "empty"), ("—", "empty"),
    ("the the the the the the", "loop"),
    ("I am sad. I am sad. I am sad. I am sad.", "loop"),
    ("and then she said and then she said and then she said", "loop"),
    ("of course " * 12, "loop"),
    ("One two three four five six seven eight nine ten eleven twelve " * 3, "loop"),
    (" ".join(["the sea is deep and", "the sky is wide and", "the sea is wide and", "the sky is deep and"] * 3), "loop"),
    ("ha ha ha ha ha ha ha ha", "loop"),
    ("a\ufffd\ufffdb c", "garbage"),
    ("¤¤¶§ ¤¶§¤ a ¬¬¤ §§¶ ¤¤¤", "garbage"),
    ("xkcd qwrtp zxcvb mnbvc lkjhg fdspq wrtpq bcdfg", "garbage"),
    ("▓▓▓▓▓▓ ▓▓▓ ok ▓▓▓▓▓", "garbage"),
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
def test_good_answers_are_not_degenerate(text: str) -> None:
    assert why_degenerate(text) is None
    assert why_degenerate(f"\n{text}  ") is None
    assert why_degenerate(text.upper()) is None


@pytest.mark.parametrize(("text", "why"), BAD, ids=range(len(BAD)))
def test_bad_answers_are(text: str, why: str) -> None:
    assert why_degenerate(text) == why
    assert why in RULES


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_every_text_has_a_verdict(text: str) -> None:
    assert why_degenerate(text) in (None, "empty", "garbage", "loop")


def test_a_long_answer_is_judged_as_a_short_one() -> None:
    """The share of different words falls with length: what counts is the worst stretch, wherever it stands."""
    prose = " ".join(perplexity_texts())
    words = prose.split()
    for n in (30, 100, 300, 600, 1200):
        assert why_degenerate(" ".join(words[:n])) is None
    licence = (Path(__file__).parents[1] / "LICENSE").read_text()
    assert why_degenerate(licence[1_000:]) is None
    stuck = " ".join(["of sea and sky and", "and sky of sea and", "sky and sea and of"] * 9)
    for text in (stuck, f"{prose} {stuck}", f"{stuck} {prose}", f"{prose} {stuck} {prose}"):
        assert why_degenerate(text) == "loop"


def test_a_very_long_answer_takes_no_time() -> None:
    start = time.perf_counter()
    why_degenerate(" ".join(f"word{i}" for i in range(20_000)))
    assert time.perf_counter() - start < 2
