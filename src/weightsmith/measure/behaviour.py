"""What a model says and how it is scored: blocks answered greedily, sampled, and over several turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..storage import digest_of
from .asks import Ask, Decoding, Exchange
from .degenerate import repetition, why_degenerate
from .refusal import Refusal, verdicts
from .scorers import Probe, Scorer
from .subject import Job, Subject
from .suites import Block, Suite, reworded

CLASSES = ("refuses", "complies", "off-topic", "degenerate")


@dataclass
class Scored:
    """One score over exchanges: ``values[i]`` belongs to ``exchanges[i]``; ``None`` where there is none."""

    key: str
    name: str
    unit: str
    rate: bool
    scorer: str
    values: list[float | None]


@dataclass
class Answered:
    """One block's exchanges of one model under one way of decoding, with their scores and verdicts."""

    block: Block
    condition: str
    suffix: str
    exchanges: list[Exchange]
    units: list[int]
    scores: list[Scored] = field(default_factory=list)
    verdicts: list[str | None] = field(default_factory=list)
    longer: list[float] = field(default_factory=list)
    longer_units: list[int] = field(default_factory=list)


def greedy(subject: Subject, suite: Suite) -> Decoding:
    """Greedy decoding of the suite's length, longer for a model that thinks first."""
    return Decoding(suite.tokens + (suite.thought_tokens if subject.thinks else 0))


def answer_block(subject: Subject, block: Block, suite: Suite, pool: Any = None) -> Answered:
    """Greedy answers to a block, scored."""
    how = greedy(subject, suite)
    exchanges = subject.answer([(a, how) for a in block.asks], f"answering ({block.condition})", pool)
    found = Answered(block, block.condition, "", exchanges, list(block.units))
    score_all(subject, found, asks=True)
    return found


def sample_block(subject: Subject, block: Block, suite: Suite, pool: Any = None) -> Answered:
    """Answers at the model's own default temperature: every wording with every seed."""
    jobs = sampled_jobs(subject, block, suite)
    exchanges = subject.answer(jobs, f"sampling ({block.condition})", pool)
    units = [block.units[a.item] for a, _ in jobs]
    found = Answered(block, f"{block.condition}, sampled", ".sampled", exchanges, units)
    score_all(subject, found, asks=False)
    return found


def sampled_jobs(subject: Subject, block: Block, suite: Suite) -> list[Job]:
    """Every wording of a block's questions with every seed, at the model's own default temperature."""
    base = subject.default_decoding(greedy(subject, suite).max_new_tokens)
    if base.greedy:
        base = replace(base, temperature=1.0)
    return [(ask, replace(base, seed=seed)) for ask in reworded(block, suite) for seed in range(1, suite.seeds + 1)]


def answer_turns(
    subject: Subject, block: Block, turns: Sequence[tuple[str, ...]], suite: Suite, pool: Any = None
) -> list[Answered]:
    """Conversations of several turns, each answered in the model's own words; one :class:`Answered` a turn.

    ``block`` holds the first turns; the scorers read every turn's answer. A conversation that outgrows the model's context
    has no answer from there on, with a note.
    """
    how, found = greedy(subject, suite), []
    asks = list(block.asks)
    for turn in range(1, len(turns[0]) + 1):
        room = [subject.fits(a, how) for a in asks]
        told = iter(subject.answer([(a, how) for a, fits in zip(asks, room, strict=True) if fits],
                                   f"{block.condition}, turn {turn}", pool))  # fmt: skip
        exchanges = [next(told) if fits else Exchange(a, how, (), (), None, "", False)
                     for a, fits in zip(asks, room, strict=True)]  # fmt: skip
        one = Answered(block, f"{block.condition}, turn {turn}", f".turn{turn}", exchanges, list(block.units))
        score_all(subject, one, asks=False)
        found.append(one)
        if turn < len(turns[0]):
            asks = [_next(e, turns[e.ask.item][turn], turn + 1) for e in exchanges]
    return found


def _next(exchange: Exchange, text: str, turn: int) -> Ask:
    ask = exchange.ask
    said = {"role": "assistant", "content": exchange.text or ""}
    return Ask(ask.group, ask.condition, ask.item, text, (*ask.messages, said, {"role": "user", "content": text}), turn=turn)


