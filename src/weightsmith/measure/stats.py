"""Intervals and paired tests; the prompt is the unit, however many answers it has.

A *mean* has a bootstrap interval over prompts: percentiles, moved out for small samples as Hesterberg (2015, "What
Teachers Should Know About the Bootstrap", section 4.3, *expanded percentile*) does. A *rate* has a Wilson interval, and a
paired difference of rates one by the method of Newcombe (1998), since the bootstrap fails for rates: it has no width
where all answers agree, and simulated at 16 prompts it covered as little as 66% of the time.

With several answers a prompt, each prompt's mean is taken first and the figure is the mean of these means: every prompt
weighs the same, however many answers it lost. ``numpy`` and SciPy only; all randomness is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special, stats

from ..measured import Difference, Measurement
from .power import observed_mde

F64 = np.ndarray[Any, np.dtype[np.float64]]
Values = F64 | Sequence[float | None]
ROUNDS = 4000
Z = float(special.ndtri(0.975))
#: numbers held at once while resampling, 32 MB
BLOCK = 4_000_000


class Estimate(NamedTuple):
    """A figure with its 95% interval, over ``n`` independent units."""

    value: float
    low: float
    high: float
    n: int


# -- resampling --------------------------------------------------------------------------------------------


def blocks(rounds: int, width: int) -> Iterator[int]:
    """``rounds`` cut into row counts such that a block ``[rows, width]`` stays small."""
    rows = max(1, BLOCK // max(1, width))
    for start in range(0, rounds, rows):
        yield min(rows, rounds - start)


def tails(n: int) -> tuple[float, float]:
    """The quantiles of a 95% expanded percentile interval from ``n`` units (Hesterberg 2015, section 4.3)."""
    tail = float(special.ndtr(-math.sqrt(n / (n - 1)) * special.stdtrit(n - 1, 0.975)))
    return tail, 1 - tail


def resampled(rows: F64, seed: int, rounds: int) -> F64:
    """Sums over units drawn with replacement: ``rows`` ``[n, k]`` -> ``[rounds, k]``."""
    rng, n = np.random.default_rng(seed), len(rows)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size) @ rows for size in blocks(rounds, n)]
    return np.concatenate(drawn)


def bootstrap_mean(values: F64, seed: int = 0, rounds: int = ROUNDS) -> tuple[float, float]:
    """95% bootstrap interval of the mean of per-prompt ``values`` ``[n]``, by expanded percentiles."""
    n = len(values)
    if n < 2:
        return float("-inf"), float("inf")
    # by differences from the mean: values that are all equal have an interval of no width, not of rounding errors
    centre = float(values.mean())
    rng, away = np.random.default_rng(seed), values - values[0]
    means = np.concatenate([away[rng.integers(0, n, (size, n))].mean(1) for size in blocks(rounds, n)])
    low, high = np.quantile(means, tails(n)) + values[0]
    return min(float(low), centre), max(float(high), centre)


def clustered_bootstrap(
    values: F64, clusters: Sequence[Hashable], seed: int = 0, rounds: int = ROUNDS
) -> tuple[float, float]:
    """95% interval of the mean over all ``values`` ``[n]`` where those of one cluster go together.

    Whole clusters are drawn (items of one template, answers to one question) and the figure is the ratio of the drawn
    sums, so a large cluster weighs more; expanded percentiles (Davison and Hinkley 1997, section 3.8).
    """
    sums, sizes = _cluster_sums(values, clusters)
    if len(sums) < 2:
        return float("-inf"), float("inf")
    drawn = resampled(np.stack([sums, sizes], 1), seed, rounds)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], tails(len(sums)))
    return float(low), float(high)


def cluster_se(values: F64, clusters: Sequence[Hashable]) -> float:
    """Cluster-robust standard error of the mean over all ``values`` (Liang and Zeger 1986, with the factor G/(G−1))."""
    values = np.asarray(values, np.float64)
    sums, sizes = _cluster_sums(values, clusters)
    g = len(sums)
    if g < 2:
        return float("inf")
    residuals = sums - sizes * values.mean()
    return float(math.sqrt(g / (g - 1) * (residuals**2).sum()) / len(values))


def _codes(labels: Sequence[Hashable]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
    """Each label's number, in order of first appearance, and how many there are."""
    known: dict[Hashable, int] = {}
    codes = np.array([known.setdefault(label, len(known)) for label in labels], np.int64)
    return codes, len(known)


