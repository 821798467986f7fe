"""Where the variance of a score comes from: the prompt, its wording, or the dice.

Model: a score is a mean, plus a random effect of the prompt, plus one of the wording within the prompt, plus one of the
seed within the wording. The three variances are estimated by the method of moments from the nested analysis of variance
with unequal numbers (Searle 1971, *Linear Models*, chapter 11; Searle, Casella and McCulloch 1992, *Variance Components*,
sections 5.2 and 5.3; Henderson's method 1): unbiased, no distribution is assumed, and an estimate can be negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..measured import Share, Spread
from .stats import F64, resampled, tails

#: (prompt, wording, seed, value); a value of ``None`` or NaN is missing
Scored = tuple[int, int, int | None, float | None]


@dataclass(frozen=True)
class Components:
    """Variances of one score before any is set to 0, and how much they were read from.

    ``wordings`` and ``seeds`` are the most that any prompt and any wording has. ``notes`` say what was set to 0 and why.
    """

    prompt: float
    wording: float
    dice: float
    prompts: int
    wordings: int
    seeds: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sums:
    """What the analysis of variance needs of every prompt: ``[prompts, 9]``; resampling prompts adds up rows."""

    rows: F64
    wordings: int
    seeds: int


def _sums(records: Iterable[Scored]) -> _Sums:
    kept = [(p, w, float(v)) for p, w, _, v in records if v is not None and not math.isnan(v)]
    if not kept or not all(math.isfinite(v) for _, _, v in kept):
        raise ValueError("no finite values to find the spread of")
    cells, places = np.unique(np.array([(p, w) for p, w, _ in kept], np.int64), axis=0, return_inverse=True)
    places = places.reshape(-1)
    values = np.array([v for _, _, v in kept])
    values = values - values[0]  # sums of squares about a value of the data: equal values leave exactly nothing
    prompts, owner = np.unique(cells[:, 0], return_inverse=True)
    a, b = len(prompts), len(cells)
    size = np.bincount(places, minlength=b).astype(np.float64)
    mean = np.bincount(places, values, b) / size
    n = np.bincount(owner, size, a)
    centre = np.bincount(owner, size * mean, a) / n
    within = np.bincount(owner[places], (values - mean[places]) ** 2, a)
    between = np.bincount(owner, size * (mean - centre[owner]) ** 2, a)
    cells_of = np.bincount(owner, minlength=a).astype(np.float64)
    squares = np.bincount(owner, size**2, a)
    rows = np.stack([n, cells_of, squares, squares / n, within, between, n * centre, n * centre**2, n**2], 1)
    return _Sums(rows, int(cells_of.max()), int(size.max()))


def _solve(sums: F64, prompts: int, drawn: bool = False) -> F64:
    """Expected mean squares solved for the variances: sums ``[..., 9]`` -> ``[..., 3]`` (prompt, wording, dice).

    A level with no degree of freedom has no variance of its own: it stands in the level above it (dice in wording, wording
    in prompt). Prompts ``drawn`` with replacement differ less by (n - 1)/n, which is made up for.
    """
    n, cells, squares, inner, within, between, first, second, whole = np.moveaxis(sums, -1, 0)

    def ratio(top: F64, bottom: F64) -> F64:
        there = bottom > 1e-9
        return np.asarray(np.where(there, top / np.where(there, bottom, 1.0), 0.0))

    dice = ratio(within, n - cells)
    wording = ratio(between - (cells - prompts) * dice, n - inner)
    wording = np.where(cells - prompts > 0.5, wording, 0.0)
    among = (second - first**2 / n) * (prompts / (prompts - 1) if drawn else 1.0)
    prompt = ratio(among - (inner - squares / n) * wording - (prompts - 1) * dice, n - whole / n)
    return np.stack([prompt if prompts > 1 else np.zeros_like(prompt), wording, dice], -1)


def components(records: Iterable[Scored]) -> Components:
    """The three variances as they were estimated, negative ones included.

    Raises:
        ValueError: no values, or infinite ones.
    """
    return _components(_sums(records))


def _components(sums: _Sums) -> Components:
    total = sums.rows.sum(0)
    prompt, wording, dice = (float(v) for v in _solve(total, len(sums.rows)))
    least = _rounding(prompt, wording, dice)
    notes = [
        f"the variance over {level} was estimated below 0 and set to 0"
        for level, found in (("prompts", prompt), ("wordings", wording)) if found < -least
    ]  # fmt: skip
    if total[0] == total[1]:
        notes.append("one answer a wording: what the dice add is counted with the wording or the prompt")
    if total[1] == len(sums.rows):
        notes.append("one wording a prompt: what the wording adds is counted with the prompt")
    return Components(prompt, wording, dice, len(sums.rows), sums.wordings, sums.seeds, tuple(notes))


def spread(
    records: Iterable[Scored], key: str, name: str, condition: str, model: Literal["base", "edited"], *,
    group: str = "", seed: int = 0, rounds: int = 1000,
) -> Spread:  # fmt: skip
    """The shares of prompt, wording and dice in the variance of one score, with bootstrap intervals over prompts.

    Negative estimates are set to 0 (:func:`components` has them, and says so). All three shares are 0 where the score
    never varies. A single prompt says nothing of the shares: their intervals are 0 to 1.

    Raises:
        ValueError: no values, or infinite ones.
    """
    sums = _sums(records)
    found, prompts = _components(sums), len(sums.rows)
    raw = np.array([found.prompt, found.wording, found.dice])
    least = _rounding(*raw)
    value, total = _shares(raw, least)
    if prompts > 1:
        drawn, _ = _shares(_solve(resampled(sums.rows, seed, rounds), prompts, drawn=True), least)
        low, high = np.quantile(drawn, tails(prompts), axis=0)
    else:
        low, high = np.zeros(3), np.ones(3)
    shares = [
        Share(value=float(v), low=min(float(a), float(v)), high=max(float(b), float(v)))
        for v, a, b in zip(value, low, high, strict=True)
    ]
    return Spread(key=key, name=name, condition=condition, model=model, sd=math.sqrt(float(total)), prompt=shares[0],
                  wording=shares[1], dice=shares[2], prompts=prompts, wordings=found.wordings, seeds=found.seeds,
                  group=group, notes=list(found.notes))  # fmt: skip


def _rounding(*variances: float) -> float:
    """What is no variance but rounding, beside these."""
    return 1e-12 * sum(abs(v) for v in variances)


def _shares(variances: F64, least: float) -> tuple[F64, Any]:
    """Each variance's share ``[..., 3]`` and the whole variance ``[...]``; those not above ``least`` are taken as 0."""
    kept = np.where(variances > least, variances, 0.0)
    total = kept.sum(-1)
    return kept / np.where(total > 0, total, 1.0)[..., None], total
