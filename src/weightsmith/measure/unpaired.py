"""Differences of two figures whose values can't be paired: other prompts, or prompts that are not on record.

Both sides are taken for independent samples of one kind of prompt. The prompt is the unit, as in :mod:`.stats`. Two sides
that do share prompts are told apart less well than they could be, never better than they should.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special, stats

from ..measured import Difference, Measurement
from .power import ALPHA, POWER
from .stats import blocks, rate_interval

F64 = np.ndarray[Any, np.dtype[np.float64]]


def unpaired(first: Measurement, second: Measurement, *, family: str = "") -> Difference:
    """Second minus first, from their per-prompt ``values``.

    A *rate* (Wilson's interval on both sides): the hybrid score interval of Newcombe (1998, Statistics in Medicine 17:873,
    method 10; with several answers a prompt its general form, Zou and Donner 2008), tested with Fisher's exact test where
    every prompt has one answer, else by permuting the labels. A *mean*: Welch's t (1947), interval and test; by permuting
    the labels where neither side varies at all.

    Raises:
        ValueError: fewer than two values on a side, or none kept: errors of the caller.
    """
    old, new = (np.array(m.values or (), np.float64) for m in (first, second))
    if min(len(old), len(new)) < 2:
        raise ValueError(f"{first.name}: two values a side are needed")
    value = float(new.mean() - old.mean())
    if are_rates(first, second):
        answers = max(first.answers, len(old)), max(second.answers, len(new))
        low, high = newcombe(old, new, answers)
        plain = answers == (len(old), len(new)) and bool(np.isin(np.concatenate([old, new]), (0, 1)).all())
        p, test = (fisher(old, new), "Fisher, exact") if plain else (permuted(old, new), "label permutation")
    elif (spread := welch(old, new)) is None:
        low = high = value
        p, test = permuted(old, new), "label permutation"
    else:
        error, freedom = spread
        half = error * float(special.stdtrit(freedom, 0.975))
        low, high, test = value - half, value + half, "Welch's t"
        p = 2 * float(special.stdtr(freedom, -abs(value) / error))
    return Difference(
        name=first.name, condition=first.condition, unit=first.unit, base=first, edited=second, value=value,
        low=min(low, value), high=max(high, value), p=p, test=test, n=min(len(old), len(new)), key=first.key,
        group=first.group, scorer=first.scorer, family=family, mde=welch_mde(old, new),
    )  # fmt: skip


def are_rates(first: Measurement, second: Measurement) -> bool:
    """Whether both figures are shares of answers: with Wilson's interval, from values of 0 to 1."""
    return all(m.interval == "wilson" and all(0 <= v <= 1 for v in m.values or ()) for m in (first, second))


def newcombe(old: F64, new: F64, answers: tuple[int, int]) -> tuple[float, float]:
    """95% interval of new minus old for two independent rates, from their own intervals."""
    p, q = float(old.mean()), float(new.mean())
    (p_low, p_high), (q_low, q_high) = rate_interval(old, answers[0]), rate_interval(new, answers[1])
    return q - p - math.hypot(q - q_low, p_high - p), q - p + math.hypot(q_high - q, p - p_low)


def fisher(old: F64, new: F64) -> float:
    """Exact two-sided p of equal rates, from values that are 0 or 1 (Fisher 1935)."""
    table = [[int(side.sum()), int(len(side) - side.sum())] for side in (old, new)]
    return float(stats.fisher_exact(table).pvalue)


def permuted(old: F64, new: F64, rounds: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the difference of means, by dealing the values out anew (Pitman 1937); seeded."""
    pooled, n = np.concatenate([old, new]), len(old)
    pooled = pooled - pooled.mean()
    least = abs(float(pooled[:n].sum())) * (1 - 1e-12) - 1e-15
    rng, extreme = np.random.default_rng(seed), 0
    for size in blocks(rounds, len(pooled)):
        dealt = rng.permuted(np.broadcast_to(pooled, (size, len(pooled))), axis=1)
        extreme += int((np.abs(dealt[:, :n].sum(1)) >= least).sum())
    return (extreme + 1) / (rounds + 1)


def welch(old: F64, new: F64) -> tuple[float, float] | None:
    """Standard error of the difference of means and its degrees of freedom (Welch 1947); ``None`` where neither side
    varies by more than rounding, which says nothing of their spread."""
    a, b = (float(side.var(ddof=1)) / len(side) for side in (old, new))
    if math.sqrt(a + b) <= 1e-12 * float(np.abs(np.concatenate([old, new])).max()):
        return None
    return math.sqrt(a + b), (a + b) ** 2 / (a**2 / (len(old) - 1) + b**2 / (len(new) - 1))


def welch_mde(old: F64, new: F64) -> float | None:
    """The smallest change that this comparison finds with 80% power: ``(t[0.975] + t[0.8])`` standard errors at Welch's
    degrees of freedom; ``None`` where there is no such error."""
    if (spread := welch(old, new)) is None:
        return None
    error, freedom = spread
    return float(special.stdtrit(freedom, 1 - ALPHA / 2) + special.stdtrit(freedom, POWER)) * error
