"""Intervals, tests and rules against SciPy, published values and simulation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bounded import ends_within
from weightsmith.features.quality import auroc, auroc_interval
from weightsmith.measure.degenerate import RULES, why_degenerate
from weightsmith.measure.power import holm, judged, least_flips, minimum_detectable
from weightsmith.measure.sets import perplexity_texts
from weightsmith.measure.spread import Scored, components, spread
from weightsmith.measure.stats import (
    bootstrap_mean,
    cluster_se,
    clustered_bootstrap,
    kappa,
    maximum,
    measurement,
    paired,
    quantile_measurement,
    rate_difference_interval,
    sign_flip,
    wilson,
)
from weightsmith.measured import Difference

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


def test_wilson_refuses_what_is_no_rate() -> None:
    for bad in ((3, 2), (0, 0), (-1, 4)):
        with pytest.raises(ValueError, match="is no rate"):
            wilson(*bad)


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
    assert sign_flip(np.array([1.0] * 6 + [0.0] * 60)) == 2 / 64, "what did not change has no sign"
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


# -- several answers a prompt ------------------------------------------------------------------------------


def test_prompts_weigh_the_same_however_many_answers_they_have() -> None:
    found = measurement("m", [1, 1, 1, 1, 5.0, None, 3.0, math.nan], "u", items=[7, 7, 7, 7, 2, 2, 9, 4], missing=2,
                        key="k", group="g", scorer="s", prompts="d")  # fmt: skip
    assert found.values == [5.0, 1.0, 3.0], "in order of the items"
    assert (found.value, found.n, found.answers, found.missing) == (3.0, 3, 6, 4)
    assert (found.key, found.group, found.scorer, found.prompts) == ("k", "g", "s", "d")
    with pytest.raises(ValueError, match="3 values and the prompts of 2"):
        measurement("m", np.ones(3), "u", items=[1, 2])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=30), st.booleans())
@settings(max_examples=100, deadline=None)
def test_figures_are_within_their_intervals_and_are_numbers(rows: list[tuple[int, int]], rate: bool) -> None:
    items, values = [i for i, _ in rows], [float(v) for _, v in rows]
    found = measurement("m", values, "u", rate=rate, items=items)
    assert -1e-12 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1 + 1e-12
    assert found.n == len(set(items))
    assert found.value == pytest.approx(np.mean([np.mean([v for i, v in rows if i == j]) for j in set(items)]))
    other = paired("d", values, values[::-1], "u", "c", rate, items=items)
    assert np.isfinite([other.value, other.low, other.high, other.p]).all()
    assert other.low - 1e-9 <= other.value <= other.high + 1e-9
    assert other.value == pytest.approx(other.edited.value - other.base.value)


def test_values_that_are_all_equal() -> None:
    mean = measurement("m", np.full(12, 0.1), "u", items=[i // 3 for i in range(12)])
    assert (mean.value, mean.low, mean.high, mean.n) == (0.1, 0.1, 0.1, 4)
    none = measurement("r", np.zeros(40), "u", rate=True, items=[i // 4 for i in range(40)])
    assert (none.low, none.high) == wilson(0, 10), "40 answers to 10 prompts count as 10"
    halves = measurement("r", [0.0, 1.0] * 10, "u", rate=True, items=[i // 2 for i in range(20)])
    assert (halves.low, halves.high) == wilson(10, 20), "prompts that vary less than dice would count as their answers"
    one = measurement("r", [1.0, 0.0], "u", rate=True, items=[3, 3])
    assert one.low < 0.1 < 0.9 < one.high
    with pytest.raises(ValueError, match="0 to 1"):
        measurement("r", [2.0], "u", rate=True)


def answers_of(dice: np.random.Generator, n: int, m: int, rate: float, alike: float, shift: float) -> tuple[Any, Any]:
    """``m`` answers 0/1 of ``n`` prompts, twice: prompts' own rates are Beta with intraclass correlation ``alike``."""
    k = (1 - alike) / alike
    own = np.clip(dice.beta(rate * k, (1 - rate) * k, n), 1e-9, 1 - 1e-9)
    moved = 1 / (1 + np.exp(-np.log(own / (1 - own)) - shift))
    return dice.binomial(1, own, (m, n)).T.ravel().astype(float), dice.binomial(1, moved, (m, n)).T.ravel().astype(float)


