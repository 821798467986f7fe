"""Answers to read: the base's beside every variant's, with the words that differ, verdicts, and thoughts apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..measured import Answer
from . import text
from .text import Piece
from .variant import Variant

# Answers of the first conditions that stand open; the others wait in a fold, so that a long record is still a short page.
OPEN_ANSWERS = 4
OPEN_CONDITIONS = 2
WORST = 10


@dataclass(frozen=True)
class Reply:
    """What one model answered. ``words`` says in short how it differs from the base's answer."""

    variant: Variant | None
    pieces: list[Piece]
    degenerate: bool
    words: str
    verdict: str
    thought: str

    @property
    def thought_words(self) -> int:
        """Length of the thought in words."""
        return len(self.thought.split())


@dataclass(frozen=True)
class Exchange:
    """One prompt under one condition with the base's answer (``None`` without a base) and every variant's."""

    prompt: str
    condition: str
    base: Reply | None
    replies: list[Reply | None]
    marks: list[str]
    kl: str


@dataclass(frozen=True)
class Set:
    """The answers under one condition of one group; ``shown`` of them stand open."""

    group: str
    condition: str
    exchanges: list[Exchange]
    shown: int


def _marks(a: Answer) -> list[str]:
    found = [f"turn {a.turn}"] * (a.turn > 1) + [f"wording {a.wording + 1}"] * (a.wording > 0)
    return found + ([f"seed {a.seed}"] if a.seed is not None else [])


def exchange(answers: Sequence[Answer | None], seen: Sequence[Variant]) -> Exchange:
    """Answers to one prompt, one for each variant, side by side."""
    first = next(a for a in answers if a is not None)
    alone = all(v.record.base is None for v, a in zip(seen, answers, strict=True) if a is not None)
    diffs = [text.word_diff(first.base, a.edited) if a and not alone else None for a in answers]
    replies: list[Reply | None] = []
    for v, a, d in zip(seen, answers, diffs, strict=True):
        words = "" if d is None else "unchanged" if d.same else "rewritten" if d.rewritten else ""
        if a is None:
            replies.append(None)
            continue
        pieces = d.pieces if d else [Piece(a.edited, False)] if a.edited else []
        replies.append(Reply(v, pieces, a.degenerate_edited, words, a.verdict_edited, a.thought_edited))
    # a rewritten answer keeps too little for a statement about single words of the base
    gone = [d.gone for d in diffs if d is not None]
    plain = any(d is not None and d.rewritten for d in diffs)
    said = text.mark(first.base, [] if plain else gone)
    base = Reply(None, said, first.degenerate_base, "", first.verdict_base, first.thought_base)
    kl = "" if first.kl is None else text.show(first.kl, first.kl, first.kl, "").value
    return Exchange(first.prompt, first.condition, None if alone else base, replies, _marks(first), kl)


def exchanges(seen: Sequence[Variant]) -> list[Set]:
    """Answers side by side, by group and condition.

    Variants share a row only where the prompt, the way it was asked and the base's answer agree; a base that answered
    otherwise, or a prompt asked twice, gets a row of its own rather than a false neighbour.
    """
    rows: dict[tuple[object, ...], list[Answer | None]] = {}
    for column, v in enumerate(seen):
        times: Counter[tuple[object, ...]] = Counter()
        for a in v.record.answers:
            key = (a.group, a.condition, a.prompt, a.wording, a.seed, a.turn, a.base)
            row = rows.setdefault((*key, times[key]), [None] * len(seen))
            row[column] = a
            times[key] += 1
    grouped: dict[tuple[str, str], list[Exchange]] = {}
    for answers in rows.values():
        first = next(a for a in answers if a is not None)
        grouped.setdefault((first.group, first.condition), []).append(exchange(answers, seen))
    return [
        Set(group, condition, mine, OPEN_ANSWERS if i < OPEN_CONDITIONS else 0)
        for i, ((group, condition), mine) in enumerate(grouped.items())
    ]


def worst(v: Variant) -> list[Exchange]:
    """The answers of one variant with the largest KL, the worst first, at most ten."""
    found = sorted(v.record.worst, key=lambda a: -(a.kl if a.kl is not None else -1.0))[:WORST]
    return [exchange([a], [v]) for a in found]


def tally(v: Variant) -> str:
    """How many of the answers that are shown changed, and how many are degenerate, in one sentence."""
    answers = v.record.answers
    after = sum(a.degenerate_edited for a in answers)
    if v.record.base is None:
        return f"{len(answers)} answers are shown; {after} of them are degenerate."
    changed = sum(a.base != a.edited for a in answers)
    before = sum(a.degenerate_base for a in answers)
    return f"{changed} of the {len(answers)} answers shown changed; {after} of them degenerate after the edit, {before} before."