def _cluster_sums(values: F64, clusters: Sequence[Hashable]) -> tuple[F64, F64]:
    values = np.asarray(values, np.float64)
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters")
    codes, g = _codes(clusters)
    sizes: F64 = np.bincount(codes, minlength=g).astype(np.float64)
    return np.asarray(np.bincount(codes, values, g), np.float64), sizes


# -- rates -------------------------------------------------------------------------------------------------


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95% Wilson score interval of a rate (Wilson 1927); both numbers may be effective ones, not whole."""
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"{successes} of {n} is no rate")
    p, weight = successes / n, Z * Z / n
    middle = (p + weight / 2) / (1 + weight)
    half = math.sqrt(p * (1 - p) * weight + weight * weight / 4) / (1 + weight)
    return (0.0 if successes == 0 else max(0.0, middle - half)), (1.0 if successes == n else min(1.0, middle + half))


def rate_interval(means: F64, answers: int) -> tuple[float, float]:
    """95% interval of a rate from per-prompt means ``[n]`` of ``answers`` answers in all.

    Wilson's, at the *effective* number of answers: as many independent ones as have the variance that the prompt means
    show (Korn and Graubard 1998, Survey Methodology 24: with a t quantile, never fewer than the prompts and never more
    than the answers). With one answer a prompt that is Wilson's interval itself.
    """
    n, p, variance = len(means), float(means.mean()), float(means.var())
    effective = float(n)
    if n > 1 and 0 < p < 1:
        design = p * (1 - p) * n / variance if variance > 1e-15 else math.inf
        effective = min(max(design * float(Z / special.stdtrit(n - 1, 0.975)) ** 2, n), answers)
    return wilson(p * effective, effective)


def rate_difference_interval(base: F64, edited: F64, answers: int) -> tuple[float, float]:
    """95% interval of the difference of paired rates, from per-prompt means ``[n]`` of ``answers`` answers a side.

    Newcombe (1998, Statistics in Medicine 17:2635, method 10): the two Wilson intervals, squared and added, with the
    correlation of the sides, whose covariance is first brought towards 0 by half a count. With several answers a prompt
    the same is done with :func:`rate_interval` (the general form is Zou and Donner 2008, Statistics in Medicine 27:1693).
    """
    p, q = float(base.mean()), float(edited.mean())
    (p_low, p_high), (q_low, q_high) = rate_interval(base, answers), rate_interval(edited, answers)
    both = float(((base - p) * (edited - q)).mean())
    both = max(both - 1 / (2 * answers), 0.0) if both > 0 else both
    scale = float(base.std() * edited.std())
    r = min(1.0, max(-1.0, both / scale)) if scale > 1e-12 else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * r * one * other + other * other))

    return max(-1.0, q - p - reach(q - q_low, p_high - p)), min(1.0, q - p + reach(q_high - q, p - p_low))


# -- figures -----------------------------------------------------------------------------------------------


def measurement(
    name: str, values: Values, unit: str, condition: str = "", rate: bool = False, *, key: str = "", group: str = "",
    scorer: str = "", items: Sequence[int] | None = None, missing: int = 0, prompts: str = "",
) -> Measurement:  # fmt: skip
    """Summarise one value an answer: a mean with a bootstrap interval, or a rate with a Wilson interval.

    ``items`` is the prompt of each answer; without it every answer has its own. ``None`` and NaN are missing: they are
    left out and counted on top of ``missing``. ``values`` of the figure are prompt means in order of ``items``.

    Raises:
        ValueError: infinite values, none at all, or a rate outside 0 to 1: errors of the caller.
    """
    read = _numbers(name, values, rate)
    there = ~np.isnan(read)
    if not there.any():
        raise ValueError(f"{name}: no finite values to summarise")
    means, counts = per_prompt(read[there], None if items is None else _of_each(read, items)[there])
    n, answers = len(means), int(counts.sum())
    value = float(means.mean())
    kind: Literal["wilson", "bootstrap", "none"] = "wilson" if rate else ("bootstrap" if n > 1 else "none")
    low, high = (value, value) if kind == "none" else (rate_interval(means, answers) if rate else bootstrap_mean(means))
    return Measurement(
        name=name, value=value, unit=unit, low=low, high=high, n=n, interval=kind, condition=condition,
        values=means.tolist(), key=key, group=group, scorer=scorer, answers=answers,
        missing=missing + int((~there).sum()), prompts=prompts,
    )  # fmt: skip


def _numbers(name: str, values: Values, rate: bool) -> F64:
    """As numbers, NaN where there is none."""
    read = np.array([math.nan if v is None else float(v) for v in values], np.float64)
    if np.isinf(read).any():
        raise ValueError(f"{name}: no finite values to summarise, there are infinite ones")
    if rate and ((read < 0) | (read > 1)).any():
        raise ValueError(f"{name}: a rate is made of values from 0 to 1")
    return read


def _of_each(values: F64, items: Any) -> Any:
    """The prompt of each value, as an array."""
    if len(items) != len(values):
        raise ValueError(f"{len(values)} values and the prompts of {len(items)}")
    return np.asarray(items)


def per_prompt(values: F64, items: Any = None) -> tuple[F64, F64]:
    """Mean and number of the answers of each prompt, ``[prompts]``, in order of ``items``."""
    if items is None:
        return values, np.ones(len(values))
    _, at, places = np.unique(_of_each(values, items), return_index=True, return_inverse=True)
    counts, first = np.bincount(places).astype(np.float64), values[at]
    # about each prompt's first value: equal answers have exactly that mean
    return first + np.bincount(places, values - first[places]) / counts, counts


def paired(
    name: str, base: Values, edited: Values, unit: str, condition: str, rate: bool = False, *, key: str = "",
    group: str = "", scorer: str = "", family: str = "", items: Sequence[int] | None = None, missing: int = 0,
    prompts: str = "",
) -> Difference:  # fmt: skip
    """Edited minus base on the same asks, one value an answer: interval, paired test and smallest change to be found.

    Rates with one answer a prompt are tested with the exact McNemar test (McNemar 1947). All else (means, rates with
    several answers a prompt) with a sign-flip permutation test over prompts of the mean difference (two-sided, 10,000
    seeded flips, or all of them where there are fewer). A pair that lacks a value on either side (``None``, NaN) is in
    none of the figures; ``missing`` of each side counts what *it* lacked (on top of ``missing``), ``answers`` what was
    compared. ``mde`` is ``None`` where no change at all could be found, or nothing is known of the spread.

    Raises:
        ValueError: sides of different length, no pair at all, infinite values: errors of the caller.
    """
    before, after = _numbers(name, base, rate), _numbers(name, edited, rate)
    if before.shape != after.shape:
        raise ValueError(f"{name}: the two sides have {len(before)} and {len(after)} prompts")
    both = ~(np.isnan(before) | np.isnan(after))
    if not both.any():
        raise ValueError(f"{name}: no finite values to summarise on both sides")
    kept = None if items is None else _of_each(before, items)[both].tolist()
    sides = [
        measurement(name, side[both], unit, condition, rate, key=key, group=group, scorer=scorer, items=kept,
                    missing=missing + int(np.isnan(side).sum()), prompts=prompts)
        for side in (before, after)
    ]  # fmt: skip
    old, new = (np.array(side.values, np.float64) for side in sides)
    change, answers = new - old, sides[0].answers
    alone = rate and answers == len(change) and bool(np.isin(change, (-1, 0, 1)).all())
    if rate:
        low, high = rate_difference_interval(old, new, answers)
    else:
        low, high = bootstrap_mean(change) if len(change) > 1 else (float(change[0]), float(change[0]))
    return Difference(
        name=name, condition=condition, unit=unit, value=float(change.mean()), low=low, high=high,
        p=mcnemar(change) if alone else sign_flip(change), test="McNemar, exact" if alone else "sign-flip permutation",
        n=len(change), base=sides[0], edited=sides[1], key=key, group=group, scorer=scorer, family=family,
        mde=observed_mde(change, rate=rate, answers=answers),
    )  # fmt: skip


def mcnemar(change: F64) -> float:
    """Exact two-sided p of as many 0→1 as 1→0; ``change`` is -1, 0 or 1 a prompt (McNemar 1947)."""
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(change: F64, rounds: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences being 0, by flipping signs; exact up to 13 that are not 0."""
    change = change[change != 0]  # a 0 keeps every flip as it is
    n = len(change)
    if not n:
        return 1.0
    least = abs(change.sum()) * (1 - 1e-12)
    if n <= 13:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float64)
        return int((np.abs(signs @ change) >= least).sum()) / len(signs)
    rng, extreme = np.random.default_rng(seed), 0
    for size in blocks(rounds, n):
        signs = rng.integers(0, 2, (size, n), np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ change) >= least).sum())
    return (extreme + 1) / (rounds + 1)


