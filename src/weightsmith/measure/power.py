"""What a design can find, and when a difference counts: the smallest change that is found with 80% power, p values
adjusted for how many were looked at, and the verdict from both.

SciPy only; no simulation: binomial and t distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from ..measured import Difference, Side

F64 = np.ndarray[Any, np.dtype[np.float64]]
ALPHA, POWER = 0.05, 0.8


def least_flips(alpha: float = ALPHA) -> int:
    """How many prompts have to change, all one way, for an exact paired test to fall under ``alpha``: 6 for 0.05.

    Both the exact McNemar test and the sign-flip test give ``2 · 0.5^k`` when all ``k`` changes go one way.
    """
    return math.floor(math.log2(2 / alpha)) + 1


def minimum_detectable(n: int, rate: bool, *, alpha: float = ALPHA, power: float = POWER, sd: float = 1.0) -> float:
    """The smallest true change that ``n`` paired prompts show with p under ``alpha`` in a share ``power`` of all tries.

    A *rate* (one answer a prompt, share of prompts): flips are taken to go one way, each prompt flipping with the same
    chance, which is exact for the McNemar test: :func:`least_flips` of ``n`` have to flip. Flips the other way as well make
    the true limit higher. A *mean*: ``(t[1 - alpha/2] + t[power]) / √n`` times ``sd``, the standard deviation of the paired
    differences (1: the answer is in standard deviations), t with n - 1 degrees of freedom (Cohen 1988, section 2.5, with t
    for z). Infinite where so few prompts can't fall under ``alpha`` whatever they show.
    """
    flips = least_flips(alpha)
    if n < flips:
        return math.inf
    if rate:
        return float(special.betaincinv(flips, n - flips + 1, power))
    quantiles = special.stdtrit(n - 1, 1 - alpha / 2) + special.stdtrit(n - 1, power)
    # the sign-flip test of a handful is coarse: there all of `flips` prompts have to go one way
    coarse = special.ndtri(power ** (1 / n)) if n == flips else 0.0
    return float(max(quantiles / math.sqrt(n), coarse)) * sd


def observed_mde(change: F64, *, rate: bool, answers: int) -> float | None:
    """The smallest change that this very comparison could find, from per-prompt differences ``[n]``; ``None``: none known.

    A rate with one answer a prompt: :func:`minimum_detectable` of its prompts. All else by the observed standard deviation
    of the differences; of a rate with several answers never under what :func:`least_flips` prompts make by one answer
    each, and as of one answer a prompt where no difference varies. Means that nowhere differ say nothing of their spread.
    """
    n = len(change)
    if n < least_flips():
        return None
    if rate and answers == n:
        return minimum_detectable(n, rate=True)
    sd = float(change.std(ddof=1))
    if sd <= 1e-12 * float(np.abs(change).max()):
        return minimum_detectable(n, rate=True) if rate else (0.0 if change.any() else None)
    found = minimum_detectable(n, rate=False, sd=sd)
    return max(found, least_flips() / answers) if rate else found


def holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted so that the chance of one false find in all of them stays under alpha (Holm 1979), in order.

    Raises:
        ValueError: a p that is not from 0 to 1.
    """
    p = np.array(ps, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"no p values: {[v for v in ps if not 0 <= v <= 1][:3]}")
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(v) for v in adjusted]


def judged(differences: Sequence[Difference], alpha: float = ALPHA) -> list[Difference]:
    """The same differences in the same order, with ``p_holm`` over each ``family`` and a verdict.

    *rises* or *falls* only where ``p_holm`` is under ``alpha`` and the change is not below ``mde``; *cannot tell* otherwise,
    and where there is no ``mde``. Differences without a family are one family of their own. ``mde`` is for one test at 0.05:
    it is not raised for the size of the family, as ``p_holm`` already answers for that.
    """
    families: dict[str, list[int]] = {}
    for i, difference in enumerate(differences):
        families.setdefault(difference.family, []).append(i)
    adjusted: dict[int, float] = {}
    for places in families.values():
        adjusted.update(zip(places, holm([differences[i].p for i in places]), strict=True))
    return [
        d.model_copy(update={"p_holm": adjusted[i], "verdict": _verdict(d, adjusted[i], alpha)})
        for i, d in enumerate(differences)
    ]


def _verdict(difference: Difference, p: float, alpha: float) -> Side:
    # rounding must not decide: 10 of 40 prompts that flip are a change of 0.25, whichever way it was summed
    if p >= alpha or difference.mde is None or abs(difference.value) < difference.mde * (1 - 1e-9) or not difference.value:
        return "cannot tell"
    return "rises" if difference.value > 0 else "falls"
