"""What a measurement writes to disk: figures with their intervals, paired differences, answers to read.

Everything that is shown (tables, HTML, logs, a model card) is drawn from a :class:`MeasureRecord` and nothing else.
A figure's ``key`` is its stable name for machines (``kl.mean``, ``safety.harmful.refuses``); ``name`` is for people.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .records import Derivation, DirectionMeta, ModelIdentity, Strict

MEASUREMENTS = "weightsmith/measurements/2"

Interval = Literal["wilson", "bootstrap", "none"]
Side = Literal["rises", "falls", "cannot tell"]


class Measurement(Strict):
    """One figure that can be believed: value, unit, interval, n, and how the interval was made.

    ``low`` and ``high`` bound a 95% interval. ``n`` counts independent units: prompts, whatever the number of wordings
    and seeds of each; ``answers`` counts what was read. ``values`` (when kept) are per prompt, in prompt order, and
    ``prompts`` is the digest of those prompts: two figures with equal digests can be paired. ``missing`` answers had no
    value (a judge that did not answer, a thought that never ended) and are in none of the figures.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    n: int
    interval: Interval
    condition: str = ""
    values: list[float] | None = None
    key: str = ""
    group: str = ""
    scorer: str = ""
    answers: int = 0
    missing: int = 0
    prompts: str = ""


class Difference(Strict):
    """A paired comparison, edited minus base, on the same prompts; ``p`` by the named test.

    ``p_holm`` is ``p`` adjusted over its ``family`` of differences (Holm 1979); ``mde`` is the smallest difference that
    this design finds with 80% power. ``verdict`` is *cannot tell* unless ``p_holm`` is under 0.05 and the difference
    is not below ``mde``.
    """

    name: str
    condition: str
    unit: str
    base: Measurement
    edited: Measurement
    value: float
    low: float
    high: float
    p: float
    test: str
    n: int
    key: str = ""
    group: str = ""
    scorer: str = ""
    family: str = ""
    p_holm: float | None = None
    mde: float | None = None
    verdict: Side = "cannot tell"


class Share(Strict):
    """A share with a 95% interval."""

    value: float
    low: float
    high: float


class Spread(Strict):
    """Where the variance of one score comes from, over prompts, their wordings and the dice (seeds).

    ``sd`` is the square root of the whole variance; the three shares add to 1, or are all 0 where nothing varies.
    """

    key: str
    name: str
    condition: str
    model: Literal["base", "edited"]
    sd: float
    prompt: Share
    wording: Share
    dice: Share
    prompts: int
    wordings: int
    seeds: int
    group: str = ""
    notes: list[str] = []


class Answer(Strict):
    """One question and what was said to it, before and after; ``base`` is empty where there was no base.

    ``seed`` is ``None`` for the greedy answer; ``turn`` counts from 1 in conversations of several turns. A thinking
    model's thought stands apart. ``kl`` is KL(base ‖ edited), mean over the base's answer, in nats a token.
    """

    prompt: str
    condition: str
    base: str
    edited: str
    degenerate_base: bool = False
    degenerate_edited: bool = False
    group: str = ""
    item: int = 0
    wording: int = 0
    seed: int | None = None
    turn: int = 1
    verdict_base: str = ""
    verdict_edited: str = ""
    thought_base: str = ""
    thought_edited: str = ""
    kl: float | None = None


class ErrorFigure(Strict):
    """One figure of a scorer's own error on labelled data, with a 95% interval; ``n`` labelled answers."""

    data: str
    figure: str
    value: float
    low: float
    high: float
    n: int


class ScorerNote(Strict):
    """What a scorer reads, and what is known of its error: in a line, and as figures where it was calibrated."""

    name: str
    reads: str
    error: str
    figures: list[ErrorFigure] = []


class MeasureRecord(Strict):
    """Everything that one ``measure`` found; the HTML report is drawn from this and nothing else.

    ``base`` is ``None`` for a model that was measured alone: then ``figures`` holds its figures and ``differences`` is
    empty. ``damage`` compares distributions (KL, agreement), ``worst`` are the answers with the largest KL.
    """

    schema_id: str = Field(MEASUREMENTS, alias="schema")
    title: str
    sentence: str
    feature: str
    feature_description: str
    base: ModelIdentity | None
    edited: ModelIdentity
    suite: str = ""
    figures: list[Measurement] = []
    differences: list[Difference] = []
    damage: list[Measurement] = []
    spreads: list[Spread] = []
    answers: list[Answer] = []
    worst: list[Answer] = []
    scorers: list[ScorerNote] = []
    direction: DirectionMeta | None = None
    derivation: Derivation | None = None
    options: dict[str, Any] = {}
    ran: dict[str, str] = {}
    seconds: dict[str, float] = {}
    notes: list[str] = []
    versions: dict[str, str] = {}