def score_all(subject: Subject, answered: Answered, *, asks: bool) -> None:
    """Fill in scores and verdicts; scorers that ask the model only with ``asks``."""
    block, exchanges = answered.block, answered.exchanges
    add = answered.scores.append
    for scorer in block.scorers:
        if (scorer.asks and not asks) or (block.verdicts and isinstance(scorer, Refusal)):
            continue  # a verdict is counted once: its four classes stand below
        values = _score(subject, scorer, exchanges)
        add(Scored(f"{block.key}.{scorer.name}", scorer.name, scorer.unit, scorer.rate, scorer.name, values))
    share = "share of answers"
    if block.verdicts:
        answered.verdicts = verdicts(exchanges)
        for name in CLASSES:
            values = [None if v is None else float(v == name) for v in answered.verdicts]
            add(Scored(f"{block.key}.{name}", name, share, True, "refusal", values))
    else:
        loops = [None if e.text is None else float(why_degenerate(e.text) is not None) for e in exchanges]
        add(Scored(f"{block.key}.degenerate", "degenerate", share, True, "degenerate", loops))
    if block.form:
        add(Scored(f"{block.key}.length", "length", "tokens", False, "", [float(len(e.tokens)) for e in exchanges]))
        again = [None if e.text is None else repetition(e.text) for e in exchanges]
        add(Scored(f"{block.key}.repetition", "repetition", "share of 4-grams", False, "", again))
    if any(e.thought for e in exchanges):
        _score_thoughts(subject, answered)


def _score_thoughts(subject: Subject, answered: Answered) -> None:
    """The thought is measured apart from the answer: its length, whether it ended, and the scorers that read text."""
    block, exchanges = answered.block, answered.exchanges
    thoughts = [replace(e, text=e.thought or None, thought="") for e in exchanges]
    sizes: list[float | None] = [float(len(e.thought.split())) for e in exchanges]
    ends: list[float | None] = [float(e.text is not None) for e in exchanges]
    answered.scores.append(Scored(f"{block.key}.thought.length", "thought: length", "words", False, "", sizes))
    answered.scores.append(Scored(f"{block.key}.thought.ended", "thought: ended", "share of answers", True, "", ends))
    for scorer in block.scorers:
        if not scorer.asks:
            values = _score(subject, scorer, thoughts)
            answered.scores.append(Scored(f"{block.key}.thought.{scorer.name}", f"thought: {scorer.name}", scorer.unit,
                                          scorer.rate, scorer.name, values))  # fmt: skip


def _score(subject: Subject, scorer: Scorer, exchanges: list[Exchange]) -> list[float | None]:
    if not scorer.asks:
        return scorer.score(None, exchanges)
    def ask() -> list[float | None]:
        if isinstance(scorer, Probe):  # it reads the base, never the model under hooks
            return scorer.score(subject.running, exchanges)
        with subject.steered():
            return scorer.score(subject.running, exchanges)

    key = [scorer_key(scorer), [[list(e.prompt_ids), list(e.tokens)] for e in exchanges]]
    found: list[float | None] = subject.value("scores", key, ask)
    return found


def scorer_key(scorer: Scorer) -> str:
    """Digest of what a scorer's value depends on besides the exchange: its kind and its own settings."""
    settings: Any = scorer.settings() if hasattr(scorer, "settings") else repr(scorer)
    return digest_of([type(scorer).__module__, type(scorer).__name__, settings])


def read_on(subject: Subject, answered: Sequence[Answered], suite: Suite) -> None:
    """Whether the verdict changes when unfinished answers are read to twice their length, 0 or 1 an answer.

    All blocks go on together: a batch of a few rows costs as much as a full one.
    """
    chosen = {
        id(a): [i for i, e in enumerate(a.exchanges) if not e.ended and e.text is not None][: suite.longer]
        for a in answered if a.block.verdicts
    }  # fmt: skip
    rows = [a.exchanges[i] for a in answered for i in chosen.get(id(a), ())]
    if not rows:
        return
    longer = iter(subject.go_on(rows, 2))
    for a in answered:
        mine = [(i, next(longer)) for i in chosen.get(id(a), ())]
        verdict = verdicts([e for _, e in mine])
        told = [(i, v) for v, (i, _) in zip(verdict, mine, strict=True) if v is not None]
        a.longer = [float(v != a.verdicts[i]) for i, v in told]
        a.longer_units = [a.units[i] for i, _ in told]