def quantile_measurement(
    name: str, values: Sequence[Sequence[float] | F64], q: float, unit: str, condition: str = "", *, key: str = "",
    group: str = "", prompts: str = "", seed: int = 0, rounds: int = 1000,
) -> Measurement:  # fmt: skip
    """The ``q`` quantile of all tokens' ``values``, which are given prompt by prompt; the interval is over prompts.

    The smallest value that at least the share ``q`` of all tokens doesn't exceed; prompts with more tokens weigh more. Whole
    prompts are drawn, since the tokens of one answer are alike. Prompts without tokens are left out and counted as missing.

    Raises:
        ValueError: no values, or some that are not finite: errors of the caller.
    """
    rows = [np.asarray(v, np.float64) for v in values if len(v)]
    pooled = np.concatenate(rows) if rows else np.array([])
    if not len(pooled) or not np.isfinite(pooled).all():
        raise ValueError(f"{name}: no finite values to summarise")
    n, pick = len(rows), _weighted_quantile(pooled, np.repeat(np.arange(len(rows)), [len(r) for r in rows]), q)
    value = float(pick(np.ones((1, n)))[0])
    low = high = value
    if n > 1:
        rng = np.random.default_rng(seed)
        drawn = [pick(rng.multinomial(n, np.full(n, 1 / n), size)) for size in blocks(rounds, n + math.isqrt(len(pooled)))]
        limits = np.quantile(np.concatenate(drawn), tails(n))
        low, high = min(float(limits[0]), value), max(float(limits[1]), value)
    return Measurement(name=name, value=value, unit=unit, low=low, high=high, n=n, condition=condition, key=key,
                       interval="bootstrap" if n > 1 else "none", group=group, answers=n,
                       missing=len(values) - n, prompts=prompts)  # fmt: skip