RATES = [(0.5, 0.5, 0.0), (0.1, 0.4, 1.0), (0.95, 0.3, -2.0)]


@pytest.mark.parametrize(("rate", "alike", "shift"), RATES)
@pytest.mark.parametrize(("n", "m"), [(16, 4), (40, 1), (40, 3)])
def test_intervals_of_rates_cover_with_several_answers_a_prompt(n: int, m: int, rate: float, alike: float, shift: float) -> None:
    dice, runs = np.random.default_rng(8), 300
    truth = np.mean(np.stack(answers_of(dice, 400_000, 1, rate, alike, shift)), 1)
    items = np.repeat(np.arange(n), m).tolist()
    hits, found_difference = 0, 0
    for _ in range(runs):
        before, after = answers_of(dice, n, m, rate, alike, shift)
        found = paired("r", before, after, "u", "c", rate=True, items=items)
        hits += found.base.low <= truth[0] <= found.base.high
        found_difference += found.low <= truth[1] - truth[0] <= found.high
    # three standard errors of the simulation are 0.04; answers taken as independent would cover some 70%
    assert hits / runs >= 0.90
    assert found_difference / runs >= 0.91


def test_paired_tests_with_several_answers_keep_their_level_and_find_what_is_there() -> None:
    dice, runs, n, m = np.random.default_rng(9), 300, 24, 4
    items = np.repeat(np.arange(n), m).tolist()
    false = true = 0
    for _ in range(runs):
        before, after = answers_of(dice, n, m, 0.4, 0.5, 0.0)
        null = paired("r", before, after, "u", "c", rate=True, items=items)
        assert null.test == "sign-flip permutation"
        false += null.p < 0.05
        true += paired("r", before, np.maximum(after, dice.random(n * m) < 0.5), "u", "c", True, items=items).p < 0.05
    assert false / runs < 0.09
    assert true / runs > 0.8


def test_missing_answers_drop_their_pair_and_are_counted_where_they_were_missing() -> None:
    before = [1.0, None, 0.0, 1.0, 0.0]
    after = [0.0, 1.0, math.nan, None, 0.0]
    found = paired("r", before, after, "u", "c", rate=True, key="k", family="f", missing=1)
    assert (found.n, found.base.n, found.edited.n, found.base.answers) == (2, 2, 2, 2)
    assert (found.base.values, found.edited.values) == ([1.0, 0.0], [0.0, 0.0])
    assert (found.base.missing, found.edited.missing) == (2, 3)
    assert (found.value, found.key, found.family) == (-0.5, "k", "f")
    with pytest.raises(ValueError, match="both sides"):
        paired("r", [None, 1.0], [1.0, None], "u", "c")
    one = paired("m", [1.0, None], [3.0, 2.0], "u", "c")
    assert (one.n, one.value, one.p, one.mde) == (1, 2.0, 1.0, None)


#: both, base only, edited only, neither, and 95% limits of base - edited. The first from Fagerland, Lydersen and Laake
#: 2017, Statistical Analysis of Contingency Tables, chapter 8; the second from Newcombe 1998, method 10
NEWCOMBE = [(59, 6, 16, 80, -0.1186, -0.0046), (36, 12, 2, 0, 0.0569, 0.3404)]


@pytest.mark.parametrize(("both", "base", "edited", "neither", "low", "high"), NEWCOMBE)
def test_newcombe_has_the_published_values(
    both: int, base: int, edited: int, neither: int, low: float, high: float
) -> None:
    one = np.array([1.0] * (both + base) + [0.0] * (edited + neither))
    two = np.array([1.0] * both + [0.0] * base + [1.0] * edited + [0.0] * neither)
    found = rate_difference_interval(one, two, len(one))
    assert found == pytest.approx((-high, -low), abs=6e-5)
    assert rate_difference_interval(two, one, len(one)) == pytest.approx((low, high), abs=6e-5)
    assert rate_difference_interval(1 - one, 1 - two, len(one)) == pytest.approx((low, high), abs=6e-5)


