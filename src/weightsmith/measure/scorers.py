"""Scorers: what an answer is scored by. Plug-ins of the group ``weightsmith.scorers``.

A scorer is made from its recipe's options and gives one value an exchange. Some read the answer's text, some ask the
running model (teacher-forced log-odds, the feature's own probe); each states what it reads and what is known of its
error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import MissingExtra, RecipeError
from ..measured import ScorerNote
from ..registry import Registry
from .asks import Exchange

if TYPE_CHECKING:
    from ..direction import Direction
    from ..runtime import RunningModel


class Scorer(Protocol):
    """One value an exchange; ``rate`` when it is 0 or 1; ``rises`` is +1 when more of the feature means a higher value.

    ``asks`` says that it asks the running model about the prompt or the answer and doesn't read text alone: it is then
    used on greedy answers only, since its figure does not depend on the dice.
    """

    @property
    def name(self) -> str:
        """What its figures are called."""
        ...

    @property
    def unit(self) -> str:
        """Unit of its values."""
        ...

    @property
    def rate(self) -> bool:
        """Whether a value is 0 or 1."""
        ...

    @property
    def asks(self) -> bool:
        """Whether it asks the running model."""
        ...

    @property
    def rises(self) -> int:
        """+1 when the feature raises it, -1 when the feature lowers it."""
        ...

    def score(self, model: RunningModel | None, exchanges: Sequence[Exchange]) -> list[float | None]:
        """One value an exchange; ``None`` where there is none (no answer to read, a judge that did not answer)."""
        ...

    def note(self) -> ScorerNote:
        """What it reads and what is known of its error."""
        ...


def read_texts(exchanges: Sequence[Exchange], read: Callable[[str], float]) -> list[float | None]:
    """``read`` on every answer that there is; a thought that never ended leaves no answer and no value."""
    return [None if e.text is None else read(e.text) for e in exchanges]


def _only(kind: str, options: Mapping[str, Any], allowed: Mapping[str, type]) -> None:
    for name, value in options.items():
        if name not in allowed:
            raise RecipeError(f"the scorer {kind!r} has no option {name!r}",
                              hint=f"it takes {', '.join(allowed) or 'none'}")  # fmt: skip
        if not isinstance(value, allowed[name]):
            raise RecipeError(f"the scorer {kind!r}: {name!r} must be a {allowed[name].__name__}")


def _strings(kind: str, options: Mapping[str, Any], name: str) -> list[str]:
    values = options.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise RecipeError(f"the scorer {kind!r} needs a list of texts under {name!r}")
    return values


@dataclass
class Sentiment:
    """VADER's compound score, −1 (negative) to +1 (positive) (Hutto and Gilbert 2014)."""

    sign: int = 1
    name: str = "sentiment"
    unit: str = "VADER compound, −1 to 1"
    rate: bool = False
    asks: bool = False

    @classmethod
    def make(cls, options: Mapping[str, Any]) -> Sentiment:
        """From recipe options: ``sign`` is 1 when the feature is positive, −1 when it is negative."""
        _only("sentiment", options, {"sign": int})
        sign = options.get("sign", 1)
        if sign not in (1, -1):
            raise RecipeError("the scorer 'sentiment': sign must be 1 or -1")
        return cls(sign)

    @property
    def rises(self) -> int:
        """Which way the feature moves it."""
        return self.sign

    def score(self, model: RunningModel | None, exchanges: Sequence[Exchange]) -> list[float | None]:
        """Compound scores; an empty answer scores 0."""
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise MissingExtra("the sentiment scorer needs VADER", hint="pip install 'weightsmith[model]'") from error
        analyzer = SentimentIntensityAnalyzer()
        return read_texts(exchanges, lambda text: float(analyzer.polarity_scores(text)["compound"]))

    def note(self) -> ScorerNote:
        """What it reads and what is known of its error."""
        return ScorerNote(name=self.name, reads="a lexicon of 7,500 English words and five rules, on the whole answer",
                          error="not calibrated here on model answers; blind to irony and to languages but English")  # fmt: skip


@dataclass
class Phrases:
    """Whether an answer holds at least one of the given phrases, as whole words, case left out."""

    phrases: list[str]
    name: str = "phrases"
    unit: str = "share of answers"
    rate: bool = True
    asks: bool = False
    rises: int = 1

    @classmethod
    def make(cls, options: Mapping[str, Any]) -> Phrases:
        """From recipe options: ``phrases``."""
        _only("phrases", options, {"phrases": list})
        return cls(_strings("phrases", options, "phrases"))

    def score(self, model: RunningModel | None, exchanges: Sequence[Exchange]) -> list[float | None]:
        """1 where a phrase occurs, else 0."""
        pattern = re.compile("|".join(rf"(?<!\w){re.escape(p.strip())}(?!\w)" for p in self.phrases), re.IGNORECASE)
        return read_texts(exchanges, lambda a: float(bool(pattern.search(a.replace("’", "'")) or pattern.search(a))))

    def note(self) -> ScorerNote:
        """What it reads and what is known of its error."""
        return ScorerNote(name=self.name, reads=f"{len(self.phrases)} phrases of the recipe, whole words",
                          error="misses every other wording, and counts a phrase that is quoted or denied")  # fmt: skip


