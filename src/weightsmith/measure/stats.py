"""Intervals and paired tests. Every rate has a Wilson interval, every mean a bootstrap over prompts.

``numpy`` and SciPy only; all randomness is seeded, so that a figure can be made again.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy import stats

from ..records import Difference, Measurement

F64 = np.ndarray[Any, np.dtype[np.float64]]
ROUNDS = 4000


def bootstrap_mean(values: F64, seed: int = 0, rounds: int = ROUNDS) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of per-prompt ``values`` ``[n]``."""
    if len(values) < 2:
        return float("-inf"), float("inf")
    rng = np.random.default_rng(seed)
    n = len(values)
    means = rng.multinomial(n, np.full(n, 1 / n), rounds) @ values / n
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a rate (Wilson 1927)."""
    found = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def measurement(name: str, values: F64, unit: str, condition: str = "", rate: bool = False) -> Measurement:
    """Summarise per-prompt values: a mean with a bootstrap interval, or a rate of ones with a Wilson interval.

    Values that are not finite are an error of the caller; an empty list has no figure.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{name}: no finite values to summarise")
    low, high = wilson(int(values.sum()), len(values)) if rate else bootstrap_mean(values)
    if len(values) < 2 and not rate:
        low = high = float(values[0])
    kind: Literal["wilson", "bootstrap", "none"] = "wilson" if rate else ("bootstrap" if len(values) > 1 else "none")
    return Measurement(name=name, value=float(values.mean()), unit=unit, low=low, high=high, n=len(values),
                       interval=kind, condition=condition, values=[float(v) for v in values])  # fmt: skip


def paired(name: str, base: F64, edited: F64, unit: str, condition: str, rate: bool = False) -> Difference:
    """Edited minus base on the same prompts: bootstrap interval of the mean difference, and a paired test.

    Rates are tested with the exact McNemar test (McNemar 1947), means with a sign-flip permutation test of the mean
    difference (two-sided, 10,000 seeded flips, or all of them where there are fewer).
    """
    before, after = np.asarray(base, np.float64), np.asarray(edited, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"{name}: the two sides have {len(before)} and {len(after)} prompts")
    change = after - before
    low, high = bootstrap_mean(change)
    if rate:
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        test = "McNemar, exact"
    else:
        p, test = sign_flip(change), "sign-flip permutation"
    return Difference(
        name=name, condition=condition, unit=unit, value=float(change.mean()), low=low, high=high, p=p, test=test,
        n=len(change), base=measurement(name, before, unit, condition, rate),
        edited=measurement(name, after, unit, condition, rate),
    )  # fmt: skip


def sign_flip(change: F64, rounds: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences being 0, by flipping signs; exact up to 13 pairs."""
    n = len(change)
    if not np.any(change):
        return 1.0
    if n <= 13:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float64)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (rounds, n))
    flipped = np.abs(signs @ change)
    extreme = int((flipped >= abs(change.sum()) * (1 - 1e-12)).sum())
    return extreme / len(signs) if n <= 13 else (extreme + 1) / (rounds + 1)
