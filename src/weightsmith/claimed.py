"""What ``claims`` writes to disk: what a model card says, what was measured, and whether the one holds by the other."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .measured import ScorerNote
from .records import ModelIdentity, Strict

CLAIMS = "weightsmith/claims/1"

Kind = Literal[
    "base model", "merge", "rate", "score", "divergence", "perplexity", "tensors", "same weights", "parameters",
    "context length", "dtype", "licence", "digest", "setting",
]  # fmt: skip
Subject = Literal["this model", "original model"]
Relation = Literal["is", "at most", "at least"]
Outcome = Literal["holds", "does not hold", "cannot tell"]


class Claim(Strict):
    """One statement of a card, with the place where it stands.

    ``text`` is the source line, shortened, with control characters escaped. ``value`` is in ``unit``; rates and scores
    are shares of 1. ``count`` of ``total`` where the card gives them; ``step`` is half of the last digit that was
    printed, so the claim covers value ± step. ``keys`` are the figures of a ``MeasureRecord`` that could be meant: several
    where the card does not say which. ``names`` are models, kinds of tensors or a licence, ``layers`` 0-based blocks.
    ``unmeasurable`` says why nothing here could be measured (a search's settings), and is empty where it can be.
    """

    kind: Kind
    says: str
    file: str
    line: int
    text: str
    subject: Subject = "this model"
    relation: Relation = "is"
    value: float | None = None
    count: int | None = None
    total: int | None = None
    step: float = 0.0
    unit: str = ""
    keys: list[str] = []
    names: list[str] = []
    layers: list[int] = []
    unmeasurable: str = ""

    @property
    def claimed(self) -> str:
        """What the card claims, in a few words for a table."""
        sign = {"is": "", "at most": "≤ ", "at least": "≥ "}[self.relation]
        if self.total is not None:
            return f"{sign}{self.count}/{self.total}"
        if self.value is not None and self.unit == "share":
            return f"{sign}{100 * self.value:.4g}%"
        if self.value is not None:
            number = f"{self.value:.0f}" if self.value == int(self.value) else f"{self.value:.4g}"
            return f"{sign}{number} {self.unit}".rstrip()
        return ", ".join(self.names)


class Verdict(Strict):
    """Whether a claim holds, and by what.

    ``value``, ``low`` and ``high`` are what was measured with its 95% interval, ``n`` its independent prompts and ``figure``
    its key; ``None`` where the claim is about files, which are compared exactly, or nothing was measured. ``measured``
    says the same in words. ``differs`` names tensors or settings that contradict the claim.
    """

    claim: Claim
    verdict: Outcome
    why: str
    measured: str = ""
    figure: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    differs: list[str] = []


class ClaimsRecord(Strict):
    """Every claim of a card and its verdict. ``card_sha256`` is of the card's bytes; ``suite`` is empty where nothing ran.

    ``scorers`` are what the figures were read with, and their own error; ``conditions`` how the models were asked.
    """

    schema_id: str = Field(CLAIMS, alias="schema")
    model: str
    model_digest: str
    against: str
    against_digest: str
    card: str
    card_sha256: str
    verdicts: list[Verdict] = []
    suite: str = ""
    edited: ModelIdentity | None = None
    base: ModelIdentity | None = None
    conditions: list[str] = []
    scorers: list[ScorerNote] = []
    notes: list[str] = []
    versions: dict[str, str] = {}

    @property
    def outcome(self) -> Outcome:
        """*does not hold* if any claim does not, *cannot tell* if none could be told, else *holds*."""
        found = {v.verdict for v in self.verdicts}
        if "does not hold" in found:
            return "does not hold"
        return "holds" if "holds" in found else "cannot tell"