@dataclass
class Continuations:
    """Log-odds of answers that begin with the recipe's feature-showing openings over its feature-lacking ones."""

    shows: list[str]
    lacks: list[str]
    name: str = "continuations"
    unit: str = "nats per token"
    rate: bool = False
    asks: bool = True
    rises: int = 1

    @classmethod
    def make(cls, options: Mapping[str, Any]) -> Continuations:
        """From recipe options: ``shows`` and ``lacks``."""
        _only("continuations", options, {"shows": list, "lacks": list})
        return cls(_strings("continuations", options, "shows"), _strings("continuations", options, "lacks"))

    def score(self, model: RunningModel | None, exchanges: Sequence[Exchange]) -> list[float | None]:
        """Mean log-probability per token of ``shows`` minus that of ``lacks``, after each prompt."""
        from ..runtime import Continuation, score_answers

        assert model is not None, "this scorer asks the model"
        openings = [tuple(model.tokens(t)) for t in (*self.shows, *self.lacks)]
        items = [Continuation(e.prompt_ids, o) for e in exchanges for o in openings]
        scores = score_answers(model, items, "comparing openings")
        n, k = len(openings), len(self.shows)
        rows = [scores[i : i + n] for i in range(0, len(scores), n)]
        return [sum(r[:k]) / k - sum(r[k:]) / (n - k) for r in rows]

    def note(self) -> ScorerNote:
        """What it reads and what is known of its error."""
        return ScorerNote(name=self.name, reads=f"teacher-forced openings, {len(self.shows)} against {len(self.lacks)}",
                          error="exact for these openings; an answer can begin otherwise and still show the feature")  # fmt: skip


@dataclass
class Probe:
    """Projection of the answer's mean residual on the feature's own direction, in units of its two sides' distance.

    0 is where the extract prompts lacked the feature, 1 where they showed it. It reads the *base* model, so that a
    removal can't hide from its own probe: both models' answers are re-read by the base.
    """

    direction: Direction
    layer: int
    reader: Callable[[], RunningModel] | None = None
    reader_digest: str = ""
    name: str = "probe"
    unit: str = "0 lacks, 1 shows"
    rate: bool = False
    asks: bool = True
    rises: int = 1

    def score(self, model: RunningModel | None, exchanges: Sequence[Exchange]) -> list[float | None]:
        """One projection an exchange; an empty answer is read at its prompt's last token.

        The answer is read after the user's turns alone, without a system message: not the persona is read but the answer.
        """
        from ..runtime import Sequence as Span
        from ..runtime import capture

        reader = self.reader() if self.reader else model
        assert reader is not None, "this scorer reads with a model"
        spans = []
        for e in exchanges:
            p = reader.encode([dict(m) for m in e.ask.messages if m["role"] != "system"])
            spans.append(Span((*p, *e.tokens), len(p) if e.tokens else len(p) - 1, len(p) + len(e.tokens)))
        means, _ = capture(reader, spans, [self.layer], self.direction.meta.point, "reading answers with the probe")
        row, unit = self.direction.row(self.layer), self.direction.unit(self.layer)
        low = float(self.direction.mean_lacks[row] @ unit)
        high = float(self.direction.mean_shows[row] @ unit)
        return [float(v) for v in (means[:, 0] @ unit - low) / ((high - low) or 1.0)]

    def settings(self) -> list[Any]:
        """What its values depend on besides the exchange."""
        return [self.direction.digest(), self.layer, self.reader_digest]

    def note(self) -> ScorerNote:
        """What it reads and what is known of its error."""
        quality = next((q for q in self.direction.meta.quality if q.layer == self.layer), None)
        known = (f"AUROC {quality.auroc:.2f} [{quality.auroc_low:.2f}, {quality.auroc_high:.2f}] on select prompts"
                 if quality else "no quality on record")  # fmt: skip
        return ScorerNote(name=self.name, reads=f"the base model's layer {self.layer} over the answer's tokens", error=known)


SCORERS = Registry(
    "scorers",
    {
        "sentiment": "weightsmith.measure.scorers:Sentiment",
        "phrases": "weightsmith.measure.scorers:Phrases",
        "continuations": "weightsmith.measure.scorers:Continuations",
        "probe": "weightsmith.measure.scorers:Probe",
        "refusal": "weightsmith.measure.refusal:Refusal",
        "similarity": "weightsmith.measure.similarity:Similarity",
        "judge": "weightsmith.measure.judge:Judge",
    },
)