def test_no_difference_seen_is_not_none_there_is() -> None:
    same = paired("r", np.zeros(20), np.zeros(20), "u", "c", rate=True)
    assert same.low < -0.05 < 0.05 < same.high
    assert (same.value, same.p) == (0, 1)
    many = paired("r", np.zeros(80), np.zeros(80), "u", "c", rate=True, items=[i // 4 for i in range(80)])
    assert (many.low, many.high) == pytest.approx((same.low, same.high))


def test_clusters_widen_what_is_alike_in_them() -> None:
    dice, runs, hits, naive = np.random.default_rng(10), 300, 0, 0
    sizes = np.tile([2, 5, 8, 1, 4], 6)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    errors = []
    for _ in range(runs):
        values = 1 + (dice.standard_normal(len(sizes)))[clusters] + dice.standard_normal(len(clusters))
        low, high = clustered_bootstrap(values, clusters.tolist(), rounds=400)
        hits += low <= 1 <= high
        plain = bootstrap_mean(values, rounds=400)
        naive += plain[0] <= 1 <= plain[1]
        errors.append((values.mean() - 1, cluster_se(values, clusters.tolist())))
    assert 0.90 <= hits / runs <= 0.985
    assert naive / runs < 0.85, "the clusters matter in this simulation"
    real, thought = np.array(errors).T
    assert thought.mean() == pytest.approx(real.std(), rel=0.12)
    alone = dice.standard_normal(50)
    assert cluster_se(alone, range(50)) == pytest.approx(alone.std(ddof=1) / math.sqrt(50))
    assert clustered_bootstrap(alone, [0] * 50) == (-math.inf, math.inf)
    assert clustered_bootstrap(np.ones(9), [0, 0, 0, 1, 1, 1, 2, 2, 2]) == (1, 1)


def test_quantiles_over_tokens() -> None:
    rows = [[1.0, 9.0], [], [2.0, 3.0, 4.0], [5.0]]
    median = quantile_measurement("k", rows, 0.5, "nats", key="kl.median", prompts="d")
    assert (median.value, median.n, median.missing, median.interval) == (3.0, 3, 1, "bootstrap")
    assert 1 <= median.low <= 3 <= median.high <= 9
    top = maximum("k", rows, "nats", "c")
    assert (top.value, top.low, top.high, top.interval, top.n) == (9.0, 9.0, 9.0, "none", 3)
    assert quantile_measurement("k", [[2.0] * 9, [2.0] * 4], 0.95, "nats").high == 2.0
    alone = quantile_measurement("k", [[1.0, 2.0]], 0.95, "nats")
    assert (alone.value, alone.low, alone.high, alone.interval) == (2.0, 2.0, 2.0, "none")
    for bad in ([], [[]], [[math.nan]], [[1.0, math.inf]]):
        with pytest.raises(ValueError, match="no finite values"):
            quantile_measurement("k", bad, 0.5, "nats")
        with pytest.raises(ValueError, match="no finite values"):
            maximum("k", bad, "nats")


@given(st.lists(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=8), min_size=1, max_size=6),
       st.sampled_from([0.05, 0.5, 0.9, 0.95, 1.0]))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_quantiles_are_those_of_numpy(rows: list[list[float]], q: float) -> None:
    found = quantile_measurement("k", rows, q, "u", rounds=60)
    assert found.value == np.quantile(np.concatenate(rows), q, method="inverted_cdf")
    dice, n, drawn = np.random.default_rng(0), len(rows), []
    if n > 1:
        for weights in dice.multinomial(n, np.full(n, 1 / n), 60):
            pooled = np.concatenate([row * int(w) for row, w in zip(rows, weights, strict=True)])
            drawn.append(np.quantile(pooled, q, method="inverted_cdf"))
        tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
        low, high = np.quantile(drawn, [tail, 1 - tail])
        assert (found.low, found.high) == (min(low, found.value), max(high, found.value))


def test_intervals_of_quantiles_cover() -> None:
    dice, runs, hits = np.random.default_rng(11), 200, 0
    truth = math.exp(stats.norm.ppf(0.95) * math.sqrt(1.25))
    for _ in range(runs):
        rows = [np.exp(0.5 * dice.standard_normal() + dice.standard_normal(dice.integers(10, 60))) for _ in range(32)]
        found = quantile_measurement("k", rows, 0.95, "nats", rounds=300)
        hits += found.low <= truth <= found.high
    assert 0.87 <= hits / runs <= 0.985


# -- families, verdicts, power -----------------------------------------------------------------------------


def test_holm_of_hand_made_cases() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([0.01, 0.01, 0.01]) == pytest.approx([0.03, 0.03, 0.03])
    with pytest.raises(ValueError, match="no p values"):
        holm([0.5, math.nan])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_holm_lies_between_p_and_bonferroni_and_keeps_order(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= a <= min(1, p * len(ps)) + 1e-15 for p, a in zip(ps, found, strict=True))
    ranked = [a for _, a in sorted(zip(ps, found, strict=True))]
    assert ranked == sorted(ranked)
    # step down: as many are rejected as Holm's own words say
    rejected = 0
    for i, p in enumerate(sorted(ps)):
        if p * (len(ps) - i) >= 0.05:
            break
        rejected += 1
    assert sum(a < 0.05 for a in found) == rejected


def test_holm_keeps_the_chance_of_one_false_find() -> None:
    dice = np.random.default_rng(12)
    assert np.mean([min(holm(dice.random(20).tolist())) < 0.05 for _ in range(1000)]) < 0.07


def flips(n: int, k: int, family: str = "f", back: int = 0) -> Difference:
    base = np.array([0.0] * k + [1.0] * back + [1.0] * 5 + [0.0] * (n - k - back - 5))
    edited = np.array([1.0] * k + [0.0] * back + [1.0] * 5 + [0.0] * (n - k - back - 5))
    return paired("r", base, edited, "u", "c", rate=True, family=family)


def test_verdicts_need_a_small_p_and_a_difference_that_the_design_can_find() -> None:
    few, enough = flips(48, 6), flips(48, 9)
    assert few.p < 0.05
    assert few.value < (few.mde or 0) < enough.value
    down = flips(48, 0, back=12)
    verdicts = [d.verdict for d in judged([few, enough, down, flips(48, 0)])]
    assert verdicts == ["cannot tell", "rises", "falls", "cannot tell"]
    assert all(d.verdict == "cannot tell" and d.p_holm is None for d in (few, enough)), "the given ones stay as they are"
    crowd = judged([enough, *(flips(48, 3) for _ in range(30))])
    assert crowd[0].p_holm == pytest.approx(enough.p * 31)
    assert crowd[0].verdict == "cannot tell"
    apart = judged([enough, *(flips(48, 3, family="other") for _ in range(30))])
    assert (apart[0].p_holm, apart[0].verdict) == (enough.p, "rises")
    assert judged([flips(48, 12)], alpha=1e-5)[0].verdict == "cannot tell"
    assert judged([]) == []
    tiny = paired("m", np.zeros(5), np.ones(5), "u", "c")
    assert (tiny.mde, judged([tiny])[0].verdict) == (None, "cannot tell"), "5 prompts can't fall under 0.05"
    steady = judged([paired("m", np.zeros(6), np.ones(6), "u", "c")])[0]
    assert (steady.mde, steady.verdict) == (0.0, "rises")
    still = judged([paired("m", np.ones(30), np.ones(30), "u", "c")])[0]
    assert (still.mde, still.verdict) == (None, "cannot tell")


def test_six_flips_are_the_least_that_count() -> None:
    assert [least_flips(a) for a in (0.05, 0.01, 0.001)] == [6, 8, 11]
    for alpha in (0.3, 0.05, 0.0125, 2**-4):
        k = least_flips(alpha)
        assert stats.binomtest(k, k).pvalue < alpha <= stats.binomtest(k - 1, k - 1).pvalue


@pytest.mark.parametrize("n", [6, 12, 48, 200])
def test_the_smallest_change_of_a_rate_is_found_8_times_in_10(n: int) -> None:
    """Simulated on whole comparisons: prompts that lack the feature flip one way with the chance found."""
    change = minimum_detectable(n, rate=True)
    assert stats.binom.sf(least_flips() - 1, n, change) == pytest.approx(0.8, abs=1e-9)
    dice, base = np.random.default_rng(13), np.zeros(n)
    found = [paired("r", base, (dice.random(n) < change).astype(float), "u", "c", True).p < 0.05 for _ in range(400)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.065)
    assert minimum_detectable(n, rate=True, power=0.9) > change
    assert minimum_detectable(n + 10, rate=True) < change
    assert minimum_detectable(5, rate=True) == minimum_detectable(5, rate=False) == math.inf


@pytest.mark.parametrize("n", [6, 8, 12, 24, 60])
def test_the_smallest_change_of_a_mean_is_found_8_times_in_10(n: int) -> None:
    change = minimum_detectable(n, rate=False)
    dice = np.random.default_rng(14)
    found = [sign_flip(dice.normal(change, 1, n), rounds=500) < 0.05 for _ in range(500)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)
    assert minimum_detectable(n, rate=False, sd=3) == pytest.approx(3 * change)
    values = dice.normal(0, 2, n)
    seen = paired("m", np.zeros(n), values, "u", "c")
    assert seen.mde == pytest.approx(change * values.std(ddof=1))


def test_the_smallest_change_of_a_rate_with_several_answers() -> None:
    dice, items = np.random.default_rng(15), [i // 4 for i in range(96)]
    before, after = answers_of(dice, 24, 4, 0.5, 0.5, 0.5)
    found = paired("r", before, after, "u", "c", True, items=items)
    change = np.array(found.edited.values) - np.array(found.base.values)
    assert found.mde == pytest.approx(minimum_detectable(24, rate=False) * change.std(ddof=1))
    nothing = paired("r", np.zeros(96), np.zeros(96), "u", "c", True, items=items)
    assert nothing.mde == minimum_detectable(24, rate=True)
    once = paired("r", np.zeros(96), np.eye(96)[0], "u", "c", True, items=items)
    assert once.mde is not None
    assert once.mde >= 6 / 96, "six prompts have to change at all"


# -- agreement ---------------------------------------------------------------------------------------------


def readers(both: int, first: int, second: int, neither: int) -> tuple[list[str], list[str]]:
    a = ["yes"] * (both + first) + ["no"] * (second + neither)
    return a, ["yes"] * both + ["no"] * first + ["yes"] * second + ["no"] * neither


def test_kappa_has_known_values() -> None:
    a, b = readers(20, 5, 10, 15)
    found = kappa(a, b)
    assert found.value == pytest.approx(0.4), "observed 0.7, by chance 0.5"
    assert (found.n, found.low < 0.4 < found.high) == (50, True)
    # Cohen's asymptotic standard error, sqrt(po(1-po)/n)/(1-pe), is 0.130 here
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.130, rel=0.12)
    a, b = readers(118, 5, 2, 0)  # rare disagreement, one rare label: observed 0.944
    chance = (123 * 120 + 2 * 5) / 125**2
    assert kappa(a, b).value == pytest.approx((0.944 - chance) / (1 - chance))
    assert kappa(a, b).value < 0
    three = kappa(list("aabbcc"), list("aabbca"))
    assert three.value == pytest.approx((5 / 6 - 1 / 3) / (2 / 3)), "marginals 2 2 2 and 3 2 1: 12/36 by chance"
    assert kappa(list("abab"), list("baba")).value == -1


def test_kappa_at_its_ends() -> None:
    a = ["yes", "no"] * 20
    full = kappa(a, a)
    assert full.value == full.high == 1
    assert 0.7 < full.low < 0.95, "40 that agree are not all there are"
    for labels, why in ((["yes", "no"], "0/0"), (None, "two labels")):
        with pytest.raises(ValueError, match=why):
            kappa(["yes"] * 9, ["yes"] * 9, labels)
    with pytest.raises(ValueError, match="no label is called maybe"):
        kappa(["yes"], ["maybe"], labels=["yes", "no"])
    with pytest.raises(ValueError, match="2, 1 labels"):
        kappa(["yes", "no"], ["yes"])


def test_kappa_intervals_cover_by_prompt() -> None:
    """Three answers a prompt; the second reader guesses at one prompt in four and then reads all its answers alike."""
    dice, runs, hits, naive = np.random.default_rng(16), 200, 0, 0
    for _ in range(runs):
        a = dice.integers(0, 2, 40).repeat(3)
        wrong = ((dice.random(40) < 0.25) & (dice.random(40) < 0.5)).repeat(3)
        b = np.where(wrong, 1 - a, a)
        clusters = np.arange(40).repeat(3).tolist()
        found = kappa(a.tolist(), b.tolist(), clusters=clusters, rounds=400)
        assert found.n == 40
        alone = kappa(a.tolist(), b.tolist(), rounds=400)
        hits += found.low <= 0.75 <= found.high
        naive += alone.low <= 0.75 <= alone.high
    assert 0.88 <= hits / runs <= 0.985
    assert naive / runs < 0.85


# -- where the variance comes from -------------------------------------------------------------------------


def scored(dice: np.random.Generator, shape: tuple[int, int, int], sizes: tuple[float, float, float], cut: bool) -> list[Scored]:
    """Normal effects with these standard deviations; ``cut`` leaves a random part of the wordings and seeds out."""
    prompts, wordings, seeds = shape
    records: list[Scored] = []
    for p in range(prompts):
        own = sizes[0] * dice.standard_normal()
        for w in range(int(dice.integers(1, wordings + 1)) if cut else wordings):
            said = sizes[1] * dice.standard_normal()
            for s in range(int(dice.integers(1, seeds + 1)) if cut else seeds):
                records.append((p, w, s, 5 + own + said + sizes[2] * dice.standard_normal()))
    return records


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("sizes", [(1.0, 0.7, 0.5), (0.3, 0.3, 1.0), (1.0, 0.0, 0.5), (0.0, 0.0, 1.0)])
def test_components_are_recovered_without_bias(sizes: tuple[float, float, float], cut: bool) -> None:
    dice = np.random.default_rng(17)
    found = [components(scored(dice, (20, 4, 3), sizes, cut)) for _ in range(150)]
    estimates = np.array([(c.prompt, c.wording, c.dice) for c in found])
    error = estimates.std(0, ddof=1) / math.sqrt(len(found))
    assert (np.abs(estimates.mean(0) - np.square(sizes)) < 3.5 * error + 1e-12).all()
    if not any(sizes[:2]):
        assert any("below 0 and set to 0" in note for c in found for note in c.notes)


def test_components_of_a_balanced_table_by_hand() -> None:
    """Two prompts, two wordings, two seeds. Mean squares: prompts 128, wordings 4, dice 1 (4 degrees of freedom: 4/4)."""
    table = {(0, 0): (0, 2), (0, 1): (2, 4), (1, 0): (8, 10), (1, 1): (10, 12)}
    records = [(p, w, s, float(v)) for (p, w), pair in table.items() for s, v in enumerate(pair)]
    found = components(records)
    # within: 4 pairs of variance 2 each; wordings: means 1, 3 and 9, 11 -> sum 8 over 2; prompts: 2, 10 -> 128
    assert (found.dice, found.wording, found.prompt) == pytest.approx((2.0, (4 - 2) / 2, (128 - 4) / 4))
    assert (found.prompts, found.wordings, found.seeds, found.notes) == (2, 2, 2, ())
    as_said = spread(records, "k", "n", "c", "base", group="g")
    whole = 2 + 1 + 31
    assert as_said.sd == pytest.approx(math.sqrt(whole))
    assert as_said.prompt.value == pytest.approx(31 / whole)
    assert as_said.prompt.value + as_said.wording.value + as_said.dice.value == pytest.approx(1)
    moved = spread([(p + 7, w, s, 3 * v - 100) for p, w, s, v in records], "k", "n", "c", "base")
    assert moved.dice.value == pytest.approx(as_said.dice.value)
    assert moved.sd == pytest.approx(3 * as_said.sd)


def test_intervals_of_shares_cover() -> None:
    dice, runs = np.random.default_rng(18), 150
    truth, hits = np.array([1, 0.5, 0.25]) / 1.75, np.zeros(3)
    for _ in range(runs):
        found = spread(scored(dice, (32, 3, 3), (1, math.sqrt(0.5), 0.5), False), "k", "n", "c", "edited", rounds=300)
        shares = (found.prompt, found.wording, found.dice)
        hits += [s.low <= t <= s.high for s, t in zip(shares, truth, strict=True)]
        assert all(0 <= s.low <= s.value <= s.high <= 1 for s in shares)
    assert (hits / runs > 0.86).all()


def test_spread_without_variance_or_without_a_level() -> None:
    for constant in (0.0, 0.1, 1e9):
        still = spread([(p, w, s, constant) for p in range(5) for w in range(3) for s in range(3)], "k", "n", "c", "base")
        assert still.sd == 0
        assert [(s.value, s.low, s.high) for s in (still.prompt, still.wording, still.dice)] == [(0, 0, 0)] * 3
    dice = np.random.default_rng(19)
    single = scored(dice, (12, 1, 1), (1, 0, 0), False)
    values = [v for *_, v in single if v is not None]
    assert components(single).prompt == pytest.approx(np.var(values, ddof=1))
    assert len(components(single).notes) == 2
    assert spread(single, "k", "n", "c", "base").prompt.value == 1
    greedy = [(p, w, None, v) for p, w, _, v in scored(dice, (12, 4, 1), (1, 1, 0), False)]
    found = spread(greedy, "k", "n", "c", "base")
    assert (found.dice.value, found.seeds, found.wordings) == (0, 1, 4)
    assert found.wording.value > 0.1
    one = spread([(0, w, s, float(w + s)) for w in range(3) for s in range(3)], "k", "n", "c", "base")
    assert (one.prompt.low, one.prompt.high, one.prompts) == (0, 1, 1)
    odd = [(0, 0, 0, 7.3), *((p, w, s, 0.1) for p in range(1, 9) for w in range(2) for s in range(2))]
    assert spread(odd, "k", "n", "c", "base").prompt.value == 1, "rounding is no variance"
    sizes = [3, 2, 3, 3, 1, 1, 2, 3]
    exact = [(p, w, s, 5.78 if p == 6 else 0.2) for p in range(7) for w in range(sizes[p]) for s in range(sizes[p + 1])]
    assert not any("below 0" in note for note in components(exact).notes), "nor is it a negative one"
    holes: list[Scored] = [*single, (99, 0, 0, None), (98, 0, 0, math.nan)]
    assert spread(holes, "k", "n", "c", "base") == spread(single, "k", "n", "c", "base")
    for bad in ([], [(0, 0, 0, None)], [(0, 0, 0, math.inf)]):
        with pytest.raises(ValueError, match="no finite values"):
            components(bad)


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
    "**Reference: 4711**\n\n**Date: [Insert Date]**\n\n**Sender's Name: [Insert Sender's Name]**\n\n**Sender's Street and Town: "
    "[Insert Sender's Street and Town]**\n\n**Name of the Guest: [Insert Name of the Guest]**\n\n**Wishes: [Insert Wishes]**",
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
    ("[Insert Name] " * 12, "loop"),
    ("Dear [Insert Name] " * 12, "loop"),
    ("Name: [Insert Name]\nStreet: [Insert Street]\n" * 9, "loop"),
    ("see [the page](there) " * 9, "loop"),
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
    with ends_within(4):
        why_degenerate(" ".join(f"word{i}" for i in range(20_000)))
