"""From answers to figures: paired differences, figures of one model alone, where the spread comes from, what to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..measured import Answer, Difference, Measurement, Spread
from .asks import Exchange
from .behaviour import Answered, Scored
from .degenerate import why_degenerate
from .spread import spread
from .stats import measurement, paired

Values = Sequence[float | None]


@dataclass(frozen=True)
class Sample:
    """One exchange with all its scores: what logs are made of. ``key`` is its block's."""

    key: str
    exchange: Exchange
    scores: dict[str, float | None]
    verdict: str | None = None


@dataclass
class SetScores:
    """Per-item results of a set of questions (multiple choice, bias): one value an item, and what items share.

    ``clusters`` name what makes items alike (a template, a question, a subject); ``chance`` is the value of a coin.
    """

    key: str
    name: str
    unit: str
    rate: bool
    values: list[float | None]
    clusters: list[str]
    digest: str
    group: str
    chance: float | None = None


def samples(answered: Sequence[Answered]) -> list[Sample]:
    """Every exchange with its scores."""
    found = []
    for block in answered:
        for i, exchange in enumerate(block.exchanges):
            scores = {s.name: s.values[i] for s in block.scores}
            verdict = block.verdicts[i] if block.verdicts else None
            found.append(Sample(block.block.key + block.suffix, exchange, scores, verdict))
    return found


def _about(answered: Answered, scored: Scored) -> dict[str, Any]:
    return {
        "key": scored.key + answered.suffix, "group": answered.block.group, "scorer": scored.scorer,
        "items": answered.units, "prompts": answered.block.prompts_digest,
    }  # fmt: skip


def _some(values: Values) -> bool:
    return any(v is not None for v in values)


def compared(before: Answered, after: Answered) -> list[Difference]:
    """Edited minus base for every score of a block; scores that one side does not have are left out."""
    found = []
    mates = {s.key: s for s in after.scores}
    for a in before.scores:
        b = mates.get(a.key)
        if b is not None and any(x is not None and y is not None for x, y in zip(a.values, b.values, strict=True)):
            found.append(paired(a.name, a.values, b.values, a.unit, before.condition, a.rate, **_about(before, a),
                                family=before.block.group))  # fmt: skip
    return found


def alone(answered: Answered) -> list[Measurement]:
    """Every score of a block, of one model."""
    return [measurement(s.name, s.values, s.unit, answered.condition, s.rate, **_about(answered, s))
            for s in answered.scores if _some(s.values)]  # fmt: skip


def flips(answered: Sequence[Answered], whose: str, suffix: str) -> list[Measurement]:
    """Whether verdicts flip when unfinished answers are read on, one figure a group: a condition has too few of them."""
    found = []
    for group in dict.fromkeys(a.block.group for a in answered):
        mine = [a for a in answered if a.block.group == group and a.longer]
        values = [v for a in mine for v in a.longer]
        units: dict[tuple[str, int], int] = {}
        items = [units.setdefault((a.block.key, u), len(units)) for a in mine for u in a.longer_units]
        if values:
            found.append(measurement(f"verdict flips at twice the length{whose}", values, "share of unfinished answers",
                                     "all conditions", True, key=f"{group}.flips{suffix}", group=group, scorer="refusal",
                                     items=items))  # fmt: skip
    return found


def spreads(answered: Sequence[Answered], model: Literal["base", "edited"]) -> list[Spread]:
    """Where the variance of each sampled score comes from."""
    found = []
    for block in answered:
        if block.suffix != ".sampled":
            continue
        for s in block.scores:
            rows = [(e.ask.item, e.ask.wording, e.decoding.seed or 0, v)
                    for e, v in zip(block.exchanges, s.values, strict=True) if v is not None]  # fmt: skip
            if rows:
                found.append(spread(rows, key=s.key + block.suffix, name=s.name, condition=block.condition, model=model,
                                    group=block.block.group))  # fmt: skip
    return found


@dataclass
class Reading:
    """How many pairs of answers of each condition go into the record, and the longest text kept."""

    each: int = 8
    characters: int = 4000
    worst: int = 10
    kl: dict[int, float] = field(default_factory=dict)


def answers(before: Sequence[Answered] | None, after: Sequence[Answered], reading: Reading) -> list[Answer]:
    """Pairs to read: the first of each condition, not picked by hand."""
    found = []
    for k, block in enumerate(after):
        base = before[k] if before is not None else None
        for i in range(min(reading.each, len(block.exchanges))):
            found.append(pair(base, block, i, reading))
    return found


def worst(before: Answered, after: Answered, reading: Reading) -> list[Answer]:
    """The answers with the largest KL, the largest first; ``reading.kl`` by the block's item."""
    ranked = sorted(reading.kl, key=lambda i: -reading.kl[i])[: reading.worst]
    return [pair(before, after, i, reading).model_copy(update={"kl": reading.kl[i]}) for i in ranked]


def pair(before: Answered | None, after: Answered, i: int, reading: Reading) -> Answer:
    """One question and what both models said."""
    mine = after.exchanges[i]
    theirs = before.exchanges[i] if before is not None else None
    cut = reading.characters

    def verdict(answered: Answered | None) -> str:
        return (answered.verdicts[i] or "") if answered is not None and answered.verdicts else ""

    def loops(exchange: Exchange | None) -> bool:
        return exchange is not None and exchange.text is not None and why_degenerate(exchange.text) is not None

    return Answer(
        prompt=mine.ask.prompt, condition=after.condition, group=after.block.group, item=mine.ask.item,
        wording=mine.ask.wording, seed=mine.decoding.seed, turn=mine.ask.turn, base=_text(theirs)[:cut],
        edited=_text(mine)[:cut], degenerate_base=loops(theirs), degenerate_edited=loops(mine),
        verdict_base=verdict(before), verdict_edited=verdict(after),
        thought_base=(theirs.thought if theirs else "")[:cut], thought_edited=mine.thought[:cut],
    )  # fmt: skip


def _text(exchange: Exchange | None) -> str:
    return (exchange.text or "") if exchange is not None else ""