def _weighted_quantile(pooled: F64, owner: Any, q: float) -> Callable[[Any], F64]:
    """From weights of owners ``[rows, n]`` to the quantiles of all values so weighted ``[rows]``.

    In two steps, as ``[rows, values]`` would be large: first the bin of about √T ranks, then the rank in it.
    """
    order, t = np.argsort(pooled, kind="stable"), len(pooled)
    ranked, owner, step = pooled[order], owner[order], math.isqrt(t) + 1
    bins = -(-t // step)
    counts = np.zeros((int(owner.max()) + 1, bins))
    np.add.at(counts, (owner, np.arange(t) // step), 1)
    upto = np.cumsum(counts, 1)

    def pick(weights: Any) -> F64:
        reached = weights @ upto
        wanted = q * reached[:, -1:] - 1e-9
        at = np.minimum((reached < wanted).sum(1), bins - 1)[:, None]
        before = np.where(at > 0, np.take_along_axis(reached, np.maximum(at - 1, 0), 1), 0.0)
        ranks = at * step + np.arange(step)
        inside = np.take_along_axis(weights, owner[np.minimum(ranks, t - 1)], 1) * (ranks < t)
        below = (before + np.cumsum(inside, 1) < wanted).sum(1)
        return np.asarray(ranked[np.minimum(at[:, 0] * step + below, t - 1)], np.float64)

    return pick


def maximum(
    name: str, values: Sequence[Sequence[float] | F64], unit: str, condition: str = "", *, key: str = "",
    group: str = "", prompts: str = "",
) -> Measurement:  # fmt: skip
    """The largest of all tokens' ``values``; it has no interval, as no sample says how large the next one can be.

    Raises:
        ValueError: no values, or some that are not finite: errors of the caller.
    """
    tops = np.array([np.max(v) for v in values if len(v)], np.float64)
    if not len(tops) or not np.isfinite(tops).all():
        raise ValueError(f"{name}: no finite values to summarise")
    top = float(tops.max())
    return Measurement(name=name, value=top, unit=unit, low=top, high=top, n=len(tops), interval="none", key=key,
                       condition=condition, group=group, answers=len(tops), missing=len(values) - len(tops),
                       prompts=prompts)  # fmt: skip


# -- agreement of two readers ------------------------------------------------------------------------------


def kappa(
    a: Sequence[Hashable], b: Sequence[Hashable], labels: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None, seed: int = 0, rounds: int = ROUNDS,
) -> Estimate:  # fmt: skip
    """Cohen's kappa of two readers of the same answers (Cohen 1960), with a bootstrap interval.

    ``clusters`` names the prompt of each answer: whole prompts are drawn. Where the readers never differ the bootstrap has
    no width, so the lower limit is the kappa at the Wilson limit of the observed agreement. Resamples without a kappa (one
    label only) are left out.

    Raises:
        ValueError: unequal lengths, a label that is not of ``labels``, or one label only, where kappa is 0/0.
    """
    owners, n = _codes(range(len(a)) if clusters is None else clusters)
    known = {label: i for i, label in enumerate(dict.fromkeys([*a, *b]) if labels is None else labels)}
    if not len(a) == len(b) == len(owners) or not n:
        raise ValueError(f"{len(a)}, {len(b)} labels and {len(owners)} clusters")
    if strange := {*a, *b} - known.keys():
        raise ValueError(f"no label is called {min(map(str, strange))}")
    if len(known) < 2:
        raise ValueError("agreement beyond chance needs two labels")
    counts = np.zeros((n, len(known), len(known)))
    rows, columns = (np.array([known[x] for x in side], np.int64) for side in (a, b))
    np.add.at(counts, (owners, rows, columns), 1)

    def beyond(tables: F64) -> tuple[F64, F64]:
        tables = tables / tables.sum((-1, -2), keepdims=True)
        expected = np.asarray((tables.sum(-1) * tables.sum(-2)).sum(-1), np.float64)  # by chance
        defined = np.where(expected < 1 - 1e-12, 1 - expected, math.nan)
        return (np.trace(tables, axis1=-2, axis2=-1) - expected) / defined, expected

    whole, expected = beyond(counts.sum(0))
    value = float(whole)
    if math.isnan(value):
        raise ValueError("both readers give one label only: kappa is 0/0 there")
    if len(counts) < 2:
        return Estimate(value, -1.0, 1.0, n)
    drawn, _ = beyond(resampled(counts.reshape(n, -1), seed, rounds).reshape(rounds, *counts.shape[1:]))
    low, high = np.nanquantile(drawn, tails(n))
    if value >= 1 - 1e-12:
        low = min(low, (wilson(n, n)[0] - expected) / (1 - expected))
    return Estimate(value, min(float(low), value), max(float(high), value), n)
